/* Everything is compared in an order that does not depend on lists: the two hosts of a pair by their names, ways by their addresses. At the end sides are turned into the order asked for. */
#include "launcher/decide.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define GOOD_MTU 9000     /* what both ends are asked to set */
#define ROCE_4096_MTU 4200 /* a RoCE packet of 4096 bytes with its headers; below it falls back to 1024 or 2048 */

/* ---- one way between two hosts --------------------------------------------------------------------------------------------------------------------------------- */

struct way {
    const struct launch_interface *interface[2];
    const struct launch_address *address[2];
    const struct launch_rdma *rdma[2]; /* NULL: none that could be used here */
    bool works;
    bool is_rdma;                      /* both ends can */
    int medium, other_medium;          /* of the worse end, of the better one; here and below, smaller is better */
    int detour, family;
    double gbit;
    int mtu;
};

struct pair_input {
    const struct launch_host *host[2]; /* in canonical order */
    struct way *ways; /* best first; after those that work the n_tried others */
    int n_ways, n_tried;
};

static void append(char *text, size_t capacity, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void append(char *text, size_t capacity, const char *format, ...)
{
    const size_t at = strlen(text);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text + at, capacity - at, format, args);
    va_end(args);
}

/* Why a port cannot carry RDMA by this address; NULL: it can. Host-wide reasons first. */
static const char *rdma_problem(const struct launch_interfaces *in, const struct launch_rdma *r, const struct launch_interface *i, const struct launch_address *a)
{
    if (in->rdma_problem[0])
        return in->rdma_problem;
    if (r->problem[0])
        return r->problem;
    if (!r->is_active)
        return "its port is not up: no cable, or the other end is off";
    if (!i)
        return "no network interface belongs to it";
    if (!i->is_up)
        return "its interface is down";
    if (!r->is_infiniband && a && a->gid_index < 0)
        return "no RoCE v2 GID belongs to its address";
    return NULL;
}

static int family_order(const struct launch_address *a) { return a->family == AF_INET ? 0 : launch_address_is_link_local(a) ? 2 : 1; }

static double min_rate(double a, double b) { return a < b ? a : b; }

/* False: the hosts know nothing of it, so whoever told it is wrong. */
static bool make_way(const struct pair_input *in, const struct launch_facing *f, bool is_turned, struct way *w)
{
    *w = (struct way){.works = f->works, .is_rdma = true};
    int mtu = 1 << 20;
    double speed[2], port[2];
    for (int s = 0; s < 2; s++) {
        const struct launch_interfaces *all = in->host[s]->interfaces;
        const int k = is_turned ? 1 - s : s;
        w->interface[s] = launch_interface_find(all, f->interface[k]);
        w->address[s] = w->interface[s] ? launch_interface_address(w->interface[s], &f->address[k]) : NULL;
        if (!w->address[s])
            return false;
        const struct launch_rdma *r = launch_interface_rdma(all, w->interface[s]->name);
        if (r && !rdma_problem(all, r, w->interface[s], w->address[s]))
            w->rdma[s] = r;
        w->is_rdma = w->is_rdma && w->rdma[s];
        speed[s] = w->interface[s]->speed_mbit > 0 ? (double)w->interface[s]->speed_mbit / 1000 : 0;
        port[s] = r && r->gbit > 0 ? r->gbit : speed[s];
        mtu = w->interface[s]->mtu < mtu ? w->interface[s]->mtu : mtu;
    }
    w->is_rdma = w->is_rdma && w->rdma[0]->is_infiniband == w->rdma[1]->is_infiniband;
    const int media[2] = {(int)w->interface[0]->medium, (int)w->interface[1]->medium};
    w->medium = media[media[0] < media[1]];
    w->other_medium = media[media[0] >= media[1]];
    w->gbit = w->is_rdma ? min_rate(port[0], port[1]) : min_rate(speed[0], speed[1]);
    w->mtu = f->mtu ? f->mtu : mtu;
    w->detour = !launch_address_share_subnet(w->address[0], w->address[1]);
    w->family = family_order(w->address[0]);
    return true;
}

static int by_number(double a, double b) { return a < b ? -1 : a > b; }

/* The better one first; never 0 for two different ways. */
static int by_quality(const void *a, const void *b)
{
    const struct way *x = a, *y = b;
    int order = (int)y->works - (int)x->works;
    order = order ? order : (int)y->is_rdma - (int)x->is_rdma;
    order = order ? order : x->medium - y->medium;
    order = order ? order : x->other_medium - y->other_medium;
    order = order ? order : x->detour - y->detour;
    order = order ? order : by_number(y->gbit, x->gbit);
    order = order ? order : x->family - y->family;
    order = order ? order : y->mtu - x->mtu;
    for (int s = 0; s < 2 && !order; s++) {
        order = launch_address_compare(x->address[s], y->address[s]);
        order = order ? order : strcmp(x->interface[s]->name, y->interface[s]->name);
    }
    return order;
}

