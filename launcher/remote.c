#include "launcher/remote.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "launcher/bundle.h"
#include "launcher/elf.h"

#define CONNECT_MS 10000
#define LOOK_MS 15000     /* the other side looks at its copy of the bundle: some 50 MB from a slow disk */
#define STEP_MS 30000     /* it unpacks it, to a slow disk */
#define STALL_MS 15000    /* a push of which nothing is taken for so long */
#define LAST_WORDS_MS 500 /* after the conversation's end, ssh's stderr may still come */
#define TERM_MS 100       /* between a polite signal and SIGKILL */
#define NOISE_BYTES (1u << 20)
#define SPEAK_NS BASE_NS_PER_S /* a push that takes no longer is not told */

enum { LINE = 2048, WORDS = 4, WORD_BYTES = 240, CHUNK = 128 << 10, MAX_ARGS = 32 };

enum phase { CONNECTING, LOOKING, PUSHING, UNPACKING, DONE };

struct launch_remote {
    struct launch_target host;
    char *program, *script;
    size_t script_bytes;
    int port, connect_ms;
    bool kills; /* not a start: the other call */
    bool was_there;
    const struct launch_bundles *bundles;
    const struct launch_bundle *bundle; /* of its machine, once that is known */
    char nonce[33];

    pthread_t thread;
    int fd, err_fd, stop_fd, ready_fd;
    pid_t pid;

    /* the thread's alone while it starts */
    enum phase phase;
    uint64_t deadline_ns;
    char line[LINE]; /* of the other side's stdout, so far */
    size_t n_line, noise_bytes;
    char err_line[LINE];
    size_t n_err;
    uint64_t sent, push_began_ns;
    unsigned char *chunk; /* what is being sent */
    size_t chunk_at, chunk_bytes;
    size_t script_at;
    pid_t agent_pid;
    bool speaks; /* this push has been told of */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_decided, has_ended, has_err_ended;
    int status;
    enum st st;
    struct err err;
    char words[WORDS][WORD_BYTES]; /* last lines of stderr, and of stdout before it was ours */
    unsigned n_words;
};

static uint64_t now_ns(void) { return base_now_ns(base_clock_real()); }

int launch_remote_ready_fd(const struct launch_remote *r) { return r->ready_fd; }
int launch_remote_fd(const struct launch_remote *r) { return r->fd; }
pid_t launch_remote_agent_pid(const struct launch_remote *r) { return r->agent_pid; }
const char *launch_remote_nonce(const struct launch_remote *r) { return r->nonce; }
uint64_t launch_remote_pushed_bytes(const struct launch_remote *r) { return r->sent; }
const struct launch_target *launch_remote_target(const struct launch_remote *r) { return &r->host; }

/* ---- what is sent first ------------------------------------------------------------------------------------------------------------------------------- */

/* For /bin/sh. */
static void quote(FILE *f, const char *text)
{
    fputc('\'', f);
    for (; *text; text++)
        if (*text == '\'')
            fputs("'\\''", f);
        else
            fputc(*text, f);
    fputc('\'', f);
}

static void assign(FILE *f, const char *name, const char *value)
{
    fprintf(f, "%s=", name);
    quote(f, value);
    fputc('\n', f);
}

static enum st write_script(struct launch_remote *r, const struct launch_remote_options *o, pid_t kill_pid, const char *kill_nonce, struct err *e)
{
    FILE *f = open_memstream(&r->script, &r->script_bytes);
    const char *folder = o->folder ? o->folder : getenv("TANDEM_REMOTE_DIR");
    char number[32];
    if (!f)
        return err_set(e, ST_NO_MEMORY, "no memory");
    assign(f, "nonce", r->nonce);
    assign(f, "mode", r->kills ? "kill" : "start");
    if (r->kills) {
        snprintf(number, sizeof number, "%ld", (long)kill_pid);
        assign(f, "pid", number);
        assign(f, "of", kill_nonce);
    } else {
        fputs("bundles='", f);
        for (int i = 0; i < r->bundles->n; i++)
            fprintf(f, "%s%s:%s:%" PRIu64, i ? " " : "", launch_bundle_machine(r->bundles->list[i]), launch_bundle_hash(r->bundles->list[i]), launch_bundle_bytes(r->bundles->list[i]));
        fputs("'\n", f);
        assign(f, "folder", folder ? folder : "");
        fputs("set --", f);
        for (int i = 0; o->words[i]; i++) {
            fputc(' ', f);
            quote(f, o->words[i]);
        }
        fputc('\n', f);
        for (int i = 0; o->environment && o->environment[i]; i++) {
            fputs("export ", f);
            quote(f, o->environment[i]);
            fputc('\n', f);
        }
    }
    fputs(launch_remote_script, f);
    return fclose(f) ? err_set(e, ST_NO_MEMORY, "no memory") : ST_OK;
}

