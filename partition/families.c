/* What each family's config.json or GGUF keys say: a family is a row of the table at the end, with one reader for each of the two.
 *
 * Sources: transformers' configuration_*.py for names and defaults; llama.cpp's gguf-py constants and llama-model.cpp for keys. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "partition/config_priv.h"

#define MAX_LAYERS 10000

static enum st missing(const struct config_reader *r, enum st st, const char *key) {
    return st == ST_NOT_FOUND ? err_set(r->e, ST_INVALID, "%s: %s is missing", r->where, key) : st;
}

/* ---- getters ---- */

static enum st gguf_missing(const struct config_reader *r, enum st st, const char *suffix) {
    return st == ST_NOT_FOUND ? err_set(r->e, ST_INVALID, "%s: %s.%s is missing", r->where, r->architecture, suffix) : st;
}

static enum st hub_int(const struct config_reader *r, const char *key, int64_t min, int64_t max, int *value) {
    int64_t wide;
    enum st st = base_json_i64(r->root, r->where, key, min, max, &wide, r->e);
    if (st == ST_OK) *value = (int)wide;
    return st;
}

static bool gguf_value(const struct config_reader *r, const char *suffix, char key[256], struct gguf_value *v) {
    int n = snprintf(key, 256, "%s.%s", r->architecture, suffix);
    return n > 0 && n < 256 && ck_gguf_get(r->ck, key, v);
}

enum st config_gguf_i64(const struct config_reader *r, const char *suffix, int64_t min, int64_t max, int64_t *value) {
    char key[256];
    struct gguf_value v;
    if (!gguf_value(r, suffix, key, &v)) return ST_NOT_FOUND;
    int64_t number;
    if (v.kind == GGUF_UINT && v.u <= INT64_MAX) {
        number = (int64_t)v.u;
    } else if (v.kind == GGUF_INT) {
        number = v.i;
    } else if (v.kind == GGUF_ARRAY && v.array.n && (v.array.element == GGUF_INT || v.array.element == GGUF_UINT)) {
        number = ck_gguf_array_int(r->ck, &v, 0);
        for (uint64_t i = 1; i < v.array.n; i++)
            if (ck_gguf_array_int(r->ck, &v, i) != number)
                return err_set(r->e, ST_UNSUPPORTED, "%s: %s differs from layer to layer, which this family does not support", r->where, key);
    } else {
        return err_set(r->e, ST_INVALID, "%s: %s is not a whole number", r->where, key);
    }
    if (number < min || number > max)
        return err_set(r->e, ST_INVALID, "%s: %s: %lld is outside %lld … %lld", r->where, key, (long long)number, (long long)min, (long long)max);
    *value = number;
    return ST_OK;
}

static enum st gguf_int(const struct config_reader *r, const char *suffix, int64_t min, int64_t max, int *value) {
    int64_t wide;
    enum st st = config_gguf_i64(r, suffix, min, max, &wide);
    if (st == ST_OK) *value = (int)wide;
    return st;
}

static enum st gguf_needs_int(const struct config_reader *r, const char *suffix, int64_t min, int64_t max, int *value) {
    return gguf_missing(r, gguf_int(r, suffix, min, max, value), suffix);
}

enum st config_gguf_f64(const struct config_reader *r, const char *suffix, double *value) {
    char key[256];
    struct gguf_value v;
    if (!gguf_value(r, suffix, key, &v)) return ST_NOT_FOUND;
    double number = v.kind == GGUF_FLOAT ? v.f : v.kind == GGUF_UINT ? (double)v.u : v.kind == GGUF_INT ? (double)v.i : NAN;
    if (!isfinite(number)) return err_set(r->e, ST_INVALID, "%s: %s is not a finite number", r->where, key);
    *value = number;
    return ST_OK;
}

bool config_gguf_string(const struct config_reader *r, const char *key, struct gguf_string *value) {
    struct gguf_value v;
    if (!ck_gguf_get(r->ck, key, &v) || v.kind != GGUF_STRING) return false;
    *value = v.string;
    return true;
}

