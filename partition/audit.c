/* The auditor: counts every byte of the checkpoint, and holds the ranks' programs against the whole model's and against each other.
 *
 * It trusts nothing but the unsharded model, the order of sums and the shares of leaves; what follows from them is worked out anew. Rows are cut or columns are cut, never both, and
 * ranks hold ascending ranges; so one pass over the ranks per weight finds gaps (the next range begins after the last end) and overlaps (it begins before), and an overlap is right
 * only where a cut divides a KV group or a stored block. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "partition/plan.h"

static const struct part_weight *weight_of(const struct part_plan *plan, int r, int i) { return &plan->ranks[r]->weights[i]; }

/* ---- the cut --------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st audit_cut(const struct part_plan *plan, int d, struct err *e)
{
    const struct part_dim *dim = &plan->whole->dims[d];
    const struct part_dim_cut *c = &plan->cut.dims[d];
    uint32_t at = 0;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        if (c->lo[r] != at || c->hi[r] < at || c->hi[r] > dim->leaves.n)
            return err_set(e, ST_INVALID, "dimension %s: rank %d owns leaves %u to %u where %u is next of %u", dim->name, r, c->lo[r], c->hi[r], at, dim->leaves.n);
        at = c->hi[r];
        if (dim->leaves.kind == ORDER_VOCABULARY)
            continue; /* a select: no vectors */
        uint8_t node_lo[ORDER_MAX_LEAVES], node_hi[ORDER_MAX_LEAVES];
        const uint32_t n = order_subtrees(c->lo[r], c->hi[r], dim->leaves.n, node_lo, node_hi);
        if (c->n_vectors[r] != n || memcmp(c->node_lo[r], node_lo, n) != 0 || memcmp(c->node_hi[r], node_hi, n) != 0)
            return err_set(e, ST_INVALID, "dimension %s: rank %d owns leaves %u to %u, and its vectors are not the subtrees of these", dim->name, r, c->lo[r], c->hi[r]);
    }
    return at == dim->leaves.n ? ST_OK : err_set(e, ST_INVALID, "dimension %s: leaves from %u on of %u belong to nobody", dim->name, at, dim->leaves.n);
}

/* The units of a dimension that a rank's leaves cover; an empty range begins where the next one does. */
static struct part_range units_of(const struct part_plan *plan, int dim, int r)
{
    const struct order_leaves *l = &plan->whole->dims[dim].leaves;
    const uint32_t lo = plan->cut.dims[dim].lo[r], hi = plan->cut.dims[dim].hi[r];
    const uint64_t begin = order_leaf_begin(l, lo);
    return (struct part_range){begin, lo < hi ? l->end[hi - 1] : begin};
}

static struct part_range range_of(const struct part_plan *plan, struct part_axis axis, int r)
{
    if (axis.dim == PART_WHOLE)
        return (struct part_range){0, axis.size};
    const struct part_range u = units_of(plan, axis.dim, r);
    const uint64_t begin = u.begin / axis.group * axis.scale;
    return (struct part_range){begin, u.begin == u.end ? begin : (u.end + axis.group - 1) / axis.group * axis.scale};
}

/* ---- weights --------------------------------------------------------------------------------------------------------------------------------------------- */

static bool same_axis(struct part_axis a, struct part_axis b) { return a.dim == b.dim && a.scale == b.scale && a.group == b.group && a.size == b.size; }

static bool is_owner(const struct part_plan *plan, int r, const struct part_weight *whole)
{
    const struct part_range mine = whole->owner_dim == PART_WHOLE ? (struct part_range){0, 1} : units_of(plan, whole->owner_dim, r);
    return whole->owner_dim == PART_WHOLE || (whole->owner_unit >= mine.begin && whole->owner_unit < mine.end);
}

