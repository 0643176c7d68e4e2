/* The client's side of PMI-1: lines "cmd=… key=value", one request, one answer.
 *
 * An all-gather is put, barrier, get. Keys can neither be put twice nor removed, so their names count rounds, over all boots of this process: every rank opens and calls
 * equally often. Values are hexadecimal (neither spaces nor '=' may be in one), in pieces that leave a whole line below 1,024 bytes, which is what some servers and clients keep. */
#include "comm/boot_pmi.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_BYTES 2048
#define MAX_PIECE_CHARS 800
#define MAX_NAME 257
#define OPEN_WAIT_NS (60 * BASE_NS_PER_S)

struct pmi {
    int fd, rank, n_ranks;
    size_t piece_chars; /* even */
    char space[MAX_NAME];
    char line[LINE_BYTES];
    size_t n_line;  /* in line: read, not yet taken */
    enum st broken; /* an answer is still on its way: the next one would be taken for another */
    struct err why;
};

static unsigned n_rounds; /* of this process */

static uint64_t now_ns(void) { return base_now_ns(base_clock_real()); }

/* ---- lines ------------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st wait_for(struct pmi *p, short events, uint64_t deadline_ns, const char *what, struct err *e) {
    for (;;) {
        uint64_t now = now_ns();
        if (now >= deadline_ns) return err_set(e, ST_TIMEOUT, "pmi: rank %d: no answer to %s", p->rank, what);
        uint64_t ms = (deadline_ns - now + BASE_NS_PER_MS - 1) / BASE_NS_PER_MS;
        struct pollfd one = {.fd = p->fd, .events = events};
        int n = poll(&one, 1, ms < 60000 ? (int)ms : 60000);
        if (n > 0) return ST_OK;
        if (n < 0 && errno != EINTR) return err_set(e, ST_IO, "pmi: poll: %s", strerror(errno));
    }
}

static enum st write_line(struct pmi *p, const char *line, size_t n, uint64_t deadline_ns, struct err *e) {
    while (n) {
        enum st code = wait_for(p, POLLOUT, deadline_ns, "what was written", e);
        if (code != ST_OK) return code;
        ssize_t done = send(p->fd, line, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (done < 0) return err_set(e, ST_PEER_LOST, "pmi: rank %d: the server is gone: %s", p->rank, strerror(errno));
        line += done;
        n -= (size_t)done;
    }
    return ST_OK;
}

/* Into text, without its end. */
static enum st read_line(struct pmi *p, const char *what, char text[LINE_BYTES], uint64_t deadline_ns, struct err *e) {
    for (;;) {
        char *end = memchr(p->line, '\n', p->n_line);
        if (end) {
            size_t n = (size_t)(end - p->line);
            memcpy(text, p->line, n);
            text[n] = 0;
            p->n_line -= n + 1;
            memmove(p->line, end + 1, p->n_line);
            return ST_OK;
        }
        if (p->n_line == LINE_BYTES) return err_set(e, ST_MISMATCH, "pmi: rank %d: an answer of more than %d bytes to %s", p->rank, LINE_BYTES, what);
        enum st code = wait_for(p, POLLIN, deadline_ns, what, e);
        if (code != ST_OK) return code;
        ssize_t n = recv(p->fd, p->line + p->n_line, LINE_BYTES - p->n_line, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n <= 0) return err_set(e, ST_PEER_LOST, "pmi: rank %d: the server is gone%s%s", p->rank, n ? ": " : "", n ? strerror(errno) : "");
        p->n_line += (size_t)n;
    }
}

/* "name=value": copies value, up to the next space; false: not there, or longer than bytes − 1. */
static bool value_of(const char *line, const char *name, char *value, size_t bytes) {
    size_t n_name = strlen(name);
    for (const char *at = line; *at;) {
        size_t n = strcspn(at, " ");
        if (n > n_name && at[n_name] == '=' && memcmp(at, name, n_name) == 0) {
            n -= n_name + 1;
            if (n >= bytes) return false;
            memcpy(value, at + n_name + 1, n);
            value[n] = 0;
            return true;
        }
        at += n;
        at += strspn(at, " ");
    }
    return false;
}

