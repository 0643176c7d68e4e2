/* One script for every backend that probes, with as many ranks as it takes, as processes and as threads. test-deadline: 240 */
#include <signal.h>
#include <stdatomic.h>

#include "tests/t_comm.h"

enum { MIB = 1 << 20, MAX_RANKS = 5 };
static uint64_t seed; /* set before there are threads */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SLOWER = 10 };
#else
enum { SLOWER = 1 };
#endif

/* ---- bytes that tell where they come from ---------------------------------------------------------------------------------------------------------- */

static void fill(unsigned char *p, size_t bytes, uint64_t tag) {
    uint64_t x = tag * 0x9e3779b97f4a7c15ull + 1;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8, x += 0x9e3779b97f4a7c15ull) memcpy(p + i, &x, 8);
    for (; i < bytes; i++) p[i] = (unsigned char)(x + i);
}
static bool is_filled(const unsigned char *p, size_t bytes, uint64_t tag) {
    uint64_t x = tag * 0x9e3779b97f4a7c15ull + 1;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8, x += 0x9e3779b97f4a7c15ull)
        if (memcmp(p + i, &x, 8) != 0) return false;
    for (; i < bytes; i++)
        if (p[i] != (unsigned char)(x + i)) return false;
    return true;
}
static uint64_t tag_of(uint64_t sequence, int rank) { return sequence * 64 + (uint64_t)rank; }

/* ---- sizes, headers, start and finish, in place and by copy, delays --------------------------------------------------------------------------------- */

static const size_t sizes[] = {0,    1,    3,    4,    7,    8,    9,     31,    63,    64,    65,    100,    127,      128,     129, 1000,
                               4031, 4032, 4033, 4095, 4096, 4097, 16384, 40961, 65535, 65536, 65537, 333333, MIB - 65, MIB - 1, MIB};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

struct exchange {
    uint64_t sequence;
    size_t recv_bytes[MAX_RANKS];
    const void *views[MAX_RANKS];
    struct comm_header headers[MAX_RANKS];
};

static bool exchange_is_right(const struct comm *c, const struct exchange *x) {
    for (int r = 0; r < comm_n_ranks(c); r++) {
        CHECK((uintptr_t)x->views[r] % 64 == 0);
        CHECK(is_filled(x->views[r], x->recv_bytes[r], tag_of(x->sequence, r)));
        CHECK(x->headers[r].step == x->sequence * 3 && x->headers[r].n_events == (uint32_t)r &&
              x->headers[r].token_hash == (uint32_t)x->sequence * 7 + (uint32_t)r);
    }
    return true;
}

static bool exchange_all(struct comm *c, struct exchange *x, struct base_rng *rng, unsigned char *own, struct err *e) {
    int rank = comm_rank(c);
    size_t bytes = x->recv_bytes[rank];
    if (base_rng_below(rng, 16) == 0) pause_us(base_rng_below(rng, 300));
    const void *send = own;
    switch (base_rng_below(rng, 3)) {
    case 0: fill(own, bytes, tag_of(x->sequence, rank)); break;
    case 1: fill(comm_send_buffer(c), bytes, tag_of(x->sequence, rank)), send = NULL; break;
    default: send = comm_send_buffer(c), fill(comm_send_buffer(c), bytes, tag_of(x->sequence, rank)); break;
    }
    CHECK((uintptr_t)comm_send_buffer(c) % 64 == 0);
    const struct comm_header header = {.step = x->sequence * 3, .n_events = (uint32_t)rank, .token_hash = (uint32_t)x->sequence * 7 + (uint32_t)rank};
    if (base_rng_below(rng, 2)) {
        CHECK_ST(ST_OK, comm_allgather_start(c, send, x->recv_bytes, &header, e), e);
        if (base_rng_below(rng, 8) == 0) pause_us(base_rng_below(rng, 200));
        CHECK_ST(ST_OK, comm_allgather_finish(c, soon(), x->views, x->headers, e), e);
    } else {
        CHECK_ST(ST_OK, comm_allgather(c, send, x->recv_bytes, &header, soon(), x->views, x->headers, e), e);
    }
    return exchange_is_right(c, x);
}

static bool script_sizes(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    int rank = comm_rank(c), n_ranks = comm_n_ranks(c);
    struct err e = {0};
    struct base_rng rng;
    base_rng_init(&rng, seed + (uint64_t)rank);
    unsigned char *own = aligned_alloc(64, MIB);
    CHECK(own);
    struct exchange x[2] = {0};
    uint64_t sequence = 0;
    bool ok = true;
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < N_SIZES && ok; i++) {
            struct exchange *now = &x[++sequence % 2], *before = &x[(sequence + 1) % 2];
            now->sequence = sequence;
            for (int r = 0; r < n_ranks; r++) {
                size_t k = round == 0 ? i : round == 1 ? (i + (size_t)r * 7) % N_SIZES : (i * 5 + (size_t)r * 11 + (size_t)round) % N_SIZES;
                now->recv_bytes[r] = round == 3 && (i + (size_t)r) % 3 ? 0 : sizes[k];
            }
            ok = exchange_all(c, now, &rng, own, &e);
            /* Views live until the second next exchange begins: so the one before must still be whole. */
            if (sequence > 1 && ok) ok = exchange_is_right(c, before);
        }
    }
    free(own);
    return ok;
}

/* Each exchange is advanced by whoever does something else; where the backend sends ahead, what goes next is written meanwhile, and the views of the one before are read. */
static bool script_ahead(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    const bool ahead = comm_query(c)->sends_ahead;
    const int rank = comm_rank(c), n_ranks = comm_n_ranks(c);
    struct err e = {0};
    struct base_rng rng;
    base_rng_init(&rng, seed + 300 + (uint64_t)rank);
    struct exchange x[3] = {0};
    for (uint64_t i = 1; i <= 90; i++) {
        struct exchange *now = &x[i % 3], *next = &x[(i + 1) % 3], *before = &x[(i + 2) % 3];
        for (int r = 0; r < n_ranks; r++) now->recv_bytes[r] = sizes[(i * 5 + (uint64_t)r * 11) % N_SIZES], next->recv_bytes[r] = sizes[((i + 1) * 5 + (uint64_t)r * 11) % N_SIZES];
        now->sequence = i;
        if (!ahead || i == 1) fill(comm_send_buffer(c), now->recv_bytes[rank], tag_of(i, rank));
        const struct comm_header header = {.step = i * 3, .n_events = (uint32_t)rank, .token_hash = (uint32_t)i * 7 + (uint32_t)rank};
        CHECK_ST(ST_OK, comm_allgather_start(c, NULL, now->recv_bytes, &header, &e), &e);
        if (ahead) fill(comm_send_buffer(c), next->recv_bytes[rank], tag_of(i + 1, rank));
        for (unsigned k = base_rng_below(&rng, 4); k > 0; k--) {
            comm_allgather_advance(c);
            if (base_rng_below(&rng, 4) == 0) pause_us(base_rng_below(&rng, 200));
        }
        if (i > 1 && !exchange_is_right(c, before)) return false;
        CHECK_ST(ST_OK, comm_allgather_finish(c, soon(), now->views, now->headers, &e), &e);
        comm_allgather_advance(c); /* nothing is under way: nothing happens */
        if (!exchange_is_right(c, now)) return false;
    }
    return true;
}

