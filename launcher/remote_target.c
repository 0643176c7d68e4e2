/* Names of hosts: which are allowed, and which are ours. */
#include <ctype.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "launcher/remote.h"

enum st launch_target_parse(const char *typed, struct launch_target *host, struct err *e)
{
    const char *sign = strrchr(typed, '@'), *name = sign ? sign + 1 : typed;
    const size_t n_user = sign ? (size_t)(sign - typed) : 0;
    struct launch_target h = {.user = ""};
    if (strlen(typed) >= sizeof h.typed)
        return err_set(e, ST_INVALID, "%.40s…: no host has such a long name", typed);
    for (size_t i = 0; typed[i]; i++) /* before it is shown */
        if ((unsigned char)typed[i] < ' ' || typed[i] == 127)
            return err_set(e, ST_INVALID, "a control character is no host: it has no place in a name");
    if (!*name || (sign && !n_user) || n_user >= sizeof h.user || strlen(name) >= sizeof h.name)
        return err_set(e, ST_INVALID, "'%.200s' is no host; wants a name or an address, or user@name", typed);
    /* A dash at the beginning would be an option of ssh. % is for fe80::1%eth0. */
    for (size_t i = 0; typed[i]; i++) {
        const bool first = i == 0 || (sign && typed + i == name), in_user = i < n_user;
        if (typed + i == sign || isalnum((unsigned char)typed[i]) || strchr(in_user ? "_." : "_.:%", typed[i]) || (typed[i] == '-' && !first))
            continue;
        return err_set(e, ST_INVALID, "'%.200s' is no host: '%c' has no place in such a name", typed, isprint((unsigned char)typed[i]) ? typed[i] : '?');
    }
    strcpy(h.typed, typed);
    memcpy(h.user, typed, n_user);
    strcpy(h.name, name);
    *host = h;
    return ST_OK;
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

static bool is_same(const struct sockaddr *a, const struct sockaddr *b)
{
    if (a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)(const void *)b)->sin_addr.s_addr;
    const struct sockaddr_in6 *p = (const void *)a, *q = (const void *)b;
    return a->sa_family == AF_INET6 && memcmp(&p->sin6_addr, &q->sin6_addr, sizeof p->sin6_addr) == 0 && (!p->sin6_scope_id || !q->sin6_scope_id || p->sin6_scope_id == q->sin6_scope_id);
}

static bool is_ours(const struct addrinfo *found)
{
    struct ifaddrs *own = NULL;
    bool yes = false;
    if (getifaddrs(&own))
        return false;
    for (; found && !yes; found = found->ai_next) {
        yes = is_loopback(found->ai_addr);
        for (const struct ifaddrs *i = own; i && !yes; i = i->ifa_next)
            yes = i->ifa_addr && is_same(found->ai_addr, i->ifa_addr);
    }
    freeifaddrs(own);
    return yes;
}

/* A question to the resolver, which nobody can interrupt: whoever comes last, asker or answer, frees it. */
struct question {
    pthread_mutex_t lock;
    pthread_cond_t answered;
    char name[254];
    bool has_answer, is_local, is_given_up;
};

static void forget(struct question *q)
{
    pthread_cond_destroy(&q->answered);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static void *ask(void *arg)
{
    struct question *q = arg;
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    const bool yes = getaddrinfo(q->name, NULL, &hints, &found) == 0 && is_ours(found);
    if (found)
        freeaddrinfo(found);
    pthread_mutex_lock(&q->lock);
    q->has_answer = true;
    q->is_local = yes;
    const bool mine = q->is_given_up;
    pthread_cond_signal(&q->answered);
    pthread_mutex_unlock(&q->lock);
    if (mine)
        forget(q);
    return NULL;
}

bool launch_host_is_local(const char *name, int timeout_ms)
{
    if (strcasecmp(name, "localhost") == 0) /* RFC 6761: whatever a resolver says, or where it says nothing */
        return true;
    const struct addrinfo numeric = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
    struct addrinfo *found = NULL;
    if (getaddrinfo(name, NULL, &numeric, &found) == 0) {
        const bool yes = is_ours(found);
        freeaddrinfo(found);
        return yes;
    }
    struct question *q = calloc(1, sizeof *q);
    if (!q || strlen(name) >= sizeof q->name) {
        free(q);
        return false;
    }
    strcpy(q->name, name);
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&q->answered, &clock);
    pthread_condattr_destroy(&clock);
    pthread_t thread;
    if (pthread_create(&thread, NULL, ask, q)) {
        forget(q);
        return false;
    }
    pthread_detach(thread);
    const uint64_t until = base_now_ns(base_clock_real()) + (uint64_t)timeout_ms * BASE_NS_PER_MS;
    const struct timespec limit = {.tv_sec = (time_t)(until / BASE_NS_PER_S), .tv_nsec = (long)(until % BASE_NS_PER_S)};
    pthread_mutex_lock(&q->lock);
    while (!q->has_answer && pthread_cond_timedwait(&q->answered, &q->lock, &limit) == 0)
        ;
    const bool yes = q->has_answer && q->is_local, mine = q->has_answer;
    q->is_given_up = !mine;
    pthread_mutex_unlock(&q->lock);
    if (mine)
        forget(q);
    return yes;
}

bool launch_target_is_local(const struct launch_target *host, int timeout_ms)
{
    struct passwd own, *found = NULL;
    char texts[4096];
    if (host->user[0] && (getpwuid_r(geteuid(), &own, texts, sizeof texts, &found) || !found || strcmp(own.pw_name, host->user) != 0))
        return false;
    return launch_host_is_local(host->name, timeout_ms);
}
