/* Supervision in the simulated world: one launcher (launcher/overseer.c) and the agents of 1 to 3 hosts (launcher/warden.c), with all that they are between: ranks that ask the PMI-1 server and
 * die, freeze, fail or lose each other; a front end that talks with rank 0, reads slowly, or leaves; ssh, which ends a moment after what it led to; and the kernel, which kills an orphan.
 *
 * The launcher is task 0, then come the agents: between these the weather's faults are drawn. Behind them are the front end, the ranks, and who tells agents what the packets between hosts
 * would (t_sim_hosts.c has these). A rank is on its agent's host, the front end is of the launcher's process, and so may an agent be: as its child, on its host. */
#include <errno.h>
#include <string.h>

#include "tests/t_sim_supervision_priv.h"

struct sim_job job;

void t_sim_job_wrong(const char *who, int i, const char *what) {
    if (!job.wrong[0])
        snprintf(job.wrong, sizeof job.wrong, "%s %d: %.200s (at %.3f ms)", who, i, what, (double)comm_sim_now_ns(job.s) / (double)MS);
}

bool t_sim_job_is_cut(int a, int b, uint64_t *since_ns) {
    for (int i = 0; i < job.weather.n_faults; i++) {
        const struct comm_sim_fault *f = &job.weather.faults[i];
        if (!f->fired_ns || (f->for_ns && now() >= f->fired_ns + f->for_ns)) continue;
        const bool is_there = (f->kind == COMM_SIM_PARTITION && ((f->a == a && f->b == b) || (f->a == b && f->b == a))) ||
                              (f->kind == COMM_SIM_ONE_WAY && f->a == a && f->b == b) || (f->kind == COMM_SIM_POWER_OFF && (f->a == a || f->a == b));
        if (is_there && since_ns) *since_ns = f->fired_ns;
        if (is_there) return true;
    }
    return false;
}

/* ---- what inherits, and what the kernel does ---------------------------------------------------------------------------------------------------------------- */

int t_sim_job_task(const struct comm_os *os) {
    for (int i = 0; i < job.n_tasks; i++)
        if (os == comm_sim_os(job.s, i)) return i;
    return 0;
}

static void on_end(void *context, struct comm_sim *s, int task) {
    (void)context;
    if (task == LAUNCHER) {
        if (!is_dead(task)) return;
        comm_sim_kill(s, job.front_task);
        for (int i = 0; i < job.n_agents; i++)
            if (job.agents[i].is_local) comm_sim_kill(s, FIRST_AGENT + i);
    } else if (task < FIRST_AGENT + job.n_agents) {
        struct sim_agent *a = &job.agents[task - FIRST_AGENT];
        a->end_ns = now();
        for (int r = a->first; r < a->first + a->n_ranks; r++) comm_sim_kill(s, job.ranks[r].task);
    } else if (task != job.front_task && task != job.news_task) {
        struct sim_rank *k = &job.ranks[task - job.ranks[0].task];
        struct sim_agent *a = &job.agents[k->agent];
        k->has_ended = true;
        k->end_ns = now();
        k->status = is_dead(task) ? 9 : k->status;
        if (a->is_open && !has_gone(a->task)) comm_sim_ring(s, a->warden.signal_fd);
    }
}

/* Ctrl-Z: the launcher is told, unless that is what is planted. */
static void press_stop_key(void) {
    const uint64_t for_ns = job.pause_for_ns;
    job.pause_ns = 0;
    job.pause_pressed_ns = now();
    if (job.planted != T_SIM_SUPERVISION_UNTOLD_PAUSE) {
        comm_sim_ring(job.s, job.pause_bell);
        return;
    }
    job.paused_until_ns = now() + for_ns;
    comm_sim_sleep(job.s, LAUNCHER, for_ns);
}

