/* Ranks of one host: a segment of shared memory in which every rank writes only what is its own and reads what the others wrote.
 *
 * The exchange is one-shot: a rank writes its bytes into its own slot (mostly the kernel that computes them does so, see comm_send_buffer), publishes the
 * slot by storing the sequence number in the slot's first line, and reads the others' bytes where they lie. Nothing is copied, nobody is asked.
 *
 * Why a few slots suffice. A rank begins exchange j only after it finished j−1, and it cannot finish j−1 before everybody published j−1. So whoever
 * writes into a slot for exchange j knows that every peer has at least *begun* j−1. Views of exchange k are therefore safe, with N slots, until the
 * reader begins k+N−1: slot k mod N is rewritten for k+N at the earliest, by somebody who saw the reader begin k+N−1. Two slots (parity) are enough
 * for messages alone: a slow reader of k has not begun k+1. But comm.h promises views until the second next collective begins (so that threads
 * may still sum exchange k while k+1 flies): k+2 = k+N−1, N = 3. And the hybrids send ahead: the slot is written for k+N while k+N−1 is under way, by somebody who has finished
 * k+N−2 only and so saw the reader begin that: N = 4. What is not needed at a time costs memory only: a small message's slots stay in L1 either way.
 * The same argument bounds what a sound peer's slot can say: the sequence number itself, or that of N exchanges ago; anything else is a corrupt peer.
 *
 * Sequence number and header share the slot's first cache line, the payload begins with the next one. A flag per slot instead of a counter
 * per rank saves a line on the way: flag and header arrive together.
 *
 * Sleeping. A waiter first announces itself in the mask of sleepers of whom it waits for, looks once more, and sleeps on its own bell (a futex). Who
 * publishes looks at its mask after the store (both sequentially consistent: one of the two must see the other) and rings the bells of those in it.
 * While nobody sleeps, an exchange makes no system call. A bell of one's own, not the peer's counter, because one sleep must also end when
 * some other rank dies or closes: they ring every bell.
 *
 * Finding each other. The segment is a memfd: it has no name, so nothing can be left behind, and whoever starts the ranks mostly hands it down. Where nobody
 * does (a group of a group, somebody else's mpiexec), rank 0 makes it and tells all, in the one round of boot, its process, the descriptor's number and a
 * random token; the others open /proc/PID/fd/N, which the kernel allows to the same user in the same PID namespace. All records are compared by all ranks, so
 * that all refuse at once what cannot work (other hosts, containers, sizes). A count of who has attached tells rank 0 when to close the descriptor, and all
 * that the group is whole. As nobody marks the dead in such a segment, each rank watches the others' processes, when it has slept in vain.
 *
 * Cache lines. What one rank writes while others spin or read lies two lines apart from what anybody else writes (x86 fetches lines in pairs): each slot of
 * each rank (slots begin at multiples of 128 bytes, and regions at pages), each rank's mask of sleepers, bell and count of events read, and rank 0's count of events
 * written. What is written once in a life shares lines: the segment's head, opened, dead and closed. n_lost, which a failed test reads each time, has a line to
 * itself, which stays in every reader's cache until somebody is lost.
 *
 * Ownership: struct cell and the slots of rank r are written by rank r, except for what says otherwise. Geometry is taken from our own setup, never again
 * from the segment; sizes, positions and numbers found there are checked before they are used, since a peer may be broken. The memfd is sealed,
 * so that nobody can cut it short under us (SIGBUS). */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "comm/comm_priv.h"

#define SEGMENT_MAGIC 0x316d68736d646e74ull /* "tndmshm1" */
#define SEGMENT_VERSION 4u
#define PAGE_BYTES 4096u
#define N_SLOTS (COMM_N_SLOTS + 1)
#define RING_BYTES (1u << 20)
#define ATTACH_SLICE_NS (50 * BASE_NS_PER_MS)
#define APART _Alignas(128) /* two lines: x86 prefetches the neighbour as well */

struct cell {
    APART _Atomic uint64_t sleepers;    /* bit r: rank r sleeps until this rank publishes; set by r, cleared by either */
    APART _Atomic uint32_t bell;        /* this rank sleeps on it; counted up by who wakes it */
    APART _Atomic uint64_t events_read; /* bytes of the event stream that this rank has taken */
    APART _Atomic uint32_t opened;
    _Atomic uint32_t dead;   /* set by whoever watches this rank */
    _Atomic uint32_t closed; /* 0, or how many had closed up to and with this rank: the first is the cause, the others follow it */
    _Atomic uint32_t cause;  /* of that, enum comm_cause; and whom it had lost, by the job's number: also one of another host (hybrid.c) */
    _Atomic uint32_t blamed;
};

