/* The plan of a conversion: one item for each tensor that is read, one target for each that is written. */
#include "partition/convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/math.h"
#include "partition/convert_priv.h"

const char *const convert_format_names[CONVERT_FORMATS + 1] = {"nvfp4", "mxfp4", "fp8", "q8_0", NULL};
static const uint32_t groups[CONVERT_FORMATS] = {16, 32, 1, 32};
enum { GGUF_F32 = 0, GGUF_Q8_0 = 8, MAX_TARGETS = 3 };

struct planner {
    const struct checkpoint *ck;
    struct convert_plan *p;
    struct convert_ignore *ignore;
    struct quant *quant; /* of safetensors */
    const char **ignored; /* modules of matrices that stay, for quantization_config */
    size_t n_ignored;
    bool renames; /* from one spelling to the other */
    bool lacks_widths; /* something that stays is written as F32 though a GGUF quantised it */
    struct err *e;
};

static uint64_t up(uint64_t n, uint64_t unit) { return n / unit + (n % unit != 0); }

static enum st no_memory(const struct planner *w) { return err_set(w->e, ST_NO_MEMORY, "%s: no memory for a plan", ck_path(w->ck)); }

/* ---- what may be read ---- */

static const char *module_of(struct arena *arena, const char *name)
{
    const char *end = strrchr(name, '.');
    return end ? base_arena_strndup(arena, name, (size_t)(end - name)) : base_arena_strdup(arena, name);
}

/* Quantised safetensors: what says how is read and judged as for a model that runs. */
static enum st read_quantisation(struct planner *w)
{
    const json_t *config = NULL;
    const enum st st = ck_json(w->ck, "config.json", &config, w->e);
    return st ? st : quant_read(w->ck, config, &w->p->arena, &w->quant, w->e);
}

/* A quantised matrix as a tensor in blocks of the format that kernels would get, called MODULE.weight; *weight reads its rows. */
static enum st put_together(struct planner *w, const struct ck_tensor *codes, const struct ck_tensor **logical, const struct part_weight **weight)
{
    const uint64_t rows = quant_rows(w->ck, codes), columns = quant_columns(w->ck, codes);
    struct ck_tensor *t = base_arena_alloc(&w->p->arena, sizeof *t);
    struct part_weight *x = base_arena_alloc(&w->p->arena, sizeof *x);
    const char *module = module_of(&w->p->arena, codes->name), *name = module ? base_arena_printf(&w->p->arena, "%s.weight", module) : NULL;
    if (!t || !x || !name)
        return no_memory(w);
    if (!rows || !columns)
        return err_set(w->e, ST_UNSUPPORTED, "%s: tensor %s: its shape does not tell how large the matrix is that it belongs to", ck_path(w->ck), codes->name);
    const struct quant_scheme *s;
    const enum st st = quant_scheme_of(w->ck, w->quant, codes, rows, columns, NULL, &w->p->arena, &s, w->e);
    if (st)
        return st;
    if (s->input_scale)
        return err_set(w->e, ST_UNSUPPORTED, "%s: tensor %s: inputs are scaled column by column, for which the new file has no place", ck_path(w->ck), s->input_scale->name);
    const uint64_t row_bytes = up(columns, kern_format(s->format)->block_columns) * kern_format(s->format)->block_bytes;
    *t = (struct ck_tensor){.name = name, .format = s->format, .n_dims = 2, .dims = {rows, columns}, .file = codes->file, .offset = codes->offset, .bytes = rows * row_bytes};
    *x = (struct part_weight){.name = name, .tensor = codes, .scheme = s, .kind = PART_MATRIX, .row_axis = part_axis_whole(rows), .column_axis = part_axis_whole(columns), .leaf_dim = PART_WHOLE, .owner_dim = PART_WHOLE,
                              .rows = {0, rows}, .columns = {0, columns}};
    part_weight_slice(x);
    *logical = t;
    *weight = x;
    w->p->stored_as = w->p->n_dequantised++ ? w->p->stored_as : s->name;
    return ST_OK;
}

/* ---- targets ---- */

static struct out_tensor *add_target(struct planner *w, const char *name, const char *dtype, uint32_t element_bytes, uint32_t gguf_type, int n_dims, const uint64_t *dims, uint64_t bytes)
{
    struct out_tensor *t = &w->p->targets[w->p->n_targets++];
    *t = (struct out_tensor){.name = name, .dtype = dtype, .element_bytes = element_bytes, .gguf_type = gguf_type, .n_dims = n_dims, .bytes = bytes};
    memcpy(t->dims, dims, (size_t)n_dims * sizeof *dims);
    w->p->target_bytes += bytes;
    return t;
}