static enum st audit_axis(const struct part_plan *plan, int i, bool rows, struct err *e)
{
    const struct part_weight *whole = &plan->whole->weights[i];
    const struct part_axis axis = rows ? whole->row_axis : whole->column_axis;
    const char *word = rows ? "row" : "column";
    uint64_t covered = 0;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_weight *w = weight_of(plan, r, i);
        const struct part_range range = rows ? w->rows : w->columns, mine = range_of(plan, axis, r);
        if (range.begin > range.end || range.end > axis.size)
            return err_set(e, ST_INVALID, "%s: rank %d holds %ss %" PRIu64 " to %" PRIu64 " of %" PRIu64, whole->name, r, word, range.begin, range.end, axis.size);
        if (!is_owner(plan, r, whole)) {
            if (range.begin != range.end)
                return err_set(e, ST_INVALID, "%s: rank %d holds %ss %" PRIu64 " to %" PRIu64 ", but the expert is another's", whole->name, r, word, range.begin, range.end);
            continue;
        }
        if (axis.dim == PART_WHOLE) {
            if (range.begin != 0 || range.end != axis.size)
                return err_set(e, ST_INVALID, "%s: rank %d holds %ss %" PRIu64 " to %" PRIu64 ", but that axis is never cut", whole->name, r, word, range.begin, range.end);
            covered = axis.size;
            continue;
        }
        if (range.begin == range.end && mine.begin == mine.end)
            continue;
        /* a neighbour's KV head is a declared replica, but only where the cut divides its group */
        const uint64_t shared = units_of(plan, axis.dim, r).begin % axis.group ? axis.scale : 0;
        if (range.begin > covered)
            return err_set(e, ST_INVALID, "%s: nobody holds %ss %" PRIu64 " to %" PRIu64, whole->name, word, covered, range.begin);
        if (range.begin + shared < covered)
            return err_set(e, ST_INVALID, "%s: %ss %" PRIu64 " to %" PRIu64 " are held twice", whole->name, word, range.begin, covered);
        if (range.begin != mine.begin || range.end != mine.end)
            return err_set(e, ST_INVALID, "%s: rank %d holds %ss %" PRIu64 " to %" PRIu64 ", its leaves are %" PRIu64 " to %" PRIu64, whole->name, r, word, range.begin, range.end,
                           mine.begin, mine.end);
        covered = range.end > covered ? range.end : covered;
    }
    if (covered != axis.size)
        return err_set(e, ST_INVALID, "%s: nobody holds %ss %" PRIu64 " to %" PRIu64, whole->name, word, covered, axis.size);
    return ST_OK;
}

/* Elements of a source that cover rows or columns [range) of the matrix. */
static struct part_range elements_of(struct part_range range, uint64_t unit)
{
    return (struct part_range){range.begin / unit, range.end / unit + (range.end % unit != 0)};
}

static uint64_t slice_bytes(const struct part_slice *s) { return s->count[0] * s->count[1] * s->run_bytes; }

/* A rank's slice of one source lies inside its tensor, and is the elements that cover the rows and columns which the rank holds. */
static enum st audit_slice(const struct part_plan *plan, int r, int i, uint32_t k, struct part_range *along, struct err *e)
{
    const struct part_weight *whole = &plan->whole->weights[i], *w = weight_of(plan, r, i);
    const struct quant_source *source = &whole->scheme->sources[k];
    const struct part_slice *s = &w->slices[k];
    const char *name = source->tensor->name;
    *along = (struct part_range){0, 0};
    if (w->rows.begin == w->rows.end || (whole->kind == PART_MATRIX && w->columns.begin == w->columns.end))
        return s->count[0] == 0 && s->run_bytes == 0 ? ST_OK : err_set(e, ST_INVALID, "%s: rank %d holds nothing and reads %" PRIu64 " bytes of %s", whole->name, r, s->run_bytes, name);

