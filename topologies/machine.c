/* Reads a machine by hwloc, in a child process, into plain data.
 *
 * Why a child, always: hwloc 2.9 dies on some foreign XML; HWLOC_* variables must not touch the live machine, and only a process of one's own can drop
 * them without a race; discovery may bind the calling thread and print. The child writes one message into a pipe and leaves by _exit; the parent
 * waits with a deadline and checks every number of it, since a child that read a hostile file may say anything.
 * Kinds of CPUs: by core type, else MIDR (sysfs; Arm), else a gap of more than a quarter in LinuxCapacity, else in both base and maximum frequency.
 * FrequencyMaxMHz alone is never enough: boost limits differ from core to core of one kind. */
#include <errno.h>
#include <fcntl.h>
#include <hwloc.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "topologies/description.h"
#include "topologies/topo_priv.h"

#define MAX_PUS 8192 /* Linux's own limit (NR_CPUS on x86) */
#define MAX_OS_INDEX (1 << 20)
#define MAX_XML_BYTES (32u << 20)
#define CHILD_DEADLINE_S 20
#define CHILD_MEMORY_BYTES (4ull << 30)
#define MAGIC 0x746f706fu

enum source { SOURCE_LIVE, SOURCE_XML, SOURCE_SYNTHETIC };

/* What the child sends: this, then pus, cores, numa_os, l3_bytes, absent. */
struct message {
    uint32_t magic;
    int status; /* enum st; not ST_OK: only text counts */
    char text[512];
    int n_pus, n_cores, n_packages, n_numa, n_l3, n_kinds, n_absent;
    uint64_t memory_bytes;
};

/* What tells one kind of core from another; zero or empty: not known. */
struct traits {
    char type[32];
    uint64_t midr;
    double capacity, mhz_base, mhz_max;
    int efficiency; /* hwloc's own ranking, the last resort */
};

/* --- Kinds ------------------------------------------------------------------------------------------------------------------- */

static int compare_numbers(double a, double b) { return a > b ? -1 : a < b; }
/* The faster one first. */
static int compare_speed(const struct traits *a, const struct traits *b) {
    int c = compare_numbers(a->capacity, b->capacity);
    if (!c) c = compare_numbers(a->mhz_base, b->mhz_base);
    if (!c) c = compare_numbers(a->mhz_max, b->mhz_max);
    return c ? c : compare_numbers(a->efficiency, b->efficiency);
}

static bool far_below(double low, double high) { return low * 1.25 < high; }

/* cores[i].kind from traits[i]. Returns the number of kinds; −1: no memory. */
static int sort_into_kinds(struct topo_core *cores, const struct traits *t, int n) {
    bool all_type = true, all_midr = true, all_capacity = true, all_mhz = true;
    for (int i = 0; i < n; i++) {
        all_type &= t[i].type[0] != 0;
        all_midr &= t[i].midr != 0;
        all_capacity &= t[i].capacity > 0;
        all_mhz &= t[i].mhz_base > 0 && t[i].mhz_max > 0;
    }
    int *order = malloc((size_t)n * sizeof *order), *group = malloc((size_t)n * sizeof *group), *best = malloc((size_t)n * sizeof *best);
    int n_kinds = -1;
    if (!order || !group || !best) goto out;

    int n_groups = 0;
    if (all_type || all_midr) { /* equal names are one group, whatever their speeds */
        for (int i = 0; i < n; i++) {
            int g = 0;
            while (g < n_groups && (all_type ? strcmp(t[best[g]].type, t[i].type) != 0 : t[best[g]].midr != t[i].midr)) g++;
            if (g == n_groups) best[n_groups++] = i;
            group[i] = g;
            if (compare_speed(&t[i], &t[best[g]]) < 0) best[g] = i;
        }
    } else if (all_capacity || all_mhz) { /* sorted by speed, a new group at each gap */
        int n_order = 0;
        for (int i = 0; i < n; i++) { /* insertion of values that are new: few on any machine */
            int at = n_order;
            while (at > 0 && compare_speed(&t[i], &t[order[at - 1]]) < 0) at--;
            if (at > 0 && compare_speed(&t[i], &t[order[at - 1]]) == 0) continue;
            memmove(order + at + 1, order + at, (size_t)(n_order - at) * sizeof *order);
            order[at] = i;
            n_order++;
        }
        for (int k = 0; k < n_order; k++) {
            const struct traits *above = k ? &t[order[k - 1]] : NULL, *here = &t[order[k]];
            if (!k || (all_capacity ? far_below(here->capacity, above->capacity)
                                    : far_below(here->mhz_base, above->mhz_base) && far_below(here->mhz_max, above->mhz_max)))
                best[n_groups++] = order[k];
            for (int i = 0; i < n; i++)
                if (compare_speed(&t[i], here) == 0) group[i] = n_groups - 1;
        }
    } else {
        for (int i = 0; i < n; i++) group[i] = 0;
        best[n_groups++] = 0;
    }

    n_kinds = n_groups;
    for (int i = 0; i < n; i++) { /* rank of a group: how many are faster (ties: seen first) */
        int kind = 0;
        for (int g = 0; g < n_groups; g++) {
            int c = compare_speed(&t[best[g]], &t[best[group[i]]]);
            kind += c < 0 || (c == 0 && g < group[i]);
        }
        cores[i].kind = kind;
    }
out:
    free(order);
    free(group);
    free(best);
    return n_kinds;
}

