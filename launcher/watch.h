/* The launcher's conversation with the agent of this host: a thread that sends beats, hears the agent's beats and its story, and kills an agent that has fallen silent.
 *
 * start → (fd, story)… → stop. The thread alone reads and writes the control socket and reaps the agent; everything else may be called by the thread that started it. */
#ifndef LAUNCHER_WATCH_H
#define LAUNCHER_WATCH_H

#include <sys/types.h>

#include "base/status.h"

#define LAUNCH_BEAT_MS 500

struct launch_watch;

/* Takes over control_fd and the child agent in any case. */
enum st launch_watch_start(int control_fd, pid_t agent, struct launch_watch **w, struct err *e);

/* Readable once the agent has told its story or is gone. */
int launch_watch_fd(const struct launch_watch *w);

/* How it ended, within the time: ST_PEER_LOST with the story; ST_OK: the agent left in peace; ST_AGAIN: nothing is known yet. */
enum st launch_watch_story(struct launch_watch *w, int timeout_ms, struct err *e);

/* Tells the agent that it is over, gives it some time, kills it; its ranks die with it. Frees. */
void launch_watch_stop(struct launch_watch *w);

#endif
