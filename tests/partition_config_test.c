/* Configurations: every spelling gives one description, the tensors decide where a file contradicts itself, and what is not known is refused by name. Fault rows F04, F24. */
#include "partition/config.h"

#include <math.h>

#include "base/log.h"
#include "tests/t.h"
#include "tests/t_ck.h"

/* A llama of 2 layers, hidden 24, 6 heads over 2 of 128 dimensions, ffn 40, vocabulary 50: all sizes differ, and a head is unlike hidden / heads. */
enum { LAYERS = 2, HIDDEN = 24, HEADS = 6, KV = 2, DIM = 128, FFN = 40, VOCAB = 50, MAX_T = 64 };

static struct t_tensor tensors[MAX_T];
static char names[MAX_T][80];
static size_t n_tensors;
static float embedding[VOCAB * HIDDEN], head[VOCAB * HIDDEN];

static void add(const char *name, uint64_t rows, uint64_t columns, const void *data) {
    snprintf(names[n_tensors], sizeof names[0], "%s", name);
    tensors[n_tensors] = (struct t_tensor){names[n_tensors], "F32", columns ? 2 : 1, {rows, columns}, data, 4 * rows * (columns ? columns : 1)};
    n_tensors++;
}
static void add_layer(bool gguf, int layer, const char *hub, const char *short_name, uint64_t rows, uint64_t columns) {
    char name[80];
    if (gguf)
        snprintf(name, sizeof name, "blk.%d.%s", layer, short_name);
    else
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, hub);
    add(name, rows, columns, NULL);
}
static void model(bool gguf) {
    n_tensors = 0;
    for (int i = 0; i < VOCAB * HIDDEN; i++) embedding[i] = head[i] = (float)i;
    add(gguf ? "token_embd.weight" : "model.embed_tokens.weight", VOCAB, HIDDEN, embedding);
    add(gguf ? "output_norm.weight" : "model.norm.weight", HIDDEN, 0, NULL);
    for (int i = 0; i < LAYERS; i++) {
        add_layer(gguf, i, "input_layernorm.weight", "attn_norm.weight", HIDDEN, 0);
        add_layer(gguf, i, "self_attn.q_proj.weight", "attn_q.weight", HEADS * DIM, HIDDEN);
        add_layer(gguf, i, "self_attn.k_proj.weight", "attn_k.weight", KV * DIM, HIDDEN);
        add_layer(gguf, i, "self_attn.v_proj.weight", "attn_v.weight", KV * DIM, HIDDEN);
        add_layer(gguf, i, "self_attn.o_proj.weight", "attn_output.weight", HIDDEN, HEADS * DIM);
        add_layer(gguf, i, "post_attention_layernorm.weight", "ffn_norm.weight", HIDDEN, 0);
        add_layer(gguf, i, "mlp.gate_proj.weight", "ffn_gate.weight", FFN, HIDDEN);
        add_layer(gguf, i, "mlp.up_proj.weight", "ffn_up.weight", FFN, HIDDEN);
        add_layer(gguf, i, "mlp.down_proj.weight", "ffn_down.weight", HIDDEN, FFN);
    }
}

static const char *hub_dir(void) {
    const char *dir = t_path("hub-model");
    mkdir(dir, 0755);
    unlink(t_path("hub-model/generation_config.json"));
    unlink(t_path("hub-model/config.json"));
    return dir;
}

#define SIZES                                                                                                                                        \
    "\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":24,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":128,"      \
    "\"intermediate_size\":40,\"vocab_size\":50,\"max_position_embeddings\":131072,\"rms_norm_eps\":1e-05"

/* The tensors as they stand, with config.json = {SIZES more}. */
static struct checkpoint *write_hub(const char *json) {
    const char *dir = hub_dir();
    t_safetensors(t_path("hub-model/model.safetensors"), tensors, n_tensors, NULL);
    if (json) t_write_text(t_path("hub-model/config.json"), json);
    struct checkpoint *ck = NULL;
    struct err e = {0};
    T_OK(ck_open(dir, &ck, &e), &e);
    return ck;
}
#define HUB(more) write_hub("{" SIZES more "}")

