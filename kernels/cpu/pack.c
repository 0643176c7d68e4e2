/* From the file's rows to tiles (kernels/cpu/matmul_priv.h has the byte tables). A column's place in its tile is its place in its block of 32, also where a
 * leaf cuts that block: then the foreign part is left zero, and the scales are kept on both sides. */
#include <string.h>

#include "base/status.h"
#include "kernels/cpu/matmul_priv.h"

size_t cpu_matrix_bytes(const struct kern_matrix *m) { /* but for FP8 one layout serves all activations */
    BASE_ASSERT(!cpu_is_joined(m->format) || m->scale_columns == 32 || m->scale_columns == 64 || m->scale_columns == 128);
    return (size_t)((m->n_rows + KERN_TILE_ROWS - 1) / KERN_TILE_ROWS) * cpu_row_tile_bytes(m->format, m);
}

/* ---- one row's block of 32 ------------------------------------------------------------------------------------------------------------------------ */

/* 16 bytes of nibbles, and 32 bits that stand above them. */
static void unpack_nibbles(const uint8_t *nibbles, const uint8_t *high, uint8_t codes[32]) {
    for (int i = 0; i < 16; i++) codes[i] = nibbles[i] & 15, codes[16 + i] = nibbles[i] >> 4;
    if (!high) return;
    for (int i = 0; i < 32; i++) codes[i] |= (uint8_t)((high[i / 8] >> (i % 8) & 1) << 4);
}

static void unpack_int8(const uint8_t *q, uint8_t codes[32]) {
    for (int k = 0; k < 32; k++) codes[k] = q[k] ^ 0x80;
}

/* Of n codes from `place` on. Returns the largest's size. */
static uint8_t unpack_e4m3(const uint8_t *e4m3, uint32_t place, uint32_t n, uint8_t codes[32]) {
    uint8_t own[KERN_SEGMENT] = {0};
    int8_t q[KERN_SEGMENT];
    memcpy(own + place, e4m3 + place, n);
    const uint8_t largest = kern_e4m3_to_int8(own, q);
    unpack_int8((const uint8_t *)q, codes);
    return largest;
}

/* Codes of group i (32 columns) of a block of the file. */
static void unpack(enum format f, const uint8_t *block, uint32_t i, uint8_t codes[32]) {
    switch (f) {
    case FMT_Q4_0: unpack_nibbles(block + 2, NULL, codes); break;
    case FMT_Q4_1: unpack_nibbles(block + 4, NULL, codes); break;
    case FMT_Q5_0: unpack_nibbles(block + 6, block + 2, codes); break;
    case FMT_Q5_1: unpack_nibbles(block + 8, block + 4, codes); break;
    case FMT_MXFP4: unpack_nibbles(block + 1, NULL, codes); break;
    case FMT_INT4: unpack_nibbles(block + 4, NULL, codes); break;
    case FMT_INT4_ZERO: unpack_nibbles(block + 8, NULL, codes); break;
    case FMT_Q8_0: unpack_int8(block + 2, codes); break;
    case FMT_INT8: unpack_int8(block + 4, codes); break;
    case FMT_INT8_ZERO: unpack_int8(block + 8, codes); break;
    case FMT_Q4_K:
    case FMT_Q5_K: {
        const uint8_t *high = block + 16, *low = (f == FMT_Q5_K ? high + 32 : high) + i / 2 * 32;
        for (int k = 0; k < 32; k++) codes[k] = low[k] >> 4 * (i & 1) & 15;
        for (int k = 0; f == FMT_Q5_K && k < 32; k++) codes[k] |= (uint8_t)((high[k] >> i & 1) << 4);
        break;
    }
    case FMT_Q6_K: {
        const uint8_t *low = block + i / 4 * 64 + (i & 1) * 32, *high = block + 128 + i / 4 * 32;
        for (int k = 0; k < 32; k++) codes[k] = (uint8_t)((low[k] >> 2 * (i & 2) & 15) | (high[k] >> 2 * (i & 3) & 3) << 4);
        break;
    }
    case FMT_NVFP4:
        for (int h = 0; h < 2; h++)
            for (int k = 0; k < 8; k++) {
                uint8_t both = block[4 + 16 * i + (uint32_t)(8 * h + k)];
                codes[16 * h + k] = both & 15;
                codes[16 * h + 8 + k] = both >> 4;
            }
        break;
    default: break;
    }
}

