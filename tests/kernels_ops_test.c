/* Conformance of the small ops: every backend against `ref`, to the bit, with odd widths, strides with gaps, guarded outputs and one to three threads;
 * and `ref` against what the op means. Selection of a backend by name. */
#include "tests/t.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "base/math.h"
#include "kernels/ref/ref.h"
#include "tests/t_kernels.h"

#define FOR_BACKENDS(b, op)                                                             \
    for (const struct kern_backend *const *b = kern_backends(); *b; b++)                \
        if (t_kernels_on(*b) && (*b)->supports((op), FMT_F32, KERN_ACT_F32, 64))

/* Runs the op by thread in turn, the last first. */
#define RUN(fn, args, n_threads)                                  \
    for (int i_ = (n_threads)-1; i_ >= 0; i_--)                   \
        (fn)((struct kern_queue){i_, (n_threads)}, (args))

static void expect_same(const char *op, const struct kern_backend *b, const float *got, const float *want, size_t n, int width, int n_threads) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(got + i, want + i, sizeof *got) != 0)
            fail_msg("%s by %s/%s, width %d, %d threads: element %d is %.9g, expected %.9g", op, b->name, b->variant, width, n_threads, (int)i, (double)got[i],
                     (double)want[i]);
}

static const int widths[] = {1, 5, 15, 16, 17, 33, 64, 100, 576};
enum { N_WIDTHS = sizeof widths / sizeof widths[0] };

