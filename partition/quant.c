/* The tensors beside a module's codes → its scheme. What the configuration says lies in quant_config.c. */
#include "partition/quant.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "partition/quant_priv.h"

#define FP8_BLOCK 128 /* always, whatever rows ÷ rows of scales says: the last block is partial */
#define MX_GROUP 32

/* ---- names ---------------------------------------------------------------------------------------------------------------------------------------- */

static const char *const code_suffixes[] = {".weight", ".weight_packed", ".qweight", "_blocks"};
enum { N_CODE_SUFFIXES = sizeof code_suffixes / sizeof *code_suffixes, GPTQ_SUFFIX = 2, GPT_OSS_SUFFIX };

const struct ck_tensor *quant_codes(const struct checkpoint *ck, const char *module)
{
    char full[CK_MAX_MODULE + 32];
    for (int i = 0; i < N_CODE_SUFFIXES; i++) {
        snprintf(full, sizeof full, "%s%s", module, code_suffixes[i]);
        const struct ck_tensor *t = ck_find(ck, full);
        if (t)
            return t;
    }
    return ck_find(ck, module);
}

/* Bytes of the module's name at the beginning of its codes' name. */
static size_t module_bytes(const struct ck_tensor *codes, int *i_suffix)
{
    const size_t n = strlen(codes->name);
    for (int i = 0; i < N_CODE_SUFFIXES; i++) {
        const size_t n_suffix = strlen(code_suffixes[i]);
        if (n > n_suffix && strcmp(codes->name + n - n_suffix, code_suffixes[i]) == 0) {
            *i_suffix = i;
            return n - n_suffix;
        }
    }
    *i_suffix = 0;
    return n;
}

/* What may stand beside codes. */
struct parts {
    const struct ck_tensor *weight, *weight_packed, *qweight, *weight_scale, *weight_scale_2, *weight_global_scale, *weight_scale_inv, *scale, *weight_zero_point, *scales, *qzeros,
        *g_idx, *weight_g_idx;
};

static const struct {
    const char *name;
    size_t offset;
} part_names[] = {
    {"weight", offsetof(struct parts, weight)},
    {"weight_packed", offsetof(struct parts, weight_packed)},
    {"qweight", offsetof(struct parts, qweight)},
    {"weight_scale", offsetof(struct parts, weight_scale)},
    {"weight_scale_2", offsetof(struct parts, weight_scale_2)},
    {"weight_global_scale", offsetof(struct parts, weight_global_scale)},
    {"weight_scale_inv", offsetof(struct parts, weight_scale_inv)},
    {"scale", offsetof(struct parts, scale)},
    {"weight_zero_point", offsetof(struct parts, weight_zero_point)},
    {"scales", offsetof(struct parts, scales)},
    {"qzeros", offsetof(struct parts, qzeros)},
    {"g_idx", offsetof(struct parts, g_idx)},
    {"weight_g_idx", offsetof(struct parts, weight_g_idx)},
};

static const char *const names_beside[] = {"weight_shape",      "input_scale", "input_global_scale", "input_zero_point", "input_scale_ub", "output_scale",
                                           "output_zero_point", "q_scale",     "k_scale",            "v_scale",          "kv_scale",       "g_idx",
                                           "weight_g_idx",      "pre_quant_scale"};

