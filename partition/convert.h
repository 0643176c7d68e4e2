/* What a checkpoint becomes when its matrices are stored in another format: which tensor is encoded, copied or renamed, where each goes, and what config.json or the GGUF keys say.
 *
 * create → (the caller adds a tokenizer to head) → layout → read → destroy. Pure: headers, config.json and small tensors are read, nothing is written; the bytes are made by
 * runtime/encode.h.
 *
 * Encoded are the matrices of linear layers. Embeddings, the head, norms, biases, routers and whatever the patterns match stay as they are (from a quantised GGUF into safetensors: as
 * F32, which holds them exactly; from quantised safetensors as F32 too); so do matrices whose rows the format's groups do not divide. Spelling: compressed-tensors' (nvfp4-pack-quantized, mxfp4-pack-quantized,
 * float-quantized) or llama.cpp's GGUF. Between the two only Llama has names on both sides. */
#ifndef PARTITION_CONVERT_H
#define PARTITION_CONVERT_H

#include "base/arena.h"
#include "partition/checkpoint.h"
#include "partition/config.h"
#include "partition/program.h"
#include "partition/write.h"

enum convert_format { CONVERT_NVFP4, CONVERT_MXFP4, CONVERT_FP8, CONVERT_Q8_0, CONVERT_FORMATS };
/* "nvfp4" …, NULL-terminated, by number. */
extern const char *const convert_format_names[CONVERT_FORMATS + 1];

enum convert_as { CONVERT_COPY, CONVERT_TO_F32, CONVERT_ENCODE };

struct convert_item {
    /* What is read; NULL: data. Of a matrix that is quantised in several tensors: as one in blocks of its scheme's format, and weight says where its rows come from. */
    const struct ck_tensor *source;
    const struct part_weight *weight; /* NULL: the source's own bytes */
    const void *data;
    enum convert_as as;
    uint64_t rows, columns; /* of the source as a matrix; a vector is one column whose rows may change places */
    uint64_t head_rows;     /* rows change places inside heads of so many (rope's pairs: neighbours in GGUF, else halves), 0: they do not */
    size_t first_target;    /* into targets. ENCODE: codes, scales, tensor scale (NVFP4); codes, scales (MXFP4, FP8); blocks (Q8_0) */
    size_t n_targets;
};

struct convert_plan {
    struct arena arena;
    enum convert_format format;
    bool gguf; /* what is written */
    struct convert_item *items; /* in the order of the source's bytes */
    size_t n_items;
    struct out_tensor *targets;
    size_t n_targets;
    struct out_file *files; /* layout */
    size_t n_files;
    char *index, *config; /* texts beside safetensors; index may be NULL */
    struct gguf_head head;
    uint32_t alignment;
    struct model_config model; /* where the spelling changes */
    size_t n_encoded, n_left;  /* matrices of linear layers; left: by patterns or for their shape */
    size_t n_dequantised;      /* matrices that are quantised already */
    const char *stored_as;     /* the first of them */
    size_t n_odd;              /* … of those left, for their shape */
    const char *odd;           /* the first of them */
    uint64_t source_bytes, target_bytes;
};

struct convert_options {
    enum convert_format format;
    /* Modules to leave as they are: names, wildcards (* ? []), or "re:" and a pattern that matches from the name's begin. One that matches nothing is ST_NOT_FOUND. */
    const char *const *ignore;
    int n_ignore;
};

/* ST_UNSUPPORTED: a quantised tensor that is not understood; a spelling or model that cannot be expressed on the other side, by name. */
enum st convert_plan_create(const struct checkpoint *ck, const struct convert_options *options, struct convert_plan **plan, struct err *e);
/* Files, offsets, headers. max_file_bytes: of safetensors. */
enum st convert_plan_layout(struct convert_plan *p, uint64_t max_file_bytes, struct err *e);
void convert_plan_destroy(struct convert_plan *p);

#endif
