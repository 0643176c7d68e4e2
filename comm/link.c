/* The emulated link: a wire between ranks of one machine that is as slow as the one that was asked for. It wraps any backend.
 *
 * The one idea: the bytes take the backend's way, at once and without a copy more than the backend makes; only their hand-out is held back, until the clock
 * passes the moment at which they would have arrived. Each message carries a stamp that says when its sender began and when its port was free,
 * behind the payload at the next 64 bytes (COMM_TRAILER_BYTES), so that views are still the backend's and begin where they did.
 *
 * The model. Every rank has one full-duplex port to an ideal switch (between two ranks: a cable).
 *   egress   rank s sends its copies to s+1, s+2, … s−1 (modulo n), one behind the other, bytes ÷ rate each, from the beginning of the exchange or, if later,
 *            from when all earlier traffic of the port has left. In this order, if all begin together, no two copies meet at a receiver.
 *   wire     delay + jitter later the first byte is at the receiver's port. Jitter is 0 … jitter_ns by Philox, keyed by the seed, from (exchange, sender,
 *            receiver): anybody can compute it, and a run repeats it.
 *   ingress  the receiver's port takes one message at a time, by arrival of their first bytes (ties: the lower rank first), exchange by exchange. An idle port
 *            adds nothing: it receives while the sender sends. Arrival is the last byte's.
 * Bytes are payload: headers and frames are left out, so that effective figures are what was asked for. A message of 0 bytes takes the delay.
 * An exchange is handed out when the last message has arrived; ST_AGAIN before, so that deadlines, spinning and sleeping are comm.c's as ever.
 *
 * Events leave through rank 0's port like messages, before any exchange that begins later, without jitter and past the receiver's ingress (they are few): so an
 * event is never later than an exchange whose header announces it. A stamp goes before each as an event of its own. An event that was refused
 * (ST_AGAIN) after its stamp had gone counts from the first attempt.
 *
 * Clocks. A stamp is compared with the receiver's clock: the ranks share CLOCK_MONOTONIC, hence one machine; so the wrapped backend no longer says that it
 * crosses hosts. A stamp from the future is a broken peer. One that asks for a wait of years is a wait until the caller's deadline.
 *
 * The machine is not free: a memcpy, a late wake-up, a slow socket may take longer than the link would. That is told, not hidden (comm_link_totals): link_ns
 * is what the exchanges would have taken on the link alone, late_ns what this machine took beyond it. So where bytes ÷ link_ns is the rate the link gave,
 * bytes ÷ (link_ns + late_ns) is what the ranks saw: "limited by this machine: X of 25 GB/s".
 *
 * Precision: a nap ends some 60 µs late (timer slack, the scheduler), so naps end 120 µs early; then comm.c and link_sleep look at the clock until 4 µs before
 * the arrival, and the last stretch is a loop over nothing but the clock. It ends when the caller, whose next look at the clock takes as long as any, cannot find it before the
 * arrival: else every exchange would be late by one look, 2 % of 2 us. Without CPUs to spare (spin_us 0) it is sched_yield instead, and less exact. */
#include <ctype.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "comm/comm_priv.h"

#define MIN_BITS_PER_S 1.0
#define MAX_BITS_PER_S 1e15
#define MAX_LATE_NS (10 * BASE_NS_PER_S) /* of delay and jitter: far below an exchange's deadline */
#define NEVER_NS (1ull << 60)            /* 36 years */

#define NAP_LEAD_NS (120 * BASE_NS_PER_US)
#define SHORTEST_NAP_NS (30 * BASE_NS_PER_US)
#define LAST_NS (4 * BASE_NS_PER_US)
/* A clock that stands still must not hold us: looks at it (20 ns each, or more), at least what the stretch takes. */
#define MAX_LAST_LOOKS 400
#define MAX_NEAR_LOOKS 8000
/* Clocks of two CPUs may differ by less than this. */
#define SKEW_NS BASE_NS_PER_MS
/* A header's sent_ns is taken for the beginning if it is not older. */
#define MAX_TOLD_NS (100 * BASE_NS_PER_US)
/* Reading a clock is no lateness. */
#define ON_TIME_NS 100
#define MAX_LOOK_NS 60
#define N_LOOKS_TIMED 100

