/* What the commands share. */
#include "launcher/commands.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int launch_fail(const char *command, const struct err *e)
{
    fprintf(stderr, "tandem %s: %s\n", command, e->text);
    return 1;
}

int launch_misuse(const char *command, const struct err *e)
{
    fprintf(stderr, "tandem %s: %s\n", command, e->text);
    return 2;
}

bool launch_wants_help(const char *command, const char *usage, const char *about, const struct option_group *groups, int n_groups, int argc, char **argv, int *status)
{
    struct err e = {""};
    if (!base_options_wants_help(argc, argv))
        return false;
    base_options_print_help(stdout, usage, about, groups, n_groups);
    *status = launch_flush_stdout(&e) ? launch_fail(command, &e) : 0;
    return true;
}

int launch_parse(const char *command, const char *usage, const char *about, const struct option_group *groups, int n_groups, int argc, char **argv, const char **model,
                 int model_is_optional, int *status)
{
    struct err e = {""};
    if (launch_wants_help(command, usage, about, groups, n_groups, argc, argv, status))
        return 1;
    int n = 0;
    *model = NULL;
    enum st st = base_options_parse(command, groups, n_groups, argc, argv, model, 1, &n, &e);
    if (!st && n == 0 && !model_is_optional)
        st = err_set(&e, ST_INVALID, "which MODEL? try 'tandem help %s'", command);
    if (!st)
        return 0;
    *status = launch_misuse(command, &e);
    return 1;
}

enum st launch_read_all(const char *path, size_t max_bytes, char **text, size_t *bytes, struct err *e)
{
    const bool standard = strcmp(path, "-") == 0;
    FILE *f = standard ? stdin : fopen(path, "rbe");
    const char *name = standard ? "standard input" : path;
    if (!f)
        return err_set(e, ST_NOT_FOUND, "%s: %s", name, strerror(errno));
    char *data = NULL;
    size_t used = 0, capacity = 0;
    enum st st = ST_OK;
    for (;;) {
        if (capacity - used < 65536) {
            capacity = capacity ? capacity * 2 : 131072;
            char *more = realloc(data, capacity + 1);
            if (!more) {
                st = err_set(e, ST_NO_MEMORY, "%s: no memory for it", name);
                break;
            }
            data = more;
        }
        const size_t got = fread(data + used, 1, capacity - used, f);
        used += got;
        if (used > max_bytes) {
            st = err_set(e, ST_INVALID, "%s: longer than %zu bytes", name, max_bytes);
            break;
        }
        if (got == 0) {
            if (ferror(f))
                st = err_set(e, ST_IO, "%s: %s", name, strerror(errno));
            break;
        }
    }
    if (!standard)
        fclose(f);
    if (st) {
        free(data);
        return st;
    }
    data[used] = 0;
    *text = data;
    *bytes = used;
    return ST_OK;
}

int launch_allowed_cpus(void)
{
    cpu_set_t set;
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n;
}

enum st launch_flush_stdout(struct err *e)
{
    if (fflush(stdout) || ferror(stdout))
        return err_set(e, ST_IO, "cannot write to standard output: %s", strerror(errno));
    return ST_OK;
}