static bool among(const char *const *names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

bool quant_is_beside(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && among(names_beside, sizeof names_beside / sizeof *names_beside, dot + 1);
}

struct finding {
    const struct checkpoint *ck;
    const struct ck_tensor *codes;
    int module_bytes;
    const char *module; /* not terminated */
    struct parts parts;
    uint64_t rows, columns;
    const struct quant *q;
    struct quant_scheme *s;
    struct arena *arena;
    struct err *e;
};

#define REFUSE(f, st, ...) (err_set((f)->e, st, __VA_ARGS__), err_prefix((f)->e, st, "%s", ck_path((f)->ck)))

/* Names with the module's prefix stand together, for the table is sorted. */
static enum st find_parts(struct finding *f)
{
    const size_t n = ck_n_tensors(f->ck), n_module = (size_t)f->module_bytes;
    size_t i = (size_t)(f->codes - ck_tensor_at(f->ck, 0));
    while (i > 0 && strncmp(ck_tensor_at(f->ck, i - 1)->name, f->module, n_module) == 0 && ck_tensor_at(f->ck, i - 1)->name[n_module] == '.')
        i--;
    for (; i < n; i++) {
        const struct ck_tensor *t = ck_tensor_at(f->ck, i);
        if (strncmp(t->name, f->module, n_module) != 0 || t->name[n_module] != '.')
            break;
        const char *rest = t->name + n_module + 1;
        bool known = strcmp(rest, "bias") == 0 || among(names_beside, sizeof names_beside / sizeof *names_beside, rest);
        for (size_t k = 0; k < sizeof part_names / sizeof *part_names; k++)
            if (strcmp(part_names[k].name, rest) == 0) {
                memcpy((char *)&f->parts + part_names[k].offset, &t, sizeof t);
                known = true;
            }
        if (strcmp(rest, "pre_quant_scale") == 0)
            f->s->input_scale = t;
        if (!known)
            return REFUSE(f, ST_UNSUPPORTED, "tensor %.200s: no known scheme has a tensor '%.64s' beside quantised weights", t->name, rest);
    }
    return ST_OK;
}

/* ---- checks ---------------------------------------------------------------------------------------------------------------------------------------- */

static const char *type_of(const struct ck_tensor *t) { return t->unsupported ? t->unsupported : kern_format(t->format)->name; }

static void print_shape(const struct ck_tensor *t, char text[128])
{
    size_t used = (size_t)snprintf(text, 128, "[");
    for (int d = 0; d < t->n_dims; d++)
        used += (size_t)snprintf(text + used, 128 - used, "%s%" PRIu64, d ? ", " : "", t->dims[d]);
    snprintf(text + used, 128 - used, "]");
}

static enum st wrong_shape(const struct finding *f, const struct ck_tensor *t, const char *wanted)
{
    char have[128];
    print_shape(t, have);
    return REFUSE(f, ST_INVALID, "tensor %.200s has shape %s, a matrix [%" PRIu64 ", %" PRIu64 "] asks for %s", t->name, have, f->rows, f->columns, wanted);
}

static enum st want_shape(const struct finding *f, const struct ck_tensor *t, uint64_t rows, uint64_t columns)
{
    if (t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == columns)
        return ST_OK;
    char wanted[64];
    snprintf(wanted, sizeof wanted, "[%" PRIu64 ", %" PRIu64 "]", rows, columns);
    return wrong_shape(f, t, wanted);
}

static enum st wrong_type(const struct finding *f, const struct ck_tensor *t, const char *wanted)
{
    return REFUSE(f, ST_INVALID, "tensor %.200s is %s where %s is expected", t->name, type_of(t), wanted);
}

static enum st missing(const struct finding *f, const char *wanted)
{
    return REFUSE(f, ST_INVALID, "tensor %.*s.%s is missing beside %.200s", f->module_bytes, f->module, wanted, f->codes->name);
}

static enum st both(const struct finding *f, const struct ck_tensor *a, const struct ck_tensor *b)
{
    return REFUSE(f, ST_INVALID, "tensors %.200s and %.200s: two conventions at once", a->name, b->name);
}

/* Of these n, which may be NULL, none but the one that is used is there. */
static enum st refuse_extra(const struct finding *f, const struct ck_tensor *used, const struct ck_tensor *const *others, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (others[i] && others[i] != used)
            return both(f, used, others[i]);
    return ST_OK;
}

static bool is_float(const struct ck_tensor *t) { return !t->unsupported && kern_format(t->format)->block_columns == 1; }

static bool is_single(const struct ck_tensor *t) { return ck_n_elements(t) == 1; }

static uint64_t up(uint64_t n, uint64_t unit) { return n / unit + (n % unit != 0); }

static struct quant_source *add_source(struct finding *f, const struct ck_tensor *t, enum quant_role role, uint64_t row_unit, uint64_t column_unit, uint32_t element_bytes)
{
    struct quant_source *s = &f->s->sources[f->s->n_sources++];
    *s = (struct quant_source){.tensor = t, .role = role, .row_unit = row_unit, .column_unit = column_unit, .element_bytes = element_bytes, .bits = (uint8_t)(8 * element_bytes)};
    return s;
}

static enum st add_tensor_scale(struct finding *f, const struct ck_tensor *t)
{
    if (t->unsupported || t->format != FMT_F32)
        return wrong_type(f, t, "F32");
    if (ck_n_elements(t) != quant_view_planes(&f->s->view))
        return wrong_shape(f, t, f->s->view.n_planes ? "one number a plane" : "one number");
    add_source(f, t, QUANT_TENSOR_SCALE, f->rows, f->columns, sizeof(float));
    return ST_OK;
}

/* Groups of columns: so many numbers a row, of a length that divides the row. group is that length. */
static enum st group_of(const struct finding *f, const struct ck_tensor *t, uint64_t n_groups, uint64_t *group)
{
    if (n_groups == 0 || f->columns % n_groups)
        return REFUSE(f, ST_INVALID, "tensor %.200s: %" PRIu64 " scales a row do not divide %" PRIu64 " columns evenly", t->name, n_groups, f->columns);
    *group = f->columns / n_groups;
    if (n_groups > 1 && *group % 32)
        return REFUSE(f, ST_UNSUPPORTED, "tensor %.200s: groups of %" PRIu64 " columns are not supported: multiples of 32 are", t->name, *group);
    const uint64_t shared = n_groups == 1 || *group % 128 == 0 ? 128 : *group % 64 == 0 ? 64 : 32;
    f->s->scale_columns = (uint32_t)shared;
    return ST_OK;
}

/* F32, F16 or BF16 scales [rows, groups], [rows, 1], [rows] or one for all. */
static enum st add_scales(struct finding *f, const struct ck_tensor *t)
{
    if (!is_float(t))
        return wrong_type(f, t, "F32, BF16 or F16");
    const uint32_t bytes = kern_format(t->format)->block_bytes;
    f->s->scale_columns = 128;
    if (is_single(t)) {
        add_source(f, t, QUANT_SCALES, f->rows, f->columns, bytes);
        return ST_OK;
    }
    uint64_t group = f->columns;
    if (t->n_dims < 1 || t->n_dims > 2 || t->dims[0] != f->rows)
        return wrong_shape(f, t, "one number, or numbers for each row");
    if (t->n_dims == 2) {
        const enum st st = group_of(f, t, t->dims[1], &group);
        if (st)
            return st;
    }
    add_source(f, t, QUANT_SCALES, 1, group, bytes);
    return ST_OK;
}

/* Which group each column belongs to, for codes with scales (and zero points) that have been found already. Nothing is kept of an order that is the usual one. */
static enum st read_order(struct finding *f, const struct ck_tensor *t)
{
    if (!t)
        return ST_OK;
    if (t->raw != CK_RAW_I32)
        return wrong_type(f, t, "I32");
    if (t->n_dims != 1 || t->dims[0] != f->columns)
        return wrong_shape(f, t, "one number for each column");
    const uint64_t group = f->s->sources[1].column_unit, n_groups = up(f->columns, group), n_bytes = f->columns * sizeof(int32_t);
    void *bytes;
    enum st st = ck_read_bytes(f->ck, t, n_bytes, &bytes, f->e);
    if (st)
        return st;
    int32_t *of = base_arena_array(f->arena, f->columns, sizeof *of);
    if (!of)
        st = REFUSE(f, ST_NO_MEMORY, "no memory for the order of columns of %.200s", t->name);
    else
        memcpy(of, bytes, n_bytes);
    free(bytes);
    bool usual = true;
    for (uint64_t i = 0; i < f->columns && !st; i++) {
        usual = usual && (uint64_t)of[i] == i / group;
        if (of[i] < 0 || (uint64_t)of[i] >= n_groups)
            st = REFUSE(f, ST_INVALID, "tensor %.200s: column %" PRIu64 " is of group %d, and there are %" PRIu64, t->name, i, of[i], n_groups);
    }
    if (st || usual)
        return st;
    f->s->group_of = of;
    f->s->group_tensor = t;
    f->s->group_hash = base_hash64(of, n_bytes, 0);
    for (uint32_t k = 1; k < f->s->n_sources; k++) /* any column may be of any group */
        f->s->sources[k].all_columns = true;
    return ST_OK;
}

/* ---- FP4 --------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st fp4_codes(struct finding *f, uint64_t group)
{
    if (f->columns % group)
        return REFUSE(f, ST_INVALID, "tensor %.200s: %" PRIu64 " columns are no multiple of the group of %" PRIu64, f->codes->name, f->columns, group);
    const enum st st = want_shape(f, f->codes, f->rows, f->columns / 2);
    if (!st)
        add_source(f, f->codes, QUANT_CODES, 1, 2, 1)->bits = 4;
    return st;
}

static enum st nvfp4(struct finding *f)
{
    const struct parts *p = &f->parts;
    const struct ck_tensor *tensor_scale = p->weight_scale_2 ? p->weight_scale_2 : p->weight_global_scale;
    if (p->weight_scale_2 && p->weight_global_scale)
        return both(f, p->weight_scale_2, p->weight_global_scale);
    if (!tensor_scale)
        return missing(f, p->weight_packed ? "weight_global_scale" : "weight_scale_2");
    f->s->format = FMT_NVFP4;
    f->s->name = p->weight_packed ? "NVFP4 of compressed-tensors" : "NVFP4 of ModelOpt";
    f->s->divides = tensor_scale == p->weight_global_scale;
    /* W4A8_NVFP4_FP8 has a scale for two blocks of ours. */
    const bool pairs = p->weight_scale->n_dims == 2 && f->columns % 32 == 0 && p->weight_scale->dims[1] == f->columns / 32;
    const uint64_t group = pairs ? 32 : 16;
    enum st st = fp4_codes(f, group);
    if (!st)
        st = want_shape(f, p->weight_scale, f->rows, f->columns / group);
    if (st)
        return st;
    add_source(f, p->weight_scale, QUANT_SCALES, 1, group, 1);
    return add_tensor_scale(f, tensor_scale);
}

