/* Products of experts on the CPU, whatever the variant. A slot is what a token is to a product: slots of one expert stand in groups of up to 8, whose records are
 * gathered, and each expert's matrix meets its groups by the kernels of any product.
 *
 * In: all (expert, part, row tile) are one range that threads share, a tile weighing as much as the expert has groups.
 * Out: threads share the row tiles. A thread takes as many of its tiles at a time as have room for all tokens' sums in the second-level cache: one token streams
 * whole matrices, many tokens take few tiles, each expert's twice-read sums never leaving the cache. There every expert in turn adds its weighted vectors; then the
 * tiles' sums are folded and stored. Each output has one thread, and its slots come in order. Only the matrices of experts with slots are read. */
#include <string.h>

#include "base/tick.h"
#include "kernels/cpu/matmul_priv.h"

/* Sums of a thread: half of the smallest second-level cache that we care for, and never less than what two row tiles need. */
enum { SUMS_BYTES = 512 * 1024, MIN_TILES = 2, FETCHED_BYTES = 2048 };

static size_t tile_bytes(int n_tokens, int n_sums) { return (size_t)n_tokens * (size_t)n_sums * KERN_TILE_ROWS * sizeof(float); }

/* Sums of one thread, for up to n_tokens. */
static size_t sums_bytes(int n_tokens, int n_sums) {
    size_t least = MIN_TILES * tile_bytes(n_tokens, n_sums);
    return least > SUMS_BYTES ? least : SUMS_BYTES;
}

size_t cpu_experts_scratch_bytes(const struct kern_columns *columns, int n_slots, int n_tokens, int n_sums, int n_threads) {
    return cpu_records_bytes(columns, (size_t)n_slots) + (n_sums ? (size_t)n_threads * sums_bytes(n_tokens, n_sums) : 0);
}

static size_t n_slots_of(const struct kern_slots *s, int e) { return (size_t)(s->begin[e + 1] - s->begin[e]); }
static size_t all_slots(const struct kern_slots *s) { return (size_t)s->begin[s->n_experts]; }

/* The columns that all have, by the first expert with slots. NULL: there is none. */
static const struct kern_columns *columns_of(const struct kern_slots *s, const struct kern_matrix *const *matrix) {
    for (int e = 0; e < s->n_experts; e++)
        if (n_slots_of(s, e)) return &matrix[e]->columns;
    return NULL;
}

/* Slots of expert e that come before, in groups: x[token[slot]], or x[slot]. Prepares what of them lies in [lo, hi) of a range of segments that begins at *before,
 * and moves *before to its end. */
static void prepare_expert(const struct cpu_matmul *m, const struct cpu_records *r, const struct kern_slots *s, int e, const float *x, size_t x_stride, bool gather,
                           size_t lo, size_t hi, size_t *before) {
    size_t n_segments = r->columns->n_segments, end = (size_t)s->begin[e + 1];
    for (size_t first = (size_t)s->begin[e]; first < end; first += CPU_GROUP, *before += n_segments) {
        size_t begin = lo > *before ? lo - *before : 0, past = hi > *before ? hi - *before : 0;
        struct cpu_group g = {.first = first, .n = end - first < CPU_GROUP ? (int)(end - first) : CPU_GROUP, .x = x, .x_stride = x_stride};
        if (gather)
            g.token = s->token + first;
        else
            g.x += first * x_stride;
        if (begin < n_segments) cpu_records_put(m, r, &g, begin, past < n_segments ? past : n_segments);
    }
}

static size_t all_groups(const struct kern_slots *s) {
    size_t n = 0;
    for (int e = 0; e < s->n_experts; e++) n += cpu_groups(n_slots_of(s, e));
    return n;
}

/* Row tiles [tile_lo, tile_hi) for all of the product's tokens. */
static void run_all_groups(const struct cpu_matmul *m, const struct cpu_product *p, size_t tile_lo, size_t tile_hi) {
    size_t n_groups = cpu_groups(p->n_tokens), block = cpu_block_groups(&p->matrix->columns, p->matrix->activation == KERN_ACT_F32);
    for (size_t g = 0; g < n_groups; g += block) cpu_product_run(m, p, tile_lo, tile_hi, g, g + block < n_groups ? g + block : n_groups);
    base_tick();
}

