#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[ST_COUNT] = {
    [ST_OK] = "ok",
    [ST_AGAIN] = "again",
    [ST_INVALID] = "invalid",
    [ST_UNSUPPORTED] = "unsupported",
    [ST_NOT_FOUND] = "not found",
    [ST_NO_MEMORY] = "no memory",
    [ST_IO] = "input/output error",
    [ST_PEER_LOST] = "peer lost",
    [ST_TIMEOUT] = "timeout",
    [ST_MISMATCH] = "mismatch",
    [ST_DEVICE_LOST] = "device lost",
    [ST_CANCELLED] = "cancelled",
};

const char *st_name(enum st code) {
    if ((unsigned)code >= ST_COUNT || !names[code]) return "unknown status";
    return names[code];
}

enum st err_set(struct err *e, enum st code, const char *format, ...) {
    if (!e) return code;
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    return code;
}

enum st err_prefix(struct err *e, enum st code, const char *format, ...) {
    if (!e) return code;
    struct err old = *e;
    old.text[sizeof old.text - 1] = 0;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n + 3 > sizeof e->text) return code; /* the prefix alone fills it */
    size_t at = (size_t)n, n_old = strlen(old.text);
    e->text[at++] = ':';
    e->text[at++] = ' ';
    if (n_old > sizeof e->text - 1 - at) n_old = sizeof e->text - 1 - at;
    memcpy(e->text + at, old.text, n_old);
    e->text[at + n_old] = 0;
    return code;
}

void base_assert_failed(const char *file, int line, const char *condition) {
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
    fflush(stderr);
    abort();
}
