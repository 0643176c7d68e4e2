/* A call is a packet to one address of a peer; an answer the same packet back, just as long. Small calls first, every ROUND_NS until one is answered or patience ends; then calls of the
 * sizes worth knowing, forbidden to be cut (IP_PMTUDISC_PROBE: whatever the kernel believes about the path). The number of the round lies in the nonce, so an answer that is late is
 * timed against the call that it belongs to.
 * A socket that is bound to an interface sends and receives by that one alone, whatever the routing table says: so what came back names the two interfaces. Both sides call from the
 * very sockets that they answer from: a firewall that lets answers in lets these through (TCP is tried apart: reach.h). */
#include "launcher/probe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/le.h"
#include "base/log.h"

#define MAGIC "tndmprb1"
#define ROUND_NS (50 * BASE_NS_PER_MS)
#define PATIENCE_NS (2 * BASE_NS_PER_S)
#define SETTLE_NS (250 * BASE_NS_PER_MS) /* drivers count late */
enum { PROOF_TRIES = 3 /* others' traffic may have been counted */ };
enum { N_SIZES = 6, MAX_ROUNDS = 128, SIZE_TRIES = 4, RTT_TRIES = 4, BURST_PACKETS = 64, MAX_DATAGRAM = 65536, HEARD_PART = 3 };

/* ---- packets --------------------------------------------------------------------------------------------------------------------------------------------------- */

void launch_packet_put(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const struct launch_packet *p, uint8_t out[LAUNCH_PACKET_BYTES])
{
    memset(out, 0, LAUNCH_PACKET_BYTES);
    memcpy(out, MAGIC, 8);
    out[8] = (uint8_t)p->kind;
    out[9] = (uint8_t)p->from_host;
    out[10] = (uint8_t)p->to_host;
    base_put_le(out + 12, (uint64_t)p->from_endpoint, 2);
    base_put_le(out + 14, (uint64_t)p->to_endpoint, 2);
    base_put_le(out + 16, p->nonce, 8);
    base_put_le(out + 24, p->bytes, 4);
    base_put_le(out + 28, p->challenge, 8);
    (void)base_mac(key, out, 48, out + 48);
}

bool launch_packet_get(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const uint8_t *data, size_t bytes, struct launch_packet *p)
{
    if (bytes < LAUNCH_PACKET_BYTES || memcmp(data, MAGIC, 8) != 0 || base_get_le(data + 24, 4) != bytes || !base_mac_is(key, data, 48, data + 48))
        return false;
    if (data[8] < LAUNCH_PACKET_CALL || data[8] > LAUNCH_PACKET_TCP_PROOF || data[9] >= LAUNCH_MAX_HOSTS || data[10] >= LAUNCH_MAX_HOSTS)
        return false;
    *p = (struct launch_packet){
        .kind = (enum launch_packet_kind)data[8],
        .from_host = data[9],
        .to_host = data[10],
        .from_endpoint = (int)base_get_le(data + 12, 2),
        .to_endpoint = (int)base_get_le(data + 14, 2),
        .nonce = base_get_le(data + 16, 8),
        .challenge = base_get_le(data + 28, 8),
        .bytes = (uint32_t)bytes,
    };
    return true;
}

int launch_pair_worth(const struct launch_interface *a, const struct launch_address *aa, const struct launch_interface *b, const struct launch_address *ba, bool same_machine)
{
    if (aa->family != ba->family || launch_address_is_link_local(aa) != launch_address_is_link_local(ba))
        return -1;
    if (same_machine) /* of the same namespace: no wire is better than none */
        return a->medium == LAUNCH_LOOPBACK && b->medium == LAUNCH_LOOPBACK ? 0 : -1;
    if (a->medium == LAUNCH_LOOPBACK || b->medium == LAUNCH_LOOPBACK)
        return -1;
    if (launch_address_equal(aa, ba)) /* containers' bridges have the same address everywhere */
        return -1;
    const int medium = (int)(a->medium > b->medium ? a->medium : b->medium);
    if (launch_address_share_subnet(aa, ba))
        return medium;
    return medium < LAUNCH_VIRTUAL ? 4 + medium : -1; /* through a router, perhaps */
}

/* ---- state ----------------------------------------------------------------------------------------------------------------------------------------------------- */

