/* What only shared memory can get wrong: death, corrupt peers, one CPU for all, traces left behind. test-deadline: 120 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <linux/seccomp.h>

#include "tests/t_comm.h"

static void *shared(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    return p;
}

/* ---- death ------------------------------------------------------------------------------------------------------------------------------------------- */

enum { N_MOURNERS = 3, VICTIM = 2 };
enum mourning { IN_EXCHANGE, IN_EVENT, N_MOURNINGS };
struct mourning_place {
    enum mourning how;
    _Atomic int n_waiting;
    _Atomic uint64_t ended_ns[N_MOURNERS];
};

static bool mourn(struct comm **pc, void *arg) {
    struct mourning_place *m = arg;
    struct comm *c = *pc;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    if (comm_rank(c) == VICTIM)
        for (;;) pause();
    atomic_fetch_add(&m->n_waiting, 1);
    char data[8];
    size_t bytes;
    if (m->how == IN_EVENT && comm_rank(c) != 0)
        CHECK_ST(ST_PEER_LOST, comm_event_next(c, data, sizeof data, &bytes, soon(), &e), &e);
    else
        CHECK_ST(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e);
    atomic_store(&m->ended_ns[comm_rank(c)], now_ns());
    CHECK(strstr(e.text, "rank 2 died"));
    if (comm_rank(c) == 0) CHECK_ST(ST_PEER_LOST, comm_event_post(c, data, 1, &e), &e);
    return true;
}

static void a_killed_peer_ends_the_waits(void **state) {
    (void)state;
    struct mourning_place *m = shared(sizeof *m);
    for (int how = 0; how < N_MOURNINGS; how++) {
        for (int spin_us = 0; spin_us <= 50; spin_us += 50) {
            struct group g;
            group_init(&g, "shm", N_MOURNERS, false, 64, spin_us);
            memset(m, 0, sizeof *m);
            m->how = how;
            pid_t pids[N_MOURNERS];
            for (int r = 0; r < N_MOURNERS; r++) pids[r] = group_fork(&g, r, mourn, m);
            while (atomic_load(&m->n_waiting) < N_MOURNERS - 1) pause_us(1000);
            pause_us(120000); /* asleep, and not in the first slice */
            kill(pids[VICTIM], SIGKILL);
            int status;
            assert_int_equal(waitpid(pids[VICTIM], &status, 0), pids[VICTIM]);
            uint64_t told_ns = now_ns();
            struct err e = {0};
            T_OK(comm_shm_mark_dead(g.memory[0].fd, VICTIM, &e), &e);
            T_OK(comm_shm_mark_dead(g.memory[0].fd, VICTIM, &e), &e); /* twice is once */
            for (int r = 0; r < N_MOURNERS - 1; r++) {
                assert_int_equal(waitpid(pids[r], &status, 0), pids[r]);
                assert_int_equal(status, 0);
                uint64_t ended_ns = atomic_load(&m->ended_ns[r]);
                if (ended_ns > told_ns + 100 * BASE_NS_PER_MS) fail_msg("rank %d took %llu us", r, (unsigned long long)((ended_ns - told_ns) / 1000));
            }
            group_release(&g);
        }
    }
    munmap(m, sizeof *m);
}

static void mark_dead_checks_what_it_is_given(void **state) {
    (void)state;
    struct err e = {0};
    int fd;
    T_OK(comm_shm_create(2, 64, &fd, &e), &e);
    t_expect_err_contains(ST_INVALID, comm_shm_mark_dead(fd, 2, &e), &e, "rank 2 of a segment for 2");
    t_expect_err_contains(ST_INVALID, comm_shm_mark_dead(fd, -1, &e), &e, "rank -1");
    close(fd);
    t_expect_err_contains(ST_IO, comm_shm_mark_dead(fd, 0, &e), &e, "descriptor");
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    t_expect_err_contains(ST_INVALID, comm_shm_mark_dead(fd, 0, &e), &e, "no segment of ours");
    close(fd);
}

/* ---- setups that do not fit ---------------------------------------------------------------------------------------------------------------------------- */

