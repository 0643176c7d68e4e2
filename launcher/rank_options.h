/* What agents and ranks are told by command line and inherited descriptors. The agent passes its own arguments on to every rank unchanged, and adds --rank, --cpus and the like. */
#ifndef LAUNCHER_RANK_OPTIONS_H
#define LAUNCHER_RANK_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct rank_values {
    /* agent */
    int64_t control_fd, exchange_bytes;
    int64_t first_rank, host_ranks; /* of several hosts: this one's */
    const char *bind;               /* likewise: the agent places its ranks itself */
    const char *seats; /* "0,1@0:2,3@1": the ranks' CPUs and their memory's nodes; NULL: not bound */
    /* both */
    int64_t port; /* of comm: rank r listens at port + r; 0: any */
    int64_t n_ranks, front_fd, n_threads, spin_us, chunk, overlap, scatter, context, sequences;
    const char *shares, *kv;
    const char *device; /* as kern_select wants it; NULL: the best CPU's */
    const char *backend, *link, *address, *streams; /* of comm; NULL: the best; none; loopback; one */
    const char *pair;           /* of comm_tune; NULL: nothing is remembered */
    const char *exchanges;      /* a benchmark of exchanges instead of a model (runtime/exchanges.h) */
    int embedding; /* enum part_embedding */
    bool head_fp8, accurate, ledger, experts_whole, expert_stats;
    const char *expert_map;
    /* rank */
    int64_t rank, memory_fd, vitals_fd;
    int64_t key_fd; /* a pipe with the job's key; −1: there is none */
    const char *cpus; /* one of seats */
};

/* model: the one positional argument. */
enum st launch_rank_options_parse(const char *command, int argc, char **argv, struct rank_values *v, const char **model, struct err *e);

#endif
