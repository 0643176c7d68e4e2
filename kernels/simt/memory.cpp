/* Device memory, and who may touch which byte when.
 *
 * Every byte of a buffer and of a block's shared memory has a cell: the record of its last write, and a list of the reads since, and of plain accesses that atomic ones would hide. A record is an access: which
 * operation, block, thread, at which clock of that thread, where in the source. An access races with an earlier one of the same byte if one of them writes, they
 * are not both atomic (of a scope that covers both, and of one size), and the earlier one did not happen before it: by streams and events where the operations differ
 * (operation_ordered), else by the thread's view. This is FastTrack's method (Flanagan and Freund, 2009) with lists in place of read clocks.
 * A byte whose cell has no write is uninitialised. */
#include "kernels/simt/engine.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace simt {

/* ---- records ---------------------------------------------------------------------------------------------------------------------------------------- */

struct record {
    uint32_t operation, block, thread, clock;
    site at;
    access_kind kind;
    scope of;
};
constexpr uint32_t whole_operation = ~0u; /* as a thread: a copy or a fill */
constexpr uint32_t long_ago = 1;          /* the record that is before everything */

struct reads {
    uint32_t record, next, length;
};
constexpr uint32_t longest_list = 64; /* readers of one byte that are remembered */

static std::vector<record> records(2);
static std::vector<reads> lists(1);

static bool is_atomic(access_kind k) { return k >= access_kind::atomic_load; }
static bool is_store(access_kind k) {
    return k == access_kind::store || k == access_kind::atomic_store || k == access_kind::b128_store || k == access_kind::v4_store;
}
static bool is_write(access_kind k) { return is_store(k) || k == access_kind::atomic_update; }
static bool is_b128(access_kind k) { return k == access_kind::b128_load || k == access_kind::b128_store; }
static bool is_v4(access_kind k) { return k == access_kind::v4_load || k == access_kind::v4_store; }
static const char *kind_name(access_kind k) {
    static const char *const names[] = {"load",      "store",      "atomic load", "atomic store", "atomic update",
                                        "b128 load", "b128 store", "v4 load",     "v4 store"};
    return names[(int)k];
}

/* Whoever is at it: a thread, a bulk copy that it asks for, or a whole operation (t NULL). */
struct actor {
    thread *t;
    uint32_t operation;
    bool is_bulk = false;
};

static bool is_agent(const record &r) {
    const dim3 &block = operation_at(r.operation).block_dim;
    return r.thread >= block.x * block.y * block.z;
}

static bool happened_before(const record &r, const actor &a) {
    bool mine = r.operation == a.operation;
    if (!mine && operation_ordered(r.operation, a.operation)) return true;
    if (!a.t) return mine;
    if (!mine && view_knows_over(a.t->knows, r.operation)) return true;
    /* What threads have written, its own thread among them, a bulk copy sees behind a proxy fence alone. That a place was read is known without one. */
    if (a.is_bulk && is_write(r.kind) && !is_agent(r))
        return a.t->knows && view_knows(a.t->knows->proxied, block_key(r.operation, r.block), r.thread, r.clock);
    if (mine && r.block == a.t->in_block->index && r.thread == a.t->index) return true;
    return view_knows(a.t->knows, block_key(r.operation, r.block), r.thread, r.clock);
}

/* Two atomic accesses, whose scopes cover both. */
static bool reach_each_other(const record &a, const record &b) {
    if (!is_atomic(a.kind) || !is_atomic(b.kind)) return false;
    bool wide = a.of != scope::block && b.of != scope::block;
    return a.operation == b.operation ? a.block == b.block || wide : wide && operations_overlap(a.operation, b.operation);
}

/* Why two such may yet see parts of each other; NULL: they do not. v4 beside v4 is no race of PTX's model, but whoever takes a vector as it was stored means all of it. */
static const char *why_torn(const record &a, const record &b) {
    if (is_b128(a.kind) != is_b128(b.kind)) return "; atomic accesses of unequal size do not know each other";
    return is_v4(a.kind) && is_v4(b.kind) ? "; a v4 access is four of 4 bytes, seen in any order" : nullptr;
}

