/* Life between hosts in the simulated world: the packets and the judging of launcher/pulse.c, on 2 to 5 hosts. A fault is met by what the agents do: each task is one host's. */
#include <errno.h>
#include <string.h>

#include "base/rng.h"
#include "launcher/pulse.h"
#include "tests/t_sim_priv.h"

enum { MAX_HOSTS = 5, RANKS_EACH = 2 };
#define SILENCE_NS (LAUNCH_PULSE_SILENCE_MS * BASE_NS_PER_MS)
#define PERIOD_NS (LAUNCH_PULSE_PERIOD_MS * BASE_NS_PER_MS)
/* So much of harmless faults may be had together, and nobody may be taken as lost. */
#define GET_OVER_NS (COMM_SIM_SHORT_NS + PERIOD_NS)
#define GET_OVER_LOSSES_NS (500 * BASE_NS_PER_MS)

const char *const t_sim_hosts_planted_names[] = {
    "nothing", "a missing deadline", "packets that are read late", "packets that are not sent", "a leaked socket", "a clock that goes half as fast",
};

struct host {
    struct launch_pulse *pulse;
    struct rt_vitals vitals[MAX_HOSTS * RANKS_EACH];
    uint64_t lost_ns[MAX_HOSTS], end_ns; /* when it reported that one; 0: it did not */
    uint64_t begun_ns, read_ns;
    const struct base_clock *clock; /* the sound one */
    bool is_through;                /* it left as it should */
};

static struct {
    struct comm_sim *s;
    struct comm_sim_weather weather;
    enum t_sim_hosts_planted planted;
    int n_hosts;
    bool leaves_at_once; /* who reports ends its job then, as agents do; else goes on, as one that is slow to be told */
    uint64_t until_ns;
    struct host hosts[MAX_HOSTS];
    uint32_t ports[MAX_HOSTS][MAX_HOSTS]; /* of, to */
    int n_opened;
    struct comm_os systems[MAX_HOSTS]; /* the sound ones */
    char wrong[300];
} world;

static const uint8_t key[LAUNCH_PROBE_KEY_BYTES] = "of the simulated job";

static void wrong(int host, const char *what) {
    if (!world.wrong[0])
        snprintf(world.wrong, sizeof world.wrong, "host %d: %.200s (at %.3f ms)", host, what,
                 (double)comm_sim_now_ns(world.s) / (double)BASE_NS_PER_MS);
}

/* ---- a host ------------------------------------------------------------------------------------------------------------------------------------------------- */

static void describe_ways(int host, struct launch_ways *w) {
    *w = (struct launch_ways){.host = (uint32_t)host, .first_rank = (uint32_t)(host * RANKS_EACH), .n_ranks = RANKS_EACH};
    memcpy(w->key, key, sizeof key);
    snprintf(w->name, sizeof w->name, "spark%d", host);
    for (int i = 0; i < world.n_hosts; i++) {
        if (i == host) continue;
        struct launch_way *way = &w->list[w->n++];
        *way = (struct launch_way){
            .host = (uint32_t)i, .first_rank = (uint32_t)(i * RANKS_EACH), .n_ranks = RANKS_EACH, .own.family = AF_INET, .address.family = AF_INET};
        snprintf(way->name, sizeof way->name, "spark%d", i);
    }
}

/* What ranks do: they count. Of each rank others must see what it was, and nothing that it never was. */
static void work(struct host *h, int host) {
    for (int i = 0; i < RANKS_EACH; i++) atomic_fetch_add(&h->vitals[host * RANKS_EACH + i].tick, 1);
}

static void look_at_others(struct host *h, int host) {
    for (int r = 0; r < world.n_hosts * RANKS_EACH; r++)
        if (r / RANKS_EACH != host && rt_vitals_progress(&h->vitals[r]) > rt_vitals_progress(&world.hosts[r / RANKS_EACH].vitals[r]))
            wrong(host, "it believes that a rank of another host did more than it did");
}

static void take_news(struct host *h, int host, uint64_t now) {
    struct launch_pulse_news news;
    while (launch_pulse_next(h->pulse, &news)) {
        if (!news.is_lost) continue;
        if (news.host < 0 || news.host >= world.n_hosts || news.host == host || h->lost_ns[news.host]) {
            wrong(host, "a report about nobody, or a second one");
            continue;
        }
        h->lost_ns[news.host] = now;
        comm_sim_note(world.s, host, "REPORTS host %d: %s", news.host, news.text);
    }
}

static bool has_reported(const struct host *h) {
    for (int i = 0; i < world.n_hosts; i++)
        if (h->lost_ns[i]) return true;
    return false;
}

/* As agents do, whose launcher waits until all have told their ports. */
static bool meet(int host) {
    while (world.n_opened < world.n_hosts) {
        if (comm_sim_is_dead(world.s, host) || comm_sim_now_ns(world.s) >= world.until_ns) return false;
        comm_sim_sleep(world.s, host, BASE_NS_PER_MS);
    }
    return true;
}