    const struct part_range held = {whole->first_row + w->rows.begin, whole->first_row + w->rows.end};
    const struct part_range across = whole->kind != PART_MATRIX ? (struct part_range){0, 1} : source->all_columns ? (struct part_range){0, whole->scheme->columns} : w->columns;
    const struct part_range rows = elements_of(held, source->row_unit), columns = elements_of(across, source->column_unit);
    const struct part_range outer = source->transposed ? columns : rows, inner = source->transposed ? rows : columns;
    const uint64_t outer_stride = source->transposed ? source->column_stride : source->row_stride, inner_stride = source->transposed ? source->row_stride : source->column_stride;
    const uint64_t n_outer = outer.end - outer.begin, n_inner = inner.end - inner.begin, bytes = source->element_bytes;
    const uint64_t offset = source->offset + outer.begin * outer_stride + inner.begin * inner_stride;
    const bool dense = inner_stride == bytes;
    if (s->file != source->tensor->file || s->count[0] == 0 || s->count[1] == 0 || s->offset < source->tensor->offset ||
        s->offset - source->tensor->offset + (s->count[0] - 1) * s->stride[0] + (s->count[1] - 1) * s->stride[1] + s->run_bytes > source->tensor->bytes)
        return err_set(e, ST_INVALID, "%s: rank %d would read outside tensor %s", whole->name, r, name);
    if (s->offset != source->tensor->offset + offset || s->count[0] != n_outer || s->stride[0] != outer_stride || s->count[1] != (dense ? 1 : n_inner) || s->stride[1] != (dense ? 0 : inner_stride) ||
        s->run_bytes != (dense ? n_inner * bytes : bytes) || s->first_row != rows.begin * source->row_unit || s->first_column != columns.begin * source->column_unit)
        return err_set(e, ST_INVALID, "%s: rank %d would read other bytes of %s than rows %" PRIu64 " to %" PRIu64 ", columns %" PRIu64 " to %" PRIu64, whole->name, r, name, w->rows.begin,
                       w->rows.end, w->columns.begin, w->columns.end);
    *along = whole->kind == PART_MATRIX && whole->column_axis.dim != PART_WHOLE ? columns : rows;
    return ST_OK;
}

/* The slices of one source of a weight, as bytes: exactly its bytes once, the rest replicas. Rows are cut or columns are, so that the union of the ranks' elements is an interval along
 * that axis; a cut that falls inside an element gives it to both. An element that two fused weights share (a block of 128 rows, one scale for all) is the first one's. */
static enum st audit_source(const struct part_plan *plan, int i, uint32_t k, struct part_audit *audit, struct err *e)
{
    const struct part_weight *whole = &plan->whole->weights[i];
    const struct quant_source *source = &whole->scheme->sources[k];
    const bool by_columns = whole->kind == PART_MATRIX && whole->column_axis.dim != PART_WHOLE;
    const struct part_range rows = elements_of((struct part_range){whole->first_row, whole->first_row + whole->row_axis.size}, source->row_unit);
    const uint64_t n_columns = elements_of((struct part_range){0, whole->scheme->columns}, source->column_unit).end;
    uint64_t covered = by_columns ? 0 : rows.begin, held = 0;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        struct part_range along;
        const enum st st = audit_slice(plan, r, i, k, &along, e);
        if (st)
            return st;
        if (along.begin == along.end)
            continue;
        held += slice_bytes(&weight_of(plan, r, i)->slices[k]);
        if (along.begin > covered)
            return err_set(e, ST_INVALID, "%s: nobody reads %s %" PRIu64 " to %" PRIu64 " of %s", whole->name, by_columns ? "columns" : "rows", covered, along.begin, source->tensor->name);
        covered = along.end > covered ? along.end : covered;
    }
    if (covered != (by_columns ? n_columns : rows.end))
        return err_set(e, ST_INVALID, "%s: the last %s of %s are read by nobody", whole->name, by_columns ? "columns" : "rows", source->tensor->name);
    const uint64_t first_own = whole->first_row / source->row_unit + (whole->first_row % source->row_unit != 0);
    const uint64_t bytes = (rows.end - first_own) * n_columns * source->element_bytes;
    audit->owned_bytes += bytes;
    audit->replica_bytes += held - bytes;
    return ST_OK;
}

static enum st audit_bytes(const struct part_plan *plan, int i, struct part_audit *audit, struct err *e)
{
    const struct part_weight *whole = &plan->whole->weights[i];
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_weight *w = weight_of(plan, r, i);
        uint64_t bytes = 0;
        if (w->tensor != whole->tensor || w->scheme != whole->scheme || w->kind != whole->kind || w->home != whole->home || w->first_row != whole->first_row || w->leaf_dim != whole->leaf_dim || w->leaves_apart != whole->leaves_apart ||
            w->exact != whole->exact || w->owner_dim != whole->owner_dim || w->owner_unit != whole->owner_unit || !same_axis(w->row_axis, whole->row_axis) ||
            !same_axis(w->column_axis, whole->column_axis))
            return err_set(e, ST_INVALID, "%s: rank %d has another tensor, or another part of it", whole->name, r);
        for (uint32_t k = 0; k < w->scheme->n_sources; k++)
            bytes += slice_bytes(&w->slices[k]);
        if (bytes != w->slice_bytes)
            return err_set(e, ST_INVALID, "%s: rank %d reads %" PRIu64 " bytes and counts %" PRIu64, whole->name, r, bytes, w->slice_bytes);
    }
    for (uint32_t k = 0; k < whole->scheme->n_sources; k++) {
        const enum st st = audit_source(plan, i, k, audit, e);
        if (st)
            return st;
    }
    return ST_OK;
}

