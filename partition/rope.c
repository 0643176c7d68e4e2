/* Rotary embedding: every spelling of base and scaling → final inverse frequencies.
 *
 *     hub files       rope_theta, rope_scaling {type | rope_type, factor, …}
 *     transformers 5  rope_parameters {rope_type, rope_theta, factor, …}
 *     GGUF            ARCH.rope.freq_base, .dimension_count, .scaling.type, .scaling.factor (older: .scale_linear), and rope_freqs.weight, whose elements divide the frequencies
 *
 * The idea that makes all spellings give the same bits: llama3 scaling is a divisor per frequency, rounded to F32, because F32 is how rope_freqs.weight stores it (the rounding moves
 * an angle by 3e-8 of itself, half of what transformers' own F32 frequencies are off by). All else is double, by our own pow. Sources: transformers' modeling_rope_utils.py
 * (_compute_linear_scaling_rope_parameters, _compute_llama3_parameters), llama.cpp's convert_hf_to_gguf.py (generate_extra_tensors) and llama-model.cpp (rope keys). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/math.h"
#include "partition/config_priv.h"

#define TWO_PI 6.283185307179586476925286766559

static enum st unknown_type(const struct config_reader *r, const char *key, const char *type, size_t n) {
    return err_set(r->e, ST_UNSUPPORTED, "%s: %s: rope type '%.*s' is not supported; known: default, linear, llama3, yarn", r->where, key,
                   (int)(n < 64 ? n : 64), type);
}

/* YaRN: dimensions that turn often within the original context stay, those that turn rarely are slowed by factor, a ramp between. The dimension that turns n times. */
static double dimension_of(const struct rope_config *rope, double n) {
    return rope->rotary_dim * base_math_log((double)rope->original_context / (n * TWO_PI)) / (2 * base_math_log(rope->theta));
}

static double yarn_divisor(const struct rope_config *rope, int i) {
    double low = dimension_of(rope, rope->beta_fast), high = dimension_of(rope, rope->beta_slow);
    if (rope->truncate) low = floor(low), high = ceil(high);
    if (low < 0) low = 0;
    if (high > rope->rotary_dim - 1) high = rope->rotary_dim - 1;
    if (low == high) high += 0.001;
    double ramp = (i - low) / (high - low);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return 1 / (ramp / rope->factor + (1 - ramp));
}

