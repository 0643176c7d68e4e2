/* The shapes of known models, for checkpoints that are made up (synth.h): numbers as their publishers' config.json has them, text part only. Data; see presets.c. */
#ifndef PARTITION_PRESETS_H
#define PARTITION_PRESETS_H

#include <stdbool.h>
#include <stdint.h>

/* How matrices are stored, in the spelling of whoever publishes this model so. */
enum preset_format { PRESET_BF16, PRESET_FP8, PRESET_NVFP4, PRESET_MXFP4, PRESET_FORMATS };
/* "bf16", "fp8", "nvfp4", "mxfp4", NULL-terminated, by number. */
extern const char *const preset_format_names[PRESET_FORMATS + 1];

/* What FP8 means: ModelOpt's scale a tensor, compressed-tensors' scale a row, DeepSeek's scale for 128 × 128. */
enum preset_fp8 { PRESET_FP8_TENSOR, PRESET_FP8_ROW, PRESET_FP8_BLOCK };

struct preset {
    const char *name; /* "llama-3.1-8b" */
    const struct preset_family *family;
    int n_layers, hidden, n_heads, n_kv_heads, head_dim;
    int ffn, n_dense;                                  /* of dense layers; how many of them come first where the others have experts */
    int n_experts, n_chosen, expert_ffn, n_shared;     /* 0: dense */
    int64_t vocab;
    enum preset_fp8 fp8;
    unsigned formats;                                  /* bits 1 << enum preset_format */
    enum preset_format published;                      /* what --format is where nobody says */
    const char *config;                                /* JSON members: what config.json holds beside what follows from the numbers above */
};

extern const struct preset presets[]; /* the last one has no name */
const struct preset *preset_find(const char *name); /* NULL: there is none */

/* ---- families: which tensors a model has, and what its config.json calls the numbers ------------------------------------------------------------------------ */

enum preset_place { PRESET_BEFORE, PRESET_LAYER, PRESET_DENSE, PRESET_SPARSE, PRESET_EXPERT, PRESET_AFTER };
enum preset_kind {
    PRESET_NORM,   /* a vector near 1, BF16 */
    PRESET_VECTOR, /* a vector around 0: biases, sinks; BF16 */
    PRESET_F32,    /* the same in F32, whatever the format: correction biases of routers */
    PRESET_PLAIN,  /* a matrix that stays BF16: embedding, head, router */
    PRESET_LINEAR, /* a module: ".weight", and what its format has beside it */
    PRESET_FUSED   /* GPT-OSS's experts [E, out, in]: BF16 transposed, or blocks and scales */
};

/* shape: a letter an axis, outermost first: V vocabulary, H hidden, Q n_heads · head_dim, K n_kv_heads · head_dim, D head_dim, A n_heads, F ffn, E experts, M expert_ffn,
 * G 2 · expert_ffn, S n_shared · expert_ffn. In a layer's name "model.layers.N." stands before it; "#" is the expert's number. */
struct preset_tensor {
    enum preset_place place;
    enum preset_kind kind;
    const char *name, *shape;
};

struct preset_family {
    const char *model_type, *architecture;
    const char *experts_key, *expert_ffn_key, *ffn_key; /* of config.json; NULL: not there */
    const char *layer_types[2];                         /* by turns; NULL: config.json does not say */
    const struct preset_tensor *tensors;                /* the last one has no name */
};

#endif
