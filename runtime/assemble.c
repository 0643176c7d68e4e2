/* Tensors → blocks. One function for each kind of codes that walks a row block by block; what an element of a source covers is all that it knows of the file.
 *
 * 405B parameters pass through here at every start, so that a row is walked by pointers, and what is odd is looked at only where a scale is. */
#include "runtime/assemble.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "kernels/encode.h"

/* One row of one source. */
struct line {
    const struct quant_source *source;
    const unsigned char *first; /* the element that covers the piece's first column */
    uint64_t first_element, column_unit;
};

struct row {
    const struct rt_assembly *a;
    uint64_t row;
    uint64_t begin, end; /* columns that the codes' piece covers in whole elements, within the matrix */
    struct line codes, scales, zeros; /* zeros.source NULL: none */
    struct rt_odd_scales *odd;
    struct err *e;
};

static struct line line_of(const struct rt_assembly *a, enum quant_role role, uint64_t row)
{
    for (uint32_t k = 0; k < a->scheme->n_sources; k++) {
        const struct quant_source *s = &a->scheme->sources[k];
        const struct rt_piece *p = &a->pieces[k];
        if (s->role != role)
            continue;
        const uint64_t i = row / s->row_unit - p->first_row / s->row_unit;
        return (struct line){.source = s,
                             .first = p->data + i * p->stride_bytes,
                             .first_element = p->first_column / s->column_unit,
                             .column_unit = s->column_unit};
    }
    return (struct line){.source = NULL};
}

static const unsigned char *element(const struct line *l, uint64_t column) { return l->first + (column / l->column_unit - l->first_element) * l->source->element_bytes; }

/* Where the next scale begins. */
static uint64_t next_of(const struct line *l, uint64_t column) { return (column / l->column_unit + 1) * l->column_unit; }

size_t rt_assembled_bytes(const struct quant_scheme *s, uint64_t column_begin, uint64_t column_end)
{
    const struct format_info *f = kern_format(s->format);
    return column_begin == column_end ? 0 : (size_t)((column_end - 1) / f->block_columns + 1 - column_begin / f->block_columns) * f->block_bytes;
}

static enum st refuse(const struct row *r, const struct quant_source *s, uint64_t column, const char *why)
{
    if (r->a->order)
        return err_set(r->e, ST_INVALID, "tensor %.200s: row %" PRIu64 ", group %" PRIu64 ": %s", s->tensor->name, r->row, column / s->column_unit, why);
    return err_set(r->e, ST_INVALID, "tensor %.200s: row %" PRIu64 ", block %" PRIu64 " (columns from %" PRIu64 " on): %s", s->tensor->name, r->row, column / s->column_unit,
                   column / s->column_unit * s->column_unit, why);
}

/* ---- FP4 --------------------------------------------------------------------------------------------------------------------------------------------- */

