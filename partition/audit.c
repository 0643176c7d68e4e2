/* The auditor: counts every byte of the checkpoint, and holds the ranks' programs against each other.
 *
 * Rows are cut or columns are cut, never both, and ranks hold ascending ranges; so one pass over the ranks per weight finds gaps (the next range begins after the last end)
 * and overlaps (it begins before), and an overlap is right only where a KV group or a stored block was declared to be replicated. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "partition/plan.h"

static const struct part_weight *weight_of(const struct part_plan *plan, int r, int i) { return &plan->ranks[r]->weights[i]; }

/* How far two neighbours may overlap along an axis: one KV head, or the rest of a block. */
static uint64_t declared_overlap(struct part_axis axis, uint64_t block) { return axis.dim == PART_WHOLE ? 0 : axis.group > 1 ? axis.scale : block - 1; }

static enum st audit_axis(const struct part_plan *plan, int i, bool rows, struct err *e)
{
    const struct part_weight *whole = &plan->whole->weights[i];
    const struct part_axis axis = rows ? whole->row_axis : whole->column_axis;
    const char *word = rows ? "row" : "column";
    uint64_t covered = 0;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_weight *w = weight_of(plan, r, i);
        const struct part_range range = rows ? w->rows : w->columns;
        if (range.begin > range.end || range.end > axis.size)
            return err_set(e, ST_INVALID, "%s: rank %d holds %ss %" PRIu64 " to %" PRIu64 " of %" PRIu64, w->name, r, word, range.begin, range.end, axis.size);
        if (axis.dim == PART_WHOLE) {
            if (range.begin != 0 || range.end != axis.size)
                return err_set(e, ST_INVALID, "%s: rank %d holds %ss %" PRIu64 " to %" PRIu64 ", but that axis is never cut", w->name, r, word, range.begin, range.end);
            covered = axis.size;
            continue;
        }
        if (range.begin == range.end)
            continue;
        if (range.begin > covered)
            return err_set(e, ST_INVALID, "%s: nobody holds %ss %" PRIu64 " to %" PRIu64, w->name, word, covered, range.begin);
        if (range.begin + declared_overlap(axis, 1) < covered)
            return err_set(e, ST_INVALID, "%s: %ss %" PRIu64 " to %" PRIu64 " are held twice", w->name, word, range.begin, covered);
        covered = range.end > covered ? range.end : covered;
    }
    if (covered != axis.size)
        return err_set(e, ST_INVALID, "%s: nobody holds %ss %" PRIu64 " to %" PRIu64, whole->name, word, covered, axis.size);
    return ST_OK;
}

static int compare_slices(const void *a, const void *b)
{
    const struct part_slice *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* The slices of one weight, as bytes: exactly its bytes once, the rest replicas. */
static enum st audit_bytes(const struct part_plan *plan, int i, struct part_audit *audit, struct err *e)
{
    const struct part_weight *whole = &plan->whole->weights[i];
    const struct format_info *f = kern_format(whole->tensor->format);
    const uint64_t row_bytes = whole->kind == PART_MATRIX ? kern_format_row_bytes(whole->tensor->format, whole->tensor->dims[1]) : f->block_bytes;
    const uint64_t bytes = whole->row_axis.size * row_bytes;
    const uint64_t first = whole->tensor->offset + whole->first_row * row_bytes;
    uint64_t held = 0;
    struct part_slice slices[ORDER_MAX_RANKS];
    int n = 0;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_weight *w = weight_of(plan, r, i);
        const struct part_slice *s = &w->slice;
        held += w->slice_bytes;
        if (s->count[0] == 0)
            continue;
        const uint64_t end = s->offset + (s->count[0] - 1) * s->stride[0] + s->run_bytes;
        if (s->file != whole->tensor->file || s->offset < first || end > first + bytes || s->stride[0] != row_bytes)
            return err_set(e, ST_INVALID, "%s: rank %d would read outside the tensor", w->name, r);
        slices[n++] = *s;
    }
    qsort(slices, (size_t)n, sizeof *slices, compare_slices);
    /* union of the rectangles: they differ along one axis only, so it is an interval of rows, or of bytes in every row */
    const bool by_columns = whole->kind == PART_MATRIX && whole->column_axis.dim != PART_WHOLE;
    uint64_t covered = 0;
    for (int k = 0; k < n; k++) {
        const uint64_t begin = by_columns ? slices[k].offset - first : (slices[k].offset - first) / row_bytes;
        const uint64_t end = begin + (by_columns ? slices[k].run_bytes : slices[k].count[0]);
        if (begin > covered)
            return err_set(e, ST_INVALID, "%s: nobody reads %s %" PRIu64 " to %" PRIu64, whole->name, by_columns ? "bytes" : "rows", covered, begin);
        covered = end > covered ? end : covered;
    }
    if (covered != (by_columns ? row_bytes : whole->row_axis.size))
        return err_set(e, ST_INVALID, "%s: the last %s are read by nobody", whole->name, by_columns ? "bytes" : "rows");
    audit->owned_bytes += bytes;
    audit->replica_bytes += held - bytes;
    return ST_OK;
}

