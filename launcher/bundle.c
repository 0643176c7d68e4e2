#include "launcher/bundle.h"

#include <ctype.h>
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "launcher/elf.h"
#include "launcher/libraries.h"

static const char *const folders[] = {"bin/", "lib/", "lib/ucx/"};
enum { N_FOLDERS = sizeof folders / sizeof *folders };
enum { MAX_FILES = 256, NAME_BYTES = 100, BLOCK = 512, RECORD = 10240, DIGEST = 32, CHUNK = 256 << 10 };

struct file {
    char name[NAME_BYTES]; /* in the archive; "" only for folders' parents */
    char *source;          /* NULL: a folder, or MANIFEST */
    int fd;
    uint64_t bytes;
    uint64_t offset; /* of its header in the archive; its bytes follow 512 later */
    bool is_folder;
};

struct launch_bundle {
    struct file files[MAX_FILES];
    int n_files;
    char *manifest;
    size_t manifest_bytes;
    char hash[LAUNCH_HASH_TEXT];
    char machine[sizeof((struct utsname *)0)->machine];
    unsigned glibc[3];
    uint64_t bytes;
    struct launch_bundle_options o;
};

const char *launch_bundle_hash(const struct launch_bundle *b) { return b->hash; }
const char *launch_bundle_machine(const struct launch_bundle *b) { return b->machine; }
const unsigned *launch_bundle_glibc(const struct launch_bundle *b) { return b->glibc; }
uint64_t launch_bundle_bytes(const struct launch_bundle *b) { return b->bytes; }

/* ---- which files ------------------------------------------------------------------------------------------------------------------------------------- */

static struct file *find(struct launch_bundle *b, const char *name)
{
    for (int i = 0; i < b->n_files; i++)
        if (strcmp(b->files[i].name, name) == 0)
            return &b->files[i];
    return NULL;
}

static bool has(const struct launch_bundle *b, const char *library)
{
    for (int i = 0; i < b->n_files; i++)
        if (strcmp(strrchr(b->files[i].name, '/') + 1, library) == 0)
            return true;
    return false;
}

static enum st add_file(struct launch_bundle *b, const char *folder, const char *name, const char *source, struct err *e)
{
    struct file f = {.fd = -1};
    struct stat info;
    if (b->n_files == MAX_FILES || snprintf(f.name, sizeof f.name, "%s%s", folder, name) >= NAME_BYTES)
        return err_set(e, ST_UNSUPPORTED, "%s: its name is too long, or there are more than %d files to send to other hosts", source, MAX_FILES);
    for (const char *at = name; *at; at++) /* they go through a manifest and a shell's tools */
        if (!isalnum((unsigned char)*at) && !strchr("._+-", *at))
            return err_set(e, ST_UNSUPPORTED, "%s: a library of that name cannot be sent to other hosts", source);
    f.fd = open(source, O_RDONLY | O_CLOEXEC);
    if (f.fd < 0 || fstat(f.fd, &info)) {
        const enum st st = err_set(e, ST_IO, "%s: %s", source, strerror(errno));
        if (f.fd >= 0)
            close(f.fd);
        return st;
    }
    f.bytes = (uint64_t)info.st_size;
    f.source = strdup(source);
    if (!f.source) {
        close(f.fd);
        return err_set(e, ST_NO_MEMORY, "no memory");
    }
    b->files[b->n_files++] = f;
    return ST_OK;
}

static void take_glibc(struct launch_bundle *b, const struct launch_elf *elf)
{
    if (launch_elf_compare_versions(elf->glibc, b->glibc) > 0)
        memcpy(b->glibc, elf->glibc, sizeof b->glibc);
}

