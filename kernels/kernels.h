/* Arithmetic on one rank: the table of backends and ops.
 *
 * A backend (ref, cpu; cuda later) is a table of functions, one per op, each taking (queue, args struct). On a CPU every thread of the rank calls the op
 * with its own queue {i_thread, n_threads}; the op does that thread's share and returns; the caller puts a barrier between ops (base_pool_barrier).
 * Args are read only; outputs of different threads never overlap. Nothing allocates, blocks, fails or reads a clock: everything is validated when the
 * program is bound (kern_supports) so that hot code is plain.
 *
 * Units: widths, rows, columns count elements; strides count elements of the pointed-to type unless their name says bytes. All activations are F32,
 * row-major [tokens, width] with an explicit stride.
 *
 * The law (DESIGN, "The order of sums"): one order per output element in every kernel of a backend, whatever n_tokens, n_threads, rank count or tile an element
 * falls into. Compiled without contraction and fast-math; fused multiply-adds are explicit; exp, log, sin, cos are ours (base/math.h). */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/formats.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kern_queue {
    int i_thread;
    int n_threads;
};

/* ---- matrices ---------------------------------------------------------------------------------------------------------------------------------- */

enum kern_activation {
    KERN_ACT_F32, /* dequantise weights to F32, multiply in F32: the accurate setting of every format, the only one of F32, F16, BF16 */
    KERN_ACT_INT8,   /* activations quantised to int8 in blocks of 32 anchored at column 0 of the tensor: d = amax / 127 (F32), q = round to nearest even (x / d) */
    KERN_ACT_INT8_16, /* the same in blocks of 16: for formats whose scales cover 16 columns (Q6_K, NVFP4) */
    KERN_ACT_BF16    /* activations and weights as BF16, F32 sums of 16 columns at a time: by matrix instructions, in no backend of a CPU */
};

#define KERN_TILE_ROWS 16
#define KERN_SEGMENT 32
#define KERN_MAX_LEAVES 32
#define KERN_MAX_VECTORS 32

/* The columns [begin, end) of a tensor that this rank holds, divided twice: into leaves (the order of sums) and into segments of at most 32 columns, each
 * inside one leaf and inside one block of 32 anchored at column 0 of the whole tensor. A product without a cut dimension is one leaf and one vector.
 * After the last segment of leaf i its sum is pushed on a stack; then n_folds[i] times the two topmost sums are added (earlier + later); then, if emit[i],
 * the top is popped into the next output vector. So a rank that owns leaves lo…hi−1 yields its maximal complete subtrees, left to right. */
struct kern_columns {
    uint64_t begin, end; /* in columns of the whole tensor; begin == end: an empty shard */
    uint32_t n_segments;
    uint32_t n_leaves;                         /* local */
    uint32_t n_vectors;                        /* local */
    uint32_t leaf_segment[KERN_MAX_LEAVES + 1]; /* leaf i = segments leaf_segment[i] … leaf_segment[i+1]−1 */
    uint8_t n_folds[KERN_MAX_LEAVES];
    uint8_t emit[KERN_MAX_LEAVES];
    uint32_t *segment_begin; /* [n_segments] column relative to begin; owned by whoever called kern_columns_init (allocated from its arena) */
    uint8_t *segment_columns; /* [n_segments] 1…32 */
    /* A matrix whose columns were put into another order, and padded (act-order): where in x, from this rank's first column on, each lies; −1: nowhere, it is zero. begin is 0, and
     * begin, end and segments count columns in this order. NULL: as they come. */
    const int32_t *order;
};

/* leaf_end[i]: one past the last column of local leaf i, in columns of the whole tensor; lo…hi−1 are the local leaves' global numbers among n_leaves_total.
 * Storage for the two arrays: the caller's, kern_columns_max_segments() elements. */
uint32_t kern_columns_max_segments(uint64_t n_columns, uint32_t n_leaves);
/* n_folds and emit of sums lo…hi−1 of n_total, as of local leaves; returns the number of vectors. */
uint32_t kern_folds_init(uint32_t lo, uint32_t hi, uint32_t n_total, uint8_t *n_folds, uint8_t *emit);
void kern_columns_init(struct kern_columns *c, uint64_t begin, const uint64_t *leaf_end, uint32_t leaf_lo, uint32_t leaf_hi, uint32_t n_leaves_total,
                       uint32_t *segment_begin, uint8_t *segment_columns);

