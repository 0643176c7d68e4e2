/* For benchmarks of products: matrices of plausible numbers, and the plain read that they are compared with. */
#ifndef BENCH_WEIGHTS_H
#define BENCH_WEIGHTS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/rng.h"
#include "kernels/kernels.h"

static inline void *allocate(size_t bytes) {
    size_t alignment = bytes >= 4 << 20 ? 2 << 20 : 64; /* large ones in huge pages, as arenas have them */
    bytes = (bytes + alignment - 1) & ~(alignment - 1);
    void *p = aligned_alloc(alignment, bytes);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    if (alignment > 64) madvise(p, bytes, MADV_HUGEPAGE);
    memset(p, 0, bytes);
    return p;
}

/* A format that a loader puts together from tensors of codes and of scales. */
static inline bool is_joined(enum format f) { return f >= FMT_FP8; }

/* One block of plausible numbers. */
static inline void fill_block(enum format f, struct base_rng *rng, uint8_t *block) {
    uint16_t half = kern_f32_to_f16(base_rng_uniform(rng, 0.001f, 0.01f)), brain = kern_f32_to_bf16(base_rng_normal(rng));
    float number = base_rng_normal(rng);
    for (size_t i = 0; i < kern_format(f)->block_bytes; i++) block[i] = (uint8_t)base_rng_u32(rng);
    if (is_joined(f)) {
        number = base_rng_uniform(rng, 0.001f, 0.01f);
        memcpy(block, &number, 4);
        if (kern_format(f)->has_minimum) memcpy(block + 4, &number, 4);
        for (int i = 4; i < 36 && f == FMT_FP8; i++)
            if ((block[i] & 0x7f) == 0x7f) block[i] = 0;
        return;
    }
    if (kern_format(f)->has_minimum) memcpy(block + 2, &half, 2);
    switch (f) {
    case FMT_F32: memcpy(block, &number, 4); break;
    case FMT_BF16: memcpy(block, &brain, 2); break;
    case FMT_Q6_K: memcpy(block + 208, &half, 2); break;
    case FMT_MXFP4: block[0] = (uint8_t)(118 + block[0] % 4); break;
    case FMT_NVFP4:
        for (int i = 0; i < 4; i++) block[i] %= 40; /* some of them subnormal */
        break;
    default: memcpy(block, &half, 2);
    }
}

/* A matrix without rows or data yet: leaves of whole units of 64 columns, 256 with super-blocks. */
static inline void matrix_start(struct kern_matrix *m, enum format format, enum kern_activation activation, uint32_t n_columns, uint32_t n_leaves) {
    uint64_t leaf_end[KERN_MAX_LEAVES];
    uint32_t unit = kern_format(format)->super_block ? 256 : 64, n_units = n_columns / unit, n_segments = kern_columns_max_segments(n_columns, n_leaves);
    for (uint32_t i = 0; i < n_leaves; i++) leaf_end[i] = (uint64_t)(i + 1) * n_units / n_leaves * unit;
    *m = (struct kern_matrix){.format = format, .activation = activation, .n_rows = KERN_TILE_ROWS, .scale = 1, .scale_columns = 128};
    kern_columns_init(&m->columns, 0, leaf_end, 0, n_leaves, n_leaves, allocate(n_segments * sizeof(uint32_t)), allocate(n_segments));
}

/* One row tile of random numbers, repeated, into data. */
static inline void matrix_fill(struct kern_matrix *m, const struct kern_backend *kernels, uint64_t n_tiles) {
    m->n_rows = KERN_TILE_ROWS;
    size_t row_bytes = kern_format_row_bytes(m->format, m->columns.end), tile_bytes = kernels->matrix_bytes(m);
    uint8_t *src = allocate(row_bytes * KERN_TILE_ROWS);
    struct base_rng rng;
    base_rng_init(&rng, 1);
    for (size_t at = 0; at < row_bytes * KERN_TILE_ROWS; at += kern_format(m->format)->block_bytes) fill_block(m->format, &rng, src + at);
    kernels->matrix_pack(&(struct kern_pack){.matrix = m, .n_rows = KERN_TILE_ROWS, .src = src, .row_stride_bytes = row_bytes});
    for (uint64_t i = 1; i < n_tiles; i++) memcpy((uint8_t *)m->data + i * tile_bytes, m->data, tile_bytes);
    m->n_rows = n_tiles * KERN_TILE_ROWS;
    free(src);
}

/* All but data, which is the caller's. */
static inline void matrix_stop(struct kern_matrix *m) {
    free(m->columns.segment_begin);
    free(m->columns.segment_columns);
}

/* ---- the plain read ----------------------------------------------------------------------------------------------------------------------------- */

typedef uint64_t wide __attribute__((vector_size(64)));
static volatile uint64_t sink;

/* Four streams side by side, each its quarter, four lines at a time: faster here than one stream from end to end, and what the kernels do. */
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static uint64_t
read_all(const wide *p, size_t n) {
    wide sums[4] = {{0}};
    for (size_t i = 0; i < n / 4; i += 4)
        for (size_t stream = 0; stream < 4; stream++) {
            const wide *from = p + stream * (n / 4) + i;
            for (size_t line = 0; line < 4; line++) __builtin_prefetch((const char *)(from + line) + 4096);
            sums[stream] ^= from[0] ^ from[1] ^ from[2] ^ from[3];
        }
    wide a = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

#endif