/* What elf needs, and what that needs. A library that is nowhere is left to the other host: the loader there will say so. */
static enum st add_needs(struct launch_bundle *b, const struct launch_elf *elf, struct err *e)
{
    enum st st = ST_OK;
    for (int i = 0; i < elf->n_needed && !st; i++) {
        const char *name = elf->needed[i];
        char path[PATH_MAX];
        struct launch_elf library;
        if (launch_library_is_hosts(name) || strchr(name, '/') || has(b, name) || !launch_library_find(name, elf, b->o.folders, path, sizeof path))
            continue;
        st = launch_elf_read(path, &library, e);
        if (st)
            break;
        take_glibc(b, &library);
        st = add_file(b, "lib/", name, path, e);
        if (!st)
            st = add_needs(b, &library, e); /* ends: each is added once */
        launch_elf_release(&library);
    }
    return st;
}

/* UCX opens what lies in the folder ucx/ beside libucs, or in UCX_MODULE_DIR: libuct_ib.so.0 and so on, under the names that end as libucs's own does. Modules need each other: one that
 * lay in lib/ as well would be loaded, and register itself, twice; so all of them come before what they need, and both folders are searched there. */
static enum st add_ucx_modules(struct launch_bundle *b, const struct launch_elf *by, struct err *e)
{
    const struct file *ucs = find(b, "lib/libucs.so.0");
    const char *set = b->o.program ? NULL : getenv("UCX_MODULE_DIR");
    char folder[PATH_MAX];
    if (!ucs)
        return ST_OK;
    const char *slash = strrchr(ucs->source, '/');
    if (set && *set)
        snprintf(folder, sizeof folder, "%s", set);
    else
        snprintf(folder, sizeof folder, "%.*s/ucx", (int)(slash - ucs->source), ucs->source);
    struct dirent **entries = NULL;
    const int n = scandir(folder, &entries, NULL, alphasort);
    enum st st = ST_OK;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < n && !st; i++) {
            const char *name = entries[i]->d_name, *end = strstr(name, ".so.");
            char path[PATH_MAX + 256];
            struct launch_elf module;
            snprintf(path, sizeof path, "%s/%s", folder, name);
            if (strncmp(name, "lib", 3) != 0 || !end || strcmp(end, ".so.0") != 0 || launch_elf_read(path, &module, NULL))
                continue;
            take_glibc(b, &module);
            if (module.machine == by->machine)
                st = pass == 0 ? add_file(b, "lib/ucx/", name, path, e) : add_needs(b, &module, e);
            launch_elf_release(&module);
        }
    for (int i = 0; i < n; i++)
        free(entries[i]);
    free(entries);
    return st;
}

/* What comm opens at run time (comm/ucx_api.c, comm/mpi_api.c), where it is here: the first name of each row. */
static enum st add_opened(struct launch_bundle *b, const struct launch_elf *by, struct err *e)
{
    static const char *const names[][3] = {{"libucp.so.0", NULL}, {"libmpich.so.12", "libmpi.so.12", NULL}};
    const char *own = b->o.program ? NULL : getenv("TANDEM_UCX");
    enum st st = ST_OK;
    for (size_t i = 0; i < (b->o.with_mpi ? 2 : 1); i++)
        for (int k = 0; names[i][k] && !st; k++) {
            char path[PATH_MAX];
            struct launch_elf library;
            if (has(b, names[i][k]))
                break;
            const bool is_named = i == 0 && own && strchr(own, '/') && strlen(own) < sizeof path;
            if (is_named)
                strcpy(path, own);
            else if (!launch_library_find(names[i][k], by, b->o.folders, path, sizeof path))
                continue;
            if (launch_elf_read(path, &library, NULL))
                continue;
            take_glibc(b, &library);
            st = add_file(b, "lib/", names[i][k], path, e);
            if (!st)
                st = add_needs(b, &library, e);
            launch_elf_release(&library);
            break;
        }
    return st;
}

static const char *machine_name(uint16_t machine)
{
    switch (machine) {
    case EM_X86_64: return "x86_64";
    case EM_AARCH64: return "aarch64";
    default: return NULL;
    }
}