static void open_says_what_does_not_fit(void **state) {
    (void)state;
    struct err e = {0};
    struct comm *c = NULL, *other = NULL;
    struct comm_setup setup = {.rank = 1, .n_ranks = 2, .max_bytes = 4096, .memory_fd = -1};
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e,
                          "no backend fits (self: for one rank, not 2; shm: no shared segment was given");
    setup.backend = "pigeon";
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "pigeon");
    setup.backend = NULL;
    T_OK(comm_shm_create(2, 4096, &setup.memory_fd, &e), &e);
    setup.rank = 2;
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "rank 2 of 2");
    setup.rank = 1;
    setup.spin_us = 51;
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "51 us");
    setup.spin_us = 0;
    setup.max_bytes = 8192;
    t_expect_err_contains(ST_MISMATCH, comm_open(&setup, &c, &e), &e, "messages of 4096 bytes, rank 1 wants 8192");
    setup.max_bytes = SIZE_MAX;
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, NULL);
    setup.max_bytes = 4096;
    setup.n_ranks = 3;
    t_expect_err_contains(ST_MISMATCH, comm_open(&setup, &c, &e), &e, "for 2 ranks, rank 1 wants 3");
    setup.n_ranks = 65;
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "65 ranks");
    setup.n_ranks = 2;
    T_OK(comm_open(&setup, &c, &e), &e);
    assert_string_equal(comm_query(c)->name, "shm");
    assert_true(comm_query(c)->one_shot);
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &other, &e), &e, "rank 1 was opened before");
    comm_close(c);
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &other, &e), &e, "rank 1 was opened before");
    assert_int_not_equal(ftruncate(setup.memory_fd, 0), 0); /* sealed: nobody can pull the pages away */
    close(setup.memory_fd);

    setup.memory_fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "no segment of ours");
    close(setup.memory_fd);
    setup.memory_fd = memfd_create("other", MFD_CLOEXEC);
    assert_int_equal(ftruncate(setup.memory_fd, 1 << 24), 0);
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "no segment of ours");
    close(setup.memory_fd);
    setup.memory_fd = -1;
    setup.n_ranks = 1;
    setup.rank = 0;
    T_OK(comm_open(&setup, &c, &e), &e);
    assert_string_equal(comm_query(c)->name, "self");
    comm_close(c);
    t_expect_err_contains(ST_INVALID, comm_shm_create(0, 64, &setup.memory_fd, &e), &e, "0 ranks");
    t_expect_err_contains(ST_INVALID, comm_shm_create(2, SIZE_MAX, &setup.memory_fd, &e), &e, NULL);
    assert_true(comm_shm_bytes(65, 64) == 0);
}

/* ---- a segment that the ranks make themselves ------------------------------------------------------------------------------------------------------------- */

/* What a rank does before and at its opening. */
typedef bool (*opening_fn)(struct comm_setup *setup, void *arg);

static void all_open(int n_ranks, opening_fn fn, void *arg) {
    struct group g;
    group_init(&g, "shm/boot", n_ranks, false, 4096, 0);
    pid_t pids[COMM_MAX_RANKS];
    fflush(NULL);
    for (int r = 0; r < n_ranks; r++) {
        pids[r] = fork();
        if (pids[r] == 0) {
            struct comm_boot boot;
            struct group_boot_end end;
            struct comm_setup setup = group_setup(&g, r, &boot, &end);
            bool ok = fn(&setup, arg);
            if (!ok) fprintf(stderr, "  in rank %d of %d\n", r, n_ranks);
            fflush(NULL);
            _exit(ok ? 0 : 1);
        }
    }
    bool ok = true;
    for (int r = 0; r < n_ranks; r++) {
        int status = 1;
        ok = waitpid(pids[r], &status, 0) == pids[r] && status == 0 && ok;
    }
    group_release(&g);
    assert_true(ok);
}

static bool refused(const struct comm_setup *setup, enum st code, const char *want) {
    struct comm *c = NULL;
    struct err e = {0};
    uint64_t begun_ns = now_ns();
    CHECK_ST(code, comm_open(setup, &c, &e), &e);
    if (!strstr(e.text, want)) fprintf(stderr, "%s\n", e.text);
    CHECK(strstr(e.text, want));
    CHECK(now_ns() - begun_ns < 5 * BASE_NS_PER_S && c == NULL);
    return true;
}

static bool without_descriptors(struct comm_setup *setup, void *arg) {
    (void)arg;
    const struct rlimit none = {0};
    if (setup->rank != 0) return refused(setup, ST_PEER_LOST, "shm: rank 0 could not open its end");
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    return refused(setup, ST_IO, "shm: memfd_create: ");
}
static void who_cannot_begin_is_named_at_once(void **state) {
    (void)state;
    all_open(3, without_descriptors, NULL);
}

