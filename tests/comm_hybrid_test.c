/* Two hosts with two ranks each, in one machine: deaths are named by everybody, whichever part sees them first. test-deadline: 60 */
#include <signal.h>

#include "tests/t_comm.h"

enum { N = 4 };

struct death {
    int victim;
    bool use_events;
    _Atomic bool *is_ready; /* [N] */
};

/* The victim sits still until it is killed; the others wait for it, and close as soon as they know: what they tell must not be each other. */
static bool script_death(struct comm **pc, void *arg) {
    const struct death *d = arg;
    struct comm *c = *pc;
    struct err e = {0};
    CHECK_ST(ST_OK, comm_barrier(c, soon(), &e), &e);
    atomic_store(&d->is_ready[comm_rank(c)], true);
    if (comm_rank(c) == d->victim) pause();
    char data[8], want[16];
    size_t bytes;
    if (d->use_events && comm_rank(c) != 0)
        CHECK_ST(ST_PEER_LOST, comm_event_next(c, data, sizeof data, &bytes, soon(), &e), &e);
    else
        CHECK_ST(ST_PEER_LOST, comm_barrier(c, soon(), &e), &e);
    snprintf(want, sizeof want, "rank %d", d->victim);
    if (!strstr(e.text, want)) fprintf(stderr, "rank %d: %s\n", comm_rank(c), e.text);
    CHECK(strstr(e.text, want));
    return true;
}

static bool is_ready(const struct death *d) {
    for (int r = 0; r < N; r++)
        if (!atomic_load(&d->is_ready[r])) return false;
    return true;
}

/* An agent marks the dead in the segment of its host, as ours do. */
static void die(const char *backend, int victim, bool use_events) {
    struct group g;
    group_init(&g, backend, N, false, 4096, 0);
    struct death d = {.victim = victim, .use_events = use_events};
    d.is_ready = mmap(NULL, N * sizeof *d.is_ready, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(d.is_ready != MAP_FAILED);
    pid_t pids[N];
    for (int r = 0; r < N; r++) pids[r] = group_fork(&g, r, script_death, &d);
    const uint64_t until_ns = soon();
    while (!is_ready(&d) && now_ns() < until_ns) pause_us(1000);
    pause_us(5000); /* let them fall asleep */
    kill(pids[victim], SIGKILL);
    int status;
    waitpid(pids[victim], &status, 0);
    struct err e = {0};
    bool is_second = victim >= g.n_first;
    T_OK(comm_shm_mark_dead(g.memory[is_second].fd, victim - (is_second ? g.n_first : 0), &e), &e);
    bool ok = true;
    for (int r = 0; r < N; r++) ok = r == victim || (waitpid(pids[r], &status, 0) == pids[r] && status == 0 && ok);
    munmap((void *)d.is_ready, N * sizeof *d.is_ready);
    group_release(&g);
    assert_true(ok);
}

static void everybody_names_the_dead(void **state) {
    (void)state;
    for (int victim = 0; victim < N; victim++)
        for (int use_events = 0; use_events < 2; use_events++) die("shm+tcp", victim, use_events);
}

static void the_hosts_must_be_known(void **state) {
    (void)state;
    struct group g;
    struct comm_boot boot;
    struct group_boot_end end;
    struct comm *c = NULL;
    struct err e = {0};
    group_init(&g, "shm+tcp", 2, false, 4096, 0);
    struct comm_setup setup = group_setup(&g, 0, &boot, &end);
    setup.n_here = 0;
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "nobody has told which ranks share a host");
    setup.first_here = 1, setup.n_here = 1;
    t_expect_err_contains(ST_INVALID, comm_open(&setup, &c, &e), &e, "rank 0 is not among the 1 ranks of its host, from 1 on");
    setup.first_here = 0, setup.backend = "shm";
    t_expect_err_contains(ST_UNSUPPORTED, comm_open(&setup, &c, &e), &e, "1 of the ranks are on other hosts");
    group_release(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everybody_names_the_dead),
        cmocka_unit_test(the_hosts_must_be_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
