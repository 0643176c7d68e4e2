/* sysfs, as mlx5 and the RDMA core lay it out:
 *   class/infiniband/DEVICE/sys_image_guid                      one per adapter, the same for all its functions
 *   class/infiniband/DEVICE/ports/PORT/{state,rate}             "4: ACTIVE", "200 Gb/sec (4X HDR)"
 *   class/infiniband/DEVICE/ports/PORT/gid_attrs/ndevs/INDEX    the network interface of a GID (reading an unused one fails)
 *   class/infiniband/DEVICE/device/net/INTERFACE                the same for the whole function, where there is but one port
 *   class/net/INTERFACE/phys_port_name                          "p0": the cage */
#include "comm/ucx_devices.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "comm/comm_priv.h"

enum { MAX_DEVICES = 32, NAME_BYTES = 64, PATH_BYTES = 1024 };

struct device {
    char name[NAME_BYTES], port[8], interface[NAME_BYTES];
    char adapter[NAME_BYTES], rate[NAME_BYTES], cage[NAME_BYTES];
    bool is_active;
};

/* The first line of a file; "" where there is none. */
static void read_line(const char *directory, const char *file, char text[NAME_BYTES]) {
    char path[PATH_BYTES];
    text[0] = 0;
    int n = snprintf(path, sizeof path, "%s/%s", directory, file);
    if (n < 0 || (size_t)n >= sizeof path) return;
    FILE *f = fopen(path, "re");
    if (!f) return;
    if (!fgets(text, NAME_BYTES, f)) text[0] = 0;
    fclose(f);
    text[strcspn(text, "\n")] = 0;
}

static bool has_gid_of(const char *port_directory, const char *interface) {
    char path[PATH_BYTES], text[NAME_BYTES];
    int n = snprintf(path, sizeof path, "%s/gid_attrs/ndevs", port_directory);
    if (n < 0 || (size_t)n >= sizeof path) return false;
    DIR *dir = opendir(path);
    if (!dir) return false;
    bool found = false;
    for (const struct dirent *d; !found && (d = readdir(dir));) {
        if (d->d_name[0] == '.') continue;
        read_line(path, d->d_name, text);
        found = strcmp(text, interface) == 0;
    }
    closedir(dir);
    return found;
}

/* The interface of a device's port, by asking each interface there is whether it belongs to it. */
static void find_interface(const char *sysfs, const char *device_directory, const char *port_directory, char interface[NAME_BYTES]) {
    char path[PATH_BYTES];
    interface[0] = 0;
    snprintf(path, sizeof path, "%s/class/net", sysfs);
    DIR *dir = opendir(path);
    if (!dir) return;
    for (const struct dirent *d; (d = readdir(dir));) {
        if (d->d_name[0] == '.' || strlen(d->d_name) >= NAME_BYTES) continue;
        int n = snprintf(path, sizeof path, "%s/device/net/%s", device_directory, d->d_name);
        if (!has_gid_of(port_directory, d->d_name) && (n < 0 || (size_t)n >= sizeof path || access(path, F_OK) != 0)) continue;
        strcpy(interface, d->d_name);
        break;
    }
    closedir(dir);
}

static int list_devices(const char *sysfs, struct device devices[MAX_DEVICES]) {
    char root[PATH_BYTES / 4], directory[PATH_BYTES / 2], ports[PATH_BYTES / 2 + 8], port[PATH_BYTES];
    int n = 0;
    snprintf(root, sizeof root, "%s/class/infiniband", sysfs);
    DIR *dir = opendir(root);
    if (!dir) return 0;
    for (const struct dirent *d; n < MAX_DEVICES && (d = readdir(dir));) {
        if (d->d_name[0] == '.' || strlen(d->d_name) >= NAME_BYTES) continue;
        snprintf(directory, sizeof directory, "%s/%s", root, d->d_name);
        snprintf(ports, sizeof ports, "%s/ports", directory);
        DIR *port_dir = opendir(ports);
        if (!port_dir) continue;
        for (const struct dirent *p; n < MAX_DEVICES && (p = readdir(port_dir));) {
            struct device *found = &devices[n];
            if (p->d_name[0] == '.' || strlen(p->d_name) >= sizeof found->port) continue;
            *found = (struct device){0};
            strcpy(found->name, d->d_name);
            strcpy(found->port, p->d_name);
            snprintf(port, sizeof port, "%s/%s", ports, found->port);
            find_interface(sysfs, directory, port, found->interface);
            read_line(directory, "sys_image_guid", found->adapter);
            read_line(port, "rate", found->rate);
            char state[NAME_BYTES];
            read_line(port, "state", state);
            found->is_active = strstr(state, "ACTIVE") != NULL;
            if (found->interface[0]) {
                snprintf(port, sizeof port, "%s/class/net/%s", sysfs, found->interface);
                read_line(port, "phys_port_name", found->cage);
            }
            n++;
        }
        closedir(port_dir);
    }
    closedir(dir);
    return n;
}

static bool are_twins(const struct device *a, const struct device *b) {
    return a->adapter[0] && a->cage[0] && b->interface[0] && b->is_active && strcmp(a->adapter, b->adapter) == 0 && strcmp(a->cage, b->cage) == 0 &&
           strcmp(a->rate, b->rate) == 0;
}

static void add_name(struct ucx_devices *found, const struct device *d) {
    size_t at = strlen(found->names);
    int n = snprintf(found->names + at, sizeof found->names - at, "%s%s:%s", at ? "," : "", d->name, d->port);
    if (n < 0 || (size_t)n >= sizeof found->names - at)
        found->names[at] = 0; /* too many rails to name: those before will do */
    else
        found->n_rails++;
}

enum st comm_ucx_devices_of(const char *interface, const char *sysfs, struct ucx_devices *found, struct err *e) {
    struct ucx_devices out = {.n_rails = 0};
    if (strlen(interface) >= NAME_BYTES) return err_set(e, ST_INVALID, "ucx: no interface is called %.100s", interface);
    struct device devices[MAX_DEVICES];
    int n = list_devices(sysfs, devices), own = -1;
    for (int i = 0; i < n && own < 0; i++)
        if (devices[i].is_active && strcmp(devices[i].interface, interface) == 0) own = i;
    if (own >= 0) {
        out.is_rdma = true;
        add_name(&out, &devices[own]); /* the launcher's choice comes first */
        for (int i = 0; i < n; i++)
            if (i != own && are_twins(&devices[own], &devices[i])) add_name(&out, &devices[i]);
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
