/* Plans of random small models: the bytes seed a shape (heads, KV heads, formats, biases, fused or not, experts and which layers have them), a split, and one change to the finished plan. Every plan is accepted by the
 * auditor and comes out the same twice; every changed one is refused. Absurd options are an error. */
#include "base/rng.h"
#include "partition/plan.h"
#include "tests/fuzz/ck_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* ---- a GGUF in memory ----------------------------------------------------------------------------------------------------------------------------------- */

struct plan_bytes {
    unsigned char *data;
    size_t n, capacity;
};

static void plan_put(struct plan_bytes *b, const void *data, size_t n)
{
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n);
        b->data = realloc(b->data, b->capacity);
        BASE_ASSERT(b->data != NULL);
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
}
static void plan_put_u32(struct plan_bytes *b, uint32_t v) { plan_put(b, &v, sizeof v); }
static void plan_put_u64(struct plan_bytes *b, uint64_t v) { plan_put(b, &v, sizeof v); }
static void plan_put_text(struct plan_bytes *b, const char *text)
{
    plan_put_u64(b, strlen(text));
    plan_put(b, text, strlen(text));
}
static void plan_put_key(struct plan_bytes *b, const char *key, uint32_t kind) /* 4: u32, 6: f32, 8: string */
{
    plan_put_text(b, key);
    plan_put_u32(b, kind);
}

struct plan_shape {
    uint32_t layers, hidden, heads, kv, dim, ffn, vocab;
    bool fused_qkv, fused_gate_up, tied, o_bias, down_bias, qkv_bias, stray;
    uint32_t experts, top_k, dense_layers; /* dense_layers: a bit for each layer that has none */
    enum part_moe moe;
};

struct plan_writer {
    struct base_rng *rng;
    struct plan_bytes info;
    uint64_t n, at;
};

/* columns 0: a vector. planes 0: no such axis. */
static void plan_planes(struct plan_writer *w, const char *name, uint64_t planes, uint64_t rows, uint64_t columns, enum format f)
{
    char full[96];
    snprintf(full, sizeof full, "%s.%s", name, columns == 0 && !strstr(name, "norm") ? "bias" : "weight");
    plan_put_text(&w->info, full);
    plan_put_u32(&w->info, (columns ? 2 : 1) + (planes ? 1 : 0));
    if (columns)
        plan_put_u64(&w->info, columns);
    plan_put_u64(&w->info, rows);
    if (planes)
        plan_put_u64(&w->info, planes);
    plan_put_u32(&w->info, (uint32_t)kern_format(f)->gguf_type);
    plan_put_u64(&w->info, w->at);
    w->at = (w->at + (planes ? planes : 1) * rows * kern_format_row_bytes(f, columns ? columns : 1) + 31) / 32 * 32;
    w->n++;
}

static void plan_tensor(struct plan_writer *w, const char *name, uint64_t rows, uint64_t columns, enum format f) { plan_planes(w, name, 0, rows, columns, f); }

/* In any format whose blocks fit the row. */
static enum format plan_format(struct plan_writer *w, uint64_t columns)
{
    enum format f;
    do
        f = (enum format)base_rng_below(w->rng, FMT_COUNT);
    while (columns % kern_format(f)->block_columns || kern_format(f)->gguf_type < 0);
    return f;
}

static void plan_matrix(struct plan_writer *w, const char *name, uint64_t rows, uint64_t columns) { plan_tensor(w, name, rows, columns, plan_format(w, columns)); }

static void plan_layer_tensor(struct plan_writer *w, uint32_t layer, const char *name, uint64_t rows, uint64_t columns, bool bias)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    if (columns)
        plan_matrix(w, full, rows, columns);
    if (columns == 0 || bias)
        plan_tensor(w, full, rows, 0, FMT_F32);
}

