/* Rows of stored blocks (kernels/formats.h), put together from the tensors of a quantised matrix: codes, scales, zero points.
 *
 * Pure: memory in, memory out; any thread. What a block holds beyond the columns that were read is zero, or a neighbour's columns where a cut falls inside an element.
 * Published files hold odd scales. A block of zeros is zero whatever its scale (NaN, infinite, negative): its scale becomes 0; such scales, and those that are zero or the least
 * that the type has, are counted. A NaN or infinite scale over other codes, a negative one where the format has no sign, and a code that is NaN are ST_INVALID: one sentence with
 * tensor, row and block. */
#ifndef RUNTIME_ASSEMBLE_H
#define RUNTIME_ASSEMBLE_H

#include "partition/quant.h"

/* Elements of one source (quant_source says what an element covers): the first covers rows from first_row on and columns from first_column on. elements along the
 * columns lie side by side (rt_transpose has turned those that did not), stride_bytes between those along the rows. */
struct rt_piece {
    const unsigned char *data;
    size_t stride_bytes;
    uint64_t first_row, first_column;
};

/* Of what is rounded here: squares of the differences, and of the numbers themselves. */
struct rt_deviation {
    double difference, all;
};

/* Rows [row_begin, row_end) and columns [column_begin, column_end) of the whole matrix; pieces in the order of the scheme's sources (the tensor scale's is not looked at). */
struct rt_assembly {
    const struct quant_scheme *scheme;
    struct rt_piece pieces[QUANT_MAX_SOURCES];
    uint64_t row_begin, row_end, column_begin, column_end;
    /* Where the scheme has an order of columns (group_of): of each place of a row, which column of these stands there, from column_begin on, or −1: a block is of one group. */
    const int32_t *order;
    uint64_t n_ordered; /* a multiple of 32 */
    struct rt_deviation *deviation; /* QUANT_NUMBERS: added to */
};

struct rt_odd_scales {
    uint64_t over_zeros; /* NaN, infinite or negative ones, over blocks of zeros */
    uint64_t zero, least;
};

/* Bytes of an assembled row: whole blocks from the one that holds column_begin on (with an order: of its places). */
size_t rt_assembled_bytes(const struct quant_scheme *s, uint64_t column_begin, uint64_t column_end);

/* Row i to rows + i · rt_assembled_bytes(). Adds to *odd. */
enum st rt_assemble(const struct rt_assembly *a, unsigned char *rows, struct rt_odd_scales *odd, struct err *e);

/* Elements [n_outer][n_inner], outer_stride and inner_stride bytes apart, to [n_inner][n_outer] without gaps. A walk along the columns of what lies along the rows would touch a line of the cache
 * for each number. element_bytes: 1, 2 or 4. */
void rt_transpose(const unsigned char *from, size_t outer_stride, size_t inner_stride, uint64_t n_outer, uint64_t n_inner, uint32_t element_bytes, unsigned char *to);

/* The factor of a whole tensor: the number in the file, or its reciprocal where the scheme divides. It must be positive and finite; zero (divides: infinite) is that of a tensor of zeros. */
enum st rt_tensor_scale(const struct quant_scheme *s, const struct quant_source *source, float stored, float *scale, struct err *e);

#endif
