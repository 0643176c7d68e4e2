/* Reads descriptions of machines (JSON; docs/topologies.md) into plain data, and the processors among them into the structure that placement takes.
 *
 * The one idea: a file is either wholly understood or refused. Every object lists the keys that it may have, every one that holds figures must say where they come from, and
 * every number has bounds; what is left out is 0. No process and no hwloc is needed: cores are listed in runs, so that a forecast may read a description anywhere. */
#include "topologies/description.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "topologies/topo_priv.h"

#define MAX_FILE_BYTES (1u << 20)
#define MAX_CORES 8192
#define MAX_OS_INDEX (1 << 20)
#define MAX_SIBLINGS 8
#define MAX_DOMAIN 65535
#define MAX_BYTES (1ll << 50)
#define MAX_RATE 1e18

/* --- Objects and figures ----------------------------------------------------------------------------------------------------- */

/* Is it an object of nothing but these keys (the last one NULL), with a source if there has to be one? */
static enum st check_object(const json_t *object, const char *where, bool figures, const char *const *keys, struct err *e) {
    if (!json_is_object(object)) return err_set(e, ST_INVALID, "%s: not an object", where);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        bool known = figures && !strcmp(key, "source");
        for (int i = 0; keys[i] && !known; i++) known = !strcmp(key, keys[i]);
        if (!known) {
            char clean[64];
            snprintf(clean, sizeof clean, "%s", key);
            for (char *c = clean; *c; c++)
                if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
            return err_set(e, ST_INVALID, "%s: '%s' is no key of this object", where, clean);
        }
    }
    const char *source;
    if (!figures) return ST_OK;
    enum st st = base_json_str(object, where, "source", &source, e);
    if (st == ST_NOT_FOUND || (st == ST_OK && !*source)) return err_set(e, ST_INVALID, "%s: no source, which says where its figures come from", where);
    return st;
}

static enum st missing(const char *where, const char *key, struct err *e) { return err_set(e, ST_INVALID, "%s: %s is missing", where, key); }

/* Text without control characters; *text is left alone where the key is absent and not required. */
static enum st read_text(const json_t *object, const char *where, const char *key, bool required, size_t size, char *text, struct err *e) {
    const char *value;
    enum st st = base_json_str(object, where, key, &value, e);
    if (st == ST_NOT_FOUND) return required ? missing(where, key, e) : ST_OK;
    if (st != ST_OK) return st;
    if (!*value || strlen(value) >= size) return err_set(e, ST_INVALID, "%s: %s: 1 to %zu bytes are possible", where, key, size - 1);
    for (const char *c = value; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127) return err_set(e, ST_INVALID, "%s: %s: a control character", where, key);
    snprintf(text, size, "%s", value);
    return ST_OK;
}

/* A figure > 0; absent: 0. */
static enum st read_rate(const json_t *object, const char *where, const char *key, double *rate, struct err *e) {
    double value = 0;
    enum st st = base_json_f64(object, where, key, &value, e);
    if (st == ST_NOT_FOUND) return ST_OK;
    if (st != ST_OK) return st;
    if (!(value > 0 && value <= MAX_RATE)) return err_set(e, ST_INVALID, "%s: %s: %g; more than 0, at most %g is possible", where, key, value, MAX_RATE);
    *rate = value;
    return ST_OK;
}

