/* How fast is the harness for CUDA kernels? Threads, barriers, shuffles, loads and stores, matrix instructions a second of the thread's own time, checked and unchecked in turns. */
#include <stdio.h>

#include "bench/bench.h"
#include "bench/simt.h"
#include "kernels/simt/simt_host.h"

enum { ROUNDS = 7, BLOCKS = 64, TIMES = 100 };

struct work {
    const char *what;
    void (*run)(unsigned blocks, int n);
    unsigned blocks;
    int n;
    double operations; /* of a run */
};

static void nothing(unsigned blocks, int n) {
    (void)n;
    bench_simt_nothing(blocks);
}

static void checked(void *arg) {
    const struct work *w = arg;
    simt_set_check(1);
    w->run(w->blocks, w->n);
}
static void unchecked(void *arg) {
    const struct work *w = arg;
    simt_set_check(0);
    w->run(w->blocks, w->n);
}

int main(void) {
    static struct work all[] = {
        {"threads", nothing, BLOCKS * 16, 0, BLOCKS * 16.0 * BENCH_SIMT_THREADS},
        {"barriers, of each thread", bench_simt_barriers, BLOCKS, TIMES, (double)BLOCKS * BENCH_SIMT_THREADS * TIMES},
        {"shuffles, of each thread", bench_simt_shuffles, BLOCKS, TIMES, (double)BLOCKS * BENCH_SIMT_THREADS * TIMES},
        {"loads and stores", bench_simt_accesses, BLOCKS, TIMES, 2.0 * BLOCKS * BENCH_SIMT_THREADS * TIMES},
        {"mma.m16n8k16, of each warp", bench_simt_products, BLOCKS, TIMES / 4, BLOCKS * (BENCH_SIMT_THREADS / 32.0) * (TIMES / 4)},
    };
    printf("%-28s %12s %12s\n", "millions a second", "checked", "unchecked");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        static struct bench_turn turns[2];
        turns[0] = (struct bench_turn){.run = checked, .arg = &all[i]};
        turns[1] = (struct bench_turn){.run = unchecked, .arg = &all[i]};
        bench_take_turns(BENCH_THREAD, turns, 2, ROUNDS);
        printf("%-28s %12.2f %12.2f\n", all[i].what, 1e3 * all[i].operations / bench_median(turns[0].ns, ROUNDS), 1e3 * all[i].operations / bench_median(turns[1].ns, ROUNDS));
    }
    return 0;
}
