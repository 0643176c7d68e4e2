/* The PMI-1 server, line by line. */
#include "launcher/pmi.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/comm.h"
#include "tests/t.h"

static struct launch_pmi *server(int n_ranks) {
    struct launch_pmi *s = NULL;
    struct err e = {0};
    T_OK(launch_pmi_create(n_ranks, NULL, &s, &e), &e);
    return s;
}

static const char *take(struct launch_pmi *s, int rank) {
    static char text[16384];
    const void *bytes;
    size_t n = launch_pmi_pending(s, rank, &bytes);
    assert_true(n < sizeof text);
    memcpy(text, bytes, n);
    text[n] = 0;
    launch_pmi_sent(s, rank, n);
    return text;
}

static void say(struct launch_pmi *s, int rank, const char *line) {
    struct err e = {0};
    T_OK(launch_pmi_feed(s, rank, line, strlen(line), &e), &e);
}
static void ask(struct launch_pmi *s, int rank, const char *line, const char *want) {
    say(s, rank, line);
    assert_string_equal(take(s, rank), want);
}
static void is_broken_by(const char *bytes, size_t n, const char *part) {
    struct launch_pmi *s = server(2);
    struct err e = {0};
    t_expect_err_contains(ST_INVALID, launch_pmi_feed(s, 1, bytes, n, &e), &e, part);
    assert_int_equal(launch_pmi_query(s, 1), LAUNCH_PMI_BROKEN);
    memset(&e, 0, sizeof e);
    t_expect_err_contains(ST_INVALID, launch_pmi_feed(s, 1, "cmd=init\n", 9, &e), &e, part); /* for good */
    assert_string_equal(take(s, 1), "");
    ask(s, 0, "cmd=get_appnum\n", "cmd=appnum appnum=0\n"); /* others go on */
    launch_pmi_destroy(s);
}

static void what_mpich_says(void **state) {
    (void)state;
    struct launch_pmi *s = server(2);
    assert_int_equal(launch_pmi_query(s, 0), LAUNCH_PMI_SILENT);
    for (int twice = 0; twice < 2; twice++) /* our bootstrap, then MPICH */
        ask(s, 0, "cmd=init pmi_version=1 pmi_subversion=1\n", "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n");
    assert_int_equal(launch_pmi_query(s, 0), LAUNCH_PMI_TALKS);
    ask(s, 0, "cmd=init pmi_version=2 pmi_subversion=0\n", "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=-1\n");
    ask(s, 0, "cmd=get_maxes\n", "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=896\n");
    ask(s, 0, "cmd=get_appnum\n", "cmd=appnum appnum=0\n");
    ask(s, 0, "cmd=get_universe_size\n", "cmd=universe_size size=2\n");
    ask(s, 0, "cmd=get_my_kvsname\n", "cmd=my_kvsname kvsname=tandem\n");
    ask(s, 0, "cmd=get kvsname=tandem key=PMI_process_mapping\n", "cmd=get_result rc=0 msg=success value=(vector,(0,1,2))\n");
    ask(s, 0, "cmd=put kvsname=tandem key=-bcast-1-0 value=2F64=+/\n", "cmd=put_result rc=0 msg=success\n");
    ask(s, 1, "cmd=get kvsname=tandem key=-bcast-1-0\n", "cmd=get_result rc=0 msg=success value=2F64=+/\n");
    ask(s, 1, "cmd=get kvsname=tandem key=nothing\n", "cmd=get_result rc=-1 msg=key_nothing_not_found value=unknown\n");
    ask(s, 1, "cmd=put kvsname=tandem key=-bcast-1-0 value=other\n", "cmd=put_result rc=-1 msg=duplicate_key\n");
    ask(s, 1, "cmd=put kvsname=tandem key=empty value=\n", "cmd=put_result rc=0 msg=success\n");
    ask(s, 0, "cmd=get kvsname=tandem key=empty\n", "cmd=get_result rc=0 msg=success value=\n");
    ask(s, 0, "cmd=finalize\n", "cmd=finalize_ack\n");
    assert_int_equal(launch_pmi_query(s, 0), LAUNCH_PMI_FINALIZED);
    launch_pmi_hang_up(s, 0);
    assert_int_equal(launch_pmi_query(s, 0), LAUNCH_PMI_FINALIZED); /* in peace */
    assert_int_equal(launch_pmi_aborted(s, NULL), -1);
    launch_pmi_destroy(s);
}