/* n_divisors is 0 or rotary_dim / 2. */
static enum st compute(const struct config_reader *r, const float *divisors) {
    struct rope_config *rope = &r->c->rope;
    int n = rope->rotary_dim / 2;
    double *f = base_arena_array(r->arena, (size_t)n, sizeof *f);
    if (!f) return err_set(r->e, ST_NO_MEMORY, "%s: no memory for the rope frequencies", r->where);
    for (int i = 0; i < n; i++) {
        f[i] = base_math_pow(rope->theta, -(double)(2 * i) / rope->rotary_dim);
        if (rope->kind == ROPE_LINEAR) f[i] /= rope->factor;
        if (rope->kind == ROPE_LLAMA3) {
            /* Long waves are slowed by factor, short ones kept, those between go from one to the other. */
            double wave = TWO_PI / f[i], context = (double)rope->original_context, divisor;
            if (wave < context / rope->high_freq_factor) {
                divisor = 1;
            } else if (wave > context / rope->low_freq_factor) {
                divisor = rope->factor;
            } else {
                double smooth = (context / wave - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
                divisor = 1 / ((1 - smooth) / rope->factor + smooth);
            }
            f[i] /= (double)(float)divisor;
        }
        if (rope->kind == ROPE_YARN) f[i] /= yarn_divisor(rope, i);
        if (divisors) f[i] /= (double)divisors[i];
        if (!isfinite(f[i])) return err_set(r->e, ST_INVALID, "%s: rope frequency %d is not finite", r->where, i);
    }
    rope->frequency = f;
    return ST_OK;
}

static enum st check_rotary(const struct config_reader *r, const char *key, int64_t n) {
    if (n < 2 || n % 2 || n > r->c->head_dim)
        return err_set(r->e, ST_INVALID, "%s: %s: %lld of %d dimensions of a head cannot rotate in pairs", r->where, key, (long long)n,
                       r->c->head_dim);
    r->c->rope.rotary_dim = (int)n;
    return ST_OK;
}

static enum st check_positive(const struct config_reader *r, const char *key, double value) {
    if (value > 0 && isfinite(value)) return ST_OK;
    return err_set(r->e, ST_INVALID, "%s: %s: %g is not a positive number", r->where, key, value);
}

/* ---- hub ---- */

struct spelling {
    const char *key; /* where it stands, for errors */
    const char *type;
    double factor, low, high, theta; /* 0: not said */
    double fast, slow, attention_factor;
    bool truncate;
    int64_t context;
};

static enum st positive(const struct config_reader *r, const json_t *object, const char *where, const char *key, double *value) {
    enum st st = base_json_f64(object, where, key, value, r->e);
    if (st == ST_NOT_FOUND) return ST_OK;
    if (st == ST_OK && !(*value > 0)) return err_set(r->e, ST_INVALID, "%s: %s: %g is not a positive number", where, key, *value);
    return st;
}

static enum st read_spelling(const struct config_reader *r, const char *key, struct spelling *s) {
    const json_t *object = json_object_get(r->root, key);
    *s = (struct spelling){.key = key, .truncate = true};
    if (!object || json_is_null(object)) return ST_OK;
    const char *where = base_arena_printf(r->arena, "%s: %s", r->where, key), *type = NULL, *rope_type = NULL;
    if (!where) return err_set(r->e, ST_NO_MEMORY, "%s: no memory", r->where);
    if (!json_is_object(object)) return err_set(r->e, ST_INVALID, "%s: not an object", where);
    enum st st;
    if ((st = base_json_str(object, where, "type", &type, r->e)) != ST_OK && st != ST_NOT_FOUND) return st;
    if ((st = base_json_str(object, where, "rope_type", &rope_type, r->e)) != ST_OK && st != ST_NOT_FOUND) return st;
    if (type && rope_type && strcmp(type, rope_type) != 0)
        LOG_WARNING_ONCE("part", "%s: type is %.64s, rope_type is %.64s; the latter is taken", where, type, rope_type);
    s->type = rope_type ? rope_type : type;
    if ((st = positive(r, object, where, "factor", &s->factor)) != ST_OK || (st = positive(r, object, where, "low_freq_factor", &s->low)) != ST_OK ||
        (st = positive(r, object, where, "high_freq_factor", &s->high)) != ST_OK ||
        (st = positive(r, object, where, "rope_theta", &s->theta)) != ST_OK || (st = positive(r, object, where, "beta_fast", &s->fast)) != ST_OK ||
        (st = positive(r, object, where, "beta_slow", &s->slow)) != ST_OK || (st = positive(r, object, where, "attention_factor", &s->attention_factor)) != ST_OK)
        return st;
    if ((st = base_json_bool(object, where, "truncate", &s->truncate, r->e)) != ST_OK && st != ST_NOT_FOUND) return st;
    for (size_t i = 0; s->type && strcmp(s->type, "yarn") == 0 && i < 2; i++) { /* DeepSeek's, of which no family here knows */
        const char *name = i ? "mscale_all_dim" : "mscale";
        if (json_is_number(json_object_get(object, name)))
            return err_set(r->e, ST_UNSUPPORTED, "%s: %s is not supported in rope type yarn", where, name);
    }
    if (!s->type && (s->factor || s->low || s->high))
        return err_set(r->e, ST_INVALID, "%s: neither rope_type nor type says what its factors are for", where);
    if (!s->type && !s->theta && json_object_size(object)) {
        /* Nested by kind of layer (Gemma 3): no reading for a family that has one rope. */
        const char *name;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)object, name, value) if (json_is_object(value)) return err_set(
            r->e, ST_UNSUPPORTED, "%s: %.64s: a rope per kind of layer is not supported by this family", where, name);
    }
    st = base_json_i64(object, where, "original_max_position_embeddings", 1, INT64_C(1) << 40, &s->context, r->e);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

/* Both spellings in one file: they must not contradict each other. */
static enum st merge(const struct config_reader *r, const struct spelling *a, struct spelling *b) {
    const char *differs = NULL;
    if (!a->type && !b->type) return ST_OK;
    if (!a->type || !b->type) {
        if (a->type) {
            double theta = b->theta ? b->theta : a->theta;
            *b = *a;
            b->theta = theta;
        }
        return ST_OK;
    }
    if (strcmp(a->type, b->type) != 0) differs = "rope_type";
    if (a->factor != b->factor) differs = "factor";
    if (a->low != b->low) differs = "low_freq_factor";
    if (a->high != b->high) differs = "high_freq_factor";
    if (a->fast != b->fast) differs = "beta_fast";
    if (a->slow != b->slow) differs = "beta_slow";
    if (a->attention_factor != b->attention_factor) differs = "attention_factor";
    if (a->truncate != b->truncate) differs = "truncate";
    if (a->context && b->context && a->context != b->context) differs = "original_max_position_embeddings";
    if (differs)
        return err_set(r->e, ST_INVALID, "%s: %s and %s differ in %s; which one is meant cannot be known", r->where, a->key, b->key, differs);
    if (!b->context) b->context = a->context;
    return ST_OK;
}

