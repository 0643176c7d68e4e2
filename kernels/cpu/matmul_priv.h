/* Products on the CPU: how weights and activations lie in memory, and what a variant provides.
 *
 * Weights: tiles of 16 rows × one segment (≤ 32 columns), in the order [row tile][segment], so that one row tile is one stream. One SIMD lane is one output
 * row, so an output's sum never crosses lanes and has one order whatever the number of tokens. A column's place in its tile is its place in its block of 32 of
 * the tensor, also where a leaf cuts the block. Places without a column and rows that the matrix lacks hold the number zero.
 *
 * A quantised tile is codes, then scales. Codes are whole numbers ≥ 0, the weight's q plus a bias:
 *   nibbles   4 × 64 bytes: byte [q][row][b] = place 4q + b (low nibble) and place 16 + 4q + b (high nibble)
 *   5th bits  64 bytes: bit q of byte [row][b] = place 4q + b                                     (after the nibbles; Q5_0, Q5_1, Q5_K)
 *   5th, 6th  2 × 64 bytes: bits 2q, 2q + 1 of byte [h][row][b] = place 16h + 4q + b              (after the nibbles; Q6_K)
 *   bytes     8 × 64: byte [q][row][b] = place 4q + b                                             (Q8_0, INT8, FP8)
 * What several tiles have in common stands in a head before the first of them here: of a K-quant's super-block of 256 columns, or of kern_matrix.scale_columns.
 * So a row tile is [head][tile]…[tile][head][tile]…, where the columns of a rank may begin and end inside a super-block. A matrix takes no more than the file
 * but for Q4_K and Q5_K (6-bit scales become bytes) and for F32 scales that the file has in fewer bytes or for more columns (÷ codes and an F16 scale for each
 * 128 columns; in brackets: bytes at 32, 64, 128 columns):
 *            bias  codes  scales (× 16 rows)   head (× 16 rows)    tile + share of the head ÷ file
 *   Q4_0        8    256  F16 d                                    288          1
 *   Q4_1        0    256  F16 d, F16 m                             320          1
 *   Q5_0       16    320  F16 d                                    352          1
 *   Q5_1        0    320  F16 d, F16 m                             384          1
 *   Q8_0      128    512  F16 d                                    544          1
 *   Q4_K        0    256  u8 sc, u8 mn         F16 d, F16 −dmin    288 + 8      1.03
 *   Q5_K        0    320  u8 sc, u8 mn         F16 d, F16 −dmin    352 + 8      1.02
 *   Q6_K       32    384  2 × int8 sc          F16 d               416 + 4      1
 *   MXFP4      16    256  u8 e                                     272          1      nibbles are E2M1 codes; the bias is that of twice their values
 *   NVFP4      16    256  2 × E4M3                                 288          1      the same; a scale of 0x7f, which means 0, is stored as 0
 *   INT4        8    256                       F32 d               256 + (64, 32, 16)  1.03
 *   INT4_ZERO   0    256                       F32 d, F32 m        256 + (128, 64, 32) 1.08   (÷ zero points of 4 bits, too)
 *   INT8      128    512                       F32 d               512 + (64, 32, 16)  1.02
 *   INT8_ZERO 128    512                       F32 d, F32 m        512 + (128, 64, 32) 1.04   (÷ zero points of 8 bits, too)
 *   FP8         128  512    u8 E4M3           F32 256·d / 127     528 + (64, 32, 16)  1.06   int8 of the segment's largest, E4M3 without sign; ÷ the codes alone
 *               with activations in F32:       F32 256·d                                     [place][row] of E4M3; nothing in the scales
 * Plain numbers: F16, BF16 1024 bytes, F32 2048: [place][row].
 *
 * Activations (scratch of matmul_prepare): tokens in groups of 8, the last group may be smaller; in a group of n tokens each segment is one record, and the
 * records of a group are contiguous, so that a kernel with a constant n reads one stream with constant offsets:
 *   int8:    n × 32 int8 q [token][place] · n F32 d · n F32 d·Σq · n int32 −128·Σq                          (44 bytes a token)
 *   int8_16: n × 32 int8 q [token][place] · 2 × n F32 d [half][token] · 2 × n int32 −128·Σq [half][token]   (48 bytes a token)
 *   F32:     32 × n F32 [place][token]                                                                       (128 bytes a token)
 * Three areas, each on a multiple of 64; prepare fills those that some part of the product reads.
 *
 * The order of an output's sum, in every variant: acc = +0 at the start of a leaf, then for each of its segments
 *   int8:    acc = fma(dot, dw·d, acc), dot the exact integer Σ q·qw converted to F32; a format with a minimum then acc = fma(m, d·Σq, acc)
 *   int8_16: acc = fma(dot, dw·d, acc) for places 0–15, then for places 16–31, each with its own dw and d
 *   F32:     acc = fma(w, x, acc) place by place, w = dw·q or dw·q + m (two roundings where d is F32, else dw·q is exact), places without a column with q = 0
 *            and x = 0; FP8: w = (256·d)·(code / 256)
 * where dw is the F16 or F32 d, d·sc (exact), (256·d / 127)·(E4M3 / 256), 2^(e−128) or half of the E4M3, and m the F16 or F32 m or −dmin·mn (exact); and after the leaf acc · the
 * matrix's scale goes into the fold of struct kern_columns; with a bias, sum + bias. */