static bool with_other_sizes(struct comm_setup *setup, void *arg) {
    (void)arg;
    if (setup->rank == 2) setup->max_bytes = 8192;
    return refused(setup, ST_MISMATCH, "shm: rank 0 wants 3 ranks and messages of 4096 bytes, rank 2 3 and 8192");
}
static void other_sizes_are_told_to_all(void **state) {
    (void)state;
    all_open(3, with_other_sizes, NULL);
}

/* The boot of a rank that dies as soon as all know of it. */
static enum st boot_and_die(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    group_boot_allgather(context, mine, bytes, all, deadline_ns, e);
    _exit(0);
}
static bool one_dies_in_between(struct comm_setup *setup, void *arg) {
    (void)arg;
    if (setup->rank == 0) return refused(setup, ST_PEER_LOST, "shm: rank 1 died before all had attached to the segment");
    if (setup->rank == 2) return refused(setup, ST_PEER_LOST, " before all had attached to the segment"); /* rank 0 may have left before it came */
    static struct comm_boot dying = {.allgather = boot_and_die};
    dying.context = setup->boot->context;
    setup->boot = &dying;
    struct comm *c;
    comm_open(setup, &c, NULL);
    return false;
}
static void who_dies_between_boot_and_attaching_is_named(void **state) {
    (void)state;
    for (int i = 0; i < 10; i++) all_open(3, one_dies_in_between, NULL);
}

/* What rank 1 hears of rank 0 leads to a segment of ours, but to another one. */
static enum st boot_misheard(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    enum st code = group_boot_allgather(context, mine, bytes, all, deadline_ns, e);
    ((unsigned char *)all)[8] ^= 1; /* behind the magic number: the token */
    return code;
}
static bool one_mishears(struct comm_setup *setup, void *arg) {
    (void)arg;
    if (setup->rank == 0) return refused(setup, ST_PEER_LOST, "shm: rank 1 died before all had attached to the segment");
    static struct comm_boot misheard = {.allgather = boot_misheard};
    misheard.context = setup->boot->context;
    setup->boot = &misheard;
    return refused(setup, ST_MISMATCH, "shm: this segment is not the one that rank 0 has made");
}
static void another_segment_is_not_taken_for_ours(void **state) {
    (void)state;
    all_open(2, one_mishears, NULL);
}

static bool one_may_not(struct comm_setup *setup, void *arg) {
    (void)arg;
    if (setup->rank == 1) {
        CHECK(setresuid(65534, 65534, 65534) == 0);
        bool ok = refused(setup, ST_IO, "shm: cannot open rank 0's segment, /proc/");
        pause_us(600000); /* who went home at once would be found to be dead */
        return ok;
    }
    if (setup->rank == 2) return refused(setup, ST_PEER_LOST, "shm: rank 0 gave up before all had attached to the segment");
    setup->deadline_ns = in_ms(300);
    return refused(setup, ST_TIMEOUT, "shm: rank 1 did not attach to the segment in time");
}
static void who_may_not_open_it_says_so(void **state) {
    (void)state;
    if (geteuid() != 0) skip();
    all_open(3, one_may_not, NULL);
}

/* Rank 1 in a PID namespace of its own: there, the number of rank 0's process is another process. */
static bool in_a_container(struct comm_setup *setup, void *arg) {
    (void)arg;
    const char *want = "shm: ranks 0 and 1 run in different PID namespaces (containers)";
    if (setup->rank != 1) return refused(setup, ST_UNSUPPORTED, want);
    CHECK(unshare(CLONE_NEWPID) == 0);
    pid_t pid = fork();
    if (pid == 0) _exit(refused(setup, ST_UNSUPPORTED, want) ? 0 : 1);
    int status = 1;
    return waitpid(pid, &status, 0) == pid && status == 0;
}
static void other_containers_are_refused(void **state) {
    (void)state;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) _exit(unshare(CLONE_NEWPID) == 0 ? 0 : 1);
    int status = 1;
    waitpid(pid, &status, 0);
    if (status != 0) skip();
    all_open(3, in_a_container, NULL);
}

