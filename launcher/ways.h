/* What an agent is told of the ways to the other hosts, once they are decided, and what it tells of them. Between the RT_FACINGS and RT_START of a job of several hosts:
 *
 *   RT_WAYS    launcher → agent: struct launch_ways. The agent opens its ends, at these addresses only, and tells
 *   RT_PORTS   agent → launcher: struct launch_port for each way, in their order; launcher → agent: what the others have told of their ends of these, so that it can connect
 *   RT_REACHED agent → launcher: u32 enum st, then the sentence: whether it reached those that it has to reach by TCP
 *
 * Both are the same build on machines of one byte order, so structs go as they lie in memory; the agent still checks numbers and ends of texts. */
#ifndef LAUNCHER_WAYS_H
#define LAUNCHER_WAYS_H

#include "launcher/probe.h"

/* To one other host, over the first rail. */
struct launch_way {
    uint32_t host, first_rank, n_ranks; /* the other one's */
    uint32_t index;                     /* of our interface; 0: unknown */
    uint32_t tcp;                       /* it is tried by TCP, the higher host connecting to the lower one: ranks will, or it is the control way */
    uint32_t control;                   /* the launcher is at one of its ends: the connection that was tried goes on as its conversation with the agent at the other */
    char name[64];                      /* as typed */
    char interface[IF_NAMESIZE], peer_interface[IF_NAMESIZE];
    struct launch_address own, address;
};

struct launch_ways {
    uint32_t host, first_rank, n_ranks; /* our own */
    uint32_t port;                      /* --port; 0: any */
    uint8_t key[LAUNCH_PROBE_KEY_BYTES]; /* the job's */
    char name[64];
    uint32_t n;
    struct launch_way list[LAUNCH_MAX_HOSTS - 1];
};

struct launch_port {
    uint32_t host; /* the other one of the way */
    uint32_t tcp;  /* the first that ranks will be reached at; 0: nobody has to */
    uint32_t beat; /* of packets of life, by UDP */
};

/* --port P: rank r listens at P + r, by TCP; what is sent by UDP, between agents, comes from and goes to P, beyond two hosts also P + 1 and so on (docs/hosts.md). */
static inline int launch_ways_rank_port(int port, int rank) { return port ? port + rank : 0; }

/* ST_INVALID: numbers that cannot be, texts without an end. */
enum st launch_ways_check(const void *payload, size_t bytes, struct launch_ways *out, struct err *e);

/* ---- the agent's ends: tried before ranks start ------------------------------------------------------------------------------------------------------- */

struct pollfd;
struct launch_tries;
#define LAUNCH_MAX_TRIES 128 /* sockets */

/* Listens where its ranks will, for those who will connect to them: ports [ways->n] tell it. ways is borrowed. */
enum st launch_tries_open(const struct launch_ways *ways, struct launch_port *ports, struct launch_tries **t, struct err *e);
/* ports: of the others, told by their agents. Begins to connect to those below us. */
enum st launch_tries_connect(struct launch_tries *t, const struct launch_port *ports, size_t n, struct err *e);
int launch_tries_poll(const struct launch_tries *t, struct pollfd *p); /* [LAUNCH_MAX_TRIES]; returns how many */
uint64_t launch_tries_wake_ns(const struct launch_tries *t);
/* ST_AGAIN; ST_OK: all that were to be reached are (goes on answering the others); else the sentence of the first that was not. */
enum st launch_tries_step(struct launch_tries *t, struct err *e);
/* The connection of a control way, as soon as it has been proven: the caller's. *host: the other end's number. −1: none (any more). */
int launch_tries_take(struct launch_tries *t, int *host);
void launch_tries_close(struct launch_tries *t);

#endif