/* ---- sizes that all decoders have ---- */

static enum st decoder_hub(struct config_reader *r) {
    struct model_config *c = r->c;
    enum st st;
    if ((st = missing(r, hub_int(r, "num_hidden_layers", 1, MAX_LAYERS, &c->n_layers), "num_hidden_layers")) != ST_OK ||
        (st = missing(r, hub_int(r, "hidden_size", 1, CONFIG_MAX_SIZE, &c->hidden), "hidden_size")) != ST_OK ||
        (st = missing(r, hub_int(r, "num_attention_heads", 1, CONFIG_MAX_SIZE, &c->n_heads), "num_attention_heads")) != ST_OK ||
        (st = missing(r, hub_int(r, "intermediate_size", 1, CONFIG_MAX_SIZE, &c->ffn), "intermediate_size")) != ST_OK)
        return st;
    c->n_kv_heads = c->n_heads;
    c->head_dim = c->hidden / c->n_heads;
    if (c->norm_eps == 0) c->norm_eps = 1e-6;
    const char *act = "silu";
    if ((st = base_json_optional(hub_int(r, "num_key_value_heads", 1, CONFIG_MAX_SIZE, &c->n_kv_heads))) != ST_OK ||
        (st = base_json_optional(hub_int(r, "head_dim", 1, CONFIG_MAX_SIZE, &c->head_dim))) != ST_OK ||
        (st = base_json_optional(base_json_i64(r->root, r->where, "vocab_size", 1, INT32_MAX, &c->vocab, r->e))) != ST_OK ||
        (st = base_json_optional(base_json_i64(r->root, r->where, "max_position_embeddings", 0, INT64_C(1) << 40, &c->max_context, r->e))) != ST_OK ||
        (st = base_json_optional(base_json_f64(r->root, r->where, "rms_norm_eps", &c->norm_eps, r->e))) != ST_OK ||
        (st = base_json_optional(base_json_str(r->root, r->where, "hidden_act", &act, r->e))) != ST_OK ||
        (st = base_json_optional(base_json_bool(r->root, r->where, "attention_bias", &c->attention_bias, r->e))) != ST_OK ||
        (st = base_json_optional(base_json_bool(r->root, r->where, "mlp_bias", &c->mlp_bias, r->e))) != ST_OK)
        return st;
    c->output_bias = c->attention_bias;
    st = base_json_bool(r->root, r->where, "tie_word_embeddings", &r->tie_flag, r->e);
    r->tie_flagged = st == ST_OK;
    if (base_json_optional(st) != ST_OK) return st;
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return err_set(r->e, ST_UNSUPPORTED, "%s: hidden_act: '%.64s' is not supported; known: silu", r->where, act);
    return ST_OK;
}

static enum st decoder_gguf(struct config_reader *r) {
    struct model_config *c = r->c;
    enum st st;
    int value_dim = 0;
    if ((st = gguf_needs_int(r, "block_count", 1, MAX_LAYERS, &c->n_layers)) != ST_OK ||
        (st = gguf_needs_int(r, "embedding_length", 1, CONFIG_MAX_SIZE, &c->hidden)) != ST_OK ||
        (st = gguf_needs_int(r, "attention.head_count", 1, CONFIG_MAX_SIZE, &c->n_heads)) != ST_OK ||
        (st = gguf_needs_int(r, "feed_forward_length", 1, CONFIG_MAX_SIZE, &c->ffn)) != ST_OK ||
        (st = gguf_missing(r, config_gguf_f64(r, "attention.layer_norm_rms_epsilon", &c->norm_eps), "attention.layer_norm_rms_epsilon")) != ST_OK)
        return st;
    c->n_kv_heads = c->n_heads;
    c->head_dim = c->hidden / c->n_heads;
    if ((st = base_json_optional(gguf_int(r, "attention.head_count_kv", 1, CONFIG_MAX_SIZE, &c->n_kv_heads))) != ST_OK ||
        (st = base_json_optional(gguf_int(r, "attention.key_length", 1, CONFIG_MAX_SIZE, &c->head_dim))) != ST_OK)
        return st;
    value_dim = c->head_dim;
    if ((st = base_json_optional(gguf_int(r, "attention.value_length", 1, CONFIG_MAX_SIZE, &value_dim))) != ST_OK ||
        (st = base_json_optional(config_gguf_i64(r, "vocab_size", 1, INT32_MAX, &c->vocab))) != ST_OK ||
        (st = base_json_optional(config_gguf_i64(r, "context_length", 0, INT64_C(1) << 40, &c->max_context))) != ST_OK ||
        (st = base_json_optional(config_gguf_f64(r, "attention.scale", &c->attention_scale))) != ST_OK)
        return st;
    if (value_dim != c->head_dim)
        return err_set(r->e, ST_UNSUPPORTED, "%s: %s.attention.value_length is %d where key_length is %d", r->where, r->architecture, value_dim, c->head_dim);
    return ST_OK;
}

