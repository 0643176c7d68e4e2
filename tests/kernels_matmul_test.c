/* Conformance of products: every backend that this machine can run against `ref`, to the bit; and the law of one order per output: any number of tokens,
 * rows, threads and ranks gives the bits of the whole. `ref` itself is held against plain double arithmetic.
 *
 * One expected result per case, 64 tokens × 50 rows by ref, once for all tests; whatever is computed otherwise (fewer tokens, fewer rows, a cut by leaves) is
 * a part of it. */
#include "tests/t.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref.h"
#include "tests/t_kernels.h"
#include "tests/t_matrix.h"

enum { MAX_TOKENS = 64, MAX_ROWS = 50 };

/* ---- shapes -------------------------------------------------------------------------------------------------------------------------------------- */

/* Whose case a shape is: what does not depend on the format is tried with the first five of them, what may with all. */
enum { SOME = 1, BLOCKS = 2, SUPER_BLOCKS = 4 };

static int all_shapes(struct shape *s) {
    int n = 0;
    s[n++] = by_units("45 units in 12 leaves", 2880);
    s[n++] = by_units("9 units, one a leaf", 576);
    s[n++] = by_units("one unit", 32);
    s[n++] = by_units("3 units of 32", 96);
    s[n++] = by_units("a short last unit", 352);
    s[n++] = by_units("a short last unit, off the grid", 331);
    s[n++] = by_heads("5 heads of 80, boundaries off the grid", 4, 80);
    s[n++] = by_heads("8 heads of 20, several boundaries in a block", 8, 20);
    s[n++] = by_heads("9 heads of 64", 9, 64);
    s[n++] = by_heads("3 heads of 33", 3, 33);
    s[n++] = by_heads("32 heads of 7", 32, 7);
    s[n++] = one_leaf("one leaf", 192);
    s[n++] = one_leaf("one column", 1);
    s[n++] = one_leaf("17 columns", 17);
    s[1].formats = s[6].formats = s[7].formats = BLOCKS;
    /* rows of whole super-blocks, cut anywhere */
    s[n++] = by_units("8 units in 2 super-blocks", 512);
    s[n++] = by_heads("16 heads of 80, boundaries inside halves of blocks", 16, 80);
    s[n++] = by_heads("32 heads of 24", 32, 24);
    s[n - 1].formats = s[n - 2].formats = s[n - 3].formats = SUPER_BLOCKS;
    s[n - 1].formats |= BLOCKS;
    for (int i = 1; i < n; i += 2)
        s[i].scale = i % 4 == 1 ? 0.37f : -0x1.8p-70f;
    /* shared scales, with cuts inside of what they are for; the others have 32 */
    s[1].scale_columns = s[5].scale_columns = s[16].scale_columns = 128;
    s[0].scale_columns = s[6].scale_columns = s[9].scale_columns = 64;
    return n;
}
#define MAX_SHAPES 20

static bool concerns(const struct shape *s, enum format f) {
    if (kern_format(f)->super_block) return s->formats & SUPER_BLOCKS;
    return f <= FMT_Q4_1 ? s->formats != SUPER_BLOCKS : (s->formats & BLOCKS) || (t_is_joined(f) && s->n_columns % 32);
}

/* ---- comparing ----------------------------------------------------------------------------------------------------------------------------------- */

static void expect_same(const struct kern_backend *b, const struct shape *s, enum format f, enum kern_activation a, const char *what, int n_tokens,
                        const float *got, size_t got_stride, const float *want, size_t want_stride, uint64_t n_rows) {
    for (int t = 0; t < n_tokens; t++)
        for (uint64_t r = 0; r < n_rows; r++) {
            float g = got[(size_t)t * got_stride + r], w = want[(size_t)t * want_stride + r];
            if (memcmp(&g, &w, sizeof g) != 0 && !(isnan(g) && isnan(w))) /* which of two NaNs survives is the processor's choice */
                fail_msg("%s/%s, %s × %s, %s: %s, token %d of %d, row %d of %d: %.9g, expected %.9g", b->name, b->variant, kern_format(f)->name,
                         t_activation(a), s->name, what, t, n_tokens, (int)r, (int)n_rows, (double)g, (double)w);
        }
}

