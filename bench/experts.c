/* How fast are products of experts? experts [KERNELS [ROUNDS [THREADS [FORMAT]]]], e.g. experts cpu/avx2 9 2 Q4_1. One thread is timed while it ran, several by the wall.
 *
 * A layer of Qwen3-30B-A3B: 128 experts of 2048 × 768, 8 for each token; gate and up, then down by 12 leaves (tensor mode) or by 32 groups (expert mode).
 * One token must read 8 experts once: GB/s of packed bytes, beside a plain read of other experts by as many threads, in turns; steps go round all experts, more than
 * caches hold. 512 tokens, to all experts or to 32 of them, do 8 times their operations: GOP/s, beside the dense kernel on as many tokens as there are slots. */
#include <stdio.h>
#include <string.h>

#include "base/pool.h"
#include "base/rng.h"
#include "bench/bench.h"
#include "bench/weights.h"
#include "kernels/kernels.h"

enum { N_EXPERTS = 128, K = 8, HIDDEN = 2048, INNER = 768, LEAVES = 12, GROUPS = 32, STEPS = 4, MAX_TOKENS = 512, MAX_SLOTS = MAX_TOKENS * K };

struct layer {
    const struct kern_backend *kernels;
    struct base_pool *pool; /* NULL: one thread */
    uint8_t *weights;       /* [expert][gate, up, down] */
    size_t expert_bytes;
    struct kern_matrix matrix[3][N_EXPERTS], whole_down;
    const struct kern_matrix *pointer[3][N_EXPERTS];
    uint8_t sum_of[N_EXPERTS], n_folds[GROUPS], emit[GROUPS];
    struct kern_slots slots;
    int32_t begin[N_EXPERTS + 1], token[MAX_SLOTS];
    float weight[MAX_SLOTS], *x, *inner, *y;
    void *scratch;
    struct kern_experts_in in;
    struct kern_experts_out out;
    struct kern_matmul dense_in, dense_out;
    int i_expert, i_read; /* the next to be used, to be read */
};

static void start(struct layer *l, enum format f, bool by_groups) {
    const struct kern_backend *b = l->kernels;
    const enum kern_activation a = kern_activation_for(f, false);
    size_t at = 0;
    for (int e = 0; e < N_EXPERTS; e++)
        for (int p = 0; p < 3; p++) {
            struct kern_matrix *m = &l->matrix[p][e];
            matrix_start(m, f, a, p == 2 ? INNER : HIDDEN, p == 2 ? LEAVES : 1);
            if (p == 2) l->whole_down = *m;
            if (p == 2 && !by_groups) {
                memset(m->columns.n_folds, 0, sizeof m->columns.n_folds);
                memset(m->columns.emit, 1, sizeof m->columns.emit);
                m->columns.n_vectors = LEAVES;
            }
            m->n_rows = p == 2 ? HIDDEN : INNER;
            if (e == 0) l->expert_bytes += b->matrix_bytes(m);
            l->pointer[p][e] = m;
            l->sum_of[e] = (uint8_t)(e / (N_EXPERTS / GROUPS));
        }
    l->weights = allocate(l->expert_bytes * N_EXPERTS);
    for (int e = 0; e < N_EXPERTS; e++)
        for (int p = 0; p < 3; p++) {
            struct kern_matrix *m = &l->matrix[p][e];
            m->data = l->weights + at;
            at += b->matrix_bytes(m);
            matrix_fill(m, b, m->n_rows / KERN_TILE_ROWS);
        }
    l->whole_down.data = l->matrix[2][N_EXPERTS - 1].data;
    l->whole_down.n_rows = HIDDEN;
    int n_sums = by_groups ? GROUPS : LEAVES, n_threads = l->pool ? base_pool_n_threads(l->pool) : 1;
    kern_folds_init(0, (uint32_t)n_sums, (uint32_t)n_sums, l->n_folds, l->emit);
    const struct kern_columns *columns[2] = {&l->matrix[0][0].columns, &l->matrix[2][0].columns};
    size_t in_bytes = b->experts_scratch_bytes(columns[0], MAX_SLOTS, MAX_TOKENS, 0, n_threads), out_bytes = b->experts_scratch_bytes(columns[1], MAX_SLOTS, MAX_TOKENS, n_sums, n_threads);
    l->scratch = allocate(in_bytes > out_bytes ? in_bytes : out_bytes);

    struct base_rng rng;
    base_rng_init(&rng, 3);
    l->x = allocate((size_t)MAX_SLOTS * HIDDEN * sizeof(float));
    l->inner = allocate((size_t)MAX_SLOTS * INNER * 2 * sizeof(float));
    l->y = allocate((size_t)MAX_SLOTS * HIDDEN * sizeof(float));
    for (size_t i = 0; i < (size_t)MAX_SLOTS * HIDDEN; i++) l->x[i] = base_rng_uniform(&rng, -2, 2);
    for (int i = 0; i < MAX_SLOTS; i++) l->weight[i] = 1.0f / K;
    l->slots = (struct kern_slots){N_EXPERTS, l->begin, l->token, l->weight};
    l->in = (struct kern_experts_in){.slots = &l->slots, .x = l->x, .x_stride = HIDDEN, .n_parts = 2,
                                     .parts = {{l->pointer[0], NULL, l->inner, INNER}, {l->pointer[1], NULL, l->inner + (size_t)MAX_SLOTS * INNER, INNER}}, .scratch = l->scratch};
    l->out = (struct kern_experts_out){.slots = &l->slots, .x = l->inner, .x_stride = INNER, .matrix = l->pointer[2], .sum_of = by_groups ? l->sum_of : NULL, .n_sums = n_sums,
                                       .n_folds = l->n_folds, .emit = l->emit, .n_rows = HIDDEN, .y = l->y, .y_stride = HIDDEN, .scratch = l->scratch};
    l->dense_in = (struct kern_matmul){.x = l->x, .x_stride = HIDDEN, .n_tokens = MAX_SLOTS, .n_parts = 2, .scratch = l->scratch};
    for (int p = 0; p < 2; p++) l->dense_in.parts[p] = (struct kern_matmul_part){l->pointer[p][0], NULL, l->inner + (size_t)p * MAX_SLOTS * INNER, INNER, 0};
    l->dense_out = (struct kern_matmul){.x = l->inner, .x_stride = INNER, .n_tokens = MAX_SLOTS, .n_parts = 1, .scratch = l->scratch};
    l->dense_out.parts[0] = (struct kern_matmul_part){&l->whole_down, NULL, l->y, HIDDEN, 0};
}

