/* From the address that the launcher decided to the devices that UCX may use. Inside comm/; plain reading of files, no UCX. */
#ifndef COMM_UCX_DEVICES_H
#define COMM_UCX_DEVICES_H

#include <stdbool.h>

#include "base/status.h"

struct ucx_devices {
    char names[256]; /* for UCX_NET_DEVICES: "rocep1s0f0:1,roceP2p1s0f0:1" or "eth0" */
    bool is_rdma;
    bool is_v6; /* of the address */
    int n_rails;
};

/* address: numeric, NULL or loopback's: "lo". sysfs: "/sys", or a test's. An RDMA device is taken where one belongs to the interface that has the address, and with it its twins:
 * functions of the same adapter (sys_image_guid) that serve the same cage (phys_port_name) at the same rate and are up, since one function may have only half of the cable's
 * bandwidth. No other interface is ever named. ST_INVALID: no numeric address; ST_NOT_FOUND: no interface has it. */
enum st comm_ucx_devices(const char *address, const char *sysfs, struct ucx_devices *found, struct err *e);
/* The second half of it, for tests: interface is where the address is. */
enum st comm_ucx_devices_of(const char *interface, const char *sysfs, struct ucx_devices *found, struct err *e);

#endif
