/* The table. Numbers are the publishers' (config.json); each preset's number of weights is checked against what the models have (tests/partition_synth_test.c).
 * MTP layers and vision are left out: nobody here runs them. */
#include "partition/presets.h"

#include <stddef.h>
#include <string.h>

const char *const preset_format_names[PRESET_FORMATS + 1] = {"bf16", "fp8", "nvfp4", "mxfp4", NULL};

/* ---- families ---------------------------------------------------------------------------------------------------------------------------------------------- */

#define EMBEDDING {PRESET_BEFORE, PRESET_PLAIN, "model.embed_tokens.weight", "VH"}
#define END {PRESET_AFTER, PRESET_NORM, "model.norm.weight", "H"}, {PRESET_AFTER, PRESET_PLAIN, "lm_head.weight", "VH"}, {0}
#define NORMS {PRESET_LAYER, PRESET_NORM, "input_layernorm.weight", "H"}, {PRESET_LAYER, PRESET_NORM, "post_attention_layernorm.weight", "H"}
#define ATTENTION                                                                                                                                    \
    {PRESET_LAYER, PRESET_LINEAR, "self_attn.q_proj", "QH"}, {PRESET_LAYER, PRESET_LINEAR, "self_attn.k_proj", "KH"}, {PRESET_LAYER, PRESET_LINEAR, "self_attn.v_proj", "KH"}, \
        {PRESET_LAYER, PRESET_LINEAR, "self_attn.o_proj", "HQ"}
#define QKV_BIAS                                                                                                                                     \
    {PRESET_LAYER, PRESET_VECTOR, "self_attn.q_proj.bias", "Q"}, {PRESET_LAYER, PRESET_VECTOR, "self_attn.k_proj.bias", "K"}, {PRESET_LAYER, PRESET_VECTOR, "self_attn.v_proj.bias", "K"}
#define HEAD_NORMS {PRESET_LAYER, PRESET_NORM, "self_attn.q_norm.weight", "D"}, {PRESET_LAYER, PRESET_NORM, "self_attn.k_norm.weight", "D"}
#define MLP(place, prefix, ffn)                                                                                                                      \
    {place, PRESET_LINEAR, prefix "gate_proj", ffn "H"}, {place, PRESET_LINEAR, prefix "up_proj", ffn "H"}, {place, PRESET_LINEAR, prefix "down_proj", "H" ffn}
#define BLOCK_SPARSE_EXPERTS                                                                                                                         \
    {PRESET_EXPERT, PRESET_LINEAR, "block_sparse_moe.experts.#.w1", "MH"}, {PRESET_EXPERT, PRESET_LINEAR, "block_sparse_moe.experts.#.w2", "HM"},    \
        {PRESET_EXPERT, PRESET_LINEAR, "block_sparse_moe.experts.#.w3", "MH"}

static const struct preset_tensor llama_tensors[] = {EMBEDDING, NORMS, ATTENTION, MLP(PRESET_DENSE, "mlp.", "F"), END};
static const struct preset_tensor mixtral_tensors[] = {EMBEDDING, NORMS, ATTENTION, {PRESET_SPARSE, PRESET_PLAIN, "block_sparse_moe.gate.weight", "EH"}, BLOCK_SPARSE_EXPERTS, END};
static const struct preset_tensor qwen3_moe_tensors[] = {
    EMBEDDING, NORMS, ATTENTION, HEAD_NORMS, {PRESET_SPARSE, PRESET_PLAIN, "mlp.gate.weight", "EH"}, MLP(PRESET_EXPERT, "mlp.experts.#.", "M"), END};
static const struct preset_tensor gpt_oss_tensors[] = {
    EMBEDDING,
    NORMS,
    /* its attention stays BF16 in every format */
    {PRESET_LAYER, PRESET_PLAIN, "self_attn.q_proj.weight", "QH"},
    {PRESET_LAYER, PRESET_PLAIN, "self_attn.k_proj.weight", "KH"},
    {PRESET_LAYER, PRESET_PLAIN, "self_attn.v_proj.weight", "KH"},
    {PRESET_LAYER, PRESET_PLAIN, "self_attn.o_proj.weight", "HQ"},
    QKV_BIAS,
    {PRESET_LAYER, PRESET_VECTOR, "self_attn.o_proj.bias", "H"},
    {PRESET_LAYER, PRESET_VECTOR, "self_attn.sinks", "A"},
    {PRESET_SPARSE, PRESET_PLAIN, "mlp.router.weight", "EH"},
    {PRESET_SPARSE, PRESET_VECTOR, "mlp.router.bias", "E"},
    {PRESET_SPARSE, PRESET_FUSED, "mlp.experts.gate_up_proj", "EGH"},
    {PRESET_SPARSE, PRESET_VECTOR, "mlp.experts.gate_up_proj_bias", "EG"},
    {PRESET_SPARSE, PRESET_FUSED, "mlp.experts.down_proj", "EHM"},
    {PRESET_SPARSE, PRESET_VECTOR, "mlp.experts.down_proj_bias", "EH"},
    END};
