#include "launcher/foreign.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "comm/boot_pmi.h"
#include "comm/mpi.h"
#include "launcher/commands.h"

#define MEET_NS (60 * BASE_NS_PER_S)

static struct launch_foreign self;
static bool is_foreign, is_mpi_boot, uses_mpi;
static struct comm_boot boot;

const struct launch_foreign *launch_foreign(void) { return is_foreign ? &self : NULL; }

/* Ranks share CPUs where kernel and affinity are the same: whoever started us may have bound each rank to CPUs of its own. */
struct whereabouts {
    struct digest kernel, cpus;
};

static void find_whereabouts(struct whereabouts *w)
{
    char text[256] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    (void)gethostname(text + n, sizeof text - 1 - n);
    w->kernel = base_hash(text, sizeof text);
    static unsigned char mask[8192];
    memset(mask, 0, sizeof mask);
    (void)sched_getaffinity(0, sizeof mask, (cpu_set_t *)(void *)mask);
    w->cpus = base_hash(mask, sizeof mask);
}

static enum st meet(struct err *e)
{
    struct whereabouts mine, all[COMM_MAX_RANKS];
    if (self.n_ranks > COMM_MAX_RANKS)
        return err_set(e, ST_INVALID, "%d ranks; %d are possible", self.n_ranks, COMM_MAX_RANKS);
    find_whereabouts(&mine);
    const enum st st = boot.allgather(boot.context, &mine, sizeof mine, all, base_now_ns(base_clock_real()) + MEET_NS, e);
    if (st)
        return st;
    for (int r = 0; r < self.n_ranks; r++) {
        const bool near = memcmp(&all[r], &mine, sizeof mine) == 0;
        self.i_local += near && r < self.rank;
        self.n_local += near;
    }
    return ST_OK;
}

static void leave(bool in_peace)
{
    if (is_mpi_boot)
        comm_boot_mpi_close(&boot, in_peace);
    else if (in_peace)
        comm_boot_pmi_close(&boot, uses_mpi ? COMM_BOOT_PMI_LEAVE : COMM_BOOT_PMI_FINALIZE);
}

int launch_foreign_run(int (*command)(int argc, char **argv), int argc, char **argv)
{
    struct err e = {""};
    enum st st = comm_boot_pmi_open_env(0, &boot, &self.rank, &self.n_ranks, &e);
    if (st == ST_NOT_FOUND) {
        is_mpi_boot = true;
        st = comm_boot_mpi_open(0, &boot, &self.rank, &self.n_ranks, &e);
    }
    if (!st) {
        self.boot = &boot;
        base_log_set_rank(self.rank);
        st = meet(&e);
    }
    if (st)
        return launch_fail("rank", &e);
    is_foreign = true;
    const int status = command(argc, argv);
    if (status) {
        fflush(NULL);
        _exit(status); /* whoever started us ends the others; a library's way out might wait for them */
    }
    leave(true);
    return 0;
}

void launch_foreign_options(const struct launch_setup *s, struct rt_rank_options *o)
{
    *o = (struct rt_rank_options){.model = s->model, .rank = self.rank, .n_ranks = self.n_ranks, .settings = s->settings, .front_fd = -1, .memory_fd = -1, .boot = &boot};
    const struct topo_seat *seat = &s->placement->seats[self.i_local];
    if (s->placement->bound) {
        o->settings.os_cpus = seat->pus;
        o->numa = seat->numa;
        o->n_numa = seat->n_numa;
    }
    o->shares = s->has_shares ? s->shares : NULL;
    o->backend = s->backend_name;
    o->link = s->has_link ? &s->link : NULL;
    uses_mpi = s->backend_name && strcmp(s->backend_name, "mpi") == 0;
}

void launch_foreign_serve(const struct launch_setup *setup, bool dry)
{
    if (!is_foreign || self.rank == 0)
        return;
    struct rt_rank_options o;
    struct err e = {""};
    launch_foreign_options(setup, &o);
    const enum st st = dry ? ST_OK : rt_rank_run(&o, &e);
    if (st && st != ST_PEER_LOST) /* a lost peer tells more than who lost it */
        launch_fail("rank", &e);
    if (!st)
        leave(true);
    fflush(NULL);
    _exit(st ? 1 : 0);
}
