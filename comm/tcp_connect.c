/* Setting up the tcp backend: every rank listens, all learn by one boot round where, then the higher rank of each pair connects to the lower one. For each further stream once more.
 *
 * A port is open to anybody who can reach the host, so neither side believes the other before it has proved that it belongs to the job: both say who they are
 * to whom, with a keyed digest over what the other has just drawn at random: nothing that was said on another connection, or to another rank, or in another
 * job, serves again. A stranger learns nothing, takes nobody's place and holds nobody up: connections that have not proved themselves wait beside each other,
 * each for a short time, and give way to newer ones (those from where no rank lives first). A rank that lost its place that way comes again. Who accepts
 * believes first, so who connected never believes in a connection that is about to be dropped.
 *
 * Record in the boot round (64 bytes, little-endian; all zero: this rank is not there):
 *    0 magic 8 · 8 family 1 (4 or 6) · 9 zero 1 · 10 port 2 · 12 zero 4 · 16 address 16 · 32 token 16, random · 48 capacity 8 · 56 zero 8
 * On a new connection:
 *    challenge, by who accepts (32 bytes):   0 magic 8 · 8 nonce 24
 *    claim, by who connected (80 bytes):     0 magic 8 · 8 from rank 4 · 12 to rank 4 · 16 ranks 4 · 20 zero 4 · 24 nonce 24 · 48 proof 32
 *    answer, by who accepts (80 bytes):      the same with another magic and a nonce of zeroes
 * A proof is BLAKE2b under the job's key of the message's bytes 0 … 47, the challenge, and, in the answer, the claim's nonce. */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/log.h"
#include "comm/tcp_priv.h"

enum { RECORD_BYTES = 64, CHALLENGE_BYTES = 32, GREETING_BYTES = 80, PROVED_BYTES = 48, NONCE_BYTES = 24, MAX_HALVES = COMM_MAX_RANKS + 16, ADDRESS_TEXT = 80 };
#define RECORD_MAGIC "tndmtcp1"
#define CHALLENGE_MAGIC "tndmch01"
#define CLAIM_MAGIC "tndmcl01"
#define ANSWER_MAGIC "tndman01"
#define STRANGER_NS (2 * BASE_NS_PER_S) /* a connection that says nothing for so long is closed */
#define AGAIN_NS (20 * BASE_NS_PER_MS)  /* before a refused rank comes again */
#define TELL_NS (10 * BASE_NS_PER_S)    /* between lines about strangers */

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage storage;
};

/* A connection on its way. */
struct half {
    int fd;
    bool connecting;
    bool is_challenged; /* connected: it has the challenge, and has claimed */
    size_t n_got;
    unsigned char challenge[CHALLENGE_BYTES], nonce[NONCE_BYTES]; /* of this connection: theirs and ours, or the other way round */
    unsigned char greeting[GREETING_BYTES];
    union address from; /* accepted */
    bool is_rank_host;  /* from where a rank of the job lives */
    uint64_t until_ns; /* accepted: when patience ends; to be connected: not before */
};

struct meeting {
    const struct comm_setup *setup;
    const struct base_clock *clock;
    const struct comm_os *os;
    int rank, n_ranks, n_peers, listener; /* peers: those that we shall be connected to */
    union address own, addresses[COMM_MAX_RANKS];
    char interface[IF_NAMESIZE]; /* sockets are bound to; "": none */
    uint8_t key[COMM_KEY_BYTES];
    int *fds; /* [n_ranks]: proved; −1: not yet */
    int n_proved;
    struct half out[COMM_MAX_RANKS]; /* to lower ranks */
    struct half in[MAX_HALVES];      /* from whomever; the oldest first */
    int n_in;
    uint64_t n_dropped, n_told, told_ns; /* strangers; of them counted in lines */
};

/* ---- addresses ----------------------------------------------------------------------------------------------------------------------------------- */

static socklen_t address_bytes(const union address *a) { return a->any.sa_family == AF_INET6 ? sizeof a->v6 : sizeof a->v4; }

static void set_port(union address *a, uint16_t port) {
    if (a->any.sa_family == AF_INET6)
        a->v6.sin6_port = htons(port);
    else
        a->v4.sin_port = htons(port);
}

