/* Who runs in which step: pure bookkeeping over events. */
#include "runtime/schedule.h"

#include <string.h>

#include "base/hash.h"

enum st rt_schedule_init(struct rt_schedule *s, struct arena *arena, int n_slots, int chunk, int64_t context, int64_t vocab, int64_t n_kv_blocks, struct err *e)
{
    memset(s, 0, sizeof *s);
    s->n_slots = n_slots;
    s->chunk = chunk;
    s->context = context;
    s->vocab = vocab;
    const enum st st = rt_cache_init(&s->cache, arena, n_kv_blocks, n_slots, context, e);
    if (st)
        return st;
    bool ok = (s->sequences = base_arena_array(arena, (size_t)n_slots, sizeof *s->sequences)) != NULL;
    ok &= (s->order = base_arena_array(arena, (size_t)n_slots, sizeof *s->order)) != NULL;
    for (int i = 0; ok && i < n_slots; i++)
        ok &= (s->sequences[i].ids = base_arena_array(arena, (size_t)context + 1, sizeof(int32_t))) != NULL;
    struct rt_desc *d = &s->desc;
    ok &= (d->ids = base_arena_array(arena, (size_t)chunk, sizeof *d->ids)) != NULL;
    ok &= (d->position = base_arena_array(arena, (size_t)chunk, sizeof *d->position)) != NULL;
    ok &= (d->run_begin = base_arena_array(arena, (size_t)n_slots, sizeof *d->run_begin)) != NULL;
    ok &= (d->run_tokens = base_arena_array(arena, (size_t)n_slots, sizeof *d->run_tokens)) != NULL;
    ok &= (d->run_table = base_arena_array(arena, (size_t)n_slots, sizeof *d->run_table)) != NULL;
    ok &= (d->rows = base_arena_array(arena, (size_t)chunk, sizeof *d->rows)) != NULL;
    if (!ok)
        return err_set(e, ST_NO_MEMORY, "no memory for %d sequences of %lld tokens", n_slots, (long long)context);
    d->batch = (struct kern_batch){
        .position = d->position,
        .run_begin = d->run_begin,
        .run_tokens = d->run_tokens,
        .run_table = d->run_table,
        .block_table = s->cache.table,
        .block_table_stride = s->cache.stride,
    };
    return ST_OK;
}

/* ---- events ------------------------------------------------------------------------------------------------------------------------------------------ */

static struct rt_sequence *find(struct rt_schedule *s, uint32_t request)
{
    for (int i = 0; i < s->n_slots; i++)
        if (s->sequences[i].state != RT_SEQ_FREE && s->sequences[i].request.request == request)
            return &s->sequences[i];
    return NULL;
}

static enum st admit(struct rt_schedule *s, const struct rt_request *r, struct err *e)
{
    if (r->n_prompt == 0 || r->n_prompt > s->context)
        return err_set(e, ST_INVALID, "request %u: a prompt of %u tokens, the context is %lld", r->request, r->n_prompt, (long long)s->context);
    if (r->request == RT_CANCEL_ALL || r->n_ends > RT_MAX_ENDS || !(r->temperature >= 0))
        return err_set(e, ST_INVALID, "request %u: impossible settings", r->request);
    if (find(s, r->request))
        return err_set(e, ST_INVALID, "request %u is running already", r->request);
    for (int i = 0; i < s->n_slots; i++) {
        struct rt_sequence *q = &s->sequences[i];
        if (q->state != RT_SEQ_FREE)
            continue;
        /* all the blocks that it can come to need: nothing has to be preempted later */
        const int64_t most = r->max_new > (uint64_t)s->context - r->n_prompt ? s->context : (int64_t)r->n_prompt + r->max_new;
        if (rt_cache_reserve(&s->cache, i, most) != ST_OK)
            return err_set(e, ST_INVALID, "request %u: no room in the cache for %lld tokens", r->request, (long long)most);
        int32_t *ids = q->ids;
        *q = (struct rt_sequence){.state = RT_SEQ_FILLING, .request = *r, .ids = ids, .admitted = s->n_admitted++};
        return ST_OK;
    }
    return err_set(e, ST_INVALID, "request %u: all %d slots are taken", r->request, s->n_slots);
}

