/* Timing for benchmarks: a clock, medians, and turns. Machines drift (frequency, neighbours), so things to compare take turns within every round and each is
 * judged by its median; a ratio of two medians of one run means something where two runs' numbers do not. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#define BENCH_MAX_ROUNDS 256

/* Wall time, or the time during which this thread ran: on a machine shared with others the latter leaves out their turns on the core (not their use of the
 * memory), and means nothing for work of several threads. */
enum bench_clock { BENCH_WALL = CLOCK_MONOTONIC, BENCH_THREAD = CLOCK_THREAD_CPUTIME_ID };

struct bench_turn {
    void (*run)(void *arg);
    void *arg;
    double ns[BENCH_MAX_ROUNDS]; /* filled by bench_take_turns */
};

static inline double bench_now_ns(enum bench_clock clock) {
    struct timespec t;
    clock_gettime((clockid_t)clock, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline int bench_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts values. */
static inline double bench_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, bench_compare);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* One round to warm up, then n_rounds in which everybody has a turn. */
static inline void bench_take_turns(enum bench_clock clock, struct bench_turn *turns, int n_turns, int n_rounds) {
    for (int round = -1; round < n_rounds; round++)
        for (int i = 0; i < n_turns; i++) {
            double start = bench_now_ns(clock);
            turns[i].run(turns[i].arg);
            if (round >= 0) turns[i].ns[round] = bench_now_ns(clock) - start;
        }
}

#endif