/* ---- the program on this side --------------------------------------------------------------------------------------------------------------------------- */

/* PROGRAM [options] HOST WORD…: the words are joined by blanks and read by a shell there. By the user's own, if it is ssh, whichever that is: so they say only that /bin/sh shall run
 * what comes first on stdin. */
static int arguments(const struct launch_remote *r, char text[4][64], char **argv)
{
    int n = 0;
    argv[n++] = r->program;
    static char *const fixed[] = {"-T", "-x", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ClearAllForwardings=yes"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        argv[n++] = fixed[i];
    snprintf(text[0], sizeof text[0], "ConnectTimeout=%d", r->connect_ms > 2000 ? r->connect_ms / 1250 : 1); /* ssh's own sentence is better than ours: it comes first */
    argv[n++] = "-o";
    argv[n++] = text[0];
    if (r->port) {
        snprintf(text[1], sizeof text[1], "%d", r->port);
        argv[n++] = "-p";
        argv[n++] = text[1];
    }
    if (r->host.user[0]) {
        argv[n++] = "-l";
        argv[n++] = (char *)(uintptr_t)r->host.user;
    }
    argv[n++] = (char *)(uintptr_t)r->host.name;
    argv[n++] = "exec";
    argv[n++] = "/bin/sh";
    argv[n++] = "-c";
    snprintf(text[2], sizeof text[2], "'eval \"$(head -c %zu)\"'", r->script_bytes);
    argv[n++] = text[2];
    argv[n] = NULL;
    return n;
}

/* Between fork and exec. The thread that started us outlives us, or we die with it. */
static void become(pid_t parent, int in_out, int err, int said, char **argv)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid(); /* Ctrl-C is the launcher's; and a group that can be killed whole */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    dup2(in_out, 0);
    dup2(in_out, 1);
    dup2(err, 2);
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    execvp(argv[0], argv);
    const int error = errno;
    (void)!write(said, &error, sizeof error);
    _exit(127);
}

static enum st spawn(struct launch_remote *r, struct err *e)
{
    char text[4][64], *argv[MAX_ARGS];
    int pair[2] = {-1, -1}, err[2] = {-1, -1}, said[2] = {-1, -1}, error = 0;
    enum st st = ST_OK;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) || pipe2(err, O_CLOEXEC) || pipe2(said, O_CLOEXEC)) {
        st = err_set(e, ST_IO, "%s: cannot make a pipe: %s", r->host.typed, strerror(errno));
        goto out;
    }
    arguments(r, text, argv);
    const pid_t parent = getpid(), child = fork();
    if (child == 0)
        become(parent, pair[1], err[1], said[1], argv);
    if (child < 0) {
        st = err_set(e, ST_NO_MEMORY, "%s: cannot start %s: %s", r->host.typed, r->program, strerror(errno));
        goto out;
    }
    close(said[1]);
    said[1] = -1;
    if (read(said[0], &error, sizeof error) == sizeof error) {
        waitpid(child, NULL, 0);
        st = err_set(e, ST_NOT_FOUND, "%s: cannot run %s: %s%s", r->host.typed, r->program, strerror(error),
                     error == ENOENT && strcmp(r->program, "ssh") == 0 ? "; install an ssh client (sudo apt install openssh-client), or name a program that does its work by --ssh" : "");
        goto out;
    }
    pthread_mutex_lock(&r->lock);
    r->pid = child;
    pthread_mutex_unlock(&r->lock);
    r->fd = pair[0];
    r->err_fd = err[0];
    pair[0] = err[0] = -1;
out:
    for (int i = 0; i < 2; i++) {
        const int fds[] = {pair[i], err[i], said[i]};
        for (int k = 0; k < 3; k++)
            if (fds[k] >= 0)
                close(fds[k]);
    }
    return st;
}

/* Reaps what can be reaped within the time; then has_ended. */
static bool reap(struct launch_remote *r, int wait_ms)
{
    const uint64_t until = now_ns() + (uint64_t)wait_ms * BASE_NS_PER_MS;
    for (;;) {
        pthread_mutex_lock(&r->lock);
        if (!r->has_ended && r->pid > 0 && waitpid(r->pid, &r->status, WNOHANG) == r->pid)
            r->has_ended = true;
        const bool over = r->has_ended || r->pid <= 0;
        pthread_mutex_unlock(&r->lock);
        if (over || now_ns() >= until)
            return over;
        usleep(2000);
    }
}

