/* The cut that the planner moves (part_cut_init without shares): what it may do, what it must find, and cases worked out by hand. Models are nothing but dimensions here. */
#include "partition/shard.h"

#include <string.h>

#include "base/rng.h"
#include "tests/t.h"

static struct part_model model;
static struct part_cut cut;
static uint32_t lo[ORDER_MAX_RANKS], hi[ORDER_MAX_RANKS]; /* of the cut that nobody moved */

static void set_heads(uint32_t n_heads, uint32_t n_kv)
{
    memset(&model, 0, sizeof model);
    model.n_dims = 1;
    model.config.n_heads = (int)n_heads;
    model.config.n_kv_heads = (int)n_kv;
    T_OK(order_heads(n_heads, n_kv, &model.dims[0].leaves, NULL), NULL);
}

static void set_columns(uint64_t n, bool super_block)
{
    memset(&model, 0, sizeof model);
    model.n_dims = 1;
    model.config.n_heads = 32; /* of no meaning for columns */
    model.config.n_kv_heads = 4;
    order_columns(n, super_block, &model.dims[0].leaves);
}

static void set_unmoved(uint32_t n_ranks, const uint32_t *shares)
{
    uint32_t equal[ORDER_MAX_RANKS];
    for (uint32_t r = 0; r < n_ranks; r++)
        equal[r] = 1;
    order_cut(model.dims[0].leaves.n, shares ? shares : equal, n_ranks, lo, hi);
}

static void make_cut(uint32_t n_ranks, const uint32_t *shares)
{
    struct err e = {""};
    set_unmoved(n_ranks, shares);
    T_OK(part_cut_init(&model, (int)n_ranks, shares, &cut, &e), &e);
    assert_int_equal(cut.n_ranks, n_ranks);
}

/* ---- what a cut is worth ---------------------------------------------------------------------------------------------------------------------------------- */

/* How many of the tree's nodes below [a, b) lie in [from, to) while their parents do not. */
static uint32_t count_vectors(uint32_t a, uint32_t b, uint32_t from, uint32_t to)
{
    if (from <= a && b <= to)
        return 1;
    if (to <= a || b <= from)
        return 0;
    const uint32_t middle = a + (b - a + 1) / 2;
    return count_vectors(a, middle, from, to) + count_vectors(middle, b, from, to);
}

struct worth {
    uint64_t largest;
    uint32_t n_cut_groups, n_vectors, n_idle;
};

static struct worth worth_of(uint32_t n_ranks, const uint32_t *from, const uint32_t *to)
{
    const struct order_leaves *l = &model.dims[0].leaves;
    const uint32_t group = l->kind == ORDER_HEADS ? (uint32_t)(model.config.n_heads / model.config.n_kv_heads) : 1;
    struct worth w = {0, 0, 0, 0};
    uint32_t last = 0;
    for (uint32_t r = 0; r < n_ranks; r++) {
        assert_true(from[r] == last && to[r] >= from[r] && to[r] <= l->n);
        last = to[r];
        if (from[r] == to[r]) {
            w.n_idle++;
            continue;
        }
        const uint64_t begin = order_leaf_begin(l, from[r]), end = l->end[to[r] - 1];
        w.largest = end - begin > w.largest ? end - begin : w.largest;
        w.n_cut_groups += end % group != 0;
        w.n_vectors += count_vectors(0, l->n, from[r], to[r]);
    }
    assert_int_equal(last, l->n);
    return w;
}

static bool better(const struct worth *a, const struct worth *b)
{
    return a->n_cut_groups < b->n_cut_groups || (a->n_cut_groups == b->n_cut_groups && a->n_vectors < b->n_vectors);
}

static bool is_moved(uint32_t n_ranks)
{
    const struct part_dim_cut *c = &cut.dims[0];
    return memcmp(c->lo, lo, n_ranks * sizeof *lo) != 0 || memcmp(c->hi, hi, n_ranks * sizeof *hi) != 0;
}

