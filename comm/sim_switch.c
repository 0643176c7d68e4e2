/* From one stack to another. swapcontext does the same, but asks the kernel for the signal mask each time: half of a run's time was spent there. It is what other processors use. */
#include <string.h>
#include <ucontext.h>

#include "comm/sim_priv.h"

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(SIM_PORTABLE_SWITCH)

/* void sim_switch(void **from, void *to): what the called must keep goes on the stack, whose top goes to *from; then the same the other way from `to`. */
#if defined(__x86_64__)
enum { N_WORDS = 8, ENTRY = 6 }; /* six registers, where to return to, and a word that makes the stack look as after a call */
__asm__(".text\n"
        ".globl sim_switch\n"
        ".type sim_switch, @function\n"
        "sim_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size sim_switch, .-sim_switch\n");
#else
enum { N_WORDS = 20, ENTRY = 11 }; /* x19 … x29, x30: where to return to, d8 … d15 */
__asm__(".text\n"
        ".globl sim_switch\n"
        ".type sim_switch, %function\n"
        "sim_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size sim_switch, .-sim_switch\n");
#endif

void *sim_stack_init(unsigned char *stack, size_t bytes, void (*entry)(void)) {
    uint64_t words[N_WORDS] = {0};
    words[ENTRY] = (uintptr_t)entry;
    unsigned char *top = stack + bytes - sizeof words;
    memcpy(top, words, sizeof words);
    return top;
}

#else

void sim_switch(void **from, void *to) {
    ucontext_t own;
    *from = &own; // cppcheck-suppress autoVariables ; the stack outlives this call
    swapcontext(&own, to);
}

void *sim_stack_init(unsigned char *stack, size_t bytes, void (*entry)(void)) {
    ucontext_t *context = (ucontext_t *)(void *)(stack + bytes - comm_round_up(sizeof *context, 64));
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = bytes - comm_round_up(sizeof *context, 64);
    context->uc_link = NULL;
    makecontext(context, entry, 0);
    return context;
}

#endif
