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
#include "launcher/commands.h"
#include "launcher/handed.h"
#include "launcher/host.h"
#include "launcher/hosts.h"
#include "launcher/life.h"
#include "launcher/meeting.h"
#include "launcher/outbox.h"
#include "launcher/pmi.h"
#include "launcher/rank_options.h"
#include "launcher/same_model.h"
#include "launcher/seating.h"
#include "launcher/watch.h"
#include "runtime/rank.h"

#define GRACE_MS 200   /* after the first failure: others may have a better story */
#define LAST_MS 300    /* for last words */
#define PEACE_MS 20000 /* for what the ranks said before they left in peace: a launcher may be slow to take it */
#define LAUNCHER_MS 10000 /* silence of a launcher that may be on another host, as ours is not in the kernel's hands */
#define MAX_ARGS 128  /* of a rank, or an agent */
#define MAX_WORDS 104 /* of an agent: a rank gets these and what only its agent knows */

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

/* h: of several hosts, one; NULL: this host alone, whose agent inherits its descriptors. */
static void agent_args(const struct launch_setup *s, const struct launch_hosts_entry *h, struct arena *a, int control_fd, int front_fd, char **argv)
{
    const struct rt_settings *t = &s->settings;
    char *seats = s->placement && s->placement->bound ? seats_text(s->placement) : NULL, link[128];
    if (s->has_link)
        comm_link_print(&s->link, link);
    const char *backend = s->backend_name ? s->backend_name : h ? s->hosts->backend : NULL;
    int n = 0;
    const struct {
        const char *name;
        char *value;
    } pairs[] = {
        {"--control-fd", h ? NULL : number(a, control_fd)},
        {"--front-fd", h ? NULL : number(a, front_fd)},
        {"--seats", seats ? base_arena_strdup(a, seats) : NULL},
        {"--first-rank", h ? number(a, h->first_rank) : NULL},
        {"--host-ranks", h ? number(a, h->n_ranks) : NULL},
        {"--address", h && h->address[0] ? base_arena_strdup(a, h->address) : NULL},
        {"--pair", h && s->hosts->pair[0] ? base_arena_strdup(a, s->hosts->pair) : NULL},
        {"--streams", h && h->streams[0] ? base_arena_strdup(a, h->streams) : NULL},
        {"--port", s->port ? number(a, s->port) : NULL},
        {"--bind", h && s->bind ? base_arena_strdup(a, s->bind) : NULL},
        {"--exchange-bytes", number(a, (int64_t)s->exchange_bytes)},
        {"--ranks", number(a, s->n_ranks)},
        {"--threads", number(a, h ? h->n_threads : t->n_threads)},
        {"--spin-us", number(a, t->spin_us)},
        {"--chunk", number(a, t->chunk)},
        {"--overlap", number(a, t->overlap_tokens)},
        {"--ctx", number(a, t->context)},
        {"--sequences", number(a, t->max_sequences)},
        {"--kv", base_arena_strdup(a, kern_format(t->kv_format)->name)},
        {"--device", t->device ? base_arena_strdup(a, t->device) : NULL},
        {"--backend", backend ? base_arena_strdup(a, backend) : NULL},
        {"--link", s->has_link ? base_arena_strdup(a, link) : NULL},
        {"--expert-map", t->model.expert_map ? base_arena_strdup(a, t->model.expert_map) : NULL},
        {"--exchanges", s->exchanges ? base_arena_strdup(a, s->exchanges) : NULL},
    };
    argv[n++] = base_arena_strdup(a, "tandem");
    argv[n++] = base_arena_strdup(a, "agent");
    if (h)
        n = 1; /* the frame's first argument is the command */
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
    if (t->model.moe == PART_MOE_EXPERT)
        argv[n++] = base_arena_strdup(a, "--experts-whole");
    if (t->smaller.embedding) {
        argv[n++] = base_arena_strdup(a, "--embedding");
        argv[n++] = base_arena_strdup(a, part_embedding_names[t->smaller.embedding]);
    }
    if (t->smaller.head_fp8)
        argv[n++] = base_arena_strdup(a, "--head-fp8");
    if (t->expert_stats)
        argv[n++] = base_arena_strdup(a, "--expert-stats");
    if (t->accurate)
        argv[n++] = base_arena_strdup(a, "--accurate");
    if (t->ledger)
        argv[n++] = base_arena_strdup(a, "--ledger");
    argv[n++] = base_arena_strdup(a, "--");
    argv[n++] = base_arena_strdup(a, s->model_path);
    argv[n] = NULL;
    BASE_ASSERT(n < MAX_ARGS);
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
    signal(SIGPIPE, SIG_IGN); /* stderr may end before us: where ssh carries it, its loss is only a warning */
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
    agent_args(setup, NULL, &a, control_fd, front_fd, argv);
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

enum st launch_agent_words(const struct launch_setup *setup, const struct launch_hosts_entry *h, char **text, size_t *bytes, struct err *e)
{
    struct arena a = {0};
    const enum st st = base_arena_init(&a, "agent", 0, e);
    if (st)
        return st;
    char *argv[MAX_ARGS];
    agent_args(setup, h, &a, -1, -1, argv);
    FILE *f = open_memstream(text, bytes);
    for (int i = 0; f && i < h->environment.n; i++) {
        fprintf(f, "%s=%s", h->environment.list[i].name, h->environment.list[i].value);
        fputc(0, f);
    }
    for (int i = 0; f && argv[i]; i++)
        fwrite(argv[i], 1, strlen(argv[i]) + 1, f);
    const bool right = f && fclose(f) == 0;
    base_arena_release(&a);
    return right ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for an agent's arguments");
}

#define HANDED_FD 3 /* of an agent that was told --hand-over */

/* In the child: fd becomes its standard input and output. */
static void converse(pid_t parent, int fd, int handed_fd)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    dup2(fd, 0);
    dup2(fd, 1);
    if (handed_fd == HANDED_FD)
        handed_fd = dup(handed_fd); /* so that it can be closed by exec */
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    if (handed_fd >= 0)
        dup2(handed_fd, HANDED_FD);
}

