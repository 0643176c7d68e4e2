/* Ranks that MPICH joins: its point-to-point messages move the bytes, and nothing else of it. Sums stay the caller's, in the caller's tree.
 *
 * An all-gather is a receive from and a send to every peer. Header and payload are one message, since the header lies in front of the payload in the slot; comm_send_buffer hands
 * out the payload of the slot that is sent next. Receives into the slots of exchange k + 1 are posted as soon as k is done, for a message of any length, so that bytes mostly
 * arrive where they belong: the views of k − 2, whose slots they are, ended when k began (the argument for three slots is in shm.c). An exchange is done when our own messages
 * are out as well: MPICH moves a large one only while somebody calls it.
 *
 * Events are messages of their own, in N_EVENTS numbered buffers: rank 0 posts only what it has credit for, so that a reader always has a receive waiting, and MPICH never has
 * to keep one. Messages of different tags may overtake each other; so every exchange of rank 0 tells how many events it has posted, and its readers end the exchange after
 * those have arrived: what a header announces is there at once.
 *
 * The end. MPI cannot tell that a peer died: without a bye its death is a deadline that passes (ST_TIMEOUT names it), and whoever watches the ranks ends them.
 * comm_close sends a bye to all and returns; what MPI knows of is freed when the byes of all are here. Only the last user of MPI in
 * this process waits for that, for CLOSE_WAIT_NS, before MPI is finalised. Where a group did not end in peace, buffers and requests are left to MPI, which may still write into
 * them, and MPI is not finalised. A bye names who is to blame, so that everybody tells of the rank that closed first and not of those that followed.
 *
 * There is nothing to sleep on: an idle rank looks, first after 20 us, then less and less often, at last twice a millisecond. */
#include "comm/mpi.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm/boot_pmi.h"
#include "comm/comm_priv.h"
#include "comm/mpi_api.h"

#if COMM_HAVE_MPI

enum { TAG_EXCHANGE = 1, TAG_EVENT, TAG_CONTROL, TAG_BOOT };

#define N_EVENTS 16 /* buffers; what rank 0 may post before a reader takes one */
#define CREDIT_EVERY 4u
#define N_CONTROLS 8  /* credits on their way */
#define LOOK_EVERY 8u /* tests that find nothing, until the control messages are looked at as well */
#define CLOSE_WAIT_NS BASE_NS_PER_S
#define LINGER_NS (2 * BASE_NS_PER_MS)
#define ANGRY_WAIT_NS (100 * BASE_NS_PER_MS) /* a dead peer does not take its bye */
#define BOOT_GROUP_TAG 30000                 /* of MPI_Comm_create_group; groups count from 0, and MPI promises tags up to 32,767 */
#define MIN_NAP_NS 20000u
#define MAX_NAP_NS 500000u
#define MAX_MESSAGE_BYTES ((size_t)INT_MAX - 4096)

/* Numbers are the host's: ranks of one MPICH job have one byte order, and the hello compares builds.
 *   0 sequence 8 · 8 payload bytes 8 · 16 comm_header 24 · 40 events posted 8 · 48 zero 16 · 64 payload */
struct slot {
    uint64_t sequence, bytes;
    struct comm_header header;
    uint64_t n_events;
    uint64_t zero[2];
};
_Static_assert(sizeof(struct slot) == 64, "the payload begins with the next line");

struct event {
    uint64_t number, bytes;
    unsigned char data[COMM_EVENT_MAX_BYTES];
};
#define EVENT_HEAD_BYTES offsetof(struct event, data)

enum control_kind { CREDIT = 0x31524354, BYE = 0x31455942 };
struct control {
    uint32_t kind;
    int32_t blamed;    /* BYE: the rank because of which we close; −1: none */
    uint64_t n;        /* CREDIT: events taken; BYE: exchanges finished */
    uint64_t n_events; /* BYE: posted */
    uint64_t in_peace; /* BYE */
};

struct peer {
    int rank;
    bool has_closed;
    struct control bye;
    uint64_t n_taken; /* rank 0: events, by its credits */
    struct control inbox;
    MPI_Request inbox_request;
    MPI_Request bye_request;
};

struct mpi {
    struct comm comm;
    const struct comm_mpi_api *api;
    MPI_Comm wire;
    int rank, n_ranks, n_peers;
    size_t slot_bytes;
    unsigned char *slots; /* [n_ranks, COMM_N_SLOTS, slot_bytes] */
    struct peer *peers;   /* [n_peers] */

    /* the exchange begun: receives of peers 0 …, then sends to them */
    MPI_Request *requests; /* [2 n_peers] */
    MPI_Status *statuses;
    int *indices;
    int n_open;
    uint64_t n_finished, n_announced;
    struct comm_header headers[COMM_MAX_RANKS];

    /* events: of rank 0, or to it */
    struct event *events;        /* [N_EVENTS] */
    MPI_Request *event_requests; /* rank 0: [N_EVENTS, n_peers] sends; others: [N_EVENTS] receives */
    uint64_t n_posted, n_out;    /* rank 0: out of our hands */
    uint64_t n_arrived, n_read, n_credited;
    uint64_t arrived_bytes[N_EVENTS];
    struct control controls[N_CONTROLS];
    MPI_Request control_requests[N_CONTROLS];
    struct control farewell;

    int blamed;    /* the rank that we said is lost; −1: none */
    bool failed;   /* an MPI call: nothing is sure any more */
    bool in_peace; /* closing */
    uint64_t closed_ns;
    struct mpi *next;
    unsigned n_idle;
    uint64_t nap_ns;
};

