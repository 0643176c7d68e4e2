/* Opening a checkpoint: which files there are, one table of tensors, its order and its digest. The formats are read by safetensors.c and gguf.c.
 *
 * Owner of everything is struct checkpoint: strings in its arena, the table of tensors in one block. Files are opened for as long as a read takes: a set may have 191. */
#include "partition/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "partition/checkpoint_priv.h"

/* ---- sources ---- */

static const char lfs_mark[] = "version https://git-lfs.github.com/spec/";

enum st ck_source_open(struct ck_source *s, const char *path, struct err *e) {
    /* O_NONBLOCK: a FIFO of that name must not hold us; it means nothing to a regular file. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return err_set(e, ST_INVALID, "%s: not a regular file", path);
    }
    *s = (struct ck_source){.where = path, .fd = fd, .bytes = (uint64_t)info.st_size};
    char start[sizeof lfs_mark - 1];
    if (s->bytes >= sizeof start && s->bytes < 1024 && pread(fd, start, sizeof start, 0) == (ssize_t)sizeof start &&
        memcmp(start, lfs_mark, sizeof start) == 0) {
        ck_source_close(s);
        return err_set(e, ST_INVALID, "%s: a Git LFS pointer, not the file itself; 'git lfs pull' in its directory fetches it", path);
    }
    return ST_OK;
}

void ck_source_close(struct ck_source *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}

enum st ck_source_read(const struct ck_source *s, uint64_t offset, void *out, size_t bytes, struct err *e) {
    if (offset > s->bytes || bytes > s->bytes - offset)
        return err_set(e, ST_INVALID, "%s:%llu: the file ends at byte %llu, %zu more are wanted", s->where, (unsigned long long)offset,
                       (unsigned long long)s->bytes, bytes);
    if (s->fd < 0) {
        memcpy(out, s->memory + offset, bytes);
        return ST_OK;
    }
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(s->fd, (char *)out + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_set(e, ST_IO, "%s:%llu: %s", s->where, (unsigned long long)(offset + done), strerror(errno));
        if (n == 0) return err_set(e, ST_IO, "%s: has become shorter while it was read", s->where);
        done += (size_t)n;
    }
    return ST_OK;
}

/* ---- small helpers ---- */

bool ck_has_suffix(const char *text, const char *suffix) {
    size_t n = strlen(text), n_suffix = strlen(suffix);
    return n >= n_suffix && memcmp(text + n - n_suffix, suffix, n_suffix) == 0;
}

bool ck_has_components(const char *name, const char *components) {
    const size_t n = strlen(components);
    for (const char *at = n ? strstr(name, components) : NULL; at; at = strstr(at + 1, components))
        if ((at == name || at[-1] == '.') && (at[n] == 0 || at[n] == '.')) return true;
    return false;
}

uint64_t ck_n_elements(const struct ck_tensor *t) {
    uint64_t n = 1; /* does not overflow: checked when the header was read */
    for (int i = 0; i < t->n_dims; i++) n *= t->dims[i];
    return n;
}

const char *ck_base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

enum st ck_list(struct checkpoint *ck, const char *dir, const char *suffix, const char ***names, size_t *n_names, struct err *e) {
    DIR *d = opendir(dir);
    if (!d) return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", dir, strerror(errno));
    const char **list = NULL;
    size_t n = 0, capacity = 0;
    enum st st = ST_OK;
    for (struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.' || !ck_has_suffix(entry->d_name, suffix)) continue;
        if (n == CK_MAX_FILES) {
            st = err_set(e, ST_INVALID, "%s: more than %d files", dir, CK_MAX_FILES);
            break;
        }
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            const char **larger = realloc(list, capacity * sizeof *list);
            if (!larger) {
                st = err_set(e, ST_NO_MEMORY, "%s: no memory for its names", dir);
                break;
            }
            list = larger;
        }
        list[n] = base_arena_strdup(&ck->arena, entry->d_name);
        if (!list[n]) {
            st = err_set(e, ST_NO_MEMORY, "%s: no memory for its names", dir);
            break;
        }
        n++;
    }
    closedir(d);
    if (st == ST_OK) {
        if (n) qsort(list, n, sizeof *list, by_text);
        const char **kept = base_arena_array(&ck->arena, n ? n : 1, sizeof *kept);
        if (kept) {
            if (n) memcpy(kept, list, n * sizeof *kept);
            *names = kept;
            *n_names = n;
        } else {
            st = err_set(e, ST_NO_MEMORY, "%s: no memory for its names", dir);
        }
    }
    free(list);
    return st;
}

