/* The blocks of decoders, for hub checkpoints (model.layers.N.self_attn.q_proj …, also with fused qkv_proj and gate_up_proj) and GGUF (blk.N.attn_q …) alike. */
#include "partition/models/decoder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct names EMBEDDING = {"model.embed_tokens", "token_embd"}, HEAD = {"lm_head", "output"}, FINAL_NORM = {"model.norm", "output_norm"};
static const struct names ATTENTION_NORM = {"input_layernorm", "attn_norm"};
static const struct names FFN_NORM = {"post_attention_layernorm", "ffn_norm"};
static const struct names Q = {"self_attn.q_proj", "attn_q"}, K = {"self_attn.k_proj", "attn_k"}, V = {"self_attn.v_proj", "attn_v"}, O = {"self_attn.o_proj", "attn_output"};
static const struct names Q_NORM = {"self_attn.q_norm", "attn_q_norm"}, K_NORM = {"self_attn.k_norm", "attn_k_norm"};
static const struct names QKV = {"self_attn.qkv_proj", "attn_qkv"};
static const struct names GATE = {"mlp.gate_proj", "ffn_gate"}, UP = {"mlp.up_proj", "ffn_up"}, DOWN = {"mlp.down_proj", "ffn_down"}, GATE_UP = {"mlp.gate_up_proj", "ffn_gate_up"};

const struct ck_tensor *decoder_find(const struct part_model *m, int layer, struct names n, const char *what, char full[128])
{
    const bool gguf = ck_kind_of(m->ck) == CK_GGUF;
    char module[112];
    full[0] = 0;
    if (!(gguf ? n.gguf : n.hub))
        return NULL;
    if (layer < 0)
        snprintf(module, sizeof module, "%s", gguf ? n.gguf : n.hub);
    else
        snprintf(module, sizeof module, gguf ? "blk.%d.%s" : "model.layers.%d.%s", layer, gguf ? n.gguf : n.hub);
    snprintf(full, 128, "%s.%s", module, what);
    return strcmp(what, "weight") == 0 ? quant_codes(m->ck, module) : ck_find(m->ck, full);
}

bool decoder_has(const struct part_model *m, int layer, struct names n, const char *what)
{
    char full[128];
    return decoder_find(m, layer, n, what, full) != NULL;
}

enum st decoder_add(struct part_model *m, enum part_weight_kind kind, int layer, struct names n, const char *what, struct part_axis rows, struct part_axis columns, int32_t *index,
                    struct err *e)
{
    char full[128];
    const struct ck_tensor *t = decoder_find(m, layer, n, what, full);
    if (!t)
        return err_set(e, ST_NOT_FOUND, "%s: tensor %s is missing", ck_path(m->ck), full);
    return part_add_weight(m, kind, t, 0, rows.size, rows, columns, index, e);
}

/* One row range of a tensor of its own, or of a fused one. */
static enum st add_part(struct part_model *m, enum part_weight_kind kind, int layer, struct names part, struct names fused, const char *what, uint64_t first_row, uint64_t fused_rows,
                        struct part_axis rows, struct part_axis columns, int32_t *index, struct err *e)
{
    char full[128];
    const struct ck_tensor *whole = decoder_find(m, layer, part, what, full) ? NULL : decoder_find(m, layer, fused, what, full);
    if (whole)
        return part_add_weight(m, kind, whole, first_row, fused_rows, rows, columns, index, e);
    return decoder_add(m, kind, layer, part, what, rows, columns, index, e);
}

/* Parts of one product: each a tensor of its own, or consecutive row ranges of a fused one. A part that has a bias in one layer has it in all of them. */
static enum st add_parts(struct part_model *m, int layer, const struct names *parts, struct names fused, int n_parts, const struct part_axis *rows, struct part_axis columns,
                         const bool *biased, struct part_step *s, struct err *e)
{
    s->n_parts = (int16_t)n_parts;
    uint64_t n_rows = 0, row = 0;
    for (int k = 0; k < n_parts; k++)
        n_rows += rows[k].size;
    for (int k = 0; k < n_parts; row += rows[k++].size) {
        enum st st = add_part(m, PART_MATRIX, layer, parts[k], fused, "weight", row, n_rows, rows[k], columns, &s->weight[k], e);
        if (!st && biased[k])
            st = add_part(m, PART_VECTOR, layer, parts[k], fused, "bias", row, n_rows, rows[k], part_axis_whole(1), &s->bias[k], e);
        if (st)
            return st;
    }
    return ST_OK;
}

