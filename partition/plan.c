/* Every rank's shard, where its values lie, what it takes in memory, and the digest that ranks compare. */
#include "partition/plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "partition/cache.h"

/* ---- offsets of values ------------------------------------------------------------------------------------------------------------------------------ */

static uint64_t align64(uint64_t bytes) { return (bytes + 63) & ~63ull; }

uint64_t part_value_bytes(const struct part_model *m, const struct part_value *v, const struct part_plan_options *o)
{
    /* Half of a place is one for half the tokens: steps may be walked in halves (runtime/overlap.c). */
    const uint64_t half = ((uint64_t)(v->rows == PART_LOGIT_ROWS ? o->max_rows : o->max_tokens) + 1) / 2 * part_rows_per_token(m, v->rows);
    if (v->partial && m->n_ranks > 1)
        return 0;
    return 2 * align64(half * v->width * v->n_vectors * v->element_bytes);
}

bool part_values_overlap(const struct part_plan *plan, const struct part_model *m, int a, int b)
{
    const struct part_value *x = &m->values[a], *y = &m->values[b];
    const uint64_t x_bytes = part_value_bytes(m, x, &plan->options), y_bytes = part_value_bytes(m, y, &plan->options);
    return a != b && x_bytes && y_bytes && x->offset < y->offset + y_bytes && y->offset < x->offset + x_bytes;
}

/* Which values are alive at the same time: a walk backwards, head program first (it follows main). The head runs several times where a step wants more rows than it takes at
 * once, so what main leaves for it lives to its end; what the head makes is read after its last step. */
