/* Conformance of the paged cache and of attention: every backend against `ref`, to the bit; one token at a time, in chunks, alone, in a batch with others, with
 * one to three threads, on ranks that hold some of the heads: always the same bits. Caches are full of NaN where nothing has been written, and blocks lie
 * scattered. `ref` itself is held against softmax in double. (test-deadline: 180) */
#include "tests/t.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref.h"
#include "tests/t_kernels.h"

enum { N_SEQUENCES = 3, MAX_TOKENS = 700, MAX_CALLS = 700 };

struct setup {
    enum format format;
    int n_kv_heads, group, head_dim;
    int length[N_SEQUENCES];
    float k_scale, v_scale; /* E4M3 */
};

/* Data of all sequences, token by token: sequence s begins at token first[s]. */
struct data {
    struct setup s;
    int n_tokens, first[N_SEQUENCES], width, kv_width;
    float *q, *k, *v;
    int window;   /* as in kern_attention */
    float *sinks; /* of all heads, or NULL */
};

static struct data data_make(struct base_rng *r, struct setup s) {
    struct data d = {.s = s, .width = s.n_kv_heads * s.group * s.head_dim, .kv_width = s.n_kv_heads * s.head_dim};
    for (int i = 0; i < N_SEQUENCES; i++) {
        d.first[i] = d.n_tokens;
        d.n_tokens += s.length[i];
    }
    assert_true(d.n_tokens <= MAX_TOKENS);
    d.q = random_floats(r, (size_t)d.n_tokens * (size_t)d.width, 2.0f);
    d.k = random_floats(r, (size_t)d.n_tokens * (size_t)d.kv_width, 1.5f);
    d.v = random_floats(r, (size_t)d.n_tokens * (size_t)d.kv_width, 1.0f);
    return d;
}

static void data_free(struct data *d) {
    free(d->q);
    free(d->k);
    free(d->v);
    free(d->sinks);
}

/* ---- one way of computing it all ------------------------------------------------------------------------------------------------------------------- */

struct way {
    const struct kern_backend *backend;
    int n_threads;
    int chunk;       /* tokens of one sequence a step */
    bool together;   /* all sequences in the same steps, else one after another */
    int head_lo, head_hi; /* this rank's query heads; 0, 0: all */
};

struct result {
    float *out;            /* [n_tokens, heads·dim] of this rank */
    unsigned char *cache;
    size_t cache_bytes;
};

