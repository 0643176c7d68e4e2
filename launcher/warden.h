/* The agent's half of its conversation with the launcher (the other half: overseer.h), and its watch over its ranks: sends beats, hears the launcher and judges its silence, finds ranks that
 * are dead or frozen, chooses of their stories the one that is worth most, serves or passes on their PMI-1, passes on the front end's bytes to and from rank 0, and says the last words.
 *
 * init → (the owner fills in what it has) → watch → say_last → release. One thread calls all of it. What must be asked of processes it asks of hands, all else of comm/os.h and a clock: so
 * the simulated world (docs/simulator.md) runs it as it is. agent.h has the processes. */
#ifndef LAUNCHER_WARDEN_H
#define LAUNCHER_WARDEN_H

#include "comm/comm.h"
#include "comm/os.h"
#include "launcher/life.h"
#include "launcher/outbox.h"
#include "launcher/pmi.h"
#include "launcher/pulse.h"
#include "runtime/vitals.h"

enum launch_warden_signal { LAUNCH_SIGNAL_NONE, LAUNCH_SIGNAL_CHILD, LAUNCH_SIGNAL_GO };

struct launch_warden_hands {
    void *context;
    enum launch_warden_signal (*signal)(void *context);                         /* that signal_fd is readable for: a child has ended, or we shall go. It is taken off */
    bool (*reap)(void *context, int *rank, int *status);                        /* a rank that has ended, with its status as waitpid has it; false: no more */
    bool (*look)(void *context, pid_t pid, struct launch_life_sample *sample);  /* at a rank, or the launcher; false: it is gone */
    bool (*news)(void *context, struct launch_pulse_news *news);                /* of other hosts, for which news_fd is readable; false: no more */
    void (*end_sending)(void *context, int fd);                                 /* the other side shall see the end, and can still be heard */
};

struct launch_warden {
    /* The owner's, before watch. */
    struct launch_warden_hands hands;
    const struct comm_os *os;       /* NULL: this machine's */
    const struct base_clock *clock; /* NULL: this machine's */
    int in_fd, out_fd;              /* the launcher; the same socket on its own host. −1: there is none */
    int signal_fd, news_fd;         /* −1: none */
    struct rt_inbox control;        /* of in_fd */
    struct launch_outbox out;
    pid_t launcher; /* whose process can be looked at; 0: it cannot */
    bool relays;    /* one of several hosts: ranks' PMI-1 and the front end go through us */
    int n_ranks, first, end; /* of the job; our ranks: first … end − 1 */
    pid_t pids[COMM_MAX_RANKS]; /* of ours; 0: it has ended */
    int n_alive;
    struct rt_vitals *vitals;    /* [n_ranks] */
    struct launch_pmi *pmi;      /* NULL: nobody here needs it, or we relay it; ours to destroy */
    int pmi_fds[COMM_MAX_RANKS]; /* our ends; −1: none, or closed */
    int front_fd;                /* our end of rank 0's connection to the front end, where we relay it; −1 */
    size_t front_limit;          /* so many bytes may wait for the launcher before rank 0 has to; 0: 256 KiB, since what we have to say comes behind them */

    struct err story; /* why the job ends; empty: there is no reason */
    int story_worth;  /* enum launch_worth; a better one replaces it */

    /* Its own. */
    struct launch_outbox front_out, pmi_out[COMM_MAX_RANKS]; /* what the launcher says to rank 0, to ranks */
    bool front_has_ended;                                    /* that is all it will say */
    struct launch_life life[COMM_MAX_RANKS], launcher_life;
    uint64_t blind_ns[COMM_MAX_RANKS]; /* since when it waits blindly; 0: it does not */
    uint64_t heard_ns; /* the launcher, last */
    uint64_t beat_ns, looked_ns;
    bool is_paused; /* by the launcher's user */
    bool has_failed; /* what is passed on has a gap: no more of it */
    bool has_lost;  /* another host, and said so */
    bool is_held;   /* what rank 0 says, by the launcher: its front end is slow */
    bool is_peace;  /* all ranks have left so, and the launcher was there to the end */
};

void launch_warden_init(struct launch_warden *w);
/* Also before watch: a beat, where one is due; and what news there are (true: a host is lost). Both end in out. */
void launch_warden_beat(struct launch_warden *w);
bool launch_warden_take_news(struct launch_warden *w);
/* Until all ranks have left in peace (0), one ended badly or the launcher is gone (1). */
int launch_warden_watch(struct launch_warden *w);
/* The last words, and whatever of the ranks' still waits: for a moment, since the launcher may be gone. False: it does not hear our story. */
bool launch_warden_say_last(struct launch_warden *w);
/* Memory; the PMI-1 server; what ranks hold the other ends of. in_fd and out_fd are the owner's. */
void launch_warden_release(struct launch_warden *w);

#endif
