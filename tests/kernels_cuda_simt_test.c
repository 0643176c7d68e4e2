/* The kernels of kernels/cuda but for attention and the products by matrix instructions, against `ref`, to the bit; the instructions against their definition; counts that can be reckoned
 * by hand. */
#include "tests/t.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/self_test.h"
#include "tests/t_simt.h"

static void norm_case(void *rng) {
    static const int widths[] = {1, 15, 17, 576, 1030};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int in_place = 0; in_place < 2; in_place++) {
            int width = widths[w], n_tokens = 3;
            size_t stride = (size_t)width + 3, n = stride * (size_t)n_tokens;
            float *x = random_floats(rng, n, 3), *weight = random_floats(rng, (size_t)width, 1), *want = copy_of(x, n);
            struct kern_norm args = {x, weight, want, stride, stride, n_tokens, width, 1e-5f, NULL, 0};
            kern_ref.norm(whole, &args);
            float *d_x = to_device(x, n * sizeof *x), *d_weight = to_device(weight, (size_t)width * sizeof *x), *d_y = in_place ? d_x : to_device(x, n * sizeof *x);
            args.x = d_x;
            args.weight = d_weight;
            args.y = d_y;
            assert_int_equal(cuda_norm(&args, NULL), cudaSuccess);
            expect_same("norm", d_y, want, n);
            if (!in_place)
                cudaFree(d_x);
            cudaFree(d_weight);
            free(x);
            free(weight);
            free(want);
        }
}

/* A part of a row, where the caller knows the squares of the whole. */
static void norm_of_part_case(void *rng) {
    enum { TOKENS = 2, WIDTH = 40 };
    static const float squares[TOKENS] = {3.5f, 1e-3f};
    float *x = random_floats(rng, TOKENS * WIDTH, 3), *weight = random_floats(rng, WIDTH, 1), *want = copy_of(x, TOKENS * WIDTH);
    struct kern_norm args = {x, weight, want, WIDTH, WIDTH, TOKENS, WIDTH, 1e-5f, squares, 100};
    kern_ref.norm(whole, &args);
    args.x = args.y = to_device(x, TOKENS * WIDTH * sizeof *x);
    args.weight = to_device(weight, WIDTH * sizeof *weight);
    args.squares = to_device(squares, sizeof squares);
    assert_int_equal(cuda_norm(&args, NULL), cudaSuccess);
    expect_same("norm of a part", args.y, want, TOKENS * WIDTH);
    free(x);
    free(weight);
    free(want);
}

/* Vectors of one rank, of 3 : 2 leaves, and of 1 : 2 : 4, with and without what is added once. */
static void sum_case(void *rng) {
    static const struct {
        uint32_t n_leaves;
        int n;
        uint8_t lo[8], hi[8];
    } trees[] = {{1, 1, {0}, {1}}, {12, 1, {0}, {12}}, {5, 2, {0, 3}, {3, 5}}, {7, 5, {0, 1, 2, 4, 6}, {1, 2, 4, 6, 7}}};
    enum { TOKENS = 3, WIDTH = 150, STRIDE = WIDTH + 2, N = TOKENS * STRIDE };
    for (size_t k = 0; k < sizeof trees / sizeof *trees; k++) {
        float *x = random_floats(rng, 8 * N, 1), *residual = random_floats(rng, N, 1), *bias = random_floats(rng, N, 1), *want = copy_of(residual, N);
        struct kern_sum args = {k ? residual : NULL, STRIDE, k == 1 ? NULL : bias, k == 2 ? 0 : WIDTH, trees[k].n, {NULL}, STRIDE, {0}, {0}, trees[k].n_leaves, want, STRIDE, TOKENS, WIDTH};
        for (int v = 0; v < trees[k].n; v++) {
            args.vectors[v] = x + v * N;
            args.vector_lo[v] = trees[k].lo[v];
            args.vector_hi[v] = trees[k].hi[v];
        }
        float *d_y = to_device(want, N * sizeof *want), *d_x = to_device(x, 8 * N * sizeof *x);
        kern_ref.sum(whole, &args);
        for (int v = 0; v < trees[k].n; v++)
            args.vectors[v] = d_x + v * N;
        args.residual = k ? to_device(residual, N * sizeof *residual) : NULL;
        args.bias = k == 1 ? NULL : to_device(bias, N * sizeof *bias);
        args.y = d_y;
        assert_int_equal(cuda_sum(&args, NULL), cudaSuccess);
        expect_same("sum", d_y, want, N);
        free(x);
        free(residual);
        free(bias);
        free(want);
    }
}

