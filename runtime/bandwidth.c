#include "runtime/bandwidth.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/tick.h"

#define MIN_BYTES (16u << 20)
#define MIN_ROUNDS 4

struct reading {
    uint64_t *data;
    size_t n;
    uint64_t *sums; /* one cache line a thread: so that no read is left out */
};

uint64_t rt_bandwidth_bytes(int n_ranks)
{
    const uint64_t bytes = (RT_BANDWIDTH_BYTES / (uint64_t)n_ranks) & ~4095ull;
    return bytes > MIN_BYTES ? bytes : MIN_BYTES;
}

/* Each thread its own share, which then lies near it. */
static void touch_share(void *arg, int i_thread, int n_threads)
{
    const struct reading *r = arg;
    size_t begin, end;
    base_pool_share(r->n, 512, i_thread, n_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        r->data[i] = i;
        if (i % (1u << 20) == 0)
            base_tick();
    }
}

static void read_share(void *arg, int i_thread, int n_threads)
{
    const struct reading *r = arg;
    size_t begin, end;
    base_pool_share(r->n, 512, i_thread, n_threads, &begin, &end);
    uint64_t s[8] = {0};
    for (size_t i = begin; i + 8 <= end; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += r->data[i + (size_t)k];
    r->sums[8 * i_thread] = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
    base_tick();
}

uint64_t rt_bandwidth_measure(struct base_pool *pool, const struct base_clock *clock, uint64_t bytes, uint64_t min_ns)
{
    struct reading r = {.n = bytes / sizeof(uint64_t), .sums = calloc((size_t)base_pool_n_threads(pool) * 8, sizeof(uint64_t))};
    r.data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t best = 0;
    if (r.data != MAP_FAILED && r.sums) {
        madvise(r.data, bytes, MADV_HUGEPAGE);
        base_pool_run(pool, touch_share, &r);
        const uint64_t start = base_now_ns(clock);
        for (uint64_t round = 0, now = start; round < MIN_ROUNDS || now - start < min_ns; round++) {
            const uint64_t before = now;
            base_pool_run(pool, read_share, &r);
            now = base_now_ns(clock);
            const uint64_t rate = now > before ? (uint64_t)((double)bytes * 1e9 / (double)(now - before)) : 0;
            best = rate > best ? rate : best;
        }
    }
    if (r.data != MAP_FAILED)
        munmap(r.data, bytes);
    free(r.sums);
    return best;
}
