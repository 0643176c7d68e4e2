/* Products and embedding rows, by the letter.
 *
 * A matrix is kept as the file's own blocks, row after row, from the block that holds columns.begin to the one that holds columns.end − 1.
 * The order of an output's sum: acc = +0 at the start of a leaf; then segment after segment
 *   F32:     acc = fma(w, x, acc), columns in order, w dequantised as the format says;
 *   int8:    acc = fma(dot, d_w·d_x, acc) with the exact integer dot; a format with a minimum then acc = fma(m, d_x·Σq, acc);
 *   int8_16: acc = fma(dot, d_w·d_x, acc) for the first half of the block of 32, then for the second, each with its own d_w and d_x;
 * d_w and m are struct format_group's (a K-quant's are products of two numbers of the file, exact in F32; FP8 is whole numbers of a segment's largest where activations are int8). A segment that is a part of a block of 32 counts for
 * the whole block: columns that it lacks have q = 0 (FP8: w = d·0) and x = 0, so an infinite or undefined scale makes the sum NaN whether a column is missing or zero.
 * A leaf's sum times the matrix's scale goes into the fold that struct kern_columns states; a bias is added last. */
#include <math.h>
#include <string.h>

#include "base/tick.h"
#include "kernels/ref/ref.h"
#include "kernels/tree.h"

#define GROUP 8 /* tokens that share one decoding of a segment: no influence on any sum */

/* ---- storage ------------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t first_block(enum format f, const struct kern_columns *c) { return c->begin / kern_format(f)->block_columns; }

static size_t row_bytes(enum format f, const struct kern_columns *c) {
    const struct format_info *info = kern_format(f);
    if (c->begin == c->end)
        return 0;
    uint64_t end_block = (c->end + info->block_columns - 1) / info->block_columns;
    return (size_t)(end_block - first_block(f, c)) * info->block_bytes;
}

size_t ref_matrix_bytes(const struct kern_matrix *m) { return (size_t)m->n_rows * row_bytes(m->format, &m->columns); }

void ref_matrix_pack(const struct kern_pack *args) {
    const struct kern_matrix *m = args->matrix;
    const struct format_info *info = kern_format(m->format);
    size_t bytes = row_bytes(m->format, &m->columns);
    const unsigned char *src = args->src;
    size_t skip = (size_t)(first_block(m->format, &m->columns) - args->first_column / info->block_columns) * info->block_bytes;
    for (uint64_t i = 0; i < args->n_rows && bytes; i++)
        memcpy((unsigned char *)m->data + (args->row_begin + i) * bytes, src + i * args->row_stride_bytes + skip, bytes);
}

/* The block that holds local column `column` of a row, and where in it the column stands. */
static const unsigned char *locate(const struct kern_matrix *m, uint64_t row, uint64_t column, uint32_t *offset) {
    const struct format_info *info = kern_format(m->format);
    uint64_t absolute = m->columns.begin + column;
    *offset = (uint32_t)(absolute % info->block_columns);
    size_t block = (size_t)(absolute / info->block_columns - first_block(m->format, &m->columns));
    return (const unsigned char *)m->data + row * row_bytes(m->format, &m->columns) + block * info->block_bytes;
}

/* Where in its block of 32 a segment begins. */
static uint32_t place_of(const struct kern_columns *c, uint32_t s) { return (uint32_t)((c->begin + c->segment_begin[s]) % KERN_SEGMENT); }

/* FP8: the block of 32 that segment s lies in; what is no part of the segment has the code of 0. */
static const unsigned char *own_codes(const struct kern_matrix *m, uint64_t row, uint32_t s, unsigned char block[4 + KERN_SEGMENT]) {
    uint32_t offset, place = place_of(&m->columns, s);
    const unsigned char *p = locate(m, row, m->columns.segment_begin[s], &offset);
    memset(block, 0, 4 + KERN_SEGMENT);
    memcpy(block, p, 4);
    memcpy(block + 4 + place, p + 4 + place, m->columns.segment_columns[s]);
    return block;
}

/* The block of 32 that segment s lies in; what is no part of the segment has q = 0. */
static void decode_group(const struct kern_matrix *m, uint64_t row, uint32_t s, struct format_group *g) {
    uint32_t offset, place = place_of(&m->columns, s);
    const unsigned char *p = locate(m, row, m->columns.segment_begin[s], &offset);
    unsigned char own[4 + KERN_SEGMENT];
    if (m->format == FMT_FP8)
        p = own_codes(m, row, s, own); /* whose largest counts */
    kern_format_group(m->format, p, offset / KERN_SEGMENT, g);
    for (uint32_t i = 0; i < KERN_SEGMENT; i++)
        if (i < place || i >= place + m->columns.segment_columns[s])
            g->q[i] = 0;
}

