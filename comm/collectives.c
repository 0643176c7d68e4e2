/* What is built on any backend's all-gather: exchange-and-add, top k, groups, send and receive.
 *
 * Exchange-and-add. Views of exchange k may be read until k+2 begins. So piece i+1 is begun, piece i added, and only then piece i+1 finished and i+2 begun:
 * adding and flying overlap by one piece, and no third buffer is needed. A message that fits into one piece costs one exchange and one copy of the own
 * vectors (none, where they lie in the send buffer already).
 *
 * Shared sums. A piece takes two exchanges, a scatter (Sᵢ) and, when the share is added, an all-gather of the shares (Gᵢ); so that there is something to add or to put in place while each
 * flies, they take turns one piece apart: S₀ S₁ G₀ S₂ G₁ … G.
 *
 * Groups. A child finds its members through its parent: what a backend calls boot is, here, an all-gather of the parent, in which all ranks of the parent take
 * part whether their group needs it or not: collectives of the parent stay in step, whatever becomes of one group. */
#include <string.h>

#include "comm/comm_priv.h"

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* ---- exchange-and-add ------------------------------------------------------------------------------------------------------------------------------ */

/* Of a piece, all vectors together. With the next piece beside it, it fits the L2 caches of 1–2 MiB that we have seen; on 200 Gb/s one of two ranks flies for 10 us,
 * four times the delay of a message. Smaller ones overlap more, but every exchange has its price: where ranks share CPUs it is a turn of the scheduler. */
#define PIECE_BYTES (512u << 10)
/* Where bytes are sent, and the backend has no wish of its own: of what a rank sends in a piece. On 200 Gb/s it flies for 20 us, ten times the delay of a message. */
#define SENT_PIECE_BYTES (512u << 10)

struct pieces {
    struct comm *c;
    const struct comm_exchange_add *x;
    const struct comm_header *header;
    size_t bytes; /* of one vector in a piece; the last may be shorter */
    int n_vectors;
    bool runs;      /* the backend has them all, and sends as fast as they go */
    bool is_shared;
};

static enum st choose_piece(const struct comm *c, const struct comm_exchange_add *x, struct pieces *p, struct err *e) {
    if (x->vector_bytes % sizeof(float)) return err_set(e, ST_INVALID, "comm: vectors of %zu bytes", x->vector_bytes);
    size_t n_all = 0, n_most = 0;
    for (int r = 0; r < c->n_ranks; r++) {
        n_all += x->n_vectors[r];
        if (x->n_vectors[r] > n_most) n_most = x->n_vectors[r];
    }
    if (n_all > COMM_MAX_VECTORS) return err_set(e, ST_INVALID, "comm: %zu vectors; %d are possible", n_all, COMM_MAX_VECTORS);
    p->n_vectors = (int)n_all;
    p->bytes = x->vector_bytes;
    if (n_all == 0 || x->vector_bytes == 0) return ST_OK;

    p->is_shared = x->sum && comm_is_shared(c, n_most * x->vector_bytes, x->scatter_bytes);
    size_t limit = c->max_bytes / n_most / 64 * 64; /* each vector begins at 64 bytes, also in a piece */
    if (!limit) return err_set(e, ST_INVALID, "comm: %zu vectors of one rank do not fit into messages of %zu bytes", n_most, c->max_bytes);
    const struct comm_capabilities *can = &c->backend->capabilities;
    const size_t n_sent = p->is_shared ? (size_t)c->n_ranks - 1 : 1; /* a message is but a share of a piece */
    size_t wanted = x->piece_bytes ? x->piece_bytes : can->one_shot ? PIECE_BYTES / n_all : (can->piece_bytes ? can->piece_bytes : SENT_PIECE_BYTES) * n_sent / n_most;
    limit = smaller(limit, wanted < 64 ? 64 : wanted / 64 * 64);
    if (x->vector_bytes <= limit) return ST_OK;
    if (x->piece_bytes)
        p->bytes = limit;
    else { /* equal pieces: no short one at the end that costs as many messages as a long one */
        size_t n_pieces = (x->vector_bytes + limit - 1) / limit;
        p->bytes = comm_round_up((x->vector_bytes + n_pieces - 1) / n_pieces, 64);
    }
    return ST_OK;
}

