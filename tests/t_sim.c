#include "tests/t_sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/ref/ref.h"
#include "launcher/life.h"
#include "tests/t_sim_priv.h"

struct play play;

/* ---- the heap's balance --------------------------------------------------------------------------------------------------------------------------------- */

static long starve_at; /* of the calls of realloc from now on, that fails; 0: none */
static long n_blocks; /* that are allocated; always 0 under sanitizers, which have an allocator of their own and find leaks themselves */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void *block);
static void *counted(void *block) {
    n_blocks += block != NULL;
    return block;
}
void *malloc(size_t bytes) { return counted(__libc_malloc(bytes)); }
void *calloc(size_t n, size_t bytes) { return counted(__libc_calloc(n, bytes)); }
void *aligned_alloc(size_t alignment, size_t bytes) { return counted(__libc_memalign(alignment, bytes)); }
void *realloc(void *old, size_t bytes) {
    if (starve_at && --starve_at == 0) return NULL;
    void *block = __libc_realloc(old, bytes);
    n_blocks += (block != NULL) - (old != NULL && (block != NULL || bytes == 0));
    return block;
}
void free(void *block) {
    n_blocks -= block != NULL;
    __libc_free(block);
}
#endif

long t_sim_n_blocks(void) { return n_blocks; }
long t_sim_starve(long n) {
    const long left = starve_at;
    starve_at = n;
    return left;
}

/* What a survivor's report may take from the fault on, beside what the weather adds. */
#define DEATH_NS BASE_NS_PER_S
#define SILENCE_NS (3700 * BASE_NS_PER_MS) /* SILENCE_MS of comm/tcp_wire.c, its look every half second, and a sleeper's slice */
#define FREEZE_NS ((LAUNCH_SILENCE_MS + LAUNCH_LOOK_MS + 350) * BASE_NS_PER_MS)
#define GOOD_BYE_NS (BASE_NS_PER_S / 2) /* half of what comm/tcp.c takes for them at most */
#define CALM_NS (15 * BASE_NS_PER_MS) /* an exchange in calm weather: a lost wake-up costs up to a sleeper's slice of 50 ms */

const char *const t_sim_planted_names[] = {
    "nothing",
    "a missing deadline",
    "a lost wake-up",
    "own vectors first",
    "sums from left to right",
    "short sends",
    "a leaked mapping",
    "leaked heap",
    "a leaked socket",
    "a wait that begins anew",
    "a blind judge",
    "an interrupt taken as the end",
    "an end seen late",
    "events before their time",
    "a slot that is written too early",
};

/* ---- the program ---------------------------------------------------------------------------------------------------------------------------------------- */

static void fill(void *to, size_t bytes, uint64_t tag) {
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t x = mix(tag + i * 0x9e3779b97f4a7c15ull);
        memcpy((unsigned char *)to + i, &x, bytes - i < 8 ? bytes - i : 8);
    }
}
static bool is_filled(const void *p, size_t bytes, uint64_t tag) {
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t x = mix(tag + i * 0x9e3779b97f4a7c15ull);
        if (memcmp((const unsigned char *)p + i, &x, bytes - i < 8 ? bytes - i : 8) != 0) return false;
    }
    return true;
}
static uint64_t tag_of(uint32_t op, int rank) { return mix(play.seed * 1000003 + (uint64_t)op * 64 + (uint64_t)rank); }

/* Numbers of very different sizes, so that every order of adding them has bits of its own. */
static float leaf_value(uint32_t tag, uint32_t leaf, size_t i) {
    const uint64_t x = mix(tag_of(tag, (int)leaf) + i);
    const float unit = (float)(int32_t)(x >> 32) * 0x1p-31f;
    return unit * (float)(1u << (x & 15));
}
static float tree_value(uint32_t tag, size_t i, uint32_t a, uint32_t b) {
    if (b - a == 1) return leaf_value(tag, a, i);
    const uint32_t m = a + (b - a + 1) / 2;
    const float left = tree_value(tag, i, a, m), right = tree_value(tag, i, m, b);
    return left + right;
}

static size_t draw_bytes(struct base_rng *rng, size_t most) {
    switch (base_rng_below(rng, 8)) {
    case 0: return 0;
    case 1: return most - base_rng_below(rng, 3);
    case 2:
    case 3: return base_rng_below(rng, (uint32_t)most);
    default: return base_rng_below(rng, 300);
    }
}

