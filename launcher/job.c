#include "launcher/job.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "launcher/agent.h"
#include "launcher/foreign.h"
#include "launcher/interrupt.h"
#include "launcher/watch.h"
#include "runtime/rank.h"

#define STORY_WAIT_MS 1000 /* how long the agent may take to say why a stream ended */
#define CANCEL_MS 500      /* an interrupted job that takes longer to stop in peace is killed */

struct launch_job {
    const struct launch_setup *setup;
    struct rt_inbox front;
    struct rt_ready ready;
    struct launch_ledger *ledger;
    struct launch_expert_stats *expert_stats;
    /* one rank: a thread */
    bool has_thread;
    pthread_t thread;
    struct rt_rank_options rank;
    enum st rank_st;
    struct err rank_err;
    struct launch_watch *watch; /* more: an agent, and who watches it; else NULL */
};

const struct rt_ready *launch_job_ready(const struct launch_job *job) { return &job->ready; }

void launch_job_collect(struct launch_job *job, struct launch_ledger *ledger) { job->ledger = ledger; }
void launch_job_collect_experts(struct launch_job *job, struct launch_expert_stats *stats) { job->expert_stats = stats; }

/* ---- starting ------------------------------------------------------------------------------------------------------------------------------------------ */

static void *rank_thread(void *arg)
{
    struct launch_job *job = arg;
    job->rank_st = rt_rank_run(&job->rank, &job->rank_err);
    shutdown(job->rank.front_fd, SHUT_WR); /* the front end sees the end, after all frames */
    return NULL;
}

static enum st start_thread(struct launch_job *job, int rank_fd, struct err *e)
{
    const struct launch_setup *s = job->setup;
    job->rank = (struct rt_rank_options){.model = s->model, .n_ranks = 1, .settings = s->settings, .front_fd = rank_fd, .memory_fd = -1};
    if (s->placement->bound)
        job->rank.settings.os_cpus = s->placement->seats[0].pus;
    if (launch_foreign()) {
        launch_foreign_options(s, &job->rank);
        job->rank.front_fd = rank_fd;
    }
    const int error = pthread_create(&job->thread, NULL, rank_thread, job);
    if (error) {
        close(rank_fd);
        return err_set(e, ST_NO_MEMORY, "cannot start a thread: %s", strerror(error));
    }
    job->has_thread = true;
    return ST_OK;
}

static enum st start_agent(struct launch_job *job, int rank_fd, struct err *e)
{
    int control[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control))
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    pid_t agent;
    const enum st st = launch_agent_spawn(job->setup, control[1], rank_fd, &agent, e);
    close(control[1]);
    close(rank_fd);
    if (!st) {
        const struct launch_end end = {.in_fd = control[0], .out_fd = control[0], .pid = agent, .n_ranks = job->setup->n_ranks};
        const struct launch_watch_options watch = {.ends = &end, .n_ends = 1, .front_fd = -1};
        return launch_watch_start(&watch, &job->watch, e);
    }
    close(control[0]);
    return st;
}

static enum st wait_ready(struct launch_job *job, struct err *e)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        const enum st st = launch_job_next(job, -1, &kind, &payload, &bytes, e);
        if (st == ST_AGAIN)
            continue;
        if (st)
            return st;
        if (kind != RT_READY || bytes != sizeof job->ready)
            return err_set(e, ST_INVALID, "rank 0 began with a frame of kind %d", (int)kind);
        memcpy(&job->ready, payload, sizeof job->ready);
        return ST_OK;
    }
}

static enum st start_hosts(struct launch_job *job, int rank_fd, struct err *e)
{
    struct launch_hosts *hosts = job->setup->hosts;
    enum st st = hosts->is_open ? ST_OK : launch_hosts_open(hosts, e);
    if (!st)
        st = launch_hosts_start(hosts, job->setup, e);
    if (st) {
        close(rank_fd);
        return st;
    }
    struct launch_end ends[LAUNCH_MAX_ENDS];
    for (int i = 0; i < hosts->n; i++) {
        ends[i] = hosts->h[i].end;
        hosts->h[i].end = (struct launch_end){.in_fd = -1, .out_fd = -1}; /* the watch's now */
    }
    hosts->is_open = false;
    const struct launch_watch_options watch = {.ends = ends, .n_ends = hosts->n, .front_fd = rank_fd};
    return launch_watch_start(&watch, &job->watch, e);
}

enum st launch_job_start(const struct launch_setup *setup, struct launch_job **out, struct err *e)
{
    enum st st = setup->plan && !setup->hosts ? launch_check_budget(setup, e) : ST_OK;
    if (st)
        return st;
    struct launch_job *job = calloc(1, sizeof *job);
    if (!job)
        return err_set(e, ST_NO_MEMORY, "no memory");
    job->setup = setup;
    int front[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, front)) {
        free(job);
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    }
    rt_inbox_init(&job->front, front[0]);
    launch_interrupt_heed();
    st = setup->hosts ? start_hosts(job, front[1], e) : setup->n_ranks == 1 || launch_foreign() ? start_thread(job, front[1], e) : start_agent(job, front[1], e);
    if (!st && setup->plan) /* without a model there is nothing to load */
        st = wait_ready(job, e);
    if (st) {
        launch_job_kill(job);
        return st;
    }
    *out = job;
    return ST_OK;
}

