/* Frames over a socket pair: in any pieces, hostile sizes, an end in the middle, signals, slow and dead receivers. */
#include "runtime/protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "tests/t.h"

/* Two ends of one stream: frames are sent at fd and taken from in. */
struct link {
    int fd;
    struct rt_inbox in;
    struct err e;
    enum rt_frame_kind kind;
    const void *payload;
    size_t bytes;
};

static void open_link(struct link *l)
{
    int fds[2];
    *l = (struct link){.fd = -1};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    l->fd = fds[0];
    rt_inbox_init(&l->in, fds[1]);
}

static void hang_up(struct link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
}

static void close_link(struct link *l)
{
    const int fd = l->in.fd;
    hang_up(l);
    rt_inbox_release(&l->in);
    assert_true(l->in.data == NULL && l->in.fd == -1);
    close(fd);
}

static void send_raw(const struct link *l, const void *data, size_t bytes) { assert_int_equal(send(l->fd, data, bytes, MSG_NOSIGNAL), bytes); }

static enum st next(struct link *l, int timeout_ms)
{
    l->e = (struct err){""};
    return rt_inbox_next(&l->in, timeout_ms, &l->kind, &l->payload, &l->bytes, &l->e);
}

static void expect_frame(struct link *l, enum rt_frame_kind kind, const void *payload, size_t bytes)
{
    T_OK(next(l, 5000), &l->e);
    assert_int_equal(l->kind, kind);
    assert_int_equal(l->bytes, bytes);
    assert_memory_equal(l->payload, payload, bytes);
}

static uint64_t now_ms(void) { return base_now_ns(base_clock_real()) / BASE_NS_PER_MS; }

static void put_head(unsigned char *at, uint32_t bytes, uint32_t kind)
{
    const uint32_t words[] = {bytes, kind};
    memcpy(at, words, sizeof words);
}

/* ---- frames in pieces -------------------------------------------------------------------------------------------------------------------------------------- */

static void a_number_and_a_text(void **state)
{
    (void)state;
    const char payload[] = "\1\0\0\0why";
    char text[5];
    uint32_t number = 7;
    assert_true(rt_frame_told(payload, 7, &number, text, sizeof text));
    assert_int_equal(number, 1);
    assert_string_equal(text, "why");
    assert_true(rt_frame_told(payload, 7, &number, text, 3));
    assert_string_equal(text, "wh");
    assert_true(rt_frame_told(payload, 4, &number, text, sizeof text));
    assert_string_equal(text, "");
    assert_false(rt_frame_told(payload, 3, &number, text, sizeof text));
    assert_false(rt_frame_told(payload, 0, &number, text, sizeof text));
}

static void whole_frames(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    T_OK(rt_frame_send(l.fd, RT_TOKEN, "token", 5, &l.e), &l.e);
    expect_frame(&l, RT_TOKEN, "token", 5);
    T_OK(rt_frame_send(l.fd, RT_STOP, NULL, 0, &l.e), &l.e); /* nothing but a head */
    expect_frame(&l, RT_STOP, "", 0);
    const struct iovec pieces[] = {{(void *)(uintptr_t)"ab", 2}, {NULL, 0}, {(void *)(uintptr_t)"cde", 3}, {(void *)(uintptr_t)"", 0}};
    T_OK(rt_frame_sendv(l.fd, RT_LOGITS, pieces, 4, &l.e), &l.e);
    expect_frame(&l, RT_LOGITS, "abcde", 5);
    T_OK(rt_frame_sendv(l.fd, RT_DONE, NULL, 0, &l.e), &l.e);
    expect_frame(&l, RT_DONE, "", 0);
    assert_int_equal(next(&l, 0), ST_AGAIN);
    close_link(&l);
}

static void the_bytes_on_the_wire(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    T_OK(rt_frame_send(l.fd, RT_TOKEN, "xyz", 3, &l.e), &l.e);
    unsigned char got[16];
    static const unsigned char want[] = {3, 0, 0, 0, 17, 0, 0, 0, 'x', 'y', 'z'};
    assert_int_equal(recv(l.in.fd, got, sizeof got, 0), sizeof want);
    assert_memory_equal(got, want, sizeof want);
    close_link(&l);
}

static void single_bytes(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    unsigned char frame[8 + 11];
    put_head(frame, 11, RT_SCORE);
    memcpy(frame + 8, "eleven byte", 11);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i + 1 < sizeof frame; i++) {
            send_raw(&l, frame + i, 1);
            assert_int_equal(next(&l, 0), ST_AGAIN);
        }
        send_raw(&l, frame + sizeof frame - 1, 1);
        expect_frame(&l, RT_SCORE, "eleven byte", 11);
    }
    close_link(&l);
}