struct call {
    int host, own, peer; /* endpoints */
    uint64_t nonce;      /* its low byte is the round */
    uint64_t sent_ns[MAX_ROUNDS];
    uint64_t rtt_ns; /* 0: no answer yet */
    int n_rtt, n_asked; /* answered; asked since the first answer */
    int sizes[N_SIZES];        /* payloads, ascending; 0: none */
    bool is_through[N_SIZES];
    int n_tries[N_SIZES];
    bool is_over;
};

struct peer {
    bool is_known;
    struct launch_interfaces interfaces;
    struct launch_endpoints endpoints;
    uint64_t begun_ns, next_ns; /* of calls: the first round, the next */
    uint64_t heard_ns;          /* the first answer: it knows us by now; 0: none */
    int round;
};

struct launch_probe {
    struct launch_probe_options o;
    const struct base_clock *clock;
    struct launch_interfaces own;
    struct launch_endpoints endpoints;
    int fds[LAUNCH_MAX_ENDPOINTS];
    int indexes[LAUNCH_MAX_ENDPOINTS]; /* of their interfaces */
    int epoll;
    struct peer *peers[LAUNCH_MAX_HOSTS];
    struct call *calls;
    int n_calls, capacity;
    /* rails */
    struct launch_facing rails[LAUNCH_MAX_RAILS];
    struct launch_proof proofs[LAUNCH_MAX_RAILS];
    uint64_t counted[LAUNCH_MAX_RAILS];
    int n_rails, n_proved, n_tries; /* done with; of the one in hand */
    bool is_sent;
    uint64_t prove_ns;
    uint64_t n_strange; /* packets of nobody's that we know: two lines, at the first one and at the end */
    uint8_t datagram[MAX_DATAGRAM];
};

/* ---- opening --------------------------------------------------------------------------------------------------------------------------------------------------- */

static void set_option(int fd, int level, int name, int value) { (void)setsockopt(fd, level, name, &value, sizeof value); }

static int open_socket(const struct launch_interface *i, const struct launch_address *a, int port, int *bound_port)
{
    struct sockaddr_storage s;
    socklen_t bytes = launch_address_socket(a, i->index, port, &s);
    const int fd = socket(a->family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (a->family == AF_INET) {
        set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
    } else {
        set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
        set_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
        set_option(fd, IPPROTO_IPV6, IPV6_DONTFRAG, 1);
    }
    /* Older kernels (before 5.7) want a privilege for it; the address alone then has to do. */
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, i->name, (socklen_t)strlen(i->name)))
        LOG_INFORM("probe", "a socket cannot be bound to %s: %s", i->name, strerror(errno));
    if (bind(fd, (const struct sockaddr *)&s, bytes) || (bytes = sizeof s, getsockname(fd, (struct sockaddr *)&s, &bytes))) {
        char text[LAUNCH_ADDRESS_TEXT];
        LOG_INFORM("probe", "no socket at %s port %d: %s", launch_address_text(a, i->name, text), port, strerror(errno));
        close(fd);
        return -1;
    }
    /* The port lies at the same place in both families. */
    *bound_port = ntohs(((const struct sockaddr_in *)(const void *)&s)->sin_port);
    return fd;
}

static void open_endpoint(struct launch_probe *p, const struct launch_interface *i, const struct launch_address *a)
{
    struct launch_endpoints *all = &p->endpoints;
    if (all->n == LAUNCH_MAX_ENDPOINTS)
        return;
    int port = 0;
    const int fd = open_socket(i, a, p->o.port, &port);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)all->n};
    if (fd < 0 || epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &event)) {
        if (fd >= 0)
            close(fd);
        return;
    }
    p->fds[all->n] = fd;
    p->indexes[all->n] = i->index;
    struct launch_endpoint *end = &all->list[all->n++];
    *end = (struct launch_endpoint){.address = *a, .port = port};
    memcpy(end->interface, i->name, sizeof end->interface);
}

