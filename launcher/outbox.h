/* Bytes that wait until a descriptor takes them: for loops that must never block. append … flush (when poll says so) … release. One thread. */
#ifndef LAUNCHER_OUTBOX_H
#define LAUNCHER_OUTBOX_H

#include "comm/os.h"
#include "runtime/protocol.h"

struct launch_outbox {
    unsigned char *data;
    size_t begin, end, capacity;
};

static inline size_t launch_outbox_waiting(const struct launch_outbox *o) { return o->end - o->begin; }
enum st launch_outbox_append(struct launch_outbox *o, const void *data, size_t bytes, struct err *e);
/* A frame of runtime/protocol.h: head and data, one behind the other. */
enum st launch_outbox_frame(struct launch_outbox *o, enum rt_frame_kind kind, const void *head, size_t head_bytes, const void *data, size_t data_bytes, struct err *e);
/* A socket, or a pipe (which it makes non-blocking); os: its system, NULL: this machine's. ST_OK: nothing waits any more. ST_AGAIN: some does. ST_PEER_LOST: the other end is gone; nothing waits any more. */
enum st launch_outbox_flush(struct launch_outbox *o, const struct comm_os *os, int fd);
void launch_outbox_release(struct launch_outbox *o);

#endif
