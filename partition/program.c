/* Building, printing and checking programs. Growth by doubling inside the model's arena: a model is built once and freed as a whole, so old arrays are simply left behind. */
#include "partition/program.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WEIGHTS (1 << 20) /* a model of today has fewer than 100,000; a small hostile file can claim any number of experts */

static void *grow(struct part_model *m, void *items, int n, int *capacity, size_t size)
{
    if (n < *capacity)
        return items;
    const int wanted = *capacity ? *capacity * 2 : 16;
    void *more = base_arena_array(&m->arena, (size_t)wanted, size);
    BASE_ASSERT(more != NULL);
    if (n)
        memcpy(more, items, (size_t)n * size);
    *capacity = wanted;
    return more;
}

int part_add_dim(struct part_model *m, const char *name, const struct order_leaves *leaves)
{
    BASE_ASSERT(m->n_dims < PART_MAX_DIMS);
    m->dims[m->n_dims] = (struct part_dim){.name = name, .leaves = *leaves};
    return m->n_dims++;
}

int part_add_value(struct part_model *m, const char *name, enum part_rows rows, struct part_axis axis)
{
    m->values = grow(m, m->values, m->n_values, &m->values_capacity, sizeof *m->values);
    m->values[m->n_values] = (struct part_value){
        .name = name, .rows = rows, .axis = axis, .sum_dim = PART_WHOLE, .follows = PART_NONE, .element_bytes = sizeof(float), .width = axis.size, .n_vectors = 1};
    return m->n_values++;
}

int part_add_partial(struct part_model *m, const char *name, uint64_t width, int sum_dim)
{
    const int v = part_add_value(m, name, PART_TOKENS, part_axis_whole(width));
    m->values[v].partial = true;
    m->values[v].sum_dim = sum_dim;
    return v;
}

int part_add_cache(struct part_model *m, int layer, uint32_t n_kv_heads, uint32_t head_dim)
{
    m->caches = grow(m, m->caches, m->n_caches, &m->caches_capacity, sizeof *m->caches);
    m->caches[m->n_caches] = (struct part_cache){.kind = PART_CACHE_PAGED, .layer = layer, .head_dim = head_dim, .n_kv_heads = n_kv_heads, .k_scale = 1, .v_scale = 1};
    return m->n_caches++;
}

/* Plain numbers and blocks: the tensor's shape is what the view makes of [rows, columns] or [rows]. */
static enum st check_shape(const struct part_model *m, const struct ck_tensor *tensor, const struct quant_view *v, bool matrix, uint64_t rows, uint64_t columns, struct err *e)
{
    uint64_t want[3];
    int n = 0;
    if (v->n_planes)
        want[n++] = v->n_planes;
    if (matrix && v->transposed)
        want[n++] = columns;
    want[n++] = rows * quant_view_step(v);
    if (matrix && !v->transposed)
        want[n++] = columns;
    if (tensor->n_dims == n && memcmp(tensor->dims, want, (size_t)n * sizeof *want) == 0)
        return ST_OK;
    char texts[2][128] = {"", ""};
    for (int k = 0; k < 2; k++) {
        const uint64_t *dims = k ? want : tensor->dims;
        size_t used = 0; /* CK_MAX_DIMS numbers of 20 digits fit */
        for (int d = 0; d < (k ? n : tensor->n_dims); d++)
            used += (size_t)snprintf(texts[k] + used, sizeof texts[k] - used, "%s%" PRIu64, d ? ", " : "", dims[d]);
    }
    return err_set(e, ST_INVALID, "%s: tensor %.200s has shape [%s], the configuration asks for [%s]", ck_path(m->ck), tensor->name, texts[0], texts[1]);
}

static bool same_view(const struct quant_view *a, const struct quant_view *b)
{
    return a->plane == b->plane && a->n_planes == b->n_planes && a->phase == b->phase && quant_view_step(a) == quant_view_step(b) && a->transposed == b->transposed;
}

static const char *name_of(struct part_model *m, const struct ck_tensor *tensor, const struct quant_view *v, bool all_rows, uint64_t first_row, uint64_t n_rows)
{
    char plane[32] = "", rows[64] = "";
    if (v->n_planes)
        snprintf(plane, sizeof plane, "[%" PRIu64 "]", v->plane);
    if (quant_view_step(v) > 1)
        snprintf(rows, sizeof rows, "[%" PRIu64 "::%" PRIu64 "]", v->phase, v->step);
    else if (!all_rows)
        snprintf(rows, sizeof rows, "[%" PRIu64 ":%" PRIu64 "]", first_row, first_row + n_rows);
    return plane[0] || rows[0] ? base_arena_printf(&m->arena, "%s%s%s", tensor->name, plane, rows) : tensor->name;
}

