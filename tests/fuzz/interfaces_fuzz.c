/* What another host tells of its interfaces, sockets and probes: whatever is taken can be told again and read as the same, decided on, and printed. The first byte says what it is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/decide.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_name(const char *name)
{
    BASE_ASSERT(name[0]);
    for (; *name; name++)
        BASE_ASSERT(*name > ' ' && *name <= '~' && *name != ',' && *name != '/');
}

/* A host that faces itself, as far as its addresses go. */
static void decide(const struct launch_interfaces *in)
{
    struct launch_interfaces *other = malloc(sizeof *other);
    struct launch_facings f = {.list = calloc(LAUNCH_MAX_FACINGS, sizeof *f.list)};
    BASE_ASSERT(other && f.list);
    *other = *in;
    snprintf(other->machine, sizeof other->machine, "other");
    for (int i = 0; i < in->n; i++)
        for (int j = 0; j < in->n; j++)
            for (int k = 0; k < in->list[i].n_addresses && in->list[j].n_addresses && f.n < LAUNCH_MAX_FACINGS; k++) {
                struct launch_facing *w = &f.list[f.n++];
                *w = (struct launch_facing){.host = {0, 1}, .address = {in->list[i].addresses[k], in->list[j].addresses[0]}};
                w->works = w->address[0].family == w->address[1].family;
                memcpy(w->interface[0], in->list[i].name, IF_NAMESIZE);
                memcpy(w->interface[1], in->list[j].name, IF_NAMESIZE);
            }
    const struct launch_host hosts[2] = {{"a", in}, {"b", other}};
    for (int transport = LAUNCH_ANY_TRANSPORT; transport <= LAUNCH_TCP; transport++) {
        const struct launch_wishes wishes = {.transport = (enum launch_transport)transport};
        struct launch_decision d;
        struct err e = {""};
        const enum st st = launch_decide(hosts, 2, &f, 1, &wishes, &d, &e);
        BASE_ASSERT(st ? e.text[0] != 0 : d.pairs[0].n_rails >= 1);
        if (st)
            continue;
        char *text = NULL;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        BASE_ASSERT(out);
        launch_decision_print(&d, hosts, out);
        fclose(out);
        for (size_t i = 0; i < n; i++)
            BASE_ASSERT(text[i] == '\n' || (text[i] >= ' ' && text[i] <= '~'));
        free(text);
        launch_decision_release(&d);
    }
    launch_facings_release(&f);
    free(other);
}

static void read_interfaces(const char *text, size_t bytes)
{
    struct launch_interfaces *in = calloc(1, sizeof *in), *again = calloc(1, sizeof *again);
    struct err e = {""};
    BASE_ASSERT(in && again);
    if (launch_interfaces_from_json("fuzz", text, bytes, in, &e) == ST_OK) {
        BASE_ASSERT(in->n >= 0 && in->n <= LAUNCH_MAX_INTERFACES && in->n_rdma >= 0 && in->n_rdma <= LAUNCH_MAX_RDMA);
        for (int i = 0; i < in->n; i++)
            check_name(in->list[i].name);
        for (int i = 0; i < in->n_rdma; i++)
            check_name(in->rdma[i].device);
        char *json = launch_interfaces_to_json(in);
        BASE_ASSERT(json && launch_interfaces_from_json("again", json, strlen(json), again, &e) == ST_OK && again->n == in->n && again->n_rdma == in->n_rdma);
        free(json);
        decide(in);
    } else {
        BASE_ASSERT(!strncmp(e.text, "fuzz", 4));
    }
    free(in);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text = (const char *)data + 1;
    struct err e = {""};
    if (!bytes)
        return 0;
    if (data[0] == 'E') {
        struct launch_endpoints *ends = calloc(1, sizeof *ends);
        BASE_ASSERT(ends);
        if (launch_endpoints_from_json("fuzz", text, bytes - 1, ends, &e) == ST_OK)
            for (int i = 0; i < ends->n; i++)
                BASE_ASSERT(ends->list[i].port > 0 && ends->list[i].port < 65536 && ends->list[i].interface[0]);
        free(ends);
    } else if (data[0] == 'F') {
        struct launch_facings f, merged;
        if (launch_facings_from_json("fuzz", text, bytes - 1, &f, &e) == ST_OK) {
            BASE_ASSERT(launch_probe_merge(&f, &f, &merged, &e) == ST_OK && merged.n <= 2 * f.n);
            launch_facings_release(&merged);
            launch_facings_release(&f);
        }
    } else if (data[0] == 'P') {
        static const uint8_t key[LAUNCH_PROBE_KEY_BYTES];
        struct launch_packet p;
        if (launch_packet_get(key, (const uint8_t *)text, bytes - 1, &p))
            BASE_ASSERT(p.bytes == bytes - 1 && p.from_host < LAUNCH_MAX_HOSTS && p.to_host < LAUNCH_MAX_HOSTS);
    } else {
        read_interfaces(text, bytes - 1);
    }
    return 0;
}
