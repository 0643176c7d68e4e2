/* The one idea: intervals, not differences. Each clock reading ends one interval and begins the next, so nothing of a step is counted twice or not at all. */
#include "runtime/ledger.h"

#include <stdlib.h>
#include <string.h>

const char *rt_ledger_kind_name(enum rt_ledger_kind kind)
{
    static const char *const names[RT_LEDGER_KINDS] = {"weights", "attention", "wire", "waiting", "host"};
    return (unsigned)kind < RT_LEDGER_KINDS ? names[kind] : "?";
}

enum rt_ledger_kind rt_ledger_kind_of(enum part_op op)
{
    switch (op) {
    case PART_ROPE_TABLE:
    case PART_ROPE:
    case PART_ATTENTION:
        return RT_LEDGER_ATTENTION;
    case PART_EXCHANGE:
        return RT_LEDGER_WIRE;
    case PART_SAMPLE:
    case PART_SCORE:
        return RT_LEDGER_HOST;
    case PART_EMBED:
    case PART_NORM:
    case PART_SQUARES:
    case PART_LINEAR:
    case PART_GATE:
    case PART_ROW_GATE:
    case PART_COLUMN_SCALE:
    case PART_ROUTE:
    case PART_EXPERTS_IN:
    case PART_EXPERTS_OUT:
    case PART_EXPERTS_BIAS:
    case PART_SUM:
    case PART_SELECT:
    case PART_PICK:
        break;
    }
    return RT_LEDGER_WEIGHTS;
}

enum st rt_ledger_init(struct rt_ledger *l, const struct base_clock *clock, struct arena *arena, struct err *e)
{
    *l = (struct rt_ledger){.clock = clock};
    const size_t step_bytes = RT_LEDGER_STEPS * sizeof *l->steps, mark_bytes = RT_LEDGER_MARKS * sizeof *l->marks[0];
    l->steps = base_arena_alloc(arena, step_bytes);
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        l->marks[p] = base_arena_alloc(arena, mark_bytes);
    if (!l->steps || !l->marks[0] || !l->marks[1])
        return err_set(e, ST_NO_MEMORY, "no memory for the ledger");
    memset(l->steps, 0xff, step_bytes); /* no step shall meet a page for the first time; zeroes could be left to a page that is not there */
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        memset(l->marks[p], 0xff, mark_bytes);
    l->on = true;
    return ST_OK;
}

/* ---- a step --------------------------------------------------------------------------------------------------------------------------------------------- */

void rt_ledger_begin(struct rt_ledger *l)
{
    l->now = (struct rt_ledger_step){.start_ns = base_now_ns(l->clock)};
    l->open = (struct rt_ledger_mark){.start_ns = l->now.start_ns, .kind = RT_LEDGER_HOST, .op = RT_LEDGER_NO_OP, .layer = -1};
}

void rt_ledger_batch(struct rt_ledger *l, int n_tokens, int n_sequences, int n_rows)
{
    l->now.phase = n_tokens > n_sequences ? RT_LEDGER_PREFILL : RT_LEDGER_DECODE;
    l->now.n_tokens = (uint32_t)n_tokens;
    l->now.n_rows = (uint32_t)n_rows;
    l->now.first_mark = l->n_marks[l->now.phase];
}

/* The open interval, or its first part, ends at now_ns. */
static void close_at(struct rt_ledger *l, uint64_t now_ns)
{
    struct rt_ledger_mark *m = &l->open;
    const uint64_t ns = now_ns > m->start_ns ? now_ns - m->start_ns : 0;
    const int phase = (int)l->now.phase;
    m->duration_ns = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
    l->now.kind_ns[m->kind] += ns;
    l->sums[phase].op_ns[m->op] += ns;
    l->marks[phase][l->n_marks[phase]++ % RT_LEDGER_MARKS] = *m;
    l->now.n_marks++;
    m->start_ns += ns;
}

