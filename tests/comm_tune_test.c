/* What is remembered of a pair of hosts: believed where it is right and ours, else measured again, never an error. test-deadline: 60 */
#include <sys/stat.h>

#include "comm/tune.c"

#include "tests/t_comm.h"

enum { PLANTED = 123456 };
static const char pair[] = "spark1 10.0.0.1%eth0,10.0.1.1%eth1 spark2 10.0.0.2%eth0,10.0.1.2%eth1";

struct result {
    const char *pair;
    bool has_no_time;
    size_t from_bytes[2];
};

/* To which the least that an exchange can take is longer than all the time there is. */
static uint64_t rush(void *context) {
    (void)context;
    return base_now_ns(base_clock_real()) * 100000;
}
static const struct base_clock rushing = {.now_ns = rush};

static bool script_tune(struct comm **c, void *arg) {
    struct result *x = arg;
    struct err e = {0};
    const struct base_clock *clock = (*c)->clock;
    if (x->has_no_time) (*c)->clock = &rushing;
    CHECK_ST(ST_OK, comm_tune(*c, x->pair, x->has_no_time ? BASE_NO_DEADLINE : soon(), &x->from_bytes[comm_rank(*c)], &e), &e);
    (*c)->clock = clock;
    CHECK_ST(ST_OK, comm_barrier(*c, soon(), &e), &e);
    return true;
}

static size_t tune(const char *of, const char *backend, size_t max_bytes) {
    struct result x = {.pair = of};
    group_run(backend, 2, true, max_bytes, 20, script_tune, &x);
    assert_int_equal(x.from_bytes[0], x.from_bytes[1]);
    return x.from_bytes[0];
}

/* The key of that pair in these tests, and a line as it should be. */
static void put_key(char key[1024]) { snprintf(key, 1024, "%s tcp 2 %s", tandem_build_id, pair); }
static int put_line(char line[MAX_LINE], uint64_t from_bytes, uint64_t up_to_bytes) {
    char key[1024];
    put_key(key);
    return snprintf(line, MAX_LINE, "tandem-exchange 1 %016" PRIx64 " %" PRIu64 " %" PRIu64 " %s\n", check_of(key, from_bytes, up_to_bytes),
                    from_bytes, up_to_bytes, key);
}

static void write_file(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}
static size_t read_file(const char *path, char *bytes) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = fread(bytes, 1, MAX_LINE, f);
    fclose(f);
    return n;
}

static char cache[] = "/tmp/tandem-tune-XXXXXX", path[640];
static int set_up(void **state) {
    (void)state;
    char key[1024];
    if (!mkdtemp(cache) || setenv("XDG_CACHE_HOME", cache, 1) != 0) return 1;
    put_key(key);
    return put_path(key, path, sizeof path, true) ? 0 : 1;
}
static int tear_down(void **state) {
    (void)state;
    char folder[600];
    unlink(path);
    snprintf(folder, sizeof folder, "%s/tandem", cache);
    return rmdir(folder) || rmdir(cache);
}

static void what_was_measured_is_remembered(void **state) {
    (void)state;
    char line[MAX_LINE], want[MAX_LINE];
    size_t from_bytes = tune(pair, "tcp/streams", 65536);
    assert_true(from_bytes == SIZE_MAX || (from_bytes >= LEAST_BYTES && from_bytes <= 65536));
    size_t n = read_file(path, line);
    assert_int_equal(n, put_line(want, from_bytes, 65536));
    assert_memory_equal(line, want, n);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    write_file(path, line, (size_t)put_line(line, PLANTED, 65536));
    assert_int_equal(tune(pair, "tcp/streams", 65536), PLANTED);
    assert_int_equal(tune(pair, "tcp/streams", LEAST_BYTES), PLANTED);
}

static void what_is_not_right_is_measured_again(void **state) {
    (void)state;
    char right[MAX_LINE], bad[2 * MAX_LINE] = "", after[MAX_LINE];
    const size_t n = (size_t)put_line(right, PLANTED, 65536);
    struct base_rng rng;
    base_rng_init(&rng, t_seed());
    for (int i = 0; i < 40; i++) {
        size_t n_bad = n;
        memcpy(bad, right, n);
        switch (i) {
        case 0: n_bad = 0; break;
        case 1: memcpy(bad + n, right, n), n_bad = 2 * n; break;
        case 2: memset(bad, 'x', sizeof bad), n_bad = sizeof bad; break;
        case 3: memset(bad, 0, n); break;
        case 4: n_bad = (size_t)put_line(bad, PLANTED, 65535); break; /* not up to where it is needed */
        default:
            if (i % 2)
                n_bad = base_rng_below(&rng, (uint32_t)n);
            else
                bad[base_rng_below(&rng, (uint32_t)n)] ^= (char)(1 << base_rng_below(&rng, 8)); /* a blank may become a tab: sscanf would not mind */
        }
        write_file(path, bad, n_bad);
        size_t from_bytes = PLANTED;
        char key[1024];
        put_key(key);
        if (recall(key, 65536, &from_bytes)) assert_int_equal(from_bytes, PLANTED); /* only what says the same */
        if (i > 4) continue;
        assert_int_not_equal(tune(pair, "tcp/streams", 65536), PLANTED);
        read_file(path, after);
        assert_int_equal(strncmp(after, "tandem-exchange 1 ", 18), 0);
    }
}

static void what_there_was_no_time_for_is_measured_the_next_time(void **state) {
    (void)state;
    char line[MAX_LINE], want[MAX_LINE];
    struct result x = {.pair = pair, .has_no_time = true};
    unlink(path);
    group_run("tcp/streams", 2, true, 65536, 20, script_tune, &x);
    size_t n = read_file(path, line);
    assert_int_equal(n, put_line(want, x.from_bytes[0], LEAST_BYTES));
    assert_memory_equal(line, want, n);
    (void)tune(pair, "tcp/streams", 65536);
    n = read_file(path, line);
    assert_int_equal(strncmp(line, "tandem-exchange 1 ", 18), 0);
    size_t from_bytes;
    char key[1024];
    put_key(key);
    assert_true(n > 0 && recall(key, 65536, &from_bytes));
}

static void without_a_place_or_a_choice_nothing_is_remembered(void **state) {
    (void)state;
    unlink(path);
    (void)tune(NULL, "tcp/streams", 65536);
    assert_int_equal(tune(pair, "tcp", 65536), SIZE_MAX);
    assert_int_equal(tune(pair, "tcp/streams", 1024), SIZE_MAX);
    assert_int_not_equal(access(path, F_OK), 0);
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    (void)tune(pair, "tcp/streams", 65536);
    unsetenv("XDG_CACHE_HOME");
    char *home = strdup(getenv("HOME") ? getenv("HOME") : "/");
    unsetenv("HOME");
    (void)tune(pair, "tcp/streams", 65536);
    setenv("HOME", home, 1);
    free(home);
    setenv("XDG_CACHE_HOME", cache, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_measured_is_remembered),
        cmocka_unit_test(what_is_not_right_is_measured_again),
        cmocka_unit_test(what_there_was_no_time_for_is_measured_the_next_time),
        cmocka_unit_test(without_a_place_or_a_choice_nothing_is_remembered),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
