/* Ranks that are joined by TCP: a connection for each pair, sockets that never block, and a receiver that asks again instead of sleeping.
 *
 * The exchange. A rank's message lies in its send slot behind room for a frame's head, so head and payload leave by one send to each peer. The receiver
 * knows what is due (one head and recv_bytes), so it asks for exactly that, right into the slot where the view will point: one system call, no copy. It
 * never reads beyond the frame that it waits for; where an event comes first, the bytes behind it are moved down.
 *
 * Three slots for each peer suffice, by shm.c's argument: a peer that sends exchange j has seen us begin j−1, so at most one message ahead of ours can be
 * in the wire. Its slot was last used for j−3, and those views ended when j−1 began. What is read outside an exchange goes by two calls (head, then
 * payload): it is not known what comes, and bytes of the frame behind it would have no place.
 *
 * Runs. The pieces of a large sum are exchanges, but a rank sends the next ones as fast as they go, from where the vector lies, before it has anything of its peers: neither waits for the
 * other's turn. The receiver still takes one exchange beyond its own; the head of one further ahead waits in spare, all behind it in the socket. A run that breaks keeps what is left of a frame
 * that was begun, so that the bye can follow.
 *
 * Without a copy. Where a message lies in its slot as a whole, and is neither small nor large, the kernel is given the pages instead of the bytes. By the argument above nobody needs
 * a slot any more when it is written again, but for runs: in them a peer's next message does not say that it has read ours, so their pieces are copied.
 *
 * Events go over the same connections, in front of the exchange that follows them: who has an exchange's frame has every event that it announces. Rank 0 keeps
 * one ring for all readers. It never has more than the ring's size outstanding at any reader, as the readers tell by the count events_read, so a reader has
 * always room for what comes and never has to leave the socket unread: no event can block an exchange.
 *
 * The end. Who closes says bye, and whom it has lost, if that is why: so the first cause is named although connections end in any order. What was sent
 * before the bye is read first. A process that dies says nothing; the kernel ends its connections. A host that falls silent is found by keep-alive probes
 * while nothing is in flight, else by the age of the last acknowledgement. TCP_USER_TIMEOUT would be simpler but counts a peer that lives, and is
 * too busy to read, as silent (a closed window for longer than it breaks the connection although every probe was answered).
 *
 * Waiting. While bytes flow nobody yields: the CPU would be somebody else's for a time slice. Without any for spin_us a rank yields, and only after YIELD_NS does it
 * sleep inside an exchange, since poll takes some 50 us to wake from: a peer that takes longer computes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/tcp_priv.h"

/* What the kernel has copied is still in the cache when it is added; smaller ones have more packets and turns. Between two network namespaces
 * (bench/exchange_hosts.sh --peer none --blocks 15, rebuilt with each) a sum of 1 MB took 295 to 310 us at least in pieces of 256 KB, 290 to 320 of 512 KB, 300 to 330 of 126 KB, 310 to 450 of 64 KB. */
#define TCP_PIECE_BYTES (256u << 10)
#define YIELD_NS (20 * BASE_NS_PER_MS)
/* Credits are told apart from exchanges after so many bytes: never so late that an event of the largest size could not be posted to a reader that has read all. */
#define TELL_BYTES (TCP_RING_BYTES / 4)
#define LINGER_NS (1 * BASE_NS_PER_S)

/* ---- exchange ------------------------------------------------------------------------------------------------------------------------------------ */

static void *tcp_send_buffer(struct comm *c) {
    const struct tcp *t = (const struct tcp *)c;
    return comm_tcp_slot(t, t->rank, c->sequence + 1) + TCP_HEAD_BYTES;
}

