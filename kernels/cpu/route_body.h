/* Which experts a token goes to; compiled once per instruction set. The order of operations is that of kernels/ref/route.c, to the bit.
 * Bytes moved: the logits once. A token stays with one thread: some thousand comparisons at most. */
#include <math.h>

#include "base/status.h"
#include "base/math.h"
#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec.h"

enum { WIDTH = KERN_MAX_EXPERTS };
#define EACH_VEC(i, n) for (size_t i = 0; i < (n); i += VEC_LANES) /* arrays of whole vectors: what stands beyond n is never looked at */

struct best {
    float score;
    int32_t i;
};

/* Takes score i into the best n of at most k, best first: after those that are as good, for they came first. A NaN is below everything. */
static int take(struct best *best, int n, int k, float score, int32_t i) {
    int at = n < k ? n++ : n;
    for (; at > 0 && (score > best[at - 1].score || (best[at - 1].score != best[at - 1].score && score == score)); at--)
        if (at < k)
            best[at] = best[at - 1];
    if (at < k)
        best[at] = (struct best){score, i};
    return n;
}

static void softmax(const float *x, size_t n, float *p) {
    const vec none = vec_set1(-INFINITY);
    vec largest = none, sum = vec_zero();
    EACH_VEC(i, n) { /* as the second operand, so that a NaN never gets in */
        size_t n_here = n - i < VEC_LANES ? n - i : VEC_LANES;
        largest = vec_max(vec_keep(vec_load_n(x + i, n_here), n_here, none), largest);
    }
    vec m = vec_set1(vec_largest(largest));
    EACH_VEC(i, n) {
        size_t n_here = n - i < VEC_LANES ? n - i : VEC_LANES;
        vec e = vec_exp(vec_sub(vec_load_n(x + i, n_here), m));
        sum = vec_add(sum, vec_keep(e, n_here, vec_zero()));
        vec_store(p + i, e);
    }
    vec whole = vec_set1(vec_sum(sum));
    EACH_VEC(i, n) vec_store(p + i, vec_div(vec_load(p + i), whole));
}

static void sigmoid(const float *x, size_t n, float *p) {
    const vec one = vec_set1(1.0f);
    EACH_VEC(i, n)
        vec_store(p + i, vec_div(one, vec_add(one, vec_exp(vec_neg(vec_load_n(x + i, n - i < VEC_LANES ? n - i : VEC_LANES))))));
}

/* The k best among the experts of the k_groups best runs. */
static void choose_in_groups(const struct kern_route *args, const float *score, struct best *best) {
    struct best groups[WIDTH];
    bool chosen[WIDTH] = {false};
    int size = args->n_experts / args->n_groups, n = 0;
    for (int g = 0; g < args->n_groups; g++) {
        struct best two[2];
        int n_two = 0;
        for (int i = 0; i < size; i++)
            n_two = take(two, n_two, 2, score[g * size + i], i);
        n = take(groups, n, args->k_groups, n_two < 2 ? two[0].score : two[0].score + two[1].score, g);
    }
    for (int i = 0; i < n; i++)
        chosen[groups[i].i] = true;
    n = 0;
    for (int g = 0; g < args->n_groups; g++)
        for (int e = g * size; chosen[g] && e < (g + 1) * size; e++)
            n = take(best, n, args->k, score[e], e);
    BASE_ASSERT(n == args->k); /* fewer than k to choose from */
}

static void route_token(const struct kern_route *args, const float *x, struct kern_routed *out) {
    const size_t n = (size_t)args->n_experts;
    const bool is_sigmoid = args->router == KERN_ROUTER_SIGMOID;
    _Alignas(64) float weights[WIDTH], corrected[WIDTH];
    struct best best[WIDTH];
    bool chosen[WIDTH];
    /* ---- scores: what a token is given, and what is compared */
    const float *weight = args->router == KERN_ROUTER_TOPK_SOFTMAX ? x : weights, *score = weight;
    if (args->router == KERN_ROUTER_SOFTMAX)
        softmax(x, n, weights);
    if (is_sigmoid)
        sigmoid(x, n, weights);
    if (is_sigmoid && args->correction) {
        EACH_VEC(i, n)
            vec_store(corrected + i, vec_add(vec_load(weights + i), vec_load_n(args->correction + i, n - i < VEC_LANES ? n - i : VEC_LANES)));
        score = corrected;
    }
    /* ---- the choice, in ascending order */
    if (is_sigmoid && args->n_groups > 1)
        choose_in_groups(args, score, best);
    else
        for (int e = 0, n_best = 0; e < args->n_experts; e++)
            n_best = take(best, n_best, args->k, score[e], e);
    memset(chosen, 0, n);
    for (int j = 0; j < args->k; j++)
        chosen[best[j].i] = true;
    float m = -INFINITY, sum = 0;
    for (int e = 0, j = 0; j < args->k; e++)
        if (chosen[e]) {
            out[j++] = (struct kern_routed){e, weight[e]};
            m = weight[e] > m ? weight[e] : m;
        }
    /* ---- weights */
    for (int j = 0; j < args->k; j++) {
        if (args->router == KERN_ROUTER_TOPK_SOFTMAX)
            out[j].weight = base_math_expf(out[j].weight - m);
        sum = sum + out[j].weight;
    }
    if (is_sigmoid)
        sum = sum + 1e-20f;
    for (int j = 0; j < args->k; j++) {
        if (args->renormalise || args->router == KERN_ROUTER_TOPK_SOFTMAX)
            out[j].weight = out[j].weight / sum;
        out[j].weight = out[j].weight * args->scale;
    }
}

void CPU_NAME(route)(struct kern_queue q, const struct kern_route *args) {
    BASE_ASSERT(args->n_experts <= KERN_MAX_EXPERTS && args->k <= args->n_experts);
    for (int t = q.i_thread; t < args->n_tokens; t += q.n_threads)
        route_token(args, args->logits + (size_t)t * args->stride, args->out + (size_t)t * (size_t)args->k);
}