static void set_machine(struct launch_bundle *b, const struct launch_elf *program)
{
    struct utsname here;
    const char *machine = machine_name(program->machine);
    if (!machine && uname(&here) == 0)
        machine = here.machine;
    snprintf(b->machine, sizeof b->machine, "%s", machine ? machine : "unknown");
    take_glibc(b, program);
}

static enum st collect(struct launch_bundle *b, struct err *e)
{
    const char *self = b->o.program ? b->o.program : "/proc/self/exe";
    struct launch_elf elf;
    enum st st = launch_elf_read(self, &elf, e);
    if (st)
        return st;
    char path[PATH_MAX];
    const ssize_t n = readlink(self, path, sizeof path - 1); /* for $ORIGIN */
    if (n > 0) {
        path[n] = 0;
        char *copy = strdup(path);
        if (copy) {
            free(elf.path);
            elf.path = copy;
        }
    }
    set_machine(b, &elf);
    st = add_file(b, "bin/", "tandem", self, e);
    if (!st)
        st = add_needs(b, &elf, e);
    if (!st)
        st = add_opened(b, &elf, e);
    if (!st)
        st = add_ucx_modules(b, &elf, e);
    launch_elf_release(&elf);
    return st;
}

/* What lies in one folder of an unpacked bundle. */
static enum st take_folder(struct launch_bundle *b, const char *root, const char *folder, struct err *e)
{
    char path[PATH_MAX];
    struct dirent **entries = NULL;
    snprintf(path, sizeof path, "%s/%s", root, folder);
    const int n = scandir(path, &entries, NULL, alphasort);
    enum st st = ST_OK;
    for (int i = 0; i < n && !st; i++) {
        struct launch_elf elf;
        struct stat info;
        snprintf(path, sizeof path, "%s/%s%s", root, folder, entries[i]->d_name);
        if (stat(path, &info) || !S_ISREG(info.st_mode))
            continue;
        st = launch_elf_read(path, &elf, e);
        if (st)
            break;
        if (strcmp(folder, "bin/") == 0)
            set_machine(b, &elf);
        take_glibc(b, &elf);
        launch_elf_release(&elf);
        st = add_file(b, folder, entries[i]->d_name, path, e);
    }
    for (int i = 0; i < n; i++)
        free(entries[i]);
    free(entries);
    return st;
}

static enum st take_folders(struct launch_bundle *b, const char *root, struct err *e)
{
    enum st st = ST_OK;
    for (int i = 0; i < N_FOLDERS && !st; i++)
        st = take_folder(b, root, folders[i], e);
    return !st && !find(b, "bin/tandem") ? err_set(e, ST_NOT_FOUND, "%s: no bundle lies there", root) : st;
}

/* ---- manifest and archive ------------------------------------------------------------------------------------------------------------------------------ */

static void to_hex(const unsigned char digest[DIGEST], char text[LAUNCH_HASH_TEXT]) { sodium_bin2hex(text, LAUNCH_HASH_TEXT, digest, DIGEST); }

/* BLAKE2b, 32 bytes, of a file from its beginning; *bytes: how long it was. */
static bool digest_file(int fd, unsigned char digest[DIGEST], uint64_t *bytes)
{
    crypto_generichash_state state;
    unsigned char *data = malloc(CHUNK);
    if (!data)
        return false;
    crypto_generichash_init(&state, NULL, 0, DIGEST);
    ssize_t n;
    for (*bytes = 0; (n = pread(fd, data, CHUNK, (off_t)*bytes)) > 0; *bytes += (uint64_t)n)
        crypto_generichash_update(&state, data, (unsigned long long)n);
    crypto_generichash_final(&state, digest, DIGEST);
    free(data);
    return n == 0;
}

static int by_name(const void *a, const void *b) { return strcmp(((const struct file *)a)->name, ((const struct file *)b)->name); }

