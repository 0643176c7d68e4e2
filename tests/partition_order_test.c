/* The order of sums against the specification's own program (tests/golden/order.txt, made by make_order.py): leaves, cuts, subtrees. */
#include "partition/order.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/t.h"

/* The next blank-separated word of the line, NULL at its end. */
static char *word(char **at)
{
    char *begin = *at + strspn(*at, " ");
    if (!*begin)
        return NULL;
    char *end = begin + strcspn(begin, " ");
    *at = *end ? end + 1 : end;
    *end = 0;
    return begin;
}

static void check_leaves(const struct order_leaves *l, char *rest, int line)
{
    uint32_t n = 0;
    for (char *w; (w = word(&rest)); n++) {
        if (n >= l->n || l->end[n] != strtoull(w, NULL, 10))
            fail_msg("order.txt:%d: leaf %u ends at %s, ours at %llu of %u leaves", line, n, w, n < l->n ? (unsigned long long)l->end[n] : 0ull, l->n);
    }
    assert_int_equal(n, l->n);
}

static uint32_t n_ranks, lo[ORDER_MAX_RANKS], hi[ORDER_MAX_RANKS];

static void check_cut(const struct order_leaves *l, char *rest, int line)
{
    uint32_t shares[ORDER_MAX_RANKS];
    n_ranks = 0;
    for (char *s = word(&rest), *end; s; s = *end ? end + 1 : NULL)
        shares[n_ranks++] = (uint32_t)strtoul(s, &end, 10);
    order_cut(l->n, shares, n_ranks, lo, hi);
    for (uint32_t r = 0; r < n_ranks; r++) {
        unsigned want_lo, want_hi;
        assert_int_equal(sscanf(word(&rest), "%u-%u", &want_lo, &want_hi), 2);
        if (lo[r] != want_lo || hi[r] != want_hi)
            fail_msg("order.txt:%d: rank %u owns %u-%u, ours %u-%u", line, r, want_lo, want_hi, lo[r], hi[r]);
    }
}

static void check_nodes(const struct order_leaves *l, char *rest, int line)
{
    for (uint32_t r = 0; r < n_ranks; r++) {
        char *list = word(&rest), text[512] = "", *at = text;
        uint8_t node_lo[ORDER_MAX_LEAVES], node_hi[ORDER_MAX_LEAVES];
        const uint32_t n = order_subtrees(lo[r], hi[r], l->n, node_lo, node_hi);
        for (uint32_t i = 0; i < n; i++)
            at += sprintf(at, "%s%u-%u", i ? "," : "", node_lo[i], node_hi[i]);
        if (strcmp(list, n ? text : "-"))
            fail_msg("order.txt:%d: rank %u contributes %s, ours %s", line, r, list, text);
        if (r + 1 < n_ranks)
            assert_string_equal(word(&rest), "/");
    }
}

static void agrees_with_the_specification(void **state)
{
    (void)state;
    char *text = t_read_file("tests/golden/order.txt", NULL), *save = NULL;
    struct order_leaves l = {0};
    int n_shapes = 0, line = 0;
    for (char *row = strtok_r(text, "\n", &save); row; row = strtok_r(NULL, "\n", &save)) {
        line++;
        char *rest = row;
        const char *what = word(&rest);
        if (strcmp(what, "leaves") == 0)
            check_leaves(&l, rest, line);
        else if (strcmp(what, "cut") == 0)
            check_cut(&l, rest, line);
        else if (strcmp(what, "nodes") == 0)
            check_nodes(&l, rest, line);
        else {
            n_shapes++;
            const uint64_t a = strtoull(rest, &rest, 10), b = strtoull(rest, &rest, 10);
            if (strcmp(what, "heads") == 0)
                T_OK(order_heads((uint32_t)a, (uint32_t)b, &l, NULL), NULL);
            else if (strcmp(what, "columns") == 0)
                order_columns(a, b != 0, &l);
            else
                order_vocabulary(a, &l);
        }
    }
    assert_true(n_shapes >= 100);
}

static void refuses_heads_that_do_not_divide(void **state)
{
    (void)state;
    struct order_leaves l;
    struct err e = {""};
    t_expect_err_contains(ST_UNSUPPORTED, order_heads(10, 3, &l, &e), &e, "10 query heads");
    t_expect_err_contains(ST_UNSUPPORTED, order_heads(4, 0, &l, &e), &e, "0 key/value heads");
}

/* ---- properties ---------------------------------------------------------------------------------------------------------------------------------------- */

