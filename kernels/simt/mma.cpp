/* Matrix instructions. Which lane holds what (t = lane, q = t mod 4, g = t ÷ 4; from NVIDIA's CuTe layouts), e numbers a register (2 of 16 bits, 4 of 8, 8 of 4), the lowest
 * bits first, K = 8e columns in all:
 *   A 16 × K: a0 (g, e·q…), a1 (g + 8, e·q…), a2 (g, e·q + 4e…), a3 (g + 8, e·q + 4e…)     B K × 8: b0 (e·q…, g), b1 (e·q + 4e…, g)
 *   C, D 16 × 8: (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)
 * Scales: thread selector s takes those of row g from the lane with q = 2s, of row g + 8 from q = 2s + 1, of column g from q = s; byte selector: the byte of the first block
 * of columns, further blocks follow.
 *
 * Products of these formats are exact; how a GPU adds them up inside one instruction is nobody's promise. So there are three models, and whatever is true of a kernel must be
 * true under all: exact (one rounding), truncating (all terms are cut off at a fixed distance below the largest, then the sum is), permuted (F32 sums in an order drawn from the
 * seed, the same for all elements and instructions, as a circuit's is). TANDEM_SIMT_MMA names one. */
#include "kernels/simt/engine.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>

namespace simt {

/* ---- models ------------------------------------------------------------------------------------------------------------------------------------------ */

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

/* Of terms[0 … n − 1], the products, and terms[n], what they are added to. */
constexpr unsigned most_terms = 65;

static float sum_truncated(const double *terms, unsigned n, int kept_bits) {
    double largest = 0, sum = 0;
    for (unsigned k = 0; k <= n; k++)
        largest = std::max(largest, fabs(terms[k]));
    if (largest == 0 || !std::isfinite(largest))
        kept_bits = 0;
    double unit = kept_bits ? ldexp(1.0, ilogb(largest) - kept_bits) : 0;
    for (unsigned k = 0; k <= n; k++)
        sum += unit > 0 ? trunc(terms[k] / unit) * unit : terms[k];
    return toward_zero(sum);
}

static const uint8_t *permutation(unsigned n) {
    static uint8_t order[most_terms];
    static uint64_t of_seed;
    static unsigned of_n;
    if (of_n != n || of_seed != config().seed) {
        of_n = n;
        of_seed = config().seed;
        uint64_t z = of_seed;
        for (unsigned k = 0; k < n; k++)
            order[k] = (uint8_t)k;
        for (unsigned k = n; k > 1; k--) {
            z = z * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(order[k - 1], order[(z >> 33) % k]);
        }
    }
    return order;
}

static float add_up(model m, const double *terms, unsigned n, int kept_bits) {
    switch (m) {
    case model::truncating:
        return sum_truncated(terms, n, kept_bits);
    case model::permuted: {
        const uint8_t *order = permutation(n + 1);
        float sum = 0;
        for (unsigned k = 0; k <= n; k++)
            sum += (float)terms[order[k]];
        return sum;
    }
    default: {
        double sum = terms[n]; /* 53 bits: exact but for numbers of very different size */
        for (unsigned k = 0; k < n; k++)
            sum += terms[k];
        return (float)sum;
    }
    }
}

/* ---- formats ------------------------------------------------------------------------------------------------------------------------------------------ */

static float of_bf16(uint32_t x) { return from_bits<float>((uint64_t)(x & 0xffff) << 16); }
static float of_e4m3(uint32_t x) {
    float size = (x & 0x7f) == 0x7f ? NAN : from_bits<float>((x & 0x7f) << 20) * 0x1p120f; /* the exponents' biases differ by 120 */
    return x & 0x80 ? -size : size;
}
static float of_e2m1(uint32_t x) {
    static const float sizes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    return x & 8 ? -sizes[x & 7] : sizes[x & 7];
}
static float of_ue4m3(uint32_t x) { return of_e4m3(x & 0x7f); }
static float of_ue8m0(uint32_t x) { return (x & 0xff) == 0xff ? NAN : ldexpf(1, (int)(x & 0xff) - 127); }

struct mma_info {
    const char *name;
    unsigned e;                /* numbers a register */
    float (*value)(uint32_t);  /* of the lowest bits */
    unsigned scale_columns;    /* 0: no scales */
    float (*scale)(uint32_t);
    int kept_bits;             /* truncating: of the largest term's exponent down. Hopper's E4M3 keeps 13; the narrow formats of others are not known to keep more */
};
static const mma_info infos[] = {
    {"mma.m16n8k16.bf16", 2, of_bf16, 0, nullptr, 24},      {"mma.m16n8k32.e4m3", 4, of_e4m3, 0, nullptr, 13},
    {"mma.m16n8k32.mxf8", 4, of_e4m3, 32, of_ue8m0, 13},    {"mma.m16n8k64.mxf4", 8, of_e2m1, 32, of_ue8m0, 13},
    {"mma.m16n8k64.nvf4", 8, of_e2m1, 16, of_ue4m3, 13},
};

/* ---- the instruction ----------------------------------------------------------------------------------------------------------------------------------- */

struct mma_payload {
    const mma_info *info;
    const uint32_t *a, *b;
    const float *c;
    const mma_scales *scales;
    float d[4];
};

struct operands {
    float rows[16][64], columns[8][64];
    double row_scale[16][4], column_scale[8][4]; /* for each scale_columns columns */
};

static void put_together(thread *const *lanes, const mma_info &f, operands &o) {
    unsigned e = f.e, bits = 32 / e, n_scales = f.scale_columns ? 8 * e / f.scale_columns : 0;
    for (unsigned t = 0; t < 32; t++) {
        const auto *l = (const mma_payload *)lanes[t]->payload;
        unsigned q = t % 4, g = t / 4;
        for (unsigned j = 0; j < e; j++) {
            for (unsigned i = 0; i < 4; i++)
                o.rows[g + (i & 1) * 8][e * q + (i >> 1) * 4 * e + j] = f.value(l->a[i] >> (bits * j));
            for (unsigned i = 0; i < 2; i++)
                o.columns[g][e * q + i * 4 * e + j] = f.value(l->b[i] >> (bits * j));
        }
        for (unsigned i = 0; i < n_scales; i++) {
            const mma_scales &s = *l->scales;
            if (q / 2 == (unsigned)s.thread_a)
                o.row_scale[g + q % 2 * 8][i] = f.scale(s.a >> (8 * (i + (unsigned)s.byte_a)));
            if (q == (unsigned)s.thread_b)
                o.column_scale[g][i] = f.scale(s.b >> (8 * (i + (unsigned)s.byte_b)));
        }
    }
}

void mma(mma_kind kind, float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4], const mma_scales &scales, site at) {
    mma_payload p = {&infos[(int)kind], a, b, c, &scales, {}};
    collective(
        p.info->name, 0xffffffffu, &p,
        [](thread *const *lanes, uint32_t) {
            const mma_info &f = *((const mma_payload *)lanes[0]->payload)->info;
            static operands o; /* not on a fiber's small stack */
            put_together(lanes, f, o);
            unsigned n = 8 * f.e;
            model m = accumulation_model();
            double terms[most_terms];
            for (unsigned t = 0; t < 32; t++) {
                auto *l = (mma_payload *)lanes[t]->payload;
                for (unsigned i = 0; i < 4; i++) {
                    unsigned row = t / 4 + (i >> 1) * 8, column = 2 * (t % 4) + (i & 1);
                    for (unsigned k = 0; k < n; k++)
                        terms[k] = (double)o.rows[row][k] * (double)o.columns[column][k];
                    for (unsigned k = 0; k < n && f.scale_columns; k++)
                        terms[k] *= o.row_scale[row][k / f.scale_columns] * o.column_scale[column][k / f.scale_columns];
                    terms[n] = (double)l->c[i];
                    l->d[i] = add_up(m, terms, n, f.kept_bits);
                }
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
