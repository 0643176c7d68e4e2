/* What launches ask of memory: bytes, 32-byte sectors, bank conflicts.
 *
 * The lanes of a warp execute one after another here, so a warp's request is put together again: the n-th time that a lane executes a place in the source belongs
 * with the n-th time of its neighbours. That depends on no schedule; the counts are the same for every seed.
 * Bytes: those that a request touches, each once; lanes that want the same ones get them by one transfer. Sectors: the distinct 32-byte pieces of them.
 * From memory: the sectors of loads that miss in a cache as large as the device's L2, which holds lines of 128 bytes by sectors, throws out what was not used
 * for longest, and is empty when a launch begins. It sees blocks one after another, in the order of their numbers, and in a block warp after warp: that is no
 * GPU's order, but the same whatever the seed.
 * Bank conflicts: further passes over the 32 banks of 4 bytes, where two lanes want different words of one bank; requests of 8 bytes are taken by half warps, of 16 by quarters. */
#include "kernels/simt/engine.h"

#include <algorithm>
#include <list>
#include <stdio.h>
#include <stdlib.h>
#include <unordered_map>

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

static void finish(const counted_request &r, const warp &by, launch_counts &c) {
    if (r.shared) {
        uintptr_t pieces[32 * 9];                                 /* of 4 bytes */
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
    uintptr_t begins[32], end = 0;
    size_t n_begins = 0;
    std::vector<uintptr_t> sectors;
    for (unsigned l = 0; l < 32; l++)
        if (r.lanes >> l & 1) begins[n_begins++] = (uintptr_t)r.address[l];
    std::sort(begins, begins + n_begins);
    const region *buffer = region_find((const void *)begins[0]);
    if (!buffer)
        return;
    uint64_t bytes = 0;
    for (size_t i = 0; i < n_begins; i++) {
        uintptr_t from = std::max(begins[i], end);
        end = std::max(end, begins[i] + r.bytes);
        bytes += end - from;
        for (uintptr_t s = from / 32; from < end && s <= (end - 1) / 32; s++)
            if (sectors.empty() || sectors.back() != s) sectors.push_back(s);
    }
    names[buffer->number] = buffer->name;
    launch_counts::buffer &b = c.buffers[buffer->number];
    (r.store ? b.store_bytes : b.load_bytes) += bytes;
    (r.store ? b.store_sectors : b.load_sectors) += sectors.size();
    std::vector<touched> &of_warp = c.touches[std::make_pair(by.lanes[0]->in_block->index, by.lanes[0]->index / 32)];
    for (size_t i = 0; i < sectors.size(); i++)
        if (i && sectors[i] == sectors[i - 1] + 1)
            of_warp.back().n_sectors++;
        else
            of_warp.push_back({sectors[i], 1, buffer->number, r.store});
}

/* ---- the cache --------------------------------------------------------------------------------------------------------------------------------------------- */

constexpr uintptr_t line_sectors = 4;

struct cache {
    struct line {
        uintptr_t number;
        unsigned sectors; /* a bit for each that is there */
    };
    std::list<line> lines; /* the last one used first */
    std::unordered_map<uintptr_t, std::list<line>::iterator> where;
    size_t capacity = config().device->l2_bytes / (line_sectors * 32);

    /* Is the sector there? From now on it is. */
    bool touch(uintptr_t sector) {
        unsigned bit = 1u << sector % line_sectors;
        auto at = where.find(sector / line_sectors);
        if (at == where.end()) {
            if (lines.size() == capacity) {
                where.erase(lines.back().number);
                lines.pop_back();
            }
            lines.push_front({sector / line_sectors, bit});
            where[sector / line_sectors] = lines.begin();
            return false;
        }
        lines.splice(lines.begin(), lines, at->second);
        bool there = lines.front().sectors & bit;
        lines.front().sectors |= bit;
        return there;
    }
};

static void count_misses(launch_counts &c) {
    cache l2;
    for (const auto &of_warp : c.touches)
        for (const touched &t : of_warp.second)
            for (uint32_t i = 0; i < t.n_sectors; i++)
                if (!l2.touch(t.first_sector + i) && !t.store) c.buffers[t.buffer].memory_sectors++;
    c.touches.clear();
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
        finish(r, *t.in_warp, t.in_block->of->counts);
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
    uintptr_t first = (uintptr_t)p / 32, n = ((uintptr_t)p + bytes - 1) / 32 - first + 1;
    (store ? b.store_sectors : b.load_sectors) += n;
    l.counts.touches[std::make_pair(self->in_block->index, self->index / 32)].push_back({first, (uint32_t)n, buffer->number, store});
}

void count_warp_done(warp &w, launch &l) {
    for (const auto &r : w.requests) finish(r.second, w, l.counts);
    w.requests.clear();
}

void count_launch_done(launch_counts &c) {
    if (!counting()) return;
    count_misses(c);
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
            text += std::string(first ? "" : ",") + "\n    {\"buffer\": \"" + launches[i].second.at(b.first) +
                    "\", \"load_bytes\": " + number(b.second.load_bytes) + ", \"load_sectors\": " + number(b.second.load_sectors) +
                    ", \"store_bytes\": " + number(b.second.store_bytes) + ", \"store_sectors\": " + number(b.second.store_sectors) +
                    ", \"memory_sectors\": " + number(b.second.memory_sectors) + "}";
            first = false;
        }
        text += "]}";
    }
    text += "]}\n";
    return text.c_str();
}
