/* Bytes from a peer of the tcp backend: whatever they are, an answer comes, and nothing outside the peer's own buffers changes.
 *
 * Input: 0 our rank (bit 0), hang up at the end (bit 1), add a vector in pieces first (bit 2), exchanges are scatters (bit 3) · 1, 2 bytes due from the peer in the first and second exchange, in units of 16 · 3 size of the pieces in
 * which the rest arrives, in units of 8 (0: at once) · 4 … what the peer sends. Between the pieces our side begins and tests exchanges, posts and reads events. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/tcp_priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { HEAD = 4, MAX_BYTES = 4096 };

static struct comm *open_with(int rank, int fd) {
    const struct comm_setup setup = {.rank = rank, .n_ranks = 2, .max_bytes = MAX_BYTES, .memory_fd = -1};
    struct comm *c = NULL;
    BASE_ASSERT(comm_tcp_join(&setup, rank == 0 ? (int[]){-1, fd} : (int[]){fd, -1}, &c, NULL) == ST_OK);
    return c;
}

static bool is_expected(enum st code) {
    return code == ST_OK || code == ST_AGAIN || code == ST_TIMEOUT || code == ST_PEER_LOST || code == ST_MISMATCH || code == ST_INVALID;
}

struct exchanges {
    size_t recv_bytes[2][2];
    int n_begun, n_done;
    const void *views[2]; /* of the first one */
    uint64_t hash;        /* of the first one's bytes: they must not change until the third begins */
    bool adds, scatters;
    struct comm_shares shares[2];
};

/* As many lines of up to three of the peer's vectors as this byte says, of three of ours the others. */
static void draw_shares(struct exchanges *x, int i, int rank, unsigned byte) {
    struct comm_shares *s = &x->shares[i];
    const size_t ours = byte / 4 % 8 * 64, theirs = 192;
    s->vector_bytes = ours + theirs;
    s->begin[1] = rank == 0 ? ours : theirs;
    s->begin[2] = s->vector_bytes;
    s->n_vectors[rank] = 3;
    s->n_vectors[!rank] = byte % 4;
    x->recv_bytes[i][rank] = 3 * s->vector_bytes;
    x->recv_bytes[i][!rank] = byte % 4 * ours;
}

static void add(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors) {
    uint64_t *hash = context;
    BASE_ASSERT(n_vectors == 2 && offset % 64 == 0);
    for (int r = 0; r < 2; r++) *hash = base_hash64(vectors[r], bytes, *hash);
}

/* Five pieces, which leave before their turn; the vector is gone afterwards. */
static void add_in_pieces(struct comm *c, struct exchanges *x) {
    struct err e = {0};
    uint64_t hash = 0;
    unsigned char *vector = aligned_alloc(64, 320);
    BASE_ASSERT(vector);
    memset(vector, 1, 320);
    const struct comm_exchange_add sum = {.send = vector, .vector_bytes = 300, .n_vectors = (uint32_t[]){1, 1}, .piece_bytes = 64, .add = add, .context = &hash};
    const enum st code = comm_exchange_and_add(c, &sum, &(struct comm_header){0}, 1, &e);
    BASE_ASSERT(is_expected(code));
    free(vector);
    x->adds = false;
    if (code != ST_OK) x->n_begun = x->n_done = 2; /* for good */
}

static void step(struct comm *c, struct exchanges *x, unsigned i) {
    struct err e = {0};
    const struct comm_header header = {.step = i};
    const void *views[2] = {NULL, NULL};
    struct comm_header headers[2];
    static unsigned char event[COMM_EVENT_MAX_BYTES];
    size_t event_bytes = 0;
    if (x->adds && i == 1) add_in_pieces(c, x);
    if (x->n_begun == x->n_done && x->n_begun < 2 && i % 3 == 2) {
        enum st code = x->scatters ? comm_scatter_start(c, NULL, &x->shares[x->n_begun], &header, &e) : comm_allgather_start(c, NULL, x->recv_bytes[x->n_begun], &header, &e);
        BASE_ASSERT(is_expected(code));
        if (code == ST_OK) x->n_begun++;
    }
    if (x->n_begun > x->n_done) {
        enum st code = comm_allgather_finish(c, 1, views, headers, &e);
        BASE_ASSERT(is_expected(code));
        if (code == ST_OK) {
            for (int r = 0; r < 2; r++) BASE_ASSERT((uintptr_t)views[r] % 64 == 0);
            if (x->n_done++ == 0) {
                memcpy(x->views, views, sizeof views);
                for (int r = 0; r < 2; r++) x->hash = base_hash64(views[r], x->recv_bytes[0][r], x->hash);
            }
        } else if (code != ST_TIMEOUT) {
            x->n_begun = x->n_done = 2; /* for good */
        }
    } else if (comm_rank(c) == 0) {
        BASE_ASSERT(is_expected(i % 2 ? comm_event_post(c, event, i * 37 % 3000, &e) : comm_progress(c, &e)));
    } else {
        enum st code = comm_event_next(c, event, sizeof event, &event_bytes, 0, &e);
        BASE_ASSERT(is_expected(code));
        if (code == ST_OK) BASE_ASSERT(event_bytes <= sizeof event);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    int fds[2];
    if (bytes < HEAD || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0) return 0;
    signal(SIGPIPE, SIG_IGN); /* as ranks do, and messages go by pages */
    int rank = data[0] & 1;
    struct comm *c = open_with(rank, fds[0]);
    struct exchanges x = {.adds = data[0] & 4, .scatters = data[0] & 8};
    for (int i = 0; i < 2; i++) {
        x.recv_bytes[i][!rank] = (size_t)data[1 + i] * 16;
        x.recv_bytes[i][rank] = 200;
        if (x.scatters) draw_shares(&x, i, rank, data[1 + i]);
    }
    size_t piece = data[3] ? (size_t)data[3] * 8 : bytes, at = HEAD;
    unsigned n_steps = 0;
    while (at < bytes && n_steps < 400) {
        size_t n = bytes - at < piece ? bytes - at : piece;
        ssize_t sent = send(fds[1], data + at, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) at += (size_t)sent;
        step(c, &x, n_steps++);
    }
    if (data[0] & 2) {
        close(fds[1]);
        fds[1] = -1;
    }
    for (int i = 0; i < 12; i++) step(c, &x, n_steps++);
    uint64_t hash = 0;
    for (int r = 0; x.views[0] && r < 2; r++) hash = base_hash64(x.views[r], x.recv_bytes[0][r], hash);
    BASE_ASSERT(hash == x.hash);
    if (fds[1] >= 0) close(fds[1]);
    comm_close(c);
    return 0;
}
