/* Embedding: one row out of packed tiles. A row's numbers lie 4 (quantised) or 32–64 bytes apart; at a few rows a step nobody notices. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_priv.h"

static uint16_t half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
}

static void dequantise(enum format format, const uint8_t *tile, uint32_t lane, uint32_t n, float *w) {
    float d, m;
    switch (format) {
    case FMT_Q4_1:
        d = kern_f16_to_f32(half_at(tile + 256 + 2 * lane));
        m = kern_f16_to_f32(half_at(tile + 288 + 2 * lane));
        for (uint32_t c = 0; c < n; c++) {
            uint8_t both = tile[(c & 15) / 4 * 64 + lane * 4 + c % 4];
            w[c] = d * (float)(c < 16 ? both & 15 : both >> 4) + m; /* the product is exact */
        }
        break;
    case FMT_Q8_0:
        d = kern_f16_to_f32(half_at(tile + 512 + 2 * lane));
        for (uint32_t c = 0; c < n; c++) w[c] = d * (float)((int)tile[c / 4 * 64 + lane * 4 + c % 4] - 128);
        break;
    case FMT_F16:
        for (uint32_t c = 0; c < n; c++) w[c] = kern_f16_to_f32(half_at(tile + ((size_t)c * KERN_TILE_ROWS + lane) * 2));
        break;
    case FMT_BF16:
        for (uint32_t c = 0; c < n; c++) w[c] = kern_bf16_to_f32(half_at(tile + ((size_t)c * KERN_TILE_ROWS + lane) * 2));
        break;
    case FMT_F32:
        for (uint32_t c = 0; c < n; c++) memcpy(w + c, tile + ((size_t)c * KERN_TILE_ROWS + lane) * 4, 4);
        break;
    case FMT_COUNT: break;
    }
}

void cpu_embed(struct kern_queue q, const struct kern_embed *args) {
    const struct kern_matrix *table = args->table;
    const struct kern_columns *c = &table->columns;
    size_t tile_bytes = cpu_tile_bytes(table->format);
    /* Shared out by (token, segment), so that one token keeps several threads busy. */
    size_t n_items = (size_t)args->n_tokens * c->n_segments;
    size_t lo = n_items * (size_t)q.i_thread / (size_t)q.n_threads, hi = n_items * ((size_t)q.i_thread + 1) / (size_t)q.n_threads;
    for (size_t i = lo; i < hi; i++) {
        size_t t = i / c->n_segments, s = i % c->n_segments;
        float *y = args->y + t * args->y_stride + c->segment_begin[s];
        uint32_t n = c->segment_columns[s];
        int64_t row = (int64_t)args->ids[t] - (int64_t)args->row_begin;
        if (row < 0 || (uint64_t)row >= table->n_rows) {
            memset(y, 0, n * sizeof *y);
            continue;
        }
        const uint8_t *tile = (const uint8_t *)table->data + ((size_t)row / KERN_TILE_ROWS * c->n_segments + s) * tile_bytes;
        dequantise(table->format, tile, (uint32_t)row % KERN_TILE_ROWS, n, y);
        for (uint32_t j = 0; j < n; j++) y[j] *= args->scale;
    }
}