static struct mpi *mpi_of(struct comm *c) { return (struct mpi *)c; }
static struct slot *slot_of(const struct mpi *m, int rank, uint64_t sequence) {
    return (struct slot *)(m->slots + ((size_t)rank * COMM_N_SLOTS + sequence % COMM_N_SLOTS) * m->slot_bytes);
}
static unsigned char *payload(struct slot *slot) { return (unsigned char *)(slot + 1); }

/* A call of ours that was given up is still inside MPI: nobody may enter. */
static enum st check_free(struct err *e) {
    return comm_mpi_is_stuck() ? err_set(e, ST_PEER_LOST, "mpi: an earlier call did not return in time; MPI cannot be used any more") : ST_OK;
}

static enum st check(struct mpi *m, int result, const char *name, struct err *e) {
    if (result == MPI_SUCCESS) return ST_OK;
    m->failed = true;
    return comm_mpi_check(result, name, e);
}

/* ---- messages beside the exchange ------------------------------------------------------------------------------------------------------------------------ */

static enum st post_inbox(struct mpi *m, struct peer *p, struct err *e) {
    return check(m, m->api->Irecv(&p->inbox, sizeof p->inbox, MPI_BYTE, p->rank, TAG_CONTROL, m->wire, &p->inbox_request), "MPI_Irecv", e);
}

static enum st take_control(struct mpi *m, struct peer *p, int count, struct err *e) {
    const struct control *k = &p->inbox;
    bool is_credit = k->kind == CREDIT && m->rank == 0 && k->n >= p->n_taken && k->n <= m->n_posted;
    bool is_bye = k->kind == BYE && k->blamed >= -1 && k->blamed < m->n_ranks;
    if (count != sizeof *k || (!is_credit && !is_bye)) return err_set(e, ST_MISMATCH, "rank %d sent a control message that makes no sense", p->rank);
    if (is_credit) {
        p->n_taken = k->n;
        return post_inbox(m, p, e);
    }
    p->has_closed = true; /* nothing follows */
    p->bye = *k;
    return ST_OK;
}

/* Credits and byes, as many as are here. */
static enum st look_at_controls(struct mpi *m, struct err *e) {
    for (int i = 0; i < m->n_peers; i++) {
        struct peer *p = &m->peers[i];
        while (!p->has_closed) {
            int is_here = 0, count = 0;
            MPI_Status status;
            enum st code = check(m, m->api->Test(&p->inbox_request, &is_here, &status), "MPI_Test", e);
            if (code != ST_OK) return code;
            if (!is_here) break;
            m->api->Get_count(&status, MPI_BYTE, &count);
            code = take_control(m, p, count, e);
            if (code != ST_OK) return code;
        }
    }
    return ST_OK;
}

static enum st lost(struct mpi *m, const struct peer *p, struct err *e) {
    m->blamed = p->bye.blamed >= 0 && p->bye.blamed != m->rank ? p->bye.blamed : p->rank;
    return err_set(e, ST_PEER_LOST, "rank %d closed its end", m->blamed);
}

/* Readers: events arrive in their buffers in order, since one rank sends them with one tag; large ones may be complete before a small one. */
static enum st look_at_events(struct mpi *m, struct err *e) {
    while (m->n_arrived - m->n_read < N_EVENTS) {
        size_t i = m->n_arrived % N_EVENTS;
        int is_here = 0, count = 0;
        MPI_Status status;
        enum st code = check(m, m->api->Test(&m->event_requests[i], &is_here, &status), "MPI_Test", e);
        if (code != ST_OK || !is_here) return code;
        m->api->Get_count(&status, MPI_BYTE, &count);
        const struct event *event = &m->events[i];
        if (count < (int)EVENT_HEAD_BYTES || event->number != m->n_arrived || event->bytes != (size_t)count - EVENT_HEAD_BYTES)
            return err_set(e, ST_MISMATCH, "rank 0's event stream is corrupt: where event %llu is due", (unsigned long long)m->n_arrived);
        m->arrived_bytes[i] = event->bytes;
        m->n_arrived++;
    }
    return ST_OK;
}

static enum st post_event_receive(struct mpi *m, uint64_t number, struct err *e) {
    size_t i = number % N_EVENTS;
    return check(m, m->api->Irecv(&m->events[i], sizeof m->events[i], MPI_BYTE, 0, TAG_EVENT, m->wire, &m->event_requests[i]), "MPI_Irecv", e);
}

/* Rank 0: n_out follows n_posted, event by event. */
static enum st look_at_event_sends(struct mpi *m, struct err *e) {
    for (; m->n_out < m->n_posted; m->n_out++) {
        MPI_Request *requests = &m->event_requests[m->n_out % N_EVENTS * (size_t)m->n_peers];
        for (int i = 0; i < m->n_peers; i++) {
            int is_out = 0;
            enum st code = check(m, m->api->Test(&requests[i], &is_out, MPI_STATUS_IGNORE), "MPI_Test", e);
            if (code != ST_OK || !is_out) return code;
        }
    }
    return ST_OK;
}