/* ---- in ------------------------------------------------------------------------------------------------------------------------------------------ */

void cpu_experts_in_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_in *args) {
    const struct kern_slots *s = args->slots;
    const struct kern_columns *c = columns_of(s, args->parts[0].matrix);
    if (!c) return;
    size_t lo, hi, before = 0;
    if (args->n_tokens == 1) { /* one record serves all experts */
        struct cpu_records records = cpu_records_at(args->scratch, c, 1);
        for (int e = 0; e < s->n_experts; e++)
            for (int p = 0; p < args->n_parts && n_slots_of(s, e); p++) cpu_records_need(&records, args->parts[p].matrix[e]);
        cpu_share(c->n_segments, q, &lo, &hi);
        cpu_records_put(m, &records, &(struct cpu_group){.n = 1, .x = args->x, .x_stride = args->x_stride}, lo, hi);
        return;
    }
    cpu_share(all_groups(s) * c->n_segments, q, &lo, &hi);
    for (int e = 0; e < s->n_experts; e++) {
        struct cpu_records records = cpu_records_at(args->scratch, c, all_slots(s));
        for (int p = 0; p < args->n_parts && n_slots_of(s, e); p++) cpu_records_need(&records, args->parts[p].matrix[e]);
        prepare_expert(m, &records, s, e, args->x, args->x_stride, true, lo, hi, &before);
    }
}

void cpu_experts_in_run(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_in *args) {
    const struct kern_slots *s = args->slots;
    const struct kern_columns *c = columns_of(s, args->parts[0].matrix);
    if (!c) return;
    const bool is_one = args->n_tokens == 1;
    struct cpu_records records = cpu_records_at(args->scratch, c, is_one ? 1 : all_slots(s));
    size_t whole = 0, before = 0, lo, hi;
    for (int e = 0; e < s->n_experts; e++)
        for (int p = 0; p < args->n_parts && n_slots_of(s, e); p++) whole += cpu_tiles(args->parts[p].matrix[e]->n_rows) * cpu_groups(n_slots_of(s, e));
    cpu_share(whole, q, &lo, &hi);
    for (int e = 0; e < s->n_experts && before < hi; e++)
        for (int p = 0; p < args->n_parts && n_slots_of(s, e); p++) {
            const struct kern_experts_part *part = &args->parts[p];
            const struct kern_matrix *matrix = part->matrix[e];
            /* ---- those tiles that begin in [lo, hi) */
            size_t n_groups = cpu_groups(n_slots_of(s, e)), n = cpu_tiles(matrix->n_rows), first = (size_t)s->begin[e];
            size_t begin = lo > before ? (lo - before + n_groups - 1) / n_groups : 0, end = hi > before ? (hi - before + n_groups - 1) / n_groups : 0;
            before += n * n_groups;
            if (end > n) end = n;
            if (begin >= end) continue;
            struct cpu_product product = {.matrix = matrix,
                                          .x = cpu_records_of(&records, matrix, is_one ? 0 : first),
                                          .n_tokens = n_slots_of(s, e),
                                          .bias = part->bias ? part->bias[e] : NULL,
                                          .y = part->y + first * part->y_stride,
                                          .y_stride = part->y_stride};
            run_all_groups(m, &product, begin, end);
        }
}

/* ---- out ----------------------------------------------------------------------------------------------------------------------------------------- */

void cpu_experts_out_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_out *args) {
    const struct kern_slots *s = args->slots;
    const struct kern_columns *c = columns_of(s, args->matrix);
    if (!c || args->n_sums == 0) return;
    size_t lo, hi, before = 0;
    cpu_share(all_groups(s) * c->n_segments, q, &lo, &hi);
    for (int e = 0; e < s->n_experts; e++) {
        struct cpu_records records = cpu_records_at(args->scratch, c, all_slots(s));
        if (n_slots_of(s, e)) cpu_records_need(&records, args->matrix[e]);
        prepare_expert(m, &records, s, e, args->x, args->x_stride, false, lo, hi, &before);
    }
}

