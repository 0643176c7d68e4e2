/* What only connections can get wrong: strangers at the door, bytes in pieces, death in the middle of a message, silent hosts, peers that lie. test-deadline: 120 */
#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#include "comm/tcp_priv.h"
#include "tests/t_comm.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { IS_SANITIZED = 1 };
#else
enum { IS_SANITIZED = 0 };
#endif
enum { MIB = 1 << 20 };

static const struct comm_header no_header;

static void fill(void *p, size_t bytes, uint64_t tag) {
    for (size_t i = 0; i + 8 <= bytes; i += 8, tag += 0x9e3779b97f4a7c15ull) memcpy((char *)p + i, &tag, 8);
}
static bool is_filled(const void *p, size_t bytes, uint64_t tag) {
    for (size_t i = 0; i + 8 <= bytes; i += 8, tag += 0x9e3779b97f4a7c15ull)
        if (memcmp((const char *)p + i, &tag, 8) != 0) return false;
    return true;
}

/* ---- ranks over connections that the test has made ----------------------------------------------------------------------------------------------- */

/* Two ends of one connection over the loopback interface, with small buffers where asked. */
static bool connect_pair(int fds[2], int buffer_bytes) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (buffer_bytes) setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes); /* before the window is agreed on */
    bool ok = bind(listener, (struct sockaddr *)&at, n) == 0 && listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&at, &n) == 0;
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (buffer_bytes) setsockopt(fds[0], SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes);
    ok = ok && connect(fds[0], (struct sockaddr *)&at, n) == 0;
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    close(listener);
    for (int i = 0; i < 2; i++) {
        setsockopt(fds[i], IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof one);
        if (buffer_bytes) setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
    }
    return ok && fds[1] >= 0;
}

static struct comm *join(int rank, int n_ranks, const int *fds, size_t max_bytes, int spin_us) {
    const struct comm_setup setup = {.rank = rank, .n_ranks = n_ranks, .max_bytes = max_bytes, .spin_us = spin_us, .memory_fd = -1};
    struct comm *c = NULL;
    struct err e = {0};
    for (int r = 0; r < n_ranks; r++)
        if (fds[r] >= 0) assert_int_equal(fcntl(fds[r], F_SETFL, O_RDWR | O_NONBLOCK), 0);
    T_OK(comm_tcp_join(&setup, fds, &c, &e), &e);
    return c;
}

/* Both ranks of a group of two, in this thread. */
struct pair {
    struct comm *c[2];
};
static void pair_open(struct pair *p, size_t max_bytes, int buffer_bytes) {
    int fds[2];
    assert_true(connect_pair(fds, buffer_bytes));
    p->c[0] = join(0, 2, (int[]){-1, fds[1]}, max_bytes, 0);
    p->c[1] = join(1, 2, (int[]){fds[0], -1}, max_bytes, 0);
}
static void pair_close(struct pair *p) {
    comm_close(p->c[0]);
    comm_close(p->c[1]);
}

/* One rank, and the bare end of its only connection, for the test to write to. */
static struct comm *with_bare_peer(int rank, int *bare) {
    int fds[2];
    assert_true(connect_pair(fds, 0));
    *bare = fds[1];
    return join(rank, 2, rank == 0 ? (int[]){-1, fds[0]} : (int[]){fds[0], -1}, 4096, 0);
}
static void write_frame(int fd, const struct tcp_frame *f, const void *payload, size_t bytes) {
    unsigned char head[TCP_HEAD_BYTES];
    comm_tcp_put(f, head);
    assert_int_equal(send(fd, head, sizeof head, MSG_NOSIGNAL), sizeof head);
    if (bytes) assert_int_equal(send(fd, payload, bytes, MSG_NOSIGNAL), bytes);
}

/* ---- set-up -------------------------------------------------------------------------------------------------------------------------------------- */

/* Opens like any rank, but calls at_door with all records before its boot round returns. */
struct guest {
    struct group_boot_end end;
    void (*at_door)(struct guest *g, const unsigned char *records, size_t bytes);
    void *arg;
};
static enum st guest_boot(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    struct guest *g = context;
    enum st code = group_boot_allgather(&g->end, mine, bytes, all, deadline_ns, e);
    if (code == ST_OK && g->at_door) g->at_door(g, all, bytes);
    return code;
}
static uint16_t port_of(const unsigned char *records, size_t bytes, int rank) {
    const unsigned char *record = records + (size_t)rank * bytes;
    return (uint16_t)(record[10] | record[11] << 8);
}

enum { N_GUESTS = 3 };
struct visit {
    struct guest guest;
    struct comm_setup setup;
    struct comm_boot boot;
    enum st code;
    struct err e;
    uint64_t took_ns;
    bool is_absent;                                            /* takes part in the boot round only */
    void (*forge)(unsigned char *record, const void *context); /* what it tells there; NULL: nothing */
    const void *context;
};

static void *visit_thread(void *arg) {
    struct visit *v = arg;
    uint64_t begun_ns = now_ns();
    if (v->is_absent) {
        unsigned char record[64] = {0}, records[N_GUESTS * 64];
        if (v->forge) v->forge(record, v->context);
        v->code = guest_boot(&v->guest, record, sizeof record, records, soon(), &v->e);
        return NULL;
    }
    struct comm *c = NULL;
    v->code = comm_open(&v->setup, &c, &v->e);
    v->took_ns = now_ns() - begun_ns;
    if (v->code == ST_OK) v->code = comm_barrier(c, soon(), &v->e);
    comm_close(c);
    return NULL;
}

static void visits_init(struct visit visits[N_GUESTS], struct group_boot *table, const char *address, uint64_t deadline_ms) {
    memset(table, 0, sizeof *table);
    table->n_ranks = N_GUESTS;
    for (int r = 0; r < N_GUESTS; r++) {
        struct visit *v = &visits[r];
        *v = (struct visit){.guest = {.end = {table, r}}};
        v->boot = (struct comm_boot){guest_boot, &v->guest};
        v->setup = (struct comm_setup){.backend = "tcp",
                                       .rank = r,
                                       .n_ranks = N_GUESTS,
                                       .max_bytes = 64,
                                       .memory_fd = -1,
                                       .boot = &v->boot,
                                       .address = address,
                                       .deadline_ns = in_ms(deadline_ms)};
    }
}
static void visits_run(struct visit visits[N_GUESTS]) {
    pthread_t ids[N_GUESTS];
    for (int r = 0; r < N_GUESTS; r++) assert_int_equal(pthread_create(&ids[r], NULL, visit_thread, &visits[r]), 0);
    for (int r = 0; r < N_GUESTS; r++) pthread_join(ids[r], NULL);
}

