/* The scheduler as a pure function of its events. After everything that happens to one here, walk() asserts what must hold of every scheduler: blocks, slots, counters, descriptor.
 * Refused events leave the state as it was, byte for byte; two schedulers with the same events describe the same steps. */
#include "runtime/schedule.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "tests/t.h"

enum { MAX_IDS = 512, SNAPSHOT_BYTES = 1 << 16 };

static struct err e;

static void make(struct rt_schedule *s, struct arena *a, int n_slots, int chunk, int64_t context, int64_t n_blocks)
{
    e = (struct err){""};
    T_OK(base_arena_init(a, "schedule", 0, &e), &e);
    T_OK(rt_schedule_init(s, a, n_slots, chunk, context, 100, n_blocks, &e), &e);
    base_arena_freeze(a); /* nothing allocates from here on */
}

/* ---- what always holds ---------------------------------------------------------------------------------------------------------------------------------- */

static int64_t reserved_tokens(const struct rt_schedule *s, const struct rt_request *r)
{
    const int64_t most = (int64_t)r->n_prompt + r->max_new;
    return most < s->context ? most : s->context;
}

static void walk_cache(const struct rt_cache *c)
{
    static bool seen[4096];
    memset(seen, 0, sizeof seen);
    assert_in_range(c->n_blocks, 1, 4096);
    int32_t n = 0;
    for (int32_t i = 0; i < c->n_free; i++, n++) {
        assert_true(c->free_blocks[i] >= 0 && c->free_blocks[i] < c->n_blocks && !seen[c->free_blocks[i]]);
        seen[c->free_blocks[i]] = true;
    }
    for (int slot = 0; slot < c->n_slots; slot++)
        for (int32_t i = 0; i < c->n_used[slot]; i++, n++) {
            const int32_t block = c->table[(size_t)slot * c->stride + (size_t)i];
            assert_in_range(block, 0, c->n_blocks - 1);
            assert_false(seen[block]);
            seen[block] = true;
        }
    assert_int_equal(n, c->n_blocks);
}

