/* sysfs under class/net/NAME: device (a link, where hardware is behind it), wireless or phy80211, lower_* (what it lies upon), brport and bonding_slave (it talks for another),
 * carrier, speed, mtu, ifindex, phys_port_name, phys_switch_id. sysfs shows the namespace in which it was mounted, so an entry is believed only where its ifindex is that of ours. */
#include "launcher/interfaces.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <ifaddrs.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "comm/rdma.h"

enum { MAX_FOUND = 512, PATH_BYTES = 512, MAX_DEPTH = 4 };

/* ---- addresses ------------------------------------------------------------------------------------------------------------------------------------------------ */

const char *launch_medium_name(enum launch_medium medium)
{
    static const char *const names[] = {"wire", "wireless", "virtual", "loopback"};
    return (unsigned)medium < 4 ? names[medium] : "?";
}

static int address_bytes(const struct launch_address *a) { return a->family == AF_INET6 ? 16 : 4; }

bool launch_address_is_link_local(const struct launch_address *a) { return a->family == AF_INET6 && a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80; }

int launch_address_compare(const struct launch_address *a, const struct launch_address *b)
{
    if (a->family != b->family)
        return a->family == AF_INET ? -1 : 1;
    return memcmp(a->bytes, b->bytes, (size_t)address_bytes(a));
}

bool launch_address_equal(const struct launch_address *a, const struct launch_address *b) { return launch_address_compare(a, b) == 0; }

bool launch_address_share_subnet(const struct launch_address *a, const struct launch_address *b)
{
    if (a->family != b->family || launch_address_is_link_local(a) != launch_address_is_link_local(b))
        return false;
    const int bits = a->prefix < b->prefix ? a->prefix : b->prefix;
    if (memcmp(a->bytes, b->bytes, (size_t)bits / 8) != 0)
        return false;
    return bits % 8 == 0 || (a->bytes[bits / 8] ^ b->bytes[bits / 8]) >> (8 - bits % 8) == 0;
}

const char *launch_address_text(const struct launch_address *a, const char *interface, char text[LAUNCH_ADDRESS_TEXT])
{
    char bare[INET6_ADDRSTRLEN] = "?";
    inet_ntop(a->family, a->bytes, bare, sizeof bare);
    const bool scoped = interface && launch_address_is_link_local(a);
    snprintf(text, LAUNCH_ADDRESS_TEXT, "%s%s%s", bare, scoped ? "%" : "", scoped ? interface : "");
    return text;
}

bool launch_address_parse(const char *text, struct launch_address *a)
{
    uint8_t bytes[16] = {0};
    const int family = strchr(text, ':') ? AF_INET6 : AF_INET;
    static const uint8_t zero[16];
    if (inet_pton(family, text, bytes) != 1 || memcmp(bytes, zero, sizeof zero) == 0)
        return false;
    if (family == AF_INET ? bytes[0] >= 224 : bytes[0] == 0xff) /* groups, broadcast */
        return false;
    a->family = family;
    memcpy(a->bytes, bytes, sizeof bytes);
    return true;
}

socklen_t launch_address_socket(const struct launch_address *a, int index, int port, struct sockaddr_storage *s)
{
    memset(s, 0, sizeof *s);
    if (a->family == AF_INET) {
        struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        memcpy(&v4.sin_addr, a->bytes, 4);
        memcpy(s, &v4, sizeof v4);
        return sizeof v4;
    }
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    memcpy(&v6.sin6_addr, a->bytes, 16);
    v6.sin6_scope_id = launch_address_is_link_local(a) ? (uint32_t)index : 0;
    memcpy(s, &v6, sizeof v6);
    return sizeof v6;
}

/* ---- what sysfs says ------------------------------------------------------------------------------------------------------------------------------------------ */

static bool is_there(const char *directory, const char *file)
{
    char path[PATH_BYTES];
    const int n = snprintf(path, sizeof path, "%s/%s", directory, file);
    return n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0;
}

