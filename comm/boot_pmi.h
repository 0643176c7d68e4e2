/* How ranks find each other by PMI-1: our agent's server (launcher/pmi.h), or somebody else's mpiexec (Hydra and its relatives).
 *
 * open → the boot's allgather, any number of times → close. One thread. Every read and write has a deadline.
 *
 * MPICH uses the same connection. That is sound in one order: everything of ours that all ranks do together (open, allgathers) stands before or behind whole MPI calls, alike on all
 * ranks, and nothing comes after MPI_Finalize, which closes the descriptor. So a rank that uses MPI closes this boot with COMM_BOOT_PMI_LEAVE, before MPI is finalised or after;
 * one that does not closes it with COMM_BOOT_PMI_FINALIZE, without which a foreign mpiexec takes the rank's exit for a crash and kills the others.
 *
 * Slurm: not tried. Where srun sets PMI_FD (--mpi=pmi2) this should work; where it has only libpmi, neither this nor an MPICH built for Hydra finds the others, and every rank
 * believes that it is alone. */
#ifndef COMM_BOOT_PMI_H
#define COMM_BOOT_PMI_H

#include <stdbool.h>

#include "comm/comm.h"

/* fd: a stream socket to the server, inherited. On success boot is ready; a failure leaves fd as it is. deadline_ns is for opening (0: 60 s from now). */
enum st comm_boot_pmi_open(int fd, int rank, int n_ranks, uint64_t deadline_ns, struct comm_boot *boot, struct err *e);
/* By the environment: PMI_FD, PMI_RANK, PMI_SIZE; or PMI_PORT (host:port) and PMI_ID, as Hydra's -pmi-port has it: then we connect, and put the connection into the
 * environment as PMI_FD, PMI_RANK and PMI_SIZE instead, so that MPICH goes on with it. ST_NOT_FOUND: nobody serves PMI-1 here. */
enum st comm_boot_pmi_open_env(uint64_t deadline_ns, struct comm_boot *boot, int *rank, int *n_ranks, struct err *e);

enum comm_boot_pmi_end {
    COMM_BOOT_PMI_LEAVE,    /* the connection stays open, for MPICH, or is MPICH's already */
    COMM_BOOT_PMI_FINALIZE, /* tells the server that this rank leaves in peace, and closes the descriptor */
};
/* boot from one of the two above, or zeroed. Waits for the server's answer for at most a second. */
void comm_boot_pmi_close(struct comm_boot *boot, enum comm_boot_pmi_end how);

/* Does the environment name a PMI-1 server? */
bool comm_boot_pmi_is_here(void);

#endif
