/* GGUF, versions 2 and 3, little-endian: magic, version, two counts, key–value pairs, tensor descriptions, then the data from the next multiple of general.alignment on.
 * Source: ggml's docs/gguf.md.
 *
 * The header's length is known only when it has been walked, so a walk over the first megabyte says how much more it needs (ST_AGAIN), and the walk begins anew over twice
 * as much: what is allocated follows the file's real size, never a count in it. A first walk checks all bounds and records nothing; the second one records. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "partition/checkpoint_priv.h"

/* ---- types ---- */

/* Every type that ggml stores, so that tensors we cannot read yet have a size that is checked. ggml.h, `type_traits`. */
static const struct {
    const char *name;
    uint16_t block_columns, block_bytes;
} ggml_types[] = {
    [0] = {"F32", 1, 4},        [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},    [3] = {"Q4_1", 32, 20},    [6] = {"Q5_0", 32, 22},
    [7] = {"Q5_1", 32, 24},     [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},    [10] = {"Q2_K", 256, 84},  [11] = {"Q3_K", 256, 110},
    [12] = {"Q4_K", 256, 144},  [13] = {"Q5_K", 256, 176},   [14] = {"Q6_K", 256, 210}, [15] = {"Q8_K", 256, 292}, [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74}, [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50}, [20] = {"IQ4_NL", 32, 18}, [21] = {"IQ3_S", 256, 110},
    [22] = {"IQ2_S", 256, 82},  [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},       [25] = {"I16", 1, 2},      [26] = {"I32", 1, 4},
    [27] = {"I64", 1, 8},       [28] = {"F64", 1, 8},        [29] = {"IQ1_M", 256, 56}, [30] = {"BF16", 1, 2},     [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},  [39] = {"MXFP4", 32, 17},    [40] = {"NVFP4", 64, 36},  [41] = {"Q1_0", 128, 18},
};
#define N_GGML_TYPES (sizeof ggml_types / sizeof ggml_types[0])

