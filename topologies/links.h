/* Links by name, as data for an emulated link: `--link cx7`. */
#ifndef TOPOLOGIES_LINKS_H
#define TOPOLOGIES_LINKS_H

#include <stdint.h>

struct topo_link_preset {
    const char *name;
    double bits_per_s;  /* each way */
    uint64_t delay_ns;  /* of the smallest message, one way */
    uint64_t jitter_ns; /* a message is late by 0 … so much */
    const char *source; /* where the figures come from */
};

/* NULL: no preset has this name. */
const struct topo_link_preset *topo_link_preset(const char *name);
/* The i-th one, for lists in help and error messages; NULL: there are no more. */
const struct topo_link_preset *topo_link_preset_at(int i);

#endif
