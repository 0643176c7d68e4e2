/* A rank's life. The one idea: between two steps every rank applies the same events, because rank 0 tells with each exchange how many it has issued.
 *
 * Rank 0 takes frames from the front end and issues each as an event: it posts it to the other ranks and keeps it. Events issued before step s began are applied by all ranks before
 * step s + 1. While nobody has work there are no exchanges: then every rank applies events one by one, as they come, until there is work. */
#include "runtime/rank.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/tick.h"
#include "runtime/bandwidth.h"
#include "runtime/device.h"
#include "runtime/step.h"
#include "runtime/wire.h"
#include "topologies/memory.h"

/* A peer that computes a large chunk on a slow core is late, not dead. The agent sees deaths, and who is frozen; this ends the wait where all ranks wait, or where the agent is gone. */
#define SILENCE_NS (60 * BASE_NS_PER_S)
#define SLICE_NS BASE_NS_PER_S
#define HELLO_WAIT_NS (60 * BASE_NS_PER_S)
#define BANDWIDTH_NS (60 * BASE_NS_PER_MS)

/* Events that rank 0 issued and has not applied itself yet: copies, in order. */
struct event {
    struct event *next;
    enum rt_frame_kind kind;
    size_t bytes;
    unsigned char payload[];
};

struct rank {
    const struct rt_rank_options *o;
    const struct kern_backend *backend;
    const struct base_clock *clock;
    struct checkpoint *ck;
    struct part_model *whole;
    struct part_plan *plan;
    struct base_pool *pool;
    struct comm *comm;
    struct arena weights_arena, small_arena;
    struct rt_weights weights;
    struct rt_exec *exec;
    struct rt_schedule schedule;
    uint64_t waited_ns; /* in exchanges */
    struct rt_row_result *results;

    struct rt_inbox inbox;        /* rank 0 */
    struct event *first, **last;  /* rank 0: issued, not yet applied */
    struct event *held;           /* rank 0: the ring to the others was full; goes first as soon as it is not */
    uint32_t n_issued;            /* rank 0 */
    uint32_t n_applied;
    unsigned char *event;         /* others: where an event is received */
    uint64_t load_ns;
    struct comm_link_totals link_before; /* with a ledger: what is not the steps' */
};

static struct rt_vitals *own_vitals(const struct rank *r) { return r->o->vitals ? &r->o->vitals[r->o->rank] : NULL; }

static void sign_of_life(const struct rank *r, enum rt_phase phase)
{
    struct rt_vitals *v = own_vitals(r);
    if (!v)
        return;
    atomic_store_explicit(&v->phase, (int)phase, memory_order_relaxed);
    atomic_store_explicit(&v->step, r->schedule.n_steps, memory_order_relaxed);
    atomic_fetch_add_explicit(&v->tick, 1, memory_order_release);
}

/* While a rank waits for others it owes no progress, but shows that it waits. */
static void waits(const struct rank *r, int count) { rt_vitals_wait(own_vitals(r), count); }

/* Of one step: so that others can tell who works and who waits. */
static void tell_times(struct rank *r, uint64_t step_ns)
{
    struct rt_vitals *v = own_vitals(r);
    if (!v)
        return;
    atomic_fetch_add_explicit(&v->step_ns, step_ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&v->waited_ns, r->waited_ns, memory_order_relaxed);
    r->waited_ns = 0;
}

const char *rt_phase_name(enum rt_phase phase)
{
    static const char *const names[] = {"starting", "loading", "waiting for work", "in a step", "telling the front end", "leaving"};
    return (unsigned)phase < sizeof names / sizeof *names ? names[phase] : "?";
}

