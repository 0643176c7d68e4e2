/* Conformance of routing and of the experts' biases: every backend against `ref`, to the bit, one to three threads, guarded outputs; and `ref` against the
 * definitions in double, with ties, infinities and what is no number. */
#include "tests/t.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref.h"
#include "tests/t_kernels.h"

#define FOR_BACKENDS(b)                                                  \
    for (const struct kern_backend *const *b = kern_backends(); *b; b++) \
        if (t_kernels_on(*b))

/* Every thread's share, the last first. */
static void run_route(const struct kern_backend *b, const struct kern_route *args, int n_threads) {
    for (int i = n_threads - 1; i >= 0; i--)
        b->route((struct kern_queue){i, n_threads}, args);
}

static const char *const router_names[] = {"softmax", "top-k, softmax", "sigmoid"};

/* ---- the definitions ------------------------------------------------------------------------------------------------------------------------------- */

/* Place of e in the order of scores, NaN last, the lower index of equals first. */
static int rank_of(const double *score, int n, int e) {
    int rank = 0;
    for (int i = 0; i < n; i++) {
        bool less = isnan(score[i]) ? isnan(score[e]) && i < e : isnan(score[e]) || score[i] > score[e] || (i < e && score[i] == score[e]);
        rank += i != e && less;
    }
    return rank;
}

static bool in_chosen_group(const struct kern_route *args, const double *score, int e) {
    if (args->router != KERN_ROUTER_SIGMOID || args->n_groups == 1)
        return true;
    int size = args->n_experts / args->n_groups;
    double group[KERN_MAX_EXPERTS] = {0};
    for (int g = 0; g < args->n_groups; g++)
        for (int i = 0; i < size; i++)
            if (rank_of(score + g * size, size, i) < 2)
                group[g] += score[g * size + i];
    return rank_of(group, args->n_groups, e / size) < args->k_groups;
}

/* Logits are multiples of 1/8, so that double and F32 see the same ties; corrections likewise far apart. */
static void expect_by_definition(const struct kern_route *args, int t) {
    const float *x = args->logits + (size_t)t * args->stride;
    const struct kern_routed *out = args->out + (size_t)t * (size_t)args->k;
    int n = args->n_experts;
    double weight[KERN_MAX_EXPERTS], score[KERN_MAX_EXPERTS], limited[KERN_MAX_EXPERTS], m = -INFINITY, sum = 0;
    for (int e = 0; e < n; e++)
        m = fmax(m, (double)x[e]);
    for (int e = 0; e < n; e++)
        sum += exp((double)x[e] - m);
    for (int e = 0; e < n; e++) {
        weight[e] = args->router == KERN_ROUTER_SIGMOID ? 1 / (1 + exp(-(double)x[e])) : exp((double)x[e] - m) / (args->router == KERN_ROUTER_SOFTMAX ? sum : 1);
        score[e] = args->router == KERN_ROUTER_SIGMOID ? weight[e] + (args->correction ? (double)args->correction[e] : 0) : (double)x[e];
    }
    for (int e = 0; e < n; e++)
        limited[e] = in_chosen_group(args, score, e) ? score[e] : (double)NAN;
    sum = 0;
    for (int e = 0; e < n; e++)
        sum += rank_of(limited, n, e) < args->k ? weight[e] : 0;
    for (int e = 0, j = 0; e < n; e++) {
        if (rank_of(limited, n, e) >= args->k)
            continue;
        double w = weight[e] * (double)args->scale / (args->renormalise || args->router == KERN_ROUTER_TOPK_SOFTMAX ? sum : 1);
        if (out[j].expert != e || !(fabs((double)out[j].weight - w) <= 1e-6 * w))
            fail_msg("%s, %d of %d, token %d, place %d: expert %d by %.9g, expected %d by %.9g", router_names[args->router], args->k, n, t, j, out[j].expert,
                     (double)out[j].weight, e, w);
        j++;
    }
}

/* ---- cases ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Every backend gives the bits of ref, whatever the threads; of two NaNs which one is the processor's choice. */
static void expect_like_ref(struct kern_route args) {
    size_t n = (size_t)args.n_tokens * (size_t)args.k;
    struct kern_routed *want = args.out;
    FOR_BACKENDS(b)
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            struct kern_routed *got = args.out = t_guard_alloc(n * sizeof *got);
            run_route(*b, &args, n_threads);
            for (size_t i = 0; i < n; i++)
                if (got[i].expert != want[i].expert || (memcmp(&got[i].weight, &want[i].weight, 4) != 0 && !(isnan(got[i].weight) && isnan(want[i].weight))))
                    fail_msg("%s by %s/%s, %d of %d, %d threads: route %d: expert %d by %.9g, expected %d by %.9g", router_names[args.router], (*b)->name,
                             (*b)->variant, args.k, args.n_experts, n_threads, (int)i, got[i].expert, (double)got[i].weight, want[i].expert, (double)want[i].weight);
            t_guard_free(got);
        }
}

