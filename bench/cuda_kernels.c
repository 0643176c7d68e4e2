/* What kernels/cuda reach on a GPU: a layer of an 8B model in BF16 and NVFP4 for 1 … 512 tokens, attention of one token over a long cache, and launches of the small ops. Bytes of weights and cache a
 * second beside what a copy on the device moves (read and written), interleaved, medians of 9 rounds. Weights are those of several layers, so that no cache holds them.
 *
 *     make gpu && build/gpu/bench/cuda_kernels */
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"
#include "kernels/cuda/cuda.h"
#include "kernels/simt/runtime.h"

enum { HIDDEN = 4096, HEADS = 32, KV_HEADS = 8, DIM = 128, FFN = 14336, MAX_TOKENS = 512, POSITIONS = 32768, ROUNDS = 9, LAYERS = 4 };
enum { MAX_SEGMENTS = FFN / 32, COPY_BYTES = 256 << 20 };

static void must(int e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "cuda_kernels: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

static void *device_memory(size_t bytes) {
    void *p = NULL;
    must(cudaMalloc(&p, bytes), "memory");
    return p;
}

/* Numbers of sensible sizes in either format: BF16 of ±0.5 … 1, scales of 1. */
static void *device_weights(size_t bytes) {
    static unsigned char some[1 << 20];
    unsigned char *p = device_memory(bytes);
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof some; i += 2) {
        state = state * 1664525 + 1013904223;
        some[i] = (unsigned char)(state >> 24);
        some[i + 1] = (unsigned char)(state >> 16 & 1 ? 0x3f : 0xbf);
    }
    for (size_t at = 0; at < bytes; at += sizeof some) must(cudaMemcpy(p + at, some, bytes - at < sizeof some ? bytes - at : sizeof some, cudaMemcpyHostToDevice), "weights");
    return p;
}

struct weights {
    struct kern_matrix m;
    uint32_t segment_begin[MAX_SEGMENTS];
    uint8_t segment_columns[MAX_SEGMENTS];
};

static double weights_init(struct weights *w, enum format f, uint64_t n_rows, uint64_t n_columns, uint32_t n_leaves) {
    uint64_t ends[12];
    for (uint64_t i = 0; i < n_leaves; i++) ends[i] = 64 * ((i + 1) * (n_columns / 64) / n_leaves);
    w->m = (struct kern_matrix){.format = f, .n_rows = n_rows, .scale = 1};
    kern_columns_init(&w->m.columns, 0, ends, 0, n_leaves, n_leaves, w->segment_begin, w->segment_columns);
    w->m.data = device_weights(cuda_mma_matrix_bytes(&w->m));
    return (double)n_rows * (double)kern_format_row_bytes(f, n_columns);
}

static struct {
    float *x, *y[2];
    void *scratch;
} memory;

/* A layer's seven products, or some of them. */
enum { QKV = 1, O = 2, GATE_UP = 4, DOWN = 8, ALL = 15 };
struct products {
    struct weights w[LAYERS][7]; /* q, k, v, o, gate, up, down */
    double bytes[7];
};
struct layer {
    struct products *p;
    int which, n_tokens;
};

static void multiply(struct weights *w, int n, int n_tokens) {
    struct kern_matmul args = {.x = memory.x, .x_stride = w[0].m.columns.end, .n_tokens = n_tokens, .n_parts = n, .scratch = memory.scratch};
    for (int i = 0; i < n; i++) args.parts[i] = (struct kern_matmul_part){&w[i].m, NULL, memory.y[0], w[i].m.n_rows, w[i].m.n_rows * (size_t)n_tokens};
    must(cuda_mma_prepare(&args, NULL), "prepare");
    must(cuda_mma_matmul(&args, NULL), "matmul");
}

/* All layers, one after the other. */
static void run_layers(void *arg) {
    const struct layer *l = arg;
    for (int i = 0; i < LAYERS; i++) {
        if (l->which & QKV) multiply(l->p->w[i], 3, l->n_tokens);
        if (l->which & O) multiply(l->p->w[i] + 3, 1, l->n_tokens);
        if (l->which & GATE_UP) multiply(l->p->w[i] + 4, 2, l->n_tokens);
        if (l->which & DOWN) multiply(l->p->w[i] + 6, 1, l->n_tokens);
    }
    must(cudaDeviceSynchronize(), "products");
}

