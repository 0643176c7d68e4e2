/* A made-up checkpoint (partition/synth.h) as files, for `tandem synth` and for the plan of a model that is not here. */
#ifndef LAUNCHER_MADE_UP_H
#define LAUNCHER_MADE_UP_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "launcher/out_dir.h"
#include "partition/synth.h"

struct launch_made_up {
    bool headers_only;
    bool without_tokenizer;
    int n_threads; /* 0: allowed CPUs */
    bool (*go_on)(void *arg, const char *tensor, uint64_t done_bytes); /* may be NULL */
    void *arg;
};

/* Weights, config.json and what is beside it, a tokenizer. */
enum st launch_made_up_write(const struct synth_plan *plan, const struct launch_made_up *options, const struct launch_out_dir *dir, struct err *e);

/* A directory in $TMPDIR (/tmp) with headers only and without tokenizer, for who plans. *path is malloc'ed; hand it back to launch_made_up_remove. ST_CANCELLED where a signal
 * came that is heeded (interrupt.h); nothing is left then. */
enum st launch_made_up_temporary(const struct synth_options *options, char **path, struct err *e);
void launch_made_up_remove(char *path);

/* A line for each preset. */
void launch_made_up_print_presets(FILE *out);

#endif