/* Where the parts of a product want their input scaled column by column (ModelOpt's AWQ and SmoothQuant), value is, in place; nobody else reads it. All parts say the same, or
 * some would get another input than they want. */
static enum st add_input_scale(struct part_model *m, int layer, int value, const struct names *parts, int n_parts, struct names fused, struct part_axis columns, struct err *e)
{
    static const char what[] = "pre_quant_scale";
    char full[128];
    const struct ck_tensor *first = NULL;
    void *mine = NULL;
    enum st st = ST_OK;
    m->scales_input = false;
    for (int k = 0; k < n_parts && !st; k++) {
        const struct ck_tensor *t = decoder_find(m, layer, parts[k], what, full);
        t = t ? t : decoder_find(m, layer, fused, what, full);
        void *theirs = NULL;
        if (k && !t != !first)
            return free(mine), err_set(e, ST_UNSUPPORTED, "%s: tensor %s is missing: parts of one product whose inputs are scaled otherwise are not supported", ck_path(m->ck), full);
        if (!t)
            continue;
        if (t->unsupported || kern_format(t->format)->quantised || t->n_dims != 1 || t->dims[0] != columns.size)
            return free(mine), err_set(e, ST_INVALID, "%s: tensor %s: one plain number for each of %llu columns is expected", ck_path(m->ck), t->name, (unsigned long long)columns.size);
        st = ck_read_bytes(m->ck, t, t->bytes, k ? &theirs : &mine, e);
        if (!st && k && (t->bytes != first->bytes || memcmp(mine, theirs, t->bytes) != 0))
            st = err_set(e, ST_UNSUPPORTED, "%s: tensors %s and %s differ: parts of one product whose inputs are scaled otherwise are not supported", ck_path(m->ck), first->name, t->name);
        free(theirs);
        first = first ? first : t;
    }
    free(mine);
    if (st || !first)
        return st;
    m->scales_input = true;
    struct part_step *s = part_add_step(m, &m->main, PART_COLUMN_SCALE, layer);
    s->in[0] = s->out[0] = (int16_t)value;
    return part_add_weight(m, PART_VECTOR, first, 0, columns.size, columns, part_axis_whole(1), &s->weight[0], e);
}

bool decoder_in_any_layer(const struct part_model *m, struct names n, const char *what)
{
    for (int layer = 0; layer < m->config.n_layers; layer++)
        if (decoder_has(m, layer, n, what))
            return true;
    return false;
}

static void find_biases(const struct part_model *m, struct decoder *d)
{
    const struct names qkv[] = {Q, K, V}, gate_up[] = {GATE, UP};
    for (int k = 0; k < 3; k++)
        d->qkv_bias[k] = decoder_in_any_layer(m, qkv[k], "bias") || decoder_in_any_layer(m, QKV, "bias");
    for (int k = 0; k < 2; k++)
        d->gate_up_bias[k] = decoder_in_any_layer(m, gate_up[k], "bias") || decoder_in_any_layer(m, GATE_UP, "bias");
    d->o_bias = decoder_in_any_layer(m, O, "bias");
    d->down_bias = decoder_in_any_layer(m, DOWN, "bias");
}

/* x = x + (tree over part + bias) */
static enum st add_residual(struct part_model *m, int layer, int x, int part, int dim, struct names n, bool biased, struct err *e)
{
    struct part_step *s = part_add_step(m, &m->main, PART_SUM, layer);
    s->in[0] = s->out[0] = (int16_t)x;
    s->in[1] = (int16_t)part;
    s->dim = (int16_t)dim;
    return biased ? decoder_add(m, PART_VECTOR, layer, n, "bias", part_axis_whole((uint64_t)m->config.hidden), part_axis_whole(1), &s->bias[0], e) : ST_OK;
}

