/* What only UCX can get wrong: what it does to a process, packets in any order and from anybody, death, devices. test-deadline: 180 */
#include "comm/ucx.c" /* for its handler; the linker then takes the backend from here */

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <linux/filter.h>

#include "tests/t_comm.h"

#if COMM_HAVE_UCX
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SLOWER = 5 };
#else
enum { SLOWER = 1 };
#endif

static void *shared(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    return p;
}

/* Ranks are forked from a process that never loads UCX, so that each test may have its own settings. */
static const char *const transports[] = {"posix,self", "posix,cma,self", "tcp,self"};
enum { N_TRANSPORTS = sizeof transports / sizeof *transports };

/* ---- devices ------------------------------------------------------------------------------------------------------------------------------------------- */

static void make_directories(const char *path) {
    char part[1024];
    for (size_t i = 1; path[i]; i++) {
        if (path[i] != '/') continue;
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        mkdir(part, 0755);
    }
}
static void put(const char *tree, const char *file, const char *text) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", t_path("%s", tree), file);
    make_directories(path);
    t_write_text(path, text);
}

struct function {
    const char *name, *interface, *adapter, *cage, *rate, *state;
    bool by_gid; /* else by device/net */
};
static void put_function(const char *tree, const struct function *f) {
    char file[256];
#define PUT(text, ...) (snprintf(file, sizeof file, __VA_ARGS__), put(tree, file, text))
    PUT(f->adapter, "class/infiniband/%s/sys_image_guid", f->name);
    PUT(f->rate, "class/infiniband/%s/ports/1/rate", f->name);
    PUT(f->state, "class/infiniband/%s/ports/1/state", f->name);
    if (f->by_gid) {
        PUT("", "class/infiniband/%s/ports/1/gid_attrs/ndevs/0", f->name);
        PUT(f->interface, "class/infiniband/%s/ports/1/gid_attrs/ndevs/3", f->name);
    } else {
        PUT("", "class/infiniband/%s/device/net/%s/mtu", f->name, f->interface);
    }
    PUT(f->cage, "class/net/%s/phys_port_name", f->interface);
#undef PUT
}

#define UP "4: ACTIVE\n"
#define DOWN "1: DOWN\n"
#define FAST "200 Gb/sec (4X HDR)\n"
static void devices_of(const char *tree, const char *interface, bool is_rdma, int n_rails, const char *names) {
    struct ucx_devices found = {.n_rails = 0};
    struct err e = {0};
    T_OK(comm_ucx_devices_of(interface, t_path("%s", tree), &found, &e), &e);
    assert_int_equal(found.is_rdma, is_rdma);
    assert_int_equal(found.n_rails, n_rails);
    if (names) assert_string_equal(found.names, names);
}

static void devices_are_those_of_the_cable(void **state) {
    (void)state;
    /* A DGX Spark with a cable in cage 0. */
    static const struct function spark[] = {
        {"rocep1s0f0", "enp1s0f0np0", "a088:c203:0001:0000\n", "p0\n", FAST, UP, true},
        {"rocep1s0f1", "enp1s0f1np1", "a088:c203:0001:0000\n", "p1\n", "40 Gb/sec (4X QDR)\n", DOWN, true},
        {"roceP2p1s0f0", "enP2p1s0f0np0", "a088:c203:0001:0000\n", "p0\n", FAST, UP, true},
        {"roceP2p1s0f1", "enP2p1s0f1np1", "a088:c203:0001:0000\n", "p1\n", "40 Gb/sec (4X QDR)\n", DOWN, true},
    };
    for (size_t i = 0; i < 4; i++) put_function("spark", &spark[i]);
    put("spark", "class/net/enP7s7/mtu", "1500\n");
    devices_of("spark", "enp1s0f0np0", true, 2, "rocep1s0f0:1,roceP2p1s0f0:1");
    devices_of("spark", "enP2p1s0f0np0", true, 2, "roceP2p1s0f0:1,rocep1s0f0:1"); /* the launcher's choice comes first */
    devices_of("spark", "enP7s7", false, 1, "enP7s7");
    devices_of("spark", "enp1s0f1np1", false, 1, "enp1s0f1np1"); /* down: whatever that is good for, not RDMA */

    /* Two adapters, both with a cage p0: no twins. One of another rate: neither. */
    static const struct function server[] = {
        {"mlx5_0", "eth0", "0001:0000:0000:0001\n", "p0\n", FAST, UP, false},
        {"mlx5_1", "eth1", "0001:0000:0000:0002\n", "p0\n", FAST, UP, false},
        {"mlx5_2", "eth2", "0001:0000:0000:0001\n", "p0\n", "100 Gb/sec (2X HDR)\n", UP, false},
        {"mlx5_3", "eth3", "0001:0000:0000:0003\n", "", FAST, UP, false},
        {"mlx5_4", "eth4", "0001:0000:0000:0003\n", "", FAST, UP, false},
    };
    for (size_t i = 0; i < 5; i++) put_function("server", &server[i]);
    devices_of("server", "eth0", true, 1, "mlx5_0:1");
    devices_of("server", "eth1", true, 1, "mlx5_1:1");
    devices_of("server", "eth3", true, 1, "mlx5_3:1"); /* nobody says which cage */
    devices_of("nowhere", "eth0", false, 1, "eth0");

    struct ucx_devices found;
    struct err e = {0};
    T_OK(comm_ucx_devices(NULL, "/sys", &found, &e), &e);
    assert_string_equal(found.names, "lo");
    assert_false(found.is_v6);
    t_expect_err_contains(ST_INVALID, comm_ucx_devices("spark-1", "/sys", &found, &e), &e, "spark-1 is no numeric address");
    t_expect_err_contains(ST_NOT_FOUND, comm_ucx_devices("192.0.2.77", "/sys", &found, &e), &e, "no network interface has the address 192.0.2.77");
}