static void plan_layer_experts(struct plan_writer *w, const struct plan_shape *m, uint32_t layer)
{
    static const char *const names[] = {"gate", "up", "down"};
    char full[64];
    snprintf(full, sizeof full, "blk.%u.ffn_gate_inp", layer);
    plan_tensor(w, full, m->experts, m->hidden, FMT_F32);
    for (int k = 0; k < 3; k++) {
        const uint64_t rows = k < 2 ? m->ffn : m->hidden, columns = k < 2 ? m->hidden : m->ffn;
        snprintf(full, sizeof full, "blk.%u.ffn_%s_exps", layer, names[k]);
        plan_planes(w, full, m->experts, rows, columns, plan_format(w, columns));
        if (m->down_bias)
            plan_planes(w, full, m->experts, rows, 0, FMT_F32);
    }
}

static void plan_layer(struct plan_writer *w, const struct plan_shape *m, uint32_t layer)
{
    const uint64_t q = (uint64_t)m->heads * m->dim, kv = (uint64_t)m->kv * m->dim;
    plan_layer_tensor(w, layer, "attn_norm", m->hidden, 0, false);
    plan_layer_tensor(w, layer, "ffn_norm", m->hidden, 0, false);
    if (m->fused_qkv) {
        plan_layer_tensor(w, layer, "attn_qkv", q + 2 * kv, m->hidden, m->qkv_bias);
    } else {
        plan_layer_tensor(w, layer, "attn_q", q, m->hidden, m->qkv_bias);
        plan_layer_tensor(w, layer, "attn_k", kv, m->hidden, false);
        plan_layer_tensor(w, layer, "attn_v", kv, m->hidden, m->qkv_bias);
    }
    plan_layer_tensor(w, layer, "attn_output", m->hidden, q, m->o_bias);
    if (m->experts && !(m->dense_layers >> layer & 1)) {
        plan_layer_experts(w, m, layer);
        return;
    }
    if (m->fused_gate_up) {
        plan_layer_tensor(w, layer, "ffn_gate_up", 2 * (uint64_t)m->ffn, m->hidden, false);
    } else {
        plan_layer_tensor(w, layer, "ffn_gate", m->ffn, m->hidden, false);
        plan_layer_tensor(w, layer, "ffn_up", m->ffn, m->hidden, m->down_bias);
    }
    plan_layer_tensor(w, layer, "ffn_down", m->hidden, m->ffn, m->down_bias);
}

static struct plan_bytes plan_image(const struct plan_shape *m, struct base_rng *rng)
{
    struct plan_writer w = {.rng = rng};
    plan_matrix(&w, "token_embd", m->vocab, m->hidden);
    plan_tensor(&w, "output_norm", m->hidden, 0, FMT_F32);
    if (!m->tied)
        plan_matrix(&w, "output", m->vocab, m->hidden);
    if (m->stray)
        plan_matrix(&w, "stray", 3, 32);
    for (uint32_t layer = 0; layer < m->layers; layer++)
        plan_layer(&w, m, layer);
    const struct {
        const char *key;
        uint32_t value;
    } keys[] = {{"llama.block_count", m->layers},          {"llama.embedding_length", m->hidden},       {"llama.attention.head_count", m->heads},   {"llama.attention.head_count_kv", m->kv},
                {"llama.attention.key_length", m->dim},    {"llama.attention.value_length", m->dim},    {"llama.feed_forward_length", m->ffn},      {"llama.rope.dimension_count", m->dim}};
    struct plan_bytes b = {0};
    plan_put(&b, "GGUF", 4);
    plan_put_u32(&b, 3);
    plan_put_u64(&b, w.n);
    plan_put_u64(&b, sizeof keys / sizeof *keys + (m->experts ? 4 : 2));
    plan_put_key(&b, "general.architecture", 8);
    plan_put_text(&b, "llama");
    plan_put_key(&b, "llama.attention.layer_norm_rms_epsilon", 6);
    plan_put(&b, &(float){1e-5F}, sizeof(float));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        plan_put_key(&b, keys[i].key, 4);
        plan_put_u32(&b, keys[i].value);
    }
    if (m->experts) {
        plan_put_key(&b, "llama.expert_count", 4);
        plan_put_u32(&b, m->experts);
        plan_put_key(&b, "llama.expert_used_count", 4);
        plan_put_u32(&b, m->top_k);
    }
    plan_put(&b, w.info.data, w.info.n);
    free(w.info.data);
    const size_t total = (b.n + 31) / 32 * 32 + w.at;
    b.data = realloc(b.data, total);
    BASE_ASSERT(b.data != NULL);
    memset(b.data + b.n, 0, total - b.n);
    /* else the head would be taken for a copy of the embedding */
    if (!m->tied)
        memset(b.data + total - w.at, 1, 32);
    b.n = total;
    return b;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------------------------------------------------ */