/* Of each head by itself, in place. */
static enum st add_head_norm(struct part_model *m, int layer, int x, int n_heads, struct names n, struct err *e)
{
    struct part_step *s = part_add_step(m, &m->main, PART_NORM, layer);
    s->in[0] = s->out[0] = (int16_t)x;
    s->eps = (float)m->config.norm_eps;
    s->n_heads = (uint32_t)n_heads;
    return decoder_add(m, PART_VECTOR, layer, n, "weight", part_axis_whole((uint64_t)m->config.head_dim), part_axis_whole(1), &s->weight[0], e);
}

/* Of all heads together, in place, by the squares of all ranks' heads. */
static enum st add_all_norms(struct part_model *m, int layer, const struct decoder *d, struct part_axis q_rows, struct part_axis kv_rows, struct err *e)
{
    struct part_step *squares = part_add_step(m, &m->main, PART_SQUARES, layer);
    squares->in[0] = (int16_t)d->q;
    squares->in[1] = (int16_t)d->k;
    squares->out[0] = (int16_t)d->squares;
    for (int keys = 0; keys < 2; keys++) {
        struct part_step *s = part_add_step(m, &m->main, PART_NORM, layer);
        s->in[0] = s->out[0] = (int16_t)(keys ? d->k : d->q);
        s->in[1] = (int16_t)d->squares;
        s->of_keys = keys;
        s->eps = (float)m->config.norm_eps;
        const enum st st = decoder_add(m, PART_VECTOR, layer, keys ? K_NORM : Q_NORM, "weight", keys ? kv_rows : q_rows, part_axis_whole(1), &s->weight[0], e);
        if (st)
            return st;
    }
    return ST_OK;
}

enum st decoder_norm(struct part_model *m, struct part_program *p, int layer, int in, int out, struct names n, struct err *e)
{
    struct part_step *s = part_add_step(m, p, PART_NORM, layer);
    s->in[0] = (int16_t)in;
    s->out[0] = (int16_t)out;
    s->eps = (float)m->config.norm_eps;
    return decoder_add(m, PART_VECTOR, layer, n, "weight", part_axis_whole((uint64_t)m->config.hidden), part_axis_whole(1), &s->weight[0], e);
}

static void add_rope(struct part_model *m, int layer, int x, int table, int n_heads)
{
    struct part_step *s = part_add_step(m, &m->main, PART_ROPE, layer);
    s->in[0] = s->out[0] = (int16_t)x;
    s->in[1] = (int16_t)table;
    s->n_heads = (uint32_t)n_heads;
}

/* One score for each head: a tensor without a module. */
static enum st add_sinks(struct part_model *m, int layer, struct part_step *s, struct err *e)
{
    char full[128];
    snprintf(full, sizeof full, ck_kind_of(m->ck) == CK_GGUF ? "blk.%d.attn_sinks.weight" : "model.layers.%d.self_attn.sinks", layer);
    const struct ck_tensor *t = ck_find(m->ck, full);
    if (!t)
        return err_set(e, ST_NOT_FOUND, "%s: tensor %s is missing", ck_path(m->ck), full);
    const uint64_t n = (uint64_t)m->config.n_heads;
    return part_add_weight(m, PART_VECTOR, t, 0, n, part_axis_cut(m->dim_heads, 1, 1, n), part_axis_whole(1), &s->bias[0], e);
}

enum st decoder_attention(struct part_model *m, int layer, const struct decoder *d, struct err *e)
{
    const struct model_config *c = &m->config;
    const uint32_t head_dim = (uint32_t)c->head_dim, group = (uint32_t)(c->n_heads / c->n_kv_heads);
    const struct part_axis q_rows = part_axis_cut(m->dim_heads, head_dim, 1, (uint64_t)c->n_heads * head_dim);
    const struct part_axis kv_rows = part_axis_cut(m->dim_heads, head_dim, group, (uint64_t)c->n_kv_heads * head_dim);
    const struct part_axis hidden = part_axis_whole((uint64_t)c->hidden);