/* A matrix [n_rows, columns] as this rank keeps it: packed by a backend from the file's rows, laid out for that backend. */
struct kern_matrix {
    enum format format;
    enum kern_activation activation;
    uint64_t n_rows; /* local; 0: an empty shard */
    struct kern_columns columns;
    float scale; /* of the whole tensor: each leaf's sum is multiplied by it; 1 where there is none */
    /* FP8, INT4, INT8: so many columns, from a multiple of it on, have equal d and m in each row (32, 64 or 128, FP8 always 128). A backend may store them once. */
    uint32_t scale_columns;
    void *data; /* 64-byte aligned, kern_backend.matrix_bytes() bytes */
};

/* Source rows as they lie in the file (or in a bounce buffer): row i starts at src + i·row_stride_bytes and holds whole blocks from column first_column
 * (of the tensor; a multiple of the format's block_columns, ≤ columns.begin) on, at least up to columns.end. */
struct kern_pack {
    struct kern_matrix *matrix;
    uint64_t row_begin, n_rows; /* rows [row_begin, row_begin + n_rows) of the local matrix; row_begin a multiple of KERN_TILE_ROWS */
    const void *src;
    size_t row_stride_bytes;
    uint64_t first_column;
};

#define KERN_MAX_PARTS 4
/* y[v][t][r] = the v-th subtree sum of x[t]·w[r]: up to four matrices that share one input x and the same columns in the same order (q, k, v; gate, up). */
struct kern_matmul {
    const float *x; /* [n_tokens, columns] local columns, in the order of x */
    size_t x_stride;
    int n_tokens;
    int n_parts;
    struct kern_matmul_part {
        const struct kern_matrix *matrix;
        const float *bias; /* [n_rows] or NULL; only with n_vectors == 1 */
        float *y;          /* [n_vectors][n_tokens][n_rows] */
        size_t y_stride;   /* between tokens */
        size_t vector_stride;
    } parts[KERN_MAX_PARTS];
    void *scratch; /* the prepared activations, backend.matmul_scratch_bytes(); shared by all threads */
};

/* ---- the paged cache ---------------------------------------------------------------------------------------------------------------------------- */

#define KERN_KV_BLOCK 32        /* tokens a block: also the step in which the running maximum moves */
#define KERN_KV_PARTITION 256   /* absolute positions, fixed by DESIGN */

/* One layer's cache of one rank. Block b lies at base + b·block_bytes: K [n_kv_heads][head_dim][32 tokens], then V [n_kv_heads][32 tokens][head_dim]. */
struct kern_kv {
    void *base;
    size_t block_bytes; /* kern_kv_block_bytes() */
    size_t n_blocks;    /* that base has room for */
    enum format format; /* FMT_F32, FMT_F16, FMT_BF16, FMT_E4M3 */
    int n_kv_heads;     /* local */
    int head_dim;
    float k_scale, v_scale; /* FMT_E4M3 alone looks at them: positive, 1 where there is none */
};
/* FMT_E4M3: kv_append stores code = E4M3(x / scale), one division, then one rounding that saturates at ±448. Attention reads a number as code / 256, which F16 holds exactly and every
 * instruction set makes of a code by moving bits; the scales, times 256, are applied once and not to each number: q[d] is multiplied by scale · (256 · k_scale), the products in F32 in
 * this order, and the finished output by 256 · v_scale. So they depend on the layer alone, never on ranks, chunks or batch, and a power of two as scale loses nothing. A code of NaN is NaN. */
size_t kern_kv_block_bytes(enum format format, int n_kv_heads, int head_dim);

/* What is in this step: tokens of several sequences. Tokens of one sequence stand together (a run), positions ascending by one. */
struct kern_batch {
    int n_tokens;
    const int32_t *position;    /* [n_tokens] absolute */
    int n_runs;
    const int32_t *run_begin;   /* [n_runs] first token of the run */
    const int32_t *run_tokens;  /* [n_runs] */
    const int32_t *run_table;   /* [n_runs] row of the block table */
    const int32_t *block_table; /* [rows, block_table_stride]: position p lies in block block_table[row][p / 32] at p % 32 */
    size_t block_table_stride;
};

