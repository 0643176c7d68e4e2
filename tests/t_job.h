/* Ranks as threads of the test's own process, and requests to them: what launcher/job.c does with processes.
 *
 * start → run … → stop; one thread. A rank that fails is a failed test, unless it fails before it is ready and the caller asked for its error. */
#ifndef TESTS_T_JOB_H
#define TESTS_T_JOB_H

#include "runtime/protocol.h"
#include "runtime/settings.h"
#include "tests/t.h"

struct t_job_options {
    const char *model;
    int n_ranks;            /* 0: 1 */
    const uint32_t *shares; /* [n_ranks]; NULL: equal */
    int n_threads;          /* 0: 1 */
    int chunk;              /* 0: 512 */
    int context;            /* 0: 512 */
    int max_sequences;      /* 0: 8 */
    bool accurate;
    enum format kv_format;
    enum part_moe moe;
    const char *backend;        /* "tcp": ranks that meet on the loopback; NULL: shared memory */
    int overlap_tokens, scatter_bytes; /* 0: neither halves nor shared sums */
};

struct t_job;
struct t_job *t_job_start(const struct t_job_options *options);
/* Starts, expects that it fails, and returns what the ranks said. */
enum st t_job_refused(const struct t_job_options *options, struct err *e);
int64_t t_job_vocab(const struct t_job *job);
void t_job_stop(struct t_job *job);

struct t_sequence {
    const int32_t *ids;
    uint32_t n, max_new;
    float temperature;
    uint64_t seed;
    bool leave_last; /* the last new token is not fed: one row of logits fewer */
    /* results; zero at first, freed by t_sequence_free */
    float *logits; /* [n_rows, vocab] */
    uint32_t n_rows, n_new;
    int32_t *new_ids;
    enum rt_reason reason;
};
/* All of them together; returns when all are done. Each row of logits must come once, and in order. */
void t_job_run(struct t_job *job, struct t_sequence *sequences, int n);
void t_sequence_free(struct t_sequence *s);

#endif
