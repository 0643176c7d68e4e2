/* Llama: x += o(attention(rope(q), rope(k), v)); x += down(silu(gate) · up), RMSNorm before each, one head at the end.
 *
 * Hub checkpoints (model.layers.N.self_attn.q_proj …, also with fused qkv_proj and gate_up_proj) and GGUF (blk.N.attn_q …) under one builder; the tensors that are there decide
 * which biases exist, whatever the flags say. */
#include <stdio.h>
#include <string.h>

#include "partition/models/models.h"

struct names {
    const char *hub, *gguf;
};

static const struct names EMBEDDING = {"model.embed_tokens", "token_embd"}, HEAD = {"lm_head", "output"}, FINAL_NORM = {"model.norm", "output_norm"};
static const struct names ATTENTION_NORM = {"input_layernorm", "attn_norm"}, FFN_NORM = {"post_attention_layernorm", "ffn_norm"};
static const struct names Q = {"self_attn.q_proj", "attn_q"}, K = {"self_attn.k_proj", "attn_k"}, V = {"self_attn.v_proj", "attn_v"}, O = {"self_attn.o_proj", "attn_output"};
static const struct names QKV = {"self_attn.qkv_proj", "attn_qkv"};
static const struct names GATE = {"mlp.gate_proj", "ffn_gate"}, UP = {"mlp.up_proj", "ffn_up"}, DOWN = {"mlp.down_proj", "ffn_down"}, GATE_UP = {"mlp.gate_up_proj", "ffn_gate_up"};

/* The tensor of a module ("weight": of its numbers or codes, or "bias"), NULL where it is not there. layer −1: outside the layers. full receives its name either way. */
static const struct ck_tensor *find(const struct part_model *m, int layer, struct names n, const char *what, char full[128])
{
    const bool gguf = ck_kind_of(m->ck) == CK_GGUF;
    char module[112];
    if (layer < 0)
        snprintf(module, sizeof module, "%s", gguf ? n.gguf : n.hub);
    else
        snprintf(module, sizeof module, gguf ? "blk.%d.%s" : "model.layers.%d.%s", layer, gguf ? n.gguf : n.hub);
    snprintf(full, 128, "%s.%s", module, what);
    return strcmp(what, "weight") == 0 ? quant_codes(m->ck, module) : ck_find(m->ck, full);
}

static enum st add(struct part_model *m, enum part_weight_kind kind, int layer, struct names n, const char *what, struct part_axis rows, struct part_axis columns, int32_t *index,
                   struct err *e)
{
    char full[128];
    const struct ck_tensor *t = find(m, layer, n, what, full);
    if (!t)
        return err_set(e, ST_NOT_FOUND, "%s: tensor %s is missing", ck_path(m->ck), full);
    return part_add_weight(m, kind, t, 0, rows.size, rows, columns, index, e);
}