/* Appends and attends tokens `from` … `from + n − 1` of each sequence in `which`. */
static void step(const struct data *d, const struct way *w, const struct kern_kv *kv, const int32_t *table, size_t table_stride, const int *from, const int *n,
                 float *out) {
    /* ---- gather the step's tokens, with gaps between rows */
    static int32_t position[MAX_TOKENS], run_begin[N_SEQUENCES], run_tokens[N_SEQUENCES], run_table[N_SEQUENCES];
    static int token[MAX_TOKENS];
    int n_tokens = 0, n_runs = 0;
    for (int s = N_SEQUENCES - 1; s >= 0; s--) { /* any order of runs will do */
        if (n[s] == 0)
            continue;
        run_begin[n_runs] = n_tokens;
        run_tokens[n_runs] = n[s];
        run_table[n_runs++] = s;
        for (int i = 0; i < n[s]; i++) {
            position[n_tokens] = from[s] + i;
            token[n_tokens++] = d->first[s] + from[s] + i;
        }
    }
    if (n_tokens == 0)
        return;
    int head_lo = w->head_lo, n_heads = w->head_hi - w->head_lo, dim = d->s.head_dim, kv_first = head_lo / d->s.group;
    size_t q_width = (size_t)(n_heads * dim), kv_width = (size_t)(kv->n_kv_heads * dim), q_stride = q_width + 3, kv_stride = kv_width + 5;
    float *q = malloc(sizeof(float) * q_stride * (size_t)n_tokens), *k = malloc(sizeof(float) * kv_stride * (size_t)n_tokens),
          *v = malloc(sizeof(float) * kv_stride * (size_t)n_tokens), *y = t_guard_alloc(sizeof(float) * (q_stride * (size_t)n_tokens - 3));
    for (int i = 0; i < n_tokens; i++) {
        memcpy(q + (size_t)i * q_stride, d->q + (size_t)token[i] * (size_t)d->width + head_lo * dim, q_width * sizeof(float));
        memcpy(k + (size_t)i * kv_stride, d->k + (size_t)token[i] * (size_t)d->kv_width + kv_first * dim, kv_width * sizeof(float));
        memcpy(v + (size_t)i * kv_stride, d->v + (size_t)token[i] * (size_t)d->kv_width + kv_first * dim, kv_width * sizeof(float));
    }
    /* ---- append, then attend; threads in turn, the last first */
    struct kern_batch batch = {n_tokens, position, n_runs, run_begin, run_tokens, run_table, table, table_stride};
    struct kern_kv_append append = {&batch, kv, k, v, kv_stride, kv_stride};
    void *scratch = t_guard_alloc(w->backend->attention_scratch_bytes(n_heads, dim, n_tokens, w->n_threads));
    struct kern_attention attention = {&batch, kv, q, q_stride, y, q_stride, n_heads, head_lo, kv_first, d->s.group, 1.0f / sqrtf((float)dim),
                                       d->window, d->sinks ? d->sinks + head_lo : NULL, scratch};
    for (int i = w->n_threads - 1; i >= 0; i--)
        w->backend->kv_append((struct kern_queue){i, w->n_threads}, &append);
    for (int i = w->n_threads - 1; i >= 0; i--)
        w->backend->attention((struct kern_queue){i, w->n_threads}, &attention);
    for (int i = 0; i < n_tokens; i++)
        memcpy(out + (size_t)token[i] * q_width, y + (size_t)i * q_stride, q_width * sizeof(float));
    t_guard_free(scratch);
    t_guard_free(y);
    free(q);
    free(k);
    free(v);
}

static struct result compute(const struct data *d, struct way w) {
    if (w.head_hi == 0)
        w.head_hi = d->s.n_kv_heads * d->s.group;
    int kv_lo = w.head_lo / d->s.group, kv_hi = (w.head_hi - 1) / d->s.group + 1;
    struct kern_kv kv = {.format = d->s.format, .n_kv_heads = kv_hi - kv_lo, .head_dim = d->s.head_dim, .k_scale = d->s.k_scale, .v_scale = d->s.v_scale};
    kv.block_bytes = kern_kv_block_bytes(kv.format, kv.n_kv_heads, kv.head_dim);

    /* ---- blocks scattered over a cache full of NaN; unused entries of the table are wild */
    enum { STRIDE = MAX_TOKENS / KERN_KV_BLOCK + 2 };
    static int32_t table[N_SEQUENCES * STRIDE];
    int n_blocks = 0, n_pool = 61;
    const int32_t wild = 1 << 30;
    for (int i = 0; i < N_SEQUENCES * STRIDE; i++)
        table[i] = wild;
    for (int s = 0; s < N_SEQUENCES; s++)
        for (int b = 0; b * KERN_KV_BLOCK < d->s.length[s]; b++)
            table[s * STRIDE + b] = n_blocks++ * 23 % n_pool;
    assert_true(n_blocks <= n_pool);
    struct result r = {.out = calloc((size_t)d->n_tokens * (size_t)(w.head_hi - w.head_lo) * (size_t)d->s.head_dim, sizeof(float))};
    r.cache_bytes = (size_t)n_pool * kv.block_bytes;
    r.cache = t_guard_alloc(r.cache_bytes);
    memset(r.cache, 0xff, r.cache_bytes);
    kv.base = r.cache;