static uint64_t read_midr(int cpu) {
    char path[96], text[64] = {0};
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/regs/identification/midr_el1", cpu);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 ? strtoull(text, NULL, 16) : 0;
}

static void find_traits(hwloc_topology_t topology, hwloc_obj_t pu, bool live, struct traits *t) {
    *t = (struct traits){.efficiency = -1};
    int kind = hwloc_cpukinds_get_by_cpuset(topology, pu->cpuset, 0);
    unsigned n_infos = 0;
    struct hwloc_info_s *infos = NULL;
    if (kind >= 0 && hwloc_cpukinds_get_info(topology, (unsigned)kind, NULL, &t->efficiency, &n_infos, &infos, 0) == 0)
        for (unsigned i = 0; i < n_infos; i++) {
            const char *name = infos[i].name, *value = infos[i].value;
            if (!name || !value) continue;
            if (!strcmp(name, "CoreType")) snprintf(t->type, sizeof t->type, "%s", value);
            if (!strcmp(name, "LinuxCapacity")) t->capacity = strtod(value, NULL);
            if (!strcmp(name, "FrequencyBaseMHz")) t->mhz_base = strtod(value, NULL);
            if (!strcmp(name, "FrequencyMaxMHz")) t->mhz_max = strtod(value, NULL);
            if (strcasestr(name, "MIDR")) t->midr = strtoull(value, NULL, 16); /* later versions of hwloc */
        }
    if (live && !t->midr && pu->os_index <= MAX_OS_INDEX) t->midr = read_midr((int)pu->os_index);
    t->midr &= 0xff00fff0u; /* implementer and part; steppings of one part are one kind */
    double *all[] = {&t->capacity, &t->mhz_base, &t->mhz_max};
    for (int i = 0; i < 3; i++)
        if (!(*all[i] > 0 && *all[i] < 1e12)) *all[i] = 0; /* NaN, too */
}

/* --- From hwloc's tree ------------------------------------------------------------------------------------------------------- */

/* Consecutive numbers for objects in order of first appearance. */
struct numbering {
    hwloc_obj_t *objects; /* [n_max] */
    int n;
};
static int number_of(struct numbering *n, hwloc_obj_t o) {
    if (!o) return -1;
    for (int i = n->n - 1; i >= 0; i--)
        if (n->objects[i] == o) return i;
    n->objects[n->n] = o;
    return n->n++;
}

/* The cache that a core shares with others: L3, else the outermost one that covers more than the core; else the core's own (and shared says false). */
static hwloc_obj_t cache_domain(hwloc_obj_t core, bool *shared) {
    hwloc_obj_t outermost = NULL, l3 = NULL;
    for (hwloc_obj_t o = core->parent; o; o = o->parent) {
        if (o->type == HWLOC_OBJ_L3CACHE) l3 = o;
        if (hwloc_obj_type_is_dcache(o->type) && !hwloc_bitmap_isequal(o->cpuset, core->cpuset)) outermost = o;
    }
    *shared = l3 || outermost;
    return l3 ? l3 : outermost ? outermost : core;
}