static void stand_still(void *context) {
    (void)context;
    const struct comm_os *os = comm_sim_os(job.s, LAUNCHER);
    char bytes[8];
    /* whatever the weather: an eventfd is read at once */
    for (int i = 0; i < 64 && os->recv(os, job.pause_bell, bytes, sizeof bytes) <= 0; i++) continue;
    if (is_dead(LAUNCHER)) return;
    comm_sim_note(job.s, LAUNCHER, "is stopped by its user");
    job.paused_until_ns = now() + job.pause_for_ns;
    comm_sim_sleep(job.s, LAUNCHER, job.pause_for_ns);
    job.pause_for_ns = now() - job.pause_pressed_ns; /* with the telling */
    comm_sim_note(job.s, LAUNCHER, "goes on");
}

/* A dead task shall come to its end: whatever it asks about is at its end, too. */
static int poll_once(const struct comm_os *os, struct pollfd *fds, size_t n, uint64_t timeout_ns) {
    const int task = t_sim_job_task(os);
    if (task == LAUNCHER && job.pause_ns && now() >= job.pause_ns && !is_dead(task)) press_stop_key();
    const bool for_ever = job.planted == T_SIM_SUPERVISION_NO_DEADLINE && task == LAUNCHER && job.has_story;
    const int n_ready = job.systems[task].poll(os, fds, n, for_ever ? BASE_NO_DEADLINE : timeout_ns);
    if (!is_dead(task)) return n_ready;
    for (size_t i = 0; i < n; i++) fds[i].revents = POLLERR;
    return (int)n;
}

static struct launch_life_sample look_at(int task) {
    const uint32_t slow = job.weather.slow[task];
    const bool is_agent = task < FIRST_AGENT + job.n_agents;
    if (task == LAUNCHER && now() < job.paused_until_ns) return (struct launch_life_sample){.stopped = true};
    if (comm_sim_is_frozen(job.s, task)) { /* who runs for ever, and is no rank, is not known to be frozen by its process alone */
        const bool is_busy = job.hang == 1 && !is_agent;
        return (struct launch_life_sample){.stopped = job.hang == 2, .runnable = is_busy, .cpu_ns = is_busy ? now() : 0};
    }
    return (struct launch_life_sample){.runnable = true, .cpu_ns = now() / (slow ? slow : 2)};
}

/* ---- the launcher --------------------------------------------------------------------------------------------------------------------------------------------- */

/* ssh, where it leads to an agent: ends when that does, or its connection breaks. */
static bool ssh_has_ended(const struct sim_agent *a, int *status) {
    uint64_t since_ns = 0;
    if (has_gone(a->task) && !t_sim_job_is_cut(a->task, LAUNCHER, NULL)) {
        since_ns = a->end_ns;
        *status = is_dead(a->task) ? 137 << 8 : a->status << 8;
    } else if (a->alone_ns && now() >= a->alone_ns) {
        since_ns = a->alone_ns;
        *status = 255 << 8;
    }
    for (int i = 0; i < job.weather.n_faults && !a->is_direct; i++) {
        const struct comm_sim_fault *f = &job.weather.faults[i];
        if (f->kind != COMM_SIM_RESET || !f->fired_ns || (f->a != LAUNCHER && f->b != LAUNCHER) || (f->a != a->task && f->b != a->task)) continue;
        since_ns = f->fired_ns;
        *status = 255 << 8;
    }
    return since_ns && now() >= since_ns + a->ssh_lag_ns;
}

