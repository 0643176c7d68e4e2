/* Which way is the better one for which size: measured between these very ranks once, then remembered.
 *
 * Rank 0 holds the clock and decides for all, so that nobody divides what another does not: whether the file's answer holds, whether there is time for one more size, and the answer
 * itself go out by broadcast. Both ways take turns, and the least time of each counts, because whatever else the machines do only adds. A way is better from the smallest size on from which it
 * wins at every size that was measured, by a margin: more connections cost something where they gain nothing.
 *
 * The file is the user's, in $XDG_CACHE_HOME/tandem or ~/.cache/tandem of rank 0's host, one for each key: one line, "tandem-exchange 1 CHECK FROM_BYTES UP_TO_BYTES KEY". What is not
 * exactly that, or for another key, is as good as no file; what cannot be written is measured again the next time. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/build_id.h"
#include "base/hash.h"
#include "base/log.h"
#include "comm/comm_priv.h"

#define LEAST_BYTES ((size_t)32 << 10)
#define MOST_BYTES ((size_t)4 << 20)
#define BUDGET_NS (1500 * BASE_NS_PER_MS) /* no size is begun that would not fit */
#define N_ROUNDS 9
#define LARGE_BYTES ((size_t)1 << 20)
#define N_LARGE_ROUNDS 3
#define CLEAR_BYTES ((size_t)256 << 10) /* where time ended here or later, bytes decide, and what larger ones do is clear */
#define N_IN_A_ROW 3 /* timed together: who comes late to one finds it done, but not the next */
#define MARGIN 0.95
#define MAX_LINE 2048

/* ---- the file ---------------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t check_of(const char *key, uint64_t from_bytes, uint64_t up_to_bytes) {
    const uint64_t numbers[2] = {from_bytes, up_to_bytes};
    return base_hash64(numbers, sizeof numbers, base_hash64(key, strlen(key), 0));
}

static bool put_path(const char *key, char *path, size_t capacity, bool make) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char folder[512];
    int n = cache && cache[0] == '/' ? snprintf(folder, sizeof folder, "%s", cache)
            : home && home[0] == '/' ? snprintf(folder, sizeof folder, "%s/.cache", home)
                                     : -1;
    if (n < 0 || (size_t)n + sizeof "/tandem" > sizeof folder) return false;
    if (make) (void)mkdir(folder, 0700);
    memcpy(folder + n, "/tandem", sizeof "/tandem");
    if (make) (void)mkdir(folder, 0700);
    n = snprintf(path, capacity, "%s/exchange-%016" PRIx64, folder, base_hash64(key, strlen(key), 0));
    return n > 0 && (size_t)n < capacity;
}

static bool recall(const char *key, size_t up_to_bytes, size_t *from_bytes) {
    char path[640], line[MAX_LINE + 1];
    if (!put_path(key, path, sizeof path, false)) return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    ssize_t n = fd < 0 ? -1 : read(fd, line, MAX_LINE);
    if (fd >= 0) close(fd);
    if (n <= 0) return false;
    line[n] = 0;
    uint64_t check, from, up_to;
    int at = 0;
    if (sscanf(line, "tandem-exchange 1 %16" SCNx64 " %20" SCNu64 " %20" SCNu64 " %n", &check, &from, &up_to, &at) != 3 || !at) return false;
    size_t key_bytes = strlen(key);
    if ((size_t)n != (size_t)at + key_bytes + 1 || memcmp(line + at, key, key_bytes) != 0 || line[n - 1] != '\n') return false;
    if (check != check_of(key, from, up_to) || up_to < up_to_bytes) return false; /* larger ones were never tried */
    *from_bytes = (size_t)from;
    return true;
}