enum st launch_probe_open(const struct launch_interfaces *own, const struct launch_probe_options *options, struct launch_probe **out, struct err *e)
{
    BASE_ASSERT(options->host >= 0 && options->host < LAUNCH_MAX_HOSTS);
    struct launch_probe *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ST_NO_MEMORY, "no memory");
    p->o = *options;
    p->clock = options->clock ? options->clock : base_clock_real();
    p->o.patience_ns = options->patience_ns ? options->patience_ns : PATIENCE_NS;
    p->own = *own;
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (p->epoll < 0) {
        free(p);
        return err_set(e, ST_IO, "no epoll: %s", strerror(errno));
    }
    /* The best first, where not all fit. */
    for (int medium = LAUNCH_WIRE; medium <= LAUNCH_LOOPBACK; medium++)
        for (int i = 0; i < own->n; i++)
            for (int k = 0; k < own->list[i].n_addresses; k++)
                if ((int)own->list[i].medium == medium && own->list[i].is_up)
                    open_endpoint(p, &own->list[i], &own->list[i].addresses[k]);
    if (!p->endpoints.n) {
        launch_probe_close(p);
        return err_set(e, ST_IO, "no network interface has an address that a socket can be bound to%s", options->port ? ", with this port" : "");
    }
    *out = p;
    return ST_OK;
}

void launch_probe_close(struct launch_probe *p)
{
    if (!p)
        return;
    if (p->n_strange > 1)
        LOG_WARNING("probe", "%llu packets were dropped that are not of this job", (unsigned long long)p->n_strange);
    for (int i = 0; i < p->endpoints.n; i++)
        close(p->fds[i]);
    close(p->epoll);
    for (int h = 0; h < LAUNCH_MAX_HOSTS; h++)
        free(p->peers[h]);
    free(p->calls);
    explicit_bzero(p->o.key, sizeof p->o.key);
    free(p);
}

void launch_probe_endpoints(const struct launch_probe *p, struct launch_endpoints *out) { *out = p->endpoints; }
int launch_probe_fd(const struct launch_probe *p) { return p->epoll; }

/* ---- peers ------------------------------------------------------------------------------------------------------------------------------------------------------ */

static int header_bytes(int family) { return family == AF_INET6 ? 48 : 28; }

/* Ascending and once each: what is common, and the most that both interfaces take. */
static void choose_sizes(struct call *c, int family, int most)
{
    const int wanted[] = {1280, 1500, 4200, 9000};
    most = most > 65535 ? 65535 : most;
    int n = 0;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (wanted[i] < most)
            c->sizes[n++] = wanted[i] - header_bytes(family);
    if (most - header_bytes(family) >= LAUNCH_PACKET_BYTES)
        c->sizes[n++] = most - header_bytes(family);
}

static enum st add_call(struct launch_probe *p, int host, int own, int peer, int mtu, struct err *e)
{
    if (p->n_calls == p->capacity) {
        const int more = p->capacity ? 2 * p->capacity : 64;
        struct call *calls = realloc(p->calls, (size_t)more * sizeof *calls);
        if (!calls)
            return err_set(e, ST_NO_MEMORY, "no memory");
        p->calls = calls;
        p->capacity = more;
    }
    struct call *c = &p->calls[p->n_calls];
    *c = (struct call){.host = host, .own = own, .peer = peer};
    if (getrandom(&c->nonce, sizeof c->nonce, 0) != sizeof c->nonce)
        return err_set(e, ST_IO, "no random numbers: %s", strerror(errno));
    c->nonce &= ~0xffull;
    choose_sizes(c, p->endpoints.list[own].address.family, mtu);
    p->n_calls++;
    return ST_OK;
}

enum st launch_probe_peer(struct launch_probe *p, int host, const struct launch_interfaces *interfaces, const struct launch_endpoints *endpoints, struct err *e)
{
    if (host < 0 || host >= LAUNCH_MAX_HOSTS || host == p->o.host || p->peers[host])
        return err_set(e, ST_INVALID, "host %d is no peer that was not told before", host);
    struct peer *q = calloc(1, sizeof *q);
    if (!q)
        return err_set(e, ST_NO_MEMORY, "no memory");
    q->interfaces = *interfaces;
    q->endpoints = *endpoints;
    const bool same = launch_interfaces_same_machine(&p->own, interfaces);
    const int first = p->n_calls;
    enum st st = ST_OK;
    for (int worth = 0; worth < 8 && !st; worth++)
        for (int a = 0; a < p->endpoints.n && !st; a++)
            for (int b = 0; b < endpoints->n && !st && p->n_calls - first < LAUNCH_MAX_FACINGS; b++) {
                const struct launch_endpoint *x = &p->endpoints.list[a], *y = &endpoints->list[b];
                const struct launch_interface *i = launch_interface_find(&p->own, x->interface), *j = launch_interface_find(interfaces, y->interface);
                const struct launch_address *theirs = j ? launch_interface_address(j, &y->address) : NULL; /* with its prefix */
                if (i && theirs && launch_pair_worth(i, &x->address, j, theirs, same) == worth)
                    st = add_call(p, host, a, b, i->mtu < j->mtu ? i->mtu : j->mtu, e);
            }
    if (st) {
        p->n_calls = first;
        free(q);
        return st;
    }
    q->is_known = true;
    q->begun_ns = q->next_ns = base_now_ns(p->clock);
    p->peers[host] = q;
    return ST_OK;
}

