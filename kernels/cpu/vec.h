/* Sixteen F32 lanes: one AVX-512 register, two AVX2 registers, or an array. Every operation gives the same bits in all three forms, so an op that is written over
 * these gives the same bits on every instruction set. Sums over lanes are the fixed tree: lane l with l + 8, then + 4, + 2, + 1.
 *
 * The including file defines one of VEC_AVX512, VEC_AVX2 (and is compiled with those flags) or neither. */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/formats.h"
#include "base/math_const.h"

#define VEC_LANES 16
#define VEC_INLINE static inline __attribute__((always_inline, unused))

#if defined(VEC_AVX512)

/* ---- AVX-512 (F, BW, VL, DQ) and F16C ------------------------------------------------------------------------------------------------------------ */

#include <immintrin.h>

typedef __m512 vec;

VEC_INLINE __mmask16 vec_first(size_t n) { return (__mmask16)((1u << n) - 1); }
VEC_INLINE vec vec_zero(void) { return _mm512_setzero_ps(); }
VEC_INLINE vec vec_set1(float x) { return _mm512_set1_ps(x); }
VEC_INLINE vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
VEC_INLINE vec vec_load_n(const float *p, size_t n) { return _mm512_maskz_loadu_ps(vec_first(n), p); }
VEC_INLINE void vec_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
VEC_INLINE void vec_store_n(float *p, vec v, size_t n) { _mm512_mask_storeu_ps(p, vec_first(n), v); }
VEC_INLINE vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
VEC_INLINE vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
VEC_INLINE vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
VEC_INLINE vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
VEC_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
VEC_INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* a > b ? a : b, so b where one is NaN */
VEC_INLINE vec vec_neg(vec a) { return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)0x80000000u))); }
VEC_INLINE vec vec_keep(vec v, size_t n, vec other) { return _mm512_mask_mov_ps(other, vec_first(n), v); } /* lanes < n of v, the rest of other */
VEC_INLINE uint32_t vec_bits_greater(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
VEC_INLINE uint32_t vec_bits_not_less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); } /* a ≥ b or NaN */
VEC_INLINE vec vec_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
VEC_INLINE vec vec_load_f16_n(const uint16_t *p, size_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vec_first(n), p)); }
VEC_INLINE vec vec_widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
VEC_INLINE vec vec_load_bf16(const uint16_t *p) { return vec_widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
VEC_INLINE vec vec_load_bf16_n(const uint16_t *p, size_t n) { return vec_widen_bf16(_mm256_maskz_loadu_epi16(vec_first(n), p)); }
VEC_INLINE void vec_store_f16(uint16_t *p, vec v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* E4M3 / 256 as F16: with its sign in both upper bits a code needs only seven places to the left and the second sign bit away, which is to be set where all others are: for NaN. */
VEC_INLINE vec vec_load_e4m3_raw(__m128i codes)
{
    const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7), carried = _mm256_add_epi16(h, _mm256_set1_epi16(0x80));
    return _mm512_cvtph_ps(_mm256_ternarylogic_epi32(h, carried, _mm256_set1_epi16(0x4000), 0x78)); /* h ^ (carried & 0x4000) */
}
VEC_INLINE vec vec_load_e4m3(const uint8_t *p) { return vec_load_e4m3_raw(_mm_loadu_si128((const __m128i *)p)); }
VEC_INLINE vec vec_load_e4m3_n(const uint8_t *p, size_t n) { return vec_load_e4m3_raw(_mm_maskz_loadu_epi8(vec_first(n), p)); }
VEC_INLINE void vec_load_two_e4m3(const uint8_t *p, vec *a, vec *b)
{
    const __m512i h = _mm512_slli_epi16(_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)), 7), carried = _mm512_add_epi16(h, _mm512_set1_epi16(0x80));
    const __m512i f16 = _mm512_ternarylogic_epi32(h, carried, _mm512_set1_epi16(0x4000), 0x78);
    *a = _mm512_cvtph_ps(_mm512_castsi512_si256(f16));
    *b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(f16, 1));
}
/* kern_f32_to_e4m3, lane by lane */
VEC_INLINE void vec_store_e4m3(uint8_t *p, vec v)
{
    const __m512i bits = _mm512_castps_si512(v), magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i units = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1.8p14f)));
    const __m512i subnormal = _mm512_sub_epi32(units, _mm512_castps_si512(_mm512_set1_ps(0x1.8p14f)));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    __m512i code = _mm512_srli_epi32(_mm512_sub_epi32(_mm512_add_epi32(magnitude, odd), _mm512_set1_epi32(0x3c000000 - 0x7ffff)), 20);
    code = _mm512_mask_mov_epi32(code, _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c800000)), subnormal);
    code = _mm512_mask_mov_epi32(code, _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x43e00000)), _mm512_set1_epi32(0x7e));
    code = _mm512_mask_mov_epi32(code, _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000)), _mm512_set1_epi32(0x7f));
    code = _mm512_or_si512(code, _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80)));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(code));
}
VEC_INLINE vec vec_floats_of_u32(const uint32_t *p) { return _mm512_cvtepu32_ps(_mm512_loadu_si512(p)); }
VEC_INLINE float vec_lane0(vec v) { return _mm512_cvtss_f32(v); }
VEC_INLINE float vec_largest(vec v) { return _mm512_reduce_max_ps(v); }

