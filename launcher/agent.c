/* The agent's process: how it is started, what it starts and watches, and how it ends. */
#include "launcher/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
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
#include "launcher/life.h"
#include "launcher/pmi.h"
#include "launcher/rank_options.h"
#include "launcher/watch.h"
#include "runtime/rank.h"

#define GRACE_MS 200   /* after the first failure: others may have a better story */
#define MAX_ARGS 64

extern char **environ;

/* ---- starting an agent --------------------------------------------------------------------------------------------------------------------------------------- */

static char *seats_text(const struct topo_placement *p)
{
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    for (int r = 0; f && r < p->n_ranks; r++) {
        for (int i = 0; i < p->seats[r].n_threads; i++)
            fprintf(f, "%s%d", i ? "," : r ? ":" : "", p->seats[r].pus[i]);
        for (int i = 0; i < p->seats[r].n_numa; i++)
            fprintf(f, "%s%d", i ? "," : "@", p->seats[r].numa[i]);
    }
    if (f)
        fclose(f);
    return text;
}

static char *number(struct arena *a, int64_t n) { return base_arena_printf(a, "%" PRId64, n); }

static void agent_args(const struct launch_setup *s, struct arena *a, int control_fd, int front_fd, char **argv)
{
    const struct rt_settings *t = &s->settings;
    char *seats = s->placement->bound ? seats_text(s->placement) : NULL, link[128];
    if (s->has_link)
        comm_link_print(&s->link, link);
    int n = 0;
    const struct {
        const char *name;
        char *value;
    } pairs[] = {
        {"--control-fd", number(a, control_fd)},
        {"--exchange-bytes", number(a, (int64_t)s->exchange_bytes)},
        {"--seats", seats ? base_arena_strdup(a, seats) : NULL},
        {"--ranks", number(a, s->n_ranks)},
        {"--front-fd", number(a, front_fd)},
        {"--threads", number(a, t->n_threads)},
        {"--spin-us", number(a, t->spin_us)},
        {"--chunk", number(a, t->chunk)},
        {"--ctx", number(a, t->context)},
        {"--sequences", number(a, t->max_sequences)},
        {"--kv", base_arena_strdup(a, kern_format(t->kv_format)->name)},
        {"--backend", s->backend_name ? base_arena_strdup(a, s->backend_name) : NULL},
        {"--link", s->has_link ? base_arena_strdup(a, link) : NULL},
        {"--exchanges", s->exchanges ? base_arena_strdup(a, s->exchanges) : NULL},
    };
    argv[n++] = base_arena_strdup(a, "tandem");
    argv[n++] = base_arena_strdup(a, "agent");
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (pairs[i].value) {
            argv[n++] = base_arena_strdup(a, pairs[i].name);
            argv[n++] = pairs[i].value;
        }
    if (s->has_shares) {
        char *text = base_arena_strdup(a, "");
        for (int r = 0; r < s->n_ranks; r++)
            text = base_arena_printf(a, "%s%s%u", text, r ? ":" : "", s->shares[r]);
        argv[n++] = base_arena_strdup(a, "--split");
        argv[n++] = text;
    }
    if (t->accurate)
        argv[n++] = base_arena_strdup(a, "--accurate");
    if (t->ledger)
        argv[n++] = base_arena_strdup(a, "--ledger");
    argv[n++] = base_arena_strdup(a, "--");
    argv[n++] = base_arena_strdup(a, s->model);
    argv[n] = NULL;
    free(seats);
}

/* In the child, between fork and exec: only async-signal-safe calls. 0 and 1 are not the user's: stdout is the launcher's alone. Nor are descriptors that whoever called us left
 * open: who waits for their end would wait for the ranks. When parent dies, however it does and whether or not we are stopped, so do we. */
static void become(pid_t parent, const int *keep, int n_keep, char **argv)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died in between */
        _exit(1);
    const int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(2, 1);
    if (null > 2)
        close(null);
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    for (int i = 0; i < n_keep; i++)
        if (keep[i] >= 0)
            fcntl(keep[i], F_SETFD, 0);
    execve("/proc/self/exe", argv, environ);
    _exit(127);
}

