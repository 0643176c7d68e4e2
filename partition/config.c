/* config.json or GGUF keys → struct model_config: a family's reader (families.c) takes what is said; then the tensors have the last word. */
#include "partition/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "partition/cache.h"
#include "partition/config_priv.h"
#include "partition/quant.h"

#define MAX_GUESS ((uint64_t)1 << 30) /* bytes of a head that is compared with the embedding although nothing says that they are tied */

/* ---- end tokens ---- */

static enum st add_end(const struct config_reader *r, const char *key, int64_t id) {
    struct model_config *c = r->c;
    if (id < 0 || id >= c->vocab) {
        LOG_WARNING_ONCE("part", "%s: %s: %lld is no token of this vocabulary; left out", r->where, key, (long long)id);
        return ST_OK;
    }
    for (int i = 0; i < c->n_ends; i++)
        if (c->ends[i] == id) return ST_OK;
    if (c->n_ends == (int)(sizeof c->ends / sizeof c->ends[0]))
        return err_set(r->e, ST_UNSUPPORTED, "%s: %s: more than %zu end tokens", r->where, key, sizeof c->ends / sizeof c->ends[0]);
    c->ends[c->n_ends++] = (int32_t)id;
    return ST_OK;
}

/* A number, a list of numbers, or nothing. */
static enum st add_ends(const struct config_reader *r, const json_t *value, const char *file) {
    if (!value || json_is_null(value)) return ST_OK;
    if (json_is_integer(value)) return add_end(r, "eos_token_id", json_integer_value(value));
    if (!json_is_array(value)) return err_set(r->e, ST_INVALID, "%s: %s: eos_token_id is neither a number nor a list of numbers", r->where, file);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *one = json_array_get(value, i);
        if (!json_is_integer(one)) return err_set(r->e, ST_INVALID, "%s: %s: eos_token_id[%zu] is not a number", r->where, file, i);
        enum st st = add_end(r, "eos_token_id", json_integer_value(one));
        if (st != ST_OK) return st;
    }
    return ST_OK;
}

static void open_with(const struct config_reader *r, int64_t id) {
    if (r->c->opening_token < 0 && id >= 0 && id < r->c->vocab) r->c->opening_token = (int32_t)id;
}

/* The union of what the files beside each other say: real ones differ, and whoever reads one only runs on past the end of a turn. */
static enum st tokens_hub(const struct config_reader *r, const json_t *config) {
    const json_t *generation;
    enum st st = ck_json(r->ck, "generation_config.json", &generation, r->e);
    if (st != ST_OK) return st;
    const json_t *files[] = {config, r->root, json_is_object(generation) ? generation : NULL};
    static const char *const names[] = {"config.json", "config.json", "generation_config.json"};
    for (int i = 0; i < 3; i++) {
        if (!files[i] || (i == 1 && files[1] == files[0])) continue;
        if ((st = add_ends(r, json_object_get(files[i], "eos_token_id"), names[i])) != ST_OK) return st;
        const json_t *opening = json_object_get(files[i], "bos_token_id");
        if (json_is_integer(opening)) open_with(r, json_integer_value(opening));
    }
    return ST_OK;
}

static enum st tokens_gguf(const struct config_reader *r) {
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    struct gguf_value v;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        if (!ck_gguf_get(r->ck, ends[i], &v)) continue;
        if (v.kind != GGUF_UINT && v.kind != GGUF_INT) return err_set(r->e, ST_INVALID, "%s: %s is not a number", r->where, ends[i]);
        enum st st = add_end(r, ends[i], v.kind == GGUF_INT ? v.i : v.u > INT64_MAX ? INT64_MAX : (int64_t)v.u);
        if (st != ST_OK) return st;
    }
    if (ck_gguf_get(r->ck, "tokenizer.ggml.bos_token_id", &v) && v.kind == GGUF_UINT && v.u <= INT32_MAX) open_with(r, (int64_t)v.u);
    return ST_OK;
}

/* ---- what the tensors say ---- */

struct names {
    const char *hub, *gguf;
};

static const struct ck_tensor *layer_tensor(const struct config_reader *r, int layer, struct names n) {
    char full[160];
    snprintf(full, sizeof full, ck_kind_of(r->ck) == CK_GGUF ? "blk.%d.%s" : "model.layers.%d.%s", layer,
             ck_kind_of(r->ck) == CK_GGUF ? n.gguf : n.hub);
    return ck_find(r->ck, full);
}

