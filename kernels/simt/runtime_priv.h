/* What runtime.cpp and graphs.cpp share: streams, and work that waits in them. */
#ifndef KERNELS_SIMT_RUNTIME_PRIV_H
#define KERNELS_SIMT_RUNTIME_PRIV_H

#include <deque>

#include "kernels/simt/engine.h"

struct simt_stream {
    uint32_t number;
    bool blocking;
};
struct simt_event {
    std::vector<uint32_t> seen;
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
};
struct stream_state {
    simt_stream handle;
    std::deque<queued *> waiting;
    uint32_t n_added = 0, n_done = 0;
    clocks seen;
    bool destroyed = false;
};

stream_state *stream_of(cudaStream_t s); /* NULL: there is none */
void add(stream_state *s, queued *q, const char *what);
cudaError_t failed(cudaError_t e); /* remembers it */
cudaError_t context_lost(); /* cudaSuccess, or what every call returns after a fault on the device */

} // namespace simt
#endif