VEC_INLINE vec vec_exp(vec x)
{
    const vec magic = _mm512_set1_ps(EXPF_MAGIC);
    vec shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(EXPF_LOG2E), magic), n = _mm512_sub_ps(shifted, magic);
    vec r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXPF_LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(EXPF_LN2_LOW), r);
    vec p = _mm512_fmadd_ps(_mm512_set1_ps(EXPF_P5), r, _mm512_set1_ps(EXPF_P4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXPF_P0));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    p = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXPF_HIGH), _CMP_GT_OQ), _mm512_set1_ps(INFINITY));
    p = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(EXPF_LOW), _CMP_NLT_UQ), p);
    return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

#elif defined(VEC_AVX2)

/* ---- AVX2, FMA, F16C: lanes 0–7 and 8–15 --------------------------------------------------------------------------------------------------------- */

#include <immintrin.h>

typedef struct {
    __m256 lo, hi;
} vec;

VEC_INLINE vec vec_pair(__m256 lo, __m256 hi) { return (vec){lo, hi}; }
VEC_INLINE vec vec_zero(void) { return vec_pair(_mm256_setzero_ps(), _mm256_setzero_ps()); }
VEC_INLINE vec vec_set1(float x) { return vec_pair(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
VEC_INLINE vec vec_load(const float *p) { return vec_pair(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
VEC_INLINE void vec_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}
/* mask of lanes < n among those that begin at lane `from` */
VEC_INLINE __m256i vec_first8(size_t n, int from)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - from), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC_INLINE vec vec_load_n(const float *p, size_t n)
{
    return vec_pair(_mm256_maskload_ps(p, vec_first8(n, 0)), n > 8 ? _mm256_maskload_ps(p + 8, vec_first8(n, 8)) : _mm256_setzero_ps());
}
VEC_INLINE void vec_store_n(float *p, vec v, size_t n)
{
    _mm256_maskstore_ps(p, vec_first8(n, 0), v.lo);
    if (n > 8) _mm256_maskstore_ps(p + 8, vec_first8(n, 8), v.hi);
}
VEC_INLINE vec vec_add(vec a, vec b) { return vec_pair(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
VEC_INLINE vec vec_sub(vec a, vec b) { return vec_pair(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
VEC_INLINE vec vec_mul(vec a, vec b) { return vec_pair(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
VEC_INLINE vec vec_div(vec a, vec b) { return vec_pair(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
VEC_INLINE vec vec_fma(vec a, vec b, vec c) { return vec_pair(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)); }
VEC_INLINE vec vec_max(vec a, vec b) { return vec_pair(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
VEC_INLINE vec vec_neg(vec a)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return vec_pair(_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign));
}
VEC_INLINE vec vec_keep(vec v, size_t n, vec other)
{
    return vec_pair(_mm256_blendv_ps(other.lo, v.lo, _mm256_castsi256_ps(vec_first8(n, 0))),
                    _mm256_blendv_ps(other.hi, v.hi, _mm256_castsi256_ps(vec_first8(n, 8))));
}
VEC_INLINE uint32_t vec_bits_greater(vec a, vec b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)) | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)) << 8;
}
VEC_INLINE uint32_t vec_bits_not_less(vec a, vec b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ)) | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ)) << 8;
}
VEC_INLINE vec vec_load_f16(const uint16_t *p)
{
    return vec_pair(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
VEC_INLINE __m256 vec_widen_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
VEC_INLINE vec vec_load_bf16(const uint16_t *p) { return vec_pair(vec_widen_bf16(p), vec_widen_bf16(p + 8)); }
VEC_INLINE vec vec_load_f16_n(const uint16_t *p, size_t n)
{
    uint16_t h[VEC_LANES] = {0};
    memcpy(h, p, n * 2);
    return vec_load_f16(h);
}
VEC_INLINE vec vec_load_bf16_n(const uint16_t *p, size_t n)
{
    uint16_t h[VEC_LANES] = {0};
    memcpy(h, p, n * 2);
    return vec_load_bf16(h);
}
VEC_INLINE void vec_store_f16(uint16_t *p, vec v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* E4M3 / 256 as F16: with its sign in both upper bits a code needs only seven places to the left and the second sign bit away, which is to be set where all others are: for NaN. */
VEC_INLINE __m256i vec_e4m3_as_f16(__m128i codes)
{
    const __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    return _mm256_xor_si256(h, _mm256_and_si256(_mm256_add_epi16(h, _mm256_set1_epi16(0x80)), _mm256_set1_epi16(0x4000)));
}
VEC_INLINE vec vec_load_e4m3(const uint8_t *p)
{
    const __m256i h = vec_e4m3_as_f16(_mm_loadu_si128((const __m128i *)p));
    return vec_pair(_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)));
}
VEC_INLINE vec vec_load_e4m3_n(const uint8_t *p, size_t n)
{
    uint8_t codes[VEC_LANES] = {0};
    memcpy(codes, p, n);
    return vec_load_e4m3(codes);
}
VEC_INLINE void vec_load_two_e4m3(const uint8_t *p, vec *a, vec *b)
{
    *a = vec_load_e4m3(p);
    *b = vec_load_e4m3(p + VEC_LANES);
}
/* kern_f32_to_e4m3, lane by lane */
VEC_INLINE __m256i vec_e4m3_of8(__m256 v)
{
    const __m256i bits = _mm256_castps_si256(v), magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i units = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1.8p14f)));
    const __m256i subnormal = _mm256_sub_epi32(units, _mm256_castps_si256(_mm256_set1_ps(0x1.8p14f)));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
    __m256i code = _mm256_srli_epi32(_mm256_sub_epi32(_mm256_add_epi32(magnitude, odd), _mm256_set1_epi32(0x3c000000 - 0x7ffff)), 20);
    code = _mm256_blendv_epi8(subnormal, code, _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x3c7fffff)));
    code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7e), _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x43e00000)));
    code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7f), _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000)));
    return _mm256_or_si256(code, _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
}
VEC_INLINE void vec_store_e4m3(uint8_t *p, vec v)
{
    const __m256i words = _mm256_packus_epi32(vec_e4m3_of8(v.lo), vec_e4m3_of8(v.hi)); /* lanes 0–3, 8–11, 4–7, 12–15 */
    const __m256i in_order = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(in_order), _mm256_extracti128_si256(in_order, 1)));
}