/* X.weight → X.part */
static const char *part_name(struct planner *w, const char *name, const char *part)
{
    return base_arena_printf(&w->p->arena, "%.*s.%s", (int)(strrchr(name, '.') - name), name, part);
}

static enum st add_encoded(struct planner *w, struct convert_item *item, const char *name)
{
    struct convert_plan *p = w->p;
    const uint64_t rows = item->rows, columns = item->columns;
    item->as = CONVERT_ENCODE;
    p->n_encoded++;
    if (p->format == CONVERT_Q8_0) {
        add_target(w, name, NULL, 1, GGUF_Q8_0, item->source->n_dims, item->source->dims, rows * kern_format_row_bytes(FMT_Q8_0, columns));
        return ST_OK;
    }
    const bool packed = p->format != CONVERT_FP8;
    const char *codes = packed ? part_name(w, name, "weight_packed") : name, *scales = part_name(w, name, "weight_scale"), *global = part_name(w, name, "weight_global_scale");
    if (!codes || !scales || !global)
        return no_memory(w);
    const uint64_t of_codes[] = {rows, packed ? columns / 2 : columns}, of_scales[] = {rows, packed ? columns / groups[p->format] : 1}, one[] = {1};
    add_target(w, codes, packed ? "U8" : "F8_E4M3", 1, 0, 2, of_codes, of_codes[0] * of_codes[1]);
    if (p->format == CONVERT_FP8)
        add_target(w, scales, "F32", 4, 0, 2, of_scales, rows * 4);
    else
        add_target(w, scales, p->format == CONVERT_NVFP4 ? "F8_E4M3" : "U8", 1, 0, 2, of_scales, of_scales[0] * of_scales[1]);
    if (p->format == CONVERT_NVFP4)
        add_target(w, global, "F32", 4, 0, 1, one, 4);
    return ST_OK;
}

/* As it is, but for what the other side cannot hold. */
static enum st add_left(struct planner *w, struct convert_item *item, const char *name)
{
    const struct ck_tensor *t = item->source;
    struct convert_plan *p = w->p;
    const bool plain = !t->unsupported && kern_format(t->format)->block_columns == 1;
    const uint64_t elements = ck_n_elements(t);
    item->as = CONVERT_COPY;
    if (p->gguf && ck_kind_of(w->ck) == CK_GGUF) {
        add_target(w, name, NULL, 1, ck_gguf_type(t), t->n_dims, t->dims, t->bytes);
        return ST_OK;
    }
    if (w->renames && t->unsupported)
        return err_set(w->e, ST_UNSUPPORTED, "%s: tensor %s is stored as %s, which this build cannot read", ck_path(w->ck), t->name, t->unsupported);
    if (item->weight || (w->renames && !plain) || (w->renames && p->gguf && t->n_dims == 1 && t->format != FMT_F32)) { /* llama.cpp wants its vectors in F32 */
        item->as = CONVERT_TO_F32;
        w->lacks_widths = w->lacks_widths || !plain;
        add_target(w, name, "F32", 4, GGUF_F32, t->n_dims, t->dims, elements * 4);
        return ST_OK;
    }
    if (t->unsupported && strchr(t->unsupported, ' '))
        return err_set(w->e, ST_UNSUPPORTED, "%s: tensor %s is %s, which this build cannot write", ck_path(w->ck), t->name, t->unsupported);
    uint32_t width = elements ? (uint32_t)(t->bytes / elements) : 1;
    if (width != 2 && width != 4 && width != 8)
        width = 1;
    const struct format_info *info = t->unsupported ? NULL : kern_format(t->format);
    add_target(w, name, info ? info->safetensors : t->unsupported, width, info ? (uint32_t)info->gguf_type : 0, t->n_dims, t->dims, t->bytes);
    return ST_OK;
}

/* ---- one tensor ---- */

static enum st stays(struct planner *w, const char *name)
{
    const char *module = module_of(&w->p->arena, name);
    if (!module)
        return no_memory(w);
    w->ignored[w->n_ignored++] = module;
    return ST_OK;
}

