/* The simulated world: seeds of it, planted faults that it must find, and, called with options, a runner for many seeds (docs/simulator.md). test-deadline: 120 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/t.h"
#include "tests/t_sim.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { IS_SANITIZED = 1 };
#else
enum { IS_SANITIZED = 0 };
#endif
/* How many seeds, and for how long at most: a loaded machine tries fewer. */
enum { N_SEEDS = IS_SANITIZED ? 1500 : 10000, N_SEEDS_LONG = 100000, N_PLANTED_SEEDS = 3000 };
#define ENOUGH_NS (40 * BASE_NS_PER_S)

static struct comm_sim *sim;
static uint64_t real_now_ns(void) { return base_now_ns(base_clock_real()); }

/* ---- tests ---------------------------------------------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* What is simulated: ranks, hosts, a launcher with its agents. */
static bool run_ranks(uint64_t seed, int planted, FILE *log, struct t_sim_outcome *out) { return t_sim_run(sim, seed, (enum t_sim_planted)planted, log, out); }
static bool run_hosts(uint64_t seed, int planted, FILE *log, struct t_sim_outcome *out) { return t_sim_hosts_run(sim, seed, (enum t_sim_hosts_planted)planted, log, out); }
static bool run_supervision(uint64_t seed, int planted, FILE *log, struct t_sim_outcome *out) {
    return t_sim_supervision_run(sim, seed, (enum t_sim_supervision_planted)planted, log, out);
}

enum { SOUND = 0 };
_Static_assert((int)T_SIM_SOUND == SOUND && (int)T_SIM_HOSTS_SOUND == SOUND && (int)T_SIM_SUPERVISION_SOUND == SOUND, "the first of each");
static const struct world {
    const char *option, *of, *where; /* option: of the runner; "": it is the one without */
    bool (*run)(uint64_t seed, int planted, FILE *log, struct t_sim_outcome *out);
    const char *const *planted_names;
    int n_planted, leaked_heap; /* leaked_heap: what is not found under sanitizers, where nothing is counted; SOUND: none */
} worlds[] = {
    {"", "ranks", "", run_ranks, t_sim_planted_names, T_SIM_N_PLANTED, T_SIM_LEAKED_HEAP},
    {"--hosts", "hosts", "between hosts, ", run_hosts, t_sim_hosts_planted_names, T_SIM_HOSTS_N_PLANTED, SOUND},
    {"--supervision", "processes", "in supervision, ", run_supervision, t_sim_supervision_planted_names, T_SIM_SUPERVISION_N_PLANTED, T_SIM_SUPERVISION_LEAKED_HEAP},
};
enum { RANKS, HOSTS, SUPERVISION, N_WORLDS };

/* n_of_100: reports that there are at least, for 100 faults that end somebody. */
static void hold(const struct world *w, int n_of_100) {
    static uint32_t took_ns[N_SEEDS_LONG];
    const uint64_t first = t_seed() << 32, begun_ns = real_now_ns();
    const int n_wanted = t_long() ? N_SEEDS_LONG : N_SEEDS;
    int n = 0, n_lethal = 0, n_reports = 0;
    for (; n < n_wanted && (t_long() || real_now_ns() - begun_ns < ENOUGH_NS); n++) {
        struct t_sim_outcome out;
        const uint64_t before_ns = real_now_ns();
        if (!w->run(first + (uint64_t)n, SOUND, NULL, &out))
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
    assert_true(n_lethal > n / 10 && n_reports > n_lethal / 100 * n_of_100);
}

static void seeds_of_ranks_hold(void **state) {
    (void)state;
    hold(&worlds[RANKS], 100);
}

static void seeds_of_hosts_hold(void **state) {
    (void)state;
    hold(&worlds[HOSTS], 100);
}

static void seeds_of_supervision_hold(void **state) {
    (void)state;
    hold(&worlds[SUPERVISION], 50);
}

static void a_seed_is_a_run(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct t_sim_outcome first, second;
        assert_true(worlds[seed % N_WORLDS].run(seed, SOUND, NULL, &first));
        assert_true(worlds[seed % N_WORLDS].run(seed, SOUND, NULL, &second));
        assert_memory_equal(&first.report, &second.report, sizeof first.report);
    }
}

