/* What the tcp backend, and the packets of life between hosts (launcher/pulse.h), ask of the operating system, as a table: sockets, waiting, memory. The simulator (sim.h) has one of its
 * own, so that the very same code meets short transfers, resets and silent hosts at will.
 *
 * Each function does what the call of its name does and returns what that returns, errno included; sockets are streams, unless they are for datagrams, never block and are closed by exec.
 * A table belongs to one rank; whoever needs a context puts the table in front of it. */
#ifndef COMM_OS_H
#define COMM_OS_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "base/status.h"

struct comm_pages {
    int pipe[2];
    unsigned char *memory; /* NULL: there are none */
    size_t bytes;
    size_t least, most; /* bytes to send at once, from and to which it is worth it */
};

struct comm_os {
    int (*socket)(const struct comm_os *os, int family);
    int (*datagrams)(const struct comm_os *os, int family); /* a socket for them, which is connected before it sends */
    int (*bind)(const struct comm_os *os, int fd, const struct sockaddr *at, socklen_t bytes);
    int (*bind_device)(const struct comm_os *os, int fd, const char *interface); /* NULL: there are none */
    /* How much may be under way grows with what is, and nothing waits for a rate that somebody has estimated; before it is connected, its children do the same; NULL: so it is. */
    void (*choose_window)(const struct comm_os *os, int fd);
    int (*listen)(const struct comm_os *os, int fd);
    int (*getsockname)(const struct comm_os *os, int fd, struct sockaddr *at, socklen_t *bytes);
    int (*accept)(const struct comm_os *os, int fd, struct sockaddr *from, socklen_t *bytes);
    int (*connect)(const struct comm_os *os, int fd, const struct sockaddr *to, socklen_t bytes);
    int (*setsockopt)(const struct comm_os *os, int fd, int level, int name, int value);
    int (*getsockopt)(const struct comm_os *os, int fd, int level, int name, void *value, socklen_t *bytes);
    ssize_t (*send)(const struct comm_os *os, int fd, const void *data, size_t bytes); /* no signal where the connection is broken */
    ssize_t (*send_two)(const struct comm_os *os, int fd, const void *first, size_t first_bytes, const void *second, size_t second_bytes); /* as if they lay one behind the other */
    ssize_t (*recv)(const struct comm_os *os, int fd, void *data, size_t bytes);
    int (*n_unsent)(const struct comm_os *os, int fd); /* bytes that were given to send and have not left this host; −1: not known */
    int (*close)(const struct comm_os *os, int fd);
    int (*poll)(const struct comm_os *os, struct pollfd *fds, size_t n, uint64_t timeout_ns);
    void (*yield)(const struct comm_os *os);
    void *(*map)(const struct comm_os *os, size_t bytes); /* zeroes, touched where they are used; NULL: there is no memory */
    void (*unmap)(const struct comm_os *os, void *memory, size_t bytes);
    /* Memory that send_pages sends from as it lies there, without a copy: who sends leaves it as it is until the other side has received it. NULL, all three: there is no such thing. */
    enum st (*map_pages)(const struct comm_os *os, size_t bytes, struct comm_pages *pages); /* else ST_NO_MEMORY, ST_IO, ST_UNSUPPORTED */
    void (*unmap_pages)(const struct comm_os *os, struct comm_pages *pages);
    ssize_t (*send_pages)(const struct comm_os *os, int fd, const struct comm_pages *pages, size_t offset, size_t bytes);
};

/* This machine's. */
const struct comm_os *comm_os_real(void);

#endif