/* ---- wishes ----------------------------------------------------------------------------------------------------------------------------------------------------- */

static bool is_named(const char *item, size_t length, const struct launch_interface *i, const struct launch_address *a)
{
    char text[LAUNCH_ADDRESS_TEXT + 8];
    if (length >= sizeof text)
        return false;
    memcpy(text, item, length);
    text[length] = 0;
    if (strcmp(text, i->name) == 0)
        return true;
    char *slash = strchr(text, '/'), *end = NULL;
    struct launch_address wanted = {.gid_index = -1};
    const long bits = slash ? strtol(slash + 1, &end, 10) : 128;
    if (slash && (end == slash + 1 || *end || bits < 0 || bits > 128))
        return false;
    if (slash)
        *slash = 0;
    if (!launch_address_parse(text, &wanted))
        return false;
    const int most = wanted.family == AF_INET ? 32 : 128;
    struct launch_address own = *a;
    own.prefix = wanted.prefix = bits < most ? (int)bits : most;
    return launch_address_share_subnet(&wanted, &own);
}

static bool is_wished(const char *list, const struct launch_interface *i, const struct launch_address *a)
{
    if (!list)
        return true;
    for (const char *at = list; *at;) {
        const size_t length = strcspn(at, ",");
        if (length && is_named(at, length, i, a))
            return true;
        at += length + (at[length] == ',');
    }
    return false;
}

/* ---- errors ----------------------------------------------------------------------------------------------------------------------------------------------------- */

static int by_index(const void *a, const void *b) { return (*(const struct launch_interface *const *)a)->index - (*(const struct launch_interface *const *)b)->index; }

static void tell_interfaces(const struct launch_host *h, char *text, size_t capacity)
{
    const struct launch_interface *list[LAUNCH_MAX_INTERFACES];
    char a[LAUNCH_ADDRESS_TEXT];
    int n = 0;
    for (int i = 0; i < h->interfaces->n; i++)
        if (h->interfaces->list[i].medium != LAUNCH_LOOPBACK && h->interfaces->list[i].n_addresses)
            list[n++] = &h->interfaces->list[i];
    qsort(list, (size_t)n, sizeof *list, by_index);
    append(text, capacity, "%.40s has%s", h->name, n ? "" : " no address but loopback's");
    for (int i = 0; i < n && i < 4; i++) {
        const struct launch_address *first = &list[i]->addresses[0];
        for (int k = 1; k < list[i]->n_addresses; k++)
            if (launch_address_compare(&list[i]->addresses[k], first) < 0)
                first = &list[i]->addresses[k];
        append(text, capacity, "%s %s %s/%d", i ? "," : "", list[i]->name, launch_address_text(first, NULL, a), first->prefix);
    }
}

static enum st faces_nobody(const struct pair_input *in, const struct launch_wishes *wishes, struct err *e)
{
    char text[360] = "", a[LAUNCH_ADDRESS_TEXT], b[LAUNCH_ADDRESS_TEXT];
    if (!in->n_tried) {
        tell_interfaces(in->host[0], text, sizeof text);
        append(text, sizeof text, "; ");
        tell_interfaces(in->host[1], text, sizeof text);
        return err_set(e, ST_NOT_FOUND, "%.40s and %.40s have no network in common%s%.60s: %s", in->host[0]->name, in->host[1]->name, wishes->interfaces ? " within " : "",
                       wishes->interfaces ? wishes->interfaces : "", text);
    }
    for (int i = 0; i < in->n_tried && i < 3; i++) {
        const struct way *w = &in->ways[i];
        append(text, sizeof text, "%s%s %s - %s %s", i ? ", " : "", w->interface[0]->name, launch_address_text(w->address[0], NULL, a), w->interface[1]->name,
               launch_address_text(w->address[1], NULL, b));
    }
    char port[24] = "", rule[64] = "";
    if (wishes->port) {
        snprintf(port, sizeof port, " port %d", wishes->port);
        if (wishes->n_ports > 1)
            snprintf(rule, sizeof rule, " to any port %d:%d proto udp", wishes->port, wishes->port + wishes->n_ports - 1);
        else
            snprintf(rule, sizeof rule, " to any port %d proto udp", wishes->port);
    }
    return err_set(e, ST_NOT_FOUND, "%.40s and %.40s do not face each other: of %d pairs of addresses that UDP%s was tried between, none answered (%s%s); a cable, or a firewall? on %.40s: sudo ufw allow from %s%s",
                   in->host[0]->name, in->host[1]->name, in->n_tried, port, text, in->n_tried > 3 ? ", ..." : "", in->host[1]->name, launch_address_text(in->ways[0].address[0], NULL, a), rule);
}

