/* tandem bench scale: tokens per second for several rank counts in turn, what the exchanges take of it, and how well the ranks are used.
 *
 * Rounds go through all counts, each with ranks of its own, so that a machine whose speed changes meanwhile disturbs all alike. Speeds are measured without a ledger; the shares come from
 * a further run with one. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "launcher/commands.h"
#include "launcher/ledger_priv.h"
#include "launcher/measure.h"
#include "launcher/plot.h"

#define MAX_COUNTS 16

struct scale_values {
    const char *counts;
    int64_t rounds;
    struct measure_options what;
    bool json, svg;
};

static const struct option scale_options[] = {
    {"-n", "--ranks", OPT_STR, offsetof(struct scale_values, counts), "LIST", "rank counts (default 1,2)", 0, 0, NULL},
    {"--prefill", NULL, OPT_INT, offsetof(struct scale_values, what.prefill), "N", "tokens of the prompt (default 256; 0: no prefill)", 0, 1048576, NULL},
    {"--decode", NULL, OPT_INT, offsetof(struct scale_values, what.decode), "N", "tokens to decode (default 32; 0: no decode)", 0, 1048576, NULL},
    {"--depth", NULL, OPT_INT, offsetof(struct scale_values, what.depth), "D", "tokens in the context before decoding (default: empty)", 0, 1048576, NULL},
    {"--repeat", NULL, OPT_INT, offsetof(struct scale_values, what.repeat), "R", "repetitions in each round (default 3)", 1, 50, NULL},
    {"--rounds", NULL, OPT_INT, offsetof(struct scale_values, rounds), "N", "rounds through all counts, of which medians are told (default 3)", 1, 20, NULL},
    {"--json", NULL, OPT_FLAG, offsetof(struct scale_values, json), NULL, "one JSON object", 0, 0, NULL},
    {"--svg", NULL, OPT_FLAG, offsetof(struct scale_values, svg), NULL, "a chart on standard output", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

struct count {
    int n_ranks, n_threads;
    bool is_crowded; /* more threads than CPUs: no statement on scaling */
    struct measure_samples samples;
    double prefill, decode; /* medians */
    double wire[RT_LEDGER_PHASES], waiting[RT_LEDGER_PHASES]; /* shares of a step, mean of the ranks */
    struct ledger_link link;
};

static enum st parse_counts(const char *text, struct count *counts, int *n_counts, struct err *e)
{
    int n = 0;
    for (const char *at = text;; at++) {
        char *end;
        const long count = strtol(at, &end, 10);
        if (end == at || count < 1 || count > ORDER_MAX_RANKS || n == MAX_COUNTS || (*end && *end != ','))
            return err_set(e, ST_INVALID, "-n %s: wants up to %d rank counts of 1 to %d with commas between, like 1,2,4", text, MAX_COUNTS, ORDER_MAX_RANKS);
        counts[n++].n_ranks = (int)count;
        at = end;
        if (!*at)
            break;
    }
    *n_counts = n;
    return ST_OK;
}

/* ---- measuring ---------------------------------------------------------------------------------------------------------------------------------------- */

static void take_shares(const struct launch_ledger *l, struct count *c)
{
    for (int phase = 0; phase < RT_LEDGER_PHASES; phase++)
        for (int r = 0; r < c->n_ranks; r++) {
            const struct rt_ledger_sum *s = &l->reports[r].head->sums[phase];
            const double step = s->step_ns ? (double)s->step_ns : 1;
            c->wire[phase] += (double)s->kind_ns[RT_LEDGER_WIRE] / step / c->n_ranks;
            c->waiting[phase] += (double)s->kind_ns[RT_LEDGER_WAIT] / step / c->n_ranks;
        }
    c->link = launch_ledger_link(l);
}

static enum st run_count(const char *model, struct launch_options *shared, const struct measure_options *what, struct count *c, bool with_ledger, struct err *e)
{
    shared->n_ranks = c->n_ranks;
    const struct launch_needs needs = {.max_sequences = 1, .context = launch_measure_context(what), .ledger = with_ledger};
    static struct measure_samples unused;
    unused.n_prefill = unused.n_decode = unused.n_bandwidth = 0;
    struct launch_setup *s = NULL;
    struct launch_job *job = NULL;
    struct launch_ledger *ledger = NULL;
    enum st st = launch_setup_create(model, shared, &needs, &s, e);
    if (!st && with_ledger)
        st = launch_ledger_open("", &ledger, e);
    if (!st)
        st = launch_job_start(s, &job, e);
    if (!st && with_ledger)
        launch_job_collect(job, ledger);
    if (!st)
        st = launch_measure(what, s, job, with_ledger ? &unused : &c->samples, e);
    if (job && !st)
        st = launch_job_stop(job, e);
    else
        launch_job_kill(job);
    if (!st && with_ledger)
        take_shares(ledger, c);
    if (!st) {
        c->n_threads = s->settings.n_threads;
        c->is_crowded = s->placement && s->placement->oversubscribed; /* of other hosts their agents tell */
    }
    launch_ledger_close(ledger);
    launch_setup_destroy(s);
    return st;
}

