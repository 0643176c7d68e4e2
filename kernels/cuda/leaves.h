/* Leaves as a kernel gets them: struct kern_columns without its pointers, and the fold of their sums. */
#ifndef KERNELS_CUDA_LEAVES_H
#define KERNELS_CUDA_LEAVES_H

#include "kernels/kernels.h"
#include "kernels/simt/simt.h"

struct cuda_leaves {
    uint32_t n, begin[KERN_MAX_LEAVES + 1]; /* columns, from the first local one on */
    uint8_t n_folds[KERN_MAX_LEAVES], emit[KERN_MAX_LEAVES];
};

static inline void cuda_leaves_of(const struct kern_columns *c, cuda_leaves *l) {
    l->n = c->n_leaves;
    for (uint32_t i = 0; i < c->n_leaves; i++) {
        uint32_t last = c->leaf_segment[i + 1] - 1;
        l->begin[i] = c->segment_begin[c->leaf_segment[i]];
        l->begin[i + 1] = c->segment_begin[last] + c->segment_columns[last];
        l->n_folds[i] = c->n_folds[i];
        l->emit[i] = c->emit[i];
    }
}

/* Folds sums[i · leaf_stride] of all leaves i as struct kern_columns says; put(vector, value). The stack grows in the array itself, never beyond the leaf that is pushed next. */
template <class Put> __device__ inline void cuda_fold(const cuda_leaves &l, shared<float> sums, uint32_t leaf_stride, Put put) {
    uint32_t depth = 0, vector = 0;
    for (uint32_t i = 0; i < l.n; i++) {
        float top = sums.load(i * leaf_stride);
        for (uint32_t f = 0; f < l.n_folds[i]; f++)
            top = add_rn(sums.load(--depth * leaf_stride), top);
        if (l.emit[i])
            put(vector++, top);
        else
            sums.store(depth++ * leaf_stride, top);
    }
}

/* ---- rows of a table: a thread a column, block x is the token --------------------------------------------------------------------------------------------------- */

constexpr int CUDA_EMBED_THREADS = 256;

static inline dim3 cuda_embed_grid(const cuda_leaves &l, int n_tokens) {
    return dim3((unsigned)n_tokens, (l.begin[l.n] + CUDA_EMBED_THREADS - 1) / CUDA_EMBED_THREADS);
}

/* The thread's column: number(row, leaf, column), times the table's scale and the step's; zero for ids that this rank does not hold. */
template <class Number>
__device__ inline void cuda_embed_column(const cuda_leaves &l, global<const int32_t> ids, global<float> y, uint64_t row_begin, uint32_t n_rows, size_t y_stride, float table_scale,
                                         float scale, Number number) {
    uint32_t c = blockIdx.y * CUDA_EMBED_THREADS + threadIdx.x, leaf = 0;
    size_t t = blockIdx.x;
    if (c >= l.begin[l.n])
        return;
    while (c >= l.begin[leaf + 1])
        leaf++;
    int64_t row = (int64_t)ids.load(t) - (int64_t)row_begin;
    float value = 0;
    if (row >= 0 && row < (int64_t)n_rows)
        value = mul_rn(mul_rn(number((uint32_t)row, leaf, c), table_scale), scale);
    y.store(t * y_stride + c, value);
}

#endif
