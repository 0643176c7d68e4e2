/* Walking programs. The one idea: all threads walk the same list and do their share of each step; nothing is dispatched.
 *
 * A value's address is fixed, except that of a value which goes into an exchange: it lies in comm's send buffer, which changes from one exchange to the next; thread 0 looks it up
 * at the end of each exchange, before the barrier that follows. */
#include "runtime/step_priv.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/tick.h"

/* Beside values, barriers watch two more things that steps share: the scratch (with the squares of norms over all heads), and the views of what came from others. */
enum { SCRATCH_BIT = 62, VIEWS_BIT = 63 };

/* ---- binding ------------------------------------------------------------------------------------------------------------------------------------------ */

static uint64_t mask_in(const struct part_step *s)
{
    uint64_t mask = 0;
    for (int k = 0; k < 3; k++)
        if (s->in[k] != PART_NONE)
            mask |= 1ull << s->in[k];
    if (s->op == PART_SUM || s->op == PART_SELECT || (s->op == PART_NORM && s->in[1] != PART_NONE))
        mask |= 1ull << VIEWS_BIT;
    return mask;
}

static uint64_t mask_out(const struct part_step *s)
{
    uint64_t mask = 0;
    for (int k = 0; k < PART_MAX_PARTS; k++)
        if (s->out[k] != PART_NONE)
            mask |= 1ull << s->out[k];
    if (s->op == PART_EXCHANGE)
        mask |= 1ull << VIEWS_BIT;
    if (s->op == PART_LINEAR || (s->op == PART_NORM && s->in[1] != PART_NONE) || s->op == PART_EXPERTS_IN || s->op == PART_EXPERTS_OUT)
        mask |= 1ull << SCRATCH_BIT;
    return mask;
}

static enum st bind_barriers(struct rt_exec *x, const struct part_program *p, struct bound_program *b, struct err *e)
{
    b->p = p;
    b->barrier_before = base_arena_array(&x->arena, (size_t)p->n_steps + 1, sizeof *b->barrier_before);
    if (!b->barrier_before)
        return err_set(e, ST_NO_MEMORY, "no memory for the barriers of program %s", p->name);
    uint64_t read = 0, written = 0, on_bytes_of[PART_MAX_VALUES] = {0};
    for (int v = 0; v < x->m->n_values; v++)
        for (int u = 0; u < x->m->n_values; u++)
            on_bytes_of[v] |= (uint64_t)part_values_overlap(x->o.plan, x->m, u, v) << u;
    for (int i = 0; i < p->n_steps; i++) {
        const uint64_t in = mask_in(&p->steps[i]);
        uint64_t out = mask_out(&p->steps[i]);
        for (int v = 0; v < x->m->n_values; v++) /* who writes a value writes all that lie on its bytes: a slower thread may still read one */
            out |= mask_out(&p->steps[i]) >> v & 1 ? on_bytes_of[v] : 0;
        /* an exchange moves the send buffer: every partial value is another one afterwards */
        const bool meets = (in & written) || (out & (read | written)) || p->steps[i].op == PART_EXCHANGE;
        b->barrier_before[i] = meets;
        read = meets ? in : read | in;
        written = meets ? out : written | out;
        if (p->steps[i].op == PART_EXCHANGE)
            read = written = 0; /* the walk puts a barrier behind it anyway */
    }
    return ST_OK;
}

/* Cut where the whole vocabulary's slices are cut. */
static enum st bind_slices(struct rt_exec *x, struct err *e)
{
    const struct part_model *m = x->m;
    const struct order_leaves *l = &m->dims[m->dim_vocab].leaves;
    const uint32_t lo = x->o.plan->cut.dims[m->dim_vocab].lo[m->rank], hi = x->o.plan->cut.dims[m->dim_vocab].hi[m->rank];
    x->n_slices = (int)(hi - lo);
    x->slice_begin = base_arena_array(&x->arena, (size_t)x->n_slices + 1, sizeof *x->slice_begin);
    x->lse_max = base_arena_array(&x->arena, (size_t)(x->n_slices + 1) * RT_HEAD_ROWS, sizeof(float));
    x->lse_sum = base_arena_array(&x->arena, (size_t)(x->n_slices + 1) * RT_HEAD_ROWS, sizeof(float));
    if (!x->slice_begin || !x->lse_max || !x->lse_sum)
        return err_set(e, ST_NO_MEMORY, "no memory for the vocabulary's slices");
    for (int i = 0; i <= x->n_slices; i++)
        x->slice_begin[i] = (uint32_t)(order_leaf_begin(l, lo + (uint32_t)i) - order_leaf_begin(l, lo));
    return ST_OK;
}

