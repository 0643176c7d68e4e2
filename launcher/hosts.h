/* Several hosts: `--hosts spark1,spark2`. Which ranks are where, how their agents are reached, and the addresses by which the hosts reach each other.
 *
 * parse → open (agents run and have told of their hosts; addresses are decided) → start (they get their arguments) → the ends go to launch_watch. One thread.
 *
 * Up to and with RT_START the conversation with another host's agent goes through ssh. Where our own host is one of the list, it goes on over the way that was decided, on a connection that
 * was proven meanwhile (ways.h): then the loss of ssh is only a warning. A launcher outside the list has ssh alone. */
#ifndef LAUNCHER_HOSTS_H
#define LAUNCHER_HOSTS_H

#include "comm/comm.h"
#include "launcher/bundle.h"
#include "launcher/decide.h"
#include "launcher/host.h"
#include "launcher/remote.h"
#include "launcher/watch.h"

struct launch_setup;

struct launch_hosts_entry {
    char typed[256]; /* as the user named it: "me@spark1" */
    struct launch_target target;
    bool is_local;
    int first_rank, n_ranks; /* contiguous blocks in the order of the list */
    int n_threads;           /* of each of its ranks */
    struct launch_end end;
    int direct_fd; /* to its agent over the way that was decided, which goes on there from RT_START; −1: there is none */
    struct launch_host_facts info;
    /* decided */
    char address[LAUNCH_ADDRESS_TEXT]; /* by which the other hosts reach it; "": there are none */
    char streams[COMM_MAX_STREAMS * (LAUNCH_ADDRESS_TEXT + IF_NAMESIZE + 2)]; /* of our own sockets, as comm_setup.streams; "": one, at address */
    struct launch_environment environment;
};

struct launch_hosts {
    const char *ssh; /* NULL: TANDEM_SSH, else ssh */
    bool with_mpi; /* ranks talk by MPI: the bundle needs it */
    int port;      /* --port; 0: any */
    enum launch_transport transport; /* LAUNCH_TCP: by --backend, in spite of RDMA devices */
    uint8_t key[LAUNCH_PROBE_KEY_BYTES]; /* the job's */
    struct launch_bundles bundles; /* for hosts that lack the binary */
    int n;
    bool is_open;
    int handed_fd; /* socket by which our own host's agent hands us the direct connections; −1: our host is none of these */
    int i_own;     /* its number, where there is one */
    struct launch_interfaces *interfaces; /* [n] */
    struct launch_decision decision;
    bool asks_only; /* launch_hosts_open asks what hosts have, and looks for no ways between them */
    char pair[256]; /* names hosts and what lies between them, for comm_tune; "": one host */
    const char *backend; /* what carries the bytes, where the user does not say; NULL: shared memory, for there is one host */
    struct launch_hosts_entry h[LAUNCH_MAX_HOSTS];
};

/* "a,me@b"; n_ranks 0: one for each. ST_INVALID: misuse. */
enum st launch_hosts_parse(const char *list, const char *ssh, int n_ranks, struct launch_hosts **hosts, struct err *e);
void launch_hosts_destroy(struct launch_hosts *hosts); /* also ends agents whose ends nobody took */

enum st launch_hosts_open(struct launch_hosts *hosts, struct err *e);
/* Each host draws its machine and who would sit where: n_threads and bind as of struct launch_seating. drawings [hosts->n]: the caller's to free; texts, or JSON of topologies/place.h. */
enum st launch_hosts_draw(struct launch_hosts *hosts, int n_threads, const char *bind, bool is_json, char **drawings, struct err *e);
/* What carries the bytes where the user does not say, as comm names it; NULL: shared memory, for there is one host. */
const char *launch_hosts_carrier(int n_hosts, int n_ranks, bool is_rdma);
/* A line about one of them. */
void launch_hosts_print_host(const struct launch_hosts_entry *h, FILE *out);
/* The decision in full; nothing where there is one host. */
void launch_hosts_print(const struct launch_hosts *hosts, FILE *out);
/* A model that a host lacks, or has another one of, is refused with the line that mends it. */
enum st launch_hosts_check_model(struct launch_hosts *hosts, const struct launch_setup *setup, struct err *e);
/* Also checks the model and each host's memory. */
enum st launch_hosts_start(struct launch_hosts *hosts, const struct launch_setup *setup, struct err *e);

#endif
