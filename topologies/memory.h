/* Binds the memory of a rank to its NUMA nodes. For the rank's own process, which knows nothing of a machine but OS indexes. */
#ifndef TOPOLOGIES_MEMORY_H
#define TOPOLOGIES_MEMORY_H

#include <stdbool.h>

#include "base/status.h"

/* Pages that this thread, and every thread that it starts later, touch first from now on come from these nodes (OS indexes, as topo_seat.numa) while those have room, then from
 * others. Call it once in the rank, after it bound its CPUs and before it makes threads and maps memory. Pages that are there already stay where they are.
 * *bound (may be NULL): whether the kernel does so. A kernel or container that forbids it (a missing capability, a seccomp filter, one node only) is a debug line, *bound false and
 * ST_OK: the default, memory from the node of the CPU that touches it, is nearly as good for bound threads. n_numa 0: nothing is done. ST_INVALID: an index below 0 or above 65535. */
enum st topo_memory_bind(const int *numa, int n_numa, bool *bound, struct err *e);

#endif