struct kern_kv_append {
    const struct kern_batch *batch;
    const struct kern_kv *kv;
    const float *k, *v; /* [n_tokens, n_kv_heads·head_dim] */
    size_t k_stride, v_stride;
};

/* Query head h (local) reads local KV head (q_first + h) / group − kv_first. Keys: positions 0…p of the same sequence (with a window the last ones of them), in partitions of 256,
 * each walked in blocks of 32 with a running maximum and sum; partitions merged from the first to the last, a sink after them. */
struct kern_attention {
    const struct kern_batch *batch;
    const struct kern_kv *kv;
    const float *q; /* [n_tokens, n_heads·head_dim] */
    size_t q_stride;
    float *out; /* like q */
    size_t out_stride;
    int n_heads; /* local */
    int q_first, kv_first, group;
    float scale; /* multiplied into q before the dot product, FMT_E4M3: after it has been multiplied by 256 · k_scale */
    int window;  /* a token at p sees the keys of positions p − window + 1 … p; 0: all up to p. Keys outside are masked inside their partition; a partition without a visible one changes nothing */
    const float *sinks; /* [n_heads] or NULL: one more score for each local head, without a value, merged after the last partition */
    void *scratch; /* backend.attention_scratch_bytes(); shared by all threads */
};

/* ---- the small ops ------------------------------------------------------------------------------------------------------------------------------ */

/* y[t] = dequantised row ids[t] − row_begin of the (packed) table where this rank holds it, else zeroes. */
struct kern_embed {
    const struct kern_matrix *table;
    uint64_t row_begin; /* global number of the table's first local row */
    const int32_t *ids;
    int n_tokens;
    float *y;
    size_t y_stride;
    float scale; /* 1 for most families */
};

/* y = x / sqrt(mean(x²) + eps) · weight; the sum of squares in 16 interleaved lanes, then a tree: the same on every rank, since the dimension is not cut. Where it is, x is a part of the
 * row, and the caller says what the squares of the whole come to. */
struct kern_norm {
    const float *x, *weight;
    float *y;
    size_t x_stride, y_stride;
    int n_tokens, width;
    float eps;
    const float *squares; /* [n_tokens] or NULL */
    int whole_width;      /* of the row that squares are of */
};

/* out[t · out_stride + h · out_step] = Σ x² of head h, summed as kern_norm does. */
struct kern_squares {
    const float *x; /* [n_tokens, n_heads·head_dim] */
    size_t x_stride;
    int n_tokens, n_heads, head_dim;
    float *out;
    size_t out_stride, out_step;
};

/* cos_sin[t] = {cos(p·f_0) … cos(p·f_{n−1}), sin …} · factor, computed in double by our own functions, rounded once. */
struct kern_rope_table {
    const int32_t *position;
    int n_tokens;
    int n_frequencies;
    const double *frequency; /* [n_frequencies] */
    double factor;
    float *cos_sin; /* [n_tokens, 2·n_frequencies] */
};

struct kern_rope {
    float *x; /* [n_tokens, n_heads·head_dim], rotated in place */
    size_t x_stride;
    int n_tokens, n_heads, head_dim, n_frequencies; /* the first 2·n_frequencies dimensions of each head rotate */
    bool interleaved;                               /* pairs (2i, 2i+1) instead of (i, i + n_frequencies) */
    const float *cos_sin;
};

enum kern_gate_kind {
    KERN_GATE_SILU,   /* y = silu(gate) · up */
    KERN_GATE_CLAMPED /* GPT-OSS: g = min(gate, limit), u = max(min(up, limit), −limit); y = (u + 1) · (g · sigmoid(alpha · g)), sigmoid(z) = 1 / (1 + exp(−z)) */
};
struct kern_gate {
    const float *gate, *up;
    float *y;
    size_t gate_stride, up_stride, y_stride;
    int n_tokens, width;
    enum kern_gate_kind kind;
    float alpha, limit; /* KERN_GATE_CLAMPED */
};