static enum st mxfp4(struct finding *f)
{
    const struct parts *p = &f->parts;
    f->s->format = FMT_MXFP4;
    const struct ck_tensor *scale = p->weight_scale ? p->weight_scale : p->scale;
    f->s->name = p->weight_packed ? "MXFP4 of compressed-tensors" : p->weight_scale ? "MXFP4 of ModelOpt" : "MXFP4 of DeepSeek";
    enum st st = refuse_extra(f, scale, (const struct ck_tensor *const[]){p->weight_scale_2, p->weight_global_scale}, 2);
    if (!st)
        st = fp4_codes(f, 32);
    if (!st)
        st = want_shape(f, scale, f->rows, f->columns / 32);
    if (!st)
        add_source(f, scale, QUANT_SCALES, 1, 32, 1);
    return st;
}

/* GPT-OSS's experts: MODULE_blocks U8 [planes, rows, columns / 32, 16], MODULE_scales U8 [planes, rows, columns / 32]. */
static enum st gpt_oss(struct finding *f)
{
    const struct quant_view *v = &f->s->view;
    char full[CK_MAX_MODULE + 32];
    snprintf(full, sizeof full, "%.*s_scales", f->module_bytes, f->module);
    const struct ck_tensor *c = f->codes, *scale = ck_find(f->ck, full);
    if (!scale)
        return REFUSE(f, ST_INVALID, "tensor %.200s is missing beside %.200s", full, c->name);
    if (c->raw != CK_RAW_U8)
        return wrong_type(f, c, "U8");
    if (scale->raw != CK_RAW_U8 && scale->raw != CK_RAW_F8_E8M0)
        return wrong_type(f, scale, "U8 or F8_E8M0");
    if (f->columns % 32)
        return REFUSE(f, ST_INVALID, "tensor %.200s: %" PRIu64 " columns are no multiple of the group of 32", c->name, f->columns);
    const uint64_t want[] = {quant_view_planes(v), f->rows * quant_view_step(v), f->columns / 32, 16};
    if (c->n_dims != 4 || memcmp(c->dims, want, sizeof want) != 0)
        return wrong_shape(f, c, "[experts, rows, columns / 32, 16]");
    if (scale->n_dims != 3 || memcmp(scale->dims, want, 3 * sizeof *want) != 0)
        return wrong_shape(f, scale, "[experts, rows, columns / 32]");
    f->s->format = FMT_MXFP4;
    f->s->name = "MXFP4 of GPT-OSS";
    add_source(f, c, QUANT_CODES, 1, 2, 1)->bits = 4;
    add_source(f, scale, QUANT_SCALES, 1, 32, 1);
    return ST_OK;
}

