/* The address decision, by hand for each kind of pair, and the same whatever the order of lists and hosts.
 *
 * Hosts are described in a few words and go through JSON, as they do when they come from afar. A small world says which interfaces hang on one wire: between those that do, every pair of
 * addresses that a probe would try works. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "launcher/decide.h"
#include "tests/t.h"

/* ---- a small world ------------------------------------------------------------------------------------------------------------------------------------------------ */

struct port {
    const char *name, *wire; /* interfaces of one wire face each other; NULL: none */
    enum launch_medium medium;
    int mtu, mbit;
    const char *addresses; /* "10.0.0.1/24@3 fe80::1/64@1": @ the GID; "" none */
    const char *device;    /* RDMA, port 1; NULL: none */
    const char *cage;
    double gbit; /* 0: its port is down */
    const char *problem;
};
#define MAX_PORTS 10
struct box {
    const char *name, *rdma_problem;
    struct port ports[MAX_PORTS];
};

struct world {
    int n;
    struct launch_interfaces *interfaces[3];
    const char *wires[3][LAUNCH_MAX_INTERFACES];
    struct launch_host hosts[3];
    struct launch_facings facings;
};

static void add_port(struct launch_interfaces *in, const struct port *p)
{
    struct launch_interface *i = &in->list[in->n++];
    *i = (struct launch_interface){.index = in->n + 1, .medium = p->medium, .is_up = true, .has_carrier = true, .mtu = p->mtu ? p->mtu : 1500, .speed_mbit = p->mbit ? p->mbit : -1};
    strcpy(i->name, p->name);
    char text[256], *save = NULL;
    snprintf(text, sizeof text, "%s", p->addresses);
    for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        struct launch_address *a = &i->addresses[i->n_addresses++];
        a->gid_index = -1;
        char *at = strchr(word, '@'), *slash = strchr(word, '/');
        if (at) {
            *at = 0;
            a->gid_index = atoi(at + 1);
        }
        *slash = 0;
        a->prefix = atoi(slash + 1);
        assert_true(launch_address_parse(word, a));
    }
    if (!p->device)
        return;
    struct launch_rdma *r = &in->rdma[in->n_rdma++];
    *r = (struct launch_rdma){.port = 1, .is_active = p->gbit > 0, .gbit = p->gbit};
    strcpy(r->device, p->device);
    strcpy(r->interface, p->name);
    strcpy(r->adapter, "a088:c203:0001:0000");
    strcpy(r->cage, p->cage ? p->cage : "");
    strcpy(r->state, p->gbit > 0 ? "ACTIVE" : "DOWN");
    strcpy(r->problem, p->problem ? p->problem : "");
}

static const char *wire_of(const struct box *b, const char *interface)
{
    for (int i = 0; i < MAX_PORTS && b->ports[i].name; i++)
        if (strcmp(b->ports[i].name, interface) == 0)
            return b->ports[i].wire;
    return NULL;
}

/* What probes would tell of hosts x and y. */
static void probe(struct world *w, const struct box *boxes[], int x, int y)
{
    const struct launch_interfaces *in[2] = {w->interfaces[x], w->interfaces[y]};
    for (int i = 0; i < in[0]->n; i++)
        for (int j = 0; j < in[1]->n; j++)
            for (int k = 0; k < in[0]->list[i].n_addresses; k++)
                for (int l = 0; l < in[1]->list[j].n_addresses; l++) {
                    const struct launch_interface *a = &in[0]->list[i], *b = &in[1]->list[j];
                    if (launch_pair_worth(a, &a->addresses[k], b, &b->addresses[l], launch_interfaces_same_machine(in[0], in[1])) < 0)
                        continue;
                    struct launch_facing *f = &w->facings.list[w->facings.n++];
                    *f = (struct launch_facing){.host = {x, y}, .address = {a->addresses[k], b->addresses[l]}};
                    strcpy(f->interface[0], a->name);
                    strcpy(f->interface[1], b->name);
                    const char *wa = wire_of(boxes[x], a->name), *wb = wire_of(boxes[y], b->name);
                    f->works = wa && wb && strcmp(wa, wb) == 0 && launch_address_share_subnet(&a->addresses[k], &b->addresses[l]);
                    f->mtu = f->works ? (a->mtu < b->mtu ? a->mtu : b->mtu) : 0;
                    f->rtt_ns = f->works ? 1000 : 0;
                }
}