static enum st bind_caches(struct rt_exec *x, struct err *e)
{
    const struct rt_settings *s = x->o.settings;
    x->kv = base_arena_array(&x->arena, (size_t)x->m->n_caches + 1, sizeof *x->kv);
    if (!x->kv)
        return err_set(e, ST_NO_MEMORY, "no memory for the table of caches");
    for (int i = 0; i < x->m->n_caches; i++) {
        const struct part_cache *c = &x->m->caches[i];
        struct kern_kv *kv = &x->kv[i];
        *kv = (struct kern_kv){.format = s->kv_format, .n_kv_heads = (int)c->n_kv_heads, .head_dim = (int)c->head_dim, .k_scale = c->k_scale, .v_scale = c->v_scale};
        kv->block_bytes = kern_kv_block_bytes(kv->format, kv->n_kv_heads, kv->head_dim);
        kv->n_blocks = x->o.plan->n_kv_blocks;
        if (!x->o.backend->supports(KERN_OP_ATTENTION, kv->format, KERN_ACT_F32, kv->head_dim))
            return err_set(e, ST_UNSUPPORTED, "kernel backend %s/%s has no attention for head_dim %d with a cache in %s", x->o.backend->name, x->o.backend->variant, kv->head_dim,
                           kern_format(kv->format)->name);
        if (kv->block_bytes && !(kv->base = base_arena_alloc(&x->arena, kv->block_bytes * x->o.plan->n_kv_blocks)))
            return err_set(e, ST_NO_MEMORY, "no memory for the cache of layer %d: %zu bytes", c->layer, kv->block_bytes * (size_t)x->o.plan->n_kv_blocks);
    }
    return ST_OK;
}

static enum st bind_scratch(struct rt_exec *x, struct err *e)
{
    struct rt_scratch scratch;
    const enum st st = rt_scratch_init(x->o.backend, x->m, x->o.settings->chunk, x->o.settings->n_threads, &scratch, e);
    if (st)
        return st;
    x->scratch_matmul = base_arena_alloc(&x->arena, scratch.matmul + 64);
    x->scratch_attention = base_arena_alloc(&x->arena, scratch.attention + 64);
    x->sampled = base_arena_array(&x->arena, (size_t)RT_HEAD_ROWS * (size_t)x->o.settings->n_threads, sizeof *x->sampled);
    x->values = base_arena_alloc(&x->arena, x->o.plan->budget[x->o.rank].activations + 64);
    x->squares = base_arena_array(&x->arena, (size_t)x->o.settings->chunk, sizeof *x->squares);
    if (!x->squares || !x->scratch_matmul || !x->scratch_attention || !x->sampled || !x->values)
        return err_set(e, ST_NO_MEMORY, "no memory for the values of a step");
    return ST_OK;
}

static struct moved moved_by(const struct rt_exec *x, const struct part_step *s)
{
    struct moved n = {0};
    for (int k = 0; k < s->n_parts && s->op == PART_LINEAR; k++) {
        const struct kern_matrix *w = &x->o.weights->items[s->weight[k]].matrix;
        n.weights += x->o.backend->matrix_bytes(w);
        n.stored += x->m->weights[s->weight[k]].slice_bytes;
    }
    if (s->op == PART_ATTENTION)
        n.cache = x->kv[s->cache].block_bytes / KERN_KV_BLOCK;
    return n;
}

