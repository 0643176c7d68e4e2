/* For the conformance suites of products: leaf structures, random rows of any format as a file has them, and matrices packed by a backend. */
#ifndef TESTS_T_MATRIX_H
#define TESTS_T_MATRIX_H

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "tests/t.h"
#include "tests/t_kernels.h"

/* ---- leaf structures ----------------------------------------------------------------------------------------------------------------------------- */

struct shape {
    const char *name;
    int formats; /* the test's own */
    uint64_t n_columns;
    uint32_t n_leaves;
    uint64_t leaf_end[KERN_MAX_LEAVES];
    float scale;
    uint32_t scale_columns;
};

/* DESIGN's rule for row-parallel products without super-blocks */
static inline struct shape by_units(const char *name, uint64_t n) {
    struct shape s = {.name = name, .n_columns = n, .scale = 1, .scale_columns = 32};
    uint64_t n64 = (n + 63) / 64, unit = n < 256 || (n64 < 12 && n64 % 2) ? 32 : 64, n_units = (n + unit - 1) / unit;
    s.n_leaves = (uint32_t)(n_units < 12 ? n_units : 12);
    for (uint32_t i = 0; i < s.n_leaves; i++) {
        uint64_t end = (i + 1) * n_units / s.n_leaves * unit;
        s.leaf_end[i] = end < n ? end : n;
    }
    return s;
}

/* Output projection with one head a leaf */
static inline struct shape by_heads(const char *name, uint32_t n_heads, uint64_t head_dim) {
    struct shape s = {.name = name, .n_columns = n_heads * head_dim, .n_leaves = n_heads, .scale = 1, .scale_columns = 32};
    for (uint32_t i = 0; i < n_heads; i++)
        s.leaf_end[i] = (i + 1) * head_dim;
    return s;
}

static inline struct shape one_leaf(const char *name, uint64_t n) {
    return (struct shape){.name = name, .n_columns = n, .n_leaves = 1, .leaf_end = {n}, .scale = 1, .scale_columns = 32};
}

/* ---- random files -------------------------------------------------------------------------------------------------------------------------------- */

/* A row as it is stored: whole blocks; the last may be short of columns only where a loader puts it together. */
static inline size_t stored_bytes(enum format f, uint64_t n_columns) {
    return kern_format_row_bytes(f, t_is_joined(f) ? (n_columns + 31) / 32 * 32 : n_columns);
}

/* n_rows rows of whole blocks */
static inline unsigned char *make_rows(struct base_rng *r, enum format f, uint64_t n_rows, uint64_t n_columns, uint32_t scale_columns) {
    size_t row_bytes = stored_bytes(f, n_columns), bytes = row_bytes * n_rows;
    unsigned char *rows = malloc(bytes + 1);
    assert_non_null(rows);
    if (kern_format(f)->block_columns > 1) {
        const struct format_info *info = kern_format(f);
        for (size_t i = 0; i < bytes; i++)
            rows[i] = (unsigned char)base_rng_u32(r);
        for (size_t at = 0; at < bytes; at += info->block_bytes) {
            t_plausible_scales(r, f, rows + at);
            const size_t i_block = at % row_bytes / info->block_bytes, shared = i_block % (scale_columns / 32);
            if (t_is_joined(f)) /* d and m of the first that has them */
                memmove(rows + at, rows + at - shared * info->block_bytes, info->has_minimum ? 8 : 4);
        }
        return rows;
    }
    for (uint64_t i = 0; i < n_rows * n_columns; i++) {
        float x = base_rng_normal(r);
        uint16_t h = f == FMT_F16 ? kern_f32_to_f16(x) : kern_f32_to_bf16(x);
        if (f == FMT_F32)
            memcpy(rows + 4 * i, &x, 4);
        else
            memcpy(rows + 2 * i, &h, 2);
    }
    return rows;
}

static inline float *make_floats(struct base_rng *r, size_t n) {
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = base_rng_normal(r) * (base_rng_below(r, 50) ? 1.0f : 30.0f); /* outliers, so that int8 scales differ */
    return x;
}

/* ---- a packed matrix ----------------------------------------------------------------------------------------------------------------------------- */

static inline void matrix_open(struct kern_matrix *m, const struct kern_backend *b, enum format f, enum kern_activation a, const struct shape *s, uint32_t leaf_lo,
                        uint32_t leaf_hi, const unsigned char *rows, uint64_t n_rows) {
    *m = (struct kern_matrix){.format = f, .activation = a, .n_rows = n_rows, .scale = s->scale, .scale_columns = s->scale_columns};
    uint64_t begin = leaf_lo ? s->leaf_end[leaf_lo - 1] : 0, end = leaf_hi ? s->leaf_end[leaf_hi - 1] : 0;
    uint32_t max = kern_columns_max_segments(end > begin ? end - begin : 0, leaf_hi - leaf_lo);
    kern_columns_init(&m->columns, begin, s->leaf_end + leaf_lo, leaf_lo, leaf_hi, s->n_leaves, calloc(max, 4), calloc(max, 1));
    assert_true(m->columns.n_segments <= max);
    m->data = t_guard_alloc(b->matrix_bytes(m));

    /* the loader's way: the rank's own columns only, a batch of rows at a time, each batch in a buffer of its own */
    uint64_t block = kern_format(f)->block_columns, first = begin / block * block, past = (end + block - 1) / block * block;
    size_t stride = stored_bytes(f, s->n_columns), offset = kern_format_row_bytes(f, first), bytes = kern_format_row_bytes(f, past - first);
    if (begin == end)
        return;
    for (uint64_t at = 0; at < n_rows; at += 32) {
        uint64_t n = n_rows - at < 32 ? n_rows - at : 32;
        unsigned char *bounce = malloc(n * (bytes + 6));
        for (uint64_t i = 0; i < n; i++)
            memcpy(bounce + i * (bytes + 6), rows + (at + i) * stride + offset, bytes);
        b->matrix_pack(&(struct kern_pack){m, at, n, bounce, bytes + 6, first});
        free(bounce);
    }
    t_guard_check(m->data);
}

static inline void matrix_close(struct kern_matrix *m) {
    free(m->columns.segment_begin);
    free(m->columns.segment_columns);
    t_guard_free(m->data);
}

/* Every thread's share in turn, the last thread first: shares must not depend on each other. */
static inline void multiply(const struct kern_backend *b, struct kern_matmul *args, int n_threads) {
    const struct kern_columns *c = &args->parts[0].matrix->columns;
    args->scratch = t_guard_alloc(b->matmul_scratch_bytes(c, args->n_tokens));
    for (int i = n_threads - 1; i >= 0; i--)
        b->matmul_prepare((struct kern_queue){i, n_threads}, args);
    for (int i = n_threads - 1; i >= 0; i--)
        b->matmul((struct kern_queue){i, n_threads}, args);
    t_guard_free(args->scratch);
}

/* y [n_vectors][n_tokens][n_rows], guarded; NULL where there is nothing */
static inline float *product(const struct kern_backend *b, const struct kern_matrix *m, const float *x, size_t x_stride, int n_tokens, const float *bias,
                      int n_threads) {
    size_t n = (size_t)m->columns.n_vectors * (size_t)n_tokens * m->n_rows;
    float *y = t_guard_alloc(n * sizeof *y);
    struct kern_matmul args = {.x = x, .x_stride = x_stride, .n_tokens = n_tokens, .n_parts = 1};
    args.parts[0] = (struct kern_matmul_part){m, bias, y, m->n_rows, m->n_rows * (size_t)n_tokens};
    multiply(b, &args, n_threads);
    t_guard_check(y);
    return y;
}

#endif
