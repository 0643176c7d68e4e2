/* Three ranks that write anything: every line of the input goes to the rank that its first byte names ('0' … '2'), in pieces; a lone '!' hangs the rank up. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "launcher/pmi.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { N_RANKS = 3 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct launch_pmi *s;
    struct err e;
    if (launch_pmi_create(N_RANKS, NULL, &s, &e) != ST_OK) return 0;
    int waiting = 0;
    for (size_t at = 0; at < bytes;) {
        const uint8_t *end = memchr(data + at, '\n', bytes - at);
        size_t n = end ? (size_t)(end - data) - at + 1 : bytes - at;
        int rank = data[at] % N_RANKS;
        size_t half = n / 2 ? n / 2 : 1;
        if (n == 3 && data[at + 1] == '!') launch_pmi_hang_up(s, rank);
        (void)launch_pmi_feed(s, rank, data + at + 1, half - 1, &e);
        (void)launch_pmi_feed(s, rank, data + at + half, n - half, &e);
        at += n;
        /* Not every rank reads at once; nobody's answers may be without end. */
        for (int r = 0; r < N_RANKS; r++) {
            const void *out;
            size_t pending = launch_pmi_pending(s, r, &out);
            if (pending && ((const char *)out)[0] != 'c') __builtin_trap();
            if (pending > 65536) __builtin_trap();
            if (at % 3 != (size_t)r) launch_pmi_sent(s, r, pending);
        }
    }
    waiting = 0;
    for (int r = 0; r < N_RANKS; r++) waiting += launch_pmi_query(s, r) == LAUNCH_PMI_WAITS;
    if (waiting == N_RANKS) __builtin_trap(); /* a barrier that all are in is over */
    launch_pmi_destroy(s);
    return 0;
}
