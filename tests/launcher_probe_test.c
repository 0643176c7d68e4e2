/* Packets, the probing engine on loopback, and what TCP says of a port.
 *
 * launcher_probe_test hosts NAMESPACE NAMESPACE [port=N] [transport=tcp] [interfaces=LIST] [no-reach]: two hosts in two network namespaces, each with its agent's part in a process of its
 * own, and the launcher's in this one. Prints the decision, proofs and reach as lines; for tests/probe_test.sh. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/decide.h"
#include "launcher/reach.h"
#include "tests/t.h"

static const uint8_t key[LAUNCH_PROBE_KEY_BYTES] = {1, 2, 3};
static const uint8_t other_key[LAUNCH_PROBE_KEY_BYTES] = {3, 2, 1};

/* ---- two hosts ------------------------------------------------------------------------------------------------------------------------------------------------- */

struct live {
    const char *names[2], *interfaces;
    enum launch_transport transport;
    int port;
    bool reach;
};

static void give_up(const char *what, const struct err *e)
{
    printf("error: %s: %s\n", what, e->text);
    fflush(stdout);
    _exit(1);
}

static void put_all(int fd, const void *data, size_t bytes)
{
    const char *at = data;
    while (bytes) {
        const ssize_t n = write(fd, at, bytes);
        if (n <= 0)
            _exit(2);
        at += n;
        bytes -= (size_t)n;
    }
}
static void get_all(int fd, void *data, size_t bytes)
{
    char *at = data;
    while (bytes) {
        const ssize_t n = read(fd, at, bytes);
        if (n <= 0)
            _exit(2);
        at += n;
        bytes -= (size_t)n;
    }
}
static void tell(int fd, const void *data, size_t bytes)
{
    put_all(fd, &bytes, sizeof bytes);
    put_all(fd, data, bytes);
}
static void tell_text(int fd, char *text)
{
    tell(fd, text, strlen(text));
    free(text);
}
static char *hear(int fd, size_t *bytes)
{
    get_all(fd, bytes, sizeof *bytes);
    char *data = malloc(*bytes + 1);
    if (!data)
        _exit(2);
    get_all(fd, data, *bytes);
    data[*bytes] = 0;
    return data;
}

static int wait_ms(uint64_t wake_ns)
{
    const uint64_t now = base_now_ns(base_clock_real());
    return wake_ns == BASE_NO_DEADLINE ? 100 : wake_ns <= now ? 0 : (int)((wake_ns - now) / BASE_NS_PER_MS) + 1;
}

/* Goes on answering while the launcher thinks. */
static char *hear_meanwhile(int fd, struct launch_probe *p, struct launch_reach *r, size_t *bytes)
{
    for (;;) {
        struct pollfd fds[3] = {{.fd = fd, .events = POLLIN}, {.fd = p ? launch_probe_fd(p) : -1, .events = POLLIN}, {.fd = r ? launch_reach_fd(r) : -1, .events = POLLIN}};
        poll(fds, 3, 100);
        if (p)
            (void)launch_probe_step(p, NULL);
        if (r)
            (void)launch_reach_step(r, NULL);
        if (fds[0].revents)
            return hear(fd, bytes);
    }
}

static void run_probe(struct launch_probe *p)
{
    struct err e = {""};
    enum st st;
    while ((st = launch_probe_step(p, &e)) == ST_AGAIN) {
        struct pollfd fd = {.fd = launch_probe_fd(p), .events = POLLIN};
        poll(&fd, 1, wait_ms(launch_probe_wake_ns(p)));
    }
    if (st)
        give_up("probe", &e);
}

