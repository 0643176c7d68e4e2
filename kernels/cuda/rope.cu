/* (a, b) → (fma(a, cos, −(b·sin)), fma(b, cos, a·sin)), in place. A thread a pair; block x is the token (along y a grid has 65,535 blocks at most). */
#include "kernels/cuda/cuda.h"
#include "kernels/simt/simt.h"

constexpr int THREADS = 128;

__global__ void __launch_bounds__(THREADS)
    rope(global<float> x, global<const float> cos_sin, size_t x_stride, int n_heads, int head_dim, int n_frequencies, bool interleaved) {
    int pair = (int)(blockIdx.y * THREADS + threadIdx.x);
    size_t t = blockIdx.x;
    if (pair >= n_heads * n_frequencies)
        return;
    int i = pair % n_frequencies;
    global<float> head = x.at(t * x_stride + (size_t)(pair / n_frequencies) * (size_t)head_dim);
    size_t at_a = (size_t)(interleaved ? 2 * i : i), at_b = (size_t)(interleaved ? 2 * i + 1 : n_frequencies + i);
    float c = cos_sin.load(t * 2 * (size_t)n_frequencies + (size_t)i), s = cos_sin.load(t * 2 * (size_t)n_frequencies + (size_t)(n_frequencies + i));
    float a = head.load(at_a), b = head.load(at_b);
    head.store(at_a, fma_rn(a, c, -mul_rn(b, s)));
    head.store(at_b, fma_rn(b, c, mul_rn(a, s)));
}

int cuda_rope(const struct kern_rope *args, void *stream) {
    unsigned pairs = (unsigned)(args->n_heads * args->n_frequencies);
    if (args->n_tokens == 0 || pairs == 0)
        return cudaSuccess;
    dim3 grid((unsigned)args->n_tokens, (pairs + THREADS - 1) / THREADS);
    return SIMT_LAUNCH(rope, grid, THREADS, 0, stream, args->x, args->cos_sin, args->x_stride, args->n_heads, args->head_dim, args->n_frequencies, args->interleaved);
}
