#include <math.h>

#include "base/rng.h"
#include "tests/t.h"

/* The known-answer vectors that Random123 publishes (kat_vectors, philox4x32 10). */
static void philox_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint32_t out[4];
        base_philox4x32(rows[i].counter, rows[i].key, out);
        assert_memory_equal(out, rows[i].want, sizeof out);
    }
}

static void units_are_strictly_inside(void **state) {
    (void)state;
    assert_true(base_unit_open(0) == 0x1p-33);
    assert_true(base_unit_open(UINT32_MAX) == 1 - 0x1p-33);
    assert_true(base_unit_open(1u << 31) > 0.5 && base_unit_open((1u << 31) - 1) < 0.5);
}

static void the_stream_is_philox_in_order(void **state) {
    (void)state;
    uint64_t seed = 0x299f31d0a4093822u;
    struct base_rng r;
    base_rng_init(&r, seed);
    const uint32_t key[2] = {0xa4093822, 0x299f31d0};
    for (uint32_t i = 0; i < 100; i++) {
        const uint32_t counter[4] = {i / 4, 0, 0, 0};
        uint32_t want[4];
        base_philox4x32(counter, key, want);
        assert_int_equal(base_rng_u32(&r), want[i % 4]);
    }
}

static void below_a_bound_every_number_comes(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, 1); /* fixed: the bounds below hold for this seed for ever */
    int counts[7] = {0};
    for (int i = 0; i < 70000; i++) {
        uint32_t x = base_rng_below(&r, 7);
        assert_true(x < 7);
        counts[x]++;
    }
    for (int i = 0; i < 7; i++) assert_in_range(counts[i], 9600, 10400); /* 4 standard deviations */
    for (int i = 0; i < 100; i++) assert_int_equal(base_rng_below(&r, 1), 0);
    for (int i = 0; i < 100; i++) assert_true(base_rng_below(&r, 0x80000001u) <= 0x80000000u);
}
static void below_nothing(void *arg) { base_rng_below(arg, 0); }
static void a_bound_of_zero_asserts(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, 1);
    t_expect_assert(below_nothing, &r, "bound > 0");
}

static void distributions_have_their_moments(void **state) {
    (void)state;
    enum { N = 100000 };
    struct base_rng r;
    base_rng_init(&r, 2);
    double sum = 0, squares = 0, lowest = 9, highest = -9;
    for (int i = 0; i < N; i++) {
        double x = (double)base_rng_normal(&r);
        assert_true(isfinite(x));
        sum += x;
        squares += x * x;
    }
    assert_true(fabs(sum / N) < 0.015 && fabs(squares / N - 1) < 0.02);
    sum = 0;
    for (int i = 0; i < N; i++) {
        double x = (double)base_rng_uniform(&r, -1.0f, 3.0f);
        sum += x;
        lowest = fmin(lowest, x);
        highest = fmax(highest, x);
    }
    assert_true(fabs(sum / N - 1) < 0.02);
    assert_true(lowest >= -1 && lowest < -0.99 && highest <= 3 && highest > 2.99);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),          cmocka_unit_test(units_are_strictly_inside),
        cmocka_unit_test(the_stream_is_philox_in_order), cmocka_unit_test(below_a_bound_every_number_comes),
        cmocka_unit_test(a_bound_of_zero_asserts),       cmocka_unit_test(distributions_have_their_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
