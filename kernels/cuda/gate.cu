/* y = (gate / (1 + exp(−gate))) · up, or the clamped kind of it (enum kern_gate_kind). A thread an element: the rows' strides promise no alignment for vectors. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    gate(global<const float> gates, global<const float> up, global<float> y, size_t gate_stride, size_t up_stride, size_t y_stride, int width,
         bool is_clamped, float alpha, float limit) {
    int i = (int)(blockIdx.y * THREADS + threadIdx.x);
    size_t t = blockIdx.x;
    if (i >= width)
        return;
    float g = gates.load(t * gate_stride + (size_t)i), u = up.load(t * up_stride + (size_t)i);
    if (is_clamped) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u;
        u = u < -limit ? -limit : u;
        float sigmoid = div_rn(1.0f, add_rn(1.0f, cuda_expf(-mul_rn(alpha, g))));
        y.store(t * y_stride + (size_t)i, mul_rn(add_rn(u, 1.0f), mul_rn(g, sigmoid)));
    } else {
        y.store(t * y_stride + (size_t)i, mul_rn(div_rn(g, add_rn(1.0f, cuda_expf(-g))), u));
    }
}

int cuda_gate(const struct kern_gate *args, void *stream) {
    if (args->n_tokens == 0 || args->width == 0)
        return cudaSuccess;
    dim3 grid((unsigned)args->n_tokens, (unsigned)(args->width + THREADS - 1) / THREADS);
    return SIMT_LAUNCH(gate, grid, THREADS, 0, stream, args->gate, args->up, args->y, args->gate_stride, args->up_stride, args->y_stride, args->width,
                       args->kind == KERN_GATE_CLAMPED, args->alpha, args->limit);
}
