/* The feed-forward block of a layer with experts, in either mode.
 *
 * x += Σ over a token's experts of weight · down_e(gate(gate_e(h), up_e(h))). Tensor mode cuts every expert along its intermediate size: leaves as of any row-parallel product, each
 * the weighted sum of the experts' leaves; what their biases come to is added once, after the tree. Expert mode deals out whole experts: a leaf is a group of them, and a bias is added
 * with its expert. In tensor mode a shared expert of the others' size stands behind them, with weight 1; else (expert mode, another size, a gate) it is cut like a dense layer, and its
 * vectors travel with those of the experts, in the same exchange. */
#include <stdio.h>
#include <string.h>

#include "partition/models/decoder.h"

enum part_of_expert { GATE, UP, DOWN };

static bool is_expert_mode(const struct part_model *m) { return m->dim_experts >= 0; }

/* ---- where the tensors are ----------------------------------------------------------------------------------------------------------------------------- */

/* Of expert e's matrix or bias: the tensor, and which part of it. */
struct place {
    const struct ck_tensor *tensor;
    struct quant_view view;
    uint64_t first_row, view_rows;
    char full[160]; /* what was looked for last */
};

static const char *spelled(const struct expert_names *n, enum part_of_expert part) { return part == GATE ? n->gate : part == UP ? n->up : n->down; }

static const struct ck_tensor *look(const struct part_model *m, const char *module, bool bias, struct place *p)
{
    snprintf(p->full, sizeof p->full, bias ? "%s.bias" : "%s.weight", module);
    if (!bias)
        return quant_codes(m->ck, module);
    const struct ck_tensor *t = ck_find(m->ck, p->full);
    if (t)
        return t;
    char beside[160]; /* of a tensor without a module: gate_up_proj_bias */
    snprintf(beside, sizeof beside, "%.150s_bias", module);
    return ck_find(m->ck, beside);
}

/* n_rows: of the matrix. false: there is none; p->full names the spelling that is usual. */
static bool find_expert(const struct part_model *m, int layer, const struct expert_names *n, int expert, enum part_of_expert part, bool bias, uint64_t n_rows, struct place *p)
{
    static const char *const gguf[] = {"gate", "up", "down"};
    const uint64_t n_experts = (uint64_t)m->config.moe.n_experts;
    const bool is_shared = expert == m->config.moe.n_experts;
    char module[128];
    memset(p, 0, sizeof *p);
    p->view_rows = n_rows;
    if (ck_kind_of(m->ck) == CK_GGUF) {
        snprintf(module, sizeof module, "blk.%d.ffn_%s_exps", layer, gguf[part]); /* of the families here, none with a shared expert comes as GGUF */
        p->view = (struct quant_view){.plane = (uint64_t)expert, .n_planes = n_experts};
        return (p->tensor = look(m, module, bias, p)) != NULL;
    }
    if (is_shared) {
        snprintf(module, sizeof module, "model.layers.%d.%s.%s", layer, n->shared, spelled(n, part));
        return (p->tensor = look(m, module, bias, p)) != NULL;
    }
    if (part != DOWN) {
        snprintf(module, sizeof module, "model.layers.%d.%s.gate_up_proj", layer, n->experts);
        if ((p->tensor = look(m, module, bias, p))) {
            p->view = (struct quant_view){.plane = (uint64_t)expert, .n_planes = n_experts, .phase = n->interleaved && part == UP, .step = n->interleaved ? 2 : 1};
            p->first_row = !n->interleaved && part == UP ? n_rows : 0;
            p->view_rows = n->interleaved ? n_rows : 2 * n_rows;
        }
    }
    if (!p->tensor) {
        snprintf(module, sizeof module, "model.layers.%d.%s.%s", layer, n->experts, spelled(n, part));
        if ((p->tensor = look(m, module, bias, p)))
            p->view = (struct quant_view){.plane = (uint64_t)expert, .n_planes = n_experts};
    }
    if (p->tensor) {
        p->view.transposed = n->input_first && p->tensor->raw == CK_RAW_NONE && !kern_format(p->tensor->format)->quantised;
        return true;
    }
    snprintf(module, sizeof module, "model.layers.%d.%s.%d.%s", layer, n->experts, expert, spelled(n, part));
    return (p->tensor = look(m, module, bias, p)) != NULL;
}

