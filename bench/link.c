/* Does an emulated link give what was asked of it? Two ranks as processes over shared memory, both directions at once.
 *
 * Time of an exchange: from when the later side began to when the earlier side had the bytes (the later side may have them sooner). Asked: delay + bytes ÷ rate.
 * Medians, and the share of exchanges that were more than 3 % late: on a machine shared with others a lost time slice makes one late, not all.
 * Ideal is 100 %. Must move: nothing beside the exchange itself; the bytes stay where the sender has them.
 *
 * Each rank is bound to a CPU of its own, as the launcher does: two that spin on one CPU see each other every 50 us.
 *
 * usage: link [LINK…]      (default: 1, 10 and 25 Gb/s with 2, 5 and 50 us) */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bench.h"
#include "comm/comm.h"

enum { MIB = 1 << 20, MAX_BYTES = 16 * MIB, MAX_SAMPLES = 2000 };
static const struct {
    size_t bytes;
    int n;
} cases[] = {{8, MAX_SAMPLES}, {65536, 400}, {MIB, 60}, {4 * MIB, 20}, {16 * MIB, 12}};
enum { N_CASES = sizeof cases / sizeof *cases };

struct result {
    int n[N_CASES];
    double ns[N_CASES][MAX_SAMPLES];
    struct comm_link_totals totals[N_CASES];
};

static void die(const char *what) {
    fprintf(stderr, "link: %s\n", what);
    exit(1);
}

static void bind_rank(int rank) {
    static cpu_set_t allowed; /* as it was at first */
    if (CPU_COUNT(&allowed) == 0 && sched_getaffinity(0, sizeof allowed, &allowed) != 0) die("which CPUs?");
    if (CPU_COUNT(&allowed) < 2) die("two CPUs are needed");
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0, i = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && i++ == rank) CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

/* Every rank writes down the exchanges in which it began first. */
static void run_rank(int rank, int memory_fd, const struct comm_link *link, struct result *result) {
    bind_rank(rank);
    const struct base_clock *clock = base_clock_real();
    struct err e = {0};
    struct comm *c = NULL;
    const struct comm_setup setup = {
        .backend = "shm", .rank = rank, .n_ranks = 2, .max_bytes = MAX_BYTES, .spin_us = 50, .memory_fd = memory_fd, .link = link};
    if (comm_open(&setup, &c, &e) != ST_OK) die(e.text);
    for (int i = 0; i < N_CASES; i++) {
        const size_t recv_bytes[2] = {cases[i].bytes, cases[i].bytes};
        const void *views[2];
        struct comm_header headers[2];
        struct comm_link_totals before, after;
        for (int k = -4; k < cases[i].n; k++) {
            if (k == 0) comm_link_query(c, &before);
            uint64_t deadline_ns = base_now_ns(clock) + 20 * BASE_NS_PER_S;
            const struct comm_header header = {.sent_ns = base_now_ns(clock)};
            if (comm_allgather(c, NULL, recv_bytes, &header, deadline_ns, views, headers, &e) != ST_OK) die(e.text);
            uint64_t end_ns = base_now_ns(clock), peer_ns = headers[1 - rank].sent_ns;
            if (k >= 0 && (peer_ns > header.sent_ns || (peer_ns == header.sent_ns && rank == 0)))
                result->ns[i][result->n[i]++] = (double)(end_ns - peer_ns);
        }
        comm_link_query(c, &after);
        result->totals[i] = (struct comm_link_totals){.bytes = after.bytes - before.bytes,
                                                      .link_ns = after.link_ns - before.link_ns,
                                                      .late_ns = after.late_ns - before.late_ns,
                                                      .n_late = after.n_late - before.n_late};
    }
    if (comm_barrier(c, base_now_ns(clock) + 20 * BASE_NS_PER_S, &e) != ST_OK) die(e.text);
    comm_close(c);
}

static void print_case(const struct comm_link *link, int i, struct result *results) {
    static double ns[2 * MAX_SAMPLES];
    int n = 0, n_late = 0;
    for (int r = 0; r < 2; r++) {
        memcpy(ns + n, results[r].ns[i], (size_t)results[r].n[i] * sizeof *ns);
        n += results[r].n[i];
    }
    if (!n) die("no exchange was measured");
    double asked_ns = (double)link->delay_ns + (link->bits_per_s > 0 ? (double)cases[i].bytes * 8e9 / link->bits_per_s : 0);
    for (int k = 0; k < n; k++) n_late += ns[k] > asked_ns * 1.03;
    double median_ns = bench_median(ns, n); /* sorts */
    printf("%11zu B %12.3f us asked %12.3f median %12.3f least %7.2f %%  %4.1f %% of them > 103 %%", cases[i].bytes, asked_ns / 1000,
           median_ns / 1000, ns[0] / 1000, 100 * median_ns / asked_ns, 100.0 * n_late / n);
    if (median_ns > asked_ns * 1.03) {
        double gb_per_s = link->bits_per_s / 8e9;
        if (cases[i].bytes < MIB || gb_per_s == 0)
            printf("  limited by this machine: %.2f instead of %.2f us", median_ns / 1000, asked_ns / 1000);
        else
            printf("  limited by this machine: %.2f of %.2f GB/s", gb_per_s * asked_ns / median_ns, gb_per_s);
    }
    printf("\n");
    fflush(stdout);
}

static void run_link(const struct comm_link *link) {
    char text[128];
    comm_link_print(link, text);
    printf("%s\n", text);
    fflush(stdout);
    struct err e = {0};
    int fd = -1;
    if (comm_shm_create(2, MAX_BYTES, &fd, &e) != ST_OK) die(e.text);
    struct result *results = mmap(NULL, 2 * sizeof *results, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (results == MAP_FAILED) die("no memory");
    pid_t pid = fork();
    if (pid < 0) die("no second process");
    run_rank(pid == 0, fd, link, &results[pid == 0]);
    if (pid == 0) _exit(0);
    int status = 1;
    if (waitpid(pid, &status, 0) != pid || status != 0) die("rank 1 failed");
    for (int i = 0; i < N_CASES; i++) print_case(link, i, results);
    munmap(results, 2 * sizeof *results);
    close(fd);
}

int main(int argc, char **argv) {
    static const double rates[] = {1e9, 10e9, 25e9};
    static const uint64_t delays_us[] = {2, 5, 50};
    for (int i = 1; i < argc; i++) {
        struct comm_link link;
        struct err e = {0};
        if (comm_link_parse(argv[i], &link, &e) != ST_OK) die(e.text);
        run_link(&link);
    }
    for (size_t i = 0; argc == 1 && i < sizeof rates / sizeof *rates; i++)
        for (size_t k = 0; k < sizeof delays_us / sizeof *delays_us; k++)
            run_link(&(const struct comm_link){.bits_per_s = rates[i], .delay_ns = delays_us[k] * BASE_NS_PER_US});
    return 0;
}
