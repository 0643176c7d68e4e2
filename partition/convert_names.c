/* Which tensors are matrices of linear layers, which of them somebody wants left alone, and what Llama's tensors are called on the other side. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include <fnmatch.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "partition/convert_priv.h"

/* ---- patterns ---- */

struct pattern {
    const char *text;
    pcre2_code *code; /* "re:" */
    bool matched;
};
struct convert_ignore {
    int n;
    pcre2_match_data *match;
    struct pattern items[];
};

void convert_ignore_destroy(struct convert_ignore *list)
{
    if (!list)
        return;
    for (int i = 0; i < list->n; i++)
        pcre2_code_free(list->items[i].code);
    pcre2_match_data_free(list->match);
    free(list);
}

enum st convert_ignore_create(const char *const *patterns, int n, struct convert_ignore **out, struct err *e)
{
    struct convert_ignore *list = calloc(1, sizeof *list + (size_t)n * sizeof list->items[0]);
    if (!list || !(list->match = pcre2_match_data_create(1, NULL))) {
        convert_ignore_destroy(list);
        return err_set(e, ST_NO_MEMORY, "no memory for patterns");
    }
    list->n = n;
    for (int i = 0; i < n; i++) {
        list->items[i].text = patterns[i];
        if (strncmp(patterns[i], "re:", 3) != 0)
            continue;
        int error;
        PCRE2_SIZE at;
        list->items[i].code = pcre2_compile((PCRE2_SPTR)(patterns[i] + 3), PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED, &error, &at, NULL);
        if (!list->items[i].code) {
            PCRE2_UCHAR why[128];
            pcre2_get_error_message(error, why, sizeof why);
            convert_ignore_destroy(list);
            return err_set(e, ST_INVALID, "--ignore '%.200s': %s (at character %zu)", patterns[i], (const char *)why, (size_t)at);
        }
    }
    *out = list;
    return ST_OK;
}

bool convert_ignore_matches(struct convert_ignore *list, const char *const *names, int n_names)
{
    bool any = false;
    for (int i = 0; i < list->n; i++)
        for (int k = 0; k < n_names; k++) {
            struct pattern *p = &list->items[i];
            if (!names[k])
                continue;
            if (p->code ? pcre2_match(p->code, (PCRE2_SPTR)names[k], PCRE2_ZERO_TERMINATED, 0, 0, list->match, NULL) >= 0 : fnmatch(p->text, names[k], 0) == 0)
                any = p->matched = true;
        }
    return any;
}

enum st convert_ignore_check(const struct convert_ignore *list, const char *where, struct err *e)
{
    for (int i = 0; i < list->n; i++)
        if (!list->items[i].matched)
            return err_set(e, ST_NOT_FOUND, "--ignore '%.200s' matches no module of %s; 'tandem inspect --tensors' lists their names", list->items[i].text, where);
    return ST_OK;
}

/* ---- kinds ---- */

enum convert_kind convert_kind_of(const struct checkpoint *ck, const struct ck_tensor *t)
{
    const char *name = t->name, *end = strrchr(name, '.');
    if (!end || strcmp(end, ".weight") != 0)
        return CONVERT_OTHER;
    if (ck_kind_of(ck) == CK_GGUF) {
        if (strcmp(name, "output.weight") == 0)
            return CONVERT_HEAD;
        const bool matrix = t->n_dims == 2 || t->n_dims == 3; /* experts lie one behind the other */
        return matrix && strncmp(name, "blk.", 4) == 0 && !strstr(name, "norm") && !strstr(name, "_inp.") ? CONVERT_LINEAR : CONVERT_OTHER;
    }
    if (ck_has_components(name, "lm_head"))
        return CONVERT_HEAD;
    if (t->n_dims != 2 || strstr(name, "embed") || strstr(name, "norm"))
        return CONVERT_OTHER;
    static const char *const others[] = {"wte", "wpe", "gate", "router", "shared_expert_gate"}; /* embeddings of GPT-2; routers, whose rounding sends tokens elsewhere */
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (ck_has_components(name, others[i]))
            return CONVERT_OTHER;
    return CONVERT_LINEAR;
}

/* ---- Llama's names ---- */

struct pair {
    const char *hub, *gguf;
    char heads; /* 'q', 'k' */
};
static const struct pair whole[] = {{"model.embed_tokens", "token_embd", 0}, {"model.norm", "output_norm", 0}, {"lm_head", "output", 0}};
static const struct pair layer[] = {
    {"self_attn.q_proj", "attn_q", 'q'}, {"self_attn.k_proj", "attn_k", 'k'},   {"self_attn.v_proj", "attn_v", 0},
    {"self_attn.o_proj", "attn_output", 0}, {"mlp.gate_proj", "ffn_gate", 0},   {"mlp.up_proj", "ffn_up", 0},
    {"mlp.down_proj", "ffn_down", 0},    {"input_layernorm", "attn_norm", 0},   {"post_attention_layernorm", "ffn_norm", 0},
};

const char *convert_rename(struct arena *arena, const struct model_config *c, const char *name, bool to_gguf, int *heads)
{
    *heads = 0;
    const char *what = strrchr(name, '.');
    if (!what || (strcmp(what, ".weight") != 0 && strcmp(what, ".bias") != 0))
        return NULL;
    const char *prefix = to_gguf ? "model.layers." : "blk.";
    const bool in_layer = strncmp(name, prefix, strlen(prefix)) == 0;
    const char *module = name;
    int i_layer = 0;
    if (in_layer) {
        char *end;
        const long value = strtol(name + strlen(prefix), &end, 10);
        if (*end != '.' || value < 0 || value >= c->n_layers)
            return NULL;
        i_layer = (int)value;
        module = end + 1;
    }
    const struct pair *list = in_layer ? layer : whole;
    const size_t n = in_layer ? sizeof layer / sizeof *layer : sizeof whole / sizeof *whole;
    for (size_t i = 0; i < n; i++) {
        const char *from = to_gguf ? list[i].hub : list[i].gguf, *to = to_gguf ? list[i].gguf : list[i].hub;
        if (strlen(from) != (size_t)(what - module) || memcmp(from, module, strlen(from)) != 0)
            continue;
        *heads = list[i].heads == 'q' ? c->n_heads : list[i].heads == 'k' ? c->n_kv_heads : 0;
        return in_layer ? base_arena_printf(arena, "%s%d.%s%s", to_gguf ? "blk." : "model.layers.", i_layer, to, what) : base_arena_printf(arena, "%s%s", to, what);
    }
    return NULL;
}
