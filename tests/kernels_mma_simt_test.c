/* Products by matrix instructions (kernels/cuda/mma_matmul.cu), in the harness with its detectors on, under each model of how an instruction adds up: with whole numbers the bits of
 * `ref`, with any numbers a sum's error; the same bits for any number of tokens and for one rank and two; bytes as reckoned by hand. */
#include "tests/t.h"

#include <math.h>
#include <stdio.h>

#include "kernels/cuda/cuda.h"
#include "tests/t_simt.h"

struct shape {
    uint64_t n_rows, begin, ends[CUDA_MMA_LEAVES]; /* of the local leaves */
    uint32_t lo, n_leaves, n_total;
    int n_tokens;
    bool bias;
};

/* A product's inputs, and what it is to give. */
struct product {
    enum format format;
    struct shape s;
    struct kern_matrix m; /* its data: the blocks of the file, as ref keeps them */
    uint32_t segment_begin[64];
    uint8_t segment_columns[64];
    unsigned char *rows; /* the file's: all columns from 0 on */
    size_t row_bytes, width;
    float *x, *bias; /* x: [n_tokens, width] */
};

static void *must(void *p) {
    assert_non_null(p);
    return p;
}

/* Weights of 64 columns that are whole numbers (times a power of two), or any. */
static void fill_block(struct base_rng *r, enum format f, bool whole_numbers, unsigned char *block) {
    static const unsigned char powers[] = {0x30, 0x38, 0x40}; /* 0.5, 1, 2 */
    for (int i = 0; i < 64 && f == FMT_BF16; i++) {
        uint16_t w = kern_f32_to_bf16(whole_numbers ? (float)base_rng_below(r, 17) - 8 : base_rng_normal(r));
        memcpy(block + 2 * i, &w, sizeof w);
    }
    if (f == FMT_NVFP4) {
        for (int i = 0; i < 36; i++)
            block[i] = (unsigned char)base_rng_below(r, 256);
        for (int i = 0; i < 4; i++)
            block[i] = whole_numbers ? powers[base_rng_below(r, 3)] : (unsigned char)(base_rng_below(r, 0x50) | (i & 1 ? 0x80 : 0));
        if (base_rng_below(r, 8) == 0)
            block[0] = 0x7f;
    }
}

static void product_init(struct product *p, struct base_rng *r, enum format f, const struct shape *s, bool whole_numbers) {
    *p = (struct product){.format = f, .s = *s};
    p->m = matrix_of(s->n_rows, s->ends, s->lo, s->n_leaves, s->n_total, s->begin, p->segment_begin, p->segment_columns);
    p->m.format = f;
    p->m.scale = f == FMT_NVFP4 ? 0.25f : 1;
    uint64_t padded = (p->m.columns.end + 63) / 64 * 64;
    p->width = (size_t)(p->m.columns.end - s->begin);
    p->row_bytes = kern_format_row_bytes(f, padded);
    p->rows = must(malloc(s->n_rows * p->row_bytes));
    for (size_t i = 0; i < s->n_rows * padded / 64; i++)
        fill_block(r, f, whole_numbers, p->rows + i * kern_format_row_bytes(f, 64));
    p->x = random_floats(r, (size_t)s->n_tokens * p->width, 1);
    for (size_t i = 0; i < (size_t)s->n_tokens * p->width && whole_numbers; i++)
        p->x[i] = (float)base_rng_below(r, 9) - 4;
    p->bias = random_floats(r, s->n_rows, 1);
    for (size_t i = 0; i < s->n_rows && whole_numbers; i++)
        p->bias[i] = (float)i;
}

static void product_release(struct product *p) {
    free(p->rows);
    free(p->x);
    free(p->bias);
}

static struct kern_pack pack_of(const struct product *p, struct kern_matrix *m) {
    return (struct kern_pack){.matrix = m, .n_rows = p->s.n_rows, .src = p->rows, .row_stride_bytes = p->row_bytes};
}

static size_t size_of_y(const struct product *p) { return p->m.columns.n_vectors * (size_t)p->s.n_tokens * p->s.n_rows; }

static struct kern_matmul args_of(const struct product *p, struct kern_matrix *m, const float *x, float *y, const float *bias, int n_tokens) {
    struct kern_matmul args = {.x = x, .x_stride = p->width, .n_tokens = n_tokens, .n_parts = 1};
    args.parts[0] = (struct kern_matmul_part){m, p->s.bias ? bias : NULL, y, p->s.n_rows, p->s.n_rows * (size_t)n_tokens};
    return args;
}