static enum st tcp_allgather_start(struct comm *c, const void *send_from, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    struct tcp *t = (struct tcp *)c;
    unsigned char *slot = comm_tcp_slot(t, t->rank, c->sequence);
    size_t bytes = recv_bytes[t->rank];
    BASE_ASSERT(!t->run.from || !send_from);
    if (send_from && send_from != slot + TCP_HEAD_BYTES && bytes) memcpy(slot + TCP_HEAD_BYTES, send_from, bytes);
    struct tcp_frame f = {.kind = TCP_EXCHANGE, .number = c->sequence, .bytes = bytes, .header = *header, .events_read = t->events_read};
    comm_tcp_put(&f, slot);
    t->events_told = t->events_read;
    t->after = t->ring_written;
    t->comm.n_moved++;
    for (int r = 0; r < t->n_ranks; r++) {
        struct tcp_peer *p = &t->peers[r];
        size_t offset;
        p->frame_bytes = TCP_HEAD_BYTES + comm_tcp_share(t, comm_tcp_sent_bytes(t, r), 0, &offset);
        p->is_full = false;
        if (t->run.from && c->sequence != t->run_first) continue;
        p->n_out = c->sequence;
        p->n_sent = 0;
        f.bytes = comm_tcp_sent_bytes(t, r);
        if (c->is_scatter) comm_tcp_put(&f, p->head);
    }
    for (int i = 1; i < t->n_ranks; i++) {
        int r = t->rank + i < t->n_ranks ? t->rank + i : t->rank + i - t->n_ranks;
        struct tcp_peer *p = &t->peers[r];
        if (p->n_announced == c->sequence && p->announced_bytes != recv_bytes[r])
            return err_set(e, ST_MISMATCH, "rank %d sent %llu bytes where %zu are due", r, (unsigned long long)p->announced_bytes, recv_bytes[r]);
        for (int k = 0; k < t->n_more; k++) p->more[k].n_sent = p->more[k].n_have = 0;
        comm_tcp_push(t, r);
        if (t->n_more && p->fd >= 0) comm_tcp_move_shares(t, r);
    }
    return ST_OK;
}

static enum st tcp_allgather_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    struct tcp *t = (struct tcp *)c;
    int lost = -1, waits_for = -1;
    for (int i = 0, r = (int)t->turn; i < t->n_ranks; i++, r = r + 1 < t->n_ranks ? r + 1 : 0) {
        struct tcp_peer *p = &t->peers[r];
        if (p->fd < 0) continue;
        comm_tcp_push(t, r);
        if (p->n_received < c->sequence) comm_tcp_receive(t, r, true);
        if (t->n_more) comm_tcp_move_shares(t, r);
        if (comm_tcp_is_done(t, r)) continue;
        if (comm_tcp_is_in_vain(t, r) && (lost < 0 || p->i_ended < t->peers[lost].i_ended)) lost = r;
        if (waits_for < 0 || p->n_received < c->sequence) waits_for = r;
    }
    t->turn = t->turn + 1 < (unsigned)t->n_ranks ? t->turn + 1 : 0;
    if (lost >= 0) return comm_tcp_tell_lost(t, lost, e);
    if (waits_for >= 0) {
        *missing = waits_for;
        return ST_AGAIN;
    }
    for (int r = 0; r < t->n_ranks; r++) {
        unsigned char *slot = comm_tcp_slot(t, r, c->sequence);
        views[r] = slot + TCP_HEAD_BYTES;
        struct tcp_frame f;
        if (headers && comm_tcp_get(slot, &f)) headers[r] = f.header;
    }
    size_t bytes;
    if (t->run.from) views[t->rank] = comm_tcp_piece(t, c->sequence, &bytes);
    return ST_OK;
}

/* ---- events -------------------------------------------------------------------------------------------------------------------------------------- */

static enum st tcp_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    struct tcp *t = (struct tcp *)c;
    comm_tcp_pump(t);
    enum st code = comm_tcp_check_lost(t, e);
    if (code != ST_AGAIN) return code;
    for (int r = 1; r < t->n_ranks; r++)
        if (t->peers[r].fd >= 0 && t->ring_written - t->peers[r].events_read + TCP_HEAD_BYTES + bytes > TCP_RING_BYTES) return ST_AGAIN;
    unsigned char head[TCP_HEAD_BYTES];
    comm_tcp_put(&(struct tcp_frame){.kind = TCP_EVENT, .number = t->n_events, .bytes = bytes}, head);
    comm_tcp_ring_put(t, head, sizeof head);
    comm_tcp_ring_put(t, data, bytes);
    t->n_events++;
    for (int r = 1; r < t->n_ranks; r++) comm_tcp_push(t, r);
    return ST_OK;
}

