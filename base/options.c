#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* "-n": one dash and one letter, whose value may follow without a space. */
static bool is_short(const char *name) { return name && name[0] == '-' && name[1] != '-' && name[1] && !name[2]; }

static bool is_name(const struct option *o, const char *text, size_t n) {
    return (strlen(o->name) == n && memcmp(o->name, text, n) == 0) || (o->alias && strlen(o->alias) == n && memcmp(o->alias, text, n) == 0);
}

/* The row called text[0 … n), and the group that it belongs to. */
static const struct option *find(const struct option_group *groups, int n_groups, const char *text, size_t n, const struct option_group **group) {
    for (int i = 0; i < n_groups; i++)
        for (const struct option *o = groups[i].options; o->name; o++)
            if (is_name(o, text, n)) {
                *group = &groups[i];
                return o;
            }
    return NULL;
}

static bool in_range(const struct option *o, double number) { return (o->min == 0 && o->max == 0) || (number >= o->min && number <= o->max); }

static enum st out_of_range(const struct option *o, const char *name, const char *text, struct err *e) {
    return err_set(e, ST_INVALID, "%s takes a number from %.15g to %.15g, not %s", name, o->min, o->max, text);
}

static void join_choices(const struct option *o, const char *between, char *text, size_t bytes) {
    size_t at = 0;
    text[0] = 0;
    for (int i = 0; o->choices[i]; i++) {
        int n = snprintf(text + at, bytes - at, "%s%s", i ? between : "", o->choices[i]);
        if (n < 0 || (size_t)n >= bytes - at) return;
        at += (size_t)n;
    }
}

/* name: as the user spelled it. text: NULL for a flag. */
static enum st store(const struct option *o, void *values, const char *name, const char *text, struct err *e) {
    void *field = (char *)values + o->offset;
    char *end;
    switch (o->type) {
    case OPT_FLAG: *(bool *)field = true; return ST_OK;
    case OPT_INT: {
        errno = 0;
        long long number = strtoll(text, &end, 10);
        if (!*text || isspace((unsigned char)*text) || *end) return err_set(e, ST_INVALID, "%s takes a whole number, not '%s'", name, text);
        if (errno == ERANGE) return err_set(e, ST_INVALID, "%s: %s is too large", name, text);
        if (!in_range(o, (double)number)) return out_of_range(o, name, text, e);
        *(int64_t *)field = number;
        return ST_OK;
    }
    case OPT_DOUBLE: {
        double number = strtod(text, &end);
        if (!*text || isspace((unsigned char)*text) || *end || !isfinite(number))
            return err_set(e, ST_INVALID, "%s takes a number, not '%s'", name, text);
        if (!in_range(o, number)) return out_of_range(o, name, text, e);
        *(double *)field = number;
        return ST_OK;
    }
    case OPT_STR: *(const char **)field = text; return ST_OK;
    case OPT_MAYBE:
        if (text && !*text) return err_set(e, ST_INVALID, "%s= has nothing behind it; %s alone is possible", name, name);
        *(const char **)field = text ? text : "";
        return ST_OK;
    case OPT_ENUM: {
        for (int i = 0; o->choices[i]; i++)
            if (strcmp(o->choices[i], text) == 0) {
                *(int *)field = i;
                return ST_OK;
            }
        char choices[200];
        join_choices(o, ", ", choices, sizeof choices);
        return err_set(e, ST_INVALID, "%s takes one of %s, not '%s'", name, choices, text);
    }
    case OPT_LIST: {
        struct option_list *list = field;
        if (list->n >= OPTION_LIST_MAX) return err_set(e, ST_INVALID, "%s can be given %d times", name, OPTION_LIST_MAX);
        list->items[list->n++] = text;
        return ST_OK;
    }
    }
    return err_set(e, ST_UNSUPPORTED, "%s: unknown type of option", name);
}