bool launch_remote_has_ended(struct launch_remote *r, int *status)
{
    if (!reap(r, 0) || r->pid <= 0)
        return false;
    *status = r->status;
    return true;
}

/* ---- lines of the other side ------------------------------------------------------------------------------------------------------------------------------ */

/* Bytes of the character at text in UTF-8, if it is a whole one, written as it should be, and no control character; else 0. */
static int whole_character(const char *text)
{
    const unsigned char *c = (const unsigned char *)text;
    const int n = c[0] < 0x80 ? 1 : c[0] >= 0xc2 && c[0] < 0xe0 ? 2 : c[0] >= 0xe0 && c[0] < 0xf0 ? 3 : c[0] >= 0xf0 && c[0] < 0xf5 ? 4 : 0;
    for (int i = 1; i < n; i++)
        if (c[i] < 0x80 || c[i] > 0xbf)
            return 0;
    return c[0] < ' ' || c[0] == 127 || (c[0] == 0xc2 && c[1] < 0xa0) ? 0 : n;
}

/* Somebody else's bytes: nothing in them may reach a terminal as an order. */
static void make_harmless(char *text)
{
    for (int n; *text; text += n) {
        n = whole_character(text);
        if (!n) {
            *text = *text == '\t' ? ' ' : '?';
            n = 1;
        }
    }
}

static void keep_word(struct launch_remote *r, char *line)
{
    size_t n = strlen(line);
    while (n && (line[n - 1] == '\r' || line[n - 1] == ' '))
        line[--n] = 0;
    make_harmless(line);
    if (!line[0])
        return;
    pthread_mutex_lock(&r->lock);
    snprintf(r->words[r->n_words++ % WORDS], WORD_BYTES, "%s", line);
    pthread_mutex_unlock(&r->lock);
}

static void last_words(struct launch_remote *r, char *text, size_t bytes)
{
    size_t at = 0;
    text[0] = 0;
    for (unsigned i = r->n_words > WORDS ? r->n_words - WORDS : 0; i < r->n_words && at < bytes; i++)
        at += (size_t)snprintf(text + at, bytes - at, "%s%s", at ? " | " : "", r->words[i % WORDS]);
}

void launch_remote_last_words(struct launch_remote *r, char *text, size_t bytes)
{
    const uint64_t until = now_ns() + LAST_WORDS_MS * BASE_NS_PER_MS;
    const struct timespec limit = {.tv_sec = (time_t)(until / BASE_NS_PER_S), .tv_nsec = (long)(until % BASE_NS_PER_S)};
    pthread_mutex_lock(&r->lock);
    while (r->has_ended && !r->has_err_ended && pthread_cond_timedwait(&r->changed, &r->lock, &limit) == 0)
        ;
    last_words(r, text, bytes);
    pthread_mutex_unlock(&r->lock);
}

/* A line of our own log ("12:34:56.123456 host rank 1 …") says itself where it comes from. */
static bool is_log_line(const char *line)
{
    static const char form[] = "00:00:00.000000 ";
    for (int i = 0; form[i]; i++)
        if (form[i] == '0' ? !isdigit((unsigned char)line[i]) : line[i] != form[i])
            return false;
    return true;
}

/* Before the agent runs, whatever comes on stderr is of start-up files or of ssh; it is told only where the start fails. */
static void take_err_line(struct launch_remote *r)
{
    r->err_line[r->n_err] = 0;
    r->n_err = 0;
    keep_word(r, r->err_line);
    if (!r->err_line[0])
        return;
    if (r->phase != DONE) {
        LOG_DBG("remote", "%s: %s", r->host.typed, r->err_line);
        return;
    }
    char text[LINE + sizeof r->host.typed + 4];
    const int n = is_log_line(r->err_line) ? snprintf(text, sizeof text, "%s\n", r->err_line) : snprintf(text, sizeof text, "%s: %s\n", r->host.typed, r->err_line);
    (void)!write(2, text, (size_t)n);
}

/* False: the end. */
static bool read_err(struct launch_remote *r)
{
    char data[4096];
    const ssize_t n = read(r->err_fd, data, sizeof data);
    if (n <= 0)
        return n < 0 && errno == EINTR;
    for (ssize_t i = 0; i < n; i++) {
        if (data[i] != '\n' && r->n_err < LINE - 1)
            r->err_line[r->n_err++] = data[i];
        else if (data[i] == '\n')
            take_err_line(r);
    }
    return true;
}

