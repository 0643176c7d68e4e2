/* The wire of the tcp backend: frames, what comes in, what goes out, and how a peer ends. tcp.c says how it all works together. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "comm/tcp_priv.h"

/* No peer gets more than so much before it is the next one's turn. */
#define PIECE_BYTES ((256u << 10) + TCP_HEAD_BYTES)
/* So many pieces of a run may leave before the one that is due has come back. */
#define AHEAD 2
#define LOOK_FOR_SILENCE_NS (BASE_NS_PER_S / 4)
#define SILENCE_MS 2750 /* and a look more */
#define ANSWER_MS 200 /* who lives has acknowledged what came once more long before, where it is no farther away */

/* ---- frames -------------------------------------------------------------------------------------------------------------------------------------- */

static void put32(unsigned char *p, uint32_t x) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(x >> (8 * i));
}
static void put64(unsigned char *p, uint64_t x) {
    for (int i = 0; i < 8; i++) p[i] = (unsigned char)(x >> (8 * i));
}
static uint32_t get32(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }
static uint64_t get64(const unsigned char *p) { return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32; }

void comm_tcp_put(const struct tcp_frame *f, unsigned char head[TCP_HEAD_BYTES]) {
    put32(head, (uint32_t)f->kind);
    put32(head + 4, 0);
    put64(head + 8, f->number);
    put64(head + 16, f->bytes);
    put64(head + 24, f->header.step);
    put32(head + 32, f->header.n_events);
    put32(head + 36, f->header.token_hash);
    put64(head + 40, f->header.sent_ns);
    put64(head + 48, f->events_read);
    put64(head + 56, 0);
}

bool comm_tcp_get(const unsigned char head[TCP_HEAD_BYTES], struct tcp_frame *f) {
    uint32_t kind = get32(head);
    if (kind != TCP_EXCHANGE && kind != TCP_EVENT && kind != TCP_READ && kind != TCP_BYE) return false;
    if (get32(head + 4) != 0 || get64(head + 56) != 0) return false;
    *f = (struct tcp_frame){
        .kind = (enum tcp_kind)kind,
        .number = get64(head + 8),
        .bytes = get64(head + 16),
        .header = {.step = get64(head + 24), .n_events = get32(head + 32), .token_hash = get32(head + 36), .sent_ns = get64(head + 40)},
        .events_read = get64(head + 48)};
    return true;
}

/* ---- places -------------------------------------------------------------------------------------------------------------------------------------- */

unsigned char *comm_tcp_slot(const struct tcp *t, int rank, uint64_t sequence) {
    unsigned char *slots = rank == t->rank ? t->own : t->memory + (size_t)rank * COMM_N_SLOTS * t->slot_bytes;
    return slots + sequence % COMM_N_SLOTS * t->slot_bytes;
}

void comm_tcp_ring_put(struct tcp *t, const void *data, size_t bytes) {
    size_t at = t->ring_written % TCP_RING_BYTES, n = bytes < TCP_RING_BYTES - at ? bytes : TCP_RING_BYTES - at;
    if (n) memcpy(t->ring + at, data, n);
    if (bytes > n) memcpy(t->ring, (const unsigned char *)data + n, bytes - n);
    t->ring_written += bytes;
}

void comm_tcp_ring_get(const struct tcp *t, uint64_t position, void *data, size_t bytes) {
    size_t at = position % TCP_RING_BYTES, n = bytes < TCP_RING_BYTES - at ? bytes : TCP_RING_BYTES - at;
    if (n) memcpy(data, t->ring + at, n);
    if (bytes > n) memcpy((unsigned char *)data + n, t->ring, bytes - n);
}

/* ---- receiving ----------------------------------------------------------------------------------------------------------------------------------- */

static void end_peer(struct tcp *t, struct tcp_peer *p, int error) {
    if (p->ended) return;
    p->ended = true;
    p->i_ended = t->n_ended++;
    p->cut = p->have > 0;
    if (!p->error) p->error = error;
}

