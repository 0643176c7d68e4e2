#include "launcher/meeting.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

struct launch_meeting {
    struct launch_interfaces own, theirs;
    struct launch_endpoints endpoints;
    struct launch_probe *probe; /* NULL: not asked yet */
    uint32_t waiting;           /* bit h: facings with host h are not told yet */
    bool proves;                /* how the rails turn out is not told yet */
    struct launch_ways ways;
    struct launch_tries *tries; /* NULL: the ways are not decided yet */
    bool is_told;               /* how the tries ended */
    struct launch_pulse *pulse; /* from then on; NULL: taken */
};

static enum st tell_text(struct launch_outbox *out, enum rt_frame_kind kind, const void *head, size_t head_bytes, char *text, struct err *e)
{
    const enum st st = text ? launch_outbox_frame(out, kind, head, head_bytes, text, strlen(text), e) : err_set(e, ST_NO_MEMORY, "no memory to tell of interfaces");
    free(text);
    return st;
}

enum st launch_meeting_open(struct launch_outbox *out, struct launch_meeting **meeting, struct err *e)
{
    struct launch_meeting *m = calloc(1, sizeof *m);
    if (!m)
        return err_set(e, ST_NO_MEMORY, "no memory to tell of interfaces");
    enum st st = launch_interfaces_read(NULL, &m->own, e);
    if (!st)
        st = tell_text(out, RT_INTERFACES, NULL, 0, launch_interfaces_to_json(&m->own), e);
    if (st)
        free(m);
    else
        *meeting = m;
    return st;
}

void launch_meeting_close(struct launch_meeting *m)
{
    if (!m)
        return;
    if (m->probe)
        launch_probe_close(m->probe);
    launch_tries_close(m->tries);
    launch_pulse_stop(m->pulse, LAUNCH_BEAT_FAILED);
    explicit_bzero(m->ways.key, sizeof m->ways.key);
    free(m);
}

static enum st begin(struct launch_meeting *m, const void *payload, size_t bytes, struct launch_outbox *out, struct err *e)
{
    struct launch_probe_order order;
    if (bytes != sizeof order || m->probe)
        return err_set(e, ST_INVALID, "an order to probe that makes no sense");
    memcpy(&order, payload, sizeof order);
    if (order.host >= LAUNCH_MAX_HOSTS || order.port > 65535)
        return err_set(e, ST_INVALID, "an order to probe for host %u", order.host);
    struct launch_probe_options options = {.host = (int)order.host, .port = (int)order.port};
    memcpy(options.key, order.key, sizeof options.key);
    enum st st = launch_probe_open(&m->own, &options, &m->probe, e);
    if (st)
        return st;
    launch_probe_endpoints(m->probe, &m->endpoints);
    return tell_text(out, RT_ENDPOINTS, NULL, 0, launch_endpoints_to_json(&m->endpoints), e);
}

static enum st take_peer(struct launch_meeting *m, const char *payload, size_t bytes, struct err *e)
{
    struct launch_peer_head head;
    if (bytes < sizeof head || !m->probe)
        return err_set(e, ST_INVALID, "a peer that makes no sense");
    memcpy(&head, payload, sizeof head);
    if (head.host >= LAUNCH_MAX_HOSTS || head.interfaces_bytes > bytes - sizeof head)
        return err_set(e, ST_INVALID, "a peer of number %u", head.host);
    const char *interfaces = payload + sizeof head, *endpoints = interfaces + head.interfaces_bytes;
    enum st st = launch_interfaces_from_json("the peer's interfaces", interfaces, head.interfaces_bytes, &m->theirs, e);
    if (!st)
        st = launch_endpoints_from_json("the peer's sockets", endpoints, bytes - sizeof head - head.interfaces_bytes, &m->endpoints, e);
    if (!st)
        st = launch_probe_peer(m->probe, (int)head.host, &m->theirs, &m->endpoints, e);
    if (!st)
        m->waiting |= 1u << head.host;
    return st;
}

static enum st take_rails(struct launch_meeting *m, const void *payload, size_t bytes, struct err *e)
{
    struct launch_facing rails[LAUNCH_MAX_RAILS];
    if (!m->probe || m->proves || !bytes || bytes > sizeof rails || bytes % sizeof *rails)
        return err_set(e, ST_INVALID, "rails that make no sense");
    memcpy(rails, payload, bytes);
    const int n = (int)(bytes / sizeof *rails);
    for (int i = 0; i < n; i++)
        for (int s = 0; s < 2; s++)
            rails[i].interface[s][IF_NAMESIZE - 1] = 0;
    m->proves = true;
    return launch_probe_prove(m->probe, rails, n, e);
}

/* The ports that were probed may be those that are needed now. */
static enum st take_ways(struct launch_meeting *m, const void *payload, size_t bytes, struct launch_outbox *out, struct err *e)
{
    struct launch_port ports[LAUNCH_MAX_HOSTS - 1];
    if (!m->probe || m->tries)
        return err_set(e, ST_INVALID, "ways to other hosts before they were looked for");
    launch_probe_close(m->probe);
    m->probe = NULL;
    enum st st = launch_ways_check(payload, bytes, &m->ways, e);
    if (!st)
        st = launch_tries_open(&m->ways, ports, &m->tries, e);
    if (!st)
        st = launch_pulse_open(&m->ways, NULL, ports, &m->pulse, e);
    return st ? st : launch_outbox_frame(out, RT_PORTS, ports, m->ways.n * sizeof *ports, NULL, 0, e);
}