static bool agent_has_ended(void *context, int i, int *status) {
    (void)context;
    const struct sim_agent *a = &job.agents[i];
    *status = 0;
    if (is_dead(LAUNCHER)) return true;
    if (!a->is_local) return ssh_has_ended(a, status);
    *status = is_dead(a->task) ? 9 : a->status << 8;
    return has_gone(a->task);
}
static bool look_at_agent(void *context, int i, struct launch_life_sample *sample) {
    (void)context;
    *sample = look_at(FIRST_AGENT + i);
    return !has_gone(FIRST_AGENT + i);
}
static void kill_agent(void *context, int i) {
    (void)context;
    const struct sim_agent *a = &job.agents[i];
    const bool is_reached = !t_sim_job_is_cut(LAUNCHER, a->task, NULL) && !t_sim_job_is_cut(a->task, LAUNCHER, NULL);
    if (!a->is_local) comm_sim_sleep(job.s, LAUNCHER, is_reached ? a->ssh_lag_ns + 20 * MS : LAUNCH_KILL_MS * MS);
    if (a->is_local || is_reached) comm_sim_kill(job.s, a->task);
}
static void last_words(void *context, int i, char *text, size_t bytes) {
    (void)context;
    snprintf(text, bytes, "the last words of ssh to %s", job.agents[i].host);
}
static void let_go(void *context, int i, int grace_ms) {
    (void)context;
    struct sim_agent *a = &job.agents[i];
    int status;
    const uint64_t until_ns = now() + (uint64_t)grace_ms * MS;
    if (!a->is_direct) (void)comm_sim_os(job.s, LAUNCHER)->close(comm_sim_os(job.s, LAUNCHER), job.launcher_fds[i]);
    while (!ssh_has_ended(a, &status) && now() < until_ns && !is_dead(LAUNCHER)) comm_sim_sleep(job.s, LAUNCHER, 10 * MS);
}
static void end_sending_of_launcher(void *context, int fd) {
    (void)context;
    comm_sim_end_sending(job.s, LAUNCHER, fd);
}
static void sleep_launcher(void *context, uint64_t ns) {
    (void)context;
    comm_sim_sleep(job.s, LAUNCHER, ns);
}
static void settled(void *context, const struct err *story, bool is_over) {
    (void)context;
    if (is_dead(LAUNCHER)) return;
    job.is_over |= is_over;
    if (story && job.has_story && strcmp(story->text, job.story.text) != 0) t_sim_job_wrong("launcher", 0, "a final story is followed by another one");
    if (story && !job.has_story) {
        job.has_story = true;
        job.story = *story;
        job.story_ns = now();
        comm_sim_note(job.s, LAUNCHER, "REPORTS %s", story->text);
    }
    if (!job.has_left) comm_sim_ring(job.s, job.told_bell);
}

static uint64_t half(void *context) {
    (void)context;
    return base_now_ns(job.clock) / 2;
}

static void run_launcher(void) {
    struct launch_overseer_end ends[MAX_AGENTS];
    struct launch_overseer *o;
    struct err e = {0};
    job.clock = comm_sim_clock(job.s, LAUNCHER);
    const struct base_clock slow = {half, NULL};
    for (int i = 0; i < job.n_agents; i++) {
        const struct sim_agent *a = &job.agents[i];
        ends[i] = (struct launch_overseer_end){.host = job.has_hosts ? a->host : NULL,
                                               .in_fd = job.launcher_fds[i],
                                               .out_fd = job.launcher_fds[i],
                                               .is_remote = !a->is_local,
                                               .is_direct = a->is_direct,
                                               .pid = a->is_local ? FIRST_PID + a->task : 0,
                                               .first_rank = a->first,
                                               .n_ranks = a->n_ranks};
        rt_inbox_init(&ends[i].inbox, job.launcher_fds[i]);
    }
    const struct launch_overseer_options options = {
        .ends = ends,
        .n_ends = job.n_agents,
        .front_fd = job.launcher_front_fd,
        .stop_fd = job.stop_bell,
        .pause_fd = job.pause_bell,
        .hands = {NULL, agent_has_ended, look_at_agent, kill_agent, last_words, let_go, end_sending_of_launcher, sleep_launcher, stand_still, settled},
        .os = comm_sim_os(job.s, LAUNCHER),
        .clock = job.planted == T_SIM_SUPERVISION_SLOW_CLOCK ? &slow : job.clock,
        .front_limit = job.front_limit,
    };
    if (launch_overseer_create(&options, &o, &e)) {
        t_sim_job_wrong("launcher", 0, e.text);
        return;
    }
    launch_overseer_watch(o);
    launch_overseer_end(o);
    launch_overseer_destroy(o);
    (void)options.os->close(options.os, job.stop_bell);
    (void)options.os->close(options.os, job.pause_bell);
    job.launcher_end_ns = now();
}