static void remember(const char *key, size_t up_to_bytes, size_t from_bytes) {
    char path[640], passing[660];
    if (!put_path(key, path, sizeof path, true)) return;
    snprintf(passing, sizeof passing, "%s.%d", path, (int)getpid());
    int fd = open(passing, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return;
    bool is_written = dprintf(fd, "tandem-exchange 1 %016" PRIx64 " %" PRIu64 " %" PRIu64 " %s\n", check_of(key, from_bytes, up_to_bytes),
                              (uint64_t)from_bytes, (uint64_t)up_to_bytes, key) > 0;
    is_written = close(fd) == 0 && is_written;
    if (!is_written || rename(passing, path) != 0) unlink(passing);
}

/* ---- measuring ---------------------------------------------------------------------------------------------------------------------------------------- */

static enum st exchange_some(struct comm *c, size_t bytes, uint64_t deadline_ns, uint64_t *least_ns, struct err *e) {
    size_t recv_bytes[COMM_MAX_RANKS];
    const void *views[COMM_MAX_RANKS];
    const struct comm_header header = {.step = c->step};
    for (int r = 0; r < c->n_ranks; r++) recv_bytes[r] = bytes;
    uint64_t begun_ns = base_now_ns(c->clock);
    enum st code = ST_OK;
    for (int i = 0; i < N_IN_A_ROW && code == ST_OK; i++) code = comm_allgather(c, NULL, recv_bytes, &header, deadline_ns, views, NULL, e);
    uint64_t ns = (base_now_ns(c->clock) - begun_ns) / N_IN_A_ROW;
    if (ns < *least_ns) *least_ns = ns;
    return code;
}

static uint64_t n_rounds_of(size_t bytes) { return bytes < LARGE_BYTES ? N_ROUNDS : N_LARGE_ROUNDS; }

static enum st measure_size(struct comm *c, size_t bytes, uint64_t deadline_ns, bool *is_better, struct err *e) {
    uint64_t least_ns[2] = {UINT64_MAX, UINT64_MAX};
    enum st code = ST_OK;
    for (int i = 0; i < 2 * (int)n_rounds_of(bytes) && code == ST_OK; i++) {
        int way = (i + 1) / 2 % 2; /* a b b a: neither always follows the other */
        comm_divide(c, way ? 0 : SIZE_MAX);
        code = exchange_some(c, bytes, deadline_ns, &least_ns[way], e);
    }
    *is_better = (double)least_ns[1] < MARGIN * (double)least_ns[0];
    LOG_DBG("comm", "%zu bytes: %.1f us undivided, %.1f us divided", bytes, (double)least_ns[0] / 1e3, (double)least_ns[1] / 1e3);
    return code;
}

/* An exchange takes at most twice as long as one of half the size. *reached_bytes: the largest that there was time for. */
static enum st measure(struct comm *c, size_t up_to_bytes, uint64_t deadline_ns, size_t *from_bytes, size_t *reached_bytes, struct err *e) {
    const uint64_t begun_ns = base_now_ns(c->clock);
    uint64_t size_begun_ns = begun_ns;
    *from_bytes = SIZE_MAX;
    for (size_t bytes = LEAST_BYTES; bytes <= up_to_bytes; bytes *= 2) {
        const uint64_t now_ns = base_now_ns(c->clock), last_ns = now_ns - size_begun_ns;
        uint32_t go = now_ns - begun_ns + 2 * last_ns * n_rounds_of(bytes) / n_rounds_of(bytes / 2) <= BUDGET_NS;
        enum st code = comm_broadcast(c, 0, &go, sizeof go, deadline_ns, e);
        if (code != ST_OK || !go) return code;
        size_begun_ns = now_ns;
        bool is_better = false;
        code = measure_size(c, bytes, deadline_ns, &is_better, e);
        if (code != ST_OK) return code;
        *from_bytes = !is_better ? SIZE_MAX : *from_bytes < bytes ? *from_bytes : bytes;
        *reached_bytes = bytes;
    }
    *reached_bytes = up_to_bytes;
    return ST_OK;
}

enum st comm_tune(struct comm *c, const char *pair, uint64_t deadline_ns, size_t *from_bytes, struct err *e) {
    *from_bytes = SIZE_MAX;
    size_t up_to_bytes = c->max_bytes < MOST_BYTES ? c->max_bytes : MOST_BYTES;
    if (!comm_divide(c, SIZE_MAX) || c->max_bytes < LEAST_BYTES) return ST_OK;
    char key[1024];
    int n = snprintf(key, sizeof key, "%s %s %d %s", tandem_build_id, c->backend_name, c->n_ranks, pair ? pair : "");
    const bool is_kept = pair && n > 0 && (size_t)n < sizeof key && !strchr(pair, '\n');

    struct {
        uint64_t is_known, from_bytes;
    } told = {0};
    size_t known = SIZE_MAX;
    if (c->rank == 0 && is_kept && recall(key, up_to_bytes, &known)) told.is_known = 1, told.from_bytes = known;
    enum st code = comm_broadcast(c, 0, &told, sizeof told, deadline_ns, e);
    if (code != ST_OK) return code;
    if (!told.is_known) {
        size_t measured = SIZE_MAX, reached_bytes = 0;
        code = measure(c, up_to_bytes, deadline_ns, &measured, &reached_bytes, e);
        told.from_bytes = measured;
        comm_divide(c, SIZE_MAX);
        if (code == ST_OK) code = comm_broadcast(c, 0, &told, sizeof told, deadline_ns, e); /* the others' clocks say something else */
        if (code != ST_OK) return code;
        if (c->rank == 0 && is_kept) remember(key, reached_bytes < CLEAR_BYTES ? reached_bytes : up_to_bytes, (size_t)told.from_bytes);
    }
    *from_bytes = (size_t)told.from_bytes;
    comm_divide(c, *from_bytes);
    return ST_OK;
}