/* The sentence is in t->garbled; only the first one counts. */
static void garbled(struct tcp *t, struct tcp_peer *p) {
    p->garbled = true;
    end_peer(t, p, 0);
}

static struct err *first_garbled(struct tcp *t) { return t->garbled.text[0] ? NULL : &t->garbled; }

/* May rank r say this now? */
static bool check_frame(struct tcp *t, int r, const struct tcp_frame *f) {
    const struct tcp_peer *p = &t->peers[r];
    const struct comm *c = &t->comm;
    struct err *e = first_garbled(t);
    if (t->rank == 0 && f->events_read > p->events_sent) {
        err_set(e, ST_MISMATCH, "rank %d acknowledges events that were never posted", r);
        return false;
    }
    switch (f->kind) {
    case TCP_EXCHANGE:
        if (f->number != p->n_received + 1) {
            err_set(e, ST_MISMATCH, "rank %d is at exchange %llu, which cannot be", r, (unsigned long long)f->number);
            return false;
        }
        if (f->bytes > t->capacity) {
            err_set(e, ST_MISMATCH, "rank %d sends %llu bytes; %zu were planned", r, (unsigned long long)f->bytes, t->capacity);
            return false;
        }
        if (c->begun && f->number == c->sequence && f->bytes != c->recv_bytes[r]) {
            err_set(e, ST_MISMATCH, "rank %d sent %llu bytes where %zu are due", r, (unsigned long long)f->bytes, c->recv_bytes[r]);
            return false;
        }
        return true;
    case TCP_EVENT:
        if (r == 0 && f->bytes <= COMM_EVENT_MAX_BYTES && f->number == t->n_events &&
            t->ring_written - t->ring_read + sizeof(uint64_t) + f->bytes <= TCP_RING_BYTES)
            return true;
        err_set(e, ST_MISMATCH, "rank %d's event stream is corrupt: event %llu of %llu bytes where event %llu is due", r,
                (unsigned long long)f->number, (unsigned long long)f->bytes, (unsigned long long)t->n_events);
        return false;
    case TCP_READ:
    case TCP_BYE:
        if (f->bytes == 0 && (f->kind == TCP_READ ? t->rank == 0 : f->number < COMM_N_CAUSES && f->header.n_events < (uint32_t)t->n_ranks))
            return true;
        break;
    }
    err_set(e, ST_MISMATCH, "rank %d sent a frame that cannot be", r);
    return false;
}

/* Everything but an exchange; the frame lies at p->at as a whole. */
static void take_aside(struct tcp *t, struct tcp_peer *p, const struct tcp_frame *f) {
    if (f->kind == TCP_EVENT) {
        comm_tcp_ring_put(t, &f->bytes, sizeof f->bytes);
        comm_tcp_ring_put(t, p->at + TCP_HEAD_BYTES, f->bytes);
        t->n_events++;
    }
    p->have -= p->total;
    memmove(p->at, p->at + p->total, p->have);
    p->total = 0;
    if (f->kind == TCP_BYE) {
        p->said_bye = true;
        p->cause = (enum comm_cause)f->number;
        p->blamed = p->cause == COMM_WANTED ? -1 : (int)f->header.n_events;
        end_peer(t, p, 0);
    }
}

bool comm_tcp_is_too_early(const struct tcp *t, const struct tcp_peer *p) {
    struct tcp_frame f;
    return !p->total && p->have == TCP_HEAD_BYTES && comm_tcp_get(p->at, &f) && f.kind == TCP_EXCHANGE && f.number > t->comm.sequence + 1;
}

