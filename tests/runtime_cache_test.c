/* The pool of KV blocks: every block is in one place at every moment, the pool can be emptied to the last block and filled again, and equal calls give equal tables. */
#include "runtime/cache.h"

#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "tests/t.h"

enum { B = KERN_KV_BLOCK };

static void make(struct rt_cache *c, struct arena *a, int64_t n_blocks, int n_slots, int64_t context)
{
    struct err e = {""};
    T_OK(base_arena_init(a, "cache", 0, &e), &e);
    T_OK(rt_cache_init(c, a, n_blocks, n_slots, context, &e), &e);
    base_arena_freeze(a);
}

static const int32_t *row(const struct rt_cache *c, int slot) { return c->table + (size_t)slot * c->stride; }

/* Free or in one row, never both, never twice, none lost. */
static void walk(const struct rt_cache *c)
{
    bool seen[1024] = {false};
    int32_t n = 0;
    for (int32_t i = 0; i < c->n_free; i++, n++) {
        assert_true(c->free_blocks[i] >= 0 && c->free_blocks[i] < c->n_blocks && !seen[c->free_blocks[i]]);
        seen[c->free_blocks[i]] = true;
    }
    for (int slot = 0; slot < c->n_slots; slot++) {
        assert_true(c->n_used[slot] >= 0 && (size_t)c->n_used[slot] <= c->stride);
        for (int32_t i = 0; i < c->n_used[slot]; i++, n++) {
            const int32_t block = row(c, slot)[i];
            assert_in_range(block, 0, c->n_blocks - 1);
            assert_false(seen[block]);
            seen[block] = true;
        }
    }
    assert_int_equal(n, c->n_blocks);
}

static void blocks_for_tokens(void **state)
{
    (void)state;
    struct arena a;
    struct rt_cache c;
    make(&c, &a, 10, 3, 4 * B + 1);
    assert_int_equal(c.stride, 5);
    static const struct {
        int64_t n_tokens;
        int32_t n_blocks;
    } want[] = {{0, 0}, {1, 1}, {B - 1, 1}, {B, 1}, {B + 1, 2}, {4 * B, 4}, {4 * B + 1, 5}, {5 * B, 5}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        T_OK(rt_cache_reserve(&c, 1, want[i].n_tokens), NULL);
        assert_int_equal(c.n_used[1], want[i].n_blocks);
        assert_int_equal(c.n_free, 10 - want[i].n_blocks);
        walk(&c);
    }
    T_OK(rt_cache_reserve(&c, 1, 1), NULL); /* it has enough: nothing is given back */
    assert_int_equal(c.n_used[1], 5);
    static const int32_t first[] = {0, 1, 2, 3, 4};
    assert_memory_equal(row(&c, 1), first, sizeof first);
    for (size_t i = sizeof want / sizeof *want; i-- > 0;) {
        rt_cache_truncate(&c, 1, want[i].n_tokens);
        assert_int_equal(c.n_used[1], want[i].n_blocks);
        walk(&c);
    }
    assert_int_equal(c.n_free, 10);
    base_arena_release(&a);
}

static void an_empty_pool(void **state)
{
    (void)state;
    struct arena a;
    struct rt_cache c;
    make(&c, &a, 5, 4, 8 * B);
    T_OK(rt_cache_reserve(&c, 0, 3 * B), NULL);
    assert_int_equal(rt_cache_reserve(&c, 1, 3 * B), ST_AGAIN); /* two are left: none is taken */
    assert_true(c.n_used[1] == 0 && c.n_free == 2);
    assert_int_equal(rt_cache_reserve(&c, 0, 6 * B), ST_AGAIN); /* nor does a row lose what it had */
    assert_true(c.n_used[0] == 3 && c.n_free == 2);
    T_OK(rt_cache_reserve(&c, 2, 2 * B), NULL); /* to the last block */
    assert_int_equal(c.n_free, 0);
    assert_int_equal(rt_cache_reserve(&c, 3, 1), ST_AGAIN);
    T_OK(rt_cache_reserve(&c, 3, 0), NULL); /* nothing can be had from nothing */
    T_OK(rt_cache_reserve(&c, 0, 3 * B), NULL);
    walk(&c);
    rt_cache_truncate(&c, 2, B);
    T_OK(rt_cache_reserve(&c, 3, B), NULL);
    assert_int_equal(c.n_free, 0);
    walk(&c);
    base_arena_release(&a);
}

static void given_back_twice(void **state)
{
    (void)state;
    struct arena a;
    struct rt_cache c;
    make(&c, &a, 4, 2, 4 * B);
    T_OK(rt_cache_reserve(&c, 0, 2 * B), NULL);
    T_OK(rt_cache_reserve(&c, 1, 2 * B), NULL);
    for (int i = 0; i < 3; i++) {
        rt_cache_truncate(&c, 0, 0);
        assert_true(c.n_free == 2 && c.n_used[0] == 0 && c.n_used[1] == 2);
        walk(&c);
    }
    rt_cache_truncate(&c, 1, 4 * B); /* more than it has: it keeps what it has */
    assert_true(c.n_used[1] == 2 && c.n_free == 2);
    walk(&c);
    base_arena_release(&a);
}