static enum st read_count(const json_t *object, const char *where, const char *key, int64_t max, int64_t *count, struct err *e) {
    enum st st = base_json_i64(object, where, key, 1, max, count, e);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static enum st read_bytes(const json_t *object, const char *where, const char *key, uint64_t *bytes, struct err *e) {
    int64_t value = 0;
    enum st st = read_count(object, where, key, MAX_BYTES, &value, e);
    if (st == ST_OK) *bytes = (uint64_t)value;
    return st;
}

static enum st read_int(const json_t *object, const char *where, const char *key, int max, int *n, struct err *e) {
    int64_t value = *n;
    enum st st = read_count(object, where, key, max, &value, e);
    if (st == ST_OK) *n = (int)value;
    return st;
}

static enum st read_flag(const json_t *object, const char *where, const char *key, bool *flag, struct err *e) {
    enum st st = base_json_bool(object, where, key, flag, e);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

/* reached ≤ nominal where both are known. */
static enum st check_reached(const char *where, double nominal, double reached, struct err *e) {
    if (nominal > 0 && reached > nominal) return err_set(e, ST_INVALID, "%s: more is reached (%g) than there is (%g)", where, reached, nominal);
    return ST_OK;
}

/* A member that has to be an array of at most max; absent: NULL. */
static enum st read_array(const json_t *object, const char *where, const char *key, size_t max, const json_t **array, struct err *e) {
    *array = NULL;
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return ST_OK;
    if (!json_is_array(value)) return err_set(e, ST_INVALID, "%s: %s: not an array", where, key);
    if (json_array_size(value) > max) return err_set(e, ST_INVALID, "%s: %s: %zu entries; at most %zu are possible", where, key, json_array_size(value), max);
    *array = value;
    return ST_OK;
}

/* --- Processors -------------------------------------------------------------------------------------------------------------- */

/* Consecutive numbers for a file's own, in order of first appearance. */
struct numbers {
    int of[MAX_DOMAIN + 1]; /* file's number → 1 + ours; 0: not seen */
    int n;
};

struct processors {
    struct topo_machine *m;
    struct numbers packages, numa, l3;
    int list[1 + MAX_SIBLINGS][MAX_CORES]; /* OS indexes of a run: [0] the cores' first hardware threads, then their siblings */
    int n_max_pus;
    bool seen[MAX_OS_INDEX + 1];
};

static int number_of(struct numbers *n, int value) {
    if (!n->of[value]) n->of[value] = ++n->n;
    return n->of[value] - 1;
}

static enum st read_list(const char *where, const char *key, const char *text, int *list, int *n, struct err *e) {
    const char *end = text;
    *n = topo_list_read(&end, NULL, 0);
    if (*n < 1 || *end) return err_set(e, ST_INVALID, "%s: %s: '%.40s' is no list of CPUs like 0-3,8", where, key, text);
    if (*n > MAX_CORES) return err_set(e, ST_INVALID, "%s: %s: %d CPUs; at most %d are possible", where, key, *n, MAX_CORES);
    topo_list_read(&text, list, *n);
    for (int i = 0; i < *n; i++)
        if (list[i] > MAX_OS_INDEX) return err_set(e, ST_INVALID, "%s: %s: a CPU with the number %d", where, key, list[i]);
    return ST_OK;
}

static enum st read_domain(const json_t *run, const char *where, const char *key, struct numbers *numbers, int *domain, struct err *e) {
    int64_t value = 0;
    enum st st = base_json_i64(run, where, key, 0, MAX_DOMAIN, &value, e);
    if (st == ST_NOT_FOUND) {
        *domain = -1;
        return ST_OK;
    }
    if (st == ST_OK) *domain = number_of(numbers, (int)value);
    return st;
}

static enum st read_run(const json_t *run, const char *where, int n_kinds, struct processors *p, struct err *e) {
    static const char *const keys[] = {"pus", "siblings", "package", "numa", "l3", "l3_bytes", "kind", NULL};
    struct topo_machine *m = p->m;
    struct topo_core core = {.kind = 0};
    const char *text;
    const json_t *siblings;
    int n_cores, n_threads = 1;
    enum st st = check_object(run, where, false, keys, e);
    if (st == ST_OK) st = base_json_str(run, where, "pus", &text, e);
    if (st == ST_NOT_FOUND) return missing(where, "pus", e);
    if (st == ST_OK) st = read_list(where, "pus", text, p->list[0], &n_cores, e);
    if (st == ST_OK) st = read_array(run, where, "siblings", MAX_SIBLINGS, &siblings, e);
    if (st != ST_OK) return st;
    for (size_t i = 0; siblings && i < json_array_size(siblings); i++) {
        int n;
        text = json_string_value(json_array_get(siblings, i));
        if (!text) return err_set(e, ST_INVALID, "%s: siblings: not a text", where);
        st = read_list(where, "siblings", text, p->list[n_threads++], &n, e);
        if (st == ST_OK && n != n_cores) st = err_set(e, ST_INVALID, "%s: siblings: %d CPUs for %d cores", where, n, n_cores);
        if (st != ST_OK) return st;
    }
    int64_t kind = 0;
    int64_t numa_os = -1;
    uint64_t l3_bytes = 0;
    st = base_json_i64(run, where, "kind", 0, n_kinds - 1, &kind, e);
    if (st == ST_NOT_FOUND) st = n_kinds == 1 ? ST_OK : missing(where, "kind", e);
    if (st == ST_OK) st = read_domain(run, where, "package", &p->packages, &core.package, e);
    if (st == ST_OK) st = read_domain(run, where, "numa", &p->numa, &core.numa, e);
    if (st == ST_OK) st = read_domain(run, where, "l3", &p->l3, &core.l3, e);
    if (st == ST_OK) st = read_bytes(run, where, "l3_bytes", &l3_bytes, e);
    if (st != ST_OK) return st;
    core.kind = (int)kind;
    if (core.numa >= 0 && base_json_i64(run, where, "numa", 0, MAX_DOMAIN, &numa_os, e) == ST_OK) m->numa_os[core.numa] = (int)numa_os;
    if (l3_bytes && core.l3 < 0) return err_set(e, ST_INVALID, "%s: l3_bytes without l3", where);
    if (l3_bytes && m->l3_bytes[core.l3] && m->l3_bytes[core.l3] != l3_bytes) return err_set(e, ST_INVALID, "%s: l3_bytes differs from an earlier run's", where);
    if (l3_bytes) m->l3_bytes[core.l3] = l3_bytes;
    if (m->n_pus + (int64_t)n_cores * n_threads > MAX_CORES) return err_set(e, ST_INVALID, "%s: more than %d CPUs", where, MAX_CORES);
    for (int i = 0; i < n_cores; i++) {
        core.first_pu = m->n_pus;
        core.n_pus = n_threads;
        for (int k = 0; k < n_threads; k++) {
            int os_index = p->list[k][i];
            if (p->seen[os_index]) return err_set(e, ST_INVALID, "%s: CPU %d is listed twice", where, os_index);
            p->seen[os_index] = true;
            m->pus[m->n_pus++] = (struct topo_pu){.os_index = os_index, .core = m->n_cores, .allowed = true};
        }
        m->cores[m->n_cores++] = core;
    }
    return ST_OK;
}

/* A level is known for all cores or for none: placement would not know what to do with the rest. */
static enum st check_levels(const struct topo_machine *m, const char *where, struct err *e) {
    for (int i = 1; i < m->n_cores; i++) {
        const struct topo_core *a = &m->cores[0], *b = &m->cores[i];
        const char *key = (a->package < 0) != (b->package < 0) ? "package" : (a->numa < 0) != (b->numa < 0) ? "numa" : (a->l3 < 0) != (b->l3 < 0) ? "l3" : NULL;
        if (key) return err_set(e, ST_INVALID, "%s: cores: some runs have %s, others do not", where, key);
    }
    return ST_OK;
}

static enum st read_kinds(const json_t *processors, const char *where, struct topo_description *d, struct err *e) {
    static const char *const keys[] = {"name", "speed", "mhz_max", "l2_bytes", NULL};
    const json_t *kinds;
    enum st st = read_array(processors, where, "kinds", TOPO_MAX_KINDS, &kinds, e);
    if (st != ST_OK) return st;
    d->machine->n_kinds = kinds && json_array_size(kinds) ? (int)json_array_size(kinds) : 1;
    for (int i = 0; kinds && i < (int)json_array_size(kinds); i++) {
        const json_t *kind = json_array_get(kinds, (size_t)i);
        struct topo_kind *k = &d->kinds[i];
        char here[256];
        snprintf(here, sizeof here, "%.200s: kind %d", where, i);
        st = check_object(kind, here, false, keys, e);
        if (st == ST_OK) st = read_text(kind, here, "name", true, sizeof k->name, k->name, e);
        if (st == ST_OK) st = read_rate(kind, here, "speed", &k->speed, e);
        if (st == ST_OK) st = read_rate(kind, here, "mhz_max", &k->mhz_max, e);
        if (st == ST_OK) st = read_bytes(kind, here, "l2_bytes", &k->l2_bytes, e);
        if (st != ST_OK) return st;
        if (k->speed > 1 || (i == 0 && k->speed > 0 && k->speed < 1)) return err_set(e, ST_INVALID, "%s: speed: kind 0, the fastest, has 1", here);
        if (i > 0 && k->speed > d->kinds[i - 1].speed && d->kinds[i - 1].speed > 0) return err_set(e, ST_INVALID, "%s: faster than the one before", here);
    }
    return ST_OK;
}

static enum st read_processors(const json_t *root, const char *whole, struct topo_description *d, struct err *e) {
    static const char *const keys[] = {"kinds", "cores", NULL};
    char where[192];
    snprintf(where, sizeof where, "%.150s: processors", whole);
    const json_t *processors = json_object_get(root, "processors"), *cores = NULL;
    if (!processors) return missing(whole, "processors", e);
    enum st st = check_object(processors, where, true, keys, e);
    if (st == ST_OK) st = read_kinds(processors, where, d, e);
    if (st == ST_OK) st = read_array(processors, where, "cores", MAX_CORES, &cores, e);
    if (st != ST_OK) return st;
    if (!cores || !json_array_size(cores)) return missing(where, "cores", e);

