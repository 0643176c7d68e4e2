/* CUDA's device side for a host compiler: types, built-in variables, barriers, warp operations, memory. See simt.h. What is declared here is defined in engine.cpp
 * and memory.cpp. A function's last argument, the site, is filled in by the compiler: the line in the kernel that a finding names. */
#ifndef KERNELS_SIMT_ON_CPU_H
#define KERNELS_SIMT_ON_CPU_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <tuple>

#include "kernels/formats.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(n, ...) __attribute__((patchable_function_entry((n) + 0, (n) + 0))) /* see bounds.cpp */
#define SIMT_UNROLL

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

enum class scope : uint8_t { block, device, system };

namespace simt {

struct site {
    const char *file;
    int line;
    bool operator<(const site &o) const { return line != o.line ? line < o.line : file < o.file; }
    bool operator==(const site &o) const { return line == o.line && file == o.file; }
};
#define SIMT_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define SIMT_HERE                                                                                                                                              \
    simt::site { file_, line_ }

enum class access_kind : uint8_t { load, store, atomic_load, atomic_store, atomic_update, b128_load, b128_store, v4_load, v4_store };

struct lane_ids {
    uint3 thread_idx, block_idx;
    dim3 block_dim, grid_dim;
};
extern lane_ids *self_ids; /* of the thread whose fiber runs */
inline lane_ids &ids() { return *self_ids; }

void global_access(const void *p, size_t bytes, size_t align, access_kind kind, scope s, site at);
/* Where byte `offset` of a shared array lies. */
unsigned char *shared_access(uint32_t array_offset, uint32_t array_bytes, size_t offset, size_t bytes, size_t align, access_kind kind, site at);
uint32_t shared_find(const void *key, size_t bytes); /* its offset, the same for all threads of a block */
uint32_t shared_dynamic_bytes();

enum class order : uint8_t { relaxed, acquire, release, acquire_release };
enum class update : uint8_t { read, write, add, exchange, compare_exchange };
uint32_t atomic(uint32_t *p, update u, uint32_t value, uint32_t compare, order o, scope s, site at);
/* 16 bytes of the system's scope, with acquire or release: kind is one of the last four. */
void atomic_wide(uint32_t *p, access_kind kind, uint4 *v, site at);
void fence(scope s);

/* 16 bytes of global into shared memory, some time until the thread waits for them. */
void copy_async(const void *from, uint32_t array_offset, uint32_t array_bytes, size_t offset, site at);
void copy_async_commit();
void copy_async_wait(uint32_t n_left, site at);
/* row: 16 bytes of shared memory that each lane brings; r: a register of each of four matrices of 8 rows. */
void ldmatrix_x4(uint32_t r[4], const void *row, bool transposed, site at);

/* A shared array of mbarriers, and which of them. */
struct mbarrier_place {
    uint32_t array_offset, array_bytes;
    size_t i;
};
void mbarrier_init(mbarrier_place m, uint32_t n_threads, site at);
void mbarrier_invalidate(mbarrier_place m, site at);
void mbarrier_arrive(mbarrier_place m, uint32_t n_bytes, site at);
void mbarrier_wait(mbarrier_place m, uint32_t parity, site at);
void fence_mbarrier_init();
void fence_proxy_async();
void copy_bulk(const void *from, uint32_t array_offset, uint32_t array_bytes, size_t offset, uint32_t n_bytes, mbarrier_place m, site at);
void copy_bulk_out(void *to, uint32_t array_offset, uint32_t array_bytes, size_t offset, uint32_t n_bytes, site at);
void copy_bulk_commit();
void copy_bulk_wait(uint32_t n_left, bool reads_only, site at);

void launch_dependents();
void wait_for_primary(site at);

void barrier_wait(uint32_t id, uint32_t n_threads, bool whole_block, site at);
void barrier_arrive(uint32_t id, uint32_t n_threads, site at);
void warp_sync(uint32_t mask, site at);
enum class pick : uint8_t { index, up, down, exclusive_or };
uint64_t shuffle(uint32_t mask, uint64_t bits, pick how, int value, int width, site at);
enum class reduce : uint8_t { ballot, all, any, add, min_signed, max_signed, min_unsigned, max_unsigned, bit_and, bit_or, bit_xor, match };
uint32_t warp_reduce(uint32_t mask, reduce how, uint32_t value, site at);
/* What a matrix instruction multiplies, and which bytes of which lanes' scales it takes. */
enum class mma_kind : uint8_t { bf16, e4m3, mxf8, mxf4, nvf4 };
struct mma_scales {
    uint32_t a, b;
    int byte_a, thread_a, byte_b, thread_b;
};
void mma(mma_kind kind, float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4], const mma_scales &scales, site at);
void count_fma();