/* What has come by now, and what still comes until the time is over or everything has. */
static void drain_err(struct launch_remote *r, int wait_ms)
{
    const uint64_t until = now_ns() + (uint64_t)wait_ms * BASE_NS_PER_MS;
    for (;;) {
        const uint64_t now = now_ns();
        struct pollfd p = {.fd = r->err_fd, .events = POLLIN};
        if (poll(&p, 1, now < until ? (int)((until - now) / BASE_NS_PER_MS) + 1 : 0) <= 0 || !read_err(r))
            break;
    }
    if (r->n_err)
        take_err_line(r);
}

/* ---- why it failed ---------------------------------------------------------------------------------------------------------------------------------------- */

/* What OpenSSH says, and what helps. %s: the host as typed. */
static const struct {
    const char *said, *helps;
    enum st st;
} ssh_errors[] = {
    {"REMOTE HOST IDENTIFICATION HAS CHANGED", "its key is not the one that ssh knows; if you know why, 'ssh-keygen -R' forgets the old one, and 'ssh %s true' asks about the new one", ST_IO},
    {"Host key verification failed", "ssh does not know its key yet: run 'ssh %s true' once and compare it", ST_IO},
    {"Permission denied", "ssh is not let in without a password: run 'ssh-copy-id %s' once", ST_IO},
    {"Too many authentication failures", "ssh is not let in without a password: run 'ssh-copy-id %s' once", ST_IO},
    {"Could not resolve hostname", "no host of that name is known here: check the name, or put it into /etc/hosts or ~/.ssh/config", ST_NOT_FOUND},
    {"Connection refused", "it is there, but no ssh server listens: start one (sudo apt install openssh-server)", ST_IO},
    {"Connection timed out", "no answer: is it on, and does 'ssh %s true' work from here?", ST_TIMEOUT},
    {"timed out", "no answer: is it on, and does 'ssh %s true' work from here?", ST_TIMEOUT},
    {"No route to host", "no way leads there: is it on, and is the cable in?", ST_IO},
    {"Network is unreachable", "no way leads there: is the interface up?", ST_IO},
    {"Bad configuration option", "this ssh is older than Tandem expects", ST_UNSUPPORTED},
};

static enum st explain_end(struct launch_remote *r, struct err *e)
{
    char words[WORDS * WORD_BYTES], hint[400], how[120];
    drain_err(r, LAST_WORDS_MS);
    const bool ended = reap(r, LAST_WORDS_MS);
    last_words(r, words, sizeof words);
    for (size_t i = 0; i < sizeof ssh_errors / sizeof *ssh_errors && ended && WIFEXITED(r->status) && WEXITSTATUS(r->status) == 255; i++)
        if (strstr(words, ssh_errors[i].said)) {
            const char *at = strstr(ssh_errors[i].helps, "%s");
            if (at)
                snprintf(hint, sizeof hint, "%.*s%s%s", (int)(at - ssh_errors[i].helps), ssh_errors[i].helps, r->host.typed, at + 2);
            else
                snprintf(hint, sizeof hint, "%s", ssh_errors[i].helps);
            return err_set(e, ssh_errors[i].st, "%s: %s (%.200s)", r->host.typed, hint, words);
        }
    if (!ended)
        snprintf(how, sizeof how, "ended the conversation");
    else if (WIFSIGNALED(r->status))
        snprintf(how, sizeof how, "was killed by signal %d (%s)", WTERMSIG(r->status), strsignal(WTERMSIG(r->status)));
    else
        snprintf(how, sizeof how, "left with status %d", WEXITSTATUS(r->status));
    static const char *const before[] = {"before anything ran there", "while the other side looked for its copy of Tandem", "while Tandem was sent", "while Tandem was unpacked there", ""};
    return err_set(e, ST_PEER_LOST, "%s: %s %s %s%s%.300s", r->host.typed, r->program, how, before[r->phase], words[0] ? "; the last that came: " : "", words);
}

static enum st explain_timeout(struct launch_remote *r, struct err *e)
{
    char words[WORDS * WORD_BYTES];
    drain_err(r, 0);
    last_words(r, words, sizeof words);
    const char *what = words[0] ? "; what came instead: " : "";
    switch (r->phase) {
    case CONNECTING:
        return err_set(e, ST_TIMEOUT, "%s: no answer through %s within %.1f s; does '%s %s true' work from here, without a question?%s%.240s", r->host.typed, r->program, r->connect_ms / 1000.0,
                       r->program, r->host.typed, what, words);
    case LOOKING: return err_set(e, ST_TIMEOUT, "%s: looked at its copy of Tandem for %d s; its disk or its CPUs are not well%s%.240s", r->host.typed, LOOK_MS / 1000, what, words);
    case PUSHING:
        return err_set(e, ST_TIMEOUT, "%s: took nothing for %d s while Tandem was sent (%.1f of %.1f MB were)%s%.240s", r->host.typed, STALL_MS / 1000, (double)r->sent / 1e6,
                       (double)launch_bundle_bytes(r->bundle) / 1e6, what, words);
    default: return err_set(e, ST_TIMEOUT, "%s: unpacked Tandem for %d s; its disk or its CPUs are not well%s%.240s", r->host.typed, STEP_MS / 1000, what, words);
    }
}