/* Takes what has come of the frame in hand, and frames behind it. */
static void take(struct tcp *t, int r) {
    struct tcp_peer *p = &t->peers[r];
    while (!p->ended && p->have >= TCP_HEAD_BYTES) {
        struct tcp_frame f;
        bool is_frame = comm_tcp_get(p->at, &f);
        if (!p->total) {
            if (!is_frame) err_set(first_garbled(t), ST_MISMATCH, "rank %d sent bytes that are no frame", r);
            if (!is_frame || !check_frame(t, r, &f)) {
                garbled(t, p);
                return;
            }
            if (comm_tcp_is_too_early(t, p)) return;
            size_t offset;
            p->total = TCP_HEAD_BYTES + (f.kind == TCP_EXCHANGE ? comm_tcp_share(t, f.bytes, 0, &offset) : f.bytes);
            if (f.events_read > p->events_read) p->events_read = f.events_read;
            if (f.kind == TCP_EXCHANGE) {
                unsigned char *slot = comm_tcp_slot(t, r, f.number);
                if (p->at == p->spare) memcpy(slot, p->at, TCP_HEAD_BYTES);
                p->at = slot;
                p->n_announced = f.number;
                p->announced_bytes = f.bytes;
            }
        }
        if (p->have < p->total) return;
        if (f.kind == TCP_EXCHANGE) {
            BASE_ASSERT(p->have == p->total);
            p->n_received++;
            p->have = p->total = 0;
        } else {
            take_aside(t, p, &f);
        }
    }
}

/* What is here, at most so many bytes; 0: nothing more for now, or its end, which is noted. */
static size_t take_in(struct tcp *t, struct tcp_peer *p, unsigned char *to, size_t bytes) {
    for (;;) {
        t->n_receives++;
        const ssize_t n = t->comm.os->recv(t->comm.os, p->fd, to, bytes);
        if (n > 0) {
            t->comm.n_moved++;
            return (size_t)n;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) end_peer(t, p, n < 0 ? errno : 0);
        return 0;
    }
}

/* False: there is more of it to come. */
static bool skip(struct tcp *t, struct tcp_peer *p) {
    while (p->n_skip) {
        const size_t room = TCP_HEAD_BYTES + COMM_EVENT_MAX_BYTES, n = take_in(t, p, p->spare, p->n_skip < room ? p->n_skip : room);
        p->n_skip -= n;
        p->cut |= p->ended;
        if (!n) return false;
    }
    return true;
}

bool comm_tcp_receive(struct tcp *t, int r, bool exchange) {
    struct tcp_peer *p = &t->peers[r];
    const struct comm *c = &t->comm;
    size_t n_left = PIECE_BYTES;
    if (comm_tcp_is_too_early(t, p) || !skip(t, p)) return false;
    if (!p->total && p->have == TCP_HEAD_BYTES) take(t, r); /* it was too early */
    while (!p->ended) {
        if (!p->have) p->at = c->begun && p->n_received + 1 == c->sequence ? comm_tcp_slot(t, r, c->sequence) : p->spare;
        size_t offset, due = p->at == p->spare ? 0 : comm_tcp_share(t, c->recv_bytes[r], 0, &offset);
        size_t wanted = (p->total ? p->total : TCP_HEAD_BYTES + due) - p->have;
        if (wanted > n_left) wanted = n_left;
        const size_t n = take_in(t, p, p->at + p->have, wanted);
        if (!n) return false;
        p->have += n;
        n_left -= n;
        take(t, r);
        if (comm_tcp_is_too_early(t, p)) return false;
        if (exchange && p->n_received >= c->sequence) return true;
        if (n < wanted) return false;
        if (!n_left) return true;
    }
    return false;
}

void comm_tcp_receive_rest(struct tcp *t, int r) {
    struct tcp_peer *p = &t->peers[r];
    uint64_t n_moved;
    bool is_early; /* then nobody will ever finish the exchange that it is of */
    do {
        n_moved = t->comm.n_moved; /* a single short read does not prove that there is no more */
        comm_tcp_receive(t, r, false);
        is_early = !p->ended && comm_tcp_is_too_early(t, p);
        if (!is_early) continue;
        struct tcp_frame f;
        size_t offset;
        BASE_ASSERT(comm_tcp_get(p->at, &f));
        p->n_skip = comm_tcp_share(t, f.bytes, 0, &offset);
        p->n_received++;
        p->have = 0;
    } while (!p->ended && (is_early || t->comm.n_moved != n_moved));
}

