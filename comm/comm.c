/* The table of backends, opening, and everything above a backend that is the same for all of them: checks, waits, deadlines, barrier, broadcast.
 *
 * The one idea: a backend never waits. It answers ST_AGAIN, and the one loop below decides how to spend the time until it is asked again:
 * first it spins (an exchange takes well under a microsecond when the peer is on time), then it yields (the peer may want this very CPU),
 * then it lets the backend sleep, in slices, so that not even a lost wake-up could hold it for longer than one. */
#include "comm/comm.h"

#include <stdio.h>
#include <string.h>

#include "comm/comm_priv.h"

/* Tests before the first look at the clock, and between two looks. They come without a pause first: on Ice Lake a pause takes 50 ns,
 * about as long as a cache line needs from one core to another. */
#define N_EAGER_TESTS 64
#define N_TESTS_PER_CLOCK 16
/* With spin_us 0 (more threads than CPUs) a turn of all peers usually takes less than this many yields, each 1–2 µs where somebody else runs. */
#define N_YIELDS 8
#define SLEEP_SLICE_NS (50 * BASE_NS_PER_MS)
#define MAX_SPIN_US 50
#define OPEN_WAIT_NS (60 * BASE_NS_PER_S)

static const struct comm_backend *const backends[] = {&comm_self_backend, &comm_shm_backend, &comm_shm_ucx_backend, &comm_shm_tcp_backend,
                                                      &comm_ucx_backend,  &comm_tcp_backend, &comm_mpi_backend,     NULL};

const struct comm_backend *const *comm_backends(void) { return backends; }

/* ---- opening ------------------------------------------------------------------------------------------------------------------------------------- */

static enum st check_setup(const struct comm_setup *setup, struct err *e) {
    if (setup->n_ranks < 1 || setup->n_ranks > COMM_MAX_RANKS)
        return err_set(e, ST_INVALID, "comm: %d ranks; 1 to %d are possible", setup->n_ranks, COMM_MAX_RANKS);
    if (setup->rank < 0 || setup->rank >= setup->n_ranks) return err_set(e, ST_INVALID, "comm: rank %d of %d", setup->rank, setup->n_ranks);
    if (setup->max_bytes > COMM_LIMIT_BYTES) return err_set(e, ST_INVALID, "comm: messages of %zu bytes", setup->max_bytes);
    if (setup->spin_us < 0 || setup->spin_us > MAX_SPIN_US)
        return err_set(e, ST_INVALID, "comm: spinning for %d us; 0 to %d are possible", setup->spin_us, MAX_SPIN_US);
    if (setup->address && strlen(setup->address) >= COMM_ADDRESS_BYTES)
        return err_set(e, ST_INVALID, "comm: \"%.40s…\" is no numeric address", setup->address);
    if (setup->n_here && (setup->n_here < 0 || setup->rank < setup->first_here || setup->rank - setup->first_here >= setup->n_here))
        return err_set(e, ST_INVALID, "comm: rank %d is not among the %d ranks of its host, from %d on", setup->rank, setup->n_here,
                       setup->first_here);
    return setup->link ? comm_link_check(setup->link, e) : ST_OK;
}

/* The best backend that fits, or the named one; NULL: none, and the error (ST_UNSUPPORTED) tells for each why. */
static const struct comm_backend *choose(const struct comm_setup *setup, struct err *e) {
    char reasons[sizeof e->text] = "";
    bool known = false;
    for (int i = 0; backends[i]; i++) {
        const struct comm_backend *b = backends[i];
        if (setup->backend && strcmp(setup->backend, b->capabilities.name) != 0) continue;
        known = true;
        struct err why = {0};
        if (b->probe(setup, &why) == ST_OK) return b;
        size_t at = strlen(reasons);
        const char *parts[] = {at ? "; " : "", b->capabilities.name, ": ", why.text};
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            size_t n = strlen(parts[k]);
            if (n > sizeof reasons - 1 - at) n = sizeof reasons - 1 - at;
            memcpy(reasons + at, parts[k], n);
            at += n;
        }
        reasons[at] = 0;
    }
    if (known)
        err_set(e, ST_UNSUPPORTED, "comm: no backend fits (%.400s)", reasons);
    else
        err_set(e, ST_UNSUPPORTED, "comm: this build has no backend called %s", setup->backend);
    return NULL;
}

