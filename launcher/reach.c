/* A connector sends one packet of the probes' form (LAUNCH_PACKET_TCP_CALL, a nonce) and wants it back as LAUNCH_PACKET_TCP_ANSWER, with a challenge; that it sends back as
 * LAUNCH_PACKET_TCP_PROOF. A listener keeps at most MAX_GUESTS connections; the oldest that has not proved anything gives way. Strangers may come in numbers: who is accepted is listened
 * to before anybody gives way, and a connector that is hung up on comes again. */
#include "launcher/reach.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

#define PATIENCE_NS (5 * BASE_NS_PER_S)
#define AGAIN_NS (20 * BASE_NS_PER_MS)
enum { MAX_GUESTS = 64, NAME_BYTES = 64 };

struct guest {
    int fd;
    size_t n_got; /* of the packet that it is at */
    uint8_t packet[LAUNCH_PACKET_BYTES];
    int host; /* as it says */
    uint64_t challenge; /* that it was sent; 0: it has not called yet */
    bool is_proven;
};

struct launch_reach {
    struct launch_reach_options o;
    const struct base_clock *clock;
    char from_name[NAME_BYTES], to_name[NAME_BYTES], interface[IF_NAMESIZE], to_interface[IF_NAMESIZE];
    struct launch_address from, to;
    int fd; /* listener's or connector's */
    int epoll; /* listener: of all its sockets; −1 */
    int port;
    /* connector */
    bool is_connector, is_connected;
    int index; /* of its interface */
    uint64_t until_ns, nonce;
    uint64_t again_ns; /* it was hung up on, and connects again then; 0: it was not */
    int error;         /* to tell when the time is over: of the last time that it was hung up on, ETIMEDOUT if it never was */
    struct guest answer; /* fd unused */
    enum st result;
    struct err why;
    /* listener */
    struct guest guests[MAX_GUESTS]; /* the oldest first */
    int n_guests;
    bool was_called, has_told; /* of strangers */
};

/* ---- the sentence ---------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st code_of(int error) { return error == ETIMEDOUT ? ST_TIMEOUT : error == ECONNREFUSED || error == ECONNRESET || error == EPIPE ? ST_PEER_LOST : ST_IO; }

enum st launch_reach_explain(const struct launch_reach_ends *n, int error, struct err *e)
{
    char from[LAUNCH_ADDRESS_TEXT], to[LAUNCH_ADDRESS_TEXT], rule[320], ports[32], range[32];
    const bool is_range = n->first_port && n->last_port > n->first_port;
    launch_address_text(n->from, NULL, from);
    launch_address_text(n->to, NULL, to);
    if (is_range) {
        snprintf(ports, sizeof ports, "%d:%d", n->first_port, n->last_port);
        snprintf(range, sizeof range, "%d-%d", n->first_port, n->last_port);
    } else {
        snprintf(ports, sizeof ports, "%d", n->port);
        snprintf(range, sizeof range, "%d", n->port);
    }
    /* Link-local addresses belong to a link: the rule names it. */
    const bool is_local = launch_address_is_link_local(n->to);
    snprintf(rule, sizeof rule, "sudo ufw allow %s%.15s%sfrom %s to any port %s proto tcp (or: sudo nft insert rule inet filter input %s saddr %s tcp dport %s accept)", is_local ? "in on " : "",
             is_local ? n->to_interface : "", is_local ? " " : "", from, ports, n->to->family == AF_INET6 ? "ip6" : "ip", from, range);
    return err_set(e, code_of(error), "%.40s (%s, %.15s) cannot reach %.40s (%s, %.15s) port %d by TCP: %s; a firewall? on %.40s: %s%s", n->from_name, from, n->from_interface, n->to_name, to,
                   n->to_interface, n->port, error == ETIMEDOUT ? "connection timed out" : strerror(error), n->to_name, rule, n->is_port_fixed ? "" : "; with --port the port stays the same");
}

/* ---- opening --------------------------------------------------------------------------------------------------------------------------------------------------- */

static struct launch_reach *create(const struct launch_reach_options *o, const char *interface, const struct launch_address *from, struct err *e)
{
    struct launch_reach *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(e, ST_NO_MEMORY, "no memory");
        return NULL;
    }
    r->o = *o;
    r->clock = o->clock ? o->clock : base_clock_real();
    snprintf(r->from_name, sizeof r->from_name, "%s", o->from_name ? o->from_name : "?");
    snprintf(r->to_name, sizeof r->to_name, "%s", o->to_name ? o->to_name : "?");
    snprintf(r->interface, sizeof r->interface, "%s", interface);
    r->from = *from;
    r->fd = r->epoll = -1;
    return r;
}