static void draw_op(struct base_rng *rng, struct op *op, uint32_t tag) {
    *op = (struct op){.kind = (enum op_kind)base_rng_below(rng, OP_N + 3), .tag = tag};
    if (op->kind >= OP_N) op->kind = OP_SUM; /* what a model does most */
    op->root = (int)base_rng_below(rng, (uint32_t)play.n_ranks);
    op->k = 1 + (int)base_rng_below(rng, 40);
    op->in_parts = base_rng_below(rng, 2) == 0;
    op->n_posts = base_rng_below(rng, 3) == 0 && play.n_events + 3 <= MAX_EVENTS ? 1 + (int)base_rng_below(rng, 3) : 0;
    play.n_events += op->n_posts;
    for (int r = 0; r < play.n_ranks; r++) {
        op->bytes[r] = draw_bytes(rng, play.max_bytes);
        static const uint32_t works[] = {20000, 20000, 20000, 20000, 20000, 2000000, 2000000, 60000000};
        op->work_ns[r] = base_rng_below(rng, works[base_rng_below(rng, 8)]);
        op->color[r] = (int)base_rng_below(rng, 3);
        op->color[r] -= base_rng_below(rng, 6) == 0;
    }
    if (op->kind != OP_SUM) return;
    uint32_t shares[MAX_RANKS];
    for (int r = 0; r < play.n_ranks; r++) shares[r] = 1 + base_rng_below(rng, 4);
    op->n_leaves = 1 + base_rng_below(rng, 12);
    order_cut(op->n_leaves, shares, (uint32_t)play.n_ranks, op->lo, op->hi);
    op->bytes[0] = 4 * (size_t)(1 + base_rng_below(rng, (uint32_t)(play.max_bytes / 64)));
    op->piece_bytes = base_rng_below(rng, 2) ? 64 * (size_t)(1 + base_rng_below(rng, 8)) : 0;
}

static void draw(uint64_t seed, enum t_sim_planted planted) {
    struct base_rng rng;
    memset(&play, 0, sizeof play);
    base_rng_init(&rng, seed);
    play.seed = seed;
    play.planted = planted;
    play.n_ranks = base_rng_below(&rng, 16) == 0 ? 1 : 2 + (int)base_rng_below(&rng, MAX_RANKS - 1);
    play.max_bytes = (size_t)1024 << 2 * base_rng_below(&rng, 3);
    play.spin_us = base_rng_below(&rng, 4) == 0 ? 1 + (int)base_rng_below(&rng, 20) : 0;
    play.has_supervisor = base_rng_below(&rng, 2) == 0;
    play.has_stranger = base_rng_below(&rng, 6) == 0;
    play.hang = (int)base_rng_below(&rng, 3);
    play.mismatched = play.n_ranks > 1 && base_rng_below(&rng, 40) == 0 ? (int)base_rng_below(&rng, (uint32_t)play.n_ranks) : -1;
    play.n_ops = 2 + (int)base_rng_below(&rng, MAX_OPS - 1);
    for (int i = 0; i < play.n_ops; i++) draw_op(&rng, &play.ops[i], (uint32_t)i);
    for (int i = 0; i < play.n_events; i++) play.event_bytes[i] = base_rng_below(&rng, 12) ? base_rng_below(&rng, 200) : base_rng_below(&rng, 4000);
    play.n_frames = base_rng_below(&rng, 3) == 0 ? t_sim_draw_frames(&rng) : 0;
    play.has_supervisor |= play.n_frames > 0; /* idle ranks wait for events as long as rank 0 lives: that somebody else must say */
    comm_sim_draw(seed, play.n_ranks, &play.weather);
    while (play.weather.window_bytes < play.max_bytes / 8) play.weather.window_bytes *= 2; /* else a message goes in thousands of pieces */
    for (int i = 0; i < play.n_ops; i++) /* what a slow rank does between two exchanges shall fit into its peers' deadlines */
        for (int r = 0; r < play.n_ranks; r++)
            if (play.weather.slow[r]) play.ops[i].work_ns[r] %= 2000000;
    play.is_calm = play.weather.n_faults == 0 && play.weather.window_bytes == COMM_SIM_MAX_WINDOW_BYTES &&
                   play.weather.delay_ns + play.weather.jitter_ns < 300000;
    for (int r = 0; r < play.n_ranks; r++) play.is_calm = play.is_calm && play.weather.slow[r] == 0;
}

/* ---- a rank --------------------------------------------------------------------------------------------------------------------------------------------- */

uint64_t t_sim_in_ns(int r, uint64_t ns) { return base_now_ns(comm_sim_clock(play.s, r)) + ns; }

enum st t_sim_wrong(struct rank *k, const char *what) {
    if (!play.wrong[0]) snprintf(play.wrong, sizeof play.wrong, "rank %d, operation %d: %s", (int)(k - play.ranks), k->i_op, what);
    return err_set(&k->e, ST_INVALID, "wrong: %s", what);
}

/* Whose freeze the supervisor cannot see. A dead rank is called to its end, but what it was at when it froze is asked for later. */
void t_sim_excuse(struct rank *k, bool is_excused) {
    if (!comm_sim_is_dead(play.s, (int)(k - play.ranks))) k->is_excused = is_excused;
}

/* As runtime/rank.c: in slices, and whoever waits counts them, to show that it does. */
enum st t_sim_finish(struct rank *k, struct comm *c, const void **views, struct comm_header *headers) {
    const int r = (int)(k - play.ranks);
    const uint64_t until_ns = t_sim_in_ns(r, WAIT_NS);
    enum st st;
    k->waits = 1;
    for (uint64_t now_ns = until_ns - WAIT_NS; (st = comm_allgather_finish(c, now_ns + SLICE_NS, views, headers, &k->e)) == ST_TIMEOUT;) {
        k->waits++;
        now_ns = t_sim_in_ns(r, 0);
        if (now_ns >= until_ns && play.planted != T_SIM_DEAF) break;
        if (comm_sim_is_dead(play.s, r)) break;
    }
    k->waits = 0;
    return st;
}