/* Where the experts are there and the router is not, the router is what is missing. */
bool decoder_has_experts(const struct part_model *m, int layer, const struct decoder *d)
{
    struct place p;
    return d->experts && m->config.moe.n_experts &&
           (decoder_has(m, layer, d->experts->router, "weight") || find_expert(m, layer, d->experts, 0, DOWN, false, (uint64_t)m->config.hidden, &p));
}

/* ---- weights ---------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st add_one(struct part_model *m, int layer, const struct expert_names *n, int expert, enum part_of_expert part, bool bias, int32_t *index, struct err *e)
{
    const struct moe_config *moe = &m->config.moe;
    const struct part_axis hidden = part_axis_whole((uint64_t)m->config.hidden);
    const bool is_shared = expert == moe->n_experts, owned = is_expert_mode(m) && !is_shared;
    const int dim = is_shared ? m->dim_shared_ffn : m->dim_expert_ffn;
    const uint64_t size = (uint64_t)(is_shared ? moe->shared_ffn : moe->ffn);
    const struct part_axis ffn = owned ? part_axis_whole(size) : part_axis_cut(dim, 1, 1, size);
    const struct part_axis rows = part == DOWN ? hidden : ffn, columns = bias ? part_axis_whole(1) : part == DOWN ? ffn : hidden;
    struct place p;
    if (!find_expert(m, layer, n, expert, part, bias, rows.size, &p))
        return err_set(e, ST_NOT_FOUND, "%s: tensor %s is missing", ck_path(m->ck), p.full);
    const enum st st = part_add_view(m, bias ? PART_VECTOR : PART_MATRIX, p.tensor, &p.view, p.first_row, p.view_rows, rows, columns, index, e);
    if (st)
        return st;
    struct part_weight *w = &m->weights[*index];
    if (w->scheme->group_of) /* each expert would need its tokens' numbers in an order of its own */
        return err_set(e, ST_UNSUPPORTED, "%s: %s: act-order of experts is not supported yet", ck_path(m->ck), w->name);
    if (owned)
        w->owner_dim = m->dim_experts; /* which unit of it: see add_all */
    if (part == DOWN && !bias) {
        w->leaf_dim = dim;
        w->leaves_apart = !is_expert_mode(m) && expert < m->n_stacked;
    }
    return ST_OK;
}

/* Of experts that are tensors of their own: none behind the last that the configuration counts. */
static enum st check_count(const struct part_model *m, int layer, const struct expert_names *n, struct err *e)
{
    char module[128];
    snprintf(module, sizeof module, "model.layers.%d.%s.%d.%s", layer, n->experts, m->config.moe.n_experts, n->down);
    const struct ck_tensor *t = ck_kind_of(m->ck) == CK_SAFETENSORS ? quant_codes(m->ck, module) : NULL;
    return t ? err_set(e, ST_INVALID, "%s: tensor %s is there, but the configuration has %d experts", ck_path(m->ck), t->name, m->config.moe.n_experts) : ST_OK;
}

/* All experts' matrices or biases of one part, one after another; *first is the first one's. */
static enum st add_all(struct part_model *m, int layer, const struct expert_names *n, enum part_of_expert part, bool bias, int32_t *first, struct err *e)
{
    const uint16_t *at = m->expert_map ? m->expert_map->at[layer] : NULL;
    if (m->expert_map && !at)
        return err_set(e, ST_INVALID, "the expert map has no experts in layer %d, where the model has %d", layer, m->config.moe.n_experts);
    for (int i = 0; i < m->n_stacked; i++) {
        int32_t index;
        const enum st st = add_one(m, layer, n, at ? at[i] : i, part, bias, &index, e);
        if (st)
            return st;
        if (is_expert_mode(m))
            m->weights[index].owner_unit = (uint64_t)i;
        if (i == 0)
            *first = index;
    }
    return ST_OK;
}

