/* Loading: this rank's slices from the files into the backend's packed layout, through a bounded bounce buffer.
 *
 * rt_weights_load → used by step.c → rt_weights_close → freed with the arena. Threads of the pool each take whole weights. */
#ifndef RUNTIME_LOAD_H
#define RUNTIME_LOAD_H

#include "base/arena.h"
#include "base/pool.h"
#include "runtime/disk_rows.h"
#include "runtime/settings.h"

struct rt_weight {
    struct kern_matrix matrix; /* PART_MATRIX; without data where its home is the disk */
    float *vector;             /* PART_VECTOR, local rows */
    struct rt_disk_rows *rows; /* an embedding on disk, else NULL */
};

struct rt_weights {
    struct rt_weight *items; /* [m->n_weights] */
    int n_items;
    uint64_t bytes_read;
};

/* Called from the loading threads with bytes read so far (this rank) and in all: a progress tick. May be NULL. */
typedef void (*rt_progress_fn)(void *context, uint64_t done, uint64_t total);

/* Data lie in data (as large as the plan's budget says), descriptions in small. */
enum st rt_weights_load(const struct part_model *m, const struct kern_backend *backend, bool accurate, struct base_pool *pool, struct arena *data, struct arena *small,
                        rt_progress_fn progress, void *context, struct rt_weights *weights, struct err *e);

/* Files that were kept open. */
void rt_weights_close(struct rt_weights *weights);

#endif