template <class T> struct bare {
    typedef T type;
};
template <class T> struct bare<const T> {
    typedef T type;
};

template <class To, class From> inline To bits(From x) {
    static_assert(sizeof(To) >= sizeof(From), "bits");
    To to = 0;
    memcpy(&to, &x, sizeof x);
    return to;
}
template <class T> inline T from_bits(uint64_t x) {
    T to;
    static_assert(sizeof to <= sizeof x, "bits");
    memcpy(&to, &x, sizeof to);
    return to;
}

/* A launch's function and the copies of its arguments. */
struct kernel_call {
    size_t parameter_bytes = 0; /* with their alignment */
    virtual void run() = 0;
    virtual kernel_call *copy() const = 0;
    virtual ~kernel_call() {}
};
template <class... P> struct kernel_call_of : kernel_call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    kernel_call_of(void (*kernel_)(P...), P... arguments_) : kernel(kernel_), arguments(arguments_...) {
        ((parameter_bytes = (parameter_bytes + alignof(P) - 1) / alignof(P) * alignof(P) + sizeof(P)), ...);
    }
    void run() override { std::apply(kernel, arguments); }
    kernel_call *copy() const override { return new kernel_call_of(*this); }
};
enum class launch_as : uint8_t { usual, cooperative, dependent };
int launch_add(kernel_call *call, const void *function, const char *name, dim3 grid, dim3 block, size_t shared_bytes, void *stream, launch_as as);
template <class... P, class... A>
int launch_with(void (*kernel)(P...), const char *name, dim3 grid, dim3 block, size_t shared_bytes, void *stream, launch_as as, A... arguments) {
    return launch_add(new kernel_call_of<P...>(kernel, P(arguments)...), (const void *)kernel, name, grid, block, shared_bytes, stream, as);
}

} // namespace simt

#define threadIdx (simt::ids().thread_idx)
#define blockIdx (simt::ids().block_idx)
#define blockDim (simt::ids().block_dim)
#define gridDim (simt::ids().grid_dim)
#define warpSize 32

template <class T> struct global {
    typedef typename simt::bare<T>::type value;
    T *p;
    global(T *p_ = nullptr) : p(p_) {}
    template <class U> global(const global<U> &o) : p(o.p) {}
    global at(size_t i) const { return global(p + i); }
    template <class V> V load_as(size_t i, SIMT_SITE) const {
        V v;
        simt::global_access(p + i, sizeof v, alignof(V), simt::access_kind::load, scope::block, SIMT_HERE);
        memcpy(&v, p + i, sizeof v);
        return v;
    }
    template <class V> void store_as(size_t i, const V &v, SIMT_SITE) const {
        simt::global_access(p + i, sizeof v, alignof(V), simt::access_kind::store, scope::block, SIMT_HERE);
        memcpy(p + i, &v, sizeof v);
    }
    value load(size_t i, SIMT_SITE) const { return load_as<value>(i, file_, line_); }
    void store(size_t i, value v, SIMT_SITE) const { store_as<value>(i, v, file_, line_); }

    template <scope S> value load_relaxed(size_t i, SIMT_SITE) const { return atomic<S>(i, simt::update::read, 0, 0, simt::order::relaxed, SIMT_HERE); }
    template <scope S> value load_acquire(size_t i, SIMT_SITE) const { return atomic<S>(i, simt::update::read, 0, 0, simt::order::acquire, SIMT_HERE); }
    template <scope S> void store_relaxed(size_t i, value v, SIMT_SITE) const { atomic<S>(i, simt::update::write, v, 0, simt::order::relaxed, SIMT_HERE); }
    template <scope S> void store_release(size_t i, value v, SIMT_SITE) const { atomic<S>(i, simt::update::write, v, 0, simt::order::release, SIMT_HERE); }
    template <scope S> value add(size_t i, value v, SIMT_SITE) const { return atomic<S>(i, simt::update::add, v, 0, simt::order::acquire_release, SIMT_HERE); }
    template <scope S> value add_relaxed(size_t i, value v, SIMT_SITE) const { return atomic<S>(i, simt::update::add, v, 0, simt::order::relaxed, SIMT_HERE); }
    template <scope S> value exchange(size_t i, value v, SIMT_SITE) const {
        return atomic<S>(i, simt::update::exchange, v, 0, simt::order::acquire_release, SIMT_HERE);
    }
    template <scope S> value compare_exchange(size_t i, value compare, value v, SIMT_SITE) const {
        return atomic<S>(i, simt::update::compare_exchange, v, compare, simt::order::acquire_release, SIMT_HERE);
    }
    uint4 load_acquire_b128(size_t i, SIMT_SITE) const { return wide(i, simt::access_kind::b128_load, uint4(), SIMT_HERE); }
    void store_release_b128(size_t i, uint4 v, SIMT_SITE) const { wide(i, simt::access_kind::b128_store, v, SIMT_HERE); }
    uint4 load_acquire_v4(size_t i, SIMT_SITE) const { return wide(i, simt::access_kind::v4_load, uint4(), SIMT_HERE); }
    void store_release_v4(size_t i, uint4 v, SIMT_SITE) const { wide(i, simt::access_kind::v4_store, v, SIMT_HERE); }

  private:
    template <scope S> value atomic(size_t i, simt::update u, value v, value compare, simt::order o, simt::site at) const {
        static_assert(sizeof(value) == 4 && value(1) / 2 == 0, "atomics are of 32-bit integers");
        return (value)simt::atomic((uint32_t *)(p + i), u, (uint32_t)v, (uint32_t)compare, o, S, at);
    }
    uint4 wide(size_t i, simt::access_kind kind, uint4 v, simt::site at) const {
        simt::atomic_wide((uint32_t *)(p + i), kind, &v, at);
        return v;
    }
};