#ifndef KERNELS_CPU_MATMUL_PRIV_H
#define KERNELS_CPU_MATMUL_PRIV_H

#include <string.h>

#include "base/status.h"
#include "kernels/kernels.h"
#include "kernels/tree.h"

enum {
    CPU_GROUP = 8, /* tokens taken together: 8 accumulators, 8 integer sums, 8 registers of weights fit in 32 registers */
    CPU_STACK = KERN_TREE_STACK
};

/* ---- layout: all of these are constants where the format is one ------------------------------------------------------------------------------------ */

/* A token's share of a record. */
static inline size_t cpu_token_bytes(enum kern_activation a) { return a == KERN_ACT_F32 ? 128 : a == KERN_ACT_INT8 ? 44 : 48; }

static inline int cpu_high_bits(enum format f) { return f == FMT_Q5_0 || f == FMT_Q5_1 || f == FMT_Q5_K ? 1 : f == FMT_Q6_K ? 2 : 0; }
static inline bool cpu_is_e2m1(enum format f) { return f == FMT_MXFP4 || f == FMT_NVFP4; }
static inline bool cpu_is_super(enum format f) { return f == FMT_Q4_K || f == FMT_Q5_K || f == FMT_Q6_K; }
static inline bool cpu_is_int8(enum format f) { /* FP8: where activations are */
    return f == FMT_Q8_0 || f == FMT_INT8 || f == FMT_INT8_ZERO || f == FMT_FP8;
}
static inline bool cpu_is_joined(enum format f) { /* F32 d and m, once for scale_columns */
    return f == FMT_FP8 || f == FMT_INT4 || f == FMT_INT4_ZERO || f == FMT_INT8 || f == FMT_INT8_ZERO;
}
static inline bool cpu_has_min(enum format f) {
    return f == FMT_Q4_1 || f == FMT_Q5_1 || f == FMT_Q4_K || f == FMT_Q5_K || f == FMT_INT4_ZERO || f == FMT_INT8_ZERO;
}
/* 2: KERN_ACT_INT8_16. */
static inline int cpu_halves(enum format f) { return f == FMT_Q6_K || f == FMT_NVFP4 ? 2 : 1; }
/* log2 of the bias; −1: none. */
static inline int cpu_bias_log2(enum format f) {
    return cpu_is_int8(f) ? 7 : f == FMT_Q6_K ? 5 : f == FMT_Q5_0 || cpu_is_e2m1(f) ? 4 : f == FMT_Q4_0 || f == FMT_INT4 ? 3 : -1;
}
static inline int cpu_bias(enum format f) { return cpu_bias_log2(f) < 0 ? 0 : 1 << cpu_bias_log2(f); }
/* Where the scales begin. */
static inline size_t cpu_codes_bytes(enum format f) { return cpu_is_int8(f) ? 512 : 256 + 64 * (size_t)cpu_high_bits(f); }
static inline size_t cpu_head_bytes(enum format f) { return (cpu_is_super(f) ? 32 : cpu_is_joined(f) ? 64 : 0) * (cpu_has_min(f) ? 2 : 1); }
/* log2 of the columns that a head is for. */
static inline unsigned cpu_head_log2(enum format f, const struct kern_matrix *m) {
    if (cpu_is_super(f)) return 8;
    return cpu_is_joined(f) ? (unsigned)__builtin_ctz(m->scale_columns) : 0;
}