enum st base_options_parse(const char *command, const struct option_group *groups, int n_groups, int argc, char **argv, const char **positional,
                           int max_positional, int *n_positional, struct err *e) {
    int n_found = 0;
    bool options_ended = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (options_ended || arg[0] != '-' || !arg[1]) { /* "-" alone is an argument: standard input */
            if (n_found == max_positional) return err_set(e, ST_INVALID, "unexpected argument '%s'; try 'tandem help %s'", arg, command);
            positional[n_found++] = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            options_ended = true;
            continue;
        }

        /* Where the name ends, and the value that is glued to it. */
        const char *equals = arg[1] == '-' ? strchr(arg, '=') : NULL;
        size_t n_name = equals ? (size_t)(equals - arg) : strlen(arg);
        const char *value = equals ? equals + 1 : NULL;
        const struct option_group *group = NULL;
        const struct option *o = find(groups, n_groups, arg, n_name, &group);
        if (!o && arg[1] != '-') {
            n_name = 2;
            value = arg + 2;
            o = find(groups, n_groups, arg, n_name, &group);
            if (o && o->type == OPT_FLAG) o = NULL; /* -vx: not -v with a value */
        }
        if (!o) return err_set(e, ST_INVALID, "unknown option %.*s; try 'tandem help %s'", (int)(equals ? n_name : strlen(arg)), arg, command);

        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)n_name, arg);
        if (o->type == OPT_FLAG) {
            if (value) return err_set(e, ST_INVALID, "%s takes no value", name);
        } else if (!value && o->type != OPT_MAYBE) {
            /* The next argument, whatever it looks like: -p "- a list" and --seed -1 are meant so. */
            if (i + 1 >= argc) return err_set(e, ST_INVALID, "%s needs a value%s%s", name, o->value ? ": " : "", o->value ? o->value : "");
            value = argv[++i];
        }
        enum st st = store(o, group->values, name, value, e);
        if (st != ST_OK) return st;
    }
    *n_positional = n_found;
    return ST_OK;
}

int base_options_wants_help(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return 1;
    return 0;
}

/* "-n, --ranks N" */
static void spell(const struct option *o, char *text, size_t bytes) {
    const char *first = o->name, *second = o->alias;
    if (second && is_short(second) && !is_short(first)) {
        first = o->alias;
        second = o->name;
    }
    char choices[200] = "";
    if (o->type == OPT_ENUM && !o->value) join_choices(o, "|", choices, sizeof choices);
    const char *value = o->type == OPT_FLAG ? "" : o->value ? o->value : choices;
    const bool maybe = o->type == OPT_MAYBE;
    snprintf(text, bytes, "%s%s%s%s%s%s%s", is_short(first) ? "" : "    ", first, second ? ", " : "", second ? second : "", maybe ? "[=" : *value ? " " : "", value,
             maybe ? "]" : "");
}

void base_options_print_help(FILE *out, const char *usage, const char *about, const struct option_group *groups, int n_groups) {
    enum { WIDEST = 32 };
    fprintf(out, "usage: %s\n", usage);
    if (about && *about) fprintf(out, "%s\n", about);
    char text[300];
    int width = 0;
    for (int i = 0; i < n_groups; i++)
        for (const struct option *o = groups[i].options; o->name; o++) {
            spell(o, text, sizeof text);
            int n = (int)strlen(text);
            if (n > width && n <= WIDEST) width = n;
        }
    for (int i = 0; i < n_groups; i++) {
        if (!groups[i].options->name) continue;
        fprintf(out, "\n%s:\n", groups[i].title ? groups[i].title : "options");
        for (const struct option *o = groups[i].options; o->name; o++) {
            spell(o, text, sizeof text);
            if ((int)strlen(text) > width)
                fprintf(out, "  %s\n  %*s  %s\n", text, width, "", o->help);
            else
                fprintf(out, "  %-*s  %s\n", width, text, o->help);
        }
    }
}