static void gate_case(void *rng) {
    static const int widths[] = {80, 1, 255, 576}; /* the first of the clamped kind */
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        size_t width = (size_t)widths[w], stride = width + 5, n = stride * 3;
        float *gate = random_floats(rng, n, 30), *up = random_floats(rng, n, 1), *want = copy_of(up, n);
        static const float special[] = {0.0f, -0.0f, 88.0f, -88.0f, 89.0f, -89.0f, 1e30f, -1e30f};
        memcpy(gate, special, width > 8 ? sizeof special : sizeof *special);
        struct kern_gate args = {gate, up, want, stride, stride, stride, 3, (int)width, w ? KERN_GATE_SILU : KERN_GATE_CLAMPED, 1.702f, 7};
        kern_ref.gate(whole, &args);
        float *d_gate = to_device(gate, n * sizeof *gate), *d_up = to_device(up, n * sizeof *up), *d_y = to_device(up, n * sizeof *up);
        args.gate = d_gate;
        args.up = d_up;
        args.y = d_y;
        assert_int_equal(cuda_gate(&args, NULL), cudaSuccess);
        expect_same("gate", d_y, want, n);
        cudaFree(d_gate);
        cudaFree(d_up);
        free(gate);
        free(up);
        free(want);
    }
}

static void rope_case(void *rng) {
    static const int dims[] = {2, 24, 64, 128};
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++)
        for (int variant = 0; variant < 4; variant++) {
            int dim = dims[k], n_frequencies = variant & 1 ? (dim + 3) / 4 : dim / 2, heads = 5;
            size_t stride = (size_t)(heads * dim) + 7, n = 3 * stride, n_table = (size_t)(3 * 2 * n_frequencies);
            float *x = random_floats(rng, n, 1), *table = random_floats(rng, n_table, 1), *want = copy_of(x, n);
            struct kern_rope args = {want, stride, 3, heads, dim, n_frequencies, variant >= 2, table};
            kern_ref.rope(whole, &args);
            float *d_x = to_device(x, n * sizeof *x), *d_table = to_device(table, n_table * sizeof *table);
            args.x = d_x;
            args.cos_sin = d_table;
            assert_int_equal(cuda_rope(&args, NULL), cudaSuccess);
            expect_same("rope", d_x, want, n);
            cudaFree(d_table);
            free(x);
            free(table);
            free(want);
        }
}

/* Rows 100 … 119 are here; in either layout. */
static void embed_case(void *rng) {
    static const uint64_t ends[] = {96, 300};
    static const int32_t ids[] = {107, 99, 119, 120};
    enum { ROWS = 20, TOKENS = 4, FIRST = 100, COLUMNS = 300, STRIDE = COLUMNS + 2, N = TOKENS * STRIDE };
    for (int variant = 0; variant < 3; variant++) {
        uint32_t segment_begin[64];
        uint8_t segment_columns[64];
        struct kern_matrix m = matrix_of(ROWS, ends, 0, 2, 2, 0, segment_begin, segment_columns);
        m.format = variant == 2 ? FMT_NVFP4 : FMT_BF16;
        m.scale = 0.75f;
        size_t row_bytes = kern_format_row_bytes(m.format, 320), bytes = variant ? cuda_mma_matrix_bytes(&m) : cuda_matrix_bytes(&m);
        unsigned char *rows = (unsigned char *)random_bf16(rng, ROWS * 320), *packed = malloc(bytes), *of_ref = malloc(kern_ref.matrix_bytes(&m));
        assert_non_null(packed);
        assert_non_null(of_ref);
        for (size_t i = 0; i < ROWS * row_bytes && variant == 2; i++)
            rows[i] &= i % 36 < 4 ? 0x3f : 0xff; /* scales of a sensible size */
        float *before = random_floats(rng, N, 1), *want = copy_of(before, N);
        struct kern_pack pack = {&m, 0, ROWS, rows, row_bytes, 0};
        struct kern_embed args = {&m, FIRST, ids, TOKENS, want, STRIDE, 1.5f};
        m.data = of_ref;
        kern_ref.matrix_pack(&pack);
        kern_ref.embed(whole, &args);
        m.data = packed;
        pack.n_rows = 16; /* in two pieces */
        (variant ? cuda_mma_matrix_pack : cuda_matrix_pack)(&pack);
        pack = (struct kern_pack){&m, 16, ROWS - 16, rows + 16 * row_bytes, row_bytes, 0};
        (variant ? cuda_mma_matrix_pack : cuda_matrix_pack)(&pack);
        m.data = to_device(packed, bytes);
        args.ids = to_device(ids, sizeof ids);
        args.y = to_device(before, N * sizeof *before);
        assert_int_equal((variant ? cuda_mma_embed : cuda_embed)(&args, NULL), cudaSuccess);
        expect_same("embed", args.y, want, N);
        cudaFree(m.data);
        free(rows);
        free(packed);
        free(of_ref);
        free(before);
        free(want);
    }
}

