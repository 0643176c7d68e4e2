/* The agent's process: what it starts, and how it ends; warden.h is what it watches and says. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "comm/comm.h"
#include "launcher/agent_priv.h"
#include "launcher/commands.h"
#include "launcher/handed.h"
#include "launcher/host.h"
#include "launcher/meeting.h"
#include "launcher/rank_options.h"
#include "launcher/same_model.h"
#include "launcher/seating.h"
#include "launcher/warden.h"
#include "runtime/rank.h"

#define DIRECT_MS 300 /* for what still waits for the launcher on the old way */
#define MEETING_MS 30000 /* before the start a launcher may be silent for so long: it may read a model, or plan, and nobody stops while it does */
#define MAX_WORDS 104 /* of an agent: a rank gets these and what only its agent knows */

struct agent {
    struct rank_values v;
    struct launch_warden warden;
    struct launch_pulse *pulse; /* between hosts; NULL: there is no other */
    int memory_fd, vitals_fd;
    int handed_fd; /* to the launcher of this very host, for direct connections; −1 */
    int direct_fd; /* to a launcher on another host, for what follows RT_START; −1: not yet, or never */
    uint8_t key[COMM_KEY_BYTES]; /* the job's, for our ranks: the launcher's, or drawn here where there is no other host */
};

/* ---- what the warden asks for -------------------------------------------------------------------------------------------------------------------------------- */

static enum launch_warden_signal take_signal(void *context)
{
    const struct agent *a = context;
    struct signalfd_siginfo info;
    if (read(a->warden.signal_fd, &info, sizeof info) != sizeof info)
        return LAUNCH_SIGNAL_NONE;
    return info.ssi_signo == SIGCHLD ? LAUNCH_SIGNAL_CHILD : LAUNCH_SIGNAL_GO;
}

/* What a rank started and left behind is ours as well (we are its subreaper), and told to nobody. */
static bool reap(void *context, int *rank, int *status)
{
    const struct agent *a = context;
    for (pid_t dead; (dead = waitpid(-1, status, WNOHANG)) > 0;) {
        int r = a->warden.first;
        while (r < a->warden.end && a->warden.pids[r] != dead)
            r++;
        if (r == a->warden.end)
            continue;
        if ((!WIFEXITED(*status) || WEXITSTATUS(*status)) && a->memory_fd >= 0)
            (void)comm_shm_mark_dead(a->memory_fd, r - a->warden.first, NULL);
        *rank = r;
        return true;
    }
    return false;
}

static bool look(void *context, pid_t pid, struct launch_life_sample *sample)
{
    (void)context;
    return launch_life_read(pid, sample);
}

static bool next_news(void *context, struct launch_pulse_news *news)
{
    const struct agent *a = context;
    return a->pulse && launch_pulse_next(a->pulse, news);
}

static void end_sending(void *context, int fd)
{
    (void)context;
    shutdown(fd, SHUT_WR);
}

/* ---- ranks ------------------------------------------------------------------------------------------------------------------------------------------------------ */

/* Seat of rank r out of "0,1@0:2,3@1". */
static char *seat_of(struct arena *a, const char *seats, int rank)
{
    for (; rank > 0 && seats; rank--) {
        seats = strchr(seats, ':');
        seats = seats ? seats + 1 : NULL;
    }
    return seats ? base_arena_strndup(a, seats, strcspn(seats, ":")) : NULL;
}

/* In the environment that the next rank is started with: where it finds our PMI-1 server, and nobody else's. */
static void name_pmi(struct arena *arena, int fd, int rank, int n_ranks)
{
    const struct {
        const char *name;
        char *value;
    } pairs[] = {{"PMI_FD", launch_agent_number(arena, fd)}, {"PMI_RANK", launch_agent_number(arena, rank)}, {"PMI_SIZE", launch_agent_number(arena, n_ranks)}, {"PMI_PORT", NULL}, {"PMI_ID", NULL}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (fd >= 0 && pairs[i].value)
            setenv(pairs[i].name, pairs[i].value, 1);
        else
            unsetenv(pairs[i].name);
}

/* A pipe with the key in it, for one rank to read once: no command line and no environment has it. */
static enum st offer_key(const struct agent *a, int *fd, struct err *e)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return err_set(e, ST_IO, "cannot make a pipe: %s", strerror(errno));
    const bool is_in = write(ends[1], a->key, sizeof a->key) == (ssize_t)sizeof a->key;
    close(ends[1]);
    *fd = ends[0];
    if (is_in)
        return ST_OK;
    close(ends[0]);
    return err_set(e, ST_IO, "cannot write to a pipe: %s", strerror(errno));
}

