/* Which interfaces of two hosts face each other, found by an exchange of UDP packets: never by name.
 *
 * On each host: open (a socket per address, bound to it and to its interface) → endpoints told to the launcher, which tells them to the others → peer for each other host → step until
 * ST_OK → facings told to the launcher, which merges both sides' (probe_merge) and decides (decide.h) → prove, where the decision has several rails → close. From open to close a probe
 * answers its peers as well, so it is stepped until the launcher has heard everybody.
 * The caller owns the loop: it waits for launch_probe_fd to be readable or for wake_ns, then steps; nothing blocks. One thread, in the network namespace that it was opened in.
 * Packets prove by a keyed digest that they belong to this job; others are ignored, and an answer is never longer than what asked for it. */
#ifndef LAUNCHER_PROBE_H
#define LAUNCHER_PROBE_H

#include "base/clock.h"
#include "launcher/interfaces.h"

#define LAUNCH_PROBE_KEY_BYTES 32
#define LAUNCH_MAX_HOSTS 16
#define LAUNCH_MAX_ENDPOINTS 128
#define LAUNCH_MAX_FACINGS 1024 /* tried with one peer */
#define LAUNCH_MAX_RAILS 8

/* A socket of one host. */
struct launch_endpoint {
    char interface[IF_NAMESIZE];
    struct launch_address address;
    int port;
};
struct launch_endpoints {
    int n;
    struct launch_endpoint list[LAUNCH_MAX_ENDPOINTS];
};

/* Two addresses between which packets were tried. */
struct launch_facing {
    int host[2]; /* who asked, who answered; merged: the lower one first */
    char interface[2][IF_NAMESIZE];
    struct launch_address address[2];
    bool works;      /* there and back; merged: seen by both */
    int mtu;         /* bytes of the largest IP packet that went there and back in one piece; 0: none of those tried */
    uint64_t rtt_ns; /* the shortest */
};
struct launch_facings {
    int n;
    struct launch_facing *list;
};
void launch_facings_release(struct launch_facings *f);

/* ---- packets: pure -------------------------------------------------------------------------------------------------------------------------------------------- */

#define LAUNCH_PACKET_BYTES 80
enum launch_packet_kind { LAUNCH_PACKET_CALL = 1, LAUNCH_PACKET_ANSWER, LAUNCH_PACKET_BURST, LAUNCH_PACKET_TCP_CALL, LAUNCH_PACKET_TCP_ANSWER, LAUNCH_PACKET_TCP_PROOF };
/* magic 8 · kind 1 · from host 1 · to host 1 · zero 1 · from endpoint 2 · to endpoint 2 · nonce 8 · bytes 4 · challenge 8 · zero 12 · keyed BLAKE2b 32 of what is before; then zeroes up to
 * bytes, which is the length of the payload. Little-endian. */
struct launch_packet {
    enum launch_packet_kind kind;
    int from_host, to_host, from_endpoint, to_endpoint;
    uint64_t nonce, challenge;
    uint32_t bytes;
};
void launch_packet_put(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const struct launch_packet *p, uint8_t out[LAUNCH_PACKET_BYTES]);
/* False: not of this job, cut, or malformed. */
bool launch_packet_get(const uint8_t key[LAUNCH_PROBE_KEY_BYTES], const uint8_t *data, size_t bytes, struct launch_packet *p);

/* Whether a pair of addresses is worth a packet: of one family and scope, not the same one, a loopback only on one machine, what is virtual or has no subnet in common only where it
 * could still be a way. Lower is better; −1: no. */
int launch_pair_worth(const struct launch_interface *a, const struct launch_address *aa, const struct launch_interface *b, const struct launch_address *ba, bool same_machine);

/* ---- the engine ----------------------------------------------------------------------------------------------------------------------------------------------- */

struct launch_probe_options {
    int host;                           /* our number, below LAUNCH_MAX_HOSTS */
    uint8_t key[LAUNCH_PROBE_KEY_BYTES];
    int port;                           /* of all sockets; 0: any */
    const struct base_clock *clock;     /* NULL: the real one */
    uint64_t patience_ns;               /* for a peer that does not answer; 0: 2 s. Where it has answered, other pairs get a third of it */
};
struct launch_probe;

/* Addresses that cannot be bound are left out; ST_IO where none can. own is copied. */
enum st launch_probe_open(const struct launch_interfaces *own, const struct launch_probe_options *options, struct launch_probe **p, struct err *e);
void launch_probe_close(struct launch_probe *p);
void launch_probe_endpoints(const struct launch_probe *p, struct launch_endpoints *out);
/* Begins to try every pair of addresses that is worth it. ST_INVALID: told twice, or no such host. */
enum st launch_probe_peer(struct launch_probe *p, int host, const struct launch_interfaces *interfaces, const struct launch_endpoints *endpoints, struct err *e);
int launch_probe_fd(const struct launch_probe *p);
uint64_t launch_probe_wake_ns(const struct launch_probe *p); /* BASE_NO_DEADLINE: nothing of our own is left to do */
/* ST_AGAIN: not yet. ST_OK: all that was asked for is known; goes on answering. */
enum st launch_probe_step(struct launch_probe *p, struct err *e);
/* What was tried with host; caller releases. */
enum st launch_probe_facings(const struct launch_probe *p, int host, struct launch_facings *out, struct err *e);

/* Rails: that what is sent between these addresses leaves by its own interface and by no other rail's, told by the interfaces' byte counters. host[0] of each is ours. Then step until
 * ST_OK; some tenths of a second a rail, and thrice as long for one that is not proved. Others' traffic is no harm unless it is as fast. */
struct launch_proof {
    uint64_t sent_bytes, own_bytes, other_bytes; /* sent; counted by its interface; the most that another rail's counted meanwhile */
    bool is_proved;
};
enum st launch_probe_prove(struct launch_probe *p, const struct launch_facing *rails, int n, struct err *e);
int launch_probe_proofs(const struct launch_probe *p, struct launch_proof out[LAUNCH_MAX_RAILS]);

/* ---- what the launcher does with it ------------------------------------------------------------------------------------------------------------------------------ */

/* Both sides' view of one pair of hosts as one, ordered by addresses; caller releases. */
enum st launch_probe_merge(const struct launch_facings *a, const struct launch_facings *b, struct launch_facings *out, struct err *e);

/* Texts for the wire; caller frees; NULL: no memory. Reading is strict: foreign input. */
char *launch_endpoints_to_json(const struct launch_endpoints *in);
enum st launch_endpoints_from_json(const char *where, const char *text, size_t bytes, struct launch_endpoints *out, struct err *e);
char *launch_facings_to_json(const struct launch_facings *in);
enum st launch_facings_from_json(const char *where, const char *text, size_t bytes, struct launch_facings *out, struct err *e);

#endif
