#include "base/clock.h"

#include <stddef.h>
#include <time.h>

static uint64_t real_now_ns(void *context) {
    (void)context;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * BASE_NS_PER_S + (uint64_t)t.tv_nsec;
}

const struct base_clock *base_clock_real(void) {
    static const struct base_clock clock = {.now_ns = real_now_ns, .context = NULL};
    return &clock;
}

static uint64_t manual_now_ns(void *context) { return ((const struct base_clock_manual *)context)->now_ns; }

struct base_clock base_clock_from_manual(struct base_clock_manual *m) {
    return (struct base_clock){.now_ns = manual_now_ns, .context = m};
}
