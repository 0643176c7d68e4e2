/* From logits to a token, by the letter: top-k, Gumbel arg max, the vocabulary's log-sum-exp by slices. */
#include <math.h>

#include "base/rng.h"
#include "base/math.h"
#include "kernels/ref/ref.h"

void ref_topk(struct kern_queue q, const struct kern_topk *args) {
    REF_FOR_SHARE(int, r, args->n_rows, q) {
        struct kern_candidate *out = args->out + (size_t)r * (size_t)args->k;
        int n = 0;
        for (int i = 0; i < args->width && args->k > 0; i++) {
            float value = args->logits[(size_t)r * args->stride + (size_t)i];
            if (value != value)
                value = -INFINITY;
            if (n == args->k && !(value > out[n - 1].value)) /* an equal one came first and has the lower id */
                continue;
            int at = n < args->k ? n++ : n - 1;
            for (; at > 0 && value > out[at - 1].value; at--)
                out[at] = out[at - 1];
            out[at] = (struct kern_candidate){value, args->first_id + i};
        }
        for (; n < args->k; n++)
            out[n] = (struct kern_candidate){-INFINITY, -1};
    }
}

void ref_sample(struct kern_queue q, const struct kern_sample *args) {
    struct kern_sampled best = {-INFINITY, -1, -INFINITY};
    const uint32_t key[2] = {(uint32_t)args->seed, (uint32_t)(args->seed >> 32)};
    REF_FOR_SHARE(int, i, args->width, q) {
        float logit = args->logits[i];
        if (!isfinite(logit))
            continue;
        double value = (double)logit;
        if (args->temperature > 0) {
            uint32_t counter[4] = {(uint32_t)(args->first_id + i), args->position, args->draw, 0}, word[4];
            base_philox4x32(counter, key, word);
            value = (double)logit / (double)args->temperature + -base_math_log(-base_math_log(base_unit_open(word[0])));
        }
        if (best.id < 0 || value > best.value)
            best = (struct kern_sampled){value, args->first_id + i, logit};
    }
    args->out[q.i_thread] = best;
}

/* Lane l takes the slice's columns l, l + 16, …; lanes add l with l + 8, then + 4, + 2, + 1. An empty slice is (−inf, 0). */
void ref_lse(struct kern_queue q, const struct kern_lse *args) {
    REF_FOR_SHARE(int, i, args->n_rows * args->n_slices, q) {
        int r = i / args->n_slices, s = i % args->n_slices;
        const float *x = args->logits + (size_t)r * args->stride + args->slice_begin[s];
        uint32_t n = args->slice_begin[s + 1] - args->slice_begin[s];
        float max = -INFINITY, lane[16] = {0};
        for (uint32_t c = 0; c < n; c++)
            max = x[c] > max ? x[c] : max;
        for (uint32_t c = 0; c < n && max > -INFINITY; c++)
            lane[c % 16] = lane[c % 16] + base_math_expf(x[c] - max);
        for (int w = 8; w; w /= 2)
            for (int l = 0; l < w; l++)
                lane[l] = lane[l] + lane[l + w];
        args->max[i] = max;
        args->sum[i] = lane[0];
    }
}