size_t comm_memory_bytes(const char *backend, int n_ranks, size_t max_bytes) {
    const bool is_shared = !backend || strncmp(backend, "shm", 3) == 0, is_sent = backend && strcmp(backend, "shm") != 0;
    const size_t least = comm_buffer_bytes(max_bytes), slot = (least > COMM_EVENT_MAX_BYTES ? least : COMM_EVENT_MAX_BYTES) + 256, beside = COMM_EVENT_MAX_BYTES + 4096, ring = 2u << 20;
    const size_t n = (size_t)n_ranks;
    if (n_ranks < 1 || n_ranks > COMM_MAX_RANKS || max_bytes > COMM_LIMIT_BYTES) return 0;
    return (is_shared ? comm_shm_bytes(n_ranks, max_bytes) : 0) + (is_sent ? n * (n * (COMM_N_SLOTS * slot + beside) + ring) : 0);
}

enum st comm_open(const struct comm_setup *setup, struct comm **c, struct err *e) {
    enum st code = check_setup(setup, e);
    if (code != ST_OK) return code;
    const struct comm_backend *b = choose(setup, e);
    if (!b) return ST_UNSUPPORTED;

    struct comm_setup timed = *setup;
    timed.link = NULL;
    if (!timed.deadline_ns) timed.deadline_ns = base_now_ns(setup->clock ? setup->clock : base_clock_real()) + OPEN_WAIT_NS;
    struct comm *opened = NULL;
    code = b->open(&timed, &opened, e);
    if (code != ST_OK) return code;
    opened->backend = b;
    opened->clock = setup->clock ? setup->clock : base_clock_real();
    opened->os = setup->os ? setup->os : comm_os_real();
    opened->rank = setup->rank;
    opened->n_ranks = setup->n_ranks;
    opened->spin_us = setup->spin_us;
    opened->max_bytes = comm_capacity(setup->max_bytes);
    opened->broken = ST_OK;
    opened->backend_name = b->capabilities.name;
    if (setup->address) memcpy(opened->address, setup->address, strlen(setup->address) + 1);
    opened->first_here = setup->first_here;
    opened->n_here = setup->n_here;
    opened->has_key = setup->key != NULL;
    if (setup->key) memcpy(opened->key, setup->key, sizeof opened->key);
    opened->has_link = setup->link != NULL;
    if (setup->link) opened->link = *setup->link;
    /* A rank alone has no wire. */
    if (setup->link && setup->n_ranks > 1) code = comm_link_wrap(&opened, e);
    if (code != ST_OK) {
        comm_close(opened);
        return code;
    }
    *c = opened;
    return ST_OK;
}

void comm_close(struct comm *c) {
    if (c) c->backend->close(c);
}

const struct comm_capabilities *comm_query(const struct comm *c) { return &c->backend->capabilities; }
int comm_rank(const struct comm *c) { return c->rank; }
int comm_n_ranks(const struct comm *c) { return c->n_ranks; }

bool comm_divide(struct comm *c, size_t from_bytes) { return c->backend->divide && c->backend->divide(c, from_bytes); }

enum st comm_progress(struct comm *c, struct err *e) { return c->backend->progress ? c->backend->progress(c, e) : ST_OK; }

/* ---- waiting ------------------------------------------------------------------------------------------------------------------------------------- */

struct wait {
    unsigned n_tests, n_yields;
    uint64_t begun_ns; /* 0: the clock was not read yet */
    uint64_t now_ns;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* "yield" does nothing on Neoverse and Cortex cores; isb takes some 10 ns */
#endif
}

