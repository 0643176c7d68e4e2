/* Bytes between ranks: the table of backends and the collectives above it.
 *
 * Life cycle: comm_open (every rank of the group, same setup) → comm_hello → collectives in the same order on every rank → comm_close.
 * One thread per rank calls (the rank's main thread); views handed out may be read by the rank's other threads until the second next
 * collective on the same comm begins.
 * Nothing waits for ever: every wait takes an absolute deadline (CLOCK_MONOTONIC ns) and, when it expires, the err says which peer, which step and which
 * sequence number. A peer that closed or died is ST_PEER_LOST as soon as the backend can see it; where
 * somebody watches (is_watched), and an adapter gave up a peer without a word from it, two seconds later.
 * Nothing here knows about models: sums are done by the caller (kern_sum) over the views, in the fixed tree; a collective only moves bytes. */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/status.h"

#define COMM_MAX_RANKS 64

struct comm;
struct comm_os;

/* Travels with every message of a collective: what rank 0 has issued so far and what everybody has sampled so far (see runtime/schedule.h). */
struct comm_header {
    uint64_t step;        /* of the sender's scheduler; named in errors */
    uint32_t n_events;    /* events that rank 0 has issued (others send 0) */
    uint32_t token_hash;  /* hash of all tokens sampled so far */
    uint64_t sent_ns;     /* the sender's clock when it began the exchange; 0: not told. From it the ledger tells a slow peer from a slow wire */
};

struct comm_capabilities {
    const char *name;      /* "shm" */
    bool crosses_hosts;
    bool ranks_as_threads; /* several ranks of a group may be threads of one process */
    bool one_shot;         /* all-gather without a copy: views point into the sender's buffer */
    bool sends_ahead;      /* comm_send_buffer may be asked for, and written, while the all-gather before is under way */
    bool scatters;         /* a scatter moves what is asked for; elsewhere it is an all-gather, of which each takes its share */
    size_t max_ranks;
    size_t piece_bytes;    /* what a rank best sends at once of a large sum, unless told otherwise; 0: as much as anybody */
};

/* How ranks find each other before they are connected: one slow all-gather of small records, made by whoever starts them (PMI-1 of our agent or of somebody else's mpiexec, MPI,
 * a parent comm, a test's threads). Every rank calls it equally often, with the same bytes ≤ COMM_BOOT_MAX_BYTES; blocks until all have. */
#define COMM_BOOT_MAX_BYTES 4096
struct comm_boot {
    enum st (*allgather)(void *context, const void *mine, size_t bytes, void *all /* [n_ranks, bytes] */, uint64_t deadline_ns, struct err *e);
    void *context;
};

/* An emulated wire between local ranks (comm/link.c); every rank has one full-duplex port. */
struct comm_link {
    double bits_per_s;   /* 0: as fast as the machine */
    uint64_t delay_ns;   /* one way */
    uint64_t jitter_ns;  /* each message is late by 0 … so much, by a generator keyed by seed, sender and exchange */
    uint64_t seed;
};
/* "200gbit,2.5us[,jitter=500ns][,seed=7]": rate in bit, kbit, mbit, gbit, or "unlimited" (0); times in ns, us, ms. Presets are the caller's (topologies/links.h). */
enum st comm_link_parse(const char *text, struct comm_link *link, struct err *e);
/* The same as text that comm_link_parse reads back to equal values. */
void comm_link_print(const struct comm_link *link, char text[128]);

/* What an emulated link did, summed since opening; all zero without one. The virtual clock: what the exchanges would have taken on the link alone, had this machine cost nothing. */
struct comm_link_totals {
    uint64_t n_exchanges, bytes; /* received from peers */
    uint64_t link_ns;            /* virtual: of the link alone, from the slower side's beginning to the last byte */
    uint64_t held_ns;            /* bytes were there and waited for the emulated arrival */
    uint64_t late_ns;            /* the machine was later than the link would have been */
    uint64_t n_late;
};

#define COMM_KEY_BYTES 32
#define COMM_MAX_STREAMS 4

