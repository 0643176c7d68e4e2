#include "comm/os.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
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
static void real_choose_window(const struct comm_os *os, int fd) {
    (void)os;
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
static ssize_t real_send_two(const struct comm_os *os, int fd, const void *first, size_t first_bytes, const void *second, size_t second_bytes) {
    (void)os;
    struct iovec parts[] = {{(void *)(uintptr_t)first, first_bytes}, {(void *)(uintptr_t)second, second_bytes}};
    return sendmsg(fd, &(struct msghdr){.msg_iov = parts, .msg_iovlen = 2}, MSG_DONTWAIT | MSG_NOSIGNAL);
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

/* Less is copied as fast as its pages are looked up; more does not stay in the sender's cache until it is read, and a copy would. */
#define LEAST_PAGES_BYTES (8u << 10)
#define MOST_PAGES_BYTES (96u << 10)

/* A splice into a connection that has ended raises SIGPIPE, and no flag prevents it. */
static bool is_sigpipe_ignored(void) {
    struct sigaction now;
    return sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}
/* Through a pipe, that is, by reference; what the socket does not take leaves the pipe again. */
static ssize_t real_send_pages(const struct comm_os *os, int fd, const struct comm_pages *pages, size_t offset, size_t bytes) {
    (void)os;
    struct iovec part = {pages->memory + offset, bytes};
    const ssize_t n_in = vmsplice(pages->pipe[1], &part, 1, SPLICE_F_NONBLOCK);
    if (n_in <= 0) return n_in;
    const ssize_t n = splice(pages->pipe[0], NULL, fd, NULL, (size_t)n_in, SPLICE_F_NONBLOCK);
    const int why = errno;
    char waste[4096];
    for (ssize_t left = n_in - (n > 0 ? n : 0); left > 0;) {
        const ssize_t gone = read(pages->pipe[0], waste, left < (ssize_t)sizeof waste ? (size_t)left : sizeof waste);
        if (gone <= 0) break;
        left -= gone;
    }
    errno = why;
    return n;
}

/* Not everywhere: sandboxes may forbid it. */
static bool pages_work(const struct comm_os *os, const struct comm_pages *pages) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) return false;
    char got[64] = "";
    const bool work = real_send_pages(os, ends[0], pages, 0, sizeof got) == (ssize_t)sizeof got && recv(ends[1], got, sizeof got, 0) == (ssize_t)sizeof got;
    close(ends[0]);
    close(ends[1]);
    return work;
}
static enum st real_map_pages(const struct comm_os *os, size_t bytes, struct comm_pages *pages) {
    struct comm_pages made = {.bytes = bytes, .least = LEAST_PAGES_BYTES, .most = MOST_PAGES_BYTES};
    if (!is_sigpipe_ignored()) return ST_UNSUPPORTED;
    if (pipe2(made.pipe, O_CLOEXEC | O_NONBLOCK) != 0) return ST_IO;
    (void)fcntl(made.pipe[1], F_SETPIPE_SZ, 2 * MOST_PAGES_BYTES); /* else it holds less at once */
    made.memory = real_map(os, bytes);
    const bool work = made.memory && pages_work(os, &made);
    if (work) {
        *pages = made;
        return ST_OK;
    }
    if (made.memory) real_unmap(os, made.memory, bytes);
    close(made.pipe[0]);
    close(made.pipe[1]);
    return made.memory ? ST_UNSUPPORTED : ST_NO_MEMORY;
}
static void real_unmap_pages(const struct comm_os *os, struct comm_pages *pages) {
    real_unmap(os, pages->memory, pages->bytes);
    close(pages->pipe[0]);
    close(pages->pipe[1]);
}
const struct comm_os *comm_os_real(void) {
    static const struct comm_os os = {
        .socket = real_socket,
        .datagrams = real_datagrams,
        .bind = real_bind,
        .bind_device = real_bind_device,
        .choose_window = real_choose_window,
        .listen = real_listen,
        .getsockname = real_getsockname,
        .accept = real_accept,
        .connect = real_connect,
        .setsockopt = real_setsockopt,
        .getsockopt = real_getsockopt,
        .send = real_send,
        .send_two = real_send_two,
        .recv = real_recv,
        .n_unsent = real_n_unsent,
        .close = real_close,
        .poll = real_poll,
        .yield = real_yield,
        .map = real_map,
        .unmap = real_unmap,
        .map_pages = real_map_pages,
        .unmap_pages = real_unmap_pages,
        .send_pages = real_send_pages,
    };
    return &os;
}
