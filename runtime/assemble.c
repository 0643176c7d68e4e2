/* Tensors → blocks. One function for each kind of codes that walks a row block by block; what an element of a source covers is all that it knows of the file. */
#include "runtime/assemble.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

struct row {
    const struct rt_assembly *a;
    uint64_t row;
    uint64_t begin, end; /* columns that the codes' piece covers in whole elements, within the matrix */
    struct rt_odd_scales *odd;
    struct err *e;
};

static const struct quant_source *source_of(const struct rt_assembly *a, enum quant_role role, const struct rt_piece **piece)
{
    for (uint32_t k = 0; k < a->scheme->n_sources; k++)
        if (a->scheme->sources[k].role == role) {
            *piece = &a->pieces[k];
            return &a->scheme->sources[k];
        }
    return NULL;
}

static const unsigned char *element(const struct quant_source *s, const struct rt_piece *p, uint64_t row, uint64_t column)
{
    const uint64_t r = row / s->row_unit - p->first_row / s->row_unit, c = column / s->column_unit - p->first_column / s->column_unit;
    return s->transposed ? p->data + c * p->stride_bytes + r * s->element_bytes : p->data + r * p->stride_bytes + c * s->element_bytes;
}

size_t rt_assembled_bytes(const struct quant_scheme *s, uint64_t column_begin, uint64_t column_end)
{
    const struct format_info *f = kern_format(s->format);
    return column_begin == column_end ? 0 : (size_t)((column_end - 1) / f->block_columns + 1 - column_begin / f->block_columns) * f->block_bytes;
}

static enum st refuse(const struct row *r, const struct quant_source *s, uint64_t column, const char *why)
{
    return err_set(r->e, ST_INVALID, "tensor %.200s: row %" PRIu64 ", block %" PRIu64 " (columns from %" PRIu64 " on): %s", s->tensor->name, r->row, column / s->column_unit,
                   column / s->column_unit * s->column_unit, why);
}

/* ---- FP4 --------------------------------------------------------------------------------------------------------------------------------------------- */

/* n bytes of pairs (element 2i low, 2i + 1 high) → n bytes whose low nibbles are the first half and whose high nibbles are the second. */
static void halve(const unsigned char *pairs, unsigned n, unsigned char *out)
{
    for (unsigned k = 0; k < n / 2; k++) {
        const unsigned a = pairs[k], b = pairs[n / 2 + k];
        out[2 * k] = (unsigned char)((a & 15) | (b & 15) << 4);
        out[2 * k + 1] = (unsigned char)(a >> 4 | (b & 0xf0));
    }
}

/* E2M1 has a zero of either sign. */
static bool all_zero(const unsigned char *pairs, unsigned n)
{
    unsigned any = 0;
    for (unsigned i = 0; i < n; i++)
        any |= pairs[i] & 0x77u;
    return any == 0;
}

/* An E4M3 scale as FMT_NVFP4 reads it: without sign, and 0x7f is zero. */
static enum st e4m3_scale(const struct row *r, const struct quant_source *s, uint64_t column, const unsigned char *codes, unsigned char *scale)
{
    const unsigned x = *scale;
    r->odd->zero += (x & 0x7fu) == 0;
    r->odd->least += x == 1;
    if (x < 0x7f || x == 0x80)
        return ST_OK;
    if (!all_zero(codes, 8))
        return refuse(r, s, column, (x & 0x7fu) == 0x7f ? "its scale is NaN" : "its scale is negative");
    r->odd->over_zeros++;
    *scale = 0;
    return ST_OK;
}

static enum st nvfp4_row(const struct row *r, unsigned char *out)
{
    const struct rt_piece *codes_piece = NULL, *scales_piece = NULL;
    const struct quant_source *codes = source_of(r->a, QUANT_CODES, &codes_piece), *scales = source_of(r->a, QUANT_SCALES, &scales_piece);
    for (uint64_t block = r->begin / 64 * 64; block < r->end; block += 64, out += 36) {
        memset(out, 0, 36);
        for (unsigned g = 0; g < 4; g++) {
            const uint64_t column = block + 16 * g;
            if (column + 16 <= r->begin || column >= r->end)
                continue;
            unsigned char pairs[8] = {0};
            const uint64_t from = column < r->begin ? r->begin : column, to = column + 16 < r->end ? column + 16 : r->end;
            memcpy(pairs + (from - column) / 2, element(codes, codes_piece, r->row, from), (to - from) / 2);
            out[g] = *element(scales, scales_piece, r->row, column);
            const enum st st = e4m3_scale(r, scales, column, pairs, &out[g]);
            if (st)
                return st;
            halve(pairs, 8, out + 4 + 8 * g);
        }
    }
    return ST_OK;
}

