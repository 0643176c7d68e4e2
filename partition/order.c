/* Leaves, cuts and subtrees. The one idea: sums are defined by the model, ranks only choose which nodes of a fixed tree they compute. */
#include "partition/order.h"

enum st order_heads(uint32_t n_heads, uint32_t n_kv, struct order_leaves *leaves, struct err *e)
{
    if (n_heads == 0 || n_kv == 0 || n_heads % n_kv)
        return err_set(e, ST_UNSUPPORTED, "%u query heads cannot share %u key/value heads evenly", n_heads, n_kv);
    const uint32_t group = n_heads / n_kv;
    struct order_leaves l = {.kind = ORDER_HEADS};
    if (n_kv > 12) {
        l.n = 12;
        for (uint32_t i = 0; i < 12; i++)
            l.end[i] = (uint64_t)(i + 1) * n_kv / 12 * group;
        *leaves = l;
        return ST_OK;
    }
    l.n = n_kv;
    for (uint32_t i = 0; i < n_kv; i++)
        l.end[i] = (uint64_t)(i + 1) * group;
    for (;;) {
        bool can_halve = false;
        for (uint32_t i = 0; i < l.n; i++)
            can_halve |= l.end[i] - order_leaf_begin(&l, i) > 1;
        if (l.n >= 8 || !can_halve)
            break;
        struct order_leaves halved = {.kind = ORDER_HEADS}; /* at most 7 leaves became at most 14 */
        for (uint32_t i = 0; i < l.n; i++) {
            const uint64_t lo = order_leaf_begin(&l, i), hi = l.end[i];
            if (hi - lo > 1)
                halved.end[halved.n++] = lo + (hi - lo + 1) / 2;
            halved.end[halved.n++] = hi;
        }
        l = halved;
    }
    *leaves = l;
    return ST_OK;
}

void order_columns(uint64_t n_in, bool super_block, struct order_leaves *leaves)
{
    const uint64_t n64 = (n_in + 63) / 64;
    const uint64_t unit = super_block && n_in >= 3072 ? 256 : n_in < 256 || (n64 < 12 && n64 % 2) ? 32 : 64;
    const uint64_t n_units = (n_in + unit - 1) / unit;
    leaves->kind = ORDER_COLUMNS;
    leaves->n = n_units < 12 ? (uint32_t)n_units : 12;
    for (uint32_t i = 0; i < leaves->n; i++) {
        const uint64_t end = (i + 1) * n_units / leaves->n * unit;
        leaves->end[i] = end < n_in ? end : n_in;
    }
}

static void share_out(enum order_kind kind, uint32_t n, uint64_t n_units, struct order_leaves *leaves)
{
    leaves->kind = kind;
    leaves->n = n;
    for (uint32_t i = 0; i < n; i++)
        leaves->end[i] = (i + 1) * n_units / n;
}

void order_experts(uint32_t n_experts, struct order_leaves *leaves) { share_out(ORDER_EXPERTS, n_experts < 32 ? n_experts : 32, n_experts, leaves); }
void order_vocabulary(uint64_t n_vocab, struct order_leaves *leaves) { share_out(ORDER_VOCABULARY, 32, n_vocab, leaves); }

void order_cut(uint32_t n_leaves, const uint32_t *shares, uint32_t n_ranks, uint32_t *lo, uint32_t *hi)
{
    uint64_t total = 0;
    for (uint32_t r = 0; r < n_ranks; r++)
        total += shares[r];
    BASE_ASSERT(total > 0 && n_ranks <= ORDER_MAX_RANKS);
    uint32_t count[ORDER_MAX_RANKS];
    uint64_t remainder[ORDER_MAX_RANKS];
    uint32_t given = 0;
    for (uint32_t r = 0; r < n_ranks; r++) {
        count[r] = (uint32_t)((uint64_t)n_leaves * shares[r] / total);
        remainder[r] = (uint64_t)n_leaves * shares[r] % total;
        given += count[r];
    }
    for (bool taken[ORDER_MAX_RANKS] = {false}; given < n_leaves; given++) {
        uint32_t best = n_ranks;
        for (uint32_t r = 0; r < n_ranks; r++)
            if (!taken[r] && (best == n_ranks || remainder[r] > remainder[best]))
                best = r;
        taken[best] = true;
        count[best]++;
    }
    uint32_t at = 0;
    for (uint32_t r = 0; r < n_ranks; r++) {
        lo[r] = at;
        hi[r] = at += count[r];
    }
}

static uint32_t visit(uint32_t a, uint32_t b, uint32_t lo, uint32_t hi, uint8_t *node_lo, uint8_t *node_hi, uint32_t n)
{
    if (hi <= a || b <= lo)
        return n;
    if (lo <= a && b <= hi) {
        node_lo[n] = (uint8_t)a;
        node_hi[n] = (uint8_t)b;
        return n + 1;
    }
    const uint32_t middle = a + (b - a + 1) / 2;
    n = visit(a, middle, lo, hi, node_lo, node_hi, n);
    return visit(middle, b, lo, hi, node_lo, node_hi, n);
}

uint32_t order_subtrees(uint32_t lo, uint32_t hi, uint32_t n_leaves, uint8_t *node_lo, uint8_t *node_hi)
{
    return lo < hi ? visit(0, n_leaves, lo, hi, node_lo, node_hi, 0) : 0;
}
