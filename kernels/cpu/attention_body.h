/* The paged cache and attention over it; compiled once per instruction set. The order of operations is that of kernels/ref/attention.c, to the bit.
 *
 * The one idea: K lies dimension by dimension, 32 keys side by side, so a SIMD lane is a key while scores are computed; V lies key by key, so a lane is a
 * dimension while values are added. No sum crosses lanes on an inner loop, so each output has one order however many rows are worked on together, and
 * rows (query heads of one KV head × consecutive tokens of a run) can share each load of K and V.
 *
 * Work is shared out by rows, weighed by their number of visible keys; blocks that no row of a tile sees are not touched. Bytes moved per tile of rows: the K and V of its KV head once. */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "base/tick.h"
#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec.h"

#if defined(VEC_AVX512)
#define ROWS 8          /* of a tile */
#define CHUNK 8         /* rows whose sums are in registers together: 16 for scores, 16 for values */
#define SCORE_BLOCKS(n_rows) ((n_rows) <= 2 ? 4 : (n_rows) <= 4 ? 2 : 1) /* few rows: several blocks at once hide the latency of fma */
#define VALUE_VECS(n_rows) ((n_rows) <= 2 ? 8 : (n_rows) <= 4 ? 4 : 2)
#elif defined(VEC_AVX2)
#define ROWS 6
#define CHUNK 3
#define SCORE_BLOCKS(n_rows) ((n_rows) <= 1 ? 2 : 1)
#define VALUE_VECS(n_rows) ((n_rows) <= 1 ? 4 : 2)
#else
#define ROWS 4
#define CHUNK 1
#define SCORE_BLOCKS(n_rows) 1
#define VALUE_VECS(n_rows) 1
#endif
#define UNROLL _Pragma("GCC unroll 16")

enum { BLOCK = KERN_KV_BLOCK, PARTITION = KERN_KV_PARTITION, BLOCKS = PARTITION / BLOCK };

/* Where one KV head's K and V of a block lie, as element indexes from the block's begin */
struct kv_head {
    enum format format;
    size_t dim, k, v;
};

static struct kv_head kv_head(const struct kern_kv *kv, int head) {
    size_t dim = (size_t)kv->head_dim, matrix = dim * BLOCK;
    return (struct kv_head){kv->format, dim, (size_t)head * matrix, (size_t)(kv->n_kv_heads + head) * matrix};
}

static unsigned char *block_of(const struct kern_batch *b, const struct kern_kv *kv, int i_run, int32_t position) {
    const int32_t *table = b->block_table + (size_t)b->run_table[i_run] * b->block_table_stride;
    return (unsigned char *)kv->base + (size_t)table[position / BLOCK] * kv->block_bytes;
}

/* ---- append -------------------------------------------------------------------------------------------------------------------------------------- */

static void append_row(const struct kern_kv *kv, unsigned char *block, int head, size_t slot, const float *k, const float *v) {
    struct kv_head h = kv_head(kv, head);
    if (kv->format == FMT_E4M3) {
        for (size_t d = 0; d < h.dim; d += VEC_LANES) {
            size_t n = h.dim - d < VEC_LANES ? h.dim - d : VEC_LANES;
            uint8_t codes[VEC_LANES];
            vec_store_e4m3(codes, vec_div(vec_load_n(k + d, n), vec_set1(kv->k_scale)));
            for (size_t i = 0; i < n; i++)
                block[h.k + (d + i) * BLOCK + slot] = codes[i];
            vec_store_e4m3(codes, vec_div(vec_load_n(v + d, n), vec_set1(kv->v_scale)));
            memcpy(block + h.v + slot * h.dim + d, codes, n);
        }
        return;
    }
    if (kv->format == FMT_F32) {
        float *base = (float *)block;
        for (size_t d = 0; d < h.dim; d++)
            base[h.k + d * BLOCK + slot] = k[d];
        memcpy(base + h.v + slot * h.dim, v, h.dim * sizeof *v);
        return;
    }
    uint16_t *base = (uint16_t *)block;
    if (kv->format == FMT_BF16) {
        for (size_t d = 0; d < h.dim; d++) {
            base[h.k + d * BLOCK + slot] = kern_f32_to_bf16(k[d]);
            base[h.v + slot * h.dim + d] = kern_f32_to_bf16(v[d]);
        }
        return;
    }
    for (size_t d = 0; d < h.dim; d += VEC_LANES) {
        size_t n = h.dim - d < VEC_LANES ? h.dim - d : VEC_LANES;
        uint16_t half[VEC_LANES];
        vec_store_f16(half, vec_load_n(k + d, n));
        for (size_t i = 0; i < n; i++)
            base[h.k + (d + i) * BLOCK + slot] = half[i];
        vec_store_f16(half, vec_load_n(v + d, n));
        memcpy(base + h.v + slot * h.dim + d, half, n * sizeof *half);
    }
}

