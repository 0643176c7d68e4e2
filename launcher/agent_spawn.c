/* How an agent is started, and what it is told: the launcher's side of agent.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "launcher/agent_priv.h"
#include "launcher/hosts.h"

char *launch_agent_seats(const struct topo_placement *p)
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

char *launch_agent_number(struct arena *a, int64_t n) { return base_arena_printf(a, "%" PRId64, n); }

/* h: of several hosts, one; NULL: this host alone, whose agent inherits its descriptors. */
static void agent_args(const struct launch_setup *s, const struct launch_hosts_entry *h, struct arena *a, int control_fd, int front_fd, char **argv)
{
    const struct rt_settings *t = &s->settings;
    char *seats = s->placement && s->placement->bound ? launch_agent_seats(s->placement) : NULL, link[128];
    if (s->has_link)
        comm_link_print(&s->link, link);
    const char *backend = s->backend_name ? s->backend_name : h ? s->hosts->backend : NULL;
    int n = 0;
    const struct {
        const char *name;
        char *value;
    } pairs[] = {
        {"--control-fd", h ? NULL : launch_agent_number(a, control_fd)},
        {"--front-fd", h ? NULL : launch_agent_number(a, front_fd)},
        {"--seats", seats ? base_arena_strdup(a, seats) : NULL},
        {"--first-rank", h ? launch_agent_number(a, h->first_rank) : NULL},
        {"--host-ranks", h ? launch_agent_number(a, h->n_ranks) : NULL},
        {"--address", h && h->address[0] ? base_arena_strdup(a, h->address) : NULL},
        {"--pair", h && s->hosts->pair[0] ? base_arena_strdup(a, s->hosts->pair) : NULL},
        {"--streams", h && h->streams[0] ? base_arena_strdup(a, h->streams) : NULL},
        {"--port", s->port ? launch_agent_number(a, s->port) : NULL},
        {"--bind", h && s->bind ? base_arena_strdup(a, s->bind) : NULL},
        {"--exchange-bytes", launch_agent_number(a, (int64_t)s->exchange_bytes)},
        {"--ranks", launch_agent_number(a, s->n_ranks)},
        {"--threads", launch_agent_number(a, h ? h->n_threads : t->n_threads)},
        {"--spin-us", launch_agent_number(a, t->spin_us)},
        {"--chunk", launch_agent_number(a, t->chunk)},
        {"--overlap", launch_agent_number(a, t->overlap_tokens)},
        {"--scatter", launch_agent_number(a, t->scatter_bytes)},
        {"--ctx", launch_agent_number(a, t->context)},
        {"--sequences", launch_agent_number(a, t->max_sequences)},
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
    BASE_ASSERT(n < LAUNCH_AGENT_MAX_ARGS);
    free(seats);
}

void launch_agent_become(pid_t parent, const int *keep, int n_keep, char **argv)
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
    char *argv[LAUNCH_AGENT_MAX_ARGS];
    agent_args(setup, NULL, &a, control_fd, front_fd, argv);
    const int keep[] = {control_fd, front_fd};
    const pid_t parent = getpid(), child = fork();
    if (child == 0) {
        setsid(); /* Ctrl-C is the launcher's */
        launch_agent_become(parent, keep, 2, argv);
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
    char *argv[LAUNCH_AGENT_MAX_ARGS];
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
    if (handed_fd == LAUNCH_AGENT_HANDED_FD)
        handed_fd = dup(handed_fd); /* so that it can be closed by exec */
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    if (handed_fd >= 0)
        dup2(handed_fd, LAUNCH_AGENT_HANDED_FD);
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