VEC_INLINE __m256 vec_exp8(__m256 x)
{
    const __m256 magic = _mm256_set1_ps(EXPF_MAGIC);
    __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(EXPF_LOG2E), magic), n = _mm256_sub_ps(shifted, magic);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXPF_LN2_HIGH), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXPF_LN2_LOW), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(EXPF_P5), r, _mm256_set1_ps(EXPF_P4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXPF_P0));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
    p = _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, _mm256_set1_ps(EXPF_HIGH), _CMP_GT_OQ));
    p = _mm256_and_ps(p, _mm256_cmp_ps(x, _mm256_set1_ps(EXPF_LOW), _CMP_NLT_UQ));
    return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
VEC_INLINE vec vec_exp(vec x) { return vec_pair(vec_exp8(x.lo), vec_exp8(x.hi)); }
/* Exact halves, one rounding in the sum, as in a direct conversion of an unsigned number */
VEC_INLINE __m256 vec_floats_of_u32_8(const uint32_t *p)
{
    __m256i u = _mm256_loadu_si256((const __m256i *)p);
    __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(u, _mm256_set1_epi32(0xffff))), high = _mm256_cvtepi32_ps(_mm256_srli_epi32(u, 16));
    return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
}
VEC_INLINE vec vec_floats_of_u32(const uint32_t *p) { return vec_pair(vec_floats_of_u32_8(p), vec_floats_of_u32_8(p + 8)); }
VEC_INLINE float vec_lane0(vec v) { return _mm256_cvtss_f32(v.lo); }
VEC_INLINE float vec_largest(vec v)
{
    __m256 m = _mm256_max_ps(v.lo, v.hi);
    __m128 n = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    n = _mm_max_ps(n, _mm_movehl_ps(n, n));
    return _mm_cvtss_f32(_mm_max_ss(n, _mm_movehdup_ps(n)));
}