/* ---- sending ------------------------------------------------------------------------------------------------------------------------------------- */

const unsigned char *comm_tcp_piece(const struct tcp *t, uint64_t exchange, size_t *bytes) {
    const struct comm_run *run = &t->run;
    const size_t wanted = (size_t)(exchange - t->run_first) * run->piece_bytes, at = wanted < run->bytes ? wanted : run->bytes, left = run->bytes - at;
    *bytes = left < run->piece_bytes ? left : run->piece_bytes;
    return run->from + at;
}

/* What is to be sent to a peer next: at, and where that ends too early, behind it. */
struct due {
    enum { DUE_NOTHING, DUE_REST, DUE_CONTROL, DUE_EVENTS, DUE_FRAME } what;
    const unsigned char *at, *behind;
    size_t bytes, behind_bytes;
};

size_t comm_tcp_sent_bytes(const struct tcp *t, int r) {
    const struct comm *c = &t->comm;
    return c->is_scatter ? comm_scattered_bytes(&c->shares, t->rank, r) : c->recv_bytes[t->rank];
}

/* Byte `at` of what rank r gets, and how many of at most *bytes lie behind it. */
static const unsigned char *payload_at(const struct tcp *t, int r, size_t at, size_t *bytes) {
    const struct comm *c = &t->comm;
    const unsigned char *slot = comm_tcp_slot(t, t->rank, c->sequence) + TCP_HEAD_BYTES;
    if (!c->is_scatter || !*bytes) return slot + at;
    size_t n;
    const size_t place = comm_scattered_place(&c->shares, r, at, &n);
    if (*bytes > n) *bytes = n;
    return slot + place;
}

/* The head lies elsewhere than what follows it. */
static struct due due_of_parts(const struct tcp_peer *p, const unsigned char *payload, size_t bytes) {
    if (p->n_sent >= TCP_HEAD_BYTES) return (struct due){.what = DUE_FRAME, .at = payload, .bytes = bytes};
    return (struct due){.what = DUE_FRAME, .at = p->head + p->n_sent, .bytes = TCP_HEAD_BYTES - p->n_sent, .behind = payload, .behind_bytes = bytes};
}

static struct due due_of_frame(struct tcp *t, struct tcp_peer *p) {
    const struct due nothing = {.what = DUE_NOTHING};
    const struct comm *c = &t->comm;
    const size_t n_payload = p->n_sent > TCP_HEAD_BYTES ? p->n_sent - TCP_HEAD_BYTES : 0;
    if (!t->run.from && p->n_sent >= p->frame_bytes) return nothing;
    if (!t->run.from && !c->is_scatter) return (struct due){.what = DUE_FRAME, .at = comm_tcp_slot(t, t->rank, c->sequence) + p->n_sent, .bytes = p->frame_bytes - p->n_sent};
    if (!t->run.from) {
        const int r = (int)(p - t->peers);
        size_t bytes = p->frame_bytes - TCP_HEAD_BYTES - n_payload;
        const unsigned char *payload = payload_at(t, r, n_payload, &bytes);
        return due_of_parts(p, payload, bytes);
    }
    size_t bytes;
    const unsigned char *piece = comm_tcp_piece(t, p->n_out, &bytes);
    if (!bytes || p->n_out > c->sequence + AHEAD) return nothing;
    if (p->n_sent == 0) comm_tcp_put(&(struct tcp_frame){.kind = TCP_EXCHANGE, .number = p->n_out, .bytes = bytes, .header = t->run.header, .events_read = t->events_told}, p->head);
    return due_of_parts(p, piece + n_payload, bytes - n_payload);
}

