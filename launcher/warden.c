#include "launcher/warden.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/log.h"
#include "launcher/overseer.h"

#define GRACE_MS 200   /* after the first failure: others may have a better story */
#define LAST_MS 300    /* for last words */
#define PEACE_MS 20000 /* for what the ranks said before they left in peace: the way to a launcher may be slow */
#define LAUNCHER_MS 10000 /* silence of a launcher that may be on another host, as ours is not in the kernel's hands */
#define FRONT_PIECE 65536
#define LAST_BYTES (256u << 20) /* of rank 0's; more than any socket holds */
#define FRONT_LIMIT (256u << 10) /* a story comes behind it, and shall not come late */

static const struct comm_os *os_of(const struct launch_warden *w) { return w->os ? w->os : comm_os_real(); }
static uint64_t now_ns(const struct launch_warden *w) { return base_now_ns(w->clock ? w->clock : base_clock_real()); }
static size_t front_limit(const struct launch_warden *w) { return w->front_limit ? w->front_limit : FRONT_LIMIT; }

static void hang_up(const struct launch_warden *w, int *fd)
{
    (void)os_of(w)->close(os_of(w), *fd);
    *fd = -1;
}

void launch_warden_init(struct launch_warden *w)
{
    *w = (struct launch_warden){.in_fd = -1, .out_fd = -1, .signal_fd = -1, .news_fd = -1, .front_fd = -1};
    for (int r = 0; r < COMM_MAX_RANKS; r++)
        w->pmi_fds[r] = -1;
}

/* What is to be passed on, and cannot be kept until it can, ends the job. */
static void fail(struct launch_warden *w, const char *what, const struct err *e)
{
    w->has_failed = true;
    if (w->story_worth == LAUNCH_WORTH_KILLED)
        return;
    w->story_worth = LAUNCH_WORTH_KILLED;
    err_set(&w->story, ST_NO_MEMORY, "%s%.400s", what, e->text);
}

static void post(struct launch_warden *w, enum rt_frame_kind kind, const void *head, size_t head_bytes, const void *data, size_t bytes)
{
    struct err e = {""};
    if (!w->has_failed && launch_outbox_frame(&w->out, kind, head, head_bytes, data, bytes, &e))
        fail(w, "the agent has ", &e);
}

static void keep(struct launch_warden *w, struct launch_outbox *out, const void *data, size_t bytes)
{
    struct err e = {""};
    if (!w->has_failed && launch_outbox_append(out, data, bytes, &e))
        fail(w, "the agent has ", &e);
}

/* ---- ranks --------------------------------------------------------------------------------------------------------------------------------------------------- */

/* What a dead rank left behind. */
static void take_story(struct launch_warden *w, int rank, int status)
{
    const struct rt_vitals *v = &w->vitals[rank];
    const int failed = atomic_load(&v->failed);
    const unsigned long long step = atomic_load(&v->step);
    const char *phase = rt_phase_name((enum rt_phase)atomic_load(&v->phase));
    const int worth = WIFSIGNALED(status) ? LAUNCH_WORTH_KILLED : failed && failed != ST_PEER_LOST && failed != ST_CANCELLED ? LAUNCH_WORTH_FAILED : LAUNCH_WORTH_LOST_PEER;
    if (worth <= w->story_worth)
        return;
    w->story_worth = worth;
    if (WIFSIGNALED(status))
        err_set(&w->story, ST_PEER_LOST, "rank %d (pid %d) was killed by signal %d (%s) at step %llu (%s)", rank, (int)w->pids[rank], WTERMSIG(status), strsignal(WTERMSIG(status)), step, phase);
    else if (failed)
        err_set(&w->story, ST_PEER_LOST, "rank %d: %.440s", rank, v->error);
    else
        err_set(&w->story, ST_PEER_LOST, "rank %d (pid %d) left with status %d at step %llu (%s)", rank, (int)w->pids[rank], WEXITSTATUS(status), step, phase);
}

