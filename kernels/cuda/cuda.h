/* CUDA kernels, one op a file, for those who launch them. Arguments are those of kernels.h with device pointers (ids, x, y, weight, cos_sin, a matrix's data); the structs
 * themselves, and a matrix's columns, are the host's and are read at the call. Each returns the launch's cudaError_t (0: it is in the stream).
 *
 * Matrices are packed for one of two products, whose layouts their files describe: cuda_matmul (FMT_BF16, activations in F32, `ref`'s order of sums) and cuda_mma_matmul; embed reads
 * either. Pack functions are as kern_backend.matrix_pack: m->data is host memory then, and is to be copied to the device.
 * A batch's arrays, and a cache, are device memory too.
 *
 * Order of sums: that of `ref`, to the bit, but for cuda_mma_matmul. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

int cuda_norm(const struct kern_norm *args, void *stream); /* width ≤ 25,000 */
int cuda_gate(const struct kern_gate *args, void *stream);
int cuda_sum(const struct kern_sum *args, void *stream);
int cuda_rope(const struct kern_rope *args, void *stream);
int cuda_topk(const struct kern_topk *args, void *stream);
/* Caches of FMT_F32, FMT_F16 and FMT_BF16, head_dim ≤ 256, n_runs · n_kv_heads ≤ 65,535. What only the batch's arrays say is bounded by the caller, for whom a launch must have blocks enough: runs of at most
 * max_run_tokens, positions below n_partitions · KERN_KV_PARTITION. Runs of up to CUDA_ATTENTION_SPLIT tokens are cut by partitions, which meet in args->scratch; longer ones are not, and
 * the bits are the same. */
#define CUDA_ATTENTION_SPLIT 8
int cuda_kv_append(const struct kern_kv_append *args, void *stream);
int cuda_attention(const struct kern_attention *args, int max_run_tokens, int n_partitions, void *stream);
size_t cuda_attention_scratch_bytes(int n_heads, int head_dim, int n_tokens, int max_run_tokens, int n_partitions);
bool cuda_attention_supports(enum format cache, int head_dim);

/* FMT_BF16, any number of tokens and leaves; args->scratch is not used. No columns.order. */
int cuda_matmul(const struct kern_matmul *args, void *stream);
int cuda_embed(const struct kern_embed *args, void *stream);
size_t cuda_matrix_bytes(const struct kern_matrix *m);
void cuda_matrix_pack(const struct kern_pack *args);

/* The same product by matrix instructions, of FMT_BF16 and FMT_NVFP4: activations are rounded to BF16, FP4 weights widened to BF16, which is exact; F32 sums, 16 columns at a time, in
 * the order of the columns inside a leaf, then the leaves' fold. How the 16 are added up is the GPU's business; so the bits are one GPU's own, but the same for any number of tokens
 * and ranks. At most CUDA_MMA_LEAVES leaves, no columns.order. prepare lays x out in args->scratch (device memory) and comes before matmul in the same stream. */
#define CUDA_MMA_LEAVES 12
int cuda_mma_prepare(const struct kern_matmul *args, void *stream);
int cuda_mma_matmul(const struct kern_matmul *args, void *stream);
int cuda_mma_embed(const struct kern_embed *args, void *stream);
size_t cuda_mma_scratch_bytes(const struct kern_columns *columns, int n_tokens);
bool cuda_mma_supports(enum format format);
size_t cuda_mma_matrix_bytes(const struct kern_matrix *m);
void cuda_mma_matrix_pack(const struct kern_pack *args);

#ifdef __cplusplus
}
#endif
#endif
