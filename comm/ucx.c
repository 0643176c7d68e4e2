/* Ranks joined by UCX: RDMA between two boxes; TCP and shared memory where there is nothing better, and for tests.
 *
 * Every message is a UCX active message: a packet header of ours (64 bytes) and a payload. The header says whose it is, of which exchange or event, how long the whole is and where
 * this piece belongs, so that the receiver's handler can place it at once: nothing relies on the order of messages, which UCX does not promise between operations and rails.
 * (Puts are not used: there is none with an immediate value, and over TCP they are emulated at twice the latency.) All receive buffers exist before the first message, by the
 * argument in shm.c: a peer is at most one exchange ahead of us, so three slots per peer hold what may come and keep the views that were handed out.
 *
 * Pieces. Where UCX copies anyway (TCP, shared memory) a message goes as eager pieces, as long as one sendmsg of UCX's TCP can take them without a copy. Rendezvous would ask
 * for a permission that the slots have given long ago, and longer eager messages would be put together in memory that UCX allocates. Exchanges of two processes on one busy
 * machine, us, medians of undisturbed runs: TCP over lo, 8 B 5.6, 4 KB 6.5, 16 KB 8–11, 32 KB 13, 1 MB 520–850 (pieces of 8 KB: 16 KB 16–24, 32 KB 30; rendezvous: 32 KB 230;
 * comm/tcp.c: 3.6, 5.2, 7, 8.5, 480); shared memory 0.5, 1.5, 3.7, 6, 430 (rendezvous as UCX chooses it: 16 KB up to 165).
 *
 * Rendezvous is the second way (comm_divide): a message as a whole, which over RDMA the peer's adapter reads from our registered slot, over all rails; what goes eagerly takes one. From which size on it is
 * the better one is measured between the very hosts (tune.c). Until then a message over RDMA is one piece, and UCX decides by its size. No adapter has been seen yet, only RDMA in software (tests/rdma.sh).
 * UCX_RNDV_THRESH in the environment leaves it to UCX for good, elsewhere as well.
 *
 * Events have a ring of the same size on rank 0 and on every reader, and the same position in all of them: rank 0 decides it, and knows by the readers' credits what is free.
 * Each packet carries how many events its sender knows of; an exchange is complete when rank 0's events up to its message have come as well.
 *
 * The end of a rank is told in two ways. Who closes says goodbye, with the number of its last exchange and with whom it blames, and stays for a moment until all have said
 * that they heard it; so its last messages arrive although sockets are cut with unread bytes in them. Who dies is reported by UCX's error handler.
 *
 * One thread per rank calls; a rank that is a thread has its own context and worker. UCX's own threads only serve connections. */
#include "comm/ucx_api.h"

#include "comm/comm_priv.h"

#if COMM_HAVE_UCX
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

#include "base/log.h"
#include "comm/ucx_devices.h"
#include "comm/ucx_watch.h"

/* UCX's TCP sends up to 64 KB at once, its own headers and ours included. */
#define PIECE_BYTES 61440u
/* Over RDMA what fits, with headers, into the 8 KB that UCX_IB_SEG_SIZE is unless somebody says otherwise: longer ones would be put together in UCX's memory. */
#define RDMA_PIECE_BYTES 7936u
#define RING_BYTES (1u << 20)
#define MAX_EVENTS 1024u /* on their way or unread */
#define MAX_PROGRESS 16  /* rounds of UCX's progress per look */
#define N_NAP_YIELDS 16
#define CONNECT_WAIT_NS (10 * BASE_NS_PER_S)
/* The adapter gives a peer up after a second, before anybody can know that a host is silent: whoever watches hosts and processes, and knows more, is given the time to say so. */
#define HOLD_NS (2 * BASE_NS_PER_S)
#define CLOSE_WAIT_NS (250 * BASE_NS_PER_MS)
#define RECORD_BYTES 2048u
#define AM_ID 7
_Static_assert(RECORD_BYTES <= COMM_BOOT_MAX_BYTES, "one round");

/* ---- what flies ---------------------------------------------------------------------------------------------------------------------------------- */

enum kind { HELLO = 1, DATA, EVENT, CREDIT, BYE, HEARD };

/* In the byte order of the machine: the ranks of a group are of one kind (the boot record's magic number would differ). */
struct packet {
    uint64_t key;      /* of this group: nobody else can know it */
    uint64_t sequence; /* DATA: of the exchange; EVENT: its number, from 0; CREDIT: events read; BYE: of the newest exchange begun */
    uint64_t bytes;    /* DATA, EVENT: of the whole; CREDIT: position up to which was read */
    uint64_t offset;   /* DATA, EVENT: of this piece */
    uint32_t n_events; /* that the sender knows of */
    uint16_t kind, rank;
    union {
        struct comm_header header; /* DATA */
        struct {
            uint64_t position; /* in the stream; the ring's size divides none of it */
            uint32_t data_offset, footprint;
        } event;
        struct {
            uint32_t rank, cause; /* enum comm_cause, never COMM_WANTED: who goes of its own will blames itself */
        } blamed; /* BYE */
    };
};
_Static_assert(sizeof(struct packet) == 64, "wire format");

#define RECORD_MAGIC 0x32786375646e6174ull /* "tanducx2" */
/* What a rank tells in the boot round. Two addresses: a whole one for ranks of the same host, and one without shared memory for the others, because UCX would find a shared kernel where
 * the launcher has decided on a link. */
struct record {
    uint64_t magic, nonce, capacity;
    uint32_t major, minor; /* of UCX, whose wire format is its own business */
    uint32_t net_bytes, whole_bytes;
    uint64_t check; /* of the addresses' bytes */
    uint64_t may_divide; /* 1: a second way is not decided on this host */
    char address[64];
    unsigned char addresses[RECORD_BYTES - 120]; /* net, whole */
};
_Static_assert(sizeof(struct record) == RECORD_BYTES, "wire format");

/* ---- state --------------------------------------------------------------------------------------------------------------------------------------- */

struct ucx;

/* Sends that UCX has not finished. */
struct tally {
    struct ucx *ucx;
    int rank; /* −1: several */
    unsigned n_pending;
};

/* A message in the making. */
struct arrival {
    uint64_t id; /* of its exchange; of its event + 1; 0: none */
    size_t bytes, received;
    struct ucx *ucx;
    int rank;
};

struct peer {
    ucp_ep_h ep;
    bool is_apart;  /* ourselves, or joined to us otherwise: no message goes there or comes from there; broken from the beginning */
    bool is_silent; /* its host answers nothing any more */
    struct tally tally;
    struct arrival arrivals[COMM_N_SLOTS];
    struct comm_header headers[COMM_N_SLOTS];
    uint32_t n_events[COMM_N_SLOTS]; /* that the sender knew of */
    bool said_hello, said_bye, heard_bye, must_answer;
    bool broken;
    ucs_status_t why;
    uint64_t last_sequence; /* from its goodbye */
    int blamed;             /* once lost */
    enum comm_cause cause;
    uint64_t broke_ns;
    uint64_t events_read, position_read; /* rank 0's peers: by their credits */
};

