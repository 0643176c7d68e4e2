/* The PMI-1 server. What MPICH 4.0.2 sends was read from its traffic under Hydra; the answers are Hydra's, word for word where a client looks at them.
 *
 * A client is strictly request and answer, so the answers that wait for one rank are few: one, and a barrier's. Who asks for more without reading is broken. */
#include "launcher/pmi.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"

#define KVS_NAME "tandem"
#define N_BUCKETS 1024u
#define OUT_BYTES 8192

struct pair {
    struct pair *next;
    const char *value; /* behind the key */
    char key[];
};

struct client {
    enum launch_pmi_state state;
    bool in_mcmd; /* between mcmd=… and endcmd */
    int n_pairs;
    size_t n_line, n_out;
    char line[LAUNCH_PMI_LINE_MAX + 1];
    char out[OUT_BYTES];
    struct err why; /* broken */
};

struct launch_pmi {
    int n_ranks, n_waiting;
    int aborted_by, exit_code;
    struct pair *buckets[N_BUCKETS];
    struct client clients[];
};

/* ---- the key-value space ------------------------------------------------------------------------------------------------------------------------------------ */

static struct pair **bucket_of(struct launch_pmi *s, const char *key, size_t n) {
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)key[i]) * 16777619u;
    return &s->buckets[h % N_BUCKETS];
}

static const struct pair *find(struct launch_pmi *s, const char *key, size_t n) {
    for (const struct pair *p = *bucket_of(s, key, n); p; p = p->next)
        if (strlen(p->key) == n && memcmp(p->key, key, n) == 0) return p;
    return NULL;
}

static bool add(struct launch_pmi *s, const char *key, size_t n_key, const char *value, size_t n_value) {
    struct pair *p = malloc(sizeof *p + n_key + 1 + n_value + 1);
    if (!p) return false;
    char *text = p->key;
    memcpy(text, key, n_key);
    text[n_key] = 0;
    if (n_value) memcpy(text + n_key + 1, value, n_value);
    text[n_key + 1 + n_value] = 0;
    p->value = text + n_key + 1;
    struct pair **bucket = bucket_of(s, key, n_key);
    p->next = *bucket;
    *bucket = p;
    return true;
}

/* ---- life ----------------------------------------------------------------------------------------------------------------------------------------------------- */

enum st launch_pmi_mapping(const int *host_of_rank, int n_ranks, char text[LAUNCH_PMI_MAPPING_BYTES], struct err *e) {
    struct block {
        int host, n_hosts, n_each;
    } blocks[COMM_MAX_RANKS];
    int n = 0;
    for (int r = 0; r < n_ranks;) {
        int host = host_of_rank ? host_of_rank[r] : 0, begin = r;
        if (host < 0 || host >= n_ranks) return err_set(e, ST_INVALID, "pmi: rank %d is on host %d of at most %d", r, host, n_ranks);
        while (r < n_ranks && (host_of_rank ? host_of_rank[r] : 0) == host) r++;
        struct block *last = n ? &blocks[n - 1] : NULL;
        if (last && last->n_each == r - begin && last->host + last->n_hosts == host)
            last->n_hosts++;
        else
            blocks[n++] = (struct block){host, 1, r - begin};
    }
    size_t at = (size_t)snprintf(text, LAUNCH_PMI_MAPPING_BYTES, "(vector");
    for (int i = 0; i < n && at < LAUNCH_PMI_MAPPING_BYTES; i++)
        at += (size_t)snprintf(text + at, LAUNCH_PMI_MAPPING_BYTES - at, ",(%d,%d,%d)", blocks[i].host, blocks[i].n_hosts, blocks[i].n_each);
    if (at + 1 > LAUNCH_PMI_VALUE_MAX) return err_set(e, ST_UNSUPPORTED, "pmi: the ranks are spread over the hosts in too many blocks (%d)", n);
    memcpy(text + at, ")", 2);
    return ST_OK;
}

