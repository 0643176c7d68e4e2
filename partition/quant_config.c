/* What config.json's quantization_config, or ModelOpt's hf_quant_config.json, says about which modules are quantised how. The tensors have the last word (quant.c), so lists and
 * groups only serve to tell contradictions; methods and conventions that would be read wrongly are refused here.
 *
 * Patterns that begin with "re:" are matched by PCRE2 from the name's beginning, as Python's re.match does, within limits: they come with the file. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include <inttypes.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/json.h"
#include "base/log.h"
#include "partition/quant_priv.h"

#define MAX_PATTERNS 100000
#define MAX_PATTERN_BYTES 4096
#define MATCH_LIMIT 200000u
#define HEAP_LIMIT_KIB 1024u

struct pattern {
    const char *text;
    pcre2_code *code; /* "re:" */
    bool wild;
};

struct patterns {
    struct pattern *items;
    size_t n;
};

struct stored_as {
    int64_t bits; /* 0: it does not say */
    bool is_float;
    int64_t group; /* columns; 0: it does not say */
};

struct group {
    struct patterns targets;
    struct stored_as as;
    bool weights; /* false: activations only */
};

/* Modules that contradict, of one kind. */
struct contradiction {
    size_t n;
    const char *first;
};

struct quant {
    struct arena *arena;
    const char *where, *method; /* NULL: no word of quantisation */
    bool gptq_v2, judges_head, fp4_experts;
    struct patterns ignore;
    struct group *groups;
    size_t n_groups; /* 0: all linear modules, stored so: */
    struct stored_as as;
    struct contradiction plain, quantised, otherwise;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_match_data *match;
};

/* ---- patterns ------------------------------------------------------------------------------------------------------------------------------------------ */

static void *arena_malloc(size_t bytes, void *arena) { return base_arena_alloc(arena, bytes); }
static void arena_free(void *block, void *arena) { (void)block, (void)arena; } /* with the arena, as a whole */

static enum st no_memory(const struct quant *q, struct err *e) { return err_set(e, ST_NO_MEMORY, "%s: no memory", q->where); }

static enum st init_matching(struct quant *q, struct err *e)
{
    q->memory = pcre2_general_context_create(arena_malloc, arena_free, q->arena);
    q->limits = q->memory ? pcre2_match_context_create(q->memory) : NULL;
    q->match = q->limits ? pcre2_match_data_create(1, q->memory) : NULL;
    if (!q->match)
        return no_memory(q, e);
    pcre2_set_match_limit(q->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(q->limits, HEAP_LIMIT_KIB);
    return ST_OK;
}

static enum st read_pattern(struct quant *q, const char *text, struct pattern *p, struct err *e)
{
    *p = (struct pattern){.text = base_arena_strdup(q->arena, text), .wild = strchr(text, '*') != NULL};
    if (!p->text)
        return no_memory(q, e);
    if (strncmp(text, "re:", 3) != 0)
        return ST_OK;
    pcre2_compile_context *context = pcre2_compile_context_create(q->memory);
    if (!context)
        return no_memory(q, e);
    int code;
    PCRE2_SIZE offset;
    p->wild = false;
    p->code = pcre2_compile((PCRE2_SPTR)text + 3, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &code, &offset, context);
    if (!p->code) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(code, why, sizeof why);
        LOG_WARNING_ONCE("part", "%s: the pattern '%.100s' matches nothing: %s", q->where, text, (const char *)why);
    }
    return ST_OK;
}