/* ---- sending ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static void send_packet(struct launch_probe *p, const struct launch_packet *what, int own, const struct launch_endpoint *to)
{
    struct sockaddr_storage s;
    const socklen_t n = launch_address_socket(&to->address, p->indexes[own], to->port, &s);
    memset(p->datagram, 0, what->bytes);
    launch_packet_put(p->o.key, what, p->datagram);
    /* What cannot be sent now is like what was lost: it is sent again. Errors of earlier packets (nobody listens there yet) come here as well, instead of this one. */
    for (int i = 0; i < 3; i++)
        if (sendto(p->fds[own], p->datagram, what->bytes, MSG_DONTWAIT, (const struct sockaddr *)&s, n) >= 0 || (errno != ECONNREFUSED && errno != EHOSTUNREACH && errno != EINTR))
            break;
}

static void call_peer(struct launch_probe *p, struct call *c, const struct peer *q, int bytes, uint64_t now)
{
    const struct launch_packet what = {.kind = LAUNCH_PACKET_CALL,
                                       .from_host = p->o.host,
                                       .to_host = c->host,
                                       .from_endpoint = c->own,
                                       .to_endpoint = c->peer,
                                       .nonce = c->nonce | (uint64_t)q->round,
                                       .bytes = (uint32_t)bytes};
    c->sent_ns[q->round] = now;
    send_packet(p, &what, c->own, &q->endpoints.list[c->peer]);
}

/* Whether a call has anything left to ask, and then asks it. */
static void go_on_calling(struct launch_probe *p, struct call *c, struct peer *q, uint64_t now)
{
    /* Patience is for a peer that begins later. One that has answered somewhere answers at once wherever it can. */
    const bool is_late = now - q->begun_ns >= p->o.patience_ns || (q->heard_ns && now - q->heard_ns >= p->o.patience_ns / HEARD_PART) || q->round >= MAX_ROUNDS - 1;
    bool waits = false;
    if (c->is_over)
        return;
    if (!c->rtt_ns) {
        c->is_over = is_late;
        if (!is_late)
            call_peer(p, c, q, LAUNCH_PACKET_BYTES, now);
        return;
    }
    if (c->n_rtt < RTT_TRIES && c->n_asked < 2 * RTT_TRIES && !is_late) {
        c->n_asked++;
        call_peer(p, c, q, LAUNCH_PACKET_BYTES, now);
        waits = true;
    }
    for (int i = 0; i < N_SIZES && c->sizes[i]; i++) {
        if (c->is_through[i] || c->n_tries[i] > SIZE_TRIES)
            continue;
        waits = true; /* once more after the last one: its answer is on its way */
        if (c->n_tries[i]++ < SIZE_TRIES)
            call_peer(p, c, q, c->sizes[i], now);
    }
    c->is_over = !waits || q->round >= MAX_ROUNDS - 1;
}

static void run_round(struct launch_probe *p, int host, uint64_t now)
{
    struct peer *q = p->peers[host];
    bool is_over = true;
    for (int i = 0; i < p->n_calls; i++)
        if (p->calls[i].host == host) {
            go_on_calling(p, &p->calls[i], q, now);
            is_over = is_over && p->calls[i].is_over;
        }
    q->round += q->round < MAX_ROUNDS - 1;
    q->next_ns = is_over ? BASE_NO_DEADLINE : now + ROUND_NS;
}

/* ---- receiving -------------------------------------------------------------------------------------------------------------------------------------------------- */

