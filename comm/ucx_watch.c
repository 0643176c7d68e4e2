#include "comm/ucx_watch.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define LOOK_EVERY_NS (250 * BASE_NS_PER_MS)
#define SILENT_NS (1700 * BASE_NS_PER_MS) /* after the first repetition, which is 200 ms old when it is seen; so a silent host is known within 3 s */

/* Where a TCP connection leads; false: it is none, or nowhere. */
static bool leads_to(int fd, char address[64]) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } peer;
    int protocol = 0;
    socklen_t n = sizeof protocol;
    if (getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &n) != 0 || protocol != IPPROTO_TCP) return false;
    n = sizeof peer;
    if (getpeername(fd, &peer.any, &n) != 0) return false;
    if (peer.any.sa_family == AF_INET) return inet_ntop(AF_INET, &peer.v4.sin_addr, address, 64) != NULL;
    return peer.any.sa_family == AF_INET6 && inet_ntop(AF_INET6, &peer.v6.sin6_addr, address, 64) != NULL;
}

static int next_descriptor(DIR *dir) {
    for (const struct dirent *d; (d = readdir(dir));) {
        char *end;
        long fd = strtol(d->d_name, &end, 10);
        if (end != d->d_name && !*end && fd >= 0 && fd < COMM_UCX_MAX_DESCRIPTORS && fd != dirfd(dir)) return (int)fd;
    }
    return -1;
}

void comm_ucx_watch_begin(struct ucx_watch *w) {
    memset(w, 0, sizeof *w);
    DIR *dir = opendir("/proc/self/fd");
    if (!dir) return;
    for (int fd; (fd = next_descriptor(dir)) >= 0;) w->known[fd / 64] |= 1ull << fd % 64;
    closedir(dir);
}

/* As inet_ntop writes it, without a zone. */
static void plain(const char *address, char text[64]) {
    unsigned char bytes[sizeof(struct in6_addr)];
    strncpy(text, address, 63);
    text[63] = 0;
    text[strcspn(text, "%")] = 0;
    if (inet_pton(AF_INET6, text, bytes) == 1) inet_ntop(AF_INET6, bytes, text, 64);
}

void comm_ucx_watch_find(struct ucx_watch *w, const char (*addresses)[64], int n_addresses) {
    DIR *dir = opendir("/proc/self/fd");
    if (!dir) return;
    for (int fd; w->n_sockets < COMM_UCX_MAX_WATCHED && (fd = next_descriptor(dir)) >= 0;) {
        struct ucx_watched *socket = &w->sockets[w->n_sockets];
        char text[64];
        if (w->known[fd / 64] >> fd % 64 & 1 || !leads_to(fd, socket->address)) continue;
        for (int i = 0; i < n_addresses; i++) {
            plain(addresses[i], text);
            if (strcmp(text, socket->address) != 0) continue;
            socket->fd = fd;
            socket->stuck_since_ns = 0;
            memcpy(socket->address, addresses[i], sizeof socket->address); /* in the caller's words */
            w->n_sockets++;
            break;
        }
    }
    closedir(dir);
}

const char *comm_ucx_watch_silent(struct ucx_watch *w, uint64_t now_ns) {
    if (!w->n_sockets || now_ns - w->looked_ns < LOOK_EVERY_NS) return NULL;
    w->looked_ns = now_ns;
    for (int i = 0; i < w->n_sockets; i++) {
        struct ucx_watched *socket = &w->sockets[i];
        char now[64], then[64];
        struct tcp_info info = {0};
        socklen_t n = sizeof info;
        plain(socket->address, then);
        /* UCX may have closed it, and the number may be another's by now. */
        if (!leads_to(socket->fd, now) || strcmp(now, then) != 0 || getsockopt(socket->fd, IPPROTO_TCP, TCP_INFO, &info, &n) != 0) continue;
        if (!info.tcpi_retransmits)
            socket->stuck_since_ns = 0;
        else if (!socket->stuck_since_ns)
            socket->stuck_since_ns = now_ns;
        else if (now_ns - socket->stuck_since_ns >= SILENT_NS)
            return socket->address;
    }
    return NULL;
}
