/* The one address decision: which interfaces of each pair of hosts carry the job, and what MPI, UCX and NCCL are told so that none of them guesses.
 *
 * decide (the launcher, from what hosts told and probes found) → environment and address for each host's ranks, print for --dry-run → release. Pure: the same input in any order gives
 * the same decision, and both ends of a pair see the same one.
 * The best way is RDMA where it works at both ends, then a wire, wireless, what is virtual; then what shares a subnet; then the highest rate; then IPv4, IPv6, link-local. Functions of one
 * adapter that serve the same cage (twins) become rails. Hosts that have RDMA devices but no RDMA between them get an error that says why, never TCP in silence. */
#ifndef LAUNCHER_DECIDE_H
#define LAUNCHER_DECIDE_H

#include <stdio.h>

#include "launcher/probe.h"

enum launch_transport { LAUNCH_ANY_TRANSPORT, LAUNCH_RDMA, LAUNCH_TCP, LAUNCH_SAME_MACHINE };

struct launch_wishes {
    enum launch_transport transport; /* LAUNCH_ANY_TRANSPORT, LAUNCH_RDMA (or an error), LAUNCH_TCP (in spite of RDMA devices) */
    int port;                        /* that probes went to, for the rule in an error's sentence; 0: any */
    int n_ports;                     /* from there on, that packets between hosts need; 0: one */
    const char *interfaces;          /* "enp1s0f0np0,10.0.0.0/24": names, addresses, subnets; both ends must be among them; NULL: all */
};

struct launch_host {
    const char *name; /* as typed */
    const struct launch_interfaces *interfaces;
};

/* One way for bytes; [0] is the pair's first host. */
struct launch_rail {
    char interface[2][IF_NAMESIZE];
    int index[2];
    struct launch_address address[2]; /* with gid_index */
    char device[2][48];               /* "rocep1s0f0:1"; "" without RDMA */
    int mtu;                          /* bytes of an IP packet that gets through in one piece */
    double gbit;                      /* of the slower end; 0: unknown */
};

#define LAUNCH_MAX_WARNINGS 6
struct launch_pair {
    int host[2]; /* the lower one first */
    enum launch_transport transport;
    int n_rails;
    struct launch_rail rails[LAUNCH_MAX_RAILS]; /* best first */
    /* Rails whose addresses lie in one subnet leave by one interface whatever their source address: sockets must be bound to the interface (link-local ones are, by their scope). */
    bool must_bind;
    bool are_twins; /* rails that share one cable: gbit is what that carries */
    int mtu;       /* the smallest of the rails' */
    double gbit;   /* expected of all; 0: unknown */
    char reason[256];
    int n_warnings;
    char warnings[LAUNCH_MAX_WARNINGS][320];
};
struct launch_decision {
    int n_hosts, n_pairs;
    struct launch_pair *pairs; /* (0,1), (0,2), … (1,2), … */
};

/* facings: merged, of all pairs, in any order. ST_NOT_FOUND: two hosts do not face each other (tells what was tried); ST_UNSUPPORTED: RDMA devices but no RDMA (tells why);
 * ST_INVALID: wishes that nothing can fulfil. */
enum st launch_decide(const struct launch_host *hosts, int n_hosts, const struct launch_facings *facings, int n_facings, const struct launch_wishes *wishes,
                      struct launch_decision *out, struct err *e);
void launch_decision_release(struct launch_decision *d);
const struct launch_pair *launch_decision_pair(const struct launch_decision *d, int a, int b); /* NULL: the same host, or none such */

/* What the ranks of a host are started with. */
#define LAUNCH_MAX_VARIABLES 24
struct launch_environment {
    int n;
    struct launch_variable {
        const char *name; /* static */
        char value[256];
    } list[LAUNCH_MAX_VARIABLES];
};
void launch_decision_environment(const struct launch_decision *d, int host, struct launch_environment *out);
/* Our own numeric address there, for comm_setup.address: of the first rail, with its scope. */
const char *launch_decision_address(const struct launch_decision *d, int host, char text[LAUNCH_ADDRESS_TEXT]);
/* The rails of a pair as launch_probe_prove wants them at host, one of its two. */
int launch_pair_rails(const struct launch_pair *p, int host, struct launch_facing out[LAUNCH_MAX_RAILS]);
/* Leaves out rail i, with a warning that tells why; the last one stays. */
void launch_pair_drop_rail(struct launch_pair *p, int i, const char *why);
/* The whole of it, warnings and environment included. */
void launch_decision_print(const struct launch_decision *d, const struct launch_host *hosts, FILE *out);

#endif