static void run_copy(void *unused) {
    (void)unused;
    static char *from, *to;
    if (!from) {
        from = device_memory(COPY_BYTES);
        to = device_memory(COPY_BYTES);
    }
    for (int i = 0; i < 4; i++) must(cudaMemcpyAsync(to, from, COPY_BYTES, cudaMemcpyDeviceToDevice, NULL), "copy");
    must(cudaDeviceSynchronize(), "copy");
}

struct decode {
    struct kern_attention args;
    struct kern_batch batch;
    struct kern_kv kv;
};

static void decode_init(struct decode *d, int n_positions) {
    const int n_blocks = n_positions / KERN_KV_BLOCK;
    int32_t position = n_positions - 1, zero = 0, one = 1, *blocks = malloc((size_t)n_blocks * sizeof *blocks);
    int32_t *small = device_memory(4 * sizeof *small), *table = device_memory((size_t)n_blocks * sizeof *table);
    if (!blocks) exit(1);
    for (int i = 0; i < n_blocks; i++) blocks[i] = i;
    const int32_t values[4] = {position, zero, one, zero};
    must(cudaMemcpy(small, values, sizeof values, cudaMemcpyHostToDevice), "batch");
    must(cudaMemcpy(table, blocks, (size_t)n_blocks * sizeof *table, cudaMemcpyHostToDevice), "batch");
    free(blocks);
    d->batch = (struct kern_batch){1, small, 1, small + 1, small + 2, small + 3, table, (size_t)n_blocks};
    d->kv = (struct kern_kv){.block_bytes = kern_kv_block_bytes(FMT_BF16, KV_HEADS, DIM), .n_blocks = (size_t)n_blocks, .format = FMT_BF16, .n_kv_heads = KV_HEADS, .head_dim = DIM};
    d->kv.base = device_weights(d->kv.n_blocks * d->kv.block_bytes);
    const int n_partitions = n_positions / KERN_KV_PARTITION;
    d->args = (struct kern_attention){.batch = &d->batch, .kv = &d->kv, .q = memory.x, .q_stride = HIDDEN, .out = memory.y[1], .out_stride = HIDDEN, .n_heads = HEADS, .group = HEADS / KV_HEADS, .scale = 0.1f};
    d->args.scratch = device_memory(cuda_attention_scratch_bytes(HEADS, DIM, 1, 1, n_partitions));
}

static void run_decode(void *arg) {
    struct decode *d = arg;
    const int n_partitions = (int)d->kv.n_blocks * KERN_KV_BLOCK / KERN_KV_PARTITION;
    for (int i = 0; i < LAYERS; i++) must(cuda_attention(&d->args, 1, n_partitions, NULL), "attention");
    must(cudaDeviceSynchronize(), "attention");
}

/* 100 launches of an op that has next to nothing to do, of one token. */
static void run_norm(void *weight) {
    const struct kern_norm args = {memory.x, weight, memory.y[1], HIDDEN, HIDDEN, 1, HIDDEN, 1e-5f, NULL, 0};
    for (int i = 0; i < 100; i++) must(cuda_norm(&args, NULL), "norm");
    must(cudaDeviceSynchronize(), "norm");
}
static void run_gate(void *unused) {
    (void)unused;
    const struct kern_gate args = {memory.x, memory.y[0], memory.y[1], FFN, FFN, FFN, 1, FFN, KERN_GATE_SILU, 0, 0};
    for (int i = 0; i < 100; i++) must(cuda_gate(&args, NULL), "gate");
    must(cudaDeviceSynchronize(), "gate");
}
static void run_topk(void *out) {
    const struct kern_topk args = {memory.x, 151936, 1, 151936, 40, 0, out};
    for (int i = 0; i < 100; i++) must(cuda_topk(&args, NULL), "top-k");
    must(cudaDeviceSynchronize(), "top-k");
}

static void products_init(struct products *p, enum format f) {
    static const struct {
        uint64_t n_rows, n_columns;
        uint32_t n_leaves;
    } shapes[7] = {{HIDDEN, HIDDEN, 1}, {KV_HEADS * DIM, HIDDEN, 1}, {KV_HEADS * DIM, HIDDEN, 1}, {HIDDEN, HIDDEN, 8}, {FFN, HIDDEN, 1}, {FFN, HIDDEN, 1}, {HIDDEN, FFN, 12}};
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < 7; i++) p->bytes[i] = weights_init(&p->w[l][i], f, shapes[i].n_rows, shapes[i].n_columns, shapes[i].n_leaves);
}