/* Whoever is dead; true if one of them ended badly. */
static bool reap(struct launch_warden *w)
{
    bool bad = false;
    for (int r, status; w->hands.reap(w->hands.context, &r, &status);) {
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            take_story(w, r, status);
            bad = true;
        }
        w->pids[r] = 0;
        w->n_alive--;
        if (w->pmi)
            launch_pmi_hang_up(w->pmi, r);
    }
    return bad;
}

/* A rank that somebody stopped, or that is frozen, ends the job: the others wait for it. */
static bool find_frozen(struct launch_warden *w, uint64_t now)
{
    for (int r = w->first; r < w->end; r++) {
        const struct rt_vitals *v = &w->vitals[r];
        struct launch_life_sample sample;
        if (w->pids[r] <= 0 || !w->hands.look(w->hands.context, w->pids[r], &sample))
            continue;
        const int phase = atomic_load(&v->phase);
        uint64_t silent_ms;
        const int waits = atomic_load(&v->waits);
        if (waits != RT_WAITS_BLINDLY)
            w->blind_ns[r] = 0;
        else if (!w->blind_ns[r])
            w->blind_ns[r] = now;
        const bool is_blind = w->blind_ns[r] && now - w->blind_ns[r] < LAUNCH_BLIND_MS * BASE_NS_PER_MS;
        const bool excused = is_blind || phase == RT_PHASE_TELLING || phase == RT_PHASE_LEAVING;
        const enum launch_verdict verdict = launch_life_judge(&w->life[r], rt_vitals_progress(v) + (uint64_t)waits, excused, &sample, now, &silent_ms);
        if (verdict == LAUNCH_WELL)
            continue;
        err_set(&w->story, ST_PEER_LOST, "rank %d (pid %d) %s gave no sign of life for %.1f s, at step %llu (%s)", r, (int)w->pids[r],
                verdict == LAUNCH_STOPPED ? "was stopped and" : "is frozen: it", (double)silent_ms / 1000, (unsigned long long)atomic_load(&v->step), rt_phase_name((enum rt_phase)phase));
        return true;
    }
    return false;
}

/* p [n_ranks] */
static void poll_for_pmi(const struct launch_warden *w, struct pollfd *p)
{
    for (int r = 0; r < w->n_ranks; r++) {
        const void *bytes;
        p[r] = (struct pollfd){.fd = w->pmi_fds[r], .events = POLLIN};
        if (launch_outbox_waiting(&w->pmi_out[r]))
            p[r].events |= POLLOUT;
        if (!w->pmi)
            continue;
        const enum launch_pmi_state state = launch_pmi_query(w->pmi, r);
        if (state == LAUNCH_PMI_GONE || state == LAUNCH_PMI_BROKEN)
            p[r].fd = -1;
        else if (launch_pmi_pending(w->pmi, r, &bytes))
            p[r].events |= POLLOUT;
    }
}