struct event {
    struct arrival arrival;
    uint64_t position;
    uint32_t data_offset, footprint;
    struct tally tally; /* rank 0 */
};

struct ucx {
    struct comm comm;
    const struct ucx_api *api;
    const struct base_clock *clock;
    int rank, n_ranks;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_mem_h mapped;
    int event_fd;
    uint64_t key;
    char address[64];

    unsigned char *memory; /* [n_ranks, COMM_N_SLOTS, slot_bytes] [RING_BYTES] */
    size_t memory_bytes, slot_bytes;
    size_t eager_bytes;     /* of a piece */
    bool ucx_decides;       /* how a message goes, which then is one piece; else: */
    size_t rendezvous_from; /* bytes of a message; smaller ones go eagerly in pieces */
    bool may_divide, is_rdma;
    bool holds; /* somebody watches, over RDMA */
    unsigned char *ring;
    struct packet *packets; /* of the exchange begun, one per piece; in a scatter each peer has its own */
    struct peer peers[COMM_MAX_RANKS];
    int n_must_answer;

    int n_arrived; /* ranks 0 … n_arrived−1 are here */
    struct comm_header own_header;
    int n_naps;

    struct event *events; /* [MAX_EVENTS], by number */
    uint64_t position;    /* rank 0: where the next event goes; others: read up to here */
    uint64_t n_posted;    /* rank 0 */
    uint64_t n_sent;      /* rank 0: events whose sends are finished */
    uint64_t n_here;      /* others: events that are whole, without a gap */
    uint64_t n_read, n_credited, position_credited;
    uint64_t n_promised; /* events that anybody knows of */

    struct packet hello, credit, bye, heard;
    struct tally credit_tally;

    struct ucx_watch watch;
    char addresses[COMM_MAX_RANKS][64];

    bool corrupt; /* somebody sent nonsense */
    struct err nonsense;
};

static unsigned char *slot_of(const struct ucx *s, int rank, uint64_t sequence) {
    return s->memory + ((size_t)rank * COMM_N_SLOTS + sequence % COMM_N_SLOTS) * s->slot_bytes;
}
static bool is_lost(const struct peer *p) { return p->broken || p->said_bye; }

/* Lost, but somebody may know better why. */
static bool is_held(const struct ucx *s, const struct peer *p) {
    return s->holds && p->broken && p->cause == COMM_BROKE && !p->said_bye && !p->is_silent && base_now_ns(s->clock) - p->broke_ns < HOLD_NS;
}

static void broke(struct peer *p, int rank, ucs_status_t why) {
    if (p->broken) return;
    p->broken = true;
    p->broke_ns = base_now_ns(p->tally.ucx->clock);
    p->why = why;
    if (p->said_bye) return; /* it went with a goodbye; its connection follows */
    p->blamed = rank;
    p->cause = COMM_BROKE;
}

/* ---- sending ------------------------------------------------------------------------------------------------------------------------------------- */

static void sent(void *request, ucs_status_t status, void *user_data) {
    struct tally *tally = user_data;
    struct ucx *s = tally->ucx;
    tally->n_pending--;
    if (status != UCS_OK && tally->rank >= 0) broke(&s->peers[tally->rank], tally->rank, status);
    s->api->ucp_request_free(request);
}

/* packet and data stay as they are until the tally is back at zero. */
static void post(struct ucx *s, int rank, const struct packet *packet, const void *data, size_t bytes, uint32_t flags, struct tally *tally) {
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .flags = flags,
        .cb.send = sent,
        .user_data = tally,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    struct peer *p = &s->peers[rank];
    tally->n_pending++;
    ucs_status_ptr_t request = s->api->ucp_am_send_nbx(p->ep, AM_ID, packet, sizeof *packet, data, bytes, &param);
    if (UCS_PTR_IS_PTR(request)) return; /* sent will be called */
    tally->n_pending--;
    if (UCS_PTR_IS_ERR(request)) broke(p, rank, UCS_PTR_STATUS(request));
}

static uint64_t n_known_events(const struct ucx *s) { return s->rank == 0 ? s->n_posted : s->n_promised; }

static struct packet make_packet(const struct ucx *s, enum kind kind, uint64_t sequence) {
    return (struct packet){
        .key = s->key, .sequence = sequence, .n_events = (uint32_t)n_known_events(s), .kind = (uint16_t)kind, .rank = (uint16_t)s->rank};
}

static void post_control(struct ucx *s, int rank, const struct packet *packet) {
    post(s, rank, packet, NULL, 0, UCP_AM_SEND_FLAG_EAGER, packet == &s->credit ? &s->credit_tally : &s->peers[rank].tally);
}

/* ---- receiving ----------------------------------------------------------------------------------------------------------------------------------- */

static void is_nonsense(struct ucx *s, const struct packet *p, const char *what) {
    if (s->corrupt) return;
    s->corrupt = true;
    err_set(&s->nonsense, ST_MISMATCH, "rank %d sent %s (kind %d, number %llu, %llu bytes)", p->rank, what, p->kind, (unsigned long long)p->sequence,
            (unsigned long long)p->bytes);
}

static void received(void *request, ucs_status_t status, size_t length, void *user_data) {
    struct arrival *a = user_data;
    if (status == UCS_OK)
        a->received += length;
    else
        broke(&a->ucx->peers[a->rank], a->rank, status);
    a->ucx->api->ucp_request_free(request);
}

static struct arrival *begin_data(struct ucx *s, const struct packet *p, unsigned char **place) {
    uint64_t newest = s->comm.sequence;
    if (p->sequence != newest && p->sequence != newest + 1) {
        is_nonsense(s, p, "a message of an exchange that cannot be");
        return NULL;
    }
    if (p->bytes > s->slot_bytes) {
        is_nonsense(s, p, "a message that is too long");
        return NULL;
    }
    size_t slot = p->sequence % COMM_N_SLOTS;
    struct peer *peer = &s->peers[p->rank];
    struct arrival *a = &peer->arrivals[slot];
    if (a->id != p->sequence) {
        *a = (struct arrival){.id = p->sequence, .bytes = p->bytes, .ucx = s, .rank = p->rank};
        peer->headers[slot] = p->header;
        peer->n_events[slot] = p->n_events;
    } else if (a->received == a->bytes) {
        is_nonsense(s, p, "a message twice");
        return NULL;
    }
    *place = slot_of(s, p->rank, p->sequence);
    return a;
}

