#include <string.h>

#include "base/arena.h"
#include "base/rng.h"
#include "tests/t.h"

static bool all_zero(const unsigned char *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (p[i]) return false;
    return true;
}

static void memory_is_zeroed_and_aligned(void **state) {
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    struct arena a;
    T_OK(base_arena_init(&a, "test", 0, NULL), NULL);
    for (int i_round = 0; i_round < 4; i_round++) {
        unsigned char *last = NULL;
        size_t last_bytes = 0, sum_bytes = 0;
        for (int i = 0; i < 500; i++) {
            size_t bytes = base_rng_below(&rng, i % 50 == 0 ? 300000 : 2000);
            unsigned char *p = base_arena_alloc(&a, bytes);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 64, 0);
            assert_true(all_zero(p, bytes));
            memset(p, 0xEE, bytes);
            if (last && last_bytes) assert_int_equal(last[last_bytes - 1], 0xEE);
            last = p;
            last_bytes = bytes;
            sum_bytes += bytes;
        }
        assert_true(a.used_bytes >= sum_bytes);
        base_arena_reset(&a);
        assert_int_equal(a.used_bytes, 0);
    }
    base_arena_release(&a);
    base_arena_release(&a); /* harmless */
}

static void a_fixed_arena_ends(void **state) {
    (void)state;
    struct arena a;
    T_OK(base_arena_init(&a, "fixed", 1000, NULL), NULL);
    for (int i_round = 0; i_round < 3; i_round++) {
        unsigned char *first = base_arena_alloc(&a, 900);
        assert_non_null(first);
        assert_null(base_arena_alloc(&a, 129)); /* 960 + 64 > 1024 */
        unsigned char *second = base_arena_alloc(&a, 64);
        assert_ptr_equal(second, first + 960);
        assert_true(all_zero(first, 1024));
        assert_null(base_arena_alloc(&a, 0));
        memset(first, 1, 1024);
        base_arena_reset(&a);
    }
    base_arena_release(&a);

    T_OK(base_arena_init(&a, "large", 5u << 20, NULL), NULL);
    unsigned char *whole = base_arena_alloc(&a, 5u << 20);
    assert_non_null(whole);
    whole[(5u << 20) - 1] = 1;
    assert_null(base_arena_alloc(&a, 1));
    base_arena_release(&a);

    struct err e = {0};
    t_expect_err_contains(ST_NO_MEMORY, base_arena_init(&a, "huge", SIZE_MAX / 4, &e), &e, "arena huge");
    t_expect_err_contains(ST_NO_MEMORY, base_arena_init(&a, "huge", SIZE_MAX, &e), &e, "arena huge");
}

static void sizes_that_overflow_are_refused(void **state) {
    (void)state;
    struct arena a;
    T_OK(base_arena_init(&a, "test", 0, NULL), NULL);
    assert_null(base_arena_array(&a, SIZE_MAX / 2, 3));
    assert_null(base_arena_alloc(&a, SIZE_MAX));
    assert_null(base_arena_alloc(&a, SIZE_MAX - 64));
    assert_null(base_arena_array(&a, SIZE_MAX, 1));
    assert_non_null(base_arena_array(&a, 0, 8));
    assert_non_null(base_arena_array(&a, 3, 8));
    base_arena_release(&a);
}

static void texts_are_copied(void **state) {
    (void)state;
    struct arena a;
    T_OK(base_arena_init(&a, "test", 0, NULL), NULL);
    char source[] = "a source";
    char *copy = base_arena_strdup(&a, source), *part = base_arena_strndup(&a, source, 3), *whole = base_arena_strndup(&a, source, 100);
    source[0] = 'X';
    assert_string_equal(copy, "a source");
    assert_string_equal(part, "a s");
    assert_string_equal(whole, "a source");
    assert_string_equal(base_arena_printf(&a, "%d of %s", 3, copy), "3 of a source");
    assert_string_equal(base_arena_printf(&a, "%s", ""), "");
    base_arena_release(&a);
}

static void alloc_after_freeze(void *arg) { base_arena_alloc(arg, 1); }
static void a_frozen_arena_asserts(void **state) {
    (void)state;
    struct arena a;
    T_OK(base_arena_init(&a, "test", 4096, NULL), NULL);
    assert_non_null(base_arena_alloc(&a, 1));
    base_arena_freeze(&a);
    t_expect_assert(alloc_after_freeze, &a, "frozen");
    base_arena_reset(&a);
    t_expect_assert(alloc_after_freeze, &a, "frozen");
    base_arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_and_aligned),    cmocka_unit_test(a_fixed_arena_ends),
        cmocka_unit_test(sizes_that_overflow_are_refused), cmocka_unit_test(texts_are_copied),
        cmocka_unit_test(a_frozen_arena_asserts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
