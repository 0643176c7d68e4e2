/* A bounded single-producer single-consumer queue of fixed-size items. Push and pop never block, allocate or call the system.
 * init → push (one thread) / pop (one thread) → release. */
#ifndef BASE_RING_H
#define BASE_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct base_ring {
    _Alignas(64) _Atomic uint64_t n_pushed;
    _Alignas(64) _Atomic uint64_t n_popped;
    _Alignas(64) unsigned char *items;
    size_t item_bytes;
    uint64_t mask; /* capacity − 1 */
};

/* capacity is rounded up to a power of two. */
enum st base_ring_init(struct base_ring *r, size_t capacity, size_t item_bytes);
void base_ring_release(struct base_ring *r);
enum st base_ring_push(struct base_ring *r, const void *item); /* ST_AGAIN when full */
enum st base_ring_pop(struct base_ring *r, void *item);        /* ST_AGAIN when empty */

#endif
