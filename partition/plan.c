/* Every rank's shard, where its values lie, what it takes in memory, and the digest that ranks compare. */
#include "partition/plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* ---- offsets of values ------------------------------------------------------------------------------------------------------------------------------ */

static uint64_t align64(uint64_t bytes) { return (bytes + 63) & ~63ull; }

/* Bytes of a value at its planned maximum. Partial values of several ranks live in the exchange's send buffer and take nothing here. */
static uint64_t value_bytes(const struct part_model *m, const struct part_value *v, const struct part_plan_options *o)
{
    const uint64_t rows = (uint64_t)(v->rows == PART_TOKENS ? o->max_tokens : o->max_rows);
    if (v->partial && m->n_ranks > 1)
        return 0;
    return align64(rows * v->width * v->n_vectors * v->element_bytes);
}

/* Which values are alive at the same time: a walk backwards, head program first (it follows main). The head runs several times where a step wants more rows than it takes at
 * once, so what main leaves for it lives to its end. */
static void find_conflicts(const struct part_model *m, uint64_t *conflicts)
{
    uint64_t live = 1ull << m->value_hidden;
    const struct part_program *const programs[] = {&m->head, &m->main};
    for (int p = 0; p < 2; p++)
        for (int i = programs[p]->n_steps - 1; i >= 0; i--) {
            const struct part_step *s = &programs[p]->steps[i];
            uint64_t in = 0, out = 0;
            for (int k = 0; k < 3; k++)
                if (s->in[k] != PART_NONE)
                    in |= 1ull << s->in[k];
            for (int k = 0; k < PART_MAX_PARTS; k++)
                if (s->out[k] != PART_NONE)
                    out |= 1ull << s->out[k];
            const uint64_t now = live | in | out; /* inputs and outputs of one step never share */
            for (int v = 0; v < m->n_values; v++)
                if (now >> v & 1)
                    conflicts[v] |= now;
            live = (live & ~out) | in;
        }
}

/* First fit, in order of index: deterministic, and good enough for a few dozen values. Returns the arena's size. */
static uint64_t place_values(struct part_model *m, const struct part_plan_options *o)
{
    uint64_t conflicts[64] = {0}, top = 0;
    find_conflicts(m, conflicts);
    for (int v = 0; v < m->n_values; v++) {
        const uint64_t bytes = value_bytes(m, &m->values[v], o);
        uint64_t at = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (int u = 0; u < v; u++) {
                const uint64_t u_bytes = value_bytes(m, &m->values[u], o);
                if (u_bytes && bytes && conflicts[v] >> u & 1 && at < m->values[u].offset + u_bytes && m->values[u].offset < at + bytes) {
                    at = m->values[u].offset + u_bytes;
                    moved = true;
                }
            }
        }
        m->values[v].offset = at;
        top = at + bytes > top ? at + bytes : top;
    }
    return top;
}

/* ---- exchanges ----------------------------------------------------------------------------------------------------------------------------------------- */

uint64_t part_exchange_bytes(const struct part_plan *plan, const struct part_step *s, int rank, int n_rows)
{
    const struct part_model *m = plan->ranks[rank];
    const struct part_value *v = &m->values[s->in[0]];
    return (uint64_t)n_rows * v->width * v->n_vectors * v->element_bytes;
}

static uint64_t largest_exchange(const struct part_plan *plan)
{
    uint64_t largest = 64;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_model *m = plan->ranks[r];
        const struct part_program *const programs[] = {&m->main, &m->head};
        for (int p = 0; p < 2; p++)
            for (int i = 0; i < programs[p]->n_steps; i++)
                if (programs[p]->steps[i].op == PART_EXCHANGE) {
                    const uint64_t bytes = part_exchange_bytes(plan, &programs[p]->steps[i], r, p ? plan->options.max_rows : plan->options.max_tokens);
                    largest = bytes > largest ? bytes : largest;
                }
    }
    return align64(largest);
}

/* ---- digest --------------------------------------------------------------------------------------------------------------------------------------------- */

