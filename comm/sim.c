/* The simulated world: tasks, time and faults.
 *
 * The one idea: a task runs alone until it calls its system. Each call costs it some time; where something else is due before that time has come, the task gives way to it, else it just
 * goes on. So a run is one sequence of events in the order of simulated time, in one real thread, and nothing but the seed decides it.
 *
 * Death. A killed task's stack holds memory that only its own code can give back. So it is not abandoned: from then on all of its calls fail at once, its clock is far in the future, its
 * sockets are closed already, and it is called to its end without that anybody sees it. The same way a run is unwound that has failed. */
#include "comm/sim.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/rng.h"
#include "comm/sim_priv.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define IF_ASAN(x) x
#else
#define IF_ASAN(x)
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define IF_TSAN(x) x
#else
#define IF_TSAN(x)
#endif

#define NEVER UINT64_MAX
#define MAX_CALLS 4000000u     /* of a run that ends some day */
#define MAX_DEAD_CALLS 100000u /* of a task after its death */
#define MAX_RUN_NS (600 * BASE_NS_PER_S)
#define MAX_CALL_NS (2 * BASE_NS_PER_MS) /* of a slow task: thousands of them must fit into a deadline */
#define LATENCY_NS 20000u                /* from being woken to running, at most */
/* A dead task's clock begins here, and each look costs a second: every deadline is over. */
#define DEAD_NS (1ull << 60)

/* splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): drawn from at every call, so it shall cost nothing. */
uint64_t sim_random(struct comm_sim *s, uint64_t bound) {
    uint64_t x = s->random += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    return bound <= UINT32_MAX ? (x >> 32) * bound >> 32 : x % bound;
}
bool sim_chance(struct comm_sim *s, uint32_t permille) { return permille && sim_random(s, 1000) < permille; }

/* ---- what happened --------------------------------------------------------------------------------------------------------------------------------- */

static void digest(struct comm_sim *s, uint64_t x) { s->digest = (s->digest ^ x) * 0x100000001b3ull + (s->digest >> 29); }

void comm_sim_note(const struct comm_sim *s, int i_task, const char *format, ...) {
    if (!s->o->log) return;
    fprintf(s->o->log, "%14.6f ms  ", (double)s->now_ns / (double)BASE_NS_PER_MS);
    if (i_task >= 0) fprintf(s->o->log, "%s %d: ", i_task < s->o->n_ranks ? "rank" : "task", i_task);
    va_list args;
    va_start(args, format);
    vfprintf(s->o->log, format, args);
    va_end(args);
    fputc('\n', s->o->log);
}

void sim_fail(struct comm_sim *s, const char *format, ...) {
    if (s->failed.text[0]) return;
    va_list args;
    va_start(args, format);
    vsnprintf(s->failed.text, sizeof s->failed.text, format, args);
    va_end(args);
    SIM_NOTE(s, -1, "FAILED: %s", s->failed.text);
}

/* ---- events to come -------------------------------------------------------------------------------------------------------------------------------- */

static bool is_before(const struct sim_event *a, const struct sim_event *b) {
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->i_event < b->i_event;
}

void sim_at(struct comm_sim *s, uint64_t at_ns, enum sim_event_kind kind, int object, uint32_t generation, int detail) {
    BASE_ASSERT(s->n_heap < SIM_MAX_EVENTS);
    const struct sim_event e = {.at_ns = at_ns, .i_event = s->n_events++, .kind = kind, .generation = generation, .object = object, .detail = detail};
    int i = s->n_heap++;
    for (; i > 0 && is_before(&e, &s->events[(i - 1) / 2]); i = (i - 1) / 2) s->events[i] = s->events[(i - 1) / 2];
    s->events[i] = e;
}

static struct sim_event take_first(struct comm_sim *s) {
    const struct sim_event first = s->events[0], last = s->events[--s->n_heap];
    int i = 0;
    for (int child; (child = 2 * i + 1) < s->n_heap; i = child) {
        if (child + 1 < s->n_heap && is_before(&s->events[child + 1], &s->events[child])) child++;
        if (!is_before(&s->events[child], &last)) break;
        s->events[i] = s->events[child];
    }
    s->events[i] = last;
    return first;
}

