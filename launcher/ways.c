#include "launcher/ways.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/comm.h"
#include "launcher/reach.h"

/* The command ends within 10 s: two have gone into probing. */
#define PATIENCE_NS (4 * BASE_NS_PER_S)

struct try {
    struct launch_reach *reach;
    struct launch_address at; /* listener: where */
    bool is_connector, is_done;
    bool is_first; /* of the ports of its host */
};

struct launch_tries {
    const struct launch_ways *ways;
    struct try list[LAUNCH_MAX_TRIES];
    int n;
    bool has_begun; /* to connect */
    uint32_t taken; /* bit h: the connection with host h */
};

static bool is_text(const char *text, size_t bytes) { return text[0] && memchr(text, 0, bytes); }

static bool is_way(const struct launch_ways *w, const struct launch_way *way)
{
    const int family = way->own.family;
    return way->host < LAUNCH_MAX_HOSTS && way->host != w->host && way->n_ranks >= 1 && way->n_ranks <= COMM_MAX_RANKS && way->first_rank <= COMM_MAX_RANKS - way->n_ranks &&
           (family == AF_INET || family == AF_INET6) && way->address.family == family && is_text(way->name, sizeof way->name) && is_text(way->interface, sizeof way->interface) &&
           is_text(way->peer_interface, sizeof way->peer_interface);
}

enum st launch_ways_check(const void *payload, size_t bytes, struct launch_ways *out, struct err *e)
{
    if (bytes != sizeof *out)
        return err_set(e, ST_INVALID, "ways to other hosts in %zu bytes", bytes);
    memcpy(out, payload, sizeof *out);
    bool is_right = out->host < LAUNCH_MAX_HOSTS && out->n >= 1 && out->n < LAUNCH_MAX_HOSTS && out->n_ranks >= 1 && out->n_ranks <= COMM_MAX_RANKS &&
                    out->first_rank <= COMM_MAX_RANKS - out->n_ranks && out->port <= 65535 - COMM_MAX_RANKS && is_text(out->name, sizeof out->name);
    for (uint32_t i = 0; i < out->n && is_right; i++)
        is_right = is_way(out, &out->list[i]);
    return is_right ? ST_OK : err_set(e, ST_INVALID, "ways to other hosts that make no sense");
}

/* ---- trying ------------------------------------------------------------------------------------------------------------------------------------------- */

/* A port for each rank where they are fixed: a firewall may admit some of them only. */
static uint32_t n_ports(const struct launch_ways *w, uint32_t n_ranks) { return w->port ? n_ranks : 1; }

static struct launch_reach_options options(const struct launch_ways *w, uint32_t to_host, const char *to, uint32_t first_rank, uint32_t n_ranks)
{
    struct launch_reach_options o = {.host = (int)w->host, .to_host = (int)to_host, .patience_ns = PATIENCE_NS, .is_port_fixed = w->port != 0, .from_name = w->name, .to_name = to};
    if (w->port) {
        o.first_port = (int)(w->port + first_rank);
        o.last_port = (int)(w->port + first_rank + n_ranks - 1);
    }
    memcpy(o.key, w->key, sizeof o.key);
    return o;
}

/* One listener serves all whose way leads to the same address. */
static enum st listen_at(struct launch_tries *t, const struct launch_way *way, uint32_t *port, struct err *e)
{
    const struct launch_ways *w = t->ways;
    for (int i = 0; i < t->n; i++)
        if (launch_address_equal(&t->list[i].at, &way->own)) {
            *port = (uint32_t)launch_reach_port(t->list[i].reach);
            return ST_OK;
        }
    const struct launch_reach_options o = options(w, w->host, way->name, 0, 0);
    for (uint32_t k = 0; k < n_ports(w, w->n_ranks); k++) {
        if (t->n == LAUNCH_MAX_TRIES)
            return err_set(e, ST_NO_MEMORY, "too many ports to try");
        struct try *own = &t->list[t->n];
        *own = (struct try){.at = way->own, .is_first = k == 0};
        const enum st st = launch_reach_listen(&o, way->interface, (int)way->index, &way->own, launch_ways_rank_port((int)w->port, (int)(w->first_rank + k)), &own->reach, e);
        if (st)
            return st;
        *port = k ? *port : (uint32_t)launch_reach_port(own->reach);
        t->n++;
    }
    return ST_OK;
}

