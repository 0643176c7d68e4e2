/* The simulated network: sockets as TCP shows them to a program.
 *
 * Each direction of a connection is a stream of bytes in the reader's ring. What is sent lies there at once, but is seen only when its segment arrives, in order, by the delays of the weather.
 * What the writer knows of the reader (what has arrived, how much room there is) travels back without delay, but not through a partition: then it learns when that is over. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/mman.h>

#include "comm/sim_priv.h"

#define RTO_NS (BASE_NS_PER_S / 5) /* first retransmission of a handshake, and probe of a closed window; the next ones after twice as long each */
#define SYN_NS BASE_NS_PER_S       /* a SYN is sent again */
#define PROBE_NS BASE_NS_PER_S     /* between probes of an idle connection, as comm/tcp_connect.c sets it; after two without an answer it is broken */

/* ---- sockets ----------------------------------------------------------------------------------------------------------------------------------------- */

static struct sim_task *task_of(const struct comm_os *os) { return (struct sim_task *)(uintptr_t)os; } /* the table is its first member */

static struct sim_socket *socket_of(const struct sim_task *t, int fd) {
    struct comm_sim *s = t->sim;
    if (fd < 0 || fd >= s->n_sockets || s->sockets[fd].state == SOCKET_FREE || s->sockets[fd].closed || s->sockets[fd].owner != t->i) {
        if (!t->dead) sim_fail(s, "rank %d uses descriptor %d, which is not open", t->i, fd);
        return NULL;
    }
    return &s->sockets[fd];
}

static int new_socket(struct comm_sim *s, int owner) {
    int i = 0;
    while (i < s->n_sockets && s->sockets[i].state != SOCKET_FREE) i++;
    BASE_ASSERT(i < SIM_MAX_SOCKETS);
    if (i == s->n_sockets) s->sockets[s->n_sockets++].generation = 0;
    struct sim_socket *x = &s->sockets[i];
    *x = (struct sim_socket){.state = SOCKET_FRESH, .generation = x->generation + 1, .owner = owner, .peer = -1};
    x->in.ring = s->rings + (size_t)i * COMM_SIM_MAX_WINDOW_BYTES;
    return i;
}

static void free_socket(struct sim_socket *x) {
    x->state = SOCKET_FREE;
    x->generation++; /* what is on its way to it finds nobody */
}

uint64_t sim_way_ns(struct comm_sim *s, int from, int to) {
    uint64_t ns = s->w->delay_ns + sim_random(s, s->w->jitter_ns + 1);
    return s->stalled_ns[from][to] > s->now_ns ? ns + s->stalled_ns[from][to] - s->now_ns : ns;
}

static bool is_readable(const struct sim_socket *x) { return x->in.arrived > x->in.read || x->in.fin || x->error || x->state == SOCKET_RESET; }
static uint64_t room_to(const struct comm_sim *s, const struct sim_socket *x) {
    return x->peer < 0 ? 0 : s->w->window_bytes - (s->sockets[x->peer].in.written - s->sockets[x->peer].in.seen_read);
}

static short revents(const struct comm_sim *s, const struct sim_socket *x, short events) {
    int all = 0;
    if (x->state == SOCKET_LISTENS) return (short)(x->n_backlog ? events & POLLIN : 0);
    if (x->state == SOCKET_DATAGRAM) return (short)((x->first >= 0 ? events & POLLIN : 0) | (events & POLLOUT) | (x->error ? POLLERR : 0));
    if (x->error) all |= POLLERR | POLLHUP | POLLIN | POLLOUT | POLLRDHUP;
    if (x->state == SOCKET_RESET) all |= POLLHUP | POLLIN | POLLOUT | POLLRDHUP;
    if (x->state == SOCKET_CONNECTED) {
        if (is_readable(x)) all |= POLLIN;
        if (x->in.fin) all |= POLLRDHUP;
        if (x->in.fin && x->local && x->peer >= 0 && s->sockets[x->peer].closed) all |= POLLHUP; /* as a socket pair says it */
        if (room_to(s, x) > 0) all |= POLLOUT;
    }
    return (short)(all & (events | POLLERR | POLLHUP));
}

bool sim_net_is_ready(const struct comm_sim *s, const struct pollfd *fds, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (fds[i].fd >= 0 && fds[i].fd < s->n_sockets && revents(s, &s->sockets[fds[i].fd], fds[i].events)) return true;
    return false;
}

