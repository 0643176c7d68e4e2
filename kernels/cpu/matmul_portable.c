/* The product's kernels in plain C: for machines without a variant of their own, and to be read beside the fast ones, whose order of operations this is.
 * Inner loops run over the 16 rows of a tile, which a compiler turns into vectors where the machine has a fused multiply-add. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_priv.h"

enum { ROWS = KERN_TILE_ROWS };

static void load_f16(const uint8_t *from, float to[ROWS]) {
    for (int r = 0; r < ROWS; r++) {
        uint16_t h;
        memcpy(&h, from + 2 * r, 2);
        to[r] = kern_f16_to_f32(h);
    }
}

/* The end of leaf i: push, fold, perhaps emit the tile's vector for token t. Returns the new depth. */
static int fold(const struct cpu_rows *a, size_t row, int t, uint32_t i_leaf, const float acc[ROWS], float stack[CPU_STACK][ROWS], int depth,
                uint32_t *i_vector) {
    const struct kern_columns *c = a->columns;
    memcpy(stack[depth++], acc, sizeof stack[0]);
    for (int n = c->n_folds[i_leaf]; n > 0; n--, depth--)
        for (int r = 0; r < ROWS; r++) stack[depth - 2][r] = stack[depth - 2][r] + stack[depth - 1][r];
    if (c->emit[i_leaf]) {
        float *y = a->y + (*i_vector)++ * a->vector_stride + (size_t)t * a->y_stride + row;
        size_t n_rows = a->n_rows - row < ROWS ? a->n_rows - row : ROWS;
        depth--;
        for (size_t r = 0; r < n_rows; r++) y[r] = a->bias ? stack[depth][r] + a->bias[row + r] : stack[depth][r];
    }
    return depth;
}

/* ---- int8 activations --------------------------------------------------------------------------------------------------------------------------- */

static void int8_q4_1(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    const int8_t *q = (const int8_t *)record + 32 * t;
    int32_t dot[ROWS] = {0};
    for (int quad = 0; quad < 4; quad++)
        for (int r = 0; r < ROWS; r++)
            for (int b = 0; b < 4; b++) {
                uint8_t both = tile[64 * quad + 4 * r + b];
                dot[r] += (both & 15) * q[4 * quad + b] + (both >> 4) * q[16 + 4 * quad + b];
            }
    float dw[ROWS], mw[ROWS], d, d_sum;
    load_f16(tile + 256, dw);
    load_f16(tile + 288, mw);
    memcpy(&d, record + 32 * n_tokens + 4 * t, 4);
    memcpy(&d_sum, record + 36 * n_tokens + 4 * t, 4);
    for (int r = 0; r < ROWS; r++) acc[r] = fmaf(mw[r], d_sum, fmaf((float)dot[r], dw[r] * d, acc[r]));
}

static void int8_q8_0(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    const int8_t *q = (const int8_t *)record + 32 * t;
    int32_t dot[ROWS] = {0};
    for (int quad = 0; quad < 8; quad++)
        for (int r = 0; r < ROWS; r++)
            for (int b = 0; b < 4; b++) dot[r] += (tile[64 * quad + 4 * r + b] - 128) * q[4 * quad + b];
    float dw[ROWS], d;
    load_f16(tile + 512, dw);
    memcpy(&d, record + 32 * n_tokens + 4 * t, 4);
    for (int r = 0; r < ROWS; r++) acc[r] = fmaf((float)dot[r], dw[r] * d, acc[r]);
}

typedef void (*segment_fn)(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]);

static inline __attribute__((always_inline)) void walk(const struct cpu_rows *a, size_t tile_bytes, size_t token_bytes, segment_fn segment) {
    const struct kern_columns *c = a->columns;
    for (size_t row = 0; row < a->n_rows; row += ROWS)
        for (int t = 0; t < a->n_tokens; t++) {
            float stack[CPU_STACK][ROWS];
            int depth = 0;
            uint32_t i_vector = 0;
            for (uint32_t i = 0; i < c->n_leaves; i++) {
                float acc[ROWS] = {0};
                for (uint32_t s = c->leaf_segment[i]; s < c->leaf_segment[i + 1]; s++)
                    segment(a->tiles + (row / ROWS * c->n_segments + s) * tile_bytes, a->x + (size_t)s * (size_t)a->n_tokens * token_bytes,
                            a->n_tokens, t, acc);
                depth = fold(a, row, t, i, acc, stack, depth, &i_vector);
            }
        }
}

static void rows_int8_q4_1(const struct cpu_rows *a) { walk(a, cpu_tile_bytes(FMT_Q4_1), CPU_INT8_BYTES, int8_q4_1); }
static void rows_int8_q8_0(const struct cpu_rows *a) { walk(a, cpu_tile_bytes(FMT_Q8_0), CPU_INT8_BYTES, int8_q8_0); }

/* ---- F32 activations ---------------------------------------------------------------------------------------------------------------------------- */

