/* In tensor mode all ranks read their part of each expert. In expert mode how many of a token's experts stand with one rank is a matter of chance: the number at the fullest of them is
 * Σ over m < k of P(fullest > m), and P(fullest ≤ m) counts the ways to draw at most m from each. */
#include "partition/expert_load.h"

static double ways(uint32_t n, uint32_t k)
{
    double w = 1;
    for (uint32_t i = 0; i < k; i++)
        w *= (double)(n - i) / (i + 1);
    return k > n ? 0 : w;
}

double expert_load_fullest(const uint32_t *sizes, int n_ranks, int k)
{
    double all = 0, expected = 0;
    for (int m = k; m >= 0; m--) {
        double drawn[CONFIG_MAX_TOP_K + 1] = {1}; /* [j]: ways to draw j from the ranks so far */
        for (int r = 0; r < n_ranks; r++)
            for (int j = k; j >= 0; j--) {
                double sum = 0;
                for (int i = 0; i <= m && i <= j; i++)
                    sum += drawn[j - i] * ways(sizes[r], (uint32_t)i);
                drawn[j] = sum;
            }
        if (m == k)
            all = drawn[k];
        else
            expected += 1 - drawn[k] / all;
    }
    return expected;
}

bool expert_load_of(const struct part_plan *plan, struct expert_load *load)
{
    const struct part_model *m = plan->whole;
    const struct moe_config *moe = &m->config.moe;
    const int n = plan->options.n_ranks;
    if (m->dim_expert_ffn < 0)
        return false;
    const struct part_dim_cut *cut = &plan->cut.dims[m->dim_expert_ffn];
    const struct order_leaves *l = &m->dims[m->dim_expert_ffn].leaves;
    struct order_leaves groups;
    order_experts((uint32_t)moe->n_experts, &groups);
    uint32_t shares[ORDER_MAX_RANKS], lo[ORDER_MAX_RANKS], hi[ORDER_MAX_RANKS], sizes[ORDER_MAX_RANKS];
    uint64_t largest = 0;
    for (int r = 0; r < n; r++) {
        const uint64_t units = cut->lo[r] < cut->hi[r] ? l->end[cut->hi[r] - 1] - order_leaf_begin(l, cut->lo[r]) : 0;
        largest = units > largest ? units : largest;
        shares[r] = cut->hi[r] - cut->lo[r];
    }
    order_cut(groups.n, shares, (uint32_t)n, lo, hi);
    for (int r = 0; r < n; r++)
        sizes[r] = lo[r] < hi[r] ? (uint32_t)(groups.end[hi[r] - 1] - order_leaf_begin(&groups, lo[r])) : 0;
    *load = (struct expert_load){(double)largest / (double)l->end[l->n - 1], expert_load_fullest(sizes, n, moe->top_k) / moe->top_k};
    return true;
}
