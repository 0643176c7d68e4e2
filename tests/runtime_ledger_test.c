#include <stdlib.h>
#include <string.h>

#include "runtime/ledger.h"
#include "tests/t.h"

/* A ledger on a clock that the test moves. */
static struct {
    struct base_clock_manual manual;
    struct base_clock clock;
    struct arena arena;
    struct rt_ledger ledger;
} f;
static struct rt_ledger *const l = &f.ledger;

static int setup(void **state)
{
    (void)state;
    struct err e = {""};
    f.manual.now_ns = 1000000;
    f.clock = base_clock_from_manual(&f.manual);
    T_OK(base_arena_init(&f.arena, "ledger", 0, &e), &e);
    T_OK(rt_ledger_init(l, &f.clock, &f.arena, &e), &e);
    assert_true(l->on);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    base_arena_release(&f.arena);
    return 0;
}

static void pass(uint64_t ns) { f.manual.now_ns += ns; }

static const struct rt_ledger_step *last_step(void) { return &l->steps[(l->n_steps - 1) % RT_LEDGER_STEPS]; }

static uint64_t sum_of(const uint64_t *kind_ns)
{
    uint64_t sum = 0;
    for (int k = 0; k < RT_LEDGER_KINDS; k++)
        sum += kind_ns[k];
    return sum;
}

/* One step of one layer: 5 host, 100 linear, 30 attention, exchange of `wire` with the peers' headers, 7 host. */
static void one_step(uint64_t number, int n_tokens, int n_sequences, const struct comm_header *headers, int n_ranks, int rank, uint64_t exchange_ns)
{
    rt_ledger_begin(l);
    pass(5);
    rt_ledger_batch(l, n_tokens, n_sequences, 1);
    rt_ledger_enter(l, RT_LEDGER_WEIGHTS, PART_LINEAR, 0);
    pass(100);
    rt_ledger_enter(l, RT_LEDGER_ATTENTION, PART_ATTENTION, 0);
    pass(30);
    rt_ledger_enter(l, RT_LEDGER_WIRE, PART_EXCHANGE, 0);
    pass(exchange_ns);
    if (headers)
        rt_ledger_exchanged(l, headers, n_ranks, rank);
    pass(7);
    rt_ledger_end(l, number);
}

static void kinds_add_up_to_the_step(void **state)
{
    (void)state;
    const uint64_t begun = f.manual.now_ns + 135;
    const struct comm_header headers[] = {{.sent_ns = begun}, {.sent_ns = begun + 40}};
    one_step(1, 1, 1, headers, 2, 0, 60);
    const struct rt_ledger_step *s = last_step();
    assert_int_equal(s->step, 1);
    assert_int_equal(s->phase, RT_LEDGER_DECODE);
    assert_int_equal(s->duration_ns, 5 + 100 + 30 + 60 + 7);
    assert_int_equal(s->kind_ns[RT_LEDGER_WEIGHTS], 100);
    assert_int_equal(s->kind_ns[RT_LEDGER_ATTENTION], 30);
    assert_int_equal(s->kind_ns[RT_LEDGER_WAIT], 40);
    assert_int_equal(s->kind_ns[RT_LEDGER_WIRE], 20);
    assert_int_equal(s->kind_ns[RT_LEDGER_HOST], 12);
    assert_int_equal(sum_of(s->kind_ns), s->duration_ns);
    const struct rt_ledger_sum *sum = &l->sums[RT_LEDGER_DECODE];
    assert_int_equal(sum->op_ns[PART_LINEAR], 100);
    assert_int_equal(sum->op_ns[PART_EXCHANGE], 60);
    assert_int_equal(sum->op_calls[PART_EXCHANGE], 1);
    assert_int_equal(sum->op_ns[RT_LEDGER_NO_OP], 12);

    one_step(2, 8, 2, headers, 2, 0, 60);
    assert_int_equal(last_step()->phase, RT_LEDGER_PREFILL);
    assert_int_equal(l->sums[RT_LEDGER_PREFILL].n_steps, 1);
    assert_int_equal(l->sums[RT_LEDGER_PREFILL].n_tokens, 8);
    assert_int_equal(sum->n_steps, 1);
    assert_int_equal(sum->step_ns, 202);
    one_step(3, 2, 2, headers, 2, 0, 60);
    assert_int_equal(sum->n_steps, 2);
    assert_int_equal(sum_of(sum->kind_ns), sum->step_ns);
}

