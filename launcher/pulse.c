#include "launcher/pulse.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "launcher/life.h"
#include "runtime/vitals.h"

#define STALL_NS (500 * BASE_NS_PER_MS) /* we did not run for so long: others' silence in it means nothing */
#define TELL_NS (10 * BASE_NS_PER_S)    /* between lines about strangers */
#define WINDOW_MS 4000                  /* speeds are compared over so much */
#define SLOW_FACTOR 2.0
#define LAST_WORDS 3                    /* packets: one may be lost */
enum { MAX_AT_ONCE = 64, N_SLOW_WINDOWS = 2 };

double launch_pulse_slowness(const uint32_t *worked_ms, int n, uint32_t window_ms, int *slowest)
{
    double others = 0;
    *slowest = 0;
    for (int i = 1; i < n; i++)
        if (worked_ms[i] > worked_ms[*slowest])
            *slowest = i;
    for (int i = 0; i < n; i++)
        others += i == *slowest ? 0 : worked_ms[i];
    if (n < 2)
        return 0;
    others /= n - 1;
    if (worked_ms[*slowest] - others < window_ms / 4.0) /* the others do not wait long for it, whatever the factor */
        return 0;
    const double factor = worked_ms[*slowest] / (others < 1 ? 1 : others);
    return factor >= SLOW_FACTOR ? factor : 0;
}

/* ---- state ----------------------------------------------------------------------------------------------------------------------------------------------------- */

/* What is known of a host's ranks: of the others by their packets. */
struct host_now {
    uint32_t step_ms, waited_ms; /* of that rank which worked longest so far */
};

struct peer {
    const struct launch_way *way;
    int fd;
    uint32_t port; /* of ours, that it sends to */
    uint64_t number, heard_number; /* of the last packet there, from there */
    uint64_t heard_ns;             /* or when we began to listen */
    bool is_over, is_lost; /* over: it left, or it is lost */
    uint32_t its_heard_ms;         /* as it says */
    uint32_t step;                 /* of its first rank */
    struct host_now now;
};

struct launch_pulse {
    struct launch_ways ways;
    struct peer peers[LAUNCH_MAX_HOSTS - 1];
    int n;
    const struct comm_os *os;
    const struct base_clock *clock;
    bool is_simulated;    /* there is no thread */
    int stop_fd, news_fd; /* eventfds; −1 where it is simulated */
    bool is_running;
    pthread_t thread;
    /* the thread's alone */
    uint64_t next_ns;     /* when packets are due */
    uint64_t looked_ns;   /* when we last woke */
    uint64_t told_ns, n_strange;
    uint64_t window_ns;                    /* when it began */
    struct host_now before[LAUNCH_MAX_HOSTS]; /* as it began: the peers, then we */
    int slow_host, n_slow;
    bool has_told_slow;

    pthread_mutex_t lock; /* what follows */
    struct rt_vitals *vitals; /* NULL: there are no ranks yet */
    int n_ranks;
    bool judges_speed;
    enum launch_beat_kind end;
    struct launch_pulse_news news[LAUNCH_MAX_HOSTS + 1]; /* a host each, and one who is slow */
    int n_news, n_taken;
};

static uint64_t now_ns(const struct launch_pulse *p) { return base_now_ns(p->clock); }

static void tell(struct launch_pulse *p, bool is_lost, int host, const char *text)
{
    pthread_mutex_lock(&p->lock);
    if (p->n_news < (int)(sizeof p->news / sizeof *p->news)) {
        struct launch_pulse_news *n = &p->news[p->n_news++];
        *n = (struct launch_pulse_news){.is_lost = is_lost, .host = host};
        snprintf(n->text, sizeof n->text, "%s", text);
    }
    pthread_mutex_unlock(&p->lock);
    if (!p->is_simulated)
        (void)!write(p->news_fd, &(uint64_t){1}, sizeof(uint64_t));
}

/* ---- sending --------------------------------------------------------------------------------------------------------------------------------------------------- */

