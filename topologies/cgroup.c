/* What the enclosing cgroups leave to this process: memory and CPU time, version 1, version 2 and both at once (hybrid).
 *
 * The one idea: /proc/self/cgroup says where we are in each hierarchy, /proc/self/mountinfo where that hierarchy can be seen and which part of it
 * (a container sees its own directory as the root); every directory from ours up to the mount point may hold a limit, and the least counts.
 * Sources: Linux Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, proc_pid_mountinfo(5). */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "topologies/machine.h"

#define PATH_BYTES 4096
#define FILE_BYTES (256u << 10)  /* of mountinfo on a busy container host; longer is cut */
#define V1_NO_LIMIT (1ull << 60) /* version 1 writes 2^63 less a page for "none" */

/* Reads at most FILE_BYTES − 1 bytes of root/path into a malloc'ed string; NULL where there is none. */
static char *read_text(const char *root, const char *path) {
    char full[2 * PATH_BYTES];
    int n = snprintf(full, sizeof full, "%s/%s", root, *path == '/' ? path + 1 : path);
    if (n < 0 || (size_t)n >= sizeof full) return NULL;
    int fd = open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return NULL;
    char *text = malloc(FILE_BYTES);
    size_t used = 0;
    while (text && used < FILE_BYTES - 1) {
        ssize_t got = read(fd, text + used, FILE_BYTES - 1 - used);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && used == 0) {
            free(text);
            text = NULL;
        }
        if (got <= 0) break;
        used += (size_t)got;
    }
    close(fd);
    if (text) text[used] = 0;
    return text;
}

/* A decimal number that fills the text up to white space; false for "max", "-1", garbage and overflow. */
static bool parse_u64(const char *text, uint64_t *value) {
    while (*text == ' ' || *text == '\t') text++;
    if (*text < '0' || *text > '9') return false;
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno || (*end && *end != ' ' && *end != '\t' && *end != '\n')) return false;
    *value = v;
    return true;
}

/* The value of a line "key value" (or "key: value"). */
static bool find_u64(const char *text, const char *key, uint64_t *value) {
    size_t n_key = strlen(key);
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL)
        if (!strncmp(line, key, n_key) && (line[n_key] == ' ' || line[n_key] == ':' || line[n_key] == '\t'))
            return parse_u64(line + n_key + (line[n_key] == ':'), value);
    return false;
}

static bool read_u64(const char *root, const char *dir, const char *file, uint64_t *value) {
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    char *text = read_text(root, path);
    bool found = text && parse_u64(text, value);
    free(text);
    return found;
}

/* Is word one of the comma-separated words of list[0…n)? */
static bool has_word(const char *list, size_t n, const char *word) {
    size_t n_word = strlen(word);
    for (size_t at = 0; at < n;) {
        const char *comma = memchr(list + at, ',', n - at);
        size_t end = comma ? (size_t)(comma - list) : n;
        if (end - at == n_word && !memcmp(list + at, word, n_word)) return true;
        at = end + 1;
    }
    return false;
}

/* Where this process is in one hierarchy: controller NULL is version 2. */
static bool own_path(const char *cgroups, const char *controller, char path[PATH_BYTES]) {
    for (const char *line = cgroups; line && *line;) {
        const char *end = strchr(line, '\n');
        size_t n = end ? (size_t)(end - line) : strlen(line);
        const char *a = memchr(line, ':', n), *b = a ? memchr(a + 1, ':', n - (size_t)(a + 1 - line)) : NULL;
        if (b && (controller ? has_word(a + 1, (size_t)(b - a - 1), controller) : b == a + 1 && a == line + 1 && *line == '0')) {
            size_t n_path = n - (size_t)(b + 1 - line);
            if (n_path == 0 || n_path >= PATH_BYTES) return false;
            memcpy(path, b + 1, n_path);
            path[n_path] = 0;
            return true;
        }
        line = end ? end + 1 : NULL;
    }
    return false;
}

/* mountinfo writes space, tab, newline and backslash as \ooo. */
static void unescape(char *s) {
    char *out = s;
    for (; *s; s++)
        if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
            *out++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
            s += 3;
        } else {
            *out++ = *s;
        }
    *out = 0;
}