/* acc += w · x of one column. */
static inline void column(const float w[ROWS], const uint8_t *record, int n_tokens, int t, int i_column, float acc[ROWS]) {
    float x;
    memcpy(&x, record + 4 * ((size_t)i_column * (size_t)n_tokens + (size_t)t), 4);
    for (int r = 0; r < ROWS; r++) acc[r] = fmaf(w[r], x, acc[r]);
}

static void f32_q4_1(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    float d[ROWS], m[ROWS], w[ROWS];
    load_f16(tile + 256, d);
    load_f16(tile + 288, m);
    for (int i = 0; i < KERN_SEGMENT; i++) {
        const uint8_t *from = tile + (i & 15) / 4 * 64 + i % 4;
        for (int r = 0; r < ROWS; r++) w[r] = d[r] * (float)(from[4 * r] >> (i < 16 ? 0 : 4) & 15) + m[r];
        column(w, record, n_tokens, t, i, acc);
    }
}

static void f32_q8_0(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    float d[ROWS], w[ROWS];
    load_f16(tile + 512, d);
    for (int i = 0; i < KERN_SEGMENT; i++) {
        for (int r = 0; r < ROWS; r++) w[r] = d[r] * (float)(tile[i / 4 * 64 + i % 4 + 4 * r] - 128);
        column(w, record, n_tokens, t, i, acc);
    }
}

static void f32_f16(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    float w[ROWS];
    for (int i = 0; i < KERN_SEGMENT; i++) {
        load_f16(tile + (size_t)i * 2 * ROWS, w);
        column(w, record, n_tokens, t, i, acc);
    }
}

static void f32_bf16(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    float w[ROWS];
    for (int i = 0; i < KERN_SEGMENT; i++) {
        for (int r = 0; r < ROWS; r++) {
            uint16_t b;
            memcpy(&b, tile + ((size_t)i * ROWS + (size_t)r) * 2, 2);
            w[r] = kern_bf16_to_f32(b);
        }
        column(w, record, n_tokens, t, i, acc);
    }
}

static void f32_f32(const uint8_t *tile, const uint8_t *record, int n_tokens, int t, float acc[ROWS]) {
    float w[ROWS];
    for (int i = 0; i < KERN_SEGMENT; i++) {
        memcpy(w, tile + (size_t)i * sizeof w, sizeof w);
        column(w, record, n_tokens, t, i, acc);
    }
}

static void rows_f32_q4_1(const struct cpu_rows *a) { walk(a, cpu_tile_bytes(FMT_Q4_1), CPU_F32_BYTES, f32_q4_1); }
static void rows_f32_q8_0(const struct cpu_rows *a) { walk(a, cpu_tile_bytes(FMT_Q8_0), CPU_F32_BYTES, f32_q8_0); }
static void rows_f32_f16(const struct cpu_rows *a) { walk(a, cpu_tile_bytes(FMT_F16), CPU_F32_BYTES, f32_f16); }
static void rows_f32_bf16(const struct cpu_rows *a) { walk(a, cpu_tile_bytes(FMT_BF16), CPU_F32_BYTES, f32_bf16); }
static void rows_f32_f32(const struct cpu_rows *a) { walk(a, cpu_tile_bytes(FMT_F32), CPU_F32_BYTES, f32_f32); }

/* ---- quantising activations --------------------------------------------------------------------------------------------------------------------- */

/* d = amax / 127, q = nearest even of x / d, clamped (a subnormal d may be rounded down far enough for x / d to pass 127). A segment that is all zero, or so
 * small that d is 0, has q = 0; one with an infinity or a NaN has q = 0 and d = NaN, so that the outputs say so. */
static struct cpu_scale quantise(const float *x, int n, int8_t *q) {
    uint32_t amax_bits = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        if (bits > amax_bits) amax_bits = bits;
    }
    memset(q, 0, 32);
    if (amax_bits >= 0x7f800000) return (struct cpu_scale){NAN, NAN, 0};
    float amax;
    memcpy(&amax, &amax_bits, 4);
    float d = amax / 127.0f;
    if (d == 0.0f) return (struct cpu_scale){0, 0, 0};
    int32_t sum = 0;
    for (int i = 0; i < n; i++) {
        float rounded = x[i] / d + 12582912.0f - 12582912.0f; /* 1.5·2²³: to the nearest even integer */
        int32_t v = (int32_t)rounded;
        v = v > 127 ? 127 : v < -127 ? -127 : v;
        q[i] = (int8_t)v;
        sum += v;
    }
    return (struct cpu_scale){d, d * (float)sum, -128 * sum};
}

const struct cpu_matmul cpu_matmul_portable = {
    .int8 = {[FMT_Q4_1] = rows_int8_q4_1, [FMT_Q8_0] = rows_int8_q8_0},
    .f32 = {[FMT_Q4_1] = rows_f32_q4_1, [FMT_Q8_0] = rows_f32_q8_0, [FMT_F16] = rows_f32_f16, [FMT_BF16] = rows_f32_bf16, [FMT_F32] = rows_f32_f32},
    .quantise = quantise,
};
