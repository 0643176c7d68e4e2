/* Whether a port of one host can be reached from another by TCP, before ranks try: a firewall lets UDP answers through that it would not let TCP in.
 *
 * listen (on the lower host of a pair, on its first rail's address) → port told to the other → connect there → step both until the connector has ST_OK, or an error whose sentence says
 * from where to where, which port, and the rule to add → close. Nothing blocks: the caller polls fd for events, until wake_ns, then steps. One thread, in the
 * network namespace that it was opened in. Both sides prove that they know the job's key, by what the other one has just drawn: what else listens at that port does not count, nor does
 * what was said on another connection. Such a connection may go on for something else: take. */
#ifndef LAUNCHER_REACH_H
#define LAUNCHER_REACH_H

#include "launcher/probe.h"

struct launch_reach;

struct launch_reach_options {
    uint8_t key[LAUNCH_PROBE_KEY_BYTES];
    int host, to_host;              /* our number; a connector's: the other one's */
    const struct base_clock *clock; /* NULL: the real one */
    uint64_t patience_ns;           /* of a connector; 0: 5 s */
    bool is_port_fixed;             /* by --port: then the sentence does not advise it */
    int first_port, last_port;      /* that the rule of the sentence shall admit; 0: the one that was tried */
    const char *from_name, *to_name; /* hosts as typed; copied */
};

/* port 0: any. index: of the interface, on this host. */
enum st launch_reach_listen(const struct launch_reach_options *o, const char *interface, int index, const struct launch_address *at, int port, struct launch_reach **r, struct err *e);
int launch_reach_port(const struct launch_reach *r);
/* From our end, which it is bound to, to the other's. */
enum st launch_reach_connect(const struct launch_reach_options *o, const char *interface, int index, const struct launch_address *from, const char *to_interface,
                             const struct launch_address *to, int port, struct launch_reach **r, struct err *e);
int launch_reach_fd(const struct launch_reach *r);
short launch_reach_events(const struct launch_reach *r); /* POLLIN or POLLOUT */
uint64_t launch_reach_wake_ns(const struct launch_reach *r);
/* Connector: ST_AGAIN, ST_OK once, then always; ST_TIMEOUT, ST_PEER_LOST, ST_MISMATCH with the sentence. Listener: ST_AGAIN until somebody of the job came, then ST_OK; goes on serving. */
enum st launch_reach_step(struct launch_reach *r, struct err *e);
/* A proven connection, which is the caller's from then on, never blocks and sends small pieces at once; *host: the other end's number, as it says. −1: there is none (any more). */
int launch_reach_take(struct launch_reach *r, int *host);
void launch_reach_close(struct launch_reach *r);

/* The sentence alone. error: an errno; ETIMEDOUT where time ran out. */
struct launch_reach_ends {
    const char *from_name, *from_interface, *to_name, *to_interface;
    const struct launch_address *from, *to;
    int port;
    bool is_port_fixed;
    int first_port, last_port;
};
enum st launch_reach_explain(const struct launch_reach_ends *ends, int error, struct err *e);

#endif