static enum st bind_ledger(struct rt_exec *x, struct err *e)
{
    if (!x->o.settings->ledger)
        return ST_OK;
    struct bound_program *const programs[] = {&x->main, &x->head};
    for (int p = 0; p < 2; p++) {
        struct bound_program *b = programs[p];
        b->moved = base_arena_array(&x->arena, (size_t)b->p->n_steps + 1, sizeof *b->moved);
        if (!b->moved)
            return err_set(e, ST_NO_MEMORY, "no memory for the ledger");
        for (int i = 0; i < b->p->n_steps; i++)
            b->moved[i] = moved_by(x, &b->p->steps[i]);
    }
    return rt_ledger_init(&x->ledger, x->o.clock, &x->arena, e);
}

enum st rt_exec_create(const struct rt_exec_options *options, struct rt_exec **out, struct err *e)
{
    struct rt_exec *x = calloc(1, sizeof *x);
    if (!x)
        return err_set(e, ST_NO_MEMORY, "no memory for the executor");
    x->o = *options;
    x->m = options->plan->ranks[options->rank];
    x->n_halves = 1;
    enum st st = base_arena_init(&x->arena, "session", 0, e);
    if (!st)
        st = bind_barriers(x, &x->m->main, &x->main, e);
    if (!st)
        st = bind_barriers(x, &x->m->head, &x->head, e);
    if (!st)
        st = rt_experts_bind(x, &x->m->main, &x->main, e);
    if (!st)
        st = rt_experts_bind(x, &x->m->head, &x->head, e);
    if (!st)
        st = bind_slices(x, e);
    if (!st)
        st = bind_caches(x, e);
    if (!st)
        st = bind_scratch(x, e);
    if (!st)
        st = rt_overlap_bind(x, e);
    if (!st)
        st = bind_ledger(x, e);
    if (st) {
        rt_exec_destroy(x);
        return st;
    }
    base_arena_freeze(&x->arena);
    *out = x;
    return ST_OK;
}

void rt_exec_destroy(struct rt_exec *x)
{
    if (!x)
        return;
    base_arena_release(&x->arena);
    free(x);
}

const uint64_t *rt_exec_expert_counts(const struct rt_exec *x) { return x->expert_counts; }

struct rt_ledger *rt_exec_ledger(struct rt_exec *x) { return x->ledger.on ? &x->ledger : NULL; }

/* ---- one step each ------------------------------------------------------------------------------------------------------------------------------------ */

/* A thread that could not read says so once; thread 0 looks before the next exchange, or at the program's end. */
static void fail(struct rt_exec *x, enum st st, const struct err *e)
{
    int none = ST_OK;
    if (atomic_compare_exchange_strong(&x->failing, &none, -1)) {
        *x->e = *e;
        atomic_store(&x->failing, (int)st);
    }
}

/* Rows from the file: as kern_embed has them. */
static void embed_from_disk(struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const struct rt_weight *table = &x->o.weights->items[s->weight[0]];
    const struct part_range *rows = &x->m->weights[s->weight[0]].rows;
    const size_t width = value_of(x, s->out[0])->width;
    size_t begin, end;
    base_pool_share((size_t)x->desc->batch.n_tokens, 1, q.i_thread, q.n_threads, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *y = address(x, s->out[0]) + t * width;
        const uint64_t id = (uint64_t)x->desc->ids[t];
        struct err e = {""};
        const bool mine = id >= rows->begin && id < rows->end;
        const enum st st = mine ? rt_disk_rows_read(table->rows, q.i_thread, id - rows->begin, y, &e) : ST_OK;
        if (st)
            fail(x, st, &e);
        for (size_t i = 0; i < width; i++)
            y[i] = mine ? y[i] * table->matrix.scale * s->scale : 0;
        base_tick();
    }
}