static void check_reach(int fd, int host, const struct live *o, const struct launch_pair *pair, struct launch_probe *p)
{
    struct err e = {""};
    size_t bytes;
    const struct launch_rail *rail = &pair->rails[0];
    struct launch_reach_options ro = {.from_name = o->names[host], .to_name = o->names[1 - host], .is_port_fixed = o->port != 0, .patience_ns = 2 * BASE_NS_PER_S};
    memcpy(ro.key, key, sizeof key);
    struct launch_reach *r = NULL;
    if (host == 0) {
        if (launch_reach_listen(&ro, rail->interface[0], rail->index[0], &rail->address[0], o->port, &r, &e))
            give_up("listen", &e);
        const int port = launch_reach_port(r);
        tell(fd, &port, sizeof port);
        free(hear_meanwhile(fd, p, r, &bytes));
    } else {
        char *port = hear_meanwhile(fd, p, NULL, &bytes);
        int number;
        memcpy(&number, port, sizeof number);
        free(port);
        enum st st = launch_reach_connect(&ro, rail->interface[1], rail->index[1], &rail->address[1], rail->interface[0], &rail->address[0], number, &r, &e);
        while (!st && (st = launch_reach_step(r, &e)) == ST_AGAIN) {
            struct pollfd pfd = {.fd = launch_reach_fd(r), .events = launch_reach_events(r)};
            poll(&pfd, 1, wait_ms(launch_reach_wake_ns(r)));
            st = ST_OK;
        }
        if (!st)
            snprintf(e.text, sizeof e.text, "reached");
        tell(fd, e.text, strlen(e.text));
    }
    launch_reach_close(r);
}

static void be_host(const char *space, int host, int fd, const struct live *o)
{
    struct err e = {""};
    char path[256];
    size_t bytes;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(path, sizeof path, "/run/netns/%s", space);
    const int ns = open(path, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) || unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("sysfs", "/sys", "sysfs", 0, NULL)) {
        snprintf(e.text, sizeof e.text, "%s: %s", path, strerror(errno));
        give_up("namespace", &e);
    }
    struct launch_interfaces *all = calloc(2, sizeof *all);
    struct launch_endpoints *ends = calloc(2, sizeof *ends);
    struct launch_probe *p;
    if (!all || !ends)
        _exit(2);
    if (launch_interfaces_read(NULL, &all[0], &e))
        give_up("read", &e);
    tell_text(fd, launch_interfaces_to_json(&all[0]));
    struct launch_probe_options po = {.host = host, .port = o->port};
    memcpy(po.key, key, sizeof key);
    if (launch_probe_open(&all[0], &po, &p, &e))
        give_up("open", &e);
    launch_probe_endpoints(p, &ends[0]);
    tell_text(fd, launch_endpoints_to_json(&ends[0]));
    char *text = hear(fd, &bytes);
    if (launch_interfaces_from_json("peer", text, bytes, &all[1], &e))
        give_up("peer", &e);
    free(text);
    text = hear(fd, &bytes);
    if (launch_endpoints_from_json("peer", text, bytes, &ends[1], &e) || launch_probe_peer(p, 1 - host, &all[1], &ends[1], &e))
        give_up("peer", &e);
    free(text);
    run_probe(p);
    struct launch_facings f;
    if (launch_probe_facings(p, 1 - host, &f, &e))
        give_up("facings", &e);
    tell_text(fd, launch_facings_to_json(&f));
    launch_facings_release(&f);
    /* What follows is of this binary on both sides: plain memory will do. */
    char *raw = hear_meanwhile(fd, p, NULL, &bytes);
    struct launch_pair pair;
    memcpy(&pair, raw, sizeof pair);
    free(raw);
    struct launch_proof proofs[LAUNCH_MAX_RAILS];
    int n = 0;
    if (pair.n_rails > 1) {
        struct launch_facing rails[LAUNCH_MAX_RAILS];
        if (launch_probe_prove(p, rails, launch_pair_rails(&pair, host, rails), &e))
            give_up("prove", &e);
        run_probe(p);
        n = launch_probe_proofs(p, proofs);
    }
    tell(fd, proofs, (size_t)n * sizeof *proofs);
    if (o->reach)
        check_reach(fd, host, o, &pair, p);
    free(hear_meanwhile(fd, p, NULL, &bytes)); /* until the other one is done, too */
    launch_probe_close(p);
    free(all);
    free(ends);
    _exit(0);
}