/* A guarded copy; outputs begin as a copy of what was there, so that untouched gaps compare equal. */
static float *guarded(const float *x, size_t n) {
    float *y = t_guard_alloc(n * sizeof *y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

static void norm(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int w = 0; w < N_WIDTHS; w++)
        for (int n_tokens = 0; n_tokens <= 4; n_tokens++) {
            int width = widths[w];
            size_t stride = (size_t)width + 3, n = stride * (size_t)(n_tokens ? n_tokens : 1);
            float *x = random_floats(&r, n, 3), *weight = random_floats(&r, (size_t)width, 1), *want = guarded(x, n);
            struct kern_norm args = {x, weight, want, stride, stride, n_tokens, width, 1e-5f, NULL, 0};
            RUN(kern_ref.norm, &args, 1);
            for (int t = 0; t < n_tokens; t++) {
                double mean = 0;
                for (int i = 0; i < width; i++)
                    mean += (double)x[(size_t)t * stride + (size_t)i] * (double)x[(size_t)t * stride + (size_t)i] / width;
                for (int i = 0; i < width; i++) {
                    size_t at = (size_t)t * stride + (size_t)i;
                    double y = (double)x[at] / sqrt(mean + (double)1e-5f) * (double)weight[i];
                    assert_true(fabs((double)want[at] - y) <= 1e-6 * (fabs(y) + 1e-3));
                }
            }
            FOR_BACKENDS(b, KERN_OP_NORM)
                for (int n_threads = 1; n_threads <= 3; n_threads++)
                    for (int in_place = 0; in_place < 2; in_place++) {
                        float *y = guarded(x, n);
                        args.x = in_place ? y : x;
                        args.y = y;
                        RUN((*b)->norm, &args, n_threads);
                        expect_same("norm", *b, y, want, n, width, n_threads);
                        t_guard_free(y);
                    }
            t_guard_free(want);
            free(x);
            free(weight);
        }
}

/* Heads of a row one by one; then a norm of half the row with the squares of the whole is that half of the whole's norm. */
static void squares(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    enum { TOKENS = 3, HEADS = 6 };
    static const int dims[] = {1, 15, 16, 40, 128};
    for (size_t k = 0; k < sizeof dims / sizeof dims[0]; k++) {
        const int dim = dims[k], width = HEADS * dim;
        const size_t all = HEADS * (size_t)dim, stride = all + 3, n = stride * TOKENS, n_out = TOKENS * (2 * HEADS + 1);
        float *x = random_floats(&r, n, 3), *weight = random_floats(&r, all, 1), *zero = calloc(n_out, sizeof *zero), *want = guarded(zero, n_out);
        struct kern_squares args = {x, stride, TOKENS, HEADS, dim, want, 2 * HEADS + 1, 2};
        RUN(kern_ref.squares, &args, 1);
        float sums[TOKENS] = {0};
        for (int t = 0; t < TOKENS; t++)
            for (int h = 0; h < HEADS; h++) {
                double sum = 0;
                for (int i = 0; i < dim; i++)
                    sum += (double)x[(size_t)t * stride + (size_t)(h * dim + i)] * (double)x[(size_t)t * stride + (size_t)(h * dim + i)];
                assert_true(fabs((double)want[t * (2 * HEADS + 1) + 2 * h] - sum) <= 1e-6 * sum);
                sums[t] += want[t * (2 * HEADS + 1) + 2 * h];
            }
        float *normed = guarded(x, n);
        struct kern_norm half = {x + width / 2, weight + width / 2, normed + width / 2, stride, stride, TOKENS, width - width / 2, 1e-5f, sums, width};
        RUN(kern_ref.norm, &half, 1);
        for (int t = 0; t < TOKENS; t++)
            for (int i = width / 2; i < width; i++) {
                const size_t at = (size_t)t * stride + (size_t)i;
                const double y = (double)x[at] / sqrt((double)sums[t] / width + 1e-5) * (double)weight[i];
                assert_true(fabs((double)normed[at] - y) <= 1e-6 * (fabs(y) + 1e-3));
            }
        FOR_BACKENDS(b, KERN_OP_SQUARES)
            for (int n_threads = 1; n_threads <= 3; n_threads++) {
                float *out = guarded(zero, n_out), *y = guarded(x, n);
                args.out = out;
                RUN((*b)->squares, &args, n_threads);
                expect_same("squares", *b, out, want, n_out, dim, n_threads);
                half.y = y + width / 2;
                RUN((*b)->norm, &half, n_threads);
                expect_same("norm of a part", *b, y, normed, n, width, n_threads);
                t_guard_free(out);
                t_guard_free(y);
            }
        t_guard_free(want);
        t_guard_free(normed);
        free(x);
        free(weight);
        free(zero);
    }
}

static void rope(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    static const int dims[] = {2, 24, 64, 80, 128};
    for (size_t k = 0; k < 5; k++)
        for (int partial = 0; partial < 2; partial++)
            for (int interleaved = 0; interleaved < 2; interleaved++) {
                enum { TOKENS = 3, HEADS = 5 };
                int dim = dims[k], n_frequencies = partial ? (dim + 3) / 4 : dim / 2;
                size_t stride = (size_t)(HEADS * dim) + 7, n = stride * TOKENS, n_table = (size_t)(TOKENS * 2 * n_frequencies);
                double *frequency = malloc(sizeof(double) * (size_t)n_frequencies);
                for (int i = 0; i < n_frequencies; i++)
                    frequency[i] = base_math_pow(10000.0, -2.0 * i / (2 * n_frequencies));
                static const int32_t position[TOKENS] = {0, 4711, 1000003};
                float *x = random_floats(&r, n, 1), *zero = calloc(n_table, sizeof *zero), *table = guarded(zero, n_table), *want = guarded(x, n);
                struct kern_rope_table table_args = {position, TOKENS, n_frequencies, frequency, 1.25, table};
                struct kern_rope args = {want, stride, TOKENS, HEADS, dim, n_frequencies, interleaved, table};
                RUN(kern_ref.rope_table, &table_args, 1);
                RUN(kern_ref.rope, &args, 1);
                for (int t = 0; t < TOKENS; t++)
                    for (int i = 0; i < n_frequencies; i++) {
                        double angle = (double)position[t] * frequency[i], c = cos(angle) * 1.25, s = sin(angle) * 1.25;
                        assert_true(fabs((double)table[t * 2 * n_frequencies + i] - c) <= 1e-7);
                        assert_true(fabs((double)table[t * 2 * n_frequencies + n_frequencies + i] - s) <= 1e-7);
                        size_t a = (size_t)t * stride + (size_t)(2 * dim) + (size_t)(interleaved ? 2 * i : i);
                        size_t b = a + (size_t)(interleaved ? 1 : n_frequencies);
                        assert_true(fabs((double)want[a] - ((double)x[a] * c - (double)x[b] * s)) <= 2e-6);
                        assert_true(fabs((double)want[b] - ((double)x[b] * c + (double)x[a] * s)) <= 2e-6);
                    }
                FOR_BACKENDS(b, KERN_OP_ROPE)
                    for (int n_threads = 1; n_threads <= 3; n_threads++) {
                        float *y = guarded(x, n), *own = guarded(zero, n_table);
                        table_args.cos_sin = own;
                        args.cos_sin = own;
                        args.x = y;
                        RUN((*b)->rope_table, &table_args, n_threads);
                        RUN((*b)->rope, &args, n_threads);
                        expect_same("rope-table", *b, own, table, n_table, dim, n_threads);
                        expect_same("rope", *b, y, want, n, dim, n_threads);
                        t_guard_free(y);
                        t_guard_free(own);
                    }
                t_guard_free(table);
                t_guard_free(want);
                free(x);
                free(zero);
                free(frequency);
            }
}

/* Ops that multiply x in place: by a number for each token, or for each column. */
static void run_in_place(const struct kern_backend *b, enum kern_op op, float *x, size_t stride, int n_tokens, int width, const float *by, int n_threads) {
    const struct kern_row_gate gate = {x, stride, n_tokens, width, by};
    const struct kern_column_scale scale = {x, stride, n_tokens, width, by};
    if (op == KERN_OP_ROW_GATE)
        RUN(b->row_gate, &gate, n_threads);
    else
        RUN(b->column_scale, &scale, n_threads);
}

static void in_place(enum kern_op op) {
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int w = 0; w < N_WIDTHS; w++)
        for (int n_tokens = 0; n_tokens <= 4; n_tokens++) {
            const size_t stride = (size_t)widths[w] + 3, n = stride * (size_t)(n_tokens ? n_tokens : 1);
            const bool gates = op == KERN_OP_ROW_GATE;
            float *x = random_floats(&r, n, 3), *by = gates ? random_floats(&r, 5, 20) : random_floats(&r, (size_t)widths[w] + 1, 2), *want = guarded(x, n);
            run_in_place(&kern_ref, op, want, stride, n_tokens, widths[w], by, 1);
            for (int t = 0; t < n_tokens; t++)
                for (int i = 0; i < widths[w]; i++) {
                    const size_t at = (size_t)t * stride + (size_t)i;
                    if (gates)
                        assert_true(fabs((double)want[at] - (double)x[at] / (1 + exp(-(double)by[t]))) <= 1e-6 * fabs((double)x[at]));
                    else
                        assert_true(want[at] == (float)((double)x[at] * (double)by[i]));
                }
            FOR_BACKENDS(b, op)
                for (int n_threads = 1; n_threads <= 3; n_threads++) {
                    float *y = guarded(x, n);
                    run_in_place(*b, op, y, stride, n_tokens, widths[w], by, n_threads);
                    expect_same(kern_op_name(op), *b, y, want, n, widths[w], n_threads);
                    t_guard_free(y);
                }
            t_guard_free(want);
            free(x);
            free(by);
        }
}

