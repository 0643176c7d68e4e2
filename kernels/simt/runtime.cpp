/* Streams, events, copies: see runtime.h.
 *
 * What comes before what is a vector clock over streams: operation number i of stream s has seen the first seen[k] operations of each stream k. The host is like a
 * stream that never runs anything. Operations start when all that they have seen is done, in an order drawn from the seed among those that may start. */
#include "kernels/simt/runtime.h"

#include <algorithm>
#include <deque>
#include <set>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/simt/runtime_priv.h"

namespace simt {

void regions_reset();
void runtime_reset();

static uint32_t at(const clocks &c, uint32_t i) { return i < c.size() ? c[i] : 0; }
void join(clocks &to, const clocks &from) {
    if (to.size() < from.size())
        to.resize(from.size());
    for (size_t i = 0; i < from.size(); i++)
        to[i] = std::max(to[i], from[i]);
}

static std::vector<stream_state *> streams; /* 0: the default stream, 1: the host */
static std::vector<operation> operations; /* by number, for who may ask later */
static clocks host_seen;
static std::map<const void *, int> dynamic_limit; /* by kernel */
static std::set<simt_event *> events;
static cudaError_t last_error;
static std::vector<uint32_t> only_blocks; /* of launches to come; empty: all */

cudaError_t failed(cudaError_t e) {
    if (e != cudaSuccess)
        last_error = e;
    return e;
}

/* ---- faults on demand ----------------------------------------------------------------------------------------------------------------------------------- */

static cudaError_t lost;               /* of the context: every call returns it from then on */
static uint32_t launch_to_fail, allocation_to_fail; /* counted down to; 0: none */

static bool counts_down(uint32_t &n) { return n && --n == 0; }

cudaError_t context_lost() { return failed(lost); }

/* What waits will never run, and counts as done: nobody may wait for it for ever. */
static void lose_context(cudaError_t e) {
    lost = e;
    for (stream_state *s : streams) {
        for (queued *q : s->waiting) delete q;
        s->waiting.clear();
        s->n_done = s->n_added;
    }
}

stream_state *stream_of(cudaStream_t s) {
    if (streams.empty()) {
        auto *d = new stream_state;
        auto *host = new stream_state;
        d->handle = {0, true};
        host->handle = {host_stream, false};
        streams = {d, host};
    }
    if (!s)
        return streams[0];
    for (stream_state *k : streams)
        if (&k->handle == s && !k->destroyed)
            return k;
    return nullptr;
}

void follow(stream_state *s, const clocks &c) {
    join(s->seen, c);
    join(s->early, c);
}

void add(stream_state *s, queued *q, const char *what) {
    operation &o = q->launched;
    o.what = what;
    o.stream = s->handle.number;
    o.index = ++s->n_added;
    follow(s, host_seen);
    if (s->handle.number == 0) { /* the default stream waits for the blocking ones, and they for it */
        for (const stream_state *k : streams)
            if (k->handle.blocking && k != s) follow(s, k->seen);
    } else if (s->handle.blocking) {
        follow(s, streams[0]->seen);
    }
    o.number = (uint32_t)operations.size();
    if (q->launched.as == launch_as::dependent) o.primary = s->last_launch;
    o.seen = o.primary == no_operation ? s->seen : s->early;
    if (s->seen.size() <= o.stream)
        s->seen.resize(o.stream + 1);
    s->seen[o.stream] = o.index;
    s->early = o.seen;
    s->last_launch = q->launched.call ? o.number : no_operation;
    operations.push_back(o);
    s->waiting.push_back(q);
}

/* Into the stream, or into the graph that it is captured for. */
static cudaError_t enter(stream_state *s, queued *q, const char *what) {
    if (s->capturing)
        return capture_add(s, q, what);
    cudaError_t e = capture_forbids_default(s);
    if (e != cudaSuccess) {
        delete q;
        return e;
    }
    add(s, q, what);
    return cudaSuccess;
}

/* Whether all of this has been done. */
static bool reached(const clocks &wanted) {
    for (uint32_t k = 0; k < wanted.size(); k++)
        if (streams[k]->n_done < wanted[k])
            return false;
    return true;
}

static std::unique_ptr<queued> take(stream_state *s) {
    std::unique_ptr<queued> q(s->waiting.front());
    s->waiting.pop_front();
    return q;
}

static void run_copy(const queued &q) {
    const copy_operation &c = q.copy;
    if (c.from) {
        region_touch(q.launched, c.from, c.bytes, false, true);
        locals_copied(q.launched, c.from, c.bytes);
    }
    region_touch(q.launched, c.to, c.bytes, true, false);
    if (c.from)
        memmove(c.to, c.from, c.bytes);
    else
        memset(c.to, c.value, c.bytes);
}

/* A copy; or a launch, and with it those behind it that may begin before it has ended. One that is to fail waits for its turn. */
static void run_one(stream_state *s) {
    std::vector<std::unique_ptr<queued>> all;
    all.push_back(take(s));
    if (!all[0]->launched.call) {
        run_copy(*all[0]);
        s->n_done++;
        return;
    }
    if (counts_down(launch_to_fail)) {
        lose_context(cudaErrorIllegalAddress);
        return;
    }
    std::vector<launch *> launches = {&all[0]->launched};
    while (launch_to_fail != 1 && !s->waiting.empty() && s->waiting.front()->launched.primary == launches.back()->number &&
           reached(s->waiting.front()->launched.seen)) {
        counts_down(launch_to_fail);
        all.push_back(take(s));
        launches.push_back(&all.back()->launched);
    }
    launches_run(launches);
    locals_launched(launches);
    s->n_done += (uint32_t)launches.size();
}

/* Runs whatever may run, in some order, until `wanted` is done. */
static void run_until(const clocks &wanted) {
    while (!reached(wanted)) {
        std::vector<stream_state *> ready;
        for (stream_state *s : streams)
            if (!s->waiting.empty() && reached(s->waiting.front()->launched.seen))
                ready.push_back(s);
        run_one(ready[chance((uint32_t)ready.size())]); /* never empty: nobody can wait for what comes later */
    }
    join(host_seen, wanted);
}

static void run_all() {
    clocks all;
    for (const stream_state *s : streams) {
        join(all, s->seen);
        if (all.size() <= s->handle.number)
            all.resize(s->handle.number + 1);
    }
    run_until(all);
    if (shadow_is_long()) {
        shadow_forget_history();
        operations.clear();
        for (stream_state *s : streams) s->last_launch = no_operation;
    }
}

static void host_access(const void *p, size_t bytes, bool write, site at) {
    stream_of(nullptr);
    operation o;
    o.what = "host";
    o.stream = host_stream;
    o.index = streams[host_stream]->n_done = ++streams[host_stream]->n_added;
    o.seen = host_seen;
    o.number = (uint32_t)operations.size();
    operations.push_back(o);
    host_seen.resize(std::max<size_t>(host_seen.size(), host_stream + 1));
    host_seen[host_stream] = o.index;
    region_touch(o, p, bytes, write, true, at);
}

static cudaError_t add_copy(void *to, const void *from, int value, size_t bytes, cudaStream_t stream, const char *what) {
    stream_state *s = stream_of(stream);
    if (lost)
        return context_lost();
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    if (bytes == 0)
        return cudaSuccess;
    auto *q = new queued;
    q->copy = {to, from, value, bytes};
    return enter(s, q, what);
}

bool operation_ordered(uint32_t a, uint32_t b) {
    const operation &x = operations[a], &y = operations[b];
    return at(y.seen, x.stream) >= x.index;
}

bool operations_overlap(uint32_t a, uint32_t b) {
    uint32_t first = std::min(a, b), last = std::max(a, b);
    while (last != no_operation && last > first) last = operations[last].primary;
    return last == first;
}

void operation_ended(const operation &o) { operations[o.number].over = o.over; }

const operation &operation_at(uint32_t number) { return operations[number]; }

int launch_add(kernel_call *call, const void *function, const char *name, dim3 grid, dim3 block, size_t shared_bytes, void *stream, launch_as as) {
    std::unique_ptr<kernel_call> owner(call);
    stream_state *s = stream_of((cudaStream_t)stream);
    if (lost)
        return context_lost();
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    uint64_t threads = (uint64_t)block.x * block.y * block.z, blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (threads == 0 || threads > threads_limit || block.z > 64 || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        blocks > 0x7fffffffu)
        return failed(cudaErrorInvalidConfiguration);
    auto limit = dynamic_limit.find(function);
    if (threads > launch_bounds(function) || call->parameter_bytes > parameter_limit ||
        shared_bytes > (limit == dynamic_limit.end() ? static_shared_limit : (size_t)limit->second))
        return failed(cudaErrorInvalidValue);
    const device_info &d = *config().device;
    if (as == launch_as::cooperative && blocks > (uint64_t)d.n_sms * ((uint64_t)d.threads_per_sm / threads))
        return failed(cudaErrorCooperativeLaunchTooLarge);
    auto *q = new queued;
    q->launched.call = owner.release();
    q->launched.grid = grid;
    q->launched.block_dim = block;
    q->launched.shared_bytes = shared_bytes;
    q->launched.as = as;
    for (uint32_t b : only_blocks)
        if (b < blocks) q->launched.only.push_back(b);
    return enter(s, q, name);
}

/* An empty device: after a finding nothing on it can be trusted. */
void runtime_reset() {
    captures_reset();
    for (stream_state *s : streams) {
        for (queued *q : s->waiting) delete q;
        delete s;
    }
    streams.clear();
    for (simt_event *e : events)
        delete e;
    events.clear();
    operations.clear();
    host_seen.clear();
    last_error = lost = cudaSuccess;
    launch_to_fail = allocation_to_fail = 0;
    only_blocks.clear();
    dynamic_limit.clear();
    regions_reset();
}

} // namespace simt

