/* Descriptions of machines: what placement, budgets and forecasts need to know about a box that may not be here.
 *
 * open → read → close; plain data. The texts are the JSON files of this folder, which are built in: "gb10", "rtx5090", "vm". The format is documented in docs/topologies.md.
 * Every figure of a file has its source beside it; a figure that nobody knows is left out, and is 0 here. Bytes, bits per second, bytes per second, nanoseconds. */
#ifndef TOPOLOGIES_DESCRIPTION_H
#define TOPOLOGIES_DESCRIPTION_H

#include "topologies/machine.h"

#define TOPO_MAX_KINDS 8
#define TOPO_MAX_DEVICES 16 /* accelerators, ports, formats of an accelerator */

struct topo_kind {
    char name[64];
    double speed; /* of one core, relative to kind 0's; 0: not known */
    double mhz_max;
    uint64_t l2_bytes;
};

struct topo_memory_info {
    uint64_t bytes;        /* what the kernel calls MemTotal */
    uint64_t usable_bytes; /* what can be taken in safety; 0: not known */
    bool unified;          /* the accelerators use this memory and have none of their own */
    double bandwidth, bandwidth_reached; /* bytes/s: nominal, and what programs see */
};

struct topo_pcie {
    int generation, n_lanes;  /* of one function; 0: not known, or none */
    double bandwidth_reached; /* bytes/s, from pinned memory */
};

struct topo_flops {
    char format[16]; /* "nvfp4", "fp8", "bf16" … */
    double per_s;
};

struct topo_accelerator {
    char name[64];
    char architecture[16];  /* "sm_121a" */
    int n_sm;
    double mhz_max;
    uint64_t memory_bytes;  /* of its own; 0 where the machine's memory is unified */
    double bandwidth, bandwidth_reached; /* bytes/s of the memory that it computes from */
    uint64_t l2_bytes, shared_bytes_per_block;
    uint64_t library_bytes; /* what its library takes for itself in each process; 0: not known */
    struct topo_flops flops[TOPO_MAX_DEVICES];
    int n_flops;
    struct topo_pcie pcie;
};

struct topo_port {
    char name[64];
    int n_rails;               /* links that have to be used at once for the whole rate */
    double bits_per_s, bits_per_s_reached; /* all rails together */
    uint64_t one_way_ns;       /* of the smallest message */
    bool rdma, gpu_direct;
    struct topo_pcie pcie;     /* of one rail */
};

struct topo_description {
    char name[64], title[128];
    struct topo_machine *machine; /* what topo_place takes; never NULL */
    struct topo_kind kinds[TOPO_MAX_KINDS]; /* [machine->n_kinds] */
    struct topo_memory_info memory;
    struct topo_accelerator accelerators[TOPO_MAX_DEVICES];
    int n_accelerators;
    struct topo_port ports[TOPO_MAX_DEVICES];
    int n_ports;
};

/* The name of one that is built in, or else a file's path. ST_NOT_FOUND: neither. ST_INVALID: "file: key: what is wrong"; unknown keys are refused, too. */
enum st topo_description_open(const char *source, struct topo_description **d, struct err *e);
/* From memory; where names the source in errors. */
enum st topo_description_parse(const char *where, const char *text, size_t bytes, struct topo_description **d, struct err *e);
void topo_description_close(struct topo_description *d);

/* The i-th name that is built in; NULL: there are no more. */
const char *topo_description_name(int i);

/* What the build makes of the files (the Makefile's descriptions.c). The last one has no name. */
struct topo_embedded {
    const char *name, *text;
};
extern const struct topo_embedded topo_embedded[];

#endif
