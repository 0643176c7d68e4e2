#include "launcher/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "launcher/life.h"
#include "launcher/outbox.h"
#include "launcher/pmi.h"
#include "launcher/remote.h"
#include "runtime/protocol.h"

#define EXIT_MS 700 /* an agent that was told to go, or closed its end, and is still there is killed: at once where it is stopped */

#define LEAD_MS 300 /* ssh and what it leads to end within so much of each other */
#define KILL_MS 600 /* for a second call to a host whose agent is silent: the command shall return in time */
#define LOST_MS 50 /* for what leads to a host that is lost: nobody leaves there in peace */
#define BETTER_MS 250
#define FRONT_LIMIT (4u << 20)

struct end {
    struct launch_end o;
    char host[256];
    struct rt_inbox in;
    struct launch_outbox out;
    uint64_t heard_ns;
    bool has_told; /* its story, or that there is none */
    bool is_over;  /* its stream has ended, or it was given up */
    bool is_lost;  /* silent: to us, or on the way to another host */
    uint64_t alone_ns; /* its agent is reached without the remote, which has ended then; 0: it has not */
    bool is_alone;     /* that has been told */
};

struct launch_watch {
    struct end ends[LAUNCH_MAX_ENDS]; /* the thread's alone */
    int n_ends, n_over;
    bool has_hosts;
    struct launch_pmi *pmi; /* with several hosts */
    int front_fd;           /* −1: rank 0's agent handed it on, or it is closed */
    struct launch_outbox front_out;
    pthread_t thread;
    int told_fd, stop_fd; /* eventfds: there is a story; the thread shall end */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* its clock is CLOCK_MONOTONIC */
    bool is_over;   /* all agents were reaped */
    bool has_story, is_final; /* final: no better one is awaited */
    struct err story;
    int story_worth;
    uint64_t story_ns;
};

/* ---- Ctrl-Z ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Agents have sessions of their own: who stops the launcher does not stop the ranks, and must tell them that silence is meant. One job a process at a time. */
static atomic_int paused_fds[LAUNCH_MAX_ENDS];
static atomic_int n_paused_fds;

