/* Threads, warps, blocks, barriers: the scheduler of a launch.
 *
 * One fiber a CUDA thread. The scheduler takes the warp of highest priority that has a runnable lane and lets each such lane run until it waits; priorities are
 * drawn from the seed at block start, anew for every warp that leaves a barrier, and for a warp that spins. So, unlike on a GPU of today, any warp may run far
 * ahead of any other: whatever only luck orders comes out in another order soon. */
#include "kernels/simt/engine.h"

#include <algorithm>
#include <numeric>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels/simt/fiber.h"

namespace simt {

thread *self;
lane_ids *self_ids;
std::vector<block *> resident;
uint64_t n_spins;

/* ---- settings and chance -------------------------------------------------------------------------------------------------------------------------- */

/* gb10, rtx5090: as published; tiny: runs out of memory and of multiprocessors soon. */
static const device_info devices[] = {
    {"gb10", 12, 1, 48, 1536, (size_t)119 << 30, (size_t)24 << 20, true},
    {"rtx5090", 12, 0, 170, 1536, (size_t)32607 << 20, (size_t)96 << 20, false},
    {"tiny", 12, 0, 2, 1024, (size_t)16 << 20, (size_t)1 << 20, false},
};

static uint64_t random_state;

static const device_info *device_named(const char *name) {
    for (const device_info &d : devices)
        if (strcmp(d.name, name) == 0)
            return &d;
    return nullptr;
}

settings &config() {
    static settings s;
    if (!s.device) {
        const char *seed = getenv("TANDEM_SIMT_SEED"), *check = getenv("TANDEM_SIMT_CHECK"), *device = getenv("TANDEM_SIMT_DEVICE");
        s.seed = seed ? strtoull(seed, nullptr, 10) : 1;
        s.check = !check || strcmp(check, "0") != 0;
        s.device = device_named(device ? device : "gb10");
        if (!s.device) {
            fprintf(stderr, "TANDEM_SIMT_DEVICE=%s: no such device; there are gb10, rtx5090 and tiny\n", device);
            exit(2);
        }
        random_state = s.seed;
    }
    return s;
}

/* SplitMix64 */
uint32_t chance(uint32_t n) {
    config();
    uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ (z >> 31)) >> 32) % n;
}

/* ---- findings ---------------------------------------------------------------------------------------------------------------------------------------- */

static char found[1200];
static bool has_found, catching;
static void *scheduler_sp;
struct caught {};

void finding(const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = snprintf(found, sizeof found, "tandem simt: ");
    n += vsnprintf(found + n, sizeof found - (size_t)n, format, args);
    va_end(args);
    if (n < (int)sizeof found)
        snprintf(found + n, sizeof found - (size_t)n, " (seed %llu)", (unsigned long long)config().seed);
    has_found = true;
    if (self) { /* on a fiber's small stack: the scheduler goes on */
        void *nowhere;
        simt_fiber_switch(&nowhere, scheduler_sp);
    }
    raise_finding();
}

void raise_finding() {
    self = nullptr;
    if (catching)
        throw caught();
    fprintf(stderr, "%s\n", found);
    fflush(nullptr);
    exit(4);
}

/* ---- views ---------------------------------------------------------------------------------------------------------------------------------------- */

bool view_knows(const view &v, uint64_t block, uint32_t thread, uint32_t clock) {
    if (v)
        for (const auto &b : v->blocks)
            if (b.first == block) return thread < b.second->size() && (*b.second)[thread] >= clock;
    return false;
}

bool view_knows_over(const view &v, uint32_t operation) {
    if (!v || v->over.empty()) return false;
    if (v->over.back() == operation) return true;
    for (std::vector<uint32_t> todo = v->over; !todo.empty();) {
        uint32_t o = todo.back();
        todo.pop_back();
        if (o == operation) return true;
        const std::vector<uint32_t> &more = operation_at(o).over;
        if (o > operation) todo.insert(todo.end(), more.begin(), more.end());
    }
    return false;
}