static struct group_boot boot_table;

enum { N_STRANGERS = 120 };
static int connect_to(uint16_t port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

struct strangers {
    int fds[N_STRANGERS];
    int n, what;
};
/* In front of the ranks: nothing, a piece of a claim, noise, a claim to be rank 1 or 2 with a proof that is none, the same and more, and those who leave. */
static void strangers_come(struct guest *g, const unsigned char *records, size_t bytes) {
    struct strangers *s = g->arg;
    for (s->n = 0; s->n < N_STRANGERS; s->n++) {
        unsigned char said[80], more[300];
        int fd = s->fds[s->n] = connect_to(port_of(records, bytes, s->n % 2));
        if (fd < 0) break;
        fill(said, sizeof said, 1234 + (uint64_t)s->n);
        memcpy(said, "tndmcl01", 8);
        for (int i = 8; i < 24; i++) said[i] = 0;
        said[8] = (unsigned char)(1 + s->n % 2 + (s->n % 2 == 0 && s->n % 4)), said[12] = (unsigned char)(s->n % 2), said[16] = N_GUESTS;
        ssize_t n = 0;
        switch (s->what) {
        case 0: break;
        case 1: n = send(fd, said, sizeof said - 1, MSG_NOSIGNAL); break;
        case 2: fill(said, sizeof said, 99), n = send(fd, said, sizeof said, MSG_NOSIGNAL); break;
        case 3: n = send(fd, said, sizeof said, MSG_NOSIGNAL); break;
        case 4: fill(more, sizeof more, 99), memcpy(more, said, sizeof said), n = send(fd, more, sizeof more, MSG_NOSIGNAL); break;
        case 5: shutdown(fd, SHUT_RDWR); break;
        default: n = send(fd, said, sizeof said - 1, MSG_NOSIGNAL), shutdown(fd, SHUT_WR); break;
        }
        (void)n;
    }
}

static void strangers_are_not_let_in(void **state) {
    (void)state;
    t_declare_warnings();
    for (int what = 0; what < 7; what++) {
        struct visit visits[N_GUESTS];
        struct strangers s = {.what = what};
        visits_init(visits, &boot_table, NULL, 10000);
        /* Rank 0 is the last to leave the boot round, mostly: the others' connections are then among the strangers'. */
        visits[0].guest.at_door = strangers_come;
        visits[0].guest.arg = &s;
        visits_run(visits);
        for (int i = 0; i < s.n; i++) close(s.fds[i]);
        assert_int_equal(s.n, N_STRANGERS);
        for (int r = 0; r < N_GUESTS; r++) {
            T_OK(visits[r].code, &visits[r].e);
            assert_true(visits[r].took_ns < 5 * BASE_NS_PER_S);
        }
    }
}

/* Strangers who come and come while the ranks meet: rank 2 comes late. */
struct siege {
    uint16_t port;
    _Atomic bool is_over;
    pthread_t id;
    int n_came;
};
static void *besiege(void *arg) {
    struct siege *s = arg;
    int fds[200], n = 0;
    while (!atomic_load(&s->is_over) && n < 200) {
        fds[n] = connect_to(s->port);
        if (fds[n] < 0) break;
        n++;
        pause_us(1000);
    }
    s->n_came = n;
    for (int i = 0; i < n; i++) close(fds[i]);
    return NULL;
}
static void siege_begins(struct guest *g, const unsigned char *records, size_t bytes) {
    struct siege *s = g->arg;
    s->port = port_of(records, bytes, 0);
    pthread_create(&s->id, NULL, besiege, s);
}
static void come_late(struct guest *g, const unsigned char *records, size_t bytes) {
    (void)g, (void)records, (void)bytes;
    pause_us(150000);
}
static void a_siege_keeps_nobody_out(void **state) {
    (void)state;
    struct visit visits[N_GUESTS];
    struct siege s = {0};
    visits_init(visits, &boot_table, NULL, 10000);
    visits[0].guest.at_door = siege_begins;
    visits[0].guest.arg = &s;
    visits[2].guest.at_door = come_late;
    visits_run(visits);
    atomic_store(&s.is_over, true);
    pthread_join(s.id, NULL);
    for (int r = 0; r < N_GUESTS; r++) T_OK(visits[r].code, &visits[r].e);
    assert_true(s.n_came > 5);
}

static void copy_first_record(unsigned char *record, const void *context);

/* Who has heard what is said on one connection, or was a rank of another job: neither serves on another connection, or with another key. Rank 2 comes late. */
static const uint8_t job_key[COMM_KEY_BYTES] = {1, 2, 3};
struct listener_in {
    unsigned char records[N_GUESTS * 64];
    pthread_t id;
    bool is_challenged[3], is_refused[3], is_answered;
};
static bool claim(struct listener_in *l, int i, const uint8_t outer[COMM_KEY_BYTES], const unsigned char challenge[32], int fd) {
    unsigned char key[32], said[80] = "tndmcl01", proved[80], got[80];
    said[8] = 2, said[12] = 0, said[16] = N_GUESTS, said[24] = 77;
    base_mac(outer, l->records, sizeof l->records, key);
    memcpy(proved, said, 48);
    memcpy(proved + 48, challenge, 32);
    base_mac(key, proved, sizeof proved, said + 48);
    ssize_t n = send(fd, said, sizeof said, MSG_NOSIGNAL) == (ssize_t)sizeof said ? recv(fd, got, sizeof got, MSG_WAITALL) : -2;
    l->is_refused[i] = n == 0 || (n < 0 && errno == ECONNRESET);
    return n == (ssize_t)sizeof got && memcmp(got, "tndman01", 8) == 0;
}
static void *replay(void *arg) {
    struct listener_in *l = arg;
    static const uint8_t earlier_key[COMM_KEY_BYTES] = {1, 2, 4};
    unsigned char challenges[3][32];
    int fds[3];
    for (int i = 0; i < 3; i++) {
        fds[i] = connect_to(port_of(l->records, 64, 0));
        l->is_challenged[i] = fds[i] >= 0 && recv(fds[i], challenges[i], 32, MSG_WAITALL) == 32;
    }
    l->is_answered = claim(l, 0, job_key, challenges[1], fds[0]) || claim(l, 1, earlier_key, challenges[1], fds[1]);
    for (int i = 0; i < 2; i++) close(fds[i]);
    close(fds[2]);
    return NULL;
}
static void replay_begins(struct guest *g, const unsigned char *records, size_t bytes) {
    struct listener_in *l = g->arg;
    memcpy(l->records, records, N_GUESTS * bytes);
    pthread_create(&l->id, NULL, replay, l);
}
static void what_was_said_elsewhere_proves_nothing(void **state) {
    (void)state;
    t_declare_warnings();
    struct visit visits[N_GUESTS];
    struct listener_in l = {0};
    visits_init(visits, &boot_table, NULL, 10000);
    for (int r = 0; r < N_GUESTS; r++) visits[r].setup.key = job_key;
    visits[0].guest.at_door = replay_begins;
    visits[0].guest.arg = &l;
    visits[2].guest.at_door = come_late;
    visits_run(visits);
    pthread_join(l.id, NULL);
    for (int r = 0; r < N_GUESTS; r++) T_OK(visits[r].code, &visits[r].e);
    assert_true(l.is_challenged[0] && l.is_challenged[1] && l.is_refused[0] && l.is_refused[1] && !l.is_answered);
}

/* A proof that is right is taken once: who comes later with the same name is refused, be it the rank itself. */
static void *impersonate(void *arg) {
    struct listener_in *l = arg;
    unsigned char challenge[32];
    int fd = connect_to(port_of(l->records, 64, 0));
    l->is_challenged[0] = fd >= 0 && recv(fd, challenge, 32, MSG_WAITALL) == 32;
    l->is_answered = claim(l, 0, job_key, challenge, fd);
    int again = connect_to(port_of(l->records, 64, 0));
    l->is_challenged[1] = again >= 0 && recv(again, challenge, 32, MSG_WAITALL) == 32;
    if (claim(l, 1, job_key, challenge, again)) l->is_refused[1] = false;
    close(fd);
    close(again);
    return NULL;
}
static void impersonation_begins(struct guest *g, const unsigned char *records, size_t bytes) {
    struct listener_in *l = g->arg;
    memcpy(l->records, records, N_GUESTS * bytes);
    pthread_create(&l->id, NULL, impersonate, l);
}
static void a_rank_joins_once(void **state) {
    (void)state;
    t_declare_warnings();
    struct visit visits[N_GUESTS];
    struct listener_in l = {0};
    visits_init(visits, &boot_table, NULL, 1000);
    for (int r = 0; r < N_GUESTS; r++) visits[r].setup.key = job_key;
    visits[0].guest.at_door = impersonation_begins;
    visits[0].guest.arg = &l;
    visits[1].is_absent = true; /* so that rank 0 goes on listening */
    visits[1].forge = copy_first_record;
    visits[1].context = &(uint16_t){1};
    visits[2].is_absent = true;
    visits[2].forge = copy_first_record;
    visits[2].context = &(uint16_t){1};
    visits_run(visits);
    pthread_join(l.id, NULL);
    assert_true(l.is_challenged[0] && l.is_answered && l.is_challenged[1] && l.is_refused[1]);
    assert_true(visits[0].code != ST_OK);
}

static void copy_first_record(unsigned char *record, const void *context) {
    const uint16_t *port = context;
    memcpy(record, "tndmtcp1", 8);
    record[8] = 4;
    record[10] = (unsigned char)*port, record[11] = (unsigned char)(*port >> 8);
    memcpy(record + 16, (unsigned char[]){127, 0, 0, 1}, 4);
    record[48 + 1] = COMM_MIN_BYTES >> 8;
}

static int listen_dumb(uint16_t *port, int backlog) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(bind(fd, (struct sockaddr *)&at, n) == 0 && (backlog < 0 || listen(fd, backlog) == 0) &&
                getsockname(fd, (struct sockaddr *)&at, &n) == 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static void opening_names_who_is_missing(void **state) {
    (void)state;
    struct visit visits[N_GUESTS];
    uint16_t port = 0;

    /* One has told its address and never comes. */
    visits_init(visits, &boot_table, NULL, 300);
    visits[2].is_absent = true;
    visits[2].forge = copy_first_record;
    visits[2].context = &port;
    visits_run(visits);
    for (int r = 0; r < 2; r++) {
        /* Either's deadline may be the first to pass; the other sees it leave. */
        t_expect_err_contains(visits[r].code == ST_PEER_LOST ? ST_PEER_LOST : ST_TIMEOUT, visits[r].code, &visits[r].e,
                              "rank 2 did not connect to 127.0.0.1:");
        if (visits[r].code == ST_TIMEOUT) assert_null(strstr(visits[r].e.text, r == 0 ? "rank 1" : "rank 0 d"));
        assert_true(visits[r].took_ns < 5 * BASE_NS_PER_S);
    }

    /* One listens, and says nothing. */
    int fd = listen_dumb(&port, 10);
    visits_init(visits, &boot_table, NULL, 300);
    visits[0].is_absent = true;
    visits[0].forge = copy_first_record;
    visits[0].context = &port;
    visits_run(visits);
    close(fd);
    assert_true(visits[1].code == ST_TIMEOUT || visits[2].code == ST_TIMEOUT);
    for (int r = 1; r < N_GUESTS; r++) assert_non_null(strstr(visits[r].e.text, "rank 0 does not answer at 127.0.0.1:"));

    /* One has left its port. */
    fd = listen_dumb(&port, -1);
    visits_init(visits, &boot_table, NULL, 20000);
    visits[0].is_absent = true;
    visits[0].forge = copy_first_record;
    visits[0].context = &port;
    visits_run(visits);
    close(fd);
    for (int r = 1; r < N_GUESTS; r++) {
        if (strstr(visits[r].e.text, "rank 0")) t_expect_err_contains(ST_PEER_LOST, visits[r].code, &visits[r].e, "Connection refused");
        t_expect_err_contains(ST_PEER_LOST, visits[r].code, &visits[r].e, NULL);
        assert_true(visits[r].took_ns < 5 * BASE_NS_PER_S);
    }

    /* One could not even begin. */
    visits_init(visits, &boot_table, NULL, 20000);
    visits[1].is_absent = true;
    visits_run(visits);
    t_expect_err_contains(ST_PEER_LOST, visits[0].code, &visits[0].e, "rank 1 is not there");
    t_expect_err_contains(ST_PEER_LOST, visits[2].code, &visits[2].e, "rank 1 is not there");

    /* Addresses that are none, or none of ours; the others learn at once that this rank is not there. */
    static const char *const bad[] = {"localhost", "10.0.0.300", "192.0.2.1", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        visits_init(visits, &boot_table, NULL, 20000);
        visits[1].setup.address = bad[i];
        visits_run(visits);
        t_expect_err_contains(ST_PEER_LOST, visits[0].code, &visits[0].e, "rank 1 is not there");
        assert_true(visits[1].code == ST_INVALID || visits[1].code == ST_IO);
        assert_non_null(strstr(visits[1].e.text, bad[i]));
    }

    /* Other sizes. */
    visits_init(visits, &boot_table, NULL, 20000);
    visits[1].setup.max_bytes = 9000;
    visits_run(visits);
    t_expect_err_contains(ST_MISMATCH, visits[0].code, &visits[0].e, "rank 1 wants messages of 9024 bytes, rank 0 of 1024");

    struct err e = {0};
    struct comm *c;
    struct comm_setup setup = {.backend = "tcp", .n_ranks = 2, .memory_fd = -1};
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "tcp: no way was given to find the other ranks");
}

static void ipv6_works(void **state) {
    (void)state;
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool is_there = fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0;
    if (fd >= 0) close(fd);
    if (!is_there) {
        printf("  no IPv6 loopback address here\n");
        skip();
    }
    struct visit visits[N_GUESTS];
    visits_init(visits, &boot_table, "::1", 10000);
    visits_run(visits);
    for (int r = 0; r < N_GUESTS; r++) T_OK(visits[r].code, &visits[r].e);
    visits_init(visits, &boot_table, "::1", 10000);
    visits[2].setup.address = NULL;
    visits_run(visits);
    t_expect_err_contains(ST_INVALID, visits[0].code, &visits[0].e, "rank 2 has the address 127.0.0.1:");
    visits_init(visits, &boot_table, "::1", 200);
    visits[2].is_absent = true;
    visits[2].forge = copy_first_record;
    visits[2].context = &(uint16_t){1};
    visits_run(visits);
    t_expect_err_contains(ST_INVALID, visits[0].code, &visits[0].e, "of another family than ours");
}

/* ---- bytes in pieces ----------------------------------------------------------------------------------------------------------------------------- */

static void tiny_buffers_split_everything(void **state) {
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    struct pair p;
    struct err e = {0};
    pair_open(&p, 100000, 2048);
    static unsigned char data[COMM_EVENT_MAX_BYTES], got[COMM_EVENT_MAX_BYTES];
    uint64_t n_posted = 0, n_read = 0;
    const void *views[2][2];
    for (uint64_t i = 1; i <= (IS_SANITIZED ? 40 : 200); i++) {
        size_t recv_bytes[2];
        for (int r = 0; r < 2; r++) recv_bytes[r] = base_rng_below(&rng, 4) ? base_rng_below(&rng, 300) : base_rng_below(&rng, 100000);
        for (unsigned k = base_rng_below(&rng, 4); k > 0; k--) {
            size_t bytes = base_rng_below(&rng, 3) ? base_rng_below(&rng, 200) : base_rng_below(&rng, COMM_EVENT_MAX_BYTES + 1);
            fill(data, bytes, n_posted + bytes);
            enum st code = comm_event_post(p.c[0], data, bytes, &e);
            if (code != ST_AGAIN) T_OK(code, &e);
            if (code == ST_OK) n_posted++;
        }
        for (int r = 0; r < 2; r++) {
            fill(comm_send_buffer(p.c[r]), recv_bytes[r], i * 2 + (uint64_t)r);
            const struct comm_header header = {.step = i, .n_events = r == 0 ? (uint32_t)n_posted : 0};
            T_OK(comm_allgather_start(p.c[r], NULL, recv_bytes, &header, &e), &e);
        }
        struct comm_header headers[2];
        bool done[2] = {false, false};
        while (!done[0] || !done[1]) {
            for (int r = 0; r < 2; r++) {
                if (done[r]) continue;
                enum st code = comm_allgather_finish(p.c[r], 1, views[r], headers, &e);
                if (code != ST_TIMEOUT) T_OK(code, &e);
                done[r] = code == ST_OK;
            }
        }
        for (int r = 0; r < 2; r++)
            for (int k = 0; k < 2; k++) assert_true(is_filled(views[r][k], recv_bytes[k], i * 2 + (uint64_t)k));
        assert_int_equal(headers[0].n_events, n_posted);
        while (n_read < n_posted && base_rng_below(&rng, 3)) {
            size_t bytes = 0;
            T_OK(comm_event_next(p.c[1], got, sizeof got, &bytes, 0, &e), &e);
            assert_true(is_filled(got, bytes, n_read + bytes));
            n_read++;
        }
    }
    assert_true(n_posted > 20);
    pair_close(&p);
}

static bool large(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    const void *views[3] = {NULL};
    for (uint64_t i = 1; i <= 2; i++) {
        const size_t recv_bytes[] = {(size_t)64 * MIB, (size_t)64 * MIB - 8, (size_t)5 * MIB};
        fill(comm_send_buffer(c), recv_bytes[comm_rank(c)], i * 8 + (uint64_t)comm_rank(c));
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &no_header, in_ms(100000), views, NULL, &e), &e);
        for (int r = 0; r < comm_n_ranks(c); r++) CHECK(is_filled(views[r], recv_bytes[r], i * 8 + (uint64_t)r));
    }
    return true;
}
static void messages_of_64_mib_arrive(void **state) {
    (void)state;
    group_run("tcp", 2, false, (size_t)64 * MIB, 0, large, NULL);
    if (t_long()) group_run("tcp", 3, true, (size_t)64 * MIB, 0, large, NULL);
}