/* ---- tasks ------------------------------------------------------------------------------------------------------------------------------------------ */

static void wake_at(struct sim_task *t, uint64_t at_ns) {
    t->wake_ns = at_ns;
    t->sim->due_ns[t->i] = t->ended || t->frozen ? NEVER : at_ns;
}

static _Thread_local struct sim_task *starting; /* a new stack begins without arguments */

static void run_task(struct comm_sim *s, struct sim_task *t) {
    starting = t;
    IF_ASAN(__sanitizer_start_switch_fiber(&s->main_fake_stack, t->stack, COMM_SIM_STACK_BYTES);)
    IF_TSAN(__tsan_switch_to_fiber(t->fiber, 0);)
    sim_switch(&s->main, t->at);
    IF_ASAN(__sanitizer_finish_switch_fiber(s->main_fake_stack, NULL, NULL);)
}

static void give_way(struct sim_task *t) {
    struct comm_sim *s = t->sim;
    IF_ASAN(__sanitizer_start_switch_fiber(t->ended ? NULL : &t->fake_stack, s->main_stack, s->main_stack_bytes);)
    IF_TSAN(__tsan_switch_to_fiber(s->main_fiber, 0);)
    sim_switch(&t->at, s->main);
    IF_ASAN(__sanitizer_finish_switch_fiber(t->fake_stack, &s->main_stack, &s->main_stack_bytes);)
}

static void task_main(void) {
    struct sim_task *t = starting;
    struct comm_sim *s = t->sim;
    IF_ASAN(__sanitizer_finish_switch_fiber(NULL, &s->main_stack, &s->main_stack_bytes);)
    s->o->task(s->o->context, s, t->i);
    t->ended = true;
    wake_at(t, NEVER);
    s->n_ended++;
    SIM_NOTE(s, t->i, "has ended");
    if (s->o->ended && !t->dead && !s->is_over) s->o->ended(s->o->context, s, t->i);
    give_way(t);
}

/* The first task to go on; NULL: none will. */
static struct sim_task *next_task(struct comm_sim *s) {
    int first = 0;
    for (int i = 1; i < s->n_tasks; i++)
        if (s->due_ns[i] < s->due_ns[first]) first = i;
    return s->due_ns[first] == NEVER ? NULL : &s->tasks[first];
}

/* A dead task may not go on for ever. */
static void count_dead_call(struct sim_task *t) {
    if (++t->n_dead_calls < MAX_DEAD_CALLS) return;
    sim_fail(t->sim, "task %d waits although each of its calls fails", t->i);
    t->ended = true; /* what it holds is lost */
    wake_at(t, NEVER);
    t->sim->n_ended++;
    give_way(t);
}

static void fire_due(struct comm_sim *s);

/* False: the task is dead. */
static bool pass(struct sim_task *t, uint64_t ns) {
    struct comm_sim *s = t->sim;
    if (t->dead) {
        count_dead_call(t);
        return false;
    }
    s->n_calls++;
    fire_due(s);
    const uint64_t until_ns = s->now_ns + ns;
    if (!t->dead && !t->frozen && (!s->n_heap || s->events[0].at_ns > until_ns)) {
        const struct sim_task *next = next_task(s); /* not itself: who runs is due never */
        if (!next || next->wake_ns > until_ns) {
            s->now_ns = until_ns;
            return true;
        }
    }
    if (!t->dead) {
        wake_at(t, until_ns);
        give_way(t);
    }
    return !t->dead;
}

static uint64_t slowed(const struct sim_task *t, uint64_t ns) { return ns * (t->sim->w->slow[t->i] ? t->sim->w->slow[t->i] : 1); }

bool sim_spend(struct sim_task *t, uint64_t ns) {
    const uint64_t cost_ns = 1 + sim_random(t->sim, ns), slow_ns = slowed(t, cost_ns);
    return pass(t, slow_ns <= MAX_CALL_NS ? slow_ns : cost_ns > MAX_CALL_NS ? cost_ns : MAX_CALL_NS);
}

