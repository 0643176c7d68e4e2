/* Elementary functions of our own: the same bits on every host. Only +, −, ·, ÷, fma and conversions are used, each of which IEEE 754 defines exactly.
 * Method: exact argument reduction (the reduced argument carried as a sum of two numbers where it matters), then a short polynomial.
 * Polynomials of log, sin and cos: fdlibm (Sun Microsystems, freely distributable); of expf: Cephes. */
#include "base/math.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/math_const.h"

static uint64_t to_bits(double x) {
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}
static double from_bits(uint64_t u) {
    double x;
    memcpy(&x, &u, 8);
    return x;
}

/* ---- exp ---------------------------------------------------------------------------------------------------------------------------------------- */

float base_math_expf(float x) {
    if (!(x <= EXPF_HIGH))
        return x != x ? x : INFINITY;
    if (x < EXPF_LOW)
        return 0.0f;
    float shifted = fmaf(x, EXPF_LOG2E, EXPF_MAGIC), n = shifted - EXPF_MAGIC;
    float r = fmaf(-n, EXPF_LN2_HIGH, x);
    r = fmaf(-n, EXPF_LN2_LOW, r);
    float p = fmaf(EXPF_P5, r, EXPF_P4);
    p = fmaf(p, r, EXPF_P3);
    p = fmaf(p, r, EXPF_P2);
    p = fmaf(p, r, EXPF_P1);
    p = fmaf(p, r, EXPF_P0);
    p = fmaf(p, r * r, r) + 1.0f;
    /* · 2^n by adding n to the exponent: the result is a normal number in the whole range, so nothing can go wrong */
    uint32_t bits, n_bits;
    memcpy(&bits, &p, 4);
    memcpy(&n_bits, &shifted, 4);
    bits += n_bits << 23;
    memcpy(&p, &bits, 4);
    return p;
}

#define LN2_HIGH 0x1.62e42fee00000p-1 /* 32 bits: n·this is exact for |n| < 2^20 */
#define LN2_LOW 0x1.a39ef35793c76p-33

/* e^(x + x_low), |x_low| tiny */
static double exp_sum(double x, double x_low) {
    if (!(x <= 709.78))
        return x != x ? x : INFINITY;
    if (x < -745.2)
        return 0.0;
    double n = floor(x * 0x1.71547652b82fep+0 + 0.5);
    double r = fma(-n, LN2_HIGH, x);
    r = fma(-n, LN2_LOW, r) + x_low;
    /* Taylor to degree 13: the rest is below 2^-57 for |r| ≤ ln 2 ÷ 2 */
    static const double inverse_factorial[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0,
                                               1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,      1.0 / 24.0,      1.0 / 6.0,      1.0 / 2.0};
    double p = inverse_factorial[0];
    for (int i = 1; i < 12; i++)
        p = fma(p, r, inverse_factorial[i]);
    p = 1.0 + fma(p, r * r, r);
    /* in two steps, since 2^n alone may be out of range where the result is not */
    int n1 = (int)n / 2, n2 = (int)n - n1;
    return p * from_bits((uint64_t)(1023 + n1) << 52) * from_bits((uint64_t)(1023 + n2) << 52);
}

double base_math_exp(double x) { return exp_sum(x, 0.0); }

/* ---- log, pow ------------------------------------------------------------------------------------------------------------------------------------ */

