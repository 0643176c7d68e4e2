/* Sizes that depend on the kernel backend, asked by the planner; and the digest of a user's choices. */
#include "runtime/settings.h"

#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "runtime/disk_rows.h"

/* This rank's leaves of a weight's columns: their ends, and their numbers among n_total. */
struct leaves {
    uint64_t end[KERN_MAX_LEAVES];
    uint32_t lo, hi, n_total;
};

static struct leaves leaves_of(const struct part_model *m, const struct part_weight *w)
{
    const struct part_axis axis = w->column_axis;
    struct leaves x = {.end = {w->columns.end}, .hi = w->columns.begin < w->columns.end ? 1 : 0, .n_total = 1};
    if (w->leaf_dim == PART_WHOLE || !x.hi)
        return x;
    const struct order_leaves *l = &m->dims[w->leaf_dim].leaves;
    BASE_ASSERT(axis.group == 1 && l->n <= KERN_MAX_LEAVES);
    x.n_total = l->n;
    for (x.lo = 0; x.lo < l->n && order_leaf_begin(l, x.lo) * axis.scale < w->columns.begin; x.lo++)
        ;
    for (x.hi = x.lo; x.hi < l->n && l->end[x.hi] * axis.scale <= w->columns.end; x.hi++)
        x.end[x.hi - x.lo] = l->end[x.hi] * axis.scale;
    return x;
}

/* Act-order: inside each leaf columns are sorted by group, and each run of a group is filled up to whole blocks, so that a block has one scale. Where the columns are not cut, whole
 * groups come together and nothing is filled up. Leaves come from the model alone, and so does this order. */
static uint32_t block_of(const struct part_weight *w) { return w->column_axis.dim == PART_WHOLE ? w->scheme->scale_columns : KERN_SEGMENT; }

/* Where the first column of each group goes in a leaf [begin, end) that is laid out from `at` on; returns where the next leaf is. */
static uint64_t place_groups(const struct part_weight *w, uint64_t begin, uint64_t end, uint64_t at, uint64_t *next, uint64_t n_groups)
{
    const uint64_t block = block_of(w);
    memset(next, 0, n_groups * sizeof *next);
    for (uint64_t c = begin; c < end; c++)
        next[w->scheme->group_of[c]]++;
    for (uint64_t g = 0; g < n_groups; g++) {
        const uint64_t n = next[g];
        next[g] = at;
        at += (n + block - 1) / block * block;
    }
    return at;
}

/* x->end become ends in the new order. */
static enum st sort_columns(const struct part_weight *w, struct leaves *x, struct arena *arena, const int32_t **order, struct err *e)
{
    const uint64_t n_groups = w->scheme->columns / w->scheme->sources[1].column_unit;
    uint64_t *next = base_arena_array(arena, n_groups, sizeof *next), n = 0, at = 0, begin = w->columns.begin;
    for (uint32_t i = 0; next && i < x->hi - x->lo; begin = x->end[i++])
        n = place_groups(w, begin, x->end[i], n, next, n_groups);
    int32_t *to = base_arena_array(arena, n ? n : 1, sizeof *to);
    if (!next || !to)
        return err_set(e, ST_NO_MEMORY, "no memory for the order of columns of %s", w->name);
    memset(to, 0xff, n * sizeof *to); /* −1 */
    begin = w->columns.begin;
    for (uint32_t i = 0; i < x->hi - x->lo; i++) {
        const uint64_t end = x->end[i];
        x->end[i] = at = place_groups(w, begin, end, at, next, n_groups);
        for (; begin < end; begin++)
            to[next[w->scheme->group_of[begin]]++] = (int32_t)(begin - w->columns.begin);
    }
    *order = to;
    return ST_OK;
}