/* ---- probing ------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st no_boot(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    (void)context, (void)mine, (void)bytes, (void)all, (void)deadline_ns;
    return err_set(e, ST_IO, "nobody is there");
}

static void probing_loads_nothing_and_says_why_not(void **state) {
    (void)state;
    const struct comm_boot boot = {no_boot, NULL};
    struct comm_setup setup = {.backend = "ucx", .n_ranks = 2, .memory_fd = -1, .boot = &boot};
    struct err e = {0};
    struct comm *c;
    setenv("TANDEM_UCX", "/nonexistent/libucp.so.0", 1);
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "/nonexistent/libucp.so.0 is not there");
    setenv("TANDEM_UCX", "libsurelynot.so.0", 1);
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "libsurelynot.so.0 is not there");
    unsetenv("TANDEM_UCX");
    T_OK(comm_ucx_backend.probe(&setup, &e), &e);
    setup.boot = NULL;
    t_expect_err_contains(ST_UNSUPPORTED, comm_ucx_backend.probe(&setup, &e), &e, "find the other ranks");
    setup.boot = &boot;
    setup.backend = NULL;
    enum st code = comm_ucx_backend.probe(&setup, &e); /* loopback is no RDMA device's */
    t_expect_err_contains(ST_UNSUPPORTED, code, &e, "no RDMA device has our address");
    assert_null(dlopen("libucp.so.0", RTLD_LAZY | RTLD_NOLOAD));
}

/* ---- manners ------------------------------------------------------------------------------------------------------------------------------------------- */

struct manners {
    struct group group;
    struct sigaction before[65];
};

static bool some_of_everything(struct comm **pc, void *arg) {
    (void)arg;
    struct err e = {0};
    char data[16];
    size_t bytes;
    for (int i = 0; i < 3; i++) CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    if (comm_rank(*pc) == 0)
        CHECK_ST(ST_OK, comm_event_post(*pc, "event", 5, &e), &e);
    else
        CHECK_ST(ST_OK, comm_event_next(*pc, data, sizeof data, &bytes, soon(), &e), &e);
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    return true;
}

static void handlers(struct sigaction all[65]) {
    memset(all, 0, 65 * sizeof *all);
    for (int i = 1; i <= 64; i++) sigaction(i, NULL, &all[i]);
}
static bool same_handlers(const struct sigaction *a, const struct sigaction *b) {
    for (int i = 1; i <= 64; i++) {
        if (a[i].sa_handler == b[i].sa_handler && a[i].sa_flags == b[i].sa_flags) continue;
        fprintf(stderr, "  signal %d has another handler than before\n", i);
        return false;
    }
    return true;
}

static bool polite(struct comm **pc, void *arg) {
    struct manners *m = arg;
    struct sigaction now[65];
    CHECK(some_of_everything(pc, NULL));
    handlers(now);
    CHECK(same_handlers(now, m->before));
    comm_close(*pc);
    *pc = NULL;
    handlers(now);
    CHECK(same_handlers(now, m->before));
    return true;
}

static void no_signal_handlers_and_nothing_on_stdout(void **state) {
    (void)state;
    const char *path = t_path("stdout");
    fflush(stdout);
    int out = dup(1), file = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    assert_true(out >= 0 && file >= 0);
    struct manners m;
    handlers(m.before);
    setenv("UCX_LOG_LEVEL", "info", 1);           /* talkative, but on stderr */
    setenv("UCX_TANDEM_NO_SUCH_SETTING", "1", 1); /* would be warned about */
    dup2(file, 1);
    struct group g;
    group_init(&g, "ucx", 2, false, 64, 0);
    pid_t pids[2];
    for (int r = 0; r < 2; r++) pids[r] = group_fork(&g, r, polite, &m);
    int status[2] = {-1, -1};
    for (int r = 0; r < 2; r++) waitpid(pids[r], &status[r], 0);
    group_release(&g);
    dup2(out, 1);
    close(out);
    close(file);
    unsetenv("UCX_LOG_LEVEL");
    unsetenv("UCX_TANDEM_NO_SUCH_SETTING");
    assert_int_equal(status[0], 0);
    assert_int_equal(status[1], 0);
    size_t bytes = 1;
    const char *text = t_read_file(path, &bytes);
    if (bytes) fprintf(stderr, "%s", text);
    assert_int_equal(bytes, 0);
}