    /* ---- all tokens, by the given way */
    int from[N_SEQUENCES] = {0}, n[N_SEQUENCES];
    for (int only = 0; only < (w.together ? 1 : N_SEQUENCES); only++)
        for (bool more = true; more;) {
            more = false;
            for (int s = 0; s < N_SEQUENCES; s++) {
                int left = d->s.length[s] - from[s], chunk = w.chunk + (w.together ? s : 0);
                n[s] = w.together || s == only ? (left < chunk ? left : chunk) : 0;
                more |= n[s] > 0;
            }
            for (int s = 0; s < N_SEQUENCES && d->window; s++) /* nobody looks for blocks that have left the window */
                for (int b = 0; (b + 1) * KERN_KV_BLOCK <= from[s] + 1 - d->window; b++)
                    table[s * STRIDE + b] = wild;
            step(d, &w, &kv, table, STRIDE, from, n, r.out);
            for (int s = 0; s < N_SEQUENCES; s++)
                from[s] += n[s];
        }
    t_guard_check(r.cache);
    return r;
}

static void result_free(struct result *r) {
    free(r->out);
    t_guard_free(r->cache);
}

/* ---- comparing -------------------------------------------------------------------------------------------------------------------------------------- */

static void expect_same(const struct data *d, const struct way *w, const struct result *got, const struct result *want, int head_lo, int head_hi) {
    size_t width = (size_t)((head_hi - head_lo) * d->s.head_dim);
    for (int t = 0; t < d->n_tokens; t++)
        for (size_t i = 0; i < width; i++) {
            float g = got->out[(size_t)t * width + i], x = want->out[(size_t)t * (size_t)d->width + (size_t)(head_lo * d->s.head_dim) + i];
            if (memcmp(&g, &x, sizeof g) != 0)
                fail_msg("%s/%s: %s cache, %d KV heads, group %d, dim %d, %d threads, chunk %d, %s: token %d, element %d: %.9g, expected %.9g",
                         w->backend->name, w->backend->variant, kern_format(d->s.format)->name, d->s.n_kv_heads, d->s.group, d->s.head_dim, w->n_threads,
                         w->chunk, w->together ? "together" : "alone", t, (int)i, (double)g, (double)x);
        }
    if (head_hi - head_lo == d->s.n_kv_heads * d->s.group)
        assert_memory_equal(got->cache, want->cache, want->cache_bytes);
}

/* windows that see everything give the bits of none */
static void check_window(struct setup setup, int window, bool has_sinks) {
    struct base_rng r;
    base_rng_init(&r, t_seed() + (uint64_t)setup.head_dim);
    struct data d = data_make(&r, setup);
    d.sinks = has_sinks ? random_floats(&r, (size_t)(setup.n_kv_heads * setup.group), 3) : NULL;
    d.window = window > MAX_TOKENS ? 0 : window;
    struct result want = compute(&d, (struct way){.backend = &kern_ref, .n_threads = 1, .chunk = MAX_TOKENS});
    d.window = window;
    for (const struct kern_backend *const *b = kern_backends(); *b; b++) {
        if (!t_kernels_on(*b) || !(*b)->supports(KERN_OP_ATTENTION, setup.format, KERN_ACT_F32, setup.head_dim))
            continue;
        const struct way ways[] = {{*b, 1, MAX_TOKENS, false, 0, 0}, {*b, 1, 1, true, 0, 0}, {*b, 3, 1, false, 0, 0},
                                   {*b, 3, 7, true, 0, 0},           {*b, 2, 32, true, 0, 0}, {*b, 2, MAX_TOKENS, true, 0, 0}};
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            if (i != 3 && (*b == &kern_ref || (T_SANITIZED && i % 2))) /* slow, and no way is special to ref */
                continue;
            struct result got = compute(&d, ways[i]);
            expect_same(&d, &ways[i], &got, &want, 0, setup.n_kv_heads * setup.group);
            result_free(&got);
        }
        /* ---- ranks: a cut inside a KV group, whose KV head both hold */
        int n_heads = setup.n_kv_heads * setup.group, cut = n_heads / 2 + (n_heads > 3);
        for (int rank = 0; rank < 2 && n_heads > 1 && *b != &kern_ref; rank++) {
            struct way w = {*b, 2, 50, true, rank ? cut : 0, rank ? n_heads : cut};
            struct result got = compute(&d, w);
            expect_same(&d, &w, &got, &want, w.head_lo, w.head_hi);
            result_free(&got);
        }
    }
    result_free(&want);
    data_free(&d);
}