/* ---- windows ---- */

/* Every layer sees `window` positions back where is_windowed says so. */
static enum st set_windows(struct config_reader *r, int window, bool (*is_windowed)(const struct config_reader *r, int layer)) {
    struct model_config *c = r->c;
    uint32_t *windows = base_arena_array(r->arena, (size_t)c->n_layers, sizeof *windows);
    if (!windows) return err_set(r->e, ST_NO_MEMORY, "%s: no memory for the windows of %d layers", r->where, c->n_layers);
    for (int i = 0; i < c->n_layers; i++) windows[i] = is_windowed(r, i) ? (uint32_t)window : 0;
    c->windows = windows;
    return ST_OK;
}

static bool every_layer(const struct config_reader *r, int layer) { (void)r, (void)layer; return true; }
static bool even_layers(const struct config_reader *r, int layer) { (void)r; return layer % 2 == 0; }
static bool as_listed(const struct config_reader *r, int layer) {
    return strcmp(json_string_value(json_array_get(json_object_get(r->root, "layer_types"), (size_t)layer)), "sliding_attention") == 0;
}

/* layer_types, where it is there, else is_windowed. use: where use_sliding_window is not there. */
static enum st windows_hub(struct config_reader *r, bool use, bool (*is_windowed)(const struct config_reader *r, int layer)) {
    int window = 0;
    const json_t *given = json_object_get(r->root, "sliding_window"), *types = json_object_get(r->root, "layer_types");
    enum st st;
    if ((st = base_json_optional(base_json_bool(r->root, r->where, "use_sliding_window", &use, r->e))) != ST_OK) return st;
    if (!use || !given || json_is_null(given)) return ST_OK;
    if ((st = hub_int(r, "sliding_window", 1, INT32_MAX, &window)) != ST_OK) return st;
    if (!types || json_is_null(types)) return set_windows(r, window, is_windowed);
    if (!json_is_array(types) || json_array_size(types) != (size_t)r->c->n_layers)
        return err_set(r->e, ST_INVALID, "%s: layer_types is no list of %d layers", r->where, r->c->n_layers);
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || (strcmp(type, "sliding_attention") != 0 && strcmp(type, "full_attention") != 0))
            return err_set(r->e, ST_UNSUPPORTED, "%s: layer_types[%zu]: '%.64s' is not supported; known: full_attention, sliding_attention", r->where, i, type ? type : "");
    }
    return set_windows(r, window, as_listed);
}

static enum st windows_gguf(struct config_reader *r, bool (*is_windowed)(const struct config_reader *r, int layer)) {
    int window = 0;
    const enum st st = base_json_optional(gguf_int(r, "attention.sliding_window", 0, INT32_MAX, &window));
    return st != ST_OK || window == 0 ? st : set_windows(r, window, is_windowed);
}

/* ---- experts ---- */

