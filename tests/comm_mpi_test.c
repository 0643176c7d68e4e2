/* MPICH under our PMI server and under Hydra: what the conformance suite does not ask of every backend. test-deadline: 180 */
#include "comm/mpi.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "comm/boot_pmi.h"
#include "tests/t_comm.h"

enum { MAX_RANKS = 5, N_SIGNALS = 65, SET_BY_LIBC = 0x04000000 /* SA_RESTORER */ };

static char **program; /* argv */

static bool has_mpi(void) { return comm_mpi_version() != NULL; }
#define NEEDS_MPI()                                                                                                                                  \
    if (!has_mpi()) {                                                                                                                                \
        printf("no MPICH in this build or on this machine\n");                                                                                       \
        skip();                                                                                                                                      \
    }

/* ---- ranks that open by themselves --------------------------------------------------------------------------------------------------------------------- */

typedef bool (*rank_fn)(int rank, int n_ranks, void *arg);

/* Forked ranks with a PMI server; fn opens what it wants. */
static void run_ranks(int n_ranks, const int *hosts, rank_fn fn, void *arg) {
    struct t_pmi pmi;
    pid_t pids[MAX_RANKS];
    bool ok = true;
    t_pmi_start(&pmi, n_ranks, hosts);
    for (int r = 0; r < n_ranks; r++) {
        pids[r] = fork();
        assert_true(pids[r] >= 0);
        if (pids[r]) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        t_pmi_enter(&pmi, r);
        bool good = fn(r, n_ranks, arg);
        if (!good) fprintf(stderr, "  in rank %d of %d\n", r, n_ranks);
        fflush(NULL);
        _exit(good ? 0 : 1);
    }
    for (int r = 0; r < n_ranks; r++) {
        int status = 1;
        ok = waitpid(pids[r], &status, 0) == pids[r] && status == 0 && ok;
    }
    t_pmi_stop(&pmi);
    assert_true(ok);
}

static struct comm_setup setup_for(const char *backend, int rank, int n_ranks, size_t max_bytes, const struct comm_boot *boot) {
    return (struct comm_setup){
        .backend = backend, .rank = rank, .n_ranks = n_ranks, .max_bytes = max_bytes, .memory_fd = -1, .boot = boot, .deadline_ns = soon()};
}

/* Some exchanges whose bytes tell rank and number. */
static bool exchange(struct comm *c, int n_rounds, size_t bytes) {
    struct err e = {0};
    size_t recv_bytes[COMM_MAX_RANKS];
    const void *views[COMM_MAX_RANKS];
    struct comm_header headers[COMM_MAX_RANKS];
    for (int i = 0; i < n_rounds; i++) {
        for (int r = 0; r < comm_n_ranks(c); r++) recv_bytes[r] = bytes + (size_t)r;
        memset(comm_send_buffer(c), comm_rank(c) * 16 + i % 16, recv_bytes[comm_rank(c)]);
        const struct comm_header header = {.step = (uint64_t)i, .token_hash = (uint32_t)comm_rank(c)};
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, headers, &e), &e);
        for (int r = 0; r < comm_n_ranks(c); r++) {
            const unsigned char *p = views[r];
            CHECK((uintptr_t)p % 64 == 0 && headers[r].step == (uint64_t)i && headers[r].token_hash == (uint32_t)r);
            for (size_t k = 0; k < recv_bytes[r]; k++) CHECK(p[k] == (unsigned char)(r * 16 + i % 16));
        }
    }
    return true;
}

/* ---- a good guest ------------------------------------------------------------------------------------------------------------------------------------------ */

static bool same_handlers(struct sigaction *before, const char *when) {
    for (int s = 1; s < N_SIGNALS; s++) {
        struct sigaction now;
        if (sigaction(s, NULL, &now) != 0) continue;
        if (now.sa_handler == before[s].sa_handler && ((now.sa_flags ^ before[s].sa_flags) & ~SET_BY_LIBC) == 0) continue;
        fprintf(stderr, "signal %d has another handler %s\n", s, when);
        return false;
    }
    return true;
}

