#include "launcher/overseer.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/log.h"
#include "comm/comm.h"
#include "launcher/outbox.h"
#include "launcher/pmi.h"

#define EXIT_MS 700 /* an agent that was told to go, or closed its end, and is still there is killed: at once where it is stopped */
#define LEAD_MS 300 /* ssh and what it leads to end within so much of each other */
#define LOST_MS 50  /* for what leads to a host that is lost: nobody leaves there in peace */
#define BETTER_MS 250
#define PAUSE_MS 2000 /* for agents to be told, at most: who does not listen for longer is lost anyway */
#define FRONT_LIMIT (4u << 20)
#define FRONT_PIECE 65536

struct end {
    struct launch_overseer_end o;
    char host[256];
    struct launch_outbox out;
    uint64_t heard_ns;
    bool has_told; /* its story, or that there is none */
    bool is_leaving; /* it has said its last word, and been told that it was heard */
    bool is_over;    /* its stream has ended, or it was given up */
    bool is_closed;
    bool is_lost;  /* silent: to us, or on the way to another host */
    uint64_t alone_ns; /* its agent is reached without what led to it, which has ended then; 0: it has not */
    bool is_alone;     /* that has been told */
};

struct launch_overseer {
    struct end ends[LAUNCH_MAX_ENDS];
    int n_ends, n_over;
    struct launch_pmi *pmi; /* with several hosts */
    int front_fd;           /* −1: rank 0's agent handed it on, or it is closed */
    struct launch_outbox front_out;
    bool front_has_ended; /* rank 0 will say no more */
    bool has_failed;      /* what is passed on has a gap: no more of it */
    bool is_holding;      /* its agent was told to hold that back */
    size_t front_limit;
    int stop_fd, pause_fd;
    struct launch_overseer_hands hands;
    const struct comm_os *os;
    const struct base_clock *clock;
    unsigned char piece[FRONT_PIECE];

    bool has_story, is_final; /* final: no better one is awaited */
    struct err story;
    int story_worth;
    uint64_t story_ns;
};

static uint64_t now_ns(const struct launch_overseer *o) { return base_now_ns(o->clock); }
static int index_of(const struct launch_overseer *o, const struct end *end) { return (int)(end - o->ends); }
static void sleep_ms(const struct launch_overseer *o, uint64_t ms) { o->hands.sleep(o->hands.context, ms * BASE_NS_PER_MS); }
static bool has_ended(const struct launch_overseer *o, const struct end *end, int *status) { return o->hands.has_ended(o->hands.context, index_of(o, end), status); }

/* ---- the cause ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Of several hosts, who lost a peer may speak before who knows what became of it: a poor story waits a moment for a better one. */
static void settle(struct launch_overseer *o, bool is_over)
{
    const bool is_final = o->is_final ||
                          (o->has_story && (o->story_worth >= LAUNCH_WORTH_FAILED || o->n_ends == 1 || is_over || now_ns(o) - o->story_ns >= BETTER_MS * BASE_NS_PER_MS));
    if (is_over || is_final != o->is_final)
        o->hands.settled(o->hands.context, is_final ? &o->story : NULL, is_over);
    o->is_final = is_final;
}

static void tell(struct launch_overseer *o, const struct err *story, int worth)
{
    if (!o->has_story || (!o->is_final && worth > o->story_worth)) {
        o->story_ns = o->has_story ? o->story_ns : now_ns(o);
        o->story = *story;
        o->story_worth = worth;
        o->has_story = true;
    }
    settle(o, false);
}

/* "host spark2: …" where there are several. */
static void tell_of(struct launch_overseer *o, const struct end *end, int worth, const char *text)
{
    struct err e = {""};
    if (end->o.host)
        err_set(&e, ST_PEER_LOST, "host %s: %.480s", end->host, text);
    else
        err_set(&e, ST_PEER_LOST, "%.500s", text);
    tell(o, &e, worth);
}

