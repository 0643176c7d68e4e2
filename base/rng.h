/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 * The same (key, counter) gives the same four words on every machine, in any order, on any rank. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

void base_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* A uniform number strictly inside (0, 1) from 32 random bits: (x + 0.5) / 2^32, exact in double. */
double base_unit_open(uint32_t x);

/* A small sequential stream for tests and synthetic data, built on Philox: init with a seed, then draw. */
struct base_rng {
    uint32_t key[2];
    uint64_t n_drawn;
    uint32_t buffer[4];
};
void base_rng_init(struct base_rng *r, uint64_t seed);
uint32_t base_rng_u32(struct base_rng *r);
uint32_t base_rng_below(struct base_rng *r, uint32_t bound); /* 0 … bound−1, unbiased */
float base_rng_uniform(struct base_rng *r, float lo, float hi);
float base_rng_normal(struct base_rng *r); /* Box–Muller in double, rounded */

#endif