/* A list of strings under key, if it is there; appended to what is in the list already. */
static enum st read_patterns(struct quant *q, const json_t *object, const char *where, const char *key, struct patterns *list, struct err *e)
{
    const json_t *array = json_object_get(object, key);
    if (!array || json_is_null(array))
        return ST_OK;
    if (!json_is_array(array))
        return err_set(e, ST_INVALID, "%s: %s is not a list", where, key);
    const size_t n = json_array_size(array);
    if (n > MAX_PATTERNS)
        return err_set(e, ST_INVALID, "%s: %s has %zu entries; at most %d are read", where, key, n, MAX_PATTERNS);
    struct pattern *items = base_arena_array(q->arena, list->n + n + 1, sizeof *items);
    if (!items)
        return no_memory(q, e);
    if (list->n)
        memcpy(items, list->items, list->n * sizeof *items);
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(array, i));
        if (!text || strlen(text) > MAX_PATTERN_BYTES)
            return err_set(e, ST_INVALID, "%s: %s: entry %zu is no name or pattern of at most %d bytes", where, key, i, MAX_PATTERN_BYTES);
        const enum st st = read_pattern(q, text, &items[list->n + i], e);
        if (st)
            return st;
    }
    list->items = items;
    list->n += n;
    return ST_OK;
}

/* '*' stands for any run of characters. What is below a module that matches matches too. Linear in name × pattern. */
static bool wild_match(const char *p, const char *s)
{
    const char *star = NULL, *from = NULL;
    while (*s) {
        if (*p == 0 && *s == '.')
            return true;
        if (*p == '*') {
            star = p++;
            from = s;
        } else if (*p == *s) {
            p++;
            s++;
        } else if (star) {
            p = star + 1;
            s = ++from;
        } else
            return false;
    }
    while (*p == '*')
        p++;
    return *p == 0;
}

static bool pattern_matches(const struct quant *q, const struct pattern *p, const char *name)
{
    if (strncmp(p->text, "re:", 3) == 0)
        return p->code && pcre2_match(p->code, (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, 0, q->match, q->limits) >= 0;
    return p->wild ? wild_match(p->text, name) : ck_has_components(name, p->text);
}

/* saying NULL, or what must be in the pattern's own text. */
static bool any_matches(const struct quant *q, const struct patterns *list, const char *name, const char *saying)
{
    for (size_t i = 0; i < list->n; i++)
        if ((!saying || strstr(list->items[i].text, saying)) && pattern_matches(q, &list->items[i], name))
            return true;
    return false;
}

/* Lists may name the parts where the file has them fused, and the reverse. */
static const struct {
    const char *fused, *parts[3];
} fusions[] = {{"qkv_proj", {"q_proj", "k_proj", "v_proj"}}, {"gate_up_proj", {"gate_proj", "up_proj", NULL}}};

static bool listed(const struct quant *q, const struct patterns *list, const char *module)
{
    if (any_matches(q, list, module, NULL))
        return true;
    const char *dot = strrchr(module, '.'), *last = dot ? dot + 1 : module;
    char other[CK_MAX_MODULE];
    for (size_t i = 0; i < sizeof fusions / sizeof *fusions; i++) {
        const bool is_fused = strcmp(last, fusions[i].fused) == 0;
        bool is_part = false, all = true;
        for (int k = 0; k < 3 && fusions[i].parts[k]; k++) {
            is_part |= strcmp(last, fusions[i].parts[k]) == 0;
            snprintf(other, sizeof other, "%.*s%s", (int)(last - module), module, fusions[i].parts[k]);
            all = all && is_fused && any_matches(q, list, other, NULL);
        }
        snprintf(other, sizeof other, "%.*s%s", (int)(last - module), module, fusions[i].fused);
        if ((is_fused && all) || (is_part && any_matches(q, list, other, fusions[i].fused))) /* "re:.*up_proj" means up_proj alone */
            return true;
    }
    return false;
}

/* ---- reading --------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st read_weights(const json_t *w, const char *where, struct stored_as *as, struct err *e)
{
    const char *type = NULL;
    enum st st = base_json_optional(base_json_i64(w, where, "num_bits", 1, 64, &as->bits, e));
    if (!st)
        st = base_json_optional(base_json_str(w, where, "type", &type, e));
    if (!st)
        st = base_json_optional(base_json_i64(w, where, "group_size", -1, INT32_MAX, &as->group, e));
    as->is_float = type && strcmp(type, "float") == 0;
    return st;
}

/* One of the known names, in whatever case (ModelOpt writes "FP8" and "mxfp4"), or ST_UNSUPPORTED with their list. */
static enum st check_name(const char *const *known, size_t n, const char *name, const char *where, const char *what, struct err *e)
{
    char list[512];
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        if (strcasecmp(known[i], name) == 0)
            return ST_OK;
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", known[i]);
    }
    return err_set(e, ST_UNSUPPORTED, "%s: %s '%.64s' is not supported yet; known: %s", where, what, name, list);
}

