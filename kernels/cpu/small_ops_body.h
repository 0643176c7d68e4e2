/* Norm, rope, gate, the tree of partial vectors, biases of experts, top-k, sampling and log-sum-exp; compiled once per instruction set. The order of operations is that of
 * kernels/ref/small_ops.c and kernels/ref/sampling.c, to the bit. Bytes moved: each input once, each output once. */
#include <math.h>

#include "base/pool.h"
#include "base/rng.h"
#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec.h"
#include "base/math.h"
#include "kernels/tree.h"

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* This thread's share of [n_tokens, width]: whole tokens where there are enough of them, else a range of columns of every token. */
struct share {
    size_t token_begin, token_end, column_begin, column_end;
};

static struct share share_of(struct kern_queue q, int n_tokens, size_t width, size_t grain) {
    struct share s = {0, (size_t)n_tokens, 0, width};
    if (n_tokens >= q.n_threads)
        base_pool_share((size_t)n_tokens, 1, q.i_thread, q.n_threads, &s.token_begin, &s.token_end);
    else
        base_pool_share(width, grain, q.i_thread, q.n_threads, &s.column_begin, &s.column_end);
    return s;
}

/* ---- norm ------------------------------------------------------------------------------------------------------------------------------------------- */

static vec square_sum(const float *x, size_t n) {
    vec sum = vec_zero();
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vec v = vec_load(x + i);
        sum = vec_fma(v, v, sum);
    }
    if (i < n) {
        vec v = vec_load_n(x + i, n - i);
        sum = vec_fma(v, v, sum);
    }
    return sum;
}

/* With fewer tokens than threads each thread sums the squares of the whole row and writes its own columns; in place that would read what others write,
 * so there a token stays with one thread. */
void CPU_NAME(norm)(struct kern_queue q, const struct kern_norm *args) {
    size_t width = (size_t)args->width;
    struct share s = {0, 0, 0, width};
    if (args->y == args->x)
        base_pool_share((size_t)args->n_tokens, 1, q.i_thread, q.n_threads, &s.token_begin, &s.token_end);
    else
        s = share_of(q, args->n_tokens, width, VEC_LANES);
    for (size_t t = s.token_begin; t < s.token_end && s.column_begin < s.column_end; t++) {
        const float *x = args->x + t * args->x_stride;
        float *y = args->y + t * args->y_stride;
        float mean = args->squares ? args->squares[t] / (float)args->whole_width : vec_sum(square_sum(x, width)) / (float)args->width;
        vec scale = vec_set1(1.0f / sqrtf(mean + args->eps));
        for (size_t i = s.column_begin; i < s.column_end; i += VEC_LANES) {
            size_t n = least(VEC_LANES, s.column_end - i);
            vec_store_n(y + i, vec_mul(vec_mul(vec_load_n(x + i, n), scale), vec_load_n(args->weight + i, n)), n);
        }
    }
}

void CPU_NAME(squares)(struct kern_queue q, const struct kern_squares *args) {
    size_t begin, end, n_heads = (size_t)args->n_heads, dim = (size_t)args->head_dim;
    base_pool_share((size_t)args->n_tokens * n_heads, 1, q.i_thread, q.n_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        size_t t = i / n_heads, h = i % n_heads;
        args->out[t * args->out_stride + h * args->out_step] = vec_sum(square_sum(args->x + t * args->x_stride + h * dim, dim));
    }
}

/* ---- rope ------------------------------------------------------------------------------------------------------------------------------------------- */

void CPU_NAME(rope_table)(struct kern_queue q, const struct kern_rope_table *args) {
    size_t n = (size_t)args->n_frequencies;
    struct share s = share_of(q, args->n_tokens, n, 8);
    for (size_t t = s.token_begin; t < s.token_end; t++)
        for (size_t i = s.column_begin; i < s.column_end; i++) {
            double sine, cosine;
            base_math_sincos((double)args->position[t] * args->frequency[i], &sine, &cosine);
            args->cos_sin[t * 2 * n + i] = (float)(cosine * args->factor);
            args->cos_sin[t * 2 * n + n + i] = (float)(sine * args->factor);
        }
}