static void say_all(enum rt_frame_kind kind)
{
    const uint32_t frame[2] = {0, (uint32_t)kind};
    for (int i = 0; i < n_paused_fds; i++) /* a full socket: that agent has not listened for minutes */
        if (paused_fds[i] >= 0 && send(paused_fds[i], frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == ENOTSOCK)
            (void)!write(paused_fds[i], frame, sizeof frame);
}

static void on_stop_key(int signo)
{
    (void)signo;
    const int saved = errno;
    say_all(RT_PAUSE);
    raise(SIGSTOP);
    say_all(RT_RESUME);
    errno = saved;
}

static void heed_stop_key(const struct launch_watch *w)
{
    struct sigaction old;
    if (sigaction(SIGTSTP, NULL, &old) || old.sa_handler != SIG_DFL)
        return;
    for (int i = 0; i < w->n_ends; i++)
        paused_fds[i] = w->ends[i].o.out_fd;
    n_paused_fds = w->n_ends;
    struct sigaction act = {.sa_handler = on_stop_key, .sa_flags = SA_RESTART};
    sigaction(SIGTSTP, &act, NULL);
}

static void forget_stop_key(void)
{
    if (n_paused_fds == 0)
        return;
    signal(SIGTSTP, SIG_DFL);
    n_paused_fds = 0;
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------------------------------- */

/* Of several hosts, who lost a peer may speak before who knows what became of it: a poor story waits a moment for a better one. */
static void settle(struct launch_watch *w, bool is_over)
{
    pthread_mutex_lock(&w->lock);
    const bool was_final = w->is_final || w->is_over;
    w->is_over |= is_over;
    w->is_final |= w->has_story && (w->story_worth >= LAUNCH_WORTH_FAILED || w->n_ends == 1 || w->is_over || base_now_ns(base_clock_real()) - w->story_ns >= BETTER_MS * BASE_NS_PER_MS);
    const bool news = (w->is_final || w->is_over) && !was_final;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (news)
        (void)!write(w->told_fd, &(uint64_t){1}, sizeof(uint64_t));
}

static void tell(struct launch_watch *w, const struct err *story, int worth)
{
    pthread_mutex_lock(&w->lock);
    if (!w->has_story || (!w->is_final && worth > w->story_worth)) {
        w->story_ns = w->has_story ? w->story_ns : base_now_ns(base_clock_real());
        w->story = *story;
        w->story_worth = worth;
        w->has_story = true;
    }
    pthread_mutex_unlock(&w->lock);
    settle(w, false);
}

/* "host spark2: …" where there are several. */
static void tell_of(struct launch_watch *w, const struct end *end, int worth, const char *text)
{
    struct err e = {""};
    if (end->o.host)
        err_set(&e, ST_PEER_LOST, "host %s: %.480s", end->host, text);
    else
        err_set(&e, ST_PEER_LOST, "%.500s", text);
    tell(w, &e, worth);
}

/* What leads to the other host's agent has ended by itself: why? */
static void tell_of_remote(struct launch_watch *w, const struct end *end)
{
    int status;
    char words[300], text[480];
    if (end->has_told)
        return;
    bool has_ended = !end->is_alone && launch_remote_has_ended(end->o.remote, &status);
    for (int waited = 0; !has_ended && !end->is_alone && waited < LEAD_MS; waited += 10) { /* what leads there ends a moment after the stream */
        usleep(10000);
        has_ended = launch_remote_has_ended(end->o.remote, &status);
    }
    if (has_ended && status == 0)
        return;
    if (!has_ended) {
        tell_of(w, end, LAUNCH_WORTH_KILLED, "its agent is gone without a word");
        return;
    }
    launch_remote_last_words(end->o.remote, words, sizeof words);
    snprintf(text, sizeof text, "the connection to its agent ended (%s %d)%s%s", WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), words[0] ? ": " : "",
             words);
    tell_of(w, end, LAUNCH_WORTH_KILLED, text);
}

/* By a second call. */
static void kill_remote(const struct end *end)
{
    bool was_there;
    const struct launch_remote_options o = {.host = launch_remote_target(end->o.remote), .ssh = end->o.ssh, .connect_ms = KILL_MS};
    (void)launch_remote_kill(&o, launch_remote_agent_pid(end->o.remote), launch_remote_nonce(end->o.remote), &was_there, NULL);
}

/* The agent's end of the stream is closed, or it shall go: reaps the child, by force where it takes too long. */
static void reap(struct launch_watch *w, struct end *end, uint64_t wait_ms)
{
    int status = 0;
    for (uint64_t waited = 0; waitpid(end->o.pid, &status, WNOHANG) == 0; waited += 5) {
        struct launch_life_sample sample;
        if (waited >= wait_ms || (launch_life_read(end->o.pid, &sample) && sample.stopped))
            kill(end->o.pid, SIGKILL);
        usleep(5000);
    }
    char text[200] = "";
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "the agent of this host (pid %d) was killed by signal %d (%s) and took its ranks with it", (int)end->o.pid, WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        snprintf(text, sizeof text, "the agent of this host (pid %d) left with status %d", (int)end->o.pid, WEXITSTATUS(status));
    if (text[0] && !end->has_told)
        tell_of(w, end, LAUNCH_WORTH_KILLED, text);
}

static bool is_heard(const struct end *end) { return base_now_ns(base_clock_real()) - end->heard_ns < 2 * LAUNCH_BEAT_MS * BASE_NS_PER_MS; }

static void close_end(struct launch_watch *w, struct end *end, uint64_t wait_ms)
{
    paused_fds[end - w->ends] = -1; /* its number may soon be somebody else's */
    if (end->o.remote) {
        tell_of_remote(w, end);
        const bool is_gone = end->is_lost && !is_heard(end);
        if (is_gone) /* it may be stopped, or out of reach */
            kill_remote(end);
        launch_remote_stop(end->o.remote, is_gone ? LOST_MS : (int)wait_ms);
    } else
        reap(w, end, wait_ms);
    if (!end->o.remote || end->o.is_direct) {
        close(end->o.in_fd);
        if (end->o.out_fd != end->o.in_fd)
            close(end->o.out_fd);
    }
    rt_inbox_release(&end->in);
    launch_outbox_release(&end->out);
}

static void say_pending(struct launch_watch *w)
{
    for (int i = 0; i < w->n_ends; i++)
        for (int r = w->ends[i].o.first_rank; r < w->ends[i].o.first_rank + w->ends[i].o.n_ranks; r++) {
            const void *bytes;
            const size_t n = launch_pmi_pending(w->pmi, r, &bytes);
            const uint32_t rank = (uint32_t)r;
            if (n)
                (void)launch_outbox_frame(&w->ends[i].out, RT_PMI, &rank, sizeof rank, bytes, n, NULL);
            launch_pmi_sent(w->pmi, r, n);
        }
}

static void take_pmi(struct launch_watch *w, struct end *end, const void *payload, size_t bytes)
{
    uint32_t rank;
    struct err e = {""};
    if (bytes < sizeof rank)
        return;
    memcpy(&rank, payload, sizeof rank);
    if ((int)rank < end->o.first_rank || (int)rank >= end->o.first_rank + end->o.n_ranks)
        return;
    if (bytes == sizeof rank)
        launch_pmi_hang_up(w->pmi, (int)rank);
    else if (launch_pmi_feed(w->pmi, (int)rank, (const char *)payload + sizeof rank, bytes - sizeof rank, &e))
        LOG_WARNING("watch", "PMI of rank %u: %s", rank, e.text);
    say_pending(w);
}

/* Another host's agent has not heard it for too long. Where we still do, that is worth a word. */
static void take_lost(struct launch_watch *w, const void *payload, size_t bytes)
{
    char told[400], text[480];
    uint32_t host;
    if (!rt_frame_told(payload, bytes, &host, told, sizeof told) || host >= (uint32_t)w->n_ends)
        return;
    struct end *lost = &w->ends[host];
    const bool answers = is_heard(lost) && !lost->is_over && !strstr(told, "firewall");
    snprintf(text, sizeof text, "%s%s", told, answers ? "; its agent still answers: is it the cable, or a firewall?" : "");
    lost->has_told = lost->is_lost = true;
    tell_of(w, lost, LAUNCH_WORTH_KILLED, text);
}

static void take_frame(struct launch_watch *w, struct end *end, enum rt_frame_kind kind, const void *payload, size_t bytes)
{
    char text[480];
    uint32_t worth;
    if (kind == RT_STORY && rt_frame_told(payload, bytes, &worth, text, sizeof text)) {
        end->has_told = true;
        tell_of(w, end, worth > LAUNCH_WORTH_KILLED ? LAUNCH_WORTH_KILLED : (int)worth, text);
    } else if (kind == RT_PMI && w->pmi)
        take_pmi(w, end, payload, bytes);
    else if (kind == RT_FRONT && w->front_fd >= 0 && end->o.first_rank == 0) {
        if (bytes)
            (void)launch_outbox_append(&w->front_out, payload, bytes, NULL);
        else if (launch_outbox_flush(&w->front_out, w->front_fd) != ST_AGAIN)
            shutdown(w->front_fd, SHUT_WR);
    } else if (kind == RT_LOST)
        take_lost(w, payload, bytes);
    else if (kind == RT_LEFT)
        end->has_told = true;
    else if (kind == RT_NOTE)
        LOG_WARNING("hosts", "%.*s", (int)(bytes > 400 ? 400 : bytes), (const char *)payload);
}

/* Frames of the agent. False: its end is closed. */
static bool listen_agent(struct launch_watch *w, struct end *end)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        const enum st st = rt_inbox_next(&end->in, 0, &kind, &payload, &bytes, NULL);
        if (st)
            return st == ST_AGAIN;
        end->heard_ns = base_now_ns(base_clock_real());
        take_frame(w, end, kind, payload, bytes);
    }
}

