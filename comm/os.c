#include "comm/os.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "base/clock.h"

static int real_socket(const struct comm_os *os, int family) {
    (void)os;
    return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}
static int real_datagrams(const struct comm_os *os, int family) {
    (void)os;
    return socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}
static int real_bind(const struct comm_os *os, int fd, const struct sockaddr *at, socklen_t bytes) {
    (void)os;
    return bind(fd, at, bytes);
}
static int real_bind_device(const struct comm_os *os, int fd, const char *interface) {
    (void)os;
    return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, interface, (socklen_t)strlen(interface));
}
static void real_unpace(const struct comm_os *os, int fd) {
    (void)os;
    char name[32] = "";
    socklen_t bytes = sizeof name - 1;
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes) != 0 || strncmp(name, "bbr", 3) != 0) return;
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) == 0) return; /* which not everybody may choose everywhere */
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}
static int real_listen(const struct comm_os *os, int fd) {
    (void)os;
    return listen(fd, SOMAXCONN);
}
static int real_getsockname(const struct comm_os *os, int fd, struct sockaddr *at, socklen_t *bytes) {
    (void)os;
    return getsockname(fd, at, bytes);
}
static int real_accept(const struct comm_os *os, int fd, struct sockaddr *from, socklen_t *bytes) {
    (void)os;
    return accept4(fd, from, bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
}
static int real_connect(const struct comm_os *os, int fd, const struct sockaddr *to, socklen_t bytes) {
    (void)os;
    return connect(fd, to, bytes);
}
static int real_setsockopt(const struct comm_os *os, int fd, int level, int name, int value) {
    (void)os;
    return setsockopt(fd, level, name, &value, sizeof value);
}
static int real_getsockopt(const struct comm_os *os, int fd, int level, int name, void *value, socklen_t *bytes) {
    (void)os;
    return getsockopt(fd, level, name, value, bytes);
}
static ssize_t real_send(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    (void)os;
    return send(fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
}
static ssize_t real_recv(const struct comm_os *os, int fd, void *data, size_t bytes) {
    (void)os;
    return recv(fd, data, bytes, MSG_DONTWAIT);
}
static int real_n_unsent(const struct comm_os *os, int fd) {
    (void)os;
    int n = 0;
    return ioctl(fd, SIOCOUTQNSD, &n) == 0 ? n : -1;
}
static int real_close(const struct comm_os *os, int fd) {
    (void)os;
    return close(fd);
}
static int real_poll(const struct comm_os *os, struct pollfd *fds, size_t n, uint64_t timeout_ns) {
    (void)os;
    const struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / BASE_NS_PER_S), .tv_nsec = (long)(timeout_ns % BASE_NS_PER_S)};
    return ppoll(fds, (nfds_t)n, &timeout, NULL);
}
static void real_yield(const struct comm_os *os) {
    (void)os;
    sched_yield();
}
static void *real_map(const struct comm_os *os, size_t bytes) {
    (void)os;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}
static void real_unmap(const struct comm_os *os, void *memory, size_t bytes) {
    (void)os;
    munmap(memory, bytes);
}

const struct comm_os *comm_os_real(void) {
    static const struct comm_os os = {
        .socket = real_socket,
        .datagrams = real_datagrams,
        .bind = real_bind,
        .bind_device = real_bind_device,
        .unpace = real_unpace,
        .listen = real_listen,
        .getsockname = real_getsockname,
        .accept = real_accept,
        .connect = real_connect,
        .setsockopt = real_setsockopt,
        .getsockopt = real_getsockopt,
        .send = real_send,
        .recv = real_recv,
        .n_unsent = real_n_unsent,
        .close = real_close,
        .poll = real_poll,
        .yield = real_yield,
        .map = real_map,
        .unmap = real_unmap,
    };
    return &os;
}
