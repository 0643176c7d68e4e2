/* Descriptors from an agent to the launcher that started it on its own host: connections that the agent has opened, and that go on between the launcher and agents of other hosts.
 * The socket keeps messages apart (SOCK_SEQPACKET): each is the other host's number with one descriptor. */
#ifndef LAUNCHER_HANDED_H
#define LAUNCHER_HANDED_H

#include <stdint.h>

#include "base/status.h"

/* fd stays the caller's. */
enum st launch_handed_send(int socket_fd, uint32_t host, int fd, struct err *e);
/* *fd is the caller's from then on. ST_AGAIN: nothing within the time, or a signal; ST_PEER_LOST: the other end is closed. */
enum st launch_handed_receive(int socket_fd, int timeout_ms, uint32_t *host, int *fd, struct err *e);

#endif