/* An idle connection is probed every second, and a probe that is answered is a sign of life. To be called before the idleness ends, or the way is cut. */
static void hear_probes(struct comm_sim *s, struct sim_socket *x) {
    if (!x->keepalive || x->peer < 0 || sim_is_cut(s, x->owner, s->sockets[x->peer].owner)) return;
    const struct sim_stream *out = &s->sockets[x->peer].in;
    const uint64_t ago_ns = sim_random(s, PROBE_NS);
    if (out->acked == out->written && s->now_ns > x->heard_ns + PROBE_NS + ago_ns) x->heard_ns = s->now_ns - ago_ns;
}

void sim_notify(struct comm_sim *s, const struct sim_socket *x) {
    struct sim_task *t = &s->tasks[x->owner];
    if (t->polled && sim_net_is_ready(s, t->polled, t->n_polled)) sim_wake(t);
}

/* ---- what travels -------------------------------------------------------------------------------------------------------------------------------------- */

static void expect_arrival(struct comm_sim *s, int i) {
    struct sim_stream *in = &s->sockets[i].in;
    if (in->is_coming || !in->n_segments) return;
    in->is_coming = true;
    sim_at(s, in->segments[0].at_ns, SIM_ARRIVE, i, s->sockets[i].generation, 0);
}

/* A segment up to the end of what was written; where there are too many the last one takes it along. */
static void add_segment(struct comm_sim *s, int to, uint64_t end, bool fin) {
    struct sim_socket *x = &s->sockets[to];
    struct sim_stream *in = &x->in;
    uint64_t at_ns = s->now_ns + (x->local ? 0 : sim_way_ns(s, s->sockets[x->peer].owner, x->owner));
    if (at_ns < in->last_ns) at_ns = in->last_ns;
    in->last_ns = at_ns;
    if (in->n_segments == SIM_MAX_SEGMENTS)
        in->segments[SIM_MAX_SEGMENTS - 1] = (struct sim_segment){.end = end, .at_ns = at_ns, .fin = fin};
    else
        in->segments[in->n_segments++] = (struct sim_segment){.end = end, .at_ns = at_ns, .fin = fin};
    expect_arrival(s, to);
}

static void send_reset(struct comm_sim *s, int from, int to, int error, bool at_once) {
    struct sim_socket *x = &s->sockets[to];
    uint64_t at_ns = s->now_ns + sim_way_ns(s, from, x->owner);
    if (!at_once && at_ns < x->in.last_ns) at_ns = x->in.last_ns + 1; /* behind what was sent before it */
    sim_at(s, at_ns, SIM_RESET, to, x->generation, error);
}

/* What the writer learns from the reader's answers. */
static void acknowledge(struct comm_sim *s, struct sim_socket *reader) {
    if (reader->peer < 0 || s->blocked[reader->owner][s->sockets[reader->peer].owner]) return;
    struct sim_socket *writer = &s->sockets[reader->peer];
    if (reader->in.acked < reader->in.arrived) {
        reader->in.acked = reader->in.arrived;
        reader->in.unacked_ns = s->now_ns;
        writer->heard_ns = s->now_ns;
    }
    if (reader->in.seen_read < reader->in.read) {
        reader->in.seen_read = reader->in.read;
        sim_notify(s, writer);
    }
}

static void arrive(struct comm_sim *s, int i) {
    struct sim_socket *x = &s->sockets[i];
    struct sim_stream *in = &x->in;
    in->is_coming = false;
    if (x->peer < 0 || !in->n_segments) return;
    const int from = s->sockets[x->peer].owner;
    if (s->blocked[from][x->owner]) return;  /* sim_net_healed sends it again */
    if (in->segments[0].at_ns > s->now_ns) { /* it was delayed meanwhile */
        expect_arrival(s, i);
        return;
    }
    const struct sim_segment segment = in->segments[0];
    in->n_segments--;
    memmove(&in->segments[0], &in->segments[1], (size_t)in->n_segments * sizeof in->segments[0]);
    x->heard_ns = s->now_ns;
    if (segment.end > in->arrived) {
        in->arrived = segment.end;
        x->data_ns = s->now_ns;
        if (x->closed) send_reset(s, x->owner, x->peer, ECONNRESET, false);
    }
    in->fin |= segment.fin;
    acknowledge(s, x);
    sim_notify(s, x);
    expect_arrival(s, i);
}

static void take_reset(struct comm_sim *s, int i, int error) {
    struct sim_socket *x = &s->sockets[i];
    if (x->peer >= 0 && s->blocked[s->sockets[x->peer].owner][x->owner]) { /* what is sent again meets the same answer */
        sim_at(s, s->now_ns + 2 * RTO_NS, SIM_RESET, i, x->generation, error);
        return;
    }
    if (x->closed || x->state == SOCKET_RESET) return;
    SIM_NOTE(s, x->owner, "socket %d is reset (%s)", i, strerror(error));
    x->state = SOCKET_RESET;
    x->error = x->in.fin ? EPIPE : error;
    x->in.n_segments = 0;
    sim_notify(s, x);
}

