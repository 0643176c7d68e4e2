/* Slabs: read (one thread: a disk likes that), encode (all threads, by rows), write. NVFP4's scale of the whole tensor needs all rows before the first is encoded, so tensors longer than a
 * slab are read twice. */
#include "runtime/encode.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/encode.h"
#include "runtime/out_files.h"
#include "runtime/rows.h"
#include "runtime/settings.h"
#include "runtime/slab.h"

enum { MAX_PARTS = 2 }; /* codes and scales; a tensor's one scale is written by itself */

struct encoder {
    const struct checkpoint *ck;
    const struct convert_plan *plan;
    const struct rt_encode_options *options;
    struct err *e;
    struct rt_out_files files; /* of the result */
    int *sources; /* of the checkpoint, −1: not open yet */
    uint64_t done_bytes;

    const struct convert_item *item;
    uint64_t slab_rows;
    size_t in_row_bytes, part_row_bytes[MAX_PARTS];
    int n_parts; /* written row by row */
    unsigned char *in, *parts[MAX_PARTS];
    size_t in_capacity, part_capacity[MAX_PARTS];
    float *rows; /* one a thread */
    size_t row_columns;
    float *amax; /* one a thread */

    uint64_t first_row, n_rows; /* of the slab */
    const unsigned char *slab;  /* in the buffer in */
    /* of an item with a weight */
    struct kern_columns columns;
    struct arena arena; /* theirs */
    float scale, *sorted; /* sorted: a row a thread, where columns have an order */
    float global;
    atomic_ullong bad_row; /* the first that cannot be encoded */
};

/* ---- files ---- */

static enum st write_all(struct encoder *w, const struct out_tensor *t, uint64_t at, const void *data, size_t bytes)
{
    return rt_out_files_write(&w->files, t, at, data, bytes, w->e);
}

static enum st open_source(struct encoder *w, uint32_t file)
{
    if (w->sources[file] < 0)
        w->sources[file] = open(ck_file_path(w->ck, file), O_RDONLY | O_CLOEXEC);
    return w->sources[file] < 0 ? err_set(w->e, ST_IO, "%s: %s", ck_file_path(w->ck, file), strerror(errno)) : ST_OK;
}

static enum st read_all(struct encoder *w, const struct ck_tensor *t, uint64_t at, void *out, size_t bytes)
{
    const enum st st = open_source(w, t->file);
    return st ? st : rt_read_exactly(w->sources[t->file], out, bytes, t->offset + at, t->name, w->e);
}

static void close_sources(struct encoder *w)
{
    for (size_t i = 0; i < ck_n_files(w->ck); i++)
        if (w->sources[i] >= 0)
            close(w->sources[i]);
    free(w->sources);
}

/* ---- rows ---- */

/* Halves (j, j + head_rows / 2) become neighbours (2j, 2j + 1), as GGUF has them, or the other way. */
static uint64_t source_row(const struct encoder *w, uint64_t row)
{
    const struct convert_item *item = w->item;
    if (!item->head_rows)
        return row;
    const uint64_t half = item->head_rows / 2, k = row % item->head_rows, base = row - k;
    return base + (w->plan->gguf ? (k & 1) * half + k / 2 : 2 * (k % half) + k / half);
}

static void note_bad(struct encoder *w, uint64_t row)
{
    unsigned long long first = atomic_load(&w->bad_row);
    while (row < first && !atomic_compare_exchange_weak(&w->bad_row, &first, row))
        ;
}

/* The source's bytes of the slab's row i, as it will be written. */
static const unsigned char *row_in(const struct encoder *w, uint64_t i) { return w->slab + (source_row(w, w->first_row + i) - w->first_row) * w->in_row_bytes; }

/* A row of the slab's to numbers: of a matrix of several tensors with their scale, and in the order of its columns. */
static void dequantise(const struct encoder *w, const unsigned char *row, int i_thread, float *x)
{
    const struct convert_item *item = w->item;
    const int32_t *order = item->weight ? w->columns.order : NULL;
    float *sorted = order ? w->sorted + (size_t)i_thread * w->columns.end : x;
    kern_format_dequantise(item->source->format, row, order ? w->columns.end : item->columns, sorted);
    for (uint64_t i = 0; order && i < w->columns.end; i++)
        if (order[i] >= 0)
            x[order[i]] = sorted[i];
    for (uint64_t i = 0; item->weight && i < item->columns; i++)
        x[i] *= w->scale;
}

static void find_amax(void *arg, int i_thread, int n_threads)
{
    struct encoder *w = arg;
    float *x = w->rows + (size_t)i_thread * w->row_columns;
    size_t begin, end;
    base_pool_share(w->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        dequantise(w, w->slab + i * w->in_row_bytes, i_thread, x);
        const float amax = kern_encode_amax(x, w->item->columns);
        if (!isfinite(amax))
            note_bad(w, w->first_row + i);
        w->amax[i_thread] = amax > w->amax[i_thread] ? amax : w->amax[i_thread];
    }
}

