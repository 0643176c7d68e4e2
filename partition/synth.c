/* From a preset's tables to a list of tensors.
 *
 * Numbers are drawn around 0 with a standard deviation of 1 ÷ √in, so that products keep the scale of what goes in, as trained weights roughly do; norms lie near 1.
 * Sources of the spellings: the publishers' checkpoints as described in docs/formats.md. */
#include "partition/synth.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "partition/synth_priv.h"

#define NORM_STD 0.05f
#define VECTOR_STD 0.02f

struct builder {
    struct synth_plan *p;
    bool failed; /* no memory */
};

/* ---- shapes ------------------------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t axis(const struct preset *s, char letter)
{
    switch (letter) {
    case 'V': return (uint64_t)s->vocab;
    case 'H': return (uint64_t)s->hidden;
    case 'Q': return (uint64_t)s->n_heads * (uint64_t)s->head_dim;
    case 'K': return (uint64_t)s->n_kv_heads * (uint64_t)s->head_dim;
    case 'D': return (uint64_t)s->head_dim;
    case 'A': return (uint64_t)s->n_heads;
    case 'F': return (uint64_t)s->ffn;
    case 'E': return (uint64_t)s->n_experts;
    case 'M': return (uint64_t)s->expert_ffn;
    case 'G': return 2 * (uint64_t)s->expert_ffn;
    case 'S': return (uint64_t)s->n_shared * (uint64_t)s->expert_ffn;
    default: BASE_ASSERT(!"a letter of a preset's shape"); return 0;
    }
}

/* ---- the lists ---------------------------------------------------------------------------------------------------------------------------------------------- */

static bool grow(void *list, size_t *capacity, size_t n, size_t size)
{
    void **p = list;
    if (n < *capacity)
        return true;
    const size_t more = *capacity ? *capacity * 2 : 256;
    void *q = realloc(*p, more * size);
    if (!q)
        return false;
    *p = q;
    *capacity = more;
    return true;
}

static struct synth_item *add_item(struct builder *b, const char *name, enum synth_stored stored, uint64_t rows, uint64_t columns)
{
    static struct synth_item nowhere;
    struct synth_plan *p = b->p;
    if (b->failed || !name || !grow(&p->items, &p->items_capacity, p->n_items, sizeof *p->items)) {
        b->failed = true;
        return &nowhere;
    }
    struct synth_item *item = &p->items[p->n_items++];
    *item = (struct synth_item){.name = name, .stored = stored, .rows = rows, .columns = columns, .first_target = p->n_targets};
    return item;
}

struct dims {
    int n;
    uint64_t of[CK_MAX_DIMS];
};

/* A tensor of the last item. suffix: behind the item's name. */
static void add_target(struct builder *b, const char *suffix, const char *dtype, uint32_t element_bytes, struct dims dims)
{
    struct synth_plan *p = b->p;
    const char *name = b->failed ? NULL : base_arena_printf(&p->arena, "%s%s", p->items[p->n_items - 1].name, suffix);
    if (!name || !grow(&p->targets, &p->targets_capacity, p->n_targets, sizeof *p->targets)) {
        b->failed = true;
        return;
    }
    struct out_tensor *t = &p->targets[p->n_targets++];
    *t = (struct out_tensor){.name = name, .dtype = dtype, .element_bytes = element_bytes, .n_dims = dims.n, .bytes = element_bytes};
    for (int i = 0; i < dims.n; i++) {
        t->dims[i] = dims.of[i];
        t->bytes *= dims.of[i];
    }
    p->items[p->n_items - 1].n_targets++;
}

static struct dims matrix(uint64_t rows, uint64_t columns) { return (struct dims){2, {rows, columns}}; }
static const struct dims number = {0, {0}};

static void add_constant(struct builder *b, const char *module, const char *suffix, float value)
{
    struct synth_item *item = add_item(b, module, SYNTH_CONSTANT, 1, 1);
    item->mean = value;
    item->shown = 1;
    add_target(b, suffix, "F32", 4, number);
}

