#include "runtime/device.h"

#include <stdio.h>

#include "base/log.h"
#include "kernels/gpu.h"

/* What a step asks of a backend; false: nothing, the executor does it itself. */
static bool op_of(enum part_op step, enum kern_op *op)
{
    static const int ops[] = {
        [PART_EMBED] = KERN_OP_EMBED,           [PART_ROPE_TABLE] = KERN_OP_ROPE_TABLE, [PART_NORM] = KERN_OP_NORM,
        [PART_SQUARES] = KERN_OP_SQUARES,       [PART_LINEAR] = KERN_OP_MATMUL,         [PART_ROPE] = KERN_OP_ROPE,
        [PART_ATTENTION] = KERN_OP_ATTENTION,   [PART_GATE] = KERN_OP_GATE,             [PART_ROUTE] = KERN_OP_ROUTE,
        [PART_EXPERTS_IN] = KERN_OP_EXPERTS_IN, [PART_EXPERTS_OUT] = KERN_OP_EXPERTS_OUT, [PART_EXPERTS_BIAS] = KERN_OP_EXPERTS_BIAS,
        [PART_EXCHANGE] = KERN_OP_COUNT,        [PART_SUM] = KERN_OP_SUM,               [PART_SELECT] = KERN_OP_COUNT,
        [PART_PICK] = KERN_OP_COUNT,            [PART_SAMPLE] = KERN_OP_SAMPLE,         [PART_SCORE] = KERN_OP_LSE,
        [PART_ROW_GATE] = KERN_OP_ROW_GATE,     [PART_COLUMN_SCALE] = KERN_OP_COLUMN_SCALE,
    };
    *op = (enum kern_op)ops[step];
    return *op != KERN_OP_COUNT;
}

static bool is_weight(enum part_op op) { return op == PART_EMBED || op == PART_LINEAR || op == PART_EXPERTS_IN || op == PART_EXPERTS_OUT; }

/* backend NULL: has nothing. Says in text what of the step is not there. */
static bool lacks(const struct kern_backend *b, const struct part_model *m, const struct part_step *s, const struct rt_settings *t, char *text, size_t bytes)
{
    enum kern_op op;
    if (!op_of(s->op, &op))
        return false;
    if (!is_weight(s->op)) {
        const bool has_cache = s->op == PART_ATTENTION;
        snprintf(text, bytes, has_cache ? "%s of heads of %d with a cache in %s" : "%s", kern_op_name(op), m->config.head_dim, kern_format(t->kv_format)->name);
        return !b || !b->supports(op, t->kv_format, KERN_ACT_F32, m->config.head_dim);
    }
    for (int k = 0; k < (s->op == PART_EMBED ? 1 : s->n_parts); k++) {
        const struct part_weight *w = &m->weights[s->weight[k]];
        const enum format f = w->scheme->format;
        const bool accurate = t->accurate || w->exact;
        const enum kern_activation a = b && b->activation ? b->activation(f, accurate) : kern_activation_for(f, accurate);
        snprintf(text, bytes, "%s of %s%s", kern_op_name(op), kern_format(f)->name, accurate && s->op != PART_EMBED ? " with activations in F32" : "");
        if (!b || !b->supports(op, f, a, 0) || (w->scheme->group_of && b->activation))
            return true;
    }
    return false;
}

static bool first_missing(const struct kern_backend *b, const struct part_model *m, const struct rt_settings *t, char *text, size_t bytes)
{
    const struct part_program *const programs[] = {&m->main, &m->head};
    for (int p = 0; p < 2; p++)
        for (int i = 0; i < programs[p]->n_steps; i++)
            if (lacks(b, m, &programs[p]->steps[i], t, text, bytes))
                return true;
    return false;
}

enum st rt_device_check(const struct kern_backend *backend, const struct part_model *m, const struct rt_settings *settings, struct err *e)
{
    char missing[128];
    if (!first_missing(backend, m, settings, missing, sizeof missing))
        return ST_OK;
    return err_set(e, ST_UNSUPPORTED, "kernel backend %s/%s has no %s, which %s wants", backend->name, backend->variant, missing, m->config.name);
}

enum st rt_device_choose(enum rt_device wanted, const struct part_model *m, struct rt_settings *settings, struct err *e)
{
    char gpu[128], missing[128];
    settings->device = wanted == RT_DEVICE_SIMT ? "simt" : NULL;
    if (wanted == RT_DEVICE_CPU || wanted == RT_DEVICE_SIMT)
        return ST_OK;
    const bool is_there = kern_gpu_find(gpu, sizeof gpu);
    if (!is_there)
        return wanted == RT_DEVICE_AUTO ? ST_OK : err_set(e, ST_UNSUPPORTED, "--device cuda: there is no GPU here, or no driver for it");
    /* kernels/cuda is no backend of its own yet: of a program that is to stay on a GPU it has no step */
    if (!first_missing(NULL, m, settings, missing, sizeof missing))
        return ST_OK;
    if (wanted == RT_DEVICE_CUDA)
        return err_set(e, ST_UNSUPPORTED, "--device cuda: the backend has no %s yet, the first step of %s", missing, m->config.name);
    LOG_WARNING("device", "%s is not used: its backend has no %s yet, the first step of %s; running on the CPU", gpu, missing, m->config.name);
    return ST_OK;
}
