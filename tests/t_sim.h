/* What runs in the simulated world, and what must hold there: a random program of hello, collectives, groups and events on 1 to 6 ranks, often watched by a supervisor that judges their signs
 * of life, in a weather of the same seed.
 *
 * What must hold: sums have the bits of the reference, and all else that arrives is what was sent; without a fault that somebody dies of all ranks get through; with one, each survivor says
 * so within its deadline and names who it was; the supervisor finds who is frozen, and nobody else; and all that comm/sim.h says of runs. */
#ifndef TESTS_T_SIM_H
#define TESTS_T_SIM_H

#include "comm/sim.h"

/* Faults of the program under test, planted to see that they are found. */
enum t_sim_planted {
    T_SIM_SOUND,
    T_SIM_NO_DEADLINE,    /* a wait sleeps without one */
    T_SIM_LOST_WAKEUP,    /* a sleeper forgets whom it waits for */
    T_SIM_SWAPPED_SUM,    /* vectors are added as if own ones came first */
    T_SIM_LEFT_FOLD,      /* vectors are added from left to right, not by the tree */
    T_SIM_SHORT_SEND,     /* a transfer that ended early is believed to be whole */
    T_SIM_LEAKED_MAPPING, /* a buffer is not given back */
    T_SIM_LEAKED_HEAP,    /* memory is not freed, where an exchange fails */
    T_SIM_LEAKED_SOCKET,  /* a socket is not closed */
    T_SIM_DEAF,           /* a wait begins anew when its deadline has passed */
    T_SIM_BLIND_JUDGE,    /* the supervisor takes waiting ranks as excused, whatever they do */
    T_SIM_SPURIOUS_LOSS,  /* an interrupted call is taken as the end of the connection */
    T_SIM_LATE_END,       /* the end of a connection is seen two seconds late */
    T_SIM_STALE_EVENTS,   /* events are applied when they come, not when an exchange says so */
    T_SIM_EARLY_SLOT,     /* what was sent without a copy is written again as soon as the own exchange is done */
    T_SIM_N_PLANTED
};
extern const char *const t_sim_planted_names[T_SIM_N_PLANTED];

struct t_sim_outcome {
    struct comm_sim_report report;
    int n_ranks;
    bool is_lethal; /* a fault that somebody had to report was met */
    int n_reports;  /* of survivors */
    char why[600];  /* of a failure */
};

/* One seed. False: something did not hold, which out->why says. log: an event a line; NULL: none. */
bool t_sim_run(struct comm_sim *s, uint64_t seed, enum t_sim_planted planted, FILE *log, struct t_sim_outcome *out);

/* The other world: life between hosts (launcher/pulse.h), each of which is a task. Who is lost is reported by every survivor, within its deadline; who is not, by nobody. */
enum t_sim_hosts_planted {
    T_SIM_HOSTS_SOUND,
    T_SIM_HOSTS_NO_DEADLINE,
    T_SIM_HOSTS_READ_LATE,
    T_SIM_HOSTS_MUTE,
    T_SIM_HOSTS_LEAKED_SOCKET,
    T_SIM_HOSTS_SLOW_CLOCK,
    T_SIM_HOSTS_N_PLANTED
};
extern const char *const t_sim_hosts_planted_names[T_SIM_HOSTS_N_PLANTED];
bool t_sim_hosts_run(struct comm_sim *s, uint64_t seed, enum t_sim_hosts_planted planted, FILE *log, struct t_sim_outcome *out);

/* The third: the supervision of a job, by a launcher (launcher/overseer.h) and its agents (launcher/warden.h). Who dies, freezes, fails or falls silent is reported in time, by the worthiest cause, and nobody
 * else; what is passed on arrives whole and in order, or somebody says why; no agent outlives its launcher. */
enum t_sim_supervision_planted {
    T_SIM_SUPERVISION_SOUND,
    T_SIM_SUPERVISION_NO_DEADLINE,
    T_SIM_SUPERVISION_MUTE_LAUNCHER,
    T_SIM_SUPERVISION_MUTE_AGENT,
    T_SIM_SUPERVISION_DROPPED_STORY,
    T_SIM_SUPERVISION_WORSE_CAUSE,
    T_SIM_SUPERVISION_LEAKED_SOCKET,
    T_SIM_SUPERVISION_LEAKED_HEAP, /* not under sanitizers, where nothing is counted */
    T_SIM_SUPERVISION_SHORT_SEND,
    T_SIM_SUPERVISION_DEAF_AGENT,
    T_SIM_SUPERVISION_LATE_DEATHS,
    T_SIM_SUPERVISION_SLOW_CLOCK,
    T_SIM_SUPERVISION_SPURIOUS_LOSS,
    T_SIM_SUPERVISION_TURNED,
    T_SIM_SUPERVISION_UNTOLD_PAUSE,
    T_SIM_SUPERVISION_N_PLANTED
};
extern const char *const t_sim_supervision_planted_names[T_SIM_SUPERVISION_N_PLANTED];
bool t_sim_supervision_run(struct comm_sim *s, uint64_t seed, enum t_sim_supervision_planted planted, FILE *log, struct t_sim_outcome *out);

#endif
