/* Products on the CPU, whatever the variant: sharing rows out over threads, the order in which tiles meet groups of tokens.
 *
 * Weights are streamed once per block of tokens; a block's activations stay in the second-level cache, a row tile in the first or second while all groups of
 * the block pass over it. Nothing here touches the order of a sum. */
#include <string.h>

#include "base/status.h"
#include "base/tick.h"
#include "kernels/cpu/matmul_priv.h"

/* Activations of one block of tokens: half of the smallest second-level cache that we care for (1 MiB), and never less than one group. */
enum { BLOCK_BYTES = 512 * 1024 };
/* Row tiles that all groups of a block pass over before the next ones come: as many as the kernels take at once for 8 tokens. */
enum { TILES_AT_ONCE = 2 };

size_t cpu_matmul_scratch_bytes(const struct kern_columns *columns, int n_tokens) { return cpu_records_bytes(columns, (size_t)n_tokens); }

static struct cpu_records records_of(const struct kern_matmul *args) {
    return cpu_records_at(args->scratch, &args->parts[0].matrix->columns, (size_t)args->n_tokens);
}

/* Shared out by (group, segment). */
void cpu_matmul_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_matmul *args) {
    if (args->n_parts == 0) return;
    struct cpu_records records = records_of(args);
    for (int p = 0; p < args->n_parts; p++) cpu_records_need(&records, args->parts[p].matrix);

    size_t n_segments = records.columns->n_segments, n_tokens = (size_t)args->n_tokens, lo, hi;
    cpu_share(cpu_groups(n_tokens) * n_segments, q, &lo, &hi);
    for (size_t next; lo < hi; lo = next) {
        size_t g = lo / n_segments, first = g * CPU_GROUP, begin = lo - g * n_segments;
        next = (g + 1) * n_segments < hi ? (g + 1) * n_segments : hi;
        struct cpu_group group = {.first = first,
                                  .n = n_tokens - first < CPU_GROUP ? (int)(n_tokens - first) : CPU_GROUP,
                                  .x = args->x + first * args->x_stride,
                                  .x_stride = args->x_stride};
        cpu_records_put(m, &records, &group, begin, next - g * n_segments);
    }
}

/* ---- run ---------------------------------------------------------------------------------------------------------------------------------------- */

size_t cpu_block_groups(const struct kern_columns *columns, bool is_f32) {
    size_t group_bytes = (size_t)columns->n_segments * CPU_GROUP * cpu_token_bytes(is_f32 ? KERN_ACT_F32 : KERN_ACT_INT8_16);
    return group_bytes && group_bytes < BLOCK_BYTES ? BLOCK_BYTES / group_bytes : 1;
}

void cpu_product_run(const struct cpu_matmul *m, const struct cpu_product *p, size_t tile_lo, size_t tile_hi, size_t group_lo, size_t group_hi) {
    const struct kern_matrix *matrix = p->matrix;
    cpu_rows_fn rows_fn = matrix->activation == KERN_ACT_F32 ? m->f32[matrix->format] : m->int8[matrix->format];
    size_t token_bytes = matrix->columns.n_segments * cpu_token_bytes(matrix->activation), row_tile_bytes = cpu_row_tile_bytes(matrix->format, matrix);
    size_t step = group_hi - group_lo == 1 ? tile_hi - tile_lo : TILES_AT_ONCE;

    for (size_t tile = tile_lo; tile < tile_hi; tile += step) {
        size_t end = tile + step < tile_hi ? tile + step : tile_hi, row = tile * KERN_TILE_ROWS;
        for (size_t g = group_lo; g < group_hi; g++) {
            size_t first = g * CPU_GROUP, n_left = p->n_tokens - first;
            struct cpu_rows rows = {
                .matrix = matrix,
                .tiles = (const uint8_t *)matrix->data + tile * row_tile_bytes,
                .x = p->x + first * token_bytes,
                .n_tokens = n_left < CPU_GROUP ? (int)n_left : CPU_GROUP,
                .n_rows = (end * KERN_TILE_ROWS < matrix->n_rows ? end * KERN_TILE_ROWS : matrix->n_rows) - row,
                .bias = p->bias ? p->bias + row : NULL,
            };
            if (p->to.sums) {
                rows.to = p->to;
                rows.to.sums += (tile - tile_lo) * p->to.tile_stride;
                rows.to.token += first;
                rows.to.weight += first;
            } else {
                rows.y = p->y + first * p->y_stride + row;
                rows.y_stride = p->y_stride;
                rows.vector_stride = p->vector_stride;
            }
            rows_fn(&rows);
        }
    }
}

/* Threads in a grid of rows × groups of tokens: where a matrix has few row tiles for each thread, many tokens are shared out as well, so that no thread has much
 * more than another. Returns the grid's height in rows; fewer groups apart read the weights less often, so the first of equals wins. */
static size_t choose_row_shares(size_t n_tiles, size_t n_groups, size_t n_threads) {
    size_t best = n_threads, best_load = (size_t)-1;
    for (size_t by_group = 1; by_group <= n_threads && by_group <= n_groups; by_group++) {
        if (n_threads % by_group) continue;
        size_t by_row = n_threads / by_group, load = ((n_tiles + by_row - 1) / by_row) * ((n_groups + by_group - 1) / by_group);
        if (load < best_load) best = by_row, best_load = load;
    }
    return best;
}

void cpu_matmul_run(const struct cpu_matmul *m, struct kern_queue q, const struct kern_matmul *args) {
    if (args->n_parts == 0 || args->n_tokens == 0) return;
    const struct kern_columns *c = &args->parts[0].matrix->columns;
    if (c->n_vectors == 0) return; /* no leaves here */

    /* All parts' row tiles are one range, so that small matrices balance. */
    size_t n_tiles = 0, lo, hi, group_lo, group_hi;
    bool has_f32 = false;
    for (int p = 0; p < args->n_parts; p++) {
        n_tiles += cpu_tiles(args->parts[p].matrix->n_rows);
        has_f32 |= args->parts[p].matrix->activation == KERN_ACT_F32;
    }
    size_t n_groups = cpu_groups((size_t)args->n_tokens);
    int n_row_shares = (int)choose_row_shares(n_tiles, n_groups, (size_t)q.n_threads);
    cpu_share(n_tiles, (struct kern_queue){q.i_thread % n_row_shares, n_row_shares}, &lo, &hi);
    cpu_share(n_groups, (struct kern_queue){q.i_thread / n_row_shares, q.n_threads / n_row_shares}, &group_lo, &group_hi);

    struct cpu_records records = records_of(args);
    size_t block = cpu_block_groups(c, has_f32);
    for (size_t g = group_lo; g < group_hi; g += block) {
        size_t g_end = g + block < group_hi ? g + block : group_hi, before = 0;
        for (int p = 0; p < args->n_parts; p++) {
            const struct kern_matmul_part *part = &args->parts[p];
            struct cpu_product product = {.matrix = part->matrix,
                                          .x = cpu_records_of(&records, part->matrix, 0),
                                          .n_tokens = (size_t)args->n_tokens,
                                          .bias = part->bias,
                                          .y = part->y,
                                          .y_stride = part->y_stride,
                                          .vector_stride = part->vector_stride};
            size_t n = cpu_tiles(part->matrix->n_rows), begin = lo > before ? lo - before : 0, end = hi > before ? hi - before : 0;
            if (end > n) end = n;
            if (begin < end) cpu_product_run(m, &product, begin, end, g, g_end);
            base_tick();
            before += n;
        }
    }
}
