/* Descriptions of machines (JSON): whatever is taken is consistent, and can be placed on and drawn. */
#include <stdlib.h>
#include <string.h>

#include "topologies/description.h"
#include "topologies/place.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_machine(const struct topo_machine *m) {
    BASE_ASSERT(m->n_cores >= 1 && m->n_pus >= m->n_cores && m->n_allowed == m->n_pus && m->n_kinds >= 1 && m->n_kinds <= TOPO_MAX_KINDS);
    int n_pus = 0;
    for (int i = 0; i < m->n_cores; i++) {
        const struct topo_core *c = &m->cores[i];
        BASE_ASSERT(c->first_pu == n_pus && c->n_pus >= 1 && c->kind >= 0 && c->kind < m->n_kinds);
        BASE_ASSERT(c->package >= -1 && c->package < m->n_packages && c->numa >= -1 && c->numa < m->n_numa && c->l3 >= -1 && c->l3 < m->n_l3);
        n_pus += c->n_pus;
    }
    BASE_ASSERT(n_pus == m->n_pus);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct topo_description *d = NULL;
    struct err e = {0};
    enum st st = topo_description_parse("fuzz", (const char *)data, bytes, &d, &e);
    if (st != ST_OK) {
        BASE_ASSERT(!d && !strncmp(e.text, "fuzz", 4));
        return 0;
    }
    check_machine(d->machine);
    for (int i = 0; i < d->n_accelerators; i++) BASE_ASSERT(d->accelerators[i].name[0] && d->accelerators[i].bandwidth >= 0 && d->accelerators[i].n_flops <= TOPO_MAX_DEVICES);
    for (int i = 0; i < d->n_ports; i++) BASE_ASSERT(d->ports[i].name[0] && d->ports[i].n_rails >= 1);
    if (d->machine->n_pus <= 256) {
        struct topo_placement *p = NULL;
        const struct topo_place_options o = {.n_ranks = 1 + (int)(bytes % 5), .n_threads = (int)(bytes % 3)};
        BASE_ASSERT(topo_place(d->machine, &o, &p, &e) == ST_OK);
        free(topo_draw_text(d->machine, p));
        free(topo_draw_json(d->machine, p));
        free(topo_draw_svg(d->machine, p));
        topo_placement_free(p);
    }
    topo_description_close(d);
    return 0;
}
