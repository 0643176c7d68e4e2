/* What launches ask of memory: bytes, 32-byte sectors, bank conflicts.
 *
 * The lanes of a warp execute one after another here, so a warp's request is put together again: the n-th time that a lane executes a place in the source belongs
 * with the n-th time of its neighbours. That depends on no schedule; the counts are the same for every seed.
 * Sectors: the distinct 32-byte pieces that a request touches. Bank conflicts: further passes over the 32 banks of 4 bytes, where two lanes want different words of one
 * bank; requests of 8 bytes are taken by half warps, of 16 by quarters. */
#include "kernels/simt/engine.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>

namespace simt {

static bool on, asked;
static std::vector<std::pair<launch_counts, std::map<uint32_t, std::string>>> launches;
static std::map<uint32_t, std::string> names;
static std::string text;

static void write_at_exit() {
    const char *path = getenv("TANDEM_SIMT_COUNTS");
    FILE *f = path ? fopen(path, "w") : nullptr;
    if (!f || fputs(simt_counts_json(), f) < 0 || fclose(f) != 0)
        fprintf(stderr, "TANDEM_SIMT_COUNTS=%s: cannot be written\n", path);
}

bool counting() {
    if (!asked) {
        asked = true;
        if (getenv("TANDEM_SIMT_COUNTS")) {
            on = true;
            atexit(write_at_exit);
        }
    }
    return on;
}

static void finish(const counted_request &r, launch_counts &c) {
    uintptr_t pieces[32 * 9]; /* of 4 bytes or of 32 */
    if (r.shared) {
        unsigned group = r.bytes > 8 ? 8 : r.bytes > 4 ? 16 : 32; /* lanes that are served at once */
        c.shared_requests++;
        for (unsigned first = 0; first < 32; first += group) {
            size_t n = 0, worst = 0, in_bank[32] = {0};
            for (unsigned l = first; l < first + group; l++)
                if (r.lanes >> l & 1)
                    for (uintptr_t w = (uintptr_t)r.address[l] / 4; w <= ((uintptr_t)r.address[l] + r.bytes - 1) / 4 && n < sizeof pieces / sizeof *pieces; w++)
                        pieces[n++] = w;
            std::sort(pieces, pieces + n);
            n = (size_t)(std::unique(pieces, pieces + n) - pieces);
            for (size_t i = 0; i < n; i++)
                worst = std::max(worst, ++in_bank[pieces[i] % 32]);
            c.bank_conflicts += worst > 1 ? worst - 1 : 0;
        }
        return;
    }
    size_t n = 0;
    uint64_t bytes = 0;
    const region *buffer = nullptr;
    for (unsigned l = 0; l < 32; l++)
        if (r.lanes >> l & 1) {
            buffer = buffer ? buffer : region_find(r.address[l]);
            bytes += r.bytes;
            for (uintptr_t s = (uintptr_t)r.address[l] / 32; s <= ((uintptr_t)r.address[l] + r.bytes - 1) / 32 && n < sizeof pieces / sizeof *pieces; s++)
                pieces[n++] = s;
        }
    std::sort(pieces, pieces + n);
    uint64_t sectors = (uint64_t)(std::unique(pieces, pieces + n) - pieces);
    if (!buffer)
        return;
    names[buffer->number] = buffer->name;
    launch_counts::buffer &b = c.buffers[buffer->number];
    (r.store ? b.store_bytes : b.load_bytes) += bytes;
    (r.store ? b.store_sectors : b.load_sectors) += sectors;
}

void count_access(thread &t, const void *p, size_t bytes, bool shared, bool store, site at) {
    if (shared) /* as if the block's memory began at an address that is a multiple of all banks */
        p = (const void *)((const unsigned char *)p - t.in_block->shared);
    uint32_t *n = nullptr;
    /* loads and stores may stand on one line */
    site key = {at.file, at.line * 4 + (shared ? 2 : 0) + (store ? 1 : 0)};
    for (auto &e : t.executed)
        if (e.first == key)
            n = &e.second;
    if (!n) {
        t.executed.emplace_back(key, 0);
        n = &t.executed.back().second;
    }
    auto which = std::make_pair(key, (*n)++);
    counted_request &r = t.in_warp->requests[which];
    r.shared = shared;
    r.store = store;
    r.bytes = (uint16_t)bytes;
    r.address[t.lane] = p;
    r.lanes |= 1u << t.lane;
    uint32_t all = t.in_warp->lanes.size() == 32 ? 0xffffffffu : (1u << t.in_warp->lanes.size()) - 1;
    if (r.lanes == all) {
        finish(r, t.in_block->of->counts);
        t.in_warp->requests.erase(which);
    }
}

/* By no warp: a piece of memory as it lies. */
void count_bulk(launch &l, const void *p, size_t bytes, bool store) {
    const region *buffer = region_find(p);
    if (!buffer || bytes == 0) return;
    names[buffer->number] = buffer->name;
    launch_counts::buffer &b = l.counts.buffers[buffer->number];
    (store ? b.store_bytes : b.load_bytes) += bytes;
    (store ? b.store_sectors : b.load_sectors) += ((uintptr_t)p + bytes - 1) / 32 - (uintptr_t)p / 32 + 1;
}

void count_warp_done(warp &w, launch &l) {
    for (const auto &r : w.requests)
        finish(r.second, l.counts);
    w.requests.clear();
}

void count_launch_done(const launch_counts &c) {
    if (counting())
        launches.emplace_back(c, names);
}

} // namespace simt

using namespace simt;

void simt_counts_start(void) {
    asked = on = true;
    launches.clear();
}

static std::string number(uint64_t n) { return std::to_string(n); }

const char *simt_counts_json(void) {
    text = "{\"launches\": [";
    for (size_t i = 0; i < launches.size(); i++) {
        const launch_counts &c = launches[i].first;
        text += std::string(i ? ",\n" : "\n") + "  {\"kernel\": \"" + c.kernel + "\", \"grid\": [" + number(c.grid.x) + ", " + number(c.grid.y) + ", " + number(c.grid.z) +
                "], \"block\": [" + number(c.block_dim.x) + ", " + number(c.block_dim.y) + ", " + number(c.block_dim.z) + "], \"shared_bytes\": " +
                number(c.shared_bytes) + ", \"barriers\": " + number(c.barriers) + ", \"fma\": " + number(c.fma) + ", \"mma\": " + number(c.mma) +
                ", \"shared_requests\": " + number(c.shared_requests) + ", \"bank_conflicts\": " + number(c.bank_conflicts) + ",\n   \"buffers\": [";
        bool first = true;
        for (const auto &b : c.buffers) {
            text += std::string(first ? "" : ",") + "\n    {\"buffer\": \"" + launches[i].second.at(b.first) + "\", \"load_bytes\": " + number(b.second.load_bytes) +
                    ", \"load_sectors\": " + number(b.second.load_sectors) + ", \"store_bytes\": " + number(b.second.store_bytes) + ", \"store_sectors\": " +
                    number(b.second.store_sectors) + "}";
            first = false;
        }
        text += "]}";
    }
    text += "]}\n";
    return text.c_str();
}