static size_t piece_bytes(const struct pieces *p, size_t offset) { return smaller(p->bytes, p->x->vector_bytes - offset); }

/* Our vectors' piece goes to the send buffer. */
static void put_vectors(const struct pieces *p, size_t offset) {
    const struct comm_exchange_add *x = p->x;
    const size_t bytes = piece_bytes(p, offset), stride = comm_round_up(bytes, 64);
    if (!bytes || !x->n_vectors[p->c->rank]) return;
    unsigned char *to = comm_send_buffer(p->c);
    const unsigned char *from = (const unsigned char *)x->send + offset;
    /* The last first: they may lie there already, one close behind the other. */
    for (size_t i = x->n_vectors[p->c->rank]; i-- > 0;)
        if (to + i * stride != from + i * x->vector_bytes) memmove(to + i * stride, from + i * x->vector_bytes, bytes);
}

static enum st piece_start(const struct pieces *p, size_t offset, struct err *e) {
    struct comm *c = p->c;
    const struct comm_exchange_add *x = p->x;
    size_t bytes = piece_bytes(p, offset), stride = comm_round_up(bytes, 64), recv_bytes[COMM_MAX_RANKS];
    for (int r = 0; r < c->n_ranks; r++) recv_bytes[r] = x->n_vectors[r] ? (x->n_vectors[r] - 1) * stride + bytes : 0;
    if (!p->runs) put_vectors(p, offset);
    return comm_allgather_start(c, NULL, recv_bytes, p->header, e);
}

static enum st finish(const struct pieces *p, uint64_t *deadline_ns, const void **views, struct comm_header *headers, struct err *e) {
    const struct comm_exchange_add *x = p->x;
    enum st code;
    while ((code = comm_allgather_finish(p->c, *deadline_ns, views, headers, e)) == ST_TIMEOUT && x->extend) {
        uint64_t later_ns = x->extend(x->context);
        if (!later_ns) break;
        *deadline_ns = later_ns;
    }
    return code;
}

static enum st piece_finish(const struct pieces *p, size_t offset, uint64_t *deadline_ns, const void **vectors, struct comm_header *headers,
                            struct err *e) {
    const struct comm_exchange_add *x = p->x;
    const void *views[COMM_MAX_RANKS];
    enum st code = finish(p, deadline_ns, views, headers, e);
    if (code != ST_OK) return code;
    size_t stride = comm_round_up(piece_bytes(p, offset), 64);
    int n = 0;
    for (int r = 0; r < p->c->n_ranks; r++)
        for (size_t i = 0; i < x->n_vectors[r]; i++) vectors[n++] = (const unsigned char *)views[r] + i * stride;
    return ST_OK;
}

bool comm_is_shared(const struct comm *c, size_t send_bytes, size_t scatter_bytes) {
    return c->n_ranks > 2 && c->backend->capabilities.scatters && send_bytes >= (scatter_bytes ? scatter_bytes : COMM_SCATTER_BYTES);
}

/* One of the exchanges of a shared sum: piece i's scatter, or its all-gather. */
struct turn {
    bool gathers;
    size_t offset, bytes; /* of the piece */
    struct comm_shares shares;
};

static struct turn turn_of(const struct pieces *p, size_t k, size_t n_turns) {
    const bool gathers = k && (k % 2 == 0 || k + 1 == n_turns);
    const size_t i = k + 1 == n_turns ? n_turns / 2 - 1 : gathers ? k / 2 - 1 : (k + 1) / 2;
    struct turn t = {.gathers = gathers, .offset = i * p->bytes};
    t.bytes = piece_bytes(p, t.offset);
    t.shares.vector_bytes = comm_round_up(t.bytes, 64);
    memcpy(t.shares.n_vectors, p->x->n_vectors, (size_t)p->c->n_ranks * sizeof *p->x->n_vectors);
    comm_cut_evenly(&t.shares, p->c->n_ranks, 64);
    return t;
}