/* Who waits, and for how long: wait is told by the latest peer, cut to the exchange. */
static void exchanges_are_split(void **state)
{
    (void)state;
    const struct {
        const char *name;
        int64_t late[3]; /* of each rank, against ours; 0 where it is not told */
        int n_ranks, rank;
        uint64_t wait_ns;
    } cases[] = {
        {"we are last", {1, -50, -20}, 3, 0, 0},
        {"all at once", {1, 1, 1}, 3, 1, 1},
        {"one is later", {1, 30, -5}, 3, 0, 30},
        {"the latest counts", {25, 60, 1}, 3, 2, 60},
        {"our own is not a peer's", {70, -3, -3}, 3, 0, 0},
        {"later than the end: clocks differ", {1, 5000, -5}, 3, 0, 100},
        {"not told", {1, 0, 30}, 3, 0, 0},
        {"two ranks", {-10, 1}, 2, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct comm_header headers[3] = {{0}};
        const uint64_t begun = f.manual.now_ns + 135;
        for (int r = 0; r < cases[i].n_ranks; r++)
            headers[r].sent_ns = cases[i].late[r] ? begun + (uint64_t)cases[i].late[r] : 0;
        one_step(i, 1, 1, headers, cases[i].n_ranks, cases[i].rank, 100);
        const struct rt_ledger_step *s = last_step();
        if (s->kind_ns[RT_LEDGER_WAIT] != cases[i].wait_ns || s->kind_ns[RT_LEDGER_WIRE] != 100 - cases[i].wait_ns)
            fail_msg("%s: waited %llu, wire %llu", cases[i].name, (unsigned long long)s->kind_ns[RT_LEDGER_WAIT], (unsigned long long)s->kind_ns[RT_LEDGER_WIRE]);
        assert_int_equal(sum_of(s->kind_ns), s->duration_ns);
    }
}

/* A peer whose clock is 1 ms ahead of ours says so. */
static void clocks_may_differ(void **state)
{
    (void)state;
    const uint64_t begun = f.manual.now_ns + 135;
    const struct comm_header headers[] = {{.sent_ns = begun}, {.sent_ns = begun + 1000000 + 30}, {.sent_ns = begun - 5000 - 2}};
    l->clock_offset_ns[1] = 1000000;
    l->clock_offset_ns[2] = -5000;
    one_step(1, 1, 1, headers, 3, 0, 100);
    assert_int_equal(last_step()->kind_ns[RT_LEDGER_WAIT], 30);
}

static struct rt_ledger_report pack(void **data)
{
    struct rt_ledger_report r;
    struct err e = {""};
    size_t bytes;
    *data = rt_ledger_pack(l, 1, 2, NULL, &bytes);
    assert_non_null(*data);
    T_OK(rt_ledger_unpack(*data, bytes, &r, &e), &e);
    return r;
}

static void the_rings_keep_the_last(void **state)
{
    (void)state;
    const struct comm_header headers[2] = {{0}};
    const int n = RT_LEDGER_STEPS + 100;
    for (int i = 0; i < n; i++)
        one_step((uint64_t)i, 1, 1, headers, 2, 0, 10);
    void *data;
    const struct rt_ledger_report r = pack(&data);
    assert_int_equal(r.head->all_steps, n);
    assert_int_equal(r.head->n_steps, RT_LEDGER_STEPS);
    for (uint32_t i = 0; i < r.head->n_steps; i++)
        assert_int_equal(r.steps[i].step, 100 + i);
    assert_int_equal(r.head->sums[RT_LEDGER_DECODE].n_steps, n);
    assert_int_equal(r.head->sums[RT_LEDGER_DECODE].step_ns, (uint64_t)n * 152);

    /* The marks of a step are whole or are not there. */
    assert_int_equal(r.head->n_marks[RT_LEDGER_DECODE], RT_LEDGER_MARKS);
    assert_int_equal(r.head->n_marks[RT_LEDGER_PREFILL], 0);
    const uint32_t n_whole = RT_LEDGER_MARKS / 5; /* host, linear, attention, exchange, host */
    for (uint32_t i = 0; i < r.head->n_steps; i++) {
        const struct rt_ledger_step *s = &r.steps[i];
        const struct rt_ledger_mark *marks = rt_ledger_marks_of(&r, s);
        assert_int_equal(marks != NULL, i >= r.head->n_steps - n_whole);
        uint64_t at = s->start_ns;
        for (uint32_t k = 0; marks && k < s->n_marks; k++) { /* without gaps */
            assert_int_equal(marks[k].start_ns, at);
            at += marks[k].duration_ns;
        }
        if (marks)
            assert_int_equal(at, s->start_ns + s->duration_ns);
    }
    free(data);
}

/* A step with more parts than are kept: the step is counted, its marks are lost. */
static void a_long_step_loses_its_marks(void **state)
{
    (void)state;
    rt_ledger_begin(l);
    rt_ledger_batch(l, 1, 1, 1);
    for (int i = 0; i < RT_LEDGER_MARKS + 1; i++) {
        rt_ledger_enter(l, RT_LEDGER_WEIGHTS, PART_LINEAR, i);
        pass(1);
    }
    rt_ledger_end(l, 1);
    void *data;
    const struct rt_ledger_report r = pack(&data);
    assert_int_equal(r.steps[0].n_marks, RT_LEDGER_MARKS + 2);
    assert_int_equal(r.steps[0].kind_ns[RT_LEDGER_WEIGHTS], RT_LEDGER_MARKS + 1);
    assert_null(rt_ledger_marks_of(&r, &r.steps[0]));
    free(data);
}

static void a_step_without_tokens_is_none(void **state)
{
    (void)state;
    rt_ledger_begin(l);
    pass(10);
    rt_ledger_end(l, 1);
    assert_int_equal(l->n_steps, 0);
    one_step(2, 1, 1, NULL, 0, 0, 10);
    assert_int_equal(l->n_steps, 1);
    assert_int_equal(last_step()->duration_ns, 152);
    void *data;
    const struct rt_ledger_report r = pack(&data);
    assert_int_equal(r.head->rank, 1);
    assert_int_equal(r.head->n_ranks, 2);
    assert_int_equal(r.head->has_link, 0);
    free(data);
}

static void the_link_comes_along(void **state)
{
    (void)state;
    const struct comm_link_totals link = {.n_exchanges = 1, .bytes = 2, .link_ns = 3, .held_ns = 4, .late_ns = 5, .n_late = 6};
    size_t bytes;
    struct rt_ledger_report r;
    struct err e = {""};
    void *data = rt_ledger_pack(l, 0, 2, &link, &bytes);
    assert_non_null(data);
    T_OK(rt_ledger_unpack(data, bytes, &r, &e), &e);
    assert_true(r.head->has_link && r.head->link_exchanges == 1 && r.head->link_bytes == 2 && r.head->link_ns == 3 && r.head->link_held_ns == 4 && r.head->link_late_ns == 5 &&
                r.head->link_n_late == 6);
    free(data);
}

static void a_broken_piece_is_refused(void **state)
{
    (void)state;
    one_step(1, 1, 1, NULL, 0, 0, 10);
    size_t bytes;
    struct err e = {""};
    struct rt_ledger_report r;
    uint64_t *data = rt_ledger_pack(l, 0, 1, NULL, &bytes);
    struct rt_ledger_head *h = (struct rt_ledger_head *)data;
    const struct rt_ledger_head good = *h;
    T_OK(rt_ledger_unpack(data, bytes, &r, &e), &e);
    for (size_t n = 0; n < bytes; n++)
        assert_int_equal(rt_ledger_unpack(data, n, &r, &e), ST_INVALID);
    h->rank = 1;
    t_expect_err_contains(ST_INVALID, rt_ledger_unpack(data, bytes, &r, &e), &e, "rank 1 of 1");
    *h = good;
    h->n_ranks = COMM_MAX_RANKS + 1;
    assert_int_equal(rt_ledger_unpack(data, bytes, &r, &e), ST_INVALID);
    *h = good;
    h->n_steps = UINT32_MAX;
    assert_int_equal(rt_ledger_unpack(data, bytes, &r, &e), ST_INVALID);
    *h = good;
    h->n_marks[0] = UINT32_MAX;
    assert_int_equal(rt_ledger_unpack(data, bytes, &r, &e), ST_INVALID);
    *h = good;
    struct rt_ledger_step *s = (struct rt_ledger_step *)(h + 1);
    s->phase = RT_LEDGER_PHASES;
    t_expect_err_contains(ST_INVALID, rt_ledger_unpack(data, bytes, &r, &e), &e, "phase");
    s->phase = RT_LEDGER_DECODE;
    s->first_mark = UINT64_MAX - 1; /* nothing to refuse, but no marks either */
    T_OK(rt_ledger_unpack(data, bytes, &r, &e), &e);
    assert_null(rt_ledger_marks_of(&r, &r.steps[0]));
    struct rt_ledger_mark *m = (struct rt_ledger_mark *)(s + 1);
    m->kind = RT_LEDGER_KINDS;
    t_expect_err_contains(ST_INVALID, rt_ledger_unpack(data, bytes, &r, &e), &e, "mark");
    free(data);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(kinds_add_up_to_the_step), T(exchanges_are_split),         T(clocks_may_differ),    T(the_rings_keep_the_last),   T(a_long_step_loses_its_marks),
        T(a_step_without_tokens_is_none), T(the_link_comes_along), T(a_broken_piece_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
