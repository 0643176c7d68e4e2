/* tandem topo: a machine, and which rank would sit where. */
#include <stdio.h>
#include <stdlib.h>

#include "launcher/commands.h"
#include "topologies/description.h"
#include "topologies/place.h"

struct topo_values {
    int64_t n_ranks, n_threads;
    const char *bind;
    bool json, svg;
};

static const struct option topo_options[] = {
    {"-n", "--ranks", OPT_INT, offsetof(struct topo_values, n_ranks), "RANKS", "ranks to place (default 1)", 1, 4096, NULL},
    {"--threads", NULL, OPT_INT, offsetof(struct topo_values, n_threads), "T", "threads of each rank (default: allowed CPUs / ranks, at least 1)", 1, 4096, NULL},
    {"--bind", NULL, OPT_STR, offsetof(struct topo_values, bind), "core|l3|numa|package|none|LIST", "where ranks are bound (default: by the topology)", 0, 0, NULL},
    {"--json", NULL, OPT_FLAG, offsetof(struct topo_values, json), NULL, "{\"ranks\":[{\"rank\":0,\"pus\":[...],\"numa\":[...],\"progress\":9 or null}...]}", 0, 0, NULL},
    {"--svg", NULL, OPT_FLAG, offsetof(struct topo_values, svg), NULL, "a picture (SVG)", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

int cmd_topo(int argc, char **argv)
{
    struct topo_values v = {.n_ranks = 1};
    const struct option_group group = {"Options", topo_options, &v};
    const char *source;
    int status;
    char about[512];
    int n = snprintf(about, sizeof about,
                     "Shows who would sit where: on this machine, on one that is built in (by its NAME), on one from a FILE (hwloc's XML, as lstopo writes it, or a description in JSON), "
                     "or on one in hwloc's SYNTHETIC notation (\"pack:2 core:4 pu:2\"). Built in:");
    for (int i = 0; topo_description_name(i) && n < (int)sizeof about; i++)
        n += snprintf(about + n, sizeof about - (size_t)n, "%s %s", i ? "," : "", topo_description_name(i));
    if (launch_parse("topo", "tandem topo [OPTIONS] [NAME | FILE | SYNTHETIC]", about, &group, 1, argc, argv,
                     &source, 1, &status))
        return status;
    struct err e = {""};
    if (v.json && v.svg) {
        err_set(&e, ST_INVALID, "--json or --svg, not both");
        return launch_misuse("topo", &e);
    }
    struct topo_place_options options = {.n_ranks = (int)v.n_ranks, .n_threads = (int)v.n_threads, .bind = TOPO_BIND_AUTO};
    if (v.bind && topo_bind_parse(v.bind, &options.bind, &options.list, &e))
        return launch_misuse("topo", &e);
    struct topo_machine *m = NULL;
    struct topo_placement *p = NULL;
    enum st st = topo_machine_open(source, &m, &e);
    if (!st)
        st = topo_place(m, &options, &p, &e);
    if (!st) {
        char *drawing = v.json ? topo_draw_json(m, p) : v.svg ? topo_draw_svg(m, p) : topo_draw_text(m, p);
        if (drawing)
            fputs(drawing, stdout);
        if (drawing && v.json)
            fputc('\n', stdout);
        st = drawing ? launch_flush_stdout(&e) : err_set(&e, ST_NO_MEMORY, "no memory for the drawing");
        free(drawing);
    }
    topo_placement_free(p);
    topo_machine_close(m);
    return st ? launch_fail("topo", &e) : 0;
}
