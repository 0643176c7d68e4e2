/* The emulated link: when bytes arrive, to the nanosecond, by a clock that the test moves; what the real clock allows to say; the text form. */
#include <float.h>
#include <math.h>

#include "comm/comm_priv.h"
#include "tests/t_comm.h"

enum { MAX_RANKS = 3, MAX_BYTES = 1 << 14, START = 1000000 };

/* ---- ranks in one thread, a clock that stands still ------------------------------------------------------------------------------------------------- */

struct rig {
    struct base_clock_manual manual[MAX_RANKS];
    struct base_clock clocks[MAX_RANKS];
    struct group g;
    int n_ranks;
    struct comm *c[MAX_RANKS];
    unsigned char *buffers[MAX_RANKS];
    size_t recv_bytes[MAX_RANKS];
};

static void rig_open_each(struct rig *rig, int n_ranks, const struct comm_link *links /* [n_ranks] */, int spin_us) {
    rig->n_ranks = n_ranks;
    group_init(&rig->g, "shm", n_ranks, true, MAX_BYTES, spin_us);
    for (int r = 0; r < n_ranks; r++) {
        struct comm_boot boot;
        struct group_boot_end end;
        struct err e = {0};
        rig->manual[r].now_ns = START;
        rig->clocks[r] = base_clock_from_manual(&rig->manual[r]);
        struct comm_setup setup = group_setup(&rig->g, r, &boot, &end);
        setup.clock = &rig->clocks[r];
        setup.link = &links[r];
        T_OK(comm_open(&setup, &rig->c[r], &e), &e);
    }
}
static void rig_open(struct rig *rig, int n_ranks, struct comm_link link) {
    const struct comm_link links[MAX_RANKS] = {link, link, link};
    rig_open_each(rig, n_ranks, links, 0);
}
static void rig_close(struct rig *rig) {
    for (int r = 0; r < rig->n_ranks; r++) comm_close(rig->c[r]);
    group_release(&rig->g);
}

/* 8 ns a byte, 1 us. */
static struct comm_link one_gbit(void) { return (struct comm_link){.bits_per_s = 1e9, .delay_ns = 1000}; }

/* Times are since START. */
static void set_clock(struct rig *rig, uint64_t ns) {
    for (int r = 0; r < rig->n_ranks; r++) rig->manual[r].now_ns = START + ns;
}
/* All ranks say what all send in the exchange that follows. */
static void sizes_are(struct rig *rig, size_t a, size_t b, size_t c) {
    rig->recv_bytes[0] = a;
    rig->recv_bytes[1] = b;
    rig->recv_bytes[2] = c;
}
static void begin(struct rig *rig, int rank, uint64_t at_ns) {
    struct err e = {0};
    const struct comm_header header = {.step = 7, .token_hash = (uint32_t)rank};
    set_clock(rig, at_ns);
    rig->buffers[rank] = comm_send_buffer(rig->c[rank]);
    memset(rig->buffers[rank], rank + 1, rig->recv_bytes[rank]);
    T_OK(comm_allgather_start(rig->c[rank], NULL, rig->recv_bytes, &header, &e), &e);
}
static enum st end(struct rig *rig, int rank, uint64_t at_ns, struct err *e) {
    const void *views[MAX_RANKS];
    struct comm_header headers[MAX_RANKS];
    set_clock(rig, at_ns);
    enum st code = comm_allgather_finish(rig->c[rank], 1, views, headers, e);
    for (int r = 0; code == ST_OK && r < rig->n_ranks; r++) {
        assert_ptr_equal(rig->buffers[r], views[r]); /* where the sender wrote it: no copy */
        for (size_t i = 0; i < rig->recv_bytes[r]; i++) assert_int_equal(((const unsigned char *)views[r])[i], r + 1);
        assert_int_equal(headers[r].token_hash, r);
        assert_int_equal(headers[r].step, 7);
    }
    return code;
}
/* The exchange ends on this rank at that moment and not a nanosecond before; last is whom it waited for. */
#define ENDS_AT(rig, rank, at_ns, last) ends_at(rig, rank, at_ns, last, __LINE__)
static void ends_at(struct rig *rig, int rank, uint64_t at_ns, int last, int line) {
    struct err e = {0};
    char want[32];
    snprintf(want, sizeof want, "rank %d did not answer", last);
    enum st code = end(rig, rank, at_ns - 1, &e);
    if (code != ST_TIMEOUT || !strstr(e.text, want)) fail_msg("line %d: 1 ns early: %s (%s), not from rank %d", line, st_name(code), e.text, last);
    code = end(rig, rank, at_ns, &e);
    if (code != ST_OK) fail_msg("line %d: at the time: %s (%s)", line, st_name(code), e.text);
}
static struct comm_link_totals totals_of(struct rig *rig, int rank) {
    struct comm_link_totals t;
    comm_link_query(rig->c[rank], &t);
    return t;
}

