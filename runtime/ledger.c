#include "runtime/ledger.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

static void put(char **at, char *end, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void put(char **at, char *end, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(*at, (size_t)(end - *at), format, args);
    va_end(args);
    if (n > 0)
        *at = n < end - *at ? *at + n : end - 1;
}

int rt_ledger_print(const struct rt_ledger *l, int rank, char *to, int capacity)
{
    char *at = to, *end = to + capacity;
    *at = 0;
    const double steps = l->n_steps ? (double)l->n_steps : 1, total = l->step_ns ? (double)l->step_ns : 1;
    put(&at, end, "rank %d: %" PRIu64 " steps, %" PRIu64 " tokens, %.3f ms a step\n", rank, l->n_steps, l->n_tokens, (double)l->step_ns / steps / 1e6);
    put(&at, end, "  %-12s %10s %12s %7s\n", "step", "calls", "us a step", "share");
    uint64_t sum = 0;
    for (int op = 0; op < RT_LEDGER_OPS; op++)
        if (l->op_calls[op]) {
            put(&at, end, "  %-12s %10" PRIu64 " %12.1f %6.1f%%\n", part_op_name((enum part_op)op), l->op_calls[op], (double)l->op_ns[op] / steps / 1e3, 100.0 * (double)l->op_ns[op] / total);
            sum += l->op_ns[op];
        }
    put(&at, end, "  %-12s %10s %12.1f %6.1f%%\n", "other", "", ((double)l->step_ns - (double)sum) / steps / 1e3, 100.0 * (1 - (double)sum / total));
    put(&at, end, "  weights read %.1f MB a step, %.2f GB/s; sent %.1f KB a step\n", (double)l->weight_bytes / steps / 1e6, (double)l->weight_bytes / total, (double)l->exchange_bytes / steps / 1e3);
    return (int)(at - to);
}
