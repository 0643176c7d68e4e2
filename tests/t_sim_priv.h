/* Inside the simulated program: t_sim.c draws, runs and checks it, t_sim_steps.c has the runtime's steps. */
#ifndef TESTS_T_SIM_PRIV_H
#define TESTS_T_SIM_PRIV_H

#include "base/rng.h"
#include "partition/order.h"
#include "tests/t_sim.h"

enum { MAX_RANKS = 6, MAX_OPS = 14, MAX_BYTES = 16384, MAX_EVENTS = 24, SUPERVISOR = MAX_RANKS };
#define OPEN_NS (15 * BASE_NS_PER_S)
#define WAIT_NS (12 * BASE_NS_PER_S) /* of one operation, in slices as the runtime does it */
#define SLICE_NS BASE_NS_PER_S

enum op_kind { OP_WORK, OP_IDLE, OP_ALLGATHER, OP_SUM, OP_TOP_K, OP_BROADCAST, OP_BARRIER, OP_SPLIT, OP_N };
struct op {
    enum op_kind kind;
    uint32_t tag;
    size_t bytes[MAX_RANKS]; /* per rank; OP_SUM: [0] of a vector */
    int root, k, n_posts;    /* n_posts: events before it */
    size_t piece_bytes;
    uint32_t n_leaves, lo[ORDER_MAX_RANKS], hi[ORDER_MAX_RANKS];
    bool in_parts;
    uint64_t work_ns[MAX_RANKS];
    int color[MAX_RANKS];
    float *sum; /* the reference, made when the first rank wants it */
};

struct rank {
    struct comm *comm, *group;
    uint64_t progress, waits;
    uint32_t n_posted, n_read;
    enum st code;
    struct err e;
    bool opened, finished, is_in_group, is_opening_group, is_excused, was_killed; /* killed: by the supervisor */
    int members[MAX_RANKS], n_members;
    uint64_t end_ns, slowest_ns;
    int i_op;
    unsigned char *own, *event;
    uint32_t token_hash, n_done; /* of the steps served */
    uint64_t n_steps;
};

struct play {
    struct comm_sim *s;
    uint64_t seed;
    enum t_sim_planted planted;
    struct comm_sim_weather weather;
    int n_ranks, n_ops, n_events, mismatched; /* mismatched: the rank whose hello differs; −1: none */
    bool has_supervisor, has_stranger, is_calm;
    int hang; /* how a frozen rank looks: asleep, busy or stopped */
    size_t max_bytes;
    int spin_us, n_frames; /* n_frames: that the front end sends to rank 0; 0: there is none */
    struct op ops[MAX_OPS];
    size_t event_bytes[MAX_EVENTS];
    struct rank ranks[MAX_RANKS];
    uint64_t begun_ns[MAX_OPS]; /* when the last rank came to it */
    int n_begun[MAX_OPS];
    struct comm_os systems[MAX_RANKS]; /* the sound ones, under planted faults */
    void *leak;
    char wrong[400];
};
extern struct play play; /* one world at a time: planted hooks have no context of their own */

static inline uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* ---- t_sim.c --------------------------------------------------------------------------------------------------------------------------------------------- */

uint64_t t_sim_in_ns(int rank, uint64_t ns); /* by the rank's clock */
enum st t_sim_wrong(struct rank *k, const char *what);
void t_sim_excuse(struct rank *k, bool is_excused);
/* The exchange begun, as the runtime waits for it: in slices that are counted as signs of life. */
enum st t_sim_finish(struct rank *k, struct comm *c, const void **views, struct comm_header *headers);

/* All events of the program up to the n-th, which must be there, and right; nothing for rank 0. */
enum st t_sim_read_events(struct rank *k, uint32_t n);

/* Of the heap, that are allocated now; always 0 under sanitizers, which find leaks themselves. */
long t_sim_n_blocks(void);
/* The n-th call of realloc from now on finds no memory; 0: none. Returns how far it was to the one that was wanted before. Never under sanitizers. */
long t_sim_starve(long n);

/* ---- t_sim_steps.c --------------------------------------------------------------------------------------------------------------------------------------- */

/* The runtime's loop of events and steps around its real scheduler, with made-up tokens: until the front end's last frame says stop. */
enum st t_sim_serve(struct rank *k);
int t_sim_draw_frames(struct base_rng *rng);
/* Somebody at the door who belongs to nobody: connects where ranks listen, says something or nothing, stays or leaves. */
void t_sim_intrude(int i_task);
/* NULL, or what is not the same on all ranks that have served. */
const char *t_sim_compare_steps(void);

#endif
