/* The ranks and the front end of a simulated job (t_sim_supervision.c): what they say to each other must arrive, and they die, fail and lose each other as they do. */
#include <errno.h>
#include <string.h>

#include "tests/t_sim_supervision_priv.h"

static unsigned char byte_of(bool is_up, size_t i) { return (unsigned char)(mix(i / 8 + (is_up ? 1u << 30 : 0)) >> i % 8 * 8); }

/* ---- a rank -------------------------------------------------------------------------------------------------------------------------------------------------------- */

static void hang_up(int task, int *fd) {
    if (*fd >= 0) (void)comm_sim_os(job.s, task)->close(comm_sim_os(job.s, task), *fd);
    *fd = -1;
}

static void leave_rank(struct sim_rank *k, enum st st, const char *text) {
    struct err e = {""};
    if (is_dead(k->task)) return;
    err_set(&e, st, "%s", text);
    rt_vitals_fail(&job.agents[k->agent].vitals[k - job.ranks], st, &e);
    comm_sim_note(job.s, k->task, "leaves: %s", text);
    k->status = 1 << 8;
}

/* Others that have ended badly, and long enough ago for a peer to see it: −1, or which. */
static int lost_peer(const struct sim_rank *k) {
    for (int r = 0; r < job.n_ranks; r++) {
        const struct sim_rank *other = &job.ranks[r];
        const bool is_silent = t_sim_job_is_cut(job.agents[other->agent].task, job.agents[k->agent].task, NULL); /* its death is not seen, but its silence */
        if (other != k && other->has_ended && other->status && now() >= other->end_ns + k->lost_after_ns + (is_silent ? 3 * BASE_NS_PER_S : 0)) return r;
    }
    return -1;
}

/* Nobody is left who would ever end its ranks: two faults at once, of which each host alone knows one. */
static bool is_orphan(int task) { return is_stuck(task) && (has_gone(LAUNCHER) || is_stuck(LAUNCHER)); }

/* False: it cannot go on. */
static bool rank_goes_on(struct sim_rank *k) {
    char text[64];
    if (is_dead(k->task) || is_orphan(job.agents[k->agent].task)) return false;
    const int lost = lost_peer(k);
    snprintf(text, sizeof text, "lost rank %d", lost);
    if (lost >= 0)
        leave_rank(k, ST_PEER_LOST, text);
    else if (k->fail_ns && now() >= k->fail_ns)
        leave_rank(k, ST_NO_MEMORY, "no memory, as it was drawn");
    else
        return true;
    return false;
}

/* One request of PMI-1 and its answer, in k->line up to the new-line, which is cut off. */
static bool ask(struct sim_rank *k, const char *request, const char *expected) {
    const struct comm_os *os = comm_sim_os(job.s, k->task);
    struct rt_vitals *v = &job.agents[k->agent].vitals[k - job.ranks];
    const size_t bytes = strlen(request);
    const uint64_t until_ns = now() + 20 * BASE_NS_PER_S;
    size_t sent = 0;
    k->n_line = 0;
    atomic_store(&v->waits, 1);
    while (rank_goes_on(k)) {
        struct pollfd p = {.fd = k->pmi_fd, .events = (short)(POLLIN | (sent < bytes ? POLLOUT : 0))};
        (void)os->poll(os, &p, 1, 300 * MS);
        atomic_fetch_add(&v->waits, 1);
        ssize_t n = sent < bytes ? os->send(os, k->pmi_fd, request + sent, bytes - sent) : 0;
        sent += n > 0 ? (size_t)n : 0;
        n = p.revents & POLLIN ? os->recv(os, k->pmi_fd, k->line + k->n_line, sizeof k->line - 1 - k->n_line) : -1;
        if (n == 0 || (n < 0 && p.revents & POLLIN && errno != EAGAIN && errno != EINTR)) {
            leave_rank(k, ST_PEER_LOST, "the PMI-1 server is gone");
            return false;
        }
        k->n_line += n > 0 ? (size_t)n : 0;
        k->line[k->n_line] = 0;
        char *end = strchr(k->line, '\n');
        if (end) {
            atomic_store(&v->waits, 0);
            *end = 0;
            if (strstr(k->line, "rc=-1")) { /* of a barrier, when somebody has left */
                leave_rank(k, ST_PEER_LOST, "a barrier has failed");
                return false;
            }
            if (strncmp(k->line, expected, strlen(expected)) != 0) {
                t_sim_job_wrong("rank", (int)(k - job.ranks), k->line);
                leave_rank(k, ST_INVALID, "PMI-1 has answered nonsense");
                return false;
            }
            return true;
        }
        if (now() >= until_ns || k->n_line == sizeof k->line - 1) {
            leave_rank(k, ST_TIMEOUT, "PMI-1 has not answered");
            return false;
        }
    }
    return false;
}

static void value_of(int rank, char text[400]) {
    const size_t bytes = 1 + mix((uint64_t)rank + job.n_down) % 300;
    for (size_t i = 0; i < bytes; i++) text[i] = (char)('a' + byte_of(false, i + (size_t)rank * 1000) % 26);
    text[bytes] = 0;
}

static bool meet(struct sim_rank *k) {
    char value[400], request[600];
    bool ok = ask(k, "cmd=init pmi_version=1 pmi_subversion=1\n", "cmd=response_to_init");
    value_of((int)(k - job.ranks), value);
    snprintf(request, sizeof request, "cmd=put kvsname=tandem key=k%d value=%s\n", (int)(k - job.ranks), value);
    ok = ok && ask(k, request, "cmd=put_result rc=0") && ask(k, "cmd=barrier_in\n", "cmd=barrier_out");
    for (int r = 0; r < job.n_ranks && ok; r++) {
        snprintf(request, sizeof request, "cmd=get kvsname=tandem key=k%d\n", r);
        value_of(r, value);
        ok = ask(k, request, "cmd=get_result rc=0");
        if (ok && (!strstr(k->line, value) || strlen(strstr(k->line, "value=")) != 6 + strlen(value))) {
            t_sim_job_wrong("rank", (int)(k - job.ranks), "PMI-1 has another value than was put there");
            ok = false;
        }
    }
    ok = ok && ask(k, "cmd=finalize\n", "cmd=finalize_ack");
    hang_up(k->task, &k->pmi_fd);
    return ok;
}

