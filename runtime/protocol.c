/* Frames over a stream socket. */
#include "runtime/protocol.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

struct frame_head {
    uint32_t bytes, kind;
};

static enum st send_all(int fd, struct iovec *v, int n, struct err *e)
{
    while (n > 0) {
        const struct msghdr m = {.msg_iov = v, .msg_iovlen = (size_t)n};
        const ssize_t sent = sendmsg(fd, &m, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN) {
                struct pollfd p = {.fd = fd, .events = POLLOUT};
                poll(&p, 1, 1000);
                continue;
            }
            return err_set(e, ST_PEER_LOST, "cannot send to the other end: %s", strerror(errno));
        }
        size_t left = (size_t)sent;
        while (n > 0 && left >= v->iov_len) {
            left -= v->iov_len;
            v++;
            n--;
        }
        if (n > 0) {
            v->iov_base = (char *)v->iov_base + left;
            v->iov_len -= left;
        }
    }
    return ST_OK;
}

enum st rt_frame_sendv(int fd, enum rt_frame_kind kind, const struct iovec *pieces, int n_pieces, struct err *e)
{
    struct iovec v[66];
    BASE_ASSERT(n_pieces <= 65);
    size_t bytes = 0;
    for (int i = 0; i < n_pieces; i++) {
        v[i + 1] = pieces[i];
        bytes += pieces[i].iov_len;
    }
    BASE_ASSERT(bytes <= RT_FRAME_MAX);
    struct frame_head head = {(uint32_t)bytes, kind};
    v[0] = (struct iovec){&head, sizeof head};
    return send_all(fd, v, n_pieces + 1, e);
}

enum st rt_frame_send(int fd, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e)
{
    const struct iovec v = {(void *)(uintptr_t)payload, bytes};
    return rt_frame_sendv(fd, kind, &v, 1, e);
}

bool rt_frame_told(const void *payload, size_t bytes, uint32_t *number, char *text, size_t text_bytes)
{
    if (bytes < sizeof *number)
        return false;
    memcpy(number, payload, sizeof *number);
    const size_t n = bytes - sizeof *number < text_bytes - 1 ? bytes - sizeof *number : text_bytes - 1;
    memcpy(text, (const char *)payload + sizeof *number, n);
    text[n] = 0;
    return true;
}

void rt_inbox_init(struct rt_inbox *in, int fd) { *in = (struct rt_inbox){.fd = fd}; }

void rt_inbox_release(struct rt_inbox *in)
{
    free(in->data);
    *in = (struct rt_inbox){.fd = -1};
}

/* A whole frame in the buffer? */
static enum st take(struct rt_inbox *in, enum rt_frame_kind *kind, const void **payload, size_t *bytes, struct err *e)
{
    struct frame_head head;
    if (in->used - in->consumed < sizeof head)
        return ST_AGAIN;
    memcpy(&head, in->data + in->consumed, sizeof head);
    if (head.bytes > RT_FRAME_MAX)
        return err_set(e, ST_INVALID, "a frame of %u bytes, over the limit of %u", head.bytes, RT_FRAME_MAX);
    if (in->used - in->consumed < sizeof head + head.bytes)
        return ST_AGAIN;
    *kind = (enum rt_frame_kind)head.kind;
    *payload = in->data + in->consumed + sizeof head;
    *bytes = head.bytes;
    in->consumed += sizeof head + head.bytes;
    return ST_OK;
}

static enum st make_room(struct rt_inbox *in, struct err *e)
{
    if (in->consumed) {
        memmove(in->data, in->data + in->consumed, in->used - in->consumed);
        in->used -= in->consumed;
        in->consumed = 0;
    }
    if (in->capacity - in->used >= 65536)
        return ST_OK;
    const size_t wanted = in->capacity ? in->capacity * 2 : 262144;
    unsigned char *data = realloc(in->data, wanted);
    if (!data)
        return err_set(e, ST_NO_MEMORY, "no memory for a frame of %zu bytes", wanted);
    in->data = data;
    in->capacity = wanted;
    return ST_OK;
}

enum st rt_inbox_fill(struct rt_inbox *in, struct err *e)
{
    const enum st st = make_room(in, e);
    if (st)
        return st;
    ssize_t got = in->os ? in->os->recv(in->os, in->fd, in->data + in->used, in->capacity - in->used) : recv(in->fd, in->data + in->used, in->capacity - in->used, MSG_DONTWAIT);
    if (got < 0 && errno == ENOTSOCK) { /* a pipe, as ssh may give: does not wait where something is there */
        struct pollfd p = {.fd = in->fd, .events = POLLIN};
        if (poll(&p, 1, 0) <= 0)
            return ST_AGAIN;
        got = read(in->fd, in->data + in->used, in->capacity - in->used);
    }
    if (got == 0)
        return err_set(e, ST_PEER_LOST, "the other end closed the connection");
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? ST_AGAIN : err_set(e, ST_PEER_LOST, "cannot receive: %s", strerror(errno));
    in->used += (size_t)got;
    return ST_OK;
}

enum st rt_inbox_next(struct rt_inbox *in, int timeout_ms, enum rt_frame_kind *kind, const void **payload, size_t *bytes, struct err *e)
{
    const uint64_t start = timeout_ms > 0 ? base_now_ns(base_clock_real()) : 0;
    for (int left_ms = timeout_ms;;) {
        enum st st = take(in, kind, payload, bytes, e);
        if (st != ST_AGAIN)
            return st;
        struct pollfd p = {.fd = in->fd, .events = POLLIN};
        BASE_ASSERT(!in->os || timeout_ms == 0);
        const int ready = in->os ? in->os->poll(in->os, &p, 1, 0) : poll(&p, 1, left_ms);
        if (ready == 0 || (ready < 0 && errno == EINTR))
            return ST_AGAIN;
        st = rt_inbox_fill(in, e);
        if (st && (st != ST_AGAIN || timeout_ms == 0))
            return st;
        if (timeout_ms > 0) { /* a part of a frame does not start the wait anew */
            const uint64_t waited_ms = (base_now_ns(base_clock_real()) - start) / BASE_NS_PER_MS;
            left_ms = waited_ms < (uint64_t)timeout_ms ? timeout_ms - (int)waited_ms : 0;
        }
    }
}
