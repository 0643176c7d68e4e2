#define CPU_SUFFIX portable
#include "kernels/cpu/route_body.h"