/* One request and its answer, whose cmd must be want and whose rc, if it has one, 0. */
__attribute__((format(printf, 6, 7))) static enum st ask(struct pmi *p, const char *want, char text[LINE_BYTES], uint64_t deadline_ns, struct err *e,
                                                         const char *format, ...) {
    if (p->broken != ST_OK) return err_set(e, p->broken, "%s", p->why.text);
    char line[LINE_BYTES], cmd[64], rc[16];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    BASE_ASSERT(n > 0 && (size_t)n < sizeof line);
    char what[64];
    snprintf(what, sizeof what, "\"%.*s\"", (int)strcspn(line, " \n"), line);
    p->broken = write_line(p, line, (size_t)n, deadline_ns, &p->why);
    if (p->broken == ST_OK) p->broken = read_line(p, what, text, deadline_ns, &p->why);
    if (p->broken == ST_OK && (!value_of(text, "cmd", cmd, sizeof cmd) || strcmp(cmd, want) != 0))
        p->broken = err_set(&p->why, ST_MISMATCH, "pmi: rank %d: \"%.100s\" is no answer to %s", p->rank, text, what);
    if (p->broken != ST_OK) return err_set(e, p->broken, "%s", p->why.text);
    if (value_of(text, "rc", rc, sizeof rc) && strcmp(rc, "0") != 0) {
        char msg[128] = "no reason given";
        (void)value_of(text, "msg", msg, sizeof msg);
        return err_set(e, strcmp(want, "barrier_out") == 0 ? ST_PEER_LOST : ST_INVALID, "pmi: rank %d: the server refused %s: %s", p->rank, what,
                       msg);
    }
    return ST_OK;
}

/* ---- the all-gather -------------------------------------------------------------------------------------------------------------------------------------- */

