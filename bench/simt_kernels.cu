/* What bench/simt.c times: a kernel each of nothing, barriers, shuffles, checked loads and stores, and matrix instructions. */
#include "bench/simt.h"
#include "kernels/simt/simt.h"

__global__ void nothing() {}
__global__ void barriers(int n) {
    for (int i = 0; i < n; i++)
        __syncthreads();
}
__global__ void shuffles(int n, global<uint32_t> out) {
    uint32_t x = threadIdx.x;
    for (int i = 0; i < n; i++)
        x = __shfl_xor_sync(0xffffffffu, x, 1);
    out.store(blockIdx.x * blockDim.x + threadIdx.x, x);
}
__global__ void accesses(int n, global<uint32_t> out) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    out.store(at, 0);
    for (int i = 0; i < n; i++)
        out.store(at, out.load(at) + 1);
}
__global__ void products(int n, global<float> out) {
    const uint32_t a[4] = {0x3f803f80, 0, 0, 0}, b[2] = {0x3f803f80, 0};
    float d[4] = {};
    for (int i = 0; i < n; i++)
        mma_m16n8k16_bf16(d, a, b, d);
    out.store(blockIdx.x * blockDim.x + threadIdx.x, d[0]);
}

static void run(int (*launch)(unsigned blocks, int n, void *memory), unsigned blocks, int n) {
    void *memory = NULL;
    if (cudaMalloc(&memory, (size_t)blocks * BENCH_SIMT_THREADS * 4) == cudaSuccess && launch(blocks, n, memory) == cudaSuccess)
        cudaDeviceSynchronize();
    cudaFree(memory);
}

void bench_simt_nothing(unsigned blocks) {
    run([](unsigned g, int, void *) { return SIMT_LAUNCH(nothing, g, BENCH_SIMT_THREADS, 0, NULL, ); }, blocks, 0);
}
void bench_simt_barriers(unsigned blocks, int n) {
    run([](unsigned g, int k, void *) { return SIMT_LAUNCH(barriers, g, BENCH_SIMT_THREADS, 0, NULL, k); }, blocks, n);
}
void bench_simt_shuffles(unsigned blocks, int n) {
    run([](unsigned g, int k, void *m) { return SIMT_LAUNCH(shuffles, g, BENCH_SIMT_THREADS, 0, NULL, k, (uint32_t *)m); }, blocks, n);
}
void bench_simt_accesses(unsigned blocks, int n) {
    run([](unsigned g, int k, void *m) { return SIMT_LAUNCH(accesses, g, BENCH_SIMT_THREADS, 0, NULL, k, (uint32_t *)m); }, blocks, n);
}
void bench_simt_products(unsigned blocks, int n) {
    run([](unsigned g, int k, void *m) { return SIMT_LAUNCH(products, g, BENCH_SIMT_THREADS, 0, NULL, k, (float *)m); }, blocks, n);
}
