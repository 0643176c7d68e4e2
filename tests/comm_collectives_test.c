/* What comm/collectives.c asks of a backend, and in which order: over a backend that writes down what it is asked. (What comes out over real ones: comm_backends_test.) */
#include "comm/comm_priv.h"
#include "tests/t_comm.h"

/* ---- a backend of n ranks, all of which say the same ----------------------------------------------------------------------------------------------------- */

enum { N_FAKES = 3, CAPACITY = 4096 };

struct fake {
    struct comm comm;
    _Alignas(64) unsigned char slots[COMM_N_SLOTS][CAPACITY];
    char trace[4096];
    bool copied;                  /* somebody gave a buffer of his own */
    int fails_at;                 /* this exchange's start says that a peer is lost */
    int n_again;                  /* so many tests find nothing */
    struct base_clock_manual now; /* a sleep takes it to the deadline */
    struct base_clock clock;
};

static void note(struct fake *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(struct fake *f, const char *format, ...) {
    size_t at = strlen(f->trace);
    va_list args;
    va_start(args, format);
    vsnprintf(f->trace + at, sizeof f->trace - at, format, args);
    va_end(args);
}

static void *fake_send_buffer(struct comm *c) { return ((struct fake *)c)->slots[(c->sequence + 1) % COMM_N_SLOTS]; }
static enum st fake_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    (void)header;
    struct fake *f = (struct fake *)c;
    unsigned char *slot = f->slots[c->sequence % COMM_N_SLOTS];
    if ((int)c->sequence == f->fails_at) return err_set(e, ST_PEER_LOST, "rank 2 closed its end");
    if (send && send != slot) memcpy(slot, send, recv_bytes[c->rank]), f->copied = true;
    note(f, "S%zu ", recv_bytes[c->rank]);
    return ST_OK;
}
static enum st fake_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    (void)e;
    struct fake *f = (struct fake *)c;
    *missing = 1;
    if (f->n_again > 0) {
        f->n_again--;
        return ST_AGAIN;
    }
    for (int r = 0; r < c->n_ranks; r++) {
        views[r] = f->slots[c->sequence % COMM_N_SLOTS];
        if (headers) headers[r] = (struct comm_header){.step = 40 + (uint64_t)r};
    }
    note(f, "F ");
    return ST_OK;
}
static void fake_sleep(struct comm *c, uint64_t deadline_ns) { ((struct fake *)c)->now.now_ns = deadline_ns; }
static const struct comm_backend fake_backend = {.capabilities = {.name = "fake", .max_ranks = N_FAKES},
                                                 .send_buffer = fake_send_buffer,
                                                 .allgather_start = fake_start,
                                                 .allgather_test = fake_test,
                                                 .sleep = fake_sleep};

static void fake_init(struct fake *f, size_t max_bytes) {
    memset(f, 0, sizeof *f);
    f->now.now_ns = 1000;
    f->clock = base_clock_from_manual(&f->now);
    f->comm =
        (struct comm){.backend = &fake_backend, .clock = &f->clock, .os = comm_os_real(), .rank = 1, .n_ranks = N_FAKES, .max_bytes = max_bytes};
    f->fails_at = -1;
}

/* ---- exchange-and-add ------------------------------------------------------------------------------------------------------------------------------------- */

struct sum {
    struct fake *f;
    int n_vectors, n_calls;
    size_t end, vector_bytes, longest, shortest;
    const unsigned char *own;
    uint64_t extend_to_ns;
    int n_extended;
};

static void add(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors) {
    struct sum *s = context;
    note(s->f, "A%zu+%zu ", offset, bytes);
    assert_int_equal(offset, s->end);
    assert_int_equal(n_vectors, s->n_vectors);
    /* All ranks say what we say, and those with fewer vectors the first of them: each begins with our own bytes of this piece. */
    for (int v = 0; v < n_vectors; v++) assert_true((uintptr_t)vectors[v] % 64 == 0);
    if (n_vectors) assert_memory_equal(vectors[0], s->own + offset, bytes);
    s->end += bytes;
    s->n_calls++;
    if (s->end < s->vector_bytes && (!s->shortest || bytes < s->shortest)) s->shortest = bytes;
    if (bytes > s->longest) s->longest = bytes;
}
static uint64_t extend(void *context) {
    struct sum *s = context;
    s->n_extended++;
    return s->n_extended > 3 ? 0 : s->f->now.now_ns + s->extend_to_ns;
}

