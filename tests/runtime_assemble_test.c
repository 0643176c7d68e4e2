/* Rows of blocks from several tensors: every kind against its definition, whole and cut; odd scales that are valid, and those that are not. Where the numbers of whole models come from:
 * tests/golden/make_quant.py. */
#include "runtime/assemble.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/t.h"

/* ---- matrices ----------------------------------------------------------------------------------------------------------------------------------------- */

enum { ROWS = 5, COLUMNS = 192 };

static struct ck_tensor codes = {.name = "X.codes", .unsupported = "U8", .raw = CK_RAW_U8}, e4m3 = {.name = "X.scales", .unsupported = "F8_E4M3", .raw = CK_RAW_F8_E4M3},
                        e8m0 = {.name = "X.scales", .unsupported = "F8_E8M0", .raw = CK_RAW_F8_E8M0}, f32 = {.name = "X.scales", .format = FMT_F32};

static struct quant_scheme scheme(enum format f, struct quant_source a, struct quant_source b)
{
    a.role = QUANT_CODES;
    b.role = QUANT_SCALES;
    return (struct quant_scheme){.name = "test", .format = f, .rows = ROWS, .columns = COLUMNS, .n_sources = 2, .sources = {a, b}};
}

struct matrix {
    struct quant_scheme s;
    size_t code_stride, scale_stride;
    unsigned char code[ROWS * COLUMNS], scale[ROWS * COLUMNS];
};

static struct matrix nvfp4(void)
{
    return (struct matrix){.s = scheme(FMT_NVFP4, (struct quant_source){.tensor = &codes, .row_unit = 1, .column_unit = 2, .element_bytes = 1, .bits = 4},
                                       (struct quant_source){.tensor = &e4m3, .row_unit = 1, .column_unit = 16, .element_bytes = 1}),
                           .code_stride = COLUMNS / 2,
                           .scale_stride = COLUMNS / 16};
}

static struct matrix mxfp4(void)
{
    return (struct matrix){.s = scheme(FMT_MXFP4, (struct quant_source){.tensor = &codes, .row_unit = 1, .column_unit = 2, .element_bytes = 1, .bits = 4},
                                       (struct quant_source){.tensor = &e8m0, .row_unit = 1, .column_unit = 32, .element_bytes = 1}),
                           .code_stride = COLUMNS / 2,
                           .scale_stride = COLUMNS / 32};
}

static struct matrix fp8(void)
{
    return (struct matrix){.s = scheme(FMT_FP8, (struct quant_source){.tensor = &codes, .row_unit = 1, .column_unit = 1, .element_bytes = 1, .bits = 8},
                                       (struct quant_source){.tensor = &f32, .row_unit = 128, .column_unit = 128, .element_bytes = 4}),
                           .code_stride = COLUMNS,
                           .scale_stride = 2 * sizeof(float)};
}

static struct matrix int8(void)
{
    struct matrix m = {.s = scheme(FMT_INT8, (struct quant_source){.tensor = &codes, .row_unit = 1, .column_unit = 1, .element_bytes = 1, .bits = 8, .is_signed = true},
                                   (struct quant_source){.tensor = &f32, .row_unit = 1, .column_unit = 64, .element_bytes = 4}),
                       .code_stride = COLUMNS,
                       .scale_stride = 3 * sizeof(float)};
    return m;
}

static void fill(struct matrix *m)
{
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (size_t i = 0; i < sizeof m->code; i++)
        m->code[i] = (unsigned char)(base_rng_below(&r, 126) + (base_rng_below(&r, 2) ? 128 : 0)); /* no NaN of E4M3 */
    for (size_t i = 0; i < ROWS * m->scale_stride; i++)
        m->scale[i] = (unsigned char)(100 + base_rng_below(&r, 20));
    if (m->s.sources[1].tensor == &f32)
        for (size_t i = 0; i < ROWS * m->scale_stride / sizeof(float); i++) {
            const float d = base_rng_uniform(&r, m->s.format == FMT_FP8 ? 0.1F : -2, 2);
            memcpy(m->scale + i * sizeof d, &d, sizeof d);
        }
}

