/* tandem bench comm: how long an exchange takes, by size, beside MPICH's MPI_Allreduce in the same processes.
 *
 * MPICH is set up by its environment, which a process reads once: each of its settings gets ranks of its own, which also measure ours, so that every ratio comes from one run. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "comm/mpi.h"
#include "launcher/commands.h"
#include "launcher/job.h"
#include "launcher/plot.h"
#include "runtime/exchanges.h"

#define EXCHANGE_BYTES (1u << 20) /* of one message: larger vectors go in pieces of at most half of it */
#define MAX_RUNS 3

enum peer { PEER_NONE, PEER_DEFAULT, PEER_TUNED, PEER_BOTH, PEER_AUTO };
static const char *const peers[] = {"none", "default", "tuned", "both", "auto", NULL};

struct comm_values {
    int64_t n_ranks, min, max, blocks, block_us, port, scatter;
    const char *backend, *link, *bind, *hosts, *hostfile, *ssh;
    bool has_hosts; /* by whatever names them */
    int peer;
    bool json, svg;
};

static const struct option options[] = {
    {"-n", "--ranks", OPT_INT, offsetof(struct comm_values, n_ranks), "RANKS", "ranks, one thread each (default 2; one for each of --hosts)", 2, COMM_MAX_RANKS, NULL},
    {"--backend", NULL, OPT_STR, offsetof(struct comm_values, backend), "NAME", "what carries the bytes: shm, tcp, ucx, mpi, across hosts shm+tcp, shm+ucx (default: the best that fits)", 0, 0, NULL},
    {"--link", NULL, OPT_STR, offsetof(struct comm_values, link), "RATE,DELAY|PRESET", "emulate a link; its effective figures are told beside the asked ones", 0, 0, NULL},
    {"--bind", NULL, OPT_STR, offsetof(struct comm_values, bind), "core|l3|numa|package|none|LIST", "where ranks are bound (default: by the machine's topology)", 0, 0, NULL},
    {"--peer", NULL, OPT_ENUM, offsetof(struct comm_values, peer), "none|default|tuned|both|auto",
     "MPICH beside it: as installed, or with the UCX_TLS that suits the backend (default auto: both; none with --link; across hosts as installed, on the link that was decided)", 0, 0, peers},
    {"--hosts", NULL, OPT_STR, offsetof(struct comm_values, hosts), "A,B...", "between these hosts (user@host allowed; or TANDEM_HOSTS)", 0, 0, NULL},
    {"--hostfile", NULL, OPT_STR, offsetof(struct comm_values, hostfile), "FILE", "the same, a name a line", 0, 0, NULL},
    {"--port", NULL, OPT_INT, offsetof(struct comm_values, port), "P", "fix our ports, as with run", 1, 65535, NULL},
    {"--ssh", NULL, OPT_STR, offsetof(struct comm_values, ssh), "PROGRAM", "instead of ssh, called like it (or TANDEM_SSH)", 0, 0, NULL},
    {"--scatter", NULL, OPT_INT, offsetof(struct comm_values, scatter), "BYTES", "as with run: three ranks and more share sums of so many bytes (default 262144; 0: never)", 0, (int64_t)1 << 40, NULL},
    {"--min", NULL, OPT_INT, offsetof(struct comm_values, min), "BYTES", "smallest vector (default 8)", 4, 1073741824, NULL},
    {"--max", NULL, OPT_INT, offsetof(struct comm_values, max), "BYTES", "largest vector (default 16777216)", 4, 1073741824, NULL},
    {"--blocks", NULL, OPT_INT, offsetof(struct comm_values, blocks), "N", "blocks of each size and kind, of which medians are told (default 9)", 1, 200, NULL},
    {"--block-us", NULL, OPT_INT, offsetof(struct comm_values, block_us), "US", "length of a block (default 2000)", 1, 10000000, NULL},
    {"--json", NULL, OPT_FLAG, offsetof(struct comm_values, json), NULL, "one JSON object", 0, 0, NULL},
    {"--svg", NULL, OPT_FLAG, offsetof(struct comm_values, svg), NULL, "a chart on standard output", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

/* ---- one run: ranks, and what their first says -------------------------------------------------------------------------------------------------------- */

static struct launch_options shared_options(const struct comm_values *v)
{
    return (struct launch_options){.n_ranks = v->n_ranks, .n_threads = 1, .activations = 1, .kv = LAUNCH_KV_AUTO, .bind = v->bind, .link = v->link, .backend = v->backend,
                                   .hosts = v->hosts, .hostfile = v->hostfile, .ssh = v->ssh, .port = v->port, .scatter = v->scatter};
}

/* What an exchange takes at least: each host (over an emulated link each rank) brings the vectors of its ranks to each other one once, or its share of the others' and of the sum, one after the other. */
static void note_wire(const struct launch_setup *s, json_t *run)
{
    double bits_per_s = s->has_link ? s->link.bits_per_s : 0, delay_us = s->has_link ? (double)s->link.delay_ns / 1e3 : 0;
    int n_vectors = s->n_ranks - 1, n_ports = s->hosts ? s->hosts->n : s->n_ranks;
    for (int i = 0; s->hosts && i < s->hosts->decision.n_pairs; i++) {
        const double rate = s->hosts->decision.pairs[i].gbit * 1e9;
        bits_per_s = i == 0 || rate < bits_per_s ? rate : bits_per_s;
    }
    if (s->hosts)
        for (int i = n_vectors = 0; i < s->hosts->n; i++)
            n_vectors = s->hosts->h[i].n_ranks * (s->hosts->n - 1) > n_vectors ? s->hosts->h[i].n_ranks * (s->hosts->n - 1) : n_vectors;
    if (bits_per_s <= 0)
        return;
    const double n_shared = 2.0 * (n_ports - 1) / n_ports, us_per_byte = 8 / bits_per_s * 1e6;
    json_object_set_new(run, "wire", json_pack("{s:f, s:f, s:i, s:f}", "bits_per_s", bits_per_s, "delay_us", delay_us, "vectors", n_vectors, "shared_vectors", n_shared));
    size_t i;
    json_t *size;
    json_array_foreach(json_object_get(run, "sizes"), i, size) {
        const double bytes = json_number_value(json_object_get(size, "bytes")), at_once_us = delay_us + bytes * n_vectors * us_per_byte, shared_us = 2 * delay_us + bytes * n_shared * us_per_byte;
        json_object_set_new(size, "ideal_us", json_real(at_once_us < shared_us ? at_once_us : shared_us));
    }
}

static enum st run_once(const struct comm_values *v, bool beside_mpi, json_t **result, struct err *e)
{
    const struct launch_options shared = shared_options(v);
    const struct rt_exchanges x = {.min_bytes = v->min, .max_bytes = v->max, .block_us = v->block_us, .n_blocks = v->blocks, .beside_mpi = beside_mpi};
    char what[128];
    rt_exchanges_print(&x, what);
    struct launch_setup *s = NULL;
    struct launch_job *job = NULL;
    enum st st = launch_setup_create_bare(&shared, EXCHANGE_BYTES, what, &s, e);
    if (!st && s->hosts)
        s->hosts->with_mpi = beside_mpi || (v->backend && strcmp(v->backend, "mpi") == 0);
    if (!st)
        st = launch_job_start(s, &job, e);
    while (!st) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        st = launch_job_next(job, -1, &kind, &payload, &bytes, e);
        if (st == ST_AGAIN) {
            st = ST_OK;
            continue;
        }
        if (st || kind != RT_EXCHANGES)
            continue;
        *result = json_loadb(payload, bytes, 0, NULL);
        if (!*result)
            st = err_set(e, ST_INVALID, "rank 0's results are no JSON");
        else
            note_wire(s, *result);
        break;
    }
    launch_job_kill(job);
    launch_setup_destroy(s);
    return st;
}

/* What MPICH should use to be at its best where ours uses this backend. */
static const char *tuned_transports(const char *backend) { return backend && (strcmp(backend, "tcp") == 0 || strcmp(backend, "ucx") == 0) ? "tcp,self" : "posix,self"; }

static enum st run_all(const struct comm_values *v, json_t *runs, struct err *e)
{
    const bool has_mpi = comm_mpi_version() != NULL;
    const int peer = v->peer == PEER_AUTO ? (!has_mpi || v->link ? PEER_NONE : v->has_hosts ? PEER_DEFAULT : PEER_BOTH) : v->peer;
    if (peer != PEER_NONE && !has_mpi)
        return err_set(e, ST_UNSUPPORTED, "--peer %s: no MPICH here, or this build does without", peers[peer]);
    const struct {
        int peer;
        const char *name, *transports;
    } settings[] = {{PEER_NONE, NULL, NULL}, {PEER_DEFAULT, "default", NULL}, {PEER_TUNED, "tuned", tuned_transports(v->backend)}};
    const char *own = getenv("UCX_TLS");
    char *kept = own ? strdup(own) : NULL;
    enum st st = ST_OK;
    for (size_t i = 0; i < sizeof settings / sizeof *settings && !st; i++) {
        const bool wanted = peer == settings[i].peer || (peer == PEER_BOTH && settings[i].peer != PEER_NONE);
        if (!wanted)
            continue;
        if (settings[i].transports)
            setenv("UCX_TLS", settings[i].transports, 1);
        json_t *run = NULL;
        st = run_once(v, settings[i].peer != PEER_NONE, &run, e);
        if (st)
            break;
        if (settings[i].name)
            json_object_set_new(run, "peer", json_string(settings[i].name));
        if (settings[i].transports)
            json_object_set_new(run, "peer_ucx_tls", json_string(settings[i].transports));
        json_array_append_new(runs, run);
    }
    if (kept)
        setenv("UCX_TLS", kept, 1);
    else
        unsetenv("UCX_TLS");
    free(kept);
    return st;
}

/* ---- telling ------------------------------------------------------------------------------------------------------------------------------------------ */

static double number(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

/* Of the link itself: the smallest message gives the delay, the largest the rate. */
static void effective_figures(json_t *run)
{
    json_t *link = json_object_get(run, "link"), *sizes = json_object_get(run, "sizes");
    const size_t n = json_array_size(sizes);
    if (!link || n < 2)
        return;
    const json_t *small = json_array_get(sizes, 0), *large = json_array_get(sizes, n - 1);
    const double peers_n = number(run, "ranks") - 1, rate = number(link, "bits_per_s"), small_bits = rate > 0 ? number(small, "bytes") * 8 * peers_n / rate * 1e6 : 0;
    json_object_set_new(link, "effective_delay_us", json_real(number(small, "us") - small_bits));
    json_object_set_new(link, "effective_bits_per_s", json_real((number(large, "bytes") - number(small, "bytes")) * 8 * peers_n / ((number(large, "us") - number(small, "us")) / 1e6)));
}

static void print_link(const json_t *run)
{
    const json_t *link = json_object_get(run, "link");
    if (!link)
        return;
    const double asked = number(link, "bits_per_s") / 1e9, is = number(link, "effective_bits_per_s") / 1e9, delay = number(link, "delay_ns") / 1e3, is_delay = number(link, "effective_delay_us");
    printf("emulated link %s: asked %.4g Gbit/s and %.3f us, effective %.4g Gbit/s (%+.1f %%) and %.3f us (%+.1f %%)\n", json_string_value(json_object_get(link, "asked")), asked, delay, is,
           100 * (is / asked - 1), is_delay, 100 * (is_delay / delay - 1));
    if (is < 0.97 * asked)
        printf("limited by this machine: %.2f of %.2f GB/s each way; %.0f %% of the exchanges came later than the link would have brought them\n", is / 8, asked / 8,
               100 * number(link, "late") / number(link, "exchanges"));
}

static void print_table(const json_t *runs)
{
    const json_t *first = json_array_get(runs, 0);
    printf("%d ranks over %s: sum of one vector per rank, from the input being there to the sum being there (medians)\n", (int)number(first, "ranks"), json_string_value(json_object_get(first, "backend")));
    for (size_t i = 0; i < json_array_size(runs); i++)
        if (json_object_get(json_array_get(runs, i), "peer")) {
            const char *tls = json_string_value(json_object_get(json_array_get(runs, i), "peer_ucx_tls"));
            printf("%s, %s: %s%s\n", json_string_value(json_object_get(json_array_get(runs, i), "mpi")), json_string_value(json_object_get(json_array_get(runs, i), "peer")), tls ? "UCX_TLS=" : "as installed",
                   tls ? tls : "");
        }
    printf("%10s", "bytes");
    for (size_t i = 0; i < json_array_size(runs); i++) {
        const char *peer = json_string_value(json_object_get(json_array_get(runs, i), "peer"));
        printf("  %9s %8s", "us", "GB/s");
        if (peer)
            printf(" %9s %7s %8s", peer, "ratio", "of least");
    }
    const bool has_wire = json_object_get(first, "wire") != NULL;
    if (has_wire)
        printf("  %9s %8s", "ideal us", "/ ideal");
    printf("\n");
    for (size_t k = 0; k < json_array_size(json_object_get(first, "sizes")); k++) {
        printf("%10.0f", number(json_array_get(json_object_get(first, "sizes"), k), "bytes"));
        for (size_t i = 0; i < json_array_size(runs); i++) {
            const json_t *size = json_array_get(json_object_get(json_array_get(runs, i), "sizes"), k);
            printf("  %9.3f %8.3f", number(size, "us"), number(size, "bytes") / number(size, "us") / 1e3);
            if (json_object_get(size, "ratio"))
                printf(" %9.3f %7.3f %8.3f", number(size, "mpi_us"), number(size, "ratio"), number(size, "ratio_least"));
        }
        const json_t *size = json_array_get(json_object_get(first, "sizes"), k);
        if (has_wire)
            printf("  %9.3f %8.2f", number(size, "ideal_us"), number(size, "us") / number(size, "ideal_us"));
        printf("\n");
    }
    if (has_wire)
        printf("ideal: a wire of %.4g Gb/s, %s\n", number(json_object_get(first, "wire"), "bits_per_s") / 1e9, json_object_get(first, "link") ? "as asked" : "as its interfaces tell it");
    for (size_t i = 0; i < json_array_size(runs); i++)
        print_link(json_array_get(runs, i));
}

static struct plot_line times[2 + MAX_RUNS], rates[2 + MAX_RUNS]; /* the ideal, ours, MPICH's */

static void add_point(int line, double bytes, double us)
{
    struct plot_line *t = &times[line], *r = &rates[line];
    if (t->n == PLOT_MAX_POINTS || us <= 0)
        return;
    t->x[t->n] = r->x[r->n] = bytes;
    t->y[t->n++] = us;
    r->y[r->n++] = bytes / us / 1e3;
}

/* How many lines: none where nobody knows the wire. */
static int draw_ideal(const json_t *run)
{
    const json_t *wire = json_object_get(run, "wire"), *sizes = json_object_get(run, "sizes");
    static char name[64];
    if (!wire)
        return 0;
    snprintf(name, sizeof name, "the wire, %.4g Gb/s", number(wire, "bits_per_s") / 1e9);
    times[0].name = rates[0].name = name;
    times[0].dashed = rates[0].dashed = true;
    for (size_t k = 0; k < json_array_size(sizes); k++)
        add_point(0, number(json_array_get(sizes, k), "bytes"), number(json_array_get(sizes, k), "ideal_us"));
    return 1;
}

static void draw(const json_t *runs)
{
    static char names[2 + MAX_RUNS][64];
    struct plot plots[2] = {
        {.title = "Time", .x_label = "bytes of a vector", .y_label = "microseconds", .log_x = true, .log_y = true, .x_is_bytes = true},
        {.title = "Rate", .x_label = "bytes of a vector", .y_label = "GB/s", .log_x = true, .x_is_bytes = true},
    };
    int n = draw_ideal(json_array_get(runs, 0));
    for (size_t i = 0; i < json_array_size(runs); i++) {
        const json_t *run = json_array_get(runs, i), *sizes = json_object_get(run, "sizes");
        for (int mpi = i > 0; mpi < 2; mpi++) { /* ours once */
            if (mpi && !json_object_get(run, "peer"))
                continue;
            if (mpi)
                snprintf(names[n], sizeof names[n], "MPICH %s", json_string_value(json_object_get(run, "peer")));
            else
                snprintf(names[n], sizeof names[n], "%s", json_string_value(json_object_get(run, "backend")));
            times[n].name = rates[n].name = names[n];
            for (size_t k = 0; k < json_array_size(sizes); k++)
                add_point(n, number(json_array_get(sizes, k), "bytes"), number(json_array_get(sizes, k), mpi ? "mpi_us" : "us"));
            n++;
        }
    }
    for (int i = 0; i < n; i++) {
        plots[0].lines[i] = &times[i];
        plots[1].lines[i] = &rates[i];
    }
    plots[0].n_lines = plots[1].n_lines = n;
    launch_plot_svg(stdout, "Exchange and sum of partial results between ranks", plots, 2);
}

int cmd_bench_comm(int argc, char **argv)
{
    struct comm_values v = {.min = 8, .max = 16777216, .blocks = 9, .block_us = 2000, .peer = PEER_AUTO, .scatter = COMM_SCATTER_BYTES};
    const struct option_group groups[] = {{"What to measure", options, &v}};
    const char *model = NULL;
    int status;
    struct err e = {""};
    if (launch_parse("bench comm", "tandem bench comm [-n RANKS] [--hosts A,B] [--backend NAME] [--link LINK] [--json|--svg]",
                     "Latency and bandwidth of exchanges between ranks, by size, beside MPICH's MPI_Allreduce.", groups, 1, argc, argv, &model, 1, &status))
        return status;
    const char *named = getenv("TANDEM_HOSTS");
    v.has_hosts = v.hosts || v.hostfile || (named && *named);
    if (!v.n_ranks && !v.has_hosts)
        v.n_ranks = 2;
    if (model)
        err_set(&e, ST_INVALID, "%s: no model is needed here", model);
    else if (v.max < v.min)
        err_set(&e, ST_INVALID, "--max %" PRId64 " is below --min %" PRId64, v.max, v.min);
    else if (v.json && v.svg)
        err_set(&e, ST_INVALID, "--json and --svg exclude each other");
    else if (v.has_hosts && (v.peer == PEER_TUNED || v.peer == PEER_BOTH))
        err_set(&e, ST_INVALID, "--peer %s: between hosts MPICH is told the link that was decided, and nothing else", peers[v.peer]);
    if (!e.text[0]) {
        const struct launch_options shared = shared_options(&v);
        launch_options_check(&shared, &e);
    }
    if (e.text[0])
        return launch_misuse("bench comm", &e);
    json_t *runs = json_array();
    enum st st = run_all(&v, runs, &e);
    for (size_t i = 0; i < json_array_size(runs); i++)
        effective_figures(json_array_get(runs, i));
    if (!st && v.json) {
        json_t *all = json_pack("{s:O}", "runs", runs);
        json_dumpf(all, stdout, JSON_COMPACT);
        fputc('\n', stdout);
        json_decref(all);
    } else if (!st && v.svg)
        draw(runs);
    else if (!st)
        print_table(runs);
    json_decref(runs);
    if (!st)
        st = launch_flush_stdout(&e);
    return st ? launch_fail("bench comm", &e) : 0;
}
