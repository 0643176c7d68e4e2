/* The rewrite: same steps, local ranges, and between a partial product and its sum an exchange.
 *
 * Empty shards need no special case: a rank without leaves has matrices without rows or columns, partial values without vectors, and takes part in every exchange. */
#include "partition/shard.h"

#include <stdlib.h>
#include <string.h>

/* ---- the cut -------------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t units_of(const struct order_leaves *l, uint32_t lo, uint32_t hi) { return lo < hi ? l->end[hi - 1] - order_leaf_begin(l, lo) : 0; }

struct cut_quality {
    uint64_t largest;
    uint32_t n_cut_groups, n_vectors;
};

static struct cut_quality judge(const struct part_dim *dim, uint32_t group, int n_ranks, const uint32_t *lo, const uint32_t *hi)
{
    struct cut_quality q = {0, 0, 0};
    for (int r = 0; r < n_ranks; r++) {
        const uint64_t units = units_of(&dim->leaves, lo[r], hi[r]);
        uint8_t node_lo[ORDER_MAX_LEAVES], node_hi[ORDER_MAX_LEAVES];
        q.largest = units > q.largest ? units : q.largest;
        q.n_cut_groups += hi[r] > 0 && hi[r] < dim->leaves.n && dim->leaves.end[hi[r] - 1] % group != 0;
        q.n_vectors += order_subtrees(lo[r], hi[r], dim->leaves.n, node_lo, node_hi);
    }
    return q;
}

/* Tries to move each cut by a leaf or two: whole KV groups first, then fewer vectors, as long as the largest share grows by at most 5 % and nobody who had leaves loses all of them
 * (an idle rank saves a vector and wastes a machine). Few leaves, so all are tried. Ends, because every move makes the pair smaller. */
static void improve(const struct part_dim *dim, uint32_t group, int n_ranks, uint32_t *lo, uint32_t *hi)
{
    const uint64_t limit = judge(dim, group, n_ranks, lo, hi).largest * 105 / 100;
    for (bool moved = true; moved;) {
        moved = false;
        for (int r = 0; r + 1 < n_ranks && !moved; r++)
            for (int by = -2; by <= 2 && !moved; by++) {
                const int64_t to = (int64_t)hi[r] + by;
                const bool idles = (to <= (int64_t)lo[r] && hi[r] > lo[r]) || (to >= (int64_t)hi[r + 1] && hi[r + 1] > lo[r + 1]);
                if (by == 0 || to < (int64_t)lo[r] || to > (int64_t)hi[r + 1] || idles)
                    continue;
                const struct cut_quality before = judge(dim, group, n_ranks, lo, hi);
                const uint32_t old = hi[r];
                hi[r] = lo[r + 1] = (uint32_t)to;
                const struct cut_quality after = judge(dim, group, n_ranks, lo, hi);
                moved = after.largest <= limit &&
                        (after.n_cut_groups < before.n_cut_groups || (after.n_cut_groups == before.n_cut_groups && after.n_vectors < before.n_vectors));
                if (!moved)
                    hi[r] = lo[r + 1] = old;
            }
    }
}

enum st part_cut_init(const struct part_model *whole, int n_ranks, const uint32_t *shares, struct part_cut *cut, struct err *e)
{
    if (n_ranks < 1 || n_ranks > ORDER_MAX_RANKS)
        return err_set(e, ST_INVALID, "%d ranks: 1 to %d are possible", n_ranks, ORDER_MAX_RANKS);
    uint32_t equal[ORDER_MAX_RANKS];
    uint64_t total = 0;
    for (int r = 0; r < n_ranks; r++) {
        equal[r] = 1;
        total += shares ? shares[r] : 1;
    }
    if (total == 0)
        return err_set(e, ST_INVALID, "a split in which every share is zero");
    memset(cut, 0, sizeof *cut);
    cut->n_ranks = n_ranks;
    for (int d = 0; d < whole->n_dims; d++) {
        const struct part_dim *dim = &whole->dims[d];
        struct part_dim_cut *c = &cut->dims[d];
        order_cut(dim->leaves.n, shares ? shares : equal, (uint32_t)n_ranks, c->lo, c->hi);
        if (dim->leaves.kind == ORDER_VOCABULARY)
            continue; /* a select: no vectors */
        const uint32_t group = dim->leaves.kind == ORDER_HEADS ? (uint32_t)(whole->config.n_heads / whole->config.n_kv_heads) : 1;
        if (!shares)
            improve(dim, group, n_ranks, c->lo, c->hi);
        for (int r = 0; r < n_ranks; r++) {
            uint8_t node_lo[ORDER_MAX_LEAVES], node_hi[ORDER_MAX_LEAVES];
            c->n_vectors[r] = order_subtrees(c->lo[r], c->hi[r], dim->leaves.n, node_lo, node_hi);
            BASE_ASSERT(c->n_vectors[r] <= PART_MAX_VECTORS);
            memcpy(c->node_lo[r], node_lo, c->n_vectors[r]);
            memcpy(c->node_hi[r], node_hi, c->n_vectors[r]);
        }
    }
    return ST_OK;
}