static enum st add_weight(struct part_model *m, enum part_weight_kind kind, const struct ck_tensor *tensor, const struct quant_view *view, uint64_t first_row, uint64_t tensor_rows,
                          struct part_axis rows, struct part_axis columns, int32_t *index, struct err *e)
{
    BASE_ASSERT(first_row + rows.size <= tensor_rows);
    const bool matrix = kind == PART_MATRIX;
    if (tensor->unsupported && !(matrix && tensor->raw != CK_RAW_NONE))
        return err_set(e, ST_UNSUPPORTED, "%s: tensor %.200s: type %s is not supported yet", ck_path(m->ck), tensor->name, tensor->unsupported);
    if (!matrix && kern_format(tensor->format)->quantised)
        return err_set(e, ST_UNSUPPORTED, "%s: tensor %.200s: a vector stored as %s", ck_path(m->ck), tensor->name, kern_format(tensor->format)->name);
    const struct quant_scheme *scheme = NULL;
    for (int i = m->n_weights - 1; i >= 0 && m->n_weights - i <= PART_MAX_PARTS && !scheme; i--) /* the other parts of a fused one are near */
        if (m->weights[i].tensor == tensor && same_view(&m->weights[i].scheme->view, view))
            scheme = m->weights[i].scheme;
    enum st st = scheme ? ST_OK : quant_scheme_of(m->ck, matrix ? m->config.quant : NULL, tensor, tensor_rows, matrix ? columns.size : 1, view, &m->arena, &scheme, e);
    if (!st && scheme->input_scale && !m->scales_input)
        st = err_set(e, ST_UNSUPPORTED, "%s: tensor %.200s: inputs that are scaled column by column are not supported here yet: of attention and feed-forward blocks they are", ck_path(m->ck), scheme->input_scale->name);
    if (!st && scheme->sources[0].role == QUANT_BLOCKS)
        st = check_shape(m, tensor, view, matrix, tensor_rows, columns.size, e);
    if (st)
        return st;

    const char *name = name_of(m, tensor, view, rows.size == tensor_rows, first_row, rows.size);
    BASE_ASSERT(name != NULL);
    if (m->n_weights == MAX_WEIGHTS)
        return err_set(e, ST_UNSUPPORTED, "%s: more than %d matrices and vectors", ck_path(m->ck), MAX_WEIGHTS);
    m->weights = grow(m, m->weights, m->n_weights, &m->weights_capacity, sizeof *m->weights);
    m->weights[m->n_weights] = (struct part_weight){.name = name, .tensor = tensor, .scheme = scheme, .kind = kind, .first_row = first_row, .row_axis = rows, .column_axis = columns,
                                                     .leaf_dim = matrix ? columns.dim : PART_WHOLE, .owner_dim = PART_WHOLE};
    *index = m->n_weights++;
    return ST_OK;
}

enum st part_add_weight(struct part_model *m, enum part_weight_kind kind, const struct ck_tensor *tensor, uint64_t first_row, uint64_t tensor_rows, struct part_axis rows,
                        struct part_axis columns, int32_t *index, struct err *e)
{
    return add_weight(m, kind, tensor, &(struct quant_view){.n_planes = 0}, first_row, tensor_rows, rows, columns, index, e);
}

enum st part_add_view(struct part_model *m, enum part_weight_kind kind, const struct ck_tensor *tensor, const struct quant_view *view, uint64_t first_row, uint64_t view_rows,
                      struct part_axis rows, struct part_axis columns, int32_t *index, struct err *e)
{
    return add_weight(m, kind, tensor, view, first_row, view_rows, rows, columns, index, e);
}

uint64_t part_weight_stored_bytes(const struct part_weight *w)
{
    uint64_t bytes = 0;
    for (uint32_t k = 0; k < w->scheme->n_sources; k++)
        bytes += w->scheme->sources[k].tensor->bytes / (quant_view_planes(&w->scheme->view) * quant_view_step(&w->scheme->view));
    return w->row_axis.size == w->scheme->rows ? bytes : (uint64_t)((double)bytes * (double)w->row_axis.size / (double)w->scheme->rows);
}

struct part_step *part_add_step(struct part_model *m, struct part_program *p, enum part_op op, int layer)
{
    p->steps = grow(m, p->steps, p->n_steps, &p->capacity, sizeof *p->steps);
    struct part_step *s = &p->steps[p->n_steps++];
    memset(s, 0, sizeof *s);
    s->op = op;
    s->layer = (int16_t)layer;
    s->n_parts = 1;
    s->dim = s->cache = PART_NONE;
    for (int i = 0; i < 3; i++)
        s->in[i] = PART_NONE;
    for (int i = 0; i < PART_MAX_PARTS; i++)
        s->out[i] = s->weight[i] = s->bias[i] = PART_NONE;
    return s;
}