/* ---- an agent ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static enum launch_warden_signal take_signal(void *context) {
    struct sim_agent *a = context;
    const struct comm_os *os = comm_sim_os(job.s, a->task);
    char bytes[64];
    if (is_dead(a->task)) return LAUNCH_SIGNAL_GO;
    (void)os->recv(os, a->warden.signal_fd, bytes, sizeof bytes);
    return LAUNCH_SIGNAL_CHILD;
}
static bool reap(void *context, int *rank, int *status) {
    struct sim_agent *a = context;
    for (int r = a->first; r < a->first + a->n_ranks; r++) {
        struct sim_rank *k = &job.ranks[r];
        if (!k->has_ended || k->is_reaped || is_dead(a->task)) continue;
        if (job.planted == T_SIM_SUPERVISION_LATE_DEATHS) comm_sim_sleep(job.s, a->task, 2 * BASE_NS_PER_S);
        k->is_reaped = true;
        *rank = r;
        *status = k->status;
        return true;
    }
    return false;
}
static bool look_for_agent(void *context, pid_t pid, struct launch_life_sample *sample) {
    (void)context;
    *sample = look_at((int)pid - FIRST_PID);
    return !has_gone((int)pid - FIRST_PID);
}
static bool next_news(void *context, struct launch_pulse_news *news) {
    struct sim_agent *a = context;
    const struct comm_os *os = comm_sim_os(job.s, a->task);
    char bytes[64];
    if (a->n_taken < a->n_news) {
        *news = a->news[a->n_taken++];
        return true;
    }
    (void)os->recv(os, a->warden.news_fd, bytes, sizeof bytes);
    return false;
}
static void end_sending_of_agent(void *context, int fd) { comm_sim_end_sending(job.s, ((struct sim_agent *)context)->task, fd); }

static void run_agent(struct sim_agent *a) {
    const struct comm_os *os = comm_sim_os(job.s, a->task);
    struct launch_warden *w = &a->warden;
    struct err e = {0};
    if (job.has_pmi && !w->relays && launch_pmi_create(job.n_ranks, NULL, &w->pmi, &e)) t_sim_job_wrong("agent", a->task, e.text);
    a->status = launch_warden_watch(w);
    comm_sim_note(job.s, a->task, "ends its watch with %d: %s", a->status, w->story.text);
    (void)launch_warden_say_last(w);
    for (int r = a->first; r < a->first + a->n_ranks; r++) comm_sim_kill(job.s, job.ranks[r].task);
    if (job.planted == T_SIM_SUPERVISION_LEAKED_HEAP && w->story.text[0]) w->out = (struct launch_outbox){0};
    launch_warden_release(w);
    a->is_open = false;
    a->has_returned = !is_dead(a->task);
    (void)os->close(os, w->in_fd);
    (void)os->close(os, w->signal_fd);
    (void)os->close(os, w->news_fd);
}

/* ---- what the packets between hosts would tell --------------------------------------------------------------------------------------------------------------------- */

static bool is_lost_to(int i, int k, uint64_t *since_ns) {
    const struct sim_agent *other = &job.agents[k];
    if (is_dead(other->task)) {
        *since_ns = other->end_ns;
        return true;
    }
    if (t_sim_job_is_cut(FIRST_AGENT + i, other->task, since_ns) || t_sim_job_is_cut(other->task, FIRST_AGENT + i, since_ns)) return !other->has_returned;
    for (int f = 0; f < job.weather.n_faults; f++) {
        const struct comm_sim_fault *fault = &job.weather.faults[f];
        const bool is_over = fault->for_ns && now() >= fault->fired_ns + fault->for_ns;
        if (fault->kind != COMM_SIM_FREEZE || fault->a != other->task || !fault->fired_ns || is_over) continue;
        if (!*since_ns || fault->fired_ns < *since_ns) *since_ns = fault->fired_ns;
    }
    return *since_ns != 0;
}