static enum st start_rank(struct agent *a, int rank, int argc, char **argv, struct err *e)
{
    struct arena arena = {0};
    enum st st = base_arena_init(&arena, "rank", 0, e);
    int key_fd = -1;
    if (!st)
        st = offer_key(a, &key_fd, e);
    if (st) {
        base_arena_release(&arena);
        return st;
    }
    char *args[LAUNCH_AGENT_MAX_ARGS];
    int n = 0;
    args[n++] = base_arena_strdup(&arena, "tandem");
    args[n++] = base_arena_strdup(&arena, "rank");
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"--rank", rank}, {"--memory-fd", a->memory_fd}, {"--vitals-fd", a->vitals_fd}, {"--front-fd", a->v.front_fd}, {"--key-fd", key_fd}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        args[n++] = base_arena_strdup(&arena, numbers[i].name);
        args[n++] = launch_agent_number(&arena, numbers[i].value);
    }
    char *cpus = seat_of(&arena, a->v.seats, rank - a->warden.first);
    if (cpus) {
        args[n++] = base_arena_strdup(&arena, "--cpus");
        args[n++] = cpus;
    }
    BASE_ASSERT(n + argc <= LAUNCH_AGENT_MAX_ARGS);
    for (int i = 1; i < argc; i++)
        args[n++] = argv[i];
    args[n] = NULL;
    int pmi[2] = {-1, -1};
    if ((a->warden.pmi || a->warden.relays) && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pmi)) {
        close(key_fd);
        base_arena_release(&arena);
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    }
    name_pmi(&arena, pmi[1], rank, (int)a->v.n_ranks);
    const int keep[] = {a->memory_fd, a->vitals_fd, rank == 0 ? (int)a->v.front_fd : -1, pmi[1], key_fd};
    const pid_t parent = getpid(), child = fork();
    if (child == 0)
        launch_agent_become(parent, keep, 5, args);
    base_arena_release(&arena);
    close(key_fd);
    if (pmi[1] >= 0)
        close(pmi[1]);
    a->warden.pmi_fds[rank] = pmi[0];
    if (child < 0)
        return err_set(e, ST_NO_MEMORY, "cannot start rank %d: %s", rank, strerror(errno));
    a->warden.pids[rank] = child;
    a->warden.n_alive++;
    return ST_OK;
}

static enum st prepare(struct agent *a, struct err *e)
{
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGHUP);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    a->warden.signal_fd = signalfd(-1, &mask, SFD_CLOEXEC);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    const size_t bytes = (size_t)a->v.n_ranks * sizeof *a->warden.vitals;
    a->vitals_fd = memfd_create("tandem-vitals", MFD_CLOEXEC);
    if (a->warden.signal_fd < 0 || a->vitals_fd < 0 || ftruncate(a->vitals_fd, (off_t)bytes))
        return err_set(e, ST_IO, "cannot make the page of vital signs: %s", strerror(errno));
    a->warden.vitals = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, a->vitals_fd, 0);
    if (a->warden.vitals == MAP_FAILED)
        return err_set(e, ST_IO, "cannot map the page of vital signs: %s", strerror(errno));
    const bool is_shm = !a->v.backend || strcmp(a->v.backend, "shm") == 0;
    enum st st = ST_OK;
    if ((!is_shm || a->v.exchanges) && !a->warden.relays)
        st = launch_pmi_create((int)a->v.n_ranks, NULL, &a->warden.pmi, e);
    if (!st && (is_shm || strncmp(a->v.backend, "shm+", 4) == 0)) /* among the ranks of this host */
        st = comm_shm_create(a->warden.end - a->warden.first, (size_t)a->v.exchange_bytes, &a->memory_fd, e);
    return st;
}