static void do_embed(struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    if (x->o.weights->items[s->weight[0]].rows) {
        embed_from_disk(x, q, s);
        return;
    }
    const struct kern_embed args = {
        .table = &x->o.weights->items[s->weight[0]].matrix,
        .row_begin = x->m->weights[s->weight[0]].rows.begin,
        .ids = x->desc->ids,
        .n_tokens = x->desc->batch.n_tokens,
        .y = address(x, s->out[0]),
        .y_stride = value_of(x, s->out[0])->width,
        .scale = s->scale,
    };
    x->o.backend->embed(q, &args);
}

static void do_rope_table(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const struct rope_config *r = &x->m->config.rope;
    const struct kern_rope_table args = {
        .position = x->desc->position,
        .n_tokens = x->desc->batch.n_tokens,
        .n_frequencies = r->rotary_dim / 2,
        .frequency = r->frequency,
        .factor = r->attention_factor,
        .cos_sin = address(x, s->out[0]),
    };
    x->o.backend->rope_table(q, &args);
}

static void do_norm(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t all = value_of(x, s->in[0])->width, width = s->n_heads ? all / s->n_heads : all;
    const struct kern_norm args = {
        .x = address(x, s->in[0]),
        .weight = vector_of(x, s->weight[0]),
        .y = address(x, s->out[0]),
        .x_stride = width,
        .y_stride = width,
        .n_tokens = rows_in(x, s->in[0]) * (int)(width ? all / width : 0), /* heads lie side by side: each is a row */
        .width = (int)width,
        .eps = s->eps,
    };
    x->o.backend->norm(q, &args);
}

/* Σ over heads [a, b) of the whole in the tree of sums; a leaf is a head, of keys the one whose first query head it is. */
static float sum_heads(const struct rt_exec *x, const struct part_step *s, int t, uint32_t a, uint32_t b)
{
    if (b - a > 1) {
        const uint32_t m = a + (b - a + 1) / 2;
        const float left = sum_heads(x, s, t, a, m);
        return left + sum_heads(x, s, t, m, b);
    }
    const uint32_t head = a * (s->of_keys ? (uint32_t)(x->m->config.n_heads / x->m->config.n_kv_heads) : 1);
    const struct part_axis heads = part_axis_cut(x->m->dim_heads, 1, 1, 0);
    for (int r = 0;; r++) {
        const struct part_range mine = part_axis_range(x->o.plan->whole, &x->o.plan->cut, r, heads);
        if (head < mine.begin || head >= mine.end)
            continue;
        const float *record = x->o.comm ? x->views[r] : address(x, s->in[1]);
        return record[((size_t)t * (mine.end - mine.begin) + head - mine.begin) * 2 + s->of_keys];
    }
}

/* A norm over all heads, of which this rank has some. */
static void do_norm_all(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t width = value_of(x, s->in[0])->width;
    const int n_heads = s->of_keys ? x->m->config.n_kv_heads : x->m->config.n_heads;
    size_t begin, end;
    base_pool_share((size_t)x->desc->batch.n_tokens, 1, q.i_thread, q.n_threads, &begin, &end);
    for (size_t t = begin; t < end; t++)
        x->squares[t] = sum_heads(x, s, (int)t, 0, (uint32_t)n_heads);
    base_pool_barrier(x->o.pool, q.i_thread);
    const struct kern_norm args = {
        .x = address(x, s->in[0]),
        .weight = vector_of(x, s->weight[0]),
        .y = address(x, s->out[0]),
        .x_stride = width,
        .y_stride = width,
        .n_tokens = x->desc->batch.n_tokens,
        .width = (int)width,
        .eps = s->eps,
        .squares = x->squares,
        .whole_width = n_heads * x->m->config.head_dim,
    };
    x->o.backend->norm(q, &args);
}