/* ---- every dimension by every number of ranks --------------------------------------------------------------------------------------------------------------- */

static uint32_t n_cuts, n_moved, n_grown, n_for_groups, n_at_a_price;

/* No cut of this one by a leaf or two is better: all that are allowed were tried. */
static void expect_nothing_left(uint32_t n_ranks, uint64_t limit)
{
    const struct part_dim_cut *c = &cut.dims[0];
    const struct worth now = worth_of(n_ranks, c->lo, c->hi);
    for (uint32_t r = 0; r + 1 < n_ranks; r++)
        for (int by = -2; by <= 2; by++) {
            uint32_t from[ORDER_MAX_RANKS], to[ORDER_MAX_RANKS];
            memcpy(from, c->lo, sizeof from);
            memcpy(to, c->hi, sizeof to);
            const int64_t at = (int64_t)to[r] + by;
            if (at <= from[r] || at >= to[r + 1]) /* nobody becomes idle */
                continue;
            to[r] = from[r + 1] = (uint32_t)at;
            const struct worth then = worth_of(n_ranks, from, to);
            assert_false(then.largest <= limit && better(&then, &now));
        }
}

static void check_cut(uint32_t n_ranks)
{
    make_cut(n_ranks, NULL);
    const struct order_leaves *l = &model.dims[0].leaves;
    const struct part_dim_cut *c = &cut.dims[0];
    const struct worth before = worth_of(n_ranks, lo, hi), after = worth_of(n_ranks, c->lo, c->hi);
    assert_true(after.largest * 100 <= before.largest * 105);
    assert_false(better(&before, &after)); /* no group is cut to save a vector, and neither for nothing */
    assert_true(better(&after, &before) == is_moved(n_ranks));
    assert_int_equal(after.n_idle, before.n_idle);
    for (uint32_t r = 0; r < n_ranks; r++) {
        assert_true((c->lo[r] == c->hi[r]) == (lo[r] == hi[r]));
        assert_in_range((int64_t)c->hi[r] - (int64_t)hi[r] + 2, 0, 4);
        uint8_t node_lo[ORDER_MAX_LEAVES], node_hi[ORDER_MAX_LEAVES];
        const uint32_t n = order_subtrees(c->lo[r], c->hi[r], l->n, node_lo, node_hi);
        assert_int_equal(c->n_vectors[r], n);
        assert_memory_equal(c->node_lo[r], node_lo, n);
        assert_memory_equal(c->node_hi[r], node_hi, n);
    }
    expect_nothing_left(n_ranks, before.largest * 105 / 100);
    n_cuts++;
    n_moved += is_moved(n_ranks);
    n_grown += after.largest > before.largest;
    n_for_groups += after.n_cut_groups < before.n_cut_groups;
    n_at_a_price += after.n_cut_groups < before.n_cut_groups && after.n_vectors > before.n_vectors;
}

static void every_cut_keeps_its_bounds(void **state)
{
    (void)state;
    static const uint32_t more[] = {24, 31, 32, 33, 63, 64};
    const uint32_t dense = t_long() ? 24 : 16;
    for (uint32_t kv = 1; kv <= (t_long() ? 130 : 40); kv++)
        for (uint32_t group = 1; group <= (t_long() ? 40 : 16); group++) {
            set_heads(kv * group, kv);
            for (uint32_t n = 1; n <= dense; n++)
                check_cut(n);
            for (size_t i = 0; i < sizeof more / sizeof *more; i++)
                check_cut(more[i]);
        }
    const uint32_t n_head_cuts = n_cuts;
    for (uint64_t n = 1; n < 60000; n += 1 + n / (t_long() ? 400 : 60))
        for (int super_block = 0; super_block < 2; super_block++) {
            set_columns(n, super_block);
            for (uint32_t k = 1; k <= dense; k++)
                check_cut(k);
            check_cut(64);
        }
    printf("%u cuts of heads, %u of columns: %u moved, %u of them for whole groups (%u at the price of vectors), in %u the largest share grew\n", n_head_cuts, n_cuts - n_head_cuts,
           n_moved, n_for_groups, n_at_a_price, n_grown);
    assert_true(n_moved > 1000 && n_for_groups > 20 && n_at_a_price > 10 && n_grown > 5); /* all of it happens */
}

