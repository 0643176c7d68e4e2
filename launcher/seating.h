/* Who would sit where on another host: for `tandem topo --hosts`. Nothing is started. */
#ifndef LAUNCHER_SEATING_H
#define LAUNCHER_SEATING_H

#include "launcher/outbox.h"

/* Wire: RT_SEATS, launcher → agent. Back: u32 enum st, then the drawing or the sentence. */
struct launch_seating {
    uint32_t first_rank, n_ranks; /* of that host */
    uint32_t n_threads;           /* of each; 0: as many as there are CPUs for */
    uint32_t is_json;             /* else text */
    char bind[256];               /* as --bind; "": by the topology */
};

enum st launch_seating_tell(const void *order, size_t bytes, struct launch_outbox *out, struct err *e);

#endif