static int be_launcher(char *const *spaces, const int fds[2], const struct live *o)
{
    struct err e = {""};
    static struct launch_interfaces interfaces[2];
    char *texts[2][2];
    size_t bytes[2][2];
    struct launch_facings facings[2], merged;
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 2; i++)
            texts[h][i] = hear(fds[h], &bytes[h][i]);
    for (int h = 0; h < 2; h++) {
        if (launch_interfaces_from_json(spaces[h], texts[h][0], bytes[h][0], &interfaces[h], &e))
            give_up("interfaces", &e);
        for (int i = 0; i < 2; i++)
            tell(fds[1 - h], texts[h][i], bytes[h][i]);
    }
    for (int h = 0; h < 2; h++) {
        free(texts[h][0]);
        free(texts[h][1]);
        texts[h][0] = hear(fds[h], &bytes[h][0]);
        if (launch_facings_from_json(spaces[h], texts[h][0], bytes[h][0], &facings[h], &e))
            give_up("facings", &e);
        free(texts[h][0]);
    }
    if (launch_probe_merge(&facings[0], &facings[1], &merged, &e))
        give_up("merge", &e);
    for (int i = 0; i < merged.n; i++) {
        char a[LAUNCH_ADDRESS_TEXT], b[LAUNCH_ADDRESS_TEXT];
        const struct launch_facing *f = &merged.list[i];
        printf("%s: %s %s - %s %s mtu %d rtt %.0f us\n", f->works ? "faces" : "does not face", f->interface[0], launch_address_text(&f->address[0], NULL, a), f->interface[1],
               launch_address_text(&f->address[1], NULL, b), f->mtu, (double)f->rtt_ns / 1000);
    }
    const struct launch_host hosts[2] = {{o->names[0], &interfaces[0]}, {o->names[1], &interfaces[1]}};
    const struct launch_wishes wishes = {.transport = o->transport, .interfaces = o->interfaces};
    struct launch_decision d;
    if (launch_decide(hosts, 2, &merged, 1, &wishes, &d, &e))
        give_up("decide", &e);
    launch_decision_print(&d, hosts, stdout);
    for (int h = 0; h < 2; h++)
        tell(fds[h], &d.pairs[0], sizeof d.pairs[0]);
    for (int h = 0; h < 2; h++) {
        size_t n;
        char *raw = hear(fds[h], &n);
        for (size_t i = 0; i < n / sizeof(struct launch_proof); i++) {
            struct launch_proof proof;
            memcpy(&proof, raw + i * sizeof proof, sizeof proof);
            printf("%s rail %zu: %s: sent %llu own %llu other %llu\n", o->names[h], i, proof.is_proved ? "proved" : "NOT PROVED", (unsigned long long)proof.sent_bytes,
                   (unsigned long long)proof.own_bytes, (unsigned long long)proof.other_bytes);
        }
        free(raw);
    }
    if (o->reach) {
        size_t n;
        char *text = hear(fds[0], &n);
        tell(fds[1], text, n);
        free(text);
        text = hear(fds[1], &n);
        printf("reach: %s\n", text);
        free(text);
        tell(fds[0], "", 0);
    }
    for (int h = 0; h < 2; h++)
        tell(fds[h], "", 0);
    launch_decision_release(&d);
    launch_facings_release(&merged);
    launch_facings_release(&facings[0]);
    launch_facings_release(&facings[1]);
    return 0;
}

