/* The launcher's half of its conversation with the agents of a job (the other half: warden.h): sends beats, hears the agents' beats and stories, judges who is silent, finds the cause that is
 * worth most, passes on the ranks' PMI-1 and the front end's bytes where there are several hosts, and tells the agents that it is over.
 *
 * create → watch (returns once all agents are gone, or stop_fd is readable) → end → destroy. One thread calls all of it. What must be done to processes it asks of hands, all else of
 * comm/os.h and a clock: so the simulated world (docs/simulator.md) runs it as it is. watch.h has the thread, the children and the signals. */
#ifndef LAUNCHER_OVERSEER_H
#define LAUNCHER_OVERSEER_H

#include <stdbool.h>
#include <sys/types.h>

#include "comm/comm.h"
#include "comm/os.h"
#include "launcher/life.h"
#include "runtime/protocol.h"

#define LAUNCH_SILENCE_HOST_MS 2500 /* another host's agent, by ssh: with the time to end the job, 4 s in all */
#define LAUNCH_BEAT_MS 500
#define LAUNCH_KILL_MS 600 /* is waited for a second call to a host whose agent is silent: the command shall return in time */
#define LAUNCH_MAX_ENDS COMM_MAX_RANKS

/* What a rank's end tells: a killed one knows more than one that failed, and that more than one that only missed a peer. */
enum launch_worth { LAUNCH_WORTH_LOST_PEER = 1, LAUNCH_WORTH_FAILED, LAUNCH_WORTH_KILLED };

/* By the number of the end. Of an agent that is our child, or that something leads to (ssh) which is: its end is then the child's. */
struct launch_overseer_hands {
    void *context;
    bool (*has_ended)(void *context, int i_end, int *status);                       /* the child; its status as waitpid has it */
    bool (*look)(void *context, int i_end, struct launch_life_sample *sample);      /* at an agent that is our child; false: it is gone */
    void (*kill)(void *context, int i_end);                                         /* the agent: on another host for LAUNCH_KILL_MS at most */
    void (*last_words)(void *context, int i_end, char *text, size_t bytes);         /* of what led to another host, once it has ended */
    void (*let_go)(void *context, int i_end, int grace_ms);                         /* of what leads to another host: ends it, with the descriptors that are its own */
    void (*end_sending)(void *context, int fd);                                     /* the other side shall see the end, and can still be heard */
    void (*sleep)(void *context, uint64_t ns);
    void (*stand_still)(void *context);                                             /* the agents know: empties pause_fd, and returns when the job is to go on */
    void (*settled)(void *context, const struct err *story, bool is_over);          /* story: the last one, or NULL; is_over: all agents are gone. Each once */
};

/* One agent. */
struct launch_overseer_end {
    const char *host;  /* as typed; NULL: the agent of this host, with no others */
    int in_fd, out_fd; /* from it, to it; may be the same socket */
    bool is_remote;    /* on another host; else it is our child */
    bool is_direct;    /* the descriptors lead over the way that was decided and are ours to close, also where is_remote */
    pid_t pid;         /* of our child */
    int first_rank, n_ranks;
    struct rt_inbox inbox; /* what was read from in_fd already; taken over */
};

struct launch_overseer_options {
    const struct launch_overseer_end *ends;
    int n_ends;
    int front_fd; /* our end of the front end's connection, where rank 0 is reached through its agent; else −1 */
    int stop_fd;  /* readable: leave */
    int pause_fd; /* readable: the launcher will stand still, and silence is meant; −1: never */
    struct launch_overseer_hands hands;
    const struct comm_os *os;        /* NULL: this machine's */
    const struct base_clock *clock;  /* NULL: this machine's */
    size_t front_limit;              /* so many bytes may wait for the front end, or for rank 0, before the other one has to; 0: 4 MiB */
};

struct launch_overseer;

/* Takes over descriptors and inboxes if it returns ST_OK. */
enum st launch_overseer_create(const struct launch_overseer_options *options, struct launch_overseer **o, struct err *e);
void launch_overseer_watch(struct launch_overseer *o);
/* Tells the agents, all at once, that it is over, gives each some time, kills it; closes everything. */
void launch_overseer_end(struct launch_overseer *o);
void launch_overseer_destroy(struct launch_overseer *o);

#endif
