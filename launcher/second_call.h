/* The second call to a host whose agent does not listen: `tandem host-kill`, a process of its own, so that it goes on where the command has to return before ssh got through. */
#ifndef LAUNCHER_SECOND_CALL_H
#define LAUNCHER_SECOND_CALL_H

#include "launcher/remote.h"

/* Kills the agent of that pid and nonce, as launch_remote_kill does, within ten seconds; waits for that for wait_ms at most. ST_AGAIN: it goes on; ST_IO: it could not be started. */
enum st launch_second_call(const struct launch_remote_options *options, pid_t pid, const char *nonce, int wait_ms);

#endif
