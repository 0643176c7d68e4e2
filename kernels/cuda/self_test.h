/* Does each instruction do what its emulation on the CPU does? A kernel for each, which compares the instruction's result with its definition written out; run by the harness's test,
 * and on a GPU by `make cuda-self-test`. All numbers are such that every order of sums and every way of cutting off gives the same. */
#ifndef KERNELS_CUDA_SELF_TEST_H
#define KERNELS_CUDA_SELF_TEST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_self_test {
    const char *name;
    int needs; /* the least compute capability, × 10; 120: exactly 12.x, in code made for that very GPU */
    int (*launch)(uint32_t *bad, void *stream); /* bad [32], device memory: how many wrong results each lane has */
};
extern const struct cuda_self_test cuda_self_tests[]; /* until name is NULL */

#ifdef __cplusplus
}
#endif
#endif