/* x[t] *= sigmoid(gate[t]), in place: the gate of a shared expert, one number for each token. sigmoid(z) = 1 / (1 + exp(−z)). */
struct kern_row_gate {
    float *x; /* [n_tokens, width] */
    size_t x_stride;
    int n_tokens, width;
    const float *gate; /* [n_tokens] */
};

/* x[t][i] *= scale[i], in place: what a checkpoint has activations multiplied by before they meet quantised weights. */
struct kern_column_scale {
    float *x; /* [n_tokens, width] */
    size_t x_stride;
    int n_tokens, width;
    const float *scale; /* [width] */
};

/* y = (residual) + ((the tree over the partial vectors of all ranks) + (bias)). The tree over n_leaves leaves splits [a, b) at a + ⌈(b−a)/2⌉; vector i covers leaves
 * vector_lo[i] … vector_hi[i]−1; together they cover every leaf once, left to right. One vector: y = residual + (vector + bias). */
struct kern_sum {
    const float *residual; /* [n_tokens, width] or NULL */
    size_t residual_stride;
    const float *bias; /* [width], or with a bias_stride [n_tokens, width], or NULL */
    size_t bias_stride; /* 0: the same for each token */
    int n_vectors;
    const float *vectors[KERN_MAX_VECTORS]; /* each [n_tokens, width] */
    size_t vector_token_stride;
    uint8_t vector_lo[KERN_MAX_VECTORS], vector_hi[KERN_MAX_VECTORS];
    uint32_t n_leaves;
    float *y;
    size_t y_stride;
    int n_tokens, width;
};

/* ---- mixtures of experts ------------------------------------------------------------------------------------------------------------------------ */

#define KERN_MAX_EXPERTS 1024 /* that a router chooses from */

enum kern_router {
    KERN_ROUTER_SOFTMAX,      /* softmax over all experts, then the k largest (Mixtral, Qwen3-MoE) */
    KERN_ROUTER_TOPK_SOFTMAX, /* the k largest, then softmax over those (GPT-OSS) */
    KERN_ROUTER_SIGMOID       /* sigmoid of each; the k largest of sigmoid + correction; a weight is the sigmoid alone (DeepSeek-V3, GLM-4.5, MiniMax-M2) */
};

/* Which experts a token goes to, and with what weight. Larger scores first, ties to the lower index, NaN below everything. In all of them scores are F32; sums over all experts run in 16
 * interleaved lanes, then by tree, as in kern_norm; sums over the chosen ones in ascending index. exp is ours. */
struct kern_route {
    const float *logits; /* [n_tokens, n_experts] */
    size_t stride;
    int n_tokens, n_experts, k;
    enum kern_router router;
    const float *correction;    /* [n_experts] or NULL; SIGMOID: for the choice alone */
    int n_groups, k_groups;     /* SIGMOID: experts stand in n_groups equal runs, a run's score is the sum of its two largest (with correction); only the k_groups best runs are chosen
                                   from. n_groups 1: no runs */
    bool renormalise;           /* SOFTMAX, SIGMOID: each weight is divided by their sum; SIGMOID: by the sum + 1e-20f */
    float scale;                /* multiplied into the weights last */
    struct kern_routed {
        int32_t expert;
        float weight;
    } * out; /* [n_tokens, k], ascending by expert */
};

/* The tokens of each local expert: slots begin[e] … begin[e + 1] − 1 are expert e's, tokens ascending. The same for all steps of a layer. */
struct kern_slots {
    int n_experts;
    const int32_t *begin;  /* [n_experts + 1] */
    const int32_t *token;  /* [begin[n_experts]] */
    const float *weight;   /* likewise */
};

/* y[slot] = x[token of the slot] · w_eᵀ + bias_e for up to two matrices of each expert (gate, up). Reads the matrices of experts with slots, no others.
 * All matrices of a part have the same rows; all of all parts the same columns, uncut (one vector); formats and activations may differ. Bits: those of kern_matmul. */
struct kern_experts_in {
    const struct kern_slots *slots;
    const float *x; /* [n_tokens, columns] */
    size_t x_stride;
    int n_tokens;
    int n_parts;
    struct kern_experts_part {
        const struct kern_matrix *const *matrix; /* [n_experts] */
        const float *const *bias;                /* [n_experts], each [n_rows]; or NULL */
        float *y;                                /* [n_slots, n_rows] */
        size_t y_stride;
    } parts[2];
    void *scratch;
};

