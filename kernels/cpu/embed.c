/* Embedding: one row out of packed tiles. A row's numbers lie 4 (quantised) or 16–64 bytes apart; at a few rows a step nobody notices. */
#include <string.h>

#include "kernels/cpu/matmul_priv.h"

/* n places of one row, from `place` on. */
static void dequantise(enum format format, bool as_int8, const uint8_t *tile, const uint8_t *head, uint32_t lane, uint32_t place, uint32_t n, float *w) {
    size_t at = (size_t)place * KERN_TILE_ROWS + lane;
    for (uint32_t i = 0; i < n; i++, at += KERN_TILE_ROWS) {
        uint16_t brain;
        switch (format) {
        case FMT_F32: memcpy(w + i, tile + at * 4, 4); break;
        case FMT_F16: w[i] = cpu_half_at(tile + at * 2); break;
        case FMT_BF16:
            memcpy(&brain, tile + at * 2, 2);
            w[i] = kern_bf16_to_f32(brain);
            break;
        case FMT_FP8:
            if (!as_int8) {
                w[i] = cpu_float_at(head + 4 * lane) * cpu_e4m3_at(tile + at);
                break;
            } // fall through
        default:
            w[i] = cpu_scale_at(format, tile, head, lane, (place + i) / 16) * (float)cpu_q_at(format, tile, lane, place + i);
            if (cpu_has_min(format)) w[i] += cpu_min_at(format, tile, head, lane);
        }
    }
}

void cpu_embed(struct kern_queue q, const struct kern_embed *args) {
    const struct kern_matrix *table = args->table;
    const struct kern_columns *c = &table->columns;
    size_t row_tile_bytes = cpu_row_tile_bytes(table->format, table);
    const unsigned head_log2 = cpu_head_log2(table->format, table);
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
        const uint8_t *row_tile = (const uint8_t *)table->data + (size_t)row / KERN_TILE_ROWS * row_tile_bytes;
        size_t first = s; /* of those with the same head, which lies before its tile */
        while (first > 0 && cpu_head_of(c, (uint32_t)first - 1, head_log2) == cpu_head_of(c, (uint32_t)s, head_log2)) first--;
        dequantise(table->format, table->activation != KERN_ACT_F32, row_tile + cpu_tile_at(table->format, table, (uint32_t)s),
                   row_tile + cpu_tile_at(table->format, table, (uint32_t)first) - cpu_head_bytes(table->format),
                   (uint32_t)row % KERN_TILE_ROWS, (uint32_t)((c->begin + c->segment_begin[s]) % KERN_SEGMENT), n, y);
        for (uint32_t j = 0; j < n; j++) y[j] = y[j] * table->scale * args->scale;
    }
}