#else

/* ---- plain C ------------------------------------------------------------------------------------------------------------------------------------- */

#include "base/math.h"

typedef struct {
    float f[VEC_LANES];
} vec;

#define VEC_EACH(expression)                   \
    do {                                       \
        vec v_;                                \
        for (int l = 0; l < VEC_LANES; l++)    \
            v_.f[l] = (expression);            \
        return v_;                             \
    } while (0)
VEC_INLINE vec vec_zero(void) { VEC_EACH(0.0f); }
VEC_INLINE vec vec_set1(float x) { VEC_EACH(x); }
VEC_INLINE vec vec_load(const float *p) { VEC_EACH(p[l]); }
VEC_INLINE vec vec_load_n(const float *p, size_t n) { VEC_EACH((size_t)l < n ? p[l] : 0.0f); }
VEC_INLINE void vec_store(float *p, vec v) { memcpy(p, v.f, sizeof v.f); }
VEC_INLINE void vec_store_n(float *p, vec v, size_t n) { memcpy(p, v.f, n * sizeof v.f[0]); }
VEC_INLINE vec vec_add(vec a, vec b) { VEC_EACH(a.f[l] + b.f[l]); }
VEC_INLINE vec vec_sub(vec a, vec b) { VEC_EACH(a.f[l] - b.f[l]); }
VEC_INLINE vec vec_mul(vec a, vec b) { VEC_EACH(a.f[l] * b.f[l]); }
VEC_INLINE vec vec_div(vec a, vec b) { VEC_EACH(a.f[l] / b.f[l]); }
VEC_INLINE vec vec_fma(vec a, vec b, vec c) { VEC_EACH(fmaf(a.f[l], b.f[l], c.f[l])); }
VEC_INLINE vec vec_max(vec a, vec b) { VEC_EACH(a.f[l] > b.f[l] ? a.f[l] : b.f[l]); }
VEC_INLINE vec vec_neg(vec a) { VEC_EACH(-a.f[l]); }
VEC_INLINE vec vec_keep(vec v, size_t n, vec other) { VEC_EACH((size_t)l < n ? v.f[l] : other.f[l]); }
VEC_INLINE uint32_t vec_bits_greater(vec a, vec b)
{
    uint32_t bits = 0;
    for (int l = 0; l < VEC_LANES; l++) bits |= (uint32_t)(a.f[l] > b.f[l]) << l;
    return bits;
}
VEC_INLINE uint32_t vec_bits_not_less(vec a, vec b)
{
    uint32_t bits = 0;
    for (int l = 0; l < VEC_LANES; l++) bits |= (uint32_t) !(a.f[l] < b.f[l]) << l;
    return bits;
}
VEC_INLINE vec vec_load_f16(const uint16_t *p) { VEC_EACH(kern_f16_to_f32(p[l])); }
VEC_INLINE vec vec_load_bf16(const uint16_t *p) { VEC_EACH(kern_bf16_to_f32(p[l])); }
VEC_INLINE vec vec_load_f16_n(const uint16_t *p, size_t n) { VEC_EACH((size_t)l < n ? kern_f16_to_f32(p[l]) : 0.0f); }
VEC_INLINE vec vec_load_bf16_n(const uint16_t *p, size_t n) { VEC_EACH((size_t)l < n ? kern_bf16_to_f32(p[l]) : 0.0f); }
VEC_INLINE void vec_store_f16(uint16_t *p, vec v)
{
    for (int l = 0; l < VEC_LANES; l++) p[l] = kern_f32_to_f16(v.f[l]);
}
VEC_INLINE vec vec_load_e4m3(const uint8_t *p) { VEC_EACH(kern_e4m3_to_f32(p[l]) / 256); }
VEC_INLINE vec vec_load_e4m3_n(const uint8_t *p, size_t n) { VEC_EACH((size_t)l < n ? kern_e4m3_to_f32(p[l]) / 256 : 0.0f); }
VEC_INLINE void vec_load_two_e4m3(const uint8_t *p, vec *a, vec *b)
{
    *a = vec_load_e4m3(p);
    *b = vec_load_e4m3(p + VEC_LANES);
}
VEC_INLINE void vec_store_e4m3(uint8_t *p, vec v)
{
    for (int l = 0; l < VEC_LANES; l++) p[l] = kern_f32_to_e4m3(v.f[l]);
}
VEC_INLINE vec vec_exp(vec x) { VEC_EACH(base_math_expf(x.f[l])); }
VEC_INLINE vec vec_floats_of_u32(const uint32_t *p) { VEC_EACH((float)p[l]); }
VEC_INLINE float vec_lane0(vec v) { return v.f[0]; }
VEC_INLINE float vec_largest(vec v)
{
    for (int w = VEC_LANES / 2; w; w /= 2)
        for (int l = 0; l < w; l++) v.f[l] = v.f[l] > v.f[l + w] ? v.f[l] : v.f[l + w];
    return v.f[0];
}