/* Of tokens first … first + n − 1; y is [vectors][n][rows], malloc'ed. */
static float *run(const struct product *p, int first, int n) {
    struct kern_matrix m = p->m;
    size_t bytes = cuda_mma_matrix_bytes(&m), n_x = (size_t)n * p->width, n_y = m.columns.n_vectors * (size_t)n * p->s.n_rows;
    m.data = must(malloc(bytes));
    const struct kern_pack pack = pack_of(p, &m);
    cuda_mma_matrix_pack(&pack);
    void *packed = m.data;
    m.data = to_device(packed, bytes);
    float *x = to_device(p->x + (size_t)first * p->width, n_x * sizeof(float)), *bias = to_device(p->bias, p->s.n_rows * sizeof(float)), *y, *got = must(malloc(n_y * sizeof(float)));
    assert_int_equal(cudaMalloc((void **)&y, n_y * sizeof(float)), cudaSuccess);
    struct kern_matmul args = args_of(p, &m, x, y, bias, n);
    assert_int_equal(cudaMalloc(&args.scratch, cuda_mma_scratch_bytes(&m.columns, n)), cudaSuccess);
    simt_name(m.data, "weights");
    simt_name(args.scratch, "prepared");
    simt_name(y, "y");
    assert_int_equal(cuda_mma_prepare(&args, NULL), cudaSuccess);
    assert_int_equal(cuda_mma_matmul(&args, NULL), cudaSuccess);
    assert_int_equal(cudaMemcpy(got, y, n_y * sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
    free(packed);
    void *const held[] = {m.data, x, bias, y, args.scratch};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        assert_int_equal(cudaFree(held[i]), cudaSuccess);
    return got;
}

/* What ref has; with x and weights replaced by their sizes: the yardstick of an error. */
static float *reference(const struct product *p, const float *x) {
    struct kern_matrix m = p->m;
    m.data = must(malloc(kern_ref.matrix_bytes(&m) + 1));
    const struct kern_pack pack = pack_of(p, &m);
    kern_ref.matrix_pack(&pack);
    float *y = must(malloc(size_of_y(p) * sizeof(float)));
    struct kern_matmul args = args_of(p, &m, x, y, p->bias, p->s.n_tokens);
    kern_ref.matmul(whole, &args);
    free(m.data);
    return y;
}

static const enum format formats[] = {FMT_BF16, FMT_NVFP4};
/* rows and columns short of a tile, leaves that end anywhere, a part of the leaves with several vectors, more tokens than one launch takes at once */
static const struct shape shapes[] = {
    {1, 0, {1}, 0, 1, 1, 1, true},
    {40, 0, {200}, 0, 1, 1, 9, true},
    {16, 0, {64, 96, 160, 161, 200}, 0, 5, 5, 3, true},
    {21, 96, {160, 200, 331}, 1, 3, 7, 20, false},
    {33, 0, {64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768}, 0, 12, 12, 70, false},
};

static void whole_numbers_case(void *rng) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int f = 0; f < 2; f++) {
            struct product p;
            product_init(&p, rng, formats[f], &shapes[i], true);
            float *want = reference(&p, p.x), *got = run(&p, 0, p.s.n_tokens);
            for (size_t k = 0; k < size_of_y(&p); k++)
                if (memcmp(want + k, got + k, sizeof *got) != 0)
                    fail_msg("%s, shape %d: element %d is %.9g, ref has %.9g", kern_format(formats[f])->name, (int)i, (int)k, (double)got[k], (double)want[k]);
            free(want);
            free(got);
            product_release(&p);
        }
}

