/* See cases.h. Each case leaves its work in streams; simt_catch waits for it. A right case compares its results itself. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/simt/simt.h"
#include "kernels/simt/simt_host.h"
#include "tests/simt/cases.h"

static void *device(size_t bytes) {
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess)
        abort();
    return p;
}
static uint32_t *device_zeroes(size_t n) {
    auto *p = (uint32_t *)device(n * sizeof(uint32_t));
    cudaMemsetAsync(p, 0, n * sizeof(uint32_t), NULL);
    return p;
}
static void expect(const uint32_t *p, size_t n, uint32_t (*want)(size_t i)) {
    uint32_t got[256];
    cudaMemcpy(got, p, n * sizeof *got, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < n; i++)
        if (got[i] != want(i)) {
            fprintf(stderr, "element %zu is %u, expected %u\n", i, got[i], want(i));
            abort();
        }
}

/* ---- barriers and shared memory ------------------------------------------------------------------------------------------------------------------------ */

template <bool waits> __global__ void reverse(global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 64);
    s.store(threadIdx.x, threadIdx.x);
    if (waits)
        __syncthreads();
    out.store(blockIdx.x * 64 + threadIdx.x, s.load(63 - threadIdx.x));
}
template <bool waits> static void run_reverse(void *) {
    uint32_t *out = device_zeroes(192);
    SIMT_LAUNCH(reverse<waits>, 3, 64, 0, NULL, out);
    if (waits)
        expect(out, 192, [](size_t i) { return (uint32_t)(63 - i % 64); });
}

/* Σ over the block, twice with one array: the second round may not overwrite what somebody still reads. */
template <bool waits> __global__ void sum_twice(global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 4);
    uint32_t total = 0;
    for (int round = 0; round < 2; round++) {
        uint32_t x = __reduce_add_sync(0xffffffffu, threadIdx.x);
        if (threadIdx.x % 32 == 0)
            s.store(threadIdx.x / 32, x);
        __syncthreads();
        for (int i = 0; i < 4; i++)
            total += s.load(i);
        if (waits)
            __syncthreads();
    }
    out.store(threadIdx.x, total);
}
template <bool waits> static void run_sum_twice(void *) {
    uint32_t *out = device_zeroes(128);
    SIMT_LAUNCH(sum_twice<waits>, 1, 128, 0, NULL, out);
    if (waits)
        expect(out, 128, [](size_t) { return 2u * 127 * 128 / 2; });
}

template <bool waits> __global__ void warp_exchange(global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 32);
    s.store(threadIdx.x, threadIdx.x);
    if (waits)
        __syncwarp();
    out.store(threadIdx.x, s.load(threadIdx.x ^ 1));
}
template <bool waits> static void run_warp_exchange(void *) {
    uint32_t *out = device_zeroes(32);
    SIMT_LAUNCH(warp_exchange<waits>, 1, 32, 0, NULL, out);
    if (waits)
        expect(out, 32, [](size_t i) { return (uint32_t)i ^ 1; });
}

/* A shuffle hands over a value and orders no memory. */
__global__ void shuffle_is_no_fence(global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 32);
    s.store(threadIdx.x, threadIdx.x);
    uint32_t other = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
    out.store(threadIdx.x, s.load(other));
}
static void run_shuffle_is_no_fence(void *) { SIMT_LAUNCH(shuffle_is_no_fence, 1, 32, 0, NULL, device_zeroes(32)); }

__global__ void half_waits(global<uint32_t> out) {
    if (threadIdx.x < 32)
        __syncthreads();
    out.store(threadIdx.x, 1);
}
static void run_half_waits(void *) { SIMT_LAUNCH(half_waits, 1, 64, 0, NULL, device_zeroes(64)); }

__global__ void two_places(global<uint32_t> out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out.store(threadIdx.x, 1);
}
static void run_two_places(void *) { SIMT_LAUNCH(two_places, 1, 64, 0, NULL, device_zeroes(64)); }

/* One warp makes, one takes; two named barriers, of which each side waits at one. */
template <bool right> __global__ void make_and_take(global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 32);
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t round = 0; round < 3; round++)
        if (threadIdx.x < 32) {
            if (round && right)
                barrier_sync(2, 64); /* it was taken */
            s.store(lane, lane + round);
            barrier_arrive(1, 64);
        } else {
            barrier_sync(1, 64); /* it was made */
            out.store(round * 32 + lane, s.load(31 - lane));
            if (round < 2 && right)
                barrier_arrive(2, 64);
        }
}
template <bool right> static void run_make_and_take(void *) {
    uint32_t *out = device_zeroes(96);
    SIMT_LAUNCH(make_and_take<right>, 1, 64, 0, NULL, out);
    if (right)
        expect(out, 96, [](size_t i) { return (uint32_t)(31 - i % 32 + i / 32); });
}

__global__ void too_few_come() {
    if (threadIdx.x < 32)
        barrier_sync(3, 64);
}
static void run_too_few_come(void *) { SIMT_LAUNCH(too_few_come, 1, 64, 0, NULL, ); }

/* ---- warp operations ------------------------------------------------------------------------------------------------------------------------------------ */

__global__ void reads_absent_lane(global<uint32_t> out) {
    if (threadIdx.x < 16)
        out.store(threadIdx.x, __shfl_down_sync(0x0000ffffu, threadIdx.x, 1));
}
static void run_reads_absent_lane(void *) { SIMT_LAUNCH(reads_absent_lane, 1, 32, 0, NULL, device_zeroes(32)); }

__global__ void lane_has_ended(global<uint32_t> out) {
    if (threadIdx.x == 7)
        return;
    out.store(threadIdx.x, __shfl_sync(0xffffffffu, threadIdx.x, 0));
}
static void run_lane_has_ended(void *) { SIMT_LAUNCH(lane_has_ended, 1, 32, 0, NULL, device_zeroes(32)); }

__global__ void not_in_mask(global<uint32_t> out) { out.store(threadIdx.x, __ballot_sync(0x7fffffffu, 1)); }
static void run_not_in_mask(void *) { SIMT_LAUNCH(not_in_mask, 1, 32, 0, NULL, device_zeroes(32)); }

__global__ void different_operations(global<uint32_t> out) {
    if (threadIdx.x < 16)
        out.store(threadIdx.x, __ballot_sync(0xffffffffu, 1));
    else
        out.store(threadIdx.x, (uint32_t)__any_sync(0xffffffffu, 1));
}
static void run_different_operations(void *) { SIMT_LAUNCH(different_operations, 1, 32, 0, NULL, device_zeroes(32)); }

__global__ void all_warp_operations(global<uint32_t> bad) {
    uint32_t lane = threadIdx.x % 32, n = 0, half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    n += __shfl_sync(~0u, lane, 5) != 5;
    n += __shfl_sync(~0u, lane, 3, 8) != lane / 8 * 8 + 3;
    n += __shfl_up_sync(~0u, lane, 3) != (lane < 3 ? lane : lane - 3);
    n += __shfl_down_sync(~0u, lane, 3, 16) != (lane % 16 > 12 ? lane : lane + 3);
    n += __shfl_xor_sync(~0u, (double)lane, 16) != (double)(lane ^ 16);
    n += __ballot_sync(~0u, lane % 3 == 0) != 0x49249249u;
    n += __ballot_sync(half, 1) != half;
    n += __all_sync(~0u, lane < 32) != 1;
    n += __all_sync(half, lane < 16) != (lane < 16);
    n += __any_sync(half, lane == 20) != (lane >= 16);
    n += __match_any_sync(~0u, lane / 4) != 15u << (lane / 4 * 4);
    n += __reduce_add_sync(~0u, lane) != 496;
    n += __reduce_min_sync(~0u, (int)lane - 9) != -9;
    n += __reduce_max_sync(~0u, lane) != 31;
    n += __reduce_xor_sync(half, 1u << lane) != half;
    n += __reduce_or_sync(~0u, 1u << lane) != ~0u;
    n += __reduce_and_sync(~0u, ~(1u << lane)) != 0;
    bad.store(threadIdx.x, n);
}
static void run_all_warp_operations(void *) {
    uint32_t *bad = device_zeroes(64);
    SIMT_LAUNCH(all_warp_operations, 1, 64, 0, NULL, bad);
    expect(bad, 64, [](size_t) { return 0u; });
}

/* How the terms are added up is a circuit's: the sum may depend on the model (here: whether 2⁻²⁰ survives beside 1 and −1), never on where in the matrix it stands. */
__global__ void multiply(global<float> out) {
    const uint32_t one = bits_of_float(1.0f) >> 16, minus_one = bits_of_float(-1.0f) >> 16, small = bits_of_float(0x1p-20f) >> 16, q = threadIdx.x % 4;
    const uint32_t pair = q == 0 ? one | small << 16 : q == 3 ? minus_one : 0, a[4] = {pair, pair, 0, 0}, b[2] = {one | one << 16, one | one << 16};
    const float c[4] = {0x1p-30f, 0x1p-30f, 0x1p-30f, 0x1p-30f};
    float d[4];
    mma_m16n8k16_bf16(d, a, b, c);
    for (uint32_t i = 0; i < 4; i++)
        out.store(threadIdx.x * 4 + i, d[i]);
}
static void run_multiply(void *) {
    float *out = (float *)device(128 * sizeof *out), got[128];
    SIMT_LAUNCH(multiply, 1, 32, 0, NULL, out);
    cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost);
    for (size_t i = 1; i < 128; i++)
        if (got[i] != got[0])
            abort();
}

__global__ void half_a_product(global<float> out) {
    const uint32_t a[4] = {}, b[2] = {};
    const float c[4] = {};
    float d[4] = {};
    if (threadIdx.x < 16)
        mma_m16n8k16_bf16(d, a, b, c);
    out.store(threadIdx.x, d[0]);
}
static void run_half_a_product(void *) { SIMT_LAUNCH(half_a_product, 1, 32, 0, NULL, (float *)device(128)); }