static void rotate_halves(float *x, const float *cos_sin, size_t n_frequencies) {
    for (size_t i = 0; i < n_frequencies; i += VEC_LANES) {
        size_t n = least(VEC_LANES, n_frequencies - i);
        vec a = vec_load_n(x + i, n), b = vec_load_n(x + n_frequencies + i, n);
        vec c = vec_load_n(cos_sin + i, n), s = vec_load_n(cos_sin + n_frequencies + i, n);
        vec_store_n(x + i, vec_fma(a, c, vec_neg(vec_mul(b, s))), n);
        vec_store_n(x + n_frequencies + i, vec_fma(b, c, vec_mul(a, s)), n);
    }
}

static void rotate_pairs(float *x, const float *cos_sin, size_t n_frequencies) {
    for (size_t i = 0; i < n_frequencies; i++) {
        float a = x[2 * i], b = x[2 * i + 1], c = cos_sin[i], s = cos_sin[n_frequencies + i], bs = b * s, as = a * s;
        x[2 * i] = fmaf(a, c, -bs);
        x[2 * i + 1] = fmaf(b, c, as);
    }
}

void CPU_NAME(rope)(struct kern_queue q, const struct kern_rope *args) {
    size_t n = (size_t)args->n_frequencies, n_heads = (size_t)args->n_heads, begin, end;
    base_pool_share((size_t)args->n_tokens * n_heads, 1, q.i_thread, q.n_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        size_t t = i / n_heads;
        float *x = args->x + t * args->x_stride + i % n_heads * (size_t)args->head_dim;
        if (args->interleaved)
            rotate_pairs(x, args->cos_sin + t * 2 * n, n);
        else
            rotate_halves(x, args->cos_sin + t * 2 * n, n);
    }
}

/* ---- gate, sum ---------------------------------------------------------------------------------------------------------------------------------------- */

/* min(x, limit); of a NaN the NaN. */
static vec at_most(vec x, float limit) { return vec_neg(vec_max(vec_set1(-limit), vec_neg(x))); }

void CPU_NAME(gate)(struct kern_queue q, const struct kern_gate *args) {
    struct share s = share_of(q, args->n_tokens, (size_t)args->width, VEC_LANES);
    const vec one = vec_set1(1.0f), alpha = vec_set1(args->alpha);
    for (size_t t = s.token_begin; t < s.token_end; t++)
        for (size_t i = s.column_begin; i < s.column_end; i += VEC_LANES) {
            size_t n = least(VEC_LANES, s.column_end - i);
            vec g = vec_load_n(args->gate + t * args->gate_stride + i, n), up = vec_load_n(args->up + t * args->up_stride + i, n);
            if (args->kind == KERN_GATE_CLAMPED) {
                g = at_most(g, args->limit);
                up = vec_add(vec_max(vec_set1(-args->limit), at_most(up, args->limit)), one);
                g = vec_mul(g, vec_div(one, vec_add(one, vec_exp(vec_neg(vec_mul(alpha, g))))));
            } else {
                g = vec_div(g, vec_add(one, vec_exp(vec_neg(g))));
            }
            vec_store_n(args->y + t * args->y_stride + i, vec_mul(up, g), n);
        }
}

void CPU_NAME(row_gate)(struct kern_queue q, const struct kern_row_gate *args) {
    struct share s = share_of(q, args->n_tokens, (size_t)args->width, VEC_LANES);
    for (size_t t = s.token_begin; t < s.token_end; t++) {
        float *x = args->x + t * args->x_stride;
        vec scale = vec_set1(1.0f / (1.0f + base_math_expf(-args->gate[t])));
        for (size_t i = s.column_begin; i < s.column_end; i += VEC_LANES) {
            size_t n = least(VEC_LANES, s.column_end - i);
            vec_store_n(x + i, vec_mul(vec_load_n(x + i, n), scale), n);
        }
    }
}

void CPU_NAME(column_scale)(struct kern_queue q, const struct kern_column_scale *args) {
    struct share s = share_of(q, args->n_tokens, (size_t)args->width, VEC_LANES);
    for (size_t t = s.token_begin; t < s.token_end; t++) {
        float *x = args->x + t * args->x_stride;
        for (size_t i = s.column_begin; i < s.column_end; i += VEC_LANES) {
            size_t n = least(VEC_LANES, s.column_end - i);
            vec_store_n(x + i, vec_mul(vec_load_n(x + i, n), vec_load_n(args->scale + i, n)), n);
        }
    }
}

