/* Sharding: the unsharded model + a group of ranks → one model per rank. A rewrite that cuts weights along their declared axes and inserts the collectives. */
#ifndef PARTITION_SHARD_H
#define PARTITION_SHARD_H

#include "partition/program.h"

#define PART_MAX_VECTORS 8 /* a contiguous run of a tree over ≤ 32 leaves has at most 8 maximal subtrees */

/* How every dimension is cut over the ranks: known to all of them. */
struct part_cut {
    int n_ranks;
    struct part_dim_cut {
        uint32_t lo[ORDER_MAX_RANKS], hi[ORDER_MAX_RANKS]; /* leaves */
        uint32_t n_vectors[ORDER_MAX_RANKS];               /* maximal subtrees per rank */
        uint8_t node_lo[ORDER_MAX_RANKS][PART_MAX_VECTORS], node_hi[ORDER_MAX_RANKS][PART_MAX_VECTORS];
    } dims[PART_MAX_DIMS];
};

/* shares NULL: equal. The equal cut may be moved by the planner where that saves vectors or keeps KV groups whole and the largest share grows by at most 5 %. */
enum st part_cut_init(const struct part_model *whole, int n_ranks, const uint32_t *shares, struct part_cut *cut, struct err *e);

/* The elements of an axis that a rank holds. */
struct part_range part_axis_range(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_axis axis);

/* whole and cut must outlive the shard (names are borrowed). */
enum st part_shard(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_model **shard, struct err *e);

#endif