static void several_in_one_read(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    unsigned char stream[3 * 8 + 5 + 0 + 6 + 3]; /* three frames, and three bytes of the next one's head */
    unsigned char *at = stream;
    put_head(at, 5, RT_TOKEN);
    memcpy(at + 8, "first", 5);
    put_head(at += 13, 0, RT_STOP);
    put_head(at += 8, 6, RT_SCORE);
    memcpy(at + 8, "second", 6);
    static const unsigned char head[] = {2, 0, 0, 0, RT_DONE, 0, 0, 0, 'o', 'k'};
    memcpy(at + 14, head, 3);
    send_raw(&l, stream, sizeof stream);
    expect_frame(&l, RT_TOKEN, "first", 5);
    assert_int_equal(l.in.used, sizeof stream); /* all of it came at once */
    expect_frame(&l, RT_STOP, "", 0);
    expect_frame(&l, RT_SCORE, "second", 6);
    assert_int_equal(next(&l, 0), ST_AGAIN);
    send_raw(&l, head + 3, sizeof head - 3);
    expect_frame(&l, RT_DONE, "ok", 2);
    close_link(&l);
}

/* What comes in by fill is there for the next looks, in order; fill on nothing says so. */
static void filled_without_looking(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    assert_int_equal(rt_inbox_fill(&l.in, &l.e), ST_AGAIN);
    for (int i = 0; i < 20; i++) {
        unsigned char payload[30000];
        memset(payload, i, sizeof payload);
        T_OK(rt_frame_send(l.fd, RT_LOGITS, payload, sizeof payload, &l.e), &l.e);
        enum st st;
        while ((st = rt_inbox_fill(&l.in, &l.e)) == ST_OK)
            ;
        assert_int_equal(st, ST_AGAIN);
    }
    assert_int_equal(l.in.used, 20 * 30008);
    for (int i = 0; i < 20; i++) {
        T_OK(next(&l, 0), &l.e);
        assert_true(l.bytes == 30000 && *(const unsigned char *)l.payload == i && ((const unsigned char *)l.payload)[29999] == i);
    }
    assert_int_equal(next(&l, 0), ST_AGAIN);
    close_link(&l);
}

static const unsigned char *noise; /* 1 MB */
enum { NOISE_BYTES = 1 << 20 };

struct sender {
    int fd;
    uint64_t seed;
    int n_frames;
    size_t most;
    enum st st;
};

static void random_frame(struct base_rng *rng, size_t most, enum rt_frame_kind *kind, size_t *bytes, size_t *at)
{
    *kind = (enum rt_frame_kind)base_rng_below(rng, 40);
    *bytes = base_rng_below(rng, 4) ? base_rng_below(rng, 64) : base_rng_below(rng, (uint32_t)most);
    *at = base_rng_below(rng, (uint32_t)(NOISE_BYTES - *bytes));
}

/* In pieces, as many as are allowed. */
static void *send_frames(void *arg)
{
    struct sender *s = arg;
    struct base_rng rng;
    base_rng_init(&rng, s->seed);
    for (int i = 0; i < s->n_frames && !s->st; i++) {
        enum rt_frame_kind kind;
        size_t bytes, at;
        random_frame(&rng, s->most, &kind, &bytes, &at);
        struct iovec pieces[65];
        const size_t n = 1 + (size_t)i % 65;
        for (size_t k = 0; k < n; k++)
            pieces[k] = (struct iovec){(void *)(uintptr_t)(noise + at + bytes * k / n), bytes * (k + 1) / n - bytes * k / n};
        s->st = rt_frame_sendv(s->fd, kind, pieces, (int)n, NULL);
    }
    return NULL;
}

