#include <string.h>

#include "base/json.h"
#include "tests/t.h"

static json_t *parse(const char *text) {
    json_t *root = NULL;
    struct err e = {0};
    T_OK(base_json_parse("test", text, strlen(text), &root, &e), &e);
    return root;
}

static void values_are_read(void **state) {
    (void)state;
    json_t *root = parse("{\"i\": -5, \"whole\": 4096.0, \"f\": 1e-5, \"n\": 3, \"b\": true, \"s\": \"text\"}");
    struct err e = {0};
    int64_t i = 0;
    double f = 0;
    bool b = false;
    const char *s = NULL;
    T_OK(base_json_i64(root, "w", "i", -5, 5, &i, &e), &e);
    assert_int_equal(i, -5);
    T_OK(base_json_i64(root, "w", "whole", 0, INT64_MAX, &i, &e), &e);
    assert_int_equal(i, 4096);
    T_OK(base_json_f64(root, "w", "f", &f, &e), &e);
    assert_true(f == 1e-5);
    T_OK(base_json_f64(root, "w", "n", &f, &e), &e);
    assert_true(f == 3);
    T_OK(base_json_bool(root, "w", "b", &b, &e), &e);
    assert_true(b);
    T_OK(base_json_str(root, "w", "s", &s, &e), &e);
    assert_string_equal(s, "text");
    json_decref(root);
}

static void absent_and_null_touch_nothing(void **state) {
    (void)state;
    json_t *root = parse("{\"null\": null}");
    struct err e = {.text = "untouched"};
    int64_t i = 77;
    double f = 7.5;
    bool b = true;
    const char *s = "kept";
    const char *keys[] = {"null", "absent"};
    for (int k = 0; k < 2; k++) {
        assert_int_equal(base_json_i64(root, "w", keys[k], 0, 1, &i, &e), ST_NOT_FOUND);
        assert_int_equal(base_json_f64(root, "w", keys[k], &f, &e), ST_NOT_FOUND);
        assert_int_equal(base_json_bool(root, "w", keys[k], &b, &e), ST_NOT_FOUND);
        assert_int_equal(base_json_str(root, "w", keys[k], &s, &e), ST_NOT_FOUND);
    }
    assert_int_equal(base_json_i64(NULL, "w", "any", 0, 1, &i, &e), ST_NOT_FOUND);
    assert_int_equal(i, 77);
    assert_true(f == 7.5 && b);
    assert_string_equal(s, "kept");
    assert_string_equal(e.text, "untouched");
    json_decref(root);
}

static void wrong_types_and_ranges_are_named(void **state) {
    (void)state;
    json_t *root = parse("{\"s\": \"4\", \"half\": 0.5, \"big\": 1e300, \"n\": 10, \"a\": [1], \"o\": {}}");
    struct err e = {0};
    int64_t i = 77;
    double f = 7.5;
    bool b = false;
    const char *s = "kept";
    t_expect_err_contains(ST_INVALID, base_json_i64(root, "config.json", "s", 0, 9, &i, &e), &e,
                          "config.json: s: a string where an integer is expected");
    t_expect_err_contains(ST_INVALID, base_json_i64(root, "w", "half", 0, 9, &i, &e), &e, "w: half: ");
    t_expect_err_contains(ST_INVALID, base_json_i64(root, "w", "big", 0, INT64_MAX, &i, &e), &e, "w: big: ");
    t_expect_err_contains(ST_INVALID, base_json_i64(root, "w", "n", 0, 9, &i, &e), &e, "w: n: 10 is outside 0 … 9");
    t_expect_err_contains(ST_INVALID, base_json_i64(root, "w", "n", 11, 99, &i, &e), &e, "outside");
    t_expect_err_contains(ST_INVALID, base_json_f64(root, "w", "a", &f, &e), &e, "an array where a number");
    t_expect_err_contains(ST_INVALID, base_json_bool(root, "w", "n", &b, &e), &e, "an integer where a boolean");
    t_expect_err_contains(ST_INVALID, base_json_str(root, "w", "o", &s, &e), &e, "an object where a string");
    t_expect_err_contains(ST_INVALID, base_json_str(json_object_get(root, "a"), "w", "k", &s, &e), &e, "not in an object");
    assert_int_equal(i, 77);
    assert_true(f == 7.5);
    assert_string_equal(s, "kept");
    json_decref(root);
}