/* A case: what ref says about all tokens and rows. */
struct expectation {
    const struct shape *shape;
    enum format format;
    enum kern_activation activation;
    unsigned char *rows;
    float *x, *bias, *y, *y_bias;
};

static struct expectation expectations[MAX_SHAPES * FMT_COUNT * 2];
static struct shape shapes[MAX_SHAPES];
static int n_expectations;

static bool expect_open(struct expectation *e, struct base_rng *r, const struct shape *s, enum format f, enum kern_activation a) {
    if (stored_bytes(f, s->n_columns) == 0 || !concerns(s, f) || !kern_ref.supports(KERN_OP_MATMUL, f, a, 0))
        return false;
    *e = (struct expectation){s, f, a, make_rows(r, f, MAX_ROWS, s->n_columns, s->scale_columns), make_floats(r, MAX_TOKENS * s->n_columns), make_floats(r, MAX_ROWS), NULL, NULL};
    struct kern_matrix m;
    matrix_open(&m, &kern_ref, f, a, s, 0, s->n_leaves, e->rows, MAX_ROWS);
    assert_int_equal(m.columns.n_vectors, 1);
    e->y = product(&kern_ref, &m, e->x, s->n_columns, MAX_TOKENS, NULL, 1);
    matrix_close(&m);
    /* a bias comes after the sum, by the law; that ref keeps it is checked like any other backend */
    e->y_bias = malloc(sizeof(float) * MAX_TOKENS * MAX_ROWS);
    assert_non_null(e->y_bias);
    for (int i = 0; i < MAX_TOKENS * MAX_ROWS; i++)
        e->y_bias[i] = e->y[i] + e->bias[i % MAX_ROWS];
    return true;
}

/* All cases, before the first test. */
static int expect_all(void **state) {
    (void)state;
    int n_shapes = all_shapes(shapes);
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int i = 0; i < n_shapes; i++)
        for (int f = i % T_SIZE(1, 2); f < FMT_COUNT; f += T_SIZE(1, 2)) /* sanitized: each shape with every other format */
            for (int a = 0; a < 3; a++)
                n_expectations += expect_open(&expectations[n_expectations], &r, &shapes[i], (enum format)f, (enum kern_activation)a);
    return 0;
}

static int forget_all(void **state) {
    (void)state;
    for (struct expectation *e = expectations; e < expectations + n_expectations; e++) {
        free(e->rows);
        free(e->x);
        free(e->bias);
        free(e->y_bias);
        t_guard_free(e->y);
    }
    return 0;
}

typedef void (*check_fn)(const struct kern_backend *b, const struct expectation *e);

static void for_all(check_fn check) {
    assert_true(n_expectations > MAX_SHAPES);
    for (const struct expectation *e = expectations; e < expectations + n_expectations; e++)
        for (const struct kern_backend *const *b = kern_backends(); *b; b++)
            if (t_kernels_on(*b) && (*b)->supports(KERN_OP_MATMUL, e->format, e->activation, 0))
                check(*b, e);
}

/* ---- the checks ---------------------------------------------------------------------------------------------------------------------------------- */

static void check_tokens_rows_threads(const struct kern_backend *b, const struct expectation *e) {
    static const int tokens[] = {1, 2, 3, 5, 8, 17, 64};
    static const uint64_t rows[] = {1, 15, 16, 17, 33, MAX_ROWS, 0};
    size_t stride = e->shape->n_columns;
    for (size_t i = 0; i < 7; i++) {
        struct kern_matrix m;
        matrix_open(&m, b, e->format, e->activation, e->shape, 0, e->shape->n_leaves, e->rows, rows[i]);
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            /* rows and token counts vary together, in seven pairs a thread count */
            int n = tokens[(i + (size_t)n_threads * 2) % 7];
            float *y = product(b, &m, e->x, stride, n, NULL, n_threads);
            expect_same(b, e->shape, e->format, e->activation, "at once", n, y, rows[i], e->y, MAX_ROWS, rows[i]);
            t_guard_free(y);
        }
        matrix_close(&m);
    }
}

