/* Life between hosts: agents send each other packets over the decided way, a few a second, on a thread of their own, and judge by them whether the other host is there.
 *
 * open (a socket for each way, before ports are told) → start (connected to the others' ports; the thread begins) → watch (once there are ranks) → next for what it found → stop, which
 * tells the others how we leave. Everything but the thread's own work is called by one other thread.
 *
 * A packet says how far the sender's ranks are and how long ago it heard the receiver last: so both sides know when packets get through in one direction only. A host that nothing was heard of
 * for LAUNCH_PULSE_SILENCE_MS is lost, unless we did not run ourselves in that time. A process that dies, stops or hangs on a host that lives is its own agent's to tell.
 * Packets prove by a keyed digest that they are of this job, from that host to this one; old ones do not count again. Sockets are connected: the kernel passes on nothing from elsewhere. */
#ifndef LAUNCHER_PULSE_H
#define LAUNCHER_PULSE_H

#include "launcher/ways.h"
#include "runtime/vitals.h"

/* From a cut cable to the command's return 4 s at most: with the last packet before the cut up to one period old, this leaves 1.5 s for ending the job. */
#define LAUNCH_PULSE_SILENCE_MS 2300
#define LAUNCH_PULSE_PERIOD_MS 200

/* ---- packets: pure -------------------------------------------------------------------------------------------------------------------------------------- */

enum launch_beat_kind { LAUNCH_BEAT_HERE = 1, LAUNCH_BEAT_LEFT, LAUNCH_BEAT_FAILED, LAUNCH_BEAT_LOST_YOU };
#define LAUNCH_BEAT_NEVER UINT32_MAX

struct launch_beat_rank {
    uint64_t progress;
    uint32_t step, phase;
    uint32_t step_ms, waited_ms; /* in steps so far; of that in exchanges, for others */
};
/* magic 8 · kind 1 · from host 1 · to host 1 · ranks 1 · heard 4 · number 8 · zero 8 · for each rank: progress 8, step 4, phase 4, step_ms 4, waited_ms 4 · keyed BLAKE2b 32 of what is
 * before. Little-endian. */
#define LAUNCH_BEAT_HEAD_BYTES 32
#define LAUNCH_BEAT_RANK_BYTES 24
#define LAUNCH_BEAT_MAX_BYTES (LAUNCH_BEAT_HEAD_BYTES + 64 * LAUNCH_BEAT_RANK_BYTES + 32)
struct launch_beat {
    enum launch_beat_kind kind;
    int from_host, to_host, n_ranks;
    uint32_t heard_ms; /* since the last packet of the receiver's; LAUNCH_BEAT_NEVER */
    uint64_t number;   /* grows with each packet between the two */
    struct launch_beat_rank ranks[64];
};
/* Returns its length. */
size_t launch_beat_put(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const struct launch_beat *b, uint8_t out[LAUNCH_BEAT_MAX_BYTES]);
/* False: not of this job, cut, or malformed. */
bool launch_beat_get(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const uint8_t *data, size_t bytes, struct launch_beat *b);

/* How much longer the slowest host worked at the same steps than the others on average; pure. worked_ms [n]: in that time, in steps and not waiting. 0: nobody is slow enough to matter. */
double launch_pulse_slowness(const uint32_t *worked_ms, int n, uint32_t window_ms, int *slowest);

/* ---- the engine ------------------------------------------------------------------------------------------------------------------------------------------ */

struct launch_pulse;

/* Fills the ports' beat. */
enum st launch_pulse_open(const struct launch_ways *ways, struct launch_port *ports, struct launch_pulse **p, struct err *e);
/* ports: of the others. */
enum st launch_pulse_start(struct launch_pulse *p, const struct launch_port *ports, size_t n, struct err *e);
/* From now on tells of our ranks, and writes what is told of others into their rows; vitals [ranks of the job]. judges_speed: where all have equal shares. */
void launch_pulse_watch(struct launch_pulse *p, struct rt_vitals *vitals, int n_ranks, bool judges_speed);

struct launch_pulse_news {
    bool is_lost; /* else it is slow: told once */
    int host;
    char text[400];
};
int launch_pulse_fd(const struct launch_pulse *p); /* readable where there are news */
bool launch_pulse_next(struct launch_pulse *p, struct launch_pulse_news *news);

void launch_pulse_stop(struct launch_pulse *p, enum launch_beat_kind why);

#endif
