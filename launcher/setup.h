/* What run, eval and bench have in common: their shared options, and everything that is decided before a rank starts:
 * model opened, machine read, ranks placed, plan made, budget checked. */
#ifndef LAUNCHER_SETUP_H
#define LAUNCHER_SETUP_H

#include "base/options.h"
#include "launcher/hosts.h"
#include "comm/comm.h"
#include "partition/plan.h"
#include "runtime/settings.h"
#include "topologies/place.h"

/* Values of the shared options, as parsed. */
struct launch_options {
    int64_t n_ranks;    /* 0: not given */
    int64_t n_threads;  /* 0: not given */
    const char *split;
    int device;         /* enum rt_device */
    int activations;    /* 0 f32, 1 auto */
    int moe;            /* enum part_moe */
    int head;           /* 0 stored, 1 fp8 */
    int embedding;      /* enum part_embedding */
    const char *expert_map;
    int kv;             /* index of launch_kv_choices */
    int64_t chunk, context; /* 0: not given */
    int64_t overlap, scatter;
    const char *bind;
    const char *link, *backend; /* of the exchanges */
    const char *hosts, *hostfile, *ssh; /* several hosts; NULL: this one */
    int64_t port;       /* 0: not given */
};
enum { LAUNCH_KV_FP8 = 3, LAUNCH_KV_AUTO = 4 };
#define LAUNCH_OPTIONS_DEFAULT {.activations = 1, .kv = LAUNCH_KV_AUTO, .overlap = 128, .scatter = COMM_SCATTER_BYTES}

extern const char *const launch_activation_choices[], *const launch_moe_choices[], *const launch_kv_choices[], *const launch_head_choices[];
/* Of each rank, beside what the plan counts: code and stacks; and what describes each matrix (measured on headers of 37,000: 2.2 KB, 0.4 KB more a rank of the plan, and where its
 * segments of columns begin). */
static inline uint64_t launch_reserve_bytes(const struct part_model *whole, int n_ranks) { return (32ull << 20) + (uint64_t)whole->n_weights * (3072 + 512 * (uint64_t)n_ranks); }

/* The group "shared by run, eval and bench". */
struct option_group launch_option_group(struct launch_options *values);

/* What can be said of them without a model: ST_INVALID is misuse. */
enum st launch_options_check(const struct launch_options *options, struct err *e);

struct launch_needs {
    int max_sequences;
    int64_t context;      /* what the command needs where --ctx is not given; 0: the model's maximum, at most 8192 */
    bool accurate_cache;  /* --kv auto means F32 */
    bool ledger;
    bool expert_stats;
};

/* What options and needs come to for a model: everything of the settings that is not of a machine. */
void launch_choose(const struct launch_options *options, const struct launch_needs *needs, const struct model_config *config, struct rt_settings *settings);
/* One line where a model was made for less. */
void launch_warn_of_context(const struct model_config *config, int64_t context);

struct launch_setup {
    const char *model; /* as given */
    const char *model_path; /* as ranks open it: absolute where there are other hosts */
    const char *bind;       /* as given, for other hosts' agents */
    char *expert_map;       /* of several hosts: its absolute path */
    struct launch_hosts *hosts; /* NULL: this host alone; else placement is NULL, agents place their ranks themselves */
    struct checkpoint *ck;
    struct part_model *whole;
    struct part_plan *plan;
    struct topo_machine *machine;
    struct topo_placement *placement;
    const struct kern_backend *backend;
    struct rt_settings settings; /* os_cpus NULL: they are in the placement */
    uint32_t shares[ORDER_MAX_RANKS];
    bool has_shares;
    const char *backend_name; /* of the exchanges; NULL: the best that fits */
    int port;                 /* rank r listens at port + r; 0: any */
    struct comm_link link;
    bool has_link;
    const char *exchanges; /* instead of a model: a benchmark of exchanges (runtime/exchanges.h); then ck … plan are NULL */
    uint64_t exchange_bytes; /* largest send of a rank */
    int n_ranks;
    uint64_t total_bytes, available_bytes; /* all ranks of this host; what may be taken */
    char available_what[256];
};

/* Ranks without a model, for benchmarks of exchanges: placed, but nothing planned. */
enum st launch_setup_create_bare(const struct launch_options *options, uint64_t exchange_bytes, const char *exchanges, struct launch_setup **setup, struct err *e);

/* Does not check the budget (so that --dry-run can print it). */
enum st launch_setup_create(const char *model, const struct launch_options *options, const struct launch_needs *needs, struct launch_setup **setup, struct err *e);
void launch_setup_destroy(struct launch_setup *s);

/* ST_NO_MEMORY in one sentence that says what would fit. */
enum st launch_check_budget(const struct launch_setup *s, struct err *e);
/* The same of one of several hosts. */
enum st launch_check_host_budget(const struct launch_setup *s, const char *host, int first_rank, int n_ranks, uint64_t available, const char *what, struct err *e);
/* Placement, cut and budget, for --dry-run. */
void launch_print_plan(const struct launch_setup *s, FILE *out);

/* "5:3" → shares; ST_INVALID with the sentence. */
enum st launch_parse_split(const char *text, uint32_t *shares, int *n, struct err *e);

#endif