/* Rank 0: a frame to the front end. That may take long, where a user paused it or what reads its output: the others shall know (see is_held_up). */
static enum st tell(const struct rank *r, enum rt_frame_kind kind, const struct iovec *pieces, int n_pieces, struct err *e)
{
    struct rt_vitals *v = own_vitals(r);
    const int phase = v ? atomic_exchange_explicit(&v->phase, RT_PHASE_TELLING, memory_order_relaxed) : 0;
    const enum st st = rt_frame_sendv(r->o->front_fd, kind, pieces, n_pieces, e);
    if (v)
        atomic_store_explicit(&v->phase, phase, memory_order_relaxed);
    return st;
}
static enum st tell_one(const struct rank *r, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e)
{
    const struct iovec v = {(void *)(uintptr_t)payload, bytes};
    return tell(r, kind, &v, 1, e);
}

/* A rank 0 whose front end is slow to take frames is late, not lost. The front end's end would end it at once. */
static bool is_held_up(const struct rank *r)
{
    return r->o->vitals && atomic_load_explicit(&r->o->vitals[0].phase, memory_order_relaxed) == RT_PHASE_TELLING;
}

static uint64_t progress_of_others(const struct rank *r)
{
    uint64_t sum = 0;
    for (int i = 0; i < r->o->n_ranks && r->o->vitals; i++)
        sum += i == r->o->rank ? 0 : rt_vitals_progress(&r->o->vitals[i]);
    return sum;
}

/* The exchange that was begun; as long as some other rank gets on with its work, or is held up by the front end. */
static enum st finish_exchange(void *context, const void **views, struct comm_header *headers, struct err *e)
{
    struct rank *r = context;
    const uint64_t begun = base_now_ns(r->clock);
    uint64_t now = begun, since = now, progress = 0;
    int n_slices = 1;
    waits(r, n_slices);
    enum st st;
    while ((st = comm_allgather_finish(r->comm, now + SLICE_NS, views, headers, e)) == ST_TIMEOUT) {
        waits(r, ++n_slices);
        const uint64_t newer = progress_of_others(r);
        now = base_now_ns(r->clock);
        if (newer != progress || is_held_up(r)) {
            progress = newer;
            since = now;
        } else if (now - since >= SILENCE_NS)
            break;
    }
    waits(r, 0);
    r->waited_ns += base_now_ns(r->clock) - begun;
    return st;
}

/* Until all ranks are here, however long they take to load. */
static enum st meet_all(struct rank *r, struct err *e)
{
    const size_t nothing[COMM_MAX_RANKS] = {0};
    const struct comm_header header = {0};
    const void *views[COMM_MAX_RANKS];
    const enum st st = comm_allgather_start(r->comm, NULL, nothing, &header, e);
    return st ? st : finish_exchange(r, views, NULL, e);
}

/* ---- setting up --------------------------------------------------------------------------------------------------------------------------------------- */

static enum st make_plan(struct rank *r, struct err *e)
{
    enum st st = kern_select(r->o->settings.device, &r->backend, e);
    if (!st)
        st = ck_open(r->o->model, &r->ck, e);
    if (!st)
        st = part_model_create(r->ck, &r->o->settings.model, &r->whole, e);
    if (!st)
        st = part_model_make_smaller(r->whole, &r->o->settings.smaller, e);
    if (!st)
        st = rt_device_check(r->backend, r->whole, &r->o->settings, e);
    if (st)
        return st;
    struct rt_sizes sizes;
    rt_sizes_init(&sizes, &r->o->settings, r->backend, r->o->backend);
    const struct part_plan_options options = rt_plan_options(&r->o->settings, r->o->n_ranks, r->o->shares);
    return part_plan_create(r->whole, &options, &sizes.base, &r->plan, e);
}

static enum st meet(struct rank *r, struct err *e)
{
    if (r->o->n_ranks == 1)
        return ST_OK;
    const struct comm_setup setup = rt_wire_setup(r->o, r->plan->max_exchange_bytes, r->clock);
    const struct comm_identity mine = {.plan = r->plan->digest, .model = ck_digest(r->ck), .settings = rt_settings_digest(&r->o->settings)};
    size_t divided_from;
    waits(r, RT_WAITS_BLINDLY);
    enum st st = comm_open(&setup, &r->comm, e);
    if (!st)
        st = rt_wire_meet(r->comm, r->o, r->backend, mine, base_now_ns(r->clock) + HELLO_WAIT_NS, &divided_from, e);
    waits(r, 0);
    return st;
}

