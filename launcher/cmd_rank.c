/* A rank's process, as an agent starts it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "comm/boot_pmi.h"
#include "launcher/agent.h"
#include "launcher/commands.h"
#include "launcher/foreign.h"
#include "launcher/rank_options.h"
#include "launcher/ways.h"
#include "runtime/exchanges.h"
#include "runtime/rank.h"

/* "0,1@0": numbers up to an end or an '@'; *text is left behind them. */
static int parse_numbers(const char **text, int *numbers, int max)
{
    int n = 0;
    const char *at = *text;
    while (*at && *at != '@' && n < max) {
        char *end;
        numbers[n++] = (int)strtol(at, &end, 10);
        at = *end == ',' ? end + 1 : end == at ? at + strlen(at) : end;
    }
    *text = *at == '@' ? at + 1 : at;
    return n;
}

/* Once: then nobody finds it in our descriptors. */
static enum st read_key(int fd, uint8_t key[COMM_KEY_BYTES], struct err *e)
{
    size_t n = 0;
    for (ssize_t got; n < COMM_KEY_BYTES && (got = read(fd, key + n, COMM_KEY_BYTES - n)) > 0;)
        n += (size_t)got;
    close(fd);
    return n == COMM_KEY_BYTES ? ST_OK : err_set(e, ST_IO, "the job's key could not be read");
}

int cmd_rank(int argc, char **argv)
{
    struct rank_values v;
    struct err e = {""};
    const char *model;
    uint32_t shares[ORDER_MAX_RANKS];
    static int cpus[1024], nodes[64];
    struct comm_link link;
    static int (*const commands[])(int, char **) = {cmd_run, cmd_eval, cmd_bench};
    static const char *const names[] = {"run", "eval", "bench"};
    for (size_t i = 0; i < sizeof names / sizeof *names && argc > 1; i++)
        if (strcmp(argv[1], names[i]) == 0)
            return launch_foreign_run(commands[i], argc - 1, argv + 1);
    base_log_init(NULL);
    enum st st = launch_rank_options_parse("rank", argc, argv, &v, &model, &e);
    struct rt_rank_options o = {.model = model, .front_fd = -1, .memory_fd = -1};
    if (!st) {
        o.rank = (int)v.rank;
        o.n_ranks = (int)v.n_ranks;
        o.front_fd = v.rank == 0 ? (int)v.front_fd : -1;
        o.memory_fd = (int)v.memory_fd;
        o.first_here = (int)v.first_rank;
        o.n_here = (int)v.host_ranks;
        o.settings = (struct rt_settings){
            .device = v.device,
            .accurate = v.accurate,
            .smaller = {.head_fp8 = v.head_fp8, .embedding = (enum part_embedding)v.embedding},
            .chunk = (int)v.chunk,
            .overlap_tokens = (int)v.overlap,
            .scatter_bytes = v.scatter,
            .context = v.context,
            .max_sequences = (int)v.sequences,
            .n_threads = (int)v.n_threads,
            .spin_us = (int)v.spin_us,
            .ledger = v.ledger,
            .model = {.moe = v.experts_whole ? PART_MOE_EXPERT : PART_MOE_TENSOR, .expert_map = v.expert_map},
            .expert_stats = v.expert_stats,
        };
        const char *seat = v.cpus;
        if (seat && parse_numbers(&seat, cpus, 1024) == o.settings.n_threads) {
            o.settings.os_cpus = cpus;
            o.numa = nodes;
            o.n_numa = parse_numbers(&seat, nodes, 64);
        }
        o.backend = v.backend;
        o.address = v.address;
        o.streams = v.streams;
        o.pair = v.pair;
        o.port = launch_ways_rank_port((int)v.port, o.rank);
        if (v.kv && strcmp(v.kv, kern_format(FMT_E4M3)->name) == 0)
            o.settings.kv_format = FMT_E4M3; /* no dtype of files */
        else
            st = kern_format_from_safetensors(v.kv ? v.kv : "F32", &o.settings.kv_format, &e);
    }
    static uint8_t key[COMM_KEY_BYTES];
    if (!st && v.key_fd >= 0) {
        st = read_key((int)v.key_fd, key, &e);
        o.key = key;
    }
    if (!st && v.link) {
        st = comm_link_parse(v.link, &link, &e);
        o.link = &link;
    }
    struct comm_boot boot = {0};
    if (!st && comm_boot_pmi_is_here()) {
        int rank, n_ranks;
        st = comm_boot_pmi_open_env(0, &boot, &rank, &n_ranks, &e);
        o.boot = &boot;
    }
    int n = 0;
    if (!st && v.shares) {
        st = launch_parse_split(v.shares, shares, &n, &e);
        o.shares = shares;
    }
    if (!st && v.vitals_fd >= 0) {
        struct rt_vitals *all = mmap(NULL, (size_t)v.n_ranks * sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED, (int)v.vitals_fd, 0);
        if (all == MAP_FAILED)
            st = err_set(&e, ST_IO, "cannot map the page of vital signs: %s", strerror(errno));
        else
            o.vitals = all;
    }
    if (!st)
        st = v.exchanges ? rt_exchanges_run(v.exchanges, &o, (size_t)v.exchange_bytes, &e) : rt_rank_run(&o, &e);
    const bool is_mpi = v.exchanges || (v.backend && strcmp(v.backend, "mpi") == 0);
    if (!st && o.boot)
        comm_boot_pmi_close(&boot, is_mpi ? COMM_BOOT_PMI_LEAVE : COMM_BOOT_PMI_FINALIZE);
    if (st && !o.vitals) /* nobody else will tell */
        LOG_ERR("rank", "%s", e.text);
    if (st)
        _exit(1); /* no library's way out after an error: some wait there for peers that are dead */
    return 0;
}