static uint64_t half(void *context) { return base_now_ns(((struct host *)context)->clock) / 2; }

static void run_host(void *context, struct comm_sim *s, int host) {
    (void)context;
    struct host *h = &world.hosts[host];
    struct launch_ways ways;
    struct launch_port ports[MAX_HOSTS];
    struct err e = {0};
    describe_ways(host, &ways);
    h->clock = comm_sim_clock(s, host);
    const struct base_clock slow = {half, h};
    const struct launch_pulse_world w = {comm_sim_os(s, host), world.planted == T_SIM_HOSTS_SLOW_CLOCK && host == 0 ? &slow : h->clock};
    if (launch_pulse_open(&ways, &w, ports, &h->pulse, &e)) {
        if (!comm_sim_is_dead(s, host)) wrong(host, e.text);
        return;
    }
    for (uint32_t i = 0; i < ways.n; i++) world.ports[host][ways.list[i].host] = ports[i].beat;
    world.n_opened++;
    enum st st = meet(host) ? ST_OK : ST_CANCELLED;
    for (uint32_t i = 0; i < ways.n && !st; i++)
        ports[i] = (struct launch_port){.host = ways.list[i].host, .beat = world.ports[ways.list[i].host][host]};
    if (!st) st = launch_pulse_start(h->pulse, ports, ways.n, &e);
    h->begun_ns = comm_sim_now_ns(s);
    if (!st) launch_pulse_watch(h->pulse, h->vitals, world.n_hosts * RANKS_EACH, false);
    while (!st && comm_sim_now_ns(s) < world.until_ns && !comm_sim_is_dead(s, host) && !world.wrong[0]) {
        launch_pulse_turn(h->pulse);
        if (comm_sim_is_dead(s, host)) break;
        work(h, host);
        look_at_others(h, host);
        take_news(h, host, comm_sim_now_ns(s));
        if (world.leaves_at_once && has_reported(h)) break;
    }
    h->is_through = !st && !comm_sim_is_dead(s, host);
    h->end_ns = comm_sim_now_ns(s);
    launch_pulse_stop(h->pulse, has_reported(h) || st ? LAUNCH_BEAT_FAILED : LAUNCH_BEAT_LEFT);
}

/* ---- planted faults ------------------------------------------------------------------------------------------------------------------------------------------ */

static int host_of(const struct comm_os *os) {
    for (int i = 0; i < world.n_hosts; i++)
        if (os == comm_sim_os(world.s, i)) return i;
    return 0;
}
static int poll_for_ever(const struct comm_os *os, struct pollfd *fds, size_t n, uint64_t timeout_ns) {
    (void)timeout_ns;
    return world.systems[host_of(os)].poll(os, fds, n, BASE_NO_DEADLINE);
}
static ssize_t receive_late(const struct comm_os *os, int fd, void *data, size_t bytes) {
    struct host *h = &world.hosts[host_of(os)];
    const uint64_t now = comm_sim_now_ns(world.s);
    if (now - h->read_ns < 3 * BASE_NS_PER_S && h->read_ns) {
        errno = EAGAIN;
        return -1;
    }
    const ssize_t n = world.systems[host_of(os)].recv(os, fd, data, bytes);
    if (n < 0) h->read_ns = now;
    return n;
}
static ssize_t send_once(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    struct host *h = &world.hosts[host_of(os)];
    return comm_sim_now_ns(world.s) - h->begun_ns < BASE_NS_PER_S || host_of(os) ? world.systems[host_of(os)].send(os, fd, data, bytes)
                                                                                 : (ssize_t)bytes;
}
static int close_nothing(const struct comm_os *os, int fd) { return host_of(os) == 1 ? 0 : world.systems[host_of(os)].close(os, fd); }
static void prepare(void *context, struct comm_sim *s) {
    (void)context;
    for (int i = 0; i < world.n_hosts; i++) {
        struct comm_os *os = comm_sim_os(s, i);
        world.systems[i] = *os;
        switch (world.planted) {
        case T_SIM_HOSTS_NO_DEADLINE: os->poll = poll_for_ever; break;
        case T_SIM_HOSTS_READ_LATE: os->recv = receive_late; break;
        case T_SIM_HOSTS_MUTE: os->send = send_once; break;
        case T_SIM_HOSTS_LEAKED_SOCKET: os->close = close_nothing; break;
        default: break;
        }
    }
}

/* ---- what must hold -------------------------------------------------------------------------------------------------------------------------------------------- */

/* Does it stand between these two, or end the other one? */
static bool concerns(const struct comm_sim_fault *f, int host, int other) {
    switch (f->kind) {
    case COMM_SIM_KILL:
    case COMM_SIM_POWER_OFF:
    case COMM_SIM_FREEZE: return f->a == other;
    case COMM_SIM_PARTITION:
    case COMM_SIM_ONE_WAY: return (f->a == host && f->b == other) || (f->a == other && f->b == host);
    default: return false;
    }
}

