/* Log lines to stderr: time, host, rank, module; lower case, facts with units.
 *
 * Life cycle: base_log_init() once at start (reads TANDEM_LOG, e.g. "warn,comm=debug"); any thread may log afterwards.
 * A line is written by one write(2), so lines of several ranks do not mix. The step loop is silent below trace. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* spec: NULL takes TANDEM_LOG, and "warn" where that is unset. A malformed part is told in one line and skipped. */
void base_log_init(const char *spec);

/* The rank that this process (or thread: the setting is per thread, and new threads of a pool inherit it from their creator) works for; -1 = launcher. */
void base_log_set_rank(int rank);
int base_log_rank(void);

bool base_log_on(enum log_level level, const char *module);
void base_log(enum log_level level, const char *module, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define LOG_ERR(module, ...) base_log(LOG_ERROR, module, __VA_ARGS__)
#define LOG_WARNING(module, ...) base_log(LOG_WARN, module, __VA_ARGS__)
/* What the launcher and every rank find alike, since they read the same files: the launcher says it. */
#define LOG_WARNING_ONCE(module, ...) (base_log_rank() < 0 ? LOG_WARNING(module, __VA_ARGS__) : (void)0)
#define LOG_INFORM(module, ...) base_log(LOG_INFO, module, __VA_ARGS__)
#define LOG_DBG(module, ...) (base_log_on(LOG_DEBUG, module) ? base_log(LOG_DEBUG, module, __VA_ARGS__) : (void)0)

#endif