enum st launch_pmi_create(int n_ranks, const int *host_of_rank, struct launch_pmi **out, struct err *e) {
    if (n_ranks < 1 || n_ranks > COMM_MAX_RANKS) return err_set(e, ST_INVALID, "pmi: %d ranks; 1 to %d are possible", n_ranks, COMM_MAX_RANKS);
    char mapping[LAUNCH_PMI_MAPPING_BYTES];
    enum st code = launch_pmi_mapping(host_of_rank, n_ranks, mapping, e);
    if (code != ST_OK) return code;
    struct launch_pmi *s = calloc(1, sizeof *s + (size_t)n_ranks * sizeof s->clients[0]);
    static const char key[] = "PMI_process_mapping";
    if (!s || !add(s, key, sizeof key - 1, mapping, strlen(mapping))) {
        free(s);
        return err_set(e, ST_NO_MEMORY, "pmi: no memory for a server of %d ranks", n_ranks);
    }
    s->n_ranks = n_ranks;
    s->aborted_by = -1;
    *out = s;
    return ST_OK;
}

void launch_pmi_destroy(struct launch_pmi *s) {
    if (!s) return;
    for (unsigned i = 0; i < N_BUCKETS; i++)
        for (struct pair *p = s->buckets[i], *next; p; p = next) {
            next = p->next;
            free(p);
        }
    free(s);
}

enum launch_pmi_state launch_pmi_query(const struct launch_pmi *s, int rank) { return s->clients[rank].state; }

int launch_pmi_aborted(const struct launch_pmi *s, int *exit_code) {
    if (s->aborted_by >= 0 && exit_code) *exit_code = s->exit_code;
    return s->aborted_by;
}

/* ---- answers ------------------------------------------------------------------------------------------------------------------------------------------------- */

static bool has_left(enum launch_pmi_state state) { return state == LAUNCH_PMI_FINALIZED || state == LAUNCH_PMI_GONE || state == LAUNCH_PMI_BROKEN; }

static void release_barrier(struct launch_pmi *s);
__attribute__((format(printf, 3, 4))) static void broken(struct launch_pmi *s, int rank, const char *format, ...) {
    struct client *c = &s->clients[rank];
    if (c->state == LAUNCH_PMI_BROKEN) return;
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    err_set(&c->why, ST_INVALID, "pmi: rank %d %s", rank, text);
    if (c->state == LAUNCH_PMI_WAITS) s->n_waiting--;
    c->state = LAUNCH_PMI_BROKEN;
    c->n_out = 0;
    release_barrier(s);
}

__attribute__((format(printf, 3, 4))) static void answer(struct launch_pmi *s, int rank, const char *format, ...) {
    struct client *c = &s->clients[rank];
    if (c->state == LAUNCH_PMI_BROKEN || c->state == LAUNCH_PMI_GONE) return;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(c->out + c->n_out, OUT_BYTES - c->n_out, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= OUT_BYTES - c->n_out) {
        broken(s, rank, "asks on without reading the answers");
        return;
    }
    c->n_out += (size_t)n;
}

/* When all are in it, or somebody never will be. */
static void release_barrier(struct launch_pmi *s) {
    int lost = -1;
    for (int r = 0; r < s->n_ranks && lost < 0; r++)
        if (has_left(s->clients[r].state)) lost = r;
    if (!s->n_waiting || (lost < 0 && s->n_waiting < s->n_ranks)) return;
    for (int r = 0; r < s->n_ranks; r++) {
        if (s->clients[r].state != LAUNCH_PMI_WAITS) continue;
        s->clients[r].state = LAUNCH_PMI_TALKS;
        s->n_waiting--;
        if (lost < 0)
            answer(s, r, "cmd=barrier_out\n");
        else
            answer(s, r, "cmd=barrier_out rc=-1 msg=rank_%d_has_left\n", lost);
    }
}

/* ---- requests ------------------------------------------------------------------------------------------------------------------------------------------------ */

struct text {
    const char *at;
    size_t n;
};

/* The value of name in "cmd=… name=value …": up to the next space. */
static bool value_of(const char *line, const char *name, struct text *value) {
    size_t n_name = strlen(name);
    for (const char *at = line; *at;) {
        size_t n = strcspn(at, " ");
        if (n > n_name && at[n_name] == '=' && memcmp(at, name, n_name) == 0) {
            *value = (struct text){at + n_name + 1, n - n_name - 1};
            return true;
        }
        at += n;
        at += strspn(at, " ");
    }
    return false;
}
static bool is(struct text t, const char *word) { return strlen(word) == t.n && memcmp(t.at, word, t.n) == 0; }
static bool names_our_space(const char *line) {
    struct text name;
    return value_of(line, "kvsname", &name) && is(name, KVS_NAME);
}

