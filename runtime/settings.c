/* Sizes that depend on the kernel backend, asked by the planner; and the digest of a user's choices. */
#include "runtime/settings.h"

#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"

enum st rt_columns_init(const struct part_model *m, const struct part_weight *w, struct arena *arena, struct kern_columns *columns, struct err *e)
{
    const struct part_axis axis = w->column_axis;
    uint64_t leaf_end[KERN_MAX_LEAVES] = {w->columns.end};
    uint32_t lo = 0, hi = w->columns.begin < w->columns.end ? 1 : 0, n_total = 1;
    if (w->leaf_dim != PART_WHOLE && hi) {
        const struct order_leaves *l = &m->dims[w->leaf_dim].leaves;
        BASE_ASSERT(axis.group == 1 && l->n <= KERN_MAX_LEAVES);
        n_total = l->n;
        for (lo = 0; lo < l->n && order_leaf_begin(l, lo) * axis.scale < w->columns.begin; lo++)
            ;
        for (hi = lo; hi < l->n && l->end[hi] * axis.scale <= w->columns.end; hi++)
            leaf_end[hi - lo] = l->end[hi] * axis.scale;
    }
    const uint32_t n_max = kern_columns_max_segments(w->columns.end - w->columns.begin, hi - lo);
    uint32_t *begin = base_arena_array(arena, n_max ? n_max : 1, sizeof *begin);
    uint8_t *count = base_arena_array(arena, n_max ? n_max : 1, sizeof *count);
    if (!begin || !count)
        return err_set(e, ST_NO_MEMORY, "no memory for the column segments of %s", w->name);
    kern_columns_init(columns, w->columns.begin, leaf_end, lo, hi, n_total, begin, count);
    if (w->leaves_apart) {
        memset(columns->n_folds, 0, sizeof columns->n_folds);
        memset(columns->emit, 1, columns->n_leaves);
        columns->n_vectors = columns->n_leaves;
    }
    return ST_OK;
}

enum st rt_matrix_init(const struct part_model *m, const struct part_weight *w, bool accurate, struct arena *arena, struct kern_matrix *matrix, struct err *e)
{
    *matrix = (struct kern_matrix){.format = w->scheme->format,
                                   .activation = kern_activation_for(w->scheme->format, accurate || w->exact),
                                   .n_rows = w->rows.end - w->rows.begin,
                                   .scale = 1,
                                   .scale_columns = w->scheme->scale_columns};
    return rt_columns_init(m, w, arena, &matrix->columns, e);
}

static const struct rt_sizes *self(const struct part_sizes *s) { return (const struct rt_sizes *)s; }

/* Asked per weight of models with thousands of them: the arrays are short-lived. */
static uint64_t matrix_bytes(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w)
{
    struct arena a = {0};
    struct kern_matrix matrix;
    uint64_t bytes = UINT64_MAX / 4;
    if (base_arena_init(&a, "sizes", 0, NULL) == ST_OK && rt_matrix_init(m, w, s->accurate, &a, &matrix, NULL) == ST_OK)
        bytes = self(s)->backend->matrix_bytes(&matrix);
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
            if (step->op == PART_LINEAR) {
                struct kern_columns columns;
                st = rt_columns_init(m, &m->weights[step->weight[0]], &a, &columns, e);
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
    (void)s;
    return comm_shm_bytes(n_ranks, max_exchange_bytes);
}

void rt_sizes_init(struct rt_sizes *s, const struct rt_settings *settings, const struct kern_backend *backend)
{
    *s = (struct rt_sizes){
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
    base_hasher_update_u64(h, settings->moe);
    base_hasher_update_str(h, kern_format(settings->kv_format)->name);
    base_hasher_update_u64(h, (uint64_t)settings->chunk);
    base_hasher_update_u64(h, (uint64_t)settings->context);
    base_hasher_update_u64(h, (uint64_t)settings->max_sequences);
    base_hasher_update_u64(h, settings->ledger); /* it adds exchanges at the end */
    const struct digest d = base_hasher_final(h);
    base_hasher_destroy(h);
    return d;
}
