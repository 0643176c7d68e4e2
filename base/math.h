/* exp, log, sin, cos of our own, on the step path and for tables made at load: libc's differ between hosts, ours give the same bits everywhere.
 * Scalar forms; a backend's vector forms must give the same bits per lane. Error ≤ 2 ulp (F32 forms), ≤ 1e-14 relative (F64 forms). */
#ifndef BASE_MATH_H
#define BASE_MATH_H

/* exp for x ≤ 88.7; below −87.3 the result is +0; NaN stays NaN. Polynomial after Cody–Waite reduction, explicit fmaf. */
float base_math_expf(float x);
double base_math_exp(double x);
double base_math_log(double x); /* x > 0 */
double base_math_pow(double x, double y); /* x > 0 */
void base_math_sincos(double x, double *sin_x, double *cos_x); /* |x| < 1e9, by exact reduction with three parts of π/2 */

#endif