struct launch_pulse *launch_meeting_pulse(const struct launch_meeting *m) { return m->pulse; }

struct launch_pulse *launch_meeting_take_pulse(struct launch_meeting *m)
{
    struct launch_pulse *p = m->pulse;
    m->pulse = NULL;
    return p;
}

const struct launch_ways *launch_meeting_ways(const struct launch_meeting *m) { return m->tries ? &m->ways : NULL; }

int launch_meeting_take_control(struct launch_meeting *m, int *host) { return m->tries ? launch_tries_take(m->tries, host) : -1; }

bool launch_meeting_has_control(const struct launch_meeting *m)
{
    for (uint32_t i = 0; m->tries && i < m->ways.n; i++)
        if (m->ways.list[i].control)
            return true;
    return false;
}

static enum st take_ports(struct launch_meeting *m, const void *payload, size_t bytes, struct err *e)
{
    struct launch_port ports[LAUNCH_MAX_HOSTS - 1];
    if (!m->tries || bytes > sizeof ports || bytes % sizeof *ports)
        return err_set(e, ST_INVALID, "ports of other hosts that make no sense");
    memcpy(ports, payload, bytes);
    enum st st = launch_tries_connect(m->tries, ports, bytes / sizeof *ports, e);
    return st || !m->pulse ? st : launch_pulse_start(m->pulse, ports, bytes / sizeof *ports, e);
}

enum st launch_meeting_frame(struct launch_meeting *m, enum rt_frame_kind kind, const void *payload, size_t bytes, struct launch_outbox *out, struct err *e)
{
    switch (kind) {
    case RT_PROBE: return begin(m, payload, bytes, out, e);
    case RT_PEER: return take_peer(m, payload, bytes, e);
    case RT_RAILS: return take_rails(m, payload, bytes, e);
    case RT_WAYS: return take_ways(m, payload, bytes, out, e);
    case RT_PORTS: return take_ports(m, payload, bytes, e);
    default: return ST_OK;
    }
}

static enum st tell_facings(struct launch_meeting *m, struct launch_outbox *out, struct err *e)
{
    enum st st = ST_OK;
    for (uint32_t host = 0; host < LAUNCH_MAX_HOSTS && !st; host++) {
        if (!(m->waiting >> host & 1))
            continue;
        struct launch_facings f;
        st = launch_probe_facings(m->probe, (int)host, &f, e);
        if (st)
            break;
        st = tell_text(out, RT_FACINGS, &host, sizeof host, launch_facings_to_json(&f), e);
        launch_facings_release(&f);
    }
    m->waiting = 0;
    return st;
}

static enum st tell_proofs(struct launch_meeting *m, struct launch_outbox *out, struct err *e)
{
    struct launch_proof proofs[LAUNCH_MAX_RAILS];
    const int n = launch_probe_proofs(m->probe, proofs);
    m->proves = false;
    return launch_outbox_frame(out, RT_RAILS, proofs, (size_t)n * sizeof *proofs, NULL, 0, e);
}

/* Whether those that we have to reach are reached: once. */
static enum st try_ways(struct launch_meeting *m, struct launch_outbox *out, struct err *e)
{
    struct err why = {""};
    const enum st result = launch_tries_step(m->tries, &why);
    const uint32_t code = (uint32_t)result;
    if (result == ST_AGAIN || m->is_told)
        return ST_OK;
    m->is_told = true;
    return launch_outbox_frame(out, RT_REACHED, &code, sizeof code, why.text, strlen(why.text), e);
}

enum st launch_meeting_step(struct launch_meeting *m, int in_fd, int timeout_ms, struct launch_outbox *out, struct err *e)
{
    struct pollfd p[2 + LAUNCH_MAX_TRIES] = {{.fd = in_fd, .events = POLLIN}, {.fd = m->probe ? launch_probe_fd(m->probe) : -1, .events = POLLIN}};
    const int n_tries = m->tries ? launch_tries_poll(m->tries, p + 2) : 0;
    if (m->probe || m->tries) {
        const uint64_t now = base_now_ns(base_clock_real()), wake = m->probe ? launch_probe_wake_ns(m->probe) : launch_tries_wake_ns(m->tries);
        const uint64_t left_ms = wake <= now ? 0 : (wake - now) / BASE_NS_PER_MS + 1;
        timeout_ms = left_ms < (uint64_t)timeout_ms ? (int)left_ms : timeout_ms;
    }
    (void)poll(p, 2 + (nfds_t)n_tries, timeout_ms);
    if (m->tries)
        return try_ways(m, out, e);
    if (!m->probe)
        return ST_OK;
    const enum st st = launch_probe_step(m->probe, e);
    if (st == ST_OK && m->waiting)
        return tell_facings(m, out, e);
    if (st == ST_OK && m->proves)
        return tell_proofs(m, out, e);
    return st == ST_AGAIN ? ST_OK : st;
}
