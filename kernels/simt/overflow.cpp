/* Overflow of signed integers in a .cu: g++ puts a check around each operation (-fsanitize=signed-integer-overflow) and calls these functions of its run-time library, which is not linked,
 * where one fails. Their arguments are the compiler's: where, of what type, and both operands. Unsigned numbers may wrap, as C++ has it; an index that does leads to memory that is not
 * the caller's, see simt_sparse. */
#include <stdio.h>

#include "kernels/simt/engine.h"

namespace {

struct source_location {
    const char *file;
    uint32_t line, column;
};
struct type_description {
    uint16_t kind, info; /* info: the binary logarithm of the width, times two */
    char name[];
};
struct overflow_data {
    source_location at;
    const type_description *type;
};

long long number(const type_description *t, uintptr_t bits) { return t->info >> 1 >= 6 ? (long long)bits : (long long)(int32_t)bits; }

[[noreturn]] void overflowed(const overflow_data *d, const char *operation, uintptr_t a, uintptr_t b) {
    simt::finding("integer overflow: %s: %lld %s %lld as %s at %s:%u", simt::self ? simt::text_of(*simt::self).c_str() : "the host",
                  number(d->type, a), operation, number(d->type, b), d->type->name, d->at.file, d->at.line);
}

} // namespace

extern "C" {
void __ubsan_handle_add_overflow(const overflow_data *d, uintptr_t a, uintptr_t b);
void __ubsan_handle_sub_overflow(const overflow_data *d, uintptr_t a, uintptr_t b);
void __ubsan_handle_mul_overflow(const overflow_data *d, uintptr_t a, uintptr_t b);
void __ubsan_handle_negate_overflow(const overflow_data *d, uintptr_t a);
void __ubsan_handle_divrem_overflow(const overflow_data *d, uintptr_t a, uintptr_t b);

void __ubsan_handle_add_overflow(const overflow_data *d, uintptr_t a, uintptr_t b) { overflowed(d, "+", a, b); }
void __ubsan_handle_sub_overflow(const overflow_data *d, uintptr_t a, uintptr_t b) { overflowed(d, "-", a, b); }
void __ubsan_handle_mul_overflow(const overflow_data *d, uintptr_t a, uintptr_t b) { overflowed(d, "*", a, b); }
void __ubsan_handle_negate_overflow(const overflow_data *d, uintptr_t a) { overflowed(d, "-", 0, a); }
void __ubsan_handle_divrem_overflow(const overflow_data *d, uintptr_t a, uintptr_t b) { overflowed(d, "/", a, b); }
}