static void what_is_refused(void **state) {
    (void)state;
    struct launch_pmi *s = server(1);
    say(s, 0, "mcmd=spawn\nnprocs=2\nexecname=x\n");
    assert_string_equal(take(s, 0), "");
    ask(s, 0, "cmd=put\nendcmd\n", "cmd=spawn_result rc=-1 status=not_served\n");
    ask(s, 0, "cmd=publish_name service=a port=b\n", "cmd=publish_result info=not_served rc=-1 msg=not_served\n");
    ask(s, 0, "cmd=unpublish_name service=a\n", "cmd=unpublish_result info=not_served rc=-1 msg=not_served\n");
    ask(s, 0, "cmd=lookup_name service=a\n", "cmd=lookup_result info=not_served rc=-1 msg=not_served\n");
    ask(s, 0, "cmd=initack pmiid=0\n", "cmd=error rc=-1 msg=unknown_command\n");
    ask(s, 0, "cmd=\n", "cmd=error rc=-1 msg=unknown_command\n");
    ask(s, 0, "cmd=put kvsname=other key=a value=b\n", "cmd=put_result rc=-1 msg=unknown_kvsname\n");
    ask(s, 0, "cmd=put key=a value=b\n", "cmd=put_result rc=-1 msg=unknown_kvsname\n");
    ask(s, 0, "cmd=put kvsname=tandem value=b\n", "cmd=put_result rc=-1 msg=invalid_key_length\n");
    ask(s, 0, "cmd=get kvsname=tandem\n", "cmd=get_result rc=-1 msg=invalid_key_length value=unknown\n");
    ask(s, 0, "cmd=get kvsname=x key=a\n", "cmd=get_result rc=-1 msg=unknown_kvsname value=unknown\n");
    launch_pmi_destroy(s);
}

static void bounds(void **state) {
    (void)state;
    struct launch_pmi *s = server(2);
    char line[2048], value[1024], key[128];
    memset(value, 'v', sizeof value);
    memset(key, 'k', sizeof key);
    snprintf(line, sizeof line, "cmd=put kvsname=tandem key=%.65s value=x\n", key);
    ask(s, 0, line, "cmd=put_result rc=-1 msg=invalid_key_length\n");
    snprintf(line, sizeof line, "cmd=put kvsname=tandem key=%.64s value=%.897s\n", key, value);
    ask(s, 0, line, "cmd=put_result rc=-1 msg=invalid_value_length\n");
    snprintf(line, sizeof line, "cmd=put kvsname=tandem key=%.64s value=%.896s\n", key, value);
    assert_true(strlen(line) < 1024); /* MPICH's buffer */
    ask(s, 0, line, "cmd=put_result rc=0 msg=success\n");
    snprintf(line, sizeof line, "cmd=get kvsname=tandem key=%.64s\n", key);
    say(s, 1, line);
    assert_true(strlen(take(s, 1)) < 1024);
    for (int i = 1; i < LAUNCH_PMI_MAX_PAIRS; i++) {
        snprintf(line, sizeof line, "cmd=put kvsname=tandem key=%d value=%d\n", i, i);
        ask(s, 0, line, "cmd=put_result rc=0 msg=success\n");
    }
    ask(s, 0, "cmd=put kvsname=tandem key=more value=x\n", "cmd=put_result rc=-1 msg=too_many_keys\n");
    ask(s, 1, "cmd=put kvsname=tandem key=more value=x\n", "cmd=put_result rc=0 msg=success\n");
    ask(s, 1, "cmd=get kvsname=tandem key=511\n", "cmd=get_result rc=0 msg=success value=511\n");
    launch_pmi_destroy(s);
    struct err e = {0};
    t_expect_err_contains(ST_INVALID, launch_pmi_create(0, NULL, &s, &e), &e, "0 ranks");
    t_expect_err_contains(ST_INVALID, launch_pmi_create(65, NULL, &s, &e), &e, "65 ranks");
}