static void row_gate(void **state) {
    (void)state;
    in_place(KERN_OP_ROW_GATE);
}

static void column_scale(void **state) {
    (void)state;
    in_place(KERN_OP_COLUMN_SCALE);
}

static double gate_in_double(const struct kern_gate *args, double g, double u) {
    if (args->kind == KERN_GATE_SILU)
        return g / (1 + exp(-g)) * u;
    g = fmin(g, (double)args->limit);
    u = fmax(fmin(u, (double)args->limit), -(double)args->limit);
    return (u + 1) * g / (1 + exp(-(double)args->alpha * g));
}

static void gate(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int w = 0; w < N_WIDTHS * 2; w++)
        for (int n_tokens = 0; n_tokens <= 4; n_tokens += 2) {
            const bool clamped = w >= N_WIDTHS;
            int width = widths[w % N_WIDTHS];
            size_t stride = (size_t)width + 1, n = stride * (size_t)(n_tokens ? n_tokens : 1);
            float *g = random_floats(&r, n, clamped ? 5 : 30), *up = random_floats(&r, n, clamped ? 5 : 1), *want = guarded(up, n);
            g[0] = 100;
            g[n - 1] = -100;
            struct kern_gate args = {g, up, want, stride, stride, stride, n_tokens, width, clamped ? KERN_GATE_CLAMPED : KERN_GATE_SILU, 1.702f, 7};
            RUN(kern_ref.gate, &args, 1);
            for (size_t i = 0; i < n && n_tokens; i++)
                if (i % stride < (size_t)width) {
                    double y = gate_in_double(&args, (double)g[i], (double)up[i]);
                    assert_true(fabs((double)want[i] - y) <= 1e-6 * (clamped ? fabs(y) + 1e-3 * fabs((double)g[i]) : fabs(y)) + 1e-35);
                }
            FOR_BACKENDS(b, KERN_OP_GATE)
                for (int n_threads = 1; n_threads <= 3; n_threads++) {
                    float *y = guarded(up, n);
                    args.up = args.y = y; /* in place */
                    RUN((*b)->gate, &args, n_threads);
                    expect_same("gate", *b, y, want, n, width, n_threads);
                    t_guard_free(y);
                }
            args.up = up;
            t_guard_free(want);
            free(g);
            free(up);
        }
}