static void stop(struct layer *l) {
    for (int e = 0; e < N_EXPERTS; e++)
        for (int p = 0; p < 3; p++) matrix_stop(&l->matrix[p][e]);
    free(l->weights);
    free(l->scratch);
    free(l->x);
    free(l->inner);
    free(l->y);
}

/* Each token goes to K of the first n experts. */
static void route_tokens(struct layer *l, int n_tokens, uint32_t n) {
    static bool goes[N_EXPERTS][MAX_TOKENS];
    memset(goes, 0, sizeof goes);
    struct base_rng rng;
    base_rng_init(&rng, 4);
    for (int t = 0; t < n_tokens; t++)
        for (int k = 0; k < K;) {
            uint32_t e = base_rng_below(&rng, n);
            k += !goes[e][t];
            goes[e][t] = true;
        }
    int at = 0;
    for (int e = 0; e < N_EXPERTS; e++) {
        for (int t = 0; t < n_tokens; t++)
            if (goes[e][t]) l->token[at++] = t;
        l->begin[e + 1] = at;
    }
    l->in.n_tokens = l->out.n_tokens = n_tokens;
}

/* The next K experts for one token. */
static void route_next(struct layer *l) {
    for (int e = 0; e < N_EXPERTS; e++) l->begin[e + 1] = l->begin[e] + (e >= l->i_expert && e < l->i_expert + K);
    memset(l->token, 0, K * sizeof l->token[0]);
    l->in.n_tokens = l->out.n_tokens = 1;
    l->i_expert = (l->i_expert + K) % N_EXPERTS;
}

/* ---- what is timed ------------------------------------------------------------------------------------------------------------------------------------ */

static void share(struct layer *l, base_pool_fn fn) {
    if (l->pool)
        base_pool_run(l->pool, fn, l);
    else
        fn(l, 0, 1);
}

#define SHARE(name, op, args)                                       \
    static void name(void *arg, int i_thread, int n_threads) {      \
        struct layer *l = arg;                                      \
        l->kernels->op((struct kern_queue){i_thread, n_threads}, &l->args); \
    }
SHARE(in_prepare, experts_in_prepare, in)
SHARE(in_run, experts_in, in)
SHARE(out_prepare, experts_out_prepare, out)
SHARE(out_run, experts_out, out)
SHARE(dense_in_prepare, matmul_prepare, dense_in)
SHARE(dense_in_run, matmul, dense_in)
SHARE(dense_out_prepare, matmul_prepare, dense_out)
SHARE(dense_out_run, matmul, dense_out)