static void check(struct setup setup) { check_window(setup, 0, false); }

/* The cost is the square of the first length. Sanitized, the two small models have one KV head and just reach a second partition; the large heads, whose
 * blocks of 8 rows × 8 vectors nobody else reaches, stay in the first: BF16 gets to others in two_merges. */
static void small_model_f16(void **state) { (void)state, check((struct setup){FMT_F16, T_SIZE(3, 1), 3, 64, {258, 37, 1}, 1, 1}); }
static void small_model_f32(void **state) { (void)state, check((struct setup){FMT_F32, T_SIZE(3, 1), 3, 64, {257, 33, T_SIZE(64, 32)}, 1, 1}); }
static void large_heads_bf16(void **state) { (void)state, check((struct setup){FMT_BF16, 1, 8, 128, {T_SIZE(258, 72), T_SIZE(33, 32), 5}, 1, 1}); }
static void many_heads_f16(void **state) { (void)state, check((struct setup){FMT_F16, 8, 1, 24, {75, 31, 32}, 1, 1}); }
static void wide_group(void **state) { (void)state, check((struct setup){FMT_F16, 1, 17, 16, {70, 3, 40}, 1, 1}); }
static void dim_80(void **state) { (void)state, check((struct setup){FMT_F16, 5, 2, 80, {66, 10, 33}, 1, 1}); }
static void dim_33(void **state) {
    (void)state;
    check((struct setup){FMT_F16, 5, 3, 33, {66, 10, 33}, 1, 1});
    check((struct setup){FMT_BF16, 1, 2, 33, {66, 10, 33}, 1, 1});
    check((struct setup){FMT_F32, 2, 1, 33, {66, 10, 33}, 1, 1});
}
static void dim_1(void **state) { (void)state, check((struct setup){FMT_F16, 2, 2, 1, {40, 1, 2}, 1, 1}); }
static void dim_512(void **state) { (void)state, check((struct setup){FMT_F16, 1, 2, 512, {40, 1, 2}, 1, 1}); }
static void two_merges(void **state) { (void)state, check((struct setup){FMT_BF16, 1, 2, 8, {640, 1, 2}, 1, 1}); }
/* Of any number of rows and dimensions again, for E4M3 loads two vectors at once; scales that are no powers of two. */
static void e4m3(void **state) {
    (void)state;
    check((struct setup){FMT_E4M3, 1, 3, 64, {258, 37, 1}, 0.0123f, 0.37f});
    check((struct setup){FMT_E4M3, 1, 8, 128, {T_SIZE(96, 72), T_SIZE(33, 32), 5}, 1, 1});
    check((struct setup){FMT_E4M3, 5, 3, 33, {66, 10, 33}, 3.3f, 0.002f}); /* saturates, underflows */
    check((struct setup){FMT_E4M3, 1, 17, 16, {70, 3, 40}, 0.001f, 7});
    check((struct setup){FMT_E4M3, 5, 2, 80, {66, 10, 33}, 0.02f, 0.02f});
    check((struct setup){FMT_E4M3, 2, 2, 1, {40, 1, 2}, 1, 0.1f});
    check((struct setup){FMT_E4M3, 1, 2, 512, {40, 1, 2}, 0.05f, 1});
}

/* Windows that end inside blocks and partitions, of one key, of a block, of more than a partition, of more than there is; with and without sinks. */
static void windows(void **state) {
    (void)state;
    check_window((struct setup){FMT_F16, 2, 3, 24, {270, 37, 1}, 1, 1}, 50, false);
    check_window((struct setup){FMT_F16, 1, 8, 40, {265, 33, 5}, 1, 1}, 1, true);
    check_window((struct setup){FMT_F32, 1, 3, 33, {T_SIZE(270, 100), 64, 20}, 1, 1}, 32, true);
    check_window((struct setup){FMT_BF16, 1, 2, 8, {T_SIZE(600, 560), 40, 20}, 1, 1}, 261, false);
    check_window((struct setup){FMT_E4M3, 1, 5, 16, {265, 40, 3}, 0.02f, 0.3f}, 7, true);
    check_window((struct setup){FMT_F16, 1, 3, 16, {265, 40, 3}, 1, 1}, MAX_TOKENS + 1, false);
    check_window((struct setup){FMT_F16, 3, 2, 16, {265, 40, 3}, 1, 1}, 0, true);
}

