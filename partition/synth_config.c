/* What lies beside the tensors of a checkpoint that is made up: config.json, ModelOpt's hf_quant_config.json, a tokenizer. */
#include <stdlib.h>
#include <string.h>

#include "partition/synth_priv.h"

static enum st no_memory(struct err *e) { return err_set(e, ST_NO_MEMORY, "no memory for config.json"); }

/* ---- config.json -------------------------------------------------------------------------------------------------------------------------------------------- */

/* The numbers that follow from the shape. */
static void put_sizes(json_t *c, const struct preset *s)
{
    const struct preset_family *f = s->family;
    const struct {
        const char *key;
        int64_t value;
    } sizes[] = {
        {"num_hidden_layers", s->n_layers},
        {"hidden_size", s->hidden},
        {"num_attention_heads", s->n_heads},
        {"num_key_value_heads", s->n_kv_heads},
        {"head_dim", s->head_dim},
        {"vocab_size", s->vocab},
        {f->ffn_key, s->ffn},
        {f->experts_key, s->n_experts},
        {f->expert_ffn_key, s->expert_ffn},
        {s->n_experts ? "num_experts_per_tok" : NULL, s->n_chosen},
        {s->n_dense ? "first_k_dense_replace" : NULL, s->n_dense},
        {s->n_shared ? "n_shared_experts" : NULL, s->n_shared},
        {"bos_token_id", s->vocab - 1}, /* those of synth_tokenizer */
        {"eos_token_id", s->vocab - 2},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].key)
            json_object_set_new(c, sizes[i].key, json_integer(sizes[i].value));
    json_t *types = f->layer_types[0] ? json_array() : NULL;
    for (int i = 0; types && i < s->n_layers; i++)
        json_array_append_new(types, json_string(f->layer_types[i % 2]));
    if (types)
        json_object_set_new(c, "layer_types", types);
}

/* What stays BF16, by the names that a module of that kind has. */
static json_t *excluded(const struct preset *s)
{
    json_t *list = json_pack("[s]", "lm_head");
    for (const struct preset_tensor *t = s->family->tensors; list && t->name; t++) {
        const char *dot = strrchr(t->name, '.');
        if (t->place != PRESET_SPARSE || t->kind != PRESET_PLAIN || !dot)
            continue;
        for (int layer = s->n_dense; layer < s->n_layers; layer++)
            json_array_append_new(list, json_sprintf("model.layers.%d.%.*s", layer, (int)(dot - t->name), t->name));
    }
    return list;
}

/* ModelOpt's, as hf_quant_config.json has it under "quantization". */
static json_t *modelopt(const struct synth_plan *p)
{
    if (p->options.format == PRESET_NVFP4)
        return json_pack("{s:s, s:s, s:i, s:o}", "quant_algo", "NVFP4", "kv_cache_quant_algo", "FP8", "group_size", 16, "exclude_modules", excluded(&p->shape));
    return json_pack("{s:s, s:s, s:o}", "quant_algo", "FP8", "kv_cache_quant_algo", "FP8", "exclude_modules", excluded(&p->shape));
}

static json_t *row_scales(const struct preset *s)
{
    json_t *group = json_pack("{s:[s], s:{s:i, s:s, s:b, s:b, s:s}, s:{s:i, s:s, s:b, s:b, s:s}}", "targets", "Linear", "weights", "num_bits", 8, "type", "float", "symmetric", 1, "dynamic", 0, "strategy",
                              "channel", "input_activations", "num_bits", 8, "type", "float", "symmetric", 1, "dynamic", 1, "strategy", "token");
    return json_pack("{s:s, s:s, s:{s:o}, s:o, s:s}", "quant_method", "compressed-tensors", "format", "float-quantized", "config_groups", "group_0", group, "ignore", excluded(s), "quantization_status",
                     "compressed");
}

static json_t *quantization(const struct synth_plan *p)
{
    if (p->options.format == PRESET_MXFP4)
        return json_pack("{s:s, s:[s, s, s, s]}", "quant_method", "mxfp4", "modules_to_not_convert", "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head");
    if (synth_is_modelopt(p)) {
        json_t *c = modelopt(p);
        json_object_set_new(c, "quant_method", json_string("modelopt"));
        return c;
    }
    if (p->shape.fp8 == PRESET_FP8_ROW)
        return row_scales(&p->shape);
    return json_pack("{s:s, s:s, s:s, s:[i, i], s:o}", "quant_method", "fp8", "fmt", "e4m3", "activation_scheme", "dynamic", "weight_block_size", 128, 128, "modules_to_not_convert", excluded(&p->shape));
}