uint64_t rt_ledger_resume(struct rt_ledger *l, enum rt_ledger_kind kind, int op, int layer)
{
    close_at(l, base_now_ns(l->clock));
    l->open.kind = (uint8_t)kind;
    l->open.op = (uint8_t)op;
    l->open.layer = (int16_t)layer;
    return l->open.start_ns;
}

uint64_t rt_ledger_enter(struct rt_ledger *l, enum rt_ledger_kind kind, int op, int layer)
{
    l->sums[l->now.phase].op_calls[op]++;
    return rt_ledger_resume(l, kind, op, layer);
}

void rt_ledger_exchanged(struct rt_ledger *l, const struct comm_header *headers, int n_ranks, int rank)
{
    const uint64_t begun = l->open.start_ns;
    uint64_t all_begun = begun, now = base_now_ns(l->clock);
    for (int r = 0; r < n_ranks; r++) {
        if (r == rank)
            continue;
        if (headers[r].sent_ns == 0) { /* not told */
            all_begun = begun;
            break;
        }
        const uint64_t at = headers[r].sent_ns - (uint64_t)l->clock_offset_ns[r]; /* modulo 2^64, as clocks go */
        all_begun = at > all_begun ? at : all_begun;
    }
    now = now > begun ? now : begun;
    if (all_begun > now) /* offsets are estimates */
        all_begun = now;
    if (all_begun > begun) {
        l->open.kind = RT_LEDGER_WAIT;
        close_at(l, all_begun);
        l->open.kind = RT_LEDGER_WIRE;
    }
    close_at(l, now);
    l->open.kind = RT_LEDGER_HOST;
    l->open.op = RT_LEDGER_NO_OP;
}

static void add_bytes(struct rt_ledger_bytes *to, const struct rt_ledger_bytes *more)
{
    to->weights += more->weights;
    to->experts += more->experts;
    to->stored += more->stored;
    to->cache += more->cache;
    to->sent += more->sent;
    to->received += more->received;
}

void rt_ledger_end(struct rt_ledger *l, uint64_t step)
{
    struct rt_ledger_step *s = &l->now;
    if (s->n_tokens == 0)
        return;
    close_at(l, base_now_ns(l->clock));
    s->step = step;
    s->duration_ns = l->open.start_ns - s->start_ns;
    struct rt_ledger_sum *sum = &l->sums[s->phase];
    sum->n_steps++;
    sum->n_tokens += s->n_tokens;
    sum->n_rows += s->n_rows;
    sum->step_ns += s->duration_ns;
    for (int k = 0; k < RT_LEDGER_KINDS; k++)
        sum->kind_ns[k] += s->kind_ns[k];
    add_bytes(&sum->bytes, &s->bytes);
    sum->n_exchanges += s->n_exchanges;
    sum->n_sums += s->n_sums;
    sum->n_vectors += s->n_vectors;
    sum->n_expert_layers += s->n_expert_layers;
    sum->n_touched += s->n_touched;
    l->steps[l->n_steps++ % RT_LEDGER_STEPS] = *s;
}

/* ---- as one piece of bytes --------------------------------------------------------------------------------------------------------------------------------- */

/* The last n_kept of a ring of n_ring items in order. Returns the end. */
static unsigned char *unroll(unsigned char *to, const void *ring, size_t item_bytes, uint64_t n_ring, uint64_t n_all, uint64_t n_kept)
{
    for (uint64_t i = n_all - n_kept; i < n_all; i++, to += item_bytes)
        memcpy(to, (const unsigned char *)ring + i % n_ring * item_bytes, item_bytes);
    return to;
}

static uint32_t kept(uint64_t n_all, uint32_t n_ring) { return n_all < n_ring ? (uint32_t)n_all : n_ring; }