static void planted_faults_are_found(void **state) {
    (void)state;
    for (const struct world *w = worlds; w < worlds + N_WORLDS; w++)
        for (int planted = SOUND + 1; planted < w->n_planted; planted++) {
            if (planted == w->leaked_heap && IS_SANITIZED) continue;
            struct t_sim_outcome out;
            uint64_t seed = 0;
            while (seed < N_PLANTED_SEEDS && w->run(seed, planted, NULL, &out)) seed++;
            if (seed == N_PLANTED_SEEDS) fail_msg("%s%s was not found in %d seeds", w->where, w->planted_names[planted], N_PLANTED_SEEDS);
            printf("%s%s: found by seed %llu: %.150s\n", w->where, w->planted_names[planted], (unsigned long long)seed, out.why);
            assert_true(w->run(seed, SOUND, NULL, &out));
        }
}

/* ---- the runner ------------------------------------------------------------------------------------------------------------------------------------------- */

static const char usage[] = "usage: comm_sim_test                                                       the tests\n"
                            "       comm_sim_test --seed S [-v] [WORLD]                                 one seed; -v: with its events\n"
                            "       comm_sim_test --seeds FROM:TO [--shard I/N] [--progress FILE] [WORLD]\n"
                            "                                                                           FROM … TO−1, of these every Nth from the "
                            "Ith; goes on where FILE says\n"
                            "       WORLD: --hosts: of life between hosts, or --supervision: of a launcher and its agents; not of the ranks\n";

struct range {
    uint64_t from, to, next;
    unsigned shard, n_shards;
    const char *progress; /* NULL: nothing is kept */
};
static const struct world *world = &worlds[RANKS]; /* that was asked for */

static char last_words[64]; /* of who dies of the seed in hand */
static void take_in_hand(uint64_t seed) { snprintf(last_words, sizeof last_words, "died in seed %llu\n", (unsigned long long)seed); }
static void on_death(int signo) {
    (void)!write(STDERR_FILENO, last_words, strlen(last_words));
    signal(signo, SIG_DFL);
    raise(signo);
}

static int run_one(uint64_t seed, FILE *log) {
    struct t_sim_outcome out;
    take_in_hand(seed);
    const bool ok = world->run(seed, SOUND, log, &out);
    printf("seed %llu, %d %s, %llu calls, %.3f ms: %s%s\n", (unsigned long long)seed, out.n_ranks, world->of, (unsigned long long)out.report.n_calls,
           (double)out.report.end_ns / (double)BASE_NS_PER_MS, ok ? "holds" : "FAILED: ", out.why);
    return !ok;
}

/* The file holds one line: "from to shard n_shards next". False: it is of another range, or cannot be read. */
static bool read_progress(struct range *r) {
    FILE *f = fopen(r->progress, "re");
    if (!f) return errno == ENOENT;
    unsigned long long from = 0, to = 0, next = 0;
    unsigned shard = 0, n_shards = 0;
    const int n = fscanf(f, "%llu %llu %u %u %llu", &from, &to, &shard, &n_shards, &next); // NOLINT(cert-err34-c)
    fclose(f);
    if (n != 5 || from != r->from || to != r->to || shard != r->shard || n_shards != r->n_shards || next < r->next) return false;
    r->next = next;
    return true;
}

static bool write_progress(const struct range *r) {
    if (!r->progress) return true;
    char path[4096];
    if (snprintf(path, sizeof path, "%s.new", r->progress) >= (int)sizeof path) return false;
    FILE *f = fopen(path, "we");
    if (!f) return false;
    fprintf(f, "%llu %llu %u %u %llu\n", (unsigned long long)r->from, (unsigned long long)r->to, r->shard, r->n_shards, (unsigned long long)r->next);
    return fclose(f) == 0 && rename(path, r->progress) == 0;
}

