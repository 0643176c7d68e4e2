/* Packets of life between agents of two hosts (pulse.h): how they lie on the wire, and which are believed. Pure. */
#ifndef LAUNCHER_BEAT_H
#define LAUNCHER_BEAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "launcher/probe.h"

enum launch_beat_kind { LAUNCH_BEAT_HERE = 1, LAUNCH_BEAT_LEFT, LAUNCH_BEAT_FAILED, LAUNCH_BEAT_LOST_YOU };

struct launch_beat_rank {
    uint64_t progress;
    uint32_t step, phase;
    uint32_t step_ms, waited_ms; /* in steps so far; of that in exchanges, for others */
};
/* magic 8 · kind 1 · from host 1 · to host 1 · ranks 1 · heard 4 · number 8 · zero 8 · for each rank: progress 8, step 4, phase 4, step_ms 4, waited_ms 4 · keyed BLAKE2b 32 of what is
 * before. Little-endian. */
#define LAUNCH_BEAT_HEAD_BYTES 32
#define LAUNCH_BEAT_RANK_BYTES 24
#define LAUNCH_BEAT_MAX_RANKS 64
#define LAUNCH_BEAT_MAX_BYTES (LAUNCH_BEAT_HEAD_BYTES + LAUNCH_BEAT_MAX_RANKS * LAUNCH_BEAT_RANK_BYTES + 32)
struct launch_beat {
    enum launch_beat_kind kind;
    int from_host, to_host, n_ranks;
    uint32_t heard_ms; /* since the last packet of the receiver's, or since one was first expected */
    uint64_t number;   /* grows with each packet between the two */
    struct launch_beat_rank ranks[LAUNCH_BEAT_MAX_RANKS];
};
/* Returns its length. */
size_t launch_beat_put(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const struct launch_beat *b, uint8_t out[LAUNCH_BEAT_MAX_BYTES]);
/* False: not of this job, cut, or malformed. */
bool launch_beat_get(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const uint8_t *data, size_t bytes, struct launch_beat *b);

#endif
