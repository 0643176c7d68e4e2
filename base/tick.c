#include "base/tick.h"

_Thread_local _Atomic uint64_t *base_tick_at;