static struct world make_world(int n, const struct box *boxes[])
{
    struct world w = {.n = n, .facings = {.list = calloc(3 * LAUNCH_MAX_FACINGS, sizeof *w.facings.list)}};
    assert_non_null(w.facings.list);
    for (int h = 0; h < n; h++) {
        struct launch_interfaces *made = calloc(1, sizeof *made);
        w.interfaces[h] = calloc(1, sizeof *made);
        assert_true(made && w.interfaces[h]);
        snprintf(made->machine, sizeof made->machine, "machine-of-%s", boxes[h]->name);
        snprintf(made->rdma_problem, sizeof made->rdma_problem, "%s", boxes[h]->rdma_problem ? boxes[h]->rdma_problem : "");
        for (int i = 0; i < MAX_PORTS && boxes[h]->ports[i].name; i++)
            add_port(made, &boxes[h]->ports[i]);
        char *json = launch_interfaces_to_json(made);
        struct err e = {""};
        T_OK(launch_interfaces_from_json(boxes[h]->name, json, strlen(json), w.interfaces[h], &e), &e);
        assert_memory_equal(made, w.interfaces[h], sizeof *made);
        free(json);
        free(made);
        w.hosts[h] = (struct launch_host){boxes[h]->name, w.interfaces[h]};
    }
    for (int x = 0; x < n; x++)
        for (int y = x + 1; y < n; y++)
            probe(&w, boxes, x, y);
    return w;
}

static void release_world(struct world *w)
{
    for (int h = 0; h < w->n; h++)
        free(w->interfaces[h]);
    launch_facings_release(&w->facings);
}

static char *print(const struct launch_decision *d, const struct launch_host *hosts)
{
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    assert_non_null(f);
    launch_decision_print(d, hosts, f);
    fclose(f);
    return text;
}

static void shuffle(struct base_rng *rng, void *list, int n, size_t size)
{
    char *at = list, *hold = malloc(size);
    assert_non_null(hold);
    for (int i = n - 1; i > 0; i--) {
        const size_t k = base_rng_below(rng, (uint32_t)i + 1);
        memcpy(hold, at + (size_t)i * size, size);
        memcpy(at + (size_t)i * size, at + k * size, size);
        memcpy(at + k * size, hold, size);
    }
    free(hold);
}

static void same_end(const struct launch_rail *a, int s, const struct launch_rail *b, int t)
{
    assert_string_equal(a->interface[s], b->interface[t]);
    assert_string_equal(a->device[s], b->device[t]);
    assert_int_equal(a->index[s], b->index[t]);
    assert_true(launch_address_equal(&a->address[s], &b->address[t]));
    assert_int_equal(a->address[s].gid_index, b->address[t].gid_index);
}

/* The first two hosts, in lists of any order, and with the hosts exchanged: the same decision, or the same error. */
static void is_symmetric(const struct world *w, const struct launch_wishes *wishes, enum st st, const struct launch_pair *pair, const struct err *error)
{
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    for (int round = 0; round < 20; round++) {
        const bool turned = base_rng_below(&rng, 2);
        struct launch_interfaces *in[2] = {malloc(sizeof *in[0]), malloc(sizeof *in[1])};
        struct launch_facings parts[2] = {{0, calloc((size_t)w->facings.n + 1, sizeof *parts[0].list)}, {0, calloc((size_t)w->facings.n + 1, sizeof *parts[0].list)}};
        assert_true(in[0] && in[1] && parts[0].list && parts[1].list);
        for (int h = 0; h < 2; h++) {
            *in[h] = *w->interfaces[turned ? 1 - h : h];
            for (int i = 0; i < in[h]->n; i++)
                shuffle(&rng, in[h]->list[i].addresses, in[h]->list[i].n_addresses, sizeof in[h]->list[i].addresses[0]);
            shuffle(&rng, in[h]->list, in[h]->n, sizeof in[h]->list[0]);
            shuffle(&rng, in[h]->rdma, in[h]->n_rdma, sizeof in[h]->rdma[0]);
        }
        for (int i = 0; i < w->facings.n; i++) {
            struct launch_facings *part = &parts[base_rng_below(&rng, 2)];
            struct launch_facing f = w->facings.list[i];
            if (f.host[1] > 1)
                continue;
            if (base_rng_below(&rng, 2)) { /* told from the other side */
                f.host[0] = w->facings.list[i].host[1];
                f.host[1] = w->facings.list[i].host[0];
                for (int s = 0; s < 2; s++) {
                    f.address[s] = w->facings.list[i].address[1 - s];
                    memcpy(f.interface[s], w->facings.list[i].interface[1 - s], IF_NAMESIZE);
                }
            }
            for (int s = 0; s < 2 && turned; s++)
                f.host[s] = 1 - f.host[s];
            part->list[part->n++] = f;
        }
        for (int i = 0; i < 2; i++)
            shuffle(&rng, parts[i].list, parts[i].n, sizeof parts[i].list[0]);
        const struct launch_host hosts[2] = {{w->hosts[turned].name, in[0]}, {w->hosts[!turned].name, in[1]}};
        struct launch_decision d = {.n_hosts = 0};
        struct err e = {""};
        assert_int_equal(launch_decide(hosts, 2, parts, 2, wishes, &d, &e), st);
        if (st == ST_NOT_FOUND)
            assert_string_equal(e.text, error->text);
        if (!st) {
            const struct launch_pair *p = launch_decision_pair(&d, 1, 0);
            assert_int_equal(p->transport, pair->transport);
            assert_int_equal(p->n_rails, pair->n_rails);
            assert_int_equal(p->must_bind, pair->must_bind);
            assert_int_equal(p->mtu, pair->mtu);
            assert_true(p->gbit == pair->gbit);
            assert_string_equal(p->reason, pair->reason);
            assert_int_equal(p->n_warnings, pair->n_warnings);
            for (int r = 0; r < p->n_rails; r++)
                for (int s = 0; s < 2; s++)
                    same_end(&p->rails[r], s, &pair->rails[r], turned ? 1 - s : s);
            launch_decision_release(&d);
        }
        for (int i = 0; i < 2; i++) {
            free(in[i]);
            launch_facings_release(&parts[i]);
        }
    }
}