/* Behind the payload: 0 begun 8 · 8 departs 8 · 16 payload bytes 8 · 24 digest of the link 8. Before an event, as an event of its own, the same. */
struct stamp {
    uint64_t begun_ns;
    uint64_t departs_ns; /* when the first byte of the first copy leaves */
    uint64_t bytes;
    uint64_t link;
};
_Static_assert(sizeof(struct stamp) <= COMM_TRAILER_BYTES, "the stamp fits into the trailer");

struct port {
    uint64_t egress_free_ns, ingress_free_ns;
};

struct link {
    struct comm comm;
    struct comm_backend table; /* the inner one's capabilities, our functions */
    struct comm *inner;
    double ns_per_byte;
    uint64_t digest;
    struct port own_port, *port;
    struct comm_link_totals totals;
    uint64_t look_ns;       /* what a look at the clock takes at least */
    uint64_t wait_until_ns; /* what the last ST_AGAIN waits for; 0: for the backend */

    /* the exchange begun */
    uint64_t begun_ns, started_ns; /* allgather_start: entered, left */
    uint64_t asked_ns;             /* first test; 0: none yet */
    bool is_there;                 /* the bytes are; then: */
    uint64_t due_ns;
    int last; /* the rank whose message arrives last */
    const void *views[COMM_MAX_RANKS];
    struct comm_header headers[COMM_MAX_RANKS];
    uint64_t finished_ns; /* of the exchange before */

    bool is_stamped; /* rank 0: the stamp of the next event was posted */
    bool has_event;  /* others: the next event's stamp was read */
    uint64_t event_due_ns;
};

/* ---- as text ------------------------------------------------------------------------------------------------------------------------------------- */

struct unit {
    const char *name;
    double factor;
};
/* Larger ones first, for printing. */
static const struct unit rates[] = {{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}};
static const struct unit times[] = {{"ms", 1e6}, {"us", 1e3}, {"ns", 1}};
#define N_RATES ((int)(sizeof rates / sizeof *rates))
#define N_TIMES ((int)(sizeof times / sizeof *times))
#define UNLIMITED "unlimited" /* the rate of a link that has none: bits_per_s 0 */

#define RIGHT_FORM "a link is given as RATE,DELAY[,jitter=TIME][,seed=NUMBER], for instance 200gbit,2.5us,jitter=500ns"
#define MAX_TEXT 256

static enum st refuse(struct err *e, const char *what, const char *part) {
    char shown[41] = "";
    for (size_t i = 0; i < sizeof shown - 1 && part[i]; i++) shown[i] = (char)(isprint((unsigned char)part[i]) ? part[i] : '?');
    return err_set(e, ST_INVALID, "link: '%s': %s; " RIGHT_FORM, shown, what);
}

/* "200gbit", in lower case and without blanks: digits with at most one point, then a unit. Not strtod's own idea of a number (inf, 0x1p9, 1e9, −1). */
static const char *parse_quantity(const char *text, const struct unit *units, int n_units, double *value) {
    size_t n_digits = strspn(text, "0123456789"), n = n_digits;
    if (text[n] == '.') {
        size_t n_more = strspn(text + n + 1, "0123456789");
        n_digits += n_more;
        n += 1 + n_more;
    }
    if (n_digits == 0) return "a positive number should come first";
    if (!text[n]) return "the unit is missing";
    for (int i = 0; i < n_units; i++) {
        if (strcmp(text + n, units[i].name) != 0) continue;
        char number[MAX_TEXT];
        memcpy(number, text, n);
        number[n] = 0;
        *value = strtod(number, NULL) * units[i].factor;
        return NULL;
    }
    return units == rates ? "the unit should be bit, kbit, mbit or gbit" : "the unit should be ns, us or ms";
}

static enum st parse_rate(const char *text, double *bits_per_s, struct err *e) {
    if (strcmp(text, UNLIMITED) == 0) {
        *bits_per_s = 0;
        return ST_OK;
    }
    double value = 0;
    const char *wrong = parse_quantity(text, rates, N_RATES, &value);
    if (wrong) return refuse(e, wrong, text);
    if (!(value >= MIN_BITS_PER_S && value <= MAX_BITS_PER_S)) return refuse(e, "the rate should be 1bit to 1000000gbit per second", text);
    *bits_per_s = value;
    return ST_OK;
}