static int n_entries(const char *path) {
    int n = 0;
    DIR *dir = opendir(path);
    while (dir && readdir(dir)) n++;
    if (dir) closedir(dir);
    return n;
}

static bool open_often(struct comm **pc, void *arg) {
    const struct group *g = arg;
    int rank = comm_rank(*pc), n_fds = 0, n_names = 0;
    for (int i = 0; i < 6; i++) {
        CHECK(some_of_everything(pc, NULL));
        comm_close(*pc);
        *pc = NULL;
        if (i == 1) n_fds = n_entries("/proc/self/fd"), n_names = n_entries("/dev/shm");
        struct comm_boot boot;
        struct group_boot_end end;
        struct comm_setup setup = group_setup(g, rank, &boot, &end);
        struct err e = {0};
        CHECK_ST(ST_OK, comm_open(&setup, pc, &e), &e);
    }
    comm_close(*pc);
    *pc = NULL;
    int n_now = n_entries("/proc/self/fd");
    if (n_now > n_fds) fprintf(stderr, "  %d descriptors, %d before\n", n_now, n_fds);
    CHECK(n_now <= n_fds);
    (void)n_names;
    return true;
}

static void opening_again_leaves_nothing_behind(void **state) {
    (void)state;
    int n_names = n_entries("/dev/shm");
    for (int t = 0; t < N_TRANSPORTS; t++) {
        setenv("UCX_TLS", transports[t], 1);
        struct group g;
        group_init(&g, "ucx", 3, false, 5000, 0);
        pid_t pids[3];
        bool ok = true;
        for (int r = 0; r < 3; r++) pids[r] = group_fork(&g, r, open_often, &g);
        for (int r = 0; r < 3; r++) {
            int status = 1;
            ok = waitpid(pids[r], &status, 0) == pids[r] && status == 0 && ok;
        }
        group_release(&g);
        assert_true(ok);
    }
    unsetenv("UCX_TLS");
    assert_int_equal(n_entries("/dev/shm"), n_names);
}

/* ---- size ---------------------------------------------------------------------------------------------------------------------------------------------- */

enum { LARGE = 8 << 20 };
static bool large(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    const struct comm_header header = {.step = 5};
    for (uint64_t round = 1; round <= 4; round++) {
        const size_t recv_bytes[] = {LARGE, round % 2 ? LARGE - 1 : 100};
        const void *views[2] = {NULL};
        uint64_t *own = comm_send_buffer(c);
        for (size_t i = 0; i < recv_bytes[comm_rank(c)] / 8; i++) own[i] = i * 2 + (uint64_t)comm_rank(c) + round * 0x10001;
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &header, soon(), views, NULL, &e), &e);
        for (uint64_t r = 0; r < 2; r++) {
            const uint64_t *view = views[r];
            for (size_t i = 0; i < recv_bytes[r] / 8; i++) CHECK(view[i] == i * 2 + r + round * 0x10001);
        }
    }
    return true;
}

static void large_messages_arrive_in_pieces_and_by_rendezvous(void **state) {
    (void)state;
    for (int t = 0; t < N_TRANSPORTS; t++) {
        setenv("UCX_TLS", transports[t], 1);
        group_run("ucx", 2, false, LARGE, 20, large, NULL);
        setenv("UCX_RNDV_THRESH", "8192", 1); /* whole messages from registered memory, as over RDMA */
        group_run("ucx", 2, false, LARGE, 20, large, NULL);
        group_run("ucx", 3, false, 64, 0, some_of_everything, NULL);
        unsetenv("UCX_RNDV_THRESH");
    }
    unsetenv("UCX_TLS");
}

/* ---- death --------------------------------------------------------------------------------------------------------------------------------------------- */

enum { N_MOURNERS = 3, VICTIM = 2 };
enum mourning { IN_EXCHANGE, IN_EVENT, N_MOURNINGS };
struct mourning_place {
    enum mourning how;
    _Atomic int n_waiting;
    _Atomic uint64_t ended_ns[N_MOURNERS], closed_ns[N_MOURNERS];
};

static bool mourn(struct comm **pc, void *arg) {
    struct mourning_place *m = arg;
    struct comm *c = *pc;
    struct err e = {0};
    int rank = comm_rank(c);
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    if (rank == VICTIM)
        for (;;) pause();
    atomic_fetch_add(&m->n_waiting, 1);
    char data[8];
    size_t bytes;
    if (m->how == IN_EVENT && rank != 0)
        CHECK_ST(ST_PEER_LOST, comm_event_next(c, data, sizeof data, &bytes, soon(), &e), &e);
    else
        CHECK_ST(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e);
    atomic_store(&m->ended_ns[rank], now_ns());
    if (!strstr(e.text, "rank 2 died")) fprintf(stderr, "%s\n", e.text);
    CHECK(strstr(e.text, "rank 2 died"));
    if (rank == 0) CHECK_ST(ST_PEER_LOST, comm_event_post(c, data, 1, &e), &e);
    comm_close(c);
    *pc = NULL;
    atomic_store(&m->closed_ns[rank], now_ns());
    return true;
}