static void relay_pmi(struct launch_warden *w, int r)
{
    unsigned char bytes[4096];
    const uint32_t rank = (uint32_t)r;
    const ssize_t n = os_of(w)->recv(os_of(w), w->pmi_fds[r], bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    post(w, RT_PMI, &rank, sizeof rank, bytes, n > 0 ? (size_t)n : 0);
    if (n <= 0)
        hang_up(w, &w->pmi_fds[r]);
}

/* What ranks ask of the PMI-1 server. A rank that writes nonsense there only loses that connection: whether it needed it, it knows itself. */
static void serve_pmi(struct launch_warden *w, const struct pollfd *p)
{
    for (int r = w->first; r < w->end; r++) {
        struct err e = {""};
        if (!p[r].revents)
            continue;
        if (w->relays) {
            if (p[r].revents != POLLOUT)
                relay_pmi(w, r);
            continue;
        }
        const enum st st = launch_pmi_read(w->pmi, r, os_of(w), p[r].fd, &e);
        if (st)
            LOG_WARNING("agent", "PMI of rank %d: %s", r, e.text);
        else if (!(p[r].revents & POLLHUP) || launch_pmi_query(w->pmi, r) < LAUNCH_PMI_FINALIZED)
            continue;
        hang_up(w, &w->pmi_fds[r]);
    }
    for (int r = w->first; r < w->end; r++) {
        if (w->pmi_fds[r] < 0)
            continue;
        if (w->pmi)
            (void)launch_pmi_write(w->pmi, r, os_of(w), w->pmi_fds[r]);
        (void)launch_outbox_flush(&w->pmi_out[r], w->os, w->pmi_fds[r]);
    }
}

/* ---- the launcher -------------------------------------------------------------------------------------------------------------------------------------------- */

/* No beat for long, although it could: it was stopped, or hangs. Its death is seen at once, by the end of the stream. */
static bool is_launcher_silent(struct launch_warden *w, uint64_t now)
{
    struct launch_life_sample sample;
    uint64_t silent_ms = (now - w->heard_ns) / BASE_NS_PER_MS;
    if (w->relays && silent_ms >= LAUNCHER_MS && !w->is_paused) {
        err_set(&w->story, ST_PEER_LOST, "the launcher gave no sign of life for %.1f s; its ranks were killed", (double)silent_ms / 1000);
        return true;
    }
    if (w->launcher <= 0 || !w->hands.look(w->hands.context, w->launcher, &sample))
        return false;
    const enum launch_verdict verdict = launch_life_judge(&w->launcher_life, w->heard_ns, w->is_paused, &sample, now, &silent_ms);
    if (verdict == LAUNCH_WELL || w->is_paused)
        return false;
    err_set(&w->story, ST_PEER_LOST, "the launcher (pid %d) %s gave no sign of life for %.1f s; its ranks were killed", (int)w->launcher,
            verdict == LAUNCH_STOPPED ? "was stopped and" : "is frozen: it", (double)silent_ms / 1000);
    return true;
}

/* A frame from the launcher that is not for us. */
static void take_relayed(struct launch_warden *w, enum rt_frame_kind kind, const void *payload, size_t bytes)
{
    uint32_t rank, value;
    if (kind == RT_FRONT && w->front_fd >= 0) {
        if (bytes)
            keep(w, &w->front_out, payload, bytes);
        w->front_has_ended |= bytes == 0;
    } else if (kind == RT_HOLD && bytes == sizeof value) {
        memcpy(&value, payload, sizeof value);
        w->is_held = value != 0;
    } else if (kind == RT_PMI && bytes >= sizeof rank) {
        memcpy(&rank, payload, sizeof rank);
        if (rank < COMM_MAX_RANKS && w->pmi_fds[rank] >= 0)
            keep(w, &w->pmi_out[rank], (const char *)payload + sizeof rank, bytes - sizeof rank);
    }
}

/* False: it closed its end. */
static bool listen_launcher(struct launch_warden *w, uint64_t now)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        struct err e = {""};
        const enum st st = rt_inbox_next(&w->control, 0, &kind, &payload, &bytes, &e);
        if (st && st != ST_AGAIN && st != ST_PEER_LOST)
            fail(w, "what the launcher says cannot be read: ", &e);
        if (st)
            return st == ST_AGAIN;
        w->heard_ns = now;
        if (kind == RT_PAUSE || kind == RT_RESUME) {
            w->is_paused = kind == RT_PAUSE;
            w->launcher_life = (struct launch_life){0}; /* that it was stopped meanwhile is no silence of later */
        }
        if (w->relays)
            take_relayed(w, kind, payload, bytes);
    }
}

