/* What --bind says: a level by its name, or lists of CPUs. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "topologies/topo_priv.h"

int topo_list_read(const char **text, int *out, int n_max) {
    int n = 0;
    const char *s = *text;
    for (;;) {
        if (!isdigit((unsigned char)*s)) return -1;
        char *end;
        errno = 0;
        long a = strtol(s, &end, 10), b = a;
        if (*end == '-') {
            if (!isdigit((unsigned char)end[1])) return -1;
            b = strtol(end + 1, &end, 10);
        }
        if (errno || b < a || b > TOPO_MAX_TOTAL * 8L || b - a >= TOPO_MAX_TOTAL - n) return -1;
        for (long v = a; v <= b; v++, n++)
            if (out && n < n_max) out[n] = (int)v;
        s = end;
        if (*s != ',') break;
        s++;
    }
    if (*s && *s != ':') return -1;
    *text = s;
    return n;
}

int topo_list_check(const char *text, int *n_entries) {
    int n_parts = 0;
    *n_entries = 0;
    for (;;) {
        int n = topo_list_read(&text, NULL, 0);
        if (n < 0 || *n_entries + n > TOPO_MAX_TOTAL) return -1;
        *n_entries += n;
        n_parts++;
        if (!*text) return n_parts;
        text++;
    }
}

enum st topo_bind_parse(const char *text, enum topo_bind *bind, const char **list, struct err *e) {
    static const struct {
        const char *name;
        enum topo_bind bind;
    } names[] = {{"auto", TOPO_BIND_AUTO}, {"core", TOPO_BIND_CORE},       {"l3", TOPO_BIND_L3},
                 {"numa", TOPO_BIND_NUMA}, {"package", TOPO_BIND_PACKAGE}, {"none", TOPO_BIND_NONE}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(text, names[i].name)) {
            *bind = names[i].bind;
            *list = NULL;
            return ST_OK;
        }
    int n;
    if (topo_list_check(text, &n) < 0)
        return err_set(e, ST_INVALID, "--bind '%.100s' is none of auto, core, l3, numa, package, none and no list of CPUs like 0-3:4-7", text);
    *bind = TOPO_BIND_LIST;
    *list = text;
    return ST_OK;
}