static bool rank_is_a_good_guest(int rank, int n_ranks, void *arg) {
    (void)arg;
    struct sigaction before[N_SIGNALS] = {0};
    struct err e = {0};
    struct comm *c = NULL;
    struct stat written;
    int out = memfd_create("stdout", 0);
    CHECK(out >= 0 && dup2(out, STDOUT_FILENO) == STDOUT_FILENO);
    for (int s = 1; s < N_SIGNALS; s++) sigaction(s, NULL, &before[s]);
    const struct comm_setup setup = setup_for("mpi", rank, n_ranks, 4096, NULL);
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    CHECK(same_handlers(before, "after opening"));
    CHECK(exchange(c, 50, 4000));
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    uint64_t begun = now_ns();
    comm_close(c);
    CHECK(now_ns() - begun < 900 * BASE_NS_PER_MS); /* nobody was waited for in vain */
    CHECK(same_handlers(before, "after closing"));
    fflush(stdout);
    CHECK(fstat(out, &written) == 0 && written.st_size == 0);
    /* MPI is over in this process. */
    CHECK_ST(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e);
    CHECK(strstr(e.text, "it can be started once"));
    return true;
}

static void ranks_start_exchange_and_end(void **state) {
    (void)state;
    NEEDS_MPI();
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) run_ranks(n_ranks, NULL, rank_is_a_good_guest, NULL);
}

#ifdef __SANITIZE_ADDRESS__
static int is_mpichs_exit; /* what MPICH leaves behind is not our leak */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) { return is_mpichs_exit; }
#define MPICH_WILL_LEAK() (is_mpichs_exit = 1)
#else
#define MPICH_WILL_LEAK() ((void)0)
#endif

/* exit() runs what MPICH and UCX have left behind, after an end in peace. */
static bool rank_leaves_by_exit(int rank, int n_ranks, void *arg) {
    struct err e = {0};
    struct comm *c = NULL;
    const struct comm_setup setup = setup_for("mpi", rank, n_ranks, 64, NULL);
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    CHECK(exchange(c, 3, 8));
    comm_close(c);
    signal(SIGALRM, SIG_DFL);
    alarm(10);
    (void)arg;
    MPICH_WILL_LEAK();
    exit(0);
}
static void exit_does_not_hang(void **state) {
    (void)state;
    NEEDS_MPI();
    run_ranks(2, NULL, rank_leaves_by_exit, NULL);
}

/* Two nodes for MPICH: it must not share memory then. */
static void ranks_on_two_hosts(void **state) {
    (void)state;
    NEEDS_MPI();
    const int hosts[] = {0, 0, 1};
    run_ranks(3, hosts, rank_is_a_good_guest, NULL);
}

/* ---- bootstraps ---------------------------------------------------------------------------------------------------------------------------------------------- */

static bool check_boot(const struct comm_boot *boot, int rank, int n_ranks) {
    static unsigned char all[COMM_MAX_RANKS * COMM_BOOT_MAX_BYTES];
    struct err e = {0};
    static const size_t sizes[] = {1, 0, 7, 399, 400, 401, 1000, COMM_BOOT_MAX_BYTES};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char mine[COMM_BOOT_MAX_BYTES];
        for (size_t k = 0; k < sizes[i]; k++) mine[k] = (unsigned char)((size_t)rank * 37 + k * 11 + i);
        memset(all, 0xee, sizeof all);
        CHECK_ST(ST_OK, boot->allgather(boot->context, mine, sizes[i], all, soon(), &e), &e);
        for (int r = 0; r < n_ranks; r++)
            for (size_t k = 0; k < sizes[i]; k++) CHECK(all[(size_t)r * sizes[i] + k] == (unsigned char)((size_t)r * 37 + k * 11 + i));
    }
    return true;
}