/* ---- creating ------------------------------------------------------------------------------------------------------------------------------------- */

static enum st read_expert_map(struct part_model *m, const struct part_model_options *o, struct err *e)
{
    if (m->config.moe.n_experts == 0)
        return err_set(e, ST_INVALID, "--expert-map: %s has no experts", ck_path(m->ck));
    if (o->moe != PART_MOE_EXPERT)
        return err_set(e, ST_INVALID, "--expert-map goes with --moe ep: --moe tp cuts every expert over all ranks");
    struct expert_map *map = base_arena_alloc(&m->arena, sizeof *map);
    if (!map)
        return err_set(e, ST_NO_MEMORY, "no memory for the expert map");
    m->expert_map = map;
    return expert_map_read(o->expert_map, m->config.n_layers, m->config.moe.n_experts, &m->arena, map, e);
}

enum st part_model_create(const struct checkpoint *ck, const struct part_model_options *options, struct part_model **out, struct err *e)
{
    struct part_model *m = calloc(1, sizeof *m);
    if (!m)
        return err_set(e, ST_NO_MEMORY, "no memory for the model's description");
    m->ck = ck;
    m->moe = options ? options->moe : PART_MOE_TENSOR;
    m->n_ranks = 1;
    m->dim_heads = m->dim_ffn = m->dim_vocab = m->dim_expert_ffn = m->dim_experts = m->dim_shared_ffn = PART_WHOLE;
    m->main.name = "main";
    m->head.name = "head";
    enum st st = base_arena_init(&m->arena, "model", 0, e);
    if (st)
        goto free_model;
    st = part_config_read(ck, &m->arena, &m->config, e);
    if (!st && options && options->expert_map)
        st = read_expert_map(m, options, e);
    if (st)
        goto release;
    const struct part_family *family = NULL;
    for (const struct part_family *const *f = part_families(); *f; f++)
        if (strcmp((*f)->name, m->config.family) == 0)
            family = *f;
    if (!family) {
        st = err_set(e, ST_UNSUPPORTED, "%s: no builder for family %s", ck_path(ck), m->config.family);
        goto release;
    }
    st = family->build(m, e);
    if (st)
        goto release;
    quant_report(m->config.quant);
    /* the unsharded model holds everything */
    for (int i = 0; i < m->n_weights; i++) {
        m->weights[i].rows = (struct part_range){0, m->weights[i].row_axis.size};
        m->weights[i].columns = (struct part_range){0, m->weights[i].column_axis.size};
    }
    st = part_model_check(m, e);
    if (st)
        goto release;
    *out = m;
    return ST_OK;
release:
    base_arena_release(&m->arena);
free_model:
    free(m);
    return st;
}

void part_model_destroy(struct part_model *m)
{
    if (!m)
        return;
    base_arena_release(&m->arena);
    free(m);
}

/* ---- printing ------------------------------------------------------------------------------------------------------------------------------------- */

const char *part_op_name(enum part_op op)
{
    static const char *const names[] = {
        [PART_EMBED] = "embed",   [PART_ROPE_TABLE] = "rope-table", [PART_NORM] = "norm",         [PART_LINEAR] = "linear", [PART_ROPE] = "rope",     [PART_ATTENTION] = "attention",
        [PART_GATE] = "gate",     [PART_EXCHANGE] = "exchange",     [PART_SUM] = "sum",           [PART_SELECT] = "select", [PART_PICK] = "pick",     [PART_SAMPLE] = "sample",
        [PART_SCORE] = "score",   [PART_ROUTE] = "route",           [PART_EXPERTS_IN] = "experts-in", [PART_EXPERTS_OUT] = "experts-out", [PART_EXPERTS_BIAS] = "experts-bias",
        [PART_SQUARES] = "squares", [PART_ROW_GATE] = "row-gate", [PART_COLUMN_SCALE] = "column-scale",
    };
    return (unsigned)op < sizeof names / sizeof *names ? names[op] : "unknown step";
}

static void print_value(const struct part_model *m, int v, FILE *out)
{
    const struct part_value *value = &m->values[v];
    fprintf(out, "%s[%s,%" PRIu64 "]", value->name, value->rows == PART_TOKENS ? "T" : value->rows == PART_SLOTS ? "S" : "R", value->width);
    if (value->partial)
        fprintf(out, "x%u", value->n_vectors);
}