static enum st parse_time(const char *text, uint64_t *ns, struct err *e) {
    double value = 0;
    const char *wrong = parse_quantity(text, times, N_TIMES, &value);
    if (wrong) return refuse(e, wrong, text);
    if (!(value <= (double)MAX_LATE_NS)) return refuse(e, "the time should be at most 10000ms", text);
    *ns = (uint64_t)llround(value);
    return ST_OK;
}

static enum st parse_seed(const char *text, uint64_t *seed, struct err *e) {
    uint64_t value = 0;
    size_t n = strspn(text, "0123456789");
    if (n == 0 || text[n]) return refuse(e, "the seed should be a whole number", text);
    for (size_t i = 0; i < n; i++) {
        uint64_t digit = (uint64_t)(text[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) return refuse(e, "the seed should fit into 64 bits", text);
        value = value * 10 + digit;
    }
    *seed = value;
    return ST_OK;
}

enum st comm_link_parse(const char *text, struct comm_link *link, struct err *e) {
    char parts[MAX_TEXT + 1]; /* lower case, no blanks; commas become ends */
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        if (isspace((unsigned char)*p)) continue;
        if (n == MAX_TEXT - 1) return refuse(e, "this is too long", text);
        parts[n++] = (char)tolower((unsigned char)*p);
    }
    parts[n] = parts[n + 1] = 0;
    if (n == 0) return refuse(e, "nothing is given", text);

    struct comm_link read = {0};
    bool has_jitter = false, has_seed = false;
    int i_part = 0;
    for (char *part = parts, *end; part <= parts + n; part = end + 1, i_part++) {
        end = part + strcspn(part, ",");
        *end = 0;
        enum st code = ST_OK;
        if (i_part == 0)
            code = parse_rate(part, &read.bits_per_s, e);
        else if (i_part == 1)
            code = parse_time(part, &read.delay_ns, e);
        else if (strncmp(part, "jitter=", 7) == 0 && !has_jitter)
            code = parse_time(part + 7, &read.jitter_ns, e), has_jitter = true;
        else if (strncmp(part, "seed=", 5) == 0 && !has_seed)
            code = parse_seed(part + 5, &read.seed, e), has_seed = true;
        else if (strncmp(part, "jitter=", 7) == 0 || strncmp(part, "seed=", 5) == 0)
            code = refuse(e, "this is given twice", part);
        else
            code = refuse(e, "only jitter= and seed= may follow", part);
        if (code != ST_OK) return code;
    }
    if (i_part < 2) return refuse(e, "the delay is missing", parts);
    *link = read;
    return ST_OK;
}

/* In the largest unit of which there is one at least, in as few digits as read back to the same. */
static void print_quantity(double value, const struct unit *units, int n_units, char text[32]) {
    for (int i = 0; i < n_units; i++) {
        if (value < units[i].factor && i + 1 < n_units) continue;
        for (int n_digits = 1; n_digits <= 17; n_digits++) {
            snprintf(text, 32, "%.*g", n_digits, value / units[i].factor);
            if (!strchr(text, 'e') && strtod(text, NULL) * units[i].factor == value) {
                snprintf(text + strlen(text), 32 - strlen(text), "%s", units[i].name);
                return;
            }
        }
    }
}

void comm_link_print(const struct comm_link *link, char text[128]) {
    char rate[32] = UNLIMITED, delay[32] = "0ns", jitter[32] = "0ns";
    if (link->bits_per_s != 0) print_quantity(link->bits_per_s, rates, N_RATES, rate);
    print_quantity((double)link->delay_ns, times, N_TIMES, delay);
    print_quantity((double)link->jitter_ns, times, N_TIMES, jitter);
    int n = snprintf(text, 128, "%s,%s", rate, delay);
    if (link->jitter_ns) n += snprintf(text + n, 128 - (size_t)n, ",jitter=%s", jitter);
    if (link->seed) snprintf(text + n, 128 - (size_t)n, ",seed=%llu", (unsigned long long)link->seed);
}