/* Nobody marks the dead: the others find out by themselves, in the group and in a group of it. */
static bool mourn_alone(struct comm **pc, void *arg) {
    const bool in_group = *(const bool *)arg;
    struct comm *c = *pc, *group = NULL;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_split(c, 0, 64, soon(), &group, &e), &e);
    struct comm *used = in_group ? group : c;
    CHECK_ST(ST_OK, comm_barrier(used, soon(), &e), &e);
    if (comm_rank(c) == VICTIM) {
        pause_us(150000); /* the others sleep */
        kill(getpid(), SIGKILL);
    }
    uint64_t begun_ns = now_ns();
    CHECK_ST(ST_PEER_LOST, comm_barrier(used, soon(), &e), &e);
    CHECK(strstr(e.text, "rank 2 died"));
    CHECK(now_ns() - begun_ns < 800 * BASE_NS_PER_MS);
    comm_close(group);
    return true;
}
static void the_dead_are_found_without_anybody_to_mark_them(void **state) {
    (void)state;
    for (int in_group = 0; in_group < 2; in_group++) {
        struct group g;
        group_init(&g, in_group ? "shm" : "shm/boot", N_MOURNERS, false, 64, 20);
        pid_t pids[N_MOURNERS];
        for (int r = 0; r < N_MOURNERS; r++) pids[r] = group_fork(&g, r, mourn_alone, &(bool){in_group});
        for (int r = 0; r < N_MOURNERS; r++) {
            int status = -1;
            assert_int_equal(waitpid(pids[r], &status, 0), pids[r]);
            if (r == VICTIM)
                assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
            else
                assert_int_equal(status, 0);
        }
        group_release(&g);
    }
}

/* ---- corrupt peers ------------------------------------------------------------------------------------------------------------------------------------- */

/* The segment between two pages that nobody may touch, both ranks in this thread. */
struct pair {
    unsigned char *around, *memory;
    size_t bytes, around_bytes;
    struct comm *c[2];
};