/* ---- copies beside the threads -------------------------------------------------------------------------------------------------------------------------- */

enum copy_fault { COPY_RIGHT, NO_WAIT, WAIT_TOO_FEW, NO_BARRIER, BARRIER_TOO_EARLY, STAGE_STILL_READ };
/* Sums over four rounds of 128 numbers, in two stages: while one is read, the next is copied into the other. */
template <copy_fault f> __global__ void staged_sum(global<const uint32_t> in, global<uint32_t> out) {
    SIMT_SHARED(uint32_t, stages, 2 * 128);
    uint32_t t = threadIdx.x, sum = 0;
    stages.copy_async16(t * 4, in, t * 4);
    copy_async_commit();
    for (uint32_t round = 0; round < 4; round++) {
        if (round < 3)
            stages.copy_async16((round + 1) % 2 * 128 + t * 4, in, (round + 1) * 128 + t * 4);
        copy_async_commit();
        if (f == BARRIER_TOO_EARLY)
            __syncthreads();
        if (f == WAIT_TOO_FEW)
            copy_async_wait<2>();
        else if (f != NO_WAIT)
            copy_async_wait<1>();
        if (f != NO_BARRIER && f != BARRIER_TOO_EARLY)
            __syncthreads();
        for (uint32_t i = 0; i < 128; i += 32)
            sum += stages.load(round % 2 * 128 + i + t);
        if (f != STAGE_STILL_READ)
            __syncthreads();
    }
    out.store(t, sum);
}
template <copy_fault f> static void run_staged_sum(void *) {
    uint32_t numbers[512];
    for (uint32_t i = 0; i < 512; i++)
        numbers[i] = i;
    uint32_t *in = device_zeroes(512), *out = device_zeroes(32);
    cudaMemcpy(in, numbers, sizeof numbers, cudaMemcpyHostToDevice);
    SIMT_LAUNCH(staged_sum<f>, 1, 32, 0, NULL, in, out);
    if (f == COPY_RIGHT)
        expect(out, 32, [](size_t i) { return (uint32_t)(16 * i + 32 * 120); });
}

/* The source changes while the copy is under way. */
__global__ void source_changes(global<uint32_t> in, global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 128);
    s.copy_async16(threadIdx.x * 4, in, threadIdx.x * 4);
    copy_async_commit();
    in.store(threadIdx.x * 4 + 4 < 128 ? threadIdx.x * 4 + 4 : 0, 1);
    copy_async_wait<0>();
    out.store(threadIdx.x, s.load(threadIdx.x * 4));
}
static void run_source_changes(void *) { SIMT_LAUNCH(source_changes, 1, 32, 0, NULL, device_zeroes(128), device_zeroes(32)); }

/* ---- bulk copies ------------------------------------------------------------------------------------------------------------------------------------------ */

enum bulk_fault {
    BULK_RIGHT,
    NO_INIT_FENCE,
    NO_INIT_BARRIER,
    TAKES_TOO_EARLY,
    WAITS_FOR_EVER,
    TOO_FEW_BYTES,
    TOO_MANY_BYTES,
    TOO_MANY_THREADS,
    OVERWRITES_UNREAD,
    NO_WAIT_FOR_BYTES,
    SOURCE_NOT_ALIGNED,
    PLACE_NOT_ALIGNED,
    ODD_SIZE,
    BEYOND_SHARED,
    BEYOND_SOURCE
};
/* Sums over six rounds of 128 numbers in two stages: a warp brings them, a warp takes them; two mbarriers of each stage say that it is full, and that it is empty again. */
template <bulk_fault f> __global__ void bulk_pipeline(global<const uint32_t> in, global<uint32_t> out) {
    SIMT_SHARED(uint32_t, stages, 2 * 128);
    SIMT_SHARED(mbarrier, full, 2);
    SIMT_SHARED(mbarrier, empty, 2);
    uint32_t lane = threadIdx.x % 32, sum = 0;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < 2; s++) {
            mbarrier_init(full, s, 1);
            mbarrier_init(empty, s, 32);
        }
        if (f != NO_INIT_FENCE)
            fence_mbarrier_init();
    }
    if (f != NO_INIT_BARRIER)
        __syncthreads();
    for (uint32_t round = 0; round < 6; round++) {
        uint32_t s = round % 2, turn = round / 2 % 2;
        if (threadIdx.x == 0) {
            if (round >= 2 || f == WAITS_FOR_EVER)
                mbarrier_wait(empty, s, f == WAITS_FOR_EVER ? turn : turn ^ 1);
            mbarrier_arrive_expect(full, s, f == TOO_FEW_BYTES ? 528 : f == TOO_MANY_BYTES ? 496 : 512);
            stages.copy_bulk(s * 128 + (f == PLACE_NOT_ALIGNED) + (f == BEYOND_SHARED ? 132 : 0), in, round * 128 + (f == SOURCE_NOT_ALIGNED) + (f == BEYOND_SOURCE ? 128 : 0),
                             f == ODD_SIZE ? 508 : 512, full, s);
            if (f == TOO_MANY_THREADS)
                mbarrier_arrive(full, s);
        } else if (threadIdx.x >= 32) {
            if (f != NO_WAIT_FOR_BYTES)
                mbarrier_wait(full, s, f == TAKES_TOO_EARLY ? turn ^ 1 : turn);
            if (f == OVERWRITES_UNREAD)
                mbarrier_arrive(empty, s);
            for (uint32_t i = 0; i < 128; i += 32)
                sum += stages.load(s * 128 + i + lane);
            if (f != OVERWRITES_UNREAD)
                mbarrier_arrive(empty, s);
        }
    }
    if (threadIdx.x >= 32)
        out.store(lane, sum);
}
template <bulk_fault f> static void run_bulk_pipeline(void *) {
    uint32_t numbers[768];
    for (uint32_t i = 0; i < 768; i++)
        numbers[i] = i;
    uint32_t *in = device_zeroes(768), *out = device_zeroes(32);
    cudaMemcpy(in, numbers, sizeof numbers, cudaMemcpyHostToDevice);
    SIMT_LAUNCH(bulk_pipeline<f>, 1, 64, 0, NULL, in, out);
    if (f == BULK_RIGHT)
        expect(out, 32, [](size_t i) { return (uint32_t)(24 * i + 32 * 276); });
}

enum out_fault { OUT_RIGHT, OUT_NO_PROXY_FENCE, OUT_FENCE_TOO_EARLY, OUT_NO_BARRIER, OUT_OVERWRITTEN, OUT_NO_WAIT, OUT_READ_TOO_EARLY, OUT_NO_COMMIT };
/* Threads write numbers, one copies them out, twice; then that one reads them back. */
template <out_fault f> __global__ void bulk_out(global<uint32_t> out, global<uint32_t> last) {
    SIMT_SHARED(uint32_t, s, 64);
    for (uint32_t round = 0; round < 2; round++) {
        if (f == OUT_FENCE_TOO_EARLY)
            fence_proxy_async();
        s.store(threadIdx.x, 100 * round + threadIdx.x);
        if (f != OUT_NO_PROXY_FENCE && f != OUT_FENCE_TOO_EARLY)
            fence_proxy_async();
        if (f != OUT_NO_BARRIER)
            __syncthreads();
        if (threadIdx.x == 0) {
            s.copy_bulk_out(0, out, 64 * round, 256);
            if (f != OUT_NO_COMMIT)
                copy_bulk_commit();
            if (f != OUT_OVERWRITTEN && f != OUT_NO_WAIT)
                copy_bulk_wait_read<0>();
        }
        if (f == OUT_NO_WAIT)
            return;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        if (f != OUT_READ_TOO_EARLY)
            copy_bulk_wait<0>();
        last.store(0, out.load(127));
    }
}
template <out_fault f> static void run_bulk_out(void *) {
    uint32_t *out = (uint32_t *)device(512), *last = device_zeroes(1);
    SIMT_LAUNCH(bulk_out<f>, 1, 64, 0, NULL, out, last);
    if (f == OUT_RIGHT) {
        expect(out, 128, [](size_t i) { return (uint32_t)(i / 64 * 100 + i % 64); });
        expect(last, 1, [](size_t) { return 163u; });
    }
}

/* What threads have written is copied, in global memory or over it in shared memory; the fence may stand with who copies, too. Then the mbarrier's place is used otherwise. */
template <bool to_shared, bool right> __global__ void bulk_after_stores(global<uint32_t> in, global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 64);
    SIMT_SHARED_DYNAMIC(mbarrier, full);
    SIMT_SHARED_DYNAMIC(uint32_t, word);
    if (to_shared)
        s.store(threadIdx.x, 0);
    else
        in.store(threadIdx.x, threadIdx.x);
    if (threadIdx.x == 0)
        mbarrier_init(full, 0, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        fence_mbarrier_init();
        if (right)
            fence_proxy_async();
        mbarrier_arrive_expect(full, 0, 256);
        s.copy_bulk(0, in, 0, 256, full, 0);
    }
    mbarrier_wait(full, 0, 0);
    uint32_t x = s.load(threadIdx.x ^ 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_invalidate(full, 0);
        word.store(0, x);
    }
    out.store(threadIdx.x, x);
}
template <bool to_shared, bool right> static void run_bulk_after_stores(void *) {
    uint32_t *in = device_zeroes(64), *out = device_zeroes(64);
    SIMT_LAUNCH((bulk_after_stores<to_shared, right>), 1, 64, 16, NULL, in, out);
    if (right && !to_shared)
        expect(out, 64, [](size_t i) { return (uint32_t)i ^ 1; });
}

/* ---- between blocks --------------------------------------------------------------------------------------------------------------------------------------- */