static uint64_t harmless_ns(void) {
    uint64_t sum = 0;
    for (int i = 0; i < world.weather.n_faults; i++)
        if (world.weather.faults[i].fired_ns && comm_sim_is_harmless(&world.weather.faults[i]))
            sum += world.weather.faults[i].for_ns + PERIOD_NS; /* who was stopped forgets what it heard since it last looked */
    return sum;
}

/* From the fault to the report, with what the weather adds: what is on its way, harmless faults, slow calls. */
static uint64_t limit_ns(const struct comm_sim_fault *f, int host) {
    uint64_t ns = SILENCE_NS + 2 * (world.weather.delay_ns + world.weather.jitter_ns) + harmless_ns() + 150 * BASE_NS_PER_MS;
    for (int i = 0; i < world.n_hosts; i++) ns += world.weather.slow[i] ? 400 * BASE_NS_PER_MS : 0;
    /* Who still hears the other learns of it by its packets, some of which may be lost. */
    if (f->kind == COMM_SIM_ONE_WAY && f->a == host) ns += PERIOD_NS + (world.weather.loss_permille ? 10 * PERIOD_NS : 0);
    return ns;
}

/* May it take the other one as lost, where nothing lethal stands between them? */
static bool may_err(const struct host *h, const struct host *other, int i_other) {
    const bool is_clean = !world.weather.loss_permille && !harmless_ns();
    if (other->end_ns && other->end_ns < h->lost_ns[i_other] && !is_clean) return true; /* its last words have not come through */
    return harmless_ns() > (world.weather.loss_permille ? GET_OVER_LOSSES_NS : GET_OVER_NS);
}

static bool check_pair(struct t_sim_outcome *out, int host, int i_other) {
    const struct host *h = &world.hosts[host], *other = &world.hosts[i_other];
    const char *what = NULL;
    uint64_t until_ns = 0; /* of the last that concerns them: an earlier one may have been cut short by it */
    for (int i = 0; i < world.weather.n_faults; i++) {
        const struct comm_sim_fault *f = &world.weather.faults[i];
        if (!f->fired_ns || comm_sim_is_harmless(f)) continue;
        out->is_lethal = true;
        const uint64_t due_ns = (f->fired_ns > h->begun_ns ? f->fired_ns : h->begun_ns) + limit_ns(f, host);
        if (concerns(f, host, i_other) && due_ns > until_ns) until_ns = due_ns;
    }
    const bool has_left = other->is_through && other->end_ns < until_ns; /* meanwhile */
    if (h->lost_ns[i_other] && !until_ns && !may_err(h, other, i_other))
        what = "is reported as lost, and is not,";
    else if (until_ns && !has_left && h->lost_ns[i_other] > until_ns)
        what = "is reported as lost too late";
    else if (until_ns && !has_left && !h->lost_ns[i_other] && h->end_ns > until_ns)
        what = "is not reported as lost";
    out->n_reports += h->lost_ns[i_other] != 0;
    if (what)
        snprintf(out->why, sizeof out->why, "host %d %s by host %d (at %.3f ms; it ended at %.3f ms)", i_other, what, host,
                 (double)h->lost_ns[i_other] / (double)BASE_NS_PER_MS, (double)h->end_ns / (double)BASE_NS_PER_MS);
    return !what;
}

bool t_sim_hosts_run(struct comm_sim *s, uint64_t seed, enum t_sim_hosts_planted planted, FILE *log, struct t_sim_outcome *out) {
    struct base_rng rng;
    struct err e = {0};
    memset(&world, 0, sizeof world);
    base_rng_init(&rng, seed ^ 0x486f737473ull);
    world.s = s;
    world.planted = planted;
    world.n_hosts = 2 + (int)base_rng_below(&rng, MAX_HOSTS - 1);
    world.leaves_at_once = base_rng_below(&rng, 2) == 0;
    world.until_ns = (4 + base_rng_below(&rng, 6)) * BASE_NS_PER_S;
    comm_sim_draw(seed, world.n_hosts, &world.weather);
    *out = (struct t_sim_outcome){.n_ranks = world.n_hosts};
    const struct comm_sim_options o = {.seed = seed,
                                       .n_ranks = world.n_hosts,
                                       .n_tasks = world.n_hosts,
                                       .weather = &world.weather,
                                       .task = run_host,
                                       .prepare = planted ? prepare : NULL,
                                       .log = log};
    const long before = t_sim_n_blocks();
    const enum st st = comm_sim_run(s, &o, &out->report, &e);
    const long left = t_sim_n_blocks() - before;
    if (st || world.wrong[0]) {
        snprintf(out->why, sizeof out->why, "%s", st ? e.text : world.wrong);
        return false;
    }
    for (int i = 0; i < world.n_hosts; i++)
        for (int k = 0; k < world.n_hosts && world.hosts[i].is_through; k++)
            if (k != i && !check_pair(out, i, k)) return false;
    if (left == 0 || log) return true; /* a log has a buffer */
    snprintf(out->why, sizeof out->why, "%ld blocks of heap were not given back", left);
    return false;
}