static enum st tcp_event_test(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e) {
    struct tcp *t = (struct tcp *)c;
    if (t->ring_read == t->ring_written) {
        comm_tcp_pump(t);
        /* What was posted before a loss still counts. */
        if (t->ring_read == t->ring_written) return comm_tcp_check_lost(t, e);
    }
    uint64_t n;
    comm_tcp_ring_get(t, t->ring_read, &n, sizeof n);
    if (n > capacity) return err_set(e, ST_INVALID, "comm: an event of %llu bytes does not fit into %zu", (unsigned long long)n, capacity);
    comm_tcp_ring_get(t, t->ring_read + sizeof n, data, n);
    t->ring_read += sizeof n + n;
    t->events_read += TCP_HEAD_BYTES + n;
    *bytes = n;
    if (t->events_read - t->events_told >= TELL_BYTES &&
        comm_tcp_put_control(&t->peers[0], &(struct tcp_frame){.kind = TCP_READ, .events_read = t->events_read})) {
        t->events_told = t->events_read;
        comm_tcp_push(t, 0);
    }
    return ST_OK;
}

static enum st tcp_progress(struct comm *c, struct err *e) {
    struct tcp *t = (struct tcp *)c;
    comm_tcp_pump(t);
    comm_tcp_look_for_silence(t, base_now_ns(c->clock));
    enum st code = comm_tcp_check_lost(t, e);
    if (code != ST_AGAIN) return code;
    for (int r = 0; r < t->n_ranks; r++)
        if (comm_tcp_has_unsent(t, &t->peers[r])) return ST_AGAIN;
    return ST_OK;
}

/* ---- sleeping ------------------------------------------------------------------------------------------------------------------------------------ */

static void tcp_sleep(struct comm *c, uint64_t deadline_ns) {
    struct tcp *t = (struct tcp *)c;
    uint64_t now_ns = base_now_ns(c->clock);
    if (now_ns >= deadline_ns) return;
    if (t->comm.n_moved != t->n_moved_seen) {
        t->n_moved_seen = t->comm.n_moved;
        t->quiet_since_ns = now_ns;
    }
    if (c->begun) {
        uint64_t quiet_ns = now_ns - t->quiet_since_ns;
        if (quiet_ns < (uint64_t)c->spin_us * BASE_NS_PER_US) return;
        if (quiet_ns < YIELD_NS) {
            c->os->yield(c->os);
            return;
        }
    }
    struct pollfd fds[COMM_MAX_RANKS * COMM_MAX_STREAMS]; /* the first streams, then the others */
    size_t n_fds = (size_t)t->n_ranks;
    for (int r = 0; r < t->n_ranks; r++) {
        struct tcp_peer *p = &t->peers[r];
        const bool early = comm_tcp_is_too_early(t, p), wanted = !early && (!c->begun || p->n_received < c->sequence), unsent = comm_tcp_has_unsent(t, p);
        /* Who has said all that is due, or has ended, would wake us again and again. */
        fds[r] = (struct pollfd){.fd = p->ended || (!wanted && !unsent && !early) ? -1 : p->fd,
                                 .events = (short)((wanted ? POLLIN : 0) | (unsent ? POLLOUT | POLLRDHUP : 0) | (early ? POLLRDHUP : 0))};
        for (int i = 0; i < t->n_more && c->begun; i++) {
            short due = comm_tcp_due(t, r, i);
            if (due && !p->more[i].ended) fds[n_fds++] = (struct pollfd){.fd = p->more[i].fd, .events = due};
        }
    }
    c->os->poll(c->os, fds, n_fds, deadline_ns - now_ns);
    /* Who has closed takes nothing any more, and will not wait for us. Usually a send fails then; not where our bytes do not get through to it, but its end came to us. */
    for (int r = 0; r < t->n_ranks; r++)
        if (fds[r].events & POLLRDHUP && fds[r].revents & (POLLRDHUP | POLLERR | POLLHUP)) comm_tcp_receive_rest(t, r);
    comm_tcp_look_for_silence(t, now_ns);
}

/* ---- opening and closing ------------------------------------------------------------------------------------------------------------------------- */

static enum st tcp_probe(const struct comm_setup *setup, struct err *e) {
    return setup->boot ? ST_OK : err_set(e, ST_UNSUPPORTED, "no way was given to find the other ranks");
}