/* "error KIND DETAIL…" of remote_start.sh. */
static enum st explain_refusal(struct launch_remote *r, const char *said, struct err *e)
{
    const char *detail = strchr(said, ' ');
    const int n = detail ? (int)(detail - said) : (int)strlen(said);
    const char *host = r->host.typed;
    detail = detail ? detail + 1 : "";
    const struct {
        const char *kind, *before, *after;
        enum st st;
    } kinds[] = {
        {"tool", "has no program '", "': Tandem needs a POSIX shell, coreutils and tar there", ST_UNSUPPORTED},
        {"link", "will not follow the symbolic link ", ": remove it", ST_INVALID},
        {"foreign", "", " is not ours alone (permissions, owner): it must belong to the user who logs in there, with mode 0700; remove it, or 'chmod 700' it", ST_INVALID},
        {"readonly", "lets nothing be written to ", ": set TANDEM_REMOTE_DIR to a folder there that is yours", ST_IO},
        {"noexec", "lets no program run in ", " (mounted noexec): set TANDEM_REMOTE_DIR to a folder there where programs may run", ST_IO},
        {"full", "has no space left in ", ": make room for about 60 MB there, or set TANDEM_REMOTE_DIR to another folder", ST_IO},
        {"damaged", "got something else than what was sent, in ", "", ST_MISMATCH},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if ((int)strlen(kinds[i].kind) == n && strncmp(said, kinds[i].kind, (size_t)n) == 0)
            return err_set(e, kinds[i].st, "%s: %s%.160s%s", host, kinds[i].before, detail, kinds[i].after);
    return err_set(e, ST_IO, "%s: %.200s", host, said);
}

/* "MACHINE GLIBC" */
static enum st check_hello(struct launch_remote *r, const char *said, struct err *e)
{
    char machine[64] = "", glibc[64] = "";
    unsigned version[3] = {0};
    (void)sscanf(said, "%63s %63s", machine, glibc);
    for (int i = 0; i < r->bundles->n; i++)
        if (strcmp(machine, launch_bundle_machine(r->bundles->list[i])) == 0)
            r->bundle = r->bundles->list[i];
    if (!r->bundle)
        return err_set(e, ST_UNSUPPORTED, "%s: is %s, and this Tandem is %s: 'make bundle ARCH=%s', where it was built, makes what such hosts need", r->host.typed, machine,
                       launch_bundle_machine(r->bundles->list[0]), machine);
    const unsigned *least = launch_bundle_glibc(r->bundle);
    if (!launch_elf_parse_version(glibc, version))
        return err_set(e, ST_UNSUPPORTED, "%s: its C library is not glibc, which this binary needs (%u.%u or later)", r->host.typed, least[0], least[1]);
    if (launch_elf_compare_versions(version, least) < 0)
        return err_set(e, ST_UNSUPPORTED, "%s: has glibc %u.%u, and this binary with its libraries needs %u.%u: build Tandem on the host with the oldest system and start it from there",
                       r->host.typed, version[0], version[1], least[0], least[1]);
    return ST_OK;
}

/* ---- progress of pushes ------------------------------------------------------------------------------------------------------------------------------------ */

/* All pushes together; on a terminal one line that changes. */
static struct {
    pthread_mutex_t lock;
    int n_hosts;
    uint64_t total, sent, told_ns;
    bool has_line;
} pushes = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void tell_progress(struct launch_remote *r, uint64_t more)
{
    const uint64_t now = now_ns();
    const bool terminal = isatty(2);
    pthread_mutex_lock(&pushes.lock);
    pushes.sent += more;
    if (terminal && now - r->push_began_ns > SPEAK_NS && now - pushes.told_ns > 200 * BASE_NS_PER_MS) {
        pushes.told_ns = now;
        pushes.has_line = true;
        if (pushes.n_hosts == 1)
            fprintf(stderr, "\rsending Tandem to %s: %.1f of %.1f MB\033[K", r->host.typed, (double)pushes.sent / 1e6, (double)pushes.total / 1e6);
        else
            fprintf(stderr, "\rsending Tandem to %d hosts: %.1f of %.1f MB\033[K", pushes.n_hosts, (double)pushes.sent / 1e6, (double)pushes.total / 1e6);
    } else if (!terminal && !r->speaks && now - r->push_began_ns > SPEAK_NS) {
        r->speaks = true;
        fprintf(stderr, "sending Tandem to %s (%.1f MB)\n", r->host.typed, (double)launch_bundle_bytes(r->bundle) / 1e6);
    }
    pthread_mutex_unlock(&pushes.lock);
}

static void begin_push(struct launch_remote *r)
{
    r->push_began_ns = now_ns();
    pthread_mutex_lock(&pushes.lock);
    pushes.n_hosts++;
    pushes.total += launch_bundle_bytes(r->bundle);
    pthread_mutex_unlock(&pushes.lock);
}

static void end_push(struct launch_remote *r, bool is_complete)
{
    if (!r->push_began_ns)
        return;
    pthread_mutex_lock(&pushes.lock);
    if (--pushes.n_hosts == 0) {
        if (pushes.has_line)
            fprintf(stderr, "\r\033[K");
        pushes.total = pushes.sent = 0;
        pushes.has_line = false;
    }
    if (r->speaks && is_complete)
        fprintf(stderr, "sent Tandem to %s in %.1f s\n", r->host.typed, (double)(now_ns() - r->push_began_ns) / 1e9);
    pthread_mutex_unlock(&pushes.lock);
    r->push_began_ns = 0;
}

/* ---- the start ---------------------------------------------------------------------------------------------------------------------------------------------- */

static void enter(struct launch_remote *r, enum phase phase, int limit_ms)
{
    r->phase = phase;
    r->deadline_ns = now_ns() + (uint64_t)limit_ms * BASE_NS_PER_MS;
}

/* A whole line of the other side's stdout. Noise is remembered for a sentence. */
static enum st take_line(struct launch_remote *r, struct err *e)
{
    char marker[sizeof "tandem- " + sizeof r->nonce];
    snprintf(marker, sizeof marker, "tandem-%s ", r->nonce);
    r->line[r->n_line] = 0;
    r->n_line = 0;
    const char *said = strstr(r->line, marker); /* a prompt without an end of line may stand before it */
    if (!said) {
        keep_word(r, r->line);
        return ST_OK;
    }
    make_harmless(r->line);
    said += strlen(marker);
    long pid = 0;
    if (strncmp(said, "error ", 6) == 0)
        return explain_refusal(r, said + 6, e);
    if (r->kills && (strcmp(said, "killed") == 0 || strcmp(said, "gone") == 0)) {
        r->was_there = said[0] == 'k';
        r->phase = DONE;
        return ST_OK;
    }
    if (strncmp(said, "hello ", 6) == 0 && r->phase == CONNECTING && !r->kills) {
        enter(r, LOOKING, LOOK_MS);
        return check_hello(r, said + 6, e);
    }
    if (strncmp(said, "need ", 5) == 0 && r->phase == LOOKING) {
        r->chunk = malloc(CHUNK);
        if (!r->chunk)
            return err_set(e, ST_NO_MEMORY, "no memory");
        enter(r, PUSHING, STALL_MS);
        begin_push(r);
        return ST_OK;
    }
    if (strncmp(said, "have ", 5) == 0 && (r->phase == LOOKING || r->phase == UNPACKING)) {
        enter(r, r->phase, STEP_MS);
        return ST_OK;
    }
    if (sscanf(said, "go %ld", &pid) == 1 && (r->phase == LOOKING || r->phase == UNPACKING)) {
        r->agent_pid = (pid_t)pid;
        drain_err(r, 0);
        r->phase = DONE;
        return ST_OK;
    }
    return err_set(e, ST_INVALID, "%s: said '%.100s', which is not expected there", r->host.typed, said);
}

/* Never takes a byte behind the line that is last for us: the next is the agent's. ST_AGAIN: nothing more is there now. */
static enum st read_out(struct launch_remote *r, struct err *e)
{
    char data[4096];
    const ssize_t n = recv(r->fd, data, sizeof data, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return ST_AGAIN;
    if (n <= 0)
        return explain_end(r, e);
    const char *end = memchr(data, '\n', (size_t)n);
    const size_t take = end ? (size_t)(end - data) + 1 : (size_t)n, text = end ? take - 1 : take;
    if (recv(r->fd, data, take, MSG_DONTWAIT) != (ssize_t)take)
        return err_set(e, ST_IO, "%s: cannot read what it says", r->host.typed);
    r->noise_bytes += take;
    if (r->noise_bytes > NOISE_BYTES)
        return err_set(e, ST_INVALID, "%s: its start-up files print without an end; the last that came: %.200s", r->host.typed, r->words[(r->n_words + WORDS - 1) % WORDS]);
    for (size_t i = 0; i < text && r->n_line < LINE - 1; i++)
        r->line[r->n_line++] = data[i] ? data[i] : ' ';
    return end ? take_line(r, e) : ST_OK;
}

/* As much as is taken now. A broken conversation is found by the reader. */
static void write_script_on(struct launch_remote *r)
{
    const ssize_t n = send(r->fd, r->script + r->script_at, r->script_bytes - r->script_at, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0)
        r->script_at += (size_t)n;
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        r->script_at = r->script_bytes;
}

static enum st push_on(struct launch_remote *r, struct err *e)
{
    const uint64_t all = launch_bundle_bytes(r->bundle);
    if (r->chunk_at == r->chunk_bytes) {
        const uint64_t left = all - r->sent;
        r->chunk_at = 0;
        r->chunk_bytes = left < CHUNK ? (size_t)left : CHUNK;
        const enum st st = launch_bundle_read(r->bundle, r->sent, r->chunk, r->chunk_bytes, e);
        if (st)
            return st;
    }
    const ssize_t n = send(r->fd, r->chunk + r->chunk_at, r->chunk_bytes - r->chunk_at, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return ST_OK;
    if (n < 0) { /* it may have said why */
        enter(r, UNPACKING, LAST_WORDS_MS);
        return ST_OK;
    }
    r->chunk_at += (size_t)n;
    r->sent += (uint64_t)n;
    tell_progress(r, (uint64_t)n);
    if (r->sent == all)
        enter(r, UNPACKING, STEP_MS);
    else
        r->deadline_ns = now_ns() + STALL_MS * BASE_NS_PER_MS;
    return ST_OK;
}

static enum st converse(struct launch_remote *r, struct err *e)
{
    enter(r, CONNECTING, r->connect_ms);
    bool err_open = true;
    while (r->phase != DONE) {
        const bool has_script = r->script_at < r->script_bytes, writes = has_script || r->phase == PUSHING;
        const uint64_t now = now_ns();
        if (now >= r->deadline_ns)
            return explain_timeout(r, e);
        struct pollfd p[3] = {
            {.fd = r->fd, .events = writes ? POLLIN | POLLOUT : POLLIN}, {.fd = err_open ? r->err_fd : -1, .events = POLLIN}, {.fd = r->stop_fd, .events = POLLIN}};
        if (poll(p, 3, (int)((r->deadline_ns - now) / BASE_NS_PER_MS) + 1) < 0 && errno != EINTR)
            return err_set(e, ST_IO, "%s: %s", r->host.typed, strerror(errno));
        if (p[2].revents)
            return err_set(e, ST_CANCELLED, "%s: the start was given up", r->host.typed);
        if (p[1].revents)
            err_open = read_err(r);
        if (p[0].revents & POLLOUT && has_script)
            write_script_on(r);
        enum st st = ST_OK;
        if (p[0].revents & POLLOUT && r->phase == PUSHING)
            st = push_on(r, e);
        while (!st && p[0].revents & (POLLIN | POLLHUP | POLLERR) && r->phase != DONE)
            st = read_out(r, e);
        if (st && st != ST_AGAIN)
            return st;
    }
    return ST_OK;
}

static void decide(struct launch_remote *r, enum st st, const struct err *e)
{
    end_push(r, st == ST_OK);
    pthread_mutex_lock(&r->lock);
    r->is_decided = true;
    r->st = st;
    r->err = *e;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    (void)!write(r->ready_fd, &(uint64_t){1}, sizeof(uint64_t));
}

static void kill_group(struct launch_remote *r, int signo)
{
    pthread_mutex_lock(&r->lock);
    if (r->pid > 0 && !r->has_ended) {
        kill(-r->pid, signo);
        kill(r->pid, signo); /* it may not have got as far as its own session */
    }
    pthread_mutex_unlock(&r->lock);
}

static void *run(void *arg)
{
    struct launch_remote *r = arg;
    struct err e = {""};
    enum st st = spawn(r, &e);
    if (!st)
        st = converse(r, &e);
    if (st && r->pid > 0) {
        kill_group(r, SIGKILL);
        reap(r, LAST_WORDS_MS);
    }
    decide(r, st, &e); /* words are the lock's from now on */
    while (!st) {
        struct pollfd p[2] = {{.fd = r->err_fd, .events = POLLIN}, {.fd = r->stop_fd, .events = POLLIN}};
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        if (p[0].revents && !read_err(r)) {
            close(r->err_fd);
            r->err_fd = -1; /* passed over from now on */
            pthread_mutex_lock(&r->lock);
            r->has_err_ended = true;
            pthread_cond_broadcast(&r->changed);
            pthread_mutex_unlock(&r->lock);
        }
        if (p[1].revents)
            break;
    }
    return NULL;
}

/* ---- for the owner ------------------------------------------------------------------------------------------------------------------------------------------ */

static void release(struct launch_remote *r)
{
    const int fds[] = {r->fd, r->err_fd, r->stop_fd, r->ready_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r->program);
    free(r->script);
    free(r->chunk);
    free(r);
}

static enum st start(const struct launch_remote_options *o, const struct launch_bundles *bundles, bool kills, pid_t kill_pid, const char *kill_nonce, struct launch_remote **out, struct err *e)
{
    struct launch_remote *r = calloc(1, sizeof *r);
    if (!r || sodium_init() < 0) {
        free(r);
        return err_set(e, ST_NO_MEMORY, "no memory");
    }
    const char *program = o->ssh && *o->ssh ? o->ssh : getenv("TANDEM_SSH");
    unsigned char random[16];
    randombytes_buf(random, sizeof random);
    *r = (struct launch_remote){.host = *o->host,
                                .program = strdup(program && *program ? program : "ssh"),
                                .port = o->port,
                                .connect_ms = o->connect_ms > 0 ? o->connect_ms : CONNECT_MS,
                                .kills = kills,
                                .bundles = bundles,
                                .fd = -1,
                                .err_fd = -1,
                                .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                                .ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    sodium_bin2hex(r->nonce, sizeof r->nonce, random, sizeof random);
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &clock);
    pthread_condattr_destroy(&clock);
    enum st st = write_script(r, o, kill_pid, kill_nonce, e);
    if (!st && (!r->program || r->stop_fd < 0 || r->ready_fd < 0))
        st = err_set(e, ST_NO_MEMORY, "no memory");
    if (!st && pthread_create(&r->thread, NULL, run, r))
        st = err_set(e, ST_NO_MEMORY, "cannot start a thread");
    if (st) {
        release(r);
        return st;
    }
    *out = r;
    return ST_OK;
}

enum st launch_remote_start(const struct launch_remote_options *options, const struct launch_bundles *bundles, struct launch_remote **remote, struct err *e)
{
    return start(options, bundles, false, 0, NULL, remote, e);
}

enum st launch_remote_wait(struct launch_remote *r, int timeout_ms, struct err *e)
{
    const uint64_t until = now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * BASE_NS_PER_MS;
    const struct timespec limit = {.tv_sec = (time_t)(until / BASE_NS_PER_S), .tv_nsec = (long)(until % BASE_NS_PER_S)};
    pthread_mutex_lock(&r->lock);
    while (!r->is_decided)
        if (timeout_ms < 0)
            pthread_cond_wait(&r->changed, &r->lock);
        else if (pthread_cond_timedwait(&r->changed, &r->lock, &limit))
            break;
    const enum st st = r->is_decided ? r->st : ST_AGAIN;
    if (st && st != ST_AGAIN && e)
        *e = r->err;
    pthread_mutex_unlock(&r->lock);
    return st;
}

void launch_remote_stop(struct launch_remote *r, int grace_ms)
{
    if (!r)
        return;
    /* Meanwhile the thread takes what comes on stderr: ssh must not be held up by a full pipe. Its end would kill ssh (PR_SET_PDEATHSIG). */
    if (launch_remote_wait(r, 0, NULL) == ST_OK) {
        shutdown(r->fd, SHUT_RDWR);
        if (!reap(r, grace_ms))
            kill_group(r, SIGTERM);
        if (!reap(r, TERM_MS))
            kill_group(r, SIGKILL);
        (void)reap(r, LAST_WORDS_MS);
    }
    (void)!write(r->stop_fd, &(uint64_t){1}, sizeof(uint64_t));
    pthread_join(r->thread, NULL);
    release(r);
}

enum st launch_remote_kill(const struct launch_remote_options *options, pid_t pid, const char *nonce, bool *was_there, struct err *e)
{
    struct launch_remote *r = NULL;
    enum st st = start(options, NULL, true, pid, nonce, &r, e);
    if (st)
        return st;
    st = launch_remote_wait(r, -1, e);
    if (!st)
        *was_there = r->was_there;
    launch_remote_stop(r, 100);
    return st;
}