using namespace simt;

void *simt_sparse(size_t bytes, int written) {
    region *r = region_create(bytes, written != 0, true);
    return r ? r->base : nullptr;
}
void simt_only_blocks(const uint32_t *blocks, size_t n) { only_blocks.assign(blocks, blocks + n); }

void simt_host_access(const void *p, size_t bytes, int write, const char *file, int line) { host_access(p, bytes, write != 0, {file, line}); }

void simt_fail_launch(uint32_t n) { launch_to_fail = n; }
void simt_fail_allocation(uint32_t n) { allocation_to_fail = n; }

/* ---- device ------------------------------------------------------------------------------------------------------------------------------------------ */

const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorInvalidMemcpyDirection:
        return "invalid copy direction for memcpy";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorCooperativeLaunchTooLarge:
        return "too many blocks in cooperative launch";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureMerge:
        return "operation would result in a merge of separate capture sequences";
    case cudaErrorStreamCaptureUnmatched:
        return "capture was not ended in the same stream as it began";
    case cudaErrorStreamCaptureUnjoined:
        return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
        return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit:
        return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorCapturedEvent:
        return "operation not permitted on an event last recorded in a capturing stream";
    case cudaErrorGraphExecUpdateFailure:
        return "the graph update was not performed because it included changes which violated constraints specific to instantiated graph update";
    default:
        return "unrecognized error code";
    }
}
cudaError_t cudaPeekAtLastError(void) { return lost ? lost : last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t e = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return context_lost();
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    if (lost) return context_lost();
    const device_info &d = *config().device;
    if (device != 0)
        return failed(cudaErrorInvalidValue);
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: *value = (int)threads_limit; break;
    case cudaDevAttrMultiProcessorCount:
        *value = d.n_sms;
        break;
    case cudaDevAttrIntegrated:
        *value = d.integrated;
        break;
    case cudaDevAttrL2CacheSize:
        *value = (int)d.l2_bytes;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = d.threads_per_sm;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = d.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = d.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)shared_limit;
        break;
    default:
        return failed(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    if (lost) return context_lost();
    *total_bytes = config().device->memory_bytes;
    *free_bytes = *total_bytes - regions_bytes();
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute which, int value) {
    if (lost) return context_lost();
    if (which != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || (size_t)value > shared_limit)
        return failed(cudaErrorInvalidValue);
    dynamic_limit[function] = value;
    return cudaSuccess;
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------------------ */

static cudaError_t allocate(void **p, size_t bytes, bool initialised) {
    if (!p)
        return failed(cudaErrorInvalidValue);
    *p = nullptr;
    cudaError_t e = lost ? context_lost() : capture_forbids_unsafe();
    if (e != cudaSuccess)
        return e;
    if (bytes == 0)
        return cudaSuccess;
    if (counts_down(allocation_to_fail) || bytes > config().device->memory_bytes - regions_bytes())
        return failed(cudaErrorMemoryAllocation);
    region *r = region_create(bytes, initialised, false);
    if (!r)
        return failed(cudaErrorMemoryAllocation);
    *p = r->base;
    return cudaSuccess;
}

static cudaError_t release(void *p) {
    if (lost) return context_lost();
    if (!p)
        return cudaSuccess;
    cudaError_t e = capture_forbids_unsafe();
    if (e != cudaSuccess)
        return e;
    clocks known = host_seen;
    run_all(); /* as cudaFree does; but a program that keeps its buffers for others' use would not wait */
    if (lost)
        return context_lost();
    region_expect_idle(p, known);
    return region_destroy(p) ? cudaSuccess : failed(cudaErrorInvalidValue);
}

cudaError_t cudaMalloc(void **p, size_t bytes) { return allocate(p, bytes, false); }
cudaError_t cudaFree(void *p) { return release(p); }
/* The host's own writes are not seen, so pinned memory counts as written. */
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
    (void)flags;
    return allocate(p, bytes, true);
}
cudaError_t cudaFreeHost(void *p) { return release(p); }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (lost) return context_lost();
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault || (kind == cudaMemcpyHostToDevice && bytes && !region_find(to)) ||
        (kind == cudaMemcpyDeviceToHost && bytes && !region_find(from)))
        return failed(kind > cudaMemcpyDefault ? cudaErrorInvalidMemcpyDirection : cudaErrorInvalidValue);
    return add_copy(to, from, 0, bytes, stream, "copy");
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return e != cudaSuccess ? e : cudaStreamSynchronize(nullptr);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) { return add_copy(to, nullptr, value, bytes, stream, "fill"); }
cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

