/* Measuring exchanges: what each rank of `tandem bench comm` does instead of running a model.
 *
 * An operation is what a row-parallel product needs: every rank brings one vector of partial sums, every rank gets their sum in tree order. Its input is written anew each time, as the
 * kernel before would: for ours mostly straight into the send buffer. Timed are the call (from the input being there to the sum being there) and the whole, input included.
 * Blocks of ours and of MPICH's MPI_Allreduce alternate within the same processes, so that a machine that moves its CPUs about or is used by others disturbs both alike. */
#ifndef RUNTIME_EXCHANGES_H
#define RUNTIME_EXCHANGES_H

#include "runtime/rank.h"

struct rt_exchanges {
    int64_t min_bytes, max_bytes; /* of a vector; powers of two from the first to the second */
    int64_t block_us;             /* time of one block of one kind */
    int64_t n_blocks;             /* of each kind and size */
    bool beside_mpi;
};
/* As text for a rank's command line, and back. */
void rt_exchanges_print(const struct rt_exchanges *x, char text[128]);
enum st rt_exchanges_parse(const char *text, struct rt_exchanges *x, struct err *e);

/* The rank's part. o: rank, n_ranks, backend, boot, link, memory, settings.spin_us. Rank 0 tells the results in one RT_EXCHANGES frame, JSON as in docs/comm.md:
 * {"backend", "mpi", "ranks", "sizes": [{"bytes", "us", "us_whole", "us_least", "mpi_us", "mpi_us_whole", "ratio", "mpi_us_least", "ratio_least"}…], "link": {…}}. */
enum st rt_exchanges_run(const char *what, const struct rt_rank_options *o, size_t max_bytes, struct err *e);

#endif
