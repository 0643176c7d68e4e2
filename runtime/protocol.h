/* What front end and rank 0 say to each other over one stream socket, and what rank 0 passes on to the other ranks as events.
 *
 * Frames: {u32 bytes of the payload, u32 kind} little-endian, then the payload. Payloads are the structs below as they lie in memory on a little-endian machine (both ends run the
 * same build). Everything received is bounds-checked; a frame over RT_FRAME_MAX is ST_INVALID. */
#ifndef RUNTIME_PROTOCOL_H
#define RUNTIME_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/status.h"
#include "comm/os.h"

enum rt_frame_kind {
    /* front end → rank 0 (and, as events, rank 0 → all) */
    RT_REQUEST = 1, /* struct rt_request; its ids follow in RT_IDS frames */
    RT_IDS,         /* struct rt_ids_head, then int32 ids[] */
    RT_CANCEL,      /* struct rt_cancel */
    RT_STOP,        /* finish: leave when idle */

    /* rank 0 → front end */
    RT_READY = 16, /* struct rt_ready */
    RT_TOKEN,      /* struct rt_token */
    RT_LOGITS,     /* struct rt_logits_head, then float[vocabulary] */
    RT_SCORE,      /* struct rt_score */
    RT_DONE,       /* struct rt_done */
    RT_FAILED,     /* text: the job cannot go on */
    RT_LEDGER,     /* one rank's ledger (struct rt_ledger_head, see runtime/ledger.h); after RT_STOP, where the ranks keep one; rank by rank */
    RT_EXPERTS,    /* struct rt_experts_head, then uint64_t counts[n_layers][n_experts]; after RT_STOP, where it was asked for */
    RT_EXCHANGES = 24, /* text: JSON of runtime/exchanges.h, instead of everything else */

    /* agent ↔ launcher */
    RT_BEAT = 32, /* twice a second: the sender lives */
    RT_PAUSE,     /* launcher → agent: its user stops it (Ctrl-Z); silence is no death until RT_RESUME */
    RT_RESUME,
    RT_STORY,     /* agent → launcher: u32 worth, then text: why its ranks cannot go on. Of several hosts' stories the one that is worth most is the cause */
    /* with agents of several hosts, who get everything by frames */
    RT_HOST,     /* agent → launcher, first: JSON of its host (launcher/host.h) */
    RT_INTERFACES, RT_PROBE, RT_ENDPOINTS, RT_PEER, RT_FACINGS, /* how hosts find the ways between them (launcher/meeting.h) */
    RT_RAILS,                      /* whether what leaves by one of several stays on it */
    RT_WAYS, RT_PORTS, RT_REACHED, /* and then open and try them (launcher/ways.h) */
    RT_MODEL,    /* launcher → agent: a path with a NUL behind it; back: u32 enum st, then the model's digest or a sentence (launcher/same_model.h) */
    RT_SEATS,    /* launcher → agent, and back: who would sit where (launcher/seating.h) */
    RT_START,    /* launcher → agent: arguments of `tandem agent`, each with a NUL behind it */
    RT_PMI,      /* both ways: u32 rank, then bytes of that rank's PMI-1 connection; none: its end */
    RT_FRONT,    /* both ways: bytes of the front end's connection to rank 0; none: its end */
    RT_LOST,     /* agent → launcher: u32 host, then text: it is silent on the way that was decided */
    RT_NOTE,     /* agent → launcher: text, for the user: all goes on */
    RT_LEFT,     /* agent → launcher, last: its ranks have left in peace */
    RT_HOLD      /* launcher → agent: u32: 1: no more of RT_FRONT for now, the front end is slow to take it; 0: again */
};

#define RT_FRAME_MAX (64u << 20)
#define RT_IDS_PER_FRAME 8192 /* so that an event fits COMM_EVENT_MAX_BYTES */
#define RT_MAX_ENDS 16

enum rt_request_flags {
    RT_WANT_LOGITS = 1, /* every row, prompt and generated */
    RT_WANT_SCORES = 2, /* −log p of prompt[i + 1] after prompt[i], i ≥ score_from */
    RT_FEED_LAST = 4    /* the last generated token is fed too (for its logits) */
};

/* How often each expert of each layer was chosen. */
struct rt_experts_head {
    uint32_t n_layers, n_experts;
};

struct rt_request {
    uint32_t request; /* the front end's number */
    uint32_t n_prompt, max_new, flags, score_from, n_ends;
    float temperature;
    uint32_t unused;
    uint64_t seed;
    int32_t ends[RT_MAX_ENDS]; /* generation stops after one of these; none: never */
};
struct rt_ids_head {
    uint32_t request, n;
};
#define RT_CANCEL_ALL UINT32_MAX
struct rt_cancel {
    uint32_t request; /* or RT_CANCEL_ALL */
};
struct rt_ready {
    uint64_t load_ns;
    uint64_t weight_bytes; /* of rank 0 */
};
struct rt_token {
    uint32_t request;
    int32_t id;
};
struct rt_logits_head {
    uint32_t request, row;
};
struct rt_score {
    uint32_t request, row;
    double nll;
};
enum rt_reason { RT_ENDED, RT_LENGTH, RT_CONTEXT, RT_CANCELLED, RT_REFUSED };
struct rt_done {
    uint32_t request, reason, n_prompt, n_new;
    uint64_t prefill_ns; /* from the start of its first step to its first sampled token (or the end of its prompt) */
    uint64_t decode_ns;  /* from there to its last */
};

/* Blocking, whole, no SIGPIPE. ST_PEER_LOST when the other end is gone. */
enum st rt_frame_send(int fd, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e);
/* The payload in pieces. */
enum st rt_frame_sendv(int fd, enum rt_frame_kind kind, const struct iovec *pieces, int n_pieces, struct err *e);

/* A payload that is a number and then a text (RT_STORY, RT_LOST, RT_REACHED), which is cut where it does not fit. False: it is too short for that. */
bool rt_frame_told(const void *payload, size_t bytes, uint32_t *number, char *text, size_t text_bytes);

/* A growing receive buffer: one per socket. */
struct rt_inbox {
    const struct comm_os *os; /* who is asked instead of this machine, in a simulated world: then nothing waits here; else NULL */
    int fd;
    unsigned char *data;
    size_t used, capacity, consumed;
};
void rt_inbox_init(struct rt_inbox *in, int fd);
void rt_inbox_release(struct rt_inbox *in);
/* Takes in what has arrived, without waiting and without looking at it. ST_AGAIN: nothing. ST_PEER_LOST at the end of the stream. Ends the last payload's borrowing. */
enum st rt_inbox_fill(struct rt_inbox *in, struct err *e);
/* The next frame; payload is borrowed until the next call. timeout_ms −1: waits; 0: looks. ST_AGAIN: none yet, or a signal came.
 * ST_PEER_LOST at the end of the stream. */
enum st rt_inbox_next(struct rt_inbox *in, int timeout_ms, enum rt_frame_kind *kind, const void **payload, size_t *bytes, struct err *e);

#endif
