/* A tokenizer in the other spelling. Each is opened first (tok_open): what its reader refuses is not written, and what it found out (control tokens, ends, the pre-tokeniser's name) is
 * taken from there; texts of tokens and merges are the file's own. */
#include "launcher/text/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/text/tokenizer_priv.h"
#include "partition/checkpoint.h"

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5 };

static enum st no_memory(struct err *e) { return err_set(e, ST_NO_MEMORY, "no memory for a tokenizer"); }

/* ---- tokenizer.json → GGUF ---- */

/* Texts by id, borrowed from the file; NULL: no token. */
static enum st texts_of(const struct checkpoint *ck, const json_t *file, int64_t n_vocab, const char **texts, struct err *e) {
    const json_t *vocab = json_object_get(json_object_get(file, "model"), "vocab"), *value;
    const char *key;
    json_object_foreach((json_t *)vocab, key, value) {
        const json_int_t id = json_integer_value(value);
        if (id >= n_vocab) {
            return err_set(e, ST_UNSUPPORTED, "%s: tokenizer.json has a token %lld, but the embedding only %lld rows", ck_path(ck), (long long)id,
                           (long long)n_vocab);
        }
        texts[id] = key;
    }
    size_t i;
    json_array_foreach(json_object_get(file, "added_tokens"), i, value) {
        const char *content = json_string_value(json_object_get(value, "content"));
        const json_t *known = json_object_get(vocab, content);
        const json_int_t id = json_integer_value(known ? known : json_object_get(value, "id"));
        if (id < n_vocab) texts[id] = content; /* added ones beyond the embedding were never trained */
    }
    return ST_OK;
}

static void put_tokens(const struct tokenizer *t, const char *const *texts, int64_t n_vocab, struct gguf_head *h) {
    gguf_put_strings(h, "tokenizer.ggml.tokens", (uint64_t)n_vocab);
    for (int64_t id = 0; id < n_vocab; id++) {
        char hole[32];
        snprintf(hole, sizeof hole, "[PAD%lld]", (long long)id);
        const char *text = texts[id] ? texts[id] : hole;
        gguf_put_element(h, text, strlen(text));
    }
    int32_t *types = malloc((size_t)n_vocab * sizeof *types);
    if (types == NULL) {
        h->failed = true;
        return;
    }
    for (int64_t id = 0; id < n_vocab; id++) {
        const int kind = id < t->bpe.n_vocab ? t->bpe.pieces[id].kind : PIECE_NONE;
        types[id] = texts[id] == NULL ? TYPE_UNUSED : kind == PIECE_CONTROL ? TYPE_CONTROL : kind == PIECE_ADDED ? TYPE_USER_DEFINED : TYPE_NORMAL;
    }
    gguf_put_i32s(h, "tokenizer.ggml.token_type", types, (uint64_t)n_vocab);
    free(types);
}

/* "left right", or a list of the two. */
static void put_merges(const json_t *merges, struct gguf_head *h) {
    gguf_put_strings(h, "tokenizer.ggml.merges", json_array_size(merges));
    size_t i;
    const json_t *value;
    json_array_foreach(merges, i, value) {
        if (json_is_string(value)) {
            gguf_put_element(h, json_string_value(value), json_string_length(value));
            continue;
        }
        char *text = NULL;
        const int n = asprintf(&text, "%s %s", json_string_value(json_array_get(value, 0)), json_string_value(json_array_get(value, 1)));
        if (n < 0)
            h->failed = true;
        else
            gguf_put_element(h, text, (size_t)n);
        if (n >= 0) free(text);
    }
}

