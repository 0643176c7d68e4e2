/* What one layer of a real width (8B class) asks of memory to decode one token, by the counts of all its launches: weights and cache once each, and next to nothing else.
 * Every launch of kernels/cuda that such a layer has, on weights of zeroes; nothing is checked but the counts. In the long test they run whole, at position 4,095. Else at 1,023, and a product
 * runs 16 of its blocks, which all read as much as each other (whole tiles of rows, the same columns), and what it read of its weights is multiplied; all other launches run whole. */
#include "tests/t.h"

#include <jansson.h>

#include "kernels/cuda/cuda.h"
#include "tests/t_simt.h"

enum { HIDDEN = 4096, HEADS = 32, KV_HEADS = 8, DIM = 128, FFN = 14336, KV = KV_HEADS * DIM };
enum { MOST_SEGMENTS = FFN / 32, TILE_ROWS = 16, SAMPLED = 16 };

static int positions(void) { return t_long() ? 4096 : 1024; }

struct matrix {
    struct kern_matrix m;
    uint32_t segment_begin[MOST_SEGMENTS];
    uint8_t segment_columns[MOST_SEGMENTS];
};

static void *zeroes(const char *name, size_t bytes) {
    void *p = simt_sparse(bytes, 1);
    assert_non_null(p);
    simt_name(p, name);
    return p;
}

/* Leaf i ends at column unit · ⌊(i + 1) · n_units / n_leaves⌋; weights as many as the file has, in bytes, are added to ideal. */
static void matrix_init(struct matrix *w, enum format f, uint64_t n_rows, uint64_t n_columns, uint64_t unit, uint32_t n_leaves, double *ideal) {
    uint64_t ends[12];
    for (uint64_t i = 0; i < n_leaves; i++) ends[i] = unit * ((i + 1) * (n_columns / unit) / n_leaves);
    w->m = (struct kern_matrix){.format = f, .n_rows = n_rows, .scale = 1};
    kern_columns_init(&w->m.columns, 0, ends, 0, n_leaves, n_leaves, w->segment_begin, w->segment_columns);
    w->m.data = zeroes("weights", cuda_mma_matrix_bytes(&w->m));
    *ideal += (double)n_rows * (double)kern_format_row_bytes(f, n_columns);
}

static void product(const float *x, void *scratch, struct matrix *const *w, float *const *y, int n) {
    struct kern_matmul args = {.x = x, .x_stride = w[0]->m.columns.end, .n_tokens = 1, .n_parts = n, .scratch = scratch};
    uint32_t blocks[SAMPLED];
    for (int i = 0; i < n; i++) args.parts[i] = (struct kern_matmul_part){&w[i]->m, NULL, y[i], w[i]->m.n_rows, w[i]->m.n_rows};
    assert_int_equal(cuda_mma_prepare(&args, NULL), cudaSuccess);
    for (uint32_t b = 0; b < SAMPLED; b++) blocks[b] = b;
    simt_only_blocks(blocks, t_long() ? 0 : SAMPLED);
    assert_int_equal(cuda_mma_matmul(&args, NULL), cudaSuccess);
    simt_only_blocks(NULL, 0);
}

struct layer {
    enum format format;
    double weights, cache; /* bytes */
};

