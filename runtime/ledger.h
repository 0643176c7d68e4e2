/* The ledger: where the microseconds of a rank went, by kind of step. Off: one branch a step. */
#ifndef RUNTIME_LEDGER_H
#define RUNTIME_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

#include "partition/program.h"

#define RT_LEDGER_OPS 16

struct rt_ledger {
    bool on;
    uint64_t n_steps, n_tokens;
    uint64_t op_ns[RT_LEDGER_OPS], op_calls[RT_LEDGER_OPS];
    uint64_t exchange_bytes; /* sent by this rank */
    uint64_t weight_bytes;   /* read by this rank, as packed */
    uint64_t step_ns;        /* whole steps, the difference to the ops is scheduling and sampling */
};

/* A table in text, into to (at most capacity − 1 bytes and a NUL). Returns its length. */
int rt_ledger_print(const struct rt_ledger *l, int rank, char *to, int capacity);

#endif