static void merge_into(std::vector<uint32_t> &to, const std::vector<uint32_t> &from) {
    for (uint32_t o : from) {
        auto at = std::lower_bound(to.begin(), to.end(), o);
        if (at == to.end() || *at != o) to.insert(at, o);
    }
}

view view_join(const view &a, const view &b) {
    if (!b || a == b)
        return a;
    if (!a)
        return b;
    auto out = std::make_shared<view_data>();
    size_t i = 0, j = 0;
    while (i < a->blocks.size() || j < b->blocks.size()) {
        if (j == b->blocks.size() || (i < a->blocks.size() && a->blocks[i].first < b->blocks[j].first)) {
            out->blocks.push_back(a->blocks[i++]);
        } else if (i == a->blocks.size() || b->blocks[j].first < a->blocks[i].first) {
            out->blocks.push_back(b->blocks[j++]);
        } else {
            const auto &x = a->blocks[i++], &y = b->blocks[j++];
            if (x.second == y.second) {
                out->blocks.push_back(x);
                continue;
            }
            bool longer = x.second->size() >= y.second->size();
            const dense &other = longer ? y.second : x.second;
            auto sum = std::make_shared<std::vector<uint32_t>>(longer ? *x.second : *y.second);
            for (size_t k = 0; k < other->size(); k++) (*sum)[k] = std::max((*sum)[k], (*other)[k]);
            out->blocks.emplace_back(x.first, sum);
        }
    }
    out->proxied = view_join(a->proxied, b->proxied);
    out->over = a->over;
    merge_into(out->over, b->over);
    return out;
}

view view_with(const view &v, const block &b, const std::vector<std::pair<uint32_t, uint32_t>> &clocks) {
    auto out = v ? std::make_shared<view_data>(*v) : std::make_shared<view_data>();
    auto at =
        std::lower_bound(out->blocks.begin(), out->blocks.end(), b.key, [](const std::pair<uint64_t, dense> &x, uint64_t i) { return x.first < i; });
    bool there = at != out->blocks.end() && at->first == b.key;
    auto mine = there ? std::make_shared<std::vector<uint32_t>>(*at->second) : std::make_shared<std::vector<uint32_t>>(b.threads.size(), 0u);
    for (const auto &c : clocks) {
        if (mine->size() <= c.first) mine->resize(c.first + 1);
        (*mine)[c.first] = std::max((*mine)[c.first], c.second);
    }
    if (there)
        at->second = mine;
    else
        out->blocks.insert(at, {b.key, mine});
    return out;
}

view view_given(thread &t) {
    view v = view_with(t.knows, *t.in_block, {{t.index, t.clock}});
    t.clock++;
    return v;
}

/* ---- waiting ---------------------------------------------------------------------------------------------------------------------------------------- */

void to_scheduler() {
    thread *t = self;
    simt_fiber_switch(&t->sp, scheduler_sp);
}

void redraw(thread *t) { t->in_warp->priority = chance(1u << 30); }

void may_give_way() {
    if (chance(2)) {
        redraw(self);
        to_scheduler();
    }
}

static const char *name_of(const thread &t) {
    static char text[4][80];
    static unsigned next;
    char *s = text[next++ % 4];
    snprintf(s, sizeof text[0], "block (%u,%u,%u), thread (%u,%u,%u)", t.block_idx.x, t.block_idx.y, t.block_idx.z, t.thread_idx.x, t.thread_idx.y, t.thread_idx.z);
    return s;
}

static const char *kernel_of(const thread &t) { return t.in_block->of->what; }

std::string text_of(const thread &t) { return std::string("kernel ") + kernel_of(t) + ", " + name_of(t); }

/* ---- barriers ---------------------------------------------------------------------------------------------------------------------------------------- */

static void barrier_release(block &b, barrier &r) {
    view joined = view_with(r.joined, b, r.clocks);
    for (thread *t : r.arrived) {
        t->knows = joined;
        t->is = state::runnable;
        redraw(t);
    }
    b.of->counts.barriers++;
    n_spins = 0;
    r = barrier();
}

