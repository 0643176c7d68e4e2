/* Signs of life: a counter that grows with every piece of work that a thread does, looked at from outside by whoever watches the process.
 *
 * The thread's owner points base_tick_at to a counter (in memory that is shared with the watcher); code that may work for long without meeting anybody calls base_tick at least every
 * few hundred milliseconds of work. Waiting is not work. Without a counter base_tick costs a load and a branch. */
#ifndef BASE_TICK_H
#define BASE_TICK_H

#include <stdint.h>

#ifdef __cplusplus /* the same counter in words that C++ has */
extern "C" __thread uint64_t *base_tick_at;

static inline void base_tick(void)
{
    if (base_tick_at)
        __atomic_fetch_add(base_tick_at, 1, __ATOMIC_RELAXED);
}
#else
#include <stdatomic.h>

extern _Thread_local _Atomic uint64_t *base_tick_at; /* NULL: nobody looks */

static inline void base_tick(void)
{
    if (base_tick_at)
        atomic_fetch_add_explicit(base_tick_at, 1, memory_order_relaxed);
}
#endif

#endif
