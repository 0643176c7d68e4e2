/* mbarriers, and bulk copies between global and shared memory.
 *
 * A bulk copy is done by nobody's thread. In the eyes of the checks it is the work of an agent: a further member of the block, with an index behind its threads. Each mbarrier has one, whose clock is
 * the phase: who has waited for a phase's end knows what was copied in it, and nobody else does, nor the thread that asked for it. A thread that copies out of shared memory has two, whose clock is the
 * group of copies: one for reading, one for writing. So the checks are made once, when the copy is asked for, and depend on no schedule.
 * The bytes move when somebody waits, in an order drawn from the seed, or when nobody can go on without. */
#include "kernels/simt/engine.h"

#include <algorithm>

namespace simt {

static uint32_t new_agent(block &b) { return (uint32_t)b.threads.size() + b.n_agents++; }

/* ---- mbarriers ----------------------------------------------------------------------------------------------------------------------------------------- */

static uint32_t offset_of(mbarrier_place m) { return m.array_offset + (uint32_t)(m.i * sizeof(mbarrier)); }

/* Checks the access, as that of a word of shared memory, and says where it lies. */
static uint32_t touch(mbarrier_place m, access_kind kind, site at) {
    shared_access(m.array_offset, m.array_bytes, m.i * sizeof(mbarrier), sizeof(mbarrier), alignof(mbarrier), kind, at);
    return offset_of(m);
}

static mbarrier_state &use(mbarrier_place m, access_kind kind, site at) {
    uint32_t offset = touch(m, kind, at);
    auto found = self->in_block->mbarriers.find(offset);
    if (found == self->in_block->mbarriers.end()) finding("uninitialised mbarrier: %s%s", text_of(*self).c_str(), place(at).c_str());
    const mbarrier_state &s = found->second;
    /* The cell remembers the last access, perhaps another arrival; with the init none may race. */
    if (config().check && s.by != self && !view_knows(self->knows, self->in_block->key, s.by->index, s.since))
        finding("race on shared memory: %s uses an mbarrier%s, unordered with its init by %s%s", text_of(*self).c_str(), place(at).c_str(),
                text_of(*s.by).c_str(), place(s.at).c_str());
    return found->second;
}

void mbarrier_init(mbarrier_place m, uint32_t n_threads, site at) {
    block &b = *self->in_block;
    uint32_t offset = touch(m, access_kind::store, at);
    if (b.mbarriers.count(offset)) finding("mbarrier initialised twice: %s%s", text_of(*self).c_str(), place(at).c_str());
    if (n_threads == 0 || n_threads >= 1u << 20)
        finding("mbarrier of %u threads: %s%s: 1 to 1048575 may arrive", n_threads, text_of(*self).c_str(), place(at).c_str());
    mbarrier_state &s = b.mbarriers[offset];
    s.by = self;
    s.since = self->clock;
    s.at = at;
    s.n_threads = s.n_missing = n_threads;
    s.agent = new_agent(b);
}

void mbarrier_invalidate(mbarrier_place m, site at) {
    mbarrier_state &s = use(m, access_kind::store, at);
    if (s.issued) finding("mbarrier invalidated while bytes are on their way to it: %s%s", text_of(*self).c_str(), place(at).c_str());
    self->in_block->mbarriers.erase(offset_of(m));
    shared_forget(offset_of(m), sizeof(mbarrier));
}

static bool has_passed(const mbarrier_state &s, uint32_t parity) { return (s.phase & 1) != parity; }

static void end_phase_if_complete(block &b, uint32_t offset, mbarrier_state &s) {
    if (s.n_missing || s.arrived != s.expected) return;
    if (s.issued) s.given = view_with(s.given, b, {{s.agent, s.clock++}});
    s.completed = s.given;
    s.phase++;
    s.n_missing = s.n_threads;
    s.expected = s.issued = s.arrived = 0;
    n_spins = 0;
    for (thread &t : b.threads)
        if (t.is == state::at_mbarrier && t.mbarrier == offset && has_passed(s, t.parity)) {
            t.knows = view_join(t.knows, s.completed);
            t.is = state::runnable;
            redraw(&t);
        }
}

/* Both sides are known when all threads have arrived; more bytes than they expect would count for the next phase, or for this, as it happens. */
static void check_bytes(const mbarrier_state &s, site at) {
    if (s.n_missing == 0 && s.issued > s.expected)
        finding("mbarrier: %s%s: %llu bytes are copied in a phase that expects %llu", text_of(*self).c_str(), place(at).c_str(),
                (unsigned long long)s.issued, (unsigned long long)s.expected);
}

void mbarrier_arrive(mbarrier_place m, uint32_t n_bytes, site at) {
    mbarrier_state &s = use(m, access_kind::atomic_update, at);
    if (s.n_missing == 0)
        finding("mbarrier: %s%s: more threads arrive in a phase than the %u that it waits for", text_of(*self).c_str(), place(at).c_str(),
                s.n_threads);
    s.given = view_join(s.given, view_given(*self));
    s.expected += n_bytes;
    s.n_missing--;
    check_bytes(s, at);
    end_phase_if_complete(*self->in_block, offset_of(m), s);
}

void mbarrier_wait(mbarrier_place m, uint32_t parity, site at) {
    thread &t = *self;
    mbarrier_state &s = use(m, access_kind::atomic_load, at);
    if (parity > 1) finding("mbarrier: %s%s: a phase's parity is 0 or 1, not %u", text_of(t).c_str(), place(at).c_str(), parity);
    while (chance(2) && bulk_progress({t.in_block}))
        ;
    if (has_passed(s, parity)) {
        t.knows = view_join(t.knows, s.completed);
        return;
    }
    t.is = state::at_mbarrier;
    t.mbarrier = offset_of(m);
    t.parity = parity;
    t.at = at;
    to_scheduler();
}

std::string mbarrier_text(const thread &t) {
    auto found = t.in_block->mbarriers.find(t.mbarrier);
    if (found == t.in_block->mbarriers.end()) return "an mbarrier that was invalidated meanwhile";
    const mbarrier_state &s = found->second;
    return "the end of a phase of parity " + std::to_string(t.parity) + " of an mbarrier whose phase " + std::to_string(s.phase) + " lacks " +
           std::to_string(s.n_missing) + " threads and has " + std::to_string(s.arrived) + " of " + std::to_string(s.expected) + " bytes";
}

bool mbarrier_lacks_bytes(const thread &t) {
    auto found = t.in_block->mbarriers.find(t.mbarrier);
    return found != t.in_block->mbarriers.end() && found->second.n_missing == 0;
}

/* ---- fences -------------------------------------------------------------------------------------------------------------------------------------------- */

void fence_mbarrier_init() {
    for (auto &m : self->in_block->mbarriers)
        if (m.second.by == self) m.second.is_fenced = true;
}

/* What the thread knows, and has done itself, its copies see from now on; and those of whom it tells. */
void fence_proxy_async() {
    thread &t = *self;
    auto all = std::make_shared<view_data>(*view_given(t));
    all->proxied = nullptr;
    auto both = std::make_shared<view_data>(*all);
    both->proxied = all;
    t.knows = both;
    fence_mbarrier_init();
}

/* ---- copies -------------------------------------------------------------------------------------------------------------------------------------------- */

static void check_alignment(const void *memory, uint32_t shared_offset, uint32_t n_bytes, site at) {
    if ((uintptr_t)memory % 16 || shared_offset % 16 || n_bytes % 16)
        finding("misaligned: %s: bulk copy of %u bytes%s between address %p and byte %u of shared memory: all three are multiples of 16",
                text_of(*self).c_str(), n_bytes, place(at).c_str(), memory, shared_offset);
}

void copy_bulk(const void *from, uint32_t array_offset, uint32_t array_bytes, size_t offset, uint32_t n_bytes, mbarrier_place m, site at) {
    block &b = *self->in_block;
    uint32_t to = array_offset + (uint32_t)offset;
    check_alignment(from, to, n_bytes, at);
    mbarrier_state &s = use(m, access_kind::atomic_update, at);
    if (!s.is_fenced)
        finding("mbarrier without fence: %s: bulk copy%s to an mbarrier whose init no fence_mbarrier_init() follows", text_of(*self).c_str(),
                place(at).c_str());
    shared_bulk(s.agent, s.clock, array_offset, array_bytes, offset, n_bytes, true, at);
    global_bulk(s.agent, s.clock, from, n_bytes, false, at);
    s.issued += n_bytes;
    check_bytes(s, at);
    b.bulk_loads.push_back({from, to, n_bytes, offset_of(m), at});
}

bool bulk_progress(const std::vector<block *> &blocks) {
    std::vector<block *> busy;
    for (block *b : blocks)
        if (!b->bulk_loads.empty()) busy.push_back(b);
    if (busy.empty()) return false;
    block &b = *busy[chance((uint32_t)busy.size())];
    auto which = b.bulk_loads.begin() + chance((uint32_t)b.bulk_loads.size());
    bulk_load c = *which;
    b.bulk_loads.erase(which);
    memcpy(b.shared + c.to, c.from, c.bytes);
    mbarrier_state &s = b.mbarriers.at(c.mbarrier);
    s.arrived += c.bytes;
    end_phase_if_complete(b, c.mbarrier, s);
    return true;
}

void copy_bulk_out(void *to, uint32_t array_offset, uint32_t array_bytes, size_t offset, uint32_t n_bytes, site at) {
    thread &t = *self;
    if (!t.bulk_reader) {
        t.bulk_reader = new_agent(*t.in_block);
        t.bulk_writer = new_agent(*t.in_block);
    }
    uint32_t from = array_offset + (uint32_t)offset;
    check_alignment(to, from, n_bytes, at);
    shared_bulk(t.bulk_reader, t.bulk_group + 1, array_offset, array_bytes, offset, n_bytes, false, at);
    global_bulk(t.bulk_writer, t.bulk_group + 1, to, n_bytes, true, at);
    t.bulk_stores.push_back({to, from, n_bytes, t.bulk_group, at});
}

void copy_bulk_commit() { self->bulk_group++; }

void copy_bulk_wait(uint32_t n_left, bool reads_only, site at) {
    thread &t = *self;
    block &b = *t.in_block;
    t.at = at;
    if (t.bulk_group <= n_left || !t.bulk_reader) return;
    uint32_t n_done = t.bulk_group - n_left;
    auto is_done = [&](const bulk_store &c) {
        if (c.group < n_done) memcpy(c.to, b.shared + c.from, c.bytes);
        return c.group < n_done;
    };
    t.bulk_stores.erase(std::remove_if(t.bulk_stores.begin(), t.bulk_stores.end(), is_done), t.bulk_stores.end());
    t.knows = view_with(t.knows, b, {{t.bulk_reader, n_done}});
    if (!reads_only) t.knows = view_with(t.knows, b, {{t.bulk_writer, n_done}});
}

/* Copies into shared memory that is somebody else's by then, and out of it. */
void bulk_block_done(block &b) {
    if (!b.bulk_loads.empty())
        finding("bulk copy that nobody waits for: %s: its block ends while the one%s still writes shared memory", text_of(*self).c_str(),
                place(b.bulk_loads[0].at).c_str());
    for (const thread &t : b.threads)
        if (!t.bulk_stores.empty())
            finding("bulk copy that nobody waits for: %s: its block ends while the one%s still reads shared memory", text_of(t).c_str(),
                    place(t.bulk_stores[0].at).c_str());
}

} // namespace simt