static bool script_large(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    size_t recv_bytes[MAX_RANKS];
    const void *views[MAX_RANKS] = {NULL};
    const struct comm_header header = {0};
    for (uint64_t i = 1; i <= 4; i++) {
        for (int r = 0; r < comm_n_ranks(c); r++) recv_bytes[r] = (size_t)64 * MIB - (i % 2 ? 0 : (size_t)r);
        fill(comm_send_buffer(c), recv_bytes[comm_rank(c)], tag_of(i, comm_rank(c)));
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, NULL, &e), &e);
        for (int r = 0; r < comm_n_ranks(c); r++) CHECK(is_filled(views[r], recv_bytes[r], tag_of(i, r)));
    }
    return true;
}

static bool script_many_small(struct comm **pc, void *arg) {
    struct comm *c = *pc;
    int n = *(const int *)arg / (comm_query(c)->one_shot ? 1 : 5), n_ranks = comm_n_ranks(c), rank = comm_rank(c);
    struct err e = {0};
    size_t recv_bytes[MAX_RANKS];
    const void *views[MAX_RANKS] = {NULL};
    for (int r = 0; r < n_ranks; r++) recv_bytes[r] = 8;
    uint64_t deadline_ns = in_ms(120000);
    for (uint64_t i = 1; i <= (uint64_t)n; i++) {
        uint64_t mine = i * 64 + (uint64_t)rank;
        memcpy(comm_send_buffer(c), &mine, 8);
        const struct comm_header header = {.step = i};
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, deadline_ns, views, NULL, &e), &e);
        for (int r = 0; r < n_ranks; r++) {
            uint64_t theirs;
            memcpy(&theirs, views[r], 8);
            CHECK(theirs == i * 64 + (uint64_t)r);
        }
    }
    return true;
}

/* ---- barrier and broadcast ------------------------------------------------------------------------------------------------------------------------- */

static bool script_barrier(struct comm **pc, void *arg) {
    struct comm *c = *pc;
    _Atomic int *n_arrived = arg;
    struct err e = {0};
    struct base_rng rng;
    base_rng_init(&rng, seed + 100 + (uint64_t)comm_rank(c));
    for (int i = 1; i <= 200; i++) {
        if (base_rng_below(&rng, 8) == 0) pause_us(base_rng_below(&rng, 200));
        atomic_fetch_add(n_arrived, 1);
        CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
        CHECK(atomic_load(n_arrived) >= i * comm_n_ranks(c));
    }
    return true;
}

static bool script_broadcast(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    unsigned char *data = malloc(65537);
    CHECK(data);
    uint64_t i = 0;
    bool ok = true;
    for (int root = 0; root < comm_n_ranks(c); root++) {
        for (size_t k = 0; k < N_SIZES && sizes[k] <= 65537 && ok; k++, i++) {
            if (comm_rank(c) == root) fill(data, sizes[k], i);
            enum st code = comm_broadcast(c, root, data, sizes[k], soon(), &e);
            ok = code == ST_OK && is_filled(data, sizes[k], i);
            if (!ok) fprintf(stderr, "broadcast of %zu bytes from %d: %s: %s\n", sizes[k], root, st_name(code), e.text);
        }
    }
    free(data);
    return ok;
}

/* ---- events between collectives, with back pressure -------------------------------------------------------------------------------------------------- */

enum { N_EVENTS = 1500 };

static size_t event_bytes(uint64_t i) { return i % 17 == 0 ? COMM_EVENT_MAX_BYTES - i % 9 : i % 5 == 0 ? 0 : i * 2654435761u % 3000; }

static bool script_events(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    int rank = comm_rank(c), n_ranks = comm_n_ranks(c);
    struct err e = {0};
    struct base_rng rng;
    base_rng_init(&rng, seed + 200 + (uint64_t)rank);
    static _Thread_local unsigned char data[COMM_EVENT_MAX_BYTES];
    uint64_t n_done = 0, n_again = 0; /* posted, or read */
    size_t recv_bytes[MAX_RANKS];
    const void *views[MAX_RANKS] = {NULL};
    struct comm_header headers[MAX_RANKS];
    for (int r = 0; r < n_ranks; r++) recv_bytes[r] = 8;
    for (int i = 0;; i++) {
        unsigned n_now = base_rng_below(&rng, 40);
        if (rank == 0) {
            for (unsigned k = 0; k < n_now && n_done < N_EVENTS; k++) {
                fill(data, event_bytes(n_done), n_done);
                enum st code = comm_event_post(c, data, event_bytes(n_done), &e);
                if (code == ST_AGAIN) {
                    n_again++;
                    break;
                }
                CHECK_ST(ST_OK, code, &e);
                n_done++;
            }
        }
        const struct comm_header header = {.step = (uint64_t)i, .n_events = rank == 0 ? (uint32_t)n_done : 0, .token_hash = n_again > 0};
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, headers, &e), &e);
        uint64_t n_issued = headers[0].n_events;
        bool was_full = headers[0].token_hash; /* before that nobody reads, so that it does get full */
        if (rank != 0 && was_full && base_rng_below(&rng, 4) == 0) {
            /* What an exchange's header has announced is there at once. Read some of it, now and then all. */
            uint64_t n_until = base_rng_below(&rng, 2) ? n_issued : n_done + (n_issued - n_done) / 2;
            while (n_done < n_until) {
                size_t bytes;
                CHECK_ST(ST_OK, comm_event_next(c, data, COMM_EVENT_MAX_BYTES, &bytes, 0, &e), &e);
                CHECK(bytes == event_bytes(n_done) && is_filled(data, bytes, n_done));
                n_done++;
            }
        }
        if (n_issued == N_EVENTS) break;
    }
    if (rank == 0) {
        CHECK(n_ranks == 1 || n_again > 0);
        pause_us(20000); /* readers wait for the last one now */
        const uint64_t until_ns = soon(); /* slow readers may not have made room yet */
        enum st code;
        while ((code = comm_event_post(c, "end", 3, &e)) == ST_AGAIN && base_now_ns(base_clock_real()) < until_ns) pause_us(1000);
        CHECK_ST(ST_OK, code, &e);
    } else {
        for (;; n_done++) {
            size_t bytes;
            CHECK_ST(ST_OK, comm_event_next(c, data, COMM_EVENT_MAX_BYTES, &bytes, soon(), &e), &e);
            if (n_done == N_EVENTS) {
                CHECK(bytes == 3 && memcmp(data, "end", 3) == 0);
                break;
            }
            CHECK(bytes == event_bytes(n_done) && is_filled(data, bytes, n_done));
        }
        size_t bytes;
        CHECK_ST(ST_AGAIN, comm_event_next(c, data, COMM_EVENT_MAX_BYTES, &bytes, 0, &e), &e);
        CHECK_ST(ST_AGAIN, comm_event_next(c, data, COMM_EVENT_MAX_BYTES, &bytes, in_ms(5), &e), &e);
    }
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    return true;
}

