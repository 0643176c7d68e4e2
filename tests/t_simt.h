/* For tests of kernels/cuda in the harness: memory of the emulated device, comparison with `ref`. */
#ifndef TESTS_T_SIMT_H
#define TESTS_T_SIMT_H

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/ref/ref.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/simt_host.h"
#include "tests/t_kernels.h"

/* How an emulated matrix instruction may add up. */
static const char *const t_models[] = {"exact", "truncating", "permuted"};

/* What asks for counts has nothing to say of a GPU. */
#define needs_harness() \
    do { \
        if (!simt_is_emulated()) skip(); \
    } while (0)

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const struct kern_queue whole = {0, 1};

static inline void *to_device(const void *host, size_t bytes) {
    void *p;
    assert_int_equal(cudaMalloc(&p, bytes), cudaSuccess);
    assert_int_equal(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}

/* got (on the device) is want, to the bit, gaps between rows included; frees got. */
static inline void expect_same(const char *what, void *got, const float *want, size_t n) {
    float *host = malloc(n * sizeof *host);
    assert_non_null(host);
    assert_int_equal(cudaMemcpy(host, got, n * sizeof *host, cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t i = 0; i < n; i++)
        if (memcmp(host + i, want + i, sizeof *host) != 0)
            fail_msg("%s: element %d is %.9g, ref has %.9g", what, (int)i, (double)host[i], (double)want[i]);
    free(host);
    assert_int_equal(cudaFree(got), cudaSuccess);
}

static inline float *copy_of(const float *x, size_t n) {
    float *y = malloc(n * sizeof *y);
    assert_non_null(y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

static inline uint16_t *random_bf16(struct base_rng *r, size_t n) {
    uint16_t *w = malloc(n * sizeof *w);
    assert_non_null(w);
    for (size_t i = 0; i < n; i++)
        w[i] = kern_f32_to_bf16(base_rng_normal(r));
    return w;
}

/* One leaf per entry of ends; storage of the arrays: the caller's. */
static inline struct kern_matrix matrix_of(uint64_t n_rows, const uint64_t *ends, uint32_t lo, uint32_t n, uint32_t n_total, uint64_t begin, uint32_t *segment_begin, uint8_t *columns) {
    struct kern_matrix m = {.format = FMT_BF16, .activation = KERN_ACT_F32, .n_rows = n_rows, .scale = 1};
    kern_columns_init(&m.columns, begin, ends, lo, lo + n, n_total, segment_begin, columns);
    return m;
}

#endif
