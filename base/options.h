/* Command-line options as one table, which feeds the parser, --help and shell completion.
 *
 * A command has rows of its own and may share rows with others (option_group). Values are written to the caller's struct by offset.
 * "--name VALUE", "--name=VALUE", "-n VALUE", "-nVALUE" for one-letter names, flags "--name", "--name[=VALUE]" where the value may be missing; "--" ends options.
 * A repeated option: the last wins, except LIST. */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum option_type {
    OPT_FLAG,   /* bool, set to true */
    OPT_INT,    /* int64_t, min … max */
    OPT_DOUBLE, /* double, min … max */
    OPT_STR,    /* const char *, borrowed from argv */
    OPT_ENUM,   /* int: index into choices */
    OPT_LIST,   /* struct option_list: every occurrence appended */
    OPT_MAYBE   /* const char *, borrowed: what stands behind "=", and "" for the bare name; never the next argument. Long names only */
};

#define OPTION_LIST_MAX 1024
struct option_list {
    const char *items[OPTION_LIST_MAX];
    int n;
};

struct option {
    const char *name;  /* "--max-tokens" or "-n"; NULL ends a table */
    const char *alias; /* a second spelling or NULL */
    enum option_type type;
    size_t offset;              /* into the values struct */
    const char *value;          /* "N" in the help; NULL for flags */
    const char *help;           /* one line */
    double min, max;            /* numbers; both 0: any */
    const char *const *choices; /* OPT_ENUM: NULL-terminated */
};

struct option_group {
    const char *title; /* heading in the help */
    const struct option *options;
    void *values; /* where this group's values go */
};

/* Parses argv[1…]; positional arguments are collected in order into positional[0 … max_positional) and counted.
 * Misuse: ST_INVALID and one sentence ("unknown option --foo; try 'tandem help run'"). "--help"/"-h" must be handled by the caller before, see base_options_wants_help. */
enum st base_options_parse(const char *command, const struct option_group *groups, int n_groups, int argc, char **argv, const char **positional,
                           int max_positional, int *n_positional, struct err *e);
int base_options_wants_help(int argc, char **argv);
void base_options_print_help(FILE *out, const char *usage, const char *about, const struct option_group *groups, int n_groups);

#endif
