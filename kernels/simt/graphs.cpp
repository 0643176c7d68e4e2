/* Graphs: capture, instantiate, update, replay.
 *
 * A node is a launch or a copy with its arguments as they were, and the nodes that it follows. A graph that is launched becomes work of streams again: nodes stand on chains, the first of
 * which follows the stream that it is launched into, and each waits for what its node follows. So order, and whatever lacks of it, is found as everywhere. */
#include "kernels/simt/runtime_priv.h"

#include <algorithm>
#include <set>
#include <utility>

namespace simt {

struct node {
    std::shared_ptr<kernel_call> call; /* NULL: a copy */
    const char *what;
    dim3 grid, block_dim;
    size_t shared_bytes;
    launch_as as;
    copy_operation copy;
    std::vector<uint32_t> follows; /* ascending */
};

struct capture {
    std::vector<node> nodes;
    stream_state *origin;
    cudaStreamCaptureMode mode;
    bool is_worthless = false;
    std::vector<stream_state *> streams;
};

static std::vector<capture *> captures; /* that go on */

static void merge(std::vector<uint32_t> &to, const std::vector<uint32_t> &from) {
    std::set<uint32_t> both(to.begin(), to.end());
    both.insert(from.begin(), from.end());
    to.assign(both.begin(), both.end());
}

static cudaError_t spoil(capture *c, cudaError_t e) {
    c->is_worthless = true;
    return failed(e);
}

cudaError_t capture_forbids_waiting(const stream_state *s) {
    if (s)
        return s->capturing ? spoil(s->capturing, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
    cudaError_t e = cudaSuccess;
    for (capture *c : captures)
        e = spoil(c, cudaErrorStreamCaptureUnsupported);
    return e;
}

cudaError_t capture_forbids_unsafe() {
    cudaError_t e = cudaSuccess;
    for (capture *c : captures)
        if (c->mode != cudaStreamCaptureModeRelaxed)
            e = spoil(c, cudaErrorStreamCaptureUnsupported);
    return e;
}

cudaError_t capture_forbids_default(const stream_state *s) {
    cudaError_t e = cudaSuccess;
    for (capture *c : captures)
        for (const stream_state *k : c->streams)
            if (s->handle.number == 0 && k->handle.blocking)
                e = spoil(c, cudaErrorStreamCaptureImplicit);
    return e;
}

cudaError_t capture_wait(stream_state *s, const simt_event *e) {
    if (!e->captured)
        return s->capturing ? spoil(s->capturing, cudaErrorStreamCaptureIsolation) : cudaSuccess;
    if (std::find(captures.begin(), captures.end(), e->captured) == captures.end())
        return failed(cudaErrorCapturedEvent);
    if (s->capturing && s->capturing != e->captured) {
        spoil(s->capturing, cudaErrorStreamCaptureMerge);
        return spoil(e->captured, cudaErrorStreamCaptureMerge);
    }
    if (!s->capturing) {
        s->capturing = e->captured;
        s->capturing->streams.push_back(s);
        s->tail.clear();
    }
    merge(s->tail, e->nodes);
    return cudaSuccess;
}

cudaError_t capture_add(stream_state *s, queued *q, const char *what) {
    std::unique_ptr<queued> owner(q);
    const launch &l = q->launched;
    capture *c = s->capturing;
    std::shared_ptr<kernel_call> call(std::exchange(q->launched.call, nullptr));
    c->nodes.push_back({call, what, l.grid, l.block_dim, l.shared_bytes, l.as, q->copy, s->tail});
    s->tail = {(uint32_t)c->nodes.size() - 1};
    return c->is_worthless ? failed(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

static void end(capture *c) {
    for (stream_state *s : c->streams) {
        s->capturing = nullptr;
        s->tail.clear();
    }
    captures.erase(std::find(captures.begin(), captures.end(), c));
    delete c;
}

void captures_reset() {
    while (!captures.empty())
        end(captures.back());
}

/* Does the origin's end follow every node? */
static bool is_joined(const capture *c) {
    std::vector<bool> seen(c->nodes.size());
    std::vector<uint32_t> todo = c->origin->tail;
    size_t n = 0;
    while (!todo.empty()) {
        uint32_t i = todo.back();
        todo.pop_back();
        if (seen[i])
            continue;
        seen[i] = true;
        n++;
        todo.insert(todo.end(), c->nodes[i].follows.begin(), c->nodes[i].follows.end());
    }
    return n == seen.size();
}

} // namespace simt

using namespace simt;

struct simt_graph {
    std::vector<node> nodes;
};
struct simt_graph_exec {
    std::vector<node> nodes;
    std::vector<uint32_t> chain_of;      /* by node */
    std::vector<stream_state *> chains; /* 0: the stream that it is launched into, NULL here */
    clocks last;                        /* its last launch: two do not run at once */
};

cudaError_t cudaStreamBeginCapture(cudaStream_t h, enum cudaStreamCaptureMode mode) {
    if (cudaError_t e = context_lost()) return e;
    stream_state *s = stream_of(h);
    if (!s || s->handle.number == 0 || s->capturing)
        return failed(s && s->handle.number == 0 ? cudaErrorStreamCaptureUnsupported : cudaErrorInvalidValue);
    auto *c = new capture;
    c->origin = s;
    c->mode = mode;
    c->streams = {s};
    s->capturing = c;
    s->tail.clear();
    captures.push_back(c);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t h, cudaGraph_t *graph) {
    if (cudaError_t e = context_lost()) return e;
    stream_state *s = stream_of(h);
    *graph = nullptr;
    if (!s || !s->capturing)
        return failed(cudaErrorInvalidValue);
    capture *c = s->capturing;
    if (c->origin != s)
        return spoil(c, cudaErrorStreamCaptureUnmatched);
    cudaError_t e = c->is_worthless ? cudaErrorStreamCaptureInvalidated : is_joined(c) ? cudaSuccess : cudaErrorStreamCaptureUnjoined;
    if (e == cudaSuccess)
        *graph = new simt_graph{c->nodes};
    end(c);
    return failed(e);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t h, enum cudaStreamCaptureStatus *status) {
    if (cudaError_t e = context_lost()) return e;
    stream_state *s = stream_of(h);
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    *status = !s->capturing ? cudaStreamCaptureStatusNone : s->capturing->is_worthless ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    if (cudaError_t e = context_lost()) return e;
    delete graph;
    return cudaSuccess;
}

/* A node goes on with the chain of one that it follows, if nobody else does. */
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags) {
    if (cudaError_t e = context_lost()) return e;
    (void)flags;
    auto *x = new simt_graph_exec;
    x->nodes = graph->nodes;
    std::vector<uint32_t> last; /* of each chain */
    for (uint32_t i = 0; i < x->nodes.size(); i++) {
        uint32_t chain = (uint32_t)last.size();
        for (uint32_t f : x->nodes[i].follows)
            if (last[x->chain_of[f]] == f)
                chain = std::min(chain, x->chain_of[f]);
        if (chain == last.size()) {
            last.push_back(i);
            x->chains.push_back(chain ? stream_create(false) : nullptr);
        }
        last[chain] = i;
        x->chain_of.push_back(chain);
    }
    *out = x;
    return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t x, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info) {
    if (cudaError_t e = context_lost()) return e;
    info->result = x->nodes.size() == graph->nodes.size() ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
    for (size_t i = 0; i < x->nodes.size() && info->result == cudaGraphExecUpdateSuccess; i++)
        if (x->nodes[i].follows != graph->nodes[i].follows ||
            (x->nodes[i].as == launch_as::dependent) != (graph->nodes[i].as == launch_as::dependent))
            info->result = cudaGraphExecUpdateErrorTopologyChanged;
        else if (!x->nodes[i].call != !graph->nodes[i].call)
            info->result = cudaGraphExecUpdateErrorNodeTypeChanged;
    if (info->result != cudaGraphExecUpdateSuccess)
        return failed(cudaErrorGraphExecUpdateFailure);
    x->nodes = graph->nodes;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t h) {
    if (cudaError_t e = context_lost()) return e;
    stream_state *s = stream_of(h);
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    if (s->capturing)
        return capture_forbids_waiting(s); /* a graph within a graph: not here */
    follow(s, x->last);
    clocks begin = s->seen;
    std::vector<clocks> behind(x->nodes.size()); /* each node */
    for (size_t i = 0; i < x->nodes.size(); i++) {
        const node &n = x->nodes[i];
        stream_state *chain = x->chain_of[i] ? x->chains[x->chain_of[i]] : s;
        follow(chain, begin);
        for (uint32_t f : n.follows)
            if (x->chain_of[f] != x->chain_of[i]) follow(chain, behind[f]);
        auto *q = new queued;
        q->launched.call = n.call ? n.call->copy() : nullptr;
        q->launched.grid = n.grid;
        q->launched.block_dim = n.block_dim;
        q->launched.shared_bytes = n.shared_bytes;
        q->launched.as = n.as;
        q->copy = n.copy;
        add(chain, q, n.what);
        behind[i] = chain->seen;
    }
    for (const clocks &b : behind) follow(s, b);
    x->last = s->seen;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
    if (cudaError_t e = context_lost()) return e;
    for (stream_state *chain : x->chains)
        if (chain)
            cudaStreamDestroy(&chain->handle);
    delete x;
    return cudaSuccess;
}
