/* Inside the simulator: sim.c has tasks, time and faults, sim_net.c the sockets. */
#ifndef COMM_SIM_PRIV_H
#define COMM_SIM_PRIV_H

#include "comm/comm_priv.h"
#include "comm/sim.h"

enum { SIM_MAX_SOCKETS = 2048, SIM_MAX_SEGMENTS = 16, SIM_MAX_LENT = 8, SIM_MAX_BACKLOG = 64, SIM_MAX_EVENTS = 4096, SIM_FIRST_PORT = 20000 };
enum { SIM_MAX_DATAGRAMS = 512, SIM_MAX_DATAGRAM_BYTES = 1700 };

enum sim_event_kind {
    SIM_ARRIVE,    /* the first segment on its way to a socket */
    SIM_SYN,       /* of a connecting socket, at the listener's host */
    SIM_ANSWER,    /* to it */
    SIM_RESET,     /* reaches a socket */
    SIM_KEEPALIVE, /* nobody has answered a socket's probes */
    SIM_HEAL,      /* a fault's time is over */
    SIM_DATAGRAM,  /* a datagram, at its host */
};
struct sim_event {
    uint64_t at_ns, i_event; /* i_event: the how manieth, for those of one time */
    uint32_t kind, generation;
    int object, detail;
};

struct sim_task {
    struct comm_os os; /* the first: what is handed out */
    struct comm_sim *sim;
    int i;
    struct base_clock clock;
    struct comm_boot boot;
    uint64_t wake_ns; /* when it goes on, unless woken before */
    bool ended, dead, off, frozen, for_good;
    uint64_t n_dead_calls;
    struct pollfd *polled; /* what may wake it; NULL: nothing of the net */
    size_t n_polled;
    bool in_boot;
    int n_rounds; /* of boot, begun */

    void *at; /* its stack's top while others run */
    unsigned char *stack;
    void *fiber, *fake_stack; /* the sanitizers' */
};

struct sim_segment {
    uint64_t end, at_ns; /* of the stream; FIN: comes alone */
    bool fin;
};
/* One direction, kept by who reads it. Positions count bytes. */
/* Bytes of a stream that the writer still has, and that are read from there: what changes before, has changed for the reader, too. */
struct sim_lent {
    uint64_t at;
    const unsigned char *from;
    size_t bytes;
};
struct sim_stream {
    unsigned char *ring;
    uint64_t written, arrived, read;
    uint64_t acked, seen_read; /* as the writer knows it */
    uint64_t last_ns;          /* of the newest segment's arrival */
    uint64_t unacked_ns;       /* the writer's: since when */
    struct sim_segment segments[SIM_MAX_SEGMENTS];
    int n_segments;
    struct sim_lent lent[SIM_MAX_LENT]; /* the oldest first */
    int n_lent;
    bool is_coming; /* there is an event for the first */
    bool fin_sent, fin;
};
enum socket_state { SOCKET_FREE, SOCKET_FRESH, SOCKET_LISTENS, SOCKET_CONNECTS, SOCKET_CONNECTED, SOCKET_RESET, SOCKET_DATAGRAM };
struct sim_socket {
    enum socket_state state;
    uint32_t generation;
    int owner, port, peer; /* peer −1: none */
    int error;
    bool closed, keepalive, local; /* local: the other side is on the same host */
    uint64_t heard_ns, data_ns; /* from the other side's system: anything, data */
    struct sim_stream in;
    int backlog[SIM_MAX_BACKLOG], n_backlog;
    int to_port, first, n_queued; /* for datagrams: where they go; those that came, from the first on; −1: none */
};

struct sim_datagram {
    int from, to; /* hosts */
    int from_port, to_port;
    int socket, next; /* the sender's; of a queue, or of those that are free; −1: none */
    uint32_t generation;
    size_t bytes;
    unsigned char data[SIM_MAX_DATAGRAM_BYTES];
};

struct comm_sim {
    const struct comm_sim_options *o;
    struct comm_sim_weather *w;
    uint64_t random;
    uint64_t now_ns, n_calls, n_events, digest;
    struct err failed; /* the first failure; empty: none */
    bool is_over;      /* unwinding after it */

    struct sim_event events[SIM_MAX_EVENTS]; /* a heap */
    int n_heap;