/* Rank 0 posts more than fits; whatever the backend cannot push at once is moved by comm_progress alone. */
static bool script_progress(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    static _Thread_local unsigned char data[COMM_EVENT_MAX_BYTES];
    enum { N = 60, BYTES = 60000 };
    for (uint64_t i = 0; i < N; i++) {
        if (comm_rank(c) == 0) {
            uint64_t deadline_ns = soon();
            fill(data, BYTES, i);
            enum st code;
            while ((code = comm_event_post(c, data, BYTES, &e)) == ST_AGAIN) {
                CHECK(now_ns() < deadline_ns);
                enum st moved = comm_progress(c, &e);
                CHECK(moved == ST_OK || moved == ST_AGAIN);
                pause_us(50);
            }
            CHECK_ST(ST_OK, code, &e);
        } else {
            size_t bytes;
            CHECK_ST(ST_OK, comm_event_next(c, data, sizeof data, &bytes, soon(), &e), &e);
            CHECK(bytes == BYTES && is_filled(data, bytes, i));
        }
    }
    /* Nothing is left after a while, on any rank. */
    uint64_t deadline_ns = soon();
    enum st code;
    while ((code = comm_progress(c, &e)) == ST_AGAIN) {
        CHECK(now_ns() < deadline_ns);
        pause_us(50);
    }
    CHECK_ST(ST_OK, code, &e);
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    return true;
}

/* ---- exchange-and-add -------------------------------------------------------------------------------------------------------------------------------- */

enum { MAX_LEAVES = 12 };

/* The value of leaf a at element i: any number, the same wherever it is asked for. */
static float leaf_value(uint64_t tag, uint32_t leaf, size_t i) {
    uint64_t x = (tag * 64 + leaf) * 0x9e3779b97f4a7c15ull + i * 0xd1342543de82ef95ull;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ull;
    return (float)(int32_t)(x >> 32) * 0x1p-24f;
}
/* The tree over leaves [a, b), as the order of sums has it. */
static float tree_value(uint64_t tag, uint32_t a, uint32_t b, size_t i) {
    if (b - a == 1) return leaf_value(tag, a, i);
    uint32_t middle = a + (b - a + 1) / 2;
    return tree_value(tag, a, middle, i) + tree_value(tag, middle, b, i);
}

/* A sum over n_leaves, cut at random between the ranks; a rank brings its maximal subtrees. */
struct tree_sum {
    uint64_t tag;
    uint32_t n_leaves;
    size_t vector_bytes;
    uint32_t n_vectors[MAX_RANKS], first[MAX_RANKS]; /* of a rank: how many, and the index of its first in nodes */
    struct {
        uint32_t a, b;
    } nodes[MAX_LEAVES];
    int n_nodes;
    float *result;
    size_t offset; /* added so far */
    bool ok, is_shared; /* is_shared: each rank adds some of it */
};

static void find_nodes(struct tree_sum *t, uint32_t lo, uint32_t hi, uint32_t a, uint32_t b) {
    if (hi <= a || b <= lo) return;
    if (lo <= a && b <= hi) {
        t->nodes[t->n_nodes].a = a;
        t->nodes[t->n_nodes++].b = b;
        return;
    }
    uint32_t middle = a + (b - a + 1) / 2;
    find_nodes(t, lo, hi, a, middle);
    find_nodes(t, lo, hi, middle, b);
}

static void tree_sum_draw(struct tree_sum *t, int n_ranks, struct base_rng *common) {
    uint32_t cuts[MAX_RANKS + 1] = {0};
    t->n_leaves = 1 + base_rng_below(common, MAX_LEAVES);
    for (int r = 1; r < n_ranks; r++) { /* sorted as they come; equal ones leave a rank without leaves */
        uint32_t cut = base_rng_below(common, t->n_leaves + 1);
        int at = r;
        for (; at > 1 && cuts[at - 1] > cut; at--) cuts[at] = cuts[at - 1];
        cuts[at] = cut;
    }
    cuts[n_ranks] = t->n_leaves;
    t->n_nodes = 0;
    for (int r = 0; r < n_ranks; r++) {
        t->first[r] = (uint32_t)t->n_nodes;
        find_nodes(t, cuts[r], cuts[r + 1], 0, t->n_leaves);
        t->n_vectors[r] = (uint32_t)t->n_nodes - t->first[r];
    }
}

static float combine(const struct tree_sum *t, const void *const *vectors, uint32_t a, uint32_t b, int *next, size_t i) {
    if (t->nodes[*next].a == a && t->nodes[*next].b == b) return ((const float *)vectors[(*next)++])[i];
    uint32_t middle = a + (b - a + 1) / 2;
    float left = combine(t, vectors, a, middle, next, i);
    return left + combine(t, vectors, middle, b, next, i);
}

static void add_piece(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors) {
    struct tree_sum *t = context;
    t->ok = t->ok && (t->is_shared ? offset >= t->offset : offset == t->offset) && bytes > 0 && bytes % 4 == 0 && offset + bytes <= t->vector_bytes && n_vectors == t->n_nodes;
    for (int v = 0; t->ok && v < n_vectors; v++) t->ok = (uintptr_t)vectors[v] % 64 == 0;
    if (!t->ok) return;
    t->offset = offset + bytes;
    for (size_t i = 0; i < bytes / 4; i++) {
        int next = 0;
        t->result[offset / 4 + i] = combine(t, vectors, 0, t->n_leaves, &next, i);
    }
}