/* Decides, and looks for each of the lines (parts of the printed decision, or of the error where st is one); a leading '!' says that it is not there. NULL ends them. */
static void decides(const struct box *a, const struct box *b, const struct launch_wishes *wishes, enum st st, const char *const *lines)
{
    const struct box *boxes[2] = {a, b};
    struct world w = make_world(2, boxes);
    struct launch_decision d = {.n_hosts = 0};
    struct err e = {""};
    const enum st got = launch_decide(w.hosts, 2, &w.facings, 1, wishes, &d, &e);
    if (got != st)
        print_message("%s\n", e.text);
    assert_int_equal(got, st);
    char *text = st ? strdup(e.text) : print(&d, w.hosts);
    assert_non_null(text);
    for (; *lines; lines++) {
        const bool absent = **lines == '!';
        if ((strstr(text, *lines + absent) == NULL) == absent)
            continue;
        print_message("%s '%s' in:\n%s\n", absent ? "not expected" : "expected", *lines + absent, text);
        fail();
    }
    free(text);
    is_symmetric(&w, wishes, st, d.pairs, &e);
    if (!st)
        launch_decision_release(&d);
    release_world(&w);
}
#define DECIDES(a, b, wishes, st, ...) decides(a, b, wishes, st, (const char *const[]){__VA_ARGS__, NULL})

/* ---- Sparks --------------------------------------------------------------------------------------------------------------------------------------------------------- */

#define LO {"lo", NULL, LAUNCH_LOOPBACK, 65536, 0, "127.0.0.1/8 ::1/128", NULL, NULL, 0, NULL}

static void sparks_as_unpacked(void **state)
{
    (void)state;
    static const struct box a = {"spark1", NULL,
                                 {LO,
                                  {"enp1s0f0np0", "cable", LAUNCH_WIRE, 9000, 200000, "fe80::a1/64@1", "rocep1s0f0", "p0", 200, NULL},
                                  {"enp1s0f1np1", NULL, LAUNCH_WIRE, 9000, 0, "", "rocep1s0f1", "p1", 0, NULL},
                                  {"enP2p1s0f0np0", "cable", LAUNCH_WIRE, 9000, 200000, "fe80::a2/64@1", "roceP2p1s0f0", "p0", 200, NULL},
                                  {"wlP9s9", "air", LAUNCH_WIRELESS, 1500, 0, "192.168.1.17/24", NULL, NULL, 0, NULL}}};
    static const struct box b = {"spark2", NULL,
                                 {LO,
                                  {"enp1s0f0np0", "cable", LAUNCH_WIRE, 9000, 200000, "fe80::b1/64@1", "rocep1s0f0", "p0", 200, NULL},
                                  {"enP2p1s0f0np0", "cable", LAUNCH_WIRE, 9000, 200000, "fe80::b2/64@1", "roceP2p1s0f0", "p0", 200, NULL},
                                  {"wlP9s9", "air", LAUNCH_WIRELESS, 1500, 0, "192.168.1.23/24", NULL, NULL, 0, NULL}}};
    DECIDES(&a, &b, NULL, ST_OK, "link spark1 - spark2: RDMA, 2 rails, 200 Gb/s, MTU 9000", "rail 0: enp1s0f0np0 fe80::a1 (rocep1s0f0:1, GID 1) - enp1s0f0np0 fe80::b1 (rocep1s0f0:1, GID 1)",
            "rail 1: enP2p1s0f0np0 fe80::a2 (roceP2p1s0f0:1, GID 1) - enP2p1s0f0np0 fe80::b2", "IPv6 link-local, 2 rails told apart by their scopes",
            "ranks of spark1: UCX_NET_DEVICES=rocep1s0f0:1,roceP2p1s0f0:1 UCX_TLS=rc,ud,posix,cma,self UCX_TCP_AF_PRIO=inet6 UCX_IB_GID_INDEX=1 UCX_IB_ROCE_LOCAL_SUBNET=n UCX_MAX_RNDV_RAILS=2",
            "NCCL_SOCKET_IFNAME==enp1s0f0np0 NCCL_SOCKET_FAMILY=AF_INET6 NCCL_IB_HCA==rocep1s0f0:1,roceP2p1s0f0:1 NCCL_IB_GID_INDEX=1", "!warning");
}