static void a_killed_peer_ends_the_waits(void **state) {
    (void)state;
    struct mourning_place *m = shared(sizeof *m);
    for (int t = 0; t < N_TRANSPORTS; t++) {
        for (int how = 0; how < N_MOURNINGS; how++) {
            setenv("UCX_TLS", transports[t], 1);
            struct group g;
            group_init(&g, "ucx", N_MOURNERS, false, 64, 0);
            memset(m, 0, sizeof *m);
            m->how = how;
            pid_t pids[N_MOURNERS];
            for (int r = 0; r < N_MOURNERS; r++) pids[r] = group_fork(&g, r, mourn, m);
            uint64_t deadline_ns = soon();
            while (atomic_load(&m->n_waiting) < N_MOURNERS - 1 && now_ns() < deadline_ns) pause_us(1000);
            pause_us(100000);
            uint64_t killed_ns = now_ns();
            kill(pids[VICTIM], SIGKILL);
            bool ok = true;
            for (int r = N_MOURNERS - 1; r >= 0; r--) { /* the victim first: as a zombie it still counts as a process for UCX */
                int status = 1;
                waitpid(pids[r], &status, 0);
                if (r == VICTIM) continue;
                double told_ms = (double)(atomic_load(&m->ended_ns[r]) - killed_ns) / 1e6,
                       closed_ms = (double)(atomic_load(&m->closed_ns[r]) - killed_ns) / 1e6;
                if (status == 0) printf("  %s: rank %d knew after %.1f ms, had closed after %.1f ms\n", transports[t], r, told_ms, closed_ms);
                ok = ok && status == 0 && told_ms < 1000 && closed_ms < 2000;
            }
            group_release(&g);
            assert_true(ok);
        }
    }
    unsetenv("UCX_TLS");
    munmap(m, sizeof *m);
}

/* Who closes does not wait for one that has stopped. */
static bool leave(struct comm **pc, void *arg) {
    struct mourning_place *m = arg;
    struct err e = {0};
    int rank = comm_rank(*pc);
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    if (rank == 1) raise(SIGSTOP);
    if (rank == 1) return true;
    pause_us(100000);
    atomic_store(&m->ended_ns[0], now_ns());
    comm_close(*pc);
    *pc = NULL;
    atomic_store(&m->closed_ns[0], now_ns());
    return true;
}

static void closing_takes_bounded_time(void **state) {
    (void)state;
    struct mourning_place *m = shared(sizeof *m);
    for (int t = 0; t < N_TRANSPORTS; t++) {
        setenv("UCX_TLS", transports[t], 1);
        struct group g;
        group_init(&g, "ucx", 2, false, 64, 0);
        pid_t pids[2];
        for (int r = 0; r < 2; r++) pids[r] = group_fork(&g, r, leave, m);
        int status[2] = {1, 1};
        waitpid(pids[0], &status[0], 0);
        kill(pids[1], SIGCONT);
        waitpid(pids[1], &status[1], 0);
        group_release(&g);
        assert_int_equal(status[0], 0);
        assert_int_equal(status[1], 0);
        double ms = (double)(atomic_load(&m->closed_ns[0]) - atomic_load(&m->ended_ns[0])) / 1e6;
        printf("  %s: closed in %.0f ms beside a stopped rank\n", transports[t], ms);
        assert_true(ms < 1500);
    }
    unsetenv("UCX_TLS");
    munmap(m, sizeof *m);
}

static bool sleepy(struct comm **pc, void *arg) {
    (void)arg;
    struct err e = {0};
    struct timespec before, after;
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    if (comm_rank(*pc) == 0) pause_us(400000);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    int64_t cpu_us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    if (cpu_us > 20000 * SLOWER) fprintf(stderr, "  %lld us of CPU time in a wait of 400 ms\n", (long long)cpu_us);
    CHECK(cpu_us <= 20000 * SLOWER);
    return true;
}

static void who_waits_long_sleeps(void **state) {
    (void)state;
    for (int t = 0; t < N_TRANSPORTS; t++) {
        setenv("UCX_TLS", transports[t], 1);
        for (int spin_us = 0; spin_us <= 50; spin_us += 50) group_run("ucx", 3, false, 64, spin_us, sleepy, NULL);
    }
    unsetenv("UCX_TLS");
}