void sim_wait(struct sim_task *t, uint64_t until_ns) {
    struct comm_sim *s = t->sim;
    if (t->dead) return;
    if (until_ns > s->now_ns && until_ns - s->now_ns > COMM_SIM_MAX_WAIT_NS) {
        sim_fail(s, "task %d waits without a deadline, or for %.0f s", t->i, (double)(until_ns - s->now_ns) / (double)BASE_NS_PER_S);
        return;
    }
    wake_at(t, until_ns);
    give_way(t);
}

void sim_wake(struct sim_task *t) {
    struct comm_sim *s = t->sim;
    const uint64_t at_ns = s->now_ns + sim_random(s, LATENCY_NS);
    if (!t->ended && at_ns < t->wake_ns) wake_at(t, at_ns);
}

/* ---- faults ----------------------------------------------------------------------------------------------------------------------------------------- */

const char *comm_sim_fault_name(enum comm_sim_fault_kind kind) {
    static const char *const names[] = {"stall", "partition", "one-way partition", "reset", "kill", "power off", "freeze", "no memory"};
    return (unsigned)kind < COMM_SIM_N_FAULTS ? names[kind] : "?";
}

bool comm_sim_is_harmless(const struct comm_sim_fault *f) {
    return (f->kind == COMM_SIM_STALL || f->kind == COMM_SIM_PARTITION || f->kind == COMM_SIM_ONE_WAY || f->kind == COMM_SIM_FREEZE) && f->for_ns &&
           f->for_ns <= COMM_SIM_SHORT_NS;
}

static void die(struct comm_sim *s, struct sim_task *t, bool silently) {
    if (t->dead || t->ended) return;
    if (silently && !t->off) {
        t->off = true;
        for (int i = 0; i < s->n_tasks; i++) {
            if (i == t->i) continue;
            sim_net_block(s, t->i, i);
            s->blocked[t->i][i]++;
            s->blocked[i][t->i]++;
        }
    }
    sim_net_close_all(s, t->i, silently);
    t->dead = true;
    t->frozen = false;
    wake_at(t, s->now_ns);
    if (s->o->ended && !s->is_over) s->o->ended(s->o->context, s, t->i);
    if (t->i >= s->o->n_ranks) return;
    s->boot_failed = true;
    for (int i = 0; i < s->n_tasks; i++)
        if (s->tasks[i].in_boot) sim_wake(&s->tasks[i]);
}

static void block(struct comm_sim *s, int from, int to, int by) {
    if (by > 0) sim_net_block(s, from, to);
    s->blocked[from][to] += by;
    if (!s->blocked[from][to]) sim_net_healed(s, from, to);
}

static void fire(struct comm_sim *s, struct comm_sim_fault *f, int i_fault) {
    struct sim_task *t = &s->tasks[f->a];
    f->at_call = NEVER;
    if (t->ended || t->dead || (f->kind <= COMM_SIM_RESET && (s->tasks[f->b].ended || s->tasks[f->b].dead))) return;
    f->fired_ns = s->now_ns ? s->now_ns : 1;
    const bool of_pair = f->kind <= COMM_SIM_RESET;
    if (of_pair)
        SIM_NOTE(s, -1, "FAULT: %s, %d and %d, for %.3f ms", comm_sim_fault_name(f->kind), f->a, f->b, (double)f->for_ns / (double)BASE_NS_PER_MS);
    else
        SIM_NOTE(s, -1, "FAULT: %s of %d, for %.3f ms", comm_sim_fault_name(f->kind), f->a, (double)f->for_ns / (double)BASE_NS_PER_MS);
    switch (f->kind) {
    case COMM_SIM_STALL: s->stalled_ns[f->a][f->b] = s->now_ns + f->for_ns; return;
    case COMM_SIM_PARTITION: block(s, f->b, f->a, 1); /* fall through */
    case COMM_SIM_ONE_WAY: block(s, f->a, f->b, 1); break;
    case COMM_SIM_RESET:
        if (!sim_net_reset(s, f->a, f->b)) f->fired_ns = 0;
        return;
    case COMM_SIM_KILL: die(s, t, false); return;
    case COMM_SIM_POWER_OFF: die(s, t, true); return;
    case COMM_SIM_FREEZE:
        t->frozen = true;
        t->for_good |= !f->for_ns;
        wake_at(t, t->wake_ns);
        break;
    case COMM_SIM_NO_MEMORY:
    case COMM_SIM_N_FAULTS: return;
    }
    if (f->for_ns) sim_at(s, s->now_ns + f->for_ns, SIM_HEAL, i_fault, 0, 0);
}