__global__ void same_word(global<uint32_t> out) { out.store(threadIdx.x / 2 + blockIdx.x * 16, threadIdx.x); }
static void run_same_word(void *) { SIMT_LAUNCH(same_word, 2, 32, 0, NULL, device_zeroes(64)); }

__global__ void overlapping_blocks(global<uint32_t> out) { out.store(blockIdx.x * 31 + threadIdx.x, 1); }
static void run_overlapping_blocks(void *) { SIMT_LAUNCH(overlapping_blocks, 2, 32, 0, NULL, device_zeroes(64)); }

/* Block 0 writes a value, then a flag; block 1 waits for the flag. */
enum how { RELEASE, FENCES, RELAXED, BLOCK_SCOPE, NO_ACQUIRE };
template <how h> __global__ void message(global<uint32_t> data, global<uint32_t> flag, global<uint32_t> out) {
    if (blockIdx.x == 0) {
        data.store(threadIdx.x, 7);
        __syncthreads();
        if (threadIdx.x == 0) {
            if (h == FENCES)
                __threadfence();
            if (h == RELEASE || h == NO_ACQUIRE)
                flag.store_release<scope::device>(0, 1);
            else if (h == BLOCK_SCOPE)
                flag.store_release<scope::block>(0, 1);
            else
                flag.store_relaxed<scope::device>(0, 1);
        }
        return;
    }
    if (threadIdx.x == 0) {
        if (h == RELEASE || h == BLOCK_SCOPE)
            while (flag.load_acquire<scope::device>(0) == 0) {
            }
        else
            while (flag.load_relaxed<scope::device>(0) == 0) {
            }
        if (h == FENCES)
            __threadfence();
    }
    __syncthreads();
    out.store(threadIdx.x, data.load(threadIdx.x));
}
template <how h> static void run_message(void *) {
    uint32_t *data = device_zeroes(64), *flag = device_zeroes(1), *out = device_zeroes(64);
    SIMT_LAUNCH_COOPERATIVE(message<h>, 2, 64, 0, NULL, data, flag, out);
    if (h == RELEASE || h == FENCES)
        expect(out, 64, [](size_t) { return 7u; });
}

/* The last block to arrive adds up what all have left: the usual way to end a split sum in one launch. */
template <bool right> __global__ void last_block_adds(global<uint32_t> parts, global<uint32_t> count, global<uint32_t> out) {
    SIMT_SHARED(uint32_t, last, 1);
    if (threadIdx.x == 0) {
        parts.store(blockIdx.x, blockIdx.x + 1);
        last.store(0, (right ? count.add<scope::device>(0, 1) : count.add_relaxed<scope::device>(0, 1)) == gridDim.x - 1);
    }
    __syncthreads();
    if (last.load(0) && threadIdx.x == 0) {
        uint32_t sum = 0;
        for (uint32_t i = 0; i < gridDim.x; i++)
            sum += parts.load(i);
        out.store(0, sum);
    }
}
template <bool right> static void run_last_block_adds(void *) {
    uint32_t *parts = device_zeroes(6), *count = device_zeroes(1), *out = device_zeroes(1);
    SIMT_LAUNCH(last_block_adds<right>, 6, 32, 0, NULL, parts, count, out);
    if (right)
        expect(out, 1, [](size_t) { return 21u; });
}

/* The host, or a network card, is told that a value is there. */
template <scope s> __global__ void tells_host(global<uint32_t> data, global<uint32_t> flag) {
    data.store(threadIdx.x, 7);
    __syncthreads();
    if (threadIdx.x == 0)
        flag.store_release<s>(0, 1);
}
template <scope s> static void run_tells_host(void *) {
    void *data = NULL, *flag = NULL;
    if (cudaHostAlloc(&data, 128, cudaHostAllocDefault) != cudaSuccess || cudaHostAlloc(&flag, 4, cudaHostAllocDefault) != cudaSuccess)
        abort();
    SIMT_LAUNCH(tells_host<s>, 1, 32, 0, NULL, (uint32_t *)data, (uint32_t *)flag);
    if (s == scope::system)
        expect((uint32_t *)data, 32, [](size_t) { return 7u; });
}

__global__ void waits_for_ever(global<uint32_t> flag) {
    while (flag.load_acquire<scope::device>(0) == 0) {
    }
}
static void run_waits_for_ever(void *) { SIMT_LAUNCH(waits_for_ever, 1, 32, 0, NULL, device_zeroes(1)); }

/* All blocks meet: right as a cooperative launch. */
__global__ void grid_barrier(global<uint32_t> count, global<uint32_t> data, global<uint32_t> out) {
    if (threadIdx.x == 0) {
        data.store(blockIdx.x, blockIdx.x);
        count.add<scope::device>(0, 1);
        while (count.load_acquire<scope::device>(0) < gridDim.x) {
        }
        out.store(blockIdx.x, data.load(gridDim.x - 1 - blockIdx.x));
    }
}
static void run_grid_barrier(void *) {
    uint32_t *count = device_zeroes(1), *data = device_zeroes(8), *out = device_zeroes(8);
    SIMT_LAUNCH_COOPERATIVE(grid_barrier, 8, 32, 0, NULL, count, data, out);
    expect(out, 8, [](size_t i) { return (uint32_t)(7 - i); });
}

/* ---- 16 bytes of the system's scope ------------------------------------------------------------------------------------------------------------------------ */

static uint32_t *pinned_zeroes(size_t n) {
    void *p = NULL;
    if (cudaHostAlloc(&p, n * sizeof(uint32_t), cudaHostAllocDefault) != cudaSuccess) abort();
    simt_host_write(p, n * sizeof(uint32_t));
    memset(p, 0, n * sizeof(uint32_t));
    return (uint32_t *)p;
}

enum packet_fault { PACKET_RIGHT, PACKET_AS_V4, STORED_AS_V4, POLLED_AS_WORD, POLLED_AS_WORD_OF_V4, STORED_PLAINLY, PACKET_NOT_ALIGNED };
/* As to a network card, through pinned memory: block 0 sends packets of three words and their round, block 1 takes each and says so; who sees the round wants the words. */
template <packet_fault f> __global__ void packets(global<uint32_t> slots, global<uint32_t> taken, global<uint32_t> n_torn) {
    const uint32_t lane = threadIdx.x, at = 4 * lane + (f == PACKET_NOT_ALIGNED);
    uint32_t torn = 0;
    for (uint32_t round = 1; round <= 3; round++)
        if (blockIdx.x == 0) {
            while (taken.load_acquire<scope::system>(lane) != round - 1) {
            }
            const uint4 packet = {10 * round, 20 * round, 30 * round, round};
            if (f == PACKET_AS_V4 || f == STORED_AS_V4 || f == POLLED_AS_WORD_OF_V4)
                slots.store_release_v4(at, packet);
            else if (f == STORED_PLAINLY)
                slots.store_as<uint4>(at, packet);
            else
                slots.store_release_b128(at, packet);
        } else {
            uint4 packet;
            if (f == POLLED_AS_WORD || f == POLLED_AS_WORD_OF_V4) {
                while (slots.load_acquire<scope::system>(at + 3) != round) {
                }
                packet = slots.load_as<uint4>(at);
            } else {
                do packet = f == PACKET_AS_V4 ? slots.load_acquire_v4(at) : slots.load_acquire_b128(at);
                while (packet.w != round);
            }
            torn += packet.x != 10 * round || packet.y != 20 * round || packet.z != 30 * round;
            taken.store_release<scope::system>(lane, round);
        }
    if (blockIdx.x == 1) n_torn.store(lane, torn);
}
template <packet_fault f> static void run_packets(void *) {
    uint32_t *n_torn = device_zeroes(32);
    SIMT_LAUNCH_COOPERATIVE(packets<f>, 2, 32, 0, NULL, pinned_zeroes(132), pinned_zeroes(32), n_torn);
    if (f == PACKET_RIGHT) expect(n_torn, 32, [](size_t) { return 0u; });
}
template <packet_fault f> static void count_torn(void *n) {
    uint32_t *n_torn = device_zeroes(32), got[32];
    SIMT_LAUNCH_COOPERATIVE(packets<f>, 2, 32, 0, NULL, pinned_zeroes(132), pinned_zeroes(32), n_torn);
    cudaMemcpy(got, n_torn, sizeof got, cudaMemcpyDeviceToHost);
    for (uint32_t torn : got) *(uint32_t *)n += torn;
}
void simt_count_torn_v4(void *n) { count_torn<PACKET_AS_V4>(n); }
void simt_count_torn_b128(void *n) { count_torn<PACKET_RIGHT>(n); }

/* What v4 is good for: four neighbours' flags at once, and vectors behind another flag. */
__global__ void four_flags(global<uint32_t> vectors, global<uint32_t> flags, global<uint32_t> out) {
    const uint32_t lane = threadIdx.x, me = blockIdx.x;
    if (me < 4) {
        vectors.store_release_v4(4 * (32 * me + lane), uint4{me, lane, 2, 3});
        __syncthreads();
        if (lane == 0) flags.store_release<scope::system>(me, 1);
        return;
    }
    if (lane == 0) {
        uint4 f;
        do f = flags.load_acquire_v4(0);
        while (!f.x || !f.y || !f.z || !f.w);
    }
    __syncthreads();
    uint32_t sum = 0;
    for (uint32_t i = 0; i < 4; i++) {
        const uint4 v = vectors.load_acquire_v4(4 * (32 * i + lane));
        sum += v.x * 100 + v.y + v.z + v.w;
    }
    out.store(lane, sum);
}
static void run_four_flags(void *) {
    uint32_t *out = device_zeroes(32);
    SIMT_LAUNCH_COOPERATIVE(four_flags, 5, 32, 0, NULL, pinned_zeroes(512), pinned_zeroes(4), out);
    expect(out, 32, [](size_t i) { return (uint32_t)(620 + 4 * i); });
}

