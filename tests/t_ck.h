/* Small writers of checkpoints for tests: safetensors and GGUF, right by default and wrong where a test wants it.
 *
 * Tensors without data become holes of the file: a 405B-shaped checkpoint takes no disk. Dimensions are outermost first, as in struct ck_tensor. */
#ifndef TESTS_T_CK_H
#define TESTS_T_CK_H

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/t.h"

/* ---- bytes that grow ---- */

struct t_bytes {
    unsigned char *data;
    size_t n, capacity;
};

static inline void t_put(struct t_bytes *b, const void *data, size_t n) {
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n);
        b->data = realloc(b->data, b->capacity);
        assert_non_null(b->data);
    }
    if (n) memcpy(b->data + b->n, data, n);
    b->n += n;
}
static inline void t_put_le(struct t_bytes *b, uint64_t value, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) t_put(b, &(unsigned char){(unsigned char)(value >> (8 * i))}, 1);
}
static inline void t_put_text(struct t_bytes *b, const char *text) { t_put(b, text, strlen(text)); }
static inline void t_bytes_free(struct t_bytes *b) {
    free(b->data);
    *b = (struct t_bytes){0};
}

/* A file of two parts: what is in memory, and tensors at places behind it. */
static inline void t_pwrite(int fd, const void *data, size_t n, uint64_t at) {
    for (size_t done = 0; done < n;) {
        ssize_t wrote = pwrite(fd, (const char *)data + done, n - done, (off_t)(at + done));
        assert_true(wrote > 0);
        done += (size_t)wrote;
    }
}

/* ---- safetensors ---- */

struct t_tensor {
    const char *name, *dtype; /* "F32" */
    int n_dims;
    uint64_t dims[8];
    const void *data; /* NULL: a hole */
    uint64_t bytes;
};

struct t_safetensors_options {
    const char *metadata; /* JSON of __metadata__; NULL: none */
    int n_spaces;         /* after the header: any length is legal */
};

