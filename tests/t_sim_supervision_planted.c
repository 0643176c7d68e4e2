/* Faults of launcher and agents, planted to see that they are found (t_sim_supervision.c). */
#include <errno.h>
#include <string.h>

#include "tests/t_sim_supervision_priv.h"

const char *const t_sim_supervision_planted_names[] = {
    "nothing",
    "a missing deadline",
    "a launcher's beats that are not sent",
    "an agent's beats that are not sent",
    "a dropped story",
    "a worse cause that overwrites a better one",
    "a leaked socket",
    "leaked heap",
    "short sends",
    "an agent that is deaf to the launcher's end",
    "an agent that hears of deaths late",
    "a clock that goes half as fast",
    "an interrupt taken as the end",
    "bytes in another order",
    "a pause that is not told",
};

/* Are the bytes one frame of that kind? */
static bool is_frame(const void *data, size_t bytes, enum rt_frame_kind kind) {
    uint32_t head[2];
    if (bytes < sizeof head) return false;
    memcpy(head, data, sizeof head);
    return head[1] == (uint32_t)kind && head[0] + sizeof head == bytes;
}
static ssize_t send_no_beat(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    return is_frame(data, bytes, RT_BEAT) ? (ssize_t)bytes : job.systems[t_sim_job_task(os)].send(os, fd, data, bytes);
}
static ssize_t send_no_story(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    return is_frame(data, bytes, RT_STORY) ? (ssize_t)bytes : job.systems[t_sim_job_task(os)].send(os, fd, data, bytes);
}
static ssize_t send_other_worth(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    unsigned char copy[1024];
    if (bytes > sizeof copy || !is_frame(data, bytes, RT_STORY)) return job.systems[t_sim_job_task(os)].send(os, fd, data, bytes);
    memcpy(copy, data, bytes);
    copy[8] = (unsigned char)(LAUNCH_WORTH_KILLED + 1 - copy[8]);
    return job.systems[t_sim_job_task(os)].send(os, fd, copy, bytes);
}
static ssize_t send_half(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    const ssize_t n = job.systems[t_sim_job_task(os)].send(os, fd, data, bytes);
    return n > 0 ? (ssize_t)bytes : n;
}
static ssize_t send_turned(const struct comm_os *os, int fd, const void *data, size_t bytes) {
    unsigned char copy[64];
    if (bytes < 32 || bytes > sizeof copy || fd != job.launcher_front_fd) return job.systems[t_sim_job_task(os)].send(os, fd, data, bytes);
    memcpy(copy, (const unsigned char *)data + bytes / 2, bytes - bytes / 2);
    memcpy(copy + bytes - bytes / 2, data, bytes / 2);
    return job.systems[t_sim_job_task(os)].send(os, fd, copy, bytes);
}
static ssize_t receive_no_end(const struct comm_os *os, int fd, void *data, size_t bytes) {
    const int task = t_sim_job_task(os);
    const ssize_t n = job.systems[task].recv(os, fd, data, bytes);
    if (n > 0 || fd != job.agents[task - FIRST_AGENT].in_fd || is_dead(task)) return n;
    comm_sim_sleep(job.s, task, 20 * MS);
    errno = EAGAIN;
    return -1;
}
static ssize_t receive_badly(const struct comm_os *os, int fd, void *data, size_t bytes) {
    const ssize_t n = job.systems[t_sim_job_task(os)].recv(os, fd, data, bytes);
    return n < 0 && errno == EINTR ? 0 : n;
}
static int close_nothing(const struct comm_os *os, int fd) {
    return fd == job.launcher_fds[0] ? 0 : job.systems[t_sim_job_task(os)].close(os, fd);
}

void t_sim_job_plant(struct comm_os *os, int task) {
    const bool is_agent = task >= FIRST_AGENT && task < FIRST_AGENT + job.n_agents;
    switch (job.planted) {
    case T_SIM_SUPERVISION_MUTE_LAUNCHER:
        if (task == LAUNCHER) os->send = send_no_beat;
        break;
    case T_SIM_SUPERVISION_MUTE_AGENT:
        if (is_agent) os->send = send_no_beat;
        break;
    case T_SIM_SUPERVISION_DROPPED_STORY:
        if (is_agent) os->send = send_no_story;
        break;
    case T_SIM_SUPERVISION_WORSE_CAUSE:
        if (is_agent) os->send = send_other_worth;
        break;
    case T_SIM_SUPERVISION_SHORT_SEND:
        if (is_agent) os->send = send_half;
        break;
    case T_SIM_SUPERVISION_TURNED:
        if (task == LAUNCHER) os->send = send_turned;
        break;
    case T_SIM_SUPERVISION_DEAF_AGENT:
        if (is_agent) os->recv = receive_no_end;
        break;
    case T_SIM_SUPERVISION_SPURIOUS_LOSS:
        if (task <= job.n_agents) os->recv = receive_badly;
        break;
    case T_SIM_SUPERVISION_LEAKED_SOCKET:
        if (task == LAUNCHER) os->close = close_nothing;
        break;
    default: break;
    }
}
