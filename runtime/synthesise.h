/* The bytes of a checkpoint that is made up (partition/synth.h): numbers from a counter-based generator, encoded on all threads, streamed by slabs of rows.
 *
 * A number is the sum of four random bytes, centred and scaled: bell-shaped, never beyond 3.45 standard deviations, exact on every machine. It follows from seed, tensor, row and column
 * alone: the same bytes for any number of threads. One thread calls; its pool works. */
#ifndef RUNTIME_SYNTHESISE_H
#define RUNTIME_SYNTHESISE_H

#include "base/pool.h"
#include "partition/synth.h"

struct rt_synthesise_options {
    struct base_pool *pool;
    int dir;           /* descriptor of the directory in which the plan's files are made; none of them may be there */
    bool headers_only; /* sparse files: of each tensor only what synth_item.shown says is written */
    /* After each slab; bytes written so far. false: stop, with ST_CANCELLED. May be NULL. */
    bool (*go_on)(void *arg, const char *tensor, uint64_t done_bytes);
    void *arg;
};

/* All files are on the disk when this returns ST_OK. What an error leaves is the caller's to remove. */
enum st rt_synthesise(const struct synth_plan *plan, const struct rt_synthesise_options *options, struct err *e);

#endif
