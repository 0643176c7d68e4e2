/* The settings are written by base_log_init() and only read afterwards, so that no line takes a lock.
 * A line is composed on the stack and leaves by one write(2). */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MAX_MODULES 32
#define MAX_LINE 2048

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
#define N_LEVELS ((int)(sizeof level_names / sizeof level_names[0]))

static struct {
    enum log_level level; /* of modules that are not named below */
    int n_modules;
    struct {
        char name[24];
        enum log_level level;
    } modules[MAX_MODULES];
    char host[64];
} settings = {.level = LOG_WARN, .host = "-"};

static _Thread_local int thread_rank = -1;

void base_log_set_rank(int rank) { thread_rank = rank; }
int base_log_rank(void) { return thread_rank; }

static int level_by_name(const char *name, size_t n) {
    for (int i = 0; i < N_LEVELS; i++)
        if (strlen(level_names[i]) == n && memcmp(level_names[i], name, n) == 0) return i;
    return -1;
}

/* "warn" or "comm=debug"; false where it is neither. */
static bool read_part(const char *part, size_t n) {
    const char *equals = memchr(part, '=', n);
    if (!equals) {
        int level = level_by_name(part, n);
        if (level < 0) return false;
        settings.level = (enum log_level)level;
        return true;
    }
    size_t n_name = (size_t)(equals - part);
    int level = level_by_name(equals + 1, n - n_name - 1);
    if (level < 0 || n_name == 0 || n_name >= sizeof settings.modules[0].name) return false;
    if (settings.n_modules == MAX_MODULES) return false;
    memcpy(settings.modules[settings.n_modules].name, part, n_name);
    settings.modules[settings.n_modules].name[n_name] = 0;
    settings.modules[settings.n_modules].level = (enum log_level)level;
    settings.n_modules++;
    return true;
}

void base_log_init(const char *spec) {
    settings.level = LOG_WARN;
    settings.n_modules = 0;
    if (gethostname(settings.host, sizeof settings.host) != 0) strcpy(settings.host, "-");
    settings.host[sizeof settings.host - 1] = 0;
    char *dot = strchr(settings.host, '.');
    if (dot) *dot = 0;

    if (!spec) spec = getenv("TANDEM_LOG");
    if (!spec) return;
    while (*spec) {
        size_t n = strcspn(spec, ",");
        if (n && !read_part(spec, n)) base_log(LOG_WARN, "log", "skipping '%.*s': neither LEVEL nor MODULE=LEVEL", (int)(n > 100 ? 100 : n), spec);
        spec += n;
        if (*spec) spec++;
    }
}

bool base_log_on(enum log_level level, const char *module) {
    /* The last one named wins. */
    for (int i = settings.n_modules; i-- > 0;)
        if (strcmp(settings.modules[i].name, module) == 0) return level <= settings.modules[i].level;
    return level <= settings.level;
}

void base_log(enum log_level level, const char *module, const char *format, ...) {
    if (!base_log_on(level, module)) return;

    char line[MAX_LINE];
    struct timeval now;
    struct tm local;
    gettimeofday(&now, NULL);
    localtime_r(&now.tv_sec, &local);
    char rank[24];
    if (thread_rank < 0)
        snprintf(rank, sizeof rank, "launcher");
    else
        snprintf(rank, sizeof rank, "rank %d", thread_rank);
    int n = snprintf(line, sizeof line, "%02d:%02d:%02d.%06ld %s %s %s %s: ", local.tm_hour, local.tm_min, local.tm_sec, (long)now.tv_usec,
                     settings.host, rank, level_names[level], module);
    if (n < 0) return;
    size_t at = (size_t)n < sizeof line - 1 ? (size_t)n : sizeof line - 1;

    va_list args;
    va_start(args, format);
    n = vsnprintf(line + at, sizeof line - at, format, args);
    va_end(args);
    if (n < 0) return;
    size_t end = at + (size_t)n;
    if (end > sizeof line - 2) end = sizeof line - 2;
    /* Names from files and peers may hold anything: one line stays one line, and a terminal obeys nobody but its user. */
    for (size_t i = at; i < end; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = line[i] == '\n' || line[i] == '\t' ? ' ' : '?';
    line[end] = '\n';
    ssize_t written = write(STDERR_FILENO, line, end + 1);
    (void)written; /* nowhere left to complain */
}
