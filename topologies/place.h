/* Placement: machine + rank count → who sits where. Pure: no threads, no clock, no system call. */
#ifndef TOPOLOGIES_PLACE_H
#define TOPOLOGIES_PLACE_H

#include "topologies/machine.h"

enum topo_bind { TOPO_BIND_AUTO, TOPO_BIND_CORE, TOPO_BIND_L3, TOPO_BIND_NUMA, TOPO_BIND_PACKAGE, TOPO_BIND_NONE, TOPO_BIND_LIST };

struct topo_place_options {
    int n_ranks;
    int n_threads; /* per rank; 0: max(1, allowed CPUs ÷ ranks) */
    enum topo_bind bind;
    const char *list; /* TOPO_BIND_LIST: OS indexes, ranks separated by ':' ("0-3:4-7") or one list shared out in order ("0,2,4,6") */
};

struct topo_seat {
    int rank;
    int n_threads;
    int *pus;  /* [n_threads] OS indexes, one per thread, fast cores first; may repeat where there are more threads than CPUs */
    int *numa; /* [n_numa] OS indexes of the nodes that those PUs belong to */
    int n_numa;
    int progress_pu; /* OS index on a whole core that no rank's thread uses, near this rank's own, one rank's alone; −1: none to spare */
};

struct topo_placement {
    struct topo_seat *seats;
    int n_ranks;
    bool oversubscribed; /* ranks × threads exceed the CPUs that may be kept busy, or a PU carries two threads: spin 0 */
    bool bound;          /* false: --bind none (pus and progress_pu are then only what would be) */
    char note[256];      /* one sentence if something is worth saying ("4 ranks share 1 CPU"), else empty */
};

/* Whole cores before SMT siblings; one package, NUMA node, L3 per rank where there are enough; fast kinds before slow ones; only allowed PUs.
 * A progress core is taken from what is left, so only where ranks × threads leave a whole core within the quota (and, under --bind, within the rank's own domain or list):
 * the same L3 before the same NUMA node, never another node; there the slowest kind first, since its user waits more than it computes. */
enum st topo_place(const struct topo_machine *m, const struct topo_place_options *options, struct topo_placement **p, struct err *e);
void topo_placement_free(struct topo_placement *p);

/* "core", "l3", … or a list. ST_INVALID with the sentence. */
enum st topo_bind_parse(const char *text, enum topo_bind *bind, const char **list, struct err *e);

/* Text, JSON ({"ranks":[{"rank":0,"pus":[…],"numa":[…],"progress":9 or null}…]}) and a picture (SVG) into a malloc'ed string; p NULL: the machine alone. NULL: no memory. */
char *topo_draw_text(const struct topo_machine *m, const struct topo_placement *p);
char *topo_draw_json(const struct topo_machine *m, const struct topo_placement *p);
char *topo_draw_svg(const struct topo_machine *m, const struct topo_placement *p);

#endif