static bool five_digits(const char *p, unsigned *value) {
    *value = 0;
    for (int i = 0; i < 5; i++) {
        if (p[i] < '0' || p[i] > '9') return false;
        *value = *value * 10 + (unsigned)(p[i] - '0');
    }
    return true;
}

bool ck_part_name(const char *name, const char *suffix, size_t *n_prefix, unsigned *i_part, unsigned *n_parts) {
    enum { PATTERN = sizeof "-00001-of-00002" - 1 };
    size_t n = strlen(name), n_suffix = strlen(suffix);
    if (!ck_has_suffix(name, suffix) || n < n_suffix + PATTERN) return false;
    const char *p = name + n - n_suffix - PATTERN;
    if (p[0] != '-' || memcmp(p + 6, "-of-", 4) != 0 || !five_digits(p + 1, i_part) || !five_digits(p + 10, n_parts)) return false;
    if (*i_part < 1 || *i_part > *n_parts) return false;
    *n_prefix = (size_t)(p - name);
    return true;
}

/* ---- the table ---- */

struct ck_tensor *ck_add_tensor(struct checkpoint *ck) {
    if (ck->n_tensors == ck->capacity) {
        size_t capacity = ck->capacity ? 2 * ck->capacity : 64;
        struct ck_tensor *larger = realloc(ck->tensors, capacity * sizeof *larger);
        if (!larger) return NULL;
        ck->tensors = larger;
        ck->capacity = capacity;
    }
    struct ck_tensor *t = &ck->tensors[ck->n_tensors++];
    memset(t, 0, sizeof *t);
    return t;
}

enum st ck_set_files(struct checkpoint *ck, size_t n_files, struct err *e) {
    ck->files = base_arena_array(&ck->arena, n_files, sizeof *ck->files);
    if (!ck->files) return err_set(e, ST_NO_MEMORY, "no memory for a list of %zu files", n_files);
    ck->n_files = n_files;
    return ST_OK;
}

static int by_offset(const void *a, const void *b) {
    const struct ck_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* an empty one before the one that begins where it stands */
    return strcmp(x->name, y->name);
}

enum st ck_check_ranges(struct checkpoint *ck, size_t first, const char *where, bool packed, uint64_t begin, uint64_t end, struct err *e) {
    size_t n = ck->n_tensors - first;
    struct ck_tensor *t = n ? ck->tensors + first : NULL;
    if (n) qsort(t, n, sizeof *t, by_offset);
    uint64_t at = begin;
    for (size_t i = 0; i < n; i++) {
        if (t[i].offset < at && t[i].bytes) {
            BASE_ASSERT(i > 0);
            return err_set(e, ST_INVALID, "%s: tensors %.100s and %.100s lie on the same bytes (from %llu on)", where, t[i - 1].name, t[i].name,
                           (unsigned long long)t[i].offset);
        }
        if (packed && t[i].offset > at)
            return err_set(e, ST_INVALID, "%s: bytes %llu to %llu, before tensor %.100s, belong to no tensor", where, (unsigned long long)at,
                           (unsigned long long)t[i].offset, t[i].name);
        if (t[i].offset + t[i].bytes > at) at = t[i].offset + t[i].bytes;
    }
    if (packed && at < end) return err_set(e, ST_INVALID, "%s: the last %llu bytes belong to no tensor", where, (unsigned long long)(end - at));
    return ST_OK;
}

static int by_name(const void *a, const void *b) { return strcmp(((const struct ck_tensor *)a)->name, ((const struct ck_tensor *)b)->name); }

enum st ck_finish(struct checkpoint *ck, struct err *e) {
    if (ck->n_tensors) qsort(ck->tensors, ck->n_tensors, sizeof *ck->tensors, by_name);
    for (size_t i = 1; i < ck->n_tensors; i++)
        if (strcmp(ck->tensors[i - 1].name, ck->tensors[i].name) == 0)
            return err_set(e, ST_INVALID, "%s: tensor %.200s is there twice", ck_file_path(ck, ck->tensors[i].file), ck->tensors[i].name);
    ck->digest = base_hasher_final(ck->hasher);
    return ST_OK;
}