static void both_directions_do_not_slow_each_other(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 100, 100, 0);
    begin(&rig, 0, 0);
    begin(&rig, 1, 0);
    ENDS_AT(&rig, 0, 1800, 1);
    ENDS_AT(&rig, 1, 1800, 0);
    /* The slower side decides: here rank 1 begins 500 ns later; rank 0's bytes need not wait for that. */
    begin(&rig, 0, 10000);
    begin(&rig, 1, 10500);
    ENDS_AT(&rig, 1, 11800, 0);
    ENDS_AT(&rig, 0, 12300, 1);
    struct comm_link_totals t = totals_of(&rig, 0);
    assert_int_equal(t.n_exchanges, 2);
    assert_int_equal(t.bytes, 200);
    assert_int_equal(t.link_ns, 1800 + 1800);
    assert_int_equal(t.held_ns, 1 + 1); /* as seen from the first test */
    assert_int_equal(t.late_ns, 0);
    t = totals_of(&rig, 1);
    assert_int_equal(t.link_ns, 1800 + 1300); /* since it began itself */
    rig_close(&rig);
}

static void an_empty_message_takes_the_delay(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 0, 0, 0);
    begin(&rig, 0, 0);
    begin(&rig, 1, 100);
    ENDS_AT(&rig, 1, 1000, 0);
    ENDS_AT(&rig, 0, 1100, 1);
    rig_close(&rig);
}

static void sizes_differ_by_rank(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 1000, 1, 0);
    begin(&rig, 0, 0);
    begin(&rig, 1, 0);
    ENDS_AT(&rig, 0, 1008, 1);
    ENDS_AT(&rig, 1, 9000, 0);
    rig_close(&rig);
}

static void what_follows_queues_at_the_port(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 1000, 0, 0);
    begin(&rig, 0, 0); /* its port is busy until 8000 */
    begin(&rig, 1, 0);
    ENDS_AT(&rig, 0, 1000, 1);
    sizes_are(&rig, 10, 0, 0);
    begin(&rig, 0, 1000);
    sizes_are(&rig, 1000, 0, 0);
    const void *views[2];
    struct err e = {0};
    set_clock(&rig, 8999);
    t_expect_err_contains(ST_TIMEOUT, comm_allgather_finish(rig.c[1], 1, views, NULL, &e), &e, "exchange 1");
    set_clock(&rig, 9000);
    T_OK(comm_allgather_finish(rig.c[1], 1, views, NULL, &e), &e);
    sizes_are(&rig, 10, 0, 0);
    begin(&rig, 1, 9000);
    ENDS_AT(&rig, 1, 9080, 0); /* 8000 + 80 + 1000 */
    ENDS_AT(&rig, 0, 10000, 1);
    /* Once the port is free, nothing of it is left. */
    begin(&rig, 0, 20000);
    begin(&rig, 1, 20000);
    ENDS_AT(&rig, 1, 21080, 0);
    ENDS_AT(&rig, 0, 21080 - 80, 1);
    rig_close(&rig);
}

static void three_ranks_send_one_copy_after_the_other(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 3, one_gbit());
    sizes_are(&rig, 100, 100, 100);
    for (int r = 0; r < 3; r++) begin(&rig, r, 0);
    /* From the rank below 800 + 1000, from the one above it is the second copy. */
    for (int r = 0; r < 3; r++) ENDS_AT(&rig, r, 2600, (r + 1) % 3);
    struct comm_link_totals t = totals_of(&rig, 2);
    assert_int_equal(t.bytes, 200);
    assert_int_equal(t.link_ns, 2600);
    /* Only rank 0 sends: to rank 1, then to rank 2. */
    sizes_are(&rig, 100, 0, 0);
    for (int r = 0; r < 3; r++) begin(&rig, r, 10000);
    ENDS_AT(&rig, 0, 11000, 1);
    ENDS_AT(&rig, 1, 11800, 0);
    ENDS_AT(&rig, 2, 12600, 0);
    rig_close(&rig);
}

static void two_messages_meet_at_a_port(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 3, one_gbit());
    sizes_are(&rig, 0, 100, 100);
    begin(&rig, 0, 0);
    begin(&rig, 1, 0);   /* to rank 2 from 0 to 800, to rank 0 from 800 to 1600 */
    begin(&rig, 2, 800); /* to rank 0 from 800 to 1600, to rank 1 from 1600 to 2400 */
    ENDS_AT(&rig, 2, 1800, 1);
    ENDS_AT(&rig, 0, 3400, 2); /* both first bytes at 1800, so it takes until 1800 + 2 · 800 */
    end(&rig, 1, 3399, NULL);
    ENDS_AT(&rig, 1, 3400, 2); /* 2400 + 1000 */
    rig_close(&rig);
}

static void begin_scatter(struct rig *rig, int rank, uint64_t at_ns, const struct comm_shares *shares) {
    struct err e = {0};
    const struct comm_header header = {.step = 7, .token_hash = (uint32_t)rank};
    set_clock(rig, at_ns);
    rig->buffers[rank] = comm_send_buffer(rig->c[rank]);
    rig->recv_bytes[rank] = shares->n_vectors[rank] * shares->vector_bytes;
    memset(rig->buffers[rank], rank + 1, rig->recv_bytes[rank]);
    T_OK(comm_scatter_start(rig->c[rank], NULL, shares, &header, &e), &e);
}

