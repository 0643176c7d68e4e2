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

enum format {
    FMT_F32,
    FMT_F16,
    FMT_BF16,
    FMT_Q8_0, /* 32 columns: F16 d, 32 × int8 q;              value = d·q */
    FMT_Q4_1, /* 32 columns: F16 d, F16 m, 16 bytes of nibbles (low nibbles are columns 0–15, high 16–31); value = d·q + m */
    FMT_COUNT
};

struct format_info {
    const char *name;          /* "Q4_1" */
    uint32_t block_columns;    /* 1 for plain numbers */
    uint32_t block_bytes;
    int gguf_type;             /* ggml type number, −1: does not occur in GGUF */
    const char *safetensors;   /* dtype name in a safetensors header, NULL: does not occur */
    uint32_t super_block;      /* 256 for K-quants (leaf units of DESIGN's order of sums), else 0 */
    bool quantised;            /* false: plain numbers */
};

const struct format_info *kern_format(enum format f);
/* ST_UNSUPPORTED with the type's name ("Q6_K (type 14)") and the list of known ones, unless e is NULL. */
enum st kern_format_from_gguf(uint32_t type, enum format *f, struct err *e);
enum st kern_format_from_safetensors(const char *dtype, enum format *f, struct err *e);

/* Bytes of one row of n columns; 0 where n is no multiple of the block or the product overflows. */
size_t kern_format_row_bytes(enum format f, uint64_t n_columns);

/* Scalar reference: n_columns elements starting at a block boundary, to F32. Exact as the format's definition in F32 arithmetic (product, then sum). */
void kern_format_dequantise(enum format f, const void *blocks, size_t n_columns, float *out);

/* Conversions of single numbers, IEEE round to nearest even; exact both ways for values that fit. */
float kern_f16_to_f32(uint16_t h);
uint16_t kern_f32_to_f16(float f);
float kern_bf16_to_f32(uint16_t b);
uint16_t kern_f32_to_bf16(float f);

#endif
