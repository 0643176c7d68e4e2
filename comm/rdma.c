/* sysfs, as mlx5 and the RDMA core lay it out:
 *   class/infiniband/DEVICE/sys_image_guid                      one per adapter, the same for all its functions
 *   class/infiniband/DEVICE/ports/PORT/{state,rate,link_layer}  "4: ACTIVE", "200 Gb/sec (4X HDR)", "Ethernet"
 *   class/infiniband/DEVICE/ports/PORT/gids/INDEX               "0000:0000:0000:0000:0000:ffff:0a00:0001"; unused ones are all zero
 *   class/infiniband/DEVICE/ports/PORT/gid_attrs/ndevs/INDEX    the network interface of a GID (reading an unused one fails)
 *   class/infiniband/DEVICE/ports/PORT/gid_attrs/types/INDEX    "RoCE v2", "IB/RoCE v1"
 *   class/infiniband/DEVICE/device/net/INTERFACE                the same for the whole function, where there is but one port
 *   class/net/INTERFACE/phys_port_name                          "p0": the cage */
#include "comm/rdma.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAME_BYTES = COMM_RDMA_TEXT, PATH_BYTES = 1024 };

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

int comm_rdma_list(const char *sysfs, struct comm_rdma_port *list, int capacity) {
    char root[PATH_BYTES / 4], directory[PATH_BYTES / 2], ports[PATH_BYTES / 2 + 8], port[PATH_BYTES];
    int n = 0;
    snprintf(root, sizeof root, "%s/class/infiniband", sysfs);
    DIR *dir = opendir(root);
    if (!dir) return 0;
    for (const struct dirent *d; n < capacity && (d = readdir(dir));) {
        if (d->d_name[0] == '.' || strlen(d->d_name) >= NAME_BYTES) continue;
        snprintf(directory, sizeof directory, "%s/%s", root, d->d_name);
        snprintf(ports, sizeof ports, "%s/ports", directory);
        DIR *port_dir = opendir(ports);
        if (!port_dir) continue;
        for (const struct dirent *p; n < capacity && (p = readdir(port_dir));) {
            struct comm_rdma_port *found = &list[n];
            if (p->d_name[0] == '.' || strlen(p->d_name) >= sizeof found->port) continue;
            *found = (struct comm_rdma_port){.is_active = false};
            strcpy(found->device, d->d_name);
            strcpy(found->port, p->d_name);
            snprintf(port, sizeof port, "%s/%s", ports, found->port);
            find_interface(sysfs, directory, port, found->interface);
            read_line(directory, "sys_image_guid", found->adapter);
            read_line(port, "rate", found->rate);
            read_line(port, "state", found->state);
            found->is_active = strstr(found->state, "ACTIVE") != NULL;
            char layer[NAME_BYTES];
            read_line(port, "link_layer", layer);
            found->is_infiniband = strcmp(layer, "InfiniBand") == 0;
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

bool comm_rdma_are_twins(const struct comm_rdma_port *a, const struct comm_rdma_port *b) {
    return a->adapter[0] && a->cage[0] && b->interface[0] && b->is_active && strcmp(a->adapter, b->adapter) == 0 && strcmp(a->cage, b->cage) == 0 &&
           strcmp(a->rate, b->rate) == 0;
}

/* "fe80:0000:…": eight groups of four digits. */
static bool parse_gid(const char *text, uint8_t bytes[16]) {
    bool any = false;
    for (int i = 0; i < 8; i++) {
        char *end;
        unsigned long group = strtoul(text, &end, 16);
        if (end - text != 4 || *end != (i < 7 ? ':' : 0)) return false;
        bytes[2 * i] = (uint8_t)(group >> 8);
        bytes[2 * i + 1] = (uint8_t)group;
        any = any || group;
        text = end + 1;
    }
    return any;
}

int comm_rdma_gids(const char *sysfs, const struct comm_rdma_port *port, struct comm_rdma_gid *gids, int capacity) {
    char root[PATH_BYTES / 2], path[PATH_BYTES], index[16], text[NAME_BYTES];
    int n = 0;
    snprintf(root, sizeof root, "%.200s/class/infiniband/%s/ports/%s", sysfs, port->device, port->port);
    /* Tables have up to 256 entries; those in use lie at the beginning, with gaps. */
    for (int i = 0; i < 256 && n < capacity; i++) {
        snprintf(index, sizeof index, "%d", i);
        snprintf(path, sizeof path, "%s/gids", root);
        read_line(path, index, text);
        struct comm_rdma_gid g = {.index = i};
        if (!parse_gid(text, g.address)) continue;
        snprintf(path, sizeof path, "%s/gid_attrs/types", root);
        read_line(path, index, text);
        g.is_v2 = strcmp(text, "RoCE v2") == 0;
        snprintf(path, sizeof path, "%s/gid_attrs/ndevs", root);
        read_line(path, index, g.interface);
        gids[n++] = g;
    }
    return n;
}
