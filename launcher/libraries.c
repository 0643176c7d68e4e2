#include "launcher/libraries.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOADER_CACHE "/etc/ld.so.cache"

bool launch_library_is_hosts(const char *name)
{
    static const char *const glibc[] = {"ld-linux", "ld64", "libc.so", "libm.so", "libmvec.so", "libpthread.so", "libdl.so", "librt.so", "libutil.so", "libresolv.so", "libnss_", "libnsl.so",
                                        "libanl.so", "libthread_db.so", "libBrokenLocale.so"};
    static const char *const drivers[] = {"libibverbs", "libmlx4", "libmlx5", "libefa.so", "libhns.so", "libmana.so", "librdmacm", "libibumad", "libibmad", "libibnetdisc", "libnl-", "libcuda.so",
                                          "libnvidia-", "libgdrapi"};
    for (size_t i = 0; i < sizeof glibc / sizeof *glibc; i++)
        if (strncmp(name, glibc[i], strlen(glibc[i])) == 0)
            return true;
    for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++)
        if (strncmp(name, drivers[i], strlen(drivers[i])) == 0)
            return true;
    return false;
}

static bool fits(const char *path, const struct launch_elf *by)
{
    struct launch_elf elf;
    if (access(path, R_OK) || launch_elf_read(path, &elf, NULL))
        return false;
    const bool same = elf.machine == by->machine && elf.class == by->class;
    launch_elf_release(&elf);
    return same;
}

struct wanted {
    const char *name;
    const struct launch_elf *by;
    char *path;
    size_t path_bytes;
};

static bool take(const struct wanted *w, const char *path)
{
    if (strlen(path) >= w->path_bytes || strstr(path, "/glibc-hwcaps/") || !fits(path, w->by))
        return false;
    strcpy(w->path, path);
    return true;
}

static int look_at_loaded(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size;
    const struct wanted *w = arg;
    const char *slash = strrchr(info->dlpi_name, '/');
    return slash && strcmp(slash + 1, w->name) == 0 && take(w, info->dlpi_name);
}

/* Folders with colons between. $ORIGIN is where the file lies that says so. */
static bool find_in(const char *folders, const struct wanted *w)
{
    for (const char *from = folders; from && *from;) {
        const size_t n = strcspn(from, ":;");
        const char *rest = from;
        size_t n_rest = n, n_origin = 0;
        for (size_t k = 0; k < 2; k++) {
            const char *word = k ? "${ORIGIN}" : "$ORIGIN";
            if (n >= strlen(word) && strncmp(from, word, strlen(word)) == 0) {
                const char *slash = strrchr(w->by->path, '/');
                n_origin = slash ? (size_t)(slash - w->by->path) : 0;
                rest = from + strlen(word);
                n_rest = n - strlen(word);
            }
        }
        char path[4096];
        const int length = snprintf(path, sizeof path, "%.*s%.*s/%s", (int)n_origin, w->by->path, (int)n_rest, rest, w->name);
        if (n && path[0] == '/' && length < (int)sizeof path && take(w, path))
            return true;
        from += n + (from[n] != 0);
    }
    return false;
}

/* The loader's cache, glibc's format since 2.2 (sysdeps/generic/dl-cache.h): 20 bytes of magic and version, u32 entries, u32 bytes of strings, 20 more; entries of 24 bytes: flags,
 * name, path (offsets from the header), OS version, u64 capabilities of the processor that it wants. */
static bool find_in_cache(const struct wanted *w)
{
    enum { HEAD = 48, ENTRY = 24 };
    static const char magic[] = "glibc-ld.so.cache1.1";
    const int fd = open(LOADER_CACHE, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0)
        return false;
    void *map = fstat(fd, &info) == 0 && info.st_size > HEAD ? mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    close(fd);
    if (map == MAP_FAILED)
        return false;
    const size_t all = (size_t)info.st_size;
    const char *cache = memmem(map, all, magic, sizeof magic - 1);
    bool found = false;
    if (cache && (size_t)(cache - (char *)map) <= all - HEAD) {
        const size_t bytes = all - (size_t)(cache - (char *)map);
        uint32_t n;
        memcpy(&n, cache + 20, sizeof n);
        for (uint32_t i = 0; i < n && !found && HEAD + (size_t)(i + 1) * ENTRY <= bytes; i++) {
            uint32_t entry[6];
            memcpy(entry, cache + HEAD + (size_t)i * ENTRY, sizeof entry);
            const char *name = cache + entry[1], *path = cache + entry[2];
            if (entry[4] || entry[5] || entry[1] >= bytes || entry[2] >= bytes || !memchr(name, 0, bytes - entry[1]) || !memchr(path, 0, bytes - entry[2]))
                continue;
            found = strcmp(name, w->name) == 0 && take(w, path);
        }
    }
    munmap(map, all);
    return found;
}

bool launch_library_find(const char *name, const struct launch_elf *by, const char *folders, char *path, size_t path_bytes)
{
    struct wanted w = {name, by, path, path_bytes};
    if (strchr(name, '/'))
        return take(&w, name);
    if (folders)
        return find_in(folders, &w);
    return dl_iterate_phdr(look_at_loaded, &w) || find_in(by->run_path, &w) || find_in(getenv("LD_LIBRARY_PATH"), &w) || find_in_cache(&w) ||
           find_in("/lib64:/usr/lib64:/lib:/usr/lib:/usr/local/lib", &w);
}