static void barrier_enter(uint32_t id, uint32_t n_threads, bool whole_block, bool waits, site at) {
    thread &t = *self;
    block &b = *t.in_block;
    if (id >= 16 || n_threads > b.threads.size() || (!whole_block && (n_threads == 0 || n_threads % 32)))
        finding("barrier %u of %u threads: kernel %s, %s at %s:%d: there are barriers 0 to 15, and the number is a multiple of 32 up to the block's %u", id, n_threads,
                kernel_of(t), name_of(t), at.file, at.line, (unsigned)b.threads.size());
    barrier &r = b.barriers[id];
    uint32_t expected = whole_block ? (uint32_t)b.threads.size() : n_threads;
    if (r.expected == 0) {
        r.expected = expected;
        r.whole_block = whole_block;
        r.at = at;
    } else if (r.expected != expected || (whole_block && !(r.at == at))) {
        finding("divergent barrier: kernel %s, %s waits at %s:%d while others of its block wait at %s:%d", kernel_of(t), name_of(t), at.file, at.line, r.at.file,
                r.at.line);
    }
    if (whole_block && b.n_exited)
        finding("divergent barrier: kernel %s, %s waits at %s:%d, but %u threads of its block have ended", kernel_of(t), name_of(t), at.file, at.line, b.n_exited);
    if (r.joined != t.knows)
        r.joined = view_join(r.joined, t.knows);
    r.clocks.emplace_back(t.index, t.clock++);
    t.at = at;
    if (waits) {
        r.arrived.push_back(&t);
        t.is = state::at_barrier;
    }
    if (++r.n_arrived == r.expected)
        barrier_release(b, r);
    if (waits)
        to_scheduler();
}

void barrier_wait(uint32_t id, uint32_t n_threads, bool whole_block, site at) { barrier_enter(id, n_threads, whole_block, true, at); }
void barrier_arrive(uint32_t id, uint32_t n_threads, site at) { barrier_enter(id, n_threads, false, false, at); }

/* ---- warp operations -------------------------------------------------------------------------------------------------------------------------------- */

static const char *lanes_text(uint32_t mask) {
    static char s[16];
    snprintf(s, sizeof s, "0x%08x", mask);
    return s;
}

void collective(const char *operation, uint32_t mask, void *payload, void (*complete)(thread *const *lanes, uint32_t mask), site at) {
    thread &t = *self;
    warp &w = *t.in_warp;
    if (!(mask >> t.lane & 1))
        finding("%s by a lane outside of its own mask %s: kernel %s, %s, lane %u at %s:%d", operation, lanes_text(mask), kernel_of(t), name_of(t), t.lane, at.file, at.line);
    t.is = state::at_warp;
    t.operation = operation;
    t.mask = mask;
    t.payload = payload;
    t.at = at;
    bool all = true;
    for (uint32_t l = 0; l < 32; l++) {
        if (!(mask >> l & 1))
            continue;
        if (l >= w.lanes.size() || w.lanes[l]->is == state::exited)
            finding("%s waits for a lane that has ended: kernel %s, %s at %s:%d wants lanes %s, of which %u is not there", operation, kernel_of(t), name_of(t), at.file,
                    at.line, lanes_text(mask), l);
        thread &o = *w.lanes[l];
        if (o.is != state::at_warp) {
            all = false;
            break; /* whoever comes last looks at the rest */
        } else if (o.mask != mask || (o.operation != operation && strcmp(o.operation, operation) != 0)) {
            if (o.mask >> t.lane & 1)
                finding("lanes of one warp wait for each other in different operations: kernel %s, %s in %s at %s:%d, lane %u in %s at %s:%d", kernel_of(t), name_of(t),
                        operation, at.file, at.line, l, o.operation, o.at.file, o.at.line);
            all = false;
        }
    }
    if (!all) {
        to_scheduler();
        return;
    }
    complete(w.lanes.data(), mask);
    for (uint32_t l = 0; l < 32; l++)
        if (mask >> l & 1)
            w.lanes[l]->is = state::runnable;
}

