/* A safetensors file in memory. What is accepted must keep the promises of partition/checkpoint.h; everything that a user may ask of it is asked. */
#include "tests/fuzz/ck_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct checkpoint *ck;
    if (fuzz_open(CK_SAFETENSORS, data, bytes, &ck)) {
        fuzz_check_tensors(ck, bytes);
        ck_close(ck);
    }
    return 0;
}
