/* Several hosts with several ranks each: those of one host share memory, and only what goes to another host takes the network. Two backends, shm+tcp and shm+ucx, which are a comm
 * of shm and one of tcp or ucx side by side.
 *
 * An exchange is begun in both: the rank's bytes lie in its slot of the shared segment, from where the network's part takes a copy. There are enough slots to write the next one's meanwhile
 * (shm.c). It is over when both are, so who waits sleeps on the network first and on the segment then: a rank on its own host needs nothing from us to get on. Every rank still talks to every
 * rank of another host itself. One rank that fetched for all of its host would save the cable n_here − 1 copies, but each would wait for it, a death would be seen by one and told by it, and
 * 16 KB would be handed on twice; where hosts have one rank each, as they mostly have, there is nothing to save.
 *
 * Losses. Each part sees some of the ranks, and a rank that ends because another has ended says so in both, so that everybody names the first, whatever is seen first (enum comm_cause).
 * Events come by the part that joins us to rank 0; the other is looked at for losses only. */
#include <stdlib.h>
#include <string.h>

#include "comm/comm_priv.h"

struct part {
    struct comm *c;
    bool is_done; /* with the exchange begun */
    const void *views[COMM_MAX_RANKS];
    struct comm_header headers[COMM_MAX_RANKS];
};

struct hybrid {
    struct comm comm;
    int first, n_here;
    struct part local, net; /* local's rank r is the job's rank first + r; net has the job's numbers, and nothing of our host's ranks */
};

/* ---- opening and closing ------------------------------------------------------------------------------------------------------------------------- */

static enum st probe(const struct comm_setup *setup, const struct comm_backend *net, struct err *e) {
    if (!setup->n_here || setup->n_ranks == 1) return err_set(e, ST_UNSUPPORTED, "nobody has told which ranks share a host");
    return net->probe(setup, e);
}
static enum st probe_tcp(const struct comm_setup *setup, struct err *e) { return probe(setup, &comm_tcp_backend, e); }
static enum st probe_ucx(const struct comm_setup *setup, struct err *e) { return probe(setup, &comm_ucx_backend, e); }

/* The ranks of our host find each other in a round of all. */
#define MAX_RECORD_BYTES 256
static enum st boot_here(void *context, const void *mine, size_t bytes, void *here, uint64_t deadline_ns, struct err *e) {
    const struct comm_setup *setup = context;
    unsigned char all[COMM_MAX_RANKS * MAX_RECORD_BYTES];
    BASE_ASSERT(bytes <= MAX_RECORD_BYTES);
    enum st code = setup->boot->allgather(setup->boot->context, mine, bytes, all, deadline_ns, e);
    if (code == ST_OK) memcpy(here, all + (size_t)setup->first_here * bytes, (size_t)setup->n_here * bytes);
    return code;
}

static enum st open_local(const struct comm_setup *setup, struct comm **c, struct err *e) {
    const struct comm_boot boot = {.allgather = boot_here, .context = (void *)(uintptr_t)setup};
    struct comm_setup local = *setup;
    local.backend = "shm";
    local.rank = setup->rank - setup->first_here;
    local.n_ranks = setup->n_here;
    local.n_here = 0;
    local.boot = &boot;
    return comm_open(&local, c, e);
}

static enum st open_net(const struct comm_setup *setup, const struct comm_backend *backend, struct comm **c, struct err *e) {
    struct comm_setup net = *setup;
    net.backend = backend->capabilities.name;
    net.memory_fd = -1;
    net.memory = NULL;
    for (int i = 0; i < setup->n_here; i++) net.apart |= 1ull << (setup->first_here + i);
    return comm_open(&net, c, e);
}