static enum st modelopt_int4(struct finding *f);

/* Pairs in bytes: E2M1, but ModelOpt's INT4 as well. The scales' type tells. */
static enum st pairs(struct finding *f)
{
    const struct ck_tensor *scale = f->parts.weight_scale;
    if (!scale)
        return missing(f, "weight_scale");
    const enum st st = refuse_extra(f, scale, (const struct ck_tensor *const[]){f->parts.weight_scale_inv, f->parts.scale, f->parts.scales, f->parts.weight_zero_point}, 4);
    if (st)
        return st;
    if (scale->raw == CK_RAW_F8_E4M3)
        return nvfp4(f);
    if (scale->raw == CK_RAW_U8 || scale->raw == CK_RAW_F8_E8M0)
        return mxfp4(f);
    return is_float(scale) ? modelopt_int4(f) : wrong_type(f, scale, "F8_E4M3 (NVFP4), U8 or F8_E8M0 (MXFP4), or F32, BF16 or F16 (INT4)");
}

/* ---- FP8 --------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st fp8(struct finding *f)
{
    const struct parts *p = &f->parts;
    const struct ck_tensor *const all[] = {p->weight_scale_inv, p->scale, p->weight_scale};
    const struct ck_tensor *scale = all[0] ? all[0] : all[1] ? all[1] : all[2];
    if (!scale)
        return missing(f, "weight_scale_inv (or scale, or weight_scale)");
    enum st st = refuse_extra(f, scale, all, 3);
    if (!st)
        st = refuse_extra(f, scale, (const struct ck_tensor *const[]){p->weight_scale_2, p->weight_global_scale, p->scales, p->weight_zero_point}, 4);
    if (!st)
        st = want_shape(f, f->codes, f->rows, f->columns);
    if (st)
        return st;
    f->s->format = FMT_FP8;
    add_source(f, f->codes, QUANT_CODES, 1, 1, 1);
    const uint64_t n_down = up(f->rows, FP8_BLOCK), n_across = up(f->columns, FP8_BLOCK);
    const bool blocks = (scale->n_dims == 2 && scale->dims[0] == n_down && scale->dims[1] == n_across) || /* ModelOpt keeps the places of the two 128s: */
                        (scale->n_dims == 4 && scale->dims[0] == n_down && scale->dims[1] == 1 && scale->dims[2] == n_across && scale->dims[3] == 1);
    f->s->scale_columns = FP8_BLOCK;
    if (scale != p->weight_scale || (blocks && !is_single(scale))) {
        if (!blocks)
            return want_shape(f, scale, n_down, n_across);
        if (!is_float(scale) && scale->raw != CK_RAW_F8_E8M0)
            return wrong_type(f, scale, "F32, BF16, F16 or F8_E8M0");
        f->s->name = "FP8 in blocks of 128 × 128";
        add_source(f, scale, QUANT_SCALES, FP8_BLOCK, FP8_BLOCK, scale->raw == CK_RAW_F8_E8M0 ? 1 : kern_format(scale->format)->block_bytes);
        return ST_OK;
    }
    if (scale->raw == CK_RAW_U8 || scale->raw == CK_RAW_F8_E8M0) {
        if (f->columns % MX_GROUP)
            return REFUSE(f, ST_INVALID, "tensor %.200s: %" PRIu64 " columns are no multiple of the group of %d", f->codes->name, f->columns, MX_GROUP);
        f->s->name = "MXFP8";
        f->s->scale_columns = MX_GROUP;
        add_source(f, scale, QUANT_SCALES, 1, MX_GROUP, 1);
        return want_shape(f, scale, f->rows, f->columns / MX_GROUP);
    }
    st = add_scales(f, scale);
    const struct quant_source *added = &f->s->sources[1];
    if (!st)
        f->s->name = added->row_unit != 1 ? "FP8 with one scale" : added->column_unit == f->columns ? "FP8 with a scale for each row" : "FP8 with scales for groups of columns";
    return st;
}