static void layer_case(void *arg) {
    struct layer *l = arg;
    static struct matrix q, k, v, o, gate, up, down;
    matrix_init(&q, l->format, HIDDEN, HIDDEN, HIDDEN, 1, &l->weights);
    matrix_init(&k, l->format, KV, HIDDEN, HIDDEN, 1, &l->weights);
    matrix_init(&v, l->format, KV, HIDDEN, HIDDEN, 1, &l->weights);
    matrix_init(&o, l->format, HIDDEN, HIDDEN, HIDDEN / 8, 8, &l->weights);
    matrix_init(&gate, l->format, FFN, HIDDEN, HIDDEN, 1, &l->weights);
    matrix_init(&up, l->format, FFN, HIDDEN, HIDDEN, 1, &l->weights);
    matrix_init(&down, l->format, HIDDEN, FFN, 64, 12, &l->weights);
    float *x = zeroes("x", HIDDEN * sizeof *x), *normed = zeroes("normed", HIDDEN * sizeof *x),
          *norm_weight = zeroes("norm's weights", HIDDEN * sizeof *x);
    float *qs = zeroes("q", HIDDEN * sizeof *x), *ks = zeroes("k", KV * sizeof *x), *vs = zeroes("v", KV * sizeof *x),
          *attended = zeroes("attended", HIDDEN * sizeof *x);
    float *gates = zeroes("gates", FFN * sizeof *x), *ups = zeroes("ups", FFN * sizeof *x), *gated = zeroes("gated", FFN * sizeof *x),
          *y = zeroes("y", HIDDEN * sizeof *x);
    float *table = zeroes("rotations", DIM * sizeof *x);
    void *scratch = zeroes("prepared", cuda_mma_scratch_bytes(&down.m.columns, 1));

    /* ---- the cache: blocks in order */
    const int n_blocks = positions() / KERN_KV_BLOCK, n_partitions = positions() / KERN_KV_PARTITION;
    int32_t position = positions() - 1, zero = 0, one = 1, blocks[4096 / KERN_KV_BLOCK];
    for (int i = 0; i < n_blocks; i++) blocks[i] = i;
    const struct kern_batch batch = {1,
                                     to_device(&position, 4),
                                     1,
                                     to_device(&zero, 4),
                                     to_device(&one, 4),
                                     to_device(&zero, 4),
                                     to_device(blocks, sizeof blocks),
                                     (size_t)n_blocks};
    struct kern_kv kv = {.block_bytes = kern_kv_block_bytes(FMT_BF16, KV_HEADS, DIM),
                         .n_blocks = (size_t)n_blocks,
                         .format = FMT_BF16,
                         .n_kv_heads = KV_HEADS,
                         .head_dim = DIM};
    kv.base = zeroes("cache", kv.n_blocks * kv.block_bytes);
    l->cache = (double)kv.n_blocks * (double)kv.block_bytes;

    /* ---- the layer */
    struct kern_norm norm = {x, norm_weight, normed, HIDDEN, HIDDEN, 1, HIDDEN, 1e-5f, NULL, 0};
    assert_int_equal(cuda_norm(&norm, NULL), cudaSuccess);
    product(normed, scratch, (struct matrix *const[]){&q, &k, &v}, (float *const[]){qs, ks, vs}, 3);
    struct kern_rope rope = {qs, HIDDEN, 1, HEADS, DIM, DIM / 2, false, table};
    assert_int_equal(cuda_rope(&rope, NULL), cudaSuccess);
    rope = (struct kern_rope){ks, KV, 1, KV_HEADS, DIM, DIM / 2, false, table};
    assert_int_equal(cuda_rope(&rope, NULL), cudaSuccess);
    const struct kern_kv_append append = {&batch, &kv, ks, vs, KV, KV};
    assert_int_equal(cuda_kv_append(&append, NULL), cudaSuccess);
    const struct kern_attention attention = {.batch = &batch,
                                             .kv = &kv,
                                             .q = qs,
                                             .q_stride = HIDDEN,
                                             .out = attended,
                                             .out_stride = HIDDEN,
                                             .n_heads = HEADS,
                                             .group = HEADS / KV_HEADS,
                                             .scale = 1,
                                             .scratch = zeroes("partitions", cuda_attention_scratch_bytes(HEADS, DIM, 1, 1, n_partitions))};
    assert_int_equal(cuda_attention(&attention, 1, n_partitions, NULL), cudaSuccess);
    product(attended, scratch, (struct matrix *const[]){&o}, (float *const[]){y}, 1);
    struct kern_sum sum = {.residual = x,
                           .residual_stride = HIDDEN,
                           .n_vectors = 1,
                           .vectors = {y},
                           .vector_token_stride = HIDDEN,
                           .vector_hi = {8},
                           .n_leaves = 8,
                           .y = x,
                           .y_stride = HIDDEN,
                           .n_tokens = 1,
                           .width = HIDDEN};
    assert_int_equal(cuda_sum(&sum, NULL), cudaSuccess);
    assert_int_equal(cuda_norm(&norm, NULL), cudaSuccess);
    product(normed, scratch, (struct matrix *const[]){&gate, &up}, (float *const[]){gates, ups}, 2);
    const struct kern_gate activation = {gates, ups, gated, FFN, FFN, FFN, 1, FFN, KERN_GATE_SILU, 0, 0};
    assert_int_equal(cuda_gate(&activation, NULL), cudaSuccess);
    product(gated, scratch, (struct matrix *const[]){&down}, (float *const[]){y}, 1);
    sum.vector_hi[0] = 12;
    sum.n_leaves = 12;
    assert_int_equal(cuda_sum(&sum, NULL), cudaSuccess);
}

