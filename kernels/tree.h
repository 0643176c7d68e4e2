/* The fixed tree over leaves (DESIGN, "The order of sums"): node [a, b) splits at a + ⌈(b−a)/2⌉. Shared by columns.c and every backend's sum. */
#ifndef KERNELS_TREE_H
#define KERNELS_TREE_H

#include <stdint.h>

static inline uint32_t kern_tree_split(uint32_t a, uint32_t b) { return a + (b - a + 1) / 2; }

/* Sums stand on a stack, left to right. After the vector that covers node [lo, hi) has been pushed: how often are the two topmost added?
 * Once for each node that ends at hi and is larger than [lo, hi), since all of its other children are then complete. */
static inline uint32_t kern_tree_folds(uint32_t lo, uint32_t hi, uint32_t n_leaves) {
    uint32_t a = 0, b = n_leaves, n_folds = 0;
    while (a < b && !(a == lo && b == hi)) {
        if (b == hi)
            n_folds++;
        uint32_t m = kern_tree_split(a, b);
        if (m == b) /* a leaf: [lo, hi) is no node, the caller's mistake */
            break;
        if (lo < m)
            b = m;
        else
            a = m;
    }
    return n_folds;
}

/* Deepest stack: one sum per level of the tree over 32 leaves, and the one just pushed. */
#define KERN_TREE_STACK 8

#endif