static enum st check_experts(const struct config_reader *r) {
    const struct moe_config *m = &r->c->moe;
    if (m->top_k > m->n_experts)
        return err_set(r->e, ST_INVALID, "%s: %d experts for each token, of %d", r->where, m->top_k, m->n_experts);
    if (m->n_experts % m->n_groups || m->k_groups > m->n_groups || m->top_k > m->k_groups * (m->n_experts / m->n_groups))
        return err_set(r->e, ST_INVALID, "%s: %d of %d experts cannot be chosen from %d of %d groups", r->where, m->top_k, m->n_experts, m->k_groups, m->n_groups);
    if (!isfinite((float)m->scale) || !((float)m->scale > 0))
        return err_set(r->e, ST_INVALID, "%s: weights of experts are scaled by %g", r->where, m->scale);
    return ST_OK;
}

/* keys: of the number of experts (two spellings), of those for each token, of the size of one. */
static enum st experts_hub(struct config_reader *r, const char *const n_keys[2], const char *k_key, const char *ffn_key) {
    struct moe_config *m = &r->c->moe;
    enum st st = hub_int(r, n_keys[0], 1, CONFIG_MAX_EXPERTS, &m->n_experts);
    if (st == ST_NOT_FOUND) st = hub_int(r, n_keys[1], 1, CONFIG_MAX_EXPERTS, &m->n_experts);
    if ((st = missing(r, st, n_keys[0])) != ST_OK || (st = missing(r, hub_int(r, k_key, 1, CONFIG_MAX_TOP_K, &m->top_k), k_key)) != ST_OK ||
        (st = missing(r, hub_int(r, ffn_key, 1, CONFIG_MAX_SIZE, &m->ffn), ffn_key)) != ST_OK ||
        (st = base_json_optional(base_json_bool(r->root, r->where, "norm_topk_prob", &m->renormalise, r->e))) != ST_OK ||
        (st = base_json_optional(base_json_f64(r->root, r->where, "routed_scaling_factor", &m->scale, r->e))) != ST_OK ||
        (st = base_json_optional(hub_int(r, "n_group", 1, CONFIG_MAX_EXPERTS, &m->n_groups))) != ST_OK ||
        (st = base_json_optional(hub_int(r, "topk_group", 1, CONFIG_MAX_EXPERTS, &m->k_groups))) != ST_OK)
        return st;
    return check_experts(r);
}

/* Keys that all architectures with experts have; 0 experts where there are none. */
static enum st experts_gguf(struct config_reader *r) {
    struct moe_config *m = &r->c->moe;
    enum st st = base_json_optional(gguf_int(r, "expert_count", 0, CONFIG_MAX_EXPERTS, &m->n_experts));
    if (st != ST_OK || m->n_experts == 0) return st;
    m->ffn = r->c->ffn;
    if ((st = gguf_needs_int(r, "expert_used_count", 1, CONFIG_MAX_TOP_K, &m->top_k)) != ST_OK ||
        (st = base_json_optional(gguf_int(r, "expert_feed_forward_length", 1, CONFIG_MAX_SIZE, &m->ffn))) != ST_OK ||
        (st = base_json_optional(config_gguf_f64(r, "expert_weights_scale", &m->scale))) != ST_OK)
        return st;
    return check_experts(r);
}

/* ---- the families ---- */

static enum st llama_gguf(struct config_reader *r) {
    enum st st = decoder_gguf(r);
    if (st != ST_OK || (st = windows_gguf(r, every_layer)) != ST_OK || (st = experts_gguf(r)) != ST_OK) return st;
    if (r->c->moe.n_experts) { /* Mixtral's files call themselves llama */
        r->c->family = "mixtral";
        r->c->moe.renormalise = true;
    }
    return ST_OK;
}