static void walk(const struct rt_schedule *s)
{
    walk_cache(&s->cache);
    for (int i = 0; i < s->n_slots; i++) {
        const struct rt_sequence *q = &s->sequences[i];
        const struct rt_request *r = &q->request;
        if (q->state == RT_SEQ_FREE) {
            assert_int_equal(s->cache.n_used[i], 0);
            continue;
        }
        assert_int_equal(s->cache.n_used[i], (reserved_tokens(s, r) + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK);
        assert_true(q->n_fed <= q->n_ids && q->n_ids <= s->context + 1 && q->n_new <= r->max_new && q->admitted < s->n_admitted);
        assert_true(q->n_fed <= reserved_tokens(s, r)); /* every token that was fed has a block */
        if (q->n_ids < r->n_prompt)
            assert_true(q->n_fed == 0 && q->n_new == 0);
        else
            assert_int_equal(q->n_ids, r->n_prompt + q->n_new);
        if (q->state == RT_SEQ_FILLING)
            assert_true(q->n_ids < r->n_prompt);
        if (q->state == RT_SEQ_RUNNING)
            assert_true(q->n_ids >= r->n_prompt && q->n_fed < q->n_ids);
        for (uint32_t k = 0; k < q->n_ids; k++)
            assert_in_range(q->ids[k], 0, s->vocab - 1);
        for (int j = 0; j < i; j++)
            if (s->sequences[j].state != RT_SEQ_FREE)
                assert_true(s->sequences[j].request.request != r->request && s->sequences[j].admitted != q->admitted);
    }
}

/* The descriptor that was just made. before: tokens fed until then. */
static void walk_step(const struct rt_schedule *s, const uint32_t *before)
{
    const struct rt_desc *d = &s->desc;
    const struct kern_batch *b = &d->batch;
    assert_in_range(b->n_tokens, 1, s->chunk);
    assert_in_range(b->n_runs, 1, s->n_slots);
    assert_true(b->position == d->position && b->block_table == s->cache.table && b->block_table_stride == s->cache.stride);
    int at = 0, n_rows = 0;
    bool decoded = true;
    uint64_t admitted = 0;
    bool in_step[16] = {false};
    for (int run = 0; run < b->n_runs; run++) {
        const int slot = b->run_table[run];
        const struct rt_sequence *q = &s->sequences[slot];
        const struct rt_request *r = &q->request;
        const int n = b->run_tokens[run];
        assert_in_range(slot, 0, s->n_slots - 1);
        assert_true(!in_step[slot] && q->state == RT_SEQ_RUNNING);
        in_step[slot] = true;
        assert_true(b->run_begin[run] == at && n >= 1 && at + n <= b->n_tokens && q->n_fed == before[slot] + (uint32_t)n);
        const bool decodes = before[slot] > 0 && q->n_ids - before[slot] == 1;
        assert_true(run == 0 || decoded > decodes || (decoded == decodes && admitted < q->admitted));
        decoded = decodes;
        admitted = q->admitted;
        for (int i = 0; i < n; i++, at++) {
            const uint32_t position = before[slot] + (uint32_t)i;
            assert_int_equal(d->position[at], position);
            assert_int_equal(d->ids[at], q->ids[position]);
            assert_true((int32_t)(position / KERN_KV_BLOCK) < s->cache.n_used[slot]);
            uint32_t wants = r->flags & RT_WANT_LOGITS ? RT_ROW_LOGITS : 0;
            wants |= r->flags & RT_WANT_SCORES && position >= r->score_from && (uint64_t)position + 1 < r->n_prompt ? RT_ROW_SCORE : 0;
            wants |= position + 1 == q->n_ids && q->n_new < r->max_new ? RT_ROW_SAMPLE : 0;
            if (!wants)
                continue;
            const struct rt_row *row = &d->rows[n_rows++];
            assert_true(n_rows <= d->n_rows && row->token == at && row->slot == slot && row->position == position && row->wants == wants);
            assert_true(row->seed == r->seed && row->temperature == r->temperature);
            if (wants & RT_ROW_SCORE)
                assert_int_equal(row->target, q->ids[position + 1]);
        }
    }
    assert_true(at == b->n_tokens && n_rows == d->n_rows);
    for (int i = 0; i < s->n_slots && at < s->chunk; i++) /* room left: nobody was left out, and nobody is held back */
        assert_true(s->sequences[i].state != RT_SEQ_RUNNING || (in_step[i] && s->sequences[i].n_fed == s->sequences[i].n_ids));
}

/* ---- all that matters, as bytes ------------------------------------------------------------------------------------------------------------------------- */

struct snapshot {
    unsigned char data[SNAPSHOT_BYTES];
    size_t n;
};

static void put(struct snapshot *b, const void *data, size_t n)
{
    assert_true(b->n + n <= sizeof b->data);
    memcpy(b->data + b->n, data, n);
    b->n += n;
}
static void put_u64(struct snapshot *b, uint64_t v) { put(b, &v, sizeof v); }

static void put_state(struct snapshot *b, const struct rt_schedule *s)
{
    const uint64_t counters[] = {s->n_admitted, s->n_steps, s->token_hash, s->stopping, (uint64_t)s->cache.n_free};
    b->n = 0;
    put(b, counters, sizeof counters);
    put(b, s->cache.free_blocks, (size_t)s->cache.n_free * sizeof(int32_t));
    for (int i = 0; i < s->n_slots; i++) {
        const struct rt_sequence *q = &s->sequences[i];
        put_u64(b, q->state);
        if (q->state == RT_SEQ_FREE)
            continue;
        const uint64_t numbers[] = {q->n_ids, q->n_fed, q->n_new, q->admitted, q->reason, (uint64_t)s->cache.n_used[i]};
        put(b, numbers, sizeof numbers);
        put(b, &q->request, sizeof q->request);
        put(b, q->ids, q->n_ids * sizeof(int32_t));
        put(b, s->cache.table + (size_t)i * s->cache.stride, (size_t)s->cache.n_used[i] * sizeof(int32_t));
    }
}

/* Field by field where a struct has holes: what lies in those is nobody's promise. */
static void put_desc(struct snapshot *b, const struct rt_desc *d)
{
    b->n = 0;
    put_u64(b, (uint64_t)d->batch.n_tokens);
    put_u64(b, (uint64_t)d->batch.n_runs);
    put(b, d->ids, (size_t)d->batch.n_tokens * sizeof *d->ids);
    put(b, d->position, (size_t)d->batch.n_tokens * sizeof *d->position);
    put(b, d->run_begin, (size_t)d->batch.n_runs * sizeof *d->run_begin);
    put(b, d->run_tokens, (size_t)d->batch.n_runs * sizeof *d->run_tokens);
    put(b, d->run_table, (size_t)d->batch.n_runs * sizeof *d->run_table);
    for (int run = 0; run < d->batch.n_runs; run++)
        put(b, d->batch.block_table + (size_t)d->run_table[run] * d->batch.block_table_stride, d->batch.block_table_stride * sizeof(int32_t));
    put_u64(b, (uint64_t)d->n_rows);
    for (int i = 0; i < d->n_rows; i++) {
        const struct rt_row *r = &d->rows[i];
        const uint64_t numbers[] = {(uint64_t)r->token, (uint64_t)r->slot, r->position, r->wants, r->seed, (uint64_t)r->target};
        put(b, numbers, sizeof numbers);
        put(b, &r->temperature, sizeof r->temperature);
    }
}

/* ---- events and steps ------------------------------------------------------------------------------------------------------------------------------------ */

/* An event, and what must be true of it anyway: where it is refused, with a sentence, nothing has changed. */
static enum st event(struct rt_schedule *s, enum rt_frame_kind kind, const void *payload, size_t bytes)
{
    static struct snapshot before, after;
    put_state(&before, s);
    e = (struct err){""};
    const enum st st = rt_schedule_event(s, kind, payload, bytes, &e);
    walk(s);
    if (st == ST_OK)
        return st;
    assert_int_equal(st, ST_INVALID);
    assert_true(e.text[0] != 0);
    put_state(&after, s);
    assert_int_equal(before.n, after.n);
    assert_memory_equal(before.data, after.data, before.n);
    return st;
}

static struct rt_request request_of(uint32_t number, uint32_t n_prompt, uint32_t max_new)
{
    return (struct rt_request){.request = number, .n_prompt = n_prompt, .max_new = max_new, .temperature = 0.5f, .seed = 1000 + number};
}

static enum st send_request(struct rt_schedule *s, const struct rt_request *r) { return event(s, RT_REQUEST, r, sizeof *r); }

static enum st send_ids(struct rt_schedule *s, uint32_t request, const int32_t *ids, uint32_t n)
{
    unsigned char frame[sizeof(struct rt_ids_head) + MAX_IDS * sizeof(int32_t)];
    const struct rt_ids_head head = {request, n};
    memcpy(frame, &head, sizeof head);
    memcpy(frame + sizeof head, ids, n * sizeof *ids);
    return event(s, RT_IDS, frame, sizeof head + n * sizeof *ids);
}

static enum st cancel(struct rt_schedule *s, uint32_t request) { return event(s, RT_CANCEL, &(struct rt_cancel){request}, sizeof(struct rt_cancel)); }

/* Prompt token i of every request is i % 90 + 1. */
static enum st send_prompt(struct rt_schedule *s, uint32_t request, uint32_t n)
{
    int32_t ids[MAX_IDS];
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i % 90 + 1);
    return send_ids(s, request, ids, n);
}

static void start(struct rt_schedule *s, const struct rt_request *r)
{
    T_OK(send_request(s, r), &e);
    T_OK(send_prompt(s, r->request, r->n_prompt), &e);
}

static struct rt_sequence *sequence(struct rt_schedule *s, uint32_t request)
{
    for (int i = 0; i < s->n_slots; i++)
        if (s->sequences[i].state != RT_SEQ_FREE && s->sequences[i].request.request == request)
            return &s->sequences[i];
    fail_msg("request %u is in no slot", request);
    return NULL;
}

