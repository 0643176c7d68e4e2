/* Datagrams of the simulated network: each takes a time of its own, so that they overtake each other; some are lost, some come twice; what meets a cut way, a full queue or a host without
 * a word is gone. A port that nobody has answers as ICMP does: the sender's next call there is refused. */
#include <errno.h>
#include <string.h>

#include "comm/sim_priv.h"

enum { MAX_QUEUED = 32 };

static int take_free(struct comm_sim *s) {
    const int i = s->free_datagram;
    if (i >= 0) s->free_datagram = s->datagrams[i].next;
    return i;
}
static void give_back(struct comm_sim *s, int i) {
    s->datagrams[i].next = s->free_datagram;
    s->free_datagram = i;
}

void sim_datagram_clear(struct comm_sim *s) {
    s->free_datagram = -1;
    for (int i = SIM_MAX_DATAGRAMS - 1; i >= 0; i--) give_back(s, i);
}

static void send_one(struct comm_sim *s, int socket, const void *data, size_t bytes, uint64_t at_ns) {
    const struct sim_socket *x = &s->sockets[socket];
    const int i = take_free(s);
    if (i < 0) return; /* lost, like others */
    struct sim_datagram *d = &s->datagrams[i];
    *d = (struct sim_datagram){
        .from = x->owner, .to = sim_host_of_port(x->to_port), .from_port = x->port, .to_port = x->to_port, .bytes = bytes, .next = -1};
    d->socket = socket;
    d->generation = x->generation;
    memcpy(d->data, data, bytes);
    sim_at(s, at_ns, SIM_DATAGRAM, i, 0, 0);
}

ssize_t sim_datagram_send(struct comm_sim *s, int socket, const void *data, size_t bytes) {
    struct sim_socket *x = &s->sockets[socket];
    const int to = sim_host_of_port(x->to_port);
    if (bytes > SIM_MAX_DATAGRAM_BYTES) {
        errno = EMSGSIZE;
        return -1;
    }
    if (sim_chance(s, s->w->loss_permille)) {
        SIM_NOTE(s, x->owner, "a datagram to %d is lost", to);
        return (ssize_t)bytes;
    }
    send_one(s, socket, data, bytes, s->now_ns + sim_way_ns(s, x->owner, to));
    if (sim_chance(s, s->w->loss_permille / 4)) send_one(s, socket, data, bytes, s->now_ns + sim_way_ns(s, x->owner, to));
    return (ssize_t)bytes;
}

ssize_t sim_datagram_receive(struct comm_sim *s, int socket, void *data, size_t bytes) {
    struct sim_socket *x = &s->sockets[socket];
    const int i = x->first;
    if (i < 0) {
        errno = EAGAIN;
        return -1;
    }
    const struct sim_datagram *d = &s->datagrams[i];
    const size_t n = d->bytes < bytes ? d->bytes : bytes;
    memcpy(data, d->data, n);
    x->first = d->next;
    x->n_queued--;
    give_back(s, i);
    return (ssize_t)n;
}

void sim_datagram_close(struct comm_sim *s, struct sim_socket *x) {
    for (int i = x->first, next; i >= 0; i = next) {
        next = s->datagrams[i].next;
        give_back(s, i);
    }
    x->first = -1;
    x->n_queued = 0;
}

static struct sim_socket *socket_at(struct comm_sim *s, int port) {
    for (int i = 0; i < s->n_sockets; i++)
        if (s->sockets[i].state == SOCKET_DATAGRAM && s->sockets[i].port == port) return &s->sockets[i];
    return NULL;
}

/* As told by its host. */
static void refuse(struct comm_sim *s, const struct sim_datagram *d) {
    struct sim_socket *x = &s->sockets[d->socket];
    if (s->blocked[d->to][d->from] || x->generation != d->generation || x->state != SOCKET_DATAGRAM) return;
    x->error = ECONNREFUSED;
    sim_notify(s, x);
}

void sim_datagram_arrive(struct comm_sim *s, int i) {
    struct sim_datagram *d = &s->datagrams[i];
    struct sim_socket *x = s->blocked[d->from][d->to] ? NULL : socket_at(s, d->to_port);
    if (x && x->to_port == d->from_port && x->n_queued < MAX_QUEUED) {
        int *last = &x->first;
        while (*last >= 0) last = &s->datagrams[*last].next;
        *last = i;
        x->n_queued++;
        sim_notify(s, x);
        return;
    }
    if (!x && !s->blocked[d->from][d->to]) refuse(s, d);
    give_back(s, i);
}