/* [n_ranks, COMM_N_SLOTS, slot] [n_ranks, spare] [ring]: reserved here, touched where it is used. Our own slots are pages of their own where the system has them. */
static enum st create(const struct comm_setup *setup, struct tcp **created, struct err *e) {
    size_t spare_bytes = TCP_HEAD_BYTES + COMM_EVENT_MAX_BYTES;
    size_t payload_bytes = comm_buffer_bytes(setup->max_bytes) > COMM_EVENT_MAX_BYTES ? comm_buffer_bytes(setup->max_bytes) : COMM_EVENT_MAX_BYTES;
    struct tcp *t = calloc(1, sizeof *t);
    if (!t) return err_set(e, ST_NO_MEMORY, "tcp: no memory");
    t->comm.clock = setup->clock ? setup->clock : base_clock_real();
    t->comm.os = setup->os ? setup->os : comm_os_real();
    t->rank = setup->rank;
    t->n_ranks = setup->n_ranks;
    t->capacity = comm_buffer_bytes(setup->max_bytes);
    t->slot_bytes = comm_round_up(TCP_HEAD_BYTES + payload_bytes, 128);
    size_t slots_bytes = (size_t)t->n_ranks * COMM_N_SLOTS * t->slot_bytes;
    t->memory_bytes = slots_bytes + (size_t)t->n_ranks * spare_bytes + TCP_RING_BYTES;
    BASE_ASSERT(t->memory_bytes <= comm_memory_bytes("tcp", t->n_ranks, setup->max_bytes) / (size_t)t->n_ranks);
    t->memory = t->comm.os->map(t->comm.os, t->memory_bytes);
    if (!t->memory) {
        size_t bytes = t->memory_bytes;
        free(t);
        return err_set(e, ST_NO_MEMORY, "tcp: no memory for %zu bytes of buffers", bytes);
    }
    const bool has_pages = t->comm.os->map_pages && t->comm.os->map_pages(t->comm.os, COMM_N_SLOTS * t->slot_bytes, &t->pages) == ST_OK;
    t->own = has_pages ? t->pages.memory : t->memory + (size_t)t->rank * COMM_N_SLOTS * t->slot_bytes;
    t->ring = t->memory + slots_bytes + (size_t)t->n_ranks * spare_bytes;
    t->divide_bytes = SIZE_MAX;
    for (int r = 0; r < t->n_ranks; r++) {
        t->peers[r].fd = t->peers[r].blamed = -1;
        for (int i = 0; i < COMM_MAX_STREAMS - 1; i++) t->peers[r].more[i].fd = -1;
        t->peers[r].spare = t->memory + slots_bytes + (size_t)r * spare_bytes;
    }
    for (int r = 0; r < t->n_ranks; r++) t->peers[r].ended = comm_is_apart(setup, r); /* nothing is sent to or read from them */
    *created = t;
    return ST_OK;
}

static void release(struct tcp *t) {
    const struct comm_os *os = t->comm.os;
    for (int r = 0; r < t->n_ranks; r++) {
        if (t->peers[r].fd >= 0) os->close(os, t->peers[r].fd);
        free(t->peers[r].rest);
        for (int i = 0; i < t->n_more; i++)
            if (t->peers[r].more[i].fd >= 0) os->close(os, t->peers[r].more[i].fd);
    }
    if (t->pages.memory) os->unmap_pages(os, &t->pages);
    os->unmap(os, t->memory, t->memory_bytes);
    free(t);
}

enum st comm_tcp_join(const struct comm_setup *setup, const int *fds, struct comm **c, struct err *e) {
    struct tcp *t;
    enum st code = create(setup, &t, e);
    if (code != ST_OK) return code;
    for (int r = 0; r < t->n_ranks; r++) t->peers[r].fd = fds[r];
    t->comm.backend = &comm_tcp_backend;
    t->comm.rank = setup->rank;
    t->comm.n_ranks = setup->n_ranks;
    t->comm.spin_us = setup->spin_us;
    t->comm.max_bytes = comm_capacity(setup->max_bytes);
    *c = &t->comm;
    return ST_OK;
}

/* The ith address of a list; its length is 0 behind the last. */
static size_t stream_address(const char *list, int i, char address[COMM_ADDRESS_BYTES]) {
    for (; i > 0 && *list; i--) {
        list += strcspn(list, ",");
        list += *list == ',';
    }
    size_t n = strcspn(list, ",");
    snprintf(address, COMM_ADDRESS_BYTES, "%.*s", (int)n, list);
    return n;
}