static struct arrival *begin_event(struct ucx *s, const struct packet *p, unsigned char **place) {
    uint64_t at = p->event.position % RING_BYTES, ahead = p->event.position - s->position; /* huge where it is behind us */
    if (p->rank != 0 || s->rank == 0 || p->sequence - s->n_read >= MAX_EVENTS || p->bytes > COMM_EVENT_MAX_BYTES ||
        p->event.footprint > RING_BYTES - at || p->event.data_offset + p->bytes > p->event.footprint || ahead > RING_BYTES ||
        ahead + p->event.footprint > RING_BYTES) {
        is_nonsense(s, p, "an event that cannot be");
        return NULL;
    }
    struct event *event = &s->events[p->sequence % MAX_EVENTS];
    struct arrival *a = &event->arrival;
    if (a->id != p->sequence + 1) {
        *a = (struct arrival){.id = p->sequence + 1, .bytes = p->bytes, .ucx = s, .rank = 0};
        event->position = p->event.position;
        event->data_offset = p->event.data_offset;
        event->footprint = p->event.footprint;
    } else if (a->received == a->bytes) {
        is_nonsense(s, p, "an event twice");
        return NULL;
    }
    *place = s->ring + event->position % RING_BYTES + event->data_offset;
    return a;
}

static void take_payload(struct ucx *s, const struct packet *p, void *data, size_t length, bool rendezvous) {
    unsigned char *place = NULL;
    struct arrival *a = p->kind == DATA ? begin_data(s, p, &place) : begin_event(s, p, &place);
    if (!a) return;
    if (p->bytes != a->bytes || length > a->bytes - a->received || p->offset > a->bytes || length > a->bytes - p->offset || (!length && a->bytes)) {
        is_nonsense(s, p, "a piece that does not fit its message");
        return;
    }
    if (!rendezvous) {
        if (length) memcpy(place + p->offset, data, length);
        a->received += length;
        return;
    }
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.recv_am = received,
        .user_data = a,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    ucs_status_ptr_t request = s->api->ucp_am_recv_data_nbx(s->worker, data, place + p->offset, length, &param);
    if (!request) a->received += length;
    if (UCS_PTR_IS_ERR(request)) broke(&s->peers[p->rank], p->rank, UCS_PTR_STATUS(request));
}

static void take_bye(struct ucx *s, const struct packet *p) {
    struct peer *peer = &s->peers[p->rank];
    if (peer->said_bye) return;
    const bool is_told = peer->broken && !is_held(s, peer);
    peer->said_bye = true;
    peer->last_sequence = p->sequence;
    peer->must_answer = true;
    s->n_must_answer++;
    if (is_told) return;
    peer->blamed = p->blamed.rank < (uint32_t)s->n_ranks ? (int)p->blamed.rank : p->rank;
    peer->cause = p->blamed.cause == COMM_BROKE ? COMM_BROKE : COMM_CLOSED;
}

/* Called by UCX from its progress, so from ours. What does not bear the group's key is not from this group and is dropped. */
static ucs_status_t on_packet(void *arg, const void *header, size_t header_length, void *data, size_t length, const ucp_am_recv_param_t *param) {
    struct ucx *s = arg;
    struct packet p;
    if (header_length != sizeof p) return UCS_OK;
    memcpy(&p, header, sizeof p);
    if (p.key != s->key || p.rank >= s->n_ranks || s->peers[p.rank].is_apart) return UCS_OK;
    if (p.n_events > s->n_promised) s->n_promised = p.n_events;
    struct peer *peer = &s->peers[p.rank];
    switch (p.kind) {
    case HELLO: peer->said_hello = true; break;
    case DATA:
    case EVENT: take_payload(s, &p, data, length, param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV); break;
    case CREDIT:
        if (s->rank != 0 || p.sequence > s->n_posted || p.bytes > s->position) {
            is_nonsense(s, &p, "a receipt for events that were never posted");
            break;
        }
        if (p.sequence > peer->events_read) peer->events_read = p.sequence;
        if (p.bytes > peer->position_read) peer->position_read = p.bytes;
        break;
    case BYE: take_bye(s, &p); break;
    case HEARD: peer->heard_bye = true; break;
    default: is_nonsense(s, &p, "a packet of a kind that we do not know"); break;
    }
    return UCS_OK;
}

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status) {
    (void)ep;
    struct tally *tally = arg;
    broke(&tally->ucx->peers[tally->rank], tally->rank, status);
}

/* What readers have read is told in quarters: rank 0 then sees at least three of them free once all is read. */
static void give_credit(struct ucx *s) {
    if (s->n_read - s->n_credited < MAX_EVENTS / 4 && s->position - s->position_credited < RING_BYTES / 4) return;
    if (s->credit_tally.n_pending || is_lost(&s->peers[0])) return;
    s->credit = make_packet(s, CREDIT, s->n_read);
    s->credit.bytes = s->position;
    s->n_credited = s->n_read;
    s->position_credited = s->position;
    post_control(s, 0, &s->credit);
}

static void pump(struct ucx *s) {
    for (int i = 0; i < MAX_PROGRESS && s->api->ucp_worker_progress(s->worker); i++) s->comm.n_moved++;
    for (int r = 0; r < s->n_ranks && s->n_must_answer; r++) {
        struct peer *p = &s->peers[r];
        if (!p->must_answer) continue;
        p->must_answer = false;
        s->n_must_answer--;
        if (!p->broken) post_control(s, r, &s->heard);
    }
}

/* ---- loss ---------------------------------------------------------------------------------------------------------------------------------------- */

static bool is_here(const struct peer *p, uint64_t sequence) {
    const struct arrival *a = &p->arrivals[sequence % COMM_N_SLOTS];
    return a->id == sequence && a->received == a->bytes;
}

static enum st tell_lost(struct ucx *s, int r, struct err *e) {
    const struct peer *p = &s->peers[r];
    s->comm.blamed = p->blamed;
    s->comm.cause = p->cause;
    if (p->cause == COMM_CLOSED) return err_set(e, ST_PEER_LOST, "rank %d closed its end", p->blamed);
    if (p->is_silent) return err_set(e, ST_PEER_LOST, "the host of rank %d, %s, has fallen silent", r, s->addresses[r]);
    if (p->blamed == r) return err_set(e, ST_PEER_LOST, "rank %d died or its link broke: %s", r, s->api->ucs_status_string(p->why));
    if (p->blamed == s->rank) return err_set(e, ST_PEER_LOST, "rank %d lost its link to rank %d, to us", r, s->rank);
    return err_set(e, ST_PEER_LOST, "rank %d died or its link broke, as rank %d tells", p->blamed, r);
}

