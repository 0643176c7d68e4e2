/* The ledger: where the nanoseconds of a rank's steps went. Off: one branch a step.
 *
 * init (allocates everything) → for each step: begin → batch → enter / exchanged … → end → pack. One thread (the rank's main thread); times are those of this thread, a barrier's wait
 * belongs to what stands before it. A step is a chain of intervals without gaps: enter closes one and opens the next, so the kinds of a step add up to its duration exactly.
 *
 * Kept are sums over all steps, a record of each of the last RT_LEDGER_STEPS steps, and the intervals themselves ("marks") of the last steps of each phase.
 * Every rank keeps one, or none does: with a ledger each exchange's header tells when its sender began, from which the others tell a slow peer from a slow wire. */
#ifndef RUNTIME_LEDGER_H
#define RUNTIME_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/clock.h"
#include "comm/comm.h"
#include "partition/program.h"

enum rt_ledger_kind {
    RT_LEDGER_WEIGHTS,   /* products with weights, and the arithmetic between them: embed, norm, gate, sum, select, pick */
    RT_LEDGER_ATTENTION, /* attention with its append to the cache, and rope */
    RT_LEDGER_WIRE,      /* exchanges, once all ranks had begun them */
    RT_LEDGER_WAIT,      /* exchanges before that: a peer was later than we */
    RT_LEDGER_HOST,      /* sampling, scoring, scheduling, frames of the front end */
    RT_LEDGER_KINDS
};
const char *rt_ledger_kind_name(enum rt_ledger_kind kind);
/* Of a program's step; an exchange is WIRE until it is split. */
enum rt_ledger_kind rt_ledger_kind_of(enum part_op op);

/* Steps with more tokens than sequences, and the others. */
enum rt_ledger_phase { RT_LEDGER_PREFILL, RT_LEDGER_DECODE, RT_LEDGER_PHASES };

#define RT_LEDGER_OPS 24                     /* enum part_op, and the last: outside of the programs */
#define RT_LEDGER_NO_OP (RT_LEDGER_OPS - 1)
#define RT_LEDGER_STEPS 4096
#define RT_LEDGER_MARKS 8192 /* of each phase: several steps of a hundred layers */

/* ---- what is kept: fixed widths, since it travels ---------------------------------------------------------------------------------------------------- */

/* What moved. Weights are counted once a product, however many tokens it serves. */
struct rt_ledger_bytes {
    uint64_t weights;  /* read, as packed for the kernels; of experts those that had a token */
    uint64_t experts;  /* of these, of experts */
    uint64_t stored;   /* the same weights as they lie in the checkpoint */
    uint64_t cache;    /* keys and values in front of this step's tokens, once a sequence */
    uint64_t sent;     /* by this rank, once however many peers take it */
    uint64_t received; /* from all others */
};

struct rt_ledger_sum {
    uint64_t n_steps, n_tokens, n_rows, step_ns;
    uint64_t kind_ns[RT_LEDGER_KINDS];
    struct rt_ledger_bytes bytes;
    uint64_t n_exchanges, n_sums, n_vectors; /* exchanges; those of partial sums; this rank's vectors in these */
    uint64_t n_expert_layers, n_touched;     /* layers with experts that were walked; this rank's experts that had a token there, all layers together */
    uint64_t op_ns[RT_LEDGER_OPS], op_calls[RT_LEDGER_OPS];
};

struct rt_ledger_step {
    uint64_t step, start_ns, duration_ns;
    uint64_t kind_ns[RT_LEDGER_KINDS];
    struct rt_ledger_bytes bytes;
    uint64_t first_mark; /* counted over all marks of this phase */
    uint32_t n_marks, n_tokens, n_rows, n_exchanges, n_sums, n_vectors;
    uint32_t n_expert_layers, n_touched;
    uint32_t phase, unused;
};

struct rt_ledger_mark {
    uint64_t start_ns;
    uint32_t duration_ns; /* at most UINT32_MAX */
    uint8_t kind, op;
    int16_t layer; /* −1: none */
};

/* ---- keeping it ------------------------------------------------------------------------------------------------------------------------------------------ */

