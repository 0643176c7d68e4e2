/* Products on the CPU, whatever the variant: laying out the activations, sharing rows out over threads, the order in which tiles meet groups of tokens.
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

/* Where the records of an activation begin; of `area` = 3: where they all end. */
static size_t area_at(int area, const struct kern_columns *columns, int n_tokens) {
    static const enum kern_activation order[] = {KERN_ACT_INT8, KERN_ACT_INT8_16, KERN_ACT_F32};
    size_t at = 0;
    for (int i = 0; i < area; i++) at = (at + (size_t)n_tokens * columns->n_segments * cpu_token_bytes(order[i]) + 63) & ~(size_t)63;
    return at;
}

static int area_of(enum kern_activation a) { return a == KERN_ACT_INT8 ? 0 : a == KERN_ACT_INT8_16 ? 1 : 2; }

size_t cpu_matmul_scratch_bytes(const struct kern_columns *columns, int n_tokens) { return area_at(3, columns, n_tokens); }

static void share(size_t n, struct kern_queue q, size_t *lo, size_t *hi) {
    *lo = n * (size_t)q.i_thread / (size_t)q.n_threads;
    *hi = n * ((size_t)q.i_thread + 1) / (size_t)q.n_threads;
}

/* ---- prepare ------------------------------------------------------------------------------------------------------------------------------------ */

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

void cpu_matmul_prepare(const struct cpu_matmul *m, struct kern_queue q, const struct kern_matmul *args) {
    if (args->n_parts == 0) return;
    bool needs[3] = {false, false, false};
    for (int p = 0; p < args->n_parts; p++) needs[area_of(args->parts[p].matrix->activation)] |= args->parts[p].matrix->n_rows > 0;
    const struct kern_columns *c = &args->parts[0].matrix->columns;
    uint8_t *scratch = args->scratch;
    size_t starts[3];
    for (int i = 0; i < 3; i++) starts[i] = area_at(i, c, args->n_tokens);

    size_t n_groups = ((size_t)args->n_tokens + CPU_GROUP - 1) / CPU_GROUP, lo, hi;
    share(n_groups * c->n_segments, q, &lo, &hi);
    for (size_t i = lo; i < hi; i++) {
        size_t g = i / c->n_segments, s = i % c->n_segments, first = g * CPU_GROUP;
        int n = args->n_tokens - (int)first < CPU_GROUP ? args->n_tokens - (int)first : CPU_GROUP;
        size_t before = first * c->n_segments + s * (size_t)n, columns = c->segment_columns[s], place = (c->begin + c->segment_begin[s]) % KERN_SEGMENT;
        for (int t = 0; t < n; t++) {
            const float *x = args->x + (first + (size_t)t) * args->x_stride;
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
            if (needs[0]) put_int8(m, x, n, t, scratch + starts[0] + before * cpu_token_bytes(KERN_ACT_INT8));
            if (needs[1]) put_int8_16(m, x, n, t, scratch + starts[1] + before * cpu_token_bytes(KERN_ACT_INT8_16));
            if (needs[2]) put_f32(x, n, t, (float *)(void *)(scratch + starts[2] + before * cpu_token_bytes(KERN_ACT_F32)));
        }
    }
}

/* ---- run ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Row tiles [tile_lo, tile_hi) of one part, for tokens of groups [group_lo, group_hi). */
static void run_part(const struct cpu_matmul *m, const struct kern_matmul *args, const struct kern_matmul_part *part, size_t tile_lo, size_t tile_hi,
                     size_t group_lo, size_t group_hi) {
    const struct kern_matrix *matrix = part->matrix;
    const struct kern_columns *c = &matrix->columns;
    cpu_rows_fn rows_fn = matrix->activation == KERN_ACT_F32 ? m->f32[matrix->format] : m->int8[matrix->format];
    const uint8_t *x = (const uint8_t *)args->scratch + area_at(area_of(matrix->activation), c, args->n_tokens);
    size_t token_bytes = cpu_token_bytes(matrix->activation), row_tile_bytes = cpu_row_tile_bytes(matrix->format, matrix);
    size_t step = group_hi - group_lo == 1 ? tile_hi - tile_lo : TILES_AT_ONCE;

    for (size_t tile = tile_lo; tile < tile_hi; tile += step) {
        size_t end = tile + step < tile_hi ? tile + step : tile_hi, row = tile * KERN_TILE_ROWS;
        for (size_t g = group_lo; g < group_hi; g++) {
            size_t first = g * CPU_GROUP, n_left = (size_t)args->n_tokens - first;
            struct cpu_rows rows = {
                .matrix = matrix,
                .tiles = (const uint8_t *)matrix->data + tile * row_tile_bytes,
                .x = x + first * c->n_segments * token_bytes,
                .n_tokens = n_left < CPU_GROUP ? (int)n_left : CPU_GROUP,
                .n_rows = (end * KERN_TILE_ROWS < matrix->n_rows ? end * KERN_TILE_ROWS : matrix->n_rows) - row,
                .bias = part->bias ? part->bias + row : NULL,
                .y = part->y + first * part->y_stride + row,
                .y_stride = part->y_stride,
                .vector_stride = part->vector_stride,
            };
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
        n_tiles += (args->parts[p].matrix->n_rows + KERN_TILE_ROWS - 1) / KERN_TILE_ROWS;
        has_f32 |= args->parts[p].matrix->activation == KERN_ACT_F32;
    }
    size_t n_groups = ((size_t)args->n_tokens + CPU_GROUP - 1) / CPU_GROUP;
    int n_row_shares = (int)choose_row_shares(n_tiles, n_groups, (size_t)q.n_threads);
    share(n_tiles, (struct kern_queue){q.i_thread % n_row_shares, n_row_shares}, &lo, &hi);
    share(n_groups, (struct kern_queue){q.i_thread / n_row_shares, q.n_threads / n_row_shares}, &group_lo, &group_hi);

    size_t group_bytes = (size_t)c->n_segments * CPU_GROUP * cpu_token_bytes(has_f32 ? KERN_ACT_F32 : KERN_ACT_INT8_16);
    size_t block = BLOCK_BYTES / group_bytes ? BLOCK_BYTES / group_bytes : 1;
    for (size_t g = group_lo; g < group_hi; g += block) {
        size_t g_end = g + block < group_hi ? g + block : group_hi, before = 0;
        for (int p = 0; p < args->n_parts; p++) {
            size_t n = (args->parts[p].matrix->n_rows + KERN_TILE_ROWS - 1) / KERN_TILE_ROWS;
            size_t begin = lo > before ? lo - before : 0, end = hi > before ? hi - before : 0;
            if (end > n) end = n;
            if (begin < end) run_part(m, args, &args->parts[p], begin, end, g, g_end);
            base_tick();
            before += n;
        }
    }
}
