/* How a rank gets its comm: what its options say, and the meeting with the others. */
#ifndef RUNTIME_WIRE_H
#define RUNTIME_WIRE_H

#include "runtime/rank.h"

/* max_bytes: the largest send of a rank. clock NULL: the real one. */
struct comm_setup rt_wire_setup(const struct rt_rank_options *o, size_t max_bytes, const struct base_clock *clock);

/* The hello, with mine's build and kernel variant filled in, then what goes over which of several connections (comm_tune). */
enum st rt_wire_meet(struct comm *c, const struct rt_rank_options *o, const struct kern_backend *kernels, struct comm_identity mine, uint64_t deadline_ns, size_t *divided_from, struct err *e);

#endif
