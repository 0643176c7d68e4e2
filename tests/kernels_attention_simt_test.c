/* The paged cache and attention of kernels/cuda in the harness, against `ref`, to the bit: decode (cut by partitions) and prefill (tiles), several sequences, windows, sinks, heads that
 * are cut between ranks. Blocks lie scattered, and what nobody has written is uninitialised memory: reading it is a finding. */
#include "tests/t.h"

#include <math.h>

#include "kernels/cuda/cuda.h"
#include "tests/t_simt.h"

enum { N_RUNS = 2, POOL = 24, STRIDE = 12, MOST = 640 };

struct shape {
    enum format format;
    int n_heads, q_first, kv_first, group, n_kv_heads, head_dim, window;
    int length[N_RUNS]; /* positions that are in the cache */
    int tokens[N_RUNS]; /* the last ones, which attend */
    bool sinks;
};

/* The last tokens[s] of each sequence, a run each. */
struct step {
    int32_t position[MOST], run_begin[N_RUNS], run_tokens[N_RUNS], run_table[N_RUNS], table[N_RUNS * STRIDE];
    struct kern_batch batch;
};

static void step_init(struct step *st, const struct shape *s, const int tokens[N_RUNS]) {
    int n = 0, n_runs = 0, n_blocks = 0;
    for (int i = 0; i < N_RUNS; i++) {
        for (int b = 0; b < STRIDE; b++) /* those of no position are wild */
            st->table[i * STRIDE + b] = b * KERN_KV_BLOCK < s->length[i] ? n_blocks++ * 7 % POOL : 1 << 24;
        if (tokens[i] == 0)
            continue;
        st->run_begin[n_runs] = n;
        st->run_tokens[n_runs] = tokens[i];
        st->run_table[n_runs++] = i;
        for (int t = 0; t < tokens[i]; t++)
            st->position[n++] = s->length[i] - tokens[i] + t;
    }
    assert_true(n <= MOST && n_blocks <= POOL);
    st->batch = (struct kern_batch){n, st->position, n_runs, st->run_begin, st->run_tokens, st->run_table, st->table, STRIDE};
}

/* The batch with its arrays on the device. */
static struct kern_batch batch_on_device(const struct kern_batch *b) {
    struct kern_batch d = *b;
    d.position = to_device(b->position, (size_t)b->n_tokens * 4);
    d.run_begin = to_device(b->run_begin, (size_t)b->n_runs * 4);
    d.run_tokens = to_device(b->run_tokens, (size_t)b->n_runs * 4);
    d.run_table = to_device(b->run_table, (size_t)b->n_runs * 4);
    d.block_table = to_device(b->block_table, (size_t)N_RUNS * STRIDE * 4);
    return d;
}

