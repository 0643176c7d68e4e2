/* exp, log, sin, cos of our own, on the step path and for tables made at load: libc's differ between hosts, ours give the same bits everywhere.
 * Scalar forms; a backend's vector forms must give the same bits per lane. Error ≤ 2 ulp (F32 forms), ≤ 1e-14 relative (F64 forms). */
#ifndef KERNELS_MATH_H
#define KERNELS_MATH_H

/* exp for x ≤ 88.7; below −87.3 the result is +0; NaN stays NaN. Polynomial after Cody–Waite reduction, explicit fmaf. */
float kern_expf(float x);
double kern_exp(double x);
double kern_log(double x); /* x > 0 */
double kern_pow(double x, double y); /* x > 0 */
void kern_sincos(double x, double *sin_x, double *cos_x); /* |x| < 1e9, by exact reduction with three parts of π/2 */

#endif
