/* A machine and who sits where, as text for people and as JSON for programs.
 *
 * Text: a line about the machine, then a line per package, NUMA node and shared cache with a cell per core: [CPU CPU:rank …]. "-" marks CPUs that
 * are not allowed; cells of slower kinds stand in round brackets; CPU:pN carries the progress thread of rank N. Then a line per rank. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topologies/topo_priv.h"

#define LINE_WIDTH 110

static const char *plural(int n) { return n == 1 ? "" : "s"; }

/* "0-3,8" for sorted or unsorted lists, in the order given. */
void topo_print_list(FILE *f, const int *v, int n) {
    for (int i = 0; i < n;) {
        int end = i + 1;
        while (end < n && v[end] == v[end - 1] + 1) end++;
        fprintf(f, end - i > 1 ? "%s%d-%d" : "%s%d", i ? "," : "", v[i], v[end - 1]);
        i = end;
    }
}

static int compare_use(const void *a, const void *b) {
    const struct topo_use *x = a, *y = b;
    return x->os_index != y->os_index ? (x->os_index < y->os_index ? -1 : 1) : x->rank < y->rank ? -1 : x->rank > y->rank;
}

struct topo_use *topo_list_uses(const struct topo_placement *p, int *n_uses) {
    size_t n = 0;
    for (int r = 0; p && r < p->n_ranks; r++) n += (size_t)p->seats[r].n_threads + (p->seats[r].progress_pu >= 0);
    struct topo_use *uses = n ? malloc(n * sizeof *uses) : NULL;
    *n_uses = 0;
    if (!uses) return NULL;
    size_t at = 0;
    for (int r = 0; r < p->n_ranks; r++) {
        const struct topo_seat *s = &p->seats[r];
        for (int t = 0; t < s->n_threads; t++) uses[at++] = (struct topo_use){.os_index = s->pus[t], .rank = s->rank, .n_ranks = 1};
        if (s->progress_pu >= 0) uses[at++] = (struct topo_use){.os_index = s->progress_pu, .rank = s->rank, .n_ranks = 1, .progress = true};
    }
    qsort(uses, n, sizeof *uses, compare_use);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept && uses[kept - 1].os_index == uses[i].os_index) {
            if (uses[i].rank != uses[i - 1].rank) uses[kept - 1].n_ranks++;
        } else {
            struct topo_use u = uses[i];
            /* i ≥ kept: the entries that are still compared with (i − 1) are overwritten only where they are equal to what is read next */
            uses[kept++] = u;
        }
    }
    *n_uses = (int)kept;
    return uses;
}

void topo_print_facts(FILE *f, const struct topo_machine *m) {
    fprintf(f, "%d CPU%s on %d core%s", m->n_pus, plural(m->n_pus), m->n_cores, plural(m->n_cores));
    if (m->n_kinds > 1) {
        fprintf(f, " of %d kinds (", m->n_kinds);
        for (int kind = 0; kind < m->n_kinds; kind++) {
            int n = 0;
            for (int i = 0; i < m->n_cores; i++) n += m->cores[i].kind == kind;
            fprintf(f, "%s%d", kind ? " + " : "", n);
        }
        fprintf(f, ", fast ones first)");
    }
    if (m->n_packages > 1) fprintf(f, ", %d packages", m->n_packages);
    if (m->n_numa > 1) fprintf(f, ", %d NUMA nodes", m->n_numa);
    if (m->n_l3 > 1) fprintf(f, ", %d L3", m->n_l3);
    if (m->n_allowed < m->n_pus) fprintf(f, ", %d CPU%s allowed", m->n_allowed, plural(m->n_allowed));
    if (m->n_absent) fprintf(f, ", %d CPU%s offline or hidden", m->n_absent, plural(m->n_absent));
    if (m->cpu_quota > 0) fprintf(f, ", quota %.3g CPU%s", m->cpu_quota, m->cpu_quota == 1 ? "" : "s");
    if (m->memory_bytes) fprintf(f, ", %.1f GiB", (double)m->memory_bytes / (1 << 30));
}

const struct topo_use *topo_find_use(const struct topo_use *uses, int n_uses, int os_index) {
    int at = 0, end = n_uses; /* the first one not below */
    while (at < end) {
        int middle = at + (end - at) / 2;
        if (uses[middle].os_index < os_index)
            at = middle + 1;
        else
            end = middle;
    }
    return at < n_uses && uses[at].os_index == os_index ? &uses[at] : NULL;
}