/* A module's weight [out, in] in the plan's format. */
static void add_linear(struct builder *b, const char *name, uint64_t out, uint64_t in)
{
    const struct synth_plan *p = b->p;
    const enum preset_format format = p->options.format;
    const enum preset_fp8 fp8 = p->shape.fp8;
    static const enum synth_stored fp8_stored[] = {[PRESET_FP8_TENSOR] = SYNTH_FP8, [PRESET_FP8_ROW] = SYNTH_FP8_ROW, [PRESET_FP8_BLOCK] = SYNTH_FP8_BLOCK};
    const enum synth_stored stored = format == PRESET_NVFP4 ? SYNTH_NVFP4 : format == PRESET_FP8 ? fp8_stored[fp8] : SYNTH_BF16;
    struct synth_item *item = add_item(b, name, stored, out, in);
    item->std = 1 / sqrtf((float)in);
    if (stored == SYNTH_BF16) {
        add_target(b, ".weight", "BF16", 2, matrix(out, in));
        return;
    }
    if (stored == SYNTH_NVFP4) {
        add_target(b, ".weight", "U8", 1, matrix(out, in / 2));
        add_target(b, ".weight_scale", "F8_E4M3", 1, matrix(out, in / 16));
        add_target(b, ".weight_scale_2", "F32", 4, number);
    } else {
        add_target(b, ".weight", "F8_E4M3", 1, matrix(out, in));
        if (stored == SYNTH_FP8)
            add_target(b, ".weight_scale", "F32", 4, number);
        else if (stored == SYNTH_FP8_ROW)
            add_target(b, ".weight_scale", "BF16", 2, matrix(out, 1));
        else
            add_target(b, ".weight_scale_inv", "F32", 4, matrix((out + 127) / 128, (in + 127) / 128));
    }
    if (synth_is_modelopt(p)) { /* static scales of activations, and of an FP8 cache beside keys and values */
        add_constant(b, name, ".input_scale", 0.01f);
        const char *last = strrchr(name, '.');
        if (last && strcmp(last, ".k_proj") == 0)
            add_constant(b, name, ".k_scale", 1);
        if (last && strcmp(last, ".v_proj") == 0)
            add_constant(b, name, ".v_scale", 1);
    }
}

/* All experts' matrices [E, out, in] in one. */
static void add_fused(struct builder *b, const char *name, uint64_t experts, uint64_t out, uint64_t in)
{
    const bool blocks = b->p->options.format == PRESET_MXFP4;
    struct synth_item *item = blocks ? add_item(b, name, SYNTH_MXFP4, experts * out, in) : add_item(b, name, SYNTH_BF16, experts * in, out);
    item->std = 1 / sqrtf((float)in);
    if (blocks) {
        add_target(b, "_blocks", "U8", 1, (struct dims){4, {experts, out, in / 32, 16}});
        add_target(b, "_scales", "U8", 1, (struct dims){3, {experts, out, in / 32}});
    } else
        add_target(b, "", "BF16", 2, (struct dims){3, {experts, in, out}});
}

static void add_tensor(struct builder *b, const struct preset_tensor *t, const char *name)
{
    struct dims dims = {0, {0}};
    uint64_t n = 1;
    for (const char *letter = t->shape; *letter; letter++) {
        dims.of[dims.n] = axis(&b->p->shape, *letter);
        n *= dims.of[dims.n++];
    }
    b->p->n_weights += n;
    if (t->kind == PRESET_LINEAR) {
        add_linear(b, name, dims.of[0], dims.of[1]);
        return;
    }
    if (t->kind == PRESET_FUSED) {
        add_fused(b, name, dims.of[0], dims.of[1], dims.of[2]);
        return;
    }
    const bool plain = t->kind == PRESET_PLAIN, f32 = t->kind == PRESET_F32;
    struct synth_item *item = add_item(b, name, f32 ? SYNTH_F32 : SYNTH_BF16, plain ? dims.of[0] : 1, plain ? dims.of[1] : n);
    item->mean = t->kind == PRESET_NORM ? 1 : 0;
    item->std = t->kind == PRESET_NORM ? NORM_STD : plain ? 1 / sqrtf((float)dims.of[1]) : VECTOR_STD;
    item->shown = !plain || t->place == PRESET_BEFORE || t->place == PRESET_AFTER;
    add_target(b, "", f32 ? "F32" : "BF16", f32 ? 4 : 2, dims);
}