/* Of an agent on another host, which is gone or silent: with its ranks, and when it was heard last. */
static void tell_of_agent(struct launch_overseer *o, const struct end *end, const char *what, const char *more)
{
    char text[480], who[LAUNCH_WHO_TEXT];
    snprintf(text, sizeof text, "%s; %s there, last heard of %.1f s ago%s%.300s", what, launch_life_who(end->o.first_rank, end->o.n_ranks, who),
             (double)(now_ns(o) - end->heard_ns) / (double)BASE_NS_PER_S, more[0] ? ": " : "", more);
    tell_of(o, end, LAUNCH_WORTH_KILLED, text);
}

/* What is to be passed on, and cannot be kept until it can, ends the job. */
static void fail(struct launch_overseer *o, const struct err *e)
{
    struct err told = {""};
    o->has_failed = true;
    err_set(&told, ST_NO_MEMORY, "the launcher has %.400s", e->text);
    tell(o, &told, LAUNCH_WORTH_KILLED);
}

static void post(struct launch_overseer *o, struct end *end, enum rt_frame_kind kind, const void *head, size_t head_bytes, const void *data, size_t bytes)
{
    struct err e = {""};
    if (!o->has_failed && launch_outbox_frame(&end->out, kind, head, head_bytes, data, bytes, &e))
        fail(o, &e);
}

static void keep_front(struct launch_overseer *o, const void *data, size_t bytes)
{
    struct err e = {""};
    if (!o->has_failed && launch_outbox_append(&o->front_out, data, bytes, &e))
        fail(o, &e);
}

