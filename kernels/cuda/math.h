/* exp on a GPU with the bits of base_math_expf: the same constants, the same steps. */
#ifndef KERNELS_CUDA_MATH_H
#define KERNELS_CUDA_MATH_H

#include "base/math_const.h"
#include "kernels/simt/simt.h"

__device__ inline float cuda_expf(float x) {
    if (!(x <= EXPF_HIGH))
        return x != x ? x : float_of_bits(0x7f800000u);
    if (x < EXPF_LOW)
        return 0.0f;
    float shifted = fma_rn(x, EXPF_LOG2E, EXPF_MAGIC), n = add_rn(shifted, -EXPF_MAGIC);
    float r = fma_rn(-n, EXPF_LN2_HIGH, x);
    r = fma_rn(-n, EXPF_LN2_LOW, r);
    float p = fma_rn(EXPF_P5, r, EXPF_P4);
    p = fma_rn(p, r, EXPF_P3);
    p = fma_rn(p, r, EXPF_P2);
    p = fma_rn(p, r, EXPF_P1);
    p = fma_rn(p, r, EXPF_P0);
    p = add_rn(fma_rn(p, mul_rn(r, r), r), 1.0f);
    return float_of_bits(bits_of_float(p) + (bits_of_float(shifted) << 23));
}

__device__ inline float cuda_bf16(uint32_t x) { return float_of_bits(x << 16); }
/* Both move the bits to where F32 has them and make up for the difference of the exponents' biases, which is exact for subnormals too. E4M3's NaN is taken for 480. */
__device__ inline float cuda_e4m3(uint32_t x) { return mul_rn(float_of_bits((x & 0x80) << 24 | (x & 0x7f) << 20), 0x1p120f); }
__device__ inline float cuda_e2m1(uint32_t x) { return mul_rn(float_of_bits((x & 8) << 28 | (x & 7) << 22), 0x1p126f); }

#endif
