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
static void mark_subtrees(struct kern_columns *c, uint32_t lo, uint32_t hi, uint32_t a, uint32_t b) {
    if (hi <= a || b <= lo)
        return;
    uint32_t m = kern_tree_split(a, b);
    if (lo <= a && b <= hi) {
        for (uint32_t i = a; i < b; i++)
            c->n_folds[i - lo] = (uint8_t)kern_tree_folds(i - a, i - a + 1, b - a);
        c->emit[b - 1 - lo] = 1;
        c->n_vectors++;
        return;
    }
    mark_subtrees(c, lo, hi, a, m);
    mark_subtrees(c, lo, hi, m, b);
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

    mark_subtrees(c, leaf_lo, leaf_hi, 0, n_leaves_total);
}