/* Nothing has come; will anything? ST_AGAIN, or ST_PEER_LOST. In an exchange a rank that closed after it had sent what we wait for is no loss. */
static enum st check_lost(struct ucx *s, bool exchange, struct err *e) {
    for (int r = 0; r < s->n_ranks; r++) {
        const struct peer *p = &s->peers[r];
        if (p->is_apart || !is_lost(p)) continue;
        if (exchange && (is_here(p, s->comm.sequence) || (!p->broken && p->last_sequence >= s->comm.sequence))) continue;
        if (!is_held(s, p)) return tell_lost(s, r, e);
    }
    return ST_AGAIN;
}

/* ---- exchange ------------------------------------------------------------------------------------------------------------------------------------ */

static void *ucx_send_buffer(struct comm *c) {
    const struct ucx *s = (const struct ucx *)c;
    return slot_of(s, s->rank, c->sequence + 1);
}

struct way {
    size_t piece_bytes;
    uint32_t flags;
};
static struct way way_of(const struct ucx *s, size_t bytes) {
    if (s->ucx_decides) return (struct way){.piece_bytes = s->slot_bytes};
    if (bytes && bytes >= s->rendezvous_from) return (struct way){.piece_bytes = s->slot_bytes, .flags = UCP_AM_SEND_FLAG_RNDV};
    return (struct way){.piece_bytes = s->eager_bytes, .flags = UCP_AM_SEND_FLAG_EAGER};
}

static bool ucx_divide(struct comm *c, size_t from_bytes) {
    struct ucx *s = (struct ucx *)c;
    if (!s->may_divide) return false;
    s->ucx_decides = false;
    s->rendezvous_from = from_bytes;
    return true;
}

/* A piece ends where the next bytes for this peer lie elsewhere. */
static void scatter_to(struct ucx *s, int r, const unsigned char *own, const struct packet *whole, struct packet **packets) {
    const struct comm_shares *shares = &s->comm.shares;
    struct packet packet = *whole;
    packet.bytes = comm_scattered_bytes(shares, s->rank, r);
    const struct way way = way_of(s, packet.bytes);
    do {
        const size_t left = packet.bytes - packet.offset;
        size_t bytes = 0, place = left ? comm_scattered_place(shares, r, packet.offset, &bytes) : 0;
        if (bytes > left) bytes = left;
        if (bytes > way.piece_bytes) bytes = way.piece_bytes;
        *++*packets = packet;
        if (!is_lost(&s->peers[r])) post(s, r, *packets, own + place, bytes, way.flags, &s->peers[r].tally);
        packet.offset += bytes;
    } while (packet.offset < packet.bytes);
}

/* Each begins with its next, so that not all send to the same. */
static int nth_peer(const struct ucx *s, int k) { return (s->rank + k) % s->n_ranks; }

static enum st ucx_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    (void)e;
    struct ucx *s = (struct ucx *)c;
    unsigned char *own = slot_of(s, s->rank, c->sequence);
    const size_t bytes = recv_bytes[s->rank];
    const struct way way = way_of(s, bytes);
    const size_t n_pieces = bytes ? (bytes + way.piece_bytes - 1) / way.piece_bytes : 1;
    if (send && send != own && bytes) memcpy(own, send, bytes);
    s->own_header = *header;
    s->n_arrived = 0;
    s->n_naps = 0;
    struct packet packet = make_packet(s, DATA, c->sequence);
    packet.bytes = bytes;
    packet.header = *header;
    struct packet *last = s->packets - 1;
    for (int k = 1; k < s->n_ranks && c->is_scatter; k++) scatter_to(s, nth_peer(s, k), own, &packet, &last);
    for (size_t i = 0; i < n_pieces && !c->is_scatter; i++) {
        packet.offset = i * way.piece_bytes;
        s->packets[i] = packet;
        size_t piece_bytes = bytes - packet.offset < way.piece_bytes ? bytes - packet.offset : way.piece_bytes;
        for (int k = 1; k < s->n_ranks; k++) {
            int r = nth_peer(s, k);
            if (!is_lost(&s->peers[r])) post(s, r, &s->packets[i], own + packet.offset, piece_bytes, way.flags, &s->peers[r].tally);
        }
    }
    return ST_OK;
}

static void count_events(struct ucx *s) {
    for (; s->n_here < s->n_read + MAX_EVENTS; s->n_here++) {
        const struct arrival *a = &s->events[s->n_here % MAX_EVENTS].arrival;
        if (a->id != s->n_here + 1 || a->received != a->bytes) return;
    }
}

static enum st ucx_allgather_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    struct ucx *s = (struct ucx *)c;
    if (s->n_ranks > 1) pump(s);
    if (s->corrupt) return err_set(e, ST_MISMATCH, "%s", s->nonsense.text);
    size_t slot = c->sequence % COMM_N_SLOTS;
    for (; s->n_arrived < s->n_ranks; s->n_arrived++) {
        int r = s->n_arrived;
        if (s->peers[r].is_apart) continue;
        const struct arrival *a = &s->peers[r].arrivals[slot];
        if (a->id == c->sequence && a->bytes != c->recv_bytes[r])
            return err_set(e, ST_MISMATCH, "rank %d sent %zu bytes where %zu are due", r, a->bytes, c->recv_bytes[r]);
        if (is_here(&s->peers[r], c->sequence)) continue;
        *missing = r;
        return check_lost(s, true, e);
    }
    if (s->rank != 0 && s->n_here < s->peers[0].n_events[slot]) {
        count_events(s);
        if (s->n_here < s->peers[0].n_events[slot]) {
            *missing = 0;
            return s->peers[0].broken && !is_held(s, &s->peers[0]) ? tell_lost(s, 0, e) : ST_AGAIN;
        }
    }
    for (int r = 0; r < s->n_ranks; r++) {
        if (!s->peers[r].tally.n_pending) continue;
        *missing = r;
        return ST_AGAIN;
    }
    for (int r = 0; r < s->n_ranks; r++) {
        views[r] = slot_of(s, r, c->sequence);
        if (headers) headers[r] = r == s->rank ? s->own_header : s->peers[r].headers[slot];
    }
    return ST_OK;
}

/* ---- events -------------------------------------------------------------------------------------------------------------------------------------- */

/* May an event that ends at this position be posted? Its place in the rings was read by all, and is no longer read by UCX either. */
static bool has_room(struct ucx *s, uint64_t end) {
    for (; s->n_sent < s->n_posted && !s->events[s->n_sent % MAX_EVENTS].tally.n_pending; s->n_sent++) {
    }
    if (s->n_posted - s->n_sent >= MAX_EVENTS) return false;
    if (s->n_sent < s->n_posted && end > s->events[s->n_sent % MAX_EVENTS].position + RING_BYTES) return false;
    for (int r = 1; r < s->n_ranks; r++)
        if (!s->peers[r].is_apart && (s->n_posted - s->peers[r].events_read >= MAX_EVENTS || end > s->peers[r].position_read + RING_BYTES))
            return false;
    return true;
}

