/* A group of ranks for comm's tests: the same function run by every rank, as processes (fork) or as threads of this one.
 *
 * A rank's function reports by its return value; CHECK prints what failed and returns false, since cmocka's checks may not be used outside its own thread. */
#ifndef TESTS_T_COMM_H
#define TESTS_T_COMM_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/rng.h"
#include "comm/comm.h"
#include "tests/t.h"
#include "tests/t_boot.h"
#include "tests/t_pmi.h"

#define CHECK(cond)                                                                                                                                  \
    do {                                                                                                                                             \
        if (!(cond)) {                                                                                                                               \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond);                                                                       \
            return false;                                                                                                                            \
        }                                                                                                                                            \
    } while (0)
#define CHECK_ST(want, call, e)                                                                                                                      \
    do {                                                                                                                                             \
        enum st got_ = (call);                                                                                                                       \
        if (got_ != (want)) {                                                                                                                        \
            fprintf(stderr, "%s:%d: %s: %s instead of %s: %s\n", __FILE__, __LINE__, #call, st_name(got_), st_name(want), (e)->text);                \
            return false;                                                                                                                            \
        }                                                                                                                                            \
    } while (0)

struct group {
    const char *
        backend; /* of the table; "shm/boot": shm with a segment that the ranks make themselves; "shm/link", "tcp/link": under an emulated link; "tcp/streams": three connections of each pair, larger messages divided; "ucx/rendezvous": larger ones go so */
    int n_ranks;
    bool threads;
    size_t max_bytes;
    int spin_us;
    int n_first; /* hybrids: ranks of the first of two hosts; the rest is on the second. Else 0 */
    struct group_memory {
        int fd;       /* −1, or shm's; hybrids: of each host */
        void *memory; /* threads: the mapping */
        size_t bytes;
    } memory[2];
    struct group_boot *boot; /* shared by all ranks */
    const struct comm_link *link;
    const char *address, *streams;
    bool divides;
    struct t_pmi *pmi; /* mpi: whom its ranks ask for each other; else NULL */
};

/* May close and clear *c; else the runner closes it. */
typedef bool (*group_fn)(struct comm **c, void *arg);

static inline uint64_t now_ns(void) { return base_now_ns(base_clock_real()); }
static inline uint64_t in_ms(uint64_t ms) { return now_ns() + ms * BASE_NS_PER_MS; }
/* Far longer than anything takes here, so that only a lost message can reach it. */
static inline uint64_t soon(void) { return in_ms(30000); }
static inline void pause_us(unsigned us) { nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000L}, NULL); }

/* boot and end live as long as comm_open runs. */
static inline struct comm_setup group_setup(const struct group *g, int rank, struct comm_boot *boot, struct group_boot_end *end) {
    *end = (struct group_boot_end){g->boot, rank};
    if (g->pmi) t_pmi_enter(g->pmi, rank);
    *boot = (struct comm_boot){group_boot_allgather, end};
    bool is_second = g->n_first && rank >= g->n_first;
    const struct group_memory *m = &g->memory[is_second];
    return (struct comm_setup){.backend = g->backend,
                               .rank = rank,
                               .n_ranks = g->n_ranks,
                               .max_bytes = g->max_bytes,
                               .spin_us = g->spin_us,
                               .memory_fd = g->threads ? -1 : m->fd,
                               .memory = g->threads ? m->memory : NULL,
                               .first_here = is_second ? g->n_first : 0,
                               .n_here = is_second ? g->n_ranks - g->n_first : g->n_first,
                               .boot = boot,
                               .address = g->address,
                               .streams = g->streams,
                               .link = g->link};
}

static inline void group_share(const struct group *g, int n_ranks, struct group_memory *m) {
    struct err e = {0};
    T_OK(comm_shm_create(n_ranks, g->max_bytes, &m->fd, &e), &e);
    if (!g->threads) return;
    m->bytes = comm_shm_bytes(n_ranks, g->max_bytes);
    m->memory = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
    assert_true(m->memory != MAP_FAILED);
}

