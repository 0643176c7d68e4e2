/* Inside the world of supervision: t_sim_supervision.c has launcher, agents and what the kernel does, t_sim_supervised.c the ranks and the front end, t_sim_supervision_check.c what must hold,
 * t_sim_supervision_planted.c the faults that must be found. */
#ifndef TESTS_T_SIM_SUPERVISION_PRIV_H
#define TESTS_T_SIM_SUPERVISION_PRIV_H

#include "base/rng.h"
#include "launcher/overseer.h"
#include "launcher/warden.h"
#include "tests/t_sim_priv.h"

enum { MAX_AGENTS = 3, RANKS_EACH = 2, MAX_ALL = MAX_AGENTS * RANKS_EACH, LAUNCHER = 0, FIRST_AGENT = 1, FIRST_PID = 100 };
#define MS BASE_NS_PER_MS
#define STORY_WAIT_NS BASE_NS_PER_S /* launcher/job.c: how long a front end waits for the reason of an end */

struct sim_rank {
    int task, agent, pmi_fd, front_fd; /* −1: none, or closed */
    int status;                        /* as waitpid has it */
    bool has_ended, is_reaped, is_done;
    uint64_t end_ns, fail_ns, lost_after_ns; /* fail_ns 0: never */
    char line[1200];                         /* of PMI-1: what was read and not used */
    size_t n_line;
};

struct sim_agent {
    struct launch_warden warden;
    char host[24];
    int task, in_fd, first, n_ranks, status;
    bool is_local, is_direct, has_returned, is_open; /* open: its bells can be rung */
    uint64_t end_ns;
    uint64_t ssh_lag_ns, alone_ns;                   /* alone: when ssh ends by itself; 0: it does not */
    struct rt_vitals vitals[MAX_ALL];
    struct launch_pulse_news news[MAX_AGENTS];
    bool is_told[MAX_AGENTS];
    int n_news, n_taken;
};

struct sim_job {
    struct comm_sim *s;
    struct comm_sim_weather weather;
    enum t_sim_supervision_planted planted;
    int n_agents, n_ranks, front_task, news_task, n_tasks, hang;
    bool has_hosts, has_pmi;
    struct sim_agent agents[MAX_AGENTS];
    struct sim_rank ranks[MAX_ALL];
    size_t front_limit, n_down, n_up; /* bytes of the front end to rank 0, and back */
    size_t down, up, sent_down, sent_up;
    uint64_t work_ns, read_pause_ns, leave_ns; /* leave: the user does; 0: never */
    size_t read_bytes;

    int front_fd, told_bell, stop_bell, pause_bell, launcher_front_fd, launcher_fds[MAX_AGENTS];
    bool ranks_are_done, has_story, is_over, has_left, is_whole, is_unexplained, is_front_through;
    long starve_at; /* 0: never */
    bool was_starved;
    uint64_t pause_ns, paused_until_ns; /* the user stops the launcher at that time; 0: he does not */
    uint64_t pause_for_ns, pause_pressed_ns;
    struct err story;
    uint64_t story_ns, left_ns, launcher_end_ns;
    const struct base_clock *clock; /* the launcher's sound one */
    struct comm_os systems[COMM_SIM_MAX_TASKS];
    char wrong[300];
};
extern struct sim_job job; /* one at a time: hooks have no context of their own */

static inline uint64_t now(void) { return comm_sim_now_ns(job.s); }
static inline bool is_dead(int task) { return comm_sim_is_dead(job.s, task); }
static inline bool has_gone(int task) { return is_dead(task) || comm_sim_has_ended(job.s, task); }
static inline bool is_stuck(int task) { return comm_sim_is_frozen(job.s, task) && !comm_sim_will_thaw(job.s, task); }

/* ---- t_sim_supervision.c ------------------------------------------------------------------------------------------------------------------------------------ */

void t_sim_job_wrong(const char *who, int i, const char *what);
int t_sim_job_task(const struct comm_os *os);
/* Gets nothing through from a to b now, by a fault that has begun? *since_ns: when it has; or NULL. */
bool t_sim_job_is_cut(int a, int b, uint64_t *since_ns);

/* ---- t_sim_supervised.c ------------------------------------------------------------------------------------------------------------------------------------- */

void t_sim_job_run_rank(struct sim_rank *k);
void t_sim_job_run_front(void);

/* ---- t_sim_supervision_check.c ------------------------------------------------------------------------------------------------------------------------------ */

bool t_sim_job_check(struct t_sim_outcome *out);

/* ---- t_sim_supervision_planted.c ---------------------------------------------------------------------------------------------------------------------------- */

void t_sim_job_plant(struct comm_os *os, int task);

#endif