static bool rank_boots_by_pmi(int rank, int n_ranks, void *arg) {
    const char *backend = arg;
    struct err e = {0};
    struct comm_boot boot = {0};
    struct comm *c = NULL;
    int told_rank = -1, told_n = -1;
    CHECK_ST(ST_OK, comm_boot_pmi_open_env(soon(), &boot, &told_rank, &told_n, &e), &e);
    CHECK(told_rank == rank && told_n == n_ranks);
    CHECK(check_boot(&boot, rank, n_ranks));
    const struct comm_setup setup = setup_for(backend, rank, n_ranks, 4096, &boot);
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    /* Behind MPI_Init the connection still serves us. */
    CHECK(check_boot(&boot, rank, n_ranks));
    CHECK(exchange(c, 20, 4000));
    bool is_mpi = strcmp(backend, "mpi") == 0;
    if (is_mpi) comm_boot_pmi_close(&boot, COMM_BOOT_PMI_LEAVE);
    comm_close(c);
    if (!is_mpi) comm_boot_pmi_close(&boot, COMM_BOOT_PMI_FINALIZE);
    return true;
}
static void pmi_carries_the_bootstrap(void **state) {
    (void)state;
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) run_ranks(n_ranks, NULL, rank_boots_by_pmi, (void *)"tcp");
    NEEDS_MPI();
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) run_ranks(n_ranks, NULL, rank_boots_by_pmi, (void *)"mpi");
}

static bool rank_boots_by_mpi(int rank, int n_ranks, void *arg) {
    const char *backend = arg;
    struct err e = {0};
    struct comm_boot boot = {0};
    struct comm *c = NULL;
    int told_rank = -1, told_n = -1;
    CHECK_ST(ST_OK, comm_boot_mpi_open(soon(), &boot, &told_rank, &told_n, &e), &e);
    CHECK(told_rank == rank && told_n == n_ranks);
    CHECK(check_boot(&boot, rank, n_ranks));
    const struct comm_setup setup = setup_for(backend, rank, n_ranks, 4096, &boot);
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    CHECK(exchange(c, 20, 4000));
    comm_close(c);
    CHECK(check_boot(&boot, rank, n_ranks));
    comm_boot_mpi_close(&boot, true);
    return true;
}
static void mpi_carries_the_bootstrap(void **state) {
    (void)state;
    NEEDS_MPI();
    for (int n_ranks = 1; n_ranks <= 3; n_ranks++) {
        run_ranks(n_ranks, NULL, rank_boots_by_mpi, (void *)"tcp");
        run_ranks(n_ranks, NULL, rank_boots_by_mpi, (void *)"mpi");
    }
}

static bool rank_meets_one_without_mpi(int rank, int n_ranks, void *arg) {
    (void)arg;
    struct err e = {0};
    struct comm_boot boot = {0};
    struct comm *c = NULL;
    int told_rank, told_n;
    CHECK_ST(ST_OK, comm_boot_pmi_open_env(soon(), &boot, &told_rank, &told_n, &e), &e);
    if (rank == 1) {
        /* What comm_open does for a backend that gave up before its round. */
        unsigned char zero[COMM_BOOT_MAX_BYTES] = {0};
        static unsigned char all[MAX_RANKS * COMM_BOOT_MAX_BYTES];
        CHECK_ST(ST_OK, boot.allgather(boot.context, zero, 192, all, soon(), &e), &e);
    } else {
        const struct comm_setup setup = setup_for("mpi", rank, n_ranks, 4096, &boot);
        CHECK_ST(ST_PEER_LOST, comm_open(&setup, &c, &e), &e);
        CHECK(strstr(e.text, "rank 1 gave up before it opened"));
    }
    comm_boot_pmi_close(&boot, COMM_BOOT_PMI_FINALIZE);
    return true;
}
static void nobody_waits_inside_mpi_for_one_that_cannot(void **state) {
    (void)state;
    NEEDS_MPI();
    run_ranks(3, NULL, rank_meets_one_without_mpi, NULL);
}

static bool rank_opens_late(int rank, int n_ranks, void *arg) {
    (void)arg;
    struct err e = {0};
    struct comm *c = NULL;
    struct comm_setup setup = setup_for("mpi", rank, n_ranks, 64, NULL);
    if (rank == 1) {
        pause_us(1500000);
        return true;
    }
    setup.deadline_ns = in_ms(400);
    uint64_t begun = now_ns();
    CHECK_ST(ST_TIMEOUT, comm_open(&setup, &c, &e), &e);
    CHECK(strstr(e.text, "MPI_Init did not return in time") && now_ns() - begun < BASE_NS_PER_S);
    CHECK_ST(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e);
    return true;
}
static void opening_has_a_deadline(void **state) {
    (void)state;
    NEEDS_MPI();
    run_ranks(2, NULL, rank_opens_late, NULL);
}