static int run_range(struct range *r) {
    if (r->progress && !read_progress(r)) {
        fprintf(stderr, "%s is of another range or shard, or cannot be read; remove it to begin anew\n", r->progress);
        return 2;
    }
    const uint64_t begun_ns = real_now_ns(), first = r->next;
    uint64_t told_ns = begun_ns;
    for (; r->next < r->to; r->next += r->n_shards) {
        const uint64_t now_ns = real_now_ns();
        if (now_ns - told_ns >= 5 * BASE_NS_PER_S) {
            told_ns = now_ns;
            if (!write_progress(r)) {
                fprintf(stderr, "%s cannot be written: %s\n", r->progress, strerror(errno));
                return 2;
            }
            printf("%llu seeds hold, %.0f s\n", (unsigned long long)((r->next - first) / r->n_shards), (double)(now_ns - begun_ns) / 1e9);
            fflush(stdout);
        }
        struct t_sim_outcome out;
        take_in_hand(r->next);
        if (world->run(r->next, SOUND, NULL, &out)) continue;
        write_progress(r);
        run_one(r->next, stdout);
        printf("FAILED: seed %llu: %s\nagain, with its events: comm_sim_test --seed %llu -v %s\n", (unsigned long long)r->next, out.why,
               (unsigned long long)r->next, world->option);
        return 1;
    }
    write_progress(r);
    printf("%llu seeds hold, %.1f s\n", (unsigned long long)((r->next - first) / r->n_shards), (double)(real_now_ns() - begun_ns) / 1e9);
    return 0;
}

static bool parse_number(const char *text, char end, uint64_t *number, const char **rest) {
    char *at;
    errno = 0;
    *number = strtoull(text, &at, 10);
    if (errno || at == text || *text == '-' || *at != end) return false;
    *rest = at + (end != 0);
    return true;
}

static int run_command(int argc, char **argv) {
    struct range r = {.shard = 1, .n_shards = 1};
    bool has_seed = false, has_range = false, ok = true, is_verbose = false;
    uint64_t seed = 0;
    for (int i = 1; i < argc && ok; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "", *rest = value;
        uint64_t shard, n_shards;
        if (strcmp(argv[i], "-v") == 0) {
            is_verbose = true;
            continue;
        }
        if (strcmp(argv[i], "--hosts") == 0 || strcmp(argv[i], "--supervision") == 0) {
            world = &worlds[strcmp(argv[i], "--hosts") == 0 ? HOSTS : SUPERVISION];
            continue;
        }
        if (strcmp(argv[i], "--seed") == 0)
            has_seed = ok = parse_number(value, 0, &seed, &rest);
        else if (strcmp(argv[i], "--seeds") == 0)
            has_range = ok = parse_number(value, ':', &r.from, &rest) && parse_number(rest, 0, &r.to, &rest);
        else if (strcmp(argv[i], "--shard") == 0) {
            ok = parse_number(value, '/', &shard, &rest) && parse_number(rest, 0, &n_shards, &rest) && shard >= 1 && shard <= n_shards &&
                 n_shards <= 10000;
            if (ok) r.shard = (unsigned)shard, r.n_shards = (unsigned)n_shards;
        } else if (strcmp(argv[i], "--progress") == 0 && *value)
            r.progress = value;
        else
            ok = false;
        i++;
    }
    if (!ok || has_seed == has_range) {
        fputs(usage, stderr);
        return 2;
    }
    signal(SIGABRT, on_death);
    signal(SIGSEGV, on_death);
    if (has_seed) return run_one(seed, is_verbose ? stdout : NULL);
    r.next = r.from + r.shard - 1;
    return run_range(&r);
}

int main(int argc, char **argv) {
    struct err e = {0};
    base_log_init("error"); /* strangers and losses are told in warnings: here they are the rule */
    if (comm_sim_create(&sim, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_seed_is_a_run),
        cmocka_unit_test(seeds_of_ranks_hold),
        cmocka_unit_test(seeds_of_hosts_hold),
        cmocka_unit_test(seeds_of_supervision_hold),
        cmocka_unit_test(planted_faults_are_found),
    };
    const int status = argc > 1 ? run_command(argc, argv) : cmocka_run_group_tests_name("comm_sim", tests, NULL, NULL);
    comm_sim_destroy(sim);
    return status;
}
