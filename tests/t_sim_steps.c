#include <netinet/in.h>
#include <string.h>

#include "base/arena.h"
#include "base/rng.h"
#include "runtime/schedule.h"
#include "tests/t_sim_priv.h"

enum { MAX_FRAMES = 16, MAX_PROMPT = 20, N_SLOTS = 3, CHUNK = 9, CONTEXT = 64, VOCABULARY = 1000, N_BLOCKS = 8 };
#define GAP_NS (100 * BASE_NS_PER_MS)

/* What the front end sends; the last is RT_STOP. */
static struct frame {
    enum rt_frame_kind kind;
    uint32_t request, n;
    uint64_t gap_ns;
} frames[MAX_FRAMES];

static int n_frames;
static void add_frame(enum rt_frame_kind kind, uint32_t request, uint32_t n) {
    frames[n_frames] = (struct frame){.kind = kind, .request = request, .n = n};
    n_frames++;
}

int t_sim_draw_frames(struct base_rng *rng) {
    const uint32_t n_requests = 1 + base_rng_below(rng, 5);
    n_frames = 0;
    for (uint32_t i = 0; i < n_requests; i++) {
        const uint32_t n_prompt = base_rng_below(rng, MAX_PROMPT); /* a request without a prompt is refused, by all ranks alike */
        add_frame(RT_REQUEST, i, n_prompt);
        add_frame(RT_IDS, i, n_prompt);
        if (base_rng_below(rng, 5) == 0) add_frame(RT_CANCEL, base_rng_below(rng, n_requests), 0);
    }
    add_frame(RT_STOP, 0, 0);
    for (int i = 0; i < n_frames; i++) frames[i].gap_ns = base_rng_below(rng, 4) ? 0 : base_rng_below(rng, GAP_NS);
    return n_frames;
}

static int32_t id_at(uint32_t request, uint32_t position) { return (int32_t)(mix(play.seed ^ ((uint64_t)request << 32 | position)) % VOCABULARY); }

static size_t put_frame(const struct frame *f, unsigned char *payload) {
    if (f->kind == RT_REQUEST) {
        const struct rt_request request = {
            .request = f->request, .n_prompt = f->n, .max_new = 1 + (uint32_t)(mix(f->request + play.seed) % 12), .seed = f->request};
        memcpy(payload, &request, sizeof request);
        return sizeof request;
    }
    if (f->kind == RT_IDS) {
        const struct rt_ids_head head = {.request = f->request, .n = f->n};
        memcpy(payload, &head, sizeof head);
        for (uint32_t i = 0; i < f->n; i++) {
            const int32_t id = id_at(f->request, i);
            memcpy(payload + sizeof head + i * sizeof id, &id, sizeof id);
        }
        return sizeof head + f->n * sizeof(int32_t);
    }
    if (f->kind == RT_CANCEL) {
        const struct rt_cancel cancel = {.request = f->request};
        memcpy(payload, &cancel, sizeof cancel);
        return sizeof cancel;
    }
    return 0;
}

/* Of one rank. Counters are of this loop's events. */
struct server {
    struct rank *k;
    int rank;
    struct rt_schedule schedule;
    struct rt_row_result results[CHUNK];
    uint32_t n_issued, n_applied;
    uint64_t due_ns; /* rank 0: when the next frame comes */
    uint32_t n_refused;
};

/* Rank 0: issues what the front end has sent by now, never more than it can post. */
static enum st issue(struct server *v) {
    while (v->n_issued < (uint32_t)play.n_frames && comm_sim_now_ns(play.s) >= v->due_ns) {
        const struct frame *f = &frames[v->n_issued];
        const uint32_t word = (uint32_t)f->kind;
        memcpy(v->k->event, &word, sizeof word);
        const size_t bytes = sizeof word + put_frame(f, v->k->event + sizeof word);
        if (play.n_ranks > 1) {
            const enum st st = comm_event_post(v->k->comm, v->k->event, bytes, &v->k->e);
            if (st) return st == ST_AGAIN ? ST_OK : st;
        }
        if (++v->n_issued < (uint32_t)play.n_frames) v->due_ns = comm_sim_now_ns(play.s) + frames[v->n_issued].gap_ns;
    }
    return ST_OK;
}

static enum st apply(struct server *v, enum rt_frame_kind kind, const void *payload, size_t bytes) {
    struct err why;
    v->n_applied++;
    v->n_refused += rt_schedule_event(&v->schedule, kind, payload, bytes, &why) != ST_OK;
    return ST_OK;
}