static void next(struct rt_schedule *s)
{
    uint32_t before[16];
    assert_true(rt_schedule_has_work(s));
    for (int i = 0; i < s->n_slots; i++)
        before[i] = s->sequences[i].n_fed;
    rt_schedule_next(s);
    walk_step(s, before);
}

/* What a model with one thought says. */
static int32_t token_for(const struct rt_row *row) { return (int32_t)((row->seed + row->position) % 90 + 1); }

static void finish(struct rt_schedule *s, uint64_t start_ns, uint64_t now_ns)
{
    struct rt_row_result results[64];
    assert_in_range(s->desc.n_rows, 0, 64);
    for (int i = 0; i < s->desc.n_rows; i++)
        results[i] = (struct rt_row_result){.id = token_for(&s->desc.rows[i])};
    rt_schedule_finish(s, results, start_ns, now_ns);
    walk(s);
}

static void step(struct rt_schedule *s)
{
    next(s);
    finish(s, s->n_steps * 10, s->n_steps * 10 + 5);
}

static int free_done(struct rt_schedule *s)
{
    int n = 0;
    for (int i = 0; i < s->n_slots; i++)
        if (s->sequences[i].state == RT_SEQ_DONE) {
            rt_schedule_free(s, i);
            n++;
        }
    walk(s);
    return n;
}

static void expect_end(struct rt_schedule *s, uint32_t request, enum rt_reason reason, uint32_t n_new)
{
    const struct rt_sequence *q = sequence(s, request);
    assert_int_equal(q->state, RT_SEQ_DONE);
    assert_int_equal(q->reason, reason);
    assert_int_equal(q->n_new, n_new);
}

static void expect_idle(const struct rt_schedule *s)
{
    assert_false(rt_schedule_has_work(s));
    assert_int_equal(s->cache.n_free, s->cache.n_blocks);
    for (int i = 0; i < s->n_slots; i++)
        assert_int_equal(s->sequences[i].state, RT_SEQ_FREE);
}

/* ---- one sequence ------------------------------------------------------------------------------------------------------------------------------------------ */

static void one_request_from_begin_to_end(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 2, 8, 100, 8);
    const struct rt_request r = request_of(7, 19, 3);
    T_OK(send_request(&s, &r), &e);
    assert_false(rt_schedule_has_work(&s)); /* its ids are still on their way */
    T_OK(send_prompt(&s, 7, 10), &e);
    assert_false(rt_schedule_has_work(&s));
    T_OK(send_ids(&s, 7, (int32_t[]){0, 99}, 0), &e); /* none at all: odd, but harmless */
    T_OK(send_prompt(&s, 7, 9), &e);
    assert_true(rt_schedule_has_work(&s));

    static const struct {
        int n_tokens, n_rows, first_position;
    } want[] = {{8, 0, 0}, {8, 0, 8}, {3, 1, 16}, {1, 1, 19}, {1, 1, 20}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        next(&s);
        assert_int_equal(s.desc.batch.n_tokens, want[i].n_tokens);
        assert_int_equal(s.desc.n_rows, want[i].n_rows);
        assert_int_equal(s.desc.position[0], want[i].first_position);
        finish(&s, 100 * (i + 1), 100 * (i + 1) + 50);
    }
    expect_end(&s, 7, RT_LENGTH, 3);
    const struct rt_sequence *q = sequence(&s, 7);
    assert_int_equal(q->n_fed, 21);       /* the last token is known, but was not fed */
    assert_int_equal(q->start_ns, 100);   /* of its first step */
    assert_int_equal(q->first_ns, 350);   /* the end of its prompt */
    assert_int_equal(q->last_ns, 550);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(q->ids[19 + i], (1007 + 18 + i) % 90 + 1);
    assert_int_equal(s.n_steps, 5);
    assert_false(rt_schedule_has_work(&s));
    assert_int_equal(s.cache.n_free, 7); /* kept until it was reported */
    assert_int_equal(free_done(&s), 1);
    expect_idle(&s);
    base_arena_release(&a);
}

static void ends_of_a_sequence(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 1, 16, 40, 2);

    struct rt_request r = request_of(1, 5, 10);
    r.n_ends = 2;
    r.ends[0] = 95;                       /* is never said */
    r.ends[1] = (1001 + 4 + 2) % 90 + 1; /* the third token */
    start(&s, &r);
    for (int i = 0; i < 3; i++)
        step(&s);
    expect_end(&s, 1, RT_ENDED, 3);
    free_done(&s);

    r = request_of(2, 38, UINT32_MAX); /* fills the context: 40 tokens are fed, and one more is said */
    start(&s, &r);
    assert_int_equal(s.cache.n_free, 0);
    for (int i = 0; i < 3 + 2; i++)
        step(&s);
    expect_end(&s, 2, RT_CONTEXT, 3);
    assert_int_equal(sequence(&s, 2)->n_fed, 40);
    free_done(&s);

    r = request_of(3, 40, 1); /* as long as the context: one token can still be said */
    start(&s, &r);
    for (int i = 0; i < 3; i++)
        step(&s);
    expect_end(&s, 3, RT_LENGTH, 1);
    free_done(&s);

    r = request_of(4, 3, 0); /* nothing to say */
    start(&s, &r);
    next(&s);
    assert_int_equal(s.desc.n_rows, 0);
    finish(&s, 1, 2);
    expect_end(&s, 4, RT_LENGTH, 0);
    free_done(&s);

    r = request_of(5, 3, 2); /* an end that is also the last one is an end */
    r.n_ends = 1;
    r.ends[0] = (1005 + 2 + 1) % 90 + 1;
    start(&s, &r);
    step(&s);
    step(&s);
    expect_end(&s, 5, RT_ENDED, 2);
    free_done(&s);
    expect_idle(&s);
    base_arena_release(&a);
}

