/* What agents hear of other hosts, and of the launcher about ways to them. Input: 0 what (bit 0: ways, else a packet; bit 1: a packet's digest is mended first) · 1 … the bytes. */
#include <string.h>

#include "base/hash.h"
#include "launcher/pulse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const uint8_t key[LAUNCH_PROBE_KEY_BYTES] = {1};

static void hear_packet(const uint8_t *data, size_t bytes, bool mended)
{
    uint8_t packet[LAUNCH_BEAT_MAX_BYTES + 64], again[LAUNCH_BEAT_MAX_BYTES];
    struct launch_beat b;
    bytes = bytes < sizeof packet ? bytes : sizeof packet;
    memcpy(packet, data, bytes);
    if (mended && bytes >= LAUNCH_BEAT_HEAD_BYTES + 32)
        BASE_ASSERT(base_mac(key, packet, bytes - 32, packet + bytes - 32) == ST_OK);
    if (!launch_beat_get(key, packet, bytes, &b))
        return;
    BASE_ASSERT(b.n_ranks >= 0 && b.n_ranks <= 64 && b.kind >= LAUNCH_BEAT_HERE && b.kind <= LAUNCH_BEAT_LOST_YOU);
    BASE_ASSERT(launch_beat_put(key, &b, again) == bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct launch_ways in, out;
    if (bytes < 1)
        return 0;
    if (!(data[0] & 1)) {
        hear_packet(data + 1, bytes - 1, data[0] & 2);
        return 0;
    }
    /* What is cut is refused by its length; so the rest is zeroes. */
    memset(&in, 0, sizeof in);
    memcpy(&in, data + 1, bytes - 1 < sizeof in ? bytes - 1 : sizeof in);
    if (launch_ways_check(&in, sizeof in, &out, NULL) == ST_OK) {
        BASE_ASSERT(out.n >= 1 && out.n < LAUNCH_MAX_HOSTS && strlen(out.name) < sizeof out.name);
        for (uint32_t i = 0; i < out.n; i++)
            BASE_ASSERT(strlen(out.list[i].name) < sizeof out.list[i].name && out.list[i].first_rank + out.list[i].n_ranks <= 64);
    }
    return 0;
}