/* Leaves of any sizes and groups: what no model of today has, but the next family may. */
static void any_leaves(void **state)
{
    (void)state;
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    for (int round = 0; round < 20000; round++) {
        memset(&model, 0, sizeof model);
        model.n_dims = 1;
        struct order_leaves *l = &model.dims[0].leaves;
        l->kind = base_rng_below(&rng, 4) ? ORDER_HEADS : ORDER_COLUMNS;
        l->n = 1 + base_rng_below(&rng, ORDER_MAX_LEAVES);
        const uint32_t most = 1 + base_rng_below(&rng, 40);
        for (uint32_t i = 0; i < l->n; i++)
            l->end[i] = order_leaf_begin(l, i) + 1 + base_rng_below(&rng, most);
        model.config.n_kv_heads = 1;
        model.config.n_heads = 1 + (int)base_rng_below(&rng, 8); /* the group: the last one may be short */
        const uint32_t n_ranks = 1 + base_rng_below(&rng, base_rng_below(&rng, 2) ? 6 : ORDER_MAX_RANKS);
        make_cut(n_ranks, NULL);
        const struct part_dim_cut *c = &cut.dims[0];
        const struct worth before = worth_of(n_ranks, lo, hi), after = worth_of(n_ranks, c->lo, c->hi);
        assert_true(after.largest * 100 <= before.largest * 105 && after.n_idle == before.n_idle);
        assert_true(better(&after, &before) == is_moved(n_ranks) && !better(&before, &after));
        expect_nothing_left(n_ranks, before.largest * 105 / 100);
    }
}

/* ---- by hand ----------------------------------------------------------------------------------------------------------------------------------------------- */

static void expect_cut(uint32_t n_ranks, const uint32_t *want_unmoved, const uint32_t *want)
{
    make_cut(n_ranks, NULL);
    assert_memory_equal(hi, want_unmoved, n_ranks * sizeof *hi);
    if (memcmp(cut.dims[0].hi, want, n_ranks * sizeof *want) != 0)
        for (uint32_t r = 0; r < n_ranks; r++)
            print_error("rank %u of %u ends before leaf %u, by hand %u\n", r, n_ranks, cut.dims[0].hi[r], want[r]);
    assert_memory_equal(cut.dims[0].hi, want, n_ranks * sizeof *want);
}