struct segment {
    uint64_t magic;
    uint32_t version, n_ranks;
    uint64_t capacity;             /* bytes of payload in a slot */
    uint64_t bytes;                /* of the whole segment */
    uint64_t token[2];             /* random, where rank 0 made it; else 0 */
    _Atomic uint32_t n_attached;   /* by boot; who waits for more sleeps on it */
    APART _Atomic uint32_t n_lost; /* dead or closed: where it did not change, no flag did */
    _Atomic uint32_t n_closed;
    APART _Atomic uint64_t events_written; /* bytes of the event stream, by rank 0 */
    APART _Atomic uint64_t event_sleepers;
    struct cell cells[COMM_MAX_RANKS];
};

/* 0 sequence 8 · 8 payload bytes 8 · 16 comm_header 24 · 40 unused · 64 payload */
struct slot {
    _Alignas(64) _Atomic uint64_t sequence;
    uint64_t bytes;
    struct comm_header header;
};
_Static_assert(sizeof(struct slot) == 64, "the payload begins with the next line");

/* An event: this, then the data, padded to 8 bytes. Positions count bytes since the beginning; the ring wraps anywhere inside the data. */
struct event {
    uint32_t bytes, number;
};

enum waits_for { WAITS_FOR_RANK, WAITS_FOR_EVENT };

struct shm {
    struct comm comm;
    int rank, n_ranks;
    int first; /* the job's number of our rank 0, for sentences */
    struct segment *segment;
    unsigned char *ring;    /* [RING_BYTES] */
    unsigned char *regions; /* [n_ranks, region_bytes], each [N_SLOTS, slot_bytes] */
    size_t slot_bytes, region_bytes, segment_bytes;
    bool mapped; /* by us: unmap it */
    bool watches;
    struct pollfd peers[COMM_MAX_RANKS]; /* pidfds of the other ranks' processes, where nobody else watches them; −1: none */

    /* the exchange begun */
    int n_arrived; /* ranks 0 … n_arrived−1 are here */
    struct comm_header headers[COMM_MAX_RANKS];

    /* the last test that found nothing: what sleep looks at once more */
    enum waits_for waits_for;
    int missing;
    uint32_t n_lost_seen;

    uint64_t event_position; /* rank 0: written; others: read */
    uint32_t n_events;
};

/* ---- geometry ------------------------------------------------------------------------------------------------------------------------------------ */

static size_t slot_bytes_for(size_t max_bytes) { return comm_round_up(sizeof(struct slot) + comm_buffer_bytes(max_bytes), 128); }
static size_t region_bytes_for(size_t max_bytes) { return comm_round_up(N_SLOTS * slot_bytes_for(max_bytes), PAGE_BYTES); }
static size_t ring_offset(void) { return comm_round_up(sizeof(struct segment), PAGE_BYTES); }

size_t comm_shm_bytes(int n_ranks, size_t max_bytes) {
    if (n_ranks < 1 || n_ranks > COMM_MAX_RANKS || max_bytes > COMM_LIMIT_BYTES) return 0;
    return ring_offset() + RING_BYTES + (size_t)n_ranks * region_bytes_for(max_bytes);
}

static struct slot *slot_of(const struct shm *s, int rank, uint64_t sequence) {
    return (struct slot *)(s->regions + (size_t)rank * s->region_bytes + sequence % N_SLOTS * s->slot_bytes);
}
static unsigned char *payload(struct slot *slot) { return (unsigned char *)(slot + 1); }

/* ---- bells --------------------------------------------------------------------------------------------------------------------------------------- */

/* Not FUTEX_PRIVATE: the sleepers are other processes. False: nobody has woken us. */
static bool futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t ns) {
    struct timespec timeout = {.tv_sec = (time_t)(ns / BASE_NS_PER_S), .tv_nsec = (long)(ns % BASE_NS_PER_S)};
    return syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, NULL, 0) == 0 || errno != ETIMEDOUT;
}