/* In the ring: the headers of its pieces, then the data, in one stretch; what is left at the ring's end is skipped. */
static enum st ucx_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    struct ucx *s = (struct ucx *)c;
    if (s->n_ranks == 1) return ST_OK;
    pump(s);
    if (s->corrupt) return err_set(e, ST_MISMATCH, "%s", s->nonsense.text);
    enum st code = check_lost(s, false, e);
    if (code != ST_AGAIN) return code;
    const struct way way = way_of(s, 0); /* never by rendezvous, unless UCX decides */
    size_t piece_bytes = way.piece_bytes < COMM_EVENT_MAX_BYTES ? way.piece_bytes : COMM_EVENT_MAX_BYTES;
    size_t n_pieces = bytes ? (bytes + piece_bytes - 1) / piece_bytes : 1;
    size_t footprint = n_pieces * sizeof(struct packet) + comm_round_up(bytes, 64);
    uint64_t position = s->position;
    if (footprint > RING_BYTES - position % RING_BYTES) position += RING_BYTES - position % RING_BYTES;
    if (!has_room(s, position + footprint)) return ST_AGAIN;

    struct event *event = &s->events[s->n_posted % MAX_EVENTS];
    event->position = position;
    event->tally = (struct tally){s, -1, 0};
    struct packet *packets = (struct packet *)(void *)(s->ring + position % RING_BYTES);
    unsigned char *copy = (unsigned char *)(packets + n_pieces);
    if (bytes) memcpy(copy, data, bytes);
    struct packet packet = make_packet(s, EVENT, s->n_posted);
    packet.n_events++;
    packet.bytes = bytes;
    packet.event.position = position;
    packet.event.data_offset = (uint32_t)(n_pieces * sizeof packet);
    packet.event.footprint = (uint32_t)footprint;
    s->position = position + footprint;
    s->n_posted++;
    for (size_t i = 0; i < n_pieces; i++) {
        packet.offset = i * piece_bytes;
        packets[i] = packet;
        size_t n = bytes - packet.offset < piece_bytes ? bytes - packet.offset : piece_bytes;
        for (int r = 1; r < s->n_ranks; r++)
            if (!s->peers[r].is_apart && !is_lost(&s->peers[r])) post(s, r, &packets[i], copy + packet.offset, n, way.flags, &event->tally);
    }
    return ST_OK;
}

static enum st ucx_event_test(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e) {
    struct ucx *s = (struct ucx *)c;
    pump(s);
    count_events(s);
    if (s->corrupt) return err_set(e, ST_MISMATCH, "%s", s->nonsense.text);
    if (s->n_here == s->n_read) {
        give_credit(s);
        /* What was posted before somebody was lost still counts, as long as rank 0 can deliver it. */
        if (s->n_promised > s->n_here && !s->peers[0].broken) return ST_AGAIN;
        return check_lost(s, false, e);
    }
    const struct event *event = &s->events[s->n_read % MAX_EVENTS];
    size_t n = event->arrival.bytes;
    if (event->position < s->position) return err_set(e, ST_MISMATCH, "rank 0's events overlap: number %llu", (unsigned long long)s->n_read);
    if (n > capacity) return err_set(e, ST_INVALID, "comm: an event of %zu bytes does not fit into %zu", n, capacity);
    if (n) memcpy(data, s->ring + event->position % RING_BYTES + event->data_offset, n);
    *bytes = n;
    s->position = event->position + event->footprint;
    s->n_read++;
    s->n_naps = 0;
    give_credit(s);
    return ST_OK;
}

static enum st ucx_progress(struct comm *c, struct err *e) {
    struct ucx *s = (struct ucx *)c;
    if (s->n_ranks == 1) return ST_OK;
    pump(s);
    if (s->corrupt) return err_set(e, ST_MISMATCH, "%s", s->nonsense.text);
    if (s->rank != 0) give_credit(s);
    bool pending = s->credit_tally.n_pending;
    for (uint64_t i = s->n_sent; i < s->n_posted && !pending; i++) pending = s->events[i % MAX_EVENTS].tally.n_pending;
    return pending ? ST_AGAIN : ST_OK;
}

/* ---- sleeping ------------------------------------------------------------------------------------------------------------------------------------ */

/* Whoever sleeps has time to see whether somebody's host has gone. */
static void watch(struct ucx *s, uint64_t now_ns) {
    const char *silent = comm_ucx_watch_silent(&s->watch, now_ns);
    if (!silent) return;
    for (int r = 0; r < s->n_ranks; r++) {
        struct peer *p = &s->peers[r];
        if (p->broken || strcmp(s->addresses[r], silent) != 0) continue;
        broke(p, r, UCS_ERR_ENDPOINT_TIMEOUT);
        p->is_silent = !p->said_bye;
    }
}

/* On UCX's event descriptor, armed: it says busy where something came in between. A system call or two to fall asleep and some microseconds to wake up; so yield for a while first. */
static void doze(struct ucx *s, uint64_t deadline_ns) {
    uint64_t now_ns = base_now_ns(s->clock);
    if (now_ns >= deadline_ns) return;
    if (s->n_naps < N_NAP_YIELDS || s->n_ranks == 1) {
        s->n_naps++;
        sched_yield();
        return;
    }
    watch(s, now_ns);
    uint64_t ns = deadline_ns - now_ns;
    ucs_status_t status = s->event_fd >= 0 ? s->api->ucp_worker_arm(s->worker) : UCS_ERR_UNSUPPORTED;
    if (status == UCS_ERR_BUSY) return;
    if (status != UCS_OK && ns > 100 * BASE_NS_PER_US) ns = 100 * BASE_NS_PER_US; /* a transport that wakes nobody */
    const struct timespec timeout = {.tv_sec = (time_t)(ns / BASE_NS_PER_S), .tv_nsec = (long)(ns % BASE_NS_PER_S)};
    struct pollfd fd = {.fd = s->event_fd, .events = POLLIN};
    ppoll(&fd, status == UCS_OK ? 1 : 0, &timeout, NULL);
}

static void ucx_sleep(struct comm *c, uint64_t deadline_ns) { doze((struct ucx *)c, deadline_ns); }

/* ---- opening ------------------------------------------------------------------------------------------------------------------------------------- */

static enum st ucx_probe(const struct comm_setup *setup, struct err *e) {
    enum st code = comm_ucx_find(e);
    if (code != ST_OK) return code;
    if (!setup->boot && setup->n_ranks > 1) return err_set(e, ST_UNSUPPORTED, "no way was given to find the other ranks");
    struct ucx_devices devices = {.n_rails = 0};
    if (setup->backend) return ST_OK;
    /* Not asked for by name: only where it is better than sockets. */
    code = comm_ucx_devices(setup->address, "/sys", &devices, e);
    if (code != ST_OK) return code;
    return devices.is_rdma ? ST_OK : err_set(e, ST_UNSUPPORTED, "no RDMA device has our address, and plain sockets are faster than UCX over them");
}