static void run_news(void) {
    for (;;) {
        bool all_gone = true;
        for (int i = 0; i < job.n_agents; i++) {
            struct sim_agent *a = &job.agents[i];
            if (has_gone(a->task) || is_stuck(a->task)) continue;
            all_gone = false;
            if (comm_sim_is_frozen(job.s, a->task)) continue;
            for (int k = 0; k < job.n_agents; k++) {
                uint64_t since_ns = 0;
                if (k == i || a->is_told[k] || !a->is_open || !is_lost_to(i, k, &since_ns) || now() < since_ns + LAUNCH_PULSE_SILENCE_MS * MS) continue;
                a->is_told[k] = true;
                a->news[a->n_news++] = (struct launch_pulse_news){.is_lost = true, .host = k, .text = "nothing was heard of it"};
                comm_sim_ring(job.s, a->warden.news_fd);
            }
        }
        if (all_gone || is_dead(job.news_task)) return;
        comm_sim_sleep(job.s, job.news_task, 100 * MS);
    }
}

static void run_task(void *context, struct comm_sim *s, int task) {
    (void)context, (void)s;
    if (task == LAUNCHER)
        run_launcher();
    else if (task < FIRST_AGENT + job.n_agents)
        run_agent(&job.agents[task - FIRST_AGENT]);
    else if (task == job.front_task)
        t_sim_job_run_front();
    else if (task == job.news_task)
        run_news();
    else
        t_sim_job_run_rank(&job.ranks[task - job.ranks[0].task]);
}

static void prepare(void *context, struct comm_sim *s) {
    (void)context;
    for (int task = 0; task < job.n_tasks; task++) {
        struct comm_os *os = comm_sim_os(s, task);
        job.systems[task] = *os;
        os->poll = poll_once;
        t_sim_job_plant(os, task);
    }
    int pair[2];
    job.stop_bell = comm_sim_bell(s, LAUNCHER);
    job.pause_bell = comm_sim_bell(s, LAUNCHER);
    job.told_bell = comm_sim_bell(s, job.front_task);
    job.front_fd = job.launcher_front_fd = -1;
    if (job.has_hosts) {
        comm_sim_connect(s, job.front_task, LAUNCHER, true, pair);
        job.front_fd = pair[0];
        job.launcher_front_fd = pair[1];
    }
    for (int i = 0; i < job.n_agents; i++) {
        struct sim_agent *a = &job.agents[i];
        comm_sim_connect(s, LAUNCHER, a->task, a->is_local, pair);
        job.launcher_fds[i] = pair[0];
        a->in_fd = pair[1];
        launch_warden_init(&a->warden);
        struct launch_warden *w = &a->warden;
        w->hands = (struct launch_warden_hands){a, take_signal, reap, look_for_agent, next_news, end_sending_of_agent};
        w->os = comm_sim_os(s, a->task);
        w->clock = comm_sim_clock(s, a->task);
        w->in_fd = w->out_fd = a->in_fd;
        w->signal_fd = comm_sim_bell(s, a->task);
        w->news_fd = comm_sim_bell(s, a->task);
        rt_inbox_init(&w->control, a->in_fd);
        w->control.os = w->os;
        w->launcher = job.has_hosts ? 0 : FIRST_PID + LAUNCHER;
        w->relays = job.has_hosts;
        w->n_ranks = job.n_ranks;
        w->first = a->first;
        w->end = a->first + a->n_ranks;
        w->n_alive = a->n_ranks;
        w->vitals = a->vitals;
        w->front_limit = job.front_limit;
        a->is_open = true;
        for (int r = w->first; r < w->end; r++) {
            struct sim_rank *k = &job.ranks[r];
            w->pids[r] = FIRST_PID + k->task;
            k->pmi_fd = k->front_fd = -1;
            if (job.has_pmi) {
                comm_sim_connect(s, a->task, k->task, true, pair);
                w->pmi_fds[r] = pair[0];
                k->pmi_fd = pair[1];
            }
            if (r == 0 && job.has_hosts) {
                comm_sim_connect(s, a->task, k->task, true, pair);
                w->front_fd = pair[0];
                k->front_fd = pair[1];
            }
        }
    }
}