static void matmul_once(struct base_rng *rng, uint64_t n_rows, const uint64_t *ends, uint32_t lo, uint32_t n_leaves, uint32_t n_total, uint64_t begin, int n_tokens, bool bias) {
    uint32_t segment_begin[64];
    uint8_t segment_columns[64];
    struct kern_matrix m = matrix_of(n_rows, ends, lo, n_leaves, n_total, begin, segment_begin, segment_columns);
    size_t width = (size_t)(m.columns.end - begin), x_stride = width + 1, y_stride = n_rows + 2, vector_stride = y_stride * (size_t)n_tokens;
    size_t n_y = vector_stride * m.columns.n_vectors, bytes = cuda_matrix_bytes(&m);
    uint16_t *w = random_bf16(rng, n_rows * width), *packed = malloc(bytes);
    float *x = random_floats(rng, x_stride * (size_t)n_tokens, 1), *b = random_floats(rng, n_rows, 1), *before = random_floats(rng, n_y, 1), *want = copy_of(before, n_y);
    m.data = packed;
    const struct kern_pack pack = {&m, 0, n_rows, w, width * sizeof *w, begin};
    cuda_matrix_pack(&pack);
    m.data = w; /* ref keeps the file's rows */
    struct kern_matmul args = {.x = x, .x_stride = x_stride, .n_tokens = n_tokens, .n_parts = 1};
    args.parts[0] = (struct kern_matmul_part){&m, bias ? b : NULL, want, y_stride, vector_stride};
    kern_ref.matmul(whole, &args);

    float *d_x = to_device(x, x_stride * (size_t)n_tokens * sizeof *x), *d_b = to_device(b, n_rows * sizeof *b), *d_y = to_device(before, n_y * sizeof *before);
    m.data = to_device(packed, bytes);
    simt_name(m.data, "weights");
    simt_name(d_x, "x");
    simt_name(d_y, "y");
    args.x = d_x;
    args.parts[0].bias = bias ? d_b : NULL;
    args.parts[0].y = d_y;
    assert_int_equal(cuda_matmul(&args, NULL), cudaSuccess);
    expect_same("matmul", d_y, want, n_y);
    cudaFree(d_x);
    cudaFree(d_b);
    cudaFree(m.data);
    free(w);
    free(packed);
    free(x);
    free(b);
    free(before);
    free(want);
}

static void matmul_case(void *rng) {
    static const uint64_t one[] = {70}, five[] = {64, 96, 160, 161, 200}, inner[] = {96, 160, 200};
    matmul_once(rng, 33, one, 0, 1, 1, 0, 1, true);
    matmul_once(rng, 64, five, 0, 5, 5, 0, 3, true);
    matmul_once(rng, 5, inner, 1, 3, 7, 64, 6, false); /* leaves 1 to 3 of 7: several vectors */
}

/* Numbers that are often equal, some of them infinite or none at all; a row without any number; more wanted than there are. */
static void topk_case(void *rng) {
    static const struct { int width, k; } shapes[] = {{1, 1}, {5, 8}, {1025, 40}, {3000, 3}, {200000, 5}};
    enum { ROWS = 2 };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const int width = shapes[s].width, k = shapes[s].k;
        const size_t stride = (size_t)width + 3, n = ROWS * stride, n_out = (size_t)(ROWS * k);
        float *x = random_floats(rng, n, 1);
        for (size_t i = 0; i < n; i++) {
            const uint32_t what = (uint32_t)base_rng_below(rng, 50);
            x[i] = what == 0                 ? NAN
                   : what == 1               ? -INFINITY
                   : what == 2 && i % 7 == 0 ? INFINITY
                   : what == 3               ? -0.0f
                   : s == 4                  ? x[i]
                                             : floorf(2 * x[i]);
            if (s == 2 && i < stride) x[i] = i % 2 ? NAN : -INFINITY;
        }
        struct kern_candidate *want = malloc(n_out * sizeof *want), *got = malloc(n_out * sizeof *got), *d_out;
        assert_non_null(want);
        assert_non_null(got);
        struct kern_topk args = {x, stride, ROWS, width, k, 1000, want};
        kern_ref.topk(whole, &args);
        float *d_x = to_device(x, (n - 3) * sizeof *x);
        assert_int_equal(cudaMalloc((void **)&d_out, n_out * sizeof *got), cudaSuccess);
        args.logits = d_x;
        args.out = d_out;
        assert_int_equal(cuda_topk(&args, NULL), cudaSuccess);
        assert_int_equal(cudaMemcpy(got, d_out, n_out * sizeof *got, cudaMemcpyDeviceToHost), cudaSuccess);
        for (size_t i = 0; i < n_out; i++)
            if (memcmp(&got[i], &want[i], sizeof *got) != 0)
                fail_msg("top-k: width %d, candidate %d of %d is (%.9g, %d), ref has (%.9g, %d)", width, (int)i, k, (double)got[i].value,
                         (int)got[i].id, (double)want[i].value, (int)want[i].id);
        cudaFree(d_x);
        cudaFree(d_out);
        free(x);
        free(want);
        free(got);
    }
}