/* The NUMA node nearest above a core; of several at one place (DDR and HBM) the one with the lowest OS index, GPUs' memory last. */
static hwloc_obj_t numa_node(hwloc_obj_t core) {
    for (hwloc_obj_t o = core; o; o = o->parent) {
        hwloc_obj_t best = NULL;
        for (hwloc_obj_t child = o->memory_first_child; child; child = child->next_sibling) {
            hwloc_obj_t node = child;
            while (node && node->type != HWLOC_OBJ_NUMANODE) node = node->memory_first_child; /* below a memory-side cache */
            if (!node) continue;
            bool gpu = node->subtype && !strcmp(node->subtype, "GPUMemory"), best_gpu = best && best->subtype && !strcmp(best->subtype, "GPUMemory");
            if (!best || (gpu == best_gpu ? node->os_index < best->os_index : best_gpu)) best = node;
        }
        if (best) return best;
    }
    return NULL;
}

struct scratch {
    struct traits traits[MAX_PUS]; /* of cores */
    hwloc_obj_t packages[MAX_PUS], nodes[MAX_PUS], caches[MAX_PUS];
};

/* Everything that placement needs, out of a loaded topology. Runs in the child, which owns what is in out and does not outlive it. */
static enum st extract(hwloc_topology_t topology, enum source source, struct scratch *scratch, struct message *m, struct topo_machine *out,
                       struct err *e) {
    int n_pus = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PU);
    if (n_pus < 1 || n_pus > MAX_PUS) return err_set(e, ST_INVALID, "%d CPUs; 1 to %d are possible", n_pus, MAX_PUS);
    size_t n = (size_t)n_pus;
    out->pus = calloc(n, sizeof *out->pus);
    out->cores = calloc(n, sizeof *out->cores);
    out->numa_os = calloc(n, sizeof *out->numa_os);
    out->l3_bytes = calloc(n, sizeof *out->l3_bytes);
    out->absent = calloc(MAX_PUS, sizeof *out->absent);
    struct traits *traits = scratch->traits;
    struct numbering packages = {scratch->packages, 0}, nodes = {scratch->nodes, 0}, caches = {scratch->caches, 0};
    hwloc_bitmap_t allowed = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(topology)), bound = hwloc_bitmap_alloc();
    if (!out->pus || !out->cores || !out->numa_os || !out->l3_bytes || !out->absent || !allowed || !bound)
        return err_set(e, ST_NO_MEMORY, "no memory for a description of %d CPUs", n_pus);
    /* taskset: this process inherited it from the thread that asks */
    if (source == SOURCE_LIVE && hwloc_get_cpubind(topology, bound, HWLOC_CPUBIND_THREAD) == 0) hwloc_bitmap_and(allowed, allowed, bound);

    bool any_shared = false;
    hwloc_obj_t last_core = NULL;
    for (hwloc_obj_t pu = NULL; (pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu));) {
        hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
        if (!core) core = pu; /* a description without cores: each CPU is one */
        if (core != last_core) {
            last_core = core;
            bool shared;
            struct topo_core *c = &out->cores[m->n_cores];
            c->package = number_of(&packages, hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_PACKAGE, core));
            c->numa = number_of(&nodes, numa_node(core));
            c->l3 = number_of(&caches, cache_domain(core, &shared));
            c->first_pu = m->n_pus;
            any_shared |= shared;
            find_traits(topology, pu, source == SOURCE_LIVE, &traits[m->n_cores]);
            m->n_cores++;
        }
        if (pu->os_index > MAX_OS_INDEX) return err_set(e, ST_INVALID, "a CPU with the number %u", pu->os_index);
        struct topo_pu *p = &out->pus[m->n_pus++];
        p->os_index = (int)pu->os_index;
        p->core = m->n_cores - 1;
        p->allowed = hwloc_bitmap_isset(allowed, pu->os_index);
        out->cores[p->core].n_pus++;
    }
    if (!any_shared)
        for (int i = 0; i < m->n_cores; i++) out->cores[i].l3 = -1;
    m->n_packages = packages.n;
    m->n_numa = nodes.n;
    m->n_l3 = any_shared ? caches.n : 0;
    for (int i = 0; i < m->n_l3; i++)
        if (hwloc_obj_type_is_dcache(caches.objects[i]->type)) out->l3_bytes[i] = caches.objects[i]->attr->cache.size;
    for (int i = 0; i < nodes.n; i++) {
        if (nodes.objects[i]->os_index > MAX_OS_INDEX) return err_set(e, ST_INVALID, "a NUMA node with the number %u", nodes.objects[i]->os_index);
        out->numa_os[i] = (int)nodes.objects[i]->os_index;
        m->memory_bytes += nodes.objects[i]->attr->numanode.local_memory;
    }
    hwloc_const_bitmap_t complete = hwloc_topology_get_complete_cpuset(topology);
    hwloc_bitmap_zero(bound); /* from here on: the CPUs that are in the tree, whatever a strange file says of its sets */
    for (int i = 0; i < m->n_pus; i++) hwloc_bitmap_set(bound, (unsigned)out->pus[i].os_index);
    int last = complete ? hwloc_bitmap_last(complete) : -1; /* −1: infinite, too */
    for (int cpu = 0; cpu <= last && cpu <= MAX_OS_INDEX && m->n_absent < MAX_PUS; cpu++)
        if (hwloc_bitmap_isset(complete, (unsigned)cpu) && !hwloc_bitmap_isset(bound, (unsigned)cpu)) out->absent[m->n_absent++] = cpu;
    m->n_kinds = sort_into_kinds(out->cores, traits, m->n_cores);
    return m->n_kinds < 0 ? err_set(e, ST_NO_MEMORY, "no memory for CPU kinds") : ST_OK;
}

