/* GGUF, version 3, little-endian: magic, version, counts, pairs, descriptions of tensors, and their data, each from a multiple of the alignment on. */
#include <stdlib.h>
#include <string.h>

#include "partition/write.h"

enum { TYPE_U32 = 4, TYPE_I32 = 5, TYPE_F32 = 6, TYPE_BOOL = 7, TYPE_STRING = 8, TYPE_ARRAY = 9 };

static void put(struct gguf_head *h, const void *data, size_t bytes)
{
    if (h->failed)
        return;
    if (h->capacity - h->bytes < bytes) {
        const size_t capacity = 2 * h->capacity + bytes + 4096;
        unsigned char *larger = realloc(h->pairs, capacity);
        if (!larger) {
            h->failed = true;
            return;
        }
        h->pairs = larger;
        h->capacity = capacity;
    }
    if (bytes)
        memcpy(h->pairs + h->bytes, data, bytes);
    h->bytes += bytes;
}

static void put_number(struct gguf_head *h, uint64_t value, int bytes)
{
    unsigned char little[8];
    for (int i = 0; i < bytes; i++)
        little[i] = (unsigned char)(value >> 8 * i);
    put(h, little, (size_t)bytes);
}

void gguf_put_element(struct gguf_head *h, const char *text, size_t bytes)
{
    put_number(h, bytes, 8);
    put(h, text, bytes);
}

static void put_key(struct gguf_head *h, const char *key, uint32_t type)
{
    h->n_pairs++;
    gguf_put_element(h, key, strlen(key));
    put_number(h, type, 4);
}

void gguf_put_u32(struct gguf_head *h, const char *key, uint32_t value)
{
    put_key(h, key, TYPE_U32);
    put_number(h, value, 4);
}

void gguf_put_f32(struct gguf_head *h, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    put_key(h, key, TYPE_F32);
    put_number(h, bits, 4);
}

void gguf_put_bool(struct gguf_head *h, const char *key, bool value)
{
    put_key(h, key, TYPE_BOOL);
    put_number(h, value, 1);
}

void gguf_put_string(struct gguf_head *h, const char *key, const char *text, size_t bytes)
{
    put_key(h, key, TYPE_STRING);
    gguf_put_element(h, text, bytes);
}

void gguf_put_raw(struct gguf_head *h, const void *pair, size_t bytes)
{
    h->n_pairs++;
    put(h, pair, bytes);
}

void gguf_put_strings(struct gguf_head *h, const char *key, uint64_t n)
{
    put_key(h, key, TYPE_ARRAY);
    put_number(h, TYPE_STRING, 4);
    put_number(h, n, 8);
}

void gguf_put_i32s(struct gguf_head *h, const char *key, const int32_t *values, uint64_t n)
{
    put_key(h, key, TYPE_ARRAY);
    put_number(h, TYPE_I32, 4);
    put_number(h, n, 8);
    for (uint64_t i = 0; i < n; i++)
        put_number(h, (uint32_t)values[i], 4);
}

void gguf_head_release(struct gguf_head *h)
{
    free(h->pairs);
    *h = (struct gguf_head){0};
}

enum st part_write_gguf(const struct gguf_head *h, uint32_t alignment, struct out_tensor *tensors, size_t n_tensors, struct out_file **file, struct err *e)
{
    const uint64_t mask = (uint64_t)alignment - 1;
    struct gguf_head whole = {.failed = h->failed};
    put(&whole, "GGUF", 4);
    put_number(&whole, 3, 4);
    put_number(&whole, n_tensors, 8);
    put_number(&whole, h->n_pairs, 8);
    put(&whole, h->pairs, h->bytes);
    uint64_t at = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        struct out_tensor *t = &tensors[i];
        gguf_put_element(&whole, t->name, strlen(t->name));
        put_number(&whole, (uint64_t)t->n_dims, 4);
        for (int d = t->n_dims; d-- > 0;)
            put_number(&whole, t->dims[d], 8);
        put_number(&whole, t->gguf_type, 4);
        put_number(&whole, at, 8);
        t->file = 0;
        t->offset = at;
        at = (at + t->bytes + mask) & ~mask;
    }
    while (!whole.failed && (whole.bytes & mask))
        put_number(&whole, 0, 1);
    struct out_file *out = whole.failed ? NULL : calloc(1, sizeof *out);
    if (!out) {
        gguf_head_release(&whole);
        return err_set(e, ST_NO_MEMORY, "no memory for a header");
    }
    for (size_t i = 0; i < n_tensors; i++)
        tensors[i].offset += whole.bytes;
    *out = (struct out_file){.name = "model.gguf", .head = whole.pairs, .head_bytes = whole.bytes, .bytes = whole.bytes + at};
    *file = out;
    return ST_OK;
}
