/* y = (x · (1 / sqrt(Σx² / width + eps))) · weight. One block a token; x is read once, into shared memory.
 * The sum of squares has `ref`'s order, 16 chains and a tree, so that every backend gives the same bits: half a warp walks them, while the row's loads and stores are
 * shared by all threads. */
#include "kernels/cuda/cuda.h"
#include "kernels/simt/simt.h"

constexpr int THREADS = 256;

static __device__ float scale_for(float squares, int width, float eps) { return div_rn(1.0f, sqrt_rn(add_rn(div_rn(squares, (float)width), eps))); }

__global__ void __launch_bounds__(THREADS)
    norm_rows(global<const float> x, global<const float> weight, global<float> y, size_t x_stride, size_t y_stride, int width, float eps,
              global<const float> squares, int whole_width) {
    SIMT_SHARED_DYNAMIC(float, row);
    SIMT_SHARED(float, scale_of_row, 1);
    global<const float> from = x.at(blockIdx.x * x_stride);
    global<float> to = y.at(blockIdx.x * y_stride);
    for (int i = (int)threadIdx.x; i < width; i += THREADS)
        row.store(i, from.load(i));
    __syncthreads();
    if (squares.p) {
        if (threadIdx.x == 0)
            scale_of_row.store(0, scale_for(squares.load(blockIdx.x), whole_width, eps));
    } else if (threadIdx.x < 16) {
        float sum = 0;
        for (int i = (int)threadIdx.x; i < width; i += 16)
            sum = fma_rn(row.load(i), row.load(i), sum);
        for (int w = 8; w; w /= 2)
            sum = add_rn(sum, __shfl_down_sync(0x0000ffffu, sum, w, 16));
        if (threadIdx.x == 0)
            scale_of_row.store(0, scale_for(sum, width, eps));
    }
    __syncthreads();
    float scale = scale_of_row.load(0);
    for (int i = (int)threadIdx.x; i < width; i += THREADS)
        to.store(i, mul_rn(mul_rn(row.load(i), scale), weight.load(i)));
}

int cuda_norm(const struct kern_norm *args, void *stream) {
    size_t bytes = (size_t)args->width * sizeof(float);
    if (args->n_tokens == 0)
        return cudaSuccess;
    if (args->width < 1 || args->width > 25000)
        return cudaErrorInvalidValue;
    int e = cudaFuncSetAttribute((const void *)norm_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess)
        return e;
    return SIMT_LAUNCH(norm_rows, (unsigned)args->n_tokens, THREADS, bytes, stream, args->x, args->weight, args->y, args->x_stride, args->y_stride, args->width, args->eps,
                       args->squares, args->whole_width);
}
