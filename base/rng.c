#include "base/rng.h"

#include <math.h>

#include "base/status.h"

void base_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int i_round = 0; i_round < 10; i_round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* √3 − 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

double base_unit_open(uint32_t x) { return ((double)x + 0.5) * 0x1p-32; }

void base_rng_init(struct base_rng *r, uint64_t seed) { *r = (struct base_rng){.key = {(uint32_t)seed, (uint32_t)(seed >> 32)}}; }

uint32_t base_rng_u32(struct base_rng *r) {
    unsigned i = (unsigned)(r->n_drawn % 4);
    if (i == 0) {
        uint64_t i_block = r->n_drawn / 4;
        const uint32_t counter[4] = {(uint32_t)i_block, (uint32_t)(i_block >> 32), 0, 0};
        base_philox4x32(counter, r->key, r->buffer);
    }
    r->n_drawn++;
    return r->buffer[i];
}

uint32_t base_rng_below(struct base_rng *r, uint32_t bound) {
    BASE_ASSERT(bound > 0);
    /* The 2^32 mod bound lowest numbers are drawn again, so that every remainder is equally frequent. */
    uint32_t threshold = (0u - bound) % bound;
    uint32_t x;
    do x = base_rng_u32(r);
    while (x < threshold);
    return x % bound;
}

float base_rng_uniform(struct base_rng *r, float lo, float hi) {
    double unit = base_unit_open(base_rng_u32(r));
    return (float)((double)lo + ((double)hi - (double)lo) * unit);
}

float base_rng_normal(struct base_rng *r) {
    double u1 = base_unit_open(base_rng_u32(r));
    double u2 = base_unit_open(base_rng_u32(r));
    return (float)(sqrt(-2.0 * log(u1)) * cos(6.283185307179586 * u2));
}
