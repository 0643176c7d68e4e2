/* The table of stored formats, and the scalar conversions that every other piece of arithmetic is measured by. */
#include "kernels/formats.h"

#include <stdio.h>
#include <string.h>

/* ---- the table ---------------------------------------------------------------------------------------------------------------------------------- */

static const struct format_info formats[FMT_COUNT] = {
    [FMT_F32] = {"F32", 1, 4, 0, "F32", 0, false, 0, false},
    [FMT_F16] = {"F16", 1, 2, 1, "F16", 0, false, 0, false},
    [FMT_BF16] = {"BF16", 1, 2, 30, "BF16", 0, false, 0, false},
    [FMT_Q8_0] = {"Q8_0", 32, 34, 8, NULL, 0, true, 32, false},
    [FMT_Q4_1] = {"Q4_1", 32, 20, 3, NULL, 0, true, 32, true},
    [FMT_Q4_0] = {"Q4_0", 32, 18, 2, NULL, 0, true, 32, false},
    [FMT_Q5_0] = {"Q5_0", 32, 22, 6, NULL, 0, true, 32, false},
    [FMT_Q5_1] = {"Q5_1", 32, 24, 7, NULL, 0, true, 32, true},
    [FMT_Q4_K] = {"Q4_K", 256, 144, 12, NULL, 256, true, 32, true},
    [FMT_Q5_K] = {"Q5_K", 256, 176, 13, NULL, 256, true, 32, true},
    [FMT_Q6_K] = {"Q6_K", 256, 210, 14, NULL, 256, true, 16, false},
    [FMT_MXFP4] = {"MXFP4", 32, 17, 39, NULL, 0, true, 32, false},
    [FMT_NVFP4] = {"NVFP4", 64, 36, 40, NULL, 0, true, 16, false},
    [FMT_FP8] = {"FP8", 32, 36, -1, NULL, 0, false, 0, false},
    [FMT_INT4] = {"INT4", 32, 20, -1, NULL, 0, true, 32, false},
    [FMT_INT4_ZERO] = {"INT4 with zero points", 32, 24, -1, NULL, 0, true, 32, true},
    [FMT_INT8] = {"INT8", 32, 36, -1, NULL, 0, true, 32, false},
    [FMT_INT8_ZERO] = {"INT8 with zero points", 32, 40, -1, NULL, 0, true, 32, true},
    [FMT_E4M3] = {"E4M3", 1, 1, -1, NULL, 0, false, 0, false},
};

/* Names of all ggml types, by number, so that one we do not know yet is still called by its name. Gaps are types that ggml has withdrawn. */
static const char *const ggml_names[] = {
    [0] = "F32",       [1] = "F16",       [2] = "Q4_0",      [3] = "Q4_1",     [4] = "Q4_2",      [5] = "Q4_3",     [6] = "Q5_0",
    [7] = "Q5_1",      [8] = "Q8_0",      [9] = "Q8_1",      [10] = "Q2_K",    [11] = "Q3_K",     [12] = "Q4_K",    [13] = "Q5_K",
    [14] = "Q6_K",     [15] = "Q8_K",     [16] = "IQ2_XXS",  [17] = "IQ2_XS",  [18] = "IQ3_XXS",  [19] = "IQ1_S",   [20] = "IQ4_NL",
    [21] = "IQ3_S",    [22] = "IQ2_S",    [23] = "IQ4_XS",   [24] = "I8",      [25] = "I16",      [26] = "I32",     [27] = "I64",
    [28] = "F64",      [29] = "IQ1_M",    [30] = "BF16",     [31] = "Q4_0_4_4", [32] = "Q4_0_4_8", [33] = "Q4_0_8_8", [34] = "TQ1_0",
    [35] = "TQ2_0",    [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4", [40] = "NVFP4", [41] = "Q1_0",
};
#define N_GGML_NAMES (sizeof ggml_names / sizeof ggml_names[0])

static const char *const safetensors_names[] = {"BOOL", "U8", "I8", "F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
                                                "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"};
#define N_SAFETENSORS_NAMES (sizeof safetensors_names / sizeof safetensors_names[0])

const struct format_info *kern_format(enum format f) {
    BASE_ASSERT(f >= 0 && f < FMT_COUNT);
    return &formats[f];
}

/* "F32, F16, …": what a reader of this kind of file may hold. */
static void known_list(bool gguf, char *text, size_t text_bytes) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < FMT_COUNT; i++) {
        if (gguf ? formats[i].gguf_type < 0 : formats[i].safetensors == NULL)
            continue;
        int n = snprintf(text + used, text_bytes - used, "%s%s", used ? ", " : "", gguf ? formats[i].name : formats[i].safetensors);
        if (n < 0 || (size_t)n >= text_bytes - used)
            return;
        used += (size_t)n;
    }
}