static enum st failed(const struct ucx *s, const char *what, ucs_status_t status, struct err *e) {
    return err_set(e, status == UCS_ERR_NO_MEMORY ? ST_NO_MEMORY : ST_IO, "ucx: %s: %s", what, s->api->ucs_status_string(status));
}

/* The launcher's decision comes by the environment, where it was made (which rails face the peer, it alone has probed); else the address tells the interface. */
static enum st configure(const struct ucx *s, ucp_config_t *config, const struct ucx_devices *devices, struct err *e) {
    ucs_status_t status = UCS_OK;
    if (!getenv("UCX_NET_DEVICES")) status = s->api->ucp_config_modify(config, "NET_DEVICES", devices->names);
    if (status == UCS_OK && !getenv("UCX_TLS"))
        status = s->api->ucp_config_modify(config, "TLS", devices->is_rdma ? "rc,ud,posix,cma,self" : "tcp,posix,cma,self");
    return status == UCS_OK ? ST_OK : failed(s, "UCX_NET_DEVICES, UCX_TLS", status, e);
}

static enum st open_worker(struct ucx *s, const char *address, struct ucx_devices *devices, struct err *e) {
    enum st code = comm_ucx_devices(address, "/sys", devices, e);
    if (code != ST_OK) return code;
    const struct ucx_setting more[] = {
        {"UCX_TCP_AF_PRIO", devices->is_v6 ? "inet6" : "inet"},
        {"UCX_IB_ROCE_LOCAL_SUBNET", devices->n_rails > 1 ? "y" : NULL}, /* twins are on different subnets: do not join the wrong ends */
        /* UCX overwrites the beginnings of libc's mmap, munmap, madvise … to hear of registered memory that goes away. Nothing is registered without RDMA (and
         * ThreadSanitizer dies when a thread ends in the patched madvise). */
        {"UCX_MEM_EVENTS", devices->is_rdma ? NULL : "n"},
    };
    code = comm_ucx_load(more, sizeof more / sizeof *more, &s->api, e);
    if (code != ST_OK) return code;
    ucp_config_t *config;
    ucs_status_t status = s->api->ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK) return failed(s, "its settings", status, e);
    code = configure(s, config, devices, e);
    const ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .mt_workers_shared = 0,
        .estimated_num_eps = (size_t)s->n_ranks - 1,
    };
    if (code == ST_OK) {
        status = s->api->ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &s->context);
        if (status != UCS_OK) code = failed(s, devices->names, status, e);
    }
    s->api->ucp_config_release(config);
    if (code != ST_OK) return code;
    const ucp_worker_params_t worker_params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SINGLE};
    status = s->api->ucp_worker_create(s->context, &worker_params, &s->worker);
    if (status != UCS_OK) return failed(s, devices->names, status, e);
    if (s->api->ucp_worker_get_efd(s->worker, &s->event_fd) != UCS_OK) s->event_fd = -1;
    const ucp_am_handler_param_t handler = {
        .field_mask =
            UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = AM_ID,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = on_packet,
        .arg = s,
    };
    status = s->api->ucp_worker_set_am_recv_handler(s->worker, &handler);
    if (status != UCS_OK) return failed(s, "active messages", status, e);
    ucp_worker_attr_t attr = {.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER};
    status = s->api->ucp_worker_query(s->worker, &attr);
    if (status != UCS_OK) return failed(s, "worker", status, e);
    if (attr.max_am_header < sizeof(struct packet))
        return err_set(e, ST_UNSUPPORTED, "ucx: active messages over %s have headers of %zu bytes, we need %zu", devices->names, attr.max_am_header,
                       sizeof(struct packet));
    return ST_OK;
}

static enum st put_address(const struct ucx *s, uint32_t flags, struct record *record, size_t *at, uint32_t *bytes, struct err *e) {
    ucp_worker_attr_t attr = {.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS | UCP_WORKER_ATTR_FIELD_ADDRESS_FLAGS, .address_flags = flags};
    ucs_status_t status = s->api->ucp_worker_query(s->worker, &attr);
    if (status != UCS_OK) return failed(s, "its address", status, e);
    enum st code = ST_OK;
    if (attr.address_length > sizeof record->addresses - *at) {
        code = err_set(e, ST_UNSUPPORTED, "ucx: an address of %zu bytes; restrict UCX_TLS", attr.address_length);
    } else {
        memcpy(record->addresses + *at, attr.address, attr.address_length);
        *bytes = (uint32_t)attr.address_length;
        *at += attr.address_length;
    }
    s->api->ucp_worker_release_address(s->worker, attr.address);
    return code;
}

static enum st describe(const struct ucx *s, size_t capacity, struct record *record, struct err *e) {
    size_t at = 0;
    record->capacity = capacity;
    record->major = s->api->major;
    record->minor = s->api->minor;
    record->may_divide = s->may_divide;
    memcpy(record->address, s->address, sizeof record->address);
    if (getrandom(&record->nonce, sizeof record->nonce, 0) != sizeof record->nonce)
        return err_set(e, ST_IO, "ucx: random numbers: %s", strerror(errno));
    enum st code = put_address(s, UCP_WORKER_ADDRESS_FLAG_NET_ONLY, record, &at, &record->net_bytes, e);
    if (code == ST_OK) code = put_address(s, 0, record, &at, &record->whole_bytes, e);
    if (code != ST_OK) return code;
    record->check = base_hash64(record->addresses, at, 0);
    record->magic = RECORD_MAGIC;
    LOG_DBG("comm", "ucx: addresses of %u and %u bytes", record->net_bytes, record->whole_bytes);
    return ST_OK;
}

static enum st check_record(const struct record *theirs, const struct record *mine, int r, struct err *e) {
    if (theirs->magic == 0) return err_set(e, ST_PEER_LOST, "ucx: rank %d could not open", r);
    if (theirs->magic != RECORD_MAGIC) return err_set(e, ST_MISMATCH, "ucx: rank %d does not open ucx", r);
    size_t bytes = (size_t)theirs->net_bytes + theirs->whole_bytes;
    if (bytes > sizeof theirs->addresses || base_hash64(theirs->addresses, bytes, 0) != theirs->check || theirs->address[sizeof theirs->address - 1])
        return err_set(e, ST_MISMATCH, "ucx: the address of rank %d is damaged", r);
    if (theirs->major != mine->major || theirs->minor != mine->minor)
        return err_set(e, ST_MISMATCH, "ucx: rank %d has UCX %u.%u, we have %u.%u", r, theirs->major, theirs->minor, mine->major, mine->minor);
    if (theirs->capacity != mine->capacity)
        return err_set(e, ST_MISMATCH, "ucx: rank %d wants messages of %llu bytes, we want %llu", r, (unsigned long long)theirs->capacity,
                       (unsigned long long)mine->capacity);
    return ST_OK;
}

