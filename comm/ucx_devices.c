/* The interface that has an address, and the RDMA ports that belong to it (comm/rdma.c). */
#include "comm/ucx_devices.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#include "comm/rdma.h"

enum { NAME_BYTES = 64 };

static void add_name(struct ucx_devices *found, const struct comm_rdma_port *d) {
    size_t at = strlen(found->names);
    int n = snprintf(found->names + at, sizeof found->names - at, "%s%s:%s", at ? "," : "", d->device, d->port);
    if (n < 0 || (size_t)n >= sizeof found->names - at)
        found->names[at] = 0; /* too many rails to name: those before will do */
    else
        found->n_rails++;
}

enum st comm_ucx_devices_of(const char *interface, const char *sysfs, struct ucx_devices *found, struct err *e) {
    struct ucx_devices out = {.n_rails = 0};
    if (strlen(interface) >= NAME_BYTES) return err_set(e, ST_INVALID, "ucx: no interface is called %.100s", interface);
    struct comm_rdma_port devices[COMM_RDMA_MAX_PORTS];
    int n = comm_rdma_list(sysfs, devices, COMM_RDMA_MAX_PORTS), own = -1;
    for (int i = 0; i < n && own < 0; i++)
        if (devices[i].is_active && strcmp(devices[i].interface, interface) == 0) own = i;
    if (own >= 0) {
        out.is_rdma = true;
        add_name(&out, &devices[own]); /* the launcher's choice comes first */
        for (int i = 0; i < n; i++)
            if (i != own && comm_rdma_are_twins(&devices[own], &devices[i])) add_name(&out, &devices[i]);
    } else {
        snprintf(out.names, sizeof out.names, "%s", interface);
        out.n_rails = 1;
    }
    *found = out;
    return ST_OK;
}

enum st comm_ucx_devices(const char *address, const char *sysfs, struct ucx_devices *found, struct err *e) {
    unsigned char wanted[sizeof(struct in6_addr)];
    int family = AF_INET;
    char bare[NAME_BYTES];
    snprintf(bare, sizeof bare, "%.60s", address ? address : "127.0.0.1");
    bare[strcspn(bare, "%")] = 0; /* fe80::1%eth0 */
    if (inet_pton(AF_INET, bare, wanted) != 1) {
        family = AF_INET6;
        if (inet_pton(AF_INET6, bare, wanted) != 1) return err_set(e, ST_INVALID, "ucx: %.100s is no numeric address", address);
    }
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) != 0) return err_set(e, ST_IO, "ucx: the list of network interfaces cannot be read");
    char interface[IF_NAMESIZE] = "";
    for (const struct ifaddrs *i = list; i && !interface[0]; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != family) continue;
        bool equal = family == AF_INET ? memcmp(&((const struct sockaddr_in *)(const void *)i->ifa_addr)->sin_addr, wanted, 4) == 0
                                       : memcmp(&((const struct sockaddr_in6 *)(const void *)i->ifa_addr)->sin6_addr, wanted, 16) == 0;
        if (equal) snprintf(interface, sizeof interface, "%s", i->ifa_name);
    }
    freeifaddrs(list);
    if (!interface[0]) return err_set(e, ST_NOT_FOUND, "ucx: no network interface has the address %s", bare);
    interface[strcspn(interface, ":")] = 0; /* an alias is the interface's second name */
    enum st code = comm_ucx_devices_of(interface, sysfs, found, e);
    if (code == ST_OK) found->is_v6 = family == AF_INET6;
    return code;
}
