#define VEC_AVX512
#define CPU_SUFFIX avx512
#include "kernels/cpu/route_body.h"