static void print_cores(FILE *f, const struct topo_machine *m, const struct topo_use *uses, int n_uses) {
    const struct topo_core *last = NULL;
    int column = 0, indent = 0;
    for (int i = 0; i < m->n_cores; i++) {
        const struct topo_core *c = &m->cores[i];
        if (!last || c->package != last->package || c->numa != last->numa || c->l3 != last->l3) {
            char head[96] = "  ";
            size_t n = 2;
            if (c->package >= 0 && m->n_packages > 1) n += (size_t)snprintf(head + n, sizeof head - n, "package %d  ", c->package);
            if (c->numa >= 0 && m->n_numa > 1) n += (size_t)snprintf(head + n, sizeof head - n, "NUMA %d  ", m->numa_os[c->numa]);
            if (c->l3 >= 0 && m->n_l3 > 1) n += (size_t)snprintf(head + n, sizeof head - n, "L3 %d  ", c->l3);
            fprintf(f, "%s%s", last ? "\n" : "", head);
            column = indent = (int)n;
            last = c;
        }
        char cell[1024];
        size_t n = 0;
        cell[n++] = c->kind ? '(' : '[';
        for (int k = 0; k < c->n_pus && n + 64 < sizeof cell; k++) {
            const struct topo_pu *p = &m->pus[c->first_pu + k];
            n += (size_t)snprintf(cell + n, sizeof cell - n, "%s%s%d", k ? " " : "", p->allowed ? "" : "-", p->os_index);
            const struct topo_use *use = topo_find_use(uses, n_uses, p->os_index);
            if (use) n += (size_t)snprintf(cell + n, sizeof cell - n, use->progress ? ":p%d" : use->n_ranks > 1 ? ":r%d+" : ":r%d", use->rank);
        }
        cell[n++] = c->kind ? ')' : ']';
        cell[n] = 0;
        if (column + (int)n > LINE_WIDTH && column > indent) {
            fprintf(f, "\n%*s", indent, "");
            column = indent;
        }
        fputs(cell, f);
        column += (int)n;
    }
    fputc('\n', f);
}

char *topo_draw_text(const struct topo_machine *m, const struct topo_placement *p) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return NULL;
    int n_uses;
    struct topo_use *uses = topo_list_uses(p, &n_uses);
    fprintf(f, "%s: ", m->name);
    topo_print_facts(f, m);
    fputc('\n', f);
    print_cores(f, m, uses, n_uses);
    for (int r = 0; p && r < p->n_ranks; r++) {
        const struct topo_seat *s = &p->seats[r];
        fprintf(f, "rank %d: %d thread%s on CPU%s ", s->rank, s->n_threads, plural(s->n_threads), plural(s->n_threads));
        topo_print_list(f, s->pus, s->n_threads);
        if (s->n_numa) {
            fprintf(f, ", NUMA ");
            topo_print_list(f, s->numa, s->n_numa);
        }
        if (s->progress_pu >= 0) fprintf(f, ", progress on CPU %d", s->progress_pu);
        fputs(p->bound ? "\n" : " (not bound)\n", f);
    }
    if (p && p->note[0]) fprintf(f, "note: %s\n", p->note);
    bool failed = ferror(f) != 0;
    if (fclose(f) || failed) {
        free(text);
        text = NULL;
    }
    free(uses);
    return text;
}

static json_t *int_array(const int *v, int n) {
    json_t *a = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(a, json_integer(v[i]));
    return a;
}

char *topo_draw_json(const struct topo_machine *m, const struct topo_placement *p) {
    json_t *root = json_object(), *ranks = json_array();
    for (int r = 0; p && r < p->n_ranks; r++) {
        json_t *rank = json_object();
        json_object_set_new(rank, "rank", json_integer(p->seats[r].rank));
        json_object_set_new(rank, "pus", int_array(p->seats[r].pus, p->seats[r].n_threads));
        json_object_set_new(rank, "numa", int_array(p->seats[r].numa, p->seats[r].n_numa));
        json_object_set_new(rank, "progress", p->seats[r].progress_pu < 0 ? json_null() : json_integer(p->seats[r].progress_pu));
        json_array_append_new(ranks, rank);
    }
    json_object_set_new(root, "ranks", ranks);
    if (p) {
        json_object_set_new(root, "oversubscribed", json_boolean(p->oversubscribed));
        json_object_set_new(root, "bound", json_boolean(p->bound));
        json_object_set_new(root, "note", json_string_nocheck(p->note));
    }
    json_t *machine = json_object(), *name = json_string(m->name); /* NULL where the name is not UTF-8 */
    json_object_set_new(machine, "name", name ? name : json_string("?"));
    json_object_set_new(machine, "cpus", json_integer(m->n_pus));
    json_object_set_new(machine, "allowed_cpus", json_integer(m->n_allowed));
    json_object_set_new(machine, "cores", json_integer(m->n_cores));
    json_object_set_new(machine, "kinds", json_integer(m->n_kinds));
    json_object_set_new(machine, "packages", json_integer(m->n_packages));
    json_object_set_new(machine, "numa_nodes", json_integer(m->n_numa));
    json_object_set_new(machine, "l3", json_integer(m->n_l3));
    if (m->cpu_quota > 0) json_object_set_new(machine, "cpu_quota", json_real(m->cpu_quota));
    if (m->memory_bytes && m->memory_bytes <= INT64_MAX) json_object_set_new(machine, "memory_bytes", json_integer((json_int_t)m->memory_bytes));
    json_object_set_new(root, "machine", machine);
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}
