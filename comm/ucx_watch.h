/* Hosts that have fallen silent, seen in the sockets that UCX has opened. Inside comm/; no UCX.
 *
 * UCX sets keep-alive, which notices a silent host only on an idle connection; while bytes of ours are unacknowledged the kernel repeats them for a quarter of an hour, and that is the
 * usual state of whoever waits in an exchange. (TCP_USER_TIMEOUT would end that, but also connections to a host that lives and whose rank computes for a while with its
 * window closed.) So we ask the kernel, now and then while we sleep, which connections only repeat. */
#ifndef COMM_UCX_WATCH_H
#define COMM_UCX_WATCH_H

#include <stdint.h>

#include "comm/comm.h"

enum { COMM_UCX_MAX_WATCHED = 4 * COMM_MAX_RANKS, COMM_UCX_MAX_DESCRIPTORS = 8192 };

struct ucx_watch {
    uint64_t known[COMM_UCX_MAX_DESCRIPTORS / 64]; /* descriptors that are not UCX's */
    struct ucx_watched {
        int fd;
        char address[64];
        uint64_t stuck_since_ns; /* 0: it is not */
    } sockets[COMM_UCX_MAX_WATCHED];
    int n_sockets;
    uint64_t looked_ns;
};

void comm_ucx_watch_begin(struct ucx_watch *w); /* before UCX opens any */
/* Once all are connected: those of its sockets that lead to one of these addresses. May miss some where descriptors are many. */
void comm_ucx_watch_find(struct ucx_watch *w, const char (*addresses)[64], int n_addresses);
/* Cheap when called often: looks every 250 ms. An address that has acknowledged nothing for some 2 s while bytes were repeated, or NULL. */
const char *comm_ucx_watch_silent(struct ucx_watch *w, uint64_t now_ns);

#endif
