/* The paged KV pool: which block belongs to which sequence. The bytes lie in the executor's arena; this is only the bookkeeping, the same on every rank.
 * Block b of the pool is block b of every layer. Rows of the table are sequence slots. */
#ifndef RUNTIME_CACHE_H
#define RUNTIME_CACHE_H

#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"

struct rt_cache {
    int32_t *table; /* [n_slots, stride] */
    int32_t *n_used; /* [n_slots] blocks of each slot */
    int32_t *free_blocks; /* a stack: deterministic, so equal on every rank */
    int32_t n_free, n_blocks, n_slots;
    size_t stride; /* blocks a sequence may have */
};

enum st rt_cache_init(struct rt_cache *c, struct arena *arena, int64_t n_blocks, int n_slots, int64_t context, struct err *e);
/* Gives slot enough blocks for n_tokens in all. ST_AGAIN when the pool has too few (nothing is taken). */
enum st rt_cache_reserve(struct rt_cache *c, int slot, int64_t n_tokens);
/* Keeps the first n_tokens' blocks; 0 frees the sequence. */
void rt_cache_truncate(struct rt_cache *c, int slot, int64_t n_tokens);

#endif