/* What leads to the other host's agent has ended by itself: why? */
static void tell_of_remote(struct launch_overseer *o, const struct end *end)
{
    int status = 0;
    char words[300], what[96];
    if (end->has_told)
        return;
    bool is_gone = !end->is_alone && has_ended(o, end, &status);
    for (int waited = 0; !is_gone && !end->is_alone && waited < LEAD_MS; waited += 10) { /* what leads there ends a moment after the stream */
        sleep_ms(o, 10);
        is_gone = has_ended(o, end, &status);
    }
    if (!is_gone || status == 0) {
        tell_of_agent(o, end, is_gone ? "its agent has left, and its last words are lost" : "its agent is gone without a word", "");
        return;
    }
    o->hands.last_words(o->hands.context, index_of(o, end), words, sizeof words);
    snprintf(what, sizeof what, "the connection to its agent ended (%s %d)", WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    tell_of_agent(o, end, what, words);
}

/* The agent's end of the stream is closed, or it shall go: reaps the child, by force where it takes too long. */
static void reap(struct launch_overseer *o, struct end *end)
{
    const int i = index_of(o, end);
    int status = 0;
    bool is_ours = false; /* the signal that it dies of */
    for (uint64_t waited = 0; !has_ended(o, end, &status); waited += 5) {
        struct launch_life_sample sample;
        if (waited >= EXIT_MS || (o->hands.look(o->hands.context, i, &sample) && sample.stopped)) {
            o->hands.kill(o->hands.context, i);
            is_ours = true;
        }
        sleep_ms(o, 5);
    }
    char text[200] = "";
    if (WIFSIGNALED(status) && is_ours)
        return;
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "the agent of this host (pid %d) was killed by signal %d (%s) and took its ranks with it", (int)end->o.pid, WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        snprintf(text, sizeof text, "the agent of this host (pid %d) left with status %d", (int)end->o.pid, WEXITSTATUS(status));
    if (text[0] && !end->has_told)
        tell_of(o, end, LAUNCH_WORTH_KILLED, text);
}

/* ---- the end of an end ------------------------------------------------------------------------------------------------------------------------------------ */

static bool is_heard(const struct launch_overseer *o, const struct end *end) { return now_ns(o) - end->heard_ns < 2 * LAUNCH_BEAT_MS * BASE_NS_PER_MS; }

static void close_end(struct launch_overseer *o, struct end *end)
{
    const int i = index_of(o, end);
    if (end->is_closed)
        return;
    end->is_closed = true;
    if (!end->o.is_remote || end->o.is_direct) {
        (void)o->os->close(o->os, end->o.in_fd);
        if (end->o.out_fd != end->o.in_fd)
            (void)o->os->close(o->os, end->o.out_fd);
    }
    if (end->o.is_remote) {
        tell_of_remote(o, end);
        const bool is_gone = end->is_lost && !is_heard(o, end);
        if (is_gone) /* it may be stopped, or out of reach */
            o->hands.kill(o->hands.context, i);
        o->hands.let_go(o->hands.context, i, is_gone ? LOST_MS : EXIT_MS);
    } else
        reap(o, end);
    rt_inbox_release(&end->o.inbox);
    launch_outbox_release(&end->out);
}

/* Who has told why it leaves is waited for later: meanwhile somebody else may know better, and shall be heard. */
static void give_up(struct launch_overseer *o, struct end *end)
{
    end->is_over = true;
    o->n_over++;
    if (!end->has_told || end->is_lost)
        close_end(o, end);
    if (o->n_over == o->n_ends)
        settle(o, true);
}

/* ---- frames ----------------------------------------------------------------------------------------------------------------------------------------------- */

static bool can_be_told(const struct end *end) { return !end->is_over && !end->is_leaving; }

/* It has said its last word. Until it sees our end it holds its own open: who closes a connection on which something comes in loses what he has sent. */
static void dismiss(struct launch_overseer *o, struct end *end)
{
    if (can_be_told(end))
        o->hands.end_sending(o->hands.context, end->o.out_fd);
    end->is_leaving = true;
}

static void say_pending(struct launch_overseer *o)
{
    for (int i = 0; i < o->n_ends; i++)
        for (int r = o->ends[i].o.first_rank; r < o->ends[i].o.first_rank + o->ends[i].o.n_ranks; r++) {
            const void *bytes;
            const size_t n = launch_pmi_pending(o->pmi, r, &bytes);
            const uint32_t rank = (uint32_t)r;
            if (n && can_be_told(&o->ends[i]))
                post(o, &o->ends[i], RT_PMI, &rank, sizeof rank, bytes, n);
            launch_pmi_sent(o->pmi, r, n);
        }
}

static void take_pmi(struct launch_overseer *o, struct end *end, const void *payload, size_t bytes)
{
    uint32_t rank;
    struct err e = {""};
    if (bytes < sizeof rank)
        return;
    memcpy(&rank, payload, sizeof rank);
    if ((int)rank < end->o.first_rank || (int)rank >= end->o.first_rank + end->o.n_ranks)
        return;
    if (bytes == sizeof rank)
        launch_pmi_hang_up(o->pmi, (int)rank);
    else if (launch_pmi_feed(o->pmi, (int)rank, (const char *)payload + sizeof rank, bytes - sizeof rank, &e))
        LOG_WARNING("watch", "PMI of rank %u: %s", rank, e.text);
    say_pending(o);
}

/* Another host's agent has not heard it for too long. Where we still do, that is worth a word. */
static void take_lost(struct launch_overseer *o, const void *payload, size_t bytes)
{
    char told[400], text[480];
    uint32_t host;
    if (!rt_frame_told(payload, bytes, &host, told, sizeof told) || host >= (uint32_t)o->n_ends)
        return;
    struct end *lost = &o->ends[host];
    const bool answers = is_heard(o, lost) && !lost->is_over && !strstr(told, "firewall");
    snprintf(text, sizeof text, "%s%s", told, answers ? "; its agent still answers: is it the cable, or a firewall?" : "");
    lost->has_told = lost->is_lost = true;
    tell_of(o, lost, LAUNCH_WORTH_KILLED, text);
}

static void take_frame(struct launch_overseer *o, struct end *end, enum rt_frame_kind kind, const void *payload, size_t bytes)
{
    char text[480];
    uint32_t worth;
    if (kind == RT_STORY && rt_frame_told(payload, bytes, &worth, text, sizeof text)) {
        end->has_told = true;
        tell_of(o, end, worth > LAUNCH_WORTH_KILLED ? LAUNCH_WORTH_KILLED : (int)worth, text);
    } else if (kind == RT_PMI && o->pmi)
        take_pmi(o, end, payload, bytes);
    else if (kind == RT_FRONT && o->front_fd >= 0 && end->o.first_rank == 0) {
        if (bytes)
            keep_front(o, payload, bytes);
        o->front_has_ended |= bytes == 0;
    } else if (kind == RT_LOST)
        take_lost(o, payload, bytes);
    else if (kind == RT_LEFT)
        end->has_told = true;
    else if (kind == RT_NOTE)
        LOG_WARNING("hosts", "%.*s", (int)(bytes > 400 ? 400 : bytes), (const char *)payload);
    if (kind == RT_STORY || kind == RT_LOST || kind == RT_LEFT)
        dismiss(o, end);
}

/* Frames of the agent. False: its end is closed. */
static bool listen_agent(struct launch_overseer *o, struct end *end)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        char text[480];
        struct err e = {""};
        const enum st st = rt_inbox_next(&end->o.inbox, 0, &kind, &payload, &bytes, &e);
        if (st && st != ST_AGAIN && st != ST_PEER_LOST) {
            snprintf(text, sizeof text, "what its agent says cannot be read: %.400s", e.text);
            tell_of(o, end, LAUNCH_WORTH_KILLED, text);
        }
        if (st)
            return st == ST_AGAIN;
        end->heard_ns = now_ns(o);
        take_frame(o, end, kind, payload, bytes);
    }
}

