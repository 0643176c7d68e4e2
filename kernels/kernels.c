/* The table of backends, and the few pieces of arithmetic that every backend shares. */
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/plugin.h"
#include "base/math.h"
#include "kernels/ref/ref.h"
#include "kernels/tree.h"

static const char *const op_names[KERN_OP_COUNT] = {
    [KERN_OP_MATMUL] = "matmul", [KERN_OP_EMBED] = "embed", [KERN_OP_KV_APPEND] = "kv-append", [KERN_OP_ATTENTION] = "attention",
    [KERN_OP_NORM] = "norm",     [KERN_OP_ROPE_TABLE] = "rope-table", [KERN_OP_ROPE] = "rope", [KERN_OP_GATE] = "gate",
    [KERN_OP_SUM] = "sum",       [KERN_OP_TOPK] = "top-k", [KERN_OP_SAMPLE] = "sample",        [KERN_OP_LSE] = "log-sum-exp",
    [KERN_OP_ROUTE] = "route",   [KERN_OP_EXPERTS_IN] = "experts-in", [KERN_OP_EXPERTS_OUT] = "experts-out", [KERN_OP_EXPERTS_BIAS] = "experts-bias", [KERN_OP_SQUARES] = "squares", [KERN_OP_ROW_GATE] = "row-gate",
    [KERN_OP_COLUMN_SCALE] = "column-scale",
};

const char *kern_op_name(enum kern_op op) { return op >= 0 && op < KERN_OP_COUNT ? op_names[op] : "?"; }

/* ---- choosing a backend -------------------------------------------------------------------------------------------------------------------------- */

/* By falling priority. */
static const struct kern_backend *const backends[] = {
#if defined(__x86_64__)
    &kern_cpu_avx512_vnni, &kern_cpu_avx2,
#endif
    &kern_cpu_portable, &kern_ref, NULL};

const struct kern_backend *const *kern_backends(void) { return backends; }

/* "cpu" or "cpu/avx2" */
static bool name_matches(const char *name, const struct kern_backend *b) {
    size_t n = strlen(b->name);
    return strncmp(name, b->name, n) == 0 && (name[n] == 0 || (name[n] == '/' && strcmp(name + n + 1, b->variant) == 0));
}

static enum st not_found(const char *name, bool built_in, struct err *e) {
    char known[256];
    size_t used = 0;
    known[0] = 0;
    for (int i = 0; backends[i]; i++) {
        if (!backends[i]->probe())
            continue;
        int n = snprintf(known + used, sizeof known - used, "%s%s/%s", used ? ", " : "", backends[i]->name, backends[i]->variant);
        if (n < 0 || (size_t)n >= sizeof known - used)
            break;
        used += (size_t)n;
    }
    if (built_in)
        return err_set(e, ST_NOT_FOUND, "kernels '%.64s' cannot run on this processor; those that can: %s", name, known);
    return err_set(e, ST_NOT_FOUND, "no kernels are called '%.64s'; this machine has: %s", name, known);
}

enum st kern_select(const char *name, const struct kern_backend **backend, struct err *e) {
    if (!name)
        name = getenv("TANDEM_KERNELS");
    if (name && !*name)
        name = NULL;
    if (name && strcmp(name, "simt") == 0)
        return kern_plugin_open(name, backend, e);
    const struct kern_backend *best = NULL;
    bool built_in = false;
    for (int i = 0; backends[i]; i++) {
        if (name && !name_matches(name, backends[i]))
            continue;
        built_in = true;
        if (backends[i]->probe() && (!best || backends[i]->priority > best->priority))
            best = backends[i];
    }
    if (!best)
        return not_found(name ? name : "", built_in, e);
    *backend = best;
    return ST_OK;
}

enum kern_activation kern_activation_for(enum format format, bool accurate) {
    const struct format_info *info = kern_format(format);
    if (accurate || (!info->quantised && format != FMT_FP8))
        return KERN_ACT_F32;
    return info->scale_columns == 16 ? KERN_ACT_INT8_16 : KERN_ACT_INT8;
}

/* ---- shared by all ------------------------------------------------------------------------------------------------------------------------------- */

size_t kern_kv_block_bytes(enum format format, int n_kv_heads, int head_dim) {
    return 2 * (size_t)n_kv_heads * (size_t)head_dim * KERN_KV_BLOCK * kern_format(format)->block_bytes;
}

/* (max, sum) of node [a, b): both children rescaled to the larger maximum. An empty slice is (−inf, 0). */
static void lse_node(const float *max, const float *sum, uint32_t a, uint32_t b, double *node_max, double *node_sum) {
    if (b - a == 1) {
        *node_max = max[a];
        *node_sum = sum[a];
        return;
    }
    uint32_t m = kern_tree_split(a, b);
    double left_max, left_sum, right_max, right_sum;
    lse_node(max, sum, a, m, &left_max, &left_sum);
    lse_node(max, sum, m, b, &right_max, &right_sum);
    double larger = left_max > right_max ? left_max : right_max;
    *node_max = larger;
    *node_sum = larger == -INFINITY ? 0 : left_sum * base_math_exp(left_max - larger) + right_sum * base_math_exp(right_max - larger);
}

double kern_lse_merge(const float *max, const float *sum, int n_slices) {
    if (n_slices <= 0)
        return -INFINITY;
    double node_max, node_sum;
    lse_node(max, sum, 0, (uint32_t)n_slices, &node_max, &node_sum);
    return node_max + base_math_log(node_sum);
}
