/* What the CPU's ops other than products can do, the same for every variant. */
#include "kernels/cpu/ops_priv.h"

bool cpu_ops_supports(enum kern_op op, enum format format, int head_dim) {
    switch (op) {
    case KERN_OP_ATTENTION:
        return kern_format(format)->block_columns == 1 && head_dim >= 1 && head_dim <= CPU_MAX_HEAD_DIM;
    case KERN_OP_KV_APPEND:
        return kern_format(format)->block_columns == 1;
    case KERN_OP_NORM:
    case KERN_OP_SQUARES:
    case KERN_OP_ROPE_TABLE:
    case KERN_OP_ROPE:
    case KERN_OP_GATE:
    case KERN_OP_ROW_GATE:
    case KERN_OP_COLUMN_SCALE:
    case KERN_OP_SUM:
    case KERN_OP_TOPK:
    case KERN_OP_SAMPLE:
    case KERN_OP_LSE:
    case KERN_OP_ROUTE:
    case KERN_OP_EXPERTS_BIAS:
        return true;
    default:
        return false;
    }
}

size_t cpu_attention_scratch_bytes(int n_heads, int head_dim, int n_tokens, int n_threads) {
    (void)n_heads, (void)head_dim, (void)n_tokens, (void)n_threads; /* a tile's state lives on the thread's stack: 65 KiB at most */
    return 0;
}