static void encode_row(struct encoder *w, uint64_t i, int i_thread, float *x)
{
    const struct convert_item *item = w->item;
    const size_t columns = item->columns;
    unsigned char *first = w->parts[0] + i * w->part_row_bytes[0], *second = w->parts[1] ? w->parts[1] + i * w->part_row_bytes[1] : NULL;
    if (item->as == CONVERT_COPY) {
        memcpy(first, row_in(w, i), w->in_row_bytes);
        return;
    }
    dequantise(w, row_in(w, i), i_thread, x);
    if (item->as == CONVERT_TO_F32) {
        memcpy(first, x, columns * 4);
        return;
    }
    bool fits = isfinite(kern_encode_amax(x, columns));
    if (fits)
        switch (w->plan->format) {
        case CONVERT_NVFP4: kern_encode_nvfp4(x, columns, w->global, first, second); break;
        case CONVERT_MXFP4: kern_encode_mxfp4(x, columns, first, second); break;
        case CONVERT_FP8: {
            const float scale = kern_encode_fp8(x, columns, first);
            memcpy(second, &scale, 4);
            break;
        }
        case CONVERT_Q8_0: fits = kern_encode_q8_0(x, columns, first); break;
        case CONVERT_FORMATS: BASE_ASSERT(!"a format");
        }
    if (!fits)
        note_bad(w, source_row(w, w->first_row + i));
}

