/* tandem synth: a checkpoint of a known model's shape with numbers that are made up. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "launcher/commands.h"
#include "launcher/interrupt.h"
#include "launcher/made_up.h"
#include "launcher/out_dir.h"

#define PROGRESS_NS (5 * BASE_NS_PER_S)

struct synth_values {
    const char *like;
    int64_t n_layers, n_experts, seed, max_file_mb, n_threads;
    int format; /* −1: as published */
    bool headers_only;
};

static const struct option options[] = {
    {"--like", NULL, OPT_STR, offsetof(struct synth_values, like), "PRESET", "the model whose shape it has; see below", 0, 0, NULL},
    {"--format", NULL, OPT_ENUM, offsetof(struct synth_values, format), "bf16|fp8|nvfp4|mxfp4", "how matrices are stored (default: as the model is published)", 0, 0, preset_format_names},
    {"--layers", NULL, OPT_INT, offsetof(struct synth_values, n_layers), "N", "only so many layers", 1, 10000, NULL},
    {"--experts", NULL, OPT_INT, offsetof(struct synth_values, n_experts), "N", "only so many experts a layer", 1, 10000, NULL},
    {"--seed", NULL, OPT_INT, offsetof(struct synth_values, seed), "S", "of the numbers (default 0)", 0, 0, NULL},
    {"--headers-only", NULL, OPT_FLAG, offsetof(struct synth_values, headers_only), NULL, "sparse files in which matrices are holes: inspect and plan read it, run must not", 0, 0, NULL},
    {"--shard-size", NULL, OPT_INT, offsetof(struct synth_values, max_file_mb), "MB", "files of at most so many MB (default: 5000)", 1, 1000000000, NULL},
    {"--threads", NULL, OPT_INT, offsetof(struct synth_values, n_threads), "T", "threads (default: allowed CPUs); the bytes do not depend on it", 1, 1024, NULL},
    {0},
};

struct progress {
    uint64_t began_ns, told_ns, bytes;
};

static bool go_on(void *arg, const char *tensor, uint64_t done_bytes)
{
    struct progress *p = arg;
    const uint64_t now = base_now_ns(base_clock_real());
    if (now - p->told_ns >= PROGRESS_NS) {
        p->told_ns = now;
        fprintf(stderr, "tandem synth: %.1f of %.1f MB, %.0f MB/s, at %s\n", (double)done_bytes / 1e6, (double)p->bytes / 1e6, (double)done_bytes / 1e6 / ((double)(now - p->began_ns) / 1e9), tensor);
    }
    return !launch_interrupted();
}

static enum st synthesise(const struct synth_values *v, const struct synth_options *o, const char *out, struct err *e)
{
    struct launch_out_dir dir;
    struct synth_plan *plan;
    enum st st = synth_plan_create(o, &plan, e);
    if (st)
        return st;
    struct progress p = {.began_ns = base_now_ns(base_clock_real()), .bytes = plan->bytes};
    p.told_ns = p.began_ns;
    st = launch_out_dir_open(&dir, out, e);
    if (!st) {
        const struct launch_made_up m = {.headers_only = v->headers_only, .n_threads = (int)v->n_threads, .go_on = go_on, .arg = &p};
        st = launch_made_up_write(plan, &m, &dir, e);
        if (!st)
            st = launch_out_dir_keep(&dir, NULL, e);
    }
    if (!st) {
        printf("%s: %s in %s, %d layers", dir.out, plan->shape.name, preset_format_names[o->format], plan->shape.n_layers);
        if (plan->shape.n_experts)
            printf(", %d experts", plan->shape.n_experts);
        printf(", %" PRIu64 " weights, %zu files of %.1f MB%s, %.1f s\n", plan->n_weights, plan->n_files, (double)plan->bytes / 1e6, v->headers_only ? " (matrices are holes)" : "",
               (double)(base_now_ns(base_clock_real()) - p.began_ns) / 1e9);
        st = launch_flush_stdout(e);
    }
    launch_out_dir_close(&dir);
    synth_plan_destroy(plan);
    return st;
}

static void print_help(void)
{
    const struct synth_values none = {0};
    struct option_group group = {"Options", options, (void *)(uintptr_t)&none};
    base_options_print_help(stdout, "tandem synth --like PRESET [OPTIONS] OUT",
                            "Writes a checkpoint as the hub has it: a known model's tensors, files, config.json and quantisation, with seeded numbers of a realistic scale and a tokenizer of bytes.", &group, 1);
    launch_made_up_print_presets(stdout);
}

int cmd_synth(int argc, char **argv)
{
    struct synth_values v = {.format = -1};
    struct err e = {""};
    if (base_options_wants_help(argc, argv)) {
        print_help();
        return launch_flush_stdout(&e) ? launch_fail("synth", &e) : 0;
    }
    const struct option_group group = {"Options", options, &v};
    const char *out = NULL;
    int n = 0;
    enum st st = base_options_parse("synth", &group, 1, argc, argv, &out, 1, &n, &e);
    const struct preset *preset = NULL;
    if (!st && !v.like)
        st = err_set(&e, ST_INVALID, "--like which PRESET? try 'tandem help synth'");
    if (!st && (!n || !*out))
        st = err_set(&e, ST_INVALID, "where to (OUT)?");
    if (!st && !(preset = preset_find(v.like)))
        st = err_set(&e, ST_INVALID, "--like %s: there is no such preset; 'tandem help synth' lists them", v.like);
    if (st)
        return launch_misuse("synth", &e);
    const struct synth_options o = {
        .preset = preset,
        .format = v.format < 0 ? preset->published : (enum preset_format)v.format,
        .n_layers = (int)v.n_layers,
        .n_experts = (int)v.n_experts,
        .seed = (uint64_t)v.seed,
        .max_file_bytes = (v.max_file_mb ? (uint64_t)v.max_file_mb : 5000) * 1000000,
    };
    signal(SIGXFSZ, SIG_IGN); /* a limit on files is an error like a full disk */
    launch_interrupt_heed();
    return synthesise(&v, &o, out, &e) ? launch_fail("synth", &e) : 0;
}
