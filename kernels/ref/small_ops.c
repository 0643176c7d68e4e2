/* Norm, rope, gate and the tree of partial vectors, by the letter. */
#include <math.h>

#include "base/math.h"
#include "kernels/ref/ref.h"
#include "kernels/tree.h"

/* Lane l takes the columns l, l + 16, … by fma; lanes add l with l + 8, then + 4, + 2, + 1. */
static float squares_of(const float *x, int n) {
    float lane[16] = {0};
    for (int i = 0; i < n; i++)
        lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    for (int w = 8; w; w /= 2)
        for (int l = 0; l < w; l++)
            lane[l] = lane[l] + lane[l + w];
    return lane[0];
}

void ref_squares(struct kern_queue q, const struct kern_squares *args) {
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (int h = 0; h < args->n_heads; h++)
            args->out[(size_t)t * args->out_stride + (size_t)h * args->out_step] = squares_of(args->x + (size_t)t * args->x_stride + (size_t)(h * args->head_dim), args->head_dim);
}

/* y = (x · (1 / sqrt(Σ / width + eps))) · weight */
void ref_norm(struct kern_queue q, const struct kern_norm *args) {
    REF_FOR_SHARE(int, t, args->n_tokens, q) {
        const float *x = args->x + (size_t)t * args->x_stride;
        float *y = args->y + (size_t)t * args->y_stride;
        float mean = args->squares ? args->squares[t] / (float)args->whole_width : squares_of(x, args->width) / (float)args->width;
        float scale = 1.0f / sqrtf(mean + args->eps);
        for (int i = 0; i < args->width; i++) {
            float scaled = x[i] * scale;
            y[i] = scaled * args->weight[i];
        }
    }
}

void ref_rope_table(struct kern_queue q, const struct kern_rope_table *args) {
    int n = args->n_frequencies;
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (int i = 0; i < n; i++) {
            double s, c;
            base_math_sincos((double)args->position[t] * args->frequency[i], &s, &c);
            args->cos_sin[(size_t)t * 2 * (size_t)n + (size_t)i] = (float)(c * args->factor);
            args->cos_sin[(size_t)t * 2 * (size_t)n + (size_t)(n + i)] = (float)(s * args->factor);
        }
}

/* (a, b) → (fma(a, cos, −(b·sin)), fma(b, cos, a·sin)) */
void ref_rope(struct kern_queue q, const struct kern_rope *args) {
    int n = args->n_frequencies;
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (int h = 0; h < args->n_heads; h++)
            for (int i = 0; i < n; i++) {
                float *x = args->x + (size_t)t * args->x_stride + (size_t)h * (size_t)args->head_dim;
                const float *cos_sin = args->cos_sin + (size_t)t * 2 * (size_t)n;
                float *a = args->interleaved ? x + 2 * i : x + i, *b = args->interleaved ? x + 2 * i + 1 : x + n + i;
                float c = cos_sin[i], s = cos_sin[n + i], bs = *b * s, as = *a * s;
                *a = fmaf(*a, c, -bs);
                *b = fmaf(*b, c, as);
            }
}

/* SILU: (gate / (1 + exp(−gate))) · up. CLAMPED: as kern_gate_kind says; a NaN passes through both clamps. */
void ref_gate(struct kern_queue q, const struct kern_gate *args) {
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (int i = 0; i < args->width; i++) {
            float g = args->gate[(size_t)t * args->gate_stride + (size_t)i], u = args->up[(size_t)t * args->up_stride + (size_t)i];
            float *y = &args->y[(size_t)t * args->y_stride + (size_t)i];
            if (args->kind == KERN_GATE_SILU) {
                float silu = g / (1.0f + base_math_expf(-g));
                *y = silu * u;
                continue;
            }
            g = g > args->limit ? args->limit : g;
            u = u > args->limit ? args->limit : u;
            u = u < -args->limit ? -args->limit : u;
            float sigmoid = 1.0f / (1.0f + base_math_expf(-(args->alpha * g))), swish = g * sigmoid;
            *y = (u + 1.0f) * swish;
        }
}

void ref_row_gate(struct kern_queue q, const struct kern_row_gate *args) {
    REF_FOR_SHARE(int, t, args->n_tokens, q) {
        float scale = 1.0f / (1.0f + base_math_expf(-args->gate[t]));
        for (int i = 0; i < args->width; i++)
            args->x[(size_t)t * args->x_stride + (size_t)i] *= scale;
    }
}

void ref_column_scale(struct kern_queue q, const struct kern_column_scale *args) {
    REF_FOR_SHARE(int, t, args->n_tokens, q) {
        for (int i = 0; i < args->width; i++)
            args->x[(size_t)t * args->x_stride + (size_t)i] *= args->scale[i];
    }
}

/* Value of node [a, b) for element `at`; *i is the next vector to take. */
static float node(const struct kern_sum *args, size_t at, int *i, uint32_t a, uint32_t b) {
    if (args->vector_lo[*i] == a && args->vector_hi[*i] == b)
        return args->vectors[(*i)++][at];
    uint32_t m = kern_tree_split(a, b);
    BASE_ASSERT(m < b); /* the vectors do not tile the tree */
    float left = node(args, at, i, a, m), right = node(args, at, i, m, b);
    return left + right;
}

void ref_sum(struct kern_queue q, const struct kern_sum *args) {
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (int c = 0; c < args->width; c++) {
            int i = 0;
            float sum = node(args, (size_t)t * args->vector_token_stride + (size_t)c, &i, 0, args->n_leaves);
            if (args->bias)
                sum = sum + args->bias[(size_t)t * args->bias_stride + (size_t)c];
            if (args->residual)
                sum = args->residual[(size_t)t * args->residual_stride + (size_t)c] + sum;
            args->y[(size_t)t * args->y_stride + (size_t)c] = sum;
        }
}