static float fold(const float *partials, uint32_t a, uint32_t b)
{
    if (b - a == 1)
        return partials[a];
    const uint32_t m = a + (b - a + 1) / 2;
    return fold(partials, a, m) + fold(partials, m, b);
}

/* What every rank does with the vectors that arrived: the same tree, cut short where a vector covers a node. */
static float combine(const float have[33][33], const bool there[33][33], uint32_t a, uint32_t b)
{
    if (there[a][b])
        return have[a][b];
    assert_true(b - a > 1); /* a leaf that nobody sent */
    const uint32_t m = a + (b - a + 1) / 2;
    return combine(have, there, a, m) + combine(have, there, m, b);
}

static void any_cut_gives_the_same_bits(void **state)
{
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    for (int round = 0; round < 20000; round++) {
        const uint32_t n = 1 + base_rng_below(&rng, ORDER_MAX_LEAVES), n_shares = 1 + base_rng_below(&rng, 8);
        float partials[ORDER_MAX_LEAVES], have[33][33];
        bool there[33][33] = {{false}};
        for (uint32_t i = 0; i < n; i++)
            partials[i] = base_rng_normal(&rng) * (float)(1u << base_rng_below(&rng, 24));
        uint32_t shares[8];
        for (uint32_t r = 0; r < n_shares; r++)
            shares[r] = base_rng_below(&rng, 4);
        shares[base_rng_below(&rng, n_shares)] += 1;
        order_cut(n, shares, n_shares, lo, hi);
        uint32_t at = 0;
        for (uint32_t r = 0; r < n_shares; r++) {
            assert_true(lo[r] == at && hi[r] >= at && (shares[r] || hi[r] == lo[r]));
            at = hi[r];
            uint8_t node_lo[ORDER_MAX_LEAVES], node_hi[ORDER_MAX_LEAVES];
            const uint32_t k = order_subtrees(lo[r], hi[r], n, node_lo, node_hi);
            for (uint32_t i = 0; i < k; i++) {
                have[node_lo[i]][node_hi[i]] = fold(partials, node_lo[i], node_hi[i]);
                there[node_lo[i]][node_hi[i]] = true;
            }
        }
        assert_int_equal(at, n);
        const float whole = fold(partials, 0, n), parts = combine(have, there, 0, n);
        assert_memory_equal(&whole, &parts, sizeof whole);
    }
}

/* A run of leaves needs at most 8 vectors, which is what struct part_cut has room for; they tile it. */
static void few_vectors_are_enough(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= ORDER_MAX_LEAVES; n++)
        for (uint32_t a = 0; a <= n; a++)
            for (uint32_t b = a; b <= n; b++) {
                uint8_t node_lo[ORDER_MAX_LEAVES], node_hi[ORDER_MAX_LEAVES];
                const uint32_t k = order_subtrees(a, b, n, node_lo, node_hi);
                uint32_t at = a;
                for (uint32_t i = 0; i < k; i++) {
                    assert_int_equal(node_lo[i], at);
                    at = node_hi[i];
                }
                assert_true(at == b && k <= 8);
            }
}

/* Leaves of any size: each holds something, the last ends with the tensor, and none depends on anything but the model. */
static void leaves_tile_the_dimension(void **state)
{
    (void)state;
    struct order_leaves l;
    for (uint64_t n = 1; n < 60000; n += 1 + n / 40)
        for (int super_block = 0; super_block < 2; super_block++) {
            order_columns(n, super_block, &l);
            assert_true(l.n >= 1 && l.n <= 12 && l.end[l.n - 1] == n);
            for (uint32_t i = 0; i < l.n; i++)
                assert_true(l.end[i] > order_leaf_begin(&l, i) && (l.end[i] % 32 == 0 || i + 1 == l.n));
        }
    for (uint32_t kv = 1; kv <= 130; kv++)
        for (uint32_t group = 1; group <= 70; group++) {
            T_OK(order_heads(kv * group, kv, &l, NULL), NULL);
            assert_true(l.n <= 14 && l.end[l.n - 1] == (uint64_t)kv * group && (l.n >= 8 || l.n == kv * group));
            for (uint32_t i = 0; i < l.n; i++)
                assert_true(l.end[i] > order_leaf_begin(&l, i));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(agrees_with_the_specification), cmocka_unit_test(refuses_heads_that_do_not_divide), cmocka_unit_test(any_cut_gives_the_same_bits),
                                       cmocka_unit_test(few_vectors_are_enough), cmocka_unit_test(leaves_tile_the_dimension)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