static void run_in(void *arg) { share(arg, in_prepare), share(arg, in_run); }
static void run_out(void *arg) { share(arg, out_prepare), share(arg, out_run); }
static void run_dense_in(void *arg) { share(arg, dense_in_prepare), share(arg, dense_in_run); }
static void run_dense_out(void *arg) { share(arg, dense_out_prepare), share(arg, dense_out_run); }

static void run_tokens(void *arg) {
    for (int i = 0; i < STEPS; i++) {
        route_next(arg);
        run_in(arg);
        run_out(arg);
    }
}

static void read_share(void *arg, int i_thread, int n_threads) {
    const struct layer *l = arg;
    size_t bytes = l->expert_bytes / (size_t)n_threads / 4096 * 4096;
    for (int e = l->i_read; e < l->i_read + STEPS * K; e++)
        sink = read_all((const wide *)(const void *)(l->weights + (size_t)e * l->expert_bytes + (size_t)i_thread * bytes), bytes / sizeof(wide));
}

static void run_read(void *arg) {
    struct layer *l = arg;
    l->i_read = (l->i_expert + N_EXPERTS / 2) % N_EXPERTS;
    share(l, read_share);
}

/* ------------------------------------------------------------------------------------------------------------------------------------------------------ */

static void measure(struct layer *l, enum format f, bool by_groups, enum bench_clock clock, int n_rounds) {
    static struct bench_turn turns[4];
    start(l, f, by_groups);
    const char *mode = by_groups ? "groups" : "leaves";
    turns[0] = (struct bench_turn){.run = run_read, .arg = l};
    turns[1] = (struct bench_turn){.run = run_tokens, .arg = l};
    bench_take_turns(clock, turns, 2, n_rounds);
    double bytes = (double)l->expert_bytes * STEPS * K, read = bytes / bench_median(turns[0].ns, n_rounds), ours = bytes / bench_median(turns[1].ns, n_rounds);
    printf("%-6s by %s: one token: %5.1f GB/s, plain read %5.1f: %.2f\n", kern_format(f)->name, mode, ours, read, ours / read);
    for (uint32_t n = N_EXPERTS / 4; n <= N_EXPERTS; n *= 4) {
        route_tokens(l, MAX_TOKENS, n);
        void (*const runs[])(void *) = {run_dense_in, run_in, run_dense_out, run_out};
        double gops[4];
        for (int i = 0; i < 4; i++) turns[i] = (struct bench_turn){.run = runs[i], .arg = l};
        bench_take_turns(clock, turns, 4, n_rounds);
        for (int i = 0; i < 4; i++) gops[i] = 2.0 * MAX_SLOTS * HIDDEN * INNER * (i < 2 ? 2 : 1) / bench_median(turns[i].ns, n_rounds);
        printf("%-6s by %s: %d tokens, %3u experts: gate and up %6.1f GOP/s, dense %6.1f: %.2f; down %6.1f, dense %6.1f: %.2f\n", kern_format(f)->name, mode, MAX_TOKENS, n,
               gops[1], gops[0], gops[1] / gops[0], gops[3], gops[2], gops[3] / gops[2]);
    }
    stop(l);
}

int main(int argc, char **argv) {
    struct err e = {0};
    static const enum format formats[] = {FMT_Q4_1, FMT_NVFP4, FMT_MXFP4};
    const struct kern_backend *kernels;
    if (kern_select(argc > 1 ? argv[1] : NULL, &kernels, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return 2;
    }
    int n_rounds = argc > 2 ? atoi(argv[2]) : 11, n_threads = argc > 3 ? atoi(argv[3]) : 1;
    if (n_rounds < 1 || n_rounds > BENCH_MAX_ROUNDS) n_rounds = 11;
    struct base_pool *pool = NULL;
    if (n_threads > 1 && base_pool_create(&(struct base_pool_options){.n_threads = n_threads, .spin_us = 50}, &pool, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    printf("%s/%s, %d thread%s, medians of %d rounds\n", kernels->name, kernels->variant, pool ? n_threads : 1, pool ? "s" : "", n_rounds);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        for (int by_groups = 0; by_groups < 2; by_groups++) {
            static struct layer l;
            if (argc > 4 && strcmp(argv[4], kern_format(formats[i])->name) != 0) continue;
            memset(&l, 0, sizeof l);
            l.kernels = kernels;
            l.pool = pool;
            measure(&l, formats[i], by_groups, pool ? BENCH_WALL : BENCH_THREAD, n_rounds);
        }
    if (pool) base_pool_destroy(pool);
    return 0;
}
