/* The plan: every rank's programs, slices, memory budget, and one digest over all of it. Headers alone are enough, but for the scales of a cache in FP8, which
 * are read; no weight is touched.
 *
 * create → read (any thread) → destroy. Pure: what a packed matrix or a scratch buffer takes is asked of the caller by a table of functions, because only the
 * kernel backend knows. */
#ifndef PARTITION_PLAN_H
#define PARTITION_PLAN_H

#include "base/hash.h"
#include "partition/shard.h"

struct part_sizes {
    /* bytes of the packed matrix [rows, columns]: follows from format, number of rows, range of columns, the axis that they are cut along, and home */
    uint64_t (*matrix_bytes)(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w);
    uint64_t (*kv_block_bytes)(const struct part_sizes *s, const struct part_cache *c);
    /* everything that a step needs beside its values */
    uint64_t (*scratch_bytes)(const struct part_sizes *s, const struct part_model *m);
    uint64_t (*comm_bytes)(const struct part_sizes *s, int n_ranks, uint64_t max_exchange_bytes);
    uint32_t kv_block_tokens;
    bool accurate; /* --activations f32 */
    enum format kv_format;
    int n_threads, max_tokens, max_rows;
    const void *context;
};

struct part_plan_options {
    int n_ranks;
    const uint32_t *shares; /* NULL: equal */
    int max_tokens;         /* tokens of one step (--chunk) */
    int max_rows;           /* logit rows of one run of the head program */
    int64_t context;        /* tokens of one sequence (--ctx) */
    int max_sequences;      /* sequences at once */
    int64_t kv_tokens;      /* the pool; 0: max_sequences × context */
};

/* Bytes per rank. */
struct part_budget {
    uint64_t weights, kv, activations, comm, scratch, total;
    /* what weights is the sum of */
    uint64_t matrices[FMT_COUNT]; /* by format, without the next two */
    uint64_t embedding, head;     /* a tied head is the embedding, and 0 here */
    uint64_t vectors;
};

struct part_plan {
    struct part_plan_options options;
    const struct part_model *whole;
    struct part_cut cut;
    struct part_model **ranks; /* [n_ranks] */
    struct part_budget *budget; /* [n_ranks] */
    uint64_t step_arena_bytes_max; /* activations of the largest rank */
    uint64_t max_exchange_bytes;   /* the largest send of any rank */
    uint64_t n_kv_blocks;          /* in the pool, the same on every rank */
    uint64_t weight_bytes_per_token; /* read by a decode step over all ranks, as stored in the checkpoint */
    struct digest digest;
};

/* Of these, what one rank reads: its slices, those that others have too (routers, scales of a block that a cut divides) counted again; of experts those that a token goes to in the mean. */
uint64_t part_plan_token_bytes(const struct part_plan *plan, int rank);

enum st part_plan_create(const struct part_model *whole, const struct part_plan_options *options, const struct part_sizes *sizes, struct part_plan **plan, struct err *e);
void part_plan_destroy(struct part_plan *plan);

/* The digest over everything that ranks must agree on: configuration, options, cut, and every rank's slices, values, caches and programs. */
struct digest part_plan_digest(const struct part_plan *plan);

/* Bytes of a value at its planned maximum. Partial values of several ranks live in the exchange's send buffer and take nothing in the step arena: 0. */
uint64_t part_value_bytes(const struct part_model *m, const struct part_value *v, const struct part_plan_options *o);

/* Whether two values of a rank share bytes of its step arena. */
bool part_values_overlap(const struct part_plan *plan, const struct part_model *m, int a, int b);

/* Bytes of a value with n tokens or logit rows, of one rank's model. */
uint64_t part_rows_bytes(const struct part_model *m, int value, int n_rows);

/* Weights of the embedding and of the head, the same where they are tied; −1: the program does not begin or end so. */
int32_t part_embedding_weight(const struct part_model *m);
int32_t part_head_weight(const struct part_model *m);

/* Bytes that rank r sends in one exchange step with n tokens or logit rows. */
uint64_t part_exchange_bytes(const struct part_plan *plan, const struct part_step *step, int rank, int n_rows);

/* Table of what each rank holds, with totals and what is available ("MemAvailable"). */
void part_plan_print(const struct part_plan *plan, FILE *out);

/* partition/audit.c: every weight byte of the checkpoint is owned exactly once per group, or is a declared replica, or is declared unused by name; every rank runs the whole model's
 * steps with its own part of the heads, and exchanges every partial value once before its sum, in the same order as the others; vectors of an exchange cover every leaf once; no value
 * is overwritten while it is needed; empty shards included. ST_INVALID names tensor, dimension, value or step. Fills what it counted. */
struct part_audit {
    uint64_t checkpoint_bytes, owned_bytes, replica_bytes, unused_bytes;
    int n_unused;
    const char *unused[64]; /* names, the first 64 */
    int n_beside;           /* unused too, but of thousands of modules: quant_is_beside */
    const char *beside;     /* the first of them */
    int n_exchanges; /* of a step, without the head */
};
enum st part_audit_plan(const struct part_plan *plan, struct part_audit *audit, struct err *e);

#endif