static enum st apply_next(struct server *v) {
    if (v->rank == 0) {
        const struct frame *f = &frames[v->n_applied];
        return apply(v, f->kind, v->k->event, put_frame(f, v->k->event));
    }
    size_t bytes;
    enum st st;
    while ((st = comm_event_next(v->k->comm, v->k->event, COMM_EVENT_MAX_BYTES, &bytes, t_sim_in_ns(v->rank, BASE_NS_PER_S), &v->k->e)) == ST_AGAIN) {
        v->k->progress++;
        if (comm_sim_is_dead(play.s, v->rank)) return ST_CANCELLED;
    }
    if (st) return st;
    uint32_t kind;
    if (bytes < sizeof kind) return t_sim_wrong(v->k, "an event is too short");
    memcpy(&kind, v->k->event, sizeof kind);
    return apply(v, (enum rt_frame_kind)kind, v->k->event + sizeof kind, bytes - sizeof kind);
}

static enum st free_done(struct server *v) {
    for (int i = 0; i < N_SLOTS; i++) {
        const struct rt_sequence *q = &v->schedule.sequences[i];
        if (q->state != RT_SEQ_DONE) continue;
        for (uint32_t at = 0; at < q->n_ids; at++)
            if (q->ids[at] != id_at(q->request.request, at)) return t_sim_wrong(v->k, "a sequence has other tokens");
        if (q->reason == RT_LENGTH && q->n_new != q->request.max_new) return t_sim_wrong(v->k, "a sequence has not its length");
        v->k->n_done++;
        rt_schedule_free(&v->schedule, i);
    }
    return ST_OK;
}

/* What all ranks must have before them in a step. */
static uint64_t digest_of(const struct rt_desc *d) {
    uint64_t digest = mix((uint64_t)d->batch.n_tokens << 32 | (uint32_t)d->n_rows);
    for (int i = 0; i < d->batch.n_tokens; i++) digest = mix(digest ^ ((uint64_t)(uint32_t)d->ids[i] << 32 | (uint32_t)d->position[i]));
    for (int i = 0; i < d->n_rows; i++)
        digest = mix(digest ^ d->rows[i].wants ^ (uint64_t)d->rows[i].position << 8 ^ (uint64_t)d->rows[i].slot << 48);
    return digest;
}

static enum st exchange(struct server *v, struct comm_header *root) {
    const struct comm_header mine = {.step = v->schedule.n_steps, .n_events = v->rank ? 0 : v->n_issued, .token_hash = v->schedule.token_hash};
    const uint64_t digest = digest_of(&v->schedule.desc);
    struct comm_header headers[COMM_MAX_RANKS];
    const void *views[COMM_MAX_RANKS] = {NULL};
    size_t bytes[COMM_MAX_RANKS];
    for (int r = 0; r < play.n_ranks; r++) bytes[r] = sizeof digest;
    enum st st = comm_allgather_start(v->k->comm, &digest, bytes, &mine, &v->k->e);
    if (!st) st = t_sim_finish(v->k, v->k->comm, views, headers);
    if (st) return st;
    for (int r = 0; r < play.n_ranks; r++)
        if (memcmp(views[r], &digest, sizeof digest) != 0 || headers[r].token_hash != mine.token_hash || headers[r].step != mine.step)
            return t_sim_wrong(v->k, "ranks run different steps");
    *root = headers[0];
    return ST_OK;
}

static enum st step(struct server *v) {
    enum st st = v->rank == 0 ? issue(v) : ST_OK;
    if (st) return st;
    rt_schedule_next(&v->schedule);
    v->k->progress++;
    comm_sim_work(play.s, v->rank, mix(v->schedule.n_steps * 8 + (uint64_t)v->rank) % 100000);
    struct comm_header root = {0};
    st = exchange(v, &root);
    if (st) return st;
    const struct rt_desc *d = &v->schedule.desc;
    for (int i = 0; i < d->n_rows; i++) v->results[i].id = id_at((uint32_t)d->rows[i].seed, d->rows[i].position + 1);
    rt_schedule_finish(&v->schedule, v->results, 0, 0);
    st = free_done(v);
    if (!st && play.planted == T_SIM_STALE_EVENTS && v->rank && v->n_applied < (uint32_t)play.n_frames) st = apply_next(v);
    while (!st && v->n_applied != root.n_events) st = apply_next(v);
    return st ? st : free_done(v);
}

