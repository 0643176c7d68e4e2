#define VEC_AVX2
#define CPU_SUFFIX avx2
#include "kernels/cpu/route_body.h"
