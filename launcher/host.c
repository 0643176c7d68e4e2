#include "launcher/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/build_id.h"
#include "base/json.h"
#include "topologies/machine.h"

enum st launch_host_describe(char **json, struct err *e)
{
    struct utsname u;
    uname(&u);
    struct topo_machine *m = NULL;
    enum st st = topo_machine_open(NULL, &m, e);
    uint64_t bytes = 0;
    char what[256] = "";
    if (!st)
        st = topo_memory_available(NULL, &bytes, what, e);
    if (!st) {
        json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:I, s:s}", "name", u.nodename, "build", tandem_build_id, "machine", u.machine, "cpus", topo_machine_cpus(m), "available_bytes",
                              (json_int_t)bytes, "available_what", what);
        *json = json_dumps(o, JSON_COMPACT);
        json_decref(o);
        if (!*json)
            st = err_set(e, ST_NO_MEMORY, "no memory to describe this host");
    }
    topo_machine_close(m);
    return st;
}

static bool take_text(const json_t *o, const char *key, char *to, size_t capacity)
{
    const char *text = json_string_value(json_object_get(o, key));
    if (!text || strlen(text) >= capacity)
        return false;
    for (const char *c = text; *c; c++)
        if (*c < 0x20)
            return false;
    memcpy(to, text, strlen(text) + 1);
    return true;
}

enum st launch_host_parse(const char *json, size_t bytes, struct launch_host_facts *h, struct err *e)
{
    *h = (struct launch_host_facts){.n_cpus = 0};
    json_t *o = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, NULL);
    const json_t *cpus = json_object_get(o, "cpus"), *memory = json_object_get(o, "available_bytes");
    bool right = take_text(o, "name", h->name, sizeof h->name) && take_text(o, "build", h->build, sizeof h->build) && take_text(o, "machine", h->machine, sizeof h->machine) &&
                 take_text(o, "available_what", h->available_what, sizeof h->available_what) && json_is_integer(cpus) && json_integer_value(cpus) > 0 && json_integer_value(cpus) < 100000 &&
                 json_is_integer(memory) && json_integer_value(memory) >= 0;
    if (right) {
        h->n_cpus = (int)json_integer_value(cpus);
        h->available_bytes = (uint64_t)json_integer_value(memory);
    }
    json_decref(o);
    return right ? ST_OK : err_set(e, ST_INVALID, "a host's description that makes no sense");
}