static void once(struct base_rng *r, const struct shape *s) {
    static struct step all, last; /* all positions are appended; the last ones attend */
    step_init(&all, s, s->length);
    step_init(&last, s, s->tokens);
    struct kern_kv kv = {.format = s->format, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .k_scale = 1, .v_scale = 1};
    kv.block_bytes = kern_kv_block_bytes(kv.format, kv.n_kv_heads, kv.head_dim);
    size_t kv_width = (size_t)(s->n_kv_heads * s->head_dim), kv_stride = kv_width + 1, width = (size_t)(s->n_heads * s->head_dim), stride = width + 3;
    size_t n_kv = (size_t)all.batch.n_tokens * kv_stride, n_q = (size_t)last.batch.n_tokens * stride, cache_bytes = POOL * kv.block_bytes;
    float *k = random_floats(r, n_kv, 1.5f), *v = random_floats(r, n_kv, 1), *q = random_floats(r, n_q, 2), *want = random_floats(r, n_q, 1), *sinks = random_floats(r, (size_t)s->n_heads, 1);
    float *d_y = to_device(want, n_q * sizeof *want), scale = 1 / sqrtf((float)s->head_dim);

    /* ---- ref */
    unsigned char *cache = malloc(cache_bytes);
    assert_non_null(cache);
    memset(cache, 0xff, cache_bytes);
    kv.base = cache;
    struct kern_kv_append append = {&all.batch, &kv, k, v, kv_stride, kv_stride};
    struct kern_attention args = {&last.batch, &kv, q, stride, want, stride, s->n_heads, s->q_first, s->kv_first, s->group, scale, s->window, s->sinks ? sinks : NULL, NULL};
    kern_ref.kv_append(whole, &append);
    kern_ref.attention(whole, &args);

    /* ---- here */
    int longest = s->tokens[0] > s->tokens[1] ? s->tokens[0] : s->tokens[1], positions = s->length[0] > s->length[1] ? s->length[0] : s->length[1];
    int n_partitions = (positions + KERN_KV_PARTITION - 1) / KERN_KV_PARTITION;
    struct kern_batch d_all = batch_on_device(&all.batch), d_last = batch_on_device(&last.batch);
    assert_int_equal(cudaMalloc(&kv.base, cache_bytes), cudaSuccess);
    if (!simt_is_emulated()) assert_int_equal(cudaMemset(kv.base, 0xff, cache_bytes), cudaSuccess);
    append = (struct kern_kv_append){&d_all, &kv, to_device(k, n_kv * sizeof *k), to_device(v, n_kv * sizeof *v), kv_stride, kv_stride};
    args.batch = &d_last;
    args.q = to_device(q, n_q * sizeof *q);
    args.out = d_y;
    args.sinks = s->sinks ? to_device(sinks, (size_t)s->n_heads * sizeof *sinks) : NULL;
    assert_int_equal(cudaMalloc(&args.scratch, cuda_attention_scratch_bytes(s->n_heads, s->head_dim, last.batch.n_tokens, longest, n_partitions) + 1), cudaSuccess);
    simt_name(kv.base, "cache");
    assert_int_equal(cuda_kv_append(&append, NULL), cudaSuccess);
    assert_int_equal(cuda_attention(&args, longest, n_partitions, NULL), cudaSuccess);
    expect_same("attention", d_y, want, n_q);

    /* What was written of the cache is ref's; of the rest nothing is said. */
    unsigned char *got = malloc(cache_bytes);
    assert_non_null(got);
    simt_set_check(0); /* the copy reads what nobody has written */
    assert_int_equal(cudaMemcpy(got, kv.base, cache_bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    simt_set_check(1);
    for (size_t i = 0; i < cache_bytes; i++)
        if (got[i] != cache[i])
            fail_msg("the cache's byte %d is %02x, ref has %02x", (int)i, got[i], cache[i]);
    free(got);
    free(cache);
    free(k);
    free(v);
    free(q);
    free(want);
    free(sinks);
}

static const struct shape shapes[] = {
    /* format, query heads, first, first cache head, group, cache heads, dim, window, positions, tokens, sinks */
    {FMT_F32, 4, 0, 0, 2, 2, 24, 0, {275, 40}, {12, 9}, false},   /* prefill over a partition's end */
    {FMT_F32, 4, 0, 0, 2, 2, 24, 0, {275, 40}, {3, 1}, true},     /* decode of two sequences */
    {FMT_F16, 3, 1, 0, 2, 2, 64, 40, {290, 33}, {9, 2}, true},    /* heads 1 … 3 of a rank; a window over a partition's end */
    {FMT_F16, 3, 1, 0, 2, 2, 64, 20, {300, 33}, {2, 1}, false},   /* the first partition is not seen */
    {FMT_BF16, 5, 4, 1, 4, 2, 128, 0, {33, 1}, {33, 1}, false},   /* groups of which a rank has one head, and four */
    {FMT_BF16, 1, 0, 0, 1, 1, 256, 0, {64, 0}, {1, 0}, false},
    {FMT_BF16, 2, 0, 0, 2, 1, 200, 0, {31, 10}, {9, 10}, false},
};

static void same_bits_case(void *rng) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        once(rng, &shapes[i]);
}

static void same_bits_as_ref(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= (t_long() ? 20 : 1); seed++) {
        struct base_rng r;
        base_rng_init(&r, t_seed());
        const double begin = seconds();
        const char *line = simt_catch(same_bits_case, &r, seed);
        if (line)
            fail_msg("%s", line);
        if (seed == 1)
            print_message("%.0f ms\n", 1e3 * (seconds() - begin));
    }
}

static void counted_case(void *rng) {
    const struct shape s = {FMT_F16, 4, 0, 0, 4, 1, 64, 0, {256, 0}, {1, 0}, false};
    once(rng, &s);
}

/* A token of 4 heads that share 256 keys and values of 64 halves: 65,536 bytes, each once. */
static void reads_the_cache_once(void **state) {
    (void)state;
    needs_harness();
    struct base_rng r;
    base_rng_init(&r, t_seed());
    simt_counts_start();
    assert_null(simt_catch(counted_case, &r, 1));
    const char *json = strstr(simt_counts_json(), "\"kernel\": \"(attention");
    assert_non_null(json);
    print_message("%s", json);
    assert_non_null(strstr(json, "{\"buffer\": \"cache\", \"load_bytes\": 65536, \"load_sectors\": 2048,"));
}

static void refused(void **state) {
    (void)state;
    struct kern_kv kv = {.format = FMT_E4M3, .n_kv_heads = 1, .head_dim = 64};
    struct kern_batch batch = {.n_tokens = 1};
    struct kern_attention args = {.batch = &batch, .kv = &kv, .n_heads = 1, .group = 1};
    struct kern_kv_append append = {.batch = &batch, .kv = &kv};
    assert_int_equal(cuda_attention(&args, 1, 1, NULL), cudaErrorInvalidValue);
    assert_int_equal(cuda_kv_append(&append, NULL), cudaErrorInvalidValue);
    kv.format = FMT_F32;
    kv.head_dim = 257;
    assert_int_equal(cuda_attention(&args, 1, 1, NULL), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits_as_ref), cmocka_unit_test(reads_the_cache_once), cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
