/* Encoders against the bytes of compressed-tensors and gguf (tests/golden/make_encode.py), and against the decoders. */
#include "kernels/encode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/formats.h"
#include "tests/golden/encode.h"
#include "tests/t.h"

enum { ROWS = GOLDEN_ENCODE_ROWS, COLUMNS = GOLDEN_ENCODE_COLUMNS };

static const float *row(int i)
{
    static float x[ROWS * COLUMNS];
    memcpy(x, golden_encode_input, sizeof x);
    return x + (size_t)i * COLUMNS;
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint32_t to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* Which row and byte differ, not only that some do. */
static void check_row(const char *what, int i, const uint8_t *ours, const uint8_t *golden, size_t bytes_per_row)
{
    for (size_t k = 0; k < bytes_per_row; k++)
        if (ours[k] != golden[(size_t)i * bytes_per_row + k])
            fail_msg("%s: row %d, byte %zu: %02x, not %02x", what, i, k, ours[k], golden[(size_t)i * bytes_per_row + k]);
}

static void nvfp4_is_compressed_tensors(void **state)
{
    (void)state;
    uint8_t codes[COLUMNS / 2], scales[COLUMNS / 16];
    const float global = kern_encode_nvfp4_global(kern_encode_amax(row(0), (size_t)ROWS * COLUMNS));
    assert_int_equal(to_bits(global), golden_encode_nvfp4_global[0]);
    for (int i = 0; i < ROWS; i++) {
        kern_encode_nvfp4(row(i), COLUMNS, global, codes, scales);
        check_row("scales", i, scales, golden_encode_nvfp4_scales, sizeof scales);
        check_row("codes", i, codes, golden_encode_nvfp4_codes, sizeof codes);
    }
    for (int i = 0; i < ROWS; i++) {
        const float own = kern_encode_nvfp4_global(kern_encode_amax(row(i), COLUMNS));
        assert_int_equal(to_bits(own), golden_encode_nvfp4_each_global[i]);
        kern_encode_nvfp4(row(i), COLUMNS, own, codes, scales);
        check_row("own scales", i, scales, golden_encode_nvfp4_each_scales, sizeof scales);
        check_row("own codes", i, codes, golden_encode_nvfp4_each_codes, sizeof codes);
    }
}

static void mxfp4_is_compressed_tensors(void **state)
{
    (void)state;
    uint8_t codes[COLUMNS / 2], scales[COLUMNS / 32];
    for (int i = 0; i < ROWS; i++) {
        kern_encode_mxfp4(row(i), COLUMNS, codes, scales);
        check_row("scales", i, scales, golden_encode_mxfp4_scales, sizeof scales);
        check_row("codes", i, codes, golden_encode_mxfp4_codes, sizeof codes);
    }
}

static void fp8_is_compressed_tensors(void **state)
{
    (void)state;
    uint8_t codes[COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        assert_int_equal(to_bits(kern_encode_fp8(row(i), COLUMNS, codes)), golden_encode_fp8_scales[i]);
        check_row("codes", i, codes, golden_encode_fp8_codes, sizeof codes);
    }
}

static void q8_0_is_gguf(void **state)
{
    (void)state;
    uint8_t blocks[COLUMNS / 32 * 34];
    for (int i = 0; i < ROWS; i++) {
        assert_true(kern_encode_q8_0(row(i), COLUMNS, blocks));
        check_row("blocks", i, blocks, golden_encode_q8_0, sizeof blocks);
    }
    float large[32] = {0};
    large[3] = 8.4e6f; /* ÷ 127 rounds to 66142: no F16 */
    assert_false(kern_encode_q8_0(large, 32, blocks));
}

static void e4m3_is_torch(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof golden_encode_e4m3; i++)
        if (kern_f32_to_e4m3(from_bits(golden_encode_e4m3_input[i])) != golden_encode_e4m3[i])
            fail_msg("%a: %02x, not %02x", (double)from_bits(golden_encode_e4m3_input[i]), kern_f32_to_e4m3(from_bits(golden_encode_e4m3_input[i])), golden_encode_e4m3[i]);
    /* What it keeps comes back, and what leaves the range stays at its end. */
    for (int code = 0; code < 256; code++)
        if ((code & 0x7f) != 0x7f)
            assert_int_equal(kern_f32_to_e4m3(kern_e4m3_to_f32((uint8_t)code)), code);
    assert_int_equal(kern_f32_to_e4m3(1e30f), 0x7e);
    assert_int_equal(kern_f32_to_e4m3(-INFINITY), 0xfe);
    assert_int_equal(kern_f32_to_e4m3(NAN), 0x7f);
}

static void amax_sees_what_is_not_finite(void **state)
{
    (void)state;
    float x[5] = {0, -3, 2, -0.0f, 1};
    assert_true(kern_encode_amax(x, 5) == 3 && kern_encode_amax(x, 0) == 0);
    x[2] = NAN;
    assert_true(isinf(kern_encode_amax(x, 5)));
    x[2] = -INFINITY;
    assert_true(isinf(kern_encode_amax(x, 5)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nvfp4_is_compressed_tensors), cmocka_unit_test(mxfp4_is_compressed_tensors), cmocka_unit_test(fp8_is_compressed_tensors),
        cmocka_unit_test(q8_0_is_gguf),                cmocka_unit_test(e4m3_is_torch),               cmocka_unit_test(amax_sees_what_is_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
