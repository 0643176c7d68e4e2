/* Mixtures of experts on one rank: which tokens go to which local expert, and the steps over them. Local experts are those of part_step.expert_first … expert_end; their slots are sorted
 * by expert, then by token, so that a token's weighted sum runs over its experts in index order whatever else is in the batch. */
#include <string.h>

#include "runtime/step_priv.h"

_Static_assert(CONFIG_MAX_EXPERTS <= KERN_MAX_EXPERTS, "what a configuration may ask for, kernels can route to");

/* ---- binding ------------------------------------------------------------------------------------------------------------------------------------------ */

static enum st bind_parts(struct rt_exec *x, const struct part_step *s, struct bound_experts *b, struct err *e)
{
    const size_t n = (size_t)b->n + 1;
    for (int k = 0; k < (s->op == PART_EXPERTS_IN ? s->n_parts : 1); k++) {
        b->matrix[k] = base_arena_array(&x->arena, n, sizeof *b->matrix[k]);
        b->bias[k] = s->bias[k] == PART_NONE ? NULL : base_arena_array(&x->arena, n, sizeof *b->bias[k]);
        if (!b->matrix[k] || (s->bias[k] != PART_NONE && !b->bias[k]))
            return err_set(e, ST_NO_MEMORY, "no memory for the table of experts");
        for (int i = 0; i < b->n; i++) {
            const int32_t at = (int32_t)s->expert_first + i;
            if (s->op != PART_EXPERTS_BIAS)
                b->matrix[k][i] = &x->o.weights->items[s->weight[k] + at].matrix;
            if (b->bias[k])
                b->bias[k][i] = x->o.weights->items[s->bias[k] + at].vector;
        }
    }
    return ST_OK;
}

static enum st bind_bytes(struct rt_exec *x, const struct part_step *s, struct bound_experts *b, struct err *e)
{
    if (!x->o.settings->ledger || s->op == PART_EXPERTS_BIAS)
        return ST_OK;
    b->moved = base_arena_array(&x->arena, (size_t)b->n + 1, sizeof *b->moved);
    if (!b->moved)
        return err_set(e, ST_NO_MEMORY, "no memory for the ledger");
    memset(b->moved, 0, (size_t)b->n * sizeof *b->moved);
    for (int i = 0; i < b->n; i++)
        for (int k = 0; k < (s->op == PART_EXPERTS_IN ? s->n_parts : 1); k++) {
            b->moved[i].weights += x->o.backend->matrix_bytes(b->matrix[k][i]);
            b->moved[i].stored += x->m->weights[s->weight[k] + (int32_t)s->expert_first + i].slice_bytes;
        }
    return ST_OK;
}

/* The sums are this rank's leaves of the dimension that is summed over. */
static enum st bind_sums(struct rt_exec *x, const struct part_step *s, struct bound_experts *b, struct err *e)
{
    const int dim = x->m->values[s->out[0]].sum_dim;
    const struct order_leaves *l = &x->m->dims[dim].leaves;
    const uint32_t lo = x->o.plan->cut.dims[dim].lo[x->m->rank], hi = x->o.plan->cut.dims[dim].hi[x->m->rank];
    b->n_sums = (int)(hi - lo);
    kern_folds_init(lo, hi, l->n, b->n_folds, b->emit);
    if (l->kind != ORDER_EXPERTS)
        return ST_OK;
    b->sum_of = base_arena_array(&x->arena, (size_t)b->n + 1, sizeof *b->sum_of);
    if (!b->sum_of)
        return err_set(e, ST_NO_MEMORY, "no memory for the groups of experts");
    for (uint32_t g = lo, i = 0; i < (uint32_t)b->n; i++) {
        while (l->end[g] <= s->expert_first + i)
            g++;
        b->sum_of[i] = (uint8_t)(g - lo);
    }
    return ST_OK;
}

/* Where experts of a layer stand, and room to count them. */
static enum st bind_route(struct rt_exec *x, const struct part_step *s, struct bound_experts *b, struct err *e)
{
    const struct model_config *c = &x->m->config;
    const size_t n = (size_t)c->moe.n_experts;
    if (x->m->expert_map && x->m->expert_map->at[s->layer]) {
        b->position_of = base_arena_array(&x->arena, n, sizeof *b->position_of);
        for (size_t p = 0; b->position_of && p < n; p++)
            b->position_of[x->m->expert_map->at[s->layer][p]] = (uint16_t)p;
        if (!b->position_of)
            return err_set(e, ST_NO_MEMORY, "no memory for the expert map");
    }
    if (!x->o.settings->expert_stats || x->m->rank != 0 || x->expert_counts)
        return ST_OK;
    x->expert_counts = base_arena_array(&x->arena, (size_t)c->n_layers * n, sizeof *x->expert_counts);
    if (!x->expert_counts)
        return err_set(e, ST_NO_MEMORY, "no memory to count experts");
    memset(x->expert_counts, 0, (size_t)c->n_layers * n * sizeof *x->expert_counts);
    return ST_OK;
}