enum st launch_agent_spawn_host(int fd, int handed_fd, pid_t *pid, struct err *e)
{
    char *argv[] = {"tandem", "agent", "--host", handed_fd >= 0 ? "--hand-over" : NULL, NULL};
    const pid_t parent = getpid(), child = fork();
    if (child == 0) {
        converse(parent, fd, handed_fd);
        execve("/proc/self/exe", argv, environ);
        _exit(127);
    }
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
    int in_fd, out_fd; /* the launcher; the same socket on its own host */
    int handed_fd;     /* to the launcher of this very host, for direct connections; −1 */
    int direct_fd;     /* to a launcher on another host, for what follows RT_START; −1: not yet, or never */
    struct launch_outbox out;
    bool relays; /* one of several hosts: ranks' PMI-1 and the front end go through us */
    int first, end; /* our ranks: first … end − 1 */
    int front_fd;   /* our end of rank 0's connection to the front end, where we relay it; −1 */
    struct launch_outbox front_out;
    struct launch_pulse *pulse; /* between hosts; NULL: there is no other */
    struct launch_life life[COMM_MAX_RANKS], launcher_life;
    struct rt_inbox control;
    pid_t launcher;
    uint64_t heard_ns; /* the launcher, last */
    uint64_t beat_ns, looked_ns;
    bool is_paused; /* by the launcher's user */
    struct launch_pmi *pmi; /* NULL: nobody here needs it, or we relay it */
    int pmi_fds[COMM_MAX_RANKS]; /* −1: none, or closed */
    uint8_t key[COMM_KEY_BYTES]; /* the job's, for our ranks: the launcher's, or drawn here where there is no other host */
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
    char *args[MAX_ARGS];
    int n = 0;
    args[n++] = base_arena_strdup(&arena, "tandem");
    args[n++] = base_arena_strdup(&arena, "rank");
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"--rank", rank}, {"--memory-fd", a->memory_fd}, {"--vitals-fd", a->vitals_fd}, {"--front-fd", a->v.front_fd}, {"--key-fd", key_fd}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        args[n++] = base_arena_strdup(&arena, numbers[i].name);
        args[n++] = number(&arena, numbers[i].value);
    }
    char *cpus = seat_of(&arena, a->v.seats, rank - a->first);
    if (cpus) {
        args[n++] = base_arena_strdup(&arena, "--cpus");
        args[n++] = cpus;
    }
    BASE_ASSERT(n + argc <= MAX_ARGS);
    for (int i = 1; i < argc; i++)
        args[n++] = argv[i];
    args[n] = NULL;
    int pmi[2] = {-1, -1};
    if ((a->pmi || a->relays) && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pmi)) {
        close(key_fd);
        base_arena_release(&arena);
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    }
    name_pmi(&arena, pmi[1], rank, (int)a->v.n_ranks);
    const int keep[] = {a->memory_fd, a->vitals_fd, rank == 0 ? (int)a->v.front_fd : -1, pmi[1], key_fd};
    const pid_t parent = getpid(), child = fork();
    if (child == 0)
        become(parent, keep, 5, args);
    base_arena_release(&arena);
    close(key_fd);
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
    const size_t bytes = (size_t)a->v.n_ranks * sizeof *a->vitals;
    a->vitals_fd = memfd_create("tandem-vitals", MFD_CLOEXEC);
    if (a->signal_fd < 0 || a->vitals_fd < 0 || ftruncate(a->vitals_fd, (off_t)bytes))
        return err_set(e, ST_IO, "cannot make the page of vital signs: %s", strerror(errno));
    a->vitals = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, a->vitals_fd, 0);
    if (a->vitals == MAP_FAILED)
        return err_set(e, ST_IO, "cannot map the page of vital signs: %s", strerror(errno));
    const bool is_shm = !a->v.backend || strcmp(a->v.backend, "shm") == 0;
    enum st st = ST_OK;
    if ((!is_shm || a->v.exchanges) && !a->relays)
        st = launch_pmi_create((int)a->v.n_ranks, NULL, &a->pmi, e);
    if (!st && (is_shm || strncmp(a->v.backend, "shm+", 4) == 0)) /* among the ranks of this host */
        st = comm_shm_create(a->end - a->first, (size_t)a->v.exchange_bytes, &a->memory_fd, e);
    return st;
}