/* ---- what the other side says ------------------------------------------------------------------------------------------------------------------------------- */

/* The agent's story, if it has one within the time: always ST_PEER_LOST, else ST_AGAIN. */
static enum st hear_agent(struct launch_job *job, int timeout_ms, struct err *e)
{
    const enum st st = launch_watch_story(job->watch, timeout_ms, e);
    return st ? st : err_set(e, ST_PEER_LOST, "all agents left without a word");
}

/* The stream from rank 0 is broken or at its end. One rank has told why in its last frame, if it failed; of more the agent knows which was the first to fail. Always ST_PEER_LOST. */
static enum st explain(struct launch_job *job, struct err *e)
{
    if (job->watch) {
        if (hear_agent(job, STORY_WAIT_MS, e) == ST_AGAIN)
            err_set(e, ST_PEER_LOST, "rank 0 is gone, and no agent says why");
        return ST_PEER_LOST;
    }
    enum rt_frame_kind kind;
    const void *payload;
    size_t bytes;
    while (rt_inbox_next(&job->front, 0, &kind, &payload, &bytes, NULL) == ST_OK)
        if (kind == RT_FAILED)
            return err_set(e, ST_PEER_LOST, "%.*s", (int)(bytes > 480 ? 480 : bytes), (const char *)payload);
    return err_set(e, ST_PEER_LOST, "the rank ended without a reason");
}

static int watch_fd(const struct launch_job *job) { return job->watch ? launch_watch_fd(job->watch) : -1; }

enum st launch_job_next(struct launch_job *job, int timeout_ms, enum rt_frame_kind *kind, const void **payload, size_t *bytes, struct err *e)
{
    for (;;) {
        enum st st = rt_inbox_next(&job->front, 0, kind, payload, bytes, e);
        if (launch_interrupted())
            return err_set(e, ST_CANCELLED, "interrupted (%s)", strsignal(launch_interrupted()));
        if (st == ST_OK && *kind == RT_FAILED && !job->watch)
            return err_set(e, ST_PEER_LOST, "%.*s", (int)(*bytes > 480 ? 480 : *bytes), (const char *)*payload);
        if (st == ST_OK && *kind == RT_FAILED)
            continue; /* the agent knows which rank was the first */
        if (st == ST_PEER_LOST)
            return explain(job, e);
        if (st != ST_AGAIN)
            return st;
        struct pollfd p[3] = {{.fd = job->front.fd, .events = POLLIN}, {.fd = watch_fd(job), .events = POLLIN}, {.fd = launch_interrupt_fd(), .events = POLLIN}};
        const int n = poll(p, 3, timeout_ms); /* a negative descriptor is passed over */
        if (n == 0 || (n < 0 && errno == EINTR && !launch_interrupted()))
            return ST_AGAIN;
        if (!p[0].revents && p[1].revents && hear_agent(job, 0, e) == ST_PEER_LOST)
            return ST_PEER_LOST;
    }
}

enum st launch_job_wait_input(struct launch_job *job, int fd, struct err *e)
{
    for (;;) {
        struct pollfd p[4] = {{.fd = fd, .events = POLLIN}, {.fd = job->front.fd, .events = POLLIN}, {.fd = watch_fd(job), .events = POLLIN}, {.fd = launch_interrupt_fd(), .events = POLLIN}};
        if (poll(p, 4, -1) < 0 && errno != EINTR)
            return err_set(e, ST_IO, "cannot wait for input: %s", strerror(errno));
        if (launch_interrupted())
            return err_set(e, ST_CANCELLED, "interrupted (%s)", strsignal(launch_interrupted()));
        if (p[1].revents || p[2].revents) { /* no request is under way: whatever comes is bad news */
            enum rt_frame_kind kind;
            const void *payload;
            size_t bytes;
            const enum st st = launch_job_next(job, 0, &kind, &payload, &bytes, e);
            if (st && st != ST_AGAIN)
                return st;
        }
        if (p[0].revents)
            return ST_OK;
    }
}

/* ---- requests ------------------------------------------------------------------------------------------------------------------------------------------- */

