/* Large steps whose exchanges go to another host, in two halves of their tokens: while the sums of one half are on their way, the other half is computed.
 *
 * Both halves walk the main program stage by stage (a stage ends with an exchange): A's stage, B's stage, A's next stage … At the end of each, thread 0 ends the exchange that is under
 * way, which is the other half's, and begins this half's: one at a time is under way, always. So the order is the same on every rank. What a stage reads of others (the views of the exchange
 * that ended last) lives until the next but one begins: that is the other half's, whose turn comes after this stage. What a stage writes for others goes into the send buffer of the
 * exchange to come while the one before flies: backends that send ahead have that. Where sums are shared (sums.c), the one before may take two exchanges, so that nobody knows yet which buffer
 * will be sent: then it goes to a place of its own, and from there into comm's. The second of the two begins as soon as no views of the exchange before them are read.
 *
 * B's tokens follow A's, in the batch and in each sequence; B's attention reads what A has just put into the same layer's cache. Nothing else passes between tokens, so logits have the
 * bits of a whole step. A sequence that is cut becomes two runs over one row of the block table.
 *
 * Half of a value's place holds it for half the tokens, so the two halves of the step arena are laid out as the whole is, at half the offsets. Weights are read twice: that is why steps
 * must have many tokens. */
#include <string.h>

#include "runtime/step_priv.h"

enum { TILE = 16 }; /* tokens: A has whole tiles of them, as matrix products like them */

static enum st bind_half(struct rt_exec *x, struct half *h, struct err *e)
{
    const size_t n = (size_t)x->o.settings->max_sequences + 1;
    h->desc.run_begin = base_arena_array(&x->arena, n, sizeof *h->desc.run_begin);
    h->desc.run_tokens = base_arena_array(&x->arena, n, sizeof *h->desc.run_tokens);
    h->desc.run_table = base_arena_array(&x->arena, n, sizeof *h->desc.run_table);
    return h->desc.run_begin && h->desc.run_tokens && h->desc.run_table ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for the halves of a step");
}

static bool is_possible(const struct rt_exec *x)
{
    const struct rt_settings *s = x->o.settings;
    return x->o.comm && s->overlap_tokens > 0 && comm_query(x->o.comm)->sends_ahead;
}

enum st rt_overlap_bind(struct rt_exec *x, struct err *e)
{
    if (!is_possible(x))
        return ST_OK;
    enum st st = ST_OK;
    for (int i = 0; i < 2 && !st; i++)
        st = bind_half(x, &x->halves[i], e);
    if (!st && x->slots.begin)
        st = rt_experts_bind_slots(x, x->slots.n_experts, &x->halves[1].slots, e);
    const int64_t scatter_bytes = x->o.settings->scatter_bytes;
    if (!st && scatter_bytes && comm_is_shared(x->o.comm, SIZE_MAX, (size_t)scatter_bytes) && !(x->partials = base_arena_alloc(&x->arena, x->o.plan->max_exchange_bytes)))
        st = err_set(e, ST_NO_MEMORY, "no memory for the partial sums of a half");
    return st;
}

/* Tokens must be many for every matrix: an expert gets its share of them, of which a quarter will do, for it is read whenever it has any. */
bool rt_overlap_is_due(const struct rt_exec *x)
{
    const int n = x->desc->batch.n_tokens, least = x->o.settings->overlap_tokens;
    const struct moe_config *moe = &x->m->config.moe;
    const bool few = moe->n_experts && (int64_t)n * moe->top_k * 4 < (int64_t)least * moe->n_experts;
    return x->halves[0].desc.run_begin && n >= least && n >= 2 && !few;
}

