/* Activations as records (matmul_priv.h): where they lie, and how they are made of x. */
#include <string.h>

#include "kernels/cpu/matmul_priv.h"

static const enum kern_activation order[] = {KERN_ACT_INT8, KERN_ACT_INT8_16, KERN_ACT_F32};

static int area_of(enum kern_activation a) { return a == KERN_ACT_INT8 ? 0 : a == KERN_ACT_INT8_16 ? 1 : 2; }

static size_t area_bytes(int area, const struct kern_columns *columns, size_t n_tokens) {
    return (n_tokens * columns->n_segments * cpu_token_bytes(order[area]) + 63) & ~(size_t)63;
}

size_t cpu_records_bytes(const struct kern_columns *columns, size_t n_tokens) {
    return area_bytes(0, columns, n_tokens) + area_bytes(1, columns, n_tokens) + area_bytes(2, columns, n_tokens);
}

struct cpu_records cpu_records_at(void *scratch, const struct kern_columns *columns, size_t n_tokens) {
    struct cpu_records r = {.columns = columns};
    uint8_t *at = scratch;
    for (int i = 0; i < 3; i++) {
        r.area[i] = at;
        at += area_bytes(i, columns, n_tokens);
    }
    return r;
}

void cpu_records_need(struct cpu_records *r, const struct kern_matrix *m) { r->needs[area_of(m->activation)] |= m->n_rows > 0; }

const uint8_t *cpu_records_of(const struct cpu_records *r, const struct kern_matrix *m, size_t first) {
    return r->area[area_of(m->activation)] + first * r->columns->n_segments * cpu_token_bytes(m->activation);
}

/* x: 32 places of one token. */
static void put_int8(const struct cpu_matmul *m, const float *x, int n_tokens, int t, uint8_t *record) {
    struct cpu_scale scale = m->quantise(x, 32, (int8_t *)record + 32 * t);
    uint8_t *tail = record + 32 * n_tokens + 4 * t;
    memcpy(tail, &scale.d, 4);
    memcpy(tail + 4 * n_tokens, &scale.d_sum, 4);
    memcpy(tail + 8 * n_tokens, &scale.offset, 4);
}

static void put_int8_16(const struct cpu_matmul *m, const float *x, int n_tokens, int t, uint8_t *record) {
    for (int h = 0; h < 2; h++) {
        struct cpu_scale scale = m->quantise(x + 16 * h, 16, (int8_t *)record + 32 * t + 16 * h);
        uint8_t *tail = record + (32 + 4 * h) * n_tokens + 4 * t;
        memcpy(tail, &scale.d, 4);
        memcpy(tail + 8 * n_tokens, &scale.offset, 4);
    }
}

static void put_f32(const float *x, int n_tokens, int t, float *record) {
    for (int i = 0; i < KERN_SEGMENT; i++) record[i * n_tokens + t] = x[i];
}

void cpu_records_put(const struct cpu_matmul *m, const struct cpu_records *r, const struct cpu_group *g, size_t segment_lo, size_t segment_hi) {
    const struct kern_columns *c = r->columns;
    for (size_t s = segment_lo; s < segment_hi; s++) {
        size_t before = g->first * c->n_segments + s * (size_t)g->n, columns = c->segment_columns[s], place = (c->begin + c->segment_begin[s]) % KERN_SEGMENT;
        for (int t = 0; t < g->n; t++) {
            const float *x = g->x + (size_t)(g->token ? g->token[t] : t) * g->x_stride;
            float whole[KERN_SEGMENT] = {0};
            if (c->order) {
                for (size_t j = 0; j < columns; j++) {
                    int32_t at = c->order[c->segment_begin[s] + j];
                    if (at >= 0) whole[place + j] = x[at];
                }
                x = whole;
            } else
                x += c->segment_begin[s];
            if (columns < KERN_SEGMENT && !c->order) {
                memcpy(whole + place, x, columns * sizeof *x);
                x = whole;
            }
            if (r->needs[0]) put_int8(m, x, g->n, t, r->area[0] + before * cpu_token_bytes(KERN_ACT_INT8));
            if (r->needs[1]) put_int8_16(m, x, g->n, t, r->area[1] + before * cpu_token_bytes(KERN_ACT_INT8_16));
            if (r->needs[2]) put_f32(x, g->n, t, (float *)(void *)(r->area[2] + before * cpu_token_bytes(KERN_ACT_F32)));
        }
    }
}