static inline size_t cpu_tile_bytes(enum format f) {
    switch (f) {
    case FMT_F16:
    case FMT_BF16: return 1024;
    case FMT_F32: return 2048;
    case FMT_FP8:
    case FMT_MXFP4: return cpu_codes_bytes(f) + 16;
    case FMT_Q4_0:
    case FMT_Q5_0:
    case FMT_Q8_0:
    case FMT_Q4_K:
    case FMT_Q5_K:
    case FMT_Q6_K:
    case FMT_NVFP4: return cpu_codes_bytes(f) + 32;
    case FMT_Q4_1:
    case FMT_Q5_1: return cpu_codes_bytes(f) + 64;
    case FMT_INT4:
    case FMT_INT4_ZERO:
    case FMT_INT8:
    case FMT_INT8_ZERO: return cpu_codes_bytes(f);
    case FMT_E4M3: /* of caches only */
    case FMT_COUNT: break;
    }
    return 0;
}

/* Heads before segment s's. */
static inline size_t cpu_head_of(const struct kern_columns *c, uint32_t s, unsigned head_log2) {
    return (size_t)(((c->begin + c->segment_begin[s]) >> head_log2) - (c->begin >> head_log2));
}

static inline size_t cpu_row_tile_bytes(enum format f, const struct kern_matrix *m) {
    const struct kern_columns *c = &m->columns;
    if (c->n_segments == 0) return 0;
    return c->n_segments * cpu_tile_bytes(f) + (cpu_head_of(c, c->n_segments - 1, cpu_head_log2(f, m)) + 1) * cpu_head_bytes(f);
}

/* Segment s's tile in its row tile; its head is before the first tile that has the same. */
static inline size_t cpu_tile_at(enum format f, const struct kern_matrix *m, uint32_t s) {
    return s * cpu_tile_bytes(f) + (cpu_head_of(&m->columns, s, cpu_head_log2(f, m)) + 1) * cpu_head_bytes(f);
}

/* ---- single numbers out of a tile, for embeddings and plain C --------------------------------------------------------------------------------------- */

static inline float cpu_half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return kern_f16_to_f32(h);
}

static inline float cpu_float_at(const uint8_t *p) {
    float f;
    memcpy(&f, p, 4);
    return f;
}

/* An E4M3 with another exponent: an F16 of 2^8 times less. */
static inline float cpu_e4m3_at(const uint8_t *p) { return kern_f16_to_f32((uint16_t)((*p & 0x80) << 8 | (*p & 0x7f) << 7)); }

static const int8_t cpu_e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* q of a place: without the bias. */
static inline int cpu_q_at(enum format f, const uint8_t *tile, uint32_t lane, uint32_t place) {
    uint32_t quad = place / 4, at = lane * 4 + place % 4;
    if (cpu_is_int8(f)) return tile[64 * quad + at] - 128;
    int code = tile[64 * (quad & 3) + at] >> (quad < 4 ? 0 : 4) & 15;
    if (cpu_is_e2m1(f)) return cpu_e2m1_doubled[code];
    if (cpu_high_bits(f) == 1) code |= (tile[256 + at] >> quad & 1) << 4;
    if (cpu_high_bits(f) == 2) code |= (tile[256 + 64 * (quad >> 2) + at] >> 2 * (quad & 3) & 3) << 4;
    return code - cpu_bias(f);
}