/* y[v][t] = for each of n_sums sums: Σ over the token's slots, in slot order, of weight · (x[slot] · w_eᵀ (+ bias_e)), each step acc = fma(weight, product, acc) from +0; then the sums
 * are folded: after sum i, n_folds[i] times the two topmost are added; then, if emit[i], the top is the next vector.
 * Tensor mode: the sums are the leaves; every matrix emits each of its leaves as a vector (its columns' n_folds are 0 and emit 1), vector j of it goes to sum j; no bias.
 * Expert mode: the sums are expert groups; a matrix is whole, its only vector goes to sum sum_of[e]; a bias is added to it before the weight is multiplied.
 * All matrices have the same rows and columns; formats may differ. A token without a slot here gets +0 in every sum. */
struct kern_experts_out {
    const struct kern_slots *slots;
    const float *x; /* [n_slots, columns] */
    size_t x_stride;
    const struct kern_matrix *const *matrix; /* [n_experts] */
    const float *const *bias;                /* [n_experts], each [n_rows]; or NULL */
    const uint8_t *sum_of;                   /* [n_experts]; NULL: all 0 */
    int n_sums;                              /* at most KERN_MAX_LEAVES; 0: nothing is written */
    const uint8_t *n_folds, *emit;           /* [n_sums], as in kern_columns */
    int n_tokens, n_rows;                    /* outputs */
    float *y;                                /* [n_vectors][n_tokens][n_rows] */
    size_t y_stride, vector_stride;
    void *scratch;
};

/* y[t] = Σ over the token's k routes, in their order, of weight · bias_e, by fma from +0: what tensor mode adds once, after the tree. */
struct kern_experts_bias {
    const struct kern_routed *routed; /* [n_tokens, k] */
    int n_tokens, k;
    const float *const *bias; /* [all experts], each [width] */
    float *y;
    size_t y_stride;
    int width;
};

/* ---- the vocabulary ------------------------------------------------------------------------------------------------------------------------------ */

struct kern_candidate {
    float value;
    int32_t id;
};

/* The k largest of each row, descending; ties to the lowest id; −inf and NaN never win against a number (NaN counts as −inf). Fewer than k columns: the rest is {−inf, −1}. */
struct kern_topk {
    const float *logits; /* [n_rows, width] */
    size_t stride;
    int n_rows, width, k;
    int32_t first_id;
    struct kern_candidate *out; /* [n_rows, k] */
};

/* arg max over ids of logit / temperature + Gumbel(seed, position, id); temperature 0: plain arg max. Gumbel = −log(−log(u)), u from Philox with
 * key = seed, counter = {id, position, draw, 0}, first word. Computed in double, compared in double, ties to the lowest id. */
struct kern_sample {
    const float *logits; /* one row, [width] */
    int width;
    int32_t first_id;
    float temperature;
    uint64_t seed;
    uint32_t position, draw;
    struct kern_sampled {
        double value;
        int32_t id; /* −1: no finite logit */
        float logit;
    } * out; /* one per thread: out[i_thread]; the caller takes the maximum (value, lowest id) */
};

/* Per slice of the vocabulary: max and Σ exp(x − max), columns in order within 16 interleaved lanes, lanes by tree. Slices are [slice_begin[i], slice_begin[i+1]) of local columns. */
struct kern_lse {
    const float *logits;
    size_t stride;
    int n_rows, n_slices;
    const uint32_t *slice_begin; /* [n_slices + 1] */
    float *max, *sum;            /* [n_rows, n_slices] */
};
/* Merges the 32 slices' (max, sum) in tree order: log Σ exp. Scalar, the same everywhere. */
double kern_lse_merge(const float *max, const float *sum, int n_slices);

/* ---- the table ---------------------------------------------------------------------------------------------------------------------------------- */