static int run_hosts(int argc, char **argv)
{
    struct live o = {.names = {argv[0], argv[1]}, .reach = true};
    for (int i = 2; i < argc; i++) {
        if (strncmp(argv[i], "port=", 5) == 0)
            o.port = atoi(argv[i] + 5);
        else if (strcmp(argv[i], "transport=tcp") == 0)
            o.transport = LAUNCH_TCP;
        else if (strncmp(argv[i], "interfaces=", 11) == 0)
            o.interfaces = argv[i] + 11;
        else
            o.reach = false;
    }
    signal(SIGPIPE, SIG_IGN);
    fflush(stdout);
    int fds[2];
    for (int h = 0; h < 2; h++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
            return 2;
        if (fork() == 0) {
            close(pair[0]);
            be_host(argv[h], h, pair[1], &o);
        }
        close(pair[1]);
        fds[h] = pair[0];
    }
    const int status = be_launcher(argv, fds, &o);
    fflush(stdout);
    while (wait(NULL) > 0)
        ;
    return status;
}

/* ---- packets --------------------------------------------------------------------------------------------------------------------------------------------------- */

static void packets_prove_themselves(void **state)
{
    (void)state;
    const struct launch_packet p = {.kind = LAUNCH_PACKET_CALL, .from_host = 3, .to_host = 15, .from_endpoint = 127, .to_endpoint = 300, .nonce = 0x1122334455667788, .bytes = 200};
    uint8_t wire[200] = {0};
    struct launch_packet got;
    launch_packet_put(key, &p, wire);
    assert_true(launch_packet_get(key, wire, 200, &got));
    assert_int_equal(got.kind, p.kind);
    assert_int_equal(got.from_host, 3);
    assert_int_equal(got.to_host, 15);
    assert_int_equal(got.from_endpoint, 127);
    assert_int_equal(got.to_endpoint, 300);
    assert_true(got.nonce == p.nonce && got.bytes == 200);
    assert_false(launch_packet_get(other_key, wire, 200, &got));
    assert_false(launch_packet_get(key, wire, 199, &got)); /* shorter or longer than it says */
    assert_false(launch_packet_get(key, wire, 79, &got));
    assert_false(launch_packet_get(key, wire, 0, &got));
    for (int i = 0; i < LAUNCH_PACKET_BYTES; i++) {
        wire[i] ^= 4;
        assert_false(launch_packet_get(key, wire, 200, &got));
        wire[i] ^= 4;
    }
    struct launch_packet wrong = p; /* signed, but of no sense */
    wrong.to_host = LAUNCH_MAX_HOSTS;
    launch_packet_put(key, &wrong, wire);
    assert_false(launch_packet_get(key, wire, 200, &got));
}

/* ---- the engine on loopback ---------------------------------------------------------------------------------------------------------------------------------------- */

/* Two addresses of one interface, each one "host": a network of our own. */
static struct launch_interfaces half(const char *address, int mtu)
{
    struct launch_interfaces in = {.n = 1, .list = {{.name = "lo", .index = (int)if_nametoindex("lo"), .medium = LAUNCH_WIRE, .is_up = true, .has_carrier = true, .mtu = mtu, .speed_mbit = -1, .n_addresses = 1}}};
    struct launch_address *a = &in.list[0].addresses[0];
    *a = (struct launch_address){.prefix = 8, .gid_index = -1};
    assert_true(launch_address_parse(address, a));
    return in;
}

static struct launch_probe *open_half(const struct launch_interfaces *in, int host, const uint8_t *own_key, const struct base_clock *clock)
{
    struct launch_probe_options o = {.host = host, .clock = clock};
    memcpy(o.key, own_key, sizeof o.key);
    struct launch_probe *p = NULL;
    struct err e = {""};
    T_OK(launch_probe_open(in, &o, &p, &e), &e);
    return p;
}

