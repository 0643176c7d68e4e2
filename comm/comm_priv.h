/* Inside comm/: what every backend's struct begins with, and the list of backends.
 *
 * A backend's own struct has struct comm as its first member and is allocated by its open (zeroed, 64-byte aligned if it likes) and freed by its close.
 * comm_open fills the common part after the backend's open returned; sequence, step, begun and recv_bytes belong to comm.c, backends read them.
 * comm.c has checked all arguments before it calls a backend: rank, counts and sizes are in range, allgather_test only follows allgather_start. */
#ifndef COMM_COMM_PRIV_H
#define COMM_COMM_PRIV_H

#include "comm/comm.h"
#include "comm/os.h"

/* Buffers hold at least so much, so that the hello fits wherever the model's own messages are smaller. */
#define COMM_MIN_BYTES 1024
/* Beyond any machine that we know; below it no product of sizes overflows. */
#define COMM_LIMIT_BYTES (1ull << 40)
/* Send buffers a rank needs so that a view stays readable until the second next collective begins (argument in shm.c). */
#define COMM_N_SLOTS 3
/* A numeric address with its scope and its end mark. */
#define COMM_ADDRESS_BYTES 80

/* Why a rank has ended, or would: told in its good-bye, so that the first cause is named although ends come in any order. */
enum comm_cause {
    COMM_WANTED,
    COMM_CLOSED,
    COMM_BROKE,
    COMM_N_CAUSES
}; /* own will; since another closed; since another died, or the connection to it broke */

struct comm {
    const struct comm_backend *backend;
    const struct base_clock *clock;
    const struct comm_os *os;
    int rank, n_ranks, spin_us;
    size_t max_bytes;
    uint64_t sequence; /* of the newest exchange begun; the first is 1 */
    uint64_t step;     /* that its header named */
    bool begun;        /* started and not yet finished */
    bool advancing;    /* nobody waits: comm_allgather_advance */
    uint64_t n_moved;  /* times that bytes went in or out, on backends that move a piece at a time */
    bool is_here;      /* it found the exchange begun done: */
    const void *views[COMM_MAX_RANKS];
    struct comm_header headers[COMM_MAX_RANKS];
    enum st broken;    /* ST_OK, or why no further exchange is possible */
    struct err why;
    size_t recv_bytes[COMM_MAX_RANKS]; /* of the exchange begun: in a scatter our own are whole, others' what comes of them */
    bool is_scatter;                   /* the exchange begun is one: */
    struct comm_shares shares;
    uint64_t packed; /* bit r: rank r's share of its vectors comes without what lies between; from others we see all */
    enum comm_cause cause;             /* of our end, if it came now: set by backends that find somebody lost */
    int blamed;                        /* who is lost, where cause is not COMM_WANTED */

    /* what comm_split hands on, beside clock, os and spin_us */
    const char *backend_name; /* of the table, whatever is wrapped around it */
    char address[COMM_ADDRESS_BYTES]; /* "": none was given */
    bool has_link;
    struct comm_link link;
    int first_here, n_here;
    bool has_key;
    uint8_t key[COMM_KEY_BYTES];
};

/* In a scatter: bytes of a rank's vectors, and what another one gets of them. */
static inline size_t comm_vectors_bytes(const struct comm_shares *s, int sender) { return s->n_vectors[sender] * s->vector_bytes; }
static inline size_t comm_share_bytes(const struct comm_shares *s, int receiver) { return s->begin[receiver + 1] - s->begin[receiver]; }
static inline size_t comm_scattered_bytes(const struct comm_shares *s, int sender, int receiver) { return s->n_vectors[sender] * comm_share_bytes(s, receiver); }
/* Where, in the sender's buffer, byte `at` of what the receiver gets lies, and how many follow it without a gap. */
static inline size_t comm_scattered_place(const struct comm_shares *s, int receiver, size_t at, size_t *bytes) {
    const size_t share = comm_share_bytes(s, receiver), vector = at / share, offset = at % share;
    *bytes = share - offset;
    return vector * s->vector_bytes + s->begin[receiver] + offset;
}

/* ST_OK where an exchange may begin, else what comm_allgather_start would say. */
enum st comm_check_ready(const struct comm *c, struct err *e);
/* For calls that are several exchanges: one of them failed, and nobody can finish it later. Returns code. */
enum st comm_give_up(struct comm *c, enum st code, const struct err *why, struct err *e);

/* The sentence about rank, which has ended because of another one, as it told. own: our rank. */
enum st comm_tell_hearsay(int rank, enum comm_cause cause, int blamed, int own, struct err *e);

/* shm, rank 0: ST_OK where an event of so many bytes may be posted; ST_AGAIN: not yet. */
enum st comm_shm_has_room(struct comm *c, size_t bytes, struct err *e);

/* comm/link.c. wrap puts the link of (*c)->link around an opened backend, which is released with it; on failure *c is as it was. */
enum st comm_link_check(const struct comm_link *link, struct err *e);
enum st comm_link_wrap(struct comm **c, struct err *e);
/* The group's traffic goes through the parent's port, where both are emulated; the parent must outlive it. */
void comm_link_share_port(struct comm *group, const struct comm *parent);

extern const struct comm_backend comm_self_backend, comm_shm_backend, comm_tcp_backend, comm_ucx_backend, comm_mpi_backend, comm_shm_tcp_backend,
    comm_shm_ucx_backend;

/* Nobody of whom this comm should hear: ourselves, or a rank that is joined to us otherwise. */
static inline bool comm_is_apart(const struct comm_setup *setup, int rank) { return rank == setup->rank || setup->apart >> rank & 1; }

static inline size_t comm_round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline size_t comm_capacity(size_t max_bytes) { return comm_round_up(max_bytes < COMM_MIN_BYTES ? COMM_MIN_BYTES : max_bytes, 64); }
/* What a backend's buffers hold: an emulated link adds its stamp behind the payload (at the next 64 bytes). */
#define COMM_TRAILER_BYTES 64
static inline size_t comm_buffer_bytes(size_t max_bytes) { return comm_capacity(max_bytes) + COMM_TRAILER_BYTES; }

#endif
