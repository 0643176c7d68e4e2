/* What checkpoint.c, safetensors.c, gguf.c and hub.c share. Nobody else includes this, except tests and fuzzers.
 *
 * A reader takes its bytes from a ck_source (a file, or memory for the fuzzers), adds tensors and checks their ranges; checkpoint.c then sorts by name. While a
 * checkpoint is opened its tensors are in the order of reading; names and strings are in its arena from the start. */
#ifndef PARTITION_CHECKPOINT_PRIV_H
#define PARTITION_CHECKPOINT_PRIV_H

#include "base/arena.h"
#include "partition/checkpoint.h"

/* The official reader's bound, and more than any real header. */
#define CK_MAX_SAFETENSORS_HEADER 100000000u
/* A vocabulary of 256k tokens with merges takes about 16 MB. */
#define CK_MAX_GGUF_HEADER (1u << 30)
#define CK_MAX_JSON ((size_t)512 << 20)
#define CK_MAX_NAME 1024
#define CK_MAX_FILES 100000

struct ck_source {
    const char *where; /* path, for errors */
    int fd;            /* −1: memory */
    const unsigned char *memory;
    uint64_t bytes;
};

struct ck_file {
    const char *path;
    uint64_t bytes;
};

struct gguf_pair {
    const char *key;
    struct gguf_value value;
    const unsigned char *raw; /* key, type and value as the file has them */
    size_t raw_bytes;
};

struct ck_json_file {
    struct ck_json_file *next;
    const char *name;
    json_t *root; /* NULL: not there */
};

struct checkpoint {
    enum ck_kind kind;
    struct arena arena;
    const char *path;
    const unsigned char *memory; /* NULL: real files */
    struct ck_file *files;
    size_t n_files;
    struct ck_tensor *tensors; /* malloc'ed, grows */
    size_t n_tensors, capacity;
    struct base_hasher *hasher;
    struct digest digest;
    struct ck_json_file *json;  /* those asked for so far */
    unsigned char *gguf_header; /* of the first part; values borrow from it */
    struct gguf_pair *pairs;    /* sorted by key */
    size_t n_pairs;
};

/* ---- checkpoint.c ---- */

/* A regular file that is no Git LFS pointer. where is borrowed. */
enum st ck_source_open(struct ck_source *s, const char *path, struct err *e);
void ck_source_close(struct ck_source *s);
enum st ck_source_read(const struct ck_source *s, uint64_t offset, void *out, size_t bytes, struct err *e);

/* A zeroed tensor at the end of the list, or NULL without memory. */
struct ck_tensor *ck_add_tensor(struct checkpoint *ck);
enum st ck_set_files(struct checkpoint *ck, size_t n_files, struct err *e);
/* Sorts tensors[first …] by offset and checks that none overlaps another; gaps are refused too where `packed` (then they must fill [begin, end) of the file). */
enum st ck_check_ranges(struct checkpoint *ck, size_t first, const char *where, bool packed, uint64_t begin, uint64_t end, struct err *e);
/* Sorts by name, refuses a name twice, closes the digest. */
enum st ck_finish(struct checkpoint *ck, struct err *e);

/* The same from memory, as if it were one file with nothing beside it: for fuzzers. The bytes are borrowed until close. */
enum st ck_open_memory(enum ck_kind kind, const void *data, size_t bytes, struct checkpoint **ck, struct err *e);
/* Makes ck_json(file_name) answer this text. */
enum st ck_put_json(struct checkpoint *ck, const char *file_name, const char *text, size_t bytes, struct err *e);

const char *ck_base_name(const char *path);
/* Names in a directory that end so, sorted, in ck's arena; hidden ones are left out. */
enum st ck_list(struct checkpoint *ck, const char *dir, const char *suffix, const char ***names, size_t *n_names, struct err *e);
/* "PREFIX-00002-of-00003SUFFIX" → the length of PREFIX, 2 and 3; false: not of this form. Parts count from 1. */
bool ck_part_name(const char *name, const char *suffix, size_t *n_prefix, unsigned *i_part, unsigned *n_parts);

/* ---- safetensors.c ---- */
enum st ck_safetensors_read(struct checkpoint *ck, uint32_t i_file, const struct ck_source *s, struct err *e);
enum st ck_safetensors_open(struct checkpoint *ck, const char *path, struct err *e); /* a directory, or one file */

/* ---- gguf.c ---- */
enum st ck_gguf_read(struct checkpoint *ck, uint32_t i_file, const struct ck_source *s, struct err *e);
enum st ck_gguf_open(struct checkpoint *ck, const char *path, struct err *e); /* a file */
enum st ck_gguf_open_dir(struct checkpoint *ck, const char *dir, struct err *e);

/* ---- hub.c ---- */
bool ck_hub_is_name(const char *name);
/* The snapshot's directory, in ck's arena. */
enum st ck_hub_find(struct checkpoint *ck, const char *name, const char **dir, struct err *e);

#endif