enum st launch_agent_spawn(const struct launch_setup *setup, int control_fd, int front_fd, pid_t *pid, struct err *e)
{
    struct arena a = {0};
    const enum st st = base_arena_init(&a, "agent", 0, e);
    if (st)
        return st;
    char *argv[MAX_ARGS];
    agent_args(setup, &a, control_fd, front_fd, argv);
    const int keep[] = {control_fd, front_fd};
    const pid_t parent = getpid(), child = fork();
    if (child == 0) {
        setsid(); /* Ctrl-C is the launcher's */
        become(parent, keep, 2, argv);
    }
    base_arena_release(&a);
    if (child < 0)
        return err_set(e, ST_NO_MEMORY, "cannot start the agent: %s", strerror(errno));
    *pid = child;
    return ST_OK;
}

/* ---- the agent ------------------------------------------------------------------------------------------------------------------------------------------------ */

struct agent {
    struct rank_values v;
    pid_t pids[COMM_MAX_RANKS];
    int n_alive;
    struct rt_vitals *vitals;
    int memory_fd, vitals_fd, signal_fd;
    struct launch_life life[COMM_MAX_RANKS], launcher_life;
    struct rt_inbox control;
    pid_t launcher;
    uint64_t heard_ns; /* the launcher, last */
    uint64_t beat_ns, looked_ns;
    bool is_paused; /* by the launcher's user */
    struct launch_pmi *pmi; /* NULL: nobody here needs it */
    int pmi_fds[COMM_MAX_RANKS];
    struct err story; /* why the job ends */
    int story_worth;  /* a better one replaces it */
};

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
    } pairs[] = {{"PMI_FD", number(arena, fd)}, {"PMI_RANK", number(arena, rank)}, {"PMI_SIZE", number(arena, n_ranks)}, {"PMI_PORT", NULL}, {"PMI_ID", NULL}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (fd >= 0 && pairs[i].value)
            setenv(pairs[i].name, pairs[i].value, 1);
        else
            unsetenv(pairs[i].name);
}

static enum st start_rank(struct agent *a, int rank, int argc, char **argv, struct err *e)
{
    struct arena arena = {0};
    enum st st = base_arena_init(&arena, "rank", 0, e);
    if (st)
        return st;
    char *args[MAX_ARGS];
    int n = 0;
    args[n++] = base_arena_strdup(&arena, "tandem");
    args[n++] = base_arena_strdup(&arena, "rank");
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"--rank", rank}, {"--memory-fd", a->memory_fd}, {"--vitals-fd", a->vitals_fd}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        args[n++] = base_arena_strdup(&arena, numbers[i].name);
        args[n++] = number(&arena, numbers[i].value);
    }
    char *cpus = seat_of(&arena, a->v.seats, rank);
    if (cpus) {
        args[n++] = base_arena_strdup(&arena, "--cpus");
        args[n++] = cpus;
    }
    for (int i = 1; i < argc && n < MAX_ARGS - 1; i++)
        args[n++] = argv[i];
    args[n] = NULL;
    int pmi[2] = {-1, -1};
    if (a->pmi && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pmi)) {
        base_arena_release(&arena);
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    }
    name_pmi(&arena, pmi[1], rank, (int)a->v.n_ranks);
    const int keep[] = {a->memory_fd, a->vitals_fd, rank == 0 ? (int)a->v.front_fd : -1, pmi[1]};
    const pid_t parent = getpid(), child = fork();
    if (child == 0)
        become(parent, keep, 4, args);
    base_arena_release(&arena);
    if (pmi[1] >= 0)
        close(pmi[1]);
    a->pmi_fds[rank] = pmi[0];
    if (child < 0)
        return err_set(e, ST_NO_MEMORY, "cannot start rank %d: %s", rank, strerror(errno));
    a->pids[rank] = child;
    a->n_alive++;
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
    a->signal_fd = signalfd(-1, &mask, SFD_CLOEXEC);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    a->launcher = a->v.control_fd >= 0 ? getppid() : 0;
    rt_inbox_init(&a->control, (int)a->v.control_fd);
    const size_t bytes = (size_t)a->v.n_ranks * sizeof *a->vitals;
    a->vitals_fd = memfd_create("tandem-vitals", MFD_CLOEXEC);
    if (a->signal_fd < 0 || a->vitals_fd < 0 || ftruncate(a->vitals_fd, (off_t)bytes))
        return err_set(e, ST_IO, "cannot make the page of vital signs: %s", strerror(errno));
    a->vitals = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, a->vitals_fd, 0);
    if (a->vitals == MAP_FAILED)
        return err_set(e, ST_IO, "cannot map the page of vital signs: %s", strerror(errno));
    const bool is_shm = !a->v.backend || strcmp(a->v.backend, "shm") == 0;
    enum st st = ST_OK;
    if (!is_shm || a->v.exchanges)
        st = launch_pmi_create((int)a->v.n_ranks, NULL, &a->pmi, e);
    return st ? st : comm_shm_create((int)a->v.n_ranks, (size_t)a->v.exchange_bytes, &a->memory_fd, e);
}