static void on_init(struct launch_pmi *s, int rank, const char *line) {
    struct text version;
    if (value_of(line, "pmi_version", &version) && is(version, "1"))
        answer(s, rank, "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n");
    else
        answer(s, rank, "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=-1\n");
}

static void on_put(struct launch_pmi *s, int rank, const char *line) {
    struct text key, value = {"", 0};
    const char *why = NULL;
    if (!names_our_space(line))
        why = "unknown_kvsname";
    else if (!value_of(line, "key", &key) || key.n == 0 || key.n > LAUNCH_PMI_KEY_MAX)
        why = "invalid_key_length";
    else if (value_of(line, "value", &value) && value.n > LAUNCH_PMI_VALUE_MAX)
        why = "invalid_value_length";
    else if (find(s, key.at, key.n))
        why = "duplicate_key";
    else if (s->clients[rank].n_pairs == LAUNCH_PMI_MAX_PAIRS)
        why = "too_many_keys";
    else if (!add(s, key.at, key.n, value.at, value.n))
        why = "no_memory";
    if (why) {
        answer(s, rank, "cmd=put_result rc=-1 msg=%s\n", why);
        return;
    }
    s->clients[rank].n_pairs++;
    answer(s, rank, "cmd=put_result rc=0 msg=success\n");
}

static void on_get(struct launch_pmi *s, int rank, const char *line) {
    struct text key;
    if (!names_our_space(line)) {
        answer(s, rank, "cmd=get_result rc=-1 msg=unknown_kvsname value=unknown\n");
    } else if (!value_of(line, "key", &key) || key.n == 0 || key.n > LAUNCH_PMI_KEY_MAX) {
        answer(s, rank, "cmd=get_result rc=-1 msg=invalid_key_length value=unknown\n");
    } else {
        const struct pair *p = find(s, key.at, key.n);
        if (p)
            answer(s, rank, "cmd=get_result rc=0 msg=success value=%s\n", p->value);
        else
            answer(s, rank, "cmd=get_result rc=-1 msg=key_%.*s_not_found value=unknown\n", (int)key.n, key.at);
    }
}

static void on_barrier_in(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    s->clients[rank].state = LAUNCH_PMI_WAITS;
    s->n_waiting++;
    release_barrier(s);
}

static void on_finalize(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=finalize_ack\n");
    if (s->clients[rank].state != LAUNCH_PMI_BROKEN) s->clients[rank].state = LAUNCH_PMI_FINALIZED;
    release_barrier(s);
}

static void on_abort(struct launch_pmi *s, int rank, const char *line) {
    struct text code;
    if (s->aborted_by >= 0) return;
    s->aborted_by = rank;
    s->exit_code = value_of(line, "exitcode", &code) ? atoi(code.at) : 1;
}

static void on_get_maxes(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=maxes kvsname_max=256 keylen_max=%d vallen_max=%d\n", LAUNCH_PMI_KEY_MAX, LAUNCH_PMI_VALUE_MAX);
}
static void on_get_appnum(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=appnum appnum=0\n");
}
static void on_get_universe_size(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=universe_size size=%d\n", s->n_ranks);
}
static void on_get_my_kvsname(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=my_kvsname kvsname=" KVS_NAME "\n");
}
static void on_publish_name(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=publish_result info=not_served rc=-1 msg=not_served\n");
}
static void on_unpublish_name(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=unpublish_result info=not_served rc=-1 msg=not_served\n");
}
static void on_lookup_name(struct launch_pmi *s, int rank, const char *line) {
    (void)line;
    answer(s, rank, "cmd=lookup_result info=not_served rc=-1 msg=not_served\n");
}

static const struct request {
    const char *name;
    void (*serve)(struct launch_pmi *s, int rank, const char *line);
} requests[] = {
    {"init", on_init},
    {"get_maxes", on_get_maxes},
    {"get_appnum", on_get_appnum},
    {"get_universe_size", on_get_universe_size},
    {"get_my_kvsname", on_get_my_kvsname},
    {"put", on_put},
    {"get", on_get},
    {"barrier_in", on_barrier_in},
    {"finalize", on_finalize},
    {"abort", on_abort},
    {"publish_name", on_publish_name},
    {"unpublish_name", on_unpublish_name},
    {"lookup_name", on_lookup_name},
};