static void a_server_that_lies_or_is_silent(void **state) {
    (void)state;
    static const struct {
        const char *answers;
        enum st want;
        const char *part;
    } cases[] = {
        {"", ST_TIMEOUT, "no answer to \"cmd=init\""},
        {"cmd=maxes\n", ST_MISMATCH, "is no answer to \"cmd=init\""},
        {"cmd=response_to_init rc=-1 msg=go_away\n", ST_INVALID, "refused \"cmd=init\": go_away"},
        {"cmd=response_to_init rc=0\ncmd=maxes vallen_max=-5\n", ST_UNSUPPORTED, "values of at most -5"},
        {"cmd=response_to_init rc=0\ncmd=maxes\n", ST_UNSUPPORTED, "values of at most 0"},
        {"cmd=response_to_init rc=0\ncmd=maxes vallen_max=1024\ncmd=my_kvsname\n", ST_MISMATCH, "no kvsname"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int ends[2];
        struct comm_boot boot;
        struct err e = {0};
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
        size_t n = strlen(cases[i].answers);
        assert_int_equal(write(ends[0], cases[i].answers, n), n);
        t_expect_err_contains(cases[i].want, comm_boot_pmi_open(ends[1], 0, 1, in_ms(50), &boot, &e), &e, cases[i].part);
        close(ends[0]);
        if (i == 0) t_expect_err_contains(ST_PEER_LOST, comm_boot_pmi_open(ends[1], 0, 1, in_ms(50), &boot, &e), &e, "the server is gone");
        close(ends[1]);
    }
    static char line[4096];
    int ends[2];
    struct comm_boot boot;
    struct err e = {0};
    memset(line, 'x', sizeof line);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    assert_int_equal(write(ends[0], line, sizeof line), sizeof line);
    t_expect_err_contains(ST_MISMATCH, comm_boot_pmi_open(ends[1], 0, 1, in_ms(50), &boot, &e), &e, "an answer of more than");
    t_expect_err_contains(ST_INVALID, comm_boot_pmi_open(ends[1], 3, 2, in_ms(50), &boot, &e), &e, "rank 3 of 2");
    close(ends[0]);
    close(ends[1]);
    int rank, n_ranks;
    setenv("PMI_FD", "7x", 1);
    t_expect_err_contains(ST_INVALID, comm_boot_pmi_open_env(in_ms(50), &boot, &rank, &n_ranks, &e), &e, "do not go together");
    unsetenv("PMI_FD");
    t_expect_err_contains(ST_NOT_FOUND, comm_boot_pmi_open_env(in_ms(50), &boot, &rank, &n_ranks, &e), &e, "neither PMI_FD nor PMI_PORT");
    setenv("PMI_PORT", "nowhere", 1);
    t_expect_err_contains(ST_INVALID, comm_boot_pmi_open_env(in_ms(50), &boot, &rank, &n_ranks, &e), &e, "PMI_ID");
    setenv("PMI_ID", "0", 1);
    t_expect_err_contains(ST_INVALID, comm_boot_pmi_open_env(in_ms(50), &boot, &rank, &n_ranks, &e), &e, "is not host:port");
    setenv("PMI_PORT", "127.0.0.1:1", 1);
    t_expect_err_contains(ST_IO, comm_boot_pmi_open_env(in_ms(50), &boot, &rank, &n_ranks, &e), &e, "127.0.0.1:1");
    unsetenv("PMI_PORT");
    unsetenv("PMI_ID");
}

/* ---- probe, groups, benchmarks ---------------------------------------------------------------------------------------------------------------------------- */

static void probe_says_why(void **state) {
    (void)state;
    NEEDS_MPI();
    struct err e = {0};
    struct comm *c = NULL;
    struct comm_setup setup = setup_for("mpi", 0, 2, 64, NULL);
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "mpi: nobody serves PMI here");
    setup.memory = &setup;
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "mpi: for processes");
    setup.memory = NULL;
    setup.max_bytes = (size_t)1 << 31;
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "mpi: for messages below 2 GiB");
    assert_non_null(strstr(comm_mpi_version(), "MPICH "));
    printf("%s\n", comm_mpi_version());
}