/* ---- a seed ---------------------------------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t log_uniform(struct base_rng *rng, uint64_t least, uint32_t n_doublings) {
    const uint64_t from = least << base_rng_below(rng, n_doublings);
    return from + base_rng_below(rng, (uint32_t)from);
}

/* The machine that the launcher shares with its child falls silent as a whole, and nothing stands between the two. */
static void fit_faults(void) {
    struct comm_sim_weather *w = &job.weather;
    int n = 0;
    for (int i = 0; i < w->n_faults; i++) {
        struct comm_sim_fault f = w->faults[i];
        const bool is_of_pair = f.kind <= COMM_SIM_RESET;
        for (int k = 0; k < job.n_agents && (is_of_pair || f.kind == COMM_SIM_POWER_OFF); k++) {
            if (!job.agents[k].is_local) continue;
            if (f.a == FIRST_AGENT + k) f.a = LAUNCHER;
            if (f.b == FIRST_AGENT + k) f.b = LAUNCHER;
        }
        if (f.kind != COMM_SIM_NO_MEMORY && (!is_of_pair || f.a != f.b)) w->faults[n++] = f;
    }
    w->n_faults = n;
}

static void draw(uint64_t seed) {
    struct base_rng rng;
    base_rng_init(&rng, seed ^ 0x5375706572ull);
    job.has_hosts = base_rng_below(&rng, 4) > 0;
    job.n_agents = job.has_hosts ? 1 + (int)base_rng_below(&rng, MAX_AGENTS) : 1;
    job.has_pmi = base_rng_below(&rng, 4) > 0;
    job.hang = (int)base_rng_below(&rng, 3);
    job.front_task = FIRST_AGENT + job.n_agents;
    int task = job.front_task + 1;
    const bool is_direct = job.n_agents > 1 && base_rng_below(&rng, 2) == 0;
    for (int i = 0; i < job.n_agents; i++) {
        struct sim_agent *a = &job.agents[i];
        a->task = FIRST_AGENT + i;
        snprintf(a->host, sizeof a->host, "spark%d", i);
        a->is_local = !job.has_hosts || (i == 0 && base_rng_below(&rng, 3) == 0);
        a->is_direct = is_direct && !a->is_local;
        a->first = job.n_ranks;
        a->n_ranks = 1 + (int)base_rng_below(&rng, RANKS_EACH);
        a->ssh_lag_ns = base_rng_below(&rng, 250) * MS;
        a->alone_ns = a->is_direct && base_rng_below(&rng, 3) == 0 ? (1 + base_rng_below(&rng, 4000)) * MS : 0;
        for (int k = 0; k < a->n_ranks; k++) {
            job.ranks[job.n_ranks].agent = i;
            job.ranks[job.n_ranks].lost_after_ns = base_rng_below(&rng, 150) * MS;
            job.ranks[job.n_ranks++].task = task++;
        }
    }
    job.news_task = task++;
    job.n_tasks = task;
    comm_sim_draw(seed, FIRST_AGENT + job.n_agents, &job.weather);
    fit_faults();
    struct comm_sim_weather *w = &job.weather;
    const size_t most = w->window_bytes * 32 < 40000 ? w->window_bytes * 32 : 40000;
    job.n_down = job.has_hosts ? base_rng_below(&rng, (uint32_t)most / 4) : 0;
    job.n_up = job.has_hosts ? base_rng_below(&rng, (uint32_t)most) : 0;
    job.front_limit = (size_t)1 << (9 + base_rng_below(&rng, 8));
    job.read_bytes = (size_t)1 << (6 + base_rng_below(&rng, 6));
    job.read_pause_ns = base_rng_below(&rng, 3) == 0 ? log_uniform(&rng, MS, 7) : 0;
    job.work_ns = base_rng_below(&rng, 10) == 0 ? 12 * BASE_NS_PER_S : log_uniform(&rng, 100 * MS, 5);
    job.leave_ns = base_rng_below(&rng, 12) == 0 ? 1 + log_uniform(&rng, 10 * MS, 8) : 0;
    while (job.read_pause_ns && job.n_up / job.read_bytes * job.read_pause_ns > 8 * BASE_NS_PER_S) job.read_bytes *= 2;
    job.starve_at = base_rng_below(&rng, 16) == 0 ? 1 + (long)base_rng_below(&rng, 40) : 0;
    if (base_rng_below(&rng, 8) == 0) {
        const bool is_long = base_rng_below(&rng, 2) == 0; /* longer than a launcher may be silent that does not say why */
        job.pause_ns = log_uniform(&rng, 10 * MS, 7);
        job.pause_for_ns = is_long ? 11 * BASE_NS_PER_S : log_uniform(&rng, 500 * MS, 5);
        if (is_long) job.work_ns = 12 * BASE_NS_PER_S;
    }
    bool is_harmless = true;
    for (int i = 0; i < w->n_faults; i++) is_harmless = is_harmless && comm_sim_is_harmless(&w->faults[i]);
    for (int i = 0; i < w->n_faults; i++) { /* who is stopped by its user may stay so for ever, and whether it is still there is not known then */
        const struct comm_sim_fault *f = &w->faults[i];
        if (!comm_sim_is_harmless(f) && (f->a == LAUNCHER || f->b == LAUNCHER) && f->kind != COMM_SIM_KILL && f->kind != COMM_SIM_RESET) job.pause_ns = 0;
    }
    if (base_rng_below(&rng, is_harmless ? 2 : 6) || w->n_faults == COMM_SIM_MAX_FAULTS) return;
    struct sim_rank *k = &job.ranks[base_rng_below(&rng, (uint32_t)job.n_ranks)];
    if (base_rng_below(&rng, 3) == 0)
        k->fail_ns = log_uniform(&rng, MS, 12);
    else
        w->faults[w->n_faults++] = (struct comm_sim_fault){
            .kind = base_rng_below(&rng, 3) ? COMM_SIM_KILL : COMM_SIM_FREEZE, .a = k->task, .b = k->task, .at_call = log_uniform(&rng, 1, 12)};
}

