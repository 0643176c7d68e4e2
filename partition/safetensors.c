/* safetensors: eight bytes of header length (little-endian), a JSON object {"name": {"dtype", "shape", "data_offsets": [begin, end]}}, then the data.
 *
 * Rules from the format's description (huggingface/safetensors, README "Format"): the header begins with '{' and may end in spaces; offsets count from the end of the header,
 * leave no gap and share no byte; names are unique. Nothing asks for alignment: real files begin their data at odd places. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "partition/checkpoint_priv.h"

/* All dtypes of the format, with their bits: also those that no kernel reads have a size that must agree. */
static const struct {
    const char *name;
    unsigned bits;
    enum ck_raw raw;
} dtypes[] = {{"BOOL", 8, CK_RAW_NONE},         {"U8", 8, CK_RAW_U8},           {"I8", 8, CK_RAW_I8},           {"F4", 4, CK_RAW_NONE},
              {"F6_E2M3", 6, CK_RAW_NONE},      {"F6_E3M2", 6, CK_RAW_NONE},    {"F8_E4M3", 8, CK_RAW_F8_E4M3}, {"F8_E5M2", 8, CK_RAW_NONE},
              {"F8_E8M0", 8, CK_RAW_F8_E8M0},   {"F8_E4M3FNUZ", 8, CK_RAW_NONE}, {"F8_E5M2FNUZ", 8, CK_RAW_NONE}, {"I16", 16, CK_RAW_NONE},
              {"U16", 16, CK_RAW_NONE},         {"F16", 16, CK_RAW_NONE},       {"BF16", 16, CK_RAW_NONE},      {"I32", 32, CK_RAW_I32},
              {"U32", 32, CK_RAW_NONE},         {"F32", 32, CK_RAW_NONE},       {"C64", 64, CK_RAW_NONE},       {"F64", 64, CK_RAW_NONE},
              {"I64", 64, CK_RAW_I64},          {"U64", 64, CK_RAW_NONE}};
#define N_DTYPES (sizeof dtypes / sizeof dtypes[0])

#define MAX_LISTED_DIMS 16