static bool is_from(const struct launch_endpoint *end, int index, const struct sockaddr_storage *from)
{
    struct sockaddr_storage right;
    launch_address_socket(&end->address, index, end->port, &right);
    if (from->ss_family != right.ss_family)
        return false;
    const struct sockaddr_in *a = (const void *)from, *b = (const void *)&right;
    const struct sockaddr_in6 *x = (const void *)from, *y = (const void *)&right;
    return from->ss_family == AF_INET ? a->sin_port == b->sin_port && a->sin_addr.s_addr == b->sin_addr.s_addr
                                      : x->sin6_port == y->sin6_port && memcmp(&x->sin6_addr, &y->sin6_addr, 16) == 0;
}

static void take_answer(struct launch_probe *p, int own, const struct launch_packet *what, uint64_t now)
{
    for (int i = 0; i < p->n_calls; i++) {
        struct call *c = &p->calls[i];
        const int round = (int)(what->nonce & 0xff);
        if (c->host != what->from_host || c->own != own || c->peer != what->from_endpoint || (what->nonce & ~0xffull) != c->nonce || round >= MAX_ROUNDS || !c->sent_ns[round])
            continue;
        if (!p->peers[c->host]->heard_ns)
            p->peers[c->host]->heard_ns = now;
        const uint64_t rtt = now - c->sent_ns[round] + 1; /* 0 says: none */
        if (what->bytes == LAUNCH_PACKET_BYTES) {
            c->rtt_ns = c->rtt_ns && c->rtt_ns < rtt ? c->rtt_ns : rtt;
            c->n_rtt++;
        }
        for (int k = 0; k < N_SIZES; k++)
            c->is_through[k] = c->is_through[k] || (c->sizes[k] && (uint32_t)c->sizes[k] == what->bytes);
        return;
    }
}

static void take_packets(struct launch_probe *p, int own)
{
    for (int i = 0; i < 256; i++) { /* others want their turn, too */
        struct sockaddr_storage from;
        socklen_t n = sizeof from;
        const ssize_t bytes = recvfrom(p->fds[own], p->datagram, sizeof p->datagram, MSG_DONTWAIT, (struct sockaddr *)&from, &n);
        if (bytes < 0 && (errno == ECONNREFUSED || errno == EHOSTUNREACH || errno == EINTR || errno == EMSGSIZE))
            continue; /* about an earlier packet of ours */
        if (bytes < 0)
            return;
        struct launch_packet what;
        if (!launch_packet_get(p->o.key, p->datagram, (size_t)bytes, &what)) {
            if (p->n_strange++ == 0)
                LOG_WARNING("probe", "%s: a packet was dropped that is not of this job", p->endpoints.list[own].interface);
            continue;
        }
        if (what.to_host != p->o.host || what.to_endpoint != own)
            continue;
        const struct peer *q = p->peers[what.from_host];
        if (!q || what.from_endpoint >= q->endpoints.n || !is_from(&q->endpoints.list[what.from_endpoint], p->indexes[own], &from))
            continue;
        if (what.kind == LAUNCH_PACKET_ANSWER)
            take_answer(p, own, &what, base_now_ns(p->clock));
        if (what.kind != LAUNCH_PACKET_CALL)
            continue;
        struct launch_packet answer = what;
        answer.kind = LAUNCH_PACKET_ANSWER;
        answer.from_host = p->o.host;
        answer.to_host = what.from_host;
        answer.from_endpoint = own;
        answer.to_endpoint = what.from_endpoint;
        send_packet(p, &answer, own, &q->endpoints.list[what.from_endpoint]);
    }
}

/* ---- rails ------------------------------------------------------------------------------------------------------------------------------------------------------ */

static int endpoint_of(const struct launch_endpoints *all, const char *interface, const struct launch_address *a)
{
    for (int i = 0; i < all->n; i++)
        if (strcmp(all->list[i].interface, interface) == 0 && launch_address_equal(&all->list[i].address, a))
            return i;
    return -1;
}

