#include "launcher/hosts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/build_id.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "launcher/agent.h"
#include "launcher/handed.h"
#include "launcher/interrupt.h"
#include "launcher/meeting.h"
#include "launcher/same_model.h"
#include "launcher/seating.h"
#include "launcher/setup.h"
#include "launcher/ways.h"

#define ANSWER_MS 20000
#define RESOLVE_MS 2000
#define LOOK_MS 100
#define LAST_WORDS_MS 500
#define PATIENT_NS (2 * BASE_NS_PER_S) /* who is waited for longer is named */

/* ---- the list ----------------------------------------------------------------------------------------------------------------------------------------- */

enum st launch_hosts_parse(const char *list, const char *ssh, int n_ranks, struct launch_hosts **out, struct err *e)
{
    struct launch_hosts *hosts = calloc(1, sizeof *hosts);
    if (!hosts)
        return err_set(e, ST_NO_MEMORY, "no memory for the hosts");
    hosts->ssh = ssh;
    hosts->handed_fd = -1;
    enum st st = ST_OK;
    for (const char *at = list; !st; at++) {
        const size_t n = strcspn(at, ", \t\n");
        if (n == 0 && hosts->n > 0 && !*at)
            break;
        if (n == 0 || n >= sizeof hosts->h[0].typed || hosts->n == LAUNCH_MAX_HOSTS) {
            st = err_set(e, ST_INVALID, "--hosts %.100s: wants up to %d names with commas between, like spark1,me@spark2", list, LAUNCH_MAX_HOSTS);
            break;
        }
        struct launch_hosts_entry *h = &hosts->h[hosts->n++];
        memcpy(h->typed, at, n);
        st = launch_target_parse(h->typed, &h->target, e);
        for (int i = 0; i < hosts->n - 1 && !st; i++)
            if (strcmp(hosts->h[i].typed, h->typed) == 0)
                st = err_set(e, ST_INVALID, "--hosts: %s is there twice; -n gives a host several ranks", h->typed);
        at += n;
        while (*at == ' ' || *at == '\t' || *at == '\n')
            at++;
        if (!*at)
            break;
        if (*at != ',')
            at--;
    }
    if (!st && n_ranks && n_ranks < hosts->n)
        st = err_set(e, ST_INVALID, "-n %d: fewer ranks than the %d hosts", n_ranks, hosts->n);
    const int total = n_ranks ? n_ranks : hosts->n;
    for (int i = 0, first = 0; i < hosts->n && !st; i++) {
        hosts->h[i].first_rank = first;
        hosts->h[i].n_ranks = total / hosts->n + (i < total % hosts->n);
        first += hosts->h[i].n_ranks;
        hosts->h[i].end = (struct launch_end){.in_fd = -1, .out_fd = -1};
        hosts->h[i].direct_fd = -1;
    }
    if (st) {
        free(hosts);
        return st;
    }
    *out = hosts;
    return ST_OK;
}

static void close_end(struct launch_end *end)
{
    if (end->pid > 0 || end->remote)
        launch_end_close(end, 500);
    if (end->inbox)
        rt_inbox_release(end->inbox);
    free(end->inbox);
    *end = (struct launch_end){.in_fd = -1, .out_fd = -1};
}

void launch_hosts_destroy(struct launch_hosts *hosts)
{
    for (int i = 0; hosts && i < hosts->n; i++) {
        close_end(&hosts->h[i].end);
        if (hosts->h[i].direct_fd >= 0)
            close(hosts->h[i].direct_fd);
    }
    if (hosts) {
        if (hosts->handed_fd >= 0)
            close(hosts->handed_fd);
        launch_bundles_release(&hosts->bundles);
        launch_decision_release(&hosts->decision);
        free(hosts->interfaces);
        explicit_bzero(hosts->key, sizeof hosts->key);
    }
    free(hosts);
}

/* ---- agents ------------------------------------------------------------------------------------------------------------------------------------------- */

/* At once here; on another host a thread does the work (launch_remote_wait tells the end of it). */
static enum st begin(struct launch_hosts *hosts, struct launch_hosts_entry *h, struct err *e)
{
    h->end = (struct launch_end){.host = h->typed, .in_fd = -1, .out_fd = -1, .ssh = hosts->ssh, .first_rank = h->first_rank, .n_ranks = h->n_ranks};
    enum st st = ST_OK;
    h->is_local = launch_target_is_local(&h->target, RESOLVE_MS);
    if (!h->is_local) {
        static const char *const words[] = {"agent", "--host", NULL};
        const struct launch_remote_options o = {.host = &h->target, .ssh = hosts->ssh, .words = words};
        if (!hosts->bundles.n)
            st = launch_bundles_create(hosts->with_mpi, &hosts->bundles, e);
        return st ? st : launch_remote_start(&o, &hosts->bundles, &h->end.remote, e);
    }
    int pair[2], handed[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    if (hosts->handed_fd < 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, handed))
        st = err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    if (!st)
        st = launch_agent_spawn_host(pair[1], handed[1], &h->end.pid, e);
    close(pair[1]);
    if (handed[1] >= 0)
        close(handed[1]);
    if (st) {
        close(pair[0]);
        if (handed[0] >= 0)
            close(handed[0]);
        return st;
    }
    if (handed[0] >= 0) {
        hosts->handed_fd = handed[0];
        hosts->i_own = (int)(h - hosts->h);
    }
    h->end.in_fd = h->end.out_fd = pair[0];
    return ST_OK;
}