static void digest_model(struct base_hasher *h, const struct part_model *m)
{
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        base_hasher_update_str(h, w->name);
        base_hasher_update_str(h, kern_format(w->tensor->format)->name);
        const uint64_t numbers[] = {w->first_row, w->rows.begin, w->rows.end, w->columns.begin, w->columns.end, w->slice.offset, w->slice_bytes};
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            base_hasher_update_u64(h, numbers[k]);
    }
    const struct part_program *const programs[] = {&m->main, &m->head};
    for (int p = 0; p < 2; p++)
        for (int i = 0; i < programs[p]->n_steps; i++) {
            const struct part_step *s = &programs[p]->steps[i];
            const uint64_t numbers[] = {s->op, s->exchange, (uint64_t)s->layer, (uint64_t)s->n_parts, (uint64_t)s->dim, s->n_heads, s->q_first, s->kv_first, s->head_group};
            for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
                base_hasher_update_u64(h, numbers[k]);
            for (int k = 0; k < 3; k++)
                base_hasher_update_u64(h, (uint64_t)s->in[k]);
            for (int k = 0; k < PART_MAX_PARTS; k++) {
                base_hasher_update_u64(h, (uint64_t)s->out[k]);
                base_hasher_update_u64(h, (uint64_t)s->weight[k]);
                base_hasher_update_u64(h, (uint64_t)s->bias[k]);
            }
        }
}

static struct digest digest_plan(const struct part_plan *plan)
{
    struct base_hasher *h = base_hasher_create();
    BASE_ASSERT(h != NULL);
    const struct part_plan_options *o = &plan->options;
    const uint64_t numbers[] = {(uint64_t)o->n_ranks, (uint64_t)o->max_tokens, (uint64_t)o->max_rows, (uint64_t)o->context, (uint64_t)o->max_sequences, plan->n_kv_blocks};
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
        base_hasher_update_u64(h, numbers[k]);
    for (int d = 0; d < plan->whole->n_dims; d++)
        for (uint32_t i = 0; i < plan->whole->dims[d].leaves.n; i++)
            base_hasher_update_u64(h, plan->whole->dims[d].leaves.end[i]);
    for (int r = 0; r < o->n_ranks; r++)
        digest_model(h, plan->ranks[r]);
    const struct digest d = base_hasher_final(h);
    base_hasher_destroy(h);
    return d;
}

/* ---- budget --------------------------------------------------------------------------------------------------------------------------------------------- */

static void add_budget(struct part_plan *plan, const struct part_sizes *sizes, int r, uint64_t step_arena_bytes)
{
    const struct part_model *m = plan->ranks[r];
    struct part_budget *b = &plan->budget[r];
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        b->weights += align64(w->kind == PART_MATRIX ? sizes->matrix_bytes(sizes, m, w) : (w->rows.end - w->rows.begin) * sizeof(float));
    }
    for (int i = 0; i < m->n_caches; i++)
        b->kv += plan->n_kv_blocks * sizes->kv_block_bytes(sizes, &m->caches[i]);
    b->activations = step_arena_bytes;
    b->scratch = sizes->scratch_bytes(sizes, m);
    /* the segment is shared: each rank is charged with what it touches, its own slots */
    b->comm = plan->options.n_ranks > 1 ? sizes->comm_bytes(sizes, plan->options.n_ranks, plan->max_exchange_bytes) / (uint64_t)plan->options.n_ranks : 0;
    b->total = b->weights + b->kv + b->activations + b->scratch + b->comm;
}

/* Every matrix once, except an embedding that is not the head too: of that only a row is read. */
static uint64_t bytes_per_token(const struct part_model *whole)
{
    const int16_t table = whole->main.steps[0].op == PART_EMBED ? whole->main.steps[0].weight[0] : PART_NONE;
    uint64_t bytes = 0;
    for (int i = 0; i < whole->n_weights; i++)
        if (whole->weights[i].kind == PART_MATRIX && (i != table || whole->config.tied_head))
            bytes += (whole->weights[i].rows.end - whole->weights[i].rows.begin) * kern_format_row_bytes(whole->weights[i].tensor->format, whole->weights[i].tensor->dims[1]);
    return bytes;
}

