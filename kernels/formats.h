/* Stored formats: one row per way in which a checkpoint keeps a matrix or vector. partition/ may read this table, and nothing else of kernels/.
 *
 * Elements of a row are stored in blocks along `in` (columns): block_columns elements take block_bytes bytes. A row is a whole number of blocks.
 * Sources: GGUF types from the `gguf` package and ggml's public block definitions; safetensors dtypes from the safetensors format description. */
#ifndef KERNELS_FORMATS_H
#define KERNELS_FORMATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum format {
    FMT_F32,
    FMT_F16,
    FMT_BF16,
    FMT_Q8_0, /* 32 columns: F16 d, 32 × int8 q;              value = d·q */
    FMT_Q4_1, /* 32 columns: F16 d, F16 m, 16 bytes of nibbles (low nibbles are columns 0–15, high 16–31); value = d·q + m */
    FMT_Q4_0, /* 32 columns: F16 d, 16 bytes of nibbles as in Q4_1;          value = d·(q − 8) */
    FMT_Q5_0, /* 32 columns: F16 d, 32 high bits, 16 bytes of nibbles;       value = d·(q − 16) */
    FMT_Q5_1, /* 32 columns: F16 d, F16 m, 32 high bits, 16 bytes of nibbles; value = d·q + m */
    /* 256 columns in 8 groups of 32: F16 d, F16 dmin, 12 bytes of 6-bit numbers sc and mn, one pair a group; value = (d·sc)·q − dmin·mn */
    FMT_Q4_K, /* … then 4 × 32 bytes: low nibbles are one group, high nibbles the next */
    FMT_Q5_K, /* … then 32 bytes of high bits (bit g of byte i: column i of group g), then as Q4_K */
    /* 256 columns in 16 groups of 16: 128 bytes of low nibbles, 64 bytes of two high bits, 16 int8 sc, F16 d;  value = (d·sc)·(q − 32) */
    FMT_Q6_K,
    FMT_MXFP4, /* 32 columns: e, 16 bytes of E2M1 codes placed as Q4_1's nibbles; value = 2^(e − 128) · twice the code's value; e = 255 is a number too */
    FMT_NVFP4, /* 64 columns: 4 scales in E4M3 without sign (0x7f is 0, the top bit ignored), then for each 16 columns 8 bytes of E2M1 codes (low nibbles
                * first); value = (scale / 2) · twice the code's value */
    /* What safetensors keep in several tensors (codes, scales, zero points), as the loader puts it together, row by row. Columns are rounded up to 32. */
    FMT_FP8,       /* 32 columns: F32 d, 32 × E4M3;      value = (256·d)·(code / 256), which is d·code wherever 256·d is finite */
    FMT_INT4,      /* 32 columns: F32 d, 16 bytes of nibbles as in Q4_1;                   value = d·(q − 8) */
    FMT_INT4_ZERO, /* 32 columns: F32 d, F32 m, 16 bytes of nibbles as in Q4_1;            value = d·q + m, m = −d·zero */
    FMT_INT8,      /* 32 columns: F32 d, 32 × int8 q;                                      value = d·q */
    FMT_INT8_ZERO, /* 32 columns: F32 d, F32 m, 32 × int8 q;                               value = d·q + m */
    FMT_E4M3,      /* one number a byte, for the key/value cache: no product reads it, and it is no dtype of a file here;  value = code */
    FMT_COUNT
};

struct format_info {
    const char *name;          /* "Q4_1" */
    uint32_t block_columns;    /* 1 for plain numbers */
    uint32_t block_bytes;
    int gguf_type;             /* ggml type number, −1: does not occur in GGUF */
    const char *safetensors;   /* dtype name in a safetensors header, NULL: does not occur */
    uint32_t super_block;      /* 256 for K-quants (leaf units of DESIGN's order of sums), else 0 */
    bool quantised;            /* whole numbers times a scale; false: plain numbers, and FP8, which is kept as either */
    uint32_t scale_columns;    /* quantised: columns that share a scale, 16 or 32 */
    bool has_minimum;          /* quantised: value = d·q + m, not d·q */
};

const struct format_info *kern_format(enum format f);
/* ST_UNSUPPORTED with the type's name ("Q6_K (type 14)") and the list of known ones, unless e is NULL. */
enum st kern_format_from_gguf(uint32_t type, enum format *f, struct err *e);
enum st kern_format_from_safetensors(const char *dtype, enum format *f, struct err *e);

/* Bytes of one row of n columns; 0 where n is no multiple of the block or the product overflows. */
size_t kern_format_row_bytes(enum format f, uint64_t n_columns);

/* Scalar reference: n_columns elements starting at a block boundary, to F32. Exact as the format's definition in F32 arithmetic (product, then sum). */
void kern_format_dequantise(enum format f, const void *blocks, size_t n_columns, float *out);

/* Quantised formats as whole numbers: 32 columns of a block, beginning at a multiple of 32. Column i is d[i / 16]·q[i], plus m where the format has a minimum.
 * d·q is exact in F32 (but for what leaves its range), and so are the products that d and m are made of. NaN and infinity in a file's scales stay what they are;
 * MXFP4 and NVFP4 have neither, as the `gguf` package reads them. */
struct format_group {
    int8_t q[32];
    float d[2], m;
};
void kern_format_group(enum format f, const void *block, uint32_t i_group, struct format_group *g);

/* 32 codes in E4M3, none of them NaN, as whole numbers that int8 activations can meet: q = the code's value · 127 / the largest, to nearest even; a code's value is then about
 * q · (largest / 127). Returns the largest code's size. kern_format_group() gives FP8 so, with d = ((256·d) / 127) · (largest / 256). */
uint8_t kern_e4m3_to_int8(const uint8_t codes[32], int8_t q[32]);

/* Conversions of single numbers, IEEE round to nearest even; exact both ways for values that fit. */
float kern_f16_to_f32(uint16_t h);
uint16_t kern_f32_to_f16(float f);
float kern_bf16_to_f32(uint16_t b);
float kern_e4m3_to_f32(uint8_t x); /* 0x7f, 0xff: NaN */
uint16_t kern_f32_to_bf16(float f);
uint8_t kern_f32_to_e4m3(float f); /* what lies beyond ±448, infinity too, becomes ±448 ("satfinite"); NaN stays NaN */

#ifdef __cplusplus
}
#endif
#endif
