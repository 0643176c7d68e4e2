#define VEC_AVX512
#define CPU_SUFFIX avx512
#include "kernels/cpu/attention_body.h"