static void count_ticks(void *arg, int i_thread, int n_threads)
{
    (void)n_threads;
    struct rt_vitals *v = arg;
    base_tick_at = &v->threads[i_thread % RT_VITALS_COUNTERS].tick;
}

static void on_progress(void *context, uint64_t done, uint64_t total)
{
    (void)done;
    (void)total;
    sign_of_life(context, RT_PHASE_LOADING);
}

static enum st on_logits(void *context, const struct rt_row *row, const float *const *pieces, const uint64_t *n, int n_pieces, struct err *e);

static enum st load(struct rank *r, struct err *e)
{
    const struct rt_settings *s = &r->o->settings;
    const struct part_model *m = r->plan->ranks[r->o->rank];
    const uint64_t start = base_now_ns(r->clock);
    const struct base_pool_options pool = {.n_threads = s->n_threads, .spin_us = s->spin_us, .os_cpus = s->os_cpus};
    enum st st = base_pool_create(&pool, &r->pool, e);
    if (!st && own_vitals(r))
        base_pool_run(r->pool, count_ticks, own_vitals(r));
    if (!st)
        st = base_arena_init(&r->weights_arena, "weights", r->plan->budget[r->o->rank].weights + 64, e);
    if (!st)
        st = base_arena_init(&r->small_arena, "process", 0, e);
    if (!st)
        st = rt_weights_load(m, r->backend, s->accurate, r->pool, &r->weights_arena, &r->small_arena, on_progress, r, &r->weights, e);
    if (!st)
        st = rt_schedule_init(&r->schedule, &r->small_arena, s->max_sequences, s->chunk, s->context, r->whole->config.vocab, (int64_t)r->plan->n_kv_blocks, e);
    if (st)
        return st;
    r->results = base_arena_array(&r->small_arena, (size_t)s->chunk, sizeof *r->results);
    r->event = base_arena_alloc(&r->small_arena, COMM_EVENT_MAX_BYTES);
    if (!r->results || !r->event)
        return err_set(e, ST_NO_MEMORY, "no memory for a step's results");
    const struct rt_exec_options exec = {
        .plan = r->plan,
        .rank = r->o->rank,
        .settings = s,
        .backend = r->backend,
        .weights = &r->weights,
        .pool = r->pool,
        .comm = r->comm,
        .clock = r->clock,
        .finish = finish_exchange,
        .on_logits = r->o->rank == 0 ? on_logits : NULL,
        .context = r,
    };
    st = rt_exec_create(&exec, &r->exec, e);
    base_arena_freeze(&r->weights_arena);
    base_arena_freeze(&r->small_arena);
    r->load_ns = base_now_ns(r->clock) - start;
    return st;
}

static void tear_down(struct rank *r)
{
    while (r->first) {
        struct event *next = r->first->next;
        free(r->first);
        r->first = next;
    }
    free(r->held);
    rt_inbox_release(&r->inbox);
    rt_exec_destroy(r->exec);
    comm_close(r->comm);
    base_pool_destroy(r->pool);
    base_tick_at = NULL;
    rt_weights_close(&r->weights); /* whose table lies in the next */
    base_arena_release(&r->small_arena);
    base_arena_release(&r->weights_arena);
    part_plan_destroy(r->plan);
    part_model_destroy(r->whole);
    ck_close(r->ck);
}