static uint64_t plan_matrix_bytes(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w)
{
    (void)s, (void)m;
    return (w->rows.end - w->rows.begin) * (w->columns.end - w->columns.begin) * 4;
}
static uint64_t plan_kv_bytes(const struct part_sizes *s, const struct part_cache *c) { return 2ull * s->kv_block_tokens * c->n_kv_heads * c->head_dim; }
static uint64_t plan_scratch_bytes(const struct part_sizes *s, const struct part_model *m)
{
    (void)s, (void)m;
    return 4096;
}
static uint64_t plan_comm_bytes(const struct part_sizes *s, int n_ranks, uint64_t max_exchange_bytes)
{
    (void)s;
    return (uint64_t)n_ranks * max_exchange_bytes;
}
static const struct part_sizes plan_sizes = {
    .matrix_bytes = plan_matrix_bytes, .kv_block_bytes = plan_kv_bytes, .scratch_bytes = plan_scratch_bytes, .comm_bytes = plan_comm_bytes, .kv_block_tokens = 16};

/* ---- one change -------------------------------------------------------------------------------------------------------------------------------------------- */

/* Changes one number of one rank; false: this one may differ, or is not there. */
static bool plan_tamper(struct part_plan *plan, struct base_rng *rng)
{
    struct part_model *m = plan->ranks[base_rng_below(rng, (uint32_t)plan->options.n_ranks)];
    const uint64_t by = base_rng_below(rng, 4) ? 1 + base_rng_below(rng, 3) : (uint64_t)0 - 1 - base_rng_below(rng, 70);
    struct part_weight *w = &m->weights[base_rng_below(rng, (uint32_t)m->n_weights)];
    struct part_value *v = &m->values[base_rng_below(rng, (uint32_t)m->n_values)];
    struct part_program *p = base_rng_below(rng, 4) ? &m->main : &m->head;
    struct part_step *s = &p->steps[base_rng_below(rng, (uint32_t)p->n_steps)], *t = &p->steps[base_rng_below(rng, (uint32_t)p->n_steps)];
    const bool empty = w->slices[0].count[0] == 0, attention = s->op == PART_ATTENTION;
    switch (base_rng_below(rng, 37)) {
    case 0: w->rows.begin += by; return true;
    case 1: w->rows.end += by; return true;
    case 2: w->columns.begin += by; return w->kind == PART_MATRIX;
    case 3: w->columns.end += by; return w->kind == PART_MATRIX;
    case 4: w->slices[0].offset += by; return !empty;
    case 5: w->slices[0].count[0] += by; return true;
    case 6: w->slices[0].stride[0] += by; return !empty;
    case 7: w->slices[0].run_bytes += by; return true;
    case 8: w->slice_bytes += by; return true;
    case 9: w->slices[0].first_column += by; return !empty;
    case 10: w->slices[0].file++; return !empty;
    case 11: w->first_row += by; return true;
    case 12: v->width += by; return true;
    case 13: v->n_vectors += (uint32_t)by; return true;
    case 14: v->partial = !v->partial; return true;
    case 15: s->layer = (int16_t)(s->layer + 1); return true;
    case 16: s->dim = (int16_t)(s->dim == 0 ? 1 : 0); return true;
    case 17: s->in[0] = (int16_t)(s->in[0] + 1); return true;
    case 18: s->out[0] = (int16_t)(s->out[0] + 1); return true;
    case 19: s->weight[0] = s->weight[0] + (base_rng_below(rng, 2) ? 1 : -1); return true;
    case 20: s->bias[0] = s->bias[0] == PART_NONE ? 0 : PART_NONE; return true;
    case 21: s->n_heads += (uint32_t)by; return attention || s->op == PART_ROPE;
    case 22: s->q_first += (uint32_t)by; return attention;
    case 23: s->kv_first += (uint32_t)by; return attention;
    case 24: m->caches[base_rng_below(rng, (uint32_t)m->n_caches)].n_kv_heads += (uint32_t)by; return true;
    case 25: p->n_steps--; return true;
    case 28: w->leaf_dim += (int)by; return true;
    case 29: w->leaves_apart = !w->leaves_apart; return true;
    case 30: w->exact = !w->exact; return true;
    case 31: w->owner_unit += by; return true;
    case 32: s->window += (uint32_t)by; return true;
    case 33: s->n_experts += (uint32_t)by; return true;
    case 34: s->expert_first += (uint32_t)by; return s->expert_end > 0;
    case 35: s->expert_end += (uint32_t)by; return s->expert_end > (uint32_t)by;
    case 36: v->follows = v->follows == PART_NONE ? 0 : PART_NONE; return true;
    case 26: {
        const struct part_step kept = *s;
        const bool differ = memcmp(s, t, sizeof *s) != 0;
        *s = *t;
        *t = kept;
        return differ;
    }
    default: {
        struct part_dim_cut *c = &plan->cut.dims[base_rng_below(rng, (uint32_t)plan->whole->n_dims)];
        const uint32_t r = base_rng_below(rng, (uint32_t)plan->options.n_ranks);
        if (base_rng_below(rng, 2))
            c->hi[r]++;
        else
            c->lo[r]--;
        return true;
    }
    }
}