static void relay_front(struct launch_overseer *o)
{
    const ssize_t n = o->os->recv(o->os, o->front_fd, o->piece, sizeof o->piece);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    post(o, &o->ends[0], RT_FRONT, NULL, 0, o->piece, n > 0 ? (size_t)n : 0);
    if (n <= 0) {
        (void)o->os->close(o->os, o->front_fd);
        o->front_fd = -1;
    }
}

/* Where the front end is slow its agent holds back what rank 0 says, and is heard all the same: a story may come, and silence must show. */
static void hold(struct launch_overseer *o)
{
    const size_t waiting = launch_outbox_waiting(&o->front_out);
    const bool wanted = o->is_holding ? waiting > o->front_limit / 2 : waiting >= o->front_limit;
    const uint32_t value = wanted;
    if (wanted == o->is_holding || !can_be_told(&o->ends[0]))
        return;
    o->is_holding = wanted;
    post(o, &o->ends[0], RT_HOLD, &value, sizeof value, NULL, 0);
}

static void flush_front(struct launch_overseer *o)
{
    if (o->front_fd < 0)
        return;
    const enum st st = launch_outbox_flush(&o->front_out, o->os, o->front_fd);
    hold(o);
    if (st == ST_AGAIN || !o->front_has_ended)
        return;
    o->hands.end_sending(o->hands.context, o->front_fd); /* not before: the front end may be slow to take what was said */
    o->front_has_ended = false;
}

/* ---- silence ---------------------------------------------------------------------------------------------------------------------------------------------- */

/* Silent at that time, up to which it was listened to, and not because it got no CPU: then it is killed, and its ranks with it. */
static bool is_silent(struct launch_overseer *o, struct end *end, uint64_t now)
{
    const uint64_t silent_ms = now > end->heard_ns ? (now - end->heard_ns) / BASE_NS_PER_MS : 0;
    struct launch_life_sample sample;
    char text[300];
    if (silent_ms < (end->o.is_remote && !end->o.is_direct ? LAUNCH_SILENCE_HOST_MS : LAUNCH_SILENCE_MS))
        return false;
    if (end->o.is_remote) {
        tell_of_agent(o, end, "its agent gave no sign of life", "");
        end->has_told = end->is_lost = true; /* so close_end kills it, and waits for no other word */
        return true;
    }
    if (!o->hands.look(o->hands.context, index_of(o, end), &sample) || (!sample.stopped && (sample.runnable || sample.blocked)))
        return false;
    snprintf(text, sizeof text, "the agent of this host (pid %d) %s and gave no sign of life for %.1f s; it was killed, and its ranks with it", (int)end->o.pid,
             sample.stopped ? "was stopped" : "is frozen", (double)silent_ms / 1000);
    tell_of(o, end, LAUNCH_WORTH_KILLED, text);
    o->hands.kill(o->hands.context, index_of(o, end));
    return true;
}

