/* Two counters that only grow; each is written by one side. n_pushed − n_popped is the fill, also after both have wrapped. */
#include "base/ring.h"

#include <stdlib.h>
#include <string.h>

enum st base_ring_init(struct base_ring *r, size_t capacity, size_t item_bytes) {
    if (capacity == 0 || item_bytes == 0 || capacity > SIZE_MAX / 4) return ST_INVALID;
    size_t n_items = 1;
    while (n_items < capacity) n_items *= 2;
    size_t bytes;
    if (__builtin_mul_overflow(n_items, item_bytes, &bytes) || bytes > SIZE_MAX - 64) return ST_INVALID;
    unsigned char *items = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!items) return ST_NO_MEMORY;
    atomic_init(&r->n_pushed, 0);
    atomic_init(&r->n_popped, 0);
    r->items = items;
    r->item_bytes = item_bytes;
    r->mask = n_items - 1;
    return ST_OK;
}

void base_ring_release(struct base_ring *r) {
    free(r->items);
    r->items = NULL;
}

enum st base_ring_push(struct base_ring *r, const void *item) {
    uint64_t n_pushed = atomic_load_explicit(&r->n_pushed, memory_order_relaxed);
    /* acquire: the consumer has read the slot before we write it again */
    uint64_t n_popped = atomic_load_explicit(&r->n_popped, memory_order_acquire);
    if (n_pushed - n_popped > r->mask) return ST_AGAIN;
    memcpy(r->items + (n_pushed & r->mask) * r->item_bytes, item, r->item_bytes);
    atomic_store_explicit(&r->n_pushed, n_pushed + 1, memory_order_release);
    return ST_OK;
}

enum st base_ring_pop(struct base_ring *r, void *item) {
    uint64_t n_popped = atomic_load_explicit(&r->n_popped, memory_order_relaxed);
    uint64_t n_pushed = atomic_load_explicit(&r->n_pushed, memory_order_acquire);
    if (n_pushed == n_popped) return ST_AGAIN;
    memcpy(item, r->items + (n_popped & r->mask) * r->item_bytes, r->item_bytes);
    atomic_store_explicit(&r->n_popped, n_popped + 1, memory_order_release);
    return ST_OK;
}
