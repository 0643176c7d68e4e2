/* Hidden commands about other hosts. host-check: starts host-info on each, and shows what came back. host-kill: the second call to one (launcher/second_call.h). bundle-check: for hosts without b2sum (launcher/remote_start.sh).
 * bundle-make: what `make bundle ARCH=…` calls. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/build_id.h"
#include "base/clock.h"
#include "launcher/bundle.h"
#include "launcher/commands.h"
#include "launcher/remote.h"
#include "topologies/machine.h"

enum { MAX_HOSTS = 16 };
#define ANSWER_MS 5000
#define RESOLVE_MS 2000

/* ---- on the other host --------------------------------------------------------------------------------------------------------------------------------- */

struct info_values {
    bool echo;
};

static const struct option info_options[] = {
    {"--echo", NULL, OPT_FLAG, offsetof(struct info_values, echo), NULL, "then sends back whatever comes on stdin, until its end", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

static int n_cpus(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

int cmd_host_info(int argc, char **argv)
{
    struct info_values v = {false};
    const struct option_group group = {"Options", info_options, &v};
    const char *words;
    int status;
    if (launch_parse("host-info", "tandem host-info [--echo]", "A line of JSON about this host.", &group, 1, argc, argv, &words, 1, &status))
        return status;
    struct utsname u = {.nodename = ""};
    struct err e = {""};
    char what[256];
    uint64_t bytes = 0;
    (void)uname(&u);
    if (topo_memory_available(NULL, &bytes, what, &e))
        return launch_fail("host-info", &e);
    printf("{\"host\": \"%s\", \"machine\": \"%s\", \"build\": \"%s\", \"cpus\": %d, \"memory_available\": %llu, \"pid\": %d}\n", u.nodename, u.machine, tandem_build_id, n_cpus(),
           (unsigned long long)bytes, (int)getpid());
    if (launch_flush_stdout(&e))
        return launch_fail("host-info", &e);
    char data[4096];
    for (ssize_t n; v.echo && (n = read(0, data, sizeof data)) > 0;)
        if (fwrite(data, 1, (size_t)n, stdout) != (size_t)n || launch_flush_stdout(&e))
            return launch_fail("host-info", &e);
    return 0;
}

int cmd_bundle_check(int argc, char **argv)
{
    struct err e = {""};
    if (argc != 3) {
        err_set(&e, ST_INVALID, "wants a folder and a hash");
        return launch_misuse("bundle-check", &e);
    }
    return launch_bundle_check(argv[1], argv[2], &e) ? launch_fail("bundle-check", &e) : 0;
}

/* Of another machine's program: the archive goes to stdout (`make bundle`). */
int cmd_bundle_make(int argc, char **argv)
{
    enum { PIECE = 256 << 10 };
    static unsigned char data[PIECE];
    struct err e = {""};
    if (argc != 3) {
        err_set(&e, ST_INVALID, "wants a program, and the folders of its libraries with colons between");
        return launch_misuse("bundle-make", &e);
    }
    const struct launch_bundle_options o = {.program = argv[1], .folders = argv[2]};
    struct launch_bundle *b = NULL;
    enum st st = launch_bundle_create(&o, &b, &e);
    for (uint64_t at = 0; !st && at < launch_bundle_bytes(b); at += PIECE) {
        const uint64_t left = launch_bundle_bytes(b) - at;
        const size_t n = left < PIECE ? (size_t)left : PIECE;
        st = launch_bundle_read(b, at, data, n, &e);
        if (!st && fwrite(data, 1, n, stdout) != n)
            st = launch_flush_stdout(&e);
    }
    if (!st)
        launch_bundle_print(b, stderr);
    launch_bundle_destroy(b);
    if (!st)
        st = launch_flush_stdout(&e);
    return st ? launch_fail("bundle-make", &e) : 0;
}

/* ---- on this one --------------------------------------------------------------------------------------------------------------------------------------- */

struct check_values {
    const char *hosts, *ssh, *folder, *word;
    int64_t connect_ms, hold_ms;
    bool bundle, mpi;
};

static const struct option check_options[] = {
    {"--hosts", NULL, OPT_STR, offsetof(struct check_values, hosts), "A,B...", "hosts: names, addresses, user@name", 0, 0, NULL},
    {"--ssh", NULL, OPT_STR, offsetof(struct check_values, ssh), "PROGRAM", "called instead of ssh (default TANDEM_SSH)", 0, 0, NULL},
    {"--folder", NULL, OPT_STR, offsetof(struct check_values, folder), "DIR", "where bundles lie there (default TANDEM_REMOTE_DIR, else /var/tmp/tandem-UID)", 0, 0, NULL},
    {"--connect-ms", NULL, OPT_INT, offsetof(struct check_values, connect_ms), "N", "until the other side's first word (default 10000)", 1, 600000, NULL},
    {"--echo", NULL, OPT_STR, offsetof(struct check_values, word), "TEXT", "to be sent there and back", 0, 0, NULL},
    {"--hold-ms", NULL, OPT_INT, offsetof(struct check_values, hold_ms), "N", "keep the conversation open for so long, then look whether it still is", 0, 600000, NULL},
    {"--bundle", NULL, OPT_FLAG, offsetof(struct check_values, bundle), NULL, "show what would be sent, and send nothing", 0, 0, NULL},
    {"--mpi", NULL, OPT_FLAG, offsetof(struct check_values, mpi), NULL, "send MPICH, too", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

static enum st split_hosts(const char *text, struct launch_target *hosts, int *n, struct err *e)
{
    *n = 0;
    for (const char *at = text;;) {
        const size_t bytes = strcspn(at, ",");
        char *name = strndup(at, bytes);
        enum st st = *n == MAX_HOSTS ? err_set(e, ST_INVALID, "--hosts: more than %d", MAX_HOSTS) : name ? launch_target_parse(name, &hosts[*n], e) : ST_NO_MEMORY;
        free(name);
        if (st)
            return st;
        (*n)++;
        if (!at[bytes])
            return ST_OK;
        at += bytes + 1;
    }
}

/* A line that the other side writes. */
static enum st read_line(const struct launch_remote *r, char *line, size_t bytes, struct err *e)
{
    const char *host = launch_remote_target(r)->typed;
    size_t n = 0;
    while (n < bytes - 1) {
        struct pollfd p = {.fd = launch_remote_fd(r), .events = POLLIN};
        if (poll(&p, 1, ANSWER_MS) <= 0)
            return err_set(e, ST_TIMEOUT, "%s: no answer", host);
        const ssize_t got = read(p.fd, line + n, 1);
        if (got <= 0)
            return err_set(e, ST_PEER_LOST, "%s: ended the conversation", host);
        if (line[n] == '\n')
            break;
        n++;
    }
    line[n] = 0;
    return ST_OK;
}

static enum st talk(struct launch_remote *r, const struct check_values *v, struct err *e)
{
    char line[1024];
    enum st st = launch_remote_wait(r, -1, e);
    if (!st)
        st = read_line(r, line, sizeof line, e);
    if (st)
        return st;
    printf("%s: pushed %llu: %s\n", launch_remote_target(r)->typed, (unsigned long long)launch_remote_pushed_bytes(r), line);
    if (v->word) {
        char text[1024];
        const int n = snprintf(text, sizeof text, "%s\n", v->word);
        if (n >= (int)sizeof text || send(launch_remote_fd(r), text, (size_t)n, MSG_NOSIGNAL) != n)
            return err_set(e, ST_IO, "%s: cannot write to it", launch_remote_target(r)->typed);
        st = read_line(r, line, sizeof line, e);
        if (!st)
            printf("%s: echo: %s\n", launch_remote_target(r)->typed, line);
    }
    if (!st && v->hold_ms) {
        struct pollfd p = {.fd = launch_remote_fd(r), .events = POLLIN};
        int status;
        char words[400];
        if (poll(&p, 1, (int)v->hold_ms) == 0)
            printf("%s: held\n", launch_remote_target(r)->typed);
        else {
            bool ended = false;
            for (int i = 0; i < 50 && !ended; i++) {
                ended = launch_remote_has_ended(r, &status);
                usleep(10000);
            }
            launch_remote_last_words(r, words, sizeof words);
            printf("%s: ended%s; last words: %s\n", launch_remote_target(r)->typed, ended ? " with its program" : "", words);
        }
    }
    return st;
}

/* What came of a host whose conversation stays open although it shall end: the second call. */
static void end(struct launch_remote *r, const struct launch_remote_options *o)
{
    const pid_t pid = launch_remote_agent_pid(r);
    char nonce[64];
    int status;
    bool was_there = false, left = false;
    struct err e = {""};
    snprintf(nonce, sizeof nonce, "%s", launch_remote_nonce(r));
    shutdown(launch_remote_fd(r), SHUT_WR);
    for (int i = 0; i < 100 && !left; i++) {
        left = launch_remote_has_ended(r, &status);
        if (!left)
            usleep(10000);
    }
    if (!left && launch_remote_kill(o, pid, nonce, &was_there, &e))
        fprintf(stderr, "tandem host-check: %s\n", e.text);
    else if (!left)
        printf("%s: %s\n", launch_remote_target(r)->typed, was_there ? "did not leave and was killed" : "is gone, but its ssh is not");
    launch_remote_stop(r, 200);
}

int cmd_host_check(int argc, char **argv)
{
    struct check_values v = {.connect_ms = 0};
    const struct option_group group = {"Options", check_options, &v};
    const char *rest;
    int status, n = 0;
    struct err e = {""};
    struct launch_target hosts[MAX_HOSTS];
    if (launch_parse("host-check", "tandem host-check --hosts A,B", "Starts a small program on each host by ssh and shows what it says.", &group, 1, argc, argv, &rest, 1, &status))
        return status;
    if (!v.hosts && !v.bundle)
        err_set(&e, ST_INVALID, "which --hosts?");
    if (e.text[0] || (v.hosts && split_hosts(v.hosts, hosts, &n, &e)))
        return launch_misuse("host-check", &e);
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct launch_bundles b;
    const uint64_t began = base_now_ns(base_clock_real());
    if (launch_bundles_create(v.mpi, &b, &e))
        return launch_fail("host-check", &e);
    if (v.bundle) {
        for (int i = 0; i < b.n; i++)
            launch_bundle_print(b.list[i], stdout);
        printf("in %.1f ms\n", (double)(base_now_ns(base_clock_real()) - began) / 1e6);
    }
    const char *const words[] = {"host-info", v.word || v.hold_ms ? "--echo" : NULL, NULL};
    struct launch_remote *remotes[MAX_HOSTS] = {NULL};
    struct launch_remote_options options[MAX_HOSTS];
    status = 0;
    for (int i = 0; i < n && !v.bundle; i++) {
        options[i] = (struct launch_remote_options){.host = &hosts[i], .ssh = v.ssh, .words = words, .folder = v.folder, .connect_ms = (int)v.connect_ms};
        if (launch_target_is_local(&hosts[i], RESOLVE_MS))
            printf("%s: this host\n", hosts[i].typed);
        else if (launch_remote_start(&options[i], &b, &remotes[i], &e))
            status = launch_fail("host-check", &e);
    }
    for (int i = 0; i < n; i++) {
        if (!remotes[i])
            continue;
        if (talk(remotes[i], &v, &e) == ST_OK) {
            end(remotes[i], &options[i]);
            continue;
        }
        status = launch_fail("host-check", &e);
        launch_remote_stop(remotes[i], 0);
    }
    launch_bundles_release(&b);
    if (launch_flush_stdout(&e))
        status = launch_fail("host-check", &e);
    return status;
}

struct kill_values {
    int64_t pid;
    const char *nonce, *ssh;
};

static const struct option kill_options[] = {
    {"--pid", NULL, OPT_INT, offsetof(struct kill_values, pid), "PID", "of the agent there", 1, INT32_MAX, NULL},
    {"--nonce", NULL, OPT_STR, offsetof(struct kill_values, nonce), "TEXT", "that its environment has", 0, 0, NULL},
    {"--ssh", NULL, OPT_STR, offsetof(struct kill_values, ssh), "PROGRAM", "instead of ssh, called like it (or TANDEM_SSH)", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

int cmd_host_kill(int argc, char **argv)
{
    struct kill_values v = {.pid = 0};
    const struct option_group group = {"Options", kill_options, &v};
    const char *typed;
    int status;
    bool was_there;
    struct launch_target host;
    struct err e = {""};
    if (launch_parse("host-kill", "tandem host-kill --pid PID --nonce TEXT HOST", "Kills an agent on another host.", &group, 1, argc, argv, &typed, 0, &status))
        return status;
    if (!v.pid || !v.nonce)
        err_set(&e, ST_INVALID, "wants --pid and --nonce");
    if (e.text[0] || launch_target_parse(typed, &host, &e))
        return launch_misuse("host-kill", &e);
    const struct launch_remote_options o = {.host = &host, .ssh = v.ssh};
    return launch_remote_kill(&o, (pid_t)v.pid, v.nonce, &was_there, &e) ? launch_fail("host-kill", &e) : 0;
}