enum st launch_probe_prove(struct launch_probe *p, const struct launch_facing *rails, int n, struct err *e)
{
    if (n < 1 || n > LAUNCH_MAX_RAILS)
        return err_set(e, ST_INVALID, "%d rails: 1 … %d can be proved", n, LAUNCH_MAX_RAILS);
    for (int i = 0; i < n; i++) {
        const struct launch_facing *r = &rails[i];
        if (r->host[0] != p->o.host || r->host[1] < 0 || r->host[1] >= LAUNCH_MAX_HOSTS || !p->peers[r->host[1]] ||
            endpoint_of(&p->endpoints, r->interface[0], &r->address[0]) < 0 || endpoint_of(&p->peers[r->host[1]]->endpoints, r->interface[1], &r->address[1]) < 0)
            return err_set(e, ST_INVALID, "rail %d (%.15s to %.15s of host %d) was not probed here", i, r->interface[0], r->interface[1], r->host[1]);
    }
    memcpy(p->rails, rails, (size_t)n * sizeof *rails);
    memset(p->proofs, 0, sizeof p->proofs);
    p->n_rails = n;
    p->n_proved = p->n_tries = 0;
    p->is_sent = false;
    p->prove_ns = base_now_ns(p->clock);
    return ST_OK;
}

static enum st count_rails(const struct launch_probe *p, uint64_t counted[LAUNCH_MAX_RAILS], struct err *e)
{
    enum st st = ST_OK;
    for (int i = 0; i < p->n_rails && !st; i++) {
        uint64_t received;
        st = launch_interface_counters(p->rails[i].interface[0], &counted[i], &received, e);
    }
    return st;
}

/* One rail after another: count, send, let the counters settle, count. */
static enum st go_on_proving(struct launch_probe *p, uint64_t now, struct err *e)
{
    const struct launch_facing *r = &p->rails[p->n_proved];
    struct launch_proof *proof = &p->proofs[p->n_proved];
    enum st st;
    if (!p->is_sent) {
        st = count_rails(p, p->counted, e);
        if (st)
            return st;
        const int own = endpoint_of(&p->endpoints, r->interface[0], &r->address[0]), peer = endpoint_of(&p->peers[r->host[1]]->endpoints, r->interface[1], &r->address[1]);
        const struct launch_packet what = {.kind = LAUNCH_PACKET_BURST, .from_host = p->o.host, .to_host = r->host[1], .from_endpoint = own, .to_endpoint = peer, .bytes = 1200};
        for (int i = 0; i < BURST_PACKETS; i++)
            send_packet(p, &what, own, &p->peers[r->host[1]]->endpoints.list[peer]);
        *proof = (struct launch_proof){.sent_bytes = (uint64_t)BURST_PACKETS * what.bytes};
        p->is_sent = true;
        p->prove_ns = now + SETTLE_NS;
        return ST_OK;
    }
    uint64_t counted[LAUNCH_MAX_RAILS];
    st = count_rails(p, counted, e);
    if (st)
        return st;
    for (int i = 0; i < p->n_rails; i++) {
        const uint64_t bytes = counted[i] - p->counted[i];
        if (i == p->n_proved)
            proof->own_bytes = bytes;
        else if (bytes > proof->other_bytes)
            proof->other_bytes = bytes;
    }
    proof->is_proved = proof->own_bytes >= proof->sent_bytes && proof->other_bytes < proof->sent_bytes / 2;
    p->is_sent = false;
    p->prove_ns = now;
    if (!proof->is_proved && ++p->n_tries < PROOF_TRIES)
        return ST_OK;
    p->n_proved++;
    p->n_tries = 0;
    return ST_OK;
}

int launch_probe_proofs(const struct launch_probe *p, struct launch_proof out[LAUNCH_MAX_RAILS])
{
    memcpy(out, p->proofs, (size_t)p->n_proved * sizeof *out);
    return p->n_proved;
}

/* ---- the loop's part -------------------------------------------------------------------------------------------------------------------------------------------- */

uint64_t launch_probe_wake_ns(const struct launch_probe *p)
{
    uint64_t wake = p->n_proved < p->n_rails ? p->prove_ns : BASE_NO_DEADLINE;
    for (int h = 0; h < LAUNCH_MAX_HOSTS; h++)
        if (p->peers[h] && p->peers[h]->next_ns < wake)
            wake = p->peers[h]->next_ns;
    return wake;
}