/* Tokens [first, first + n) of the step. */
static void cut(const struct rt_desc *whole, int first, int n, struct half *h)
{
    struct rt_desc *d = &h->desc;
    h->cache_tokens = 0;
    d->ids = whole->ids + first;
    d->position = whole->position + first;
    d->batch = whole->batch;
    d->batch.n_tokens = n;
    d->batch.position = whole->batch.position + first;
    d->batch.n_runs = 0;
    for (int i = 0; i < whole->batch.n_runs; i++) {
        const int begin = whole->batch.run_begin[i] < first ? first : whole->batch.run_begin[i], all_end = whole->batch.run_begin[i] + whole->batch.run_tokens[i];
        const int end = all_end > first + n ? first + n : all_end;
        if (begin >= end)
            continue;
        const int k = d->batch.n_runs++;
        d->run_begin[k] = begin - first;
        d->run_tokens[k] = end - begin;
        d->run_table[k] = whole->batch.run_table[i];
        h->cache_tokens += (uint64_t)whole->batch.position[end - 1] + 1;
    }
    d->batch.run_begin = d->run_begin;
    d->batch.run_tokens = d->run_tokens;
    d->batch.run_table = d->run_table;
}

/* The one that is walked from here on. */
static void take(struct rt_exec *x, int i)
{
    const struct half *h = &x->halves[i];
    x->half = i;
    x->desc = &h->desc;
    x->values = h->values;
    x->slots = h->slots;
    x->cache_tokens = h->cache_tokens;
}

static void look_up_send_buffer(struct rt_exec *x) { x->send_buffer = x->partials ? x->partials : comm_send_buffer(x->o.comm); }

void rt_overlap_begin(struct rt_exec *x)
{
    const int n = x->desc->batch.n_tokens, most = (x->o.settings->chunk + 1) / 2, tiles = (n + TILE) / 2 / TILE * TILE;
    const int first = tiles > 0 && tiles <= most && n - tiles > 0 && n - tiles <= most ? tiles : (n + 1) / 2;
    cut(x->desc, 0, first, &x->halves[0]);
    cut(x->desc, first, n - first, &x->halves[1]);
    x->halves[0].slots = x->slots;
    x->halves[0].values = x->values;
    x->halves[1].values = x->values + x->o.plan->budget[x->o.rank].activations / 2;
    x->n_halves = 2;
    take(x, 0);
    look_up_send_buffer(x);
}

void rt_overlap_meet(struct rt_exec *x, const struct part_step *s)
{
    x->st = (enum st)atomic_load(&x->failing);
    if (!x->st && x->under_way.step) {
        if (x->ledger.on)
            rt_ledger_resume(&x->ledger, RT_LEDGER_WIRE, PART_EXCHANGE, x->under_way.step->layer);
        x->st = rt_exchange_end(x);
    }
    if (!x->st && s)
        x->st = rt_exchange_begin(x, s);
    if (!x->st && s) {
        rt_exchange_advance(x); /* as much as the wire takes before the computing begins */
        look_up_send_buffer(x);
    }
    x->halves[x->half].slots = x->slots;
    take(x, 1 - x->half);
}

/* What the head program reads moves to where a whole step has it. A's is never on the way of B's: its end there is at most the middle of the arena plus half its own offset, where B's begins. */
void rt_overlap_end(struct rt_exec *x, const struct rt_desc *whole)
{
    const struct part_value *hidden = value_of(x, x->m->value_hidden);
    const size_t row_bytes = (size_t)hidden->width * hidden->element_bytes;
    const size_t n_first = (size_t)x->halves[0].desc.batch.n_tokens, n_others = (size_t)x->halves[1].desc.batch.n_tokens;
    unsigned char *to = x->halves[0].values + hidden->offset;
    memmove(to, x->halves[0].values + hidden->offset / 2, n_first * row_bytes);
    memmove(to + n_first * row_bytes, x->halves[1].values + hidden->offset / 2, n_others * row_bytes);
    x->desc = whole;
    x->slots = x->halves[0].slots;
    x->values = x->halves[0].values;
    x->n_halves = 1;
    x->send_buffer = comm_send_buffer(x->o.comm);
}