/* ---- one input ------------------------------------------------------------------------------------------------------------------------------------------------ */

static struct plan_shape plan_random_shape(struct base_rng *rng)
{
    static const uint32_t kvs[] = {1, 1, 2, 3, 5, 7, 8, 13, 32}, groups[] = {1, 1, 2, 3, 5, 7, 8}, dims[] = {2, 4, 8, 10, 16, 48};
    static const uint32_t ffns[] = {1, 31, 32, 33, 96, 100, 352, 640, 704, 1000}, vocabularies[] = {1, 2, 31, 32, 33, 131, 300};
    const uint32_t kv = kvs[base_rng_below(rng, 9)], experts = base_rng_below(rng, 3) ? 0 : 1 + base_rng_below(rng, 40);
    return (struct plan_shape){
        .layers = 1 + base_rng_below(rng, 3), .hidden = base_rng_below(rng, 2) ? 32 : 2 + base_rng_below(rng, 70), .heads = kv * groups[base_rng_below(rng, 7)], .kv = kv,
        .dim = dims[base_rng_below(rng, 6)], .ffn = ffns[base_rng_below(rng, 10)], .vocab = vocabularies[base_rng_below(rng, 7)],
        .fused_qkv = base_rng_below(rng, 3) == 0, .fused_gate_up = base_rng_below(rng, 3) == 0, .tied = base_rng_below(rng, 2), .o_bias = base_rng_below(rng, 3) == 0,
        .down_bias = base_rng_below(rng, 3) == 0, .qkv_bias = base_rng_below(rng, 3) == 0, .stray = base_rng_below(rng, 3) == 0,
        .experts = experts, .top_k = experts ? 1 + base_rng_below(rng, experts) : 0, .dense_layers = base_rng_below(rng, 8), .moe = base_rng_below(rng, 2) ? PART_MOE_EXPERT : PART_MOE_TENSOR,
    };
}