/* The cable in cage 1 of one box and cage 0 of the other; IPv4 on two subnets; GIDs that drifted. */
static const struct box swapped_a = {"spark1", NULL,
                                     {LO,
                                      {"enp1s0f0np0", NULL, LAUNCH_WIRE, 9000, 0, "", "rocep1s0f0", "p0", 0, NULL},
                                      {"enp1s0f1np1", "cable", LAUNCH_WIRE, 9000, 200000, "10.0.0.1/24@3 fe80::a1/64@1", "rocep1s0f1", "p1", 200, NULL},
                                      {"enP2p1s0f0np0", NULL, LAUNCH_WIRE, 9000, 0, "", "roceP2p1s0f0", "p0", 0, NULL},
                                      {"enP2p1s0f1np1", "cable", LAUNCH_WIRE, 9000, 200000, "10.0.1.1/24@5 fe80::a2/64@1", "roceP2p1s0f1", "p1", 200, NULL},
                                      {"enP7s7", "office", LAUNCH_WIRE, 1500, 10000, "192.168.1.17/24", NULL, NULL, 0, NULL},
                                      {"docker0", NULL, LAUNCH_VIRTUAL, 1500, 0, "172.17.0.1/16", NULL, NULL, 0, NULL}}};
static const struct box swapped_b = {"spark2", NULL,
                                     {LO,
                                      {"enp1s0f0np0", "cable", LAUNCH_WIRE, 9000, 200000, "10.0.0.2/24@3 fe80::b1/64@1", "rocep1s0f0", "p0", 200, NULL},
                                      {"enP2p1s0f0np0", "cable", LAUNCH_WIRE, 9000, 200000, "10.0.1.2/24@3 fe80::b2/64@1", "roceP2p1s0f0", "p0", 200, NULL},
                                      {"enP7s7", "office", LAUNCH_WIRE, 1500, 10000, "192.168.1.18/24", NULL, NULL, 0, NULL},
                                      {"docker0", NULL, LAUNCH_VIRTUAL, 1500, 0, "172.17.0.1/16", NULL, NULL, 0, NULL}}};

static void sparks_with_netplan_and_swapped_cages(void **state)
{
    (void)state;
    DECIDES(&swapped_a, &swapped_b, NULL, ST_OK, "link spark1 - spark2: RDMA, 2 rails, 200 Gb/s, MTU 9000",
            "rail 0: enp1s0f1np1 10.0.0.1 (rocep1s0f1:1, GID 3) - enp1s0f0np0 10.0.0.2 (rocep1s0f0:1, GID 3)",
            "rail 1: enP2p1s0f1np1 10.0.1.1 (roceP2p1s0f1:1, GID 5) - enP2p1s0f0np0 10.0.1.2 (roceP2p1s0f0:1, GID 3)", "2 rails in subnets of their own",
            "UCX_NET_DEVICES=rocep1s0f1:1,roceP2p1s0f1:1 UCX_TLS=rc,ud,posix,cma,self UCX_TCP_AF_PRIO=inet UCX_IB_GID_INDEX=auto UCX_IB_ROCE_LOCAL_SUBNET=y",
            "NCCL_IB_ROCE_VERSION_NUM=2 NCCL_IB_ADDR_FAMILY=AF_INET", "ranks of spark2: UCX_NET_DEVICES=rocep1s0f0:1,roceP2p1s0f0:1", "UCX_IB_GID_INDEX=3", "!warning", "!docker0");
    const struct launch_wishes tcp = {.transport = LAUNCH_TCP}, office = {.transport = LAUNCH_TCP, .interfaces = "192.168.0.0/16"}, names = {.interfaces = "enp1s0f1np1,10.0.0.2"},
                               nothing = {.interfaces = "10.1.0.0/16"};
    DECIDES(&swapped_a, &swapped_b, &tcp, ST_OK, "TCP, 2 rails, 200 Gb/s, MTU 9000", "rail 0: enp1s0f1np1 10.0.0.1 - enp1s0f0np0 10.0.0.2", "UCX_NET_DEVICES=enp1s0f1np1,enP2p1s0f1np1 UCX_TLS=tcp",
            "NCCL_IB_DISABLE=1");
    DECIDES(&swapped_a, &swapped_b, &office, ST_OK, "TCP, 1 rail, 10 Gb/s, MTU 1500", "rail 0: enP7s7 192.168.1.17 - enP7s7 192.168.1.18");
    DECIDES(&swapped_a, &swapped_b, &names, ST_OK, "RDMA, 1 rail", "rail 0: enp1s0f1np1 10.0.0.1 (rocep1s0f1:1, GID 3) - enp1s0f0np0 10.0.0.2");
    DECIDES(&swapped_a, &swapped_b, &nothing, ST_NOT_FOUND, "spark1 and spark2 have no network in common within 10.1.0.0/16: spark1 has enp1s0f1np1 10.0.0.1/24");
}