/* Shares are by (head, token), heads first: threads then seldom write to the same line of K. */
void CPU_NAME(kv_append)(struct kern_queue q, const struct kern_kv_append *args) {
    const struct kern_batch *b = args->batch;
    size_t n_items = (size_t)args->kv->n_kv_heads * (size_t)b->n_tokens, dim = (size_t)args->kv->head_dim;
    size_t begin = n_items * (size_t)q.i_thread / (size_t)q.n_threads, end = n_items * (size_t)(q.i_thread + 1) / (size_t)q.n_threads;
    for (int r = 0; r < b->n_runs; r++)
        for (size_t h = 0; h < (size_t)args->kv->n_kv_heads; h++) {
            size_t first = h * (size_t)b->n_tokens + (size_t)b->run_begin[r], last = first + (size_t)b->run_tokens[r];
            for (size_t i = first > begin ? first : begin; i < last && i < end; i++) {
                size_t t = i - h * (size_t)b->n_tokens;
                int32_t p = b->position[t];
                append_row(args->kv, block_of(b, args->kv, r, p), (int)h, (size_t)p % BLOCK, args->k + t * args->k_stride + h * dim,
                           args->v + t * args->v_stride + h * dim);
            }
        }
}

/* ---- a tile: rows of one run and one KV head -------------------------------------------------------------------------------------------------------- */

struct tile {
    int n_rows;
    size_t stride;          /* between rows of the arrays by dimension: head_dim rounded up to whole vectors */
    int32_t first_key[ROWS], n_keys[ROWS]; /* each row sees first_key … n_keys − 1 */
    float max[ROWS], total_max[ROWS], total_sum[ROWS];
    _Alignas(64) float lane[ROWS][BLOCK];        /* running sum of a partition, key by key modulo 32 */
    _Alignas(64) float weight[ROWS][BLOCK];      /* of the block at hand */
    float rescale[ROWS];
    int32_t from[ROWS], to[ROWS]; /* what each row sees of the block at hand: from … to − 1 */
    _Alignas(64) float score[ROWS][PARTITION];
    _Alignas(64) float q[ROWS * CPU_MAX_HEAD_DIM], acc[ROWS * CPU_MAX_HEAD_DIM], total[ROWS * CPU_MAX_HEAD_DIM];
};

/* Scores of n_rows rows from `row` on with n_blocks blocks; both constants after inlining. */
VEC_INLINE void score_blocks(struct tile *t, enum format f, struct kv_head h, unsigned char *const *blocks, int row, int i_block, const int n_rows,
                             const int n_blocks) {
    vec sum[16];
    UNROLL for (int i = 0; i < 2 * n_rows * n_blocks; i++) sum[i] = vec_zero();
    const float *q = t->q + (size_t)row * t->stride;
    for (size_t d = 0; d < h.dim; d++) {
        UNROLL for (int b = 0; b < n_blocks; b++) {
            vec k0, k1;
            vec_load_two_as(f, blocks[i_block + b], h.k + d * BLOCK, &k0, &k1);
            UNROLL for (int r = 0; r < n_rows; r++) {
                vec x = vec_set1(q[(size_t)r * t->stride + d]);
                sum[2 * (b * n_rows + r)] = vec_fma(x, k0, sum[2 * (b * n_rows + r)]);
                sum[2 * (b * n_rows + r) + 1] = vec_fma(x, k1, sum[2 * (b * n_rows + r) + 1]);
            }
        }
    }
    UNROLL for (int b = 0; b < n_blocks; b++) UNROLL for (int r = 0; r < n_rows; r++) {
        vec_store(&t->score[row + r][(i_block + b) * BLOCK], sum[2 * (b * n_rows + r)]);
        vec_store(&t->score[row + r][(i_block + b) * BLOCK + VEC_LANES], sum[2 * (b * n_rows + r) + 1]);
    }
}