static void fire_due(struct comm_sim *s) {
    for (int i = 0; i < s->w->n_faults; i++)
        if (s->n_calls >= s->w->faults[i].at_call && s->w->faults[i].kind != COMM_SIM_NO_MEMORY) fire(s, &s->w->faults[i], i);
}

static void heal(struct comm_sim *s, const struct comm_sim_fault *f) {
    SIM_NOTE(s, -1, "healed: %s of %d", comm_sim_fault_name(f->kind), f->a);
    if (f->kind == COMM_SIM_FREEZE) {
        struct sim_task *t = &s->tasks[f->a];
        t->frozen = t->for_good && !t->dead;
        wake_at(t, t->wake_ns < s->now_ns ? s->now_ns : t->wake_ns);
        return;
    }
    block(s, f->a, f->b, -1);
    if (f->kind == COMM_SIM_PARTITION) block(s, f->b, f->a, -1);
}

/* Every power of two equally often, so that the first calls get as much of it as the many later ones. In integers: the same on every host. */
static uint64_t log_uniform(struct base_rng *rng, uint64_t least, uint64_t most) {
    uint32_t n_doublings = 0;
    while (least << (n_doublings + 1) <= most) n_doublings++;
    const uint64_t from = least << base_rng_below(rng, n_doublings + 1), x = from + (((uint64_t)base_rng_u32(rng) * from) >> 32);
    return x < most ? x : most;
}

