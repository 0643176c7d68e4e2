/* Which of the two modes reads less where it counts: at the busiest rank, of one decoded token. */
#ifndef PARTITION_EXPERT_LOAD_H
#define PARTITION_EXPERT_LOAD_H

#include "partition/plan.h"

/* The share of a token's expert weights that the busiest rank reads. */
struct expert_load {
    double tensor; /* --moe tp: the largest part of an expert */
    double expert; /* --moe ep: expected, where all experts are equally likely */
};

/* Expected number at the fullest of n_ranks places, of k things that are drawn without return from Σ sizes; exact, by counting. */
double expert_load_fullest(const uint32_t *sizes, int n_ranks, int k);

/* Both for the plan's ranks and split, whichever mode it is for. false: no experts. */
bool expert_load_of(const struct part_plan *plan, struct expert_load *load);

#endif
