/* How the ranks of a test find each other: a table that all of them see, be they threads or forked. */
#ifndef TESTS_T_BOOT_H
#define TESTS_T_BOOT_H

#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "comm/comm.h"

struct group_boot {
    _Atomic uint32_t n_written, n_read;
    int n_ranks;
    unsigned char records[COMM_MAX_RANKS][COMM_BOOT_MAX_BYTES];
};
struct group_boot_end {
    struct group_boot *table;
    int rank;
};

static inline enum st group_boot_wait(_Atomic uint32_t *count, uint32_t least, uint64_t deadline_ns, struct err *e) {
    while (atomic_load(count) < least) {
        if (base_now_ns(base_clock_real()) > deadline_ns) return err_set(e, ST_TIMEOUT, "boot: %u of %u ranks came", atomic_load(count), least);
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    return ST_OK;
}
static inline enum st group_boot_allgather(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    const struct group_boot_end *end = context;
    struct group_boot *t = end->table;
    /* Records may be written again when all have read the last ones. */
    uint32_t round = atomic_load(&t->n_written) / (uint32_t)t->n_ranks;
    enum st code = group_boot_wait(&t->n_read, round * (uint32_t)t->n_ranks, deadline_ns, e);
    if (code != ST_OK) return code;
    memcpy(t->records[end->rank], mine, bytes);
    atomic_fetch_add(&t->n_written, 1);
    code = group_boot_wait(&t->n_written, (round + 1) * (uint32_t)t->n_ranks, deadline_ns, e);
    if (code != ST_OK) return code;
    for (int r = 0; r < t->n_ranks; r++) memcpy((unsigned char *)all + (size_t)r * bytes, t->records[r], bytes);
    atomic_fetch_add(&t->n_read, 1);
    return group_boot_wait(&t->n_read, (round + 1) * (uint32_t)t->n_ranks, deadline_ns, e);
}

#endif