/* A meeting for each stream, one after the other. Who has failed still takes part in the boot rounds of the rest. */
static enum st tcp_open(const struct comm_setup *setup, struct comm **c, struct err *e) {
    struct tcp *t = NULL;
    int fds[COMM_MAX_RANKS];
    enum st code = create(setup, &t, e);
    for (int i = 0; i < COMM_MAX_STREAMS; i++) {
        char address[COMM_ADDRESS_BYTES];
        struct comm_setup one = *setup;
        if (setup->streams ? !stream_address(setup->streams, i, address) : i > 0) break;
        if (setup->streams) one.address = address;
        enum st st = comm_tcp_connect(&one, code == ST_OK, fds, code == ST_OK ? e : NULL);
        if (code == ST_OK) code = st;
        if (code != ST_OK) continue;
        for (int r = 0; r < t->n_ranks; r++) {
            if (i == 0)
                t->peers[r].fd = fds[r];
            else
                t->peers[r].more[i - 1].fd = fds[r];
        }
        t->n_more = i;
    }
    if (code == ST_OK)
        *c = &t->comm;
    else if (t)
        release(t);
    return code;
}

static bool tcp_divide(struct comm *c, size_t from_bytes) {
    struct tcp *t = (struct tcp *)c;
    t->divide_bytes = from_bytes;
    return t->n_more > 0;
}

/* False: the peer takes nothing any more. What has come is thrown away: a socket that is closed with unread bytes resets the connection, and what was not sent by then
 * would be lost. */
static bool is_taking(const struct tcp *t, int fd, unsigned char *spare) {
    ssize_t n;
    while ((n = t->comm.os->recv(t->comm.os, fd, spare, TCP_HEAD_BYTES + COMM_EVENT_MAX_BYTES)) > 0) {
    }
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

/* True: the kernel has not sent all that we gave it, and the peer still takes it. */
static bool is_leaving(struct tcp *t, struct tcp_peer *p) {
    const struct comm_os *os = t->comm.os;
    if (p->fd < 0 || p->ended || !is_taking(t, p->fd, p->spare)) return false;
    bool unsent = comm_tcp_has_unsent(t, p) || os->n_unsent(os, p->fd) > 0;
    for (int i = 0; i < t->n_more; i++)
        if (!p->more[i].ended && is_taking(t, p->more[i].fd, p->spare) && os->n_unsent(os, p->more[i].fd) > 0) unsent = true;
    return unsent;
}

static void tcp_close(struct comm *c) {
    struct tcp *t = (struct tcp *)c;
    const struct tcp_frame bye = {
        .kind = TCP_BYE, .number = (uint64_t)c->cause, .header = {.n_events = c->cause == COMM_WANTED ? 0 : (uint32_t)c->blamed}};
    bool told[COMM_MAX_RANKS] = {false};
    uint64_t deadline_ns = base_now_ns(c->clock) + LINGER_NS;
    for (;;) {
        bool leaving = false;
        for (int r = 0; r < t->n_ranks; r++) {
            if (!told[r]) told[r] = comm_tcp_put_control(&t->peers[r], &bye);
            comm_tcp_push(t, r);
            leaving = is_leaving(t, &t->peers[r]) || leaving;
        }
        if (!leaving || base_now_ns(c->clock) >= deadline_ns) break;
        c->os->poll(c->os, NULL, 0, BASE_NS_PER_MS);
    }
    release(t);
}

const struct comm_backend comm_tcp_backend = {
    .capabilities = {.name = "tcp", .crosses_hosts = true, .ranks_as_threads = true, .one_shot = false, .sends_ahead = true, .scatters = true, .max_ranks = COMM_MAX_RANKS, .piece_bytes = TCP_PIECE_BYTES},
    .priority = 10,
    .probe = tcp_probe,
    .open = tcp_open,
    .close = tcp_close,
    .send_buffer = tcp_send_buffer,
    .allgather_start = tcp_allgather_start,
    .allgather_test = tcp_allgather_test,
    .run = comm_tcp_run,
    .event_post = tcp_event_post,
    .event_test = tcp_event_test,
    .divide = tcp_divide,
    .progress = tcp_progress,
    .sleep = tcp_sleep,
};