/* Late is better than waiting: a credit that finds no free place goes with the next one. */
static enum st send_credit(struct mpi *m, struct err *e) {
    if (m->n_read - m->n_credited < CREDIT_EVERY) return ST_OK;
    for (int i = 0; i < N_CONTROLS; i++) {
        int is_free = 0;
        enum st code = check(m, m->api->Test(&m->control_requests[i], &is_free, MPI_STATUS_IGNORE), "MPI_Test", e);
        if (code != ST_OK) return code;
        if (!is_free) continue;
        m->controls[i] = (struct control){.kind = CREDIT, .blamed = -1, .n = m->n_read};
        m->n_credited = m->n_read;
        return check(m, m->api->Isend(&m->controls[i], sizeof m->controls[i], MPI_BYTE, 0, TAG_CONTROL, m->wire, &m->control_requests[i]),
                     "MPI_Isend", e);
    }
    return ST_OK;
}

/* ---- exchange ------------------------------------------------------------------------------------------------------------------------------------------- */

static void *mpi_send_buffer(struct comm *c) {
    const struct mpi *m = mpi_of(c);
    return payload(slot_of(m, m->rank, c->sequence + 1));
}

static enum st post_receives(struct mpi *m, uint64_t sequence, struct err *e) {
    for (int i = 0; i < m->n_peers; i++) {
        int rank = m->peers[i].rank;
        int result = m->api->Irecv(slot_of(m, rank, sequence), (int)m->slot_bytes, MPI_BYTE, rank, TAG_EXCHANGE, m->wire, &m->requests[i]);
        enum st code = check(m, result, "MPI_Irecv", e);
        if (code != ST_OK) return code;
    }
    return ST_OK;
}

static enum st mpi_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    struct mpi *m = mpi_of(c);
    size_t bytes = recv_bytes[m->rank];
    enum st code = check_free(e);
    if (code != ST_OK) return code;
    struct slot *slot = slot_of(m, m->rank, c->sequence);
    if (send && send != payload(slot) && bytes) memcpy(payload(slot), send, bytes);
    *slot = (struct slot){.sequence = c->sequence, .bytes = bytes, .header = *header, .n_events = m->n_posted};
    m->headers[m->rank] = *header;
    m->n_open = 2 * m->n_peers;
    m->n_announced = 0;
    m->n_idle = 0;
    m->nap_ns = MIN_NAP_NS;
    for (int i = 0; i < m->n_peers; i++) {
        int result =
            m->api->Isend(slot, (int)(sizeof *slot + bytes), MPI_BYTE, m->peers[i].rank, TAG_EXCHANGE, m->wire, &m->requests[m->n_peers + i]);
        code = check(m, result, "MPI_Isend", e);
        if (code != ST_OK) return code;
    }
    return ST_OK;
}

static enum st take_message(struct mpi *m, int rank, const MPI_Status *status, struct err *e) {
    const struct slot *slot = slot_of(m, rank, m->comm.sequence);
    size_t due = m->comm.recv_bytes[rank];
    int count = 0;
    m->api->Get_count(status, MPI_BYTE, &count);
    if (count < (int)sizeof *slot) return err_set(e, ST_MISMATCH, "rank %d sent a message of %d bytes without a header", rank, count);
    size_t bytes = (size_t)count - sizeof *slot;
    if (slot->sequence != m->comm.sequence)
        return err_set(e, ST_MISMATCH, "rank %d is at exchange %llu, which cannot be", rank, (unsigned long long)slot->sequence);
    if (bytes != due || slot->bytes != due)
        return err_set(e, ST_MISMATCH, "rank %d sent %llu bytes where %zu are due", rank, (unsigned long long)slot->bytes, due);
    m->headers[rank] = slot->header;
    if (rank == 0) {
        if (slot->n_events < m->n_arrived || slot->n_events - m->n_read > N_EVENTS)
            return err_set(e, ST_MISMATCH, "rank 0 says that it posted %llu events", (unsigned long long)slot->n_events);
        m->n_announced = slot->n_events;
    }
    return ST_OK;
}

/* Whatever has moved. */
static enum st look_at_exchange(struct mpi *m, struct err *e) {
    int n = 0;
    if (!m->n_open) return ST_OK;
    int result = m->api->Testsome(2 * m->n_peers, m->requests, &n, m->indices, m->statuses);
    if (result != MPI_SUCCESS) {
        int class = MPI_ERR_OTHER;
        m->failed = true;
        m->api->Error_class(result, &class);
        for (int k = 0; class == MPI_ERR_IN_STATUS && k < n; k++)
            if (m->statuses[k].MPI_ERROR != MPI_SUCCESS) {
                int class_k = MPI_ERR_OTHER;
                m->api->Error_class(m->statuses[k].MPI_ERROR, &class_k);
                if (class_k == MPI_ERR_TRUNCATE)
                    return err_set(e, ST_MISMATCH, "rank %d sent more than was planned", m->peers[m->indices[k] % m->n_peers].rank);
                return comm_mpi_check(m->statuses[k].MPI_ERROR, "MPI_Testsome", e);
            }
        return comm_mpi_check(result, "MPI_Testsome", e);
    }
    if (n == MPI_UNDEFINED) return ST_OK;
    m->n_open -= n;
    for (int k = 0; k < n; k++) {
        if (m->indices[k] >= m->n_peers) continue;
        enum st code = take_message(m, m->peers[m->indices[k]].rank, &m->statuses[k], e);
        if (code != ST_OK) return code;
    }
    return ST_OK;
}

/* Nothing more will come from a rank that closed before it had finished this exchange. */
static enum st find_lost(struct mpi *m, struct err *e) {
    for (int i = 0; i < m->n_peers; i++) {
        const struct peer *p = &m->peers[i];
        bool is_open = m->requests[i] != MPI_REQUEST_NULL || m->requests[m->n_peers + i] != MPI_REQUEST_NULL;
        if (is_open && p->has_closed && p->bye.n < m->comm.sequence) return lost(m, p, e);
    }
    return ST_OK;
}

