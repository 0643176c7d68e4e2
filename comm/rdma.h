/* The RDMA ports of a host, and which network interfaces they belong to. Plain reading of sysfs: no verbs, nothing is opened. Any thread.
 * For UCX's devices (comm/ucx_devices.c) and for the launcher, which finds out which interfaces of two hosts face each other. */
#ifndef COMM_RDMA_H
#define COMM_RDMA_H

#include <stdbool.h>
#include <stdint.h>

#define COMM_RDMA_MAX_PORTS 32
#define COMM_RDMA_MAX_GIDS 64
#define COMM_RDMA_TEXT 64

struct comm_rdma_port {
    char device[COMM_RDMA_TEXT], port[8]; /* "rocep1s0f0", "1" */
    char interface[COMM_RDMA_TEXT];       /* "": none */
    char adapter[COMM_RDMA_TEXT];         /* sys_image_guid: the same for all functions of an adapter */
    char cage[COMM_RDMA_TEXT];            /* phys_port_name of the interface: "p0" */
    char rate[COMM_RDMA_TEXT];            /* "200 Gb/sec (4X HDR)" */
    char state[COMM_RDMA_TEXT];           /* "4: ACTIVE" */
    bool is_active, is_infiniband;        /* the latter: not Ethernet */
};

/* At most capacity of them; how many. sysfs: "/sys", or a test's. */
int comm_rdma_list(const char *sysfs, struct comm_rdma_port *ports, int capacity);

/* Functions of the same adapter that serve the same cage at the same rate; b is up. One function may have only half of the cable's bandwidth. */
bool comm_rdma_are_twins(const struct comm_rdma_port *a, const struct comm_rdma_port *b);

/* What a port may call itself on the wire. An index is found by what it stands for, never remembered: it differs between devices and drifts. */
struct comm_rdma_gid {
    int index;
    uint8_t address[16];            /* IPv4 as ::ffff:a.b.c.d */
    bool is_v2;                     /* RoCE v2: routable, by UDP */
    char interface[COMM_RDMA_TEXT]; /* "": not told */
};
int comm_rdma_gids(const char *sysfs, const struct comm_rdma_port *port, struct comm_rdma_gid *gids, int capacity);

#endif
