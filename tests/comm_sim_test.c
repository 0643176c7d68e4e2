/* The simulated world: seeds of it, planted faults that it must find, and, called with options, a runner for many seeds (docs/simulator.md). test-deadline: 60 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/t.h"
#include "tests/t_sim.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { IS_SANITIZED = 1 };
#else
enum { IS_SANITIZED = 0 };
#endif
/* How many seeds, and for how long at most: a loaded machine tries fewer. */
enum { N_SEEDS = IS_SANITIZED ? 1500 : 10000, N_SEEDS_LONG = 100000, N_PLANTED_SEEDS = 3000 };
#define ENOUGH_NS (20 * BASE_NS_PER_S)

static struct comm_sim *sim;
static uint64_t real_now_ns(void) { return base_now_ns(base_clock_real()); }

/* ---- tests ---------------------------------------------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void seeds_hold(void **state) {
    (void)state;
    static uint32_t took_ns[N_SEEDS_LONG];
    const uint64_t first = t_seed() << 32, begun_ns = real_now_ns();
    const int n_wanted = t_long() ? N_SEEDS_LONG : N_SEEDS;
    int n = 0, n_lethal = 0, n_reports = 0;
    for (; n < n_wanted && (t_long() || real_now_ns() - begun_ns < ENOUGH_NS); n++) {
        struct t_sim_outcome out;
        const uint64_t before_ns = real_now_ns();
        if (!t_sim_run(sim, first + (uint64_t)n, T_SIM_SOUND, NULL, &out))
            fail_msg("seed %llu: %s", (unsigned long long)first + (unsigned)n, out.why);
        took_ns[n] = (uint32_t)(real_now_ns() - before_ns);
        n_lethal += out.is_lethal;
        n_reports += out.n_reports;
    }
    qsort(took_ns, (size_t)n, sizeof *took_ns, by_size);
    printf("%d seeds from %llu in %.1f s: median %.0f us, 99 of 100 below %.1f ms; %d met a fault that ends somebody, %d reports of survivors\n", n,
           (unsigned long long)first, (double)(real_now_ns() - begun_ns) / 1e9, took_ns[n / 2] / 1e3, took_ns[n * 99 / 100] / 1e6, n_lethal,
           n_reports);
    assert_true(n >= n_wanted / 20);
    assert_true(n_lethal > n / 10 && n_reports > n_lethal);
}

static void a_seed_is_a_run(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct t_sim_outcome first, second;
        assert_true(t_sim_run(sim, seed, T_SIM_SOUND, NULL, &first));
        assert_true(t_sim_run(sim, seed, T_SIM_SOUND, NULL, &second));
        assert_memory_equal(&first.report, &second.report, sizeof first.report);
    }
}

static void planted_faults_are_found(void **state) {
    (void)state;
    for (int planted = T_SIM_SOUND + 1; planted < T_SIM_N_PLANTED; planted++) {
        struct t_sim_outcome out;
        uint64_t seed = 0;
        while (seed < N_PLANTED_SEEDS && t_sim_run(sim, seed, (enum t_sim_planted)planted, NULL, &out)) seed++;
        if (seed == N_PLANTED_SEEDS) fail_msg("%s was not found in %d seeds", t_sim_planted_names[planted], N_PLANTED_SEEDS);
        printf("%s: found by seed %llu: %.150s\n", t_sim_planted_names[planted], (unsigned long long)seed, out.why);
        assert_true(t_sim_run(sim, seed, T_SIM_SOUND, NULL, &out));
    }
}

int main(int argc, char **argv) {
    struct err e = {0};
    if (comm_sim_create(&sim, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    if (argc > 2 && strcmp(argv[1], "--seed") == 0) {
        struct t_sim_outcome out;
        bool ok = t_sim_run(sim, strtoull(argv[2], NULL, 0), T_SIM_SOUND, argc > 3 ? stdout : NULL, &out);
        printf("%s %s\n", ok ? "ok" : "FAILED", out.why);
        return !ok;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_seed_is_a_run),
        cmocka_unit_test(seeds_hold),
        cmocka_unit_test(planted_faults_are_found),
    };
    const int n_failed = cmocka_run_group_tests_name("comm_sim", tests, NULL, NULL);
    comm_sim_destroy(sim);
    return n_failed;
}