/* What a dead rank left behind. A killed one knows more than one that failed, and that more than one that only missed a peer. */
enum { WORTH_LOST_PEER = 1, WORTH_FAILED, WORTH_KILLED };

static void take_story(struct agent *a, int rank, int status)
{
    const struct rt_vitals *v = &a->vitals[rank];
    const int failed = atomic_load(&v->failed);
    const unsigned long long step = atomic_load(&v->step);
    const char *phase = rt_phase_name((enum rt_phase)atomic_load(&v->phase));
    const int worth = WIFSIGNALED(status) ? WORTH_KILLED : failed && failed != ST_PEER_LOST && failed != ST_CANCELLED ? WORTH_FAILED : WORTH_LOST_PEER;
    if (worth <= a->story_worth)
        return;
    a->story_worth = worth;
    if (WIFSIGNALED(status))
        err_set(&a->story, ST_PEER_LOST, "rank %d (pid %d) was killed by signal %d (%s) at step %llu (%s)", rank, (int)a->pids[rank], WTERMSIG(status), strsignal(WTERMSIG(status)), step, phase);
    else if (failed)
        err_set(&a->story, ST_PEER_LOST, "rank %d: %.440s", rank, v->error);
    else
        err_set(&a->story, ST_PEER_LOST, "rank %d (pid %d) left with status %d at step %llu (%s)", rank, (int)a->pids[rank], WEXITSTATUS(status), step, phase);
}

/* Reaps whoever is dead; true if one of them ended badly. What a rank started and left behind is ours as well (we are its subreaper). */
static bool reap(struct agent *a)
{
    bool bad = false;
    int status;
    for (pid_t dead; (dead = waitpid(-1, &status, WNOHANG)) > 0;) {
        int r = 0;
        while (r < (int)a->v.n_ranks && a->pids[r] != dead)
            r++;
        if (r == (int)a->v.n_ranks)
            continue;
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            take_story(a, r, status);
            (void)comm_shm_mark_dead(a->memory_fd, r, NULL);
            bad = true;
        }
        a->pids[r] = 0;
        a->n_alive--;
        if (a->pmi)
            launch_pmi_hang_up(a->pmi, r);
    }
    return bad;
}

