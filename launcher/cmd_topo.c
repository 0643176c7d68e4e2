/* tandem topo: a machine, and which rank would sit where; with --hosts those machines, and the ways between them. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "launcher/commands.h"
#include "launcher/setup.h"
#include "topologies/description.h"
#include "topologies/place.h"

struct topo_values {
    int64_t n_ranks, n_threads, port;
    const char *bind, *hosts, *hostfile, *backend, *ssh;
    bool json, svg;
};

static const struct option topo_options[] = {
    {"-n", "--ranks", OPT_INT, offsetof(struct topo_values, n_ranks), "RANKS", "ranks to place (default 1, or one for each host)", 1, 4096, NULL},
    {"--threads", NULL, OPT_INT, offsetof(struct topo_values, n_threads), "T", "threads of each rank (default: allowed CPUs / ranks, at least 1)", 1, 4096, NULL},
    {"--bind", NULL, OPT_STR, offsetof(struct topo_values, bind), "core|l3|numa|package|none|LIST", "where ranks are bound (default: by the topology)", 0, 0, NULL},
    {"--hosts", NULL, OPT_STR, offsetof(struct topo_values, hosts), "A,B...", "these machines, and the ways between them (user@host allowed; or TANDEM_HOSTS)", 0, 0, NULL},
    {"--hostfile", NULL, OPT_STR, offsetof(struct topo_values, hostfile), "FILE", "the same, a name a line", 0, 0, NULL},
    {"--backend", NULL, OPT_STR, offsetof(struct topo_values, backend), "NAME", "as with run: tcp looks for no RDMA between them", 0, 0, NULL},
    {"--port", NULL, OPT_INT, offsetof(struct topo_values, port), "P", "fix our ports, as with run", 1, 65535, NULL},
    {"--ssh", NULL, OPT_STR, offsetof(struct topo_values, ssh), "PROGRAM", "instead of ssh, called like it (or TANDEM_SSH)", 0, 0, NULL},
    {"--json", NULL, OPT_FLAG, offsetof(struct topo_values, json), NULL, "{\"ranks\":[{\"rank\":0,\"pus\":[...],\"numa\":[...],\"progress\":9 or null}...]}", 0, 0, NULL},
    {"--svg", NULL, OPT_FLAG, offsetof(struct topo_values, svg), NULL, "a picture (SVG)", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

/* Of several hosts: {"hosts":[{"host":"spark1","address":"10.0.0.1","ranks":[...]...}...]}. */
static enum st print_json(const struct launch_hosts *hosts, char *const *drawings, struct err *e)
{
    json_t *list = json_array();
    for (int i = 0; i < hosts->n; i++) {
        json_t *one = json_loads(drawings[i], 0, NULL);
        json_object_set_new(one, "host", json_string(hosts->h[i].typed));
        if (hosts->h[i].address[0])
            json_object_set_new(one, "address", json_string(hosts->h[i].address));
        if (json_array_append_new(list, one)) {
            json_decref(list);
            return err_set(e, ST_INVALID, "host %s: what it draws is no JSON", hosts->h[i].typed);
        }
    }
    json_t *all = json_pack("{s:o}", "hosts", list);
    json_dumpf(all, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(all);
    return ST_OK;
}

static enum st draw_hosts(const struct launch_options *o, bool is_json, struct err *e)
{
    char *drawings[LAUNCH_MAX_HOSTS] = {NULL};
    struct launch_setup *s = NULL;
    enum st st = launch_setup_create_bare(o, 0, NULL, &s, e);
    if (!st)
        st = launch_hosts_open(s->hosts, e);
    if (!st)
        st = launch_hosts_draw(s->hosts, (int)o->n_threads, o->bind, is_json, drawings, e);
    if (!st && is_json)
        st = print_json(s->hosts, drawings, e);
    for (int i = 0; i < LAUNCH_MAX_HOSTS && drawings[i]; i++) {
        if (!st && !is_json) {
            launch_hosts_print_host(&s->hosts->h[i], stdout);
            fputs(drawings[i], stdout);
        }
        free(drawings[i]);
    }
    if (!st && !is_json)
        launch_hosts_print(s->hosts, stdout);
    launch_setup_destroy(s);
    return st ? st : launch_flush_stdout(e);
}

int cmd_topo(int argc, char **argv)
{
    struct topo_values v = {.n_ranks = 0};
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
    const char *named = getenv("TANDEM_HOSTS");
    if (v.hosts || v.hostfile || (named && *named && !source)) {
        const struct launch_options shared = {.n_ranks = v.n_ranks, .n_threads = v.n_threads, .bind = v.bind, .hosts = v.hosts, .hostfile = v.hostfile, .backend = v.backend, .ssh = v.ssh, .port = v.port};
        if (source)
            err_set(&e, ST_INVALID, "%s, or hosts: not both", source);
        else if (v.svg)
            err_set(&e, ST_INVALID, "--svg: a picture has one machine");
        else if (v.n_ranks > COMM_MAX_RANKS)
            err_set(&e, ST_INVALID, "-n %d: %d ranks are possible on several hosts", (int)v.n_ranks, COMM_MAX_RANKS);
        else
            (void)launch_options_check(&shared, &e);
        if (e.text[0])
            return launch_misuse("topo", &e);
        return draw_hosts(&shared, v.json, &e) ? launch_fail("topo", &e) : 0;
    }
    struct topo_place_options options = {.n_ranks = v.n_ranks ? (int)v.n_ranks : 1, .n_threads = (int)v.n_threads, .bind = TOPO_BIND_AUTO};
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