/* One sum: its result has the bits of the tree on one rank, whatever the cut. in_place: only where it fits into one piece. */
static bool exchange_tree(struct comm *c, struct tree_sum *t, size_t piece_bytes, bool in_place, bool shared, float *own, struct err *e) {
    int rank = comm_rank(c);
    size_t n = t->vector_bytes / 4;
    float *vectors = in_place ? comm_send_buffer(c) : own;
    for (uint32_t v = 0; v < t->n_vectors[rank]; v++)
        for (size_t i = 0; i < n; i++) vectors[v * n + i] = tree_value(t->tag, t->nodes[t->first[rank] + v].a, t->nodes[t->first[rank] + v].b, i);
    struct comm_header headers[MAX_RANKS];
    const struct comm_header header = {.step = t->tag, .token_hash = (uint32_t)rank};
    const struct comm_exchange_add x = {.send = vectors,
                                        .vector_bytes = t->vector_bytes,
                                        .n_vectors = t->n_vectors,
                                        .piece_bytes = piece_bytes,
                                        .add = add_piece,
                                        .context = t,
                                        .sum = shared ? t->result : NULL,
                                        .scatter_bytes = 1,
                                        .headers = headers};
    t->offset = 0;
    t->ok = true;
    t->is_shared = shared && comm_n_ranks(c) > 2 && comm_query(c)->scatters;
    memset(t->result, 0xa5, t->vector_bytes);
    CHECK_ST(ST_OK, comm_exchange_and_add(c, &x, &header, soon(), e), e);
    CHECK(t->ok && (t->is_shared || t->offset == t->vector_bytes));
    for (int r = 0; r < comm_n_ranks(c); r++) CHECK(headers[r].step == t->tag && headers[r].token_hash == (uint32_t)r);
    for (size_t i = 0; i < n; i++) {
        float want = tree_value(t->tag, 0, t->n_leaves, i);
        CHECK(memcmp(&t->result[i], &want, sizeof want) == 0);
    }
    return true;
}

static const size_t vector_sizes[] = {0, 4, 60, 64, 68, 128, 1000, 4096, 4100, 16384, 65536, 65540, 200000};
enum { N_VECTOR_SIZES = sizeof vector_sizes / sizeof *vector_sizes };

static bool script_add(struct comm **pc, void *arg) {
    const size_t *large_bytes = arg; /* NULL, or one sum of this size */
    struct comm *c = *pc;
    struct err e = {0};
    struct base_rng common, alone;
    base_rng_init(&common, seed + 300);
    base_rng_init(&alone, seed + 301 + (uint64_t)comm_rank(c));
    size_t max_bytes = large_bytes ? *large_bytes : 200000;
    struct tree_sum t = {.result = malloc(max_bytes + 64)};
    float *own = aligned_alloc(64, (max_bytes * (large_bytes ? 4 : MAX_LEAVES) + 4 + 63) / 64 * 64);
    bool ok = own && t.result;
    for (uint64_t i = 0; ok && i < (large_bytes ? 1 : 60 / SLOWER + 14); i++) {
        t.tag = i + 1;
        t.vector_bytes = large_bytes ? *large_bytes : i < N_VECTOR_SIZES ? vector_sizes[i] : base_rng_below(&common, 40000) / 4 * 4;
        do tree_sum_draw(&t, comm_n_ranks(c), &common);
        while (large_bytes && t.n_leaves != 4);
        static const size_t pieces[] = {0, 0, 1, 64, 200, 4096, (size_t)1 << 40};
        size_t piece_bytes = large_bytes ? 0 : pieces[base_rng_below(&common, sizeof pieces / sizeof *pieces)];
        if (t.vector_bytes > 20000 && piece_bytes && piece_bytes < 4096) piece_bytes = 4096;
        bool fits = t.vector_bytes <= 2048 && piece_bytes != 1 && piece_bytes != 64 && piece_bytes != 200; /* 12 of them, in 32 KiB */
        if (base_rng_below(&alone, 8) == 0) pause_us(base_rng_below(&alone, 300));
        const bool shared = base_rng_below(&common, 2);
        ok = exchange_tree(c, &t, piece_bytes, fits && base_rng_below(&alone, 2), shared, own + base_rng_below(&alone, 2), &e); /* also one that no run can begin at */
        if (ok && base_rng_below(&common, 4) == 0) ok = comm_barrier(c, soon(), &e) == ST_OK;
    }
    free(own);
    free(t.result);
    return ok;
}

/* ---- scatter ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Each rank gets its share of every vector, and of vectors of which it gets nothing, too, the headers; all-gathers in between. */
static bool script_scatter(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    const int rank = comm_rank(c), n_ranks = comm_n_ranks(c);
    struct err e = {0};
    struct base_rng common, alone;
    base_rng_init(&common, seed + 400);
    base_rng_init(&alone, seed + 401 + (uint64_t)rank);
    static _Thread_local _Alignas(64) unsigned char own[32768];
    for (uint64_t i = 1; i <= 150 / SLOWER; i++) {
        struct comm_shares s = {.vector_bytes = base_rng_below(&common, 65) * 64};
        if (base_rng_below(&common, 2))
            comm_cut_evenly(&s, n_ranks, 64u << base_rng_below(&common, 3));
        else
            for (int r = 1; r <= n_ranks; r++) s.begin[r] = r == n_ranks || base_rng_below(&common, 4) == 0 ? s.vector_bytes : s.begin[r - 1] + (s.vector_bytes - s.begin[r - 1]) / 128 * 64;
        for (int r = 0; r < n_ranks; r++) s.n_vectors[r] = base_rng_below(&common, 5);
        const bool in_place = base_rng_below(&alone, 2);
        unsigned char *vectors = in_place ? comm_send_buffer(c) : own;
        for (uint32_t k = 0; k < s.n_vectors[rank]; k++) fill(vectors + k * s.vector_bytes, s.vector_bytes, tag_of(i * 8 + k, rank));
        const struct comm_header header = {.step = i, .token_hash = (uint32_t)rank};
        CHECK_ST(ST_OK, comm_scatter_start(c, in_place ? NULL : own, &s, &header, &e), &e);
        for (unsigned k = base_rng_below(&alone, 4); k > 0; k--) comm_allgather_advance(c);
        if (base_rng_below(&alone, 8) == 0) pause_us(base_rng_below(&alone, 300));
        const void *views[MAX_RANKS], *got[MAX_RANKS * 4];
        struct comm_header headers[MAX_RANKS];
        CHECK_ST(ST_OK, comm_allgather_finish(c, soon(), views, headers, &e), &e);
        const int n = comm_share(c, views, got);
        int v = 0;
        for (int r = 0; r < n_ranks; r++) {
            CHECK(headers[r].step == i && headers[r].token_hash == (uint32_t)r);
            for (uint32_t k = 0; k < s.n_vectors[r]; k++, v++) {
                static _Thread_local unsigned char whole[64 * 64];
                fill(whole, s.vector_bytes, tag_of(i * 8 + k, r));
                CHECK((uintptr_t)got[v] % 64 == 0 && memcmp(got[v], whole + s.begin[rank], s.begin[rank + 1] - s.begin[rank]) == 0);
            }
        }
        CHECK(v == n);
        if (base_rng_below(&common, 4) == 0) CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    }
    struct comm_shares wrong = {.vector_bytes = 128};
    CHECK_ST(ST_INVALID, comm_scatter_start(c, own, &wrong, &(struct comm_header){0}, &e), &e); /* nobody gets the end */
    comm_cut_evenly(&wrong, n_ranks, 64);
    wrong.n_vectors[0] = COMM_MAX_VECTORS + 1;
    CHECK_ST(ST_INVALID, comm_scatter_start(c, own, &wrong, &(struct comm_header){0}, &e), &e);
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    return true;
}

