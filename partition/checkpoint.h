/* A checkpoint: names, shapes, formats, and where the bytes lie. Headers only; no tensor is read here.
 *
 * open → find / read metadata → close. Everything in it is hostile until checked: sizes are bounded, products are checked for overflow, every tensor lies inside its
 * file and overlaps no other, names are unique. Errors name file and tensor or key. Nothing is allocated by a count that a file declares beyond what its size allows. */
#ifndef PARTITION_CHECKPOINT_H
#define PARTITION_CHECKPOINT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"
#include "kernels/formats.h"

#define CK_MAX_DIMS 4

/* Dtypes of safetensors that are no format of a matrix by themselves, but may be one of several tensors that make one (quant.h): codes, scales, zero points. */
enum ck_raw { CK_RAW_NONE, CK_RAW_U8, CK_RAW_I8, CK_RAW_I32, CK_RAW_I64, CK_RAW_F8_E4M3, CK_RAW_F8_E8M0 };

struct ck_tensor {
    const char *name;
    enum format format;          /* valid only where unsupported == NULL */
    const char *unsupported;     /* name of a type that this build cannot read: refused when a model wants the tensor, listed by inspect */
    enum ck_raw raw;             /* unsupported by itself, but of use beside others */
    int n_dims;
    uint64_t dims[CK_MAX_DIMS];  /* outermost first (GGUF's order reversed): a matrix is [out, in] */
    uint32_t file;               /* index into files */
    uint64_t offset, bytes;      /* in that file */
};

enum ck_kind { CK_SAFETENSORS, CK_GGUF };

struct checkpoint;

/* path: a directory with config.json and *.safetensors (single, or sharded with model.safetensors.index.json), a GGUF file (any part of a split set, or a directory that
 * holds one set), or a hub name "org/model" found in the local Hugging Face cache (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, ~/.cache/huggingface). */
enum st ck_open(const char *path, struct checkpoint **ck, struct err *e);
void ck_close(struct checkpoint *ck);

enum ck_kind ck_kind_of(const struct checkpoint *ck);
const char *ck_path(const struct checkpoint *ck); /* as resolved */
size_t ck_n_tensors(const struct checkpoint *ck);
const struct ck_tensor *ck_tensor_at(const struct checkpoint *ck, size_t i); /* sorted by name */
const struct ck_tensor *ck_find(const struct checkpoint *ck, const char *name); /* NULL: not there */
size_t ck_n_files(const struct checkpoint *ck);
const char *ck_file_path(const struct checkpoint *ck, size_t i);
/* Digest of all headers (names, shapes, formats, offsets, sizes of files): "the same model" for the hello. */
struct digest ck_digest(const struct checkpoint *ck);

/* Small tensors wanted while planning (rope_freqs.weight; a tied head's comparison): reads and dequantises the whole tensor to F32; at most max_elements. malloc'ed, caller frees. */
enum st ck_read_f32(const struct checkpoint *ck, const struct ck_tensor *t, size_t max_elements, float **values, struct err *e);
/* The bytes of a small tensor of any type, at most max_bytes. malloc'ed, caller frees. */
enum st ck_read_bytes(const struct checkpoint *ck, const struct ck_tensor *t, size_t max_bytes, void **bytes, struct err *e);
/* Whether two tensors of equal format and shape hold the same bytes (streamed). */
enum st ck_same_bytes(const struct checkpoint *ck, const struct ck_tensor *a, const struct ck_tensor *b, bool *same, struct err *e);

/* ---- metadata ---- */

/* safetensors: the parsed JSON file of that name beside the weights (config.json, tokenizer.json, …), NULL if absent; borrowed, parsed at first use.
 * A malformed one is ST_INVALID. Not thread-safe. */
enum st ck_json(const struct checkpoint *ck, const char *file_name, const json_t **root, struct err *e);

/* GGUF: one key–value pair. Numbers of any integer type are widened. */
enum gguf_kind { GGUF_UINT, GGUF_INT, GGUF_FLOAT, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY };
struct gguf_string {
    const char *data; /* borrowed from the mapping; not terminated */
    uint64_t bytes;
};
struct gguf_value {
    enum gguf_kind kind;
    union {
        uint64_t u;
        int64_t i;
        double f;
        bool b;
        struct gguf_string string;
        struct {
            enum gguf_kind element; /* never GGUF_ARRAY */
            uint64_t n;
            const void *opaque; /* for gguf_array_* */
        } array;
    };
};
/* false: no such key (or not a GGUF). */
bool ck_gguf_get(const struct checkpoint *ck, const char *key, struct gguf_value *value);
/* All pairs, sorted by key, as the file has them (key, type and value), for who copies them. Returns the key. */
size_t ck_gguf_n_pairs(const struct checkpoint *ck);
const char *ck_gguf_raw(const struct checkpoint *ck, size_t i, const void **pair, size_t *bytes);
uint32_t ck_gguf_type(const struct ck_tensor *t); /* ggml's number, of unsupported ones too */
/* Elements of an array value; i < n; the element kind must match (asserted). */
struct gguf_string ck_gguf_array_string(const struct checkpoint *ck, const struct gguf_value *array, uint64_t i);
int64_t ck_gguf_array_int(const struct checkpoint *ck, const struct gguf_value *array, uint64_t i);
double ck_gguf_array_float(const struct checkpoint *ck, const struct gguf_value *array, uint64_t i);

bool ck_has_suffix(const char *text, const char *suffix);
/* Whole components of a dotted name: "mlp.gate" is in "model.layers.0.mlp.gate", but not in "….mlp.gate_proj". */
bool ck_has_components(const char *name, const char *components);
uint64_t ck_n_elements(const struct ck_tensor *t);

#endif