static enum st write_manifest(struct launch_bundle *b, struct err *e)
{
    qsort(b->files, (size_t)b->n_files, sizeof *b->files, by_name);
    FILE *f = open_memstream(&b->manifest, &b->manifest_bytes);
    if (!f)
        return err_set(e, ST_NO_MEMORY, "no memory");
    enum st st = ST_OK;
    for (int i = 0; i < b->n_files && !st; i++) {
        unsigned char digest[DIGEST];
        char text[LAUNCH_HASH_TEXT];
        uint64_t bytes;
        if (!digest_file(b->files[i].fd, digest, &bytes) || bytes != b->files[i].bytes)
            st = err_set(e, ST_IO, "%s: cannot be read, or is being written", b->files[i].source);
        to_hex(digest, text);
        fprintf(f, "%s  %s\n", text, b->files[i].name);
    }
    if (fclose(f) && !st)
        st = err_set(e, ST_NO_MEMORY, "no memory");
    if (st)
        return st;
    unsigned char digest[DIGEST];
    crypto_generichash(digest, sizeof digest, (const unsigned char *)b->manifest, b->manifest_bytes, NULL, 0);
    to_hex(digest, b->hash);
    return ST_OK;
}

/* Folders before what lies in them, MANIFEST last: it is not there before all others are. */
static enum st lay_out(struct launch_bundle *b, struct err *e)
{
    if (b->n_files + N_FOLDERS + 1 > MAX_FILES)
        return err_set(e, ST_UNSUPPORTED, "there are more than %d files to send to other hosts", MAX_FILES);
    memmove(b->files + N_FOLDERS, b->files, (size_t)b->n_files * sizeof *b->files);
    for (int i = 0; i < N_FOLDERS; i++) {
        b->files[i] = (struct file){.fd = -1, .is_folder = true};
        strcpy(b->files[i].name, folders[i]);
    }
    b->n_files += N_FOLDERS;
    b->files[b->n_files] = (struct file){.fd = -1, .bytes = b->manifest_bytes};
    strcpy(b->files[b->n_files++].name, "MANIFEST");
    uint64_t offset = 0;
    for (int i = 0; i < b->n_files; i++) {
        b->files[i].offset = offset;
        offset += BLOCK + (b->files[i].bytes + BLOCK - 1) / BLOCK * BLOCK;
    }
    offset += 2 * BLOCK; /* zeroes end an archive */
    b->bytes = (offset + RECORD - 1) / RECORD * RECORD;
    return ST_OK;
}

/* ustar (POSIX.1-1988): octal digits, NUL-padded. Owners and times are nobody's and zero. */
static void write_header(const struct file *f, unsigned char block[BLOCK])
{
    struct ustar {
        char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6], version[2], owner[32], group[32], major[8], minor[8], prefix[155], pad[12];
    };
    _Static_assert(sizeof(struct ustar) == BLOCK, "a header is one block");
    struct ustar h = {.type = f->is_folder ? '5' : '0', .magic = "ustar", .version = {'0', '0'}};
    memcpy(h.name, f->name, strlen(f->name));
    snprintf(h.mode, sizeof h.mode, "%07o", f->is_folder || strncmp(f->name, "bin/", 4) == 0 ? 0700u : 0600u);
    snprintf(h.uid, sizeof h.uid, "%07o", 0u);
    snprintf(h.gid, sizeof h.gid, "%07o", 0u);
    snprintf(h.size, sizeof h.size, "%011llo", (unsigned long long)f->bytes);
    snprintf(h.mtime, sizeof h.mtime, "%011o", 0u);
    memset(h.checksum, ' ', sizeof h.checksum);
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof h; i++)
        sum += ((const unsigned char *)&h)[i];
    snprintf(h.checksum, sizeof h.checksum, "%06o", sum);
    memcpy(block, &h, sizeof h);
}