/* A plain access, and an atomic one behind it of the same thread; another block's atomic one may come unordered with the second, but not with the first. */
enum hidden { STORE_THEN_ADD, LOAD_THEN_ADD, STORE_THEN_LOAD, ADDS_IN_ORDER };
template <hidden what> __global__ void hides(global<uint32_t> x, global<uint32_t> flag) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0) {
        if (what == LOAD_THEN_ADD)
            flag.store(1, x.load(0));
        else
            x.store(0, 1);
        if (what == ADDS_IN_ORDER) flag.store_release<scope::device>(0, 1);
        x.add<scope::device>(0, 1);
    } else {
        if (what == ADDS_IN_ORDER)
            while (flag.load_acquire<scope::device>(0) == 0) {
            }
        if (what == STORE_THEN_LOAD)
            x.load_relaxed<scope::device>(0);
        else
            x.add<scope::device>(0, 1);
    }
}
template <hidden what> static void run_hides(void *) {
    uint32_t *x = device_zeroes(1), *flag = device_zeroes(2);
    SIMT_LAUNCH_COOPERATIVE(hides<what>, 3, 32, 0, NULL, x, flag);
    if (what == ADDS_IN_ORDER) expect(x, 1, [](size_t) { return 4u; });
}

/* ---- memory -------------------------------------------------------------------------------------------------------------------------------------------- */

__global__ void unwritten_shared(global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 33);
    s.store(threadIdx.x, 0);
    __syncthreads();
    out.store(threadIdx.x, s.load(threadIdx.x + 1));
}
static void run_unwritten_shared(void *) { SIMT_LAUNCH(unwritten_shared, 1, 32, 0, NULL, device_zeroes(32)); }

__global__ void copy_words(global<const uint32_t> in, global<uint32_t> out) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    out.store(i, in.load(i));
}
static void run_unwritten_buffer(void *) { SIMT_LAUNCH(copy_words, 1, 32, 0, NULL, (const uint32_t *)device(128), device_zeroes(32)); }
static void run_beyond_buffer(void *) { SIMT_LAUNCH(copy_words, 2, 32, 0, NULL, device_zeroes(63), device_zeroes(64)); }
static void run_store_beyond_buffer(void *) { SIMT_LAUNCH(copy_words, 2, 32, 0, NULL, device_zeroes(64), device_zeroes(63)); }
static void run_freed_buffer(void *) {
    uint32_t *in = device_zeroes(32), *out = device_zeroes(32);
    cudaDeviceSynchronize();
    cudaFree(in);
    SIMT_LAUNCH(copy_words, 1, 32, 0, NULL, in, out);
}

__global__ void beyond_shared(global<uint32_t> out) {
    SIMT_SHARED(uint32_t, s, 32);
    SIMT_SHARED(uint32_t, neighbour, 32);
    neighbour.store(threadIdx.x, 0);
    s.store(threadIdx.x + 1, 0);
    out.store(threadIdx.x, neighbour.load(threadIdx.x));
}
static void run_beyond_shared(void *) { SIMT_LAUNCH(beyond_shared, 1, 32, 0, NULL, device_zeroes(32)); }

__global__ void beyond_dynamic(global<uint32_t> out) {
    SIMT_SHARED_DYNAMIC(uint32_t, s);
    s.store(threadIdx.x, 0);
    out.store(threadIdx.x, s.load(threadIdx.x));
}
static void run_beyond_dynamic(void *) { SIMT_LAUNCH(beyond_dynamic, 1, 32, 31 * 4, NULL, device_zeroes(32)); }
static void run_within_dynamic(void *) { SIMT_LAUNCH(beyond_dynamic, 1, 32, 32 * 4, NULL, device_zeroes(32)); }

__global__ void misaligned(global<const float> in, global<float> out) { out.store_as<float4>(4 * threadIdx.x, in.load_as<float4>(4 * threadIdx.x + 1)); }
static void run_misaligned(void *) { SIMT_LAUNCH(misaligned, 1, 4, 0, NULL, (const float *)device_zeroes(32), (float *)device_zeroes(16)); }

__global__ void too_much_shared() {
    SIMT_SHARED(float, s, 12289);
    s.store(threadIdx.x, 0);
}
static void run_too_much_shared(void *) { SIMT_LAUNCH(too_much_shared, 1, 32, 0, NULL, ); }

/* ---- limits of a launch -------------------------------------------------------------------------------------------------------------------------------- */

template <int n> struct words {
    uint32_t w[n];
};
template <int n> __global__ void takes_words(words<n>) {}
__global__ void __launch_bounds__(96) takes_96_threads() {}
template <class> __global__ void __launch_bounds__(32 + 1, 2) takes_33_threads() {}
__global__ void __launch_bounds__(1024) takes_1024_threads() {}
static void run_launch_limits(void *) {
    const int bad = cudaErrorInvalidConfiguration;
    static const struct {
        dim3 grid, block;
        size_t shared_bytes;
        int want;
    } launches[] = {
        {dim3(1, 65536), 1, 0, bad},    {dim3(1, 1, 65536), 1, 0, bad}, {0x80000000u, 1, 0, bad}, {0u, 1, 0, bad},
        {1, 0u, 0, bad},                {1, 1025, 0, bad},              {1, dim3(1, 1025), 0, bad}, {1, dim3(1, 1, 65), 0, bad},
        {1, dim3(32, 33), 0, bad},      {1, 1024, 49152, cudaSuccess},  {1, 1, 49153, cudaErrorInvalidValue}, {1, dim3(16, 1, 64), 0, cudaSuccess},
        {dim3(2, 2, 2), 1, 0, cudaSuccess},
    };
    for (const auto &l : launches)
        if (SIMT_LAUNCH(takes_words<1>, l.grid, l.block, l.shared_bytes, NULL, words<1>()) != l.want)
            abort();
    const auto beyond_bounds = cudaErrorInvalidValue;
    if (SIMT_LAUNCH(takes_96_threads, 1, 96, 0, NULL) != cudaSuccess || SIMT_LAUNCH(takes_96_threads, 1, 97, 0, NULL) != beyond_bounds ||
        SIMT_LAUNCH(takes_96_threads, 1, dim3(32, 2, 2), 0, NULL) != beyond_bounds ||
        SIMT_LAUNCH(takes_33_threads<int>, 1, 33, 0, NULL) != cudaSuccess || SIMT_LAUNCH(takes_33_threads<int>, 1, 34, 0, NULL) != beyond_bounds ||
        SIMT_LAUNCH(takes_1024_threads, 1, 1024, 0, NULL) != cudaSuccess)
        abort();
    if (SIMT_LAUNCH(takes_words<8191>, 1, 1, 0, NULL, words<8191>()) != cudaSuccess || SIMT_LAUNCH(takes_words<8192>, 1, 1, 0, NULL, words<8192>()) != cudaErrorInvalidValue)
        abort();
    if (cudaFuncSetAttribute((const void *)takes_words<1>, cudaFuncAttributeMaxDynamicSharedMemorySize, 101376) != cudaSuccess ||
        SIMT_LAUNCH(takes_words<1>, 1, 1, 101376, NULL, words<1>()) != cudaSuccess || SIMT_LAUNCH(takes_words<1>, 1, 1, 101377, NULL, words<1>()) != cudaErrorInvalidValue)
        abort();
    cudaGetLastError();
}

/* ---- locals ---------------------------------------------------------------------------------------------------------------------------------------------- */

/* n numbers of the thread's row of 8, and what they add up to. */
enum local_use { SUMS_ALL, SUMS_READ, DECIDES, HANDS_OVER, HANDS_OVER_READ };
template <local_use use> __global__ void sum_locals(global<const uint32_t> in, global<uint32_t> out, uint32_t n) {
    SIMT_SHARED(uint32_t, sums, 32);
    uint32_t numbers[8], sum = 0;
    for (uint32_t i = 0; i < n; i++) numbers[i] = in.load(threadIdx.x * 8 + i);
    if (use == HANDS_OVER || use == HANDS_OVER_READ) { /* the neighbour's last number, or its last that is there */
        uint32_t last = __shfl_xor_sync(0xffffffffu, numbers[use == HANDS_OVER ? 7 : n - 1], 1);
        sums.store(threadIdx.x, last);
        __syncwarp();
        out.store(threadIdx.x, sums.load(threadIdx.x ^ 1));
    } else if (use == DECIDES) {
        if (numbers[n] != 0) out.store(threadIdx.x, 1);
    } else {
        for (uint32_t i = 0; i < 8; i++) sum += use == SUMS_ALL || i < n ? numbers[i] : 0;
        out.store(threadIdx.x, sum);
    }
}
template <local_use use> static void run_sum_locals(void *) {
    uint32_t *in = (uint32_t *)device(32 * 8 * 4), *out = device_zeroes(32);
    cudaMemsetAsync(in, 1, 32 * 8 * 4, NULL);
    SIMT_LAUNCH(copy_words, 1, 32, 0, NULL, in, out); /* is right: the next one is at fault */
    SIMT_LAUNCH(sum_locals<use>, 1, 32, 0, NULL, in, out, 7u);
    if (use == SUMS_READ) expect(out, 32, [](size_t) { return 7 * 0x01010101u; });
    if (use == HANDS_OVER_READ) expect(out, 32, [](size_t) { return 0x01010101u; });
}

/* ---- real sizes ---------------------------------------------------------------------------------------------------------------------------------------- */