void part_program_print(const struct part_model *m, const struct part_program *p, FILE *out)
{
    for (int i = 0; i < p->n_steps; i++) {
        const struct part_step *s = &p->steps[i];
        fprintf(out, "%5d ", i);
        if (s->layer >= 0)
            fprintf(out, "layer %-3d ", s->layer);
        else
            fprintf(out, "          ");
        fprintf(out, "%-10s", part_op_name(s->op));
        for (int k = 0; k < PART_MAX_PARTS; k++)
            if (s->out[k] != PART_NONE) {
                fprintf(out, "%s", k ? ", " : " ");
                print_value(m, s->out[k], out);
            }
        fprintf(out, " <-");
        for (int k = 0; k < 3; k++)
            if (s->in[k] != PART_NONE) {
                fprintf(out, " ");
                print_value(m, s->in[k], out);
            }
        for (int k = 0; k < PART_MAX_PARTS; k++)
            if (s->weight[k] != PART_NONE) {
                const struct part_weight *w = &m->weights[s->weight[k]];
                fprintf(out, " %s", w->name);
                if (s->op == PART_EXPERTS_IN || s->op == PART_EXPERTS_OUT)
                    fprintf(out, " experts %u-%u of %u", s->expert_first, s->expert_end, s->n_experts);
                if (w->kind == PART_MATRIX)
                    fprintf(out, "[%" PRIu64 "-%" PRIu64 ",%" PRIu64 "-%" PRIu64 "]", w->rows.begin, w->rows.end, w->columns.begin, w->columns.end);
            }
        if (s->dim != PART_NONE)
            fprintf(out, " over %s", m->dims[s->dim].name);
        fputc('\n', out);
    }
}

/* ---- checking ------------------------------------------------------------------------------------------------------------------------------------- */

struct check {
    const struct part_model *m;
    const struct part_program *p;
    int i_step;
    uint64_t written; /* bit per value */
    struct err *e;
};

#define CHECK(c, cond, ...)                                                                                                                                                                  \
    do {                                                                                                                                                                                     \
        if (!(cond)) {                                                                                                                                                                       \
            err_set((c)->e, ST_INVALID, __VA_ARGS__);                                                                                                                                        \
            return err_prefix((c)->e, ST_INVALID, "program %s, step %d (%s)", (c)->p->name, (c)->i_step, part_op_name((c)->p->steps[(c)->i_step].op));                                       \
        }                                                                                                                                                                                    \
    } while (0)

/* What a step takes; PART_LINEAR has as many outputs and weights as parts. */
struct needs {
    int n_in, n_out, n_weights, n_biases; /* biases: at most so many */
    bool dim, cache;
    int n_more_in; /* inputs that it can do without */
};

static struct needs needs_of(const struct part_step *s)
{
    static const struct needs table[] = {
        [PART_EMBED] = {0, 1, 1, 0, true, false, 0},        [PART_ROPE_TABLE] = {0, 1, 0, 0, false, false, 0},  [PART_NORM] = {1, 1, 1, 0, false, false, 1},
        [PART_LINEAR] = {1, 0, 0, 0, false, false, 0},      [PART_ROPE] = {2, 1, 0, 0, false, false, 0},        [PART_ATTENTION] = {3, 1, 0, 1, false, true, 0},
        [PART_GATE] = {2, 1, 0, 0, false, false, 0},        [PART_ROUTE] = {1, 1, 0, 1, false, false, 0},       [PART_EXPERTS_IN] = {2, 0, 0, 0, false, false, 0},
        [PART_EXPERTS_OUT] = {2, 1, 1, 1, false, false, 0}, [PART_EXPERTS_BIAS] = {1, 1, 0, 1, false, false, 0}, [PART_EXCHANGE] = {1, 0, 0, 0, true, false, 1},
        [PART_SUM] = {2, 1, 0, 1, true, false, 1},          [PART_SELECT] = {1, 1, 0, 0, true, false, 0},       [PART_PICK] = {1, 1, 0, 0, false, false, 0},
        [PART_SAMPLE] = {1, 1, 0, 0, false, false, 0},      [PART_SCORE] = {1, 1, 0, 0, false, false, 0},       [PART_SQUARES] = {2, 1, 0, 0, false, false, 0},
        [PART_ROW_GATE] = {2, 1, 0, 0, false, false, 0},    [PART_COLUMN_SCALE] = {1, 1, 1, 0, false, false, 0},
    };
    struct needs n = table[s->op];
    if (s->op == PART_LINEAR || s->op == PART_EXPERTS_IN)
        n.n_out = n.n_weights = n.n_biases = s->n_parts;
    return n;
}

static bool is_of_experts(const struct part_step *s) { return s->op == PART_EXPERTS_IN || s->op == PART_EXPERTS_OUT || s->op == PART_EXPERTS_BIAS; }