struct part_range part_axis_range(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_axis axis)
{
    if (axis.dim == PART_WHOLE)
        return (struct part_range){0, axis.size};
    const struct order_leaves *l = &whole->dims[axis.dim].leaves;
    const uint32_t lo = cut->dims[axis.dim].lo[rank], hi = cut->dims[axis.dim].hi[rank];
    const uint64_t u0 = lo < l->n ? order_leaf_begin(l, lo) : l->end[l->n - 1];
    if (lo == hi || u0 == l->end[hi - 1]) { /* no leaf, or only empty ones (a vocabulary below 32) */
        const uint64_t at = u0 / axis.group * axis.scale;
        return (struct part_range){at, at};
    }
    const uint64_t u1 = l->end[hi - 1];
    return (struct part_range){u0 / axis.group * axis.scale, (u1 + axis.group - 1) / axis.group * axis.scale};
}

/* Expert mode: false where another rank holds the weight's expert. */
static bool is_here(const struct part_model *whole, const struct part_cut *cut, int rank, const struct part_weight *w)
{
    if (w->owner_dim == PART_WHOLE)
        return true;
    const struct part_range mine = part_axis_range(whole, cut, rank, part_axis_cut(w->owner_dim, 1, 1, 0));
    return w->owner_unit >= mine.begin && w->owner_unit < mine.end;
}

/* ---- weights, values, caches ------------------------------------------------------------------------------------------------------------------------ */

/* Whole elements: whatever covers a row and a column that the rank holds. Returns their bytes. */
static uint64_t cut_source(struct part_weight *w, uint32_t k)
{
    const struct quant_source *s = &w->scheme->sources[k];
    const struct part_range columns = s->all_columns ? (struct part_range){0, w->scheme->columns} : w->columns;
    const uint64_t row_begin = (w->first_row + w->rows.begin) / s->row_unit, column_begin = columns.begin / s->column_unit;
    const bool empty = w->rows.begin == w->rows.end || w->columns.begin == w->columns.end;
    const uint64_t n_rows = empty ? 0 : (w->first_row + w->rows.end - 1) / s->row_unit + 1 - row_begin, n_columns = empty ? 0 : (columns.end - 1) / s->column_unit + 1 - column_begin;
    const uint64_t inner_stride = s->transposed ? s->row_stride : s->column_stride, n_inner = s->transposed ? n_rows : n_columns;
    const bool dense = inner_stride == s->element_bytes;
    w->slices[k] = (struct part_slice){
        .file = s->tensor->file,
        .offset = s->tensor->offset + s->offset + row_begin * s->row_stride + column_begin * s->column_stride,
        .count = {s->transposed ? n_columns : n_rows, dense ? 1 : n_inner},
        .stride = {s->transposed ? s->column_stride : s->row_stride, dense ? 0 : inner_stride},
        .run_bytes = empty ? 0 : dense ? n_inner * s->element_bytes : s->element_bytes,
        .first_row = row_begin * s->row_unit,
        .first_column = column_begin * s->column_unit,
    };
    return n_rows * n_columns * s->element_bytes;
}

void part_weight_slice(struct part_weight *w)
{
    w->slice_bytes = 0;
    for (uint32_t k = 0; k < w->scheme->n_sources; k++)
        w->slice_bytes += cut_source(w, k);
}

static void cut_weight(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_weight *w)
{
    w->rows = part_axis_range(whole, cut, rank, w->row_axis);
    w->columns = w->kind == PART_MATRIX ? part_axis_range(whole, cut, rank, w->column_axis) : (struct part_range){0, 1};
    if (!is_here(whole, cut, rank, w))
        w->rows = w->columns = (struct part_range){0, 0};
    part_weight_slice(w);
}

static void cut_value(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_value *v)
{
    const struct part_range r = part_axis_range(whole, cut, rank, v->axis);
    v->width = r.end - r.begin;
    v->n_vectors = v->partial ? cut->dims[v->sum_dim].n_vectors[rank] : 1;
}

/* ---- steps ------------------------------------------------------------------------------------------------------------------------------------------ */

static void cut_heads(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_model *shard, struct part_step *s)
{
    const struct part_axis heads = part_axis_cut(whole->dim_heads, 1, 1, (uint64_t)whole->config.n_heads);
    const struct part_range q = part_axis_range(whole, cut, rank, heads);
    if (s->op != PART_ATTENTION) {
        s->n_heads = (uint32_t)(shard->values[s->in[0]].width / (uint64_t)whole->config.head_dim);
        return;
    }
    struct part_axis kv_axis = heads;
    kv_axis.group = s->head_group;
    const struct part_range kv = part_axis_range(whole, cut, rank, kv_axis);
    s->n_heads = (uint32_t)(q.end - q.begin);
    s->q_first = (uint32_t)q.begin;
    s->kv_first = (uint32_t)kv.begin;
    shard->caches[s->cache].n_kv_heads = (uint32_t)(kv.end - kv.begin);
}

