/* What files of this folder share: machine.c and description.c (reading), place.c (who gets which threads), progress.c (a core beside them), bind.c (what --bind says),
 * draw.c and picture.c (showing). */
#ifndef TOPOLOGIES_TOPO_PRIV_H
#define TOPOLOGIES_TOPO_PRIV_H

#include <stdio.h>

#include "topologies/place.h"

#define TOPO_MAX_TOTAL (1 << 18) /* threads, or entries of a list, in all */

/* Reads one list "0-3,8" up to ':' or the end; out NULL counts. Returns the number of entries; −1: malformed (the parser of --bind has refused it before). */
int topo_list_read(const char **text, int *out, int n_max);
/* Number of parts; entries in all in *n_entries; −1: malformed. */
int topo_list_check(const char *text, int *n_entries);

/* A regular file of at most max_bytes into malloc'ed memory with a NUL behind it. */
enum st topo_read_file(const char *path, size_t max_bytes, char **text, size_t *bytes, struct err *e);

/* Fills progress_pu of all seats, once their pus and numa and p->oversubscribed are known. */
enum st topo_choose_progress(const struct topo_machine *m, const struct topo_place_options *o, struct topo_placement *p, struct err *e);

/* --- Drawing ----------------------------------------------------------------------------------------------------------------- */

struct topo_use {
    int os_index, rank, n_ranks; /* rank: the lowest of n_ranks */
    bool progress;
};
/* One entry per PU in use, sorted by OS index, malloc'ed; NULL: no memory (or nobody sits). */
struct topo_use *topo_list_uses(const struct topo_placement *p, int *n_uses);
/* NULL: nobody uses this PU. */
const struct topo_use *topo_find_use(const struct topo_use *uses, int n_uses, int os_index);
/* "0-3,8" for sorted or unsorted lists, in the order given. */
void topo_print_list(FILE *f, const int *v, int n);
/* "20 CPUs on 20 cores of 2 kinds (10 + 10, fast ones first), 2 L3, 119.7 GiB" */
void topo_print_facts(FILE *f, const struct topo_machine *m);

#endif