static void relay_front(struct launch_warden *w)
{
    static unsigned char bytes[FRONT_PIECE];
    const ssize_t n = os_of(w)->recv(os_of(w), w->front_fd, bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    post(w, RT_FRONT, NULL, 0, bytes, n > 0 ? (size_t)n : 0);
    if (n <= 0)
        hang_up(w, &w->front_fd);
}

static void flush_front(struct launch_warden *w)
{
    if (w->front_fd < 0 || launch_outbox_flush(&w->front_out, w->os, w->front_fd) == ST_AGAIN || !w->front_has_ended)
        return;
    w->hands.end_sending(w->hands.context, w->front_fd); /* not before: rank 0 may be slow to take what was said */
    w->front_has_ended = false;
}

/* What the packets between hosts have told. True: one is lost; the launcher says how the job ended, so this is no story of our own. */
bool launch_warden_take_news(struct launch_warden *w)
{
    struct launch_pulse_news news;
    bool is_lost = false;
    while (w->hands.news(w->hands.context, &news)) {
        const uint32_t host = (uint32_t)news.host;
        post(w, news.is_lost ? RT_LOST : RT_NOTE, &host, news.is_lost ? sizeof host : 0, news.text, strlen(news.text));
        is_lost |= news.is_lost;
    }
    w->has_lost |= is_lost;
    return is_lost;
}

/* Twice a second; never waits for a launcher that does not listen. */
static void beat(struct launch_warden *w, uint64_t now)
{
    if (now - w->beat_ns < LAUNCH_BEAT_MS * BASE_NS_PER_MS)
        return;
    w->beat_ns = now;
    if (launch_outbox_waiting(&w->out) == 0) /* else something is on its way that tells as much */
        post(w, RT_BEAT, NULL, 0, NULL, 0);
}

void launch_warden_beat(struct launch_warden *w) { beat(w, now_ns(w)); }

/* ---- its turns ------------------------------------------------------------------------------------------------------------------------------------------------ */

/* After we were stopped ourselves, silence of others means nothing. */
static void forget_silence(struct launch_warden *w, uint64_t now)
{
    memset(w->life, 0, sizeof w->life);
    memset(w->blind_ns, 0, sizeof w->blind_ns);
    memset(&w->launcher_life, 0, sizeof w->launcher_life);
    w->heard_ns = now;
}

int launch_warden_watch(struct launch_warden *w)
{
    const struct comm_os *os = os_of(w);
    uint64_t give_up = BASE_NO_DEADLINE;
    w->looked_ns = now_ns(w);
    forget_silence(w, w->looked_ns);
    while (w->n_alive > 0) {
        enum { SIGNAL, LAUNCHER_IN, LAUNCHER_OUT, FRONT_IN, FRONT_OUT, NEWS, N_OWN };
        struct pollfd p[N_OWN + COMM_MAX_RANKS] = {
            [SIGNAL] = {.fd = w->signal_fd, .events = POLLIN},
            [LAUNCHER_IN] = {.fd = w->in_fd, .events = POLLIN},
            [LAUNCHER_OUT] = {.fd = launch_outbox_waiting(&w->out) ? w->out_fd : -1, .events = POLLOUT},
            [FRONT_IN] = {.fd = !w->is_held && launch_outbox_waiting(&w->out) < front_limit(w) ? w->front_fd : -1, .events = POLLIN},
            [FRONT_OUT] = {.fd = launch_outbox_waiting(&w->front_out) ? w->front_fd : -1, .events = POLLOUT},
            [NEWS] = {.fd = w->news_fd, .events = POLLIN},
        };
        poll_for_pmi(w, p + N_OWN);
        uint64_t now = now_ns(w);
        if (now >= give_up)
            break;
        const uint64_t look_ns = LAUNCH_LOOK_MS * BASE_NS_PER_MS, next_ns = w->looked_ns + look_ns, until = next_ns < give_up ? next_ns : give_up;
        if (os->poll(os, p, N_OWN + (size_t)w->n_ranks, until > now ? until - now : 0) < 0 && errno != EINTR)
            return 1;
        now = now_ns(w);
        if (p[FRONT_IN].revents) /* before the deaths: what rank 0 said last comes first */
            relay_front(w);
        if (p[SIGNAL].revents) {
            if (w->hands.signal(w->hands.context) == LAUNCH_SIGNAL_GO)
                return 1;
            if (reap(w) && give_up == BASE_NO_DEADLINE)
                give_up = now + GRACE_MS * BASE_NS_PER_MS;
            if (w->story_worth == LAUNCH_WORTH_KILLED)
                return 1; /* no story is better */
        }
        if (p[LAUNCHER_IN].revents && !listen_launcher(w, now))
            return 1;
        if (p[NEWS].revents && launch_warden_take_news(w)) {
            w->story_worth = LAUNCH_WORTH_KILLED;
            return 1;
        }
        serve_pmi(w, p + N_OWN);
        beat(w, now);
        flush_front(w);
        (void)launch_outbox_flush(&w->out, w->os, w->out_fd);
        if (w->story_worth == LAUNCH_WORTH_KILLED)
            return 1; /* there was no memory */
        if (now - w->looked_ns >= look_ns || p[SIGNAL].revents) {
            if (now - w->looked_ns > 4 * look_ns)
                forget_silence(w, now);
            w->looked_ns = now;
            if (find_frozen(w, now) || is_launcher_silent(w, now)) {
                w->story_worth = LAUNCH_WORTH_KILLED;
                return 1;
            }
        }
    }
    w->is_peace = w->story_worth == 0;
    return w->is_peace ? 0 : 1;
}

bool launch_warden_say_last(struct launch_warden *w)
{
    const struct comm_os *os = os_of(w);
    while (w->front_fd >= 0 && launch_outbox_waiting(&w->out) < LAST_BYTES) {
        struct pollfd p = {.fd = w->front_fd, .events = POLLIN};
        if (os->poll(os, &p, 1, 0) <= 0)
            break;
        relay_front(w);
    }
    bool is_answered = w->has_lost; /* the launcher answers a last word by its end */
    if (w->story.text[0]) {
        const uint32_t worth = w->story_worth ? (uint32_t)w->story_worth : LAUNCH_WORTH_FAILED;
        (void)launch_outbox_frame(&w->out, RT_STORY, &worth, sizeof worth, w->story.text, strlen(w->story.text), NULL); /* without memory for it our status tells */
        is_answered = true;
    } else if (w->relays && w->n_alive == 0) {
        (void)launch_outbox_frame(&w->out, RT_LEFT, NULL, 0, NULL, 0, NULL);
        is_answered = true;
    }
    enum st st;
    const uint64_t until = now_ns(w) + (w->is_peace && !w->story.text[0] ? PEACE_MS : LAST_MS) * BASE_NS_PER_MS;
    while ((st = launch_outbox_flush(&w->out, w->os, w->out_fd)) == ST_AGAIN && now_ns(w) < until) {
        struct pollfd p = {.fd = w->out_fd, .events = POLLOUT};
        (void)os->poll(os, &p, 1, 20 * BASE_NS_PER_MS);
    }
    while (is_answered && !st && w->in_fd >= 0 && listen_launcher(w, now_ns(w)) && now_ns(w) < until) { /* who closes a connection on which something comes in loses what he has sent */
        struct pollfd p = {.fd = w->in_fd, .events = POLLIN};
        (void)os->poll(os, &p, 1, 20 * BASE_NS_PER_MS);
    }
    return !st || !w->story.text[0];
}

void launch_warden_release(struct launch_warden *w)
{
    rt_inbox_release(&w->control);
    launch_outbox_release(&w->out);
    launch_outbox_release(&w->front_out);
    launch_pmi_destroy(w->pmi);
    w->pmi = NULL;
    for (int r = 0; r < COMM_MAX_RANKS; r++) {
        launch_outbox_release(&w->pmi_out[r]);
        if (w->pmi_fds[r] >= 0)
            hang_up(w, &w->pmi_fds[r]);
    }
    if (w->front_fd >= 0)
        hang_up(w, &w->front_fd);
}
