/* One rank alone: an exchange with nobody. Views point into the rank's own buffers, events are posted to no reader.
 *
 * The buffers are as many as shm's, so that a program which keeps a view for too long fails here no later than there. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm/comm_priv.h"

struct self {
    struct comm comm;
    unsigned char *slots; /* [COMM_N_SLOTS, capacity] */
    size_t capacity;
    struct comm_header header;
};

static enum st self_probe(const struct comm_setup *setup, struct err *e) {
    return setup->n_ranks == 1 ? ST_OK : err_set(e, ST_UNSUPPORTED, "for one rank, not %d", setup->n_ranks);
}

static enum st self_open(const struct comm_setup *setup, struct comm **c, struct err *e) {
    size_t capacity = comm_buffer_bytes(setup->max_bytes);
    struct self *s = calloc(1, sizeof *s);
    unsigned char *slots = aligned_alloc(64, COMM_N_SLOTS * capacity);
    if (!s || !slots) {
        free(s);
        free(slots);
        return err_set(e, ST_NO_MEMORY, "comm: no memory for %d buffers of %zu bytes", COMM_N_SLOTS, capacity);
    }
    s->slots = slots;
    s->capacity = capacity;
    *c = &s->comm;
    return ST_OK;
}

static void self_close(struct comm *c) {
    struct self *s = (struct self *)c;
    free(s->slots);
    free(s);
}

static unsigned char *slot(const struct self *s, uint64_t sequence) { return s->slots + sequence % COMM_N_SLOTS * s->capacity; }

static void *self_send_buffer(struct comm *c) { return slot((const struct self *)c, c->sequence + 1); }

static enum st self_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    (void)e;
    struct self *s = (struct self *)c;
    unsigned char *own = slot(s, c->sequence);
    if (send && send != own && recv_bytes[0]) memcpy(own, send, recv_bytes[0]);
    s->header = *header;
    return ST_OK;
}

static enum st self_allgather_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    (void)missing, (void)e;
    struct self *s = (struct self *)c;
    views[0] = slot(s, c->sequence);
    if (headers) headers[0] = s->header;
    return ST_OK;
}

static enum st self_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    (void)c, (void)data, (void)bytes, (void)e;
    return ST_OK;
}

static enum st self_event_test(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e) {
    (void)c, (void)data, (void)capacity, (void)bytes, (void)e;
    return ST_AGAIN;
}

static void self_sleep(struct comm *c, uint64_t deadline_ns) {
    uint64_t now_ns = base_now_ns(c->clock);
    if (now_ns >= deadline_ns) return;
    uint64_t ns = deadline_ns - now_ns;
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ns / BASE_NS_PER_S), .tv_nsec = (long)(ns % BASE_NS_PER_S)}, NULL);
}

const struct comm_backend comm_self_backend = {
    .capabilities = {.name = "self", .crosses_hosts = false, .ranks_as_threads = true, .one_shot = true, .max_ranks = 1},
    .priority = 100,
    .probe = self_probe,
    .open = self_open,
    .close = self_close,
    .send_buffer = self_send_buffer,
    .allgather_start = self_allgather_start,
    .allgather_test = self_allgather_test,
    .event_post = self_event_post,
    .event_test = self_event_test,
    .sleep = self_sleep,
};