static void of_a_scatter_each_share_takes_its_time(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 3, one_gbit());
    struct comm_shares shares = {.vector_bytes = 192, .n_vectors = {1, 1, 1}};
    comm_cut_evenly(&shares, 3, 64);
    for (int r = 0; r < 3; r++) begin_scatter(&rig, r, 0, &shares);
    for (int r = 0; r < 3; r++) ENDS_AT(&rig, r, 2 * 512 + 1000, (r + 1) % 3);
    struct comm_link_totals t = totals_of(&rig, 2);
    assert_int_equal(t.bytes, 128);
    assert_int_equal(t.link_ns, 2024);
    /* All for rank 1, and two vectors of rank 2. */
    shares = (struct comm_shares){.vector_bytes = 192, .n_vectors = {1, 1, 2}, .begin = {0, 0, 192, 192}};
    for (int r = 0; r < 3; r++) begin_scatter(&rig, r, 10000, &shares);
    ENDS_AT(&rig, 0, 11000, 1);
    ENDS_AT(&rig, 1, 11000 + 3 * 192 * 8, 2);
    ENDS_AT(&rig, 2, 11000 + 192 * 8, 0); /* behind the one for rank 1 */
    rig_close(&rig);
}

static void a_group_shares_the_port(void **state) {
    (void)state;
    struct rig a, b;
    rig_open(&a, 2, one_gbit());
    rig_open(&b, 2, one_gbit());
    for (int r = 0; r < 2; r++) comm_link_share_port(b.c[r], a.c[r]);
    sizes_are(&a, 100, 0, 0);
    sizes_are(&b, 100, 0, 0);
    for (int r = 0; r < 2; r++) begin(&a, r, 0), begin(&b, r, 0);
    ENDS_AT(&a, 1, 1800, 0);
    ENDS_AT(&b, 1, 2600, 0);
    rig_close(&b);
    rig_close(&a);
}

static void jitter_is_bounded_and_repeats(void **state) {
    (void)state;
    enum { N = 2000, MOST = 50 };
    static uint64_t late[3][N][2];
    uint64_t seed = t_seed();
    for (int run = 0; run < 3; run++) {
        struct comm_link link = one_gbit();
        link.jitter_ns = MOST;
        link.seed = run < 2 ? seed : seed + 1;
        struct rig rig;
        rig_open(&rig, 2, link);
        sizes_are(&rig, 10, 10, 0);
        uint64_t sum = 0, least = MOST, most = 0;
        for (int i = 0; i < N; i++) {
            uint64_t at_ns = (uint64_t)i * 10000;
            begin(&rig, 0, at_ns);
            begin(&rig, 1, at_ns);
            for (int r = 0; r < 2; r++) {
                struct err e = {0};
                uint64_t before_ns = totals_of(&rig, r).link_ns;
                set_clock(&rig, at_ns);
                assert_int_equal(end(&rig, r, at_ns, &e), ST_TIMEOUT);
                uint64_t ns = totals_of(&rig, r).link_ns - before_ns;
                assert_true(ns >= 1080 && ns <= 1080 + MOST);
                late[run][i][r] = ns - 1080;
                sum += ns - 1080;
                if (ns - 1080 < least) least = ns - 1080;
                if (ns - 1080 > most) most = ns - 1080;
                ENDS_AT(&rig, r, at_ns + ns, 1 - r);
            }
        }
        double mean = (double)sum / (2 * N);
        printf("  jitter of 0 to %d ns: %llu to %llu, mean %.1f\n", MOST, (unsigned long long)least, (unsigned long long)most, mean);
        assert_true(fabs(mean - 25) < 2 && least == 0 && most == MOST); /* eight standard deviations; both ends of 51 come in 4000 draws */
        rig_close(&rig);
    }
    assert_memory_equal(late[0], late[1], sizeof late[0]);
    assert_memory_not_equal(late[0], late[2], sizeof late[0]);
    int n_same = 0;
    for (int i = 0; i < N; i++) n_same += late[0][i][0] == late[0][i][1];
    assert_true(n_same < N / 10); /* the two directions do not share it */
}

/* ---- what the machine takes beyond the link ----------------------------------------------------------------------------------------------------------- */

static void a_late_machine_is_told(void **state) {
    (void)state;
    struct rig rig;
    struct err e = {0};
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 100, 100, 0);
    begin(&rig, 0, 0);
    assert_int_equal(end(&rig, 0, 0, &e), ST_TIMEOUT); /* rank 0 looks from now on */
    /* Rank 1 says that it began at 100, but its bytes are there at 5000 only. */
    const struct comm_header header = {.step = 7, .token_hash = 1, .sent_ns = START + 100};
    set_clock(&rig, 5000);
    rig.buffers[1] = comm_send_buffer(rig.c[1]);
    memset(rig.buffers[1], 2, 100);
    T_OK(comm_allgather_start(rig.c[1], NULL, rig.recv_bytes, &header, &e), &e);
    assert_int_equal(end(&rig, 0, 5000, &e), ST_OK); /* due at 1900 */
    struct comm_link_totals t = totals_of(&rig, 0);
    assert_int_equal(t.link_ns, 1800);
    assert_int_equal(t.held_ns, 0);
    assert_int_equal(t.late_ns, 3100);
    assert_int_equal(t.n_late, 1);
    assert_int_equal(end(&rig, 1, 5000, &e), ST_OK);
    t = totals_of(&rig, 1);
    assert_int_equal(t.link_ns, 1700);        /* rank 0's bytes had been due at 1800 */
    assert_int_equal(t.late_ns, 5000 - 1800); /* what starting took of it */

    /* Who comes late for his bytes is not kept waiting by the machine. */
    begin(&rig, 0, 10000);
    begin(&rig, 1, 10000);
    for (int r = 0; r < 2; r++) assert_int_equal(end(&rig, r, 60000, &e), ST_OK);
    t = totals_of(&rig, 0);
    assert_int_equal(t.link_ns, 1800 + 1800);
    assert_int_equal(t.late_ns, 3100);
    assert_int_equal(t.n_late, 1);
    assert_int_equal(t.held_ns, 0);

    /* Nor is he who begins when the other's bytes have long arrived. */
    begin(&rig, 0, 70000);
    begin(&rig, 1, 80000);
    assert_int_equal(end(&rig, 1, 80000, &e), ST_OK);
    t = totals_of(&rig, 1);
    assert_int_equal(t.link_ns, 1700 + 1800);
    assert_int_equal(t.late_ns, 5000 - 1800);
    assert_int_equal(end(&rig, 0, 90000, &e), ST_OK);
    t = totals_of(&rig, 0);
    assert_int_equal(t.link_ns, 1800 + 1800 + 1800);
    assert_int_equal(t.late_ns, 3100);

    /* Bytes that are there at once are held until they are due. */
    begin(&rig, 0, 100000);
    begin(&rig, 1, 100000);
    assert_int_equal(end(&rig, 0, 100300, &e), ST_TIMEOUT);
    assert_int_equal(end(&rig, 0, 101850, &e), ST_OK); /* 50 late: not worth a mention, but counted */
    t = totals_of(&rig, 0);
    assert_int_equal(t.held_ns, 1500);
    assert_int_equal(t.late_ns, 3150);
    assert_int_equal(t.n_late, 1);
    rig_close(&rig);
}