VEC_INLINE void score_rows(struct tile *t, enum format f, struct kv_head h, unsigned char *const *blocks, int n, int row, const int n_rows) {
    int i = 0;
    for (; i + SCORE_BLOCKS(n_rows) <= n; i += SCORE_BLOCKS(n_rows))
        score_blocks(t, f, h, blocks, row, i, n_rows, SCORE_BLOCKS(n_rows));
    for (; i < n; i++)
        score_blocks(t, f, h, blocks, row, i, n_rows, 1);
}

/* acc[d] = acc[d]·rescale + Σ weight[j]·v[j][d] for keys j_begin … j_end−1 in order, n_rows rows, n_vecs vectors of dimensions from d on; with `first` the rescaling. */
VEC_INLINE void value_vecs(struct tile *t, enum format f, struct kv_head h, const unsigned char *block, int row, int32_t j_begin, int32_t j_end, bool first,
                           size_t d, const int n_rows, const int n_vecs) {
    vec sum[16];
    float *acc = t->acc + (size_t)row * t->stride + d;
    UNROLL for (int r = 0; r < n_rows; r++) UNROLL for (int i = 0; i < n_vecs; i++) {
        vec a = vec_load(acc + (size_t)r * t->stride + i * VEC_LANES);
        sum[r * n_vecs + i] = first ? vec_mul(a, vec_set1(t->rescale[row + r])) : a;
    }
    for (int32_t j = j_begin; j < j_end; j++) {
        vec w[CHUNK];
        UNROLL for (int r = 0; r < n_rows; r++) w[r] = vec_set1(t->weight[row + r][j]);
        UNROLL for (int i = 0; i < n_vecs; i += 2) {
            size_t at = h.v + (size_t)j * h.dim + d + (size_t)i * VEC_LANES;
            if (i + 1 == n_vecs) {
                vec v = vec_load_as(f, block, at);
                UNROLL for (int r = 0; r < n_rows; r++) sum[r * n_vecs + i] = vec_fma(w[r], v, sum[r * n_vecs + i]);
            } else {
                vec v0, v1;
                vec_load_two_as(f, block, at, &v0, &v1);
                UNROLL for (int r = 0; r < n_rows; r++) sum[r * n_vecs + i] = vec_fma(w[r], v0, sum[r * n_vecs + i]);
                UNROLL for (int r = 0; r < n_rows; r++) sum[r * n_vecs + i + 1] = vec_fma(w[r], v1, sum[r * n_vecs + i + 1]);
            }
        }
    }
    UNROLL for (int r = 0; r < n_rows; r++) UNROLL for (int i = 0; i < n_vecs; i++)
        vec_store(acc + (size_t)r * t->stride + i * VEC_LANES, sum[r * n_vecs + i]);
}

/* The dimensions that fill no vector: the same, with a load that stays inside the row. */
VEC_INLINE void value_rest(struct tile *t, enum format f, struct kv_head h, const unsigned char *block, int row, int32_t j_begin, int32_t j_end, bool first,
                           size_t d, const int n_rows) {
    for (int r = 0; r < n_rows; r++) {
        float *acc = t->acc + (size_t)(row + r) * t->stride + d;
        vec sum = vec_load(acc);
        if (first)
            sum = vec_mul(sum, vec_set1(t->rescale[row + r]));
        for (int32_t j = j_begin; j < j_end; j++)
            sum = vec_fma(vec_set1(t->weight[row + r][j]), vec_load_as_n(f, block, h.v + (size_t)j * h.dim + d, h.dim - d), sum);
        vec_store(acc, sum);
    }
}