/* How the ranks of a group find each other. */
struct comm_setup {
    const char *backend; /* NULL: the best that fits */
    int rank, n_ranks;
    size_t max_bytes;    /* the largest send of one rank in one collective: sizes the buffers (from the plan) */
    int spin_us;         /* spin at most so long (≤ 50), then yield, then sleep; 0: ranks × threads exceed the allowed CPUs */
    const struct base_clock *clock; /* NULL: the real one */
    const struct comm_os *os;       /* tcp: the system below (os.h), outlives the comm; NULL: the real one */
    int memory_fd;       /* shm: a memfd made by comm_shm_create (inherited), hybrids: for the ranks of our host; −1 otherwise */
    void *memory;        /* shm between threads of one process: the mapping itself, instead of memory_fd; else NULL */
    const struct comm_boot *boot; /* tcp, ucx, mpi, and shm where no segment was inherited (rank 0 then makes one, still without a name: shm.c); NULL: none */
    const char *address;          /* tcp, ucx: our own numeric address, as the launcher decided; NULL: loopback */
    int port;                     /* tcp: at which we listen there; 0: any */
    const char *streams;          /* tcp: ADDRESS[%INTERFACE] of our end of each of a pair's connections, with commas between, at most COMM_MAX_STREAMS, as many on every rank;
                                   * the first carries all small messages; an interface is what the connection is bound to; NULL: one, at address */
    const uint8_t *key;           /* [COMM_KEY_BYTES] tcp: the job's, for the proof that begins every connection; copied; NULL: the boot round has to be secret then */
    const struct comm_link *link; /* wraps the backend; NULL: none */
    int first_here, n_here;       /* our host's ranks, first_here … first_here + n_here − 1: hybrids join them by shm; 0, 0: not told */
    uint64_t apart;               /* tcp, ucx: bit r: rank r is joined to us in another way, so not by this comm; for hybrid.c alone */
    bool is_watched;              /* an agent sees to our host's ranks, and to other hosts: it may know better why a peer is lost */
    uint64_t deadline_ns;         /* for opening; 0: 60 s from now */
};

/* ---- shm's shared segment: made once by whoever starts the ranks --------------------------------------------------------------------------------- */

/* An unnamed memfd (nothing lies in /dev/shm), close-on-exec cleared by the caller who passes it on. Pages are touched by the rank that owns them. */
enum st comm_shm_create(int n_ranks, size_t max_bytes, int *memory_fd, struct err *e);
size_t comm_shm_bytes(int n_ranks, size_t max_bytes);
/* What all ranks together take for exchanges by that backend (NULL: shared memory): where ranks do not see each other's memory, each has places of its own for what all of them send. */
size_t comm_memory_bytes(const char *backend, int n_ranks, size_t max_bytes);
/* For the agent, which maps the segment as well: tells all ranks that one is dead, so that they stop waiting for it at once (their calls return ST_PEER_LOST naming it). */
enum st comm_shm_mark_dead(int memory_fd, int rank, struct err *e);

/* ---- opening ------------------------------------------------------------------------------------------------------------------------------------- */

enum st comm_open(const struct comm_setup *setup, struct comm **c, struct err *e);
void comm_close(struct comm *c); /* peers see it: their waits end with ST_PEER_LOST */
const struct comm_capabilities *comm_query(const struct comm *c);
int comm_rank(const struct comm *c);
int comm_n_ranks(const struct comm *c);

/* What the ranks compare before the first byte of a model moves. */
struct comm_identity {
    const char *build_id;       /* of the sources */
    const char *kernel_variant; /* "cpu/avx512-vnni" */
    struct digest plan, model, settings;
};
/* Every rank learns the same answer: ST_MISMATCH names the field, both values (as hex or text) and the two ranks. */
enum st comm_hello(struct comm *c, const struct comm_identity *mine, uint64_t deadline_ns, struct err *e);

/* ---- collectives --------------------------------------------------------------------------------------------------------------------------------- */

/* Where to write what the next all-gather sends, so that a one-shot backend need not copy it. At most max_bytes; 64-byte aligned; valid until that all-gather. While one is under way
 * there is a next one only where the backend sends ahead: no peer can still read it then. */
void *comm_send_buffer(struct comm *c);

/* Every rank sends send_bytes (may be 0; may differ per rank: recv_bytes[r] says what rank r sends, known to all) from send (or NULL: from comm_send_buffer);
 * views[r] then points to rank r's bytes (own included), 64-byte aligned; headers[r] to what came with them. header is ours; headers may be NULL. */
enum st comm_allgather(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, uint64_t deadline_ns, const void **views,
                       struct comm_header *headers, struct err *e);
/* The same in two parts, so that work can be done while bytes fly. Nothing else may be called on c in between but comm_allgather_finish and _advance, and comm_send_buffer as above.
 * ST_TIMEOUT leaves the exchange begun: finish may be called again. ST_PEER_LOST and ST_MISMATCH are for good: every later call says the same. */
enum st comm_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e);
enum st comm_allgather_finish(struct comm *c, uint64_t deadline_ns, const void **views, struct comm_header *headers, struct err *e);
/* Moves what can be moved without waiting, where the caller's time is what moves it; now and then while there is other work. True: finish will not wait. What goes wrong is told by finish. */
bool comm_allgather_advance(struct comm *c);