/* ---- connecting ---------------------------------------------------------------------------------------------------------------------------------------- */

static int listener_at(const struct comm_sim *s, int port) {
    for (int i = 0; i < s->n_sockets; i++)
        if (s->sockets[i].state == SOCKET_LISTENS && !s->sockets[i].closed && s->sockets[i].port == port) return i;
    return -1;
}

int comm_sim_port(const struct comm_sim *s, int rank) {
    for (int i = s->n_sockets - 1; i >= 0; i--)
        if (s->sockets[i].state == SOCKET_LISTENS && !s->sockets[i].closed && s->sockets[i].owner == rank) return s->sockets[i].port;
    return 0;
}

static void take_syn(struct comm_sim *s, int i) {
    struct sim_socket *x = &s->sockets[i];
    const int listener = listener_at(s, x->port), host = sim_host_of_port(x->port);
    if (x->closed) return;
    if (sim_is_cut(s, x->owner, host)) {
        sim_at(s, s->now_ns + SYN_NS, SIM_SYN, i, x->generation, 0);
        return;
    }
    if (listener >= 0 && s->sockets[listener].n_backlog == SIM_MAX_BACKLOG) { /* as if it were lost */
        sim_at(s, s->now_ns + SYN_NS, SIM_SYN, i, x->generation, 0);
        return;
    }
    if (listener < 0) {
        sim_at(s, s->now_ns + sim_way_ns(s, host, x->owner), SIM_RESET, i, x->generation, ECONNREFUSED);
        return;
    }
    const int accepted = new_socket(s, host);
    struct sim_socket *l = &s->sockets[listener], *y = &s->sockets[accepted];
    *y =
        (struct sim_socket){.state = SOCKET_CONNECTED, .generation = y->generation, .owner = host, .port = l->port, .peer = i, .in.ring = y->in.ring};
    y->heard_ns = y->data_ns = s->now_ns;
    x->peer = accepted;
    x->in.last_ns = s->now_ns + sim_way_ns(s, host, x->owner);
    sim_at(s, x->in.last_ns, SIM_ANSWER, i, x->generation, 0);
    l->backlog[l->n_backlog++] = accepted;
    sim_notify(s, l);
}

static void take_answer(struct comm_sim *s, int i) {
    struct sim_socket *x = &s->sockets[i];
    if (x->closed || x->state != SOCKET_CONNECTS) return;
    if (sim_is_cut(s, x->owner, s->sockets[x->peer].owner)) {
        sim_at(s, s->now_ns + SYN_NS, SIM_ANSWER, i, x->generation, 0);
        return;
    }
    x->state = SOCKET_CONNECTED;
    x->heard_ns = x->data_ns = s->now_ns;
    sim_notify(s, x);
}

/* ---- the end -------------------------------------------------------------------------------------------------------------------------------------------- */

static void close_socket(struct comm_sim *s, int i, bool silently) {
    struct sim_socket *x = &s->sockets[i];
    x->closed = true;
    if (x->state == SOCKET_DATAGRAM) sim_datagram_close(s, x);
    for (int k = 0; k < x->n_backlog; k++) close_socket(s, x->backlog[k], silently);
    x->n_backlog = 0;
    if (x->peer < 0) {
        free_socket(x);
        return;
    }
    struct sim_socket *y = &s->sockets[x->peer];
    if (y->closed) {
        free_socket(y);
        free_socket(x);
        return;
    }
    if (silently || x->state == SOCKET_RESET || y->state == SOCKET_RESET) return;
    if (x->in.arrived > x->in.read)
        send_reset(s, x->owner, x->peer, ECONNRESET, false);
    else if (!y->in.fin_sent) {
        y->in.fin_sent = true;
        add_segment(s, x->peer, y->in.written, true);
    }
}

void sim_net_close_all(struct comm_sim *s, int owner, bool silently) {
    for (int i = 0; i < s->n_sockets; i++)
        if (s->sockets[i].state != SOCKET_FREE && s->sockets[i].owner == owner && !s->sockets[i].closed) close_socket(s, i, silently);
}

void sim_net_clear(struct comm_sim *s) {
    for (int i = 0; i < s->n_sockets; i++) s->sockets[i].state = SOCKET_FREE;
    s->n_sockets = 0;
    sim_datagram_clear(s);
    s->next_port = 0;
}

