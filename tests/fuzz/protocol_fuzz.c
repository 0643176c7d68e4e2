/* Hostile bytes as rank 0 receives them: through a socket into the inbox, each frame that comes out into a small scheduler, and a step of it now and then.
 *
 * The first byte says how: bit 0 the other end hangs up after the last byte, bits 1–2 the size of the pieces in which the bytes come, bit 3 steps only when all have come, bits 4–7 the
 * scheduler's shape. The rest is the stream. At the end everything is cancelled, and every block has come back. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/schedule.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { VOCAB = 64, MAX_SLOTS = 4, MAX_CHUNK = 16 };

static void check_blocks(const struct rt_cache *c)
{
    bool seen[64] = {false};
    int32_t n = 0;
    BASE_ASSERT(c->n_blocks <= 64);
    for (int32_t i = 0; i < c->n_free; i++, n++) {
        BASE_ASSERT(!seen[c->free_blocks[i]]);
        seen[c->free_blocks[i]] = true;
    }
    for (int slot = 0; slot < c->n_slots; slot++)
        for (int32_t i = 0; i < c->n_used[slot]; i++, n++) {
            const int32_t block = c->table[(size_t)slot * c->stride + (size_t)i];
            BASE_ASSERT(!seen[block]);
            seen[block] = true;
        }
    BASE_ASSERT(n == c->n_blocks);
}

static void free_done(struct rt_schedule *s)
{
    for (int i = 0; i < s->n_slots; i++)
        if (s->sequences[i].state == RT_SEQ_DONE)
            rt_schedule_free(s, i);
    check_blocks(&s->cache);
}

/* One step, as the executor would read it. */
static void run_step(struct rt_schedule *s)
{
    if (!rt_schedule_has_work(s))
        return;
    rt_schedule_next(s);
    const struct rt_desc *d = &s->desc;
    const struct kern_batch *b = &d->batch;
    BASE_ASSERT(b->n_tokens >= 1 && b->n_tokens <= s->chunk && b->n_runs >= 1 && b->n_runs <= s->n_slots && d->n_rows <= b->n_tokens);
    int at = 0;
    for (int run = 0; run < b->n_runs; run++) {
        BASE_ASSERT(b->run_begin[run] == at && b->run_tokens[run] >= 1);
        for (int i = 0; i < b->run_tokens[run]; i++, at++) {
            BASE_ASSERT(d->ids[at] >= 0 && d->ids[at] < VOCAB && d->position[at] >= 0 && d->position[at] < s->context);
            BASE_ASSERT(d->position[at] / KERN_KV_BLOCK < s->cache.n_used[b->run_table[run]]);
        }
    }
    BASE_ASSERT(at == b->n_tokens);
    struct rt_row_result results[MAX_CHUNK];
    for (int i = 0; i < d->n_rows; i++) {
        const struct rt_row *row = &d->rows[i];
        BASE_ASSERT(row->wants && row->token >= 0 && row->token < b->n_tokens && (!(row->wants & RT_ROW_SCORE) || (row->target >= 0 && row->target < VOCAB)));
        results[i] = (struct rt_row_result){.id = (int32_t)((row->seed + row->position) % VOCAB)};
    }
    rt_schedule_finish(s, results, s->n_steps, s->n_steps + 1);
}

/* What has come: until there is no whole frame, or no hope of one. */
static enum st take_frames(struct rt_inbox *in, struct rt_schedule *s, bool steps)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        struct err e = {""};
        enum st st = rt_inbox_next(in, 0, &kind, &payload, &bytes, &e);
        BASE_ASSERT(st == ST_OK || st == ST_AGAIN || st == ST_INVALID || st == ST_PEER_LOST);
        BASE_ASSERT(st == ST_OK || st == ST_AGAIN || e.text[0]);
        if (st)
            return st;
        BASE_ASSERT(bytes <= RT_FRAME_MAX);
        st = rt_schedule_event(s, kind, payload, bytes, &e);
        BASE_ASSERT(st == ST_OK || (st == ST_INVALID && e.text[0]));
        check_blocks(&s->cache);
        if (steps)
            run_step(s);
        free_done(s);
    }
}

static void cancel_all(struct rt_schedule *s)
{
    for (int i = 0; i < s->n_slots; i++)
        if (s->sequences[i].state != RT_SEQ_FREE) {
            const struct rt_cancel c = {s->sequences[i].request.request};
            BASE_ASSERT(rt_schedule_event(s, RT_CANCEL, &c, sizeof c, NULL) == ST_OK);
        }
    free_done(s);
    BASE_ASSERT(!rt_schedule_has_work(s) && s->cache.n_free == s->cache.n_blocks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes == 0)
        return 0;
    static const size_t pieces[] = {4096, 1, 13, 60000};
    static const int slots[] = {1, 2, 3, MAX_SLOTS}, chunks[] = {1, 3, 8, MAX_CHUNK};
    static const int64_t contexts[] = {1, 40, 96, 100};
    const uint8_t how = *data++;
    bytes--;
    const int shape = how >> 4;
    struct arena a;
    struct rt_schedule s;
    struct rt_inbox in;
    int fds[2];
    BASE_ASSERT(base_arena_init(&a, "fuzz", 0, NULL) == ST_OK && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    BASE_ASSERT(rt_schedule_init(&s, &a, slots[shape & 3], chunks[shape >> 2], contexts[shape & 3], VOCAB, shape & 3 ? 5 : 1, NULL) == ST_OK);
    base_arena_freeze(&a);
    rt_inbox_init(&in, fds[1]);
    enum st st = ST_AGAIN;
    const size_t piece = pieces[how >> 1 & 3];
    for (size_t at = 0; at < bytes && st == ST_AGAIN;) {
        const ssize_t n = send(fds[0], data + at, piece < bytes - at ? piece : bytes - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        BASE_ASSERT(n > 0 || errno == EAGAIN); /* the inbox takes all there is, so there is always room */
        at += n > 0 ? (size_t)n : 0;
        st = take_frames(&in, &s, !(how & 8));
    }
    if (how & 1) {
        shutdown(fds[0], SHUT_WR);
        if (st == ST_AGAIN)
            st = take_frames(&in, &s, true);
        BASE_ASSERT(st == ST_INVALID || st == ST_PEER_LOST);
    }
    for (int i = 0; i < 1000 && rt_schedule_has_work(&s); i++) {
        run_step(&s);
        free_done(&s);
    }
    cancel_all(&s);
    rt_inbox_release(&in);
    close(fds[0]);
    close(fds[1]);
    base_arena_release(&a);
    return 0;
}
