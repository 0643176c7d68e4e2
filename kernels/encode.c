/* Encoders. Written plainly: a disk feeds them. The order of every operation is the packages' (encode.h), and is what tests/kernels_encode_test.c holds against their bytes. */
#include "kernels/encode.h"

#include <math.h>
#include <string.h>

#include "kernels/formats.h"

enum { NVFP4_GROUP = 16, MXFP4_GROUP = 32, Q8_0_GROUP = 32 };

static uint32_t to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float kern_encode_amax(const float *x, size_t n)
{
    /* Magnitudes order like whole numbers, and NaNs lie above infinity. */
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t magnitude = to_bits(x[i]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    return from_bits(most < 0x7f800000u ? most : 0x7f800000u);
}

/* Nearest E2M1 code (0 … 15), ties to the even code; beyond ±6: ±6. A negative number that rounds to zero is code 8, −0 is code 0. */
static uint8_t to_e2m1(float x)
{
    const float a = x < 0 ? -x : x;
    /* Up at a tie to the even code: 0.75, 1.75, 3.5; down at 0.25, 1.25, 2.5, 5. */
    const int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return (uint8_t)(code | (x < 0 ? 8 : 0));
}

static void pack(const float *x, size_t n, float scale, uint8_t *codes)
{
    for (size_t i = 0; i < n / 2; i++)
        codes[i] = (uint8_t)(to_e2m1(x[2 * i] / scale) | to_e2m1(x[2 * i + 1] / scale) << 4);
}

float kern_encode_nvfp4_global(float amax)
{
    const float least = 0x1p-126f, global = 1 / (amax > least ? amax : least) * 2688;
    return isfinite(global) ? global : 1;
}

void kern_encode_nvfp4(const float *x, size_t n, float global, uint8_t *codes, uint8_t *scales)
{
    for (size_t i = 0; i < n; i += NVFP4_GROUP) {
        const float wanted = kern_encode_amax(x + i, NVFP4_GROUP) / 6;
        uint8_t scale = kern_f32_to_e4m3(global * wanted);
        if (scale == 0)
            scale = 0x20; /* 0.125: the package's guard against a division by zero */
        *scales++ = scale;
        pack(x + i, NVFP4_GROUP, kern_e4m3_to_f32(scale) / global, codes + i / 2);
    }
}

void kern_encode_mxfp4(const float *x, size_t n, uint8_t *codes, uint8_t *scales)
{
    for (size_t i = 0; i < n; i += MXFP4_GROUP) {
        const uint32_t exponent = (to_bits(kern_encode_amax(x + i, MXFP4_GROUP)) + 0x200000u) >> 23;
        const uint8_t scale = (uint8_t)(exponent > 2 ? exponent - 2 : 0);
        *scales++ = scale;
        pack(x + i, MXFP4_GROUP, from_bits(scale ? (uint32_t)scale << 23 : 0x400000u), codes + i / 2);
    }
}

float kern_encode_fp8_scale(float amax)
{
    const float scale = amax / 448;
    return scale == 0 ? 0x1p-23f : scale;
}

void kern_encode_fp8_codes(const float *x, size_t n, float scale, uint8_t *codes)
{
    for (size_t i = 0; i < n; i++)
        codes[i] = kern_f32_to_e4m3(x[i] / scale);
}

float kern_encode_fp8(const float *x, size_t n, uint8_t *codes)
{
    const float scale = kern_encode_fp8_scale(kern_encode_amax(x, n));
    kern_encode_fp8_codes(x, n, scale, codes);
    return scale;
}

bool kern_encode_q8_0(const float *x, size_t n, void *blocks)
{
    unsigned char *out = blocks;
    for (size_t i = 0; i < n; i += Q8_0_GROUP, out += 34) {
        const float d = kern_encode_amax(x + i, Q8_0_GROUP) / 127;
        const float inverse = d == 0 ? 0 : 1 / d;
        const uint16_t stored = kern_f32_to_f16(d);
        if ((stored & 0x7c00u) == 0x7c00u)
            return false;
        memcpy(out, &stored, 2);
        for (size_t k = 0; k < Q8_0_GROUP; k++) /* below 2^-128 there is no 1 ÷ d, and d is stored as 0 */
            out[2 + k] = (unsigned char)(int8_t)(isfinite(inverse) ? roundf(x[i + k] * inverse) : 0);
    }
    return true;
}