static void to_hex(const unsigned char *bytes, size_t n, char *text) {
    static const char digits[] = "0123456789ABCDEF";
    for (size_t i = 0; i < n; i++) {
        *text++ = digits[bytes[i] >> 4];
        *text++ = digits[bytes[i] & 15];
    }
    *text = 0;
}
static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }
static bool from_hex(const char *text, unsigned char *bytes, size_t n) {
    if (strlen(text) != 2 * n) return false;
    for (size_t i = 0; i < n; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        bytes[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

static enum st pmi_allgather(void *context, const void *mine, size_t bytes, void *all, uint64_t deadline_ns, struct err *e) {
    struct pmi *p = context;
    BASE_ASSERT(bytes <= COMM_BOOT_MAX_BYTES);
    unsigned round = n_rounds++;
    char text[LINE_BYTES], value[MAX_PIECE_CHARS + 1];
    size_t piece = p->piece_chars / 2;
    enum st code = ST_OK;
    for (size_t at = 0; at < bytes && code == ST_OK; at += piece) {
        to_hex((const unsigned char *)mine + at, bytes - at < piece ? bytes - at : piece, value);
        code = ask(p, "put_result", text, deadline_ns, e, "cmd=put kvsname=%s key=tandem-%u-%d-%zu value=%s\n", p->space, round, p->rank, at, value);
    }
    /* Also where it failed: nobody shall wait for a rank that gave up. */
    struct err ignored;
    enum st met = ask(p, "barrier_out", text, deadline_ns, code == ST_OK ? e : &ignored, "cmd=barrier_in\n");
    if (code == ST_OK) code = met;
    for (int r = 0; r < p->n_ranks && code == ST_OK; r++) {
        for (size_t at = 0; at < bytes && code == ST_OK; at += piece) {
            size_t n = bytes - at < piece ? bytes - at : piece;
            code = ask(p, "get_result", text, deadline_ns, e, "cmd=get kvsname=%s key=tandem-%u-%d-%zu\n", p->space, round, r, at);
            if (code == ST_OK &&
                (!value_of(text, "value", value, sizeof value) || !from_hex(value, (unsigned char *)all + (size_t)r * bytes + at, n)))
                code = err_set(e, ST_MISMATCH, "pmi: rank %d's record for round %u is not what rank %d expects", r, round, p->rank);
        }
    }
    return code;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st greet(struct pmi *p, uint64_t deadline_ns, struct err *e) {
    char text[LINE_BYTES], number[16];
    enum st code = ask(p, "response_to_init", text, deadline_ns, e, "cmd=init pmi_version=1 pmi_subversion=1\n");
    if (code == ST_OK) code = ask(p, "maxes", text, deadline_ns, e, "cmd=get_maxes\n");
    if (code != ST_OK) return code;
    long max = value_of(text, "vallen_max", number, sizeof number) ? strtol(number, NULL, 10) : 0;
    if (max < 64) return err_set(e, ST_UNSUPPORTED, "pmi: values of at most %ld bytes", max);
    p->piece_chars = (max - 1 < MAX_PIECE_CHARS ? (size_t)max - 1 : MAX_PIECE_CHARS) & ~(size_t)1;
    code = ask(p, "my_kvsname", text, deadline_ns, e, "cmd=get_my_kvsname\n");
    if (code == ST_OK && !value_of(text, "kvsname", p->space, sizeof p->space)) code = err_set(e, ST_MISMATCH, "pmi: the server told no kvsname");
    return code;
}

static struct pmi *create(int fd, int rank, int n_ranks) {
    struct pmi *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->fd = fd;
    p->rank = rank;
    p->n_ranks = n_ranks;
    return p;
}

static enum st check_place(int rank, int n_ranks, struct err *e) {
    if (n_ranks < 1 || n_ranks > COMM_MAX_RANKS || rank < 0 || rank >= n_ranks) return err_set(e, ST_INVALID, "pmi: rank %d of %d", rank, n_ranks);
    return ST_OK;
}

static enum st open_with(struct pmi *p, uint64_t deadline_ns, struct comm_boot *boot, struct err *e) {
    if (!deadline_ns) deadline_ns = now_ns() + OPEN_WAIT_NS;
    enum st code = greet(p, deadline_ns, e);
    if (code == ST_OK) *boot = (struct comm_boot){pmi_allgather, p};
    return code;
}

enum st comm_boot_pmi_open(int fd, int rank, int n_ranks, uint64_t deadline_ns, struct comm_boot *boot, struct err *e) {
    enum st code = check_place(rank, n_ranks, e);
    if (code != ST_OK) return code;
    struct pmi *p = create(fd, rank, n_ranks);
    if (!p) return err_set(e, ST_NO_MEMORY, "pmi: no memory");
    code = open_with(p, deadline_ns, boot, e);
    if (code != ST_OK) free(p);
    return code;
}

void comm_boot_pmi_close(struct comm_boot *boot, enum comm_boot_pmi_end how) {
    struct pmi *p = boot->context;
    if (!p) return;
    if (how == COMM_BOOT_PMI_FINALIZE) {
        char text[LINE_BYTES];
        struct err ignored;
        (void)ask(p, "finalize_ack", text, now_ns() + BASE_NS_PER_S, &ignored, "cmd=finalize\n");
        close(p->fd);
    }
    free(p);
    *boot = (struct comm_boot){0};
}

/* ---- the environment ------------------------------------------------------------------------------------------------------------------------------------- */

static bool number_of(const char *text, long least, long most, int *number) {
    char *end;
    if (!text || !*text) return false;
    long n = strtol(text, &end, 10);
    if (*end || n < least || n > most) return false;
    *number = (int)n;
    return true;
}

bool comm_boot_pmi_is_here(void) { return getenv("PMI_FD") || getenv("PMI_PORT"); }

/* −1: not connected, errno says why. */
static int connect_one(const struct addrinfo *a, uint64_t deadline_ns) {
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd < 0) return -1;
    int failed = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
    if (failed == EINPROGRESS) {
        struct pmi waiter = {.fd = fd};
        socklen_t bytes = sizeof failed;
        if (wait_for(&waiter, POLLOUT, deadline_ns, "connect", NULL) != ST_OK)
            failed = ETIMEDOUT;
        else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &bytes) != 0)
            failed = errno;
    }
    if (!failed && fcntl(fd, F_SETFL, 0) == 0) return fd; /* MPICH wants it to block */
    if (!failed) failed = errno;
    close(fd);
    errno = failed;
    return -1;
}

static enum st connect_to(const char *port, uint64_t deadline_ns, int *fd, struct err *e) {
    char host[256];
    const char *colon = strrchr(port, ':');
    size_t n = colon ? (size_t)(colon - port) : 0;
    if (!n || n >= sizeof host) return err_set(e, ST_INVALID, "pmi: PMI_PORT=%.100s is not host:port", port);
    memcpy(host, port, n);
    host[n] = 0;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
    /* Our own name leads nowhere but here: no resolver needs to know it. */
    char own[256] = "";
    (void)gethostname(own, sizeof own - 1);
    int failed = getaddrinfo(strcmp(host, own) == 0 ? NULL : host, colon + 1, &hints, &list);
    if (failed) return err_set(e, ST_NOT_FOUND, "pmi: PMI_PORT=%.100s: %s", port, gai_strerror(failed));
    int found = -1;
    for (const struct addrinfo *a = list; a && found < 0; a = a->ai_next) found = connect_one(a, deadline_ns);
    freeaddrinfo(list);
    if (found < 0) return err_set(e, ST_IO, "pmi: PMI_PORT=%.100s: %s", port, strerror(errno));
    setsockopt(found, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    *fd = found;
    return ST_OK;
}

/* "initack", then three lines "cmd=set": size, rank, debug. */
static enum st introduce(struct pmi *p, int id, uint64_t deadline_ns, struct err *e) {
    char text[LINE_BYTES], number[16];
    int debug;
    enum st code = ask(p, "initack", text, deadline_ns, e, "cmd=initack pmiid=%d\n", id);
    const struct {
        const char *name;
        int *value;
        long least, most;
    } sets[] = {{"size", &p->n_ranks, 1, COMM_MAX_RANKS}, {"rank", &p->rank, 0, COMM_MAX_RANKS - 1}, {"debug", &debug, -1, 1000}};
    for (size_t i = 0; i < sizeof sets / sizeof *sets && code == ST_OK; i++) {
        code = read_line(p, "initack", text, deadline_ns, e);
        if (code == ST_OK && (!value_of(text, sets[i].name, number, sizeof number) || !number_of(number, sets[i].least, sets[i].most, sets[i].value)))
            code = err_set(e, ST_MISMATCH, "pmi: \"%.100s\" where the server should set %s", text, sets[i].name);
    }
    return code;
}

static void export_number(const char *name, int value) {
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

static enum st open_port(const char *port, uint64_t deadline_ns, struct comm_boot *boot, int *rank, int *n_ranks, struct err *e) {
    int id, fd;
    if (!number_of(getenv("PMI_ID"), 0, COMM_MAX_RANKS - 1, &id)) return err_set(e, ST_INVALID, "pmi: PMI_PORT without a PMI_ID");
    enum st code = connect_to(port, deadline_ns, &fd, e);
    if (code != ST_OK) return code;
    struct pmi *p = create(fd, id, COMM_MAX_RANKS);
    code = p ? introduce(p, id, deadline_ns, e) : err_set(e, ST_NO_MEMORY, "pmi: no memory");
    if (code == ST_OK) code = check_place(p->rank, p->n_ranks, e);
    if (code == ST_OK) code = open_with(p, deadline_ns, boot, e);
    if (code != ST_OK) {
        free(p);
        close(fd);
        return code;
    }
    *rank = p->rank;
    *n_ranks = p->n_ranks;
    export_number("PMI_FD", fd);
    export_number("PMI_RANK", p->rank);
    export_number("PMI_SIZE", p->n_ranks);
    unsetenv("PMI_PORT");
    return ST_OK;
}

enum st comm_boot_pmi_open_env(uint64_t deadline_ns, struct comm_boot *boot, int *rank, int *n_ranks, struct err *e) {
    if (!deadline_ns) deadline_ns = now_ns() + OPEN_WAIT_NS;
    const char *port = getenv("PMI_PORT");
    int fd;
    if (!getenv("PMI_FD")) {
        if (port) return open_port(port, deadline_ns, boot, rank, n_ranks, e);
        return err_set(e, ST_NOT_FOUND, "pmi: neither PMI_FD nor PMI_PORT is in the environment");
    }
    int r, n;
    if (!number_of(getenv("PMI_FD"), 0, 1 << 20, &fd) || !number_of(getenv("PMI_SIZE"), 1, COMM_MAX_RANKS, &n) ||
        !number_of(getenv("PMI_RANK"), 0, n - 1, &r))
        return err_set(e, ST_INVALID, "pmi: PMI_FD, PMI_RANK and PMI_SIZE do not go together");
    enum st code = comm_boot_pmi_open(fd, r, n, deadline_ns, boot, e);
    if (code != ST_OK) return code;
    *rank = r;
    *n_ranks = n;
    return ST_OK;
}
