/* Hub and GGUF spellings of a model's configuration → one description.
 *
 * Reads config.json (hub files and transformers 5: rope_theta / rope_scaling / rope_parameters, type / rope_type, torch_dtype / dtype) or GGUF keys. Real files contradict
 * themselves: the tensors that are there decide; flags are checked against them and a difference is told in a line of the log. What fits no reading is refused with the key named. */
#ifndef PARTITION_CONFIG_H
#define PARTITION_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "partition/checkpoint.h"

struct quant;

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN /* longrope, dynamic: refused by name until a family needs them */ };

struct rope_config {
    enum rope_kind kind;
    double theta;
    double factor;                    /* linear, llama3, yarn */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;      /* yarn: turns within original_context above which a frequency stays, and below which it is slowed by factor */
    bool truncate;                    /* yarn: the two ends of the ramp are rounded outwards to whole dimensions */
    int64_t original_context;         /* llama3, yarn */
    int rotary_dim;                   /* the first rotary_dim dimensions of a head rotate */
    bool interleaved;                 /* pairs (2i, 2i+1): GGUF's llama weights are permuted so; false: halves */
    const double *frequency;          /* [rotary_dim / 2] final inverse frequencies, scaling and rope_freqs.weight applied; by base_math_pow, in double */
    double attention_factor;          /* on cos and sin; 1, yarn: 0.1 · ln factor + 1 unless the file says otherwise */
};

#define CONFIG_MAX_EXPERTS 1024 /* as many as kernels route to */
#define CONFIG_MAX_TOP_K 64

/* As kernels.h has them. */
enum config_router { CONFIG_ROUTER_SOFTMAX, CONFIG_ROUTER_TOPK_SOFTMAX, CONFIG_ROUTER_SIGMOID };
enum config_gate { CONFIG_GATE_SILU, CONFIG_GATE_CLAMPED };

struct moe_config {
    int n_experts; /* routed ones; 0: a dense model */
    int top_k;     /* of them for each token, ≤ CONFIG_MAX_TOP_K */
    int shared_ffn; /* intermediate size of an expert for every token; 0: there is none */
    int ffn;       /* intermediate size of one */
    enum config_router router;
    bool renormalise;       /* weights of a token's experts add up to `scale` */
    double scale;           /* 1 */
    int n_groups, k_groups; /* 1, 1: choose from all */
};

struct model_config {
    const char *family;       /* "llama" */
    const char *name;         /* for people: general.name, _name_or_path or the path's last part */
    int n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn;
    int64_t vocab;            /* rows of the embedding */
    int64_t max_context;      /* what the model was made for; 0 unknown */
    double norm_eps;
    double attention_scale;   /* 1/√head_dim unless the config says otherwise */
    double embedding_scale;   /* 1 */
    enum config_gate gate;
    double gate_alpha, gate_limit; /* CONFIG_GATE_CLAMPED */
    const uint32_t *windows;  /* [n_layers] positions that a layer sees, 0: all; NULL: every layer sees all */
    struct moe_config moe;
    bool tied_head;           /* after looking at the tensors: no head of its own, or one with the same bytes */
    bool attention_bias, output_bias, mlp_bias; /* after looking at the tensors */
    struct rope_config rope;
    bool fp8_cache;           /* declared: the key/value cache may be in FP8 (cache.h) */
    struct quant *quant;      /* what is said about quantised matrices (quant.h); NULL: GGUF, whose tensors say all */
    int32_t opening_token;    /* −1: none named */
    int32_t ends[16];         /* as config.json / generation_config.json / GGUF name them; the tokenizer adds its own */
    int n_ends;
};

/* Everything that config points to lives in arena. */
enum st part_config_read(const struct checkpoint *ck, struct arena *arena, struct model_config *config, struct err *e);

#endif