enum st synth_config(struct synth_plan *p, struct err *e)
{
    const struct preset *s = &p->shape;
    json_t *c = json_pack("{s:[s], s:s, s:s, s:s, s:b}", "architectures", s->family->architecture, "model_type", s->family->model_type, "hidden_act", "silu", "torch_dtype", "bfloat16",
                          "tie_word_embeddings", 0);
    char *members = NULL;
    if (!c || asprintf(&members, "{%s}", s->config) < 0) {
        json_decref(c);
        return no_memory(e);
    }
    put_sizes(c, s);
    json_t *more = json_loads(members, 0, NULL);
    free(members);
    BASE_ASSERT(more != NULL); /* presets.c */
    json_object_update(c, more);
    json_decref(more);
    if (p->options.format != PRESET_BF16)
        json_object_set_new(c, "quantization_config", quantization(p));
    p->config = json_dumps(c, JSON_INDENT(2));
    json_decref(c);
    if (!p->config)
        return no_memory(e);
    if (!synth_is_modelopt(p))
        return ST_OK;
    c = json_pack("{s:{s:s, s:s}, s:o}", "producer", "name", "modelopt", "version", "0.37.0", "quantization", modelopt(p));
    p->quant_config = c ? json_dumps(c, JSON_INDENT(2)) : NULL;
    json_decref(c);
    return p->quant_config ? ST_OK : no_memory(e);
}

/* ---- tokenizer ---------------------------------------------------------------------------------------------------------------------------------------------- */

/* GPT-2's alphabet of bytes: those that are printable stand for themselves, the others are U+0100 and up in order. Two bytes of UTF-8 at most. */
static void put_byte(unsigned byte, char text[3])
{
    const bool own = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    const unsigned code = own ? byte : 0x100 + (byte <= 0x20 ? byte : byte <= 0xa0 ? byte - 0x7f + 0x21 : 0x43);
    if (code < 0x80)
        memcpy(text, (char[]){(char)code, 0}, 2);
    else
        memcpy(text, (char[]){(char)(0xc0 | code >> 6), (char)(0x80 | (code & 0x3f)), 0}, 3);
}

enum st synth_tokenizer(int64_t vocab, char **tokenizer, char **config, struct err *e)
{
    static const char *const control[] = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}; /* the last of the vocabulary */
    enum { N_CONTROL = 3 };
    static const char chat[] = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    json_t *words = json_object(), *added = json_array();
    for (int64_t id = 0; words && id < vocab - N_CONTROL; id++) {
        char text[32];
        if (id < 256)
            put_byte((unsigned)id, text);
        else
            snprintf(text, sizeof text, "\u0120%lld", (long long)id); /* a blank in that alphabet; no merge leads there */
        json_object_set_new(words, text, json_integer(id));
    }
    for (int i = 0; added && i < N_CONTROL; i++)
        json_array_append_new(added, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)(vocab - N_CONTROL + i), "content", control[i], "single_word", 0, "lstrip", 0, "rstrip", 0,
                                               "normalized", 0, "special", 1));
    json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:n, s:{s:s, s:b, s:b, s:b}, s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:o, s:[]}}", "version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer",
                             "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1, "post_processor", "decoder", "type", "ByteLevel", "add_prefix_space", 0,
                             "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "vocab", words, "merges");
    json_t *beside = json_pack("{s:s, s:s, s:s, s:b}", "bos_token", "<|endoftext|>", "eos_token", "<|im_end|>", "chat_template", chat, "add_bos_token", 0);
    *tokenizer = root ? json_dumps(root, JSON_COMPACT) : NULL;
    *config = beside ? json_dumps(beside, JSON_COMPACT) : NULL;
    json_decref(root);
    json_decref(beside);
    if (*tokenizer && *config)
        return ST_OK;
    free(*tokenizer);
    free(*config);
    return err_set(e, ST_NO_MEMORY, "no memory for a tokenizer of %lld tokens", (long long)vocab);
}