/* ---- events ------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st copy_event(enum rt_frame_kind kind, const void *payload, size_t bytes, struct event **event, struct err *e)
{
    struct event *copy = malloc(sizeof *copy + bytes);
    if (!copy)
        return err_set(e, ST_NO_MEMORY, "no memory for an event of %zu bytes", bytes);
    *copy = (struct event){.kind = kind, .bytes = bytes};
    if (bytes)
        memcpy(copy->payload, payload, bytes);
    *event = copy;
    return ST_OK;
}

/* Rank 0: the held event to the others (first, so that they have it when an exchange says so) and to ourselves. ST_AGAIN: the others are behind; it stays held. Never waits:
 * they may be waiting for us in an exchange. */
static enum st issue_held(struct rank *r, struct err *e)
{
    struct event *event = r->held;
    if (!event)
        return ST_OK;
    if (r->comm) {
        const uint32_t word = (uint32_t)event->kind;
        memcpy(r->event, &word, sizeof word);
        memcpy(r->event + sizeof word, event->payload, event->bytes);
        const enum st st = comm_event_post(r->comm, r->event, sizeof word + event->bytes, e);
        if (st)
            return st;
    }
    r->held = NULL;
    *r->last = event;
    r->last = &event->next;
    r->n_issued++;
    return ST_OK;
}

static enum st refuse(const struct rank *r, const void *payload, size_t bytes, struct err *e)
{
    struct rt_done done = {.reason = RT_REFUSED};
    if (bytes >= sizeof done.request)
        memcpy(&done.request, payload, sizeof done.request);
    return tell_one(r, RT_DONE, &done, sizeof done, e);
}

/* Every rank refuses the same events in the same way; rank 0 tells the front end. */
static enum st apply(struct rank *r, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e)
{
    r->n_applied++;
    struct err why = {""};
    if (rt_schedule_event(&r->schedule, kind, payload, bytes, &why) == ST_OK)
        return ST_OK;
    if (r->o->rank != 0)
        return ST_OK;
    LOG_WARNING("rank", "refused: %s", why.text);
    return refuse(r, payload, bytes, e);
}

/* Takes what the front end has sent and issues it. wait: until something came, a second at most. */
static enum st listen_front(struct rank *r, bool wait, struct err *e)
{
    for (;;) {
        enum st st = issue_held(r, e);
        if (st)
            return st == ST_AGAIN ? ST_OK : st;
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        st = rt_inbox_next(&r->inbox, wait ? 1000 : 0, &kind, &payload, &bytes, e);
        if (st == ST_AGAIN)
            return ST_OK;
        if (st == ST_PEER_LOST)
            return err_set(e, ST_CANCELLED, "the front end is gone");
        if (!st && bytes + sizeof(uint32_t) > COMM_EVENT_MAX_BYTES)
            st = err_set(e, ST_INVALID, "a frame of %zu bytes from the front end", bytes);
        if (!st)
            st = copy_event(kind, payload, bytes, &r->held, e);
        if (st)
            return st;
        wait = false;
    }
}

/* The next event, in order. Rank 0 has it in its list, others receive it (and wait, in slices, as long as rank 0 lives). */
static enum st apply_next(struct rank *r, struct err *e)
{
    if (r->o->rank == 0) {
        struct event *event = r->first;
        BASE_ASSERT(event != NULL);
        r->first = event->next;
        if (!r->first)
            r->last = &r->first;
        const enum st st = apply(r, event->kind, event->payload, event->bytes, e);
        free(event);
        return st;
    }
    size_t bytes;
    enum st st;
    while ((st = comm_event_next(r->comm, r->event, COMM_EVENT_MAX_BYTES, &bytes, base_now_ns(r->clock) + BASE_NS_PER_S, e)) == ST_AGAIN)
        sign_of_life(r, RT_PHASE_IDLE);
    if (st)
        return st;
    uint32_t kind;
    if (bytes < sizeof kind)
        return err_set(e, ST_INVALID, "an event of %zu bytes", bytes);
    memcpy(&kind, r->event, sizeof kind);
    return apply(r, (enum rt_frame_kind)kind, r->event + sizeof kind, bytes - sizeof kind, e);
}

