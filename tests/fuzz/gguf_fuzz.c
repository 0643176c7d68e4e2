/* A GGUF file in memory: tensors, and every key with every element of its arrays. */
#include "tests/fuzz/ck_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_pairs(const struct checkpoint *ck) {
    uint64_t sum = 0;
    for (size_t i = 0; i < ck->n_pairs; i++) {
        struct gguf_value v;
        BASE_ASSERT(ck_gguf_get(ck, ck->pairs[i].key, &v));
        if (v.kind == GGUF_STRING)
            for (uint64_t k = 0; k < v.string.bytes; k++) sum += (unsigned char)v.string.data[k];
        if (v.kind != GGUF_ARRAY) continue;
        BASE_ASSERT(v.array.element != GGUF_ARRAY);
        for (uint64_t k = 0; k < v.array.n; k++) {
            if (v.array.element == GGUF_STRING) {
                struct gguf_string s = ck_gguf_array_string(ck, &v, k);
                if (s.bytes) sum += (unsigned char)s.data[0] + (unsigned char)s.data[s.bytes - 1];
            } else if (v.array.element == GGUF_FLOAT) {
                sum += ck_gguf_array_float(ck, &v, k) > 0;
            } else if (v.array.element != GGUF_BOOL) {
                sum += (uint64_t)ck_gguf_array_int(ck, &v, k);
            }
        }
    }
    fuzz_sink = sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct checkpoint *ck;
    if (fuzz_open(CK_GGUF, data, bytes, &ck)) {
        fuzz_check_tensors(ck, bytes);
        check_pairs(ck);
        ck_close(ck);
    }
    return 0;
}