/* ---- top k -------------------------------------------------------------------------------------------------------------------------------------------- */

static int compare_candidates(const void *pa, const void *pb) {
    const struct comm_candidate *a = pa, *b = pb;
    bool a_is_nan = a->value != a->value, b_is_nan = b->value != b->value;
    if (a_is_nan || b_is_nan) {
        if (a_is_nan != b_is_nan) return a_is_nan ? 1 : -1;
    } else if (a->value != b->value) {
        return a->value > b->value ? -1 : 1;
    }
    return a->id < b->id ? -1 : 1;
}

static bool script_top_k(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    int n_ranks = comm_n_ranks(c);
    struct err e = {0};
    struct base_rng common;
    base_rng_init(&common, seed + 400);
    static _Thread_local struct comm_candidate all[MAX_RANKS * COMM_TOP_K_MAX], mine[COMM_TOP_K_MAX], merged[COMM_TOP_K_MAX];
    for (int round = 0; round < 150 / SLOWER; round++) {
        int k = round % 3 == 0 ? 1 + (int)base_rng_below(&common, COMM_TOP_K_MAX) : round % 3 == 1 ? 1 : 40, n_all = 0, n_mine = 0;
        uint32_t n_values = base_rng_below(&common, 2) ? 8 : 100000; /* few: many ties */
        for (int r = 0; r < n_ranks; r++) {
            int n = round == 0 ? 0 : round == 1 ? COMM_TOP_K_MAX : (int)base_rng_below(&common, COMM_TOP_K_MAX + 1), begin = n_all;
            for (int i = 0; i < n; i++) {
                static const float odd[] = {0.0f, -0.0f, 1.0f / 0.0f, -1.0f / 0.0f, 0.0f / 0.0f, -(0.0f / 0.0f)};
                bool is_odd = base_rng_below(&common, 10) == 0, is_none = base_rng_below(&common, 20) == 0;
                float value = is_odd ? odd[base_rng_below(&common, 6)] : (float)base_rng_below(&common, n_values) - 4;
                struct comm_candidate one = {.value = value, .id = is_none ? -1 - (int)base_rng_below(&common, 9) : r + n_ranks * (i * 7919 % 256)};
                if (r == comm_rank(c)) mine[n_mine++] = one;
                if (!is_none) all[n_all++] = one;
            }
            if (round % 2 == 0) { /* sorted ones, as a sampler hands them over */
                qsort(all + begin, (size_t)(n_all - begin), sizeof *all, compare_candidates);
                if (r == comm_rank(c)) memcpy(mine, all + begin, (size_t)(n_all - begin) * sizeof *all), n_mine = n_all - begin;
            }
        }
        qsort(all, (size_t)n_all, sizeof *all, compare_candidates);
        int n_merged = -1, n_want = n_all < k ? n_all : k;
        const struct comm_header header = {.step = (uint64_t)round};
        CHECK_ST(ST_OK, comm_top_k(c, mine, n_mine, k, &header, soon(), merged, &n_merged, &e), &e);
        CHECK(n_merged == n_want && memcmp(merged, all, (size_t)n_want * sizeof *all) == 0);
    }
    int n_merged;
    const struct comm_header header = {0};
    CHECK_ST(ST_INVALID, comm_top_k(c, mine, COMM_TOP_K_MAX + 1, 1, &header, soon(), merged, &n_merged, &e), &e);
    CHECK_ST(ST_INVALID, comm_top_k(c, mine, 1, 0, &header, soon(), merged, &n_merged, &e), &e);
    CHECK_ST(ST_INVALID, comm_top_k(c, mine, 1, COMM_TOP_K_MAX + 1, &header, soon(), merged, &n_merged, &e), &e);
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e); /* none of it has counted */
    return true;
}

/* ---- groups ------------------------------------------------------------------------------------------------------------------------------------------- */

/* Some exchanges in a group whose members are known by a number each: everybody gets everybody's, in order. */
static bool talk(struct comm *c, const int *numbers, uint64_t tag, size_t bytes) {
    struct err e = {0};
    size_t recv_bytes[MAX_RANKS];
    const void *views[MAX_RANKS] = {NULL};
    for (int i = 0; i < 3; i++) {
        for (int r = 0; r < comm_n_ranks(c); r++) recv_bytes[r] = bytes - (size_t)(i * 5 + r);
        fill(comm_send_buffer(c), recv_bytes[comm_rank(c)], tag * 977 + (uint64_t)numbers[comm_rank(c)]);
        const struct comm_header header = {.step = tag};
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, NULL, &e), &e);
        for (int r = 0; r < comm_n_ranks(c); r++) CHECK(is_filled(views[r], recv_bytes[r], tag * 977 + (uint64_t)numbers[r]));
    }
    return true;
}

static bool talk_events(struct comm *c, uint64_t tag) {
    struct err e = {0};
    if (comm_rank(c) == 0) {
        CHECK_ST(ST_OK, comm_event_post(c, &tag, sizeof tag, &e), &e);
        while (comm_progress(c, &e) == ST_AGAIN) pause_us(50);
        return true;
    }
    uint64_t got = 0;
    size_t bytes = 0;
    CHECK_ST(ST_OK, comm_event_next(c, &got, sizeof got, &bytes, soon(), &e), &e);
    CHECK(bytes == sizeof tag && got == tag);
    return true;
}

/* The members of color: ranks r of the parent with colors[r] == color. */
static int members_of(const int *colors, int n, int color, int *members) {
    int n_members = 0;
    for (int r = 0; r < n; r++)
        if (colors[r] == color) members[n_members++] = r;
    return n_members;
}

