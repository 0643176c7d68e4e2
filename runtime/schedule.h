/* The scheduler: a deterministic state machine on every rank. The same events in the same order at the same steps give the same batches, so no batch is ever sent.
 *
 * init → (apply events; while it has work: next → run → finish) … ; one thread; nothing allocates after init. No clock: times are told by the caller.
 * Each step takes first the sequences that decode, then prompts, in the order in which they were admitted, up to chunk tokens. */
#ifndef RUNTIME_SCHEDULE_H
#define RUNTIME_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "kernels/kernels.h"
#include "runtime/cache.h"
#include "runtime/protocol.h"

enum rt_row_wants { RT_ROW_SAMPLE = 1, RT_ROW_SCORE = 2, RT_ROW_LOGITS = 4 };

/* A token whose logits somebody wants. */
struct rt_row {
    int32_t token; /* index in the step */
    int32_t slot;
    uint32_t position;
    uint32_t wants;
    float temperature;
    uint64_t seed;
    int32_t target; /* RT_ROW_SCORE: the id whose probability is asked for */
};

struct rt_row_result {
    int32_t id;  /* RT_ROW_SAMPLE */
    double nll;  /* RT_ROW_SCORE */
};

/* The step descriptor: fixed addresses, filled anew for each step. */
struct rt_desc {
    struct kern_batch batch;
    int32_t *ids, *position;
    int32_t *run_begin, *run_tokens, *run_table;
    struct rt_row *rows;
    int n_rows;
};

enum rt_sequence_state { RT_SEQ_FREE, RT_SEQ_FILLING, RT_SEQ_RUNNING, RT_SEQ_DONE };

struct rt_sequence {
    enum rt_sequence_state state;
    struct rt_request request;
    int32_t *ids;       /* [context + 1] prompt, then what was sampled */
    uint32_t n_ids;     /* known */
    uint32_t n_fed;     /* in the cache */
    uint32_t n_new;     /* sampled */
    uint64_t admitted;  /* order */
    enum rt_reason reason; /* RT_SEQ_DONE */
    uint64_t start_ns, first_ns, last_ns; /* told by the caller, for the front end's timings */
};

struct rt_schedule {
    struct rt_sequence *sequences; /* [n_slots] */
    int *order;                    /* [n_slots] scratch */
    int n_slots;
    int chunk;
    int64_t context;
    int64_t vocab;
    struct rt_cache cache;
    struct rt_desc desc;
    uint64_t n_admitted, n_steps;
    uint32_t token_hash; /* of all tokens sampled so far: ranks compare it */
    bool stopping;
};

enum st rt_schedule_init(struct rt_schedule *s, struct arena *arena, int n_slots, int chunk, int64_t context, int64_t vocab, int64_t n_kv_blocks, struct err *e);

/* Applies one event (a frame of the protocol). Malformed or impossible: ST_INVALID with the sentence; the state is unchanged. */
enum st rt_schedule_event(struct rt_schedule *s, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e);

bool rt_schedule_has_work(const struct rt_schedule *s);
/* Fills s->desc with the next step. Only when it has work. */
void rt_schedule_next(struct rt_schedule *s);
/* Takes the results of s->desc's rows (in their order) and moves sequences on; those that end become RT_SEQ_DONE. */
void rt_schedule_finish(struct rt_schedule *s, const struct rt_row_result *results, uint64_t start_ns, uint64_t now_ns);
/* Frees a RT_SEQ_DONE slot, once it was reported. */
void rt_schedule_free(struct rt_schedule *s, int slot);

#endif
