/* The paged cache and attention over it, by the letter.
 *
 * Order, for one query row (token, head) and everywhere the same: the keys 0…p in partitions of 256, a partition in blocks of 32 keys.
 * A partition starts with m = −inf, s[0…31] = 0, acc[d] = 0. A block with n visible keys:
 *   score[j] = Σ (scale·q[d])·k[d][j], d in order by fma from +0;  m' = max(m, score[0…n−1]);  c = exp(m − m');  p[j] = exp(score[j] − m'), 0 for j ≥ n
 *   s[j] = fma(s[j], c, p[j]);  acc[d] = acc[d]·c, then fma(p[j], v[j][d], acc[d]) for j = 0…n−1
 * Its sum is the tree over s: j with j + 16, then + 8, + 4, + 2, + 1. Partitions merge into (M, S, A) from the first to the last; the first is taken as it is:
 *   M' = max(M, m);  a = exp(M − M'), b = exp(m − M');  S = fma(S, a, s·b);  A[d] = fma(A[d], a, acc[d]·b)
 * out[d] = A[d] / S. Keys beyond p are never read: a recycled block may hold anything there, NaN included.
 * With a window the visible keys are p − window + 1 … p: nothing is read or computed of other keys, blocks and partitions; p[j] = 0 for what a block has of them,
 * and the first partition with a visible key is the one that is taken as it is. A sink merges last, as a partition of m = sink, s = 1, acc = 0.
 * A cache in E4M3: k and v are code / 256, `scale` is scale·(256·k_scale), and out[d] = (A[d] / S)·(256·v_scale). */
#include <math.h>
#include <string.h>

#include "base/math.h"
#include "base/tick.h"
#include "kernels/ref/ref.h"

static float load(enum format f, const void *base, size_t i) {
    float x;
    const unsigned char *p = base;
    kern_format_dequantise(f, p + i * kern_format(f)->block_bytes, 1, &x);
    return f == FMT_E4M3 ? x / 256 : x;
}

static void store(enum format f, void *base, size_t i, float x, float scale) {
    unsigned char *p = base;
    if (f == FMT_E4M3) {
        p[i] = kern_f32_to_e4m3(x / scale);
        return;
    }
    uint16_t h = f == FMT_F16 ? kern_f32_to_f16(x) : kern_f32_to_bf16(x);
    if (f == FMT_F32)
        memcpy(p + i * 4, &x, 4);
    else
        memcpy(p + i * 2, &h, 2);
}

/* Block of position p of a run's sequence */
static unsigned char *block_at(const struct kern_batch *b, const struct kern_kv *kv, int i_run, int32_t position) {
    const int32_t *table = b->block_table + (size_t)b->run_table[i_run] * b->block_table_stride;
    return (unsigned char *)kv->base + (size_t)table[position / KERN_KV_BLOCK] * kv->block_bytes;
}

void ref_kv_append(struct kern_queue q, const struct kern_kv_append *args) {
    const struct kern_batch *b = args->batch;
    const struct kern_kv *kv = args->kv;
    size_t dim = (size_t)kv->head_dim, half = (size_t)kv->n_kv_heads * dim * KERN_KV_BLOCK; /* elements of K in a block */
    for (int r = 0; r < b->n_runs; r++)
        REF_FOR_SHARE(int, i, b->run_tokens[r], q) {
            int t = b->run_begin[r] + i;
            unsigned char *block = block_at(b, kv, r, b->position[t]);
            size_t slot = (size_t)b->position[t] % KERN_KV_BLOCK;
            for (size_t h = 0; h < (size_t)kv->n_kv_heads; h++)
                for (size_t d = 0; d < dim; d++) {
                    store(kv->format, block, (h * dim + d) * KERN_KV_BLOCK + slot, args->k[(size_t)t * args->k_stride + h * dim + d], kv->k_scale);
                    store(kv->format, block, half + (h * KERN_KV_BLOCK + slot) * dim + d, args->v[(size_t)t * args->v_stride + h * dim + d], kv->v_scale);
                }
        }
}

struct partial {
    float max, lane[KERN_KV_BLOCK], sum;
    float acc[REF_MAX_HEAD_DIM];
};

