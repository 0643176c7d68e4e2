/* Our own elementary functions against libm's, which are right to half a unit or little more: F32 against double, double against long double. */
#include "tests/t.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/math.h"

static double uniform(struct base_rng *r, double lo, double hi) {
    double u = base_unit_open(base_rng_u32(r)) + base_unit_open(base_rng_u32(r)) * 0x1p-32;
    return lo + (hi - lo) * u;
}

/* Error of got in units in the last place of an F32 near want */
static double ulps_f32(float got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs((double)got - want) / ldexp(1, exponent - 24);
}

static double relative(double got, long double want) { return want == 0 ? fabs(got) : (double)fabsl(((long double)got - want) / want); }

static void expf_within_2_ulp(void **state) {
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42b16666; bits += 257) /* 0 … 88.7, and the negatives down to where it ends */
        for (int sign = 0; sign < 2; sign++) {
            float x;
            memcpy(&x, &bits, 4);
            x = sign ? -x : x;
            if (x < -87.3f)
                continue;
            double e = ulps_f32(base_math_expf(x), exp((double)x));
            if (e > 2)
                fail_msg("exp(%.9g) = %.9g: %.2f ulp off", (double)x, (double)base_math_expf(x), e);
            worst = e > worst ? e : worst;
        }
    print_message("expf: %.3f ulp at worst\n", worst);
    assert_true(base_math_expf(0.0f) == 1.0f && base_math_expf(-0.0f) == 1.0f);
    assert_true(base_math_expf(-87.31f) == 0.0f && !signbit(base_math_expf(-1000.0f)) && base_math_expf(-INFINITY) == 0.0f);
    assert_true(isnan(base_math_expf(NAN)) && isinf(base_math_expf(89.0f)) && isinf(base_math_expf(INFINITY)) && isfinite(base_math_expf(88.7f)));
}

#define WITHIN(name, got, want, limit, ...)                                                    \
    do {                                                                                       \
        double e_ = relative((got), (want));                                                   \
        if (!(e_ <= (limit)))                                                                  \
            fail_msg(name " = %.17g, expected %.17Lg: off by %.3g", __VA_ARGS__, (got), (want), e_); \
        worst = e_ > worst ? e_ : worst;                                                       \
    } while (0)

static void exp_log_pow(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    double worst = 0;
    for (int i = 0; i < 400000; i++) {
        double x = i % 2 ? uniform(&r, -700, 700) : uniform(&r, -1, 1);
        WITHIN("exp(%.17g)", base_math_exp(x), expl((long double)x), 1e-14, x);
    }
    print_message("exp: %.3g at worst\n", worst);
    worst = 0;
    for (int i = 0; i < 400000; i++) {
        double x = i % 3 == 0 ? uniform(&r, 0.5, 2) : i % 3 == 1 ? ldexp(uniform(&r, 1, 2), (int)base_rng_below(&r, 2000) - 1000) : 1 + uniform(&r, -1e-6, 1e-6);
        WITHIN("log(%.17g)", base_math_log(x), logl((long double)x), 1e-14, x);
    }
    print_message("log: %.3g at worst\n", worst);
    worst = 0;
    for (int i = 0; i < 400000; i++) {
        double x = i % 2 ? uniform(&r, 1e-3, 1e6) : ldexp(uniform(&r, 1, 2), (int)base_rng_below(&r, 60) - 30), y = uniform(&r, -20, 20);
        WITHIN("pow(%.17g, %.17g)", base_math_pow(x, y), powl((long double)x, (long double)y), 1e-14, x, y);
    }
    for (int d = 2; d <= 256; d += 2) /* what rope's frequencies are made of */
        for (int i = 0; i < d; i += 2)
            WITHIN("pow(1e6, -%d / %d)", base_math_pow(1e6, -(double)i / d), powl(1e6L, -(long double)((double)i / d)), 1e-14, i, d);
    print_message("pow: %.3g at worst\n", worst);
    assert_true(base_math_exp(0) == 1 && base_math_log(1) == 0 && base_math_pow(2, 10) == 1024 && base_math_pow(7, 0) == 1);
    assert_true(base_math_exp(-800) == 0 && isinf(base_math_exp(710)) && isinf(base_math_log(0)) && isnan(base_math_log(-1)) && isnan(base_math_exp(NAN)));
    assert_true(relative(base_math_exp(-730), expl(-730)) < 1e-6 && relative(base_math_log(0x1p-1070), logl(0x1p-1070L)) < 1e-15); /* subnormals */
}

static void sin_cos(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    double worst = 0;
    for (int i = 0; i < 600000; i++) {
        static const double limits[] = {1, 10, 1e3, 1e6, 1e9};
        double limit = limits[i % 5], x = uniform(&r, -limit, limit);
        if (i % 7 == 0) /* near multiples of π/2, where the result nearly vanishes */
            x = (double)(int64_t)(x * 0.6) * 0x1.921fb54442d18p+0;
        if (fabs(x) > 1e9)
            continue;
        double s, c;
        base_math_sincos(x, &s, &c);
        /* long double has 64 bits and glibc reduces exactly */
        WITHIN("sin(%.17g)", s, sinl((long double)x), 1e-14, x);
        WITHIN("cos(%.17g)", c, cosl((long double)x), 1e-14, x);
    }
    print_message("sin, cos: %.3g at worst\n", worst);
    double s, c;
    base_math_sincos(0, &s, &c);
    assert_true(s == 0 && c == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(expf_within_2_ulp), cmocka_unit_test(exp_log_pow), cmocka_unit_test(sin_cos)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