/* The last in is the first out: equal on every rank, and blocks that are warm are used first. */
static void a_stack(void **state)
{
    (void)state;
    struct arena a;
    struct rt_cache c;
    make(&c, &a, 8, 3, 4 * B);
    T_OK(rt_cache_reserve(&c, 0, 3 * B), NULL); /* 0 1 2 */
    T_OK(rt_cache_reserve(&c, 1, 2 * B), NULL); /* 3 4 */
    rt_cache_truncate(&c, 0, 0);
    T_OK(rt_cache_reserve(&c, 2, 4 * B), NULL);
    static const int32_t want[] = {0, 1, 2, 5};
    assert_memory_equal(row(&c, 2), want, sizeof want);
    walk(&c);
    base_arena_release(&a);
}

static void random_use(void **state)
{
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    for (int round = 0; round < 40; round++) {
        const int n_slots = 1 + (int)base_rng_below(&rng, 12);
        const int64_t context = 1 + base_rng_below(&rng, 20 * B), n_blocks = 1 + base_rng_below(&rng, 100);
        struct arena a[2];
        struct rt_cache c[2];
        for (int k = 0; k < 2; k++)
            make(&c[k], &a[k], n_blocks, n_slots, context);
        int n_full = 0;
        for (int i = 0; i < 500; i++) {
            const int slot = (int)base_rng_below(&rng, (uint32_t)n_slots);
            const int64_t n_tokens = base_rng_below(&rng, (uint32_t)context + 1);
            const bool give = base_rng_below(&rng, 2);
            const int32_t used = c[0].n_used[slot], n_free = c[0].n_free, wanted = (int32_t)((n_tokens + B - 1) / B);
            for (int k = 0; k < 2; k++) {
                if (give)
                    rt_cache_truncate(&c[k], slot, n_tokens);
                else
                    assert_int_equal(rt_cache_reserve(&c[k], slot, n_tokens), wanted - used > n_free ? ST_AGAIN : ST_OK);
                walk(&c[k]);
            }
            n_full += !give && wanted - used > n_free;
            const int32_t now = give ? (wanted < used ? wanted : used) : wanted > used && wanted - used <= n_free ? wanted : used;
            assert_int_equal(c[0].n_used[slot], now);
            assert_memory_equal(c[0].free_blocks, c[1].free_blocks, (size_t)n_blocks * sizeof(int32_t));
            assert_memory_equal(c[0].table, c[1].table, (size_t)n_slots * c[0].stride * sizeof(int32_t));
        }
        assert_true(n_full > 0 || n_blocks >= n_slots * (int64_t)c[0].stride || n_slots * (int64_t)c[0].stride > 20);
        for (int slot = 0; slot < n_slots; slot++)
            rt_cache_truncate(&c[0], slot, 0);
        walk(&c[0]);
        assert_int_equal(c[0].n_free, n_blocks);
        for (int k = 0; k < 2; k++)
            base_arena_release(&a[k]);
    }
}

/* ---- our own bugs ---------------------------------------------------------------------------------------------------------------------------------------- */

static void longer_than_the_context(void *arg) { rt_cache_reserve(arg, 0, 4 * B + 1); }
static void longer_than_32_bits(void *arg) { rt_cache_reserve(arg, 0, ((int64_t)B << 32) + 1); }
static void less_than_nothing(void *arg) { rt_cache_reserve(arg, 0, -B - 1); }
static void a_slot_too_many(void *arg) { rt_cache_reserve(arg, 2, 1); }
static void a_slot_below_zero(void *arg) { rt_cache_reserve(arg, -1, 1); }
static void truncate_beyond(void *arg) { rt_cache_truncate(arg, 2, 0); }
static void no_blocks(void *arg)
{
    struct arena a;
    struct rt_cache c;
    (void)arg;
    base_arena_init(&a, "cache", 0, NULL);
    rt_cache_init(&c, &a, 0, 1, 1, NULL);
}

static void misuse_is_seen(void **state)
{
    (void)state;
    struct arena a;
    struct rt_cache c;
    make(&c, &a, 8, 2, 4 * B);
    t_expect_assert(longer_than_the_context, &c, "stride");
    t_expect_assert(longer_than_32_bits, &c, "cache.c");
    t_expect_assert(less_than_nothing, &c, "cache.c");
    t_expect_assert(a_slot_too_many, &c, "n_slots");
    t_expect_assert(a_slot_below_zero, &c, "slot >= 0");
    t_expect_assert(truncate_beyond, &c, "n_slots");
    t_expect_assert(no_blocks, NULL, "n_blocks > 0");
    base_arena_release(&a);
}

static void no_memory_is_an_error(void **state)
{
    (void)state;
    struct arena a;
    struct rt_cache c;
    struct err e = {""};
    T_OK(base_arena_init(&a, "cache", 4096, &e), &e);
    t_expect_err_contains(ST_NO_MEMORY, rt_cache_init(&c, &a, 100000, 4, 1000, &e), &e, "block table");
    base_arena_release(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_for_tokens), cmocka_unit_test(an_empty_pool),  cmocka_unit_test(given_back_twice),      cmocka_unit_test(a_stack),
        cmocka_unit_test(random_use),        cmocka_unit_test(misuse_is_seen), cmocka_unit_test(no_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