static enum st post_events(struct rank *k, int n) {
    for (int i = 0; i < n; i++) {
        fill(k->event, play.event_bytes[k->n_posted], tag_of(1000 + k->n_posted, 0));
        const enum st st = comm_event_post(k->comm, k->event, play.event_bytes[k->n_posted], &k->e);
        if (st == ST_AGAIN) return t_sim_wrong(k, "no room for an event in a ring of a megabyte");
        if (st) return st;
        k->n_posted++;
    }
    return ST_OK;
}

enum st t_sim_read_events(struct rank *k, uint32_t n) {
    if (k == &play.ranks[0]) return ST_OK;
    const int r = (int)(k - play.ranks);
    while (k->n_read < n) {
        size_t bytes;
        const enum st st = comm_event_next(k->comm, k->event, COMM_EVENT_MAX_BYTES, &bytes, t_sim_in_ns(r, SLICE_NS), &k->e);
        if (st == ST_AGAIN) return t_sim_wrong(k, "an event that an exchange has announced is not there");
        if (st) return st;
        if (bytes != play.event_bytes[k->n_read] || !is_filled(k->event, bytes, tag_of(1000 + k->n_read, 0)))
            return t_sim_wrong(k, "an event is not what was posted");
        k->n_read++;
    }
    return ST_OK;
}

/* Events count as applied when an exchange of the step before has announced them: no rank may be ahead. */
static enum st take_events(struct rank *k, const struct comm_header *headers) {
    if (play.planted == T_SIM_STALE_EVENTS && k != &play.ranks[0]) {
        size_t bytes;
        if (comm_event_next(k->comm, k->event, COMM_EVENT_MAX_BYTES, &bytes, 0, &k->e) == ST_OK) k->n_read++;
    }
    if (k == &play.ranks[0]) return ST_OK;
    const enum st st = t_sim_read_events(k, headers[0].n_events);
    return !st && k->n_read != headers[0].n_events ? t_sim_wrong(k, "an event was applied before its time") : st;
}

static bool headers_are_right(const struct rank *k, const struct op *op, const struct comm_header *headers) {
    for (int r = 0; r < play.n_ranks; r++)
        if (headers[r].step != op->tag || headers[r].n_events != (r ? 0 : headers[0].n_events) ||
            headers[r].token_hash != (uint32_t)tag_of(op->tag, r))
            return false;
    uint32_t n = 0; /* applied by all at the same step */
    for (uint32_t i = 0; i <= op->tag; i++) n += (uint32_t)play.ops[i].n_posts;
    return headers[0].n_events == n && (k == &play.ranks[0] || k->n_read <= n);
}

static struct comm_header header_of(const struct rank *k, const struct op *op) {
    const int r = (int)(k - play.ranks);
    return (struct comm_header){.step = op->tag, .n_events = r ? 0 : k->n_posted, .token_hash = (uint32_t)tag_of(op->tag, r)};
}

static enum st do_allgather(struct rank *k, const struct op *op) {
    const int r = (int)(k - play.ranks);
    const void *views[COMM_MAX_RANKS] = {NULL};
    struct comm_header headers[COMM_MAX_RANKS];
    const struct comm_header header = header_of(k, op);
    unsigned char *own = op->in_parts ? comm_send_buffer(k->comm) : k->own;
    fill(own, op->bytes[r], tag_of(op->tag, r));
    enum st st = comm_allgather_start(k->comm, own, op->bytes, &header, &k->e);
    if (!st && op->in_parts && comm_query(k->comm)->sends_ahead) memset(comm_send_buffer(k->comm), 0xa5, play.max_bytes); /* as runtime/overlap.c: the next one's, while this one flies */
    for (int i = 0; i < 3 && !st && op->in_parts; i++) {
        comm_sim_work(play.s, r, 10000);
        comm_allgather_advance(k->comm);
    }
    if (!st) st = t_sim_finish(k, k->comm, views, headers);
    if (st) return st;
    if (!headers_are_right(k, op, headers)) return t_sim_wrong(k, "headers are not what was sent");
    for (int i = 0; i < play.n_ranks; i++)
        if (!is_filled(views[i], op->bytes[i], tag_of(op->tag, i))) return t_sim_wrong(k, "an all-gather has other bytes than were sent");
    if (play.planted == T_SIM_EARLY_SLOT && op->in_parts) memset(own, 0x5a, op->bytes[r]);
    return take_events(k, headers);
}

struct adding {
    struct rank *rank;
    struct kern_sum sum;
    float *y;
    int order[KERN_MAX_VECTORS];
    uint64_t until_ns;
};

static void add(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors) {
    struct adding *a = context;
    struct kern_sum sum = a->sum;
    sum.width = (int)(bytes / sizeof(float));
    sum.y = a->y + offset / sizeof(float);
    for (int i = 0; i < n_vectors; i++) sum.vectors[i] = vectors[a->order[i]];
    if (play.planted == T_SIM_LEFT_FOLD) {
        for (int c = 0; c < sum.width; c++) {
            float x = sum.vectors[0][c];
            for (int i = 1; i < n_vectors; i++) x += sum.vectors[i][c];
            sum.y[c] = x;
        }
        return;
    }
    ref_sum((struct kern_queue){0, 1}, &sum);
}

