#include <string.h>

#include "base/options.h"
#include "tests/t.h"

struct values {
    bool verbose, json;
    int64_t n, seed, any;
    double temp;
    const char *prompt, *ledger;
    int kv;
    struct option_list ids;
};
struct more {
    const char *hosts;
};

static const char *const kv_choices[] = {"f32", "f16", "auto", NULL};
static const struct option rows[] = {
    {.name = "-n", .alias = "--ranks", .type = OPT_INT, .offset = offsetof(struct values, n), .value = "N", .help = "ranks", .min = 1, .max = 64},
    {.name = "--seed", .type = OPT_INT, .offset = offsetof(struct values, seed), .value = "S", .help = "seed"},
    {.name = "--temp", .type = OPT_DOUBLE, .offset = offsetof(struct values, temp), .value = "T", .help = "temperature", .min = 0, .max = 100},
    {.name = "-p", .type = OPT_STR, .offset = offsetof(struct values, prompt), .value = "TEXT", .help = "prompt"},
    {.name = "--kv", .type = OPT_ENUM, .offset = offsetof(struct values, kv), .help = "cache", .choices = kv_choices},
    {.name = "--ids", .type = OPT_LIST, .offset = offsetof(struct values, ids), .value = "FILE", .help = "ids"},
    {.name = "--ledger", .type = OPT_MAYBE, .offset = offsetof(struct values, ledger), .value = "FILE", .help = "where the time went"},
    {.name = "--json", .type = OPT_FLAG, .offset = offsetof(struct values, json), .help = "as JSON"},
    {.name = "-v", .alias = "--verbose", .type = OPT_FLAG, .offset = offsetof(struct values, verbose), .help = "say more"},
    {.name = NULL},
};
static const struct option more_rows[] = {
    {.name = "--hosts", .type = OPT_STR, .offset = offsetof(struct more, hosts), .value = "A,B", .help = "hosts"},
    {.name = NULL},
};

static struct values values;
static struct more more;
static const char *positional[2];
static int n_positional;
static const struct option_group groups[] = {{"run options", rows, &values}, {"hosts", more_rows, &more}};

/* Splits at '|', so that a row of a test reads like a command line. */
static enum st parse(const char *line, struct err *e) {
    static char text[4096];
    static char *argv[1200];
    int argc = 0;
    argv[argc++] = "run";
    snprintf(text, sizeof text, "%s", line);
    for (char *at = text; *line && at;) {
        argv[argc++] = at;
        at = strchr(at, '|');
        if (at) *at++ = 0;
    }
    memset(&values, 0, sizeof values);
    memset(&more, 0, sizeof more);
    n_positional = -1;
    return base_options_parse("run", groups, 2, argc, argv, positional, 2, &n_positional, e);
}
static void good(const char *line) {
    struct err e = {0};
    t_ok_at(parse(line, &e), &e, line, __FILE__, __LINE__);
}
static void misuse(const char *line, const char *sentence) {
    struct err e = {0};
    enum st st = parse(line, &e);
    assert_int_equal(st, ST_INVALID);
    assert_string_equal(e.text, sentence);
    assert_int_equal(n_positional, -1);
}

static void every_type_in_every_spelling(void **state) {
    (void)state;
    good("-n|3|--seed|-9223372036854775808|--temp|0.5|-p|- a list|--kv|auto|--ids|a|--ids=b|--json|-v|--hosts|x,y|model");
    assert_int_equal(values.n, 3);
    assert_true(values.seed == INT64_MIN);
    assert_true(values.temp == 0.5 && values.json && values.verbose);
    assert_string_equal(values.prompt, "- a list");
    assert_int_equal(values.kv, 2);
    assert_int_equal(values.ids.n, 2);
    assert_string_equal(values.ids.items[1], "b");
    assert_string_equal(more.hosts, "x,y");
    assert_int_equal(n_positional, 1);
    assert_string_equal(positional[0], "model");

    good("m|-n4|--temp=1e2|-pHello|--verbose|--kv=f16");
    assert_int_equal(values.n, 4);
    assert_true(values.temp == 100 && values.verbose && !values.json);
    assert_string_equal(values.prompt, "Hello");
    assert_int_equal(values.kv, 1);
    good("--ranks=5");
    assert_int_equal(values.n, 5);
    good("-p|--json|--hosts=a=b|--hosts=");
    assert_string_equal(values.prompt, "--json");
    assert_false(values.json);
    assert_string_equal(more.hosts, "");
}

static void a_value_may_be_missing(void **state) {
    (void)state;
    good("model");
    assert_null(values.ledger);
    good("--ledger|model"); /* not its value */
    assert_string_equal(values.ledger, "");
    assert_int_equal(n_positional, 1);
    good("--ledger=a=b.svg|model");
    assert_string_equal(values.ledger, "a=b.svg");
    good("--ledger=a|--ledger");
    assert_string_equal(values.ledger, "");
    good("--ledger|-n|2");
    assert_int_equal(values.n, 2);
}