static void describe_ranks(struct launch_pulse *p, struct launch_beat *b)
{
    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; p->vitals && i < p->ways.n_ranks && i < LAUNCH_BEAT_MAX_RANKS; i++) {
        const struct rt_vitals *v = &p->vitals[p->ways.first_rank + i];
        b->ranks[i] = (struct launch_beat_rank){
            .progress = rt_vitals_progress(v),
            .step = (uint32_t)atomic_load_explicit(&v->step, memory_order_relaxed),
            .phase = (uint32_t)atomic_load_explicit(&v->phase, memory_order_relaxed),
            .step_ms = (uint32_t)(atomic_load_explicit(&v->step_ns, memory_order_relaxed) / BASE_NS_PER_MS),
            .waited_ms = (uint32_t)(atomic_load_explicit(&v->waited_ns, memory_order_relaxed) / BASE_NS_PER_MS),
        };
        b->n_ranks = (int)i + 1;
    }
    pthread_mutex_unlock(&p->lock);
}

/* What does not get away is as if it had been lost on the way. */
static void send_beats(struct launch_pulse *p, enum launch_beat_kind kind, uint64_t now)
{
    struct launch_beat b = {.from_host = (int)p->ways.host};
    uint8_t bytes[LAUNCH_BEAT_MAX_BYTES];
    describe_ranks(p, &b);
    for (int i = 0; i < p->n; i++) {
        struct peer *peer = &p->peers[i];
        b.kind = kind == LAUNCH_BEAT_FAILED && peer->is_lost ? LAUNCH_BEAT_LOST_YOU : kind;
        b.to_host = (int)peer->way->host;
        b.number = ++peer->number;
        b.heard_ms = (uint32_t)((now - peer->heard_ns) / BASE_NS_PER_MS);
        const size_t n = launch_beat_put(p->ways.key, &b, bytes);
        (void)p->os->send(p->os, peer->fd, bytes, n);
    }
}

/* ---- receiving ------------------------------------------------------------------------------------------------------------------------------------------------- */

static struct host_now busiest(const struct launch_beat *b)
{
    struct host_now most = {0, 0};
    for (int i = 0; i < b->n_ranks; i++)
        if (i == 0 || b->ranks[i].step_ms - b->ranks[i].waited_ms > most.step_ms - most.waited_ms)
            most = (struct host_now){b->ranks[i].step_ms, b->ranks[i].waited_ms};
    return most;
}

/* Its ranks' rows: our own ranks look there whether others get on. */
static void take_ranks(struct launch_pulse *p, struct peer *peer, const struct launch_beat *b)
{
    if (b->n_ranks == 0)
        return;
    peer->step = b->ranks[0].step;
    peer->now = busiest(b);
    pthread_mutex_lock(&p->lock);
    for (int i = 0; p->vitals && i < b->n_ranks && i < (int)peer->way->n_ranks && (int)peer->way->first_rank + i < p->n_ranks; i++) {
        struct rt_vitals *v = &p->vitals[peer->way->first_rank + (uint32_t)i];
        atomic_store_explicit(&v->tick, b->ranks[i].progress, memory_order_relaxed);
        atomic_store_explicit(&v->phase, (int)b->ranks[i].phase, memory_order_relaxed);
    }
    pthread_mutex_unlock(&p->lock);
}

static void tell_strange(struct launch_pulse *p, const struct peer *peer, uint64_t now)
{
    p->n_strange++;
    if (p->told_ns && now - p->told_ns < TELL_NS)
        return;
    p->told_ns = now;
    LOG_WARNING("pulse", "%llu packets with the address of host %s were dropped: they are not of this job", (unsigned long long)p->n_strange, peer->way->name);
}

static void receive(struct launch_pulse *p, struct peer *peer, uint64_t now)
{
    uint8_t bytes[LAUNCH_BEAT_MAX_BYTES + 1];
    for (int i = 0; i < MAX_AT_ONCE; i++) {
        const ssize_t n = p->os->recv(p->os, peer->fd, bytes, sizeof bytes);
        if (n < 0 && errno != ECONNREFUSED) /* refused: nobody is there at the moment, as the other host's kernel says */
            return;
        if (n < 0)
            continue;
        struct launch_beat b;
        if (!launch_beat_get(p->ways.key, bytes, (size_t)n, &b) || b.from_host != (int)peer->way->host || b.to_host != (int)p->ways.host) {
            tell_strange(p, peer, now);
            continue;
        }
        if (peer->is_over || b.number <= peer->heard_number) /* overtaken, or said again by somebody else */
            continue;
        peer->heard_number = b.number;
        peer->heard_ns = now;
        peer->its_heard_ms = b.kind == LAUNCH_BEAT_LOST_YOU ? LAUNCH_PULSE_SILENCE_MS : b.heard_ms;
        take_ranks(p, peer, &b);
        peer->is_over = b.kind == LAUNCH_BEAT_LEFT || b.kind == LAUNCH_BEAT_FAILED;
    }
}