static bool script_split(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    int n = comm_n_ranks(c), rank = comm_rank(c), world[MAX_RANKS], colors[MAX_RANKS], members[MAX_RANKS];
    struct err e = {0};
    for (int r = 0; r < n; r++) world[r] = r;

    /* Different for every rank and nearly all in one, some in none, everybody alone; of different sizes; two of them open at once. */
    struct comm *halves = NULL, *other = NULL, *nested = NULL;
    for (int r = 0; r < n; r++) colors[r] = r % 2 ? 77 : 3;
    CHECK_ST(ST_OK, comm_split(c, colors[rank], rank % 2 ? 100 : 70000, soon(), &halves, &e), &e);
    int n_members = members_of(colors, n, colors[rank], members);
    CHECK(halves && comm_n_ranks(halves) == n_members && members[comm_rank(halves)] == rank);
    CHECK(n_members == 1 || comm_query(halves)->max_ranks >= (size_t)n_members);
    CHECK(strcmp(comm_query(halves)->name, n_members == 1 ? "self" : comm_query(c)->name) == 0);
    CHECK(talk(halves, members, 5, rank % 2 ? 100 : 70000));
    CHECK(talk(c, world, 6, 64));

    int other_colors[MAX_RANKS] = {0}, other_members[MAX_RANKS];
    for (int r = 0; r < n; r++) other_colors[r] = r == n - 1 && n > 1 ? -1 : 0;
    CHECK_ST(ST_OK, comm_split(c, other_colors[rank], 4096, soon(), &other, &e), &e);
    int n_other = members_of(other_colors, n, 0, other_members);
    CHECK((other == NULL) == (other_colors[rank] < 0));
    if (other) CHECK(comm_n_ranks(other) == n_other && other_members[comm_rank(other)] == rank);

    /* Traffic in all of them, in an order that is not the same on every rank, but the same in each. */
    for (uint64_t i = 0; i < 10; i++) {
        if (other && rank % 2) CHECK(talk(other, other_members, i, 4000));
        CHECK(talk(halves, members, i + 100, 90));
        if (other && rank % 2 == 0) CHECK(talk(other, other_members, i, 4000));
        CHECK(talk(c, world, i + 200, 500));
        if (other && i % 4 == 0) CHECK(talk_events(other, i));
        if (i % 4 == 1) CHECK(talk_events(halves, i));
        if (i % 4 == 2) CHECK(talk_events(c, i));
    }

    /* A group of a group: its lowest alone, the rest together. */
    int nested_colors[MAX_RANKS], nested_members[MAX_RANKS];
    for (int r = 0; r < n_members; r++) nested_colors[r] = r == 0 ? 9 : 8;
    CHECK_ST(ST_OK, comm_split(halves, nested_colors[comm_rank(halves)], 64, soon(), &nested, &e), &e);
    int n_nested = members_of(nested_colors, n_members, nested_colors[comm_rank(halves)], nested_members);
    CHECK(comm_n_ranks(nested) == n_nested && nested_members[comm_rank(nested)] == comm_rank(halves));
    CHECK(talk(nested, nested_members, 1, 64) && talk(halves, members, 2, 80) && talk(nested, nested_members, 3, 64));
    comm_close(nested);
    CHECK(talk(halves, members, 7, 80));

    /* Two sizes for one color: nobody gets a group, all get the same sentence, and the parent goes on. */
    struct comm *none = NULL;
    if (n > 2) {
        memset(&e, 0, sizeof e);
        int color = rank == 0 ? -1 : 4;
        CHECK_ST(ST_MISMATCH, comm_split(c, color, rank == n - 1 ? 128 : 64, soon(), &none, &e), &e);
        char want[128];
        snprintf(want, sizeof want, "ranks 1 and %d want one group (color 4), but messages of 64 and of 128 bytes", n - 1);
        if (!strstr(e.text, want)) fprintf(stderr, "%s\n", e.text);
        CHECK(strstr(e.text, want) && none == NULL);
    }
    CHECK_ST(ST_INVALID, comm_split(c, 1, SIZE_MAX, soon(), &none, &e), &e);
    CHECK(talk(c, world, 8, 200));
    if (rank % 2) comm_close(other);
    comm_close(halves);
    CHECK(talk(c, world, 9, 200)); /* so that nobody closes below what another still does in a group */
    if (rank % 2 == 0) comm_close(other);
    return true;
}

static bool script_pairs(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc, *pair = NULL;
    int n = comm_n_ranks(c), rank = comm_rank(c);
    struct err e = {0};
    unsigned char *data = malloc(65537);
    CHECK(data);
    /* 0 with 1, 2 with 3, …; an odd one out has none. */
    bool is_odd = n % 2 && rank == n - 1;
    CHECK_ST(ST_OK, comm_split(c, is_odd ? -1 : rank / 2, 65537, soon(), &pair, &e), &e);
    CHECK((pair == NULL) == is_odd);
    uint64_t i = 0;
    for (size_t k = 0; pair && k < N_SIZES && sizes[k] <= 65537; k++) {
        for (int from = 0; from < 2; from++, i++) { /* there and back */
            if (comm_rank(pair) == from) {
                fill(data, sizes[k], i);
                CHECK_ST(ST_OK, comm_send(pair, data, sizes[k], soon(), &e), &e);
            } else {
                memset(data, 0, sizes[k]);
                CHECK_ST(ST_OK, comm_receive(pair, data, sizes[k], soon(), &e), &e);
                CHECK(is_filled(data, sizes[k], i));
            }
        }
    }
    if (pair) CHECK_ST(ST_INVALID, comm_send(pair, data, (size_t)1 << 24, soon(), &e), &e);
    if (pair) CHECK_ST(ST_OK, comm_barrier(pair, soon(), &e), &e);
    if (n != 2) {
        CHECK_ST(ST_INVALID, comm_send(c, data, 1, soon(), &e), &e);
        CHECK_ST(ST_INVALID, comm_receive(c, data, 1, soon(), &e), &e);
    }
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    comm_close(pair);
    free(data);
    return true;
}

/* ---- what goes wrong --------------------------------------------------------------------------------------------------------------------------------- */

