/* UCX, opened when it is needed: the library as a table of function pointers. Inside comm/.
 *
 * libucp is never linked. What it does when it is loaded (it reads its environment, starts threads, would install signal handlers and overwrite parts of libc) shall not
 * happen to those who have no cluster, and they need not install it. Its headers are needed at build time only; without them COMM_HAVE_UCX is 0 and the backend says so.
 * Life cycle: comm_ucx_find as often as you like (it only looks for the file); comm_ucx_load once it is really wanted; it stays loaded until the process ends.
 * TANDEM_UCX names another file than libucp.so.0 (a path that does not exist switches UCX off). */
#ifndef COMM_UCX_API_H
#define COMM_UCX_API_H

#include "base/status.h"

#ifndef COMM_HAVE_UCX
#if defined(__has_include)
#if __has_include(<ucp/api/ucp.h>)
#define COMM_HAVE_UCX 1
#endif
#endif
#endif
#ifndef COMM_HAVE_UCX
#define COMM_HAVE_UCX 0
#endif

#if COMM_HAVE_UCX
#include <ucp/api/ucp.h>
#include <ucp/api/ucp_version.h>

/* Names as in ucp.h. ucp_init is an inline function around ucp_init_version. */
#define COMM_UCX_FUNCTIONS(X)                                                                                                                        \
    X(ucp_get_version)                                                                                                                               \
    X(ucp_config_read)                                                                                                                               \
    X(ucp_config_modify)                                                                                                                             \
    X(ucp_config_release)                                                                                                                            \
    X(ucp_init_version)                                                                                                                              \
    X(ucp_cleanup)                                                                                                                                   \
    X(ucp_worker_create)                                                                                                                             \
    X(ucp_worker_destroy)                                                                                                                            \
    X(ucp_worker_query)                                                                                                                              \
    X(ucp_worker_release_address)                                                                                                                    \
    X(ucp_worker_set_am_recv_handler)                                                                                                                \
    X(ucp_worker_progress)                                                                                                                           \
    X(ucp_worker_arm)                                                                                                                                \
    X(ucp_worker_get_efd)                                                                                                                            \
    X(ucp_mem_map)                                                                                                                                   \
    X(ucp_mem_unmap)                                                                                                                                 \
    X(ucp_ep_create)                                                                                                                                 \
    X(ucp_ep_close_nbx)                                                                                                                              \
    X(ucp_am_send_nbx)                                                                                                                               \
    X(ucp_am_recv_data_nbx)                                                                                                                          \
    X(ucp_request_check_status)                                                                                                                      \
    X(ucp_request_free)                                                                                                                              \
    X(ucs_status_string)

struct ucx_api {
#define X(name) __typeof__(name) *name;
    COMM_UCX_FUNCTIONS(X)
#undef X
    unsigned major, minor, release;
};

struct ucx_setting {
    const char *name, *value; /* of an environment variable; value NULL: ignored */
};
/* Sets the variables of ucx_api.c and n_more others where the user has not set them, then loads. The first call does it, under a lock; all get its answer. */
enum st comm_ucx_load(const struct ucx_setting *more, int n_more, const struct ucx_api **api, struct err *e);
#endif

/* ST_OK where the loader would find the library; nothing of it is run, so that a process may still fork. */
enum st comm_ucx_find(struct err *e);

#endif