/* ---- INT4 and INT8 ------------------------------------------------------------------------------------------------------------------------------------ */

static enum format int_format(unsigned bits, bool zero) { return bits == 4 ? (zero ? FMT_INT4_ZERO : FMT_INT4) : zero ? FMT_INT8_ZERO : FMT_INT8; }

/* I8 zero points beside scales that have been found. */
static enum st unpacked_zeros(struct finding *f)
{
    const struct ck_tensor *zero = f->parts.weight_zero_point;
    const struct quant_source *scales = &f->s->sources[1];
    if (zero->bytes != up(f->rows, scales->row_unit) * up(f->columns, scales->column_unit))
        return wrong_shape(f, zero, "as many numbers as there are scales");
    add_source(f, zero, QUANT_ZEROS, scales->row_unit, scales->column_unit, 1)->is_signed = true;
    return ST_OK;
}

/* compressed-tensors' int-quantized: I8 [out, in], whatever the number of bits; and others that write I8. */
static enum st int8(struct finding *f)
{
    const struct parts *p = &f->parts;
    if (!p->weight_scale)
        return missing(f, "weight_scale");
    enum st st = refuse_extra(f, p->weight_scale, (const struct ck_tensor *const[]){p->weight_scale_2, p->weight_global_scale, p->weight_scale_inv, p->scale, p->scales}, 5);
    if (!st)
        st = want_shape(f, f->codes, f->rows, f->columns);
    if (st)
        return st;
    f->s->format = int_format(8, p->weight_zero_point != NULL);
    f->s->name = p->weight_zero_point ? "INT8 with zero points" : "INT8";
    add_source(f, f->codes, QUANT_CODES, 1, 1, 1)->is_signed = true;
    st = add_scales(f, p->weight_scale);
    if (st || !p->weight_zero_point)
        return st;
    return p->weight_zero_point->raw == CK_RAW_I8 ? unpacked_zeros(f) : wrong_type(f, p->weight_zero_point, "I8");
}

/* ModelOpt's: U8 [out / 2, in], of two rows each, the even one in the low nibble, as two's complement. */
static enum st modelopt_int4(struct finding *f)
{
    const struct parts *p = &f->parts;
    enum st st = refuse_extra(f, p->weight_scale, (const struct ck_tensor *const[]){p->weight_scale_2, p->weight_global_scale}, 2);
    if (f->rows % 2 && !st)
        st = REFUSE(f, ST_INVALID, "tensor %.200s: bytes of two rows do not divide %" PRIu64 " rows", f->codes->name, f->rows);
    if (!st)
        st = want_shape(f, f->codes, f->rows / 2, f->columns);
    if (st)
        return st;
    f->s->format = int_format(4, false);
    f->s->name = "INT4 of ModelOpt";
    struct quant_source *codes = add_source(f, f->codes, QUANT_CODES, 2, 1, 1);
    codes->bits = 4;
    codes->along_rows = codes->is_signed = true;
    return add_scales(f, p->weight_scale);
}

/* Bits of a number from the words that n of them take, without gaps; 0: none of 1 to 8. Those that are supported first: a few numbers take one word whatever their bits. */
static unsigned bits_of(uint64_t n_numbers, uint64_t n_words)
{
    static const unsigned all[] = {4, 8, 1, 2, 3, 5, 6, 7};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (n_words == up(n_numbers * all[i], 32))
            return all[i];
    return 0;
}

static enum st check_bits(const struct finding *f, unsigned bits, const char *wanted)
{
    if (bits == 0)
        return wrong_shape(f, f->codes, wanted);
    if (bits != 4 && bits != 8)
        return REFUSE(f, ST_UNSUPPORTED, "tensor %.200s: packed numbers of %u bits are not supported: 4 and 8 are", f->codes->name, bits);
    return ST_OK;
}

/* Beside scales that have been found: packed along out, or one I8 for each scale. */
static enum st packed_zeros(struct finding *f, unsigned bits)
{
    const struct ck_tensor *zero = f->parts.weight_zero_point;
    const struct quant_source *scales = &f->s->sources[1];
    if (zero->raw == CK_RAW_I8) /* one for all is not packed; more that are not are read too */
        return unpacked_zeros(f);
    if (zero->raw != CK_RAW_I32)
        return wrong_type(f, zero, "I32 or I8");
    if (scales->row_unit != 1)
        return wrong_type(f, zero, "one I8");
    const enum st st = want_shape(f, zero, up(f->rows * bits, 32), up(f->columns, scales->column_unit));
    if (st)
        return st;
    struct quant_source *s = add_source(f, zero, QUANT_ZEROS, 32 / bits, scales->column_unit, sizeof(int32_t));
    s->bits = (uint8_t)bits;
    s->along_rows = true;
    return ST_OK;
}

