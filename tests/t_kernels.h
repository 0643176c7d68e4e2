/* For the conformance suites of kernels/: which backends take part. */
#ifndef TESTS_T_KERNELS_H
#define TESTS_T_KERNELS_H

#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* Every one that this machine can run; TANDEM_TEST_KERNELS="avx2" restricts a run by hand to one variant. */
static inline bool t_kernels_on(const struct kern_backend *b) {
    const char *only = getenv("TANDEM_TEST_KERNELS");
    return b->probe() && (!only || strcmp(only, b->variant) == 0);
}

#endif