/* An exchange in which each rank gets something else, as the first half of a large sum (reduce-scatter) wants it: every rank sends vectors of one size, one behind the other, of all of which rank r
 * gets the bytes [begin[r], begin[r + 1]). Begun with a scatter of its own, it goes on as an all-gather: comm_allgather_advance, and comm_allgather_finish, whose views comm_share then makes
 * pointers to our share of each vector of, in the order of ranks; they live as long as views do. Returns how many. */
#define COMM_MAX_VECTORS 256
struct comm_shares {
    size_t vector_bytes;                /* a multiple of 64 */
    uint32_t n_vectors[COMM_MAX_RANKS]; /* of each rank, at most COMM_MAX_VECTORS together; 0 is possible */
    size_t begin[COMM_MAX_RANKS + 1];   /* from 0 to vector_bytes, not falling, multiples of 64; begin[n_ranks] is the end */
};
enum st comm_scatter_start(struct comm *c, const void *send, const struct comm_shares *shares, const struct comm_header *header, struct err *e);
int comm_share(const struct comm *c, const void *const *views, const void **vectors);
/* As equal as whole blocks of block_bytes (a multiple of 64) allow; the last may end with a part of one. */
void comm_cut_evenly(struct comm_shares *shares, int n_ranks, size_t block_bytes);

/* Exchange-and-add of the partial sums of a tree, in pieces: while the caller adds piece i, piece i + 1 flies. Rank r contributes n_vectors[r] vectors of vector_bytes each (own ones
 * in send, one behind the other); add is called for each piece, in order, with all vectors' bytes [offset, offset + bytes) in the order of ranks, 64-byte aligned. It alone knows
 * what adding is; it may run on other threads of the caller as long as it returns when they are done, and calls nothing on c.
 * What fits into one piece is one exchange. With vector_bytes 0 it is one exchange, too, for its headers' sake, and add is not called.
 * Large sums of three and more ranks are shared (reduce-scatter and all-gather), where the caller tells where the sum lies: of each piece every rank gets a share of all vectors, adds that, and sends
 * it to all. Then add is called for our shares alone, in order, and all of the sum is there on return: for n ranks with one vector each, 2/n of the bytes. Between two ranks they would be as many.
 * Every rank passes the same vector_bytes, n_vectors, piece_bytes and scatter_bytes, and either all of them pass sum or none. ST_INVALID where they cannot be served (the same on every rank, and nothing was exchanged); any other failure is
 * for good, ST_TIMEOUT included: which pieces were added is told by the calls of add alone. */
#define COMM_SCATTER_BYTES (256u << 10)
/* Whether a sum of which no rank sends more than send_bytes is shared. Where the backend cannot send each rank its share, it would cost more than it saves. */
bool comm_is_shared(const struct comm *c, size_t send_bytes, size_t scatter_bytes);
struct comm_exchange_add {
    const void *send;          /* may be comm_send_buffer's where all fits into one piece */
    size_t vector_bytes;       /* ≤ any; a multiple of 4 */
    const uint32_t *n_vectors; /* [n_ranks], at most COMM_MAX_VECTORS together; 0 is possible */
    size_t piece_bytes;        /* of one vector, cut down to what max_bytes allows and to whole 64 bytes; 0: chosen so that a piece of all vectors stays in cache */
    void (*add)(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors);
    void *context;
    void *sum;            /* [vector_bytes], where add writes bytes at their offset; NULL: who knows where */
    size_t scatter_bytes; /* of one rank's vectors: sums of so many are shared; 0: COMM_SCATTER_BYTES */
    struct comm_header *headers;       /* [n_ranks]: what came with the first piece; NULL: not wanted */
    uint64_t (*extend)(void *context); /* asked where the deadline has passed: a later one, or 0 to give up; NULL: give up */
};
enum st comm_exchange_and_add(struct comm *c, const struct comm_exchange_add *x, const struct comm_header *header, uint64_t deadline_ns, struct err *e);

/* The k best of all ranks' candidates, on every rank the same: those with the larger value, ties to the lower id; sorted so. A NaN is worse than any number (−inf included), −0 as good
 * as +0. Every rank brings n ≤ COMM_TOP_K_MAX, in any order; k ≤ COMM_TOP_K_MAX, the same on every rank; merged holds at most k. An id comes from one rank, once: what comes twice stays twice. */
#define COMM_TOP_K_MAX 256
struct comm_candidate {
    float value;
    int32_t id; /* < 0: none */
};
enum st comm_top_k(struct comm *c, const struct comm_candidate *mine, int n, int k, const struct comm_header *header, uint64_t deadline_ns, struct comm_candidate *merged,
                   int *n_merged, struct err *e);

/* Groups: collective over the parent. Ranks that pass the same color ≥ 0 become a comm of their own, in the order of their ranks in the parent (its backend, its link); with a
 * negative color *group is NULL. The parent stays open until after its groups. All of a color pass the same max_bytes, else every rank of the parent gets the same ST_MISMATCH.
 * Where a group cannot be made, its members get the error, the others their groups. */