/* Formats of compressed-tensors whose tensors quant.c can read, or that say nothing. */
static const char *const formats[] = {"dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
                                      "mxfp8-quantized"};

static enum st check_format(const json_t *object, const char *where, struct err *e)
{
    const char *format = NULL;
    const enum st st = base_json_optional(base_json_str(object, where, "format", &format, e));
    if (st || !format)
        return st;
    return check_name(formats, sizeof formats / sizeof *formats, format, where, "format", e);
}

static enum st read_groups(struct quant *q, const json_t *object, struct err *e)
{
    const json_t *groups = json_object_get(object, "config_groups");
    if (!groups || json_is_null(groups))
        return ST_OK;
    if (!json_is_object(groups))
        return err_set(e, ST_INVALID, "%s: config_groups is not an object", q->where);
    q->groups = base_arena_array(q->arena, json_object_size(groups) + 1, sizeof *q->groups);
    if (!q->groups)
        return no_memory(q, e);
    const char *name;
    json_t *g;
    json_object_foreach((json_t *)(uintptr_t)groups, name, g)
    {
        const char *where = base_arena_printf(q->arena, "%s: config_groups.%.64s", q->where, name);
        if (!where)
            return no_memory(q, e);
        if (!json_is_object(g))
            return err_set(e, ST_INVALID, "%s is not an object", where);
        struct group *group = &q->groups[q->n_groups++];
        *group = (struct group){.weights = json_is_object(json_object_get(g, "weights"))};
        enum st st = check_format(g, where, e);
        if (!st)
            st = read_patterns(q, g, where, "targets", &group->targets, e);
        if (!st && group->weights)
            st = read_weights(json_object_get(g, "weights"), where, &group->as, e);
        if (st)
            return st;
    }
    return ST_OK;
}

static enum st read_compressed_tensors(struct quant *q, const json_t *c, struct err *e)
{
    enum st st = check_format(c, q->where, e);
    if (!st)
        st = read_groups(q, c, e);
    if (st)
        return st;
    q->judges_head = true;
    const json_t *sparsity = json_object_get(c, "sparsity_config"), *transforms = json_object_get(json_object_get(c, "transform_config"), "config_groups");
    const char *format = json_string_value(json_object_get(sparsity, "format"));
    if (format && strcmp(format, "dense") != 0)
        return err_set(e, ST_UNSUPPORTED, "%s: sparsity_config: format '%.64s' is not supported: dense is", q->where, format);
    if (json_object_size(transforms))
        return err_set(e, ST_UNSUPPORTED, "%s: transform_config: rotated weights are not supported yet", q->where);
    return ST_OK;
}

/* What ModelOpt calls the formats that quant.c can read. AWQ and SmoothQuant may scale inputs too: a tensor says so (struct quant_scheme.input_scale). */
static const char *const algorithms[] = {"FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "FP8_PB_REAL", "NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8", "MXFP4", "MXFP8",
                                         "W4A16_AWQ", "W8A16", "W8A8_SQ_PER_CHANNEL", "MIXED_PRECISION"};

static enum st read_algorithm(const json_t *object, const char *where, const char **algorithm, struct err *e)
{
    *algorithm = NULL;
    const enum st st = base_json_optional(base_json_str(object, where, "quant_algo", algorithm, e));
    return st || !*algorithm ? st : check_name(algorithms, sizeof algorithms / sizeof *algorithms, *algorithm, where, "quant_algo", e);
}