/* Children that ranks left to us, too: /proc names them where it can, and PDEATHSIG or their pipes' end took the others. */
static void kill_adopted(void)
{
    FILE *f = fopen("/proc/thread-self/children", "re");
    int pid;
    while (f && fscanf(f, "%d", &pid) == 1)
        kill(pid, SIGKILL);
    if (f)
        fclose(f);
}

static void kill_all(const struct agent *a)
{
    for (int r = a->warden.first; r < a->warden.end; r++)
        if (a->warden.pids[r] > 0)
            kill(a->warden.pids[r], SIGKILL);
    for (int r = a->warden.first; r < a->warden.end; r++)
        if (a->warden.pids[r] > 0)
            waitpid(a->warden.pids[r], NULL, 0);
    kill_adopted(); /* whoever is left goes to init, dead */
}

static void say_last(struct launch_warden *w)
{
    if (!launch_warden_say_last(w)) /* started by hand, or the launcher is gone */
        LOG_ERR("agent", "%s", w->story.text);
}

/* Ranks from first to end − 1 of those that v tells, until all is over. */
static int lead(struct agent *a, int argc, char **argv)
{
    struct err e = {""};
    a->warden.n_ranks = (int)a->v.n_ranks;
    enum st st = prepare(a, &e);
    for (int r = a->warden.first; r < a->warden.end && !st; r++)
        st = start_rank(a, r, argc, argv, &e);
    if (a->v.front_fd >= 0)
        close((int)a->v.front_fd);
    int status = 1;
    if (!st && a->pulse) {
        launch_pulse_watch(a->pulse, a->warden.vitals, (int)a->v.n_ranks, !a->v.shares);
        a->warden.news_fd = launch_pulse_fd(a->pulse);
    }
    if (!st)
        status = launch_warden_watch(&a->warden);
    else
        a->warden.story = e;
    say_last(&a->warden);
    kill_all(a);
    launch_pulse_stop(a->pulse, status ? LAUNCH_BEAT_FAILED : LAUNCH_BEAT_LEFT);
    explicit_bzero(a->key, sizeof a->key);
    launch_warden_release(&a->warden);
    return status;
}

/* Of this host alone: everything came on the command line. */
static int lead_alone(struct agent *a, int argc, char **argv)
{
    struct err e = {""};
    const char *model;
    const enum st st = argc <= MAX_WORDS ? launch_rank_options_parse("agent", argc, argv, &a->v, &model, &e) : err_set(&e, ST_INVALID, "more than %d words", MAX_WORDS);
    if (st)
        return launch_misuse("agent", &e);
    if (base_key_draw(a->key, &e))
        return launch_fail("agent", &e);
    a->warden.in_fd = a->warden.out_fd = (int)a->v.control_fd;
    a->warden.end = (int)a->v.n_ranks;
    a->warden.launcher = a->warden.in_fd >= 0 ? getppid() : 0;
    rt_inbox_init(&a->warden.control, a->warden.in_fd);
    return lead(a, argc, argv);
}

/* ---- of one of several hosts -------------------------------------------------------------------------------------------------------------------------------- */

/* Who sits where is decided here: hosts may differ. Seats as text, or NULL where ranks are not bound. */
static enum st take_seats(struct agent *a, bool *is_crowded, struct err *e)
{
    struct topo_place_options options = {.n_ranks = a->warden.end - a->warden.first, .n_threads = (int)a->v.n_threads, .bind = TOPO_BIND_AUTO};
    struct topo_machine *m = NULL;
    struct topo_placement *p = NULL;
    enum st st = a->v.bind ? topo_bind_parse(a->v.bind, &options.bind, &options.list, e) : ST_OK;
    if (!st)
        st = topo_machine_open(NULL, &m, e);
    if (!st)
        st = topo_place(m, &options, &p, e);
    if (!st && p->note[0])
        LOG_WARNING("place", "%s", p->note);
    if (!st && p->bound)
        a->v.seats = launch_agent_seats(p);
    if (!st)
        *is_crowded = p->oversubscribed;
    topo_placement_free(p);
    topo_machine_close(m);
    return st;
}

