/* Stored formats: the table, errors by name, single numbers over all 2^16 halves and around every rounding, E4M3 by PyTorch, blocks by hand and by the gguf
 * package. */
#include "tests/t.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/formats.h"
#include "tests/golden/e4m3.h"
#include "tests/golden/formats.h"

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static void table(void **state) {
    (void)state;
    for (int i = 0; i < FMT_COUNT; i++) {
        enum format f = FMT_COUNT;
        struct err e = {0};
        const struct format_info *info = kern_format((enum format)i);
        assert_non_null(info->name);
        if (info->gguf_type >= 0) {
            T_OK(kern_format_from_gguf((uint32_t)info->gguf_type, &f, &e), &e);
            assert_int_equal(f, i);
        }
        if (info->safetensors) {
            T_OK(kern_format_from_safetensors(info->safetensors, &f, &e), &e);
            assert_int_equal(f, i);
        }
        assert_int_equal(kern_format_row_bytes((enum format)i, 0), 0);
        assert_int_equal(kern_format_row_bytes((enum format)i, 768), 768 / info->block_columns * info->block_bytes);
        assert_int_equal(kern_format_row_bytes((enum format)i, UINT64_MAX / info->block_columns * info->block_columns), 0);
        assert_int_equal(kern_format_row_bytes((enum format)i, 97), info->block_columns == 1 ? 97 * info->block_bytes : 0);
    }
}

static void names(void **state) {
    (void)state;
    enum format f = FMT_COUNT;
    struct err e = {0};
    for (size_t i = 0; i < sizeof golden_types / sizeof golden_types[0]; i++) { /* all that the gguf package knows */
        memset(&e, 0, sizeof e);
        enum st got = kern_format_from_gguf(golden_types[i].type, &f, &e);
        if (got == ST_OK)
            assert_string_equal(kern_format(f)->name, golden_types[i].name);
        else
            t_expect_err_contains(ST_UNSUPPORTED, got, &e, golden_types[i].name);
    }
    t_expect_err_contains(ST_UNSUPPORTED, kern_format_from_gguf(10, &f, &e), &e, "Q2_K (type 10) is not supported yet; known: F32, F16, BF16, Q8_0, Q4_1, Q4_0, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, MXFP4, NVFP4");
    t_expect_err_contains(ST_UNSUPPORTED, kern_format_from_gguf(4000000000u, &f, &e), &e, "type 4000000000");
    t_expect_err_contains(ST_UNSUPPORTED, kern_format_from_safetensors("F8_E4M3", &f, &e), &e, "F8_E4M3 is not supported yet; known: F32, F16, BF16");
    t_expect_err_contains(ST_UNSUPPORTED, kern_format_from_safetensors("Q4_1", &f, &e), &e, "'Q4_1' is no safetensors dtype");
    assert_int_equal(kern_format_from_gguf(10, &f, NULL), ST_UNSUPPORTED);
}

/* Value of a half by its definition */
static double half_value(uint32_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent == 0 ? ldexp(mantissa, -24) : exponent == 31 ? (mantissa ? NAN : INFINITY) : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -v : v;
}