/* Without what fills a vector up to whole 64 bytes. */
static size_t share_bytes(const struct turn *t, int r) { return smaller(t->shares.begin[r + 1], t->bytes) - smaller(t->shares.begin[r], t->bytes); }

static unsigned char *sum_at(const struct pieces *p, const struct turn *t, int r) { return (unsigned char *)p->x->sum + t->offset + smaller(t->shares.begin[r], t->bytes); }

static enum st turn_start(const struct pieces *p, const struct turn *t, struct err *e) {
    struct comm *c = p->c;
    if (!t->gathers) {
        put_vectors(p, t->offset);
        return comm_scatter_start(c, NULL, &t->shares, p->header, e);
    }
    size_t recv_bytes[COMM_MAX_RANKS];
    for (int r = 0; r < c->n_ranks; r++) recv_bytes[r] = share_bytes(t, r);
    return comm_allgather_start(c, sum_at(p, t, c->rank), recv_bytes, p->header, e);
}

/* With what a turn has brought. */
static void use(const struct pieces *p, const struct turn *t, const void *const *views, const void *const *vectors) {
    const int own = p->c->rank;
    if (!t->gathers && share_bytes(t, own)) p->x->add(p->x->context, (size_t)(sum_at(p, t, own) - (unsigned char *)p->x->sum), share_bytes(t, own), vectors, p->n_vectors);
    for (int r = 0; r < p->c->n_ranks && t->gathers; r++)
        if (r != own && share_bytes(t, r)) memcpy(sum_at(p, t, r), views[r], share_bytes(t, r));
}

static enum st exchange_shares(const struct pieces *p, uint64_t *deadline_ns, struct err *e) {
    const size_t n_turns = 2 * ((p->x->vector_bytes + p->bytes - 1) / p->bytes);
    const void *views[COMM_MAX_RANKS], *vectors[COMM_MAX_VECTORS];
    struct turn now = turn_of(p, 0, n_turns);
    enum st code = turn_start(p, &now, e);
    for (size_t k = 0; k < n_turns && code == ST_OK; k++) {
        code = finish(p, deadline_ns, views, k == 0 ? p->x->headers : NULL, e);
        if (code != ST_OK) break;
        if (!now.gathers) comm_share(p->c, views, vectors);
        const struct turn next = k + 1 < n_turns ? turn_of(p, k + 1, n_turns) : now;
        const bool waits = k + 1 < n_turns && next.gathers && next.offset == now.offset && !now.gathers; /* a sum of one piece: what it sends next is what is added here */
        if (waits) use(p, &now, views, vectors);
        if (k + 1 < n_turns) code = turn_start(p, &next, e);
        if (code == ST_OK && !waits) use(p, &now, views, vectors);
        now = next;
    }
    return code;
}