/* A number that is none goes through both clamps, whoever computes. */
static void gate_nan(void **state) {
    (void)state;
    FOR_BACKENDS(b, KERN_OP_GATE) {
        float g[] = {NAN, 1, INFINITY, -INFINITY}, up[] = {1, NAN, 1, -INFINITY}, y[4];
        struct kern_gate args = {g, up, y, 4, 4, 4, 1, 4, KERN_GATE_CLAMPED, 1.702f, 7};
        RUN((*b)->gate, &args, 1);
        assert_true(isnan(y[0]));
        assert_true(isnan(y[1]));
        assert_true(y[2] > 13.9f && y[2] <= 14.0f); /* (1 + 1) · 7 */
        assert_true(isnan(y[3]));                   /* −∞ · 0 */
    }
}

/* Random cuts of the tree into complete nodes; the result must not depend on the cut. */
static int cut_node(struct base_rng *r, struct kern_sum *s, uint32_t a, uint32_t b, int n) {
    if (b - a == 1 || base_rng_below(r, 3) == 0) {
        s->vector_lo[n] = (uint8_t)a;
        s->vector_hi[n] = (uint8_t)b;
        return n + 1;
    }
    uint32_t m = a + (b - a + 1) / 2;
    return cut_node(r, s, m, b, cut_node(r, s, a, m, n));
}

static float tree_value(float *const *leaves, size_t at, uint32_t a, uint32_t b) {
    if (b - a == 1)
        return leaves[a][at];
    uint32_t m = a + (b - a + 1) / 2;
    float left = tree_value(leaves, at, a, m), right = tree_value(leaves, at, m, b);
    return left + right;
}

