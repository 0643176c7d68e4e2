/* What is made of a row of logits, of which every rank holds a part: the next token, the score of a known one, or the row itself for whoever asked. Each rank makes a small record of its part
 * (the steps SAMPLE and SCORE), an exchange carries them, and every rank merges them to the same answer. Thread 0 merges; on one rank nothing is exchanged. */
#include "runtime/step_priv.h"

int rt_logits_owner(const struct rt_exec *x, int dim, uint64_t id)
{
    const struct order_leaves *l = &x->m->dims[dim].leaves;
    const struct part_dim_cut *cut = &x->o.plan->cut.dims[dim];
    for (int r = 0; r < x->o.plan->options.n_ranks; r++)
        if (cut->lo[r] < cut->hi[r] && id < l->end[cut->hi[r] - 1])
            return r;
    BASE_ASSERT(!"an id outside the vocabulary");
    return -1;
}

static bool better(double value, int32_t id, double than_value, int32_t than_id)
{
    if (id < 0 || than_id < 0)
        return than_id < 0 && id >= 0;
    return value > than_value || (value == than_value && id < than_id);
}

void rt_logits_sample(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const struct part_value *logits = value_of(x, s->in[0]);
    const int first_id = (int)part_axis_range(x->o.plan->whole, &x->o.plan->cut, x->m->rank, logits->axis).begin;
    for (int i = 0; i < x->n_rows; i++) {
        const struct rt_row *row = &x->desc->rows[x->first_row + i];
        if (!(row->wants & RT_ROW_SAMPLE))
            continue;
        const struct kern_sample args = {
            .logits = address(x, s->in[0]) + (size_t)i * logits->width,
            .width = (int)logits->width,
            .first_id = first_id,
            .temperature = row->temperature,
            .seed = row->seed,
            .position = row->position,
            .out = x->sampled + (size_t)i * (size_t)q.n_threads,
        };
        x->o.backend->sample(q, &args);
    }
    base_pool_barrier(x->o.pool, q.i_thread);
    if (q.i_thread != 0)
        return;
    struct kern_sampled *out = (struct kern_sampled *)address(x, s->out[0]);
    _Static_assert(sizeof *out == PART_SAMPLE_BYTES, "a sample's record");
    for (int i = 0; i < x->n_rows; i++) {
        struct kern_sampled best = {0, -1, 0};
        for (int t = 0; t < q.n_threads && x->desc->rows[x->first_row + i].wants & RT_ROW_SAMPLE; t++) {
            const struct kern_sampled *c = &x->sampled[(size_t)i * (size_t)q.n_threads + (size_t)t];
            if (better(c->value, c->id, best.value, best.id))
                best = *c;
        }
        out[i] = best;
    }
}

void rt_logits_merge_samples(struct rt_exec *x, const struct part_step *s)
{
    for (int i = 0; i < x->n_rows; i++) {
        struct kern_sampled best = {0, -1, 0};
        for (int r = 0; r < x->o.plan->options.n_ranks; r++) {
            const struct kern_sampled *c = (const struct kern_sampled *)(x->o.comm ? x->views[r] : (const void *)address(x, s->in[0])) + i;
            if (better(c->value, c->id, best.value, best.id))
                best = *c;
        }
        if (x->desc->rows[x->first_row + i].wants & RT_ROW_SAMPLE)
            x->results[x->first_row + i].id = best.id;
    }
}

void rt_logits_score(const struct rt_exec *x, struct kern_queue q, const struct part_step *s)
{
    const struct part_value *logits = value_of(x, s->in[0]);
    const struct part_range ids = part_axis_range(x->o.plan->whole, &x->o.plan->cut, x->m->rank, logits->axis);
    const struct kern_lse args = {
        .logits = address(x, s->in[0]),
        .stride = logits->width,
        .n_rows = x->n_rows,
        .n_slices = x->n_slices,
        .slice_begin = x->slice_begin,
        .max = x->lse_max,
        .sum = x->lse_sum,
    };
    x->o.backend->lse(q, &args);
    base_pool_barrier(x->o.pool, q.i_thread);
    if (q.i_thread != 0)
        return;
    const size_t width = value_of(x, s->out[0])->width;
    for (int i = 0; i < x->n_rows; i++) {
        float *record = address(x, s->out[0]) + (size_t)i * width;
        for (int k = 0; k < x->n_slices; k++) {
            record[2 * k] = x->lse_max[i * x->n_slices + k];
            record[2 * k + 1] = x->lse_sum[i * x->n_slices + k];
        }
        const int64_t target = x->desc->rows[x->first_row + i].target;
        const bool here = target >= (int64_t)ids.begin && target < (int64_t)ids.end;
        record[2 * x->n_slices] = here ? args.logits[(size_t)i * logits->width + (size_t)(target - (int64_t)ids.begin)] : 0.0f;
    }
}

void rt_logits_merge_scores(struct rt_exec *x, const struct part_step *s)
{
    const struct part_dim_cut *cut = &x->o.plan->cut.dims[x->m->dim_vocab];
    for (int i = 0; i < x->n_rows; i++) {
        const struct rt_row *row = &x->desc->rows[x->first_row + i];
        if (!(row->wants & RT_ROW_SCORE))
            continue;
        float max[ORDER_MAX_LEAVES], sum[ORDER_MAX_LEAVES], target = 0;
        const int owner = rt_logits_owner(x, x->m->dim_vocab, (uint64_t)row->target);
        for (int r = 0; r < x->o.plan->options.n_ranks; r++) {
            const uint32_t n = cut->hi[r] - cut->lo[r];
            const float *record = (const float *)(x->o.comm ? x->views[r] : (const void *)address(x, s->in[0])) + (size_t)i * (2 * n + 1);
            for (uint32_t k = 0; k < n; k++) {
                max[cut->lo[r] + k] = record[2 * k];
                sum[cut->lo[r] + k] = record[2 * k + 1];
            }
            if (r == owner)
                target = record[2 * n];
        }
        x->results[x->first_row + i].nll = kern_lse_merge(max, sum, ORDER_MAX_LEAVES) - (double)target;
    }
}

enum st rt_logits_deliver(struct rt_exec *x, int value)
{
    if (!x->o.on_logits)
        return ST_OK;
    const struct part_axis axis = value_of(x, value)->axis;
    const float *pieces[COMM_MAX_RANKS];
    uint64_t n[COMM_MAX_RANKS];
    for (int i = 0; i < x->n_rows; i++) {
        const struct rt_row *row = &x->desc->rows[x->first_row + i];
        if (!(row->wants & RT_ROW_LOGITS))
            continue;
        for (int r = 0; r < x->o.plan->options.n_ranks; r++) {
            const struct part_range ids = part_axis_range(x->o.plan->whole, &x->o.plan->cut, r, axis);
            n[r] = ids.end - ids.begin;
            pieces[r] = (const float *)(x->o.comm ? x->views[r] : (const void *)address(x, value)) + (size_t)i * n[r];
        }
        const enum st st = x->o.on_logits(x->o.context, row, pieces, n, x->o.plan->options.n_ranks, x->e);
        if (st)
            return st;
    }
    return ST_OK;
}
