/* Exchanges between ranks, and the sums that follow them.
 *
 * Mostly every rank gets the partial sums of all, and all of its threads add all of them. Large sums of three and more ranks between hosts are shared instead (reduce-scatter and
 * all-gather): each rank gets the partial sums of some of the tokens, adds them, and sends their values to all. n ranks with one vector each so send 2/n of the bytes. Values have the same
 * bits, since whoever adds does so in the tree, and everybody has the same residual. Thread 0 alone moves, adds and puts in place: mostly while the other half of the step is computed
 * (overlap.c), and else in little time beside the wire's. What it needs for that is looked up when the exchange begins, for the other half of the step has other addresses. */
#include <string.h>

#include "runtime/step_priv.h"

/* ---- sums --------------------------------------------------------------------------------------------------------------------------------------------- */

/* Of tokens [first, first + n_tokens); without vectors. */
static struct kern_sum sum_of(const struct rt_exec *x, const struct part_step *s, size_t first, int n_tokens)
{
    const size_t width = value_of(x, s->out[0])->width, at = first * width;
    const float *residual = address(x, s->in[0]), *biases = s->in[2] != PART_NONE ? address(x, s->in[2]) : NULL;
    return (struct kern_sum){
        .residual = residual + at,
        .residual_stride = width,
        .bias = biases ? biases + at : vector_of(x, s->bias[0]),
        .bias_stride = biases ? width : 0,
        .vector_token_stride = width,
        .n_leaves = x->m->dims[s->dim].leaves.n,
        .y = address(x, s->out[0]) + at,
        .y_stride = width,
        .n_tokens = n_tokens,
        .width = (int)width,
    };
}

static void add_vector(struct kern_sum *sum, const struct part_dim_cut *cut, int rank, uint32_t k, const void *vector)
{
    const int i = sum->n_vectors++;
    sum->vectors[i] = vector;
    sum->vector_lo[i] = cut->node_lo[rank][k];
    sum->vector_hi[i] = cut->node_hi[rank][k];
}

void rt_sum(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    if (x->is_summed)
        return;
    const int n_tokens = x->desc->batch.n_tokens;
    const struct part_dim_cut *cut = &x->o.plan->cut.dims[s->dim];
    struct kern_sum sum = sum_of(x, s, 0, n_tokens);
    for (int r = 0; r < x->o.plan->options.n_ranks; r++) {
        const float *vectors = x->o.comm ? (const float *)(const void *)((const unsigned char *)x->views[r] + sent_offset(x, r, s->in[1])) : address(x, s->in[1]);
        for (uint32_t k = 0; k < cut->n_vectors[r]; k++)
            add_vector(&sum, cut, r, k, vectors + (size_t)k * (size_t)n_tokens * (size_t)sum.width);
    }
    x->o.backend->sum(q, &sum);
}

/* ---- shared sums --------------------------------------------------------------------------------------------------------------------------------------- */

/* Of the sums that follow an exchange at once, all are made of what it brings: at most two (experts, and one that all tokens share), of values of one shape. */
static int n_sums_after(const struct rt_exec *x, const struct part_step *s)
{
    const struct part_program *p = x->walking->p;
    int n = 0;
    while (n < MOST_SUMS && s + 1 + n < p->steps + p->n_steps && s[1 + n].op == PART_SUM)
        n++;
    return n;
}

static bool is_shared(const struct rt_exec *x, const struct part_step *s, uint64_t most_bytes)
{
    const struct rt_settings *settings = x->o.settings;
    if (s->exchange != PART_EXCHANGE_TREE || !settings->scatter_bytes || !comm_is_shared(x->o.comm, most_bytes, (size_t)settings->scatter_bytes))
        return false;
    const int n = n_sums_after(x, s);
    const uint64_t width = value_of(x, s->in[0])->width;
    bool fits = n == 1 + (s->in[1] != PART_NONE) && width * sizeof(float) % 64 == 0 && (s->in[1] == PART_NONE || value_of(x, s->in[1])->width == width);
    for (int k = 0; k < n; k++)
        fits = fits && s[1 + k].in[1] == s->in[k] && s[1 + k].out[0] == s[1].out[0];
    return fits;
}