/* Scales of a cache and orders of columns are read by every rank: the first owns them. */
static void count_read(const struct part_plan *plan, const struct ck_tensor *t, bool *read, struct part_audit *audit)
{
    bool *mine = t ? &read[t - ck_tensor_at(plan->whole->ck, 0)] : NULL;
    if (!mine || *mine)
        return;
    *mine = true;
    audit->owned_bytes += t->bytes;
    audit->replica_bytes += t->bytes * (uint64_t)(plan->options.n_ranks - 1);
}

/* Of one tensor: rows that weights use of each of its views (planes, rows in turn), in order. */
struct usage {
    const struct quant_scheme *user; /* any of those that use it; NULL: nobody does */
    uint64_t *rows;                  /* [planes · step] */
};

static size_t n_views(const struct quant_view *v) { return (size_t)(quant_view_planes(v) * quant_view_step(v)); }

static enum st count_rows(struct usage *u, const struct part_weight *w, const struct ck_tensor *tensor, struct err *e)
{
    const struct quant_view *v = &w->scheme->view;
    if (!u->rows && !(u->rows = calloc(n_views(v), sizeof *u->rows)))
        return err_set(e, ST_NO_MEMORY, "no memory to audit %s", tensor->name);
    if (u->user && (u->user->rows != w->scheme->rows || n_views(&u->user->view) != n_views(v) || quant_view_step(&u->user->view) != quant_view_step(v)))
        return err_set(e, ST_INVALID, "%s: another weight divides its tensor otherwise", w->name);
    u->user = w->scheme;
    uint64_t *used = &u->rows[v->plane * quant_view_step(v) + v->phase];
    if (w->first_row != *used)
        return err_set(e, ST_INVALID, "%s: begins at row %" PRIu64 " of its tensor, of which %" PRIu64 " are used", w->name, w->first_row, *used);
    *used += w->row_axis.size;
    return ST_OK;
}

static enum st all_rows_used(const struct usage *u, const struct ck_tensor *tensor, struct err *e)
{
    for (size_t i = 0; i < n_views(&u->user->view); i++)
        if (u->rows[i] != u->user->rows)
            return err_set(e, ST_INVALID, "%s: %" PRIu64 " of %" PRIu64 " rows are used%s", tensor->name, u->rows[i], u->user->rows, u->user->view.n_planes ? " of one of its planes" : "");
    return ST_OK;
}

/* A tensor that nothing uses is named; one that several weights share (fused) must be used up by them, one after another. */
static enum st audit_tensors(const struct part_plan *plan, struct part_audit *audit, struct err *e)
{
    const struct checkpoint *ck = plan->whole->ck;
    const size_t n = ck_n_tensors(ck);
    struct usage *usage = calloc(n ? n : 1, sizeof *usage);
    bool *read = calloc(n ? n : 1, sizeof *read);
    enum st st = usage && read ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory to audit %zu tensors", n);
    for (int i = 0; i < plan->whole->n_weights && !st; i++) {
        const struct part_weight *w = &plan->whole->weights[i];
        for (uint32_t k = 0; k < w->scheme->n_sources && !st; k++) {
            const struct ck_tensor *tensor = w->scheme->sources[k].tensor;
            st = count_rows(&usage[tensor - ck_tensor_at(ck, 0)], w, tensor, e); /* the table is one array */
        }
    }
    for (int i = 0; i < plan->ranks[0]->n_caches && !st; i++) {
        count_read(plan, plan->ranks[0]->caches[i].k_scale_tensor, read, audit);
        count_read(plan, plan->ranks[0]->caches[i].v_scale_tensor, read, audit);
    }
    for (int i = 0; i < plan->whole->n_weights && !st; i++)
        count_read(plan, plan->whole->weights[i].scheme->group_tensor, read, audit);
    for (size_t t = 0; t < n && !st; t++) {
        const struct ck_tensor *tensor = ck_tensor_at(ck, t);
        const bool used = usage[t].user != NULL;
        audit->checkpoint_bytes += tensor->bytes;
        if (read[t] && used)
            st = err_set(e, ST_INVALID, "%s: both a weight and what is read while planning", tensor->name);
        else if (!used && !read[t]) {
            audit->unused_bytes += tensor->bytes;
            if (quant_is_beside(tensor->name)) {
                audit->beside = audit->n_beside++ ? audit->beside : tensor->name;
                continue;
            }
            if (audit->n_unused < (int)(sizeof audit->unused / sizeof *audit->unused))
                audit->unused[audit->n_unused] = tensor->name;
            audit->n_unused++;
        } else if (used)
            st = all_rows_used(&usage[t], tensor, e);
    }
    for (size_t t = 0; usage && t < n; t++)
        free(usage[t].rows);
    free(read);
    free(usage);
    if (!st && audit->owned_bytes + audit->unused_bytes != audit->checkpoint_bytes)
        return err_set(e, ST_INVALID, "the ranks own %" PRIu64 " bytes and %" PRIu64 " are unused, the checkpoint has %" PRIu64, audit->owned_bytes, audit->unused_bytes, audit->checkpoint_bytes);
    return st;
}

