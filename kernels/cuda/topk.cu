/* The k largest of each row, in the order of struct kern_topk. A block a row; thread i looks at columns i, i + 1024 …, and keeps the best of those that have not been taken. In each of k
 * rounds the best of all threads' is taken, and the thread that had it, alone, looks for its next: so a row is read once whole, and k times a 1024th of it. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"

constexpr uint32_t THREADS = 1024, NONE = 0xffffffffu; /* as a column: there is none left */

struct best {
    float value;
    uint32_t column;
};

static __device__ float minus_infinity() { return float_of_bits(0xff800000u); }
static __device__ bool before(best a, best b) { return a.value > b.value || (a.value == b.value && a.column < b.column); }

/* Of the thread's columns that come after what was taken from it last (the first time: all). */
static __device__ best next_of(global<const float> row, uint32_t width, bool is_first, best taken) {
    best b = {minus_infinity(), NONE};
    for (uint32_t c = threadIdx.x; c < width; c += THREADS) {
        float x = row.load(c);
        best other = {x != x ? minus_infinity() : x, c};
        if ((is_first || before(taken, other)) && before(other, b)) b = other;
    }
    return b;
}

static __device__ best best_of_warp(best b) {
    for (int w = 16; w; w /= 2) {
        best other = {__shfl_xor_sync(0xffffffffu, b.value, w), __shfl_xor_sync(0xffffffffu, b.column, w)};
        b = before(other, b) ? other : b;
    }
    return b;
}

__global__ void __launch_bounds__(THREADS)
    topk(global<const float> logits, size_t stride, uint32_t width, uint32_t k, int32_t first_id, global<struct kern_candidate> out) {
    SIMT_SHARED(best, of_warp, 32);
    SIMT_SHARED(best, of_block, 1);
    const global<const float> row = logits.at(blockIdx.x * stride);
    best mine = next_of(row, width, true, {});
    for (uint32_t i = 0; i < k; i++) {
        best b = best_of_warp(mine);
        if (threadIdx.x % 32 == 0) of_warp.store(threadIdx.x / 32, b);
        __syncthreads();
        if (threadIdx.x < 32) {
            b = best_of_warp(of_warp.load(threadIdx.x));
            if (threadIdx.x == 0) {
                of_block.store(0, b);
                out.store((size_t)blockIdx.x * k + i, {b.value, b.column == NONE ? -1 : first_id + (int32_t)b.column});
            }
        }
        __syncthreads();
        if (mine.column != NONE && of_block.load(0).column == mine.column) mine = next_of(row, width, false, mine);
    }
}

int cuda_topk(const struct kern_topk *args, void *stream) {
    if (args->n_rows == 0 || args->k == 0) return cudaSuccess;
    return SIMT_LAUNCH(topk, (unsigned)args->n_rows, THREADS, 0, stream, args->logits, args->stride, (uint32_t)args->width, (uint32_t)args->k,
                       args->first_id, args->out);
}