/* Called after a test that found nothing: passes some time. False: the deadline is over. */
static bool wait_more(struct comm *c, struct wait *w, uint64_t deadline_ns) {
    if (c->spin_us) {
        w->n_tests++;
        if (w->n_tests <= N_EAGER_TESTS) return true;
        if (w->n_tests % N_TESTS_PER_CLOCK) {
            relax();
            return true;
        }
    }
    w->now_ns = base_now_ns(c->clock);
    if (!w->begun_ns) w->begun_ns = w->now_ns;
    if (w->now_ns >= deadline_ns) return false;
    if (w->now_ns - w->begun_ns < (uint64_t)c->spin_us * BASE_NS_PER_US) return true;
    if (w->n_yields < N_YIELDS) {
        w->n_yields++;
        c->os->yield(c->os);
        return true;
    }
    w->n_tests = N_EAGER_TESTS + N_TESTS_PER_CLOCK - 2; /* after a sleep: one test, then the clock */
    uint64_t slice_ns = w->now_ns + SLEEP_SLICE_NS;
    c->backend->sleep(c, slice_ns < deadline_ns ? slice_ns : deadline_ns);
    return true;
}

static enum st timed_out(const struct comm *c, const struct wait *w, int missing, struct err *e) {
    double waited_s = (double)(w->now_ns - w->begun_ns) / (double)BASE_NS_PER_S;
    return waited_s < 1 ? err_set(e, ST_TIMEOUT, "rank %d did not answer: step %llu, exchange %llu, waited %.0f ms", missing,
                                  (unsigned long long)c->step, (unsigned long long)c->sequence, waited_s * 1000)
                        : err_set(e, ST_TIMEOUT, "rank %d did not answer: step %llu, exchange %llu, waited %.1f s", missing,
                                  (unsigned long long)c->step, (unsigned long long)c->sequence, waited_s);
}

/* ---- collectives --------------------------------------------------------------------------------------------------------------------------------- */

void *comm_send_buffer(struct comm *c) {
    BASE_ASSERT(!c->begun || c->backend->capabilities.sends_ahead);
    return c->backend->send_buffer(c);
}

enum st comm_tell_hearsay(int rank, enum comm_cause cause, int blamed, int own, struct err *e) {
    if (blamed == own) return err_set(e, ST_PEER_LOST, "rank %d lost its connection to rank %d, to us", rank, own);
    return cause == COMM_CLOSED ? err_set(e, ST_PEER_LOST, "rank %d closed its end, as rank %d tells", blamed, rank)
                                : err_set(e, ST_PEER_LOST, "rank %d lost its connection to rank %d", rank, blamed);
}

static enum st tell_broken(const struct comm *c, struct err *e) { return err_set(e, c->broken, "%s", c->why.text); }

/* The group cannot go on; the sentence, with step and exchange, is kept for whoever asks next. */
static enum st broke(struct comm *c, enum st code, struct err *e) {
    size_t n = strlen(c->why.text);
    char where[64];
    int n_where = snprintf(where, sizeof where, ": step %llu, exchange %llu", (unsigned long long)c->step, (unsigned long long)c->sequence);
    if (n_where > 0 && n + (size_t)n_where < sizeof c->why.text) memcpy(c->why.text + n, where, (size_t)n_where + 1);
    c->broken = code;
    c->begun = false;
    return tell_broken(c, e);
}

enum st comm_check_ready(const struct comm *c, struct err *e) {
    if (c->broken != ST_OK) return tell_broken(c, e);
    if (!c->begun) return ST_OK;
    return err_set(e, ST_INVALID, "comm: exchange %llu of step %llu was not finished", (unsigned long long)c->sequence, (unsigned long long)c->step);
}

enum st comm_give_up(struct comm *c, enum st code, const struct err *why, struct err *e) {
    if (c->broken == ST_OK && c->begun) {
        c->why = *why;
        c->broken = code;
        c->begun = false;
    }
    return err_set(e, code, "%s", why->text);
}

static enum st check_bytes(const struct comm *c, int r, size_t bytes, struct err *e) {
    return bytes <= c->max_bytes ? ST_OK : err_set(e, ST_INVALID, "comm: %zu bytes of rank %d; %zu were planned", bytes, r, c->max_bytes);
}

