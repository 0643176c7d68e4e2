/* Slices → packed matrices. The bounce buffer holds a few rows (whole strides where most of a row is wanted, else only the runs), so memory never holds two copies of a tensor. Of a
 * matrix that is put together from several tensors it holds those rows of each of them, and then the rows of blocks that assemble.c makes of them. */
#include "runtime/load.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "runtime/assemble.h"

#ifndef BOUNCE_BYTES
#define BOUNCE_BYTES (4u << 20) /* what a thread reads at once */
#endif

struct loading {
    const struct part_model *m;
    const struct kern_backend *backend;
    struct rt_weight *items;
    const int *fds;
    rt_progress_fn progress;
    void *context;
    uint64_t total_bytes;
    _Atomic uint64_t done_bytes;
    _Atomic int next;
    _Atomic int failed; /* the first enum st */
    struct err err;
    _Atomic uint64_t odd_over_zeros, odd_zero, odd_least;
};

static enum st read_exactly(int fd, void *to, uint64_t bytes, uint64_t offset, const char *name, struct err *e)
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
static enum st read_runs(const struct loading *l, const struct part_weight *w, uint32_t k, uint64_t offset, uint64_t n, uint64_t bytes, unsigned char *to, size_t *apart, struct err *e)
{
    const struct part_slice *s = &w->slices[k];
    const char *name = w->scheme->sources[k].tensor->name;
    *apart = apart_of(bytes, s->stride[0]);
    if (*apart == s->stride[0])
        return read_exactly(l->fds[s->file], to, (n - 1) * s->stride[0] + bytes, offset, name, e);
    for (uint64_t i = 0; i < n; i++) {
        const enum st st = read_exactly(l->fds[s->file], to + i * bytes, bytes, offset + i * s->stride[0], name, e);
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

/* Bytes that n rows take in the bounce buffer, at most: those of every source, and what they are put together to. */
static uint64_t bounce_bytes_of(const struct part_weight *w, const struct kern_matrix *matrix, uint64_t n)
{
    const bool blocks = w->scheme->sources[0].role == QUANT_BLOCKS;
    uint64_t bytes = blocks ? 0 : n * rt_assembled_bytes(w->scheme, matrix->columns.begin, matrix->columns.end);
    for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
        const struct quant_source *s = &w->scheme->sources[k];
        const uint64_t n_elements = (n - 1) / s->row_unit + 2;
        const uint64_t run = s->transposed ? transposed_run(s, n_elements) : w->slices[k].run_bytes, stride = w->slices[k].stride[0];
        const uint64_t n_runs = s->transposed ? w->slices[k].count[0] : n_elements;
        bytes += n_runs * apart_of(run, stride) + 64 + (s->transposed ? n_runs * n_elements * s->element_bytes + 64 : 0);
    }
    return bytes;
}

/* Rows that are loaded at once: as many tiles as fit, one at least. */
static uint64_t step_of(const struct part_weight *w, const struct kern_matrix *matrix, uint64_t bytes)
{
    uint64_t n = (w->rows.end - w->rows.begin + KERN_TILE_ROWS - 1) / KERN_TILE_ROWS * KERN_TILE_ROWS;
    while (n > KERN_TILE_ROWS && bounce_bytes_of(w, matrix, n) > bytes)
        n = n / 2 / KERN_TILE_ROWS * KERN_TILE_ROWS;
    return n < KERN_TILE_ROWS ? KERN_TILE_ROWS : n;
}

static void tick(struct loading *l, uint64_t bytes)
{
    const uint64_t done = atomic_fetch_add(&l->done_bytes, bytes) + bytes;
    if (l->progress)
        l->progress(l->context, done, l->total_bytes);
}

static enum st load_tensor_scale(const struct loading *l, const struct part_weight *w, struct kern_matrix *matrix, struct err *e)
{
    for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
        const struct quant_source *s = &w->scheme->sources[k];
        float stored;
        if (s->role != QUANT_TENSOR_SCALE)
            continue;
        enum st st = read_exactly(l->fds[w->slices[k].file], (unsigned char *)&stored, sizeof stored, w->slices[k].offset, s->tensor->name, e);
        if (!st)
            st = rt_tensor_scale(w->scheme, s, stored, &matrix->scale, e);
        return st;
    }
    return ST_OK;
}