static struct part_step *add_exchange(struct part_model *m, struct part_program *p, int layer, enum part_exchange mode, int value, int dim)
{
    struct part_step *x = part_add_step(m, p, PART_EXCHANGE, layer);
    x->exchange = mode;
    x->in[0] = (int16_t)value;
    x->dim = (int16_t)dim;
    return x;
}

static int follower_of(const struct part_model *m, int value)
{
    for (int v = 0; v < m->n_values; v++)
        if (m->values[v].follows == value)
            return v;
    return PART_NONE;
}

static void rewrite(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_model *shard, const struct part_program *from, struct part_program *to)
{
    for (int i = 0; i < from->n_steps; i++) {
        const struct part_step *s = &from->steps[i];
        if (cut->n_ranks > 1 && s->op == PART_SUM && whole->values[s->in[1]].follows == PART_NONE)
            add_exchange(shard, to, s->layer, PART_EXCHANGE_TREE, s->in[1], s->dim)->in[1] = (int16_t)follower_of(whole, s->in[1]);
        if (cut->n_ranks > 1 && s->op == PART_SCORE) /* the logits themselves, for whoever asked for them; before they are reduced to scores and candidates */
            add_exchange(shard, to, s->layer, PART_EXCHANGE_LOGITS, s->in[0], shard->dim_vocab);
        struct part_step *mine = part_add_step(shard, to, s->op, s->layer);
        *mine = *s;
        if (s->n_heads)
            cut_heads(whole, cut, rank, shard, mine);
        if (s->expert_end && whole->dim_experts >= 0) {
            const struct part_range experts = part_axis_range(whole, cut, rank, part_axis_cut(whole->dim_experts, 1, 1, 0));
            mine->expert_first = (uint32_t)experts.begin;
            mine->expert_end = (uint32_t)experts.end;
        }
        if (cut->n_ranks == 1)
            continue;
        if (s->op == PART_EMBED) { /* rows of the vocabulary lie on different ranks: a select */
            const int16_t x = s->out[0];
            const int part = part_add_value(shard, "embedded", PART_TOKENS, whole->values[x].axis);
            shard->values[part].partial = true;
            to->steps[to->n_steps - 1].out[0] = (int16_t)part;
            add_exchange(shard, to, s->layer, PART_EXCHANGE_SELECT, part, s->dim);
            struct part_step *select = part_add_step(shard, to, PART_SELECT, s->layer);
            select->in[0] = (int16_t)part;
            select->out[0] = x;
            select->dim = s->dim;
        }
        if (s->op == PART_SQUARES)
            add_exchange(shard, to, s->layer, PART_EXCHANGE_SQUARES, s->out[0], shard->dim_heads);
        if (s->op == PART_SCORE)
            add_exchange(shard, to, s->layer, PART_EXCHANGE_SCORE, s->out[0], shard->dim_vocab);
        if (s->op == PART_SAMPLE)
            add_exchange(shard, to, s->layer, PART_EXCHANGE_SAMPLE, s->out[0], shard->dim_vocab);
    }
}

static void *copy(struct arena *a, const void *items, int n, size_t size)
{
    void *mine = base_arena_array(a, (size_t)(n ? n : 1), size);
    BASE_ASSERT(mine != NULL);
    if (n)
        memcpy(mine, items, (size_t)n * size);
    return mine;
}

enum st part_shard(const struct part_model *whole, const struct part_cut *cut, int rank, struct part_model **out, struct err *e)
{
    struct part_model *m = malloc(sizeof *m);
    if (!m)
        return err_set(e, ST_NO_MEMORY, "no memory for rank %d's program", rank);
    *m = *whole;
    m->arena = (struct arena){0};
    enum st st = base_arena_init(&m->arena, "shard", 0, e);
    if (st) {
        free(m);
        return st;
    }
    m->rank = rank;
    m->n_ranks = cut->n_ranks;
    m->weights = copy(&m->arena, whole->weights, whole->n_weights, sizeof *m->weights);
    m->weights_capacity = m->n_weights;
    m->values = copy(&m->arena, whole->values, whole->n_values, sizeof *m->values);
    m->values_capacity = m->n_values;
    m->caches = copy(&m->arena, whole->caches, whole->n_caches, sizeof *m->caches);
    m->caches_capacity = m->n_caches;
    for (int i = 0; i < m->n_weights; i++)
        cut_weight(whole, cut, rank, &m->weights[i]);
    for (int i = 0; i < m->n_values; i++)
        cut_value(whole, cut, rank, &m->values[i]);
    if (m->value_scores >= 0) /* (max, sum) per local slice, and the target's logit */
        m->values[m->value_scores].width = 2 * (cut->dims[m->dim_vocab].hi[rank] - cut->dims[m->dim_vocab].lo[rank]) + 1;

    m->main = (struct part_program){.name = whole->main.name};
    m->head = (struct part_program){.name = whole->head.name};
    rewrite(whole, cut, rank, m, &whole->main, &m->main);
    rewrite(whole, cut, rank, m, &whole->head, &m->head);
    st = part_model_check(m, e);
    if (st) {
        part_model_destroy(m);
        return err_prefix(e, st, "rank %d", rank);
    }
    *out = m;
    return ST_OK;
}