    enum st st = decoder_norm(m, &m->main, layer, d->x, d->h, ATTENTION_NORM, e);
    if (st)
        return st;
    const struct names qkv_names[] = {Q, K, V};
    if ((st = add_input_scale(m, layer, d->h, qkv_names, 3, QKV, hidden, e)))
        return st;
    struct part_step *qkv = part_add_step(m, &m->main, PART_LINEAR, layer);
    qkv->in[0] = (int16_t)d->h;
    qkv->out[0] = (int16_t)d->q;
    qkv->out[1] = (int16_t)d->k;
    qkv->out[2] = (int16_t)d->v;
    st = add_parts(m, layer, qkv_names, QKV, 3, (const struct part_axis[]){q_rows, kv_rows, kv_rows}, hidden, d->qkv_bias, qkv, e);
    if (st)
        return st;

    if (d->head_norms && ((st = add_head_norm(m, layer, d->q, c->n_heads, Q_NORM, e)) || (st = add_head_norm(m, layer, d->k, c->n_kv_heads, K_NORM, e))))
        return st;
    if (d->all_norms && (st = add_all_norms(m, layer, d, q_rows, kv_rows, e)))
        return st;
    add_rope(m, layer, d->q, d->rope, c->n_heads);
    add_rope(m, layer, d->k, d->rope, c->n_kv_heads);

    struct part_step *a = part_add_step(m, &m->main, PART_ATTENTION, layer);
    a->in[0] = (int16_t)d->q;
    a->in[1] = (int16_t)d->k;
    a->in[2] = (int16_t)d->v;
    a->out[0] = (int16_t)d->a;
    a->cache = (int16_t)part_add_cache(m, layer, (uint32_t)c->n_kv_heads, head_dim);
    if (ck_kind_of(m->ck) == CK_SAFETENSORS)
        m->caches[a->cache].module = base_arena_printf(&m->arena, "model.layers.%d.self_attn", layer);
    a->n_heads = (uint32_t)c->n_heads;
    a->head_group = group;
    a->scale = (float)c->attention_scale;
    a->window = c->windows ? c->windows[layer] : 0;
    if (d->sinks && (st = add_sinks(m, layer, a, e)))
        return st;

    if ((st = add_input_scale(m, layer, d->a, &O, 1, (struct names){NULL, NULL}, q_rows, e)))
        return st;
    struct part_step *o = part_add_step(m, &m->main, PART_LINEAR, layer);
    o->in[0] = (int16_t)d->a;
    o->out[0] = (int16_t)d->attention_part;
    st = decoder_add(m, PART_MATRIX, layer, O, "weight", hidden, q_rows, &o->weight[0], e);
    m->scales_input = false;
    if (st)
        return st;
    return add_residual(m, layer, d->x, d->attention_part, m->dim_heads, O, d->o_bias, e);
}

enum st decoder_ffn(struct part_model *m, int layer, const struct decoder *d, struct err *e)
{
    const struct model_config *c = &m->config;
    const struct part_axis ffn = part_axis_cut(m->dim_ffn, 1, 1, (uint64_t)c->ffn), hidden = part_axis_whole((uint64_t)c->hidden);
    enum st st = decoder_norm(m, &m->main, layer, d->x, d->h, d->ffn_norm, e);
    if (st)
        return st;
    const struct names gate_up_names[] = {GATE, UP};
    if ((st = add_input_scale(m, layer, d->h, gate_up_names, 2, GATE_UP, hidden, e)))
        return st;
    struct part_step *gate_up = part_add_step(m, &m->main, PART_LINEAR, layer);
    gate_up->in[0] = (int16_t)d->h;
    gate_up->out[0] = (int16_t)d->gate;
    gate_up->out[1] = (int16_t)d->up;
    st = add_parts(m, layer, gate_up_names, GATE_UP, 2, (const struct part_axis[]){ffn, ffn}, hidden, d->gate_up_bias, gate_up, e);
    if (st)
        return st;
    struct part_step *act = part_add_step(m, &m->main, PART_GATE, layer);
    act->in[0] = (int16_t)d->gate;
    act->in[1] = (int16_t)d->up;
    act->out[0] = (int16_t)d->y;