struct alignas(8) mbarrier {
    uint64_t opaque;
};

template <class T> struct shared {
    uint32_t offset, bytes;
    shared at(size_t i) const { return shared{(uint32_t)(offset + i * sizeof(T)), (uint32_t)(i * sizeof(T) < bytes ? bytes - i * sizeof(T) : 0)}; }
    template <class V> V load_as(size_t i, SIMT_SITE) const {
        V v;
        memcpy(&v, simt::shared_access(offset, bytes, i * sizeof(T), sizeof v, alignof(V), simt::access_kind::load, SIMT_HERE), sizeof v);
        return v;
    }
    template <class V> void store_as(size_t i, const V &v, SIMT_SITE) const {
        memcpy(simt::shared_access(offset, bytes, i * sizeof(T), sizeof v, alignof(V), simt::access_kind::store, SIMT_HERE), &v, sizeof v);
    }
    T load(size_t i, SIMT_SITE) const { return load_as<T>(i, file_, line_); }
    void store(size_t i, T v, SIMT_SITE) const { store_as<T>(i, v, file_, line_); }
    template <class U> void copy_async16(size_t i, const global<U> &from, size_t k, SIMT_SITE) const {
        simt::copy_async(from.p + k, offset, bytes, i * sizeof(T), SIMT_HERE);
    }
    template <class U>
    void copy_bulk(size_t i, const global<U> &from, size_t k, uint32_t n_bytes, const shared<mbarrier> &m, size_t j, SIMT_SITE) const {
        simt::copy_bulk(from.p + k, offset, bytes, i * sizeof(T), n_bytes, {m.offset, m.bytes, j}, SIMT_HERE);
    }
    template <class U> void copy_bulk_out(size_t i, const global<U> &to, size_t k, uint32_t n_bytes, SIMT_SITE) const {
        simt::copy_bulk_out(to.p + k, offset, bytes, i * sizeof(T), n_bytes, SIMT_HERE);
    }
    void ldmatrix(uint32_t r[4], size_t i, SIMT_SITE) const {
        simt::ldmatrix_x4(r, simt::shared_access(offset, bytes, i * sizeof(T), 16, 16, simt::access_kind::load, SIMT_HERE), false, SIMT_HERE);
    }
    void ldmatrix_transposed(uint32_t r[4], size_t i, SIMT_SITE) const {
        simt::ldmatrix_x4(r, simt::shared_access(offset, bytes, i * sizeof(T), 16, 16, simt::access_kind::load, SIMT_HERE), true, SIMT_HERE);
    }
};
inline void copy_async_commit() { simt::copy_async_commit(); }
template <int n_left> inline void copy_async_wait(SIMT_SITE) { simt::copy_async_wait(n_left, SIMT_HERE); }
inline void copy_bulk_commit() { simt::copy_bulk_commit(); }
template <int n_left> inline void copy_bulk_wait(SIMT_SITE) { simt::copy_bulk_wait(n_left, false, SIMT_HERE); }
template <int n_left> inline void copy_bulk_wait_read(SIMT_SITE) { simt::copy_bulk_wait(n_left, true, SIMT_HERE); }
inline void mbarrier_init(const shared<mbarrier> &m, size_t i, uint32_t n_threads, SIMT_SITE) {
    simt::mbarrier_init({m.offset, m.bytes, i}, n_threads, SIMT_HERE);
}
inline void mbarrier_invalidate(const shared<mbarrier> &m, size_t i, SIMT_SITE) { simt::mbarrier_invalidate({m.offset, m.bytes, i}, SIMT_HERE); }
inline void mbarrier_arrive(const shared<mbarrier> &m, size_t i, SIMT_SITE) { simt::mbarrier_arrive({m.offset, m.bytes, i}, 0, SIMT_HERE); }
inline void mbarrier_arrive_expect(const shared<mbarrier> &m, size_t i, uint32_t n_bytes, SIMT_SITE) {
    simt::mbarrier_arrive({m.offset, m.bytes, i}, n_bytes, SIMT_HERE);
}
inline void mbarrier_wait(const shared<mbarrier> &m, size_t i, uint32_t parity, SIMT_SITE) {
    simt::mbarrier_wait({m.offset, m.bytes, i}, parity, SIMT_HERE);
}
inline void fence_mbarrier_init() { simt::fence_mbarrier_init(); }
inline void fence_proxy_async() { simt::fence_proxy_async(); }
#define SIMT_SHARED(type, name, n)                                                                                                                             \
    static const char name##_key = 0;                                                                                                                          \
    const shared<type> name = {simt::shared_find(&name##_key, sizeof(type) * (n)), (uint32_t)(sizeof(type) * (n))}
#define SIMT_SHARED_DYNAMIC(type, name) const shared<type> name = {0, simt::shared_dynamic_bytes()}

#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                                                  \
    simt::launch_with(kernel, #kernel, grid, block, shared_bytes, stream, simt::launch_as::usual __VA_OPT__(, ) __VA_ARGS__)
/* All blocks resident together, so that they may wait for each other. */
#define SIMT_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...)                                                                      \
    simt::launch_with(kernel, #kernel, grid, block, shared_bytes, stream, simt::launch_as::cooperative __VA_OPT__(, ) __VA_ARGS__)
/* May begin before the kernel that precedes it in the stream has ended. */
#define SIMT_LAUNCH_DEPENDENT(kernel, grid, block, shared_bytes, stream, ...)                                                                        \
    simt::launch_with(kernel, #kernel, grid, block, shared_bytes, stream, simt::launch_as::dependent __VA_OPT__(, ) __VA_ARGS__)

inline void launch_dependents() { simt::launch_dependents(); }
inline void wait_for_primary(SIMT_SITE) { simt::wait_for_primary(SIMT_HERE); }

inline void __syncthreads(SIMT_SITE) { simt::barrier_wait(0, 0, true, SIMT_HERE); }
inline void barrier_sync(uint32_t id, uint32_t n_threads, SIMT_SITE) { simt::barrier_wait(id, n_threads, false, SIMT_HERE); }
inline void barrier_arrive(uint32_t id, uint32_t n_threads, SIMT_SITE) { simt::barrier_arrive(id, n_threads, SIMT_HERE); }
inline void __syncwarp(uint32_t mask = 0xffffffffu, SIMT_SITE) { simt::warp_sync(mask, SIMT_HERE); }
inline void __threadfence_block() { simt::fence(scope::block); }
inline void __threadfence() { simt::fence(scope::device); }
inline void __threadfence_system() { simt::fence(scope::system); }

template <class T> inline T __shfl_sync(uint32_t mask, T x, int lane, int width = 32, SIMT_SITE) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::bits<uint64_t>(x), simt::pick::index, lane, width, SIMT_HERE));
}
template <class T> inline T __shfl_up_sync(uint32_t mask, T x, unsigned by, int width = 32, SIMT_SITE) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::bits<uint64_t>(x), simt::pick::up, (int)by, width, SIMT_HERE));
}
template <class T> inline T __shfl_down_sync(uint32_t mask, T x, unsigned by, int width = 32, SIMT_SITE) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::bits<uint64_t>(x), simt::pick::down, (int)by, width, SIMT_HERE));
}
template <class T> inline T __shfl_xor_sync(uint32_t mask, T x, int lanes, int width = 32, SIMT_SITE) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::bits<uint64_t>(x), simt::pick::exclusive_or, lanes, width, SIMT_HERE));
}
inline uint32_t __ballot_sync(uint32_t mask, int x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::ballot, x != 0, SIMT_HERE); }
inline int __all_sync(uint32_t mask, int x, SIMT_SITE) { return (int)simt::warp_reduce(mask, simt::reduce::all, x != 0, SIMT_HERE); }
inline int __any_sync(uint32_t mask, int x, SIMT_SITE) { return (int)simt::warp_reduce(mask, simt::reduce::any, x != 0, SIMT_HERE); }
inline uint32_t __match_any_sync(uint32_t mask, uint32_t x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::match, x, SIMT_HERE); }
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::add, x, SIMT_HERE); }
inline int32_t __reduce_add_sync(uint32_t mask, int32_t x, SIMT_SITE) { return (int32_t)simt::warp_reduce(mask, simt::reduce::add, (uint32_t)x, SIMT_HERE); }
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::min_unsigned, x, SIMT_HERE); }
inline int32_t __reduce_min_sync(uint32_t mask, int32_t x, SIMT_SITE) { return (int32_t)simt::warp_reduce(mask, simt::reduce::min_signed, (uint32_t)x, SIMT_HERE); }
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::max_unsigned, x, SIMT_HERE); }
inline int32_t __reduce_max_sync(uint32_t mask, int32_t x, SIMT_SITE) { return (int32_t)simt::warp_reduce(mask, simt::reduce::max_signed, (uint32_t)x, SIMT_HERE); }
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::bit_and, x, SIMT_HERE); }
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::bit_or, x, SIMT_HERE); }
inline uint32_t __reduce_xor_sync(uint32_t mask, uint32_t x, SIMT_SITE) { return simt::warp_reduce(mask, simt::reduce::bit_xor, x, SIMT_HERE); }

