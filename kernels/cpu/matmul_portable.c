/* The product's kernels in plain C: for machines without a variant of their own, and to be read beside the fast ones, whose order of operations this is.
 * Inner loops run over the 16 rows of a tile, which a compiler turns into vectors where the machine has a fused multiply-add. A segment is decoded once for
 * all tokens of a group. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_priv.h"
#include "kernels/cpu/ops_priv.h"

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = KERN_TILE_ROWS };

/* ---- a tile as numbers ---------------------------------------------------------------------------------------------------------------------------- */

struct decoded {
    int8_t q[32][ROWS]; /* from −128 on */
    float d[2][ROWS], m[ROWS];
};

/* f is a constant wherever this is inlined. */
INLINE void decode(const enum format f, const uint8_t *tile, const uint8_t *head, struct decoded *to) {
    for (uint32_t place = 0; place < KERN_SEGMENT; place++)
        for (uint32_t r = 0; r < ROWS; r++) to->q[place][r] = (int8_t)cpu_q_at(f, tile, r, place);
    for (uint32_t r = 0; r < ROWS; r++) {
        to->d[0][r] = cpu_scale_at(f, tile, head, r, 0);
        to->d[1][r] = cpu_halves(f) == 2 ? cpu_scale_at(f, tile, head, r, 1) : to->d[0][r];
        to->m[r] = cpu_has_min(f) ? cpu_min_at(f, tile, head, r) : 0;
    }
}

/* ---- one segment ---------------------------------------------------------------------------------------------------------------------------------- */

/* Σ q·qw over n places from `begin` on. */
static void dot_of(const struct decoded *w, const int8_t *q, int begin, int n, int32_t dot[ROWS]) {
    for (int r = 0; r < ROWS; r++) dot[r] = 0;
    for (int i = begin; i < begin + n; i++)
        for (int r = 0; r < ROWS; r++) dot[r] += w->q[i][r] * q[i];
}


INLINE void segment_int8(const enum format f, const struct decoded *w, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    const int8_t *q = (const int8_t *)record + 32 * t;
    const uint8_t *tail = record + 32 * n_tokens + 4 * t;
    int32_t dot[ROWS];
    for (int h = 0; h < cpu_halves(f); h++) {
        dot_of(w, q, 16 * h, cpu_halves(f) == 2 ? 16 : 32, dot);
        float d = cpu_float_at(tail + 4 * n_tokens * h);
        for (int r = 0; r < ROWS; r++) acc[r] = fmaf((float)dot[r], w->d[h][r] * d, acc[r]);
    }
    if (!cpu_has_min(f)) return;
    float d_sum = cpu_float_at(tail + 4 * n_tokens);
    for (int r = 0; r < ROWS; r++) acc[r] = fmaf(w->m[r], d_sum, acc[r]);
}

/* acc += w · x of one place. */
static inline void column(const float w[ROWS], const uint8_t *record, int n_tokens, int t, int place, float acc[ROWS]) {
    float x = cpu_float_at(record + 4 * ((size_t)place * (size_t)n_tokens + (size_t)t));
    for (int r = 0; r < ROWS; r++) acc[r] = fmaf(w[r], x, acc[r]);
}

INLINE void weights_f32(const enum format f, const uint8_t *tile, const uint8_t *head, float w[32][ROWS]) {
    if (f == FMT_F32) {
        memcpy(w, tile, sizeof(float) * 32 * ROWS);
        return;
    }
    if (f == FMT_F16 || f == FMT_BF16) {
        for (int i = 0; i < 32; i++)
            for (int r = 0; r < ROWS; r++) {
                uint16_t number;
                memcpy(&number, tile + ((size_t)i * ROWS + (size_t)r) * 2, 2);
                w[i][r] = f == FMT_F16 ? kern_f16_to_f32(number) : kern_bf16_to_f32(number);
            }
        return;
    }
    if (f == FMT_FP8) {
        for (uint32_t i = 0; i < 32; i++)
            for (uint32_t r = 0; r < ROWS; r++) w[i][r] = cpu_float_at(head + 4 * r) * cpu_e4m3_at(tile + (size_t)i * ROWS + r);
        return;
    }
    struct decoded all;
    decode(f, tile, head, &all);
    for (int i = 0; i < 32; i++)
        for (int r = 0; r < ROWS; r++) {
            float product = all.d[i / 16][r] * (float)all.q[i][r];
            w[i][r] = cpu_has_min(f) ? product + all.m[r] : product;
        }
}

/* ---- whole row tiles ------------------------------------------------------------------------------------------------------------------------------ */