static enum st scatter(struct rt_exec *x, const struct part_step *s, const struct comm_header *header)
{
    const struct part_plan *plan = x->o.plan;
    struct shared_sum *sum = &x->under_way.sum;
    const size_t row_bytes = value_of(x, s->in[0])->width * sizeof(float);
    sum->shares = (struct comm_shares){.vector_bytes = (size_t)x->desc->batch.n_tokens * row_bytes};
    for (int r = 0; r < plan->options.n_ranks; r++)
        for (int k = 0; k < 2 && s->in[k] != PART_NONE; k++)
            sum->shares.n_vectors[r] += plan->ranks[r]->values[s->in[k]].n_vectors;
    comm_cut_evenly(&sum->shares, plan->options.n_ranks, row_bytes);
    const size_t *begin = sum->shares.begin + x->m->rank;
    sum->n_sums = n_sums_after(x, s);
    for (int k = 0; k < sum->n_sums; k++) {
        sum->steps[k] = &s[1 + k];
        sum->sums[k] = sum_of(x, &s[1 + k], begin[0] / row_bytes, (int)((begin[1] - begin[0]) / row_bytes));
    }
    sum->y = (unsigned char *)address(x, s[1].out[0]);
    sum->state = SUM_SCATTERED;
    return comm_scatter_start(x->o.comm, address(x, s->in[0]), &sum->shares, header, x->e);
}

static size_t share_bytes(const struct shared_sum *sum, int r) { return sum->shares.begin[r + 1] - sum->shares.begin[r]; }

/* Our share of the partial sums is here: it is added, and sent to all. */
static enum st add_and_gather(struct rt_exec *x, const void *const *views, struct err *e)
{
    struct shared_sum *sum = &x->under_way.sum;
    const int n_ranks = x->o.plan->options.n_ranks;
    const void *vectors[COMM_MAX_VECTORS];
    comm_share(x->o.comm, views, vectors);
    int at = 0;
    for (int r = 0; r < n_ranks; r++)
        for (int k = 0; k < sum->n_sums; k++) {
            const struct part_dim_cut *cut = &x->o.plan->cut.dims[sum->steps[k]->dim];
            for (uint32_t i = 0; i < cut->n_vectors[r]; i++)
                add_vector(&sum->sums[k], cut, r, i, vectors[at++]);
        }
    for (int k = 0; k < sum->n_sums && sum->sums[k].n_tokens; k++)
        x->o.backend->sum((struct kern_queue){0, 1}, &sum->sums[k]);
    size_t bytes[COMM_MAX_RANKS];
    for (int r = 0; r < n_ranks; r++)
        bytes[r] = share_bytes(sum, r);
    sum->state = SUM_GATHERED;
    return comm_allgather_start(x->o.comm, sum->y + sum->shares.begin[x->m->rank], bytes, x->header, e);
}

static void put_in_place(struct rt_exec *x, const void *const *views)
{
    struct shared_sum *sum = &x->under_way.sum;
    for (int r = 0; r < x->o.plan->options.n_ranks; r++)
        if (r != x->m->rank && share_bytes(sum, r))
            memcpy(sum->y + sum->shares.begin[r], views[r], share_bytes(sum, r));
    sum->state = SUM_DONE;
}

/* ---- exchanges ---------------------------------------------------------------------------------------------------------------------------------------- */

