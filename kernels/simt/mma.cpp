/* Matrix instructions. Which lane holds what (t = lane, q = t mod 4, g = t ÷ 4; from NVIDIA's CuTe layouts), two BF16 a register, the lower half first:
 *   A 16 × 16: a0 (g, 2q…), a1 (g + 8, 2q…), a2 (g, 2q + 8…), a3 (g + 8, 2q + 8…)     B 16 × 8: b0 (2q…, g), b1 (2q + 8…, g)
 *   C, D 16 × 8: (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)
 * Products of BF16 are exact; how a GPU adds them up inside one instruction is nobody's promise. So there are three models, and whatever is true of a kernel must be true
 * under all: exact (one rounding), truncating (cut off instead of rounded), permuted (F32 sums in an order drawn from the seed). TANDEM_SIMT_MMA names one. */
#include "kernels/simt/engine.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>

namespace simt {

enum class model { unknown, exact, truncating, permuted };
static model accumulation;

static model model_named(const char *name) {
    static const char *const names[] = {"", "exact", "truncating", "permuted"};
    for (int i = 1; i < 4; i++)
        if (strcmp(name, names[i]) == 0)
            return (model)i;
    return model::unknown;
}

static model accumulation_model() {
    if (accumulation == model::unknown) {
        const char *name = getenv("TANDEM_SIMT_MMA");
        accumulation = model_named(name ? name : "exact");
        if (accumulation == model::unknown) {
            fprintf(stderr, "TANDEM_SIMT_MMA=%s: no such model; there are exact, truncating and permuted\n", name);
            exit(2);
        }
    }
    return accumulation;
}

static float toward_zero(double x) {
    float f = (float)x;
    return fabs((double)f) > fabs(x) ? nextafterf(f, 0.0f) : f;
}

static float dot(const float *a, const float *b, int n, float c, model m) {
    if (m == model::permuted) {
        float terms[65];
        for (int k = 0; k < n; k++)
            terms[k] = a[k] * b[k];
        terms[n] = c;
        float sum = 0;
        for (int k = n; k >= 0; k--) {
            std::swap(terms[k], terms[chance((uint32_t)k + 1)]);
            sum += terms[k];
        }
        return sum;
    }
    double sum = (double)c; /* 53 bits for products of 16: exact but for numbers of very different size */
    for (int k = 0; k < n; k++)
        sum += (double)a[k] * (double)b[k];
    return m == model::exact ? (float)sum : toward_zero(sum);
}

struct mma_payload {
    const uint32_t *a, *b;
    const float *c;
    float d[4];
};

static float half_of(uint32_t pair, unsigned i) { return from_bits<float>((uint64_t)(pair >> (16 * i)) << 16 & 0xffff0000u); }

void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4], site at) {
    mma_payload p = {a, b, c, {}};
    collective(
        "mma.m16n8k16", 0xffffffffu, &p,
        [](thread *const *lanes, uint32_t) {
            float rows[16][16], columns[8][16];
            for (unsigned t = 0; t < 32; t++) {
                const auto *l = (const mma_payload *)lanes[t]->payload;
                unsigned q = t % 4, g = t / 4;
                for (unsigned h = 0; h < 2; h++) {
                    for (unsigned i = 0; i < 4; i++)
                        rows[g + (i & 1) * 8][2 * q + (i >> 1) * 8 + h] = half_of(l->a[i], h);
                    for (unsigned i = 0; i < 2; i++)
                        columns[g][2 * q + i * 8 + h] = half_of(l->b[i], h);
                }
            }
            model m = accumulation_model();
            for (unsigned t = 0; t < 32; t++) {
                auto *l = (mma_payload *)lanes[t]->payload;
                for (unsigned i = 0; i < 4; i++)
                    l->d[i] = dot(rows[t / 4 + (i >> 1) * 8], columns[2 * (t % 4) + (i & 1)], 16, l->c[i], m);
            }
            self->in_block->of->counts.mma++;
        },
        at);
    memcpy(d, p.d, sizeof p.d);
}

} // namespace simt

int simt_set_accumulation(const char *model) {
    simt::model m = simt::model_named(model);
    if (m == simt::model::unknown)
        return -1;
    simt::accumulation = m;
    return 0;
}
