/* Inside the tcp backend: set-up (tcp_connect.c) and data path (tcp.c). Tests and the fuzzer look in here as well. */
#ifndef COMM_TCP_PRIV_H
#define COMM_TCP_PRIV_H

#include "comm/comm_priv.h"

/* What runs over a connection once it is set up: frames, each a head of 64 bytes and a payload, all numbers little-endian.
 *
 *    0 kind 4 · 4 zero 4 · 8 number 8 · 16 bytes of payload 8 · 24 step 8 · 32 n_events 4 · 36 token_hash 4 · 40 sent_ns 8 · 48 events_read 8 · 56 zero 8
 *
 *   kind      from → to     number                payload             24 … 47                 events_read
 *   exchange  all → all     of the exchange       the rank's bytes    comm_header             bytes of the event stream taken so far
 *   event     0 → others    of the event, from 0  the event's bytes   zero                    zero
 *   read      others → 0    zero                  none                zero                    as above: a credit, when no exchange carries it
 *   bye       all → all     why (enum comm_cause)    none                n_events: rank blamed   zero
 *
 * Nothing follows a bye. The event stream's bytes count heads and payloads. */
#define TCP_HEAD_BYTES 64u
enum tcp_kind { TCP_EXCHANGE = 0x3158434d, TCP_EVENT = 0x3156454d, TCP_READ = 0x3144524d, TCP_BYE = 0x3145594d }; /* "MCX1" "MEV1" "MRD1" "MYE1" */

struct tcp_frame {
    enum tcp_kind kind;
    uint64_t number, bytes;
    struct comm_header header;
    uint64_t events_read;
};
void comm_tcp_put(const struct tcp_frame *f, unsigned char head[TCP_HEAD_BYTES]);
/* False: this is no frame of ours. What it says still has to be checked. */
bool comm_tcp_get(const unsigned char head[TCP_HEAD_BYTES], struct tcp_frame *f);

#define TCP_RING_BYTES (1u << 20) /* of events that some rank has not read yet */

/* A further connection to a peer: of exchanges that are divided its share of the payload, and nothing else. */
struct tcp_stream {
    int fd;                /* −1: none */
    size_t n_sent, n_have; /* bytes of the exchange begun */
    bool ended;
};

struct tcp_peer {
    int fd; /* −1: none, to ourselves and those that are joined to us otherwise */

    /* receiving: the frame in hand */
    unsigned char *at;    /* where it is put: the slot of its exchange, or spare */
    unsigned char *spare; /* [TCP_HEAD_BYTES + COMM_EVENT_MAX_BYTES] */
    size_t have, total;   /* bytes; total is 0 until the head is here */
    size_t n_skip;        /* bytes of a frame that nobody wants */
    uint64_t n_received;  /* exchanges that are here as a whole */
    uint64_t n_announced; /* exchanges whose head is here; the last one has */
    uint64_t announced_bytes;

    struct tcp_stream more[COMM_MAX_STREAMS - 1];

    /* sending */
    uint64_t n_out;        /* our frame of which exchange: the one begun, or in a run a later one */
    size_t frame_bytes;    /* of it on the first stream, outside of runs */
    size_t n_sent;         /* bytes of it */
    bool is_full;          /* its socket has not taken the frame as a whole */
    unsigned char head[TCP_HEAD_BYTES]; /* of it, in a run and in a scatter */
    unsigned char *rest;   /* [n_rest] of one, whose run has ended too early; malloc'ed; else NULL */
    size_t n_rest, n_rest_sent;
    uint64_t events_sent;  /* rank 0: position in the event stream */
    uint64_t events_read;  /* rank 0: what the peer says to have taken */
    bool has_control;      /* a frame of a head only waits */
    size_t n_control_sent; /* bytes of it */
    unsigned char control[TCP_HEAD_BYTES];

    /* the end */
    bool ended;       /* nothing more comes from it, nothing goes to it */
    unsigned i_ended; /* the how manieth to end */
    int error;        /* of the socket, as errno; 0: end of file */
    bool looks_silent; /* at the last look */
    double silent_s;  /* its host did not answer for so long */
    bool cut;         /* inside a frame */
    bool said_bye;
    int blamed; /* by its bye; −1: nobody */
    enum comm_cause cause;
    bool garbled; /* it sent what cannot be: struct tcp's garbled says what */
};

struct tcp {
    struct comm comm;
    int rank, n_ranks;
    size_t capacity; /* of a slot's payload */
    int n_more;      /* streams of each peer, beyond the first */
    size_t divide_bytes; /* payloads of so many bytes and more are divided among all streams; all ranks agree on it */
    unsigned char *memory, *ring;
    unsigned char *own;      /* [COMM_N_SLOTS, slot]: what we send */
    struct comm_pages pages; /* they, where the system has such */
    size_t memory_bytes, slot_bytes;
    struct tcp_peer peers[COMM_MAX_RANKS];