static void sparks_with_both_cables(void **state)
{
    (void)state;
    struct box a = {"spark1", NULL,
                    {LO,
                     {"enp1s0f0np0", "first", LAUNCH_WIRE, 9000, 200000, "10.0.0.1/24@3", "rocep1s0f0", "p0", 200, NULL},
                     {"enp1s0f1np1", "second", LAUNCH_WIRE, 9000, 200000, "10.0.2.1/24@3", "rocep1s0f1", "p1", 200, NULL},
                     {"enP2p1s0f0np0", "first", LAUNCH_WIRE, 9000, 200000, "10.0.1.1/24@3", "roceP2p1s0f0", "p0", 200, NULL},
                     {"enP2p1s0f1np1", "second", LAUNCH_WIRE, 9000, 200000, "10.0.3.1/24@3", "roceP2p1s0f1", "p1", 200, NULL}}},
               b = a;
    b.name = "spark2";
    for (int i = 1; i <= 4; i++) {
        static const char *const addresses[] = {"", "10.0.0.2/24@3", "10.0.2.2/24@3", "10.0.1.2/24@3", "10.0.3.2/24@3"};
        b.ports[i].addresses = addresses[i];
    }
    DECIDES(&a, &b, NULL, ST_OK, "RDMA, 2 rails, 200 Gb/s", "rail 0: enp1s0f0np0 10.0.0.1", "rail 1: enP2p1s0f0np0 10.0.1.1", "!f1np1", "UCX_IB_GID_INDEX=3", "NCCL_IB_GID_INDEX=3");
    /* All four in one subnet: rails by scope where link-local addresses work, else bound to their interfaces. */
    static const char *const one[2][5] = {{"", "10.0.0.1/24@3 fe80::a1/64@1", "10.0.0.3/24@3 fe80::a3/64@1", "10.0.0.5/24@3 fe80::a5/64@1", "10.0.0.7/24@3 fe80::a7/64@1"},
                                          {"", "10.0.0.2/24@3 fe80::b2/64@1", "10.0.0.4/24@3 fe80::b4/64@1", "10.0.0.6/24@3 fe80::b6/64@1", "10.0.0.8/24@3 fe80::b8/64@1"}};
    for (int i = 1; i <= 4; i++) {
        a.ports[i].addresses = one[0][i];
        b.ports[i].addresses = one[1][i];
    }
    DECIDES(&a, &b, NULL, ST_OK, "RDMA, 2 rails", "rail 0: enp1s0f0np0 fe80::a1 (rocep1s0f0:1, GID 1)", "rail 1: enP2p1s0f0np0 fe80::a5", "told apart by their scopes");
    static const char *const bare[2][5] = {{"", "10.0.0.1/24@3", "10.0.0.3/24@3", "10.0.0.5/24@3", "10.0.0.7/24@3"}, {"", "10.0.0.2/24@3", "10.0.0.4/24@3", "10.0.0.6/24@3", "10.0.0.8/24@3"}};
    for (int i = 1; i <= 4; i++) {
        a.ports[i].addresses = bare[0][i];
        b.ports[i].addresses = bare[1][i];
    }
    DECIDES(&a, &b, NULL, ST_OK, "RDMA, 2 rails", "in one subnet, told apart by their interfaces",
            "ranks of spark1: UCX_NET_DEVICES=rocep1s0f0:1,roceP2p1s0f0:1 UCX_TLS=rc,ud,posix,cma,self UCX_TCP_AF_PRIO=inet UCX_IB_GID_INDEX=3 UCX_IB_ROCE_LOCAL_SUBNET=n UCX_MAX_RNDV_RAILS=2",
            "NCCL_SOCKET_IFNAME==enp1s0f0np0 NCCL_SOCKET_FAMILY=AF_INET NCCL_IB_HCA==rocep1s0f0:1,roceP2p1s0f0:1 NCCL_IB_GID_INDEX=3");
}

static void sparks_with_half_an_address_plan(void **state)
{
    (void)state;
    struct box a = swapped_a, b = swapped_b;
    a.ports[4].addresses = "";
    DECIDES(&a, &b, NULL, ST_OK, "RDMA, 1 rail", "warning: enP2p1s0f1np1 of spark1 shares the cable of enp1s0f1np1 but carries nothing", "warning: enP2p1s0f0np0 of spark2 shares the cable of enp1s0f0np0");
    /* The second twin has no IPv4: its link-local address does. */
    a.ports[4].addresses = "fe80::a2/64@1";
    DECIDES(&a, &b, NULL, ST_OK, "RDMA, 2 rails", "rail 0: enp1s0f1np1 10.0.0.1", "rail 1: enP2p1s0f1np1 fe80::a2", "!warning");
}

