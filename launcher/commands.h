/* The commands: one file each, one table in main.c. A command gets argv with its own name first and returns the exit status:
 * 0 done, 1 failed (one sentence on stderr), 2 misuse (one sentence on stderr). */
#ifndef LAUNCHER_COMMANDS_H
#define LAUNCHER_COMMANDS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/options.h"
#include "base/status.h"

int cmd_run(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_bench(int argc, char **argv); /* and its sub-commands: */
int cmd_bench_comm(int argc, char **argv);
int cmd_bench_scale(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_synth(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_topo(int argc, char **argv);
int cmd_host_check(int argc, char **argv); /* hidden, and what it starts elsewhere: */
int cmd_host_kill(int argc, char **argv);
int cmd_host_info(int argc, char **argv);
int cmd_bundle_check(int argc, char **argv);
int cmd_bundle_make(int argc, char **argv); /* hidden: for make */

/* "tandem run: sentence" on stderr; returns the exit status for st (2 for misuse found while parsing, else 1). */
int launch_fail(const char *command, const struct err *e);
int launch_misuse(const char *command, const struct err *e);

/* Answers --help: true, and *status is the exit status. */
bool launch_wants_help(const char *command, const char *usage, const char *about, const struct option_group *groups, int n_groups, int argc, char **argv, int *status);
/* Parses, answers --help (returns 1: *status is the exit status), refuses misuse (likewise); 0: go on. Exactly one positional argument, MODEL, unless optional_model. */
int launch_parse(const char *command, const char *usage, const char *about, const struct option_group *groups, int n_groups, int argc, char **argv, const char **model,
                 int model_is_optional, int *status);

/* Whole of a file ("-": stdin) into malloc'ed memory with a NUL behind it. */
enum st launch_read_all(const char *path, size_t max_bytes, char **text, size_t *bytes, struct err *e);
/* CPUs that this process may use; at least 1. */
int launch_allowed_cpus(void);
/* Flushes stdout; a failed write (a full disk, a closed descriptor) is an error that is told. */
enum st launch_flush_stdout(struct err *e);

#endif