/* ---- values and caches ----------------------------------------------------------------------------------------------------------------------------------- */

static enum st audit_values(const struct part_plan *plan, int r, struct err *e)
{
    const struct part_model *whole = plan->whole, *m = plan->ranks[r];
    if (m->n_values < whole->n_values || m->n_values != plan->ranks[0]->n_values || m->n_caches != whole->n_caches || m->n_weights != whole->n_weights)
        return err_set(e, ST_INVALID, "rank %d has %d weights, %d values and %d caches", r, m->n_weights, m->n_values, m->n_caches);
    for (int i = 0; i < m->n_values; i++) {
        const struct part_value *v = &m->values[i], *first = i < whole->n_values ? &whole->values[i] : &plan->ranks[0]->values[i];
        if (i >= whole->n_values && (!first->partial || first->sum_dim != PART_WHOLE || first->axis.dim != PART_WHOLE))
            return err_set(e, ST_INVALID, "value %s: not of the whole model, and not for a select", first->name);
        const struct part_range range = range_of(plan, first->axis, r);
        const uint64_t width = i == whole->value_scores ? 2 * (plan->cut.dims[whole->dim_vocab].hi[r] - plan->cut.dims[whole->dim_vocab].lo[r]) + 1 : range.end - range.begin;
        const uint32_t n_vectors = first->partial && first->sum_dim != PART_WHOLE ? plan->cut.dims[first->sum_dim].n_vectors[r] : 1;
        if (v->rows != first->rows || v->partial != first->partial || v->sum_dim != first->sum_dim || v->follows != first->follows || v->element_bytes != first->element_bytes || !same_axis(v->axis, first->axis))
            return err_set(e, ST_INVALID, "value %s: rank %d has another one of this name", first->name, r);
        if (v->width != width)
            return err_set(e, ST_INVALID, "value %s: rank %d has a width of %" PRIu64 ", its leaves %" PRIu64, first->name, r, v->width, width);
        if (v->n_vectors != n_vectors)
            return err_set(e, ST_INVALID, "value %s: rank %d sends %u vectors, its leaves make %u", first->name, r, v->n_vectors, n_vectors);
    }
    for (int i = 0; i < m->n_caches; i++) {
        const struct part_cache *c = &m->caches[i], *first = &whole->caches[i];
        const uint32_t group = (uint32_t)(whole->config.n_heads / whole->config.n_kv_heads);
        const struct part_range kv = range_of(plan, part_axis_cut(whole->dim_heads, 1, group, first->n_kv_heads), r);
        if (c->kind != first->kind || c->layer != first->layer || c->head_dim != first->head_dim || c->n_kv_heads != kv.end - kv.begin)
            return err_set(e, ST_INVALID, "layer %d: the cache of rank %d holds %u heads of %u numbers, its leaves %" PRIu64 " of %u", first->layer, r, c->n_kv_heads, c->head_dim,
                           kv.end - kv.begin, first->head_dim);
        const struct part_cache *c0 = &plan->ranks[0]->caches[i];
        if (memcmp(&c->k_scale, &c0->k_scale, sizeof c->k_scale) != 0 || memcmp(&c->v_scale, &c0->v_scale, sizeof c->v_scale) != 0 || c->k_scale_tensor != c0->k_scale_tensor ||
            c->v_scale_tensor != c0->v_scale_tensor)
            return err_set(e, ST_INVALID, "layer %d: the cache of rank %d has scales of %g and %g, that of rank 0 %g and %g", first->layer, r, (double)c->k_scale, (double)c->v_scale,
                           (double)c0->k_scale, (double)c0->v_scale);
    }
    return ST_OK;
}