enum value_type { V_U8, V_I8, V_U16, V_I16, V_U32, V_I32, V_F32, V_BOOL, V_STRING, V_ARRAY, V_U64, V_I64, V_F64, V_COUNT };
static const unsigned char value_bytes[V_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static enum gguf_kind kind_of(uint32_t type) {
    switch (type) {
    case V_U8:
    case V_U16:
    case V_U32:
    case V_U64: return GGUF_UINT;
    case V_F32:
    case V_F64: return GGUF_FLOAT;
    case V_BOOL: return GGUF_BOOL;
    case V_STRING: return GGUF_STRING;
    case V_ARRAY: return GGUF_ARRAY;
    default: return GGUF_INT;
    }
}

static uint64_t le(const unsigned char *p, size_t bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | p[bytes];
    return value;
}

static void scalar(uint32_t type, const unsigned char *p, struct gguf_value *v) {
    size_t bytes = value_bytes[type];
    uint64_t bits = le(p, bytes);
    v->kind = kind_of(type);
    switch (v->kind) {
    case GGUF_UINT: v->u = bits; break;
    case GGUF_INT: v->i = bytes == 8 ? (int64_t)bits : (int64_t)(bits << (64 - 8 * bytes)) >> (64 - 8 * bytes); break;
    case GGUF_BOOL: v->b = bits != 0; break;
    default:
        if (type == V_F32) {
            uint32_t half = (uint32_t)bits;
            float f;
            memcpy(&f, &half, sizeof f);
            v->f = f;
        } else {
            memcpy(&v->f, &bits, sizeof v->f);
        }
    }
}

/* What value.array.opaque points to. */
struct gguf_array {
    uint32_t type;
    const unsigned char *data; /* first element */
    const uint32_t *starts;    /* strings: where each one's length lies, from data on */
};

/* ---- the walk ---- */

struct raw_tensor {
    struct gguf_string name;
    uint32_t n_dims, type;
    uint64_t dims[CK_MAX_DIMS], offset;
};

struct walk {
    struct checkpoint *ck;
    uint32_t i_file;
    const char *where;
    const unsigned char *p; /* the first n_held bytes of the file */
    uint64_t n_held, file_bytes, at;
    uint64_t n_needed; /* ST_AGAIN: hold at least so many */
    bool record;
    uint32_t alignment, type_of_alignment;
    struct gguf_pair *pairs; /* record */
    uint64_t n_pairs, n_tensors;
    struct err *e;
};

#define AT(w) (w)->where, (unsigned long long)(w)->at

static enum st take(struct walk *w, uint64_t bytes, const char *what, const unsigned char **p) {
    if (bytes > w->file_bytes - w->at)
        return err_set(w->e, ST_INVALID, "%s:%llu: %s of %llu bytes, but the file ends at %llu: damaged, cut off, or still being fetched", AT(w),
                       what, (unsigned long long)bytes, (unsigned long long)w->file_bytes);
    if (bytes > w->n_held - w->at) {
        w->n_needed = w->at + bytes;
        return ST_AGAIN;
    }
    *p = w->p + w->at;
    w->at += bytes;
    return ST_OK;
}

static enum st take_u32(struct walk *w, const char *what, uint32_t *value) {
    const unsigned char *p;
    enum st st = take(w, 4, what, &p);
    if (st == ST_OK) *value = (uint32_t)le(p, 4);
    return st;
}

static enum st take_u64(struct walk *w, const char *what, uint64_t *value) {
    const unsigned char *p;
    enum st st = take(w, 8, what, &p);
    if (st == ST_OK) *value = le(p, 8);
    return st;
}

static enum st take_string(struct walk *w, const char *what, struct gguf_string *s) {
    uint64_t start = w->at, bytes;
    const unsigned char *p;
    enum st st = take_u64(w, what, &bytes);
    if (st == ST_OK) st = take(w, bytes, what, &p);
    if (st != ST_OK) {
        w->at = start;
        return st;
    }
    *s = (struct gguf_string){.data = (const char *)p, .bytes = bytes};
    return ST_OK;
}

/* Keys and names: bounded, not empty, without control characters (they end up in messages). */
static enum st take_name(struct walk *w, const char *what, uint64_t max_bytes, struct gguf_string *s) {
    uint64_t start = w->at, bytes = 0;
    enum st st = take_u64(w, what, &bytes);
    if (st != ST_OK) return st;
    w->at = start;
    if (bytes == 0 || bytes > max_bytes)
        return err_set(w->e, ST_INVALID, "%s:%llu: %s has a length of %llu bytes; 1 to %llu are legal", AT(w), what, (unsigned long long)bytes,
                       (unsigned long long)max_bytes);
    if ((st = take_string(w, what, s)) != ST_OK) return st;
    for (uint64_t i = 0; i < bytes; i++)
        if ((unsigned char)s->data[i] < 0x20) {
            w->at = start;
            return err_set(w->e, ST_INVALID, "%s:%llu: %s has a control character in it", AT(w), what);
        }
    return ST_OK;
}

#define TEXT(s) (int)((s).bytes < 200 ? (s).bytes : 200), (s).data

static enum st no_memory(struct walk *w) { return err_set(w->e, ST_NO_MEMORY, "%s: no memory for its header", w->where); }

static enum st walk_array(struct walk *w, struct gguf_string key, struct gguf_value *v) {
    uint32_t type;
    uint64_t n, bytes;
    enum st st;
    if ((st = take_u32(w, "array", &type)) != ST_OK || (st = take_u64(w, "array", &n)) != ST_OK) return st;
    if (type == V_ARRAY) return err_set(w->e, ST_UNSUPPORTED, "%s:%llu: key %.*s: arrays in arrays are not supported", AT(w), TEXT(key));
    if (type >= V_COUNT) return err_set(w->e, ST_INVALID, "%s:%llu: key %.*s: an array of type %u, which GGUF does not have", AT(w), TEXT(key), type);
    /* Said before the first element is looked at: each takes at least its fixed size, a string its length's eight bytes. */
    if (__builtin_mul_overflow(n, (uint64_t)(type == V_STRING ? 8 : value_bytes[type]), &bytes) || bytes > w->file_bytes - w->at)
        return err_set(w->e, ST_INVALID, "%s:%llu: key %.*s: an array of %llu elements is longer than the file", AT(w), TEXT(key),
                       (unsigned long long)n);

    struct gguf_array *array = NULL;
    uint32_t *starts = NULL;
    if (w->record) {
        array = base_arena_alloc(&w->ck->arena, sizeof *array);
        if (type == V_STRING) starts = base_arena_array(&w->ck->arena, n ? n : 1, sizeof *starts);
        if (!array || (type == V_STRING && !starts)) return no_memory(w);
        *array = (struct gguf_array){.type = type, .data = w->p + w->at, .starts = starts};
    }
    uint64_t begin = w->at;
    if (type == V_STRING) {
        struct gguf_string s;
        for (uint64_t i = 0; i < n; i++) {
            if (starts) starts[i] = (uint32_t)(w->at - begin); /* fits: the header is below 4 GiB */
            if ((st = take_string(w, "string", &s)) != ST_OK) return st;
        }
    } else {
        const unsigned char *p;
        if ((st = take(w, bytes, "array", &p)) != ST_OK) return st;
        for (uint64_t i = 0; type == V_BOOL && i < n; i++)
            if (p[i] > 1)
                return err_set(w->e, ST_INVALID, "%s:%llu: key %.*s: element %llu is neither true nor false", AT(w), TEXT(key),
                               (unsigned long long)i);
    }
    v->kind = GGUF_ARRAY;
    v->array.element = kind_of(type);
    v->array.n = n;
    v->array.opaque = array;
    return ST_OK;
}

static bool is(struct gguf_string s, const char *text) { return s.bytes == strlen(text) && memcmp(s.data, text, s.bytes) == 0; }

static enum st walk_pair(struct walk *w, uint64_t i_pair) {
    struct gguf_string key;
    uint32_t type;
    const uint64_t begin = w->at;
    enum st st;
    if ((st = take_name(w, "key", 65535, &key)) != ST_OK || (st = take_u32(w, "value", &type)) != ST_OK) return st;
    struct gguf_value v = {0};
    const unsigned char *p;
    switch (type) {
    case V_ARRAY: st = walk_array(w, key, &v); break;
    case V_STRING:
        v.kind = GGUF_STRING;
        st = take_string(w, "string", &v.string);
        break;
    default:
        if (type >= V_COUNT) return err_set(w->e, ST_INVALID, "%s:%llu: key %.*s: type %u, which GGUF does not have", AT(w), TEXT(key), type);
        if ((st = take(w, value_bytes[type], "value", &p)) != ST_OK) return st;
        if (type == V_BOOL && *p > 1) return err_set(w->e, ST_INVALID, "%s:%llu: key %.*s is neither true nor false", AT(w), TEXT(key));
        scalar(type, p, &v);
    }
    if (st != ST_OK) return st;
    if (is(key, "general.alignment")) {
        if (type != V_U32)
            return err_set(w->e, ST_INVALID, "%s:%llu: general.alignment has value type %u; it must be a 32-bit unsigned number", AT(w), type);
        if (v.u == 0 || (v.u & (v.u - 1)))
            return err_set(w->e, ST_INVALID, "%s:%llu: general.alignment is %llu; it must be a power of two", AT(w), (unsigned long long)v.u);
        w->alignment = (uint32_t)v.u;
    }
    if (w->record) {
        struct gguf_pair *pair = &w->pairs[i_pair];
        pair->key = base_arena_strndup(&w->ck->arena, key.data, key.bytes);
        pair->value = v;
        pair->raw = w->p + begin;
        pair->raw_bytes = w->at - begin;
        if (!pair->key) return no_memory(w);
    }
    return ST_OK;
}

/* One description; its place in the data is checked when the alignment and the header's end are known. */
static enum st walk_tensor(struct walk *w) {
    struct raw_tensor raw;
    enum st st;
    if ((st = take_name(w, "tensor name", CK_MAX_NAME, &raw.name)) != ST_OK || (st = take_u32(w, "tensor", &raw.n_dims)) != ST_OK) return st;
    if (raw.n_dims > CK_MAX_DIMS)
        return err_set(w->e, ST_INVALID, "%s:%llu: tensor %.*s has %u dimensions; at most %d are legal", AT(w), TEXT(raw.name), raw.n_dims,
                       CK_MAX_DIMS);
    for (uint32_t i = 0; i < raw.n_dims; i++) {
        if ((st = take_u64(w, "tensor", &raw.dims[i])) != ST_OK) return st;
        if (raw.dims[i] == 0) return err_set(w->e, ST_INVALID, "%s:%llu: tensor %.*s: dimension %u is 0", AT(w), TEXT(raw.name), i);
    }
    if ((st = take_u32(w, "tensor", &raw.type)) != ST_OK || (st = take_u64(w, "tensor", &raw.offset)) != ST_OK) return st;
    if (!w->record) return ST_OK;

    if (raw.type >= N_GGML_TYPES || !ggml_types[raw.type].name)
        return err_set(w->e, ST_UNSUPPORTED, "%s:%llu: tensor %.*s is stored as type %u, which is not known", AT(w), TEXT(raw.name), raw.type);
    uint64_t columns = raw.n_dims ? raw.dims[0] : 1, bytes = ggml_types[raw.type].block_bytes;
    if (columns % ggml_types[raw.type].block_columns)
        return err_set(w->e, ST_INVALID, "%s:%llu: tensor %.*s: rows of %llu columns are no whole number of %s blocks of %u", AT(w), TEXT(raw.name),
                       (unsigned long long)columns, ggml_types[raw.type].name, ggml_types[raw.type].block_columns);
    bool overflow = __builtin_mul_overflow(bytes, columns / ggml_types[raw.type].block_columns, &bytes);
    uint64_t n_elements = 1;
    for (uint32_t i = 0; i < raw.n_dims; i++) {
        overflow = overflow || __builtin_mul_overflow(n_elements, raw.dims[i], &n_elements);
        if (i) overflow = overflow || __builtin_mul_overflow(bytes, raw.dims[i], &bytes);
    }
    if (overflow)
        return err_set(w->e, ST_INVALID, "%s:%llu: tensor %.*s: the product of its dimensions is too large for any file", AT(w), TEXT(raw.name));

    struct ck_tensor *t = ck_add_tensor(w->ck);
    if (!t || !(t->name = base_arena_strndup(&w->ck->arena, raw.name.data, raw.name.bytes))) return no_memory(w);
    if (kern_format_from_gguf(raw.type, &t->format, NULL) != ST_OK) t->unsupported = ggml_types[raw.type].name;
    t->n_dims = (int)raw.n_dims;
    for (uint32_t i = 0; i < raw.n_dims; i++) t->dims[i] = raw.dims[raw.n_dims - 1 - i];
    t->file = w->i_file;
    t->offset = raw.offset; /* from the data's begin on: made absolute by place() */
    t->bytes = bytes;
    return ST_OK;
}

static enum st walk_header(struct walk *w) {
    const unsigned char *magic;
    uint32_t version;
    enum st st;
    w->at = 0;
    w->alignment = 32;
    if ((st = take(w, 4, "GGUF magic", &magic)) != ST_OK) return st;
    if (memcmp(magic, "GGUF", 4) != 0)
        return err_set(w->e, ST_INVALID, "%s: not a GGUF file (it begins with %02x %02x %02x %02x)", w->where, magic[0], magic[1], magic[2],
                       magic[3]);
    if ((st = take_u32(w, "version", &version)) != ST_OK) return st;
    if (version != 2 && version != 3) {
        if (version && !(version & 0xffff))
            return err_set(w->e, ST_UNSUPPORTED, "%s: a big-endian GGUF file, which is not supported; convert it with gguf_convert_endian", w->where);
        return err_set(w->e, ST_UNSUPPORTED, "%s: GGUF version %u is not supported; known: 2, 3", w->where, version);
    }
    if ((st = take_u64(w, "count of tensors", &w->n_tensors)) != ST_OK || (st = take_u64(w, "count of keys", &w->n_pairs)) != ST_OK) return st;
    /* The shortest description: name 9, dimensions 4, type 4, offset 8; the shortest pair: key 9, type 4, value 1. */
    if (w->n_tensors > w->file_bytes / 25 || w->n_pairs > w->file_bytes / 14)
        return err_set(w->e, ST_INVALID, "%s:8: declares %llu tensors and %llu keys, more than a file of %llu bytes can hold", w->where,
                       (unsigned long long)w->n_tensors, (unsigned long long)w->n_pairs, (unsigned long long)w->file_bytes);
    if (w->record && w->n_pairs) {
        w->pairs = base_arena_array(&w->ck->arena, w->n_pairs, sizeof *w->pairs); /* all of them were walked over before */
        if (!w->pairs) return no_memory(w);
    }
    for (uint64_t i = 0; i < w->n_pairs; i++)
        if ((st = walk_pair(w, i)) != ST_OK) return st;
    for (uint64_t i = 0; i < w->n_tensors; i++)
        if ((st = walk_tensor(w)) != ST_OK) return st;
    return ST_OK;
}

/* Offsets made absolute and checked; *end is where the last tensor ends. */
static enum st place(struct walk *w, size_t first, uint64_t *end) {
    struct checkpoint *ck = w->ck;
    uint64_t mask = w->alignment - 1, begin = (w->at + mask) & ~mask;
    *end = w->at;
    for (size_t i = first; i < ck->n_tensors; i++) {
        struct ck_tensor *t = &ck->tensors[i];
        uint64_t last;
        if (t->offset & mask)
            return err_set(w->e, ST_INVALID, "%s: tensor %.200s: its offset %llu is no multiple of the alignment %u", w->where, t->name,
                           (unsigned long long)t->offset, w->alignment);
        if (__builtin_add_overflow(t->offset, begin, &t->offset) || __builtin_add_overflow(t->offset, t->bytes, &last) || last > w->file_bytes)
            return err_set(w->e, ST_INVALID,
                           "%s: tensor %.200s (%llu bytes) ends behind the end of the file (%llu bytes): damaged, cut off, or still being fetched",
                           w->where, t->name, (unsigned long long)t->bytes, (unsigned long long)w->file_bytes);
        if (last > *end) *end = last;
    }
    return ck_check_ranges(ck, first, w->where, false, begin, w->file_bytes, w->e);
}

static int by_key(const void *a, const void *b) { return strcmp(((const struct gguf_pair *)a)->key, ((const struct gguf_pair *)b)->key); }

/* ---- split sets: keys that count from 0, names that count from 1 ---- */

static enum st split_number(const struct checkpoint *ck, const char *where, const char *key, uint64_t *value, struct err *e) {
    struct gguf_value v;
    if (!ck_gguf_get(ck, key, &v)) return ST_NOT_FOUND;
    if (v.kind == GGUF_INT && v.i >= 0) v = (struct gguf_value){.kind = GGUF_UINT, .u = (uint64_t)v.i};
    if (v.kind != GGUF_UINT || v.u > INT32_MAX) return err_set(e, ST_INVALID, "%s: %s is not a count", where, key);
    *value = v.u;
    return ST_OK;
}

/* *n_parts is 1 for a whole file, whatever its name looks like. *i_part counts from 0. */
static enum st split_of(const struct checkpoint *ck, const char *where, uint64_t *i_part, uint64_t *n_parts, struct err *e) {
    *i_part = 0;
    *n_parts = 1;
    enum st st = split_number(ck, where, "split.count", n_parts, e);
    if (st == ST_NOT_FOUND || (st == ST_OK && *n_parts <= 1)) {
        *n_parts = 1;
        return ST_OK;
    }
    if (st != ST_OK) return st;
    st = split_number(ck, where, "split.no", i_part, e);
    if (st == ST_NOT_FOUND || (st == ST_OK && *i_part >= *n_parts))
        return err_set(e, ST_INVALID, "%s: split.count is %llu, but split.no is %s", where, (unsigned long long)*n_parts,
                       st == ST_OK ? "not below it" : "missing");
    return st;
}

/* A part of a set that is followed by another GGUF was joined by cat. */
static enum st refuse_joined(const struct ck_source *s, uint64_t end, uint32_t alignment, struct err *e) {
    uint64_t places[2] = {end, (end + alignment - 1) & ~(uint64_t)(alignment - 1)};
    for (int i = 0; i < 2; i++) {
        char magic[4];
        if (places[i] > s->bytes || s->bytes - places[i] < sizeof magic) continue;
        enum st st = ck_source_read(s, places[i], magic, sizeof magic, e);
        if (st != ST_OK) return st;
        if (memcmp(magic, "GGUF", 4) == 0)
            return err_set(e, ST_INVALID,
                           "%s:%llu: another GGUF file begins here: the parts of a split model were joined by cat; keep them as they were (any part "
                           "opens the set) or join them with "
                           "'llama-gguf-split --merge'",
                           s->where, (unsigned long long)places[i]);
    }
    return ST_OK;
}

enum st ck_gguf_read(struct checkpoint *ck, uint32_t i_file, const struct ck_source *s, struct err *e) {
    struct walk w = {.ck = ck, .i_file = i_file, .where = s->where, .file_bytes = s->bytes, .e = e};
    unsigned char *held = NULL;
    uint64_t wanted = 1u << 20;
    enum st st;
    do {
        if (wanted > s->bytes) wanted = s->bytes;
        if (wanted > CK_MAX_GGUF_HEADER) {
            st = err_set(e, ST_UNSUPPORTED, "%s: its header is longer than %u bytes", s->where, CK_MAX_GGUF_HEADER);
            goto out;
        }
        unsigned char *larger = realloc(held, wanted ? wanted : 1);
        if (!larger) {
            st = no_memory(&w);
            goto out;
        }
        held = larger;
        if ((st = ck_source_read(s, w.n_held, held + w.n_held, wanted - w.n_held, e)) != ST_OK) goto out;
        w.p = held;
        w.n_held = wanted;
        st = walk_header(&w);
        wanted = w.n_needed > 2 * wanted ? w.n_needed : 2 * wanted;
    } while (st == ST_AGAIN);
    if (st != ST_OK) goto out;

    size_t first = ck->n_tensors;
    uint64_t end, i_part, n_parts;
    w.record = true;
    if ((st = walk_header(&w)) != ST_OK || (st = place(&w, first, &end)) != ST_OK) goto out;
    if (w.n_pairs) qsort(w.pairs, w.n_pairs, sizeof *w.pairs, by_key);
    for (uint64_t i = 1; i < w.n_pairs; i++)
        if (strcmp(w.pairs[i - 1].key, w.pairs[i].key) == 0) {
            st = err_set(e, ST_INVALID, "%s: key %.200s is there twice", s->where, w.pairs[i].key);
            goto out;
        }
    base_hasher_update(ck->hasher, held, w.at);
    base_hasher_update_u64(ck->hasher, s->bytes);
    free(ck->gguf_header);
    ck->gguf_header = held;
    held = NULL;
    ck->pairs = w.pairs;
    ck->n_pairs = w.n_pairs;
    st = split_of(ck, s->where, &i_part, &n_parts, e);
    if (st == ST_OK && n_parts > 1) st = refuse_joined(s, end, w.alignment, e);
out:
    free(held);
    return st;
}

static enum st read_path(struct checkpoint *ck, uint32_t i_file, const char *path, struct err *e) {
    struct ck_source s;
    enum st st = ck_source_open(&s, path, e);
    if (st != ST_OK) return st;
    ck->files[i_file] = (struct ck_file){.path = path, .bytes = s.bytes};
    st = ck_gguf_read(ck, i_file, &s, e);
    ck_source_close(&s);
    return st;
}

enum st ck_gguf_open(struct checkpoint *ck, const char *path, struct err *e) {
    ck->kind = CK_GGUF;
    uint64_t i_part, n_parts;
    enum st st = ck_set_files(ck, 1, e);
    if (st != ST_OK || (st = read_path(ck, 0, path, e)) != ST_OK || (st = split_of(ck, path, &i_part, &n_parts, e)) != ST_OK || n_parts == 1)
        return st;

    /* A set. The keys decide; the other parts can only be found by name, so the name has to agree. */
    size_t n_prefix;
    unsigned i_name, n_name;
    if (!ck_part_name(path, ".gguf", &n_prefix, &i_name, &n_name) || n_name != n_parts || i_name != i_part + 1)
        return err_set(e, ST_INVALID,
                       "%s: by its keys this is part %llu of %llu, so its name has to end in -%05llu-of-%05llu.gguf for the others to be found", path,
                       (unsigned long long)i_part + 1, (unsigned long long)n_parts, (unsigned long long)i_part + 1, (unsigned long long)n_parts);
    ck->n_tensors = 0;
    base_hasher_destroy(ck->hasher);
    ck->hasher = base_hasher_create();
    if (!ck->hasher) return err_set(e, ST_NO_MEMORY, "%s: no memory", path);
    if ((st = ck_set_files(ck, n_parts, e)) != ST_OK) return st;
    /* From the last to the first, so that the first one's keys are those that stay: the others have only split.* ones. */
    for (uint64_t i = n_parts; i-- > 0;) {
        const char *part =
            base_arena_printf(&ck->arena, "%.*s-%05llu-of-%05llu.gguf", (int)n_prefix, path, (unsigned long long)i + 1, (unsigned long long)n_parts);
        if (!part) return err_set(e, ST_NO_MEMORY, "%s: no memory", path);
        st = read_path(ck, (uint32_t)i, part, e);
        if (st == ST_NOT_FOUND)
            return err_set(e, ST_NOT_FOUND, "%s: part %llu of %llu is missing: %s", path, (unsigned long long)i + 1, (unsigned long long)n_parts,
                           part);
        uint64_t i_here, n_here;
        if (st != ST_OK || (st = split_of(ck, part, &i_here, &n_here, e)) != ST_OK) return st;
        if (i_here != i || n_here != n_parts)
            return err_set(e, ST_INVALID, "%s: by its name part %llu of %llu, by its keys part %llu of %llu", part, (unsigned long long)i + 1,
                           (unsigned long long)n_parts, (unsigned long long)i_here + 1, (unsigned long long)n_here);
    }
    uint64_t n_tensors;
    st = split_number(ck, path, "split.tensors.count", &n_tensors, e);
    if (st == ST_NOT_FOUND) return ST_OK;
    if (st == ST_OK && n_tensors != ck->n_tensors)
        return err_set(e, ST_INVALID, "%s: split.tensors.count is %llu, but its %llu parts hold %zu tensors", path, (unsigned long long)n_tensors,
                       (unsigned long long)n_parts, ck->n_tensors);
    return st;
}

enum st ck_gguf_open_dir(struct checkpoint *ck, const char *dir, struct err *e) {
    const char **names;
    size_t n_names, n = 0;
    enum st st = ck_list(ck, dir, ".gguf", &names, &n_names, e);
    if (st != ST_OK) return st;
    for (size_t i = 0; i < n_names; i++)
        if (strncmp(names[i], "mmproj", 6) != 0) names[n++] = names[i]; /* a vision projector lies beside its model */
    if (n == 0) return err_set(e, ST_NOT_FOUND, "%s: no *.gguf with a model in it", dir);
    size_t n_prefix_0 = 0, n_prefix;
    unsigned i_part, n_parts_0 = 0, n_parts;
    for (size_t i = 0; n > 1 && i < n; i++) {
        bool part = ck_part_name(names[i], ".gguf", &n_prefix, &i_part, &n_parts);
        if (i == 0) n_prefix_0 = n_prefix, n_parts_0 = n_parts;
        if (!part || n_prefix != n_prefix_0 || n_parts != n_parts_0 || strncmp(names[i], names[0], n_prefix) != 0)
            return err_set(e, ST_INVALID, "%s: several models in it (%.120s, %.120s …); name one file", dir, names[0], names[i ? i : 1]);
    }
    const char *path = base_arena_printf(&ck->arena, "%s/%s", dir, names[0]);
    if (!path) return err_set(e, ST_NO_MEMORY, "%s: no memory", dir);
    return ck_gguf_open(ck, path, e);
}

/* ---- values ---- */

uint32_t ck_gguf_type(const struct ck_tensor *t) {
    if (!t->unsupported) return (uint32_t)kern_format(t->format)->gguf_type;
    for (uint32_t i = 0; i < N_GGML_TYPES; i++)
        if (ggml_types[i].name == t->unsupported) return i; /* the table's own string */
    BASE_ASSERT(!"not of a GGUF");
}

size_t ck_gguf_n_pairs(const struct checkpoint *ck) { return ck->n_pairs; }

const char *ck_gguf_raw(const struct checkpoint *ck, size_t i, const void **pair, size_t *bytes) {
    BASE_ASSERT(i < ck->n_pairs);
    *pair = ck->pairs[i].raw;
    *bytes = ck->pairs[i].raw_bytes;
    return ck->pairs[i].key;
}

bool ck_gguf_get(const struct checkpoint *ck, const char *key, struct gguf_value *value) {
    struct gguf_pair wanted = {.key = key};
    const struct gguf_pair *found = ck->n_pairs ? bsearch(&wanted, ck->pairs, ck->n_pairs, sizeof *ck->pairs, by_key) : NULL;
    if (!found) return false;
    *value = found->value;
    return true;
}

static const struct gguf_array *element(const struct gguf_value *v, uint64_t i) {
    BASE_ASSERT(v->kind == GGUF_ARRAY && i < v->array.n);
    return v->array.opaque;
}

struct gguf_string ck_gguf_array_string(const struct checkpoint *ck, const struct gguf_value *array, uint64_t i) {
    (void)ck;
    const struct gguf_array *a = element(array, i);
    BASE_ASSERT(array->array.element == GGUF_STRING);
    const unsigned char *p = a->data + a->starts[i];
    return (struct gguf_string){.data = (const char *)p + 8, .bytes = le(p, 8)};
}

int64_t ck_gguf_array_int(const struct checkpoint *ck, const struct gguf_value *array, uint64_t i) {
    (void)ck;
    const struct gguf_array *a = element(array, i);
    BASE_ASSERT(array->array.element == GGUF_INT || array->array.element == GGUF_UINT);
    struct gguf_value v;
    scalar(a->type, a->data + i * value_bytes[a->type], &v);
    if (v.kind == GGUF_INT) return v.i;
    return v.u > INT64_MAX ? INT64_MAX : (int64_t)v.u; /* no id or size is so large: whoever wanted one finds it out of range */
}

double ck_gguf_array_float(const struct checkpoint *ck, const struct gguf_value *array, uint64_t i) {
    (void)ck;
    const struct gguf_array *a = element(array, i);
    BASE_ASSERT(array->array.element == GGUF_FLOAT);
    struct gguf_value v;
    scalar(a->type, a->data + i * value_bytes[a->type], &v);
    return v.f;
}
