/* The agent: one process per host that starts this host's ranks, watches them, and cleans up whatever happens.
 *
 * It lives as long as its control socket: when the launcher falls silent (the socket closes) it kills its ranks and leaves. When a rank dies it says which, how and in which step, kills
 * the others and leaves with status 1. The launcher's death kills the agent, also a stopped one that hears nothing, and its own death kills its ranks (PR_SET_PDEATHSIG: the thread
 * that starts them must outlive them). Nothing it makes has a name in the file system. */
#ifndef LAUNCHER_AGENT_H
#define LAUNCHER_AGENT_H

#include <sys/types.h>

#include "launcher/setup.h"

/* Forks and executes this binary as `tandem agent …`. control_fd and front_fd (the socket for rank 0) are passed on; the caller closes its copies. */
enum st launch_agent_spawn(const struct launch_setup *setup, int control_fd, int front_fd, pid_t *pid, struct err *e);

/* Of one of several hosts, here: `tandem agent --host`, whose standard input and output are fd. By handed_fd (handed.h) it hands the launcher the connections of the control ways (ways.h)
 * that end here; −1: another agent of this host does. */
enum st launch_agent_spawn_host(int fd, int handed_fd, pid_t *pid, struct err *e);
/* What it is then told to do: arguments with NULs behind them; malloc'ed. */
struct launch_hosts_entry;
enum st launch_agent_words(const struct launch_setup *setup, const struct launch_hosts_entry *h, char **text, size_t *bytes, struct err *e);
/* The hidden sub-commands. */
int cmd_agent(int argc, char **argv);
int cmd_rank(int argc, char **argv);

#endif