static enum st mixtral_hub(struct config_reader *r) {
    r->c->norm_eps = 1e-5;
    enum st st = decoder_hub(r);
    if (st != ST_OK || (st = windows_hub(r, true, every_layer)) != ST_OK) return st;
    st = experts_hub(r, (const char *const[]){"num_local_experts", "num_experts"}, "num_experts_per_tok", "intermediate_size");
    r->c->moe.renormalise = true;
    return st;
}

static bool late_layers(const struct config_reader *r, int layer) { return layer >= (int)json_integer_value(json_object_get(r->root, "max_window_layers")); }

static enum st qwen3_hub(struct config_reader *r) {
    int first = 0; /* late_layers asks again */
    enum st st = decoder_hub(r);
    if (st != ST_OK || (st = base_json_optional(hub_int(r, "max_window_layers", 0, INT32_MAX, &first))) != ST_OK) return st;
    return windows_hub(r, false, late_layers);
}

static enum st qwen3_moe_hub(struct config_reader *r) {
    enum st st = decoder_hub(r);
    if (st == ST_OK) st = windows_hub(r, false, every_layer);
    return st != ST_OK ? st : experts_hub(r, (const char *const[]){"num_experts", "num_local_experts"}, "num_experts_per_tok", "moe_intermediate_size");
}

static enum st qwen3_moe_gguf(struct config_reader *r) {
    enum st st = decoder_gguf(r);
    r->c->moe.renormalise = true; /* llama.cpp's reading: files have no key for it, and every published model does */
    return st != ST_OK ? st : experts_gguf(r);
}

static enum st gpt_oss_gate(struct config_reader *r) {
    struct model_config *c = r->c;
    c->gate = CONFIG_GATE_CLAMPED;
    c->gate_alpha = 1.702;
    c->gate_limit = 7;
    c->moe.router = CONFIG_ROUTER_TOPK_SOFTMAX;
    enum st st;
    if (r->root && ((st = base_json_optional(base_json_f64(r->root, r->where, "swiglu_alpha", &c->gate_alpha, r->e))) != ST_OK ||
                    (st = base_json_optional(base_json_f64(r->root, r->where, "swiglu_limit", &c->gate_limit, r->e))) != ST_OK))
        return st;
    return (float)c->gate_limit > 0 ? ST_OK : err_set(r->e, ST_INVALID, "%s: swiglu_limit: %g is not a positive number", r->where, c->gate_limit);
}

static enum st gpt_oss_hub(struct config_reader *r) {
    r->c->norm_eps = 1e-5;
    enum st st = decoder_hub(r);
    if (st != ST_OK || (st = gpt_oss_gate(r)) != ST_OK) return st;
    st = json_object_get(r->root, "sliding_window") ? windows_hub(r, true, even_layers) : set_windows(r, 128, even_layers);
    if (st != ST_OK) return st;
    return experts_hub(r, (const char *const[]){"num_local_experts", "num_experts"}, "num_experts_per_tok", "intermediate_size");
}

static enum st gpt_oss_gguf(struct config_reader *r) {
    enum st st = decoder_gguf(r);
    if (st != ST_OK || (st = gpt_oss_gate(r)) != ST_OK || (st = windows_gguf(r, even_layers)) != ST_OK) return st;
    return experts_gguf(r);
}

static enum st glm4_moe_hub(struct config_reader *r) {
    struct moe_config *m = &r->c->moe;
    r->c->norm_eps = 1e-5;
    enum st st = decoder_hub(r);
    m->router = CONFIG_ROUTER_SIGMOID;
    m->renormalise = true;
    int n_shared = 1;
    if (st == ST_OK) st = base_json_optional(hub_int(r, "num_nextn_predict_layers", 0, MAX_LAYERS, &r->n_more_layers));
    if (st != ST_OK || (st = base_json_optional(hub_int(r, "n_shared_experts", 0, CONFIG_MAX_TOP_K, &n_shared))) != ST_OK) return st;
    st = experts_hub(r, (const char *const[]){"n_routed_experts", "num_local_experts"}, "num_experts_per_tok", "moe_intermediate_size");
    if (st == ST_OK && (int64_t)n_shared * m->ffn > CONFIG_MAX_SIZE)
        return err_set(r->e, ST_INVALID, "%s: %d shared experts of %d are too many", r->where, n_shared, m->ffn);
    m->shared_ffn = st == ST_OK ? n_shared * m->ffn : 0; /* several are one of their size together */
    return st;
}

