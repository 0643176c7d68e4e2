/* Small helpers over cmocka. Include this instead of cmocka.h.
 *
 * A failing check ends the test by longjmp, so checks belong into the test's own thread and process. What the helpers return lives
 * until the program ends, unless said otherwise; the temporary directory is removed then. */
#ifndef TESTS_T_H
#define TESTS_T_H

/* cmocka.h wants these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/status.h"

/* Older versions of cmocka do not say so. */
void _fail(const char *const file, const int line) __attribute__((noreturn));

/* A directory of this program, made on first use. */
const char *t_dir(void);
/* "DIR/…" in it. */
const char *t_path(const char *format, ...) __attribute__((format(printf, 1, 2)));
void t_write_file(const char *path, const void *data, size_t bytes);
void t_write_text(const char *path, const char *text);
/* The whole file with a NUL after it; bytes may be NULL. */
char *t_read_file(const char *path, size_t *bytes);

/* TANDEM_TEST_SEED or a fixed number; printed on the first call. */
uint64_t t_seed(void);
/* True under `make test-long`. */
bool t_long(void);
/* The real model's file, or NULL: then the test calls skip(). */
const char *t_demo_model(void);

/* Memory with guard bytes on both sides, 64-byte aligned, filled with a pattern that is not zero. free checks the guards, too. */
void *t_guard_alloc(size_t bytes);
void t_guard_check_at(const void *p, const char *file, int line);
void t_guard_free_at(void *p, const char *file, int line);
#define t_guard_check(p) t_guard_check_at(p, __FILE__, __LINE__)
#define t_guard_free(p) t_guard_free_at(p, __FILE__, __LINE__)

/* T_OK(call(…, &e), &e): the call succeeds, else its error is shown (e may be NULL). */
void t_ok_at(enum st got, const struct err *e, const char *call, const char *file, int line);
#define T_OK(call, e) t_ok_at(call, e, #call, __FILE__, __LINE__)
/* The call fails with this code, and its sentence contains part (NULL: any). */
void t_expect_err_at(enum st want, enum st got, const struct err *e, const char *part, const char *file, int line);
#define t_expect_err_contains(want, got, e, part) t_expect_err_at(want, got, e, part, __FILE__, __LINE__)

/* Runs fn(arg) in a child whose stderr is caught: it must be killed by signal (0: leave with status 0). Returns what it wrote. */
const char *t_in_child_at(void (*fn)(void *), void *arg, int signal, const char *file, int line);
#define t_in_child(fn, arg, signal) t_in_child_at(fn, arg, signal, __FILE__, __LINE__)
/* A BASE_ASSERT fails inside fn, and its line contains part. */
void t_expect_assert_at(void (*fn)(void *), void *arg, const char *part, const char *file, int line);
#define t_expect_assert(fn, arg, part) t_expect_assert_at(fn, arg, part, __FILE__, __LINE__)

/* A log line of level warn or error fails a test program (tests/run.sh looks for them), unless it has declared that it makes some. */
void t_declare_warnings(void);

#endif
