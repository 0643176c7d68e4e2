/* The life of a job as the front end sees it: start → submit requests, take frames → stop.
 *
 * One rank runs as a thread of this process. More: an agent (a child: the same binary) starts and watches the ranks; if it or a rank dies, the next call says who and why.
 * One thread. */
#ifndef LAUNCHER_JOB_H
#define LAUNCHER_JOB_H

#include "launcher/expert_stats.h"
#include "launcher/ledger.h"
#include "runtime/protocol.h"

struct launch_job;

/* Returns when the ranks are loaded and ready; checks the budget first. */
enum st launch_job_start(const struct launch_setup *setup, struct launch_job **job, struct err *e);
const struct rt_ready *launch_job_ready(const struct launch_job *job);

enum st launch_job_submit(struct launch_job *job, const struct rt_request *request, const int32_t *ids, struct err *e);
enum st launch_job_cancel(struct launch_job *job, uint32_t request, struct err *e);

/* The next frame from rank 0 (payload borrowed until the next call). ST_AGAIN after timeout_ms (−1: never). A dead rank or agent: ST_PEER_LOST with the whole story. */
enum st launch_job_next(struct launch_job *job, int timeout_ms, enum rt_frame_kind *kind, const void **payload, size_t *bytes, struct err *e);

/* Between requests: until fd can be read (or is at its end). ST_PEER_LOST with the whole story when a rank or the agent dies meanwhile. */
enum st launch_job_wait_input(struct launch_job *job, int fd, struct err *e);

/* Where the ranks' ledgers go when the job stops; NULL: nowhere. Must outlive the job. */
void launch_job_collect(struct launch_job *job, struct launch_ledger *ledger);

/* Where it goes which experts were chosen; likewise. */
void launch_job_collect_experts(struct launch_job *job, struct launch_expert_stats *stats);

/* Lets the ranks finish and leave. Then frees. An error tells how they ended. */
enum st launch_job_stop(struct launch_job *job, struct err *e);
/* Ends it at once. */
void launch_job_kill(struct launch_job *job);

#endif