static enum st mpi_allgather_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    struct mpi *m = mpi_of(c);
    enum st code = check_free(e);
    if (code == ST_OK) code = look_at_exchange(m, e);
    if (code == ST_OK && m->rank == 0 && m->n_out < m->n_posted) code = look_at_event_sends(m, e);
    if (code == ST_OK && m->n_arrived < m->n_announced) code = look_at_events(m, e);
    if (code != ST_OK) return code;
    if (m->n_open || m->n_out < m->n_posted || m->n_arrived < m->n_announced) {
        *missing = m->rank == 0 && m->n_peers ? m->peers[0].rank : 0;
        for (int i = 2 * m->n_peers - 1; i >= 0; i--) /* whom we wait for, rather than who does not take */
            if (m->requests[i] != MPI_REQUEST_NULL) *missing = m->peers[i % m->n_peers].rank;
        if (m->n_idle++ % LOOK_EVERY == 0) {
            code = look_at_controls(m, e);
            if (code == ST_OK) code = find_lost(m, e);
        }
        return code == ST_OK ? ST_AGAIN : code;
    }
    for (int r = 0; r < m->n_ranks; r++) views[r] = payload(slot_of(m, r, c->sequence));
    if (headers) memcpy(headers, m->headers, (size_t)m->n_ranks * sizeof *headers);
    m->n_finished = c->sequence;
    return post_receives(m, c->sequence + 1, e);
}

/* ---- events ----------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st any_lost(struct mpi *m, struct err *e) {
    for (int i = 0; i < m->n_peers; i++)
        if (m->peers[i].has_closed) return lost(m, &m->peers[i], e);
    return ST_OK;
}

static enum st mpi_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    struct mpi *m = mpi_of(c);
    if (!m->n_peers) return ST_OK;
    enum st code = check_free(e);
    if (code == ST_OK) code = look_at_controls(m, e);
    if (code == ST_OK) code = any_lost(m, e);
    if (code == ST_OK) code = look_at_event_sends(m, e);
    if (code != ST_OK) return code;
    if (m->n_posted - m->n_out >= N_EVENTS) return ST_AGAIN;
    for (int i = 0; i < m->n_peers; i++)
        if (m->n_posted - m->peers[i].n_taken >= N_EVENTS) return ST_AGAIN;
    size_t at = m->n_posted % N_EVENTS;
    struct event *event = &m->events[at];
    event->number = m->n_posted;
    event->bytes = bytes;
    if (bytes) memcpy(event->data, data, bytes);
    m->n_posted++;
    for (int i = 0; i < m->n_peers; i++) {
        int result = m->api->Isend(event, (int)(EVENT_HEAD_BYTES + bytes), MPI_BYTE, m->peers[i].rank, TAG_EVENT, m->wire,
                                   &m->event_requests[at * (size_t)m->n_peers + (size_t)i]);
        code = check(m, result, "MPI_Isend", e);
        if (code != ST_OK) return code;
    }
    return ST_OK;
}

static enum st mpi_event_test(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e) {
    struct mpi *m = mpi_of(c);
    enum st code = check_free(e);
    if (code == ST_OK) code = look_at_events(m, e);
    if (code == ST_OK) code = send_credit(m, e);
    if (code != ST_OK) return code;
    if (m->n_arrived == m->n_read) {
        code = look_at_controls(m, e);
        if (code != ST_OK) return code;
        for (int i = 0; i < m->n_peers; i++) { /* what rank 0 had posted still counts */
            const struct peer *p = &m->peers[i];
            if (p->has_closed && p->rank == 0 && p->bye.n_events > m->n_arrived) return ST_AGAIN;
        }
        code = any_lost(m, e);
        return code == ST_OK ? ST_AGAIN : code;
    }
    size_t i = m->n_read % N_EVENTS;
    size_t n = m->arrived_bytes[i];
    if (n > capacity) return err_set(e, ST_INVALID, "comm: an event of %zu bytes does not fit into %zu", n, capacity);
    if (n) memcpy(data, m->events[i].data, n);
    m->n_read++;
    m->nap_ns = MIN_NAP_NS;
    code = post_event_receive(m, m->n_read - 1, e); /* N_EVENTS further on, in the same buffer */
    if (code == ST_OK) code = send_credit(m, e);
    if (code == ST_OK) *bytes = n;
    return code;
}

static enum st mpi_progress(struct comm *c, struct err *e) {
    struct mpi *m = mpi_of(c);
    enum st code = check_free(e);
    if (code == ST_OK) code = m->rank == 0 ? look_at_event_sends(m, e) : send_credit(m, e);
    if (code == ST_OK) code = look_at_controls(m, e);
    if (code != ST_OK) return code;
    return m->n_out < m->n_posted ? ST_AGAIN : ST_OK;
}

static void nap(uint64_t ns) { nanosleep(&(struct timespec){.tv_sec = (time_t)(ns / BASE_NS_PER_S), .tv_nsec = (long)(ns % BASE_NS_PER_S)}, NULL); }

static void mpi_sleep(struct comm *c, uint64_t deadline_ns) {
    struct mpi *m = mpi_of(c);
    uint64_t now = base_now_ns(c->clock);
    if (now >= deadline_ns) return;
    nap(m->nap_ns < deadline_ns - now ? m->nap_ns : deadline_ns - now);
    m->nap_ns = m->nap_ns * 2 < MAX_NAP_NS ? m->nap_ns * 2 : MAX_NAP_NS;
}