/* Silent, and not because it got no CPU: then it is killed, and its ranks with it. */
static bool is_silent(struct launch_watch *w, struct end *end)
{
    const uint64_t silent_ms = (base_now_ns(base_clock_real()) - end->heard_ns) / BASE_NS_PER_MS;
    struct launch_life_sample sample;
    char text[300];
    if (silent_ms < (end->o.remote && !end->o.is_direct ? LAUNCH_SILENCE_HOST_MS : LAUNCH_SILENCE_MS) || launch_outbox_waiting(&w->front_out) >= FRONT_LIMIT)
        return false;
    if (end->o.remote) {
        snprintf(text, sizeof text, "its agent gave no sign of life for %.1f s", (double)silent_ms / 1000);
        tell_of(w, end, LAUNCH_WORTH_KILLED, text);
        end->is_lost = true; /* so close_end kills it */
        return true;
    }
    if (!launch_life_read(end->o.pid, &sample) || (!sample.stopped && (sample.runnable || sample.blocked)))
        return false;
    snprintf(text, sizeof text, "the agent of this host (pid %d) %s and gave no sign of life for %.1f s; it was killed, and its ranks with it", (int)end->o.pid,
             sample.stopped ? "was stopped" : "is frozen", (double)silent_ms / 1000);
    tell_of(w, end, LAUNCH_WORTH_KILLED, text);
    kill(end->o.pid, SIGKILL);
    return true;
}