static bool rank_splits(int rank, int n_ranks, void *arg) {
    (void)arg;
    struct err e = {0};
    struct comm *all = NULL, *half = NULL, *none = NULL, *again = NULL;
    const struct comm_setup setup = setup_for("mpi", rank, n_ranks, 4096, NULL);
    CHECK_ST(ST_OK, comm_open(&setup, &all, &e), &e);
    CHECK_ST(ST_OK, comm_split(all, rank % 2, 4096, soon(), &half, &e), &e);
    CHECK(half && comm_n_ranks(half) == (n_ranks + 1 - rank % 2) / 2 && comm_rank(half) == rank / 2);
    CHECK(exchange(half, 20, 2000));
    CHECK_ST(ST_OK, comm_split(all, rank == 0 ? -1 : 0, 64, soon(), &none, &e), &e);
    CHECK((none == NULL) == (rank == 0));
    CHECK(exchange(all, 20, 2000));
    if (none) CHECK(exchange(none, 5, 50));
    CHECK_ST(ST_OK, comm_split(half, 0, 64, soon(), &again, &e), &e);
    CHECK(exchange(again, 5, 50));
    comm_close(again);
    comm_close(none);
    comm_close(half);
    CHECK(exchange(all, 5, 50));
    comm_close(all);
    return true;
}
static void groups_are_communicators(void **state) {
    (void)state;
    NEEDS_MPI();
    run_ranks(4, NULL, rank_splits, NULL);
    run_ranks(5, NULL, rank_splits, NULL);
}

static bool rank_reduces(int rank, int n_ranks, void *arg) {
    (void)arg;
    struct err e = {0};
    struct comm *c = NULL, *other = NULL;
    const struct comm_setup setup = setup_for("mpi", rank, n_ranks, 4096, NULL), alone = setup_for("self", 0, 1, 64, NULL);
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    float in[1000], out[1000];
    for (int i = 0; i < 1000; i++) in[i] = (float)(i * (rank + 1));
    CHECK_ST(ST_OK, comm_mpi_allreduce(c, in, out, 1000, &e), &e);
    for (int i = 0; i < 1000; i++) CHECK(out[i] == (float)(i * n_ranks * (n_ranks + 1) / 2));
    CHECK_ST(ST_OK, comm_open(&alone, &other, &e), &e);
    CHECK_ST(ST_INVALID, comm_mpi_allreduce(other, in, out, 1000, &e), &e);
    comm_close(other);
    comm_close(c);
    return true;
}
static void allreduce_for_benchmarks(void **state) {
    (void)state;
    NEEDS_MPI();
    run_ranks(3, NULL, rank_reduces, NULL);
}

/* ---- death ----------------------------------------------------------------------------------------------------------------------------------------------------- */

static bool rank_mourns(int rank, int n_ranks, void *arg) {
    (void)arg;
    struct err e = {0};
    struct comm *c = NULL;
    const struct comm_setup setup = setup_for("mpi", rank, n_ranks, 64, NULL);
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    CHECK(exchange(c, 3, 8));
    if (rank == n_ranks - 1) _exit(0); /* without a word */
    CHECK_ST(ST_TIMEOUT, comm_barrier(c, in_ms(300), &e), &e);
    CHECK(strstr(e.text, "rank 2 did not answer"));
    uint64_t begun = now_ns();
    comm_close(c); /* bounded, too */
    CHECK(now_ns() - begun < 1500 * BASE_NS_PER_MS);
    return true;
}
static void a_dead_peer_is_a_deadline(void **state) {
    (void)state;
    NEEDS_MPI();
    run_ranks(3, NULL, rank_mourns, NULL);
}