    if ((st = add_input_scale(m, layer, d->y, &DOWN, 1, (struct names){NULL, NULL}, ffn, e)))
        return st;
    struct part_step *down = part_add_step(m, &m->main, PART_LINEAR, layer);
    down->in[0] = (int16_t)d->y;
    down->out[0] = (int16_t)d->ffn_part;
    st = decoder_add(m, PART_MATRIX, layer, DOWN, "weight", hidden, ffn, &down->weight[0], e);
    m->scales_input = false;
    if (st)
        return st;
    return add_residual(m, layer, d->x, d->ffn_part, m->dim_ffn, DOWN, d->down_bias, e);
}

/* logit rows → logits → what the caller wants of them */
enum st decoder_head(struct part_model *m, const struct decoder *d, struct err *e)
{
    const struct part_axis vocab = part_axis_cut(m->dim_vocab, 1, 1, (uint64_t)m->config.vocab);
    struct part_step *pick = part_add_step(m, &m->head, PART_PICK, -1);
    pick->in[0] = (int16_t)d->x;
    pick->out[0] = (int16_t)d->picked;
    enum st st = decoder_norm(m, &m->head, -1, d->picked, d->normed, FINAL_NORM, e);
    if (st)
        return st;
    struct part_step *logits = part_add_step(m, &m->head, PART_LINEAR, -1);
    logits->in[0] = (int16_t)d->normed;
    logits->out[0] = (int16_t)d->logits;
    if (m->config.tied_head)
        logits->weight[0] = d->embedding;
    else if ((st = decoder_add(m, PART_MATRIX, -1, HEAD, "weight", vocab, part_axis_whole((uint64_t)m->config.hidden), &logits->weight[0], e)))
        return st;
    struct part_step *score = part_add_step(m, &m->head, PART_SCORE, -1);
    score->in[0] = (int16_t)d->logits;
    score->out[0] = (int16_t)d->scores;
    struct part_step *sample = part_add_step(m, &m->head, PART_SAMPLE, -1);
    sample->in[0] = (int16_t)d->logits;
    sample->out[0] = (int16_t)d->samples;
    return ST_OK;
}

enum st decoder_begin(struct part_model *m, struct decoder *d, struct err *e)
{
    const struct model_config *c = &m->config;

    /* dimensions: heads, ffn (its unit depends on how the down projections are stored), vocabulary */
    struct order_leaves leaves;
    enum st st = order_heads((uint32_t)c->n_heads, (uint32_t)c->n_kv_heads, &leaves, e);
    if (st)
        return st;
    m->dim_heads = part_add_dim(m, "heads", &leaves);
    char full[128];
    bool super_block = false;
    for (int layer = 0; layer < c->n_layers; layer++) {
        const struct ck_tensor *down = decoder_find(m, layer, DOWN, "weight", full);
        super_block |= down && !down->unsupported && kern_format(down->format)->super_block;
    }
    bool dense = false;
    for (int layer = 0; layer < c->n_layers; layer++)
        dense |= !decoder_has_experts(m, layer, d);
    if (dense) {
        order_columns((uint64_t)c->ffn, super_block, &leaves);
        m->dim_ffn = part_add_dim(m, "ffn", &leaves);
    }
    order_vocabulary((uint64_t)c->vocab, &leaves);
    m->dim_vocab = part_add_dim(m, "vocabulary", &leaves);

    if (d->head_norms == HEAD_NORMS_IF_ANY && !decoder_in_any_layer(m, Q_NORM, "weight"))
        d->head_norms = NO_HEAD_NORMS;
    if (!d->ffn_norm.hub)
        d->ffn_norm = FFN_NORM;

