/* For the conformance suites of kernels/: which backends take part, and random inputs. */
#ifndef TESTS_T_KERNELS_H
#define TESTS_T_KERNELS_H

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "tests/t.h"

/* Under a sanitizer that watches memory or threads, code runs five to twenty times slower. Cases that reach no new code there, only more numbers, are then
 * made smaller by T_SIZE(whole, sanitized); every op, format, variant, odd or empty shape and guard byte stays. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define T_SANITIZED 1
#elif defined(__has_feature) /* clang */
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define T_SANITIZED 1
#endif
#endif
#ifndef T_SANITIZED
#define T_SANITIZED 0
#endif
#define T_SIZE(whole, sanitized) (T_SANITIZED ? (sanitized) : (whole))

/* Every one that this machine can run; TANDEM_TEST_KERNELS="avx2" restricts a run by hand to one variant. */
static inline bool t_kernels_on(const struct kern_backend *b) {
    const char *only = getenv("TANDEM_TEST_KERNELS");
    return b->probe() && (!only || strcmp(only, b->variant) == 0);
}

/* malloc'ed; never NULL, n may be 0 */
static inline float *random_floats(struct base_rng *r, size_t n, float size) {
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = base_rng_normal(r) * size;
    return x;
}

#endif