/* ---- judging --------------------------------------------------------------------------------------------------------------------------------------------------- */

static void judge_life(struct launch_pulse *p, uint64_t now)
{
    char own[LAUNCH_ADDRESS_TEXT], other[LAUNCH_ADDRESS_TEXT], text[400], who[LAUNCH_WHO_TEXT];
    for (int i = 0; i < p->n; i++) {
        struct peer *peer = &p->peers[i];
        const struct launch_way *way = peer->way;
        const uint64_t silent_ms = (now - peer->heard_ns) / BASE_NS_PER_MS;
        const bool hears_us = peer->its_heard_ms < LAUNCH_PULSE_SILENCE_MS;
        if (peer->is_over || (silent_ms < LAUNCH_PULSE_SILENCE_MS && hears_us))
            continue;
        peer->is_over = peer->is_lost = true;
        launch_address_text(&way->own, NULL, own);
        launch_address_text(&way->address, NULL, other);
        if (silent_ms >= LAUNCH_PULSE_SILENCE_MS && !peer->heard_number)
            snprintf(text, sizeof text, "nothing was ever heard of it at %.32s (%.15s %.45s - %.15s %.45s); a firewall? on %.32s: sudo ufw allow from %.45s to any port %u proto udp%s", p->ways.name,
                     way->interface, own, way->peer_interface, other, p->ways.name, other, peer->port, p->ways.port ? "" : "; with --port the port stays the same");
        else if (silent_ms >= LAUNCH_PULSE_SILENCE_MS)
            snprintf(text, sizeof text, "nothing was heard of it at %.63s for %.1f s (%.15s %s - %.15s %s); its %s at step %u", p->ways.name, (double)silent_ms / 1000, way->interface, own, way->peer_interface,
                     other, launch_life_who((int)way->first_rank, (int)way->n_ranks, who), peer->step);
        else
            snprintf(text, sizeof text, "it has heard nothing of %.63s for %.1f s, though its own packets come (%.15s %s - %.15s %s): they get through in one direction only; its %s at step %u", p->ways.name,
                     peer->its_heard_ms / 1000.0, way->interface, own, way->peer_interface, other, launch_life_who((int)way->first_rank, (int)way->n_ranks, who), peer->step);
        tell(p, true, (int)way->host, text);
    }
}