/* --- The child --------------------------------------------------------------------------------------------------------------- */

static enum st describe(enum source source, const char *text, size_t bytes, struct message *m, struct topo_machine *out, struct err *e) {
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology)) return err_set(e, ST_NO_MEMORY, "hwloc does not start");
    if (source == SOURCE_XML && hwloc_topology_set_xmlbuffer(topology, text, (int)bytes + 1))
        return err_set(e, ST_INVALID, "not an hwloc XML description");
    if (source == SOURCE_SYNTHETIC && hwloc_topology_set_synthetic(topology, text))
        return err_set(e, ST_INVALID, "neither a file, nor a machine that is built in, nor one in hwloc's synthetic form (like \"pack:2 core:4 pu:2\")");
    /* What a cgroup forbids stays in the picture, marked as not allowed. */
    hwloc_topology_set_flags(topology, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED);
    hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(topology, HWLOC_OBJ_MISC, HWLOC_TYPE_FILTER_KEEP_NONE);
    if (hwloc_topology_load(topology))
        return err_set(e, ST_INVALID, source == SOURCE_LIVE ? "hwloc finds no CPUs" : "hwloc cannot load this description");
    struct scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch) return err_set(e, ST_NO_MEMORY, "no memory for the description of a machine");
    enum st st = extract(topology, source, scratch, m, out, e);
    free(scratch);
    return st;
}