static inline void t_safetensors(const char *path, const struct t_tensor *tensors, size_t n, const struct t_safetensors_options *options) {
    struct t_bytes b = {0};
    char text[1024];
    uint64_t at = 0;
    t_put_le(&b, 0, 8);
    t_put_text(&b, "{");
    if (options && options->metadata) {
        t_put_text(&b, "\"__metadata__\":");
        t_put_text(&b, options->metadata);
        if (n) t_put_text(&b, ",");
    }
    for (size_t i = 0; i < n; i++) {
        snprintf(text, sizeof text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", tensors[i].name, tensors[i].dtype);
        t_put_text(&b, text);
        for (int d = 0; d < tensors[i].n_dims; d++) {
            snprintf(text, sizeof text, "%s%" PRIu64, d ? "," : "", tensors[i].dims[d]);
            t_put_text(&b, text);
        }
        snprintf(text, sizeof text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + tensors[i].bytes);
        t_put_text(&b, text);
        at += tensors[i].bytes;
    }
    t_put_text(&b, "}");
    for (int i = 0; options && i < options->n_spaces; i++) t_put_text(&b, " ");
    for (size_t i = 0; i < 8; i++) b.data[i] = (unsigned char)((b.n - 8) >> (8 * i));
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    t_pwrite(fd, b.data, b.n, 0);
    uint64_t place = b.n;
    for (size_t i = 0; i < n; place += tensors[i++].bytes)
        if (tensors[i].data) t_pwrite(fd, tensors[i].data, tensors[i].bytes, place);
    assert_int_equal(ftruncate(fd, (off_t)place), 0);
    close(fd);
    t_bytes_free(&b);
}

/* ---- GGUF ---- */

enum { T_GGUF_MAX_TENSORS = 4096 };
/* ggml's numbers of types, and of kinds of values. */
enum { T_GGML_F32 = 0, T_GGML_F16 = 1, T_GGML_Q4_1 = 3, T_GGML_Q8_0 = 8, T_GGML_Q2_K = 10, T_GGML_Q6_K = 14, T_GGML_BF16 = 30 };
enum { T_U8, T_I8, T_U16, T_I16, T_U32, T_I32, T_F32, T_BOOL, T_STRING, T_ARRAY, T_U64, T_I64, T_F64 };

struct t_gguf {
    struct t_bytes pairs, tensors;
    uint64_t n_pairs, n_tensors;
    uint32_t alignment; /* 0: 32; another one must also be written as general.alignment */
    uint32_t version;   /* 0: 3 */
    uint64_t data_bytes;
    struct {
        const void *data;
        uint64_t bytes, offset;
    } places[T_GGUF_MAX_TENSORS];
};

static inline void t_gguf_text(struct t_bytes *b, const char *text) {
    t_put_le(b, strlen(text), 8);
    t_put_text(b, text);
}
static inline void t_gguf_key(struct t_gguf *g, const char *key, uint32_t kind) {
    t_gguf_text(&g->pairs, key);
    t_put_le(&g->pairs, kind, 4);
    g->n_pairs++;
}
/* Any whole number or boolean: kind decides its width. */
static inline void t_gguf_number(struct t_gguf *g, const char *key, uint32_t kind, uint64_t value) {
    static const unsigned char bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    t_gguf_key(g, key, kind);
    t_put_le(&g->pairs, value, bytes[kind]);
}
static inline void t_gguf_u32(struct t_gguf *g, const char *key, uint32_t value) { t_gguf_number(g, key, T_U32, value); }
static inline void t_gguf_f32(struct t_gguf *g, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    t_gguf_number(g, key, T_F32, bits);
}
static inline void t_gguf_str(struct t_gguf *g, const char *key, const char *value) {
    t_gguf_key(g, key, T_STRING);
    t_gguf_text(&g->pairs, value);
}
static inline void t_gguf_strings(struct t_gguf *g, const char *key, const char *const *values, uint64_t n) {
    t_gguf_key(g, key, T_ARRAY);
    t_put_le(&g->pairs, T_STRING, 4);
    t_put_le(&g->pairs, n, 8);
    for (uint64_t i = 0; i < n; i++) t_gguf_text(&g->pairs, values[i]);
}
/* kind T_I32, T_F32, T_U8 …: n elements of that width at values. */
static inline void t_gguf_array(struct t_gguf *g, const char *key, uint32_t kind, const void *values, uint64_t n, size_t element_bytes) {
    t_gguf_key(g, key, T_ARRAY);
    t_put_le(&g->pairs, kind, 4);
    t_put_le(&g->pairs, n, 8);
    t_put(&g->pairs, values, n * element_bytes);
}
/* The description alone, with an offset of the caller's choice. */
static inline void t_gguf_describe(struct t_gguf *g, const char *name, uint32_t type, int n_dims, const uint64_t *dims, uint64_t offset) {
    t_gguf_text(&g->tensors, name);
    t_put_le(&g->tensors, (uint64_t)n_dims, 4);
    for (int i = n_dims; i-- > 0;) t_put_le(&g->tensors, dims[i], 8);
    t_put_le(&g->tensors, type, 4);
    t_put_le(&g->tensors, offset, 8);
    g->n_tensors++;
}
/* data is borrowed until the file is written. */
static inline void t_gguf_tensor(struct t_gguf *g, const char *name, uint32_t type, int n_dims, const uint64_t *dims, const void *data,
                                 uint64_t bytes) {
    uint64_t mask = (g->alignment ? g->alignment : 32) - 1;
    assert_true(g->n_tensors < T_GGUF_MAX_TENSORS);
    g->places[g->n_tensors].data = data;
    g->places[g->n_tensors].bytes = bytes;
    g->places[g->n_tensors].offset = g->data_bytes;
    t_gguf_describe(g, name, type, n_dims, dims, g->data_bytes);
    g->data_bytes = (g->data_bytes + bytes + mask) & ~mask;
}
/* Writes the file and frees what g holds. Returns the file's size. */
static inline uint64_t t_gguf_write(struct t_gguf *g, const char *path) {
    struct t_bytes b = {0};
    uint64_t mask = (g->alignment ? g->alignment : 32) - 1;
    t_put_text(&b, "GGUF");
    t_put_le(&b, g->version ? g->version : 3, 4);
    t_put_le(&b, g->n_tensors, 8);
    t_put_le(&b, g->n_pairs, 8);
    t_put(&b, g->pairs.data, g->pairs.n);
    t_put(&b, g->tensors.data, g->tensors.n);
    uint64_t begin = (b.n + mask) & ~mask, total = begin + g->data_bytes;
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    t_pwrite(fd, b.data, b.n, 0);
    assert_int_equal(ftruncate(fd, (off_t)total), 0);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (g->places[i].data) t_pwrite(fd, g->places[i].data, g->places[i].bytes, begin + g->places[i].offset);
    close(fd);
    t_bytes_free(&b);
    t_bytes_free(&g->pairs);
    t_bytes_free(&g->tensors);
    memset(g, 0, sizeof *g);
    return total;
}

#endif
