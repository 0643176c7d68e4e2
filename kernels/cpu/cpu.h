/* The CPU backend's variants, best first. All of them give the same bits for products (tests/kernels_matmul_test.c); they differ in speed.
 *
 * A table exists on every machine on which it compiles; its probe says whether this machine can run it. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

#if defined(__x86_64__)
extern const struct kern_backend kern_cpu_avx512_vnni; /* AVX-512 F, BW, VL, DQ and VNNI: Ice Lake, Zen 4 and later */
extern const struct kern_backend kern_cpu_avx2;        /* AVX2, FMA, F16C */
#endif
extern const struct kern_backend kern_cpu_portable; /* plain C; the compiler vectorises over the 16 rows of a tile where the machine has FMA */

#endif
