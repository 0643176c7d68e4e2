/* What simt_host.h promises, for programs of the harness's objects that are linked with nvcc's kernels and CUDA's own runtime instead (make cuda-self-test). */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/simt/runtime.h"
#include "kernels/simt/simt_host.h"

namespace simt {
[[noreturn]] void finding(const char *format, ...) __attribute__((format(printf, 1, 2)));
void finding(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("tandem cuda: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(4);
}
} // namespace simt

int simt_is_emulated(void) { return 0; }

const char *simt_catch(void (*fn)(void *), void *arg, uint64_t) {
    fn(arg);
    const cudaError_t e = cudaDeviceSynchronize();
    return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

int simt_set_accumulation(const char *) { return 0; }
void simt_set_check(int) {}
void simt_name(const void *, const char *) {}

/* For tests that skip where nothing is emulated. */
int simt_set_device(const char *) { return -1; }
void simt_counts_start(void) {}
const char *simt_counts_json(void) { return ""; }
