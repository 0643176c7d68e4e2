/* Does a model fit on machines that may not be here, and what would make it fit: the planner (partition/plan.h) asked for a described machine instead of this one.
 *
 * Pure but for reading headers. Sizes are those of this build's kernels on the processor that it runs on. */
#ifndef LAUNCHER_FIT_H
#define LAUNCHER_FIT_H

#include "launcher/setup.h"
#include "partition/plan.h"
#include "topologies/description.h"

/* Boxes of one kind: a rank for each accelerator, or one a box. */
struct launch_fit_machine {
    char on[128]; /* as typed: "2xgb10" */
    char name[128]; /* of one box: "gb10", or a path */
    char title[128];
    int n_boxes, n_ranks, n_threads; /* threads of a rank */
    uint64_t available_bytes;        /* to one rank; 0: the description does not say */
    uint64_t memory_bytes;           /* as its kernel counts, of which available_bytes can be taken in safety; 0: the same */
    uint64_t library_bytes;          /* of which the accelerator's library takes so much */
    const char *memory;              /* what available_bytes is of */
};

/* "gb10", "2xgb10", "3xFILE". ST_INVALID, ST_NOT_FOUND: no such machine. */
enum st launch_fit_machine_read(const char *on, struct launch_fit_machine *m, struct err *e);
/* The same with another number of boxes. */
void launch_fit_machine_resize(struct launch_fit_machine *m, int n_boxes);

struct launch_fit {
    const struct launch_fit_machine *machine;
    struct rt_settings settings;
    struct part_plan *plan;
    uint64_t total_bytes[ORDER_MAX_RANKS]; /* with library and reserve */
    bool fits;
    int64_t max_context; /* the largest context that fits, whole blocks, whatever the model was made for; 0: none */
    /* of a decoded token */
    uint64_t n_exchanges, sent_bytes[ORDER_MAX_RANKS], cache_bytes[ORDER_MAX_RANKS]; /* cache: read at the end of the context */
};

/* A change of settings that was planned for as well, and fits. */
struct launch_fit_advice {
    char what[160]; /* "--kv fp8" */
};

/* options: kv, activations, chunk, context, split; max_sequences: --batch. */
enum st launch_fit_create(const struct part_model *whole, const struct launch_options *options, int max_sequences, const struct launch_fit_machine *machine, struct launch_fit **fit, struct err *e);
void launch_fit_destroy(struct launch_fit *f);

/* fit_print.c: a table for people, or one JSON object with every size a whole number of bytes. */
void launch_fit_print(const struct launch_fit *f, const struct part_model *whole, const struct launch_fit_advice *advice, int n_advice, FILE *out);
enum st launch_fit_print_json(const struct launch_fit *f, const struct part_model *whole, const struct launch_fit_advice *advice, int n_advice, FILE *out, struct err *e);

#endif
