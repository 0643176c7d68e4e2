#include "tests/t_job.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/comm.h"
#include "partition/plan.h"
#include "runtime/rank.h"
#include "tests/t_boot.h"

#define ANSWER_WAIT_MS 120000

struct t_job {
    struct rt_inbox front;
    struct group_boot meeting;
    int memory_fd, n_ranks;
    int64_t vocab;
    struct rank {
        struct rt_rank_options options;
        struct group_boot_end end;
        struct comm_boot boot;
        pthread_t thread;
        enum st st;
        struct err e;
    } ranks[ORDER_MAX_RANKS];
};

static void *rank_thread(void *arg)
{
    struct rank *r = arg;
    r->st = rt_rank_run(&r->options, &r->e);
    if (r->options.front_fd >= 0)
        shutdown(r->options.front_fd, SHUT_WR);
    return NULL;
}

/* What the launcher knows before a rank starts: vocabulary and largest exchange. */
static enum st plan(struct t_job *job, const char *model, const struct rt_settings *settings, const uint32_t *shares, struct err *e)
{
    const struct kern_backend *backend;
    struct checkpoint *ck = NULL;
    struct part_model *whole = NULL;
    struct part_plan *p = NULL;
    enum st st = kern_select(NULL, &backend, e);
    if (!st)
        st = ck_open(model, &ck, e);
    if (!st)
        st = part_model_create(ck, &settings->model, &whole, e);
    if (!st) {
        struct rt_sizes sizes;
        rt_sizes_init(&sizes, settings, backend, job->ranks[0].options.backend);
        const struct part_plan_options options = rt_plan_options(settings, job->n_ranks, shares);
        st = part_plan_create(whole, &options, &sizes.base, &p, e);
    }
    if (!st) {
        struct part_audit audit;
        st = part_audit_plan(p, &audit, e);
    }
    if (!st) {
        job->vocab = whole->config.vocab;
        if (job->n_ranks > 1 && !job->ranks[0].options.backend)
            st = comm_shm_create(job->n_ranks, p->max_exchange_bytes, &job->memory_fd, e);
    }
    part_plan_destroy(p);
    part_model_destroy(whole);
    ck_close(ck);
    return st;
}

static enum st join(struct t_job *job, struct err *e)
{
    enum st worst = ST_OK;
    for (int r = 0; r < job->n_ranks; r++) {
        pthread_join(job->ranks[r].thread, NULL);
        const bool better = !worst || (worst == ST_PEER_LOST && job->ranks[r].st); /* whoever only missed a peer knows least */
        if (job->ranks[r].st && better) {
            worst = job->ranks[r].st;
            *e = job->ranks[r].e;
        }
    }
    close(job->front.fd);
    close(job->ranks[0].options.front_fd);
    rt_inbox_release(&job->front);
    if (job->memory_fd >= 0)
        close(job->memory_fd);
    free(job);
    return worst;
}

/* The next frame; the job is joined, and the test fails, where there is none. */
static enum rt_frame_kind next(struct t_job *job, const void **payload, size_t *bytes)
{
    enum rt_frame_kind kind;
    struct err e = {""};
    const enum st st = rt_inbox_next(&job->front, ANSWER_WAIT_MS, &kind, payload, bytes, &e);
    if (st == ST_AGAIN)
        fail_msg("no answer within %d s", ANSWER_WAIT_MS / 1000);
    if (st || kind == RT_FAILED) {
        const enum st said = join(job, &e);
        fail_msg("the job ended: %s: %s", st_name(said), e.text);
    }
    return kind;
}

static enum st start(const struct t_job_options *o, struct t_job **out, struct err *e)
{
    struct t_job *job = calloc(1, sizeof *job);
    int front[2];
    assert_non_null(job);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, front), 0);
    job->memory_fd = -1;
    job->n_ranks = o->n_ranks ? o->n_ranks : 1;
    const struct rt_settings settings = {
        .accurate = o->accurate,
        .kv_format = o->kv_format,
        .model = {.moe = o->moe},
        .chunk = o->chunk ? o->chunk : 512,
        .context = o->context ? o->context : 512,
        .max_sequences = o->max_sequences ? o->max_sequences : 8,
        .n_threads = o->n_threads ? o->n_threads : 1,
        .overlap_tokens = o->overlap_tokens,
        .scatter_bytes = o->scatter_bytes,
    };
    job->ranks[0].options.backend = o->backend;
    const enum st st = plan(job, o->model, &settings, o->shares, e);
    rt_inbox_init(&job->front, front[0]);
    if (st) {
        close(front[0]);
        close(front[1]);
        rt_inbox_release(&job->front);
        free(job);
        return st;
    }
    job->meeting.n_ranks = job->n_ranks;
    for (int r = 0; r < job->n_ranks; r++) {
        job->ranks[r].end = (struct group_boot_end){&job->meeting, r};
        job->ranks[r].boot = (struct comm_boot){group_boot_allgather, &job->ranks[r].end};
        job->ranks[r].options = (struct rt_rank_options){
            .model = o->model,
            .rank = r,
            .n_ranks = job->n_ranks,
            .shares = o->shares,
            .settings = settings,
            .front_fd = r ? -1 : front[1],
            .memory_fd = job->memory_fd,
            .backend = o->backend,
            .boot = o->backend ? &job->ranks[r].boot : NULL,
        };
        assert_int_equal(pthread_create(&job->ranks[r].thread, NULL, rank_thread, &job->ranks[r]), 0);
    }
    *out = job;
    return ST_OK;
}