static void malformed_texts_are_refused(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "{",
        "{\"a\": 1,}",
        "{\"a\": 1, \"a\": 2}",
        "{} x",
        "[1 2]",
        "{\"a\": 1e999}",
        "{\"a\": NaN}",
        "\"\xff\"",
        "[\"\\ud800\"]",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct err e = {0};
        json_t *root = NULL;
        t_expect_err_contains(ST_INVALID, base_json_parse("here", texts[i], strlen(texts[i]), &root, &e), &e, "here:");
        assert_null(root);
    }
    struct err e = {0};
    json_t *root = NULL;
    t_expect_err_contains(ST_INVALID, base_json_parse("here", "{\n  \"a\": \x1b[31m}", 14, &root, &e), &e, "here:2:");
    assert_null(strchr(e.text, '\x1b'));
    /* Nesting without end must not take the stack with it. */
    static char deep[200001];
    memset(deep, '[', sizeof deep - 1);
    t_expect_err_contains(ST_INVALID, base_json_parse("here", deep, sizeof deep - 1, &root, &e), &e, "depth");
}

static void integers_beyond_64_bits_are_reals(void **state) {
    (void)state;
    static const char text[] = "{\"a\": 1000000000000000019884624838656, \"b\": [-99999999999999999999], \"c\": \"1000000000000000019884624838656\", \"d\": 9223372036854775807}";
    json_t *root = NULL;
    double value;
    assert_int_equal(base_json_parse("memory", text, sizeof text - 1, &root, NULL), ST_OK);
    assert_int_equal(base_json_f64(root, "memory", "a", &value, NULL), ST_OK);
    assert_true(value > 0.999e30 && value < 1.001e30);
    assert_true(json_real_value(json_array_get(json_object_get(root, "b"), 0)) < -0.999e20);
    assert_string_equal(json_string_value(json_object_get(root, "c")), "1000000000000000019884624838656");
    assert_true(json_integer_value(json_object_get(root, "d")) == INT64_MAX);
    json_decref(root);
    /* What no double holds stays an error. */
    char huge[403] = "[";
    memset(huge + 1, '9', 400);
    huge[401] = ']';
    struct err e = {""};
    assert_int_equal(base_json_parse("memory", huge, 402, &root, &e), ST_INVALID);
    assert_true(e.text[0]);
}

static void files_are_bounded(void **state) {
    (void)state;
    struct err e = {0};
    json_t *root = NULL;
    const char *path = t_path("a.json");
    t_write_text(path, "{\"key\": [1, 2, 3]}");
    T_OK(base_json_load(path, 18, &root, &e), &e);
    assert_int_equal(json_array_size(json_object_get(root, "key")), 3);
    json_decref(root);
    root = NULL;
    t_expect_err_contains(ST_INVALID, base_json_load(path, 17, &root, &e), &e, "a.json: longer than 17 bytes");
    t_expect_err_contains(ST_INVALID, base_json_load(path, 0, &root, &e), &e, "longer than 0 bytes");
    t_expect_err_contains(ST_NOT_FOUND, base_json_load(t_path("absent"), 17, &root, &e), &e, "absent: ");
    t_expect_err_contains(ST_IO, base_json_load(t_dir(), 17, &root, &e), &e, t_dir());
    t_write_text(path, "{\"key\": tru}");
    t_expect_err_contains(ST_INVALID, base_json_load(path, 1 << 20, &root, &e), &e, "a.json:1:");
    assert_null(root);

    /* Longer than one read. */
    static char large[300001];
    memset(large, ' ', sizeof large - 1);
    large[0] = '[';
    large[sizeof large - 2] = ']';
    t_write_text(path, large);
    T_OK(base_json_load(path, sizeof large - 1, &root, &e), &e);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_read),
        cmocka_unit_test(absent_and_null_touch_nothing),
        cmocka_unit_test(wrong_types_and_ranges_are_named),
        cmocka_unit_test(malformed_texts_are_refused),
        cmocka_unit_test(integers_beyond_64_bits_are_reals),
        cmocka_unit_test(files_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
