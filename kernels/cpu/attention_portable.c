#define CPU_SUFFIX portable
#include "kernels/cpu/attention_body.h"
