#include "launcher/rank_options.h"

#include "base/options.h"
#include "comm/comm.h"
#include "partition/smaller.h"

static const struct option agent_options[] = {
    {"--control-fd", NULL, OPT_INT, offsetof(struct rank_values, control_fd), "FD", "socket to the launcher", 0, 0, NULL},
    {"--exchange-bytes", NULL, OPT_INT, offsetof(struct rank_values, exchange_bytes), "N", "largest send of a rank", 0, 0, NULL},
    {"--seats", NULL, OPT_STR, offsetof(struct rank_values, seats), "LISTS", "CPUs of each rank", 0, 0, NULL},
    {"--ranks", NULL, OPT_INT, offsetof(struct rank_values, n_ranks), "N", "ranks of the job", 1, COMM_MAX_RANKS, NULL},
    {"--front-fd", NULL, OPT_INT, offsetof(struct rank_values, front_fd), "FD", "socket to the front end, for rank 0", 0, 0, NULL},
    {"--threads", NULL, OPT_INT, offsetof(struct rank_values, n_threads), "T", "threads of each rank", 1, 1024, NULL},
    {"--spin-us", NULL, OPT_INT, offsetof(struct rank_values, spin_us), "US", "spin before sleeping", 0, 50, NULL},
    {"--chunk", NULL, OPT_INT, offsetof(struct rank_values, chunk), "N", "tokens of a step", 1, 65536, NULL},
    {"--overlap", NULL, OPT_INT, offsetof(struct rank_values, overlap), "N", "tokens from which on a step is walked in halves", 0, 65536, NULL},
    {"--scatter", NULL, OPT_INT, offsetof(struct rank_values, scatter), "BYTES", "of a rank's message, from which on sums are shared", 0, (int64_t)1 << 40, NULL},
    {"--ctx", NULL, OPT_INT, offsetof(struct rank_values, context), "N", "tokens of a sequence", 1, 16777216, NULL},
    {"--sequences", NULL, OPT_INT, offsetof(struct rank_values, sequences), "N", "sequences at once", 1, 65536, NULL},
    {"--split", NULL, OPT_STR, offsetof(struct rank_values, shares), "A:B", "shares", 0, 0, NULL},
    {"--device", NULL, OPT_STR, offsetof(struct rank_values, device), "NAME", "backend of kernels", 0, 0, NULL},
    {"--kv", NULL, OPT_STR, offsetof(struct rank_values, kv), "F", "cache format", 0, 0, NULL},
    {"--experts-whole", NULL, OPT_FLAG, offsetof(struct rank_values, experts_whole), NULL, "--moe ep", 0, 0, NULL},
    {"--embedding", NULL, OPT_ENUM, offsetof(struct rank_values, embedding), "stored|fp8|disk", "where and how it is kept", 0, 0, part_embedding_names},
    {"--head-fp8", NULL, OPT_FLAG, offsetof(struct rank_values, head_fp8), NULL, "round the head", 0, 0, NULL},
    {"--expert-map", NULL, OPT_STR, offsetof(struct rank_values, expert_map), "FILE", "which experts stand together", 0, 0, NULL},
    {"--expert-stats", NULL, OPT_FLAG, offsetof(struct rank_values, expert_stats), NULL, "count which experts are chosen", 0, 0, NULL},
    {"--accurate", NULL, OPT_FLAG, offsetof(struct rank_values, accurate), NULL, "activations in F32", 0, 0, NULL},
    {"--ledger", NULL, OPT_FLAG, offsetof(struct rank_values, ledger), NULL, "keep the ledger", 0, 0, NULL},
    {"--backend", NULL, OPT_STR, offsetof(struct rank_values, backend), "NAME", "what carries the bytes", 0, 0, NULL},
    {"--link", NULL, OPT_STR, offsetof(struct rank_values, link), "LINK", "emulated link", 0, 0, NULL},
    {"--exchanges", NULL, OPT_STR, offsetof(struct rank_values, exchanges), "WHAT", "measure exchanges, run no model", 0, 0, NULL},
    {"--address", NULL, OPT_STR, offsetof(struct rank_values, address), "ADDRESS", "this host's, towards the others", 0, 0, NULL},
    {"--streams", NULL, OPT_STR, offsetof(struct rank_values, streams), "LIST", "addresses and interfaces of the connections of a pair", 0, 0, NULL},
    {"--pair", NULL, OPT_STR, offsetof(struct rank_values, pair), "TEXT", "names the hosts and interfaces, for what is remembered of them", 0, 0, NULL},
    {"--port", NULL, OPT_INT, offsetof(struct rank_values, port), "P", "rank R listens at P + R", 0, 65535, NULL},
    {"--first-rank", NULL, OPT_INT, offsetof(struct rank_values, first_rank), "R", "first rank of this host", 0, COMM_MAX_RANKS, NULL},
    {"--host-ranks", NULL, OPT_INT, offsetof(struct rank_values, host_ranks), "N", "ranks of this host", 0, COMM_MAX_RANKS, NULL},
    {"--bind", NULL, OPT_STR, offsetof(struct rank_values, bind), "WHERE", "where this host's ranks are bound", 0, 0, NULL},
    {"--rank", NULL, OPT_INT, offsetof(struct rank_values, rank), "R", "this rank", 0, COMM_MAX_RANKS, NULL},
    {"--memory-fd", NULL, OPT_INT, offsetof(struct rank_values, memory_fd), "FD", "the ranks' shared segment", 0, 0, NULL},
    {"--vitals-fd", NULL, OPT_INT, offsetof(struct rank_values, vitals_fd), "FD", "the signs of life", 0, 0, NULL},
    {"--key-fd", NULL, OPT_INT, offsetof(struct rank_values, key_fd), "FD", "the job's key", 0, 0, NULL},
    {"--cpus", NULL, OPT_STR, offsetof(struct rank_values, cpus), "LIST", "CPUs of this rank's threads", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

enum st launch_rank_options_parse(const char *command, int argc, char **argv, struct rank_values *v, const char **model, struct err *e)
{
    *v = (struct rank_values){.control_fd = -1, .front_fd = -1, .memory_fd = -1, .vitals_fd = -1, .key_fd = -1};
    const struct option_group group = {"", agent_options, v};
    int n;
    const enum st st = base_options_parse(command, &group, 1, argc, argv, model, 1, &n, e);
    if (!st && n != 1)
        return err_set(e, ST_INVALID, "%s: which model?", command);
    return st;
}