/* ---- death and closing --------------------------------------------------------------------------------------------------------------------------- */

static bool dies_while_sending(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    const size_t recv_bytes[] = {100, (size_t)32 * MIB, 100};
    const void *views[3];
    CHECK_ST(ST_OK, comm_allgather_start(c, NULL, recv_bytes, &(struct comm_header){.step = 7}, &e), &e);
    if (comm_rank(c) == 1) {
        CHECK_ST(ST_TIMEOUT, comm_allgather_finish(c, in_ms(5), views, NULL, &e), &e);
        kill(getpid(), SIGKILL);
    }
    uint64_t begun_ns = now_ns();
    CHECK_ST(ST_PEER_LOST, comm_allgather_finish(c, soon(), views, NULL, &e), &e);
    CHECK(now_ns() - begun_ns < (IS_SANITIZED ? 5 : 1) * BASE_NS_PER_S);
    if (!strstr(e.text, "rank 1") || strstr(e.text, "rank 0") || strstr(e.text, "rank 2")) fprintf(stderr, "%s\n", e.text);
    CHECK(strstr(e.text, "rank 1") && strstr(e.text, "step 7, exchange 2"));
    CHECK(strstr(e.text, "without a good-bye, in the middle of a message") || strstr(e.text, "the connection to rank 1 broke") ||
          strstr(e.text, "lost its connection to rank 1"));
    return true;
}
static void death_in_the_middle_of_a_large_message(void **state) {
    (void)state;
    struct group g;
    group_init(&g, "tcp", 3, false, (size_t)32 * MIB, 0);
    pid_t pids[3];
    for (int r = 0; r < 3; r++) pids[r] = group_fork(&g, r, dies_while_sending, NULL);
    for (int r = 0; r < 3; r++) {
        int status = 1;
        assert_int_equal(waitpid(pids[r], &status, 0), pids[r]);
        assert_true(r == 1 ? WIFSIGNALED(status) : status == 0);
    }
    group_release(&g);
}