/* A rank that somebody stopped, or that is frozen, ends the job: the others wait for it. */
static bool find_frozen(struct agent *a, uint64_t now)
{
    for (int r = 0; r < (int)a->v.n_ranks; r++) {
        const struct rt_vitals *v = &a->vitals[r];
        struct launch_life_sample sample;
        if (a->pids[r] <= 0 || !launch_life_read(a->pids[r], &sample))
            continue;
        const int phase = atomic_load(&v->phase);
        uint64_t silent_ms;
        const int waits = atomic_load(&v->waits);
        const bool excused = waits == RT_WAITS_BLINDLY || phase == RT_PHASE_TELLING || phase == RT_PHASE_LEAVING;
        const enum launch_verdict verdict = launch_life_judge(&a->life[r], rt_vitals_progress(v) + (uint64_t)waits, excused, &sample, now, &silent_ms);
        if (verdict == LAUNCH_WELL)
            continue;
        err_set(&a->story, ST_PEER_LOST, "rank %d (pid %d) %s gave no sign of life for %.1f s, at step %llu (%s)", r, (int)a->pids[r],
                verdict == LAUNCH_STOPPED ? "was stopped and" : "is frozen: it", (double)silent_ms / 1000, (unsigned long long)atomic_load(&v->step), rt_phase_name((enum rt_phase)phase));
        return true;
    }
    return false;
}

/* No beat for long, although it could: it was stopped, or hangs. Its death is seen at once, by the end of the stream. */
static bool is_launcher_silent(struct agent *a, uint64_t now)
{
    struct launch_life_sample sample;
    uint64_t silent_ms;
    if (a->launcher <= 0 || !launch_life_read(a->launcher, &sample))
        return false;
    const enum launch_verdict verdict = launch_life_judge(&a->launcher_life, a->heard_ns, a->is_paused, &sample, now, &silent_ms);
    if (verdict == LAUNCH_WELL || a->is_paused)
        return false;
    err_set(&a->story, ST_PEER_LOST, "the launcher (pid %d) %s gave no sign of life for %.1f s; its ranks were killed", (int)a->launcher,
            verdict == LAUNCH_STOPPED ? "was stopped and" : "is frozen: it", (double)silent_ms / 1000);
    return true;
}

/* False: it closed its end. */
static bool listen_launcher(struct agent *a, uint64_t now)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        const enum st st = rt_inbox_next(&a->control, 0, &kind, &payload, &bytes, NULL);
        if (st)
            return st == ST_AGAIN;
        a->heard_ns = now;
        if (kind == RT_PAUSE || kind == RT_RESUME)
            a->is_paused = kind == RT_PAUSE;
    }
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
    for (int r = 0; r < (int)a->v.n_ranks; r++)
        if (a->pids[r] > 0)
            kill(a->pids[r], SIGKILL);
    for (int r = 0; r < (int)a->v.n_ranks; r++)
        if (a->pids[r] > 0)
            waitpid(a->pids[r], NULL, 0);
    kill_adopted(); /* whoever is left goes to init, dead */
}