void *rt_ledger_pack(const struct rt_ledger *l, int rank, int n_ranks, const struct comm_link_totals *link, size_t *bytes)
{
    struct rt_ledger_head h = {
        .rank = (uint32_t)rank,
        .n_ranks = (uint32_t)n_ranks,
        .n_steps = kept(l->n_steps, RT_LEDGER_STEPS),
        .all_steps = l->n_steps,
        .read_bytes_per_s = l->read_bytes_per_s,
    };
    if (link) {
        h.has_link = 1;
        h.link_exchanges = link->n_exchanges;
        h.link_bytes = link->bytes;
        h.link_ns = link->link_ns;
        h.link_held_ns = link->held_ns;
        h.link_late_ns = link->late_ns;
        h.link_n_late = link->n_late;
    }
    size_t total = sizeof h + h.n_steps * sizeof *l->steps;
    for (int p = 0; p < RT_LEDGER_PHASES; p++) {
        h.sums[p] = l->sums[p];
        h.all_marks[p] = l->n_marks[p];
        h.n_marks[p] = kept(l->n_marks[p], RT_LEDGER_MARKS);
        total += h.n_marks[p] * sizeof *l->marks[p];
    }
    unsigned char *data = malloc(total);
    if (!data)
        return NULL;
    memcpy(data, &h, sizeof h);
    unsigned char *at = unroll(data + sizeof h, l->steps, sizeof *l->steps, RT_LEDGER_STEPS, l->n_steps, h.n_steps);
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        at = unroll(at, l->marks[p], sizeof *l->marks[p], RT_LEDGER_MARKS, l->n_marks[p], h.n_marks[p]);
    BASE_ASSERT(at == data + total);
    *bytes = total;
    return data;
}

enum st rt_ledger_unpack(const void *data, size_t bytes, struct rt_ledger_report *report, struct err *e)
{
    const struct rt_ledger_head *h = data;
    if (bytes < sizeof *h)
        return err_set(e, ST_INVALID, "a ledger of %zu bytes", bytes);
    if (h->n_ranks < 1 || h->n_ranks > COMM_MAX_RANKS || h->rank >= h->n_ranks || h->n_steps > RT_LEDGER_STEPS || h->n_steps > h->all_steps)
        return err_set(e, ST_INVALID, "a ledger of rank %u of %u with %u steps", h->rank, h->n_ranks, h->n_steps);
    size_t wanted = sizeof *h + h->n_steps * sizeof *report->steps;
    for (int p = 0; p < RT_LEDGER_PHASES; p++) {
        if (h->n_marks[p] > RT_LEDGER_MARKS || h->n_marks[p] > h->all_marks[p])
            return err_set(e, ST_INVALID, "a ledger of rank %u with %u marks", h->rank, h->n_marks[p]);
        wanted += h->n_marks[p] * sizeof *report->marks[p];
    }
    if (bytes != wanted)
        return err_set(e, ST_INVALID, "the ledger of rank %u has %zu bytes instead of %zu", h->rank, bytes, wanted);
    const struct rt_ledger_step *steps = (const struct rt_ledger_step *)(h + 1);
    const struct rt_ledger_mark *marks = (const struct rt_ledger_mark *)(steps + h->n_steps);
    struct rt_ledger_report r = {.head = h, .steps = steps, .marks = {marks, marks + h->n_marks[0]}};
    for (uint32_t i = 0; i < h->n_steps; i++)
        if (steps[i].phase >= RT_LEDGER_PHASES)
            return err_set(e, ST_INVALID, "the ledger of rank %u has a step of phase %u", h->rank, steps[i].phase);
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        for (uint32_t i = 0; i < h->n_marks[p]; i++)
            if (r.marks[p][i].kind >= RT_LEDGER_KINDS || r.marks[p][i].op >= RT_LEDGER_OPS)
                return err_set(e, ST_INVALID, "the ledger of rank %u has a mark of kind %u, step %u", h->rank, r.marks[p][i].kind, r.marks[p][i].op);
    *report = r;
    return ST_OK;
}

const struct rt_ledger_mark *rt_ledger_marks_of(const struct rt_ledger_report *report, const struct rt_ledger_step *step)
{
    const uint64_t all = report->head->all_marks[step->phase], first = all - report->head->n_marks[step->phase];
    if (step->n_marks == 0 || step->first_mark < first || step->first_mark > all || step->n_marks > all - step->first_mark)
        return NULL;
    return report->marks[step->phase] + (step->first_mark - first);
}