/* ---- the plan ------------------------------------------------------------------------------------------------------------------------------------------- */

enum st part_plan_create(const struct part_model *whole, const struct part_plan_options *options, const struct part_sizes *sizes, struct part_plan **out, struct err *e)
{
    struct part_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return err_set(e, ST_NO_MEMORY, "no memory for the plan");
    plan->options = *options;
    plan->options.shares = NULL; /* borrowed; all that follows from them is in the cut */
    plan->whole = whole;
    enum st st = part_cut_init(whole, options->n_ranks, options->shares, &plan->cut, e);
    if (st)
        goto fail;
    plan->ranks = calloc((size_t)options->n_ranks, sizeof *plan->ranks);
    plan->budget = calloc((size_t)options->n_ranks, sizeof *plan->budget);
    if (!plan->ranks || !plan->budget) {
        st = err_set(e, ST_NO_MEMORY, "no memory for the plan");
        goto fail;
    }
    const int64_t kv_tokens = options->kv_tokens ? options->kv_tokens : options->max_sequences * options->context;
    /* each sequence may leave its last block unfilled */
    plan->n_kv_blocks = ((uint64_t)kv_tokens + sizes->kv_block_tokens - 1) / sizes->kv_block_tokens + (uint64_t)options->max_sequences - 1;
    uint64_t arena[ORDER_MAX_RANKS];
    for (int r = 0; r < options->n_ranks; r++) {
        st = part_shard(whole, &plan->cut, r, &plan->ranks[r], e);
        if (st)
            goto fail;
        arena[r] = place_values(plan->ranks[r], options);
        plan->step_arena_bytes_max = arena[r] > plan->step_arena_bytes_max ? arena[r] : plan->step_arena_bytes_max;
    }
    plan->max_exchange_bytes = largest_exchange(plan);
    for (int r = 0; r < options->n_ranks; r++)
        add_budget(plan, sizes, r, arena[r]);
    plan->weight_bytes_per_token = bytes_per_token(whole);
    plan->digest = digest_plan(plan);
    *out = plan;
    return ST_OK;
fail:
    part_plan_destroy(plan);
    return st;
}

void part_plan_destroy(struct part_plan *plan)
{
    if (!plan)
        return;
    for (int r = 0; plan->ranks && r < plan->options.n_ranks; r++)
        part_model_destroy(plan->ranks[r]);
    free(plan->ranks);
    free(plan->budget);
    free(plan);
}

static double mib(uint64_t bytes) { return (double)bytes / (1024.0 * 1024.0); }

void part_plan_print(const struct part_plan *plan, FILE *out)
{
    const struct part_model *whole = plan->whole;
    fprintf(out, "rank  %-22s", "leaves of each cut");
    fprintf(out, "%12s %10s %12s %8s %9s %10s\n", "weights", "kv", "activations", "comm", "scratch", "total MiB");
    struct part_budget sum = {0};
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_budget *b = &plan->budget[r];
        char cuts[64] = "", *at = cuts;
        for (int d = 0; d < whole->n_dims; d++)
            at += snprintf(at, (size_t)(cuts + sizeof cuts - at), "%s%u-%u/%u", d ? " " : "", plan->cut.dims[d].lo[r], plan->cut.dims[d].hi[r], whole->dims[d].leaves.n);
        fprintf(out, "%4d  %-22s%12.1f %10.1f %12.1f %8.1f %9.1f %10.1f\n", r, cuts, mib(b->weights), mib(b->kv), mib(b->activations), mib(b->comm), mib(b->scratch), mib(b->total));
        sum.weights += b->weights;
        sum.kv += b->kv;
        sum.activations += b->activations;
        sum.comm += b->comm;
        sum.scratch += b->scratch;
        sum.total += b->total;
    }
    fprintf(out, " all  %-22s%12.1f %10.1f %12.1f %8.1f %9.1f %10.1f\n", "", mib(sum.weights), mib(sum.kv), mib(sum.activations), mib(sum.comm), mib(sum.scratch), mib(sum.total));
}