/* compressed-tensors' pack-quantized: I32 [out, in · bits / 32], zero points packed along out, or I8. */
static enum st packed(struct finding *f)
{
    const struct parts *p = &f->parts;
    if (!p->weight_scale)
        return missing(f, "weight_scale");
    enum st st = refuse_extra(f, p->weight_scale, (const struct ck_tensor *const[]){p->weight_scale_2, p->weight_global_scale, p->weight_scale_inv, p->scale, p->scales}, 5);
    if (st)
        return st;
    const unsigned bits = f->codes->n_dims == 2 && f->codes->dims[0] == f->rows ? bits_of(f->columns, f->codes->dims[1]) : 0;
    st = check_bits(f, bits, "[rows, columns · bits / 32]");
    if (st)
        return st;
    f->s->format = int_format(bits, p->weight_zero_point != NULL);
    f->s->name = bits == 4 ? (p->weight_zero_point ? "INT4 with zero points, packed" : "INT4, packed") : p->weight_zero_point ? "INT8 with zero points, packed" : "INT8, packed";
    add_source(f, f->codes, QUANT_CODES, 1, 32 / bits, sizeof(int32_t))->bits = (uint8_t)bits;
    st = add_scales(f, p->weight_scale);
    if (!st && p->weight_zero_point)
        st = packed_zeros(f, bits);
    return st ? st : read_order(f, p->weight_g_idx);
}

/* GPTQ: qweight [in · bits / 32, out], packed along in; AWQ: qweight [in, out · bits / 32], packed along out. Both: scales [groups, out], qzeros [groups, out · bits / 32]. */
static enum st words(struct finding *f)
{
    const struct parts *p = &f->parts;
    if (!p->scales)
        return missing(f, "scales");
    if (!p->qzeros)
        return missing(f, "qzeros");
    enum st st = refuse_extra(f, p->scales, (const struct ck_tensor *const[]){p->weight_scale, p->weight_scale_2, p->weight_global_scale, p->weight_scale_inv, p->scale, p->weight_zero_point}, 6);
    if (st)
        return st;
    const struct ck_tensor *c = f->codes;
    if (c->raw != CK_RAW_I32)
        return wrong_type(f, c, "I32");
    if (c->n_dims != 2)
        return wrong_shape(f, c, "[columns · bits / 32, rows] (GPTQ) or [columns, rows · bits / 32] (AWQ)");
    const bool awq = c->dims[0] == f->columns && c->dims[1] != f->rows;
    const unsigned bits = awq ? bits_of(f->rows, c->dims[1]) : c->dims[1] == f->rows ? bits_of(f->columns, c->dims[0]) : 0;
    st = check_bits(f, bits, "[columns · bits / 32, rows] (GPTQ) or [columns, rows · bits / 32] (AWQ)");
    if (st)
        return st;
    const uint64_t per_word = 32 / bits;
    if (awq && bits != 4)
        return REFUSE(f, ST_UNSUPPORTED, "tensor %.200s: AWQ of %u bits is not supported: 4 are", c->name, bits);
    if (f->rows % per_word || (!awq && f->columns % per_word))
        return REFUSE(f, ST_INVALID, "tensor %.200s: words of %" PRIu64 " numbers do not divide a matrix [%" PRIu64 ", %" PRIu64 "]", c->name, per_word, f->rows, f->columns);
    if (!is_float(p->scales))
        return wrong_type(f, p->scales, "F16, BF16 or F32");
    if (p->scales->n_dims != 2 || p->scales->dims[1] != f->rows)
        return wrong_shape(f, p->scales, "[groups, rows]");
    if (p->qzeros->raw != CK_RAW_I32)
        return wrong_type(f, p->qzeros, "I32");
    uint64_t group;
    st = group_of(f, p->scales, p->scales->dims[0], &group);
    if (!st)
        st = want_shape(f, p->qzeros, p->scales->dims[0], f->rows / per_word);
    if (st)
        return st;
    f->s->format = int_format(bits, true);
    f->s->name = awq ? "INT4 of AWQ" : bits == 4 ? "INT4 of GPTQ" : "INT8 of GPTQ";
    f->s->zero_plus_one = !awq && !quant_is_gptq_v2(f->q);
    struct quant_source *codes = add_source(f, c, QUANT_CODES, awq ? per_word : 1, awq ? 1 : per_word, sizeof(int32_t));
    codes->along_rows = codes->interleaved = awq;
    struct quant_source *scales = add_source(f, p->scales, QUANT_SCALES, 1, group, kern_format(p->scales->format)->block_bytes);
    struct quant_source *zeros = add_source(f, p->qzeros, QUANT_ZEROS, per_word, group, sizeof(int32_t));
    zeros->along_rows = true;
    zeros->interleaved = awq;
    codes->bits = zeros->bits = (uint8_t)bits;
    codes->transposed = scales->transposed = zeros->transposed = true;
    return read_order(f, p->g_idx);
}

