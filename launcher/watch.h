/* The launcher's conversation with the agents of a job: a thread that sends beats, hears the agents' beats and stories, and kills an agent that has fallen silent.
 * With several hosts it also carries what passes between them: the ranks' PMI-1 and the front end's connection to rank 0. What is said and judged is overseer.h's.
 *
 * start → (fd, story)… → stop. The thread alone reads and writes the sockets and reaps the children; everything else may be called by the thread that started it. */
#ifndef LAUNCHER_WATCH_H
#define LAUNCHER_WATCH_H

#include <stdbool.h>
#include <sys/types.h>

#include "launcher/overseer.h"

struct launch_remote;

/* One agent. */
struct launch_end {
    const char *host;  /* as typed; NULL: the agent of this host, with no others */
    int in_fd, out_fd; /* from it, to it; may be the same socket */
    pid_t pid;         /* our child, the agent; 0: it is remote */
    struct launch_remote *remote; /* on another host: started the agent, and owns the descriptors unless is_direct; else NULL */
    bool is_direct;    /* the descriptors lead over the way that was decided, not through remote, whose end is a warning then */
    const char *ssh;   /* what leads there; NULL: the default */
    int first_rank, n_ranks;
    struct rt_inbox *inbox; /* what was read from in_fd already, malloc'ed; NULL: nothing */
};

struct launch_watch_options {
    const struct launch_end *ends;
    int n_ends;
    int front_fd; /* our end of the front end's connection, where rank 0 is reached through its agent; else −1 */
};

struct launch_watch;

/* Takes over descriptors, inboxes and children in any case. */
enum st launch_watch_start(const struct launch_watch_options *options, struct launch_watch **w, struct err *e);

/* Of an end that no watch took: ends its agent. */
void launch_end_close(const struct launch_end *end, int wait_ms);

/* Readable once an agent has told its story, or all are gone. */
int launch_watch_fd(const struct launch_watch *w);

/* How it ended, within the time: ST_PEER_LOST with the story; ST_OK: all agents left in peace; ST_AGAIN: nothing is known yet. */
enum st launch_watch_story(struct launch_watch *w, int timeout_ms, struct err *e);

/* Tells the agents that it is over, gives them some time, kills them; their ranks die with them. Frees. */
void launch_watch_stop(struct launch_watch *w);

#endif
