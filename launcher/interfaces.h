/* The network interfaces of one host, as they are found there and told to the launcher.
 *
 * read (on each host, in the network namespace of the caller) → to_json → wire → from_json (by the launcher, which then decides: decide.h). Plain data; no handles, nothing to
 * release. What comes from another host is foreign input: from_json checks every field, and what it takes can be printed on a terminal and put into an environment variable.
 * Interfaces that talk only for another one (ports of bridges, slaves of bonds) are left out; so are addresses that the kernel does not trust yet, or does not prefer. */
#ifndef LAUNCHER_INTERFACES_H
#define LAUNCHER_INTERFACES_H

#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define LAUNCH_MAX_INTERFACES 64
#define LAUNCH_MAX_ADDRESSES 8 /* of an interface */
#define LAUNCH_MAX_RDMA 32
#define LAUNCH_ADDRESS_TEXT 64 /* "fe80::1%enp1s0f0np0" */

/* What an interface is made of: the best first. */
enum launch_medium {
    LAUNCH_WIRE,     /* a device of its own, or a bond, VLAN or bridge above one */
    LAUNCH_WIRELESS, /* also what lies above one */
    LAUNCH_VIRTUAL,  /* veth, tunnels, bridges of containers */
    LAUNCH_LOOPBACK
};
const char *launch_medium_name(enum launch_medium medium);

struct launch_address {
    int family;        /* AF_INET, AF_INET6 */
    uint8_t bytes[16]; /* network order; IPv4: the first four */
    int prefix;        /* bits of the subnet */
    int gid_index;     /* RoCE v2, of the interface's RDMA port; −1: none */
};
bool launch_address_is_link_local(const struct launch_address *a); /* of IPv6 */
bool launch_address_equal(const struct launch_address *a, const struct launch_address *b);
/* Memory order: the same on all hosts. */
int launch_address_compare(const struct launch_address *a, const struct launch_address *b);
/* One contains the other; link-local ones always share a subnet. */
bool launch_address_share_subnet(const struct launch_address *a, const struct launch_address *b);
/* "10.0.0.1"; with an interface's name link-local ones get their scope: "fe80::1%eth0", which getaddrinfo and comm_setup.address take on that host. */
const char *launch_address_text(const struct launch_address *a, const char *interface, char text[LAUNCH_ADDRESS_TEXT]);
/* Numeric, of one host (no group, no zero), without a scope; prefix and gid_index are left alone. */
bool launch_address_parse(const char *text, struct launch_address *a);
/* For bind and connect; index: the interface's, on this host, for link-local ones. Returns its length. */
socklen_t launch_address_socket(const struct launch_address *a, int index, int port, struct sockaddr_storage *s);

struct launch_interface {
    char name[IF_NAMESIZE];
    int index;
    enum launch_medium medium;
    bool is_up, has_carrier;
    int mtu;            /* bytes of an IP packet */
    int64_t speed_mbit; /* −1: unknown */
    char cage[32];      /* phys_port_name: "p0" */
    char switch_id[64]; /* phys_switch_id */
    char pci[32];       /* "0000:01:00.0" */
    int n_addresses;
    struct launch_address addresses[LAUNCH_MAX_ADDRESSES];
};

struct launch_rdma {
    char device[32]; /* "rocep1s0f0" */
    int port;
    char interface[IF_NAMESIZE]; /* "": none */
    char adapter[32];            /* sys_image_guid */
    char cage[32];
    char state[32]; /* "ACTIVE", "DOWN" */
    bool is_active, is_infiniband;
    double gbit;       /* of the port; 0: unknown */
    char problem[128]; /* why this process cannot use it, with the repair; "" */
};

struct launch_interfaces {
    char machine[64];      /* boot id: the same for all namespaces of a machine; "" unknown */
    uint64_t namespace_id; /* of the network namespace; 0: unknown */
    char rdma_problem[160]; /* why no RDMA device at all can be used although there are some: a library is missing; "" */
    int n;
    struct launch_interface list[LAUNCH_MAX_INTERFACES]; /* by index */
    int n_rdma;
    struct launch_rdma rdma[LAUNCH_MAX_RDMA]; /* by device and port */
};

/* sysfs_root NULL: this host, as the calling thread sees it. Else a captured tree: class/net, class/infiniband as under /sys, and a file `addresses` with lines
 * "enp1s0f0np0 10.0.0.1/24". Down interfaces are told only where they have an RDMA port. Where there are more than fit, the virtual ones are left out first. */
enum st launch_interfaces_read(const char *sysfs_root, struct launch_interfaces *out, struct err *e);

/* Caller frees; NULL: no memory. */
char *launch_interfaces_to_json(const struct launch_interfaces *in);
#define LAUNCH_INTERFACES_MAX_JSON (256 * 1024)
/* where names the source in errors. */
enum st launch_interfaces_from_json(const char *where, const char *text, size_t bytes, struct launch_interfaces *out, struct err *e);

const struct launch_interface *launch_interface_find(const struct launch_interfaces *in, const char *name); /* NULL: none */
const struct launch_address *launch_interface_address(const struct launch_interface *i, const struct launch_address *a); /* its own record of an equal one; NULL: none */
const struct launch_rdma *launch_interface_rdma(const struct launch_interfaces *in, const char *name);      /* the port that belongs to it; NULL: none */
/* Functions of one adapter that serve the same cage. An interface is no twin of itself. */
bool launch_interface_are_twins(const struct launch_interfaces *in, const char *a, const char *b);
bool launch_interfaces_same_machine(const struct launch_interfaces *a, const struct launch_interfaces *b); /* and namespace */

/* Bytes that an interface of the calling thread's namespace has sent and received so far (/proc/thread-self/net/dev); RDMA does not count. */
enum st launch_interface_counters(const char *name, uint64_t *tx_bytes, uint64_t *rx_bytes, struct err *e);

#endif