static double field(const json_t *buffer, const char *name) { return (double)json_integer_value(json_object_get(buffer, name)); }

/* In MB: bytes asked for, and by whole sectors; and, of all buffers, what does not come from the L2. */
struct traffic {
    struct {
        double bytes, by_sectors;
    } weights, cache;
    double from_memory, stored;
};

static struct traffic traffic_of(const char *text) {
    struct traffic t = {{0, 0}, {0, 0}, 0, 0};
    json_error_t e;
    json_t *counts = json_loads(text, 0, &e), *launch, *buffer;
    size_t i, k;
    assert_non_null(counts);
    json_array_foreach(json_object_get(counts, "launches"), i, launch) {
        const bool is_product = strstr(json_string_value(json_object_get(launch, "kernel")), "mma_matmul");
        const double n_blocks = (double)json_integer_value(json_array_get(json_object_get(launch, "grid"), 0)),
                     all = is_product && !t_long() ? n_blocks / SAMPLED : 1;
        json_array_foreach(json_object_get(launch, "buffers"), k, buffer) {
            const char *name = json_string_value(json_object_get(buffer, "buffer"));
            const double bytes = field(buffer, "load_bytes") / 1e6, by_sectors = field(buffer, "load_sectors") * 32 / 1e6,
                         from_memory = field(buffer, "memory_sectors") * 32 / 1e6;
            const bool is_weight = strcmp(name, "weights") == 0;
            if (is_weight) {
                t.weights.bytes += bytes * all;
                t.weights.by_sectors += by_sectors * all;
            } else if (strcmp(name, "cache") == 0) {
                t.cache.bytes += bytes;
                t.cache.by_sectors += by_sectors;
            }
            t.from_memory += from_memory * (is_weight ? all : 1);
            t.stored += field(buffer, "store_sectors") * 32 / 1e6 * all;
        }
    }
    json_decref(counts);
    return t;
}

static void expect_near(const char *what, double got, double ideal) {
    print_message("  %s: %.3f MB, %.4f of the ideal\n", what, got, got / ideal);
    assert_true(got >= 0.999 * ideal && got <= 1.05 * ideal);
}

static void layer_once(enum format f) {
    struct layer l = {f, 0, 0};
    const double begin = seconds();
    simt_set_check(0);
    simt_counts_start();
    const char *line = simt_catch(layer_case, &l, 1);
    simt_set_check(1);
    if (line) fail_msg("%s", line);
    const struct traffic t = traffic_of(simt_counts_json());
    l.weights /= 1e6;
    l.cache /= 1e6;
    print_message("%s: weights %.3f MB, cache %.3f MB (%.1f s)\n", kern_format(f)->name, l.weights, l.cache, seconds() - begin);
    expect_near("weights, asked for", t.weights.bytes, l.weights);
    expect_near("weights, in sectors", t.weights.by_sectors, l.weights);
    expect_near("cache, asked for", t.cache.bytes, l.cache);
    expect_near("cache, in sectors", t.cache.by_sectors, l.cache);
    expect_near("everything that comes from memory", t.from_memory, l.weights + l.cache);
    print_message("  stored: %.3f MB\n", t.stored);
}

static void bf16(void **state) {
    (void)state;
    layer_once(FMT_BF16);
}
static void nvfp4(void **state) {
    (void)state;
    layer_once(FMT_NVFP4);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bf16), cmocka_unit_test(nvfp4)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