    bool is_run;         /* somebody may be further ahead than by one exchange */
    struct comm_run run; /* ours; from NULL: there is none */
    uint64_t run_first;  /* exchange */

    /* the exchange begun */
    uint64_t after;                 /* it is sent behind so much of the event stream */
    unsigned turn;                  /* whose turn it is to be looked at first */
    uint64_t n_moved_seen; /* comm.n_moved, as sleep has seen it last */
    uint64_t quiet_since_ns;        /* when it saw that */

    /* events; positions count bytes since the beginning. Rank 0 keeps the stream as it is sent; others keep length (8) and bytes of what they have not read */
    uint64_t ring_written, ring_read;  /* rank 0 only writes: peers read */
    uint64_t n_events;                 /* rank 0: posted; others: received */
    uint64_t events_read, events_told; /* others: bytes of the stream taken, and what rank 0 knows of it */

    unsigned n_ended;
    struct err garbled;
    uint64_t look_for_silence_ns;
    uint64_t n_sends, n_receives; /* system calls */
};

/* ---- tcp_wire.c ---------------------------------------------------------------------------------------------------------------------------------- */

unsigned char *comm_tcp_slot(const struct tcp *t, int rank, uint64_t sequence); /* head, then payload */
void comm_tcp_ring_put(struct tcp *t, const void *data, size_t bytes);
void comm_tcp_ring_get(const struct tcp *t, uint64_t position, void *data, size_t bytes);

/* Reads from rank r up to a piece, or until the socket is empty or has ended; in an exchange not beyond the frame that is due. True: there may be more. */
bool comm_tcp_receive(struct tcp *t, int r, bool exchange);
/* The head of an exchange for which there is no slot yet has come: who is in a run may be so far ahead. It waits in spare, and all behind it in the socket. */
bool comm_tcp_is_too_early(const struct tcp *t, const struct tcp_peer *p);
/* All that rank r has sent and that is here, for its good-bye: where no exchange with it will be finished any more. */
void comm_tcp_receive_rest(struct tcp *t, int r);
/* Sends to rank r up to a piece of what is due, as far as its socket takes it. */
void comm_tcp_push(struct tcp *t, int r);
/* The piece of our run that goes with that exchange; bytes 0: it has none. */
const unsigned char *comm_tcp_piece(const struct tcp *t, uint64_t exchange, size_t *bytes);
/* struct comm_backend's run. */
bool comm_tcp_run(struct comm *c, const struct comm_run *run);
/* Bytes of a payload that stream i carries (0: the first one, behind the frame's head), and where they begin in it. */
size_t comm_tcp_share(const struct tcp *t, size_t bytes, int i, size_t *offset);
/* Bytes of payload that rank r gets of us in the exchange begun. */
size_t comm_tcp_sent_bytes(const struct tcp *t, int r);
/* In an exchange: what is due on the further streams, both ways. */
void comm_tcp_move_shares(struct tcp *t, int r);
/* Of that, what is still due on the ith of them: POLLIN, POLLOUT, both or 0. */
short comm_tcp_due(const struct tcp *t, int r, int i);
/* Whether all that is due from and to a peer in the exchange begun is done; and, where it is not, whether it never will be. */
bool comm_tcp_is_done(const struct tcp *t, int r);
bool comm_tcp_is_in_vain(const struct tcp *t, int r);
/* Both, for all peers, outside an exchange. */
void comm_tcp_pump(struct tcp *t);
bool comm_tcp_has_unsent(struct tcp *t, struct tcp_peer *p);
/* A frame of a head only. False: another one is just leaving. */
bool comm_tcp_put_control(struct tcp_peer *p, const struct tcp_frame *f);

/* Rank r has ended too early. It may have done so because of another: then that one is named, from what we see of it ourselves or by hearsay. */
enum st comm_tcp_tell_lost(struct tcp *t, int r, struct err *e);
/* Outside an exchange every end is one too early. ST_AGAIN: all are there. */
enum st comm_tcp_check_lost(struct tcp *t, struct err *e);
/* Now and then, by the clock: ends peers whose host acknowledges nothing any more. Idle connections are the keep-alive's. */
void comm_tcp_look_for_silence(struct tcp *t, uint64_t now_ns);

/* ---- setting up ---------------------------------------------------------------------------------------------------------------------------------- */

/* A connection to every other rank, made before setup->deadline_ns; fds[setup->rank] = −1, those of ranks apart as well. Makes exactly one round of setup->boot; able: false says there that this rank is not. */
enum st comm_tcp_connect(const struct comm_setup *setup, bool able, int fds[COMM_MAX_RANKS], struct err *e);
/* A comm over connections that are there already, whatever made them, as long as they do not block; takes them over on success. */
enum st comm_tcp_join(const struct comm_setup *setup, const int *fds, struct comm **c, struct err *e);

#endif