static void rows_that_are_asked_for(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 1, 16, 64, 2);

    struct rt_request r = request_of(1, 6, 0);
    r.flags = RT_WANT_SCORES;
    r.score_from = 2;
    start(&s, &r);
    next(&s); /* positions 2, 3, 4 know what came after them */
    assert_int_equal(s.desc.n_rows, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(s.desc.rows[i].wants, RT_ROW_SCORE);
        assert_int_equal(s.desc.rows[i].position, 2 + i);
        assert_int_equal(s.desc.rows[i].target, 2 + i + 2);
    }
    finish(&s, 1, 2);
    expect_end(&s, 1, RT_LENGTH, 0);
    free_done(&s);

    r = request_of(2, 3, 2);
    r.flags = RT_WANT_LOGITS | RT_WANT_SCORES | RT_FEED_LAST;
    start(&s, &r);
    next(&s);
    assert_int_equal(s.desc.n_rows, 3);
    assert_int_equal(s.desc.rows[0].wants, RT_ROW_LOGITS | RT_ROW_SCORE);
    assert_int_equal(s.desc.rows[2].wants, RT_ROW_LOGITS | RT_ROW_SAMPLE);
    assert_int_equal(s.desc.rows[2].target, -1);
    finish(&s, 1, 2);
    step(&s);
    assert_int_equal(sequence(&s, 2)->state, RT_SEQ_RUNNING); /* both were said; the last goes in, too */
    next(&s);
    assert_int_equal(s.desc.n_rows, 1);
    assert_int_equal(s.desc.rows[0].wants, RT_ROW_LOGITS);
    finish(&s, 3, 4);
    expect_end(&s, 2, RT_LENGTH, 2);
    assert_int_equal(sequence(&s, 2)->n_fed, 5);
    free_done(&s);

    r = request_of(3, 3, 0);
    r.flags = RT_WANT_SCORES;
    r.score_from = UINT32_MAX; /* behind everything: nothing is scored */
    start(&s, &r);
    next(&s);
    assert_int_equal(s.desc.n_rows, 0);
    finish(&s, 1, 2);
    free_done(&s);

    r = request_of(4, 64, 8); /* fed last, where the context ends before */
    r.flags = RT_FEED_LAST;
    start(&s, &r);
    while (rt_schedule_has_work(&s))
        step(&s);
    expect_end(&s, 4, RT_CONTEXT, 1);
    base_arena_release(&a);
}

/* ---- several ------------------------------------------------------------------------------------------------------------------------------------------------ */

static void prompts_share_a_step(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 4, 16, 128, 16);
    const struct rt_request r[] = {request_of(10, 6, 4), request_of(11, 20, 4), request_of(12, 9, 4)};
    for (int i = 0; i < 3; i++)
        start(&s, &r[i]);
    const struct kern_batch *b = &s.desc.batch;
    next(&s); /* the first whole, the second as far as it goes */
    assert_true(b->n_runs == 2 && b->n_tokens == 16);
    assert_true(b->run_tokens[0] == 6 && b->run_tokens[1] == 10);
    assert_true(b->run_table[0] == 0 && b->run_table[1] == 1 && s.desc.n_rows == 1);
    finish(&s, 1, 2);
    next(&s); /* the first decodes; the second's other half; what is left of the budget to the third */
    assert_true(b->n_runs == 3 && b->n_tokens == 16);
    assert_true(b->run_tokens[0] == 1 && b->run_tokens[1] == 10 && b->run_tokens[2] == 5);
    assert_true(s.desc.n_rows == 2 && s.desc.rows[0].slot == 0 && s.desc.rows[1].slot == 1);
    finish(&s, 3, 4);
    next(&s);
    assert_true(b->n_runs == 3 && b->run_tokens[0] == 1 && b->run_tokens[1] == 1 && b->run_tokens[2] == 4);
    finish(&s, 5, 6);
    while (rt_schedule_has_work(&s))
        step(&s);
    assert_int_equal(free_done(&s), 3);
    expect_idle(&s);
    base_arena_release(&a);
}

/* A late prompt waits behind all who decode, whatever its slot; among prompts the age counts, not the slot. */
static void decoding_goes_first(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 3, 4, 128, 12);
    const struct rt_request first = request_of(1, 2, 1), second = request_of(2, 2, 30), third = request_of(3, 8, 2), fourth = request_of(4, 8, 2);
    start(&s, &first);
    start(&s, &second);
    step(&s);
    expect_end(&s, 1, RT_LENGTH, 1);
    start(&s, &third); /* slot 2 */
    free_done(&s);
    start(&s, &fourth); /* slot 0, but the youngest */
    assert_ptr_equal(sequence(&s, 4), &s.sequences[0]);
    for (int i = 0; i < 2; i++) {
        next(&s);
        assert_true(s.desc.batch.n_runs == 2 && s.desc.batch.run_table[0] == 1 && s.desc.batch.run_table[1] == 2);
        assert_true(s.desc.batch.run_tokens[0] == 1 && s.desc.batch.run_tokens[1] == 3);
        finish(&s, 1, 2);
    }
    next(&s); /* the third's last two, and then the fourth */
    assert_true(s.desc.batch.n_runs == 3 && s.desc.batch.run_table[1] == 2 && s.desc.batch.run_tokens[1] == 2);
    assert_true(s.desc.batch.run_table[2] == 0 && s.desc.batch.run_tokens[2] == 1);
    finish(&s, 1, 2);
    base_arena_release(&a);
}

/* Fewer tokens than sequences: the oldest first, and the others get their turn once those have ended. */
static void a_budget_below_the_number_of_sequences(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 5, 2, 64, 10);
    for (uint32_t i = 0; i < 5; i++) {
        const struct rt_request r = request_of(i, 1 + i % 2, 3);
        start(&s, &r);
    }
    while (rt_schedule_has_work(&s)) {
        step(&s);
        assert_true(s.n_steps < 100);
        free_done(&s);
    }
    assert_int_equal(s.n_steps, 9); /* 7 prompt tokens and 2 more for each of 5: all steps but the last are full */
    expect_idle(&s);
    base_arena_release(&a);
}