/* A manual clock: no time passes but what the test lets pass. Returns the simulated milliseconds until both are done. */
static uint64_t meet(struct launch_probe *p[2], const struct launch_interfaces in[2], struct base_clock_manual *clock, struct launch_facings *merged)
{
    struct err e = {""};
    static struct launch_endpoints ends[2];
    struct launch_facings f[2];
    const uint64_t begun = clock->now_ns;
    for (int h = 0; h < 2; h++)
        launch_probe_endpoints(p[h], &ends[h]);
    for (int h = 0; h < 2; h++)
        T_OK(launch_probe_peer(p[h], 1 - h, &in[1 - h], &ends[1 - h], &e), &e);
    t_expect_err_contains(ST_INVALID, launch_probe_peer(p[0], 1, &in[1], &ends[1], &e), &e, "no peer");
    for (bool done = false; !done; clock->now_ns += 5 * BASE_NS_PER_MS) {
        done = true;
        for (int h = 0; h < 2; h++)
            done = launch_probe_step(p[h], NULL) == ST_OK && done;
        assert_true(clock->now_ns - begun < 20 * BASE_NS_PER_S);
        usleep(100);
    }
    for (int h = 0; h < 2; h++)
        T_OK(launch_probe_facings(p[h], 1 - h, &f[h], &e), &e);
    T_OK(launch_probe_merge(&f[1], &f[0], merged, &e), &e); /* in any order */
    launch_facings_release(&f[0]);
    launch_facings_release(&f[1]);
    return (clock->now_ns - begun) / BASE_NS_PER_MS;
}

static void two_halves_find_each_other(void **state)
{
    (void)state;
    const struct launch_interfaces in[2] = {half("127.0.0.2", 9000), half("127.0.0.3", 4000)};
    struct base_clock_manual manual = {.now_ns = BASE_NS_PER_S};
    const struct base_clock clock = base_clock_from_manual(&manual);
    struct launch_probe *p[2] = {open_half(&in[0], 0, key, &clock), open_half(&in[1], 1, key, &clock)};
    struct launch_facings f;
    assert_true(meet(p, in, &manual, &f) < 2000);
    assert_int_equal(f.n, 1);
    assert_true(f.list[0].works);
    assert_int_equal(f.list[0].mtu, 4000);
    assert_int_equal(f.list[0].host[0], 0);
    assert_int_equal(f.list[0].host[1], 1);
    char text[LAUNCH_ADDRESS_TEXT];
    assert_string_equal(launch_address_text(&f.list[0].address[1], "lo", text), "127.0.0.3");
    /* and over the wire as text */
    char *json = launch_facings_to_json(&f);
    struct launch_facings again;
    struct err e = {""};
    T_OK(launch_facings_from_json("test", json, strlen(json), &again, &e), &e);
    assert_memory_equal(again.list[0].address[0].bytes, f.list[0].address[0].bytes, 16);
    assert_true(again.n == 1 && again.list[0].works && again.list[0].mtu == 4000 && again.list[0].rtt_ns == f.list[0].rtt_ns);
    free(json);
    launch_facings_release(&again);
    launch_facings_release(&f);
    launch_probe_close(p[0]);
    launch_probe_close(p[1]);
}

static void strangers_are_ignored(void **state)
{
    (void)state;
    t_declare_warnings();
    const struct launch_interfaces in[2] = {half("127.0.0.2", 9000), half("127.0.0.3", 9000)};
    struct base_clock_manual manual = {.now_ns = BASE_NS_PER_S};
    const struct base_clock clock = base_clock_from_manual(&manual);
    struct launch_probe *p[2] = {open_half(&in[0], 0, key, &clock), open_half(&in[1], 1, other_key, &clock)};
    struct launch_facings f;
    const uint64_t ms = meet(p, in, &manual, &f);
    assert_true(ms >= 2000 && ms < 3000); /* patience */
    assert_int_equal(f.n, 1);
    assert_false(f.list[0].works);
    launch_facings_release(&f);
    launch_probe_close(p[0]);
    launch_probe_close(p[1]);
}