/* A frame that was begun is finished first; events in front of the exchange that follows them. */
static struct due next_due(struct tcp *t, struct tcp_peer *p) {
    if (p->rest) return (struct due){.what = DUE_REST, .at = p->rest + p->n_rest_sent, .bytes = p->n_rest - p->n_rest_sent};
    if (p->n_control_sent) return (struct due){.what = DUE_CONTROL, .at = p->control + p->n_control_sent, .bytes = TCP_HEAD_BYTES - p->n_control_sent};
    const struct due frame = due_of_frame(t, p);
    const uint64_t events_until = t->rank != 0 ? 0 : frame.what == DUE_FRAME ? t->after : t->ring_written;
    if ((p->n_sent == 0 || frame.what == DUE_NOTHING) && p->events_sent < events_until) {
        const size_t at = p->events_sent % TCP_RING_BYTES, bytes = (size_t)(events_until - p->events_sent);
        return (struct due){.what = DUE_EVENTS, .at = t->ring + at, .bytes = bytes < TCP_RING_BYTES - at ? bytes : TCP_RING_BYTES - at};
    }
    if (frame.what == DUE_FRAME) return frame;
    return p->has_control ? (struct due){.what = DUE_CONTROL, .at = p->control, .bytes = TCP_HEAD_BYTES} : frame;
}

static void was_sent(struct tcp *t, struct tcp_peer *p, const struct due *d, size_t bytes) {
    size_t piece_bytes;
    switch (d->what) {
    case DUE_NOTHING: break;
    case DUE_REST:
        p->n_rest_sent += bytes;
        if (p->n_rest_sent < p->n_rest) break;
        free(p->rest);
        p->rest = NULL;
        break;
    case DUE_CONTROL:
        p->n_control_sent += bytes;
        if (p->n_control_sent < TCP_HEAD_BYTES) break;
        p->n_control_sent = 0;
        p->has_control = false;
        break;
    case DUE_EVENTS: p->events_sent += bytes; break;
    case DUE_FRAME:
        p->n_sent += bytes;
        if (!t->run.from) break;
        comm_tcp_piece(t, p->n_out, &piece_bytes);
        if (p->n_sent < TCP_HEAD_BYTES + piece_bytes) break;
        p->n_out++;
        p->n_sent = 0;
        break;
    }
}

/* Without a copy where a slot stays as it is until all have read it (tcp.c); who runs may send the next exchanges before it has. What TCP sends once more the peer's TCP has, and throws away. */
static ssize_t send_due(const struct tcp *t, struct tcp_peer *p, const struct due *d) {
    const struct comm_os *os = t->comm.os;
    if (d->behind_bytes) return os->send_two(os, p->fd, d->at, d->bytes, d->behind, d->behind_bytes);
    const bool is_page = d->what == DUE_FRAME && !t->is_run && !t->comm.is_scatter && !p->is_full && t->pages.memory && d->bytes >= t->pages.least && p->frame_bytes <= t->pages.most;
    if (!is_page) return os->send(os, p->fd, d->at, d->bytes);
    const ssize_t n = os->send_pages(os, p->fd, &t->pages, (size_t)(d->at - t->own), d->bytes);
    p->is_full = n < (ssize_t)d->bytes; /* trying again and again would cost more than a copy */
    return n;
}

void comm_tcp_push(struct tcp *t, int r) {
    struct tcp_peer *p = &t->peers[r];
    size_t n_left = PIECE_BYTES;
    while (!p->ended && n_left) {
        struct due d = next_due(t, p);
        if (d.what == DUE_NOTHING) return;
        if (d.bytes > n_left) d.bytes = n_left;
        if (d.behind_bytes > n_left - d.bytes) d.behind_bytes = n_left - d.bytes;
        t->n_sends++;
        ssize_t n = send_due(t, p, &d);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n < 0 && d.what == DUE_CONTROL && !p->n_control_sent) { /* nobody wants it any more, but what the peer has sent may all count */
            p->has_control = false;
            return;
        }
        if (n < 0) {
            /* It takes nothing any more, but what it has sent before still counts, its bye above all. */
            p->error = errno;
            comm_tcp_receive_rest(t, r);
            end_peer(t, p, p->error);
            return;
        }
        was_sent(t, p, &d, (size_t)n);
        t->comm.n_moved++;
        n_left -= (size_t)n;
        if ((size_t)n < d.bytes + d.behind_bytes) return;
    }
}