VEC_INLINE void value_rows(struct tile *t, enum format f, struct kv_head h, const unsigned char *block, int row, int32_t j_begin, int32_t j_end, bool first,
                           const int n_rows) {
    size_t d = 0;
    for (; d + VALUE_VECS(n_rows) * VEC_LANES <= h.dim; d += VALUE_VECS(n_rows) * VEC_LANES)
        value_vecs(t, f, h, block, row, j_begin, j_end, first, d, n_rows, VALUE_VECS(n_rows));
    for (; VALUE_VECS(n_rows) > 4 && d + 4 * VEC_LANES <= h.dim; d += 4 * VEC_LANES)
        value_vecs(t, f, h, block, row, j_begin, j_end, first, d, n_rows, VALUE_VECS(n_rows) > 4 ? 4 : 1);
    for (; d + VEC_LANES <= h.dim; d += VEC_LANES)
        value_vecs(t, f, h, block, row, j_begin, j_end, first, d, n_rows, 1);
    if (d < h.dim)
        value_rest(t, f, h, block, row, j_begin, j_end, first, d, n_rows);
}

/* ---- constants for the compiler: number of rows, and format ------------------------------------------------------------------------------------------ */

#if CHUNK == 8
#define ROW_CASES(call) \
    case 2: call(2); break; \
    case 3: call(3); break; \
    case 4: call(4); break; \
    case 5: call(5); break; \
    case 6: call(6); break; \
    case 7: call(7); break; \
    case 8: call(8); break;
#elif CHUNK == 3
#define ROW_CASES(call) \
    case 2: call(2); break; \
    case 3: call(3); break;
#else
#define ROW_CASES(call)
#endif
#define FOR_ROWS(n, call)                 \
    switch (n) {                          \
        ROW_CASES(call)                   \
    default: call(1); break;              \
    }

#define FORMAT_VARIANT(f)                                                                                                                        \
    static void score_##f(struct tile *t, struct kv_head h, unsigned char *const *blocks, int n) {                                               \
        for (int row = 0; row < t->n_rows; row += CHUNK) {                                                                                       \
            int n_rows = t->n_rows - row < CHUNK ? t->n_rows - row : CHUNK;                                                                      \
            FOR_ROWS(n_rows, SCORE_CALL_##f)                                                                                                     \
        }                                                                                                                                        \
    }                                                                                                                                            \
    static void value_##f(struct tile *t, struct kv_head h, const unsigned char *block, int row, int n_rows, int32_t j_begin, int32_t j_end, bool first) { \
        FOR_ROWS(n_rows, VALUE_CALL_##f)                                                                                                         \
    }
#define SCORE_CALL_FMT_F32(c) score_rows(t, FMT_F32, h, blocks, n, row, c)
#define SCORE_CALL_FMT_F16(c) score_rows(t, FMT_F16, h, blocks, n, row, c)
#define SCORE_CALL_FMT_BF16(c) score_rows(t, FMT_BF16, h, blocks, n, row, c)
#define SCORE_CALL_FMT_E4M3(c) score_rows(t, FMT_E4M3, h, blocks, n, row, c)
#define VALUE_CALL_FMT_F32(c) value_rows(t, FMT_F32, h, block, row, j_begin, j_end, first, c)
#define VALUE_CALL_FMT_F16(c) value_rows(t, FMT_F16, h, block, row, j_begin, j_end, first, c)
#define VALUE_CALL_FMT_BF16(c) value_rows(t, FMT_BF16, h, block, row, j_begin, j_end, first, c)
#define VALUE_CALL_FMT_E4M3(c) value_rows(t, FMT_E4M3, h, block, row, j_begin, j_end, first, c)
FORMAT_VARIANT(FMT_F32)
FORMAT_VARIANT(FMT_F16)
FORMAT_VARIANT(FMT_BF16)
FORMAT_VARIANT(FMT_E4M3)