static void what_breaks_a_rank(void **state) {
    (void)state;
    static char line[LAUNCH_PMI_LINE_MAX + 2];
    memset(line, 'a', sizeof line);
    is_broken_by(line, sizeof line, "rank 1 wrote a line of more than 2048 bytes");
    is_broken_by("cmd=in\0it\n", 10, "rank 1 wrote the byte 0x00");
    is_broken_by("cmd=\xff\n", 6, "rank 1 wrote the byte 0xff");
    is_broken_by("\n", 1, "rank 1 wrote a line that is no request");
    is_broken_by("GET / HTTP/1.0\n", 15, "rank 1 wrote a line that is no request");
    is_broken_by("cmd=barrier_in\ncmd=barrier_in\n", 30, "rank 1 asks on while it waits in a barrier");
    is_broken_by("cmd=finalize\ncmd=init\n", 22, "rank 1 asks on after finalize");
    /* Who does not read. */
    struct launch_pmi *s = server(1);
    struct err e = {0};
    enum st code = ST_OK;
    for (int i = 0; i < 1000 && code == ST_OK; i++) code = launch_pmi_feed(s, 0, "cmd=get_maxes\n", 14, &e);
    t_expect_err_contains(ST_INVALID, code, &e, "rank 0 asks on without reading the answers");
    launch_pmi_destroy(s);
}

static void bytes_come_in_pieces(void **state) {
    (void)state;
    struct launch_pmi *s = server(1);
    const char *text = "cmd=get_appnum\ncmd=get_universe_size\ncmd=get_";
    struct err e = {0};
    for (const char *at = text; *at; at++) T_OK(launch_pmi_feed(s, 0, at, 1, &e), &e);
    const void *bytes;
    assert_int_equal(launch_pmi_pending(s, 0, &bytes), 20 + 25);
    launch_pmi_sent(s, 0, 5);
    assert_string_equal(take(s, 0), "ppnum appnum=0\ncmd=universe_size size=1\n");
    launch_pmi_destroy(s);
}

static void barriers(void **state) {
    (void)state;
    struct launch_pmi *s = server(3);
    for (int round = 0; round < 3; round++) {
        ask(s, 2, "cmd=barrier_in\n", "");
        ask(s, 0, "cmd=barrier_in\n", "");
        assert_int_equal(launch_pmi_query(s, 0), LAUNCH_PMI_WAITS);
        say(s, 1, "cmd=barrier_in\n");
        for (int r = 0; r < 3; r++) assert_string_equal(take(s, r), "cmd=barrier_out\n");
        assert_int_equal(launch_pmi_query(s, 0), LAUNCH_PMI_TALKS);
    }
    /* One dies while others wait, and for whoever comes later. */
    ask(s, 2, "cmd=barrier_in\n", "");
    launch_pmi_hang_up(s, 1);
    assert_int_equal(launch_pmi_query(s, 1), LAUNCH_PMI_GONE);
    assert_string_equal(take(s, 2), "cmd=barrier_out rc=-1 msg=rank_1_has_left\n");
    ask(s, 0, "cmd=barrier_in\n", "cmd=barrier_out rc=-1 msg=rank_1_has_left\n");
    launch_pmi_destroy(s);

    /* One dies inside it. */
    s = server(2);
    ask(s, 0, "cmd=barrier_in\n", "");
    launch_pmi_hang_up(s, 0);
    ask(s, 1, "cmd=barrier_in\n", "cmd=barrier_out rc=-1 msg=rank_0_has_left\n");
    launch_pmi_destroy(s);

    /* One leaves in peace, one breaks. */
    s = server(3);
    ask(s, 0, "cmd=barrier_in\n", "");
    say(s, 1, "cmd=finalize\n");
    assert_string_equal(take(s, 0), "cmd=barrier_out rc=-1 msg=rank_1_has_left\n");
    launch_pmi_destroy(s);
    s = server(3);
    struct err e = {0};
    ask(s, 0, "cmd=barrier_in\n", "");
    t_expect_err_contains(ST_INVALID, launch_pmi_feed(s, 2, "?\n", 2, &e), &e, "rank 2");
    assert_string_equal(take(s, 0), "cmd=barrier_out rc=-1 msg=rank_2_has_left\n");
    launch_pmi_destroy(s);
}

