/* The kernels of kernels/cuda at the sizes of the largest models, where indices pass 2^31 and 2^32: over sparse memory, the first, the last and some random blocks of a launch. Memory that
 * such a block has no business with is written by nobody: an index that wraps is found as a read of it, or as a result that is not where it belongs; signed ones are found where they
 * overflow. What is in a row, or a tile of rows, is one number, so what must come out is known without the reference's patience. */
#include "tests/t.h"

#include "kernels/cuda/cuda.h"
#include "tests/t_simt.h"

enum { MOST = 66 };
static int n_random(void) { return t_long() ? 64 : 8; }

/* ---- some blocks of a grid -------------------------------------------------------------------------------------------------------------------------------- */

struct picked {
    int n;
    uint32_t x[MOST], y[MOST];
};

static struct picked pick(struct base_rng *r, uint32_t n_x, uint32_t n_y) {
    struct picked p = {n_random() + 2, {0}, {0}};
    for (int i = 2; i < p.n; i++) {
        p.x[i] = (uint32_t)base_rng_below(r, n_x);
        p.y[i] = (uint32_t)base_rng_below(r, n_y);
    }
    p.x[1] = n_x - 1;
    p.y[1] = n_y - 1;
    return p;
}

static void only(const struct picked *p, uint32_t n_x) {
    uint32_t blocks[MOST];
    int n = 0;
    for (int i = 0; i < p->n; i++) {
        uint32_t b = p->x[i] + n_x * p->y[i];
        for (int k = 0; k < n; k++)
            if (blocks[k] == b) b = UINT32_MAX;
        if (b != UINT32_MAX) blocks[n++] = b;
    }
    simt_only_blocks(blocks, (size_t)n);
}

static void *sparse(const char *name, size_t bytes, bool written) {
    void *p = simt_sparse(bytes, written);
    assert_non_null(p);
    simt_name(p, name);
    return p;
}

static void write_to(void *to, const void *from, size_t bytes) { assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), cudaSuccess); }

/* What stands in row t of an activation. */
static float value_of(uint32_t t) { return (float)(1 + t % 5); }

static void write_row(float *x, size_t stride, uint32_t t, size_t width) {
    float *row = malloc(width * sizeof *row);
    assert_non_null(row);
    for (size_t i = 0; i < width; i++) row[i] = value_of(t);
    write_to(x + t * stride, row, width * sizeof *row);
    free(row);
}

static void expect(const char *what, const float *y, size_t at, size_t n, float want) {
    float got[512];
    assert_true(n <= 512);
    assert_int_equal(cudaMemcpy(got, y + at, n * sizeof *got, cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want, sizeof want) != 0)
            fail_msg("%s: element %llu is %.9g, expected %.9g", what, (unsigned long long)(at + i), (double)got[i], (double)want);
}

/* ---- 405B's ffn and width, for more tokens than a grid has blocks along y, rows far apart: 2^33 numbers -------------------------------------------------------- */

enum { TOKENS = 70000, FFN = 53248, WIDTH = 16384, FAR = 131072 };

