/* tandem bench: prefill and decode in tokens per second, against the read bandwidth measured in the same run.
 *
 * Ids are synthetic. Each repetition is one prefill request (N tokens, one new) and one decode request (from a context of --depth tokens, by default the single first token); the
 * ranks' own clocks are read, so that the front end's part is not counted. The first repetition warms up and is dropped. */
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/pool.h"
#include "base/rng.h"
#include "launcher/commands.h"
#include "launcher/foreign.h"
#include "launcher/job.h"
#include "runtime/bandwidth.h"

struct bench_values {
    int64_t prefill, decode, depth, repeat;
    const char *ledger;
    bool json;
};

static const struct option bench_options[] = {
    {"--prefill", NULL, OPT_INT, offsetof(struct bench_values, prefill), "N", "tokens of the prompt (default 512; 0: no prefill)", 0, 1048576, NULL},
    {"--decode", NULL, OPT_INT, offsetof(struct bench_values, decode), "N", "tokens to decode (default 64; 0: no decode)", 0, 1048576, NULL},
    {"--depth", NULL, OPT_INT, offsetof(struct bench_values, depth), "D", "tokens in the context before decoding (default: empty)", 0, 1048576, NULL},
    {"--repeat", NULL, OPT_INT, offsetof(struct bench_values, repeat), "R", "repetitions, of which medians are told (default 5)", 1, 1000, NULL},
    {"--json", NULL, OPT_FLAG, offsetof(struct bench_values, json), NULL, "one JSON object", 0, 0, NULL},
    LAUNCH_LEDGER_OPTION(offsetof(struct bench_values, ledger)),
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

/* ---- read bandwidth ------------------------------------------------------------------------------------------------------------------------------------- */

/* All threads of all ranks together: bytes per second. 0 where memory is short. */
static double read_bandwidth(int n_threads)
{
    struct base_pool *pool = NULL;
    if (base_pool_create(&(struct base_pool_options){.n_threads = n_threads, .spin_us = 50}, &pool, NULL))
        return 0;
    const double best = (double)rt_bandwidth_measure(pool, base_clock_real(), RT_BANDWIDTH_BYTES, 0);
    base_pool_destroy(pool);
    return best;
}

/* ---- requests -------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st one_request(struct launch_job *job, uint32_t number, int64_t vocab, int64_t n_prompt, int64_t n_new, struct rt_done *done, struct err *e)
{
    int32_t *ids = malloc((size_t)n_prompt * sizeof *ids);
    if (!ids)
        return err_set(e, ST_NO_MEMORY, "no memory for %" PRId64 " ids", n_prompt);
    struct base_rng rng;
    base_rng_init(&rng, number);
    for (int64_t i = 0; i < n_prompt; i++)
        ids[i] = (int32_t)base_rng_below(&rng, (uint32_t)vocab);
    const struct rt_request r = {.request = number, .n_prompt = (uint32_t)n_prompt, .max_new = (uint32_t)n_new};
    enum st st = launch_job_submit(job, &r, ids, e);
    free(ids);
    while (!st) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        st = launch_job_next(job, -1, &kind, &payload, &bytes, e);
        if (st == ST_AGAIN)
            st = ST_OK;
        else if (!st && kind == RT_DONE && bytes == sizeof *done) {
            memcpy(done, payload, sizeof *done);
            return done->reason == RT_REFUSED ? err_set(e, ST_INVALID, "the ranks refused the request") : ST_OK;
        }
    }
    return st;
}

struct samples {
    double prefill[1000], decode[1000], bandwidth[1000];
    int n_prefill, n_decode, n_bandwidth;
};

static enum st measure(const struct bench_values *v, const struct launch_setup *s, struct launch_job *job, struct samples *out, struct err *e)
{
    uint32_t number = 0;
    const int64_t depth = v->depth > 0 ? v->depth : 1;
    for (int64_t i = -1; i < v->repeat; i++) { /* −1 warms up */
        struct rt_done d;
        if (v->prefill) {
            const enum st st = one_request(job, ++number, s->whole->config.vocab, v->prefill, 1, &d, e);
            if (st)
                return st;
            if (i >= 0)
                out->prefill[out->n_prefill++] = (double)v->prefill / ((double)d.prefill_ns / 1e9);
        }
        if (v->decode) {
            const enum st st = one_request(job, ++number, s->whole->config.vocab, depth, v->decode + 1, &d, e);
            if (st)
                return st;
            if (i >= 0)
                out->decode[out->n_decode++] = (double)v->decode / ((double)d.decode_ns / 1e9);
        }
        if (i >= 0)
            out->bandwidth[out->n_bandwidth++] = read_bandwidth(s->n_ranks * s->settings.n_threads);
    }
    return ST_OK;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(const double *values, int n)
{
    double sorted[1000];
    if (n == 0)
        return 0;
    memcpy(sorted, values, (size_t)n * sizeof *values);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static json_t *array(const double *values, int n)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, json_real(values[i]));
    return a;
}

