/* What MPI is good for beside being a backend: bootstrap, and a comparison for benchmarks. */
#ifndef COMM_MPI_H
#define COMM_MPI_H

#include "comm/comm.h"

/* MPI carries the bootstrap: for ranks that somebody else's mpiexec or srun starts, whatever backend then moves the bytes. Starts MPI (once per process, see mpi_api.h) and tells
 * this rank's place in MPI_COMM_WORLD. ST_UNSUPPORTED: not in this build, or no MPICH here. deadline_ns 0: 60 s from now.
 * close: all ranks; MPI is finalised unless a comm of backend mpi, opened meanwhile, still uses it. in_peace false: never wait for the others. */
enum st comm_boot_mpi_open(uint64_t deadline_ns, struct comm_boot *boot, int *rank, int *n_ranks, struct err *e);
void comm_boot_mpi_close(struct comm_boot *boot, bool in_peace);

/* For benchmarks: MPI_Allreduce(MPI_FLOAT, MPI_SUM) over the communicator of c, whose backend is mpi (ST_INVALID for others, and for a link around it). MPICH chooses the order of the
 * sum, so it is outside promise 1. No deadline. */
enum st comm_mpi_allreduce(struct comm *c, const float *in, float *out, size_t n, struct err *e);

/* "MPICH 4.0.2"; NULL where there is none. Loads it. */
const char *comm_mpi_version(void);

#endif