static void gate_case(void *rng) {
    const size_t bytes = (size_t)TOKENS * FAR * sizeof(float);
    float *g = sparse("gate", bytes, false), *y = sparse("y", bytes, false);
    const struct picked p = pick(rng, TOKENS, FFN / 256);
    for (int i = 0; i < p.n; i++) write_row(g, FAR, p.x[i], FFN);
    const struct kern_gate args = {g, g, y, FAR, FAR, FAR, TOKENS, FFN, KERN_GATE_SILU, 0, 0};
    only(&p, TOKENS);
    assert_int_equal(cuda_gate(&args, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++) {
        float in = value_of(p.x[i]), want;
        const struct kern_gate one = {&in, &in, &want, 1, 1, 1, 1, 1, KERN_GATE_SILU, 0, 0};
        kern_ref.gate(whole, &one);
        expect("gate", y, (size_t)p.x[i] * FAR + (size_t)p.y[i] * 256, 256, want);
    }
}

static void norm_case(void *rng) {
    const size_t bytes = (size_t)TOKENS * FAR * sizeof(float);
    static float in[WIDTH], one_each[WIDTH], want[WIDTH] = {0};
    float *x = sparse("x", bytes, false), *y = sparse("y", bytes, false), *weight = sparse("weight", WIDTH * sizeof(float), false);
    const struct picked p = pick(rng, TOKENS, 1);
    write_row(weight, WIDTH, 0, WIDTH);
    for (int i = 0; i < p.n; i++) write_row(x, FAR, p.x[i], WIDTH);
    const struct kern_norm args = {x, weight, y, FAR, FAR, TOKENS, WIDTH, 1e-5f, NULL, 0};
    only(&p, TOKENS);
    assert_int_equal(cuda_norm(&args, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++) {
        for (int k = 0; k < WIDTH; k++) {
            in[k] = value_of(p.x[i]);
            one_each[k] = 1;
        }
        const struct kern_norm one = {in, one_each, want, WIDTH, WIDTH, 1, WIDTH, 1e-5f, NULL, 0};
        kern_ref.norm(whole, &one);
        for (size_t at = 0; at < WIDTH; at += 512) expect("norm", y, (size_t)p.x[i] * FAR + at, 512, want[at]);
    }
}

static void sum_case(void *rng) {
    const size_t bytes = (size_t)TOKENS * FAR * sizeof(float);
    float *a = sparse("a", bytes, false), *y = sparse("y", bytes, false);
    const struct picked p = pick(rng, TOKENS, WIDTH / 128);
    for (int i = 0; i < p.n; i++) write_row(a, FAR, p.x[i], WIDTH);
    const struct kern_sum args = {.residual = a,
                                  .residual_stride = FAR,
                                  .n_vectors = 2,
                                  .vectors = {a, a},
                                  .vector_token_stride = FAR,
                                  .vector_lo = {0, 1},
                                  .vector_hi = {1, 2},
                                  .n_leaves = 2,
                                  .y = y,
                                  .y_stride = FAR,
                                  .n_tokens = TOKENS,
                                  .width = WIDTH};
    only(&p, TOKENS);
    assert_int_equal(cuda_sum(&args, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++) expect("sum", y, (size_t)p.x[i] * FAR + (size_t)p.y[i] * 128, 128, 3 * value_of(p.x[i]));
}

/* Heads of 128, turned by a quarter: (a, b) becomes (−b, a). */
static void rope_case(void *rng) {
    enum { HEADS = WIDTH / 128, BLOCKS = HEADS * 64 / 128 };
    float *x = sparse("x", (size_t)TOKENS * FAR * sizeof(float), false), *table = sparse("table", (size_t)TOKENS * 128 * sizeof(float), false),
          turn[128] = {0};
    const struct picked p = pick(rng, TOKENS, BLOCKS);
    for (int i = 64; i < 128; i++) turn[i] = 1;
    for (int i = 0; i < p.n; i++) {
        write_row(x, FAR, p.x[i], WIDTH);
        write_to(table + (size_t)p.x[i] * 128, turn, sizeof turn);
    }
    const struct kern_rope args = {x, FAR, TOKENS, HEADS, 128, 64, false, table};
    only(&p, TOKENS);
    assert_int_equal(cuda_rope(&args, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++) { /* a block has 128 pairs: two heads */
        size_t at = (size_t)p.x[i] * FAR + (size_t)p.y[i] * 256;
        expect("rope", x, at, 64, -value_of(p.x[i]));
        expect("rope", x, at + 64, 64, value_of(p.x[i]));
    }
}

/* ---- a vocabulary of 128,256, wide as 405B's, for 40,000 tokens ------------------------------------------------------------------------------------------------ */

enum { VOCABULARY = 128256, PROMPT = 40000 };

/* Numbers of a BF16 matrix, and codes and scales of an NVFP4 one, that are all 1. */
static void ones(enum format f, unsigned char *to, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) to[i] = f == FMT_BF16 ? (i % 2 ? 0x3f : 0x80) : i % 576 < 512 ? 0x22 : 0x38;
}

static struct kern_matrix matrix(enum format f, uint32_t *segment_begin, uint8_t *segment_columns) {
    static const uint64_t end = WIDTH;
    struct kern_matrix m = {.format = f, .n_rows = VOCABULARY, .scale = 1};
    kern_columns_init(&m.columns, 0, &end, 0, 1, 1, segment_begin, segment_columns);
    return m;
}

static void mma_once(struct base_rng *r, enum format f, int n_tokens) {
    uint32_t segment_begin[WIDTH / 32], tile = n_tokens > 32 ? 64 : 8;
    uint8_t segment_columns[WIDTH / 32];
    struct kern_matrix m = matrix(f, segment_begin, segment_columns);
    const size_t bytes = cuda_mma_matrix_bytes(&m), tile_bytes = bytes / (VOCABULARY / 16),
                 scratch_bytes = cuda_mma_scratch_bytes(&m.columns, n_tokens);
    const uint32_t n_x = VOCABULARY / 16, n_y = ((uint32_t)n_tokens + tile - 1) / tile, n_chunks = WIDTH / 64;
    float *x = sparse("x", (size_t)n_tokens * WIDTH * sizeof *x, false), *y = sparse("y", (size_t)n_tokens * VOCABULARY * sizeof *y, false);
    unsigned char *one_tile = malloc(tile_bytes);
    assert_non_null(one_tile);
    ones(f, one_tile, tile_bytes);
    m.data = sparse("weights", bytes, false);
    struct kern_matmul args = {.x = x, .x_stride = WIDTH, .n_tokens = n_tokens, .n_parts = 1, .scratch = sparse("prepared", scratch_bytes, false)};
    args.parts[0] = (struct kern_matmul_part){&m, NULL, y, VOCABULARY, 0};
    struct picked p = pick(r, n_x, n_y);
    for (int i = 2; i < p.n; i++) /* three tiles of tokens are enough */
        p.y[i] = i % 3 ? p.y[i % 3 - 1] : n_y / 2;

    /* ---- the tokens of those blocks, by the kernel that prepares them */
    uint32_t *prepare = malloc(3 * 8 * n_chunks * sizeof *prepare);
    size_t n_prepare = 0;
    assert_non_null(prepare);
    const uint32_t tiles[] = {0, n_y - 1, n_y / 2};
    for (int k = 0; k < (n_y > 2 ? 3 : (int)n_y); k++) {
        for (uint32_t t = tiles[k] * tile; t < (tiles[k] + 1) * tile && t < (uint32_t)n_tokens; t++) write_row(x, WIDTH, t, WIDTH);
        for (uint32_t b = tiles[k] * (tile / 8) * n_chunks; b < (tiles[k] + 1) * (tile / 8) * n_chunks && b < ((uint32_t)n_tokens + 7) / 8 * n_chunks;
             b++)
            prepare[n_prepare++] = b;
    }
    simt_only_blocks(prepare, n_prepare);
    assert_int_equal(cuda_mma_prepare(&args, NULL), cudaSuccess);

    /* ---- their product */
    for (int i = 0; i < p.n; i++) write_to((unsigned char *)m.data + p.x[i] * tile_bytes, one_tile, tile_bytes);
    only(&p, n_x);
    assert_int_equal(cuda_mma_matmul(&args, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++)
        for (uint32_t t = p.y[i] * tile; t < (p.y[i] + 1) * tile && t < (uint32_t)n_tokens; t++)
            expect("product", y, (size_t)t * VOCABULARY + (size_t)p.x[i] * 16, 16, WIDTH * value_of(t));
    free(one_tile);
    free(prepare);
}

static void mma_case(void *rng) {
    mma_once(rng, FMT_BF16, 1);
    mma_once(rng, FMT_NVFP4, 1);
    if (t_long()) mma_once(rng, FMT_BF16, PROMPT);
    mma_once(rng, FMT_NVFP4, PROMPT);
}

/* Pieces of 8 columns: all rows of one, then those of the next. */
static void matmul_case(void *rng) {
    uint32_t segment_begin[WIDTH / 32];
    uint8_t segment_columns[WIDTH / 32];
    struct kern_matrix m = matrix(FMT_BF16, segment_begin, segment_columns);
    float *x = sparse("x", WIDTH * sizeof *x, false), *y = sparse("y", VOCABULARY * sizeof *y, false);
    unsigned char rows[512];
    ones(FMT_BF16, rows, sizeof rows);
    m.data = sparse("weights", cuda_matrix_bytes(&m), false);
    write_row(x, WIDTH, 0, WIDTH);
    struct picked p = pick(rng, VOCABULARY / 32, 1);
    p.n = t_long() ? p.n : 4;
    for (int i = 0; i < p.n; i++)
        for (size_t piece = 0; piece < WIDTH / 8; piece++)
            write_to((unsigned char *)m.data + (piece * VOCABULARY + p.x[i] * 32) * 16, rows, sizeof rows);
    struct kern_matmul args = {.x = x, .x_stride = WIDTH, .n_tokens = 1, .n_parts = 1};
    args.parts[0] = (struct kern_matmul_part){&m, NULL, y, VOCABULARY, 0};
    only(&p, VOCABULARY / 32);
    assert_int_equal(cuda_matmul(&args, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++) expect("plain product", y, (size_t)p.x[i] * 32, 32, WIDTH);

    /* ---- rows of it, and of the other layout: the last one for the last of many tokens, its first and its last 256 columns */
    enum { LAST = VOCABULARY - 1 };
    const size_t at = (size_t)(TOKENS - 1) * WIDTH;
    const struct picked last = {2, {TOKENS - 1, TOKENS - 1}, {0, WIDTH / 256 - 1}};
    int32_t *ids = malloc(TOKENS * sizeof *ids);
    assert_non_null(ids);
    for (int t = 0; t < TOKENS; t++) ids[t] = LAST;
    struct kern_embed embed = {&m, 0, to_device(ids, TOKENS * sizeof *ids), TOKENS, sparse("rows", (at + WIDTH) * sizeof(float), false), WIDTH, 2};
    free(ids);
    only(&last, TOKENS);
    assert_int_equal(cuda_embed(&embed, NULL), cudaSuccess);
    expect("row", embed.y, at, 256, 2);
    expect("row", embed.y, at + WIDTH - 256, 256, 2);
    m.format = FMT_NVFP4;
    const size_t tile_bytes = cuda_mma_matrix_bytes(&m) / (VOCABULARY / 16);
    unsigned char *tile = malloc(tile_bytes);
    assert_non_null(tile);
    ones(FMT_NVFP4, tile, tile_bytes);
    m.data = sparse("table", cuda_mma_matrix_bytes(&m), false);
    write_to((unsigned char *)m.data + LAST / 16 * tile_bytes, tile, tile_bytes);
    embed.scale = 3;
    assert_int_equal(cuda_mma_embed(&embed, NULL), cudaSuccess);
    expect("row", embed.y, at, 256, 3);
    expect("row", embed.y, at + WIDTH - 256, 256, 3);
    free(tile);
}

/* ---- 64 sequences of 131,072 positions: a cache of 262,144 blocks, 2^34 numbers ------------------------------------------------------------------------------------ */

enum { SEQUENCES = 64, POSITIONS = 131072, TABLE = POSITIONS / 32, KV_HEADS = 8, HEADS = 32, DIM = 128, PARTITIONS = POSITIONS / 256 };

struct caches {
    struct kern_kv kv;
    struct kern_batch batch; /* on the device: the last n_tokens positions of each sequence, a run each */
};

static void caches_init(struct caches *c, int n_tokens) {
    int32_t *position = malloc((size_t)(SEQUENCES * n_tokens) * sizeof *position), run[3][SEQUENCES],
            *table = malloc(SEQUENCES * TABLE * sizeof *table);
    assert_non_null(position);
    assert_non_null(table);
    for (int s = 0; s < SEQUENCES; s++) {
        for (int t = 0; t < n_tokens; t++) position[s * n_tokens + t] = POSITIONS - n_tokens + t;
        for (int b = 0; b < TABLE; b++) table[s * TABLE + b] = b * SEQUENCES + s; /* the blocks of a sequence lie far from each other */
        run[0][s] = s * n_tokens;
        run[1][s] = n_tokens;
        run[2][s] = s;
    }
    c->kv = (struct kern_kv){.block_bytes = kern_kv_block_bytes(FMT_BF16, KV_HEADS, DIM),
                             .n_blocks = SEQUENCES * TABLE,
                             .format = FMT_BF16,
                             .n_kv_heads = KV_HEADS,
                             .head_dim = DIM,
                             .k_scale = 1,
                             .v_scale = 1};
    c->kv.base = sparse("cache", c->kv.n_blocks * c->kv.block_bytes, false);
    c->batch = (struct kern_batch){.n_tokens = SEQUENCES * n_tokens, .n_runs = SEQUENCES, .block_table_stride = TABLE};
    c->batch.position = to_device(position, (size_t)(SEQUENCES * n_tokens) * sizeof *position);
    c->batch.run_begin = to_device(run[0], sizeof run[0]);
    c->batch.run_tokens = to_device(run[1], sizeof run[1]);
    c->batch.run_table = to_device(run[2], sizeof run[2]);
    c->batch.block_table = to_device(table, SEQUENCES * TABLE * sizeof *table);
    free(position);
    free(table);
}

/* All keys and values of a head in block b of sequence s are 1. */
static void write_block(const struct caches *c, int s, int b, int head) {
    unsigned char numbers[DIM * 32 * 2];
    ones(FMT_BF16, numbers, sizeof numbers);
    unsigned char *keys = (unsigned char *)c->kv.base + (size_t)(b * SEQUENCES + s) * c->kv.block_bytes + (size_t)head * sizeof numbers;
    write_to(keys, numbers, sizeof numbers);
    write_to(keys + KV_HEADS * sizeof numbers, numbers, sizeof numbers);
}

/* A partition of 256 equal keys: maximum dim · q · scale, sum 256, values 256. */
static void decode_case(void *rng) {
    struct caches c;
    caches_init(&c, 1);
    const size_t row = DIM + 2, scratch_bytes = cuda_attention_scratch_bytes(HEADS, DIM, SEQUENCES, 1, PARTITIONS);
    float *q = sparse("q", (size_t)SEQUENCES * HEADS * DIM * sizeof *q, false), *scratch = sparse("partitions", scratch_bytes, true);
    for (uint32_t s = 0; s < SEQUENCES; s++) write_row(q, HEADS * DIM, s, HEADS * DIM);
    const struct picked p = pick(rng, SEQUENCES * KV_HEADS, PARTITIONS);
    for (int i = 0; i < p.n; i++)
        for (int b = 0; b < 8; b++) write_block(&c, (int)p.x[i] / KV_HEADS, (int)p.y[i] * 8 + b, (int)p.x[i] % KV_HEADS);
    struct kern_attention args = {.batch = &c.batch,
                                  .kv = &c.kv,
                                  .q = q,
                                  .q_stride = HEADS * DIM,
                                  .out_stride = HEADS * DIM,
                                  .n_heads = HEADS,
                                  .group = HEADS / KV_HEADS,
                                  .scale = 1.0f / 16};
    args.out = sparse("attended", (size_t)SEQUENCES * HEADS * DIM * sizeof(float), false);
    args.scratch = scratch;
    only(&p, SEQUENCES * KV_HEADS);
    assert_int_equal(cuda_attention(&args, 1, PARTITIONS, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++)
        for (uint32_t h = 0; h < HEADS / KV_HEADS; h++) {
            uint32_t s = p.x[i] / KV_HEADS, head = p.x[i] % KV_HEADS * (HEADS / KV_HEADS) + h;
            size_t at = (((size_t)s * HEADS + head) * PARTITIONS + p.y[i]) * row;
            expect("maximum of a partition", scratch, at, 1, DIM / 16 * value_of(s));
            expect("sum of a partition", scratch, at + 1, row - 1, 256);
        }
}

/* Runs of 16 tokens at the end, each of which sees 300 keys; equal values come out as they went in. */
static void prefill_case(void *rng) {
    enum { RUN = 16, WINDOW = 300 };
    struct caches c;
    caches_init(&c, RUN);
    float *q = sparse("q", (size_t)SEQUENCES * RUN * HEADS * DIM * sizeof *q, true),
          *out = sparse("attended", (size_t)SEQUENCES * RUN * HEADS * DIM * sizeof *out, false);
    struct picked p = pick(rng, RUN * HEADS / KV_HEADS / 16, SEQUENCES * KV_HEADS);
    for (int i = 0; i < p.n; i++)
        for (int b = (POSITIONS - RUN - WINDOW) / 32; b < TABLE; b++) write_block(&c, (int)p.y[i] / KV_HEADS, b, (int)p.y[i] % KV_HEADS);
    const struct kern_attention args = {.batch = &c.batch,
                                        .kv = &c.kv,
                                        .q = q,
                                        .q_stride = HEADS * DIM,
                                        .out = out,
                                        .out_stride = HEADS * DIM,
                                        .n_heads = HEADS,
                                        .group = HEADS / KV_HEADS,
                                        .scale = 1,
                                        .window = WINDOW};
    p.n = t_long() ? p.n : 4;
    only(&p, RUN * HEADS / KV_HEADS / 16);
    assert_int_equal(cuda_attention(&args, RUN, PARTITIONS, NULL), cudaSuccess);
    for (int i = 0; i < p.n; i++)
        for (uint32_t r = 0; r < 16; r++) {
            uint32_t in_run = p.x[i] * 16 + r, token = p.y[i] / KV_HEADS * RUN + in_run / 4, head = p.y[i] % KV_HEADS * 4 + in_run % 4;
            expect("attended", out, ((size_t)token * HEADS + head) * DIM, DIM, 1);
        }
}

/* The first and the last of 70,400 tokens. */
static void append_case(void *unused) {
    (void)unused;
    enum { RUN = 1100, N = SEQUENCES * RUN, BLOCKS = KV_HEADS * DIM / 128 };
    struct caches c;
    struct picked p = {2 * BLOCKS, {0}, {0}};
    caches_init(&c, RUN);
    float *k = sparse("k", (size_t)N * KV_HEADS * DIM * sizeof *k, false);
    for (int i = 0; i < p.n; i++) {
        p.x[i] = i % 2 ? N - 1 : 0;
        p.y[i] = (uint32_t)i / 2;
        write_row(k, KV_HEADS * DIM, p.x[i], KV_HEADS * DIM);
    }
    const struct kern_kv_append args = {&c.batch, &c.kv, k, k, KV_HEADS * DIM, KV_HEADS * DIM};
    only(&p, N);
    assert_int_equal(cuda_kv_append(&args, NULL), cudaSuccess);
    /* position 131,071 of the last sequence: slot 31 of the cache's last block */
    const uint16_t *last = (const uint16_t *)(const void *)((const unsigned char *)c.kv.base + c.kv.n_blocks * c.kv.block_bytes),
                   want = kern_f32_to_bf16(value_of(N - 1));
    uint16_t got[DIM];
    assert_int_equal(cudaMemcpy(got, last - DIM, sizeof got, cudaMemcpyDeviceToHost), cudaSuccess);
    for (int i = 0; i < DIM; i++) assert_int_equal(got[i], want);
    assert_int_equal(cudaMemcpy(got, last - (size_t)KV_HEADS * DIM * 32 - 1, sizeof *got, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(*got, want);
}

static void real_sizes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        void (*run)(void *);
    } cases[] = {{"gate", gate_case},     {"norm", norm_case},       {"sum", sum_case},
                 {"rope", rope_case},     {"product", mma_case},     {"plain product", matmul_case},
                 {"decode", decode_case}, {"prefill", prefill_case}, {"append", append_case}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct base_rng r;
        base_rng_init(&r, t_seed());
        const double begin = seconds();
        const char *line = simt_catch(cases[i].run, &r, t_seed());
        if (line) fail_msg("%s: %s", cases[i].name, line);
        print_message("%-14s %.0f ms\n", cases[i].name, 1e3 * (seconds() - begin));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(real_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