/* recv_bytes and what a scatter is by are there. */
static enum st begin(struct comm *c, const void *send, const struct comm_header *header, struct err *e) {
    c->sequence++;
    c->step = header->step;
    c->begun = true;
    c->is_here = false;
    c->why.text[0] = 0;
    enum st code = c->backend->allgather_start(c, send, c->recv_bytes, header, &c->why);
    return code == ST_OK ? ST_OK : broke(c, code, e);
}

enum st comm_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    enum st code = comm_check_ready(c, e);
    for (int r = 0; r < c->n_ranks && code == ST_OK; r++) code = check_bytes(c, r, recv_bytes[r], e);
    if (code != ST_OK) return code;
    memcpy(c->recv_bytes, recv_bytes, (size_t)c->n_ranks * sizeof *recv_bytes);
    c->is_scatter = false;
    return begin(c, send, header, e);
}

enum { MOST_ROUNDS = 64 }; /* of one advance: 16 MiB a peer over tcp */

bool comm_allgather_advance(struct comm *c) {
    int missing;
    if (!c->begun || c->is_here || c->broken != ST_OK) return true;
    c->advancing = true;
    enum st code;
    uint64_t n_moved;
    int n_rounds = 0;
    do { /* a test moves a piece, so that no peer waits for another one's; here as many as go */
        n_moved = c->n_moved;
        code = c->backend->allgather_test(c, c->views, c->headers, &missing, &c->why);
    } while (code == ST_AGAIN && c->n_moved != n_moved && ++n_rounds < MOST_ROUNDS);
    c->advancing = false;
    c->is_here = code == ST_OK;
    if (code == ST_OK || code == ST_AGAIN) return c->is_here;
    struct err e;
    broke(c, code, &e); /* and finish tells it */
    return true;
}

enum st comm_allgather_finish(struct comm *c, uint64_t deadline_ns, const void **views, struct comm_header *headers, struct err *e) {
    if (c->broken != ST_OK) return tell_broken(c, e);
    BASE_ASSERT(c->begun);
    if (c->is_here) {
        memcpy(views, c->views, (size_t)c->n_ranks * sizeof *views);
        if (headers) memcpy(headers, c->headers, (size_t)c->n_ranks * sizeof *headers);
        c->begun = false;
        return ST_OK;
    }
    struct wait w = {0};
    int missing = -1;
    for (;;) {
        enum st code = c->backend->allgather_test(c, views, headers, &missing, &c->why);
        if (code == ST_OK) {
            c->begun = false;
            return ST_OK;
        }
        if (code != ST_AGAIN) return broke(c, code, e);
        if (!wait_more(c, &w, deadline_ns)) return timed_out(c, &w, missing, e);
    }
}

enum st comm_allgather(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, uint64_t deadline_ns,
                       const void **views, struct comm_header *headers, struct err *e) {
    enum st code = comm_allgather_start(c, send, recv_bytes, header, e);
    return code == ST_OK ? comm_allgather_finish(c, deadline_ns, views, headers, e) : code;
}

/* ---- scatter ------------------------------------------------------------------------------------------------------------------------------------- */

void comm_cut_evenly(struct comm_shares *shares, int n_ranks, size_t block_bytes) {
    const size_t n_blocks = (shares->vector_bytes + block_bytes - 1) / block_bytes;
    for (int r = 0; r <= n_ranks; r++) {
        const size_t end = n_blocks * (size_t)r / (size_t)n_ranks * block_bytes;
        shares->begin[r] = end < shares->vector_bytes ? end : shares->vector_bytes;
    }
}

static enum st check_shares(const struct comm *c, const struct comm_shares *s, struct err *e) {
    size_t n_all = 0;
    bool is_cut = s->vector_bytes % 64 == 0 && s->begin[0] == 0 && s->begin[c->n_ranks] == s->vector_bytes;
    for (int r = 0; r < c->n_ranks; r++) {
        n_all += s->n_vectors[r];
        is_cut = is_cut && s->begin[r] % 64 == 0 && s->begin[r] <= s->begin[r + 1];
    }
    if (n_all > COMM_MAX_VECTORS) return err_set(e, ST_INVALID, "comm: %zu vectors; %d are possible", n_all, COMM_MAX_VECTORS);
    return is_cut ? ST_OK : err_set(e, ST_INVALID, "comm: these are no shares of vectors of %zu bytes", s->vector_bytes);
}