/* ---- steps -------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st on_logits(void *context, const struct rt_row *row, const float *const *pieces, const uint64_t *n, int n_pieces, struct err *e)
{
    const struct rank *r = context;
    struct rt_logits_head head = {r->schedule.sequences[row->slot].request.request, row->position};
    struct iovec v[COMM_MAX_RANKS + 1] = {{&head, sizeof head}};
    for (int i = 0; i < n_pieces; i++)
        v[i + 1] = (struct iovec){(void *)(uintptr_t)pieces[i], n[i] * sizeof(float)};
    return tell(r, RT_LOGITS, v, n_pieces + 1, e);
}

/* Rank 0: what came out of a step, to the front end. */
static enum st report(const struct rank *r, struct err *e)
{
    const struct rt_desc *d = &r->schedule.desc;
    for (int i = 0; i < d->n_rows; i++) {
        const struct rt_row *row = &d->rows[i];
        const uint32_t request = r->schedule.sequences[row->slot].request.request;
        enum st st = ST_OK;
        if (row->wants & RT_ROW_SCORE)
            st = tell_one(r, RT_SCORE, &(struct rt_score){request, row->position, r->results[i].nll}, sizeof(struct rt_score), e);
        if (!st && row->wants & RT_ROW_SAMPLE)
            st = tell_one(r, RT_TOKEN, &(struct rt_token){request, r->results[i].id}, sizeof(struct rt_token), e);
        if (st)
            return st;
    }
    return ST_OK;
}

static enum st free_done(struct rank *r, struct err *e)
{
    for (int i = 0; i < r->schedule.n_slots; i++) {
        const struct rt_sequence *q = &r->schedule.sequences[i];
        if (q->state != RT_SEQ_DONE)
            continue;
        if (r->o->rank == 0) {
            const uint64_t first = q->first_ns ? q->first_ns : q->last_ns;
            const struct rt_done done = {
                .request = q->request.request,
                .reason = q->reason,
                .n_prompt = q->request.n_prompt,
                .n_new = q->n_new,
                .prefill_ns = first - q->start_ns,
                .decode_ns = q->last_ns - first,
            };
            const enum st st = tell_one(r, RT_DONE, &done, sizeof done, e);
            if (st)
                return st;
        }
        rt_schedule_free(&r->schedule, i);
    }
    return ST_OK;
}

static enum st run_step(struct rank *r, struct err *e)
{
    if (r->o->rank == 0) {
        const enum st st = listen_front(r, false, e);
        if (st)
            return st;
    }
    const uint64_t start = base_now_ns(r->clock);
    rt_schedule_next(&r->schedule);
    sign_of_life(r, RT_PHASE_STEP);
    const struct comm_header mine = {.step = r->schedule.n_steps, .n_events = r->o->rank == 0 ? r->n_issued : 0, .token_hash = r->schedule.token_hash};
    struct comm_header root;
    enum st st = rt_exec_run(r->exec, &r->schedule.desc, &mine, &root, r->results, e);
    if (st)
        return st;
    tell_times(r, base_now_ns(r->clock) - start);
    for (int i = 0; i < r->schedule.desc.n_rows; i++)
        if (r->schedule.desc.rows[i].wants & RT_ROW_SAMPLE && r->results[i].id < 0)
            return err_set(e, ST_INVALID, "no finite logit at position %u: the weights or the cache hold NaN or infinity", r->schedule.desc.rows[i].position);
    if (r->o->rank == 0)
        st = report(r, e);
    rt_schedule_finish(&r->schedule, r->results, start, base_now_ns(r->clock));
    if (!st)
        st = free_done(r, e);
    while (!st && r->n_applied != root.n_events) /* what rank 0 had issued when this step began; with one rank, root is our own header */
        st = apply_next(r, e);
    return st ? st : free_done(r, e);
}