static bool script_deadline(struct comm **pc, void *arg) {
    _Atomic int *n_told = arg;
    struct comm *c = *pc;
    int n_ranks = comm_n_ranks(c), late = n_ranks - 1;
    struct err e = {0};
    const size_t recv_bytes[MAX_RANKS] = {0};
    const void *views[MAX_RANKS] = {NULL};
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    const struct comm_header header = {.step = 17};
    if (n_ranks > 1 && comm_rank(c) == late) {
        while (atomic_load(n_told) < n_ranks - 1) pause_us(1000);
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, NULL, &e), &e);
    } else if (n_ranks > 1) {
        uint64_t begun_ns = now_ns();
        CHECK_ST(ST_TIMEOUT, comm_allgather(c, NULL, recv_bytes, &header, begun_ns + 60 * BASE_NS_PER_MS, views, NULL, &e), &e);
        uint64_t waited_ns = now_ns() - begun_ns;
        CHECK(waited_ns >= 60 * BASE_NS_PER_MS && waited_ns < 1000 * BASE_NS_PER_MS);
        char want[64];
        snprintf(want, sizeof want, "rank %d did not answer: step 17, exchange 3, waited ", late);
        if (!strstr(e.text, want)) fprintf(stderr, "%s\n", e.text);
        CHECK(strstr(e.text, want) && strstr(e.text, " ms"));
        /* A deadline that has passed is told at once; a new exchange is refused; the old one may still be finished. */
        CHECK_ST(ST_TIMEOUT, comm_allgather_finish(c, 1, views, NULL, &e), &e);
        CHECK_ST(ST_INVALID, comm_allgather_start(c, NULL, recv_bytes, &header, &e), &e);
        atomic_fetch_add(n_told, 1);
        CHECK_ST(ST_OK, comm_allgather_finish(c, soon(), views, NULL, &e), &e);
    }
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    return true;
}

static bool script_closed(struct comm **pc, void *arg) {
    struct comm *c = *pc;
    int last = comm_n_ranks(c) - 1;
    bool use_events = arg && strcmp(arg, "events") == 0;
    struct err e = {0};
    if (comm_n_ranks(c) == 1) return true;
    if (comm_rank(c) != last) pause_us(3000); /* the last closes right after the barrier; that must not spoil it for the slow */
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    char want[64];
    snprintf(want, sizeof want, "rank %d closed its end", last);
    if (comm_rank(c) == last) {
        if (comm_rank(c) % 2) pause_us(20000); /* now and then let them fall asleep first */
        comm_close(c);
        *pc = NULL;
        return true;
    }
    char data[8];
    size_t bytes;
    if (arg && strcmp(arg, "advance") == 0) {
        const size_t recv_bytes[MAX_RANKS] = {0};
        const struct comm_header header = {0};
        const void *views[MAX_RANKS];
        CHECK_ST(ST_OK, comm_allgather_start(c, NULL, recv_bytes, &header, &e), &e);
        for (int i = 0; i < 20; i++) {
            comm_allgather_advance(c);
            pause_us(1000);
        }
        CHECK_ST(ST_PEER_LOST, comm_allgather_finish(c, soon(), views, NULL, &e), &e);
    } else if (use_events && comm_rank(c) != 0)
        CHECK_ST(ST_PEER_LOST, comm_event_next(c, data, sizeof data, &bytes, soon(), &e), &e);
    else
        CHECK_ST(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e);
    if (!strstr(e.text, want)) fprintf(stderr, "%s\n", e.text);
    CHECK(strstr(e.text, want)); /* the first to close, not one of those that followed */
    if (!use_events) {
        CHECK(strstr(e.text, "exchange 2"));
        memset(&e, 0, sizeof e);
        CHECK_ST(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e);
        CHECK(strstr(e.text, want) && strstr(e.text, "exchange 2"));
    }
    return true;
}

static bool script_misuse(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    int n_ranks = comm_n_ranks(c);
    const struct comm_header header = {0};
    size_t recv_bytes[MAX_RANKS] = {0};
    char data[16] = "";
    size_t bytes = 77;
    recv_bytes[n_ranks - 1] = (size_t)64 * MIB;
    CHECK_ST(ST_INVALID, comm_allgather_start(c, NULL, recv_bytes, &header, &e), &e);
    CHECK_ST(ST_INVALID, comm_broadcast(c, n_ranks, data, 1, soon(), &e), &e);
    CHECK_ST(ST_INVALID, comm_broadcast(c, -1, data, 1, soon(), &e), &e);
    CHECK_ST(ST_INVALID, comm_broadcast(c, 0, data, (size_t)64 * MIB, soon(), &e), &e);
    if (comm_rank(c) == 0) {
        CHECK_ST(ST_INVALID, comm_event_next(c, data, sizeof data, &bytes, 0, &e), &e);
        CHECK_ST(ST_INVALID, comm_event_post(c, data, COMM_EVENT_MAX_BYTES + 1, &e), &e);
        CHECK_ST(ST_OK, comm_event_post(c, "0123456789", 10, &e), &e);
    } else {
        CHECK_ST(ST_INVALID, comm_event_post(c, data, 1, &e), &e);
        /* Too little room: nothing is lost. */
        CHECK_ST(ST_INVALID, comm_event_next(c, data, 9, &bytes, soon(), &e), &e);
        CHECK(bytes == 77);
        CHECK_ST(ST_OK, comm_event_next(c, data, 10, &bytes, soon(), &e), &e);
        CHECK(bytes == 10 && memcmp(data, "0123456789", 10) == 0);
    }
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e); /* none of it has counted as an exchange */
    return true;
}

/* ---- the loop over the table --------------------------------------------------------------------------------------------------------------------------- */

/* Few enough ranks may spin; more than CPUs may not. */
static int spin_for(int n_ranks) { return n_ranks <= 2 ? 20 : 0; }

/* Every rank count, as processes and as threads, on shm, which is fast; two of them on the others, where each costs more, except in long mode. */
static bool is_due(const char *name, int n_ranks, bool threads) {
    if (t_long() || strcmp(name, "self") == 0 || strcmp(name, "shm") == 0) return true;
    if (strncmp(name, "shm+", 4) == 0) return n_ranks == (threads ? 3 : 4);
    return n_ranks == (threads ? 2 : 3);
}

static bool fits(const struct comm_backend *b, const char *name, int n_ranks, bool threads) {
    if ((threads && !b->capabilities.ranks_as_threads) || (size_t)n_ranks > b->capabilities.max_ranks) return false;
    struct group g;
    struct comm_boot boot;
    struct group_boot_end end;
    struct err e = {0};
    group_init(&g, name, n_ranks, threads, 64, 0);
    struct comm_setup setup = group_setup(&g, 0, &boot, &end);
    bool ok = b->probe(&setup, &e) == ST_OK;
    group_release(&g);
    return ok;
}

