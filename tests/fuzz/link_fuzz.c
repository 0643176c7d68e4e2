#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "comm/comm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* What is read can be printed, and is then read as the same. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *text = malloc(bytes + 1);
    if (!text) return 0;
    memcpy(text, data, bytes);
    text[bytes] = 0;
    struct comm_link link = {0}, again = {0};
    struct err e = {0};
    if (comm_link_parse(text, &link, &e) == ST_OK) {
        char printed[128];
        comm_link_print(&link, printed);
        BASE_ASSERT(comm_link_parse(printed, &again, &e) == ST_OK);
        BASE_ASSERT(again.bits_per_s == link.bits_per_s && again.delay_ns == link.delay_ns && again.jitter_ns == link.jitter_ns &&
                    again.seed == link.seed);
        BASE_ASSERT(link.bits_per_s == 0 || (link.bits_per_s >= 1 && link.bits_per_s <= 1e15));
    } else {
        BASE_ASSERT(e.text[0]);
    }
    free(text);
    return 0;
}
