/* A PMI server for the forked ranks of a test: launcher/pmi.c in a process of its own, one socket pair per rank. */
#ifndef TESTS_T_PMI_H
#define TESTS_T_PMI_H

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "comm/comm.h"
#include "launcher/pmi.h"
#include "tests/t.h"

struct t_pmi {
    pid_t pid, owner; /* 0: none was started */
    int n_ranks;
    int fds[COMM_MAX_RANKS]; /* the ranks' ends */
};

/* Until every rank's end is closed. This is what an agent's poll loop does for its ranks. */
static inline void t_pmi_serve(struct launch_pmi *s, int *fds, int n_ranks) {
    for (;;) {
        struct pollfd polled[COMM_MAX_RANKS];
        int n_open = 0;
        struct err e;
        for (int r = 0; r < n_ranks; r++) {
            bool more = fds[r] >= 0 && launch_pmi_write(s, r, comm_os_real(), fds[r]);
            enum launch_pmi_state state = launch_pmi_query(s, r);
            if (fds[r] >= 0 && (state == LAUNCH_PMI_GONE || state == LAUNCH_PMI_BROKEN)) {
                close(fds[r]);
                fds[r] = -1;
            }
            polled[r] = (struct pollfd){.fd = fds[r], .events = (short)(POLLIN | (more ? POLLOUT : 0))};
            n_open += fds[r] >= 0;
        }
        if (!n_open) return;
        poll(polled, (nfds_t)n_ranks, -1);
        for (int r = 0; r < n_ranks; r++) {
            if (fds[r] < 0 || !(polled[r].revents & (POLLIN | POLLHUP | POLLERR))) continue;
            if (launch_pmi_query(s, r) == LAUNCH_PMI_FINALIZED) {
                close(fds[r]);
                fds[r] = -1;
            } else if (launch_pmi_read(s, r, comm_os_real(), fds[r], &e) != ST_OK) {
                fprintf(stderr, "%s\n", e.text);
            }
        }
    }
}

static inline void t_pmi_start(struct t_pmi *p, int n_ranks, const int *host_of_rank) {
    int ends[COMM_MAX_RANKS][2];
    *p = (struct t_pmi){.n_ranks = n_ranks, .owner = getpid()};
    for (int r = 0; r < n_ranks; r++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends[r]), 0);
        p->fds[r] = ends[r][1];
    }
    fflush(NULL);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct launch_pmi *s = NULL;
        struct err e;
        int fds[COMM_MAX_RANKS];
        for (int r = 0; r < n_ranks; r++) {
            close(ends[r][1]);
            fds[r] = ends[r][0];
        }
        if (launch_pmi_create(n_ranks, host_of_rank, &s, &e) != ST_OK) {
            fprintf(stderr, "%s\n", e.text);
            _exit(1);
        }
        t_pmi_serve(s, fds, n_ranks);
        launch_pmi_destroy(s);
        _exit(0);
    }
    for (int r = 0; r < n_ranks; r++) close(ends[r][0]);
}

/* The environment of this rank. In a forked one the others' ends are closed, so that the server sees them close. */
static inline void t_pmi_enter(struct t_pmi *p, int rank) {
    const struct {
        const char *name;
        int value;
    } numbers[] = {{"PMI_FD", p->fds[rank]}, {"PMI_RANK", rank}, {"PMI_SIZE", p->n_ranks}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", numbers[i].value);
        setenv(numbers[i].name, text, 1);
    }
    unsetenv("PMI_PORT");
    unsetenv("PMI_ID");
    for (int r = 0; r < p->n_ranks && getpid() != p->owner; r++)
        if (r != rank) close(p->fds[r]);
}

static inline void t_pmi_stop(struct t_pmi *p) {
    if (!p->pid) return;
    for (int r = 0; r < p->n_ranks; r++) close(p->fds[r]);
    waitpid(p->pid, NULL, 0);
    p->pid = 0;
    unsetenv("PMI_FD");
    unsetenv("PMI_RANK");
    unsetenv("PMI_SIZE");
}

#endif
