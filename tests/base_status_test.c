#include <signal.h>
#include <string.h>

#include "base/build_id.h"
#include "base/clock.h"
#include "base/log.h"
#include "tests/t.h"

static void every_code_has_a_name(void **state) {
    (void)state;
    for (int i = 0; i < ST_COUNT; i++) {
        assert_string_not_equal(st_name((enum st)i), "unknown status");
        for (int j = 0; j < i; j++) assert_string_not_equal(st_name((enum st)i), st_name((enum st)j));
    }
    assert_string_equal(st_name((enum st) - 1), "unknown status");
    assert_string_equal(st_name(ST_COUNT), "unknown status");
}

static void errors_are_written_and_prefixed(void **state) {
    (void)state;
    struct err e = {0};
    assert_int_equal(err_set(&e, ST_INVALID, "%s:%d: broken", "file", 7), ST_INVALID);
    assert_string_equal(e.text, "file:7: broken");
    assert_int_equal(err_prefix(&e, ST_IO, "rank %d", 1), ST_IO);
    assert_string_equal(e.text, "rank 1: file:7: broken");
    assert_int_equal(err_set(NULL, ST_TIMEOUT, "nobody reads this"), ST_TIMEOUT);
    assert_int_equal(err_prefix(NULL, ST_TIMEOUT, "nor this"), ST_TIMEOUT);
}

static void long_errors_are_cut(void **state) {
    (void)state;
    struct err e;
    char text[2000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    err_set(&e, ST_INVALID, "%s", text);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    err_prefix(&e, ST_INVALID, "where");
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    assert_memory_equal(e.text, "where: xxx", 10);
    /* Every length of a prefix around the end. */
    for (size_t n = sizeof e.text - 5; n < sizeof e.text + 2; n++) {
        err_set(&e, ST_INVALID, "old");
        err_prefix(&e, ST_INVALID, "%.*s", (int)n, text);
        assert_true(strlen(e.text) < sizeof e.text);
    }
}

static void fail_an_assertion(void *arg) {
    int two = 2;
    (void)arg;
    BASE_ASSERT(two == 3);
}
static void assertions_name_place_and_condition(void **state) {
    (void)state;
    t_expect_assert(fail_an_assertion, NULL, "two == 3");
    t_expect_assert(fail_an_assertion, NULL, "base_status_test.c:");
}

static void clocks_run_or_stand(void **state) {
    (void)state;
    uint64_t a_ns = base_now_ns(base_clock_real()), b_ns = base_now_ns(base_clock_real());
    assert_true(a_ns > 0 && b_ns >= a_ns);
    struct base_clock_manual manual = {.now_ns = 5};
    struct base_clock clock = base_clock_from_manual(&manual);
    assert_int_equal(base_now_ns(&clock), 5);
    manual.now_ns += 3 * BASE_NS_PER_MS;
    assert_int_equal(base_now_ns(&clock), 5 + 3000000);
}

static void the_build_has_an_id(void **state) {
    (void)state;
    assert_int_equal(strlen(tandem_build_id), 32);
    assert_int_equal(strspn(tandem_build_id, "0123456789abcdef"), 32);
    assert_true(strlen(tandem_version) >= 5);
}

/* --- Log --- */

static void log_some(void *arg) {
    base_log_init(arg);
    base_log(LOG_INFO, "comm", "info of comm");
    base_log(LOG_DEBUG, "comm", "debug of comm");
    base_log_set_rank(3);
    base_log(LOG_WARN, "part", "warn of part, %d bytes", 12);
    base_log(LOG_INFO, "part", "info of part");
    LOG_DBG("comm", "macro %s", "debug");
}
static int n_lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

static void levels_per_module(void **state) {
    (void)state;
    const char *text = t_in_child(log_some, "warn,comm=debug", 0);
    assert_int_equal(n_lines(text), 4);
    assert_non_null(strstr(text, " launcher info comm: info of comm\n"));
    assert_non_null(strstr(text, " launcher debug comm: debug of comm\n"));
    assert_non_null(strstr(text, " rank 3 warn part: warn of part, 12 bytes\n"));
    assert_non_null(strstr(text, " rank 3 debug comm: macro debug\n"));
    assert_int_equal(n_lines(t_in_child(log_some, "error", 0)), 0);
    assert_int_equal(n_lines(t_in_child(log_some, "trace", 0)), 5);
    assert_int_equal(n_lines(t_in_child(log_some, "trace,comm=error,part=info", 0)), 2);
}

static void malformed_parts_are_told_and_skipped(void **state) {
    (void)state;
    const char *text = t_in_child(log_some, "loud,comm=,=info,comm=info", 0);
    assert_non_null(strstr(text, "'loud'"));
    assert_non_null(strstr(text, "'comm='"));
    assert_non_null(strstr(text, "'=info'"));
    assert_int_equal(n_lines(text), 3 + 2);
}

static void log_nasty(void *arg) {
    (void)arg;
    char text[5000];
    memset(text, 'y', sizeof text - 1);
    text[sizeof text - 1] = 0;
    base_log_init("info");
    base_log(LOG_INFO, "a", "two\nlines and \x1b[31mred");
    base_log(LOG_INFO, "a", "%s", text);
}
static void a_line_stays_a_line(void **state) {
    (void)state;
    const char *text = t_in_child(log_nasty, NULL, 0);
    assert_int_equal(n_lines(text), 2);
    assert_non_null(strstr(text, "two lines and ?[31mred\n"));
    assert_int_equal(text[strlen(text) - 1], '\n');
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_a_name), cmocka_unit_test(errors_are_written_and_prefixed),
        cmocka_unit_test(long_errors_are_cut),   cmocka_unit_test(assertions_name_place_and_condition),
        cmocka_unit_test(clocks_run_or_stand),   cmocka_unit_test(the_build_has_an_id),
        cmocka_unit_test(levels_per_module),     cmocka_unit_test(malformed_parts_are_told_and_skipped),
        cmocka_unit_test(a_line_stays_a_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
