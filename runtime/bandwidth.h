/* How fast the threads of a pool can read memory together: what the ledger and tandem bench compare the reading of weights with.
 *
 * For setup and for measurements only: maps its own memory, larger than caches, and gives it back. */
#ifndef RUNTIME_BANDWIDTH_H
#define RUNTIME_BANDWIDTH_H

#include <stdint.h>

#include "base/clock.h"
#include "base/pool.h"

/* Of all ranks of a host together: larger than any cache in front of the memory that weights come from. */
#define RT_BANDWIDTH_BYTES (256u << 20)

/* What one of n_ranks ranks that measure at once maps. */
uint64_t rt_bandwidth_bytes(int n_ranks);

/* Reads bytes of memory with all threads, again and again: at least four rounds and min_ns. The best round, in bytes per second; 0 where memory is short. */
uint64_t rt_bandwidth_measure(struct base_pool *pool, const struct base_clock *clock, uint64_t bytes, uint64_t min_ns);

#endif