static void a_chunk_of_one(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 1, 1, 8, 1);
    const struct rt_request r = request_of(1, 4, 2);
    start(&s, &r);
    for (int i = 0; i < 5; i++)
        step(&s);
    expect_end(&s, 1, RT_LENGTH, 2);
    base_arena_release(&a);
}

/* ---- blocks and slots ------------------------------------------------------------------------------------------------------------------------------------ */

/* All that a request can come to need is kept for it. One that finds too little left is refused (whoever sent it may try again later): it neither waits nor takes a part. */
static void a_full_pool_refuses(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 4, 64, 128, 5);
    const struct rt_request large = request_of(1, 65, 31), small = request_of(2, 32, 32), one = request_of(3, 32, 0), rest = request_of(4, 1, UINT32_MAX);
    start(&s, &large); /* 96 tokens, 3 blocks */
    assert_int_equal(s.cache.n_free, 2);
    t_expect_err_contains(ST_INVALID, send_request(&s, &rest), &e, "request 4: no room in the cache for 128 tokens");
    start(&s, &small); /* 64 tokens, 2 blocks */
    assert_int_equal(s.cache.n_free, 0);
    t_expect_err_contains(ST_INVALID, send_request(&s, &one), &e, "request 3: no room in the cache for 32 tokens");
    T_OK(cancel(&s, 2), &e);
    t_expect_err_contains(ST_INVALID, send_request(&s, &one), &e, "no room"); /* ended, but not reported yet */
    free_done(&s);
    start(&s, &one);
    assert_int_equal(s.cache.n_free, 1);
    while (rt_schedule_has_work(&s))
        step(&s);
    expect_end(&s, 1, RT_LENGTH, 31);
    expect_end(&s, 3, RT_LENGTH, 0);
    free_done(&s);
    expect_idle(&s);
    start(&s, &rest);
    assert_int_equal(s.cache.n_free, 1);
    base_arena_release(&a);
}

static void slots_are_used_again(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 2, 8, 32, 2);
    for (uint32_t i = 0; i < 50; i++) {
        const struct rt_request r[] = {request_of(2 * i, 1 + i % 8, 1 + i % 3), request_of(2 * i + 1, 3, 2), request_of(9999, 1, 1)};
        start(&s, &r[0]);
        start(&s, &r[1]);
        assert_ptr_equal(sequence(&s, 2 * i), &s.sequences[0]);
        t_expect_err_contains(ST_INVALID, send_request(&s, &r[2]), &e, "request 9999: all 2 slots are taken");
        assert_true(s.sequences[0].n_fed == 0 && s.sequences[0].n_new == 0 && s.sequences[0].first_ns == 0);
        while (rt_schedule_has_work(&s))
            step(&s);
        expect_end(&s, 2 * i, RT_LENGTH, 1 + i % 3);
        expect_end(&s, 2 * i + 1, RT_LENGTH, 2);
        free_done(&s);
        expect_idle(&s);
    }
    base_arena_release(&a);
}

static void free_too_early(void *arg) { rt_schedule_free(arg, 0); }

static void a_live_slot_cannot_be_freed(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 1, 8, 32, 1);
    t_expect_assert(free_too_early, &s, "RT_SEQ_DONE");
    const struct rt_request r = request_of(1, 4, 4);
    start(&s, &r);
    t_expect_assert(free_too_early, &s, "RT_SEQ_DONE");
    base_arena_release(&a);
}

/* ---- cancelling -------------------------------------------------------------------------------------------------------------------------------------------- */

static void cancelled_in_every_state(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 2, 8, 64, 4);
    const struct rt_request by = request_of(1, 4, 40), r = request_of(2, 20, 5);
    T_OK(cancel(&s, 2), &e); /* unknown: it may just have ended */
    expect_idle(&s);
    start(&s, &by);
    step(&s);
    enum { NO_IDS, SOME_IDS, BEFORE_ITS_STEP, IN_ITS_PROMPT, DECODING, N_STATES };
    for (int at = NO_IDS; at < N_STATES; at++) {
        T_OK(send_request(&s, &r), &e);
        if (at >= SOME_IDS)
            T_OK(send_prompt(&s, 2, at == SOME_IDS ? 5 : 20), &e);
        for (int i = 0; i < (at < IN_ITS_PROMPT ? 0 : at == IN_ITS_PROMPT ? 1 : 4); i++)
            step(&s);
        T_OK(cancel(&s, 2), &e);
        expect_end(&s, 2, RT_CANCELLED, at == DECODING ? 2 : 0);
        T_OK(cancel(&s, 2), &e); /* twice */
        t_expect_err_contains(ST_INVALID, send_prompt(&s, 2, 1), &e, "request 2: 1 ids that nobody waits for");
        next(&s); /* the other one goes on, alone */
        assert_true(s.desc.batch.n_runs == 1 && s.desc.batch.run_table[0] == 0);
        finish(&s, 1, 2);
        assert_int_equal(free_done(&s), 1);
        assert_int_equal(s.cache.n_free, 2);
    }
    while (rt_schedule_has_work(&s))
        step(&s);
    T_OK(cancel(&s, 1), &e); /* too late: the reason stays */
    expect_end(&s, 1, RT_LENGTH, 40);
    free_done(&s);
    expect_idle(&s);
    base_arena_release(&a);
}

static void all_cancelled_at_once(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 5, 8, 64, 10);
    T_OK(cancel(&s, RT_CANCEL_ALL), &e); /* nobody is there */
    const struct rt_request done = request_of(0, 2, 1), decodes = request_of(1, 2, 9), late = request_of(2, 30, 5), fills = request_of(3, 5, 5);
    start(&s, &done);
    start(&s, &decodes);
    start(&s, &late);
    step(&s);
    T_OK(send_request(&s, &fills), &e);
    T_OK(cancel(&s, RT_CANCEL_ALL), &e);
    expect_end(&s, 0, RT_LENGTH, 1);
    expect_end(&s, 1, RT_CANCELLED, 1);
    expect_end(&s, 2, RT_CANCELLED, 0);
    expect_end(&s, 3, RT_CANCELLED, 0);
    assert_int_equal(free_done(&s), 4);
    expect_idle(&s);
    base_arena_release(&a);
}