/* One row range of a tensor of its own, or of a fused one. */
static enum st add_part(struct part_model *m, enum part_weight_kind kind, int layer, struct names part, struct names fused, const char *what, uint64_t first_row, uint64_t fused_rows,
                        struct part_axis rows, struct part_axis columns, int32_t *index, struct err *e)
{
    char full[128];
    const struct ck_tensor *whole = find(m, layer, part, what, full) ? NULL : find(m, layer, fused, what, full);
    if (whole)
        return part_add_weight(m, kind, whole, first_row, fused_rows, rows, columns, index, e);
    return add(m, kind, layer, part, what, rows, columns, index, e);
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

static bool in_any_layer(const struct part_model *m, struct names n, const char *what)
{
    char full[128];
    for (int layer = 0; layer < m->config.n_layers; layer++)
        if (find(m, layer, n, what, full))
            return true;
    return false;
}

struct values {
    int x, h, rope, q, k, v, a, attention_part, gate, up, y, ffn_part, picked, normed, logits, samples, scores;
    bool qkv_bias[3], o_bias, gate_up_bias[2], down_bias;
};

static void find_biases(const struct part_model *m, struct values *v)
{
    const struct names qkv[] = {Q, K, V}, gate_up[] = {GATE, UP};
    for (int k = 0; k < 3; k++)
        v->qkv_bias[k] = in_any_layer(m, qkv[k], "bias") || in_any_layer(m, QKV, "bias");
    for (int k = 0; k < 2; k++)
        v->gate_up_bias[k] = in_any_layer(m, gate_up[k], "bias") || in_any_layer(m, GATE_UP, "bias");
    v->o_bias = in_any_layer(m, O, "bias");
    v->down_bias = in_any_layer(m, DOWN, "bias");
}

/* x = x + (tree over part + bias) */
static enum st add_residual(struct part_model *m, int layer, int x, int part, int dim, struct names n, bool biased, struct err *e)
{
    struct part_step *s = part_add_step(m, &m->main, PART_SUM, layer);
    s->in[0] = s->out[0] = (int16_t)x;
    s->in[1] = (int16_t)part;
    s->dim = (int16_t)dim;
    return biased ? add(m, PART_VECTOR, layer, n, "bias", part_axis_whole((uint64_t)m->config.hidden), part_axis_whole(1), &s->bias[0], e) : ST_OK;
}

static enum st add_norm(struct part_model *m, struct part_program *p, int layer, int in, int out, struct names n, struct err *e)
{
    struct part_step *s = part_add_step(m, p, PART_NORM, layer);
    s->in[0] = (int16_t)in;
    s->out[0] = (int16_t)out;
    s->eps = (float)m->config.norm_eps;
    return add(m, PART_VECTOR, layer, n, "weight", part_axis_whole((uint64_t)m->config.hidden), part_axis_whole(1), &s->weight[0], e);
}

static void add_rope(struct part_model *m, int layer, int x, int table, int n_heads)
{
    struct part_step *s = part_add_step(m, &m->main, PART_ROPE, layer);
    s->in[0] = s->out[0] = (int16_t)x;
    s->in[1] = (int16_t)table;
    s->n_heads = (uint32_t)n_heads;
}

static enum st add_attention(struct part_model *m, int layer, const struct values *v, struct err *e)
{
    const struct model_config *c = &m->config;
    const uint32_t head_dim = (uint32_t)c->head_dim, group = (uint32_t)(c->n_heads / c->n_kv_heads);
    const struct part_axis q_rows = part_axis_cut(m->dim_heads, head_dim, 1, (uint64_t)c->n_heads * head_dim);
    const struct part_axis kv_rows = part_axis_cut(m->dim_heads, head_dim, group, (uint64_t)c->n_kv_heads * head_dim);
    const struct part_axis hidden = part_axis_whole((uint64_t)c->hidden);

    enum st st = add_norm(m, &m->main, layer, v->x, v->h, ATTENTION_NORM, e);
    if (st)
        return st;
    struct part_step *qkv = part_add_step(m, &m->main, PART_LINEAR, layer);
    qkv->in[0] = (int16_t)v->h;
    qkv->out[0] = (int16_t)v->q;
    qkv->out[1] = (int16_t)v->k;
    qkv->out[2] = (int16_t)v->v;
    st = add_parts(m, layer, (const struct names[]){Q, K, V}, QKV, 3, (const struct part_axis[]){q_rows, kv_rows, kv_rows}, hidden, v->qkv_bias, qkv, e);
    if (st)
        return st;
    add_rope(m, layer, v->q, v->rope, c->n_heads);
    add_rope(m, layer, v->k, v->rope, c->n_kv_heads);

    struct part_step *a = part_add_step(m, &m->main, PART_ATTENTION, layer);
    a->in[0] = (int16_t)v->q;
    a->in[1] = (int16_t)v->k;
    a->in[2] = (int16_t)v->v;
    a->out[0] = (int16_t)v->a;
    a->cache = (int16_t)part_add_cache(m, layer, (uint32_t)c->n_kv_heads, head_dim);
    if (ck_kind_of(m->ck) == CK_SAFETENSORS)
        m->caches[a->cache].module = base_arena_printf(&m->arena, "model.layers.%d.self_attn", layer);
    a->n_heads = (uint32_t)c->n_heads;
    a->head_group = group;
    a->scale = (float)c->attention_scale;