/* dw; half: of places 0–15 or 16–31, where they differ. */
static inline float cpu_scale_at(enum format f, const uint8_t *tile, const uint8_t *head, uint32_t lane, int half) {
    const uint8_t *at = tile + cpu_codes_bytes(f);
    if (f == FMT_FP8) return cpu_float_at(head + 4 * lane) * cpu_e4m3_at(at + lane);
    if (cpu_is_joined(f)) return cpu_float_at(head + 4 * lane);
    switch (f) {
    case FMT_Q4_K:
    case FMT_Q5_K: return cpu_half_at(head + 2 * lane) * (float)at[lane];
    case FMT_Q6_K: return cpu_half_at(head + 2 * lane) * (float)(int8_t)at[16 * half + (int)lane];
    case FMT_MXFP4: {
        uint32_t e = at[lane], bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
        float d;
        memcpy(&d, &bits, 4);
        return d;
    }
    case FMT_NVFP4: return kern_f16_to_f32((uint16_t)(at[16 * half + (int)lane] << 7)) * 128.0f;
    default: return cpu_half_at(at + 2 * lane);
    }
}

static inline float cpu_min_at(enum format f, const uint8_t *tile, const uint8_t *head, uint32_t lane) {
    const uint8_t *at = tile + cpu_codes_bytes(f);
    if (cpu_is_joined(f)) return cpu_float_at(head + 64 + 4 * lane);
    if (cpu_is_super(f)) return cpu_half_at(head + 32 + 2 * lane) * (float)at[16 + lane];
    return cpu_half_at(at + 32 + 2 * lane);
}

/* ---- kernels ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Where the vectors of a product go that are added up by token (struct kern_experts_out): sum = fma(weight, vector, sum), in whole tiles of 16 rows. */
struct cpu_sums {
    float *sums; /* [row tile][…][token][…][sum][16], of the first row tile, token 0, vector 0's sum; NULL: vectors are stored */
    size_t tile_stride, token_stride;
    const int32_t *token; /* [n_tokens] of the group */
    const float *weight;  /* likewise */
};

/* One group of tokens times consecutive row tiles of one matrix. */
struct cpu_rows {
    const struct kern_matrix *matrix;
    const uint8_t *tiles; /* of the first row tile */
    const uint8_t *x;     /* the group's first record */
    int n_tokens;         /* 1 … CPU_GROUP */
    size_t n_rows;        /* > 0; the last tile may be short */
    const float *bias;    /* of the first row, or NULL */
    float *y;             /* vector 0, the group's first token, the first row */
    size_t y_stride, vector_stride;
    struct cpu_sums to; /* instead of y */
};

/* The part of int8 preparation that a variant does: one token's block of n columns, 16 or 32. */
struct cpu_scale {
    float d, d_sum;
    int32_t offset; /* −128·Σq */
};

typedef void (*cpu_rows_fn)(const struct cpu_rows *rows);

/* Lists for tables and instances: X(format) for each. */
#define CPU_PLAIN(X) X(F16) X(BF16) X(F32) X(FP8)
#define CPU_QUANTISED(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K) X(MXFP4) X(NVFP4) X(INT4) X(INT4_ZERO) X(INT8) X(INT8_ZERO)
#define CPU_INT8(X) CPU_QUANTISED(X) X(FP8)
#define CPU_INT8_ENTRY(format) [FMT_##format] = int8_##format,
#define CPU_F32_ENTRY(format) [FMT_##format] = f32_##format,

/* What a variant provides. */
struct cpu_matmul {
    cpu_rows_fn int8[FMT_COUNT]; /* KERN_ACT_INT8 or KERN_ACT_INT8_16, as the format has it; NULL: neither */
    cpu_rows_fn f32[FMT_COUNT];
    struct cpu_scale (*quantise)(const float *x, size_t n, int8_t *q);
    void (*fold)(const struct kern_experts_out *args, float *sums, size_t token, size_t row); /* cpu_fold_… of ops_priv.h */
};

