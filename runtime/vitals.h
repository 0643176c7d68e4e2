/* Signs of life: one page per job and host, shared by its ranks (each writes its own row) and the agent that watches them.
 * All fields are atomics, or written before `failed` is set. */
#ifndef RUNTIME_VITALS_H
#define RUNTIME_VITALS_H

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

enum rt_phase { RT_PHASE_STARTING, RT_PHASE_LOADING, RT_PHASE_IDLE, RT_PHASE_STEP, RT_PHASE_TELLING, RT_PHASE_LEAVING };

#define RT_WAITS_BLINDLY (-1)
#define RT_VITALS_COUNTERS 16 /* threads share them out: thread i counts in i mod 16 */

struct rt_vitals {
    _Alignas(64) _Atomic uint64_t tick; /* grows with every change of phase, piece of a load, idle second */
    _Atomic uint64_t step;              /* of the scheduler */
    _Atomic uint64_t step_ns, waited_ns; /* in steps so far, and of that in exchanges, for others */
    _Atomic int phase;
    _Atomic int waits;  /* for other ranks: no progress is due, but this counts on, once a second; 0: it does not wait; RT_WAITS_BLINDLY: and cannot count */
    _Atomic int failed; /* enum st, once error is written */
    char error[512];
    struct {
        _Alignas(64) _Atomic uint64_t tick; /* base_tick */
    } threads[RT_VITALS_COUNTERS];
};

const char *rt_phase_name(enum rt_phase phase);

/* Of all threads: unchanged means that no work was done. */
static inline uint64_t rt_vitals_progress(const struct rt_vitals *v)
{
    uint64_t sum = atomic_load_explicit(&v->tick, memory_order_relaxed);
    for (int i = 0; i < RT_VITALS_COUNTERS; i++)
        sum += atomic_load_explicit(&v->threads[i].tick, memory_order_relaxed);
    return sum;
}

/* count: see `waits`; v NULL: nobody watches */
static inline void rt_vitals_wait(struct rt_vitals *v, int count)
{
    if (v)
        atomic_store_explicit(&v->waits, count, memory_order_relaxed);
}

/* For whoever watches, before the process ends; v NULL: nobody does. */
static inline void rt_vitals_fail(struct rt_vitals *v, enum st st, const struct err *e)
{
    if (!v)
        return;
    memcpy(v->error, e->text, sizeof v->error);
    atomic_store(&v->failed, (int)st);
}

#endif
