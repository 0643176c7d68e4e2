/* How a rank's columns fall into leaves and segments. Pure arithmetic on the plan's numbers, done once when a matrix is bound. */
#include "base/status.h"
#include "kernels/kernels.h"
#include "kernels/tree.h"

uint32_t kern_columns_max_segments(uint64_t n_columns, uint32_t n_leaves) {
    /* ⌈n/32⌉ whole ones, one more where the range begins off the grid, and each inner leaf boundary may split one */
    uint64_t n = n_columns / KERN_SEGMENT + 2 + n_leaves;
    BASE_ASSERT(n <= UINT32_MAX);
    return (uint32_t)n;
}

/* Marks the end of each maximal complete subtree inside lo…hi−1 and counts, for each leaf, the inner nodes of that subtree that end with it. */
static uint32_t mark_subtrees(uint32_t lo, uint32_t hi, uint32_t a, uint32_t b, uint8_t *n_folds, uint8_t *emit) {
    if (hi <= a || b <= lo)
        return 0;
    uint32_t m = kern_tree_split(a, b);
    if (lo <= a && b <= hi) {
        for (uint32_t i = a; i < b; i++) {
            n_folds[i - lo] = (uint8_t)kern_tree_folds(i - a, i - a + 1, b - a);
            emit[i - lo] = i == b - 1;
        }
        return 1;
    }
    return mark_subtrees(lo, hi, a, m, n_folds, emit) + mark_subtrees(lo, hi, m, b, n_folds, emit);
}

uint32_t kern_folds_init(uint32_t lo, uint32_t hi, uint32_t n_total, uint8_t *n_folds, uint8_t *emit) {
    BASE_ASSERT(lo <= hi && hi <= n_total && n_total <= KERN_MAX_LEAVES);
    return mark_subtrees(lo, hi, 0, n_total, n_folds, emit);
}

void kern_columns_init(struct kern_columns *c, uint64_t begin, const uint64_t *leaf_end, uint32_t leaf_lo, uint32_t leaf_hi, uint32_t n_leaves_total,
                       uint32_t *segment_begin, uint8_t *segment_columns) {
    BASE_ASSERT(leaf_lo <= leaf_hi && leaf_hi <= n_leaves_total && n_leaves_total <= KERN_MAX_LEAVES);
    *c = (struct kern_columns){.begin = begin, .end = begin, .segment_begin = segment_begin, .segment_columns = segment_columns};
    c->n_leaves = leaf_hi - leaf_lo;
    if (c->n_leaves == 0) /* an empty shard: no column, no vector */
        return;

    /* ---- segments: cut at the ends of leaves and at multiples of 32 of the tensor's columns */
    uint64_t at = begin;
    for (uint32_t i = 0; i < c->n_leaves; i++) {
        BASE_ASSERT(leaf_end[i] >= at && leaf_end[i] - begin <= UINT32_MAX);
        c->leaf_segment[i] = c->n_segments;
        while (at < leaf_end[i]) {
            uint64_t next = (at / KERN_SEGMENT + 1) * KERN_SEGMENT;
            if (next > leaf_end[i])
                next = leaf_end[i];
            segment_begin[c->n_segments] = (uint32_t)(at - begin);
            segment_columns[c->n_segments] = (uint8_t)(next - at);
            c->n_segments++;
            at = next;
        }
    }
    c->leaf_segment[c->n_leaves] = c->n_segments;
    c->end = at;

    c->n_vectors = kern_folds_init(leaf_lo, leaf_hi, n_leaves_total, c->n_folds, c->emit);
}