static bool windowed_qwen2_moe(const struct config_reader *r, int layer) { return layer % 2 == 0 && layer < (int)json_integer_value(json_object_get(r->root, "max_window_layers")); }

static enum st qwen2_moe_hub(struct config_reader *r) {
    int first = 28; /* windowed_qwen2_moe asks again */
    enum st st = decoder_hub(r);
    if (st != ST_OK || (st = base_json_optional(hub_int(r, "max_window_layers", 0, INT32_MAX, &first))) != ST_OK || (st = windows_hub(r, false, windowed_qwen2_moe)) != ST_OK) return st;
    r->c->moe.shared_ffn = 5632;
    r->c->attention_bias = true;
    if ((st = base_json_optional(base_json_bool(r->root, r->where, "qkv_bias", &r->c->attention_bias, r->e))) != ST_OK || (st = base_json_optional(hub_int(r, "shared_expert_intermediate_size", 1, CONFIG_MAX_SIZE, &r->c->moe.shared_ffn))) != ST_OK) return st;
    return experts_hub(r, (const char *const[]){"num_experts", "num_local_experts"}, "num_experts_per_tok", "moe_intermediate_size");
}

static enum st minimax_m2_hub(struct config_reader *r) {
    struct moe_config *m = &r->c->moe;
    const char *scoring = "sigmoid";
    enum st st = decoder_hub(r);
    m->router = CONFIG_ROUTER_SIGMOID;
    m->renormalise = true;
    if (st != ST_OK || (st = base_json_optional(base_json_str(r->root, r->where, "scoring_func", &scoring, r->e))) != ST_OK) return st;
    if (strcmp(scoring, "sigmoid") != 0) return err_set(r->e, ST_UNSUPPORTED, "%s: scoring_func: '%.64s' is not supported; known: sigmoid", r->where, scoring);
    return experts_hub(r, (const char *const[]){"num_local_experts", "num_experts"}, "num_experts_per_tok", "intermediate_size");
}

/* ---- ropes ---- */

static enum st rope_hub_1e4(struct config_reader *r) { return config_rope_hub(r, 10000, 1); }
static enum st rope_hub_1e6(struct config_reader *r) { return config_rope_hub(r, 1000000, 1); }
static enum st rope_hub_gpt_oss(struct config_reader *r) { return config_rope_hub(r, 150000, 1); }
static enum st rope_hub_half(struct config_reader *r) { return config_rope_hub(r, 10000, 0.5); }
static enum st rope_hub_minimax(struct config_reader *r) {
    int rotary = r->c->head_dim;
    const enum st st = base_json_optional(hub_int(r, "rotary_dim", 1, CONFIG_MAX_SIZE, &rotary));
    return st != ST_OK ? st : config_rope_hub(r, 5000000, (double)rotary / r->c->head_dim);
}
/* GGUF's llama: the converter has permuted the rows of q and k, so that pairs lie side by side. */
static enum st rope_gguf_pairs(struct config_reader *r) { return config_rope_gguf(r, true); }
static enum st rope_gguf_halves(struct config_reader *r) { return config_rope_gguf(r, false); }

/* ---- the table ---- */

