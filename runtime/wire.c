#include "runtime/wire.h"

#include <stdio.h>

#include "base/build_id.h"
#include "kernels/kernels.h"

struct comm_setup rt_wire_setup(const struct rt_rank_options *o, size_t max_bytes, const struct base_clock *clock)
{
    return (struct comm_setup){
        .rank = o->rank,
        .n_ranks = o->n_ranks,
        .max_bytes = max_bytes,
        .spin_us = o->settings.spin_us,
        .clock = clock,
        .memory_fd = o->memory_fd,
        .memory = o->memory,
        .backend = o->backend,
        .address = o->address,
        .streams = o->streams,
        .port = o->port,
        .key = o->key,
        .first_here = o->first_here,
        .n_here = o->n_here,
        .boot = o->boot,
        .is_watched = o->vitals != NULL,
        .link = o->link,
    };
}

enum st rt_wire_meet(struct comm *c, const struct rt_rank_options *o, const struct kern_backend *kernels, struct comm_identity mine, uint64_t deadline_ns, size_t *divided_from, struct err *e)
{
    char variant[64];
    snprintf(variant, sizeof variant, "%s/%s", kernels->name, kernels->variant);
    mine.build_id = tandem_build_id;
    mine.kernel_variant = variant;
    const enum st st = comm_hello(c, &mine, deadline_ns, e);
    return st ? st : comm_tune(c, o->pair, deadline_ns, divided_from, e);
}