static enum st create_endpoint(struct ucx *s, int r, const struct record *theirs, struct err *e) {
    bool same_host = strcmp(theirs->address, s->address) == 0;
    struct peer *p = &s->peers[r];
    const ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)(const void *)(theirs->addresses + (same_host ? theirs->net_bytes : 0)),
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = &p->tally},
    };
    ucs_status_t status = s->api->ucp_ep_create(s->worker, &params, &p->ep);
    if (status == UCS_OK) return ST_OK;
    p->ep = NULL;
    return err_set(e, ST_IO, "ucx: rank %d at %s cannot be reached from %s: %s", r, theirs->address[0] ? theirs->address : "loopback",
                   s->address[0] ? s->address : "loopback", s->api->ucs_status_string(status));
}

/* All ranks have come, and connecting takes milliseconds: who has not answered by now is out of reach. */
static enum st tell_unreached(const struct ucx *s, int r, uint64_t begun_ns, struct err *e) {
    const char *devices = getenv("UCX_NET_DEVICES"), *address = s->addresses[r][0] ? s->addresses[r] : "loopback";
    const bool by_rdma = s->is_rdma && strcmp(s->addresses[r], s->address) != 0;
    return err_set(e, ST_TIMEOUT, "ucx: rank %d at %s runs, but did not answer for %.0f s%s%s%s", r, address, (double)(base_now_ns(s->clock) - begun_ns) / BASE_NS_PER_S, devices ? ", by " : "",
                   devices ? devices : "",
                   by_rdma ? ": RDMA packets do not get there, or not back (RoCE is UDP to port 4791: is it open?); --backend tcp does without RDMA" : "");
}

static enum st connect_all(struct ucx *s, const struct record *records, uint64_t deadline_ns, struct err *e) {
    const uint64_t begun_ns = base_now_ns(s->clock);
    if (deadline_ns > begun_ns + CONNECT_WAIT_NS) deadline_ns = begun_ns + CONNECT_WAIT_NS;
    uint64_t nonces[COMM_MAX_RANKS] = {0};
    for (int r = 0; r < s->n_ranks; r++) {
        enum st code = check_record(&records[r], &records[s->rank], r, e);
        if (code != ST_OK) return code;
        nonces[r] = records[r].nonce;
        s->may_divide = s->may_divide && records[r].may_divide; /* finding the ways out is a matter of all */
    }
    for (int r = 0; r < s->n_ranks; r++) memcpy(s->addresses[r], records[r].address, sizeof s->addresses[r]);
    s->key = base_hash64(nonces, sizeof nonces, RECORD_MAGIC);
    for (int r = 0; r < s->n_ranks; r++) {
        if (s->peers[r].is_apart) continue;
        enum st code = create_endpoint(s, r, &records[r], e);
        if (code != ST_OK) return code;
    }
    /* A word with everybody, so that the first exchange finds its connections made and a wrong one is told now. */
    s->hello = make_packet(s, HELLO, 0);
    s->heard = make_packet(s, HEARD, 0);
    for (int r = 0; r < s->n_ranks; r++)
        if (!s->peers[r].is_apart) post_control(s, r, &s->hello);
    for (;;) {
        int missing = -1;
        pump(s);
        for (int r = 0; r < s->n_ranks; r++) {
            const struct peer *p = &s->peers[r];
            if (p->is_apart) continue;
            if (p->said_hello && !p->tally.n_pending) continue;
            if (is_lost(p)) return tell_lost(s, r, e);
            missing = r;
        }
        if (missing < 0) {
            if (s->address[0]) comm_ucx_watch_find(&s->watch, (const char(*)[64])s->addresses, s->n_ranks);
            return ST_OK;
        }
        if (base_now_ns(s->clock) >= deadline_ns) return tell_unreached(s, missing, begun_ns, e);
        uint64_t slice_ns = base_now_ns(s->clock) + 5 * BASE_NS_PER_MS;
        doze(s, slice_ns < deadline_ns ? slice_ns : deadline_ns);
    }
}

static void release(struct ucx *s) {
    if (s->worker) s->api->ucp_worker_destroy(s->worker);
    if (s->mapped) s->api->ucp_mem_unmap(s->context, s->mapped);
    if (s->context) s->api->ucp_cleanup(s->context);
    if (s->memory) munmap(s->memory, s->memory_bytes);
    free(s->packets);
    free(s->events);
    free(s);
}

static enum st allocate(struct ucx *s, size_t max_bytes, struct err *e) {
    s->slot_bytes = comm_buffer_bytes(max_bytes);
    size_t slots_bytes = comm_round_up((size_t)s->n_ranks * COMM_N_SLOTS * s->slot_bytes, 4096);
    s->memory_bytes = slots_bytes + RING_BYTES;
    BASE_ASSERT(s->memory_bytes <= comm_memory_bytes("ucx", s->n_ranks, max_bytes) / (size_t)s->n_ranks);
    void *memory = mmap(NULL, s->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) {
        s->memory = memory;
        s->ring = s->memory + slots_bytes;
    }
    /* A scatter has, beside whole pieces, one that is shorter for each vector and peer. */
    s->packets = calloc((s->slot_bytes + s->eager_bytes - 1) / s->eager_bytes + (size_t)s->n_ranks * COMM_MAX_VECTORS, sizeof *s->packets);
    s->events = calloc(MAX_EVENTS, sizeof *s->events);
    if (!s->memory || !s->packets || !s->events) return err_set(e, ST_NO_MEMORY, "ucx: no memory for buffers of %zu bytes", s->memory_bytes);
    return ST_OK;
}

/* The adapter reads and writes the slots where they are. */
static enum st map_memory(struct ucx *s, struct err *e) {
    const ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
        .address = s->memory,
        .length = s->memory_bytes,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    ucs_status_t status = s->api->ucp_mem_map(s->context, &params, &s->mapped);
    return status == UCS_OK
               ? ST_OK
               : err_set(e, ST_NO_MEMORY, "ucx: registering %zu bytes (ulimit -l?): %s", s->memory_bytes, s->api->ucs_status_string(status));
}