/* Of queries at even places; of keys behind the first query head of their group, whose rank the others leave them to. */
static void do_squares(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t width = value_of(x, s->out[0])->width, n_heads = width / 2, group = (size_t)(x->m->config.n_heads / x->m->config.n_kv_heads), dim = (size_t)x->m->config.head_dim;
    const struct part_range heads = part_axis_range(x->o.plan->whole, &x->o.plan->cut, x->m->rank, part_axis_cut(x->m->dim_heads, 1, 1, 0));
    const size_t first = (heads.begin + group - 1) / group * group, foreign = first - heads.begin; /* query heads whose key/value head is counted by a lower rank */
    const int n_tokens = x->desc->batch.n_tokens;
    float *out = address(x, s->out[0]);
    size_t begin, end;
    base_pool_share((size_t)n_tokens, 1, q.i_thread, q.n_threads, &begin, &end);
    for (size_t t = begin; t < end; t++)
        for (size_t h = 0; h < n_heads; h++)
            out[t * width + 2 * h + 1] = 0;
    base_pool_barrier(x->o.pool, q.i_thread);
    struct kern_squares args = {.x = address(x, s->in[0]), .x_stride = value_of(x, s->in[0])->width, .n_tokens = n_tokens, .n_heads = (int)n_heads, .head_dim = (int)dim, .out = out,
                                .out_stride = width, .out_step = 2};
    x->o.backend->squares(q, &args);
    if (foreign >= n_heads)
        return;
    args.n_heads = (int)((n_heads - foreign + group - 1) / group);
    args.x = address(x, s->in[1]) + (foreign ? dim : 0); /* the cut head stands first */
    args.x_stride = value_of(x, s->in[1])->width;
    args.out = out + 2 * foreign + 1;
    args.out_step = 2 * group;
    x->o.backend->squares(q, &args);
}

/* Parts [first, returned) have their columns in the same order and are one product. */
static int parts_of_one_order(const struct rt_exec *x, const struct part_step *s, int first)
{
    const struct rt_weight *items = x->o.weights->items;
    int k = first + 1;
    while (k < s->n_parts && items[s->weight[k]].matrix.columns.order == items[s->weight[first]].matrix.columns.order)
        k++;
    return k;
}

static void do_linear(struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    for (int first = 0, end; first < s->n_parts; first = end) {
        end = parts_of_one_order(x, s, first);
        struct kern_matmul args = {
            .x = address(x, s->in[0]),
            .x_stride = value_of(x, s->in[0])->width,
            .n_tokens = rows_in(x, s->in[0]),
            .n_parts = end - first,
            .scratch = x->scratch_matmul,
        };
        for (int k = first; k < end; k++) {
            const struct part_value *out = value_of(x, s->out[k]);
            args.parts[k - first].matrix = &x->o.weights->items[s->weight[k]].matrix;
            args.parts[k - first].bias = vector_of(x, s->bias[k]);
            args.parts[k - first].y = address(x, s->out[k]);
            args.parts[k - first].y_stride = out->width;
            args.parts[k - first].vector_stride = out->width * (size_t)args.n_tokens;
        }
        if (first) /* the scratch is still read */
            base_pool_barrier(x->o.pool, q.i_thread);
        x->o.backend->matmul_prepare(q, &args);
        base_pool_barrier(x->o.pool, q.i_thread);
        x->o.backend->matmul(q, &args);
    }
}

static void do_rope(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const struct rope_config *r = &x->m->config.rope;
    const struct kern_rope args = {
        .x = address(x, s->in[0]),
        .x_stride = value_of(x, s->in[0])->width,
        .n_tokens = x->desc->batch.n_tokens,
        .n_heads = (int)s->n_heads,
        .head_dim = x->m->config.head_dim,
        .n_frequencies = r->rotary_dim / 2,
        .interleaved = r->interleaved,
        .cos_sin = address(x, s->in[1]),
    };
    x->o.backend->rope(q, &args);
}

static void do_attention(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const struct kern_kv *kv = &x->kv[s->cache];
    const struct kern_kv_append append = {
        .batch = &x->desc->batch,
        .kv = kv,
        .k = address(x, s->in[1]),
        .v = address(x, s->in[2]),
        .k_stride = value_of(x, s->in[1])->width,
        .v_stride = value_of(x, s->in[2])->width,
    };
    x->o.backend->kv_append(q, &append);
    base_pool_barrier(x->o.pool, q.i_thread);
    const struct kern_attention args = {
        .batch = &x->desc->batch,
        .kv = kv,
        .q = address(x, s->in[0]),
        .q_stride = value_of(x, s->in[0])->width,
        .out = address(x, s->out[0]),
        .out_stride = value_of(x, s->out[0])->width,
        .n_heads = (int)s->n_heads,
        .q_first = (int)s->q_first,
        .kv_first = (int)s->kv_first,
        .group = (int)s->head_group,
        .scale = s->scale,
        .window = (int)s->window,
        .sinks = vector_of(x, s->bias[0]),
        .scratch = x->scratch_attention,
    };
    x->o.backend->attention(q, &args);
}