static void heads_by_hand(void **state)
{
    (void)state;
    /* 9 heads, 3 groups: 9 leaves of a head, the tree is ((3, 2), (2, 2)). By two: 5 + 4, a vector each; 6 + 3 would be whole groups, but 20 % more. By three: whole groups. */
    set_heads(9, 3);
    expect_cut(2, (uint32_t[]){5, 9}, (uint32_t[]){5, 9});
    expect_cut(3, (uint32_t[]){3, 6, 9}, (uint32_t[]){3, 6, 9});
    /* By four: the cuts at 5 and 7 are inside groups; at 6 one is not, for 5 vectors instead of 4. */
    expect_cut(4, (uint32_t[]){3, 5, 7, 9}, (uint32_t[]){3, 6, 7, 9});

    /* 15 heads, 5 groups of 2 + 1: the shares are 6, 5, 4 heads and the cut at leaf 7 is inside a group. At 6 it is not (6, 3, 6), nor at 8 (6, 6, 3), which saves two vectors more. */
    set_heads(15, 5);
    expect_cut(3, (uint32_t[]){4, 7, 10}, (uint32_t[]){4, 8, 10});

    /* 14 heads, 7 groups of 1 + 1: 11 is inside a group, 10 is not, and costs a vector: 6 become 7. */
    set_heads(14, 7);
    expect_cut(4, (uint32_t[]){4, 8, 11, 14}, (uint32_t[]){4, 8, 10, 14});

    /* Groups of 5 heads, 5 leaves of one: no group can be kept, so vectors count. ((2, 1), 2): the third leaf alone is one vector, leaves 3 and 4 are another. */
    set_heads(5, 1);
    expect_cut(3, (uint32_t[]){2, 4, 5}, (uint32_t[]){2, 3, 5});
    /* ((2, 2), (2, 1)): 6 vectors, then 5 with the first cut at 2, then 3 with the second at 4. */
    set_heads(7, 1);
    expect_cut(3, (uint32_t[]){3, 5, 7}, (uint32_t[]){2, 4, 7});

    /* 8 groups of 4: even by 2, 4, 8; by three every cut is whole, and each move of 3 + 3 + 2 that keeps the largest share has as many vectors or more. */
    set_heads(32, 8);
    expect_cut(2, (uint32_t[]){4, 8}, (uint32_t[]){4, 8});
    expect_cut(3, (uint32_t[]){3, 6, 8}, (uint32_t[]){3, 6, 8});
    expect_cut(4, (uint32_t[]){2, 4, 6, 8}, (uint32_t[]){2, 4, 6, 8});
    expect_cut(8, (uint32_t[]){1, 2, 3, 4, 5, 6, 7, 8}, (uint32_t[]){1, 2, 3, 4, 5, 6, 7, 8});

    /* An idle rank would save a vector: nobody becomes one. Who has nothing anyway stays so. */
    set_heads(2, 2);
    expect_cut(2, (uint32_t[]){1, 2}, (uint32_t[]){1, 2});
    expect_cut(5, (uint32_t[]){1, 2, 2, 2, 2}, (uint32_t[]){1, 2, 2, 2, 2});
    set_heads(1, 1);
    expect_cut(1, (uint32_t[]){1}, (uint32_t[]){1});
    expect_cut(2, (uint32_t[]){1, 1}, (uint32_t[]){1, 1});
}

static void columns_by_hand(void **state)
{
    (void)state;
    /* 12 equal leaves, the tree is two of ((2, 1), (2, 1)). By five 7 vectors: 1, 1, 1, 2, 2. The third rank takes a leaf more: 1, 1, 1, 1, 2; the fourth too: 5. */
    set_columns(768, false);
    expect_cut(5, (uint32_t[]){3, 6, 8, 10, 12}, (uint32_t[]){3, 6, 9, 11, 12});
    expect_cut(2, (uint32_t[]){6, 12}, (uint32_t[]){6, 12});
    expect_cut(4, (uint32_t[]){3, 6, 9, 12}, (uint32_t[]){3, 6, 9, 12});
    expect_cut(6, (uint32_t[]){2, 4, 6, 8, 10, 12}, (uint32_t[]){2, 4, 6, 8, 10, 12});

    /* 8 leaves of 32 columns, the last one short: 3 + 3 + 2 are 5 vectors, 2 + 2 + 4 would be 3. The largest share has 96 columns, and may come to have 100. */
    set_columns(226, false); /* 98 */
    expect_cut(3, (uint32_t[]){3, 6, 8}, (uint32_t[]){2, 4, 8});
    set_columns(228, false); /* 100 */
    expect_cut(3, (uint32_t[]){3, 6, 8}, (uint32_t[]){2, 4, 8});
    set_columns(229, false); /* 101 */
    expect_cut(3, (uint32_t[]){3, 6, 8}, (uint32_t[]){3, 6, 8});
}

/* ---- what is never moved ------------------------------------------------------------------------------------------------------------------------------------ */