/* ---- open and close ---- */

static enum st create(struct checkpoint **out, struct err *e) {
    struct checkpoint *ck = calloc(1, sizeof *ck);
    if (!ck) return err_set(e, ST_NO_MEMORY, "no memory for a checkpoint");
    enum st st = base_arena_init(&ck->arena, "checkpoint", 0, e);
    if (st != ST_OK) {
        free(ck);
        return st;
    }
    ck->hasher = base_hasher_create();
    if (!ck->hasher) {
        ck_close(ck);
        return err_set(e, ST_NO_MEMORY, "no memory for a checkpoint");
    }
    *out = ck;
    return ST_OK;
}

void ck_close(struct checkpoint *ck) {
    if (!ck) return;
    for (struct ck_json_file *j = ck->json; j; j = j->next) json_decref(j->root);
    if (ck->hasher) base_hasher_destroy(ck->hasher);
    free(ck->tensors);
    free(ck->gguf_header);
    base_arena_release(&ck->arena);
    free(ck);
}

/* Trailing slashes away, so that the last part has a name. */
static const char *tidy(struct arena *arena, const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    return base_arena_strndup(arena, path, n);
}

static enum st open_dir(struct checkpoint *ck, const char *dir, struct err *e) {
    const char **names;
    size_t n_weights, n_index, n_gguf, n_bin;
    enum st st;
    if ((st = ck_list(ck, dir, ".safetensors", &names, &n_weights, e)) != ST_OK ||
        (st = ck_list(ck, dir, ".safetensors.index.json", &names, &n_index, e)) != ST_OK ||
        (st = ck_list(ck, dir, ".gguf", &names, &n_gguf, e)) != ST_OK || (st = ck_list(ck, dir, ".bin", &names, &n_bin, e)) != ST_OK)
        return st;
    if (n_weights || n_index) return ck_safetensors_open(ck, dir, e);
    if (n_gguf) return ck_gguf_open_dir(ck, dir, e);
    return err_set(e, ST_NOT_FOUND, "%s: no *.safetensors and no *.gguf in it%s", dir,
                   n_bin ? " (*.bin files are not read: convert them to safetensors)" : "");
}

static enum st open_file(struct checkpoint *ck, const char *path, struct err *e) {
    if (ck_has_suffix(path, ".safetensors")) return ck_safetensors_open(ck, path, e);
    struct ck_source s;
    enum st st = ck_source_open(&s, path, e);
    if (st != ST_OK) return st;
    char magic[4] = "";
    if (s.bytes >= 4) st = ck_source_read(&s, 0, magic, 4, e);
    ck_source_close(&s);
    if (st != ST_OK) return st;
    if (ck_has_suffix(path, ".gguf") || memcmp(magic, "GGUF", 4) == 0) return ck_gguf_open(ck, path, e);
    return err_set(e, ST_INVALID, "%s: neither a GGUF file nor a directory with config.json and *.safetensors", path);
}

enum st ck_open(const char *path, struct checkpoint **out, struct err *e) {
    struct checkpoint *ck;
    enum st st = create(&ck, e);
    if (st != ST_OK) return st;
    struct stat info;
    const char *resolved = tidy(&ck->arena, path);
    if (!resolved) {
        st = err_set(e, ST_NO_MEMORY, "%s: no memory", path);
        goto fail;
    }
    if (stat(resolved, &info) != 0) {
        int why = errno;
        if ((why != ENOENT && why != ENOTDIR) || !ck_hub_is_name(resolved)) {
            st = err_set(e, why == ENOENT || why == ENOTDIR ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(why));
            goto fail;
        }
        if ((st = ck_hub_find(ck, resolved, &resolved, e)) != ST_OK) goto fail;
        if (stat(resolved, &info) != 0) {
            st = err_set(e, ST_IO, "%s: %s", resolved, strerror(errno));
            goto fail;
        }
    }
    ck->path = resolved;
    st = S_ISDIR(info.st_mode) ? open_dir(ck, resolved, e) : open_file(ck, resolved, e);
    if (st == ST_OK) st = ck_finish(ck, e);
    if (st != ST_OK) goto fail;
    *out = ck;
    return ST_OK;
fail:
    ck_close(ck);
    return st;
}