static void mtus(void **state)
{
    (void)state;
    struct box a = swapped_a, b = swapped_b;
    b.ports[1].mtu = 1500;
    DECIDES(&a, &b, NULL, ST_OK, "MTU 1500\n", "warning: enp1s0f0np0 of spark2 has MTU 1500, enp1s0f1np1 of spark1 9000; on spark2: sudo ip link set dev enp1s0f0np0 mtu 9000");
    for (int i = 1; i <= 4; i++)
        a.ports[i].mtu = b.ports[i].mtu = 1500;
    DECIDES(&a, &b, NULL, ST_OK, "warning: MTU 1500 makes RDMA packets small; on spark1: sudo ip link set dev enp1s0f1np1 mtu 9000; on spark2: sudo ip link set dev enp1s0f0np0 mtu 9000");
    /* A switch between them that takes less than both ends do. */
    const struct box *boxes[2] = {&swapped_a, &swapped_b};
    struct world w = make_world(2, boxes);
    for (int i = 0; i < w.facings.n; i++)
        w.facings.list[i].mtu = w.facings.list[i].mtu ? 1500 : 0;
    struct launch_decision d;
    T_OK(launch_decide(w.hosts, 2, &w.facings, 1, NULL, &d, NULL), NULL);
    char *text = print(&d, w.hosts);
    assert_non_null(strstr(text, "packets of 9000 bytes do not get through between enp1s0f1np1 of spark1 and enp1s0f0np0 of spark2, only of 1500"));
    free(text);
    launch_decision_release(&d);
    release_world(&w);
}

/* ---- RDMA that does not work ------------------------------------------------------------------------------------------------------------------------------------------ */

static void rdma_that_does_not_work(void **state)
{
    (void)state;
    const struct launch_wishes tcp = {.transport = LAUNCH_TCP}, rdma = {.transport = LAUNCH_RDMA};
    struct box a = swapped_a, b = swapped_b;
    a.rdma_problem = "libibverbs is missing: sudo apt install rdma-core libibverbs1 ibverbs-providers";
    DECIDES(&a, &b, NULL, ST_UNSUPPORTED, "no RDMA between spark1 and spark2 (--backend tcp does without it). spark1: libibverbs is missing: sudo apt install");
    DECIDES(&a, &b, &tcp, ST_OK, "TCP, 2 rails, 200 Gb/s");

    a = swapped_a;
    for (int i = 1; i <= 4; i++)
        a.ports[i].problem = "/dev/infiniband/uverbs0: Permission denied; sudo chmod a+rw /dev/infiniband/uverbs0";
    DECIDES(&a, &b, NULL, ST_UNSUPPORTED, "spark1: rocep1s0f0:1 (enp1s0f0np0): /dev/infiniband/uverbs0: Permission denied");

    a = swapped_a; /* the cable is out: the office network remains */
    for (int i = 1; i <= 4; i++) {
        a.ports[i].gbit = 0;
        a.ports[i].wire = NULL;
    }
    DECIDES(&a, &b, NULL, ST_UNSUPPORTED, "spark1: rocep1s0f0:1 (enp1s0f0np0): its port is not up: no cable, or the other end is off", "spark2: rocep1s0f0:1 (enp1s0f0np0): up, but nothing came back");

    a = swapped_a;
    a.ports[2].addresses = "10.0.0.1/24";
    a.ports[4].addresses = "10.0.1.1/24";
    DECIDES(&a, &b, NULL, ST_UNSUPPORTED, "rocep1s0f1:1 (enp1s0f1np1): no RoCE v2 GID belongs to its addresses");

    /* One that has no RDMA at all. */
    for (int i = 1; i <= 4; i++)
        a.ports[i].device = NULL;
    DECIDES(&a, &b, NULL, ST_UNSUPPORTED, "no RDMA between spark1 and spark2 (--backend tcp does without it). spark1 has no RDMA device; spark2: rocep1s0f0:1");
    DECIDES(&a, &b, &tcp, ST_OK, "TCP", "!warning");
    DECIDES(&a, &b, &rdma, ST_UNSUPPORTED, "spark1 has no RDMA device");
}

/* ---- others ------------------------------------------------------------------------------------------------------------------------------------------------------------ */

static void ten_gigabit_only(void **state)
{
    (void)state; /* without a cable the functions of the fast adapter are not even on the bus */
    static const struct box a = {"spark1", NULL, {LO, {"enP7s7", "office", LAUNCH_WIRE, 1500, 10000, "192.168.1.17/24 fe80::17/64", NULL, NULL, 0, NULL}, {"wlP9s9", "air", LAUNCH_WIRELESS, 1500, 0, "192.168.1.19/24", NULL, NULL, 0, NULL}}};
    static const struct box b = {"spark2", NULL, {LO, {"enP7s7", "office", LAUNCH_WIRE, 1500, 10000, "192.168.1.18/24 fe80::18/64", NULL, NULL, 0, NULL}, {"wlP9s9", "air", LAUNCH_WIRELESS, 1500, 0, "192.168.1.20/24", NULL, NULL, 0, NULL}}};
    DECIDES(&a, &b, NULL, ST_OK, "TCP, 1 rail, 10 Gb/s, MTU 1500", "rail 0: enP7s7 192.168.1.17 - enP7s7 192.168.1.18", "wire, no RDMA device at either end, IPv4", "NCCL_SOCKET_IFNAME==enP7s7 ", "!warning");
}