struct rt_ledger {
    bool on;
    const struct base_clock *clock;
    /* Peer r's clock minus ours. Zero between ranks of one host, which share CLOCK_MONOTONIC; between hosts whoever measures the offsets puts them here before the first step. */
    int64_t clock_offset_ns[COMM_MAX_RANKS];
    uint64_t read_bytes_per_s; /* measured after loading, see runtime/bandwidth.h; 0: not */

    struct rt_ledger_sum sums[RT_LEDGER_PHASES];
    struct rt_ledger_step *steps; /* [RT_LEDGER_STEPS], a ring */
    uint64_t n_steps;
    struct rt_ledger_mark *marks[RT_LEDGER_PHASES]; /* [RT_LEDGER_MARKS] each, rings */
    uint64_t n_marks[RT_LEDGER_PHASES];

    struct rt_ledger_step now;  /* the step that runs */
    struct rt_ledger_mark open; /* the interval that runs; without its duration */
};

/* Memory from arena, touched. Until then, and where it fails, the ledger is off. */
enum st rt_ledger_init(struct rt_ledger *l, const struct base_clock *clock, struct arena *arena, struct err *e);

/* All of these only where l->on. */
void rt_ledger_begin(struct rt_ledger *l);
/* As soon as it is known what the step will do, and before the first enter. */
void rt_ledger_batch(struct rt_ledger *l, int n_tokens, int n_sequences, int n_rows);
/* The running interval ends, another begins. Returns the time. layer −1: none. */
uint64_t rt_ledger_enter(struct rt_ledger *l, enum rt_ledger_kind kind, int op, int layer);
/* The same for an interval that goes on with what was begun before: the op is not counted again. */
uint64_t rt_ledger_resume(struct rt_ledger *l, enum rt_ledger_kind kind, int op, int layer);
/* The running interval was an exchange, begun when enter(RT_LEDGER_WIRE) said, and is finished; headers [n_ranks] came with it. It is split, and host work begins. Where a peer did
 * not tell when it began, all of it is the wire's. */
void rt_ledger_exchanged(struct rt_ledger *l, const struct comm_header *headers, int n_ranks, int rank);
/* n_tokens 0 in batch, or no batch at all: nothing is kept. */
void rt_ledger_end(struct rt_ledger *l, uint64_t step);

/* ---- sending it -------------------------------------------------------------------------------------------------------------------------------------------- */

/* A rank's ledger in one piece, the payload of RT_LEDGER: this head; n_steps records, oldest first; the marks of PREFILL, then of DECODE, oldest first. As it lies in memory: both
 * ends run the same build. */
struct rt_ledger_head {
    uint32_t rank, n_ranks;
    uint32_t n_steps;                     /* records that follow */
    uint32_t n_marks[RT_LEDGER_PHASES];   /* marks that follow */
    uint32_t has_link;                    /* the link below was emulated */
    uint64_t all_steps;                   /* of which the records are the last */
    uint64_t all_marks[RT_LEDGER_PHASES]; /* likewise */
    uint64_t read_bytes_per_s;
    uint64_t link_exchanges, link_bytes, link_ns, link_held_ns, link_late_ns, link_n_late; /* struct comm_link_totals */
    struct rt_ledger_sum sums[RT_LEDGER_PHASES];
};

/* malloc'ed; NULL: no memory. link: NULL without one. */
void *rt_ledger_pack(const struct rt_ledger *l, int rank, int n_ranks, const struct comm_link_totals *link, size_t *bytes);

struct rt_ledger_report {
    const struct rt_ledger_head *head;
    const struct rt_ledger_step *steps;
    const struct rt_ledger_mark *marks[RT_LEDGER_PHASES];
};
/* Looks into data (aligned for uint64_t), which must outlive it. ST_INVALID where lengths, ranks, kinds or marks are out of range. */
enum st rt_ledger_unpack(const void *data, size_t bytes, struct rt_ledger_report *report, struct err *e);
/* The marks of one of the report's steps; NULL where some of them are lost (or it had none). */
const struct rt_ledger_mark *rt_ledger_marks_of(const struct rt_ledger_report *report, const struct rt_ledger_step *step);

#endif