static void check_one_by_one(const struct kern_backend *b, const struct expectation *e) {
    struct kern_matrix m;
    size_t stride = e->shape->n_columns;
    matrix_open(&m, b, e->format, e->activation, e->shape, 0, e->shape->n_leaves, e->rows, MAX_ROWS);
    for (int t = 0; t < MAX_TOKENS; t += 7) {
        float *y = product(b, &m, e->x + (size_t)t * stride, stride, 1, e->bias, 1 + t % 3);
        expect_same(b, e->shape, e->format, e->activation, "alone, with a bias", 1, y, MAX_ROWS, e->y_bias + (size_t)t * MAX_ROWS, MAX_ROWS, MAX_ROWS);
        t_guard_free(y);
    }
    matrix_close(&m);
}

/* Columns that lie elsewhere in x, or nowhere: as if x had been put into their order, with zeroes. */
static void check_order(const struct kern_backend *b, const struct expectation *e) {
    const size_t n = e->shape->n_columns, stride = n + 3;
    const int n_tokens = 3;
    float *sorted = malloc(n * (size_t)n_tokens * sizeof *sorted), *x = malloc(stride * (size_t)n_tokens * sizeof *x);
    int32_t *order = malloc(n * sizeof *order);
    assert_true(sorted && x && order);
    for (size_t i = 0; i < stride * (size_t)n_tokens; i++)
        x[i] = e->x[i % (MAX_TOKENS * n)];
    for (size_t c = 0; c < n; c++)
        order[c] = c % 11 == 5 ? -1 : (int32_t)((c * 7919 + 2) % stride); /* a column may even be read twice */
    for (size_t i = 0; i < n * (size_t)n_tokens; i++)
        sorted[i] = order[i % n] < 0 ? 0 : x[i / n * stride + (size_t)order[i % n]];
    struct kern_matrix m;
    matrix_open(&m, b, e->format, e->activation, e->shape, 0, e->shape->n_leaves, e->rows, 17);
    float *want = product(b, &m, sorted, n, n_tokens, NULL, 1);
    m.columns.order = order;
    float *got = product(b, &m, x, stride, n_tokens, NULL, 2);
    expect_same(b, e->shape, e->format, e->activation, "in another order", n_tokens, got, 17, want, 17, 17);
    t_guard_free(want);
    t_guard_free(got);
    matrix_close(&m);
    free(sorted);
    free(order);
    free(x);
}

/* Ranks own leaves [at[i], at[i+1]); their vectors, put together by the op `sum`, are the whole's bytes. Zero leaves are legal. */
static void check_ranks(const struct kern_backend *b, const struct expectation *e) {
    uint32_t n = e->shape->n_leaves;
    size_t stride = e->shape->n_columns;
    const uint32_t cuts[][6] = {{0, n}, {0, n / 2, n}, {0, n / 3, 2 * n / 3, n}, {0, n * 5 / 8, n}, {0, 0, n}, {0, 1, 1, n}, {0, n / 4, n / 2, 3 * n / 4, n}};
    const int n_ranks[] = {1, 2, 3, 2, 2, 3, 4};
    const int n_tokens = 5;
    for (size_t i_cut = 0; i_cut < sizeof n_ranks / sizeof n_ranks[0]; i_cut++) {
        struct kern_sum sum = {.n_leaves = n, .n_tokens = n_tokens, .width = MAX_ROWS, .vector_token_stride = MAX_ROWS, .y_stride = MAX_ROWS};
        float *parts[4] = {0};
        for (int rank = 0; rank < n_ranks[i_cut]; rank++) {
            /* ---- one rank's shard, with only its own columns of x */
            uint32_t lo = cuts[i_cut][rank], hi = cuts[i_cut][rank + 1];
            struct kern_matrix m;
            matrix_open(&m, b, e->format, e->activation, e->shape, lo, hi, e->rows, MAX_ROWS);
            size_t width = (size_t)(m.columns.end - m.columns.begin);
            float *x = malloc((width * (size_t)n_tokens + 1) * sizeof *x);
            for (size_t t = 0; t < (size_t)n_tokens; t++)
                memcpy(x + t * width, e->x + t * stride + m.columns.begin, width * sizeof *x);
            parts[rank] = product(b, &m, x, width, n_tokens, NULL, 1 + rank % 2);
            /* ---- which leaves its vectors cover follows from emit */
            uint32_t begin = lo, i_vector = 0;
            for (uint32_t leaf = 0; leaf < m.columns.n_leaves; leaf++)
                if (m.columns.emit[leaf]) {
                    sum.vectors[sum.n_vectors] = parts[rank] + i_vector++ * MAX_ROWS * (size_t)n_tokens;
                    sum.vector_lo[sum.n_vectors] = (uint8_t)begin;
                    sum.vector_hi[sum.n_vectors++] = (uint8_t)(begin = lo + leaf + 1);
                }
            assert_int_equal(i_vector, m.columns.n_vectors);
            assert_int_equal(begin, hi);
            free(x);
            matrix_close(&m);
        }
        sum.y = t_guard_alloc(sizeof(float) * MAX_ROWS * (size_t)n_tokens);
        for (int t = 0; t < 2; t++)
            (b->sum ? b->sum : kern_ref.sum)((struct kern_queue){t, 2}, &sum);
        expect_same(b, e->shape, e->format, e->activation, "cut by leaves", n_tokens, sum.y, MAX_ROWS, e->y, MAX_ROWS, MAX_ROWS);
        t_guard_free(sum.y);
        for (int rank = 0; rank < n_ranks[i_cut]; rank++)
            t_guard_free(parts[rank]);
    }
}