/* Rows [row, row + n): the bounce buffer holds the pieces of all sources one after another (transposed ones once more, turned), then the assembled rows. */
static enum st load_rows(const struct loading *l, const struct part_weight *w, struct kern_matrix *matrix, uint64_t row, uint64_t n, unsigned char *bounce, struct rt_deviation *deviation,
                         struct rt_odd_scales *odd, struct err *e)
{
    struct rt_assembly a = {.scheme = w->scheme,
                            .deviation = deviation,
                            .row_begin = w->first_row + w->rows.begin + row,
                            .row_end = w->first_row + w->rows.begin + row + n,
                            .column_begin = w->columns.begin,
                            .column_end = w->columns.end,
                            .order = matrix->columns.order,
                            .n_ordered = matrix->columns.order ? matrix->columns.end : 0};
    struct kern_pack pack = {.matrix = matrix, .row_begin = row, .n_rows = n};
    for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
        const struct quant_source *s = &w->scheme->sources[k];
        const struct extent x = extent_of(w, k, row, n);
        if (s->role == QUANT_TENSOR_SCALE)
            continue;
        a.pieces[k] = (struct rt_piece){.data = bounce, .first_row = x.begin * s->row_unit, .first_column = w->slices[k].first_column};
        const enum st st = read_runs(l, w, k, x.offset, x.n_runs, x.run_bytes, bounce, &a.pieces[k].stride_bytes, e);
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
    pack.src = a.pieces[0].data;
    pack.row_stride_bytes = a.pieces[0].stride_bytes;
    pack.first_column = a.pieces[0].first_column;
    if (w->scheme->sources[0].role != QUANT_BLOCKS) {
        const uint64_t block = kern_format(w->scheme->format)->block_columns;
        const enum st st = rt_assemble(&a, bounce, odd, e);
        if (st)
            return st;
        pack.src = bounce;
        pack.row_stride_bytes = rt_assembled_bytes(w->scheme, matrix->columns.begin, matrix->columns.end);
        pack.first_column = matrix->columns.begin / block * block;
    }
    l->backend->matrix_pack(&pack);
    return ST_OK;
}

static enum st load_matrix(struct loading *l, const struct part_weight *w, struct kern_matrix *matrix, unsigned char *bounce, size_t bounce_bytes, struct rt_odd_scales *odd, struct err *e)
{
    if (w->slice_bytes == 0 || w->home == PART_ON_DISK)
        return ST_OK;
    const uint64_t n_rows = w->rows.end - w->rows.begin, step = step_of(w, matrix, bounce_bytes);
    BASE_ASSERT(bounce_bytes_of(w, matrix, step) <= bounce_bytes);
    struct rt_deviation deviation = {0, 0};
    enum st st = load_tensor_scale(l, w, matrix, e);
    for (uint64_t row = 0, told = 0; row < n_rows && !st; row += step) {
        const uint64_t n = n_rows - row < step ? n_rows - row : step;
        st = load_rows(l, w, matrix, row, n, bounce, &deviation, odd, e);
        const uint64_t bytes = row + n == n_rows ? w->slice_bytes - told : w->slice_bytes / n_rows * n; /* blocks of scales are read again where they end between two steps */
        told += bytes;
        if (!st)
            tick(l, bytes);
    }
    if (!st && w->scheme->sources[0].role == QUANT_NUMBERS)
        LOG_WARNING("load", "%s: rounded to FP8, a scale a row: the root mean square of the differences is %.2f %% of the numbers'", w->name,
                    deviation.all > 0 ? 100 * sqrt(deviation.difference / deviation.all) : 0);
    return st;
}