/* ---- which ------------------------------------------------------------------------------------------------------------------------------------------- */

/* The tensor MODULE.what beside codes. */
static const struct ck_tensor *beside(const struct checkpoint *ck, const struct ck_tensor *codes, const char *what)
{
    int i_suffix;
    char full[CK_MAX_MODULE + 32];
    snprintf(full, sizeof full, "%.*s.%s", (int)module_bytes(codes, &i_suffix), codes->name, what);
    return ck_find(ck, full);
}

/* ModelOpt's INT4: bytes of two rows. */
static bool is_pairs_of_rows(const struct checkpoint *ck, const struct ck_tensor *codes)
{
    const struct ck_tensor *scale = codes->raw == CK_RAW_U8 ? beside(ck, codes, "weight_scale") : NULL;
    return scale && is_float(scale);
}

uint64_t quant_rows(const struct checkpoint *ck, const struct ck_tensor *codes)
{
    int i_suffix;
    module_bytes(codes, &i_suffix);
    if (i_suffix != GPTQ_SUFFIX)
        return codes->n_dims != 2 ? 0 : is_pairs_of_rows(ck, codes) ? 2 * codes->dims[0] : codes->dims[0];
    const struct ck_tensor *scales = beside(ck, codes, "scales");
    return scales && scales->n_dims == 2 ? scales->dims[1] : 0;
}

/* The second of two whole numbers, which is small. */
static uint64_t columns_of_shape(const struct checkpoint *ck, const struct ck_tensor *shape)
{
    void *bytes;
    int64_t pair[2] = {0, 0};
    if (!shape || shape->raw != CK_RAW_I64 || ck_n_elements(shape) != 2 || ck_read_bytes(ck, shape, sizeof pair, &bytes, NULL))
        return 0;
    memcpy(pair, bytes, sizeof pair);
    free(bytes);
    return pair[1] > 0 && pair[1] < INT64_C(1) << 40 ? (uint64_t)pair[1] : 0;
}

uint64_t quant_columns(const struct checkpoint *ck, const struct ck_tensor *codes)
{
    int i_suffix;
    module_bytes(codes, &i_suffix);
    if (codes->n_dims != 2 || i_suffix == GPT_OSS_SUFFIX)
        return 0;
    if (i_suffix == GPTQ_SUFFIX) {
        const struct ck_tensor *zeros = beside(ck, codes, "qzeros");
        const uint64_t rows = quant_rows(ck, codes);
        if (codes->dims[1] != rows) /* AWQ: packed along the rows */
            return codes->dims[0];
        const uint64_t bits = zeros && zeros->n_dims == 2 && rows ? zeros->dims[1] * 32 / rows : 0; /* GPTQ: along the columns, and of zero points along the rows */
        return bits ? codes->dims[0] * 32 / bits : 0;
    }
    if (codes->raw == CK_RAW_I32)
        return columns_of_shape(ck, beside(ck, codes, "weight_shape"));
    if (is_pairs_of_rows(ck, codes))
        return codes->dims[1];
    const struct ck_tensor *scale = beside(ck, codes, "scale");
    const bool pairs = codes->raw == CK_RAW_U8 || (codes->raw == CK_RAW_I8 && scale && scale->raw == CK_RAW_F8_E8M0); /* of E2M1; DeepSeek calls them I8 */
    return codes->dims[1] * (pairs ? 2 : 1);
}

bool quant_is_codes(const struct ck_tensor *t)
{
    int i_suffix;
    const bool named = module_bytes(t, &i_suffix) < strlen(t->name);
    return named && (i_suffix > 0 || t->raw != CK_RAW_NONE);
}

bool quant_is_part(const struct checkpoint *ck, const struct ck_tensor *t)
{
    const char *dot = strrchr(t->name, '.');
    char module[CK_MAX_MODULE];
    bool known = false;
    for (size_t k = 0; dot && k < sizeof part_names / sizeof *part_names; k++)
        known = known || strcmp(part_names[k].name, dot + 1) == 0;
    if (!known || quant_is_codes(t))
        return quant_is_beside(t->name);
    snprintf(module, sizeof module, "%.*s", (int)(dot - t->name), t->name);
    const struct ck_tensor *codes = quant_codes(ck, module);
    return codes && codes != t && quant_is_codes(codes);
}