enum st kern_format_from_gguf(uint32_t type, enum format *f, struct err *e) {
    for (int i = 0; i < FMT_COUNT; i++)
        if (formats[i].gguf_type >= 0 && (uint32_t)formats[i].gguf_type == type) {
            *f = (enum format)i;
            return ST_OK;
        }
    char known[256];
    known_list(true, known, sizeof known);
    if (type < N_GGML_NAMES && ggml_names[type])
        return err_set(e, ST_UNSUPPORTED, "%s (type %u) is not supported yet; known: %s", ggml_names[type], type, known);
    return err_set(e, ST_UNSUPPORTED, "type %u is no ggml type that we have heard of; known: %s", type, known);
}

enum st kern_format_from_safetensors(const char *dtype, enum format *f, struct err *e) {
    for (int i = 0; i < FMT_COUNT; i++)
        if (formats[i].safetensors && strcmp(formats[i].safetensors, dtype) == 0) {
            *f = (enum format)i;
            return ST_OK;
        }
    char known[256];
    known_list(false, known, sizeof known);
    for (size_t i = 0; i < N_SAFETENSORS_NAMES; i++)
        if (strcmp(safetensors_names[i], dtype) == 0)
            return err_set(e, ST_UNSUPPORTED, "%s is not supported yet; known: %s", dtype, known);
    return err_set(e, ST_UNSUPPORTED, "'%.32s' is no safetensors dtype; known: %s", dtype, known);
}

size_t kern_format_row_bytes(enum format f, uint64_t n_columns) {
    const struct format_info *info = kern_format(f);
    if (n_columns % info->block_columns)
        return 0;
    uint64_t n_blocks = n_columns / info->block_columns, bytes;
    if (__builtin_mul_overflow(n_blocks, (uint64_t)info->block_bytes, &bytes) || bytes > SIZE_MAX / 2)
        return 0;
    return (size_t)bytes;
}

/* ---- single numbers ------------------------------------------------------------------------------------------------------------------------------ */

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint32_t to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* NaNs become quiet and keep the payload that fits, as x86's F16C does: vector forms then agree even there. */
float kern_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31)
        return from_bits(sign | 0x7f800000u | (mantissa ? 0x400000u : 0) | mantissa << 13);
    if (exponent == 0) {
        float tiny = (float)mantissa * 0x1p-24f; /* exact: at most 10 bits */
        return sign ? -tiny : tiny;
    }
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t kern_f32_to_f16(float f) {
    uint32_t bits = to_bits(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude >= 0x38800000u) { /* normal: round the 13 bits that go, to nearest even; a carry runs into the exponent, as it should */
        uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
        return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
    }
    /* Subnormal: count units of 2^-24. Adding 1.5·2^23 · 2^-24 lets the F32 adder do the rounding. */
    float units = from_bits(magnitude) + 0.75f;
    return (uint16_t)(sign | (to_bits(units) - to_bits(0.75f)));
}

float kern_bf16_to_f32(uint16_t b) { return from_bits((uint32_t)b << 16); }

