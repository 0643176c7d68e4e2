/* Other schemes and homes for two weights of the unsharded model; everything after it (cut, budget, digest, loader) follows from these. */
#include "partition/smaller.h"

#include "base/log.h"
#include "partition/plan.h"

#define FP8_COLUMNS 128 /* that FMT_FP8 shares a scale among */

const char *const part_embedding_names[] = {[PART_EMBEDDING_STORED] = "stored", [PART_EMBEDDING_FP8] = "fp8", [PART_EMBEDDING_DISK] = "disk", NULL};

static enum st round_to_fp8(struct part_model *m, int32_t i, const char *option, struct err *e)
{
    struct part_weight *w = &m->weights[i];
    const struct quant_source *stored = &w->scheme->sources[0];
    if (stored->role == QUANT_NUMBERS)
        return ST_OK;
    const struct format_info *format = kern_format(w->scheme->format);
    if (stored->role != QUANT_BLOCKS || format->block_columns > 1) {
        LOG_WARNING_ONCE("part", "%s is stored as %s already: %s fp8 changes nothing", w->name, w->scheme->name ? w->scheme->name : format->name, option);
        return ST_OK;
    }
    struct quant_scheme *s = base_arena_alloc(&m->arena, sizeof *s);
    if (!s)
        return err_set(e, ST_NO_MEMORY, "no memory for the scheme of %s", w->name);
    *s = *w->scheme;
    s->name = "plain numbers, rounded to FP8";
    s->format = FMT_FP8;
    s->scale_columns = FP8_COLUMNS;
    s->sources[0].role = QUANT_NUMBERS;
    w->scheme = s;
    return ST_OK;
}

enum st part_model_make_smaller(struct part_model *m, const struct part_smaller *s, struct err *e)
{
    const int32_t table = part_embedding_weight(m), head = part_head_weight(m);
    enum st st = ST_OK;
    if (s->embedding == PART_EMBEDDING_DISK && table != PART_NONE) {
        struct part_weight *w = &m->weights[table];
        if (w->scheme->sources[0].role != QUANT_BLOCKS)
            return err_set(e, ST_UNSUPPORTED, "%s is stored as %s: --embedding disk is for one tensor of numbers or blocks", w->name, w->scheme->name);
        w->home = table == head ? PART_IN_BOTH : PART_ON_DISK;
        if (table == head)
            LOG_WARNING_ONCE("part", "%s is the head too, which stays in memory: --embedding disk saves none", w->name);
    }
    if (s->embedding == PART_EMBEDDING_FP8 && table != PART_NONE)
        st = round_to_fp8(m, table, "--embedding", e);
    if (!st && s->head_fp8 && head != PART_NONE)
        st = round_to_fp8(m, head, "--head", e);
    if (!st && table == head && table != PART_NONE && m->weights[table].scheme->sources[0].role == QUANT_NUMBERS && s->embedding != PART_EMBEDDING_DISK)
        LOG_WARNING_ONCE("part", "%s is head and embedding: both are rounded (--embedding disk reads the embedding's rows as they are stored)", m->weights[table].name);
    return st;
}