static uint64_t go_on(void *context) {
    struct adding *a = context;
    const int r = (int)(a->rank - play.ranks);
    const uint64_t now_ns = t_sim_in_ns(r, 0);
    a->rank->waits++;
    return (now_ns >= a->until_ns && play.planted != T_SIM_DEAF) || comm_sim_is_dead(play.s, r) ? 0 : now_ns + SLICE_NS;
}

static enum st do_sum(struct rank *k, struct op *op) {
    const int r = (int)(k - play.ranks);
    const size_t width = op->bytes[0] / sizeof(float);
    struct adding a = {.rank = k, .until_ns = t_sim_in_ns(r, WAIT_NS), .sum = {.n_leaves = op->n_leaves, .n_tokens = 1}};
    uint32_t n_vectors[MAX_RANKS];
    int first_own = 0;
    for (int i = 0; i < play.n_ranks; i++) {
        if (i == r) first_own = a.sum.n_vectors;
        n_vectors[i] = order_subtrees(op->lo[i], op->hi[i], op->n_leaves, a.sum.vector_lo + a.sum.n_vectors, a.sum.vector_hi + a.sum.n_vectors);
        a.sum.n_vectors += (int)n_vectors[i];
    }
    for (int i = 0; i < a.sum.n_vectors; i++) a.order[i] = i;
    if (play.planted == T_SIM_SWAPPED_SUM && n_vectors[r] && first_own > 0) {
        a.order[0] = first_own;
        a.order[first_own] = 0;
    }
    float *own = (float *)(void *)k->own;
    for (uint32_t v = 0; v < n_vectors[r]; v++)
        for (size_t i = 0; i < width; i++)
            own[v * width + i] = tree_value(op->tag, i, a.sum.vector_lo[first_own + (int)v], a.sum.vector_hi[first_own + (int)v]);
    a.y = malloc(op->bytes[0] + 64);
    if (!a.y) return err_set(&k->e, ST_NO_MEMORY, "no memory");
    struct comm_header headers[COMM_MAX_RANKS];
    const struct comm_header header = header_of(k, op);
    const struct comm_exchange_add x = {.send = own,
                                        .vector_bytes = op->bytes[0],
                                        .n_vectors = n_vectors,
                                        .piece_bytes = op->piece_bytes,
                                        .add = add,
                                        .context = &a,
                                        .sum = op->in_parts ? a.y : NULL,
                                        .scatter_bytes = 1,
                                        .headers = headers,
                                        .extend = go_on};
    k->waits = 1;
    enum st st = comm_exchange_and_add(k->comm, &x, &header, t_sim_in_ns(r, SLICE_NS), &k->e);
    k->waits = 0;
    if (!st && !op->sum) {
        op->sum = malloc(op->bytes[0]);
        for (size_t i = 0; op->sum && i < width; i++) op->sum[i] = tree_value(op->tag, i, 0, op->n_leaves);
    }
    if (!st && (!op->sum || memcmp(op->sum, a.y, op->bytes[0]) != 0)) st = t_sim_wrong(k, "a sum has not the reference's bits");
    if (!st && !headers_are_right(k, op, headers)) st = t_sim_wrong(k, "headers are not what was sent");
    if (st && play.planted == T_SIM_LEAKED_HEAP) {
        play.leak = a.y; /* of the caller's, who shall not hold it */
        return st;
    }
    free(a.y);
    return st ? st : take_events(k, headers);
}