/* What a dead rank left behind. */
static void take_story(struct agent *a, int rank, int status)
{
    const struct rt_vitals *v = &a->vitals[rank];
    const int failed = atomic_load(&v->failed);
    const unsigned long long step = atomic_load(&v->step);
    const char *phase = rt_phase_name((enum rt_phase)atomic_load(&v->phase));
    const int worth = WIFSIGNALED(status) ? LAUNCH_WORTH_KILLED : failed && failed != ST_PEER_LOST && failed != ST_CANCELLED ? LAUNCH_WORTH_FAILED : LAUNCH_WORTH_LOST_PEER;
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
        int r = a->first;
        while (r < a->end && a->pids[r] != dead)
            r++;
        if (r == a->end)
            continue;
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            take_story(a, r, status);
            if (a->memory_fd >= 0)
                (void)comm_shm_mark_dead(a->memory_fd, r - a->first, NULL);
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
    for (int r = a->first; r < a->end; r++) {
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
    uint64_t silent_ms = (now - a->heard_ns) / BASE_NS_PER_MS;
    if (a->relays && silent_ms >= LAUNCHER_MS && !a->is_paused) {
        err_set(&a->story, ST_PEER_LOST, "the launcher gave no sign of life for %.1f s; its ranks were killed", (double)silent_ms / 1000);
        return true;
    }
    if (a->launcher <= 0 || !launch_life_read(a->launcher, &sample))
        return false;
    const enum launch_verdict verdict = launch_life_judge(&a->launcher_life, a->heard_ns, a->is_paused, &sample, now, &silent_ms);
    if (verdict == LAUNCH_WELL || a->is_paused)
        return false;
    err_set(&a->story, ST_PEER_LOST, "the launcher (pid %d) %s gave no sign of life for %.1f s; its ranks were killed", (int)a->launcher,
            verdict == LAUNCH_STOPPED ? "was stopped and" : "is frozen: it", (double)silent_ms / 1000);
    return true;
}

/* ---- one of several hosts: what passes through -------------------------------------------------------------------------------------------------------------- */

#define FRONT_PIECE 65536
#define FRONT_LIMIT (4u << 20) /* so much may wait for the launcher before rank 0 has to */

/* A frame from the launcher that is not for us. */
static void take_relayed(struct agent *a, enum rt_frame_kind kind, const void *payload, size_t bytes)
{
    uint32_t head[2];
    if (kind == RT_FRONT && a->front_fd >= 0) {
        if (bytes == 0)
            shutdown(a->front_fd, SHUT_WR);
        else
            (void)launch_outbox_append(&a->front_out, payload, bytes, NULL);
    } else if (kind == RT_PMI && bytes >= sizeof head[0]) {
        memcpy(head, payload, sizeof head[0]);
        if (head[0] < COMM_MAX_RANKS && a->pmi_fds[head[0]] >= 0) /* answers are short: a socket that has no room for one is not read */
            (void)!send(a->pmi_fds[head[0]], (const char *)payload + sizeof head[0], bytes - sizeof head[0], MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

static void relay_pmi(struct agent *a, int r)
{
    unsigned char bytes[4096];
    const uint32_t rank = (uint32_t)r;
    const ssize_t n = recv(a->pmi_fds[r], bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    (void)launch_outbox_frame(&a->out, RT_PMI, &rank, sizeof rank, bytes, n > 0 ? (size_t)n : 0, NULL);
    if (n <= 0) {
        close(a->pmi_fds[r]);
        a->pmi_fds[r] = -1;
    }
}

static void relay_front(struct agent *a)
{
    static unsigned char bytes[FRONT_PIECE];
    const ssize_t n = recv(a->front_fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    (void)launch_outbox_frame(&a->out, RT_FRONT, NULL, 0, bytes, n > 0 ? (size_t)n : 0, NULL);
    if (n <= 0) {
        close(a->front_fd);
        a->front_fd = -1;
    }
}

/* What the packets between hosts have told. True: one is lost; the launcher says how the job ended, so this is no story of our own. */
static bool take_news(struct agent *a, struct launch_pulse *pulse)
{
    struct launch_pulse_news news;
    bool is_lost = false;
    while (pulse && launch_pulse_next(pulse, &news)) {
        const uint32_t host = (uint32_t)news.host;
        (void)launch_outbox_frame(&a->out, news.is_lost ? RT_LOST : RT_NOTE, &host, news.is_lost ? sizeof host : 0, news.text, strlen(news.text), NULL);
        is_lost |= news.is_lost;
    }
    return is_lost;
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
        if (a->relays)
            take_relayed(a, kind, payload, bytes);
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
    for (int r = a->first; r < a->end; r++)
        if (a->pids[r] > 0)
            kill(a->pids[r], SIGKILL);
    for (int r = a->first; r < a->end; r++)
        if (a->pids[r] > 0)
            waitpid(a->pids[r], NULL, 0);
    kill_adopted(); /* whoever is left goes to init, dead */
}

/* Twice a second; never waits for a launcher that does not listen. */
static void beat(struct agent *a, uint64_t now)
{
    if (now - a->beat_ns < LAUNCH_BEAT_MS * BASE_NS_PER_MS)
        return;
    a->beat_ns = now;
    if (launch_outbox_waiting(&a->out) == 0) /* else something is on its way that tells as much */
        (void)launch_outbox_frame(&a->out, RT_BEAT, NULL, 0, NULL, 0, NULL);
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
    for (int r = a->first; r < a->end; r++) {
        struct err e = {""};
        if (!p[r].revents)
            continue;
        if (a->relays) {
            relay_pmi(a, r);
            continue;
        }
        const enum st st = launch_pmi_read(a->pmi, r, p[r].fd, &e);
        if (st)
            LOG_WARNING("agent", "PMI of rank %d: %s", r, e.text);
        else if (!(p[r].revents & POLLHUP) || launch_pmi_query(a->pmi, r) < LAUNCH_PMI_FINALIZED)
            continue;
        close(a->pmi_fds[r]);
        a->pmi_fds[r] = -1;
    }
    for (int r = a->first; r < a->end && a->pmi; r++)
        if (a->pmi_fds[r] >= 0)
            (void)launch_pmi_write(a->pmi, r, a->pmi_fds[r]);
}

/* p [n_ranks] */
static void poll_for_pmi(const struct agent *a, struct pollfd *p)
{
    for (int r = 0; r < (int)a->v.n_ranks; r++) {
        const void *bytes;
        p[r] = (struct pollfd){.fd = a->pmi_fds[r], .events = POLLIN};
        if (!a->pmi)
            continue;
        const enum launch_pmi_state state = launch_pmi_query(a->pmi, r);
        if (state == LAUNCH_PMI_GONE || state == LAUNCH_PMI_BROKEN)
            p[r].fd = -1;
        else if (launch_pmi_pending(a->pmi, r, &bytes))
            p[r].events |= POLLOUT;
    }
}

/* Until all ranks have left in peace (0), one ended badly or the launcher is gone (1). */
static int watch(struct agent *a)
{
    uint64_t give_up = BASE_NO_DEADLINE;
    a->looked_ns = base_now_ns(base_clock_real());
    forget_silence(a, a->looked_ns);
    while (a->n_alive > 0) {
        enum { SIGNAL, LAUNCHER_IN, LAUNCHER_OUT, FRONT_IN, FRONT_OUT, PULSE, N_OWN };
        struct pollfd p[N_OWN + COMM_MAX_RANKS] = {
            [SIGNAL] = {.fd = a->signal_fd, .events = POLLIN},
            [LAUNCHER_IN] = {.fd = a->in_fd, .events = POLLIN},
            [LAUNCHER_OUT] = {.fd = launch_outbox_waiting(&a->out) ? a->out_fd : -1, .events = POLLOUT},
            [FRONT_IN] = {.fd = launch_outbox_waiting(&a->out) < FRONT_LIMIT ? a->front_fd : -1, .events = POLLIN},
            [FRONT_OUT] = {.fd = launch_outbox_waiting(&a->front_out) ? a->front_fd : -1, .events = POLLOUT},
            [PULSE] = {.fd = a->pulse ? launch_pulse_fd(a->pulse) : -1, .events = POLLIN},
        };
        poll_for_pmi(a, p + N_OWN);
        uint64_t now = base_now_ns(base_clock_real());
        if (now >= give_up)
            break;
        const uint64_t left_ms = give_up == BASE_NO_DEADLINE ? LAUNCH_LOOK_MS : (give_up - now) / BASE_NS_PER_MS + 1;
        if (poll(p, N_OWN + (nfds_t)a->v.n_ranks, left_ms < LAUNCH_LOOK_MS ? (int)left_ms : LAUNCH_LOOK_MS) < 0 && errno != EINTR)
            return 1;
        now = base_now_ns(base_clock_real());
        if (p[FRONT_IN].revents) /* before the deaths: what rank 0 said last comes first */
            relay_front(a);
        if (p[SIGNAL].revents) {
            struct signalfd_siginfo info;
            if (read(a->signal_fd, &info, sizeof info) == sizeof info && info.ssi_signo != SIGCHLD)
                return 1; /* told to go */
            if (reap(a) && give_up == BASE_NO_DEADLINE)
                give_up = now + GRACE_MS * BASE_NS_PER_MS;
            if (a->story_worth == LAUNCH_WORTH_KILLED)
                return 1; /* no story is better */
        }
        if (p[LAUNCHER_IN].revents && !listen_launcher(a, now))
            return 1;
        if (p[PULSE].revents && take_news(a, a->pulse)) {
            a->story_worth = LAUNCH_WORTH_KILLED;
            return 1;
        }
        serve_pmi(a, p + N_OWN);
        beat(a, now);
        if (a->front_fd >= 0)
            (void)launch_outbox_flush(&a->front_out, a->front_fd);
        (void)launch_outbox_flush(&a->out, a->out_fd);
        if (now - a->looked_ns >= LAUNCH_LOOK_MS * BASE_NS_PER_MS || p[SIGNAL].revents) {
            if (now - a->looked_ns > 4 * LAUNCH_LOOK_MS * BASE_NS_PER_MS)
                forget_silence(a, now);
            a->looked_ns = now;
            if (find_frozen(a, now) || is_launcher_silent(a, now)) {
                a->story_worth = LAUNCH_WORTH_KILLED;
                return 1;
            }
        }
    }
    return a->story_worth ? 1 : 0;
}

/* The last words, and whatever of the ranks' still waits: for a moment, since the launcher may be gone. */
static void say_last(struct agent *a)
{
    while (a->front_fd >= 0 && launch_outbox_waiting(&a->out) < 64 * FRONT_LIMIT) {
        struct pollfd p = {.fd = a->front_fd, .events = POLLIN};
        if (poll(&p, 1, 0) <= 0)
            break;
        relay_front(a);
    }
    if (a->story.text[0]) {
        const uint32_t worth = a->story_worth ? (uint32_t)a->story_worth : LAUNCH_WORTH_FAILED;
        (void)launch_outbox_frame(&a->out, RT_STORY, &worth, sizeof worth, a->story.text, strlen(a->story.text), NULL);
    } else if (a->relays && a->n_alive == 0)
        (void)launch_outbox_frame(&a->out, RT_LEFT, NULL, 0, NULL, 0, NULL);
    enum st st;
    const uint64_t until = base_now_ns(base_clock_real()) + (a->story_worth || a->story.text[0] ? LAST_MS : PEACE_MS) * BASE_NS_PER_MS;
    while ((st = launch_outbox_flush(&a->out, a->out_fd)) == ST_AGAIN && base_now_ns(base_clock_real()) < until) {
        struct pollfd p = {.fd = a->out_fd, .events = POLLOUT};
        (void)poll(&p, 1, 20);
    }
    if (st && a->story.text[0])
        LOG_ERR("agent", "%s", a->story.text); /* started by hand, or the launcher is gone */
}

/* Ranks from first to end − 1 of those that v tells, until all is over. */
static int lead(struct agent *a, int argc, char **argv)
{
    struct err e = {""};
    enum st st = prepare(a, &e);
    for (int r = a->first; r < a->end && !st; r++)
        st = start_rank(a, r, argc, argv, &e);
    if (a->v.front_fd >= 0)
        close((int)a->v.front_fd);
    int status = 1;
    if (!st && a->pulse)
        launch_pulse_watch(a->pulse, a->vitals, (int)a->v.n_ranks, !a->v.shares);
    if (!st)
        status = watch(a);
    else
        a->story = e;
    say_last(a);
    kill_all(a);
    launch_pulse_stop(a->pulse, status ? LAUNCH_BEAT_FAILED : LAUNCH_BEAT_LEFT);
    explicit_bzero(a->key, sizeof a->key);
    rt_inbox_release(&a->control);
    launch_outbox_release(&a->out);
    launch_outbox_release(&a->front_out);
    launch_pmi_destroy(a->pmi);
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
    a->in_fd = a->out_fd = (int)a->v.control_fd;
    a->end = (int)a->v.n_ranks;
    a->launcher = a->in_fd >= 0 ? getppid() : 0;
    rt_inbox_init(&a->control, a->in_fd);
    return lead(a, argc, argv);
}

/* ---- of one of several hosts -------------------------------------------------------------------------------------------------------------------------------- */

/* Who sits where is decided here: hosts may differ. Seats as text, or NULL where ranks are not bound. */
static enum st take_seats(struct agent *a, bool *is_crowded, struct err *e)
{
    struct topo_place_options options = {.n_ranks = a->end - a->first, .n_threads = (int)a->v.n_threads, .bind = TOPO_BIND_AUTO};
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
        a->v.seats = seats_text(p);
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
        setenv(name, is + 1, 0); /* what the host's owner set stays */
    }
    argv[n] = NULL;
    *argc = n;
    const char *model;
    enum st st = launch_rank_options_parse("agent", n, argv, &a->v, &model, e);
    if (st)
        return st;
    a->first = (int)a->v.first_rank;
    a->end = a->first + (int)a->v.host_ranks;
    if (a->end > (int)a->v.n_ranks || a->v.host_ranks < 1)
        return err_set(e, ST_INVALID, "ranks %d to %d of %d", a->first, a->end - 1, (int)a->v.n_ranks);
    a->relays = true;
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
    if (a->first != 0)
        return ST_OK;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, front))
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    a->v.front_fd = front[1];
    a->front_fd = front[0];
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
    const uint64_t until = base_now_ns(base_clock_real()) + LAST_MS * BASE_NS_PER_MS;
    while (launch_outbox_flush(&a->out, a->out_fd) == ST_AGAIN && base_now_ns(base_clock_real()) < until)
        usleep(1000);
    launch_outbox_release(&a->out);
    rt_inbox_release(&a->control);
    close(a->in_fd);
    close(a->out_fd);
    a->in_fd = a->out_fd = a->direct_fd;
    rt_inbox_init(&a->control, a->in_fd);
    prctl(PR_SET_PDEATHSIG, 0);
}

/* Standard input and output are the conversation with the launcher, be it by ssh or not; whatever else would go there goes to stderr. */
static int lead_host(struct agent *a)
{
    struct err e = {""};
    a->in_fd = fcntl(0, F_DUPFD_CLOEXEC, HANDED_FD + 1);
    a->out_fd = fcntl(1, F_DUPFD_CLOEXEC, HANDED_FD + 1);
    if (a->handed_fd >= 0)
        (void)fcntl(a->handed_fd, F_SETFD, FD_CLOEXEC);
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, 0);
    dup2(2, 1);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rt_inbox_init(&a->control, a->in_fd);
    char *host = NULL;
    enum st st = launch_host_describe(&host, &e);
    if (!st)
        st = launch_outbox_frame(&a->out, RT_HOST, host, strlen(host), NULL, 0, &e);
    free(host);
    struct launch_meeting *meeting = NULL;
    if (!st)
        st = launch_meeting_open(&a->out, &meeting, &e);
    static char start[65536];
    static char *argv[MAX_ARGS];
    int argc = 0;
    size_t start_bytes = 0;
    while (!st && (!start_bytes || (a->handed_fd < 0 && a->direct_fd < 0 && launch_meeting_has_control(meeting)))) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        (void)launch_outbox_flush(&a->out, a->out_fd);
        st = rt_inbox_next(&a->control, 0, &kind, &payload, &bytes, &e);
        if (st == ST_AGAIN)
            st = launch_meeting_step(meeting, a->in_fd, LAUNCH_LOOK_MS, &a->out, &e);
        else if (!st && kind == RT_START && bytes < sizeof start) {
            memcpy(start, payload, bytes);
            start_bytes = bytes;
        } else if (!st && kind == RT_MODEL)
            st = launch_model_tell(payload, bytes, &a->out, &e);
        else if (!st && kind == RT_SEATS)
            st = launch_seating_tell(payload, bytes, &a->out, &e);
        else if (!st)
            st = launch_meeting_frame(meeting, kind, payload, bytes, &a->out, &e);
        if ((!st || st == ST_AGAIN) && take_news(a, launch_meeting_pulse(meeting)))
            st = ST_CANCELLED;
        if (!st)
            st = take_direct(a, meeting, &e);
        beat(a, base_now_ns(base_clock_real()));
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
        a->story = e;
        say_last(a);
    }
    return 1;
}

int cmd_agent(int argc, char **argv)
{
    struct agent a = {.memory_fd = -1, .vitals_fd = -1, .signal_fd = -1, .front_fd = -1, .handed_fd = -1, .direct_fd = -1};
    for (int r = 0; r < COMM_MAX_RANKS; r++)
        a.pmi_fds[r] = -1;
    base_log_init(NULL);
    const bool hands_over = argc == 3 && strcmp(argv[2], "--hand-over") == 0;
    if (hands_over)
        a.handed_fd = HANDED_FD;
    return (argc == 2 || hands_over) && strcmp(argv[1], "--host") == 0 ? lead_host(&a) : lead_alone(&a, argc, argv);
}