struct mount {
    char point[PATH_BYTES]; /* where it is mounted */
    char part[PATH_BYTES];  /* which directory of the hierarchy is seen there */
};

static bool is_directory(const char *root, const char *path) {
    char full[2 * PATH_BYTES];
    snprintf(full, sizeof full, "%s/%s", root, path);
    struct stat s;
    return stat(full, &s) == 0 && S_ISDIR(s.st_mode);
}

/* Where mountinfo does not say it: the usual places. */
static bool guess_mount(const char *root, const char *controller, struct mount *m) {
    static const char *const v1[] = {"sys/fs/cgroup/%s", "sys/fs/cgroup/%s,cpuacct", "sys/fs/cgroup/cpuacct,%s", NULL};
    strcpy(m->part, "/");
    if (!controller) {
        strcpy(m->point, is_directory(root, "sys/fs/cgroup/unified") ? "sys/fs/cgroup/unified" : "sys/fs/cgroup");
        return is_directory(root, m->point);
    }
    for (int i = 0; v1[i]; i++) {
        const char *hole = strchr(v1[i], '%');
        snprintf(m->point, sizeof m->point, "%.*s%s%s", (int)(hole - v1[i]), v1[i], controller, hole + 2);
        if (is_directory(root, m->point)) return true;
    }
    return false;
}

static bool find_mount(const char *root, char *mountinfo, const char *controller, struct mount *m) {
    bool found = false;
    for (char *line = mountinfo, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next = 0;
        /* 32 31 0:29 PART POINT options [optional …] - TYPE source SUPER-OPTIONS */
        char part[PATH_BYTES], point[PATH_BYTES], type[32], super[1024];
        const char *dash = strstr(line, " - ");
        if (dash && sscanf(line, "%*s %*s %*s %4095s %4095s", part, point) == 2 && sscanf(dash, " - %31s %*s %1023s", type, super) == 2 &&
            (controller ? !strcmp(type, "cgroup") && has_word(super, strlen(super), controller) : !strcmp(type, "cgroup2"))) {
            unescape(part);
            unescape(point);
            strcpy(m->part, part);
            strcpy(m->point, point);
            found = true; /* a later mount on the same point hides an earlier one: the last wins */
        }
        if (next) *next++ = '\n';
    }
    return found || guess_mount(root, controller, m);
}

/* Calls visit for our directory in a hierarchy and for each one above it: dir is below root, name is the cgroup's path in the hierarchy as we know it. */
typedef void visit_fn(const char *root, const char *dir, const char *name, bool v2, void *context);

static void walk(const char *root, const char *controller, visit_fn *visit, void *context) {
    char *cgroups = read_text(root, "proc/self/cgroup"), *mountinfo = read_text(root, "proc/self/mountinfo");
    for (int v2 = 0; v2 <= 1; v2++) {
        struct mount *m = malloc(sizeof *m);
        char path[PATH_BYTES];
        if (m && cgroups && own_path(cgroups, v2 ? NULL : controller, path) && find_mount(root, mountinfo, v2 ? NULL : controller, m)) {
            /* Our path below the part that is mounted. Outside of it ("/../x", or a container that shows the host's path): the mount point is all that we see. */
            size_t n_part = strcmp(m->part, "/") ? strlen(m->part) : 0;
            const char *below = path + n_part;
            if (strncmp(path, m->part, n_part) != 0 || (*below && *below != '/') || strstr(path, "/..")) below = "";
            size_t n_name = below == path + n_part ? n_part : 0;
            char name[PATH_BYTES], dir[2 * PATH_BYTES];
            snprintf(name, sizeof name, "%s", n_name || *below ? path : "/");
            for (;;) {
                size_t n = strlen(name);
                while (n > n_name && n > 1 && name[n - 1] == '/') name[--n] = 0;
                snprintf(dir, sizeof dir, "%s%s", m->point, n > n_name ? name + n_name : "");
                visit(root, dir, *name ? name : "/", v2, context);
                char *slash = strrchr(name, '/');
                if (n <= n_name || n <= 1 || !slash || (size_t)(slash - name) < n_name) break;
                *slash = 0;
                if (!*name) strcpy(name, "/");
            }
        }
        free(m);
    }
    free(cgroups);
    free(mountinfo);
}

