/* How fast are products? matmul [KERNELS [ROUNDS [THREADS [FORMAT]]]], e.g. matmul cpu/avx2 9 2 Q4_K. One thread is timed while it ran, several by the wall.
 * And what rounding activations to int8 costs: the root mean square of the difference from F32 ones, of each format that the default rounds them for.
 *
 * Decode: one token times a matrix much larger than the caches must read the matrix once. Bytes are the file's (a packed matrix of a K-quant is up to 3 % larger),
 * but for FP8, INT4 and INT8 those of the packed matrix with scales for 128 columns each;
 * beside them stands a plain read of as much memory as the packed matrix takes, by as many threads, in turns.
 * Prefill: 512 tokens must do 2·tokens·rows·columns operations: GOP/s. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/pool.h"
#include "base/rng.h"
#include "bench/bench.h"
#include "bench/weights.h"
#include "kernels/kernels.h"

enum { DECODE_BYTES = 256 << 20 };

struct matmul_case {
    enum format format;
    enum kern_activation activation;
    uint32_t n_columns, n_leaves;
    uint64_t n_rows; /* 0: as many as make DECODE_BYTES */
    int n_tokens;
};

#define FAST(columns, leaves, rows, tokens)                                                                                                           \
    {FMT_Q4_0, KERN_ACT_INT8, columns, leaves, rows, tokens}, {FMT_Q5_0, KERN_ACT_INT8, columns, leaves, rows, tokens},                               \
        {FMT_Q5_1, KERN_ACT_INT8, columns, leaves, rows, tokens}, {FMT_Q4_K, KERN_ACT_INT8, columns, leaves, rows, tokens},                           \
        {FMT_Q5_K, KERN_ACT_INT8, columns, leaves, rows, tokens}, {FMT_Q6_K, KERN_ACT_INT8_16, columns, leaves, rows, tokens},                        \
        {FMT_MXFP4, KERN_ACT_INT8, columns, leaves, rows, tokens}, {FMT_NVFP4, KERN_ACT_INT8_16, columns, leaves, rows, tokens},                      \
        {FMT_FP8, KERN_ACT_INT8, columns, leaves, rows, tokens}, {FMT_INT4, KERN_ACT_INT8, columns, leaves, rows, tokens},                             \
        {FMT_INT4_ZERO, KERN_ACT_INT8, columns, leaves, rows, tokens}, {FMT_INT8, KERN_ACT_INT8, columns, leaves, rows, tokens},                      \
        {FMT_INT8_ZERO, KERN_ACT_INT8, columns, leaves, rows, tokens}
static const struct matmul_case decode_cases[] = {
    {FMT_Q4_1, KERN_ACT_INT8, 4096, 12, 0, 1}, {FMT_Q8_0, KERN_ACT_INT8, 4096, 12, 0, 1}, FAST(4096, 12, 0, 1),
    {FMT_Q4_1, KERN_ACT_INT8, 4096, 1, 0, 1},  {FMT_Q4_1, KERN_ACT_INT8, 576, 1, 0, 1},   {FMT_Q4_1, KERN_ACT_INT8, 4096, 12, 0, 2},
    {FMT_Q4_1, KERN_ACT_INT8, 4096, 12, 0, 4}, {FMT_Q8_0, KERN_ACT_INT8, 4096, 12, 0, 4}, {FMT_Q4_K, KERN_ACT_INT8, 4096, 12, 0, 4},
    {FMT_Q4_1, KERN_ACT_F32, 4096, 12, 0, 1},  {FMT_Q8_0, KERN_ACT_F32, 4096, 12, 0, 1},  {FMT_Q4_K, KERN_ACT_F32, 4096, 12, 0, 1},
    {FMT_Q6_K, KERN_ACT_F32, 4096, 12, 0, 1},  {FMT_INT4, KERN_ACT_F32, 4096, 12, 0, 1},  {FMT_INT8, KERN_ACT_F32, 4096, 12, 0, 1},
    {FMT_FP8, KERN_ACT_F32, 4096, 12, 0, 1}, {FMT_FP8, KERN_ACT_INT8, 4096, 12, 0, 4},   {FMT_F16, KERN_ACT_F32, 4096, 12, 0, 1},   {FMT_BF16, KERN_ACT_F32, 4096, 12, 0, 1},
    {FMT_F32, KERN_ACT_F32, 4096, 12, 0, 1},
};
static const struct matmul_case prefill_cases[] = {
    {FMT_Q4_1, KERN_ACT_INT8, 4096, 12, 4096, 512}, {FMT_Q8_0, KERN_ACT_INT8, 4096, 12, 4096, 512}, FAST(4096, 12, 2048, 512),
    {FMT_Q4_1, KERN_ACT_INT8, 4096, 1, 4096, 512},  {FMT_Q4_1, KERN_ACT_INT8, 576, 1, 1536, 512},   {FMT_Q4_1, KERN_ACT_INT8, 1536, 12, 576, 512},
    {FMT_Q8_0, KERN_ACT_INT8, 1536, 12, 576, 512},  {FMT_Q4_1, KERN_ACT_F32, 4096, 12, 1024, 512},  {FMT_Q8_0, KERN_ACT_F32, 4096, 12, 1024, 512},
    {FMT_Q4_K, KERN_ACT_F32, 4096, 12, 1024, 512},  {FMT_F16, KERN_ACT_F32, 4096, 12, 1024, 512},   {FMT_BF16, KERN_ACT_F32, 4096, 12, 1024, 512},
    {FMT_F32, KERN_ACT_F32, 4096, 12, 1024, 512},
};