/* Of a matrix: n names its module. */
static const struct ck_tensor *layer_codes(const struct config_reader *r, int layer, struct names n) {
    char full[160];
    snprintf(full, sizeof full, ck_kind_of(r->ck) == CK_GGUF ? "blk.%d.%s" : "model.layers.%d.%s", layer,
             ck_kind_of(r->ck) == CK_GGUF ? n.gguf : n.hub);
    return quant_codes(r->ck, full);
}

static bool any_layer(const struct config_reader *r, struct names n) {
    for (int i = 0; i < r->c->n_layers; i++)
        if (layer_tensor(r, i, n)) return true;
    return false;
}

static void check_flag(const struct config_reader *r, const char *key, bool flag, bool there) {
    if (ck_kind_of(r->ck) == CK_GGUF || flag == there) return; /* GGUF has no such flags */
    LOG_WARNING_ONCE("part", "%s: %s is %s, but the files hold %s tensors; the tensors decide", r->where, key, flag ? "true" : "false",
                     there ? "such" : "no such");
}

static enum st check_embedding(const struct config_reader *r) {
    struct model_config *c = r->c;
    bool gguf = ck_kind_of(r->ck) == CK_GGUF;
    const char *name = gguf ? "token_embd.weight" : "model.embed_tokens.weight", *head_name = gguf ? "output.weight" : "lm_head.weight";
    const struct ck_tensor *embedding = ck_find(r->ck, name), *head = quant_codes(r->ck, gguf ? "output" : "lm_head");
    if (!embedding) return err_set(r->e, ST_NOT_FOUND, "%s: tensor %s is missing", ck_path(r->ck), name);
    if (embedding->n_dims != 2 || embedding->dims[1] != (uint64_t)c->hidden || embedding->dims[0] < 1 || embedding->dims[0] > INT32_MAX)
        return err_set(r->e, ST_INVALID, "%s: tensor %s is %llu × %llu, but the hidden size is %d", ck_path(r->ck), name,
                       (unsigned long long)embedding->dims[0], (unsigned long long)(embedding->n_dims > 1 ? embedding->dims[1] : 1), c->hidden);
    if (c->vocab && c->vocab != (int64_t)embedding->dims[0])
        LOG_WARNING_ONCE("part", "%s: vocab_size is %lld, but the embedding has %llu rows, which are taken", r->where, (long long)c->vocab,
                         (unsigned long long)embedding->dims[0]);
    c->vocab = (int64_t)embedding->dims[0];

    if (!head) {
        if (r->tie_flagged && !r->tie_flag)
            LOG_WARNING_ONCE("part", "%s: tie_word_embeddings is false, but there is no %s; the embedding is the head", r->where, head_name);
        c->tied_head = true;
        return ST_OK;
    }
    if (head->raw != CK_RAW_NONE) { /* its own shape is the scheme's affair */
        if (quant_rows(r->ck, head) != embedding->dims[0])
            return err_set(r->e, ST_INVALID, "%s: tensor %s is the head of %llu tokens, but the embedding has %llu", ck_path(r->ck), head->name,
                           (unsigned long long)quant_rows(r->ck, head), (unsigned long long)embedding->dims[0]);
    } else if (head->n_dims != 2 || head->dims[0] != embedding->dims[0] || head->dims[1] != embedding->dims[1])
        return err_set(r->e, ST_INVALID, "%s: tensor %s is not of the embedding's shape %llu × %llu", ck_path(r->ck), head_name,
                       (unsigned long long)embedding->dims[0], (unsigned long long)embedding->dims[1]);
    /* A comparison ends at the first difference, so only a head that is a copy is read to its end. Gigabytes are, only where the flag claims that it is one: planning a 405B header
     * takes milliseconds, and a head of its own is never wrong. */
    bool comparable = !head->unsupported && !embedding->unsupported && head->format == embedding->format;
    bool same = false;
    if (comparable && (r->tie_flag || head->bytes <= MAX_GUESS)) {
        enum st st = ck_same_bytes(r->ck, embedding, head, &same, r->e);
        if (st != ST_OK) return st;
    }
    c->tied_head = same;
    if (r->tie_flag && !same)
        LOG_WARNING_ONCE("part", "%s: tie_word_embeddings is true, but %s is in the file and differs from the embedding; the head in the file is used",
                         r->where, head_name);
    return ST_OK;
}