static enum st run_all(const struct scale_values *v, const char *model, struct launch_options *shared, struct count *counts, int n_counts, struct err *e)
{
    const bool show = isatty(2);
    enum st st = ST_OK;
    for (int round = 0; round <= v->rounds && !st; round++) /* the last one with a ledger */
        for (int i = 0; i < n_counts && !st; i++) {
            if (show)
                fprintf(stderr, "\rround %d of %d: %d ranks ", round + 1, (int)v->rounds + 1, counts[i].n_ranks);
            st = run_count(model, shared, &v->what, &counts[i], round == v->rounds, e);
        }
    if (show)
        fputs("\r\033[K", stderr);
    for (int i = 0; i < n_counts; i++) {
        struct count *c = &counts[i];
        c->prefill = launch_median(c->samples.prefill, c->samples.n_prefill);
        c->decode = launch_median(c->samples.decode, c->samples.n_decode);
    }
    return st;
}

/* ---- telling ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Speed for each rank, against the first count's. */
static double efficiency(double rate, int n, double first, int n_first) { return first > 0 ? rate / n / (first / n_first) : 0; }

static void print_table(const struct count *counts, int n_counts, const struct launch_options *shared)
{
    const struct count *first = &counts[0];
    printf("ranks x threads    prefill  efficiency  wire  waiting     decode  efficiency  wire  waiting   (tok/s; efficiency: speed a rank against %d; shares of a step)\n", first->n_ranks);
    for (int i = 0; i < n_counts; i++) {
        const struct count *c = &counts[i];
        printf("%5d x %-7d  %9.1f  %8.0f %%  %3.0f %%  %5.0f %%  %9.1f  %8.0f %%  %3.0f %%  %5.0f %%%s\n", c->n_ranks, c->n_threads, c->prefill, 100 * efficiency(c->prefill, c->n_ranks, first->prefill, first->n_ranks),
               100 * c->wire[RT_LEDGER_PREFILL], 100 * c->waiting[RT_LEDGER_PREFILL], c->decode, 100 * efficiency(c->decode, c->n_ranks, first->decode, first->n_ranks), 100 * c->wire[RT_LEDGER_DECODE],
               100 * c->waiting[RT_LEDGER_DECODE], c->is_crowded ? "   more threads than CPUs" : "");
    }
    if (shared->link)
        printf("between ranks: an emulated link, %s\n", shared->link);
    for (int i = 0; i < n_counts; i++)
        if (counts[i].link.was_late)
            printf("%d ranks: limited by this machine: %.2f of %.2f GB/s (%.0f %% of the exchanges came later than the link would have brought them)\n", counts[i].n_ranks, counts[i].link.seen_gb_s,
                   counts[i].link.link_gb_s, 100 * counts[i].link.late_share);
}

static void print_json(const char *model, const struct count *counts, int n_counts, const struct launch_options *shared)
{
    json_t *list = json_array();
    for (int i = 0; i < n_counts; i++) {
        const struct count *c = &counts[i];
        json_t *o = json_pack("{s:i, s:i, s:b, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "ranks", c->n_ranks, "threads", c->n_threads, "crowded", c->is_crowded, "prefill_tok_s", c->prefill,
                              "prefill_efficiency", efficiency(c->prefill, c->n_ranks, counts[0].prefill, counts[0].n_ranks), "prefill_wire_share", c->wire[RT_LEDGER_PREFILL],
                              "prefill_waiting_share", c->waiting[RT_LEDGER_PREFILL], "decode_tok_s", c->decode, "decode_efficiency",
                              efficiency(c->decode, c->n_ranks, counts[0].decode, counts[0].n_ranks), "decode_wire_share", c->wire[RT_LEDGER_DECODE], "decode_waiting_share",
                              c->waiting[RT_LEDGER_DECODE]);
        if (c->link.was_there)
            json_object_set_new(o, "link", json_pack("{s:f, s:f, s:f}", "link_gb_s", c->link.link_gb_s, "seen_gb_s", c->link.seen_gb_s, "late_share", c->link.late_share));
        json_array_append_new(list, o);
    }
    json_t *all = json_pack("{s:s, s:s?, s:o}", "model", model, "link", shared->link, "counts", list);
    json_dumpf(all, stdout, JSON_COMPACT);
    json_decref(all);
    fputc('\n', stdout);
}