/* "roceA:1 (eth0): why" of one host; the same reason is told once. */
static void tell_rdma(const struct launch_host *h, char *text, size_t capacity)
{
    const char *last = NULL;
    int n = 0;
    append(text, capacity, "%.40s: ", h->name);
    if (h->interfaces->rdma_problem[0]) {
        append(text, capacity, "%s", h->interfaces->rdma_problem);
        return;
    }
    for (int i = 0; i < h->interfaces->n_rdma; i++) {
        const struct launch_rdma *r = &h->interfaces->rdma[i];
        const struct launch_interface *f = r->interface[0] ? launch_interface_find(h->interfaces, r->interface) : NULL;
        const char *why = rdma_problem(h->interfaces, r, f, NULL);
        if (!why && f && !f->n_addresses)
            why = "its interface has no address";
        if (!why && f && !r->is_infiniband) {
            bool any = false;
            for (int k = 0; k < f->n_addresses; k++)
                any = any || f->addresses[k].gid_index >= 0;
            why = any ? NULL : "no RoCE v2 GID belongs to its addresses";
        }
        why = why ? why : "up, but nothing came back by it from a port that can do RDMA";
        if (last && strcmp(last, why) == 0)
            continue;
        last = why;
        append(text, capacity, "%s%s:%d%s%s%s %s", n++ ? ", " : "", r->device, r->port, r->interface[0] ? " (" : "", r->interface, r->interface[0] ? "):" : ":", why);
    }
}

static enum st no_rdma(const struct pair_input *in, struct err *e)
{
    char text[420] = "";
    for (int s = 0; s < 2; s++) {
        append(text, sizeof text, s ? "; " : "");
        if (in->host[s]->interfaces->n_rdma)
            tell_rdma(in->host[s], text, sizeof text);
        else
            append(text, sizeof text, "%.40s has no RDMA device", in->host[s]->name);
    }
    return err_set(e, ST_UNSUPPORTED, "no RDMA between %.32s and %.32s (--backend tcp does without it). %s", in->host[0]->name, in->host[1]->name, text);
}

/* ---- rails ------------------------------------------------------------------------------------------------------------------------------------------------------ */

static bool same_interfaces(const struct way *a, const struct way *b) { return a->interface[0] == b->interface[0] && a->interface[1] == b->interface[1]; }

/* Whether b may run beside a. Of an adapter that says what its functions are, only twins: its other cage has no more to give. */
static bool may_join(const struct pair_input *in, const struct way *a, const struct way *b)
{
    if (a->is_rdma != b->is_rdma || a->medium != b->medium || a->other_medium != b->other_medium || a->detour != b->detour || by_number(a->gbit, b->gbit) != 0)
        return false;
    for (int s = 0; s < 2; s++) {
        const struct launch_interfaces *all = in->host[s]->interfaces;
        if (a->interface[s] == b->interface[s])
            return false;
        const bool knows = launch_interface_rdma(all, a->interface[s]->name) || launch_interface_rdma(all, b->interface[s]->name);
        if ((a->is_rdma || knows) && !launch_interface_are_twins(all, a->interface[s]->name, b->interface[s]->name))
            return false;
    }
    return true;
}

static bool share_subnet(const struct way *a, const struct way *b) { return launch_address_share_subnet(a->address[0], b->address[0]) || launch_address_share_subnet(a->address[1], b->address[1]); }

static bool fits(const struct pair_input *in, const struct way *const *rails, int n, const struct way *w, bool own_subnet)
{
    for (int i = 0; i < n; i++)
        if (!may_join(in, rails[i], w) || (own_subnet && (w->family != rails[i]->family || share_subnet(rails[i], w))))
            return false;
    return true;
}

