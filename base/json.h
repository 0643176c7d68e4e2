/* JSON by jansson, read with bounds and with errors that name file and key.
 *
 * A getter distinguishes three cases: key absent or null (returns ST_NOT_FOUND, output untouched, err untouched), wrong type or range
 * (ST_INVALID, err filled "where: key: …"), present (ST_OK). */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Whole file, at most max_bytes (else ST_INVALID). Duplicate keys are refused. Caller json_decref()s. */
enum st base_json_load(const char *path, size_t max_bytes, json_t **root, struct err *e);
/* From memory; where names the source in errors. Integers of more than 19 digits become real numbers. */
enum st base_json_parse(const char *where, const char *text, size_t bytes, json_t **root, struct err *e);

enum st base_json_i64(const json_t *object, const char *where, const char *key, int64_t min, int64_t max, int64_t *value, struct err *e);
/* Integers are accepted as numbers. Not finite: ST_INVALID. */
enum st base_json_f64(const json_t *object, const char *where, const char *key, double *value, struct err *e);
enum st base_json_bool(const json_t *object, const char *where, const char *key, bool *value, struct err *e);
/* Borrowed from object. */
/* Where a key need not be there: ST_NOT_FOUND becomes ST_OK. */
static inline enum st base_json_optional(enum st st) { return st == ST_NOT_FOUND ? ST_OK : st; }
enum st base_json_str(const json_t *object, const char *where, const char *key, const char **value, struct err *e);

#endif