/* What started the agent has ended, and the agent is still heard: both would have ended together. */
static void notice_alone(struct end *end, uint64_t now)
{
    int status;
    if (!end->o.is_direct || end->is_alone)
        return;
    if (!end->alone_ns)
        end->alone_ns = launch_remote_has_ended(end->o.remote, &status) ? now : 0;
    else if (end->heard_ns >= end->alone_ns + LEAD_MS * BASE_NS_PER_MS) {
        end->is_alone = true;
        LOG_WARNING("hosts", "host %s: the ssh connection to it has ended; the job goes on without it, but what is logged there is no longer shown", end->host);
    }
}

static void relay_front(struct launch_watch *w)
{
    static unsigned char bytes[65536];
    const ssize_t n = recv(w->front_fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    (void)launch_outbox_frame(&w->ends[0].out, RT_FRONT, NULL, 0, bytes, n > 0 ? (size_t)n : 0, NULL);
    if (n <= 0) {
        close(w->front_fd);
        w->front_fd = -1;
    }
}

static void give_up(struct launch_watch *w, struct end *end, uint64_t wait_ms)
{
    if (end->is_over)
        return;
    end->is_over = true;
    w->n_over++;
    close_end(w, end, wait_ms);
    if (w->n_over == w->n_ends)
        settle(w, true);
}

/* The agents see the end, all at once, and leave. */
static void stop_all(struct launch_watch *w)
{
    for (int i = 0; i < w->n_ends; i++)
        if (!w->ends[i].is_over && shutdown(w->ends[i].o.out_fd, SHUT_WR) && w->ends[i].o.out_fd != w->ends[i].o.in_fd) {
            const int null = open("/dev/null", O_WRONLY | O_CLOEXEC); /* a pipe: its end is seen once nobody holds it */
            dup3(null, w->ends[i].o.out_fd, O_CLOEXEC);
            close(null);
        }
    for (int i = 0; i < w->n_ends; i++)
        give_up(w, &w->ends[i], EXIT_MS);
}

static void beat(struct launch_watch *w, uint64_t *beat_ns, uint64_t now)
{
    if (now - *beat_ns < LAUNCH_BEAT_MS * BASE_NS_PER_MS)
        return;
    *beat_ns = now;
    for (int i = 0; i < w->n_ends; i++)
        if (!w->ends[i].is_over && launch_outbox_waiting(&w->ends[i].out) == 0)
            (void)launch_outbox_frame(&w->ends[i].out, RT_BEAT, NULL, 0, NULL, 0, NULL);
}

/* Two entries an end, then the front end's two and our owner's. */
static void poll_all(const struct launch_watch *w, struct pollfd *p)
{
    const bool full = launch_outbox_waiting(&w->front_out) >= FRONT_LIMIT;
    for (int i = 0; i < w->n_ends; i++) {
        const struct end *end = &w->ends[i];
        p[2 * i] = (struct pollfd){.fd = end->is_over || (full && i == 0) ? -1 : end->o.in_fd, .events = POLLIN};
        p[2 * i + 1] = (struct pollfd){.fd = !end->is_over && launch_outbox_waiting(&end->out) ? end->o.out_fd : -1, .events = POLLOUT};
    }
    struct pollfd *own = p + 2 * w->n_ends;
    own[0] = (struct pollfd){.fd = w->stop_fd, .events = POLLIN};
    own[1] = (struct pollfd){.fd = launch_outbox_waiting(&w->ends[0].out) < FRONT_LIMIT ? w->front_fd : -1, .events = POLLIN};
    own[2] = (struct pollfd){.fd = launch_outbox_waiting(&w->front_out) ? w->front_fd : -1, .events = POLLOUT};
    (void)poll(p, 2 * (nfds_t)w->n_ends + 3, w->has_story ? BETTER_MS / 5 : LAUNCH_LOOK_MS);
}

static void *run(void *arg)
{
    struct launch_watch *w = arg;
    uint64_t now = base_now_ns(base_clock_real()), beat_ns = 0, looked_ns = now;
    for (int i = 0; i < w->n_ends; i++)
        w->ends[i].heard_ns = now;
    while (w->n_over < w->n_ends) {
        now = base_now_ns(base_clock_real());
        if (now - looked_ns > BASE_NS_PER_S) /* it was us who were stopped: the agents may have told much meanwhile */
            for (int i = 0; i < w->n_ends; i++)
                w->ends[i].heard_ns = now;
        looked_ns = now;
        beat(w, &beat_ns, now);
        for (int i = 0; i < w->n_ends; i++)
            if (!w->ends[i].is_over)
                (void)launch_outbox_flush(&w->ends[i].out, w->ends[i].o.out_fd);
        struct pollfd p[2 * LAUNCH_MAX_ENDS + 3];
        poll_all(w, p);
        const struct pollfd *own = p + 2 * w->n_ends;
        if (own[0].revents)
            break;
        if (own[1].revents)
            relay_front(w);
        for (int i = 0; i < w->n_ends; i++) {
            struct end *end = &w->ends[i];
            if (!end->is_over && ((p[2 * i].revents && !listen_agent(w, end)) || is_silent(w, end)))
                give_up(w, end, EXIT_MS);
            else if (!end->is_over)
                notice_alone(end, now);
        }
        if (w->front_fd >= 0)
            (void)launch_outbox_flush(&w->front_out, w->front_fd);
        if (w->has_story)
            settle(w, false);
    }
    forget_stop_key();
    stop_all(w);
    if (w->front_fd >= 0) {
        (void)launch_outbox_flush(&w->front_out, w->front_fd);
        close(w->front_fd);
    }
    return NULL;
}

/* ---- for the owner ------------------------------------------------------------------------------------------------------------------------------------ */

void launch_end_close(const struct launch_end *end, int wait_ms)
{
    if (!end->remote || end->is_direct) {
        close(end->in_fd);
        if (end->out_fd != end->in_fd)
            close(end->out_fd);
    }
    launch_remote_stop(end->remote, wait_ms);
    for (int waited = 0; end->pid > 0 && waitpid(end->pid, NULL, WNOHANG) == 0; waited += 5) {
        if (waited >= wait_ms)
            kill(end->pid, SIGKILL);
        usleep(5000);
    }
}

static void release(struct launch_watch *w)
{
    launch_pmi_destroy(w->pmi);
    launch_outbox_release(&w->front_out);
    if (w->told_fd >= 0)
        close(w->told_fd);
    if (w->stop_fd >= 0)
        close(w->stop_fd);
    free(w);
}

/* PMI-1 is served here where ranks are on several hosts. */
static enum st open_pmi(struct launch_watch *w, struct err *e)
{
    int host_of_rank[COMM_MAX_RANKS] = {0}, n_ranks = 0;
    for (int i = 0; i < w->n_ends; i++)
        for (int k = 0; k < w->ends[i].o.n_ranks && n_ranks < COMM_MAX_RANKS; k++)
            host_of_rank[n_ranks++] = i;
    return w->has_hosts ? launch_pmi_create(n_ranks, host_of_rank, &w->pmi, e) : ST_OK;
}

enum st launch_watch_start(const struct launch_watch_options *options, struct launch_watch **out, struct err *e)
{
    struct launch_watch *w = calloc(1, sizeof *w);
    enum st st = w ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory to watch the agents");
    if (w) {
        w->n_ends = options->n_ends;
        w->front_fd = options->front_fd;
        w->told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        w->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        for (int i = 0; i < w->n_ends; i++) {
            struct end *end = &w->ends[i];
            end->o = options->ends[i];
            w->has_hosts |= end->o.host != NULL;
            if (end->o.host)
                snprintf(end->host, sizeof end->host, "%s", end->o.host);
            rt_inbox_init(&end->in, end->o.in_fd);
            if (end->o.inbox)
                end->in = *end->o.inbox;
        }
        if (w->told_fd < 0 || w->stop_fd < 0)
            st = err_set(e, ST_IO, "cannot watch the agents: %s", strerror(errno));
    }
    for (int i = 0; i < options->n_ends; i++)
        free(options->ends[i].inbox); /* its buffer lives on in ours */
    if (!st)
        st = open_pmi(w, e);
    if (!st) {
        pthread_mutex_init(&w->lock, NULL);
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&w->changed, &attr);
        pthread_condattr_destroy(&attr);
        heed_stop_key(w);
        const int error = pthread_create(&w->thread, NULL, run, w);
        if (!error) {
            *out = w;
            return ST_OK;
        }
        forget_stop_key();
        pthread_cond_destroy(&w->changed);
        pthread_mutex_destroy(&w->lock);
        st = err_set(e, ST_NO_MEMORY, "cannot watch the agents: %s", strerror(error));
    }
    for (int i = 0; i < options->n_ends; i++)
        launch_end_close(&options->ends[i], 0);
    if (options->front_fd >= 0)
        close(options->front_fd);
    if (w)
        release(w);
    return st;
}

int launch_watch_fd(const struct launch_watch *w) { return w->told_fd; }

enum st launch_watch_story(struct launch_watch *w, int timeout_ms, struct err *e)
{
    const uint64_t until = base_now_ns(base_clock_real()) + (uint64_t)timeout_ms * BASE_NS_PER_MS;
    const struct timespec limit = {.tv_sec = (time_t)(until / BASE_NS_PER_S), .tv_nsec = (long)(until % BASE_NS_PER_S)};
    pthread_mutex_lock(&w->lock);
    while (!w->is_final && !w->is_over && timeout_ms > 0 && pthread_cond_timedwait(&w->changed, &w->lock, &limit) != ETIMEDOUT)
        ;
    enum st st = w->is_over ? ST_OK : ST_AGAIN;
    if (w->has_story && (w->is_final || w->is_over))
        st = err_set(e, ST_PEER_LOST, "%s", w->story.text);
    pthread_mutex_unlock(&w->lock);
    return st;
}

void launch_watch_stop(struct launch_watch *w)
{
    if (!w)
        return;
    (void)!write(w->stop_fd, &(uint64_t){1}, sizeof(uint64_t));
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    release(w);
}
