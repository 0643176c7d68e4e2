/* Signs of life: one page per job, shared by ranks (each writes its own row) and the agent that watches them. All fields are atomics or written before `failed` is set. */
#ifndef RUNTIME_VITALS_H
#define RUNTIME_VITALS_H

#include <stdatomic.h>
#include <stdint.h>

enum rt_phase { RT_PHASE_STARTING, RT_PHASE_LOADING, RT_PHASE_IDLE, RT_PHASE_STEP, RT_PHASE_TELLING, RT_PHASE_LEAVING };

struct rt_vitals {
    _Alignas(64) _Atomic uint64_t tick; /* grows with every sign of life */
    _Atomic uint64_t step;              /* of the scheduler */
    _Atomic int phase;
    _Atomic int failed; /* enum st, once error is written */
    char error[512];
};

const char *rt_phase_name(enum rt_phase phase);

#endif