static void put_settings(const struct tokenizer *t, struct gguf_head *h) {
    if (t->opening >= 0) gguf_put_u32(h, "tokenizer.ggml.bos_token_id", (uint32_t)t->opening);
    if (t->n_ends > 0) gguf_put_u32(h, "tokenizer.ggml.eos_token_id", (uint32_t)t->ends[0]);
    if (t->n_ends > 1) {
        gguf_put_u32(h, "tokenizer.ggml.eot_token_id", (uint32_t)t->ends[1]);
        gguf_put_i32s(h, "tokenizer.ggml.eos_token_ids", t->ends, (uint64_t)t->n_ends);
    }
    gguf_put_bool(h, "tokenizer.ggml.add_bos_token", tok_adds_opening(t));
    if (t->chat_template != NULL) gguf_put_string(h, "tokenizer.chat_template", t->chat_template, strlen(t->chat_template));
}

enum st tok_export_gguf(const struct checkpoint *ck, int64_t n_vocab, struct gguf_head *h, struct err *e) {
    struct tokenizer *t = NULL;
    const json_t *file = NULL;
    enum st st = tok_open(ck, &t, e);
    if (st == ST_NOT_FOUND) {
        return err_set(e, ST_NOT_FOUND, "%s: a GGUF holds its tokenizer, but tokenizer.json is missing here; put it beside config.json", ck_path(ck));
    }
    if (st == ST_OK) st = ck_json(ck, "tokenizer.json", &file, e);
    if (st == ST_OK && t->pre_row == NULL) {
        st = err_set(e, ST_UNSUPPORTED, "%s: a GGUF names its pre-tokeniser, but no known name (tokenizer.ggml.pre) stands for that of tokenizer.json",
                     ck_path(ck));
    }
    const char **texts = st == ST_OK ? calloc((size_t)n_vocab, sizeof *texts) : NULL;
    if (st == ST_OK && texts == NULL) st = no_memory(e);
    if (st == ST_OK) st = texts_of(ck, file, n_vocab, texts, e);
    if (st == ST_OK) {
        gguf_put_string(h, "tokenizer.ggml.model", "gpt2", 4);
        gguf_put_string(h, "tokenizer.ggml.pre", t->pre_row->names, strcspn(t->pre_row->names, " "));
        put_tokens(t, texts, n_vocab, h);
        put_merges(json_object_get(json_object_get(file, "model"), "merges"), h);
        put_settings(t, h);
    }
    free(texts);
    tok_close(t);
    return st;
}

/* ---- GGUF → tokenizer.json ---- */

static json_t *text_of(const struct checkpoint *ck, const struct gguf_value *strings, uint64_t i) {
    const struct gguf_string s = ck_gguf_array_string(ck, strings, i);
    return json_stringn(s.data, s.bytes); /* NULL where it is no UTF-8 */
}

static json_t *merges_of(const struct checkpoint *ck) {
    struct gguf_value merges;
    json_t *list = json_array();
    if (!ck_gguf_get(ck, "tokenizer.ggml.merges", &merges)) return list;
    for (uint64_t i = 0; list != NULL && i < merges.array.n; i++) {
        if (json_array_append_new(list, text_of(ck, &merges, i)) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* All tokens, added ones too, so that each keeps its id. */
static enum st vocab_of(const struct checkpoint *ck, const struct tokenizer *t, json_t *vocab, json_t *added, struct err *e) {
    struct gguf_value tokens;
    if (!ck_gguf_get(ck, "tokenizer.ggml.tokens", &tokens)) return err_set(e, ST_NOT_FOUND, "%s: tokenizer.ggml.tokens is missing", ck_path(ck));
    for (int32_t id = 0; id < t->bpe.n_vocab; id++) {
        json_t *text = text_of(ck, &tokens, (uint64_t)id);
        if (text == NULL) return err_set(e, ST_UNSUPPORTED, "%s: token %d is no UTF-8, which tokenizer.json cannot hold", ck_path(ck), id);
        const int kind = t->bpe.pieces[id].kind;
        bool failed = json_object_get(vocab, json_string_value(text)) == NULL && json_object_set_new(vocab, json_string_value(text), json_integer(id)) != 0;
        if (kind == PIECE_CONTROL || kind == PIECE_ADDED) {
            json_t *entry = json_pack("{s:i, s:O, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", text, "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                                      "special", kind == PIECE_CONTROL);
            failed = json_array_append_new(added, entry) != 0 || failed;
        }
        json_decref(text);
        if (failed) return no_memory(e);
    }
    return ST_OK;
}

static json_t *pre_tokeniser_of(const struct pre_row *row) {
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof row->patterns / sizeof *row->patterns && row->patterns[i] != NULL; i++)
        json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", row->patterns[i], "behavior", "Isolated", "invert", 0));
    json_array_append_new(list, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

static json_t *byte_level(void) { return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0); }

static json_t *post_processor_of(const struct tokenizer *t, const char *opening) {
    if (!tok_adds_opening(t)) return byte_level();
    return json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}], s:{s:{s:s, s:[i], s:[s]}}}", "type", "TemplateProcessing", "single",
                     "SpecialToken", "id", opening, "type_id", 0, "Sequence", "id", "A", "type_id", 0, "pair", "SpecialToken", "id", opening, "type_id", 0, "Sequence", "id", "A",
                     "type_id", 0, "Sequence", "id", "B", "type_id", 0, "special_tokens", opening, "id", opening, "ids", t->opening, "tokens", opening);
}

