/* What describes the result: config.json with its quantization_config, or the keys of a GGUF. The three quantization_configs are what compressed-tensors 0.20 writes for its schemes
 * NVFP4A16, MXFP4A16 and FP8_DYNAMIC: FP4 without scales of activations, which would need a calibration. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/math.h"
#include "partition/convert_priv.h"

static const struct {
    const char *format, *weights, *activations;
} schemes[] = {
    [CONVERT_NVFP4] = {"nvfp4-pack-quantized",
                       "{\"num_bits\": 4, \"type\": \"float\", \"symmetric\": true, \"group_size\": 16, \"strategy\": \"tensor_group\", \"dynamic\": false, "
                       "\"scale_dtype\": \"torch.float8_e4m3fn\"}",
                       "null"},
    [CONVERT_MXFP4] = {"mxfp4-pack-quantized",
                       "{\"num_bits\": 4, \"type\": \"float\", \"symmetric\": true, \"group_size\": 32, \"strategy\": \"group\", \"dynamic\": false, \"scale_dtype\": \"torch.uint8\"}",
                       "null"},
    [CONVERT_FP8] = {"float-quantized",
                     "{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"group_size\": null, \"strategy\": \"channel\", \"dynamic\": false}",
                     "{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"group_size\": null, \"strategy\": \"token\", \"dynamic\": true}"},
};

static json_t *quantization_config(enum convert_format format, const char *const *ignored, size_t n_ignored)
{
    json_t *list = json_array();
    bool failed = !list;
    for (size_t i = 0; !failed && i < n_ignored; i++)
        failed = json_array_append_new(list, json_string(ignored[i])) != 0;
    json_t *weights = json_loads(schemes[format].weights, 0, NULL), *activations = json_loads(schemes[format].activations, JSON_DECODE_ANY, NULL);
    if (failed || !weights || !activations) {
        json_decref(list);
        json_decref(weights);
        json_decref(activations);
        return NULL;
    }
    return json_pack("{s:s, s:s, s:s, s:{s:{s:[s], s:o, s:o, s:n, s:n}}, s:o, s:n, s:n}", "quant_method", "compressed-tensors", "format", schemes[format].format, "quantization_status",
                     "compressed", "config_groups", "group_0", "targets", "Linear", "weights", weights, "input_activations", activations, "output_activations", "format", "ignore", list,
                     "kv_cache_scheme", "global_compression_ratio");
}

/* A Llama's config.json from what its GGUF says. */
static enum st llama_config(const struct checkpoint *ck, const struct model_config *c, const char *dtype, json_t **root, struct err *e)
{
    if (ck_find(ck, "rope_freqs.weight"))
        return err_set(e, ST_UNSUPPORTED, "%s: its rope frequencies are a tensor (rope_freqs.weight), which config.json cannot express; quantise from the original safetensors, or to q8_0",
                       ck_path(ck));
    if (c->attention_bias != c->output_bias)
        return err_set(e, ST_UNSUPPORTED, "%s: some of attention's projections have biases and others none, which config.json of a Llama cannot express", ck_path(ck));
    json_t *scaling = c->rope.kind == ROPE_LINEAR ? json_pack("{s:s, s:f}", "rope_type", "linear", "factor", c->rope.factor) : json_null();
    json_t *ends = json_array();
    for (int i = 0; ends && i < c->n_ends; i++)
        json_array_append_new(ends, json_integer(c->ends[i]));
    *root = json_pack("{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:f, s:f, s:o, s:b, s:b, s:b, s:s, s:o, s:s}", "architectures", "LlamaForCausalLM", "model_type", "llama", "hidden_size",
                      c->hidden, "intermediate_size", c->ffn, "num_hidden_layers", c->n_layers, "num_attention_heads", c->n_heads, "num_key_value_heads", c->n_kv_heads, "head_dim",
                      c->head_dim, "vocab_size", (json_int_t)c->vocab, "rms_norm_eps", c->norm_eps, "rope_theta", c->rope.theta, "rope_scaling", scaling, "tie_word_embeddings",
                      !ck_find(ck, "output.weight"), "attention_bias", c->attention_bias, "mlp_bias", c->mlp_bias, "hidden_act", "silu", "eos_token_id", ends, "torch_dtype", dtype);
    if (*root && c->max_context > 0)
        json_object_set_new(*root, "max_position_embeddings", json_integer(c->max_context));
    if (*root && c->opening_token >= 0)
        json_object_set_new(*root, "bos_token_id", json_integer(c->opening_token));
    return *root ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for config.json");
}