    struct part_step *o = part_add_step(m, &m->main, PART_LINEAR, layer);
    o->in[0] = (int16_t)v->a;
    o->out[0] = (int16_t)v->attention_part;
    st = add(m, PART_MATRIX, layer, O, "weight", hidden, q_rows, &o->weight[0], e);
    if (st)
        return st;
    return add_residual(m, layer, v->x, v->attention_part, m->dim_heads, O, v->o_bias, e);
}

static enum st add_ffn(struct part_model *m, int layer, const struct values *v, struct err *e)
{
    const struct model_config *c = &m->config;
    const struct part_axis ffn = part_axis_cut(m->dim_ffn, 1, 1, (uint64_t)c->ffn), hidden = part_axis_whole((uint64_t)c->hidden);
    enum st st = add_norm(m, &m->main, layer, v->x, v->h, FFN_NORM, e);
    if (st)
        return st;
    struct part_step *gate_up = part_add_step(m, &m->main, PART_LINEAR, layer);
    gate_up->in[0] = (int16_t)v->h;
    gate_up->out[0] = (int16_t)v->gate;
    gate_up->out[1] = (int16_t)v->up;
    st = add_parts(m, layer, (const struct names[]){GATE, UP}, GATE_UP, 2, (const struct part_axis[]){ffn, ffn}, hidden, v->gate_up_bias, gate_up, e);
    if (st)
        return st;
    struct part_step *act = part_add_step(m, &m->main, PART_GATE, layer);
    act->in[0] = (int16_t)v->gate;
    act->in[1] = (int16_t)v->up;
    act->out[0] = (int16_t)v->y;