/* The first line, printable characters only; "" where there is none. */
static const char *line_of(const char *directory, const char *file, char *text, size_t bytes)
{
    char path[PATH_BYTES];
    text[0] = 0;
    const int n = snprintf(path, sizeof path, "%s/%s", directory, file);
    FILE *f = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    if (!f)
        return text;
    if (!fgets(text, (int)bytes, f))
        text[0] = 0;
    fclose(f);
    size_t length = 0;
    while (text[length] > ' ' && text[length] < 127)
        length++;
    text[length] = 0;
    return text;
}

static long long number_of(const char *directory, const char *file, long long otherwise)
{
    char text[32], *end;
    line_of(directory, file, text, sizeof text);
    const long long value = strtoll(text, &end, 10);
    return text[0] && !*end ? value : otherwise;
}

/* What a virtual interface lies upon decides what it is: the best of it. */
static enum launch_medium medium_of(const char *sysfs, const char *name, int depth)
{
    char directory[PATH_BYTES / 2];
    snprintf(directory, sizeof directory, "%.100s/class/net/%.100s", sysfs, name);
    if (strcmp(name, "lo") == 0)
        return LAUNCH_LOOPBACK;
    if (is_there(directory, "wireless") || is_there(directory, "phy80211"))
        return LAUNCH_WIRELESS;
    if (is_there(directory, "device"))
        return LAUNCH_WIRE;
    enum launch_medium medium = LAUNCH_VIRTUAL;
    DIR *dir = depth < MAX_DEPTH ? opendir(directory) : NULL;
    for (const struct dirent *d; dir && (d = readdir(dir));)
        if (strncmp(d->d_name, "lower_", 6) == 0) {
            const enum launch_medium lower = medium_of(sysfs, d->d_name + 6, depth + 1);
            medium = lower < medium ? lower : medium;
        }
    if (dir)
        closedir(dir);
    return medium;
}

static void read_pci(const char *directory, char pci[32])
{
    char path[PATH_BYTES], target[PATH_MAX];
    pci[0] = 0;
    snprintf(path, sizeof path, "%s/device", directory);
    const ssize_t n = readlink(path, target, sizeof target - 1);
    if (n <= 0)
        return;
    target[n] = 0;
    const char *slash = strrchr(target, '/');
    slash = slash ? slash + 1 : target;
    unsigned domain, bus, device, function;
    int end = 0;
    if (sscanf(slash, "%x:%x:%x.%x%n", &domain, &bus, &device, &function, &end) == 4 && !slash[end] && strlen(slash) < 32)
        strcpy(pci, slash);
}

/* Fills in what sysfs knows. False: it talks for another interface, or is none of ours. */
static bool describe(const char *sysfs, struct launch_interface *i, bool is_live)
{
    char directory[PATH_BYTES / 2];
    snprintf(directory, sizeof directory, "%.100s/class/net/%s", sysfs, i->name);
    i->speed_mbit = -1;
    if (is_live && number_of(directory, "ifindex", -1) != i->index) {
        if (i->medium != LAUNCH_LOOPBACK)
            i->medium = LAUNCH_VIRTUAL; /* sysfs is another namespace's: in ours, nothing can be told */
        return true;
    }
    if (is_there(directory, "brport") || is_there(directory, "bonding_slave"))
        return false;
    i->medium = i->medium == LAUNCH_LOOPBACK ? LAUNCH_LOOPBACK : medium_of(sysfs, i->name, 0);
    const long long speed = number_of(directory, "speed", -1);
    i->speed_mbit = speed > 0 && speed < 100000000 ? speed : -1;
    line_of(directory, "phys_port_name", i->cage, sizeof i->cage);
    line_of(directory, "phys_switch_id", i->switch_id, sizeof i->switch_id);
    read_pci(directory, i->pci);
    if (is_live)
        return true;
    i->index = (int)number_of(directory, "ifindex", i->index);
    i->mtu = (int)number_of(directory, "mtu", 1500);
    char state[32];
    i->is_up = (number_of(directory, "flags", 1) & 1) != 0;
    i->has_carrier = number_of(directory, "carrier", 0) == 1 || strcmp(line_of(directory, "operstate", state, sizeof state), "up") == 0;
    return true;
}

/* ---- what this host says ---------------------------------------------------------------------------------------------------------------------------------------- */

struct found {
    int n;
    struct launch_interface list[MAX_FOUND];
};