/* Many tokens leave room for few tiles, so that a matrix begins every few microseconds: its first lines are fetched while the one before is at work. */
static void fetch_next(const struct kern_experts_out *args, int e, size_t tile_lo, size_t tile_hi) {
    while (e < args->slots->n_experts && n_slots_of(args->slots, e) == 0) e++;
    if (e == args->slots->n_experts || tile_hi - tile_lo > MIN_TILES) return;
    const struct kern_matrix *matrix = args->matrix[e];
    const size_t bytes = cpu_row_tile_bytes(matrix->format, matrix);
    for (size_t tile = tile_lo; tile < tile_hi; tile++)
        for (size_t line = 0; line < FETCHED_BYTES && line < bytes; line += 64)
            __builtin_prefetch((const uint8_t *)matrix->data + tile * bytes + line, 0, 2);
}

/* sums: [row tile][token][sum][16] of row tiles [tile_lo, tile_hi), +0 before and after. */
static void run_tiles(const struct cpu_matmul *m, const struct kern_experts_out *args, const struct cpu_records *records, float *sums, size_t tile_lo, size_t tile_hi) {
    const struct kern_slots *s = args->slots;
    const size_t n_sums = (size_t)args->n_sums, n_tokens = (size_t)args->n_tokens, token_stride = n_sums * KERN_TILE_ROWS,
                 tile_stride = n_tokens * token_stride;
    for (int e = 0; e < s->n_experts; e++) {
        if (n_slots_of(s, e) == 0) continue;
        size_t first = (size_t)s->begin[e];
        struct cpu_product product = {.matrix = args->matrix[e],
                                      .x = cpu_records_of(records, args->matrix[e], first),
                                      .n_tokens = n_slots_of(s, e),
                                      .bias = args->bias ? args->bias[e] : NULL,
                                      .to = {.sums = sums + (args->sum_of ? args->sum_of[e] : 0) * (size_t)KERN_TILE_ROWS,
                                             .tile_stride = tile_stride,
                                             .token_stride = token_stride,
                                             .token = s->token + first,
                                             .weight = s->weight + first}};
        fetch_next(args, e + 1, tile_lo, tile_hi);
        run_all_groups(m, &product, tile_lo, tile_hi);
    }
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t tile = tile_lo; tile < tile_hi; tile++)
            m->fold(args, sums + (tile - tile_lo) * tile_stride + t * token_stride, t, tile * KERN_TILE_ROWS);
}

void cpu_experts_out_run(const struct cpu_matmul *m, struct kern_queue q, const struct kern_experts_out *args) {
    if (args->n_sums == 0 || args->n_tokens == 0) return;
    const struct kern_columns *c = columns_of(args->slots, args->matrix);
    struct cpu_records records = {0};
    size_t records_bytes = 0, lo, hi, block = SUMS_BYTES / tile_bytes(args->n_tokens, args->n_sums);
    if (c) {
        records = cpu_records_at(args->scratch, c, all_slots(args->slots));
        records_bytes = cpu_records_bytes(c, all_slots(args->slots));
    }
    block = block < MIN_TILES ? MIN_TILES : block / MIN_TILES * MIN_TILES;
    float *sums = (float *)(void *)((uint8_t *)args->scratch + records_bytes + (size_t)q.i_thread * sums_bytes(args->n_tokens, args->n_sums));
    cpu_share(cpu_tiles((size_t)args->n_rows), q, &lo, &hi);
    memset(sums, 0, (hi - lo < block ? hi - lo : block) * tile_bytes(args->n_tokens, args->n_sums));
    for (size_t tile = lo; tile < hi; tile += block) run_tiles(m, args, &records, sums, tile, tile + block < hi ? tile + block : hi);
}