static float through_e4m3(float x, float scale) { return kern_e4m3_to_f32(kern_f32_to_e4m3(x / scale)) * scale; }

/* Attention over E4M3 is attention over the numbers that it holds: to rounding with any scales, and to the bit where they are powers of two. */
static void e4m3_is_f32_of_rounded(void **state) {
    (void)state;
    static const float scales[][2] = {{1, 1}, {0x1p-6f, 0x1p3f}, {0.013f, 0.31f}};
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        struct base_rng r;
        base_rng_init(&r, t_seed() + i);
        struct data d = data_make(&r, (struct setup){FMT_E4M3, 2, 3, 24, {290, 20, 1}, scales[i][0], scales[i][1]});
        struct way w = {.backend = &kern_ref, .n_threads = 1, .chunk = MAX_TOKENS};
        struct result got = compute(&d, w);
        for (int at = 0; at < d.n_tokens * d.kv_width; at++) {
            d.k[at] = through_e4m3(d.k[at], scales[i][0]);
            d.v[at] = through_e4m3(d.v[at], scales[i][1]);
        }
        d.s.format = FMT_F32;
        struct result want = compute(&d, w);
        for (int at = 0; at < d.n_tokens * d.width; at++)
            if (i < 2 ? memcmp(&got.out[at], &want.out[at], sizeof(float)) != 0 : !(fabsf(got.out[at] - want.out[at]) <= 2e-5f))
                fail_msg("scales %g, %g: element %d: %.9g, in F32 %.9g", (double)scales[i][0], (double)scales[i][1], at, (double)got.out[at], (double)want.out[at]);
        result_free(&got);
        result_free(&want);
        data_free(&d);
    }
}

/* What is stored, number by number, by every backend: the code of x / scale; and what is no number stays none on the way out. */
static void e4m3_corners(void **state) {
    (void)state;
    static const float corners[] = {0, -0.0f, 448, -448, 464, 1e9f, -1e30f, INFINITY, -INFINITY, NAN, 0x1p-6f, 0x1p-9f, 0x1p-10f, 0x1.8p-9f, 0x1.ep-7f, 1e-30f, 1.0625f, 1.1875f};
    enum { N = sizeof corners / sizeof corners[0], DIM = 21, KEYS = 40 };
    struct base_rng r;
    base_rng_init(&r, t_seed());
    float *k = random_floats(&r, KEYS * DIM, 100), *v = random_floats(&r, KEYS * DIM, 1), q[DIM], *out = random_floats(&r, DIM, 1);
    for (int i = 0; i < DIM; i++)
        q[i] = 1e-3f;
    for (int i = 0; i < N; i++)
        v[i * DIM + i % DIM] = k[i * DIM + (i + 3) % DIM] = corners[i];
    k[9 * DIM + 12] = 1; /* but for NaN: all weights would be */
    for (const struct kern_backend *const *b = kern_backends(); *b; b++) {
        if (!t_kernels_on(*b))
            continue;
        struct kern_kv kv = {.format = FMT_E4M3, .n_kv_heads = 1, .head_dim = DIM, .block_bytes = kern_kv_block_bytes(FMT_E4M3, 1, DIM), .k_scale = 0.7f, .v_scale = 1};
        assert_int_equal(kv.block_bytes, 2 * DIM * KERN_KV_BLOCK);
        unsigned char *cache = kv.base = t_guard_alloc(2 * kv.block_bytes);
        int32_t position[KEYS], begin = 0, n = KEYS, row = 0, table[] = {1, 0};
        for (int i = 0; i < KEYS; i++)
            position[i] = i;
        struct kern_batch batch = {KEYS, position, 1, &begin, &n, &row, table, 2};
        struct kern_kv_append append = {&batch, &kv, k, v, DIM, DIM};
        (*b)->kv_append((struct kern_queue){0, 1}, &append);
        t_guard_check(cache);
        for (size_t i = 0; i < KEYS; i++)
            for (size_t j = 0; j < DIM; j++) {
                const unsigned char *block = cache + (i < KERN_KV_BLOCK ? kv.block_bytes : 0);
                assert_int_equal(block[j * KERN_KV_BLOCK + i % KERN_KV_BLOCK], kern_f32_to_e4m3(k[i * DIM + j] / 0.7f));
                assert_int_equal(block[DIM * KERN_KV_BLOCK + i % KERN_KV_BLOCK * DIM + j], kern_f32_to_e4m3(v[i * DIM + j]));
            }
        /* the last token alone: NaN in one dimension of one value */
        position[0] = KEYS - 1;
        batch.n_tokens = n = 1;
        struct kern_attention attention = {&batch, &kv, q, DIM, out, DIM, 1, 0, 0, 1, 1, 0, NULL, NULL};
        (*b)->attention((struct kern_queue){0, 1}, &attention);
        for (int i = 0; i < DIM; i++)
            if (!isnan(out[i]) != (i != 9))
                fail_msg("%s/%s: dimension %d is %g", (*b)->name, (*b)->variant, i, (double)out[i]);
        t_guard_free(cache);
    }
    free(k);
    free(v);
    free(out);
}