/* ---- the model ----------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t later_of(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t over(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }
static uint64_t plus(uint64_t ns, uint64_t more_ns) { return ns > UINT64_MAX - more_ns ? UINT64_MAX : ns + more_ns; }

static uint64_t transfer_ns(const struct link *l, uint64_t bytes) {
    double ns = (double)bytes * l->ns_per_byte;
    return ns < (double)NEVER_NS ? (uint64_t)llround(ns) : NEVER_NS;
}

/* How many of sender's copies leave before that to receiver; to itself: all. */
static int copies_before(const struct link *l, int sender, int receiver) { return (receiver - sender - 1 + l->comm.n_ranks) % l->comm.n_ranks; }

/* Of the exchange begun: a rank's message as it lies in its buffer, and what it sends of it. */
static uint64_t buffer_bytes(const struct link *l, int sender) { return l->comm.is_scatter ? comm_vectors_bytes(&l->comm.shares, sender) : l->comm.recv_bytes[sender]; }
static uint64_t sent_bytes(const struct link *l, int sender, int receiver) {
    return l->comm.is_scatter ? comm_scattered_bytes(&l->comm.shares, sender, receiver) : l->comm.recv_bytes[sender];
}
static uint64_t sent_before(const struct link *l, int sender, int receiver) {
    uint64_t bytes = 0;
    for (int i = 0; i < copies_before(l, sender, receiver); i++) bytes += sent_bytes(l, sender, (sender + 1 + i) % l->comm.n_ranks);
    return bytes;
}

/* Takes the port for bytes, all that is sent. */
static uint64_t depart(struct link *l, uint64_t begun_ns, uint64_t bytes) {
    uint64_t departs_ns = later_of(begun_ns, l->port->egress_free_ns);
    l->port->egress_free_ns = plus(departs_ns, transfer_ns(l, bytes));
    return departs_ns;
}

static uint64_t jitter_of(const struct link *l, int sender) {
    if (!l->comm.link.jitter_ns) return 0;
    uint64_t exchange = l->comm.sequence;
    const uint32_t counter[4] = {(uint32_t)exchange, (uint32_t)(exchange >> 32), (uint32_t)sender, (uint32_t)l->comm.rank};
    const uint32_t key[2] = {(uint32_t)l->comm.link.seed, (uint32_t)(l->comm.link.seed >> 32)};
    uint32_t words[4];
    base_philox4x32(counter, key, words);
    return ((uint64_t)words[1] << 32 | words[0]) % (l->comm.link.jitter_ns + 1);
}

static enum st check_stamp(const struct link *l, int sender, struct stamp *stamp, uint64_t now_ns, struct err *e) {
    if (stamp->link != l->digest) return err_set(e, ST_MISMATCH, "rank %d emulates another link than rank %d, or none", sender, l->comm.rank);
    if (stamp->begun_ns > plus(now_ns, SKEW_NS))
        return err_set(e, ST_MISMATCH, "rank %d's clock is %llu us ahead: an emulated link needs ranks of one machine", sender,
                       (unsigned long long)((stamp->begun_ns - now_ns) / BASE_NS_PER_US));
    if (stamp->begun_ns > now_ns) stamp->begun_ns = now_ns;
    stamp->departs_ns = later_of(stamp->departs_ns, stamp->begun_ns);
    return ST_OK;
}