static enum st prepare(struct ucx *s, const struct comm_setup *setup, struct record *mine, struct err *e) {
    comm_ucx_watch_begin(&s->watch);
    struct ucx_devices devices = {.n_rails = 0};
    enum st code = open_worker(s, setup->address, &devices, e);
    const bool is_chosen = getenv("UCX_RNDV_THRESH") != NULL; /* who sets it wants it used */
    s->ucx_decides = devices.is_rdma || is_chosen;
    s->may_divide = setup->address && !is_chosen;
    s->is_rdma = devices.is_rdma;
    s->holds = s->is_rdma && setup->is_watched;
    if (s->is_rdma) s->eager_bytes = RDMA_PIECE_BYTES;
    if (code == ST_OK) code = allocate(s, setup->max_bytes, e);
    if (code == ST_OK && s->ucx_decides) code = map_memory(s, e);
    if (code == ST_OK) code = describe(s, s->slot_bytes, mine, e);
    if (code == ST_OK) LOG_DBG("comm", "ucx %u.%u.%u over %s", s->api->major, s->api->minor, s->api->release, devices.names);
    if (code != ST_OK) memset(mine, 0, sizeof *mine);
    return code;
}

static void close_endpoints(struct ucx *s);

static bool has_unanswered(const struct ucx *s) {
    for (int r = 0; r < s->n_ranks; r++)
        if (s->peers[r].ep && !s->peers[r].broken && (!s->peers[r].said_hello || s->peers[r].tally.n_pending)) return true;
    return false;
}

static enum st ucx_open(const struct comm_setup *setup, struct comm **c, struct err *e) {
    struct ucx *s = calloc(1, sizeof *s);
    struct record *records = calloc((size_t)setup->n_ranks + 1, sizeof *records);
    enum st code = ST_OK;
    if (s && records) {
        s->rank = setup->rank;
        s->n_ranks = setup->n_ranks;
        s->clock = setup->clock ? setup->clock : base_clock_real();
        s->event_fd = -1;
        s->eager_bytes = PIECE_BYTES;
        s->rendezvous_from = SIZE_MAX;
        snprintf(s->address, sizeof s->address, "%.60s", setup->address ? setup->address : "");
        for (int r = 0; r < s->n_ranks; r++) {
            s->peers[r].tally = (struct tally){s, r, 0};
            s->peers[r].is_apart = s->peers[r].broken = comm_is_apart(setup, r);
        }
        s->credit_tally = (struct tally){s, 0, 0};
        code = setup->n_ranks == 1 ? allocate(s, setup->max_bytes, e) : prepare(s, setup, &records[s->n_ranks], e);
    } else {
        code = err_set(e, ST_NO_MEMORY, "ucx: no memory");
    }
    if (setup->n_ranks > 1 && records) {
        struct err boot_error = {0};
        enum st booted =
            setup->boot->allgather(setup->boot->context, &records[setup->n_ranks], RECORD_BYTES, records, setup->deadline_ns, &boot_error);
        if (code == ST_OK && booted != ST_OK) code = err_set(e, booted, "%s", boot_error.text);
        if (code == ST_OK) code = connect_all(s, records, setup->deadline_ns, e);
    }
    free(records);
    if (code == ST_OK) {
        *c = &s->comm;
        return ST_OK;
    }
    /* UCX 1.13 aborts where an endpoint is closed whose requests to connect nobody answered: it stays then, for the process that is about to end. */
    if (s && !has_unanswered(s)) {
        close_endpoints(s);
        release(s);
    }
    return code;
}

/* ---- closing ------------------------------------------------------------------------------------------------------------------------------------- */

/* Those that broke at once; the others when what they were given is out, if that does not take too long. */
static void close_endpoints(struct ucx *s) {
    ucs_status_ptr_t requests[COMM_MAX_RANKS] = {NULL};
    for (int r = 0; r < s->n_ranks; r++) {
        struct peer *p = &s->peers[r];
        if (!p->ep) continue;
        const ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = p->broken ? UCP_EP_CLOSE_FLAG_FORCE : 0};
        requests[r] = s->api->ucp_ep_close_nbx(p->ep, &param);
        p->ep = NULL;
    }
    uint64_t deadline_ns = base_now_ns(s->clock) + CLOSE_WAIT_NS;
    for (int r = 0; r < s->n_ranks; r++) {
        if (!UCS_PTR_IS_PTR(requests[r])) continue;
        while (s->api->ucp_request_check_status(requests[r]) == UCS_INPROGRESS && base_now_ns(s->clock) < deadline_ns)
            if (!s->api->ucp_worker_progress(s->worker)) sched_yield();
        s->api->ucp_request_free(requests[r]);
    }
}

static bool all_have_heard(const struct ucx *s) {
    for (int r = 0; r < s->n_ranks; r++) {
        const struct peer *p = &s->peers[r];
        if (!p->broken && ((!p->heard_bye && !p->said_bye) || p->tally.n_pending || p->must_answer)) return false;
    }
    return true;
}

static void ucx_close(struct comm *c) {
    struct ucx *s = (struct ucx *)c;
    if (s->n_ranks > 1) {
        s->bye = make_packet(s, BYE, c->sequence);
        s->bye.blamed.rank = (uint32_t)(c->cause == COMM_WANTED ? s->rank : c->blamed);
        s->bye.blamed.cause = c->cause == COMM_WANTED ? COMM_CLOSED : c->cause;
        for (int r = 0; r < s->n_ranks; r++)
            if (!s->peers[r].broken) post_control(s, r, &s->bye);
        uint64_t deadline_ns = base_now_ns(s->clock) + CLOSE_WAIT_NS;
        for (;;) {
            pump(s);
            uint64_t now_ns = base_now_ns(s->clock);
            if (all_have_heard(s) || now_ns >= deadline_ns) break;
            doze(s, now_ns + BASE_NS_PER_MS);
        }
        close_endpoints(s);
    }
    release(s);
}

#define IF_UCX(x) x
#else
static enum st ucx_probe(const struct comm_setup *setup, struct err *e) {
    (void)setup;
    return comm_ucx_find(e);
}
#define IF_UCX(x) NULL
#endif

const struct comm_backend comm_ucx_backend = {
    .capabilities = {.name = "ucx", .crosses_hosts = true, .ranks_as_threads = true, .one_shot = false, .sends_ahead = true, .scatters = true, .max_ranks = COMM_MAX_RANKS},
    .priority = 40, /* and its probe refuses where plain sockets (10) are better */
    .probe = ucx_probe,
    .open = IF_UCX(ucx_open),
    .close = IF_UCX(ucx_close),
    .send_buffer = IF_UCX(ucx_send_buffer),
    .allgather_start = IF_UCX(ucx_allgather_start),
    .allgather_test = IF_UCX(ucx_allgather_test),
    .event_post = IF_UCX(ucx_event_post),
    .event_test = IF_UCX(ucx_event_test),
    .divide = IF_UCX(ucx_divide),
    .progress = IF_UCX(ucx_progress),
    .sleep = IF_UCX(ucx_sleep),
};