/* A receiver with a small window that looks, waits, fills or sleeps: the sender blocks in the middle of frames and goes on. Blocking and non-blocking descriptors alike. */
static void a_slow_receiver(void **state)
{
    (void)state;
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct link l;
        open_link(&l);
        setsockopt(l.fd, SOL_SOCKET, SO_SNDBUF, &(int){4096}, sizeof(int));
        if (nonblocking)
            assert_int_equal(fcntl(l.fd, F_SETFL, O_NONBLOCK), 0);
        struct sender s = {.fd = l.fd, .seed = t_seed(), .n_frames = 300, .most = 200000};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, send_frames, &s), 0);
        struct base_rng rng, mine;
        base_rng_init(&rng, s.seed);
        base_rng_init(&mine, s.seed + 1);
        int n_wrong = 0, n_looks = 0;
        for (int i = 0; i < s.n_frames && !n_wrong;) {
            const enum st st = next(&l, base_rng_below(&mine, 2) ? 0 : 5000);
            if (base_rng_below(&mine, 16) == 0)
                usleep(200);
            n_looks += st == ST_AGAIN;
            if (st == ST_AGAIN)
                continue;
            enum rt_frame_kind kind;
            size_t bytes, at;
            random_frame(&rng, s.most, &kind, &bytes, &at);
            n_wrong += st || l.kind != kind || l.bytes != bytes || memcmp(l.payload, noise + at, bytes) != 0;
            i++;
        }
        if (n_wrong)
            shutdown(l.fd, SHUT_RDWR);
        pthread_join(thread, NULL);
        assert_int_equal(n_wrong, 0);
        T_OK(s.st, NULL);
        assert_true(n_looks > 0);
        assert_int_equal(next(&l, 0), ST_AGAIN);
        close_link(&l);
    }
}

static void *send_largest(void *arg)
{
    struct sender *s = arg;
    struct iovec pieces[64];
    for (int i = 0; i < 64; i++)
        pieces[i] = (struct iovec){(void *)(uintptr_t)noise, NOISE_BYTES};
    s->st = rt_frame_sendv(s->fd, RT_LOGITS, pieces, 64, NULL);
    return NULL;
}

static void the_largest_frame(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    struct sender s = {.fd = l.fd};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, send_largest, &s), 0);
    const enum st st = next(&l, 20000);
    if (st)
        shutdown(l.fd, SHUT_RDWR);
    pthread_join(thread, NULL);
    T_OK(st, &l.e);
    T_OK(s.st, NULL);
    assert_int_equal(l.bytes, RT_FRAME_MAX);
    for (int i = 0; i < 64; i++)
        assert_true(memcmp((const unsigned char *)l.payload + (size_t)i * NOISE_BYTES, noise, NOISE_BYTES) == 0);
    close_link(&l);
}

/* ---- hostile frames ------------------------------------------------------------------------------------------------------------------------------------------ */

static void too_long(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {RT_FRAME_MAX + 1, 0x7fffffff, 0x80000000u, 0xfffffff8u, UINT32_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct link l;
        open_link(&l);
        T_OK(rt_frame_send(l.fd, RT_TOKEN, "fine", 4, &l.e), &l.e);
        unsigned char head[8];
        put_head(head, sizes[i], RT_LOGITS);
        send_raw(&l, head, sizeof head);
        expect_frame(&l, RT_TOKEN, "fine", 4); /* what came before it counts */
        for (int again = 0; again < 2; again++) /* there is no way to find the next frame: it stays wrong */
            t_expect_err_contains(ST_INVALID, next(&l, 1000), &l.e, "over the limit of 67108864");
        assert_true(l.in.capacity <= 1 << 20); /* nobody made room for it */
        close_link(&l);
    }
    struct link l; /* the longest that may be is waited for */
    open_link(&l);
    unsigned char head[8];
    put_head(head, RT_FRAME_MAX, RT_LOGITS);
    send_raw(&l, head, sizeof head);
    assert_int_equal(next(&l, 0), ST_AGAIN);
    close_link(&l);
}

static void unknown_kinds_are_handed_on(void **state)
{
    (void)state;
    static const uint32_t kinds[] = {0, 5, 15, 99, 0x7fffffff, 0x80000000u, UINT32_MAX};
    struct link l;
    open_link(&l);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        unsigned char frame[9] = {0};
        put_head(frame, 1, kinds[i]);
        frame[8] = '?';
        send_raw(&l, frame, sizeof frame);
        expect_frame(&l, (enum rt_frame_kind)kinds[i], "?", 1); /* whoever takes it knows what it means to them */
    }
    close_link(&l);
}

