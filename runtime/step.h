/* The executor: walks a rank's programs over one step descriptor, with kernels, exchanges and ledger marks.
 *
 * create (binds every step to memory, kernels and weights; validates; allocates all) → run … → destroy. Every thread of the pool walks the same program; barriers stand only
 * where a step reads or overwrites what another thread touched since the last one; exchanges are done by thread 0 (the caller). After create nothing allocates. */
#ifndef RUNTIME_STEP_H
#define RUNTIME_STEP_H

#include "base/pool.h"
#include "comm/comm.h"
#include "runtime/ledger.h"
#include "runtime/load.h"
#include "runtime/schedule.h"

struct rt_exec;

/* Gets one row of logits, in pieces: rank r's share at pieces[r]. */
typedef enum st (*rt_logits_fn)(void *context, const struct rt_row *row, const float *const *pieces, const uint64_t *n, int n_pieces, struct err *e);

struct rt_exec_options {
    const struct part_plan *plan;
    int rank;
    const struct rt_settings *settings;
    const struct kern_backend *backend;
    const struct rt_weights *weights;
    struct base_pool *pool;
    struct comm *comm; /* NULL with one rank */
    const struct base_clock *clock;
    /* Waits for the exchange that was begun, as comm_allgather_finish does, with the rank's idea of how long a peer may be silent. */
    enum st (*finish)(void *context, const void **views, struct comm_header *headers, struct err *e);
    rt_logits_fn on_logits; /* NULL on ranks that deliver to nobody */
    void *context;
};

enum st rt_exec_create(const struct rt_exec_options *options, struct rt_exec **x, struct err *e);
void rt_exec_destroy(struct rt_exec *x);

/* Runs one step; results[i] belongs to desc->rows[i]. header travels with every exchange; *root receives what rank 0 sent with its. ST_MISMATCH where a rank's token hash
 * differs from ours. */
enum st rt_exec_run(struct rt_exec *x, const struct rt_desc *desc, const struct comm_header *header, struct comm_header *root, struct rt_row_result *results, struct err *e);

/* NULL where settings->ledger is off. The caller opens and closes the ledger's steps (rt_ledger_begin, rt_ledger_end) around rt_exec_run and what belongs to it. */
struct rt_ledger *rt_exec_ledger(struct rt_exec *x);

/* [n_layers][n_experts] how often each expert was chosen so far; NULL where settings->expert_stats is off, or this is not rank 0 (all ranks choose alike). */
const uint64_t *rt_exec_expert_counts(const struct rt_exec *x);

#endif