static void do_gate(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t width = value_of(x, s->out[0])->width;
    const struct kern_gate args = {
        .gate = address(x, s->in[0]),
        .up = address(x, s->in[1]),
        .y = address(x, s->out[0]),
        .gate_stride = width,
        .up_stride = width,
        .y_stride = width,
        .n_tokens = rows_in(x, s->in[0]),
        .width = (int)width,
        .kind = x->m->config.gate == CONFIG_GATE_CLAMPED ? KERN_GATE_CLAMPED : KERN_GATE_SILU,
        .alpha = (float)x->m->config.gate_alpha,
        .limit = (float)x->m->config.gate_limit,
    };
    x->o.backend->gate(q, &args);
}

static void do_row_gate(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t width = value_of(x, s->out[0])->width;
    const struct kern_row_gate args = {.x = address(x, s->out[0]), .x_stride = width, .n_tokens = rows_in(x, s->in[0]), .width = (int)width, .gate = address(x, s->in[1])};
    x->o.backend->row_gate(q, &args);
}

static void do_column_scale(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t width = value_of(x, s->out[0])->width;
    const struct kern_column_scale args = {.x = address(x, s->out[0]), .x_stride = width, .n_tokens = rows_in(x, s->in[0]), .width = (int)width, .scale = vector_of(x, s->weight[0])};
    x->o.backend->column_scale(q, &args);
}

static void do_select(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t width = value_of(x, s->out[0])->width;
    size_t begin, end;
    base_pool_share((size_t)x->desc->batch.n_tokens, 1, q.i_thread, q.n_threads, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *from = x->views[rt_logits_owner(x, s->dim, (uint64_t)x->desc->ids[t])];
        memcpy(address(x, s->out[0]) + t * width, from + t * width, width * sizeof(float));
    }
}

static void do_pick(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const size_t width = value_of(x, s->out[0])->width;
    size_t begin, end;
    base_pool_share((size_t)x->n_rows, 1, q.i_thread, q.n_threads, &begin, &end);
    for (size_t i = begin; i < end; i++)
        memcpy(address(x, s->out[0]) + i * width, address(x, s->in[0]) + (size_t)x->desc->rows[(size_t)x->first_row + i].token * width, width * sizeof(float));
}

/* ---- exchanges ---------------------------------------------------------------------------------------------------------------------------------------- */

static bool wanted(const struct rt_exec *x, enum part_op op, enum part_exchange mode)
{
    if (op == PART_SAMPLE || (op == PART_EXCHANGE && mode == PART_EXCHANGE_SAMPLE))
        return x->row_wants & RT_ROW_SAMPLE;
    if (op == PART_SCORE || (op == PART_EXCHANGE && mode == PART_EXCHANGE_SCORE))
        return x->row_wants & RT_ROW_SCORE;
    if (op == PART_EXCHANGE && mode == PART_EXCHANGE_LOGITS)
        return x->row_wants & RT_ROW_LOGITS;
    return true;
}

/* Thread 0 only. With one rank there is no exchange step, and what follows one is done after SAMPLE and SCORE themselves. */
static void do_exchange(struct rt_exec *x, const struct part_step *s)
{
    x->st = (enum st)atomic_load(&x->failing);
    if (!x->st)
        x->st = rt_exchange_begin(x, s);
    if (!x->st)
        x->st = rt_exchange_end(x);
    if (x->st)
        return;
    x->send_buffer = comm_send_buffer(x->o.comm);
    if (s->exchange == PART_EXCHANGE_LOGITS)
        x->st = rt_logits_deliver(x, s->in[0]);
    if (s->exchange == PART_EXCHANGE_SCORE)
        rt_logits_merge_scores(x, s);
    if (s->exchange == PART_EXCHANGE_SAMPLE)
        rt_logits_merge_samples(x, s);
}