static void what_only_one_saw_does_not_work(void **state)
{
    (void)state;
    struct launch_facing a = {.host = {0, 1}, .interface = {"x", "y"}, .works = true, .mtu = 9000, .rtt_ns = 5}, b = {.host = {1, 0}, .interface = {"y", "x"}, .works = true, .mtu = 1500, .rtt_ns = 3};
    a.address[0].family = a.address[1].family = b.address[0].family = b.address[1].family = AF_INET;
    a.address[0].bytes[0] = b.address[1].bytes[0] = 10;
    a.address[1].bytes[0] = b.address[0].bytes[0] = 11;
    const struct launch_facings fa = {1, &a}, fb = {1, &b}, none = {0, NULL};
    struct launch_facings f;
    T_OK(launch_probe_merge(&fa, &fb, &f, NULL), NULL);
    assert_true(f.n == 1 && f.list[0].works && f.list[0].mtu == 1500 && f.list[0].rtt_ns == 3);
    launch_facings_release(&f);
    T_OK(launch_probe_merge(&fa, &none, &f, NULL), NULL);
    assert_true(f.n == 1 && !f.list[0].works);
    launch_facings_release(&f);
    b.works = false;
    T_OK(launch_probe_merge(&fb, &fa, &f, NULL), NULL);
    assert_true(f.n == 1 && !f.list[0].works);
    launch_facings_release(&f);
}

static void foreign_lists_are_checked(void **state)
{
    (void)state;
    static struct launch_endpoints ends;
    struct launch_facings f;
    struct err e = {""};
    static const char *const bad_ends[] = {"{}", "[1]", "[[\"eth0\", \"10.0.0.1\"]]", "[[\"eth0\", \"10.0.0.1\", 0]]", "[[\"eth0\", \"10.0.0.1\", 65536]]", "[[\"\", \"10.0.0.1\", 1]]",
                                           "[[\"an interface\", \"10.0.0.1\", 1]]", "[[\"0123456789abcdef\", \"10.0.0.1\", 1]]", "[[\"eth0\", \"10.0.0\", 1]]", "[[\"eth0\", \"224.0.0.1\", 1]]",
                                           "[[\"eth0\", \"fe80::1%eth0\", 1]]", "[[\"eth0\", \"::\", 1]]", "[[\"eth0\", \"10.0.0.1\", 1, 2]]"};
    for (size_t i = 0; i < sizeof bad_ends / sizeof *bad_ends; i++)
        t_expect_err_contains(ST_INVALID, launch_endpoints_from_json("spark2", bad_ends[i], strlen(bad_ends[i]), &ends, &e), &e, "spark2");
    static const char *const bad_facings[] = {"[[0,\"a\",\"10.0.0.1\",0,\"b\",\"10.0.0.2\",true,1500,1]]", "[[0,\"a\",\"10.0.0.1\",1,\"b\",\"fe80::1\",true,1500,1]]",
                                              "[[0,\"a\",\"10.0.0.1\",16,\"b\",\"10.0.0.2\",true,1500,1]]", "[[0,\"a\",\"10.0.0.1\",1,\"b\",\"10.0.0.2\",1,1500,1]]",
                                              "[[0,\"a\",\"10.0.0.1\",1,\"b\",\"10.0.0.2\",true,-1,1]]", "[[0,\"a\",\"10.0.0.1\",1,\"b\",\"10.0.0.2\",true,1500,-1]]"};
    for (size_t i = 0; i < sizeof bad_facings / sizeof *bad_facings; i++)
        t_expect_err_contains(ST_INVALID, launch_facings_from_json("spark2", bad_facings[i], strlen(bad_facings[i]), &f, &e), &e, "spark2");
    T_OK(launch_endpoints_from_json("spark2", "[]", 2, &ends, &e), &e);
    assert_int_equal(ends.n, 0);
}

/* ---- TCP ------------------------------------------------------------------------------------------------------------------------------------------------------------ */

static struct launch_reach_options reach_options(const uint8_t *own_key)
{
    struct launch_reach_options o = {.from_name = "spark1", .to_name = "spark2", .patience_ns = 3 * BASE_NS_PER_S}; /* a busy machine must not be taken for a deaf one */
    memcpy(o.key, own_key, sizeof o.key);
    return o;
}