/* Visible keys from … n − 1 of one block, of KV head h */
static void add_block(const struct kern_kv *kv, const unsigned char *block, size_t h, const float *q, size_t from, size_t n, struct partial *p) {
    size_t dim = (size_t)kv->head_dim, half = (size_t)kv->n_kv_heads * dim * KERN_KV_BLOCK;
    float score[KERN_KV_BLOCK], max = p->max;
    for (size_t j = from; j < n; j++) {
        score[j] = 0;
        for (size_t d = 0; d < dim; d++)
            score[j] = fmaf(q[d], load(kv->format, block, (h * dim + d) * KERN_KV_BLOCK + j), score[j]);
        max = score[j] > max ? score[j] : max;
    }
    float rescale = base_math_expf(p->max - max);
    p->max = max;
    for (size_t d = 0; d < dim; d++)
        p->acc[d] *= rescale;
    for (size_t j = 0; j < KERN_KV_BLOCK; j++) {
        const bool visible = j >= from && j < n;
        float weight = visible ? base_math_expf(score[j] - max) : 0.0f;
        p->lane[j] = fmaf(p->lane[j], rescale, weight);
        for (size_t d = 0; d < dim && visible; d++)
            p->acc[d] = fmaf(weight, load(kv->format, block, half + (h * KERN_KV_BLOCK + j) * dim + d), p->acc[d]);
    }
}

static void merge(struct partial *total, const struct partial *p, size_t dim) {
    float max = p->max > total->max ? p->max : total->max;
    float a = base_math_expf(total->max - max), b = base_math_expf(p->max - max);
    total->max = max;
    total->sum = fmaf(total->sum, a, p->sum * b);
    for (size_t d = 0; d < dim; d++)
        total->acc[d] = fmaf(total->acc[d], a, p->acc[d] * b);
}

static void attend(const struct kern_attention *args, int i_run, int t, int head) {
    const struct kern_kv *kv = args->kv;
    size_t dim = (size_t)kv->head_dim, h = (size_t)((args->q_first + head) / args->group - args->kv_first);
    int32_t n_keys = args->batch->position[t] + 1, first = args->window && n_keys > args->window ? n_keys - args->window : 0;
    float q[REF_MAX_HEAD_DIM], scale = kv->format == FMT_E4M3 ? args->scale * (256 * kv->k_scale) : args->scale;
    for (size_t d = 0; d < dim; d++)
        q[d] = args->q[(size_t)t * args->q_stride + (size_t)head * dim + d] * scale;

    struct partial total, p;
    total.max = -INFINITY;
    total.sum = 0;
    const int32_t first_partition = first / KERN_KV_PARTITION * KERN_KV_PARTITION;
    for (int32_t begin = first_partition; begin < n_keys; begin += KERN_KV_PARTITION) {
        p.max = -INFINITY;
        memset(p.lane, 0, sizeof p.lane);
        memset(p.acc, 0, dim * sizeof *p.acc);
        for (int32_t at = begin; at < n_keys && at < begin + KERN_KV_PARTITION; at += KERN_KV_BLOCK)
            if (at + KERN_KV_BLOCK > first)
                add_block(kv, block_at(args->batch, kv, i_run, at), h, q, (size_t)(first > at ? first - at : 0),
                          (size_t)(n_keys - at < KERN_KV_BLOCK ? n_keys - at : KERN_KV_BLOCK), &p);
        for (int width = KERN_KV_BLOCK / 2; width; width /= 2)
            for (int j = 0; j < width; j++)
                p.lane[j] = p.lane[j] + p.lane[j + width];
        p.sum = p.lane[0];
        if (begin == first_partition)
            total = p;
        else
            merge(&total, &p, dim);
    }
    if (args->sinks) {
        p.max = args->sinks[head];
        p.sum = 1;
        memset(p.acc, 0, dim * sizeof *p.acc);
        merge(&total, &p, dim);
    }
    for (size_t d = 0; d < dim; d++) {
        float y = total.acc[d] / total.sum;
        args->out[(size_t)t * args->out_stride + (size_t)head * dim + d] = kv->format == FMT_E4M3 ? y * (256 * kv->v_scale) : y;
    }
}

void ref_attention(struct kern_queue q, const struct kern_attention *args) {
    for (int r = 0; r < args->batch->n_runs; r++)
        REF_FOR_SHARE(int, i, args->batch->run_tokens[r] * args->n_heads, q) {
            attend(args, r, args->batch->run_begin[r] + i / args->n_heads, i % args->n_heads);
            base_tick();
        }
}