static void score(struct tile *t, struct kv_head h, unsigned char *const *blocks, int n) {
    if (h.format == FMT_F16)
        score_FMT_F16(t, h, blocks, n);
    else if (h.format == FMT_BF16)
        score_FMT_BF16(t, h, blocks, n);
    else if (h.format == FMT_E4M3)
        score_FMT_E4M3(t, h, blocks, n);
    else
        score_FMT_F32(t, h, blocks, n);
}

static void value(struct tile *t, struct kv_head h, const unsigned char *block, int row, int n_rows, int32_t j_begin, int32_t j_end, bool first) {
    if (h.format == FMT_F16)
        value_FMT_F16(t, h, block, row, n_rows, j_begin, j_end, first);
    else if (h.format == FMT_BF16)
        value_FMT_BF16(t, h, block, row, n_rows, j_begin, j_end, first);
    else if (h.format == FMT_E4M3)
        value_FMT_E4M3(t, h, block, row, n_rows, j_begin, j_end, first);
    else
        value_FMT_F32(t, h, block, row, n_rows, j_begin, j_end, first);
}

/* ---- blocks and partitions ---------------------------------------------------------------------------------------------------------------------------- */

static float exp_of(float x) { return vec_lane0(vec_exp(vec_set1(x))); }

/* Maximum, weights and running sum of one row for the block's visible keys, of which there are some. */
static void weigh(struct tile *t, int r, const float *score_row, size_t from, size_t to) {
    const vec none = vec_set1(-INFINITY);
    vec s0 = vec_load(score_row), s1 = vec_load(score_row + VEC_LANES);
    if (to < BLOCK) { /* lanes beyond may hold anything, NaN too */
        size_t n0 = to < VEC_LANES ? to : VEC_LANES;
        s0 = vec_keep(s0, n0, none);
        s1 = vec_keep(s1, to - n0, none);
    }
    if (from > 0) {
        size_t n0 = from < VEC_LANES ? from : VEC_LANES;
        s0 = vec_keep(none, n0, s0);
        s1 = vec_keep(none, from - n0, s1);
    }
    float largest = vec_largest(vec_max(s0, s1)), max = largest > t->max[r] ? largest : t->max[r];
    float rescale = max == t->max[r] ? 1.0f : exp_of(t->max[r] - max); /* exp(0) is 1 exactly */
    vec p0 = vec_exp(vec_sub(s0, vec_set1(max))), p1 = vec_exp(vec_sub(s1, vec_set1(max)));
    vec_store(t->weight[r], p0);
    vec_store(t->weight[r] + VEC_LANES, p1);
    vec_store(t->lane[r], vec_fma(vec_load(t->lane[r]), vec_set1(rescale), p0));
    vec_store(t->lane[r] + VEC_LANES, vec_fma(vec_load(t->lane[r] + VEC_LANES), vec_set1(rescale), p1));
    t->max[r] = max;
    t->rescale[r] = rescale;
}

static int32_t clamp_to_block(int32_t n) { return n < 0 ? 0 : n > BLOCK ? BLOCK : n; }

static void add_block(struct tile *t, struct kv_head h, const unsigned char *block, int i_block, int32_t position) {
    /* ---- what each row sees of it, and what all of them: lo … hi − 1 */
    int32_t lo = 0, hi = BLOCK;
    for (int r = 0; r < t->n_rows; r++) {
        t->from[r] = clamp_to_block(t->first_key[r] - position);
        t->to[r] = clamp_to_block(t->n_keys[r] - position);
        if (t->from[r] < t->to[r]) {
            weigh(t, r, &t->score[r][i_block * BLOCK], (size_t)t->from[r], (size_t)t->to[r]);
        } else {
            t->from[r] = t->to[r] = 0;
            t->rescale[r] = 1.0f;
        }
        lo = t->from[r] > lo ? t->from[r] : lo;
        hi = t->to[r] < hi ? t->to[r] : hi;
    }
    hi = hi < lo ? lo : hi;
    bool someone_before = false;
    for (int r = 0; r < t->n_rows; r++)
        someone_before |= t->from[r] < lo && t->from[r] < t->to[r];
    /* ---- a row's own keys before those that all rows see, these together, its own after them: in order for each row, and nobody touches what it may not see.
     * Whichever comes first rescales. */
    for (int r = 0; r < t->n_rows && someone_before; r++)
        value(t, h, block, r, 1, t->from[r], t->to[r] < lo ? t->to[r] : lo, true);
    for (int row = 0; row < t->n_rows; row += CHUNK)
        value(t, h, block, row, t->n_rows - row < CHUNK ? t->n_rows - row : CHUNK, lo, hi, !someone_before);
    for (int r = 0; r < t->n_rows; r++)
        if (t->to[r] > hi)
            value(t, h, block, r, 1, t->from[r] > hi ? t->from[r] : hi, t->to[r], false);
}