/* The vector is the caller's again: what is left of a frame that was begun is kept, so that a good-bye can follow it. Where there is no memory for it, it is cut. */
static void leave_run(struct tcp *t, struct tcp_peer *p) {
    const struct due d = due_of_frame(t, p);
    if (p->fd < 0 || p->ended || d.what != DUE_FRAME || p->n_sent == 0) return;
    p->n_rest = d.bytes + d.behind_bytes;
    p->n_rest_sent = 0;
    p->rest = malloc(p->n_rest);
    if (!p->rest) {
        end_peer(t, p, ENOMEM);
        return;
    }
    memcpy(p->rest, d.at, d.bytes);
    if (d.behind_bytes) memcpy(p->rest + d.bytes, d.behind, d.behind_bytes);
}

bool comm_tcp_run(struct comm *c, const struct comm_run *run) {
    struct tcp *t = (struct tcp *)c;
    t->is_run = run != NULL;
    if (run) {
        if (!run->from || (t->n_more && run->piece_bytes >= t->divide_bytes)) return false; /* over several streams a piece is divided, and the next one waits for it */
        t->run = *run;
        t->run_first = c->sequence + 1;
        t->events_told = t->events_read;
        return true;
    }
    if (!t->run.from) return false;
    for (int r = 0; r < t->n_ranks; r++) {
        leave_run(t, &t->peers[r]);
        t->peers[r].n_sent = t->peers[r].frame_bytes = 0;
    }
    t->run.from = NULL;
    return false;
}

bool comm_tcp_has_unsent(struct tcp *t, struct tcp_peer *p) {
    return p->fd >= 0 && !p->ended && next_due(t, p).what != DUE_NOTHING;
}

bool comm_tcp_put_control(struct tcp_peer *p, const struct tcp_frame *f) {
    if (p->n_control_sent) return false;
    comm_tcp_put(f, p->control);
    p->has_control = true;
    return true;
}

void comm_tcp_pump(struct tcp *t) {
    for (int i = 1; i < t->n_ranks; i++) {
        int r = (t->rank + i) % t->n_ranks;
        comm_tcp_push(t, r);
        comm_tcp_receive(t, r, false);
    }
}

/* ---- divided payloads ---------------------------------------------------------------------------------------------------------------------------- */

size_t comm_tcp_share(const struct tcp *t, size_t bytes, int i, size_t *offset) {
    *offset = 0;
    if (!t->n_more || bytes < t->divide_bytes) return i == 0 ? bytes : 0;
    size_t each = comm_round_up(bytes / (size_t)(1 + t->n_more) + 1, 64);
    *offset = each * (size_t)i < bytes ? each * (size_t)i : bytes;
    return bytes - *offset < each ? bytes - *offset : each;
}

/* A further stream that fails takes the peer with it; what the first one has brought still counts, its bye above all. Where it only ends, the first one says why. */
static void stream_failed(struct tcp *t, int r, struct tcp_stream *s, int error) {
    struct tcp_peer *p = &t->peers[r];
    s->ended = true;
    if (!error) return;
    comm_tcp_receive_rest(t, r);
    end_peer(t, p, error);
}

/* False: for now there is no more to move. */
static bool moved(struct tcp *t, int r, struct tcp_stream *s, ssize_t n, size_t *counter) {
    if (n > 0) {
        *counter += (size_t)n;
        t->comm.n_moved++;
        return true;
    }
    if (n < 0 && errno == EINTR) return true;
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) stream_failed(t, r, s, n < 0 ? errno : 0);
    return false;
}

