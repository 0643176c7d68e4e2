#include "launcher/hosts.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <limits.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/build_id.h"
#include "base/clock.h"
#include "launcher/agent.h"
#include "launcher/setup.h"

#define ANSWER_MS 20000

/* ---- the list ----------------------------------------------------------------------------------------------------------------------------------------- */

/* What a shell or an option parser could take for something else is no host. */
static bool is_host_name(const char *name, size_t n)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@:%[]";
    if (n == 0 || n >= sizeof ((struct launch_hosts_entry *)0)->typed || name[0] == '-' || name[0] == '@' || name[n - 1] == '@')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!strchr(allowed, name[i]))
            return false;
    return true;
}

enum st launch_hosts_parse(const char *list, const char *ssh, int n_ranks, struct launch_hosts **out, struct err *e)
{
    struct launch_hosts *hosts = calloc(1, sizeof *hosts);
    if (!hosts)
        return err_set(e, ST_NO_MEMORY, "no memory for the hosts");
    hosts->ssh = ssh ? ssh : getenv("TANDEM_SSH");
    enum st st = ST_OK;
    for (const char *at = list; !st; at++) {
        const size_t n = strcspn(at, ", \t\n");
        if (n == 0 && hosts->n > 0 && !*at)
            break;
        if (!is_host_name(at, n) || hosts->n == LAUNCH_MAX_HOSTS) {
            st = err_set(e, ST_INVALID, "--hosts %.100s: wants up to %d names with commas between, like spark1,me@spark2", list, LAUNCH_MAX_HOSTS);
            break;
        }
        struct launch_hosts_entry *h = &hosts->h[hosts->n++];
        memcpy(h->typed, at, n);
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
    if (end->pid > 0) {
        close(end->in_fd);
        launch_child_end(end->pid);
    }
    if (end->inbox)
        rt_inbox_release(end->inbox);
    free(end->inbox);
    *end = (struct launch_end){.in_fd = -1, .out_fd = -1};
}

void launch_hosts_destroy(struct launch_hosts *hosts)
{
    for (int i = 0; hosts && i < hosts->n; i++)
        close_end(&hosts->h[i].end);
    free(hosts);
}

/* ---- agents ------------------------------------------------------------------------------------------------------------------------------------------- */

/* Does this name lead to one of our own addresses? */
static bool is_here(const char *typed)
{
    if (strchr(typed, '@'))
        return false; /* somebody else's account */
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    struct ifaddrs *own = NULL;
    bool here = false;
    if (getaddrinfo(typed, NULL, &hints, &found) == 0 && getifaddrs(&own) == 0)
        for (const struct addrinfo *a = found; a && !here; a = a->ai_next)
            for (const struct ifaddrs *i = own; i && !here; i = i->ifa_next) {
                if (!i->ifa_addr || i->ifa_addr->sa_family != a->ai_family)
                    continue;
                if (a->ai_family == AF_INET)
                    here = memcmp(&((struct sockaddr_in *)(void *)a->ai_addr)->sin_addr, &((struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr, 4) == 0;
                else if (a->ai_family == AF_INET6)
                    here = memcmp(&((struct sockaddr_in6 *)(void *)a->ai_addr)->sin6_addr, &((struct sockaddr_in6 *)(void *)i->ifa_addr)->sin6_addr, 16) == 0;
            }
    if (found)
        freeaddrinfo(found);
    if (own)
        freeifaddrs(own);
    return here;
}

static enum st open_end(const struct launch_hosts *hosts, struct launch_hosts_entry *h, struct err *e)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        return err_set(e, ST_IO, "cannot make a socket pair: %s", strerror(errno));
    h->is_local = is_here(h->typed);
    pid_t pid = 0;
    const enum st st = h->is_local ? launch_agent_spawn_host(pair[1], &pid, e) : launch_agent_spawn_remote(hosts->ssh, h->typed, pair[1], &pid, e);
    close(pair[1]);
    if (st) {
        close(pair[0]);
        return st;
    }
    h->end = (struct launch_end){.host = h->typed, .in_fd = pair[0], .out_fd = pair[0], .pid = pid, .is_agent = h->is_local, .first_rank = h->first_rank, .n_ranks = h->n_ranks};
    h->end.inbox = malloc(sizeof *h->end.inbox);
    if (!h->end.inbox)
        return err_set(e, ST_NO_MEMORY, "no memory for a host");
    rt_inbox_init(h->end.inbox, pair[0]);
    return ST_OK;
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
        if (!st && kind == RT_FAILED)
            return err_set(e, ST_PEER_LOST, "host %s: %.*s", h->typed, (int)(bytes > 400 ? 400 : bytes), (const char *)payload);
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
        const struct launch_host_address *own = &hosts->h[0].info.addresses[i], *others[LAUNCH_MAX_HOSTS] = {own};
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
        st = open_end(hosts, &hosts->h[i], e);
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
