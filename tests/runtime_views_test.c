/* What comm.h promises of views is all that the runtime relies on: here they are overwritten as soon as the second next collective begins, which backends that take in what peers send ahead may do.
 * Ranks are threads, over tcp, whose views are memory of their own. Also, whatever is under way is given time to come through: so the order is the worst one, always.
 * The linker puts the functions below in front of comm's (Makefile). */
#include <sched.h>
#include <string.h>

#include "base/rng.h"
#include "comm/comm_priv.h"
#include "tests/t_job.h"
#include "tests/t_llama.h"

enum { MAX_RANKS = 4, VOCAB = 131, PROMPT = 60 };
#define PATIENCE_NS (5 * BASE_NS_PER_MS)

/* ---- comm, as strict as its promise -------------------------------------------------------------------------------------------------------------------- */

/* What a rank's exchanges gave it, by the parity of their numbers. */
static struct given {
    uint64_t sequence;
    const void *views[COMM_MAX_RANKS];
    size_t bytes[COMM_MAX_RANKS];
} given[MAX_RANKS][2];
static uint64_t n_ended[MAX_RANKS];

static void begin(const struct comm *c, const size_t *bytes)
{
    const uint64_t sequence = c->sequence + 1;
    struct given *g = &given[c->rank][sequence % 2];
    for (int r = 0; r < c->n_ranks && g->sequence && g->sequence + 2 == sequence; r++)
        if (r != c->rank && g->bytes[r]) {
            memset((void *)(uintptr_t)g->views[r], 0xff, g->bytes[r]);
            n_ended[c->rank]++;
        }
    *g = (struct given){0};
    memcpy(g->bytes, bytes, (size_t)c->n_ranks * sizeof *bytes);
}

enum st __real_comm_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e);
enum st __wrap_comm_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e);
enum st __wrap_comm_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e)
{
    begin(c, recv_bytes);
    return __real_comm_allgather_start(c, send, recv_bytes, header, e);
}

enum st __real_comm_scatter_start(struct comm *c, const void *send, const struct comm_shares *shares, const struct comm_header *header, struct err *e);
enum st __wrap_comm_scatter_start(struct comm *c, const void *send, const struct comm_shares *shares, const struct comm_header *header, struct err *e);
enum st __wrap_comm_scatter_start(struct comm *c, const void *send, const struct comm_shares *shares, const struct comm_header *header, struct err *e)
{
    size_t bytes[COMM_MAX_RANKS];
    for (int r = 0; r < c->n_ranks; r++)
        bytes[r] = shares->n_vectors[r] * (shares->begin[c->rank + 1] - shares->begin[c->rank]);
    begin(c, bytes);
    return __real_comm_scatter_start(c, send, shares, header, e);
}

enum st __real_comm_allgather_finish(struct comm *c, uint64_t deadline_ns, const void **views, struct comm_header *headers, struct err *e);
enum st __wrap_comm_allgather_finish(struct comm *c, uint64_t deadline_ns, const void **views, struct comm_header *headers, struct err *e);
enum st __wrap_comm_allgather_finish(struct comm *c, uint64_t deadline_ns, const void **views, struct comm_header *headers, struct err *e)
{
    const enum st st = __real_comm_allgather_finish(c, deadline_ns, views, headers, e);
    struct given *g = &given[c->rank][c->sequence % 2];
    if (st)
        return st;
    g->sequence = c->sequence;
    memcpy(g->views, views, (size_t)c->n_ranks * sizeof *views);
    return ST_OK;
}

bool __real_comm_allgather_advance(struct comm *c);
bool __wrap_comm_allgather_advance(struct comm *c);
bool __wrap_comm_allgather_advance(struct comm *c)
{
    const uint64_t end_ns = base_now_ns(base_clock_real()) + PATIENCE_NS;
    while (!__real_comm_allgather_advance(c)) {
        if (base_now_ns(base_clock_real()) > end_ns)
            return false;
        sched_yield();
    }
    return true;
}

/* ---- models --------------------------------------------------------------------------------------------------------------------------------------------- */

static void same_bits(const char *model, int vocab, int n_ranks, enum part_moe moe, int scatter_bytes)
{
    int32_t ids[PROMPT];
    struct base_rng rng;
    base_rng_init(&rng, 5);
    for (int i = 0; i < PROMPT; i++)
        ids[i] = (int32_t)base_rng_below(&rng, (uint32_t)vocab);
    struct t_sequence want = {.ids = ids, .n = PROMPT, .max_new = 2}, got = want;
    struct t_job_options o = {.model = model, .moe = moe};
    struct t_job *job = t_job_start(&o);
    t_job_run(job, &want, 1);
    t_job_stop(job);

    memset(given, 0, sizeof given);
    memset(n_ended, 0, sizeof n_ended);
    o.n_ranks = n_ranks;
    o.backend = "tcp";
    o.overlap_tokens = 2;
    o.scatter_bytes = scatter_bytes;
    job = t_job_start(&o);
    t_job_run(job, &got, 1);
    vocab = (int)t_job_vocab(job);
    t_job_stop(job);
    for (int r = 0; r < n_ranks; r++)
        assert_true(n_ended[r] > 10);
    assert_int_equal(got.n_rows, want.n_rows);
    assert_memory_equal(got.logits, want.logits, (size_t)want.n_rows * (size_t)vocab * sizeof(float));
    t_sequence_free(&want);
    t_sequence_free(&got);
}

static void dense(void **state)
{
    (void)state;
    const struct t_llama m = {.hidden = 96, .heads = 6, .kv = 3, .head_dim = 32, .ffn = 96, .vocab = VOCAB, .format = FMT_BF16};
    const char *path = t_llama_write(&m, "views");
    same_bits(path, VOCAB, 2, PART_MOE_TENSOR, 0);
    same_bits(path, VOCAB, 3, PART_MOE_TENSOR, 0);
    same_bits(path, VOCAB, 3, PART_MOE_TENSOR, 1);
    /* a step of 60 tokens is cut into 32 and 28: between what they send, so that only A's sums are shared */
    same_bits(path, VOCAB, 3, PART_MOE_TENSOR, 30 * 96 * 4);
}

/* A norm over all heads, of queries and of keys, each with an exchange; experts. */
static void families(void **state)
{
    (void)state;
    for (int scatter_bytes = 0; scatter_bytes < 2; scatter_bytes++) {
        same_bits("tests/golden/families/minimax_m2-kv3", 100, 3, PART_MOE_TENSOR, scatter_bytes);
        same_bits("tests/golden/families/glm4_moe-shared2", 100, 3, PART_MOE_TENSOR, scatter_bytes);
        same_bits("tests/golden/families/qwen3_moe-e7", 100, 3, PART_MOE_EXPERT, scatter_bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(dense), cmocka_unit_test(families)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
