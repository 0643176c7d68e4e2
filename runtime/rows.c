/* Elements of several tensors → one piece of memory each → rows. */
#include "runtime/rows.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

enum st rt_read_exactly(int fd, void *to, uint64_t bytes, uint64_t offset, const char *name, struct err *e)
{
    for (unsigned char *at = to; bytes;) {
        const ssize_t got = pread(fd, at, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_set(e, ST_IO, "tensor %s: cannot read %" PRIu64 " bytes at %" PRIu64 ": %s", name, bytes, offset, got ? strerror(errno) : "the file ends there");
        at += got;
        offset += (uint64_t)got;
        bytes -= (uint64_t)got;
    }
    return ST_OK;
}

/* The distance in memory between runs that lie so far apart in the file. A quarter wanted of what lies between: one large read beats many small ones. */
static uint64_t apart_of(uint64_t run_bytes, uint64_t stride_bytes) { return run_bytes * 4 >= stride_bytes ? stride_bytes : run_bytes; }

/* n runs of bytes each, as far apart in the file as the slice says; *apart is the distance between them in memory. */
static enum st read_runs(const struct rt_rows *r, uint32_t k, uint64_t offset, uint64_t n, uint64_t bytes, unsigned char *to, size_t *apart, struct err *e)
{
    const struct part_slice *s = &r->weight->slices[k];
    const char *name = r->weight->scheme->sources[k].tensor->name;
    *apart = apart_of(bytes, s->stride[0]);
    if (*apart == s->stride[0])
        return rt_read_exactly(r->fds[s->file], to, (n - 1) * s->stride[0] + bytes, offset, name, e);
    for (uint64_t i = 0; i < n; i++) {
        const enum st st = rt_read_exactly(r->fds[s->file], to + i * bytes, bytes, offset + i * s->stride[0], name, e);
        if (st)
            return st;
    }
    return ST_OK;
}

/* What one source has of local rows [row, row + n): elements along the rows, and how they lie in the file: runs that begin slice.stride[0] apart. */
struct extent {
    uint64_t begin, n;         /* elements along the rows, from the matrix's beginning */
    uint64_t n_runs, run_bytes, offset;
};

/* A run of a transposed source is some of its rows, with what lies between them where they take turns with another's. */
static uint64_t transposed_run(const struct quant_source *s, uint64_t n) { return (n - 1) * s->row_stride + s->element_bytes; }

static struct extent extent_of(const struct part_weight *w, uint32_t k, uint64_t row, uint64_t n)
{
    const struct quant_source *s = &w->scheme->sources[k];
    const struct part_slice *slice = &w->slices[k];
    const uint64_t first = w->first_row + w->rows.begin + row;
    struct extent x = {.begin = first / s->row_unit};
    x.n = (first + n - 1) / s->row_unit + 1 - x.begin;
    x.n_runs = s->transposed ? slice->count[0] : x.n;
    x.run_bytes = s->transposed ? transposed_run(s, x.n) : slice->run_bytes;
    x.offset = slice->offset + (x.begin - slice->first_row / s->row_unit) * s->row_stride;
    return x;
}

uint64_t rt_rows_bytes(const struct rt_rows *r, uint64_t n)
{
    const struct part_weight *w = r->weight;
    const bool blocks = w->scheme->sources[0].role == QUANT_BLOCKS;
    uint64_t bytes = blocks ? 0 : n * rt_assembled_bytes(w->scheme, r->columns->begin, r->columns->end);
    for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
        const struct quant_source *s = &w->scheme->sources[k];
        const uint64_t n_elements = (n - 1) / s->row_unit + 2;
        const uint64_t run = s->transposed ? transposed_run(s, n_elements) : w->slices[k].run_bytes, stride = w->slices[k].stride[0];
        const uint64_t n_runs = s->transposed ? w->slices[k].count[0] : n_elements;
        bytes += n_runs * apart_of(run, stride) + 64 + (s->transposed ? n_runs * n_elements * s->element_bytes + 64 : 0);
    }
    return bytes;
}

enum st rt_rows_tensor_scale(const struct rt_rows *r, float *scale, struct err *e)
{
    const struct part_weight *w = r->weight;
    for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
        const struct quant_source *s = &w->scheme->sources[k];
        float stored;
        if (s->role != QUANT_TENSOR_SCALE)
            continue;
        const enum st st = rt_read_exactly(r->fds[w->slices[k].file], &stored, sizeof stored, w->slices[k].offset, s->tensor->name, e);
        return st ? st : rt_tensor_scale(w->scheme, s, stored, scale, e);
    }
    return ST_OK;
}

/* The bounce buffer holds the pieces of all sources one after another (transposed ones once more, turned), then the assembled rows. */
enum st rt_rows_read(const struct rt_rows *r, uint64_t row, uint64_t n, unsigned char *bounce, struct rt_rows_read *out, struct rt_deviation *deviation, struct rt_odd_scales *odd, struct err *e)
{
    const struct part_weight *w = r->weight;
    struct rt_assembly a = {.scheme = w->scheme,
                            .deviation = deviation,
                            .row_begin = w->first_row + w->rows.begin + row,
                            .row_end = w->first_row + w->rows.begin + row + n,
                            .column_begin = w->columns.begin,
                            .column_end = w->columns.end,
                            .order = r->columns->order,
                            .n_ordered = r->columns->order ? r->columns->end : 0};
    for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
        const struct quant_source *s = &w->scheme->sources[k];
        const struct extent x = extent_of(w, k, row, n);
        if (s->role == QUANT_TENSOR_SCALE)
            continue;
        a.pieces[k] = (struct rt_piece){.data = bounce, .first_row = x.begin * s->row_unit, .first_column = w->slices[k].first_column};
        const enum st st = read_runs(r, k, x.offset, x.n_runs, x.run_bytes, bounce, &a.pieces[k].stride_bytes, e);
        if (st)
            return st;
        const unsigned char *as_read = bounce;
        bounce += ((x.n_runs - 1) * a.pieces[k].stride_bytes + x.run_bytes + 63) / 64 * 64;
        if (s->transposed) {
            rt_transpose(as_read, a.pieces[k].stride_bytes, s->row_stride, x.n_runs, x.n, s->element_bytes, bounce);
            a.pieces[k].data = bounce;
            a.pieces[k].stride_bytes = x.n_runs * s->element_bytes;
            bounce += (x.n_runs * x.n * s->element_bytes + 63) / 64 * 64;
        }
    }
    if (w->scheme->sources[0].role == QUANT_BLOCKS) {
        *out = (struct rt_rows_read){a.pieces[0].data, a.pieces[0].stride_bytes, a.pieces[0].first_column};
        return ST_OK;
    }
    const uint64_t block = kern_format(w->scheme->format)->block_columns;
    *out = (struct rt_rows_read){bounce, rt_assembled_bytes(w->scheme, r->columns->begin, r->columns->end), r->columns->begin / block * block};
    return rt_assemble(&a, bounce, odd, e);
}
