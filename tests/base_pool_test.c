#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/pool.h"
#include "tests/t.h"

enum { MAX_THREADS = 5, N_SLOTS = 64 };

static struct base_pool *make_pool(int n_threads, int spin_us) {
    struct base_pool *pool = NULL;
    struct err e = {0};
    struct base_pool_options options = {.n_threads = n_threads, .spin_us = spin_us};
    T_OK(base_pool_create(&options, &pool, &e), &e);
    assert_int_equal(base_pool_n_threads(pool), n_threads);
    return pool;
}

struct job {
    struct base_pool *pool;
    int n_phases;
    /* Plain memory on purpose: the pool orders it, and ThreadSanitizer would see if it did not. */
    uint64_t slots[2][MAX_THREADS * 8];
    uint64_t totals[MAX_THREADS * 8];
    int n_calls[MAX_THREADS * 8];
};

/* Each phase: everybody adds up what all have written in the phase before. One barrier a phase is enough with two buffers. */
static void phases(void *arg, int i_thread, int n_threads) {
    struct job *job = arg;
    job->n_calls[i_thread * 8]++;
    for (int i = 0; i < job->n_phases; i++) {
        job->slots[i % 2][i_thread * 8] = (uint64_t)i + (uint64_t)i_thread;
        base_pool_barrier(job->pool, i_thread);
        uint64_t sum = 0;
        for (int t = 0; t < n_threads; t++) sum += job->slots[i % 2][t * 8];
        job->totals[i_thread * 8] += sum;
    }
}

static void stress(int n_threads, int spin_us, int n_runs, int n_phases) {
    struct job job = {.pool = make_pool(n_threads, spin_us), .n_phases = n_phases};
    for (int i = 0; i < n_runs; i++) base_pool_run(job.pool, phases, &job);
    uint64_t n = (uint64_t)n_threads, p = (uint64_t)n_phases;
    uint64_t want = (uint64_t)n_runs * (n * p * (p - 1) / 2 + p * n * (n - 1) / 2);
    for (int t = 0; t < n_threads; t++) {
        assert_int_equal(job.n_calls[t * 8], n_runs);
        assert_true(job.totals[t * 8] == want);
    }
    base_pool_destroy(job.pool);
}

static void stress_one_to_five_threads(void **state) {
    (void)state;
    int n_runs = t_long() ? 20000 : 300;
    for (int n = 1; n <= MAX_THREADS; n++) {
        stress(n, 50, n_runs, 3);
        stress(n, 0, n_runs, 3);
        stress(n, 1, n_runs, 1);
        stress(n, 5, 3, n_runs);
    }
}

static void stress_on_one_cpu(void **state) {
    (void)state;
    cpu_set_t old, one;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    CPU_ZERO(&one);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &old)) cpu++;
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    for (int n = 1; n <= MAX_THREADS; n++) {
        stress(n, 0, 100, 3);
        stress(n, 50, 20, 3);
    }
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
}