/* Who closes has sent its last message and its events before; the other reads them late, and acknowledges to nobody. */
static bool closes_behind_its_bytes(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    const size_t recv_bytes[] = {(size_t)2 * MIB, 64};
    const void *views[2];
    static _Thread_local unsigned char data[60000];
    if (comm_rank(c) == 0) {
        for (uint64_t i = 0; i < 15; i++) {
            fill(data, sizeof data, i);
            CHECK_ST(ST_OK, comm_event_post(c, data, sizeof data, &e), &e);
        }
        fill(comm_send_buffer(c), recv_bytes[0], 77);
        CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &no_header, soon(), views, NULL, &e), &e);
        comm_close(c);
        *pc = NULL;
        return true;
    }
    CHECK_ST(ST_OK, comm_allgather_start(c, NULL, recv_bytes, &no_header, &e), &e);
    pause_us(100000);
    CHECK_ST(ST_OK, comm_allgather_finish(c, soon(), views, NULL, &e), &e);
    CHECK(is_filled(views[0], recv_bytes[0], 77));
    for (uint64_t i = 0; i < 15; i++) {
        size_t bytes;
        CHECK_ST(ST_OK, comm_event_next(c, data, sizeof data, &bytes, soon(), &e), &e);
        CHECK(bytes == sizeof data && is_filled(data, bytes, i));
    }
    size_t bytes;
    CHECK_ST(ST_PEER_LOST, comm_event_next(c, data, sizeof data, &bytes, soon(), &e), &e);
    CHECK(strcmp(e.text, "rank 0 closed its end") == 0);
    CHECK_ST(ST_PEER_LOST, comm_progress(c, &e), &e);
    CHECK_ST(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e);
    return true;
}
static void what_was_sent_before_closing_arrives(void **state) {
    (void)state;
    for (int i = 0; i < 5; i++) group_run("tcp", 2, i % 2, (size_t)2 * MIB, 0, closes_behind_its_bytes, NULL);
}