/* Merges (max, sum, acc) into the total of row r; acc NULL: zeroes. */
static void merge(struct tile *t, int r, float part_max, float sum, const float *acc) {
    float *total = t->total + (size_t)r * t->stride;
    float max = part_max > t->total_max[r] ? part_max : t->total_max[r];
    float a = exp_of(t->total_max[r] - max), b = exp_of(part_max - max);
    t->total_max[r] = max;
    t->total_sum[r] = vec_lane0(vec_fma(vec_set1(t->total_sum[r]), vec_set1(a), vec_set1(sum * b)));
    for (size_t d = 0; d < t->stride; d += VEC_LANES)
        vec_store(total + d, vec_fma(vec_load(total + d), vec_set1(a), vec_mul(acc ? vec_load(acc + d) : vec_zero(), vec_set1(b))));
}

/* The finished partition of row r goes into its total; `first`: it is the total. */
static void end_partition(struct tile *t, int r, bool first) {
    float *acc = t->acc + (size_t)r * t->stride, sum = vec_sum(vec_add(vec_load(t->lane[r]), vec_load(t->lane[r] + VEC_LANES)));
    if (!first) {
        merge(t, r, t->max[r], sum, acc);
        return;
    }
    t->total_max[r] = t->max[r];
    t->total_sum[r] = sum;
    memcpy(t->total + (size_t)r * t->stride, acc, t->stride * sizeof *acc);
}

/* Keys that token t sees: *first … the number that is returned, less one. */
static int32_t keys_of(const struct kern_attention *args, size_t t, int32_t *first) {
    int32_t n = args->batch->position[t] + 1;
    *first = args->window && n > args->window ? n - args->window : 0;
    return n;
}