/* ---- streams, events ---------------------------------------------------------------------------------------------------------------------------------- */

stream_state *simt::stream_create(bool blocking) {
    stream_of(nullptr);
    auto *s = new stream_state;
    s->handle = {(uint32_t)streams.size(), blocking};
    streams.push_back(s);
    return s;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
    if (lost) return context_lost();
    *out = &stream_create(!(flags & cudaStreamNonBlocking))->handle;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }

/* Its work is still done, by the next wait for the device. */
cudaError_t cudaStreamDestroy(cudaStream_t h) {
    if (lost) return context_lost();
    stream_state *s = h ? stream_of(h) : nullptr;
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    s->destroyed = true;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t h) {
    stream_state *s = stream_of(h);
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    cudaError_t e = capture_forbids_waiting(s);
    if (e != cudaSuccess)
        return e;
    run_until(s->seen);
    return context_lost();
}

/* Time passes for who asks: something may get done. */
cudaError_t cudaStreamQuery(cudaStream_t h) {
    if (lost) return context_lost();
    stream_state *s = stream_of(h);
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    if (!s->capturing && s->n_done < s->n_added && chance(2))
        return cudaErrorNotReady;
    return cudaStreamSynchronize(h);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    if (lost) return context_lost();
    (void)flags;
    *e = new simt_event;
    events.insert(*e);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    if (lost) return context_lost();
    if (events.erase(e) == 0)
        return failed(cudaErrorInvalidResourceHandle);
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t h) {
    if (lost) return context_lost();
    stream_state *s = stream_of(h);
    if (!s || !events.count(e))
        return failed(cudaErrorInvalidResourceHandle);
    e->captured = s->capturing;
    e->nodes = s->tail;
    e->seen = s->seen;
    if (!h)
        for (const stream_state *k : streams)
            if (k->handle.blocking)
                join(e->seen, k->seen);
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t h, cudaEvent_t e, unsigned flags) {
    if (lost) return context_lost();
    stream_state *s = stream_of(h);
    (void)flags;
    if (!s || !events.count(e))
        return failed(cudaErrorInvalidResourceHandle);
    if (s->capturing || e->captured)
        return capture_wait(s, e);
    follow(s, e->seen);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (!events.count(e))
        return failed(cudaErrorInvalidResourceHandle);
    if (e->captured)
        return failed(cudaErrorCapturedEvent);
    run_until(e->seen);
    return context_lost();
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    if (lost) return context_lost();
    if (!events.count(e))
        return failed(cudaErrorInvalidResourceHandle);
    if (e->captured)
        return failed(cudaErrorCapturedEvent);
    if (!reached(e->seen))
        return chance(2) ? failed(cudaErrorNotReady) : cudaEventSynchronize(e);
    join(host_seen, e->seen);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    stream_of(nullptr);
    cudaError_t e = capture_forbids_waiting(nullptr);
    if (e != cudaSuccess)
        return e;
    run_all();
    return context_lost();
}
