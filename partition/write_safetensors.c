/* Safetensors: eight bytes of length, a JSON object, the tensors without gaps. The header is padded with blanks to a multiple of eight, and a file's tensors lie in the order of their
 * elements' size, the widest first: so each begins at a multiple of it, as readers that map the file want it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "partition/write.h"

static enum st no_memory(struct err *e) { return err_set(e, ST_NO_MEMORY, "no memory for a header"); }

void part_write_release(struct out_file *files, size_t n_files)
{
    for (size_t i = 0; files && i < n_files; i++)
        free(files[i].head);
    free(files);
}

static json_t *describe(const struct out_tensor *t, uint64_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; shape && i < t->n_dims; i++)
        json_array_append_new(shape, json_integer((json_int_t)t->dims[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->dtype, "shape", shape, "data_offsets", (json_int_t)begin, (json_int_t)(begin + t->bytes));
}

/* order: n tensors, the widest first. */
static enum st write_head(struct out_tensor *const *order, size_t n, struct out_file *file, struct err *e)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    uint64_t at = 0;
    bool failed = !root;
    for (size_t i = 0; !failed && i < n; i++) {
        failed = json_object_set_new(root, order[i]->name, describe(order[i], at)) != 0;
        order[i]->offset = at;
        at += order[i]->bytes;
    }
    char *text = failed ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!text)
        return no_memory(e);
    const size_t n_text = strlen(text), n_padded = (n_text + 7) & ~(size_t)7;
    file->head_bytes = 8 + n_padded;
    file->head = malloc(file->head_bytes);
    if (!file->head) {
        free(text);
        return no_memory(e);
    }
    for (int i = 0; i < 8; i++)
        file->head[i] = (unsigned char)((uint64_t)n_padded >> 8 * i);
    memcpy(file->head + 8, text, n_text);
    memset(file->head + 8 + n_text, ' ', n_padded - n_text);
    free(text);
    for (size_t i = 0; i < n; i++)
        order[i]->offset += file->head_bytes;
    file->bytes = file->head_bytes + at;
    return ST_OK;
}

static char *write_index(const struct out_tensor *tensors, size_t n, const struct out_file *files)
{
    json_int_t total = 0;
    json_t *map = json_object();
    bool failed = !map;
    for (size_t i = 0; !failed && i < n; i++) {
        total += (json_int_t)tensors[i].bytes;
        failed = json_object_set_new(map, tensors[i].name, json_string(files[tensors[i].file].name)) != 0;
    }
    json_t *root = failed ? NULL : json_pack("{s:{s:I}, s:O}", "metadata", "total_size", total, "weight_map", map);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    json_decref(map);
    return text;
}

enum st part_write_safetensors(struct out_tensor *tensors, size_t n_tensors, uint64_t max_file_bytes, struct out_file **files, size_t *n_files, char **index, struct err *e)
{
    size_t n = 1;
    uint64_t used = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        if (used && tensors[i].bytes > max_file_bytes - (used < max_file_bytes ? used : max_file_bytes)) {
            n++;
            used = 0;
        }
        tensors[i].file = (uint32_t)n - 1;
        used += tensors[i].bytes;
    }
    if (n > 99999)
        return err_set(e, ST_INVALID, "%zu files would be needed", n);
    struct out_file *list = calloc(n, sizeof *list);
    struct out_tensor **order = malloc((n_tensors ? n_tensors : 1) * sizeof *order);
    enum st st = list && order ? ST_OK : no_memory(e);
    for (size_t f = 0, first = 0; !st && f < n; f++) {
        size_t last = first, n_here = 0;
        while (last < n_tensors && tensors[last].file == f)
            last++;
        for (uint32_t width = 8; width; width /= 2)
            for (size_t i = first; i < last; i++)
                if (tensors[i].element_bytes == width)
                    order[n_here++] = &tensors[i];
        BASE_ASSERT(n_here == last - first);
        if (n == 1)
            snprintf(list[f].name, sizeof list[f].name, "model.safetensors");
        else
            snprintf(list[f].name, sizeof list[f].name, "model-%05zu-of-%05zu.safetensors", f + 1, n);
        st = write_head(order, n_here, &list[f], e);
        first = last;
    }
    free(order);
    char *text = NULL;
    if (!st && n > 1 && !(text = write_index(tensors, n_tensors, list)))
        st = no_memory(e);
    if (st) {
        part_write_release(list, list ? n : 0);
        return st;
    }
    *files = list;
    *n_files = n;
    *index = text;
    return ST_OK;
}
