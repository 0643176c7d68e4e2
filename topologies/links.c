/* The links that have a name. */
#include "topologies/links.h"

#include <stddef.h>
#include <string.h>

static const struct topo_link_preset presets[] = {
    {"cx7", 200e9, 2500, 200, "ConnectX-7 between two DGX Sparks, both functions of a cage: nominal rate; 2-byte sends take 2.5 to 2.7 us one way (public measurements)"},
    {"cx7-one-rail", 100e9, 2500, 200, "the same with one of the two functions"},
    {"10gbe", 10e9, 25000, 5000, "nominal rate; delay and jitter are typical of TCP through a kernel and one switch, not measured"},
    {"wifi", 600e6, 2000000, 2000000, "typical of an 802.11ax station near its access point, not measured"},
};

const struct topo_link_preset *topo_link_preset_at(int i) { return i >= 0 && (size_t)i < sizeof presets / sizeof *presets ? &presets[i] : NULL; }

const struct topo_link_preset *topo_link_preset(const char *name) {
    for (int i = 0; topo_link_preset_at(i); i++)
        if (!strcmp(presets[i].name, name)) return &presets[i];
    return NULL;
}