/* Plays both programs with one bit a value: writing it spoils all others that lie on its bytes, and no step may read a spoiled one. The head is played twice: the hidden states
 * must outlive it. */
static enum st audit_places(const struct part_plan *plan, int r, struct err *e)
{
    const struct part_model *m = plan->ranks[r];
    uint64_t on[PART_MAX_VALUES] = {0}, sound = 0;
    for (int v = 0; v < m->n_values; v++) {
        const uint64_t bytes = part_value_bytes(m, &m->values[v], &plan->options);
        if (m->values[v].offset % 128 || (bytes && m->values[v].offset + bytes > plan->budget[r].activations))
            return err_set(e, ST_INVALID, "value %s: rank %d has no room for it at %" PRIu64, m->values[v].name, r, m->values[v].offset);
        for (int u = 0; u < m->n_values; u++)
            on[v] |= (uint64_t)part_values_overlap(plan, m, u, v) << u;
    }
    const struct part_program *const programs[] = {&m->main, &m->head, &m->head};
    for (int p = 0; p < 3; p++)
        for (int i = 0; i < programs[p]->n_steps; i++) {
            const struct part_step *s = &programs[p]->steps[i];
            uint64_t in = 0, out = 0, spoiled = 0;
            for (int k = 0; k < 3; k++)
                in |= s->in[k] == PART_NONE ? 0 : 1ull << s->in[k];
            for (int k = 0; k < PART_MAX_PARTS; k++)
                if (s->out[k] != PART_NONE) {
                    out |= 1ull << s->out[k];
                    spoiled |= on[s->out[k]];
                }
            for (int v = 0; v < m->n_values; v++)
                if ((in >> v & 1 && !(sound >> v & 1)) || (spoiled & (in | out)) >> v & 1)
                    return err_set(e, ST_INVALID, "program %s, step %d (%s): rank %d has another value on the bytes of %s", programs[p]->name, i, part_op_name(s->op), r, m->values[v].name);
            sound = (sound & ~spoiled) | out;
        }
    const int kept[] = {m->value_hidden, m->value_logits, m->value_samples, m->value_scores};
    for (size_t k = 0; k < sizeof kept / sizeof *kept; k++)
        if (kept[k] >= 0 && !(sound >> kept[k] & 1))
            return err_set(e, ST_INVALID, "value %s: rank %d has lost it before it is fetched", m->values[kept[k]].name, r);
    return ST_OK;
}

/* ---- programs -------------------------------------------------------------------------------------------------------------------------------------------- */

/* All but the numbers of heads, which ranks do not share; outs: where it writes, too. */
static bool same_step(const struct part_step *a, const struct part_step *b, bool outs)
{
    return a->op == b->op && a->exchange == b->exchange && a->layer == b->layer && a->n_parts == b->n_parts && a->dim == b->dim && a->group == b->group && a->cache == b->cache && a->window == b->window && a->of_keys == b->of_keys && a->n_experts == b->n_experts &&
           memcmp(&a->eps, &b->eps, sizeof a->eps) == 0 && memcmp(&a->scale, &b->scale, sizeof a->scale) == 0 && a->head_group == b->head_group && memcmp(a->in, b->in, sizeof a->in) == 0 &&
           (!outs || memcmp(a->out, b->out, sizeof a->out) == 0) && memcmp(a->weight, b->weight, sizeof a->weight) == 0 && memcmp(a->bias, b->bias, sizeof a->bias) == 0;
}

static const char *operand(const struct part_model *m, const struct part_step *s)
{
    const int v = s->out[0] != PART_NONE ? s->out[0] : s->in[0];
    return v >= 0 && v < m->n_values ? m->values[v].name : "nothing";
}