/* Columns [begin, end) as a rank that holds them reads them: whole elements. */
static enum st assemble(const struct matrix *m, uint64_t begin, uint64_t end, unsigned char *out, struct rt_odd_scales *odd, struct err *e)
{
    const struct quant_source *a = &m->s.sources[0], *b = &m->s.sources[1];
    struct rt_assembly x = {.scheme = &m->s, .row_begin = 0, .row_end = ROWS, .column_begin = begin, .column_end = end};
    x.pieces[0] = (struct rt_piece){m->code + begin / a->column_unit * a->element_bytes, m->code_stride, 0, begin / a->column_unit * a->column_unit};
    x.pieces[1] = (struct rt_piece){m->scale + begin / b->column_unit * b->element_bytes, m->scale_stride, 0, begin / b->column_unit * b->column_unit};
    return rt_assemble(&x, out, odd, e);
}

/* ---- values --------------------------------------------------------------------------------------------------------------------------------------------- */

static float e2m1(unsigned code)
{
    static const float values[8] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
    return code & 8 ? -values[code & 7] : values[code & 7];
}

static float value_of(const struct matrix *m, uint64_t row, uint64_t column)
{
    const struct quant_source *a = &m->s.sources[0], *b = &m->s.sources[1];
    const unsigned char *q = m->code + row * m->code_stride + column / a->column_unit, *s = m->scale + row / b->row_unit * m->scale_stride + column / b->column_unit * b->element_bytes;
    float d;
    memcpy(&d, s, b->element_bytes == 4 ? 4 : 1);
    switch (m->s.format) {
    case FMT_NVFP4: return kern_e4m3_to_f32(*s) * e2m1(*q >> 4 * (column % 2) & 15u);
    case FMT_MXFP4: return ldexpf(1, *s - 127) * e2m1(*q >> 4 * (column % 2) & 15u);
    case FMT_FP8: return d * kern_e4m3_to_f32(*q);
    default: return d * (float)(signed char)*q;
    }
}

static void check_values(struct matrix m)
{
    static const uint64_t cuts[][2] = {{0, 192}, {0, 24}, {24, 72}, {40, 41}, {41, 130}, {130, 192}, {191, 192}, {64, 128}};
    const uint64_t block = kern_format(m.s.format)->block_columns;
    fill(&m);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        const uint64_t begin = cuts[i][0], end = cuts[i][1], first = begin / block * block, n = (end - first + block - 1) / block * block;
        const size_t row_bytes = rt_assembled_bytes(&m.s, begin, end);
        struct rt_odd_scales odd = {0};
        struct err e = {""};
        assert_int_equal(row_bytes, n / block * kern_format(m.s.format)->block_bytes);
        unsigned char *rows = t_guard_alloc(ROWS * row_bytes);
        T_OK(assemble(&m, begin, end, rows, &odd, &e), &e);
        float read[COLUMNS];
        for (uint64_t row = 0; row < ROWS; row++) {
            kern_format_dequantise(m.s.format, rows + row * row_bytes, n, read);
            for (uint64_t c = begin; c < end; c++)
                if (read[c - first] != value_of(&m, row, c))
                    fail_msg("%s, columns %d to %d: row %d, column %d is %g instead of %g", kern_format(m.s.format)->name, (int)begin, (int)end, (int)row, (int)c, (double)read[c - first],
                             (double)value_of(&m, row, c));
        }
        t_guard_free(rows);
        assert_int_equal(odd.zero + odd.least + odd.over_zeros, 0);
    }
    assert_int_equal(rt_assembled_bytes(&m.s, 64, 64), 0);
}

static void test_values(void **state)
{
    (void)state;
    check_values(nvfp4());
    check_values(mxfp4());
    check_values(fp8());
    check_values(int8());
}

/* ---- odd scales -------------------------------------------------------------------------------------------------------------------------------------------- */

static void put(struct matrix *m, uint64_t row, uint64_t i_scale, const void *scale)
{
    const uint32_t n = m->s.sources[1].element_bytes;
    memcpy(m->scale + row * m->scale_stride + i_scale * n, scale, n);
}
static void put_byte(struct matrix *m, uint64_t row, uint64_t i_scale, unsigned char scale) { put(m, row, i_scale, &scale); }
static void put_f32(struct matrix *m, uint64_t row, uint64_t i_scale, float scale) { put(m, row, i_scale, &scale); }