/* The best way, and with it what can run beside it: first in subnets of their own, then any. Rails that would share a subnet take link-local addresses where all have them. */
static int choose_rails(const struct pair_input *in, const struct way **rails, bool *must_bind)
{
    int n = 0;
    rails[n++] = &in->ways[0];
    for (int own_subnet = 1; own_subnet >= 0; own_subnet--)
        for (int i = 1; i < in->n_ways && n < LAUNCH_MAX_RAILS; i++)
            if (fits(in, rails, n, &in->ways[i], own_subnet))
                rails[n++] = &in->ways[i];
    *must_bind = false;
    for (int a = 0; a < n; a++)
        for (int b = 0; b < a; b++)
            *must_bind = *must_bind || share_subnet(rails[a], rails[b]);
    if (!*must_bind)
        return n;
    const struct way *local[LAUNCH_MAX_RAILS] = {NULL};
    int n_local = 0;
    for (int r = 0; r < n; r++)
        for (int i = 0; i < in->n_ways && !local[r]; i++)
            if (in->ways[i].family == 2 && same_interfaces(&in->ways[i], rails[r]) && in->ways[i].is_rdma == rails[r]->is_rdma) {
                local[r] = &in->ways[i];
                n_local++;
            }
    if (n_local == n)
        memcpy(rails, local, (size_t)n * sizeof *rails);
    return n;
}

/* ---- in words ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static void warn(struct launch_pair *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void warn(struct launch_pair *p, const char *format, ...)
{
    if (p->n_warnings == LAUNCH_MAX_WARNINGS)
        return;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(p->warnings[p->n_warnings++], sizeof p->warnings[0], format, args);
    va_end(args);
}

static void warn_mtu(const struct pair_input *in, const struct way *w, struct launch_pair *p)
{
    const int mtu[2] = {w->interface[0]->mtu, w->interface[1]->mtu}, small = mtu[0] <= mtu[1] ? 0 : 1;
    const int least = mtu[small], most = mtu[1 - small];
    const char *const names[2] = {w->interface[0]->name, w->interface[1]->name};
    if (least != most)
        warn(p, "%s of %.40s has MTU %d, %s of %.40s %d; on %.40s: sudo ip link set dev %s mtu %d", names[small], in->host[small]->name, least, names[1 - small], in->host[1 - small]->name, most,
             in->host[small]->name, names[small], w->is_rdma && most < GOOD_MTU ? GOOD_MTU : most);
    else if (w->is_rdma && !w->rdma[0]->is_infiniband && least < ROCE_4096_MTU)
        warn(p, "MTU %d makes RDMA packets small; on %.40s: sudo ip link set dev %s mtu %d; on %.40s: sudo ip link set dev %s mtu %d", least, in->host[0]->name, names[0], GOOD_MTU, in->host[1]->name,
             names[1], GOOD_MTU);
    if (w->mtu < least)
        warn(p, "packets of %d bytes do not get through between %s of %.40s and %s of %.40s, only of %d: something between them has a smaller MTU", least, names[0], in->host[0]->name, names[1],
             in->host[1]->name, w->mtu);
}

/* Twins of the first rail that are up and carry nothing. */
static void warn_twins(const struct pair_input *in, const struct way *const *rails, int n, struct launch_pair *p)
{
    for (int s = 0; s < 2; s++) {
        const struct launch_interfaces *all = in->host[s]->interfaces;
        for (int i = 0; i < all->n_rdma; i++) {
            const struct launch_rdma *r = &all->rdma[i];
            bool used = !r->is_active || !launch_interface_are_twins(all, rails[0]->interface[s]->name, r->interface);
            for (int k = 0; k < n; k++)
                used = used || strcmp(rails[k]->interface[s]->name, r->interface) == 0;
            if (!used)
                warn(p, "%s of %.40s shares the cable of %s but carries nothing, so a part of the bandwidth is lost: it needs an address in a subnet of its own, and so does its counterpart on %.40s",
                     r->interface, in->host[s]->name, rails[0]->interface[s]->name, in->host[1 - s]->name);
        }
    }
}

static void explain(const struct pair_input *in, const struct way *const *rails, int n, struct launch_pair *p)
{
    static const char *const families[] = {"IPv4", "IPv6", "IPv6 link-local"};
    const struct way *w = rails[0];
    append(p->reason, sizeof p->reason, "best of %d of %d pairs of addresses that face each other: ", in->n_ways, in->n_tried + in->n_ways);
    if (w->is_rdma)
        append(p->reason, sizeof p->reason, "RDMA at both ends, ");
    else
        append(p->reason, sizeof p->reason, "%s, %s, ", launch_medium_name((enum launch_medium)w->medium),
               !in->host[0]->interfaces->n_rdma && !in->host[1]->interfaces->n_rdma ? "no RDMA device at either end" : "RDMA not used");
    append(p->reason, sizeof p->reason, "%s%s", families[w->family], w->detour ? ", through a router" : "");
    if (n > 1)
        append(p->reason, sizeof p->reason, ", %d rails%s", n, w->family == 2 ? " told apart by their scopes" : p->must_bind ? " in one subnet, told apart by their interfaces" : " in subnets of their own");
}