static bool json_u64(const json_t *value, uint64_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

/* Bytes of a tensor; false: the product overflows, or sub-byte elements do not fill their last byte. */
static bool size_of(unsigned bits, const json_t *shape, uint64_t *bytes) {
    uint64_t n = 1, total;
    size_t i;
    json_t *dim;
    bool empty = false;
    json_array_foreach(shape, i, dim) empty = empty || json_integer_value(dim) == 0;
    if (empty) n = 0;
    json_array_foreach(shape, i, dim) if (__builtin_mul_overflow(n, (uint64_t)json_integer_value(dim), &n)) return false;
    if (__builtin_mul_overflow(n, (uint64_t)bits, &total) || total % 8) return false;
    *bytes = total / 8;
    return true;
}

static enum st read_tensor(struct checkpoint *ck, uint32_t i_file, const char *where, const char *name, const json_t *entry, uint64_t data_begin,
                           uint64_t data_bytes, struct err *e) {
    if (!*name || strlen(name) > CK_MAX_NAME)
        return err_set(e, ST_INVALID, "%s: tensor name of %zu bytes; 1 to %d are legal", where, strlen(name), CK_MAX_NAME);
    if (!json_is_object(entry)) return err_set(e, ST_INVALID, "%s: tensor %.200s: not an object", where, name);
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape"), *range = json_object_get(entry, "data_offsets");
    if (!dtype || !json_is_array(shape) || !json_is_array(range))
        return err_set(e, ST_INVALID, "%s: tensor %.200s: %s is missing or of the wrong type", where, name,
                       !dtype                  ? "dtype"
                       : !json_is_array(shape) ? "shape"
                                               : "data_offsets");

    unsigned bits = 0;
    for (size_t i = 0; i < N_DTYPES; i++)
        if (strcmp(dtypes[i].name, dtype) == 0) bits = dtypes[i].bits;
    if (!bits) return err_set(e, ST_UNSUPPORTED, "%s: tensor %.200s: dtype '%.32s' is not known", where, name, dtype);

    size_t n_dims = json_array_size(shape), i;
    if (n_dims > MAX_LISTED_DIMS) return err_set(e, ST_INVALID, "%s: tensor %.200s: %zu dimensions", where, name, n_dims);
    json_t *dim;
    uint64_t value;
    json_array_foreach(shape, i, dim) if (!json_u64(dim, &value)) return err_set(e, ST_INVALID, "%s: tensor %.200s: dimension %zu is not a size",
                                                                                 where, name, i);

    uint64_t begin, end, bytes;
    if (json_array_size(range) != 2 || !json_u64(json_array_get(range, 0), &begin) || !json_u64(json_array_get(range, 1), &end) || begin > end)
        return err_set(e, ST_INVALID, "%s: tensor %.200s: data_offsets are not [begin, end]", where, name);
    if (!size_of(bits, shape, &bytes))
        return err_set(e, ST_INVALID, "%s: tensor %.200s: the product of its dimensions is no size in bytes", where, name);
    if (end - begin != bytes)
        return err_set(e, ST_INVALID, "%s: tensor %.200s: %s of its shape takes %llu bytes, data_offsets span %llu", where, name, dtype,
                       (unsigned long long)bytes, (unsigned long long)(end - begin));
    if (end > data_bytes)
        return err_set(e, ST_INVALID, "%s: tensor %.200s ends at byte %llu of the data, the file has %llu: cut off, or still being fetched", where,
                       name, (unsigned long long)end, (unsigned long long)data_bytes);

    struct ck_tensor *t = ck_add_tensor(ck);
    if (!t || !(t->name = base_arena_strdup(&ck->arena, name))) return err_set(e, ST_NO_MEMORY, "%s: no memory for its table of tensors", where);
    t->file = i_file;
    t->offset = data_begin + begin;
    t->bytes = bytes;
    if (n_dims > CK_MAX_DIMS) {
        /* Vision towers have a convolution of five: listed with the last ones joined, refused when wanted. */
        char text[256];
        int n = snprintf(text, sizeof text, "%s of %zu dimensions [", dtype, n_dims);
        json_array_foreach(shape, i, dim) if (n < (int)sizeof text - 24) n +=
            snprintf(text + n, sizeof text - (size_t)n, "%s%lld", i ? ", " : "", (long long)json_integer_value(dim));
        t->unsupported = base_arena_printf(&ck->arena, "%s]", text);
        if (!t->unsupported) return err_set(e, ST_NO_MEMORY, "%s: no memory for its table of tensors", where);
    } else if (kern_format_from_safetensors(dtype, &t->format, NULL) != ST_OK) {
        for (i = 0; i < N_DTYPES; i++)
            if (strcmp(dtypes[i].name, dtype) == 0) {
                t->unsupported = dtypes[i].name;
                t->raw = dtypes[i].raw;
            }
    }
    json_array_foreach(shape, i, dim) {
        value = (uint64_t)json_integer_value(dim);
        if (i < CK_MAX_DIMS)
            t->dims[t->n_dims++] = value;
        else
            t->dims[CK_MAX_DIMS - 1] *= value; /* bytes did not overflow, so this does not, unless a dimension is 0: then any product will do */
    }
    return ST_OK;
}

enum st ck_safetensors_read(struct checkpoint *ck, uint32_t i_file, const struct ck_source *s, struct err *e) {
    unsigned char length[8];
    if (s->bytes < sizeof length)
        return err_set(e, ST_INVALID, "%s: %llu bytes are too short for a safetensors file", s->where, (unsigned long long)s->bytes);
    enum st st = ck_source_read(s, 0, length, sizeof length, e);
    if (st != ST_OK) return st;
    uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; i--) header_bytes = header_bytes << 8 | length[i];
    if (header_bytes > CK_MAX_SAFETENSORS_HEADER)
        return err_set(e, ST_INVALID, "%s: declares a header of %llu bytes; at most %u are legal: not a safetensors file?", s->where,
                       (unsigned long long)header_bytes, CK_MAX_SAFETENSORS_HEADER);
    if (header_bytes > s->bytes - sizeof length)
        return err_set(e, ST_INVALID, "%s: declares a header of %llu bytes, but the file has only %llu: cut off, or still being fetched", s->where,
                       (unsigned long long)header_bytes, (unsigned long long)s->bytes);
    char *text = malloc(header_bytes + 1);
    if (!text) return err_set(e, ST_NO_MEMORY, "%s: no memory for its header of %llu bytes", s->where, (unsigned long long)header_bytes);
    json_t *root = NULL;
    if ((st = ck_source_read(s, sizeof length, text, header_bytes, e)) != ST_OK) goto out;
    if (header_bytes < 2 || text[0] != '{') {
        st = err_set(e, ST_INVALID, "%s:8: the header does not begin with '{'", s->where);
        goto out;
    }
    const char *nul = memchr(text, 0, header_bytes);
    if (nul) {
        st = err_set(e, ST_INVALID, "%s:%zu: a NUL in the header: it may be padded with spaces only", s->where, (size_t)(nul - text) + sizeof length);
        goto out;
    }
    if ((st = base_json_parse(s->where, text, header_bytes, &root, e)) != ST_OK) goto out;
    BASE_ASSERT(json_is_object(root));

    base_hasher_update(ck->hasher, text, header_bytes);
    base_hasher_update_u64(ck->hasher, s->bytes);
    uint64_t data_begin = sizeof length + header_bytes;
    size_t first = ck->n_tensors;
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            if (json_is_object(entry) || json_is_null(entry)) continue; /* may be empty; nothing in it matters here */
            st = err_set(e, ST_INVALID, "%s: __metadata__ is not an object", s->where);
            goto out;
        }
        if ((st = read_tensor(ck, i_file, s->where, name, entry, data_begin, s->bytes - data_begin, e)) != ST_OK) goto out;
    }
    st = ck_check_ranges(ck, first, s->where, true, data_begin, s->bytes, e);
