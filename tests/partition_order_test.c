/* The order of sums against the specification's own program (tests/golden/order.txt, made by make_order.py): leaves, cuts, subtrees. */
#include "partition/order.h"

#include <stdlib.h>
#include <string.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(agrees_with_the_specification), cmocka_unit_test(refuses_heads_that_do_not_divide)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