void comm_sim_draw(uint64_t seed, int n_ranks, struct comm_sim_weather *w) {
    struct base_rng rng;
    base_rng_init(&rng, seed ^ 0x57656174686572ull);
    const bool is_calm = base_rng_below(&rng, 4) == 0;
    *w = (struct comm_sim_weather){0};
    w->delay_ns = log_uniform(&rng, 1000, is_calm ? 100000 : 5000000);
    w->call_ns = log_uniform(&rng, 200, 3000);
    w->yield_ns = log_uniform(&rng, 20000, 1000000);
    w->window_bytes = is_calm ? COMM_SIM_MAX_WINDOW_BYTES : (size_t)1 << (8 + base_rng_below(&rng, 9));
    static const uint32_t rates[] = {0, 20, 100, 400};
    static const uint32_t quarters[] = {0, 1, 4, 16};
    w->jitter_ns = w->delay_ns * quarters[is_calm ? 1 : base_rng_below(&rng, 4)] / 4;
    /* Who waits looks again and again: more often than this would only cost time. */
    w->call_ns += (w->delay_ns + w->jitter_ns) / 1000;
    w->yield_ns += (w->delay_ns + w->jitter_ns) / 8;
    w->short_permille = is_calm ? 0 : rates[base_rng_below(&rng, 4)];
    w->interrupt_permille = is_calm ? 0 : rates[base_rng_below(&rng, 3)] / 4;

    const uint32_t kind_of_day = base_rng_below(&rng, 12);
    const int n_harmless = is_calm || kind_of_day < 4 ? 0 : 1 + (int)base_rng_below(&rng, 3);
    const int n_harmful = kind_of_day < 7 || n_ranks < 2 ? 0 : kind_of_day < 11 ? 1 : 2;
    for (int i = 0; i < n_harmless + n_harmful && n_ranks > 1; i++) {
        struct comm_sim_fault *f = &w->faults[w->n_faults++];
        f->a = (int)base_rng_below(&rng, (uint32_t)n_ranks);
        f->b = (f->a + 1 + (int)base_rng_below(&rng, (uint32_t)n_ranks - 1)) % n_ranks;
        f->at_call = log_uniform(&rng, 1, 6000);
        if (i < n_harmless) {
            static const enum comm_sim_fault_kind kinds[] = {COMM_SIM_STALL, COMM_SIM_PARTITION, COMM_SIM_ONE_WAY, COMM_SIM_FREEZE};
            f->kind = kinds[base_rng_below(&rng, 4)];
            f->for_ns = log_uniform(&rng, 100000, COMM_SIM_SHORT_NS);
        } else {
            static const enum comm_sim_fault_kind kinds[] = {COMM_SIM_KILL,   COMM_SIM_KILL,    COMM_SIM_KILL,      COMM_SIM_KILL,
                                                             COMM_SIM_RESET,  COMM_SIM_RESET,   COMM_SIM_POWER_OFF, COMM_SIM_FREEZE,
                                                             COMM_SIM_FREEZE, COMM_SIM_ONE_WAY, COMM_SIM_PARTITION, COMM_SIM_NO_MEMORY};
            f->kind = kinds[base_rng_below(&rng, 12)];
        }
    }
    if (!is_calm && base_rng_below(&rng, 4) == 0) {
        const uint32_t factor = (uint32_t)log_uniform(&rng, 2, 300);
        w->slow[base_rng_below(&rng, (uint32_t)n_ranks)] = factor;
    }
    static const uint32_t losses[] = {0, 0, 20, 100};
    w->loss_permille = is_calm ? 0 : losses[base_rng_below(&rng, 4)];
    w->rto_ns = is_calm || base_rng_below(&rng, 3) ? BASE_NS_PER_S / 5 : log_uniform(&rng, BASE_NS_PER_S / 5, 8 * BASE_NS_PER_S); /* whose round trips were slow once waits longer */
}

/* ---- clock, sleep, boot ----------------------------------------------------------------------------------------------------------------------------- */

static uint64_t task_now_ns(void *context) {
    struct sim_task *t = context;
    if (sim_spend(t, t->sim->w->call_ns / 4)) return t->sim->now_ns;
    return DEAD_NS + t->n_dead_calls * BASE_NS_PER_S;
}

const struct base_clock *comm_sim_clock(struct comm_sim *s, int i_task) { return &s->tasks[i_task].clock; }
struct comm_os *comm_sim_os(struct comm_sim *s, int i_task) {
    return &s->tasks[i_task].os;
}
const struct comm_boot *comm_sim_boot(struct comm_sim *s, int rank) { return &s->tasks[rank].boot; }
uint64_t comm_sim_now_ns(const struct comm_sim *s) { return s->now_ns; }
bool comm_sim_is_dead(const struct comm_sim *s, int i_task) { return s->tasks[i_task].dead; }
bool comm_sim_is_frozen(const struct comm_sim *s, int i_task) { return s->tasks[i_task].frozen; }
bool comm_sim_will_thaw(const struct comm_sim *s, int i_task) { return !s->tasks[i_task].for_good; }
bool comm_sim_has_ended(const struct comm_sim *s, int i_task) { return s->tasks[i_task].ended; }

void comm_sim_work(struct comm_sim *s, int i_task, uint64_t ns) { pass(&s->tasks[i_task], slowed(&s->tasks[i_task], 1 + sim_random(s, ns))); }
void comm_sim_sleep(struct comm_sim *s, int i_task, uint64_t ns) {
    struct sim_task *t = &s->tasks[i_task];
    if (sim_spend(t, s->w->call_ns)) sim_wait(t, s->now_ns + ns);
}
void comm_sim_kill(struct comm_sim *s, int i_task) {
    if (s->tasks[i_task].dead || s->tasks[i_task].ended) return;
    SIM_NOTE(s, i_task, "is killed");
    die(s, &s->tasks[i_task], false);
}