static void the_beginning_is_told_or_seen(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 0, 0, 0);
    static const struct {
        uint64_t begun_ns, told_ns, due_ns;
    } cases[] = {{10000, 9000, 10000},
                 {20000, 20001, 21000} /* not yet */,
                 {500000, 399999, 501000} /* long ago */,
                 {600000, 500999, 601000} /* in the exchange before */};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        const struct comm_header header = {.step = 7, .sent_ns = START + cases[i].told_ns};
        set_clock(&rig, cases[i].begun_ns);
        for (int r = 0; r < 2; r++) rig.buffers[r] = comm_send_buffer(rig.c[r]);
        uint64_t due_ns = cases[i].due_ns;
        const void *views[2];
        for (int r = 0; r < 2; r++) T_OK(comm_allgather_start(rig.c[r], NULL, rig.recv_bytes, &header, &e), &e);
        for (int r = 0; r < 2; r++) {
            set_clock(&rig, due_ns - 1);
            if (due_ns > cases[i].begun_ns) t_expect_err_contains(ST_TIMEOUT, comm_allgather_finish(rig.c[r], 1, views, NULL, &e), &e, NULL);
            set_clock(&rig, due_ns);
            T_OK(comm_allgather_finish(rig.c[r], 1, views, NULL, &e), &e);
        }
    }
    rig_close(&rig);
}

/* ---- events ------------------------------------------------------------------------------------------------------------------------------------------- */

static void event_comes_at(struct rig *rig, int rank, uint64_t at_ns, size_t bytes, int value, int line) {
    struct err e = {0};
    static unsigned char data[COMM_EVENT_MAX_BYTES];
    size_t got = 0;
    set_clock(rig, at_ns - 1);
    if (comm_event_next(rig->c[rank], data, sizeof data, &got, 0, &e) != ST_AGAIN) fail_msg("line %d: 1 ns early", line);
    if (bytes) { /* nothing is lost where it does not fit */
        set_clock(rig, at_ns);
        t_expect_err_contains(ST_INVALID, comm_event_next(rig->c[rank], data, bytes - 1, &got, 0, &e), &e, "does not fit");
    }
    set_clock(rig, at_ns);
    enum st code = comm_event_next(rig->c[rank], data, sizeof data, &got, 0, &e);
    if (code != ST_OK) fail_msg("line %d: at the time: %s (%s)", line, st_name(code), e.text);
    assert_int_equal(got, bytes);
    for (size_t i = 0; i < bytes; i++) assert_int_equal(data[i], value);
}
#define EVENT_COMES_AT(rig, rank, at_ns, bytes, value) event_comes_at(rig, rank, at_ns, bytes, value, __LINE__)

static void post(struct rig *rig, uint64_t at_ns, size_t bytes, int value) {
    static unsigned char data[COMM_EVENT_MAX_BYTES];
    struct err e = {0};
    set_clock(rig, at_ns);
    memset(data, value, bytes);
    T_OK(comm_event_post(rig->c[0], data, bytes, &e), &e);
}

static void events_take_the_wire(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 3, one_gbit());
    post(&rig, 0, 100, 1);
    post(&rig, 0, 0, 2);
    EVENT_COMES_AT(&rig, 1, 1800, 100, 1);
    EVENT_COMES_AT(&rig, 2, 2600, 100, 1); /* the second copy */
    EVENT_COMES_AT(&rig, 1, 2600, 0, 2);
    EVENT_COMES_AT(&rig, 2, 2600, 0, 2);
    /* An exchange queues behind what was posted before it: so what its header announces is there when it is. */
    post(&rig, 10000, COMM_EVENT_MAX_BYTES, 3);
    uint64_t left_ns = 10000 + 2 * 8 * (uint64_t)COMM_EVENT_MAX_BYTES;
    sizes_are(&rig, 1, 0, 0);
    for (int r = 0; r < 3; r++) begin(&rig, r, 10000);
    ENDS_AT(&rig, 1, left_ns + 8 + 1000, 0);
    static unsigned char data[COMM_EVENT_MAX_BYTES];
    size_t got;
    struct err e = {0};
    T_OK(comm_event_next(rig.c[1], data, sizeof data, &got, 0, &e), &e);
    ENDS_AT(&rig, 2, left_ns + 16 + 1000, 0);
    T_OK(comm_event_next(rig.c[2], data, sizeof data, &got, 0, &e), &e);
    assert_int_equal(got, COMM_EVENT_MAX_BYTES);
    assert_int_equal(data[got - 1], 3);
    ENDS_AT(&rig, 0, 11000, 1); /* what it receives does not queue behind what it sends */
    rig_close(&rig);
}

