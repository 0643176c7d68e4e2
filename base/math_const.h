/* Constants of base_math_expf, shared by its scalar and vector forms so that they cannot drift apart. Polynomial: Cephes expf (Moshier), error below 1 ulp. */
#ifndef BASE_MATH_CONST_H
#define BASE_MATH_CONST_H

#define EXPF_HIGH 88.72f             /* above: +infinity (e^88.72 < FLT_MAX) */
#define EXPF_LOW (-87.3f)            /* below: +0 (e^-87.3 is still a normal number) */
#define EXPF_LOG2E 1.44269504088896341f
#define EXPF_MAGIC 12582912.0f       /* 1.5·2^23: adding it rounds to an integer, which then stands in the low mantissa bits */
#define EXPF_LN2_HIGH 0.693359375f   /* 9 bits: n·this is exact */
#define EXPF_LN2_LOW (-2.12194440e-4f)
#define EXPF_P5 1.9875691500e-4f
#define EXPF_P4 1.3981999507e-3f
#define EXPF_P3 8.3334519073e-3f
#define EXPF_P2 4.1665795894e-2f
#define EXPF_P1 1.6666665459e-1f
#define EXPF_P0 5.0000001201e-1f

#endif
