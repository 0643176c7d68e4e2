#include "launcher/handed.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

/* Room for one descriptor, aligned as the kernel wants it. */
union control {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(sizeof(int))];
};

enum st launch_handed_send(int socket_fd, uint32_t host, int fd, struct err *e)
{
    union control control = {.bytes = {0}};
    struct iovec piece = {&host, sizeof host};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return sendmsg(socket_fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof host ? ST_OK : err_set(e, ST_IO, "cannot hand over a connection: %s", strerror(errno));
}

enum st launch_handed_receive(int socket_fd, int timeout_ms, uint32_t *host, int *fd, struct err *e)
{
    union control control = {.bytes = {0}};
    struct iovec piece = {host, sizeof *host};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct pollfd p = {.fd = socket_fd, .events = POLLIN};
    if (poll(&p, 1, timeout_ms) <= 0)
        return ST_AGAIN;
    const ssize_t n = recvmsg(socket_fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return ST_AGAIN;
    if (n <= 0)
        return err_set(e, ST_PEER_LOST, "its agent is gone before it handed over its connections");
    const struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (!c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof *fd))
        return err_set(e, ST_INVALID, "its agent handed over nothing");
    memcpy(fd, CMSG_DATA(c), sizeof *fd);
    if (n != (ssize_t)sizeof *host)
        *host = UINT32_MAX; /* which no host has */
    return ST_OK;
}
