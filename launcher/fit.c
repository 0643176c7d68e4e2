/* A described machine, and the plan of a model on it. */
#include "launcher/fit.h"

#include <stdlib.h>
#include <string.h>

/* ---- machines ------------------------------------------------------------------------------------------------------------------------------------------------ */

void launch_fit_machine_resize(struct launch_fit_machine *m, int n_boxes)
{
    m->n_ranks = m->n_ranks / m->n_boxes * n_boxes;
    m->n_boxes = n_boxes;
    if (n_boxes > 1)
        snprintf(m->on, sizeof m->on, "%dx%.100s", n_boxes, m->name);
    else
        snprintf(m->on, sizeof m->on, "%.100s", m->name);
}

/* Of one box. */
static void read_memory(const struct topo_description *d, struct launch_fit_machine *m)
{
    const struct topo_accelerator *a = d->n_accelerators ? &d->accelerators[0] : NULL;
    const uint64_t safe = d->memory.usable_bytes ? d->memory.usable_bytes : d->memory.bytes;
    m->library_bytes = a ? a->library_bytes : 0;
    if (a && !d->memory.unified) {
        m->available_bytes = a->memory_bytes;
        m->memory = "the accelerator's memory";
    } else {
        m->available_bytes = safe / (uint64_t)m->n_ranks;
        m->memory_bytes = d->memory.usable_bytes ? d->memory.bytes / (uint64_t)m->n_ranks : 0;
        m->memory = d->memory.usable_bytes ? "memory that can be taken in safety" : "memory";
    }
}

enum st launch_fit_machine_read(const char *on, struct launch_fit_machine *m, struct err *e)
{
    const char *name = on;
    char *end;
    const long n = strtol(on, &end, 10);
    const bool counted = end != on && *end == 'x' && end[1];
    if (counted && (n < 1 || n > ORDER_MAX_RANKS))
        return err_set(e, ST_INVALID, "--on %s: from 1 to %d boxes", on, ORDER_MAX_RANKS);
    if (counted)
        name = end + 1;
    struct topo_description *d;
    enum st st = topo_description_open(name, &d, e);
    if (st)
        return st;
    *m = (struct launch_fit_machine){.n_boxes = 1, .n_ranks = d->n_accelerators ? d->n_accelerators : 1, .n_threads = topo_machine_cpus(d->machine)};
    m->n_threads = m->n_threads / m->n_ranks < 1 ? 1 : m->n_threads / m->n_ranks;
    snprintf(m->name, sizeof m->name, "%s", name);
    snprintf(m->title, sizeof m->title, "%s", d->title[0] ? d->title : d->name);
    read_memory(d, m);
    topo_description_close(d);
    if (!m->available_bytes)
        return err_set(e, ST_INVALID, "--on %s: its description does not say how much memory it has", on);
    if ((counted ? n : 1) * m->n_ranks > ORDER_MAX_RANKS)
        return err_set(e, ST_INVALID, "--on %s: %ld ranks, at most %d are possible", on, (counted ? n : 1) * m->n_ranks, ORDER_MAX_RANKS);
    launch_fit_machine_resize(m, counted ? (int)n : 1);
    return ST_OK;
}

/* ---- a plan ------------------------------------------------------------------------------------------------------------------------------------------------- */

static void count_token(struct launch_fit *f, const struct rt_sizes *sizes)
{
    const struct part_plan *plan = f->plan;
    const int64_t blocks = (f->settings.context + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const struct part_model *m = plan->ranks[r];
        const struct part_program *const programs[] = {&m->main, &m->head};
        uint64_t n = 0;
        for (int p = 0; p < 2; p++)
            for (int i = 0; i < programs[p]->n_steps; i++)
                if (programs[p]->steps[i].op == PART_EXCHANGE && programs[p]->steps[i].exchange != PART_EXCHANGE_SCORE && programs[p]->steps[i].exchange != PART_EXCHANGE_LOGITS) {
                    f->sent_bytes[r] += part_exchange_bytes(plan, &programs[p]->steps[i], r, 1);
                    n++;
                }
        f->n_exchanges = n;
        for (int i = 0; i < m->n_caches; i++)
            f->cache_bytes[r] += (uint64_t)blocks * sizes->base.kv_block_bytes(&sizes->base, &m->caches[i]);
    }
}

/* By blocks, of which each sequence may leave its last one unfilled; the rank with the least room decides. */
static void find_max_context(struct launch_fit *f)
{
    const struct part_plan *plan = f->plan;
    int64_t most = INT64_MAX;
    for (int r = 0; r < plan->options.n_ranks; r++) {
        const uint64_t kv = plan->budget[r].kv, fixed = f->total_bytes[r] - kv, available = f->machine->available_bytes;
        if (fixed > available) {
            most = 0;
            break;
        }
        if (!kv)
            continue; /* a rank without heads */
        const int64_t n_blocks = (int64_t)((available - fixed) / (kv / plan->n_kv_blocks)), spare = f->settings.max_sequences - 1;
        const int64_t context = n_blocks > spare ? (n_blocks - spare) * KERN_KV_BLOCK / f->settings.max_sequences : 0;
        most = context < most ? context : most;
    }
    f->max_context = most == INT64_MAX ? 0 : most / KERN_KV_BLOCK * KERN_KV_BLOCK;
}

enum st launch_fit_create(const struct part_model *whole, const struct launch_options *options, int max_sequences, const struct launch_fit_machine *machine, struct launch_fit **out, struct err *e)
{
    struct launch_fit *f = calloc(1, sizeof *f);
    if (!f)
        return err_set(e, ST_NO_MEMORY, "no memory for a plan");
    f->machine = machine;
    const struct launch_needs needs = {.max_sequences = max_sequences, .context = options->context};
    launch_choose(options, &needs, &whole->config, &f->settings);
    f->settings.n_threads = machine->n_threads;
    uint32_t shares[ORDER_MAX_RANKS];
    int n_shares = 0;
    const struct kern_backend *backend;
    enum st st = kern_select(NULL, &backend, e);
    if (!st && options->split)
        st = launch_parse_split(options->split, shares, &n_shares, e);
    if (!st && options->split && n_shares != machine->n_ranks)
        st = err_set(e, ST_INVALID, "--split %s has %d shares, %s is %d ranks", options->split, n_shares, machine->on, machine->n_ranks);
    if (!st) {
        struct rt_sizes sizes;
        rt_sizes_init(&sizes, &f->settings, backend, launch_hosts_carrier(machine->n_boxes, machine->n_ranks, false));
        const struct part_plan_options plan = rt_plan_options(&f->settings, machine->n_ranks, options->split ? shares : NULL);
        st = part_plan_create(whole, &plan, &sizes.base, &f->plan, e);
        if (!st)
            count_token(f, &sizes);
    }
    if (st) {
        launch_fit_destroy(f);
        return st;
    }
    f->fits = true;
    for (int r = 0; r < machine->n_ranks; r++) {
        f->total_bytes[r] = f->plan->budget[r].total + launch_reserve_bytes(whole, machine->n_ranks) + machine->library_bytes;
        f->fits = f->fits && f->total_bytes[r] <= machine->available_bytes;
    }
    find_max_context(f);
    *out = f;
    return ST_OK;
}

void launch_fit_destroy(struct launch_fit *f)
{
    if (!f)
        return;
    part_plan_destroy(f->plan);
    free(f);
}