static void a_full_ring_says_again(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 2, one_gbit());
    static unsigned char data[COMM_EVENT_MAX_BYTES];
    struct err e = {0};
    int n_posted = 0, n_read = 0;
    uint64_t at_ns = 0;
    size_t got;
    for (int round = 0; round < 50; round++) {
        for (;;) {
            memset(data, n_posted, sizeof data);
            enum st code = comm_event_post(rig.c[0], data, sizeof data - (size_t)n_posted, &e);
            if (code == ST_AGAIN) break;
            T_OK(code, &e);
            n_posted++;
        }
        set_clock(&rig, at_ns += 1ull << 32);
        for (int i = 0; i < 1 + round % 3; i++, n_read++) {
            T_OK(comm_event_next(rig.c[1], data, sizeof data, &got, 0, &e), &e);
            assert_int_equal(got, sizeof data - (size_t)n_read);
            assert_int_equal(data[0], n_read % 256);
            assert_int_equal(data[got - 1], n_read % 256);
        }
    }
    assert_true(n_posted > 60 && n_posted - n_read >= 13);
    rig_close(&rig);

    /* What was refused before its stamp has gone takes no time of the port: 16 events of 64 KiB, stamps and heads included, fill shm's ring. */
    rig_open(&rig, 2, one_gbit());
    for (int i = 0; i < 16; i++) T_OK(comm_event_post(rig.c[0], data, 65536 - 48, &e), &e);
    for (int i = 0; i < 10; i++) t_expect_err_contains(ST_AGAIN, comm_event_post(rig.c[0], data, 65536 - 48, &e), &e, NULL);
    sizes_are(&rig, 1, 0, 0);
    for (int r = 0; r < 2; r++) begin(&rig, r, 0);
    ENDS_AT(&rig, 1, 16 * (65536 - 48) * 8 + 8 + 1000, 0);
    rig_close(&rig);
}

/* ---- what a peer may say ------------------------------------------------------------------------------------------------------------------------------ */

static void stamps_are_checked(void **state) {
    (void)state;
    struct rig rig;
    struct err e = {0};
    const void *views[2];
    const struct comm_header header = {.step = 9};

    struct comm_link links[MAX_RANKS] = {one_gbit(), one_gbit(), one_gbit()};
    links[1].delay_ns++;
    rig_open_each(&rig, 2, links, 0);
    sizes_are(&rig, 10, 10, 0);
    begin(&rig, 0, 0);
    begin(&rig, 1, 0);
    t_expect_err_contains(ST_MISMATCH, end(&rig, 0, 5000, &e), &e, "rank 1 emulates another link than rank 0, or none: step 7, exchange 1");
    T_OK(comm_event_post(rig.c[0], "x", 1, &e), &e);
    char data[8];
    size_t got;
    t_expect_err_contains(ST_MISMATCH, comm_event_next(rig.c[1], data, sizeof data, &got, 0, &e), &e, "rank 0 emulates another link");
    rig_close(&rig);

    /* Sizes that differ in what the backend cannot see. */
    rig_open(&rig, 2, one_gbit());
    T_OK(comm_allgather_start(rig.c[0], NULL, (const size_t[]){0, 48}, &header, &e), &e);
    T_OK(comm_allgather_start(rig.c[1], NULL, (const size_t[]){0, 40}, &header, &e), &e);
    t_expect_err_contains(ST_MISMATCH, comm_allgather_finish(rig.c[0], soon(), views, NULL, &e), &e,
                          "rank 1 sent 40 bytes where 48 are due: step 9, exchange 1");
    rig_close(&rig);

    /* A clock that is ahead: less than a millisecond is taken for now, more is another machine's. */
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 0, 0, 0);
    begin(&rig, 1, 999999);
    begin(&rig, 0, 0);
    assert_int_equal(end(&rig, 0, 0, &e), ST_TIMEOUT);
    assert_int_equal(totals_of(&rig, 0).link_ns, 1000 + 999999); /* it departs when it says */
    assert_int_equal(end(&rig, 1, 999999, &e), ST_OK);
    assert_int_equal(end(&rig, 0, 1000999, &e), ST_OK);
    begin(&rig, 1, 5000001);
    begin(&rig, 0, 2000000);
    t_expect_err_contains(ST_MISMATCH, end(&rig, 0, 4000000, &e), &e, "rank 1's clock is 1000 us ahead: an emulated link needs ranks of one machine");
    rig_close(&rig);
}

static void set_departure(struct rig *rig, int rank, uint64_t departs_ns) {
    memcpy(rig->buffers[rank] + comm_round_up(rig->recv_bytes[rank], 64) + 8, &departs_ns, 8);
}