/* The end of leaf i: push, fold, perhaps emit the tile's vector for token t. Returns the new depth. */
static int fold(const struct cpu_rows *a, size_t row, int t, uint32_t i_leaf, const float acc[ROWS], float stack[CPU_STACK][ROWS], int depth, uint32_t i_vector) {
    const struct kern_columns *c = &a->matrix->columns;
    for (int r = 0; r < ROWS; r++) stack[depth][r] = acc[r] * a->matrix->scale;
    depth++;
    for (int n = c->n_folds[i_leaf]; n > 0; n--, depth--)
        for (int r = 0; r < ROWS; r++) stack[depth - 2][r] = stack[depth - 2][r] + stack[depth - 1][r];
    if (c->emit[i_leaf]) {
        size_t n_rows = a->n_rows - row < ROWS ? a->n_rows - row : ROWS;
        depth--;
        for (size_t r = 0; r < n_rows && a->bias; r++) stack[depth][r] = stack[depth][r] + a->bias[row + r];
        if (a->to.sums) {
            float *to = a->to.sums + row / ROWS * a->to.tile_stride + (size_t)a->to.token[t] * a->to.token_stride + i_vector * ROWS;
            for (int r = 0; r < ROWS; r++) to[r] = fmaf(a->to.weight[t], stack[depth][r], to[r]);
        } else {
            memcpy(a->y + i_vector * a->vector_stride + (size_t)t * a->y_stride + row, stack[depth], n_rows * sizeof(float));
        }
    }
    return depth;
}

INLINE void walk(const struct cpu_rows *a, const enum format f, const bool is_int8) {
    const struct kern_columns *c = &a->matrix->columns;
    const size_t token_bytes = cpu_token_bytes(!is_int8 ? KERN_ACT_F32 : cpu_halves(f) == 2 ? KERN_ACT_INT8_16 : KERN_ACT_INT8);
    const unsigned head_log2 = cpu_head_log2(f, a->matrix);
    for (size_t row = 0; row < a->n_rows; row += ROWS) {
        const uint8_t *row_tile = a->tiles + row / ROWS * cpu_row_tile_bytes(f, a->matrix), *head = row_tile;
        float stack[CPU_GROUP][CPU_STACK][ROWS];
        int depth = 0;
        uint32_t i_vector = 0;
        for (uint32_t i = 0; i < c->n_leaves; i++) {
            float acc[CPU_GROUP][ROWS] = {{0}};
            for (uint32_t s = c->leaf_segment[i]; s < c->leaf_segment[i + 1]; s++) {
                const uint8_t *tile = row_tile + cpu_tile_at(f, a->matrix, s), *record = a->x + (size_t)s * (size_t)a->n_tokens * token_bytes;
                if (cpu_head_bytes(f) && (s == 0 || cpu_head_of(c, s, head_log2) != cpu_head_of(c, s - 1, head_log2))) head = tile - cpu_head_bytes(f);
                if (is_int8) {
                    struct decoded w;
                    decode(f, tile, head, &w);
                    for (int t = 0; t < a->n_tokens; t++) segment_int8(f, &w, record, a->n_tokens, t, acc[t]);
                } else {
                    float w[32][ROWS];
                    weights_f32(f, tile, head, w);
                    for (int t = 0; t < a->n_tokens; t++)
                        for (int place = 0; place < KERN_SEGMENT; place++) column(w[place], record, a->n_tokens, t, place, acc[t]);
                }
            }
            int new_depth = depth;
            for (int t = 0; t < a->n_tokens; t++) new_depth = fold(a, row, t, i, acc[t], stack[t], depth, i_vector);
            depth = new_depth;
            i_vector += c->emit[i];
        }
    }
}

#define ROWS_INT8(format) \
    static void int8_##format(const struct cpu_rows *a) { walk(a, FMT_##format, true); }
#define ROWS_F32(format) \
    static void f32_##format(const struct cpu_rows *a) { walk(a, FMT_##format, false); }
CPU_INT8(ROWS_INT8)
CPU_QUANTISED(ROWS_F32)
CPU_PLAIN(ROWS_F32)

/* ---- quantising activations --------------------------------------------------------------------------------------------------------------------- */

/* d = amax / 127, q = nearest even of x / d, clamped (a subnormal d may be rounded down far enough for x / d to pass 127). A block that is all zero, or so
 * small that d is 0, has q = 0; one with an infinity or a NaN has q = 0 and d = NaN, so that the outputs say so. */
static struct cpu_scale quantise(const float *x, size_t n, int8_t *q) {
    uint32_t amax_bits = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        if (bits > amax_bits) amax_bits = bits;
    }
    memset(q, 0, n);
    if (amax_bits >= 0x7f800000) return (struct cpu_scale){NAN, NAN, 0};
    float amax;
    memcpy(&amax, &amax_bits, 4);
    float d = amax / 127.0f;
    if (d == 0.0f) return (struct cpu_scale){0, 0, 0};
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        float rounded = x[i] / d + 12582912.0f - 12582912.0f; /* 1.5·2²³: to the nearest even integer */
        int32_t v = (int32_t)rounded;
        v = v > 127 ? 127 : v < -127 ? -127 : v;
        q[i] = (int8_t)v;
        sum += v;
    }
    return (struct cpu_scale){d, d * (float)sum, -128 * sum};
}

const struct cpu_matmul cpu_matmul_portable = {
    .int8 = {CPU_INT8(CPU_INT8_ENTRY)},
    .f32 = {CPU_QUANTISED(CPU_F32_ENTRY) CPU_PLAIN(CPU_F32_ENTRY)},
    .quantise = quantise,
    .fold = cpu_fold_portable,
};
