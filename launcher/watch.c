#include "launcher/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "launcher/life.h"
#include "launcher/second_call.h"

struct launch_watch {
    struct launch_end ends[LAUNCH_MAX_ENDS];
    int n_ends;
    struct launch_overseer *overseer; /* the thread's alone */
    pthread_t thread;
    int told_fd, stop_fd, pause_fd; /* eventfds: there is a story; the thread shall end; it shall stop us all */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* its clock is CLOCK_MONOTONIC */
    bool is_over;           /* all agents are gone */
    bool has_story;
    struct err story;
};

/* ---- Ctrl-Z ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Agents have sessions of their own: who stops the launcher does not stop the ranks, and must tell them that silence is meant. The thread that talks to them does; the handler only wakes it.
 * One job a process at a time. (SIGTTOU stops without a word: who writes would be held up in the handler, that thread among them.) */
static const int stop_signals[] = {SIGTSTP, SIGTTIN}; /* Ctrl-Z; reading the terminal in the background */
enum { N_STOP_SIGNALS = sizeof stop_signals / sizeof *stop_signals };
static atomic_int pause_fd = -1; /* an eventfd */
static atomic_int stopped_by;
static bool is_heeded[N_STOP_SIGNALS];

static void on_stop(int signo)
{
    const int saved = errno;
    stopped_by = signo;
    (void)!write(pause_fd, &(uint64_t){1}, sizeof(uint64_t));
    errno = saved;
}

static void catch_stops(void)
{
    const struct sigaction act = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
    for (int i = 0; i < N_STOP_SIGNALS; i++)
        if (is_heeded[i])
            sigaction(stop_signals[i], &act, NULL);
}

static void let_stops(void)
{
    for (int i = 0; i < N_STOP_SIGNALS; i++)
        if (is_heeded[i])
            signal(stop_signals[i], SIG_DFL);
}