/* In any layer: then in all that have experts. */
static bool has_bias(const struct part_model *m, const struct expert_names *n, enum part_of_expert part)
{
    struct place p;
    for (int layer = 0; layer < m->config.n_layers; layer++)
        if (find_expert(m, layer, n, 0, part, true, 1, &p))
            return true;
    return false;
}

/* ---- values and steps ------------------------------------------------------------------------------------------------------------------------------------- */

void decoder_begin_experts(struct part_model *m, struct decoder *d)
{
    const struct moe_config *moe = &m->config.moe;
    const uint64_t hidden = (uint64_t)m->config.hidden;
    struct order_leaves leaves;
    bool super_block = false;
    for (int layer = 0; layer < m->config.n_layers; layer++) {
        struct place p;
        if (!decoder_has_experts(m, layer, d))
            continue;
        super_block |= find_expert(m, layer, d->experts, 0, DOWN, false, hidden, &p) && !p.tensor->unsupported && kern_format(p.tensor->format)->super_block;
    }
    order_columns((uint64_t)moe->ffn, super_block, &leaves);
    m->dim_expert_ffn = m->dim_shared_ffn = part_add_dim(m, "expert ffn", &leaves);
    if (m->moe == PART_MOE_EXPERT) {
        order_experts((uint32_t)moe->n_experts, &leaves);
        m->dim_experts = part_add_dim(m, "experts", &leaves);
    }
    if (moe->shared_ffn && moe->shared_ffn != moe->ffn) {
        order_columns((uint64_t)moe->shared_ffn, super_block, &leaves);
        m->dim_shared_ffn = part_add_dim(m, "shared ffn", &leaves);
    }
    m->n_stacked = moe->n_experts + (!is_expert_mode(m) && moe->shared_ffn == moe->ffn && !d->experts->shared_gate.hub);
    const struct part_axis ffn = is_expert_mode(m) ? part_axis_whole((uint64_t)moe->ffn) : part_axis_cut(m->dim_expert_ffn, 1, 1, (uint64_t)moe->ffn);
    d->router = part_add_value(m, "router", PART_TOKENS, part_axis_whole((uint64_t)moe->n_experts));
    d->routes = part_add_value(m, "routes", PART_TOKENS, part_axis_whole((uint64_t)moe->top_k));
    m->values[d->routes].element_bytes = PART_ROUTE_BYTES;
    d->expert_gate = part_add_value(m, "expert gate", PART_SLOTS, ffn);
    d->expert_up = part_add_value(m, "expert up", PART_SLOTS, ffn);
    d->expert_y = part_add_value(m, "expert y", PART_SLOTS, ffn);
    d->expert_part = part_add_partial(m, "experts", hidden, is_expert_mode(m) ? m->dim_experts : m->dim_expert_ffn);
    d->shared_gate = d->shared_up = d->shared_y = d->shared_part = d->shared_weight = PART_NONE;
    if (moe->shared_ffn && m->n_stacked == moe->n_experts) {
        const struct part_axis cut = part_axis_cut(m->dim_shared_ffn, 1, 1, (uint64_t)moe->shared_ffn);
        d->shared_gate = part_add_value(m, "shared gate", PART_TOKENS, cut);
        d->shared_up = part_add_value(m, "shared up", PART_TOKENS, cut);
        d->shared_y = part_add_value(m, "shared y", PART_TOKENS, cut);
        d->shared_part = part_add_partial(m, "shared", hidden, m->dim_shared_ffn);
        if (d->experts->shared_gate.hub)
            d->shared_weight = part_add_value(m, "shared weight", PART_TOKENS, part_axis_whole(1));
        m->values[d->shared_part].follows = d->expert_part;
    }
    d->expert_bias = has_bias(m, d->experts, DOWN) && !is_expert_mode(m) ? part_add_value(m, "expert bias", PART_TOKENS, part_axis_whole(hidden)) : PART_NONE;
}

