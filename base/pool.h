/* Thread pool of one rank: run the same function on every thread, wait for all.
 *
 * create → run … → destroy. The creating thread is thread 0 and works too. Only the creator may call run. A waiting thread
 * spins at most spin_us (≤ 50), then sleeps on a futex; spin_us 0 (ranks × threads exceed the allowed CPUs) sleeps at once, after a sched_yield.
 * run allocates nothing and makes no system call as long as nobody sleeps. Work must not depend on n_threads for its bits. */
#ifndef BASE_POOL_H
#define BASE_POOL_H

#include <stddef.h>

#include "base/status.h"

struct base_pool;

struct base_pool_options {
    int n_threads;      /* ≥ 1 */
    int spin_us;        /* 0 … 50 */
    const int *os_cpus; /* NULL: not bound; else n_threads OS indexes, thread i is bound to os_cpus[i] (the creator too) */
};

enum st base_pool_create(const struct base_pool_options *options, struct base_pool **pool, struct err *e);
void base_pool_destroy(struct base_pool *pool);
int base_pool_n_threads(const struct base_pool *pool);

typedef void (*base_pool_fn)(void *arg, int i_thread, int n_threads);
void base_pool_run(struct base_pool *pool, base_pool_fn fn, void *arg);

/* A meeting point inside a running fn: returns once all n_threads threads have called it. Any number of times, the same on every thread. */
void base_pool_barrier(struct base_pool *pool, int i_thread);

/* Contiguous share of n items for one thread: [*begin, *end), in multiples of grain (the last may be short). */
void base_pool_share(size_t n, size_t grain, int i_thread, int n_threads, size_t *begin, size_t *end);

#endif