static uint32_t load_u32(const unsigned char *p)
{
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* Byte i of four to byte 2i of eight. */
static uint64_t spread(uint64_t x)
{
    x = (x | x << 16) & 0x0000ffff0000ffffu;
    return (x | x << 8) & 0x00ff00ff00ff00ffu;
}

/* 2n bytes of pairs (element 2i low, 2i + 1 high), n 4 or 8, → 2n bytes whose low nibbles are the first 2n elements and whose high nibbles are the others. */
static void halve(const unsigned char *pairs, unsigned n, unsigned char *out)
{
    for (unsigned k = 0; k < n; k += 4) {
        const uint32_t a = load_u32(pairs + k), b = load_u32(pairs + n + k);
        const uint32_t even = (a & 0x0f0f0f0fu) | (b & 0x0f0f0f0fu) << 4, odd = (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u);
        const uint64_t both = spread(even) | spread(odd) << 8;
        memcpy(out + (size_t)2 * k, &both, sizeof both);
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
static enum st e4m3_scale(const struct row *r, uint64_t column, const unsigned char *codes, unsigned char *scale)
{
    const unsigned x = *scale;
    const bool is_first = column % r->scales.source->column_unit == 0; /* of two blocks that share it */
    r->odd->zero += is_first && (x & 0x7fu) == 0;
    r->odd->least += is_first && x == 1;
    if (x < 0x7f || x == 0x80)
        return ST_OK;
    if (!all_zero(codes, 8))
        return refuse(r, r->scales.source, column, (x & 0x7fu) == 0x7f ? "its scale is NaN" : "its scale is negative");
    r->odd->over_zeros += is_first;
    *scale = 0;
    return ST_OK;
}

/* Columns [column, column + n) as pairs, of which the row's first are codes; what the piece does not cover is zero. */
static const unsigned char *pairs_of(const struct row *r, const unsigned char *codes, uint64_t column, unsigned n, unsigned char *buffer)
{
    if (column >= r->begin && column + n <= r->end)
        return codes + (column - r->begin) / 2;
    const uint64_t from = column < r->begin ? r->begin : column, to = column + n < r->end ? column + n : r->end;
    memset(buffer, 0, n / 2);
    memcpy(buffer + (from - column) / 2, codes + (from - r->begin) / 2, (to - from) / 2);
    return buffer;
}

static enum st nvfp4_row(const struct row *r, unsigned char *out)
{
    const unsigned char *codes = element(&r->codes, r->begin), *scales = element(&r->scales, r->begin);
    const unsigned shift = r->scales.column_unit == 32 ? 5 : 4; /* columns of a scale */
    unsigned char buffer[8];
    for (uint64_t block = r->begin / 64 * 64; block < r->end; block += 64, out += 36)
        for (unsigned g = 0; g < 4; g++) {
            const uint64_t column = block + (uint64_t)16 * g;
            if (column + 16 <= r->begin || column >= r->end) {
                out[g] = 0;
                memset(out + 4 + (size_t)8 * g, 0, 8);
                continue;
            }
            const unsigned char *pairs = pairs_of(r, codes, column, 16, buffer);
            out[g] = scales[(column >> shift) - (r->begin >> shift)];
            if (out[g] < 2 || out[g] >= 0x7f) {
                const enum st st = e4m3_scale(r, column, pairs, &out[g]);
                if (st)
                    return st;
            }
            halve(pairs, 4, out + 4 + (size_t)8 * g);
        }
    return ST_OK;
}

static enum st mxfp4_row(const struct row *r, unsigned char *out)
{
    const unsigned char *codes = element(&r->codes, r->begin), *scales = element(&r->scales, r->begin);
    unsigned char buffer[16];
    for (uint64_t column = r->begin / 32 * 32; column < r->end; column += 32, out += 17) {
        const unsigned char *pairs = pairs_of(r, codes, column, 32, buffer);
        out[0] = scales[column / 32 - r->begin / 32];
        r->odd->least += out[0] == 0;
        if (out[0] == 0xff) {
            if (!all_zero(pairs, 16))
                return refuse(r, r->scales.source, column, "its scale is NaN");
            r->odd->over_zeros++;
            out[0] = 0;
        }
        halve(pairs, 8, out + 1);
    }
    return ST_OK;
}

/* ---- scales of other types ------------------------------------------------------------------------------------------------------------------------------ */

/* MX formats call it U8. */
static bool is_e8m0(const struct quant_source *s) { return s->tensor->raw == CK_RAW_F8_E8M0 || s->tensor->raw == CK_RAW_U8; }

static float scale_at(const struct line *l, uint64_t column)
{
    const unsigned char *at = element(l, column);
    float x;
    if (is_e8m0(l->source)) /* 2^(b − 127), which is subnormal for 0 */
        return *at == 0xff ? NAN : ldexpf(1, *at - 127);
    kern_format_dequantise(l->source->tensor->format, at, 1, &x);
    return x;
}

/* What a block of codes may have; over zeros anything may stand. Integers' scales are of either sign: AutoRound's symmetric ones put the wider side of a group on the wider side of the
 * codes (−8 … 7) that way. Nobody's FP8 has use for a sign, so there it is damage. */
static bool is_scale(const struct row *r, float d) { return isfinite(d) && (d >= 0 || r->a->scheme->format != FMT_FP8); }

/* Counts a scale where its first row and column are. */
static void count_scale(const struct row *r, uint64_t column, float d)
{
    const struct quant_source *s = r->scales.source;
    if (column % s->column_unit || r->row % s->row_unit)
        return;
    r->odd->zero += d == 0;
    r->odd->least += is_e8m0(s) && d == ldexpf(1, -127);
    r->odd->over_zeros += !is_scale(r, d); /* refused otherwise */
}

static enum st refuse_scale(const struct row *r, uint64_t column, float d)
{
    return refuse(r, r->scales.source, column, isnan(d) ? "its scale is NaN" : d < 0 && isfinite(d) ? "its scale is negative" : "its scale is infinite or too large");
}

/* ---- FP8 ----------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st fp8_row(const struct row *r, unsigned char *out)
{
    float d = 0, written = 0;
    uint64_t next = 0;
    for (uint64_t column = r->begin / 32 * 32; column < r->end; column += 32, out += 36) {
        const uint64_t from = column < r->begin ? r->begin : column, to = column + 32 < r->end ? column + 32 : r->end;
        if (from >= next) {
            d = scale_at(&r->scales, from);
            if (!isnan(d) && !isfinite(256 * d))
                d = INFINITY; /* to the kernels, see FMT_FP8 */
            count_scale(r, from, d);
            written = is_scale(r, d) ? d : 0; /* over zeros */
            next = next_of(&r->scales, from);
        }
        uint64_t q[4] = {0}, any = 0, nan = 0;
        memcpy((unsigned char *)q + (from - column), element(&r->codes, from), to - from);
        for (int i = 0; i < 4; i++) {
            const uint64_t size = q[i] & 0x7f7f7f7f7f7f7f7fu;
            any |= size;
            nan |= (size + 0x0101010101010101u) & 0x8080808080808080u;
        }
        if (nan)
            return refuse(r, r->codes.source, from, "one of the 32 codes from here on is NaN");
        if (any && !is_scale(r, d))
            return refuse_scale(r, from, d);
        memcpy(out, &written, sizeof written);
        memcpy(out + 4, q, sizeof q);
    }
    return ST_OK;
}