enum st ck_open_memory(enum ck_kind kind, const void *data, size_t bytes, struct checkpoint **out, struct err *e) {
    struct checkpoint *ck;
    enum st st = create(&ck, e);
    if (st != ST_OK) return st;
    struct ck_source s = {.where = "memory", .fd = -1, .memory = data, .bytes = bytes};
    ck->kind = kind;
    ck->path = "memory";
    ck->memory = data;
    st = ck_set_files(ck, 1, e);
    if (st == ST_OK) {
        ck->files[0] = (struct ck_file){.path = s.where, .bytes = bytes};
        st = kind == CK_GGUF ? ck_gguf_read(ck, 0, &s, e) : ck_safetensors_read(ck, 0, &s, e);
    }
    if (st == ST_OK) st = ck_finish(ck, e);
    if (st != ST_OK) {
        ck_close(ck);
        return st;
    }
    *out = ck;
    return ST_OK;
}

/* ---- queries ---- */

enum ck_kind ck_kind_of(const struct checkpoint *ck) { return ck->kind; }
const char *ck_path(const struct checkpoint *ck) { return ck->path; }
size_t ck_n_tensors(const struct checkpoint *ck) { return ck->n_tensors; }
const struct ck_tensor *ck_tensor_at(const struct checkpoint *ck, size_t i) {
    BASE_ASSERT(i < ck->n_tensors);
    return &ck->tensors[i];
}
const struct ck_tensor *ck_find(const struct checkpoint *ck, const char *name) {
    struct ck_tensor wanted = {.name = name};
    return ck->n_tensors ? bsearch(&wanted, ck->tensors, ck->n_tensors, sizeof *ck->tensors, by_name) : NULL;
}
size_t ck_n_files(const struct checkpoint *ck) { return ck->n_files; }
const char *ck_file_path(const struct checkpoint *ck, size_t i) {
    BASE_ASSERT(i < ck->n_files);
    return ck->files[i].path;
}
struct digest ck_digest(const struct checkpoint *ck) {
    return ck->digest;
}

/* Opens the tensor's file again; it must still be as long as it was when the header was checked. */
static enum st open_again(const struct checkpoint *ck, const struct ck_tensor *t, struct ck_source *s, struct err *e) {
    if (ck->memory) {
        *s = (struct ck_source){.where = ck->path, .fd = -1, .memory = ck->memory, .bytes = ck->files[0].bytes};
        return ST_OK;
    }
    enum st st = ck_source_open(s, ck->files[t->file].path, e);
    if (st != ST_OK) return st;
    if (s->bytes == ck->files[t->file].bytes) return ST_OK;
    ck_source_close(s);
    return err_set(e, ST_IO, "%s: its size has changed since it was opened", ck->files[t->file].path);
}

enum st ck_read_bytes(const struct checkpoint *ck, const struct ck_tensor *t, size_t max_bytes, void **bytes, struct err *e) {
    const char *file = ck->files[t->file].path;
    if (t->bytes > max_bytes)
        return err_set(e, ST_INVALID, "%s: tensor %.200s has %llu bytes where at most %zu are expected", file, t->name, (unsigned long long)t->bytes,
                       max_bytes);
    struct ck_source s;
    enum st st = open_again(ck, t, &s, e);
    if (st != ST_OK) return st;
    void *raw = malloc(t->bytes ? t->bytes : 1);
    st = raw ? ck_source_read(&s, t->offset, raw, t->bytes, e) : err_set(e, ST_NO_MEMORY, "%s: no memory for tensor %.200s", file, t->name);
    ck_source_close(&s);
    if (st == ST_OK)
        *bytes = raw;
    else
        free(raw);
    return st;
}