static enum st boot_allgather(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    struct sim_task *t = context;
    struct comm_sim *s = t->sim;
    const int round = t->n_rounds++;
    BASE_ASSERT(round < COMM_SIM_MAX_ROUNDS && bytes <= COMM_BOOT_MAX_BYTES);
    if (!sim_spend(t, s->w->call_ns)) return err_set(e, ST_PEER_LOST, "boot: this rank is dead");
    if (bytes) memcpy(s->records[round][t->i], mine, bytes);
    s->n_told[round]++;
    SIM_NOTE(s, t->i, "boot, round %d: %d of %d ranks", round, s->n_told[round], s->o->n_ranks);
    for (int i = 0; i < s->o->n_ranks; i++)
        if (s->tasks[i].in_boot) sim_wake(&s->tasks[i]);
    t->in_boot = true;
    while (s->n_told[round] < s->o->n_ranks && !s->boot_failed && !t->dead && s->now_ns < deadline_ns) sim_wait(t, deadline_ns);
    t->in_boot = false;
    if (t->dead || s->boot_failed) return err_set(e, ST_PEER_LOST, "boot: a rank is gone");
    if (s->n_told[round] < s->o->n_ranks) return err_set(e, ST_TIMEOUT, "boot: %d of %d ranks came", s->n_told[round], s->o->n_ranks);
    for (int r = 0; r < s->o->n_ranks; r++) memcpy((unsigned char *)all + (size_t)r * bytes, s->records[round][r], bytes);
    return ST_OK;
}

/* ---- a run ------------------------------------------------------------------------------------------------------------------------------------------- */

