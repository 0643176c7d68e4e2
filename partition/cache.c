/* What checkpoints say about a key/value cache in FP8, and its scales. */
#include "partition/cache.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "partition/quant.h"

/* ---- what is declared ------------------------------------------------------------------------------------------------------------------------------- */

/* What an object says: nothing, FP8, or something else. */
struct declared {
    bool fp8;
    const char *where, *other; /* the first that is not FP8 */
};

static void note_other(struct declared *d, const char *where, const char *other)
{
    d->other = d->other ? d->other : other;
    d->where = d->where ? d->where : where;
}

/* compressed-tensors, and ModelOpt's newer way */
static enum st read_scheme(const json_t *object, const char *where, struct declared *d, struct err *e)
{
    const json_t *scheme = json_object_get(object, "kv_cache_scheme");
    if (!scheme || json_is_null(scheme))
        return ST_OK;
    if (!json_is_object(scheme))
        return err_set(e, ST_INVALID, "%s: kv_cache_scheme is not an object", where);
    int64_t bits = 0;
    const char *type = "int"; /* compressed-tensors' default */
    enum st st = base_json_optional(base_json_i64(scheme, where, "num_bits", 1, 64, &bits, e));
    if (!st)
        st = base_json_optional(base_json_str(scheme, where, "type", &type, e));
    if (st)
        return st;
    const json_t *dynamic = json_object_get(scheme, "dynamic");
    if (bits != 8 || strcmp(type, "float") != 0)
        note_other(d, where, "another type than 8-bit floats");
    else if (dynamic && !json_is_null(dynamic) && !json_is_false(dynamic))
        note_other(d, where, "dynamic scales");
    else
        d->fp8 = true;
    return ST_OK;
}

/* ModelOpt */
static enum st read_algorithm(const json_t *object, const char *where, struct declared *d, struct err *e)
{
    const json_t *value = json_object_get(object, "kv_cache_quant_algo");
    const char *algorithm = NULL;
    if (!value || json_is_null(value))
        return ST_OK;
    const enum st st = base_json_str(object, where, "kv_cache_quant_algo", &algorithm, e);
    if (st)
        return st;
    if (strcmp(algorithm, "FP8") == 0)
        d->fp8 = true;
    else if (strcmp(algorithm, "none") != 0 && strcmp(algorithm, "None") != 0)
        note_other(d, where, algorithm);
    return ST_OK;
}

enum st part_cache_declared(const struct checkpoint *ck, const json_t *config, bool *fp8, struct err *e)
{
    struct declared d = {false, NULL, NULL};
    const json_t *c = quant_section(config), *beside;
    enum st st = ST_OK;
    if (json_is_object(c)) {
        st = read_scheme(c, "config.json: quantization_config", &d, e);
        if (!st)
            st = read_algorithm(c, "config.json: quantization_config", &d, e);
    }
    if (!st)
        st = ck_json(ck, "hf_quant_config.json", &beside, e);
    if (st)
        return st;
    beside = json_object_get(beside, "quantization");
    if (json_is_object(beside))
        st = read_algorithm(beside, "hf_quant_config.json: quantization", &d, e);
    if (st)
        return st;
    if (d.other && !d.fp8)
        LOG_WARNING_ONCE("part", "%s: %s asks for a key/value cache with %.64s, which is not supported: --kv auto takes F16", ck_path(ck), d.where, d.other);
    *fp8 = d.fp8;
    return ST_OK;
}

/* ---- scales ------------------------------------------------------------------------------------------------------------------------------------------ */

static const char *const spellings[2][4] = {{"k_proj.k_scale", "qkv_proj.k_scale", "k_scale", "kv_scale"}, {"v_proj.v_scale", "qkv_proj.v_scale", "v_scale", "kv_scale"}};
enum { N_SPELLINGS = sizeof spellings[0] / sizeof spellings[0][0] };

enum st part_cache_find_scale(const struct checkpoint *ck, const char *module, bool of_values, const struct ck_tensor **tensor, struct err *e)
{
    const struct ck_tensor *found = NULL;
    for (int i = 0; i < N_SPELLINGS && module; i++) {
        char name[160];
        const int n = snprintf(name, sizeof name, "%s.%s", module, spellings[of_values][i]);
        const struct ck_tensor *t = n > 0 && (size_t)n < sizeof name ? ck_find(ck, name) : NULL;
        if (found && t)
            return err_set(e, ST_INVALID, "%s: tensors %.200s and %.200s: two scales for one cache", ck_path(ck), found->name, t->name);
        found = found ? found : t;
    }
    *tensor = found;
    return ST_OK;
}

static enum st read_scale(const struct checkpoint *ck, const char *module, bool of_values, const struct ck_tensor **tensor, float *scale, struct err *e)
{
    enum st st = part_cache_find_scale(ck, module, of_values, tensor, e);
    if (st || !*tensor)
        return st;
    uint64_t n = 1;
    for (int d = 0; d < (*tensor)->n_dims; d++)
        n *= (*tensor)->dims[d]; /* does not overflow: checked when the header was read */
    if (n != 1)
        return err_set(e, ST_INVALID, "%s: tensor %.200s has %" PRIu64 " numbers: one scale for all keys or values of a layer is supported; --kv f16 does without", ck_path(ck), (*tensor)->name,
                       n);
    float *values;
    st = ck_read_f32(ck, *tensor, 1, &values, e);
    if (st)
        return st;
    *scale = values[0];
    free(values);
    if (!(*scale >= 0x1p-100f && *scale <= 0x1p100f))
        return err_set(e, ST_INVALID, "%s: tensor %.200s is %g: a scale of keys or values is a positive number from 2^-100 to 2^100; --kv f16 does without", ck_path(ck), (*tensor)->name,
                       (double)*scale);
    return ST_OK;
}

enum st part_cache_read_scales(struct part_model *m, struct err *e)
{
    int n_scaled = 0;
    for (int i = 0; i < m->n_caches; i++) {
        struct part_cache *c = &m->caches[i];
        enum st st = read_scale(m->ck, c->module, false, &c->k_scale_tensor, &c->k_scale, e);
        if (!st)
            st = read_scale(m->ck, c->module, true, &c->v_scale_tensor, &c->v_scale, e);
        if (st)
            return st;
        n_scaled += c->k_scale_tensor && c->v_scale_tensor;
    }
    if (n_scaled && n_scaled != m->n_caches)
        LOG_WARNING_ONCE("part", "%s: %d of %d layers have scales for keys and values; the others take 1", ck_path(m->ck), n_scaled, m->n_caches);
    return ST_OK;
}