static void zero_codes(struct matrix *m, uint64_t row, uint64_t begin, uint64_t end, unsigned char code)
{
    const uint64_t unit = m->s.sources[0].column_unit;
    memset(m->code + row * m->code_stride + begin / unit, code, (end - begin) / unit);
}

static struct rt_odd_scales valid(const struct matrix *m, float *read)
{
    static unsigned char rows[ROWS * COLUMNS * 4];
    struct rt_odd_scales odd = {0};
    struct err e = {""};
    T_OK(assemble(m, 0, COLUMNS, rows, &odd, &e), &e);
    for (uint64_t row = 0; row < ROWS; row++)
        kern_format_dequantise(m->s.format, rows + row * rt_assembled_bytes(&m->s, 0, COLUMNS), COLUMNS, read + row * COLUMNS);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        assert_true(isfinite(read[i]));
    return odd;
}

static void refused(const struct matrix *m, const char *says)
{
    static unsigned char rows[ROWS * COLUMNS * 4];
    struct rt_odd_scales odd = {0};
    struct err e = {""};
    t_expect_err_contains(ST_INVALID, assemble(m, 0, COLUMNS, rows, &odd, &e), &e, says);
}

static void test_odd_scales(void **state)
{
    (void)state;
    static float read[ROWS * COLUMNS];
    struct matrix m = nvfp4();
    fill(&m);
    zero_codes(&m, 1, 16, 32, 0x80); /* zeros of either sign */
    zero_codes(&m, 3, 48, 64, 0);
    zero_codes(&m, 4, 0, 16, 0x88);
    put_byte(&m, 1, 1, 0x7f);
    put_byte(&m, 3, 3, 0xff);
    put_byte(&m, 4, 0, 0xb0); /* negative */
    put_byte(&m, 0, 0, 0);
    put_byte(&m, 0, 1, 0x80);
    put_byte(&m, 0, 2, 1);
    struct rt_odd_scales odd = valid(&m, read);
    assert_int_equal(odd.over_zeros, 3);
    assert_int_equal(odd.zero, 2);
    assert_int_equal(odd.least, 1);
    for (int i = 0; i < 16; i++)
        assert_true(read[1 * COLUMNS + 16 + i] == 0 && read[3 * COLUMNS + 48 + i] == 0 && read[4 * COLUMNS + i] == 0 && read[i] == 0 && read[16 + i] == 0);
    struct matrix bad = m;
    put_byte(&bad, 2, 5, 0x7f);
    refused(&bad, "tensor X.scales: row 2, block 5 (columns from 80 on): its scale is NaN");
    bad = m;
    put_byte(&bad, 2, 5, 0x81);
    refused(&bad, "tensor X.scales: row 2, block 5 (columns from 80 on): its scale is negative");

    m = mxfp4();
    fill(&m);
    zero_codes(&m, 2, 32, 64, 0x08);
    put_byte(&m, 2, 1, 0xff);
    put_byte(&m, 0, 0, 0);
    odd = valid(&m, read);
    assert_int_equal(odd.over_zeros, 1);
    assert_int_equal(odd.least, 1);
    put_byte(&m, 4, 5, 0xff);
    refused(&m, "tensor X.scales: row 4, block 5 (columns from 160 on): its scale is NaN");

    m = fp8();
    fill(&m);
    for (uint64_t row = 0; row < ROWS; row++)
        zero_codes(&m, row, 128, 192, 0x80);
    put_f32(&m, 0, 1, NAN);
    odd = valid(&m, read);
    assert_int_equal(odd.over_zeros, 1);
    put_f32(&m, 0, 1, -INFINITY);
    odd = valid(&m, read);
    assert_int_equal(odd.over_zeros, 1);
    put_f32(&m, 0, 1, 0);
    odd = valid(&m, read);
    assert_int_equal(odd.zero, 1);
    bad = m;
    put_f32(&bad, 0, 0, NAN);
    refused(&bad, "tensor X.scales: row 0, block 0 (columns from 0 on): its scale is NaN");
    bad = m;
    put_f32(&bad, 0, 0, INFINITY);
    refused(&bad, "its scale is infinite or too large");
    bad = m;
    put_f32(&bad, 0, 0, -0.5F);
    refused(&bad, "tensor X.scales: row 0, block 0 (columns from 0 on): its scale is negative");
    put_f32(&m, 0, 1, -0.5F);
    odd = valid(&m, read);
    assert_int_equal(odd.over_zeros, 1);
    bad = m;
    put_f32(&bad, 0, 0, 2e36F); /* times 256 it leaves F32 */
    refused(&bad, "its scale is infinite or too large");
    bad = m;
    bad.code[3 * COLUMNS + 100] = 0xff;
    refused(&bad, "tensor X.codes: row 3, block 96 (columns from 96 on): one of the 32 codes from here on is NaN");

    m = int8();
    fill(&m);
    zero_codes(&m, 4, 64, 128, 0);
    put_f32(&m, 4, 1, NAN);
    put_f32(&m, 4, 0, 0);
    odd = valid(&m, read);
    assert_int_equal(odd.over_zeros, 1);
    assert_int_equal(odd.zero, 1);
    put_f32(&m, 2, 1, -0.25F); /* a number as others */
    odd = valid(&m, read);
    assert_int_equal(odd.over_zeros, 1);
    for (int i = 64; i < 128; i++)
        assert_true(read[2 * COLUMNS + i] == -0.25F * (float)(signed char)m.code[2 * COLUMNS + i]);
    put_f32(&m, 1, 2, NAN);
    refused(&m, "tensor X.scales: row 1, block 2 (columns from 128 on): its scale is NaN");
}