/* Rank 0 may be blocked itself, by frames that nobody takes while we send (rows of logits of an earlier request): so we take them in, for later, where we cannot go on. */
static enum st send_frame(struct launch_job *job, enum rt_frame_kind kind, const void *head, size_t head_bytes, const void *data, size_t data_bytes, struct err *e)
{
    const uint32_t frame[2] = {(uint32_t)(head_bytes + data_bytes), (uint32_t)kind};
    const struct {
        const void *at;
        size_t bytes;
    } pieces[] = {{frame, sizeof frame}, {head, head_bytes}, {data, data_bytes}};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        for (size_t sent = 0; sent < pieces[i].bytes;) {
            const ssize_t n = send(job->front.fd, (const char *)pieces[i].at + sent, pieces[i].bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n > 0)
                sent += (size_t)n;
            else if (n < 0 && errno == EAGAIN) {
                struct pollfd p = {.fd = job->front.fd, .events = POLLIN | POLLOUT};
                if (poll(&p, 1, -1) > 0 && p.revents & POLLIN && !(p.revents & POLLOUT)) {
                    const enum st st = rt_inbox_fill(&job->front, e);
                    if (st && st != ST_AGAIN)
                        return st == ST_PEER_LOST ? explain(job, e) : st;
                }
            } else if (n < 0 && errno != EINTR)
                return explain(job, e);
        }
    return ST_OK;
}

enum st launch_job_submit(struct launch_job *job, const struct rt_request *request, const int32_t *ids, struct err *e)
{
    enum st st = send_frame(job, RT_REQUEST, request, sizeof *request, NULL, 0, e);
    for (uint32_t at = 0; at < request->n_prompt && !st;) {
        const uint32_t n = request->n_prompt - at < RT_IDS_PER_FRAME ? request->n_prompt - at : RT_IDS_PER_FRAME;
        struct rt_ids_head head = {request->request, n};
        st = send_frame(job, RT_IDS, &head, sizeof head, ids + at, n * sizeof *ids, e);
        at += n;
    }
    return st;
}

enum st launch_job_cancel(struct launch_job *job, uint32_t request, struct err *e)
{
    const struct rt_cancel cancel = {request};
    return send_frame(job, RT_CANCEL, &cancel, sizeof cancel, NULL, 0, e);
}

/* ---- ending ---------------------------------------------------------------------------------------------------------------------------------------------- */

/* After the ranks were told to stop: the agent says who failed, or ends. One that does neither in time is killed when the job is released, and that is no failure. */
static enum st leave(struct launch_job *job, struct err *e)
{
    struct err story = {""};
    if (launch_watch_story(job->watch, STORY_WAIT_MS, &story) != ST_PEER_LOST)
        return ST_OK;
    return err_set(e, ST_PEER_LOST, "%s", story.text);
}

static void release(struct launch_job *job)
{
    const int front = job->front.fd;
    rt_inbox_release(&job->front);
    if (job->has_thread) {
        shutdown(front, SHUT_RDWR);
        pthread_join(job->thread, NULL);
        close(job->rank.front_fd);
    }
    close(front);
    launch_watch_stop(job->watch);
    free(job);
}

/* Takes what comes until the stream's end (ST_PEER_LOST), or until the time is over (ST_AGAIN). */
static enum st drain(struct launch_job *job, int timeout_ms, struct err *e)
{
    const uint64_t until = base_now_ns(base_clock_real()) + (uint64_t)timeout_ms * BASE_NS_PER_MS;
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        enum st st = rt_inbox_next(&job->front, timeout_ms < 0 ? -1 : 20, &kind, &payload, &bytes, e);
        if (st == ST_OK && kind == RT_LEDGER)
            st = launch_ledger_add(job->ledger, payload, bytes, e);
        if (st == ST_OK && kind == RT_EXPERTS && job->expert_stats)
            st = launch_expert_stats_take(job->expert_stats, payload, bytes, e);
        if (st && st != ST_AGAIN)
            return st;
        if (timeout_ms >= 0 && base_now_ns(base_clock_real()) >= until)
            return ST_AGAIN;
    }
}

enum st launch_job_stop(struct launch_job *job, struct err *e)
{
    const int interrupted = launch_interrupted();
    enum st st = interrupted ? launch_job_cancel(job, RT_CANCEL_ALL, e) : ST_OK;
    if (!st)
        st = send_frame(job, RT_STOP, NULL, 0, NULL, 0, e);
    if (st) {
        release(job);
        return st;
    }
    st = drain(job, interrupted ? CANCEL_MS : -1, e);
    if (interrupted) {
        release(job);
        return err_set(e, ST_CANCELLED, "interrupted (%s)", strsignal(interrupted));
    }
    /* The stream's end is what we waited for; the agent's end, without a story, means that all ranks left in peace. */
    if (st == ST_PEER_LOST)
        st = job->watch ? leave(job, e) : ST_OK;
    if (!st && job->has_thread) {
        pthread_join(job->thread, NULL);
        job->has_thread = false;
        close(job->rank.front_fd);
        st = job->rank_st;
        if (st && e)
            *e = job->rank_err;
    }
    release(job);
    return st;
}

void launch_job_kill(struct launch_job *job)
{
    if (job)
        release(job);
}
