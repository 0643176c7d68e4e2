/* Included before everything by clang-tidy only. */
#ifndef TESTS_LINT_HINTS_H
#define TESTS_LINT_HINTS_H

#include "base/status.h"

/* An older clang does not know the names of newer instruction sets. */
#define __builtin_cpu_supports(name) 1

/* err_set and err_prefix return the code that they are given, which the analyser cannot see from one file: without this it follows
 * paths on which an error was set and ST_OK returned. (base/status.c, which defines them, is read without this file.) */
#define err_set(e, code, ...) ((void)err_set(e, code, __VA_ARGS__), (code))
#define err_prefix(e, code, ...) ((void)err_prefix(e, code, __VA_ARGS__), (code))

#endif