static enum st check_operands(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    CHECK(c, (unsigned)s->op <= PART_SCORE, "is of no known kind (%d)", (int)s->op);
    CHECK(c, (s->op != PART_LINEAR && s->op != PART_EXPERTS_IN) || (s->n_parts >= 1 && s->n_parts <= (s->op == PART_LINEAR ? PART_MAX_PARTS : PART_MAX_EXPERT_PARTS)), "has %d parts", s->n_parts);
    const struct needs n = needs_of(s);
    for (int k = 0; k < 3; k++) {
        CHECK(c, (s->in[k] != PART_NONE) == (k < n.n_in) || (k >= n.n_in && k < n.n_in + n.n_more_in), "takes %d inputs; number %d is %s", n.n_in, k, k < n.n_in ? "missing" : "one too many");
        if (s->in[k] == PART_NONE)
            continue;
        CHECK(c, s->in[k] >= 0 && s->in[k] < m->n_values, "reads value %d of %d", s->in[k], m->n_values);
        const struct part_value *v = &m->values[s->in[k]];
        CHECK(c, c->written >> s->in[k] & 1, "reads %s before it is written", v->name);
        CHECK(c, !v->partial || s->op == PART_EXCHANGE || s->op == PART_SELECT || (s->op == PART_SUM && k == 1), "reads %s before its parts are summed", v->name);
    }
    for (int k = 0; k < PART_MAX_PARTS; k++) {
        CHECK(c, (s->out[k] != PART_NONE) == (k < n.n_out), "has %d outputs; number %d is %s", n.n_out, k, k < n.n_out ? "missing" : "one too many");
        CHECK(c, s->out[k] >= PART_NONE && s->out[k] < m->n_values, "writes value %d of %d", s->out[k], m->n_values);
        CHECK(c, k >= n.n_out || !m->values[s->out[k]].partial || s->op == PART_LINEAR || s->op == PART_EXPERTS_OUT || (s->op == PART_EMBED && m->n_ranks > 1), "writes %s, which is partial", m->values[s->out[k]].name);
        CHECK(c, (s->weight[k] != PART_NONE) == (k < n.n_weights), "has %d weights; number %d is %s", n.n_weights, k, k < n.n_weights ? "missing" : "one too many");
        CHECK(c, s->weight[k] >= PART_NONE && s->weight[k] < m->n_weights && s->bias[k] >= PART_NONE && s->bias[k] < m->n_weights, "names a weight that does not exist");
        CHECK(c, s->bias[k] == PART_NONE || k < n.n_biases, "has no use for a bias (%s)", m->weights[s->bias[k]].name);
        CHECK(c, s->bias[k] == PART_NONE || m->weights[s->bias[k]].kind == PART_VECTOR, "%s: a bias is a vector", m->weights[s->bias[k]].name);
        CHECK(c, k >= n.n_weights || (m->weights[s->weight[k]].kind == PART_VECTOR) == (s->op == PART_NORM || s->op == PART_COLUMN_SCALE), "%s: a matrix where a vector belongs, or the reverse",
              m->weights[s->weight[k]].name);
    }
    for (int k = 0; k < PART_MAX_PARTS && is_of_experts(s); k++)
        CHECK(c, (s->weight[k] == PART_NONE || s->weight[k] + (int64_t)s->n_experts <= m->n_weights) && (s->bias[k] == PART_NONE || s->bias[k] + (int64_t)s->n_experts <= m->n_weights),
              "names experts that do not exist");
    CHECK(c, s->dim >= PART_NONE && s->dim < m->n_dims && (s->dim != PART_NONE || !n.dim), "names a dimension that does not exist (%d)", s->dim);
    CHECK(c, s->cache >= PART_NONE && s->cache < m->n_caches && (s->cache != PART_NONE) == n.cache, "names a cache that does not exist (%d)", s->cache);
    return ST_OK;
}

static uint64_t width_of(const struct part_model *m, int v) { return m->values[v].width; }
static uint64_t rows_of(const struct part_model *m, int w) { return m->weights[w].rows.end - m->weights[w].rows.begin; }
static uint64_t columns_of(const struct part_model *m, int w) { return m->weights[w].columns.end - m->weights[w].columns.begin; }

/* A norm of heads: its value is cut by heads, its weight is one head's. A rank without heads has none of them either. */
static bool is_of_heads(const struct part_model *m, const struct part_step *s) { return m->values[s->in[0]].axis.dim != PART_WHOLE && s->in[1] == PART_NONE; }