/* Sizes that a tensor's rows tell better than a key does. */
static enum st check_layers(const struct config_reader *r) {
    static const struct names Q = {"self_attn.q_proj", "attn_q"}, K = {"self_attn.k_proj", "attn_k"}, GATE = {"mlp.gate_proj", "ffn_gate"};
    static const struct names NORM = {"input_layernorm.weight", "attn_norm.weight"};
    struct model_config *c = r->c;
    const struct ck_tensor *q = layer_codes(r, 0, Q), *k = layer_codes(r, 0, K), *gate = layer_codes(r, 0, GATE);
    const uint64_t q_rows = q ? quant_rows(r->ck, q) : 0, k_rows = k ? quant_rows(r->ck, k) : 0, gate_rows = gate ? quant_rows(r->ck, gate) : 0;
    uint64_t heads = (uint64_t)c->n_heads, kv_heads = (uint64_t)c->n_kv_heads;
    if (heads % kv_heads)
        return err_set(r->e, ST_INVALID, "%s: %d heads cannot share %d key-value heads evenly", r->where, c->n_heads, c->n_kv_heads);
    if (q && k && q->n_dims == 2 && k->n_dims == 2) {
        uint64_t rows = q_rows;
        if (rows % heads || k_rows != rows / heads * kv_heads || rows == 0)
            return err_set(r->e, ST_INVALID, "%s: tensors %s (%llu rows) and %s (%llu rows) do not fit %d heads over %d key-value heads",
                           ck_path(r->ck), q->name, (unsigned long long)rows, k->name, (unsigned long long)k_rows, c->n_heads, c->n_kv_heads);
        if (rows / heads != (uint64_t)c->head_dim) {
            LOG_WARNING_ONCE("part", "%s: a head should have %d dimensions, but has %llu in tensor %s, which are taken", r->where, c->head_dim,
                             (unsigned long long)(rows / heads), q->name);
            if (rows / heads > CONFIG_MAX_SIZE)
                return err_set(r->e, ST_INVALID, "%s: tensor %s: a head has %llu dimensions", ck_path(r->ck), q->name,
                               (unsigned long long)(rows / heads));
            c->head_dim = (int)(rows / heads);
        }
    }
    if ((uint64_t)c->head_dim * heads > INT32_MAX)
        return err_set(r->e, ST_INVALID, "%s: %d heads of %d dimensions are too many", r->where, c->n_heads, c->head_dim);
    if (c->head_dim < 1)
        return err_set(r->e, ST_INVALID, "%s: %d heads in a hidden size of %d, and nothing says how large a head is", r->where, c->n_heads,
                       c->hidden);
    if (gate && gate->n_dims == 2 && gate_rows != (uint64_t)c->ffn) {
        if (gate_rows < 1 || gate_rows > CONFIG_MAX_SIZE)
            return err_set(r->e, ST_INVALID, "%s: tensor %s has %llu rows", ck_path(r->ck), gate->name, (unsigned long long)gate_rows);
        LOG_WARNING_ONCE("part", "%s: the intermediate size is given as %d, but tensor %s has %llu rows, which are taken", r->where, c->ffn, gate->name,
                         (unsigned long long)gate_rows);
        c->ffn = (int)gate_rows;
    }
    if (r->n_more_layers && layer_tensor(r, c->n_layers, NORM))
        LOG_INFORM("part", "%s: layer %d on, for several tokens at once, is not used", r->where, c->n_layers);
    if (layer_tensor(r, c->n_layers + r->n_more_layers, NORM))
        LOG_WARNING_ONCE("part", "%s: %d layers are named, but the files hold more; the first %d are used", r->where, c->n_layers, c->n_layers);

    static const struct names Q_BIAS = {"self_attn.q_proj.bias", "attn_q.bias"}, K_BIAS = {"self_attn.k_proj.bias", "attn_k.bias"},
                              V_BIAS = {"self_attn.v_proj.bias", "attn_v.bias"};
    static const struct names QKV_BIAS = {"self_attn.qkv_proj.bias", "attn_qkv.bias"}, O_BIAS = {"self_attn.o_proj.bias", "attn_output.bias"};
    static const struct names GATE_BIAS = {"mlp.gate_proj.bias", "ffn_gate.bias"}, UP_BIAS = {"mlp.up_proj.bias", "ffn_up.bias"},
                              DOWN_BIAS = {"mlp.down_proj.bias", "ffn_down.bias"};
    bool qkv_bias = any_layer(r, Q_BIAS) || any_layer(r, K_BIAS) || any_layer(r, V_BIAS) || any_layer(r, QKV_BIAS), o_bias = any_layer(r, O_BIAS);
    bool mlp_bias = any_layer(r, GATE_BIAS) || any_layer(r, UP_BIAS) || any_layer(r, DOWN_BIAS);
    check_flag(r, "attention_bias", c->attention_bias, qkv_bias || o_bias);
    check_flag(r, "mlp_bias", c->mlp_bias, mlp_bias);
    c->attention_bias = qkv_bias;
    c->output_bias = o_bias;
    c->mlp_bias = mlp_bias;
    return ST_OK;
}