static void expect_unmoved(uint32_t n_ranks, const uint32_t *shares)
{
    make_cut(n_ranks, shares);
    assert_memory_equal(cut.dims[0].lo, lo, n_ranks * sizeof *lo);
    assert_memory_equal(cut.dims[0].hi, hi, n_ranks * sizeof *hi);
}

static void a_split_is_an_order(void **state)
{
    (void)state;
    static const uint32_t ones[ORDER_MAX_RANKS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    uint32_t n_would_move = 0;
    for (uint32_t kv = 1; kv <= 16; kv++)
        for (uint32_t group = 1; group <= 8; group++)
            for (uint32_t n = 1; n <= 12; n++) {
                set_heads(kv * group, kv);
                make_cut(n, NULL);
                n_would_move += is_moved(n);
                expect_unmoved(n, ones); /* equal shares that somebody asked for */
                uint32_t shares[ORDER_MAX_RANKS];
                for (uint32_t r = 0; r < n; r++)
                    shares[r] = base_rng_below(&rng, 6);
                shares[base_rng_below(&rng, n)]++;
                expect_unmoved(n, shares);
                set_columns(1 + base_rng_below(&rng, 5000), false);
                expect_unmoved(n, ones);
                expect_unmoved(n, shares);
            }
    assert_true(n_would_move > 100);
}

static void a_vocabulary_is_not_summed(void **state)
{
    (void)state;
    for (uint64_t vocab = 1; vocab < 200000; vocab = vocab * 3 + 1)
        for (uint32_t n = 1; n <= ORDER_MAX_RANKS; n++) {
            memset(&model, 0, sizeof model);
            model.n_dims = 1;
            model.config.n_heads = model.config.n_kv_heads = 3;
            order_vocabulary(vocab, &model.dims[0].leaves);
            expect_unmoved(n, NULL);
            for (uint32_t r = 0; r < n; r++)
                assert_int_equal(cut.dims[0].n_vectors[r], 0);
        }
}

/* Each dimension is cut for itself. */
static void dimensions_do_not_know_each_other(void **state)
{
    (void)state;
    struct part_model all = {.n_dims = 3};
    struct part_cut alone[3], together;
    struct err e = {""};
    for (uint32_t n = 1; n <= 16; n++) {
        set_columns(768, false);
        all.dims[1] = model.dims[0];
        order_vocabulary(131, &all.dims[2].leaves);
        set_heads(15, 5);
        all.dims[0] = model.dims[0];
        all.config = model.config;
        for (int d = 0; d < 3; d++) {
            model.dims[0] = all.dims[d];
            T_OK(part_cut_init(&model, (int)n, NULL, &alone[d], &e), &e);
        }
        T_OK(part_cut_init(&all, (int)n, NULL, &together, &e), &e);
        for (int d = 0; d < 3; d++)
            assert_memory_equal(&together.dims[d], &alone[d].dims[0], sizeof together.dims[d]);
    }
}

static void impossible_cuts(void **state)
{
    (void)state;
    static const int numbers[] = {0, -1, INT32_MIN, ORDER_MAX_RANKS + 1, INT32_MAX};
    static const uint32_t nothing[ORDER_MAX_RANKS] = {0};
    struct err e = {""};
    set_heads(8, 8);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        t_expect_err_contains(ST_INVALID, part_cut_init(&model, numbers[i], NULL, &cut, &e), &e, "1 to 64 are possible");
    t_expect_err_contains(ST_INVALID, part_cut_init(&model, 3, nothing, &cut, &e), &e, "every share is zero");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cut_keeps_its_bounds), cmocka_unit_test(any_leaves),
        cmocka_unit_test(heads_by_hand),              cmocka_unit_test(columns_by_hand),
        cmocka_unit_test(a_split_is_an_order),        cmocka_unit_test(a_vocabulary_is_not_summed),
        cmocka_unit_test(dimensions_do_not_know_each_other), cmocka_unit_test(impossible_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