static bool write_all(int fd, const void *data, size_t bytes) {
    for (const char *at = data; bytes;) {
        ssize_t n = write(fd, at, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

extern char **environ;

static void run_child(int fd, enum source source, const char *text, size_t bytes) __attribute__((noreturn));
static void run_child(int fd, enum source source, const char *text, size_t bytes) {
    /* Death must be quick, silent and certain. */
    static const int fatal[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGTERM, SIGPIPE, SIGALRM};
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    setrlimit(RLIMIT_CPU, &(struct rlimit){CHILD_DEADLINE_S, CHILD_DEADLINE_S + 1});
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    if (source != SOURCE_LIVE) setrlimit(RLIMIT_AS, &(struct rlimit){CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES});
#endif
    int null = open("/dev/null", O_RDWR);
    if (null >= 0) {
        dup2(null, 1);
        dup2(null, 2);
    }
    for (int i = 0; environ && environ[i];)
        if (!strncmp(environ[i], "HWLOC_", 6)) {
            char name[128];
            size_t n = strcspn(environ[i], "=");
            if (n >= sizeof name) n = sizeof name - 1;
            memcpy(name, environ[i], n);
            name[n] = 0;
            if (!getenv(name) || unsetenv(name)) i++;
        } else {
            i++;
        }

    static struct message m;
    static struct topo_machine out;
    struct err e = {{0}};
    m.magic = MAGIC;
    m.status = describe(source, text, bytes, &m, &out, &e);
    memcpy(m.text, e.text, sizeof m.text);
    bool sent = write_all(fd, &m, sizeof m);
    if (sent && m.status == ST_OK)
        sent = write_all(fd, out.pus, (size_t)m.n_pus * sizeof *out.pus) && write_all(fd, out.cores, (size_t)m.n_cores * sizeof *out.cores) &&
               write_all(fd, out.numa_os, (size_t)m.n_numa * sizeof *out.numa_os) && write_all(fd, out.l3_bytes, (size_t)m.n_l3 * sizeof *out.l3_bytes) &&
               write_all(fd, out.absent, (size_t)m.n_absent * sizeof *out.absent);
    _exit(sent ? 0 : 1);
}

/* --- The parent -------------------------------------------------------------------------------------------------------------- */

/* Exactly bytes, or less at the end of the stream or the deadline (then *late). */
static size_t read_all(int fd, void *data, size_t bytes, uint64_t deadline_ns, bool *late) {
    size_t used = 0;
    while (used < bytes) {
        uint64_t now = base_now_ns(base_clock_real());
        if (now >= deadline_ns) {
            *late = true;
            break;
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int ready = poll(&p, 1, (int)((deadline_ns - now) / BASE_NS_PER_MS) + 1);
        if (ready < 0 && errno != EINTR) break;
        if (ready <= 0) continue;
        ssize_t n = read(fd, (char *)data + used, bytes - used);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        used += (size_t)n;
    }
    return used;
}

/* Does every number of the child's message point to something, and is no CPU there twice? */
static bool valid(const struct topo_machine *m) {
    int n_seen = 0;
    bool *have = calloc(MAX_OS_INDEX + 1, sizeof *have);
    if (!have) return false;
    for (int i = 0; i < m->n_cores; i++) {
        const struct topo_core *c = &m->cores[i];
        if (c->first_pu != n_seen || c->n_pus < 1 || c->n_pus > m->n_pus - n_seen || c->package < -1 || c->package >= m->n_packages || c->numa < -1 ||
            c->numa >= m->n_numa || c->l3 < -1 || c->l3 >= m->n_l3 || c->kind < 0 || c->kind >= m->n_kinds)
            goto bad;
        for (int k = 0; k < c->n_pus; k++) {
            const struct topo_pu *p = &m->pus[n_seen + k];
            unsigned char allowed;
            memcpy(&allowed, &p->allowed, 1);
            if (p->core != i || p->os_index < 0 || p->os_index > MAX_OS_INDEX || allowed > 1 || have[p->os_index]) goto bad;
            have[p->os_index] = true;
        }
        n_seen += c->n_pus;
    }
    free(have);
    return n_seen == m->n_pus;
bad:
    free(have);
    return false;
}

static enum st receive(int fd, uint64_t deadline_ns, struct topo_machine *m, struct err *e) {
    struct message *h = malloc(sizeof *h);
    if (!h) return err_set(e, ST_NO_MEMORY, "no memory for the description of a machine");
    bool late = false;
    enum st st = ST_INVALID;
    if (read_all(fd, h, sizeof *h, deadline_ns, &late) != sizeof *h) {
        err_set(e, ST_INVALID, late ? "hwloc had not read this description after %d s" : "hwloc died of this description", CHILD_DEADLINE_S);
        goto out;
    }
    h->text[sizeof h->text - 1] = 0;
    if (h->magic == MAGIC && h->status != ST_OK) {
        st = h->status > ST_OK && h->status < ST_COUNT ? (enum st)h->status : ST_INVALID;
        err_set(e, st, "%s", h->text);
        goto out;
    }
    err_set(e, st, "hwloc died of this description");
    if (h->magic != MAGIC || h->n_pus < 1 || h->n_pus > MAX_PUS || h->n_cores < 1 || h->n_cores > h->n_pus || h->n_packages < 0 ||
        h->n_packages > h->n_pus || h->n_numa < 0 || h->n_numa > h->n_pus || h->n_l3 < 0 || h->n_l3 > h->n_pus || h->n_kinds < 1 ||
        h->n_kinds > h->n_cores || h->n_absent < 0 || h->n_absent > MAX_PUS)
        goto out;
    m->n_pus = h->n_pus;
    m->n_cores = h->n_cores;
    m->n_packages = h->n_packages;
    m->n_numa = h->n_numa;
    m->n_l3 = h->n_l3;
    m->n_kinds = h->n_kinds;
    m->n_absent = h->n_absent;
    m->memory_bytes = h->memory_bytes;
    size_t pu_bytes = (size_t)m->n_pus * sizeof *m->pus, core_bytes = (size_t)m->n_cores * sizeof *m->cores,
           numa_bytes = (size_t)m->n_numa * sizeof *m->numa_os, l3_bytes = (size_t)m->n_l3 * sizeof *m->l3_bytes,
           absent_bytes = (size_t)m->n_absent * sizeof *m->absent;
    m->pus = calloc(1, pu_bytes);
    m->cores = calloc(1, core_bytes);
    m->numa_os = calloc(1, numa_bytes + 1);
    m->l3_bytes = calloc(1, l3_bytes + 1);
    m->absent = calloc(1, absent_bytes + 1);
    if (!m->pus || !m->cores || !m->numa_os || !m->l3_bytes || !m->absent) {
        st = err_set(e, ST_NO_MEMORY, "no memory for the description of a machine");
        goto out;
    }
    if (read_all(fd, m->pus, pu_bytes, deadline_ns, &late) == pu_bytes && read_all(fd, m->cores, core_bytes, deadline_ns, &late) == core_bytes &&
        read_all(fd, m->numa_os, numa_bytes, deadline_ns, &late) == numa_bytes &&
        read_all(fd, m->l3_bytes, l3_bytes, deadline_ns, &late) == l3_bytes &&
        read_all(fd, m->absent, absent_bytes, deadline_ns, &late) == absent_bytes && valid(m)) {
        st = ST_OK;
        if (e) e->text[0] = 0;
    }
out:
    free(h);
    return st;
}

static enum st ask_child(enum source source, const char *text, size_t bytes, struct topo_machine *m, struct err *e) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC)) {
        err_set(e, ST_IO, "no pipe: %s", strerror(errno));
        return ST_IO;
    }
    pid_t child = fork();
    if (child < 0) {
        int why = errno;
        close(fds[0]);
        close(fds[1]);
        return err_set(e, ST_IO, "no process to read a machine in: %s", strerror(why));
    }
    if (child == 0) {
        close(fds[0]);
        run_child(fds[1], source, text, bytes);
    }
    close(fds[1]);
    enum st st = receive(fds[0], base_now_ns(base_clock_real()) + CHILD_DEADLINE_S * BASE_NS_PER_S, m, e);
    close(fds[0]);
    kill(child, SIGKILL); /* a zombie by now, if all went well */
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {
    }
    return st;
}

/* --- Sources ----------------------------------------------------------------------------------------------------------------- */

enum st topo_read_file(const char *path, size_t max_bytes, char **text, size_t *bytes, struct err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        enum st why = errno == ENOENT ? ST_NOT_FOUND : ST_IO;
        err_set(e, why, "%s: %s", path, strerror(errno));
        return why;
    }
    struct stat s;
    enum st st = ST_OK;
    char *buffer = NULL;
    size_t used = 0;
    if (fstat(fd, &s) || !S_ISREG(s.st_mode)) {
        err_set(e, ST_INVALID, "%s: not a regular file", path);
        close(fd);
        return ST_INVALID;
    }
    if (s.st_size > (off_t)max_bytes) {
        err_set(e, ST_INVALID, "%s: %lld bytes; a machine takes at most %zu", path, (long long)s.st_size, max_bytes);
        close(fd);
        return ST_INVALID;
    }
    if (!(buffer = malloc((size_t)s.st_size + 1))) {
        err_set(e, ST_NO_MEMORY, "%s: no memory for %lld bytes", path, (long long)s.st_size);
        close(fd);
        return ST_NO_MEMORY;
    }
    while (st == ST_OK && used < (size_t)s.st_size) {
        ssize_t n = read(fd, buffer + used, (size_t)s.st_size - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            st = ST_IO;
            err_set(e, st, "%s: %s", path, strerror(errno));
        }
        if (n <= 0) break;
        used += (size_t)n;
    }
    close(fd);
    if (st != ST_OK) {
        free(buffer);
        return st;
    }
    buffer[used] = 0;
    *text = buffer;
    *bytes = used;
    return ST_OK;
}