/* Tokens stay tokens; only a pick makes logit rows of them. */
static enum st check_rows(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    const enum part_rows in = needs_of(s).n_in && s->op != PART_PICK ? m->values[s->in[0]].rows : PART_TOKENS;
    const enum part_rows want = s->op == PART_PICK ? PART_LOGIT_ROWS : in;
    CHECK(c, s->op != PART_PICK || m->values[s->in[0]].rows == PART_TOKENS, "picks from %s, which has no tokens", m->values[s->in[0]].name);
    if (s->op == PART_EXPERTS_IN || s->op == PART_EXPERTS_OUT) { /* from tokens to slots, and back */
        const enum part_rows from = s->op == PART_EXPERTS_IN ? PART_TOKENS : PART_SLOTS, to = s->op == PART_EXPERTS_IN ? PART_SLOTS : PART_TOKENS;
        CHECK(c, m->values[s->in[0]].rows == from && m->values[s->in[1]].rows == PART_TOKENS, "%s has rows of another kind", m->values[s->in[0]].name);
        for (int k = 0; k < PART_MAX_PARTS; k++)
            CHECK(c, s->out[k] == PART_NONE || m->values[s->out[k]].rows == to, "%s has rows of another kind", m->values[s->out[k]].name);
        return ST_OK;
    }
    for (int k = 0; k < PART_MAX_PARTS; k++)
        CHECK(c, s->out[k] == PART_NONE || m->values[s->out[k]].rows == want, "%s has rows of another kind", m->values[s->out[k]].name);
    for (int k = 1; k < 3; k++)
        CHECK(c, s->in[k] == PART_NONE || m->values[s->in[k]].rows == in, "%s has rows of another kind", m->values[s->in[k]].name);
    return ST_OK;
}

static enum st check_linear(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    for (int k = 0; k < s->n_parts; k++) {
        const struct part_weight *w = &m->weights[s->weight[k]];
        const struct part_value *out = &m->values[s->out[k]];
        CHECK(c, columns_of(m, s->weight[k]) == width_of(m, s->in[0]), "%s does not fit its input", w->name);
        CHECK(c, out->width == rows_of(m, s->weight[k]), "%s does not fit its output", w->name);
        CHECK(c, out->partial == (w->column_axis.dim != PART_WHOLE) && (!out->partial || out->sum_dim == w->column_axis.dim),
              "%s: a product over a cut dimension is partial over it, another is not", w->name);
        if (s->bias[k] != PART_NONE)
            CHECK(c, rows_of(m, s->bias[k]) == rows_of(m, s->weight[k]) && m->weights[s->bias[k]].rows.begin == w->rows.begin && !out->partial, "%s: its bias does not fit", w->name);
    }
    return ST_OK;
}

/* Of every expert of a step: what its own matrices say. A rank holds an expert's share of them, or (expert mode) the whole or nothing. */
static enum st check_experts(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    CHECK(c, s->n_experts == (uint32_t)m->n_stacked && s->expert_first <= s->expert_end && s->expert_end <= s->n_experts, "has %u experts, of them %u to %u", s->n_experts,
          s->expert_first, s->expert_end);
    CHECK(c, m->values[s->in[1]].element_bytes == PART_ROUTE_BYTES, "%s holds no routes", m->values[s->in[1]].name);
    const struct part_value *out = &m->values[s->out[0]];
    if (s->op == PART_EXPERTS_OUT)
        CHECK(c, out->partial && out->sum_dim == (m->dim_experts >= 0 ? m->dim_experts : m->dim_expert_ffn), "%s is not partial over %s", out->name, m->dim_experts >= 0 ? "experts" : "their columns");
    for (int k = 0; k < (s->op == PART_EXPERTS_IN ? s->n_parts : 1); k++)
        for (uint32_t e = s->expert_first; e < s->expert_end; e++) {
            const int32_t w = s->weight[k] + (int32_t)e;
            const struct part_weight *weight = &m->weights[w];
            CHECK(c, weight->kind == PART_MATRIX && columns_of(m, w) == width_of(m, s->in[0]), "%s does not fit its input", weight->name);
            CHECK(c, rows_of(m, w) == width_of(m, s->out[k]), "%s does not fit its output", weight->name);
            CHECK(c, s->op == PART_EXPERTS_IN ? weight->leaf_dim == PART_WHOLE : weight->leaf_dim == m->dim_expert_ffn && weight->leaves_apart == (m->dim_experts < 0),
                  "%s: its sums have other leaves", weight->name);
            if (s->bias[k] != PART_NONE)
                CHECK(c, m->weights[s->bias[k] + (int32_t)e].kind == PART_VECTOR && rows_of(m, s->bias[k] + (int32_t)e) == rows_of(m, w) && !weight->leaves_apart, "%s: its bias does not fit", weight->name);
        }
    return ST_OK;
}