static void routers(void **state) {
    (void)state;
    static const struct {
        int n_experts, k, n_groups, k_groups;
    } sizes[] = {{1, 1, 1, 1}, {8, 2, 1, 1}, {32, 4, 4, 2}, {33, 5, 3, 1}, {17, 17, 1, 1}, {60, 4, 1, 1}, {128, 8, 1, 1}, {256, 8, 8, 4}, {6, 3, 6, 3}, {12, 12, 4, 4}};
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int round = 0; round < 120; round++) {
        int i = round / 3 % 10, n = sizes[i].n_experts, n_tokens = round % 7;
        size_t stride = (size_t)n + 3;
        float *x = random_floats(&r, stride * 7, 3), *correction = random_floats(&r, 256, 0.2f);
        /* Ties everywhere; 1/8 apart otherwise, which no rounding of exp hides while |x| stays below 8. */
        for (size_t j = 0; j < stride * 7; j++)
            x[j] = rintf(fmaxf(fminf(x[j], 8), -8) * (round % 2 ? 1 : 8)) / 8;
        for (int e = 0; e < n; e++)
            correction[e] = round % 4 == 1 ? 0 : correction[e];
        struct kern_route args = {.logits = x, .stride = stride, .n_tokens = n_tokens, .n_experts = n, .k = sizes[i].k, .router = (enum kern_router)(round % 3),
                                  .correction = round / 30 % 2 ? correction : NULL, .n_groups = sizes[i].n_groups, .k_groups = sizes[i].k_groups,
                                  .renormalise = round / 30 >= 2, .scale = round % 5 ? 1 : 2.5f};
        args.out = t_guard_alloc(sizeof *args.out * (size_t)n_tokens * (size_t)args.k);
        run_route(&kern_ref, &args, 1);
        for (int t = 0; t < n_tokens; t++)
            expect_by_definition(&args, t);
        expect_like_ref(args);
        t_guard_free(args.out);
        free(x);
        free(correction);
    }
}

/* NaN, infinities, all alike: no number is lost, none is chosen twice, all agree. */
static void odd_logits(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    enum { TOKENS = 6, N = 40, K = 9 };
    for (int router = 0; router < 3; router++)
        for (int renormalise = 0; renormalise < 2; renormalise++) {
            float *x = random_floats(&r, TOKENS * N, 30);
            for (int i = 0; i < TOKENS * N; i++) {
                uint32_t odd = base_rng_below(&r, 4);
                x[i] = i / N == 0 ? NAN : i / N == 1 ? 0 : i / N == 2 && odd ? -INFINITY : i / N == 3 && odd ? NAN : i / N == 4 && !odd ? INFINITY : x[i];
            }
            struct kern_routed out[TOKENS * K];
            struct kern_route args = {x, N, TOKENS, N, K, (enum kern_router)router, NULL, 4, 2, renormalise, 1, out};
            run_route(&kern_ref, &args, 1);
            for (int i = 0; i < TOKENS * K; i++)
                assert_true(out[i].expert >= 0 && out[i].expert < N && (i % K == 0 || out[i].expert > out[i - 1].expert));
            for (int i = 0; i < K; i++) /* the same for all: the lowest indices */
                assert_true(out[i].expert == i && out[K + i].expert == i);
            /* a number goes before none: where the scores are the logits, and not all of them NaN with one */
            int n_numbers = 0, n_taken = 0;
            for (int i = 0; i < N; i++)
                n_numbers += !isnan(x[3 * N + i]);
            for (int i = 0; i < K; i++)
                n_taken += !isnan(x[3 * N + out[3 * K + i].expert]);
            if (router == KERN_ROUTER_TOPK_SOFTMAX)
                assert_int_equal(n_taken, n_numbers < K ? n_numbers : K);
            expect_like_ref(args);
            free(x);
        }
}

static void biases(void **state) {
    (void)state;
    static const int widths[] = {1, 15, 16, 17, 50, 576};
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (size_t w = 0; w < 6; w++)
        for (int n_tokens = 0; n_tokens <= 5; n_tokens++) {
            enum { EXPERTS = 9, K = 4 };
            int width = widths[w];
            size_t stride = (size_t)width + 2, n = stride * (size_t)n_tokens + 1;
            float *bias[EXPERTS], *want = calloc(n, sizeof *want);
            for (int e = 0; e < EXPERTS; e++)
                bias[e] = random_floats(&r, (size_t)width, 1);
            struct kern_routed routed[5 * K];
            for (int i = 0; i < 5 * K; i++)
                routed[i] = (struct kern_routed){(int32_t)(i % K * 2 + (int)base_rng_below(&r, 2)), base_rng_normal(&r)};
            struct kern_experts_bias args = {routed, n_tokens, K, (const float *const *)bias, NULL, stride, width};
            for (int t = 0; t < n_tokens; t++)
                for (int i = 0; i < width; i++)
                    for (int j = 0; j < K; j++)
                        want[(size_t)t * stride + (size_t)i] = fmaf(routed[t * K + j].weight, bias[routed[t * K + j].expert][i], want[(size_t)t * stride + (size_t)i]);
            FOR_BACKENDS(b)
                for (int n_threads = 1; n_threads <= 3; n_threads++) {
                    args.y = t_guard_alloc(n * sizeof(float));
                    memset(args.y, 0, n * sizeof(float));
                    for (int i = n_threads - 1; i >= 0; i--)
                        (*b)->experts_bias((struct kern_queue){i, n_threads}, &args);
                    if (memcmp(args.y, want, n * sizeof *want) != 0)
                        fail_msg("%s/%s: %d tokens of width %d by %d threads differ", (*b)->name, (*b)->variant, n_tokens, width, n_threads);
                    t_guard_free(args.y);
                }
            for (int e = 0; e < EXPERTS; e++)
                free(bias[e]);
            free(want);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(routers), cmocka_unit_test(odd_logits), cmocka_unit_test(biases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