/* ---- opening ---------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st mpi_probe(const struct comm_setup *setup, struct err *e) {
    if (setup->memory) return err_set(e, ST_UNSUPPORTED, "for processes, not for threads");
    if (comm_buffer_bytes(setup->max_bytes) > MAX_MESSAGE_BYTES) return err_set(e, ST_UNSUPPORTED, "for messages below 2 GiB");
    if (!comm_mpi_is_running() && setup->n_ranks > 1 && !comm_boot_pmi_is_here())
        return err_set(e, ST_UNSUPPORTED, "nobody serves PMI here (PMI_FD and PMI_PORT are unset)");
    return comm_mpi_load(e) ? ST_OK : ST_UNSUPPORTED;
}

/* What the ranks of a group tell each other before one of them waits inside MPI for another that cannot come. */
struct record {
    uint64_t magic;
    int32_t is_able, world_rank, tag, zero;
    char why[168];
};
#define RECORD_MAGIC 0x3169706d6d6f6374ull /* "tcommpi1" */

static int n_groups; /* that this process took part in */

/* Where we are in MPI_COMM_WORLD, before MPI runs: MPICH takes PMI_RANK at its word. */
static int claimed_world_rank(const struct comm_setup *setup) {
    const char *text = getenv("PMI_RANK");
    return text && *text ? atoi(text) : setup->rank;
}

static enum st meet(const struct comm_setup *setup, const struct err *trouble, int world_rank, int *world_ranks, int *tag, struct err *e) {
    struct record mine = {.magic = RECORD_MAGIC, .is_able = !trouble, .world_rank = world_rank, .tag = n_groups}, all[COMM_MAX_RANKS];
    if (trouble) snprintf(mine.why, sizeof mine.why, "%.160s", trouble->text);
    enum st code = setup->boot->allgather(setup->boot->context, &mine, sizeof mine, all, setup->deadline_ns, e);
    if (code != ST_OK) return code;
    for (int r = 0; r < setup->n_ranks; r++) {
        if (all[r].magic != RECORD_MAGIC) return err_set(e, ST_PEER_LOST, "mpi: rank %d gave up before it opened", r);
        if (!all[r].is_able) return err_set(e, ST_UNSUPPORTED, "mpi: rank %d cannot: %.160s", r, all[r].why);
        world_ranks[r] = all[r].world_rank;
        for (int other = 0; other < r; other++)
            if (world_ranks[other] == world_ranks[r])
                return err_set(e, ST_MISMATCH, "mpi: ranks %d and %d are both rank %d of MPI_COMM_WORLD", other, r, world_ranks[r]);
        if (all[r].tag > *tag) *tag = all[r].tag;
    }
    return ST_OK;
}