/* ---- INT4 and INT8 ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Where in its element a number stands: bits to shift. */
static unsigned shift_of(const struct quant_source *s, uint64_t row, uint64_t column)
{
    static const unsigned char places[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    const unsigned i = (unsigned)(s->along_rows ? row % s->row_unit : column % s->column_unit);
    return (s->interleaved ? places[i & 7] : i) * s->bits;
}

static bool is_whole(const struct quant_source *s) { return s->bits == 8 && s->element_bytes == 1; }

static uint32_t word_at(const struct quant_source *s, const unsigned char *at) { return s->element_bytes == 1 ? *at : load_u32(at); }

static unsigned number_at(const struct line *l, uint64_t row, uint64_t column)
{
    const unsigned char *at = element(l, column);
    return is_whole(l->source) ? *at : word_at(l->source, at) >> shift_of(l->source, row, column) & ((1u << l->source->bits) - 1);
}

/* Columns [from, to) of the row, as they are stored. */
static void numbers_at(const struct row *r, uint64_t from, uint64_t to, unsigned char *q)
{
    const struct quant_source *s = r->codes.source;
    const unsigned char *at = element(&r->codes, from);
    const unsigned mask = (1u << s->bits) - 1;
    if (is_whole(s)) {
        memcpy(q, at, to - from);
        return;
    }
    if (s->along_rows) {
        const unsigned shift = shift_of(s, r->row, 0);
        for (uint64_t c = from; c < to; c++, at += s->element_bytes)
            *q++ = (unsigned char)(word_at(s, at) >> shift & mask);
        return;
    }
    for (uint64_t c = from; c < to; at += s->element_bytes) {
        uint32_t word = word_at(s, at) >> shift_of(s, r->row, c);
        for (uint64_t i = c % s->column_unit; i < s->column_unit && c < to; i++, c++, word >>= s->bits)
            *q++ = (unsigned char)(word & mask);
    }
}

/* A whole block of 32 nibbles in four words: pairs, as the bytes of little-endian words are. */
static bool nibbles_at(const struct row *r, uint64_t from, uint64_t to, unsigned char pairs[16])
{
    const struct quant_source *s = r->codes.source;
    if (s->element_bytes != 4 || s->bits != 4 || s->along_rows || to - from != 32)
        return false;
    memcpy(pairs, element(&r->codes, from), 16);
    return true;
}

/* The bit in which a stored number differs from what the formats hold: FMT_INT8 and FMT_INT8_ZERO two's complement, FMT_INT4 and FMT_INT4_ZERO numbers from 8 on. */
static unsigned char flip_of(const struct quant_source *s, bool four) { return s->is_signed != four ? 0 : four ? 8 : 0x80; }

static bool all_are(const unsigned char *q, uint64_t n, unsigned char zero)
{
    unsigned any = 0;
    for (uint64_t i = 0; i < n; i++)
        any |= q[i] ^ zero;
    return any == 0;
}

/* A group's scale and zero point. */
struct int_scale {
    float d, written[2]; /* d as it is stored; then d and m = −d · zero, exact where d has no more than 16 digits, as F16 and BF16 do; 0 where d is not finite, over zeros */
    unsigned char zero;  /* the code that stands for 0 */
};

static struct int_scale int_scale_at(const struct row *r, uint64_t column)
{
    const struct quant_scheme *s = r->a->scheme;
    const bool four = s->format == FMT_INT4 || s->format == FMT_INT4_ZERO;
    struct int_scale x = {.zero = four ? 8 : 0};
    if (r->zeros.source) {
        const unsigned stored = number_at(&r->zeros, r->row, column) + s->zero_plus_one;
        x.zero = (unsigned char)((stored ^ flip_of(r->zeros.source, four)) & (four ? 15u : 255u));
    }
    const float z = (float)(four ? (int)x.zero : (int)(signed char)x.zero);
    x.d = scale_at(&r->scales, column);
    if (isfinite(x.d) && !isfinite(x.d * z))
        x.d = INFINITY; /* in effect */
    count_scale(r, column, x.d);
    x.written[0] = isfinite(x.d) ? x.d : 0;
    x.written[1] = isfinite(x.d) ? -x.d * z : 0;
    return x;
}

/* q: 32 codes as they are stored, of which [from, to) are columns of ours; the others stand for 0 already. */
static enum st put_ints(const struct row *r, const struct int_scale *x, uint64_t column, unsigned from, unsigned to, unsigned char q[32], unsigned char *out)
{
    const enum format f = r->a->scheme->format;
    const bool four = f == FMT_INT4 || f == FMT_INT4_ZERO;
    const unsigned char flip = flip_of(r->codes.source, four);
    for (unsigned i = from; flip && i < to; i++)
        q[i] ^= flip;
    if (!isfinite(x->d) && !all_are(q, 32, x->zero))
        return refuse_scale(r, column, x->d);
    if (four)
        for (size_t i = 0; i < 16; i++)
            out[i] = (unsigned char)(q[i] | q[16 + i] << 4);
    else
        memcpy(out, q, 32);
    return ST_OK;
}

static enum st int_row(const struct row *r, unsigned char *out)
{
    const size_t head = r->zeros.source ? 8 : 4, block_bytes = kern_format(r->a->scheme->format)->block_bytes;
    struct int_scale x = {.d = 0};
    unsigned char q[32], pairs[16];
    uint64_t next = 0;
    for (uint64_t column = r->begin / 32 * 32; column < r->end; column += 32, out += block_bytes) {
        const uint64_t from = column < r->begin ? r->begin : column, to = column + 32 < r->end ? column + 32 : r->end;
        if (from >= next) {
            x = int_scale_at(r, from);
            next = next_of(&r->scales, from);
        }
        memcpy(out, x.written, head);
        if (isfinite(x.d) && nibbles_at(r, from, to, pairs)) {
            halve(pairs, 8, out + head);
            continue;
        }
        memset(q, x.zero, sizeof q); /* what is no column of ours stands for 0 */
        numbers_at(r, from, to, q + (from - column));
        const enum st st = put_ints(r, &x, from, (unsigned)(from - column), (unsigned)(to - column), q, out + head);
        if (st)
            return st;
    }
    return ST_OK;
}

/* Act-order: any column may stand anywhere, but a block is of one group, its columns come first, and the scale of group g is where column g · group would have it. */
static enum st int_row_in_order(const struct row *r, unsigned char *out)
{
    const struct rt_assembly *a = r->a;
    const size_t head = r->zeros.source ? 8 : 4, block_bytes = kern_format(a->scheme->format)->block_bytes;
    struct int_scale x = {.d = 0};
    for (uint64_t place = 0, last = UINT64_MAX; place < a->n_ordered; place += 32, out += block_bytes) {
        unsigned char q[32];
        unsigned n = 0;
        if (a->order[place] >= 0) { /* else it is only there to fill up a group, and keeps its scale */
            const uint64_t group = (uint64_t)a->scheme->group_of[a->column_begin + (uint64_t)a->order[place]] * r->scales.source->column_unit;
            if (group != last)
                x = int_scale_at(r, group);
            last = group;
        }
        memset(q, x.zero, sizeof q);
        for (; n < 32 && a->order[place + n] >= 0; n++)
            q[n] = (unsigned char)number_at(&r->codes, r->row, a->column_begin + (uint64_t)a->order[place + n]);
        memcpy(out, x.written, head);
        const enum st st = put_ints(r, &x, last, 0, n, q, out + head);
        if (st)
            return st;
    }
    return ST_OK;
}

/* ---- plain numbers that are rounded here ------------------------------------------------------------------------------------------------------------------ */

/* To FP8, a scale a row: whole rows, for their scale must not depend on a cut. Twice over them in pieces, so that no row is too long. */
static enum st rounded_row(const struct row *r, unsigned char *out)
{
    enum { PIECE = 256 };
    const struct quant_source *s = r->codes.source;
    struct rt_deviation *deviation = r->a->deviation;
    float x[PIECE], amax = 0;
    unsigned char codes[PIECE];
    for (uint64_t c = r->begin; c < r->end; c += PIECE) {
        const size_t n = r->end - c < PIECE ? (size_t)(r->end - c) : PIECE;
        kern_format_dequantise(s->tensor->format, element(&r->codes, c), n, x);
        const float largest = kern_encode_amax(x, n);
        if (!isfinite(largest))
            return err_set(r->e, ST_INVALID, "tensor %.200s: row %" PRIu64 " holds NaN or infinity, which is not rounded to FP8", s->tensor->name, r->row);
        amax = largest > amax ? largest : amax;
    }
    const float scale = kern_encode_fp8_scale(amax);
    for (uint64_t c = r->begin; c < r->end; c += PIECE) {
        const size_t n = r->end - c < PIECE ? (size_t)(r->end - c) : PIECE;
        kern_format_dequantise(s->tensor->format, element(&r->codes, c), n, x);
        kern_encode_fp8_codes(x, n, scale, codes);
        for (size_t i = 0; i < n; i += 32, out += 36) {
            const size_t here = n - i < 32 ? n - i : 32;
            memcpy(out, &scale, sizeof scale);
            memset(out + 4, 0, 32);
            memcpy(out + 4, codes + i, here);
        }
        for (size_t i = 0; i < n; i++) {
            const double difference = (double)x[i] - (double)(kern_e4m3_to_f32(codes[i]) * scale);
            deviation->difference += difference * difference;
            deviation->all += (double)x[i] * (double)x[i];
        }
    }
    return ST_OK;
}

/* ---- all ------------------------------------------------------------------------------------------------------------------------------------------------------ */

enum st rt_assemble(const struct rt_assembly *a, unsigned char *rows, struct rt_odd_scales *odd, struct err *e)
{
    static enum st (*const of[FMT_COUNT])(const struct row *r, unsigned char *out) = {
        [FMT_NVFP4] = nvfp4_row, [FMT_MXFP4] = mxfp4_row, [FMT_FP8] = fp8_row, [FMT_INT4] = int_row, [FMT_INT4_ZERO] = int_row, [FMT_INT8] = int_row, [FMT_INT8_ZERO] = int_row,
    };
    const bool plain = a->scheme->sources[0].role == QUANT_NUMBERS;
    enum st (*const row_of)(const struct row *r, unsigned char *out) = plain ? rounded_row : a->order ? int_row_in_order : of[a->scheme->format];
    BASE_ASSERT(row_of && (plain || a->scheme->sources[0].role == QUANT_CODES) && !a->order == !a->scheme->group_of);
    const uint64_t unit = a->scheme->sources[0].column_unit, end = (a->column_end - 1) / unit * unit + unit;
    const size_t row_bytes = a->order ? rt_assembled_bytes(a->scheme, 0, a->n_ordered) : rt_assembled_bytes(a->scheme, a->column_begin, a->column_end);
    struct row r = {.a = a, .begin = a->column_begin / unit * unit, .end = end < a->scheme->columns ? end : a->scheme->columns, .odd = odd, .e = e};
    for (r.row = a->row_begin; r.row < a->row_end; r.row++) {
        r.codes = line_of(a, a->scheme->sources[0].role, r.row);
        r.scales = line_of(a, QUANT_SCALES, r.row);
        r.zeros = line_of(a, QUANT_ZEROS, r.row);
        const enum st st = row_of(&r, rows + (r.row - a->row_begin) * row_bytes);
        if (st)
            return st;
    }
    return ST_OK;
}

void rt_transpose(const unsigned char *from, size_t outer_stride, size_t inner_stride, uint64_t n_outer, uint64_t n_inner, uint32_t element_bytes, unsigned char *to)
{
    enum { TILE = 16 }; /* lines of the cache */
    for (uint64_t o = 0; o < n_outer; o += TILE)
        for (uint64_t i = 0; i < n_inner; i += TILE)
            for (uint64_t k = i; k < i + TILE && k < n_inner; k++)
                for (uint64_t j = o; j < o + TILE && j < n_outer; j++) {
                    const unsigned char *a = from + j * outer_stride + k * inner_stride;
                    unsigned char *b = to + (k * n_outer + j) * element_bytes;
                    if (element_bytes == 4)
                        memcpy(b, a, 4);
                    else if (element_bytes == 2)
                        memcpy(b, a, 2);
                    else
                        *b = *a;
                }
}

enum st rt_tensor_scale(const struct quant_scheme *s, const struct quant_source *source, float stored, float *scale, struct err *e)
{
    const float x = s->divides ? 1 / stored : stored;
    if (!(stored >= 0) || !isfinite(x))
        return err_set(e, ST_INVALID, "tensor %.200s: a tensor scale of %g, which the matrix is %s", source->tensor->name, (double)stored, s->divides ? "divided by" : "multiplied with");
    *scale = x;
    return ST_OK;
}