/* ---- what is inherited --------------------------------------------------------------------------------------------------------------------------------------- */

void comm_sim_connect(struct comm_sim *s, int a, int b, bool is_local, int fds[2]) {
    fds[0] = new_socket(s, a);
    fds[1] = new_socket(s, b);
    for (int i = 0; i < 2; i++) {
        struct sim_socket *x = &s->sockets[fds[i]];
        x->state = SOCKET_CONNECTED;
        x->peer = fds[!i];
        x->local = is_local;
    }
}

int comm_sim_bell(struct comm_sim *s, int i_task) {
    const int fd = new_socket(s, i_task);
    s->sockets[fd].state = SOCKET_CONNECTED; /* with nobody: nothing is sent from it */
    return fd;
}

void comm_sim_ring(struct comm_sim *s, int fd) {
    struct sim_socket *x = &s->sockets[fd];
    if (x->closed || x->in.written - x->in.read == s->w->window_bytes) return;
    x->in.ring[x->in.written++ % s->w->window_bytes] = 1;
    x->in.arrived = x->in.written;
    sim_notify(s, x);
}

void comm_sim_end_sending(struct comm_sim *s, int i_task, int fd) {
    const struct sim_socket *x = s->tasks[i_task].dead ? NULL : socket_of(&s->tasks[i_task], fd);
    if (!x || x->state != SOCKET_CONNECTED || x->peer < 0 || s->sockets[x->peer].in.fin_sent) return;
    s->sockets[x->peer].in.fin_sent = true;
    add_segment(s, x->peer, s->sockets[x->peer].in.written, true);
}

/* ---- faults --------------------------------------------------------------------------------------------------------------------------------------------- */

static bool is_between(const struct comm_sim *s, const struct sim_socket *x, int from, int to) {
    return x->state != SOCKET_FREE && x->owner == to && x->peer >= 0 && s->sockets[x->peer].owner == from;
}

bool sim_net_reset(struct comm_sim *s, int a, int b) {
    bool found = false;
    for (int i = 0; i < s->n_sockets; i++) {
        struct sim_socket *x = &s->sockets[i];
        if (!is_between(s, x, a, b) && !is_between(s, x, b, a)) continue;
        if (x->closed || s->sockets[x->peer].closed || x->state != SOCKET_CONNECTED || s->sockets[x->peer].state != SOCKET_CONNECTED) continue;
        found = true;
        send_reset(s, s->sockets[x->peer].owner, i, ECONNRESET, true);
    }
    return found;
}

/* Probes begin on the way that is cut. */
static void expect_probes(struct comm_sim *s, int i, int from, int to) {
    const int detail = (int)s->block_epoch[from][to] << 8 | from << 4 | to;
    sim_at(s, s->now_ns + 2 * PROBE_NS + sim_random(s, PROBE_NS), SIM_KEEPALIVE, i, s->sockets[i].generation, detail);
}

void sim_net_block(struct comm_sim *s, int from, int to) {
    if (s->blocked[from][to]) return; /* by another fault: probes go on as they are */
    s->block_epoch[from][to]++;
    for (int i = 0; i < s->n_sockets; i++) {
        struct sim_socket *x = &s->sockets[i];
        if (!x->keepalive || (!is_between(s, x, from, to) && !is_between(s, x, to, from))) continue;
        hear_probes(s, x);
        expect_probes(s, i, from, to);
    }
}

/* Idle: nothing is on its way that would be sent again instead of probes. */
static void take_keepalive(struct comm_sim *s, int i, int detail) {
    struct sim_socket *x = &s->sockets[i];
    const int from = detail >> 4 & 15, to = detail & 15;
    if (x->closed || x->peer < 0 || x->state != SOCKET_CONNECTED || !s->blocked[from][to] ||
        ((int)s->block_epoch[from][to] << 8 | (detail & 255)) != detail)
        return;
    const struct sim_stream *out = &s->sockets[x->peer].in;
    if (out->acked < out->written) return;
    SIM_NOTE(s, x->owner, "socket %d: probes were not answered", i);
    x->state = SOCKET_RESET;
    x->error = ETIMEDOUT;
    sim_notify(s, x);
}

