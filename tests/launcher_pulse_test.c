/* Life between hosts: packets and what may be believed of them, who is lost and who is slow. Over the loopback interface; hosts on a wire: tests/life_test.sh. test-deadline: 60 */
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "launcher/pulse.h"
#include "tests/t.h"

static const uint8_t key[LAUNCH_PROBE_KEY_BYTES] = {1, 2, 3}, other_key[LAUNCH_PROBE_KEY_BYTES] = {1, 2, 4};

static uint64_t now_ms(void) { return base_now_ns(base_clock_real()) / BASE_NS_PER_MS; }

static struct launch_beat some_beat(uint64_t number)
{
    return (struct launch_beat){.kind = LAUNCH_BEAT_HERE, .from_host = 1, .to_host = 0, .n_ranks = 1, .heard_ms = 7, .number = number, .ranks = {{.progress = 1ull << 40, .step = 5, .phase = 3, .step_ms = 100, .waited_ms = 60}}};
}

static void packets_prove_themselves(void **state)
{
    (void)state;
    uint8_t bytes[LAUNCH_BEAT_MAX_BYTES + 1];
    struct launch_beat out, in = some_beat(1ull << 33);
    const size_t n = launch_beat_put(key, &in, bytes);
    assert_int_equal(n, LAUNCH_BEAT_HEAD_BYTES + LAUNCH_BEAT_RANK_BYTES + 32);
    assert_true(launch_beat_get(key, bytes, n, &out));
    assert_true(out.kind == in.kind && out.from_host == 1 && out.to_host == 0 && out.n_ranks == 1 && out.heard_ms == 7 && out.number == in.number);
    assert_memory_equal(&out.ranks[0], &in.ranks[0], sizeof in.ranks[0]);
    assert_false(launch_beat_get(other_key, bytes, n, &out));
    for (size_t cut = 0; cut < n; cut++)
        assert_false(launch_beat_get(key, bytes, cut, &out));
    assert_false(launch_beat_get(key, bytes, n + 1, &out));
    for (size_t i = 0; i < n * 8; i++) {
        bytes[i / 8] ^= (uint8_t)(1u << i % 8);
        assert_false(launch_beat_get(key, bytes, n, &out));
        bytes[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    in.kind = (enum launch_beat_kind)9; /* of a later version, say */
    assert_false(launch_beat_get(key, bytes, launch_beat_put(key, &in, bytes), &out));
    in = some_beat(1);
    in.n_ranks = 64;
    assert_int_equal(launch_beat_put(key, &in, bytes), LAUNCH_BEAT_MAX_BYTES);
    assert_true(launch_beat_get(key, bytes, LAUNCH_BEAT_MAX_BYTES, &out));
}

static void slow_is_who_is_waited_for(void **state)
{
    (void)state;
    int slowest;
    assert_true(launch_pulse_slowness((uint32_t[]){1000, 3000}, 2, 4000, &slowest) == 3.0);
    assert_int_equal(slowest, 1);
    assert_true(launch_pulse_slowness((uint32_t[]){3000, 1000, 2000}, 3, 4000, &slowest) == 2.0);
    assert_int_equal(slowest, 0);
    assert_true(launch_pulse_slowness((uint32_t[]){3000, 1600}, 2, 4000, &slowest) == 0);
    assert_true(launch_pulse_slowness((uint32_t[]){900, 100}, 2, 4000, &slowest) == 0); /* nine times, but nobody waits long */
    assert_true(launch_pulse_slowness((uint32_t[]){3000, 0}, 2, 4000, &slowest) > 100);
    assert_true(launch_pulse_slowness((uint32_t[]){3000}, 1, 4000, &slowest) == 0);
}

/* ---- two hosts: addresses of the loopback interface ------------------------------------------------------------------------------------------------------- */

static struct launch_ways ways_of(int host, const uint8_t *own_key)
{
    struct launch_ways w = {.host = (uint32_t)host, .first_rank = (uint32_t)host, .n_ranks = 1, .n = 1};
    struct launch_way *way = &w.list[0];
    memcpy(w.key, own_key, sizeof w.key);
    snprintf(w.name, sizeof w.name, "spark%d", host + 1);
    snprintf(way->name, sizeof way->name, "spark%d", 2 - host);
    strcpy(way->interface, "lo");
    strcpy(way->peer_interface, "lo");
    way->host = way->first_rank = (uint32_t)(1 - host);
    way->n_ranks = 1;
    assert_true(launch_address_parse(host ? "127.0.0.3" : "127.0.0.2", &way->own) && launch_address_parse(host ? "127.0.0.2" : "127.0.0.3", &way->address));
    return w;
}

static struct launch_pulse *open_one(int host, struct launch_port *port)
{
    const struct launch_ways w = ways_of(host, key);
    struct launch_pulse *p = NULL;
    struct err e = {""};
    *port = (struct launch_port){.host = w.list[0].host};
    T_OK(launch_pulse_open(&w, NULL, port, &p, &e), &e);
    assert_true(port->beat > 0);
    return p;
}

static void start_one(struct launch_pulse *p, uint32_t other, uint32_t beat)
{
    const struct launch_port port = {.host = other, .beat = beat};
    struct err e = {""};
    T_OK(launch_pulse_start(p, &port, 1, &e), &e);
}

/* Within that time; returns how long it took, or −1. */
static int64_t wait_news(struct launch_pulse *p, int ms, struct launch_pulse_news *news)
{
    const uint64_t since = now_ms();
    struct pollfd polled = {.fd = launch_pulse_fd(p), .events = POLLIN};
    return poll(&polled, 1, ms) > 0 && launch_pulse_next(p, news) ? (int64_t)(now_ms() - since) : -1;
}

static void hosts_that_talk_are_there(void **state)
{
    (void)state;
    struct launch_port ports[2];
    struct launch_pulse *p[2] = {open_one(0, &ports[0]), open_one(1, &ports[1])};
    static struct rt_vitals vitals[2][2];
    struct launch_pulse_news news;
    for (int i = 0; i < 2; i++) {
        start_one(p[i], (uint32_t)(1 - i), ports[1 - i].beat);
        launch_pulse_watch(p[i], vitals[i], 2, true);
    }
    atomic_store(&vitals[1][1].threads[3].tick, 41);
    atomic_store(&vitals[1][1].tick, 1);
    atomic_store(&vitals[1][1].step, 17);
    assert_int_equal(wait_news(p[0], 3000, &news), -1);
    assert_int_equal(wait_news(p[1], 10, &news), -1);
    assert_int_equal(rt_vitals_progress(&vitals[0][1]), 42); /* what the other host's ranks do is seen here */
    launch_pulse_stop(p[1], LAUNCH_BEAT_LEFT); /* and then it is not missed */
    assert_int_equal(wait_news(p[0], 3000, &news), -1);
    launch_pulse_stop(p[0], LAUNCH_BEAT_LEFT);
}

static void silence_is_told_in_time(void **state)
{
    (void)state;
    struct launch_port port;
    struct launch_pulse *p = open_one(0, &port);
    struct launch_pulse_news news;
    start_one(p, 1, 9); /* nobody is there */
    const int64_t ms = wait_news(p, 5000, &news);
    assert_true(ms >= 2200 && ms <= 2700);
    assert_true(news.is_lost && news.host == 1);
    char wanted[300];
    snprintf(wanted, sizeof wanted, "nothing was ever heard of it at spark1 (lo 127.0.0.2 - lo 127.0.0.3); a firewall? on spark1: sudo ufw allow from 127.0.0.3 to any port %u proto udp; with --port", port.beat);
    assert_non_null(strstr(news.text, wanted));
    assert_int_equal(wait_news(p, 500, &news), -1); /* once */
    launch_pulse_stop(p, LAUNCH_BEAT_FAILED);
}

/* The other host, played by the test. */
struct actor {
    int fd;
    struct sockaddr_in to;
    uint64_t number;
};
static struct actor act(uint32_t *port, uint32_t to)
{
    struct actor a = {.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), .to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)to), .sin_addr.s_addr = htonl(0x7f000002)}};
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000003)};
    socklen_t n = sizeof own;
    assert_true(a.fd >= 0 && bind(a.fd, (const struct sockaddr *)&own, n) == 0 && getsockname(a.fd, (struct sockaddr *)&own, &n) == 0);
    *port = ntohs(own.sin_port);
    return a;
}
static void say(struct actor *a, const uint8_t *with_key, const struct launch_beat *b)
{
    uint8_t bytes[LAUNCH_BEAT_MAX_BYTES];
    const size_t n = launch_beat_put(with_key, b, bytes);
    assert_int_equal(sendto(a->fd, bytes, n, 0, (const struct sockaddr *)&a->to, sizeof a->to), n);
}