static void a_bye_names_the_cause(void **state) {
    (void)state;
    static const struct {
        enum comm_cause bye;
        uint32_t blamed;
        const char *want;
    } cases[] = {{COMM_WANTED, 0, "rank 1 closed its end: step"},
                 {COMM_CLOSED, 2, "rank 2 closed its end, as rank 1 tells: step"},
                 {COMM_BROKE, 2, "rank 1 lost its connection to rank 2: step"},
                 {COMM_BROKE, 0, "rank 1 lost its connection to rank 0, to us: step"},
                 {COMM_CLOSED, 1, "rank 1 closed its end: step"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int a[2], b[2];
        struct err e = {0};
        assert_true(connect_pair(a, 0) && connect_pair(b, 0));
        struct comm *c = join(0, 3, (int[]){-1, a[0], b[0]}, 64, 0);
        write_frame(a[1], &(struct tcp_frame){.kind = TCP_BYE, .number = cases[i].bye, .header.n_events = cases[i].blamed}, NULL, 0);
        t_expect_err_contains(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e, cases[i].want);
        /* Closing hands the blame on. */
        comm_close(c);
        struct tcp_frame f;
        unsigned char head[TCP_HEAD_BYTES];
        int n_frames = 0;
        while (recv(b[1], head, sizeof head, MSG_WAITALL) == (ssize_t)sizeof head && comm_tcp_get(head, &f)) n_frames++;
        assert_int_equal(n_frames, 2); /* of the exchange, and the bye */
        assert_int_equal(f.kind, TCP_BYE);
        close(a[1]);
        close(b[1]);
    }
    /* Seen with our own eyes, too: then it is told as seen. */
    int a[2], b[2];
    struct err e = {0};
    assert_true(connect_pair(a, 0) && connect_pair(b, 0));
    struct comm *c = join(0, 3, (int[]){-1, a[0], b[0]}, 64, 0);
    write_frame(a[1], &(struct tcp_frame){.kind = TCP_BYE, .number = COMM_BROKE, .header.n_events = 2}, NULL, 0);
    close(b[1]);
    t_expect_err_contains(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e, "rank 2 closed its end without a good-bye: step");
    comm_close(c);
    close(a[1]);
}

/* ---- runs ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Frames of exchanges that are not begun here wait, the first in its slot, the others in the socket. */
static void who_runs_ahead_is_waited_for(void **state) {
    (void)state;
    int bare;
    struct err e = {0};
    struct comm *c = with_bare_peer(0, &bare);
    unsigned char payload[48];
    for (uint64_t i = 1; i <= 5; i++) {
        fill(payload, sizeof payload, i);
        write_frame(bare, &(struct tcp_frame){.kind = TCP_EXCHANGE, .number = i, .bytes = sizeof payload}, payload, sizeof payload);
    }
    const size_t recv_bytes[] = {8, sizeof payload};
    const void *views[2];
    for (uint64_t i = 1; i <= 5; i++) {
        for (int k = 0; k < 20; k++) T_OK(comm_progress(c, &e), &e);
        T_OK(comm_allgather(c, NULL, recv_bytes, &no_header, soon(), views, NULL, &e), &e);
        assert_true(is_filled(views[1], sizeof payload, i));
    }
    write_frame(bare, &(struct tcp_frame){.kind = TCP_EXCHANGE, .number = 6, .bytes = sizeof payload}, payload, sizeof payload);
    write_frame(bare, &(struct tcp_frame){.kind = TCP_EXCHANGE, .number = 8, .bytes = sizeof payload}, payload, sizeof payload);
    enum st code = ST_OK;
    for (int k = 0; k < 1000 && code == ST_OK; k++, pause_us(1000)) code = comm_progress(c, &e);
    t_expect_err_contains(ST_MISMATCH, code, &e, "rank 1 is at exchange 8, which cannot be");
    comm_close(c);
    close(bare);
}

/* What somebody who was ahead by so many exchanges said when it ended is heard, in an exchange (our bytes do not get through to it) and between two. */
static void a_bye_behind_a_run_is_heard(void **state) {
    (void)state;
    static const unsigned char payload[48];
    for (int n_ahead = 0; n_ahead <= 4; n_ahead++)
        for (int is_idle = 0; is_idle < 2; is_idle++) {
            int a[2], b[2];
            struct err e = {0};
            assert_true(connect_pair(a, 8192) && connect_pair(b, 0));
            struct comm *c = join(0, 3, (int[]){-1, a[0], b[0]}, 1 << 20, 0);
            for (uint64_t i = 1; i <= (uint64_t)n_ahead; i++) write_frame(a[1], &(struct tcp_frame){.kind = TCP_EXCHANGE, .number = i, .bytes = sizeof payload}, payload, sizeof payload);
            write_frame(a[1], &(struct tcp_frame){.kind = TCP_BYE, .number = COMM_BROKE, .header.n_events = 2}, NULL, 0);
            close(a[1]);
            enum st code;
            if (is_idle) {
                const uint64_t until_ns = soon();
                while ((code = comm_progress(c, &e)) == ST_OK && base_now_ns(base_clock_real()) < until_ns) comm_tcp_backend.sleep(c, base_now_ns(base_clock_real()) + BASE_NS_PER_MS);
            } else {
                const void *views[3];
                code = comm_allgather(c, NULL, (size_t[]){1 << 20, sizeof payload, 0}, &no_header, soon(), views, NULL, &e);
            }
            t_expect_err_contains(ST_PEER_LOST, code, &e, "rank 1 lost its connection to rank 2");
            close(b[1]); /* or closing would wait for it to read */
            comm_close(c);
        }
}

/* Whoever has nothing to do sleeps, also where the socket of somebody who is ahead is full of what cannot be taken yet. */
static void who_is_ahead_wakes_nobody(void **state) {
    (void)state;
    static const unsigned char payload[48];
    int bare;
    struct err e = {0};
    struct comm *c = with_bare_peer(1, &bare);
    for (uint64_t i = 1; i <= 4; i++) write_frame(bare, &(struct tcp_frame){.kind = TCP_EXCHANGE, .number = i, .bytes = sizeof payload}, payload, sizeof payload);
    struct timespec before, after;
    unsigned char event[64];
    size_t bytes;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    assert_int_equal(comm_event_next(c, event, sizeof event, &bytes, base_now_ns(base_clock_real()) + 300 * BASE_NS_PER_MS, &e), ST_AGAIN);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    const double cpu_ms = (double)(after.tv_sec - before.tv_sec) * 1e3 + (double)(after.tv_nsec - before.tv_nsec) / 1e6;
    assert_true(cpu_ms < 30);
    comm_close(c);
    close(bare);
}

static void never_added(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors) {
    (void)context, (void)offset, (void)bytes, (void)vectors, (void)n_vectors;
    abort();
}

struct all_of {
    int fd;
    unsigned char *bytes;
    size_t n, capacity;
};
static void *read_all(void *arg) {
    struct all_of *a = arg;
    for (ssize_t n; a->n < a->capacity && (n = recv(a->fd, a->bytes + a->n, a->capacity - a->n, 0)) > 0;) a->n += (size_t)n;
    return NULL;
}

/* Rank 2 dies while rank 1 has a part of a frame: it gets the rest of that, although the vector is gone, and the bye behind it. */
static void a_run_that_breaks_ends_with_a_bye(void **state) {
    (void)state;
    enum { BYTES = 1 << 20, PIECE = 1 << 16 };
    int a[2], b[2];
    struct err e = {0};
    assert_true(connect_pair(a, 8192) && connect_pair(b, 0));
    struct comm *c = join(0, 3, (int[]){-1, a[0], b[0]}, BYTES, 0);
    unsigned char *vector = aligned_alloc(64, BYTES);
    assert_non_null(vector);
    fill(vector, BYTES, 7);
    close(b[1]);
    const struct comm_exchange_add x = {.send = vector, .vector_bytes = BYTES, .n_vectors = (uint32_t[]){1, 1, 1}, .piece_bytes = PIECE, .add = never_added};
    t_expect_err_contains(ST_PEER_LOST, comm_exchange_and_add(c, &x, &no_header, soon(), &e), &e, "rank 2");
    memset(vector, 0, BYTES);
    struct all_of got = {.fd = a[1], .bytes = malloc(BYTES), .capacity = BYTES};
    assert_non_null(got.bytes);
    pthread_t reader;
    assert_int_equal(pthread_create(&reader, NULL, read_all, &got), 0);
    comm_close(c);
    pthread_join(reader, NULL);
    fill(vector, BYTES, 7);
    struct tcp_frame f = {.kind = TCP_EXCHANGE};
    size_t at = 0, n_pieces = 0;
    while (f.kind == TCP_EXCHANGE) {
        assert_true(got.n >= at + TCP_HEAD_BYTES && comm_tcp_get(got.bytes + at, &f));
        at += TCP_HEAD_BYTES;
        if (f.kind != TCP_EXCHANGE) break;
        assert_true(f.number == n_pieces + 1 && f.bytes == PIECE && got.n >= at + PIECE);
        assert_memory_equal(got.bytes + at, vector + n_pieces * PIECE, PIECE);
        at += PIECE;
        n_pieces++;
    }
    assert_int_equal(f.kind, TCP_BYE);
    assert_int_equal(f.header.n_events, 2);
    assert_int_equal(at, got.n);
    assert_true(n_pieces >= 1 && n_pieces <= 3);
    free(got.bytes);
    free(vector);
    close(a[1]);
}

/* ---- silent hosts, slow peers -------------------------------------------------------------------------------------------------------------------- */

static bool loopback_is(bool up) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = (short)(up ? IFF_UP | IFF_RUNNING : 0)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
    if (fd >= 0) close(fd);
    return ok;
}