/* Four places a word: words of one row lie 64 bytes apart. */
static void put_codes(enum format f, uint8_t *tile, uint32_t lane, const uint8_t codes[32]) {
    uint32_t words[8], high[2] = {0, 0};
    memcpy(words, codes, sizeof words);
    uint8_t *to = tile + 4 * lane;
    if (cpu_is_int8(f)) {
        for (int q = 0; q < 8; q++) memcpy(to + 64 * q, &words[q], 4);
        return;
    }
    for (int q = 0; q < 8; q++) {
        if (cpu_high_bits(f) == 1) high[0] |= (words[q] >> 4 & 0x01010101) << q;
        if (cpu_high_bits(f) == 2) high[q / 4] |= (words[q] >> 4 & 0x03030303) << 2 * (q & 3);
    }
    for (int q = 0; q < 4; q++) {
        uint32_t both = (words[q] & 0x0f0f0f0f) | (words[4 + q] & 0x0f0f0f0f) << 4;
        memcpy(to + 64 * q, &both, 4);
    }
    for (int h = 0; h < cpu_high_bits(f); h++) memcpy(to + 256 + 64 * h, &high[h], 4);
}

/* sc and mn of group i: six bits each in 12 bytes, the last four groups' upper two bits above the first four's six. */
static void unpack_scale_min(const uint8_t *p, uint32_t i, uint8_t *sc, uint8_t *mn) {
    *sc = i < 4 ? p[i] & 63 : (uint8_t)((p[4 + i] & 15) | (p[i - 4] >> 6) << 4);
    *mn = i < 4 ? p[4 + i] & 63 : (uint8_t)(p[4 + i] >> 4 | (p[i] >> 6) << 4);
}

static void put_scales(enum format f, uint8_t *tile, uint32_t lane, const uint8_t *block, uint32_t i) {
    uint8_t *at = tile + cpu_codes_bytes(f);
    switch (f) {
    case FMT_Q4_K:
    case FMT_Q5_K: unpack_scale_min(block + 4, i, &at[lane], &at[16 + lane]); break;
    case FMT_MXFP4: at[lane] = block[0]; break;
    case FMT_Q6_K:
        for (uint32_t h = 0; h < 2; h++) at[16 * h + lane] = block[192 + 2 * i + h];
        break;
    case FMT_NVFP4:
        for (uint32_t h = 0; h < 2; h++) {
            uint8_t scale = block[2 * i + h];
            at[16 * h + lane] = scale == 0x7f ? 0 : scale & 0x7f;
        }
        break;
    default:
        if (cpu_is_joined(f)) break; /* in the head */
        memcpy(at + 2 * lane, block, 2);
        if (cpu_has_min(f)) memcpy(at + 32 + 2 * lane, block + 2, 2);
    }
}

/* as_int8: FP8 of which there are whole numbers. */
static void put_head(enum format f, bool as_int8, uint8_t *head, uint32_t lane, const uint8_t *block) {
    if (f == FMT_Q6_K) {
        memcpy(head + 2 * lane, block + 208, 2);
        return;
    }
    if (cpu_is_joined(f)) {
        const float d = f != FMT_FP8 ? cpu_float_at(block) : as_int8 ? 256 * cpu_float_at(block) / 127 : 256 * cpu_float_at(block);
        memcpy(head + 4 * lane, &d, 4);
        if (cpu_has_min(f)) memcpy(head + 64 + 4 * lane, block + 4, 4);
        return;
    }
    memcpy(head + 2 * lane, block, 2);
    const uint8_t minus_dmin[2] = {block[2], block[3] ^ 0x80};
    memcpy(head + 32 + 2 * lane, minus_dmin, 2);
}

