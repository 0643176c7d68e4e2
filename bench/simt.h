/* See simt_kernels.cu. Each runs so many blocks of BENCH_SIMT_THREADS threads, each of which does it n times, and waits. */
#ifndef BENCH_SIMT_H
#define BENCH_SIMT_H

#define BENCH_SIMT_THREADS 128

#ifdef __cplusplus
extern "C" {
#endif

void bench_simt_nothing(unsigned blocks);
void bench_simt_barriers(unsigned blocks, int n);
void bench_simt_shuffles(unsigned blocks, int n);
void bench_simt_accesses(unsigned blocks, int n);
void bench_simt_products(unsigned blocks, int n);

#ifdef __cplusplus
}
#endif
#endif