/* Several matrices over one x, of different heights and activations, into one buffer with gaps */
static void check_parts(const struct kern_backend *b, const struct expectation *e) {
    static const uint64_t heights[KERN_MAX_PARTS] = {17, 0, 50, 3};
    enum { N = 11, STRIDE = 77 };
    struct kern_matrix m[KERN_MAX_PARTS];
    float *y = t_guard_alloc(sizeof(float) * N * STRIDE);
    memset(y, 0x5a, sizeof(float) * N * STRIDE);
    struct kern_matmul args = {.x = e->x, .x_stride = e->shape->n_columns, .n_tokens = N, .n_parts = KERN_MAX_PARTS};
    size_t at = 0;
    for (int i = 0; i < KERN_MAX_PARTS; i++) {
        enum kern_activation a = i == 3 ? KERN_ACT_F32 : e->activation;
        matrix_open(&m[i], b, e->format, a, e->shape, 0, e->shape->n_leaves, e->rows, heights[i]);
        args.parts[i] = (struct kern_matmul_part){&m[i], i == 2 ? e->bias : NULL, y + at, STRIDE, 0};
        at += heights[i] + 1;
    }
    multiply(b, &args, 3);
    t_guard_check(y);
    expect_same(b, e->shape, e->format, e->activation, "first part", N, y, STRIDE, e->y, MAX_ROWS, 17);
    expect_same(b, e->shape, e->format, e->activation, "third part", N, y + 19, STRIDE, e->y_bias, MAX_ROWS, 50);
    if (e->activation == KERN_ACT_F32)
        expect_same(b, e->shape, e->format, e->activation, "last part", N, y + 70, STRIDE, e->y, MAX_ROWS, 3);
    for (int t = 0; t < N; t++) { /* what lies between the parts is untouched */
        static const int gaps[] = {17, 18, 69, 73, 74, 75, 76};
        for (size_t g = 0; g < sizeof gaps / sizeof gaps[0]; g++)
            for (size_t byte = 0; byte < sizeof(float); byte++)
                assert_int_equal(((unsigned char *)(y + t * STRIDE + gaps[g]))[byte], 0x5a);
    }
    for (int i = 0; i < KERN_MAX_PARTS; i++)
        matrix_close(&m[i]);
    t_guard_free(y);
}

static double largest_of(const float *w, uint64_t i, uint64_t n) {
    double largest = 0;
    for (uint64_t j = i / 32 * 32; j < i / 32 * 32 + 32 && j < n; j++)
        largest = fmax(largest, fabs((double)w[j]));
    return largest;
}