    struct part_step *down = part_add_step(m, &m->main, PART_LINEAR, layer);
    down->in[0] = (int16_t)v->y;
    down->out[0] = (int16_t)v->ffn_part;
    st = add(m, PART_MATRIX, layer, DOWN, "weight", hidden, ffn, &down->weight[0], e);
    if (st)
        return st;
    return add_residual(m, layer, v->x, v->ffn_part, m->dim_ffn, DOWN, v->down_bias, e);
}

/* logit rows → logits → what the caller wants of them */
static enum st add_head(struct part_model *m, int32_t embedding, const struct values *v, struct err *e)
{
    const struct part_axis vocab = part_axis_cut(m->dim_vocab, 1, 1, (uint64_t)m->config.vocab);
    struct part_step *pick = part_add_step(m, &m->head, PART_PICK, -1);
    pick->in[0] = (int16_t)v->x;
    pick->out[0] = (int16_t)v->picked;
    enum st st = add_norm(m, &m->head, -1, v->picked, v->normed, FINAL_NORM, e);
    if (st)
        return st;
    struct part_step *logits = part_add_step(m, &m->head, PART_LINEAR, -1);
    logits->in[0] = (int16_t)v->normed;
    logits->out[0] = (int16_t)v->logits;
    if (m->config.tied_head)
        logits->weight[0] = embedding;
    else if ((st = add(m, PART_MATRIX, -1, HEAD, "weight", vocab, part_axis_whole((uint64_t)m->config.hidden), &logits->weight[0], e)))
        return st;
    struct part_step *score = part_add_step(m, &m->head, PART_SCORE, -1);
    score->in[0] = (int16_t)v->logits;
    score->out[0] = (int16_t)v->scores;
    struct part_step *sample = part_add_step(m, &m->head, PART_SAMPLE, -1);
    sample->in[0] = (int16_t)v->logits;
    sample->out[0] = (int16_t)v->samples;
    return ST_OK;
}

static enum st build(struct part_model *m, struct err *e)
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
        const struct ck_tensor *down = find(m, layer, DOWN, "weight", full);
        super_block |= down && !down->unsupported && kern_format(down->format)->super_block;
    }
    order_columns((uint64_t)c->ffn, super_block, &leaves);
    m->dim_ffn = part_add_dim(m, "ffn", &leaves);
    order_vocabulary((uint64_t)c->vocab, &leaves);
    m->dim_vocab = part_add_dim(m, "vocabulary", &leaves);

    /* values */
    const uint64_t hidden = (uint64_t)c->hidden, head_dim = (uint64_t)c->head_dim;
    const struct part_axis whole = part_axis_whole(hidden), ffn = part_axis_cut(m->dim_ffn, 1, 1, (uint64_t)c->ffn);
    const struct part_axis q = part_axis_cut(m->dim_heads, (uint32_t)head_dim, 1, (uint64_t)c->n_heads * head_dim);
    const struct part_axis kv = part_axis_cut(m->dim_heads, (uint32_t)head_dim, (uint32_t)(c->n_heads / c->n_kv_heads), (uint64_t)c->n_kv_heads * head_dim);
    struct values v = {
        .x = part_add_value(m, "x", PART_TOKENS, whole),
        .h = part_add_value(m, "h", PART_TOKENS, whole),
        .rope = part_add_value(m, "rope", PART_TOKENS, part_axis_whole((uint64_t)c->rope.rotary_dim)),
        .q = part_add_value(m, "q", PART_TOKENS, q),
        .k = part_add_value(m, "k", PART_TOKENS, kv),
        .v = part_add_value(m, "v", PART_TOKENS, kv),
        .a = part_add_value(m, "a", PART_TOKENS, q),
        .attention_part = part_add_partial(m, "o", hidden, m->dim_heads),
        .gate = part_add_value(m, "gate", PART_TOKENS, ffn),
        .up = part_add_value(m, "up", PART_TOKENS, ffn),
        .y = part_add_value(m, "y", PART_TOKENS, ffn),
        .ffn_part = part_add_partial(m, "down", hidden, m->dim_ffn),
        .picked = part_add_value(m, "picked", PART_LOGIT_ROWS, whole),
        .normed = part_add_value(m, "normed", PART_LOGIT_ROWS, whole),
        .logits = part_add_value(m, "logits", PART_LOGIT_ROWS, part_axis_cut(m->dim_vocab, 1, 1, (uint64_t)c->vocab)),
        .samples = part_add_value(m, "samples", PART_LOGIT_ROWS, part_axis_whole(1)),
        .scores = part_add_value(m, "scores", PART_LOGIT_ROWS, part_axis_whole(1)),
    };
    find_biases(m, &v);
    m->value_hidden = v.x;
    m->value_logits = v.logits;
    m->value_samples = v.samples;
    m->value_scores = v.scores;
    m->values[v.samples].element_bytes = PART_SAMPLE_BYTES;

    /* steps */
    struct part_step *embed = part_add_step(m, &m->main, PART_EMBED, -1);
    embed->out[0] = (int16_t)v.x;
    embed->scale = (float)c->embedding_scale;
    embed->dim = (int16_t)m->dim_vocab;
    st = add(m, PART_MATRIX, -1, EMBEDDING, "weight", part_axis_cut(m->dim_vocab, 1, 1, (uint64_t)c->vocab), whole, &embed->weight[0], e);
    if (st)
        return st;
    const int32_t embedding = embed->weight[0];
    part_add_step(m, &m->main, PART_ROPE_TABLE, -1)->out[0] = (int16_t)v.rope;
    for (int layer = 0; layer < c->n_layers && !st; layer++) {
        st = add_attention(m, layer, &v, e);
        if (!st)
            st = add_ffn(m, layer, &v, e);
    }
    return st ? st : add_head(m, embedding, &v, e);
}

const struct part_family part_family_llama = {.name = "llama", .build = build};