static void pair_open(struct pair *p, size_t max_bytes) {
    struct err e = {0};
    int fd;
    T_OK(comm_shm_create(2, max_bytes, &fd, &e), &e);
    p->bytes = comm_shm_bytes(2, max_bytes);
    p->around_bytes = p->bytes + 2 * 4096;
    p->around = mmap(NULL, p->around_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p->around != MAP_FAILED);
    p->memory = mmap(p->around + 4096, p->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    assert_true(p->memory != MAP_FAILED);
    close(fd);
    for (int r = 0; r < 2; r++) {
        struct comm_setup setup = {.backend = "shm", .rank = r, .n_ranks = 2, .max_bytes = max_bytes, .memory_fd = -1, .memory = p->memory};
        T_OK(comm_open(&setup, &p->c[r], &e), &e);
    }
}
static void pair_close(struct pair *p) {
    comm_close(p->c[0]);
    comm_close(p->c[1]);
    munmap(p->around, p->around_bytes);
}

static void another_size_is_refused(void **state) {
    (void)state;
    struct pair p;
    struct err e = {0};
    const struct comm_header header = {.step = 9};
    const size_t sent[] = {0, 40};
    const void *views[2];
    pair_open(&p, 64);
    T_OK(comm_allgather_start(p.c[0], NULL, (const size_t[]){0, 48}, &header, &e), &e);
    T_OK(comm_allgather_start(p.c[1], NULL, sent, &header, &e), &e);
    t_expect_err_contains(ST_MISMATCH, comm_allgather_finish(p.c[0], soon(), views, NULL, &e), &e,
                          "rank 1 sent 40 bytes where 48 are due: step 9, exchange 1");
    t_expect_err_contains(ST_MISMATCH, comm_barrier(p.c[0], soon(), &e), &e, "exchange 1");
    pair_close(&p);
}

/* Everything that a peer could write is noise, mostly near what it should be. Any answer but a crash, a wait without end or a view outside will do. */
static void noise_in_the_segment_harms_nobody(void **state) {
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    int n_rounds = t_long() ? 20000 : 600, n_by_code[ST_COUNT] = {0};
    unsigned char *data = t_guard_alloc(COMM_EVENT_MAX_BYTES);
    for (int round = 0; round < n_rounds; round++) {
        struct pair p;
        struct err e = {0};
        const struct comm_header header = {.step = 1};
        const size_t recv_bytes[] = {100, 200};
        const void *views[2];
        pair_open(&p, 4096);
        for (int i = 0; i < 3; i++) {
            T_OK(comm_event_post(p.c[0], data, base_rng_below(&rng, COMM_EVENT_MAX_BYTES), &e), &e);
            for (int r = 0; r < 2; r++) T_OK(comm_allgather_start(p.c[r], NULL, recv_bytes, &header, &e), &e);
            for (int r = 0; r < 2; r++) T_OK(comm_allgather_finish(p.c[r], soon(), views, NULL, &e), &e);
        }
        uint32_t n_words = base_rng_below(&rng, 2) ? 20000 : 20;
        uint32_t span = base_rng_below(&rng, 2) ? 16384 : (uint32_t)p.bytes; /* the head, or all */
        for (uint32_t i = 0; i < n_words; i++) {
            uint64_t word = base_rng_u32(&rng) >> base_rng_below(&rng, 32);
            if (base_rng_below(&rng, 4) == 0) word |= (uint64_t)base_rng_u32(&rng) << 32;
            memcpy(p.memory + base_rng_below(&rng, span / 8) * 8, &word, 8);
        }
        for (int r = 0; r < 2; r++) {
            enum st code = comm_allgather_start(p.c[r], NULL, recv_bytes, &header, &e);
            if (code == ST_OK) code = comm_allgather_finish(p.c[r], base_rng_below(&rng, 4) ? 1 : in_ms(1), views, NULL, &e);
            n_by_code[code]++;
            for (int i = 0; code == ST_OK && i < 2; i++) {
                const unsigned char *view = views[i];
                assert_true(view >= p.memory && view + recv_bytes[i] <= p.memory + p.bytes);
            }
            if (r == 0) n_by_code[comm_event_post(p.c[0], data, 100, &e)]++;
            size_t bytes;
            for (int i = 0; r == 1 && i < 6; i++)
                n_by_code[comm_event_next(p.c[1], data, base_rng_below(&rng, COMM_EVENT_MAX_BYTES) + 1, &bytes, 0, &e)]++;
            t_guard_check(data);
        }
        pair_close(&p);
    }
    t_guard_free(data);
    for (int code = 0; code < ST_COUNT; code++)
        if (n_by_code[code]) printf("  %s: %d\n", st_name(code), n_by_code[code]);
    assert_true(n_by_code[ST_MISMATCH] > 0 && n_by_code[ST_OK] > 0);
}

/* ---- costs --------------------------------------------------------------------------------------------------------------------------------------------- */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || !defined(__GLIBC__)
static void the_small_path_makes_no_system_call(void **state) {
    (void)state;
    skip();
}
static void nor_does_a_small_sum(void **state) {
    (void)state;
    skip();
}
#else
/* Every allocation of the program is counted. */
static _Atomic size_t n_allocations;
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t n, size_t bytes);
extern void *__libc_realloc(void *p, size_t bytes);
void *malloc(size_t bytes) {
    atomic_fetch_add_explicit(&n_allocations, 1, memory_order_relaxed);
    return __libc_malloc(bytes);
}
void *calloc(size_t n, size_t bytes) {
    atomic_fetch_add_explicit(&n_allocations, 1, memory_order_relaxed);
    return __libc_calloc(n, bytes);
}
void *realloc(void *p, size_t bytes) {
    atomic_fetch_add_explicit(&n_allocations, 1, memory_order_relaxed);
    return __libc_realloc(p, bytes);
}

/* Both ranks in one thread, so that nobody ever waits; the kernel kills whoever calls it. */
static void the_small_path_makes_no_system_call(void **state) {
    (void)state;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct pair p;
        pair_open(&p, 4096);
        static const size_t recv_bytes[] = {8, 4096};
        const struct comm_header header = {0};
        const void *views[2];
        char data[64] = "";
        size_t bytes, n_before = atomic_load(&n_allocations);
        bool ok = n_before > 0;
        for (int i = 0; i < 10000; i++) {
            if (i == 1) { /* the first exchange maps the peers' pages */
                n_before = atomic_load(&n_allocations);
                if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) _exit(77);
            }
            for (int r = 0; r < 2; r++) ok = comm_allgather_start(p.c[r], NULL, recv_bytes, &header, NULL) == ST_OK && ok;
            for (int r = 0; r < 2; r++) ok = comm_allgather_finish(p.c[r], BASE_NO_DEADLINE, views, NULL, NULL) == ST_OK && ok;
            ok = comm_event_post(p.c[0], data, 64, NULL) == ST_OK && comm_event_next(p.c[1], data, 64, &bytes, 0, NULL) == ST_OK && ok;
        }
        ok = ok && atomic_load(&n_allocations) == n_before;
        syscall(SYS_exit, ok ? 0 : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip();
    assert_int_equal(status, 0);
}