static enum st print_results(const struct bench_values *v, const struct launch_setup *s, const struct samples *m, struct err *e)
{
    const double prefill = median(m->prefill, m->n_prefill), decode = median(m->decode, m->n_decode), bandwidth = median(m->bandwidth, m->n_bandwidth);
    const double bytes = (double)s->plan->weight_bytes_per_token, share = bandwidth > 0 ? decode * bytes / bandwidth : 0;
    if (v->json) {
        json_t *o = json_pack("{s:f, s:f, s:o, s:o, s:f, s:f, s:f, s:i, s:i, s:I, s:I, s:I, s:s}", "prefill_tok_s", prefill, "decode_tok_s", decode, "prefill_samples",
                              array(m->prefill, m->n_prefill), "decode_samples", array(m->decode, m->n_decode), "bytes_per_token", bytes, "read_bytes_s", bandwidth, "read_share", share,
                              "ranks", s->n_ranks, "threads", s->settings.n_threads, "prefill", (json_int_t)v->prefill, "decode", (json_int_t)v->decode, "depth", (json_int_t)v->depth,
                              "kernels", s->backend->variant);
        json_dumpf(o, stdout, JSON_COMPACT);
        json_decref(o);
        fputc('\n', stdout);
    } else {
        printf("%s, %d ranks x %d threads, %s/%s\n", s->whole->config.name, s->n_ranks, s->settings.n_threads, s->backend->name, s->backend->variant);
        if (m->n_prefill)
            printf("prefill of %" PRId64 ": %.1f tok/s\n", v->prefill, prefill);
        if (m->n_decode)
            printf("decode of %" PRId64 " at depth %" PRId64 ": %.1f tok/s, %.1f MB of weights a token, %.2f GB/s = %.2f of the %.2f GB/s that plain reads reach\n", v->decode, v->depth,
                   decode, bytes / 1e6, decode * bytes / 1e9, share, bandwidth / 1e9);
    }
    return launch_flush_stdout(e);
}

int cmd_bench(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "comm") == 0)
        return cmd_bench_comm(argc - 1, argv + 1);
    struct launch_options shared = LAUNCH_OPTIONS_DEFAULT;
    struct bench_values v = {.prefill = 512, .decode = 64, .repeat = 5};
    const struct option_group groups[] = {{"What to measure", bench_options, &v}, launch_option_group(&shared)};
    const char *model;
    int status;
    if (launch_parse("bench", "tandem bench MODEL [--prefill N] [--decode N] [--depth D] [--repeat R] [OPTIONS]",
                     "Tokens per second, medians over repetitions; the warm-up is not counted.", groups, 2, argc, argv, &model, 0, &status))
        return status;
    struct err e = {""};
    if (launch_options_check(&shared, &e) || launch_ledger_check(v.ledger, &e))
        return launch_misuse("bench", &e);
    const int64_t decode_context = (v.depth > 0 ? v.depth : 1) + v.decode + 1, prefill_context = v.prefill + 1;
    const struct launch_needs needs = {.max_sequences = 1, .context = decode_context > prefill_context ? decode_context : prefill_context, .ledger = v.ledger != NULL};
    if (!v.prefill && !v.decode) {
        err_set(&e, ST_INVALID, "--prefill 0 --decode 0 leaves nothing to measure");
        return launch_misuse("bench", &e);
    }
    static struct samples samples;
    struct launch_setup *s = NULL;
    struct launch_job *job = NULL;
    struct launch_ledger *ledger = NULL;
    enum st st = launch_setup_create(model, &shared, &needs, &s, &e);
    if (!st)
        launch_foreign_serve(s, false);
    if (!st && s->settings.context < needs.context)
        st = err_set(&e, ST_INVALID, "--ctx %" PRId64 " is too short: %" PRId64 " tokens are needed", s->settings.context, needs.context);
    if (!st)
        st = launch_ledger_open(v.ledger, &ledger, &e);
    if (!st)
        st = launch_job_start(s, &job, &e);
    if (!st) {
        launch_job_collect(job, ledger);
        st = measure(&v, s, job, &samples, &e);
    }
    if (job && !st)
        st = launch_job_stop(job, &e);
    else
        launch_job_kill(job);
    if (!st)
        st = print_results(&v, s, &samples, &e);
    if (!st)
        st = launch_ledger_write(ledger, s, &e);
    launch_ledger_close(ledger);
    launch_setup_destroy(s);
    return st ? launch_fail("bench", &e) : 0;
}