static enum st serve(struct server *v) {
    v->due_ns = t_sim_in_ns(v->rank, frames[0].gap_ns);
    for (;;) {
        enum st st = ST_OK;
        if (rt_schedule_has_work(&v->schedule))
            st = step(v);
        else if (v->schedule.stopping)
            return ST_OK;
        else {
            v->k->progress++;
            const uint64_t now_ns = comm_sim_now_ns(play.s);
            if (v->rank == 0 && v->n_applied == v->n_issued && v->due_ns > now_ns) comm_sim_sleep(play.s, v->rank, v->due_ns - now_ns);
            if (v->rank == 0) st = issue(v);
            if (!st && (v->rank || v->n_applied < v->n_issued)) st = apply_next(v);
            if (!st) st = free_done(v);
        }
        if (!st && comm_sim_is_dead(play.s, v->rank)) st = err_set(&v->k->e, ST_CANCELLED, "dead");
        if (st) return st;
    }
}

static enum st meet_all(struct rank *k) {
    const size_t nothing[COMM_MAX_RANKS] = {0};
    const struct comm_header header = {0};
    const void *views[COMM_MAX_RANKS];
    const enum st st = comm_allgather_start(k->comm, NULL, nothing, &header, &k->e);
    return st ? st : t_sim_finish(k, k->comm, views, NULL);
}

enum st t_sim_serve(struct rank *k) {
    struct server v = {.k = k, .rank = (int)(k - play.ranks)};
    struct arena arena;
    /* The program's own events first: all of them lie before an exchange that follows them. */
    t_sim_excuse(k, false);
    enum st st = meet_all(k);
    if (!st) st = t_sim_read_events(k, (uint32_t)play.n_events);
    if (!st) st = base_arena_init(&arena, "schedule", 0, &k->e);
    if (st) return st;
    st = rt_schedule_init(&v.schedule, &arena, N_SLOTS, CHUNK, CONTEXT, VOCABULARY, N_BLOCKS, &k->e);
    base_arena_freeze(&arena);
    if (!st) st = serve(&v);
    k->token_hash = v.schedule.token_hash;
    k->n_steps = v.schedule.n_steps;
    k->n_done += v.n_refused << 16;
    base_arena_release(&arena);
    return st;
}

const char *t_sim_compare_steps(void) {
    const struct rank *first = NULL;
    for (int r = 0; r < play.n_ranks && play.n_frames; r++) {
        const struct rank *k = &play.ranks[r];
        if (!k->finished) continue;
        if (first && (k->token_hash != first->token_hash || k->n_steps != first->n_steps || k->n_done != first->n_done))
            return "ranks have served different steps";
        first = k;
    }
    return NULL;
}

/* ---- a stranger ----------------------------------------------------------------------------------------------------------------------------------------------- */

void t_sim_intrude(int i_task) {
    enum { MAX_OPEN = 100 };
    const struct comm_os *os = comm_sim_os(play.s, i_task);
    struct base_rng rng;
    base_rng_init(&rng, play.seed + 77);
    const uint32_t pause_ns = 1 + base_rng_below(&rng, 1000000), stays = base_rng_below(&rng, 4);
    int fds[MAX_OPEN], n_open = 0;
    for (int i = 0; i < 3 * MAX_OPEN && n_open < MAX_OPEN; i++) {
        comm_sim_sleep(play.s, i_task, base_rng_below(&rng, pause_ns));
        const int port = comm_sim_port(play.s, (int)base_rng_below(&rng, (uint32_t)play.n_ranks));
        if (!port) continue;
        const struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        const int fd = os->socket(os, AF_INET);
        os->connect(os, fd, (const struct sockaddr *)&to, sizeof to);
        comm_sim_sleep(play.s, i_task, base_rng_below(&rng, 4 * pause_ns));
        unsigned char words[128];
        for (size_t k = 0; k < sizeof words; k++) words[k] = (unsigned char)base_rng_u32(&rng);
        if (base_rng_below(&rng, 2)) memcpy(words, "tndmhi01", 8); /* as comm/tcp_connect.c greets, up to the proof */
        if (base_rng_below(&rng, 4)) os->send(os, fd, words, 1 + base_rng_below(&rng, sizeof words));
        if (base_rng_below(&rng, 4) < stays)
            fds[n_open++] = fd;
        else
            os->close(os, fd);
    }
    while (n_open) os->close(os, fds[--n_open]);
}