enum st comm_exchange_and_add(struct comm *c, const struct comm_exchange_add *x, const struct comm_header *header, uint64_t deadline_ns,
                              struct err *e) {
    struct err why;
    struct pieces p = {.c = c, .x = x, .header = header};
    const void *vectors[COMM_MAX_VECTORS];
    enum st code = comm_check_ready(c, e);
    if (code == ST_OK) code = choose_piece(c, x, &p, e);
    if (code != ST_OK) return code;
    if (p.is_shared) {
        code = exchange_shares(&p, &deadline_ns, &why);
        return code == ST_OK ? ST_OK : comm_give_up(c, code, &why, e);
    }

    const bool may_run = c->backend->run && p.bytes < x->vector_bytes, from_here = x->n_vectors[c->rank] == 1 && (uintptr_t)x->send % 64 == 0;
    const struct comm_run run = {.from = from_here ? x->send : NULL, .bytes = x->vector_bytes, .piece_bytes = p.bytes, .header = *header};
    p.runs = may_run && c->backend->run(c, &run);
    code = piece_start(&p, 0, &why);
    if (code == ST_OK) code = piece_finish(&p, 0, &deadline_ns, vectors, x->headers, &why);
    for (size_t offset = 0; code == ST_OK && offset < x->vector_bytes;) {
        size_t bytes = piece_bytes(&p, offset), next = offset + bytes;
        if (next < x->vector_bytes) code = piece_start(&p, next, &why);
        if (code != ST_OK) break;
        x->add(x->context, offset, bytes, vectors, p.n_vectors);
        if (next < x->vector_bytes) code = piece_finish(&p, next, &deadline_ns, vectors, NULL, &why);
        offset = next;
    }
    if (may_run) c->backend->run(c, NULL);
    return code == ST_OK ? ST_OK : comm_give_up(c, code, &why, e);
}

/* ---- top k ------------------------------------------------------------------------------------------------------------------------------------------ */

/* A total order on candidates that are some (a NaN is below all numbers, whatever its sign and payload). */
static bool is_better(const struct comm_candidate *a, const struct comm_candidate *b) {
    bool a_is_nan = a->value != a->value, b_is_nan = b->value != b->value;
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (!a_is_nan && a->value != b->value) return a->value > b->value;
    return a->id < b->id;
}

/* The best k of mine, sorted. They mostly come sorted: then each costs one comparison. */
static int sort_own(const struct comm_candidate *mine, int n, int k, struct comm_candidate *best) {
    int n_best = 0;
    for (int i = 0; i < n; i++) {
        if (mine[i].id < 0) continue;
        int at = n_best;
        while (at > 0 && is_better(&mine[i], &best[at - 1])) at--;
        if (at == k) continue;
        if (n_best < k) n_best++;
        memmove(&best[at + 1], &best[at], (size_t)(n_best - 1 - at) * sizeof *best);
        best[at] = mine[i];
    }
    return n_best;
}

/* Of two sorted lists the best k. theirs ends after n, or before the first that is none. */
static int merge_two(const struct comm_candidate *a, int n_a, const struct comm_candidate *theirs, int n, int k, struct comm_candidate *out) {
    int n_out = 0, i = 0, j = 0;
    while (n_out < k) {
        bool more_a = i < n_a, more_b = j < n && theirs[j].id >= 0;
        if (!more_a && !more_b) break;
        bool take_b = more_b && (!more_a || is_better(&theirs[j], &a[i]));
        out[n_out++] = take_b ? theirs[j++] : a[i++];
    }
    return n_out;
}

enum st comm_top_k(struct comm *c, const struct comm_candidate *mine, int n, int k, const struct comm_header *header, uint64_t deadline_ns,
                   struct comm_candidate *merged, int *n_merged, struct err *e) {
    if (n < 0 || n > COMM_TOP_K_MAX || k < 1 || k > COMM_TOP_K_MAX)
        return err_set(e, ST_INVALID, "comm: the best %d of %d candidates; 1 to %d of at most so many are possible", k, n, COMM_TOP_K_MAX);
    struct comm_candidate own[COMM_TOP_K_MAX], lists[2][COMM_TOP_K_MAX];
    int n_own = sort_own(mine, n, k, own), n_best = 0, now = 0;
    for (int i = n_own; i < k; i++) own[i] = (struct comm_candidate){.id = -1}; /* the others cannot know how many there are */

    /* One exchange where a message holds k candidates, which is nearly always so. A list that goes in several parts is merged part by part. */
    int n_part = (int)smaller((size_t)k, c->max_bytes / sizeof *own);
    for (int at = 0; at < k; at += n_part) {
        int n_now = k - at < n_part ? k - at : n_part;
        size_t recv_bytes[COMM_MAX_RANKS];
        const void *views[COMM_MAX_RANKS] = {NULL};
        for (int r = 0; r < c->n_ranks; r++) recv_bytes[r] = (size_t)n_now * sizeof *own;
        enum st code = comm_allgather(c, own + at, recv_bytes, header, deadline_ns, views, NULL, e);
        if (code != ST_OK) return code;
        for (int r = 0; r < c->n_ranks; r++, now = !now) n_best = merge_two(lists[now], n_best, views[r], n_now, k, lists[!now]);
    }
    memcpy(merged, lists[now], (size_t)n_best * sizeof *merged);
    *n_merged = n_best;
    return ST_OK;
}