inline float fma_rn(float a, float b, float c) {
    simt::count_fma();
    return fmaf(a, b, c);
}
inline float mul_rn(float a, float b) { return a * b; }
inline float add_rn(float a, float b) { return a + b; }
inline float div_rn(float a, float b) { return a / b; }
inline float sqrt_rn(float a) { return sqrtf(a); }
inline float float_of_bits(uint32_t x) { return simt::from_bits<float>(x); }
inline uint32_t bits_of_float(float x) { return simt::bits<uint32_t>(x); }
/* Two numbers rounded to BF16, to nearest even, the first in the lower half; any NaN becomes 0x7fff. */
inline uint32_t bf16x2_rn(float low, float high) {
    auto one = [](float x) { return x != x ? 0x7fffu : (bits_of_float(x) + 0x7fff + (bits_of_float(x) >> 16 & 1)) >> 16; };
    return one(high) << 16 | one(low);
}
/* One number as F16: to nearest even; any NaN becomes 0x7fff. */
inline uint32_t f16_rn(float x) { return x != x ? 0x7fffu : kern_f32_to_f16(x); }
inline float float_of_f16(uint32_t x) { return kern_f16_to_f32((uint16_t)x); }

/* d = a·b + c: a is 16 × K (rows), b K × 8 (columns); which lane holds what: see mma.cpp. All 32 lanes call it. */
inline void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4], SIMT_SITE) {
    simt::mma(simt::mma_kind::bf16, d, a, b, c, simt::mma_scales(), SIMT_HERE);
}
inline void mma_m16n8k32_e4m3(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4], SIMT_SITE) {
    simt::mma(simt::mma_kind::e4m3, d, a, b, c, simt::mma_scales(), SIMT_HERE);
}
/* The same with scales: mxf8 E4M3 with an E8M0 for 32 columns, mxf4 E2M1 with the same, nvf4 E2M1 with an E4M3 for 16. The selectors say which lanes' scale registers
 * count, and which byte of them is the first. */
#define SIMT_MMA_SCALED(name, kind)                                                                                                                                template <int byte_a = 0, int thread_a = 0, int byte_b = 0, int thread_b = 0>                                                                                  inline void name(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4], uint32_t scale_a, uint32_t scale_b, SIMT_SITE) {                          simt::mma(kind, d, a, b, c, {scale_a, scale_b, byte_a, thread_a, byte_b, thread_b}, SIMT_HERE);                                                            }
SIMT_MMA_SCALED(mma_m16n8k32_mxf8, simt::mma_kind::mxf8)
SIMT_MMA_SCALED(mma_m16n8k64_mxf4, simt::mma_kind::mxf4)
SIMT_MMA_SCALED(mma_m16n8k64_nvf4, simt::mma_kind::nvf4)

#endif
