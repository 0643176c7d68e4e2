/* A simulated world for ranks: all of them in one thread of one process, with a network, a clock and faults that come out of a seed. The same seed gives the same run, event by event.
 *
 * create → (run)… → destroy. A run starts every task (the ranks; others, such as who watches over them, behind these) as a fiber. A task that asks its clock or its system
 * (comm_sim_clock, comm_sim_os: what comm_setup's clock and os want) spends simulated time, and others go on meanwhile; so what runs here is the tcp backend itself, and every collective
 * above it, over sockets that transfer short, stall, reset and fall silent. Tasks have no other way to wait and nothing real to wait for.
 * One thread at a time uses a world; tasks are called on stacks of COMM_SIM_STACK_BYTES.
 *
 * The network is as Linux' TCP shows itself: streams with windows, FIN and RST, refused connections, keep-alive of idle connections, TCP_INFO of busy ones. Every rank is a host of its own.
 * Bytes are never wrong and packets are never seen: loss is delay. Datagrams may be lost, come twice, and overtake each other. */
#ifndef COMM_SIM_H
#define COMM_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "comm/comm.h"
#include "comm/os.h"

enum { COMM_SIM_MAX_TASKS = 16, COMM_SIM_MAX_FAULTS = 8 };

enum comm_sim_fault_kind {
    COMM_SIM_STALL,     /* nothing gets from a to b for a time; nobody notices otherwise */
    COMM_SIM_PARTITION, /* nothing gets through between a and b, in both directions; what was sent arrives after it, where it ends */
    COMM_SIM_ONE_WAY,   /* the same from a to b only */
    COMM_SIM_RESET,     /* connections between a and b break */
    COMM_SIM_KILL,      /* a ends; its system closes what it had open */
    COMM_SIM_POWER_OFF, /* a and its system end without a word */
    COMM_SIM_FREEZE,    /* a does nothing, its system still answers */
    COMM_SIM_NO_MEMORY, /* a cannot have any */
    COMM_SIM_N_FAULTS
};
const char *comm_sim_fault_name(enum comm_sim_fault_kind kind);

struct comm_sim_fault {
    enum comm_sim_fault_kind kind;
    int a, b;
    uint64_t at_call;  /* when all tasks together have called their systems so often; NO_MEMORY: any time */
    uint64_t for_ns;   /* 0: for good */
    uint64_t fired_ns; /* out; 0: the run ended before, or there was nothing to break */
};

struct comm_sim_weather {
    uint64_t delay_ns, jitter_ns;      /* of a transfer: delay + 0 … jitter, each direction of a connection in its own order */
    uint64_t call_ns, yield_ns;        /* what a call costs its caller at most */
    size_t window_bytes;               /* that a connection takes before the other side has read; a power of two ≤ COMM_SIM_MAX_WINDOW_BYTES */
    uint32_t short_permille;           /* of transfers end early or come in two pieces */
    uint32_t interrupt_permille;       /* of calls are interrupted, or wake for nothing */
    uint64_t rto_ns;                   /* until a connection retransmits for the first time; then after twice as long each */
    uint32_t loss_permille;            /* of datagrams are lost; a fourth as many come twice */
    uint32_t slow[COMM_SIM_MAX_TASKS]; /* factor for what the task's calls cost; 0: as 1 */
    struct comm_sim_fault faults[COMM_SIM_MAX_FAULTS];
    int n_faults;
};
#define COMM_SIM_MAX_WINDOW_BYTES (1u << 16)
/* Weather by a seed. A third of all seeds have no fault, a fourth only such as nobody dies of (short stalls, partitions, freezes; slow ranks), the others one that somebody must
 * report, or two. */
void comm_sim_draw(uint64_t seed, int n_ranks, struct comm_sim_weather *weather);
/* Is this something that the ranks must get over? */
bool comm_sim_is_harmless(const struct comm_sim_fault *f);
/* What harmless faults and slow ranks may last at most. */
#define COMM_SIM_SHORT_NS (1500 * BASE_NS_PER_MS)

struct comm_sim;
struct comm_sim_options {
    uint64_t seed;
    int n_ranks, n_tasks; /* ranks are the first tasks */
    struct comm_sim_weather *weather;
    void (*task)(void *context, struct comm_sim *s, int i_task);
    void *context;
    void (*prepare)(void *context, struct comm_sim *s); /* may change the systems' tables, and connect tasks, before anybody runs; NULL: nothing */
    void (*ended)(void *context, struct comm_sim *s, int i_task); /* it has returned, or died: may kill others, and ring bells; NULL: nothing */
    FILE *log;                                          /* an event a line; NULL: none */
};
struct comm_sim_report {
    uint64_t end_ns, n_calls, n_events;
    uint64_t digest; /* of all that happened */
};

enum st comm_sim_create(struct comm_sim **s, struct err *e);
void comm_sim_destroy(struct comm_sim *s);

/* Until all tasks have returned. Beside that they may do what they like, but not: wait without a deadline (of COMM_SIM_MAX_WAIT_NS at most), wait for each other for ever, go on for ever,
 * or leave sockets open or memory mapped: ST_INVALID with the sentence. */
enum st comm_sim_run(struct comm_sim *s, const struct comm_sim_options *o, struct comm_sim_report *report, struct err *e);
#define COMM_SIM_MAX_WAIT_NS (120 * BASE_NS_PER_S)
#define COMM_SIM_STACK_BYTES (1u << 18)

/* ---- for the tasks -------------------------------------------------------------------------------------------------------------------------------- */

const struct base_clock *comm_sim_clock(struct comm_sim *s, int i_task);
struct comm_os *comm_sim_os(struct comm_sim *s, int i_task);
/* How ranks find each other; who dies is missed at once. At most COMM_SIM_MAX_ROUNDS rounds a run. */
const struct comm_boot *comm_sim_boot(struct comm_sim *s, int rank);
#define COMM_SIM_MAX_ROUNDS 2

uint64_t comm_sim_now_ns(const struct comm_sim *s); /* costs nothing */
/* Where a rank listens (on any address of IPv4), for strangers; 0: it does not. */
int comm_sim_port(const struct comm_sim *s, int rank);
/* What processes inherit. A connection between two tasks, of one host (nothing on it is delayed, and no fault of the drawn ones stands between them) or of two. */
void comm_sim_connect(struct comm_sim *s, int a, int b, bool is_local, int fds[2]);
/* As eventfd: readable once it was rung, by anybody, a byte each time. */
int comm_sim_bell(struct comm_sim *s, int i_task);
void comm_sim_ring(struct comm_sim *s, int fd);
/* As shutdown for writing. */
void comm_sim_end_sending(struct comm_sim *s, int i_task, int fd);
/* Works for up to so long, times the slowness of the task. */
void comm_sim_work(struct comm_sim *s, int i_task, uint64_t ns);
/* Sleeps for so long. */
void comm_sim_sleep(struct comm_sim *s, int i_task, uint64_t ns);
/* As COMM_SIM_KILL, by another task. A killed task is called to its end, but whatever it calls fails at once, and nobody sees it. */
void comm_sim_kill(struct comm_sim *s, int i_task);
bool comm_sim_is_dead(const struct comm_sim *s, int i_task);
bool comm_sim_is_frozen(const struct comm_sim *s, int i_task);
bool comm_sim_will_thaw(const struct comm_sim *s, int i_task); /* who is frozen */
bool comm_sim_has_ended(const struct comm_sim *s, int i_task);
void comm_sim_note(const struct comm_sim *s, int i_task, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