/* ---- groups ------------------------------------------------------------------------------------------------------------------------------------------ */

/* What the ranks of the parent tell each other; the hello has made sure that all are of one build. */
struct split_record {
    int64_t color;
    uint64_t max_bytes;
};

struct split {
    struct comm *parent;
    int members[COMM_MAX_RANKS]; /* ranks in the parent, rising */
    int n_members, rank;         /* our group and our place in it; 0 members: none */
    int n_rounds;                /* of boot, made so far */
};

/* A round of boot: all ranks of the parent, the records of our members. As many exchanges as a record needs. */
static enum st boot_round(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    struct split *s = context;
    struct comm *parent = s->parent;
    BASE_ASSERT(bytes <= COMM_BOOT_MAX_BYTES && s->n_rounds < COMM_BOOT_ROUNDS);
    s->n_rounds++;
    unsigned char record[COMM_BOOT_MAX_BYTES] = {0};
    if (bytes) memcpy(record, mine, bytes);
    size_t part_bytes = smaller(parent->max_bytes, sizeof record);
    for (size_t at = 0; at < sizeof record; at += part_bytes) {
        size_t n = smaller(part_bytes, sizeof record - at), recv_bytes[COMM_MAX_RANKS];
        for (int r = 0; r < parent->n_ranks; r++) recv_bytes[r] = n;
        const struct comm_header header = {.step = parent->step};
        const void *views[COMM_MAX_RANKS];
        struct err why;
        enum st code = comm_allgather(parent, record + at, recv_bytes, &header, deadline_ns, views, NULL, &why);
        if (code != ST_OK) return comm_give_up(parent, code, &why, e);
        for (int i = 0; at < bytes && i < s->n_members; i++)
            memcpy((unsigned char *)all + (size_t)i * bytes + at, views[s->members[i]], smaller(n, bytes - at));
    }
    return ST_OK;
}

/* Every rank sees the same records and comes to the same answer. */
static enum st check_records(const struct split_record *records, int n_ranks, struct err *e) {
    for (int r = 0; r < n_ranks; r++) {
        if (records[r].color < 0) continue;
        if (records[r].max_bytes > COMM_LIMIT_BYTES)
            return err_set(e, ST_INVALID, "comm: rank %d wants a group with messages of %llu bytes", r, (unsigned long long)records[r].max_bytes);
        for (int first = 0; first < r; first++) {
            if (records[first].color != records[r].color || records[first].max_bytes == records[r].max_bytes) continue;
            return err_set(e, ST_MISMATCH, "comm: ranks %d and %d want one group (color %lld), but messages of %llu and of %llu bytes", first, r,
                           (long long)records[r].color, (unsigned long long)records[first].max_bytes, (unsigned long long)records[r].max_bytes);
        }
    }
    return ST_OK;
}