enum st launch_probe_step(struct launch_probe *p, struct err *e)
{
    struct epoll_event events[LAUNCH_MAX_ENDPOINTS];
    const int n = epoll_wait(p->epoll, events, LAUNCH_MAX_ENDPOINTS, 0);
    for (int i = 0; i < n; i++)
        take_packets(p, (int)events[i].data.u32);
    const uint64_t now = base_now_ns(p->clock);
    for (int h = 0; h < LAUNCH_MAX_HOSTS; h++)
        if (p->peers[h] && p->peers[h]->next_ns <= now)
            run_round(p, h, now);
    if (p->n_proved < p->n_rails && p->prove_ns <= now) {
        const enum st st = go_on_proving(p, now, e);
        if (st)
            return st;
    }
    return launch_probe_wake_ns(p) == BASE_NO_DEADLINE ? ST_OK : ST_AGAIN;
}

/* ---- results ---------------------------------------------------------------------------------------------------------------------------------------------------- */

void launch_facings_release(struct launch_facings *f)
{
    free(f->list);
    *f = (struct launch_facings){.n = 0};
}

enum st launch_probe_facings(const struct launch_probe *p, int host, struct launch_facings *out, struct err *e)
{
    struct launch_facings f = {.list = calloc((size_t)p->n_calls + 1, sizeof *f.list)};
    if (!f.list)
        return err_set(e, ST_NO_MEMORY, "no memory");
    for (int i = 0; i < p->n_calls; i++) {
        const struct call *c = &p->calls[i];
        if (c->host != host)
            continue;
        const struct launch_endpoint *a = &p->endpoints.list[c->own], *b = &p->peers[host]->endpoints.list[c->peer];
        struct launch_facing *r = &f.list[f.n++];
        *r = (struct launch_facing){.host = {p->o.host, host}, .address = {a->address, b->address}, .works = c->rtt_ns != 0, .rtt_ns = c->rtt_ns};
        memcpy(r->interface[0], a->interface, IF_NAMESIZE);
        memcpy(r->interface[1], b->interface, IF_NAMESIZE);
        for (int k = 0; k < N_SIZES && c->sizes[k]; k++)
            if (c->is_through[k])
                r->mtu = c->sizes[k] + header_bytes(a->address.family);
    }
    *out = f;
    return ST_OK;
}

static void turn(struct launch_facing *f)
{
    const struct launch_facing was = *f;
    for (int i = 0; i < 2; i++) {
        f->host[i] = was.host[1 - i];
        f->address[i] = was.address[1 - i];
        memcpy(f->interface[i], was.interface[1 - i], IF_NAMESIZE);
    }
}

static int by_ends(const void *a, const void *b)
{
    const struct launch_facing *x = a, *y = b;
    int order = x->host[0] - y->host[0];
    order = order ? order : x->host[1] - y->host[1];
    for (int i = 0; i < 2 && !order; i++) {
        order = launch_address_compare(&x->address[i], &y->address[i]);
        order = order ? order : strcmp(x->interface[i], y->interface[i]);
    }
    return order;
}

/* What only one side tried, or saw working, does not work: it is one-way at best. */
enum st launch_probe_merge(const struct launch_facings *a, const struct launch_facings *b, struct launch_facings *out, struct err *e)
{
    const int n = a->n + b->n;
    struct launch_facings f = {.list = calloc((size_t)n + 1, sizeof *f.list)};
    if (!f.list)
        return err_set(e, ST_NO_MEMORY, "no memory");
    for (int i = 0; i < n; i++) {
        f.list[i] = i < a->n ? a->list[i] : b->list[i - a->n];
        if (f.list[i].host[0] > f.list[i].host[1])
            turn(&f.list[i]);
    }
    qsort(f.list, (size_t)n, sizeof *f.list, by_ends);
    for (int i = 0; i < n; i++) {
        struct launch_facing r = f.list[i];
        if (i + 1 < n && by_ends(&r, &f.list[i + 1]) == 0) {
            const struct launch_facing *other = &f.list[++i];
            r.works = r.works && other->works;
            r.mtu = r.mtu < other->mtu ? r.mtu : other->mtu;
            r.rtt_ns = r.rtt_ns < other->rtt_ns ? r.rtt_ns : other->rtt_ns;
        } else {
            r.works = false;
        }
        if (!r.works) {
            r.mtu = 0;
            r.rtt_ns = 0;
        }
        f.list[f.n++] = r;
    }
    *out = f;
    return ST_OK;
}