/* Each instruction may lose 17 times 2⁻²⁴ of its largest term; the reference rounds once a column. */
static void any_numbers_case(void *rng) {
    const struct shape s = {24, 0, {448}, 0, 1, 1, 5, false};
    for (int f = 0; f < 2; f++) {
        struct product p;
        product_init(&p, rng, formats[f], &s, false);
        float *got = run(&p, 0, s.n_tokens);
        for (size_t i = 0; i < (size_t)s.n_tokens * p.width; i++)
            p.x[i] = kern_bf16_to_f32(kern_f32_to_bf16(p.x[i]));
        float *want = reference(&p, p.x), row[448];
        for (size_t k = 0; k < size_of_y(&p); k++) {
            double size = 0;
            kern_format_dequantise(formats[f], p.rows + k % s.n_rows * p.row_bytes, 448, row);
            for (size_t c = 0; c < 448; c++)
                size += fabs((double)row[c] * (double)p.x[k / s.n_rows * p.width + c]) * (double)p.m.scale;
            if (!(fabs((double)got[k] - (double)want[k]) <= size * (448.0 / 16 * 17 + 448) / 0x1p24))
                fail_msg("%s: element %d is %.9g, ref has %.9g", kern_format(formats[f])->name, (int)k, (double)got[k], (double)want[k]);
        }
        free(want);
        free(got);
        product_release(&p);
    }
}

static void same_bits_case(void *rng) {
    for (int f = 0; f < 2; f++) {
        struct shape s = {20, 0, {64, 96, 160, 224, 264}, 0, 5, 5, 41, false};
        struct product p;
        product_init(&p, rng, formats[f], &s, false);
        float *all = run(&p, 0, s.n_tokens);

        /* ---- a few tokens at a time */
        static const int pieces[][2] = {{0, 1}, {1, 8}, {9, 17}, {26, 15}};
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
            float *few = run(&p, pieces[i][0], pieces[i][1]);
            assert_memory_equal(few, all + (size_t)pieces[i][0] * s.n_rows, (size_t)pieces[i][1] * s.n_rows * sizeof(float));
            free(few);
        }

        /* ---- two ranks: leaves 0 … 2 and 3, 4 */
        struct kern_sum sum = {.vector_token_stride = s.n_rows, .n_leaves = 5, .y_stride = s.n_rows, .n_tokens = s.n_tokens, .width = (int)s.n_rows};
        float *vectors[2], *merged = must(malloc((size_t)s.n_tokens * s.n_rows * sizeof(float)));
        for (uint32_t rank = 0; rank < 2; rank++) {
            const uint32_t lo = rank ? 3 : 0, hi = rank ? 5 : 3;
            struct product part = p;
            part.s.begin = lo ? s.ends[lo - 1] : 0;
            part.m = matrix_of(s.n_rows, s.ends + lo, lo, hi - lo, 5, part.s.begin, part.segment_begin, part.segment_columns);
            part.m.format = p.format;
            part.m.scale = p.m.scale;
            part.width = (size_t)(part.m.columns.end - part.s.begin);
            part.x = must(malloc((size_t)s.n_tokens * part.width * sizeof(float)));
            for (size_t t = 0; t < (size_t)s.n_tokens; t++)
                memcpy(part.x + t * part.width, p.x + t * p.width + part.s.begin, part.width * sizeof(float));
            vectors[rank] = run(&part, 0, s.n_tokens);
            free(part.x);
            assert_int_equal(part.m.columns.n_vectors, 1);
            sum.vectors[rank] = vectors[rank];
            sum.vector_lo[rank] = (uint8_t)lo;
            sum.vector_hi[rank] = (uint8_t)hi;
        }
        sum.n_vectors = 2;
        sum.y = merged;
        kern_ref.sum(whole, &sum);
        assert_memory_equal(merged, all, (size_t)s.n_tokens * s.n_rows * sizeof(float));
        free(vectors[0]);
        free(vectors[1]);
        free(merged);
        free(all);
        product_release(&p);
    }
}

static void in_every_model(void (*one)(void *)) {
    for (size_t i = 0; i < 3; i++)
        for (uint64_t seed = 1; seed <= (t_long() ? 20 : 1); seed++) {
            struct base_rng r;
            base_rng_init(&r, t_seed());
            assert_int_equal(simt_set_accumulation(t_models[i]), 0);
            const double begin = seconds();
            const char *line = simt_catch(one, &r, seed);
            if (line)
                fail_msg("%s: %s", t_models[i], line);
            if (seed == 1)
                print_message("%s: %.0f ms\n", t_models[i], 1e3 * (seconds() - begin));
        }
    assert_int_equal(simt_set_accumulation("exact"), 0);
}

static void whole_numbers(void **state) {
    (void)state;
    in_every_model(whole_numbers_case);
}

static void any_numbers(void **state) {
    (void)state;
    in_every_model(any_numbers_case);
}

