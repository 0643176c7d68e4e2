#include "launcher/watch.h"

#include <errno.h>
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
#include "launcher/life.h"
#include "runtime/protocol.h"

#define EXIT_MS 700 /* an agent that was told to go, or closed its end, and is still there is killed: at once where it is stopped */

struct launch_watch {
    int fd; /* control socket; the thread's alone */
    pid_t agent;
    pthread_t thread;
    int told_fd, stop_fd; /* eventfds: there is a story; the thread shall end */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* its clock is CLOCK_MONOTONIC */
    bool is_over;   /* the agent was reaped */
    bool has_story;
    struct err story;
};

/* ---- Ctrl-Z ---------------------------------------------------------------------------------------------------------------------------------------- */

/* The agent has a session of its own: who stops the launcher does not stop the ranks, and must tell them that silence is meant. One job a process at a time. */
static atomic_int paused_fd = -1;

static void say(int fd, enum rt_frame_kind kind)
{
    const uint32_t frame[2] = {0, (uint32_t)kind};
    (void)!send(fd, frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL); /* a full socket: the agent has not listened for minutes */
}

static void on_stop_key(int signo)
{
    (void)signo;
    const int saved = errno;
    say(paused_fd, RT_PAUSE);
    raise(SIGSTOP);
    say(paused_fd, RT_RESUME);
    errno = saved;
}

static void heed_stop_key(int fd)
{
    struct sigaction old;
    if (sigaction(SIGTSTP, NULL, &old) || old.sa_handler != SIG_DFL)
        return;
    paused_fd = fd;
    struct sigaction act = {.sa_handler = on_stop_key, .sa_flags = SA_RESTART};
    sigaction(SIGTSTP, &act, NULL);
}

static void forget_stop_key(int fd)
{
    if (paused_fd != fd)
        return;
    signal(SIGTSTP, SIG_DFL);
    paused_fd = -1;
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------------------------------- */

static void tell(struct launch_watch *w, const struct err *story, bool is_over)
{
    pthread_mutex_lock(&w->lock);
    if (story && !w->has_story) {
        w->story = *story;
        w->has_story = true;
    }
    w->is_over |= is_over;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    (void)!write(w->told_fd, &(uint64_t){1}, sizeof(uint64_t));
}

/* The agent's end of the socket is closed, or it shall go: reaps it, by force where it takes too long. */
static void reap(struct launch_watch *w, uint64_t wait_ms)
{
    int status = 0;
    for (uint64_t waited = 0; waitpid(w->agent, &status, WNOHANG) == 0; waited += 5) {
        struct launch_life_sample sample;
        if (waited >= wait_ms || (launch_life_read(w->agent, &sample) && sample.stopped))
            kill(w->agent, SIGKILL);
        usleep(5000);
    }
    struct err e = {""};
    if (WIFSIGNALED(status))
        err_set(&e, ST_PEER_LOST, "the agent of this host (pid %d) was killed by signal %d (%s) and took its ranks with it", (int)w->agent, WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status))
        err_set(&e, ST_PEER_LOST, "the agent of this host (pid %d) left with status %d", (int)w->agent, WEXITSTATUS(status));
    tell(w, e.text[0] ? &e : NULL, true);
}

/* Frames of the agent. False: its end is closed. */
static bool listen_agent(struct launch_watch *w, struct rt_inbox *in, uint64_t *heard_ns)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        const enum st st = rt_inbox_next(in, 0, &kind, &payload, &bytes, NULL);
        if (st)
            return st == ST_AGAIN;
        *heard_ns = base_now_ns(base_clock_real());
        if (kind != RT_FAILED)
            continue;
        struct err e = {""};
        err_set(&e, ST_PEER_LOST, "%.*s", (int)(bytes > 480 ? 480 : bytes), (const char *)payload);
        tell(w, &e, false);
    }
}