void comm_tcp_move_shares(struct tcp *t, int r) {
    const struct comm *c = &t->comm;
    const struct comm_os *os = c->os;
    struct tcp_peer *p = &t->peers[r];
    for (int i = 0; i < t->n_more; i++) {
        struct tcp_stream *s = &p->more[i];
        size_t out_at, in_at;
        size_t out = comm_tcp_share(t, comm_tcp_sent_bytes(t, r), i + 1, &out_at), in = comm_tcp_share(t, c->recv_bytes[r], i + 1, &in_at);
        unsigned char *to = comm_tcp_slot(t, r, c->sequence) + TCP_HEAD_BYTES + in_at;
        for (size_t end = s->n_sent + PIECE_BYTES; !s->ended && s->n_sent < out && s->n_sent < end;) {
            size_t bytes = (out < end ? out : end) - s->n_sent;
            const unsigned char *from = payload_at(t, r, out_at + s->n_sent, &bytes);
            if (!moved(t, r, s, os->send(os, s->fd, from, bytes), &s->n_sent)) break;
        }
        for (size_t end = s->n_have + PIECE_BYTES; !s->ended && s->n_have < in && s->n_have < end;)
            if (!moved(t, r, s, os->recv(os, s->fd, to + s->n_have, (in < end ? in : end) - s->n_have), &s->n_have)) break;
    }
}

short comm_tcp_due(const struct tcp *t, int r, int i) {
    BASE_ASSERT(i >= 0 && i < t->n_more);
    size_t offset;
    const struct tcp_stream *s = &t->peers[r].more[i];
    bool out = s->n_sent < comm_tcp_share(t, comm_tcp_sent_bytes(t, r), i + 1, &offset),
         in = s->n_have < comm_tcp_share(t, t->comm.recv_bytes[r], i + 1, &offset);
    return (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0));
}

static bool is_first_done(const struct tcp *t, const struct tcp_peer *p) {
    return p->n_received >= t->comm.sequence && (t->run.from ? p->n_out > t->comm.sequence : p->n_sent == p->frame_bytes);
}

bool comm_tcp_is_done(const struct tcp *t, int r) {
    for (int i = 0; i < t->n_more; i++)
        if (comm_tcp_due(t, r, i)) return false;
    return is_first_done(t, &t->peers[r]);
}

/* Who has said bye has given all of its shares to its kernel before: they still come. */
bool comm_tcp_is_in_vain(const struct tcp *t, int r) {
    const struct tcp_peer *p = &t->peers[r];
    if (p->ended && (!p->said_bye || !is_first_done(t, p))) return true;
    for (int i = 0; i < t->n_more; i++)
        if (p->more[i].ended && comm_tcp_due(t, r, i)) return true;
    return false;
}

/* ---- the end of a peer --------------------------------------------------------------------------------------------------------------------------- */

static enum st say_lost(const struct tcp *t, int r, struct err *e) {
    const struct tcp_peer *p = &t->peers[r];
    if (p->garbled) return err_set(e, ST_MISMATCH, "%s", t->garbled.text);
    if (p->silent_s > 0) return err_set(e, ST_PEER_LOST, "the connection to rank %d broke: its host has not answered for %.1f s", r, p->silent_s);
    if (p->said_bye) return err_set(e, ST_PEER_LOST, "rank %d closed its end", r);
    if (p->error == 0 || p->error == EPIPE)
        return err_set(e, ST_PEER_LOST, "rank %d closed its end without a good-bye%s", r, p->cut ? ", in the middle of a message" : "");
    return err_set(e, ST_PEER_LOST, "the connection to rank %d broke: %s", r, strerror(p->error));
}

/* Who ended without a word may have lost another before, and not got through with it: a rank that was busy meanwhile sees all ends at once. Who names a cause knows more. */
static int who_names_a_cause(const struct tcp *t, int r) {
    const struct tcp_peer *p = &t->peers[r];
    if (p->garbled || p->said_bye || p->silent_s > 0) return r;
    int best = -1;
    for (int other = 0; other < t->n_ranks; other++) {
        const struct tcp_peer *q = &t->peers[other];
        if (q->fd >= 0 && q->ended && q->said_bye && q->blamed >= 0 && q->blamed != t->rank && (best < 0 || q->i_ended < t->peers[best].i_ended)) best = other;
    }
    return best < 0 ? r : best;
}