struct running {
    const struct matmul_case *what;
    const struct kern_backend *kernels;
    struct kern_matrix matrix;
    struct kern_matmul args;
    size_t weight_bytes, file_bytes; /* packed; as the file has them */
    struct base_pool *pool;          /* NULL: one thread */
};

/* weights: the storage of all decode cases, which take turns with it as they take turns to run. */
static void start(struct running *r, const struct matmul_case *what, const struct kern_backend *kernels, struct base_pool *pool, void *weights) {
    r->what = what;
    r->kernels = kernels;
    r->pool = pool;
    struct kern_matrix *m = &r->matrix;
    matrix_start(m, what->format, what->activation, what->n_columns, what->n_leaves);
    size_t row_bytes = kern_format_row_bytes(what->format, what->n_columns), tile_bytes = kernels->matrix_bytes(m);
    uint64_t n_tiles = what->n_rows ? what->n_rows / KERN_TILE_ROWS : DECODE_BYTES / tile_bytes;
    r->weight_bytes = n_tiles * tile_bytes;
    r->file_bytes = is_joined(what->format) ? r->weight_bytes : n_tiles * KERN_TILE_ROWS * row_bytes;
    m->data = weights ? weights : allocate(r->weight_bytes);
    matrix_fill(m, kernels, n_tiles);

    struct base_rng rng;
    base_rng_init(&rng, 2);
    float *x = allocate((size_t)what->n_tokens * what->n_columns * sizeof *x);
    for (size_t i = 0; i < (size_t)what->n_tokens * what->n_columns; i++) x[i] = base_rng_normal(&rng);
    r->args = (struct kern_matmul){.x = x,
                                   .x_stride = what->n_columns,
                                   .n_tokens = what->n_tokens,
                                   .n_parts = 1,
                                   .scratch = allocate(kernels->matmul_scratch_bytes(&m->columns, what->n_tokens))};
    r->args.parts[0] = (struct kern_matmul_part){
        .matrix = m, .y = allocate((size_t)what->n_tokens * m->n_rows * sizeof(float)), .y_stride = m->n_rows, .vector_stride = 0};
}

static void stop(struct running *r, bool own_weights) {
    free((void *)(uintptr_t)r->args.x);
    free(r->args.scratch);
    free(r->args.parts[0].y);
    matrix_stop(&r->matrix);
    if (own_weights) free(r->matrix.data);
}

static void prepare_share(void *arg, int i_thread, int n_threads) {
    struct running *r = arg;
    r->kernels->matmul_prepare((struct kern_queue){i_thread, n_threads}, &r->args);
}

static void matmul_share(void *arg, int i_thread, int n_threads) {
    struct running *r = arg;
    r->kernels->matmul((struct kern_queue){i_thread, n_threads}, &r->args);
}

static void run_share(struct base_pool *pool, void (*fn)(void *arg, int i_thread, int n_threads), void *arg) {
    if (pool)
        base_pool_run(pool, fn, arg);
    else
        fn(arg, 0, 1);
}

static void run_matmul(void *arg) {
    struct running *r = arg;
    run_share(r->pool, prepare_share, r);
    run_share(r->pool, matmul_share, r);
}

/* ---- the plain read ----------------------------------------------------------------------------------------------------------------------------- */

struct reading {
    const uint8_t *weights;
    struct base_pool *pool;
};

static void read_share(void *arg, int i_thread, int n_threads) {
    const struct reading *r = arg;
    size_t bytes = DECODE_BYTES / (size_t)n_threads / 4096 * 4096;
    sink = read_all((const wide *)(const void *)(r->weights + (size_t)i_thread * bytes), bytes / sizeof(wide));
}

static void run_read(void *arg) { run_share(((struct reading *)arg)->pool, read_share, arg); }

/* ------------------------------------------------------------------------------------------------------------------------------------------------- */

static void print_head(const struct matmul_case *what, const struct running *r) {
    printf("%-21s %-5s %4d x %7llu x %5u, %2u leaves", kern_format(what->format)->name, what->activation == KERN_ACT_F32 ? "f32" : "int8",
           what->n_tokens, (unsigned long long)r->matrix.n_rows, what->n_columns, what->n_leaves);
}