enum st launch_tries_open(const struct launch_ways *ways, struct launch_port *ports, struct launch_tries **out, struct err *e)
{
    struct launch_tries *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(e, ST_NO_MEMORY, "no memory to try ports");
    t->ways = ways;
    enum st st = ST_OK;
    for (uint32_t i = 0; i < ways->n && !st; i++) {
        ports[i] = (struct launch_port){.host = ways->list[i].host};
        if (ways->list[i].tcp && ways->list[i].host > ways->host)
            st = listen_at(t, &ways->list[i], &ports[i].tcp, e);
    }
    if (st)
        launch_tries_close(t);
    else
        *out = t;
    return st;
}

static enum st connect_to(struct launch_tries *t, const struct launch_way *way, uint32_t port, struct err *e)
{
    const struct launch_reach_options o = options(t->ways, way->host, way->name, way->first_rank, way->n_ranks);
    for (uint32_t k = 0; k < n_ports(t->ways, way->n_ranks); k++) {
        if (t->n == LAUNCH_MAX_TRIES)
            return err_set(e, ST_NO_MEMORY, "too many ports to try");
        struct try *own = &t->list[t->n];
        *own = (struct try){.is_connector = true, .is_first = k == 0};
        const enum st st = launch_reach_connect(&o, way->interface, (int)way->index, &way->own, way->peer_interface, &way->address, (int)(port + k), &own->reach, e);
        if (st)
            return st;
        t->n++;
    }
    return ST_OK;
}

enum st launch_tries_connect(struct launch_tries *t, const struct launch_port *ports, size_t n, struct err *e)
{
    if (n != t->ways->n || t->has_begun)
        return err_set(e, ST_INVALID, "ports of %zu hosts", n);
    t->has_begun = true;
    enum st st = ST_OK;
    for (size_t i = 0; i < n && !st; i++) {
        const struct launch_way *way = &t->ways->list[i];
        const bool wanted = way->tcp && way->host < t->ways->host;
        if (ports[i].host != way->host || ports[i].tcp > 65535 - COMM_MAX_RANKS || (wanted && !ports[i].tcp))
            st = err_set(e, ST_INVALID, "a port of host %u that makes no sense", ports[i].host);
        else if (wanted)
            st = connect_to(t, way, ports[i].tcp, e);
    }
    return st;
}

int launch_tries_poll(const struct launch_tries *t, struct pollfd *p)
{
    for (int i = 0; i < t->n; i++)
        p[i] = (struct pollfd){.fd = t->list[i].is_done ? -1 : launch_reach_fd(t->list[i].reach), .events = launch_reach_events(t->list[i].reach)};
    return t->n;
}

uint64_t launch_tries_wake_ns(const struct launch_tries *t)
{
    uint64_t wake = BASE_NO_DEADLINE;
    for (int i = 0; i < t->n; i++)
        if (!t->list[i].is_done && launch_reach_wake_ns(t->list[i].reach) < wake)
            wake = launch_reach_wake_ns(t->list[i].reach);
    return wake;
}

enum st launch_tries_step(struct launch_tries *t, struct err *e)
{
    enum st st = t->has_begun ? ST_OK : ST_AGAIN;
    for (int i = 0; i < t->n; i++) {
        struct try *own = &t->list[i];
        if (own->is_done)
            continue;
        const enum st result = launch_reach_step(own->reach, e);
        if (!own->is_connector)
            continue;
        if (result && result != ST_AGAIN)
            return result;
        own->is_done = !result;
        st = result ? ST_AGAIN : st;
    }
    return st;
}

static bool is_control(const struct launch_ways *w, int host)
{
    for (uint32_t i = 0; i < w->n; i++)
        if ((int)w->list[i].host == host)
            return w->list[i].control != 0;
    return false;
}

/* Of several ports of one host the first one's: the other end takes that as well. */
int launch_tries_take(struct launch_tries *t, int *host)
{
    int fd;
    for (int i = 0; i < t->n; i++)
        while (t->list[i].is_first && (fd = launch_reach_take(t->list[i].reach, host)) >= 0) {
            if (is_control(t->ways, *host) && !(t->taken >> *host & 1)) {
                t->taken |= 1u << *host;
                return fd;
            }
            close(fd);
        }
    return -1;
}

void launch_tries_close(struct launch_tries *t)
{
    for (int i = 0; t && i < t->n; i++)
        launch_reach_close(t->list[i].reach);
    free(t);
}