static enum st take_ids(struct rt_schedule *s, const void *payload, size_t bytes, struct err *e)
{
    struct rt_ids_head head;
    memcpy(&head, payload, sizeof head);
    struct rt_sequence *q = find(s, head.request);
    if (!q || q->state != RT_SEQ_FILLING || bytes != sizeof head + (size_t)head.n * sizeof(int32_t) || head.n > q->request.n_prompt - q->n_ids)
        return err_set(e, ST_INVALID, "request %u: %u ids that nobody waits for", head.request, head.n);
    const unsigned char *from = (const unsigned char *)payload + sizeof head;
    for (uint32_t i = 0; i < head.n; i++) {
        int32_t id;
        memcpy(&id, from + (size_t)i * sizeof id, sizeof id);
        if (id < 0 || id >= s->vocab)
            return err_set(e, ST_INVALID, "request %u: token id %d, the vocabulary has %lld", head.request, id, (long long)s->vocab);
        q->ids[q->n_ids + i] = id;
    }
    q->n_ids += head.n;
    if (q->n_ids == q->request.n_prompt)
        q->state = RT_SEQ_RUNNING;
    return ST_OK;
}

enum st rt_schedule_event(struct rt_schedule *s, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e)
{
    if (kind == RT_REQUEST && bytes == sizeof(struct rt_request)) {
        struct rt_request r;
        memcpy(&r, payload, sizeof r);
        return admit(s, &r, e);
    }
    if (kind == RT_IDS && bytes >= sizeof(struct rt_ids_head))
        return take_ids(s, payload, bytes, e);
    if (kind == RT_CANCEL && bytes == sizeof(struct rt_cancel)) {
        struct rt_cancel c;
        memcpy(&c, payload, sizeof c);
        for (int i = 0; i < s->n_slots; i++) {
            struct rt_sequence *q = &s->sequences[i];
            if (q->state == RT_SEQ_FREE || q->state == RT_SEQ_DONE || (c.request != RT_CANCEL_ALL && q->request.request != c.request))
                continue; /* one that just ended is no error */
            q->state = RT_SEQ_DONE;
            q->reason = RT_CANCELLED;
        }
        return ST_OK;
    }
    if (kind == RT_STOP && bytes == 0) {
        s->stopping = true;
        return ST_OK;
    }
    return err_set(e, ST_INVALID, "a frame of kind %d and %zu bytes that means nothing here", (int)kind, bytes);
}

/* ---- steps ------------------------------------------------------------------------------------------------------------------------------------------- */

bool rt_schedule_has_work(const struct rt_schedule *s)
{
    for (int i = 0; i < s->n_slots; i++)
        if (s->sequences[i].state == RT_SEQ_RUNNING)
            return true;
    return false;
}

static bool decodes(const struct rt_sequence *q) { return q->n_fed > 0 && q->n_ids - q->n_fed == 1; }

/* Running sequences: those that decode first, then by age. Insertion sort: a handful, and stable. */
static int sort_running(struct rt_schedule *s)
{
    int n = 0;
    for (int i = 0; i < s->n_slots; i++) {
        const struct rt_sequence *q = &s->sequences[i];
        if (q->state != RT_SEQ_RUNNING)
            continue;
        int at = n++;
        for (; at > 0; at--) {
            const struct rt_sequence *before = &s->sequences[s->order[at - 1]];
            if (decodes(before) > decodes(q) || (decodes(before) == decodes(q) && before->admitted < q->admitted))
                break;
            s->order[at] = s->order[at - 1];
        }
        s->order[at] = i;
    }
    return n;
}

