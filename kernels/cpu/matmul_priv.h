/* Products on the CPU: how weights and activations lie in memory, and what a variant provides.
 *
 * Weights: tiles of 16 rows × one segment (≤ 32 columns), in the order [row tile][segment], so that one row tile is one stream. One SIMD lane is one output
 * row, so an output's sum never crosses lanes and has one order whatever the number of tokens. Columns that a segment lacks and rows that the matrix
 * lacks are zero. Tile bytes:
 *   Q4_1      320   4 × 64: byte [q][row][b] = column 4q + b (low nibble) and column 16 + 4q + b (high nibble); then 16 F16 d, 16 F16 m
 *   Q8_0      544   8 × 64: byte [q][row][b] = column 4q + b, as q xor 0x80 (unsigned, offset 128); then 16 F16 d
 *   F16/BF16 1024   [column][row]
 *   F32      2048   [column][row]
 *
 * Activations (scratch of matmul_prepare): tokens in groups of 8, the last group may be smaller; in a group of n tokens each segment is one record, and the
 * records of a group are contiguous, so that a kernel with a constant n reads one stream with constant offsets:
 *   int8: n × 32 int8 q [token][column] · n F32 d · n F32 d·Σq · n int32 −128·Σq         (44 bytes a token)
 *   F32:  32 × n F32 [column][token]                                                      (128 bytes a token)
 * The int8 area lies first, the F32 area after it on the next multiple of 64; prepare fills those that some part of the product reads.
 *
 * The order of an output's sum, in every variant: acc = +0 at the start of a leaf, then for each of its segments
 *   int8: acc = fma(dot, dw·d, acc), dot the exact integer Σ q·qw converted to F32; Q4_1 then acc = fma(m, d·Σq, acc)
 *   F32:  acc = fma(w, x, acc) column by column, w = dq or fma(q, d, m) (dq is exact), the 32 − n missing columns with w = x = 0
 * and after the leaf the fold of struct kern_columns; with a bias, sum + bias. */
#ifndef KERNELS_CPU_MATMUL_PRIV_H
#define KERNELS_CPU_MATMUL_PRIV_H

#include "kernels/kernels.h"
#include "kernels/tree.h"

enum {
    CPU_GROUP = 8,       /* tokens taken together: 8 accumulators, 8 integer sums, 8 registers of weights fit in 32 registers */
    CPU_INT8_BYTES = 44, /* a token's share of a record */
    CPU_F32_BYTES = 128,
    CPU_STACK = KERN_TREE_STACK
};

static inline size_t cpu_tile_bytes(enum format f) {
    switch (f) {
    case FMT_Q4_1: return 320;
    case FMT_Q8_0: return 544;
    case FMT_F16:
    case FMT_BF16: return 1024;
    case FMT_F32: return 2048;
    case FMT_COUNT: break;
    }
    return 0;
}

/* One group of tokens times consecutive row tiles of one matrix. */
struct cpu_rows {
    const struct kern_columns *columns;
    const uint8_t *tiles; /* of the first row tile */
    const uint8_t *x;     /* the group's first record */
    int n_tokens;         /* 1 … CPU_GROUP */
    size_t n_rows;        /* > 0; the last tile may be short */
    const float *bias;    /* of the first row, or NULL */
    float *y;             /* vector 0, the group's first token, the first row */
    size_t y_stride, vector_stride;
};

/* The part of int8 preparation that a variant does: one token's segment of n ≤ 32 columns. q: 32 bytes, zero beyond n. */
struct cpu_scale {
    float d, d_sum;
    int32_t offset; /* −128·Σq */
};

typedef void (*cpu_rows_fn)(const struct cpu_rows *rows);

/* Chooses among a format's ACT_FORMAT_1 … ACT_FORMAT_8, one for each number of tokens. */
#define BY_TOKENS(act, format)                                                                                                                       \
    static void act##_##format(const struct cpu_rows *a) {                                                                                           \
        static const cpu_rows_fn by_tokens[CPU_GROUP + 1] = {NULL,                                                                                   \
                                                             act##_##format##_1,                                                                     \
                                                             act##_##format##_2,                                                                     \
                                                             act##_##format##_3,                                                                     \
                                                             act##_##format##_4,                                                                     \
                                                             act##_##format##_5,                                                                     \
                                                             act##_##format##_6,                                                                     \
                                                             act##_##format##_7,                                                                     \
                                                             act##_##format##_8};                                                                    \
        by_tokens[a->n_tokens](a);                                                                                                                   \
    }

/* What a variant provides. */
struct cpu_matmul {
    cpu_rows_fn int8[FMT_COUNT]; /* NULL where the format has no int8 product */
    cpu_rows_fn f32[FMT_COUNT];
    struct cpu_scale (*quantise)(const float *x, int n, int8_t *q);
};

extern const struct cpu_matmul cpu_matmul_portable;
#if defined(__x86_64__)
extern const struct cpu_matmul cpu_matmul_avx2, cpu_matmul_avx512;
#endif

size_t cpu_matrix_bytes(enum format format, enum kern_activation activation, uint64_t n_rows, const struct kern_columns *columns);
void cpu_matrix_pack(const struct kern_pack *args);
size_t cpu_matmul_scratch_bytes(const struct kern_columns *columns, int n_tokens);
void cpu_matmul_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_matmul *args);
void cpu_matmul_run(const struct cpu_matmul *m, struct kern_queue q, const struct kern_matmul *args);
void cpu_embed(struct kern_queue q, const struct kern_embed *args);

#endif