static enum st run_sum(struct fake *f, struct sum *s, const void *send, size_t vector_bytes, const uint32_t n_vectors[N_FAKES], size_t piece_bytes,
                       struct err *e) {
    *s = (struct sum){.f = f, .vector_bytes = vector_bytes, .own = send, .extend_to_ns = s->extend_to_ns};
    for (int r = 0; r < N_FAKES; r++) s->n_vectors += (int)n_vectors[r];
    f->trace[0] = 0;
    const struct comm_exchange_add x = {.send = send,
                                        .vector_bytes = vector_bytes,
                                        .n_vectors = n_vectors,
                                        .piece_bytes = piece_bytes,
                                        .add = add,
                                        .context = s,
                                        .extend = s->extend_to_ns ? extend : NULL};
    const struct comm_header header = {.step = 5};
    return comm_exchange_and_add(&f->comm, &x, &header, f->now.now_ns + BASE_NS_PER_S, e);
}

static unsigned char own[12 << 20];

static void what_fits_is_one_exchange(void **state) {
    (void)state;
    static struct fake f;
    struct sum s = {0};
    struct err e = {0};
    fake_init(&f, CAPACITY);
    for (size_t i = 0; i < sizeof own; i++) own[i] = (unsigned char)(i * 7 + i / 251);
    T_OK(run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 2, 1}, 0, &e), &e);
    assert_string_equal(f.trace, "S2024 F A0+1000 ");
    /* The own vectors where the next exchange sends from: a copy saved, or moved apart there, the last first. */
    for (int aligned = 0; aligned < 2; aligned++) {
        size_t bytes = aligned ? 1024 : 1000;
        memcpy(comm_send_buffer(&f.comm), own, 3 * bytes);
        T_OK(run_sum(&f, &s, comm_send_buffer(&f.comm), bytes, (const uint32_t[]){1, 3, 1}, 0, &e), &e);
        const unsigned char *sent = f.slots[f.comm.sequence % COMM_N_SLOTS];
        for (size_t v = 0; v < 3; v++) assert_memory_equal(sent + v * 1024, own + v * bytes, bytes);
    }
    assert_false(f.copied);
    T_OK(run_sum(&f, &s, own, 1000, (const uint32_t[]){3, 0, 1}, 0, &e), &e);
    assert_string_equal(f.trace, "S0 F A0+1000 ");
    T_OK(run_sum(&f, &s, own, 0, (const uint32_t[]){3, 0, 1}, 0, &e), &e);
    assert_string_equal(f.trace, "S0 F ");
    T_OK(run_sum(&f, &s, own, 0, (const uint32_t[]){0, 0, 0}, 0, &e), &e);
    assert_string_equal(f.trace, "S0 F ");
    T_OK(run_sum(&f, &s, own, 100000, (const uint32_t[]){0, 0, 0}, 0, &e), &e);
    assert_string_equal(f.trace, "S0 F A0+100000 ");
}

static void the_next_piece_flies_while_one_is_added(void **state) {
    (void)state;
    static struct fake f;
    struct sum s = {0};
    struct err e = {0};
    fake_init(&f, CAPACITY);
    T_OK(run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 1, 1}, 256, &e), &e);
    assert_string_equal(f.trace, "S256 F S256 A0+256 F S256 A256+256 F S232 A512+256 F A768+232 ");
    /* As asked for, but in whole lines and within the planned messages. */
    T_OK(run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 1, 1}, 999, &e), &e);
    assert_string_equal(f.trace, "S960 F S40 A0+960 F A960+40 ");
    T_OK(run_sum(&f, &s, own, 132, (const uint32_t[]){1, 1, 1}, 1, &e), &e);
    assert_string_equal(f.trace, "S64 F S64 A0+64 F S4 A64+64 F A128+4 ");
    T_OK(run_sum(&f, &s, own, 8192, (const uint32_t[]){1, 1, 3}, (size_t)1 << 40, &e), &e);
    assert_int_equal(s.longest, CAPACITY / 3 / 64 * 64);
}

static void pieces_are_alike_and_stay_in_cache(void **state) {
    (void)state;
    static struct fake f;
    struct err e = {0};
    for (size_t bytes = 4; bytes < sizeof own / 2; bytes = bytes * 5 / 4 / 4 * 4 + 4) {
        struct sum s = {0};
        fake_init(&f, CAPACITY);
        T_OK(run_sum(&f, &s, own, bytes, (const uint32_t[]){1, 2, 0}, 0, &e), &e);
        assert_int_equal(s.end, bytes);
        assert_true(comm_round_up(s.longest, 64) * 2 <= CAPACITY);
        assert_true(s.n_calls == 1 || (s.shortest == s.longest && s.longest % 64 == 0));
        assert_true((size_t)s.n_calls == (bytes + CAPACITY / 2 - 1) / (CAPACITY / 2)); /* no more than needed */
    }
}