static const struct preset_tensor glm4_moe_tensors[] = {EMBEDDING,
                                                        NORMS,
                                                        ATTENTION,
                                                        QKV_BIAS,
                                                        HEAD_NORMS,
                                                        MLP(PRESET_DENSE, "mlp.", "F"),
                                                        {PRESET_SPARSE, PRESET_PLAIN, "mlp.gate.weight", "EH"},
                                                        {PRESET_SPARSE, PRESET_F32, "mlp.gate.e_score_correction_bias", "E"},
                                                        MLP(PRESET_SPARSE, "mlp.shared_experts.", "S"),
                                                        MLP(PRESET_EXPERT, "mlp.experts.#.", "M"),
                                                        END};
static const struct preset_tensor minimax_tensors[] = {EMBEDDING,
                                                       NORMS,
                                                       ATTENTION,
                                                       {PRESET_LAYER, PRESET_NORM, "self_attn.q_norm.weight", "Q"},
                                                       {PRESET_LAYER, PRESET_NORM, "self_attn.k_norm.weight", "K"},
                                                       {PRESET_SPARSE, PRESET_PLAIN, "block_sparse_moe.gate.weight", "EH"},
                                                       {PRESET_SPARSE, PRESET_F32, "block_sparse_moe.e_score_correction_bias", "E"},
                                                       BLOCK_SPARSE_EXPERTS,
                                                       END};

static const struct preset_family llama = {"llama", "LlamaForCausalLM", NULL, NULL, "intermediate_size", {NULL, NULL}, llama_tensors};
static const struct preset_family mixtral = {"mixtral", "MixtralForCausalLM", "num_local_experts", "intermediate_size", NULL, {NULL, NULL}, mixtral_tensors};
static const struct preset_family qwen3_moe = {"qwen3_moe", "Qwen3MoeForCausalLM", "num_experts", "moe_intermediate_size", NULL, {NULL, NULL}, qwen3_moe_tensors};
static const struct preset_family gpt_oss = {"gpt_oss", "GptOssForCausalLM", "num_local_experts", "intermediate_size", NULL, {"sliding_attention", "full_attention"}, gpt_oss_tensors};
static const struct preset_family glm4_moe = {"glm4_moe", "Glm4MoeForCausalLM", "n_routed_experts", "moe_intermediate_size", "intermediate_size", {NULL, NULL}, glm4_moe_tensors};
static const struct preset_family minimax = {"minimax_m2", "MiniMaxM2ForCausalLM", "num_local_experts", "intermediate_size", NULL, {NULL, NULL}, minimax_tensors};

/* ---- models ------------------------------------------------------------------------------------------------------------------------------------------------- */

#define LLAMA31                                                                                                                                      \
    "\"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"max_position_embeddings\": 131072, \"attention_bias\": false, \"mlp_bias\": false,"        \
    "\"rope_scaling\": {\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\"}"
#define QWEN3_MOE                                                                                                                                    \
    "\"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, \"rope_scaling\": null, \"max_position_embeddings\": 40960, \"attention_bias\": false, \"norm_topk_prob\": true," \
    "\"decoder_sparse_step\": 1, \"mlp_only_layers\": [], \"max_window_layers\": 48, \"use_sliding_window\": false, \"sliding_window\": null, \"router_aux_loss_coef\": 0.001"
#define GPT_OSS                                                                                                                                      \
    "\"rms_norm_eps\": 1e-05, \"rope_theta\": 150000, \"max_position_embeddings\": 131072, \"initial_context_length\": 4096, \"attention_bias\": true, \"sliding_window\": 128," \
    "\"rope_scaling\": {\"beta_fast\": 32.0, \"beta_slow\": 1.0, \"factor\": 32.0, \"original_max_position_embeddings\": 4096, \"rope_type\": \"yarn\", \"truncate\": false},"  \
    "\"swiglu_limit\": 7.0, \"router_aux_loss_coef\": 0.9"
#define ANY (1u << PRESET_BF16 | 1u << PRESET_FP8 | 1u << PRESET_NVFP4)