static const char *address_text(const union address *a, char text[ADDRESS_TEXT]) {
    char host[INET6_ADDRSTRLEN] = "?";
    bool is_v6 = a->any.sa_family == AF_INET6;
    inet_ntop(a->any.sa_family, is_v6 ? (const void *)&a->v6.sin6_addr : (const void *)&a->v4.sin_addr, host, sizeof host);
    snprintf(text, ADDRESS_TEXT, is_v6 ? "[%s]:%u" : "%s:%u", host, (unsigned)ntohs(is_v6 ? a->v6.sin6_port : a->v4.sin_port));
    return text;
}

/* Without what follows a '%', but for link-local addresses, to which it belongs. */
static enum st parse_address(const char *text, union address *a, struct err *e) {
    const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char plain[COMM_ADDRESS_BYTES];
    memset(a, 0, sizeof *a);
    snprintf(plain, sizeof plain, "%s", text ? text : "127.0.0.1");
    if (strncasecmp(plain, "fe80:", 5) != 0) plain[strcspn(plain, "%")] = 0;
    if (getaddrinfo(plain, NULL, &hints, &found) != 0) return err_set(e, ST_INVALID, "tcp: %.100s is no numeric address", text);
    bool known = found->ai_family == AF_INET || found->ai_family == AF_INET6;
    if (known) memcpy(a, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return known ? ST_OK : err_set(e, ST_UNSUPPORTED, "tcp: %.100s is neither an IPv4 nor an IPv6 address", text);
}

static void put_record(const struct meeting *m, unsigned char record[RECORD_BYTES]) {
    bool is_v6 = m->own.any.sa_family == AF_INET6;
    uint16_t port = ntohs(is_v6 ? m->own.v6.sin6_port : m->own.v4.sin_port);
    uint64_t capacity = comm_capacity(m->setup->max_bytes);
    memcpy(record, RECORD_MAGIC, 8);
    record[8] = is_v6 ? 6 : 4;
    record[10] = (unsigned char)port;
    record[11] = (unsigned char)(port >> 8);
    memcpy(record + 16, is_v6 ? (const void *)&m->own.v6.sin6_addr : (const void *)&m->own.v4.sin_addr, is_v6 ? 16 : 4);
    for (int i = 0; i < 8; i++) record[48 + i] = (unsigned char)(capacity >> (8 * i));
}

static enum st get_record(struct meeting *m, int r, const unsigned char record[RECORD_BYTES], struct err *e) {
    static const unsigned char nothing[RECORD_BYTES];
    if (memcmp(record, nothing, RECORD_BYTES) == 0) return err_set(e, ST_PEER_LOST, "tcp: rank %d is not there: it could not open its end", r);
    if (memcmp(record, RECORD_MAGIC, 8) != 0 || (record[8] != 4 && record[8] != 6))
        return err_set(e, ST_MISMATCH, "tcp: what rank %d told about itself is not of this version", r);
    uint64_t capacity = 0, own = comm_capacity(m->setup->max_bytes);
    for (int i = 0; i < 8; i++) capacity |= (uint64_t)record[48 + i] << (8 * i);
    if (capacity != own)
        return err_set(e, ST_MISMATCH, "tcp: rank %d wants messages of %llu bytes, rank %d of %llu", r, (unsigned long long)capacity, m->rank,
                       (unsigned long long)own);
    union address *a = &m->addresses[r];
    uint16_t port = (uint16_t)(record[10] | record[11] << 8);
    if (record[8] == 6) {
        a->v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
        memcpy(&a->v6.sin6_addr, record + 16, 16);
        /* A link-local address means something on a link only: on that of our own. */
        if (m->own.any.sa_family == AF_INET6) a->v6.sin6_scope_id = IN6_IS_ADDR_LINKLOCAL(&a->v6.sin6_addr) ? m->own.v6.sin6_scope_id : 0;
    } else {
        a->v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
        memcpy(&a->v4.sin_addr, record + 16, 4);
    }
    char text[ADDRESS_TEXT];
    if (a->any.sa_family != m->own.any.sa_family)
        return err_set(e, ST_INVALID, "tcp: rank %d has the address %s, of another family than ours", r, address_text(a, text));
    return ST_OK;
}

/* The key of this group, the same on every rank: from all records, the random tokens among them, under the key that the launcher gave: a proof needs both. Without
 * the latter (ranks that somebody else started) it is as secret as the boot round. */
static enum st derive_key(const struct comm_setup *setup, const unsigned char *records, uint8_t key[COMM_KEY_BYTES]) {
    static const uint8_t none[COMM_KEY_BYTES] = {0};
    return base_mac(setup->key ? setup->key : none, records, (size_t)setup->n_ranks * RECORD_BYTES, key);
}

/* ---- greetings ----------------------------------------------------------------------------------------------------------------------------------- */

/* h has the challenge; for an answer the claim's nonce as well. */
static void put_greeting(const struct meeting *m, const struct half *h, bool is_answer, int from, int to, const unsigned char *nonce,
                         unsigned char greeting[GREETING_BYTES]) {
    unsigned char proved[PROVED_BYTES + CHALLENGE_BYTES + NONCE_BYTES];
    memset(greeting, 0, GREETING_BYTES);
    memcpy(greeting, is_answer ? ANSWER_MAGIC : CLAIM_MAGIC, 8);
    greeting[8] = (unsigned char)from; /* ranks are below 256: the other bytes stay zero */
    greeting[12] = (unsigned char)to;
    greeting[16] = (unsigned char)m->n_ranks;
    if (!is_answer) memcpy(greeting + 24, nonce, NONCE_BYTES);
    memcpy(proved, greeting, PROVED_BYTES);
    memcpy(proved + PROVED_BYTES, h->challenge, CHALLENGE_BYTES);
    memcpy(proved + PROVED_BYTES + CHALLENGE_BYTES, nonce, NONCE_BYTES);
    base_mac(m->key, proved, is_answer ? sizeof proved : PROVED_BYTES + CHALLENGE_BYTES, greeting + PROVED_BYTES);
}

/* What h has received as a whole; the claim's nonce is in h->nonce for an answer, in the claim itself otherwise. */
static bool is_greeting(const struct meeting *m, const struct half *h, bool is_answer, int from, int to) {
    unsigned char right[GREETING_BYTES], differs = 0;
    put_greeting(m, h, is_answer, from, to, is_answer ? h->nonce : h->greeting + 24, right);
    for (int i = 0; i < GREETING_BYTES; i++) differs |= (unsigned char)(right[i] ^ h->greeting[i]); /* the same time wherever it differs */
    return differs == 0;
}

/* So few bytes always fit into a fresh socket. */
static bool send_all(const struct meeting *m, int fd, const unsigned char *bytes, size_t n) { return m->os->send(m->os, fd, bytes, n) == (ssize_t)n; }

/* Drawn anew for each connection. */
static bool send_challenge(const struct meeting *m, struct half *h) {
    memcpy(h->challenge, CHALLENGE_MAGIC, 8);
    return getrandom(h->challenge + 8, NONCE_BYTES, 0) == NONCE_BYTES && send_all(m, h->fd, h->challenge, CHALLENGE_BYTES);
}

static bool send_claim(const struct meeting *m, struct half *h, int to) {
    unsigned char greeting[GREETING_BYTES];
    if (getrandom(h->nonce, NONCE_BYTES, 0) != NONCE_BYTES) return false;
    put_greeting(m, h, false, m->rank, to, h->nonce, greeting);
    return send_all(m, h->fd, greeting, sizeof greeting);
}

static bool send_answer(const struct meeting *m, const struct half *h, int to) {
    unsigned char greeting[GREETING_BYTES];
    put_greeting(m, h, true, m->rank, to, h->greeting + 24, greeting);
    return send_all(m, h->fd, greeting, sizeof greeting);
}

enum reading { READ_MORE, READ_ALL, READ_FAILED };
static enum reading read_piece(const struct meeting *m, struct half *h, unsigned char *into, size_t bytes) {
    ssize_t n = m->os->recv(m->os, h->fd, into + h->n_got, bytes - h->n_got);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return READ_MORE;
    if (n <= 0) return READ_FAILED;
    h->n_got += (size_t)n;
    if (h->n_got < bytes) return READ_MORE;
    h->n_got = 0;
    return READ_ALL;
}

/* ---- sockets ------------------------------------------------------------------------------------------------------------------------------------- */

/* Nagle's algorithm would hold small messages back. BBR, where the host has it by default, spreads large ones over time, and CUBIC leaves its slow start as soon as answers come a few microseconds later
 * than before (HyStart), often with room for fewer packets than two messages of 32 KB are, and grows by the clock from there. Reno grows with what is
 * acknowledged: the wire between ranks is short, and mostly theirs alone. Probes on an idle connection find a silent host after 3 s. Buffer sizes are left to the kernel: it lets them
 * grow to tcp_rmem and tcp_wmem, and a fixed size would be cut to the much smaller rmem_max of most hosts. */
static void tune(const struct comm_os *os, int fd) {
    os->setsockopt(os, fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (os->choose_window) os->choose_window(os, fd);
    os->setsockopt(os, fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    os->setsockopt(os, fd, IPPROTO_TCP, TCP_KEEPIDLE, 1);
    os->setsockopt(os, fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
    os->setsockopt(os, fd, IPPROTO_TCP, TCP_KEEPCNT, 2);
}

/* Where several interfaces have addresses of one subnet, the address alone would not decide by which a packet leaves. */
static void bind_to_interface(struct meeting *m, int fd) {
    if (!m->interface[0] || !m->os->bind_device || m->os->bind_device(m->os, fd, m->interface) == 0) return;
    LOG_WARNING("tcp", "rank %d: a connection cannot be bound to %s: %s", m->rank, m->interface, strerror(errno));
    m->interface[0] = 0;
}

static enum st start_listening(struct meeting *m, struct err *e) {
    char text[ADDRESS_TEXT];
    enum st code = parse_address(m->setup->address, &m->own, e);
    if (code != ST_OK) return code;
    m->listener = m->os->socket(m->os, m->own.any.sa_family);
    if (m->listener < 0) return err_set(e, ST_IO, "tcp: a socket for %s: %s", address_text(&m->own, text), strerror(errno));
    const char *interface = m->setup->address ? strchr(m->setup->address, '%') : NULL;
    snprintf(m->interface, sizeof m->interface, "%s", interface ? interface + 1 : "");
    bind_to_interface(m, m->listener);
    set_port(&m->own, (uint16_t)m->setup->port);
    if (m->os->choose_window) m->os->choose_window(m->os, m->listener); /* children have begun as they will go on */
    m->os->setsockopt(m->os, m->listener, SOL_SOCKET, SO_REUSEADDR, 1); /* connections of an earlier job may linger at a port that is fixed */
    socklen_t n = sizeof m->own.storage;
    if (m->os->bind(m->os, m->listener, &m->own.any, address_bytes(&m->own)) != 0 || m->os->listen(m->os, m->listener) != 0 ||
        m->os->getsockname(m->os, m->listener, &m->own.any, &n) != 0) {
        err_set(e, ST_IO, "tcp: rank %d cannot listen at %s: %s", m->rank, address_text(&m->own, text), strerror(errno));
        m->os->close(m->os, m->listener);
        m->listener = -1;
        return ST_IO;
    }
    return ST_OK;
}

static void drop_half(const struct meeting *m, struct half *h) {
    if (h->fd >= 0) m->os->close(m->os, h->fd);
    *h = (struct half){.fd = -1};
}

static void come_again(const struct meeting *m, struct half *h) {
    drop_half(m, h);
    h->until_ns = base_now_ns(m->clock) + AGAIN_NS;
}

static void prove(struct meeting *m, int r, struct half *h) {
    tune(m->os, h->fd);
    m->fds[r] = h->fd;
    m->n_proved++;
    *h = (struct half){.fd = -1};
}

/* ---- to lower ranks ------------------------------------------------------------------------------------------------------------------------------ */

static enum st cannot_connect(const struct meeting *m, int r, int error, struct err *e) {
    char text[ADDRESS_TEXT];
    return err_set(e, error == ECONNREFUSED ? ST_PEER_LOST : ST_IO, "tcp: rank %d cannot connect to rank %d at %s: %s", m->rank, r,
                   address_text(&m->addresses[r], text), strerror(error));
}

static enum st start_connecting(struct meeting *m, int r, struct err *e) {
    struct half *h = &m->out[r];
    h->fd = m->os->socket(m->os, m->own.any.sa_family);
    if (h->fd < 0) return cannot_connect(m, r, errno, e);
    /* From the address that the launcher has chosen, not from what the routing table would prefer. */
    bind_to_interface(m, h->fd);
    union address from = m->own;
    set_port(&from, 0);
    m->os->setsockopt(m->os, h->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    if (m->os->bind(m->os, h->fd, &from.any, address_bytes(&from)) != 0) return cannot_connect(m, r, errno, e);
    if (m->os->connect(m->os, h->fd, &m->addresses[r].any, address_bytes(&m->addresses[r])) != 0 && errno != EINPROGRESS)
        return cannot_connect(m, r, errno, e);
    h->connecting = true;
    return ST_OK;
}

static enum st go_on_connecting(struct meeting *m, int r, struct err *e) {
    struct half *h = &m->out[r];
    if (h->connecting) {
        int error = 0;
        socklen_t n = sizeof error;
        m->os->getsockopt(m->os, h->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        /* A peer listens before it tells its port, and until all are connected: a port that is closed was left for good. */
        /* A connection that is reset, or was closed before that, had to give way to strangers' there: as below. Where the peer has left, the next one is refused. */
        if (error && error != ECONNRESET && error != EPIPE) return cannot_connect(m, r, error, e);
        h->connecting = false;
        if (error) come_again(m, h);
        return ST_OK;
    }
    switch (h->is_challenged ? read_piece(m, h, h->greeting, GREETING_BYTES) : read_piece(m, h, h->challenge, CHALLENGE_BYTES)) {
    case READ_MORE: return ST_OK;
    case READ_FAILED: come_again(m, h); return ST_OK; /* strangers took our place there, perhaps */
    case READ_ALL: break;
    }
    if (!h->is_challenged && memcmp(h->challenge, CHALLENGE_MAGIC, 8) == 0) {
        h->is_challenged = true;
        if (!send_claim(m, h, r)) come_again(m, h);
    } else if (h->is_challenged && is_greeting(m, h, true, r, m->rank)) {
        prove(m, r, h);
    } else {
        char text[ADDRESS_TEXT];
        return err_set(e, ST_MISMATCH, "tcp: what answers at %s is not rank %d of this job", address_text(&m->addresses[r], text), r);
    }
    return ST_OK;
}

/* ---- from higher ranks, and strangers ------------------------------------------------------------------------------------------------------------ */

/* The first at once, then a line now and then for all of them. */
static void tell_stranger(struct meeting *m, const struct half *h, const char *why) {
    uint64_t now_ns = base_now_ns(m->clock);
    char text[ADDRESS_TEXT];
    m->n_dropped++;
    if (m->n_told && now_ns - m->told_ns < TELL_NS) return;
    LOG_WARNING("tcp", "rank %d: a connection from %s was dropped: it %s%s", m->rank, address_text(&h->from, text), why,
                m->n_dropped - m->n_told > 1 ? "; others before it" : "");
    m->told_ns = now_ns;
    m->n_told = m->n_dropped;
}

static void tell_rest(struct meeting *m) {
    if (m->n_dropped > m->n_told) LOG_WARNING("tcp", "rank %d: %llu more connections were dropped", m->rank, (unsigned long long)(m->n_dropped - m->n_told));
}

static bool is_rank_host(const struct meeting *m, const union address *from) {
    for (int r = 0; r < m->n_ranks; r++) {
        const union address *a = &m->addresses[r];
        if (r == m->rank || a->any.sa_family != from->any.sa_family) continue;
        if (from->any.sa_family == AF_INET6 ? memcmp(&a->v6.sin6_addr, &from->v6.sin6_addr, 16) == 0 : a->v4.sin_addr.s_addr == from->v4.sin_addr.s_addr)
            return true;
    }
    return false;
}

static void remove_in(struct meeting *m, int i) {
    drop_half(m, &m->in[i]);
    memmove(&m->in[i], &m->in[i + 1], (size_t)(m->n_in - i - 1) * sizeof m->in[0]);
    m->n_in--;
}

/* The oldest goes: of those from elsewhere, if there are any. Returns the place behind the last. */
static int make_room(struct meeting *m) {
    int i = 0;
    while (i < m->n_in && m->in[i].is_rank_host) i++;
    if (i == m->n_in) i = 0;
    tell_stranger(m, &m->in[i], "gave way to newer ones");
    remove_in(m, i);
    return m->n_in;
}

static enum st accept_some(struct meeting *m, struct err *e) {
    for (int i = 0; i < MAX_HALVES; i++) {
        union address from = {.storage = {0}};
        socklen_t n = sizeof from.storage;
        int fd = m->os->accept(m->os, m->listener, &from.any, &n);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
            if (!m->n_in) return err_set(e, ST_IO, "tcp: rank %d cannot accept its peers: %s", m->rank, strerror(errno));
            remove_in(m, 0);
            continue;
        }
        if (fd < 0) return ST_OK; /* nobody is left, or somebody has left again */
        struct half *h = &m->in[m->n_in == MAX_HALVES ? make_room(m) : m->n_in];
        *h = (struct half){.fd = fd, .until_ns = base_now_ns(m->clock) + STRANGER_NS, .from = from};
        h->is_rank_host = is_rank_host(m, &from);
        m->n_in++;
        if (!send_challenge(m, h)) remove_in(m, m->n_in - 1);
    }
    return ST_OK;
}

/* False: it is done with, and may be removed. */
static bool go_on_accepting(struct meeting *m, struct half *h) {
    bool is_begun = h->n_got > 0;
    switch (read_piece(m, h, h->greeting, GREETING_BYTES)) {
    case READ_MORE: return true;
    case READ_FAILED: tell_stranger(m, h, is_begun ? "ended in the middle of its claim" : "ended without a word"); return false;
    case READ_ALL: break;
    }
    int r = h->greeting[8];
    if (r <= m->rank || r >= m->n_ranks || comm_is_apart(m->setup, r) || !is_greeting(m, h, false, r, m->rank)) {
        tell_stranger(m, h, "did not prove that it belongs to this job");
        return false;
    }
    if (m->fds[r] >= 0) {
        tell_stranger(m, h, "claims to be a rank that is here already");
        return false;
    }
    if (send_answer(m, h, r)) prove(m, r, h);
    return false;
}

/* ---- all of them --------------------------------------------------------------------------------------------------------------------------------- */

/* "rank 1 did not connect to 10.0.0.1:4711, rank …" */
static const char *missing_text(const struct meeting *m, char missing[300]) {
    char text[ADDRESS_TEXT];
    size_t n = 0;
    missing[0] = 0;
    for (int r = 0; r < m->n_ranks && n < 300; r++) {
        if (comm_is_apart(m->setup, r) || m->fds[r] >= 0) continue;
        const char *how = r > m->rank ? "did not connect to" : m->out[r].connecting ? "is not reached at" : "does not answer at";
        int k =
            snprintf(missing + n, 300 - n, "%srank %d %s %s", n ? ", " : "", r, how, address_text(r > m->rank ? &m->own : &m->addresses[r], text));
        n += k > 0 ? (size_t)k : 0;
    }
    return missing;
}

static enum st timed_out(const struct meeting *m, uint64_t begun_ns, uint64_t now_ns, struct err *e) {
    char missing[300];
    return err_set(e, ST_TIMEOUT, "tcp: rank %d waited %.1f s: %s", m->rank, (double)(now_ns - begun_ns) / (double)BASE_NS_PER_S,
                   missing_text(m, missing));
}

/* It waits for the same ranks as we, probably. */
static enum st gave_up(const struct meeting *m, int r, struct err *e) {
    char missing[300];
    return err_set(e, ST_PEER_LOST, "tcp: rank %d closed its end while rank %d still waited: %s", r, m->rank, missing_text(m, missing));
}

static uint64_t poll_ns(uint64_t now_ns, uint64_t until_ns) {
    if (until_ns <= now_ns) return 0;
    return until_ns - now_ns < BASE_NS_PER_S ? until_ns - now_ns : BASE_NS_PER_S;
}

/* One look at everything that may have changed, waited for until wake_ns. */
static enum st go_on(struct meeting *m, uint64_t now_ns, uint64_t wake_ns, struct err *e) {
    struct pollfd polled[1 + COMM_MAX_RANKS + MAX_HALVES];
    polled[0] = (struct pollfd){.fd = m->listener, .events = POLLIN};
    for (int r = 0; r < m->n_ranks; r++) {
        const struct half *h = &m->out[r];
        /* Who is connected already is only watched for its end: what it sends belongs to the first exchange. */
        polled[1 + r] = m->fds[r] >= 0 ? (struct pollfd){.fd = m->fds[r], .events = POLLRDHUP}
                                       : (struct pollfd){.fd = h->fd, .events = (short)(h->connecting ? POLLOUT : POLLIN)};
    }
    int n_in = m->n_in, n_polled = 1 + m->n_ranks + n_in;
    for (int i = 0; i < n_in; i++) polled[1 + m->n_ranks + i] = (struct pollfd){.fd = m->in[i].fd, .events = POLLIN};
    if (m->os->poll(m->os, polled, (size_t)n_polled, poll_ns(now_ns, wake_ns)) <= 0) return ST_OK;

    for (int r = 0; r < m->n_ranks; r++) {
        if (!polled[1 + r].revents || polled[1 + r].fd < 0) continue;
        if (m->fds[r] >= 0) return gave_up(m, r, e);
        enum st code = go_on_connecting(m, r, e);
        if (code != ST_OK) return code;
    }
    for (int i = n_in - 1; i >= 0; i--)
        if (polled[1 + m->n_ranks + i].revents && !go_on_accepting(m, &m->in[i])) remove_in(m, i);
    return polled[0].revents ? accept_some(m, e) : ST_OK;
}

static enum st meet(struct meeting *m, struct err *e) {
    uint64_t begun_ns = base_now_ns(m->clock);
    while (m->n_proved < m->n_peers) {
        uint64_t now_ns = base_now_ns(m->clock), wake_ns = m->setup->deadline_ns;
        if (now_ns >= m->setup->deadline_ns) return timed_out(m, begun_ns, now_ns, e);
        while (m->n_in && m->in[0].until_ns <= now_ns) {
            tell_stranger(m, &m->in[0], "did not prove in time that it belongs to this job");
            remove_in(m, 0);
        }
        if (m->n_in && m->in[0].until_ns < wake_ns) wake_ns = m->in[0].until_ns;
        for (int r = 0; r < m->rank; r++) {
            struct half *h = &m->out[r];
            if (comm_is_apart(m->setup, r) || m->fds[r] >= 0 || h->fd >= 0) continue;
            if (h->until_ns > now_ns) {
                if (h->until_ns < wake_ns) wake_ns = h->until_ns;
                continue;
            }
            enum st code = start_connecting(m, r, e);
            if (code != ST_OK) return code;
        }
        enum st code = go_on(m, now_ns, wake_ns, e);
        if (code != ST_OK) return code;
    }
    return ST_OK;
}

enum st comm_tcp_connect(const struct comm_setup *setup, bool able, int fds[COMM_MAX_RANKS], struct err *e) {
    struct meeting m = {.setup = setup,
                        .clock = setup->clock ? setup->clock : base_clock_real(),
                        .os = setup->os ? setup->os : comm_os_real(),
                        .rank = setup->rank,
                        .n_ranks = setup->n_ranks,
                        .listener = -1};
    m.fds = fds;
    for (int r = 0; r < COMM_MAX_RANKS; r++) m.fds[r] = m.out[r].fd = -1;
    for (int r = 0; r < m.n_ranks; r++) m.n_peers += !comm_is_apart(setup, r);

    unsigned char record[RECORD_BYTES] = {0}, records[COMM_MAX_RANKS * RECORD_BYTES];
    enum st code = able ? start_listening(&m, e) : ST_NO_MEMORY;
    if (code == ST_OK && getrandom(record + 32, 16, 0) != 16) code = err_set(e, ST_IO, "tcp: no random numbers: %s", strerror(errno));
    if (code == ST_OK)
        put_record(&m, record);
    else
        memset(record, 0, sizeof record);
    enum st told = setup->boot->allgather(setup->boot->context, record, sizeof record, records, setup->deadline_ns, code == ST_OK ? e : NULL);
    if (code == ST_OK) code = told;
    for (int r = 0; code == ST_OK && r < m.n_ranks; r++)
        if (r != m.rank) code = get_record(&m, r, records + (size_t)r * RECORD_BYTES, e);
    if (code == ST_OK && derive_key(setup, records, m.key) != ST_OK) code = err_set(e, ST_IO, "tcp: no key could be derived");
    if (code == ST_OK) code = meet(&m, e);
    tell_rest(&m);
    explicit_bzero(m.key, sizeof m.key);

    if (m.listener >= 0) m.os->close(m.os, m.listener);
    for (int r = 0; r < m.n_ranks; r++) drop_half(&m, &m.out[r]);
    while (m.n_in) remove_in(&m, m.n_in - 1);
    for (int r = 0; code != ST_OK && r < m.n_ranks; r++) {
        if (fds[r] >= 0) m.os->close(m.os, fds[r]);
        fds[r] = -1;
    }
    return code;
}