/* Silent, and not because it got no CPU: then it is killed, and its ranks with it. */
static bool is_silent(struct launch_watch *w, uint64_t heard_ns)
{
    const uint64_t silent_ms = (base_now_ns(base_clock_real()) - heard_ns) / BASE_NS_PER_MS;
    struct launch_life_sample sample;
    if (silent_ms < LAUNCH_SILENCE_MS || !launch_life_read(w->agent, &sample) || (!sample.stopped && (sample.runnable || sample.blocked)))
        return false;
    struct err e = {""};
    err_set(&e, ST_PEER_LOST, "the agent of this host (pid %d) %s and gave no sign of life for %.1f s; it was killed, and its ranks with it", (int)w->agent,
            sample.stopped ? "was stopped" : "is frozen", (double)silent_ms / 1000);
    tell(w, &e, false);
    kill(w->agent, SIGKILL);
    return true;
}

static void *run(void *arg)
{
    struct launch_watch *w = arg;
    struct rt_inbox in;
    rt_inbox_init(&in, w->fd);
    uint64_t heard_ns = base_now_ns(base_clock_real()), beat_ns = 0, looked_ns = heard_ns;
    for (;;) {
        uint64_t now = base_now_ns(base_clock_real());
        if (now - looked_ns > BASE_NS_PER_S) /* it was us who were stopped: the agent may have told much meanwhile */
            heard_ns = now;
        looked_ns = now;
        if (now - beat_ns >= LAUNCH_BEAT_MS * BASE_NS_PER_MS) {
            say(w->fd, RT_BEAT);
            beat_ns = now;
        }
        struct pollfd p[2] = {{.fd = w->fd, .events = POLLIN}, {.fd = w->stop_fd, .events = POLLIN}};
        (void)poll(p, 2, LAUNCH_LOOK_MS);
        if (p[1].revents) {
            shutdown(w->fd, SHUT_WR); /* the agent sees the end and leaves */
            break;
        }
        if (p[0].revents && !listen_agent(w, &in, &heard_ns))
            break;
        if (is_silent(w, heard_ns))
            break;
    }
    forget_stop_key(w->fd);
    reap(w, EXIT_MS);
    rt_inbox_release(&in);
    close(w->fd);
    return NULL;
}

/* ---- for the owner ------------------------------------------------------------------------------------------------------------------------------------ */

enum st launch_watch_start(int control_fd, pid_t agent, struct launch_watch **out, struct err *e)
{
    struct launch_watch *w = calloc(1, sizeof *w);
    int error = ENOMEM;
    if (!w)
        goto undo_agent;
    *w = (struct launch_watch){.fd = control_fd, .agent = agent, .told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    error = errno;
    if (w->told_fd < 0 || w->stop_fd < 0)
        goto undo_fds;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    heed_stop_key(control_fd);
    error = pthread_create(&w->thread, NULL, run, w);
    if (!error) {
        *out = w;
        return ST_OK;
    }
    forget_stop_key(control_fd);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
undo_fds:
    if (w->told_fd >= 0)
        close(w->told_fd);
    if (w->stop_fd >= 0)
        close(w->stop_fd);
    free(w);
undo_agent:
    kill(agent, SIGKILL);
    waitpid(agent, NULL, 0);
    close(control_fd);
    return err_set(e, ST_NO_MEMORY, "cannot watch the agent: %s", strerror(error));
}

int launch_watch_fd(const struct launch_watch *w) { return w->told_fd; }

enum st launch_watch_story(struct launch_watch *w, int timeout_ms, struct err *e)
{
    const uint64_t until = base_now_ns(base_clock_real()) + (uint64_t)timeout_ms * BASE_NS_PER_MS;
    const struct timespec limit = {.tv_sec = (time_t)(until / BASE_NS_PER_S), .tv_nsec = (long)(until % BASE_NS_PER_S)};
    pthread_mutex_lock(&w->lock);
    while (!w->has_story && !w->is_over && timeout_ms > 0 && pthread_cond_timedwait(&w->changed, &w->lock, &limit) != ETIMEDOUT)
        ;
    enum st st = w->is_over ? ST_OK : ST_AGAIN;
    if (w->has_story)
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
    close(w->told_fd);
    close(w->stop_fd);
    free(w);
}