/* ref against double arithmetic on dequantised weights; for int8 within what the rounding of activations can do */
static void check_against_double(const struct kern_backend *b, const struct expectation *e) {
    if (b != &kern_ref)
        return;
    uint64_t n = e->shape->n_columns;
    float *w = malloc(n * sizeof *w);
    for (uint64_t r = 0; r < MAX_ROWS; r += 7) {
        kern_format_dequantise(e->format, e->rows + r * stored_bytes(e->format, n), n, w);
        for (int t = 0; t < MAX_TOKENS; t += 5) {
            double sum = 0, size = 0;
            for (uint64_t i = 0; i < n; i++) {
                double x = (double)e->x[(size_t)t * n + i];
                double amax = 0; /* of the activation's block: it bounds the rounding of x */
                const uint64_t width = e->activation == KERN_ACT_INT8_16 ? 16 : 32;
                for (uint64_t j = i / width * width; j < i / width * width + width && j < n && e->activation != KERN_ACT_F32; j++)
                    amax = fmax(amax, fabs((double)e->x[(size_t)t * n + j]));
                const double weight = (double)w[i] * (double)e->shape->scale;
                sum += weight * x;
                size += fabs(weight) * (fabs(x) * 1e-6 + amax * 0.501 / 127);
                if (e->format == FMT_FP8 && amax > 0) /* the weight is rounded too: by no more than its block's largest allows */
                    size += largest_of(w, i, n) * fabs((double)e->shape->scale) * 0.501 / 127 * (fabs(x) + amax * 0.501 / 127);
            }
            double got = (double)e->y[(size_t)t * MAX_ROWS + r];
            if (!(fabs(got - sum) <= size + 1e-6 * fabs((double)e->shape->scale)))
                fail_msg("ref, %s, %s: token %d, row %d: %.9g, in double %.9g ± %.2g", kern_format(e->format)->name, e->shape->name, t, (int)r, got, sum, size);
        }
    }
    free(w);
}

/* A row as embedding gives it: FP8 as the whole numbers that it is packed as. */
static void looked_up(const struct expectation *e, const unsigned char *row, uint64_t n, float *want) {
    if (e->format != FMT_FP8 || e->activation == KERN_ACT_F32) {
        kern_format_dequantise(e->format, row, n, want);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        struct format_group g;
        unsigned char block[36];
        memcpy(block, row + i / 32 * 36, sizeof block);
        for (uint64_t k = n - i / 32 * 32; k < 32; k++)
            block[4 + k] = 0; /* beyond the end */
        kern_format_group(FMT_FP8, block, 0, &g);
        want[i] = g.d[0] * (float)g.q[i % 32];
    }
}

static void check_embed(const struct kern_backend *b, const struct expectation *e) {
    if (!b->supports(KERN_OP_EMBED, e->format, e->activation, 0))
        return;
    static const int32_t ids[] = {100, 149, 99, 150, 117, 100, 0, 131};
    enum { N = sizeof ids / sizeof ids[0] };
    uint64_t n = e->shape->n_columns;
    struct shape whole = one_leaf(e->shape->name, n);
    whole.scale = e->shape->scale;
    whole.scale_columns = e->shape->scale_columns;
    struct kern_matrix m;
    matrix_open(&m, b, e->format, e->activation, &whole, 0, 1, e->rows, MAX_ROWS);
    float *y = t_guard_alloc(sizeof(float) * N * n), *want = malloc(sizeof(float) * n);
    struct kern_embed args = {&m, 100, ids, N, y, n, 0.75f};
    for (int t = 2; t >= 0; t--)
        b->embed((struct kern_queue){t, 3}, &args);
    t_guard_check(y);
    for (size_t t = 0; t < N; t++) {
        memset(want, 0, sizeof(float) * n);
        if (ids[t] >= 100 && ids[t] < 100 + MAX_ROWS)
            looked_up(e, e->rows + (size_t)(ids[t] - 100) * stored_bytes(e->format, n), n, want);
        for (uint64_t i = 0; i < n; i++)
            if (y[t * n + i] != want[i] * whole.scale * 0.75f)
                fail_msg("%s/%s, %s, %s: id %d, column %d: %.9g, expected %.9g", b->name, b->variant, kern_format(e->format)->name, e->shape->name, ids[t],
                         (int)i, (double)y[t * n + i], (double)(want[i] * whole.scale * 0.75f));
    }
    free(want);
    t_guard_free(y);
    matrix_close(&m);
}