/* Bytes of one entry from a place in it; *n is at most what was asked for and what it has, padding included. */
static enum st read_entry(const struct launch_bundle *b, const struct file *f, uint64_t at, unsigned char *data, size_t *n, struct err *e)
{
    size_t want = *n;
    if (at < BLOCK) {
        unsigned char header[BLOCK];
        write_header(f, header);
        *n = want < BLOCK - at ? want : (size_t)(BLOCK - at);
        memcpy(data, header + at, *n);
        return ST_OK;
    }
    at -= BLOCK;
    if (at >= f->bytes) { /* padding */
        const uint64_t left = (f->bytes + BLOCK - 1) / BLOCK * BLOCK - at;
        *n = want < left ? want : (size_t)left;
        memset(data, 0, *n);
        return ST_OK;
    }
    *n = want < f->bytes - at ? want : (size_t)(f->bytes - at);
    if (f->fd < 0) {
        memcpy(data, b->manifest + at, *n);
        return ST_OK;
    }
    for (size_t done = 0; done < *n;) {
        const ssize_t got = pread(f->fd, data + done, *n - done, (off_t)(at + done));
        if (got == 0 || (got < 0 && errno != EINTR))
            return err_set(e, ST_IO, "%s: %s", f->source, got ? strerror(errno) : "has become shorter meanwhile");
        done += got > 0 ? (size_t)got : 0;
    }
    return ST_OK;
}