static void sum(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int round = 0; round < 60; round++) {
        int width = widths[round % N_WIDTHS], n_tokens = 1 + round % 4;
        uint32_t n_leaves = 1 + base_rng_below(&r, KERN_MAX_LEAVES);
        size_t stride = (size_t)width + 2, n = stride * (size_t)n_tokens;
        float *leaves[KERN_MAX_LEAVES];
        for (uint32_t i = 0; i < n_leaves; i++)
            leaves[i] = random_floats(&r, n, 1 + 1000.0f * (float)(i % 3));
        float *residual = round % 2 ? random_floats(&r, n, 1) : NULL, *bias = round % 3 ? random_floats(&r, n, 1) : NULL;
        struct kern_sum args = {.residual = residual, .residual_stride = stride, .bias = bias, .bias_stride = round % 5 == 4 ? stride : 0, .vector_token_stride = stride, .n_leaves = n_leaves,
                                .y_stride = stride, .n_tokens = n_tokens, .width = width};
        args.n_vectors = cut_node(&r, &args, 0, n_leaves, 0);
        float *vectors[KERN_MAX_VECTORS], *want = guarded(leaves[0], n);
        for (int v = 0; v < args.n_vectors; v++) {
            args.vectors[v] = vectors[v] = malloc(n * sizeof(float));
            for (size_t i = 0; i < n; i++)
                vectors[v][i] = tree_value(leaves, i, args.vector_lo[v], args.vector_hi[v]);
        }
        for (size_t i = 0; i < n; i++)
            if (i % stride < (size_t)width) {
                want[i] = tree_value(leaves, i, 0, n_leaves);
                if (bias)
                    want[i] = want[i] + bias[args.bias_stride ? i : i % stride];
                if (residual)
                    want[i] = residual[i] + want[i];
            }
        FOR_BACKENDS(b, KERN_OP_SUM)
            for (int n_threads = 1; n_threads <= 3; n_threads++) {
                float *y = guarded(leaves[0], n);
                args.y = y;
                RUN((*b)->sum, &args, n_threads);
                expect_same("sum", *b, y, want, n, width, n_threads);
                t_guard_free(y);
            }
        t_guard_free(want);
        for (uint32_t i = 0; i < n_leaves; i++)
            free(leaves[i]);
        for (int v = 0; v < args.n_vectors; v++)
            free(vectors[v]);
        free(residual);
        free(bias);
    }
}

static int by_value(const void *a, const void *b) {
    const struct kern_candidate *x = a, *y = b;
    return x->value > y->value ? -1 : x->value < y->value ? 1 : x->id < y->id ? -1 : x->id > y->id;
}

static void topk(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    static const int ks[] = {1, 2, 7, 40, 200};
    for (int round = 0; round < 40; round++) {
        int width = round % 4 == 3 ? 5000 : widths[round % N_WIDTHS], k = ks[round % 5], n_rows = 1 + round % 3;
        size_t stride = (size_t)width + 1;
        float *x = random_floats(&r, stride * (size_t)n_rows, 2);
        for (size_t i = 0; i < stride * (size_t)n_rows; i++) { /* many ties, some NaN and infinities */
            x[i] = round % 2 ? rintf(x[i]) : x[i];
            uint32_t odd = base_rng_below(&r, 40);
            x[i] = odd == 0 ? NAN : odd == 1 ? -INFINITY : x[i];
        }
        FOR_BACKENDS(b, KERN_OP_TOPK)
            for (int n_threads = 1; n_threads <= 3; n_threads++) {
                struct kern_candidate *out = t_guard_alloc(sizeof *out * (size_t)(n_rows * k)), *want = malloc(sizeof *want * (size_t)width);
                struct kern_topk args = {x, stride, n_rows, width, k, 1000, out};
                RUN((*b)->topk, &args, n_threads);
                for (int row = 0; row < n_rows; row++) {
                    for (int i = 0; i < width; i++) {
                        float v = x[(size_t)row * stride + (size_t)i];
                        want[i] = (struct kern_candidate){v == v ? v : -INFINITY, 1000 + i};
                    }
                    qsort(want, (size_t)width, sizeof *want, by_value);
                    for (int i = 0; i < k; i++) {
                        struct kern_candidate c = i < width ? want[i] : (struct kern_candidate){-INFINITY, -1};
                        if (out[row * k + i].id != c.id || out[row * k + i].value != c.value)
                            fail_msg("top-k by %s/%s: row %d, place %d is %d (%.9g), expected %d (%.9g)", (*b)->name, (*b)->variant, row, i,
                                     out[row * k + i].id, (double)out[row * k + i].value, c.id, (double)c.value);
                    }
                }
                free(want);
                t_guard_free(out);
            }
        free(x);
    }
}

