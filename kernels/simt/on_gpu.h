/* The same names for nvcc: bare pointers and instructions. See simt.h. All inline PTX of the tree stands here. */
#ifndef KERNELS_SIMT_ON_GPU_H
#define KERNELS_SIMT_ON_GPU_H

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#define SIMT_UNROLL _Pragma("unroll")

enum class scope : uint8_t { block, device, system };

namespace simt {

template <class T> struct bare {
    typedef T type;
};
template <class T> struct bare<const T> {
    typedef T type;
};

/* The scope is a word of the instruction, so each of the three is written out. */
#define SIMT_PTX_LOAD(name, op)                                                                                                                                \
    template <scope S> __device__ inline uint32_t name(const uint32_t *p) {                                                                                    \
        uint32_t v;                                                                                                                                            \
        if (S == scope::block)                                                                                                                                 \
            asm volatile("ld." op ".cta.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");                                                                  \
        else if (S == scope::device)                                                                                                                           \
            asm volatile("ld." op ".gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");                                                                  \
        else                                                                                                                                                   \
            asm volatile("ld." op ".sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");                                                                  \
        return v;                                                                                                                                              \
    }
#define SIMT_PTX_STORE(name, op)                                                                                                                               \
    template <scope S> __device__ inline void name(uint32_t *p, uint32_t v) {                                                                                  \
        if (S == scope::block)                                                                                                                                 \
            asm volatile("st." op ".cta.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");                                                                  \
        else if (S == scope::device)                                                                                                                           \
            asm volatile("st." op ".gpu.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");                                                                  \
        else                                                                                                                                                   \
            asm volatile("st." op ".sys.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");                                                                  \
    }
#define SIMT_PTX_UPDATE(name, order, op)                                                                                                                       \
    template <scope S> __device__ inline uint32_t name(uint32_t *p, uint32_t v) {                                                                              \
        uint32_t old;                                                                                                                                          \
        if (S == scope::block)                                                                                                                                 \
            asm volatile("atom." order ".cta.global." op " %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");                                            \
        else if (S == scope::device)                                                                                                                           \
            asm volatile("atom." order ".gpu.global." op " %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");                                            \
        else                                                                                                                                                   \
            asm volatile("atom." order ".sys.global." op " %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");                                            \
        return old;                                                                                                                                            \
    }
SIMT_PTX_LOAD(load_relaxed, "relaxed")
SIMT_PTX_LOAD(load_acquire, "acquire")
SIMT_PTX_STORE(store_relaxed, "relaxed")
SIMT_PTX_STORE(store_release, "release")
SIMT_PTX_UPDATE(add, "acq_rel", "add.u32")
SIMT_PTX_UPDATE(add_relaxed, "relaxed", "add.u32")
SIMT_PTX_UPDATE(exchange, "acq_rel", "exch.b32")

template <scope S> __device__ inline uint32_t compare_exchange(uint32_t *p, uint32_t compare, uint32_t v) {
    uint32_t old;
    if (S == scope::block)
        asm volatile("atom.acq_rel.cta.global.cas.b32 %0, [%1], %2, %3;" : "=r"(old) : "l"(p), "r"(compare), "r"(v) : "memory");
    else if (S == scope::device)
        asm volatile("atom.acq_rel.gpu.global.cas.b32 %0, [%1], %2, %3;" : "=r"(old) : "l"(p), "r"(compare), "r"(v) : "memory");
    else
        asm volatile("atom.acq_rel.sys.global.cas.b32 %0, [%1], %2, %3;" : "=r"(old) : "l"(p), "r"(compare), "r"(v) : "memory");
    return old;
}

/* 16 bytes of the system's scope. */
__device__ inline uint4 load_acquire_b128(const void *p) {
    uint4 v;
    asm volatile("{ .reg .b128 q; .reg .b64 low, high; ld.acquire.sys.global.b128 q, [%4]; mov.b128 {low, high}, q; mov.b64 {%0, %1}, low; mov.b64 "
                 "{%2, %3}, high; }"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
__device__ inline void store_release_b128(void *p, uint4 v) {
    asm volatile("{ .reg .b128 q; .reg .b64 low, high; mov.b64 low, {%1, %2}; mov.b64 high, {%3, %4}; mov.b128 q, {low, high}; "
                 "st.release.sys.global.b128 [%0], q; }"
                 :
                 : "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ inline uint4 load_acquire_v4(const void *p) {
    uint4 v;
    asm volatile("ld.acquire.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ inline void store_release_v4(void *p, uint4 v) {
    asm volatile("st.release.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" : : "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

template <class... P, class... A>
inline cudaError_t launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void *stream, A... arguments) {
    void *pointers[] = {(void *)&arguments...}; /* of the kernel's own types: the caller's business */
    static_assert(sizeof...(P) == sizeof...(A), "arguments");
    return cudaLaunchCooperativeKernel((const void *)kernel, grid, block, pointers, shared_bytes, (cudaStream_t)stream);
}

template <class... P, class... A>
inline cudaError_t launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void *stream, A... arguments) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

} // namespace simt

template <class T> struct global {
    typedef typename simt::bare<T>::type value;
    T *p;
    __host__ __device__ global(T *p_ = nullptr) : p(p_) {}
    template <class U> __host__ __device__ global(const global<U> &o) : p(o.p) {}
    __host__ __device__ global at(size_t i) const { return global(p + i); }
    template <class V> __device__ V load_as(size_t i) const { return *(const V *)(p + i); }
    template <class V> __device__ void store_as(size_t i, const V &v) const { *(V *)(p + i) = v; }
    __device__ value load(size_t i) const { return p[i]; }
    __device__ void store(size_t i, value v) const { p[i] = v; }

    template <scope S> __device__ value load_relaxed(size_t i) const { return simt::load_relaxed<S>((const uint32_t *)(p + i)); }
    template <scope S> __device__ value load_acquire(size_t i) const { return simt::load_acquire<S>((const uint32_t *)(p + i)); }
    template <scope S> __device__ void store_relaxed(size_t i, value v) const { simt::store_relaxed<S>((uint32_t *)(p + i), v); }
    template <scope S> __device__ void store_release(size_t i, value v) const { simt::store_release<S>((uint32_t *)(p + i), v); }
    template <scope S> __device__ value add(size_t i, value v) const { return simt::add<S>((uint32_t *)(p + i), v); }
    template <scope S> __device__ value add_relaxed(size_t i, value v) const { return simt::add_relaxed<S>((uint32_t *)(p + i), v); }
    template <scope S> __device__ value exchange(size_t i, value v) const { return simt::exchange<S>((uint32_t *)(p + i), v); }
    template <scope S> __device__ value compare_exchange(size_t i, value compare, value v) const {
        return simt::compare_exchange<S>((uint32_t *)(p + i), compare, v);
    }
    __device__ uint4 load_acquire_b128(size_t i) const { return simt::load_acquire_b128(p + i); }
    __device__ void store_release_b128(size_t i, uint4 v) const { simt::store_release_b128((void *)(p + i), v); }
    __device__ uint4 load_acquire_v4(size_t i) const { return simt::load_acquire_v4(p + i); }
    __device__ void store_release_v4(size_t i, uint4 v) const { simt::store_release_v4((void *)(p + i), v); }
};

/* From sm_90 on; before, who runs it ends there: who launches asks first. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SIMT_PTX_90(...) asm volatile(__VA_ARGS__)
#else
#define SIMT_PTX_90(...) __trap()
#endif

struct alignas(8) mbarrier {
    uint64_t opaque;
};

template <class T> struct shared {
    T *p;
    __device__ shared at(size_t i) const { return shared{p + i}; }
    template <class V> __device__ V load_as(size_t i) const { return *(const V *)(p + i); }
    template <class V> __device__ void store_as(size_t i, const V &v) const { *(V *)(p + i) = v; }
    __device__ T load(size_t i) const { return p[i]; }
    __device__ void store(size_t i, T v) const { p[i] = v; }
    __device__ uint32_t address(size_t i) const { return (uint32_t)__cvta_generic_to_shared(p + i); }
    template <class U> __device__ void copy_async16(size_t i, const global<U> &from, size_t k) const {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(address(i)), "l"(__cvta_generic_to_global(from.p + k)) : "memory");
    }
    template <class U>
    __device__ void copy_bulk(size_t i, const global<U> &from, size_t k, uint32_t n_bytes, const shared<mbarrier> &m, size_t j) const {
        SIMT_PTX_90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                    :
                    : "r"(address(i)), "l"(__cvta_generic_to_global(from.p + k)), "r"(n_bytes), "r"(m.address(j))
                    : "memory");
    }
    template <class U> __device__ void copy_bulk_out(size_t i, const global<U> &to, size_t k, uint32_t n_bytes) const {
        SIMT_PTX_90("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                    :
                    : "l"(__cvta_generic_to_global(to.p + k)), "r"(address(i)), "r"(n_bytes)
                    : "memory");
    }
    __device__ void ldmatrix(uint32_t r[4], size_t i) const {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address(i)) : "memory");
    }
    __device__ void ldmatrix_transposed(uint32_t r[4], size_t i) const {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address(i)) : "memory");
    }
};
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int n_left> __device__ inline void copy_async_wait() { asm volatile("cp.async.wait_group %0;" : : "n"(n_left) : "memory"); }
__device__ inline void copy_bulk_commit() { SIMT_PTX_90("cp.async.bulk.commit_group;" : : : "memory"); }
template <int n_left> __device__ inline void copy_bulk_wait() { SIMT_PTX_90("cp.async.bulk.wait_group %0;" : : "n"(n_left) : "memory"); }
template <int n_left> __device__ inline void copy_bulk_wait_read() { SIMT_PTX_90("cp.async.bulk.wait_group.read %0;" : : "n"(n_left) : "memory"); }
__device__ inline void mbarrier_init(const shared<mbarrier> &m, size_t i, uint32_t n_threads) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(m.address(i)), "r"(n_threads) : "memory");
}
__device__ inline void mbarrier_invalidate(const shared<mbarrier> &m, size_t i) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" : : "r"(m.address(i)) : "memory");
}
__device__ inline void mbarrier_arrive(const shared<mbarrier> &m, size_t i) {
    asm volatile("{ .reg .b64 before; mbarrier.arrive.shared::cta.b64 before, [%0]; }" : : "r"(m.address(i)) : "memory");
}
__device__ inline void mbarrier_arrive_expect(const shared<mbarrier> &m, size_t i, uint32_t n_bytes) {
    SIMT_PTX_90("{ .reg .b64 before; mbarrier.arrive.expect_tx.shared::cta.b64 before, [%0], %1; }" : : "r"(m.address(i)), "r"(n_bytes) : "memory");
}
__device__ inline void mbarrier_wait(const shared<mbarrier> &m, size_t i, uint32_t parity) {
    uint32_t done = 0;
    while (!done)
        SIMT_PTX_90("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                    : "=r"(done)
                    : "r"(m.address(i)), "r"(parity)
                    : "memory");
}
__device__ inline void fence_mbarrier_init() { SIMT_PTX_90("fence.mbarrier_init.release.cluster;" : : : "memory"); }
__device__ inline void fence_proxy_async() { SIMT_PTX_90("fence.proxy.async;" : : : "memory"); }
#define SIMT_SHARED(type, name, n)                                                                                                                             \
    __shared__ __align__(16) type name##_array[n];                                                                                                             \
    const shared<type> name = {name##_array}
#define SIMT_SHARED_DYNAMIC(type, name)                                                                                                                        \
    extern __shared__ __align__(16) unsigned char simt_dynamic[];                                                                                              \
    const shared<type> name = {(type *)simt_dynamic}

#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                                                            \
    (kernel<<<(grid), (block), (shared_bytes), (cudaStream_t)(stream)>>>(__VA_ARGS__), cudaGetLastError())

#define SIMT_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...) simt::launch_cooperative(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define SIMT_LAUNCH_DEPENDENT(kernel, grid, block, shared_bytes, stream, ...)                                                                        \
    simt::launch_dependent(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

/* Before sm_90 no launch begins beside another: there is nothing to allow, and nothing to wait for. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" : : : "memory"); }
__device__ inline void wait_for_primary() { asm volatile("griddepcontrol.wait;" : : : "memory"); }
#else
__device__ inline void launch_dependents() {}
__device__ inline void wait_for_primary() {}
#endif

__device__ inline void barrier_sync(uint32_t id, uint32_t n_threads) { asm volatile("barrier.sync %0, %1;" : : "r"(id), "r"(n_threads) : "memory"); }
__device__ inline void barrier_arrive(uint32_t id, uint32_t n_threads) { asm volatile("barrier.arrive %0, %1;" : : "r"(id), "r"(n_threads) : "memory"); }

__device__ inline float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float sqrt_rn(float a) { return __fsqrt_rn(a); }
__device__ inline float float_of_bits(uint32_t x) { return __uint_as_float(x); }
__device__ inline uint32_t bits_of_float(float x) { return __float_as_uint(x); }
__device__ inline uint32_t bf16x2_rn(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ inline uint32_t f16_rn(float x) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
__device__ inline float float_of_f16(uint32_t x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((uint16_t)x));
    return f;
}

/* Operands and results of a matrix instruction; the architecture decides which there are. One that a GPU lacks ends the kernel there: who launches asks first. */
#define SIMT_MMA_D "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13}"
#define SIMT_MMA_OUT "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
#define SIMT_MMA_IN "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3])

#define SIMT_PTX_MMA(name, op)                                                                                                                                 \
    __device__ inline void name(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4]) {                                                      \
        asm volatile(op " " SIMT_MMA_D ";" : SIMT_MMA_OUT : SIMT_MMA_IN);                                                                                      \
    }
#define SIMT_PTX_MMA_SCALED(name, op)                                                                                                                          \
    template <int byte_a = 0, int thread_a = 0, int byte_b = 0, int thread_b = 0>                                                                              \
    __device__ inline void name(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4], uint32_t scale_a, uint32_t scale_b) {                  \
        asm volatile(op " " SIMT_MMA_D ", {%14}, {%15,%16}, {%17}, {%18,%19};"                                                                                 \
                     : SIMT_MMA_OUT                                                                                                                            \
                     : SIMT_MMA_IN, "r"(scale_a), "n"(byte_a), "n"(thread_a), "r"(scale_b), "n"(byte_b), "n"(thread_b));                                       \
    }
#define SIMT_NO_MMA(name)                                                                                                                                      \
    __device__ inline void name(float *, const uint32_t *, const uint32_t *, const float *) { __trap(); }
#define SIMT_NO_MMA_SCALED(name)                                                                                                                               \
    template <int = 0, int = 0, int = 0, int = 0>                                                                                                              \
    __device__ inline void name(float *, const uint32_t *, const uint32_t *, const float *, uint32_t, uint32_t) {                                              \
        __trap();                                                                                                                                              \
    }

SIMT_PTX_MMA(mma_m16n8k16_bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
SIMT_PTX_MMA(mma_m16n8k32_e4m3, "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32")
#else
SIMT_NO_MMA(mma_m16n8k32_e4m3)
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM120_ALL) || defined(__CUDA_ARCH_FEAT_SM121_ALL)
SIMT_PTX_MMA_SCALED(mma_m16n8k32_mxf8, "mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0")
SIMT_PTX_MMA_SCALED(mma_m16n8k64_mxf4, "mma.sync.aligned.kind::mxf4.block_scale.scale_vec::2X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0")
SIMT_PTX_MMA_SCALED(mma_m16n8k64_nvf4, "mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue4m3")
#else
SIMT_NO_MMA_SCALED(mma_m16n8k32_mxf8)
SIMT_NO_MMA_SCALED(mma_m16n8k64_mxf4)
SIMT_NO_MMA_SCALED(mma_m16n8k64_nvf4)
#endif

#endif