enum { SUM_VECS = 8 };

/* Columns from i on of one token: n_vecs vectors of lanes side by side, so that the walk over the tree costs little; in the last one n lanes count.
 * A chain is a tree in which every vector but the first is added as soon as it comes (two ranks with one each): its sum stays in registers. */
static inline __attribute__((always_inline)) void sum_columns(const struct kern_sum *args, const uint32_t *n_folds, bool chain, size_t t, size_t i, int n_vecs, size_t n) {
    const size_t at = t * args->vector_token_stride + i;
    const int n_vectors = args->n_vectors;
    vec stack[KERN_TREE_STACK][SUM_VECS], y[SUM_VECS];
    int depth = 0;
    const float *x = n_vectors ? args->vectors[0] + at : NULL;
    for (int k = 0; k < n_vecs; k++)
        y[k] = x ? vec_load_n(x + k * VEC_LANES, n) : vec_zero();
    for (int v = 1; v < n_vectors; v++) {
        x = args->vectors[v] + at;
        if (chain || n_folds[v]) {
            for (int k = 0; k < n_vecs; k++)
                y[k] = vec_add(y[k], vec_load_n(x + k * VEC_LANES, n));
        } else {
            for (int k = 0; k < n_vecs; k++) {
                stack[depth][k] = y[k];
                y[k] = vec_load_n(x + k * VEC_LANES, n);
            }
            depth++;
        }
        for (uint32_t f = 1; !chain && f < n_folds[v]; f++) {
            depth--;
            for (int k = 0; k < n_vecs; k++)
                y[k] = vec_add(stack[depth][k], y[k]);
        }
    }
    const float *bias = args->bias, *residual = args->residual;
    if (bias)
        for (int k = 0; k < n_vecs; k++)
            y[k] = vec_add(y[k], vec_load_n(bias + t * args->bias_stride + i + k * VEC_LANES, n));
    if (residual)
        for (int k = 0; k < n_vecs; k++)
            y[k] = vec_add(vec_load_n(residual + t * args->residual_stride + i + k * VEC_LANES, n), y[k]);
    float *out = args->y + t * args->y_stride + i;
    for (int k = 0; k < n_vecs; k++)
        vec_store_n(out + k * VEC_LANES, y[k], n);
}

void CPU_NAME(sum)(struct kern_queue q, const struct kern_sum *args) {
    uint32_t n_folds[KERN_MAX_VECTORS];
    bool chain = true;
    for (int v = 0; v < args->n_vectors; v++) {
        n_folds[v] = kern_tree_folds(args->vector_lo[v], args->vector_hi[v], args->n_leaves);
        chain = chain && n_folds[v] == (v > 0);
    }
    struct share s = share_of(q, args->n_tokens, (size_t)args->width, VEC_LANES);
    for (size_t t = s.token_begin; t < s.token_end; t++) {
        size_t i = s.column_begin;
        for (; i + SUM_VECS * VEC_LANES <= s.column_end; i += SUM_VECS * VEC_LANES)
            if (chain)
                sum_columns(args, n_folds, true, t, i, SUM_VECS, VEC_LANES);
            else
                sum_columns(args, n_folds, false, t, i, SUM_VECS, VEC_LANES);
        for (; i < s.column_end; i += VEC_LANES)
            sum_columns(args, n_folds, chain, t, i, 1, least(VEC_LANES, s.column_end - i));
    }
}

/* ---- the end of experts' sums --------------------------------------------------------------------------------------------------------------------------- */

void CPU_NAME(fold)(const struct kern_experts_out *args, float *sums, size_t token, size_t row) {
    float *y = args->y + token * args->y_stride + row;
    const size_t n_rows = least(VEC_LANES, (size_t)args->n_rows - row);
    vec stack[KERN_TREE_STACK];
    int depth = 0;
    for (int i = 0; i < args->n_sums; i++, sums += VEC_LANES) {
        vec top = vec_load(sums);
        vec_store(sums, vec_zero());
        for (int n = args->n_folds[i]; n > 0; n--)
            top = vec_add(stack[--depth], top);
        if (args->emit[i]) {
            vec_store_n(y, top, n_rows);
            y += args->vector_stride;
        } else {
            stack[depth++] = top;
        }
    }
}