static void one_direction_is_told_as_one(void **state)
{
    (void)state;
    struct launch_port port;
    uint32_t its_port;
    struct launch_pulse *p = open_one(0, &port);
    struct launch_pulse_news news;
    struct actor a = act(&its_port, port.beat);
    start_one(p, 1, its_port);
    struct launch_beat b = some_beat(0);
    for (b.heard_ms = 0; b.heard_ms < 2300; b.heard_ms += 460) {
        b.number++;
        say(&a, key, &b);
        assert_int_equal(wait_news(p, 50, &news), -1);
    }
    b.number++;
    say(&a, key, &b);
    assert_true(wait_news(p, 1000, &news) >= 0);
    assert_true(news.is_lost && news.host == 1);
    assert_non_null(strstr(news.text, "it has heard nothing of spark1 for 2.3 s, though its own packets come"));
    launch_pulse_stop(p, LAUNCH_BEAT_FAILED);
    close(a.fd);
}

/* Another key, another job's hosts, noise, and what was said before: no sign of life, however often. */
static void strangers_keep_nobody_alive(void **state)
{
    (void)state;
    t_declare_warnings();
    struct launch_port port;
    uint32_t its_port;
    struct launch_pulse *p = open_one(0, &port);
    struct launch_pulse_news news;
    struct actor a = act(&its_port, port.beat);
    const uint64_t since = now_ms();
    start_one(p, 1, its_port);
    struct launch_beat right = some_beat(100), elsewhere = some_beat(200), back = some_beat(300);
    elsewhere.from_host = 2;
    back.to_host = 1, back.from_host = 0; /* our own packets, sent back */
    say(&a, key, &right);
    int64_t ms = -1;
    while (ms < 0 && now_ms() - since < 6000) {
        say(&a, key, &right);
        right.number = 99;
        say(&a, key, &right);
        right.number = 100;
        say(&a, other_key, &elsewhere);
        say(&a, key, &elsewhere);
        say(&a, key, &back);
        assert_int_equal(sendto(a.fd, "noise", 5, 0, (const struct sockaddr *)&a.to, sizeof a.to), 5);
        ms = wait_news(p, 20, &news);
    }
    assert_true(ms >= 0 && now_ms() - since < 3000);
    assert_non_null(strstr(news.text, "nothing was heard of it"));
    assert_non_null(strstr(news.text, "its rank 1 was at step 5"));
    launch_pulse_stop(p, LAUNCH_BEAT_FAILED);
    close(a.fd);
}