static void same_bits_as_ref(void **state) {
    (void)state;
    static void (*const cases[])(void *) = {norm_case, norm_of_part_case, sum_case, gate_case, rope_case, embed_case, matmul_case, topk_case};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (uint64_t seed = 1; seed <= (t_long() ? 20 : 1); seed++) {
            struct base_rng r;
            base_rng_init(&r, t_seed());
            double begin = seconds();
            const char *line = simt_catch(cases[i], &r, seed);
            if (line)
                fail_msg("case %d: %s", (int)i, line);
            if (seed == 1)
                print_message("case %d: %.0f ms\n", (int)i, 1e3 * (seconds() - begin));
        }
}

/* ---- counts --------------------------------------------------------------------------------------------------------------------------------------------- */

static void counted(void *rng) {
    static const uint64_t ends[] = {64, 128};
    matmul_once(rng, 64, ends, 0, 2, 2, 0, 1, false);
}

/* 64 rows × 128 columns of BF16, once: 16,384 bytes in 512 sectors. x by two blocks of rows: 2 × 512 bytes. 8,192 multiply-adds. */
static void counts_by_hand(void **state) {
    (void)state;
    needs_harness();
    char *first = NULL;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct base_rng r;
        base_rng_init(&r, t_seed());
        simt_counts_start();
        assert_null(simt_catch(counted, &r, seed));
        const char *json = simt_counts_json();
        if (seed == 1) {
            print_message("%s", json);
            assert_non_null(strstr(json, "{\"buffer\": \"weights\", \"load_bytes\": 16384, \"load_sectors\": 512, \"store_bytes\": 0, "
                                         "\"store_sectors\": 0, \"memory_sectors\": 512}"));
            assert_non_null(strstr(
                json,
                "{\"buffer\": \"x\", \"load_bytes\": 1024, \"load_sectors\": 32, \"store_bytes\": 0, \"store_sectors\": 0, \"memory_sectors\": 16}"));
            assert_non_null(strstr(json, "\"kernel\": \"matmul<n_tokens>\", \"grid\": [2, 1, 1], \"block\": [64, 1, 1]"));
            assert_non_null(strstr(json, "\"barriers\": 2, \"fma\": 8192, \"mma\": 0,"));
            assert_non_null(strstr(json, "\"bank_conflicts\": 0,"));
            first = strdup(json);
        }
        assert_string_equal(json, first);
    }
    free(first);
}

/* ---- instructions --------------------------------------------------------------------------------------------------------------------------------------- */

static void self_test_case(void *arg) {
    const struct cuda_self_test *test = arg;
    uint32_t *bad, got[32];
    assert_int_equal(cudaMalloc((void **)&bad, sizeof got), cudaSuccess);
    assert_int_equal(test->launch(bad, NULL), cudaSuccess);
    assert_int_equal(cudaMemcpy(got, bad, sizeof got, cudaMemcpyDeviceToHost), cudaSuccess);
    for (int l = 0; l < 32; l++)
        if (got[l])
            fail_msg("%s: lane %d has %d wrong results", test->name, l, (int)got[l]);
}

/* Each instruction's emulation against its definition, however the terms are added up. (On a GPU: tests/simt/on_device.cu, which knows what that one has.) */
static void self_test_in_every_model(void **state) {
    (void)state;
    needs_harness();
    for (const struct cuda_self_test *test = cuda_self_tests; test->name; test++)
        for (size_t i = 0; i < 3; i++)
            for (uint64_t seed = 1; seed <= (t_long() ? 100 : 5); seed++) {
                assert_int_equal(simt_set_accumulation(t_models[i]), 0);
                const char *line = simt_catch(self_test_case, (void *)(uintptr_t)test, seed);
                if (line)
                    fail_msg("%s: %s", test->name, line);
            }
    assert_int_equal(simt_set_accumulation("lucky"), -1);
    assert_int_equal(simt_set_accumulation("exact"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_as_ref),
        cmocka_unit_test(counts_by_hand),
        cmocka_unit_test(self_test_in_every_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
