/* A core for each rank's progress thread, where there is one to spare.
 *
 * The one idea: threads come first. A core is spare when no rank's thread sits on any of its hardware threads, and when the CPUs that may be kept busy (quota) outnumber the
 * threads. Nearness decides first, because what such a thread polls lies in caches and memory of its rank: the same L3, then the same package, then the same NUMA node; on
 * another node it would be worse than a shared core. Among equally near cores the fastest kind is taken: what such a thread adds to each message is latency, and a
 * slow core adds more of it. Among equal ones the last, because interrupts and what the system does of itself begin at CPU 0.
 * All ranks take turns for each degree of nearness, so that nobody's second best is another's only choice. */
#include <stdlib.h>

#include "topologies/topo_priv.h"

#define N_DEGREES 3

struct search {
    const struct topo_machine *m;
    int *core_of;  /* [largest OS index + 1] */
    bool *used;    /* [cores] */
    bool *listed;  /* [largest OS index + 1] what --bind lists for the rank at hand; NULL: no list */
    int n_os;
};

/* Does the rank have a thread in the same domain of this level? A level that the machine does not have (−1 everywhere) is one domain. */
static bool shares(const struct search *s, const struct topo_seat *seat, const struct topo_core *core, enum topo_bind level) {
    for (int t = 0; t < seat->n_threads; t++) {
        const struct topo_core *own = &s->m->cores[s->core_of[seat->pus[t]]];
        if (level == TOPO_BIND_L3 ? own->l3 == core->l3 : level == TOPO_BIND_NUMA ? own->numa == core->numa : own->package == core->package) return true;
    }
    return false;
}

/* 0 the nearest … N_DEGREES − 1; N_DEGREES: too far, or forbidden by --bind. */
static int degree_of(const struct search *s, const struct topo_seat *seat, const struct topo_core *core, enum topo_bind bind) {
    if (!shares(s, seat, core, TOPO_BIND_NUMA)) return N_DEGREES;
    bool same_package = shares(s, seat, core, TOPO_BIND_PACKAGE), same_l3 = shares(s, seat, core, TOPO_BIND_L3);
    if ((bind == TOPO_BIND_PACKAGE && !same_package) || (bind == TOPO_BIND_L3 && !same_l3)) return N_DEGREES;
    return same_l3 && same_package ? 0 : same_package ? 1 : 2;
}

/* The first allowed (and listed) hardware thread; −1: none. */
static int pu_of_core(const struct search *s, const struct topo_core *core) {
    for (int k = 0; k < core->n_pus; k++) {
        const struct topo_pu *pu = &s->m->pus[core->first_pu + k];
        if (pu->allowed && (!s->listed || s->listed[pu->os_index])) return pu->os_index;
    }
    return -1;
}

/* What --bind lists for rank r: its own part, or all of a list that the ranks share. */
static void read_listed(const struct search *s, const char *list, int r, int *scratch, int n_scratch) {
    for (int i = 0; i < s->n_os; i++) s->listed[i] = false;
    int n_entries, n_parts = topo_list_check(list, &n_entries), n = 0;
    for (int part = 0; part <= (n_parts == 1 ? 0 : r); part++) {
        n = topo_list_read(&list, scratch, n_scratch);
        if (*list == ':') list++;
    }
    for (int i = 0; i < n && i < n_scratch; i++)
        if (scratch[i] < s->n_os) s->listed[scratch[i]] = true;
}

enum st topo_choose_progress(const struct topo_machine *m, const struct topo_place_options *o, struct topo_placement *p, struct err *e) {
    int n_spare = topo_machine_cpus(m), n_entries = 0;
    for (int r = 0; r < p->n_ranks; r++) {
        p->seats[r].progress_pu = -1;
        n_spare -= n_spare > 0 ? p->seats[r].n_threads : 0;
    }
    if (p->oversubscribed || n_spare <= 0) return ST_OK;
    struct search s = {.m = m};
    for (int i = 0; i < m->n_pus; i++)
        if (m->pus[i].os_index >= s.n_os) s.n_os = m->pus[i].os_index + 1;
    bool by_list = o->bind == TOPO_BIND_LIST;
    if (by_list) topo_list_check(o->list, &n_entries);
    s.core_of = calloc((size_t)s.n_os, sizeof *s.core_of);
    s.used = calloc((size_t)m->n_cores, sizeof *s.used);
    s.listed = by_list ? calloc((size_t)s.n_os, sizeof *s.listed) : NULL;
    int *scratch = by_list ? calloc((size_t)n_entries + 1, sizeof *scratch) : NULL;
    enum st st = ST_OK;
    if (!s.core_of || !s.used || (by_list && (!s.listed || !scratch))) {
        st = err_set(e, ST_NO_MEMORY, "no memory to place %d ranks", p->n_ranks);
        goto out;
    }
    for (int i = 0; i < m->n_pus; i++) s.core_of[m->pus[i].os_index] = m->pus[i].core;
    for (int r = 0; r < p->n_ranks; r++)
        for (int t = 0; t < p->seats[r].n_threads; t++) s.used[s.core_of[p->seats[r].pus[t]]] = true;

    for (int degree = 0; degree < N_DEGREES && n_spare > 0; degree++)
        for (int r = 0; r < p->n_ranks && n_spare > 0; r++) {
            struct topo_seat *seat = &p->seats[r];
            if (seat->progress_pu >= 0) continue;
            if (by_list) read_listed(&s, o->list, r, scratch, n_entries);
            int best = -1;
            for (int c = 0; c < m->n_cores; c++) {
                if (s.used[c] || pu_of_core(&s, &m->cores[c]) < 0 || degree_of(&s, seat, &m->cores[c], o->bind) != degree) continue;
                if (best < 0 || m->cores[c].kind <= m->cores[best].kind) best = c;
            }
            if (best < 0) continue;
            s.used[best] = true;
            seat->progress_pu = pu_of_core(&s, &m->cores[best]);
            n_spare--;
        }
out:
    free(scratch);
    free(s.listed);
    free(s.used);
    free(s.core_of);
    return st;
}