void warp_sync(uint32_t mask, site at) {
    collective(
        "__syncwarp", mask, nullptr,
        [](thread *const *lanes, uint32_t m) {
            std::vector<std::pair<uint32_t, uint32_t>> clocks;
            view v;
            for (uint32_t l = 0; l < 32; l++)
                if (m >> l & 1) {
                    if (v != lanes[l]->knows)
                        v = view_join(v, lanes[l]->knows);
                    clocks.emplace_back(lanes[l]->index, lanes[l]->clock++);
                }
            v = view_with(v, *self->in_block, clocks);
            for (uint32_t l = 0; l < 32; l++)
                if (m >> l & 1)
                    lanes[l]->knows = v;
        },
        at);
}

/* A shuffle hands over a value; it orders no memory. */
struct shuffle_payload {
    uint64_t in, out;
    int value, width;
    pick how;
};

static int source_lane(const shuffle_payload &p, int lane) {
    int first = lane / p.width * p.width, last = first + p.width - 1, from;
    switch (p.how) {
    case pick::index:
        return first + (p.value & (p.width - 1));
    case pick::up:
        from = lane - p.value;
        return from < first ? lane : from;
    case pick::down:
        from = lane + p.value;
        return from > last ? lane : from;
    default:
        from = lane ^ p.value;
        return from > last ? lane : from;
    }
}

uint64_t shuffle(uint32_t mask, uint64_t bits, pick how, int value, int width, site at) {
    static const char *const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    shuffle_payload p = {bits, 0, value, width, how};
    if (width < 1 || width > 32 || (width & (width - 1)))
        finding("%s of width %d: kernel %s, %s at %s:%d: the width is a power of two up to 32", names[(int)how], width, kernel_of(*self), name_of(*self), at.file, at.line);
    collective(
        names[(int)how], mask, &p,
        [](thread *const *lanes, uint32_t m) {
            for (uint32_t l = 0; l < 32; l++) {
                if (!(m >> l & 1))
                    continue;
                auto *mine = (shuffle_payload *)lanes[l]->payload;
                int from = source_lane(*mine, (int)l);
                if (from < 0 || from > 31 || !(m >> from & 1))
                    finding("%s reads lane %d, which takes no part: kernel %s, %s, lane %u at %s:%d with mask %s", lanes[l]->operation, from, kernel_of(*lanes[l]),
                            name_of(*lanes[l]), l, lanes[l]->at.file, lanes[l]->at.line, lanes_text(m));
                mine->out = ((shuffle_payload *)lanes[from]->payload)->in;
            }
        },
        at);
    return p.out;
}

struct reduce_payload {
    uint32_t in, out;
    reduce how;
};

static uint32_t reduced(reduce how, uint32_t a, uint32_t b) {
    switch (how) {
    case reduce::all:
    case reduce::bit_and:
        return a & b;
    case reduce::any:
    case reduce::bit_or:
        return a | b;
    case reduce::bit_xor:
        return a ^ b;
    case reduce::add:
        return a + b;
    case reduce::min_signed:
        return (int32_t)a < (int32_t)b ? a : b;
    case reduce::max_signed:
        return (int32_t)a > (int32_t)b ? a : b;
    case reduce::min_unsigned:
        return a < b ? a : b;
    default:
        return a > b ? a : b;
    }
}