enum st launch_bundle_read(const struct launch_bundle *b, uint64_t offset, void *data, size_t bytes, struct err *e)
{
    unsigned char *out = data;
    if (offset > b->bytes || bytes > b->bytes - offset)
        return err_set(e, ST_INVALID, "beyond the archive's end");
    int i = b->n_files - 1;
    while (i > 0 && b->files[i].offset > offset)
        i--;
    while (bytes) {
        const struct file *f = &b->files[i];
        const uint64_t end = i + 1 < b->n_files ? f[1].offset : f->offset + BLOCK + (f->bytes + BLOCK - 1) / BLOCK * BLOCK;
        size_t n = bytes;
        if (offset >= end && i + 1 < b->n_files) {
            i++;
            continue;
        }
        if (offset >= end) {
            memset(out, 0, n);
        } else {
            const enum st st = read_entry(b, f, offset - f->offset, out, &n, e);
            if (st)
                return st;
        }
        out += n;
        offset += n;
        bytes -= n;
    }
    return ST_OK;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------------------------ */

/* folder NULL: as options say. */
static enum st create(const struct launch_bundle_options *options, const char *folder, struct launch_bundle **out, struct err *e)
{
    if (sodium_init() < 0)
        return err_set(e, ST_IO, "libsodium cannot be initialised");
    struct launch_bundle *b = calloc(1, sizeof *b);
    if (!b)
        return err_set(e, ST_NO_MEMORY, "no memory");
    b->o = *options;
    enum st st = folder ? take_folders(b, folder, e) : collect(b, e);
    b->o = (struct launch_bundle_options){.with_mpi = false}; /* its texts are the caller's */
    if (!st)
        st = write_manifest(b, e);
    if (!st)
        st = lay_out(b, e);
    if (st) {
        launch_bundle_destroy(b);
        return st;
    }
    *out = b;
    return ST_OK;
}

enum st launch_bundle_create(const struct launch_bundle_options *options, struct launch_bundle **bundle, struct err *e) { return create(options, NULL, bundle, e); }

enum st launch_bundle_open(const char *folder, struct launch_bundle **bundle, struct err *e)
{
    static const struct launch_bundle_options none = {.with_mpi = false};
    return create(&none, folder, bundle, e);
}

void launch_bundle_destroy(struct launch_bundle *b)
{
    if (!b)
        return;
    for (int i = 0; i < b->n_files; i++) {
        if (b->files[i].fd >= 0)
            close(b->files[i].fd);
        free(b->files[i].source);
    }
    free(b->manifest);
    free(b);
}

/* Beside the binary, or where it was installed. */
static bool find_unpacked(const char *machine, char *path, size_t bytes)
{
    static const char *const places[] = {"", "../lib/tandem/"};
    char self[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return false;
    self[n] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        slash[1] = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (snprintf(path, bytes, "%s%sbundle-%s", self, places[i], machine) < (int)bytes && access(path, R_OK) == 0)
            return true;
    return false;
}

enum st launch_bundles_create(bool with_mpi, struct launch_bundles *bundles, struct err *e)
{
    static const char *const machines[LAUNCH_MAX_BUNDLES] = {"x86_64", "aarch64"};
    const struct launch_bundle_options own = {.with_mpi = with_mpi};
    *bundles = (struct launch_bundles){.n = 0};
    enum st st = launch_bundle_create(&own, &bundles->list[0], e);
    bundles->n = !st;
    for (int i = 0; i < LAUNCH_MAX_BUNDLES && !st && bundles->n < LAUNCH_MAX_BUNDLES; i++) {
        char path[PATH_MAX];
        if (strcmp(machines[i], bundles->list[0]->machine) == 0 || !find_unpacked(machines[i], path, sizeof path))
            continue;
        st = launch_bundle_open(path, &bundles->list[bundles->n], e);
        bundles->n += !st;
    }
    if (st)
        launch_bundles_release(bundles);
    return st;
}

void launch_bundles_release(struct launch_bundles *bundles)
{
    for (int i = 0; i < bundles->n; i++)
        launch_bundle_destroy(bundles->list[i]);
    *bundles = (struct launch_bundles){.n = 0};
}

void launch_bundle_print(const struct launch_bundle *b, FILE *out)
{
    fprintf(out, "bundle %s: %s, glibc %u.%u or later, %.1f MB\n", b->hash, b->machine, b->glibc[0], b->glibc[1], (double)b->bytes / 1e6);
    for (int i = 0; i < b->n_files; i++)
        if (b->files[i].source)
            fprintf(out, "  %-32s %10" PRIu64 "  %s\n", b->files[i].name, b->files[i].bytes, b->files[i].source);
}

/* ---- on the other host ----------------------------------------------------------------------------------------------------------------------------------- */

static enum st check_line(const char *folder, char *line, struct err *e)
{
    enum { NAME_AT = LAUNCH_HASH_TEXT - 1 + 2 };
    if (strlen(line) <= NAME_AT || strncmp(line + NAME_AT - 2, "  ", 2) != 0 || line[NAME_AT] == '/' || strstr(line, ".."))
        return err_set(e, ST_MISMATCH, "%s/MANIFEST: a line that does not belong there", folder);
    const char *name = line + NAME_AT;
    char path[PATH_MAX], text[LAUNCH_HASH_TEXT];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_set(e, ST_MISMATCH, "%s: %s", path, strerror(errno));
    unsigned char digest[DIGEST];
    uint64_t bytes;
    const bool good = digest_file(fd, digest, &bytes);
    close(fd);
    to_hex(digest, text);
    return good && strncmp(text, line, LAUNCH_HASH_TEXT - 1) == 0 ? ST_OK : err_set(e, ST_MISMATCH, "%s: differs from what was sent", path);
}

enum st launch_bundle_check(const char *folder, const char *hash, struct err *e)
{
    char path[PATH_MAX], text[LAUNCH_HASH_TEXT];
    unsigned char digest[DIGEST];
    uint64_t bytes = 0;
    if (sodium_init() < 0)
        return err_set(e, ST_IO, "libsodium cannot be initialised");
    snprintf(path, sizeof path, "%s/MANIFEST", folder);
    FILE *f = fopen(path, "re");
    if (!f)
        return err_set(e, ST_MISMATCH, "%s: %s", path, strerror(errno));
    enum st st = digest_file(fileno(f), digest, &bytes) && bytes ? ST_OK : err_set(e, ST_MISMATCH, "%s: is empty or cannot be read", path);
    to_hex(digest, text);
    if (!st && strcmp(text, hash) != 0)
        st = err_set(e, ST_MISMATCH, "%s: its digest is %s, not %.64s", path, text, hash);
    char *line = NULL;
    size_t capacity = 0;
    for (ssize_t n; !st && (n = getline(&line, &capacity, f)) > 0;) {
        line[n - 1] = 0;
        st = check_line(folder, line, e);
    }
    free(line);
    fclose(f);
    return st;
}