/* One rank: the end of a head program's branch. */
static void finish_alone(struct rt_exec *x, const struct part_step *s)
{
    struct part_step own = *s;
    own.in[0] = s->out[0];
    if (s->op == PART_SCORE)
        rt_logits_merge_scores(x, &own);
    if (s->op == PART_SAMPLE)
        rt_logits_merge_samples(x, &own);
}

/* ---- the walk ----------------------------------------------------------------------------------------------------------------------------------------- */

static void do_step(struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *experts)
{
    switch (s->op) {
    case PART_EMBED:
        do_embed(x, q, s);
        break;
    case PART_ROPE_TABLE:
        do_rope_table(x, q, s);
        break;
    case PART_NORM:
        if (s->in[1] == PART_NONE)
            do_norm(x, q, s);
        else
            do_norm_all(x, q, s);
        break;
    case PART_ROW_GATE:
        do_row_gate(x, q, s);
        break;
    case PART_COLUMN_SCALE:
        do_column_scale(x, q, s);
        break;
    case PART_SQUARES:
        do_squares(x, q, s);
        break;
    case PART_LINEAR:
        do_linear(x, q, s);
        break;
    case PART_ROPE:
        do_rope(x, q, s);
        break;
    case PART_ATTENTION:
        do_attention(x, q, s);
        break;
    case PART_GATE:
        do_gate(x, q, s);
        break;
    case PART_ROUTE:
        rt_experts_route(x, q, s, experts);
        break;
    case PART_EXPERTS_IN:
        rt_experts_in(x, q, s, experts);
        break;
    case PART_EXPERTS_OUT:
        rt_experts_out(x, q, s, experts);
        break;
    case PART_EXPERTS_BIAS:
        rt_experts_bias(x, q, s, experts);
        break;
    case PART_SUM:
        rt_sum(x, q, s);
        break;
    case PART_SELECT:
        do_select(x, q, s);
        break;
    case PART_PICK:
        do_pick(x, q, s);
        break;
    case PART_SAMPLE:
        rt_logits_sample(x, q, s);
        break;
    case PART_SCORE:
        rt_logits_score(x, q, s);
        break;
    case PART_EXCHANGE: /* is none of these, see walk */
        break;
    }
    if (!x->o.comm && q.i_thread == 0)
        finish_alone(x, s);
}

/* The interval of the step before has ended, with the barrier behind it, where it has one. An exchange enters by itself. */
static void mark(struct rt_exec *x, int i)
{
    const struct part_step *s = &x->walking->p->steps[i];
    const struct bound_experts *experts = x->walking->experts[i];
    const struct moved *moved = &x->walking->moved[i];
    struct rt_ledger_bytes *bytes = &x->ledger.now.bytes;
    rt_ledger_enter(&x->ledger, rt_ledger_kind_of(s->op), s->op, s->layer);
    bytes->weights += moved->weights;
    bytes->stored += moved->stored;
    bytes->cache += moved->cache * x->cache_tokens;
    if (experts)
        rt_experts_mark(x, s, experts, &x->ledger.now);
}

/* The next step with an exchange from i on that this run wants, or the program's end. */
static int next_exchange(const struct rt_exec *x, const struct part_program *p, int i)
{
    while (i < p->n_steps && !(p->steps[i].op == PART_EXCHANGE && wanted(x, PART_EXCHANGE, p->steps[i].exchange)))
        i++;
    return i;
}