out:
    json_decref(root);
    free(text);
    return st;
}

/* ---- which files ---- */

static enum st read_file(struct checkpoint *ck, size_t i_file, const char *path, struct err *e) {
    struct ck_source s;
    enum st st = ck_source_open(&s, path, e);
    if (st != ST_OK) return st;
    ck->files[i_file] = (struct ck_file){.path = path, .bytes = s.bytes};
    st = ck_safetensors_read(ck, (uint32_t)i_file, &s, e);
    ck_source_close(&s);
    return st;
}

static enum st read_files(struct checkpoint *ck, const char *dir, const char *const *names, size_t n, struct err *e) {
    enum st st = ck_set_files(ck, n, e);
    for (size_t i = 0; st == ST_OK && i < n; i++) {
        const char *path = base_arena_printf(&ck->arena, "%s/%s", dir, names[i]);
        st = path ? read_file(ck, i, path, e) : err_set(e, ST_NO_MEMORY, "%s: no memory for its list of files", dir);
    }
    return st;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* The index says which file holds which tensor; the files' own headers are the truth, and every line of the index is checked against them. */
static enum st open_index(struct checkpoint *ck, const char *dir, const char *index_name, struct err *e) {
    const char *index = base_arena_printf(&ck->arena, "%s/%s", dir, index_name);
    struct ck_source s;
    json_t *root = NULL;
    const char **files = NULL;
    enum st st = index ? ck_source_open(&s, index, e) : err_set(e, ST_NO_MEMORY, "%s: no memory", dir);
    if (st != ST_OK) return st;
    ck_source_close(&s);
    if ((st = base_json_load(index, CK_MAX_SAFETENSORS_HEADER, &root, e)) != ST_OK) return st;
    json_t *map = json_is_object(root) ? json_object_get(root, "weight_map") : NULL;
    size_t n_map = json_object_size(map), n = 0, n_files = 0;
    if (!n_map) {
        st = err_set(e, ST_INVALID, "%s: weight_map is missing or empty", index);
        goto out;
    }
    files = malloc(n_map * sizeof *files);
    if (!files) {
        st = err_set(e, ST_NO_MEMORY, "%s: no memory", index);
        goto out;
    }
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value) {
        const char *file = json_string_value(value);
        if (!file || !*file || strchr(file, '/') || strlen(file) > 255 || file[0] == '.') {
            st = err_set(e, ST_INVALID, "%s: weight_map.%.200s is not the name of a file in this directory", index, tensor);
            goto out;
        }
        files[n++] = file;
    }
    qsort(files, n, sizeof *files, by_text);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(files[i], files[n_files - 1]) != 0) files[n_files++] = files[i];

    st = read_files(ck, dir, files, n_files, e);
    if (st == ST_NOT_FOUND && e) {
        struct err inner = *e;
        err_set(e, ST_NOT_FOUND, "%.400s (named by %s)", inner.text, index_name);
    }
    if (st == ST_OK) st = ck_finish(ck, e); /* sorted, so that names can be found; once more at the end does no harm */
    if (st != ST_OK) goto out;
    json_object_foreach(map, tensor, value) {
        const struct ck_tensor *t = ck_find(ck, tensor);
        const char *file = json_string_value(value);
        if (t && strcmp(ck_base_name(ck->files[t->file].path), file) == 0) continue;
        st = t ? err_set(e, ST_INVALID, "%s: tensor %.200s should be in %s, but is in %s", index, tensor, file, ck_base_name(ck->files[t->file].path))
               : err_set(e, ST_INVALID, "%s: tensor %.200s should be in %s, but is not there", index, tensor, file);
        goto out;
    }
    if (n_map < ck->n_tensors)
        LOG_WARNING_ONCE("part", "%s: the files hold %zu tensors that it does not name; they are taken as they are", index, ck->n_tensors - n_map);