static struct launch_interface *entry(struct found *f, const char *name)
{
    for (int i = 0; i < f->n; i++)
        if (strcmp(f->list[i].name, name) == 0)
            return &f->list[i];
    if (f->n == MAX_FOUND || !name[0] || strlen(name) >= IF_NAMESIZE)
        return NULL;
    struct launch_interface *i = &f->list[f->n++];
    *i = (struct launch_interface){.speed_mbit = -1, .medium = strcmp(name, "lo") == 0 ? LAUNCH_LOOPBACK : LAUNCH_VIRTUAL};
    strcpy(i->name, name);
    return i;
}

static void add_address(struct launch_interface *i, const struct launch_address *a)
{
    if (!i || i->n_addresses == LAUNCH_MAX_ADDRESSES)
        return;
    for (int k = 0; k < i->n_addresses; k++)
        if (launch_address_equal(&i->addresses[k], a))
            return;
    i->addresses[i->n_addresses++] = *a;
}

/* Of IPv6: tentative or refused ones cannot be bound, deprecated ones go away soon, temporary ones change. */
static bool is_v6_preferred(const uint8_t bytes[16], const char *name)
{
    enum { TEMPORARY = 0x01, REFUSED = 0x08, DEPRECATED = 0x20, TENTATIVE = 0x40 };
    FILE *f = fopen("/proc/thread-self/net/if_inet6", "re");
    char hex[33], own[33], interface[32];
    unsigned index, prefix, scope, flags;
    bool good = true;
    for (int i = 0; i < 16; i++)
        snprintf(own + 2 * i, 3, "%02x", bytes[i]);
    while (f && fscanf(f, "%32s %x %x %x %x %31s", hex, &index, &prefix, &scope, &flags, interface) == 6)
        if (strcmp(hex, own) == 0 && strcmp(interface, name) == 0)
            good = !(flags & (TEMPORARY | REFUSED | DEPRECATED | TENTATIVE));
    if (f)
        fclose(f);
    return good;
}

static int prefix_of(const uint8_t *mask, int bytes)
{
    int bits = 0;
    while (bits < bytes * 8 && mask[bits / 8] & (0x80 >> bits % 8))
        bits++;
    return bits;
}

static enum st read_live(struct found *f, struct err *e)
{
    struct ifaddrs *list = NULL;
    const int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0 || getifaddrs(&list)) {
        const int error = errno;
        if (s >= 0)
            close(s);
        return err_set(e, ST_IO, "the list of network interfaces cannot be read: %s", strerror(error));
    }
    for (const struct ifaddrs *a = list; a; a = a->ifa_next) {
        char name[IF_NAMESIZE];
        snprintf(name, sizeof name, "%s", a->ifa_name);
        name[strcspn(name, ":")] = 0; /* an alias is the interface's second name */
        struct launch_interface *i = entry(f, name);
        if (!i)
            continue;
        if (!i->index) {
            struct ifreq r = {.ifr_name = ""};
            strcpy(r.ifr_name, name);
            i->index = (int)if_nametoindex(name);
            i->mtu = ioctl(s, SIOCGIFMTU, &r) == 0 ? r.ifr_mtu : 1500;
            i->is_up = a->ifa_flags & IFF_UP;
            i->has_carrier = a->ifa_flags & IFF_RUNNING;
            if (a->ifa_flags & IFF_LOOPBACK)
                i->medium = LAUNCH_LOOPBACK;
        }
        const int family = a->ifa_addr ? a->ifa_addr->sa_family : AF_UNSPEC;
        struct launch_address own = {.family = family, .gid_index = -1};
        if (family == AF_INET) {
            memcpy(own.bytes, &((const struct sockaddr_in *)(const void *)a->ifa_addr)->sin_addr, 4);
            own.prefix = a->ifa_netmask ? prefix_of((const uint8_t *)&((const struct sockaddr_in *)(const void *)a->ifa_netmask)->sin_addr, 4) : 32;
        } else if (family == AF_INET6) {
            memcpy(own.bytes, &((const struct sockaddr_in6 *)(const void *)a->ifa_addr)->sin6_addr, 16);
            own.prefix = a->ifa_netmask ? prefix_of((const uint8_t *)&((const struct sockaddr_in6 *)(const void *)a->ifa_netmask)->sin6_addr, 16) : 128;
            if (!is_v6_preferred(own.bytes, name))
                continue;
        } else {
            continue;
        }
        add_address(i, &own);
    }
    freeifaddrs(list);
    close(s);
    return ST_OK;
}

