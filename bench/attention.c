/* How fast is attention? attention [KERNELS [ROUNDS]], e.g. attention cpu/avx2 9. One thread, and the time during which it ran.
 *
 * Decode: one token reads the K and V of its whole context once: bytes/s over those of a plain read of the same cache, same round.
 * Prefill: a token and a key are 4·head_dim operations a query head, n·(n+1)/2 pairs: GFLOP/s. */
#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "bench/bench.h"
#include "kernels/kernels.h"

struct attention_case {
    const char *name;
    enum format format;
    int n_heads, n_kv_heads, head_dim;
    int n_context, n_tokens; /* n_tokens new ones at the end of n_context */
};

static const struct attention_case cases[] = {
    {"decode, SmolLM2", FMT_F16, 9, 3, 64, 2048, 1},         {"decode, SmolLM2, short", FMT_F16, 9, 3, 64, 128, 1},
    {"decode, Llama 8B", FMT_F16, 32, 8, 128, 2048, 1},      {"decode, Llama 8B, long", FMT_F16, 32, 8, 128, 16384, 1},
    {"decode, one head a group", FMT_F16, 8, 8, 128, 2048, 1}, {"decode, BF16", FMT_BF16, 32, 8, 128, 2048, 1},
    {"decode, F32", FMT_F32, 32, 8, 128, 2048, 1},           {"decode, FP8", FMT_E4M3, 32, 8, 128, 2048, 1},
    {"decode, FP8, long", FMT_E4M3, 32, 8, 128, 16384, 1},   {"decode, FP8, one head a group", FMT_E4M3, 8, 8, 128, 2048, 1},
    {"prefill, FP8", FMT_E4M3, 32, 8, 128, 512, 512},        {"prefill, SmolLM2", FMT_F16, 9, 3, 64, 512, 512},
    {"prefill, Llama 8B", FMT_F16, 32, 8, 128, 512, 512},    {"prefill, one head a group", FMT_F16, 8, 8, 128, 512, 512},
    {"prefill, F32", FMT_F32, 9, 3, 64, 512, 512},
};
enum { N_CASES = sizeof cases / sizeof cases[0], MAX_CONTEXT = 16384 };

struct running {
    const struct kern_backend *kernels;
    struct kern_attention args;
    struct kern_kv kv;
    struct kern_batch batch;
    size_t cache_bytes;
    uint64_t sink;
};

static void run_attention(void *arg) {
    struct running *r = arg;
    r->kernels->attention((struct kern_queue){0, 1}, &r->args);
}

static void run_read(void *arg) {
    struct running *r = arg;
    uint64_t sums[8] = {0};
    const uint64_t *p = r->kv.base;
    for (size_t i = 0; i + 8 <= r->cache_bytes / 8; i += 8)
        for (int j = 0; j < 8; j++)
            sums[j] += p[i + (size_t)j];
    for (int j = 0; j < 8; j++)
        r->sink += sums[j];
}

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

static void bench_case(const struct kern_backend *kernels, const struct attention_case *c, int n_rounds) {
    static int32_t position[MAX_CONTEXT], table[MAX_CONTEXT / KERN_KV_BLOCK];
    static const int32_t zero = 0;
    struct base_rng rng;
    base_rng_init(&rng, 1);
    struct running r = {.kernels = kernels};
    int n_blocks = c->n_context / KERN_KV_BLOCK;
    r.kv = (struct kern_kv){.block_bytes = kern_kv_block_bytes(c->format, c->n_kv_heads, c->head_dim), .format = c->format, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim, .k_scale = 1, .v_scale = 1};
    r.cache_bytes = r.kv.block_bytes * (size_t)n_blocks;
    r.kv.base = allocate(r.cache_bytes);
    for (size_t i = 0; i < r.cache_bytes / kern_format(c->format)->block_bytes; i++) {
        float x = base_rng_uniform(&rng, -1, 1);
        if (c->format == FMT_F32)
            ((float *)r.kv.base)[i] = x;
        else if (c->format == FMT_E4M3)
            ((uint8_t *)r.kv.base)[i] = kern_f32_to_e4m3(x);
        else
            ((uint16_t *)r.kv.base)[i] = c->format == FMT_F16 ? kern_f32_to_f16(x) : kern_f32_to_bf16(x);
    }
    for (int i = 0; i < n_blocks; i++)
        table[i] = i * 7 % n_blocks;
    for (int i = 0; i < c->n_tokens; i++)
        position[i] = c->n_context - c->n_tokens + i;
    int32_t n_tokens = c->n_tokens;
    r.batch = (struct kern_batch){n_tokens, position, 1, &zero, &n_tokens, &zero, table, (size_t)n_blocks};
    size_t width = (size_t)(c->n_heads * c->head_dim);
    float *q = allocate(width * (size_t)n_tokens * sizeof *q), *y = allocate(width * (size_t)n_tokens * sizeof *y);
    for (size_t i = 0; i < width * (size_t)n_tokens; i++)
        q[i] = base_rng_normal(&rng);
    void *scratch = allocate(kernels->attention_scratch_bytes(c->n_heads, c->head_dim, n_tokens, 1) + 64);
    r.args = (struct kern_attention){&r.batch, &r.kv, q, width, y, width, c->n_heads, 0, 0, c->n_heads / c->n_kv_heads, 0.1f, 0, NULL, scratch};

    static struct bench_turn turns[2];
    turns[0].run = run_attention;
    turns[1].run = run_read;
    turns[0].arg = turns[1].arg = &r;
    bench_take_turns(BENCH_THREAD, turns, 2, n_rounds);
    double ns = bench_median(turns[0].ns, n_rounds), read_ns = bench_median(turns[1].ns, n_rounds);
    double n_pairs = (double)n_tokens * (c->n_context - n_tokens) + 0.5 * n_tokens * (n_tokens + 1.0);
    printf("%-29s %-4s %2d/%d/%-3d context %5d: %9.1f us, %6.1f GFLOP/s", c->name, kern_format(c->format)->name, c->n_heads, c->n_kv_heads, c->head_dim,
           c->n_context, ns / 1e3, n_pairs * 4 * (double)width / ns);
    if (n_tokens == 1)
        printf(", %5.1f GB/s of cache, %.2f of a plain read", (double)r.cache_bytes / ns, read_ns / ns);
    printf("\n");
    free(r.kv.base);
    free(q);
    free(y);
    free(scratch);
}

int main(int argc, char **argv) {
    const struct kern_backend *kernels = NULL;
    struct err e = {0};
    if (kern_select(argc > 1 ? argv[1] : NULL, &kernels, &e) != ST_OK) {
        fprintf(stderr, "attention: %s\n", e.text);
        return 2;
    }
    int n_rounds = argc > 2 ? atoi(argv[2]) : 9;
    n_rounds = n_rounds < 1 ? 1 : n_rounds > BENCH_MAX_ROUNDS ? BENCH_MAX_ROUNDS : n_rounds;
    printf("%s/%s, one thread, median of %d rounds\n", kernels->name, kernels->variant, n_rounds);
    for (int i = 0; i < N_CASES; i++)
        bench_case(kernels, &cases[i], n_rounds);
    return 0;
}