/* Takes what has come and sends what fits. False: the other side is gone. */
static bool talk(int task, int fd, bool is_up, size_t *got, size_t *sent, size_t most, size_t n_mine) {
    const struct comm_os *os = comm_sim_os(job.s, task);
    unsigned char bytes[2048];
    ssize_t n = os->recv(os, fd, bytes, most < sizeof bytes ? most : sizeof bytes);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
    for (ssize_t i = 0; i < n; i++)
        if (bytes[i] != byte_of(!is_up, (*got)++)) {
            t_sim_job_wrong(is_up ? "rank" : "front end", 0, "a byte is not what was sent");
            break;
        }
    size_t m = n_mine - *sent < sizeof bytes ? n_mine - *sent : sizeof bytes;
    for (size_t i = 0; i < m; i++) bytes[i] = byte_of(is_up, *sent + i);
    n = m ? os->send(os, fd, bytes, m) : 0;
    *sent += n > 0 ? (size_t)n : 0;
    return n >= 0 || errno == EAGAIN || errno == EINTR;
}

void t_sim_job_run_rank(struct sim_rank *k) {
    struct rt_vitals *v = &job.agents[k->agent].vitals[k - job.ranks];
    const struct comm_os *os = comm_sim_os(job.s, k->task);
    bool ok = k->pmi_fd < 0 || meet(k);
    const uint64_t begun_ns = now();
    while (ok && (ok = rank_goes_on(k)) && !job.ranks_are_done) {
        atomic_fetch_add(&v->tick, 1);
        atomic_fetch_add(&v->step, 1);
        if (k->front_fd < 0 && k != job.ranks) {
            comm_sim_sleep(job.s, k->task, 40 * MS);
            continue;
        }
        const uint64_t done_ns = now() - begun_ns; /* so much of what it will say is known */
        const size_t known = job.has_hosts ? (done_ns >= job.work_ns ? job.n_up : (size_t)((double)job.n_up * (double)done_ns / (double)job.work_ns)) : 0;
        struct pollfd p = {.fd = k->front_fd, .events = (short)(POLLIN | (job.sent_up < known ? POLLOUT : 0))};
        (void)os->poll(os, &p, 1, 40 * MS);
        if (k->front_fd >= 0 && p.revents && !talk(k->task, k->front_fd, true, &job.down, &job.sent_up, 2048, known)) {
            leave_rank(k, ST_CANCELLED, "the front end is gone");
            ok = false;
        }
        if (done_ns >= job.work_ns && job.down == job.n_down && job.sent_up == job.n_up) job.ranks_are_done = true;
    }
    k->is_done = ok;
    hang_up(k->task, &k->pmi_fd);
    hang_up(k->task, &k->front_fd);
}

/* ---- the front end, of the launcher's process ------------------------------------------------------------------------------------------------------------------- */

static void front_waits(uint64_t until_ns) {
    while (now() < until_ns && !job.has_story && !job.is_over && !has_gone(job.front_task)) {
        if (now() < job.paused_until_ns) until_ns = job.paused_until_ns + STORY_WAIT_NS;
        comm_sim_sleep(job.s, job.front_task, 5 * MS);
    }
}

/* The end of rank 0's stream is the end of the job, and what has come is all of it, or somebody says why. */
void t_sim_job_run_front(void) {
    const struct comm_os *os = comm_sim_os(job.s, job.front_task);
    bool is_open = job.front_fd >= 0;
    while (!is_dead(job.front_task)) {
        if (comm_sim_is_frozen(job.s, LAUNCHER)) {
            if (!comm_sim_will_thaw(job.s, LAUNCHER)) break;
            comm_sim_sleep(job.s, job.front_task, 20 * MS);
            continue;
        }
        if (now() < job.paused_until_ns) {
            comm_sim_sleep(job.s, job.front_task, job.paused_until_ns - now());
            continue;
        }
        if (job.has_story || (job.leave_ns && now() >= job.leave_ns)) break;
        if (!is_open && job.is_over) break;
        struct pollfd p[2] = {{.fd = job.told_bell, .events = POLLIN},
                              {.fd = is_open ? job.front_fd : -1, .events = (short)(POLLIN | (job.sent_down < job.n_down ? POLLOUT : 0))}};
        (void)os->poll(os, p, 2, 200 * MS);
        if (p[1].revents && !talk(job.front_task, job.front_fd, false, &job.up, &job.sent_down, job.read_bytes, job.n_down)) {
            job.is_whole = job.up == job.n_up;
            front_waits(now() + STORY_WAIT_NS);
            job.is_unexplained = !job.has_story && !job.is_whole;
            break;
        }
        if (p[1].revents && job.read_pause_ns) comm_sim_sleep(job.s, job.front_task, job.read_pause_ns);
        if (p[0].revents) comm_sim_sleep(job.s, job.front_task, MS);
    }
    job.is_front_through = !is_dead(job.front_task);
    hang_up(job.front_task, &job.front_fd);
    job.has_left = true;
    job.left_ns = now();
    hang_up(job.front_task, &job.told_bell);
    if (!has_gone(LAUNCHER)) comm_sim_ring(job.s, job.stop_bell);
}