static void plan_check(const struct part_model *whole, struct base_rng *rng, const struct plan_shape *shape)
{
    uint32_t shares[ORDER_MAX_RANKS];
    struct part_plan_options o = {
        .n_ranks = base_rng_below(rng, 16) ? 1 + (int)base_rng_below(rng, 6) : ORDER_MAX_RANKS, .max_tokens = 1 + (int)base_rng_below(rng, 64), .max_rows = 1 + (int)base_rng_below(rng, 8),
        .context = 1 + base_rng_below(rng, 4096), .max_sequences = 1 + (int)base_rng_below(rng, 4)};
    if (base_rng_below(rng, 2)) {
        for (int r = 0; r < o.n_ranks; r++)
            shares[r] = base_rng_below(rng, 3) ? base_rng_below(rng, 9) : 0;
        shares[base_rng_below(rng, (uint32_t)o.n_ranks)] = base_rng_below(rng, 8) ? 1 : UINT32_MAX;
        o.shares = shares;
    }
    struct part_plan *plan = NULL, *again = NULL;
    struct err e = {""};
    BASE_ASSERT(part_plan_create(whole, &o, &plan_sizes, &plan, &e) == ST_OK && part_plan_create(whole, &o, &plan_sizes, &again, &e) == ST_OK);
    BASE_ASSERT(memcmp(&plan->digest, &again->digest, sizeof plan->digest) == 0);
    struct part_audit a;
    if (part_audit_plan(plan, &a, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    BASE_ASSERT(a.owned_bytes + a.unused_bytes == a.checkpoint_bytes && a.n_unused == (shape->stray ? 1 : 0) && a.n_exchanges == (o.n_ranks > 1 ? 2 * (int)shape->layers + 1 : 0));
    for (int i = 0; i < 4; i++)
        if (plan_tamper(plan, rng)) {
            if (part_audit_plan(plan, &a, &e) == ST_OK)
                abort();
            BASE_ASSERT(e.text[0]);
            break;
        } else {
            part_plan_destroy(plan);
            BASE_ASSERT(part_plan_create(whole, &o, &plan_sizes, &plan, &e) == ST_OK);
        }
    part_plan_destroy(plan);
    part_plan_destroy(again);

    static const int64_t absurd[] = {INT64_MIN, -1, 0, INT64_C(1) << 31, INT64_C(1) << 45, INT64_MAX};
    const int64_t number = absurd[base_rng_below(rng, 6)];
    switch (base_rng_below(rng, 6)) {
    case 0: o.n_ranks = number < 1 ? (int)(number % 2) : 65; break;
    case 1: o.max_tokens = number < 1 ? (int)(number % 2) : INT32_MAX; break;
    case 2: o.max_rows = number < 1 ? (int)(number % 2) : INT32_MAX; break;
    case 3: o.context = number; break;
    case 4: o.max_sequences = number < 1 ? (int)(number % 2) : INT32_MAX; break;
    default: o.kv_tokens = number; break;
    }
    o.shares = NULL;
    if (part_plan_create(whole, &o, &plan_sizes, &plan, &e) == ST_OK) /* a pool of 2^31 tokens can be counted, if not bought */
        part_plan_destroy(plan);
    else
        BASE_ASSERT(e.text[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct base_rng rng;
    base_rng_init(&rng, base_hash64(data, bytes, 1));
    const struct plan_shape shape = plan_random_shape(&rng);
    struct plan_bytes image = plan_image(&shape, &rng);
    struct checkpoint *ck = NULL;
    struct part_model *whole = NULL;
    struct err e = {""};
    if (ck_open_memory(CK_GGUF, image.data, image.n, &ck, &e) != ST_OK || part_model_create(ck, &(struct part_model_options){.moe = shape.moe}, &whole, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    plan_check(whole, &rng, &shape);
    part_model_destroy(whole);
    ck_close(ck);
    free(image.data);
    return 0;
}