static enum st try_port(const struct launch_reach_options *o, int port, struct launch_reach *listener, struct err *e)
{
    const struct launch_interfaces in = half("127.0.0.1", 65536);
    struct launch_reach *r = NULL;
    enum st st = launch_reach_connect(o, "lo", in.list[0].index, &in.list[0].addresses[0], "lo", &in.list[0].addresses[0], port, &r, e);
    if (st)
        return st;
    while ((st = launch_reach_step(r, e)) == ST_AGAIN) {
        if (listener)
            (void)launch_reach_step(listener, NULL);
        usleep(1000);
    }
    launch_reach_close(r);
    return st;
}

static void ports_are_reached_or_explained(void **state)
{
    (void)state;
    t_declare_warnings();
    const struct launch_interfaces in = half("127.0.0.1", 65536);
    const struct launch_address *own = &in.list[0].addresses[0];
    const struct launch_reach_options ours = reach_options(key), theirs = reach_options(other_key);
    struct launch_reach *listener = NULL;
    struct err e = {""};
    T_OK(launch_reach_listen(&ours, "lo", in.list[0].index, own, 0, &listener, &e), &e);
    const int port = launch_reach_port(listener);
    assert_true(port > 0);
    assert_int_equal(launch_reach_step(listener, &e), ST_AGAIN);
    T_OK(try_port(&ours, port, listener, &e), &e);
    assert_int_equal(launch_reach_step(listener, &e), ST_OK);
    t_expect_err_contains(ST_PEER_LOST, try_port(&theirs, port, listener, &e), &e, "cannot reach"); /* the listener hangs up on strangers */
    T_OK(try_port(&ours, port, listener, &e), &e);
    struct launch_reach_options hasty = ours;
    hasty.patience_ns = BASE_NS_PER_S / 2;
    t_expect_err_contains(ST_TIMEOUT, try_port(&hasty, port, NULL, &e), &e, "connection timed out"); /* a port that is open, but nobody answers */
    launch_reach_close(listener);
    t_expect_err_contains(ST_PEER_LOST, try_port(&ours, port, NULL, &e), &e, "Connection refused");

    struct launch_address a = {.prefix = 24}, b = {.prefix = 24};
    assert_true(launch_address_parse("10.0.0.1", &a) && launch_address_parse("10.0.0.2", &b));
    struct launch_reach_ends ends = {"spark1", "enp1s0f0np0", "spark2", "enp1s0f1np1", &a, &b, 41001, false, 0, 0};
    t_expect_err_contains(ST_TIMEOUT, launch_reach_explain(&ends, ETIMEDOUT, &e), &e, "spark1 (10.0.0.1, enp1s0f0np0) cannot reach spark2 (10.0.0.2, enp1s0f1np1) port 41001 by TCP: connection timed out");
    t_expect_err_contains(ST_TIMEOUT, launch_reach_explain(&ends, ETIMEDOUT, &e), &e, "on spark2: sudo ufw allow from 10.0.0.1 to any port 41001 proto tcp (or: sudo nft insert rule inet filter input ip saddr 10.0.0.1 tcp dport 41001 accept); with --port the port stays the same");
    ends.is_port_fixed = true;
    assert_true(launch_address_parse("fe80::1", &a) && launch_address_parse("fe80::2", &b));
    t_expect_err_contains(ST_IO, launch_reach_explain(&ends, EHOSTUNREACH, &e), &e, "sudo ufw allow in on enp1s0f1np1 from fe80::1 to any port 41001 proto tcp");
    assert_null(strstr(e.text, "--port"));
    ends.first_port = 41000, ends.last_port = 41003;
    t_expect_err_contains(ST_IO, launch_reach_explain(&ends, EHOSTUNREACH, &e), &e, "to any port 41000:41003 proto tcp (or: sudo nft insert rule inet filter input ip6 saddr fe80::1 tcp dport 41000-41003 accept)");
}