/* --- Memory ------------------------------------------------------------------------------------------------------------------ */

struct memory {
    uint64_t bytes;
    char *what; /* [256] */
};

static void visit_memory(const char *root, const char *dir, const char *name, bool v2, void *context) {
    struct memory *least = context;
    char path[2 * PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    char *stat_text = read_text(root, path);
    const char *stats = stat_text ? stat_text : "";
    uint64_t limit = UINT64_MAX, more, usage = 0, active = 0, inactive = 0;
    if (v2) {
        if (read_u64(root, dir, "memory.max", &more)) limit = more;
        if (read_u64(root, dir, "memory.high", &more) && more < limit) limit = more; /* beyond it the kernel throttles: no budget either */
    } else {
        if (read_u64(root, dir, "memory.limit_in_bytes", &more) && more < V1_NO_LIMIT) limit = more;
        if (find_u64(stats, "hierarchical_memory_limit", &more) && more < V1_NO_LIMIT && more < limit)
            limit = more; /* ancestors that we cannot see */
    }
    if (limit != UINT64_MAX) {
        read_u64(root, dir, v2 ? "memory.current" : "memory.usage_in_bytes", &usage);
        if (v2 || !find_u64(stats, "total_active_file", &active)) find_u64(stats, "active_file", &active);
        if (v2 || !find_u64(stats, "total_inactive_file", &inactive)) find_u64(stats, "inactive_file", &inactive);
        /* Page cache on the file lists is dropped when memory is asked for (shmem and tmpfs are on the anonymous lists). */
        uint64_t cache = active > UINT64_MAX - inactive ? UINT64_MAX : active + inactive;
        usage = usage > cache ? usage - cache : 0;
        uint64_t left = limit > usage ? limit - usage : 0;
        if (left < least->bytes) {
            least->bytes = left;
            snprintf(least->what, 256, "cgroup %.240s", name);
        }
    }
    free(stat_text);
}

enum st topo_memory_available(const char *root, uint64_t *bytes, char what[256], struct err *e) {
    if (!root) root = "";
    char *meminfo = read_text(root, "proc/meminfo");
    if (!meminfo) return err_set(e, ST_IO, "%s/proc/meminfo: %s", root, strerror(errno));
    uint64_t kib = 0, cached = 0, buffers = 0;
    bool found = find_u64(meminfo, "MemAvailable", &kib);
    if (!found && find_u64(meminfo, "MemFree", &kib)) { /* before Linux 3.14 */
        find_u64(meminfo, "Cached", &cached);
        find_u64(meminfo, "Buffers", &buffers);
        kib += cached + buffers;
        found = true;
    }
    free(meminfo);
    if (!found || kib > UINT64_MAX / 1024) return err_set(e, ST_IO, "%s/proc/meminfo: no usable line MemAvailable", root);
    char name[256] = "MemAvailable";
    struct memory least = {.bytes = kib * 1024, .what = name};
    walk(root, "memory", visit_memory, &least);
    *bytes = least.bytes;
    if (what) memcpy(what, name, sizeof name);
    return ST_OK;
}

/* --- CPU time ---------------------------------------------------------------------------------------------------------------- */

static void visit_cpu(const char *root, const char *dir, const char *name, bool v2, void *context) {
    (void)name;
    double *least = context;
    uint64_t quota, period;
    if (v2) {
        char path[2 * PATH_BYTES + 64];
        snprintf(path, sizeof path, "%s/cpu.max", dir);
        char *text = read_text(root, path);
        const char *space = text ? strchr(text, ' ') : NULL;
        bool found = text && parse_u64(text, &quota);
        if (!found || !space || !parse_u64(space, &period)) period = 100000; /* the kernel's default, where a file holds the quota alone */
        free(text);
        if (!found) return;
    } else if (!read_u64(root, dir, "cpu.cfs_quota_us", &quota) || !read_u64(root, dir, "cpu.cfs_period_us", &period)) {
        return;
    }
    if (quota == 0 || period == 0) return;
    double cpus = (double)quota / (double)period;
    if (*least == 0 || cpus < *least) *least = cpus;
}

double topo_cpu_quota(const char *root) {
    double least = 0;
    walk(root ? root : "", "cpu", visit_cpu, &least);
    return least;
}