/* An exchange-and-add and a top k wait inside: two threads, and a clock that stands still, so that spinning never ends. */
enum { ADDED = 1, ADDED_WRONG = 2, NO_SECCOMP = 77 };
struct adder {
    struct comm *c;
    float sum;
    _Atomic int outcome;
};
static void add_two(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors) {
    struct adder *a = context;
    a->sum += ((const float *)vectors[0])[0] + ((const float *)vectors[1])[bytes / 4 - 1] + (float)(offset + (size_t)n_vectors);
}
static void *add_in_silence(void *arg) {
    enum { N = 3000 };
    struct adder *a = arg;
    static const uint32_t n_vectors[] = {1, 1};
    static const float send[1024];
    const struct comm_exchange_add x = {.send = send, .vector_bytes = sizeof send, .n_vectors = n_vectors, .add = add_two, .context = a};
    const struct comm_header header = {0};
    const struct comm_candidate mine[] = {{3, comm_rank(a->c)}, {2, 2 + comm_rank(a->c)}};
    struct comm_candidate merged[3];
    size_t n_before = 0;
    int n_merged, outcome = ADDED;
    for (int i = 0; i < N && outcome == ADDED; i++) {
        if (i == 1) { /* the first exchange maps the peers' pages */
            if (comm_barrier(a->c, BASE_NO_DEADLINE, NULL) != ST_OK) outcome = ADDED_WRONG;
            n_before = atomic_load(&n_allocations);
            if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) outcome = NO_SECCOMP;
        }
        if (comm_exchange_and_add(a->c, &x, &header, BASE_NO_DEADLINE, NULL) != ST_OK) outcome = ADDED_WRONG;
        if (comm_top_k(a->c, mine, 2, 3, &header, BASE_NO_DEADLINE, merged, &n_merged, NULL) != ST_OK || n_merged != 3 || merged[2].id != 2)
            outcome = ADDED_WRONG;
    }
    if (outcome == ADDED && (atomic_load(&n_allocations) != n_before || a->sum != 2 * N)) outcome = ADDED_WRONG;
    atomic_store(&a->outcome, outcome);
    for (;;) /* not even the end of a thread goes without the kernel */
        __asm__ volatile("" ::: "memory");
    return NULL;
}
static void nor_does_a_small_sum(void **state) {
    (void)state;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        static struct adder adders[2];
        struct err e = {0};
        struct base_clock_manual still = {.now_ns = 1};
        const struct base_clock clock = base_clock_from_manual(&still);
        int fd;
        if (comm_shm_create(2, 4096, &fd, &e) != ST_OK) _exit(1);
        for (int r = 0; r < 2; r++) {
            const struct comm_setup setup = {
                .backend = "shm", .rank = r, .n_ranks = 2, .max_bytes = 4096, .spin_us = 1, .clock = &clock, .memory_fd = fd};
            if (comm_open(&setup, &adders[r].c, &e) != ST_OK) _exit(1);
        }
        pthread_t threads[2];
        for (int r = 0; r < 2; r++)
            if (pthread_create(&threads[r], NULL, add_in_silence, &adders[r]) != 0) _exit(1);
        uint64_t deadline_ns = soon();
        int outcomes[2] = {0};
        while ((!outcomes[0] || !outcomes[1]) && now_ns() < deadline_ns) {
            pause_us(1000);
            for (int r = 0; r < 2; r++) outcomes[r] = atomic_load(&adders[r].outcome);
        }
        /* A thread that called the kernel is gone without a word: the deadline tells. */
        _exit(outcomes[0] == ADDED && outcomes[1] == ADDED ? 0 : outcomes[0] == NO_SECCOMP ? NO_SECCOMP : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NO_SECCOMP) skip();
    assert_int_equal(status, 0);
}
#endif