bool t_sim_supervision_run(struct comm_sim *s, uint64_t seed, enum t_sim_supervision_planted planted, FILE *log, struct t_sim_outcome *out) {
    struct err e = {0};
    memset(&job, 0, sizeof job);
    job.s = s;
    job.planted = planted;
    draw(seed);
    *out = (struct t_sim_outcome){.n_ranks = job.n_agents};
    const struct comm_sim_options o = {.seed = seed,
                                       .n_ranks = FIRST_AGENT + job.n_agents,
                                       .n_tasks = job.n_tasks,
                                       .weather = &job.weather,
                                       .task = run_task,
                                       .prepare = prepare,
                                       .ended = on_end,
                                       .log = log};
    const long before = t_sim_n_blocks();
    t_sim_starve(job.starve_at);
    const enum st st = comm_sim_run(s, &o, &out->report, &e);
    const long left = t_sim_n_blocks() - before;
    job.was_starved = t_sim_starve(0) == 0 && job.starve_at;
    if (st || job.wrong[0]) {
        snprintf(out->why, sizeof out->why, "%s", st ? e.text : job.wrong);
        return false;
    }
    if (!t_sim_job_check(out)) return false;
    if (left == 0 || log) return true; /* a log has a buffer */
    snprintf(out->why, sizeof out->why, "%ld blocks of heap were not given back", left);
    return false;
}