static enum st load_vector(struct loading *l, const struct part_weight *w, float *vector, unsigned char *bounce, size_t bounce_bytes, struct err *e)
{
    const uint64_t n = w->rows.end - w->rows.begin, size = kern_format(w->scheme->format)->block_bytes, stride = w->slices[0].stride[0];
    for (uint64_t at = 0; at < n;) {
        const uint64_t most = bounce_bytes / stride, count = n - at < most ? n - at : most;
        const enum st st = read_exactly(l->fds[w->slices[0].file], bounce, (count - 1) * stride + size, w->slices[0].offset + at * stride, w->name, e);
        if (st)
            return st;
        for (uint64_t i = 0; i < count; i++)
            kern_format_dequantise(w->scheme->format, bounce + i * stride, 1, vector + at + i);
        at += count;
    }
    tick(l, n * size);
    return ST_OK;
}

static void load_share(void *arg, int i_thread, int n_threads)
{
    (void)i_thread;
    (void)n_threads;
    struct loading *l = arg;
    size_t bounce_bytes = BOUNCE_BYTES;
    struct rt_odd_scales odd = {0, 0, 0};
    for (int i = 0; i < l->m->n_weights; i++) { /* at least a tile of the widest matrix */
        const struct part_weight *w = &l->m->weights[i];
        const uint64_t least = w->kind == PART_MATRIX && w->slice_bytes && w->home != PART_ON_DISK ? bounce_bytes_of(w, &l->items[i].matrix, KERN_TILE_ROWS) : 0;
        bounce_bytes = least > bounce_bytes ? least : bounce_bytes;
    }
    unsigned char *bounce = malloc(bounce_bytes);
    struct err e = {""};
    enum st st = bounce ? ST_OK : err_set(&e, ST_NO_MEMORY, "no memory for a bounce buffer of %zu bytes", bounce_bytes);
    while (!st && !atomic_load(&l->failed)) {
        const int i = atomic_fetch_add(&l->next, 1);
        if (i >= l->m->n_weights)
            break;
        const struct part_weight *w = &l->m->weights[i];
        st = w->kind == PART_MATRIX ? load_matrix(l, w, &l->items[i].matrix, bounce, bounce_bytes, &odd, &e) : load_vector(l, w, l->items[i].vector, bounce, bounce_bytes, &e);
    }
    int none = 0;
    if (st && atomic_compare_exchange_strong(&l->failed, &none, (int)st))
        l->err = e;
    atomic_fetch_add(&l->odd_over_zeros, odd.over_zeros);
    atomic_fetch_add(&l->odd_zero, odd.zero);
    atomic_fetch_add(&l->odd_least, odd.least);
    free(bounce);
}

/* An embedding that stays in its file: buffers for its rows. */
static enum st open_rows(const struct part_model *m, const struct part_weight *w, int n_threads, struct arena *data, struct arena *small, struct rt_weight *item, struct err *e)
{
    void *memory = base_arena_alloc(data, rt_disk_rows_bytes(w, n_threads));
    item->rows = base_arena_alloc(small, sizeof *item->rows);
    if (!memory || !item->rows)
        return err_set(e, ST_NO_MEMORY, "the plan's %zu bytes of weights do not hold buffers for rows of %s", data->capacity_bytes, w->name);
    return rt_disk_rows_open(item->rows, m, w, memory, e);
}