/* The last of 70,000 rows of 65,536 numbers, of which alone anything is written: 2^32 numbers and more. */
constexpr uint32_t ROWS = 70000, COLUMNS = 65536;
enum index_kind { SIGNED, UNSIGNED, WIDE };
template <index_kind kind> __global__ void sum_row(global<const uint32_t> x, global<uint32_t> total, int columns) {
    uint32_t sum = 0, i = threadIdx.x, row = blockIdx.x;
    if (kind == SIGNED)
        sum = x.load((size_t)((int)row * columns + (int)i));
    else if (kind == UNSIGNED)
        sum = x.load(row * (uint32_t)columns + i);
    else
        sum = x.load((size_t)row * (size_t)columns + i);
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (i == 0)
        total.store(0, sum);
}
template <index_kind kind> static void run_sum_row(void *) {
    auto *x = (uint32_t *)simt_sparse((size_t)ROWS * COLUMNS * sizeof(uint32_t), 0);
    uint32_t *total = device_zeroes(1), last = ROWS - 1, got, ones[32];
    for (uint32_t &one : ones)
        one = 1;
    if (!x)
        abort();
    cudaMemcpy(x + (size_t)last * COLUMNS, ones, sizeof ones, cudaMemcpyHostToDevice);
    simt_only_blocks(&last, 1);
    SIMT_LAUNCH(sum_row<kind>, ROWS, 32, 0, NULL, x, total, (int)COLUMNS);
    cudaMemcpy(&got, total, sizeof got, cudaMemcpyDeviceToHost);
    if (got != 32)
        abort();
}

/* ---- streams ------------------------------------------------------------------------------------------------------------------------------------------- */

template <bool waits> static void run_two_streams(void *) {
    cudaStream_t a, b;
    cudaEvent_t e;
    uint32_t *first = device_zeroes(64), *second = device_zeroes(64);
    cudaDeviceSynchronize();
    cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    cudaMemsetAsync(first, 1, 256, a);
    cudaEventRecord(e, a);
    if (waits)
        cudaStreamWaitEvent(b, e, 0);
    SIMT_LAUNCH(copy_words, 2, 32, 0, b, first, second);
    cudaStreamSynchronize(b);
    if (waits)
        expect(second, 64, [](size_t) { return 0x01010101u; });
}

/* 256 bytes of pinned memory, 1 each, that the host has written. */
static uint32_t *pinned() {
    void *p = NULL;
    if (cudaHostAlloc(&p, 256, cudaHostAllocDefault) != cudaSuccess)
        abort();
    simt_host_write(p, 256);
    for (int i = 0; i < 64; i++)
        ((uint32_t *)p)[i] = 1;
    return (uint32_t *)p;
}

/* Up into a buffer, through a kernel, and down again, all in one stream; what the host does meanwhile. */
enum host_fault { WAITS, WRITES_SOURCE, READS_RESULT, WRITES_WHAT_A_KERNEL_READS, EVENT_TOO_EARLY, FREES_BUFFER, FREES_PINNED };
template <host_fault f> static void run_round_trip(void *) {
    uint32_t *up = pinned(), *down = pinned(), *x = device_zeroes(64), *y = device_zeroes(64);
    cudaStream_t s;
    cudaEvent_t e;
    cudaDeviceSynchronize();
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    cudaMemcpyAsync(x, up, 256, cudaMemcpyHostToDevice, s);
    if (f == WRITES_SOURCE)
        simt_host_write(up + 63, 4);
    if (f == EVENT_TOO_EARLY)
        cudaEventRecord(e, s);
    SIMT_LAUNCH(copy_words, 2, 32, 0, s, x, y);
    if (f == WRITES_WHAT_A_KERNEL_READS) {
        cudaStreamSynchronize(s);
        SIMT_LAUNCH(copy_words, 2, 32, 0, s, up, x);
        cudaEventRecord(e, NULL);
        cudaEventSynchronize(e); /* of another stream */
        simt_host_write(up, 256);
    }
    if (f == FREES_BUFFER)
        cudaFree(y);
    cudaMemcpyAsync(down, y, 256, cudaMemcpyDeviceToHost, s);
    if (f == FREES_PINNED)
        cudaFreeHost(down);
    if (f == READS_RESULT)
        simt_host_read(down, 4);
    if (f != EVENT_TOO_EARLY)
        cudaEventRecord(e, s);
    while (f == WAITS && cudaEventQuery(e) == cudaErrorNotReady)
        ;
    cudaEventSynchronize(e);
    simt_host_read(down, 256);
    simt_host_write(up, 256);
    if (f == WAITS && (down[0] != 1 || down[63] != 1))
        abort();
    cudaFree(x);
    cudaFree(y);
    cudaFreeHost(up);
    cudaFreeHost(down);
}

/* Pinned blocks in turn, each written anew only when its last copy is done; or once before that. */
template <bool right> static void run_two_stages(void *) {
    uint32_t *stage[2] = {pinned(), pinned()}, *x = device_zeroes(64 * 6);
    cudaEvent_t done[2];
    cudaStream_t s;
    cudaDeviceSynchronize();
    cudaStreamCreate(&s);
    for (auto &e : done)
        cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    for (int i = 0; i < 6; i++) {
        if (i >= (right ? 2 : 3))
            cudaEventSynchronize(done[i % 2]);
        simt_host_write(stage[i % 2], 256);
        for (int k = 0; k < 64; k++)
            stage[i % 2][k] = (uint32_t)i;
        cudaMemcpyAsync(x + i * 64, stage[i % 2], 256, cudaMemcpyHostToDevice, s);
        cudaEventRecord(done[i % 2], s);
    }
    if (!right)
        return;
    cudaStreamSynchronize(s);
    for (int i = 0; i < 6; i++) {
        uint32_t got;
        cudaMemcpy(&got, x + i * 64 + 63, 4, cudaMemcpyDeviceToHost);
        if (got != (uint32_t)i)
            abort();
    }
}