static void add_row(struct rt_desc *d, const struct rt_sequence *q, int slot, int32_t token, uint32_t position)
{
    const struct rt_request *r = &q->request;
    uint32_t wants = r->flags & RT_WANT_LOGITS ? RT_ROW_LOGITS : 0;
    if (r->flags & RT_WANT_SCORES && position >= r->score_from && position + 1 < r->n_prompt)
        wants |= RT_ROW_SCORE;
    if (position + 1 == q->n_ids && q->n_new < r->max_new)
        wants |= RT_ROW_SAMPLE;
    if (!wants)
        return;
    d->rows[d->n_rows++] = (struct rt_row){
        .token = token,
        .slot = slot,
        .position = position,
        .wants = wants,
        .temperature = r->temperature,
        .seed = r->seed,
        .target = wants & RT_ROW_SCORE ? q->ids[position + 1] : -1,
    };
}

void rt_schedule_next(struct rt_schedule *s)
{
    struct rt_desc *d = &s->desc;
    const int n_running = sort_running(s);
    int n_tokens = 0;
    d->batch.n_runs = 0;
    d->n_rows = 0;
    for (int k = 0; k < n_running && n_tokens < s->chunk; k++) {
        const int slot = s->order[k];
        struct rt_sequence *q = &s->sequences[slot];
        const int pending = (int)(q->n_ids - q->n_fed);
        const int n = pending < s->chunk - n_tokens ? pending : s->chunk - n_tokens;
        const int run = d->batch.n_runs++;
        d->run_begin[run] = n_tokens;
        d->run_tokens[run] = n;
        d->run_table[run] = slot;
        for (int i = 0; i < n; i++) {
            const uint32_t position = q->n_fed + (uint32_t)i;
            d->ids[n_tokens] = q->ids[position];
            d->position[n_tokens] = (int32_t)position;
            add_row(d, q, slot, n_tokens, position);
            n_tokens++;
        }
        q->n_fed += (uint32_t)n;
    }
    d->batch.n_tokens = n_tokens;
    s->n_steps++;
}

static bool is_end(const struct rt_request *r, int32_t id)
{
    for (uint32_t i = 0; i < r->n_ends; i++)
        if (r->ends[i] == id)
            return true;
    return false;
}

static void end(struct rt_sequence *q, enum rt_reason reason)
{
    q->state = RT_SEQ_DONE;
    q->reason = reason;
}

static void take_token(struct rt_schedule *s, struct rt_sequence *q, int32_t id)
{
    q->ids[q->n_ids++] = id;
    q->n_new++;
    const uint64_t words[] = {s->token_hash, q->request.request, (uint64_t)(uint32_t)id};
    s->token_hash = (uint32_t)base_hash64(words, sizeof words, 0);
    if (is_end(&q->request, id))
        end(q, RT_ENDED);
    else if (q->n_new == q->request.max_new && !(q->request.flags & RT_FEED_LAST))
        end(q, RT_LENGTH);
    else if (q->n_ids > s->context)
        end(q, RT_CONTEXT); /* there is no room to feed it */
}

void rt_schedule_finish(struct rt_schedule *s, const struct rt_row_result *results, uint64_t start_ns, uint64_t now_ns)
{
    const struct rt_desc *d = &s->desc;
    for (int run = 0; run < d->batch.n_runs; run++) {
        struct rt_sequence *q = &s->sequences[d->run_table[run]];
        if (!q->start_ns)
            q->start_ns = start_ns;
        q->last_ns = now_ns;
        if (q->n_fed == q->n_ids && !q->first_ns)
            q->first_ns = now_ns;
    }
    for (int i = 0; i < d->n_rows; i++)
        if (d->rows[i].wants & RT_ROW_SAMPLE)
            take_token(s, &s->sequences[d->rows[i].slot], results[i].id);
    for (int run = 0; run < d->batch.n_runs; run++) { /* nothing sampled and nothing left to feed: a prompt that was only scored, or the last token of a fed-last request */
        struct rt_sequence *q = &s->sequences[d->run_table[run]];
        if (q->state == RT_SEQ_RUNNING && q->n_fed == q->n_ids)
            end(q, RT_LENGTH);
    }
}

void rt_schedule_free(struct rt_schedule *s, int slot)
{
    BASE_ASSERT(s->sequences[slot].state == RT_SEQ_DONE);
    rt_cache_truncate(&s->cache, slot, 0);
    s->sequences[slot].state = RT_SEQ_FREE;
}