static bool conflict(uint32_t i, const record &now, const actor &a) {
    if (i <= long_ago)
        return false;
    const record &r = records[i];
    return !(reach_each_other(r, now) && !why_torn(r, now)) && !happened_before(r, a);
}

/* The same thread at the same place without a synchronisation in between is one record. */
static uint32_t record_of(thread &t, site at, access_kind kind, scope s) {
    for (const auto &r : t.recent)
        if (r.record && r.clock == t.clock && r.kind == kind && r.of == s && r.at == at)
            return r.record;
    records.push_back({t.in_block->of->number, t.in_block->index, t.index, t.clock, at, kind, s});
    uint32_t i = (uint32_t)records.size() - 1;
    t.recent[t.next_recent++ % 4] = {at, kind, s, t.clock, i};
    return i;
}

static uint32_t reads_with(uint32_t list, uint32_t i, const actor &a) {
    if (list && lists[list].record == i)
        return list;
    if (list && lists[list].length >= longest_list) { /* what happened before this read needs no remembering: whoever is after this is after that */
        uint32_t kept = 0, n = 0;
        for (uint32_t at = list; at && n < longest_list / 2; at = lists[at].next)
            if (!happened_before(records[lists[at].record], a)) {
                lists.push_back({lists[at].record, kept, ++n});
                kept = (uint32_t)lists.size() - 1;
            }
        list = kept;
    }
    lists.push_back({i, list, list ? lists[list].length + 1 : 1});
    return (uint32_t)lists.size() - 1;
}

/* A plain write is before whoever may come next, and so is what was before it. An atomic one is not: others, atomic too, may come unordered, and race with what was plain before it. That stays
 * on the list, the last write among it. */
static uint32_t not_hidden(const cell &c) {
    uint32_t list = c.read;
    while (list && is_atomic(records[lists[list].record].kind)) list = lists[list].next;
    if (c.write <= long_ago || is_atomic(records[c.write].kind)) return list;
    lists.push_back({c.write, list, list ? lists[list].length + 1 : 1});
    return (uint32_t)lists.size() - 1;
}

/* ---- findings ---------------------------------------------------------------------------------------------------------------------------------------- */

static std::string who(uint32_t operation, uint32_t block, uint32_t thread, bool is_bulk) {
    const struct operation &o = operation_at(operation);
    char s[200];
    if (thread == whole_operation && o.stream == host_stream)
        snprintf(s, sizeof s, "the host");
    else if (thread == whole_operation)
        snprintf(s, sizeof s, "%s of stream %u", o.what, o.stream);
    else if (is_bulk)
        snprintf(s, sizeof s, "kernel %s, block (%u,%u,%u), bulk copy", o.what, block % o.grid.x, block / o.grid.x % o.grid.y,
                 block / o.grid.x / o.grid.y);
    else
        snprintf(s, sizeof s, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", o.what, block % o.grid.x, block / o.grid.x % o.grid.y, block / o.grid.x / o.grid.y,
                 thread % o.block_dim.x, thread / o.block_dim.x % o.block_dim.y, thread / o.block_dim.x / o.block_dim.y);
    return s;
}

std::string place(const site &at) { return at.file ? std::string(" at ") + at.file + ":" + std::to_string(at.line) : ""; }

static std::string describe(const record &r) { return who(r.operation, r.block, r.thread, is_agent(r)) + ": " + kind_name(r.kind) + place(r.at); }

static std::string region_text(const region &r) { return "buffer " + r.name + " of " + std::to_string(r.bytes) + " bytes"; }

/* ---- the check --------------------------------------------------------------------------------------------------------------------------------------- */

[[noreturn]] static void report_race(const record &now, const actor &a, uint32_t earlier, const std::string &what, size_t offset) {
    const record r = records[earlier];
    bool for_threads = a.is_bulk && happened_before(r, {a.t, a.operation});
    const char *why = for_threads ? "; fence_proxy_async() is missing between them" : reach_each_other(r, now) ? why_torn(r, now) : nullptr;
    if (!why && r.operation != now.operation && operations_overlap(r.operation, now.operation))
        why = "; the launches may overlap: wait_for_primary() is missing between them";
    finding("race on %s, byte %zu: %s, unordered with %s%s", what.c_str(), offset, describe(now).c_str(), describe(r).c_str(), why ? why : "");
}