/* MIXED_PRECISION: an object whose keys are the quantised modules; what each is its tensors tell. */
static enum st read_quantized_layers(struct quant *q, const json_t *c, struct err *e)
{
    const json_t *layers = json_object_get(c, "quantized_layers");
    if (!layers || json_is_null(layers) || q->n_groups)
        return ST_OK;
    if (!json_is_object(layers) || json_object_size(layers) > MAX_PATTERNS)
        return err_set(e, ST_INVALID, "%s: quantized_layers is not an object of at most %d modules", q->where, MAX_PATTERNS);
    q->groups = base_arena_array(q->arena, 1, sizeof *q->groups);
    struct pattern *items = base_arena_array(q->arena, json_object_size(layers) + 1, sizeof *items);
    if (!q->groups || !items)
        return no_memory(q, e);
    q->groups[0] = (struct group){.weights = true, .targets = {.items = items}};
    q->n_groups = 1;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)layers, name, value)
    {
        const char *algorithm;
        enum st st = read_pattern(q, name, &items[q->groups[0].targets.n++], e);
        if (!st)
            st = read_algorithm(value, q->where, &algorithm, e);
        if (st)
            return st;
    }
    return ST_OK;
}

/* quant_algo names what the weights are; tensors tell the rest. */
static enum st read_modelopt(struct quant *q, const json_t *c, struct err *e)
{
    const char *algo = NULL;
    enum st st = read_algorithm(c, q->where, &algo, e);
    if (!st)
        st = base_json_optional(base_json_i64(c, q->where, "group_size", -1, INT32_MAX, &q->as.group, e));
    if (!st)
        st = read_groups(q, c, e);
    if (!st)
        st = read_quantized_layers(q, c, e);
    if (!st)
        st = read_patterns(q, c, q->where, "exclude_modules", &q->ignore, e);
    q->judges_head = true;
    if (algo && strncasecmp(algo, "NVFP4", 5) == 0)
        q->as = (struct stored_as){.bits = 4, .is_float = true, .group = q->as.group};
    else if (algo && strncasecmp(algo, "FP8", 3) == 0)
        q->as = (struct stored_as){.bits = 8, .is_float = true};
    else
        q->as = (struct stored_as){.bits = 0};
    return st;
}

static enum st read_fp8(struct quant *q, const json_t *c, struct err *e)
{
    const char *fmt = NULL;
    const enum st st = base_json_optional(base_json_str(c, q->where, "fmt", &fmt, e));
    if (st)
        return st;
    if (fmt && strcmp(fmt, "e4m3") != 0)
        return err_set(e, ST_UNSUPPORTED, "%s: fmt '%.32s' is not supported: e4m3 is", q->where, fmt);
    const json_t *block = json_object_get(c, "weight_block_size");
    if (block && !json_is_null(block) &&
        (json_array_size(block) != 2 || json_integer_value(json_array_get(block, 0)) != 128 || json_integer_value(json_array_get(block, 1)) != 128))
        return err_set(e, ST_UNSUPPORTED, "%s: weight_block_size is not [128, 128], the only one that is supported", q->where);
    q->as = (struct stored_as){.bits = 8, .is_float = true};
    return ST_OK;
}

static enum st read_gptq(struct quant *q, const json_t *c, struct err *e)
{
    const char *format = NULL;
    enum st st = base_json_optional(base_json_str(c, q->where, "checkpoint_format", &format, e));
    if (!st)
        st = base_json_optional(base_json_i64(c, q->where, "bits", 1, 64, &q->as.bits, e));
    if (!st)
        st = base_json_optional(base_json_i64(c, q->where, "group_size", -1, INT32_MAX, &q->as.group, e));
    if (st)
        return st;
    q->gptq_v2 = format && strcmp(format, "gptq_v2") == 0;
    if (format && !q->gptq_v2 && strcmp(format, "gptq") != 0)
        return err_set(e, ST_UNSUPPORTED, "%s: checkpoint_format '%.32s' is not supported; known: gptq, gptq_v2", q->where, format);
    return json_object_size(json_object_get(c, "dynamic")) ? (q->as.bits = q->as.group = 0, ST_OK) : ST_OK; /* rules for single modules: their tensors tell */
}