/* What waits is sent again within the time of a retransmission. */
void sim_net_healed(struct comm_sim *s, int from, int to) {
    for (int i = 0; i < s->n_sockets; i++) {
        struct sim_socket *x = &s->sockets[i];
        if (is_between(s, x, from, to) && x->in.n_segments && !x->in.is_coming) {
            const uint64_t at_ns = s->now_ns + sim_random(s, 2 * RTO_NS);
            for (int k = 0; k < x->in.n_segments; k++)
                if (x->in.segments[k].at_ns < at_ns) x->in.segments[k].at_ns = at_ns;
            if (x->in.last_ns < at_ns) x->in.last_ns = at_ns;
            expect_arrival(s, i);
        }
        if (is_between(s, x, to, from)) acknowledge(s, x);
    }
}

void sim_net_event(struct comm_sim *s, const struct sim_event *e) {
    if (e->kind == SIM_DATAGRAM) {
        sim_datagram_arrive(s, e->object);
        return;
    }
    if (s->sockets[e->object].generation != e->generation || s->sockets[e->object].state == SOCKET_FREE) return;
    switch (e->kind) {
    case SIM_ARRIVE: arrive(s, e->object); break;
    case SIM_SYN: take_syn(s, e->object); break;
    case SIM_ANSWER: take_answer(s, e->object); break;
    case SIM_RESET: take_reset(s, e->object, e->detail); break;
    case SIM_KEEPALIVE: take_keepalive(s, e->object, e->detail); break;
    default: BASE_ASSERT(false);
    }
}

/* ---- the table ------------------------------------------------------------------------------------------------------------------------------------------ */

static int fail(int error) {
    errno = error;
    return -1;
}

/* Every call goes through here: it costs time, and fails once the task is dead. */
static struct sim_socket *enter(const struct comm_os *os, int fd) {
    struct sim_task *t = task_of(os);
    if (!sim_spend(t, t->sim->w->call_ns)) {
        errno = ECONNRESET;
        return NULL;
    }
    struct sim_socket *x = socket_of(t, fd);
    if (!x) errno = EBADF;
    return x;
}

static int sim_socket(const struct comm_os *os, int family) {
    struct sim_task *t = task_of(os);
    (void)family;
    if (!sim_spend(t, t->sim->w->call_ns)) return fail(EMFILE);
    return new_socket(t->sim, t->i);
}

static int sim_datagrams(const struct comm_os *os, int family) {
    const int fd = sim_socket(os, family);
    if (fd < 0) return -1;
    struct sim_socket *x = &task_of(os)->sim->sockets[fd];
    x->state = SOCKET_DATAGRAM;
    x->first = -1;
    return fd;
}

static int bind_port(struct comm_sim *s, const struct sim_socket *x) { return SIM_FIRST_PORT + s->next_port++ * COMM_SIM_MAX_TASKS + x->owner; }

static int sim_bind(const struct comm_os *os, int fd, const struct sockaddr *at, socklen_t bytes) {
    (void)at, (void)bytes;
    struct sim_socket *x = enter(os, fd);
    if (x && x->state == SOCKET_DATAGRAM) x->port = bind_port(task_of(os)->sim, x);
    return x ? 0 : -1;
}

static int sim_listen(const struct comm_os *os, int fd) {
    struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    struct comm_sim *s = task_of(os)->sim;
    x->state = SOCKET_LISTENS;
    x->port = bind_port(s, x);
    return 0;
}

static int sim_getsockname(const struct comm_os *os, int fd, struct sockaddr *at, socklen_t *bytes) {
    (void)bytes;
    const struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    ((struct sockaddr_in *)(void *)at)->sin_port = htons((uint16_t)x->port);
    return 0;
}

static int sim_connect(const struct comm_os *os, int fd, const struct sockaddr *to, socklen_t bytes) {
    (void)bytes;
    struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    struct comm_sim *s = task_of(os)->sim;
    const int port = ntohs(((const struct sockaddr_in *)(const void *)to)->sin_port);
    if (x->state == SOCKET_DATAGRAM) {
        x->to_port = port;
        return 0;
    }
    x->port = port;
    x->state = SOCKET_CONNECTS;
    const int host = sim_host_of_port(x->port);
    SIM_NOTE(s, x->owner, "socket %d connects to rank %d", fd, host);
    sim_at(s, s->now_ns + sim_way_ns(s, x->owner, host), SIM_SYN, fd, x->generation, 0);
    return fail(EINPROGRESS);
}

static int sim_accept(const struct comm_os *os, int fd, struct sockaddr *from, socklen_t *bytes) {
    struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    if (!x->n_backlog) return fail(EAGAIN);
    const int accepted = x->backlog[0];
    memmove(&x->backlog[0], &x->backlog[1], (size_t)--x->n_backlog * sizeof x->backlog[0]);
    if (from && *bytes >= sizeof(struct sockaddr_in)) {
        const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)x->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        memcpy(from, &address, sizeof address);
        *bytes = sizeof address;
    }
    SIM_NOTE(task_of(os)->sim, x->owner, "accepts socket %d", accepted);
    return accepted;
}