/* log x = *high + *low to about 2^-60: with s = f / (2 + f), log(1 + f) = 2s + s·R(s²), where 2s is carried in two parts. */
static void log_sum(double x, double *high, double *low) {
    int k = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        k = -54;
    }
    uint64_t bits = to_bits(x);
    k += (int)(bits >> 52) - 1023;
    double m = from_bits((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    if (m > 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        k++;
    }
    double f = m - 1.0;                                     /* exact */
    double den = m + 1.0, den_low = m - (den - 1.0);        /* what the sum lost: exact, as m < 2 and both are near */
    double s = f / den;
    double s_low = (fma(-s, den, f) - s * den_low) / den;
    double z = s * s;
    double r = fma(z, 1.479819860511658591e-01, 1.531383769920937332e-01);
    r = fma(z, r, 1.818357216161805012e-01);
    r = fma(z, r, 2.222219843214978396e-01);
    r = fma(z, r, 2.857142874366239149e-01);
    r = fma(z, r, 3.999999999940941908e-01);
    r = z * fma(z, r, 6.666666666666735130e-01);
    double tail = fma(s, r, 2.0 * s_low);
    /* k·ln2 + 2s + tail, largest first */
    double a = (double)k * LN2_HIGH, b = 2.0 * s;
    double sum = a + b, rest = b - (sum - a);
    rest += fma((double)k, LN2_LOW, tail);
    *high = sum + rest;
    *low = rest - (*high - sum);
}

double base_math_log(double x) {
    if (!(x > 0))
        return x == 0 ? -INFINITY : NAN;
    if (x == INFINITY)
        return x;
    double high, low;
    log_sum(x, &high, &low);
    return high + low;
}

double base_math_pow(double x, double y) {
    if (!(x > 0) || x == INFINITY)
        return x == 0 && y > 0 ? 0.0 : exp_sum(y * base_math_log(x), 0.0);
    double high, low;
    log_sum(x, &high, &low);
    double product = y * high;
    return exp_sum(product, fma(y, high, -product) + y * low);
}

/* ---- sin, cos ------------------------------------------------------------------------------------------------------------------------------------ */

/* π/2 as a sum of three numbers */
#define HALF_PI_1 0x1.921fb54442d18p+0
#define HALF_PI_2 0x1.1a62633145c07p-54
#define HALF_PI_3 (-0x1.f1976b7ed8fbcp-110)

/* a + b = sum + error, exactly (Knuth) */
static double two_sum(double a, double b, double *error) {
    double sum = a + b, part = sum - a;
    *error = (a - (sum - part)) + (b - part);
    return sum;
}

void base_math_sincos(double x, double *sin_x, double *cos_x) {
    /* ---- reduction: r + t = x − n·π/2, |r| ≤ π/4; products by fma are exact in two parts, so nothing cancels */
    double n = floor(x * 0x1.45f306dc9c883p-1 + 0.5);
    double p1 = n * HALF_PI_1, p1_low = fma(n, HALF_PI_1, -p1);
    double p2 = n * HALF_PI_2, p2_low = fma(n, HALF_PI_2, -p2);
    double e1, e2, e3;
    double a = two_sum(x, -p1, &e1);
    a = two_sum(a, -p1_low, &e2);
    a = two_sum(a, -p2, &e3);
    double low = e1 + e2 + e3 - p2_low - n * HALF_PI_3;
    double r = a + low, t = low - (r - a);

    /* ---- fdlibm's kernels on [−π/4, π/4] */
    double z = r * r, v = z * r;
    double s = fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08);
    s = fma(z, s, 2.75573137070700676789e-06);
    s = fma(z, s, -1.98412698298579493134e-04);
    s = fma(z, s, 8.33333333332248946124e-03);
    double sine = r - ((z * (0.5 * t - v * s) - t) - v * -1.66666666666666324348e-01);
    double c = fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09);
    c = fma(z, c, -2.75573143513906633035e-07);
    c = fma(z, c, 2.48015872894767294178e-05);
    c = fma(z, c, -1.38888888888741095749e-03);
    c = z * fma(z, c, 4.16666666666666019037e-02);
    double half = 0.5 * z, w = 1.0 - half;
    double cosine = w + (((1.0 - w) - half) + (z * c - r * t));

    /* ---- the quadrant */
    switch ((int64_t)n & 3) {
    case 0:
        *sin_x = sine;
        *cos_x = cosine;
        break;
    case 1:
        *sin_x = cosine;
        *cos_x = -sine;
        break;
    case 2:
        *sin_x = -sine;
        *cos_x = -cosine;
        break;
    default:
        *sin_x = -cosine;
        *cos_x = sine;
        break;
    }
}