/* All bytes are here. When would they have been? */
static enum st arrive(struct link *l, uint64_t now_ns, struct err *e) {
    struct {
        uint64_t first_ns, bytes;
        int sender;
    } queue[COMM_MAX_RANKS]; /* by arrival at our port */
    int n = 0;
    uint64_t slowest_begun_ns = l->begun_ns;
    for (int s = 0; s < l->comm.n_ranks; s++) {
        if (s == l->comm.rank) continue;
        const uint64_t whole_bytes = buffer_bytes(l, s), bytes = sent_bytes(l, s, l->comm.rank);
        struct stamp stamp;
        memcpy(&stamp, (const unsigned char *)l->views[s] + comm_round_up(whole_bytes, 64), sizeof stamp);
        enum st code = check_stamp(l, s, &stamp, now_ns, e);
        if (code != ST_OK) return code;
        if (stamp.bytes != whole_bytes)
            return err_set(e, ST_MISMATCH, "rank %d sent %llu bytes where %llu are due", s, (unsigned long long)stamp.bytes, (unsigned long long)whole_bytes);
        slowest_begun_ns = later_of(slowest_begun_ns, stamp.begun_ns);
        uint64_t left_ns = plus(stamp.departs_ns, transfer_ns(l, sent_before(l, s, l->comm.rank)));
        uint64_t first_ns = plus(left_ns, l->comm.link.delay_ns + jitter_of(l, s));
        int at = n++;
        for (; at > 0 && queue[at - 1].first_ns > first_ns; at--) queue[at] = queue[at - 1];
        queue[at].first_ns = first_ns;
        queue[at].bytes = bytes;
        queue[at].sender = s;
        l->totals.bytes += bytes;
    }
    l->due_ns = 0;
    for (int i = 0; i < n; i++) {
        uint64_t from_ns = later_of(queue[i].first_ns, l->port->ingress_free_ns);
        uint64_t arrived_ns = plus(from_ns, transfer_ns(l, queue[i].bytes));
        l->port->ingress_free_ns = arrived_ns;
        if (i > 0 && arrived_ns <= l->due_ns) continue;
        l->due_ns = arrived_ns;
        l->last = queue[i].sender;
    }
    /* Here, not at the hand-out, where every nanosecond is too late. */
    l->totals.n_exchanges++;
    l->totals.link_ns += over(l->due_ns, slowest_begun_ns);
    l->totals.held_ns += over(l->due_ns, now_ns);
    return ST_OK;
}

/* The exchange is handed out now: the rest of the account. Time that passed between start and the first test is the caller's own, not the machine's. */
static void note_lateness(struct link *l, uint64_t now_ns) {
    uint64_t due_ns = later_of(l->due_ns, l->begun_ns); /* a message may have arrived before we began */
    uint64_t late_ns = over(l->started_ns, due_ns) + (l->comm.advancing ? 0 : over(now_ns, later_of(l->asked_ns, due_ns)));
    l->totals.late_ns += late_ns;
    l->totals.n_late += late_ns > ON_TIME_NS;
}

/* ---- exchange ------------------------------------------------------------------------------------------------------------------------------------ */

static void *link_send_buffer(struct comm *c) {
    struct comm *inner = ((struct link *)c)->inner;
    return inner->backend->send_buffer(inner);
}

static enum st link_allgather_start(struct comm *c, const void *send, const size_t *recv_bytes, const struct comm_header *header, struct err *e) {
    struct link *l = (struct link *)c;
    struct comm *inner = l->inner;
    uint64_t now_ns = base_now_ns(c->clock);
    /* What the caller says is nearer to when it began, but one header may serve several exchanges. */
    uint64_t told_ns = header->sent_ns;
    bool is_told = told_ns && told_ns <= now_ns && now_ns - told_ns <= MAX_TOLD_NS && told_ns >= l->finished_ns;
    l->begun_ns = is_told ? told_ns : now_ns;
    l->asked_ns = 0;
    l->is_there = false;

    const size_t bytes = recv_bytes[c->rank]; /* in a scatter, too, the whole */
    unsigned char *buffer = inner->backend->send_buffer(inner);
    if (send && send != buffer && bytes) memcpy(buffer, send, bytes);
    const struct stamp stamp = {.begun_ns = l->begun_ns, .departs_ns = depart(l, l->begun_ns, sent_before(l, c->rank, c->rank)), .bytes = bytes, .link = l->digest};
    memcpy(buffer + comm_round_up(bytes, 64), &stamp, sizeof stamp);

    inner->sequence = c->sequence;
    inner->step = c->step;
    inner->begun = true;
    /* What is below moves all of a scatter; only its share takes time here. */
    for (int r = 0; r < c->n_ranks; r++) inner->recv_bytes[r] = comm_round_up(buffer_bytes(l, r), 64) + COMM_TRAILER_BYTES;
    c->packed = 0;
    enum st code = inner->backend->allgather_start(inner, NULL, inner->recv_bytes, header, e);
    l->started_ns = base_now_ns(c->clock);
    return code;
}