enum st rt_experts_bind_slots(struct rt_exec *x, int n_experts, struct slot_table *t, struct err *e)
{
    const size_t n = (size_t)x->o.settings->chunk * part_rows_per_token(x->m, PART_SLOTS);
    if (t->begin)
        return ST_OK;
    t->begin = base_arena_array(&x->arena, (size_t)n_experts + 1, sizeof *t->begin);
    t->token = base_arena_array(&x->arena, n, sizeof *t->token);
    t->weight = base_arena_array(&x->arena, n, sizeof *t->weight);
    t->n_experts = n_experts;
    return t->begin && t->token && t->weight ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for the tokens of experts");
}

enum st rt_experts_bind(struct rt_exec *x, const struct part_program *p, struct bound_program *b, struct err *e)
{
    b->experts = base_arena_array(&x->arena, (size_t)p->n_steps + 1, sizeof(struct bound_experts *));
    if (!b->experts)
        return err_set(e, ST_NO_MEMORY, "no memory for the steps of program %s", p->name);
    enum st st = ST_OK;
    for (int i = 0; i < p->n_steps && !st; i++) {
        const struct part_step *s = &p->steps[i];
        b->experts[i] = NULL;
        if (s->op != PART_ROUTE && s->op != PART_EXPERTS_IN && s->op != PART_EXPERTS_OUT && s->op != PART_EXPERTS_BIAS)
            continue;
        struct bound_experts *mine = base_arena_alloc(&x->arena, sizeof *mine);
        if (!mine)
            return err_set(e, ST_NO_MEMORY, "no memory for the experts of layer %d", s->layer);
        *mine = (struct bound_experts){.n = (int)(s->op == PART_EXPERTS_BIAS ? s->n_experts : s->expert_end - s->expert_first)};
        b->experts[i] = mine;
        if (s->op == PART_ROUTE) {
            st = bind_route(x, s, mine, e);
            continue;
        }
        st = bind_parts(x, s, mine, e);
        if (!st)
            st = bind_bytes(x, s, mine, e);
        if (!st && s->op == PART_EXPERTS_OUT)
            st = bind_sums(x, s, mine, e);
        if (!st && s->op == PART_EXPERTS_IN)
            st = rt_experts_bind_slots(x, mine->n, &x->slots, e);
    }
    return st;
}

/* ---- routing ------------------------------------------------------------------------------------------------------------------------------------------- */

static int position(const struct bound_experts *b, int expert) { return b->position_of ? b->position_of[expert] : expert; }

/* Slots of the local experts, which stand at positions first … first + n_experts − 1: a counting sort, tokens stay in order. Positions from n_routed on are shared experts': every token
 * goes to them. */
static void sort_slots(struct slot_table *t, const struct bound_experts *b, const struct kern_routed *routed, int n_tokens, int k, int first, int n_routed)
{
    const int n = t->n_experts, end = first + n < n_routed ? first + n : n_routed;
    memset(t->begin, 0, ((size_t)n + 1) * sizeof *t->begin);
    for (int i = 0; i < n_tokens * k; i++) {
        const int p = position(b, routed[i].expert);
        if (p >= first && p < end)
            t->begin[p - first + 1]++;
    }
    for (int i = n_routed > first ? n_routed - first : 0; i < n; i++)
        t->begin[i + 1] = n_tokens;
    for (int i = 0; i < n; i++)
        t->begin[i + 1] += t->begin[i];
    for (int token = 0; token < n_tokens; token++) {
        for (int j = 0; j < k; j++) {
            const struct kern_routed *r = &routed[token * k + j];
            const int p = position(b, r->expert);
            if (p < first || p >= end)
                continue;
            const int32_t at = t->begin[p - first]++;
            t->token[at] = token;
            t->weight[at] = r->weight;
        }
        for (int i = n_routed > first ? n_routed - first : 0; i < n; i++) {
            const int32_t at = t->begin[i]++;
            t->token[at] = token;
            t->weight[at] = 1;
        }
    }
    for (int i = n; i > 0; i--) /* each stands where the next one began */
        t->begin[i] = t->begin[i - 1];
    t->begin[0] = 0;
    t->n_slots = t->begin[n];
}

