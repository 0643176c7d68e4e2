#include "launcher/hosts.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/build_id.h"
#include "base/clock.h"
#include "launcher/agent.h"
#include "launcher/bundle.h"
#include "launcher/interrupt.h"
#include "launcher/setup.h"

#define ANSWER_MS 20000
#define RESOLVE_MS 2000

/* ---- the list ----------------------------------------------------------------------------------------------------------------------------------------- */

enum st launch_hosts_parse(const char *list, const char *ssh, int n_ranks, struct launch_hosts **out, struct err *e)
{
    struct launch_hosts *hosts = calloc(1, sizeof *hosts);
    if (!hosts)
        return err_set(e, ST_NO_MEMORY, "no memory for the hosts");
    hosts->ssh = ssh;
    enum st st = ST_OK;
    for (const char *at = list; !st; at++) {
        const size_t n = strcspn(at, ", \t\n");
        if (n == 0 && hosts->n > 0 && !*at)
            break;
        if (n == 0 || n >= sizeof hosts->h[0].typed || hosts->n == LAUNCH_MAX_ENDS) {
            st = err_set(e, ST_INVALID, "--hosts %.100s: wants up to %d names with commas between, like spark1,me@spark2", list, LAUNCH_MAX_ENDS);
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
    for (int i = 0; hosts && i < hosts->n; i++)
        close_end(&hosts->h[i].end);
    if (hosts)
        launch_bundle_destroy(hosts->bundle);
    free(hosts);
}

/* ---- agents ------------------------------------------------------------------------------------------------------------------------------------------- */

/* At once here; on another host a thread does the work (launch_remote_wait tells the end of it). */
static enum st begin(struct launch_hosts *hosts, struct launch_hosts_entry *h, struct err *e)
{
    h->end = (struct launch_end){.host = h->typed, .in_fd = -1, .out_fd = -1, .ssh = hosts->ssh, .first_rank = h->first_rank, .n_ranks = h->n_ranks};
    enum st st = ST_OK;
    h->is_local = !h->target.user[0] && launch_host_is_local(h->target.name, RESOLVE_MS);
    if (!h->is_local) {
        static const char *const words[] = {"agent", "--host", NULL};
        const struct launch_remote_options o = {.host = &h->target, .ssh = hosts->ssh, .words = words};
        if (!hosts->bundle)
            st = launch_bundle_create(hosts->with_mpi, &hosts->bundle, e);
        return st ? st : launch_remote_start(&o, hosts->bundle, &h->end.remote, e);
    }
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    st = launch_agent_spawn_host(pair[1], &h->end.pid, e);
    close(pair[1]);
    if (st)
        close(pair[0]);
    else
        h->end.in_fd = h->end.out_fd = pair[0];
    return st;
}

static enum st open_end(struct launch_hosts_entry *h, struct err *e)
{
    enum st st = ST_OK;
    if (h->end.remote) {
        while ((st = launch_remote_wait(h->end.remote, 1000, e)) == ST_AGAIN)
            if (launch_interrupted())
                return err_set(e, ST_CANCELLED, "interrupted");
        if (!st)
            h->end.in_fd = h->end.out_fd = launch_remote_fd(h->end.remote);
    }
    h->end.inbox = st ? NULL : malloc(sizeof *h->end.inbox);
    if (!st && !h->end.inbox)
        return err_set(e, ST_NO_MEMORY, "no memory for a host");
    if (!st)
        rt_inbox_init(h->end.inbox, h->end.in_fd);
    return st;
}

static enum st hear(struct launch_hosts_entry *h, uint64_t until, struct err *e)
{
    for (;;) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        struct err why = {""};
        const uint64_t now = base_now_ns(base_clock_real());
        const enum st st = rt_inbox_next(h->end.inbox, now < until ? (int)((until - now) / BASE_NS_PER_MS) + 1 : 0, &kind, &payload, &bytes, &why);
        if (st == ST_AGAIN && now >= until)
            return err_set(e, ST_TIMEOUT, "host %s: no agent answered within %d s", h->typed, ANSWER_MS / 1000);
        if (st == ST_PEER_LOST)
            return err_set(e, ST_PEER_LOST, "host %s: its agent could not be started", h->typed);
        if (st && st != ST_AGAIN)
            return err_set(e, st, "host %s: %s", h->typed, why.text);
        if (!st && kind == RT_STORY && bytes >= sizeof(uint32_t))
            return err_set(e, ST_PEER_LOST, "host %s: %.*s", h->typed, (int)(bytes > 404 ? 400 : bytes - 4), (const char *)payload + sizeof(uint32_t));
        if (st || kind != RT_HOST)
            continue;
        if (launch_host_parse(payload, bytes, &h->info, &why))
            return err_set(e, ST_INVALID, "host %s: %s", h->typed, why.text);
        return strcmp(h->info.build, tandem_build_id) ? err_set(e, ST_MISMATCH, "host %s: its tandem was built from other sources (%.12s, here %.12s)", h->typed, h->info.build, tandem_build_id) : ST_OK;
    }
}

/* ---- addresses ---------------------------------------------------------------------------------------------------------------------------------------- */

static bool same_subnet(const struct launch_host_address *a, const struct launch_host_address *b)
{
    unsigned char x[16] = {0}, y[16] = {0};
    const int family = strchr(a->address, ':') ? AF_INET6 : AF_INET;
    if (a->prefix != b->prefix || a->prefix == 0 || inet_pton(family, a->address, x) != 1 || inet_pton(family, b->address, y) != 1)
        return false;
    for (uint32_t bit = 0; bit < a->prefix; bit++)
        if ((x[bit / 8] ^ y[bit / 8]) >> (7 - bit % 8) & 1)
            return false;
    return true;
}

/* The first subnet of the first host in which every other host has an address. */
static enum st decide(struct launch_hosts *hosts, struct err *e)
{
    if (hosts->n == 1)
        return ST_OK;
    for (int i = 0; i < hosts->h[0].info.n_addresses; i++) {
        const struct launch_host_address *own = &hosts->h[0].info.addresses[i], *others[LAUNCH_MAX_ENDS] = {own};
        int n = 1;
        for (int k = 1; k < hosts->n; k++)
            for (int j = 0; j < hosts->h[k].info.n_addresses && !others[k]; j++)
                if (same_subnet(own, &hosts->h[k].info.addresses[j])) {
                    others[k] = &hosts->h[k].info.addresses[j];
                    n++;
                }
        if (n < hosts->n)
            continue;
        for (int k = 0; k < hosts->n; k++) {
            snprintf(hosts->h[k].address, sizeof hosts->h[k].address, "%s", others[k]->address);
            snprintf(hosts->h[k].interface, sizeof hosts->h[k].interface, "%s", others[k]->interface);
        }
        return ST_OK;
    }
    return err_set(e, ST_NOT_FOUND, "no subnet joins all hosts (%s has %d addresses): give both ends of the cable addresses in one subnet", hosts->h[0].typed, hosts->h[0].info.n_addresses);
}

enum st launch_hosts_open(struct launch_hosts *hosts, struct err *e)
{
    enum st st = ST_OK;
    for (int i = 0; i < hosts->n && !st; i++) /* all at once */
        st = begin(hosts, &hosts->h[i], e);
    for (int i = 0; i < hosts->n && !st; i++)
        st = open_end(&hosts->h[i], e);
    const uint64_t until = base_now_ns(base_clock_real()) + ANSWER_MS * BASE_NS_PER_MS;
    for (int i = 0; i < hosts->n && !st; i++)
        st = hear(&hosts->h[i], until, e);
    if (!st)
        st = decide(hosts, e);
    hosts->is_open = !st;
    return st;
}

/* ---- the start ---------------------------------------------------------------------------------------------------------------------------------------- */

enum st launch_hosts_start(struct launch_hosts *hosts, const struct launch_setup *setup, struct err *e)
{
    for (int i = 0; i < hosts->n; i++) {
        struct launch_hosts_entry *h = &hosts->h[i];
        enum st st = launch_check_host_budget(setup, h->typed, h->first_rank, h->n_ranks, h->info.available_bytes, h->info.available_what, e);
        if (st)
            return st;
        const int most = h->info.n_cpus / h->n_ranks > 1 ? h->info.n_cpus / h->n_ranks : 1;
        h->n_threads = setup->settings.n_threads ? setup->settings.n_threads : most;
    }
    for (int i = 0; i < hosts->n; i++) {
        const struct launch_hosts_entry *h = &hosts->h[i];
        char *text = NULL;
        size_t bytes = 0;
        enum st st = launch_agent_words(setup, h, &text, &bytes, e);
        if (!st)
            st = rt_frame_send(h->end.out_fd, RT_START, text, bytes, e);
        free(text);
        if (st)
            return err_set(e, st, "host %s: its agent is gone before it was told what to do", h->typed);
    }
    return ST_OK;
}