static void laptops(void **state)
{
    (void)state;
    struct box a = {"anna", NULL,
                    {LO,
                     {"docker0", NULL, LAUNCH_VIRTUAL, 1500, 10000, "172.17.0.1/16", NULL, NULL, 0, NULL},
                     {"br-1", NULL, LAUNCH_VIRTUAL, 1500, 10000, "172.18.0.1/16 fe80::1:1/64", NULL, NULL, 0, NULL},
                     {"wlan0", "air", LAUNCH_WIRELESS, 1500, 0, "192.168.1.2/24 fe80::2/64", NULL, NULL, 0, NULL},
                     {"eth0", "office", LAUNCH_WIRE, 1500, 1000, "192.168.1.3/24 fe80::3/64", NULL, NULL, 0, NULL}}};
    struct box b = {"bert", NULL,
                    {LO,
                     {"docker0", NULL, LAUNCH_VIRTUAL, 1500, 10000, "172.17.0.1/16", NULL, NULL, 0, NULL},
                     {"br-2", NULL, LAUNCH_VIRTUAL, 1500, 10000, "172.18.0.2/16 fe80::1:2/64", NULL, NULL, 0, NULL},
                     {"wlp2s0", "air", LAUNCH_WIRELESS, 1500, 0, "192.168.1.4/24 fe80::4/64", NULL, NULL, 0, NULL},
                     {"enp0s31f6", "office", LAUNCH_WIRE, 1500, 1000, "192.168.1.5/24 fe80::5/64", NULL, NULL, 0, NULL}}};
    DECIDES(&a, &b, NULL, ST_OK, "TCP, 1 rail, 1 Gb/s", "rail 0: eth0 192.168.1.3 - enp0s31f6 192.168.1.5", "!warning");
    a.ports[4].wire = NULL; /* its plug is out: the other's wire and its air are one network, as behind most routers */
    a.ports[3].wire = b.ports[3].wire = b.ports[4].wire = "home";
    DECIDES(&a, &b, NULL, ST_OK, "rail 0: wlan0 192.168.1.2 - enp0s31f6 192.168.1.5", "warning: the only way between anna and bert is wireless");
    a.ports[3].wire = NULL;
    DECIDES(&a, &b, NULL, ST_NOT_FOUND, "anna and bert do not face each other: of 14 pairs of addresses", "eth0 192.168.1.3 - enp0s31f6 192.168.1.5", "on bert: sudo ufw allow from 192.168.1.3");
}

static void ipv6_only(void **state)
{
    (void)state;
    static const struct box a = {"six1", NULL, {LO, {"eth0", "net", LAUNCH_WIRE, 1500, 25000, "2001:db8::1/64@2 fe80::1/64@1", "mlx5_0", "", 25, NULL}}};
    static const struct box b = {"six2", NULL, {LO, {"eth3", "net", LAUNCH_WIRE, 1500, 25000, "2001:db8::2/64@4 fe80::2/64@1", "mlx5_2", "", 25, NULL}}};
    DECIDES(&a, &b, NULL, ST_OK, "RDMA, 1 rail, 25 Gb/s", "eth0 2001:db8::1 (mlx5_0:1, GID 2) - eth3 2001:db8::2 (mlx5_2:1, GID 4)", "UCX_TCP_AF_PRIO=inet6", "NCCL_SOCKET_FAMILY=AF_INET6", "MTU 1500 makes RDMA packets small");
}

static void two_plain_cables(void **state)
{
    (void)state;
    static const struct box a = {"pc1", NULL, {LO, {"eth0", "one", LAUNCH_WIRE, 9000, 10000, "10.0.0.1/24", NULL, NULL, 0, NULL}, {"eth1", "two", LAUNCH_WIRE, 9000, 10000, "10.0.1.1/24", NULL, NULL, 0, NULL}, {"eth2", "slow", LAUNCH_WIRE, 9000, 1000, "10.0.2.1/24", NULL, NULL, 0, NULL}}};
    static const struct box b = {"pc2", NULL, {LO, {"eth5", "two", LAUNCH_WIRE, 9000, 10000, "10.0.1.2/24", NULL, NULL, 0, NULL}, {"eth6", "one", LAUNCH_WIRE, 9000, 10000, "10.0.0.2/24", NULL, NULL, 0, NULL}, {"eth7", "slow", LAUNCH_WIRE, 9000, 1000, "10.0.2.2/24", NULL, NULL, 0, NULL}}};
    DECIDES(&a, &b, NULL, ST_OK, "TCP, 2 rails, 20 Gb/s", "rail 0: eth0 10.0.0.1 - eth6 10.0.0.2", "rail 1: eth1 10.0.1.1 - eth5 10.0.1.2", "!eth7");
}

