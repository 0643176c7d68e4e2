/* What stands before the data of a checkpoint that is written: headers and where each tensor goes. Pure; files are the caller's.
 *
 * Fill an array of out_tensor, then part_write_safetensors or a gguf_head with part_write_gguf: they choose files and offsets and make the headers. Headers are malloc'ed, released by
 * part_write_release. Sources: the safetensors format description, ggml's docs/gguf.md. */
#ifndef PARTITION_WRITE_H
#define PARTITION_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "partition/checkpoint.h"

struct out_tensor {
    const char *name;
    const char *dtype;      /* safetensors */
    uint32_t element_bytes; /* safetensors: wider ones lie first in a file, so that each is aligned */
    uint32_t gguf_type;
    int n_dims;
    uint64_t dims[CK_MAX_DIMS]; /* outermost first, in elements */
    uint64_t bytes;
    /* chosen here */
    uint32_t file;
    uint64_t offset; /* in that file */
};

struct out_file {
    char name[64];
    unsigned char *head;
    size_t head_bytes;
    uint64_t bytes; /* of the whole file */
};

/* Files of at most max_file_bytes of data (a larger tensor has one of its own), tensors in the order given. One file is called model.safetensors, more of them
 * model-00001-of-00003.safetensors; *index is then the text of model.safetensors.index.json (malloc'ed), else NULL. */
enum st part_write_safetensors(struct out_tensor *tensors, size_t n_tensors, uint64_t max_file_bytes, struct out_file **files, size_t *n_files, char **index, struct err *e);

/* Key–value pairs of a GGUF, appended one by one. A failed allocation is kept until part_write_gguf tells of it. */
struct gguf_head {
    unsigned char *pairs;
    size_t bytes, capacity;
    uint64_t n_pairs;
    bool failed;
};
void gguf_put_u32(struct gguf_head *h, const char *key, uint32_t value);
void gguf_put_f32(struct gguf_head *h, const char *key, float value);
void gguf_put_bool(struct gguf_head *h, const char *key, bool value);
void gguf_put_string(struct gguf_head *h, const char *key, const char *text, size_t bytes);
/* A pair as another file has it: key, type and value. */
void gguf_put_raw(struct gguf_head *h, const void *pair, size_t bytes);
/* The elements follow, n times. */
void gguf_put_strings(struct gguf_head *h, const char *key, uint64_t n);
void gguf_put_element(struct gguf_head *h, const char *text, size_t bytes);
void gguf_put_i32s(struct gguf_head *h, const char *key, const int32_t *values, uint64_t n);
void gguf_head_release(struct gguf_head *h);

/* One file, version 3; alignment: a power of two, as general.alignment among the pairs says (32 without it). */
enum st part_write_gguf(const struct gguf_head *h, uint32_t alignment, struct out_tensor *tensors, size_t n_tensors, struct out_file **file, struct err *e);

void part_write_release(struct out_file *files, size_t n_files);

#endif
