/* tandem bench: prefill and decode in tokens per second, against the read bandwidth measured in the same run. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "launcher/commands.h"
#include "launcher/foreign.h"
#include "launcher/job.h"
#include "launcher/measure.h"

struct bench_values {
    struct measure_options what;
    const char *ledger;
    bool json;
};

static const struct option bench_options[] = {
    {"--prefill", NULL, OPT_INT, offsetof(struct bench_values, what.prefill), "N", "tokens of the prompt (default 512; 0: no prefill)", 0, 1048576, NULL},
    {"--decode", NULL, OPT_INT, offsetof(struct bench_values, what.decode), "N", "tokens to decode (default 64; 0: no decode)", 0, 1048576, NULL},
    {"--depth", NULL, OPT_INT, offsetof(struct bench_values, what.depth), "D", "tokens in the context before decoding (default: empty)", 0, 1048576, NULL},
    {"--repeat", NULL, OPT_INT, offsetof(struct bench_values, what.repeat), "R", "repetitions, of which medians are told (default 5)", 1, 1000, NULL},
    {"--json", NULL, OPT_FLAG, offsetof(struct bench_values, json), NULL, "one JSON object", 0, 0, NULL},
    LAUNCH_LEDGER_OPTION(offsetof(struct bench_values, ledger)),
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

static json_t *array(const double *values, int n)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, json_real(values[i]));
    return a;
}

static enum st print_results(const struct bench_values *v, const struct launch_setup *s, const struct measure_samples *m, struct err *e)
{
    const double prefill = launch_median(m->prefill, m->n_prefill), decode = launch_median(m->decode, m->n_decode), bandwidth = launch_median(m->bandwidth, m->n_bandwidth);
    const double bytes = (double)s->plan->weight_bytes_per_token, share = bandwidth > 0 ? decode * bytes / bandwidth : 0;
    if (v->json) {
        json_t *o = json_pack("{s:f, s:f, s:o, s:o, s:f, s:f, s:f, s:i, s:i, s:I, s:I, s:I, s:s}", "prefill_tok_s", prefill, "decode_tok_s", decode, "prefill_samples",
                              array(m->prefill, m->n_prefill), "decode_samples", array(m->decode, m->n_decode), "bytes_per_token", bytes, "read_bytes_s", bandwidth, "read_share", share,
                              "ranks", s->n_ranks, "threads", s->settings.n_threads, "prefill", (json_int_t)v->what.prefill, "decode", (json_int_t)v->what.decode, "depth", (json_int_t)v->what.depth,
                              "kernels", s->backend->variant);
        json_dumpf(o, stdout, JSON_COMPACT);
        json_decref(o);
        fputc('\n', stdout);
    } else {
        printf("%s, %d ranks x %d threads, %s/%s\n", s->whole->config.name, s->n_ranks, s->settings.n_threads, s->backend->name, s->backend->variant);
        if (m->n_prefill)
            printf("prefill of %" PRId64 ": %.1f tok/s\n", v->what.prefill, prefill);
        if (m->n_decode)
            printf("decode of %" PRId64 " at depth %" PRId64 ": %.1f tok/s, %.1f MB of weights a token, %.2f GB/s = %.2f of the %.2f GB/s that plain reads reach\n", v->what.decode, v->what.depth,
                   decode, bytes / 1e6, decode * bytes / 1e9, share, bandwidth / 1e9);
    }
    return launch_flush_stdout(e);
}

int cmd_bench(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "comm") == 0)
        return cmd_bench_comm(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "scale") == 0)
        return cmd_bench_scale(argc - 1, argv + 1);
    struct launch_options shared = LAUNCH_OPTIONS_DEFAULT;
    struct bench_values v = {.what = {.prefill = 512, .decode = 64, .repeat = 5}};
    const struct option_group groups[] = {{"What to measure", bench_options, &v}, launch_option_group(&shared)};
    const char *model;
    int status;
    if (launch_parse("bench", "tandem bench MODEL [--prefill N] [--decode N] [--depth D] [--repeat R] [OPTIONS]",
                     "Tokens per second, medians over repetitions; the warm-up is not counted.", groups, 2, argc, argv, &model, 0, &status))
        return status;
    struct err e = {""};
    if (launch_options_check(&shared, &e) || launch_ledger_check(v.ledger, &e))
        return launch_misuse("bench", &e);
    const struct launch_needs needs = {.max_sequences = 1, .context = launch_measure_context(&v.what), .ledger = v.ledger != NULL};
    if (!v.what.prefill && !v.what.decode) {
        err_set(&e, ST_INVALID, "--prefill 0 --decode 0 leaves nothing to measure");
        return launch_misuse("bench", &e);
    }
    static struct measure_samples samples;
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
        st = launch_measure(&v.what, s, job, &samples, &e);
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