/* Variables for the ranks, NAME=VALUE, then the launcher's arguments; all with NULs behind them. */
static enum st take_start(struct agent *a, char *text, size_t bytes, int *argc, char **argv, struct err *e)
{
    int n = 0;
    if (!bytes || text[bytes - 1])
        return err_set(e, ST_INVALID, "arguments without an end");
    for (size_t at = 0; at < bytes; at += strlen(text + at) + 1) {
        if (n == MAX_WORDS)
            return err_set(e, ST_INVALID, "more than %d arguments", MAX_WORDS);
        const char *is = n == 0 ? strchr(text + at, '=') : NULL;
        if (!is) {
            argv[n++] = text + at;
            continue;
        }
        char name[64] = "";
        memcpy(name, text + at, (size_t)(is - (text + at)) < sizeof name ? (size_t)(is - (text + at)) : 0);
        const char *owns = getenv(name); /* what the host's owner set stays */
        if (owns && strcmp(owns, is + 1) != 0)
            LOG_WARNING("agent", "%s=%.200s is set on this host and stays; %.200s was decided", name, owns, is + 1);
        setenv(name, is + 1, 0);
    }
    argv[n] = NULL;
    *argc = n;
    const char *model;
    enum st st = launch_rank_options_parse("agent", n, argv, &a->v, &model, e);
    if (st)
        return st;
    a->warden.first = (int)a->v.first_rank;
    a->warden.end = a->warden.first + (int)a->v.host_ranks;
    if (a->warden.end > (int)a->v.n_ranks || a->v.host_ranks < 1)
        return err_set(e, ST_INVALID, "ranks %d to %d of %d", a->warden.first, a->warden.end - 1, (int)a->v.n_ranks);
    a->warden.relays = true;
    bool is_crowded = false;
    st = take_seats(a, &is_crowded, e);
    if (!st && is_crowded) { /* for the ranks: before what ends the options; the last one counts */
        memmove(argv + 3, argv + 1, (size_t)n * sizeof *argv);
        argv[1] = "--spin-us";
        argv[2] = "0";
        *argc = n + 2;
    }
    return st;
}

static enum st open_front(struct agent *a, struct err *e)
{
    int front[2];
    if (a->warden.first != 0)
        return ST_OK;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, front))
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    a->v.front_fd = front[1];
    a->warden.front_fd = front[0];
    return ST_OK;
}

static enum st take_direct(struct agent *a, struct launch_meeting *m, struct err *e)
{
    int host;
    const int fd = launch_meeting_take_control(m, &host);
    if (fd < 0)
        return ST_OK;
    if (a->handed_fd < 0) {
        a->direct_fd = fd;
        return ST_OK;
    }
    const enum st st = launch_handed_send(a->handed_fd, (uint32_t)host, fd, e);
    close(fd);
    return st;
}

/* From now on the launcher is heard and told over the decided way; ssh, and whatever started us by it, may end. */
static void go_direct(struct agent *a)
{
    const uint64_t until = base_now_ns(base_clock_real()) + DIRECT_MS * BASE_NS_PER_MS;
    while (launch_outbox_flush(&a->warden.out, NULL, a->warden.out_fd) == ST_AGAIN && base_now_ns(base_clock_real()) < until)
        usleep(1000);
    launch_outbox_release(&a->warden.out);
    rt_inbox_release(&a->warden.control);
    close(a->warden.in_fd);
    close(a->warden.out_fd);
    a->warden.in_fd = a->warden.out_fd = a->direct_fd;
    rt_inbox_init(&a->warden.control, a->warden.in_fd);
    prctl(PR_SET_PDEATHSIG, 0);
}