/* An event says what the stream had when it was recorded; and a stream that does not block does not wait for the default stream. */
enum order_fault { EARLY_EVENT, NON_BLOCKING };
template <order_fault f> static void run_out_of_order(void *) {
    uint32_t *x = device_zeroes(64), *y = (uint32_t *)device(256);
    cudaStream_t a, b;
    cudaEvent_t e;
    cudaDeviceSynchronize();
    cudaStreamCreateWithFlags(&a, f == NON_BLOCKING ? cudaStreamDefault : cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    if (f == EARLY_EVENT)
        cudaEventRecord(e, a);
    cudaMemsetAsync(x, 1, 256, f == NON_BLOCKING ? NULL : a);
    if (f == EARLY_EVENT)
        cudaStreamWaitEvent(b, e, 0);
    SIMT_LAUNCH(copy_words, 2, 32, 0, b, x, y);
}

/* The default stream waits for blocking streams, and they for it. */
static void run_default_stream(void *) {
    cudaStream_t a;
    uint32_t *first = device_zeroes(64), *second = device_zeroes(64);
    cudaStreamCreate(&a);
    cudaMemsetAsync(first, 1, 256, a);
    SIMT_LAUNCH(copy_words, 2, 32, 0, NULL, first, second);
    cudaMemsetAsync(first, 2, 256, a);
    expect(second, 64, [](size_t) { return 0x01010101u; });
}

/* ---- graphs ---------------------------------------------------------------------------------------------------------------------------------------------- */

__global__ void add_number(global<uint32_t> x, uint32_t n) { x.store(threadIdx.x, x.load(threadIdx.x) + n); }
__global__ void add_arrays(global<const uint32_t> a, global<const uint32_t> b, global<uint32_t> out) { out.store(threadIdx.x, a.load(threadIdx.x) + b.load(threadIdx.x)); }

static void must(cudaError_t got, cudaError_t want = cudaSuccess) {
    if (got != want) {
        fprintf(stderr, "%s instead of %s\n", cudaGetErrorString(got), cudaGetErrorString(want));
        abort();
    }
}

struct forked {
    cudaStream_t a, b;
    cudaEvent_t fork, join;
    uint32_t *x, *y, *sum;
};
static forked forked_streams() {
    forked f;
    f.x = device_zeroes(32);
    f.y = device_zeroes(32);
    f.sum = device_zeroes(32);
    cudaDeviceSynchronize();
    cudaStreamCreateWithFlags(&f.a, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&f.b, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&f.fork, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&f.join, cudaEventDisableTiming);
    return f;
}
/* x += n in one stream, y += 2n in another, then their sum; without joins the sum is made behind the first alone. */
static cudaError_t capture_sum(const forked &f, uint32_t n, bool joins, cudaGraph_t *graph) {
    must(cudaStreamBeginCapture(f.a, cudaStreamCaptureModeGlobal));
    must(cudaEventRecord(f.fork, f.a));
    must(cudaStreamWaitEvent(f.b, f.fork, 0));
    must(SIMT_LAUNCH(add_number, 1, 32, 0, f.a, f.x, n));
    must(SIMT_LAUNCH(add_number, 1, 32, 0, f.b, f.y, 2 * n));
    must(cudaEventRecord(f.join, f.b));
    if (joins)
        must(cudaStreamWaitEvent(f.a, f.join, 0));
    must(SIMT_LAUNCH(add_arrays, 1, 32, 0, f.a, f.x, f.y, f.sum));
    if (!joins)
        must(cudaStreamWaitEvent(f.a, f.join, 0));
    return cudaStreamEndCapture(f.a, graph);
}

static void run_graph_replayed(void *) {
    forked f = forked_streams();
    cudaGraph_t graph, other;
    cudaGraphExec_t exec;
    cudaGraphExecUpdateResultInfo info;
    must(capture_sum(f, 1, true, &graph));
    must(cudaGraphInstantiate(&exec, graph, 0));
    must(cudaGraphDestroy(graph));
    for (int i = 0; i < 3; i++)
        must(cudaGraphLaunch(exec, f.a));
    must(cudaStreamSynchronize(f.a));
    expect(f.sum, 32, [](size_t) { return 9u; });
    /* other arguments, then another shape */
    must(capture_sum(f, 10, true, &other));
    must(cudaGraphExecUpdate(exec, other, &info));
    must(cudaGraphDestroy(other));
    must(cudaGraphLaunch(exec, f.b)); /* into another stream, at once: launches of one graph wait for each other */
    must(cudaGraphLaunch(exec, f.a));
    must(cudaDeviceSynchronize());
    expect(f.sum, 32, [](size_t) { return 69u; });
    must(capture_sum(f, 1, false, &other));
    must(cudaGraphExecUpdate(exec, other, &info), cudaErrorGraphExecUpdateFailure);
    if (info.result != cudaGraphExecUpdateErrorTopologyChanged)
        abort();
    cudaGetLastError();
    must(cudaGraphDestroy(other));
    must(cudaGraphExecDestroy(exec));
}

static void run_graph_without_join(void *) {
    forked f = forked_streams();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(capture_sum(f, 1, false, &graph));
    must(cudaGraphInstantiate(&exec, graph, 0));
    must(cudaGraphLaunch(exec, f.a));
    cudaStreamSynchronize(f.a);
}

/* Each call that is not allowed ends the capture; what was captured is worthless, and the stream is usable again. */
static void run_graph_refusals(void *) {
    forked f = forked_streams();
    cudaGraph_t graph;
    cudaStream_t blocking;
    cudaStreamCaptureStatus status;
    void *p;
    cudaStreamCreate(&blocking);
    must(cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
    for (int i = 0; i < 7; i++) {
        cudaStream_t s = i == 5 ? blocking : f.a;
        must(cudaStreamBeginCapture(s, i == 6 ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal));
        must(SIMT_LAUNCH(add_number, 1, 32, 0, s, f.x, 1));
        if (i == 0)
            must(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
        else if (i == 1)
            must(cudaDeviceSynchronize(), cudaErrorStreamCaptureUnsupported);
        else if (i == 2)
            must(cudaMalloc(&p, 4), cudaErrorStreamCaptureUnsupported);
        else if (i == 3)
            must(cudaStreamQuery(s), cudaErrorStreamCaptureUnsupported);
        else if (i == 4) {
            must(cudaEventRecord(f.fork, f.b));
            must(cudaStreamWaitEvent(s, f.fork, 0), cudaErrorStreamCaptureIsolation);
        } else if (i == 5)
            must(cudaMemset(f.y, 0, 4), cudaErrorStreamCaptureImplicit);
        else
            must(cudaMalloc(&p, 4)); /* allowed where the mode is relaxed */
        must(cudaStreamIsCapturing(s, &status));
        if (status != (i == 6 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated))
            abort();
        must(cudaStreamEndCapture(s, &graph), i == 6 ? cudaSuccess : cudaErrorStreamCaptureInvalidated);
        if (!graph != (i != 6))
            abort();
        cudaGetLastError();
    }
    must(cudaGraphDestroy(graph));
    /* work of another stream that nobody waits for, and an end in that stream */
    must(cudaStreamBeginCapture(f.a, cudaStreamCaptureModeGlobal));
    must(cudaEventRecord(f.fork, f.a));
    must(cudaEventSynchronize(f.fork), cudaErrorCapturedEvent);
    must(cudaStreamWaitEvent(f.b, f.fork, 0));
    must(SIMT_LAUNCH(add_number, 1, 32, 0, f.b, f.y, 1));
    must(cudaStreamEndCapture(f.a, &graph), cudaErrorStreamCaptureUnjoined);
    must(cudaStreamEndCapture(f.a, &graph), cudaErrorInvalidValue);
    must(cudaMemset(f.x, 0, 128));
    expect(f.x, 32, [](size_t) { return 0u; }); /* nothing of all this ran */
}

/* ---- dependent launches ---------------------------------------------------------------------------------------------------------------------------------- */

enum dependent_fault {
    DEPENDENT_RIGHT,
    ONE_WAITS_FOR_ALL,
    THIRD_IS_USUAL,
    NEVER_WAITS,
    NEVER_LETS_NOR_WAITS,
    READS_BEFORE_WAIT,
    WRITES_BEFORE_WAIT,
    ONE_WAITS_FOR_ITSELF,
    SECOND_NEVER_WAITS,
    READS_THE_FIRST_BEFORE_WAIT
};
/* Each may begin before the one before it has ended: x = 7, y = x + 1, sum = x + y + c. */
template <dependent_fault f> __global__ void first(global<uint32_t> x) {
    wait_for_primary(); /* launched as usual: there is none */
    if (f != NEVER_LETS_NOR_WAITS) launch_dependents();
    x.store(blockIdx.x * 32 + threadIdx.x, 7);
}
template <dependent_fault f> __global__ void second(global<const uint32_t> x, global<uint32_t> y) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    if (f != NEVER_LETS_NOR_WAITS) launch_dependents();
    if (f == SECOND_NEVER_WAITS || f == THIRD_IS_USUAL) {
        y.store(i, 8);
        return;
    }
    wait_for_primary();
    y.store(i, x.load(63 - i) + 1);
}
template <dependent_fault f> __global__ void third(global<uint32_t> x, global<const uint32_t> y, global<const uint32_t> c, global<uint32_t> sum) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    uint32_t total = c.load(i); /* nobody of the others writes it */
    if (f == READS_BEFORE_WAIT) total += y.load(i);
    if (f == READS_THE_FIRST_BEFORE_WAIT) total += x.load(i);
    if (f == WRITES_BEFORE_WAIT) x.store(i, 0);
    if (f == ONE_WAITS_FOR_ALL || f == ONE_WAITS_FOR_ITSELF) {
        if (threadIdx.x == 0) wait_for_primary();
        if (f == ONE_WAITS_FOR_ALL) __syncthreads();
    } else if (f != NEVER_WAITS && f != NEVER_LETS_NOR_WAITS && f != THIRD_IS_USUAL) {
        wait_for_primary();
    }
    total += y.load(63 - i);
    if (f != WRITES_BEFORE_WAIT) total += x.load(i);
    sum.store(i, total);
}
template <dependent_fault f> static uint32_t *launch_three(cudaStream_t s, uint32_t *x, uint32_t *y, uint32_t *sum) {
    SIMT_LAUNCH(first<f>, 2, 32, 0, s, x);
    SIMT_LAUNCH_DEPENDENT(second<f>, 2, 32, 0, s, x, y);
    if (f == THIRD_IS_USUAL)
        SIMT_LAUNCH(third<f>, 2, 32, 0, s, x, y, sum + 64, sum);
    else
        SIMT_LAUNCH_DEPENDENT(third<f>, 2, 32, 0, s, x, y, sum + 64, sum);
    return sum;
}
template <dependent_fault f> static void run_dependent(void *) {
    uint32_t *sum = launch_three<f>(NULL, device_zeroes(64), device_zeroes(64), device_zeroes(128));
    if (f <= THIRD_IS_USUAL) expect(sum, 64, [](size_t) { return 15u; });
}
template <dependent_fault f> static cudaGraph_t capture_three(cudaStream_t s, uint32_t *x, uint32_t *y, uint32_t *sum) {
    cudaGraph_t graph;
    must(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    launch_three<f>(s, x, y, sum);
    must(cudaStreamEndCapture(s, &graph));
    return graph;
}
template <dependent_fault f> static void run_dependent_graph(void *) {
    uint32_t *x = device_zeroes(64), *y = device_zeroes(64), *sum = device_zeroes(128);
    cudaStream_t s;
    cudaGraphExec_t exec;
    cudaGraphExecUpdateResultInfo info;
    cudaDeviceSynchronize();
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaGraph_t graph = capture_three<f>(s, x, y, sum), other = capture_three<THIRD_IS_USUAL>(s, x, y, sum);
    must(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 3; i++) must(cudaGraphLaunch(exec, s)); /* its first kernel follows all of the launch before */
    cudaStreamSynchronize(s);
    expect(sum, 64, [](size_t) { return 15u; });
    must(cudaGraphExecUpdate(exec, other, &info), cudaErrorGraphExecUpdateFailure);
    must(cudaGraphExecDestroy(exec));
    must(cudaGraphDestroy(graph));
    must(cudaGraphDestroy(other));
}

/* An event, and a copy, order a dependent launch from its beginning on; and the primary's end, which it does not wait for, comes before a copy. */
__global__ void takes_early(global<const uint32_t> x, global<uint32_t> out) { out.store(threadIdx.x, x.load(threadIdx.x)); }
static void run_dependent_behind_event(void *) {
    uint32_t *x = device_zeroes(64), *y = device_zeroes(64), *out = device_zeroes(64);
    cudaStream_t a, b;
    cudaEvent_t e;
    cudaDeviceSynchronize();
    cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    SIMT_LAUNCH(first<DEPENDENT_RIGHT>, 2, 32, 0, b, x);
    cudaEventRecord(e, b);
    SIMT_LAUNCH(first<DEPENDENT_RIGHT>, 2, 32, 0, a, y);
    cudaStreamWaitEvent(a, e, 0);
    SIMT_LAUNCH_DEPENDENT(takes_early, 1, 32, 0, a, x, out);
    cudaMemsetAsync(y, 0, 256, a);
    SIMT_LAUNCH_DEPENDENT(takes_early, 1, 32, 0, a, y, out + 32);
    cudaStreamSynchronize(a);
    expect(out, 64, [](size_t i) { return i < 32 ? 7u : 0u; });
}

/* The second of three fails: the third never runs, and whoever waits is told. */
static void run_dependent_fails(void *) {
    simt_fail_launch(2);
    uint32_t *x = device_zeroes(64);
    launch_three<DEPENDENT_RIGHT>(NULL, x, device_zeroes(64), device_zeroes(128));
    if (cudaDeviceSynchronize() != cudaErrorIllegalAddress || x[63] != 7) abort();
}

/* What the primary wrote comes by a bulk copy, which needs no proxy fence behind the wait. */
template <bool waits> __global__ void copies_from_primary(global<uint32_t> x, global<uint32_t> sum) {
    SIMT_SHARED(uint32_t, stage, 64);
    SIMT_SHARED(mbarrier, full, 1);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 0, 1);
        fence_mbarrier_init();
        if (waits) wait_for_primary();
        mbarrier_arrive_expect(full, 0, 256);
        stage.copy_bulk(0, x, 0, 256, full, 0);
    }
    __syncthreads();
    mbarrier_wait(full, 0, 0);
    sum.store(threadIdx.x, stage.load(threadIdx.x) + stage.load(threadIdx.x + 32));
}
template <bool waits> static void run_copies_from_primary(void *) {
    uint32_t *x = device_zeroes(64), *sum = device_zeroes(32);
    SIMT_LAUNCH(first<DEPENDENT_RIGHT>, 2, 32, 0, NULL, x);
    SIMT_LAUNCH_DEPENDENT(copies_from_primary<waits>, 1, 32, 0, NULL, x, sum);
    if (waits) expect(sum, 32, [](size_t) { return 14u; });
}