/* Steps [from, to), of which none is such. */
static void walk_steps(struct rt_exec *x, struct kern_queue q, int from, int to)
{
    const bool marks = x->ledger.on && q.i_thread == 0, advances = x->n_halves > 1 && q.i_thread == 0;
    const struct bound_program *b = x->walking;
    for (int i = from; i < to; i++) {
        const struct part_step *s = &b->p->steps[i];
        if (b->barrier_before[i]) /* also before a step that nobody wants: the next one counts on it */
            base_pool_barrier(x->o.pool, q.i_thread);
        if (!wanted(x, s->op, s->exchange))
            continue;
        if (marks)
            mark(x, i);
        do_step(x, q, s, b->experts[i]);
        if (advances)
            rt_exchange_advance(x);
    }
}

/* Stage by stage: a stage ends with an exchange, or with the program. Both halves of a step in turn, where there are two. */
static void walk(void *arg, int i_thread, int n_threads)
{
    struct rt_exec *x = arg;
    const struct kern_queue q = {i_thread, n_threads};
    const struct part_program *p = x->walking->p;
    for (int from = 0, to; from <= p->n_steps; from = to + 1) {
        to = next_exchange(x, p, from);
        const struct part_step *s = to < p->n_steps ? &p->steps[to] : NULL;
        for (int half = 0; half < x->n_halves; half++) {
            walk_steps(x, q, from, to);
            if (!s && x->n_halves == 1)
                return;
            base_pool_barrier(x->o.pool, i_thread); /* bind_barriers wants one before an exchange, and relies on one after it */
            if (i_thread == 0 && x->n_halves == 1)
                do_exchange(x, s);
            else if (i_thread == 0)
                rt_overlap_meet(x, s);
            base_pool_barrier(x->o.pool, i_thread); /* what thread 0 found out is seen by all */
            if (x->st) /* asked here and nowhere else: until all have come to the barrier before the next exchange, thread 0 does not set it again */
                return;
        }
    }
}

static enum st run_program(struct rt_exec *x, const struct bound_program *b)
{
    x->walking = b;
    base_pool_run(x->o.pool, walk, x);
    if (!x->st)
        x->st = (enum st)atomic_load(&x->failing);
    if (x->ledger.on)
        rt_ledger_enter(&x->ledger, RT_LEDGER_HOST, RT_LEDGER_NO_OP, -1);
    return x->st;
}

static void open_ledger(struct rt_exec *x)
{
    const struct kern_batch *b = &x->desc->batch;
    rt_ledger_batch(&x->ledger, b->n_tokens, b->n_runs, x->desc->n_rows);
    x->cache_tokens = 0;
    for (int i = 0; i < b->n_runs; i++)
        x->cache_tokens += (uint64_t)b->position[b->run_begin[i] + b->run_tokens[i] - 1] + 1;
}

enum st rt_exec_run(struct rt_exec *x, const struct rt_desc *desc, const struct comm_header *header, struct comm_header *root, struct rt_row_result *results, struct err *e)
{
    x->desc = desc;
    x->header = header;
    x->root = root;
    x->results = results;
    x->st = ST_OK;
    x->failing = ST_OK;
    x->under_way.step = NULL;
    x->is_summed = false;
    x->e = e;
    x->row_wants = 0;
    *root = *header;
    if (desc->batch.n_tokens == 0)
        return ST_OK;
    if (x->ledger.on)
        open_ledger(x);
    if (x->o.comm)
        x->send_buffer = comm_send_buffer(x->o.comm);
    const bool overlaps = rt_overlap_is_due(x);
    if (overlaps)
        rt_overlap_begin(x);
    enum st st = run_program(x, &x->main);
    if (overlaps)
        rt_overlap_end(x, desc);
    for (int at = 0; at < desc->n_rows && !st; at += RT_HEAD_ROWS) {
        x->first_row = at;
        x->n_rows = desc->n_rows - at < RT_HEAD_ROWS ? desc->n_rows - at : RT_HEAD_ROWS;
        x->row_wants = 0;
        for (int i = 0; i < x->n_rows; i++)
            x->row_wants |= desc->rows[at + i].wants;
        st = run_program(x, &x->head);
        if (!st && !x->o.comm && x->row_wants & RT_ROW_LOGITS)
            st = rt_logits_deliver(x, x->m->value_logits);
    }
    return st;
}