/* A synthetic string's number of CPUs, roughly: the product of its level sizes, so that "pack:9999 core:9999" is refused before hwloc builds it. */
static double count_synthetic(const char *text) {
    double product = 1;
    for (int depth = 0; *text; text++) {
        if (*text == '(' || *text == '[') depth++;
        if ((*text == ')' || *text == ']') && depth) depth--;
        bool starts = *text >= '0' && *text <= '9' && (text[-1] == ':' || text[-1] == ' '); /* the caller put a space in front */
        if (depth || !starts) continue;
        char *end;
        double v = (double)strtoull(text, &end, 0);
        if (v > 1) product *= v;
        text = end - 1;
    }
    return product;
}

/* Where hwloc cannot read this machine: the CPUs that we may use, each a core, no structure. */
static enum st fall_back(struct topo_machine *m, struct err *e) {
    int n_bits = MAX_PUS;
    cpu_set_t *set = CPU_ALLOC((size_t)n_bits);
    size_t bytes = CPU_ALLOC_SIZE((size_t)n_bits);
    if (!set || sched_getaffinity(0, bytes, set)) {
        err_set(e, ST_IO, "the CPUs of this machine cannot be read: %s", strerror(errno));
        if (set) CPU_FREE(set);
        return ST_IO;
    }
    int n = CPU_COUNT_S(bytes, set);
    m->pus = calloc((size_t)n, sizeof *m->pus);
    m->cores = calloc((size_t)n, sizeof *m->cores);
    m->numa_os = calloc(1, sizeof *m->numa_os);
    enum st st = m->pus && m->cores && m->numa_os ? ST_OK : ST_NO_MEMORY;
    if (st != ST_OK) err_set(e, st, "no memory for a description of %d CPUs", n);
    for (int cpu = 0; st == ST_OK && cpu < n_bits && m->n_pus < n; cpu++) {
        if (!CPU_ISSET_S((size_t)cpu, bytes, set)) continue;
        m->pus[m->n_pus] = (struct topo_pu){.os_index = cpu, .core = m->n_pus, .allowed = true};
        m->cores[m->n_pus] = (struct topo_core){.l3 = -1, .first_pu = m->n_pus, .n_pus = 1};
        m->n_pus++;
    }
    CPU_FREE(set);
    m->n_cores = m->n_pus;
    m->n_packages = m->n_numa = m->n_kinds = 1;
    return st;
}