static void stop_lets_the_others_end(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 1, 8, 32, 1);
    const struct rt_request r = request_of(1, 4, 4);
    start(&s, &r);
    assert_false(s.stopping);
    T_OK(event(&s, RT_STOP, NULL, 0), &e);
    assert_true(s.stopping && rt_schedule_has_work(&s));
    while (rt_schedule_has_work(&s))
        step(&s);
    expect_end(&s, 1, RT_LENGTH, 4);
    base_arena_release(&a);
}

/* ---- hostile events ------------------------------------------------------------------------------------------------------------------------------------------- */

static void impossible_requests(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 3, 8, 64, 6);
    const struct rt_request good = request_of(1, 4, 4);
    struct rt_request r = good;
    t_expect_err_contains(ST_INVALID, event(&s, RT_REQUEST, &good, sizeof good - 1), &e, "a frame of kind 1 and 103 bytes");
    unsigned char longer[sizeof good + 1] = {0};
    memcpy(longer, &good, sizeof good);
    t_expect_err_contains(ST_INVALID, event(&s, RT_REQUEST, longer, sizeof longer), &e, "a frame of kind 1 and 105 bytes");
    t_expect_err_contains(ST_INVALID, event(&s, RT_REQUEST, NULL, 0), &e, "a frame of kind 1");
    static const uint32_t prompts[] = {0, 65, 0x7fffffff, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        r = good;
        r.n_prompt = prompts[i];
        t_expect_err_contains(ST_INVALID, send_request(&s, &r), &e, "the context is 64");
    }
    static const float temperatures[] = {-0.5f, -INFINITY, NAN};
    for (size_t i = 0; i < sizeof temperatures / sizeof *temperatures; i++) {
        r = good;
        r.temperature = temperatures[i];
        t_expect_err_contains(ST_INVALID, send_request(&s, &r), &e, "request 1: impossible settings");
    }
    for (uint32_t n = RT_MAX_ENDS + 1; n; n *= 2) { /* to the highest bit */
        r = good;
        r.n_ends = n;
        t_expect_err_contains(ST_INVALID, send_request(&s, &r), &e, "request 1: impossible settings");
    }
    r = good;
    r.request = RT_CANCEL_ALL; /* nobody could cancel it alone */
    t_expect_err_contains(ST_INVALID, send_request(&s, &r), &e, "impossible settings");
    expect_idle(&s);
    assert_int_equal(s.n_admitted, 0);

    r = good;
    r.n_ends = RT_MAX_ENDS; /* the most */
    T_OK(send_request(&s, &r), &e);
    t_expect_err_contains(ST_INVALID, send_request(&s, &good), &e, "request 1 is running already");
    T_OK(send_prompt(&s, 1, 4), &e);
    t_expect_err_contains(ST_INVALID, send_request(&s, &good), &e, "request 1 is running already");
    T_OK(cancel(&s, 1), &e);
    t_expect_err_contains(ST_INVALID, send_request(&s, &good), &e, "request 1 is running already"); /* until it was reported */
    free_done(&s);
    T_OK(send_request(&s, &good), &e);
    base_arena_release(&a);
}

static void impossible_ids(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 2, 8, 64, 4);
    const struct rt_request r = request_of(1, 6, 4);
    int32_t ids[] = {1, 2, 3, 4, 5, 6, 7};
    t_expect_err_contains(ST_INVALID, send_ids(&s, 1, ids, 3), &e, "request 1: 3 ids that nobody waits for"); /* before the request */
    T_OK(send_request(&s, &r), &e);
    t_expect_err_contains(ST_INVALID, send_ids(&s, 2, ids, 3), &e, "request 2: 3 ids");
    t_expect_err_contains(ST_INVALID, send_ids(&s, 1, ids, 7), &e, "request 1: 7 ids"); /* one too many */
    T_OK(send_ids(&s, 1, ids, 2), &e);
    t_expect_err_contains(ST_INVALID, send_ids(&s, 1, ids, 5), &e, "request 1: 5 ids");
    static const int32_t foreign[] = {-1, 100, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        for (int at = 0; at < 4; at++) {
            int32_t bad[] = {9, 9, 9, 9};
            bad[at] = foreign[i];
            t_expect_err_contains(ST_INVALID, send_ids(&s, 1, bad, 4), &e, "the vocabulary has 100");
        }
    /* a head that says another number than there are */
    struct {
        struct rt_ids_head head;
        int32_t ids[4];
    } frame = {{1, 4}, {99, 0, 98, 97}};
    for (size_t bytes = 0; bytes < sizeof frame; bytes++)
        assert_int_equal(event(&s, RT_IDS, &frame, bytes), ST_INVALID);
    static const uint32_t counts[] = {0, 3, 5, 0x3fffffff, 0x40000000, 0x40000004, 0x80000004, UINT32_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        frame.head.n = counts[i];
        t_expect_err_contains(ST_INVALID, event(&s, RT_IDS, &frame, sizeof frame), &e, "that nobody waits for");
    }
    frame.head.n = 4;
    T_OK(event(&s, RT_IDS, &frame, sizeof frame), &e);
    t_expect_err_contains(ST_INVALID, send_ids(&s, 1, ids, 1), &e, "request 1: 1 ids");
    t_expect_err_contains(ST_INVALID, send_ids(&s, 1, ids, 0), &e, "request 1: 0 ids"); /* nobody waits even for none */
    static const int32_t want[] = {1, 2, 99, 0, 98, 97};
    assert_memory_equal(sequence(&s, 1)->ids, want, sizeof want);
    next(&s);
    assert_memory_equal(s.desc.ids, want, sizeof want);
    base_arena_release(&a);
}