/* Standard input and output are the conversation with the launcher, be it by ssh or not; whatever else would go there goes to stderr. */
static int lead_host(struct agent *a)
{
    struct err e = {""};
    a->warden.in_fd = fcntl(0, F_DUPFD_CLOEXEC, LAUNCH_AGENT_HANDED_FD + 1);
    a->warden.out_fd = fcntl(1, F_DUPFD_CLOEXEC, LAUNCH_AGENT_HANDED_FD + 1);
    if (a->handed_fd >= 0)
        (void)fcntl(a->handed_fd, F_SETFD, FD_CLOEXEC);
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, 0);
    dup2(2, 1);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rt_inbox_init(&a->warden.control, a->warden.in_fd);
    char *host = NULL;
    enum st st = launch_host_describe(&host, &e);
    if (!st)
        st = launch_outbox_frame(&a->warden.out, RT_HOST, host, strlen(host), NULL, 0, &e);
    free(host);
    struct launch_meeting *meeting = NULL;
    if (!st)
        st = launch_meeting_open(&a->warden.out, &meeting, &e);
    static char start[65536];
    static char *argv[LAUNCH_AGENT_MAX_ARGS];
    int argc = 0;
    size_t start_bytes = 0;
    uint64_t heard_ns = base_now_ns(base_clock_real());
    while (!st && (!start_bytes || (a->handed_fd < 0 && a->direct_fd < 0 && launch_meeting_has_control(meeting)))) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        (void)launch_outbox_flush(&a->warden.out, NULL, a->warden.out_fd);
        st = rt_inbox_next(&a->warden.control, 0, &kind, &payload, &bytes, &e);
        const uint64_t now = base_now_ns(base_clock_real());
        heard_ns = st ? heard_ns : now;
        if (st == ST_AGAIN && now - heard_ns >= MEETING_MS * BASE_NS_PER_MS)
            st = err_set(&e, ST_TIMEOUT, "the launcher gave no sign of life for %d s before the start", MEETING_MS / 1000);
        else if (st == ST_AGAIN)
            st = launch_meeting_step(meeting, a->warden.in_fd, LAUNCH_LOOK_MS, &a->warden.out, &e);
        else if (!st && kind == RT_BEAT)
            continue;
        else if (!st && kind == RT_START && bytes < sizeof start) {
            memcpy(start, payload, bytes);
            start_bytes = bytes;
        } else if (!st && kind == RT_MODEL)
            st = launch_model_tell(payload, bytes, &a->warden.out, &e);
        else if (!st && kind == RT_SEATS)
            st = launch_seating_tell(payload, bytes, &a->warden.out, &e);
        else if (!st)
            st = launch_meeting_frame(meeting, kind, payload, bytes, &a->warden.out, &e);
        a->pulse = launch_meeting_pulse(meeting);
        if ((!st || st == ST_AGAIN) && launch_warden_take_news(&a->warden))
            st = ST_CANCELLED;
        if (!st)
            st = take_direct(a, meeting, &e);
        launch_warden_beat(&a->warden);
    }
    if (!st && a->direct_fd >= 0)
        go_direct(a);
    if (!st)
        st = take_start(a, start, start_bytes, &argc, argv, &e);
    if (!st && launch_meeting_ways(meeting)) /* else there is no other host */
        memcpy(a->key, launch_meeting_ways(meeting)->key, sizeof a->key);
    else if (!st)
        st = base_key_draw(a->key, &e);
    a->pulse = st ? NULL : launch_meeting_take_pulse(meeting);
    launch_meeting_close(meeting);
    if (!st)
        st = open_front(a, &e);
    if (!st)
        return lead(a, argc, argv);
    launch_pulse_stop(a->pulse, LAUNCH_BEAT_FAILED);
    if (st != ST_PEER_LOST) { /* a launcher that left before the start changed its mind */
        a->warden.story = e;
        say_last(&a->warden);
    }
    return 1;
}

int cmd_agent(int argc, char **argv)
{
    struct agent a = {.memory_fd = -1, .vitals_fd = -1, .handed_fd = -1, .direct_fd = -1};
    launch_warden_init(&a.warden);
    a.warden.hands = (struct launch_warden_hands){&a, take_signal, reap, look, next_news, end_sending};
    base_log_init(NULL);
    const bool hands_over = argc == 3 && strcmp(argv[2], "--hand-over") == 0;
    if (hands_over)
        a.handed_fd = LAUNCH_AGENT_HANDED_FD;
    return (argc == 2 || hands_over) && strcmp(argv[1], "--host") == 0 ? lead_host(&a) : lead_alone(&a, argc, argv);
}