static void departures_are_bounded(void **state) {
    (void)state;
    struct rig rig;
    struct err e = {0};
    rig_open(&rig, 2, one_gbit());
    sizes_are(&rig, 100, 100, 0);
    /* Nobody departs before he began. */
    for (int r = 0; r < 2; r++) begin(&rig, r, 0);
    set_departure(&rig, 1, 0);
    ENDS_AT(&rig, 0, 1800, 1);
    ENDS_AT(&rig, 1, 1800, 0);
    /* Who never departs never arrives; the deadline ends it. */
    for (int r = 0; r < 2; r++) begin(&rig, r, 10000);
    set_departure(&rig, 1, UINT64_MAX);
    t_expect_err_contains(ST_TIMEOUT, end(&rig, 0, 1ull << 62, &e), &e, "rank 1 did not answer");
    ENDS_AT(&rig, 1, 11800, 0);
    rig_close(&rig);
}

/* Whatever is in the stamp: an answer, and no wait beyond the deadline. */
static void noise_in_the_stamp_harms_nobody(void **state) {
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    int n_by_code[ST_COUNT] = {0};
    for (int round = 0; round < (t_long() ? 20000 : 2000); round++) {
        struct rig rig;
        struct comm_link link = {.bits_per_s = base_rng_below(&rng, 2) ? 1 : 1e15, .delay_ns = base_rng_below(&rng, 10000)};
        const struct comm_link links[MAX_RANKS] = {link, link, link};
        rig_open_each(&rig, 3, links, base_rng_below(&rng, 2) ? 20 : 0);
        uint32_t small = base_rng_below(&rng, 200), large = base_rng_below(&rng, MAX_BYTES + 1); /* drawn in this order */
        sizes_are(&rig, small, large, 200 - small);
        for (int r = 0; r < 3; r++) begin(&rig, r, 5000);
        uint64_t words[4];
        unsigned char *stamp = rig.buffers[1] + comm_round_up(rig.recv_bytes[1], 64);
        memcpy(words, stamp, sizeof words);
        uint32_t n_changes = 1 + base_rng_below(&rng, 2);
        for (uint32_t i = 0; i < n_changes; i++) {
            uint64_t word = base_rng_u32(&rng) >> base_rng_below(&rng, 32);
            switch (base_rng_below(&rng, 4)) {
            case 0: word = UINT64_MAX - word; break;
            case 1: word <<= 32; break;
            default: word += START; break;
            }
            uint32_t n_words = base_rng_below(&rng, 8) ? 2 : 4; /* mostly the times */
            words[base_rng_below(&rng, n_words)] = word;
        }
        memcpy(stamp, words, sizeof words);
        const void *views[3];
        struct err e = {0};
        set_clock(&rig, base_rng_below(&rng, 1u << 30));
        n_by_code[comm_allgather_finish(rig.c[0], 1, views, NULL, &e)]++;
        rig_close(&rig);
    }
    for (int code = 0; code < ST_COUNT; code++)
        if (n_by_code[code]) printf("  %s: %d\n", st_name(code), n_by_code[code]);
    assert_true(n_by_code[ST_MISMATCH] > 0 && n_by_code[ST_OK] > 0 && n_by_code[ST_TIMEOUT] > 0);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------------------------------ */

static void open_wraps_and_refuses(void **state) {
    (void)state;
    struct err e = {0};
    struct comm *c = NULL;
    struct comm_link link = one_gbit();
    struct comm_setup setup = {.rank = 0, .n_ranks = 2, .max_bytes = 100, .memory_fd = -1, .link = &link};
    T_OK(comm_shm_create(2, 100, &setup.memory_fd, &e), &e);
    static const double wrong[] = {-1, 0.5, 1e16, (double)INFINITY, (double)NAN};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        link = (struct comm_link){.bits_per_s = wrong[i]};
        t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "link: ");
    }
    link = (struct comm_link){.delay_ns = 10000000001};
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "10 s");
    link = (struct comm_link){.jitter_ns = UINT64_MAX};
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "10 s");
    link = one_gbit();
    T_OK(comm_open(&setup, &c, &e), &e);
    assert_string_equal(comm_query(c)->name, "shm");
    assert_true(comm_query(c)->one_shot && comm_query(c)->ranks_as_threads && !comm_query(c)->crosses_hosts);
    struct comm_link_totals t = {.bytes = 1};
    comm_link_query(c, &t);
    assert_int_equal(t.bytes, 0);
    comm_close(c);
    close(setup.memory_fd);
    /* A rank alone has no wire. */
    setup = (struct comm_setup){.n_ranks = 1, .max_bytes = 100, .memory_fd = -1, .link = &link};
    T_OK(comm_open(&setup, &c, &e), &e);
    T_OK(comm_barrier(c, soon(), &e), &e);
    comm_link_query(c, &t);
    assert_int_equal(t.n_exchanges, 0);
    comm_close(c);
}

/* ---- the real clock ------------------------------------------------------------------------------------------------------------------------------------- */

