/* What agent.c (the agent's process) and agent_spawn.c (who starts one) share. */
#ifndef LAUNCHER_AGENT_PRIV_H
#define LAUNCHER_AGENT_PRIV_H

#include "base/arena.h"
#include "launcher/agent.h"
#include "topologies/place.h"

#define LAUNCH_AGENT_MAX_ARGS 128  /* of a rank, or an agent */
#define LAUNCH_AGENT_HANDED_FD 3   /* of an agent that was told --hand-over */

/* Where ranks are bound, as text: "0,1@0:2,3@1"; malloc'ed. */
char *launch_agent_seats(const struct topo_placement *p);
char *launch_agent_number(struct arena *a, int64_t n);

/* In the child, between fork and exec: only async-signal-safe calls. 0 and 1 are not the user's: stdout is the launcher's alone. Nor are descriptors that whoever called us left
 * open: who waits for their end would wait for the ranks. When parent dies, however it does and whether or not we are stopped, so do we. */
void launch_agent_become(pid_t parent, const int *keep, int n_keep, char **argv);

#endif