uint16_t kern_f32_to_bf16(float f) {
    uint32_t bits = to_bits(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* E4M3 is an F16 of fewer digits and 2^8 times less, but for its NaN. */
/* Of a code without its sign, below 0x7f: 2^(e − 7) · (1 + m/8), and below 2^−6 as the excess over it. No branch and no subnormal F32: a loop over many becomes vectors. */
static inline float e4m3_size(int32_t code) {
    const int32_t is_tiny = code < 8;
    return from_bits((uint32_t)((code + 8 * is_tiny + (120 << 3)) << 20)) - (float)is_tiny * 0x1p-6f;
}

float kern_e4m3_to_f32(uint8_t x) {
    const uint32_t sign = (uint32_t)(x & 0x80u) << 24;
    return from_bits(sign | ((x & 0x7f) == 0x7f ? 0x7fc00000u : to_bits(e4m3_size(x & 0x7f))));
}

uint8_t kern_f32_to_e4m3(float f) {
    uint32_t bits = to_bits(f), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (magnitude > 0x43e00000u) /* 448 */
        return (uint8_t)(sign | 0x7eu);
    if (magnitude >= 0x3c800000u) { /* normal, from 2^-6 on: as for halves */
        uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
        return (uint8_t)(sign | (rounded - 0x3c000000u) >> 20);
    }
    /* Subnormal: units of 2^-9, rounded by the F32 adder. */
    float units = from_bits(magnitude) + 0x1.8p14f;
    return (uint8_t)(sign | (to_bits(units) - to_bits(0x1.8p14f)));
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------------------------------- */

static float load_f32(const unsigned char *p) {
    float f;
    memcpy(&f, p, 4);
    return f;
}
static float load_f16(const unsigned char *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return kern_f16_to_f32(h);
}

/* E2M1's values, doubled: whole numbers. */
static const int8_t e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* 16 bytes: low nibbles are columns 0–15, high ones 16–31; high: bit i is the fifth bit of column i. */
static void read_nibbles(const unsigned char *nibbles, uint32_t high, int bias, int8_t q[32]) {
    for (int i = 0; i < 32; i++) {
        int code = (i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4) | (int)(high >> i & 1) << 4;
        q[i] = (int8_t)(code - bias);
    }
}

static uint32_t load_u32(const unsigned char *p) {
    uint32_t u;
    memcpy(&u, p, 4);
    return u;
}

/* sc and mn of group i out of 12 bytes: groups 0–3 are six bits of a byte each, groups 4–7 a nibble of bytes 8–11 and the two bits that the former left. */
static void read_scale_min(const unsigned char *p, uint32_t i, int *sc, int *mn) {
    if (i < 4) {
        *sc = p[i] & 63;
        *mn = p[4 + i] & 63;
    } else {
        *sc = (p[4 + i] & 15) | (p[i - 4] >> 6) << 4;
        *mn = p[4 + i] >> 4 | (p[i] >> 6) << 4;
    }
}

/* Half of 2^(e − 127): the codes are doubled. */
static float half_e8m0(unsigned e) { return from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

/* Half of an E4M3 without sign, by the same way. The `gguf` package's: 0x7f is 0, 0xff is 480. */
static float half_ue4m3(unsigned x) { return x == 0x7f ? 0 : kern_f16_to_f32((uint16_t)((x & 0x7f) << 7)) * 128; }

uint8_t kern_e4m3_to_int8(const uint8_t codes[32], int8_t q[32]) {
    uint8_t largest = 0;
    for (int i = 0; i < 32; i++)
        largest = (codes[i] & 0x7f) > largest ? codes[i] & 0x7f : largest;
    /* The quotient of two numbers of four digits times 127 is no nearer to a half, unless it is one, than F32 can tell. */
    const float divisor = largest ? e4m3_size(largest) : 1;
    for (int i = 0; i < 32; i++) {
        const int nearest = (int)(127 * e4m3_size(codes[i] & 0x7f) / divisor + 0x1.8p23f - 0x1.8p23f); /* to nearest even, the default mode */
        q[i] = (int8_t)(codes[i] & 0x80 ? -nearest : nearest);
    }
    return largest;
}

void kern_format_group(enum format f, const void *block, uint32_t i_group, struct format_group *g) {
    const unsigned char *p = block;
    int sc, mn;
    g->m = 0;
    switch (f) {
    case FMT_Q8_0:
        g->d[0] = g->d[1] = load_f16(p);
        memcpy(g->q, p + 2, 32);
        return;
    case FMT_Q4_0:
        g->d[0] = g->d[1] = load_f16(p);
        read_nibbles(p + 2, 0, 8, g->q);
        return;
    case FMT_Q4_1:
        g->d[0] = g->d[1] = load_f16(p);
        g->m = load_f16(p + 2);
        read_nibbles(p + 4, 0, 0, g->q);
        return;
    case FMT_Q5_0:
        g->d[0] = g->d[1] = load_f16(p);
        read_nibbles(p + 6, load_u32(p + 2), 16, g->q);
        return;
    case FMT_Q5_1:
        g->d[0] = g->d[1] = load_f16(p);
        g->m = load_f16(p + 2);
        read_nibbles(p + 8, load_u32(p + 4), 0, g->q);
        return;
    case FMT_Q4_K:
    case FMT_Q5_K: {
        const unsigned char *high = p + 16, *low = f == FMT_Q5_K ? high + 32 : high;
        read_scale_min(p + 4, i_group, &sc, &mn);
        g->d[0] = g->d[1] = load_f16(p) * (float)sc;
        g->m = -(load_f16(p + 2) * (float)mn);
        low += i_group / 2 * 32;
        for (int i = 0; i < 32; i++)
            g->q[i] = (int8_t)((low[i] >> 4 * (i_group & 1) & 15) | (f == FMT_Q5_K ? (high[i] >> i_group & 1) << 4 : 0));
        return;
    }
    case FMT_Q6_K: {
        /* Each half of 128 columns: 64 bytes whose low nibbles are groups of 32 number 0 and 1, high ones 2 and 3; 32 bytes with two more bits for each of the four. */
        const unsigned char *low = p + i_group / 4 * 64 + (i_group & 1) * 32, *high = p + 128 + i_group / 4 * 32;
        for (int i = 0; i < 32; i++)
            g->q[i] = (int8_t)(((low[i] >> (i_group & 2) * 2 & 15) | (high[i] >> 2 * (i_group & 3) & 3) << 4) - 32);
        for (int h = 0; h < 2; h++)
            g->d[h] = load_f16(p + 208) * (float)(int8_t)p[192 + 2 * i_group + (uint32_t)h];
        return;
    }
    case FMT_MXFP4:
        g->d[0] = g->d[1] = half_e8m0(p[0]);
        for (int i = 0; i < 32; i++)
            g->q[i] = e2m1_doubled[i < 16 ? p[1 + i] & 15 : p[1 + i - 16] >> 4];
        return;
    case FMT_NVFP4:
        for (int i = 0; i < 32; i++) {
            unsigned char both = p[4 + 16 * i_group + (uint32_t)(i / 16 * 8 + i % 8)];
            g->q[i] = e2m1_doubled[i % 16 < 8 ? both & 15 : both >> 4];
        }
        for (int h = 0; h < 2; h++)
            g->d[h] = half_ue4m3(p[2 * i_group + (uint32_t)h]);
        return;
    case FMT_INT4:
    case FMT_INT4_ZERO:
        g->d[0] = g->d[1] = load_f32(p);
        g->m = f == FMT_INT4_ZERO ? load_f32(p + 4) : 0;
        read_nibbles(p + (f == FMT_INT4_ZERO ? 8 : 4), 0, f == FMT_INT4_ZERO ? 0 : 8, g->q);
        return;
    case FMT_INT8:
    case FMT_INT8_ZERO:
        g->d[0] = g->d[1] = load_f32(p);
        g->m = f == FMT_INT8_ZERO ? load_f32(p + 4) : 0;
        memcpy(g->q, p + (f == FMT_INT8_ZERO ? 8 : 4), 32);
        return;
    case FMT_FP8:
        g->d[0] = 256 * load_f32(p) / 127 * (kern_e4m3_to_f32(kern_e4m3_to_int8(p + 4, g->q)) / 256);
        g->d[1] = g->d[0];
        g->m = 0;
        return;
    case FMT_F32:
    case FMT_F16:
    case FMT_BF16:
    case FMT_E4M3:
    case FMT_COUNT:
        break;
    }
    BASE_ASSERT(!"no quantised format");
}

static void dequantise_groups(enum format f, const unsigned char *block, size_t n, float *out) {
    const struct format_info *info = kern_format(f);
    uint32_t n_groups = info->block_columns / 32;
    for (uint32_t i_group = 0; n; i_group++) {
        struct format_group g;
        kern_format_group(f, block + i_group / n_groups * info->block_bytes, i_group % n_groups, &g);
        size_t here = n < 32 ? n : 32;
        for (size_t i = 0; i < here; i++) {
            float product = g.d[i / 16] * (float)g.q[i];
            *out++ = info->has_minimum ? product + g.m : product;
        }
        n -= here;
    }
}

void kern_format_dequantise(enum format f, const void *blocks, size_t n_columns, float *out) {
    const unsigned char *p = blocks;
    switch (f) {
    case FMT_F32:
        memcpy(out, p, n_columns * 4);
        return;
    case FMT_F16:
        for (size_t i = 0; i < n_columns; i++)
            out[i] = load_f16(p + 2 * i);
        return;
    case FMT_BF16:
        for (size_t i = 0; i < n_columns; i++) {
            uint16_t b;
            memcpy(&b, p + 2 * i, 2);
            out[i] = kern_bf16_to_f32(b);
        }
        return;
    case FMT_E4M3:
        for (size_t i = 0; i < n_columns; i++)
            out[i] = kern_e4m3_to_f32(p[i]);
        return;
    case FMT_FP8:
        for (size_t i = 0; i < n_columns; i++)
            out[i] = load_f32(p + i / 32 * 36) * 256 * (kern_e4m3_to_f32(p[i / 32 * 36 + 4 + i % 32]) / 256);
        return;
    default:
        dequantise_groups(f, p, n_columns, out);
    }
}