static void test_tensor_scales(void **state)
{
    (void)state;
    struct quant_scheme s = nvfp4().s;
    const struct quant_source source = {.tensor = &f32};
    struct err e = {""};
    float scale = -1;
    static const float good[][3] = {{0.25F, 0.25F, 4}, {1, 1, 1}}, bad[] = {-1, NAN, -0.5F};
    for (int divides = 0; divides < 2; divides++) {
        s.divides = divides;
        for (size_t i = 0; i < 2; i++) {
            T_OK(rt_tensor_scale(&s, &source, good[i][0], &scale, &e), &e);
            assert_true(scale == good[i][1 + divides]);
        }
        for (size_t i = 0; i < 3; i++)
            t_expect_err_contains(ST_INVALID, rt_tensor_scale(&s, &source, bad[i], &scale, &e), &e, "tensor X.scales: a tensor scale of");
        /* of a tensor of zeros */
        T_OK(rt_tensor_scale(&s, &source, divides ? INFINITY : 0, &scale, &e), &e);
        assert_true(scale == 0);
        t_expect_err_contains(ST_INVALID, rt_tensor_scale(&s, &source, divides ? 0 : INFINITY, &scale, &e), &e, divides ? "divided by" : "multiplied with");
    }
}

static void test_transpose(void **state)
{
    (void)state;
    static const uint64_t shapes[][2] = {{1, 1}, {3, 50}, {17, 16}, {40, 33}};
    for (int i = 0; i < 8; i++)
        for (uint32_t bytes = 1; bytes <= 4; bytes *= 2) {
            const uint64_t outer = shapes[i / 2][0], inner = shapes[i / 2][1], apart = (1 + (uint64_t)i % 2) * bytes, run = (inner - 1) * apart + bytes, stride = run + 3;
            unsigned char *from = t_guard_alloc((outer - 1) * stride + run), *to = t_guard_alloc(outer * inner * bytes);
            for (uint64_t k = 0; k < (outer - 1) * stride + run; k++)
                from[k] = (unsigned char)(k * 31 + k / 251);
            rt_transpose(from, stride, apart, outer, inner, bytes, to);
            for (uint64_t o = 0; o < outer; o++)
                for (uint64_t k = 0; k < inner; k++)
                    assert_memory_equal(from + o * stride + k * apart, to + (k * outer + o) * bytes, bytes);
            t_guard_free(from);
            t_guard_free(to);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_odd_scales), cmocka_unit_test(test_tensor_scales), cmocka_unit_test(test_transpose)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
