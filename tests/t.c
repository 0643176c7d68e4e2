#include "tests/t.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- Memory that lives as long as the program -------------------------------------------------------------------------------- */

struct kept {
    struct kept *next;
};
static struct kept *kept;

static void free_kept(void) {
    while (kept) {
        struct kept *next = kept->next;
        free(kept);
        kept = next;
    }
}

static void *keep(size_t bytes) {
    if (!kept) atexit(free_kept);
    struct kept *k = malloc(sizeof *k + bytes);
    if (!k) {
        fail_msg("no memory for %zu bytes", bytes);
        return NULL;
    }
    k->next = kept;
    kept = k;
    return k + 1;
}

/* --- Files ------------------------------------------------------------------------------------------------------------------- */

static char dir[256];
static pid_t dir_owner; /* a forked child that leaves by exit() must not remove its parent's directory */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st, (void)type, (void)ftw;
    return remove(path);
}
static void remove_dir(void) {
    if (getpid() == dir_owner) nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *t_dir(void) {
    if (dir[0]) return dir;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/tandem-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) fail_msg("%s: %s", dir, strerror(errno));
    dir_owner = getpid();
    atexit(remove_dir);
    return dir;
}

const char *t_path(const char *format, ...) {
    char name[512];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    size_t bytes = strlen(t_dir()) + 1 + strlen(name) + 1;
    char *path = keep(bytes);
    snprintf(path, bytes, "%s/%s", t_dir(), name);
    return path;
}

void t_write_file(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    if (!f) {
        fail_msg("%s: %s", path, strerror(errno));
        return;
    }
    size_t n = bytes ? fwrite(data, 1, bytes, f) : 0;
    if (fclose(f) != 0 || n != bytes) fail_msg("%s: %s", path, strerror(errno));
}

void t_write_text(const char *path, const char *text) { t_write_file(path, text, strlen(text)); }

char *t_read_file(const char *path, size_t *bytes) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st = {0};
    if (fd < 0 || fstat(fd, &st) != 0) fail_msg("%s: %s", path, strerror(errno));
    size_t n_file = (size_t)st.st_size, n_read = 0;
    char *data = keep(n_file + 1);
    while (n_read < n_file) {
        ssize_t n = read(fd, data + n_read, n_file - n_read);
        if (n <= 0) fail_msg("%s: %s", path, n ? strerror(errno) : "ended early");
        n_read += (size_t)n;
    }
    close(fd);
    data[n_file] = 0;
    if (bytes) *bytes = n_file;
    return data;
}

/* --- Settings ---------------------------------------------------------------------------------------------------------------- */

uint64_t t_seed(void) {
    static bool printed;
    const char *text = getenv("TANDEM_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20240607u;
    if (!printed) printf("seed: TANDEM_TEST_SEED=%llu\n", (unsigned long long)seed);
    printed = true;
    return seed;
}

bool t_long(void) {
    const char *text = getenv("LONG");
    return text && strcmp(text, "1") == 0;
}

const char *t_demo_model(void) {
    const char *path = getenv("TANDEM_DEMO_MODEL");
    return path && *path ? path : NULL;
}

void t_declare_warnings(void) {
    printf("t: warnings declared\n");
    fflush(stdout);
}

/* --- Guarded memory ---------------------------------------------------------------------------------------------------------- */

/* Layout: one line with the size, one line of guard, the caller's bytes, at least one line of guard up to the end. */
enum { LINE = 64, GUARD = 0xA5, FILL = 0xC3 };

static unsigned char *guard_start(const void *p) { return (unsigned char *)(uintptr_t)p - (2 * (size_t)LINE); }
static size_t guard_total(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE + (3 * (size_t)LINE); }

void *t_guard_alloc(size_t bytes) {
    size_t total = guard_total(bytes);
    unsigned char *start = aligned_alloc(LINE, total);
    if (!start) {
        fail_msg("no memory for %zu bytes", total);
        return NULL;
    }
    memset(start, GUARD, total);
    memcpy(start, &bytes, sizeof bytes);
    memset(start + (2 * (size_t)LINE), FILL, bytes);
    return start + (2 * (size_t)LINE);
}

void t_guard_check_at(const void *p, const char *file, int line) {
    const unsigned char *start = guard_start(p);
    size_t bytes;
    memcpy(&bytes, start, sizeof bytes);
    for (size_t i = sizeof bytes; i < guard_total(bytes); i++) {
        if (i == 2 * (size_t)LINE) i += bytes; /* over what the test owns */
        if (start[i] == GUARD) continue;
        print_error("guard byte %lld of a block of %zu bytes was overwritten\n", (long long)i - 2 * LINE, bytes);
        _fail(file, line);
    }
}

void t_guard_free_at(void *p, const char *file, int line) {
    if (!p) return;
    t_guard_check_at(p, file, line);
    free(guard_start(p));
}

/* --- Checks ------------------------------------------------------------------------------------------------------------------ */

void t_ok_at(enum st got, const struct err *e, const char *call, const char *file, int line) {
    if (got == ST_OK) return;
    print_error("%s: %s: %s\n", call, st_name(got), e ? e->text : "");
    _fail(file, line);
}

void t_expect_err_at(enum st want, enum st got, const struct err *e, const char *part, const char *file, int line) {
    if (got != want) {
        print_error("'%s' expected, got '%s': %s\n", st_name(want), st_name(got), got == ST_OK || !e ? "" : e->text);
        _fail(file, line);
    }
    if (part && (!e || !strstr(e->text, part))) {
        print_error("'%s' expected in: %s\n", part, e ? e->text : "(no error record)");
        _fail(file, line);
    }
}

const char *t_in_child_at(void (*fn)(void *), void *arg, int signal, const char *file, int line) {
    enum { MAX_TEXT = 64 << 10 };
    int fds[2];
    if (pipe(fds) != 0) fail_msg("pipe: %s", strerror(errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) fail_msg("fork: %s", strerror(errno));
    if (pid == 0) {
        /* cmocka catches these to fail a test: here they shall kill. No core file for a death that was asked for. */
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        static const int caught[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
        for (size_t i = 0; i < sizeof caught / sizeof caught[0]; i++) {
            struct sigaction by_default = {.sa_handler = SIG_DFL};
            sigaction(caught[i], &by_default, NULL);
        }
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        close(fds[1]);
        fn(arg);
        _exit(0);
    }
    close(fds[1]);
    char *text = keep(MAX_TEXT + 1);
    size_t n_text = 0;
    while (n_text < MAX_TEXT) {
        ssize_t n = read(fds[0], text + n_text, MAX_TEXT - n_text);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        n_text += (size_t)n;
    }
    text[n_text] = 0;
    close(fds[0]);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    bool as_wanted = signal ? WIFSIGNALED(status) && WTERMSIG(status) == signal : WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (!as_wanted) {
        print_error("a child ended with wait status %#x, signal %d was expected; it wrote:\n%s\n", (unsigned)status, signal, text);
        _fail(file, line);
    }
    return text;
}

void t_expect_assert_at(void (*fn)(void *), void *arg, const char *part, const char *file, int line) {
    const char *text = t_in_child_at(fn, arg, SIGABRT, file, line);
    if (strstr(text, "assertion failed") && strstr(text, part)) return;
    print_error("a failed assertion with '%s' expected in: %s\n", part, text);
    _fail(file, line);
}