static void the_end_in_the_middle(void **state)
{
    (void)state;
    unsigned char frame[8 + 5];
    put_head(frame, 5, RT_TOKEN);
    memcpy(frame + 8, "token", 5);
    for (size_t n = 0; n <= sizeof frame; n++) {
        struct link l;
        open_link(&l);
        T_OK(rt_frame_send(l.fd, RT_DONE, "done", 4, &l.e), &l.e);
        if (n)
            send_raw(&l, frame, n);
        hang_up(&l);
        expect_frame(&l, RT_DONE, "done", 4);
        if (n == sizeof frame)
            expect_frame(&l, RT_TOKEN, "token", 5);
        static const int timeouts[] = {0, 1000, -1};
        for (size_t i = 0; i < 3; i++)
            t_expect_err_contains(ST_PEER_LOST, next(&l, timeouts[i]), &l.e, "closed the connection");
        t_expect_err_contains(ST_PEER_LOST, rt_inbox_fill(&l.in, &l.e), &l.e, "closed the connection");
        close_link(&l);
    }
}

/* One that left without reading what it was sent: a reset, but what it had sent before can still be read. */
static void a_reset(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    T_OK(rt_frame_send(l.fd, RT_DONE, "done", 4, &l.e), &l.e);
    assert_int_equal(send(l.in.fd, "unread", 6, 0), 6);
    hang_up(&l);
    enum st st = next(&l, 1000);
    if (st == ST_OK)
        st = next(&l, 1000);
    assert_int_equal(st, ST_PEER_LOST);
    close_link(&l);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------------------------------------------------- */

static void *speak_later(void *arg)
{
    const struct link *l = arg;
    usleep(50000);
    (void)rt_frame_send(l->fd, RT_TOKEN, "late", 4, NULL);
    return NULL;
}

static void timeouts(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    uint64_t start = now_ms();
    assert_int_equal(next(&l, 0), ST_AGAIN);
    assert_true(now_ms() - start < 1000);
    start = now_ms();
    assert_int_equal(next(&l, 60), ST_AGAIN);
    assert_in_range(now_ms() - start, 58, 5000);
    static const int waits[] = {-1, 10000};
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, speak_later, &l), 0);
        start = now_ms();
        const enum st st = next(&l, waits[i]);
        pthread_join(thread, NULL);
        T_OK(st, &l.e);
        assert_in_range(now_ms() - start, 30, 5000);
    }
    close_link(&l);
}

static void *trickle(void *arg)
{
    const struct link *l = arg;
    unsigned char head[8];
    put_head(head, 1000, RT_TOKEN);
    if (send(l->fd, head, sizeof head, MSG_NOSIGNAL) != sizeof head)
        return NULL;
    for (int i = 0; i < 100; i++) { /* a second of it */
        if (send(l->fd, "x", 1, MSG_NOSIGNAL) != 1)
            return NULL;
        usleep(10000);
    }
    return NULL;
}

/* Bytes that come now and then are no frame: they do not start the wait anew. */
static void a_trickle_does_not_prolong_the_wait(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, trickle, &l), 0);
    const uint64_t start = now_ms();
    const enum st st = next(&l, 100);
    const uint64_t took = now_ms() - start;
    pthread_join(thread, NULL);
    assert_int_equal(st, ST_AGAIN);
    assert_in_range(took, 98, 800);
    close_link(&l);
}

/* ---- signals ---------------------------------------------------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t n_alarms;
static void on_alarm(int number)
{
    (void)number;
    n_alarms = n_alarms + 1;
}

/* An alarm every few milliseconds that interrupts whatever waits. */
static void alarms(int interval_us)
{
    const struct sigaction a = {.sa_handler = interval_us ? on_alarm : SIG_IGN}; /* no SA_RESTART */
    assert_int_equal(sigaction(SIGALRM, &a, NULL), 0);
    const struct itimerval t = {{0, interval_us}, {0, interval_us}};
    assert_int_equal(setitimer(ITIMER_REAL, &t, NULL), 0);
}

static void a_signal_ends_the_wait(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    n_alarms = 0;
    alarms(20000);
    static const int waits[] = {-1, 20000};
    for (int i = 0; i < 2; i++) { /* so that whoever waits can look at what the signal wanted */
        const int before = n_alarms;
        const uint64_t start = now_ms();
        assert_int_equal(next(&l, waits[i]), ST_AGAIN);
        assert_true(n_alarms > before && now_ms() - start < 10000);
    }
    alarms(0);
    close_link(&l);
}

static void *take_slowly(void *arg)
{
    struct link *l = arg;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* they are for the sender */
    usleep(60000);
    enum st st;
    while ((st = next(l, 5000)) == ST_AGAIN)
        ;
    return st ? NULL : l;
}