/* The heard_ms of the last packet that it was sent. */
static int last_heard_ms(const struct actor *a)
{
    uint8_t bytes[LAUNCH_BEAT_MAX_BYTES];
    struct launch_beat b;
    int heard_ms = -1;
    for (ssize_t n; (n = recv(a->fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0;)
        if (launch_beat_get(key, bytes, (size_t)n, &b))
            heard_ms = (int)b.heard_ms;
    return heard_ms;
}

/* What came while we did not run was heard: to say otherwise would make the other host believe that its packets do not get through. */
static void a_stall_of_our_own_is_no_silence(void **state)
{
    (void)state;
    struct base_clock_manual manual = {BASE_NS_PER_S}; /* that the test moves: then there is no thread */
    const struct base_clock clock = base_clock_from_manual(&manual);
    const struct launch_pulse_world world = {comm_os_real(), &clock};
    const struct launch_ways w = ways_of(0, key);
    struct launch_port port = {.host = 1};
    uint32_t its_port;
    struct launch_pulse *p = NULL;
    struct launch_pulse_news news;
    struct err e = {""};
    T_OK(launch_pulse_open(&w, &world, &port, &p, &e), &e);
    struct actor a = act(&its_port, port.beat);
    start_one(p, 1, its_port);
    struct launch_beat b = some_beat(0);
    for (int i = 0; i < 5; i++) {
        b.number++;
        say(&a, key, &b);
        launch_pulse_turn(p);
        manual.now_ns += LAUNCH_PULSE_PERIOD_MS * BASE_NS_PER_MS;
    }
    assert_in_range(last_heard_ms(&a), 0, LAUNCH_PULSE_PERIOD_MS);
    for (int i = 0; i < 10; i++) { /* they wait */
        b.number++;
        say(&a, key, &b);
    }
    manual.now_ns += 2200 * BASE_NS_PER_MS;
    launch_pulse_turn(p);
    assert_in_range(last_heard_ms(&a), 0, LAUNCH_PULSE_PERIOD_MS);
    assert_false(launch_pulse_next(p, &news));
    launch_pulse_stop(p, LAUNCH_BEAT_LEFT);
    close(a.fd);
}

static void ways_are_checked(void **state)
{
    (void)state;
    struct launch_ways right = ways_of(0, key), out, w;
    struct err e = {""};
    T_OK(launch_ways_check(&right, sizeof right, &out, &e), &e);
    t_expect_err_contains(ST_INVALID, launch_ways_check(&right, sizeof right - 1, &out, &e), &e, "ways to other hosts");
    for (int i = 0; i < 9; i++) {
        w = right;
        switch (i) {
        case 0: w.n = 0; break;
        case 1: w.n = LAUNCH_MAX_HOSTS; break;
        case 2: w.port = 65535; break;
        case 3: w.first_rank = 64; break;
        case 4: w.list[0].host = 0; break;
        case 5: w.list[0].first_rank = UINT32_MAX; break;
        case 6: memset(w.list[0].name, 'x', sizeof w.list[0].name); break;
        case 7: w.list[0].address.family = AF_INET6; break;
        default: w.list[0].n_ranks = 0;
        }
        t_expect_err_contains(ST_INVALID, launch_ways_check(&w, sizeof w, &out, &e), &e, "make no sense");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packets_prove_themselves),     cmocka_unit_test(slow_is_who_is_waited_for), cmocka_unit_test(hosts_that_talk_are_there), cmocka_unit_test(silence_is_told_in_time),
        cmocka_unit_test(one_direction_is_told_as_one), cmocka_unit_test(strangers_keep_nobody_alive), cmocka_unit_test(a_stall_of_our_own_is_no_silence), cmocka_unit_test(ways_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