static enum st mxfp4_row(const struct row *r, unsigned char *out)
{
    const struct rt_piece *codes_piece = NULL, *scales_piece = NULL;
    const struct quant_source *codes = source_of(r->a, QUANT_CODES, &codes_piece), *scales = source_of(r->a, QUANT_SCALES, &scales_piece);
    for (uint64_t column = r->begin / 32 * 32; column < r->end; column += 32, out += 17) {
        unsigned char pairs[16] = {0};
        const uint64_t from = column < r->begin ? r->begin : column, to = column + 32 < r->end ? column + 32 : r->end;
        memcpy(pairs + (from - column) / 2, element(codes, codes_piece, r->row, from), (to - from) / 2);
        out[0] = *element(scales, scales_piece, r->row, column);
        r->odd->least += out[0] == 0;
        if (out[0] == 0xff) {
            if (!all_zero(pairs, 16))
                return refuse(r, scales, column, "its scale is NaN");
            r->odd->over_zeros++;
            out[0] = 0;
        }
        halve(pairs, 16, out + 1);
    }
    return ST_OK;
}

/* ---- scales of other types ------------------------------------------------------------------------------------------------------------------------------ */

static float scale_at(const struct quant_source *s, const struct rt_piece *p, uint64_t row, uint64_t column)
{
    const unsigned char *at = element(s, p, row, column);
    float x;
    if (s->tensor->raw == CK_RAW_F8_E8M0) /* 2^(b − 127), which is subnormal for 0 */
        return *at == 0xff ? NAN : ldexpf(1, *at - 127);
    kern_format_dequantise(s->tensor->format, at, 1, &x);
    return x;
}

/* Whether scale and codes make numbers; is_zero: all codes of the block stand for 0. What is left of an odd scale over zeros is 0. Counted where the scale's first row and column are. */
static enum st check_scale(const struct row *r, const struct quant_source *s, uint64_t column, bool is_zero, float *d)
{
    const bool first = column % s->column_unit == 0 && r->row % s->row_unit == 0;
    r->odd->zero += first && *d == 0;
    r->odd->least += first && s->tensor->raw == CK_RAW_F8_E8M0 && *d == ldexpf(1, -127);
    if (isfinite(*d))
        return ST_OK;
    if (!is_zero)
        return refuse(r, s, column, isnan(*d) ? "its scale is NaN" : "its scale is infinite or too large");
    r->odd->over_zeros += first;
    *d = 0;
    return ST_OK;
}

/* ---- FP8 ----------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st fp8_row(const struct row *r, unsigned char *out)
{
    const struct rt_piece *codes_piece = NULL, *scales_piece = NULL;
    const struct quant_source *codes = source_of(r->a, QUANT_CODES, &codes_piece), *scales = source_of(r->a, QUANT_SCALES, &scales_piece);
    for (uint64_t column = r->begin / 32 * 32; column < r->end; column += 32, out += 36) {
        const uint64_t from = column < r->begin ? r->begin : column, to = column + 32 < r->end ? column + 32 : r->end;
        float d = scale_at(scales, scales_piece, r->row, from);
        unsigned char *q = out + 4;
        memset(q, 0, 32);
        memcpy(q + (from - column), element(codes, codes_piece, r->row, from), to - from);
        unsigned any = 0, nan = 0;
        for (int i = 0; i < 32; i++) {
            any |= q[i] & 0x7fu;
            nan |= (q[i] & 0x7fu) == 0x7fu;
        }
        if (nan)
            return refuse(r, codes, from, "one of the 32 codes from here on is NaN");
        if (!isnan(d) && !isfinite(256 * d))
            d = INFINITY; /* to the kernels, see FMT_FP8 */
        const enum st st = check_scale(r, scales, from, any == 0, &d);
        if (st)
            return st;
        memcpy(out, &d, sizeof d);
    }
    return ST_OK;
}