    /* values */
    const uint64_t hidden = (uint64_t)c->hidden, head_dim = (uint64_t)c->head_dim;
    const struct part_axis whole = part_axis_whole(hidden);
    const struct part_axis q = part_axis_cut(m->dim_heads, (uint32_t)head_dim, 1, (uint64_t)c->n_heads * head_dim);
    const struct part_axis kv = part_axis_cut(m->dim_heads, (uint32_t)head_dim, (uint32_t)(c->n_heads / c->n_kv_heads), (uint64_t)c->n_kv_heads * head_dim);
    d->x = part_add_value(m, "x", PART_TOKENS, whole);
    d->h = part_add_value(m, "h", PART_TOKENS, whole);
    d->rope = part_add_value(m, "rope", PART_TOKENS, part_axis_whole((uint64_t)c->rope.rotary_dim));
    d->q = part_add_value(m, "q", PART_TOKENS, q);
    d->k = part_add_value(m, "k", PART_TOKENS, kv);
    d->v = part_add_value(m, "v", PART_TOKENS, kv);
    d->a = part_add_value(m, "a", PART_TOKENS, q);
    d->squares = d->all_norms ? part_add_value(m, "squares", PART_TOKENS, part_axis_cut(m->dim_heads, 2, 1, 2 * (uint64_t)c->n_heads)) : PART_NONE;
    d->attention_part = part_add_partial(m, "o", hidden, m->dim_heads);
    d->gate = d->up = d->y = d->ffn_part = PART_NONE;
    if (dense) {
        const struct part_axis ffn = part_axis_cut(m->dim_ffn, 1, 1, (uint64_t)c->ffn);
        d->gate = part_add_value(m, "gate", PART_TOKENS, ffn);
        d->up = part_add_value(m, "up", PART_TOKENS, ffn);
        d->y = part_add_value(m, "y", PART_TOKENS, ffn);
        d->ffn_part = part_add_partial(m, "down", hidden, m->dim_ffn);
    }
    if (c->moe.n_experts && d->experts)
        decoder_begin_experts(m, d);
    d->picked = part_add_value(m, "picked", PART_LOGIT_ROWS, whole);
    d->normed = part_add_value(m, "normed", PART_LOGIT_ROWS, whole);
    d->logits = part_add_value(m, "logits", PART_LOGIT_ROWS, part_axis_cut(m->dim_vocab, 1, 1, (uint64_t)c->vocab));
    d->samples = part_add_value(m, "samples", PART_LOGIT_ROWS, part_axis_whole(1));
    d->scores = part_add_value(m, "scores", PART_LOGIT_ROWS, part_axis_whole(1));
    find_biases(m, d);
    m->value_hidden = d->x;
    m->value_logits = d->logits;
    m->value_samples = d->samples;
    m->value_scores = d->scores;
    m->values[d->samples].element_bytes = PART_SAMPLE_BYTES;

    /* steps */
    struct part_step *embed = part_add_step(m, &m->main, PART_EMBED, -1);
    embed->out[0] = (int16_t)d->x;
    embed->scale = (float)c->embedding_scale;
    embed->dim = (int16_t)m->dim_vocab;
    st = decoder_add(m, PART_MATRIX, -1, EMBEDDING, "weight", part_axis_cut(m->dim_vocab, 1, 1, (uint64_t)c->vocab), whole, &embed->weight[0], e);
    if (st)
        return st;
    d->embedding = embed->weight[0];
    m->weights[d->embedding].exact = !c->tied_head; /* its rows are looked up, not multiplied: they stay what they are */
    part_add_step(m, &m->main, PART_ROPE_TABLE, -1)->out[0] = (int16_t)d->rope;
    return ST_OK;
}

enum st decoder_build(struct part_model *m, struct decoder *d, struct err *e)
{
    enum st st = decoder_begin(m, d, e);
    for (int layer = 0; layer < m->config.n_layers && !st; layer++) {
        st = decoder_attention(m, layer, d, e);
        if (!st)
            st = decoder_has_experts(m, layer, d) ? decoder_experts(m, layer, d, e) : decoder_ffn(m, layer, d, e);
    }
    return st ? st : decoder_head(m, d, e);
}