/* ---- what rounded activations cost ------------------------------------------------------------------------------------------------------------- */

enum { DEVIATION_ROWS = 512, DEVIATION_TOKENS = 8 };

/* Products of the same matrix and the same normally distributed activations, rounded or not. */
static float *products_of(const struct matmul_case *decode, enum kern_activation activation, const struct kern_backend *kernels) {
    struct matmul_case what = *decode;
    what.activation = activation;
    what.n_rows = DEVIATION_ROWS;
    what.n_tokens = DEVIATION_TOKENS;
    struct running r;
    start(&r, &what, kernels, NULL, NULL);
    run_matmul(&r);
    float *y = r.args.parts[0].y;
    r.args.parts[0].y = NULL;
    stop(&r, true);
    return y;
}

static void print_deviation(const struct matmul_case *what, const struct kern_backend *kernels) {
    float *exact = products_of(what, KERN_ACT_F32, kernels), *rounded = products_of(what, what->activation, kernels);
    double difference = 0, all = 0;
    for (size_t i = 0; i < (size_t)DEVIATION_ROWS * DEVIATION_TOKENS; i++) {
        difference += (double)(rounded[i] - exact[i]) * (double)(rounded[i] - exact[i]);
        all += (double)exact[i] * (double)exact[i];
    }
    printf("%-21s int8 in blocks of %d deviates by %.2f %% (root mean square)\n", kern_format(what->format)->name, what->activation == KERN_ACT_INT8_16 ? 16 : 32,
           100 * sqrt(difference / all));
    free(exact);
    free(rounded);
}

int main(int argc, char **argv) {
    struct err e = {0};
    const struct kern_backend *kernels;
    if (kern_select(argc > 1 ? argv[1] : NULL, &kernels, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return 2;
    }
    int n_rounds = argc > 2 ? atoi(argv[2]) : 11;
    if (n_rounds < 1 || n_rounds > BENCH_MAX_ROUNDS) n_rounds = 11;
    int n_threads = argc > 3 ? atoi(argv[3]) : 1;
    struct base_pool *pool = NULL;
    if (n_threads > 1 && base_pool_create(&(struct base_pool_options){.n_threads = n_threads, .spin_us = 50}, &pool, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    enum bench_clock clock = pool ? BENCH_WALL : BENCH_THREAD;
    const char *only = argc > 4 ? argv[4] : NULL;
    printf("%s/%s, %d thread%s, medians of %d rounds\n", kernels->name, kernels->variant, pool ? n_threads : 1, pool ? "s" : "", n_rounds);

    static struct bench_turn turns[2];
    void *weights = allocate(DECODE_BYTES);
    struct reading reading = {weights, pool};
    for (size_t i = 0; i < sizeof decode_cases / sizeof *decode_cases; i++) {
        struct running r;
        if (only && strcmp(only, kern_format(decode_cases[i].format)->name) != 0) continue;
        start(&r, &decode_cases[i], kernels, pool, weights);
        turns[0] = (struct bench_turn){.run = run_read, .arg = &reading};
        turns[1] = (struct bench_turn){.run = run_matmul, .arg = &r};
        bench_take_turns(clock, turns, 2, n_rounds);
        double read = DECODE_BYTES / bench_median(turns[0].ns, n_rounds), ours = (double)r.file_bytes / bench_median(turns[1].ns, n_rounds);
        print_head(r.what, &r);
        printf(": %6.1f GB/s, plain read %5.1f: %.2f\n", ours, read, ours / read);
        stop(&r, false);
    }
    free(weights);
    for (size_t i = 0; i < sizeof prefill_cases / sizeof *prefill_cases; i++) {
        struct running r;
        if (only && strcmp(only, kern_format(prefill_cases[i].format)->name) != 0) continue;
        start(&r, &prefill_cases[i], kernels, pool, NULL);
        turns[0] = (struct bench_turn){.run = run_matmul, .arg = &r};
        bench_take_turns(clock, turns, 1, n_rounds);
        double ops = 2.0 * r.what->n_tokens * (double)r.matrix.n_rows * r.what->n_columns;
        print_head(r.what, &r);
        printf(": %6.1f GOP/s\n", ops / bench_median(turns[0].ns, n_rounds));
        stop(&r, true);
    }
    for (size_t i = 0; i < sizeof decode_cases / sizeof *decode_cases; i++) {
        const struct matmul_case *what = &decode_cases[i];
        if (what->activation == KERN_ACT_F32 || what->n_tokens > 1 || what->n_columns < 4096 || what->n_leaves < 12) continue; /* each format once */
        if (!only || strcmp(only, kern_format(what->format)->name) == 0) print_deviation(what, kernels);
    }
    if (pool) base_pool_destroy(pool);
    return 0;
}