/* What started the agent has ended, and the agent is still heard: both would have ended together. */
static void notice_alone(const struct launch_overseer *o, struct end *end, uint64_t now)
{
    int status;
    if (!end->o.is_remote || !end->o.is_direct || end->is_alone)
        return;
    if (!end->alone_ns)
        end->alone_ns = has_ended(o, end, &status) ? now : 0;
    else if (end->heard_ns >= end->alone_ns + LEAD_MS * BASE_NS_PER_MS) {
        end->is_alone = true;
        LOG_WARNING("hosts", "host %s: the ssh connection to it has ended; the job goes on without it, but what is logged there is no longer shown", end->host);
    }
}

/* ---- its turns --------------------------------------------------------------------------------------------------------------------------------------------- */

static void beat(struct launch_overseer *o, uint64_t *beat_ns, uint64_t now)
{
    if (now - *beat_ns < LAUNCH_BEAT_MS * BASE_NS_PER_MS)
        return;
    *beat_ns = now;
    for (int i = 0; i < o->n_ends; i++)
        if (can_be_told(&o->ends[i]) && launch_outbox_waiting(&o->ends[i].out) == 0)
            post(o, &o->ends[i], RT_BEAT, NULL, 0, NULL, 0);
}

/* Our owner has been stopped by whoever started it (Ctrl-Z); ranks do not stop with it. */
static void pause_all(struct launch_overseer *o)
{
    const uint64_t until_ns = now_ns(o) + PAUSE_MS * BASE_NS_PER_MS;
    for (int i = 0; i < o->n_ends; i++)
        if (can_be_told(&o->ends[i]))
            post(o, &o->ends[i], RT_PAUSE, NULL, 0, NULL, 0);
    for (bool waits = true; waits && now_ns(o) < until_ns;) {
        struct pollfd p[LAUNCH_MAX_ENDS];
        waits = false;
        for (int i = 0; i < o->n_ends; i++) {
            struct end *end = &o->ends[i];
            const bool has_more = can_be_told(end) && launch_outbox_flush(&end->out, o->os, end->o.out_fd) == ST_AGAIN;
            p[i] = (struct pollfd){.fd = has_more ? end->o.out_fd : -1, .events = POLLOUT};
            waits |= has_more;
        }
        if (waits)
            (void)o->os->poll(o->os, p, (size_t)o->n_ends, until_ns > now_ns(o) ? until_ns - now_ns(o) : 0);
    }
    o->hands.stand_still(o->hands.context);
    for (int i = 0; i < o->n_ends; i++)
        if (can_be_told(&o->ends[i]))
            post(o, &o->ends[i], RT_RESUME, NULL, 0, NULL, 0);
}

/* Two entries an end, then our owner's two and the front end's two. */
static void poll_all(const struct launch_overseer *o, struct pollfd *p)
{
    for (int i = 0; i < o->n_ends; i++) {
        const struct end *end = &o->ends[i];
        p[2 * i] = (struct pollfd){.fd = end->is_over ? -1 : end->o.in_fd, .events = POLLIN};
        p[2 * i + 1] = (struct pollfd){.fd = can_be_told(end) && launch_outbox_waiting(&end->out) ? end->o.out_fd : -1, .events = POLLOUT};
    }
    struct pollfd *own = p + 2 * o->n_ends;
    own[0] = (struct pollfd){.fd = o->stop_fd, .events = POLLIN};
    own[1] = (struct pollfd){.fd = o->pause_fd, .events = POLLIN};
    own[2] = (struct pollfd){.fd = can_be_told(&o->ends[0]) && launch_outbox_waiting(&o->ends[0].out) < o->front_limit ? o->front_fd : -1, .events = POLLIN};
    own[3] = (struct pollfd){.fd = launch_outbox_waiting(&o->front_out) ? o->front_fd : -1, .events = POLLOUT};
    (void)o->os->poll(o->os, p, 2 * (size_t)o->n_ends + 4, (o->has_story ? BETTER_MS / 5 : LAUNCH_LOOK_MS) * BASE_NS_PER_MS);
}