static void a_send_goes_on_after_signals(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    setsockopt(l.fd, SOL_SOCKET, SO_SNDBUF, &(int){4096}, sizeof(int));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, take_slowly, &l), 0);
    n_alarms = 0;
    alarms(5000);
    struct err e = {""};
    const enum st st = rt_frame_send(l.fd, RT_LOGITS, noise, NOISE_BYTES, &e);
    const int n = n_alarms;
    alarms(0);
    if (st)
        shutdown(l.fd, SHUT_RDWR);
    void *got;
    pthread_join(thread, &got);
    T_OK(st, &e);
    assert_non_null(got);
    assert_true(n > 0);
    assert_true(l.bytes == NOISE_BYTES && memcmp(l.payload, noise, NOISE_BYTES) == 0);
    close_link(&l);
}

/* ---- who is gone ------------------------------------------------------------------------------------------------------------------------------------------- */

/* In a child whose SIGPIPE would kill. */
static void send_to_nobody(void *arg)
{
    (void)arg;
    signal(SIGPIPE, SIG_DFL);
    int fds[2];
    BASE_ASSERT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    close(fds[1]);
    struct err e = {""};
    BASE_ASSERT(rt_frame_send(fds[0], RT_TOKEN, "token", 5, &e) == ST_PEER_LOST);
    BASE_ASSERT(strstr(e.text, "cannot send to the other end: ") != NULL);
    BASE_ASSERT(rt_frame_send(-1, RT_TOKEN, "token", 5, &e) == ST_PEER_LOST); /* nor where there never was one */
}

static void *leave_soon(void *arg)
{
    usleep(30000);
    close(*(const int *)arg);
    return NULL;
}

/* The other end leaves while the sender waits for room, blocking or in poll. */
static void send_to_one_who_leaves(void *arg)
{
    signal(SIGPIPE, SIG_DFL);
    int fds[2];
    BASE_ASSERT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    if (*(const int *)arg)
        BASE_ASSERT(fcntl(fds[0], F_SETFL, O_NONBLOCK) == 0);
    pthread_t thread;
    BASE_ASSERT(pthread_create(&thread, NULL, leave_soon, &fds[1]) == 0);
    enum st st = ST_OK;
    while (!st)
        st = rt_frame_send(fds[0], RT_LOGITS, noise, NOISE_BYTES, NULL);
    BASE_ASSERT(st == ST_PEER_LOST);
    pthread_join(thread, NULL);
}

static void a_dead_receiver(void **state)
{
    (void)state;
    t_in_child(send_to_nobody, NULL, 0);
    for (int nonblocking = 0; nonblocking < 2; nonblocking++)
        t_in_child(send_to_one_who_leaves, &nonblocking, 0);
}

static void too_many_pieces(void *arg)
{
    struct iovec pieces[66] = {{NULL, 0}};
    rt_frame_sendv(*(const int *)arg, RT_LOGITS, pieces, 66, NULL);
}
static void too_many_bytes(void *arg) { rt_frame_send(*(const int *)arg, RT_LOGITS, noise, (size_t)RT_FRAME_MAX + 1, NULL); }

static void misuse_is_seen(void **state)
{
    (void)state;
    struct link l;
    open_link(&l);
    t_expect_assert(too_many_pieces, &l.fd, "n_pieces");
    t_expect_assert(too_many_bytes, &l.fd, "RT_FRAME_MAX");
    close_link(&l);
}

static int make_noise(void **state)
{
    (void)state;
    static unsigned char bytes[NOISE_BYTES];
    struct base_rng rng;
    base_rng_init(&rng, 1);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)base_rng_u32(&rng);
    noise = bytes;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_number_and_a_text), cmocka_unit_test(whole_frames),
        cmocka_unit_test(the_bytes_on_the_wire),
        cmocka_unit_test(single_bytes),
        cmocka_unit_test(several_in_one_read),
        cmocka_unit_test(filled_without_looking),
        cmocka_unit_test(a_slow_receiver),
        cmocka_unit_test(the_largest_frame),
        cmocka_unit_test(too_long),
        cmocka_unit_test(unknown_kinds_are_handed_on),
        cmocka_unit_test(the_end_in_the_middle),
        cmocka_unit_test(a_reset),
        cmocka_unit_test(timeouts),
        cmocka_unit_test(a_trickle_does_not_prolong_the_wait),
        cmocka_unit_test(a_signal_ends_the_wait),
        cmocka_unit_test(a_send_goes_on_after_signals),
        cmocka_unit_test(a_dead_receiver),
        cmocka_unit_test(misuse_is_seen),
    };
    return cmocka_run_group_tests(tests, make_noise, NULL);
}