/* The context that the frequencies were made for: beside the factor, or outside. */
static enum st original_context(const struct config_reader *r, struct spelling *s) {
    if (s->context) return ST_OK;
    const enum st st = base_json_i64(r->root, r->where, "original_max_position_embeddings", 1, INT64_C(1) << 40, &s->context, r->e);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static enum st set_yarn(const struct config_reader *r, const char *key, double factor, double fast, double slow, bool truncate, double attention_factor, int64_t context) {
    struct rope_config *rope = &r->c->rope;
    rope->kind = ROPE_YARN;
    if (!factor || !context) return err_set(r->e, ST_INVALID, "%s: %s: rope type yarn without %s", r->where, key, factor ? "original_max_position_embeddings" : "factor");
    rope->factor = factor;
    rope->beta_fast = fast ? fast : 32;
    rope->beta_slow = slow ? slow : 1;
    rope->truncate = truncate;
    rope->original_context = context;
    rope->attention_factor = attention_factor ? attention_factor : factor > 1 ? 0.1 * base_math_log(factor) + 1 : 1;
    if (!(rope->theta > 1)) return err_set(r->e, ST_INVALID, "%s: %s: rope type yarn with a base of %g", r->where, key, rope->theta);
    return ST_OK;
}

enum st config_rope_hub(const struct config_reader *r, double default_theta, double default_share) {
    struct rope_config *rope = &r->c->rope;
    struct spelling old, s;
    enum st st;
    if ((st = read_spelling(r, "rope_scaling", &old)) != ST_OK || (st = read_spelling(r, "rope_parameters", &s)) != ST_OK ||
        (st = merge(r, &old, &s)) != ST_OK)
        return st;
    double theta = 0;
    if ((st = positive(r, r->root, r->where, "rope_theta", &theta)) != ST_OK) return st;
    if (s.theta && theta && s.theta != theta)
        LOG_WARNING_ONCE("part", "%s: rope_theta is %g, and %g in %s; the latter is taken", r->where, theta, s.theta, s.key);
    if (!s.theta && old.theta) s.theta = old.theta;
    rope->theta = s.theta ? s.theta : theta ? theta : default_theta;

    double share = default_share;
    const json_t *parameters = json_object_get(r->root, "rope_parameters");
    if ((st = positive(r, r->root, r->where, "partial_rotary_factor", &share)) != ST_OK) return st;
    if (json_is_object(parameters) && (st = positive(r, parameters, r->where, "partial_rotary_factor", &share)) != ST_OK) return st;
    if (share > 1) return err_set(r->e, ST_INVALID, "%s: partial_rotary_factor: %g is more than the whole", r->where, share);
    if ((st = check_rotary(r, "partial_rotary_factor", (int64_t)(r->c->head_dim * share))) != ST_OK) return st;
    rope->attention_factor = 1;
    rope->factor = 1;
    rope->interleaved = false;

    if (!s.type || strcmp(s.type, "default") == 0) {
        rope->kind = ROPE_PLAIN;
    } else if (strcmp(s.type, "linear") == 0) {
        rope->kind = ROPE_LINEAR;
        if (!s.factor) return err_set(r->e, ST_INVALID, "%s: %s: rope type linear without factor", r->where, s.key);
        rope->factor = s.factor;
    } else if (strcmp(s.type, "llama3") == 0) {
        rope->kind = ROPE_LLAMA3;
        if ((st = original_context(r, &s)) != ST_OK) return st;
        const char *missing = !s.factor    ? "factor"
                              : !s.low     ? "low_freq_factor"
                              : !s.high    ? "high_freq_factor"
                              : !s.context ? "original_max_position_embeddings"
                                           : NULL;
        if (missing) return err_set(r->e, ST_INVALID, "%s: %s: rope type llama3 without %s", r->where, s.key, missing);
        if (s.high <= s.low)
            return err_set(r->e, ST_INVALID, "%s: %s: high_freq_factor %g is not above low_freq_factor %g", r->where, s.key, s.high, s.low);
        rope->factor = s.factor;
        rope->low_freq_factor = s.low;
        rope->high_freq_factor = s.high;
        rope->original_context = s.context;
    } else if (strcmp(s.type, "yarn") == 0) {
        if ((st = original_context(r, &s)) != ST_OK ||
            (st = set_yarn(r, s.key, s.factor, s.fast, s.slow, s.truncate, s.attention_factor, s.context)) != ST_OK)
            return st;
    } else {
        return unknown_type(r, s.key, s.type, strlen(s.type));
    }
    return compute(r, NULL);
}

/* ---- GGUF ---- */

enum st config_rope_gguf(const struct config_reader *r, bool interleaved) {
    struct rope_config *rope = &r->c->rope;
    enum st st;
    int64_t rotary = r->c->head_dim;
    rope->theta = 10000;
    rope->attention_factor = 1;
    rope->factor = 1;
    rope->interleaved = interleaved;
    if ((st = config_gguf_f64(r, "rope.freq_base", &rope->theta)) != ST_OK && st != ST_NOT_FOUND) return st;
    if ((st = check_positive(r, "rope.freq_base", rope->theta)) != ST_OK) return st;
    if ((st = config_gguf_i64(r, "rope.dimension_count", 0, 1 << 20, &rotary)) != ST_OK && st != ST_NOT_FOUND) return st;
    if ((st = check_rotary(r, "rope.dimension_count", rotary)) != ST_OK) return st;