/* ---- a name for people ---- */

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static const char *clean(char *name) {
    if (name)
        for (char *p = name; *p; p++)
            if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    return name;
}

static const char *name_of(const struct config_reader *r) {
    struct gguf_string general;
    if (config_gguf_string(r, "general.name", &general) && general.bytes)
        return clean(base_arena_strndup(r->arena, general.data, general.bytes < 200 ? general.bytes : 200));
    const char *given = json_string_value(json_object_get(r->root, "_name_or_path"));
    if (given && *last_part(given) && *last_part(given) != '.') return clean(base_arena_strndup(r->arena, last_part(given), 200));
    /* …/models--ORG--NAME/snapshots/COMMIT */
    const char *cached = strstr(ck_path(r->ck), "/models--"), *name = cached ? strstr(cached + 9, "--") : NULL;
    if (name && strchr(name, '/')) return base_arena_strndup(r->arena, name + 2, (size_t)(strchr(name, '/') - name) - 2);
    return clean(base_arena_strdup(r->arena, last_part(ck_path(r->ck))));
}

/* ---- all together ---- */

enum st part_config_read(const struct checkpoint *ck, struct arena *arena, struct model_config *config, struct err *e) {
    struct model_config c = {.embedding_scale = 1, .opening_token = -1, .moe = {.scale = 1, .n_groups = 1, .k_groups = 1}};
    struct config_reader r = {.ck = ck, .arena = arena, .c = &c, .e = e, .where = ck_path(ck)};
    const struct config_family *family = NULL;
    const bool gguf = ck_kind_of(ck) == CK_GGUF;
    enum st st;
    if (gguf) {
        if ((st = config_family_gguf(&r, &family)) != ST_OK || (st = family->gguf(&r)) != ST_OK) return st;
    } else {
        r.where = base_arena_printf(arena, "%s/config.json", ck_path(ck));
        if (!r.where) return err_set(e, ST_NO_MEMORY, "%s: no memory", ck_path(ck));
        if ((st = ck_json(ck, "config.json", &r.root, e)) != ST_OK) return st;
        if (!r.root) return err_set(e, ST_NOT_FOUND, "%s: no such file", r.where);
        if (!json_is_object(r.root)) return err_set(e, ST_INVALID, "%s: not an object", r.where);
        if ((st = config_family_hub(&r, &family)) != ST_OK) return st;
        if ((st = quant_read(ck, r.root, arena, &c.quant, e)) != ST_OK || (st = part_cache_declared(ck, r.root, &c.fp8_cache, e)) != ST_OK) return st;
        if ((st = family->hub(&r)) != ST_OK) return st;
    }
    if (!c.family) c.family = family->name;
    if (!((float)c.norm_eps > 0) || c.norm_eps > 1) return err_set(e, ST_INVALID, "%s: a norm's epsilon of %g is outside 0 … 1", r.where, c.norm_eps);
    c.norm_eps = (double)(float)c.norm_eps; /* GGUF stores F32 and transformers computes in it: the same model, the same bits */
    if ((st = check_embedding(&r)) != ST_OK || (st = check_layers(&r)) != ST_OK ||
        (st = gguf ? family->rope_gguf(&r) : family->rope_hub(&r)) != ST_OK || (st = gguf ? tokens_gguf(&r) : tokens_hub(&r, r.root)) != ST_OK)
        return st;
    if (c.attention_scale == 0) c.attention_scale = 1 / sqrt((double)c.head_dim); /* sqrt is exact to the last bit everywhere */
    if (!((float)c.attention_scale > 0) || !isfinite((float)c.attention_scale))
        return err_set(e, ST_INVALID, "%s: an attention scale of %g", r.where, c.attention_scale);
    c.name = name_of(&r);
    if (!c.name) return err_set(e, ST_NO_MEMORY, "%s: no memory", r.where);
    *config = c;
    return ST_OK;
}
