/* A kernel's launch bounds. A function's type has no place for __launch_bounds__(n), and where it stands in a declaration only an attribute may: on_cpu.h makes it patchable_function_entry(n, n).
 * That puts n no-operations, which nobody runs, in front of the function, and where they begin into a section, for programs that would patch them. The distance is the bound. */
#include "kernels/simt/engine.h"

/* The linker's names for this program's section, or this library's; NULL if there is none. */
extern "C" {
extern const uintptr_t __start___patchable_function_entries[] __attribute__((weak, visibility("hidden")));
extern const uintptr_t __stop___patchable_function_entries[] __attribute__((weak, visibility("hidden")));
}

namespace simt {

#ifdef __aarch64__
typedef uint32_t instruction;
constexpr instruction nop = 0xd503201f;
#else
typedef uint8_t instruction;
constexpr instruction nop = 0x90;
#endif

uint32_t launch_bounds(const void *function) {
    const auto *end = (const instruction *)function;
    for (const uintptr_t *entry = __start___patchable_function_entries; entry < __stop___patchable_function_entries; entry++) {
        const auto *begin = (const instruction *)*entry, *i = begin;
        if (begin >= end || end - begin > threads_limit) continue;
        while (i < end && *i == nop) /* else it is another function's, which lies before this one */
            i++;
        if (i == end) return (uint32_t)(end - begin);
    }
    return threads_limit;
}

} // namespace simt