/* what(): the memory's name, asked for only when there is something to say. */
template <class What> static void check(cell *cells, size_t offset, size_t bytes, uint32_t i, const actor &a, bool needs_write, What what) {
    const record now = records[i];
    bool writes = is_write(now.kind);
    cell before = {0, 0}, after = {0, 0};
    for (size_t k = 0; k < bytes; k++) {
        cell &c = cells[k];
        if (k && c.write == before.write && c.read == before.read) {
            c = after;
            continue;
        }
        before = c;
        if (!c.write && needs_write)
            finding("uninitialised: %s reads byte %zu of %s, which nobody has written", describe(now).c_str(), offset + k, what().c_str());
        if (c.write != i && conflict(c.write, now, a)) report_race(now, a, c.write, what(), offset + k);
        for (uint32_t at = writes || is_atomic(now.kind) ? c.read : 0; at; at = lists[at].next)
            if ((writes || is_write(records[lists[at].record].kind)) && conflict(lists[at].record, now, a))
                report_race(now, a, lists[at].record, what(), offset + k);
        if (writes) {
            c = {i, is_atomic(now.kind) ? not_hidden(c) : 0};
        } else {
            c.read = reads_with(c.read, i, a);
        }
        after = c;
    }
}

static void used_by(region &r, uint32_t operation) {
    if (r.last_user != operation) r.users[operation_at(operation).stream] = r.last_user = operation;
}

void global_access(const void *p, size_t bytes, size_t align, access_kind kind, scope s, site at) {
    thread &t = *self;
    if (config().check) {
        region *r = region_find(p);
        size_t offset = r ? (size_t)((const unsigned char *)p - r->base) : 0;
        std::string me = r && offset + bytes <= r->bytes && (uintptr_t)p % align == 0 ? "" : text_of(t);
        if (!r)
            finding("out of bounds: %s: %s of %zu bytes%s lies in no buffer (%p)", me.c_str(), kind_name(kind), bytes, place(at).c_str(), p);
        if (offset + bytes > r->bytes)
            finding("out of bounds: %s: %s of %zu bytes%s at byte %zu of %s", me.c_str(), kind_name(kind), bytes, place(at).c_str(), offset, region_text(*r).c_str());
        if ((uintptr_t)p % align)
            finding("misaligned: %s: %s of %zu bytes%s at byte %zu of %s", me.c_str(), kind_name(kind), bytes, place(at).c_str(), offset, region_text(*r).c_str());
        if (r->written && !r->sparse && is_atomic(kind) && s != scope::system)
            finding(
                "scope too narrow: %s: %s%s at byte %zu of pinned %s, which the host shares: nothing but scope::system orders anything towards it",
                text_of(t).c_str(), kind_name(kind), place(at).c_str(), offset, region_text(*r).c_str());
        used_by(*r, t.in_block->of->number);
        r->changed |= kind != access_kind::load; /* of an atomic load, too: it costs a digest */
        check(r->cells + offset, offset, bytes, record_of(t, at, kind, s), {&t, t.in_block->of->number}, !r->written && !is_store(kind),
              [&] { return region_text(*r); });
    }
    if (counting())
        count_access(t, p, bytes, false, is_write(kind), at);
}

unsigned char *shared_access(uint32_t array_offset, uint32_t array_bytes, size_t offset, size_t bytes, size_t align, access_kind kind, site at) {
    thread &t = *self;
    block &b = *t.in_block;
    unsigned char *p = b.shared + array_offset + offset;
    /* These two are looked at without TANDEM_SIMT_CHECK, too: beyond them lies the harness itself. */
    if (offset + bytes > array_bytes || offset + bytes < offset)
        finding("out of bounds: %s: %s of %zu bytes%s at byte %zu of a shared array of %u bytes", text_of(t).c_str(), kind_name(kind), bytes,
                place(at).c_str(), offset, array_bytes);
    if ((uintptr_t)p % align)
        finding("misaligned: %s: %s of %zu bytes%s at byte %zu of a shared array", text_of(t).c_str(), kind_name(kind), bytes, place(at).c_str(),
                offset);
    if (config().check)
        check(b.shared_cells.data() + array_offset + offset, array_offset + offset, bytes, record_of(t, at, kind, scope::block), {&t, b.of->number},
              kind == access_kind::load, [] { return std::string("shared memory"); });
    if (counting())
        count_access(t, b.shared + array_offset + offset, bytes, true, is_write(kind), at);
    return p;
}

