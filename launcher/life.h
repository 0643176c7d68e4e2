/* Is a process alive, stopped, frozen, or merely slow? Judged from its counter of progress and from what the kernel says of its threads.
 *
 * A process that does nothing for LAUNCH_SILENCE_MS although it could is frozen. It could not where one of its threads wanted to run and got (nearly) no time: a starved or throttled
 * process is slow, not dead; nor while one is in uninterruptible sleep, which is how a slow disk looks. */
#ifndef LAUNCHER_LIFE_H
#define LAUNCHER_LIFE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LAUNCH_SILENCE_MS 4400 /* with a look every LAUNCH_LOOK_MS and the second to end the job: 6 s in all */
#define LAUNCH_LOOK_MS 250
/* A rank that meets the others cannot count. That ends by its own deadlines: of opening, of greeting and, in bench comm, of opening MPI beside, 60 s each. */
#define LAUNCH_BLIND_MS 200000

/* What the kernel says now. */
struct launch_life_sample {
    bool runnable;   /* a thread runs or wants to */
    bool blocked;    /* a thread is in uninterruptible sleep */
    bool stopped;    /* all threads were stopped by a signal */
    uint64_t cpu_ns; /* that all threads have had so far */
};
/* false: there is no such process (any more). */
bool launch_life_read(pid_t pid, struct launch_life_sample *sample);

/* What is remembered from look to look; zero at the beginning. */
struct launch_life {
    uint64_t progress;
    uint64_t unchanged_ns; /* when it was first seen as it is */
    uint64_t stopped_ns;   /* when it was first seen stopped; 0: it is not */
    uint64_t cpu_ns;       /* had when unchanged_ns was set */
};

enum launch_verdict { LAUNCH_WELL, LAUNCH_STOPPED, LAUNCH_FROZEN };

/* Pure. progress: its counter. excused: no progress is due (it waits for somebody else); being stopped is seen all the same. *silent_ms: since when nothing was done, for the verdict's
 * sentence. */
enum launch_verdict launch_life_judge(struct launch_life *life, uint64_t progress, bool excused, const struct launch_life_sample *sample, uint64_t now_ns, uint64_t *silent_ms);

/* For sentences of a host's end: "rank 1 was", "ranks 2-3 were"; returns text. */
#define LAUNCH_WHO_TEXT 40
const char *launch_life_who(int first_rank, int n_ranks, char text[LAUNCH_WHO_TEXT]);

#endif