/* On the host of rank 0 alone. A host that is slow for a moment is none. */
static void judge_speed(struct launch_pulse *p, uint64_t now)
{
    if (p->has_told_slow || p->ways.first_rank != 0 || now - p->window_ns < WINDOW_MS * BASE_NS_PER_MS)
        return;
    struct launch_beat own = {.n_ranks = 0};
    struct host_now hosts[LAUNCH_MAX_HOSTS];
    uint32_t worked[LAUNCH_MAX_HOSTS];
    const uint32_t window_ms = (uint32_t)((now - p->window_ns) / BASE_NS_PER_MS);
    bool is_busy = true;
    describe_ranks(p, &own);
    for (int i = 0; i <= p->n; i++) {
        hosts[i] = i < p->n ? p->peers[i].now : busiest(&own);
        const uint32_t steps = hosts[i].step_ms - p->before[i].step_ms, waited = hosts[i].waited_ms - p->before[i].waited_ms;
        worked[i] = steps > waited ? steps - waited : 0;
        LOG_DBG("pulse", "%s: in %u ms %u in steps, %u of them waiting", i < p->n ? p->peers[i].way->name : p->ways.name, window_ms, steps, waited);
        is_busy &= steps >= window_ms / 2 && steps <= 2 * window_ms; /* steps longer than the window are told late, and then at once */
        p->before[i] = hosts[i];
    }
    p->window_ns = now;
    int slowest = 0;
    const double factor = is_busy ? launch_pulse_slowness(worked, p->n + 1, window_ms, &slowest) : 0;
    p->n_slow = factor > 0 && (slowest == p->slow_host || !p->n_slow) ? p->n_slow + 1 : 0;
    p->slow_host = slowest;
    pthread_mutex_lock(&p->lock);
    const bool judges = p->judges_speed;
    pthread_mutex_unlock(&p->lock);
    if (p->n_slow < N_SLOW_WINDOWS || !judges)
        return;
    char text[400];
    const bool is_own = slowest == p->n;
    p->has_told_slow = true;
    snprintf(text, sizeof text, "host %.63s is slow: for %d s it has worked %.1f times as long at the same steps as %s, and is waited for", is_own ? p->ways.name : p->peers[slowest].way->name,
             N_SLOW_WINDOWS * WINDOW_MS / 1000, factor, p->n > 1 ? "the others on average" : is_own ? p->peers[0].way->name : p->ways.name);
    tell(p, false, is_own ? (int)p->ways.host : (int)p->peers[slowest].way->host, text);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------------------------------------------ */

/* Until the next packet, or the moment at which the first silence would be too long. */
static uint64_t wait_ns(const struct launch_pulse *p)
{
    const uint64_t now = now_ns(p);
    uint64_t next_ns = p->next_ns;
    for (int i = 0; i < p->n; i++) {
        const uint64_t until = p->peers[i].heard_ns + LAUNCH_PULSE_SILENCE_MS * BASE_NS_PER_MS;
        if (!p->peers[i].is_over && until < next_ns)
            next_ns = until;
    }
    return next_ns > now ? next_ns - now : 0;
}

/* False: it was told to stop. */
static bool turn(struct launch_pulse *p)
{
    struct pollfd polled[LAUNCH_MAX_HOSTS];
    for (int i = 0; i < p->n; i++)
        polled[i] = (struct pollfd){.fd = p->peers[i].fd, .events = POLLIN};
    polled[p->n] = (struct pollfd){.fd = p->stop_fd, .events = POLLIN};
    (void)p->os->poll(p->os, polled, (size_t)p->n + 1, wait_ns(p));
    if (polled[p->n].revents)
        return false;
    const uint64_t now = now_ns(p), gap = now - p->looked_ns;
    p->looked_ns = now;
    for (int i = 0; i < p->n; i++) {
        if (gap > STALL_NS)
            p->peers[i].heard_ns += gap;
        receive(p, &p->peers[i], now);
    }
    if (now >= p->next_ns) { /* after what had waited: it says how long ago the others were heard */
        send_beats(p, LAUNCH_BEAT_HERE, now);
        p->next_ns = now + LAUNCH_PULSE_PERIOD_MS * BASE_NS_PER_MS;
    }
    judge_life(p, now);
    judge_speed(p, now);
    return true;
}

static void begin(struct launch_pulse *p)
{
    const uint64_t now = now_ns(p);
    p->next_ns = p->looked_ns = p->window_ns = now;
    for (int i = 0; i < p->n; i++)
        p->peers[i].heard_ns = now;
}

static void say_goodbye(struct launch_pulse *p)
{
    pthread_mutex_lock(&p->lock);
    const enum launch_beat_kind end = p->end;
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < LAST_WORDS; i++)
        send_beats(p, end, now_ns(p));
}

static void *run(void *arg)
{
    struct launch_pulse *p = arg;
    begin(p);
    while (turn(p))
        ;
    say_goodbye(p);
    return NULL;
}

void launch_pulse_turn(struct launch_pulse *p) { (void)turn(p); }

/* ---- for the owner --------------------------------------------------------------------------------------------------------------------------------------------- */

static void release(struct launch_pulse *p)
{
    for (int i = 0; i < p->n; i++)
        if (p->peers[i].fd >= 0)
            (void)p->os->close(p->os, p->peers[i].fd);
    if (p->stop_fd >= 0)
        close(p->stop_fd);
    if (p->news_fd >= 0)
        close(p->news_fd);
    pthread_mutex_destroy(&p->lock);
    explicit_bzero(p->ways.key, sizeof p->ways.key);
    free(p);
}

/* Nobody shares a port with us, nor another job: where several ways begin at one address, and ports are fixed, they have one behind the other. */
static int port_of(const struct launch_pulse *p, int i)
{
    int port = (int)p->ways.port;
    for (int k = 0; k < i && port; k++)
        port += launch_address_equal(&p->ways.list[k].own, &p->ways.list[i].own);
    return port;
}

