/* What step.c, sums.c, overlap.c, experts.c and logits.c share: one executor, its bound programs, where values lie. */
#ifndef RUNTIME_STEP_PRIV_H
#define RUNTIME_STEP_PRIV_H

#include <stdatomic.h>

#include "base/arena.h"
#include "runtime/step.h"

/* The tokens of each local expert, sorted anew by every route; written by thread 0. */
struct slot_table {
    int32_t *begin, *token; /* [local experts + 1], [most slots] */
    float *weight;
    int n_experts, n_slots; /* of the route that was walked last */
};

/* One step of experts, looked up once: of each local expert (the shared one last) its matrices, biases and bytes. */
struct bound_experts {
    /* ROUTE, with an expert map: at which position each expert stands */
    uint16_t *position_of;
    int n; /* local experts */
    const struct kern_matrix **matrix[PART_MAX_EXPERT_PARTS]; /* of each part */
    const float **bias[PART_MAX_EXPERT_PARTS];   /* NULL: none */
    struct moved *moved;                  /* [n]; NULL without a ledger */
    /* EXPERTS_OUT: what the weighted sums are (leaves, or groups of experts), and how they are folded */
    uint8_t *sum_of; /* expert mode: [n] */
    int n_sums;
    uint8_t n_folds[KERN_MAX_LEAVES], emit[KERN_MAX_LEAVES];
};

/* What the ledger counts each time a step is walked: fixed, so looked up once. */
struct moved {
    uint64_t weights, stored; /* see struct rt_ledger_bytes */
    uint64_t cache;           /* a token */
};

struct bound_program {
    const struct part_program *p;
    bool *barrier_before; /* [n_steps] */
    struct moved *moved;  /* [n_steps]; NULL without a ledger */
    struct bound_experts **experts; /* [n_steps]; NULL where the step is not of experts */
};

/* One of the two halves of a step's tokens; see overlap.c. */
struct half {
    struct rt_desc desc;
    unsigned char *values;
    struct slot_table slots;
    uint64_t cache_tokens;
};

/* Sums that ranks share; see sums.c. */
enum { MOST_SUMS = 2 }; /* of one exchange */
struct shared_sum {
    enum { SUM_BY_ALL, SUM_SCATTERED, SUM_GATHERED, SUM_DONE } state; /* by all: it is not shared. Scattered, gathered: that is under way */
    struct comm_shares shares; /* whole tokens */
    int n_sums;
    const struct part_step *steps[MOST_SUMS];
    struct kern_sum sums[MOST_SUMS]; /* of our share, one behind the other */
    unsigned char *y;
};

/* An exchange that was begun, until it is ended. */
struct exchange {
    const struct part_step *step; /* NULL: none is under way */
    uint64_t sent, received;      /* bytes */
    struct comm_header headers[COMM_MAX_RANKS];
    struct shared_sum sum;
};

struct rt_exec {
    struct rt_exec_options o;
    const struct part_model *m;
    struct arena arena;
    struct bound_program main, head;

    unsigned char *values; /* the step arena, or a half of it */
    int n_halves;          /* of the walk: 1 or 2; what values' offsets are divided by */
    struct half halves[2]; /* their arrays; [1] with slots of its own where the model has any */
    int half;              /* that is walked */
    unsigned char *partials; /* [plan's largest send] what halves send; NULL: it lies in comm's send buffer */
    void *scratch_matmul, *scratch_attention;
    struct kern_kv *kv; /* [m->n_caches] */
    float *squares; /* [chunk], of a norm over all heads */
    struct slot_table slots; /* of the layer that runs */
    uint64_t *expert_counts; /* [n_layers][n_experts] how often each was chosen; NULL: nobody asked */
    struct kern_sampled *sampled; /* [RT_HEAD_ROWS, n_threads] */
    uint32_t *slice_begin;  /* [n local slices + 1] */
    float *lse_max, *lse_sum; /* [RT_HEAD_ROWS, n local slices] */
    int n_slices;