static enum st step(struct rank *r, struct err *e)
{
    struct rt_ledger *l = rt_exec_ledger(r->exec);
    if (l)
        rt_ledger_begin(l);
    const enum st st = run_step(r, e);
    if (l && !st)
        rt_ledger_end(l, r->schedule.n_steps);
    return st;
}

static enum st serve(struct rank *r, struct err *e)
{
    for (;;) {
        enum st st = ST_OK;
        if (rt_schedule_has_work(&r->schedule))
            st = step(r, e);
        else if (r->schedule.stopping)
            return ST_OK;
        else {
            sign_of_life(r, RT_PHASE_IDLE);
            if (r->o->rank == 0 && !r->first)
                st = listen_front(r, true, e);
            if (!st && (r->o->rank != 0 || r->first))
                st = apply_next(r, e);
            if (!st)
                st = free_done(r, e);
        }
        if (st)
            return st;
    }
}

static enum st say_ready(const struct rank *r, struct err *e)
{
    if (r->o->rank != 0)
        return ST_OK;
    const struct rt_ready ready = {.load_ns = r->load_ns, .weight_bytes = r->plan->budget[0].weights};
    return tell_one(r, RT_READY, &ready, sizeof ready, e);
}

/* ---- the ledger --------------------------------------------------------------------------------------------------------------------------------------- */

/* All ranks at once, so that it is what they can have together. */
static enum st measure(struct rank *r, struct err *e)
{
    struct rt_ledger *l = rt_exec_ledger(r->exec);
    if (!l)
        return ST_OK;
    l->read_bytes_per_s = rt_bandwidth_measure(r->pool, r->clock, rt_bandwidth_bytes(r->o->n_ranks), BANDWIDTH_NS);
    const enum st st = r->comm ? meet_all(r, e) : ST_OK;
    if (r->comm)
        comm_link_query(r->comm, &r->link_before);
    return st;
}

static void *pack_ledger(const struct rank *r, size_t *bytes)
{
    struct comm_link_totals link = {0};
    if (r->comm)
        comm_link_query(r->comm, &link);
    link.n_exchanges -= r->link_before.n_exchanges;
    link.bytes -= r->link_before.bytes;
    link.link_ns -= r->link_before.link_ns;
    link.held_ns -= r->link_before.held_ns;
    link.late_ns -= r->link_before.late_ns;
    link.n_late -= r->link_before.n_late;
    return rt_ledger_pack(rt_exec_ledger(r->exec), r->o->rank, r->o->n_ranks, r->o->link && r->comm ? &link : NULL, bytes);
}

/* All ranks' ledgers to rank 0, in pieces that fit an exchange; the first piece of each says how long it is. all[r]: malloc'ed on rank 0, also after an error. */
static enum st gather_ledgers(struct rank *r, const unsigned char *mine, size_t my_bytes, void **all, size_t *all_bytes, struct err *e)
{
    const struct comm_header header = {.step = r->schedule.n_steps};
    const size_t piece = r->plan->max_exchange_bytes;
    const uint64_t told = my_bytes;
    size_t bytes[COMM_MAX_RANKS], most = 0;
    const void *views[COMM_MAX_RANKS];
    for (int i = 0; i < r->o->n_ranks; i++)
        bytes[i] = sizeof told;
    enum st st = comm_allgather_start(r->comm, &told, bytes, &header, e);
    if (!st)
        st = finish_exchange(r, views, NULL, e);
    for (int i = 0; i < r->o->n_ranks && !st; i++) {
        uint64_t n;
        memcpy(&n, views[i], sizeof n);
        all_bytes[i] = (size_t)n;
        most = n > most ? (size_t)n : most;
        if (r->o->rank == 0 && (n > RT_FRAME_MAX || !(all[i] = malloc(all_bytes[i] + 1))))
            st = err_set(e, ST_NO_MEMORY, "no memory for the ledger of rank %d: %zu bytes", i, all_bytes[i]);
    }
    for (size_t at = 0; at < most && !st; at += piece) {
        for (int i = 0; i < r->o->n_ranks; i++) {
            const size_t left = at < all_bytes[i] ? all_bytes[i] - at : 0;
            bytes[i] = left < piece ? left : piece;
        }
        st = comm_allgather_start(r->comm, bytes[r->o->rank] ? mine + at : NULL, bytes, &header, e);
        if (!st)
            st = finish_exchange(r, views, NULL, e);
        for (int i = 0; i < r->o->n_ranks && !st && r->o->rank == 0; i++)
            if (bytes[i])
                memcpy((unsigned char *)all[i] + at, views[i], bytes[i]);
    }
    return st;
}