static void halves(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = kern_f16_to_f32((uint16_t)h);
        double v = half_value(h);
        if (isnan(v)) {
            assert_true(isnan(f));
            assert_true(isnan(kern_f16_to_f32(kern_f32_to_f16(f))));
            continue;
        }
        assert_true((double)f == v && !signbit(f) == !signbit(v));
        assert_int_equal(kern_f32_to_f16(f), h);
        /* between this half and the next: the middle goes to the even one, its neighbours to their sides */
        if ((h & 0x7fff) < 0x7bff) {
            float next = kern_f16_to_f32((uint16_t)(h + 1)), middle = (f + next) / 2;
            assert_int_equal(kern_f32_to_f16(middle), h & 1 ? h + 1 : h);
            assert_int_equal(kern_f32_to_f16(nextafterf(middle, f)), h);
            assert_int_equal(kern_f32_to_f16(nextafterf(middle, next)), h + 1);
        }
    }
    assert_int_equal(kern_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(kern_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(kern_f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(kern_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(kern_f32_to_f16(1e-30f), 0);
    assert_int_equal(kern_f32_to_f16(-0.0f), 0x8000);
}

static void brain_floats(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = kern_bf16_to_f32((uint16_t)h);
        if (isnan(f)) {
            assert_true(isnan(kern_bf16_to_f32(kern_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(bits_of(f), h << 16);
        assert_int_equal(kern_f32_to_bf16(f), h);
        if ((h & 0x7fff) < 0x7f80) {
            assert_int_equal(kern_f32_to_bf16(float_of(h << 16 | 0x8000)), h & 1 ? h + 1 : h);
            assert_int_equal(kern_f32_to_bf16(float_of(h << 16 | 0x7fff)), h);
            assert_int_equal(kern_f32_to_bf16(float_of(h << 16 | 0x8001)), h + 1);
        }
    }
    assert_true(isnan(kern_bf16_to_f32(kern_f32_to_bf16(float_of(0x7f800001))))); /* a NaN whose payload would be cut off */
}

/* The code of pattern h by runs of them */
#define EXPECT_RUNS(golden, to_f32)                                                                                                                      \
    for (uint32_t h = 0, i = 0; h < 65536; h++) {                                                                                                        \
        i += i + 1 < sizeof golden / sizeof golden[0] && golden[i + 1].first == h;                                                                       \
        if (kern_f32_to_e4m3(to_f32((uint16_t)h)) != golden[i].code)                                                                                     \
            fail_msg(#golden ": pattern %04x gives %02x, PyTorch says %02x", h, kern_f32_to_e4m3(to_f32((uint16_t)h)), golden[i].code);                  \
    }

static void e4m3_by_torch(void **state) {
    (void)state;
    EXPECT_RUNS(golden_e4m3_f16, kern_f16_to_f32)
    EXPECT_RUNS(golden_e4m3_bf16, kern_bf16_to_f32)
    for (size_t i = 0; i < sizeof golden_e4m3_f32 / sizeof golden_e4m3_f32[0]; i++)
        if (kern_f32_to_e4m3(float_of(golden_e4m3_f32[i].bits)) != golden_e4m3_f32[i].code)
            fail_msg("%.9g gives %02x, PyTorch says %02x", (double)float_of(golden_e4m3_f32[i].bits), kern_f32_to_e4m3(float_of(golden_e4m3_f32[i].bits)), golden_e4m3_f32[i].code);
    for (uint32_t code = 0; code < 256; code++) {
        uint8_t byte = (uint8_t)code;
        float y;
        kern_format_dequantise(FMT_E4M3, &byte, 1, &y);
        if (isnan(float_of(golden_e4m3_values[code])) ? !isnan(y) : bits_of(y) != golden_e4m3_values[code])
            fail_msg("%02x is %.9g, PyTorch says %.9g", code, (double)y, (double)float_of(golden_e4m3_values[code]));
        assert_int_equal(kern_f32_to_e4m3(y), code);
    }
    assert_int_equal(kern_f32_to_e4m3(float_of(0x7f800001)), 0x7f);
    assert_int_equal(kern_f32_to_e4m3(INFINITY), 0x7e);
}

/* What a loader puts together: F32 scales, then codes. */
static void joined_blocks_by_hand(void **state) {
    (void)state;
    const float d = 0.3f, m = -0.7f;
    float y[64];
    uint8_t block[2 * 40] = {0};
    /* FP8: two blocks, each with its own scale */
    memcpy(block, &d, 4);
    memcpy(block + 36, &m, 4);
    block[4] = 0x7e, block[5] = 0x81, block[35] = 0xb8; /* 448, −2^−9, −1 */
    block[40] = 0x38;
    kern_format_dequantise(FMT_FP8, block, 64, y);
    assert_true(y[0] == d * 448 && y[1] == -d / 512 && y[2] == 0 && y[31] == -d && y[32] == m && y[63] == 0);
    /* nibbles: low ones are columns 0–15 */
    memset(block, 0, sizeof block);
    memcpy(block, &d, 4);
    block[4] = 0xf1, block[19] = 0x2c;
    kern_format_dequantise(FMT_INT4, block, 32, y);
    assert_true(y[0] == d * -7 && y[16] == d * 7 && y[15] == d * 4 && y[31] == d * -6 && y[1] == d * -8);
    memcpy(block + 4, &m, 4);
    block[8] = 0xf1, block[23] = 0x2c;
    kern_format_dequantise(FMT_INT4_ZERO, block, 32, y);
    const float products[] = {d * 15, d * 12, d * 2}; /* rounded before m is added */
    assert_true(y[0] == d + m && y[16] == products[0] + m && y[15] == products[1] + m && y[31] == products[2] + m && y[1] == m);
    /* bytes */
    memset(block, 0, sizeof block);
    memcpy(block, &d, 4);
    block[4] = 0x80, block[35] = 127;
    kern_format_dequantise(FMT_INT8, block, 32, y);
    assert_true(y[0] == d * -128 && y[1] == 0 && y[31] == d * 127);
    memcpy(block + 4, &m, 4);
    block[8] = 0x80, block[39] = 3;
    kern_format_dequantise(FMT_INT8_ZERO, block, 32, y);
    const float product = d * 3;
    assert_true(y[0] == d * -128 + m && y[1] == m && y[31] == product + m);
}

static void blocks_by_hand(void **state) {
    (void)state;
    float y[32];
    uint8_t q8[34] = {0x00, 0x38}; /* d = 0.5 */
    q8[2] = 0x80;
    q8[3] = 127;
    q8[33] = 3;
    kern_format_dequantise(FMT_Q8_0, q8, 32, y);
    assert_true(y[0] == -64.0f && y[1] == 63.5f && y[2] == 0.0f && y[31] == 1.5f);
    uint8_t q4[20] = {0x00, 0x3c, 0x00, 0xc0}; /* d = 1, m = −2 */
    q4[4] = 0xf1;                              /* column 0: 1, column 16: 15 */
    q4[19] = 0x2c;                             /* column 15: 12, column 31: 2 */
    kern_format_dequantise(FMT_Q4_1, q4, 32, y);
    assert_true(y[0] == -1.0f && y[16] == 13.0f && y[15] == 10.0f && y[31] == 0.0f && y[1] == -2.0f);
    /* part of a block writes no more than it was asked for */
    y[5] = 42;
    kern_format_dequantise(FMT_Q4_1, q4, 5, y);
    assert_true(y[5] == 42.0f);
}

static void blocks_by_gguf(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof golden_formats / sizeof golden_formats[0]; i++) {
        enum format f = FMT_COUNT;
        struct err e = {0};
        T_OK(kern_format_from_gguf(golden_formats[i].type, &f, &e), &e);
        float *y = t_guard_alloc(sizeof *y * golden_formats[i].n_columns);
        kern_format_dequantise(f, golden_formats[i].blocks, golden_formats[i].n_columns, y);
        for (uint32_t c = 0; c < golden_formats[i].n_columns; c++)
            if (bits_of(y[c]) != golden_formats[i].values[c])
                fail_msg("%s, column %u: %.9g, gguf says %.9g", kern_format(f)->name, c, (double)y[c], (double)float_of(golden_formats[i].values[c]));
        t_guard_free(y);
    }
}

/* Every code beside every larger one, in whole numbers. */
static void e4m3_as_int8(void **state) {
    (void)state;
    for (int largest = 0; largest < 0x7f; largest++)
        for (int code = 0; code <= largest; code++) {
            uint8_t codes[32] = {(uint8_t)largest, (uint8_t)code, (uint8_t)(code | 0x80)};
            int8_t q[32];
            assert_int_equal(kern_e4m3_to_int8(codes, q), largest);
            const int64_t a = (int64_t)(kern_e4m3_to_f32((uint8_t)largest) * 512), v = (int64_t)(kern_e4m3_to_f32((uint8_t)code) * 512);
            int64_t want = a ? 127 * v / a : 0;
            const int64_t rest = a ? 127 * v % a : 0;
            want += 2 * rest > a || (2 * rest == a && want % 2 && a);
            assert_int_equal(q[0], largest ? 127 : 0);
            assert_int_equal(q[1], want);
            assert_int_equal(q[2], -want);
            assert_int_equal(q[3], 0);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(e4m3_as_int8), cmocka_unit_test(table),        cmocka_unit_test(names),          cmocka_unit_test(halves),
        cmocka_unit_test(brain_floats), cmocka_unit_test(blocks_by_hand), cmocka_unit_test(blocks_by_gguf),
        cmocka_unit_test(e4m3_by_torch), cmocka_unit_test(joined_blocks_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
