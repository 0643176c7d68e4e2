/* Fibers: stacks that hand the processor to each other, by a hand-written switch (x86-64, AArch64). ucontext saves the signal mask by a system call and is
 * five to fifteen times slower. A fiber saves what the calling convention says a callee keeps; not the floating-point modes, which no kernel changes. */
#ifndef KERNELS_SIMT_FIBER_H
#define KERNELS_SIMT_FIBER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the first switch to the fiber call entry(), which never returns. stack_top: one past the highest byte, 16-byte aligned. Returns the stack pointer. */
void *simt_fiber_init(void *stack_top, void (*entry)(void));
/* Saves where we are in *from, goes on where `to` was saved. */
void simt_fiber_switch(void **from, void *to);

#ifdef __cplusplus
}
#endif
#endif
