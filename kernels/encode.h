/* From F32 rows to stored formats: what `kern_format_dequantise` and the loader read back. Scalar, one row at a time, no state; any thread.
 *
 * All arithmetic is F32, each operation rounded once, to nearest even unless said otherwise, so that the bytes are those of the packages named beside each format when they are given
 * F32 weights. (compressed-tensors computes in the weights' own type: given BF16 it rounds quotients and scales to BF16 first.)
 * Rows must be finite: ask kern_encode_amax first. */
#ifndef KERNELS_ENCODE_H
#define KERNELS_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Largest magnitude; +infinity where a value is infinite or NaN. 0 for no values. */
float kern_encode_amax(const float *x, size_t n);

/* Two formats of 16 and 32 columns in a group; n is a multiple of it. codes: n/2 bytes, column 2i in the low nibble of byte i; scales: one byte a group.
 *
 * NVFP4: value = code · scale ÷ global. global = (1 ÷ amax of the tensor) · 2688 (6 · 448: the largest block gets the largest scale), 1 where that is not finite.
 * scale = E4M3(global · (amax of the group ÷ 6)), 0.125 where that is zero; code = E2M1(x ÷ (scale ÷ global)). compressed-tensors 0.20: generate_gparam, calculate_qparams. */
float kern_encode_nvfp4_global(float amax);
void kern_encode_nvfp4(const float *x, size_t n, float global, uint8_t *codes, uint8_t *scales);
/* MXFP4: value = code · 2^(scale − 127). 2^(scale − 127) = amax of the group, rounded up to a power of two from a mantissa of 1.75 on and down below, ÷ 4; not below 2^−127.
 * compressed-tensors 0.20: generate_mx_scales. */
void kern_encode_mxfp4(const float *x, size_t n, uint8_t *codes, uint8_t *scales);

/* FP8 by rows: value = code · scale; scale = amax of the row ÷ 448, 2^−23 for a row of zeros; code = E4M3(x ÷ scale). compressed-tensors 0.20: calculate_qparams. Returns the scale.
 * In pieces: the scale of a row by its amax, then codes. */
float kern_encode_fp8(const float *x, size_t n, uint8_t *codes);
float kern_encode_fp8_scale(float amax);
void kern_encode_fp8_codes(const float *x, size_t n, float scale, uint8_t *codes);

/* Q8_0 (FMT_Q8_0): d = amax of 32 ÷ 127, codes = x · (1 ÷ d) rounded half away from zero. The `gguf` package and ggml. false: a scale leaves F16's range (65504). */
bool kern_encode_q8_0(const float *x, size_t n, void *blocks);

#endif