static int sim_setsockopt(const struct comm_os *os, int fd, int level, int name, int value) {
    struct sim_task *t = task_of(os);
    struct sim_socket *x = t->dead ? NULL : socket_of(t, fd);
    if (!x) return fail(EBADF);
    if (level != SOL_SOCKET || name != SO_KEEPALIVE || x->keepalive == (value != 0)) return 0;
    x->keepalive = value != 0;
    if (!value || x->peer < 0) return 0;
    struct comm_sim *s = t->sim;
    const int peer = s->sockets[x->peer].owner;
    if (s->blocked[x->owner][peer]) expect_probes(s, fd, x->owner, peer);
    if (s->blocked[peer][x->owner]) expect_probes(s, fd, peer, x->owner);
    return 0;
}

static int sim_getsockopt(const struct comm_os *os, int fd, int level, int name, void *value, socklen_t *bytes) {
    struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    const struct comm_sim *s = task_of(os)->sim;
    if (level == SOL_SOCKET && name == SO_ERROR) {
        memcpy(value, &x->error, sizeof x->error);
        x->error = 0;
        return 0;
    }
    struct tcp_info info = {0};
    hear_probes(task_of(os)->sim, x);
    if (level != IPPROTO_TCP || name != TCP_INFO || *bytes < sizeof info) return fail(ENOPROTOOPT);
    if (x->peer >= 0) {
        const struct sim_socket *y = &s->sockets[x->peer];
        const bool cut = sim_is_cut(s, x->owner, y->owner);
        if (y->in.acked < y->in.written) {
            const uint64_t waited = s->now_ns - y->in.unacked_ns;
            info.tcpi_unacked = 1;
            uint64_t last = 0;
            for (uint64_t at = s->w->rto_ns; at <= waited; at = 2 * at + s->w->rto_ns, info.tcpi_retransmits++) last = at;
            info.tcpi_last_data_sent = (uint32_t)((waited - last) / BASE_NS_PER_MS);
        } else if (room_to(s, x) == 0 && cut && s->now_ns - x->heard_ns > 4 * RTO_NS)
            info.tcpi_probes = 2; /* of the closed window */
    }
    info.tcpi_last_ack_recv = (uint32_t)((s->now_ns - x->heard_ns) / BASE_NS_PER_MS);
    info.tcpi_last_data_recv = (uint32_t)((s->now_ns - x->data_ns) / BASE_NS_PER_MS);
    memcpy(value, &info, sizeof info);
    return 0;
}

/* How much of a transfer is done in one call. */
static size_t how_much(struct comm_sim *s, uint64_t wanted) {
    return (size_t)(wanted > 1 && sim_chance(s, s->w->short_permille) ? 1 + sim_random(s, wanted) : wanted);
}

static void put_bytes(const struct comm_sim *s, struct sim_stream *in, uint64_t at, const unsigned char *from, size_t bytes) {
    const size_t window = s->w->window_bytes, first = bytes < window - at % window ? bytes : window - at % window;
    memcpy(in->ring + at % window, from, first);
    memcpy(in->ring, from + first, bytes - first);
}

/* Of what was lent, that before until is what it is now; of the ith of its stream. */
static void take_of(const struct comm_sim *s, struct sim_stream *in, int i, uint64_t until) {
    const struct sim_lent *l = &in->lent[i];
    const uint64_t from = in->read > l->at ? in->read : l->at, end = until < l->at + l->bytes ? until : l->at + l->bytes;
    if (from < end) put_bytes(s, in, from, l->from + (from - l->at), (size_t)(end - from));
    if (until < l->at + l->bytes) return;
    in->n_lent--;
    memmove(&in->lent[i], &in->lent[i + 1], (size_t)(in->n_lent - i) * sizeof in->lent[i]);
}

static void take_lent(const struct comm_sim *s, struct sim_stream *in, uint64_t until) {
    for (int i = in->n_lent; i-- > 0;)
        if (in->lent[i].at < until) take_of(s, in, i, until);
}

