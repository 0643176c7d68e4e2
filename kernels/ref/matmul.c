/* Products and embedding rows, by the letter.
 *
 * A matrix is kept as the file's own blocks, row after row, from the block that holds columns.begin to the one that holds columns.end − 1.
 * The order of an output's sum: acc = +0 at the start of a leaf; then segment after segment
 *   F32:  acc = fma(w, x, acc), columns in order, w dequantised as the format says;
 *   int8: acc = fma(dot, d_w·d_x, acc) with the exact integer dot; a format with a minimum then acc = fma(m, d_x·Σq, acc);
 * leaves are folded as struct kern_columns says; a bias is added last. */
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

size_t ref_matrix_bytes(enum format format, enum kern_activation activation, uint64_t n_rows, const struct kern_columns *columns) {
    (void)activation;
    return (size_t)n_rows * row_bytes(format, columns);
}

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

/* n ≤ 32 columns that lie in one block of 32 of the tensor */
static void decode_f32(const struct kern_matrix *m, uint64_t row, uint64_t column, uint32_t n, float *w) {
    float block[32];
    uint32_t offset;
    const unsigned char *p = locate(m, row, column, &offset);
    kern_format_dequantise(m->format, p, offset + n, block);
    memcpy(w, block + offset, n * sizeof *w);
}

struct int8_segment {
    int q[32];
    float d, m;
};

static void decode_int8(const struct kern_matrix *m, uint64_t row, uint64_t column, uint32_t n, struct int8_segment *s) {
    uint32_t offset;
    const unsigned char *p = locate(m, row, column, &offset);
    uint16_t d, minimum;
    memcpy(&d, p, 2);
    memcpy(&minimum, p + 2, 2);
    s->d = kern_f16_to_f32(d);
    s->m = m->format == FMT_Q4_1 ? kern_f16_to_f32(minimum) : 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = offset + i;
        if (m->format == FMT_Q8_0)
            s->q[i] = (int8_t)p[2 + at];
        else
            s->q[i] = at < 16 ? p[4 + at] & 15 : p[4 + at - 16] >> 4;
    }
}

/* ---- activations --------------------------------------------------------------------------------------------------------------------------------- */

/* Scratch: d [n_tokens][n_segments] F32, then q [n_tokens][columns] int8. */
size_t ref_matmul_scratch_bytes(const struct kern_columns *columns, int n_tokens) {
    return (size_t)n_tokens * (columns->n_segments * sizeof(float) + (size_t)(columns->end - columns->begin));
}

static float *scratch_d(const struct kern_matmul *args, int t) {
    return (float *)args->scratch + (size_t)t * args->parts[0].matrix->columns.n_segments;
}
static int8_t *scratch_q(const struct kern_matmul *args, int t) {
    const struct kern_columns *c = &args->parts[0].matrix->columns;
    return (int8_t *)((float *)args->scratch + (size_t)args->n_tokens * c->n_segments) + (size_t)t * (size_t)(c->end - c->begin);
}

static void quantise(const float *x, uint32_t n, float *d, int8_t *q) {
    float largest = 0;
    for (uint32_t i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    *d = largest / 127.0f;
    for (uint32_t i = 0; i < n; i++) {
        float scaled = *d > 0 ? rintf(x[i] / *d) : 0; /* to nearest even, the default mode */
        q[i] = (int8_t)(scaled > 127 ? 127 : scaled < -127 ? -127 : scaled == scaled ? scaled : 0); /* beyond ±127 only where d is subnormal */
    }
}

static bool wants_int8(const struct kern_matmul *args) {
    for (int i = 0; i < args->n_parts; i++)
        if (args->parts[i].matrix->activation == KERN_ACT_INT8)
            return true;
    return false;
}

void ref_matmul_prepare(struct kern_queue q, const struct kern_matmul *args) {
    if (args->n_parts == 0 || !wants_int8(args))
        return;
    const struct kern_columns *c = &args->parts[0].matrix->columns;
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (uint32_t s = 0; s < c->n_segments; s++)
            quantise(args->x + (size_t)t * args->x_stride + c->segment_begin[s], c->segment_columns[s], scratch_d(args, t) + s,
                     scratch_q(args, t) + c->segment_begin[s]);
}

/* ---- the product --------------------------------------------------------------------------------------------------------------------------------- */

/* One row times up to GROUP tokens from t_begin on. */
static void row_times_group(const struct kern_matmul *args, const struct kern_matmul_part *part, uint64_t row, int t_begin, int n) {
    const struct kern_matrix *m = part->matrix;
    const struct kern_columns *c = &m->columns;
    float stack[GROUP][KERN_TREE_STACK];
    int depth = 0;
    size_t i_vector = 0;
    for (uint32_t leaf = 0; leaf < c->n_leaves; leaf++) {
        /* ---- the leaf's sum */
        float acc[GROUP] = {0};
        for (uint32_t s = c->leaf_segment[leaf]; s < c->leaf_segment[leaf + 1]; s++) {
            uint32_t begin = c->segment_begin[s], n_columns = c->segment_columns[s];
            if (m->activation == KERN_ACT_F32) {
                float w[32];
                decode_f32(m, row, begin, n_columns, w);
                for (int t = 0; t < n; t++) {
                    const float *x = args->x + (size_t)(t_begin + t) * args->x_stride + begin;
                    for (uint32_t i = 0; i < n_columns; i++)
                        acc[t] = fmaf(w[i], x[i], acc[t]);
                }
                continue;
            }
            struct int8_segment w;
            decode_int8(m, row, begin, n_columns, &w);
            for (int t = 0; t < n; t++) {
                const int8_t *x = scratch_q(args, t_begin + t) + begin;
                float d = scratch_d(args, t_begin + t)[s];
                int dot = 0, sum = 0;
                for (uint32_t i = 0; i < n_columns; i++) {
                    dot += w.q[i] * x[i];
                    sum += x[i];
                }
                acc[t] = fmaf((float)dot, w.d * d, acc[t]);
                if (m->format == FMT_Q4_1)
                    acc[t] = fmaf(w.m, d * (float)sum, acc[t]);
            }
        }
        /* ---- fold, and hand out complete subtrees */
        for (int t = 0; t < n; t++)
            stack[t][depth] = acc[t];
        depth++;
        for (int f = 0; f < c->n_folds[leaf]; f++, depth--)
            for (int t = 0; t < n; t++)
                stack[t][depth - 2] = stack[t][depth - 2] + stack[t][depth - 1];
        if (c->emit[leaf]) {
            depth--;
            for (int t = 0; t < n; t++) {
                float y = part->bias ? stack[t][depth] + part->bias[row] : stack[t][depth];
                part->y[i_vector * part->vector_stride + (size_t)(t_begin + t) * part->y_stride + row] = y;
            }
            i_vector++;
        }
    }
}

void ref_matmul(struct kern_queue q, const struct kern_matmul *args) {
    for (int i = 0; i < args->n_parts; i++)
        REF_FOR_SHARE(uint64_t, row, args->parts[i].matrix->n_rows, q)
            for (int t = 0; t < args->n_tokens; t += GROUP) {
                row_times_group(args, &args->parts[i], row, t, args->n_tokens - t < GROUP ? args->n_tokens - t : GROUP);
                base_tick();
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
            float w[32] = {0};
            if (mine)
                decode_f32(args->table, (uint64_t)row, c->segment_begin[s], c->segment_columns[s], w);
            for (uint32_t i = 0; i < c->segment_columns[s]; i++)
                y[c->segment_begin[s] + i] = mine ? w[i] * args->scale : 0.0f;
        }
    }
}