static const struct config_family families[] = {
    {"llama", {"llama"}, {"LlamaForCausalLM"}, {"llama"}, decoder_hub, llama_gguf, rope_hub_1e4, rope_gguf_pairs},
    {"qwen3", {"qwen3"}, {"Qwen3ForCausalLM"}, {"qwen3"}, qwen3_hub, decoder_gguf, rope_hub_1e4, rope_gguf_halves},
    {"qwen3_moe", {"qwen3_moe"}, {"Qwen3MoeForCausalLM"}, {"qwen3moe"}, qwen3_moe_hub, qwen3_moe_gguf, rope_hub_1e4, rope_gguf_halves},
    {"qwen2_moe", {"qwen2_moe"}, {"Qwen2MoeForCausalLM"}, {NULL}, qwen2_moe_hub, NULL, rope_hub_1e4, NULL},
    {"mixtral", {"mixtral"}, {"MixtralForCausalLM"}, {NULL}, mixtral_hub, NULL, rope_hub_1e6, NULL},
    {"gpt_oss", {"gpt_oss"}, {"GptOssForCausalLM"}, {"gpt-oss"}, gpt_oss_hub, gpt_oss_gguf, rope_hub_gpt_oss, rope_gguf_halves},
    {"glm4_moe", {"glm4_moe"}, {"Glm4MoeForCausalLM"}, {NULL}, glm4_moe_hub, NULL, rope_hub_half, NULL},
    {"minimax_m2", {"minimax_m2"}, {"MiniMaxM2ForCausalLM"}, {NULL}, minimax_m2_hub, NULL, rope_hub_minimax, NULL},
};
#define N_FAMILIES (sizeof families / sizeof families[0])

static bool among(const char *const list[4], const char *text, size_t n) {
    for (int i = 0; i < 4 && list[i]; i++)
        if (strlen(list[i]) == n && memcmp(list[i], text, n) == 0) return true;
    return false;
}

static enum st unknown_family(const struct config_reader *r, const char *text, size_t n) {
    char known[256];
    size_t used = 0;
    for (size_t i = 0; i < N_FAMILIES && used < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", families[i].name);
    return err_set(r->e, ST_UNSUPPORTED, "%s: family %.*s is not supported yet; known: %s", r->where, (int)(n < 64 ? n : 64), text, known);
}

enum st config_family_hub(const struct config_reader *r, const struct config_family **family) {
    const char *type = NULL;
    enum st st = base_json_optional(base_json_str(r->root, r->where, "model_type", &type, r->e));
    if (st != ST_OK) return st;
    const json_t *list = json_object_get(r->root, "architectures");
    const char *architecture = json_string_value(json_array_get(list, 0));
    if (!type && !architecture) return err_set(r->e, ST_INVALID, "%s: neither model_type nor architectures names the family", r->where);
    for (size_t i = 0; i < N_FAMILIES; i++) {
        const struct config_family *f = &families[i];
        if (type ? !among(f->hub_types, type, strlen(type)) : !among(f->hub_architectures, architecture, strlen(architecture))) continue;
        if (architecture && !among(f->hub_architectures, architecture, strlen(architecture)))
            return unknown_family(r, architecture, strlen(architecture));
        *family = f;
        return ST_OK;
    }
    return type ? unknown_family(r, type, strlen(type)) : unknown_family(r, architecture, strlen(architecture));
}

enum st config_family_gguf(struct config_reader *r, const struct config_family **family) {
    struct gguf_string text;
    if (!config_gguf_string(r, "general.architecture", &text)) return err_set(r->e, ST_INVALID, "%s: general.architecture is missing", r->where);
    struct gguf_string type;
    if (config_gguf_string(r, "general.type", &type) && !(type.bytes == 5 && memcmp(type.data, "model", 5) == 0))
        return err_set(r->e, ST_UNSUPPORTED, "%s: general.type is '%.*s': not a model", r->where, (int)(type.bytes < 64 ? type.bytes : 64),
                       type.data);
    for (size_t i = 0; i < N_FAMILIES; i++) {
        if (!among(families[i].gguf_architectures, text.data, text.bytes)) continue;
        r->architecture = base_arena_strndup(r->arena, text.data, text.bytes);
        if (!r->architecture) return err_set(r->e, ST_NO_MEMORY, "%s: no memory", r->where);
        *family = &families[i];
        return ST_OK;
    }
    return unknown_family(r, text.data, text.bytes);
}