static void encode_rows(void *arg, int i_thread, int n_threads)
{
    struct encoder *w = arg;
    size_t begin, end;
    base_pool_share(w->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (size_t i = begin; i < end; i++)
        encode_row(w, i, i_thread, w->rows + (size_t)i_thread * w->row_columns);
}

/* ---- items ---- */

static enum st no_memory(struct encoder *w) { return err_set(w->e, ST_NO_MEMORY, "no memory for slabs of tensor %s", w->item->source->name); }

/* What reading rows of a matrix of several tensors takes: its files, its scale, the order of its columns. */
static enum st prepare_weight(struct encoder *w)
{
    const struct part_weight *weight = w->item->weight;
    enum st st = ST_OK;
    for (uint32_t k = 0; k < weight->scheme->n_sources && !st; k++)
        st = open_source(w, weight->slices[k].file);
    base_arena_reset(&w->arena);
    w->scale = 1;
    if (!st)
        st = rt_columns_init(NULL, weight, &w->arena, &w->columns, w->e); /* no axis is cut: no model is asked for leaves */
    if (!st)
        st = rt_rows_tensor_scale(&(struct rt_rows){weight, &w->columns, w->sources}, &w->scale, w->e);
    w->sorted = w->columns.order ? base_arena_array(&w->arena, w->columns.end * (size_t)base_pool_n_threads(w->options->pool), sizeof *w->sorted) : NULL;
    return st || !w->columns.order || w->sorted ? st : no_memory(w);
}

static enum st prepare(struct encoder *w)
{
    const struct convert_item *item = w->item;
    const size_t n_threads = (size_t)base_pool_n_threads(w->options->pool);
    uint64_t unit = item->head_rows ? item->head_rows : 1, slab = RT_ENCODE_SLAB / 4 / item->columns / unit * unit;
    w->slab_rows = slab < unit ? unit : slab > item->rows ? item->rows : slab;
    w->in_row_bytes = (size_t)(item->source->bytes / item->rows);
    w->n_parts = 0;
    for (int k = 0; k < MAX_PARTS; k++) {
        if (k >= (int)item->n_targets)
            break;
        w->part_row_bytes[k] = (size_t)(w->plan->targets[item->first_target + (size_t)k].bytes / item->rows);
        w->n_parts++;
        if (!rt_slab_grow(&w->parts[k], &w->part_capacity[k], w->slab_rows * w->part_row_bytes[k]))
            return no_memory(w);
    }
    const enum st st = item->weight ? prepare_weight(w) : ST_OK;
    if (st)
        return st;
    const size_t in_bytes = item->weight ? (size_t)rt_rows_bytes(&(struct rt_rows){item->weight, &w->columns, w->sources}, w->slab_rows) : w->slab_rows * w->in_row_bytes;
    if (!rt_slab_grow(&w->in, &w->in_capacity, in_bytes))
        return no_memory(w);
    if (item->columns > w->row_columns) {
        free(w->rows);
        w->row_columns = item->columns;
        w->rows = malloc(n_threads * item->columns * sizeof *w->rows);
        if (!w->rows)
            return no_memory(w);
    }
    return ST_OK;
}

static enum st go_on(struct encoder *w, const char *name)
{
    if (!w->options->go_on || w->options->go_on(w->options->arg, name, w->done_bytes))
        return ST_OK;
    return err_set(w->e, ST_CANCELLED, "interrupted; nothing was kept");
}

static enum st read_slab(struct encoder *w, uint64_t first_row)
{
    w->first_row = first_row;
    w->n_rows = w->item->rows - first_row < w->slab_rows ? w->item->rows - first_row : w->slab_rows;
    w->slab = w->in;
    if (!w->item->weight)
        return read_all(w, w->item->source, first_row * w->in_row_bytes, w->in, w->n_rows * w->in_row_bytes);
    struct rt_rows_read read;
    struct rt_odd_scales odd = {0, 0, 0};
    const enum st st = rt_rows_read(&(struct rt_rows){w->item->weight, &w->columns, w->sources}, first_row, w->n_rows, w->in, &read, NULL, &odd, w->e);
    if (!st) {
        w->slab = read.data;
        w->in_row_bytes = read.stride_bytes;
    }
    return st;
}

static enum st check_bad(struct encoder *w)
{
    const unsigned long long row = atomic_load(&w->bad_row);
    return row == UINT64_MAX ? ST_OK
                             : err_set(w->e, ST_INVALID, "%s: tensor %s, row %llu: a weight is NaN, infinite or too large for %s", ck_path(w->ck), w->item->source->name, row,
                                       convert_format_names[w->plan->format]);
}

static enum st find_global(struct encoder *w)
{
    const int n_threads = base_pool_n_threads(w->options->pool);
    memset(w->amax, 0, (size_t)n_threads * sizeof *w->amax);
    for (uint64_t row = 0; row < w->item->rows; row += w->slab_rows) {
        enum st st = read_slab(w, row);
        if (!st) {
            base_pool_run(w->options->pool, find_amax, w);
            st = check_bad(w);
        }
        if (!st)
            st = go_on(w, w->item->source->name);
        if (st)
            return st;
    }
    float amax = 0;
    for (int i = 0; i < n_threads; i++)
        amax = w->amax[i] > amax ? w->amax[i] : amax;
    w->global = kern_encode_nvfp4_global(amax);
    return write_all(w, &w->plan->targets[w->item->first_target + 2], 0, &w->global, 4);
}

static enum st convert_rows(struct encoder *w)
{
    const struct out_tensor *targets = &w->plan->targets[w->item->first_target];
    const bool global = w->item->as == CONVERT_ENCODE && w->plan->format == CONVERT_NVFP4;
    enum st st = prepare(w);
    if (!st && global)
        st = find_global(w);
    for (uint64_t row = 0; !st && row < w->item->rows; row += w->slab_rows) {
        if (!global || w->slab_rows < w->item->rows)
            st = read_slab(w, row);
        if (st)
            return st;
        base_pool_run(w->options->pool, encode_rows, w);
        st = check_bad(w);
        for (int k = 0; !st && k < w->n_parts; k++)
            st = write_all(w, &targets[k], row * w->part_row_bytes[k], w->parts[k], w->n_rows * w->part_row_bytes[k]);
        w->done_bytes += w->n_rows * w->in_row_bytes;
        if (!st)
            st = go_on(w, w->item->source->name);
    }
    return st;
}

static enum st copy_bytes(struct encoder *w)
{
    const struct ck_tensor *t = w->item->source;
    if (!rt_slab_grow(&w->in, &w->in_capacity, RT_ENCODE_SLAB))
        return no_memory(w);
    enum st st = ST_OK;
    for (uint64_t at = 0; !st && at < t->bytes;) {
        const size_t here = t->bytes - at < RT_ENCODE_SLAB ? (size_t)(t->bytes - at) : RT_ENCODE_SLAB;
        st = read_all(w, t, at, w->in, here);
        if (!st)
            st = write_all(w, &w->plan->targets[w->item->first_target], at, w->in, here);
        at += here;
        w->done_bytes += here;
        if (!st)
            st = go_on(w, t->name);
    }
    return st;
}

enum st rt_encode(const struct checkpoint *ck, const struct convert_plan *plan, const struct rt_encode_options *options, struct err *e)
{
    struct encoder w = {.ck = ck, .plan = plan, .options = options, .e = e};
    atomic_init(&w.bad_row, UINT64_MAX);
    w.amax = malloc((size_t)base_pool_n_threads(options->pool) * sizeof *w.amax);
    w.sources = malloc((ck_n_files(ck) + 1) * sizeof *w.sources);
    if (!w.amax || !w.sources || base_arena_init(&w.arena, "encode", 0, NULL)) {
        free(w.amax);
        free(w.sources);
        return err_set(e, ST_NO_MEMORY, "no memory");
    }
    for (size_t i = 0; i < ck_n_files(ck); i++)
        w.sources[i] = -1;
    enum st st = rt_out_files_open(&w.files, options->dir, plan->files, plan->n_files, false, e);
    for (size_t i = 0; !st && i < plan->n_items; i++) {
        w.item = &plan->items[i];
        if (w.item->data)
            st = write_all(&w, &plan->targets[w.item->first_target], 0, w.item->data, plan->targets[w.item->first_target].bytes);
        else if (w.item->source->bytes == 0)
            continue;
        else if (w.item->as == CONVERT_COPY && !w.item->head_rows)
            st = copy_bytes(&w);
        else
            st = convert_rows(&w);
    }
    st = rt_out_files_close(&w.files, st, e);
    close_sources(&w);
    for (int k = 0; k < MAX_PARTS; k++)
        free(w.parts[k]);
    free(w.in);
    free(w.rows);
    free(w.amax);
    base_arena_release(&w.arena);
    return st;
}