static struct t_gguf g;
static void gguf_sizes(void) {
    t_gguf_str(&g, "general.architecture", "llama");
    t_gguf_str(&g, "general.name", "Tiny\tLlama");
    t_gguf_u32(&g, "llama.block_count", LAYERS);
    t_gguf_u32(&g, "llama.embedding_length", HIDDEN);
    t_gguf_u32(&g, "llama.attention.head_count", HEADS);
    t_gguf_u32(&g, "llama.attention.head_count_kv", KV);
    t_gguf_u32(&g, "llama.attention.key_length", DIM);
    t_gguf_u32(&g, "llama.attention.value_length", DIM);
    t_gguf_u32(&g, "llama.feed_forward_length", FFN);
    t_gguf_u32(&g, "llama.context_length", 131072);
    t_gguf_f32(&g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
}
static struct checkpoint *write_gguf(void) {
    for (size_t i = 0; i < n_tensors; i++)
        t_gguf_tensor(&g, tensors[i].name, T_GGML_F32, tensors[i].n_dims, tensors[i].dims, tensors[i].data, tensors[i].bytes);
    const char *path = t_path("model.gguf");
    t_gguf_write(&g, path);
    struct checkpoint *ck = NULL;
    struct err e = {0};
    T_OK(ck_open(path, &ck, &e), &e);
    return ck;
}

static struct arena arena;

/* Reads and closes. */
static struct model_config read_of(struct checkpoint *ck) {
    struct model_config c;
    struct err e = {0};
    T_OK(part_config_read(ck, &arena, &c, &e), &e);
    ck_close(ck);
    return c;
}
static void refused_at(struct checkpoint *ck, enum st want, const char *const *parts, int line) {
    struct model_config c;
    struct err e = {0};
    enum st st = part_config_read(ck, &arena, &c, &e);
    ck_close(ck);
    for (int i = 0; parts[i]; i++) t_expect_err_at(want, st, &e, parts[i], __FILE__, line);
}
#define REFUSED(ck, want, ...) refused_at(ck, want, (const char *const[]){__VA_ARGS__, NULL}, __LINE__)

struct told {
    struct checkpoint *ck;
};
static void read_in_child(void *arg) {
    struct told *told = arg;
    struct model_config c;
    base_log_init("info");
    if (part_config_read(told->ck, &arena, &c, NULL) != ST_OK) _exit(1);
}
/* What reading logs. */
static const char *told_by(struct checkpoint *ck) { return t_in_child(read_in_child, &(struct told){ck}, 0); }
static void tells_at(struct checkpoint *ck, const char *part, int line) {
    const char *text = told_by(ck);
    if (part ? !strstr(text, part) : *text != 0) {
        print_error("'%s' expected in the log: %s\n", part ? part : "nothing", text);
        _fail(__FILE__, line);
    }
}
#define TELLS(ck, part) tells_at(ck, part, __LINE__)
/* … and closes. */
static void tells_only_at(struct checkpoint *ck, const char *part, int line) {
    tells_at(ck, part, line);
    ck_close(ck);
}
#define TELLS_ONLY(ck, part) tells_only_at(ck, part, __LINE__)

/* ---- sizes ---- */

static void check_sizes(const struct model_config *c) {
    assert_string_equal(c->family, "llama");
    assert_true(c->n_layers == LAYERS && c->hidden == HIDDEN && c->n_heads == HEADS && c->n_kv_heads == KV && c->head_dim == DIM && c->ffn == FFN);
    assert_true(c->vocab == VOCAB && c->max_context == 131072);
    assert_true(c->norm_eps == (double)1e-5f);
    assert_true(c->attention_scale == 1 / sqrt(128.0) && c->embedding_scale == 1);
    assert_false(c->attention_bias || c->output_bias || c->mlp_bias);
}

static void both_kinds_of_file(void **state) {
    (void)state;
    model(false);
    struct checkpoint *ck = HUB("");
    TELLS(ck, NULL);
    struct model_config c = read_of(ck);
    check_sizes(&c);
    assert_true(c.tied_head && !c.rope.interleaved && c.rope.rotary_dim == DIM && c.rope.kind == ROPE_PLAIN && c.rope.theta == 10000 &&
                c.rope.attention_factor == 1);
    assert_string_equal(c.name, "hub-model");
    assert_true(c.opening_token == -1 && c.n_ends == 0);
    c = read_of(HUB(",\"_name_or_path\":\"org/"
                    "name\",\"architectures\":[\"LlamaForCausalLM\"],\"torch_dtype\":\"bfloat16\",\"rope_scaling\":null,\"hidden_act\":\"silu\""));
    check_sizes(&c);
    assert_string_equal(c.name, "name");

    model(true);
    gguf_sizes();
    ck = write_gguf();
    TELLS(ck, NULL);
    c = read_of(ck);
    check_sizes(&c);
    assert_true(c.tied_head && c.rope.interleaved && c.rope.rotary_dim == DIM && c.rope.kind == ROPE_PLAIN && c.rope.theta == 10000);
    assert_string_equal(c.name, "Tiny?Llama"); /* no control characters on a terminal */
}

static void families_by_name(void **state) {
    (void)state;
    model(false);
    REFUSED(write_hub("{\"model_type\":\"gemma3\",\"architectures\":[\"Gemma3ForCausalLM\"]}"), ST_UNSUPPORTED,
            "family gemma3 is not supported yet; known: llama, qwen3, qwen3_moe, qwen2_moe, mixtral, gpt_oss, glm4_moe, minimax_m2", "config.json");
    REFUSED(write_hub("{\"architectures\":[\"MistralForCausalLM\"]}"), ST_UNSUPPORTED, "family MistralForCausalLM is not supported yet");
    REFUSED(HUB(",\"architectures\":[\"LlamaForSequenceClassification\"]"), ST_UNSUPPORTED, "LlamaForSequenceClassification");
    REFUSED(write_hub("{}"), ST_INVALID, "neither model_type nor architectures");
    REFUSED(write_hub("[1]"), ST_INVALID, "not an object");
    REFUSED(write_hub("{"), ST_INVALID, "config.json:1");
    REFUSED(write_hub("{\"model_type\":7}"), ST_INVALID, "model_type");
    REFUSED(write_hub("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"), ST_INVALID, "git lfs pull");
    REFUSED(write_hub(NULL), ST_NOT_FOUND, "config.json");
    REFUSED(HUB(",\"quantization_config\":{\"quant_method\":\"bitsandbytes\"}"), ST_UNSUPPORTED, "quantization_config", "bitsandbytes");
    model(true);
    t_gguf_str(&g, "general.architecture", "gemma3");
    REFUSED(write_gguf(), ST_UNSUPPORTED, "family gemma3 is not supported yet; known: llama");
    REFUSED(write_gguf(), ST_INVALID, "general.architecture is missing");
    gguf_sizes();
    t_gguf_str(&g, "general.type", "adapter");
    REFUSED(write_gguf(), ST_UNSUPPORTED, "general.type is 'adapter'");
}

/* ---- experts and windows ---- */

#define PLAIN_SIZES                                                                                                                                  \
    "\"num_hidden_layers\":2,\"hidden_size\":24,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":128,\"intermediate_size\":40,"        \
    "\"vocab_size\":50,\"rms_norm_eps\":1e-05"
#define OF(type, more) write_hub("{\"model_type\":\"" type "\"," PLAIN_SIZES more "}")
#define EXPERTS ",\"num_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":12"

static void experts(void **state) {
    (void)state;
    model(false);
    struct model_config c = read_of(OF("qwen3_moe", EXPERTS ",\"norm_topk_prob\":true"));
    assert_string_equal(c.family, "qwen3_moe");
    assert_true(c.moe.n_experts == 8 && c.moe.top_k == 2 && c.moe.ffn == 12 && c.moe.shared_ffn == 0 && c.moe.router == CONFIG_ROUTER_SOFTMAX && c.moe.renormalise && c.moe.scale == 1);
    c = read_of(OF("qwen3_moe", ",\"num_local_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":12")); /* transformers 5 */
    assert_true(c.moe.n_experts == 8 && !c.moe.renormalise);
    c = read_of(OF("mixtral", ",\"num_local_experts\":8,\"num_experts_per_tok\":2,\"sliding_window\":null"));
    assert_true(c.moe.ffn == FFN && c.moe.renormalise && !c.windows && c.rope.theta == 1000000);
    c = read_of(OF("gpt_oss", ",\"num_local_experts\":8,\"num_experts_per_tok\":2,\"swiglu_limit\":7"));
    assert_true(c.moe.router == CONFIG_ROUTER_TOPK_SOFTMAX && c.gate == CONFIG_GATE_CLAMPED && c.gate_limit == 7 && c.gate_alpha == 1.702);
    c = read_of(OF("glm4_moe", ",\"n_routed_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":12,\"n_shared_experts\":1,\"n_group\":4,\"topk_group\":1,\"routed_scaling_factor\":2.5"));
    assert_true(c.moe.router == CONFIG_ROUTER_SIGMOID && c.moe.shared_ffn == 12 && c.moe.n_groups == 4 && c.moe.k_groups == 1 && c.moe.scale == 2.5 && c.rope.rotary_dim == DIM / 2);
    c = read_of(OF("minimax_m2", ",\"num_local_experts\":8,\"num_experts_per_tok\":2,\"rotary_dim\":64"));
    assert_true(c.moe.router == CONFIG_ROUTER_SIGMOID && c.moe.renormalise && c.rope.rotary_dim == 64);

    REFUSED(OF("qwen3_moe", ""), ST_INVALID, "num_experts is missing");
    REFUSED(OF("qwen3_moe", ",\"num_experts\":8"), ST_INVALID, "num_experts_per_tok is missing");
    REFUSED(OF("qwen3_moe", ",\"num_experts\":8,\"num_experts_per_tok\":2"), ST_INVALID, "moe_intermediate_size is missing");
    REFUSED(OF("qwen3_moe", ",\"num_experts\":1025"), ST_INVALID, "num_experts: 1025 is outside");
    REFUSED(OF("qwen3_moe", ",\"num_experts\":0"), ST_INVALID, "num_experts: 0 is outside");
    REFUSED(OF("qwen3_moe", ",\"num_experts\":8,\"num_experts_per_tok\":9,\"moe_intermediate_size\":12"), ST_INVALID, "9 experts for each token, of 8");
    REFUSED(OF("qwen3_moe", ",\"num_experts\":80,\"num_experts_per_tok\":65,\"moe_intermediate_size\":12"), ST_INVALID, "num_experts_per_tok: 65 is outside");
    REFUSED(OF("glm4_moe", ",\"n_routed_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":12,\"n_group\":3"), ST_INVALID, "2 of 8 experts cannot be chosen from 1 of 3 groups");
    REFUSED(OF("glm4_moe", ",\"n_routed_experts\":8,\"num_experts_per_tok\":3,\"moe_intermediate_size\":12,\"n_group\":4"), ST_INVALID, "3 of 8 experts cannot be chosen from 1 of 4");
    c = read_of(OF("glm4_moe", ",\"n_routed_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":12,\"n_shared_experts\":3"));
    assert_int_equal(c.moe.shared_ffn, 36);
    REFUSED(OF("glm4_moe", ",\"n_routed_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":12,\"routed_scaling_factor\":0"), ST_INVALID, "scaled by 0");
    REFUSED(OF("gpt_oss", ",\"swiglu_limit\":-1"), ST_INVALID, "swiglu_limit: -1");
    REFUSED(OF("minimax_m2", ",\"scoring_func\":\"softmax\""), ST_UNSUPPORTED, "scoring_func: 'softmax'");

    model(true);
    gguf_sizes();
    t_gguf_u32(&g, "llama.expert_count", 8);
    REFUSED(write_gguf(), ST_INVALID, "llama.expert_used_count is missing");
    gguf_sizes();
    t_gguf_u32(&g, "llama.expert_count", 8);
    t_gguf_u32(&g, "llama.expert_used_count", 2);
    c = read_of(write_gguf());
    assert_string_equal(c.family, "mixtral");
    assert_true(c.moe.n_experts == 8 && c.moe.top_k == 2 && c.moe.ffn == FFN && c.moe.renormalise);
}

static void a_layer_for_more_tokens(void **state) {
    (void)state;
    model(false);
    add_layer(false, LAYERS, "input_layernorm.weight", "attn_norm.weight", HIDDEN, 0);
#define GLM ",\"n_routed_experts\":8,\"num_experts_per_tok\":2,\"moe_intermediate_size\":12"
    TELLS_ONLY(OF("glm4_moe", GLM ",\"num_nextn_predict_layers\":1"), "layer 2 on, for several tokens at once, is not used");
    TELLS_ONLY(OF("glm4_moe", GLM), "2 layers are named, but the files hold more");
}

static void windows(void **state) {
    (void)state;
    model(false);
#define GPT_OSS ",\"num_local_experts\":8,\"num_experts_per_tok\":2,\"sliding_window\":16"
    struct model_config c = read_of(OF("gpt_oss", GPT_OSS));
    assert_true(read_of(OF("gpt_oss", ",\"num_local_experts\":8,\"num_experts_per_tok\":2")).windows[0] == 128); /* transformers' defaults */
    assert_null(read_of(OF("gpt_oss", ",\"num_local_experts\":8,\"num_experts_per_tok\":2,\"sliding_window\":null")).windows);
    assert_null(read_of(OF("qwen3", ",\"sliding_window\":16")).windows);
    assert_true(c.windows && c.windows[0] == 16 && c.windows[1] == 0);
    c = read_of(OF("gpt_oss", GPT_OSS ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]"));
    assert_true(c.windows && c.windows[0] == 0 && c.windows[1] == 16);
    c = read_of(OF("qwen3", ",\"use_sliding_window\":false,\"sliding_window\":16,\"max_window_layers\":0"));
    assert_null(c.windows);
    c = read_of(OF("qwen3", ",\"use_sliding_window\":true,\"sliding_window\":16,\"max_window_layers\":1"));
    assert_true(c.windows && c.windows[0] == 0 && c.windows[1] == 16);
    REFUSED(OF("gpt_oss", GPT_OSS ",\"layer_types\":[\"full_attention\"]"), ST_INVALID, "layer_types is no list of 2 layers");
    REFUSED(OF("gpt_oss", GPT_OSS ",\"layer_types\":[\"full_attention\",\"linear_attention\"]"), ST_UNSUPPORTED, "layer_types[1]: 'linear_attention'");
    REFUSED(OF("gpt_oss", ",\"sliding_window\":-4"), ST_INVALID, "sliding_window: -4 is outside");
    model(true);
    gguf_sizes();
    t_gguf_u32(&g, "llama.attention.sliding_window", 16);
    c = read_of(write_gguf());
    assert_true(c.windows && c.windows[0] == 16 && c.windows[1] == 16);
}

/* The middle of the ramp, its two ends, and the factor on cos and sin; the frequencies are compared with transformers' through the golden models. */
static void yarn(void **state) {
    (void)state;
    model(false);
#define YARN(more) OF("llama", ",\"rope_theta\":10000,\"rope_scaling\":{\"rope_type\":\"yarn\"" more "}")
    struct model_config c = read_of(YARN(",\"factor\":8,\"original_max_position_embeddings\":4096"));
    assert_true(c.rope.kind == ROPE_YARN && c.rope.truncate && fabs(c.rope.attention_factor - (0.1 * log(8) + 1)) < 1e-15);
    assert_true(c.rope.frequency[0] == 1 && fabs(c.rope.frequency[63] * 8 * pow(10000, 126.0 / 128) - 1) < 1e-12);
    c = read_of(YARN(",\"factor\":8,\"original_max_position_embeddings\":4096,\"attention_factor\":1.5,\"truncate\":false,\"beta_fast\":16"));
    assert_true(c.rope.attention_factor == 1.5 && !c.rope.truncate && c.rope.beta_fast == 16 && c.rope.beta_slow == 1);
    model(true);
    gguf_sizes();
    t_gguf_str(&g, "llama.rope.scaling.type", "yarn");
    t_gguf_f32(&g, "llama.rope.scaling.factor", 8);
    t_gguf_u32(&g, "llama.rope.scaling.original_context_length", 4096);
    c = read_of(write_gguf());
    assert_true(c.rope.kind == ROPE_YARN && c.rope.truncate); /* GPT-OSS's are not: its golden model */
    model(false);
    REFUSED(YARN(""), ST_INVALID, "rope type yarn without factor");
    REFUSED(YARN(",\"factor\":8"), ST_INVALID, "rope type yarn without original_max_position_embeddings");
    REFUSED(YARN(",\"factor\":8,\"mscale\":1"), ST_UNSUPPORTED, "mscale is not supported");
    REFUSED(YARN(",\"factor\":8,\"beta_slow\":0"), ST_INVALID, "beta_slow: 0 is not a positive");
}

static void bad_values(void **state) {
    (void)state;
    model(false);
#define BAD(json, ...) REFUSED(write_hub("{\"model_type\":\"llama\"," json "}"), ST_INVALID, __VA_ARGS__)
    BAD("\"num_hidden_layers\":2", "config.json: hidden_size is missing");
    BAD("\"num_hidden_layers\":0", "config.json: num_hidden_layers: 0 is outside 1");
    BAD("\"num_hidden_layers\":\"2\"", "num_hidden_layers: a string");
    BAD("\"num_hidden_layers\":2,\"hidden_size\":99999999999", "hidden_size: 99999999999 is outside");
    BAD("\"num_hidden_layers\":2,\"hidden_size\":24,\"num_attention_heads\":6", "intermediate_size is missing");
    BAD("\"num_hidden_layers\":2,\"hidden_size\":24,\"num_attention_heads\":6,\"intermediate_size\":40,\"num_key_value_heads\":4",
        "6 heads cannot share 4");
    BAD("\"num_hidden_layers\":2,\"hidden_size\":24,\"num_attention_heads\":6,\"intermediate_size\":40,\"num_key_value_heads\":3",
        "do not fit 6 heads over 3");
    BAD("\"num_hidden_layers\":2,\"hidden_size\":23,\"num_attention_heads\":6,\"intermediate_size\":40",
        "model.embed_tokens.weight is 50 × 24, but the hidden size is 23");
    REFUSED(write_hub("{" SIZES ",\"hidden_act\":\"gelu\"}"), ST_UNSUPPORTED, "hidden_act: 'gelu'");
    REFUSED(write_hub("{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":24,\"num_attention_heads\":6,\"intermediate_size\":40,\"rms_"
                      "norm_eps\":0}"),
            ST_INVALID, "epsilon of 0");
    REFUSED(write_hub("{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":24,\"num_attention_heads\":6,\"intermediate_size\":40,\"rms_"
                      "norm_eps\":1e-60}"),
            ST_INVALID, "epsilon of 1e-60"); /* 0 in F32 */
    n_tensors = 1;
    snprintf(names[0], sizeof names[0], "other");
    REFUSED(HUB(""), ST_NOT_FOUND, "tensor model.embed_tokens.weight is missing");
    model(true);
    for (int i = 0; i < 4; i++) {
        t_gguf_str(&g, "general.architecture", "llama");
        if (i == 1) t_gguf_u32(&g, "llama.block_count", 0);
        if (i == 2) t_gguf_str(&g, "llama.block_count", "2");
        if (i == 3) t_gguf_array(&g, "llama.block_count", T_U32, (const uint32_t[]){2, 3}, 2, 4);
        static const char *const parts[] = {"llama.block_count is missing", "llama.block_count: 0 is outside",
                                            "llama.block_count is not a whole number", "differs from layer to layer"};
        REFUSED(write_gguf(), i == 3 ? ST_UNSUPPORTED : ST_INVALID, parts[i]);
    }
}

/* ---- rope ---- */

#define LLAMA3 "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192"

/* transformers' _compute_llama3_parameters, by libm. */
static double llama3_divisor(double f) {
    double wave = 2 * 3.14159265358979323846 / f;
    if (wave < 8192 / 4.0) return 1;
    if (wave > 8192 / 1.0) return 8;
    double smooth = (8192 / wave - 1) / 3;
    return 1 / ((1 - smooth) / 8 + smooth);
}

/* F04 */
static void rope_llama3_in_all_spellings(void **state) {
    (void)state;
    model(false);
    const struct model_config want = read_of(HUB(",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 "}"));
    assert_true(want.rope.kind == ROPE_LLAMA3 && want.rope.theta == 500000 && want.rope.factor == 8 && want.rope.low_freq_factor == 1 &&
                want.rope.high_freq_factor == 4 && want.rope.original_context == 8192);
    int bands[3] = {0, 0, 0};
    for (int i = 0; i < DIM / 2; i++) {
        double f = pow(500000, -2.0 * i / DIM), d = llama3_divisor(f);
        assert_true(fabs(want.rope.frequency[i] * d / f - 1) < 7e-8); /* the divisor is rounded to F32 */
        bands[d == 1 ? 0 : d == 8 ? 2 : 1]++;
    }
    assert_true(bands[0] && bands[1] && bands[2]);

    const char *const same[] = {
        ",\"rope_theta\":500000,\"rope_scaling\":{\"type\":\"llama3\"," LLAMA3 "}",
        ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"type\":\"llama3\"," LLAMA3 "}",
        ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0," LLAMA3 "}",
        ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0," LLAMA3 "}",
        ",\"rope_theta\":500000.0,\"rope_parameters\":{\"rope_type\":\"llama3\"," LLAMA3 "}",
        ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3
        "},\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0," LLAMA3 "}",
        ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 "},\"rope_parameters\":null",
        ",\"rope_theta\":500000.0,\"original_max_position_embeddings\":8192,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4}",
    };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        char json[1024];
        snprintf(json, sizeof json, "{" SIZES "%s}", same[i]);
        struct checkpoint *ck = write_hub(json);
        TELLS(ck, NULL);
        struct model_config c = read_of(ck);
        assert_true(c.rope.kind == ROPE_LLAMA3);
        assert_memory_equal(c.rope.frequency, want.rope.frequency, DIM / 2 * sizeof(double));
    }
    /* GGUF: the base as a key, the scaling as divisors in F32. */
    float divisors[DIM / 2];
    for (int i = 0; i < DIM / 2; i++) divisors[i] = (float)llama3_divisor(pow(500000, -2.0 * i / DIM));
    model(true);
    add("rope_freqs.weight", DIM / 2, 0, divisors);
    gguf_sizes();
    t_gguf_f32(&g, "llama.rope.freq_base", 500000);
    t_gguf_u32(&g, "llama.rope.dimension_count", DIM);
    struct model_config c = read_of(write_gguf());
    assert_memory_equal(c.rope.frequency, want.rope.frequency, DIM / 2 * sizeof(double));
    /* As the converter computes them, in F32 all the way: the same to rounding. */
    for (int i = 0; i < DIM / 2; i++) {
        float f = 1.0f / powf(500000, (float)(2 * i) / DIM), wave = 2 * 3.14159265f / f;
        float smooth = (8192 / wave - 1) / 3;
        divisors[i] = wave < 2048 ? 1 : wave > 8192 ? 8 : 1 / ((1 - smooth) / 8 + smooth);
    }
    gguf_sizes();
    t_gguf_f32(&g, "llama.rope.freq_base", 500000);
    c = read_of(write_gguf());
    for (int i = 0; i < DIM / 2; i++) assert_true(fabs(c.rope.frequency[i] / want.rope.frequency[i] - 1) < 2e-6);

    divisors[7] = 0;
    gguf_sizes();
    REFUSED(write_gguf(), ST_INVALID, "rope_freqs.weight: element 7");
    divisors[7] = NAN;
    gguf_sizes();
    REFUSED(write_gguf(), ST_INVALID, "rope_freqs.weight: element 7");
    tensors[n_tensors - 1].dims[0] = 63;
    tensors[n_tensors - 1].bytes = 63 * 4;
    gguf_sizes();
    REFUSED(write_gguf(), ST_INVALID, "rope_freqs.weight does not hold 64");
}

static void rope_plain_and_linear(void **state) {
    (void)state;
    model(false);
    struct model_config c = read_of(HUB(",\"rope_theta\":1000000.0,\"rope_scaling\":{\"rope_type\":\"default\"}")), plain = c;
    assert_true(c.rope.kind == ROPE_PLAIN && c.rope.theta == 1000000);
    for (int i = 0; i < DIM / 2; i++) assert_true(fabs(c.rope.frequency[i] / pow(1e6, -2.0 * i / DIM) - 1) < 1e-13);
    c = read_of(HUB(",\"rope_parameters\":{\"rope_theta\":1000000.0}"));
    assert_memory_equal(c.rope.frequency, plain.rope.frequency, DIM / 2 * sizeof(double));
    c = read_of(HUB(",\"rope_theta\":1000000.0,\"rope_scaling\":{}"));
    assert_memory_equal(c.rope.frequency, plain.rope.frequency, DIM / 2 * sizeof(double));

    struct model_config linear = read_of(HUB(",\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}"));
    assert_true(linear.rope.kind == ROPE_LINEAR && linear.rope.factor == 4);
    for (int i = 0; i < DIM / 2; i++) assert_true(linear.rope.frequency[i] == plain.rope.frequency[i] / 4);
    c = read_of(HUB(",\"rope_parameters\":{\"rope_type\":\"linear\",\"rope_theta\":1000000.0,\"factor\":4.0}"));
    assert_memory_equal(c.rope.frequency, linear.rope.frequency, DIM / 2 * sizeof(double));

    c = read_of(HUB(",\"partial_rotary_factor\":0.5"));
    assert_int_equal(c.rope.rotary_dim, 64);
    assert_true(fabs(c.rope.frequency[1] / pow(10000, -2.0 / 64) - 1) < 1e-13);

    model(true);
    for (int i = 0; i < 5; i++) {
        gguf_sizes();
        t_gguf_f32(&g, "llama.rope.freq_base", 1e6f);
        if (i == 0) t_gguf_str(&g, "llama.rope.scaling.type", "linear");
        if (i < 2 || i == 3) t_gguf_f32(&g, "llama.rope.scaling.factor", 4);
        if (i == 2) t_gguf_f32(&g, "llama.rope.scale_linear", 4);
        if (i == 3) t_gguf_str(&g, "llama.rope.scaling.type", "none");
        c = read_of(write_gguf());
        assert_memory_equal(c.rope.frequency, i < 3 ? linear.rope.frequency : plain.rope.frequency, DIM / 2 * sizeof(double));
    }
    gguf_sizes();
    t_gguf_u32(&g, "llama.rope.dimension_count", 64);
    c = read_of(write_gguf());
    assert_int_equal(c.rope.rotary_dim, 64);
}

static void rope_refused(void **state) {
    (void)state;
    model(false);
    static const char *const types[] = {"foo", "dynamic", "longrope", "su", "proportional", "mrope", ""};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        for (int spelling = 0; spelling < 3; spelling++) {
            char json[1024], part[96];
            static const char *const spellings[] = {"\"rope_scaling\":{\"type\":\"%s\"", "\"rope_scaling\":{\"rope_type\":\"%s\"",
                                                    "\"rope_parameters\":{\"rope_type\":\"%s\""};
            int n = snprintf(json, sizeof json, "{" SIZES ",");
            n += snprintf(json + n, sizeof json - (size_t)n, spellings[spelling], types[i]);
            snprintf(json + n, sizeof json - (size_t)n, ",\"factor\":4.0}}");
            snprintf(part, sizeof part, "rope type '%s' is not supported; known: default, linear, llama3, yarn", types[i]);
            REFUSED(write_hub(json), ST_UNSUPPORTED, part, spelling < 2 ? "rope_scaling" : "rope_parameters");
        }
    REFUSED(HUB(",\"rope_scaling\":{\"factor\":4}"), ST_INVALID, "rope_scaling", "neither rope_type nor type");
    REFUSED(HUB(",\"rope_scaling\":4"), ST_INVALID, "rope_scaling: not an object");
    REFUSED(HUB(",\"rope_scaling\":{\"type\":\"linear\"}"), ST_INVALID, "linear without factor");
    REFUSED(HUB(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}"), ST_INVALID, "factor: 0 is not a positive");
    REFUSED(HUB(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"4\"}"), ST_INVALID, "factor: a string");
    REFUSED(HUB(",\"rope_theta\":-1"), ST_INVALID, "rope_theta: -1 is not a positive");
    REFUSED(HUB(",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4}"), ST_INVALID,
            "llama3 without original_max_position_embeddings");
    REFUSED(HUB(",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,\"original_max_position_"
                "embeddings\":8192}"),
            ST_INVALID, "high_freq_factor 4 is not above");
    REFUSED(HUB(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2}"), ST_INVALID,
            "rope_scaling and rope_parameters differ in factor");
    REFUSED(HUB(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},\"rope_parameters\":{\"rope_type\":\"default\"}"), ST_INVALID, "differ in");
    REFUSED(HUB(",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}"), ST_UNSUPPORTED, "full_attention");
    REFUSED(HUB(",\"partial_rotary_factor\":2"), ST_INVALID, "partial_rotary_factor");
    REFUSED(HUB(",\"partial_rotary_factor\":0.001"), ST_INVALID, "partial_rotary_factor");
    TELLS_ONLY(HUB(",\"rope_theta\":10000,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500000.0}"),
               "rope_theta is 10000, and 500000 in rope_parameters");
    TELLS_ONLY(HUB(",\"rope_scaling\":{\"rope_type\":\"default\",\"type\":\"mrope\"}"), "type is mrope, rope_type is default");

    model(true);
    for (int i = 0; i < 6; i++) {
        gguf_sizes();
        static const char *const parts[] = {"rope type 'foo'",           "type yarn without factor",  "rope.dimension_count: 63",
                                            "rope.dimension_count: 256", "rope.freq_base: 0", "rope.scaling.factor: -2"};
        switch (i) {
        case 0: t_gguf_str(&g, "llama.rope.scaling.type", "foo"); break;
        case 1: t_gguf_str(&g, "llama.rope.scaling.type", "yarn"); break;
        case 2: t_gguf_u32(&g, "llama.rope.dimension_count", 63); break;
        case 3: t_gguf_u32(&g, "llama.rope.dimension_count", 256); break;
        case 4: t_gguf_f32(&g, "llama.rope.freq_base", 0); break;
        default: t_gguf_f32(&g, "llama.rope.scaling.factor", -2);
        }
        REFUSED(write_gguf(), i < 1 ? ST_UNSUPPORTED : ST_INVALID, parts[i]);
    }
    add("rope_factors_long.weight", 64, 0, NULL);
    gguf_sizes();
    REFUSED(write_gguf(), ST_UNSUPPORTED, "rope type 'longrope'");
}

/* ---- the tensors decide ---- */

static void the_head(void **state) {
    (void)state;
    for (int gguf = 0; gguf < 2; gguf++)
        for (int differs = 0; differs < 2; differs++)
            for (int flag = 0; flag < (gguf ? 1 : 3); flag++) {
                model(gguf);
                add(gguf ? "output.weight" : "lm_head.weight", VOCAB, HIDDEN, head);
                if (differs) head[VOCAB * HIDDEN - 1] += 1; /* the last number only */
                static const char *const flags[] = {"{" SIZES "}", "{" SIZES ",\"tie_word_embeddings\":false}",
                                                    "{" SIZES ",\"tie_word_embeddings\":true}"};
                if (gguf) gguf_sizes();
                struct checkpoint *ck = gguf ? write_gguf() : write_hub(flags[flag]);
                TELLS(ck, differs && flag == 2 ? "tie_word_embeddings is true, but lm_head.weight is in the file and differs from the embedding; the "
                                                 "head in the file is used"
                                               : NULL);
                assert_int_equal(read_of(ck).tied_head, !differs);
            }
    model(false);
    TELLS_ONLY(HUB(",\"tie_word_embeddings\":true"), NULL);
    assert_true(read_of(HUB(",\"tie_word_embeddings\":true")).tied_head);
    TELLS_ONLY(HUB(",\"tie_word_embeddings\":false"), "tie_word_embeddings is false, but there is no lm_head.weight");
    assert_true(read_of(HUB(",\"tie_word_embeddings\":false")).tied_head);
    add("lm_head.weight", VOCAB - 1, HIDDEN, head);
    REFUSED(HUB(""), ST_INVALID, "lm_head.weight is not of the embedding's shape 50 × 24");
}

static void contradictions(void **state) {
    (void)state;
    model(false);
    struct checkpoint *ck =
        write_hub("{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":24,\"num_attention_heads\":6,\"num_key_value_heads\":2,"
                  "\"intermediate_size\":41,\"vocab_size\":49,\"attention_bias\":true,\"mlp_bias\":true}");
    const char *text = told_by(ck);
    assert_non_null(strstr(text, "vocab_size is 49, but the embedding has 50 rows, which are taken"));
    assert_non_null(strstr(text, "a head should have 4 dimensions, but has 128 in tensor model.layers.0.self_attn.q_proj.weight"));
    assert_non_null(strstr(text, "the intermediate size is given as 41, but tensor model.layers.0.mlp.gate_proj.weight has 40 rows"));
    assert_non_null(strstr(text, "1 layers are named, but the files hold more"));
    assert_non_null(strstr(text, "attention_bias is true, but the files hold no such tensors"));
    assert_non_null(strstr(text, "mlp_bias is true"));
    struct model_config c = read_of(ck);
    assert_true(c.vocab == 50 && c.head_dim == 128 && c.ffn == 40 && c.n_layers == 1 && !c.attention_bias && !c.output_bias && !c.mlp_bias);

    for (int gguf = 0; gguf < 2; gguf++) {
        model(gguf);
        add_layer(gguf, 1, "self_attn.k_proj.bias", "attn_k.bias", KV * DIM, 0);
        add_layer(gguf, 0, "mlp.down_proj.bias", "ffn_down.bias", HIDDEN, 0);
        if (gguf) gguf_sizes();
        ck = gguf ? write_gguf() : HUB("");
        TELLS(ck, gguf ? NULL : "attention_bias is false, but the files hold such tensors");
        c = read_of(ck);
        assert_true(c.attention_bias && !c.output_bias && c.mlp_bias);
    }
}

/* ---- end tokens ---- */

static void check_ends(const struct model_config *c, const char *want) {
    char text[128] = "";
    for (int i = 0; i < c->n_ends; i++) snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i ? " " : "", c->ends[i]);
    assert_string_equal(text, want);
}

/* F24: the union of what the files say. */
static void end_tokens(void **state) {
    (void)state;
    static const struct {
        const char *config, *generation, *ends;
        int opening;
    } cases[] = {
        {"", NULL, "", -1},
        {",\"bos_token_id\":1,\"eos_token_id\":2", NULL, "2", 1},
        {",\"bos_token_id\":1,\"eos_token_id\":2", "{\"eos_token_id\":[7,2,9],\"bos_token_id\":3}", "2 7 9", 1},
        {",\"eos_token_id\":[4,5]", "{\"eos_token_id\":6,\"bos_token_id\":3}", "4 5 6", 3},
        {",\"eos_token_id\":null,\"bos_token_id\":null", "{\"eos_token_id\":[49]}", "49", -1},
        {"", "{}", "", -1},
        {",\"eos_token_id\":[]", "{\"eos_token_id\":null}", "", -1},
    };
    model(false);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char json[1024];
        snprintf(json, sizeof json, "{" SIZES "%s}", cases[i].config);
        struct checkpoint *ck = write_hub(json);
        if (cases[i].generation) t_write_text(t_path("hub-model/generation_config.json"), cases[i].generation);
        TELLS(ck, NULL);
        struct model_config c = read_of(ck);
        check_ends(&c, cases[i].ends);
        assert_int_equal(c.opening_token, cases[i].opening);
    }
    struct checkpoint *ck = HUB(",\"eos_token_id\":[50,2,-1]");
    TELLS(ck, "eos_token_id: 50 is no token of this vocabulary");
    struct model_config c = read_of(ck);
    check_ends(&c, "2");
    REFUSED(HUB(",\"eos_token_id\":\"</s>\""), ST_INVALID, "eos_token_id is neither a number nor a list");
    REFUSED(HUB(",\"eos_token_id\":[1,\"2\"]"), ST_INVALID, "eos_token_id[1]");
    REFUSED(HUB(",\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"), ST_UNSUPPORTED, "more than 16 end tokens");
    ck = HUB(",\"eos_token_id\":2");
    t_write_text(t_path("hub-model/generation_config.json"), "{\"eos_token_id\":");
    REFUSED(ck, ST_INVALID, "generation_config.json");

    model(true);
    gguf_sizes();
    t_gguf_u32(&g, "tokenizer.ggml.bos_token_id", 1);
    t_gguf_u32(&g, "tokenizer.ggml.eos_token_id", 2);
    t_gguf_u32(&g, "tokenizer.ggml.eot_token_id", 5);
    t_gguf_u32(&g, "tokenizer.ggml.eom_token_id", 2);
    c = read_of(write_gguf());
    check_ends(&c, "2 5");
    assert_int_equal(c.opening_token, 1);
}

