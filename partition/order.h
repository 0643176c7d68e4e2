/* The order of sums: leaves, tree and cuts (DESIGN). Pure arithmetic; nothing here knows rank counts except order_cut and order_subtrees.
 *
 * A cut dimension is divided into fixed leaves that come from the model alone. Node [a, b) of the tree splits at a + ⌈(b−a)/2⌉. A rank owns consecutive leaves and
 * contributes one vector per maximal complete subtree. */
#ifndef PARTITION_ORDER_H
#define PARTITION_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define ORDER_MAX_LEAVES 32
#define ORDER_MAX_RANKS 64

enum order_kind {
    ORDER_HEADS,     /* output projection: units are query heads */
    ORDER_COLUMNS,   /* other row-parallel products: units are columns */
    ORDER_EXPERTS,   /* expert mode: units are experts, leaves groups of them */
    ORDER_VOCABULARY /* 32 fixed slices: units are rows of embedding and head; a select, never a sum */
};

/* Leaf i covers units end[i−1] (0 for the first) … end[i]−1. */
struct order_leaves {
    enum order_kind kind;
    uint32_t n;
    uint64_t end[ORDER_MAX_LEAVES];
};

/* KV groups, each halved (larger half first) until there are at least 8 leaves or every leaf is one head; more than 12 groups are joined into 12 runs of whole groups.
 * ST_UNSUPPORTED where n_kv does not divide n_heads. */
enum st order_heads(uint32_t n_heads, uint32_t n_kv, struct order_leaves *leaves, struct err *e);
/* Units of 64 columns, 256 where super_block and n_in ≥ 3072, 32 where n_in < 256 or ⌈n_in/64⌉ is odd and below 12; shared out over at most 12 leaves. */
void order_columns(uint64_t n_in, bool super_block, struct order_leaves *leaves);
/* At most 32 groups of consecutive experts. */
void order_experts(uint32_t n_experts, struct order_leaves *leaves);
void order_vocabulary(uint64_t n_vocab, struct order_leaves *leaves);

static inline uint64_t order_leaf_begin(const struct order_leaves *l, uint32_t i) { return i ? l->end[i - 1] : 0; }

/* Leaves [lo[r], hi[r]) per rank by largest remainder (ties to the lower rank), consecutive; zero allowed. shares: not all zero. */
void order_cut(uint32_t n_leaves, const uint32_t *shares, uint32_t n_ranks, uint32_t *lo, uint32_t *hi);

/* Maximal nodes of the tree over n_leaves that lie wholly inside [lo, hi), left to right; none for an empty shard. Returns how many (≤ ORDER_MAX_LEAVES). */
uint32_t order_subtrees(uint32_t lo, uint32_t hi, uint32_t n_leaves, uint8_t *node_lo, uint8_t *node_hi);

#endif
