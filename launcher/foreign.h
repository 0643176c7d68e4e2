/* Ranks that somebody else starts: `mpiexec.hydra -n 2 tandem rank run MODEL …`, or srun.
 *
 * Every process runs the same command up to its setup; then rank 0 goes on as the front end, with its rank as a thread, and the others only serve as ranks. They find each other by PMI-1
 * where its environment is there, else MPI carries the bootstrap. Who started them watches them: there is no agent. */
#ifndef LAUNCHER_FOREIGN_H
#define LAUNCHER_FOREIGN_H

#include "launcher/setup.h"
#include "runtime/rank.h"

struct launch_foreign {
    int rank, n_ranks;
    int i_local, n_local; /* among the ranks of this host that share their CPUs with us */
    const struct comm_boot *boot;
};
/* NULL: this process was started as usual. */
const struct launch_foreign *launch_foreign(void);

/* `tandem rank run MODEL …`: argv[0] is the command. Returns its exit status. */
int launch_foreign_run(int (*command)(int argc, char **argv), int argc, char **argv);

/* Fills what a rank needs from the setup; options stay valid as long as both. */
void launch_foreign_options(const struct launch_setup *setup, struct rt_rank_options *o);

/* After the setup: ranks other than 0 run here (or, dry, nothing happens) and the process ends. Returns on rank 0, and where nothing is foreign. */
void launch_foreign_serve(const struct launch_setup *setup, bool dry);

#endif
