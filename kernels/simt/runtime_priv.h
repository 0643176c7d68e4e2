/* What runtime.cpp and graphs.cpp share: streams, and work that waits in them. */
#ifndef KERNELS_SIMT_RUNTIME_PRIV_H
#define KERNELS_SIMT_RUNTIME_PRIV_H

#include <deque>

#include "kernels/simt/engine.h"

struct simt_stream {
    uint32_t number;
    bool blocking;
};
namespace simt {
struct capture;
}
struct simt_event {
    std::vector<uint32_t> seen;
    simt::capture *captured = nullptr; /* recorded in a stream that was captured: behind these nodes */
    std::vector<uint32_t> nodes;
};

namespace simt {

/* By stream: how many of its operations, from the first on. */
typedef std::vector<uint32_t> clocks;
void join(clocks &to, const clocks &from);

struct copy_operation {
    void *to;
    const void *from; /* NULL: a fill */
    int value;
    size_t bytes;
};
struct queued {
    launch launched; /* its call is NULL for a copy */
    copy_operation copy;
    queued() = default;
    queued(const queued &) = delete;
    ~queued() { delete launched.call; }
};
struct stream_state {
    simt_stream handle;
    std::deque<queued *> waiting;
    uint32_t n_added = 0, n_done = 0;
    clocks seen;
    clocks early;                        /* what a dependent launch, if it is the next, has seen when it begins */
    uint32_t last_launch = no_operation; /* what it may run beside; none behind a copy */
    bool destroyed = false;
    capture *capturing = nullptr;
    std::vector<uint32_t> tail; /* nodes that the next one follows */
};

stream_state *stream_of(cudaStream_t s); /* NULL: there is none */
void follow(stream_state *s, const clocks &c); /* whatever enters s from now on begins behind c */
void add(stream_state *s, queued *q, const char *what);
cudaError_t failed(cudaError_t e); /* remembers it */
stream_state *stream_create(bool blocking);

/* ---- capture: graphs.cpp. Each of the first four makes the capture worthless and returns an error where the call is not allowed now, else cudaSuccess. */
cudaError_t capture_forbids_waiting(const stream_state *s); /* NULL: for the device */
cudaError_t capture_forbids_unsafe();                       /* allocation and the like */
cudaError_t capture_forbids_default(const stream_state *s); /* work in the default stream, for which captured ones would have to wait */
cudaError_t capture_wait(stream_state *s, const simt_event *e);
cudaError_t capture_add(stream_state *s, queued *q, const char *what); /* takes q */
void captures_reset();
cudaError_t context_lost(); /* cudaSuccess, or what every call returns after a fault on the device */

} // namespace simt
#endif
