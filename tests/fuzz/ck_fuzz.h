/* What the fuzzers of checkpoints share: opening bytes, and the promises that an opened checkpoint must keep. */
#ifndef TESTS_FUZZ_CK_FUZZ_H
#define TESTS_FUZZ_CK_FUZZ_H

#include <stdlib.h>
#include <string.h>

#include "partition/checkpoint_priv.h"

static volatile uint64_t fuzz_sink __attribute__((unused)); /* so that reads are not optimised away */

static inline bool fuzz_open(enum ck_kind kind, const uint8_t *data, size_t bytes, struct checkpoint **ck) {
    struct err e = {0};
    enum st st = ck_open_memory(kind, data, bytes, ck, &e);
    if (st == ST_OK) return true;
    BASE_ASSERT(st == ST_INVALID || st == ST_UNSUPPORTED);
    BASE_ASSERT(e.text[0]);
    return false;
}

static inline void fuzz_check_tensors(const struct checkpoint *ck, size_t file_bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i < ck_n_tensors(ck); i++) {
        const struct ck_tensor *t = ck_tensor_at(ck, i);
        BASE_ASSERT(ck_find(ck, t->name) == t); /* names are unique and sorted */
        BASE_ASSERT(t->n_dims >= 0 && t->n_dims <= CK_MAX_DIMS);
        BASE_ASSERT(t->offset <= file_bytes && t->bytes <= file_bytes - t->offset);
        sum += t->bytes;
        if (t->unsupported) continue;
        uint64_t n_rows = 1;
        for (int d = 0; d + 1 < t->n_dims; d++) n_rows *= t->dims[d];
        uint64_t n_columns = t->n_dims ? t->dims[t->n_dims - 1] : 1;
        BASE_ASSERT(t->bytes == 0 || kern_format_row_bytes(t->format, n_columns) * n_rows == t->bytes);
        if (t->bytes < 4096) {
            float *values;
            struct err e = {0};
            BASE_ASSERT(ck_read_f32(ck, t, 1u << 20, &values, &e) == ST_OK);
            free(values);
        }
    }
    BASE_ASSERT(sum <= file_bytes); /* none overlap */
}

#endif