static int by_value(const void *a, const void *b) {
    const struct comm_candidate *x = a, *y = b;
    return x->value != y->value ? (x->value < y->value ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

static void draw_candidates(const struct op *op, int r, int n, struct comm_candidate *candidates) {
    for (int i = 0; i < n; i++)
        candidates[i] = (struct comm_candidate){.value = (float)(int)(tag_of(op->tag * 100 + (uint32_t)i, r) % 50), .id = i * play.n_ranks + r};
}
static int n_candidates(const struct op *op, int r) { return (int)(tag_of(op->tag, r + 50) % 40); }

static enum st do_top_k(struct rank *k, const struct op *op) {
    const int r = (int)(k - play.ranks);
    struct comm_candidate own[40], all[MAX_RANKS * 40], merged[COMM_TOP_K_MAX];
    int n_all = 0, n_merged = 0;
    draw_candidates(op, r, n_candidates(op, r), own);
    const struct comm_header header = header_of(k, op);
    const enum st st = comm_top_k(k->comm, own, n_candidates(op, r), op->k, &header, t_sim_in_ns(r, WAIT_NS), merged, &n_merged, &k->e);
    if (st) return st;
    for (int i = 0; i < play.n_ranks; i++) {
        draw_candidates(op, i, n_candidates(op, i), all + n_all);
        n_all += n_candidates(op, i);
    }
    qsort(all, (size_t)n_all, sizeof *all, by_value);
    if (n_merged != (n_all < op->k ? n_all : op->k)) return t_sim_wrong(k, "the best are not as many as there are");
    for (int i = 0; i < n_merged; i++)
        if (all[i].id != merged[i].id || all[i].value != merged[i].value) return t_sim_wrong(k, "the best are others");
    return ST_OK;
}

static enum st do_broadcast(struct rank *k, const struct op *op) {
    const int r = (int)(k - play.ranks);
    const size_t bytes = op->bytes[op->root];
    if (r == op->root) fill(k->own, bytes, tag_of(op->tag, r));
    const enum st st = comm_broadcast(k->comm, op->root, k->own, bytes, t_sim_in_ns(r, WAIT_NS), &k->e);
    return !st && !is_filled(k->own, bytes, tag_of(op->tag, op->root)) ? t_sim_wrong(k, "a broadcast has other bytes") : st;
}

/* A group, and in it a few exchanges; in a group of two messages from rank to rank. */
static enum st do_split(struct rank *k, const struct op *op) {
    const int r = (int)(k - play.ranks);
    int n = 0, own_rank = 0;
    k->is_opening_group = true;
    enum st st = comm_split(k->comm, op->color[r], 1024, t_sim_in_ns(r, WAIT_NS), &k->group, &k->e);
    if (st) return st;
    k->is_opening_group = false;
    if (!k->group) return op->color[r] < 0 ? ST_OK : t_sim_wrong(k, "there is no group");
    for (int i = 0; i < play.n_ranks; i++) {
        if (op->color[i] != op->color[r]) continue;
        if (i == r) own_rank = n;
        k->members[n++] = i;
    }
    k->n_members = n;
    if (comm_n_ranks(k->group) != n || comm_rank(k->group) != own_rank) return t_sim_wrong(k, "a group has other ranks");
    k->is_in_group = true;
    for (uint32_t round = 0; round < 3 && !st; round++) {
        const uint32_t tag = 100 + op->tag * 8 + round;
        const size_t bytes = tag_of(tag, op->color[r] + 20) % 1000;
        if (n == 2 && (int)(round % 2) == own_rank) {
            fill(k->own, bytes, tag_of(tag, r));
            st = comm_send(k->group, k->own, bytes, t_sim_in_ns(r, WAIT_NS), &k->e);
        } else if (n == 2) {
            st = comm_receive(k->group, k->own, bytes, t_sim_in_ns(r, WAIT_NS), &k->e);
            if (!st && !is_filled(k->own, bytes, tag_of(tag, k->members[!own_rank]))) st = t_sim_wrong(k, "a message has other bytes");
        } else {
            if (own_rank == 0) fill(k->own, bytes, tag_of(tag, r));
            st = comm_broadcast(k->group, 0, k->own, bytes, t_sim_in_ns(r, WAIT_NS), &k->e);
            if (!st && !is_filled(k->own, bytes, tag_of(tag, k->members[0]))) st = t_sim_wrong(k, "a group's broadcast has other bytes");
        }
    }
    if (st) return st; /* the group is closed with the rest */
    k->is_in_group = false;
    comm_close(k->group);
    k->group = NULL;
    return ST_OK;
}

static enum st do_op(struct rank *k, struct op *op) {
    const int r = (int)(k - play.ranks);
    t_sim_excuse(k, false);
    comm_sim_work(play.s, r, op->work_ns[r]);
    if (r == 0 && op->n_posts) {
        const enum st st = post_events(k, op->n_posts);
        if (st) return st;
    }
    const uint64_t now_ns = comm_sim_now_ns(play.s);
    if (++play.n_begun[op->tag] == play.n_ranks) play.begun_ns[op->tag] = now_ns;
    t_sim_excuse(k, op->kind != OP_WORK && op->kind != OP_ALLGATHER && op->kind != OP_SUM); /* the runtime does nothing else in its steps */
    switch (op->kind) {
    case OP_WORK: comm_sim_work(play.s, r, 3 * op->work_ns[r]); return ST_OK;
    case OP_IDLE:
        for (int i = 0; i < 3; i++) {
            comm_sim_sleep(play.s, r, 5 * BASE_NS_PER_MS);
            const enum st st = comm_progress(k->comm, &k->e);
            if (st && st != ST_AGAIN) return st;
        }
        return ST_OK;
    case OP_ALLGATHER: return do_allgather(k, op);
    case OP_SUM: return do_sum(k, op);
    case OP_TOP_K: return do_top_k(k, op);
    case OP_BROADCAST: return do_broadcast(k, op);
    case OP_BARRIER: return comm_barrier(k->comm, t_sim_in_ns(r, WAIT_NS), &k->e);
    case OP_SPLIT: return do_split(k, op);
    case OP_N: break;
    }
    return ST_OK;
}

static enum st open_and_greet(struct rank *k) {
    const int r = (int)(k - play.ranks);
    const struct comm_setup setup = {
        .backend = play.n_ranks == 1 ? "self" : "tcp",
        .rank = r,
        .n_ranks = play.n_ranks,
        .max_bytes = play.max_bytes,
        .spin_us = play.spin_us,
        .clock = comm_sim_clock(play.s, r),
        .os = comm_sim_os(play.s, r),
        .memory_fd = -1,
        .boot = comm_sim_boot(play.s, r),
        .deadline_ns = t_sim_in_ns(r, OPEN_NS),
    };
    const enum st st = comm_open(&setup, &k->comm, &k->e);
    if (st) return st;
    const struct comm_identity mine = {.build_id = "simulated", .kernel_variant = "cpu/ref", .plan = {.bytes = {r == play.mismatched ? 1 : 2}}};
    return comm_hello(k->comm, &mine, t_sim_in_ns(r, WAIT_NS), &k->e);
}

static void run_rank(int r) {
    struct rank *k = &play.ranks[r];
    k->code = open_and_greet(k);
    k->opened = k->code == ST_OK;
    k->progress++;
    for (int i = 0; i < play.n_ops && !k->code; i++) {
        k->i_op = i;
        k->code = do_op(k, &play.ops[i]);
        k->progress++;
        if (!k->code) {
            const bool is_exchange =
                play.ops[i].kind >= OP_ALLGATHER && play.ops[i].kind <= OP_BARRIER && play.ops[i].kind != OP_SUM; /* which is many */
            const uint64_t took_ns = comm_sim_now_ns(play.s) - play.begun_ns[i];
            if (is_exchange && play.begun_ns[i] && took_ns > k->slowest_ns) k->slowest_ns = took_ns;
        }
    }
    if (!k->code && play.n_frames) {
        k->i_op = play.n_ops;
        k->code = t_sim_serve(k);
    }
    if (!k->code) { /* a rank that closes is lost to those that are still about */
        t_sim_excuse(k, true);
        k->code = comm_barrier(k->comm, t_sim_in_ns(r, WAIT_NS), &k->e);
    }
    k->finished = k->code == ST_OK;
    k->end_ns = comm_sim_now_ns(play.s);
    t_sim_excuse(k, true);
    if (k->code) comm_sim_note(play.s, r, "REPORTS %s: %s", st_name(k->code), k->e.text);
    comm_close(k->group);
    comm_close(k->comm);
}

/* ---- the supervisor -------------------------------------------------------------------------------------------------------------------------------------- */

/* What the kernel would say of the rank. */
static struct launch_life_sample look(int r) {
    const bool frozen = comm_sim_is_frozen(play.s, r), is_slow = play.weather.slow[r] > 20;
    const uint64_t now_ns = comm_sim_now_ns(play.s);
    if (frozen) return (struct launch_life_sample){.stopped = play.hang == 2, .runnable = play.hang == 1, .cpu_ns = play.hang == 1 ? now_ns : 0};
    if (is_slow) return (struct launch_life_sample){.runnable = true, .cpu_ns = now_ns / play.weather.slow[r]};
    return (struct launch_life_sample){.runnable = true, .cpu_ns = now_ns / 2};
}

static void supervise(int i_task) {
    struct launch_life life[MAX_RANKS] = {0};
    for (;;) {
        bool all_ended = true; /* or will do nothing any more: nobody waits for them then */
        for (int r = 0; r < play.n_ranks; r++) {
            struct rank *k = &play.ranks[r];
            if (comm_sim_has_ended(play.s, r) || comm_sim_is_dead(play.s, r)) continue;
            all_ended = all_ended && comm_sim_is_frozen(play.s, r) && !comm_sim_will_thaw(play.s, r);
            const struct launch_life_sample sample = look(r);
            uint64_t silent_ms;
            const bool excused = k->is_excused || !k->opened || (play.planted == T_SIM_BLIND_JUDGE && k->waits);
            if (launch_life_judge(&life[r], k->progress * 1000 + k->waits, excused, &sample, comm_sim_now_ns(play.s), &silent_ms) == LAUNCH_WELL)
                continue;
            comm_sim_note(play.s, i_task, "rank %d gave no sign of life for %.1f s", r, (double)silent_ms / 1000);
            if (!comm_sim_is_frozen(play.s, r) && !play.wrong[0])
                snprintf(play.wrong, sizeof play.wrong, "the supervisor takes rank %d as frozen, which it is not", r);
            k->was_killed = true;
            comm_sim_kill(play.s, r);
        }
        if (all_ended) return;
        comm_sim_sleep(play.s, i_task, LAUNCH_LOOK_MS * BASE_NS_PER_MS);
    }
}

/* ---- planted faults ---------------------------------------------------------------------------------------------------------------------------------------- */

static int task_of(const struct comm_os *os) {
    for (int r = 0; r < play.n_ranks; r++)
        if (os == comm_sim_os(play.s, r)) return r;
    return 0;
}
/* In exchanges with all ranks, not while joining or leaving. */
static bool is_at_work(int r) {
    const struct rank *k = &play.ranks[r];
    return k->opened && !k->is_opening_group && !k->group && !k->end_ns;
}
static int poll_for_ever(const struct comm_os *os, struct pollfd *fds, size_t n, uint64_t timeout_ns) {
    return play.systems[task_of(os)].poll(os, fds, n, timeout_ns > 40 * BASE_NS_PER_MS ? BASE_NO_DEADLINE : timeout_ns);
}
static int poll_without_the_last(const struct comm_os *os, struct pollfd *fds, size_t n, uint64_t timeout_ns) {
    int fd = -1;
    size_t last = 0;
    for (size_t i = 0; i < n && is_at_work(task_of(os)); i++)
        if (fds[i].fd >= 0) last = i, fd = fds[i].fd;
    if (fd >= 0) fds[last].fd = -1;
    const int n_ready = play.systems[task_of(os)].poll(os, fds, n, timeout_ns);
    if (fd >= 0) fds[last].fd = fd;
    return n_ready;
}
static ssize_t send_half(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    const ssize_t n = play.systems[task_of(os)].send(os, fd, data, bytes);
    return n > 0 ? (ssize_t)bytes : n;
}
static void unmap_nothing(const struct comm_os *os, void *memory, size_t bytes) {
    if (task_of(os) != 1) play.systems[task_of(os)].unmap(os, memory, bytes);
}
static int close_nothing(const struct comm_os *os, int fd) {
    return task_of(os) == 1 && play.ranks[1].code ? 0 : play.systems[task_of(os)].close(os, fd);
}
static ssize_t receive_badly(const struct comm_os *os, int fd, void *data, size_t bytes) {
    const ssize_t n = play.systems[task_of(os)].recv(os, fd, data, bytes);
    return n < 0 && errno == EINTR ? 0 : n;
}

static ssize_t receive_late(const struct comm_os *os, int fd, void *data, size_t bytes) {
    const ssize_t n = play.systems[task_of(os)].recv(os, fd, data, bytes);
    if (n == 0 && is_at_work(task_of(os))) comm_sim_sleep(play.s, task_of(os), 2 * BASE_NS_PER_S);
    return n;
}

static void prepare(void *context, struct comm_sim *s) {
    (void)context;
    for (int r = 0; r < play.n_ranks; r++) {
        struct comm_os *os = comm_sim_os(s, r);
        play.systems[r] = *os;
        if (play.planted == T_SIM_NO_DEADLINE) os->poll = poll_for_ever;
        if (play.planted == T_SIM_LOST_WAKEUP) os->poll = poll_without_the_last;
        if (play.planted == T_SIM_SHORT_SEND) os->send = send_half;
        if (play.planted == T_SIM_LEAKED_MAPPING) os->unmap = unmap_nothing;
        if (play.planted == T_SIM_LEAKED_SOCKET) os->close = close_nothing;
        if (play.planted == T_SIM_LATE_END) os->recv = receive_late;
        if (play.planted == T_SIM_SPURIOUS_LOSS) os->recv = receive_badly;
    }
}

/* ---- what must hold ---------------------------------------------------------------------------------------------------------------------------------------- */

static void run_task(void *context, struct comm_sim *s, int i_task) {
    (void)context, (void)s;
    if (i_task < play.n_ranks)
        run_rank(i_task);
    else if (i_task == play.n_ranks && play.has_supervisor)
        supervise(i_task);
    else
        t_sim_intrude(i_task);
}

static bool names(const char *text, int r) {
    char name[16];
    snprintf(name, sizeof name, "rank %d", r);
    const char *at = strstr(text, name);
    return at && (at[strlen(name)] < '0' || at[strlen(name)] > '9');
}

/* In a group ranks have other numbers. */
static bool blames(const struct rank *k, int r) {
    if (!k->is_in_group) return names(k->e.text, r);
    for (int i = 0; i < k->n_members; i++)
        if (k->members[i] == r && names(k->e.text, i)) return true;
    return false;
}

static bool is_of_pair(const struct comm_sim_fault *f) { return f->kind <= COMM_SIM_RESET; }

/* What the weather may add to any answer. */
static uint64_t slack_ns(void) {
    const struct comm_sim_weather *w = &play.weather;
    uint64_t ns = 300 * BASE_NS_PER_MS + 150 * (w->delay_ns + w->jitter_ns);
    uint32_t slowest = 1;
    for (int r = 0; r < play.n_ranks; r++)
        if (w->slow[r] > slowest) slowest = w->slow[r];
    ns += slowest * 30 * BASE_NS_PER_MS;
    for (int i = 0; i < w->n_faults; i++)
        if (comm_sim_is_harmless(&w->faults[i])) ns += 2 * w->faults[i].for_ns + BASE_NS_PER_S / 2;
    return ns;
}

static uint64_t limit_ns(const struct rank *k, const struct comm_sim_fault *f) {
    const struct rank *a = &play.ranks[f->a];
    /* Who joins, be it a group, waits until its deadline: it cannot tell a silent host from one that comes later. And others may wait for it. */
    for (int r = 0; r < play.n_ranks; r++)
        if (play.ranks[r].is_opening_group) return OPEN_NS + WAIT_NS;
    if (!k->opened || !a->opened || (is_of_pair(f) && !play.ranks[f->b].opened)) return OPEN_NS + WAIT_NS;
    switch (f->kind) {
    case COMM_SIM_FREEZE: return play.has_supervisor && !a->is_excused ? FREEZE_NS + DEATH_NS : WAIT_NS + DEATH_NS;
    case COMM_SIM_POWER_OFF:
    case COMM_SIM_PARTITION:
    case COMM_SIM_ONE_WAY: return SILENCE_NS;
    default: return DEATH_NS;
    }
}

static bool complain(struct t_sim_outcome *out, int r, const char *what) {
    const struct rank *k = &play.ranks[r];
    snprintf(out->why, sizeof out->why, "rank %d, operation %d: %s (at %.3f ms: %s: %.300s)", r, k->i_op, what,
             (double)k->end_ns / (double)BASE_NS_PER_MS, st_name(k->code), k->e.text);
    return false;
}

static bool check_rank(struct t_sim_outcome *out, int r, bool may_name) {
    const struct rank *k = &play.ranks[r];
    const struct comm_sim_fault *lethal[COMM_SIM_MAX_FAULTS];
    int n_lethal = 0;
    uint64_t until_ns = 0;
    for (int i = 0; i < play.weather.n_faults; i++) {
        const struct comm_sim_fault *f = &play.weather.faults[i];
        if (!f->fired_ns || comm_sim_is_harmless(f)) continue;
        lethal[n_lethal++] = f;
        if (f->fired_ns + limit_ns(k, f) > until_ns) until_ns = f->fired_ns + limit_ns(k, f);
        if (f->a == r && (f->kind == COMM_SIM_KILL || f->kind == COMM_SIM_POWER_OFF || f->kind == COMM_SIM_FREEZE)) return true; /* nobody asks it */
        if (f->a == r && f->kind == COMM_SIM_NO_MEMORY)
            return k->code == ST_NO_MEMORY || n_lethal > 1 || play.weather.n_faults > 1 ? true
                                                                                        : complain(out, r, "it had no memory and does not say so");
    }
    out->is_lethal |= n_lethal > 0;
    if (k->finished) return play.is_calm && k->slowest_ns > CALM_NS ? complain(out, r, "an exchange took too long for calm weather") : true;
    if (play.mismatched >= 0 && k->code == ST_MISMATCH)
        return names(k->e.text, play.mismatched) || play.mismatched == 0 ? true : complain(out, r, "the mismatched rank is not named");
    if (!n_lethal) return complain(out, r, "failed although nothing happened that must end it");
    out->n_reports++;
    if (k->code != ST_PEER_LOST && k->code != ST_TIMEOUT) return complain(out, r, "this is not how a loss is reported");
    if (k->end_ns > until_ns + slack_ns()) {
        char what[100];
        snprintf(what, sizeof what, "reported %.3f s too late", (double)(k->end_ns - until_ns - slack_ns()) / (double)BASE_NS_PER_S);
        return complain(out, r, what);
    }
    const struct comm_sim_fault *f = lethal[0];
    if (n_lethal == 1 && k->opened && may_name && k->code == ST_PEER_LOST && (f->kind != COMM_SIM_FREEZE || play.ranks[f->a].was_killed) &&
        !blames(k, f->a) && !(is_of_pair(f) && blames(k, f->b)))
        return complain(out, r, "blames somebody else");
    return true;
}

static bool check(struct t_sim_outcome *out) {
    if (play.wrong[0]) {
        snprintf(out->why, sizeof out->why, "%s", play.wrong);
        return false;
    }
    /* Who lost a peer in a group closes the parent as well, without a word of why: the others know only whom they lost. */
    bool may_name = true, ok = true;
    for (int r = 0; r < play.n_ranks; r++)
        if (play.ranks[r].is_opening_group || play.ranks[r].is_in_group) may_name = false;
    /* Nor does who hears no good-bye, because it took longer than one may. */
    for (int i = 0; i < play.weather.n_faults; i++) {
        const struct comm_sim_fault *f = &play.weather.faults[i];
        if (f->fired_ns && comm_sim_is_harmless(f) && f->for_ns >= GOOD_BYE_NS) may_name = false;
    }
    const char *differs = t_sim_compare_steps();
    if (differs) {
        snprintf(out->why, sizeof out->why, "%s", differs);
        return false;
    }
    for (int r = 0; r < play.n_ranks; r++) ok = ok && check_rank(out, r, may_name);
    return ok;
}

bool t_sim_run(struct comm_sim *s, uint64_t seed, enum t_sim_planted planted, FILE *log, struct t_sim_outcome *out) {
    static _Alignas(64) unsigned char own[MAX_RANKS][MAX_BYTES + 64], events[MAX_RANKS][COMM_EVENT_MAX_BYTES];
    struct err e = {0};
    draw(seed, planted);
    play.s = s;
    for (int r = 0; r < play.n_ranks; r++) {
        play.ranks[r].own = own[r];
        play.ranks[r].event = events[r];
        play.ranks[r].is_excused = true;
    }
    *out = (struct t_sim_outcome){.n_ranks = play.n_ranks};
    const struct comm_sim_options o = {.seed = seed,
                                       .n_ranks = play.n_ranks,
                                       .n_tasks = play.n_ranks + play.has_supervisor + play.has_stranger,
                                       .weather = &play.weather,
                                       .task = run_task,
                                       .prepare = planted ? prepare : NULL,
                                       .log = log};
    const long before = n_blocks;
    const enum st st = comm_sim_run(s, &o, &out->report, &e);
    for (int i = 0; i < play.n_ops; i++) free(play.ops[i].sum);
    const long left = n_blocks - before;
    free(play.leak);
    if (st) {
        snprintf(out->why, sizeof out->why, "%s", e.text);
        return false;
    }
    if (!check(out)) return false;
    if (left == 0 || log) return true; /* a log has a buffer */
    snprintf(out->why, sizeof out->why, "%ld blocks of heap were not given back", left);
    return false;
}
