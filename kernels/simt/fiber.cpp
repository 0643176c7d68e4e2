/* The switch of fiber.h. */
#include "kernels/simt/fiber.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
/* Kept by a callee: rbx, rbp, r12 … r15. After the first `ret` the stack pointer stands as after a call: 8 below a multiple of 16. */
__asm__(".text\n.p2align 4\n.globl simt_fiber_switch\n.type simt_fiber_switch,@function\n"
        "simt_fiber_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n.size simt_fiber_switch,.-simt_fiber_switch\n");
enum { FRAME = 64, RETURN_AT = 48 };
#elif defined(__aarch64__)
/* Kept by a callee: x19 … x30, d8 … d15. */
__asm__(".text\n.p2align 4\n.globl simt_fiber_switch\n.type simt_fiber_switch,%function\n"
        "simt_fiber_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n    stp d12, d13, [sp, #128]\n    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
        "    ldp x19, x20, [sp]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n    ldp d12, d13, [sp, #128]\n    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n    ret\n.size simt_fiber_switch,.-simt_fiber_switch\n");
enum { FRAME = 160, RETURN_AT = 88 };
#else
#error "the fiber switch is written for x86-64 and AArch64"
#endif

void *simt_fiber_init(void *stack_top, void (*entry)(void)) {
    unsigned char *sp = (unsigned char *)stack_top - FRAME;
    memset(sp, 0, FRAME);
    uintptr_t to = (uintptr_t)entry;
    memcpy(sp + RETURN_AT, &to, sizeof to);
    return sp;
}
