/* One object, described in docs/ledger.md: nanoseconds and bytes, as counted. */
#include "base/build_id.h"
#include "base/json.h"
#include "launcher/ledger_priv.h"

static json_t *number(uint64_t n) { return json_integer((json_int_t)n); }

static void set_kinds(json_t *o, const uint64_t *ns)
{
    char key[32];
    for (int k = 0; k < RT_LEDGER_KINDS; k++) {
        snprintf(key, sizeof key, "%s_ns", rt_ledger_kind_name((enum rt_ledger_kind)k));
        json_object_set_new(o, key, number(ns[k]));
    }
}

static json_t *sums(const struct rt_ledger_sum *s)
{
    json_t *o = json_object(), *ops = json_object();
    const struct {
        const char *key;
        uint64_t value;
    } all[] = {
        {"steps", s->n_steps}, {"tokens", s->n_tokens}, {"rows", s->n_rows}, {"step_ns", s->step_ns}, {"weight_bytes", s->bytes.weights}, {"stored_weight_bytes", s->bytes.stored},
        {"cache_bytes", s->bytes.cache}, {"sent_bytes", s->bytes.sent}, {"received_bytes", s->bytes.received}, {"exchanges", s->n_exchanges}, {"sums", s->n_sums},
        {"vectors", s->n_vectors}, {"expert_bytes", s->bytes.experts}, {"expert_layers", s->n_expert_layers}, {"experts_touched", s->n_touched},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        json_object_set_new(o, all[i].key, number(all[i].value));
    set_kinds(o, s->kind_ns);
    for (int op = 0; op < RT_LEDGER_OPS; op++)
        if (s->op_calls[op] || s->op_ns[op]) {
            json_t *one = json_object();
            json_object_set_new(one, "calls", number(s->op_calls[op]));
            json_object_set_new(one, "ns", number(s->op_ns[op]));
            json_object_set_new(ops, op == RT_LEDGER_NO_OP ? "outside" : launch_ledger_op_name(op), one);
        }
    json_object_set_new(o, "ops", ops);
    return o;
}

/* Columns: an array of each quantity, entry i of each belongs to step i. */
static json_t *steps(const struct rt_ledger_report *r, uint64_t zero_ns)
{
    static const char *const names[] = {"step",         "start_ns",            "duration_ns", "weights_ns", "attention_ns",   "wire_ns",   "waiting_ns", "host_ns", "tokens", "rows",
                                        "weight_bytes", "stored_weight_bytes", "cache_bytes", "sent_bytes", "received_bytes", "exchanges", "sums",       "vectors", "decode"};
    enum { N = sizeof names / sizeof *names };
    _Static_assert(RT_LEDGER_KINDS == 5, "their names stand above");
    json_t *columns[N], *o = json_object();
    for (int c = 0; c < N; c++)
        json_object_set_new(o, names[c], columns[c] = json_array());
    for (uint32_t i = 0; i < r->head->n_steps; i++) {
        const struct rt_ledger_step *s = &r->steps[i];
        const uint64_t values[N] = {s->step,         s->start_ns - zero_ns, s->duration_ns, s->kind_ns[0],  s->kind_ns[1],     s->kind_ns[2],  s->kind_ns[3], s->kind_ns[4], s->n_tokens, s->n_rows,
                                    s->bytes.weights, s->bytes.stored,      s->bytes.cache, s->bytes.sent, s->bytes.received, s->n_exchanges, s->n_sums,     s->n_vectors,  s->phase == RT_LEDGER_DECODE};
        for (int c = 0; c < N; c++)
            json_array_append_new(columns[c], number(values[c]));
    }
    return o;
}

static json_t *trace(const struct rt_ledger_report *r, uint64_t zero_ns)
{
    json_t *all = json_array();
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        for (uint32_t i = 0; i < r->head->n_marks[p]; i++) {
            const struct rt_ledger_mark *m = &r->marks[p][i];
            json_t *one = json_array();
            json_array_append_new(one, json_integer((json_int_t)(m->start_ns - zero_ns)));
            json_array_append_new(one, number(m->duration_ns));
            json_array_append_new(one, json_string(rt_ledger_kind_name((enum rt_ledger_kind)m->kind)));
            json_array_append_new(one, json_string(launch_ledger_op_name(m->op)));
            json_array_append_new(one, json_integer(m->layer));
            json_array_append_new(all, one);
        }
    return all;
}

static json_t *link_totals(const struct rt_ledger_head *h)
{
    json_t *o = json_object();
    json_object_set_new(o, "exchanges", number(h->link_exchanges));
    json_object_set_new(o, "bytes", number(h->link_bytes));
    json_object_set_new(o, "link_ns", number(h->link_ns));
    json_object_set_new(o, "held_ns", number(h->link_held_ns));
    json_object_set_new(o, "late_ns", number(h->link_late_ns));
    json_object_set_new(o, "late_exchanges", number(h->link_n_late));
    return o;
}

static json_t *one_rank(const struct rt_ledger_report *r, uint64_t zero_ns)
{
    json_t *o = json_object();
    json_object_set_new(o, "rank", number(r->head->rank));
    json_object_set_new(o, "read_bytes_per_s", number(r->head->read_bytes_per_s));
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        json_object_set_new(o, launch_ledger_phase_name((enum rt_ledger_phase)p), sums(&r->head->sums[p]));
    if (r->head->has_link)
        json_object_set_new(o, "link", link_totals(r->head));
    json_object_set_new(o, "steps", steps(r, zero_ns));
    json_object_set_new(o, "steps_left_out", number(r->head->all_steps - r->head->n_steps));
    json_object_set_new(o, "trace", trace(r, zero_ns));
    return o;
}

static json_t *balances(const struct launch_ledger *l)
{
    json_t *o = json_object();
    for (int p = 0; p < RT_LEDGER_PHASES; p++) {
        const struct ledger_balance b = launch_ledger_balance(l, (enum rt_ledger_phase)p);
        if (b.n_steps == 0 || l->n_ranks == 1)
            continue;
        json_t *one = json_object();
        json_object_set_new(one, "steps", number(b.n_steps));
        json_object_set_new(one, "slowest_by_mean", json_real(b.imbalance));
        json_object_set_new(one, "worst", json_real(b.worst));
        json_object_set_new(one, "slowest_rank", json_integer(b.slowest));
        json_object_set_new(one, "by", json_string(rt_ledger_kind_name(b.kind)));
        json_object_set_new(one, "excess_ns", json_real(b.excess_ns));
        json_object_set_new(o, launch_ledger_phase_name((enum rt_ledger_phase)p), one);
    }
    return o;
}

enum st launch_ledger_json(const struct launch_ledger *l, const struct launch_setup *s, FILE *out, struct err *e)
{
    uint64_t zero_ns = UINT64_MAX; /* the first thing that is told of */
    for (int r = 0; r < l->n_ranks; r++) {
        const struct rt_ledger_report *report = &l->reports[r];
        if (report->head->n_steps && report->steps[0].start_ns < zero_ns)
            zero_ns = report->steps[0].start_ns;
    }
    json_t *o = json_object(), *ranks = json_array();
    json_object_set_new(o, "version", json_string(tandem_version));
    json_object_set_new(o, "build", json_string(tandem_build_id));
    json_object_set_new(o, "model", json_string(s->whole->config.name));
    json_object_set_new(o, "kernels", json_string(s->backend->variant));
    json_object_set_new(o, "threads", json_integer(s->settings.n_threads));
    json_object_set_new(o, "layers", json_integer(s->whole->config.n_layers));
    json_object_set_new(o, "weight_bytes_per_token", number(s->plan->weight_bytes_per_token));
    json_object_set_new(o, "balance", balances(l));
    for (int r = 0; r < l->n_ranks; r++)
        json_array_append_new(ranks, one_rank(&l->reports[r], zero_ns));
    json_object_set_new(o, "ranks", ranks);
    const int failed = !o || json_dumpf(o, out, JSON_COMPACT);
    json_decref(o);
    fputc('\n', out);
    return failed && !ferror(out) ? err_set(e, ST_NO_MEMORY, "no memory for the ledger as JSON") : ST_OK;
}