/* An exchange never ends before its bytes would have arrived; how much later is the machine's affair. */
static bool never_early(struct comm **pc, void *arg) {
    const struct comm_link *link = arg;
    struct comm *c = *pc;
    int n_ranks = comm_n_ranks(c), rank = comm_rank(c);
    struct err e = {0};
    struct base_rng common, alone;
    base_rng_init(&common, 1);
    base_rng_init(&alone, (uint64_t)rank);
    const void *views[MAX_RANKS];
    struct comm_header headers[MAX_RANKS];
    uint64_t n_bytes = 0;
    enum { N = 300 };
    for (int i = 0; i < N; i++) {
        size_t recv_bytes[MAX_RANKS];
        for (int r = 0; r < n_ranks; r++) recv_bytes[r] = base_rng_below(&common, 3) ? base_rng_below(&common, 3000) : base_rng_below(&common, 60000);
        static _Thread_local unsigned char own[60000];
        unsigned char *mine = i % 2 ? own : comm_send_buffer(c);
        if (recv_bytes[rank]) mine[0] = mine[recv_bytes[rank] - 1] = (unsigned char)(i + rank);
        if (base_rng_below(&alone, 10) == 0) pause_us(base_rng_below(&alone, 200));
        const struct comm_header header = {.step = (uint64_t)i, .sent_ns = now_ns()};
        CHECK_ST(ST_OK, comm_allgather(c, mine, recv_bytes, &header, soon(), views, headers, &e), &e);
        uint64_t end_ns = now_ns();
        for (int r = 0; r < n_ranks; r++) {
            if (recv_bytes[r]) CHECK(((const unsigned char *)views[r])[recv_bytes[r] - 1] == (unsigned char)(i + r));
            if (r == rank) continue;
            n_bytes += recv_bytes[r];
            CHECK(end_ns >= headers[r].sent_ns + link->delay_ns + (uint64_t)((double)recv_bytes[r] * 8e9 / link->bits_per_s));
        }
    }
    struct comm_link_totals t;
    comm_link_query(c, &t);
    CHECK(t.n_exchanges == N && t.bytes == n_bytes && t.link_ns > 0);
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    return true;
}

static void nothing_comes_too_early(void **state) {
    (void)state;
    for (int n_ranks = 2; n_ranks <= MAX_RANKS; n_ranks++)
        for (int threads = 0; threads < 2; threads++)
            for (int spin_us = 0; spin_us <= 50; spin_us += 50) {
                struct comm_link link = {.bits_per_s = 10e9, .delay_ns = spin_us ? 3000 : 200000, .jitter_ns = 500};
                struct group g;
                group_init(&g, "shm", n_ranks, threads, 60000, spin_us);
                g.link = &link;
                struct group_member members[MAX_RANKS];
                pthread_t ids[MAX_RANKS];
                pid_t pids[MAX_RANKS];
                bool ok = true;
                for (int r = 0; r < n_ranks; r++) {
                    members[r] = (struct group_member){.group = &g, .rank = r, .fn = never_early, .arg = &link};
                    if (threads)
                        assert_int_equal(pthread_create(&ids[r], NULL, group_thread, &members[r]), 0);
                    else
                        pids[r] = group_fork(&g, r, never_early, &link);
                }
                for (int r = 0; r < n_ranks; r++) {
                    int status = 0;
                    if (threads)
                        pthread_join(ids[r], NULL);
                    else
                        waitpid(pids[r], &status, 0);
                    ok = ok && status == 0 && (!threads || members[r].ok);
                }
                group_release(&g);
                assert_true(ok);
            }
}

/* ---- as text ------------------------------------------------------------------------------------------------------------------------------------------ */