/* 0: as it should be; 77: no network of our own to be had. in_flight: something is sent after the cut. */
static int cut_the_cable(bool in_flight) {
    if ((unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) || !loopback_is(true)) return 77;
    /* The peer sits in a process of its own and does nothing. */
    struct group_boot *shared_table = mmap(NULL, sizeof *shared_table, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared_table == MAP_FAILED) return 1;
    shared_table->n_ranks = 2;
    const struct group g = {.backend = "tcp", .n_ranks = 2, .max_bytes = 64, .memory = {{.fd = -1}}, .boot = shared_table};
    pid_t pid = fork();
    struct comm_boot boot;
    struct group_boot_end end;
    struct comm_setup setup = group_setup(&g, pid == 0, &boot, &end);
    struct comm *c = NULL;
    struct err e = {0};
    if (comm_open(&setup, &c, &e) != ST_OK || comm_barrier(c, soon(), &e) != ST_OK) return 1;
    if (pid == 0) {
        pause_us(15000000);
        _exit(0);
    }
    const size_t recv_bytes[2] = {64, 64};
    const void *views[2];
    if (!loopback_is(false)) return 77;
    uint64_t begun_ns = now_ns();
    enum st code;
    if (in_flight) {
        code = comm_allgather(c, NULL, recv_bytes, &no_header, in_ms(12000), views, NULL, &e);
    } else {
        while ((code = comm_progress(c, &e)) == ST_OK && now_ns() < begun_ns + 12 * BASE_NS_PER_S) pause_us(10000);
    }
    double took_s = (double)(now_ns() - begun_ns) / 1e9;
    printf("  cut %s: %s after %.1f s: %s\n", in_flight ? "while sending" : "while idle", st_name(code), took_s, e.text);
    fflush(stdout);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return code == ST_PEER_LOST && took_s < 6 && strstr(e.text, "rank 1") ? 0 : 1;
}
static void a_silent_host_is_noticed(void **state) {
    (void)state;
    for (int in_flight = 0; in_flight < 2; in_flight++) {
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) _exit(cut_the_cable(in_flight));
        int status = 1;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
            printf("  no network namespace to be had\n");
            skip();
        }
        assert_int_equal(status, 0);
    }
}