static void decode_f32(const struct kern_matrix *m, uint64_t row, uint32_t s, float w[KERN_SEGMENT]) {
    uint32_t offset;
    if (m->format == FMT_FP8 && m->activation == KERN_ACT_F32) {
        unsigned char own[4 + KERN_SEGMENT];
        kern_format_dequantise(m->format, own_codes(m, row, s, own), KERN_SEGMENT, w);
        return;
    }
    if (!kern_format(m->format)->quantised && m->format != FMT_FP8) {
        const unsigned char *p = locate(m, row, m->columns.segment_begin[s], &offset);
        memset(w, 0, KERN_SEGMENT * sizeof *w);
        kern_format_dequantise(m->format, p, m->columns.segment_columns[s], w + place_of(&m->columns, s));
        return;
    }
    struct format_group g;
    decode_group(m, row, s, &g);
    for (int i = 0; i < KERN_SEGMENT; i++) {
        w[i] = g.d[i / 16] * (float)g.q[i];
        if (kern_format(m->format)->has_minimum)
            w[i] = w[i] + g.m;
    }
}

/* ---- activations --------------------------------------------------------------------------------------------------------------------------------- */

/* A segment's activations, quantised in blocks of 32 and of 16, each at its place in its block of 32; scratch is [n_tokens][n_segments] of them. */
struct quantised {
    int8_t q[KERN_SEGMENT], q16[KERN_SEGMENT];
    float d, d16[2];
};

size_t ref_matmul_scratch_bytes(const struct kern_columns *columns, int n_tokens) {
    return (size_t)n_tokens * columns->n_segments * sizeof(struct quantised);
}

static struct quantised *scratch_at(const struct kern_matmul *args, int t, uint32_t s) {
    return (struct quantised *)args->scratch + (size_t)t * args->parts[0].matrix->columns.n_segments + s;
}

static void quantise(const float *x, uint32_t n, float *d, int8_t *q) {
    float largest = 0;
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        finite = finite && isfinite(x[i]);
    }
    *d = finite ? largest / 127.0f : NAN;
    for (uint32_t i = 0; i < n; i++) {
        float scaled = *d > 0 ? rintf(x[i] / *d) : 0; /* to nearest even, the default mode */
        q[i] = (int8_t)(scaled > 127 ? 127 : scaled < -127 ? -127 : scaled); /* beyond ±127 only where d is subnormal */
    }
}

static bool wants_int8(const struct kern_matmul *args) {
    for (int i = 0; i < args->n_parts; i++)
        if (args->parts[i].matrix->activation != KERN_ACT_F32)
            return true;
    return false;
}

/* x of one segment, in the order of the columns, with zeroes for what it lacks of its block of 32: there, or in padded. */
static const float *segment_of_x(const struct kern_matmul *args, int t, uint32_t s, float padded[KERN_SEGMENT]) {
    const struct kern_columns *c = &args->parts[0].matrix->columns;
    const float *x = args->x + (size_t)t * args->x_stride + (c->order ? 0 : c->segment_begin[s]);
    if (c->segment_columns[s] == KERN_SEGMENT && !c->order)
        return x;
    memset(padded, 0, KERN_SEGMENT * sizeof *padded);
    if (c->order) {
        for (uint32_t i = 0; i < c->segment_columns[s]; i++)
            padded[place_of(c, s) + i] = c->order[c->segment_begin[s] + i] < 0 ? 0 : x[c->order[c->segment_begin[s] + i]];
        return padded;
    }
    memcpy(padded + place_of(c, s), x, c->segment_columns[s] * sizeof *x);
    return padded;
}

void ref_matmul_prepare(struct kern_queue q, const struct kern_matmul *args) {
    if (args->n_parts == 0 || !wants_int8(args))
        return;
    const struct kern_columns *c = &args->parts[0].matrix->columns;
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (uint32_t s = 0; s < c->n_segments; s++) {
            float padded[KERN_SEGMENT];
            struct quantised *to = scratch_at(args, t, s);
            const float *x = segment_of_x(args, t, s, padded);
            quantise(x, KERN_SEGMENT, &to->d, to->q);
            quantise(x, 16, &to->d16[0], to->q16);
            quantise(x + 16, 16, &to->d16[1], to->q16 + 16);
        }
}