static void read_total_memory(struct topo_machine *m) {
    FILE *f = fopen("/proc/meminfo", "re");
    char line[256];
    unsigned long long kib;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemTotal: %llu kB", &kib) == 1) {
            m->memory_bytes = kib * 1024;
            break;
        }
    if (f) fclose(f);
}

static enum st open_live(struct topo_machine *m, struct err *e) {
    struct err why = {{0}};
    m->live = true;
    if (ask_child(SOURCE_LIVE, NULL, 0, m, &why) != ST_OK) {
        LOG_WARNING("topo", "hwloc cannot read this machine (%s): its CPUs are taken as equal", why.text);
        free(m->pus);
        free(m->cores);
        free(m->numa_os);
        free(m->l3_bytes);
        free(m->absent);
        *m = (struct topo_machine){.live = true};
        enum st st = fall_back(m, e);
        if (st != ST_OK) return st;
    }
    m->memory_bytes = 0;
    read_total_memory(m);
    m->cpu_quota = topo_cpu_quota(NULL);
    if (gethostname(m->name, sizeof m->name - 1) || !m->name[0]) strcpy(m->name, "localhost");
    return ST_OK;
}

/* Takes the processors out of a description. */
static enum st open_description(const char *where, const char *text, size_t bytes, struct topo_machine *m, struct err *e) {
    struct topo_description *d;
    enum st st = text ? topo_description_parse(where, text, bytes, &d, e) : topo_description_open(where, &d, e);
    if (st != ST_OK) return st;
    *m = *d->machine;
    *d->machine = (struct topo_machine){.n_pus = 0};
    topo_description_close(d);
    return ST_OK;
}