static bool pinned(struct comm **pc, void *arg) {
    const cpu_set_t *cpus = arg;
    CHECK(sched_setaffinity(0, sizeof *cpus, cpus) == 0);
    struct err e = {0};
    uint64_t deadline_ns = soon();
    for (int i = 0; i < 3000; i++) {
        if (i % 100 == 0 && comm_rank(*pc) == i / 100 % 4) pause_us(500); /* the others fall asleep */
        CHECK_ST(ST_OK, comm_barrier(*pc, deadline_ns, &e), &e);
    }
    return true;
}

static void four_ranks_on_one_cpu_make_progress(void **state) {
    (void)state;
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
            break;
        }
    uint64_t begun_ns = now_ns();
    group_run("shm", 4, false, 64, 0, pinned, &one);
    group_run("shm", 4, true, 64, 0, pinned, &one); /* each thread binds itself */
    printf("  %.1f us per exchange\n", (double)(now_ns() - begun_ns) / 6000 / 1000);
}

static bool sleepy(struct comm **pc, void *arg) {
    (void)arg;
    struct err e = {0};
    struct timespec before, after;
    if (comm_rank(*pc) == 0) pause_us(400000);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    int64_t cpu_us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    if (cpu_us > 20000) fprintf(stderr, "  %lld us of CPU time in a wait of 400 ms\n", (long long)cpu_us);
    CHECK(cpu_us <= 20000);
    return true;
}

static void who_waits_long_sleeps(void **state) {
    (void)state;
    for (int spin_us = 0; spin_us <= 50; spin_us += 50) group_run("shm", 3, false, 64, spin_us, sleepy, NULL);
}

/* ---- traces -------------------------------------------------------------------------------------------------------------------------------------------- */

static int n_entries(const char *path) {
    DIR *dir = opendir(path);
    int n = 0;
    while (dir && readdir(dir)) n++;
    if (dir) closedir(dir);
    return n;
}

static bool one_barrier(struct comm **pc, void *arg) {
    (void)arg;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    struct comm *group = NULL;
    CHECK_ST(ST_OK, comm_split(*pc, comm_rank(*pc) > 0, 64, soon(), &group, &e), &e);
    CHECK_ST(ST_OK, comm_barrier(group, soon(), &e), &e);
    comm_close(group);
    return true;
}

static int n_maps(void) {
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    int n = 0;
    while (f && fgets(line, sizeof line, f)) n += strstr(line, "memfd:tandem") != NULL;
    if (f) fclose(f);
    return n;
}

static void nothing_is_left(void **state) {
    (void)state;
    int n_fds = n_entries("/proc/self/fd"), n_names = n_entries("/dev/shm");
    for (int i = 0; i < 10; i++) group_run(i < 5 ? "shm" : "shm/boot", 3, i % 2, 5000, 0, one_barrier, NULL);
    struct err e = {0};
    int fd;
    T_OK(comm_shm_create(2, 64, &fd, &e), &e);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(n_entries("/dev/shm"), n_names);
    struct comm *c;
    struct comm_setup setup = {.n_ranks = 2, .max_bytes = 5000, .memory_fd = fd};
    t_expect_err_contains(ST_MISMATCH, comm_open(&setup, &c, &e), &e, NULL);
    close(fd);
    assert_int_equal(n_entries("/proc/self/fd"), n_fds);
    assert_int_equal(n_maps(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_peer_ends_the_waits),
        cmocka_unit_test(mark_dead_checks_what_it_is_given),
        cmocka_unit_test(open_says_what_does_not_fit),
        cmocka_unit_test(who_cannot_begin_is_named_at_once),
        cmocka_unit_test(other_sizes_are_told_to_all),
        cmocka_unit_test(who_dies_between_boot_and_attaching_is_named),
        cmocka_unit_test(another_segment_is_not_taken_for_ours),
        cmocka_unit_test(who_may_not_open_it_says_so),
        cmocka_unit_test(other_containers_are_refused),
        cmocka_unit_test(the_dead_are_found_without_anybody_to_mark_them),
        cmocka_unit_test(another_size_is_refused),
        cmocka_unit_test(noise_in_the_segment_harms_nobody),
        cmocka_unit_test(the_small_path_makes_no_system_call),
        cmocka_unit_test(nor_does_a_small_sum),
        cmocka_unit_test(four_ranks_on_one_cpu_make_progress),
        cmocka_unit_test(who_waits_long_sleeps),
        cmocka_unit_test(nothing_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