/* ---- INT4 and INT8 ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Number `row`, `column` of a packed source, as it is stored. */
static unsigned number_at(const struct quant_source *s, const struct rt_piece *p, uint64_t row, uint64_t column)
{
    static const unsigned char places[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    const unsigned char *at = element(s, p, row, column);
    if (s->element_bytes == 1)
        return *at;
    uint32_t word;
    memcpy(&word, at, sizeof word);
    const unsigned i = (unsigned)(s->along_rows ? row % s->row_unit : column % s->column_unit), place = s->interleaved ? places[i & 7] : i;
    return word >> (place * s->bits) & ((1u << s->bits) - 1);
}

/* Columns [from, to) of a row, as they are stored. */
static void numbers_at(const struct quant_source *s, const struct rt_piece *p, uint64_t row, uint64_t from, uint64_t to, unsigned char *q)
{
    if (s->element_bytes == 1) {
        memcpy(q, element(s, p, row, from), to - from);
        return;
    }
    if (s->along_rows) {
        for (uint64_t c = from; c < to; c++)
            *q++ = (unsigned char)number_at(s, p, row, c);
        return;
    }
    const unsigned mask = (1u << s->bits) - 1;
    for (uint64_t c = from; c < to;) { /* word by word */
        uint32_t word;
        memcpy(&word, element(s, p, row, c), sizeof word);
        unsigned i = (unsigned)(c % s->column_unit);
        for (word >>= i * s->bits; i < s->column_unit && c < to; i++, c++, word = s->bits < 32 ? word >> s->bits : 0)
            *q++ = (unsigned char)(word & mask);
    }
}

/* What FMT_INT8 and FMT_INT8_ZERO hold: two's complement. */
static int as_signed(const struct quant_source *s, unsigned stored) { return (int)(signed char)(unsigned char)(s->is_signed ? stored : stored ^ 0x80u); }

static enum st int_row(const struct row *r, unsigned char *out)
{
    const struct rt_piece *codes_piece = NULL, *scales_piece = NULL, *zeros_piece = NULL;
    const struct quant_source *codes = source_of(r->a, QUANT_CODES, &codes_piece), *scales = source_of(r->a, QUANT_SCALES, &scales_piece), *zeros = source_of(r->a, QUANT_ZEROS, &zeros_piece);
    const struct quant_scheme *s = r->a->scheme;
    const bool four = s->format == FMT_INT4 || s->format == FMT_INT4_ZERO;
    const size_t head = zeros ? 8 : 4, block_bytes = kern_format(s->format)->block_bytes;
    for (uint64_t column = r->begin / 32 * 32; column < r->end; column += 32, out += block_bytes) {
        const uint64_t from = column < r->begin ? r->begin : column, to = column + 32 < r->end ? column + 32 : r->end;
        int zero = four ? 8 : 0;
        if (zeros) {
            const unsigned stored = number_at(zeros, zeros_piece, r->row, from);
            zero = four ? (int)((stored + s->zero_plus_one) & 15u) : as_signed(zeros, (stored + s->zero_plus_one) & 255u);
        }
        unsigned char q[32];
        memset(q, four ? zero : zeros ? zero & 255 : 0, sizeof q); /* what is no column of ours stands for 0 */
        numbers_at(codes, codes_piece, r->row, from, to, q + (from - column));
        bool is_zero = true;
        for (uint64_t i = from - column; i < to - column; i++) {
            if (!four)
                q[i] = (unsigned char)as_signed(codes, q[i]);
            is_zero = is_zero && (four ? q[i] == zero : (signed char)q[i] == zero);
        }
        float d = scale_at(scales, scales_piece, r->row, from);
        if (isfinite(d) && !isfinite(d * (float)zero))
            d = INFINITY; /* in effect */
        const enum st st = check_scale(r, scales, from, is_zero, &d);
        if (st)
            return st;
        const float m = -d * (float)zero; /* exact where d has no more than 16 digits, as F16 and BF16 do */
        memcpy(out, &d, sizeof d);
        if (zeros)
            memcpy(out + 4, &m, sizeof m);
        if (four)
            for (int i = 0; i < 16; i++)
                out[head + (size_t)i] = (unsigned char)(q[i] | q[16 + i] << 4);
        else
            memcpy(out + head, q, 32);
    }
    return ST_OK;
}

/* ---- all ------------------------------------------------------------------------------------------------------------------------------------------------------ */

enum st rt_assemble(const struct rt_assembly *a, unsigned char *rows, struct rt_odd_scales *odd, struct err *e)
{
    static enum st (*const of[FMT_COUNT])(const struct row *r, unsigned char *out) = {
        [FMT_NVFP4] = nvfp4_row, [FMT_MXFP4] = mxfp4_row, [FMT_FP8] = fp8_row, [FMT_INT4] = int_row, [FMT_INT4_ZERO] = int_row, [FMT_INT8] = int_row, [FMT_INT8_ZERO] = int_row,
    };
    BASE_ASSERT(of[a->scheme->format] && a->scheme->sources[0].role == QUANT_CODES);
    const uint64_t unit = a->scheme->sources[0].column_unit, end = (a->column_end - 1) / unit * unit + unit;
    const size_t row_bytes = rt_assembled_bytes(a->scheme, a->column_begin, a->column_end);
    struct row r = {.a = a, .begin = a->column_begin / unit * unit, .end = end < a->scheme->columns ? end : a->scheme->columns, .odd = odd, .e = e};
    for (r.row = a->row_begin; r.row < a->row_end; r.row++) {
        const enum st st = of[a->scheme->format](&r, rows + (r.row - a->row_begin) * row_bytes);
        if (st)
            return st;
    }
    return ST_OK;
}

enum st rt_tensor_scale(const struct quant_scheme *s, const struct quant_source *source, float stored, float *scale, struct err *e)
{
    const float x = s->divides ? 1 / stored : stored;
    if (!(stored >= 0) || !isfinite(x))
        return err_set(e, ST_INVALID, "tensor %.200s: a tensor scale of %g, which the matrix is %s", source->tensor->name, (double)stored, s->divides ? "divided by" : "multiplied with");
    *scale = x;
    return ST_OK;
}
