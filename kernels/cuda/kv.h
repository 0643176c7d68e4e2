/* The paged cache as kernels see it: struct kern_kv and struct kern_batch by value, and numbers of its formats. */
#ifndef KERNELS_CUDA_KV_H
#define KERNELS_CUDA_KV_H

#include "kernels/cuda/math.h"
#include "kernels/kernels.h"

/* What a number of the cache is kept as, and which format that is. */
struct cuda_f32 {
    typedef float stored;
    static __device__ float load(float x) { return x; }
    static __device__ float store(float x) { return x; }
};
struct cuda_f16 {
    typedef uint16_t stored;
    static __device__ float load(uint16_t x) { return float_of_f16(x); }
    static __device__ uint16_t store(float x) { return (uint16_t)f16_rn(x); }
};
struct cuda_bf16_number {
    typedef uint16_t stored;
    static __device__ float load(uint16_t x) { return cuda_bf16(x); }
    static __device__ uint16_t store(float x) { return (uint16_t)bf16x2_rn(x, 0.0f); }
};

struct cuda_batch {
    global<const int32_t> position, run_begin, run_tokens, run_table, block_table;
    uint32_t n_tokens, n_runs;
    size_t block_table_stride;
};
static inline cuda_batch cuda_batch_of(const struct kern_batch *b) {
    return {b->position, b->run_begin, b->run_tokens, b->run_table, b->block_table, (uint32_t)b->n_tokens, (uint32_t)b->n_runs, b->block_table_stride};
}

/* Block of a run's positions 32·i …: its first number, counted in numbers from the cache's first. Blocks hold K [n_kv_heads][dim][32 tokens], then V [n_kv_heads][32 tokens][dim]. */
__device__ inline size_t cuda_block_at(const cuda_batch &b, uint32_t run, uint32_t i, uint32_t n_kv_heads, uint32_t dim) {
    int32_t block = b.block_table.load((size_t)b.run_table.load(run) * b.block_table_stride + i);
    return (size_t)block * 2 * n_kv_heads * dim * KERN_KV_BLOCK;
}

#endif