static enum st plan_tensor(struct planner *w, const struct ck_tensor *t)
{
    struct convert_plan *p = w->p;
    const struct part_weight *weight = NULL;
    enum st st = ST_OK;
    if (w->quant && quant_is_part(w->ck, t))
        return ST_OK; /* with its codes, or of no use without them */
    if (w->quant && quant_is_codes(t) && (st = put_together(w, t, &t, &weight)))
        return st;
    const char *name = t->name;
    struct convert_item item = {.source = t, .weight = weight, .rows = 1, .columns = 1, .first_target = p->n_targets};
    if (w->renames) {
        int heads;
        if (strcmp(t->name, "rope_freqs.weight") == 0 || ck_has_suffix(t->name, ".inv_freq"))
            return ST_OK; /* in config, or made from it */
        if (p->gguf && p->model.tied_head && strcmp(t->name, "lm_head.weight") == 0)
            return ST_OK; /* a copy */
        name = convert_rename(&p->arena, &p->model, t->name, p->gguf, &heads);
        if (!name)
            return err_set(w->e, ST_UNSUPPORTED, "%s: tensor %s has no name in %s", ck_path(w->ck), t->name, p->gguf ? "a GGUF of a Llama" : "safetensors of a Llama");
        item.head_rows = heads ? (uint64_t)p->model.head_dim : 0;
        if (heads && (t->n_dims < 1 || t->dims[0] != (uint64_t)heads * item.head_rows))
            return err_set(w->e, ST_INVALID, "%s: tensor %s has not the rows of %d heads of %d", ck_path(w->ck), t->name, heads, p->model.head_dim);
    }
    if (t->n_dims == 1) {
        item.rows = t->dims[0];
    } else if (t->n_dims > 1) {
        item.columns = t->dims[t->n_dims - 1];
        for (int i = 0; i + 1 < t->n_dims; i++)
            item.rows *= t->dims[i];
    }
    if (w->renames && t->n_dims == 1 && !t->unsupported && kern_format(t->format)->block_columns != 1)
        return err_set(w->e, ST_UNSUPPORTED, "%s: tensor %s is a vector in blocks, which no known model has", ck_path(w->ck), t->name);

    enum convert_kind kind = convert_kind_of(w->ck, t);
    const char *names[] = {module_of(&p->arena, t->name), t->name, w->renames ? module_of(&p->arena, name) : NULL};
    const bool ignored = convert_ignore_matches(w->ignore, names, 3);
    if (kind == CONVERT_LINEAR && (ignored || item.columns % groups[p->format] || !item.rows || !item.columns)) {
        p->n_left++;
        if (!ignored && p->n_odd++ == 0)
            p->odd = t->name;
        st = stays(w, name);
        kind = CONVERT_OTHER;
    }
    if (st)
        return st;
    if (kind == CONVERT_LINEAR && t->unsupported)
        return err_set(w->e, ST_UNSUPPORTED, "%s: tensor %s is stored as %s, which this build cannot dequantise", ck_path(w->ck), t->name, t->unsupported);
    if (kind == CONVERT_LINEAR && !(p->format == CONVERT_Q8_0 && t->format == FMT_Q8_0 && !item.head_rows))
        st = add_encoded(w, &item, name);
    else
        st = add_left(w, &item, name);
    item.n_targets = p->n_targets - item.first_target;
    p->items[p->n_items++] = item;
    p->source_bytes += t->bytes;
    return st;
}

/* Llama 3's scaling, which GGUF keeps as factors of the unscaled wavelengths. */
static enum st add_rope_factors(struct planner *w)
{
    const struct rope_config *r = &w->p->model.rope;
    const uint64_t n = (uint64_t)r->rotary_dim / 2;
    float *factors = base_arena_array(&w->p->arena, n, sizeof *factors);
    if (!factors)
        return no_memory(w);
    for (uint64_t i = 0; i < n; i++)
        factors[i] = (float)(base_math_pow(r->theta, -2.0 * (double)i / r->rotary_dim) / r->frequency[i]);
    w->p->items[w->p->n_items++] = (struct convert_item){.data = factors, .as = CONVERT_COPY, .rows = n, .columns = 1, .first_target = w->p->n_targets, .n_targets = 1};
    add_target(w, "rope_freqs.weight", NULL, 4, GGUF_F32, 1, &n, n * 4);
    return ST_OK;
}

/* ---- all of it ---- */

static int by_place(const void *a, const void *b)
{
    const struct ck_tensor *x = *(const struct ck_tensor *const *)a, *y = *(const struct ck_tensor *const *)b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return strcmp(x->name, y->name);
}