static char *text_of_id(const struct checkpoint *ck, int32_t id) {
    struct gguf_value tokens;
    if (id < 0 || !ck_gguf_get(ck, "tokenizer.ggml.tokens", &tokens)) return NULL;
    const struct gguf_string s = ck_gguf_array_string(ck, &tokens, (uint64_t)id);
    return strndup(s.data, (size_t)s.bytes);
}

static json_t *config_of(const struct tokenizer *t, const char *opening, const char *end) {
    json_t *config = json_pack("{s:s, s:b, s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "clean_up_tokenization_spaces", 0, "add_bos_token", tok_adds_opening(t));
    if (opening != NULL) json_object_set_new(config, "bos_token", json_string(opening));
    if (end != NULL) json_object_set_new(config, "eos_token", json_string(end));
    if (t->chat_template != NULL) json_object_set_new(config, "chat_template", json_string(t->chat_template));
    return config;
}

enum st tok_export_json(const struct checkpoint *ck, char **tokenizer, char **config, struct err *e) {
    struct tokenizer *t = NULL;
    enum st st = tok_open(ck, &t, e);
    if (st != ST_OK) return st;
    json_t *vocab = json_object(), *added = json_array(), *merges = merges_of(ck), *root = NULL, *settings = NULL;
    char *opening = text_of_id(ck, t->opening), *end = text_of_id(ck, t->n_ends > 0 ? t->ends[0] : -1), *texts[2] = {NULL, NULL};
    st = vocab != NULL && added != NULL && merges != NULL ? vocab_of(ck, t, vocab, added, e) : no_memory(e);
    if (st == ST_OK) {
        root = json_pack("{s:s, s:n, s:n, s:O, s:n, s:o, s:o, s:o, s:{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:O, s:O}}", "version", "1.0", "truncation", "padding",
                         "added_tokens", added, "normalizer", "pre_tokenizer", pre_tokeniser_of(t->pre_row), "post_processor", post_processor_of(t, opening), "decoder", byte_level(),
                         "model", "type", "BPE", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges",
                         t->bpe.ignore_merges, "vocab", vocab, "merges", merges);
        settings = config_of(t, opening, end);
        texts[0] = root != NULL ? json_dumps(root, JSON_INDENT(1)) : NULL;
        texts[1] = settings != NULL ? json_dumps(settings, JSON_INDENT(2)) : NULL;
        if (texts[0] == NULL || texts[1] == NULL) st = no_memory(e);
    }
    json_decref(vocab);
    json_decref(added);
    json_decref(merges);
    json_decref(root);
    json_decref(settings);
    free(opening);
    free(end);
    tok_close(t);
    if (st != ST_OK) {
        free(texts[0]);
        free(texts[1]);
        return st;
    }
    *tokenizer = texts[0];
    *config = texts[1];
    return ST_OK;
}