/* n plain numbers of one row. */
static inline void put_numbers(const size_t size, uint8_t *to, const uint8_t *from, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) memcpy(to + i * KERN_TILE_ROWS * size, from + i * size, size);
}

/* ---- a batch of rows ------------------------------------------------------------------------------------------------------------------------------ */

/* Segment s of one row tile; src: the source rows, which begin at first_column. */
static void pack_tile(const struct kern_pack *args, const uint8_t *src, uint32_t n_lanes, uint32_t s, uint8_t *tile, uint8_t *head) {
    const enum format f = args->matrix->format;
    const struct kern_columns *c = &args->matrix->columns;
    const struct format_info *info = kern_format(f);
    uint64_t column = c->begin + c->segment_begin[s];
    uint32_t n = c->segment_columns[s], place = (uint32_t)(column % KERN_SEGMENT);
    const uint8_t *block = src + (column - args->first_column) / info->block_columns * info->block_bytes;
    memset(tile, 0, cpu_tile_bytes(f));
    const bool as_int8 = f == FMT_FP8 && args->matrix->activation != KERN_ACT_F32;
    if (!info->quantised && !as_int8) {
        for (uint32_t lane = 0; lane < n_lanes; lane++, block += args->row_stride_bytes) {
            uint32_t at = place * KERN_TILE_ROWS + lane;
            if (f == FMT_F32) put_numbers(4, tile + 4 * at, block, n);
            else if (f == FMT_FP8) put_numbers(1, tile + at, block + 4 + place, n);
            else put_numbers(2, tile + 2 * at, block, n);
            if (head) put_head(f, as_int8, head, lane, block);
        }
        return;
    }
    uint32_t i_group = (uint32_t)(column % info->block_columns / KERN_SEGMENT);
    uint8_t codes[KERN_SEGMENT], zero = cpu_is_e2m1(f) ? 0 : (uint8_t)cpu_bias(f);
    for (uint32_t lane = 0; lane < KERN_TILE_ROWS; lane++, block += args->row_stride_bytes) {
        memset(codes, zero, sizeof codes);
        if (lane < n_lanes) {
            uint8_t all[KERN_SEGMENT];
            if (as_int8) tile[cpu_codes_bytes(f) + lane] = unpack_e4m3(block + 4, place, n, all);
            else unpack(f, block, i_group, all);
            memcpy(codes + place, all + place, n);
            put_scales(f, tile, lane, block, i_group);
            if (head) put_head(f, as_int8, head, lane, block);
        }
        put_codes(f, tile, lane, codes);
    }
}

void cpu_matrix_pack(const struct kern_pack *args) {
    const struct kern_matrix *m = args->matrix;
    const struct kern_columns *c = &m->columns;
    size_t head_bytes = cpu_head_bytes(m->format), row_tile_bytes = cpu_row_tile_bytes(m->format, m);
    const unsigned head_log2 = cpu_head_log2(m->format, m);
    BASE_ASSERT(args->row_begin % KERN_TILE_ROWS == 0 && args->row_begin + args->n_rows <= m->n_rows);
    BASE_ASSERT(args->first_column <= c->begin && args->first_column % kern_format(m->format)->block_columns == 0);

    for (uint64_t row = 0; row < args->n_rows; row += KERN_TILE_ROWS) {
        uint32_t n_lanes = (uint32_t)(args->n_rows - row < KERN_TILE_ROWS ? args->n_rows - row : KERN_TILE_ROWS);
        const uint8_t *src = (const uint8_t *)args->src + row * args->row_stride_bytes;
        uint8_t *row_tile = (uint8_t *)m->data + (size_t)((args->row_begin + row) / KERN_TILE_ROWS) * row_tile_bytes;
        for (uint32_t s = 0; s < c->n_segments; s++) {
            uint8_t *tile = row_tile + cpu_tile_at(m->format, m, s), *head = NULL;
            if (head_bytes && (s == 0 || cpu_head_of(c, s, head_log2) != cpu_head_of(c, s - 1, head_log2))) head = memset(tile - head_bytes, 0, head_bytes);
            pack_tile(args, src, n_lanes, s, tile, head);
        }
    }
}
