#include "launcher/host.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/build_id.h"
#include "base/json.h"
#include "topologies/machine.h"

static uint32_t bits_of(const unsigned char *mask, size_t n)
{
    uint32_t bits = 0;
    for (size_t i = 0; i < n; i++)
        bits += (uint32_t)__builtin_popcount(mask[i]);
    return bits;
}

static json_t *describe_addresses(void)
{
    json_t *list = json_array();
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all))
        return list;
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        char text[INET6_ADDRSTRLEN];
        if (!i->ifa_addr || !i->ifa_netmask || !(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK)
            continue;
        if (i->ifa_addr->sa_family == AF_INET) {
            const struct sockaddr_in *a = (const void *)i->ifa_addr, *m = (const void *)i->ifa_netmask;
            inet_ntop(AF_INET, &a->sin_addr, text, sizeof text);
            json_array_append_new(list, json_pack("{s:s, s:s, s:i}", "interface", i->ifa_name, "address", text, "prefix", (int)bits_of((const void *)&m->sin_addr, 4)));
        } else if (i->ifa_addr->sa_family == AF_INET6) {
            const struct sockaddr_in6 *a = (const void *)i->ifa_addr, *m = (const void *)i->ifa_netmask;
            if (IN6_IS_ADDR_LINKLOCAL(&a->sin6_addr))
                continue;
            inet_ntop(AF_INET6, &a->sin6_addr, text, sizeof text);
            json_array_append_new(list, json_pack("{s:s, s:s, s:i}", "interface", i->ifa_name, "address", text, "prefix", (int)bits_of((const void *)&m->sin6_addr, 16)));
        }
    }
    freeifaddrs(all);
    return list;
}

enum st launch_host_describe(char **json, struct err *e)
{
    struct utsname u;
    uname(&u);
    struct topo_machine *m = NULL;
    enum st st = topo_machine_open(NULL, &m, e);
    uint64_t bytes = 0;
    char what[256] = "";
    if (!st)
        st = topo_memory_available(NULL, &bytes, what, e);
    if (!st) {
        json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:I, s:s, s:o}", "name", u.nodename, "build", tandem_build_id, "machine", u.machine, "cpus", topo_machine_cpus(m), "available_bytes",
                              (json_int_t)bytes, "available_what", what, "addresses", describe_addresses());
        *json = json_dumps(o, JSON_COMPACT);
        json_decref(o);
        if (!*json)
            st = err_set(e, ST_NO_MEMORY, "no memory to describe this host");
    }
    topo_machine_close(m);
    return st;
}

static bool take_text(const json_t *o, const char *key, char *to, size_t capacity)
{
    const char *text = json_string_value(json_object_get(o, key));
    if (!text || strlen(text) >= capacity)
        return false;
    for (const char *c = text; *c; c++)
        if (*c < 0x20)
            return false;
    memcpy(to, text, strlen(text) + 1);
    return true;
}

enum st launch_host_parse(const char *json, size_t bytes, struct launch_host_facts *h, struct err *e)
{
    *h = (struct launch_host_facts){.n_cpus = 0};
    json_t *o = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, NULL);
    const json_t *cpus = json_object_get(o, "cpus"), *memory = json_object_get(o, "available_bytes"), *list = json_object_get(o, "addresses");
    bool right = take_text(o, "name", h->name, sizeof h->name) && take_text(o, "build", h->build, sizeof h->build) && take_text(o, "machine", h->machine, sizeof h->machine) &&
                 take_text(o, "available_what", h->available_what, sizeof h->available_what) && json_is_integer(cpus) && json_integer_value(cpus) > 0 && json_integer_value(cpus) < 100000 &&
                 json_is_integer(memory) && json_integer_value(memory) >= 0 && json_is_array(list);
    if (right) {
        h->n_cpus = (int)json_integer_value(cpus);
        h->available_bytes = (uint64_t)json_integer_value(memory);
    }
    for (size_t i = 0; right && i < json_array_size(list) && h->n_addresses < LAUNCH_HOST_MAX_ADDRESSES; i++) {
        struct launch_host_address *a = &h->addresses[h->n_addresses++];
        const json_t *prefix = json_object_get(json_array_get(list, i), "prefix");
        unsigned char any[16];
        right = take_text(json_array_get(list, i), "interface", a->interface, sizeof a->interface) && take_text(json_array_get(list, i), "address", a->address, sizeof a->address) &&
                json_is_integer(prefix) && json_integer_value(prefix) >= 0 && json_integer_value(prefix) <= 128 &&
                (inet_pton(AF_INET, a->address, any) == 1 || inet_pton(AF_INET6, a->address, any) == 1);
        if (right)
            a->prefix = (uint32_t)json_integer_value(prefix);
    }
    json_decref(o);
    return right ? ST_OK : err_set(e, ST_INVALID, "a host's description that makes no sense");
}
