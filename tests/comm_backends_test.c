/* One script for every backend that probes, with as many ranks as it takes, as processes and as threads. test-deadline: 240 */
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
    int n = *(const int *)arg, n_ranks = comm_n_ranks(c), rank = comm_rank(c);
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
        CHECK_ST(ST_OK, comm_event_post(c, "end", 3, &e), &e);
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
    bool use_events = arg != NULL;
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
    if (use_events && comm_rank(c) != 0)
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

static void for_all(size_t max_bytes, int min_ranks, group_fn fn, void *arg, size_t arg_bytes) {
    int n_runs = 0;
    for (const struct comm_backend *const *b = comm_backends(); *b; b++) {
        for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) {
            for (int threads = 0; threads < 2; threads++) {
                const char *name = (*b)->capabilities.name;
                struct group g;
                group_init(&g, name, n_ranks, threads, 64, 0);
                struct comm_boot boot;
                struct group_boot_end end;
                struct comm_setup setup = group_setup(&g, 0, &boot, &end);
                struct err e = {0};
                bool fits = (!threads || (*b)->capabilities.ranks_as_threads) && (*b)->probe(&setup, &e) == ST_OK &&
                            (size_t)n_ranks <= (*b)->capabilities.max_ranks;
                group_release(&g);
                if (!fits || n_ranks < min_ranks) continue;
                if (arg_bytes) memset(arg, 0, arg_bytes);
                group_run(name, n_ranks, threads, max_bytes, spin_for(n_ranks), fn, arg);
                n_runs++;
            }
        }
    }
    assert_true(n_runs >= 2 * (MAX_RANKS - min_ranks + 1));
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
}
static void misuse_is_refused(void **state) {
    (void)state;
    for_all(64, 1, script_misuse, NULL, 0);
}

int main(void) {
    seed = t_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size_arrives),
        cmocka_unit_test(large_messages_arrive),
        cmocka_unit_test(a_hundred_thousand_small_exchanges),
        cmocka_unit_test(nobody_leaves_a_barrier_early),
        cmocka_unit_test(every_root_broadcasts),
        cmocka_unit_test(events_come_in_order_under_back_pressure),
        cmocka_unit_test(a_deadline_names_peer_step_and_exchange),
        cmocka_unit_test(a_closed_peer_ends_the_waits),
        cmocka_unit_test(misuse_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