enum st comm_tcp_tell_lost(struct tcp *t, int r, struct err *e) {
    for (int other = 0; other < t->n_ranks; other++)
        if (t->peers[other].fd >= 0) comm_tcp_receive_rest(t, other);
    r = who_names_a_cause(t, r);
    for (int i = 0; i < t->n_ranks; i++) { /* who blames in circles is followed once around */
        const struct tcp_peer *p = &t->peers[r];
        if (p->garbled || p->blamed < 0) break;
        /* One that lives as far as we see, or is not ours to see. */
        if (!t->peers[p->blamed].ended || t->peers[p->blamed].fd < 0) {
            if (p->blamed != t->rank) {
                t->comm.blamed = p->blamed;
                t->comm.cause = p->cause;
            }
            return comm_tell_hearsay(r, p->cause, p->blamed, t->rank, e);
        }
        r = p->blamed;
    }
    t->comm.blamed = r;
    t->comm.cause = t->peers[r].said_bye ? COMM_CLOSED : COMM_BROKE;
    return say_lost(t, r, e);
}

/* Data, sent once more or long ago, or probes of a closed window, that nobody answers. Idle connections are the keep-alive's. A connection whose round trips were slow at some time may wait for
 * seconds before it sends anything again, so the number of times alone does not tell. Returns for how many seconds; 0: it is not silent. */
static double silence_of(const struct tcp *t, int fd) {
    struct tcp_info info = {0};
    socklen_t n = sizeof info;
    if (t->comm.os->getsockopt(t->comm.os, fd, IPPROTO_TCP, TCP_INFO, &info, &n) != 0) return 0;
    const uint32_t answer_ms = info.tcpi_rtt / 500 > ANSWER_MS ? info.tcpi_rtt / 500 : ANSWER_MS; /* two round trips */
    const bool is_late = info.tcpi_retransmits >= 2 || info.tcpi_last_data_sent >= (info.tcpi_retransmits ? answer_ms : SILENCE_MS);
    const bool asked = (info.tcpi_unacked && is_late) || info.tcpi_probes >= 2;
    return asked && info.tcpi_last_ack_recv >= SILENCE_MS && info.tcpi_last_data_recv >= SILENCE_MS ? info.tcpi_last_ack_recv / 1000.0 : 0;
}

void comm_tcp_look_for_silence(struct tcp *t, uint64_t now_ns) {
    if (now_ns < t->look_for_silence_ns) return;
    t->look_for_silence_ns = now_ns + LOOK_FOR_SILENCE_NS;
    for (int r = 0; r < t->n_ranks; r++) {
        struct tcp_peer *p = &t->peers[r];
        if (p->fd < 0 || p->ended) continue;
        double silent_s = silence_of(t, p->fd);
        for (int i = 0; i < t->n_more && silent_s <= 0; i++) silent_s = silence_of(t, p->more[i].fd);
        const bool is_twice = silent_s > 0 && p->looks_silent;
        p->looks_silent = silent_s > 0;
        if (!is_twice) continue; /* this machine may have stood still itself: what came meanwhile is seen by the next look */
        p->silent_s = silent_s;
        end_peer(t, p, ETIMEDOUT);
    }
}

enum st comm_tcp_check_lost(struct tcp *t, struct err *e) {
    int lost = -1;
    if (!t->n_ended) return ST_AGAIN;
    for (int r = 0; r < t->n_ranks; r++)
        if (t->peers[r].fd >= 0 && t->peers[r].ended && (lost < 0 || t->peers[r].i_ended < t->peers[lost].i_ended)) lost = r;
    return comm_tcp_tell_lost(t, lost, e);
}
