/* Clock: injected, so that decisions can be tested. Times are nanoseconds of a monotonic clock; a deadline is an absolute time. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

struct base_clock {
    uint64_t (*now_ns)(void *context);
    void *context;
};

/* CLOCK_MONOTONIC of this machine. */
const struct base_clock *base_clock_real(void);

static inline uint64_t base_now_ns(const struct base_clock *clock) { return clock->now_ns(clock->context); }

#define BASE_NS_PER_US 1000ull
#define BASE_NS_PER_MS 1000000ull
#define BASE_NS_PER_S 1000000000ull
#define BASE_NO_DEADLINE UINT64_MAX

/* A clock that stands still until told otherwise. */
struct base_clock_manual {
    uint64_t now_ns;
};
struct base_clock base_clock_from_manual(struct base_clock_manual *m);

#endif
