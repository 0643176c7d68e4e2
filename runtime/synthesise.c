#include "runtime/synthesise.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/rng.h"
#include "kernels/encode.h"
#include "kernels/formats.h"
#include "runtime/out_files.h"
#include "runtime/slab.h"

/* A level is the sum of four bytes: 0 … 1020, 510 in the middle, a standard deviation of √(4 · (256² − 1) ÷ 12). */
enum { LEVELS = 1021, MIDDLE = 510, MAX_PARTS = 2, RUN = 256 };
#define LEVEL_STD 147.80054f
#define SLAB_NUMBERS ((uint64_t)4 << 20)
#define E4M3_MAX 448.0f

struct maker {
    const struct synth_plan *plan;
    const struct rt_synthesise_options *options;
    struct err *e;
    struct rt_out_files files;
    uint64_t done_bytes;

    const struct synth_item *item;
    uint64_t key;
    float values[LEVELS];
    uint16_t bf16[LEVELS];
    uint8_t e4m3[LEVELS];
    float scale, global; /* FP8's, before a row's or block's own factor; NVFP4's */
    size_t part_row_bytes[MAX_PARTS];
    unsigned char *parts[MAX_PARTS];
    size_t capacity[MAX_PARTS];
    float *row; /* one a thread, of row_columns */
    uint64_t row_columns;
    uint64_t first_row, n_rows; /* of the slab */
};

/* ---- numbers ------------------------------------------------------------------------------------------------------------------------------------------------ */

static void start_item(struct maker *w, const struct synth_item *item)
{
    w->item = item;
    w->key = base_hash64(item->name, strlen(item->name), w->plan->options.seed);
    for (int i = 0; i < LEVELS; i++) {
        w->values[i] = item->mean + item->std * (float)(i - MIDDLE) / LEVEL_STD;
        w->bf16[i] = kern_f32_to_bf16(w->values[i]);
        w->e4m3[i] = kern_f32_to_e4m3((float)(i - MIDDLE) * (E4M3_MAX / MIDDLE));
    }
    const float amax = item->std * MIDDLE / LEVEL_STD;
    w->scale = amax / E4M3_MAX;
    w->global = kern_encode_nvfp4_global(amax);
}

/* The n-th of a stream of random words: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), whose state is a counter. Philox (base/rng.h) would
 * do the same at six times the cost, and a model has 10^11 numbers. */
