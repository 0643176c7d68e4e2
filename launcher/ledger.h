/* What --ledger shows: the ranks' ledgers as text, JSON or a picture. docs/ledger.md explains the numbers.
 *
 * check (while options are looked at) → open (before anything is loaded) → launch_job_collect, which adds a frame per rank when the job stops → write → close. One thread. */
#ifndef LAUNCHER_LEDGER_H
#define LAUNCHER_LEDGER_H

#include "launcher/setup.h"

struct launch_ledger;

/* The row of the option, of every command that has it: a const char * in its values. */
#define LAUNCH_LEDGER_OPTION(offset) {"--ledger", NULL, OPT_MAYBE, offset, "FILE.json|.svg", "where the time went: printed, or written to a file", 0, 0, NULL}

/* value: as OPT_MAYBE leaves it. ST_INVALID: misuse. */
enum st launch_ledger_check(const char *value, struct err *e);

/* Without the option *ledger is NULL, which all others take. ST_IO where the file cannot be written. An older file of that name is kept until write. */
enum st launch_ledger_open(const char *value, struct launch_ledger **ledger, struct err *e);
/* A file that was made for it and not written is removed. */
void launch_ledger_close(struct launch_ledger *l);

/* The payload of one RT_LEDGER frame. */
enum st launch_ledger_add(struct launch_ledger *l, const void *payload, size_t bytes, struct err *e);

/* To the file, or to stderr. Nothing where ranks are missing: the job has failed, and says so. */
enum st launch_ledger_write(struct launch_ledger *l, const struct launch_setup *s, struct err *e);

#endif
