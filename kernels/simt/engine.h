/* Inside the harness: what engine.cpp (threads, barriers, warps), atomics.cpp, memory.cpp (buffers, races), runtime.cpp (streams) and counts.cpp share.
 *
 * One process thread does everything. A launch is an operation of a stream; while it runs, `self` is the CUDA thread whose fiber has the processor. */
#ifndef KERNELS_SIMT_ENGINE_H
#define KERNELS_SIMT_ENGINE_H

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/simt/on_cpu.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/simt_host.h"

namespace simt {

/* ---- settings and chance -------------------------------------------------------------------------------------------------------------------------- */

struct device_info {
    const char *name;
    int major, minor, n_sms, threads_per_sm;
    size_t memory_bytes, l2_bytes;
    bool integrated;
};
constexpr size_t shared_limit = 101376, static_shared_limit = 49152, parameter_limit = 32764;
constexpr uint32_t threads_limit = 1024;
uint32_t launch_bounds(const void *function); /* threads of a block; threads_limit for a kernel without */

struct settings {
    uint64_t seed = 1;
    bool check = true;
    const device_info *device = nullptr;
};
settings &config(); /* from the environment on first use */
uint32_t chance(uint32_t n); /* 0 … n − 1, drawn from the seed */

/* One line; exit status 4, or back to simt_catch. Never returns. */
[[noreturn]] void finding(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* In the scheduler, after a fiber has found something. */
[[noreturn]] void raise_finding();

struct thread;
struct warp;
struct block;
struct launch;

/* ---- happens-before --------------------------------------------------------------------------------------------------------------------------------
 * A view says, for each block of the launch and of those beside it, up to which of its clocks each thread's accesses are known to have happened; and which of those launches are over.
 * Views are immutable and shared: all threads that leave a barrier hold the same one. A thread's own clock moves on whenever it gives its view away. */

using dense = std::shared_ptr<const std::vector<uint32_t>>; /* by thread, then by agent (bulk.cpp); what lies beyond its end is 0 */
struct view_data;
using view = std::shared_ptr<const view_data>;
struct view_data {
    std::vector<std::pair<uint64_t, dense>> blocks; /* by block_key, ascending */
    view proxied;                                   /* the part of it that bulk copies see, too */
    std::vector<uint32_t> over;                     /* operations that were waited for, and so all that these had waited for; ascending */
};
inline uint64_t block_key(uint32_t operation, uint32_t block) { return (uint64_t)operation << 32 | block; }
bool view_knows(const view &v, uint64_t block, uint32_t thread, uint32_t clock);
bool view_knows_over(const view &v, uint32_t operation);
view view_join(const view &a, const view &b);
/* v, in which block b's threads are known up to these (thread, clock) at least */
view view_with(const view &v, const block &b, const std::vector<std::pair<uint32_t, uint32_t>> &clocks);
view view_given(thread &t); /* what t knows and did, for others; its clock moves on */

/* ---- threads, warps, blocks ------------------------------------------------------------------------------------------------------------------------ */

enum class state : uint8_t { runnable, at_barrier, at_warp, at_mbarrier, at_primary, exited };

/* A copy into shared memory that is under way. */
struct pending_copy {
    const void *from;
    uint32_t array_offset, array_bytes;
    size_t offset;
    uint32_t group; /* of its thread */
};

/* A bulk copy out of shared memory. */
struct bulk_store {
    void *to;
    uint32_t from, bytes;
    uint32_t group; /* of its thread */
    site at;
};

struct thread : lane_ids {
    block *in_block = nullptr;
    warp *in_warp = nullptr;
    uint32_t index = 0; /* in the block */
    uint32_t lane = 0;
    state is = state::runnable;
    void *sp = nullptr;
    void *stack = nullptr;
    uint32_t clock = 1;
    view knows, fenced, pending; /* fenced: what a relaxed store gives away; pending: what the next fence takes */
    site at{};                   /* where it waits */
    uint32_t mask = 0; /* of the warp operation it waits in */
    const char *operation = nullptr;
    void *payload = nullptr;
    struct {
        site at;
        access_kind kind;
        scope of;
        uint32_t clock, record;
    } recent[4] = {};
    unsigned next_recent = 0;
    std::vector<pending_copy> copies; /* in the order of their groups */
    uint32_t copy_group = 0;          /* the open one */
    std::vector<bulk_store> bulk_stores;
    uint32_t bulk_group = 0, bulk_reader = 0, bulk_writer = 0; /* the open one; its agents, 0: none yet */
    uint32_t mbarrier = 0, parity = 0;                         /* where, and for the end of which phase, it waits */
    std::vector<std::pair<site, uint32_t>> executed; /* counting: how often each place was executed */
};

struct counted_request {
    const void *address[32];
    uint32_t lanes;
    uint16_t bytes;
    bool shared, store;
};

struct warp {
    std::vector<thread *> lanes;
    uint32_t priority = 0;
    std::map<std::pair<site, uint32_t>, counted_request> requests; /* counting: of which some lanes have not executed yet */
};

extern thread *self; /* NULL outside of kernels */

struct barrier {
    uint32_t expected = 0, n_arrived = 0; /* expected 0: nobody there */
    bool whole_block = false;
    site at{};
    std::vector<thread *> arrived;         /* those that wait */
    std::vector<std::pair<uint32_t, uint32_t>> clocks; /* of all */
    view joined;
};

struct cell {
    uint32_t write, read; /* index of the last write's record (0: never written), of the list of reads since */
};

struct shared_piece {
    const void *key;
    uint32_t offset, bytes;
};

/* An mbarrier, and what its phase still lacks. */
struct mbarrier_state {
    const thread *by; /* who initialised it, */
    uint32_t since;   /* at this clock, */
    site at;          /* and where */
    bool is_fenced = false;
    uint32_t n_threads, n_missing, phase = 0;
    uint64_t expected = 0, issued = 0, arrived = 0; /* bytes of this phase */
    uint32_t agent, clock = 1;                      /* who copies for it, in this phase */
    view given, completed;                          /* what arrivals brought, and what had been brought when the last phase ended */
};
/* A bulk copy into shared memory that is under way. */
struct bulk_load {
    const void *from;
    uint32_t to, bytes, mbarrier;
    site at;
};

struct block {
    launch *of = nullptr;
    uint32_t index = 0;
    uint64_t key = 0; /* block_key */
    bool lets_dependents_begin = false;
    std::vector<thread> threads;
    std::vector<warp> warps;
    barrier barriers[16];
    uint32_t n_exited = 0;
    std::vector<unsigned char> shared_bytes; /* with 16 bytes of slack for a base that is aligned to 16 and not to 32 */
    unsigned char *shared = nullptr;
    uint32_t shared_used = 0;
    std::vector<cell> shared_cells;
    std::vector<shared_piece> pieces;
    std::map<uint32_t, mbarrier_state> mbarriers; /* by where they lie */
    std::vector<bulk_load> bulk_loads;
    uint32_t n_agents = 0;
};

/* ---- operations of streams -------------------------------------------------------------------------------------------------------------------------- */

/* Neighbouring sectors of a request, for the model of the L2. */
struct touched {
    uintptr_t first_sector;
    uint32_t n_sectors, buffer;
    bool store;
};
struct launch_counts {
    std::string kernel;
    dim3 grid, block_dim;
    size_t shared_bytes = 0;
    uint64_t barriers = 0, fma = 0, mma = 0, shared_requests = 0, bank_conflicts = 0;
    struct buffer {
        uint64_t load_bytes = 0, load_sectors = 0, memory_sectors = 0, store_bytes = 0, store_sectors = 0;
    };
    std::map<uint32_t, buffer> buffers; /* by number */
    std::map<std::pair<uint32_t, uint32_t>, std::vector<touched>> touches; /* by block and warp; gone when the launch is done */
};

constexpr uint32_t no_operation = ~0u;
struct operation {
    uint32_t number = 0, stream = 0, index = 0; /* the index-th of its stream, from 1 on */
    std::vector<uint32_t> seen;                 /* by stream: operations that come before */
    const char *what = "";                      /* the kernel's name, or "copy" */
    dim3 grid, block_dim;
    uint32_t primary = no_operation; /* of a dependent launch: the one that it may run beside, which seen leaves out */
    std::vector<uint32_t> over;      /* once it has ended: which ones its threads had waited for */
};
/* Does a happen before b begins, by streams, events and what the host waited for? */
bool operation_ordered(uint32_t a, uint32_t b);
/* May they run beside each other? One is then the other's primary, or its primary's and so on. */
bool operations_overlap(uint32_t a, uint32_t b);
void operation_ended(const operation &o); /* whose over is now known */
/* The host is like a stream whose operations, its accesses, are done at once. */
constexpr uint32_t host_stream = 1;
const operation &operation_at(uint32_t number);

struct launch : operation {
    kernel_call *call = nullptr;
    size_t shared_bytes = 0;
    launch_as as = launch_as::usual;
    std::vector<uint32_t> only; /* blocks that run; empty: all */
    std::vector<uint32_t> todo; /* while it runs: its blocks, in the order in which they start; */
    size_t most_resident = 0;   /* so many at once */
    size_t n_started = 0, n_ended = 0, n_let = 0; /* let: dependents may begin, as far as the block is concerned */
    bool is_over() const { return !todo.empty() && n_ended == todo.size(); }
    uint32_t static_shared = 0;
    launch_counts counts;
};
/* One after another, each beside the one before it if that lets it. */
void launches_run(const std::vector<launch *> &all);
extern std::vector<block *> resident; /* of all launches that run */
extern uint64_t n_spins;              /* looks in vain since anything happened */

void atomics_forget(); /* atomics.cpp: what memory has to hand on, when the launches have ended */
void to_scheduler(); /* another thread goes on; back when this one is runnable and its warp's turn */
void redraw(thread *t);
void may_give_way();                  /* others go on first, or not */
std::string text_of(const thread &t); /* kernel, block, thread */
std::string place(const site &at);    /* " at FILE:LINE"; nothing where it is not known */

/* bulk.cpp: ends one of the copies that are under way, in one of these blocks; false: there is none. */
bool bulk_progress(const std::vector<block *> &blocks);
void bulk_block_done(block &b);             /* by its last thread: nothing may be under way */
std::string mbarrier_text(const thread &t); /* what it waits for */
bool mbarrier_lacks_bytes(const thread &t); /* and nothing else */

/* One call for all lanes of the mask: each leaves its payload, the last one to come computes for all. */
void collective(const char *operation, uint32_t mask, void *payload, void (*complete)(thread *const *lanes, uint32_t mask), site at);

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------------------ */

struct region {
    unsigned char *base;
    size_t bytes;
    cell *cells; /* one a byte */
    uint32_t number;
    std::string name;
    bool written; /* what has no write of its own yet counts as written long ago: pinned memory, which is the host's, too, and some sparse */
    bool sparse;  /* takes room only where it is touched: zeroes, of any size */
    bool changed = false;               /* by a kernel, perhaps, since regions_changed */
    uint32_t last_user = ~0u;           /* an operation */
    std::map<uint32_t, uint32_t> users; /* by stream: the last operation that touched it */
};
region *region_create(size_t bytes, bool written, bool sparse);
bool region_destroy(void *base);
region *region_find(const void *p);
size_t regions_bytes();
void regions_changed(const std::function<void(const region &)> &tell);
/* By a copy or a fill: who is the operation itself. Finds races with other operations. p outside of every buffer: plain host memory, not looked at. */
void region_touch(const operation &o, const void *p, size_t bytes, bool write, bool needs_value, site at = {nullptr, 0});
/* A finding if somebody has touched it since what the host knows of: that many operations of each stream. */
void region_expect_idle(void *base, const std::vector<uint32_t> &known);
/* Shared memory of the block that runs: as if nobody had written it. */
void shared_forget(uint32_t offset, size_t bytes);
/* The checks of a load and of a store of the thread that runs, which were counted, and held against bounds, before. */
void global_check(const void *p, size_t bytes, site at);
unsigned char *shared_check(uint32_t array_offset, size_t offset, size_t bytes, site at);
/* The same for a bulk copy that the thread asks for: done by an agent of its block at that agent's clock, and held against bounds. */
void global_bulk(uint32_t agent, uint32_t clock, const void *p, size_t bytes, bool write, site at);
void shared_bulk(uint32_t agent, uint32_t clock, uint32_t array_offset, uint32_t array_bytes, size_t offset, size_t bytes, bool write, site at);
void shadow_forget_history(); /* everything done so far happened before everything to come */
bool shadow_is_long();

/* ---- uninitialised locals: locals.cpp --------------------------------------------------------------------------------------------------------------- */

void locals_begin();
void locals_launched(const std::vector<launch *> &all);                 /* which have run beside each other */
void locals_copied(const operation &o, const void *from, size_t bytes); /* from a buffer, perhaps */

/* ---- counting ----------------------------------------------------------------------------------------------------------------------------------------- */

bool counting();
void count_access(thread &t, const void *p, size_t bytes, bool shared, bool store, site at);
void count_bulk(launch &l, const void *p, size_t bytes, bool store);
void count_warp_done(warp &w, launch &l);
void count_launch_done(launch_counts &c);

} // namespace simt
#endif