static uint64_t random_word(uint64_t key, uint64_t n)
{
    uint64_t z = key + (n + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The levels of n columns from `first` on, which is even: two a word. */
static void draw(const struct maker *w, uint64_t row, uint64_t first, size_t n, uint16_t levels[RUN])
{
    const uint64_t at = row * ((w->item->columns + 1) / 2) + first / 2;
    for (size_t k = 0; k < (n + 1) / 2; k++) {
        const uint64_t random = random_word(w->key, at + k), low = 0x00ff00ff00ff00ffu;
        const uint64_t pairs = (random & low) + (random >> 8 & low);
        levels[2 * k] = (uint16_t)((pairs + (pairs >> 16)) & 0x7ff);
        levels[2 * k + 1] = (uint16_t)(((pairs >> 32) + (pairs >> 48)) & 0x7ff);
    }
}

/* 0.75 … 1.25, another for each block of scales. */
static float factor(const struct maker *w, uint64_t row, uint64_t block)
{
    const uint64_t random = random_word(~w->key, row << 32 | block);
    return 0.75f + 0.5f * (float)base_unit_open((uint32_t)random);
}

/* ---- rows --------------------------------------------------------------------------------------------------------------------------------------------------- */

static void make_row(const struct maker *w, uint64_t i, float *x)
{
    const struct synth_item *item = w->item;
    const uint64_t row = w->first_row + i, columns = item->columns;
    unsigned char *first = w->parts[0] + i * w->part_row_bytes[0], *second = w->parts[1] + i * w->part_row_bytes[1];
    for (uint64_t c = 0; c < columns; c += RUN) {
        uint16_t levels[RUN];
        const size_t n = columns - c < RUN ? (size_t)(columns - c) : RUN;
        draw(w, row, c, n, levels);
        if (item->stored == SYNTH_BF16)
            for (size_t k = 0; k < n; k++)
                memcpy(first + 2 * (c + k), &w->bf16[levels[k]], 2);
        else if (item->stored == SYNTH_FP8 || item->stored == SYNTH_FP8_ROW || item->stored == SYNTH_FP8_BLOCK)
            for (size_t k = 0; k < n; k++)
                first[c + k] = w->e4m3[levels[k]];
        else
            for (size_t k = 0; k < n; k++)
                x[c + k] = w->values[levels[k]];
    }
    switch (item->stored) {
    case SYNTH_F32: memcpy(first, x, columns * 4); break;
    case SYNTH_NVFP4: kern_encode_nvfp4(x, columns, w->global, first, second); break;
    case SYNTH_MXFP4: kern_encode_mxfp4(x, columns, first, second); break;
    case SYNTH_FP8_ROW: {
        const uint16_t scale = kern_f32_to_bf16(w->scale * factor(w, row, 0));
        memcpy(second, &scale, 2);
        break;
    }
    default: break;
    }
}

static void make_rows(void *arg, int i_thread, int n_threads)
{
    struct maker *w = arg;
    size_t begin, end;
    base_pool_share(w->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (size_t i = begin; i < end; i++)
        make_row(w, i, w->row + (uint64_t)i_thread * w->row_columns);
}

/* ---- items -------------------------------------------------------------------------------------------------------------------------------------------------- */

static const struct out_tensor *target(const struct maker *w, size_t i) { return &w->plan->targets[w->item->first_target + i]; }

/* Those that go along with the rows. */
static int count_parts(const struct synth_item *item)
{
    return item->stored == SYNTH_NVFP4 || item->stored == SYNTH_MXFP4 || item->stored == SYNTH_FP8_ROW ? 2 : 1;
}

static enum st prepare(struct maker *w, uint64_t slab_rows)
{
    const struct synth_item *item = w->item;
    for (int k = 0; k < MAX_PARTS; k++) {
        w->part_row_bytes[k] = k < count_parts(item) ? (size_t)(target(w, (size_t)k)->bytes / item->rows) : 0;
        if (!rt_slab_grow(&w->parts[k], &w->capacity[k], slab_rows * w->part_row_bytes[k] + 1))
            return err_set(w->e, ST_NO_MEMORY, "no memory for slabs of tensor %s", item->name);
    }
    if (item->columns > w->row_columns) {
        free(w->row);
        w->row_columns = item->columns;
        w->row = malloc((size_t)base_pool_n_threads(w->options->pool) * item->columns * sizeof *w->row);
        if (!w->row)
            return err_set(w->e, ST_NO_MEMORY, "no memory for slabs of tensor %s", item->name);
    }
    return ST_OK;
}

static enum st go_on(struct maker *w)
{
    if (!w->options->go_on || w->options->go_on(w->options->arg, w->item->name, w->done_bytes))
        return ST_OK;
    return err_set(w->e, ST_CANCELLED, "interrupted; nothing was kept");
}

static enum st write_part(struct maker *w, size_t i, uint64_t at, const void *data, size_t bytes)
{
    w->done_bytes += bytes;
    return rt_out_files_write(&w->files, target(w, i), at, data, bytes, w->e);
}

/* Scales that do not go along with the rows. */
static enum st write_scales(struct maker *w)
{
    if (w->item->stored == SYNTH_NVFP4) {
        const float scale = 1 / w->global;
        return write_part(w, 2, 0, &scale, 4);
    }
    if (w->item->stored == SYNTH_FP8)
        return write_part(w, 1, 0, &w->scale, 4);
    if (w->item->stored != SYNTH_FP8_BLOCK)
        return ST_OK;
    const struct out_tensor *t = target(w, 1);
    float *scales = malloc(t->bytes);
    if (!scales)
        return err_set(w->e, ST_NO_MEMORY, "no memory for the scales of tensor %s", t->name);
    for (uint64_t row = 0; row < t->dims[0]; row++)
        for (uint64_t column = 0; column < t->dims[1]; column++)
            scales[row * t->dims[1] + column] = w->scale * factor(w, row, column);
    const enum st st = write_part(w, 1, 0, scales, t->bytes);
    free(scales);
    return st;
}

static enum st make_item(struct maker *w, const struct synth_item *item)
{
    const uint64_t n_rows = w->options->headers_only ? item->shown : item->rows;
    if (n_rows == 0)
        return ST_OK;
    start_item(w, item);
    if (item->stored == SYNTH_CONSTANT)
        return write_part(w, 0, 0, &item->mean, 4);
    const uint64_t wanted = SLAB_NUMBERS / item->columns, slab = wanted < 1 ? 1 : wanted < n_rows ? wanted : n_rows;
    enum st st = prepare(w, slab);
    for (uint64_t row = 0; !st && row < n_rows; row += slab) {
        w->first_row = row;
        w->n_rows = n_rows - row < slab ? n_rows - row : slab;
        base_pool_run(w->options->pool, make_rows, w);
        for (int k = 0; !st && k < count_parts(item); k++)
            st = write_part(w, (size_t)k, row * w->part_row_bytes[k], w->parts[k], w->n_rows * w->part_row_bytes[k]);
        if (!st)
            st = go_on(w);
    }
    return st ? st : write_scales(w);
}

enum st rt_synthesise(const struct synth_plan *plan, const struct rt_synthesise_options *options, struct err *e)
{
    struct maker *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(e, ST_NO_MEMORY, "no memory");
    w->plan = plan;
    w->options = options;
    w->e = e;
    enum st st = rt_out_files_open(&w->files, options->dir, plan->files, plan->n_files, options->headers_only, e);
    for (size_t i = 0; !st && i < plan->n_items; i++)
        st = make_item(w, &plan->items[i]);
    st = rt_out_files_close(&w->files, st, e);
    for (int k = 0; k < MAX_PARTS; k++)
        free(w->parts[k]);
    free(w->row);
    free(w);
    return st;
}