/* "mlp.experts.#.w1" → "model.layers.3.mlp.experts.17.w1" */
static const char *full_name(struct builder *b, int layer, const char *name, int expert)
{
    const char *mark = strchr(name, '#');
    struct arena *a = &b->p->arena;
    return mark ? base_arena_printf(a, "model.layers.%d.%.*s%d%s", layer, (int)(mark - name), name, expert, mark + 1) : base_arena_printf(a, "model.layers.%d.%s", layer, name);
}

static void add_layer(struct builder *b, int layer)
{
    const struct preset *s = &b->p->shape;
    const bool dense = !s->n_experts || layer < s->n_dense;
    for (const struct preset_tensor *t = s->family->tensors; t->name; t++) {
        const bool here = t->place == PRESET_LAYER || (dense ? t->place == PRESET_DENSE : t->place == PRESET_SPARSE || t->place == PRESET_EXPERT);
        const int n = !here ? 0 : t->place == PRESET_EXPERT ? s->n_experts : 1;
        for (int i = 0; i < n; i++)
            add_tensor(b, t, full_name(b, layer, t->name, i));
    }
}

static void add_place(struct builder *b, enum preset_place place)
{
    for (const struct preset_tensor *t = b->p->shape.family->tensors; t->name; t++)
        if (t->place == place)
            add_tensor(b, t, t->name);
}

/* ---- the plan ----------------------------------------------------------------------------------------------------------------------------------------------- */

bool synth_is_modelopt(const struct synth_plan *p)
{
    return p->options.format == PRESET_NVFP4 || (p->options.format == PRESET_FP8 && p->shape.fp8 == PRESET_FP8_TENSOR);
}

static enum st apply(const struct synth_options *o, struct preset *s, struct err *e)
{
    *s = *o->preset;
    if (!(s->formats >> o->format & 1))
        return err_set(e, ST_INVALID, "%s is not made in %s; its own format is %s", s->name, preset_format_names[o->format], preset_format_names[s->published]);
    if (o->n_layers > s->n_layers)
        return err_set(e, ST_INVALID, "%s has %d layers, not %d", s->name, s->n_layers, o->n_layers);
    if (o->n_experts && !s->n_experts)
        return err_set(e, ST_INVALID, "%s has no experts", s->name);
    if (o->n_experts > s->n_experts)
        return err_set(e, ST_INVALID, "%s has %d experts, not %d", s->name, s->n_experts, o->n_experts);
    s->n_layers = o->n_layers ? o->n_layers : s->n_layers;
    s->n_experts = o->n_experts ? o->n_experts : s->n_experts;
    s->n_chosen = s->n_chosen > s->n_experts ? s->n_experts : s->n_chosen;
    s->n_dense = s->n_dense > s->n_layers ? s->n_layers : s->n_dense;
    return ST_OK;
}

enum st synth_plan_create(const struct synth_options *options, struct synth_plan **plan, struct err *e)
{
    struct preset shape;
    enum st st = apply(options, &shape, e);
    if (st)
        return st;
    struct synth_plan *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ST_NO_MEMORY, "no memory for a checkpoint's list");
    p->options = *options;
    p->shape = shape;
    st = base_arena_init(&p->arena, "synth", 0, e);
    if (!st) {
        struct builder b = {p, false};
        add_place(&b, PRESET_BEFORE);
        for (int layer = 0; layer < shape.n_layers; layer++)
            add_layer(&b, layer);
        add_place(&b, PRESET_AFTER);
        st = b.failed ? err_set(e, ST_NO_MEMORY, "no memory for the tensors of %s", shape.name) : ST_OK;
    }
    if (!st)
        st = synth_config(p, e);
    if (!st)
        st = part_write_safetensors(p->targets, p->n_targets, options->max_file_bytes, &p->files, &p->n_files, &p->index, e);
    if (st) {
        synth_plan_destroy(p);
        return st;
    }
    for (size_t i = 0; i < p->n_files; i++)
        p->bytes += p->files[i].bytes;
    *plan = p;
    return ST_OK;
}

void synth_plan_destroy(struct synth_plan *p)
{
    if (!p)
        return;
    part_write_release(p->files, p->n_files);
    free(p->index);
    free(p->config);
    free(p->quant_config);
    free(p->items);
    free(p->targets);
    base_arena_release(&p->arena);
    free(p);
}