static void heed_stops(const struct launch_watch *w)
{
    for (int i = 0; i < N_STOP_SIGNALS; i++) {
        struct sigaction old;
        is_heeded[i] = sigaction(stop_signals[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL;
    }
    pause_fd = w->pause_fd;
    catch_stops();
}

static void forget_stops(void)
{
    let_stops();
    memset(is_heeded, 0, sizeof is_heeded);
    pause_fd = -1;
}

/* By the signal that came, and not by SIGSTOP: where there is nobody who could continue us (`ssh -t HOST tandem …`), the kernel does not stop us either. */
static void stand_still(void *context)
{
    const struct launch_watch *w = context;
    uint64_t n;
    /* It waits for this thread until all of its kind do their default: else another one could come in between, and stop us once more when we go on. */
    sigset_t stops, before;
    sigemptyset(&stops);
    for (int i = 0; i < N_STOP_SIGNALS; i++)
        sigaddset(&stops, stop_signals[i]);
    pthread_sigmask(SIG_BLOCK, &stops, &before);
    raise(stopped_by);
    let_stops();
    pthread_sigmask(SIG_SETMASK, &before, NULL); /* here all of us stop, before this thread says anything else */
    (void)!read(w->pause_fd, &n, sizeof n);       /* who reads the terminal in the background may have asked many times */
    catch_stops();
}

/* ---- what the overseer asks for ------------------------------------------------------------------------------------------------------------------------ */

static bool has_ended(void *context, int i, int *status)
{
    const struct launch_end *end = &((const struct launch_watch *)context)->ends[i];
    return end->remote ? launch_remote_has_ended(end->remote, status) : waitpid(end->pid, status, WNOHANG) != 0;
}

static bool look(void *context, int i, struct launch_life_sample *sample)
{
    return launch_life_read(((const struct launch_watch *)context)->ends[i].pid, sample);
}

static void kill_agent(void *context, int i)
{
    const struct launch_end *end = &((const struct launch_watch *)context)->ends[i];
    if (!end->remote) {
        kill(end->pid, SIGKILL);
        return;
    }
    const struct launch_remote_options o = {.host = launch_remote_target(end->remote), .ssh = end->ssh};
    const enum st st = launch_second_call(&o, launch_remote_agent_pid(end->remote), launch_remote_nonce(end->remote), LAUNCH_KILL_MS);
    if (st == ST_IO)
        LOG_WARNING("watch", "host %s: the call that shall kill its agent could not be started", end->host);
    else if (st == ST_AGAIN)
        LOG_INFORM("watch", "host %s: the call that shall kill its agent goes on for some seconds", end->host);
}

static void last_words(void *context, int i, char *text, size_t bytes)
{
    launch_remote_last_words(((const struct launch_watch *)context)->ends[i].remote, text, bytes);
}

static void let_go(void *context, int i, int grace_ms) { launch_remote_stop(((const struct launch_watch *)context)->ends[i].remote, grace_ms); }

static void end_sending(void *context, int fd)
{
    (void)context;
    if (shutdown(fd, SHUT_WR) == 0 || errno != ENOTSOCK)
        return;
    const int null = open("/dev/null", O_WRONLY | O_CLOEXEC); /* a pipe: its end is seen once nobody holds it */
    dup3(null, fd, O_CLOEXEC);
    close(null);
}

static void sleep_for(void *context, uint64_t ns)
{
    (void)context;
    usleep((useconds_t)(ns / BASE_NS_PER_US));
}

static void settled(void *context, const struct err *story, bool is_over)
{
    struct launch_watch *w = context;
    pthread_mutex_lock(&w->lock);
    if (story)
        w->story = *story;
    w->has_story |= story != NULL;
    w->is_over |= is_over;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    (void)!write(w->told_fd, &(uint64_t){1}, sizeof(uint64_t));
}

static void *run(void *arg)
{
    struct launch_watch *w = arg;
    launch_overseer_watch(w->overseer);
    forget_stops();
    launch_overseer_end(w->overseer);
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
    launch_overseer_destroy(w->overseer);
    if (w->told_fd >= 0)
        close(w->told_fd);
    if (w->stop_fd >= 0)
        close(w->stop_fd);
    if (w->pause_fd >= 0)
        close(w->pause_fd);
    free(w);
}

static enum st create_overseer(struct launch_watch *w, const struct launch_watch_options *options, struct err *e)
{
    struct launch_overseer_end ends[LAUNCH_MAX_ENDS];
    for (int i = 0; i < w->n_ends; i++) {
        const struct launch_end *end = &w->ends[i];
        ends[i] = (struct launch_overseer_end){.host = end->host,
                                               .in_fd = end->in_fd,
                                               .out_fd = end->out_fd,
                                               .is_remote = end->remote != NULL,
                                               .is_direct = end->is_direct,
                                               .pid = end->pid,
                                               .first_rank = end->first_rank,
                                               .n_ranks = end->n_ranks};
        rt_inbox_init(&ends[i].inbox, end->in_fd);
        if (end->inbox)
            ends[i].inbox = *end->inbox;
    }
    const struct launch_overseer_options o = {
        .ends = ends,
        .n_ends = w->n_ends,
        .front_fd = options->front_fd,
        .stop_fd = w->stop_fd,
        .pause_fd = w->pause_fd,
        .hands = {w, has_ended, look, kill_agent, last_words, let_go, end_sending, sleep_for, stand_still, settled},
    };
    return launch_overseer_create(&o, &w->overseer, e);
}

enum st launch_watch_start(const struct launch_watch_options *options, struct launch_watch **out, struct err *e)
{
    struct launch_watch *w = calloc(1, sizeof *w);
    enum st st = w ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory to watch the agents");
    if (w) {
        w->n_ends = options->n_ends;
        w->told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        w->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        w->pause_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        for (int i = 0; i < w->n_ends; i++)
            w->ends[i] = options->ends[i];
        st = w->told_fd < 0 || w->stop_fd < 0 || w->pause_fd < 0 ? err_set(e, ST_IO, "cannot watch the agents: %s", strerror(errno)) : create_overseer(w, options, e);
    }
    for (int i = 0; i < options->n_ends; i++)
        free(options->ends[i].inbox); /* its buffer lives on in the overseer's */
    if (!st) {
        pthread_mutex_init(&w->lock, NULL);
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&w->changed, &attr);
        pthread_condattr_destroy(&attr);
        heed_stops(w);
        const int error = pthread_create(&w->thread, NULL, run, w);
        if (!error) {
            *out = w;
            return ST_OK;
        }
        forget_stops();
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
    release(w);
}
