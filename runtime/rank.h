/* One rank's life: plan, hello, load, serve steps until told to stop.
 *
 * Called as the body of a process (tandem rank …), or of a thread (one rank in the launcher's own process; several in tests). It neither exits nor prints. */
#ifndef RUNTIME_RANK_H
#define RUNTIME_RANK_H

#include "comm/comm.h"
#include "runtime/protocol.h"
#include "runtime/settings.h"
#include "runtime/vitals.h"

struct rt_rank_options {
    const char *model; /* path, as ck_open takes it */
    int rank, n_ranks;
    const uint32_t *shares; /* NULL: equal */
    struct rt_settings settings;
    int front_fd;       /* rank 0: the socket to the front end; others −1 */
    const char *backend;          /* of comm; NULL: the best that fits */
    const char *address;          /* this host's, towards the others; NULL: there are none */
    const char *streams;          /* as comm_setup has them; NULL: one connection of each pair */
    const char *pair;             /* of comm_tune */
    int port;                     /* at which this rank listens; 0: any */
    const uint8_t *key;           /* [COMM_KEY_BYTES] the job's; NULL: there is none */
    const struct comm_boot *boot; /* NULL: none is needed */
    const struct comm_link *link; /* emulated; NULL: none */
    const int *numa;              /* [n_numa] nodes that memory shall come from */
    int n_numa;
    int first_here, n_here; /* ranks of this host, where there are several; 0, 0: all */
    int memory_fd;      /* comm's shared segment, of this host's ranks; −1 where memory is given or n_ranks is 1 */
    void *memory;
    struct rt_vitals *vitals; /* [n_ranks] of this host; each rank writes its own row; NULL: nobody watches */
};

/* ST_OK after RT_STOP. A front end that goes away is ST_CANCELLED. */
enum st rt_rank_run(const struct rt_rank_options *options, struct err *e);

#endif