out:
    free(files);
    json_decref(root);
    return st;
}

static bool holds(const char *const *names, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

enum st ck_safetensors_open(struct checkpoint *ck, const char *path, struct err *e) {
    ck->kind = CK_SAFETENSORS;
    if (ck_has_suffix(path, ".safetensors")) {
        /* One file by name: config.json lies beside it. One of a set means the set. */
        size_t n_prefix;
        unsigned i_part, n_parts;
        const char *file = path, *name = ck_base_name(path);
        path = name == file ? "." : base_arena_strndup(&ck->arena, file, name == file + 1 ? 1 : (size_t)(name - file) - 1);
        if (!path) return err_set(e, ST_NO_MEMORY, "no memory for a path");
        ck->path = path;
        if (!ck_part_name(name, ".safetensors", &n_prefix, &i_part, &n_parts) || n_parts == 1) return read_files(ck, path, &name, 1, e);
    }
    const char **weights, **indexes;
    size_t n_weights, n_indexes;
    enum st st;
    if ((st = ck_list(ck, path, ".safetensors", &weights, &n_weights, e)) != ST_OK ||
        (st = ck_list(ck, path, ".safetensors.index.json", &indexes, &n_indexes, e)) != ST_OK)
        return st;

    /* transformers' order: the one file of the usual name, then the index of the usual name. A lone index or a lone file of any name leaves no question either. */
    if (holds(weights, n_weights, "model.safetensors")) return read_files(ck, path, (const char *const[]){"model.safetensors"}, 1, e);
    if (holds(indexes, n_indexes, "model.safetensors.index.json")) return open_index(ck, path, "model.safetensors.index.json", e);
    if (n_indexes == 1) return open_index(ck, path, indexes[0], e);
    if (n_indexes > 1)
        return err_set(e, ST_INVALID, "%s: %zu indexes (%.100s, %.100s …) and no model.safetensors.index.json", path, n_indexes, indexes[0],
                       indexes[1]);
    size_t n_prefix, n_prefix_0 = 0;
    unsigned i_part, n_parts, n_parts_0 = 0;
    if (n_weights == 1 && (!ck_part_name(weights[0], ".safetensors", &n_prefix, &i_part, &n_parts) || n_parts == 1))
        return read_files(ck, path, weights, 1, e);

    /* Parts without an index: their names say whether all are there. */
    for (size_t i = 0; i < n_weights; i++) {
        bool part = ck_part_name(weights[i], ".safetensors", &n_prefix, &i_part, &n_parts);
        if (i == 0) n_prefix_0 = n_prefix, n_parts_0 = n_parts;
        if (!part || n_prefix != n_prefix_0 || n_parts != n_parts_0 || strncmp(weights[i], weights[0], n_prefix) != 0)
            return err_set(e, ST_INVALID,
                           "%s: several *.safetensors (%.100s, %.100s …) and no model.safetensors.index.json that says what belongs together", path,
                           weights[0], weights[i ? i : n_weights - 1]);
    }
    for (size_t i = 0; i < n_weights; i++) {
        ck_part_name(weights[i], ".safetensors", &n_prefix, &i_part, &n_parts);
        if (i_part != i + 1)
            return err_set(e, ST_NOT_FOUND, "%s: part %zu of %u is missing (%.*s-%05zu-of-%05u.safetensors)", path, i + 1, n_parts, (int)n_prefix,
                           weights[0], i + 1, n_parts);
    }
    if (n_weights < n_parts_0)
        return err_set(e, ST_NOT_FOUND, "%s: part %zu of %u is missing (%.*s-%05zu-of-%05u.safetensors)", path, n_weights + 1, n_parts_0,
                       (int)n_prefix_0, weights[0], n_weights + 1, n_parts_0);
    return read_files(ck, path, weights, n_weights, e);
}
