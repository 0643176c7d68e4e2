/* Slices → packed matrices. The bounce buffer holds a few rows, so memory never holds two copies of a tensor (rows.h). */
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
#include "runtime/rows.h"

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
    size_t bounce_bytes; /* of each thread */
    _Atomic uint64_t done_bytes;
    _Atomic int next;
    _Atomic int failed; /* the first enum st */
    struct err err;
    _Atomic uint64_t odd_over_zeros, odd_zero, odd_least;
};

/* Rows that are loaded at once: as many tiles as fit, one at least. */
static uint64_t step_of(const struct rt_rows *rows, uint64_t bytes)
{
    const struct part_weight *w = rows->weight;
    uint64_t n = (w->rows.end - w->rows.begin + KERN_TILE_ROWS - 1) / KERN_TILE_ROWS * KERN_TILE_ROWS;
    while (n > KERN_TILE_ROWS && rt_rows_bytes(rows, n) > bytes)
        n = n / 2 / KERN_TILE_ROWS * KERN_TILE_ROWS;
    return n < KERN_TILE_ROWS ? KERN_TILE_ROWS : n;
}

static void tick(struct loading *l, uint64_t bytes)
{
    const uint64_t done = atomic_fetch_add(&l->done_bytes, bytes) + bytes;
    if (l->progress)
        l->progress(l->context, done, l->total_bytes);
}

static enum st load_matrix(struct loading *l, const struct part_weight *w, struct kern_matrix *matrix, unsigned char *bounce, size_t bounce_bytes, struct rt_odd_scales *odd, struct err *e)
{
    if (w->slice_bytes == 0)
        return ST_OK;
    const struct rt_rows rows = {w, &matrix->columns, l->fds};
    enum st st = rt_rows_tensor_scale(&rows, &matrix->scale, e); /* rows that stay on disk are multiplied with it too */
    if (w->home == PART_ON_DISK)
        return st;
    const uint64_t n_rows = w->rows.end - w->rows.begin, step = step_of(&rows, bounce_bytes);
    BASE_ASSERT(rt_rows_bytes(&rows, step) <= bounce_bytes);
    struct rt_deviation deviation = {0, 0};
    for (uint64_t row = 0, told = 0; row < n_rows && !st; row += step) {
        const uint64_t n = n_rows - row < step ? n_rows - row : step;
        struct rt_rows_read read;
        st = rt_rows_read(&rows, row, n, bounce, &read, &deviation, odd, e);
        if (st)
            break;
        l->backend->matrix_pack(&(struct kern_pack){.matrix = matrix, .row_begin = row, .n_rows = n, .src = read.data, .row_stride_bytes = read.stride_bytes, .first_column = read.first_column});
        const uint64_t bytes = row + n == n_rows ? w->slice_bytes - told : w->slice_bytes / n_rows * n; /* blocks of scales are read again where they end between two steps */
        told += bytes;
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
        const enum st st = rt_read_exactly(l->fds[w->slices[0].file], bounce, (count - 1) * stride + size, w->slices[0].offset + at * stride, w->name, e);
        if (st)
            return st;
        for (uint64_t i = 0; i < count; i++)
            kern_format_dequantise(w->scheme->format, bounce + i * stride, 1, vector + at + i);
        at += count;
    }
    tick(l, n * size);
    return ST_OK;
}

/* At least a tile of the widest matrix. */
static size_t bounce_bytes_of(const struct part_model *m, const struct rt_weight *items)
{
    uint64_t most = BOUNCE_BYTES;
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        const uint64_t least = w->kind == PART_MATRIX && w->slice_bytes && w->home != PART_ON_DISK ? rt_rows_bytes(&(struct rt_rows){w, &items[i].matrix.columns, NULL}, KERN_TILE_ROWS) : 0;
        most = least > most ? least : most;
    }
    return (size_t)most;
}

static void load_share(void *arg, int i_thread, int n_threads)
{
    (void)i_thread;
    (void)n_threads;
    struct loading *l = arg;
    const size_t bounce_bytes = l->bounce_bytes;
    struct rt_odd_scales odd = {0, 0, 0};
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
    struct rt_disk_rows *rows = base_arena_alloc(small, sizeof *rows);
    if (!memory || !rows)
        return err_set(e, ST_NO_MEMORY, "the plan's %zu bytes of weights do not hold buffers for rows of %s", data->capacity_bytes, w->name);
    const enum st st = rt_disk_rows_open(rows, m, w, memory, e);
    item->rows = st ? NULL : rows; /* what rt_weights_close closes */
    return st;
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
        const enum st st = rt_matrix_init(m, w, backend, accurate, small, matrix, e);
        if (st)
            return st;
        if (i && rt_same_columns(&items[i - 1].matrix.columns, &matrix->columns)) /* one array, so that steps see at a glance what goes together */
            matrix->columns.order = items[i - 1].matrix.columns.order;
        if (!backend->supports(KERN_OP_MATMUL, matrix->format, matrix->activation, 0))
            return err_set(e, ST_UNSUPPORTED, "%s: kernel backend %s/%s cannot multiply %s%s", w->name, backend->name, backend->variant, kern_format(matrix->format)->name,
                           matrix->activation == KERN_ACT_F32 ? " with activations in F32" : "");
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
        l.bounce_bytes = bounce_bytes_of(m, items);
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