/* A socket whose other end drops what comes is what a host that was switched off looks like. */
static void a_silent_host_is_seen_in_its_sockets(void **state) {
    (void)state;
    static struct ucx_watch w; /* large */
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&at, n), 0);
    assert_int_equal(listen(listener, 2), 0);
    getsockname(listener, (struct sockaddr *)&at, &n);
    int fds[2][2];
    for (int i = 0; i < 2; i++) {
        if (i == 1) comm_ucx_watch_begin(&w); /* the first is not ours to judge */
        fds[i][0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fds[i][0], (struct sockaddr *)&at, sizeof at), 0);
        fds[i][1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    }
    const char addresses[2][64] = {"192.0.2.1", "127.0.0.1"};
    comm_ucx_watch_find(&w, addresses, 2);
    assert_int_equal(w.n_sockets, 2); /* both ends of the second */
    struct sock_filter drop[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
    const struct sock_fprog program = {.len = 1, .filter = drop};
    for (int i = 0; i < 2; i++) {
        uint64_t begun_ns = now_ns(), deadline_ns = in_ms(i ? 5000 : 2500);
        assert_int_equal(setsockopt(fds[i][1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
        assert_int_equal(send(fds[i][0], "hello", 5, 0), 5);
        const char *silent = NULL;
        while (!(silent = comm_ucx_watch_silent(&w, now_ns())) && now_ns() < deadline_ns) pause_us(20000);
        if (i == 0) assert_null(silent);
        if (i == 0) continue;
        printf("  known after %.2f s\n", (double)(now_ns() - begun_ns) / 1e9);
        assert_non_null(silent);
        assert_string_equal(silent, "127.0.0.1");
        assert_true(now_ns() - begun_ns < 3000 * BASE_NS_PER_MS);
    }
    /* Its number goes to somebody else. */
    close(fds[1][0]);
    assert_true(dup2(fds[0][1], fds[1][0]) >= 0);
    int closed = fds[1][1];
    close(closed);
    assert_null(comm_ucx_watch_silent(&w, now_ns() + 300 * BASE_NS_PER_MS));
    close(fds[0][0]), close(fds[0][1]), close(fds[1][0]), close(listener);
}

/* ---- one address decision -------------------------------------------------------------------------------------------------------------------------------- */

struct addressed {
    struct group group;
    const char *address[2];
};

static bool barrier_with_addresses(const struct addressed *a, int rank) {
    struct comm_boot boot;
    struct group_boot_end end;
    struct comm_setup setup = group_setup(&a->group, rank, &boot, &end);
    setup.address = a->address[rank];
    struct comm *c = NULL;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_open(&setup, &c, &e), &e);
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    comm_close(c);
    return true;
}

/* What UCX says it uses, between two ranks at these addresses. */
static const char *lanes(const char *first, const char *second) {
    struct addressed a = {.address = {first, second}};
    group_init(&a.group, "ucx", 2, false, 64, 0);
    const char *path = t_path("lanes");
    setenv("UCX_LOG_LEVEL", "info", 1);
    pid_t pids[2];
    t_write_text(path, "");
    for (int r = 0; r < 2; r++) {
        fflush(NULL);
        pids[r] = fork();
        if (pids[r] == 0) {
            dup2(open(path, O_WRONLY | O_APPEND), 2);
            _exit(barrier_with_addresses(&a, r) ? 0 : 1);
        }
    }
    int status[2] = {1, 1};
    for (int r = 0; r < 2; r++) waitpid(pids[r], &status[r], 0);
    unsetenv("UCX_LOG_LEVEL");
    group_release(&a.group);
    assert_int_equal(status[0], 0);
    assert_int_equal(status[1], 0);
    return t_read_file(path, NULL);
}

static void another_address_is_another_host(void **state) {
    (void)state;
    const char *same = lanes("127.0.0.1", "127.0.0.1"), *other = lanes("127.0.0.1", NULL);
    assert_non_null(strstr(same, "ep_cfg[0]: am(posix/memory"));
    assert_non_null(strstr(other, "ep_cfg[0]: am(tcp/lo"));
    assert_null(strstr(other, "am(posix"));
}

static void ranks_that_do_not_fit_are_refused(void **state) {
    (void)state;
    struct record *mine = calloc(2, sizeof *mine), *theirs = mine + 1;
    struct err e = {0};
    assert_non_null(mine);
    mine->magic = RECORD_MAGIC;
    mine->major = 1, mine->minor = 13, mine->capacity = 4096, mine->net_bytes = 100, mine->whole_bytes = 200;
    mine->check = base_hash64(mine->addresses, 300, 0);
    *theirs = *mine;
    T_OK(check_record(theirs, mine, 1, &e), &e);
    theirs->minor = 16;
    t_expect_err_contains(ST_MISMATCH, check_record(theirs, mine, 1, &e), &e, "rank 1 has UCX 1.16, we have 1.13");
    theirs->minor = 13, theirs->capacity = 8192;
    t_expect_err_contains(ST_MISMATCH, check_record(theirs, mine, 1, &e), &e, "rank 1 wants messages of 8192 bytes, we want 4096");
    theirs->capacity = 4096, theirs->addresses[99]++;
    t_expect_err_contains(ST_MISMATCH, check_record(theirs, mine, 1, &e), &e, "damaged");
    theirs->whole_bytes = UINT32_MAX;
    t_expect_err_contains(ST_MISMATCH, check_record(theirs, mine, 1, &e), &e, "damaged");
    theirs->magic++;
    t_expect_err_contains(ST_MISMATCH, check_record(theirs, mine, 1, &e), &e, "rank 1 does not open ucx");
    memset(theirs, 0, sizeof *theirs);
    t_expect_err_contains(ST_PEER_LOST, check_record(theirs, mine, 1, &e), &e, "rank 1 could not open");
    free(mine);
}

/* ---- packets in any order ----------------------------------------------------------------------------------------------------------------------------------- */

static unsigned stub_progress(ucp_worker_h worker) {
    (void)worker;
    return 0;
}
static char posted[256]; /* flag and bytes of each, as far as there is room */
static ucs_status_ptr_t stub_send(ucp_ep_h ep, unsigned id, const void *header, size_t header_length, const void *buffer, size_t count,
                                  const ucp_request_param_t *param) {
    (void)ep, (void)id, (void)header, (void)header_length, (void)buffer;
    const char flag = param->flags == UCP_AM_SEND_FLAG_EAGER ? 'e' : param->flags == UCP_AM_SEND_FLAG_RNDV ? 'r' : param->flags == 0 ? 'u' : '?';
    const size_t at = strlen(posted);
    snprintf(posted + at, sizeof posted - at, "%c%zu ", flag, count);
    return NULL;
}
static const char *stub_text(ucs_status_t status) { return status == UCS_OK ? "success" : "failure"; }
static const struct ucx_api stub = {.ucp_worker_progress = stub_progress, .ucp_am_send_nbx = stub_send, .ucs_status_string = stub_text};

/* Rank 1 of three, with nobody on the other side. */
static struct ucx *lonely(size_t max_bytes) {
    struct ucx *s = calloc(1, sizeof *s);
    struct err e = {0};
    assert_non_null(s);
    s->api = &stub;
    s->rank = 1;
    s->n_ranks = 3;
    s->clock = base_clock_real();
    s->event_fd = -1;
    s->eager_bytes = PIECE_BYTES;
    s->rendezvous_from = SIZE_MAX;
    s->key = 0x5eed;
    for (int r = 0; r < 3; r++) s->peers[r].tally = (struct tally){s, r, 0};
    s->peers[1].is_apart = s->peers[1].broken = true;
    s->credit_tally = (struct tally){s, 0, 0};
    T_OK(allocate(s, max_bytes, &e), &e);
    s->comm = (struct comm){.backend = &comm_ucx_backend, .clock = s->clock, .os = comm_os_real(), .rank = 1, .n_ranks = 3, .max_bytes = max_bytes};
    return s;
}
static struct packet from(int rank, enum kind kind, uint64_t sequence, uint64_t bytes, uint64_t offset) {
    return (struct packet){.key = 0x5eed, .kind = (uint16_t)kind, .rank = (uint16_t)rank, .sequence = sequence, .bytes = bytes, .offset = offset};
}
static void deliver(struct ucx *s, const struct packet *p, const void *data, size_t length) {
    static const ucp_am_recv_param_t eager = {.recv_attr = 0};
    char copy[4096]; /* on an odd address, as it may be */
    memcpy(copy + 1, data, length);
    assert_int_equal(on_packet(s, p, sizeof *p, copy + 1, length, &eager), UCS_OK);
}

/* What two peers are sent of so many bytes each. */
static const char *post_to_all(struct ucx *s, size_t bytes) {
    struct err e = {0};
    posted[0] = 0;
    T_OK(comm_ucx_backend.allgather_start(&s->comm, NULL, (const size_t[]){bytes, bytes, bytes}, &(struct comm_header){0}, &e), &e);
    return posted;
}

static void a_message_goes_as_its_size_says(void **state) {
    (void)state;
    struct ucx *s = lonely(200000);
    assert_string_equal(post_to_all(s, 0), "e0 e0 ");
    assert_string_equal(post_to_all(s, PIECE_BYTES + 1), "e61440 e61440 e1 e1 ");
    assert_false(comm_divide(&s->comm, 1000)); /* within a host there is no second way */
    assert_string_equal(post_to_all(s, 2000), "e2000 e2000 ");
    s->may_divide = true;
    assert_true(comm_divide(&s->comm, 100000));
    assert_string_equal(post_to_all(s, 99999), "e61440 e61440 e38559 e38559 ");
    assert_string_equal(post_to_all(s, 100000), "r100000 r100000 ");
    assert_true(comm_divide(&s->comm, 0)); /* as it is measured */
    assert_string_equal(post_to_all(s, 0), "e0 e0 ");
    assert_string_equal(post_to_all(s, 1), "r1 r1 ");

    /* Over RDMA: as UCX likes, until it has been measured. */
    s->ucx_decides = true;
    s->eager_bytes = RDMA_PIECE_BYTES;
    assert_string_equal(post_to_all(s, 100000), "u100000 u100000 ");
    assert_true(comm_divide(&s->comm, 65536));
    assert_string_equal(post_to_all(s, 16384), "e7936 e7936 e7936 e7936 e512 e512 ");
    assert_string_equal(post_to_all(s, 65536), "r65536 r65536 ");
    /* Of a scatter each peer's share counts; of its vectors each is a piece. */
    struct err e = {0};
    const struct comm_shares shares = {.vector_bytes = 65536, .n_vectors = {1, 2, 1}, .begin = {0, 32768, 33280, 65536}};
    posted[0] = 0;
    T_OK(comm_scatter_start(&s->comm, NULL, &shares, &(struct comm_header){0}, &e), &e);
    assert_string_equal(posted, "e7936 e7936 e7936 e7936 e512 e7936 e7936 e7936 e7936 e512 r32768 r32768 ");
    release(s);
}

static void pieces_find_their_places_in_any_order(void **state) {
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    struct ucx *s = lonely(4096);
    struct err e = {0};
    enum { N = 1000, PIECES = 8 };
    const size_t recv_bytes[] = {N, 10, N};
    unsigned char data[2][N]; /* of ranks 0 and 2, changed by the exchange's number */
    for (int i = 0; i < N; i++) data[0][i] = (unsigned char)(i * 7), data[1][i] = (unsigned char)(i * 11 + 1);
    const void *views[3] = {NULL}, *before = NULL;
    int missing;
    for (uint64_t x = 1; x <= 300; x++) {
        bool early = base_rng_below(&rng, 2); /* a peer is ahead by one */
        if (!early) T_OK(comm_allgather_start(&s->comm, NULL, recv_bytes, &(struct comm_header){.step = x}, &e), &e);
        unsigned order[2 * PIECES];
        for (unsigned i = 0; i < 2 * PIECES; i++) order[i] = i;
        for (unsigned i = 2 * PIECES - 1; i > 0; i--) {
            unsigned k = base_rng_below(&rng, i + 1), swap = order[i];
            order[i] = order[k], order[k] = swap;
        }
        for (unsigned i = 0; i < 2 * PIECES; i++) {
            unsigned peer = order[i] / PIECES, piece = order[i] % PIECES;
            size_t at = N * piece / PIECES, end = N * (piece + 1) / PIECES;
            unsigned char bytes[N];
            for (size_t k = at; k < end; k++) bytes[k - at] = (unsigned char)(data[peer][k] + x);
            struct packet p = from(peer ? 2 : 0, DATA, x, N, at);
            p.header.step = x;
            if (!early) assert_int_equal(comm_ucx_backend.allgather_test(&s->comm, views, NULL, &missing, &e), ST_AGAIN);
            deliver(s, &p, bytes, end - at);
        }
        if (early) T_OK(comm_allgather_start(&s->comm, NULL, recv_bytes, &(struct comm_header){.step = x}, &e), &e);
        struct comm_header headers[3];
        T_OK(comm_allgather_finish(&s->comm, 1, views, headers, &e), &e);
        for (int peer = 0; peer < 2; peer++)
            for (int k = 0; k < N; k++) assert_int_equal(((const unsigned char *)views[peer * 2])[k], (unsigned char)(data[peer][k] + x));
        assert_true(headers[0].step == x && headers[2].step == x);
        if (before) assert_int_equal(*(const unsigned char *)before, (unsigned char)(data[0][0] + x - 1));
        before = views[0];
    }
    assert_false(s->corrupt);

    /* Events: the later first, of each the pieces in any order; an exchange that knows of them waits for them. */
    struct packet late = from(0, EVENT, 1, 6, 0), first = from(0, EVENT, 0, 4, 2), zero = from(0, EVENT, 0, 4, 0);
    late.event.position = 128, late.event.data_offset = 64, late.event.footprint = 128;
    first.event.data_offset = zero.event.data_offset = 64, first.event.footprint = zero.event.footprint = 128;
    char text[16];
    size_t bytes;
    deliver(s, &late, "second", 6);
    assert_int_equal(comm_event_next(&s->comm, text, sizeof text, &bytes, 0, &e), ST_AGAIN);
    deliver(s, &first, "rs", 2);
    T_OK(comm_allgather_start(&s->comm, NULL, (const size_t[]){0, 0, 0}, &(struct comm_header){.step = 1}, &e), &e);
    struct packet p = from(0, DATA, 301, 0, 0);
    p.n_events = 2;
    deliver(s, &p, "", 0);
    p = from(2, DATA, 301, 0, 0);
    deliver(s, &p, "", 0);
    assert_int_equal(comm_allgather_finish(&s->comm, 1, views, NULL, &e), ST_TIMEOUT);
    deliver(s, &zero, "fi", 2);
    T_OK(comm_allgather_finish(&s->comm, 1, views, NULL, &e), &e);
    T_OK(comm_event_next(&s->comm, text, sizeof text, &bytes, 0, &e), &e);
    assert_true(bytes == 4 && memcmp(text, "firs", 4) == 0);
    T_OK(comm_event_next(&s->comm, text, sizeof text, &bytes, 0, &e), &e);
    assert_true(bytes == 6 && memcmp(text, "second", 6) == 0);

    /* A goodbye that overtakes a message takes nothing away from it, and names the first cause. */
    T_OK(comm_allgather_start(&s->comm, NULL, (const size_t[]){4, 0, 0}, &(struct comm_header){.step = 2}, &e), &e);
    p = from(0, BYE, 302, 0, 0);
    p.blamed.rank = 2, p.blamed.cause = COMM_BROKE;
    deliver(s, &p, "", 0);
    p = from(2, DATA, 302, 0, 0);
    deliver(s, &p, "", 0);
    assert_int_equal(comm_allgather_finish(&s->comm, 1, views, NULL, &e), ST_TIMEOUT);
    p = from(0, DATA, 302, 4, 0);
    deliver(s, &p, "last", 4);
    T_OK(comm_allgather_finish(&s->comm, 1, views, NULL, &e), &e);
    assert_memory_equal(views[0], "last", 4);
    t_expect_err_contains(ST_PEER_LOST, comm_barrier(&s->comm, soon(), &e), &e,
                          "rank 2 died or its link broke, as rank 0 tells: step 2, exchange 303");
    release(s);
}

static void noise_harms_nobody(void **state) {
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed() + 1);
    int n_rounds = (t_long() ? 20000 : 1500) / SLOWER, n_corrupt = 0, n_fine = 0;
    unsigned char *data = t_guard_alloc(COMM_EVENT_MAX_BYTES);
    char noise[512] = {0};
    for (int round = 0; round < n_rounds; round++) {
        struct ucx *s = lonely(1024);
        struct err e = {0};
        const size_t recv_bytes[] = {100, 50, 200};
        const void *views[3] = {NULL};
        enum st code = comm_allgather_start(&s->comm, NULL, recv_bytes, &(struct comm_header){0}, &e);
        if (base_rng_below(&rng, 2)) { /* what is due, before the noise */
            struct packet due[] = {from(0, DATA, 1, 100, 0), from(2, DATA, 1, 200, 0)};
            for (int i = 0; i < 2; i++) deliver(s, &due[i], noise, due[i].bytes);
        }
        for (unsigned i = base_rng_below(&rng, base_rng_below(&rng, 2) ? 3 : 60); i > 0; i--) {
            struct packet p =
                from((int)base_rng_below(&rng, 3), (enum kind)(base_rng_below(&rng, 7) + (base_rng_below(&rng, 50) == 0)), base_rng_below(&rng, 4),
                     base_rng_below(&rng, 3) ? recv_bytes[base_rng_below(&rng, 3)] : base_rng_below(&rng, 2000),
                     base_rng_below(&rng, 2) ? 0 : base_rng_below(&rng, 250));
            if (p.kind == EVENT) {
                p.event.position = base_rng_below(&rng, 3) * 128;
                p.event.data_offset = 64;
                p.event.footprint = 64 + (uint32_t)p.bytes;
            }
            if (base_rng_below(&rng, 8) == 0) { /* a word of it becomes anything */
                uint64_t word = base_rng_u32(&rng);
                if (base_rng_below(&rng, 2)) word = word << 32 | base_rng_u32(&rng) | (base_rng_below(&rng, 2) ? UINT64_MAX << 40 : 0);
                memcpy((char *)&p + (size_t)base_rng_below(&rng, 8) * 8, &word, 8);
            }
            size_t length = base_rng_below(&rng, 2) && p.bytes <= sizeof noise ? p.bytes : base_rng_below(&rng, sizeof noise);
            deliver(s, &p, noise, length);
        }
        if (code == ST_OK) code = comm_allgather_finish(&s->comm, 1, views, NULL, &e);
        for (int r = 0; code == ST_OK && r < 3; r++) {
            const unsigned char *view = views[r];
            assert_true(view >= s->memory && view + recv_bytes[r] <= s->memory + s->memory_bytes);
        }
        n_fine += code == ST_OK;
        size_t bytes;
        for (int i = 0; i < 4; i++) code = comm_event_next(&s->comm, data, base_rng_below(&rng, COMM_EVENT_MAX_BYTES) + 1, &bytes, 0, &e);
        t_guard_check(data);
        n_corrupt += s->corrupt;
        release(s);
    }
    t_guard_free(data);
    printf("  %d of %d noticed, %d exchanges done\n", n_corrupt, n_rounds, n_fine);
    assert_true(n_corrupt > n_rounds / 4 && n_fine > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_are_those_of_the_cable),
        cmocka_unit_test(probing_loads_nothing_and_says_why_not),
        cmocka_unit_test(a_message_goes_as_its_size_says),
        cmocka_unit_test(pieces_find_their_places_in_any_order),
        cmocka_unit_test(noise_harms_nobody),
        cmocka_unit_test(ranks_that_do_not_fit_are_refused),
        cmocka_unit_test(no_signal_handlers_and_nothing_on_stdout),
        cmocka_unit_test(opening_again_leaves_nothing_behind),
        cmocka_unit_test(large_messages_arrive_in_pieces_and_by_rendezvous),
        cmocka_unit_test(a_killed_peer_ends_the_waits),
        cmocka_unit_test(closing_takes_bounded_time),
        cmocka_unit_test(who_waits_long_sleeps),
        cmocka_unit_test(a_silent_host_is_seen_in_its_sockets),
        cmocka_unit_test(another_address_is_another_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else
static void this_build_has_no_ucx(void **state) {
    (void)state;
    const struct comm_setup setup = {.backend = "ucx", .n_ranks = 2, .memory_fd = -1};
    struct err e = {0};
    struct comm *c;
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "this build has no UCX");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(this_build_has_no_ucx)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