/* Between launches that run beside each other a flag orders as between blocks; the one that waits for it began because the other was there. */
template <bool right> __global__ void tells_dependent(global<uint32_t> data, global<uint32_t> flag) {
    launch_dependents();
    data.store(threadIdx.x, 7);
    __syncthreads();
    if (threadIdx.x == 0) flag.store_release<scope::device>(0, 1);
}
template <bool right> __global__ void hears_primary(global<const uint32_t> data, global<uint32_t> flag, global<uint32_t> out) {
    if (threadIdx.x == 0)
        while ((right ? flag.load_acquire<scope::device>(0) : flag.load_relaxed<scope::device>(0)) == 0) {
        }
    __syncthreads();
    out.store(threadIdx.x, data.load(31 - threadIdx.x));
}
template <bool right> static void run_tells_dependent(void *) {
    uint32_t *data = device_zeroes(32), *flag = device_zeroes(1), *out = device_zeroes(32);
    SIMT_LAUNCH(tells_dependent<right>, 1, 32, 0, NULL, data, flag);
    SIMT_LAUNCH_DEPENDENT(hears_primary<right>, 1, 32, 0, NULL, data, flag, out);
    if (right) expect(out, 32, [](size_t) { return 7u; });
}

/* How many of a dependent launch the primary sees before it ends. */
template <bool lets> __global__ void looks_out(global<uint32_t> arrived, global<uint32_t> seen) {
    uint32_t n = 0;
    if (lets) launch_dependents();
    for (int i = 0; i < 5; i++) n = arrived.load_relaxed<scope::device>(0);
    seen.store(blockIdx.x, n);
}
__global__ void arrives(global<uint32_t> arrived) { arrived.add_relaxed<scope::device>(0, 1); }
template <bool lets> static void count_overlaps(void *n) {
    uint32_t *arrived = device_zeroes(1), *seen = device_zeroes(4), got[4];
    SIMT_LAUNCH(looks_out<lets>, 4, 1, 0, NULL, arrived, seen);
    SIMT_LAUNCH_DEPENDENT(arrives, 4, 1, 0, NULL, arrived);
    cudaMemcpy(got, seen, sizeof got, cudaMemcpyDeviceToHost);
    for (uint32_t k : got) *(uint32_t *)n += k;
}
void simt_count_overlaps(void *n) { count_overlaps<true>(n); }
void simt_count_overlaps_not_allowed(void *n) { count_overlaps<false>(n); }