static void aborts(void **state) {
    (void)state;
    struct launch_pmi *s = server(2);
    int code = 0;
    ask(s, 1, "cmd=abort exitcode=17\n", "");
    ask(s, 0, "cmd=abort\n", "");
    assert_int_equal(launch_pmi_aborted(s, &code), 1);
    assert_int_equal(code, 17);
    launch_pmi_destroy(s);
}

static void mapping(void **state) {
    (void)state;
    static const struct {
        int n_ranks, hosts[8];
        const char *want;
    } cases[] = {
        {1, {0}, "(vector,(0,1,1))"},
        {4, {0, 0, 0, 0}, "(vector,(0,1,4))"},
        {2, {0, 1}, "(vector,(0,2,1))"},
        {4, {0, 0, 1, 1}, "(vector,(0,2,2))"},
        {3, {0, 0, 1}, "(vector,(0,1,2),(1,1,1))"},
        {5, {0, 1, 1, 2, 2}, "(vector,(0,1,1),(1,2,2))"},
        {4, {0, 1, 0, 1}, "(vector,(0,2,1),(0,2,1))"},
        {3, {1, 0, 2}, "(vector,(1,1,1),(0,1,1),(2,1,1))"},
    };
    char text[LAUNCH_PMI_MAPPING_BYTES];
    struct err e = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        T_OK(launch_pmi_mapping(cases[i].hosts, cases[i].n_ranks, text, &e), &e);
        assert_string_equal(text, cases[i].want);
    }
    T_OK(launch_pmi_mapping(NULL, 3, text, &e), &e);
    assert_string_equal(text, "(vector,(0,1,3))");
    int hosts[COMM_MAX_RANKS];
    for (int r = 0; r < COMM_MAX_RANKS; r++) hosts[r] = COMM_MAX_RANKS - 1 - r; /* a block for each */
    T_OK(launch_pmi_mapping(hosts, COMM_MAX_RANKS, text, &e), &e);
    assert_true(strlen(text) <= LAUNCH_PMI_VALUE_MAX);
    hosts[5] = -1;
    t_expect_err_contains(ST_INVALID, launch_pmi_mapping(hosts, COMM_MAX_RANKS, text, &e), &e, "rank 5 is on host -1");
    hosts[5] = COMM_MAX_RANKS;
    t_expect_err_contains(ST_INVALID, launch_pmi_mapping(hosts, COMM_MAX_RANKS, text, &e), &e, "rank 5 is on host 64");
}

static void over_a_socket(void **state) {
    (void)state;
    struct launch_pmi *s = server(1);
    int ends[2];
    char text[64] = "";
    struct err e = {0};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    T_OK(launch_pmi_read(s, 0, comm_os_real(), ends[0], &e), &e); /* nothing there: returns at once */
    assert_int_equal(write(ends[1], "cmd=get_appnum\n", 15), 15);
    T_OK(launch_pmi_read(s, 0, comm_os_real(), ends[0], &e), &e);
    assert_false(launch_pmi_write(s, 0, comm_os_real(), ends[0]));
    assert_int_equal(read(ends[1], text, sizeof text), 20);
    assert_string_equal(text, "cmd=appnum appnum=0\n");
    close(ends[1]);
    T_OK(launch_pmi_read(s, 0, comm_os_real(), ends[0], &e), &e);
    assert_int_equal(launch_pmi_query(s, 0), LAUNCH_PMI_GONE);
    close(ends[0]);
    launch_pmi_destroy(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_mpich_says), cmocka_unit_test(what_is_refused),      cmocka_unit_test(bounds), cmocka_unit_test(what_breaks_a_rank),
        cmocka_unit_test(barriers),        cmocka_unit_test(bytes_come_in_pieces), cmocka_unit_test(aborts), cmocka_unit_test(mapping),
        cmocka_unit_test(over_a_socket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