    struct topo_machine *m = d->machine;
    struct processors *p = calloc(1, sizeof *p);
    m->pus = calloc(MAX_CORES, sizeof *m->pus);
    m->cores = calloc(MAX_CORES, sizeof *m->cores);
    m->numa_os = calloc(MAX_CORES + 1, sizeof *m->numa_os);
    m->l3_bytes = calloc(MAX_CORES + 1, sizeof *m->l3_bytes);
    if (!p || !m->pus || !m->cores || !m->numa_os || !m->l3_bytes) {
        st = err_set(e, ST_NO_MEMORY, "%s: no memory for a description", whole);
        goto out;
    }
    p->m = m;
    for (size_t i = 0; i < json_array_size(cores) && st == ST_OK; i++) {
        char here[256];
        snprintf(here, sizeof here, "%s: cores[%zu]", where, i);
        st = read_run(json_array_get(cores, i), here, m->n_kinds, p, e);
    }
    if (st == ST_OK) st = check_levels(m, where, e);
    if (st != ST_OK) goto out;
    m->n_packages = p->packages.n;
    m->n_numa = p->numa.n;
    m->n_l3 = p->l3.n;
    m->n_allowed = m->n_pus;
    for (int kind = 0; kind < m->n_kinds; kind++) {
        bool found = false;
        for (int i = 0; i < m->n_cores; i++) found |= m->cores[i].kind == kind;
        if (!found) {
            st = err_set(e, ST_INVALID, "%s: no core is of kind %d", where, kind);
            goto out;
        }
    }
out:
    free(p);
    return st;
}

/* --- The rest ---------------------------------------------------------------------------------------------------------------- */

static enum st read_memory(const json_t *root, const char *whole, struct topo_memory_info *m, struct err *e) {
    static const char *const keys[] = {"bytes", "usable_bytes", "unified", "bandwidth", "bandwidth_reached", NULL};
    char where[192];
    snprintf(where, sizeof where, "%.150s: memory", whole);
    const json_t *memory = json_object_get(root, "memory");
    if (!memory) return ST_OK;
    enum st st = check_object(memory, where, true, keys, e);
    if (st == ST_OK) st = read_bytes(memory, where, "bytes", &m->bytes, e);
    if (st == ST_OK) st = read_bytes(memory, where, "usable_bytes", &m->usable_bytes, e);
    if (st == ST_OK) st = read_flag(memory, where, "unified", &m->unified, e);
    if (st == ST_OK) st = read_rate(memory, where, "bandwidth", &m->bandwidth, e);
    if (st == ST_OK) st = read_rate(memory, where, "bandwidth_reached", &m->bandwidth_reached, e);
    if (st == ST_OK) st = check_reached(where, m->bandwidth, m->bandwidth_reached, e);
    if (st == ST_OK && m->bytes && m->usable_bytes > m->bytes) st = err_set(e, ST_INVALID, "%s: more is usable than there is", where);
    return st;
}

static enum st read_pcie(const json_t *device, const char *where, struct topo_pcie *p, struct err *e) {
    static const char *const keys[] = {"generation", "lanes", "bandwidth_reached", NULL};
    const json_t *pcie = json_object_get(device, "pcie");
    if (!pcie) return ST_OK;
    char here[224];
    snprintf(here, sizeof here, "%.200s: pcie", where);
    enum st st = check_object(pcie, here, false, keys, e);
    if (st == ST_OK) st = read_int(pcie, here, "generation", 99, &p->generation, e);
    if (st == ST_OK) st = read_int(pcie, here, "lanes", 64, &p->n_lanes, e);
    if (st == ST_OK) st = read_rate(pcie, here, "bandwidth_reached", &p->bandwidth_reached, e);
    return st;
}

static enum st read_flops(const json_t *accelerator, const char *where, struct topo_accelerator *a, struct err *e) {
    const json_t *flops = json_object_get(accelerator, "flops");
    if (!flops || json_is_null(flops)) return ST_OK;
    if (!json_is_object(flops)) return err_set(e, ST_INVALID, "%s: flops: not an object", where);
    const char *format;
    json_t *value;
    json_object_foreach((json_t *)flops, format, value) {
        if (a->n_flops == TOPO_MAX_DEVICES) return err_set(e, ST_INVALID, "%s: flops: more than %d formats", where, TOPO_MAX_DEVICES);
        struct topo_flops *f = &a->flops[a->n_flops];
        size_t n = strlen(format);
        if (n < 1 || n >= sizeof f->format || strspn(format, "abcdefghijklmnopqrstuvwxyz0123456789_") != n)
            return err_set(e, ST_INVALID, "%s: flops: a format's name has 1 to %zu of a-z, 0-9, _", where, sizeof f->format - 1);
        memcpy(f->format, format, n + 1);
        enum st st = read_rate(flops, where, format, &f->per_s, e);
        if (st != ST_OK) return st;
        if (f->per_s > 0) a->n_flops++;
    }
    return ST_OK;
}

static enum st read_accelerator(const json_t *object, const char *where, bool unified, struct topo_accelerator *a, struct err *e) {
    static const char *const keys[] = {"name", "architecture", "sm", "mhz_max", "memory_bytes", "bandwidth", "bandwidth_reached", "l2_bytes", "shared_bytes_per_block", "library_bytes", "flops", "pcie", NULL};
    enum st st = check_object(object, where, true, keys, e);
    if (st == ST_OK) st = read_text(object, where, "name", true, sizeof a->name, a->name, e);
    if (st == ST_OK) st = read_text(object, where, "architecture", false, sizeof a->architecture, a->architecture, e);
    if (st == ST_OK) st = read_int(object, where, "sm", 100000, &a->n_sm, e);
    if (st == ST_OK) st = read_rate(object, where, "mhz_max", &a->mhz_max, e);
    if (st == ST_OK) st = read_bytes(object, where, "memory_bytes", &a->memory_bytes, e);
    if (st == ST_OK) st = read_rate(object, where, "bandwidth", &a->bandwidth, e);
    if (st == ST_OK) st = read_rate(object, where, "bandwidth_reached", &a->bandwidth_reached, e);
    if (st == ST_OK) st = read_bytes(object, where, "l2_bytes", &a->l2_bytes, e);
    if (st == ST_OK) st = read_bytes(object, where, "shared_bytes_per_block", &a->shared_bytes_per_block, e);
    if (st == ST_OK) st = read_bytes(object, where, "library_bytes", &a->library_bytes, e);
    if (st == ST_OK) st = read_flops(object, where, a, e);
    if (st == ST_OK) st = read_pcie(object, where, &a->pcie, e);
    if (st == ST_OK) st = check_reached(where, a->bandwidth, a->bandwidth_reached, e);
    if (st == ST_OK && unified && a->memory_bytes) st = err_set(e, ST_INVALID, "%s: memory of its own, although the machine's is unified", where);
    return st;
}

static enum st read_port(const json_t *object, const char *where, struct topo_port *p, struct err *e) {
    static const char *const keys[] = {"name", "rails", "bits_per_s", "bits_per_s_reached", "one_way_ns", "rdma", "gpu_direct", "pcie", NULL};
    int64_t one_way_ns = 0;
    p->n_rails = 1;
    enum st st = check_object(object, where, true, keys, e);
    if (st == ST_OK) st = read_text(object, where, "name", true, sizeof p->name, p->name, e);
    if (st == ST_OK) st = read_int(object, where, "rails", 64, &p->n_rails, e);
    if (st == ST_OK) st = read_rate(object, where, "bits_per_s", &p->bits_per_s, e);
    if (st == ST_OK) st = read_rate(object, where, "bits_per_s_reached", &p->bits_per_s_reached, e);
    if (st == ST_OK) st = read_count(object, where, "one_way_ns", 1000000000, &one_way_ns, e);
    if (st == ST_OK) st = read_flag(object, where, "rdma", &p->rdma, e);
    if (st == ST_OK) st = read_flag(object, where, "gpu_direct", &p->gpu_direct, e);
    if (st == ST_OK) st = read_pcie(object, where, &p->pcie, e);
    if (st == ST_OK) st = check_reached(where, p->bits_per_s, p->bits_per_s_reached, e);
    if (st == ST_OK && p->gpu_direct && !p->rdma) st = err_set(e, ST_INVALID, "%s: gpu_direct without rdma", where);
    p->one_way_ns = (uint64_t)one_way_ns;
    return st;
}

static enum st read_devices(const json_t *root, const char *whole, struct topo_description *d, struct err *e) {
    const json_t *accelerators, *ports;
    char where[192];
    enum st st = read_array(root, whole, "accelerators", TOPO_MAX_DEVICES, &accelerators, e);
    if (st == ST_OK) st = read_array(root, whole, "network", TOPO_MAX_DEVICES, &ports, e);
    for (size_t i = 0; st == ST_OK && accelerators && i < json_array_size(accelerators); i++) {
        snprintf(where, sizeof where, "%.150s: accelerators[%zu]", whole, i);
        st = read_accelerator(json_array_get(accelerators, i), where, d->memory.unified, &d->accelerators[d->n_accelerators++], e);
    }
    for (size_t i = 0; st == ST_OK && ports && i < json_array_size(ports); i++) {
        snprintf(where, sizeof where, "%.150s: network[%zu]", whole, i);
        st = read_port(json_array_get(ports, i), where, &d->ports[d->n_ports++], e);
    }
    return st;
}

enum st topo_description_parse(const char *where, const char *text, size_t bytes, struct topo_description **out, struct err *e) {
    static const char *const keys[] = {"format", "name", "title", "processors", "memory", "accelerators", "network", NULL};
    json_t *root = NULL;
    enum st st = base_json_parse(where, text, bytes, &root, e);
    if (st != ST_OK) return st;
    struct topo_description *d = calloc(1, sizeof *d);
    if (d) d->machine = calloc(1, sizeof *d->machine);
    st = d && d->machine ? ST_OK : ST_NO_MEMORY;
    if (st != ST_OK) {
        err_set(e, st, "%s: no memory for a description", where);
        goto out;
    }
    int64_t format = 0;
    st = check_object(root, where, false, keys, e);
    if (st == ST_OK) st = base_json_i64(root, where, "format", INT32_MIN, INT32_MAX, &format, e);
    if (st == ST_NOT_FOUND) st = missing(where, "format", e);
    if (st == ST_OK && format != 1) st = err_set(e, ST_UNSUPPORTED, "%s: format %lld; this build reads format 1", where, (long long)format);
    if (st == ST_OK) st = read_text(root, where, "name", true, sizeof d->name, d->name, e);
    if (st == ST_OK) st = read_text(root, where, "title", false, sizeof d->title, d->title, e);
    if (st == ST_OK) st = read_memory(root, where, &d->memory, e);
    if (st == ST_OK) st = read_processors(root, where, d, e);
    if (st == ST_OK) st = read_devices(root, where, d, e);
    if (st != ST_OK) goto out;
    d->machine->memory_bytes = d->memory.bytes;
    snprintf(d->machine->name, sizeof d->machine->name, "%s", d->name);
    *out = d;
    d = NULL;
out:
    topo_description_close(d);
    json_decref(root);
    return st;
}

const char *topo_description_name(int i) {
    for (int k = 0; topo_embedded[k].name; k++)
        if (k == i) return topo_embedded[k].name;
    return NULL;
}

enum st topo_description_open(const char *source, struct topo_description **d, struct err *e) {
    for (int k = 0; topo_embedded[k].name; k++)
        if (!strcmp(source, topo_embedded[k].name)) return topo_description_parse(source, topo_embedded[k].text, strlen(topo_embedded[k].text), d, e);
    char *text = NULL;
    size_t bytes = 0;
    enum st st = topo_read_file(source, MAX_FILE_BYTES, &text, &bytes, e);
    if (st == ST_OK) st = topo_description_parse(source, text, bytes, d, e);
    free(text);
    return st;
}

void topo_description_close(struct topo_description *d) {
    if (!d) return;
    topo_machine_close(d->machine);
    free(d);
}