void global_check(const void *p, size_t bytes, site at) {
    thread &t = *self;
    region *r = region_find(p);
    if (!config().check || !r)
        return;
    size_t offset = (size_t)((const unsigned char *)p - r->base);
    used_by(*r, t.in_block->of->number);
    check(r->cells + offset, offset, bytes, record_of(t, at, access_kind::load, scope::block), {&t, t.in_block->of->number}, !r->written,
          [&] { return region_text(*r); });
}

unsigned char *shared_check(uint32_t array_offset, size_t offset, size_t bytes, site at) {
    thread &t = *self;
    block &b = *t.in_block;
    if (config().check)
        check(b.shared_cells.data() + array_offset + offset, array_offset + offset, bytes, record_of(t, at, access_kind::store, scope::block), {&t, b.of->number}, false,
              [] { return std::string("shared memory"); });
    return b.shared + array_offset + offset;
}

void global_bulk(uint32_t agent, uint32_t clock, const void *p, size_t bytes, bool write, site at) {
    thread &t = *self;
    uint32_t operation = t.in_block->of->number;
    if (config().check) {
        region *r = region_find(p);
        size_t offset = r ? (size_t)((const unsigned char *)p - r->base) : 0;
        if (!r || offset + bytes > r->bytes)
            finding("out of bounds: %s: bulk copy of %zu bytes%s at byte %zu of %s", text_of(t).c_str(), bytes, place(at).c_str(), offset,
                    r ? region_text(*r).c_str() : "no buffer");
        used_by(*r, operation);
        r->changed |= write;
        records.push_back({operation, t.in_block->index, agent, clock, at, write ? access_kind::store : access_kind::load, scope::block});
        check(r->cells + offset, offset, bytes, (uint32_t)records.size() - 1, {&t, operation, true}, !write && !r->written,
              [&] { return region_text(*r); });
    }
    if (counting()) count_bulk(*t.in_block->of, p, bytes, write);
}

void shared_bulk(uint32_t agent, uint32_t clock, uint32_t array_offset, uint32_t array_bytes, size_t offset, size_t bytes, bool write, site at) {
    thread &t = *self;
    block &b = *t.in_block;
    if (offset + bytes > array_bytes || offset + bytes < offset)
        finding("out of bounds: %s: bulk copy of %zu bytes%s at byte %zu of a shared array of %u bytes", text_of(t).c_str(), bytes, place(at).c_str(),
                offset, array_bytes);
    if (!config().check) return;
    records.push_back({b.of->number, b.index, agent, clock, at, write ? access_kind::store : access_kind::load, scope::block});
    check(b.shared_cells.data() + array_offset + offset, array_offset + offset, bytes, (uint32_t)records.size() - 1, {&t, b.of->number, true}, !write,
          [] { return std::string("shared memory"); });
}

void shared_forget(uint32_t offset, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        self->in_block->shared_cells[offset + i] = {0, 0};
}

/* ---- buffers ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Addresses are never used twice, and begin at 256 modulo 512: no buffer is aligned better than cudaMalloc promises. */
constexpr size_t space_bytes = (size_t)1 << 40, gap = 1 << 16;
static unsigned char *space, *space_next;
static std::map<unsigned char *, region> regions;
static region *last_found;
static size_t held_bytes;
static uint32_t n_created, n_sparse;