/* Twice a second; never waits for a launcher that does not listen. */
static void beat(struct agent *a, uint64_t now)
{
    const uint32_t frame[2] = {0, RT_BEAT};
    if (now - a->beat_ns < LAUNCH_BEAT_MS * BASE_NS_PER_MS)
        return;
    a->beat_ns = now;
    (void)!send((int)a->v.control_fd, frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* After we were stopped ourselves, silence of others means nothing. */
static void forget_silence(struct agent *a, uint64_t now)
{
    memset(a->life, 0, sizeof a->life);
    memset(&a->launcher_life, 0, sizeof a->launcher_life);
    a->heard_ns = now;
}

/* What ranks ask of the PMI-1 server. A rank that writes nonsense there only loses that connection: whether it needed it, it knows itself. */
static void serve_pmi(struct agent *a, const struct pollfd *p)
{
    for (int r = 0; r < (int)a->v.n_ranks; r++) {
        struct err e = {""};
        if (!p[r].revents)
            continue;
        const enum st st = launch_pmi_read(a->pmi, r, p[r].fd, &e);
        if (st)
            LOG_WARNING("agent", "PMI of rank %d: %s", r, e.text);
        else if (!(p[r].revents & POLLHUP) || launch_pmi_query(a->pmi, r) < LAUNCH_PMI_FINALIZED)
            continue;
        close(a->pmi_fds[r]);
        a->pmi_fds[r] = -1;
    }
    for (int r = 0; r < (int)a->v.n_ranks; r++)
        if (a->pmi_fds[r] >= 0)
            (void)launch_pmi_write(a->pmi, r, a->pmi_fds[r]);
}

static int poll_for_pmi(const struct agent *a, struct pollfd *p)
{
    if (!a->pmi)
        return 0;
    for (int r = 0; r < (int)a->v.n_ranks; r++) {
        const void *bytes;
        const enum launch_pmi_state state = launch_pmi_query(a->pmi, r);
        const bool over = state == LAUNCH_PMI_GONE || state == LAUNCH_PMI_BROKEN;
        p[r] = (struct pollfd){.fd = over ? -1 : a->pmi_fds[r], .events = launch_pmi_pending(a->pmi, r, &bytes) ? POLLIN | POLLOUT : POLLIN};
    }
    return (int)a->v.n_ranks;
}

/* Until all ranks have left in peace (0), one ended badly or the launcher is gone (1). */
static int watch(struct agent *a)
{
    uint64_t give_up = BASE_NO_DEADLINE;
    a->looked_ns = base_now_ns(base_clock_real());
    forget_silence(a, a->looked_ns);
    while (a->n_alive > 0) {
        struct pollfd p[2 + COMM_MAX_RANKS] = {{.fd = a->signal_fd, .events = POLLIN}, {.fd = (int)a->v.control_fd, .events = POLLIN}};
        const int n_pmi = poll_for_pmi(a, p + 2);
        uint64_t now = base_now_ns(base_clock_real());
        if (now >= give_up)
            break;
        const uint64_t left_ms = give_up == BASE_NO_DEADLINE ? LAUNCH_LOOK_MS : (give_up - now) / BASE_NS_PER_MS + 1;
        if (poll(p, 2 + (nfds_t)n_pmi, left_ms < LAUNCH_LOOK_MS ? (int)left_ms : LAUNCH_LOOK_MS) < 0 && errno != EINTR)
            return 1;
        now = base_now_ns(base_clock_real());
        if (p[0].revents) {
            struct signalfd_siginfo info;
            if (read(a->signal_fd, &info, sizeof info) == sizeof info && info.ssi_signo != SIGCHLD)
                return 1; /* told to go */
            if (reap(a) && give_up == BASE_NO_DEADLINE)
                give_up = now + GRACE_MS * BASE_NS_PER_MS;
            if (a->story_worth == WORTH_KILLED)
                return 1; /* no story is better */
        }
        if (p[1].revents && !listen_launcher(a, now))
            return 1;
        if (n_pmi)
            serve_pmi(a, p + 2);
        beat(a, now);
        if (now - a->looked_ns >= LAUNCH_LOOK_MS * BASE_NS_PER_MS || p[0].revents) {
            if (now - a->looked_ns > 4 * LAUNCH_LOOK_MS * BASE_NS_PER_MS)
                forget_silence(a, now);
            a->looked_ns = now;
            if (find_frozen(a, now) || is_launcher_silent(a, now))
                return 1;
        }
    }
    return a->story_worth ? 1 : 0;
}

int cmd_agent(int argc, char **argv)
{
    struct agent a = {.memory_fd = -1, .vitals_fd = -1, .signal_fd = -1};
    struct err e = {""};
    const char *model;
    base_log_init(NULL);
    enum st st = launch_rank_options_parse("agent", argc, argv, &a.v, &model, &e);
    if (!st)
        st = prepare(&a, &e);
    for (int r = 0; r < (int)a.v.n_ranks && !st; r++)
        st = start_rank(&a, r, argc, argv, &e);
    if (a.v.front_fd >= 0)
        close((int)a.v.front_fd);
    int status = 1;
    if (!st)
        status = watch(&a);
    else
        a.story = e;
    if (a.story.text[0] && rt_frame_send((int)a.v.control_fd, RT_FAILED, a.story.text, strlen(a.story.text), NULL))
        LOG_ERR("agent", "%s", a.story.text); /* started by hand, or the launcher is gone */
    kill_all(&a);
    rt_inbox_release(&a.control);
    launch_pmi_destroy(a.pmi);
    return status;
}