static void meaningless_frames(void **state)
{
    (void)state;
    struct arena a;
    struct rt_schedule s;
    make(&s, &a, 1, 8, 64, 2);
    static const unsigned char zeroes[256] = {0};
    static const int64_t kinds[] = {0, 5, RT_READY, RT_TOKEN, RT_LOGITS, RT_SCORE, RT_DONE, RT_FAILED, RT_LEDGER, 99, INT32_MAX, INT32_MIN, -1};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (size_t bytes = 0; bytes <= sizeof zeroes; bytes += 4)
            t_expect_err_contains(ST_INVALID, event(&s, (enum rt_frame_kind)kinds[i], zeroes, bytes), &e, "means nothing here");
    for (size_t bytes = 0; bytes <= 16; bytes++)
        if (bytes != sizeof(struct rt_cancel))
            t_expect_err_contains(ST_INVALID, event(&s, RT_CANCEL, zeroes, bytes), &e, "means nothing here");
    for (size_t bytes = 0; bytes < sizeof(struct rt_ids_head); bytes++)
        t_expect_err_contains(ST_INVALID, event(&s, RT_IDS, zeroes, bytes), &e, "means nothing here");
    t_expect_err_contains(ST_INVALID, event(&s, RT_STOP, zeroes, 1), &e, "means nothing here");
    expect_idle(&s);
    assert_false(s.stopping);
    base_arena_release(&a);
}

/* ---- the same on every rank ---------------------------------------------------------------------------------------------------------------------------------- */

static void the_hash_is_of_what_was_said(void **state)
{
    (void)state;
    struct arena a[2];
    struct rt_schedule s[2];
    for (int k = 0; k < 2; k++) {
        make(&s[k], &a[k], 1, 8, 64, 2);
        const struct rt_request r = request_of(1, 4, 8);
        start(&s[k], &r);
        step(&s[k]);
    }
    assert_int_equal(s[0].token_hash, s[1].token_hash);
    assert_true(s[0].token_hash != 0);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 2; k++) {
            next(&s[k]);
            struct rt_row_result result = {.id = token_for(&s[k].desc.rows[0])};
            result.id ^= k == 1 && i == 2; /* another token */
            rt_schedule_finish(&s[k], &result, 1, 2);
            walk(&s[k]);
            if (k)
                assert_true((s[0].token_hash == s[1].token_hash) == (i < 2)); /* and for ever */
        }
    for (int k = 0; k < 2; k++)
        base_arena_release(&a[k]);
}

struct game {
    struct base_rng rng;
    struct arena arena[2];
    struct rt_schedule s[2];
    uint32_t n_requests;
    uint32_t n_accepted, n_refused, n_no_room, n_no_slot, n_mixed, n_shared_prefill, n_cancelled, n_ended[5];
};

static uint32_t below(struct game *g, uint32_t bound) { return base_rng_below(&g->rng, bound); }

/* The same event to both: the same verdict in the same words. */
static enum st both(struct game *g, enum rt_frame_kind kind, const void *payload, size_t bytes)
{
    const enum st first = event(&g->s[0], kind, payload, bytes);
    const struct err said = e;
    assert_int_equal(first, event(&g->s[1], kind, payload, bytes));
    assert_string_equal(said.text, e.text);
    g->n_accepted += first == ST_OK;
    g->n_refused += first != ST_OK;
    g->n_no_room += strstr(said.text, "no room") != NULL;
    g->n_no_slot += strstr(said.text, "slots are taken") != NULL;
    return first;
}

static void play_request(struct game *g)
{
    struct rt_request r = request_of(g->n_requests, 1 + below(g, below(g, 4) ? 20 : 140), below(g, 5) ? below(g, 12) : below(g, 200));
    r.flags = below(g, 4) ? 0 : below(g, 8);
    r.score_from = below(g, 8);
    r.n_ends = below(g, 3);
    r.ends[0] = (int32_t)below(g, 100);
    r.ends[1] = (int32_t)below(g, 100);
    r.temperature = (float)below(g, 3) / 2;
    switch (below(g, 16)) {
    case 0: r.n_prompt = below(g, 2) ? 0 : base_rng_u32(&g->rng); break;
    case 1: r.n_ends = base_rng_u32(&g->rng); break;
    case 2: r.temperature = -1; break;
    case 3: r.request = g->n_requests - below(g, 4); break; /* perhaps still there */
    case 4: r.max_new = UINT32_MAX - below(g, 200); break;
    default: break;
    }
    if (both(g, RT_REQUEST, &r, sizeof r) == ST_OK || below(g, 4) == 0)
        g->n_requests++;
}

static void play_ids(struct game *g)
{
    unsigned char frame[sizeof(struct rt_ids_head) + MAX_IDS * sizeof(int32_t)];
    const struct rt_sequence *q = &g->s[0].sequences[below(g, (uint32_t)g->s[0].n_slots)];
    const uint32_t missing = q->state == RT_SEQ_FILLING ? q->request.n_prompt - q->n_ids : 0;
    struct rt_ids_head head = {q->state == RT_SEQ_FREE ? base_rng_u32(&g->rng) : q->request.request, below(g, 2) ? missing : below(g, missing + 2)};
    size_t bytes = sizeof head + head.n * sizeof(int32_t);
    const bool bad = below(g, 20) == 0;
    for (uint32_t i = 0; i < head.n; i++) {
        const int32_t id = bad && below(g, 4) == 0 ? (int32_t)base_rng_u32(&g->rng) : (int32_t)below(g, 100);
        memcpy(frame + sizeof head + i * sizeof id, &id, sizeof id);
    }
    if (below(g, 20) == 0)
        bytes -= below(g, (uint32_t)bytes + 1);
    if (below(g, 20) == 0)
        head.n = base_rng_u32(&g->rng);
    memcpy(frame, &head, sizeof head);
    both(g, RT_IDS, frame, bytes);
}

static void play_rubbish(struct game *g)
{
    unsigned char rubbish[160];
    for (size_t i = 0; i < sizeof rubbish; i++)
        rubbish[i] = (unsigned char)base_rng_u32(&g->rng);
    uint32_t kind = below(g, 2) ? below(g, 24) : base_rng_u32(&g->rng);
    kind = kind == RT_STOP ? RT_READY : kind;
    both(g, (enum rt_frame_kind)kind, rubbish, below(g, 4) ? below(g, sizeof rubbish + 1) : sizeof(struct rt_request));
}

