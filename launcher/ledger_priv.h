/* What the renderings of a ledger share. */
#ifndef LAUNCHER_LEDGER_PRIV_H
#define LAUNCHER_LEDGER_PRIV_H

#include <stdio.h>

#include "launcher/ledger.h"
#include "runtime/ledger.h"

struct launch_ledger {
    const char *path; /* "": text to stderr */
    int fd;
    bool is_new, is_written; /* the file */
    int n_ranks, n_reports;
    void *data[COMM_MAX_RANKS];
    struct rt_ledger_report reports[COMM_MAX_RANKS]; /* head NULL: not come yet */
};

/* Who is slow. Working time is a step's less its waiting. */
struct ledger_balance {
    uint64_t n_steps;   /* that all ranks have records of */
    double imbalance;   /* slowest ÷ mean, averaged over these steps; 1 with one rank */
    double worst;       /* of one step */
    int slowest;        /* the rank that worked longest, over all these steps */
    enum rt_ledger_kind kind; /* in which it exceeds the mean most */
    double excess_ns;   /* by so much, a step */
};
struct ledger_balance launch_ledger_balance(const struct launch_ledger *l, enum rt_ledger_phase phase);

/* In products: bytes of weights ÷ time of the products. 0 without. */
double launch_ledger_rate(const struct rt_ledger_sum *sum);

const char *launch_ledger_phase_name(enum rt_ledger_phase phase);
/* "linear", or "" outside of programs. */
const char *launch_ledger_op_name(int op);

struct ledger_link {
    bool was_there, was_late; /* late: by a hundredth and more */
    double link_gb_s, seen_gb_s; /* what the link alone would have given, what came over it */
    double late_share; /* of the exchanges */
};
struct ledger_link launch_ledger_link(const struct launch_ledger *l);
/* "18.2 of 24.9 GB/s", or "24.9 GB/s" where it was not late. */
const char *launch_ledger_rates(const struct ledger_link *link, char text[64]);

void launch_ledger_text(const struct launch_ledger *l, const struct launch_setup *s, FILE *out);
enum st launch_ledger_json(const struct launch_ledger *l, const struct launch_setup *s, FILE *out, struct err *e);
void launch_ledger_svg(const struct launch_ledger *l, const struct launch_setup *s, FILE *out);

#endif