static void same_bits_for_tokens_rows_threads(void **state) { (void)state, for_all(check_tokens_rows_threads); }
static void same_bits_one_by_one(void **state) { (void)state, for_all(check_one_by_one); }
static void same_bits_in_any_order(void **state) {
    (void)state;
    for_all(check_order);
}
static void same_bits_for_any_cut(void **state) { (void)state, for_all(check_ranks); }
static void several_parts(void **state) { (void)state, for_all(check_parts); }
static void ref_against_double(void **state) { (void)state, for_all(check_against_double); }
static void embedding(void **state) { (void)state, for_all(check_embed); }

/* Files with corners: scales that are infinite, undefined, zero, as large or as small as can be, where a leaf cuts blocks. All variants say what ref says. */
static void corners_of_scales(void **state) {
    (void)state;
    static const uint16_t halves[] = {0x7c00, 0xfc00, 0x7e01, 0, 0x8000, 0x7bff, 0x0001, 0x83ff};
    static const unsigned char bytes[] = {0, 1, 2, 254, 255, 0x7e, 0x7f, 0x80};
    struct base_rng r;
    base_rng_init(&r, t_seed());
    static const float floats[] = {INFINITY, -INFINITY, NAN, 0, -0.0f, FLT_MAX, 1e-45f, -0x1p-140f};
    struct shape blocks = by_heads("corners", 8, 96), joined = by_heads("corners, cut inside blocks of 32", 8, 84);
    joined.scale_columns = 64;
    float *x = make_floats(&r, blocks.n_columns * 2);
    memset(x + 64, 0, 32 * sizeof *x);
    for (int f = FMT_BF16 + 1; f < FMT_COUNT; f++)
        for (int accurate = 0; accurate < 2; accurate++) {
            const struct format_info *info = kern_format((enum format)f);
            const enum kern_activation a = kern_activation_for((enum format)f, accurate);
            if (!kern_ref.supports(KERN_OP_MATMUL, (enum format)f, a, 0))
                continue;
            const struct shape s = t_is_joined((enum format)f) ? joined : blocks;
            const uint64_t cut = s.leaf_end[2];
            enum { ROWS = 48 };
            unsigned char *rows = make_rows(&r, (enum format)f, ROWS, s.n_columns, s.scale_columns);
            for (int k = 0; k < ROWS / 2; k++) { /* every other row has one such block */
                const uint32_t n_blocks = (uint32_t)(s.n_columns / info->block_columns), i_block = base_rng_below(&r, n_blocks);
                unsigned char *row = rows + (size_t)(2 * k) * kern_format_row_bytes((enum format)f, s.n_columns), *block = row + i_block * info->block_bytes;
                if (t_is_joined((enum format)f)) /* in both blocks that share scales, where there is a second */
                    for (uint32_t i = i_block & ~1u; i < (i_block | 1) + 1 && i < n_blocks; i++)
                        memcpy(row + i * info->block_bytes + (info->has_minimum && k >= 8 ? 4 : 0), &floats[k % 8], 4);
                else if (f == FMT_MXFP4 || f == FMT_NVFP4)
                    block[f == FMT_NVFP4 ? base_rng_below(&r, 4) : 0] = bytes[k % 8];
                else
                    memcpy(block + (f == FMT_Q6_K ? 208 : info->has_minimum && k >= 8 ? 2 : 0), &halves[k % 8], 2);
            }
            float *want[2] = {NULL, NULL};
            int n_nan = 0, n_numbers = 0;
            for (int i = 0; i < 2; i++) { /* a cut: leaves 0–2, 3–7 */
                struct kern_matrix m;
                matrix_open(&m, &kern_ref, (enum format)f, a, &s, i ? 3 : 0, i ? 8 : 3, rows, ROWS);
                want[i] = product(&kern_ref, &m, x + (i ? cut : 0), s.n_columns, 2, NULL, 1);
                for (const struct kern_backend *const *b = kern_backends(); *b; b++) {
                    struct kern_matrix mine;
                    if (!t_kernels_on(*b))
                        continue;
                    matrix_open(&mine, *b, (enum format)f, a, &s, i ? 3 : 0, i ? 8 : 3, rows, ROWS);
                    for (int n = 1; n <= 2; n++) {
                        float *y = product(*b, &mine, x + (i ? cut : 0), s.n_columns, n, NULL, 1);
                        for (uint32_t v = 0; v < mine.columns.n_vectors; v++)
                            expect_same(*b, &s, (enum format)f, a, "corners of scales", n, y + (size_t)v * (size_t)n * ROWS, ROWS, want[i] + (size_t)v * 2 * ROWS, ROWS, ROWS);
                        t_guard_free(y);
                    }
                    matrix_close(&mine);
                }
                for (size_t k = 0; k < (size_t)m.columns.n_vectors * 2 * ROWS; k++)
                    isnan(want[i][k]) ? n_nan++ : n_numbers++;
                matrix_close(&m);
                t_guard_free(want[i]);
            }
            assert_true(n_numbers > 0 && (n_nan > 0 || f == FMT_NVFP4 || f == FMT_MXFP4));
            free(rows);
        }
    free(x);
}