static void draw(const char *model, const struct count *counts, int n_counts, const struct launch_options *shared)
{
    enum { DECODE, PREFILL, DECODE_IDEAL, PREFILL_IDEAL, DECODE_USE, PREFILL_USE, DECODE_WIRE, PREFILL_WIRE, N_LINES };
    static struct plot_line lines[N_LINES] = {[DECODE] = {.name = "decode"},
                                              [PREFILL] = {.name = "prefill"},
                                              [DECODE_IDEAL] = {.name = "if ranks cost nothing", .dashed = true},
                                              [PREFILL_IDEAL] = {.name = "if ranks cost nothing", .dashed = true},
                                              [DECODE_USE] = {.name = "decode"},
                                              [PREFILL_USE] = {.name = "prefill"},
                                              [DECODE_WIRE] = {.name = "exchange, decode"},
                                              [PREFILL_WIRE] = {.name = "exchange, prefill"}};
    for (int i = 0; i < n_counts; i++) {
        const struct count *c = &counts[i], *first = &counts[0];
        const double y[N_LINES] = {[DECODE] = c->decode,
                                   [PREFILL] = c->prefill,
                                   [DECODE_IDEAL] = first->decode * c->n_ranks / first->n_ranks,
                                   [PREFILL_IDEAL] = first->prefill * c->n_ranks / first->n_ranks,
                                   [DECODE_USE] = 100 * efficiency(c->decode, c->n_ranks, first->decode, first->n_ranks),
                                   [PREFILL_USE] = 100 * efficiency(c->prefill, c->n_ranks, first->prefill, first->n_ranks),
                                   [DECODE_WIRE] = 100 * (c->wire[RT_LEDGER_DECODE] + c->waiting[RT_LEDGER_DECODE]),
                                   [PREFILL_WIRE] = 100 * (c->wire[RT_LEDGER_PREFILL] + c->waiting[RT_LEDGER_PREFILL])};
        for (int k = 0; k < N_LINES; k++) {
            lines[k].x[i] = c->n_ranks;
            lines[k].y[i] = y[k];
            lines[k].n = i + 1;
        }
    }
    const struct plot plots[] = {
        {.title = "Decode", .x_label = "ranks", .y_label = "tokens per second", .lines = {&lines[DECODE], &lines[DECODE_IDEAL]}, .n_lines = 2},
        {.title = "Prefill", .x_label = "ranks", .y_label = "tokens per second", .lines = {&lines[PREFILL], &lines[PREFILL_IDEAL]}, .n_lines = 2},
        {.title = "Efficiency, and what exchanges take (wire and waiting)", .x_label = "ranks", .y_label = "per cent", .lines = {&lines[DECODE_USE], &lines[PREFILL_USE], &lines[DECODE_WIRE], &lines[PREFILL_WIRE]}, .n_lines = 4},
    };
    char title[300];
    snprintf(title, sizeof title, "%.200s%s%.60s", model, shared->link ? ", link " : "", shared->link ? shared->link : "");
    launch_plot_svg(stdout, title, plots, 3);
}

/* The shared options, less those of which this command has its own. */
static struct option_group other_options(struct launch_options *shared)
{
    static struct option rows[32];
    const struct option_group all = launch_option_group(shared);
    int n = 0;
    for (const struct option *o = all.options; o->name; o++)
        if (strcmp(o->name, "-n") != 0 && strcmp(o->name, "--split") != 0 && n < 31)
            rows[n++] = *o;
    rows[n] = (struct option){0};
    return (struct option_group){.title = all.title, .options = rows, .values = shared};
}

int cmd_bench_scale(int argc, char **argv)
{
    struct launch_options shared = LAUNCH_OPTIONS_DEFAULT;
    struct scale_values v = {.counts = "1,2", .rounds = 3, .what = {.prefill = 256, .decode = 32, .repeat = 3}};
    const struct option_group groups[] = {{"What to measure", scale_options, &v}, other_options(&shared)};
    const char *model;
    int status, n_counts = 0;
    static struct count counts[MAX_COUNTS];
    if (launch_parse("bench scale", "tandem bench scale MODEL [-n 1,2,3] [--link LINK] [--threads T] [--json|--svg] [OPTIONS]",
                     "Tokens per second for several rank counts, what exchanges take of them, and how well the ranks are used.", groups, 2, argc, argv, &model, 0, &status))
        return status;
    struct err e = {""};
    if (v.json && v.svg)
        err_set(&e, ST_INVALID, "--json and --svg exclude each other");
    else if (!v.what.prefill && !v.what.decode)
        err_set(&e, ST_INVALID, "--prefill 0 --decode 0 leaves nothing to measure");
    else if (!parse_counts(v.counts, counts, &n_counts, &e))
        launch_options_check(&shared, &e);
    if (e.text[0])
        return launch_misuse("bench scale", &e);
    if (!shared.n_threads) { /* alike for all counts */
        int most = 1;
        for (int i = 0; i < n_counts; i++)
            most = counts[i].n_ranks > most ? counts[i].n_ranks : most;
        struct topo_machine *m = NULL;
        if (topo_machine_open(NULL, &m, &e))
            return launch_fail("bench scale", &e);
        shared.n_threads = topo_machine_cpus(m) / most > 1 ? topo_machine_cpus(m) / most : 1;
        topo_machine_close(m);
    }
    enum st st = run_all(&v, model, &shared, counts, n_counts, &e);
    if (!st && v.json)
        print_json(model, counts, n_counts, &shared);
    else if (!st && v.svg)
        draw(model, counts, n_counts, &shared);
    else if (!st)
        print_table(counts, n_counts, &shared);
    if (!st)
        st = launch_flush_stdout(&e);
    return st ? launch_fail("bench scale", &e) : 0;
}