enum st rt_columns_init(const struct part_model *m, const struct part_weight *w, struct arena *arena, struct kern_columns *columns, struct err *e)
{
    struct leaves x = leaves_of(m, w);
    const int32_t *order = NULL;
    const enum st st = w->scheme->group_of ? sort_columns(w, &x, arena, &order, e) : ST_OK;
    if (st)
        return st;
    const uint64_t first = order ? 0 : w->columns.begin, last = x.hi > x.lo ? x.end[x.hi - x.lo - 1] : first;
    const uint32_t n_max = kern_columns_max_segments(last - first, x.hi - x.lo);
    uint32_t *begin = base_arena_array(arena, n_max ? n_max : 1, sizeof *begin);
    uint8_t *count = base_arena_array(arena, n_max ? n_max : 1, sizeof *count);
    if (!begin || !count)
        return err_set(e, ST_NO_MEMORY, "no memory for the column segments of %s", w->name);
    kern_columns_init(columns, first, x.end, x.lo, x.hi, x.n_total, begin, count);
    columns->order = order;
    if (w->leaves_apart) {
        memset(columns->n_folds, 0, sizeof columns->n_folds);
        memset(columns->emit, 1, columns->n_leaves);
        columns->n_vectors = columns->n_leaves;
    }
    return ST_OK;
}

enum st rt_matrix_init(const struct part_model *m, const struct part_weight *w, const struct kern_backend *backend, bool accurate, struct arena *arena, struct kern_matrix *matrix, struct err *e)
{
    enum kern_activation (*const activation)(enum format, bool) = backend->activation ? backend->activation : kern_activation_for;
    *matrix = (struct kern_matrix){.format = w->scheme->format,
                                   .activation = activation(w->scheme->format, accurate || w->exact),
                                   .n_rows = w->rows.end - w->rows.begin,
                                   .scale = 1,
                                   .scale_columns = w->scheme->group_of ? block_of(w) : w->scheme->scale_columns};
    return rt_columns_init(m, w, arena, &matrix->columns, e);
}

bool rt_same_columns(const struct kern_columns *a, const struct kern_columns *b)
{
    if (!a->order || !b->order)
        return a->order == b->order;
    return a->end == b->end && memcmp(a->order, b->order, a->end * sizeof *a->order) == 0;
}

static const struct rt_sizes *self(const struct part_sizes *s) { return (const struct rt_sizes *)s; }

/* Asked per weight of models with thousands of them: the arrays are short-lived. */
static uint64_t matrix_bytes(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w)
{
    struct arena a = {0};
    struct kern_matrix matrix;
    const uint64_t rows = w->home == PART_IN_MEMORY ? 0 : rt_disk_rows_bytes(w, s->n_threads);
    uint64_t bytes = UINT64_MAX / 4;
    if (w->home == PART_ON_DISK)
        return rows;
    if (base_arena_init(&a, "sizes", 0, NULL) == ST_OK && rt_matrix_init(m, w, self(s)->backend, s->accurate, &a, &matrix, NULL) == ST_OK)
        bytes = self(s)->backend->matrix_bytes(&matrix) + rows + (rows ? 64 : 0);
    base_arena_release(&a);
    return bytes;
}

static uint64_t kv_block_bytes(const struct part_sizes *s, const struct part_cache *c) { return kern_kv_block_bytes(s->kv_format, (int)c->n_kv_heads, (int)c->head_dim); }

enum st rt_scratch_init(const struct kern_backend *b, const struct part_model *m, int max_tokens, int n_threads, struct rt_scratch *scratch, struct err *e)
{
    struct rt_scratch most = {0, 0};
    struct arena a = {0};
    enum st st = base_arena_init(&a, "sizes", 0, e);
    const struct part_program *const programs[] = {&m->main, &m->head};
    for (int p = 0; p < 2; p++)
        for (int i = 0; i < programs[p]->n_steps && !st; i++) {
            const struct part_step *step = &programs[p]->steps[i];
            for (int k = 0; k < step->n_parts && step->op == PART_LINEAR && !st; k++) { /* columns out of order have a length of their own */
                struct kern_columns columns;
                if (k && !m->weights[step->weight[k]].scheme->group_of)
                    continue;
                st = rt_columns_init(m, &m->weights[step->weight[k]], &a, &columns, e);
                const size_t bytes = st ? 0 : b->matmul_scratch_bytes(&columns, p ? RT_HEAD_ROWS : max_tokens);
                most.matmul = bytes > most.matmul ? bytes : most.matmul;
                base_arena_reset(&a);
            }
            if ((step->op == PART_EXPERTS_IN || step->op == PART_EXPERTS_OUT) && step->expert_first < step->expert_end) {
                struct kern_columns columns;
                const struct part_value *out = &m->values[step->out[0]];
                st = rt_columns_init(m, &m->weights[step->weight[0] + (int32_t)step->expert_first], &a, &columns, e);
                const int n_slots = max_tokens * (int)part_rows_per_token(m, PART_SLOTS), n_sums = out->partial ? (int)m->dims[out->sum_dim].leaves.n : 0;
                const size_t bytes = st ? 0 : b->experts_scratch_bytes(&columns, n_slots, max_tokens, n_sums, n_threads);
                most.matmul = bytes > most.matmul ? bytes : most.matmul;
                base_arena_reset(&a);
            }
            if (step->op == PART_ATTENTION) {
                const size_t bytes = b->attention_scratch_bytes((int)step->n_heads, m->config.head_dim, max_tokens, n_threads);
                most.attention = bytes > most.attention ? bytes : most.attention;
            }
        }
    base_arena_release(&a);
    if (!st)
        *scratch = most;
    return st;
}