static void ring_bell(struct cell *cell) {
    atomic_fetch_add(&cell->bell, 1);
    syscall(SYS_futex, &cell->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* After a store that somebody may sleep for. Taking the mask as a whole keeps a burst of events from ringing the same bell again and again. */
static void wake(struct segment *segment, int n_ranks, _Atomic uint64_t *sleepers) {
    if (!atomic_load(sleepers)) return;
    uint64_t mask = atomic_exchange(sleepers, 0);
    for (int r = 0; r < n_ranks; r++)
        if (mask >> r & 1) ring_bell(&segment->cells[r]);
}

/* The order matters: flag, count, bells. A sleeper reads its bell before it looks at the count. */
static void tell_lost(struct segment *segment, int n_ranks) {
    atomic_fetch_add(&segment->n_lost, 1);
    for (int r = 0; r < n_ranks; r++) ring_bell(&segment->cells[r]);
}

/* ---- the segment --------------------------------------------------------------------------------------------------------------------------------- */

enum st comm_shm_create(int n_ranks, size_t max_bytes, int *memory_fd, struct err *e) {
    size_t bytes = comm_shm_bytes(n_ranks, max_bytes);
    if (!bytes) return err_set(e, ST_INVALID, "shm: no segment for %d ranks and messages of %zu bytes", n_ranks, max_bytes);
    int fd = memfd_create("tandem", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return err_set(e, ST_IO, "shm: memfd_create: %s", strerror(errno));
    if (ftruncate(fd, (off_t)bytes) != 0) {
        err_set(e, ST_IO, "shm: a segment of %zu bytes: %s", bytes, strerror(errno));
        goto undo_fd;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        err_set(e, ST_IO, "shm: sealing the segment: %s", strerror(errno));
        goto undo_fd;
    }
    struct segment *segment = mmap(NULL, sizeof *segment, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (segment == MAP_FAILED) {
        err_set(e, ST_IO, "shm: mapping the segment: %s", strerror(errno));
        goto undo_fd;
    }
    segment->magic = SEGMENT_MAGIC;
    segment->version = SEGMENT_VERSION;
    segment->n_ranks = (uint32_t)n_ranks;
    segment->capacity = comm_capacity(max_bytes);
    segment->bytes = bytes;
    munmap(segment, sizeof *segment);
    *memory_fd = fd;
    return ST_OK;

undo_fd:
    close(fd);
    return ST_IO;
}

/* bytes 0: all of it. NULL: failed, *code says how. */
static struct segment *map_segment(int fd, size_t bytes, size_t *mapped_bytes, enum st *code, struct err *e) {
    struct stat info;
    if (fstat(fd, &info) != 0) {
        *code = err_set(e, ST_IO, "shm: descriptor %d: %s", fd, strerror(errno));
        return NULL;
    }
    if ((uint64_t)info.st_size < sizeof(struct segment)) {
        *code = err_set(e, ST_INVALID, "shm: descriptor %d is no segment of ours", fd);
        return NULL;
    }
    *mapped_bytes = bytes ? bytes : (size_t)info.st_size;
    void *p = mmap(NULL, *mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED) return p;
    *code = err_set(e, ST_IO, "shm: mapping %zu bytes: %s", *mapped_bytes, strerror(errno));
    return NULL;
}

static enum st check_magic(const struct segment *segment, struct err *e) {
    if (segment->magic != SEGMENT_MAGIC) return err_set(e, ST_INVALID, "shm: this is no segment of ours");
    if (segment->version != SEGMENT_VERSION)
        return err_set(e, ST_MISMATCH, "shm: the segment has format %u, this build %u", segment->version, SEGMENT_VERSION);
    return ST_OK;
}

enum st comm_shm_mark_dead(int memory_fd, int rank, struct err *e) {
    size_t mapped_bytes = 0;
    enum st code = ST_OK;
    struct segment *segment = map_segment(memory_fd, sizeof *segment, &mapped_bytes, &code, e);
    if (!segment) return code;
    code = check_magic(segment, e);
    uint32_t n_ranks = segment->n_ranks;
    if (code == ST_OK && (n_ranks > COMM_MAX_RANKS || rank < 0 || (uint32_t)rank >= n_ranks))
        code = err_set(e, ST_INVALID, "shm: rank %d of a segment for %u", rank, n_ranks);
    if (code == ST_OK && atomic_exchange(&segment->cells[rank].dead, 1) == 0) tell_lost(segment, (int)n_ranks);
    munmap(segment, mapped_bytes);
    return code;
}

/* ---- losses --------------------------------------------------------------------------------------------------------------------------------------- */

/* A process that has ended without closing is a loss to all. (Ended in peace, it has closed before.) */
static void mark_ended(struct shm *s, int rank) {
    struct cell *cell = &s->segment->cells[rank];
    if (!atomic_load(&cell->closed) && !atomic_exchange(&cell->dead, 1)) tell_lost(s->segment, s->n_ranks);
}

static void look_after_peers(struct shm *s) {
    if (!s->watches || poll(s->peers, (nfds_t)s->n_ranks, 0) <= 0) return;
    for (int r = 0; r < s->n_ranks; r++) {
        if (s->peers[r].fd < 0 || !s->peers[r].revents) continue;
        close(s->peers[r].fd);
        s->peers[r].fd = -1;
        mark_ended(s, r);
    }
}

/* Who is to blame: a dead rank, else the first that closed (others may have closed because of it). −1: nobody.
 * A rank that closed after it had sent what we wait for is no loss: exchange tells whether that is to be looked at. */
static int find_lost(const struct shm *s, bool exchange, bool *is_dead) {
    int lost = -1;
    uint32_t lost_closed = 0;
    for (int r = 0; r < s->n_ranks; r++) {
        const struct cell *cell = &s->segment->cells[r];
        if (r == s->rank) continue;
        if (atomic_load(&cell->dead)) {
            *is_dead = true;
            return r;
        }
        uint32_t closed = atomic_load(&cell->closed); /* before the slot: what was published before closing must be seen */
        if (!closed || (lost >= 0 && closed >= lost_closed)) continue;
        if (exchange && atomic_load(&slot_of(s, r, s->comm.sequence)->sequence) == s->comm.sequence) continue;
        lost = r;
        lost_closed = closed;
    }
    *is_dead = false;
    return lost;
}

/* Nothing has come; will anything? ST_AGAIN, or ST_PEER_LOST. */
static enum st check_lost(struct shm *s, bool exchange, struct err *e) {
    uint32_t n_lost = atomic_load(&s->segment->n_lost);
    s->n_lost_seen = n_lost;
    if (!n_lost) return ST_AGAIN;
    bool is_dead;
    int lost = find_lost(s, exchange, &is_dead);
    if (lost < 0) return ST_AGAIN;
    const struct cell *cell = &s->segment->cells[lost];
    enum comm_cause cause = is_dead ? COMM_WANTED : (enum comm_cause)atomic_load(&cell->cause);
    s->comm.cause = cause != COMM_WANTED ? cause : is_dead ? COMM_BROKE : COMM_CLOSED;
    s->comm.blamed = cause != COMM_WANTED ? (int)atomic_load(&cell->blamed) : s->first + lost;
    if (cause != COMM_WANTED) return comm_tell_hearsay(s->first + lost, cause, s->comm.blamed, s->first + s->rank, e);
    return err_set(e, ST_PEER_LOST, is_dead ? "rank %d died" : "rank %d closed its end", s->first + lost);
}

/* ---- opening and closing ------------------------------------------------------------------------------------------------------------------------- */

static enum st shm_probe(const struct comm_setup *setup, struct err *e) {
    if (setup->n_here && setup->n_here < setup->n_ranks)
        return err_set(e, ST_UNSUPPORTED, "%d of the ranks are on other hosts", setup->n_ranks - setup->n_here);
    if (setup->memory || setup->memory_fd >= 0 || setup->boot) return ST_OK;
    return err_set(e, ST_UNSUPPORTED, "no shared segment was given");
}

static enum st check_segment(const struct shm *s, const struct comm_setup *setup, const uint64_t token[2], size_t mapped_bytes, struct err *e) {
    const struct segment *segment = s->segment;
    enum st code = check_magic(segment, e);
    if (code != ST_OK) return code;
    if (token && memcmp(segment->token, token, sizeof segment->token) != 0)
        return err_set(e, ST_MISMATCH, "shm: this segment is not the one that rank 0 has made");
    if (segment->n_ranks != (uint32_t)setup->n_ranks)
        return err_set(e, ST_MISMATCH, "shm: the segment is for %u ranks, rank %d wants %d", segment->n_ranks, setup->rank, setup->n_ranks);
    if (segment->capacity != comm_capacity(setup->max_bytes))
        return err_set(e, ST_MISMATCH, "shm: the segment is for messages of %llu bytes, rank %d wants %zu", (unsigned long long)segment->capacity,
                       setup->rank, comm_capacity(setup->max_bytes));
    if (segment->bytes != s->segment_bytes || mapped_bytes != s->segment_bytes)
        return err_set(e, ST_INVALID, "shm: the segment has %zu bytes instead of %zu", mapped_bytes, s->segment_bytes);
    return ST_OK;
}

/* Maps the segment (or takes setup->memory), and makes this rank's part its own. token NULL: any. On failure nothing is left. */
static enum st attach(struct shm *s, const struct comm_setup *setup, int fd, const uint64_t token[2], struct err *e) {
    s->mapped = !setup->memory;
    size_t mapped_bytes = s->segment_bytes;
    enum st code = ST_OK;
    s->segment = s->mapped ? map_segment(fd, 0, &mapped_bytes, &code, e) : setup->memory;
    if (!s->segment) return code;
    code = check_segment(s, setup, token, mapped_bytes, e);
    if (code != ST_OK) goto undo_map;
    s->ring = (unsigned char *)s->segment + ring_offset();
    s->regions = s->ring + RING_BYTES;
    if (atomic_exchange(&s->segment->cells[s->rank].opened, 1)) {
        code = err_set(e, ST_INVALID, "shm: rank %d was opened before in this segment", s->rank);
        goto undo_map;
    }
    /* The first touch decides the NUMA node, and takes page faults off the step path. By an atomic that changes nothing: peers already look at our slots. */
    unsigned char *own = s->regions + (size_t)s->rank * s->region_bytes;
    for (size_t at = 0; at < s->region_bytes; at += PAGE_BYTES)
        atomic_fetch_or_explicit((_Atomic uint64_t *)(void *)(own + at), 0, memory_order_relaxed);
    return ST_OK;

undo_map:
    if (s->mapped) munmap(s->segment, mapped_bytes);
    return code;
}

/* Lets the others know. */
static void detach(struct shm *s) {
    uint32_t n_closed = atomic_fetch_add(&s->segment->n_closed, 1) + 1;
    atomic_store(&s->segment->cells[s->rank].blamed, (uint32_t)s->comm.blamed);
    atomic_store(&s->segment->cells[s->rank].cause, (uint32_t)s->comm.cause);
    atomic_store(&s->segment->cells[s->rank].closed, n_closed);
    tell_lost(s->segment, s->n_ranks);
    if (s->mapped) munmap(s->segment, s->segment_bytes);
}

/* ---- opening without a segment that was handed down ---------------------------------------------------------------------------------------------- */

/* What a rank tells the others; all zero: it cannot come. */
struct boot_record {
    uint64_t magic, token[2], capacity;
    int32_t process, fd; /* fd: rank 0's; others −1 */
    uint32_t n_ranks;
    char host[40];  /* the kernel's boot id: one for each running machine */
    char space[28]; /* "pid:[4026531836]": in which a process number means the same process */
};
_Static_assert(sizeof(struct boot_record) == 112 && sizeof(struct boot_record) <= COMM_BOOT_MAX_BYTES, "no padding");

static void fill_record(struct boot_record *mine, const struct comm_setup *setup, int fd) {
    *mine = (struct boot_record){
        .magic = SEGMENT_MAGIC, .capacity = comm_capacity(setup->max_bytes), .process = getpid(), .fd = fd, .n_ranks = (uint32_t)setup->n_ranks};
    int f = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (f < 0 || read(f, mine->host, sizeof mine->host - 1) < 0) mine->host[0] = 0;
    if (f >= 0) close(f);
    if (readlink("/proc/self/ns/pid", mine->space, sizeof mine->space - 1) < 0) mine->space[0] = 0;
}

/* The same answer on every rank. */
static enum st check_boot(const struct boot_record *records, int n_ranks, struct err *e) {
    for (int r = 0; r < n_ranks; r++)
        if (records[r].magic != SEGMENT_MAGIC) return err_set(e, ST_PEER_LOST, "shm: rank %d could not open its end", r);
    for (int r = 1; r < n_ranks; r++) {
        const struct boot_record *first = &records[0], *other = &records[r];
        if (memcmp(first->host, other->host, sizeof first->host) != 0)
            return err_set(e, ST_UNSUPPORTED, "shm: ranks 0 and %d run on different hosts", r);
        if (memcmp(first->space, other->space, sizeof first->space) != 0)
            return err_set(e, ST_UNSUPPORTED,
                           "shm: ranks 0 and %d run in different PID namespaces (containers), and no segment was handed down to them", r);
        if (first->n_ranks != other->n_ranks || first->capacity != other->capacity)
            return err_set(e, ST_MISMATCH, "shm: rank 0 wants %u ranks and messages of %llu bytes, rank %d %u and %llu", first->n_ranks,
                           (unsigned long long)first->capacity, r, other->n_ranks, (unsigned long long)other->capacity);
    }
    return ST_OK;
}

static enum st open_theirs(const struct boot_record *first, int *fd, struct err *e) {
    char path[64];
    if (first->process == getpid())
        snprintf(path, sizeof path, "/proc/self/fd/%d", first->fd); /* another thread of ours: needs no permission */
    else
        snprintf(path, sizeof path, "/proc/%d/fd/%d", first->process, first->fd);
    *fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (*fd >= 0) return ST_OK;
    if (errno == ENOENT || errno == ESRCH) return err_set(e, ST_PEER_LOST, "shm: rank 0 gave up before all had attached to the segment");
    return err_set(e, ST_IO, "shm: cannot open rank 0's segment, %s: %s", path, strerror(errno));
}

/* Known only here, so that a stray process with rank 0's number and descriptor is not taken for it. */
static enum st put_token(int fd, uint64_t token[2], struct err *e) {
    const size_t bytes = 2 * sizeof *token;
    if (getrandom(token, bytes, 0) == (ssize_t)bytes && pwrite(fd, token, bytes, offsetof(struct segment, token)) == (ssize_t)bytes) return ST_OK;
    return err_set(e, ST_IO, "shm: marking the segment: %s", strerror(errno));
}

static void watch(struct shm *s, int rank, int process) {
#ifdef SYS_pidfd_open
    s->peers[rank].fd = (int)syscall(SYS_pidfd_open, process, 0);
    if (s->peers[rank].fd >= 0)
        s->watches = true;
    else if (errno == ESRCH)
        mark_ended(s, rank); /* where it fails otherwise, deadlines are all there is */
#else
    (void)s, (void)rank, (void)process;
#endif
}

static void watch_nobody(struct shm *s) {
    for (int r = 0; r < COMM_MAX_RANKS; r++) {
        if (s->watches && s->peers[r].fd >= 0) close(s->peers[r].fd);
        s->peers[r] = (struct pollfd){.fd = -1, .events = POLLIN};
    }
    s->watches = false;
}

/* Until everybody has attached; ST_PEER_LOST where somebody has left already. */
static enum st wait_attached(struct shm *s, const struct comm_setup *setup, struct err *e) {
    const struct base_clock *clock = setup->clock ? setup->clock : base_clock_real();
    struct segment *segment = s->segment;
    atomic_fetch_add(&segment->n_attached, 1);
    syscall(SYS_futex, &segment->n_attached, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    for (;;) {
        look_after_peers(s);
        bool is_dead;
        int lost = find_lost(s, false, &is_dead), missing = 0;
        while (missing < s->n_ranks - 1 && atomic_load(&segment->cells[missing].opened)) missing++;
        uint32_t n = atomic_load(&segment->n_attached); /* after the losses: who closes in peace has seen all attached */
        if (n == (uint32_t)s->n_ranks) return ST_OK;
        if (lost >= 0)
            return err_set(e, ST_PEER_LOST, "shm: rank %d %s before all had attached to the segment", s->first + lost, is_dead ? "died" : "gave up");
        uint64_t now_ns = base_now_ns(clock);
        if (now_ns >= setup->deadline_ns) return err_set(e, ST_TIMEOUT, "shm: rank %d did not attach to the segment in time", s->first + missing);
        uint64_t ns = setup->deadline_ns - now_ns;
        futex_wait(&segment->n_attached, n, ns < ATTACH_SLICE_NS ? ns : ATTACH_SLICE_NS);
    }
}

static enum st attach_by_boot(struct shm *s, const struct comm_setup *setup, struct err *e) {
    struct boot_record mine, records[COMM_MAX_RANKS];
    int fd = -1;
    enum st code = s->rank == 0 ? comm_shm_create(setup->n_ranks, setup->max_bytes, &fd, e) : ST_OK;
    fill_record(&mine, setup, fd);
    if (code == ST_OK && s->rank == 0) code = put_token(fd, mine.token, e);
    if (code != ST_OK) memset(&mine, 0, sizeof mine); /* the others shall not wait for us */
    enum st booted = setup->boot->allgather(setup->boot->context, &mine, sizeof mine, records, setup->deadline_ns, code == ST_OK ? e : NULL);
    if (code == ST_OK) code = booted;
    if (code == ST_OK) code = check_boot(records, s->n_ranks, e);
    if (code == ST_OK && s->rank != 0) code = open_theirs(&records[0], &fd, e);
    if (code != ST_OK) goto undo_fd;
    code = attach(s, setup, fd, records[0].token, e);
    if (code != ST_OK) goto undo_fd;
    for (int r = 0; r < s->n_ranks; r++)
        if (records[r].process != getpid()) watch(s, r, records[r].process);
    code = wait_attached(s, setup, e);
    if (code != ST_OK) {
        detach(s);
        watch_nobody(s);
    }

undo_fd:
    if (fd >= 0) close(fd); /* all are there, or this rank gave up */
    return code;
}

/* So that nobody waits for a rank that could not even begin. */
static void boot_in_vain(const struct comm_setup *setup) {
    const struct boot_record nothing = {0};
    struct boot_record records[COMM_MAX_RANKS];
    (void)setup->boot->allgather(setup->boot->context, &nothing, sizeof nothing, records, setup->deadline_ns, NULL);
}

static enum st shm_open_comm(const struct comm_setup *setup, struct comm **c, struct err *e) {
    const bool by_boot = !setup->memory && setup->memory_fd < 0;
    struct shm *s = calloc(1, sizeof *s);
    if (!s) {
        if (by_boot) boot_in_vain(setup);
        return err_set(e, ST_NO_MEMORY, "shm: no memory");
    }
    s->rank = setup->rank;
    s->n_ranks = setup->n_ranks;
    s->first = setup->first_here;
    s->slot_bytes = slot_bytes_for(setup->max_bytes);
    s->region_bytes = region_bytes_for(setup->max_bytes);
    s->segment_bytes = comm_shm_bytes(setup->n_ranks, setup->max_bytes);
    watch_nobody(s);
    enum st code = by_boot ? attach_by_boot(s, setup, e) : attach(s, setup, setup->memory_fd, NULL, e);
    if (code != ST_OK) {
        free(s);
        return code;
    }
    *c = &s->comm;
    return ST_OK;
}

static void shm_close(struct comm *c) {
    struct shm *s = (struct shm *)c;
    detach(s);
    watch_nobody(s);
    free(s);
}

/* ---- exchange ------------------------------------------------------------------------------------------------------------------------------------ */

static void *shm_send_buffer(struct comm *c) {
    const struct shm *s = (const struct shm *)c;
    return payload(slot_of(s, s->rank, c->sequence + 1));
}

static enum st shm_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    (void)e;
    struct shm *s = (struct shm *)c;
    struct slot *slot = slot_of(s, s->rank, c->sequence);
    size_t bytes = recv_bytes[s->rank];
    if (send && send != payload(slot) && bytes) memcpy(payload(slot), send, bytes);
    slot->bytes = bytes;
    slot->header = *header;
    atomic_store(&slot->sequence, c->sequence);
    wake(s->segment, s->n_ranks, &s->segment->cells[s->rank].sleepers);
    s->headers[s->rank] = *header;
    s->n_arrived = 0;
    return ST_OK;
}

/* Is rank r's message here? */
static enum st look(struct shm *s, int r, struct err *e) {
    uint64_t due = s->comm.sequence;
    struct slot *slot = slot_of(s, r, due);
    uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
    if (sequence != due) {
        uint64_t before = due > N_SLOTS ? due - N_SLOTS : 0;
        if (sequence == before) return ST_AGAIN;
        return err_set(e, ST_MISMATCH, "rank %d is at exchange %llu, which cannot be", s->first + r, (unsigned long long)sequence);
    }
    uint64_t bytes = slot->bytes;
    if (bytes != s->comm.recv_bytes[r])
        return err_set(e, ST_MISMATCH, "rank %d sent %llu bytes where %zu are due", s->first + r, (unsigned long long)bytes, s->comm.recv_bytes[r]);
    s->headers[r] = slot->header;
    return ST_OK;
}

static enum st shm_allgather_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    struct shm *s = (struct shm *)c;
    for (; s->n_arrived < s->n_ranks; s->n_arrived++) {
        if (s->n_arrived == s->rank) continue;
        enum st code = look(s, s->n_arrived, e);
        if (code == ST_OK) continue;
        if (code != ST_AGAIN) return code;
        s->waits_for = WAITS_FOR_RANK;
        s->missing = s->n_arrived;
        *missing = s->missing;
        return check_lost(s, true, e);
    }
    for (int r = 0; r < s->n_ranks; r++) views[r] = payload(slot_of(s, r, c->sequence));
    if (headers) memcpy(headers, s->headers, (size_t)s->n_ranks * sizeof *headers);
#ifdef MADV_POPULATE_READ
    /* Once all have touched their pages, let ours find them: no page fault later. Best effort. */
    if (c->sequence == 1) madvise(s->regions, (size_t)s->n_ranks * s->region_bytes, MADV_POPULATE_READ);
#endif
    return ST_OK;
}

/* ---- events -------------------------------------------------------------------------------------------------------------------------------------- */

static void ring_put(struct shm *s, uint64_t position, const void *data, size_t bytes) {
    size_t at = position % RING_BYTES, n = bytes < RING_BYTES - at ? bytes : RING_BYTES - at;
    if (n) memcpy(s->ring + at, data, n);
    if (bytes > n) memcpy(s->ring, (const unsigned char *)data + n, bytes - n);
}

static void ring_get(const struct shm *s, uint64_t position, void *data, size_t bytes) {
    size_t at = position % RING_BYTES, n = bytes < RING_BYTES - at ? bytes : RING_BYTES - at;
    if (n) memcpy(data, s->ring + at, n);
    if (bytes > n) memcpy((unsigned char *)data + n, s->ring, bytes - n);
}

enum st comm_shm_has_room(struct comm *c, size_t bytes, struct err *e) {
    struct shm *s = (struct shm *)c;
    enum st code = check_lost(s, false, e);
    if (code != ST_AGAIN) return code;
    size_t needed = sizeof(struct event) + comm_round_up(bytes, 8);
    for (int r = 1; r < s->n_ranks; r++) {
        uint64_t behind = s->event_position - atomic_load_explicit(&s->segment->cells[r].events_read, memory_order_acquire);
        if (behind > RING_BYTES) return err_set(e, ST_MISMATCH, "rank %d acknowledges events that were never posted", s->first + r);
        if (needed > RING_BYTES - behind) return ST_AGAIN;
    }
    return ST_OK;
}

static enum st shm_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    struct shm *s = (struct shm *)c;
    enum st code = comm_shm_has_room(c, bytes, e);
    if (code != ST_OK) return code;
    const struct event event = {.bytes = (uint32_t)bytes, .number = s->n_events};
    size_t needed = sizeof event + comm_round_up(bytes, 8);
    ring_put(s, s->event_position, &event, sizeof event);
    ring_put(s, s->event_position + sizeof event, data, bytes);
    s->event_position += needed;
    s->n_events++;
    atomic_store(&s->segment->events_written, s->event_position);
    wake(s->segment, s->n_ranks, &s->segment->event_sleepers);
    return ST_OK;
}

static enum st shm_event_test(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e) {
    struct shm *s = (struct shm *)c;
    uint64_t available = atomic_load_explicit(&s->segment->events_written, memory_order_acquire) - s->event_position;
    if (available == 0) {
        s->waits_for = WAITS_FOR_EVENT;
        enum st code = check_lost(s, false, e);
        /* What was posted before the loss still counts: look again, now that the loss is known. */
        if (code == ST_AGAIN || atomic_load(&s->segment->events_written) == s->event_position) return code;
        return ST_AGAIN;
    }
    struct event event;
    if (available > RING_BYTES || available < sizeof event)
        return err_set(e, ST_MISMATCH, "rank 0's event stream is corrupt: %llu bytes", (unsigned long long)available);
    ring_get(s, s->event_position, &event, sizeof event);
    if (event.bytes > COMM_EVENT_MAX_BYTES || sizeof event + comm_round_up(event.bytes, 8) > available || event.number != s->n_events)
        return err_set(e, ST_MISMATCH, "rank 0's event stream is corrupt: event %u of %u bytes where event %u is due", event.number, event.bytes,
                       s->n_events);
    if (event.bytes > capacity) return err_set(e, ST_INVALID, "comm: an event of %u bytes does not fit into %zu", event.bytes, capacity);
    ring_get(s, s->event_position + sizeof event, data, event.bytes);
    s->event_position += sizeof event + comm_round_up(event.bytes, 8);
    s->n_events++;
    *bytes = event.bytes;
    atomic_store_explicit(&s->segment->cells[s->rank].events_read, s->event_position, memory_order_release);
    return ST_OK;
}

/* ---- sleeping ------------------------------------------------------------------------------------------------------------------------------------ */

static bool nothing_changed(const struct shm *s) {
    if (atomic_load(&s->segment->n_lost) != s->n_lost_seen) return false;
    if (s->waits_for == WAITS_FOR_EVENT) return atomic_load(&s->segment->events_written) == s->event_position;
    return atomic_load(&slot_of(s, s->missing, s->comm.sequence)->sequence) != s->comm.sequence;
}

static void shm_sleep(struct comm *c, uint64_t deadline_ns) {
    struct shm *s = (struct shm *)c;
    uint64_t now_ns = base_now_ns(c->clock);
    if (now_ns >= deadline_ns) return;
    struct cell *own = &s->segment->cells[s->rank];
    _Atomic uint64_t *sleepers = s->waits_for == WAITS_FOR_EVENT ? &s->segment->event_sleepers : &s->segment->cells[s->missing].sleepers;
    uint64_t bit = 1ull << s->rank;
    uint32_t bell = atomic_load(&own->bell); /* before anybody can know that we sleep */
    atomic_fetch_or(sleepers, bit);
    if (nothing_changed(s) && !futex_wait(&own->bell, bell, deadline_ns - now_ns)) look_after_peers(s);
    atomic_fetch_and(sleepers, ~bit);
}

const struct comm_backend comm_shm_backend = {
    .capabilities = {.name = "shm", .crosses_hosts = false, .ranks_as_threads = true, .one_shot = true, .max_ranks = COMM_MAX_RANKS},
    .priority = 50,
    .probe = shm_probe,
    .open = shm_open_comm,
    .close = shm_close,
    .send_buffer = shm_send_buffer,
    .allgather_start = shm_allgather_start,
    .allgather_test = shm_allgather_test,
    .event_post = shm_event_post,
    .event_test = shm_event_test,
    .sleep = shm_sleep,
};
