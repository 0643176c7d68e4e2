/* What a machine is: CPUs by kind, cores, caches, NUMA nodes, memory; from hwloc and sysfs, from an XML file or from hwloc's synthetic string.
 *
 * open → read → close. Plain data: everything that placement needs, nothing that it does not. Decisions about it are in place.h, pure.
 * HWLOC_* variables of the environment do not touch the live machine. Sizes of memory come from /proc/meminfo and the cgroups, structure from hwloc. */
#ifndef TOPOLOGIES_MACHINE_H
#define TOPOLOGIES_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct topo_pu {
    int os_index;
    int core;    /* index into cores */
    bool allowed; /* by cpuset, taskset, offline state */
};

struct topo_core {
    int package, numa, l3; /* small consecutive numbers; −1: the machine has no such level. l3 falls to the shared cache above the core where there is no L3 */
    int kind;              /* 0 = the fastest kind; equal on a uniform machine */
    int first_pu, n_pus;   /* into pus, which stand core by core */
};

struct topo_machine {
    struct topo_pu *pus;
    int n_pus;
    struct topo_core *cores;
    int n_cores;
    int n_packages, n_numa, n_l3, n_kinds;
    int *numa_os; /* [n_numa] OS index of each NUMA node that has CPUs */
    int *absent;   /* [n_absent] OS indexes of CPUs that exist but are offline, or hidden from the description: no place is known for them; NULL: none */
    int n_absent;
    uint64_t *l3_bytes; /* [n_l3] size of each shared cache, 0: not known; NULL: none known */
    int n_allowed; /* allowed PUs */
    double cpu_quota; /* CPUs that every enclosing cgroup's quota leaves (least of all); 0: none */
    uint64_t memory_bytes; /* live: MemTotal; else what the description says, 0 if nothing */
    bool live;
    char name[128]; /* host name, file or string */
};

/* source NULL: this machine, live. Otherwise the name of a description that is built in ("gb10"; description.h), else a path of a description (JSON) or of an hwloc XML file
 * if such a file exists, else hwloc's synthetic string ("pack:2 core:4 pu:2"). A foreign XML is imported in a child process, because hwloc 2.9 dies on some: its death is ST_INVALID with the file's name.
 * Live: what the calling thread is bound to counts as taskset's, so ask before binding threads. Every source is read in a child (fork, at most 20 s), so no other thread may
 * reap foreign children meanwhile. ST_NOT_FOUND: source looks like a path and is none. */
enum st topo_machine_open(const char *source, struct topo_machine **m, struct err *e);
void topo_machine_close(struct topo_machine *m);

/* CPUs that may be kept busy: min(allowed PUs, ⌊quota⌋ but at least 1). */
int topo_machine_cpus(const struct topo_machine *m);

/* What this process may still take: the least of MemAvailable and, for every enclosing cgroup (v1 and v2), limit − (usage − reclaimable file pages). what names the one that binds
 * ("MemAvailable", "cgroup /a/b"). root NULL: "/"; otherwise a directory that holds proc/ and sys/ (for tests). */
enum st topo_memory_available(const char *root, uint64_t *bytes, char what[256], struct err *e);
/* The least CPU quota of all enclosing cgroups in CPUs, 0: none. */
double topo_cpu_quota(const char *root);

#endif