static enum st open_file(const char *path, struct topo_machine *m, struct err *e) {
    char *text = NULL;
    size_t bytes = 0;
    enum st st = topo_read_file(path, MAX_XML_BYTES, &text, &bytes, e);
    if (st != ST_OK) return st;
    if (text[strspn(text, " \t\r\n")] == '{') {
        st = open_description(path, text, bytes, m, e);
    } else if (memchr(text, 0, bytes) || !strchr(text, '<')) {
        st = err_set(e, ST_INVALID, "%s: neither hwloc's XML nor a description in JSON", path);
    } else {
        st = ask_child(SOURCE_XML, text, bytes, m, e);
        if (st != ST_OK) err_prefix(e, st, "%s", path);
        const char *base = strrchr(path, '/');
        snprintf(m->name, sizeof m->name, "%s", base && base[1] ? base + 1 : path);
    }
    free(text);
    return st;
}

static enum st open_synthetic(const char *text, struct topo_machine *m, struct err *e) {
    char padded[4096];
    int n = snprintf(padded, sizeof padded, " %s", text);
    if (n < 0 || (size_t)n >= sizeof padded)
        return err_set(e, ST_INVALID, "the description of a machine is longer than %zu characters", sizeof padded - 2);
    size_t n_text = strlen(text);
    bool names_file = strchr(text, '/') || (n_text > 4 && !strcmp(text + n_text - 4, ".xml")) || (n_text > 5 && !strcmp(text + n_text - 5, ".json"));
    if (names_file) return err_set(e, ST_NOT_FOUND, "%s: no such file", text);
    if (count_synthetic(padded + 1) > MAX_PUS) return err_set(e, ST_INVALID, "'%.100s': more than %d CPUs", text, MAX_PUS);
    enum st st = ask_child(SOURCE_SYNTHETIC, text, n_text, m, e);
    if (st != ST_OK) return err_prefix(e, st, "'%.100s'", text);
    if (!strstr(text, "memory=")) m->memory_bytes = 0; /* hwloc's own inventions otherwise */
    if (!strstr(text, "size=")) memset(m->l3_bytes, 0, (size_t)m->n_l3 * sizeof *m->l3_bytes);
    snprintf(m->name, sizeof m->name, "%s", text);
    return ST_OK;
}

enum st topo_machine_open(const char *source, struct topo_machine **out, struct err *e) {
    struct topo_machine *m = calloc(1, sizeof *m);
    if (!m) return err_set(e, ST_NO_MEMORY, "no memory for the description of a machine");
    bool built_in = false;
    for (int i = 0; source && topo_description_name(i) && !built_in; i++) built_in = !strcmp(source, topo_description_name(i));
    struct stat s;
    enum st st = !source                ? open_live(m, e)
                 : built_in             ? open_description(source, NULL, 0, m, e)
                 : stat(source, &s) == 0 ? open_file(source, m, e)
                                        : open_synthetic(source, m, e);
    m->n_allowed = 0;
    for (int i = 0; st == ST_OK && m->pus && i < m->n_pus; i++) m->n_allowed += m->pus[i].allowed;
    if (st == ST_OK && !m->n_allowed) st = err_set(e, ST_INVALID, "%s: no CPU is allowed there", m->name);
    if (st != ST_OK) {
        topo_machine_close(m);
        return st;
    }
    *out = m;
    return ST_OK;
}

void topo_machine_close(struct topo_machine *m) {
    if (!m) return;
    free(m->pus);
    free(m->cores);
    free(m->numa_os);
    free(m->l3_bytes);
    free(m->absent);
    free(m);
}

int topo_machine_cpus(const struct topo_machine *m) {
    if (m->cpu_quota <= 0 || m->cpu_quota >= m->n_allowed) return m->n_allowed;
    return m->cpu_quota < 1 ? 1 : (int)m->cpu_quota;
}