enum st convert_config_text(const struct checkpoint *ck, const struct convert_plan *p, const char *const *ignored, size_t n_ignored, const char *dtype, char **text, struct err *e)
{
    json_t *root = NULL;
    enum st st = ST_OK;
    if (ck_kind_of(ck) == CK_GGUF) {
        st = llama_config(ck, &p->model, dtype, &root, e);
    } else {
        const json_t *config = NULL;
        st = ck_json(ck, "config.json", &config, e);
        if (!st && !json_is_object(config))
            st = err_set(e, ST_NOT_FOUND, "%s: config.json is missing", ck_path(ck));
        if (!st && !(root = json_copy((json_t *)config)))
            st = err_set(e, ST_NO_MEMORY, "no memory for config.json");
    }
    if (!st)
        json_object_del(root, "compression_config"); /* as quantization_config was called once */
    if (!st && json_object_set_new(root, "quantization_config", quantization_config(p->format, ignored, n_ignored)) != 0)
        st = err_set(e, ST_NO_MEMORY, "no memory for config.json");
    if (!st && !(*text = json_dumps(root, JSON_INDENT(2))))
        st = err_set(e, ST_NO_MEMORY, "no memory for config.json");
    json_decref(root);
    return st;
}

/* ---- GGUF ---- */

enum { FILE_TYPE_MOSTLY_Q8_0 = 7, QUANTIZATION_VERSION = 2, DEFAULT_ALIGNMENT = 32, MAX_ALIGNMENT = 65536 };

static void put_common(struct gguf_head *h)
{
    gguf_put_u32(h, "general.file_type", FILE_TYPE_MOSTLY_Q8_0);
    gguf_put_u32(h, "general.quantization_version", QUANTIZATION_VERSION);
}

static void put_text(struct gguf_head *h, const char *key, const char *text) { gguf_put_string(h, key, text, strlen(text)); }

static void llama_keys(struct convert_plan *p)
{
    const struct model_config *c = &p->model;
    struct gguf_head *h = &p->head;
    put_text(h, "general.architecture", "llama");
    put_text(h, "general.type", "model");
    put_text(h, "general.name", c->name);
    put_common(h);
    gguf_put_u32(h, "llama.block_count", (uint32_t)c->n_layers);
    if (c->max_context > 0)
        gguf_put_u32(h, "llama.context_length", (uint32_t)c->max_context);
    gguf_put_u32(h, "llama.embedding_length", (uint32_t)c->hidden);
    gguf_put_u32(h, "llama.feed_forward_length", (uint32_t)c->ffn);
    gguf_put_u32(h, "llama.attention.head_count", (uint32_t)c->n_heads);
    gguf_put_u32(h, "llama.attention.head_count_kv", (uint32_t)c->n_kv_heads);
    gguf_put_u32(h, "llama.attention.key_length", (uint32_t)c->head_dim);
    gguf_put_u32(h, "llama.attention.value_length", (uint32_t)c->head_dim);
    gguf_put_f32(h, "llama.attention.layer_norm_rms_epsilon", (float)c->norm_eps);
    gguf_put_u32(h, "llama.rope.dimension_count", (uint32_t)c->rope.rotary_dim);
    gguf_put_f32(h, "llama.rope.freq_base", (float)c->rope.theta);
    gguf_put_u32(h, "llama.vocab_size", (uint32_t)c->vocab);
    if (c->rope.kind == ROPE_LINEAR) {
        put_text(h, "llama.rope.scaling.type", "linear");
        gguf_put_f32(h, "llama.rope.scaling.factor", (float)c->rope.factor);
    }
}

enum st convert_gguf_keys(const struct checkpoint *ck, struct convert_plan *p, struct err *e)
{
    p->alignment = DEFAULT_ALIGNMENT;
    if (ck_kind_of(ck) != CK_GGUF) {
        if (p->model.rope.kind != ROPE_PLAIN && p->model.rope.kind != ROPE_LINEAR && p->model.rope.kind != ROPE_LLAMA3)
            return err_set(e, ST_UNSUPPORTED, "%s: its rope scaling has no keys in GGUF", ck_path(ck));
        llama_keys(p);
        return ST_OK;
    }
    put_common(&p->head);
    for (size_t i = 0; i < ck_gguf_n_pairs(ck); i++) {
        const void *pair;
        size_t bytes;
        const char *key = ck_gguf_raw(ck, i, &pair, &bytes);
        struct gguf_value v;
        if (strcmp(key, "general.file_type") == 0 || strcmp(key, "general.quantization_version") == 0 || strncmp(key, "split.", 6) == 0)
            continue;
        if (strcmp(key, "general.alignment") == 0 && ck_gguf_get(ck, key, &v)) {
            if (v.u > MAX_ALIGNMENT)
                continue; /* holes of this size serve nobody */
            p->alignment = (uint32_t)v.u;
        }
        gguf_put_raw(&p->head, pair, bytes);
    }
    return ST_OK;
}