static enum st read_awq(struct quant *q, const json_t *c, struct err *e)
{
    const char *version = NULL;
    enum st st = base_json_optional(base_json_str(c, q->where, "version", &version, e));
    const char *const names[] = {"bits", "w_bit", "group_size", "q_group_size"};
    int64_t *const numbers[] = {&q->as.bits, &q->as.bits, &q->as.group, &q->as.group};
    for (int i = 0; i < 4 && !st; i++)
        st = base_json_optional(base_json_i64(c, q->where, names[i], -1, INT32_MAX, numbers[i], e));
    if (st)
        return st;
    if (version && strcmp(version, "gemm") != 0 && strcmp(version, "GEMM") != 0)
        return err_set(e, ST_UNSUPPORTED, "%s: AWQ's version '%.32s' is not supported: gemm is", q->where, version);
    return ST_OK;
}

/* GPT-OSS: its experts. */
static enum st read_mxfp4(struct quant *q, const json_t *c, struct err *e)
{
    (void)c, (void)e;
    q->judges_head = true;
    q->as = (struct stored_as){.bits = 4, .is_float = true, .group = 32};
    return ST_OK;
}

static const struct method {
    const char *name;
    enum st (*read)(struct quant *q, const json_t *c, struct err *e);
} methods[] = {
    {"compressed-tensors", read_compressed_tensors}, {"modelopt", read_modelopt}, {"modelopt_fp4", read_modelopt}, {"fp8", read_fp8}, {"fbgemm_fp8", read_fp8}, {"gptq", read_gptq}, {"awq", read_awq}, {"mxfp4", read_mxfp4},
};
enum { N_METHODS = sizeof methods / sizeof *methods };

static enum st read_method(struct quant *q, const json_t *c, const char *name, struct err *e)
{
    char known[256];
    size_t used = 0;
    for (size_t i = 0; i < N_METHODS; i++) {
        if (strcmp(methods[i].name, name) == 0) {
            q->method = methods[i].name;
            enum st st = methods[i].read(q, c, e);
            if (!st)
                st = read_patterns(q, c, q->where, "ignore", &q->ignore, e);
            return st ? st : read_patterns(q, c, q->where, "modules_to_not_convert", &q->ignore, e);
        }
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", methods[i].name);
    }
    return err_set(e, ST_UNSUPPORTED, "%s: quant_method '%.64s' is not supported yet; known: %s", q->where, name, known);
}

const json_t *quant_section(const json_t *config)
{
    const json_t *c = json_object_get(config, "quantization_config");
    if (!c || json_is_null(c))
        c = json_object_get(config, "compression_config");
    return json_is_null(c) ? NULL : c;
}

enum st quant_read(const struct checkpoint *ck, const json_t *config, struct arena *arena, struct quant **out, struct err *e)
{
    if (ck_kind_of(ck) == CK_GGUF) {
        *out = NULL;
        return ST_OK;
    }
    struct quant *q = base_arena_alloc(arena, sizeof *q);
    if (!q)
        return err_set(e, ST_NO_MEMORY, "%s: no memory", ck_path(ck));
    *q = (struct quant){.arena = arena};
    q->where = base_arena_printf(arena, "%s/config.json: quantization_config", ck_path(ck));
    if (!q->where)
        return err_set(e, ST_NO_MEMORY, "%s: no memory", ck_path(ck));
    const char *experts = json_string_value(json_object_get(config, "expert_dtype"));
    q->fp4_experts = experts && strcmp(experts, "fp4") == 0;
    const json_t *c = quant_section(config);
    enum st st = init_matching(q, e);
    if (!st && c) {
        if (!json_is_object(c))
            return err_set(e, ST_INVALID, "%s is not an object", q->where);
        const char *method = NULL;
        st = base_json_optional(base_json_str(c, q->where, "quant_method", &method, e));
        if (!st)
            st = read_method(q, c, method ? method : "(none)", e);
    } else if (!st) {
        const json_t *root, *quantization;
        st = ck_json(ck, "hf_quant_config.json", &root, e);
        if (st || !root)
            goto done;
        q->where = base_arena_printf(arena, "%s/hf_quant_config.json: quantization", ck_path(ck));
        if (!q->where)
            return err_set(e, ST_NO_MEMORY, "%s: no memory", ck_path(ck));
        quantization = json_object_get(root, "quantization");
        st = json_is_object(quantization) ? read_method(q, quantization, "modelopt", e) : err_set(e, ST_INVALID, "%s is not an object", q->where);
    }
done:
    if (!st)
        *out = q;
    return st;
}