enum st comm_sim_create(struct comm_sim **created, struct err *e) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), rings_bytes = (size_t)SIM_MAX_SOCKETS * COMM_SIM_MAX_WINDOW_BYTES;
    struct comm_sim *s = calloc(1, sizeof *s);
    if (!s) return err_set(e, ST_NO_MEMORY, "sim: no memory");
    s->stack_stride = COMM_SIM_STACK_BYTES + page;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    s->rings = mmap(NULL, rings_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    s->stacks = mmap(NULL, COMM_SIM_MAX_TASKS * s->stack_stride, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (s->rings == MAP_FAILED || s->stacks == MAP_FAILED) {
        if (s->rings != MAP_FAILED) munmap(s->rings, rings_bytes);
        free(s);
        return err_set(e, ST_NO_MEMORY, "sim: no memory");
    }
    for (int i = 0; i < COMM_SIM_MAX_TASKS; i++) { /* a page below each that nobody may touch */
        mprotect(s->stacks + (size_t)i * s->stack_stride, page, PROT_NONE);
        s->tasks[i].stack = s->stacks + (size_t)i * s->stack_stride + page;
        IF_TSAN(s->tasks[i].fiber = __tsan_create_fiber(0);)
    }
    *created = s;
    return ST_OK;
}

void comm_sim_destroy(struct comm_sim *s) {
    if (!s) return;
    for (int i = 0; i < COMM_SIM_MAX_TASKS; i++) {
        IF_TSAN(__tsan_destroy_fiber(s->tasks[i].fiber);)
    }
    munmap(s->rings, (size_t)SIM_MAX_SOCKETS * COMM_SIM_MAX_WINDOW_BYTES);
    munmap(s->stacks, COMM_SIM_MAX_TASKS * s->stack_stride);
    free(s);
}

static void start_task(struct comm_sim *s, int i) {
    struct sim_task *t = &s->tasks[i];
    *t = (struct sim_task){.sim = s, .i = i, .stack = t->stack, .fiber = t->fiber, .clock = {task_now_ns, t}, .boot = {boot_allgather, t}};
    sim_net_fill(&t->os);
    wake_at(t, sim_random(s, LATENCY_NS));
    t->at = sim_stack_init(t->stack, COMM_SIM_STACK_BYTES, task_main);
}

static void reset(struct comm_sim *s, const struct comm_sim_options *o) {
    s->o = o;
    s->w = o->weather;
    s->random = o->seed;
    s->now_ns = s->n_calls = s->n_events = 0;
    s->digest = 14695981039346656037ull;
    s->failed.text[0] = 0;
    s->is_over = false;
    s->n_heap = s->n_ended = 0;
    s->n_tasks = o->n_tasks;
    memset(s->blocked, 0, sizeof s->blocked);
    memset(s->block_epoch, 0, sizeof s->block_epoch);
    memset(s->stalled_ns, 0, sizeof s->stalled_ns);
    memset(s->n_told, 0, sizeof s->n_told);
    s->boot_failed = false;
    s->mapped_bytes = 0;
    sim_net_clear(s);
    for (int i = 0; i < s->w->n_faults; i++) s->w->faults[i].fired_ns = 0;
    for (int i = 0; i < s->n_tasks; i++) start_task(s, i);
}

/* The ranks have ended, and what is left are frozen tasks: nobody will thaw them any more. Or it has failed. All of them are called to their ends. */
static void unwind(struct comm_sim *s) {
    s->is_over = true;
    for (int i = 0; i < s->n_tasks; i++) die(s, &s->tasks[i], true);
}

static bool only_frozen_are_left(const struct comm_sim *s) {
    for (int i = 0; i < s->n_tasks; i++)
        if (!s->tasks[i].ended && !(s->tasks[i].frozen && s->tasks[i].for_good)) return false;
    return true;
}

static void check_end(struct comm_sim *s) {
    for (int i = 0; i < s->n_sockets; i++)
        if (s->sockets[i].state != SOCKET_FREE && !s->sockets[i].closed) sim_fail(s, "rank %d left socket %d open", s->sockets[i].owner, i);
    if (s->mapped_bytes) sim_fail(s, "%zu bytes were not given back", s->mapped_bytes);
}

enum st comm_sim_run(struct comm_sim *s, const struct comm_sim_options *o, struct comm_sim_report *report, struct err *e) {
    BASE_ASSERT(o->n_ranks >= 1 && o->n_ranks <= o->n_tasks && o->n_tasks <= COMM_SIM_MAX_TASKS);
    reset(s, o);
    IF_TSAN(s->main_fiber = __tsan_get_current_fiber();)
    if (o->prepare) o->prepare(o->context, s);
    while (s->n_ended < s->n_tasks) {
        if (s->n_calls > MAX_CALLS)
            sim_fail(s, "does not end: %llu calls, %.1f s", (unsigned long long)s->n_calls, (double)s->now_ns / (double)BASE_NS_PER_S);
        if (s->now_ns > MAX_RUN_NS) sim_fail(s, "does not end: %.1f s", (double)s->now_ns / (double)BASE_NS_PER_S);
        struct sim_task *t = next_task(s);
        const bool has_event = s->n_heap > 0 && (!t || s->events[0].at_ns <= t->wake_ns);
        if (!has_event && !t && !only_frozen_are_left(s)) sim_fail(s, "all tasks wait for each other");
        if (!s->is_over && (s->failed.text[0] || only_frozen_are_left(s))) {
            unwind(s);
            continue;
        }
        if (has_event) {
            const struct sim_event next = take_first(s);
            if (next.at_ns > s->now_ns) s->now_ns = next.at_ns;
            digest(s, s->now_ns ^ (uint64_t)next.kind << 56 ^ (uint64_t)next.object << 48);
            if (next.kind == SIM_HEAL)
                heal(s, &s->w->faults[next.object]);
            else
                sim_net_event(s, &next);
        } else if (t) {
            if (t->wake_ns > s->now_ns) s->now_ns = t->wake_ns;
            digest(s, s->now_ns ^ (uint64_t)t->i << 48);
            wake_at(t, NEVER);
            run_task(s, t);
        }
    }
    if (!s->failed.text[0]) check_end(s);
    if (report) *report = (struct comm_sim_report){.end_ns = s->now_ns, .n_calls = s->n_calls, .n_events = s->n_events, .digest = s->digest};
    return s->failed.text[0] ? err_set(e, ST_INVALID, "%s", s->failed.text) : ST_OK;
}