extern const struct cpu_matmul cpu_matmul_portable;
#if defined(__x86_64__)
extern const struct cpu_matmul cpu_matmul_avx2, cpu_matmul_avx512;
#endif

/* ---- records ---------------------------------------------------------------------------------------------------------------------------------------- */

/* The three areas in scratch for as many tokens as there are, and which of them are wanted. */
struct cpu_records {
    const struct kern_columns *columns;
    uint8_t *area[3];
    bool needs[3];
};

/* n ≤ CPU_GROUP tokens whose records begin with token `first`'s: x[token[t]], or x[t]. */
struct cpu_group {
    size_t first;
    int n;
    const float *x;
    size_t x_stride;
    const int32_t *token; /* or NULL */
};

size_t cpu_records_bytes(const struct kern_columns *columns, size_t n_tokens);
struct cpu_records cpu_records_at(void *scratch, const struct kern_columns *columns, size_t n_tokens);
/* Marks what a product with m reads. */
void cpu_records_need(struct cpu_records *r, const struct kern_matrix *m);
/* Where a group's records for m begin, by its first token. */
const uint8_t *cpu_records_of(const struct cpu_records *r, const struct kern_matrix *m, size_t first);
void cpu_records_put(const struct cpu_matmul *m, const struct cpu_records *r, const struct cpu_group *g, size_t segment_lo, size_t segment_hi);

/* ---- products --------------------------------------------------------------------------------------------------------------------------------------- */

/* A matrix times tokens whose records stand one group after another. */
struct cpu_product {
    const struct kern_matrix *matrix;
    const uint8_t *x; /* the first group's records */
    size_t n_tokens;
    const float *bias; /* of row 0, or NULL */
    float *y;          /* of vector 0, the first token, row 0 */
    size_t y_stride, vector_stride;
    struct cpu_sums to; /* instead of y: of the first row tile that runs, and of the first token */
};

static inline size_t cpu_tiles(size_t n_rows) { return (n_rows + KERN_TILE_ROWS - 1) / KERN_TILE_ROWS; }
static inline size_t cpu_groups(size_t n_tokens) { return (n_tokens + CPU_GROUP - 1) / CPU_GROUP; }
/* A thread's share of n things. */
static inline void cpu_share(size_t n, struct kern_queue q, size_t *lo, size_t *hi) {
    *lo = n * (size_t)q.i_thread / (size_t)q.n_threads;
    *hi = n * ((size_t)q.i_thread + 1) / (size_t)q.n_threads;
}
/* Groups whose records stay in the second-level cache while row tiles pass over them. */
size_t cpu_block_groups(const struct kern_columns *columns, bool is_f32);
/* Row tiles [tile_lo, tile_hi), for tokens of groups [group_lo, group_hi). */
void cpu_product_run(const struct cpu_matmul *m, const struct cpu_product *p, size_t tile_lo, size_t tile_hi, size_t group_lo, size_t group_hi);

size_t cpu_matrix_bytes(const struct kern_matrix *m);
void cpu_matrix_pack(const struct kern_pack *args);
size_t cpu_matmul_scratch_bytes(const struct kern_columns *columns, int n_tokens);
void cpu_matmul_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_matmul *args);
void cpu_matmul_run(const struct cpu_matmul *m, struct kern_queue q, const struct kern_matmul *args);
size_t cpu_experts_scratch_bytes(const struct kern_columns *columns, int n_slots, int n_tokens, int n_sums, int n_threads);
void cpu_experts_in_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_in *args);
void cpu_experts_in_run(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_in *args);
void cpu_experts_out_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_out *args);
void cpu_experts_out_run(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_out *args);
void cpu_embed(struct kern_queue q, const struct kern_embed *args);

#endif
