/* For tests, in C as in C++: seeds, findings as text instead of exit status 4, counts. */
#ifndef KERNELS_SIMT_SIMT_HOST_H
#define KERNELS_SIMT_SIMT_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1; in a program of the same objects that runs on a GPU (tests/simt/on_a_gpu.cpp), where there is nothing to seed, check or count: 0. */
int simt_is_emulated(void);

/* Runs fn(arg), then all work that it left in streams. Returns NULL, or the first finding's line (valid until the next call). What the device held is then gone:
 * every buffer, stream and event is released. Seed and checks as in TANDEM_SIMT_SEED and TANDEM_SIMT_CHECK. */
const char *simt_catch(void (*fn)(void *), void *arg, uint64_t seed);
void simt_set_check(int check);
/* "gb10", "rtx5090", "tiny"; −1: unknown. */
int simt_set_device(const char *name);
/* The n-th launch from now that runs faults, as by an illegal address: what waits never runs, and every call returns that error. 0: none will. */
void simt_fail_launch(uint32_t n);
/* The n-th allocation from now finds no memory. */
void simt_fail_allocation(uint32_t n);
/* Device memory of any size, that takes room only where it is touched: zeroes. written: they count as written, else whoever reads them finds that nobody has.
 * NULL: the system grants no such mapping. cudaFree gives it back. */
void *simt_sparse(size_t bytes, int written);
/* Launches to come run only these of their blocks, counted x fastest; those beyond a grid are left out. n 0: all again. For shapes too large to run whole. */
void simt_only_blocks(const uint32_t *blocks, size_t n);
/* exact, truncating or permuted: how an emulated mma adds up. −1: unknown. */
int simt_set_accumulation(const char *model);

/* The host is about to read, or to write, memory that the device can reach (pinned): a finding if a copy or a kernel that it has not waited for touches those bytes the other way. */
void simt_host_access(const void *p, size_t bytes, int write, const char *file, int line);
#define simt_host_read(p, bytes) simt_host_access(p, bytes, 0, __FILE__, __LINE__)
#define simt_host_write(p, bytes) simt_host_access(p, bytes, 1, __FILE__, __LINE__)

/* Is this the second run with TANDEM_SIMT_BITS, the one that finds uninitialised locals? */
int simt_compares_bits(void);

/* Counting, as TANDEM_SIMT_COUNTS turns it on. The text is JSON, valid until the next call; counts begin anew with simt_counts_start. */
void simt_counts_start(void);
const char *simt_counts_json(void);
/* Names a buffer in findings and counts. */
void simt_name(const void *device_pointer, const char *name);

#ifdef __cplusplus
}
#endif
#endif