/* Agents that nobody asks anything shall know that their launcher lives. One that takes nothing is found in other ways. */
static void beat(const struct launch_hosts *hosts, uint64_t *beat_ns)
{
    const uint64_t now = base_now_ns(base_clock_real());
    const uint32_t frame[2] = {0, RT_BEAT};
    if (now - *beat_ns < LAUNCH_BEAT_MS * BASE_NS_PER_MS)
        return;
    *beat_ns = now;
    for (int i = 0; i < hosts->n; i++)
        if (hosts->h[i].end.inbox)
            (void)!send(hosts->h[i].end.out_fd, frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void tell_awaited(const struct launch_hosts_entry *h, const char *what, uint64_t since, bool *is_told)
{
    if (!*is_told && base_now_ns(base_clock_real()) - since >= PATIENT_NS)
        fprintf(stderr, "waiting for host %s %s\n", h->typed, what);
    *is_told |= base_now_ns(base_clock_real()) - since >= PATIENT_NS;
}

/* ST_AGAIN: it is not there yet. */
static enum st try_end(struct launch_hosts_entry *h, int timeout_ms, struct err *e)
{
    if (h->end.inbox)
        return ST_OK;
    const enum st st = h->end.remote ? launch_remote_wait(h->end.remote, timeout_ms, e) : ST_OK;
    if (st)
        return st;
    h->end.inbox = malloc(sizeof *h->end.inbox);
    if (!h->end.inbox)
        return err_set(e, ST_NO_MEMORY, "no memory for a host");
    if (h->end.remote)
        h->end.in_fd = h->end.out_fd = launch_remote_fd(h->end.remote);
    rt_inbox_init(h->end.inbox, h->end.in_fd);
    return ST_OK;
}

/* Agents that are there hear from us while we wait for another. What failed is told in its turn. */
static enum st open_end(struct launch_hosts *hosts, struct launch_hosts_entry *h, struct err *e)
{
    const uint64_t since = base_now_ns(base_clock_real());
    uint64_t beat_ns = 0;
    bool is_told = false;
    enum st st;
    while ((st = try_end(h, LOOK_MS, e)) == ST_AGAIN) {
        if (launch_interrupted())
            return err_set(e, ST_CANCELLED, "interrupted");
        tell_awaited(h, "to be reached by ssh", since, &is_told);
        for (int i = 0; i < hosts->n; i++)
            (void)try_end(&hosts->h[i], 0, NULL);
        beat(hosts, &beat_ns);
    }
    return st;
}

/* The next frame of that kind; payload is borrowed until the host is heard again. */
static enum st hear(struct launch_hosts *hosts, int from, enum rt_frame_kind wanted, uint64_t until, const void **payload, size_t *bytes, struct err *e)
{
    struct launch_hosts_entry *h = &hosts->h[from];
    const uint64_t since = base_now_ns(base_clock_real());
    const char *what = wanted == RT_HOST ? "to tell of itself" : wanted == RT_REACHED ? "to reach the others' ports" : wanted == RT_MODEL ? "to open the model" : wanted == RT_SEATS ? "to read its topology" : wanted == RT_RAILS ? "to prove its rails" : "to find the other hosts";
    uint64_t heard = since; /* agents beat from their first word on, but for the time that a file system takes */
    bool is_told = false;
    uint64_t beat_ns = 0;
    for (;;) {
        tell_awaited(h, what, since, &is_told);
        beat(hosts, &beat_ns);
        enum rt_frame_kind kind;
        struct err why = {""};
        const uint64_t now = base_now_ns(base_clock_real());
        const enum st st = rt_inbox_next(h->end.inbox, now < until ? LOOK_MS : 0, &kind, payload, bytes, &why);
        if (st == ST_AGAIN && launch_interrupted())
            return err_set(e, ST_CANCELLED, "interrupted");
        if (st == ST_AGAIN && now >= until)
            return err_set(e, ST_TIMEOUT, "host %s: its agent did not answer within %d s", h->typed, ANSWER_MS / 1000);
        if (st == ST_PEER_LOST)
            return err_set(e, ST_PEER_LOST, "host %s: its agent is gone before it started", h->typed);
        if (st && st != ST_AGAIN)
            return err_set(e, st, "host %s: %s", h->typed, why.text);
        uint32_t number;
        char text[400];
        if (!st && (kind == RT_STORY || kind == RT_LOST) && rt_frame_told(*payload, *bytes, &number, text, sizeof text))
            return err_set(e, ST_PEER_LOST, "host %s: %s", kind == RT_STORY ? h->typed : number < (uint32_t)hosts->n ? hosts->h[number].typed : "?", text);
        if (!st && kind == wanted)
            return ST_OK;
        heard = st ? heard : now;
        if (st == ST_AGAIN && wanted != RT_HOST && wanted != RT_MODEL && now - heard >= LAUNCH_SILENCE_HOST_MS * BASE_NS_PER_MS)
            return err_set(e, ST_TIMEOUT, "host %s: its agent gave no sign of life for %.1f s", h->typed, (double)(now - heard) / (double)BASE_NS_PER_S);
    }
}

/* An agent that is gone has said why, most likely. */
static enum st say(struct launch_hosts *hosts, int to, enum rt_frame_kind kind, const struct iovec *pieces, int n, struct err *e)
{
    const void *payload;
    size_t bytes;
    const enum st st = rt_frame_sendv(hosts->h[to].end.out_fd, kind, pieces, n, NULL);
    if (!st)
        return ST_OK;
    const enum st why = hear(hosts, to, RT_STORY, base_now_ns(base_clock_real()) + LAST_WORDS_MS * BASE_NS_PER_MS, &payload, &bytes, e);
    return why == ST_TIMEOUT ? err_set(e, st, "host %s: its agent is gone without a word", hosts->h[to].typed) : why;
}

static enum st say_one(struct launch_hosts *hosts, int to, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e)
{
    return say(hosts, to, kind, &(const struct iovec){(void *)(uintptr_t)payload, bytes}, 1, e);
}

/* What has come meanwhile: another host may have fallen silent since we asked for anything. */
static enum st hear_story(struct launch_hosts *hosts, int from, struct err *e)
{
    const void *payload;
    size_t bytes;
    struct err why = {""};
    const enum st st = hear(hosts, from, RT_STORY, 0, &payload, &bytes, &why);
    return st == ST_TIMEOUT ? ST_OK : err_set(e, st, "%s", why.text);
}

/* --allow-mixed is not there yet. */
static enum st check_machines(const struct launch_hosts *hosts, struct err *e)
{
    for (int i = 1; i < hosts->n; i++)
        if (strcmp(hosts->h[i].info.machine, hosts->h[0].info.machine) != 0)
            return err_set(e, ST_UNSUPPORTED, "--hosts: %s is %s, and %s is %s; the hosts of one job must have one architecture", hosts->h[0].typed, hosts->h[0].info.machine, hosts->h[i].typed,
                           hosts->h[i].info.machine);
    return ST_OK;
}

static enum st hear_host(struct launch_hosts *hosts, int from, struct launch_interfaces *interfaces, uint64_t until, struct err *e)
{
    struct launch_hosts_entry *h = &hosts->h[from];
    const void *payload;
    size_t bytes;
    struct err why = {""};
    enum st st = hear(hosts, from, RT_HOST, until, &payload, &bytes, e);
    if (st)
        return st;
    if (launch_host_parse(payload, bytes, &h->info, &why))
        return err_set(e, ST_INVALID, "host %s: %s", h->typed, why.text);
    if (strcmp(h->info.build, tandem_build_id))
        return err_set(e, ST_MISMATCH, "host %s: its tandem was built from other sources (%.12s, here %.12s)%s%s", h->typed, h->info.build, tandem_build_id,
                       h->end.remote ? ": the bundle is old; make it again by make bundle ARCH=" : "", h->end.remote ? h->info.machine : "");
    st = hear(hosts, from, RT_INTERFACES, until, &payload, &bytes, e);
    return st ? st : launch_interfaces_from_json(h->typed, payload, bytes, interfaces, e);
}

/* ---- addresses ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Agents of one machine would take each other's. */
static enum st check_port(const struct launch_hosts *hosts, struct err *e)
{
    for (int i = 0; i < hosts->n; i++)
        for (int k = 0; k < i; k++)
            if (hosts->port && launch_interfaces_same_machine(&hosts->interfaces[i], &hosts->interfaces[k]))
                return err_set(e, ST_INVALID, "--port %d: %s and %s are the same machine, and cannot both have it", hosts->port, hosts->h[k].typed, hosts->h[i].typed);
    return ST_OK;
}

static enum st order_probes(struct launch_hosts *hosts, struct err *e)
{
    struct launch_probe_order order = {.port = (uint32_t)hosts->port};
    memcpy(order.key, hosts->key, sizeof order.key);
    enum st st = ST_OK;
    for (int i = 0; i < hosts->n && !st; i++) {
        order.host = (uint32_t)i;
        st = say_one(hosts, i, RT_PROBE, &order, sizeof order, e);
    }
    return st;
}

/* Interfaces and sockets of host from, to all others. */
static enum st introduce(struct launch_hosts *hosts, int from, const void *endpoints, size_t bytes, struct err *e)
{
    char *interfaces = launch_interfaces_to_json(&hosts->interfaces[from]);
    if (!interfaces)
        return err_set(e, ST_NO_MEMORY, "no memory for a host's interfaces");
    struct launch_peer_head head = {(uint32_t)from, (uint32_t)strlen(interfaces)};
    const struct iovec pieces[] = {{&head, sizeof head}, {interfaces, head.interfaces_bytes}, {(void *)(uintptr_t)endpoints, bytes}};
    enum st st = ST_OK;
    for (int to = 0; to < hosts->n && !st; to++)
        if (to != from)
            st = say(hosts, to, RT_PEER, pieces, 3, e);
    free(interfaces);
    return st;
}

/* What both hosts of each pair found, as one; found [n, n] of n − 1 each. */
static enum st hear_facings(struct launch_hosts *hosts, struct launch_facings *found, uint64_t until, struct err *e)
{
    enum st st = ST_OK;
    for (int i = 0; i < hosts->n && !st; i++)
        for (int k = 0; k < hosts->n - 1 && !st; k++) {
            const void *payload;
            size_t bytes;
            uint32_t peer = LAUNCH_MAX_HOSTS;
            st = hear(hosts, i, RT_FACINGS, until, &payload, &bytes, e);
            if (!st && bytes >= sizeof peer)
                memcpy(&peer, payload, sizeof peer);
            if (!st && ((int)peer >= hosts->n || (int)peer == i || found[i * hosts->n + (int)peer].list))
                st = err_set(e, ST_INVALID, "host %s: tells of a host that was not asked about", hosts->h[i].typed);
            if (!st)
                st = launch_facings_from_json(hosts->h[i].typed, (const char *)payload + sizeof peer, bytes - sizeof peer, &found[i * hosts->n + (int)peer], e);
        }
    return st;
}

static enum st find_ways(struct launch_hosts *hosts, uint64_t until, struct launch_facings *found, struct launch_facings *merged, int *n_merged, struct err *e)
{
    enum st st = check_port(hosts, e);
    if (!st)
        st = order_probes(hosts, e);
    for (int i = 0; i < hosts->n && !st; i++) {
        const void *payload;
        size_t bytes;
        st = hear(hosts, i, RT_ENDPOINTS, until, &payload, &bytes, e);
        if (!st)
            st = introduce(hosts, i, payload, bytes, e);
    }
    if (!st)
        st = hear_facings(hosts, found, until, e);
    for (int i = 0; i < hosts->n && !st; i++)
        for (int k = i + 1; k < hosts->n && !st; k++) {
            st = launch_probe_merge(&found[i * hosts->n + k], &found[k * hosts->n + i], &merged[*n_merged], e);
            *n_merged += !st;
        }
    return st;
}

/* ---- rails --------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st hear_proofs(struct launch_hosts *hosts, int i, struct launch_proof *proofs, int n, uint64_t until, struct err *e)
{
    const void *payload;
    size_t bytes;
    const enum st st = hear(hosts, i, RT_RAILS, until, &payload, &bytes, e);
    if (st)
        return st;
    if (bytes != (size_t)n * sizeof *proofs)
        return err_set(e, ST_INVALID, "host %s: tells %zu bytes of %d rails", hosts->h[i].typed, bytes, n);
    memcpy(proofs, payload, bytes);
    return ST_OK;
}

/* Several rails for our own sockets (choose_streams): what is sent by one must leave by its interface and no other, seen by both hosts. */
static enum st prove_rails(struct launch_hosts *hosts, uint64_t until, struct err *e)
{
    struct launch_pair *pair = &hosts->decision.pairs[0];
    const int n = pair->n_rails;
    struct launch_proof proofs[2][LAUNCH_MAX_RAILS];
    enum st st = ST_OK;
    if (hosts->n != 2 || pair->transport != LAUNCH_TCP || n < 2)
        return ST_OK;
    for (int s = 0; s < 2 && !st; s++) {
        struct launch_facing rails[LAUNCH_MAX_RAILS];
        st = say_one(hosts, pair->host[s], RT_RAILS, rails, (size_t)launch_pair_rails(pair, pair->host[s], rails) * sizeof *rails, e);
    }
    for (int s = 0; s < 2 && !st; s++)
        st = hear_proofs(hosts, pair->host[s], proofs[s], n, until, e);
    for (int i = n - 1; i >= 0 && !st; i--)
        for (int s = 0; s < 2; s++) {
            const struct launch_proof *p = &proofs[s][i];
            char why[200];
            if (p->is_proved)
                continue;
            snprintf(why, sizeof why, "of %llu bytes that %.60s sent by it, its interface counts %llu and another one %llu:", (unsigned long long)p->sent_bytes, hosts->h[pair->host[s]].typed,
                     (unsigned long long)p->own_bytes, (unsigned long long)p->other_bytes);
            launch_pair_drop_rail(pair, i, why);
            break;
        }
    return st;
}

/* ---- what was decided, opened and tried ----------------------------------------------------------------------------------------------------------------- */

/* From our own host to one that was started by ssh. */
static bool is_control(const struct launch_hosts *hosts, int a, int b)
{
    return hosts->handed_fd >= 0 && ((a == hosts->i_own && hosts->h[b].end.remote) || (b == hosts->i_own && hosts->h[a].end.remote));
}

/* Ranks meet by RDMA only where all pairs have it: one pair without makes TCP of all. */
static bool is_all_rdma(const struct launch_hosts *hosts)
{
    bool is_rdma = true;
    for (int i = 0; i < hosts->decision.n_pairs; i++)
        is_rdma &= hosts->decision.pairs[i].transport == LAUNCH_RDMA;
    return is_rdma;
}

static bool is_tried(const struct launch_hosts *hosts, int a, int b) { return is_control(hosts, a, b) || !is_all_rdma(hosts); }

static void describe_ways(const struct launch_hosts *hosts, int from, struct launch_ways *w)
{
    const struct launch_hosts_entry *h = &hosts->h[from];
    *w = (struct launch_ways){.host = (uint32_t)from, .first_rank = (uint32_t)h->first_rank, .n_ranks = (uint32_t)h->n_ranks, .port = (uint32_t)hosts->port};
    memcpy(w->key, hosts->key, sizeof w->key);
    snprintf(w->name, sizeof w->name, "%.63s", h->typed);
    for (int to = 0; to < hosts->n; to++) {
        if (to == from)
            continue;
        const struct launch_hosts_entry *other = &hosts->h[to];
        const struct launch_pair *pair = launch_decision_pair(&hosts->decision, from, to);
        const struct launch_rail *rail = &pair->rails[0];
        const int own = pair->host[0] == from ? 0 : 1;
        struct launch_way *way = &w->list[w->n++];
        *way = (struct launch_way){.host = (uint32_t)to,
                                   .first_rank = (uint32_t)other->first_rank,
                                   .n_ranks = (uint32_t)other->n_ranks,
                                   .index = (uint32_t)rail->index[own],
                                   .tcp = is_tried(hosts, from, to),
                                   .control = is_control(hosts, from, to),
                                   .own = rail->address[own],
                                   .address = rail->address[1 - own]};
        snprintf(way->name, sizeof way->name, "%.63s", other->typed);
        memcpy(way->interface, rail->interface[own], sizeof way->interface);
        memcpy(way->peer_interface, rail->interface[1 - own], sizeof way->peer_interface);
    }
}

/* told [n, n]: what host i told of its end of the way to host k. */
static enum st hear_ports(struct launch_hosts *hosts, int i, struct launch_port *told, uint64_t until, struct err *e)
{
    const void *payload;
    size_t bytes;
    const enum st st = hear(hosts, i, RT_PORTS, until, &payload, &bytes, e);
    if (st)
        return st;
    const size_t n = bytes / sizeof *told;
    if (n != (size_t)hosts->n - 1 || bytes % sizeof *told)
        return err_set(e, ST_INVALID, "host %s: tells %zu bytes of ports", hosts->h[i].typed, bytes);
    for (size_t k = 0; k < n; k++) {
        struct launch_port port;
        memcpy(&port, (const char *)payload + k * sizeof port, sizeof port);
        if (port.host >= (uint32_t)hosts->n)
            return err_set(e, ST_INVALID, "host %s: tells of a host that was not asked about", hosts->h[i].typed);
        told[i * hosts->n + (int)port.host] = port;
    }
    return ST_OK;
}

static enum st pass_ports(struct launch_hosts *hosts, int to, const struct launch_port *told, struct err *e)
{
    struct launch_port ports[LAUNCH_MAX_HOSTS];
    size_t n = 0;
    for (int from = 0; from < hosts->n; from++)
        if (from != to) {
            ports[n] = told[from * hosts->n + to];
            ports[n++].host = (uint32_t)from;
        }
    return say_one(hosts, to, RT_PORTS, ports, n * sizeof *ports, e);
}

static enum st hear_reached(struct launch_hosts *hosts, int i, uint64_t until, struct err *e)
{
    const void *payload;
    size_t bytes;
    uint32_t code = ST_INVALID;
    char text[500] = "an agent that tells nothing of the ports that it tried";
    const enum st st = hear(hosts, i, RT_REACHED, until, &payload, &bytes, e);
    if (st)
        return st;
    (void)rt_frame_told(payload, bytes, &code, text, sizeof text);
    return code ? err_set(e, ST_PEER_LOST, "%s", text) : ST_OK;
}

/* From our own agent: what leads to the others' over the decided ways. */
static enum st take_direct(struct launch_hosts *hosts, uint64_t until, struct err *e)
{
    int n_left = 0;
    for (int i = 0; i < hosts->n; i++)
        n_left += is_control(hosts, hosts->i_own, i);
    while (n_left > 0) {
        uint32_t host;
        int fd;
        struct err why = {""};
        const enum st st = launch_handed_receive(hosts->handed_fd, LOOK_MS, &host, &fd, &why);
        if (st == ST_AGAIN && launch_interrupted())
            return err_set(e, ST_CANCELLED, "interrupted");
        if (st == ST_AGAIN && base_now_ns(base_clock_real()) >= until)
            return err_set(e, ST_TIMEOUT, "host %s: its agent did not hand over the connections to the others within %d s", hosts->h[hosts->i_own].typed, ANSWER_MS / 1000);
        if (st == ST_AGAIN)
            continue;
        if (st)
            return err_set(e, st, "host %s: %s", hosts->h[hosts->i_own].typed, why.text);
        if (host >= (uint32_t)hosts->n || !is_control(hosts, hosts->i_own, (int)host) || hosts->h[host].direct_fd >= 0) {
            close(fd);
            return err_set(e, ST_INVALID, "host %s: its agent hands over a connection that nobody wants", hosts->h[hosts->i_own].typed);
        }
        hosts->h[host].direct_fd = fd;
        n_left--;
    }
    return ST_OK;
}

static enum st open_ways(struct launch_hosts *hosts, uint64_t until, struct err *e)
{
    struct launch_port told[LAUNCH_MAX_HOSTS * LAUNCH_MAX_HOSTS] = {{0}};
    enum st st = ST_OK;
    for (int i = 0; i < hosts->n && !st; i++) {
        struct launch_ways ways;
        describe_ways(hosts, i, &ways);
        st = say_one(hosts, i, RT_WAYS, &ways, sizeof ways, e);
        explicit_bzero(ways.key, sizeof ways.key);
    }
    for (int i = 0; i < hosts->n && !st; i++)
        st = hear_ports(hosts, i, told, until, e);
    for (int i = 0; i < hosts->n && !st; i++)
        st = pass_ports(hosts, i, told, e);
    for (int i = 0; i < hosts->n && !st; i++)
        st = hear_reached(hosts, i, until, e);
    return st || hosts->handed_fd < 0 ? st : take_direct(hosts, until, e);
}

/* Our end of each connection between ranks of two hosts: one by each rail, two where there is only one. Each is bound to its interface. (Beyond two hosts rails could be others for each
 * pair: there it is one connection.) */
static void choose_streams(struct launch_hosts *hosts)
{
    const struct launch_pair *pair = &hosts->decision.pairs[0];
    if (hosts->n != 2 || pair->transport != LAUNCH_TCP)
        return;
    const int n = pair->n_rails == 1 ? 2 : pair->n_rails < COMM_MAX_STREAMS ? pair->n_rails : COMM_MAX_STREAMS;
    for (int s = 0; s < 2; s++) {
        struct launch_hosts_entry *h = &hosts->h[pair->host[s]];
        for (int i = 0; i < n; i++) {
            const struct launch_rail *rail = &pair->rails[i % pair->n_rails];
            const size_t at = strlen(h->streams);
            char text[LAUNCH_ADDRESS_TEXT];
            snprintf(h->streams + at, sizeof h->streams - at, "%s%s%%%s", i ? "," : "", launch_address_text(&rail->address[s], NULL, text), rail->interface[s]);
        }
    }
}

static uint64_t hash_text(const char *text, uint64_t seed) { return base_hash64(text, strlen(text) + 1, seed); }

/* By which comm_tune knows these hosts and their ways again. */
static void name_pair(struct launch_hosts *hosts)
{
    uint64_t hash = 0;
    for (int i = 0; i < hosts->n; i++)
        hash = hash_text(hosts->h[i].streams, hash_text(hosts->h[i].target.name, hash));
    for (int i = 0; i < hosts->decision.n_pairs; i++) {
        const struct launch_pair *p = &hosts->decision.pairs[i];
        hash = hash_text(p->transport == LAUNCH_RDMA ? "rdma" : "tcp", hash);
        for (int k = 0; k < p->n_rails; k++)
            for (int s = 0; s < 2; s++) {
                char text[LAUNCH_ADDRESS_TEXT];
                hash = hash_text(launch_address_text(&p->rails[k].address[s], NULL, text), hash_text(p->rails[k].interface[s], hash_text(p->rails[k].device[s], hash)));
            }
    }
    snprintf(hosts->pair, sizeof hosts->pair, "%d hosts, %.200s first, %016llx", hosts->n, hosts->h[0].target.name, (unsigned long long)hash);
}

/* One for all, with shared memory where some host has several ranks (each has one). */
const char *launch_hosts_carrier(int n_hosts, int n_ranks, bool is_rdma)
{
    if (n_hosts == 1)
        return NULL;
    if (n_ranks > n_hosts)
        return is_rdma ? "shm+ucx" : "shm+tcp";
    return is_rdma ? "ucx" : "tcp";
}

static void tell_warnings(const struct launch_hosts *hosts)
{
    for (int i = 0; i < hosts->decision.n_pairs; i++) {
        const struct launch_pair *p = &hosts->decision.pairs[i];
        const char *a = hosts->h[p->host[0]].typed, *b = hosts->h[p->host[1]].typed;
        for (int w = 0; w < p->n_warnings; w++)
            LOG_WARNING("hosts", "%s - %s: %s", a, b, p->warnings[w]);
    }
}

/* The one address decision. */
static enum st decide(struct launch_hosts *hosts, uint64_t until, struct err *e)
{
    if (hosts->n == 1)
        return ST_OK;
    struct launch_facings *found = calloc((size_t)(hosts->n * hosts->n), sizeof *found), *merged = calloc((size_t)(hosts->n * hosts->n), sizeof *merged);
    struct launch_host named[LAUNCH_MAX_HOSTS];
    int n_merged = 0;
    enum st st = found && merged ? find_ways(hosts, until, found, merged, &n_merged, e) : err_set(e, ST_NO_MEMORY, "no memory for the ways between hosts");
    for (int i = 0; i < hosts->n; i++)
        named[i] = (struct launch_host){hosts->h[i].typed, &hosts->interfaces[i]};
    const struct launch_wishes wishes = {.transport = hosts->transport, .port = hosts->port, .n_ports = hosts->n - 1};
    if (!st)
        st = launch_decide(named, hosts->n, merged, n_merged, &wishes, &hosts->decision, e);
    if (!st)
        st = prove_rails(hosts, until, e);
    for (int i = 0; i < hosts->n && !st; i++) {
        (void)launch_decision_address(&hosts->decision, i, hosts->h[i].address);
        launch_decision_environment(&hosts->decision, i, &hosts->h[i].environment);
    }
    if (!st)
        tell_warnings(hosts);
    if (!st)
        hosts->backend = launch_hosts_carrier(hosts->n, hosts->h[hosts->n - 1].first_rank + hosts->h[hosts->n - 1].n_ranks, is_all_rdma(hosts));
    if (!st) {
        choose_streams(hosts);
        name_pair(hosts);
    }
    for (int i = 0; found && i < hosts->n * hosts->n; i++)
        launch_facings_release(&found[i]);
    for (int i = 0; i < n_merged; i++)
        launch_facings_release(&merged[i]);
    free(found);
    free(merged);
    return st;
}

void launch_hosts_print_host(const struct launch_hosts_entry *h, FILE *out)
{
    fprintf(out, "host %s (%s, %d CPUs): ranks %d-%d", h->typed, h->is_local ? "here" : "by ssh", h->info.n_cpus, h->first_rank, h->first_rank + h->n_ranks - 1);
    fprintf(out, h->address[0] ? ", reached at %s\n" : "\n", h->address);
}

void launch_hosts_print(const struct launch_hosts *hosts, FILE *out)
{
    struct launch_host named[LAUNCH_MAX_HOSTS];
    if (hosts->n < 2 || !hosts->decision.pairs)
        return;
    for (int i = 0; i < hosts->n; i++)
        named[i] = (struct launch_host){hosts->h[i].typed, &hosts->interfaces[i]};
    launch_decision_print(&hosts->decision, named, out);
    fprintf(out, "bytes between ranks: %s, unless --backend says otherwise\n", hosts->backend);
    for (int i = 0; i < hosts->n; i++) /* what open_ways has tried */
        for (int k = i + 1; k < hosts->n; k++) {
            if (!is_tried(hosts, i, k))
                continue;
            fprintf(out, "tried: %s reaches %s by TCP at ", hosts->h[k].typed, hosts->h[i].typed);
            const int first = launch_ways_rank_port(hosts->port, hosts->h[i].first_rank);
            if (first)
                fprintf(out, "port%s %d", hosts->h[i].n_ranks > 1 ? "s" : "", first);
            if (first && hosts->h[i].n_ranks > 1)
                fprintf(out, "-%d", first + hosts->h[i].n_ranks - 1);
            fprintf(out, first ? "\n" : "any port (--port fixes them)\n");
        }
}

enum st launch_hosts_open(struct launch_hosts *hosts, struct err *e)
{
    enum st st = ST_OK;
    for (int i = 0; i < hosts->n && !st; i++) /* all at once */
        st = begin(hosts, &hosts->h[i], e);
    for (int i = 0; i < hosts->n && !st; i++)
        st = open_end(hosts, &hosts->h[i], e);
    const uint64_t until = base_now_ns(base_clock_real()) + ANSWER_MS * BASE_NS_PER_MS;
    hosts->interfaces = calloc((size_t)hosts->n, sizeof *hosts->interfaces);
    if (!st && !hosts->interfaces)
        st = err_set(e, ST_NO_MEMORY, "no memory for the hosts' interfaces");
    for (int i = 0; i < hosts->n && !st; i++)
        st = hear_host(hosts, i, &hosts->interfaces[i], until, e);
    if (!st)
        st = check_machines(hosts, e);
    if (st || hosts->asks_only)
        return st;
    st = base_key_draw(hosts->key, e);
    if (!st)
        st = decide(hosts, until, e);
    if (!st && hosts->n > 1)
        st = open_ways(hosts, until, e);
    hosts->is_open = !st;
    return st;
}

/* ---- who would sit where -------------------------------------------------------------------------------------------------------------------------------- */

static enum st hear_drawing(struct launch_hosts *hosts, int i, uint64_t until, char **drawing, struct err *e)
{
    const void *payload;
    size_t bytes;
    uint32_t code = 0;
    char why[400];
    const enum st st = hear(hosts, i, RT_SEATS, until, &payload, &bytes, e);
    if (st)
        return st;
    if (!rt_frame_told(payload, bytes, &code, why, sizeof why) || code)
        return err_set(e, code ? (enum st)code : ST_INVALID, "host %s: %s", hosts->h[i].typed, code ? why : "tells nothing of its seats");
    *drawing = strndup((const char *)payload + sizeof code, bytes - sizeof code);
    return *drawing ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for a drawing");
}

enum st launch_hosts_draw(struct launch_hosts *hosts, int n_threads, const char *bind, bool is_json, char **drawings, struct err *e)
{
    const uint64_t until = base_now_ns(base_clock_real()) + ANSWER_MS * BASE_NS_PER_MS;
    struct launch_seating order = {.n_threads = (uint32_t)n_threads, .is_json = is_json};
    enum st st = ST_OK;
    if (bind && strlen(bind) >= sizeof order.bind)
        return err_set(e, ST_INVALID, "--bind: more than %zu characters for another host", sizeof order.bind - 1);
    snprintf(order.bind, sizeof order.bind, "%s", bind ? bind : "");
    for (int i = 0; i < hosts->n && !st; i++) {
        order.first_rank = (uint32_t)hosts->h[i].first_rank;
        order.n_ranks = (uint32_t)hosts->h[i].n_ranks;
        st = say_one(hosts, i, RT_SEATS, &order, sizeof order, e);
    }
    for (int i = 0; i < hosts->n && !st; i++)
        st = hear_drawing(hosts, i, until, &drawings[i], e);
    return st;
}

/* ---- the start ---------------------------------------------------------------------------------------------------------------------------------------- */

enum st launch_hosts_check_model(struct launch_hosts *hosts, const struct launch_setup *setup, struct err *e)
{
    const struct launch_model_here here = {.host = hosts->handed_fd >= 0 ? hosts->h[hosts->i_own].typed : NULL, .path = setup->model_path, .ck = setup->ck};
    const uint64_t until = base_now_ns(base_clock_real()) + ANSWER_MS * BASE_NS_PER_MS;
    enum st st = ST_OK;
    for (int i = 0; i < hosts->n && !st; i++) /* all at once; our own host has what we have opened */
        if (!hosts->h[i].is_local)
            st = say_one(hosts, i, RT_MODEL, here.path, strlen(here.path) + 1, e);
    for (int i = 0; i < hosts->n && !st; i++) {
        const void *answer;
        size_t bytes;
        if (hosts->h[i].is_local)
            continue;
        st = hear(hosts, i, RT_MODEL, until, &answer, &bytes, e);
        if (!st)
            st = launch_model_compare(&here, &hosts->h[i].target, answer, bytes, e);
    }
    return st;
}

enum st launch_hosts_start(struct launch_hosts *hosts, const struct launch_setup *setup, struct err *e)
{
    enum st st = setup->ck ? launch_hosts_check_model(hosts, setup, e) : ST_OK;
    if (st)
        return st;
    for (int i = 0; i < hosts->n; i++) {
        struct launch_hosts_entry *h = &hosts->h[i];
        st = setup->plan ? launch_check_host_budget(setup, h->typed, h->first_rank, h->n_ranks, h->info.available_bytes, h->info.available_what, e) : ST_OK;
        if (st)
            return st;
        const int most = h->info.n_cpus / h->n_ranks > 1 ? h->info.n_cpus / h->n_ranks : 1;
        h->n_threads = setup->settings.n_threads ? setup->settings.n_threads : most;
    }
    for (int i = 0; i < hosts->n; i++) {
        struct launch_hosts_entry *h = &hosts->h[i];
        char *text = NULL;
        size_t bytes = 0;
        st = hear_story(hosts, i, e);
        if (!st)
            st = launch_agent_words(setup, h, &text, &bytes, e);
        if (!st)
            st = say_one(hosts, i, RT_START, text, bytes, e);
        free(text);
        if (st)
            return st;
        if (h->direct_fd < 0)
            continue;
        rt_inbox_release(h->end.inbox); /* what matters comes by the new one */
        rt_inbox_init(h->end.inbox, h->direct_fd);
        h->end.in_fd = h->end.out_fd = h->direct_fd;
        h->end.is_direct = true;
        h->direct_fd = -1;
    }
    return ST_OK;
}