static void *map_lazily(size_t bytes) {
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

region *region_create(size_t bytes, bool written, bool sparse) {
    size_t room = (bytes + gap + 8191) / 4096 * 4096;
    if (!space || space_next + room + 4096 > space + space_bytes) {
        space = (unsigned char *)mmap(nullptr, space_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (space == MAP_FAILED) {
            space = nullptr;
            return nullptr;
        }
        space_next = space;
    }
    auto *cells = (cell *)map_lazily(bytes * sizeof(cell) + 1);
    if (!cells || mprotect(space_next, (bytes + 256 + 4095) / 4096 * 4096, PROT_READ | PROT_WRITE) != 0)
        return nullptr;
    unsigned char *base = space_next + 256;
    space_next += room;
    if (!sparse) memset(base, 0xff, bytes); /* NaN */
    if (regions.empty())
        n_created = 0;
    region &r = regions[base];
    r = {base, bytes, cells, n_created, "#" + std::to_string(n_created), written, sparse, false, ~0u, {}};
    n_created++;
    n_sparse += sparse;
    held_bytes += sparse ? 0 : bytes;
    return &r;
}

bool region_destroy(void *base) {
    auto at = regions.find((unsigned char *)base);
    if (at == regions.end())
        return false;
    n_sparse -= at->second.sparse;
    held_bytes -= at->second.sparse ? 0 : at->second.bytes;
    munmap(at->second.cells, at->second.bytes * sizeof(cell) + 1);
    (void)mmap((unsigned char *)base - 256, (at->second.bytes + 256 + 4095) / 4096 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    regions.erase(at);
    last_found = nullptr;
    return true;
}

region *region_find(const void *p) {
    auto *at = (unsigned char *)(uintptr_t)p;
    if (last_found && at >= last_found->base && at < last_found->base + last_found->bytes)
        return last_found;
    auto after = regions.upper_bound(at);
    if (after == regions.begin())
        return nullptr;
    region &r = std::prev(after)->second;
    /* Just beyond a buffer is that buffer's business. */
    if (at >= r.base + r.bytes + gap)
        return nullptr;
    return last_found = &r;
}

size_t regions_bytes() { return held_bytes; }

void regions_changed(const std::function<void(const region &)> &tell) {
    for (auto &r : regions)
        if (r.second.changed) {
            r.second.changed = false;
            tell(r.second);
        }
}

void region_touch(const operation &o, const void *p, size_t bytes, bool write, bool needs_value, site at) {
    region *r = region_find(p);
    if (!r || !config().check || bytes == 0)
        return;
    size_t offset = (size_t)((const unsigned char *)p - r->base);
    if (offset + bytes > r->bytes)
        finding("out of bounds: %s of stream %u: %zu bytes at byte %zu of %s", o.what, o.stream, bytes, offset, region_text(*r).c_str());
    used_by(*r, o.number);
    records.push_back({o.number, 0, whole_operation, 0, at, write ? access_kind::store : access_kind::load, scope::system});
    check(r->cells + offset, offset, bytes, (uint32_t)records.size() - 1, {nullptr, o.number}, needs_value && !r->written,
          [&] { return region_text(*r); });
}

void region_expect_idle(void *base, const std::vector<uint32_t> &known) {
    auto r = regions.find((unsigned char *)base);
    if (r == regions.end() || !config().check) return;
    for (const auto &u : r->second.users) {
        const operation &o = operation_at(u.second);
        if (o.index > (o.stream < known.size() ? known[o.stream] : 0))
            finding("freed in flight: %s is freed while %s of stream %u uses it, for which the host has not waited", region_text(r->second).c_str(),
                    o.what, o.stream);
    }
}

/* Sparse buffers have too many cells to walk: while there are any, history is kept. */
bool shadow_is_long() { return n_sparse == 0 && (records.size() > 1000000 || lists.size() > 4000000); }

void shadow_forget_history() {
    for (auto &r : regions) {
        r.second.last_user = ~0u;
        r.second.users.clear();
        for (size_t i = 0; i < r.second.bytes; i++) {
            cell &c = r.second.cells[i];
            if (c.write || c.read)
                c = {c.write ? long_ago : 0, 0};
        }
    }
    records.resize(2);
    lists.resize(1);
}

void regions_reset() {
    while (!regions.empty())
        region_destroy(regions.begin()->first);
    records.resize(2);
    lists.resize(1);
    n_created = 0;
}

} // namespace simt

void simt_name(const void *device_pointer, const char *name) {
    simt::region *r = simt::region_find(device_pointer);
    if (r)
        r->name = name;
}