static enum st link_allgather_test(struct comm *c, const void **views, struct comm_header *headers, int *missing, struct err *e) {
    struct link *l = (struct link *)c;
    uint64_t now_ns = base_now_ns(c->clock);
    if (!l->asked_ns && !c->advancing) l->asked_ns = now_ns;
    if (!l->is_there) {
        enum st code = l->inner->backend->allgather_test(l->inner, l->views, l->headers, missing, e);
        c->n_moved = l->inner->n_moved;
        l->wait_until_ns = 0;
        if (code != ST_OK) return code;
        l->inner->begun = false;
        now_ns = base_now_ns(c->clock);
        code = arrive(l, now_ns, e);
        if (code != ST_OK) return code;
        l->is_there = true;
    }
    uint64_t last_look_ns = over(l->due_ns, l->look_ns);
    if (c->spin_us && !c->advancing && over(last_look_ns, now_ns) <= LAST_NS)
        for (int i = 0; i < MAX_LAST_LOOKS && now_ns < last_look_ns; i++) now_ns = base_now_ns(c->clock);
    if (now_ns < last_look_ns) {
        l->wait_until_ns = l->due_ns;
        *missing = l->last;
        return ST_AGAIN;
    }
    memcpy(views, l->views, (size_t)c->n_ranks * sizeof *views);
    if (headers) memcpy(headers, l->headers, (size_t)c->n_ranks * sizeof *headers);
    note_lateness(l, now_ns);
    l->finished_ns = later_of(now_ns, l->due_ns);
    return ST_OK;
}

/* ---- events -------------------------------------------------------------------------------------------------------------------------------------- */

static enum st link_event_post(struct comm *c, const void *data, size_t bytes, struct err *e) {
    struct link *l = (struct link *)c;
    struct comm *inner = l->inner;
    if (!l->is_stamped) {
        const struct port before = *l->port;
        uint64_t now_ns = base_now_ns(c->clock);
        const struct stamp stamp = {.begun_ns = now_ns, .departs_ns = depart(l, now_ns, bytes * (uint64_t)(c->n_ranks - 1)), .bytes = bytes, .link = l->digest};
        enum st code = inner->backend->event_post(inner, &stamp, sizeof stamp, e);
        if (code != ST_OK) {
            *l->port = before;
            return code;
        }
        l->is_stamped = true;
    }
    enum st code = inner->backend->event_post(inner, data, bytes, e);
    if (code == ST_OK) l->is_stamped = false;
    return code;
}

static enum st read_event_stamp(struct link *l, struct err *e) {
    struct stamp stamp;
    size_t bytes = 0;
    enum st code = l->inner->backend->event_test(l->inner, &stamp, sizeof stamp, &bytes, e);
    if (code == ST_INVALID || (code == ST_OK && bytes != sizeof stamp)) return err_set(e, ST_MISMATCH, "rank 0's events carry no stamp");
    if (code != ST_OK) return code;
    code = check_stamp(l, 0, &stamp, base_now_ns(l->comm.clock), e);
    if (code != ST_OK) return code;
    uint64_t left_ns = plus(stamp.departs_ns, transfer_ns(l, stamp.bytes * (uint64_t)(copies_before(l, 0, l->comm.rank) + 1)));
    l->event_due_ns = plus(left_ns, l->comm.link.delay_ns);
    l->has_event = true;
    return ST_OK;
}

/* The event stays where it is, in the backend, until it is due. */
static enum st link_event_test(struct comm *c, void *data, size_t capacity, size_t *bytes, struct err *e) {
    struct link *l = (struct link *)c;
    l->wait_until_ns = 0;
    enum st code = l->has_event ? ST_OK : read_event_stamp(l, e);
    if (code != ST_OK) return code;
    if (base_now_ns(c->clock) < l->event_due_ns) {
        l->wait_until_ns = l->event_due_ns;
        return ST_AGAIN;
    }
    code = l->inner->backend->event_test(l->inner, data, capacity, bytes, e);
    if (code == ST_OK) l->has_event = false;
    return code;
}

/* The trailer is counted: all ranks add the same. */
static bool link_divide(struct comm *c, size_t from_bytes) { return comm_divide(((struct link *)c)->inner, from_bytes); }

static enum st link_progress(struct comm *c, struct err *e) {
    struct comm *inner = ((struct link *)c)->inner;
    return inner->backend->progress(inner, e);
}

/* ---- waiting ------------------------------------------------------------------------------------------------------------------------------------- */

