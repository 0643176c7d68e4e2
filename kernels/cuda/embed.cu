/* Rows of a BF16 table, times a scale; zeroes for ids that this rank does not hold. A thread a column; block y is the token. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/math.h"

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    embed(global<const uint16_t> table, global<const int32_t> ids, global<float> y, uint64_t row_begin, uint64_t n_rows, size_t y_stride, uint32_t columns, float scale) {
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    size_t t = blockIdx.y;
    if (i >= columns)
        return;
    int64_t row = (int64_t)ids.load(t) - (int64_t)row_begin;
    bool mine = row >= 0 && (uint64_t)row < n_rows;
    y.store(t * y_stride + i, mine ? mul_rn(cuda_bf16(table.load((size_t)row * columns + i)), scale) : 0.0f);
}

int cuda_embed(const struct kern_embed *args, void *stream) {
    const struct kern_matrix *m = args->table;
    uint64_t columns = m->columns.end - m->columns.begin;
    if (m->format != FMT_BF16 || m->columns.begin != 0 || columns > UINT32_MAX)
        return cudaErrorInvalidValue;
    if (args->n_tokens == 0 || columns == 0)
        return cudaSuccess;
    dim3 grid((unsigned)((columns + THREADS - 1) / THREADS), (unsigned)args->n_tokens);
    return SIMT_LAUNCH(embed, grid, THREADS, 0, stream, (const uint16_t *)m->data, args->ids, args->y, args->row_begin, m->n_rows, args->y_stride, (uint32_t)columns,
                       args->scale);
}