/* ---- one pair ----------------------------------------------------------------------------------------------------------------------------------------------------- */

static void fill_pair(const struct pair_input *in, const struct way *const *rails, int n, struct launch_pair *p)
{
    p->transport = rails[0]->is_rdma ? LAUNCH_RDMA : LAUNCH_TCP;
    p->n_rails = n;
    p->mtu = rails[0]->mtu;
    for (int i = 0; i < n; i++) {
        struct launch_rail *r = &p->rails[i];
        *r = (struct launch_rail){.mtu = rails[i]->mtu, .gbit = rails[i]->gbit};
        for (int s = 0; s < 2; s++) {
            memcpy(r->interface[s], rails[i]->interface[s]->name, IF_NAMESIZE);
            r->index[s] = rails[i]->interface[s]->index;
            r->address[s] = *rails[i]->address[s];
            if (rails[i]->is_rdma)
                snprintf(r->device[s], sizeof r->device[s], "%s:%d", rails[i]->rdma[s]->device, rails[i]->rdma[s]->port);
        }
        p->mtu = r->mtu < p->mtu ? r->mtu : p->mtu;
    }
    /* Twins share a cable. */
    const bool twins = n > 1 && launch_interface_are_twins(in->host[0]->interfaces, p->rails[0].interface[0], p->rails[1].interface[0]);
    p->are_twins = twins;
    p->gbit = twins ? rails[0]->gbit : rails[0]->gbit * n;
    explain(in, rails, n, p);
    for (int i = 0; i < n; i++)
        warn_mtu(in, rails[i], p);
    warn_twins(in, rails, n, p);
    if (rails[0]->medium == LAUNCH_WIRELESS)
        warn(p, "the only way between %.40s and %.40s is wireless: slow, and late at times", in->host[0]->name, in->host[1]->name);
}

static enum st fill_same_machine(const struct pair_input *in, struct launch_pair *p, struct err *e)
{
    for (int i = 0; i < in->host[0]->interfaces->n; i++) {
        const struct launch_interface *f = &in->host[0]->interfaces->list[i];
        if (f->medium != LAUNCH_LOOPBACK || !f->n_addresses)
            continue;
        p->transport = LAUNCH_SAME_MACHINE;
        p->n_rails = 1;
        p->mtu = f->mtu;
        struct launch_rail *r = &p->rails[0];
        *r = (struct launch_rail){.mtu = f->mtu, .index = {f->index, f->index}, .address = {f->addresses[0], f->addresses[0]}};
        memcpy(r->interface[0], f->name, IF_NAMESIZE);
        memcpy(r->interface[1], f->name, IF_NAMESIZE);
        snprintf(p->reason, sizeof p->reason, "both are the same machine");
        return ST_OK;
    }
    return err_set(e, ST_NOT_FOUND, "%.60s and %.60s are the same machine, but its loopback interface is down: sudo ip link set dev lo up", in->host[0]->name, in->host[1]->name);
}

static enum st collect(struct pair_input *in, int first, int second, const struct launch_facings *facings, int n_facings, const struct launch_wishes *wishes, struct err *e)
{
    int n = 0;
    for (int i = 0; i < n_facings; i++)
        n += facings[i].n;
    in->ways = calloc((size_t)n + 1, sizeof *in->ways);
    if (!in->ways)
        return err_set(e, ST_NO_MEMORY, "no memory");
    for (int i = 0; i < n_facings; i++)
        for (int k = 0; k < facings[i].n; k++) {
            const struct launch_facing *f = &facings[i].list[k];
            const bool is_turned = f->host[0] == second;
            struct way *w = &in->ways[in->n_ways];
            if (!(f->host[0] == first && f->host[1] == second) && !(f->host[0] == second && f->host[1] == first))
                continue;
            if (!make_way(in, f, is_turned, w) || !is_wished(wishes->interfaces, w->interface[0], w->address[0]) || !is_wished(wishes->interfaces, w->interface[1], w->address[1]))
                continue;
            if (wishes->transport == LAUNCH_TCP) {
                w->is_rdma = false;
                const int64_t a = w->interface[0]->speed_mbit, b = w->interface[1]->speed_mbit;
                w->gbit = a > 0 && b > 0 ? (double)(a < b ? a : b) / 1000 : 0;
            }
            in->n_ways++;
        }
    qsort(in->ways, (size_t)in->n_ways, sizeof *in->ways, by_quality);
    int kept = 0; /* told twice: once is enough */
    for (int i = 0; i < in->n_ways; i++)
        if (!kept || by_quality(&in->ways[kept - 1], &in->ways[i]) != 0)
            in->ways[kept++] = in->ways[i];
    in->n_ways = 0;
    while (in->n_ways < kept && in->ways[in->n_ways].works)
        in->n_ways++;
    in->n_tried = kept - in->n_ways;
    return ST_OK;
}