static enum st add_router(struct part_model *m, int layer, const struct decoder *d, struct err *e)
{
    const struct expert_names *n = d->experts;
    const struct part_axis experts = part_axis_whole((uint64_t)m->config.moe.n_experts);
    struct part_step *linear = part_add_step(m, &m->main, PART_LINEAR, layer);
    linear->in[0] = (int16_t)d->h;
    linear->out[0] = (int16_t)d->router;
    enum st st = decoder_add(m, PART_MATRIX, layer, n->router, "weight", experts, part_axis_whole((uint64_t)m->config.hidden), &linear->weight[0], e);
    if (!st && decoder_in_any_layer(m, n->router, "bias"))
        st = decoder_add(m, PART_VECTOR, layer, n->router, "bias", experts, part_axis_whole(1), &linear->bias[0], e);
    if (st)
        return st;
    m->weights[linear->weight[0]].exact = true;

    struct part_step *route = part_add_step(m, &m->main, PART_ROUTE, layer);
    route->in[0] = (int16_t)d->router;
    route->out[0] = (int16_t)d->routes;
    route->n_experts = (uint32_t)m->config.moe.n_experts;
    route->expert_end = (uint32_t)m->n_stacked;
    char full[128];
    const bool gguf = ck_kind_of(m->ck) == CK_GGUF;
    if (!(gguf ? n->correction.gguf : n->correction.hub))
        return ST_OK;
    snprintf(full, sizeof full, gguf ? "blk.%d.%s" : "model.layers.%d.%s", layer, gguf ? n->correction.gguf : n->correction.hub);
    const struct ck_tensor *t = ck_find(m->ck, full);
    if (!t)
        return err_set(e, ST_NOT_FOUND, "%s: tensor %s is missing", ck_path(m->ck), full);
    return part_add_weight(m, PART_VECTOR, t, 0, experts.size, experts, part_axis_whole(1), &route->bias[0], e);
}

static struct part_step *add_expert_step(struct part_model *m, enum part_op op, int layer, int in, int routes)
{
    struct part_step *s = part_add_step(m, &m->main, op, layer);
    s->in[0] = (int16_t)in;
    s->in[1] = (int16_t)routes;
    s->n_experts = s->expert_end = (uint32_t)m->n_stacked;
    return s;
}

static struct part_step *add_sum(struct part_model *m, int layer, const struct decoder *d, int part)
{
    struct part_step *sum = part_add_step(m, &m->main, PART_SUM, layer);
    sum->in[0] = sum->out[0] = (int16_t)d->x;
    sum->in[1] = (int16_t)part;
    sum->dim = (int16_t)m->values[part].sum_dim;
    return sum;
}

static enum st add_shared_gate(struct part_model *m, int layer, const struct decoder *d, struct err *e)
{
    struct part_step *linear = part_add_step(m, &m->main, PART_LINEAR, layer);
    linear->in[0] = (int16_t)d->h;
    linear->out[0] = (int16_t)d->shared_weight;
    const enum st st = decoder_add(m, PART_MATRIX, layer, d->experts->shared_gate, "weight", part_axis_whole(1), part_axis_whole((uint64_t)m->config.hidden), &linear->weight[0], e);
    if (st)
        return st;
    m->weights[linear->weight[0]].exact = true;
    struct part_step *scale = part_add_step(m, &m->main, PART_ROW_GATE, layer);
    scale->in[0] = scale->out[0] = (int16_t)d->shared_y;
    scale->in[1] = (int16_t)d->shared_weight;
    return ST_OK;
}