/* Both are tried, whatever becomes of the first: others wait for us in their boot rounds. */
static enum st open_both(const struct comm_setup *setup, const struct comm_backend *net, struct comm **c, struct err *e) {
    struct hybrid *h = calloc(1, sizeof *h);
    struct comm *parts[2] = {NULL, NULL};
    enum st code = open_local(setup, &parts[0], e);
    enum st other = open_net(setup, net, &parts[1], code == ST_OK ? e : NULL);
    if (code == ST_OK) code = other;
    if (code == ST_OK && !h) code = err_set(e, ST_NO_MEMORY, "comm: no memory");
    if (code != ST_OK) {
        comm_close(parts[0]);
        comm_close(parts[1]);
        free(h);
        return code;
    }
    h->local.c = parts[0];
    h->net.c = parts[1];
    h->first = setup->first_here;
    h->n_here = setup->n_here;
    *c = &h->comm;
    return ST_OK;
}
static enum st open_tcp(const struct comm_setup *setup, struct comm **c, struct err *e) { return open_both(setup, &comm_tcp_backend, c, e); }
static enum st open_ucx(const struct comm_setup *setup, struct comm **c, struct err *e) { return open_both(setup, &comm_ucx_backend, c, e); }

static void hybrid_close(struct comm *c) {
    struct hybrid *h = (struct hybrid *)c;
    struct comm *parts[2] = {h->local.c, h->net.c}; /* the network's may take a moment */
    for (int i = 0; i < 2; i++) {
        if (c->cause != COMM_WANTED) {
            parts[i]->cause = c->cause;
            parts[i]->blamed = c->blamed;
        }
        comm_close(parts[i]);
    }
    free(h);
}

/* Whom a part has lost, our own good-bye names. Returns code. */
static enum st note_loss(struct hybrid *h, const struct comm *part, enum st code) {
    if (part->cause != COMM_WANTED) {
        h->comm.cause = part->cause;
        h->comm.blamed = part->blamed;
    }
    return code;
}

/* ---- exchange ------------------------------------------------------------------------------------------------------------------------------------ */

static void *hybrid_send_buffer(struct comm *c) {
    struct comm *local = ((struct hybrid *)c)->local.c;
    return local->backend->send_buffer(local);
}

static enum st part_start(struct part *p, const struct comm *whole, const void *send, const size_t *recv_bytes, const struct comm_header *header,
                          struct err *e) {
    struct comm *c = p->c;
    c->sequence = whole->sequence;
    c->step = whole->step;
    c->begun = true;
    c->is_scatter = whole->is_scatter && c->backend->capabilities.scatters;
    if (c->is_scatter) c->shares = whole->shares;
    memcpy(c->recv_bytes, recv_bytes, (size_t)c->n_ranks * sizeof *recv_bytes);
    p->is_done = false;
    return c->backend->allgather_start(c, send, c->recv_bytes, header, e);
}

static enum st hybrid_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    struct hybrid *h = (struct hybrid *)c;
    const void *slot = hybrid_send_buffer(c);
    size_t local_bytes[COMM_MAX_RANKS]; /* the segment shows all */
    for (int i = 0; i < h->n_here; i++) {
        local_bytes[i] = c->is_scatter ? comm_vectors_bytes(&c->shares, h->first + i) : recv_bytes[h->first + i];
        c->packed &= ~(1ull << (h->first + i));
    }
    enum st code = part_start(&h->local, c, send, local_bytes, header, e);
    return code == ST_OK ? part_start(&h->net, c, send ? send : slot, recv_bytes, header, e) : code;
}

static enum st part_test(struct hybrid *h, struct part *p, int *missing, struct err *e) {
    if (p->is_done) return ST_OK;
    p->c->advancing = h->comm.advancing;
    const uint64_t n_moved = p->c->n_moved;
    enum st code = p->c->backend->allgather_test(p->c, p->views, p->headers, missing, e);
    h->comm.n_moved += p->c->n_moved - n_moved;
    p->is_done = code == ST_OK;
    p->c->begun = !p->is_done;
    return code == ST_OK || code == ST_AGAIN ? code : note_loss(h, p->c, code);
}

static enum st hybrid_allgather_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    struct hybrid *h = (struct hybrid *)c;
    int missing_here = 0;
    enum st net = part_test(h, &h->net, missing, e);
    if (net != ST_OK && net != ST_AGAIN) return net;
    enum st local = part_test(h, &h->local, &missing_here, e);
    if (local != ST_OK) {
        *missing = h->first + missing_here;
        return local;
    }
    if (net != ST_OK) return net;
    memcpy(views, h->net.views, (size_t)c->n_ranks * sizeof *views);
    memcpy(views + h->first, h->local.views, (size_t)h->n_here * sizeof *views);
    if (headers) {
        memcpy(headers, h->net.headers, (size_t)c->n_ranks * sizeof *headers);
        memcpy(headers + h->first, h->local.headers, (size_t)h->n_here * sizeof *headers);
    }
    return ST_OK;
}