    struct sim_task tasks[COMM_SIM_MAX_TASKS];
    uint64_t due_ns[COMM_SIM_MAX_TASKS]; /* when each goes on: who runs, is frozen or has ended never does */
    int n_tasks, n_ended;
    void *main;
    void *main_fiber, *main_fake_stack;
    const void *main_stack;
    size_t main_stack_bytes;

    int blocked[COMM_SIM_MAX_TASKS][COMM_SIM_MAX_TASKS]; /* from, to: by so many faults */
    uint32_t block_epoch[COMM_SIM_MAX_TASKS][COMM_SIM_MAX_TASKS];
    uint64_t stalled_ns[COMM_SIM_MAX_TASKS][COMM_SIM_MAX_TASKS]; /* until */
    unsigned char records[COMM_SIM_MAX_ROUNDS][COMM_SIM_MAX_TASKS][COMM_BOOT_MAX_BYTES];
    int n_told[COMM_SIM_MAX_ROUNDS];
    bool boot_failed;

    struct sim_socket sockets[SIM_MAX_SOCKETS];
    int n_sockets, n_open, next_port; /* n_sockets: ever used in this run */
    struct sim_datagram datagrams[SIM_MAX_DATAGRAMS];
    int free_datagram; /* the first that is; −1: none */
    size_t mapped_bytes;
    unsigned char *rings; /* [SIM_MAX_SOCKETS, COMM_SIM_MAX_WINDOW_BYTES], kept from run to run */
    unsigned char *stacks;
    size_t stack_stride;
};

/* ---- sim.c ---------------------------------------------------------------------------------------------------------------------------------------- */

uint64_t sim_random(struct comm_sim *s, uint64_t bound); /* 0 … bound − 1; 0 for 0 */
bool sim_chance(struct comm_sim *s, uint32_t permille);
void sim_at(struct comm_sim *s, uint64_t at_ns, enum sim_event_kind kind, int object, uint32_t generation, int detail);
/* The task's call costs up to ns; others go on meanwhile. False: the task is dead. */
bool sim_spend(struct sim_task *t, uint64_t ns);
/* Gives way until woken or until_ns. */
void sim_wait(struct sim_task *t, uint64_t until_ns);
void sim_wake(struct sim_task *t);
void sim_fail(struct comm_sim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define SIM_NOTE(s, i_task, ...)                                                                                                                     \
    do {                                                                                                                                             \
        if ((s)->o->log) comm_sim_note(s, i_task, __VA_ARGS__);                                                                                      \
    } while (0)

/* ---- sim_switch.c --------------------------------------------------------------------------------------------------------------------------------- */

/* Leaves the stack in use, whose place goes to *from, and goes on where `to` was left. */
void sim_switch(void **from, void *to);
/* A stack on which entry begins when it is first switched to; it may never return. */
void *sim_stack_init(unsigned char *stack, size_t bytes, void (*entry)(void));

/* ---- sim_net.c ------------------------------------------------------------------------------------------------------------------------------------ */

void sim_net_fill(struct comm_os *os);
void sim_net_clear(struct comm_sim *s);
void sim_net_event(struct comm_sim *s, const struct sim_event *e);
void sim_net_close_all(struct comm_sim *s, int owner, bool silently);
bool sim_net_reset(struct comm_sim *s, int a, int b);     /* false: nothing is there to break */
void sim_net_block(struct comm_sim *s, int from, int to); /* before it begins */
void sim_net_healed(struct comm_sim *s, int from, int to);
/* Would poll have something to tell? */
bool sim_net_is_ready(const struct comm_sim *s, const struct pollfd *fds, size_t n);

uint64_t sim_way_ns(struct comm_sim *s, int from, int to); /* that something takes which leaves now */
void sim_notify(struct comm_sim *s, const struct sim_socket *x);

/* ---- sim_datagram.c -------------------------------------------------------------------------------------------------------------------------------- */

void sim_datagram_clear(struct comm_sim *s);
ssize_t sim_datagram_send(struct comm_sim *s, int socket, const void *data, size_t bytes);
ssize_t sim_datagram_receive(struct comm_sim *s, int socket, void *data, size_t bytes);
void sim_datagram_close(struct comm_sim *s, struct sim_socket *x);
void sim_datagram_arrive(struct comm_sim *s, int i);

static inline int sim_host_of_port(int port) { return (port - SIM_FIRST_PORT) % COMM_SIM_MAX_TASKS; } /* a port tells whose it is */
static inline bool sim_is_cut(const struct comm_sim *s, int a, int b) { return s->blocked[a][b] || s->blocked[b][a]; }

#endif