    /* one run */
    const struct rt_desc *desc;
    const struct comm_header *header;
    struct comm_header *root;
    struct rt_row_result *results;
    const struct bound_program *walking;
    uint64_t cache_tokens; /* keys that a layer's attention reads; only with a ledger */
    int first_row, n_rows; /* of the head program */
    uint32_t row_wants;    /* any of those rows */
    void *send_buffer;
    struct exchange under_way;
    const void *views[COMM_MAX_RANKS];
    bool is_summed; /* with the exchange before, so that there is nothing left to add */
    enum st st; /* written by thread 0 before a barrier */
    _Atomic int failing; /* an enum st; −1: e is being written */
    struct err *e;
    struct rt_ledger ledger;
};

static inline const struct part_value *value_of(const struct rt_exec *x, int v) { return &x->m->values[v]; }

static inline int rows_in(const struct rt_exec *x, int v)
{
    const enum part_rows rows = value_of(x, v)->rows;
    return rows == PART_TOKENS ? x->desc->batch.n_tokens : rows == PART_SLOTS ? x->slots.n_slots : x->n_rows;
}

/* Where rank r's vectors of a partial value begin among what it sends. */
static inline size_t sent_offset(const struct rt_exec *x, int r, int v)
{
    const int before = value_of(x, v)->follows;
    return before == PART_NONE ? 0 : part_rows_bytes(x->o.plan->ranks[r], before, rows_in(x, before));
}

static inline float *address(const struct rt_exec *x, int v)
{
    const struct part_value *value = value_of(x, v);
    return (float *)(void *)(value->partial && x->o.comm ? (unsigned char *)x->send_buffer + sent_offset(x, x->m->rank, v) : x->values + value->offset / (uint64_t)x->n_halves);
}

static inline const float *vector_of(const struct rt_exec *x, int w) { return w == PART_NONE ? NULL : x->o.weights->items[w].vector; }

/* sums.c. Thread 0, between the barriers that follow what is sent and precede what reads it; in between it advances, whatever else is walked meanwhile. */
enum st rt_exchange_begin(struct rt_exec *x, const struct part_step *s);
void rt_exchange_advance(struct rt_exec *x);
enum st rt_exchange_end(struct rt_exec *x);
/* A sum's step, on all threads. */
void rt_sum(const struct rt_exec *x, struct kern_queue q, const struct part_step *s);

/* logits.c: what is made of logits. */
int rt_logits_owner(const struct rt_exec *x, int dim, uint64_t id); /* which rank holds a row of the vocabulary */
void rt_logits_sample(const struct rt_exec *x, struct kern_queue q, const struct part_step *s);
void rt_logits_score(const struct rt_exec *x, struct kern_queue q, const struct part_step *s);
void rt_logits_merge_samples(struct rt_exec *x, const struct part_step *s);
void rt_logits_merge_scores(struct rt_exec *x, const struct part_step *s);
enum st rt_logits_deliver(struct rt_exec *x, int value);

/* overlap.c: the main program in two halves. */
enum st rt_overlap_bind(struct rt_exec *x, struct err *e);
bool rt_overlap_is_due(const struct rt_exec *x);
void rt_overlap_begin(struct rt_exec *x);
/* Thread 0, as rt_exchange_begin: a stage of one half has ended, with exchange s (NULL: with the program); the other half is walked next. */
void rt_overlap_meet(struct rt_exec *x, const struct part_step *s);
void rt_overlap_end(struct rt_exec *x, const struct rt_desc *whole);

/* experts.c: steps of mixtures of experts. */
enum st rt_experts_bind(struct rt_exec *x, const struct part_program *p, struct bound_program *b, struct err *e);
/* Room for the tokens of a layer's experts in t. */
enum st rt_experts_bind_slots(struct rt_exec *x, int n_experts, struct slot_table *t, struct err *e);
void rt_experts_route(struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b);
void rt_experts_in(const struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b);
void rt_experts_out(const struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b);
void rt_experts_bias(const struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b);
/* Counts those experts that have a token in this step. */
void rt_experts_mark(const struct rt_exec *x, const struct part_step *s, const struct bound_experts *b, struct rt_ledger_step *now);

#endif
