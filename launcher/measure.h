/* Tokens per second of a job: what `bench` and `bench scale` measure with.
 *
 * Ids are synthetic. Each repetition is one prefill request (N tokens, one new) and one decode request (from a context of depth tokens, by default the single first token); the ranks' own
 * clocks are read, so that the front end's part is not counted. The first repetition warms up and is dropped. */
#ifndef LAUNCHER_MEASURE_H
#define LAUNCHER_MEASURE_H

#include "launcher/job.h"

#define MEASURE_MAX 1000

struct measure_options {
    int64_t prefill, decode, depth, repeat; /* tokens; 0: none; repetitions, ≤ MEASURE_MAX in all */
};

struct measure_samples {
    double prefill[MEASURE_MAX], decode[MEASURE_MAX]; /* tokens per second */
    double bandwidth[MEASURE_MAX];                    /* plain reads by as many threads as all ranks have, bytes per second */
    int n_prefill, n_decode, n_bandwidth;
};

/* Tokens of the longest sequence. */
int64_t launch_measure_context(const struct measure_options *o);
/* Appends o->repeat samples. */
enum st launch_measure(const struct measure_options *o, const struct launch_setup *s, struct launch_job *job, struct measure_samples *out, struct err *e);
double launch_median(const double *values, int n); /* 0 of none; n ≤ MEASURE_MAX */

#endif