/* Two ranks that disagree about the size. */
static bool rank_disagrees(int rank, int n_ranks, void *arg) {
    (void)arg;
    struct err e = {0};
    struct comm *c = NULL;
    const struct comm_setup setup = setup_for("mpi", rank, n_ranks, 4096, NULL);
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    const size_t recv_bytes[2] = {8, rank == 0 ? 16 : 24};
    const struct comm_header header = {.step = 5};
    const void *views[2];
    if (rank == 0) {
        CHECK_ST(ST_MISMATCH, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, NULL, &e), &e);
        CHECK(strstr(e.text, "rank 1 sent 24 bytes where 16 are due: step 5, exchange 1"));
    } else {
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, NULL, &e), &e);
        CHECK_ST(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e);
        CHECK(strstr(e.text, "rank 0 closed its end"));
    }
    comm_close(c);
    return true;
}
static void a_wrong_size_is_told(void **state) {
    (void)state;
    NEEDS_MPI();
    run_ranks(2, NULL, rank_disagrees, NULL);
}

/* ---- under somebody else's mpiexec --------------------------------------------------------------------------------------------------------------------------- */

static int place_of(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : -1;
}

static int as_hydras_rank(const char *how) {
    int rank = place_of("PMI_RANK"), n_ranks = place_of("PMI_SIZE");
    bool ok = false;
    MPICH_WILL_LEAK();
    if (strncmp(how, "port-", 5) == 0) { /* PMI_PORT tells the rank as PMI_ID */
        rank = place_of("PMI_ID");
        n_ranks = 2;
        how += 5;
    }
    if (strcmp(how, "pmi-tcp") == 0) ok = rank_boots_by_pmi(rank, n_ranks, (void *)"tcp");
    if (strcmp(how, "pmi-mpi") == 0) ok = rank_boots_by_pmi(rank, n_ranks, (void *)"mpi");
    if (strcmp(how, "mpi-tcp") == 0) ok = rank_boots_by_mpi(rank, n_ranks, (void *)"tcp");
    if (strcmp(how, "mpi-mpi") == 0) ok = rank_boots_by_mpi(rank, n_ranks, (void *)"mpi");
    return ok ? 0 : 1;
}

static int run_hydra(const char *option, const char *value, const char *how) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        const char *argv[] = {"mpiexec.hydra", option, value, "-n", "2", program[0], "--hydra", how, NULL};
        dup2(STDERR_FILENO, STDOUT_FILENO);
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        dup2(null, STDIN_FILENO);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        alarm(60);
        execvp(argv[0], (char **)argv);
        _exit(127);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void hydra_starts_our_ranks(void **state) {
    (void)state;
    NEEDS_MPI();
    if (run_hydra("-genv", "A=B", "nothing") == 127) {
        printf("no mpiexec.hydra on this machine\n");
        skip();
    }
    static const char *const ways[] = {"pmi-tcp", "pmi-mpi", "mpi-tcp", "mpi-mpi"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        int status = run_hydra("-launcher", "fork", ways[i]);
        if (status) fail_msg("%s: status %d", ways[i], status);
    }
    for (size_t i = 0; i < 2; i++) {
        char how[32];
        snprintf(how, sizeof how, "port-%s", ways[i]);
        int status = run_hydra("-pmi-port", "-prepend-rank", how);
        if (status) fail_msg("%s: status %d", how, status);
    }
}

int main(int argc, char **argv) {
    program = argv;
    if (argc == 3 && strcmp(argv[1], "--hydra") == 0) return as_hydras_rank(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_start_exchange_and_end),
        cmocka_unit_test(exit_does_not_hang),
        cmocka_unit_test(ranks_on_two_hosts),
        cmocka_unit_test(pmi_carries_the_bootstrap),
        cmocka_unit_test(mpi_carries_the_bootstrap),
        cmocka_unit_test(nobody_waits_inside_mpi_for_one_that_cannot),
        cmocka_unit_test(opening_has_a_deadline),
        cmocka_unit_test(a_server_that_lies_or_is_silent),
        cmocka_unit_test(probe_says_why),
        cmocka_unit_test(groups_are_communicators),
        cmocka_unit_test(allreduce_for_benchmarks),
        cmocka_unit_test(a_dead_peer_is_a_deadline),
        cmocka_unit_test(a_wrong_size_is_told),
        cmocka_unit_test(hydra_starts_our_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