/* The products of a shared expert by itself, up to its partial sums. */
static enum st add_shared(struct part_model *m, int layer, const struct decoder *d, struct err *e)
{
    const int shared = m->config.moe.n_experts;
    struct part_step *in = part_add_step(m, &m->main, PART_LINEAR, layer);
    in->in[0] = (int16_t)d->h;
    in->n_parts = 2;
    in->out[0] = (int16_t)d->shared_gate;
    in->out[1] = (int16_t)d->shared_up;
    enum st st = add_one(m, layer, d->experts, shared, GATE, false, &in->weight[0], e);
    if (!st)
        st = add_one(m, layer, d->experts, shared, UP, false, &in->weight[1], e);
    struct part_step *gate = part_add_step(m, &m->main, PART_GATE, layer);
    gate->in[0] = (int16_t)d->shared_gate;
    gate->in[1] = (int16_t)d->shared_up;
    gate->out[0] = (int16_t)d->shared_y;
    if (!st && d->shared_weight != PART_NONE)
        st = add_shared_gate(m, layer, d, e);
    struct part_step *out = part_add_step(m, &m->main, PART_LINEAR, layer);
    out->in[0] = (int16_t)d->shared_y;
    out->out[0] = (int16_t)d->shared_part;
    return st ? st : add_one(m, layer, d->experts, shared, DOWN, false, &out->weight[0], e);
}

enum st decoder_experts(struct part_model *m, int layer, const struct decoder *d, struct err *e)
{
    const struct expert_names *n = d->experts;
    enum st st = check_count(m, layer, n, e);
    if (!st)
        st = decoder_norm(m, &m->main, layer, d->x, d->h, d->ffn_norm, e);
    if (!st)
        st = add_router(m, layer, d, e);
    if (!st && d->shared_part != PART_NONE)
        st = add_shared(m, layer, d, e);
    if (st)
        return st;

    struct part_step *in = add_expert_step(m, PART_EXPERTS_IN, layer, d->h, d->routes);
    in->n_parts = 2;
    in->out[0] = (int16_t)d->expert_gate;
    in->out[1] = (int16_t)d->expert_up;
    for (int k = 0; k < 2 && !st; k++) {
        const enum part_of_expert part = k ? UP : GATE;
        st = add_all(m, layer, n, part, false, &in->weight[k], e);
        if (!st && has_bias(m, n, part))
            st = add_all(m, layer, n, part, true, &in->bias[k], e);
    }
    if (st)
        return st;
    struct part_step *gate = part_add_step(m, &m->main, PART_GATE, layer);
    gate->in[0] = (int16_t)d->expert_gate;
    gate->in[1] = (int16_t)d->expert_up;
    gate->out[0] = (int16_t)d->expert_y;

    struct part_step *out = add_expert_step(m, PART_EXPERTS_OUT, layer, d->expert_y, d->routes);
    out->out[0] = (int16_t)d->expert_part;
    int32_t bias = PART_NONE;
    st = add_all(m, layer, n, DOWN, false, &out->weight[0], e);
    if (!st && has_bias(m, n, DOWN))
        st = add_all(m, layer, n, DOWN, true, &bias, e);
    if (st)
        return st;
    if (is_expert_mode(m)) {
        out->bias[0] = bias;
    } else if (bias != PART_NONE) {
        struct part_step *mix = part_add_step(m, &m->main, PART_EXPERTS_BIAS, layer);
        mix->in[0] = (int16_t)d->routes;
        mix->out[0] = (int16_t)d->expert_bias;
        mix->bias[0] = bias;
        mix->n_experts = (uint32_t)m->config.moe.n_experts;
    }

    add_sum(m, layer, d, d->expert_part)->in[2] = (int16_t)(bias != PART_NONE && !is_expert_mode(m) ? d->expert_bias : PART_NONE);
    if (d->shared_part != PART_NONE)
        add_sum(m, layer, d, d->shared_part);
    return ST_OK;
}
