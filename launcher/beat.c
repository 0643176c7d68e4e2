#include "launcher/beat.h"

#include <string.h>

#include "base/hash.h"
#include "base/le.h"

#define MAGIC "tndmbt01"
enum { MAC_BYTES = 32 };

size_t launch_beat_put(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const struct launch_beat *b, uint8_t out[LAUNCH_BEAT_MAX_BYTES])
{
    memcpy(out, MAGIC, 8);
    uint8_t *at = base_put_le(out + 8, (uint64_t)b->kind, 1);
    at = base_put_le(at, (uint64_t)b->from_host, 1);
    at = base_put_le(at, (uint64_t)b->to_host, 1);
    at = base_put_le(at, (uint64_t)b->n_ranks, 1);
    at = base_put_le(at, b->heard_ms, 4);
    at = base_put_le(at, b->number, 8);
    at = base_put_le(at, 0, 8);
    for (int i = 0; i < b->n_ranks; i++) {
        const struct launch_beat_rank *r = &b->ranks[i];
        at = base_put_le(at, r->progress, 8);
        at = base_put_le(at, r->step, 4);
        at = base_put_le(at, r->phase, 4);
        at = base_put_le(at, r->step_ms, 4);
        at = base_put_le(at, r->waited_ms, 4);
    }
    (void)base_mac(key, out, (size_t)(at - out), at);
    return (size_t)(at - out) + MAC_BYTES;
}

bool launch_beat_get(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const uint8_t *data, size_t bytes, struct launch_beat *b)
{
    if (bytes < LAUNCH_BEAT_HEAD_BYTES + MAC_BYTES || bytes > LAUNCH_BEAT_MAX_BYTES || memcmp(data, MAGIC, 8) != 0 || data[11] > LAUNCH_BEAT_MAX_RANKS ||
        bytes != LAUNCH_BEAT_HEAD_BYTES + (size_t)data[11] * LAUNCH_BEAT_RANK_BYTES + MAC_BYTES || !base_mac_is(key, data, bytes - MAC_BYTES, data + bytes - MAC_BYTES))
        return false;
    if (data[8] < LAUNCH_BEAT_HERE || data[8] > LAUNCH_BEAT_LOST_YOU)
        return false;
    b->kind = (enum launch_beat_kind)data[8];
    b->from_host = data[9];
    b->to_host = data[10];
    b->n_ranks = data[11];
    b->heard_ms = (uint32_t)base_get_le(data + 12, 4);
    b->number = base_get_le(data + 16, 8);
    for (int i = 0; i < b->n_ranks; i++) {
        const uint8_t *at = data + LAUNCH_BEAT_HEAD_BYTES + i * LAUNCH_BEAT_RANK_BYTES;
        b->ranks[i] = (struct launch_beat_rank){
            .progress = base_get_le(at, 8),
            .step = (uint32_t)base_get_le(at + 8, 4),
            .phase = (uint32_t)base_get_le(at + 12, 4),
            .step_ms = (uint32_t)base_get_le(at + 16, 4),
            .waited_ms = (uint32_t)base_get_le(at + 20, 4),
        };
    }
    return true;
}