static bool slow_reader(struct comm **pc, void *arg) {
    (void)arg;
    struct comm *c = *pc;
    struct err e = {0};
    const size_t recv_bytes[] = {(size_t)16 * MIB, 64};
    const void *views[2];
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    if (comm_rank(c) == 1) pause_us(6000000); /* the window to it is closed for so long */
    CHECK_ST(ST_OK, comm_allgather(c, NULL, recv_bytes, &no_header, soon(), views, NULL, &e), &e);
    return true;
}
static void a_busy_peer_is_not_a_silent_one(void **state) {
    (void)state;
    if (!t_long()) skip();
    group_run("tcp", 2, false, (size_t)16 * MIB, 0, slow_reader, NULL);
}

/* ---- peers that lie ------------------------------------------------------------------------------------------------------------------------------ */

static void lies_are_told(void **state) {
    (void)state;
    static const unsigned char payload[4096];
    static const struct {
        int rank; /* ours */
        struct tcp_frame f;
        const char *want;
    } cases[] = {
        {0, {.kind = TCP_EXCHANGE, .number = 2, .bytes = 48}, "rank 1 is at exchange 2, which cannot be"},
        {0, {.kind = TCP_EXCHANGE, .number = 0, .bytes = 48}, "rank 1 is at exchange 0, which cannot be"},
        {0, {.kind = TCP_EXCHANGE, .number = 1, .bytes = 40}, "rank 1 sent 40 bytes where 48 are due"},
        {0, {.kind = TCP_EXCHANGE, .number = 1, .bytes = 1ull << 62}, "rank 1 sends 4611686018427387904 bytes; 4160 were planned"},
        {0, {.kind = TCP_EVENT, .number = 0, .bytes = 3}, "rank 1's event stream is corrupt"},
        {0, {.kind = TCP_READ, .events_read = 1}, "rank 1 acknowledges events that were never posted"},
        {0, {.kind = TCP_READ, .bytes = 8}, "rank 1 sent a frame that cannot be"},
        {0, {.kind = TCP_BYE, .number = COMM_N_CAUSES}, "rank 1 sent a frame that cannot be"},
        {0, {.kind = TCP_BYE, .header.n_events = 2}, "rank 1 sent a frame that cannot be"},
        {0, {.kind = (enum tcp_kind)17}, "rank 1 sent bytes that are no frame"},
        {1, {.kind = TCP_EVENT, .number = 1, .bytes = 3}, "rank 0's event stream is corrupt: event 1 of 3 bytes where event 0 is due"},
        {1, {.kind = TCP_EVENT, .number = 0, .bytes = COMM_EVENT_MAX_BYTES + 1}, "rank 0's event stream is corrupt"},
        {1, {.kind = TCP_READ}, "rank 0 sent a frame that cannot be"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int bare, rank = cases[i].rank;
        struct err e = {0};
        struct comm *c = with_bare_peer(rank, &bare);
        const size_t recv_bytes[] = {rank == 0 ? 8 : 48, rank == 0 ? 48 : 8};
        const void *views[2];
        write_frame(bare, &cases[i].f, payload, cases[i].f.bytes < sizeof payload ? cases[i].f.bytes : 0);
        enum st code = comm_allgather(c, NULL, recv_bytes, &no_header, soon(), views, NULL, &e);
        t_expect_err_contains(ST_MISMATCH, code, &e, cases[i].want);
        t_expect_err_contains(ST_MISMATCH, comm_progress(c, &e), &e, cases[i].want);
        comm_close(c);
        close(bare);
    }
    /* Ahead of its time it is found out as soon as we know what is due. */
    int bare;
    struct err e = {0};
    struct comm *c = with_bare_peer(0, &bare);
    write_frame(bare, &(struct tcp_frame){.kind = TCP_EXCHANGE, .number = 1, .bytes = 40}, payload, 40);
    for (int i = 0; i < 20; i++, pause_us(1000)) T_OK(comm_progress(c, &e), &e);
    t_expect_err_contains(ST_MISMATCH, comm_allgather_start(c, NULL, (const size_t[]){8, 48}, &no_header, &e), &e,
                          "rank 1 sent 40 bytes where 48 are due");
    comm_close(c);
    close(bare);
    /* More events than there can be unread. */
    c = with_bare_peer(1, &bare);
    static unsigned char big[COMM_EVENT_MAX_BYTES];
    enum st code = ST_OK;
    for (uint64_t i = 0; i < 40 && code == ST_OK; i++) {
        unsigned char head[TCP_HEAD_BYTES];
        comm_tcp_put(&(struct tcp_frame){.kind = TCP_EVENT, .number = i, .bytes = sizeof big}, head);
        if (send(bare, head, sizeof head, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 || send(bare, big, sizeof big, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
        for (int k = 0; k < 10 && code == ST_OK; k++) code = comm_progress(c, &e);
    }
    t_expect_err_contains(ST_MISMATCH, code, &e, "rank 0's event stream is corrupt");
    comm_close(c);
    close(bare);
}

/* ---- costs --------------------------------------------------------------------------------------------------------------------------------------- */

/* Both ranks in this thread, so that nobody ever waits. The kernel kills whoever calls it for anything but to send and to receive. */
static void a_small_exchange_costs_one_call_each_way(void **state) {
    (void)state;
    if (IS_SANITIZED) skip();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct pair p;
        pair_open(&p, 4096, 0);
        static struct sock_filter filter[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                                              BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendto, 3, 0),
                                              BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_recvfrom, 2, 0),
                                              BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
                                              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
                                              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
        const struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(77);
        static const size_t recv_bytes[] = {8, 4096};
        const void *views[2];
        struct tcp *t[2] = {(struct tcp *)p.c[0], (struct tcp *)p.c[1]};
        enum { N = 2000 };
        bool ok = true;
        for (int i = 0; i < N; i++) {
            for (int r = 0; r < 2; r++) ok = comm_allgather_start(p.c[r], NULL, recv_bytes, &no_header, NULL) == ST_OK && ok;
            for (int r = 0; r < 2; r++) ok = comm_allgather_finish(p.c[r], BASE_NO_DEADLINE, views, NULL, NULL) == ST_OK && ok;
        }
        for (int r = 0; r < 2; r++) ok = ok && t[r]->n_sends == N && t[r]->n_receives == N;
        _exit(ok ? 0 : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip();
    assert_int_equal(status, 0);
}

static bool sleepy(struct comm **pc, void *arg) {
    (void)arg;
    struct err e = {0};
    struct timespec before, after;
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    if (comm_rank(*pc) == 0) pause_us(400000);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    char data[8];
    size_t bytes;
    if (comm_rank(*pc) != 0) CHECK_ST(ST_AGAIN, comm_event_next(*pc, data, sizeof data, &bytes, in_ms(200), &e), &e);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    int64_t cpu_us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    if (cpu_us > 50000) fprintf(stderr, "  %lld us of CPU time in waits of 600 ms\n", (long long)cpu_us);
    CHECK(cpu_us <= 50000);
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    return true;
}
static void who_waits_long_sleeps(void **state) {
    (void)state;
    for (int spin_us = 0; spin_us <= 50; spin_us += 50) group_run("tcp", 3, false, 64, spin_us, sleepy, NULL);
}

static int n_fds(void) {
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;
    while (dir && readdir(dir)) n++;
    if (dir) closedir(dir);
    return n;
}
static bool one_barrier(struct comm **pc, void *arg) {
    (void)arg;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_barrier(*pc, soon(), &e), &e);
    return true;
}
static void nothing_is_left(void **state) {
    (void)state;
    int n_before = n_fds();
    for (int i = 0; i < 5; i++) group_run("tcp", 4, true, 5000, 0, one_barrier, NULL);
    struct visit visits[N_GUESTS];
    visits_init(visits, &boot_table, NULL, 100);
    visits[2].is_absent = true;
    visits[2].forge = copy_first_record;
    visits[2].context = &(uint16_t){1};
    visits_run(visits);
    assert_int_not_equal(visits[0].code, ST_OK);
    assert_int_equal(n_fds(), n_before);
}

static bool is_reno(int fd) {
    char name[32] = "";
    socklen_t bytes = sizeof name - 1;
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes), 0);
    return strcmp(name, "reno") == 0;
}

/* Both ends of a connection, the accepted one by what its listener was told. */
static void the_window_is_ours(void **state) {
    (void)state;
    const struct comm_os *os = comm_os_real();
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof at;
    const int ends[2] = {os->socket(os, AF_INET), os->socket(os, AF_INET)};
    for (int i = 0; i < 2; i++) {
        os->choose_window(os, ends[i]);
        assert_true(is_reno(ends[i]));
    }
    assert_int_equal(bind(ends[0], (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(ends[0], 1), 0);
    assert_int_equal(getsockname(ends[0], (struct sockaddr *)&at, &bytes), 0);
    os->connect(os, ends[1], (struct sockaddr *)&at, sizeof at);
    assert_int_equal(poll(&(struct pollfd){.fd = ends[0], .events = POLLIN}, 1, 5000), 1);
    const int child = os->accept(os, ends[0], NULL, NULL);
    assert_true(child >= 0);
    assert_true(is_reno(child));
    close(child);
    close(ends[0]);
    close(ends[1]);
}

/* Sent as they lie there: what is changed before it is read is read changed. And not at all where a broken connection would be our end. */
static void pages_are_not_copied(void **state) {
    (void)state;
    enum { BYTES = 32768 };
    const struct comm_os *os = comm_os_real();
    struct comm_pages pages = {.bytes = 0};
    const sighandler_t before = signal(SIGPIPE, SIG_DFL);
    assert_int_equal(os->map_pages(os, BYTES, &pages), ST_UNSUPPORTED);
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(os->map_pages(os, BYTES, &pages), ST_OK);
    assert_true(pages.least <= BYTES && pages.most >= BYTES);
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    memset(pages.memory, 1, BYTES);
    assert_int_equal(os->send_pages(os, ends[0], &pages, 4096, 8192), 8192);
    pages.memory[5000] = 2;
    unsigned char got[8192];
    assert_int_equal(recv(ends[1], got, sizeof got, MSG_WAITALL), sizeof got);
    assert_int_equal(got[5000 - 4096 - 1], 1);
    assert_int_equal(got[5000 - 4096], 2);
    close(ends[1]);
    assert_int_equal(os->send_pages(os, ends[0], &pages, 0, 8192), -1);
    assert_int_equal(errno, EPIPE);
    close(ends[0]);
    os->unmap_pages(os, &pages);
    signal(SIGPIPE, before);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN); /* as ranks do, and tcp sends pages */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_are_not_let_in),
        cmocka_unit_test(what_was_said_elsewhere_proves_nothing),
        cmocka_unit_test(a_rank_joins_once),
        cmocka_unit_test(a_siege_keeps_nobody_out),
        cmocka_unit_test(opening_names_who_is_missing),
        cmocka_unit_test(ipv6_works),
        cmocka_unit_test(the_window_is_ours),
        cmocka_unit_test(pages_are_not_copied),
        cmocka_unit_test(tiny_buffers_split_everything),
        cmocka_unit_test(messages_of_64_mib_arrive),
        cmocka_unit_test(death_in_the_middle_of_a_large_message),
        cmocka_unit_test(what_was_sent_before_closing_arrives),
        cmocka_unit_test(a_bye_names_the_cause),
        cmocka_unit_test(who_runs_ahead_is_waited_for),
        cmocka_unit_test(a_bye_behind_a_run_is_heard),
        cmocka_unit_test(who_is_ahead_wakes_nobody),
        cmocka_unit_test(a_run_that_breaks_ends_with_a_bye),
        cmocka_unit_test(a_silent_host_is_noticed),
        cmocka_unit_test(a_busy_peer_is_not_a_silent_one),
        cmocka_unit_test(lies_are_told),
        cmocka_unit_test(a_small_exchange_costs_one_call_each_way),
        cmocka_unit_test(who_waits_long_sleeps),
        cmocka_unit_test(nothing_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