    struct gguf_string type = {0};
    const char *key = base_arena_printf(r->arena, "%s.rope.scaling.type", r->architecture);
    if (!key) return err_set(r->e, ST_NO_MEMORY, "%s: no memory", r->where);
    bool typed = config_gguf_string(r, key, &type);
    bool linear = !typed || (type.bytes == 6 && memcmp(type.data, "linear", 6) == 0); /* a factor without a type is linear: llama.cpp's default */
    const bool none = type.bytes == 4 && memcmp(type.data, "none", 4) == 0, yarn = type.bytes == 4 && memcmp(type.data, "yarn", 4) == 0;
    if (!linear && !none && !yarn) return unknown_type(r, key, type.data, type.bytes);
    double factor = 0;
    st = config_gguf_f64(r, "rope.scaling.factor", &factor);
    if (st == ST_NOT_FOUND) st = config_gguf_f64(r, "rope.scale_linear", &factor);
    if (st != ST_OK && st != ST_NOT_FOUND) return st;
    if (factor != 0 && (st = check_positive(r, "rope.scaling.factor", factor)) != ST_OK) return st;
    rope->kind = linear && factor != 0 && factor != 1 ? ROPE_LINEAR : ROPE_PLAIN;
    if (rope->kind == ROPE_LINEAR) rope->factor = factor;
    if ((st = config_gguf_f64(r, "rope.scaling.attn_factor", &rope->attention_factor)) != ST_OK && st != ST_NOT_FOUND) return st;
    if ((st = check_positive(r, "rope.scaling.attn_factor", rope->attention_factor)) != ST_OK) return st;

    if (yarn) {
        double fast = 0, slow = 0;
        int64_t context = 0;
        if (((st = config_gguf_i64(r, "rope.scaling.original_context_length", 1, INT64_C(1) << 40, &context)) != ST_OK && st != ST_NOT_FOUND) ||
            ((st = config_gguf_f64(r, "rope.scaling.yarn_beta_fast", &fast)) != ST_OK && st != ST_NOT_FOUND) ||
            ((st = config_gguf_f64(r, "rope.scaling.yarn_beta_slow", &slow)) != ST_OK && st != ST_NOT_FOUND))
            return st;
        if ((fast && (st = check_positive(r, "rope.scaling.yarn_beta_fast", fast)) != ST_OK) || (slow && (st = check_positive(r, "rope.scaling.yarn_beta_slow", slow)) != ST_OK)) return st;
        /* attn_factor is a factor more, to llama.cpp. It rounds the ramp's ends for all; files have no key for that, and the publishers of GPT-OSS do not. */
        const double more = rope->attention_factor;
        if ((st = set_yarn(r, key, factor, fast, slow, strcmp(r->architecture, "gpt-oss") != 0, 0, context)) != ST_OK) return st;
        rope->attention_factor *= more;
    }

    if (ck_find(r->ck, "rope_factors_long.weight")) return unknown_type(r, "rope_factors_long.weight", "longrope", 8);
    const struct ck_tensor *t = ck_find(r->ck, "rope_freqs.weight");
    if (!t) return compute(r, NULL);
    if (t->n_dims != 1 || t->dims[0] != (uint64_t)rope->rotary_dim / 2)
        return err_set(r->e, ST_INVALID, "%s: tensor rope_freqs.weight does not hold %d numbers, one for each pair of %d dimensions", r->where,
                       rope->rotary_dim / 2, rope->rotary_dim);
    float *divisors;
    if ((st = ck_read_f32(r->ck, t, (size_t)rope->rotary_dim / 2, &divisors, r->e)) != ST_OK) return st;
    for (int i = 0; st == ST_OK && i < rope->rotary_dim / 2; i++)
        if (!(divisors[i] > 0) || !isfinite(divisors[i]))
            st = err_set(r->e, ST_INVALID, "%s: tensor rope_freqs.weight: element %d is no divisor", r->where, i);
    if (st == ST_OK) st = compute(r, divisors);
    free(divisors);
    return st;
}
