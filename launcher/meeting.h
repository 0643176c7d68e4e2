/* How hosts find the ways between them before ranks start: the agent's part, between RT_HOST and RT_START.
 *
 * The agent tells its interfaces; the launcher gives every host a number and all of them a key (RT_PROBE); the agents open sockets and tell them (RT_ENDPOINTS); the launcher passes
 * interfaces and sockets of each host on to all others (RT_PEER); the agents exchange packets (probe.h) and tell what got through (RT_FACINGS). From then on they only answer, until
 * the launcher has decided. Where it wants to use several rails, each agent proves its ends (RT_RAILS); then they open their ends of the ways and try them (ways.h). */
#ifndef LAUNCHER_MEETING_H
#define LAUNCHER_MEETING_H

#include "launcher/outbox.h"
#include "launcher/pulse.h"
#include "launcher/ways.h"

/* Wire: RT_PROBE. */
struct launch_probe_order {
    uint32_t host, port; /* its number; 0: any port */
    uint8_t key[LAUNCH_PROBE_KEY_BYTES];
};
/* Wire: RT_RAILS: struct launch_facing of each rail; back: struct launch_proof of each. */
/* Wire: RT_PEER: this, then JSON of its interfaces, then JSON of its endpoints. RT_FACINGS: u32 host, then JSON. */
struct launch_peer_head {
    uint32_t host, interfaces_bytes;
};

struct launch_meeting;

/* Tells the interfaces. */
enum st launch_meeting_open(struct launch_outbox *out, struct launch_meeting **m, struct err *e);
void launch_meeting_close(struct launch_meeting *m);
/* A frame of the launcher's; others than RT_PROBE, RT_PEER, RT_RAILS, RT_WAYS and RT_PORTS are passed over. */
enum st launch_meeting_frame(struct launch_meeting *m, enum rt_frame_kind kind, const void *payload, size_t bytes, struct launch_outbox *out, struct err *e);
/* The packets between hosts, which go on from RT_PORTS. Borrowed, and then the caller's to stop. NULL: there is no other host, or it was taken. */
struct launch_pulse *launch_meeting_pulse(const struct launch_meeting *m);
struct launch_pulse *launch_meeting_take_pulse(struct launch_meeting *m);
/* Of RT_WAYS, borrowed; NULL: there were none. */
const struct launch_ways *launch_meeting_ways(const struct launch_meeting *m);
/* The connection of the control way (ways.h), once it is proven; the caller's. *host: the other end's number. −1: none (any more). */
int launch_meeting_take_control(struct launch_meeting *m, int *host);
/* Is one of the ways of RT_WAYS a control way? */
bool launch_meeting_has_control(const struct launch_meeting *m);
/* Waits for in_fd, or what the exchange needs, at most timeout_ms; then moves the exchange, and tells what is known. */
enum st launch_meeting_step(struct launch_meeting *m, int in_fd, int timeout_ms, struct launch_outbox *out, struct err *e);

#endif