static int dot_of(const int8_t *w, const int8_t *x, int n) {
    int dot = 0;
    for (int i = 0; i < n; i++)
        dot += w[i] * x[i];
    return dot;
}

/* ---- the product --------------------------------------------------------------------------------------------------------------------------------- */

void ref_matmul_row(const struct kern_matmul *args, const struct kern_matmul_part *part, uint64_t row, int t_begin, int n, float *y) {
    const struct kern_matrix *m = part->matrix;
    const struct kern_columns *c = &m->columns;
    float stack[GROUP][KERN_TREE_STACK];
    int depth = 0;
    size_t i_vector = 0;
    for (uint32_t leaf = 0; leaf < c->n_leaves; leaf++) {
        /* ---- the leaf's sum */
        float acc[GROUP] = {0};
        for (uint32_t s = c->leaf_segment[leaf]; s < c->leaf_segment[leaf + 1]; s++) {
            if (m->activation == KERN_ACT_F32) {
                float w[KERN_SEGMENT], padded[KERN_SEGMENT];
                decode_f32(m, row, s, w);
                for (int t = 0; t < n; t++) {
                    const float *x = segment_of_x(args, t_begin + t, s, padded);
                    for (int i = 0; i < KERN_SEGMENT; i++)
                        acc[t] = fmaf(w[i], x[i], acc[t]);
                }
                continue;
            }
            struct format_group w;
            decode_group(m, row, s, &w);
            for (int t = 0; t < n; t++) {
                const struct quantised *x = scratch_at(args, t_begin + t, s);
                if (m->activation == KERN_ACT_INT8_16) {
                    for (int h = 0; h < 2; h++)
                        acc[t] = fmaf((float)dot_of(w.q + 16 * h, x->q16 + 16 * h, 16), w.d[h] * x->d16[h], acc[t]);
                    continue;
                }
                acc[t] = fmaf((float)dot_of(w.q, x->q, KERN_SEGMENT), w.d[0] * x->d, acc[t]);
                if (kern_format(m->format)->has_minimum) {
                    int sum = 0;
                    for (int i = 0; i < KERN_SEGMENT; i++)
                        sum += x->q[i];
                    acc[t] = fmaf(w.m, x->d * (float)sum, acc[t]);
                }
            }
        }
        /* ---- fold, and hand out complete subtrees */
        for (int t = 0; t < n; t++)
            stack[t][depth] = acc[t] * m->scale;
        depth++;
        for (int f = 0; f < c->n_folds[leaf]; f++, depth--)
            for (int t = 0; t < n; t++)
                stack[t][depth - 2] = stack[t][depth - 2] + stack[t][depth - 1];
        if (c->emit[leaf]) {
            depth--;
            for (int t = 0; t < n; t++) {
                float sum = part->bias ? stack[t][depth] + part->bias[row] : stack[t][depth];
                y[i_vector * part->vector_stride + (size_t)t * part->y_stride] = sum;
            }
            i_vector++;
        }
    }
}

void ref_matmul(struct kern_queue q, const struct kern_matmul *args) {
    for (int i = 0; i < args->n_parts; i++) {
        const struct kern_matmul_part *part = &args->parts[i];
        REF_FOR_SHARE(uint64_t, row, part->matrix->n_rows, q)
            for (int t = 0; t < args->n_tokens; t += GROUP) {
                int n = args->n_tokens - t < GROUP ? args->n_tokens - t : GROUP;
                ref_matmul_row(args, part, row, t, n, part->y + (size_t)t * part->y_stride + row);
                base_tick();
            }
    }
}

/* ---- embedding ----------------------------------------------------------------------------------------------------------------------------------- */

void ref_embed(struct kern_queue q, const struct kern_embed *args) {
    const struct kern_columns *c = &args->table->columns;
    REF_FOR_SHARE(int, t, args->n_tokens, q) {
        float *y = args->y + (size_t)t * args->y_stride;
        int64_t row = (int64_t)args->ids[t] - (int64_t)args->row_begin;
        bool mine = row >= 0 && (uint64_t)row < args->table->n_rows;
        for (uint32_t s = 0; s < c->n_segments; s++) {
            float w[KERN_SEGMENT] = {0};
            if (mine)
                decode_f32(args->table, (uint64_t)row, s, w);
            for (uint32_t i = 0; i < c->segment_columns[s]; i++)
                y[c->segment_begin[s] + i] = mine ? w[place_of(c, s) + i] * args->table->scale * args->scale : 0.0f;
        }
    }
}