static enum st find_scheme(struct finding *f)
{
    const struct ck_tensor *c = f->codes;
    const struct quant_view *v = &f->s->view;
    if (v->n_planes || quant_view_step(v) > 1 || v->transposed)
        return REFUSE(f, ST_UNSUPPORTED, "tensor %.200s: several matrices in one tensor are not supported in this format yet; in GPT-OSS's MXFP4, BF16 and GGUF types they are", c->name);
    enum st st = find_parts(f);
    if (!st)
        st = refuse_extra(f, c, (const struct ck_tensor *const[]){f->parts.weight, f->parts.weight_packed, f->parts.qweight}, 3);
    if (st)
        return st;
    if (c == f->parts.qweight)
        return words(f);
    if (c->raw == CK_RAW_U8)
        return pairs(f);
    if (c == f->parts.weight_packed)
        return c->raw == CK_RAW_I32 ? packed(f) : wrong_type(f, c, "U8 or I32");
    if (c->raw == CK_RAW_F8_E4M3)
        return fp8(f);
    if (c->raw == CK_RAW_I8 && f->parts.scale && !f->parts.weight_scale) { /* DeepSeek V4's experts: pairs of E2M1 called I8 */
        if (f->parts.scale->raw != CK_RAW_F8_E8M0)
            return wrong_type(f, f->parts.scale, "F8_E8M0");
        const enum st extra = refuse_extra(f, f->parts.scale, (const struct ck_tensor *const[]){f->parts.weight_scale_inv, f->parts.scales, f->parts.weight_zero_point}, 3);
        return extra ? extra : mxfp4(f);
    }
    if (c->raw == CK_RAW_I8)
        return int8(f);
    return REFUSE(f, ST_UNSUPPORTED, "tensor %.200s: type %s is not supported yet", c->name, type_of(c));
}

/* llama.cpp's converter keeps NVFP4's tensor scale as a tensor beside the weight (X.scale; others write X.weight.scale), to be multiplied into the product. */
static enum st gguf_scale(struct finding *f)
{
    char full[CK_MAX_MODULE + 32];
    snprintf(full, sizeof full, "%.*s.scale", f->module_bytes, f->module);
    const struct ck_tensor *scale = ck_find(f->ck, full);
    snprintf(full, sizeof full, "%.*s.weight.scale", f->module_bytes, f->module);
    const struct ck_tensor *other = ck_find(f->ck, full);
    if (scale && other)
        return both(f, scale, other);
    scale = scale ? scale : other;
    return scale ? add_tensor_scale(f, scale) : ST_OK;
}

/* Where the elements of each source lie. */
static void place_sources(struct quant_scheme *s)
{
    const uint64_t step = quant_view_step(&s->view);
    for (uint32_t k = 0; k < s->n_sources; k++) {
        struct quant_source *x = &s->sources[k];
        const uint64_t n_rows = up(s->rows, x->row_unit) * step, n_columns = up(s->columns, x->column_unit), bytes = x->element_bytes;
        const uint64_t next_row = x->transposed ? bytes : n_columns * bytes; /* of the tensor */
        BASE_ASSERT(step == 1 || x->row_unit == 1);
        x->row_stride = step * next_row;
        x->column_stride = x->transposed ? n_rows * bytes : bytes;
        x->offset = s->view.plane * n_rows * n_columns * bytes + s->view.phase * next_row;
    }
}

enum st quant_scheme_of(const struct checkpoint *ck, struct quant *q, const struct ck_tensor *codes, uint64_t rows, uint64_t columns, const struct quant_view *view,
                        struct arena *arena, const struct quant_scheme **scheme, struct err *e)
{
    struct quant_scheme *s = base_arena_alloc(arena, sizeof *s);
    int i_suffix;
    struct finding f = {.ck = ck, .codes = codes, .module_bytes = (int)module_bytes(codes, &i_suffix), .module = codes->name, .rows = rows, .columns = columns, .q = q, .s = s, .arena = arena, .e = e};
    if (!s)
        return err_set(e, ST_NO_MEMORY, "%s: no memory for the scheme of %.200s", ck_path(ck), codes->name);
    *s = (struct quant_scheme){.rows = rows, .columns = columns};
    if (view)
        s->view = *view;
    BASE_ASSERT(s->view.plane < quant_view_planes(&s->view) && s->view.phase < quant_view_step(&s->view));
    if (codes->raw != CK_RAW_NONE || i_suffix != 0) {
        if (rows == 0 || columns == 0)
            return REFUSE(&f, ST_INVALID, "tensor %.200s: a quantised matrix [%" PRIu64 ", %" PRIu64 "]", codes->name, rows, columns);
        const enum st st = i_suffix == GPT_OSS_SUFFIX ? gpt_oss(&f) : find_scheme(&f);
        if (st)
            return st;
    } else {
        BASE_ASSERT(!codes->unsupported);
        const struct format_info *info = kern_format(codes->format);
        s->format = codes->format;
        if (s->view.transposed && info->block_columns > 1)
            return REFUSE(&f, ST_UNSUPPORTED, "tensor %.200s: blocks of %s along the rows are not supported", codes->name, info->name);
        add_source(&f, codes, QUANT_BLOCKS, 1, info->block_columns, info->block_bytes)->transposed = s->view.transposed && columns > 1; /* of a vector either is the same */
        const enum st st = ck_kind_of(ck) == CK_GGUF && codes->n_dims >= 2 ? gguf_scale(&f) : ST_OK;
        if (st)
            return st;
    }
    if (q) {
        char module[CK_MAX_MODULE];
        snprintf(module, sizeof module, "%.*s", f.module_bytes, codes->name);
        quant_note(q, module, s);
    }
    place_sources(s);
    *scheme = s;
    return ST_OK;
}