static bool hybrid_divide(struct comm *c, size_t from_bytes) { return comm_divide(((struct hybrid *)c)->net.c, from_bytes); }

/* ---- events -------------------------------------------------------------------------------------------------------------------------------------- */

/* Both or none: only we write, so room that is there stays. */
static enum st hybrid_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    struct hybrid *h = (struct hybrid *)c;
    struct comm *local = h->local.c, *net = h->net.c;
    enum st code = comm_shm_has_room(local, bytes, e);
    if (code != ST_OK) return note_loss(h, local, code);
    code = net->backend->event_post(net, data, bytes, e);
    if (code != ST_OK) return note_loss(h, net, code);
    return note_loss(h, local, local->backend->event_post(local, data, bytes, e));
}

static bool is_host_of_events(const struct hybrid *h) { return h->first == 0; }

static enum st hybrid_event_test(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e) {
    struct hybrid *h = (struct hybrid *)c;
    struct comm *from = is_host_of_events(h) ? h->local.c : h->net.c, *other = is_host_of_events(h) ? h->net.c : h->local.c;
    enum st code = from->backend->event_test(from, data, capacity, bytes, e);
    if (code != ST_AGAIN) return note_loss(h, from, code);
    enum st lost = other->backend->event_test(other, data, 0, bytes, e);
    if (lost == ST_AGAIN) return ST_AGAIN;
    /* What was posted before the loss still counts. */
    code = from->backend->event_test(from, data, capacity, bytes, NULL);
    return code == ST_OK ? ST_OK : note_loss(h, other, lost);
}

static enum st hybrid_progress(struct comm *c, struct err *e) {
    struct hybrid *h = (struct hybrid *)c;
    struct comm *net = h->net.c;
    return note_loss(h, net, net->backend->progress(net, e));
}

static void hybrid_sleep(struct comm *c, uint64_t deadline_ns) {
    struct hybrid *h = (struct hybrid *)c;
    bool waits_here = c->begun ? h->net.is_done : is_host_of_events(h);
    struct comm *part = waits_here ? h->local.c : h->net.c;
    part->backend->sleep(part, deadline_ns);
}

/* ---- the two ------------------------------------------------------------------------------------------------------------------------------------- */

const struct comm_backend comm_shm_tcp_backend = {
    .capabilities = {.name = "shm+tcp", .crosses_hosts = true, .ranks_as_threads = true, .one_shot = false, .sends_ahead = true, .scatters = true, .max_ranks = COMM_MAX_RANKS},
    .priority = 45,
    .probe = probe_tcp,
    .open = open_tcp,
    .close = hybrid_close,
    .send_buffer = hybrid_send_buffer,
    .allgather_start = hybrid_allgather_start,
    .allgather_test = hybrid_allgather_test,
    .event_post = hybrid_event_post,
    .event_test = hybrid_event_test,
    .divide = hybrid_divide,
    .progress = hybrid_progress,
    .sleep = hybrid_sleep,
};
const struct comm_backend comm_shm_ucx_backend = {
    .capabilities = {.name = "shm+ucx", .crosses_hosts = true, .ranks_as_threads = true, .one_shot = false, .sends_ahead = true, .scatters = true, .max_ranks = COMM_MAX_RANKS},
    .priority = 46,
    .probe = probe_ucx,
    .open = open_ucx,
    .close = hybrid_close,
    .send_buffer = hybrid_send_buffer,
    .allgather_start = hybrid_allgather_start,
    .allgather_test = hybrid_allgather_test,
    .event_post = hybrid_event_post,
    .event_test = hybrid_event_test,
    .divide = hybrid_divide,
    .progress = hybrid_progress,
    .sleep = hybrid_sleep,
};