static enum st read_captured(const char *root, struct found *f, struct err *e)
{
    char path[PATH_BYTES], line[256], name[64], text[64];
    snprintf(path, sizeof path, "%.200s/class/net", root);
    DIR *dir = opendir(path);
    if (!dir)
        return err_set(e, ST_IO, "%s: %s", path, strerror(errno));
    for (const struct dirent *d; (d = readdir(dir));)
        if (d->d_name[0] != '.')
            (void)entry(f, d->d_name);
    closedir(dir);
    snprintf(path, sizeof path, "%.200s/addresses", root);
    FILE *in = fopen(path, "re");
    enum st st = ST_OK;
    for (int i = 1; in && !st && fgets(line, sizeof line, in); i++) {
        struct launch_address a = {.gid_index = -1};
        if (sscanf(line, "%63s %63[0-9a-f.:]/%d", name, text, &a.prefix) == 3 && launch_address_parse(text, &a) && a.prefix >= 0 && a.prefix <= address_bytes(&a) * 8)
            add_address(entry(f, name), &a);
        else
            st = err_set(e, ST_INVALID, "%s:%d: wants lines like \"eth0 10.0.0.1/24\"", path, i);
    }
    if (in)
        fclose(in);
    return st;
}

/* ---- RDMA ------------------------------------------------------------------------------------------------------------------------------------------------------- */

/* Whether this process may open the device: /dev/infiniband/uverbsN, where class/infiniband_verbs/uverbsN/ibdev names it. (That is there for
 * devices without a PCI function as well, such as RDMA over Ethernet in software.) */
static void find_problem(struct launch_rdma *r)
{
    char path[PATH_BYTES];
    DIR *dir = opendir("/sys/class/infiniband_verbs");
    const char *node = NULL;
    for (const struct dirent *d; dir && !node && (d = readdir(dir));) {
        char name[32];
        snprintf(path, sizeof path, "/sys/class/infiniband_verbs/%.20s", d->d_name);
        if (strncmp(d->d_name, "uverbs", 6) == 0 && strlen(d->d_name) < 20 && strcmp(line_of(path, "ibdev", name, sizeof name), r->device) == 0) {
            snprintf(path, sizeof path, "/dev/infiniband/%s", d->d_name);
            node = path;
        }
    }
    if (dir)
        closedir(dir);
    if (!node)
        snprintf(r->problem, sizeof r->problem, "it has no verbs device: sudo modprobe ib_uverbs");
    else if (access(node, R_OK | W_OK) && errno == ENOENT)
        snprintf(r->problem, sizeof r->problem, "%.40s is not there (in a container: --device /dev/infiniband)", node);
    else if (access(node, R_OK | W_OK))
        snprintf(r->problem, sizeof r->problem, "%.40s: %s; sudo chmod a+rw %.40s", node, strerror(errno), node);
}

/* The library that all of RDMA goes through, and whether it has a driver for what is there; for what cannot be opened it has none. */
static void find_library(bool can_open, char problem[160])
{
    void *lib = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        snprintf(problem, 160, "libibverbs is missing: sudo apt install rdma-core libibverbs1 ibverbs-providers");
        return;
    }
    void *(*list)(int *);
    void (*release)(void *);
    *(void **)&list = dlsym(lib, "ibv_get_device_list");
    *(void **)&release = dlsym(lib, "ibv_free_device_list");
    int n = 0;
    void *devices = list ? list(&n) : NULL;
    if (can_open && (!devices || n == 0))
        snprintf(problem, 160, "libibverbs has no driver for the devices: sudo apt install ibverbs-providers");
    if (devices && release)
        release(devices);
    /* It stays open: its drivers do not like to be unloaded. */
}

