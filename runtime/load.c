/* Slices → packed matrices. The bounce buffer holds a few rows (whole strides where most of a row is wanted, else only the runs), so memory never holds two copies of a tensor. */
#include "runtime/load.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BOUNCE_BYTES (4u << 20)

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

/* Rows [row, row + n) of the slice into bounce; *stride is the distance between them there. */
static enum st read_rows(const struct loading *l, const struct part_weight *w, uint64_t row, uint64_t n, unsigned char *bounce, bool whole_strides, size_t *stride, struct err *e)
{
    const struct part_slice *s = &w->slice;
    const int fd = l->fds[s->file];
    if (whole_strides) {
        *stride = s->stride[0];
        return read_exactly(fd, bounce, (n - 1) * s->stride[0] + s->run_bytes, s->offset + row * s->stride[0], w->name, e);
    }
    *stride = s->run_bytes;
    for (uint64_t i = 0; i < n; i++) {
        const enum st st = read_exactly(fd, bounce + i * s->run_bytes, s->run_bytes, s->offset + (row + i) * s->stride[0], w->name, e);
        if (st)
            return st;
    }
    return ST_OK;
}

static void tick(struct loading *l, uint64_t bytes)
{
    const uint64_t done = atomic_fetch_add(&l->done_bytes, bytes) + bytes;
    if (l->progress)
        l->progress(l->context, done, l->total_bytes);
}

static enum st load_matrix(struct loading *l, const struct part_weight *w, struct kern_matrix *matrix, unsigned char *bounce, size_t bounce_bytes, struct err *e)
{
    const struct part_slice *s = &w->slice;
    if (s->count[0] == 0)
        return ST_OK;
    const bool whole_strides = s->run_bytes * 4 >= s->stride[0]; /* a quarter wanted: one large read beats many small ones */
    const uint64_t row_bytes = whole_strides ? s->stride[0] : s->run_bytes;
    uint64_t step = bounce_bytes / row_bytes / KERN_TILE_ROWS * KERN_TILE_ROWS;
    BASE_ASSERT(step > 0);
    for (uint64_t row = 0; row < s->count[0]; row += step) {
        const uint64_t n = s->count[0] - row < step ? s->count[0] - row : step;
        size_t stride;
        const enum st st = read_rows(l, w, row, n, bounce, whole_strides, &stride, e);
        if (st)
            return st;
        const struct kern_pack pack = {.matrix = matrix, .row_begin = row, .n_rows = n, .src = bounce, .row_stride_bytes = stride, .first_column = s->first_column};
        l->backend->matrix_pack(&pack);
        tick(l, n * s->run_bytes);
    }
    return ST_OK;
}

static enum st load_vector(struct loading *l, const struct part_weight *w, float *vector, unsigned char *bounce, size_t bounce_bytes, struct err *e)
{
    const uint64_t n = w->rows.end - w->rows.begin, size = kern_format(w->tensor->format)->block_bytes;
    for (uint64_t at = 0; at < n;) {
        const uint64_t count = (n - at) * size < bounce_bytes ? n - at : bounce_bytes / size;
        const enum st st = read_exactly(l->fds[w->slice.file], bounce, count * size, w->slice.offset + at * size, w->name, e);
        if (st)
            return st;
        kern_format_dequantise(w->tensor->format, bounce, count, vector + at);
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
    for (int i = 0; i < l->m->n_weights; i++) /* at least 16 rows of the widest matrix */
        if (l->m->weights[i].kind == PART_MATRIX && l->m->weights[i].slice.stride[0] * KERN_TILE_ROWS > bounce_bytes)
            bounce_bytes = l->m->weights[i].slice.stride[0] * KERN_TILE_ROWS;
    unsigned char *bounce = malloc(bounce_bytes);
    struct err e = {""};
    enum st st = bounce ? ST_OK : err_set(&e, ST_NO_MEMORY, "no memory for a bounce buffer of %zu bytes", bounce_bytes);
    while (!st && !atomic_load(&l->failed)) {
        const int i = atomic_fetch_add(&l->next, 1);
        if (i >= l->m->n_weights)
            break;
        const struct part_weight *w = &l->m->weights[i];
        st = w->kind == PART_MATRIX ? load_matrix(l, w, &l->items[i].matrix, bounce, bounce_bytes, &e) : load_vector(l, w, l->items[i].vector, bounce, bounce_bytes, &e);
    }
    int none = 0;
    if (st && atomic_compare_exchange_strong(&l->failed, &none, (int)st))
        l->err = e;
    free(bounce);
}

/* Memory for every weight, in order. */
static enum st lay_out(const struct part_model *m, const struct kern_backend *backend, bool accurate, struct arena *data, struct arena *small, struct rt_weight *items, uint64_t *total,
                       struct err *e)
{
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        const uint64_t n_rows = w->rows.end - w->rows.begin;
        *total += w->slice_bytes;
        if (w->kind == PART_VECTOR) {
            items[i].vector = n_rows ? base_arena_array(data, n_rows, sizeof(float)) : NULL; /* even nothing would take a line of the plan's bytes */
            if (!items[i].vector && n_rows)
                return err_set(e, ST_NO_MEMORY, "the plan's %zu bytes of weights do not hold %s", data->capacity_bytes, w->name);
            continue;
        }
        struct kern_matrix *matrix = &items[i].matrix;
        matrix->format = w->tensor->format;
        matrix->activation = kern_activation_for(matrix->format, accurate);
        matrix->n_rows = n_rows;
        matrix->scale = 1;
        if (!backend->supports(KERN_OP_MATMUL, matrix->format, matrix->activation, 0))
            return err_set(e, ST_UNSUPPORTED, "%s: kernel backend %s/%s cannot multiply %s", w->name, backend->name, backend->variant, kern_format(matrix->format)->name);
        const enum st st = rt_columns_init(m, w, small, &matrix->columns, e);
        if (st)
            return st;
        const size_t bytes = backend->matrix_bytes(matrix);
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
        const uint32_t f = m->weights[i].slice.file;
        if (fds[f] >= 0 || m->weights[i].slice_bytes == 0)
            continue;
        fds[f] = open(ck_file_path(m->ck, f), O_RDONLY | O_CLOEXEC);
        if (fds[f] < 0)
            return err_set(e, ST_IO, "%s: %s", ck_file_path(m->ck, f), strerror(errno));
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
    struct loading l = {.m = m, .backend = backend, .items = items, .fds = fds, .progress = progress, .context = context};
    enum st st = lay_out(m, backend, accurate, data, small, items, &l.total_bytes, e);
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
    weights->items = items;
    weights->bytes_read = atomic_load(&l.done_bytes);
    return ST_OK;
}