static enum st check_world(const struct mpi *m, const struct comm_setup *setup, const int *world_ranks, struct err *e) {
    int rank = -1, n = -1;
    enum st code = comm_mpi_check(m->api->Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank", e);
    if (code == ST_OK) code = comm_mpi_check(m->api->Comm_size(MPI_COMM_WORLD, &n), "MPI_Comm_size", e);
    if (code != ST_OK) return code;
    if (rank != world_ranks[setup->rank] || n < setup->n_ranks)
        return err_set(e, ST_MISMATCH, "mpi: MPI knows us as rank %d of %d, not as rank %d of a group of %d", rank, n, world_ranks[setup->rank],
                       setup->n_ranks);
    for (int r = 0; r < setup->n_ranks; r++)
        if (world_ranks[r] < 0 || world_ranks[r] >= n)
            return err_set(e, ST_MISMATCH, "mpi: rank %d is rank %d of MPI_COMM_WORLD, which has %d", r, world_ranks[r], n);
    return ST_OK;
}

/* Members in order, their tag, and MPI running. On ST_OK it is acquired. */
static enum st join(struct mpi *m, const struct comm_setup *setup, int *world_ranks, int *tag, struct err *e) {
    for (int r = 0; r < setup->n_ranks; r++) world_ranks[r] = r;
    enum st code = ST_OK;
    if (setup->boot) {
        struct err trouble;
        m->api = comm_mpi_load(&trouble);
        int world_rank = claimed_world_rank(setup);
        if (comm_mpi_is_running()) m->api->Comm_rank(MPI_COMM_WORLD, &world_rank);
        code = meet(setup, m->api ? NULL : &trouble, world_rank, world_ranks, tag, e);
        if (code != ST_OK) return code;
    }
    m->api = comm_mpi_load(e);
    if (!m->api) return ST_UNSUPPORTED;
    code = comm_mpi_acquire(setup->deadline_ns, e);
    if (code != ST_OK) return code;
    code = check_world(m, setup, world_ranks, e);
    if (code != ST_OK) comm_mpi_release(false);
    return code;
}

static void free_all(struct mpi *m) {
    free(m->slots);
    free(m->peers);
    free(m->requests);
    free(m->statuses);
    free(m->indices);
    free(m->events);
    free(m->event_requests);
    free(m);
}

static void clear(MPI_Request *requests, size_t n) {
    for (size_t i = 0; i < n; i++) requests[i] = MPI_REQUEST_NULL;
}

static struct mpi *create(const struct comm_setup *setup) {
    struct mpi *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->rank = setup->rank;
    m->n_ranks = setup->n_ranks;
    m->n_peers = setup->n_ranks - 1;
    m->blamed = -1;
    m->nap_ns = MIN_NAP_NS;
    m->slot_bytes = sizeof(struct slot) + comm_buffer_bytes(setup->max_bytes);
    size_t n = (size_t)m->n_peers + 1, all_bytes = (size_t)m->n_ranks * COMM_N_SLOTS * m->slot_bytes;
    size_t n_event_requests = N_EVENTS * (m->rank == 0 ? n : 1);
    m->slots = aligned_alloc(64, all_bytes);
    m->peers = calloc(n, sizeof *m->peers);
    m->requests = calloc(2 * n, sizeof *m->requests);
    m->statuses = calloc(2 * n, sizeof *m->statuses);
    m->indices = calloc(2 * n, sizeof *m->indices);
    m->events = m->n_peers ? calloc(N_EVENTS, sizeof *m->events) : NULL;
    m->event_requests = calloc(n_event_requests, sizeof *m->event_requests);
    if (!m->slots || !m->peers || !m->requests || !m->statuses || !m->indices || (m->n_peers && !m->events) || !m->event_requests) {
        free_all(m);
        return NULL;
    }
    for (size_t at = 0; at < all_bytes; at += 4096) m->slots[at] = 0; /* page faults now, not on the step path */
    for (int i = 0; i < m->n_peers; i++) {
        m->peers[i].rank = i < m->rank ? i : i + 1;
        m->peers[i].inbox_request = m->peers[i].bye_request = MPI_REQUEST_NULL;
    }
    clear(m->requests, 2 * n);
    clear(m->event_requests, n_event_requests);
    clear(m->control_requests, N_CONTROLS);
    return m;
}

static enum st post_first(struct mpi *m, struct err *e) {
    enum st code = post_receives(m, 1, e);
    for (int i = 0; i < m->n_peers && code == ST_OK; i++) code = post_inbox(m, &m->peers[i], e);
    for (uint64_t n = 0; n < N_EVENTS && code == ST_OK && m->rank != 0; n++) code = post_event_receive(m, n, e);
    return code;
}

static enum st mpi_open(const struct comm_setup *setup, struct comm **c, struct err *e) {
    struct mpi *m = create(setup);
    int world_ranks[COMM_MAX_RANKS], tag = 0;
    if (!m) {
        if (setup->boot) { /* the others shall know */
            struct err none = {"no memory"};
            (void)meet(setup, &none, -1, world_ranks, &tag, NULL);
        }
        return err_set(e, ST_NO_MEMORY, "mpi: no memory for %d ranks' buffers of %zu bytes", setup->n_ranks, setup->max_bytes);
    }
    enum st code = join(m, setup, world_ranks, &tag, e);
    if (code != ST_OK) goto undo_create;
    code = comm_mpi_make_comm(world_ranks, setup->n_ranks, tag, setup->deadline_ns, &m->wire, e);
    if (code == ST_OK) {
        n_groups = (tag + 1) % BOOT_GROUP_TAG;
        code = post_first(m, e);
        if (code == ST_OK) {
            *c = &m->comm;
            return ST_OK;
        }
        comm_mpi_release(false); /* and what was posted stays MPI's */
        return code;
    }
    comm_mpi_release(false);
undo_create:
    free_all(m);
    return code;
}

/* ---- closing ---------------------------------------------------------------------------------------------------------------------------------------------- */

static bool is_null(struct mpi *m, MPI_Request *request) {
    int is_over = 1;
    return *request == MPI_REQUEST_NULL || (m->api->Test(request, &is_over, MPI_STATUS_IGNORE) == MPI_SUCCESS && is_over);
}

/* Byes of all are here, and nothing of ours is on its way. */
static bool is_quiet(struct mpi *m) {
    struct err ignored;
    bool quiet = look_at_controls(m, &ignored) == ST_OK;
    for (int i = 0; i < m->n_peers; i++) {
        quiet = is_null(m, &m->peers[i].bye_request) && quiet;
        quiet = is_null(m, &m->requests[m->n_peers + i]) && quiet;
        quiet = m->peers[i].has_closed && quiet;
    }
    for (int i = 0; i < N_CONTROLS; i++) quiet = is_null(m, &m->control_requests[i]) && quiet;
    for (size_t i = 0; m->rank == 0 && i < (size_t)N_EVENTS * (size_t)m->n_peers; i++) quiet = is_null(m, &m->event_requests[i]) && quiet;
    return quiet;
}

/* Receives that nobody will serve. */
static bool withdraw(struct mpi *m, MPI_Request *request) {
    if (*request == MPI_REQUEST_NULL) return true;
    if (m->api->Cancel(request) != MPI_SUCCESS) return false;
    for (int i = 0; i < 1000; i++)
        if (is_null(m, request)) return true;
    return false;
}
static bool withdraw_all(struct mpi *m) {
    bool done = true;
    for (int i = 0; i < m->n_peers; i++) done = withdraw(m, &m->requests[i]) && withdraw(m, &m->peers[i].inbox_request) && done;
    for (int i = 0; i < N_EVENTS && m->rank != 0 && m->n_peers; i++) done = withdraw(m, &m->event_requests[i]) && done;
    return done;
}

static bool are_byes_out(struct mpi *m) {
    bool out = true;
    for (int i = 0; i < m->n_peers; i++) out = is_null(m, &m->peers[i].bye_request) && out;
    return out;
}

static bool does_anybody_leave_in_anger(const struct mpi *m) {
    for (int i = 0; i < m->n_peers; i++)
        if (m->peers[i].has_closed && !m->peers[i].bye.in_peace) return true;
    return false;
}

/* Groups that were closed here and not yet by all. Nobody waits for them before the last user of MPI leaves. */
static struct mpi *parting;
static bool all_in_peace = true;

/* Over, one way or the other: m is freed, or left to MPI. */
static bool has_parted(struct mpi *m) {
    struct err ignored;
    bool is_over = is_quiet(m);
    if (!m->in_peace || look_at_controls(m, &ignored) != ST_OK || does_anybody_leave_in_anger(m)) {
        m->in_peace = false;
        all_in_peace = false;
        /* Out of our hands is not yet out of the house: MPICH is called a little longer. */
        uint64_t since_ns = base_now_ns(base_clock_real()) - m->closed_ns;
        return since_ns >= (are_byes_out(m) ? LINGER_NS : ANGRY_WAIT_NS);
    }
    if (!is_over) return false;
    if (withdraw_all(m) && m->api->Comm_free(&m->wire) == MPI_SUCCESS)
        free_all(m);
    else
        all_in_peace = false;
    return true;
}

static void sweep(void) {
    for (struct mpi **at = &parting; *at;) {
        struct mpi *m = *at, *next = m->next;
        if (has_parted(m))
            *at = next;
        else
            at = &m->next;
    }
}

/* To be called by whoever gives MPI up: the last one sees to the end. True: all closed in peace. */
static bool part(bool is_last) {
    if (comm_mpi_is_stuck()) return false;
    sweep();
    uint64_t begun = base_now_ns(base_clock_real());
    for (uint64_t nap_ns = MIN_NAP_NS; is_last && parting && base_now_ns(base_clock_real()) - begun < CLOSE_WAIT_NS; sweep()) {
        nap(nap_ns);
        if (nap_ns < MAX_NAP_NS) nap_ns *= 2;
    }
    return all_in_peace && !(is_last && parting);
}

static void mpi_close(struct comm *c) {
    struct mpi *m = mpi_of(c);
    m->in_peace = !m->failed && !c->begun && c->broken == ST_OK;
    m->closed_ns = base_now_ns(base_clock_real());
    m->farewell = (struct control){.kind = BYE, .blamed = m->blamed, .n = m->n_finished, .n_events = m->n_posted, .in_peace = m->in_peace};
    for (int i = 0; i < m->n_peers && !comm_mpi_is_stuck(); i++)
        if (m->api->Isend(&m->farewell, sizeof m->farewell, MPI_BYTE, m->peers[i].rank, TAG_CONTROL, m->wire, &m->peers[i].bye_request) !=
            MPI_SUCCESS)
            m->in_peace = false;
    m->next = parting;
    parting = m;
    comm_mpi_release(part(comm_mpi_n_users() == 1));
}

/* ---- bootstrap by MPI ------------------------------------------------------------------------------------------------------------------------------------ */

struct boot {
    const struct comm_mpi_api *api;
    MPI_Comm wire;
    int rank, n_ranks;
    bool failed; /* requests of a round are left */
    unsigned char mine[COMM_BOOT_MAX_BYTES];
    unsigned char all[COMM_MAX_RANKS][COMM_BOOT_MAX_BYTES];
    MPI_Request requests[2 * COMM_MAX_RANKS];
};

static enum st boot_allgather(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    struct boot *b = context;
    BASE_ASSERT(bytes <= COMM_BOOT_MAX_BYTES);
    if (b->failed || comm_mpi_is_stuck()) return err_set(e, ST_PEER_LOST, "mpi: an earlier round of the bootstrap failed");
    if (bytes) memcpy(b->mine, mine, bytes);
    enum st code = ST_OK;
    for (int r = 0; r < b->n_ranks && code == ST_OK; r++) {
        b->requests[r] = b->requests[b->n_ranks + r] = MPI_REQUEST_NULL;
        if (r == b->rank) continue;
        code = comm_mpi_check(b->api->Irecv(b->all[r], sizeof b->all[r], MPI_BYTE, r, TAG_BOOT, b->wire, &b->requests[r]), "MPI_Irecv", e);
        if (code == ST_OK)
            code = comm_mpi_check(b->api->Isend(b->mine, (int)bytes, MPI_BYTE, r, TAG_BOOT, b->wire, &b->requests[b->n_ranks + r]), "MPI_Isend", e);
    }
    uint64_t nap_ns = MIN_NAP_NS;
    for (int i = 0; i < 2 * b->n_ranks && code == ST_OK;) {
        int is_over = 1, count = 0, peer = i % b->n_ranks;
        MPI_Status status;
        if (peer == b->rank) {
            i++;
            continue;
        }
        code = comm_mpi_check(b->api->Test(&b->requests[i], &is_over, &status), "MPI_Test", e);
        if (code != ST_OK) break;
        if (is_over) {
            if (i < b->n_ranks) b->api->Get_count(&status, MPI_BYTE, &count);
            if (i < b->n_ranks && (size_t)count != bytes)
                code = err_set(e, ST_MISMATCH, "mpi: rank %d sent a record of %d bytes where %zu are due", peer, count, bytes);
            i++;
            continue;
        }
        if (base_now_ns(base_clock_real()) >= deadline_ns) code = err_set(e, ST_TIMEOUT, "mpi: rank %d does not take part in the bootstrap", peer);
        nap(nap_ns);
        if (nap_ns < MAX_NAP_NS) nap_ns *= 2;
    }
    b->failed = code != ST_OK;
    for (int r = 0; r < b->n_ranks && code == ST_OK; r++)
        if (bytes) memcpy((unsigned char *)all + (size_t)r * bytes, r == b->rank ? b->mine : b->all[r], bytes);
    return code;
}

enum st comm_boot_mpi_open(uint64_t deadline_ns, struct comm_boot *boot, int *rank, int *n_ranks, struct err *e) {
    if (!deadline_ns) deadline_ns = base_now_ns(base_clock_real()) + 60 * BASE_NS_PER_S;
    const struct comm_mpi_api *api = comm_mpi_load(e);
    if (!api) return ST_UNSUPPORTED;
    struct boot *b = calloc(1, sizeof *b);
    if (!b) return err_set(e, ST_NO_MEMORY, "mpi: no memory");
    enum st code = comm_mpi_acquire(deadline_ns, e);
    if (code != ST_OK) {
        free(b);
        return code;
    }
    b->api = api;
    int members[COMM_MAX_RANKS];
    code = comm_mpi_check(api->Comm_rank(MPI_COMM_WORLD, &b->rank), "MPI_Comm_rank", e);
    if (code == ST_OK) code = comm_mpi_check(api->Comm_size(MPI_COMM_WORLD, &b->n_ranks), "MPI_Comm_size", e);
    if (code == ST_OK && b->n_ranks > COMM_MAX_RANKS)
        code = err_set(e, ST_UNSUPPORTED, "mpi: %d ranks; 1 to %d are possible", b->n_ranks, COMM_MAX_RANKS);
    for (int r = 0; r < COMM_MAX_RANKS; r++) members[r] = r;
    if (code == ST_OK) code = comm_mpi_make_comm(members, b->n_ranks, BOOT_GROUP_TAG, deadline_ns, &b->wire, e);
    if (code != ST_OK) {
        comm_mpi_release(false);
        free(b);
        return code;
    }
    *rank = b->rank;
    *n_ranks = b->n_ranks;
    *boot = (struct comm_boot){boot_allgather, b};
    return ST_OK;
}

void comm_boot_mpi_close(struct comm_boot *boot, bool in_peace) {
    struct boot *b = boot->context;
    if (!b) return;
    in_peace = in_peace && !b->failed && !comm_mpi_is_stuck();
    if (in_peace) in_peace = b->api->Comm_free(&b->wire) == MPI_SUCCESS;
    if (in_peace) free(b); /* else MPI may still write there */
    comm_mpi_release(part(in_peace && comm_mpi_n_users() == 1) && in_peace);
    *boot = (struct comm_boot){0};
}

/* ---- for benchmarks --------------------------------------------------------------------------------------------------------------------------------------- */

enum st comm_mpi_allreduce(struct comm *c, const float *in, float *out, size_t n, struct err *e) {
    if (c->backend != &comm_mpi_backend) return err_set(e, ST_INVALID, "comm: MPI_Allreduce over backend %s", comm_query(c)->name);
    if (n > INT_MAX) return err_set(e, ST_INVALID, "comm: MPI_Allreduce of %zu elements", n);
    struct mpi *m = mpi_of(c);
    return check(m, m->api->Allreduce(in, out, (int)n, MPI_FLOAT, MPI_SUM, m->wire), "MPI_Allreduce", e);
}

const char *comm_mpi_version(void) {
    const struct comm_mpi_api *api = comm_mpi_load(NULL);
    return api ? api->version : NULL;
}

const struct comm_backend comm_mpi_backend = {
    .capabilities = {.name = "mpi", .crosses_hosts = true, .ranks_as_threads = false, .one_shot = false, .sends_ahead = true, .max_ranks = COMM_MAX_RANKS},
    .priority = 10,
    .probe = mpi_probe,
    .open = mpi_open,
    .close = mpi_close,
    .send_buffer = mpi_send_buffer,
    .allgather_start = mpi_allgather_start,
    .allgather_test = mpi_allgather_test,
    .event_post = mpi_event_post,
    .event_test = mpi_event_test,
    .progress = mpi_progress,
    .sleep = mpi_sleep,
};

#else /* no mpi.h */

static enum st mpi_probe(const struct comm_setup *setup, struct err *e) {
    (void)setup;
    return err_set(e, ST_UNSUPPORTED, "this build knows no MPICH (mpi.h was not there)");
}
static enum st mpi_open(const struct comm_setup *setup, struct comm **c, struct err *e) {
    (void)c;
    return mpi_probe(setup, e);
}

enum st comm_boot_mpi_open(uint64_t deadline_ns, struct comm_boot *boot, int *rank, int *n_ranks, struct err *e) {
    (void)deadline_ns, (void)boot, (void)rank, (void)n_ranks;
    return mpi_probe(NULL, e);
}
void comm_boot_mpi_close(struct comm_boot *boot, bool in_peace) { (void)boot, (void)in_peace; }
enum st comm_mpi_allreduce(struct comm *c, const float *in, float *out, size_t n, struct err *e) {
    (void)c, (void)in, (void)out, (void)n;
    return mpi_probe(NULL, e);
}
const char *comm_mpi_version(void) { return NULL; }

const struct comm_backend comm_mpi_backend = {
    .capabilities = {.name = "mpi", .crosses_hosts = true, .ranks_as_threads = false, .one_shot = false, .sends_ahead = true, .max_ranks = COMM_MAX_RANKS},
    .priority = 10,
    .probe = mpi_probe,
    .open = mpi_open,
};

#endif
