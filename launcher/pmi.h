/* A PMI-1 server: how MPICH's ranks, and our own by comm/boot_pmi.h, find each other under an agent.
 *
 * A pure state machine: no descriptor, no thread, no clock. One connection per rank, text lines "cmd=… key=value"; whoever moves the bytes feeds what a rank
 * wrote and sends what is pending for it: the agent's poll loop for its own ranks, agents among each other for ranks on other hosts (bytes of rank r in, bytes
 * for rank r out: nothing else has to be relayed). One server serves all ranks of a job.
 *
 * Served: init (also a second time: our bootstrap and MPICH share the connection, one after the other), get_maxes, get_appnum, get_universe_size, get_my_kvsname, put, get,
 * barrier_in, finalize, abort. Refused with an answer: spawn, publish_name, unpublish_name, lookup_name, and whatever is unknown. Not served: initack (PMI_PORT).
 *
 * What ranks write is hostile: lines, answers and the key-value space are bounded. A rank that breaks a bound is broken for good (ST_INVALID, with a sentence); others go on.
 * A rank that left without finalize, or is broken, ends every barrier for the others with an answer that says so (rc=-1): nobody waits for it.
 *
 * create → feed / pending / sent / hang_up … → destroy. One thread.
 *
 * What a rank needs: its end of a socket pair, and in its environment PMI_FD (that descriptor), PMI_RANK, PMI_SIZE; PMI_PORT and PMI_ID must be unset there. */
#ifndef LAUNCHER_PMI_H
#define LAUNCHER_PMI_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "comm/os.h"

/* MPICH's client keeps a line in 1,024 bytes and cuts what is longer in silence: a put with the longest key and value, and the answer to a get, must stay below. (Hydra
 * tells vallen_max=1024, and so loses the end of long addresses; MPICH wants more than 256.) */
#define LAUNCH_PMI_KEY_MAX 64
#define LAUNCH_PMI_VALUE_MAX 896
#define LAUNCH_PMI_LINE_MAX 2048
#define LAUNCH_PMI_MAX_PAIRS 512 /* that one rank may put */
#define LAUNCH_PMI_MAPPING_BYTES 1024

struct launch_pmi;

enum launch_pmi_state {
    LAUNCH_PMI_SILENT, /* has not said anything yet */
    LAUNCH_PMI_TALKS,
    LAUNCH_PMI_WAITS,     /* in a barrier */
    LAUNCH_PMI_FINALIZED, /* left in peace; its end may close now */
    LAUNCH_PMI_GONE,      /* its end closed before that */
    LAUNCH_PMI_BROKEN,    /* wrote what no client would */
};

/* host_of_rank[r]: index 0 … of rank r's host, NULL: all on one. MPICH shares memory between ranks of one host: the indices must tell the truth. */
enum st launch_pmi_create(int n_ranks, const int *host_of_rank, struct launch_pmi **s, struct err *e);
void launch_pmi_destroy(struct launch_pmi *s);

/* Rank wrote these bytes (any piece of its stream). ST_INVALID: it is broken, e says why; its connection should be closed and its process ended. */
enum st launch_pmi_feed(struct launch_pmi *s, int rank, const void *bytes, size_t n, struct err *e);
/* What is to be written to rank: how many bytes, and where they are until the next call with s. A feed of one rank can make some pending for all. */
size_t launch_pmi_pending(const struct launch_pmi *s, int rank, const void **bytes);
/* The first n of them were written. */
void launch_pmi_sent(struct launch_pmi *s, int rank, size_t n);
/* The rank's end of the stream, or its death. */
void launch_pmi_hang_up(struct launch_pmi *s, int rank);

enum launch_pmi_state launch_pmi_query(const struct launch_pmi *s, int rank);
/* The rank that asked to abort the job, with the status that it wants; −1: none did. */
int launch_pmi_aborted(const struct launch_pmi *s, int *exit_code);

/* The same over a stream socket that poll(2) reported, for the agent's own ranks: reads what is there, feeds it, and hangs up at its end. Never blocks. */
enum st launch_pmi_read(struct launch_pmi *s, int rank, const struct comm_os *os, int fd, struct err *e);
/* Writes what is pending and fits. True: some is left, poll for POLLOUT. */
bool launch_pmi_write(struct launch_pmi *s, int rank, const struct comm_os *os, int fd);

/* "(vector,(0,1,4))": blocks of (first host, how many hosts, ranks on each). */
enum st launch_pmi_mapping(const int *host_of_rank, int n_ranks, char text[LAUNCH_PMI_MAPPING_BYTES], struct err *e);

#endif