enum st ck_read_f32(const struct checkpoint *ck, const struct ck_tensor *t, size_t max_elements, float **values, struct err *e) {
    const char *file = ck->files[t->file].path;
    if (t->unsupported) return err_set(e, ST_UNSUPPORTED, "%s: tensor %.200s is %.100s, which is not supported yet", file, t->name, t->unsupported);
    const uint64_t n = ck_n_elements(t);
    if (n > max_elements)
        return err_set(e, ST_INVALID, "%s: tensor %.200s has %llu elements where at most %zu are expected", file, t->name, (unsigned long long)n,
                       max_elements);
    void *raw;
    enum st st = ck_read_bytes(ck, t, SIZE_MAX, &raw, e);
    if (st != ST_OK) return st;
    float *out = malloc(n ? n * sizeof *out : 1);
    if (out) {
        kern_format_dequantise(t->format, raw, n, out); /* rows are whole blocks, so the tensor is one run of blocks */
        *values = out;
    } else
        st = err_set(e, ST_NO_MEMORY, "%s: no memory for tensor %.200s", file, t->name);
    free(raw);
    return st;
}

enum st ck_same_bytes(const struct checkpoint *ck, const struct ck_tensor *a, const struct ck_tensor *b, bool *same, struct err *e) {
    BASE_ASSERT(a->bytes == b->bytes);
    enum { PIECE = 1 << 20 };
    struct ck_source sa, sb;
    enum st st = open_again(ck, a, &sa, e);
    if (st != ST_OK) return st;
    if ((st = open_again(ck, b, &sb, e)) != ST_OK) {
        ck_source_close(&sa);
        return st;
    }
    char *buffer = malloc(2 * (size_t)PIECE);
    if (!buffer) st = err_set(e, ST_NO_MEMORY, "no memory to compare tensors");
    bool equal = true;
    for (uint64_t at = 0; st == ST_OK && equal && at < a->bytes; at += PIECE) {
        size_t n = a->bytes - at < PIECE ? (size_t)(a->bytes - at) : PIECE;
        if ((st = ck_source_read(&sa, a->offset + at, buffer, n, e)) == ST_OK &&
            (st = ck_source_read(&sb, b->offset + at, buffer + PIECE, n, e)) == ST_OK)
            equal = memcmp(buffer, buffer + PIECE, n) == 0;
    }
    free(buffer);
    ck_source_close(&sa);
    ck_source_close(&sb);
    if (st == ST_OK) *same = equal;
    return st;
}

/* ---- JSON beside the weights ---- */

/* Takes the reference to parsed (NULL: not there), on failure too. */
static enum st remember(struct checkpoint *ck, const char *file_name, json_t *parsed, struct err *e) {
    struct ck_json_file *entry = base_arena_alloc(&ck->arena, sizeof *entry);
    char *name = base_arena_strdup(&ck->arena, file_name);
    if (!entry || !name) {
        json_decref(parsed);
        return err_set(e, ST_NO_MEMORY, "no memory for %s", file_name);
    }
    *entry = (struct ck_json_file){.next = ck->json, .name = name, .root = parsed};
    ck->json = entry;
    return ST_OK;
}

enum st ck_json(const struct checkpoint *ck, const char *file_name, const json_t **root, struct err *e) {
    BASE_ASSERT(!strchr(file_name, '/'));
    if (ck->kind != CK_SAFETENSORS) {
        *root = NULL;
        return ST_OK;
    }
    for (const struct ck_json_file *j = ck->json; j; j = j->next)
        if (strcmp(j->name, file_name) == 0) {
            *root = j->root;
            return ST_OK;
        }
    struct checkpoint *writable = (struct checkpoint *)(uintptr_t)ck; /* a cache; the header says "not thread-safe" */
    char *path = base_arena_printf(&writable->arena, "%s/%s", ck->path, file_name);
    if (!path) return err_set(e, ST_NO_MEMORY, "no memory for %s", file_name);
    struct ck_source s;
    json_t *parsed = NULL;
    enum st st = ck->memory ? ST_NOT_FOUND : ck_source_open(&s, path, e); /* tells an LFS pointer by name */
    if (st == ST_OK) {
        ck_source_close(&s);
        st = base_json_load(path, CK_MAX_JSON, &parsed, e);
    } else if (st == ST_NOT_FOUND) {
        if (e) e->text[0] = 0;
        st = ST_OK;
    }
    if (st == ST_OK) st = remember(writable, file_name, parsed, e);
    if (st == ST_OK) *root = parsed;
    return st;
}

enum st ck_put_json(struct checkpoint *ck, const char *file_name, const char *text, size_t bytes, struct err *e) {
    json_t *parsed;
    enum st st = base_json_parse(file_name, text, bytes, &parsed, e);
    return st == ST_OK ? remember(ck, file_name, parsed, e) : st;
}