static void sleepers_wake(void **state) {
    (void)state;
    struct job job = {.pool = make_pool(3, 50), .n_phases = 2};
    for (int i = 0; i < 20; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* the workers are asleep by now */
        base_pool_run(job.pool, phases, &job);
    }
    assert_int_equal(job.n_calls[2 * 8], 20);
    /* And while they are, they cost nothing. */
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    assert_true((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 20000000);
    base_pool_destroy(job.pool);
}

static void see_cpu(void *arg, int i_thread, int n_threads) {
    (void)n_threads;
    ((int *)arg)[i_thread * 8] = sched_getcpu();
}

static void threads_are_bound(void **state) {
    (void)state;
    cpu_set_t old, now;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    int cpus[MAX_THREADS], n_cpus = 0, seen[MAX_THREADS * 8] = {0};
    for (int i = 0; n_cpus < MAX_THREADS; i = (i + 1) % CPU_SETSIZE)
        if (CPU_ISSET(i, &old)) cpus[n_cpus++] = i;
    struct err e = {0};
    struct base_pool *pool = NULL;
    struct base_pool_options options = {.n_threads = MAX_THREADS, .spin_us = 0, .os_cpus = cpus};
    T_OK(base_pool_create(&options, &pool, &e), &e);
    for (int i = 0; i < 10; i++) {
        base_pool_run(pool, see_cpu, seen);
        for (int t = 0; t < MAX_THREADS; t++) assert_int_equal(seen[t * 8], cpus[t]);
    }
    assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
    assert_int_equal(CPU_COUNT(&now), 1);
    base_pool_destroy(pool);
    assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
    assert_true(CPU_EQUAL(&now, &old));
}

static void bad_options_are_refused(void **state) {
    (void)state;
    struct err e = {0};
    struct base_pool *pool = NULL;
    cpu_set_t old, now;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    int first = 0;
    while (!CPU_ISSET(first, &old)) first++;
    t_expect_err_contains(ST_INVALID, base_pool_create(&(struct base_pool_options){.n_threads = 0}, &pool, &e), &e, "not 0");
    t_expect_err_contains(ST_INVALID, base_pool_create(&(struct base_pool_options){.n_threads = 1, .spin_us = 51}, &pool, &e), &e, "not 51");
    const int negative[] = {-1}, beyond[] = {first, 8191};
    t_expect_err_contains(ST_INVALID, base_pool_create(&(struct base_pool_options){.n_threads = 1, .os_cpus = negative}, &pool, &e), &e, "no cpu -1");
    t_expect_err_contains(ST_INVALID, base_pool_create(&(struct base_pool_options){.n_threads = 2, .os_cpus = beyond}, &pool, &e), &e, "cpu 8191");
    assert_null(pool);
    assert_int_equal(sched_getaffinity(0, sizeof now, &now), 0);
    assert_true(CPU_EQUAL(&now, &old)); /* the failure has undone the creator's binding */
    base_pool_destroy(NULL);
}

static void see_rank(void *arg, int i_thread, int n_threads) {
    (void)n_threads;
    ((int *)arg)[i_thread * 8] = base_log_rank();
}
static void workers_log_as_their_creator(void **state) {
    (void)state;
    int ranks[MAX_THREADS * 8] = {0};
    base_log_set_rank(2);
    struct base_pool *pool = make_pool(3, 10);
    base_pool_run(pool, see_rank, ranks);
    for (int t = 0; t < 3; t++) assert_int_equal(ranks[t * 8], 2);
    base_pool_destroy(pool);
    base_log_set_rank(-1);
}

static void run_again(void *arg, int i_thread, int n_threads) {
    (void)n_threads;
    if (i_thread == 0) base_pool_run(arg, run_again, arg);
}
static void nested_run(void *arg) {
    (void)arg;
    struct base_pool *pool = NULL;
    struct base_pool_options options = {.n_threads = 2};
    if (base_pool_create(&options, &pool, NULL) == ST_OK) base_pool_run(pool, run_again, pool);
}
static void a_nested_run_asserts(void **state) {
    (void)state;
    t_expect_assert(nested_run, NULL, "running");
}

static void shares_cover_all_once(void **state) {
    (void)state;
    static const size_t ns[] = {0, 1, 2, 7, 63, 64, 65, 1000, SIZE_MAX / 2, SIZE_MAX}, grains[] = {0, 1, 3, 64, 5000};
    for (size_t a = 0; a < sizeof ns / sizeof ns[0]; a++)
        for (size_t b = 0; b < sizeof grains / sizeof grains[0]; b++)
            for (int n_threads = 1; n_threads <= 9; n_threads++) {
                size_t at = 0, smallest = SIZE_MAX, largest = 0, grain = grains[b] ? grains[b] : 1;
                for (int t = 0; t < n_threads; t++) {
                    size_t begin, end;
                    base_pool_share(ns[a], grains[b], t, n_threads, &begin, &end);
                    assert_true(begin == at && end >= begin);
                    assert_true(begin % grain == 0 || begin == ns[a]);
                    size_t n_grains = (end - begin) / grain + ((end - begin) % grain != 0);
                    if (n_grains < smallest) smallest = n_grains;
                    if (n_grains > largest) largest = n_grains;
                    at = end;
                }
                assert_true(at == ns[a]);
                assert_true(largest - smallest <= 1);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stress_one_to_five_threads), cmocka_unit_test(stress_on_one_cpu),       cmocka_unit_test(sleepers_wake),
        cmocka_unit_test(threads_are_bound),          cmocka_unit_test(bad_options_are_refused), cmocka_unit_test(workers_log_as_their_creator),
        cmocka_unit_test(a_nested_run_asserts),       cmocka_unit_test(shares_cover_all_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
