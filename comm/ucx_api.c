/* Finding and loading libucp.
 *
 * UCX reads its settings from the environment, many of them while it is loaded. They are set just before, in comm_open of the first rank of the process, and only where
 * the user has not set them. setenv is no friend of threads that call getenv meanwhile: ranks open their comms before they start other threads, and ranks that are threads of one
 * process (tests) come one after another through the lock here, those that only ask whether the library is there as well. */
#include "comm/ucx_api.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LIBRARY "libucp.so.0"
#define LOADER_CACHE "/etc/ld.so.cache"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const char *library(void) {
    const char *named = getenv("TANDEM_UCX");
    return named && *named ? named : LIBRARY;
}

/* ---- finding ------------------------------------------------------------------------------------------------------------------------------------- */

/* The loader's cache holds the names of all libraries in the directories of ld.so.conf; a search for the name is all that we need of its format. */
static bool is_in_cache(const char *name) {
    bool found = false;
    int fd = open(LOADER_CACHE, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    struct stat info;
    if (fstat(fd, &info) == 0 && info.st_size > 0) {
        size_t bytes = (size_t)info.st_size;
        void *cache = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (cache != MAP_FAILED) {
            found = memmem(cache, bytes, name, strlen(name) + 1) != NULL;
            munmap(cache, bytes);
        }
    }
    close(fd);
    return found;
}

/* LD_LIBRARY_PATH, our own run path and the system's directories, as the loader itself lists them. */
static bool is_in_search_path(const char *name) {
    bool found = false;
    void *self = dlopen(NULL, RTLD_LAZY);
    Dl_serinfo sizes, *list = NULL;
    if (self && dlinfo(self, RTLD_DI_SERINFOSIZE, &sizes) == 0) list = malloc(sizes.dls_size);
    if (list) {
        *list = sizes;
        if (dlinfo(self, RTLD_DI_SERINFO, list) == 0) {
            for (unsigned i = 0; i < list->dls_cnt && !found; i++) {
                char path[4096];
                int n = snprintf(path, sizeof path, "%s/%s", list->dls_serpath[i].dls_name, name);
                found = n > 0 && (size_t)n < sizeof path && access(path, R_OK) == 0;
            }
        }
        free(list);
    }
    if (self) dlclose(self);
    return found;
}

enum st comm_ucx_find(struct err *e) {
    if (!COMM_HAVE_UCX) return err_set(e, ST_UNSUPPORTED, "this build has no UCX");
    pthread_mutex_lock(&lock);
    const char *name = library();
    bool found = strchr(name, '/') ? access(name, R_OK) == 0 : is_in_search_path(name) || is_in_cache(name);
    pthread_mutex_unlock(&lock);
    return found ? ST_OK : err_set(e, ST_UNSUPPORTED, "the library %.200s is not there", name);
}

/* ---- loading ------------------------------------------------------------------------------------------------------------------------------------- */

#if COMM_HAVE_UCX
/* Of a whole process. (ucp_config_modify, which is for one context, takes the settings of UCP only in 1.13; it stores those of a transport and then calls them invalid.) */
static const struct ucx_setting settings[] = {
    {"UCX_ERROR_SIGNALS", ""},         /* no handlers: a crash belongs to whoever watches the rank */
    {"UCX_DEBUG_SIGNO", "0"},          /* … not even the one for SIGHUP that switches debugging on */
    {"UCX_HANDLE_ERRORS", "none"},     /* nor a debugger, nor a wait for one */
    {"UCX_LOG_FILE", "stderr"},        /* else warnings go to stdout (1.13), where the text of the model goes. A path would be cut to length zero */
    {"UCX_LOG_LEVEL", "fatal"},        /* a peer that is gone is told by us, once; who looks for more sets UCX_LOG_LEVEL=info */
    {"UCX_WARN_UNUSED_ENV_VARS", "n"}, /* the settings of other libraries are none of our business */
    {"UCX_VFS_ENABLE", "n"},           /* no thread that serves its insides as a file system */
    {"UCX_MEMTYPE_CACHE", "n"},        /* all buffers are host memory: no hooks in the GPU's allocator */
    /* A silent host: as soon as the kernel or the adapter can tell. */
    {"UCX_TCP_KEEPIDLE", "1s"},
    {"UCX_TCP_KEEPINTVL", "1s"},
    {"UCX_TCP_KEEPCNT", "2"},
    {"UCX_RC_VERBS_TIMEOUT", "100ms"},
    {"UCX_RC_MLX5_TIMEOUT", "100ms"},
    {"UCX_RC_VERBS_RETRY_COUNT", "6"}, /* seven, as it would be, means for ever to Linux's RDMA in software */
    {"UCX_RC_MLX5_RETRY_COUNT", "6"},
    /* A dead process on our own host: by default shared memory does not look, and is then not used with error handling at all. */
    {"UCX_POSIX_ERROR_HANDLING", "y"},
    {"UCX_KEEPALIVE_INTERVAL", "200ms"},
};

static void set(const struct ucx_setting *list, int n) {
    for (int i = 0; i < n; i++)
        if (list[i].value) setenv(list[i].name, list[i].value, 0);
}

static bool was_tried;
static enum st answer;
static struct err why;
static struct ucx_api loaded;

static enum st load(const struct ucx_setting *more, int n_more, struct err *e) {
    set(settings, sizeof settings / sizeof *settings);
    set(more, n_more);
    void *handle = dlopen(library(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) return err_set(e, ST_UNSUPPORTED, "ucx: %.400s", dlerror());
        /* libucs is a dependency of libucp: dlsym looks there as well. */
#define X(name)                                                                                                                                      \
    loaded.name = (__typeof__(name) *)dlsym(handle, #name);                                                                                          \
    if (!loaded.name) return err_set(e, ST_UNSUPPORTED, "ucx: %.200s has no function %s", library(), #name);
    COMM_UCX_FUNCTIONS(X)
#undef X
    loaded.ucp_get_version(&loaded.major, &loaded.minor, &loaded.release);
    if (loaded.major != UCP_API_MAJOR || loaded.minor < UCP_API_MINOR)
        return err_set(e, ST_UNSUPPORTED, "ucx: %.200s is version %u.%u, this build wants %u.%u or a later one", library(), loaded.major,
                       loaded.minor, UCP_API_MAJOR, UCP_API_MINOR);
    return ST_OK;
}

enum st comm_ucx_load(const struct ucx_setting *more, int n_more, const struct ucx_api **api, struct err *e) {
    pthread_mutex_lock(&lock);
    if (!was_tried) {
        answer = load(more, n_more, &why);
        was_tried = true;
    }
    pthread_mutex_unlock(&lock);
    if (answer != ST_OK) return err_set(e, answer, "%s", why.text);
    *api = &loaded;
    return ST_OK;
}
#endif