int main(void) {
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n < 1) {
        printf("cuda_kernels: no GPU\n");
        return 77;
    }
    static struct products of[2];
    static const enum format formats[2] = {FMT_BF16, FMT_NVFP4};
    static const int tokens[] = {1, 8, 64, MAX_TOKENS}, parts[] = {ALL, QKV, O, GATE_UP, DOWN};
    static const char *const names[] = {"layer", "q, k, v", "o", "gate, up", "down"};
    static const int lengths[] = {4096, POSITIONS};
    enum { N_TOKENS = 4, N_PARTS = 5 };
    static struct layer layers[2][N_TOKENS][N_PARTS];
    static struct decode decodes[2];
    static struct bench_turn turns[1 + 2 * N_TOKENS * N_PARTS + 2 + 3];
    int n_turns = 0;
    memory.x = device_weights((size_t)MAX_TOKENS * FFN * sizeof(float));
    for (int i = 0; i < 2; i++) memory.y[i] = device_memory((size_t)MAX_TOKENS * FFN * 4 * sizeof(float));
    for (int f = 0; f < 2; f++) products_init(&of[f], formats[f]);
    memory.scratch = device_memory(cuda_mma_scratch_bytes(&of[0].w[0][6].m.columns, MAX_TOKENS));
    turns[n_turns++].run = run_copy;
    for (int f = 0; f < 2; f++)
        for (int t = 0; t < N_TOKENS; t++)
            for (int k = 0; k < N_PARTS; k++) {
                layers[f][t][k] = (struct layer){&of[f], parts[k], tokens[t]};
                turns[n_turns++] = (struct bench_turn){.run = run_layers, .arg = &layers[f][t][k]};
            }
    for (int i = 0; i < 2; i++) {
        decode_init(&decodes[i], lengths[i]);
        turns[n_turns++] = (struct bench_turn){.run = run_decode, .arg = &decodes[i]};
    }
    turns[n_turns++] = (struct bench_turn){.run = run_norm, .arg = of[0].w[0][0].m.data};
    turns[n_turns++] = (struct bench_turn){.run = run_gate};
    turns[n_turns++] = (struct bench_turn){.run = run_topk, .arg = memory.y[1]};
    bench_take_turns(BENCH_WALL, turns, n_turns, ROUNDS);

    struct bench_turn *turn = turns;
    const double copy = 2.0 * COPY_BYTES * 4 / bench_median(turns[0].ns, ROUNDS);
    printf("a copy on the device: %.0f GB/s\n\n", copy);
    printf("%-6s %-9s %6s %10s %9s %8s %9s\n", "", "", "tokens", "us/layer", "GB/s", "÷ copy", "TFLOP/s");
    turn++;
    for (int f = 0; f < 2; f++)
        for (int t = 0; t < N_TOKENS; t++)
            for (int k = 0; k < N_PARTS; k++, turn++) {
                static const int masks[7] = {QKV, QKV, QKV, O, GATE_UP, GATE_UP, DOWN};
                double bytes = 0, flops = 0;
                for (int i = 0; i < 7; i++)
                    if (parts[k] & masks[i]) {
                        bytes += of[f].bytes[i];
                        flops += 2.0 * (double)of[f].w[0][i].m.n_rows * (double)of[f].w[0][i].m.columns.end * tokens[t];
                    }
                const double ns = bench_median(turn->ns, ROUNDS) / LAYERS;
                printf("%-6s %-9s %6d %10.1f %9.0f %8.2f %9.2f\n", kern_format(formats[f])->name, names[k], tokens[t], ns / 1e3, bytes / ns, bytes / ns / copy, flops / ns / 1e3);
            }
    for (int i = 0; i < 2; i++, turn++) {
        const double bytes = (double)decodes[i].kv.n_blocks * (double)decodes[i].kv.block_bytes, ns = bench_median(turn->ns, ROUNDS) / LAYERS;
        printf("attention over %5d positions, BF16: %8.1f us %7.0f GB/s %6.2f of a copy\n", lengths[i], ns / 1e3, bytes / ns, bytes / ns / copy);
    }
    static const char *const small[] = {"norm", "gate", "top-k of 151,936"};
    for (int i = 0; i < 3; i++, turn++) printf("%-20s %6.2f us\n", small[i], bench_median(turn->ns, ROUNDS) / 1e5);
    return 0;
}