/* Every rank does the same thing at the same step: exchanges meet by their order alone. */
static enum st audit_agreement(const struct part_plan *plan, int p, int r, struct err *e)
{
    const struct part_model *m = plan->ranks[r], *m0 = plan->ranks[0];
    const struct part_program *mine = p ? &m->head : &m->main, *first = p ? &m0->head : &m0->main;
    if (mine->n_steps != first->n_steps)
        return err_set(e, ST_INVALID, "program %s: rank %d has %d steps, rank 0 has %d", first->name, r, mine->n_steps, first->n_steps);
    for (int i = 0; i < mine->n_steps; i++)
        if (!same_step(&first->steps[i], &mine->steps[i], true))
            return err_set(e, ST_INVALID, "program %s, step %d: rank 0 does %s %s, rank %d does %s %s%s", first->name, i, part_op_name(first->steps[i].op), operand(m0, &first->steps[i]), r,
                           part_op_name(mine->steps[i].op), operand(m, &mine->steps[i]), first->steps[i].op == mine->steps[i].op ? " otherwise" : "");
    return ST_OK;
}

static enum st audit_share(const struct part_plan *plan, int r, const struct part_step *whole, const struct part_step *s, struct err *e)
{
    const struct part_model *m = plan->whole;
    const uint64_t head_dim = (uint64_t)m->config.head_dim;
    if (whole->expert_end) {
        const struct part_range mine = m->dim_experts < 0 ? (struct part_range){whole->expert_first, whole->expert_end} : units_of(plan, m->dim_experts, r);
        if (s->expert_first != mine.begin || s->expert_end != mine.end)
            return err_set(e, ST_INVALID, "has experts %u to %u, its leaves are %" PRIu64 " to %" PRIu64, s->expert_first, s->expert_end, mine.begin, mine.end);
    }
    if (whole->n_heads == 0)
        return ST_OK;
    if (s->op == PART_NORM && s->in[1] != PART_NONE)
        return ST_OK;
    if (s->op != PART_ATTENTION)
        return s->n_heads * head_dim == plan->ranks[r]->values[s->in[0]].width ? ST_OK : err_set(e, ST_INVALID, "takes %u heads", s->n_heads);
    const struct part_range q = range_of(plan, part_axis_cut(m->dim_heads, 1, 1, whole->n_heads), r);
    const struct part_range kv = range_of(plan, part_axis_cut(m->dim_heads, 1, whole->head_group, whole->n_heads / whole->head_group), r);
    if (s->n_heads != q.end - q.begin || s->q_first != q.begin || s->kv_first != kv.begin)
        return err_set(e, ST_INVALID, "has heads %u to %u from KV head %u on, its leaves are %" PRIu64 " to %" PRIu64 " from %" PRIu64, s->q_first, s->q_first + s->n_heads, s->kv_first, q.begin,
                       q.end, kv.begin);
    return ST_OK;
}

/* The whole model's steps in their order, and nothing else but exchanges and selects. Of each value the last exchange since it was written is remembered: a sum or select needs the
 * right one, and at the end of the head its results must have been exchanged. */