#endif

/* ---- over the lanes ------------------------------------------------------------------------------------------------------------------------------ */

/* Through memory on purpose: the order is plain to see, and it is not on any inner loop. */
VEC_INLINE float vec_sum(vec v)
{
    float f[VEC_LANES];
    vec_store(f, v);
    for (int w = VEC_LANES / 2; w; w /= 2)
        for (int l = 0; l < w; l++) f[l] = f[l] + f[l + w];
    return f[0];
}

/* One of the cache's formats; a constant after inlining. i: in elements. E4M3 comes divided by 256. */
VEC_INLINE vec vec_load_as(enum format f, const void *base, size_t i)
{
    return f == FMT_F32    ? vec_load((const float *)base + i)
           : f == FMT_F16  ? vec_load_f16((const uint16_t *)base + i)
           : f == FMT_BF16 ? vec_load_bf16((const uint16_t *)base + i)
                           : vec_load_e4m3((const uint8_t *)base + i);
}
/* Two vectors that lie side by side: cheaper than one by one in E4M3. */
VEC_INLINE void vec_load_two_as(enum format f, const void *base, size_t i, vec *a, vec *b)
{
    if (f == FMT_E4M3) {
        vec_load_two_e4m3((const uint8_t *)base + i, a, b);
        return;
    }
    *a = vec_load_as(f, base, i);
    *b = vec_load_as(f, base, i + VEC_LANES);
}
VEC_INLINE vec vec_load_as_n(enum format f, const void *base, size_t i, size_t n)
{
    return f == FMT_F32   ? vec_load_n((const float *)base + i, n)
           : f == FMT_F16 ? vec_load_f16_n((const uint16_t *)base + i, n)
           : f == FMT_BF16 ? vec_load_bf16_n((const uint16_t *)base + i, n)
                           : vec_load_e4m3_n((const uint8_t *)base + i, n);
}

#endif
