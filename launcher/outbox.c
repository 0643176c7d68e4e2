#include "launcher/outbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static enum st reserve(struct launch_outbox *o, size_t bytes, struct err *e)
{
    if (o->begin) {
        memmove(o->data, o->data + o->begin, o->end - o->begin);
        o->end -= o->begin;
        o->begin = 0;
    }
    if (o->capacity - o->end >= bytes)
        return ST_OK;
    const size_t wanted = o->end + bytes > 2 * o->capacity ? o->end + bytes : 2 * o->capacity;
    unsigned char *more = realloc(o->data, wanted);
    if (!more)
        return err_set(e, ST_NO_MEMORY, "no memory for %zu bytes that wait to be sent", wanted);
    o->data = more;
    o->capacity = wanted;
    return ST_OK;
}

static void put_in(struct launch_outbox *o, const void *data, size_t bytes)
{
    if (bytes)
        memcpy(o->data + o->end, data, bytes);
    o->end += bytes;
}

enum st launch_outbox_append(struct launch_outbox *o, const void *data, size_t bytes, struct err *e)
{
    const enum st st = reserve(o, bytes, e);
    if (!st)
        put_in(o, data, bytes);
    return st;
}

enum st launch_outbox_frame(struct launch_outbox *o, enum rt_frame_kind kind, const void *head, size_t head_bytes, const void *data, size_t data_bytes, struct err *e)
{
    const uint32_t frame[2] = {(uint32_t)(head_bytes + data_bytes), (uint32_t)kind};
    const enum st st = reserve(o, sizeof frame + head_bytes + data_bytes, e); /* all of it or nothing: what follows would be read as its rest */
    if (st)
        return st;
    put_in(o, frame, sizeof frame);
    put_in(o, head, head_bytes);
    put_in(o, data, data_bytes);
    return ST_OK;
}

static ssize_t put(const struct comm_os *os, int fd, const void *data, size_t bytes)
{
    if (os)
        return os->send(os, fd, data, bytes);
    const ssize_t n = send(fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0 || errno != ENOTSOCK)
        return n;
    const int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK))
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    return write(fd, data, bytes);
}

enum st launch_outbox_flush(struct launch_outbox *o, const struct comm_os *os, int fd)
{
    while (o->begin < o->end) {
        const ssize_t n = put(os, fd, o->data + o->begin, o->end - o->begin);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return ST_AGAIN;
        if (n < 0) {
            o->begin = o->end = 0;
            return ST_PEER_LOST;
        }
        o->begin += (size_t)n;
    }
    return ST_OK;
}

void launch_outbox_release(struct launch_outbox *o)
{
    free(o->data);
    *o = (struct launch_outbox){0};
}
