/* Starting this binary on another host by ssh, and the conversation with it.
 *
 * start (returns at once: a thread of its own does the work, so that many hosts take no longer than one) → wait until ready → fd: what is written comes to the other side's stdin, what it
 * writes to stdout is read → stop. The thread stays until then: it passes the other side's stderr on, each line with the host's name before it (lines of our own log, which have one, as
 * they are), and the program that it started dies with it.
 *
 * The other side needs an sh, coreutils, tar and a glibc that is new enough; all else is pushed (launcher/bundle.h) to /var/tmp/tandem-UID/HASH unless it lies there, unharmed.
 * Parameters go through stdin and not through the other user's login shell: any blanks and quotes are safe, and `ps` shows none of them. */
#ifndef LAUNCHER_REMOTE_H
#define LAUNCHER_REMOTE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/status.h"

struct launch_bundles;
struct launch_remote;

/* ---- names of hosts ------------------------------------------------------------------------------------------------------------------------------------ */

struct launch_target {
    char typed[320]; /* as the user wrote it: for sentences */
    char user[64];   /* "": none was given */
    char name[254];  /* a name or an address */
};

/* "b", "user@b", "10.0.0.2", "fe80::1%eth0". ST_INVALID: characters that no such name has (so that no shell and no option parser can be fooled). */
enum st launch_target_parse(const char *typed, struct launch_target *host, struct err *e);

/* Does the name lead to one of our own addresses? Names of other hosts may be known to ssh alone, and a resolver may be dead: no answer within timeout_ms means no. */
bool launch_host_is_local(const char *name, int timeout_ms);
/* And the user, where one was given, is who we are: else ssh leads to other files and rights. */
bool launch_target_is_local(const struct launch_target *host, int timeout_ms);

/* ---- a host's agent ------------------------------------------------------------------------------------------------------------------------------------- */

struct launch_remote_options {
    const struct launch_target *host;
    const char *ssh;          /* a program called like ssh; NULL: TANDEM_SSH, else "ssh" */
    int port;                 /* 0: ssh's own choice */
    const char *const *words; /* what the binary gets: {"agent", …, NULL} */
    const char *const *environment; /* {"NAME=value", …, NULL} set there; or NULL */
    const char *folder;       /* where bundles lie there; NULL: TANDEM_REMOTE_DIR, else /var/tmp/tandem-UID */
    int connect_ms;           /* until the other side says its first word; 0: 10 s. Later steps have deadlines of their own: a push must go on */
};

/* Of the bundles, the one of that host's machine is sent. Copies what it is given, but for them: they must live until wait has returned anything but ST_AGAIN, or stop. Errors here are our own (no memory). */
enum st launch_remote_start(const struct launch_remote_options *options, const struct launch_bundles *bundles, struct launch_remote **remote, struct err *e);

/* Until it runs there: ST_OK; ST_AGAIN: not yet. Any other: a sentence that begins with the host as typed and says what would repair it. −1: no limit (start's own deadlines hold). */
enum st launch_remote_wait(struct launch_remote *r, int timeout_ms, struct err *e);
/* Readable once wait would return anything but ST_AGAIN. */
int launch_remote_ready_fd(const struct launch_remote *r);

/* From ready on: one stream socket for both directions, the caller's to use (also shutdown), ours to close. Its end: the other side is gone, or what carried it. */
int launch_remote_fd(const struct launch_remote *r);
/* Process id there, the nonce that its environment has as TANDEM_REMOTE, and bytes that had to be pushed (0: the bundle was there). */
pid_t launch_remote_agent_pid(const struct launch_remote *r);
const char *launch_remote_nonce(const struct launch_remote *r);
uint64_t launch_remote_pushed_bytes(const struct launch_remote *r);
const struct launch_target *launch_remote_target(const struct launch_remote *r);

/* Has the program on this side (ssh) ended? Then its status as waitpid has it. */
bool launch_remote_has_ended(struct launch_remote *r, int *status);
/* The last lines of stderr (of the other side and of ssh), for a sentence: at most bytes, "" if none. Once the program has ended, waits up to half a second for all that it said. */
void launch_remote_last_words(struct launch_remote *r, char *text, size_t bytes);

/* Closes the conversation, gives the other side grace_ms to leave, ends ssh, frees. What runs there and does not heed the end of its stdin stays: see kill. */
void launch_remote_stop(struct launch_remote *r, int grace_ms);

/* Kills an agent that does not listen (stopped, frozen) by a second call of ssh; its ranks die with it. *was_there: it was still the one of that nonce. Blocks for connect_ms at most. */
enum st launch_remote_kill(const struct launch_remote_options *options, pid_t pid, const char *nonce, bool *was_there, struct err *e);

/* launcher/remote_start.sh. */
extern const char launch_remote_script[];

#endif