static enum st plan_tensors(struct planner *w)
{
    struct convert_plan *p = w->p;
    const size_t n = ck_n_tensors(w->ck);
    const struct ck_tensor **order = base_arena_array(&p->arena, n ? n : 1, sizeof *order);
    p->items = base_arena_array(&p->arena, n + 1, sizeof *p->items);
    p->targets = base_arena_array(&p->arena, n * MAX_TARGETS + 1, sizeof *p->targets);
    w->ignored = base_arena_array(&p->arena, n + 1, sizeof *w->ignored);
    if (!order || !p->items || !p->targets || !w->ignored)
        return no_memory(w);
    for (size_t i = 0; i < n; i++)
        order[i] = ck_tensor_at(w->ck, i);
    if (n)
        qsort(order, n, sizeof *order, by_place);
    w->ignored[w->n_ignored++] = "lm_head";
    const char *head[] = {"lm_head", "lm_head.weight"}; /* a tied one has no tensor */
    (void)convert_ignore_matches(w->ignore, head, 2);
    for (size_t i = 0; i < n; i++) {
        const enum st st = plan_tensor(w, order[i]);
        if (st)
            return st;
    }
    /* Routers are linear layers to whoever reads the result. */
    for (size_t i = 0; !p->gguf && i < n; i++)
        if (order[i]->n_dims == 2 && ck_kind_of(w->ck) == CK_SAFETENSORS && convert_kind_of(w->ck, order[i]) == CONVERT_OTHER && ck_has_suffix(order[i]->name, ".weight") &&
            !strstr(order[i]->name, "embed")) {
            const enum st st = stays(w, order[i]->name);
            if (st)
                return st;
        }
    return ST_OK;
}

static enum st create(struct planner *w)
{
    struct convert_plan *p = w->p;
    const struct checkpoint *ck = w->ck;
    enum st st = ck_kind_of(ck) == CK_SAFETENSORS ? read_quantisation(w) : ST_OK;
    p->gguf = p->format == CONVERT_Q8_0;
    w->renames = p->gguf != (ck_kind_of(ck) == CK_GGUF);
    if (!st && w->renames)
        st = part_config_read(ck, &p->arena, &p->model, w->e);
    if (!st && w->renames && strcmp(p->model.family, "llama") != 0)
        st = err_set(w->e, ST_UNSUPPORTED, "%s: names of family %s on the other side are not known; known: llama", ck_path(ck), p->model.family);
    if (!st && w->renames && p->model.rope.rotary_dim != p->model.head_dim)
        st = err_set(w->e, ST_UNSUPPORTED, "%s: %d of a head's %d dimensions rotate; such models are not converted", ck_path(ck), p->model.rope.rotary_dim, p->model.head_dim);
    if (!st)
        st = plan_tensors(w);
    if (!st)
        st = convert_ignore_check(w->ignore, ck_path(ck), w->e);
    if (!st && p->n_encoded == 0 && !(p->gguf && !w->renames))
        st = err_set(w->e, ST_INVALID, "%s: no matrix of it would be quantised%s%.200s", ck_path(ck), p->odd ? "; its rows do not divide: " : "", p->odd ? p->odd : "");
    if (!st && p->gguf && w->renames && p->model.rope.kind == ROPE_LLAMA3)
        st = add_rope_factors(w);
    if (st)
        return st;
    if (p->gguf)
        return convert_gguf_keys(ck, p, w->e);
    const struct ck_tensor *embedding = w->renames ? ck_find(ck, "token_embd.weight") : NULL;
    const char *dtype = w->lacks_widths || (embedding && embedding->format == FMT_F32) ? "float32" : embedding && embedding->format == FMT_F16 ? "float16" : "bfloat16";
    return convert_config_text(ck, p, w->ignored, w->n_ignored, dtype, &p->config, w->e);
}

enum st convert_plan_create(const struct checkpoint *ck, const struct convert_options *options, struct convert_plan **plan, struct err *e)
{
    struct convert_plan *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ST_NO_MEMORY, "no memory for a plan");
    p->format = options->format;
    struct planner w = {.ck = ck, .p = p, .e = e};
    enum st st = base_arena_init(&p->arena, "conversion", 0, e);
    if (st) {
        free(p);
        return st;
    }
    st = convert_ignore_create(options->ignore, options->n_ignore, &w.ignore, e);
    if (!st)
        st = create(&w);
    convert_ignore_destroy(w.ignore);
    if (st) {
        convert_plan_destroy(p);
        return st;
    }
    *plan = p;
    return ST_OK;
}

enum st convert_plan_layout(struct convert_plan *p, uint64_t max_file_bytes, struct err *e)
{
    p->n_files = 1;
    return p->gguf ? part_write_gguf(&p->head, p->alignment, p->targets, p->n_targets, &p->files, e)
                   : part_write_safetensors(p->targets, p->n_targets, max_file_bytes, &p->files, &p->n_files, &p->index, e);
}

void convert_plan_destroy(struct convert_plan *p)
{
    if (!p)
        return;
    part_write_release(p->files, p->files ? p->n_files : 0);
    gguf_head_release(&p->head);
    free(p->index);
    free(p->config);
    base_arena_release(&p->arena);
    free(p);
}
