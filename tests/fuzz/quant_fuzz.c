/* Quantised checkpoints: a config.json up to the first NUL, then a safetensors file. Every tensor that may hold codes is asked for its scheme under each shape that its own dimensions
 * allow; a scheme that is found must account for every byte of its tensors, and its rows are put together, whole and cut. */
#include <math.h>

#include "base/json.h"
#include "base/log.h"
#include "partition/cache.h"
#include "partition/quant.h"
#include "runtime/assemble.h"
#include "tests/fuzz/ck_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { QUANT_MOST_ROWS = 64, QUANT_MOST_COLUMNS = 1024 };

static uint64_t quant_elements(uint64_t n, uint64_t unit) { return (n - 1) / unit + 1; }

static void quant_check_sources(const struct quant_scheme *s)
{
    BASE_ASSERT(s->n_sources >= 1 && s->n_sources <= QUANT_MAX_SOURCES);
    const uint64_t n_views = quant_view_planes(&s->view) * quant_view_step(&s->view);
    for (uint32_t k = 0; k < s->n_sources; k++) {
        const struct quant_source *x = &s->sources[k];
        BASE_ASSERT(x->row_unit && x->column_unit && x->element_bytes);
        const uint64_t n_rows = quant_elements(s->rows, x->row_unit), n_columns = quant_elements(s->columns, x->column_unit);
        BASE_ASSERT(n_views * n_rows * n_columns * x->element_bytes == x->tensor->bytes);
        BASE_ASSERT(x->offset + (n_rows - 1) * x->row_stride + (n_columns - 1) * x->column_stride + x->element_bytes <= x->tensor->bytes);
    }
}

/* Columns [begin, end) by group, each run filled up to whole blocks; returns how many places. */
static uint64_t quant_sort(const struct quant_scheme *s, uint64_t begin, uint64_t end, int32_t *order)
{
    uint64_t n = 0;
    for (uint64_t g = 0; g < s->columns / s->sources[1].column_unit; g++) {
        for (uint64_t c = begin; c < end; c++)
            if ((uint64_t)s->group_of[c] == g)
                order[n++] = (int32_t)(c - begin);
        while (n % 32)
            order[n++] = -1;
    }
    return n;
}

static void quant_assemble(const struct quant_scheme *s, const uint8_t *file, uint64_t row_begin, uint64_t column_begin, uint64_t column_end)
{
    struct rt_assembly a = {.scheme = s, .row_begin = row_begin, .row_end = s->rows, .column_begin = column_begin, .column_end = column_end};
    unsigned char *copies[QUANT_MAX_SOURCES] = {NULL};
    for (uint32_t k = 0; k < s->n_sources; k++) { /* exact copies, so that a sanitizer sees the first byte that is read too far */
        const struct quant_source *x = &s->sources[k];
        const uint64_t first = row_begin / x->row_unit, n_rows = quant_elements(s->rows, x->row_unit) - first, n_columns = quant_elements(s->columns, x->column_unit);
        const uint8_t *from = file + x->tensor->offset + x->offset + first * x->row_stride;
        copies[k] = malloc(n_rows * n_columns * x->element_bytes);
        BASE_ASSERT(copies[k] != NULL);
        if (x->transposed)
            rt_transpose(from, x->column_stride, x->row_stride, n_columns, n_rows, x->element_bytes, copies[k]);
        else
            for (uint64_t i = 0; i < n_rows; i++)
                memcpy(copies[k] + i * n_columns * x->element_bytes, from + i * x->row_stride, n_columns * x->element_bytes);
        a.pieces[k] = (struct rt_piece){.data = copies[k], .first_row = first * x->row_unit, .stride_bytes = (size_t)(n_columns * x->element_bytes)};
    }
    int32_t order[32 * QUANT_MOST_COLUMNS]; /* a group has 32 columns or more, or is the only one */
    if (s->group_of) {
        a.order = order;
        a.n_ordered = quant_sort(s, column_begin, column_end, order);
    }
    const size_t row_bytes = s->group_of ? rt_assembled_bytes(s, 0, a.n_ordered) : rt_assembled_bytes(s, column_begin, column_end), block = kern_format(s->format)->block_columns;
    const uint64_t n = row_bytes / kern_format(s->format)->block_bytes * block;
    unsigned char *rows = malloc(s->rows * row_bytes);
    float *values = malloc(n * sizeof *values);
    BASE_ASSERT(rows != NULL && values != NULL);
    struct rt_odd_scales odd = {0, 0, 0};
    struct err e = {""};
    if (rt_assemble(&a, rows, &odd, &e) == ST_OK)
        for (uint64_t r = 0; r < s->rows - row_begin; r++) {
            kern_format_dequantise(s->format, rows + r * row_bytes, n, values);
            for (uint64_t c = 0; c < n; c++)
                BASE_ASSERT(!isnan(values[c])); /* a large scale may overflow */
        }
    else
        BASE_ASSERT(e.text[0]);
    free(values);
    free(rows);
    for (uint32_t k = 0; k < s->n_sources; k++)
        free(copies[k]);
}