static uint64_t scratch_bytes(const struct part_sizes *s, const struct part_model *m)
{
    struct rt_scratch scratch;
    if (rt_scratch_init(self(s)->backend, m, s->max_tokens, s->n_threads, &scratch, NULL))
        return UINT64_MAX / 4;
    return scratch.matmul + scratch.attention + 4096;
}

static uint64_t comm_bytes(const struct part_sizes *s, int n_ranks, uint64_t max_exchange_bytes)
{
    /* where large sums are shared while the other half is computed, each rank has a place more for what it sends (overlap.c) */
    const bool has_partials = self(s)->shares_in_halves && self(s)->carrier && strcmp(self(s)->carrier, "shm") != 0 && n_ranks > 2;
    return comm_memory_bytes(self(s)->carrier, n_ranks, max_exchange_bytes) + (has_partials ? (uint64_t)n_ranks * max_exchange_bytes : 0);
}

void rt_sizes_init(struct rt_sizes *s, const struct rt_settings *settings, const struct kern_backend *backend, const char *carrier)
{
    *s = (struct rt_sizes){
        .carrier = carrier,
        .shares_in_halves = settings->overlap_tokens > 0 && settings->scatter_bytes > 0,
        .base =
            {
                .matrix_bytes = matrix_bytes,
                .kv_block_bytes = kv_block_bytes,
                .scratch_bytes = scratch_bytes,
                .comm_bytes = comm_bytes,
                .kv_block_tokens = KERN_KV_BLOCK,
                .accurate = settings->accurate,
                .kv_format = settings->kv_format,
                .n_threads = settings->n_threads,
                .max_tokens = settings->chunk,
                .max_rows = RT_HEAD_ROWS,
            },
        .backend = backend,
    };
}

struct part_plan_options rt_plan_options(const struct rt_settings *settings, int n_ranks, const uint32_t *shares)
{
    return (struct part_plan_options){
        .n_ranks = n_ranks, .shares = shares, .max_tokens = settings->chunk, .max_rows = RT_HEAD_ROWS, .context = settings->context, .max_sequences = settings->max_sequences};
}

struct digest rt_settings_digest(const struct rt_settings *settings)
{
    struct base_hasher *h = base_hasher_create();
    BASE_ASSERT(h != NULL);
    base_hasher_update_u64(h, settings->accurate);
    base_hasher_update_u64(h, settings->model.moe);
    base_hasher_update_str(h, kern_format(settings->kv_format)->name);
    base_hasher_update_u64(h, (uint64_t)settings->chunk);
    base_hasher_update_u64(h, (uint64_t)settings->overlap_tokens);
    base_hasher_update_u64(h, (uint64_t)settings->scatter_bytes);
    base_hasher_update_u64(h, (uint64_t)settings->context);
    base_hasher_update_u64(h, (uint64_t)settings->max_sequences);
    base_hasher_update_u64(h, settings->smaller.head_fp8);
    base_hasher_update_u64(h, settings->smaller.embedding);
    base_hasher_update_u64(h, settings->ledger); /* it adds exchanges at the end */
    const struct digest d = base_hasher_final(h);
    base_hasher_destroy(h);
    return d;
}
