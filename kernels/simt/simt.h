/* What a .cu of Tandem includes, and nothing else of CUDA: the same source is compiled by nvcc for a GPU and by `g++ -x c++` for the harness.
 *
 * Memory is touched only through global<T> and shared<T>, which have no operator*: so there is no access that the harness does not see. On a GPU they are bare
 * pointers. Indices count elements of T. Both have
 *   load(i), store(i, v)        one element
 *   load_as<V>(i), store_as(i, v)   a vector (float4, uint4 …) that begins at element i, aligned to its own size
 *   at(i)                       the same memory from element i on
 * and global<T> of 32-bit elements atomics: load_relaxed, load_acquire, store_relaxed, store_release, add (acquire and release in one), exchange, compare_exchange,
 * each <scope::block|device|system>. And of any elements, 16 aligned bytes of the system's scope as a uint4:
 *   load_acquire_b128(i), store_release_b128(i, v)   at once: who sees one word of a store sees all
 *   load_acquire_v4(i), store_release_v4(i, v)       four accesses of 4 bytes in any order: four flags at once, but no flag for the words beside it
 * shared<T> also
 *   copy_async16(i, from, k)    16 bytes from element k of global memory on; copy_async_commit() closes a group of them, copy_async_wait<n>() waits until the thread has at most
 *                               n groups open. Then they are there for this thread; for others after a barrier
 *   ldmatrix(r, i)              four matrices of 8 × 8 numbers of 16 bits by the whole warp: lane l says where row l mod 8 of matrix l ÷ 8 begins, and gets in r[j] of matrix j row
 *                               l ÷ 4, columns 2·(l mod 4) and the next; ldmatrix_transposed: of the transposed matrices
 * From sm_90 on, copies of n bytes (a multiple of 16, from and to multiples of 16) that one thread asks for and no thread's registers see:
 *   to.copy_bulk(i, from, k, n, m, j)   into shared memory; they arrive at mbarrier j of m, a shared<mbarrier>
 *   from.copy_bulk_out(i, to, k, n)     out of it; copy_bulk_commit() closes a group of them, copy_bulk_wait<n>() waits until the thread has at most n groups open,
 *                                       copy_bulk_wait_read<n>() only until theirs has been read
 * mbarrier_init(m, j, n): a phase of it ends when n threads have arrived (mbarrier_arrive), and as many bytes as they said (mbarrier_arrive_expect(m, j, bytes)). Phases count from 0;
 * mbarrier_wait(m, j, parity) waits for the end of the one of that parity, of this or the one before. mbarrier_invalidate(m, j) before the memory is used otherwise.
 * fence_mbarrier_init() between the init and the barrier that lets others use it; fence_proxy_async() between threads' writes and copies that are to see them, or to overwrite them.
 * Shared memory: SIMT_SHARED(type, name, n) for n elements known to the compiler (not in a template), SIMT_SHARED_DYNAMIC(type, name) for what the launch asked for.
 * Launch: SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments…); chevrons are no C++. Arguments are copied at the call. SIMT_LAUNCH_COOPERATIVE: all blocks are resident
 * together. SIMT_LAUNCH_DEPENDENT (from sm_90 on): it may begin once all blocks of the kernel before it in the stream, its primary, have called launch_dependents() or ended; of what
 * that kernel does it knows nothing, nor of what that one has not waited for itself, until a thread's wait_for_primary() returns. Whoever launches it otherwise may leave both calls in.
 * SIMT_UNROLL before a loop that must be unrolled.
 * fma_rn, mul_rn, add_rn: rounded once each, never contracted; fma_rn is counted. */
#ifndef KERNELS_SIMT_SIMT_H
#define KERNELS_SIMT_SIMT_H

#ifdef __CUDACC__
#include "kernels/simt/on_gpu.h"
#else
#include "kernels/simt/on_cpu.h"
#include "kernels/simt/runtime.h"
#endif

#endif