enum st comm_scatter_start(struct comm *c, const void *send, const struct comm_shares *shares, const struct comm_header *header, struct err *e) {
    const bool packs = c->backend->capabilities.scatters;
    enum st code = comm_check_ready(c, e);
    if (code == ST_OK) code = check_shares(c, shares, e);
    for (int r = 0; r < c->n_ranks && code == ST_OK; r++) code = check_bytes(c, r, comm_vectors_bytes(shares, r), e);
    if (code != ST_OK) return code;
    for (int r = 0; r < c->n_ranks; r++) c->recv_bytes[r] = packs && r != c->rank ? comm_scattered_bytes(shares, r, c->rank) : comm_vectors_bytes(shares, r);
    c->packed = packs ? ~(1ull << c->rank) : 0;
    c->is_scatter = true;
    c->shares = *shares;
    return begin(c, send, header, e);
}

int comm_share(const struct comm *c, const void *const *views, const void **vectors) {
    const struct comm_shares *s = &c->shares;
    int n = 0;
    for (int r = 0; r < c->n_ranks; r++) {
        const bool packed = c->packed >> r & 1;
        const size_t first = packed ? 0 : s->begin[c->rank], stride = packed ? comm_share_bytes(s, c->rank) : s->vector_bytes;
        for (uint32_t k = 0; k < s->n_vectors[r]; k++) vectors[n++] = (const unsigned char *)views[r] + first + k * stride;
    }
    return n;
}

enum st comm_barrier(struct comm *c, uint64_t deadline_ns, struct err *e) {
    const size_t recv_bytes[COMM_MAX_RANKS] = {0};
    const struct comm_header header = {.step = c->step};
    const void *views[COMM_MAX_RANKS];
    return comm_allgather(c, NULL, recv_bytes, &header, deadline_ns, views, NULL, e);
}

enum st comm_broadcast(struct comm *c, int root, void *data, size_t bytes, uint64_t deadline_ns, struct err *e) {
    if (root < 0 || root >= c->n_ranks) return err_set(e, ST_INVALID, "comm: broadcast from rank %d of %d", root, c->n_ranks);
    size_t recv_bytes[COMM_MAX_RANKS] = {0};
    recv_bytes[root] = bytes;
    const struct comm_header header = {.step = c->step};
    const void *views[COMM_MAX_RANKS] = {NULL};
    enum st code = comm_allgather(c, c->rank == root ? data : NULL, recv_bytes, &header, deadline_ns, views, NULL, e);
    if (code != ST_OK || c->rank == root || bytes == 0) return code;
    BASE_ASSERT(views[root]);
    memcpy(data, views[root], bytes);
    return ST_OK;
}

/* ---- events -------------------------------------------------------------------------------------------------------------------------------------- */

enum st comm_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    if (c->rank != 0) return err_set(e, ST_INVALID, "comm: rank %d posts an event; only rank 0 does", c->rank);
    if (bytes > COMM_EVENT_MAX_BYTES) return err_set(e, ST_INVALID, "comm: an event of %zu bytes; %d are possible", bytes, COMM_EVENT_MAX_BYTES);
    return c->backend->event_post(c, data, bytes, e);
}

enum st comm_event_next(struct comm *c, void *data, size_t capacity, size_t *bytes, uint64_t deadline_ns, struct err *e) {
    if (c->rank == 0) return err_set(e, ST_INVALID, "comm: rank 0 reads events; it posts them");
    struct wait w = {0};
    for (;;) {
        enum st code = c->backend->event_test(c, data, capacity, bytes, e);
        if (code != ST_AGAIN || deadline_ns == 0 || !wait_more(c, &w, deadline_ns)) return code;
    }
}
