/* Which experts a token goes to, and the biases of experts, by the letter.
 *
 * Softmax of all: m the largest; p[e] = exp(x[e] − m); the sum over e in 16 lanes (lane l: e = l, l + 16, …), lanes add l with l + 8, then + 4, + 2, + 1; p[e] / sum.
 * Sigmoid: 1 / (1 + exp(−x)). The weights of the chosen, in ascending order: a softmax or a division by their sum, sums from +0; then · scale. */
#include <math.h>

#include "base/math.h"
#include "base/status.h"
#include "kernels/ref/ref.h"

/* A NaN is below everything. */
static bool is_better(float a, float b) { return a > b || (!isnan(a) && isnan(b)); }

/* Marks the k best of those n that `among` marks (NULL: of all); the lower index of equals. */
static void choose(const float *score, const bool *among, int n, int k, bool *chosen) {
    for (int i = 0; i < n; i++)
        chosen[i] = false;
    for (; k > 0; k--) {
        int best = -1;
        for (int i = 0; i < n; i++)
            if (!chosen[i] && (!among || among[i]) && (best < 0 || is_better(score[i], score[best])))
                best = i;
        BASE_ASSERT(best >= 0); /* fewer than k to choose from */
        chosen[best] = true;
    }
}

static void softmax(const float *x, int n, float *p) {
    float m = -INFINITY, lane[16] = {0};
    for (int i = 0; i < n; i++)
        m = x[i] > m ? x[i] : m;
    for (int i = 0; i < n; i++) {
        p[i] = base_math_expf(x[i] - m);
        lane[i % 16] = lane[i % 16] + p[i];
    }
    for (int w = 8; w; w /= 2)
        for (int l = 0; l < w; l++)
            lane[l] = lane[l] + lane[l + w];
    for (int i = 0; i < n; i++)
        p[i] = p[i] / lane[0];
}

/* The experts of the k_groups best runs. */
static void choose_groups(const struct kern_route *args, const float *score, bool *among) {
    int size = args->n_experts / args->n_groups;
    float group_score[KERN_MAX_EXPERTS];
    bool group_chosen[KERN_MAX_EXPERTS], two[KERN_MAX_EXPERTS];
    for (int g = 0; g < args->n_groups; g++) {
        choose(score + g * size, NULL, size, size < 2 ? size : 2, two);
        group_score[g] = 0;
        for (int i = 0; i < size; i++)
            group_score[g] = two[i] ? group_score[g] + score[g * size + i] : group_score[g];
    }
    choose(group_score, NULL, args->n_groups, args->k_groups, group_chosen);
    for (int e = 0; e < args->n_experts; e++)
        among[e] = group_chosen[e / size];
}

static void route_token(const struct kern_route *args, const float *x, struct kern_routed *out) {
    int n = args->n_experts;
    float weight[KERN_MAX_EXPERTS], score[KERN_MAX_EXPERTS]; /* what a token is given, and what is compared */
    bool among[KERN_MAX_EXPERTS], chosen[KERN_MAX_EXPERTS], in_groups = false;
    /* ---- scores */
    if (args->router == KERN_ROUTER_SOFTMAX)
        softmax(x, n, weight);
    for (int e = 0; e < n; e++) {
        if (args->router == KERN_ROUTER_TOPK_SOFTMAX)
            weight[e] = x[e];
        if (args->router == KERN_ROUTER_SIGMOID)
            weight[e] = 1.0f / (1.0f + base_math_expf(-x[e]));
        score[e] = args->router == KERN_ROUTER_SIGMOID && args->correction ? weight[e] + args->correction[e] : weight[e];
    }
    /* ---- the choice */
    if (args->router == KERN_ROUTER_SIGMOID && args->n_groups > 1) {
        choose_groups(args, score, among);
        in_groups = true;
    }
    choose(score, in_groups ? among : NULL, n, args->k, chosen);
    for (int e = 0, j = 0; e < n; e++)
        if (chosen[e])
            out[j++] = (struct kern_routed){e, weight[e]};
    /* ---- weights */
    float sum = 0, m = -INFINITY;
    for (int j = 0; j < args->k; j++)
        m = out[j].weight > m ? out[j].weight : m;
    for (int j = 0; j < args->k; j++) {
        if (args->router == KERN_ROUTER_TOPK_SOFTMAX)
            out[j].weight = base_math_expf(out[j].weight - m);
        sum = sum + out[j].weight;
    }
    if (args->router == KERN_ROUTER_SIGMOID)
        sum = sum + 1e-20f;
    for (int j = 0; j < args->k; j++) {
        if (args->renormalise || args->router == KERN_ROUTER_TOPK_SOFTMAX)
            out[j].weight = out[j].weight / sum;
        out[j].weight = out[j].weight * args->scale;
    }
}

void ref_route(struct kern_queue q, const struct kern_route *args) {
    BASE_ASSERT(args->n_experts <= KERN_MAX_EXPERTS && args->k <= args->n_experts);
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        route_token(args, args->logits + (size_t)t * args->stride, args->out + (size_t)t * (size_t)args->k);
}

void ref_experts_bias(struct kern_queue q, const struct kern_experts_bias *args) {
    REF_FOR_SHARE(int, t, args->n_tokens, q)
        for (int i = 0; i < args->width; i++) {
            float sum = 0;
            for (int j = 0; j < args->k; j++) {
                struct kern_routed r = args->routed[(size_t)t * (size_t)args->k + (size_t)j];
                sum = fmaf(r.weight, args->bias[r.expert][i], sum);
            }
            args->y[(size_t)t * args->y_stride + (size_t)i] = sum;
        }
}