static ssize_t send_bytes(const struct comm_os *os, int fd, const void *data, size_t bytes, bool is_lent) {
    struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    struct comm_sim *s = task_of(os)->sim;
    if (x->error) {
        const int error = x->error;
        x->error = 0;
        return fail(error);
    }
    if (x->state == SOCKET_DATAGRAM) return sim_datagram_send(s, fd, data, bytes);
    if (x->state == SOCKET_RESET) return fail(EPIPE);
    if (x->state != SOCKET_CONNECTED) return fail(EAGAIN);
    if (sim_chance(s, s->w->interrupt_permille)) return fail(EINTR);
    struct sim_socket *y = &s->sockets[x->peer];
    const uint64_t room = room_to(s, x);
    if (room == 0) return fail(EAGAIN);
    const size_t n = how_much(s, bytes < room ? bytes : room);
    SIM_NOTE(s, x->owner, "sends %zu of %zu bytes to rank %d (socket %d)", n, bytes, y->owner, fd);
    if (y->closed && !sim_is_cut(s, x->owner, y->owner)) { /* they vanish; its system answers */
        if (y->state != SOCKET_RESET) send_reset(s, y->owner, fd, ECONNRESET, false);
        return (ssize_t)n;
    }
    struct sim_stream *out = &y->in;
    put_bytes(s, out, out->written, data, n);
    if (is_lent) {
        if (out->n_lent == SIM_MAX_LENT) take_of(s, out, 0, UINT64_MAX);
        out->lent[out->n_lent++] = (struct sim_lent){.at = out->written, .from = data, .bytes = n};
    }
    if (out->acked == out->written) {
        hear_probes(s, x);
        out->unacked_ns = s->now_ns;
    }
    out->written += n;
    if (n > 1 && sim_chance(s, s->w->short_permille)) add_segment(s, x->peer, out->written - sim_random(s, n), false);
    add_segment(s, x->peer, out->written, false);
    return (ssize_t)n;
}

static ssize_t sim_send(const struct comm_os *os, int fd, const void *data, size_t bytes) { return send_bytes(os, fd, data, bytes, false); }

static ssize_t sim_send_two(const struct comm_os *os, int fd, const void *first, size_t first_bytes, const void *second, size_t second_bytes) {
    static unsigned char joined[COMM_SIM_MAX_TASKS][COMM_SIM_MAX_WINDOW_BYTES]; /* no connection takes more; others may send while this call takes its time */
    unsigned char *both = joined[task_of(os)->i];
    const size_t a = first_bytes < sizeof *joined ? first_bytes : sizeof *joined, b = second_bytes < sizeof *joined - a ? second_bytes : sizeof *joined - a;
    memcpy(both, first, a);
    memcpy(both + a, second, b);
    return send_bytes(os, fd, both, a + b, false);
}

static ssize_t sim_send_pages(const struct comm_os *os, int fd, const struct comm_pages *pages, size_t offset, size_t bytes) {
    return send_bytes(os, fd, pages->memory + offset, bytes, true);
}

static ssize_t sim_recv(const struct comm_os *os, int fd, void *data, size_t bytes) {
    struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    struct comm_sim *s = task_of(os)->sim;
    struct sim_stream *in = &x->in;
    if (sim_chance(s, s->w->interrupt_permille)) return fail(EINTR);
    if (x->state == SOCKET_DATAGRAM && !x->error) return sim_datagram_receive(s, fd, data, bytes);
    const uint64_t there = in->arrived - in->read;
    if (there) {
        const size_t n = how_much(s, bytes < there ? bytes : there), window = s->w->window_bytes;
        take_lent(s, in, in->read + n);
        const size_t at = in->read % window, first = n < window - at ? n : window - at;
        memcpy(data, in->ring + at, first);
        memcpy((unsigned char *)data + first, in->ring, n - first);
        in->read += n;
        acknowledge(s, x);
        SIM_NOTE(s, x->owner, "receives %zu of %zu bytes (socket %d)", n, bytes, fd);
        return (ssize_t)n;
    }
    if (in->fin) {
        SIM_NOTE(s, x->owner, "receives the end (socket %d)", fd);
        return 0;
    }
    if (x->error) {
        const int error = x->error;
        x->error = 0;
        SIM_NOTE(s, x->owner, "receives an error (socket %d): %s", fd, strerror(error));
        return fail(error);
    }
    return x->state == SOCKET_RESET ? 0 : fail(EAGAIN);
}

static int sim_n_unsent(const struct comm_os *os, int fd) {
    const struct sim_socket *x = enter(os, fd);
    if (!x) return -1;
    const struct comm_sim *s = task_of(os)->sim;
    /* A closed window or a cut holds back what was given last. */
    return x->state == SOCKET_CONNECTED && (room_to(s, x) == 0 || sim_is_cut(s, x->owner, s->sockets[x->peer].owner))
               ? (int)(s->sockets[x->peer].in.written - s->sockets[x->peer].in.arrived)
               : 0;
}

