#include "runtime/cache.h"

#include "kernels/kernels.h"

enum st rt_cache_init(struct rt_cache *c, struct arena *arena, int64_t n_blocks, int n_slots, int64_t context, struct err *e)
{
    BASE_ASSERT(n_blocks > 0 && n_blocks < INT32_MAX && n_slots > 0);
    c->stride = (size_t)((context + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK);
    c->n_blocks = c->n_free = (int32_t)n_blocks;
    c->n_slots = n_slots;
    c->table = base_arena_array(arena, (size_t)n_slots * c->stride, sizeof *c->table);
    c->n_used = base_arena_array(arena, (size_t)n_slots, sizeof *c->n_used);
    c->free_blocks = base_arena_array(arena, (size_t)n_blocks, sizeof *c->free_blocks);
    if (!c->table || !c->n_used || !c->free_blocks)
        return err_set(e, ST_NO_MEMORY, "no memory for the block table");
    for (int32_t i = 0; i < c->n_blocks; i++)
        c->free_blocks[i] = c->n_blocks - 1 - i; /* block 0 on top */
    return ST_OK;
}

static int64_t blocks_for(int64_t n_tokens) { return (n_tokens + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK; }

enum st rt_cache_reserve(struct rt_cache *c, int slot, int64_t n_tokens)
{
    const int64_t wanted = blocks_for(n_tokens);
    BASE_ASSERT(slot >= 0 && slot < c->n_slots && n_tokens >= 0 && wanted <= (int64_t)c->stride);
    if (wanted - c->n_used[slot] > c->n_free)
        return ST_AGAIN;
    while (c->n_used[slot] < wanted)
        c->table[(size_t)slot * c->stride + (size_t)c->n_used[slot]++] = c->free_blocks[--c->n_free];
    return ST_OK;
}

void rt_cache_truncate(struct rt_cache *c, int slot, int64_t n_tokens)
{
    const int64_t kept = blocks_for(n_tokens);
    BASE_ASSERT(slot >= 0 && slot < c->n_slots && n_tokens >= 0);
    while (c->n_used[slot] > kept)
        c->free_blocks[c->n_free++] = c->table[(size_t)slot * c->stride + (size_t)--c->n_used[slot]];
}