struct t_job *t_job_start(const struct t_job_options *options)
{
    struct t_job *job = NULL;
    struct err e = {""};
    const void *payload;
    size_t bytes;
    T_OK(start(options, &job, &e), &e);
    assert_int_equal(next(job, &payload, &bytes), RT_READY);
    return job;
}

enum st t_job_refused(const struct t_job_options *options, struct err *e)
{
    struct t_job *job = NULL;
    enum st st = start(options, &job, e);
    if (!st) {
        shutdown(job->front.fd, SHUT_WR);
        st = join(job, e);
    }
    return st;
}

int64_t t_job_vocab(const struct t_job *job) { return job->vocab; }

void t_job_stop(struct t_job *job)
{
    struct err e = {""};
    T_OK(rt_frame_send(job->front.fd, RT_STOP, NULL, 0, &e), &e);
    T_OK(join(job, &e), &e);
}

/* ---- requests --------------------------------------------------------------------------------------------------------------------------------------- */

static void submit(struct t_job *job, struct t_sequence *s, uint32_t number)
{
    struct err e = {""};
    const struct rt_request r = {
        .request = number,
        .n_prompt = s->n,
        .max_new = s->max_new,
        .flags = RT_WANT_LOGITS | (s->leave_last ? 0 : RT_FEED_LAST),
        .temperature = s->temperature,
        .seed = s->seed,
    };
    struct rt_ids_head head = {number, s->n};
    const struct iovec pieces[] = {{&head, sizeof head}, {(void *)(uintptr_t)s->ids, s->n * sizeof *s->ids}};
    assert_true(s->n <= RT_IDS_PER_FRAME);
    s->n_rows = s->n_new = 0;
    s->logits = malloc((size_t)(s->n + s->max_new) * (size_t)job->vocab * sizeof *s->logits);
    s->new_ids = malloc((s->max_new + 1) * sizeof *s->new_ids);
    assert_true(s->logits && s->new_ids);
    T_OK(rt_frame_send(job->front.fd, RT_REQUEST, &r, sizeof r, &e), &e);
    T_OK(rt_frame_sendv(job->front.fd, RT_IDS, pieces, 2, &e), &e);
}

void t_job_run(struct t_job *job, struct t_sequence *sequences, int n)
{
    for (int i = 0; i < n; i++)
        submit(job, &sequences[i], (uint32_t)i);
    for (int n_done = 0; n_done < n;) {
        const void *payload;
        size_t bytes;
        const enum rt_frame_kind kind = next(job, &payload, &bytes);
        uint32_t words[2];
        assert_true(bytes >= sizeof words);
        memcpy(words, payload, sizeof words); /* the request's number leads every payload */
        assert_true(words[0] < (uint32_t)n);
        struct t_sequence *s = &sequences[words[0]];
        const size_t row_bytes = (size_t)job->vocab * sizeof(float);
        if (kind == RT_LOGITS) {
            assert_int_equal(bytes, sizeof words + row_bytes);
            assert_int_equal(words[1], s->n_rows);
            assert_true(s->n_rows < s->n + s->max_new);
            memcpy(s->logits + (size_t)s->n_rows++ * (size_t)job->vocab, (const unsigned char *)payload + sizeof words, row_bytes);
        } else if (kind == RT_TOKEN) {
            assert_true(s->n_new < s->max_new);
            s->new_ids[s->n_new++] = (int32_t)words[1];
        } else if (kind == RT_DONE) {
            s->reason = (enum rt_reason)words[1];
            n_done++;
        } else {
            fail_msg("a frame of kind %d", (int)kind);
        }
    }
}

void t_sequence_free(struct t_sequence *s)
{
    free(s->logits);
    free(s->new_ids);
    s->logits = NULL;
    s->new_ids = NULL;
}
