#define CPU_SUFFIX portable
#include "kernels/cpu/small_ops_body.h"
