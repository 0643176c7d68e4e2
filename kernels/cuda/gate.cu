/* y = (gate / (1 + exp(−gate))) · up. A thread an element: the rows' strides promise no alignment for vectors. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    gate(global<const float> gates, global<const float> up, global<float> y, size_t gate_stride, size_t up_stride, size_t y_stride, int width) {
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    size_t t = blockIdx.y;
    if (i >= width)
        return;
    float g = gates.load(t * gate_stride + (size_t)i);
    float silu = div_rn(g, add_rn(1.0f, cuda_expf(-g)));
    y.store(t * y_stride + (size_t)i, mul_rn(silu, up.load(t * up_stride + (size_t)i)));
}

int cuda_gate(const struct kern_gate *args, void *stream) {
    if (args->n_tokens == 0 || args->width == 0)
        return cudaSuccess;
    dim3 grid((unsigned)(args->width + THREADS - 1) / THREADS, (unsigned)args->n_tokens);
    return SIMT_LAUNCH(gate, grid, THREADS, 0, stream, args->gate, args->up, args->y, args->gate_stride, args->up_stride, args->y_stride, args->width);
}
