/* The reference backend: scalar, complete, written to be read. It is the law by which every other backend is measured, and it spells out each op's order of
 * operations; the cpu backend follows the same orders, so that the two agree to the bit. */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "kernels/kernels.h"

extern const struct kern_backend kern_ref;

#define REF_MAX_HEAD_DIM 512

size_t ref_matrix_bytes(const struct kern_matrix *m);
void ref_matrix_pack(const struct kern_pack *args);
size_t ref_matmul_scratch_bytes(const struct kern_columns *columns, int n_tokens);
void ref_matmul_prepare(struct kern_queue q, const struct kern_matmul *args);
void ref_matmul(struct kern_queue q, const struct kern_matmul *args);
/* One row times n ≤ 8 tokens from t_begin on; y: where vector 0 of the first of them goes, the others by the part's strides. */
void ref_matmul_row(const struct kern_matmul *args, const struct kern_matmul_part *part, uint64_t row, int t_begin, int n, float *y);
void ref_embed(struct kern_queue q, const struct kern_embed *args);
void ref_kv_append(struct kern_queue q, const struct kern_kv_append *args);
void ref_attention(struct kern_queue q, const struct kern_attention *args);
void ref_norm(struct kern_queue q, const struct kern_norm *args);
void ref_squares(struct kern_queue q, const struct kern_squares *args);
void ref_rope_table(struct kern_queue q, const struct kern_rope_table *args);
void ref_rope(struct kern_queue q, const struct kern_rope *args);
void ref_gate(struct kern_queue q, const struct kern_gate *args);
void ref_row_gate(struct kern_queue q, const struct kern_row_gate *args);
void ref_column_scale(struct kern_queue q, const struct kern_column_scale *args);
void ref_sum(struct kern_queue q, const struct kern_sum *args);
void ref_topk(struct kern_queue q, const struct kern_topk *args);
void ref_sample(struct kern_queue q, const struct kern_sample *args);
void ref_lse(struct kern_queue q, const struct kern_lse *args);
void ref_route(struct kern_queue q, const struct kern_route *args);
size_t ref_experts_scratch_bytes(const struct kern_columns *columns, int n_slots, int n_tokens, int n_sums, int n_threads);
void ref_experts_in_prepare(struct kern_queue q, const struct kern_experts_in *args);
void ref_experts_in(struct kern_queue q, const struct kern_experts_in *args);
void ref_experts_out_prepare(struct kern_queue q, const struct kern_experts_out *args);
void ref_experts_out(struct kern_queue q, const struct kern_experts_out *args);
void ref_experts_bias(struct kern_queue q, const struct kern_experts_bias *args);

/* Items i_thread, i_thread + n_threads, …: a share that no result depends on. */
#define REF_FOR_SHARE(type, i, n, q) for (type i = (type)(q).i_thread; i < (type)(n); i += (type)(q).n_threads)

#endif