static enum st say_ledger(struct rank *r, struct err *e)
{
    if (!rt_exec_ledger(r->exec))
        return ST_OK;
    void *all[COMM_MAX_RANKS] = {NULL};
    size_t all_bytes[COMM_MAX_RANKS], my_bytes = 0;
    void *mine = pack_ledger(r, &my_bytes);
    enum st st = mine ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for the ledger");
    if (!st && r->comm)
        st = gather_ledgers(r, mine, my_bytes, all, all_bytes, e);
    if (!st && !r->comm)
        st = tell_one(r, RT_LEDGER, mine, my_bytes, e);
    for (int i = 0; i < r->o->n_ranks && r->comm && r->o->rank == 0; i++) {
        if (!st)
            st = tell_one(r, RT_LEDGER, all[i], all_bytes[i], e);
        free(all[i]);
    }
    free(mine);
    return st;
}

/* Every rank chooses alike; rank 0 counts and tells. */
static enum st say_experts(struct rank *r, struct err *e)
{
    const uint64_t *counts = rt_exec_expert_counts(r->exec);
    const struct rt_experts_head head = {(uint32_t)r->whole->config.n_layers, (uint32_t)r->whole->config.moe.n_experts};
    const size_t bytes = (size_t)head.n_layers * head.n_experts * sizeof *counts;
    if (!counts)
        return ST_OK;
    unsigned char *frame = malloc(sizeof head + bytes);
    if (!frame)
        return err_set(e, ST_NO_MEMORY, "no memory to tell which experts were chosen");
    memcpy(frame, &head, sizeof head);
    memcpy(frame + sizeof head, counts, bytes);
    const enum st st = tell_one(r, RT_EXPERTS, frame, sizeof head + bytes, e);
    free(frame);
    return st;
}

enum st rt_rank_run(const struct rt_rank_options *options, struct err *e)
{
    struct rank r = {.o = options, .clock = base_clock_real()};
    r.last = &r.first;
    base_log_set_rank(options->rank);
    rt_inbox_init(&r.inbox, options->front_fd);
    sign_of_life(&r, RT_PHASE_STARTING);
    enum st st = topo_memory_bind(options->numa, options->n_numa, NULL, e);
    if (!st)
        st = make_plan(&r, e);
    if (!st)
        st = meet(&r, e);
    if (!st)
        st = load(&r, e);
    if (!st && r.comm) /* nobody takes work before all have loaded */
        st = meet_all(&r, e);
    if (!st)
        st = measure(&r, e);
    if (!st)
        st = say_ready(&r, e);
    if (!st)
        st = serve(&r, e);
    if (!st)
        st = say_ledger(&r, e);
    if (!st)
        st = say_experts(&r, e);
    sign_of_life(&r, RT_PHASE_LEAVING);
    if (!st && r.comm) /* nobody closes while the event that ends it all is still on its way to another: that one would take it for a loss */
        st = meet_all(&r, e);
    if (st && e)
        rt_vitals_fail(own_vitals(&r), st, e);
    if (st && options->rank == 0 && st != ST_CANCELLED)
        (void)rt_frame_send(options->front_fd, RT_FAILED, e->text, strlen(e->text), NULL);
    tear_down(&r);
    return st;
}