/* A connection to our own listener that says this much of the job, whole packets, one after the answer to the other; returns it. */
static int say_packets(int port, struct launch_reach *listener, uint8_t said[][LAUNCH_PACKET_BYTES], int n)
{
    const struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    for (int i = 0; i < n; i++) {
        assert_int_equal(send(fd, said[i], LAUNCH_PACKET_BYTES, MSG_NOSIGNAL), LAUNCH_PACKET_BYTES);
        for (int k = 0; k < 5; k++) {
            (void)launch_reach_step(listener, NULL);
            usleep(1000);
        }
    }
    return fd;
}

static void connections_that_are_proven_go_on(void **state)
{
    (void)state;
    t_declare_warnings();
    const struct launch_interfaces in = half("127.0.0.1", 65536);
    const struct launch_address *own = &in.list[0].addresses[0];
    struct launch_reach_options at = reach_options(key), from = reach_options(key);
    struct launch_reach *listener = NULL, *r = NULL;
    struct err e = {""};
    int host = -1;
    at.host = from.to_host = 2;
    from.host = 5;
    T_OK(launch_reach_listen(&at, "lo", in.list[0].index, own, 0, &listener, &e), &e);
    const int port = launch_reach_port(listener);
    T_OK(launch_reach_connect(&from, "lo", in.list[0].index, own, "lo", own, port, &r, &e), &e);
    while (launch_reach_step(r, &e) == ST_AGAIN) {
        (void)launch_reach_step(listener, NULL);
        usleep(1000);
    }
    const int ours = launch_reach_take(r, &host);
    assert_true(ours >= 0 && host == 2);
    assert_int_equal(send(ours, "x", 1, 0), 1); /* what follows the proof is not the listener's to read */
    while (launch_reach_step(listener, &e) == ST_AGAIN)
        usleep(1000);
    (void)launch_reach_step(listener, NULL);
    const int theirs = launch_reach_take(listener, &host);
    char byte = 0;
    assert_true(theirs >= 0 && host == 5);
    assert_int_equal(recv(theirs, &byte, 1, MSG_DONTWAIT), 1);
    assert_int_equal(byte, 'x');
    launch_reach_close(r);
    assert_int_equal(send(theirs, "y", 1, 0), 1);
    assert_int_equal(recv(ours, &byte, 1, 0), 1);
    assert_int_equal(launch_reach_take(listener, &host), -1);
    close(ours);
    close(theirs);

    /* What somebody has heard, and says again: the call is answered, but the challenge is another one each time. */
    uint8_t said[2][LAUNCH_PACKET_BYTES];
    struct launch_packet p = {.kind = LAUNCH_PACKET_TCP_CALL, .from_host = 5, .to_host = 2, .nonce = 77, .bytes = LAUNCH_PACKET_BYTES};
    launch_packet_put(key, &p, said[0]);
    p.kind = LAUNCH_PACKET_TCP_PROOF;
    launch_packet_put(key, &p, said[1]);
    for (int n = 1; n <= 2; n++) {
        const int fd = say_packets(port, listener, said, n);
        assert_int_equal(launch_reach_take(listener, &host), -1);
        close(fd);
    }
    p.kind = LAUNCH_PACKET_TCP_CALL; /* for another host */
    p.to_host = 3;
    launch_packet_put(key, &p, said[0]);
    const int fd = say_packets(port, listener, said, 1);
    assert_int_equal(recv(fd, &byte, 1, 0), 0);
    close(fd);
    launch_reach_close(listener);
}

int main(int argc, char **argv)
{
    if (argc >= 4 && strcmp(argv[1], "hosts") == 0)
        return run_hosts(argc - 2, argv + 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packets_prove_themselves),    cmocka_unit_test(two_halves_find_each_other), cmocka_unit_test(strangers_are_ignored),
        cmocka_unit_test(what_only_one_saw_does_not_work), cmocka_unit_test(foreign_lists_are_checked),  cmocka_unit_test(ports_are_reached_or_explained),
        cmocka_unit_test(connections_that_are_proven_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