static int sim_close(const struct comm_os *os, int fd) {
    struct sim_task *t = task_of(os);
    if (t->dead) return 0; /* its system has done so */
    if (!enter(os, fd)) return t->dead ? 0 : -1;
    SIM_NOTE(t->sim, t->i, "closes socket %d", fd);
    close_socket(t->sim, fd, false);
    return 0;
}

static int sim_poll(const struct comm_os *os, struct pollfd *fds, size_t n, uint64_t timeout_ns) {
    struct sim_task *t = task_of(os);
    struct comm_sim *s = t->sim;
    if (!sim_spend(t, s->w->call_ns)) return fail(EINTR);
    for (size_t i = 0; i < n; i++)
        if (fds[i].fd >= 0 && !socket_of(t, fds[i].fd)) fds[i].fd = -1;
    if (timeout_ns && !sim_net_is_ready(s, fds, n) && !sim_chance(s, s->w->interrupt_permille)) {
        t->polled = fds;
        t->n_polled = n;
        sim_wait(t, timeout_ns > UINT64_MAX - s->now_ns ? UINT64_MAX : s->now_ns + timeout_ns + sim_random(s, BASE_NS_PER_MS / 10));
        t->polled = NULL;
        t->n_polled = 0;
        if (t->dead) return fail(EINTR);
    }
    int n_ready = 0;
    for (size_t i = 0; i < n; i++) {
        fds[i].revents = fds[i].fd >= 0 ? revents(s, &s->sockets[fds[i].fd], fds[i].events) : (short)0;
        n_ready += fds[i].revents != 0;
    }
    return n_ready;
}

static void sim_yield(const struct comm_os *os) {
    struct sim_task *t = task_of(os);
    sim_spend(t, t->sim->w->yield_ns);
}

static void *sim_map(const struct comm_os *os, size_t bytes) {
    struct sim_task *t = task_of(os);
    struct comm_sim *s = t->sim;
    for (int i = 0; i < s->w->n_faults; i++) {
        struct comm_sim_fault *f = &s->w->faults[i];
        if (f->kind != COMM_SIM_NO_MEMORY || f->a != t->i) continue;
        f->fired_ns = s->now_ns ? s->now_ns : 1;
        SIM_NOTE(s, t->i, "FAULT: no memory");
        return NULL;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    s->mapped_bytes += bytes;
    return memory;
}

static void sim_unmap(const struct comm_os *os, void *memory, size_t bytes) {
    task_of(os)->sim->mapped_bytes -= bytes;
    munmap(memory, bytes);
}

/* Of every second rank, of all sizes. */
static enum st sim_map_pages(const struct comm_os *os, size_t bytes, struct comm_pages *pages) {
    if (task_of(os)->i % 2) return ST_UNSUPPORTED;
    unsigned char *memory = sim_map(os, bytes);
    if (!memory) return ST_NO_MEMORY;
    *pages = (struct comm_pages){.pipe = {-1, -1}, .memory = memory, .bytes = bytes, .most = SIZE_MAX};
    return ST_OK;
}

/* What was sent from there stays what it is now. */
static void sim_unmap_pages(const struct comm_os *os, struct comm_pages *pages) {
    struct comm_sim *s = task_of(os)->sim;
    for (int k = 0; k < s->n_sockets; k++) {
        struct sim_stream *in = &s->sockets[k].in;
        for (int i = in->n_lent; i-- > 0;)
            if (in->lent[i].from >= pages->memory && in->lent[i].from < pages->memory + pages->bytes) take_of(s, in, i, UINT64_MAX);
    }
    sim_unmap(os, pages->memory, pages->bytes);
}

void sim_net_fill(struct comm_os *os) {
    *os = (struct comm_os){
        .socket = sim_socket,
        .datagrams = sim_datagrams,
        .bind = sim_bind,
        .listen = sim_listen,
        .getsockname = sim_getsockname,
        .accept = sim_accept,
        .connect = sim_connect,
        .setsockopt = sim_setsockopt,
        .getsockopt = sim_getsockopt,
        .send = sim_send,
        .send_two = sim_send_two,
        .recv = sim_recv,
        .n_unsent = sim_n_unsent,
        .close = sim_close,
        .poll = sim_poll,
        .yield = sim_yield,
        .map = sim_map,
        .unmap = sim_unmap,
        .map_pages = sim_map_pages,
        .unmap_pages = sim_unmap_pages,
        .send_pages = sim_send_pages,
    };
}