static void what_cannot_be_served_exchanges_nothing(void **state) {
    (void)state;
    static struct fake f;
    struct sum s = {0};
    struct err e = {0};
    fake_init(&f, 1024);
    t_expect_err_contains(ST_INVALID, run_sum(&f, &s, own, 6, (const uint32_t[]){1, 1, 1}, 0, &e), &e, "vectors of 6 bytes");
    t_expect_err_contains(ST_INVALID, run_sum(&f, &s, own, 64, (const uint32_t[]){1, 255, 1}, 0, &e), &e, "257 vectors");
    t_expect_err_contains(ST_INVALID, run_sum(&f, &s, own, 64, (const uint32_t[]){UINT32_MAX, UINT32_MAX, UINT32_MAX}, 0, &e), &e, "vectors");
    t_expect_err_contains(ST_INVALID, run_sum(&f, &s, own, 64, (const uint32_t[]){17, 1, 1}, 0, &e), &e,
                          "17 vectors of one rank do not fit into messages of 1024 bytes");
    assert_string_equal(f.trace, "");
    const struct comm_header header = {0};
    T_OK(comm_allgather_start(&f.comm, NULL, (const size_t[]){0, 0, 0}, &header, &e), &e);
    t_expect_err_contains(ST_INVALID, run_sum(&f, &s, own, 64, (const uint32_t[]){1, 1, 1}, 0, &e), &e, "was not finished");
}

static void a_failed_piece_is_for_good(void **state) {
    (void)state;
    static struct fake f;
    struct sum s = {0};
    struct err e = {0};
    fake_init(&f, CAPACITY);
    f.fails_at = 3;
    t_expect_err_contains(ST_PEER_LOST, run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 1, 1}, 256, &e), &e,
                          "rank 2 closed its end: step 5, exchange 3");
    assert_string_equal(f.trace, "S256 F S256 A0+256 F ");
    t_expect_err_contains(ST_PEER_LOST, comm_barrier(&f.comm, BASE_NO_DEADLINE, &e), &e, "exchange 3");

    fake_init(&f, CAPACITY);
    f.n_again = 1 << 30;
    t_expect_err_contains(ST_TIMEOUT, run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 1, 1}, 256, &e), &e,
                          "rank 1 did not answer: step 5, exchange 1");
    memset(&e, 0, sizeof e);
    t_expect_err_contains(ST_TIMEOUT, comm_barrier(&f.comm, BASE_NO_DEADLINE, &e), &e, "rank 1 did not answer: step 5, exchange 1");
    t_expect_err_contains(ST_TIMEOUT, run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 1, 1}, 256, NULL), NULL, NULL);
}

static void a_deadline_can_be_put_off(void **state) {
    (void)state;
    static struct fake f;
    struct sum s = {.extend_to_ns = BASE_NS_PER_S};
    struct err e = {0};
    fake_init(&f, CAPACITY);
    f.n_again = 60; /* each of them sleeps for 50 ms at most */
    T_OK(run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 1, 1}, 256, &e), &e);
    assert_true(s.n_extended > 0 && s.n_extended <= 3 && s.end == 1000);
    f.n_again = 1 << 30;
    t_expect_err_contains(ST_TIMEOUT, run_sum(&f, &s, own, 1000, (const uint32_t[]){1, 1, 1}, 256, &e), &e, "rank 1 did not answer");
    assert_int_equal(s.n_extended, 4);
}

static void headers_are_the_first_pieces(void **state) {
    (void)state;
    static struct fake f;
    fake_init(&f, CAPACITY);
    struct sum s = {.f = &f, .n_vectors = 3, .vector_bytes = 1000, .own = own};
    struct err e = {0};
    struct comm_header headers[N_FAKES] = {0};
    const struct comm_exchange_add x = {.send = own,
                                        .vector_bytes = 1000,
                                        .n_vectors = (const uint32_t[]){1, 1, 1},
                                        .piece_bytes = 64,
                                        .add = add,
                                        .context = &s,
                                        .headers = headers};
    T_OK(comm_exchange_and_add(&f.comm, &x, &(struct comm_header){.step = 1}, BASE_NO_DEADLINE, &e), &e);
    for (uint64_t r = 0; r < N_FAKES; r++) assert_int_equal(headers[r].step, 40 + r);
}

/* ---- shared sums ------------------------------------------------------------------------------------------------------------------------------------------ */

struct shared_sum {
    struct fake *f;
    unsigned char *sum;
};
static void add_share(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors) {
    struct shared_sum *s = context;
    note(s->f, "A%zu+%zu ", offset, bytes);
    assert_int_equal(n_vectors, 4);
    for (int v = 0; v < n_vectors; v++) assert_non_null(vectors[v]);
    memset(s->sum + offset, 7, bytes);
}

