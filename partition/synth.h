/* A checkpoint that is made up: a known model's tensors by name, shape and format, with the layers and experts that are wanted, in the hub's spelling.
 *
 * create → read → destroy. Pure: which tensors there are, how each is stored and from what its numbers are drawn, how files are laid out, and what config.json says; the bytes are made by
 * runtime/synthesise.h. The same preset, layer and seed give the same bytes whatever else is left out. */
#ifndef PARTITION_SYNTH_H
#define PARTITION_SYNTH_H

#include "base/arena.h"
#include "partition/presets.h"
#include "partition/write.h"

enum synth_stored {
    SYNTH_BF16,
    SYNTH_F32,
    SYNTH_NVFP4,     /* targets: codes, scales of 16, the tensor's scale */
    SYNTH_MXFP4,     /* codes, scales of 32 */
    SYNTH_FP8,       /* codes, the tensor's scale (ModelOpt) */
    SYNTH_FP8_ROW,   /* codes, a scale a row, BF16 (compressed-tensors) */
    SYNTH_FP8_BLOCK, /* codes, scales of 128 × 128 */
    SYNTH_CONSTANT   /* one F32: mean */
};

/* One tensor of numbers, or of a model's words beside it. */
struct synth_item {
    const char *name;
    enum synth_stored stored;
    uint64_t rows, columns; /* as they lie; a vector is one row */
    float mean, std;
    uint64_t shown;         /* rows that are written even where only headers are: of vectors all, of embedding and head one, so that they differ */
    size_t first_target, n_targets;
};

struct synth_options {
    const struct preset *preset;
    enum preset_format format;
    int n_layers, n_experts; /* 0: the model's own */
    uint64_t seed;
    uint64_t max_file_bytes;
};

struct synth_plan {
    struct arena arena;
    struct synth_options options;
    struct preset shape; /* of what is made: options applied */
    struct synth_item *items;
    size_t n_items, items_capacity;
    struct out_tensor *targets;
    size_t n_targets, targets_capacity;
    struct out_file *files;
    size_t n_files;
    char *index;                 /* text of model.safetensors.index.json; NULL: one file */
    char *config, *quant_config; /* texts of config.json, and of ModelOpt's hf_quant_config.json, which may be NULL */
    uint64_t n_weights;          /* numbers of the model, its scales not counted */
    uint64_t bytes;              /* of all files */
};

/* ST_INVALID: layers, experts or a format that the preset does not have, by name. */
enum st synth_plan_create(const struct synth_options *options, struct synth_plan **plan, struct err *e);
void synth_plan_destroy(struct synth_plan *p);

/* A tokenizer of bytes for its vocabulary: token N ≥ 256 is the text " N", the last ids are those that ChatML and an end need. Texts of tokenizer.json and tokenizer_config.json, malloc'ed. */
enum st synth_tokenizer(int64_t vocab, char **tokenizer, char **config, struct err *e);

#endif