static inline void group_init(struct group *g, const char *backend, int n_ranks, bool threads, size_t max_bytes, int spin_us) {
    *g = (struct group){
        .backend = backend, .n_ranks = n_ranks, .threads = threads, .max_bytes = max_bytes, .spin_us = spin_us, .memory = {{.fd = -1}, {.fd = -1}}};
    g->boot = mmap(NULL, sizeof *g->boot, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(g->boot != MAP_FAILED);
    g->boot->n_ranks = n_ranks;
    if (strcmp(backend, "shm/boot") == 0) g->backend = "shm";
    if (strcmp(backend, "mpi") == 0) {
        g->pmi = calloc(1, sizeof *g->pmi);
        assert_non_null(g->pmi);
        t_pmi_start(g->pmi, n_ranks, NULL);
    }
    if (strcmp(backend, "shm/link") == 0 || strcmp(backend, "tcp/link") == 0) {
        static const struct comm_link link = {.bits_per_s = 100e9, .delay_ns = 3000, .jitter_ns = 1000};
        g->backend = *backend == 's' ? "shm" : "tcp";
        g->link = &link;
    }
    if (strcmp(backend, "tcp/streams") == 0) {
        g->backend = "tcp";
        g->streams = "127.0.0.1,127.0.0.2,127.0.0.1%lo";
        g->divides = true;
    }
    if (strcmp(backend, "ucx/rendezvous") == 0) {
        g->backend = "ucx";
        g->address = "127.0.0.1";
        g->divides = true;
    }
    if (strcmp(g->backend, "shm") == 0 && strcmp(backend, "shm/boot") != 0) group_share(g, n_ranks, &g->memory[0]);
    if (strncmp(backend, "shm+", 4) != 0) return;
    g->n_first = (n_ranks + 1) / 2;
    group_share(g, g->n_first, &g->memory[0]);
    if (n_ranks > 1) group_share(g, n_ranks - g->n_first, &g->memory[1]);
}

static inline void group_release(struct group *g) {
    for (int i = 0; i < 2; i++) {
        if (g->memory[i].memory) munmap(g->memory[i].memory, g->memory[i].bytes);
        if (g->memory[i].fd >= 0) close(g->memory[i].fd);
    }
    if (g->pmi) t_pmi_stop(g->pmi);
    free(g->pmi);
    munmap(g->boot, sizeof *g->boot);
}

struct group_member {
    const struct group *group;
    int rank;
    group_fn fn;
    void *arg;
    bool ok;
};

static inline bool group_run_rank(const struct group_member *m) {
    struct comm_boot boot;
    struct group_boot_end end;
    struct comm_setup setup = group_setup(m->group, m->rank, &boot, &end);
    struct comm *c = NULL;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    if (m->group->divides) CHECK(comm_divide(c, 4000));
    bool ok = m->fn(&c, m->arg);
    if (!ok)
        fprintf(stderr, "  in rank %d of %d %s over %s\n", m->rank, m->group->n_ranks, m->group->threads ? "threads" : "processes",
                m->group->backend);
    comm_close(c);
    return ok;
}

static inline void *group_thread(void *arg) {
    struct group_member *m = arg;
    m->ok = group_run_rank(m);
    return NULL;
}

static inline pid_t group_fork(const struct group *g, int rank, group_fn fn, void *arg) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct group_member m = {.group = g, .rank = rank, .fn = fn, .arg = arg};
        bool ok = group_run_rank(&m);
        fflush(NULL);
        _exit(ok ? 0 : 1);
    }
    return pid;
}

/* Runs fn on every rank of a fresh group; fails the test where one says false. */
static inline void group_run(const char *backend, int n_ranks, bool threads, size_t max_bytes, int spin_us, group_fn fn, void *arg) {
    struct group g;
    group_init(&g, backend, n_ranks, threads, max_bytes, spin_us);
    bool ok = true;
    if (threads) {
        struct group_member members[COMM_MAX_RANKS];
        pthread_t ids[COMM_MAX_RANKS];
        for (int r = 0; r < n_ranks; r++) {
            members[r] = (struct group_member){.group = &g, .rank = r, .fn = fn, .arg = arg};
            assert_int_equal(pthread_create(&ids[r], NULL, group_thread, &members[r]), 0);
        }
        for (int r = 0; r < n_ranks; r++) {
            pthread_join(ids[r], NULL);
            ok = ok && members[r].ok;
        }
    } else {
        pid_t pids[COMM_MAX_RANKS];
        for (int r = 0; r < n_ranks; r++) pids[r] = group_fork(&g, r, fn, arg);
        for (int r = 0; r < n_ranks; r++) {
            int status = 1;
            ok = waitpid(pids[r], &status, 0) == pids[r] && status == 0 && ok;
        }
    }
    group_release(&g);
    assert_true(ok);
}

#endif