static void find_gids(const char *sysfs, const struct comm_rdma_port *p, struct launch_interface *i)
{
    struct comm_rdma_gid gids[COMM_RDMA_MAX_GIDS];
    const int n = comm_rdma_gids(sysfs, p, gids, COMM_RDMA_MAX_GIDS);
    static const uint8_t v4[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    for (int k = 0; k < i->n_addresses; k++) {
        struct launch_address *a = &i->addresses[k];
        uint8_t whole[16];
        memcpy(whole, v4, 12);
        memcpy(a->family == AF_INET ? whole + 12 : whole, a->bytes, (size_t)address_bytes(a));
        int link_local = -1;
        for (int g = 0; g < n && a->gid_index < 0; g++) {
            if (!gids[g].is_v2 || (gids[g].interface[0] && strcmp(gids[g].interface, i->name) != 0))
                continue;
            if (memcmp(gids[g].address, whole, 16) == 0)
                a->gid_index = gids[g].index;
            if (gids[g].address[0] == 0xfe && gids[g].address[1] == 0x80)
                link_local = gids[g].index;
        }
        /* The default one is made of the hardware address, whatever the interface calls itself. */
        if (a->gid_index < 0 && launch_address_is_link_local(a))
            a->gid_index = link_local;
    }
}

static int by_device(const void *a, const void *b)
{
    const struct launch_rdma *x = a, *y = b;
    const int order = strcmp(x->device, y->device);
    return order ? order : x->port - y->port;
}

static void read_rdma(const char *sysfs, bool is_live, struct found *f, struct launch_interfaces *out)
{
    struct comm_rdma_port ports[COMM_RDMA_MAX_PORTS];
    const int n = comm_rdma_list(sysfs, ports, LAUNCH_MAX_RDMA);
    for (int i = 0; i < n; i++) {
        const struct comm_rdma_port *p = &ports[i];
        if (strlen(p->device) >= 32 || strlen(p->interface) >= IF_NAMESIZE)
            continue;
        struct launch_rdma *r = &out->rdma[out->n_rdma++];
        *r = (struct launch_rdma){.port = atoi(p->port), .is_active = p->is_active, .is_infiniband = p->is_infiniband, .gbit = strtod(p->rate, NULL)};
        if (!(r->gbit >= 0 && r->gbit <= 1e6))
            r->gbit = 0;
        snprintf(r->device, sizeof r->device, "%.31s", p->device);
        snprintf(r->interface, sizeof r->interface, "%.15s", p->interface);
        snprintf(r->adapter, sizeof r->adapter, "%.31s", p->adapter);
        snprintf(r->cage, sizeof r->cage, "%.31s", p->cage);
        const char *state = strchr(p->state, ' ');
        snprintf(r->state, sizeof r->state, "%.31s", state ? state + 1 : p->state);
        if (is_live)
            find_problem(r);
        for (int k = 0; k < f->n; k++)
            if (strcmp(f->list[k].name, r->interface) == 0)
                find_gids(sysfs, p, &f->list[k]);
    }
    bool can_open = false;
    for (int i = 0; i < out->n_rdma; i++)
        can_open |= !out->rdma[i].problem[0];
    if (is_live && out->n_rdma)
        find_library(can_open, out->rdma_problem);
    qsort(out->rdma, (size_t)out->n_rdma, sizeof *out->rdma, by_device);
}

/* ---- together ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static int by_index(const void *a, const void *b) { return ((const struct launch_interface *)a)->index - ((const struct launch_interface *)b)->index; }

/* Best media first, and of those with IPv4 first: what is cut off matters least. */
static int by_use(const void *a, const void *b)
{
    const struct launch_interface *x = a, *y = b;
    if (x->medium != y->medium)
        return x->medium == LAUNCH_LOOPBACK ? -1 : y->medium == LAUNCH_LOOPBACK ? 1 : (int)x->medium - (int)y->medium;
    const bool x4 = x->n_addresses && x->addresses[0].family == AF_INET, y4 = y->n_addresses && y->addresses[0].family == AF_INET;
    return x4 != y4 ? (x4 ? -1 : 1) : x->index - y->index;
}

static bool has_rdma(const struct launch_interfaces *in, const char *name) { return launch_interface_rdma(in, name) != NULL; }

static void keep_useful(struct found *f, struct launch_interfaces *out)
{
    int n = 0;
    for (int i = 0; i < f->n; i++)
        if ((f->list[i].is_up && f->list[i].n_addresses) || has_rdma(out, f->list[i].name))
            f->list[n++] = f->list[i];
    qsort(f->list, (size_t)n, sizeof *f->list, by_use);
    out->n = n < LAUNCH_MAX_INTERFACES ? n : LAUNCH_MAX_INTERFACES;
    qsort(f->list, (size_t)out->n, sizeof *f->list, by_index);
    memcpy(out->list, f->list, (size_t)out->n * sizeof *out->list);
}

static void name_machine(struct launch_interfaces *out)
{
    line_of("/proc/sys/kernel/random", "boot_id", out->machine, sizeof out->machine);
    struct stat s;
    if (stat("/proc/thread-self/ns/net", &s) == 0)
        out->namespace_id = (uint64_t)s.st_ino;
}

enum st launch_interfaces_read(const char *sysfs_root, struct launch_interfaces *out, struct err *e)
{
    const bool is_live = !sysfs_root;
    const char *sysfs = is_live ? "/sys" : sysfs_root;
    struct found *f = calloc(1, sizeof *f);
    if (!f)
        return err_set(e, ST_NO_MEMORY, "no memory");
    const enum st st = is_live ? read_live(f, e) : read_captured(sysfs, f, e);
    if (!st) {
        memset(out, 0, sizeof *out);
        int n = 0;
        for (int i = 0; i < f->n; i++) {
            f->list[n] = f->list[i];
            n += describe(sysfs, &f->list[n], is_live);
        }
        f->n = n;
        read_rdma(sysfs, is_live, f, out);
        keep_useful(f, out);
        if (is_live)
            name_machine(out);
    }
    free(f);
    return st;
}

const struct launch_interface *launch_interface_find(const struct launch_interfaces *in, const char *name)
{
    for (int i = 0; i < in->n; i++)
        if (strcmp(in->list[i].name, name) == 0)
            return &in->list[i];
    return NULL;
}

const struct launch_address *launch_interface_address(const struct launch_interface *i, const struct launch_address *a)
{
    for (int k = 0; k < i->n_addresses; k++)
        if (launch_address_equal(&i->addresses[k], a))
            return &i->addresses[k];
    return NULL;
}

/* An active one rather than another. */
const struct launch_rdma *launch_interface_rdma(const struct launch_interfaces *in, const char *name)
{
    const struct launch_rdma *found = NULL;
    for (int i = 0; i < in->n_rdma && name[0]; i++)
        if (strcmp(in->rdma[i].interface, name) == 0 && (!found || (in->rdma[i].is_active && !found->is_active)))
            found = &in->rdma[i];
    return found;
}

bool launch_interface_are_twins(const struct launch_interfaces *in, const char *a, const char *b)
{
    const struct launch_rdma *x = launch_interface_rdma(in, a), *y = launch_interface_rdma(in, b);
    return x && y && x != y && x->adapter[0] && x->cage[0] && strcmp(x->adapter, y->adapter) == 0 && strcmp(x->cage, y->cage) == 0;
}

bool launch_interfaces_same_machine(const struct launch_interfaces *a, const struct launch_interfaces *b)
{
    return a->machine[0] && strcmp(a->machine, b->machine) == 0 && a->namespace_id == b->namespace_id;
}

/* "  eth0: rx_bytes packets errs drop fifo frame compressed multicast tx_bytes …" */
enum st launch_interface_counters(const char *name, uint64_t *tx_bytes, uint64_t *rx_bytes, struct err *e)
{
    char line[512];
    FILE *f = fopen("/proc/thread-self/net/dev", "re");
    if (!f)
        return err_set(e, ST_IO, "/proc/thread-self/net/dev: %s", strerror(errno));
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        char *colon = strrchr(line, ':');
        if (!colon)
            continue;
        *colon = 0;
        unsigned long long rx, tx;
        if (strcmp(line + strspn(line, " "), name) == 0 && sscanf(colon + 1, "%llu %*u %*u %*u %*u %*u %*u %*u %llu", &rx, &tx) == 2) {
            *rx_bytes = rx;
            *tx_bytes = tx;
            found = true;
        }
    }
    fclose(f);
    return found ? ST_OK : err_set(e, ST_NOT_FOUND, "/proc/thread-self/net/dev: no interface %.15s", name);
}