enum st comm_split(struct comm *parent, int color, size_t max_bytes, uint64_t deadline_ns, struct comm **group, struct err *e);

/* From rank to rank, in a group of two (comm_split makes one): an exchange in which the other side sends nothing, so the two count the same. bytes ≤ max_bytes, known to both.
 * comm_send returns when the other side is in comm_receive as well. */
enum st comm_send(struct comm *pair, const void *data, size_t bytes, uint64_t deadline_ns, struct err *e);
enum st comm_receive(struct comm *pair, void *data, size_t bytes, uint64_t deadline_ns, struct err *e);

/* Moves what is queued (events, on backends that need the caller's time for it): ST_AGAIN while something is left. To be called by a rank that is idle for long. */
enum st comm_progress(struct comm *c, struct err *e);
/* Messages of from_bytes and more go the second way of those that the backend has (tcp: over all streams; ucx: by rendezvous), from the next exchange on; every rank says the same. False: it has one. */
bool comm_divide(struct comm *c, size_t from_bytes);
/* Finds out from which size on the second way is the better one and takes it (tune.c); SIZE_MAX: from none, or there is no other. Collective, after the hello, under 2 s; at once where it was
 * found before for the same pair (any text without a line end that names hosts and interfaces; NULL: nothing is remembered) by the same build. */
enum st comm_tune(struct comm *c, const char *pair, uint64_t deadline_ns, size_t *from_bytes, struct err *e);
void comm_link_query(const struct comm *c, struct comm_link_totals *totals);

enum st comm_barrier(struct comm *c, uint64_t deadline_ns, struct err *e);
/* bytes ≤ max_bytes; in place. */
enum st comm_broadcast(struct comm *c, int root, void *data, size_t bytes, uint64_t deadline_ns, struct err *e);

/* ---- events: a reliable, ordered stream from rank 0 to all others, beside the collectives ----------------------------------------------------------- */

#define COMM_EVENT_MAX_BYTES 65536
/* Rank 0 only. ST_AGAIN when the slowest reader is too far behind. */
enum st comm_event_post(struct comm *c, const void *data, size_t bytes, struct err *e);
/* Other ranks: the next event in order, if it is there; ST_AGAIN if not yet (deadline passed: ST_AGAIN too, so that an idle rank may look around); peer death is ST_PEER_LOST. */
enum st comm_event_next(struct comm *c, void *data, size_t capacity, size_t *bytes, uint64_t deadline_ns, struct err *e);

/* ---- the table (for backends' files and the conformance suite) -------------------------------------------------------------------------------------- */

struct comm_run {
    const unsigned char *from;
    size_t bytes, piece_bytes; /* the last piece may be shorter */
    struct comm_header header;
};

struct comm_backend {
    struct comm_capabilities capabilities;
    int priority;
    /* ST_OK where this backend can serve the setup; the reason why not in e. */
    enum st (*probe)(const struct comm_setup *setup, struct err *e);
    /* Calls setup->boot at most COMM_BOOT_ROUNDS times, as often on every rank, also where it failed in between (then it sends zeroes, and peers see that this rank is not there):
     * nobody shall wait for a rank that gave up. deadline_ns is set. */
    enum st (*open)(const struct comm_setup *setup, struct comm **c, struct err *e);
    void (*close)(struct comm *c);
    void *(*send_buffer)(struct comm *c);
    enum st (*allgather_start)(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e);
    /* Never blocks: ST_AGAIN while messages are missing, or own bytes are not yet out of our hands (nobody else moves them when we go idle); *missing names a rank that is waited for. */
    enum st (*allgather_test)(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e);
    /* The all-gathers that follow, all of one sum, send a piece each of this vector under this header, whatever their own say; pieces may leave before their all-gather begins, and what has not left
     * is read until the run ends. False: not so here (from may be NULL: others may run all the same), and pieces go by the send buffer. run NULL: it ends, with all of its pieces or because of
     * a failure. NULL: nobody runs. */
    bool (*run)(struct comm *c, const struct comm_run *run);
    enum st (*event_post)(struct comm *c, const void *data, size_t bytes, struct err *e);
    enum st (*event_test)(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e);
    bool (*divide)(struct comm *c, size_t from_bytes); /* comm_divide; NULL: it has one way */
    /* NULL: nothing is ever left to move. */
    enum st (*progress)(struct comm *c, struct err *e);
    /* Sleeps until something may have changed, or the deadline: for waits that have spun long enough. */
    void (*sleep)(struct comm *c, uint64_t deadline_ns);
};
#define COMM_BOOT_ROUNDS (1 + COMM_MAX_STREAMS)
const struct comm_backend *const *comm_backends(void); /* best first; NULL-terminated */

#endif