static enum st audit_program(const struct part_plan *plan, int p, int r, struct part_audit *audit, struct err *e)
{
    enum { NOT_EXCHANGED = -1 };
    const struct part_model *m = plan->ranks[r];
    const struct part_program *mine = p ? &m->head : &m->main, *whole = p ? &plan->whole->head : &plan->whole->main;
    const bool several = plan->options.n_ranks > 1;
    int exchanged[PART_MAX_VALUES], next = 0, i = 0;
    for (int v = 0; v < PART_MAX_VALUES; v++)
        exchanged[v] = NOT_EXCHANGED;
    const char *why = NULL;
    for (; i < mine->n_steps && !why; i++) {
        const struct part_step *s = &mine->steps[i], *w = next < whole->n_steps ? &whole->steps[next] : NULL;
        if (s->op == PART_EXCHANGE) {
            if (exchanged[s->in[0]] != NOT_EXCHANGED)
                why = "exchanges a value twice";
            exchanged[s->in[0]] = (int)s->exchange;
            if (s->in[1] != PART_NONE && exchanged[s->in[1]] != NOT_EXCHANGED)
                why = "exchanges a value twice";
            if (s->in[1] != PART_NONE)
                exchanged[s->in[1]] = (int)s->exchange;
            audit->n_exchanges += p == 0 && r == 0;
            continue;
        }
        if (s->op == PART_SELECT) {
            if (exchanged[s->in[0]] != PART_EXCHANGE_SELECT)
                why = "selects from what was not exchanged for that";
        } else {
            const bool selects = s->op == PART_EMBED && several; /* its rows go through a select to where they belong */
            if (!w || !same_step(w, s, !selects))
                why = "is not the next one of the whole model";
            else if (selects && (i + 2 >= mine->n_steps || mine->steps[i + 2].op != PART_SELECT || mine->steps[i + 2].in[0] != s->out[0] || mine->steps[i + 2].out[0] != w->out[0]))
                why = "is not followed by an exchange and a select of what it wrote";
            else if (several && s->op == PART_SUM && exchanged[s->in[1]] != PART_EXCHANGE_TREE)
                why = "sums what was not exchanged for that";
            else if (several && s->op == PART_NORM && s->in[1] != PART_NONE && exchanged[s->in[1]] != PART_EXCHANGE_SQUARES)
                why = "takes squares that were not exchanged";
            next++;
            if (!why) {
                const enum st st = audit_share(plan, r, w, s, e);
                if (st)
                    return err_prefix(e, st, "program %s, step %d (%s): rank %d", mine->name, i, part_op_name(s->op), r);
            }
        }
        for (int k = 0; k < PART_MAX_PARTS; k++)
            if (s->out[k] != PART_NONE)
                exchanged[s->out[k]] = NOT_EXCHANGED;
    }
    if (why)
        return err_set(e, ST_INVALID, "program %s, step %d (%s %s) of rank %d %s", mine->name, i - 1, part_op_name(mine->steps[i - 1].op), operand(m, &mine->steps[i - 1]), r, why);
    if (next != whole->n_steps)
        return err_set(e, ST_INVALID, "program %s: rank %d leaves out step %d of the whole model (%s)", mine->name, r, next, part_op_name(whole->steps[next].op));
    const struct {
        int value;
        enum part_exchange mode;
    } results[] = {{m->value_logits, PART_EXCHANGE_LOGITS}, {m->value_samples, PART_EXCHANGE_SAMPLE}, {m->value_scores, PART_EXCHANGE_SCORE}};
    for (size_t k = 0; k < sizeof results / sizeof *results && several && p; k++)
        if (results[k].value >= 0 && exchanged[results[k].value] != (int)results[k].mode)
            return err_set(e, ST_INVALID, "program %s: rank %d keeps its %s to itself", mine->name, r, m->values[results[k].value].name);
    return ST_OK;
}

static enum st audit_rank(const struct part_plan *plan, int r, struct part_audit *audit, struct err *e)
{
    enum st st = audit_values(plan, r, e);
    for (int p = 0; p < 2 && !st; p++)
        st = audit_agreement(plan, p, r, e);
    if (!st && (st = part_model_check(plan->ranks[r], e)))
        return err_prefix(e, st, "rank %d", r);
    for (int p = 0; p < 2 && !st; p++)
        st = audit_program(plan, p, r, audit, e);
    if (!st)
        st = audit_places(plan, r, e);
    const struct part_budget *b = &plan->budget[r];
    if (!st && b->total != b->weights + b->kv + b->activations + b->scratch + b->comm)
        return err_set(e, ST_INVALID, "rank %d: the parts of its budget are not the total of %" PRIu64 " bytes", r, b->total);
    return st;
}

enum st part_audit_plan(const struct part_plan *plan, struct part_audit *out, struct err *e)
{
    struct part_audit audit = {0};
    enum st st = ST_OK;
    for (int d = 0; d < plan->whole->n_dims && !st; d++)
        st = audit_cut(plan, d, e);
    for (int r = 0; r < plan->options.n_ranks && !st; r++)
        if (plan->ranks[r]->n_weights != plan->whole->n_weights)
            st = err_set(e, ST_INVALID, "rank %d has %d weights, the whole model %d", r, plan->ranks[r]->n_weights, plan->whole->n_weights);
    for (int i = 0; i < plan->whole->n_weights && !st; i++) {
        st = audit_axis(plan, i, true, e);
        if (!st && plan->whole->weights[i].kind == PART_MATRIX)
            st = audit_axis(plan, i, false, e);
        if (!st)
            st = audit_bytes(plan, i, &audit, e);
    }
    if (!st)
        st = audit_tensors(plan, &audit, e);
    for (int r = 0; r < plan->options.n_ranks && !st; r++)
        st = audit_rank(plan, r, &audit, e);
    if (!st)
        *out = audit;
    return st;
}