bool quant_is_gptq_v2(const struct quant *q) { return q && q->gptq_v2; }

/* ---- contradictions ------------------------------------------------------------------------------------------------------------------------------------- */

static bool is_embedding(const char *module) { return ck_has_components(module, "embed_tokens"); }

/* The names of classes that targets may be. */
static bool targeted(const struct quant *q, const struct group *g, const char *module)
{
    for (size_t i = 0; i < g->targets.n; i++)
        if (strcmp(g->targets.items[i].text, is_embedding(module) ? "Embedding" : "Linear") == 0)
            return true;
    return listed(q, &g->targets, module);
}

/* DeepSeek V4: a method of its own for what "quantization_config" calls fp8. */
static bool is_fp4_expert(const struct quant *q, const char *module) { return q->fp4_experts && ck_has_components(module, "experts"); }

/* How the configuration has it stored; NULL: plainly. */
static const struct stored_as *expected(const struct quant *q, const char *module)
{
    if (!q->method || listed(q, &q->ignore, module))
        return NULL;
    for (size_t i = 0; i < q->n_groups; i++)
        if (targeted(q, &q->groups[i], module))
            return q->groups[i].weights ? &q->groups[i].as : NULL;
    static const struct stored_as fp4 = {.bits = 4, .is_float = true, .group = 32};
    if (is_fp4_expert(q, module))
        return &fp4;
    return q->n_groups || is_embedding(module) ? NULL : &q->as;
}

bool quant_expects(const struct quant *q, const char *module) { return expected(q, module) != NULL; }

static bool agrees(const struct stored_as *as, const struct quant_scheme *s)
{
    const bool four = s->format == FMT_NVFP4 || s->format == FMT_MXFP4 || s->format == FMT_INT4 || s->format == FMT_INT4_ZERO;
    const bool is_float = s->format == FMT_NVFP4 || s->format == FMT_MXFP4 || s->format == FMT_FP8, unpacked = s->sources[0].tensor->raw == CK_RAW_I8;
    if (as->bits == 0)
        return true;
    if (as->is_float != is_float || (!unpacked && as->bits != (four ? 4 : 8)))
        return false;
    return as->group <= 0 || s->n_sources < 2 || s->sources[1].row_unit != 1 || s->sources[1].column_unit == (uint64_t)as->group || s->columns <= (uint64_t)as->group;
}

static void count(struct quant *q, struct contradiction *c, const char *module)
{
    if (c->n++ == 0)
        c->first = base_arena_strdup(q->arena, module);
}

void quant_note(struct quant *q, const char *module, const struct quant_scheme *s)
{
    if (!q->judges_head && q->method && ck_has_components(module, "lm_head"))
        return;
    const struct stored_as *as = expected(q, module);
    if (as && !s->name)
        count(q, &q->plain, module);
    else if (!as && s->name)
        count(q, &q->quantised, module);
    else if (as && !agrees(as, s))
        count(q, &q->otherwise, module);
}

static void tell(const struct quant *q, const struct contradiction *c, const char *what)
{
    if (c->n)
        LOG_WARNING_ONCE("part", "%s: %zu matrices %s (%s%s); the tensors decide", q->where, c->n, what, c->first ? c->first : "?", c->n > 1 ? " is the first" : "");
}

void quant_report(const struct quant *q)
{
    if (!q)
        return;
    tell(q, &q->plain, "that should be quantised are stored plainly");
    tell(q, &q->quantised, "that should be stored plainly are quantised");
    tell(q, &q->otherwise, "are quantised otherwise than it says");
}