/* TANDEM_TEST_BACKEND=tcp: only this one. TANDEM_TEST_TIMES=1: how long each takes. */
static void for_all(size_t max_bytes, int min_ranks, group_fn fn, void *arg, size_t arg_bytes) {
    int n_runs = 0;
    const char *only = getenv("TANDEM_TEST_BACKEND");
    for (const struct comm_backend *const *b = comm_backends(); *b; b++) {
        bool is_shm = strcmp((*b)->capabilities.name, "shm") == 0, is_tcp = strcmp((*b)->capabilities.name, "tcp") == 0, is_ucx = strcmp((*b)->capabilities.name, "ucx") == 0;
        const char *names[] = {(*b)->capabilities.name,
                               is_shm               ? "shm/boot"
                               : is_tcp && t_long() ? "tcp/link"
                                                    : NULL,
                               is_shm   ? "shm/link"
                               : is_tcp ? "tcp/streams"
                               : is_ucx ? "ucx/rendezvous"
                                        : NULL};
        for (int i = 0; i < 3; i++) {
            if (!names[i]) continue;
            if (only && strcmp(only, names[i]) != 0) continue;
            /* All processes before all threads: what a library has started in this process is best not forked. */
            for (int threads = 0; threads < 2; threads++) {
                for (int n_ranks = min_ranks; n_ranks <= MAX_RANKS; n_ranks++) {
                    if (!is_due(names[i], n_ranks, threads) || !fits(*b, names[i], n_ranks, threads)) continue;
                    if (arg_bytes) memset(arg, 0, arg_bytes);
                    uint64_t begun_ns = now_ns();
                    group_run(names[i], n_ranks, threads, max_bytes, spin_for(n_ranks), fn, arg);
                    if (getenv("TANDEM_TEST_TIMES"))
                        printf("  %s, %d %s: %llu ms\n", names[i], n_ranks, threads ? "threads" : "processes",
                               (unsigned long long)((now_ns() - begun_ns) / BASE_NS_PER_MS));
                    n_runs++;
                }
            }
        }
    }
    if (only && n_runs == 0) skip();
    assert_true(only || n_runs >= 2 * (MAX_RANKS - min_ranks + 1));
}

/* Memory that forked ranks share as well. */
static void *shared(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    return p;
}

static void every_size_arrives(void **state) {
    (void)state;
    for_all(MIB, 1, script_sizes, NULL, 0);
}
static void work_is_done_while_bytes_fly(void **state) {
    (void)state;
    for_all(MIB, 1, script_ahead, NULL, 0);
}
static void large_messages_arrive(void **state) {
    (void)state;
    if (!t_long()) skip();
    for (int threads = 0; threads < 2; threads++) group_run("shm", 2, threads, (size_t)64 * MIB, 0, script_large, NULL);
    group_run("self", 1, true, (size_t)64 * MIB, 0, script_large, NULL);
}
static void a_hundred_thousand_small_exchanges(void **state) {
    (void)state;
    int n_many = 100000 / SLOWER, n_some = (t_long() ? 100000 : 10000) / SLOWER;
    for (int threads = 0; threads < 2; threads++) group_run("shm", 2, threads, 64, spin_for(2), script_many_small, &n_many);
    for_all(64, 1, script_many_small, &n_some, 0);
}
static void nobody_leaves_a_barrier_early(void **state) {
    (void)state;
    _Atomic int *n_arrived = shared(sizeof *n_arrived);
    for_all(64, 1, script_barrier, n_arrived, sizeof *n_arrived);
    munmap(n_arrived, sizeof *n_arrived);
}
static void every_root_broadcasts(void **state) {
    (void)state;
    for_all(65537, 1, script_broadcast, NULL, 0);
}
static void events_come_in_order_under_back_pressure(void **state) {
    (void)state;
    for_all(64, 1, script_events, NULL, 0);
}
static void a_deadline_names_peer_step_and_exchange(void **state) {
    (void)state;
    _Atomic int *n_told = shared(sizeof *n_told);
    for_all(64, 1, script_deadline, n_told, sizeof *n_told);
    munmap(n_told, sizeof *n_told);
}
static void a_closed_peer_ends_the_waits(void **state) {
    (void)state;
    for_all(64, 1, script_closed, NULL, 0);
    for_all(64, 1, script_closed, (void *)"events", 0);
    for_all(64, 1, script_closed, (void *)"advance", 0);
}
static void progress_moves_what_is_queued(void **state) {
    (void)state;
    for_all(64, 1, script_progress, NULL, 0);
}
static void sums_have_the_bits_of_one_rank(void **state) {
    (void)state;
    for_all(32768, 1, script_add, NULL, 0);
}
static void shares_are_scattered(void **state) {
    (void)state;
    for_all(16384, 1, script_scatter, NULL, 0);
}
static void large_sums_have_them_as_well(void **state) {
    (void)state;
    if (!t_long()) skip();
    size_t bytes = (size_t)64 * MIB;
    for (int threads = 0; threads < 2; threads++) group_run("shm", 2, threads, (size_t)4 * MIB, 0, script_add, &bytes);
    group_run("tcp", 3, false, (size_t)4 * MIB, 0, script_add, &bytes);
}
static void the_best_of_all_ranks(void **state) {
    (void)state;
    for_all(64, 1, script_top_k, NULL, 0); /* messages of 1024 bytes: up to two parts */
}
static void groups_talk_among_themselves(void **state) {
    (void)state;
    for_all(600, 1, script_split, NULL, 0);
}
static void pairs_send_and_receive(void **state) {
    (void)state;
    for_all(64, 1, script_pairs, NULL, 0);
}
static void misuse_is_refused(void **state) {
    (void)state;
    for_all(64, 1, script_misuse, NULL, 0);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN); /* as ranks do, and tcp sends pages */
    seed = t_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size_arrives),
        cmocka_unit_test(work_is_done_while_bytes_fly),
        cmocka_unit_test(large_messages_arrive),
        cmocka_unit_test(a_hundred_thousand_small_exchanges),
        cmocka_unit_test(nobody_leaves_a_barrier_early),
        cmocka_unit_test(every_root_broadcasts),
        cmocka_unit_test(events_come_in_order_under_back_pressure),
        cmocka_unit_test(progress_moves_what_is_queued),
        cmocka_unit_test(sums_have_the_bits_of_one_rank),
        cmocka_unit_test(shares_are_scattered),
        cmocka_unit_test(large_sums_have_them_as_well),
        cmocka_unit_test(the_best_of_all_ranks),
        cmocka_unit_test(groups_talk_among_themselves),
        cmocka_unit_test(pairs_send_and_receive),
        cmocka_unit_test(a_deadline_names_peer_step_and_exchange),
        cmocka_unit_test(a_closed_peer_ends_the_waits),
        cmocka_unit_test(misuse_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