static enum st find_members(struct split *s, int color, size_t max_bytes, uint64_t deadline_ns, struct err *e) {
    struct comm *parent = s->parent;
    const struct split_record mine = {.color = color, .max_bytes = max_bytes};
    struct split_record records[COMM_MAX_RANKS];
    size_t recv_bytes[COMM_MAX_RANKS];
    for (int r = 0; r < parent->n_ranks; r++) recv_bytes[r] = sizeof mine;
    const struct comm_header header = {.step = parent->step};
    const void *views[COMM_MAX_RANKS];
    struct err why;
    enum st code = comm_check_ready(parent, e);
    if (code != ST_OK) return code;
    code = comm_allgather(parent, &mine, recv_bytes, &header, deadline_ns, views, NULL, &why);
    if (code != ST_OK) return comm_give_up(parent, code, &why, e);
    for (int r = 0; r < parent->n_ranks; r++) memcpy(&records[r], views[r], sizeof *records);
    code = check_records(records, parent->n_ranks, e);
    if (code != ST_OK || color < 0) return code;
    for (int r = 0; r < parent->n_ranks; r++) {
        if (records[r].color != color) continue;
        if (r == parent->rank) s->rank = s->n_members;
        s->members[s->n_members++] = r;
    }
    return ST_OK;
}

enum st comm_split(struct comm *parent, int color, size_t max_bytes, uint64_t deadline_ns, struct comm **group, struct err *e) {
    struct split s = {.parent = parent};
    enum st code = find_members(&s, color, max_bytes, deadline_ns, e);
    if (code != ST_OK) return code;

    struct comm *opened = NULL;
    if (s.n_members > 0) {
        /* Hosts hold blocks of ranks; so they do in a group. */
        int first_here = 0, n_here = 0;
        for (int i = 0; i < s.n_members; i++) {
            first_here += s.members[i] < parent->first_here;
            n_here += s.members[i] >= parent->first_here && s.members[i] < parent->first_here + parent->n_here;
        }
        const struct comm_boot boot = {.allgather = boot_round, .context = &s};
        const struct comm_setup setup = {
            .backend = s.n_members == 1 ? "self" : parent->backend_name,
            .rank = s.rank,
            .n_ranks = s.n_members,
            .max_bytes = max_bytes,
            .spin_us = parent->spin_us,
            .clock = parent->clock,
            .os = parent->os,
            .memory_fd = -1,
            .boot = &boot,
            .address = parent->address[0] ? parent->address : NULL,
            .key = parent->has_key ? parent->key : NULL,
            .link = parent->has_link ? &parent->link : NULL,
            .first_here = n_here ? first_here : 0,
            .n_here = n_here,
            .deadline_ns = deadline_ns,
        };
        code = comm_open(&setup, &opened, e);
        if (code == ST_OK) comm_link_share_port(opened, parent);
    }
    /* Who needs no boot, or gave up before it, takes part all the same. */
    while (s.n_rounds < COMM_BOOT_ROUNDS) {
        enum st round = boot_round(&s, NULL, 0, NULL, deadline_ns, code == ST_OK ? e : NULL);
        if (code == ST_OK) code = round;
    }
    if (code != ST_OK) {
        comm_close(opened);
        return code;
    }
    *group = opened;
    return ST_OK;
}

/* ---- from rank to rank ------------------------------------------------------------------------------------------------------------------------------- */

static enum st pass(struct comm *pair, int from, const void *sent, void *received, size_t bytes, uint64_t deadline_ns, struct err *e) {
    if (pair->n_ranks != 2) return err_set(e, ST_INVALID, "comm: send and receive need a group of two, not of %d", pair->n_ranks);
    size_t recv_bytes[2] = {0};
    recv_bytes[from] = bytes;
    const struct comm_header header = {.step = pair->step};
    const void *views[2] = {NULL};
    enum st code = comm_allgather(pair, sent, recv_bytes, &header, deadline_ns, views, NULL, e);
    if (code == ST_OK && received && bytes) memcpy(received, views[from], bytes);
    return code;
}

enum st comm_send(struct comm *pair, const void *data, size_t bytes, uint64_t deadline_ns, struct err *e) {
    return pass(pair, pair->rank, data, NULL, bytes, deadline_ns, e);
}

enum st comm_receive(struct comm *pair, void *data, size_t bytes, uint64_t deadline_ns, struct err *e) {
    return pass(pair, !pair->rank, NULL, data, bytes, deadline_ns, e);
}