static bool is_before(const struct launch_host *a, const struct launch_host *b)
{
    int order = strcmp(a->name, b->name);
    order = order ? order : strcmp(a->interfaces->machine, b->interfaces->machine);
    return order ? order < 0 : a->interfaces->namespace_id <= b->interfaces->namespace_id;
}

static void turn_pair(struct launch_pair *p)
{
    for (int i = 0; i < p->n_rails; i++) {
        const struct launch_rail was = p->rails[i];
        for (int s = 0; s < 2; s++) {
            memcpy(p->rails[i].interface[s], was.interface[1 - s], IF_NAMESIZE);
            memcpy(p->rails[i].device[s], was.device[1 - s], sizeof was.device[0]);
            p->rails[i].index[s] = was.index[1 - s];
            p->rails[i].address[s] = was.address[1 - s];
        }
    }
}

static enum st decide_pair(const struct launch_host *hosts, int a, int b, const struct launch_facings *facings, int n_facings, const struct launch_wishes *wishes, struct launch_pair *p,
                           struct err *e)
{
    const bool is_turned = !is_before(&hosts[a], &hosts[b]);
    const int first = is_turned ? b : a, second = is_turned ? a : b;
    struct pair_input in = {.host = {&hosts[first], &hosts[second]}};
    *p = (struct launch_pair){.host = {a, b}};
    if (launch_interfaces_same_machine(hosts[a].interfaces, hosts[b].interfaces))
        return fill_same_machine(&in, p, e);
    enum st st = collect(&in, first, second, facings, n_facings, wishes, e);
    if (!st && !in.n_ways)
        st = faces_nobody(&in, wishes, e);
    /* Whoever has RDMA devices pays for them: TCP is for him to say. */
    const bool is_expected = wishes->transport == LAUNCH_RDMA || (wishes->transport != LAUNCH_TCP && (hosts[a].interfaces->n_rdma || hosts[b].interfaces->n_rdma));
    if (!st && !in.ways[0].is_rdma && is_expected)
        st = no_rdma(&in, e);
    if (!st) {
        const struct way *rails[LAUNCH_MAX_RAILS];
        const int n = choose_rails(&in, rails, &p->must_bind);
        fill_pair(&in, rails, n, p);
        if (is_turned)
            turn_pair(p);
    }
    free(in.ways);
    return st;
}

enum st launch_decide(const struct launch_host *hosts, int n_hosts, const struct launch_facings *facings, int n_facings, const struct launch_wishes *wishes,
                      struct launch_decision *out, struct err *e)
{
    static const struct launch_wishes none = {.interfaces = NULL};
    BASE_ASSERT(n_hosts >= 1 && n_hosts <= LAUNCH_MAX_HOSTS);
    struct launch_decision d = {.n_hosts = n_hosts, .pairs = calloc((size_t)n_hosts * (size_t)n_hosts, sizeof *d.pairs)};
    enum st st = d.pairs ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory");
    for (int a = 0; a < n_hosts && !st; a++)
        for (int b = a + 1; b < n_hosts && !st; b++)
            st = decide_pair(hosts, a, b, facings, n_facings, wishes ? wishes : &none, &d.pairs[d.n_pairs++], e);
    if (st)
        launch_decision_release(&d);
    else
        *out = d;
    return st;
}

void launch_decision_release(struct launch_decision *d)
{
    free(d->pairs);
    *d = (struct launch_decision){.n_hosts = 0};
}

const struct launch_pair *launch_decision_pair(const struct launch_decision *d, int a, int b)
{
    for (int i = 0; i < d->n_pairs; i++)
        if ((d->pairs[i].host[0] == a && d->pairs[i].host[1] == b) || (d->pairs[i].host[0] == b && d->pairs[i].host[1] == a))
            return &d->pairs[i];
    return NULL;
}

/* ---- what ranks are told -------------------------------------------------------------------------------------------------------------------------------------------- */

/* A list without repetitions, in the order of its items' first appearance. */
static void add_item(char list[256], const char *item)
{
    const size_t n = strlen(item);
    for (const char *at = list; n && *at;) {
        const size_t length = strcspn(at, ",");
        if (length == n && memcmp(at, item, n) == 0)
            return;
        at += length + (at[length] == ',');
    }
    if (n && strlen(list) + n + 1 < 256)
        append(list, 256, "%s%s", list[0] ? "," : "", item);
}