const struct simt_case simt_cases[] = {
    {"no barrier between store and load", run_reverse<false>, "race on shared memory|uninitialised", "cases.cu:"},
    {"no barrier before the next round", run_sum_twice<false>, "race on shared memory", "cases.cu:"},
    {"no __syncwarp between store and load", run_warp_exchange<false>, "race on shared memory|uninitialised", "cases.cu:"},
    {"a shuffle taken for a fence", run_shuffle_is_no_fence, "race on shared memory|uninitialised", "cases.cu:"},
    {"half of a block waits", run_half_waits, "divergent barrier", "half_waits"},
    {"two halves wait at two barriers", run_two_places, "divergent barrier", "two_places"},
    {"overwritten before it was taken", run_make_and_take<false>, "race on shared memory|uninitialised|deadlock", "make_and_take"},
    {"too few come to a named barrier", run_too_few_come, "deadlock", "too_few_come"},
    {"a shuffle reads a lane outside of its mask", run_reads_absent_lane, "__shfl_down_sync reads lane 16, which takes no part", "lane 15"},
    {"a lane of the mask has ended", run_lane_has_ended, "__shfl_sync waits for a lane that has ended", "of which 7"},
    {"a lane is not in its own mask", run_not_in_mask, "__ballot_sync by a lane outside of its own mask", "lane 31"},
    {"lanes in different operations", run_different_operations, "lanes of one warp wait for each other in different operations", "__any_sync"},
    {"half of a warp multiplies", run_half_a_product, "mma.m16n8k16.bf16 waits for a lane that has ended", "half_a_product"},
    {"a copy is not waited for", run_staged_sum<NO_WAIT>, "uninitialised", "staged_sum"},
    {"too few copies are waited for", run_staged_sum<WAIT_TOO_FEW>, "uninitialised", "staged_sum"},
    {"no barrier after the wait for a copy", run_staged_sum<NO_BARRIER>, "race on shared memory|uninitialised", "staged_sum"},
    {"a barrier before the wait for a copy", run_staged_sum<BARRIER_TOO_EARLY>, "race on shared memory|uninitialised", "staged_sum"},
    {"a copy into what is still read", run_staged_sum<STAGE_STILL_READ>, "race on shared memory|uninitialised", "staged_sum"},
    {"a copy whose source changes", run_source_changes, "race on buffer", "source_changes"},
    {"a bulk copy to an mbarrier that is not fenced", run_bulk_pipeline<NO_INIT_FENCE>, "mbarrier without fence", "bulk_pipeline"},
    {"no barrier behind an mbarrier's init", run_bulk_pipeline<NO_INIT_BARRIER>, "race on shared memory|uninitialised mbarrier", "bulk_pipeline"},
    {"a parity that lets pass too early", run_bulk_pipeline<TAKES_TOO_EARLY>, "race on shared memory|uninitialised|deadlock", "bulk_pipeline"},
    {"a parity that never comes", run_bulk_pipeline<WAITS_FOR_EVER>, "deadlock", "of an mbarrier whose phase"},
    {"fewer bytes than expected", run_bulk_pipeline<TOO_FEW_BYTES>, "deadlock", "has 512 of 528 bytes"},
    {"more bytes than expected", run_bulk_pipeline<TOO_MANY_BYTES>, "mbarrier", "512 bytes are copied in a phase that expects 496"},
    {"more threads than an mbarrier waits for", run_bulk_pipeline<TOO_MANY_THREADS>, "mbarrier", "more threads arrive in a phase than the 1"},
    {"a bulk copy into what is still read", run_bulk_pipeline<OVERWRITES_UNREAD>, "race on shared memory", "bulk_pipeline"},
    {"a bulk copy that is not waited for", run_bulk_pipeline<NO_WAIT_FOR_BYTES>, "race on shared memory|uninitialised", "bulk_pipeline"},
    {"a bulk copy from no multiple of 16", run_bulk_pipeline<SOURCE_NOT_ALIGNED>, "misaligned", "bulk copy of 512 bytes"},
    {"a bulk copy to no multiple of 16", run_bulk_pipeline<PLACE_NOT_ALIGNED>, "misaligned", "bulk copy of 512 bytes"},
    {"a bulk copy of no multiple of 16", run_bulk_pipeline<ODD_SIZE>, "misaligned", "bulk copy of 508 bytes"},
    {"a bulk copy beyond a shared array", run_bulk_pipeline<BEYOND_SHARED>, "out of bounds", "shared array of 1024 bytes"},
    {"a bulk copy beyond its source", run_bulk_pipeline<BEYOND_SOURCE>, "out of bounds", "of 3072 bytes"},
    {"a bulk copy of what threads wrote, without its fence", run_bulk_out<OUT_NO_PROXY_FENCE>, "race on shared memory",
     "fence_proxy_async() is missing"},
    {"a proxy fence before the stores", run_bulk_out<OUT_FENCE_TOO_EARLY>, "race on shared memory", "fence_proxy_async() is missing"},
    {"a bulk copy of what others write, without a barrier", run_bulk_out<OUT_NO_BARRIER>, "race on shared memory|uninitialised", "bulk_out"},
    {"a bulk copy whose source is overwritten", run_bulk_out<OUT_OVERWRITTEN>, "race on shared memory", "bulk copy: load"},
    {"a bulk copy whose group is not closed", run_bulk_out<OUT_NO_COMMIT>, "race on shared memory", "bulk copy: load"},
    {"a bulk copy under way as its block ends", run_bulk_out<OUT_NO_WAIT>, "bulk copy that nobody waits for", "still reads shared memory"},
    {"a bulk copy of which only the reads were waited for", run_bulk_out<OUT_READ_TOO_EARLY>, "race on buffer", "bulk copy: store"},
    {"a bulk copy of a buffer that threads wrote, without its fence", run_bulk_after_stores<false, false>, "race on buffer",
     "fence_proxy_async() is missing"},
    {"a bulk copy over what threads wrote, without its fence", run_bulk_after_stores<true, false>, "race on shared memory",
     "fence_proxy_async() is missing"},
    {"two threads store to one word", run_same_word, "race on buffer", "store"},
    {"two blocks store to one word", run_overlapping_blocks, "race on buffer", "block (1,0,0)"},
    {"a flag that is relaxed", run_message<RELAXED>, "race on buffer", "message"},
    {"a flag of the block's scope between blocks", run_message<BLOCK_SCOPE>, "race on buffer", "message"},
    {"a release without an acquire", run_message<NO_ACQUIRE>, "race on buffer", "message"},
    {"a relaxed count before the last block", run_last_block_adds<false>, "race on buffer", "last_block_adds"},
    {"an atomic behind a store", run_hides<STORE_THEN_ADD>, "race on buffer", ": store at tests/simt/cases.cu:"},
    {"an atomic behind a load", run_hides<LOAD_THEN_ADD>, "race on buffer", ": load at tests/simt/cases.cu:"},
    {"an atomic load of what was stored and then added to", run_hides<STORE_THEN_LOAD>, "race on buffer", ": store at tests/simt/cases.cu:"},
    {"a flag of the device's scope towards the host", run_tells_host<scope::device>, "scope too narrow", "tells_host"},
    {"a flag of the block's scope towards the host", run_tells_host<scope::block>, "scope too narrow", "tells_host"},
    {"a packet as v4, its flag in one word", run_packets<PACKET_AS_V4>, "race on buffer", "v4 access is four of 4 bytes, seen in any order"},
    {"a packet stored as v4, loaded as b128", run_packets<STORED_AS_V4>, "race on buffer", "of unequal size"},
    {"a packet stored as b128, its flag polled as a word", run_packets<POLLED_AS_WORD>, "race on buffer", "of unequal size"},
    {"a word of a v4 taken for the flag of the others", run_packets<POLLED_AS_WORD_OF_V4>, "race on buffer",
     "unordered with kernel packets<f>, block (0,0,0)"},
    {"a packet stored by a plain vector", run_packets<STORED_PLAINLY>, "race on buffer", "packets<f>"},
    {"a packet at no multiple of 16", run_packets<PACKET_NOT_ALIGNED>, "misaligned", "of 16 bytes"},
    {"a flag that nobody writes", run_waits_for_ever, "deadlock", "waits_for_ever"},
    {"shared memory that nobody wrote", run_unwritten_shared, "uninitialised", "unwritten_shared"},
    {"a buffer that nobody wrote", run_unwritten_buffer, "uninitialised", "copy_words"},
    {"a load beyond a buffer", run_beyond_buffer, "out of bounds", "byte 252"},
    {"a store beyond a buffer", run_store_beyond_buffer, "out of bounds", "byte 252"},
    {"a buffer after free", run_freed_buffer, "out of bounds", "copy_words"},
    {"a store beyond a shared array", run_beyond_shared, "out of bounds", "shared array of 128 bytes"},
    {"a store beyond what the launch asked for", run_beyond_dynamic, "out of bounds", "shared array of 124 bytes"},
    {"a vector at no multiple of its size", run_misaligned, "misaligned", "load of 16 bytes"},
    {"more fixed shared memory than there is", run_too_much_shared, "too much shared memory", "49152"},
    {"a signed index overflows", run_sum_row<SIGNED>, "integer overflow: kernel sum_row<kind>, block (69999,0,0), thread (",
     "69999 * 65536 as 'int' at tests/simt/cases.cu:"},
    {"an unsigned index wraps", run_sum_row<UNSIGNED>, "uninitialised: kernel sum_row<kind>, block (69999,0,0), thread (", "at tests/simt/cases.cu:"},
    {"a local that nobody wrote, in a sum", run_sum_locals<SUMS_ALL>,
     "uninitialised local: kernel sum_locals<use>, launch 2, grid (1,1,1), 32 threads: what it leaves in ",
     "depends on the value with which a local begins"},
    {"a local that nobody wrote decides", run_sum_locals<DECIDES>,
     "uninitialised local: kernel sum_locals<use>, launch 2, grid (1,1,1), 32 threads: what it leaves in ",
     "depends on the value with which a local begins"},
    {"a local that nobody wrote, by way of another lane", run_sum_locals<HANDS_OVER>,
     "uninitialised local: kernel sum_locals<use>, launch 2, grid (1,1,1), 32 threads: what it leaves in ",
     "depends on the value with which a local begins"},
    {"a graph whose branches are joined too late", run_graph_without_join, "race on buffer", "add_arrays"},
    {"a dependent launch that never waits", run_dependent<NEVER_WAITS>, "race on buffer", "wait_for_primary() is missing"},
    {"a dependent launch that never waits, behind one that lets nobody begin", run_dependent<NEVER_LETS_NOR_WAITS>, "race on buffer",
     "wait_for_primary() is missing"},
    {"a dependent launch that reads before it waits", run_dependent<READS_BEFORE_WAIT>, "race on buffer", "wait_for_primary() is missing"},
    {"a dependent launch that writes before it waits", run_dependent<WRITES_BEFORE_WAIT>, "race on buffer", "wait_for_primary() is missing"},
    {"one thread waits for the primary, without a barrier", run_dependent<ONE_WAITS_FOR_ITSELF>, "race on buffer", "wait_for_primary() is missing"},
    {"the third waits for the second, and that for nobody", run_dependent<SECOND_NEVER_WAITS>, "race on buffer", "wait_for_primary() is missing"},
    {"the third reads, before it waits, what the first wrote", run_dependent<READS_THE_FIRST_BEFORE_WAIT>, "race on buffer",
     "wait_for_primary() is missing"},
    {"a captured dependent launch that never waits", run_dependent_graph<NEVER_WAITS>, "race on buffer", "wait_for_primary() is missing"},
    {"a bulk copy of what the primary writes, without a wait", run_copies_from_primary<false>, "race on buffer",
     "bulk copy: load at tests/simt/cases.cu:"},
    {"a relaxed flag from a primary", run_tells_dependent<false>, "race on buffer", "hears_primary"},
    {"the host writes what a copy still reads", run_round_trip<WRITES_SOURCE>, "race on buffer", "the host: store at tests/simt/cases.cu:"},
    {"the host reads what a copy still writes", run_round_trip<READS_RESULT>, "race on buffer", "the host: load at tests/simt/cases.cu:"},
    {"the host writes what a kernel still reads", run_round_trip<WRITES_WHAT_A_KERNEL_READS>, "race on buffer",
     "unordered with the host: store at tests/simt/cases.cu:"},
    {"the host waits for an event before the work", run_round_trip<EVENT_TOO_EARLY>, "race on buffer", "the host: load at tests/simt/cases.cu:"},
    {"a buffer freed in flight", run_round_trip<FREES_BUFFER>, "freed in flight: buffer", "copy_words of stream 2"},
    {"pinned memory freed in flight", run_round_trip<FREES_PINNED>, "freed in flight: buffer", "copy of stream 2"},
    {"pinned memory used again in flight", run_two_stages<false>, "race on buffer", "the host: store at tests/simt/cases.cu:"},
    {"an event before the work", run_out_of_order<EARLY_EVENT>, "race on buffer", "copy_words"},
    {"a stream that does not wait for the default one", run_out_of_order<NON_BLOCKING>, "race on buffer", "copy_words"},
    {"two streams and no event", run_two_streams<false>, "race on buffer", "copy_words"},

    {"barrier", run_reverse<true>, NULL, NULL},
    {"barrier before the next round", run_sum_twice<true>, NULL, NULL},
    {"__syncwarp", run_warp_exchange<true>, NULL, NULL},
    {"named barriers", run_make_and_take<true>, NULL, NULL},
    {"warp operations", run_all_warp_operations, NULL, NULL},
    {"copies in two stages", run_staged_sum<COPY_RIGHT>, NULL, NULL},
    {"bulk copies in two stages", run_bulk_pipeline<BULK_RIGHT>, NULL, NULL},
    {"bulk copies out of shared memory", run_bulk_out<OUT_RIGHT>, NULL, NULL},
    {"a bulk copy of a buffer that threads wrote", run_bulk_after_stores<false, true>, NULL, NULL},
    {"a bulk copy over what threads wrote", run_bulk_after_stores<true, true>, NULL, NULL},
    {"a product has the same bits everywhere", run_multiply, NULL, NULL},
    {"release and acquire", run_message<RELEASE>, NULL, NULL},
    {"fences around relaxed accesses", run_message<FENCES>, NULL, NULL},
    {"a flag of the system's scope towards the host", run_tells_host<scope::system>, NULL, NULL},
    {"packets of 16 bytes", run_packets<PACKET_RIGHT>, NULL, NULL},
    {"four flags at once", run_four_flags, NULL, NULL},
    {"atomics in order with a store", run_hides<ADDS_IN_ORDER>, NULL, NULL},
    {"the last block adds up", run_last_block_adds<true>, NULL, NULL},
    {"all blocks meet", run_grid_barrier, NULL, NULL},
    {"dynamic shared memory", run_within_dynamic, NULL, NULL},
    {"limits of a launch", run_launch_limits, NULL, NULL},
    {"an index of 64 bits", run_sum_row<WIDE>, NULL, NULL},
    {"dependent launches", run_dependent<DEPENDENT_RIGHT>, NULL, NULL},
    {"one thread waits for the primary, then a barrier", run_dependent<ONE_WAITS_FOR_ALL>, NULL, NULL},
    {"a usual launch behind a dependent one", run_dependent<THIRD_IS_USUAL>, NULL, NULL},
    {"a graph of dependent launches", run_dependent_graph<DEPENDENT_RIGHT>, NULL, NULL},
    {"dependent launches behind an event and a copy", run_dependent_behind_event, NULL, NULL},
    {"the second of three dependent launches fails", run_dependent_fails, NULL, NULL},
    {"a bulk copy of what the primary wrote", run_copies_from_primary<true>, NULL, NULL},
    {"a flag from a primary", run_tells_dependent<true>, NULL, NULL},
    {"a local that nobody reads", run_sum_locals<SUMS_READ>, NULL, NULL},
    {"locals that go to another lane", run_sum_locals<HANDS_OVER_READ>, NULL, NULL},
    {"a graph, replayed and updated", run_graph_replayed, NULL, NULL},
    {"calls that a capture forbids", run_graph_refusals, NULL, NULL},
    {"the host waits for a copy", run_round_trip<WAITS>, NULL, NULL},
    {"pinned memory used in turn", run_two_stages<true>, NULL, NULL},
    {"two streams and an event", run_two_streams<true>, NULL, NULL},
    {"the default stream", run_default_stream, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};