/* What is added, or put in its place, flies neither before nor while: what flies meanwhile is of the next piece, or of the one before. */
static void shares_are_scattered_added_and_gathered_in_turns(void **state) {
    (void)state;
    static struct fake f;
    static const struct {
        size_t bytes, piece_bytes, scatter_bytes;
        const char *trace;
    } cases[] = {
        {768, 384, 1, "S768 F S768 A128+128 F S128 A512+128 F S128 F "},
        {1152, 384, 1, "S768 F S768 A128+128 F S128 A512+128 F S768 F S128 A896+128 F S128 F "},
        {768, 0, 1, "S1536 F A256+256 S256 F "},
        {100, 0, 1, "S256 F A0+64 S64 F "}, /* of two lines the first rank has none */
        {132, 64, 1, "S128 F S128 F S0 F S128 F S0 F S0 F "},
        {768, 384, 1537, "S768 F S768 A0+384 F A384+384 "}, /* too small to be shared */
    };
    struct comm_backend backend = fake_backend;
    backend.capabilities.scatters = true;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        _Alignas(64) unsigned char sum[1152] = {0};
        fake_init(&f, CAPACITY);
        f.comm.backend = &backend;
        struct shared_sum s = {&f, sum};
        const struct comm_exchange_add x = {.send = own,
                                            .vector_bytes = cases[i].bytes,
                                            .n_vectors = (const uint32_t[]){1, 2, 1},
                                            .piece_bytes = cases[i].piece_bytes,
                                            .add = add_share,
                                            .context = &s,
                                            .sum = sum,
                                            .scatter_bytes = cases[i].scatter_bytes};
        T_OK(comm_exchange_and_add(&f.comm, &x, &(struct comm_header){.step = 1}, BASE_NO_DEADLINE, &e), &e);
        assert_string_equal(f.trace, cases[i].trace);
        for (size_t k = 0; i < 3 && k < cases[i].bytes; k++) assert_int_equal(sum[k], 7); /* all say what we say */
    }
}

/* ---- the others --------------------------------------------------------------------------------------------------------------------------------------------- */

static void the_best_take_as_few_exchanges_as_they_fit_into(void **state) {
    (void)state;
    static struct fake f;
    struct err e = {0};
    struct comm_candidate mine[COMM_TOP_K_MAX], merged[COMM_TOP_K_MAX];
    for (int i = 0; i < COMM_TOP_K_MAX; i++) mine[i] = (struct comm_candidate){.value = (float)i, .id = i};
    int n_merged = 0;
    const struct comm_header header = {0};
    fake_init(&f, 2048);
    T_OK(comm_top_k(&f.comm, mine, COMM_TOP_K_MAX, 256, &header, BASE_NO_DEADLINE, merged, &n_merged, &e), &e);
    assert_string_equal(f.trace, "S2048 F ");
    fake_init(&f, 1024);
    T_OK(comm_top_k(&f.comm, mine, COMM_TOP_K_MAX, 256, &header, BASE_NO_DEADLINE, merged, &n_merged, &e), &e);
    assert_string_equal(f.trace, "S1024 F S1024 F ");
    assert_int_equal(n_merged, 256);
    /* All three say the same here: an id that comes more than once stays so. */
    for (int i = 0; i < 256; i++) assert_true(merged[i].id == 255 - i / 3 && merged[i].value == (float)merged[i].id);
    fake_init(&f, 1024);
    T_OK(comm_top_k(&f.comm, mine, 2, 40, &header, BASE_NO_DEADLINE, merged, &n_merged, &e), &e);
    assert_string_equal(f.trace, "S320 F ");
    assert_int_equal(n_merged, 6);
    T_OK(comm_top_k(&f.comm, NULL, 0, 40, &header, BASE_NO_DEADLINE, merged, &n_merged, &e), &e);
    assert_int_equal(n_merged, 0);
}

static void a_split_that_times_out_is_for_good(void **state) {
    (void)state;
    static struct fake f;
    struct err e = {0};
    struct comm *group = NULL;
    fake_init(&f, 1024);
    f.n_again = 1 << 30;
    t_expect_err_contains(ST_TIMEOUT, comm_split(&f.comm, 1, 64, f.now.now_ns + BASE_NS_PER_S, &group, &e), &e, "rank 1 did not answer");
    t_expect_err_contains(ST_TIMEOUT, comm_split(&f.comm, 1, 64, f.now.now_ns + BASE_NS_PER_S, &group, &e), &e, "rank 1 did not answer");
    assert_null(group);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_fits_is_one_exchange),          cmocka_unit_test(the_next_piece_flies_while_one_is_added),
        cmocka_unit_test(pieces_are_alike_and_stay_in_cache), cmocka_unit_test(what_cannot_be_served_exchanges_nothing),
        cmocka_unit_test(a_failed_piece_is_for_good),         cmocka_unit_test(a_deadline_can_be_put_off),
        cmocka_unit_test(headers_are_the_first_pieces),       cmocka_unit_test(shares_are_scattered_added_and_gathered_in_turns),
        cmocka_unit_test(the_best_take_as_few_exchanges_as_they_fit_into),
        cmocka_unit_test(a_split_that_times_out_is_for_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
