/* The CPU backend's tables: one per instruction set, with the same layout of matrices, caches and scratch, and the same bits. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/matmul_priv.h"
#include "kernels/cpu/ops_priv.h"

static bool supports(enum kern_op op, enum format format, enum kern_activation activation, int head_dim) {
    switch (op) {
    case KERN_OP_MATMUL:
    case KERN_OP_EXPERTS_IN:
    case KERN_OP_EXPERTS_OUT:
        if (activation == KERN_ACT_F32) return cpu_matmul_portable.f32[format] != NULL;
        return activation == kern_activation_for(format, false) && cpu_matmul_portable.int8[format] != NULL;
    case KERN_OP_EMBED: return cpu_tile_bytes(format) != 0;
    default: return cpu_ops_supports(op, format, head_dim);
    }
}

#define CPU_PRODUCT(op, args_type, suffix) \
    static void op##_##suffix(struct kern_queue q, const struct args_type *args) { cpu_##op(&cpu_matmul_##suffix, q, args); }

#define CPU_VARIANT(symbol, suffix, variant_name, variant_priority)                                                                                  \
    CPU_PRODUCT(matmul_prepare, kern_matmul, suffix)                                                                                                 \
    CPU_PRODUCT(matmul_run, kern_matmul, suffix)                                                                                                     \
    CPU_PRODUCT(experts_in_prepare, kern_experts_in, suffix)                                                                                         \
    CPU_PRODUCT(experts_in_run, kern_experts_in, suffix)                                                                                             \
    CPU_PRODUCT(experts_out_prepare, kern_experts_out, suffix)                                                                                       \
    CPU_PRODUCT(experts_out_run, kern_experts_out, suffix)                                                                                           \
    const struct kern_backend symbol = {                                                                                                             \
        .name = "cpu",                                                                                                                               \
        .variant = variant_name,                                                                                                                     \
        .priority = variant_priority,                                                                                                                \
        .probe = probe_##suffix,                                                                                                                     \
        .supports = supports,                                                                                                                        \
        .matrix_bytes = cpu_matrix_bytes,                                                                                                            \
        .matrix_pack = cpu_matrix_pack,                                                                                                              \
        .matmul_scratch_bytes = cpu_matmul_scratch_bytes,                                                                                            \
        .matmul_prepare = matmul_prepare_##suffix,                                                                                                   \
        .matmul = matmul_run_##suffix,                                                                                                               \
        .experts_scratch_bytes = cpu_experts_scratch_bytes,                                                                                          \
        .experts_in_prepare = experts_in_prepare_##suffix,                                                                                           \
        .experts_in = experts_in_run_##suffix,                                                                                                       \
        .experts_out_prepare = experts_out_prepare_##suffix,                                                                                         \
        .experts_out = experts_out_run_##suffix,                                                                                                     \
        .embed = cpu_embed,                                                                                                                          \
        CPU_OPS_TABLE(suffix),                                                                                                                       \
    };

#if defined(__x86_64__)
static bool probe_avx2(void) {
    bool ok = __builtin_cpu_supports("avx2");
    ok = ok && __builtin_cpu_supports("fma");
    return ok && __builtin_cpu_supports("f16c");
}

/* A processor with AVX-512 but without VNNI (Skylake-X) is served by avx2. */
static bool probe_avx512(void) {
    /* statements, not one expression: the builtin expands to masks that clang-tidy takes for the same one */
    bool ok = probe_avx2();
    ok = ok && __builtin_cpu_supports("avx512f");
    ok = ok && __builtin_cpu_supports("avx512bw");
    ok = ok && __builtin_cpu_supports("avx512vl");
    ok = ok && __builtin_cpu_supports("avx512dq");
    return ok && __builtin_cpu_supports("avx512vnni");
}

CPU_VARIANT(kern_cpu_avx512_vnni, avx512, "avx512-vnni", 30)
CPU_VARIANT(kern_cpu_avx2, avx2, "avx2", 20)
#endif

static bool probe_portable(void) { return true; }
CPU_VARIANT(kern_cpu_portable, portable, "portable", 10)
