/* Life between hosts: agents send each other packets over the decided way, a few a second, on a thread of their own, and judge by them whether the other host is there.
 *
 * open (a socket for each way, before ports are told) → start (connected to the others' ports; the thread begins) → watch (once there are ranks) → next for what it found → stop, which
 * tells the others how we leave. Everything but the thread's own work is called by one other thread.
 *
 * A packet says how far the sender's ranks are and how long ago it heard the receiver last: so both sides know when packets get through in one direction only. A host that nothing was heard of
 * for LAUNCH_PULSE_SILENCE_MS is lost, unless we did not run ourselves in that time. A process that dies, stops or hangs on a host that lives is its own agent's to tell.
 * Packets prove by a keyed digest that they are of this job, from that host to this one; old ones do not count again. Sockets are connected: the kernel passes on nothing from elsewhere.
 * All that the thread asks of the system goes through comm/os.h and a clock: in a simulated world (docs/simulator.md) there is no thread, and whoever plays a host calls turn instead. */
#ifndef LAUNCHER_PULSE_H
#define LAUNCHER_PULSE_H

#include "comm/os.h"
#include "launcher/beat.h"
#include "launcher/ways.h"
#include "runtime/vitals.h"

/* From a cut cable to the command's return 4 s at most: with the last packet before the cut up to one period old, this leaves 1.5 s for ending the job. */
#define LAUNCH_PULSE_SILENCE_MS 2300
#define LAUNCH_PULSE_PERIOD_MS 200

/* How much longer the slowest host worked at the same steps than the others on average; pure. worked_ms [n]: in that time, in steps and not waiting. 0: nobody is slow enough to matter. */
double launch_pulse_slowness(const uint32_t *worked_ms, int n, uint32_t window_ms, int *slowest);

/* ---- the engine ------------------------------------------------------------------------------------------------------------------------------------------ */

struct launch_pulse;

struct launch_pulse_world {
    const struct comm_os *os; /* both outlive the pulse */
    const struct base_clock *clock;
};

/* Fills the ports' beat. world NULL: the real one. */
enum st launch_pulse_open(const struct launch_ways *ways, const struct launch_pulse_world *world, struct launch_port *ports, struct launch_pulse **p, struct err *e);
/* ports: of the others. */
enum st launch_pulse_start(struct launch_pulse *p, const struct launch_port *ports, size_t n, struct err *e);
/* From now on tells of our ranks, and writes what is told of others into their rows; vitals [ranks of the job]. judges_speed: where all have equal shares. */
void launch_pulse_watch(struct launch_pulse *p, struct rt_vitals *vitals, int n_ranks, bool judges_speed);

struct launch_pulse_news {
    bool is_lost; /* else it is slow: told once */
    int host;
    char text[400];
};
int launch_pulse_fd(const struct launch_pulse *p); /* readable where there are news; −1 in a simulated world */
bool launch_pulse_next(struct launch_pulse *p, struct launch_pulse_news *news);

/* In a simulated world, what the thread does between two waits, and one wait. */
void launch_pulse_turn(struct launch_pulse *p);

void launch_pulse_stop(struct launch_pulse *p, enum launch_beat_kind why);

#endif