/* A tensor that no weight uses is named; one that several weights share (fused) must be used up by them. */
static enum st audit_tensors(const struct part_plan *plan, struct part_audit *audit, struct err *e)
{
    const struct checkpoint *ck = plan->whole->ck;
    for (size_t t = 0; t < ck_n_tensors(ck); t++) {
        const struct ck_tensor *tensor = ck_tensor_at(ck, t);
        audit->checkpoint_bytes += tensor->bytes;
        uint64_t used_rows = 0;
        for (int i = 0; i < plan->whole->n_weights; i++)
            if (plan->whole->weights[i].tensor == tensor)
                used_rows += plan->whole->weights[i].row_axis.size;
        if (used_rows == 0) {
            audit->unused_bytes += tensor->bytes;
            if (audit->n_unused < (int)(sizeof audit->unused / sizeof *audit->unused))
                audit->unused[audit->n_unused] = tensor->name;
            audit->n_unused++;
        } else if (used_rows != tensor->dims[0])
            return err_set(e, ST_INVALID, "%s: %" PRIu64 " of %" PRIu64 " rows are used", tensor->name, used_rows, tensor->dims[0]);
    }
    if (audit->owned_bytes + audit->unused_bytes != audit->checkpoint_bytes)
        return err_set(e, ST_INVALID, "the ranks own %" PRIu64 " bytes and %" PRIu64 " are unused, the checkpoint has %" PRIu64, audit->owned_bytes, audit->unused_bytes, audit->checkpoint_bytes);
    return ST_OK;
}

static enum st audit_exchange(const struct part_plan *plan, const struct part_step *s, int i_step, struct err *e)
{
    if (s->exchange != PART_EXCHANGE_TREE)
        return ST_OK;
    const struct part_dim_cut *c = &plan->cut.dims[s->dim];
    uint32_t at = 0;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_value *v = &plan->ranks[r]->values[s->in[0]];
        if (v->n_vectors != c->n_vectors[r])
            return err_set(e, ST_INVALID, "step %d: rank %d sends %u vectors, the plan says %u", i_step, r, v->n_vectors, c->n_vectors[r]);
        for (uint32_t k = 0; k < c->n_vectors[r]; k++) {
            if (c->node_lo[r][k] != at || c->node_hi[r][k] <= at)
                return err_set(e, ST_INVALID, "step %d: leaves from %u on are summed by nobody or twice", i_step, at);
            at = c->node_hi[r][k];
        }
    }
    return at == plan->whole->dims[s->dim].leaves.n ? ST_OK : err_set(e, ST_INVALID, "step %d: leaves from %u on are summed by nobody", i_step, at);
}

static enum st audit_programs(const struct part_plan *plan, struct part_audit *audit, struct err *e)
{
    for (int p = 0; p < 2; p++) {
        const struct part_program *first = p ? &plan->ranks[0]->head : &plan->ranks[0]->main;
        for (int r = 0; r < plan->options.n_ranks; r++) {
            const struct part_program *mine = p ? &plan->ranks[r]->head : &plan->ranks[r]->main;
            if (mine->n_steps != first->n_steps)
                return err_set(e, ST_INVALID, "program %s: rank %d has %d steps, rank 0 has %d", mine->name, r, mine->n_steps, first->n_steps);
            for (int i = 0; i < mine->n_steps; i++) {
                const struct part_step *a = &first->steps[i], *b = &mine->steps[i];
                if (a->op != b->op || a->exchange != b->exchange || a->dim != b->dim || a->group != b->group || a->in[0] != b->in[0])
                    return err_set(e, ST_INVALID, "program %s, step %d: rank 0 does %s, rank %d does %s", mine->name, i, part_op_name(a->op), r, part_op_name(b->op));
            }
        }
        for (int i = 0; i < first->n_steps; i++)
            if (first->steps[i].op == PART_EXCHANGE) {
                const enum st st = audit_exchange(plan, &first->steps[i], i, e);
                if (st)
                    return err_prefix(e, st, "program %s", first->name);
                audit->n_exchanges += p == 0;
            }
    }
    return ST_OK;
}

enum st part_audit_plan(const struct part_plan *plan, struct part_audit *out, struct err *e)
{
    struct part_audit audit = {0};
    for (int i = 0; i < plan->whole->n_weights; i++) {
        enum st st = audit_axis(plan, i, true, e);
        if (!st && plan->whole->weights[i].kind == PART_MATRIX)
            st = audit_axis(plan, i, false, e);
        if (!st)
            st = audit_bytes(plan, i, &audit, e);
        if (st)
            return st;
    }
    enum st st = audit_tensors(plan, &audit, e);
    if (!st)
        st = audit_programs(plan, &audit, e);
    if (!st)
        *out = audit;
    return st;
}