/* ---- biases of experts -------------------------------------------------------------------------------------------------------------------------------- */

void CPU_NAME(experts_bias)(struct kern_queue q, const struct kern_experts_bias *args) {
    struct share s = share_of(q, args->n_tokens, (size_t)args->width, VEC_LANES);
    for (size_t t = s.token_begin; t < s.token_end; t++) {
        const struct kern_routed *routed = args->routed + t * (size_t)args->k;
        for (size_t i = s.column_begin; i < s.column_end; i += VEC_LANES) {
            size_t n = least(VEC_LANES, s.column_end - i);
            vec sum = vec_zero();
            for (int j = 0; j < args->k; j++)
                sum = vec_fma(vec_set1(routed[j].weight), vec_load_n(args->bias[routed[j].expert] + i, n), sum);
            vec_store_n(args->y + t * args->y_stride + i, sum, n);
        }
    }
}

/* ---- top-k -------------------------------------------------------------------------------------------------------------------------------------------- */

static int insert(struct kern_candidate *out, int n, int k, float value, int32_t id) {
    if (value != value)
        value = -INFINITY;
    if (n == k && !(value > out[n - 1].value)) /* an equal one came first and has the lower id */
        return n;
    int at = n < k ? n++ : n - 1;
    for (; at > 0 && value > out[at - 1].value; at--)
        out[at] = out[at - 1];
    out[at] = (struct kern_candidate){value, id};
    return n;
}

/* Once k are known, most groups of 16 hold nothing above the least of them: one comparison each. */
void CPU_NAME(topk)(struct kern_queue q, const struct kern_topk *args) {
    for (int r = q.i_thread; r < args->n_rows && args->k > 0; r += q.n_threads) {
        const float *x = args->logits + (size_t)r * args->stride;
        struct kern_candidate *out = args->out + (size_t)r * (size_t)args->k;
        int n = 0, i = 0;
        for (; i < args->width && n < args->k; i++)
            n = insert(out, n, args->k, x[i], args->first_id + i);
        for (; i + VEC_LANES <= args->width; i += VEC_LANES) {
            uint32_t greater = vec_bits_greater(vec_load(x + i), vec_set1(out[n - 1].value));
            for (; greater; greater &= greater - 1) {
                int lane = __builtin_ctz(greater);
                n = insert(out, n, args->k, x[i + lane], args->first_id + i + lane);
            }
        }
        for (; i < args->width; i++)
            n = insert(out, n, args->k, x[i], args->first_id + i);
        for (; n < args->k; n++)
            out[n] = (struct kern_candidate){-INFINITY, -1};
    }
}

/* ---- sampling ----------------------------------------------------------------------------------------------------------------------------------------- */

