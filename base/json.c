#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* jansson quotes the input in its messages: keep control characters of foreign files off the terminal. */
static void clean(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
}

/* jansson refuses integers that 64 bits do not hold, but transformers writes one (model_max_length 10^30, "no limit") into tokenizer_config.json. One of 20 digits or more becomes a real
 * number: its last two digits become "e2". */
static void shorten_integers(char *text, size_t bytes) {
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        if (in_string && text[i] == '\\') {
            i++;
        } else if (text[i] == '"') {
            in_string = !in_string;
        } else if (!in_string && text[i] >= '0' && text[i] <= '9') {
            size_t end = i;
            while (end < bytes && text[end] >= '0' && text[end] <= '9') end++;
            const bool integer = (i == 0 || text[i - 1] != '.') && (end == bytes || (text[end] != '.' && text[end] != 'e' && text[end] != 'E'));
            if (integer && end - i > 19) memcpy(text + end - 2, "e2", 2);
            i = end - 1;
        }
    }
}

static json_t *parse_shortened(const char *text, size_t bytes, json_error_t *error) {
    char *copy = malloc(bytes);
    if (!copy) return NULL;
    memcpy(copy, text, bytes);
    shorten_integers(copy, bytes);
    json_t *parsed = json_loadb(copy, bytes, JSON_REJECT_DUPLICATES, error);
    free(copy);
    return parsed;
}

enum st base_json_parse(const char *where, const char *text, size_t bytes, json_t **root, struct err *e) {
    json_error_t error;
    json_t *parsed = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!parsed && json_error_code(&error) == json_error_numeric_overflow) parsed = parse_shortened(text, bytes, &error);
    if (!parsed) {
        clean(error.text);
        if (error.line < 0) return err_set(e, ST_INVALID, "%s: %s", where, error.text);
        return err_set(e, ST_INVALID, "%s:%d:%d: %s", where, error.line, error.column, error.text);
    }
    *root = parsed;
    return ST_OK;
}

enum st base_json_load(const char *path, size_t max_bytes, json_t **root, struct err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));

    /* Read until the end instead of asking for the size first: the size of a pipe, or of a file that still grows, is no promise. */
    enum st st = ST_OK;
    char *text = NULL;
    size_t n_bytes = 0, capacity_bytes = 0;
    for (;;) {
        if (n_bytes == capacity_bytes) {
            size_t wanted_bytes = capacity_bytes ? 2 * capacity_bytes : 64u << 10;
            if (wanted_bytes > max_bytes) wanted_bytes = max_bytes + 1; /* one more than allowed, to notice what is too long */
            char *larger = realloc(text, wanted_bytes);
            if (!larger) {
                st = err_set(e, ST_NO_MEMORY, "%s: no memory for %zu bytes", path, wanted_bytes);
                goto out;
            }
            text = larger;
            capacity_bytes = wanted_bytes;
        }
        ssize_t n = read(fd, text + n_bytes, capacity_bytes - n_bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            st = err_set(e, ST_IO, "%s: %s", path, strerror(errno));
            goto out;
        }
        if (n == 0) break;
        n_bytes += (size_t)n;
        if (n_bytes > max_bytes) {
            st = err_set(e, ST_INVALID, "%s: longer than %zu bytes", path, max_bytes);
            goto out;
        }
    }
    st = base_json_parse(path, text, n_bytes, root, e);
out:
    free(text);
    close(fd);
    return st;
}

static const char *type_name(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: break;
    }
    return "null";
}

/* The value, or the code to return. */
static enum st look_up(const json_t *object, const char *where, const char *key, const json_t **value, struct err *e) {
    if (object && !json_is_object(object)) return err_set(e, ST_INVALID, "%s: %s: looked for in %s, not in an object", where, key, type_name(object));
    const json_t *found = json_object_get(object, key);
    if (!found || json_is_null(found)) return ST_NOT_FOUND;
    *value = found;
    return ST_OK;
}

enum st base_json_i64(const json_t *object, const char *where, const char *key, int64_t min, int64_t max, int64_t *value, struct err *e) {
    const json_t *found;
    enum st st = look_up(object, where, key, &found, e);
    if (st != ST_OK) return st;
    int64_t integer;
    if (json_is_integer(found)) {
        integer = json_integer_value(found);
    } else if (json_is_real(found) && fabs(json_real_value(found)) <= 0x1p53 && json_real_value(found) == floor(json_real_value(found))) {
        integer = (int64_t)json_real_value(found); /* 4096.0, as some writers spell it */
    } else {
        return err_set(e, ST_INVALID, "%s: %s: %s where an integer is expected", where, key, type_name(found));
    }
    if (integer < min || integer > max)
        return err_set(e, ST_INVALID, "%s: %s: %lld is outside %lld … %lld", where, key, (long long)integer, (long long)min, (long long)max);
    *value = integer;
    return ST_OK;
}

enum st base_json_f64(const json_t *object, const char *where, const char *key, double *value, struct err *e) {
    const json_t *found;
    enum st st = look_up(object, where, key, &found, e);
    if (st != ST_OK) return st;
    if (!json_is_number(found)) return err_set(e, ST_INVALID, "%s: %s: %s where a number is expected", where, key, type_name(found));
    double number = json_number_value(found);
    if (!isfinite(number)) return err_set(e, ST_INVALID, "%s: %s: not a finite number", where, key);
    *value = number;
    return ST_OK;
}

enum st base_json_bool(const json_t *object, const char *where, const char *key, bool *value, struct err *e) {
    const json_t *found;
    enum st st = look_up(object, where, key, &found, e);
    if (st != ST_OK) return st;
    if (!json_is_boolean(found)) return err_set(e, ST_INVALID, "%s: %s: %s where a boolean is expected", where, key, type_name(found));
    *value = json_is_true(found);
    return ST_OK;
}

enum st base_json_str(const json_t *object, const char *where, const char *key, const char **value, struct err *e) {
    const json_t *found;
    enum st st = look_up(object, where, key, &found, e);
    if (st != ST_OK) return st;
    if (!json_is_string(found)) return err_set(e, ST_INVALID, "%s: %s: %s where a string is expected", where, key, type_name(found));
    *value = json_string_value(found);
    return ST_OK;
}