void launch_overseer_watch(struct launch_overseer *o)
{
    uint64_t now = now_ns(o), beat_ns = 0, looked_ns = now;
    for (int i = 0; i < o->n_ends; i++)
        o->ends[i].heard_ns = now;
    while (o->n_over < o->n_ends || (o->front_fd >= 0 && launch_outbox_waiting(&o->front_out))) { /* a slow front end, or stop_fd, ends it */
        beat(o, &beat_ns, now_ns(o));
        for (int i = 0; i < o->n_ends; i++)
            if (can_be_told(&o->ends[i]))
                (void)launch_outbox_flush(&o->ends[i].out, o->os, o->ends[i].o.out_fd);
        struct pollfd p[2 * LAUNCH_MAX_ENDS + 4];
        poll_all(o, p);
        now = now_ns(o);
        if (now - looked_ns > BASE_NS_PER_S) /* it was us who were stopped: the agents may have told much meanwhile */
            for (int i = 0; i < o->n_ends; i++)
                o->ends[i].heard_ns = now;
        looked_ns = now;
        const struct pollfd *own = p + 2 * o->n_ends;
        if (own[0].revents)
            return;
        if (own[1].revents)
            pause_all(o);
        if (own[2].revents)
            relay_front(o);
        for (int i = 0; i < o->n_ends; i++) {
            struct end *end = &o->ends[i];
            if (!end->is_over && ((p[2 * i].revents && !listen_agent(o, end)) || is_silent(o, end, now)))
                give_up(o, end);
            else if (!end->is_over)
                notice_alone(o, end, now);
        }
        flush_front(o);
        if (o->has_story)
            settle(o, false);
    }
}

void launch_overseer_end(struct launch_overseer *o)
{
    for (int i = 0; i < o->n_ends; i++)
        if (can_be_told(&o->ends[i]))
            o->hands.end_sending(o->hands.context, o->ends[i].o.out_fd);
    for (int i = 0; i < o->n_ends; i++)
        if (!o->ends[i].is_over)
            give_up(o, &o->ends[i]);
    for (int i = 0; i < o->n_ends; i++)
        close_end(o, &o->ends[i]);
    if (o->front_fd >= 0) {
        (void)launch_outbox_flush(&o->front_out, o->os, o->front_fd);
        (void)o->os->close(o->os, o->front_fd);
    }
    o->front_fd = -1;
}

/* ---- for the owner ------------------------------------------------------------------------------------------------------------------------------------ */

/* PMI-1 is served here where ranks are on several hosts. */
static enum st open_pmi(struct launch_overseer *o, struct err *e)
{
    int host_of_rank[COMM_MAX_RANKS] = {0}, n_ranks = 0;
    bool has_hosts = false;
    for (int i = 0; i < o->n_ends; i++) {
        has_hosts |= o->ends[i].o.host != NULL;
        for (int k = 0; k < o->ends[i].o.n_ranks && n_ranks < COMM_MAX_RANKS; k++)
            host_of_rank[n_ranks++] = i;
    }
    return has_hosts ? launch_pmi_create(n_ranks, host_of_rank, &o->pmi, e) : ST_OK;
}

enum st launch_overseer_create(const struct launch_overseer_options *options, struct launch_overseer **out, struct err *e)
{
    struct launch_overseer *o = calloc(1, sizeof *o);
    if (!o)
        return err_set(e, ST_NO_MEMORY, "no memory to watch the agents");
    o->n_ends = options->n_ends;
    o->front_fd = options->front_fd;
    o->stop_fd = options->stop_fd;
    o->pause_fd = options->pause_fd;
    o->hands = options->hands;
    o->os = options->os ? options->os : comm_os_real();
    o->clock = options->clock ? options->clock : base_clock_real();
    o->front_limit = options->front_limit ? options->front_limit : FRONT_LIMIT;
    for (int i = 0; i < o->n_ends; i++) {
        struct end *end = &o->ends[i];
        end->o = options->ends[i];
        end->o.inbox.os = options->os;
        if (end->o.host)
            snprintf(end->host, sizeof end->host, "%s", end->o.host);
    }
    const enum st st = open_pmi(o, e);
    if (st)
        free(o);
    else
        *out = o;
    return st;
}

void launch_overseer_destroy(struct launch_overseer *o)
{
    if (!o)
        return;
    launch_pmi_destroy(o->pmi);
    launch_outbox_release(&o->front_out);
    free(o);
}