enum st rt_exchange_begin(struct rt_exec *x, const struct part_step *s)
{
    const struct part_plan *plan = x->o.plan;
    const int rank = x->m->rank;
    size_t bytes[COMM_MAX_RANKS];
    uint64_t all_bytes = 0, most_bytes = 0;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        all_bytes += bytes[r] = part_exchange_bytes(plan, s, r, rows_in(x, s->in[0]));
        most_bytes = bytes[r] > most_bytes ? bytes[r] : most_bytes;
    }
    struct comm_header header = *x->header;
    if (x->ledger.on)
        header.sent_ns = rt_ledger_enter(&x->ledger, RT_LEDGER_WIRE, PART_EXCHANGE, s->layer);
    struct exchange *now = &x->under_way;
    now->step = s;
    now->sum.state = SUM_BY_ALL;
    now->sent = bytes[rank];
    now->received = all_bytes - bytes[rank];
    if (!is_shared(x, s, most_bytes))
        return comm_allgather_start(x->o.comm, address(x, s->in[0]), bytes, &header, x->e);
    const enum st st = scatter(x, s, &header);
    const size_t whole = now->sum.shares.vector_bytes, own = share_bytes(&now->sum, rank);
    now->sent += own - now->sum.shares.n_vectors[rank] * own;
    now->received = now->received / whole * own + whole - own;
    return st;
}

/* The half that is walked meanwhile may read the views of the exchange before; they end when the gather behind this scatter begins. So it waits, unless that exchange left a sum and no views. */
void rt_exchange_advance(struct rt_exec *x)
{
    struct shared_sum *sum = &x->under_way.sum;
    const void *views[COMM_MAX_RANKS];
    /* What failed is told once more by whoever ends the exchange. */
    while (sum->state != SUM_DONE && comm_allgather_advance(x->o.comm) && sum->state != SUM_BY_ALL) {
        const bool gathered = sum->state == SUM_GATHERED;
        if (!gathered && !x->is_summed)
            return;
        if (comm_allgather_finish(x->o.comm, BASE_NO_DEADLINE, views, gathered ? NULL : x->under_way.headers, NULL))
            return;
        if (gathered)
            put_in_place(x, views);
        else if (add_and_gather(x, views, NULL))
            return;
    }
}

static enum st finish(struct rt_exec *x)
{
    struct exchange *now = &x->under_way;
    enum st st = ST_OK;
    while (!st && now->sum.state != SUM_DONE) {
        const bool gathered = now->sum.state == SUM_GATHERED;
        st = x->o.finish(x->o.context, x->views, gathered ? NULL : now->headers, x->e);
        if (st || now->sum.state == SUM_BY_ALL)
            break;
        if (gathered)
            put_in_place(x, x->views);
        else
            st = add_and_gather(x, x->views, x->e);
    }
    return st;
}

enum st rt_exchange_end(struct rt_exec *x)
{
    const struct part_plan *plan = x->o.plan;
    struct exchange *was = &x->under_way;
    const struct part_step *s = was->step;
    const enum st st = finish(x);
    was->step = NULL;
    x->is_summed = was->sum.state == SUM_DONE;
    if (st)
        return st;
    if (x->ledger.on) {
        struct rt_ledger_step *now = &x->ledger.now;
        rt_ledger_exchanged(&x->ledger, was->headers, plan->options.n_ranks, x->m->rank);
        now->bytes.sent += was->sent;
        now->bytes.received += was->received;
        now->n_exchanges += 1 + x->is_summed;
        now->n_sums += s->exchange == PART_EXCHANGE_TREE;
        for (int k = 0; k < 2 && s->exchange == PART_EXCHANGE_TREE; k++)
            now->n_vectors += s->in[k] == PART_NONE ? 0 : value_of(x, s->in[k])->n_vectors;
    }
    for (int r = 0; r < plan->options.n_ranks; r++)
        if (was->headers[r].token_hash != x->header->token_hash)
            return err_set(x->e, ST_MISMATCH, "rank %d has sampled other tokens than rank %d by step %llu (hashes %08x and %08x)", r, x->m->rank, (unsigned long long)x->header->step,
                           was->headers[r].token_hash, x->header->token_hash);
    *x->root = was->headers[0];
    return ST_OK;
}