static struct kern_sampled sample_with(const struct kern_backend *b, struct kern_sample args, int n_threads) {
    struct kern_sampled *out = t_guard_alloc(sizeof *out * (size_t)n_threads), best;
    args.out = out;
    RUN(b->sample, &args, n_threads);
    best = out[0];
    for (int i = 1; i < n_threads; i++)
        if (out[i].id >= 0 && (best.id < 0 || out[i].value > best.value || (out[i].value == best.value && out[i].id < best.id)))
            best = out[i];
    t_guard_free(out);
    return best;
}

static void sample(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    static const float temperatures[] = {0, 1, 0.7f, 2, 100, 0.01f, 1e-30f, 1e30f};
    static const float sizes[] = {0, 0.1f, 3, 10, 1000};
    for (int round = 0; round < 120; round++) {
        int width = round % 3 == 2 ? 20011 : widths[round % N_WIDTHS];
        float *x = random_floats(&r, (size_t)width, sizes[round % 5]);
        for (int i = 0; i < width && round % 7 == 0; i++)
            x[i] = base_rng_below(&r, 3) ? x[i] : base_rng_below(&r, 2) ? NAN : -INFINITY;
        if (round == 49 || round == 50)
            for (int i = 0; i < width; i++)
                x[i] = round == 49 ? -INFINITY : NAN;
        struct kern_sample args = {x, width, 100000, temperatures[round % 8], 0x123456789abcdefull * (uint64_t)round, (uint32_t)round * 77, (uint32_t)round % 3, NULL};
        /* ---- the definition, with libm */
        struct kern_sampled want = sample_with(&kern_ref, args, 1);
        double best = -INFINITY;
        int32_t best_id = -1;
        for (int i = 0; i < width; i++) {
            if (!isfinite(x[i]))
                continue;
            uint32_t counter[4] = {(uint32_t)(100000 + i), args.position, args.draw, 0}, key[2] = {(uint32_t)args.seed, (uint32_t)(args.seed >> 32)}, word[4];
            base_philox4x32(counter, key, word);
            double value = args.temperature > 0 ? (double)x[i] / (double)args.temperature - log(-log(base_unit_open(word[0]))) : (double)x[i];
            if (best_id < 0 || value > best) {
                best = value;
                best_id = 100000 + i;
            }
        }
        assert_int_equal(want.id, best_id);
        assert_true(best_id < 0 || fabs(want.value - best) <= 1e-12 * fabs(best) + 1e-12);
        FOR_BACKENDS(b, KERN_OP_SAMPLE)
            for (int n_threads = 1; n_threads <= 3; n_threads++) {
                struct kern_sampled got = sample_with(*b, args, n_threads);
                if (got.id != want.id || (want.id >= 0 && (got.value != want.value || got.logit != want.logit)))
                    fail_msg("sample by %s/%s, width %d, temperature %g: id %d (%.17g), expected %d (%.17g)", (*b)->name, (*b)->variant, width,
                             (double)args.temperature, got.id, got.value, want.id, want.value);
            }
        free(x);
    }
}