static void link_sleep(struct comm *c, uint64_t deadline_ns) {
    struct link *l = (struct link *)c;
    if (!l->wait_until_ns) {
        l->inner->backend->sleep(l->inner, deadline_ns);
        return;
    }
    uint64_t until_ns = l->wait_until_ns < deadline_ns ? l->wait_until_ns : deadline_ns;
    uint64_t now_ns = base_now_ns(c->clock);
    if (now_ns >= until_ns) return;
    if (until_ns - now_ns > NAP_LEAD_NS + SHORTEST_NAP_NS) {
        uint64_t ns = until_ns - now_ns - NAP_LEAD_NS;
        nanosleep(&(struct timespec){.tv_sec = (time_t)(ns / BASE_NS_PER_S), .tv_nsec = (long)(ns % BASE_NS_PER_S)}, NULL);
    } else if (!c->spin_us) {
        sched_yield();
    } else {
        for (int i = 0; i < MAX_NEAR_LOOKS && now_ns + LAST_NS < until_ns; i++) now_ns = base_now_ns(c->clock);
    }
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------------------------- */

static void link_close(struct comm *c) {
    struct link *l = (struct link *)c;
    l->inner->backend->close(l->inner);
    free(l);
}

/* Only for telling links from backends. */
static struct link *link_of(const struct comm *c) { return c->backend->close == link_close ? (struct link *)(uintptr_t)c : NULL; }

enum st comm_link_check(const struct comm_link *link, struct err *e) {
    bool is_rate = link->bits_per_s == 0 || (link->bits_per_s >= MIN_BITS_PER_S && link->bits_per_s <= MAX_BITS_PER_S);
    if (is_rate && link->delay_ns <= MAX_LATE_NS && link->jitter_ns <= MAX_LATE_NS) return ST_OK;
    return err_set(e, ST_INVALID, "link: %g bit/s, a delay of %llu ns, jitter of %llu ns: 1 to 1e15 bit/s and up to 10 s are possible",
                   link->bits_per_s, (unsigned long long)link->delay_ns, (unsigned long long)link->jitter_ns);
}

static uint64_t time_a_look(const struct base_clock *clock) {
    uint64_t least_ns = MAX_LOOK_NS, before_ns = base_now_ns(clock);
    for (int i = 0; i < N_LOOKS_TIMED; i++) {
        uint64_t now_ns = base_now_ns(clock);
        if (now_ns - before_ns < least_ns) least_ns = now_ns - before_ns;
        before_ns = now_ns;
    }
    return least_ns;
}

enum st comm_link_wrap(struct comm **c, struct err *e) {
    struct link *l = calloc(1, sizeof *l);
    if (!l) return err_set(e, ST_NO_MEMORY, "link: no memory");
    struct comm *inner = *c;
    l->comm = *inner;
    l->inner = inner;
    l->ns_per_byte = l->comm.link.bits_per_s > 0 ? 8e9 / l->comm.link.bits_per_s : 0;
    char text[128];
    comm_link_print(&l->comm.link, text);
    l->digest = base_hash64(text, strlen(text), 0);
    l->port = &l->own_port;
    l->look_ns = time_a_look(l->comm.clock);
    l->table = (struct comm_backend){
        .capabilities = inner->backend->capabilities,
        .priority = inner->backend->priority,
        .close = link_close,
        .send_buffer = link_send_buffer,
        .allgather_start = link_allgather_start,
        .allgather_test = link_allgather_test,
        .event_post = link_event_post,
        .event_test = link_event_test,
        .divide = link_divide,
        .progress = inner->backend->progress ? link_progress : NULL,
        .sleep = link_sleep,
    };
    l->table.capabilities.crosses_hosts = false;
    l->table.capabilities.scatters = true;
    l->comm.backend = &l->table;
    *c = &l->comm;
    return ST_OK;
}

void comm_link_share_port(struct comm *group, const struct comm *parent) {
    struct link *g = link_of(group), *p = link_of(parent);
    if (g && p) g->port = p->port;
}

void comm_link_query(const struct comm *c, struct comm_link_totals *totals) {
    const struct link *l = link_of(c);
    *totals = l ? l->totals : (struct comm_link_totals){0};
}