static void same_bits(void **state) {
    (void)state;
    in_every_model(same_bits_case);
}

static void counted_case(void *arg) {
    const struct shape s = {32, 0, {512, 1024}, 0, 2, 2, 1, false};
    struct base_rng r;
    base_rng_init(&r, t_seed());
    struct product p;
    product_init(&p, &r, *(enum format *)arg, &s, false);
    free(run(&p, 0, 1));
    product_release(&p);
}

/* 32 rows × 1024 columns, a token: each weight once (32,768 · 2 bytes; 4.5 bits); prepared x of one token
 * (2,048 bytes) once for each of the two tiles of rows. */
static void counts_by_hand(void **state) {
    (void)state;
    needs_harness();
    static const char *const weights[] = {"{\"buffer\": \"weights\", \"load_bytes\": 65536, \"load_sectors\": 2048,",
                                          "{\"buffer\": \"weights\", \"load_bytes\": 18432, \"load_sectors\": 576,"};
    for (int f = 0; f < 2; f++) {
        enum format format = formats[f];
        simt_counts_start();
        assert_null(simt_catch(counted_case, &format, 1));
        const char *json = strstr(simt_counts_json(), "\"kernel\": \"(mma_matmul");
        assert_non_null(json);
        print_message("%s", json);
        assert_non_null(strstr(json, weights[f]));
        assert_non_null(strstr(json, "{\"buffer\": \"prepared\", \"load_bytes\": 4096, \"load_sectors\": 128,"));
        assert_non_null(strstr(json, "\"fma\": 0, \"mma\": 128,"));
        assert_non_null(strstr(json, "\"bank_conflicts\": 0,"));
    }
}

/* 65 tokens are two tiles, and each reads all weights: 512 rows × 1024 columns of BF16, 32,768 sectors. Where the L2 holds them they come from memory once; with 1 MiB of it, which they just
 * fill, they are gone when the second tile begins with the first of them. */
static void reread_case(void *unused) {
    (void)unused;
    const struct shape s = {512, 0, {1024}, 0, 1, 1, 65, false};
    struct base_rng r;
    base_rng_init(&r, t_seed());
    struct product p;
    product_init(&p, &r, FMT_BF16, &s, true);
    free(run(&p, 0, s.n_tokens));
    product_release(&p);
}

static void from_memory(void **state) {
    (void)state;
    needs_harness();
    static const char *const devices[] = {"gb10", "tiny"},
                             *const want[] = {"\"load_sectors\": 65536, \"store_bytes\": 0, \"store_sectors\": 0, \"memory_sectors\": 32768}",
                                              "\"load_sectors\": 65536, \"store_bytes\": 0, \"store_sectors\": 0, \"memory_sectors\": 65536}"};
    for (int d = 1; d >= 0; d--) {
        char *first = NULL;
        assert_int_equal(simt_set_device(devices[d]), 0);
        simt_set_check(0);
        for (uint64_t seed = 1; seed <= 2; seed++) {
            simt_counts_start();
            assert_null(simt_catch(reread_case, NULL, seed));
            const char *json = simt_counts_json();
            if (!strstr(json, want[d])) fail_msg("%s: %s", devices[d], json);
            if (first)
                assert_string_equal(first, json);
            else
                first = strdup(json);
        }
        simt_set_check(1);
        free(first);
    }
}

static void refused(void **state) {
    (void)state;
    uint32_t segment_begin[64];
    uint8_t segment_columns[64];
    const uint64_t ends[13] = {64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832};
    struct kern_matrix m = matrix_of(16, ends, 0, 13, 13, 0, segment_begin, segment_columns);
    struct kern_matmul args = {.n_tokens = 1, .n_parts = 1, .parts = {{.matrix = &m}}};
    assert_int_equal(cuda_mma_matmul(&args, NULL), cudaErrorInvalidValue);
    assert_int_equal(cuda_mma_prepare(&args, NULL), cudaErrorInvalidValue);
    m = matrix_of(16, ends, 0, 1, 1, 0, segment_begin, segment_columns);
    m.format = FMT_Q4_1;
    assert_int_equal(cuda_mma_matmul(&args, NULL), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_numbers),  cmocka_unit_test(any_numbers), cmocka_unit_test(same_bits),
        cmocka_unit_test(counts_by_hand), cmocka_unit_test(from_memory), cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