static void serve(struct launch_pmi *s, int rank, const char *line) {
    struct client *c = &s->clients[rank];
    struct text name;
    if (c->state == LAUNCH_PMI_WAITS || c->state == LAUNCH_PMI_FINALIZED) {
        broken(s, rank, c->state == LAUNCH_PMI_WAITS ? "asks on while it waits in a barrier" : "asks on after finalize");
        return;
    }
    c->state = LAUNCH_PMI_TALKS;
    if (c->in_mcmd) { /* of its many lines only the last is of interest */
        if (strcmp(line, "endcmd") != 0) return;
        c->in_mcmd = false;
        answer(s, rank, "cmd=spawn_result rc=-1 status=not_served\n");
        return;
    }
    if (strncmp(line, "mcmd=", 5) == 0) {
        c->in_mcmd = true;
        return;
    }
    if (strncmp(line, "cmd=", 4) != 0 || !value_of(line, "cmd", &name)) {
        broken(s, rank, "wrote a line that is no request of PMI-1");
        return;
    }
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        if (is(name, requests[i].name)) {
            requests[i].serve(s, rank, line);
            return;
        }
    answer(s, rank, "cmd=error rc=-1 msg=unknown_command\n");
}

enum st launch_pmi_feed(struct launch_pmi *s, int rank, const void *bytes, size_t n, struct err *e) {
    struct client *c = &s->clients[rank];
    const char *at = bytes;
    for (size_t i = 0; i < n && c->state != LAUNCH_PMI_BROKEN && c->state != LAUNCH_PMI_GONE; i++) {
        if (at[i] == '\n') {
            c->line[c->n_line] = 0;
            c->n_line = 0;
            serve(s, rank, c->line);
        } else if ((unsigned char)at[i] < 0x20 || (unsigned char)at[i] > 0x7e) {
            broken(s, rank, "wrote the byte 0x%02x", (unsigned char)at[i]);
        } else if (c->n_line == LAUNCH_PMI_LINE_MAX) {
            broken(s, rank, "wrote a line of more than %d bytes", LAUNCH_PMI_LINE_MAX);
        } else {
            c->line[c->n_line++] = at[i];
        }
    }
    return c->state == LAUNCH_PMI_BROKEN ? err_set(e, ST_INVALID, "%s", c->why.text) : ST_OK;
}

size_t launch_pmi_pending(const struct launch_pmi *s, int rank, const void **bytes) {
    *bytes = s->clients[rank].out;
    return s->clients[rank].n_out;
}

void launch_pmi_sent(struct launch_pmi *s, int rank, size_t n) {
    struct client *c = &s->clients[rank];
    BASE_ASSERT(n <= c->n_out);
    c->n_out -= n;
    memmove(c->out, c->out + n, c->n_out);
}

void launch_pmi_hang_up(struct launch_pmi *s, int rank) {
    struct client *c = &s->clients[rank];
    c->n_out = 0;
    if (has_left(c->state)) return;
    if (c->state == LAUNCH_PMI_WAITS) s->n_waiting--;
    c->state = LAUNCH_PMI_GONE;
    release_barrier(s);
}

/* ---- over a socket -------------------------------------------------------------------------------------------------------------------------------------------- */

enum st launch_pmi_read(struct launch_pmi *s, int rank, const struct comm_os *os, int fd, struct err *e) {
    char bytes[4096];
    ssize_t n = os->recv(os, fd, bytes, sizeof bytes);
    if (n > 0) return launch_pmi_feed(s, rank, bytes, (size_t)n, e);
    if (n == 0 || (errno != EAGAIN && errno != EINTR)) launch_pmi_hang_up(s, rank);
    return ST_OK;
}

bool launch_pmi_write(struct launch_pmi *s, int rank, const struct comm_os *os, int fd) {
    const void *bytes;
    for (size_t left; (left = launch_pmi_pending(s, rank, &bytes)) > 0;) {
        ssize_t n = os->send(os, fd, bytes, left);
        if (n >= 0) {
            launch_pmi_sent(s, rank, (size_t)n);
        } else if (errno != EINTR) {
            if (errno == EAGAIN) return true;
            launch_pmi_hang_up(s, rank);
        }
    }
    return false;
}
