/* MPICH, opened at run time: a table of its functions, and the one MPI that a process can have.
 *
 * The types come from the real mpi.h at build time. MPICH's handles are integer constants and its ABI is fixed by the soname (libmpich.so.12 on Debian, libmpi.so.12 elsewhere),
 * so that a pointer per function is all there is to link. Without MPICH's mpi.h COMM_HAVE_MPI is 0, and nobody can load anything.
 *
 * load → acquire / release by every user (a comm, a boot) → with the last release MPI is finalised, if all of them ended in peace. After that, or after a failure, MPI cannot be
 * had again in this process: MPI_Init works once. Where the program itself had called MPI_Init before, it also calls MPI_Finalize.
 *
 * Calls that wait for other ranks without a deadline (MPI_Init, MPI_Comm_create_group, MPI_Finalize) run on a thread of their own and are given up when theirs has passed:
 * then that thread, and MPI's buffers, stay until the process ends, which must be by _exit: MPICH's and UCX's way out waits for peers. MPI is asked for MPI_THREAD_SERIALIZED, since
 * two threads of ours call it, never at once. What cannot be caught: MPI_Init prints to stderr and calls exit() where the PMI server refuses it something. It also makes
 * stdout unbuffered. */
#ifndef COMM_MPI_API_H
#define COMM_MPI_API_H

#include "comm/comm.h"

#ifdef __has_include
#if __has_include(<mpi.h>)
#include <mpi.h>
#endif
#endif
#ifdef MPICH_NUMVERSION
#define COMM_HAVE_MPI 1
#else
#define COMM_HAVE_MPI 0
#endif

#if COMM_HAVE_MPI

#define COMM_MPI_CALLS(X)                                                                                                                            \
    X(Init_thread)                                                                                                                                   \
    X(Initialized) X(Finalized) X(Finalize) X(Get_library_version) X(Error_string) X(Error_class) X(Comm_rank) X(Comm_size) X(Comm_set_errhandler)   \
        X(Comm_group) X(Comm_create_group) X(Comm_free) X(Group_incl) X(Group_free) X(Isend) X(Irecv) X(Test) X(Testsome) X(Cancel) X(Get_count)     \
            X(Allreduce)

struct comm_mpi_api {
#define COMM_MPI_POINTER(name) __typeof__(&MPI_##name) name;
    COMM_MPI_CALLS(COMM_MPI_POINTER)
#undef COMM_MPI_POINTER
    char version[64]; /* "MPICH 4.0.2" */
};

/* Sets what UCX reads when it is loaded (where the user has not): no signal handlers, nothing on stdout. NULL: cannot be; e says why. */
const struct comm_mpi_api *comm_mpi_load(struct err *e);

/* MPI runs when this returns ST_OK; errors on MPI_COMM_WORLD return. ST_UNSUPPORTED: it did, and cannot be started again. */
enum st comm_mpi_acquire(uint64_t deadline_ns, struct err *e);
bool comm_mpi_is_running(void);
int comm_mpi_n_users(void);
/* A call was given up and has not returned: its thread is inside MPI, so nobody else may enter it any more. */
bool comm_mpi_is_stuck(void);
/* Not in peace: the last release will not finalise MPI. */
void comm_mpi_release(bool in_peace);

/* A communicator of ours, of these ranks of MPI_COMM_WORLD; collective among them. Concurrent calls whose groups share a rank must differ in tag. */
enum st comm_mpi_make_comm(const int *world_ranks, int n_ranks, int tag, uint64_t deadline_ns, MPI_Comm *made, struct err *e);

/* result was returned by the MPI call of that name: ST_OK, ST_MISMATCH for a message that was too long, else ST_PEER_LOST. */
enum st comm_mpi_check(int result, const char *name, struct err *e);

#endif
#endif