static void find_conflicts(const struct part_model *m, uint64_t *conflicts)
{
    const int kept[] = {m->value_hidden, m->value_logits, m->value_samples, m->value_scores};
    uint64_t live = 0;
    for (size_t k = 0; k < sizeof kept / sizeof *kept; k++)
        if (kept[k] >= 0)
            live |= 1ull << kept[k];
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
    uint64_t conflicts[PART_MAX_VALUES] = {0}, top = 0;
    find_conflicts(m, conflicts);
    for (int v = 0; v < m->n_values; v++) {
        const uint64_t bytes = part_value_bytes(m, &m->values[v], o);
        uint64_t at = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (int u = 0; u < v; u++) {
                const uint64_t u_bytes = part_value_bytes(m, &m->values[u], o);
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

uint64_t part_rows_bytes(const struct part_model *m, int value, int n_rows)
{
    const struct part_value *v = &m->values[value];
    return (uint64_t)n_rows * v->width * v->n_vectors * v->element_bytes;
}

uint64_t part_exchange_bytes(const struct part_plan *plan, const struct part_step *s, int rank, int n_rows)
{
    const struct part_model *m = plan->ranks[rank];
    return part_rows_bytes(m, s->in[0], n_rows) + (s->in[1] == PART_NONE ? 0 : part_rows_bytes(m, s->in[1], n_rows));
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

static void digest_u64(struct base_hasher *h, const uint64_t *numbers, size_t n)
{
    for (size_t i = 0; i < n; i++)
        base_hasher_update_u64(h, numbers[i]);
}

static uint64_t bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The configuration too: two hosts may hold the same tensors and another config.json. */
static void digest_config(struct base_hasher *h, const struct model_config *c)
{
    base_hasher_update_str(h, c->family);
    const uint64_t numbers[] = {
        (uint64_t)c->n_layers, (uint64_t)c->hidden, (uint64_t)c->n_heads, (uint64_t)c->n_kv_heads, (uint64_t)c->head_dim, (uint64_t)c->ffn,
        (uint64_t)c->vocab, bits_of(c->norm_eps), bits_of(c->attention_scale), bits_of(c->embedding_scale), c->tied_head,
        (uint64_t)c->rope.rotary_dim, c->rope.interleaved, bits_of(c->rope.attention_factor), (uint64_t)c->n_ends,
        c->gate, bits_of(c->gate_alpha), bits_of(c->gate_limit), (uint64_t)c->moe.n_experts, (uint64_t)c->moe.top_k, (uint64_t)c->moe.shared_ffn, (uint64_t)c->moe.ffn, c->moe.router,
        c->moe.renormalise, bits_of(c->moe.scale), (uint64_t)c->moe.n_groups, (uint64_t)c->moe.k_groups,
    };
    digest_u64(h, numbers, sizeof numbers / sizeof *numbers);
    for (int i = 0; i < c->rope.rotary_dim / 2; i++)
        base_hasher_update_u64(h, bits_of(c->rope.frequency[i]));
    for (int i = 0; i < c->n_ends; i++)
        base_hasher_update_u64(h, (uint64_t)c->ends[i]);
}

static void digest_step(struct base_hasher *h, const struct part_step *s)
{
    const uint64_t numbers[] = {
        s->op, s->exchange, (uint64_t)s->layer, (uint64_t)s->n_parts, (uint64_t)s->dim, (uint64_t)s->group, (uint64_t)s->cache, bits_of(s->eps), bits_of(s->scale),
        s->n_heads, s->q_first, s->kv_first, s->head_group, s->window, s->of_keys, s->n_experts, s->expert_first, s->expert_end,
    };
    digest_u64(h, numbers, sizeof numbers / sizeof *numbers);
    for (int k = 0; k < 3; k++)
        base_hasher_update_u64(h, (uint64_t)s->in[k]);
    for (int k = 0; k < PART_MAX_PARTS; k++) {
        const uint64_t part[] = {(uint64_t)s->out[k], (uint64_t)s->weight[k], (uint64_t)s->bias[k]};
        digest_u64(h, part, 3);
    }
}

static void digest_model(struct base_hasher *h, const struct part_model *m)
{
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        base_hasher_update_str(h, w->name);
        base_hasher_update_str(h, kern_format(w->scheme->format)->name);
        const uint64_t numbers[] = {
            w->kind,          w->home,        w->first_row,   w->rows.begin, w->rows.end, w->columns.begin, w->columns.end, w->slice_bytes, w->scheme->scale_columns, w->scheme->divides, w->scheme->zero_plus_one,
            w->scheme->group_hash, w->scheme->n_sources, (uint64_t)w->leaf_dim, w->leaves_apart, w->exact, (uint64_t)w->owner_dim, w->owner_unit};
        digest_u64(h, numbers, sizeof numbers / sizeof *numbers);
        for (uint32_t k = 0; k < w->scheme->n_sources; k++) {
            const struct part_slice *s = &w->slices[k];
            const struct quant_source *source = &w->scheme->sources[k];
            const uint64_t slice[] = {
                s->file,      s->offset,       s->count[0],        s->count[1],           s->stride[0],     s->stride[1],         s->run_bytes,     s->first_row,
                s->first_column, source->role, source->row_unit, source->column_unit, source->bits, source->transposed, source->along_rows, source->interleaved, source->is_signed,
            };
            digest_u64(h, slice, sizeof slice / sizeof *slice);
        }
    }
    for (int i = 0; i < m->n_values; i++) {
        const struct part_value *v = &m->values[i];
        const uint64_t numbers[] = {v->rows, v->partial, (uint64_t)v->sum_dim, (uint64_t)v->follows, v->element_bytes, v->width, v->n_vectors, v->offset};
        digest_u64(h, numbers, sizeof numbers / sizeof *numbers);
    }
    for (int i = 0; i < m->n_caches; i++) {
        const struct part_cache *c = &m->caches[i];
        const uint64_t numbers[] = {c->kind, (uint64_t)c->layer, c->head_dim, c->n_kv_heads, bits_of(c->k_scale), bits_of(c->v_scale)};
        digest_u64(h, numbers, sizeof numbers / sizeof *numbers);
    }
    const struct part_program *const programs[] = {&m->main, &m->head};
    for (int p = 0; p < 2; p++) {
        base_hasher_update_u64(h, (uint64_t)programs[p]->n_steps);
        for (int i = 0; i < programs[p]->n_steps; i++)
            digest_step(h, &programs[p]->steps[i]);
    }
}

static void digest_cut(struct base_hasher *h, const struct part_plan *plan)
{
    for (int d = 0; d < plan->whole->n_dims; d++) {
        const struct part_dim *dim = &plan->whole->dims[d];
        const struct part_dim_cut *c = &plan->cut.dims[d];
        base_hasher_update_str(h, dim->name);
        base_hasher_update_u64(h, dim->leaves.kind);
        digest_u64(h, dim->leaves.end, dim->leaves.n);
        for (int r = 0; r < plan->options.n_ranks; r++) {
            const uint64_t numbers[] = {c->lo[r], c->hi[r], c->n_vectors[r]};
            digest_u64(h, numbers, 3);
            for (uint32_t k = 0; k < c->n_vectors[r] && k < PART_MAX_VECTORS; k++)
                base_hasher_update_u64(h, (uint64_t)c->node_lo[r][k] << 8 | c->node_hi[r][k]);
        }
    }
}

struct digest part_plan_digest(const struct part_plan *plan)
{
    struct base_hasher *h = base_hasher_create();
    BASE_ASSERT(h != NULL);
    const struct part_plan_options *o = &plan->options;
    const uint64_t numbers[] = {
        (uint64_t)o->n_ranks, (uint64_t)o->max_tokens, (uint64_t)o->max_rows, (uint64_t)o->context, (uint64_t)o->max_sequences, (uint64_t)o->kv_tokens,
        plan->n_kv_blocks, plan->max_exchange_bytes,
    };
    digest_u64(h, numbers, sizeof numbers / sizeof *numbers);
    digest_config(h, &plan->whole->config);
    digest_cut(h, plan);
    for (int r = 0; r < o->n_ranks; r++)
        digest_model(h, plan->ranks[r]);
    const struct digest d = base_hasher_final(h);
    base_hasher_destroy(h);
    return d;
}

/* ---- budget --------------------------------------------------------------------------------------------------------------------------------------------- */

/* false: more than 64 bits can count, which no machine has; only hostile numbers come here. */
static bool add_product(uint64_t *sum, uint64_t n, uint64_t bytes)
{
    uint64_t product;
    return !__builtin_mul_overflow(n, bytes, &product) && !__builtin_add_overflow(*sum, product, sum);
}

/* Asked once for each of a layer's shapes, not once for each of a thousand weights. */
struct sizes_memo {
    const struct part_weight *of[16];
    uint64_t bytes[16];
    int n;
};

static uint64_t matrix_bytes(struct sizes_memo *memo, const struct part_sizes *sizes, const struct part_model *m, const struct part_weight *w)
{
    if (w->home != PART_IN_MEMORY)
        return sizes->matrix_bytes(sizes, m, w);
    for (int k = 0; k < memo->n; k++) {
        const struct part_weight *u = memo->of[k];
        if (u->scheme->format == w->scheme->format && u->scheme->scale_columns == w->scheme->scale_columns && u->scheme->group_hash == w->scheme->group_hash && u->rows.end - u->rows.begin == w->rows.end - w->rows.begin && u->columns.begin == w->columns.begin &&
            u->columns.end == w->columns.end && u->column_axis.dim == w->column_axis.dim && u->column_axis.scale == w->column_axis.scale && u->leaf_dim == w->leaf_dim && u->leaves_apart == w->leaves_apart && u->exact == w->exact)
            return memo->bytes[k];
    }
    const uint64_t bytes = sizes->matrix_bytes(sizes, m, w);
    if (memo->n < (int)(sizeof memo->of / sizeof *memo->of)) {
        memo->of[memo->n] = w;
        memo->bytes[memo->n++] = bytes;
    }
    return bytes;
}

int32_t part_embedding_weight(const struct part_model *m) { return m->main.n_steps && m->main.steps[0].op == PART_EMBED ? m->main.steps[0].weight[0] : PART_NONE; }

int32_t part_head_weight(const struct part_model *m)
{
    for (int i = 0; i < m->head.n_steps; i++)
        if (m->head.steps[i].op == PART_LINEAR)
            return m->head.steps[i].weight[0];
    return PART_NONE;
}

static enum st add_budget(struct part_plan *plan, const struct part_sizes *sizes, int r, uint64_t step_arena_bytes, struct err *e)
{
    const struct part_model *m = plan->ranks[r];
    struct part_budget b = {.activations = step_arena_bytes};
    struct sizes_memo memo = {.n = 0};
    const int32_t embedding = part_embedding_weight(m), head = part_head_weight(m);
    bool fits = true;
    for (int i = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        const uint64_t bytes = align64(w->kind == PART_MATRIX ? matrix_bytes(&memo, sizes, m, w) : (w->rows.end - w->rows.begin) * sizeof(float));
        uint64_t *const kind = i == embedding ? &b.embedding : i == head ? &b.head : w->kind == PART_VECTOR ? &b.vectors : &b.matrices[w->scheme->format];
        fits = fits && add_product(&b.weights, 1, bytes) && add_product(kind, 1, bytes);
    }
    for (int i = 0; i < m->n_caches; i++)
        fits = fits && add_product(&b.kv, plan->n_kv_blocks, sizes->kv_block_bytes(sizes, &m->caches[i]));
    b.scratch = sizes->scratch_bytes(sizes, m);
    /* the segment is shared: each rank is charged with what it touches, its own slots */
    b.comm = plan->options.n_ranks > 1 ? sizes->comm_bytes(sizes, plan->options.n_ranks, plan->max_exchange_bytes) / (uint64_t)plan->options.n_ranks : 0;
    const uint64_t parts[] = {b.weights, b.kv, b.activations, b.scratch, b.comm};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++)
        fits = fits && add_product(&b.total, 1, parts[k]);
    if (!fits)
        return err_set(e, ST_INVALID, "rank %d: a KV pool of %" PRIu64 " blocks would take more bytes than can be counted", r, plan->n_kv_blocks);
    plan->budget[r] = b;
    return ST_OK;
}

/* What a step's matrices are stored in: of routed experts those that one token goes to, of an embedding nothing to speak of. */
static uint64_t step_bytes(const struct part_model *m, const struct part_step *s, uint64_t (*bytes_of)(const struct part_weight *w))
{
    const struct moe_config *moe = &m->config.moe;
    const bool experts = s->op == PART_EXPERTS_IN || s->op == PART_EXPERTS_OUT;
    uint64_t bytes = 0;
    for (int k = 0; k < s->n_parts && (experts || s->op == PART_LINEAR); k++) {
        uint64_t routed = 0;
        for (int i = 0; i < (experts ? moe->n_experts : 0); i++)
            routed += bytes_of(&m->weights[s->weight[k] + i]);
        bytes += routed * (uint64_t)moe->top_k / (uint64_t)(moe->n_experts ? moe->n_experts : 1);
        for (int i = experts ? moe->n_experts : 0; i < (experts ? (int)s->n_experts : 1); i++)
            bytes += bytes_of(&m->weights[s->weight[k] + i]);
    }
    return bytes;
}

static uint64_t slice_bytes(const struct part_weight *w) { return w->slice_bytes; }

static uint64_t bytes_per_token(const struct part_model *m, uint64_t (*bytes_of)(const struct part_weight *w))
{
    uint64_t bytes = 0;
    const struct part_program *const programs[] = {&m->main, &m->head};
    for (int p = 0; p < 2; p++)
        for (int i = 0; i < programs[p]->n_steps; i++)
            bytes += step_bytes(m, &programs[p]->steps[i], bytes_of);
    return bytes;
}

uint64_t part_plan_token_bytes(const struct part_plan *plan, int rank) { return bytes_per_token(plan->ranks[rank], slice_bytes); }

/* ---- the plan ------------------------------------------------------------------------------------------------------------------------------------------- */

/* Bounds far above any use, and low enough that no product of them with a model's sizes leaves 64 bits. */
static enum st check_options(const struct part_plan_options *o, struct err *e)
{
    const struct {
        const char *name;
        int64_t value, min, max;
    } all[] = {
        {"tokens of one step", o->max_tokens, 1, 1 << 20},
        {"logit rows of one step", o->max_rows, 1, 1 << 20},
        {"tokens of one sequence", o->context, 1, INT64_C(1) << 40},
        {"sequences at once", o->max_sequences, 1, 1 << 20},
        {"tokens of the KV pool", o->kv_tokens, 0, INT64_C(1) << 60},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].value < all[i].min || all[i].value > all[i].max)
            return err_set(e, ST_INVALID, "%s: %" PRId64 " is outside %" PRId64 " … %" PRId64, all[i].name, all[i].value, all[i].min, all[i].max);
    return ST_OK;
}

/* Read once, the same for all. */
static enum st set_scales(struct part_plan *plan, int r, struct err *e)
{
    const struct part_model *first = plan->ranks[0];
    if (r == 0)
        return part_cache_read_scales(plan->ranks[0], e);
    for (int i = 0; i < first->n_caches; i++) {
        struct part_cache *c = &plan->ranks[r]->caches[i];
        c->k_scale = first->caches[i].k_scale;
        c->v_scale = first->caches[i].v_scale;
        c->k_scale_tensor = first->caches[i].k_scale_tensor;
        c->v_scale_tensor = first->caches[i].v_scale_tensor;
    }
    return ST_OK;
}

enum st part_plan_create(const struct part_model *whole, const struct part_plan_options *options, const struct part_sizes *sizes, struct part_plan **out, struct err *e)
{
    struct part_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return err_set(e, ST_NO_MEMORY, "no memory for the plan");
    plan->options = *options;
    plan->options.shares = NULL; /* borrowed; all that follows from them is in the cut */
    plan->whole = whole;
    BASE_ASSERT(sizes->kv_block_tokens > 0);
    enum st st = check_options(options, e);
    if (!st)
        st = part_cut_init(whole, options->n_ranks, options->shares, &plan->cut, e);
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
        if (!st && sizes->kv_format == FMT_E4M3)
            st = set_scales(plan, r, e);
        if (st)
            goto fail;
        arena[r] = place_values(plan->ranks[r], options);
        plan->step_arena_bytes_max = arena[r] > plan->step_arena_bytes_max ? arena[r] : plan->step_arena_bytes_max;
    }
    plan->max_exchange_bytes = largest_exchange(plan);
    for (int r = 0; r < options->n_ranks; r++) {
        st = add_budget(plan, sizes, r, arena[r], e);
        if (st)
            goto fail;
    }
    plan->weight_bytes_per_token = bytes_per_token(whole, part_weight_stored_bytes);
    plan->digest = part_plan_digest(plan);
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
        char cuts[16 * PART_MAX_DIMS] = ""; /* "12-24/32 " */
        size_t used = 0;
        for (int d = 0; d < whole->n_dims && used < sizeof cuts; d++)
            used += (size_t)snprintf(cuts + used, sizeof cuts - used, "%s%u-%u/%u", d ? " " : "", plan->cut.dims[d].lo[r], plan->cut.dims[d].hi[r], whole->dims[d].leaves.n);
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
