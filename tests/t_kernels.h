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

static inline const char *t_activation(enum kern_activation a) { return a == KERN_ACT_F32 ? "f32" : a == KERN_ACT_INT8 ? "int8" : "int8_16"; }

/* Formats with F32 scales, which scale_columns share; a tensor's last block of a row may be short of columns. */
static inline bool t_is_joined(enum format f) { return f >= FMT_FP8; }

static inline void t_plausible_scales_joined(struct base_rng *r, enum format f, unsigned char *block) {
    const float d = base_rng_uniform(r, -0.02f, 0.02f) / (f == FMT_FP8 ? 64 : f >= FMT_INT8 ? 8 : 1), m = base_rng_uniform(r, -0.2f, 0.2f);
    memcpy(block, &d, 4);
    if (kern_format(f)->has_minimum)
        memcpy(block + 4, &m, 4);
    for (int i = 0; i < 32 && f == FMT_FP8; i++)
        if ((block[4 + i] & 0x7f) == 0x7f) /* NaN: refused by who reads the file */
            block[4 + i] ^= 1;
}

/* The scales of one block whose other bytes are random already: numbers of a sensible size. */
static inline void t_plausible_scales(struct base_rng *r, enum format f, unsigned char *block) {
    if (t_is_joined(f)) {
        t_plausible_scales_joined(r, f, block);
        return;
    }
    const bool super = kern_format(f)->super_block > 0;
    uint16_t d = kern_f32_to_f16(base_rng_uniform(r, -0.02f, 0.02f) / (super ? 32 : 1)), m = kern_f32_to_f16(base_rng_uniform(r, -0.2f, 0.2f) / (super ? 32 : 1));
    if (f == FMT_MXFP4)
        block[0] = (unsigned char)(118 + base_rng_below(r, 6));
    else if (f == FMT_NVFP4)
        for (int i = 0; i < 4; i++)
            block[i] = (unsigned char)base_rng_below(r, 48); /* subnormals too; up to 0.5 */
    else
        memcpy(block + (f == FMT_Q6_K ? 208 : 0), &d, 2);
    if (kern_format(f)->has_minimum)
        memcpy(block + 2, &m, 2);
}

#endif