static enum st open_socket(const struct comm_os *os, struct peer *peer, int port, struct err *e)
{
    const struct launch_way *way = peer->way;
    struct sockaddr_storage s;
    socklen_t n = launch_address_socket(&way->own, (int)way->index, port, &s);
    char text[LAUNCH_ADDRESS_TEXT];
    peer->fd = os->datagrams(os, way->own.family);
    if (peer->fd >= 0 && way->index)
        (void)os->setsockopt(os, peer->fd, SOL_SOCKET, SO_BINDTOIFINDEX, (int)way->index); /* what it may be refused for is told by the probe */
    if (peer->fd < 0 || os->bind(os, peer->fd, (const struct sockaddr *)&s, n) || (n = sizeof s, os->getsockname(os, peer->fd, (struct sockaddr *)&s, &n)))
        return err_set(e, ST_IO, "no socket for packets at %s port %d: %s%s", launch_address_text(&way->own, NULL, text), port, strerror(errno),
                       errno == EADDRINUSE ? "; take another one by --port" : "");
    peer->port = ntohs(((const struct sockaddr_in *)(const void *)&s)->sin_port); /* at the same place in both families */
    return ST_OK;
}

enum st launch_pulse_open(const struct launch_ways *ways, const struct launch_pulse_world *world, struct launch_port *ports, struct launch_pulse **out, struct err *e)
{
    struct launch_pulse *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ST_NO_MEMORY, "no memory to watch other hosts");
    p->ways = *ways;
    p->end = LAUNCH_BEAT_FAILED;
    pthread_mutex_init(&p->lock, NULL);
    p->is_simulated = world != NULL;
    p->os = world ? world->os : comm_os_real();
    p->clock = world ? world->clock : base_clock_real();
    p->stop_fd = world ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->news_fd = world ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum st st = !world && (p->stop_fd < 0 || p->news_fd < 0) ? err_set(e, ST_IO, "cannot watch other hosts: %s", strerror(errno)) : ST_OK;
    for (uint32_t i = 0; i < ways->n && !st; i++) {
        p->peers[i] = (struct peer){.way = &p->ways.list[i], .fd = -1};
        p->n++;
        st = open_socket(p->os, &p->peers[i], port_of(p, (int)i), e);
        ports[i].beat = p->peers[i].port;
    }
    if (st)
        release(p);
    else
        *out = p;
    return st;
}

enum st launch_pulse_start(struct launch_pulse *p, const struct launch_port *ports, size_t n, struct err *e)
{
    if (n != (size_t)p->n || p->is_running)
        return err_set(e, ST_INVALID, "ports of %zu hosts", n);
    for (int i = 0; i < p->n; i++) {
        const struct launch_way *way = p->peers[i].way;
        struct sockaddr_storage s;
        if (ports[i].host != way->host || ports[i].beat == 0 || ports[i].beat > 65535)
            return err_set(e, ST_INVALID, "a port of host %u that makes no sense", ports[i].host);
        const socklen_t bytes = launch_address_socket(&way->address, (int)way->index, (int)ports[i].beat, &s);
        if (p->os->connect(p->os, p->peers[i].fd, (const struct sockaddr *)&s, bytes))
            return err_set(e, ST_IO, "no packets can be sent to host %s: %s", way->name, strerror(errno));
    }
    if (p->is_simulated) {
        begin(p);
        p->is_running = true;
        return ST_OK;
    }
    sigset_t all, before; /* signals are for the other threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&p->thread, NULL, run, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    p->is_running = !error;
    return error ? err_set(e, ST_NO_MEMORY, "cannot watch other hosts: %s", strerror(error)) : ST_OK;
}

void launch_pulse_watch(struct launch_pulse *p, struct rt_vitals *vitals, int n_ranks, bool judges_speed)
{
    pthread_mutex_lock(&p->lock);
    p->vitals = vitals;
    p->n_ranks = n_ranks;
    p->judges_speed = judges_speed;
    pthread_mutex_unlock(&p->lock);
}

int launch_pulse_fd(const struct launch_pulse *p) { return p->news_fd; }

bool launch_pulse_next(struct launch_pulse *p, struct launch_pulse_news *news)
{
    uint64_t count;
    pthread_mutex_lock(&p->lock);
    const bool has = p->n_taken < p->n_news;
    if (has)
        *news = p->news[p->n_taken++];
    else if (!p->is_simulated)
        (void)!read(p->news_fd, &count, sizeof count);
    pthread_mutex_unlock(&p->lock);
    return has;
}

void launch_pulse_stop(struct launch_pulse *p, enum launch_beat_kind why)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->end = why;
    pthread_mutex_unlock(&p->lock);
    if (p->is_running && p->is_simulated)
        say_goodbye(p);
    if (!p->is_simulated)
        (void)!write(p->stop_fd, &(uint64_t){1}, sizeof(uint64_t));
    if (p->is_running && !p->is_simulated)
        pthread_join(p->thread, NULL);
    release(p);
}
