#include "launcher/measure.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/pool.h"
#include "base/rng.h"
#include "runtime/bandwidth.h"

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

int64_t launch_measure_context(const struct measure_options *o)
{
    const int64_t decode = (o->depth > 0 ? o->depth : 1) + o->decode + 1, prefill = o->prefill + 1;
    return decode > prefill ? decode : prefill;
}

enum st launch_measure(const struct measure_options *o, const struct launch_setup *s, struct launch_job *job, struct measure_samples *out, struct err *e)
{
    uint32_t number = 0;
    const int64_t depth = o->depth > 0 ? o->depth : 1;
    for (int64_t i = -1; i < o->repeat; i++) { /* −1 warms up */
        struct rt_done d;
        if (o->prefill) {
            const enum st st = one_request(job, ++number, s->whole->config.vocab, o->prefill, 1, &d, e);
            if (st)
                return st;
            if (i >= 0)
                out->prefill[out->n_prefill++] = (double)o->prefill / ((double)d.prefill_ns / 1e9);
        }
        if (o->decode) {
            const enum st st = one_request(job, ++number, s->whole->config.vocab, depth, o->decode + 1, &d, e);
            if (st)
                return st;
            if (i >= 0)
                out->decode[out->n_decode++] = (double)o->decode / ((double)d.decode_ns / 1e9);
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

double launch_median(const double *values, int n)
{
    double sorted[MEASURE_MAX];
    if (n == 0)
        return 0;
    memcpy(sorted, values, (size_t)n * sizeof *values);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}