uint32_t warp_reduce(uint32_t mask, reduce how, uint32_t value, site at) {
    static const char *const names[] = {"__ballot_sync",     "__all_sync",        "__any_sync",        "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                        "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync", "__match_any_sync"};
    reduce_payload p = {value, 0, how};
    collective(
        names[(int)how], mask, &p,
        [](thread *const *lanes, uint32_t m) {
            uint32_t set = 0, acc = 0;
            bool first = true;
            for (uint32_t l = 0; l < 32; l++)
                if (m >> l & 1) {
                    const auto *q = (const reduce_payload *)lanes[l]->payload;
                    set |= (q->in & 1) << l;
                    acc = first ? q->in : reduced(q->how, acc, q->in);
                    first = false;
                }
            for (uint32_t l = 0; l < 32; l++)
                if (m >> l & 1) {
                    auto *q = (reduce_payload *)lanes[l]->payload;
                    q->out = q->how == reduce::ballot ? set : acc;
                    if (q->how == reduce::match) {
                        q->out = 0;
                        for (uint32_t k = 0; k < 32; k++)
                            if ((m >> k & 1) && ((const reduce_payload *)lanes[k]->payload)->in == q->in)
                                q->out |= 1u << k;
                    }
                }
        },
        at);
    return p.out;
}

/* ---- a launch ---------------------------------------------------------------------------------------------------------------------------------------- */

constexpr size_t stack_bytes = 64 << 10, guard_bytes = 4096;
static std::vector<void *> free_stacks;

static void *stack_get() {
    if (free_stacks.empty()) {
        enum { BATCH = 64 };
        size_t each = stack_bytes + guard_bytes;
        auto *all = (unsigned char *)mmap(nullptr, each * BATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all == MAP_FAILED) {
            fprintf(stderr, "tandem simt: no memory for fibers' stacks\n");
            exit(2);
        }
        for (int i = 0; i < BATCH; i++) {
            mprotect(all + (size_t)i * each, guard_bytes, PROT_NONE);
            free_stacks.push_back(all + (size_t)i * each + guard_bytes);
        }
    }
    void *s = free_stacks.back();
    free_stacks.pop_back();
    return s;
}

static void thread_main() {
    thread &t = *self;
    block &b = *t.in_block;
    b.of->call->run();
    t.is = state::exited;
    b.n_exited++;
    n_spins = 0;
    if (t.knows) merge_into(b.of->over, t.knows->over);
    for (const barrier &r : b.barriers)
        if (r.whole_block && r.expected)
            finding("divergent barrier: kernel %s, %s has ended, but others of its block wait at %s:%d", kernel_of(t), name_of(t), r.at.file, r.at.line);
    for (const thread *o : t.in_warp->lanes)
        if (o->is == state::at_warp && (o->mask >> t.lane & 1))
            finding("%s waits for a lane that has ended: kernel %s, %s at %s:%d wants lanes %s, of which %u is not there", o->operation, kernel_of(*o), name_of(*o), o->at.file,
                    o->at.line, lanes_text(o->mask), t.lane);
    if (b.n_exited == b.threads.size()) bulk_block_done(b);
    to_scheduler();
    abort();
}

static block *block_start(launch &l, uint32_t index) {
    auto *b = new block;
    resident.push_back(b);
    b->of = &l;
    b->index = index;
    b->key = block_key(l.number, index);
    size_t n = (size_t)l.block_dim.x * l.block_dim.y * l.block_dim.z;
    b->threads.resize(n);
    b->warps.resize((n + 31) / 32);
    b->shared_bytes.assign(shared_limit + 64, 0xff); /* NaN, whatever the width */
    b->shared = b->shared_bytes.data() + (48 - (uintptr_t)b->shared_bytes.data() % 32) % 32;
    b->shared_used = (uint32_t)((l.shared_bytes + 15) / 16 * 16);
    b->shared_cells.assign(b->shared_used, cell{0, 0});
    for (size_t i = 0; i < n; i++) {
        thread &t = b->threads[i];
        t.in_block = b;
        t.index = (uint32_t)i;
        t.lane = (uint32_t)i % 32;
        t.in_warp = &b->warps[i / 32];
        t.in_warp->lanes.push_back(&t);
        t.block_dim = l.block_dim;
        t.grid_dim = l.grid;
        t.thread_idx = {(unsigned)i % l.block_dim.x, (unsigned)(i / l.block_dim.x) % l.block_dim.y, (unsigned)(i / l.block_dim.x / l.block_dim.y)};
        t.block_idx = {index % l.grid.x, index / l.grid.x % l.grid.y, index / l.grid.x / l.grid.y};
        t.stack = stack_get();
        t.sp = simt_fiber_init((unsigned char *)t.stack + stack_bytes, thread_main);
    }
    for (warp &w : b->warps)
        w.priority = chance(1u << 30);
    return b;
}

/* Who waits for it goes on. */
static void launch_end(launch &l) {
    operation_ended(l);
    for (block *b : resident)
        for (thread &t : b->threads)
            if (t.is == state::at_primary && b->of->primary == l.number) {
                t.is = state::runnable;
                redraw(&t);
            }
}

static void block_end(block *b) {
    launch &l = *b->of;
    for (warp &w : b->warps)
        count_warp_done(w, l);
    for (thread &t : b->threads)
        free_stacks.push_back(t.stack);
    l.static_shared = std::max(l.static_shared, b->shared_used);
    l.n_let += !b->lets_dependents_begin;
    resident.erase(std::find(resident.begin(), resident.end(), b));
    delete b;
    if (++l.n_ended == l.todo.size()) launch_end(l);
}

static void drop_all() {
    for (block *b : resident) {
        for (thread &t : b->threads) free_stacks.push_back(t.stack);
        delete b;
    }
    resident.clear();
    atomics_forget();
}

static bool can_run(const warp &w) {
    for (const thread *t : w.lanes)
        if (t->is == state::runnable)
            return true;
    return false;
}

static void warp_run(warp &w) {
    uint32_t n = (uint32_t)w.lanes.size(), first = chance(n);
    for (uint32_t i = 0; i < n; i++) {
        thread *t = w.lanes[(first + i) % n];
        if (t->is != state::runnable)
            continue;
        self = t;
        self_ids = t;
        simt_fiber_switch(&scheduler_sp, t->sp);
        self = nullptr;
        if (has_found)
            raise_finding();
    }
}

/* Who waits for bytes that do not come is the cause, who waits for threads its victim. */
static int tells_more(const thread &t) { return t.is == state::at_primary ? 0 : t.is != state::at_mbarrier ? 1 : mbarrier_lacks_bytes(t) ? 3 : 2; }

[[noreturn]] static void report_deadlock() {
    const thread *first = nullptr;
    size_t n = 0;
    for (const block *b : resident)
        for (const thread &t : b->threads)
            if (t.is != state::exited) {
                first = first && tells_more(*first) >= tells_more(t) ? first : &t;
                n++;
            }
    if (first->is == state::at_mbarrier)
        finding("deadlock: %s waits at %s:%d for %s, and %zu threads wait in all", text_of(*first).c_str(), first->at.file, first->at.line,
                mbarrier_text(*first).c_str(), n);
    finding("deadlock: kernel %s, %s waits at %s:%d in %s, and %zu threads wait in all", kernel_of(*first), name_of(*first), first->at.file,
            first->at.line, first->is == state::at_warp ? first->operation : "a barrier", n);
}

static void launch_begin(launch &l) {
    l.counts.kernel = l.what;
    l.counts.grid = l.grid;
    l.counts.block_dim = l.block_dim;
    l.todo = l.only;
    if (l.todo.empty()) {
        l.todo.resize((size_t)l.grid.x * l.grid.y * l.grid.z);
        std::iota(l.todo.begin(), l.todo.end(), 0u);
    }
    uint32_t n_blocks = (uint32_t)l.todo.size();
    size_t per_block = (size_t)l.block_dim.x * l.block_dim.y * l.block_dim.z;
    uint32_t fit = (uint32_t)std::max<size_t>(1, 2048 / per_block);
    l.most_resident = l.as == launch_as::cooperative ? n_blocks : 1 + chance(std::min(fit, n_blocks));
}

static void start_blocks(launch &l) {
    for (size_t n = l.todo.size(); l.n_started < n && l.n_started - l.n_ended < l.most_resident;) {
        std::swap(l.todo[l.n_started], l.todo[l.n_started + chance((uint32_t)(n - l.n_started))]);
        block_start(l, l.todo[l.n_started++]);
    }
}

/* Once all blocks of the one before have let it; when exactly is the seed's business. */
static bool may_begin(const launch *before) { return !before || before->is_over() || (before->n_let == before->todo.size() && chance(8) == 0); }

static void run_blocks(const std::vector<launch *> &all) {
    size_t n_over = 0, n_begun = 0; /* over: without a gap, from the first on */
    while (n_over < all.size()) {
        if (n_begun < all.size() && may_begin(n_begun ? all[n_begun - 1] : nullptr)) launch_begin(*all[n_begun++]);
        for (size_t i = n_over; i < n_begun; i++) start_blocks(*all[i]);
        warp *best = nullptr;
        for (block *b : resident)
            for (warp &w : b->warps)
                if ((!best || w.priority > best->priority) && can_run(w))
                    best = &w;
        if (!best && bulk_progress(resident)) continue;
        if (!best) report_deadlock();
        block *b = best->lanes[0]->in_block;
        warp_run(*best);
        if (b->n_exited == b->threads.size()) block_end(b);
        while (n_over < n_begun && all[n_over]->is_over()) n_over++;
    }
}

void launches_run(const std::vector<launch *> &all) {
    n_spins = 0;
    try {
        run_blocks(all);
    } catch (...) {
        drop_all();
        throw;
    }
    atomics_forget();
    for (launch *l : all) {
        l->counts.shared_bytes = l->static_shared;
        count_launch_done(l->counts);
    }
}

/* ---- dependent launches ---------------------------------------------------------------------------------------------------------------------------------
 * A launch begins knowing what its `seen` says. That its primary is over, and what that in its turn has waited for, a thread learns by waiting; a primary that never waited may end
 * before its own primary does. The knowledge is part of the thread's view and goes where that goes: to its block by a barrier. */

void launch_dependents() {
    block &b = *self->in_block;
    if (b.lets_dependents_begin) return;
    b.lets_dependents_begin = true;
    b.of->n_let++;
    may_give_way();
}

static bool runs(uint32_t operation) {
    for (const block *b : resident)
        if (b->of->number == operation) return true;
    return false;
}

void wait_for_primary(site at) {
    thread &t = *self;
    uint32_t primary = t.in_block->of->primary;
    if (primary == no_operation) return;
    if (runs(primary)) {
        t.is = state::at_primary;
        t.at = at;
        to_scheduler();
    }
    auto all = t.knows ? std::make_shared<view_data>(*t.knows) : std::make_shared<view_data>();
    merge_into(all->over, {primary});
    t.knows = all;
}

/* ---- shared memory: where it lies (who may touch it when: memory.cpp) --------------------------------------------------------------------------------- */

uint32_t shared_find(const void *key, size_t bytes) {
    block &b = *self->in_block;
    for (const shared_piece &p : b.pieces)
        if (p.key == key)
            return p.offset;
    uint32_t offset = b.shared_used;
    b.shared_used = (uint32_t)((b.shared_used + bytes + 15) / 16 * 16);
    size_t fixed = b.shared_used - (b.of->shared_bytes + 15) / 16 * 16;
    if (b.shared_used > shared_limit || fixed > static_shared_limit)
        finding("too much shared memory: kernel %s takes %zu bytes fixed and %zu of the launch; a block has %zu, of which %zu may be fixed", b.of->what, fixed,
                b.of->shared_bytes, shared_limit, static_shared_limit);
    b.shared_cells.resize(b.shared_used, cell{0, 0});
    b.pieces.push_back({key, offset, (uint32_t)bytes});
    return offset;
}

uint32_t shared_dynamic_bytes() { return (uint32_t)self->in_block->of->shared_bytes; }

void count_fma() { self->in_block->of->counts.fma++; }

void runtime_reset();

} // namespace simt

using namespace simt;

int simt_is_emulated(void) { return 1; }

const char *simt_catch(void (*fn)(void *), void *arg, uint64_t seed) {
    config().seed = seed;
    random_state = seed;
    catching = true;
    has_found = false;
    locals_begin();
    try {
        fn(arg);
        cudaDeviceSynchronize();
    } catch (const caught &) {
    }
    catching = false;
    bool bad = has_found;
    has_found = false;
    runtime_reset();
    return bad ? found : nullptr;
}

void simt_set_check(int check) { config().check = check != 0; }

int simt_set_device(const char *name) {
    const device_info *d = device_named(name);
    if (!d)
        return -1;
    config().device = d;
    return 0;
}