/* Activations with corners: zeroes, subnormals, huge values, ties of the rounding */
static void corners_of_int8(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    struct shape s = one_leaf("corners", 256);
    float x[256] = {0};
    for (int i = 32; i < 64; i++)
        x[i] = 1e-41f * (float)(i - 48);
    for (int i = 64; i < 96; i++)
        x[i] = 1e30f * (float)(i - 80);
    for (int i = 96; i < 128; i++)
        x[i] = i == 96 ? 127.0f : (float)(i - 112) + 0.5f; /* d = 1: every other is a tie */
    for (int i = 128; i < 160; i++)
        x[i] = -0.0f;
    x[170] = 1e-45f;
    for (int i = 192; i < 256; i++)
        x[i] = base_rng_normal(&r);
    for (int f = 0; f < FMT_COUNT; f++) {
        const enum kern_activation a = kern_activation_for((enum format)f, false);
        if (a == KERN_ACT_F32)
            continue;
        unsigned char *rows = make_rows(&r, (enum format)f, 16, 256, 32);
        float *want = NULL;
        for (const struct kern_backend *const *b = kern_backends();; b++) { /* ref first, then all */
            const struct kern_backend *backend = want ? *b : &kern_ref;
            if (!backend)
                break;
            if ((want && !t_kernels_on(backend)) || !backend->supports(KERN_OP_MATMUL, (enum format)f, a, 0))
                continue;
            struct kern_matrix m;
            matrix_open(&m, backend, (enum format)f, a, &s, 0, 1, rows, 16);
            float *y = product(backend, &m, x, 256, 1, NULL, 1);
            matrix_close(&m);
            if (!want) {
                want = y;
                b--;
                continue;
            }
            expect_same(backend, &s, (enum format)f, a, "corners", 1, y, 16, want, 16, 16);
            t_guard_free(y);
        }
        t_guard_free(want);
        free(rows);
    }
}

/* Memory is planned by matrix_bytes: what the byte tables of kernels/cpu/matmul_priv.h say, heads for each scale_columns that a rank has a part of. */
static void packed_bytes(void **state) {
    (void)state;
    static const struct {
        enum format format;
        size_t tile, head;
    } formats[] = {{FMT_FP8, 528, 64}, {FMT_INT4, 256, 64}, {FMT_INT4_ZERO, 256, 128}, {FMT_INT8, 512, 64}, {FMT_INT8_ZERO, 512, 128}, {FMT_NVFP4, 288, 0}};
    const struct shape s = by_heads("8 heads of 80", 8, 80);
    for (const struct kern_backend *const *b = kern_backends(); *b; b++)
        for (size_t i = 0; i < sizeof formats / sizeof *formats && *b != &kern_ref; i++) {
            struct kern_matrix m = {.format = formats[i].format, .activation = KERN_ACT_F32, .n_rows = 33, .scale = 1};
            uint32_t begins[32];
            uint8_t widths[32];
            kern_columns_init(&m.columns, 80, s.leaf_end + 1, 1, 4, s.n_leaves, begins, widths); /* columns 80–319, three segments a leaf */
            assert_int_equal(m.columns.n_segments, 9);
            for (m.scale_columns = 32; m.scale_columns <= 128; m.scale_columns *= 2) {
                const size_t n_heads = m.scale_columns == 32 ? 8 : m.scale_columns == 64 ? 4 : 3;
                assert_int_equal((*b)->matrix_bytes(&m), 3 * (9 * formats[i].tile + n_heads * formats[i].head));
            }
            m.n_rows = 0;
            m.scale_columns = 64;
            assert_int_equal((*b)->matrix_bytes(&m), 0);
        }
}