void rt_experts_route(struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b)
{
    const struct moe_config *c = &x->m->config.moe;
    static const enum kern_router routers[] = {[CONFIG_ROUTER_SOFTMAX] = KERN_ROUTER_SOFTMAX, [CONFIG_ROUTER_TOPK_SOFTMAX] = KERN_ROUTER_TOPK_SOFTMAX, [CONFIG_ROUTER_SIGMOID] = KERN_ROUTER_SIGMOID};
    _Static_assert(sizeof(struct kern_routed) == PART_ROUTE_BYTES, "a route's record");
    struct kern_routed *out = (struct kern_routed *)(void *)address(x, s->out[0]);
    const struct kern_route args = {
        .logits = address(x, s->in[0]),
        .stride = value_of(x, s->in[0])->width,
        .n_tokens = x->desc->batch.n_tokens,
        .n_experts = c->n_experts,
        .k = c->top_k,
        .router = routers[c->router],
        .correction = vector_of(x, s->bias[0]),
        .n_groups = c->n_groups,
        .k_groups = c->k_groups,
        .renormalise = c->renormalise,
        .scale = (float)c->scale,
        .out = out,
    };
    x->o.backend->route(q, &args);
    base_pool_barrier(x->o.pool, q.i_thread);
    if (q.i_thread != 0)
        return;
    sort_slots(&x->slots, b, out, args.n_tokens, args.k, (int)s->expert_first, c->n_experts);
    for (int i = 0; x->expert_counts && i < args.n_tokens * args.k; i++)
        x->expert_counts[s->layer * c->n_experts + out[i].expert]++;
}

/* ---- products -------------------------------------------------------------------------------------------------------------------------------------------- */

static struct kern_slots slots_of(const struct rt_exec *x)
{
    const struct slot_table *t = &x->slots;
    return (struct kern_slots){.n_experts = t->n_experts, .begin = t->begin, .token = t->token, .weight = t->weight};
}

void rt_experts_in(const struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b)
{
    const struct kern_slots slots = slots_of(x);
    if (value_of(x, s->out[0])->width == 0 || b->n == 0)
        return;
    struct kern_experts_in args = {
        .slots = &slots,
        .x = address(x, s->in[0]),
        .x_stride = value_of(x, s->in[0])->width,
        .n_tokens = x->desc->batch.n_tokens,
        .n_parts = s->n_parts,
        .scratch = x->scratch_matmul,
    };
    for (int k = 0; k < s->n_parts; k++)
        args.parts[k] = (struct kern_experts_part){.matrix = b->matrix[k], .bias = b->bias[k], .y = address(x, s->out[k]), .y_stride = value_of(x, s->out[k])->width};
    x->o.backend->experts_in_prepare(q, &args);
    base_pool_barrier(x->o.pool, q.i_thread);
    x->o.backend->experts_in(q, &args);
}

void rt_experts_out(const struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b)
{
    const struct part_value *out = value_of(x, s->out[0]);
    const struct kern_slots slots = slots_of(x);
    if (b->n_sums == 0 || b->n == 0)
        return;
    const struct kern_experts_out args = {
        .slots = &slots,
        .x = address(x, s->in[0]),
        .x_stride = value_of(x, s->in[0])->width,
        .matrix = b->matrix[0],
        .bias = b->bias[0],
        .sum_of = b->sum_of,
        .n_sums = b->n_sums,
        .n_folds = b->n_folds,
        .emit = b->emit,
        .n_tokens = x->desc->batch.n_tokens,
        .n_rows = (int)out->width,
        .y = address(x, s->out[0]),
        .y_stride = out->width,
        .vector_stride = out->width * (size_t)x->desc->batch.n_tokens,
        .scratch = x->scratch_matmul,
    };
    x->o.backend->experts_out_prepare(q, &args);
    base_pool_barrier(x->o.pool, q.i_thread);
    x->o.backend->experts_out(q, &args);
}

void rt_experts_bias(const struct rt_exec *x, struct kern_queue q, const struct part_step *s, const struct bound_experts *b)
{
    const size_t width = value_of(x, s->out[0])->width;
    const struct kern_experts_bias args = {
        .routed = (const struct kern_routed *)(const void *)address(x, s->in[0]),
        .n_tokens = x->desc->batch.n_tokens,
        .k = x->m->config.moe.top_k,
        .bias = b->bias[0],
        .y = address(x, s->out[0]),
        .y_stride = width,
        .width = (int)width,
    };
    x->o.backend->experts_bias(q, &args);
}

void rt_experts_mark(const struct rt_exec *x, const struct part_step *s, const struct bound_experts *b, struct rt_ledger_step *now)
{
    now->n_expert_layers += s->op == PART_EXPERTS_IN;
    for (int i = 0; b->moved && i < b->n; i++)
        if (x->slots.begin[i + 1] > x->slots.begin[i]) {
            now->bytes.weights += b->moved[i].weights;
            now->bytes.experts += b->moved[i].weights;
            now->bytes.stored += b->moved[i].stored;
            now->n_touched += s->op == PART_EXPERTS_IN;
        }
}