static void the_last_one_wins_and_dashes_end(void **state) {
    (void)state;
    good("-n|1|-n|2|--|--json|-x");
    assert_int_equal(values.n, 2);
    assert_false(values.json);
    assert_int_equal(n_positional, 2);
    assert_string_equal(positional[0], "--json");
    assert_string_equal(positional[1], "-x");
    good("-|");
    assert_int_equal(n_positional, 2);
    assert_string_equal(positional[0], "-");
    assert_string_equal(positional[1], "");
    good("");
    assert_int_equal(n_positional, 0);
}

static void misuse_is_one_sentence(void **state) {
    (void)state;
    misuse("--foo", "unknown option --foo; try 'tandem help run'");
    misuse("--foo=3", "unknown option --foo; try 'tandem help run'");
    misuse("-x", "unknown option -x; try 'tandem help run'");
    misuse("-vx", "unknown option -vx; try 'tandem help run'");
    misuse("--see|1", "unknown option --see; try 'tandem help run'");
    misuse("---", "unknown option ---; try 'tandem help run'");
    misuse("--seed", "--seed needs a value: S");
    misuse("-n", "-n needs a value: N");
    misuse("--kv", "--kv needs a value");
    misuse("--json=1", "--json takes no value");
    misuse("--ledger=", "--ledger= has nothing behind it; --ledger alone is possible");
    misuse("-n|x", "-n takes a whole number, not 'x'");
    misuse("--ranks|2x", "--ranks takes a whole number, not '2x'");
    misuse("-n| 2", "-n takes a whole number, not ' 2'");
    misuse("--seed=", "--seed takes a whole number, not ''");
    misuse("--seed|9223372036854775808", "--seed: 9223372036854775808 is too large");
    misuse("-n0", "-n takes a number from 1 to 64, not 0");
    misuse("-n|65", "-n takes a number from 1 to 64, not 65");
    misuse("--temp|-0.1", "--temp takes a number from 0 to 100, not -0.1");
    misuse("--temp|nan", "--temp takes a number, not 'nan'");
    misuse("--temp|inf", "--temp takes a number, not 'inf'");
    misuse("--kv|f8", "--kv takes one of f32, f16, auto, not 'f8'");
    misuse("a|b|c", "unexpected argument 'c'; try 'tandem help run'");
}

static void lists_are_bounded(void **state) {
    (void)state;
    static char *argv[OPTION_LIST_MAX + 3];
    argv[0] = "run";
    for (int i = 1; i <= OPTION_LIST_MAX + 1; i++) argv[i] = "--ids=x";
    memset(&values, 0, sizeof values);
    struct err e = {0};
    T_OK(base_options_parse("run", groups, 2, OPTION_LIST_MAX + 1, argv, positional, 0, &n_positional, &e), &e);
    assert_int_equal(values.ids.n, OPTION_LIST_MAX);
    memset(&values, 0, sizeof values);
    t_expect_err_contains(ST_INVALID, base_options_parse("run", groups, 2, OPTION_LIST_MAX + 2, argv, positional, 0, &n_positional, &e), &e,
                          "1024 times");
}

static void help_is_recognised_and_printed(void **state) {
    (void)state;
    char *yes[] = {"run", "x", "--help"}, *also[] = {"run", "-h"}, *no[] = {"run", "--", "--help"};
    assert_true(base_options_wants_help(3, yes));
    assert_true(base_options_wants_help(2, also));
    assert_false(base_options_wants_help(3, no));
    assert_false(base_options_wants_help(1, yes));

    FILE *f = fopen(t_path("help"), "w");
    assert_non_null(f);
    base_options_print_help(f, "tandem run MODEL", "Runs a model.", groups, 2);
    fclose(f);
    const char *text = t_read_file(t_path("help"), NULL);
    assert_non_null(strstr(text, "usage: tandem run MODEL\nRuns a model.\n\nrun options:\n"));
    assert_non_null(strstr(text, "\n  -n, --ranks N          ranks\n"));
    assert_non_null(strstr(text, "\n      --kv f32|f16|auto  cache\n"));
    assert_non_null(strstr(text, "\n      --ledger[=FILE]    where the time went\n"));
    assert_non_null(strstr(text, "\n  -v, --verbose          say more\n"));
    assert_non_null(strstr(text, "\nhosts:\n      --hosts A,B        hosts\n"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_in_every_spelling),   cmocka_unit_test(the_last_one_wins_and_dashes_end),
        cmocka_unit_test(misuse_is_one_sentence),         cmocka_unit_test(lists_are_bounded),
        cmocka_unit_test(help_is_recognised_and_printed), cmocka_unit_test(a_value_may_be_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