enum kern_op { KERN_OP_MATMUL, KERN_OP_EMBED, KERN_OP_KV_APPEND, KERN_OP_ATTENTION, KERN_OP_NORM, KERN_OP_ROPE_TABLE, KERN_OP_ROPE, KERN_OP_GATE, KERN_OP_SUM, KERN_OP_TOPK, KERN_OP_SAMPLE, KERN_OP_LSE, KERN_OP_ROUTE, KERN_OP_EXPERTS_IN, KERN_OP_EXPERTS_OUT, KERN_OP_EXPERTS_BIAS, KERN_OP_SQUARES, KERN_OP_ROW_GATE, KERN_OP_COLUMN_SCALE, KERN_OP_COUNT };
const char *kern_op_name(enum kern_op op);

struct kern_backend {
    const char *name;      /* "cpu" */
    const char *variant;   /* "avx512-vnni", "avx2", "portable", "scalar": part of what ranks compare in their hello */
    int priority;          /* the highest that probes well is the default */
    bool (*probe)(void);
    /* head_dim is looked at by KERN_OP_ATTENTION, format is the matrix's or the cache's. */
    bool (*supports)(enum kern_op op, enum format format, enum kern_activation activation, int head_dim);

    /* What a setting means for a format; NULL: kern_activation_for(). */
    enum kern_activation (*activation)(enum format format, bool accurate);
    size_t (*matrix_bytes)(const struct kern_matrix *m); /* all but its data must be set */
    void (*matrix_pack)(const struct kern_pack *args);
    size_t (*matmul_scratch_bytes)(const struct kern_columns *columns, int n_tokens);
    size_t (*attention_scratch_bytes)(int n_heads, int head_dim, int n_tokens, int n_threads);

    /* prepare → barrier → matmul: prepare quantises (or lays out) x into scratch. */
    void (*matmul_prepare)(struct kern_queue q, const struct kern_matmul *args);
    void (*matmul)(struct kern_queue q, const struct kern_matmul *args);
    void (*embed)(struct kern_queue q, const struct kern_embed *args);
    void (*kv_append)(struct kern_queue q, const struct kern_kv_append *args);
    void (*attention)(struct kern_queue q, const struct kern_attention *args);
    void (*norm)(struct kern_queue q, const struct kern_norm *args);
    void (*squares)(struct kern_queue q, const struct kern_squares *args);
    void (*rope_table)(struct kern_queue q, const struct kern_rope_table *args);
    void (*rope)(struct kern_queue q, const struct kern_rope *args);
    void (*gate)(struct kern_queue q, const struct kern_gate *args);
    void (*row_gate)(struct kern_queue q, const struct kern_row_gate *args);
    void (*column_scale)(struct kern_queue q, const struct kern_column_scale *args);
    void (*sum)(struct kern_queue q, const struct kern_sum *args);
    void (*topk)(struct kern_queue q, const struct kern_topk *args);
    void (*sample)(struct kern_queue q, const struct kern_sample *args);
    void (*lse)(struct kern_queue q, const struct kern_lse *args);

    void (*route)(struct kern_queue q, const struct kern_route *args);
    /* Scratch of either: columns are those of one matrix, n_slots at most. n_sums 0: of experts_in. */
    size_t (*experts_scratch_bytes)(const struct kern_columns *columns, int n_slots, int n_tokens, int n_sums, int n_threads);
    /* prepare → barrier → run, as of the product */
    void (*experts_in_prepare)(struct kern_queue q, const struct kern_experts_in *args);
    void (*experts_in)(struct kern_queue q, const struct kern_experts_in *args);
    void (*experts_out_prepare)(struct kern_queue q, const struct kern_experts_out *args);
    void (*experts_out)(struct kern_queue q, const struct kern_experts_out *args);
    void (*experts_bias)(struct kern_queue q, const struct kern_experts_bias *args);
};

/* All that are built in, best first; NULL-terminated. */
const struct kern_backend *const *kern_backends(void);
/* name NULL: the best that probes (TANDEM_KERNELS=cpu/avx2 in the environment forces one). "cpu" or "cpu/avx2" or "ref". ST_NOT_FOUND lists the known ones.
 * "simt": kernels/cuda in the harness, from the library beside the binary. */
enum st kern_select(const char *name, const struct kern_backend **backend, struct err *e);

/* The activation that a setting means for a format: auto is int8, in blocks as wide as its scales, for quantised formats and FP8, F32 for plain ones. */
enum kern_activation kern_activation_for(enum format format, bool accurate);

#ifdef __cplusplus
}
#endif
#endif