static void set(struct launch_environment *out, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void set(struct launch_environment *out, const char *name, const char *format, ...)
{
    BASE_ASSERT(out->n < LAUNCH_MAX_VARIABLES);
    out->list[out->n].name = name;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(out->list[out->n++].value, sizeof out->list[0].value, format, args);
    va_end(args);
}

/* Of all pairs that a host takes part in. */
struct summary {
    bool has_rdma, has_tcp, has_v6, has_v4, own_subnets, is_infiniband;
    int n_rails;                 /* the most of a pair */
    int gid;                     /* −1: they differ, or there is none */
    bool has_gid;
    char devices[256], sockets[256], hcas[256]; /* for UCX, for sockets, for NCCL's verbs */
};

static void sum_up(const struct launch_decision *d, int host, struct summary *s)
{
    *s = (struct summary){.gid = -1, .own_subnets = true};
    for (int i = 0; i < d->n_pairs; i++) {
        const struct launch_pair *p = &d->pairs[i];
        if (p->host[0] != host && p->host[1] != host)
            continue;
        const int side = p->host[0] == host ? 0 : 1;
        const bool is_rdma = p->transport == LAUNCH_RDMA;
        s->has_rdma = s->has_rdma || is_rdma;
        s->has_tcp = s->has_tcp || !is_rdma;
        s->own_subnets = s->own_subnets && !p->must_bind;
        s->n_rails = p->n_rails > s->n_rails ? p->n_rails : s->n_rails;
        for (int r = 0; r < p->n_rails; r++) {
            const struct launch_rail *rail = &p->rails[r];
            *(rail->address[side].family == AF_INET6 ? &s->has_v6 : &s->has_v4) = true;
            /* Without RDMA, who opens sockets by their addresses cannot use rails of one subnet. */
            if (!is_rdma && r && p->must_bind)
                continue;
            add_item(s->devices, is_rdma ? rail->device[side] : rail->interface[side]);
            add_item(s->hcas, rail->device[side]);
            if (!r || !p->must_bind)
                add_item(s->sockets, rail->interface[side]);
            if (!is_rdma)
                continue;
            const int gid = rail->address[side].gid_index;
            s->gid = !s->has_gid || s->gid == gid ? gid : -1;
            s->has_gid = true;
        }
    }
}

void launch_decision_environment(const struct launch_decision *d, int host, struct launch_environment *out)
{
    struct summary s;
    *out = (struct launch_environment){.n = 0};
    sum_up(d, host, &s);
    if (!s.devices[0])
        return; /* the only host */
    const bool prefers_v6 = s.has_v6 && !s.has_v4;
    set(out, "UCX_NET_DEVICES", "%s", s.devices);
    set(out, "UCX_TLS", "%s", s.has_rdma && s.has_tcp ? "rc,ud,tcp,posix,cma,self" : s.has_rdma ? "rc,ud,posix,cma,self" : "tcp,posix,cma,self");
    set(out, "UCX_TCP_AF_PRIO", "%s", prefers_v6 ? "inet6" : "inet");
    if (s.has_rdma) {
        if (s.gid >= 0)
            set(out, "UCX_IB_GID_INDEX", "%d", s.gid);
        else
            set(out, "UCX_IB_GID_INDEX", "auto"); /* one number for all devices: theirs differ */
        /* Rails in subnets of their own: do not join the wrong ends. */
        set(out, "UCX_IB_ROCE_LOCAL_SUBNET", "%s", s.n_rails > 1 && s.own_subnets ? "y" : "n");
        set(out, "UCX_MAX_RNDV_RAILS", "%d", s.n_rails);
    }
    set(out, "NCCL_SOCKET_IFNAME", "=%s", s.sockets);
    set(out, "NCCL_SOCKET_FAMILY", "%s", prefers_v6 ? "AF_INET6" : "AF_INET");
    if (s.has_rdma) {
        set(out, "NCCL_IB_HCA", "=%s", s.hcas);
        if (s.gid >= 0) {
            set(out, "NCCL_IB_GID_INDEX", "%d", s.gid);
        } else if (s.has_gid) {
            set(out, "NCCL_IB_ROCE_VERSION_NUM", "2");
            set(out, "NCCL_IB_ADDR_FAMILY", "%s", prefers_v6 ? "AF_INET6" : "AF_INET");
        }
    } else {
        set(out, "NCCL_IB_DISABLE", "1");
    }
    char first[IF_NAMESIZE];
    snprintf(first, sizeof first, "%.*s", (int)strcspn(s.sockets, ","), s.sockets);
    set(out, "HYDRA_IFACE", "%s", first);
    set(out, "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE", "%s", first); /* ch3; ch4:ucx goes by UCX's */
    set(out, "FI_TCP_IFACE", "%s", first);                        /* ch4:ofi */
}

const char *launch_decision_address(const struct launch_decision *d, int host, char text[LAUNCH_ADDRESS_TEXT])
{
    snprintf(text, LAUNCH_ADDRESS_TEXT, "127.0.0.1");
    for (int i = 0; i < d->n_pairs; i++)
        for (int s = 0; s < 2; s++)
            if (d->pairs[i].host[s] == host && d->pairs[i].transport != LAUNCH_SAME_MACHINE)
                return launch_address_text(&d->pairs[i].rails[0].address[s], d->pairs[i].rails[0].interface[s], text);
    return text;
}

int launch_pair_rails(const struct launch_pair *p, int host, struct launch_facing out[LAUNCH_MAX_RAILS])
{
    const int own = p->host[0] == host ? 0 : 1;
    for (int i = 0; i < p->n_rails; i++) {
        out[i] = (struct launch_facing){.host = {p->host[own], p->host[1 - own]}, .address = {p->rails[i].address[own], p->rails[i].address[1 - own]}, .works = true, .mtu = p->rails[i].mtu};
        memcpy(out[i].interface[0], p->rails[i].interface[own], IF_NAMESIZE);
        memcpy(out[i].interface[1], p->rails[i].interface[1 - own], IF_NAMESIZE);
    }
    return p->n_rails;
}

void launch_pair_drop_rail(struct launch_pair *p, int i, const char *why)
{
    const bool is_last = p->n_rails == 1;
    warn(p, "%s %s (%s - %s)", why, is_last ? "and it is the only rail" : "this rail is not used", p->rails[i].interface[0], p->rails[i].interface[1]);
    if (is_last)
        return;
    p->gbit -= p->are_twins ? 0 : p->gbit / p->n_rails;
    p->n_rails--;
    memmove(&p->rails[i], &p->rails[i + 1], (size_t)(p->n_rails - i) * sizeof *p->rails);
    p->must_bind = p->must_bind && p->n_rails > 1;
    p->mtu = p->rails[0].mtu;
    for (int k = 1; k < p->n_rails; k++)
        p->mtu = p->rails[k].mtu < p->mtu ? p->rails[k].mtu : p->mtu;
    append(p->reason, sizeof p->reason, "; one fewer is used");
}

/* ---- for --dry-run ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static void print_end(const struct launch_rail *r, int s, FILE *out)
{
    char text[LAUNCH_ADDRESS_TEXT];
    fprintf(out, "%s %s", r->interface[s], launch_address_text(&r->address[s], NULL, text));
    if (r->device[s][0])
        fprintf(out, " (%s, GID %d)", r->device[s], r->address[s].gid_index);
}

static void print_rate(double gbit, FILE *out)
{
    if (gbit > 0)
        fprintf(out, ", %g Gb/s", gbit);
    else
        fputs(", rate unknown", out);
}

void launch_decision_print(const struct launch_decision *d, const struct launch_host *hosts, FILE *out)
{
    static const char *const transports[] = {"?", "RDMA", "TCP", "same machine"};
    for (int i = 0; i < d->n_pairs; i++) {
        const struct launch_pair *p = &d->pairs[i];
        fprintf(out, "link %s - %s: %s, %d rail%s", hosts[p->host[0]].name, hosts[p->host[1]].name, transports[p->transport], p->n_rails, p->n_rails == 1 ? "" : "s");
        if (p->transport != LAUNCH_SAME_MACHINE)
            print_rate(p->gbit, out);
        fprintf(out, ", MTU %d\n", p->mtu);
        for (int r = 0; r < p->n_rails; r++) {
            fprintf(out, "  rail %d: ", r);
            print_end(&p->rails[r], 0, out);
            fputs(" - ", out);
            print_end(&p->rails[r], 1, out);
            fprintf(out, ", MTU %d\n", p->rails[r].mtu);
        }
        fprintf(out, "  why: %s\n", p->reason);
        for (int w = 0; w < p->n_warnings; w++)
            fprintf(out, "  warning: %s\n", p->warnings[w]);
    }
    for (int h = 0; h < d->n_hosts && d->n_pairs; h++) {
        struct launch_environment env;
        launch_decision_environment(d, h, &env);
        fprintf(out, "ranks of %s:", hosts[h].name);
        for (int i = 0; i < env.n; i++)
            fprintf(out, " %s=%s", env.list[i].name, env.list[i].value);
        fputc('\n', out);
    }
}