static void demo_model(void **state) {
    (void)state;
    if (!t_demo_model()) skip();
    struct checkpoint *ck = NULL;
    struct err e = {0};
    T_OK(ck_open(t_demo_model(), &ck, &e), &e);
    TELLS(ck, NULL);
    struct model_config c = read_of(ck);
    assert_true(c.n_layers == 30 && c.hidden == 576 && c.n_heads == 9 && c.n_kv_heads == 3 && c.head_dim == 64 && c.ffn == 1536 && c.vocab == 49152 &&
                c.max_context == 8192);
    assert_true(c.tied_head && c.rope.theta == 100000 && c.rope.interleaved && c.opening_token == 1);
    check_ends(&c, "2");
}

static int setup(void **state) {
    (void)state;
    base_log_init("error");
    return base_arena_init(&arena, "test", 0, NULL) == ST_OK ? 0 : -1;
}
static int teardown(void **state) {
    (void)state;
    base_arena_release(&arena);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_kinds_of_file),
        cmocka_unit_test(families_by_name),
        cmocka_unit_test(bad_values),
        cmocka_unit_test(rope_llama3_in_all_spellings),
        cmocka_unit_test(rope_plain_and_linear),
        cmocka_unit_test(experts),
        cmocka_unit_test(windows),
        cmocka_unit_test(a_layer_for_more_tokens),
        cmocka_unit_test(yarn),
        cmocka_unit_test(rope_refused),
        cmocka_unit_test(the_head),
        cmocka_unit_test(contradictions),
        cmocka_unit_test(end_tokens),
        cmocka_unit_test(demo_model),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