static enum st check_route(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    const struct part_value *out = &m->values[s->out[0]];
    CHECK(c, width_of(m, s->in[0]) == (uint64_t)m->config.moe.n_experts && s->n_experts == (uint32_t)m->config.moe.n_experts, "chooses from %" PRIu64 " experts", width_of(m, s->in[0]));
    CHECK(c, out->element_bytes == PART_ROUTE_BYTES && out->width == (uint64_t)m->config.moe.top_k, "%s does not hold routes", out->name);
    CHECK(c, s->bias[0] == PART_NONE || rows_of(m, s->bias[0]) == width_of(m, s->in[0]), "%s does not fit the router", m->weights[s->bias[0]].name);
    return ST_OK;
}

static enum st check_experts_bias(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    CHECK(c, m->values[s->in[0]].element_bytes == PART_ROUTE_BYTES && s->n_experts == (uint32_t)m->config.moe.n_experts && s->bias[0] != PART_NONE, "has no routes or no biases");
    for (uint32_t e = 0; e < s->n_experts; e++)
        CHECK(c, m->weights[s->bias[0] + (int32_t)e].kind == PART_VECTOR && rows_of(m, s->bias[0] + (int32_t)e) == width_of(m, s->out[0]), "%s does not fit", m->weights[s->bias[0]].name);
    return ST_OK;
}

static enum st check_attention(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    const struct part_cache *cache = &m->caches[s->cache];
    CHECK(c, width_of(m, s->in[0]) == width_of(m, s->out[0]) && width_of(m, s->in[0]) == (uint64_t)s->n_heads * cache->head_dim, "query width differs");
    CHECK(c, width_of(m, s->in[1]) == (uint64_t)cache->n_kv_heads * cache->head_dim && width_of(m, s->in[2]) == width_of(m, s->in[1]), "key or value width differs");
    CHECK(c, s->bias[0] == PART_NONE || rows_of(m, s->bias[0]) == s->n_heads, "%s: as many sinks as heads", m->weights[s->bias[0]].name);
    if (s->n_heads == 0)
        return ST_OK;
    CHECK(c, s->head_group, "has no heads to a group");
    CHECK(c, ((uint64_t)s->q_first + s->n_heads - 1) / s->head_group < (uint64_t)s->kv_first + cache->n_kv_heads && s->q_first / s->head_group >= s->kv_first,
          "a query head's KV head is not here");
    return ST_OK;
}

static enum st check_exchange(struct check *c, const struct part_step *s)
{
    const struct part_value *v = &c->m->values[s->in[0]];
    CHECK(c, c->m->n_ranks > 1, "one rank has nobody to exchange with");
    CHECK(c, s->exchange <= PART_EXCHANGE_SQUARES && s->group == 0, "is of no known kind");
    CHECK(c, s->in[1] == PART_NONE || (s->exchange == PART_EXCHANGE_TREE && c->m->values[s->in[1]].partial && c->m->values[s->in[1]].follows == s->in[0]), "%s does not lie behind %s",
          c->m->values[s->in[s->in[1] != PART_NONE]].name, v->name);
    if (s->exchange == PART_EXCHANGE_TREE)
        CHECK(c, v->partial && v->sum_dim == s->dim, "%s is not partial over %s", v->name, c->m->dims[s->dim].name);
    else if (s->exchange == PART_EXCHANGE_SELECT)
        CHECK(c, v->partial && v->sum_dim == PART_WHOLE, "%s is not selected from", v->name);
    else if (s->exchange == PART_EXCHANGE_SQUARES)
        CHECK(c, !v->partial && v->rows == PART_TOKENS, "%s is no value of tokens", v->name);
    else
        CHECK(c, !v->partial && v->rows == PART_LOGIT_ROWS, "%s is not made of logit rows", v->name);
    return ST_OK;
}

