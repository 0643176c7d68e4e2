/* New keys and values into their blocks. A thread a number; block x is the token. Keys of one token lie 32 numbers apart, for attention reads a block's keys side by side. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/kv.h"

constexpr int THREADS = 128;

template <class number>
__global__ void __launch_bounds__(THREADS)
    kv_append(cuda_batch b, global<typename number::stored> cache, global<const float> k, global<const float> v, size_t k_stride, size_t v_stride, uint32_t n_kv_heads, uint32_t dim) {
    uint32_t i = blockIdx.y * THREADS + threadIdx.x, t = blockIdx.x, run = 0;
    if (i >= n_kv_heads * dim)
        return;
    while (t - (uint32_t)b.run_begin.load(run) >= (uint32_t)b.run_tokens.load(run))
        run++;
    uint32_t p = (uint32_t)b.position.load(t), slot = p % KERN_KV_BLOCK, head = i / dim, d = i % dim;
    size_t at = cuda_block_at(b, run, p / KERN_KV_BLOCK, n_kv_heads, dim), half = (size_t)n_kv_heads * dim * KERN_KV_BLOCK;
    cache.store(at + ((size_t)head * dim + d) * KERN_KV_BLOCK + slot, number::store(k.load(t * k_stride + i)));
    cache.store(at + half + ((size_t)head * KERN_KV_BLOCK + slot) * dim + d, number::store(v.load(t * v_stride + i)));
}

template <class number> static int launch(const struct kern_kv_append *args, void *stream) {
    const struct kern_kv *kv = args->kv;
    dim3 grid((unsigned)args->batch->n_tokens, (unsigned)(kv->n_kv_heads * kv->head_dim + THREADS - 1) / THREADS);
    return SIMT_LAUNCH(kv_append<number>, grid, THREADS, 0, stream, cuda_batch_of(args->batch), (typename number::stored *)kv->base, args->k, args->v, args->k_stride,
                       args->v_stride, (uint32_t)kv->n_kv_heads, (uint32_t)kv->head_dim);
}

int cuda_kv_append(const struct kern_kv_append *args, void *stream) {
    const struct kern_kv *kv = args->kv;
    if (!cuda_attention_supports(kv->format, kv->head_dim))
        return cudaErrorInvalidValue;
    if (args->batch->n_tokens == 0 || kv->n_kv_heads == 0)
        return cudaSuccess;
    return kv->format == FMT_F32 ? launch<cuda_f32>(args, stream) : kv->format == FMT_F16 ? launch<cuda_f16>(args, stream) : launch<cuda_bf16_number>(args, stream);
}