static void quant_try(const struct checkpoint *ck, struct quant *q, const struct ck_tensor *t, uint64_t rows, uint64_t columns, const struct quant_view *view, const uint8_t *file,
                      struct arena *arena)
{
    const struct quant_scheme *s;
    struct err e = {""};
    if (quant_scheme_of(ck, q, t, rows, columns, view, arena, &s, &e) != ST_OK) {
        BASE_ASSERT(e.text[0]);
        return;
    }
    if (s->sources[0].role == QUANT_BLOCKS)
        return;
    quant_check_sources(s);
    if (rows > QUANT_MOST_ROWS || columns > QUANT_MOST_COLUMNS)
        return;
    quant_assemble(s, file, 0, 0, columns);
    if (columns > 40)
        quant_assemble(s, file, rows > 1, columns / 3, columns - 7);
}

static void quant_try_all(const struct checkpoint *ck, struct quant *q, const uint8_t *file, struct arena *arena)
{
    for (size_t i = 0; i < ck_n_tensors(ck); i++) {
        const struct ck_tensor *t = ck_tensor_at(ck, i);
        quant_expects(q, t->name);
        quant_is_beside(t->name);
        if (t->n_dims >= 3 && t->dims[0] && t->dims[1] / 2) /* experts: one of them, and its odd rows */
            for (uint64_t step = 1; step <= 2; step++)
                quant_try(ck, q, t, t->dims[1] / step, t->dims[2] * 32, &(struct quant_view){.plane = t->dims[0] - 1, .n_planes = t->dims[0], .phase = step - 1, .step = step}, file, arena);
        if (t->n_dims != 2 || (t->unsupported && t->raw == CK_RAW_NONE))
            continue;
        const uint64_t rows = quant_rows(ck, t), known = rows ? rows : 1, a = t->dims[0], b = t->dims[1];
        const uint64_t columns[] = {b, b * 2, b * 4, b * 8, a, a * 4, a * 8};
        for (size_t k = 0; k < sizeof columns / sizeof *columns; k++)
            quant_try(ck, q, t, known, columns[k], NULL, file, arena);
        quant_try(ck, q, t, 0, 0, NULL, file, arena);
    }
    quant_report(q);
}

/* Scales of a key/value cache beside module "a". */
static void quant_try_cache(const struct checkpoint *ck, const json_t *config)
{
    bool fp8;
    struct err e = {""};
    struct part_cache cache = {.module = "a", .k_scale = 1, .v_scale = 1};
    struct part_model m = {.ck = ck, .caches = &cache, .n_caches = 1};
    BASE_ASSERT(part_cache_declared(ck, config, &fp8, &e) == ST_OK || e.text[0]);
    if (part_cache_read_scales(&m, &e) == ST_OK)
        BASE_ASSERT(cache.k_scale > 0 && cache.v_scale > 0 && isfinite(cache.k_scale) && isfinite(cache.v_scale));
    else
        BASE_ASSERT(e.text[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static bool quiet;
    if (!quiet)
        base_log_init("error");
    quiet = true;
    const uint8_t *nul = memchr(data, 0, bytes);
    if (!nul)
        return 0;
    const uint8_t *file = nul + 1;
    struct checkpoint *ck;
    json_t *config = NULL;
    if (base_json_parse("config.json", (const char *)data, (size_t)(nul - data), &config, NULL) != ST_OK)
        return 0;
    if (!fuzz_open(CK_SAFETENSORS, file, bytes - (size_t)(file - data), &ck)) {
        json_decref(config);
        return 0;
    }
    struct arena arena;
    struct quant *q;
    struct err e = {""};
    BASE_ASSERT(base_arena_init(&arena, "fuzz", 0, NULL) == ST_OK);
    quant_try_cache(ck, config);
    if (quant_read(ck, config, &arena, &q, &e) == ST_OK)
        quant_try_all(ck, q, file, &arena);
    else
        BASE_ASSERT(e.text[0]);
    base_arena_release(&arena);
    ck_close(ck);
    json_decref(config);
    return 0;
}