/* Philox for 16 ids at once, first words; products as 64-bit lanes, which is what the multiplier gives. */
static void philox_lanes(uint32_t first_id, uint32_t position, uint32_t draw, uint64_t seed, uint32_t *out) {
    uint32_t c0[VEC_LANES], c1[VEC_LANES], c2[VEC_LANES], c3[VEC_LANES];
    for (uint32_t l = 0; l < VEC_LANES; l++) {
        c0[l] = first_id + l;
        c1[l] = position;
        c2[l] = draw;
        c3[l] = 0;
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        for (int l = 0; l < VEC_LANES; l++) {
            uint64_t p0 = (uint64_t)c0[l] * 0xD2511F53u, p1 = (uint64_t)c2[l] * 0xCD9E8D57u;
            c0[l] = (uint32_t)(p1 >> 32) ^ c1[l] ^ k0;
            c1[l] = (uint32_t)p1;
            c2[l] = (uint32_t)(p0 >> 32) ^ c3[l] ^ k1;
            c3[l] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    memcpy(out, c0, sizeof c0);
}

static void consider(const struct kern_sample *args, struct kern_sampled *best, size_t i, uint32_t word) {
    float logit = args->logits[i];
    if (!isfinite(logit))
        return;
    double value = (double)logit;
    if (args->temperature > 0)
        value = (double)logit / (double)args->temperature + -base_math_log(-base_math_log(base_unit_open(word)));
    if (best->id < 0 || value > best->value)
        *best = (struct kern_sampled){value, args->first_id + (int32_t)i, logit};
}

/* Two logarithms for every id of the vocabulary would take milliseconds, and nearly all lose. An id wins only if logit/T − log(−log u) > best, that is
 * if −log u < e^−d with d = best − logit/T; and −log u ≥ 1 − u. So an id with 1 − u > e^−d has lost, which takes one exp in F32, with a margin for F32's
 * roundings. The others, about as many as there are new maxima, are computed in double as the definition says: the result is the definition's. */
void CPU_NAME(sample)(struct kern_queue q, const struct kern_sample *args) {
    struct kern_sampled best = {-INFINITY, -1, -INFINITY};
    size_t begin, end, i;
    base_pool_share((size_t)args->width, VEC_LANES, q.i_thread, q.n_threads, &begin, &end);
    for (i = begin; i + VEC_LANES <= end; i += VEC_LANES) {
        uint32_t words[VEC_LANES] = {0}, candidates;
        vec x = vec_load(args->logits + i);
        if (!(args->temperature > 0)) {
            candidates = best.id < 0 ? 0xffff : vec_bits_greater(x, vec_set1(best.logit));
        } else {
            philox_lanes((uint32_t)args->first_id + (uint32_t)i, args->position, args->draw, args->seed, words);
            candidates = 0xffff;
            if (best.id >= 0) {
                vec scaled = vec_div(x, vec_set1(args->temperature)), top = vec_set1((float)best.value);
                /* d less 10^-3 and 10^-5 of the operands: four orders above their rounding errors */
                vec size = vec_add(vec_max(scaled, vec_neg(scaled)), vec_max(top, vec_neg(top)));
                vec minus_d = vec_add(vec_sub(scaled, top), vec_fma(size, vec_set1(1e-5f), vec_set1(1e-3f)));
                vec lost = vec_sub(vec_set1(1.0f), vec_mul(vec_floats_of_u32(words), vec_set1(0x1p-32f))); /* 1 − u, to 2^-24 */
                candidates = vec_bits_not_less(vec_add(vec_exp(minus_d), vec_set1(0x1p-22f)), lost);
            }
        }
        for (; candidates; candidates &= candidates - 1) {
            int lane = __builtin_ctz(candidates);
            consider(args, &best, i + (size_t)lane, words[lane]);
        }
    }
    for (; i < end; i++) {
        const uint32_t counter[4] = {(uint32_t)args->first_id + (uint32_t)i, args->position, args->draw, 0};
        const uint32_t key[2] = {(uint32_t)args->seed, (uint32_t)(args->seed >> 32)};
        uint32_t words[4] = {0};
        if (args->temperature > 0)
            base_philox4x32(counter, key, words);
        consider(args, &best, i, words[0]);
    }
    args->out[q.i_thread] = best;
}

/* ---- log-sum-exp -------------------------------------------------------------------------------------------------------------------------------------- */

void CPU_NAME(lse)(struct kern_queue q, const struct kern_lse *args) {
    for (int item = q.i_thread; item < args->n_rows * args->n_slices; item += q.n_threads) {
        int r = item / args->n_slices, slice = item % args->n_slices;
        const float *x = args->logits + (size_t)r * args->stride + args->slice_begin[slice];
        size_t width = args->slice_begin[slice + 1] - args->slice_begin[slice];
        const vec none = vec_set1(-INFINITY);
        vec largest = none, sum = vec_zero();
        for (size_t i = 0; i < width; i += VEC_LANES) { /* as the second operand, so that a NaN never gets in */
            size_t n = least(VEC_LANES, width - i);
            largest = vec_max(vec_keep(vec_load_n(x + i, n), n, none), largest);
        }
        float max = vec_largest(largest);
        for (size_t i = 0; i < width && max > -INFINITY; i += VEC_LANES) {
            size_t n = least(VEC_LANES, width - i);
            sum = vec_add(sum, vec_keep(vec_exp(vec_sub(vec_load_n(x + i, n), vec_set1(max))), n, vec_zero()));
        }
        args->max[item] = max;
        args->sum[item] = vec_sum(sum);
    }
}