/* Memory for every weight, in order. */
static enum st lay_out(const struct part_model *m, const struct kern_backend *backend, bool accurate, int n_threads, struct arena *data, struct arena *small, struct rt_weight *items, uint64_t *total,
                       struct err *e)
{
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        const uint64_t n_rows = w->rows.end - w->rows.begin;
        *total += w->home == PART_ON_DISK ? 0 : w->slice_bytes;
        if (w->kind == PART_VECTOR) {
            items[i].vector = n_rows ? base_arena_array(data, n_rows, sizeof(float)) : NULL; /* even nothing would take a line of the plan's bytes */
            if (!items[i].vector && n_rows)
                return err_set(e, ST_NO_MEMORY, "the plan's %zu bytes of weights do not hold %s", data->capacity_bytes, w->name);
            continue;
        }
        struct kern_matrix *matrix = &items[i].matrix;
        const enum st st = rt_matrix_init(m, w, accurate, small, matrix, e);
        if (st)
            return st;
        if (i && rt_same_columns(&items[i - 1].matrix.columns, &matrix->columns)) /* one array, so that steps see at a glance what goes together */
            matrix->columns.order = items[i - 1].matrix.columns.order;
        if (!backend->supports(KERN_OP_MATMUL, matrix->format, matrix->activation, 0))
            return err_set(e, ST_UNSUPPORTED, "%s: kernel backend %s/%s cannot multiply %s", w->name, backend->name, backend->variant, kern_format(matrix->format)->name);
        if (w->home != PART_IN_MEMORY) {
            const enum st rows = open_rows(m, w, n_threads, data, small, &items[i], e);
            if (rows)
                return rows;
        }
        const size_t bytes = w->home == PART_ON_DISK ? 0 : backend->matrix_bytes(matrix);
        matrix->data = bytes ? base_arena_alloc(data, bytes) : NULL;
        if (bytes && !matrix->data)
            return err_set(e, ST_NO_MEMORY, "the plan's %zu bytes of weights do not hold %s", data->capacity_bytes, w->name);
    }
    return ST_OK;
}

static enum st open_files(const struct part_model *m, int *fds, struct err *e)
{
    const size_t n = ck_n_files(m->ck);
    for (size_t f = 0; f < n; f++)
        fds[f] = -1;
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
            const uint32_t f = w->slices[k].file;
            if (fds[f] >= 0 || w->slice_bytes == 0)
                continue;
            fds[f] = open(ck_file_path(m->ck, f), O_RDONLY | O_CLOEXEC);
            if (fds[f] < 0)
                return err_set(e, ST_IO, "%s: %s", ck_file_path(m->ck, f), strerror(errno));
        }
    }
    return ST_OK;
}

enum st rt_weights_load(const struct part_model *m, const struct kern_backend *backend, bool accurate, struct base_pool *pool, struct arena *data, struct arena *small,
                        rt_progress_fn progress, void *context, struct rt_weights *weights, struct err *e)
{
    struct rt_weight *items = base_arena_array(small, (size_t)m->n_weights, sizeof *items);
    const size_t n_files = ck_n_files(m->ck);
    int *fds = base_arena_array(small, n_files, sizeof *fds);
    if (!items || !fds)
        return err_set(e, ST_NO_MEMORY, "no memory for the table of weights");
    *weights = (struct rt_weights){.items = items, .n_items = m->n_weights};
    struct loading l = {.m = m, .backend = backend, .items = items, .fds = fds, .progress = progress, .context = context};
    enum st st = lay_out(m, backend, accurate, base_pool_n_threads(pool), data, small, items, &l.total_bytes, e);
    if (st)
        return st;
    st = open_files(m, fds, e);
    if (!st) {
        base_pool_run(pool, load_share, &l);
        st = (enum st)atomic_load(&l.failed);
        if (st && e)
            *e = l.err;
    }
    for (size_t f = 0; f < n_files; f++)
        if (fds[f] >= 0)
            close(fds[f]);
    if (st)
        return st;
    const uint64_t odd[] = {atomic_load(&l.odd_over_zeros), atomic_load(&l.odd_zero), atomic_load(&l.odd_least)};
    if (odd[0] || odd[1] || odd[2])
        LOG_WARNING("load", "odd scales, all of them valid: %" PRIu64 " are NaN, infinite or negative over blocks of zeros, %" PRIu64 " are zero, %" PRIu64 " the least of their type", odd[0], odd[1],
                    odd[2]);
    weights->bytes_read = atomic_load(&l.done_bytes);
    return ST_OK;
}

void rt_weights_close(struct rt_weights *weights)
{
    for (int i = 0; i < weights->n_items; i++)
        if (weights->items[i].rows)
            rt_disk_rows_close(weights->items[i].rows);
}