static enum st check_shapes(struct check *c, const struct part_step *s)
{
    const struct part_model *m = c->m;
    switch (s->op) {
    case PART_EMBED:
        CHECK(c, width_of(m, s->out[0]) == columns_of(m, s->weight[0]), "width differs from the table's");
        CHECK(c, !m->weights[s->weight[0]].scheme->group_of, "%s: an embedding whose columns are out of the order of groups", m->weights[s->weight[0]].name);
        CHECK(c, m->weights[s->weight[0]].row_axis.dim == s->dim, "%s is not cut by the dimension that is selected from", m->weights[s->weight[0]].name);
        break;
    case PART_ROPE_TABLE:
        CHECK(c, width_of(m, s->out[0]) == (uint64_t)m->config.rope.rotary_dim, "width differs from the rotating dimensions");
        break;
    case PART_NORM:
        CHECK(c, width_of(m, s->out[0]) == width_of(m, s->in[0]) && rows_of(m, s->weight[0]) * (is_of_heads(m, s) ? s->n_heads : 1) == width_of(m, s->in[0]), "widths differ");
        CHECK(c, s->in[1] == PART_NONE || m->values[s->in[1]].axis.size == 2 * (uint64_t)m->config.n_heads, "%s does not hold squares of heads", m->values[s->in[s->in[1] != PART_NONE]].name);
        break;
    case PART_LINEAR:
        return check_linear(c, s);
    case PART_ROPE:
        CHECK(c, s->out[0] == s->in[0], "rotates in place");
        CHECK(c, width_of(m, s->in[0]) == (uint64_t)s->n_heads * (uint64_t)m->config.head_dim && width_of(m, s->in[1]) == (uint64_t)m->config.rope.rotary_dim, "widths differ");
        break;
    case PART_ATTENTION:
        return check_attention(c, s);
    case PART_GATE:
        CHECK(c, width_of(m, s->in[0]) == width_of(m, s->in[1]) && width_of(m, s->out[0]) == width_of(m, s->in[0]), "widths differ");
        break;
    case PART_SQUARES:
        CHECK(c, m->values[s->out[0]].axis.size == 2 * (uint64_t)m->config.n_heads && width_of(m, s->in[0]) == width_of(m, s->out[0]) / 2 * (uint64_t)m->config.head_dim && width_of(m, s->in[1]) % (uint64_t)m->config.head_dim == 0 &&
                     m->values[s->in[1]].axis.size == (uint64_t)m->config.n_kv_heads * (uint64_t)m->config.head_dim,
              "%s does not fit", m->values[s->out[0]].name);
        break;
    case PART_ROW_GATE:
        CHECK(c, s->out[0] == s->in[0] && width_of(m, s->in[1]) == 1, "%s is no gate of one number a token", m->values[s->in[1]].name);
        break;
    case PART_COLUMN_SCALE:
        CHECK(c, s->out[0] == s->in[0] && rows_of(m, s->weight[0]) == width_of(m, s->in[0]), "%s does not fit %s", m->weights[s->weight[0]].name, m->values[s->in[0]].name);
        break;
    case PART_ROUTE:
        return check_route(c, s);
    case PART_EXPERTS_IN:
    case PART_EXPERTS_OUT:
        return check_experts(c, s);
    case PART_EXPERTS_BIAS:
        return check_experts_bias(c, s);
    case PART_SUM:
        CHECK(c, s->in[2] == PART_NONE || (width_of(m, s->in[2]) == width_of(m, s->out[0]) && s->bias[0] == PART_NONE), "a bias for each token does not fit");
        CHECK(c, width_of(m, s->in[0]) == width_of(m, s->out[0]) && width_of(m, s->in[1]) == width_of(m, s->out[0]) && m->values[s->in[1]].partial && s->dim == m->values[s->in[1]].sum_dim,
              "operands do not fit");
        CHECK(c, s->bias[0] == PART_NONE || rows_of(m, s->bias[0]) == width_of(m, s->out[0]), "%s does not fit the sum", m->weights[s->bias[0]].name);
        break;
    case PART_EXCHANGE:
        return check_exchange(c, s);
    case PART_SELECT:
        CHECK(c, m->values[s->in[0]].partial && width_of(m, s->in[0]) == width_of(m, s->out[0]), "operands do not fit");
        break;
    case PART_PICK:
        CHECK(c, width_of(m, s->in[0]) == width_of(m, s->out[0]), "widths differ");
        break;
    case PART_SAMPLE:
        CHECK(c, m->values[s->out[0]].element_bytes == PART_SAMPLE_BYTES && width_of(m, s->out[0]) == 1, "%s does not hold candidates", m->values[s->out[0]].name);
        break;
    case PART_SCORE:
        break;
    }
    return ST_OK;
}

static enum st check_program(struct check *c)
{
    for (c->i_step = 0; c->i_step < c->p->n_steps; c->i_step++) {
        const struct part_step *s = &c->p->steps[c->i_step];
        enum st st = check_operands(c, s);
        if (!st)
            st = check_rows(c, s);
        if (!st)
            st = check_shapes(c, s);
        if (st)
            return st;
        for (int k = 0; k < PART_MAX_PARTS; k++)
            if (s->out[k] != PART_NONE)
                c->written |= 1ull << s->out[k];
    }
    return ST_OK;
}

enum st part_model_check(const struct part_model *m, struct err *e)
{
    BASE_ASSERT(m->n_values <= PART_MAX_VALUES && m->value_hidden >= 0 && m->value_hidden < m->n_values);
    struct check c = {.m = m, .p = &m->main, .e = e};
    enum st st = check_program(&c);
    if (st)
        return st;
    struct check head = {.m = m, .p = &m->head, .written = 1ull << m->value_hidden & c.written, .e = e};
    return check_program(&head);
}
