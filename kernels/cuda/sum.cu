/* y = residual + ((the tree over partial vectors) + bias). A thread an element; its stack of sums lies in shared memory. */
#include "kernels/cuda/cuda.h"
#include "kernels/simt/simt.h"
#include "kernels/tree.h"

constexpr int THREADS = 128;

struct vectors {
    const float *at[KERN_MAX_VECTORS];
    uint8_t n_folds[KERN_MAX_VECTORS]; /* after this one has been pushed */
    uint32_t n;
};

__global__ void __launch_bounds__(THREADS)
    sum(vectors v, global<const float> residual, global<const float> bias, global<float> y, size_t token_stride, size_t residual_stride, size_t bias_stride, size_t y_stride, int width) {
    SIMT_SHARED(float, stack, KERN_TREE_STACK * THREADS);
    int i = (int)(blockIdx.y * THREADS + threadIdx.x);
    size_t t = blockIdx.x;
    if (i >= width)
        return;
    uint32_t depth = 0;
    float top = 0;
    for (uint32_t k = 0; k < v.n; k++) {
        if (k)
            stack.store(depth++ * THREADS + threadIdx.x, top);
        top = global<const float>(v.at[k]).load(t * token_stride + (size_t)i);
        for (uint32_t f = 0; f < v.n_folds[k]; f++)
            top = add_rn(stack.load(--depth * THREADS + threadIdx.x), top);
    }
    if (bias.p)
        top = add_rn(top, bias.load(t * bias_stride + (size_t)i));
    if (residual.p)
        top = add_rn(residual.load(t * residual_stride + (size_t)i), top);
    y.store(t * y_stride + (size_t)i, top);
}

int cuda_sum(const struct kern_sum *args, void *stream) {
    vectors v = {};
    if (args->n_vectors < 1 || args->n_vectors > KERN_MAX_VECTORS)
        return cudaErrorInvalidValue;
    if (args->n_tokens == 0 || args->width == 0)
        return cudaSuccess;
    v.n = (uint32_t)args->n_vectors;
    for (int k = 0; k < args->n_vectors; k++) {
        v.at[k] = args->vectors[k];
        v.n_folds[k] = (uint8_t)kern_tree_folds(args->vector_lo[k], args->vector_hi[k], args->n_leaves);
    }
    dim3 grid((unsigned)args->n_tokens, (unsigned)(args->width + THREADS - 1) / THREADS);
    return SIMT_LAUNCH(sum, grid, THREADS, 0, stream, v, args->residual, args->bias, args->y, args->vector_token_stride, args->residual_stride, args->bias_stride, args->y_stride,
                       args->width);
}