static void log_sum_exp(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int round = 0; round < 30; round++) {
        enum { SLICES = 32, ROWS = 2 };
        int width = round < 20 ? 1 + round * 7 : 20011;
        size_t stride = (size_t)width + 5;
        float *x = random_floats(&r, stride * ROWS, round % 2 ? 1 : 20);
        if (round == 7)
            for (int i = 0; i < width; i++)
                x[i] = -INFINITY;
        uint32_t begin[SLICES + 1];
        for (uint64_t i = 0; i <= SLICES; i++)
            begin[i] = (uint32_t)(i * (uint64_t)width / SLICES);
        float want_max[ROWS * SLICES], want_sum[ROWS * SLICES];
        struct kern_lse args = {x, stride, ROWS, SLICES, begin, want_max, want_sum};
        RUN(kern_ref.lse, &args, 1);
        for (int row = 0; row < ROWS; row++) {
            double direct = 0, merged = kern_lse_merge(want_max + row * SLICES, want_sum + row * SLICES, SLICES);
            for (int i = 0; i < width; i++)
                direct += exp((double)x[(size_t)row * stride + (size_t)i]);
            if (direct == 0)
                assert_true(merged == -(double)INFINITY);
            else
                assert_true(fabs(merged - log(direct)) <= 1e-5);
        }
        FOR_BACKENDS(b, KERN_OP_LSE)
            for (int n_threads = 1; n_threads <= 3; n_threads++) {
                float *max = t_guard_alloc(sizeof want_max), *total = t_guard_alloc(sizeof want_sum);
                args.max = max;
                args.sum = total;
                RUN((*b)->lse, &args, n_threads);
                expect_same("log-sum-exp, max", *b, max, want_max, ROWS * SLICES, width, n_threads);
                expect_same("log-sum-exp, sum", *b, total, want_sum, ROWS * SLICES, width, n_threads);
                t_guard_free(max);
                t_guard_free(total);
            }
        free(x);
    }
}

static void selection(void **state) {
    (void)state;
    const struct kern_backend *b = NULL;
    struct err e = {0};
    unsetenv("TANDEM_KERNELS");
    T_OK(kern_select("ref", &b, &e), &e);
    assert_ptr_equal(b, &kern_ref);
    T_OK(kern_select(NULL, &b, &e), &e);
    assert_string_equal(b->name, "cpu");
    T_OK(kern_select("cpu/portable", &b, &e), &e);
    assert_string_equal(b->variant, "portable");
    setenv("TANDEM_KERNELS", "ref/scalar", 1);
    T_OK(kern_select(NULL, &b, &e), &e);
    assert_ptr_equal(b, &kern_ref);
    T_OK(kern_select("cpu", &b, &e), &e); /* a name that was typed goes before the environment */
    assert_string_equal(b->name, "cpu");
    t_expect_err_contains(ST_NOT_FOUND, kern_select("gpu", &b, &e), &e, "'gpu'");
    t_expect_err_contains(ST_NOT_FOUND, kern_select("cpu/mmx", &b, &e), &e, "cpu/portable");
    unsetenv("TANDEM_KERNELS");
    for (int op = 0; op < KERN_OP_COUNT; op++)
        assert_true(strlen(kern_op_name((enum kern_op)op)) > 2);
    assert_int_equal(kern_activation_for(FMT_Q4_1, false), KERN_ACT_INT8);
    assert_int_equal(kern_activation_for(FMT_Q4_1, true), KERN_ACT_F32);
    assert_int_equal(kern_activation_for(FMT_BF16, false), KERN_ACT_F32);
    /* every backend that runs here is complete: a missing op would be found at load, but then nothing would run */
    for (const struct kern_backend *const *all = kern_backends(); *all; all++)
        for (int op = 0; op < KERN_OP_COUNT && t_kernels_on(*all); op++)
            if (!(*all)->supports((enum kern_op)op, FMT_F16, KERN_ACT_F32, 64))
                fail_msg("%s/%s lacks %s", (*all)->name, (*all)->variant, kern_op_name((enum kern_op)op));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm), cmocka_unit_test(squares), cmocka_unit_test(row_gate), cmocka_unit_test(column_scale), cmocka_unit_test(rope),   cmocka_unit_test(gate),        cmocka_unit_test(gate_nan), cmocka_unit_test(sum),
        cmocka_unit_test(topk), cmocka_unit_test(sample), cmocka_unit_test(log_sum_exp), cmocka_unit_test(selection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
