/* What a user chose for the ranks of a job: the same on every rank (its digest is part of the hello), but for the CPUs. */
#ifndef RUNTIME_SETTINGS_H
#define RUNTIME_SETTINGS_H

#include "base/hash.h"
#include "kernels/kernels.h"
#include "partition/plan.h"
#include "partition/smaller.h"

struct rt_settings {
    const char *device;  /* as kern_select() wants it; NULL: the best CPU's */
    bool accurate;       /* --activations f32 */
    enum format kv_format;
    struct part_smaller smaller; /* --head, --embedding */
    struct part_model_options model;
    bool expert_stats;   /* rank 0 counts which experts are chosen */
    int chunk;           /* tokens of one step */
    int overlap_tokens;  /* steps of so many and more are walked in halves where the backend sends ahead (overlap.c); 0: none is */
    int64_t scatter_bytes; /* sums of which a rank sends so many and more are shared, between three ranks and more (sums.c); 0: none is */
    int64_t context;     /* tokens of one sequence */
    int max_sequences;
    int n_threads;       /* per rank */
    int spin_us;
    const int *os_cpus;  /* [n_threads] or NULL: not bound */
    bool ledger; /* keep one: see runtime/ledger.h */
};

/* Logit rows of one run of the head program: enough to keep a matrix–matrix product busy, few enough for small buffers. */
#define RT_HEAD_ROWS 32

/* Plans asked through these know what the chosen kernel backend takes. s must outlive its use; settings and backend are borrowed. */
struct rt_sizes {
    struct part_sizes base;
    const struct kern_backend *backend;
    const char *carrier; /* what carries the bytes, as comm names it; NULL: shared memory. Of the budget alone */
    bool shares_in_halves;
};
void rt_sizes_init(struct rt_sizes *s, const struct rt_settings *settings, const struct kern_backend *backend, const char *carrier);
struct part_plan_options rt_plan_options(const struct rt_settings *settings, int n_ranks, const uint32_t *shares);

/* Digest of everything that must be equal on all ranks. */
struct digest rt_settings_digest(const struct rt_settings *settings);

/* The largest scratch that any step of a rank's programs asks of the backend: asked by the planner, allocated by the executor. */
struct rt_scratch {
    size_t matmul, attention;
};
enum st rt_scratch_init(const struct kern_backend *backend, const struct part_model *m, int max_tokens, int n_threads, struct rt_scratch *scratch, struct err *e);

/* Columns of a weight as this rank holds them; arrays from arena. Weights whose columns follow no dimension are one leaf. */
enum st rt_columns_init(const struct part_model *m, const struct part_weight *w, struct arena *arena, struct kern_columns *columns, struct err *e);
/* Whether weights that share their input have their columns in the same order too, and so one product. */
bool rt_same_columns(const struct kern_columns *a, const struct kern_columns *b);
/* This rank's matrix of a weight, but for where it lies and its tensor's own scale. The plan's bytes and the loader's are those of this one. */
enum st rt_matrix_init(const struct part_model *m, const struct part_weight *w, const struct kern_backend *backend, bool accurate, struct arena *arena, struct kern_matrix *matrix, struct err *e);

#endif