static enum st open_socket(struct launch_reach *r, int index, int port, struct err *e)
{
    struct sockaddr_storage s;
    const socklen_t n = launch_address_socket(&r->from, index, port, &s);
    const int one = 1;
    char text[LAUNCH_ADDRESS_TEXT];
    r->fd = socket(r->from.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (r->fd >= 0) {
        (void)setsockopt(r->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        (void)setsockopt(r->fd, SOL_SOCKET, SO_BINDTODEVICE, r->interface, (socklen_t)strlen(r->interface)); /* what it may be refused for is told by the probe */
    }
    if (r->fd < 0 || bind(r->fd, (const struct sockaddr *)&s, n))
        return err_set(e, ST_IO, "%.60s cannot open %s (%s) port %d: %s%s", r->from_name, launch_address_text(&r->from, NULL, text), r->interface, port, strerror(errno),
                       errno == EADDRINUSE ? "; take another one by --port" : "");
    return ST_OK;
}

enum st launch_reach_listen(const struct launch_reach_options *o, const char *interface, int index, const struct launch_address *at, int port, struct launch_reach **out, struct err *e)
{
    struct launch_reach *r = create(o, interface, at, e);
    if (!r)
        return ST_NO_MEMORY;
    enum st st = open_socket(r, index, port, e);
    struct sockaddr_storage s;
    socklen_t n = sizeof s;
    if (!st) {
        struct epoll_event event = {.events = EPOLLIN};
        r->epoll = epoll_create1(EPOLL_CLOEXEC);
        if (listen(r->fd, SOMAXCONN) || getsockname(r->fd, (struct sockaddr *)&s, &n) || r->epoll < 0 || epoll_ctl(r->epoll, EPOLL_CTL_ADD, r->fd, &event))
            st = err_set(e, ST_IO, "%.60s cannot listen at port %d: %s", r->from_name, port, strerror(errno));
    }
    if (st) {
        launch_reach_close(r);
        return st;
    }
    r->port = ntohs(((const struct sockaddr_in *)(const void *)&s)->sin_port); /* at the same place in both families */
    *out = r;
    return ST_OK;
}

static int begin_connecting(struct launch_reach *r)
{
    struct sockaddr_storage s;
    const socklen_t n = launch_address_socket(&r->to, r->index, r->port, &s);
    return connect(r->fd, (const struct sockaddr *)&s, n) && errno != EINPROGRESS ? -1 : 0;
}

static enum st end_with(struct launch_reach *r, int error, struct err *e)
{
    const struct launch_reach_ends ends = {r->from_name, r->interface, r->to_name, r->to_interface, &r->from, &r->to, r->port, r->o.is_port_fixed, r->o.first_port, r->o.last_port};
    r->result = launch_reach_explain(&ends, error, &r->why);
    if (e)
        *e = r->why;
    return r->result;
}

enum st launch_reach_connect(const struct launch_reach_options *o, const char *interface, int index, const struct launch_address *from, const char *to_interface,
                             const struct launch_address *to, int port, struct launch_reach **out, struct err *e)
{
    struct launch_reach *r = create(o, interface, from, e);
    if (!r)
        return ST_NO_MEMORY;
    r->to = *to;
    snprintf(r->to_interface, sizeof r->to_interface, "%s", to_interface);
    r->port = port;
    r->is_connector = true;
    r->error = ETIMEDOUT;
    r->result = ST_AGAIN;
    r->until_ns = base_now_ns(r->clock) + (o->patience_ns ? o->patience_ns : PATIENCE_NS);
    enum st st = open_socket(r, index, 0, e);
    if (!st && getrandom(&r->nonce, sizeof r->nonce, 0) != sizeof r->nonce)
        st = err_set(e, ST_IO, "no random numbers: %s", strerror(errno));
    if (st) {
        launch_reach_close(r);
        return st;
    }
    r->index = index;
    if (begin_connecting(r)) {
        st = end_with(r, errno, e);
        launch_reach_close(r);
        return st;
    }
    *out = r;
    return ST_OK;
}

int launch_reach_port(const struct launch_reach *r) { return r->port; }
int launch_reach_fd(const struct launch_reach *r) { return r->is_connector ? r->fd : r->epoll; }
short launch_reach_events(const struct launch_reach *r) { return r->is_connector && !r->is_connected ? POLLOUT : POLLIN; }
uint64_t launch_reach_wake_ns(const struct launch_reach *r)
{
    if (!r->is_connector || r->result != ST_AGAIN)
        return BASE_NO_DEADLINE;
    return r->again_ns && r->again_ns < r->until_ns ? r->again_ns : r->until_ns;
}

void launch_reach_close(struct launch_reach *r)
{
    if (!r)
        return;
    for (int i = 0; i < r->n_guests; i++)
        close(r->guests[i].fd);
    if (r->fd >= 0)
        close(r->fd);
    if (r->epoll >= 0)
        close(r->epoll);
    explicit_bzero(r->o.key, sizeof r->o.key);
    free(r);
}

/* ---- connector ------------------------------------------------------------------------------------------------------------------------------------------------- */

/* 1: all is there; 0: not yet; −1: the end. */
static int read_packet(int fd, struct guest *g)
{
    const ssize_t n = recv(fd, g->packet + g->n_got, LAUNCH_PACKET_BYTES - g->n_got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        errno = n ? errno : ECONNRESET;
        return -1;
    }
    g->n_got += (size_t)n;
    return g->n_got == LAUNCH_PACKET_BYTES;
}

static enum st step_connector(struct launch_reach *r, struct err *e)
{
    if (r->result != ST_AGAIN) {
        if (r->result && e)
            *e = r->why;
        return r->result;
    }
    uint8_t packet[LAUNCH_PACKET_BYTES];
    if (r->again_ns) {
        if (base_now_ns(r->clock) < r->again_ns)
            return ST_AGAIN;
        r->again_ns = 0;
        if (open_socket(r, r->index, 0, &r->why)) {
            if (e)
                *e = r->why;
            return r->result = ST_IO;
        }
        if (begin_connecting(r))
            return end_with(r, errno, e);
    }
    if (!r->is_connected) {
        struct pollfd p = {.fd = r->fd, .events = POLLOUT};
        int error = 0;
        socklen_t n = sizeof error;
        if (poll(&p, 1, 0) <= 0)
            return base_now_ns(r->clock) >= r->until_ns ? end_with(r, r->error, e) : ST_AGAIN;
        getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error)
            return end_with(r, error, e);
        const struct launch_packet call = {.kind = LAUNCH_PACKET_TCP_CALL, .from_host = r->o.host, .to_host = r->o.to_host, .nonce = r->nonce, .bytes = LAUNCH_PACKET_BYTES};
        launch_packet_put(r->o.key, &call, packet);
        if (send(r->fd, packet, sizeof packet, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof packet) /* always fits into a fresh socket */
            return end_with(r, errno, e);
        r->is_connected = true;
    }
    const int got = read_packet(r->fd, &r->answer);
    if (got < 0) { /* others crowd there, perhaps */
        r->error = errno;
        if (base_now_ns(r->clock) + AGAIN_NS >= r->until_ns)
            return end_with(r, r->error, e);
        close(r->fd);
        r->fd = -1;
        r->answer.n_got = 0;
        r->is_connected = false;
        r->again_ns = base_now_ns(r->clock) + AGAIN_NS;
        return ST_AGAIN;
    }
    if (!got)
        return base_now_ns(r->clock) >= r->until_ns ? end_with(r, r->error, e) : ST_AGAIN;
    struct launch_packet answer;
    if (!launch_packet_get(r->o.key, r->answer.packet, LAUNCH_PACKET_BYTES, &answer) || answer.kind != LAUNCH_PACKET_TCP_ANSWER || answer.nonce != r->nonce) {
        char text[LAUNCH_ADDRESS_TEXT];
        r->result = err_set(&r->why, ST_MISMATCH, "what answers at %s port %d is not %.40s's part of this job", launch_address_text(&r->to, NULL, text), r->port, r->to_name);
        if (e)
            *e = r->why;
        return r->result;
    }
    const struct launch_packet proof = {.kind = LAUNCH_PACKET_TCP_PROOF, .from_host = r->o.host, .to_host = r->o.to_host, .nonce = answer.challenge, .bytes = LAUNCH_PACKET_BYTES};
    launch_packet_put(r->o.key, &proof, packet);
    if (send(r->fd, packet, sizeof packet, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof packet)
        return end_with(r, errno, e);
    return r->result = ST_OK;
}

/* ---- listener -------------------------------------------------------------------------------------------------------------------------------------------------- */

static void drop_guest(struct launch_reach *r, int i)
{
    close(r->guests[i].fd);
    memmove(&r->guests[i], &r->guests[i + 1], (size_t)(r->n_guests - i - 1) * sizeof r->guests[0]);
    r->n_guests--;
}

static bool answer_call(const struct launch_reach *r, struct guest *g, struct launch_packet call)
{
    uint8_t packet[LAUNCH_PACKET_BYTES];
    while (g->challenge == 0)
        if (getrandom(&g->challenge, sizeof g->challenge, 0) != sizeof g->challenge)
            return false;
    g->host = call.from_host;
    call.kind = LAUNCH_PACKET_TCP_ANSWER;
    call.challenge = g->challenge;
    launch_packet_put(r->o.key, &call, packet);
    return send(g->fd, packet, sizeof packet, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof packet;
}

/* False: it may go. Who has proved itself is held until it goes, or is taken: what it says then is not for us. */
static bool serve(struct launch_reach *r, struct guest *g)
{
    while (!g->is_proven) {
        const int got = read_packet(g->fd, g);
        if (got <= 0)
            return got == 0;
        struct launch_packet p;
        const enum launch_packet_kind wanted = g->challenge ? LAUNCH_PACKET_TCP_PROOF : LAUNCH_PACKET_TCP_CALL;
        if (!launch_packet_get(r->o.key, g->packet, LAUNCH_PACKET_BYTES, &p) || p.kind != wanted || p.to_host != r->o.host ||
            (g->challenge && (p.nonce != g->challenge || p.from_host != g->host))) {
            if (!r->has_told)
                LOG_WARNING("reach", "%s port %d: a connection was dropped: it did not prove that it belongs to this job (no others will be told of)", r->interface, r->port);
            r->has_told = true;
            return false;
        }
        g->n_got = 0;
        if (g->challenge)
            r->was_called = g->is_proven = true;
        else if (!answer_call(r, g, p))
            return false;
    }
    uint8_t more;
    const ssize_t n = recv(g->fd, &more, 1, MSG_DONTWAIT | MSG_PEEK);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static void accept_guests(struct launch_reach *r)
{
    for (int i = 0; i < 64; i++) {
        const int fd = accept4(r->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct guest guest = {.fd = fd};
        if (!serve(r, &guest)) {
            close(fd);
            continue;
        }
        int oldest = 0;
        while (r->n_guests == MAX_GUESTS && oldest < MAX_GUESTS - 1 && r->guests[oldest].is_proven)
            oldest++;
        if (r->n_guests == MAX_GUESTS)
            drop_guest(r, oldest);
        struct epoll_event event = {.events = EPOLLIN};
        if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &event)) {
            close(fd);
            return;
        }
        r->guests[r->n_guests++] = guest;
    }
}

static enum st step_listener(struct launch_reach *r)
{
    accept_guests(r);
    for (int i = r->n_guests - 1; i >= 0; i--)
        if (!serve(r, &r->guests[i]))
            drop_guest(r, i);
    return r->was_called ? ST_OK : ST_AGAIN;
}

int launch_reach_take(struct launch_reach *r, int *host)
{
    const int one = 1;
    int fd = -1;
    if (r->is_connector && r->result == ST_OK) {
        fd = r->fd;
        *host = r->o.to_host;
        r->fd = -1;
    }
    for (int i = 0; i < r->n_guests && fd < 0; i++)
        if (r->guests[i].is_proven) {
            fd = r->guests[i].fd;
            *host = r->guests[i].host;
            (void)epoll_ctl(r->epoll, EPOLL_CTL_DEL, fd, NULL);
            memmove(&r->guests[i], &r->guests[i + 1], (size_t)(r->n_guests - i - 1) * sizeof r->guests[0]);
            r->n_guests--;
        }
    if (fd >= 0)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

enum st launch_reach_step(struct launch_reach *r, struct err *e) { return r->is_connector ? step_connector(r, e) : step_listener(r); }