static void links_are_read(void **state) {
    (void)state;
    static const struct {
        const char *text;
        struct comm_link want;
        const char *printed;
    } cases[] = {
        {"200gbit,2.5us", {200e9, 2500, 0, 0}, "200gbit,2.5us"},
        {" 10 Gbit , 20 US ", {10e9, 20000, 0, 0}, "10gbit,20us"},
        {"200gbit,2.5us,jitter=500ns,seed=7", {200e9, 2500, 500, 7}, "200gbit,2.5us,jitter=500ns,seed=7"},
        {"200gbit,2.5us,SEED = 18446744073709551615,Jitter= 1.5 ms",
         {200e9, 2500, 1500000, UINT64_MAX},
         "200gbit,2.5us,jitter=1.5ms,seed=18446744073709551615"},
        {"0.3gbit,2.3us", {0.3e9, 2300, 0, 0}, "300mbit,2.3us"},
        {"1bit,0ns", {1, 0, 0, 0}, "1bit,0ns"},
        {"1000000gbit,10000ms", {1e15, 10000000000, 0, 0}, "1000000gbit,10000ms"},
        {".5kbit,007.ns", {500, 7, 0, 0}, "500bit,7ns"},
        {"100mbit,0.0000001ms", {100e6, 0, 0, 0}, "100mbit,0ns"},
        {"unlimited,5us", {0, 5000, 0, 0}, "unlimited,5us"},
        {"25gbit,1ms,jitter=0ns,seed=0", {25e9, 1000000, 0, 0}, "25gbit,1ms"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct comm_link got = {0};
        struct err e = {0};
        char text[128];
        T_OK(comm_link_parse(cases[i].text, &got, &e), &e);
        assert_true(got.bits_per_s == cases[i].want.bits_per_s);
        assert_int_equal(got.delay_ns, cases[i].want.delay_ns);
        assert_int_equal(got.jitter_ns, cases[i].want.jitter_ns);
        assert_true(got.seed == cases[i].want.seed);
        comm_link_print(&got, text);
        assert_string_equal(text, cases[i].printed);
    }
}

static void nonsense_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "nothing is given"},
        {"  \t", "nothing is given"},
        {"200gbit", "the delay is missing"},
        {"200gbit,", "a positive number"},
        {",2us", "a positive number"},
        {"200,2us", "the unit is missing"},
        {"200gbit,2", "the unit is missing"},
        {"200gb,2us", "'200gb': the unit should be bit, kbit, mbit or gbit"},
        {"25gbyte,2us", "the unit should be bit"},
        {"200gbit,2s", "the unit should be ns, us or ms"},
        {"2us,200gbit", "the unit should be bit"},
        {"0gbit,2us", "the rate should be 1bit"},
        {"0.5bit,2us", "the rate should be 1bit"},
        {"1000001gbit,2us", "to 1000000gbit"},
        {"-200gbit,2us", "a positive number"},
        {"+200gbit,2us", "a positive number"},
        {"200gbit,-2us", "a positive number"},
        {"nangbit,2us", "a positive number"},
        {"infgbit,2us", "a positive number"},
        {"0x10gbit,2us", "the unit should be"},
        {"1e9bit,2us", "the unit should be"},
        {"1.2.3gbit,2us", "the unit should be"},
        {".gbit,2us", "a positive number"},
        {"1,5gbit,2us", "the unit is missing"},
        {"200gbit,10001ms", "at most 10000ms"},
        {"200gbit,99999999999999999999999999999ns", "at most 10000ms"},
        {"200gbit,2us,", "only jitter= and seed= may follow"},
        {"200gbit,2us,5us", "only jitter= and seed= may follow"},
        {"200gbit,2us,jitter", "only jitter= and seed= may follow"},
        {"200gbit,2us,jitter=", "a positive number"},
        {"200gbit,2us,jitter=1us,jitter=1us", "this is given twice"},
        {"200gbit,2us,seed=1,jitter=1us,seed=2", "this is given twice"},
        {"200gbit,2us,seed=", "a whole number"},
        {"200gbit,2us,seed=-1", "a whole number"},
        {"200gbit,2us,seed=1x", "a whole number"},
        {"200gbit,2us,seed=18446744073709551616", "fit into 64 bits"},
        {"200gbit,2us,loss=1", "only jitter= and seed= may follow"},
        {"200gbit,2us;rm", "the unit should be ns"},
        {"\x01\xff,2us", "': a positive number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct comm_link link = {.delay_ns = 77};
        struct err e = {0};
        t_expect_err_contains(ST_INVALID, comm_link_parse(cases[i].text, &link, &e), &e, cases[i].part);
        t_expect_err_contains(ST_INVALID, comm_link_parse(cases[i].text, &link, &e), &e, "for instance 200gbit,2.5us");
        assert_int_equal(link.delay_ns, 77);
        T_OK(comm_link_parse("1gbit,1us", &link, NULL), NULL);
    }
    char *text = malloc(10001);
    memset(text, '1', 10000);
    text[10000] = 0;
    struct comm_link link;
    struct err e = {0};
    t_expect_err_contains(ST_INVALID, comm_link_parse(text, &link, &e), &e, "too long");
    free(text);
}

static void print_reads_back(void **state) {
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    for (int i = 0; i < 200000; i++) {
        struct comm_link link = {0}, got = {0};
        /* Any double in the range, or a round number near it. */
        double magnitude = pow(10, 15 * base_unit_open(base_rng_u32(&rng)));
        link.bits_per_s = base_rng_below(&rng, 2) ? magnitude : ceil(magnitude);
        if (link.bits_per_s > 1e15) link.bits_per_s = 1e15;
        link.delay_ns = base_rng_u32(&rng) >> base_rng_below(&rng, 32);
        if (base_rng_below(&rng, 2)) link.delay_ns *= 2;
        link.jitter_ns = base_rng_below(&rng, 2) ? 0 : base_rng_u32(&rng) >> base_rng_below(&rng, 32);
        link.seed = base_rng_below(&rng, 2) ? 0 : (uint64_t)base_rng_u32(&rng) << 32 | base_rng_u32(&rng);
        char text[128];
        struct err e = {0};
        comm_link_print(&link, text);
        T_OK(comm_link_parse(text, &got, &e), &e);
        if (got.bits_per_s != link.bits_per_s || got.delay_ns != link.delay_ns || got.jitter_ns != link.jitter_ns || got.seed != link.seed)
            fail_msg("%s is read as %.17g bit/s, %llu ns", text, got.bits_per_s, (unsigned long long)got.delay_ns);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_directions_do_not_slow_each_other),
        cmocka_unit_test(an_empty_message_takes_the_delay),
        cmocka_unit_test(sizes_differ_by_rank),
        cmocka_unit_test(what_follows_queues_at_the_port),
        cmocka_unit_test(three_ranks_send_one_copy_after_the_other),
        cmocka_unit_test(two_messages_meet_at_a_port),
        cmocka_unit_test(of_a_scatter_each_share_takes_its_time),
        cmocka_unit_test(a_group_shares_the_port),
        cmocka_unit_test(jitter_is_bounded_and_repeats),
        cmocka_unit_test(a_late_machine_is_told),
        cmocka_unit_test(the_beginning_is_told_or_seen),
        cmocka_unit_test(events_take_the_wire),
        cmocka_unit_test(a_full_ring_says_again),
        cmocka_unit_test(stamps_are_checked),
        cmocka_unit_test(departures_are_bounded),
        cmocka_unit_test(noise_in_the_stamp_harms_nobody),
        cmocka_unit_test(open_wraps_and_refuses),
        cmocka_unit_test(nothing_comes_too_early),
        cmocka_unit_test(links_are_read),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(print_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