/* ref against the textbook */
static void expect_textbook(int window, bool has_sinks) {
    struct base_rng r;
    base_rng_init(&r, t_seed());
    struct data d = data_make(&r, (struct setup){FMT_F32, 2, 3, T_SIZE(40, 8), {530, 20, 1}, 1, 1});
    d.window = window;
    d.sinks = has_sinks ? random_floats(&r, 6, 3) : NULL;
    struct result got = compute(&d, (struct way){.backend = &kern_ref, .n_threads = 1, .chunk = MAX_TOKENS});
    int dim = d.s.head_dim;
    for (int s = 0; s < N_SEQUENCES; s++)
        for (int p = 0; p < d.s.length[s]; p += 1 + p / 8)
            for (int h = 0; h < 6; h++) {
                double weight[MAX_TOKENS], sum = has_sinks ? exp((double)d.sinks[h]) : 0;
                const int first = window && p >= window ? p - window + 1 : 0;
                for (int j = first; j <= p; j++) {
                    double dot = 0;
                    for (int i = 0; i < dim; i++)
                        dot += (double)d.q[(d.first[s] + p) * d.width + h * dim + i] * (double)d.k[(d.first[s] + j) * d.kv_width + h / 3 * dim + i];
                    sum += weight[j] = exp(dot / sqrt(dim));
                }
                for (int i = 0; i < dim; i++) {
                    double y = 0;
                    for (int j = first; j <= p; j++)
                        y += weight[j] / sum * (double)d.v[(d.first[s] + j) * d.kv_width + h / 3 * dim + i];
                    double x = (double)got.out[(d.first[s] + p) * d.width + h * dim + i];
                    if (!(fabs(x - y) <= 2e-5))
                        fail_msg("sequence %d, position %d, head %d, dim %d: %.9g, in double %.9g", s, p, h, i, x, y);
                }
            }
    result_free(&got);
    data_free(&d);
}

static void ref_against_double(void **state) {
    (void)state;
    expect_textbook(0, false);
    expect_textbook(300, true);
    expect_textbook(45, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_model_f16), cmocka_unit_test(small_model_f32), cmocka_unit_test(large_heads_bf16), cmocka_unit_test(many_heads_f16),
        cmocka_unit_test(wide_group),      cmocka_unit_test(dim_80),          cmocka_unit_test(dim_33),           cmocka_unit_test(dim_1),
        cmocka_unit_test(dim_512),         cmocka_unit_test(two_merges),      cmocka_unit_test(ref_against_double),
        cmocka_unit_test(e4m3),            cmocka_unit_test(e4m3_is_f32_of_rounded), cmocka_unit_test(e4m3_corners),
        cmocka_unit_test(windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