/* Rows [row, row + n_rows) of (run, KV head): row i is token i / n_heads, head first_head + i % n_heads. */
static void attend_tile(const struct kern_attention *args, struct tile *t, int i_run, int i_kv_head, int first_head, int n_heads, int row, int n_rows) {
    const struct kern_batch *b = args->batch;
    const struct kern_kv *kv = args->kv;
    struct kv_head h = kv_head(kv, i_kv_head);
    float scale = kv->format == FMT_E4M3 ? args->scale * (256 * kv->k_scale) : args->scale;
    t->n_rows = n_rows;
    t->stride = (h.dim + VEC_LANES - 1) / VEC_LANES * VEC_LANES;

    /* ---- queries, scaled */
    int32_t least = INT32_MAX, most = 0; /* keys that any row sees: least … most − 1 */
    for (int r = 0; r < n_rows; r++) {
        size_t token = (size_t)(b->run_begin[i_run] + (row + r) / n_heads), head = (size_t)(first_head + (row + r) % n_heads);
        const float *q = args->q + token * args->q_stride + head * h.dim;
        for (size_t d = 0; d < h.dim; d += VEC_LANES) {
            size_t n = h.dim - d < VEC_LANES ? h.dim - d : VEC_LANES;
            vec_store(t->q + (size_t)r * t->stride + d, vec_mul(vec_load_n(q + d, n), vec_set1(scale)));
        }
        t->n_keys[r] = keys_of(args, token, &t->first_key[r]);
        least = t->first_key[r] < least ? t->first_key[r] : least;
        most = t->n_keys[r] > most ? t->n_keys[r] : most;
    }

    /* ---- partitions, first to last */
    for (int32_t begin = least / PARTITION * PARTITION; begin < most; begin += PARTITION) {
        unsigned char *blocks[BLOCKS];
        int n_blocks = 0;
        const int32_t first_block = least > begin ? least / BLOCK * BLOCK : begin;
        for (int32_t at = first_block; at < most && at < begin + PARTITION; at += BLOCK)
            blocks[n_blocks++] = block_of(b, kv, i_run, at);
        for (int r = 0; r < n_rows; r++) {
            t->max[r] = -INFINITY;
            memset(t->lane[r], 0, sizeof t->lane[r]);
        }
        memset(t->acc, 0, (size_t)n_rows * t->stride * sizeof *t->acc);
        score(t, h, blocks, n_blocks);
        for (int i = 0; i < n_blocks; i++)
            add_block(t, h, blocks[i], i, first_block + i * BLOCK);
        for (int r = 0; r < n_rows; r++)
            if (t->n_keys[r] > begin && t->first_key[r] < begin + PARTITION)
                end_partition(t, r, t->first_key[r] >= begin);
    }
    for (int r = 0; r < n_rows && args->sinks; r++)
        merge(t, r, args->sinks[first_head + (row + r) % n_heads], 1, NULL);

    /* ---- out */
    for (int r = 0; r < n_rows; r++) {
        size_t token = (size_t)(b->run_begin[i_run] + (row + r) / n_heads), head = (size_t)(first_head + (row + r) % n_heads);
        float *out = args->out + token * args->out_stride + head * h.dim;
        for (size_t d = 0; d < h.dim; d += VEC_LANES) {
            vec y = vec_div(vec_load(t->total + (size_t)r * t->stride + d), vec_set1(t->total_sum[r]));
            if (kv->format == FMT_E4M3)
                y = vec_mul(y, vec_set1(256 * kv->v_scale));
            vec_store_n(out + d, y, h.dim - d < VEC_LANES ? h.dim - d : VEC_LANES);
        }
    }
}

/* ---- sharing ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Local query heads [first, first + n) that read local KV head k */
static int heads_of(const struct kern_attention *args, int k, int *first) {
    int lo = (args->kv_first + k) * args->group - args->q_first, hi = lo + args->group;
    lo = lo < 0 ? 0 : lo;
    hi = hi > args->n_heads ? args->n_heads : hi;
    *first = lo;
    return hi > lo ? hi - lo : 0;
}

/* Rows stand in a line: run, KV head, token, query head. A thread takes those whose costs (keys) of all rows before fall into its share of the whole. */
void CPU_NAME(attention)(struct kern_queue q, const struct kern_attention *args) {
    const struct kern_batch *b = args->batch;
    uint64_t whole = 0;
    int32_t first_key;
    for (int t = 0; t < b->n_tokens; t++)
        whole += (uint64_t)(keys_of(args, (size_t)t, &first_key) - first_key);
    whole *= (uint64_t)args->n_heads;
    uint64_t n = (uint64_t)q.n_threads, share_begin = (whole * (uint64_t)q.i_thread + n - 1) / n, share_end = (whole * (uint64_t)(q.i_thread + 1) + n - 1) / n;

    struct tile tile;
    uint64_t before = 0;
    for (int r = 0; r < b->n_runs && before < share_end; r++)
        for (int k = 0; k < args->kv->n_kv_heads; k++) {
            int first_head, n_heads = heads_of(args, k, &first_head), begin = -1, end = -1;
            for (int i = 0; i < b->run_tokens[r]; i++)
                for (int h = 0; h < n_heads; h++) {
                    if (before >= share_begin && before < share_end) {
                        begin = begin < 0 ? i * n_heads + h : begin;
                        end = i * n_heads + h + 1;
                    }
                    before += (uint64_t)(keys_of(args, (size_t)(b->run_begin[r] + i), &first_key) - first_key);
                }
            for (int row = begin; row >= 0 && row < end; row += ROWS) {
                attend_tile(args, &tile, r, k, first_head, n_heads, row, end - row < ROWS ? end - row : ROWS);
                base_tick();
            }
        }
}