/* clang-format off */
const struct preset presets[] = {
    {.name = "llama-3.1-8b", .family = &llama, .n_layers = 32, .hidden = 4096, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .ffn = 14336, .vocab = 128256,
     .fp8 = PRESET_FP8_TENSOR, .formats = ANY, .published = PRESET_BF16, .config = LLAMA31},
    {.name = "llama-3.1-70b", .family = &llama, .n_layers = 80, .hidden = 8192, .n_heads = 64, .n_kv_heads = 8, .head_dim = 128, .ffn = 28672, .vocab = 128256,
     .fp8 = PRESET_FP8_TENSOR, .formats = ANY, .published = PRESET_BF16, .config = LLAMA31},
    {.name = "llama-3.1-405b", .family = &llama, .n_layers = 126, .hidden = 16384, .n_heads = 128, .n_kv_heads = 8, .head_dim = 128, .ffn = 53248, .vocab = 128256,
     .fp8 = PRESET_FP8_TENSOR, .formats = ANY, .published = PRESET_BF16, .config = LLAMA31},
    {.name = "mixtral-8x7b", .family = &mixtral, .n_layers = 32, .hidden = 4096, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128,
     .n_experts = 8, .n_chosen = 2, .expert_ffn = 14336, .vocab = 32000, .fp8 = PRESET_FP8_TENSOR, .formats = ANY, .published = PRESET_BF16,
     .config = "\"rms_norm_eps\": 1e-05, \"rope_theta\": 1000000.0, \"max_position_embeddings\": 32768, \"sliding_window\": null, \"router_aux_loss_coef\": 0.02"},
    {.name = "qwen3-30b-a3b", .family = &qwen3_moe, .n_layers = 48, .hidden = 2048, .n_heads = 32, .n_kv_heads = 4, .head_dim = 128,
     .n_experts = 128, .n_chosen = 8, .expert_ffn = 768, .vocab = 151936, .fp8 = PRESET_FP8_BLOCK, .formats = ANY, .published = PRESET_BF16,
     .config = QWEN3_MOE ", \"intermediate_size\": 6144"},
    {.name = "qwen3-235b-a22b", .family = &qwen3_moe, .n_layers = 94, .hidden = 4096, .n_heads = 64, .n_kv_heads = 4, .head_dim = 128,
     .n_experts = 128, .n_chosen = 8, .expert_ffn = 1536, .vocab = 151936, .fp8 = PRESET_FP8_BLOCK, .formats = ANY, .published = PRESET_BF16,
     .config = QWEN3_MOE ", \"intermediate_size\": 12288"},
    {.name = "gpt-oss-20b", .family = &gpt_oss, .n_layers = 24, .hidden = 2880, .n_heads = 64, .n_kv_heads = 8, .head_dim = 64,
     .n_experts = 32, .n_chosen = 4, .expert_ffn = 2880, .vocab = 201088, .formats = 1u << PRESET_BF16 | 1u << PRESET_MXFP4, .published = PRESET_MXFP4, .config = GPT_OSS},
    {.name = "gpt-oss-120b", .family = &gpt_oss, .n_layers = 36, .hidden = 2880, .n_heads = 64, .n_kv_heads = 8, .head_dim = 64,
     .n_experts = 128, .n_chosen = 4, .expert_ffn = 2880, .vocab = 201088, .formats = 1u << PRESET_BF16 | 1u << PRESET_MXFP4, .published = PRESET_MXFP4, .config = GPT_OSS},
    {.name = "glm-4.7", .family = &glm4_moe, .n_layers = 92, .hidden = 5120, .n_heads = 96, .n_kv_heads = 8, .head_dim = 128, .ffn = 12288, .n_dense = 3,
     .n_experts = 160, .n_chosen = 8, .expert_ffn = 1536, .n_shared = 1, .vocab = 151552, .fp8 = PRESET_FP8_ROW, .formats = ANY, .published = PRESET_BF16,
     .config = "\"rms_norm_eps\": 1e-05, \"rope_theta\": 1000000, \"rope_scaling\": null, \"partial_rotary_factor\": 0.5, \"max_position_embeddings\": 202752, \"attention_bias\": true,"
               "\"use_qk_norm\": true, \"n_group\": 1, \"topk_group\": 1, \"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5"},
    {.name = "minimax-m2", .family = &minimax, .n_layers = 62, .hidden = 3072, .n_heads = 48, .n_kv_heads = 8, .head_dim = 128,
     .n_experts = 256, .n_chosen = 8, .expert_ffn = 1536, .vocab = 200064, .fp8 = PRESET_FP8_BLOCK, .formats = ANY, .published = PRESET_FP8,
     .config = "\"rms_norm_eps\": 1e-06, \"rope_theta\": 5000000, \"rotary_dim\": 64, \"max_position_embeddings\": 196608, \"use_qk_norm\": true, \"qk_norm_type\": \"per_layer\","
               "\"scoring_func\": \"sigmoid\", \"use_routing_bias\": true, \"shared_intermediate_size\": 0, \"router_aux_loss_coef\": 0.001"},
    {.name = NULL},
};
/* clang-format on */

const struct preset *preset_find(const char *name)
{
    for (const struct preset *p = presets; p->name; p++)
        if (strcmp(p->name, name) == 0)
            return p;
    return NULL;
}
