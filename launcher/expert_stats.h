/* What `tandem eval --expert-stats OUT` writes: how often each expert of each layer was chosen, and the map for --expert-map that follows from it (partition/expert_map.h).
 *
 * launch_job_collect_experts → launch_expert_stats_write → release. One thread. */
#ifndef LAUNCHER_EXPERT_STATS_H
#define LAUNCHER_EXPERT_STATS_H

#include "launcher/setup.h"

struct launch_expert_stats {
    int n_layers, n_experts;
    uint64_t *counts; /* [n_layers][n_experts]; NULL: none have come */
};

/* Before the work: that the file can be written (it is made, an older one is kept until write). ST_IO names it. */
enum st launch_expert_stats_check(const char *path, struct err *e);
/* The payload of an RT_EXPERTS frame. */
enum st launch_expert_stats_take(struct launch_expert_stats *s, const void *payload, size_t bytes, struct err *e);
/* ST_IO names the file. */
enum st launch_expert_stats_write(const struct launch_expert_stats *s, const struct launch_setup *setup, const char *path, struct err *e);
void launch_expert_stats_release(struct launch_expert_stats *s);

#endif
