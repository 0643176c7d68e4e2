/* The ops other than products: written once over vec.h, compiled once per instruction set. A variant's functions carry its suffix; all give the same bits as `ref`.
 * The file NAME_SUFFIX.c defines CPU_SUFFIX (and VEC_… for vec.h) and includes NAME_body.h. */
#ifndef KERNELS_CPU_OPS_PRIV_H
#define KERNELS_CPU_OPS_PRIV_H

#include "kernels/kernels.h"

#define CPU_MAX_HEAD_DIM 512

#define CPU_OPS(suffix)                                                                     \
    void cpu_kv_append_##suffix(struct kern_queue q, const struct kern_kv_append *args);    \
    void cpu_attention_##suffix(struct kern_queue q, const struct kern_attention *args);    \
    void cpu_norm_##suffix(struct kern_queue q, const struct kern_norm *args);              \
    void cpu_squares_##suffix(struct kern_queue q, const struct kern_squares *args);        \
    void cpu_rope_table_##suffix(struct kern_queue q, const struct kern_rope_table *args);  \
    void cpu_rope_##suffix(struct kern_queue q, const struct kern_rope *args);              \
    void cpu_gate_##suffix(struct kern_queue q, const struct kern_gate *args);              \
    void cpu_row_gate_##suffix(struct kern_queue q, const struct kern_row_gate *args);      \
    void cpu_column_scale_##suffix(struct kern_queue q, const struct kern_column_scale *args); \
    void cpu_sum_##suffix(struct kern_queue q, const struct kern_sum *args);                \
    void cpu_topk_##suffix(struct kern_queue q, const struct kern_topk *args);              \
    void cpu_sample_##suffix(struct kern_queue q, const struct kern_sample *args);          \
    void cpu_lse_##suffix(struct kern_queue q, const struct kern_lse *args);                \
    void cpu_route_##suffix(struct kern_queue q, const struct kern_route *args);            \
    void cpu_experts_bias_##suffix(struct kern_queue q, const struct kern_experts_bias *args); \
    /* One token's sums [n_sums][16] of 16 rows from `row` on: folded, their vectors stored, and set to +0 for the next rows. */ \
    void cpu_fold_##suffix(const struct kern_experts_out *args, float *sums, size_t token, size_t row);

CPU_OPS(portable)
#if defined(__x86_64__)
CPU_OPS(avx2)
CPU_OPS(avx512)
#endif

/* For struct kern_backend: .kv_append … .lse, .route, .experts_bias, and the attention's scratch (none: its state lives on the stack). */
#define CPU_OPS_TABLE(suffix)                                                                                                                    \
    .kv_append = cpu_kv_append_##suffix, .attention = cpu_attention_##suffix, .norm = cpu_norm_##suffix, .squares = cpu_squares_##suffix, .rope_table = cpu_rope_table_##suffix,   \
    .rope = cpu_rope_##suffix, .gate = cpu_gate_##suffix, .row_gate = cpu_row_gate_##suffix, .column_scale = cpu_column_scale_##suffix, .sum = cpu_sum_##suffix, .topk = cpu_topk_##suffix, .sample = cpu_sample_##suffix,      \
    .lse = cpu_lse_##suffix, .route = cpu_route_##suffix, .experts_bias = cpu_experts_bias_##suffix,                                             \
    .attention_scratch_bytes = cpu_attention_scratch_bytes

size_t cpu_attention_scratch_bytes(int n_heads, int head_dim, int n_tokens, int n_threads);
/* For struct kern_backend.supports: true for these ops on these caches and head dimensions. */
bool cpu_ops_supports(enum kern_op op, enum format format, int head_dim);

#define CPU_NAME_2(op, suffix) cpu_##op##_##suffix
#define CPU_NAME_1(op, suffix) CPU_NAME_2(op, suffix)
#define CPU_NAME(op) CPU_NAME_1(op, CPU_SUFFIX)

#endif
