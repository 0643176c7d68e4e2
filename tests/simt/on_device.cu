/* For the owner of a GPU: are the instructions what the emulation takes them for? Prints one line a test; exit status 1 if one fails, 77 if there is no GPU. `make cuda-self-test` */
#include <stdio.h>

#include "kernels/cuda/self_test.h"
#include "kernels/simt/simt.h"

int main() {
    int n = 0, major = 0, minor = 0, n_passed = 0, n_failed = 0, n_skipped = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n < 1) {
        printf("no GPU: %s\n0 passed, 0 failed, 0 skipped\n", e != cudaSuccess ? cudaGetErrorString(e) : "none found");
        return 77;
    }
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    int has = major * 10 + minor;
    for (const struct cuda_self_test *t = cuda_self_tests; t->name; t++) {
        if (has < t->needs || (t->needs == 120 && major != 12)) {
            printf("skipped  %s: compute capability %d.%d\n", t->name, major, minor);
            n_skipped++;
            continue;
        }
        uint32_t *bad = nullptr, got[32], sum = 0;
        e = cudaMalloc((void **)&bad, sizeof got);
        if (e == cudaSuccess)
            e = (cudaError_t)t->launch(bad, nullptr);
        if (e == cudaSuccess)
            e = cudaMemcpy(got, bad, sizeof got, cudaMemcpyDeviceToHost);
        for (int i = 0; i < 32 && e == cudaSuccess; i++)
            sum += got[i];
        printf("%s  %s%s%s\n", e == cudaSuccess && sum == 0 ? "ok     " : "FAILED ", t->name, e == cudaSuccess ? "" : ": ", e == cudaSuccess ? "" : cudaGetErrorString(e));
        (e == cudaSuccess && sum == 0 ? n_passed : n_failed)++;
        if (e != cudaSuccess) /* the context is gone */
            break;
        cudaFree(bad);
    }
    printf("%d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed > 0;
}