/* Leaves, folds and vectors against the recursion of specs/order_of_sums.py, for all ranges of up to 32 leaves */
static int spell(char *text, uint32_t lo, uint32_t hi, uint32_t a, uint32_t b, bool inside) {
    if (hi <= a || b <= lo)
        return 0;
    uint32_t m = a + (b - a + 1) / 2;
    bool whole = lo <= a && b <= hi;
    int n = 0;
    if (b - a == 1)
        n += sprintf(text + n, "%u", a);
    else {
        n += spell(text + n, lo, hi, a, m, whole || inside);
        n += spell(text + n, lo, hi, m, b, whole || inside);
        if (whole)
            n += sprintf(text + n, "+");
    }
    if (whole && !inside)
        n += sprintf(text + n, "!");
    return n;
}

static void columns_fold_like_the_tree(void **state) {
    (void)state;
    for (uint32_t total = 1; total <= KERN_MAX_LEAVES; total++)
        for (uint32_t lo = 0; lo <= total; lo++)
            for (uint32_t hi = lo; hi <= total; hi++) {
                struct kern_columns c;
                uint32_t begins[200];
                uint8_t widths[200];
                uint64_t ends[KERN_MAX_LEAVES];
                for (uint32_t i = 0; i < hi - lo; i++)
                    ends[i] = (uint64_t)(lo + i + 1) * 45;
                kern_columns_init(&c, (uint64_t)lo * 45, ends, lo, hi, total, begins, widths);
                /* segments tile the columns, respect leaves and the grid of 32 */
                assert_true(c.n_segments <= kern_columns_max_segments(c.end - c.begin, hi - lo));
                uint64_t at = c.begin;
                for (uint32_t leaf = 0; leaf < c.n_leaves; leaf++) {
                    for (uint32_t s = c.leaf_segment[leaf]; s < c.leaf_segment[leaf + 1]; s++) {
                        assert_int_equal(begins[s], at - c.begin);
                        assert_true(widths[s] >= 1 && at / 32 == (at + widths[s] - 1) / 32);
                        at += widths[s];
                    }
                    assert_int_equal(at, ends[leaf]);
                }
                assert_int_equal(at, c.end);
                char want[1024] = "", got[1024] = "";
                spell(want, lo, hi, 0, total, false);
                int n = 0, depth = 0;
                uint32_t n_vectors = 0;
                for (uint32_t leaf = 0; leaf < c.n_leaves; leaf++) {
                    n += sprintf(got + n, "%u", lo + leaf);
                    depth++;
                    for (int f = 0; f < c.n_folds[leaf]; f++, depth--)
                        n += sprintf(got + n, "+");
                    if (c.emit[leaf]) {
                        n += sprintf(got + n, "!");
                        depth--;
                        n_vectors++;
                    }
                    assert_true(depth >= 0 && depth <= 6);
                }
                assert_int_equal(depth, 0);
                assert_int_equal(n_vectors, c.n_vectors);
                assert_string_equal(got, want);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_fold_like_the_tree), cmocka_unit_test(same_bits_for_tokens_rows_threads), cmocka_unit_test(same_bits_one_by_one),
        cmocka_unit_test(same_bits_for_any_cut),      cmocka_unit_test(several_parts),                     cmocka_unit_test(corners_of_int8),
        cmocka_unit_test(ref_against_double),         cmocka_unit_test(embedding),                         cmocka_unit_test(corners_of_scales),
        cmocka_unit_test(packed_bytes),      cmocka_unit_test(same_bits_in_any_order),
    };
    return cmocka_run_group_tests(tests, expect_all, forget_all);
}