static void no_common_network(void **state)
{
    (void)state;
    static const struct box a = {"pc1", NULL, {LO, {"eth0", "one", LAUNCH_WIRE, 1500, 10000, "10.0.0.1/24", NULL, NULL, 0, NULL}}};
    static const struct box b = {"pc2", NULL, {LO, {"eth0", "one", LAUNCH_WIRE, 1500, 10000, "2001:db8::2/64", NULL, NULL, 0, NULL}}};
    DECIDES(&a, &b, NULL, ST_NOT_FOUND, "pc1 and pc2 have no network in common: pc1 has eth0 10.0.0.1/24; pc2 has eth0 2001:db8::2/64");
}

static void one_machine(void **state)
{
    (void)state;
    const struct box *boxes[2] = {&swapped_a, &swapped_a};
    struct world w = make_world(2, boxes);
    struct launch_decision d;
    struct err e = {""};
    T_OK(launch_decide(w.hosts, 2, &w.facings, 1, NULL, &d, &e), &e);
    assert_int_equal(d.pairs[0].transport, LAUNCH_SAME_MACHINE);
    char text[LAUNCH_ADDRESS_TEXT];
    assert_string_equal(launch_decision_address(&d, 1, text), "127.0.0.1");
    struct launch_environment env;
    launch_decision_environment(&d, 0, &env);
    assert_string_equal(env.list[0].name, "UCX_NET_DEVICES");
    assert_string_equal(env.list[0].value, "lo");
    launch_decision_release(&d);
    T_OK(launch_decide(w.hosts, 1, NULL, 0, NULL, &d, &e), &e); /* nothing to decide */
    assert_int_equal(d.n_pairs, 0);
    launch_decision_environment(&d, 0, &env);
    assert_int_equal(env.n, 0);
    launch_decision_release(&d);
    release_world(&w);
}

/* A triangle of cables: each host's ranks are told of both of its links. */
static void three_hosts(void **state)
{
    (void)state;
    static const struct box boxes[3] = {
        {"s1", NULL, {LO, {"p0", "12", LAUNCH_WIRE, 9000, 200000, "10.0.12.1/24@3", "roce0", "p0", 200, NULL}, {"p1", "13", LAUNCH_WIRE, 9000, 200000, "10.0.13.1/24@3", "roce1", "p1", 200, NULL}}},
        {"s2", NULL, {LO, {"p0", "12", LAUNCH_WIRE, 9000, 200000, "10.0.12.2/24@3", "roce0", "p0", 200, NULL}, {"p1", "23", LAUNCH_WIRE, 9000, 200000, "10.0.23.2/24@3", "roce1", "p1", 200, NULL}}},
        {"s3", NULL, {LO, {"p0", "23", LAUNCH_WIRE, 9000, 200000, "10.0.23.3/24@3", "roce0", "p0", 200, NULL}, {"p1", "13", LAUNCH_WIRE, 9000, 200000, "10.0.13.3/24@3", "roce1", "p1", 200, NULL}}},
    };
    const struct box *list[3] = {&boxes[0], &boxes[1], &boxes[2]};
    struct world w = make_world(3, list);
    struct launch_decision d;
    struct err e = {""};
    T_OK(launch_decide(w.hosts, 3, &w.facings, 1, NULL, &d, &e), &e);
    assert_int_equal(d.n_pairs, 3);
    assert_string_equal(launch_decision_pair(&d, 2, 1)->rails[0].interface[0], "p1");
    assert_string_equal(launch_decision_pair(&d, 2, 1)->rails[0].interface[1], "p0");
    assert_null(launch_decision_pair(&d, 1, 1));
    struct launch_environment env;
    launch_decision_environment(&d, 2, &env);
    assert_string_equal(env.list[0].value, "roce1:1,roce0:1");
    struct launch_facing rails[LAUNCH_MAX_RAILS];
    assert_int_equal(launch_pair_rails(launch_decision_pair(&d, 0, 2), 2, rails), 1);
    assert_int_equal(rails[0].host[0], 2);
    assert_string_equal(rails[0].interface[0], "p1");
    launch_decision_release(&d);
    release_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sparks_as_unpacked),
        cmocka_unit_test(sparks_with_netplan_and_swapped_cages),
        cmocka_unit_test(sparks_with_both_cables),
        cmocka_unit_test(sparks_with_half_an_address_plan),
        cmocka_unit_test(mtus),
        cmocka_unit_test(rdma_that_does_not_work),
        cmocka_unit_test(ten_gigabit_only),
        cmocka_unit_test(laptops),
        cmocka_unit_test(ipv6_only),
        cmocka_unit_test(two_plain_cables),
        cmocka_unit_test(no_common_network),
        cmocka_unit_test(one_machine),
        cmocka_unit_test(three_hosts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