static void play_events(struct game *g)
{
    for (uint32_t n = below(g, 5); n > 0; n--) {
        const uint32_t what = below(g, 32);
        if (what < 8)
            play_request(g);
        else if (what < 28)
            play_ids(g);
        else if (what < 30) {
            const struct rt_sequence *q = &g->s[0].sequences[below(g, (uint32_t)g->s[0].n_slots)];
            const struct rt_cancel c = {q->state == RT_SEQ_FREE ? base_rng_u32(&g->rng) : q->request.request};
            g->n_cancelled += q->state != RT_SEQ_FREE && q->state != RT_SEQ_DONE;
            both(g, RT_CANCEL, &c, sizeof c);
        } else
            play_rubbish(g);
    }
}

static void compare(const struct game *g)
{
    static struct snapshot b[2];
    for (int k = 0; k < 2; k++)
        put_state(&b[k], &g->s[k]);
    assert_int_equal(b[0].n, b[1].n);
    assert_memory_equal(b[0].data, b[1].data, b[0].n);
    for (int k = 0; k < 2; k++)
        put_desc(&b[k], &g->s[k].desc);
    assert_int_equal(b[0].n, b[1].n);
    assert_memory_equal(b[0].data, b[1].data, b[0].n);
}

static void play_step(struct game *g)
{
    for (int k = 0; k < 2; k++)
        next(&g->s[k]);
    compare(g);
    const struct kern_batch *b = &g->s[0].desc.batch;
    int n_prefills = 0;
    for (int run = 0; run < b->n_runs; run++)
        n_prefills += b->run_tokens[run] > 1;
    g->n_shared_prefill += n_prefills > 1;
    g->n_mixed += n_prefills > 0 && n_prefills < b->n_runs;
    for (int k = 0; k < 2; k++) /* their clocks differ, and must not matter */
        finish(&g->s[k], (uint64_t)base_rng_u32(&g->rng), (uint64_t)k << 40);
}

static void play_reports(struct game *g)
{
    for (int i = 0; i < g->s[0].n_slots; i++)
        if (g->s[0].sequences[i].state == RT_SEQ_DONE) {
            g->n_ended[g->s[0].sequences[i].reason]++;
            for (int k = 0; k < 2; k++)
                rt_schedule_free(&g->s[k], i);
        }
    for (int k = 0; k < 2; k++)
        walk(&g->s[k]);
}

static void same_events_same_steps(void **state)
{
    (void)state;
    static const struct {
        int n_slots, chunk;
        int64_t context, n_blocks;
    } shapes[] = {{6, 16, 128, 10}, {1, 7, 128, 4}, {4, 3, 33, 5}, {8, 64, 100, 32}, {5, 1, 64, 6}, {16, 32, 96, 12}};
    const uint64_t n_steps = t_long() ? 100000 : 3000;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        static struct game g;
        memset(&g, 0, sizeof g);
        g.n_requests = 1000;
        base_rng_init(&g.rng, t_seed() + i);
        for (int k = 0; k < 2; k++)
            make(&g.s[k], &g.arena[k], shapes[i].n_slots, shapes[i].chunk, shapes[i].context, shapes[i].n_blocks);
        while (g.s[0].n_steps < n_steps) {
            play_events(&g);
            if (below(&g, 8)) /* else they are told later */
                play_reports(&g);
            if (rt_schedule_has_work(&g.s[0]))
                play_step(&g);
            compare(&g);
        }
        printf("%d slots, %d tokens: %u events, %u refused (%u no room, %u no slot), %u steps mix, %u share prompts; ended %u, length %u, context %u, cancelled %u\n", shapes[i].n_slots,
               shapes[i].chunk, g.n_accepted, g.n_refused, g.n_no_room, g.n_no_slot, g.n_mixed, g.n_shared_prefill, g.n_ended[RT_ENDED], g.n_ended[RT_LENGTH], g.n_ended[RT_CONTEXT],
               g.n_ended[RT_CANCELLED]);
        assert_true(g.n_accepted > 1000 && g.n_refused > 100 && g.n_ended[RT_ENDED] && g.n_ended[RT_LENGTH] && g.n_cancelled && g.n_ended[RT_CANCELLED]);
        if (i == 0)
            assert_true(g.n_no_room && g.n_no_slot && g.n_mixed && g.n_shared_prefill && g.n_ended[RT_CONTEXT]);
        for (int slot = 0; slot < shapes[i].n_slots; slot++)
            if (g.s[0].sequences[slot].state != RT_SEQ_FREE)
                both(&g, RT_CANCEL, &(struct rt_cancel){g.s[0].sequences[slot].request.request}, sizeof(struct rt_cancel));
        play_reports(&g);
        for (int k = 0; k < 2; k++) {
            expect_idle(&g.s[k]);
            base_arena_release(&g.arena[k]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_request_from_begin_to_end),
        cmocka_unit_test(ends_of_a_sequence),
        cmocka_unit_test(rows_that_are_asked_for),
        cmocka_unit_test(prompts_share_a_step),
        cmocka_unit_test(decoding_goes_first),
        cmocka_unit_test(a_budget_below_the_number_of_sequences),
        cmocka_unit_test(a_chunk_of_one),
        cmocka_unit_test(a_full_pool_refuses),
        cmocka_unit_test(slots_are_used_again),
        cmocka_unit_test(a_live_slot_cannot_be_freed),
        cmocka_unit_test(cancelled_in_every_state),
        cmocka_unit_test(all_cancelled_at_once),
        cmocka_unit_test(stop_lets_the_others_end),
        cmocka_unit_test(impossible_requests),
        cmocka_unit_test(impossible_ids),
        cmocka_unit_test(meaningless_frames),
        cmocka_unit_test(the_hash_is_of_what_was_said),
        cmocka_unit_test(same_events_same_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
