/* A tokenizer from tokenizer.json (Hugging Face tokenizers) and the files beside it.
 *
 * Only byte-level BPE is understood. Whatever the file says that would change ids and is not known here is refused by name. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "launcher/text/tokenizer_priv.h"

struct source {
    const struct tok_json *files;
    struct tokenizer *t;
    struct err *e;
};

/* A member that is there and not null. */
static const json_t *member(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static const char *type_of(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type != NULL ? type : "(none)";
}

static enum st refuse(const struct source *s, const char *what, const char *name) {
    return err_set(s->e, ST_UNSUPPORTED, "%s: %s \"%.200s\" is not supported", s->files->where, what, name);
}

static enum st malformed(const struct source *s, const char *what) { return err_set(s->e, ST_INVALID, "%s: %s", s->files->where, what); }

static enum st flag(const struct source *s, const json_t *object, const char *key, bool *value) {
    enum st st = base_json_bool(object, s->files->where, key, value, s->e);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

/* ---- vocabulary ---- */

struct added_entry {
    const char *text;
    size_t bytes;
    bool normalised, special;
    struct added_token token;
};

static enum st read_added(const struct source *s, const json_t *entry, struct added_entry *out) {
    *out = (struct added_entry){.normalised = true};
    const json_t *content = member(entry, "content");
    int64_t id = 0;
    if (!json_is_object(entry) || !json_is_string(content)) return malformed(s, "an added token without content");
    enum st st = base_json_i64(entry, s->files->where, "id", 0, TOK_MAX_VOCAB - 1, &id, s->e);
    if (st == ST_NOT_FOUND) return malformed(s, "an added token without id");
    if (st == ST_OK) st = flag(s, entry, "special", &out->special);
    out->normalised = !out->special; /* where the file does not say */
    if (st == ST_OK) st = flag(s, entry, "normalized", &out->normalised);
    if (st == ST_OK) st = flag(s, entry, "lstrip", &out->token.lstrip);
    if (st == ST_OK) st = flag(s, entry, "rstrip", &out->token.rstrip);
    if (st == ST_OK) st = flag(s, entry, "single_word", &out->token.single_word);
    /* A token that is in the vocabulary already has the id that it has there, whatever the list says. */
    const json_t *known = json_object_get(member(member(s->files->tokenizer, "model"), "vocab"), json_string_value(content));
    if (json_is_integer(known) && json_integer_value(known) >= 0 && json_integer_value(known) < TOK_MAX_VOCAB) id = json_integer_value(known);
    out->token.id = (int32_t)id;
    out->text = json_string_value(content);
    out->bytes = json_string_length(content);
    return st;
}

static enum st find_vocab_size(const struct source *s, const json_t *vocab, const json_t *added, int32_t *n_vocab) {
    int64_t max = -1;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)vocab, key, value) {
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return err_set(s->e, ST_INVALID, "%s: token \"%.100s\" has no id", s->files->where, key);
        if (json_integer_value(value) > max) max = json_integer_value(value);
    }
    size_t i;
    json_array_foreach(added, i, value) {
        struct added_entry entry;
        enum st st = read_added(s, value, &entry);
        if (st != ST_OK) return st;
        if (entry.token.id > max) max = entry.token.id;
    }
    size_t n_tokens = json_object_size(vocab) + json_array_size(added);
    if (max < 0 || max >= TOK_MAX_VOCAB || (uint64_t)max > 4 * (uint64_t)n_tokens + 65536) {
        return err_set(s->e, ST_INVALID, "%s: ids up to %lld for %zu tokens", s->files->where, (long long)max, n_tokens);
    }
    *n_vocab = (int32_t)max + 1;
    return ST_OK;
}

static enum st set_pieces(const struct source *s, const json_t *vocab, const json_t *added) {
    struct bpe *b = &s->t->bpe;
    const char *key;
    json_t *value;
    unsigned char *bytes = malloc(TOK_MAX_PIECE_BYTES);
    if (bytes == NULL) return err_set(s->e, ST_NO_MEMORY, "no memory for the vocabulary");
    enum st st = ST_OK;
    json_object_foreach((json_t *)vocab, key, value) {
        int32_t id = (int32_t)json_integer_value(value);
        size_t n = strlen(key), n_bytes = 0;
        if (b->pieces[id].kind != PIECE_NONE)
            st = err_set(s->e, ST_INVALID, "%s: id %d belongs to two tokens", s->files->where, id);
        else if (n > TOK_MAX_PIECE_BYTES)
            st = err_set(s->e, ST_INVALID, "%s: token %d is %zu bytes long (at most %d)", s->files->where, id, n, TOK_MAX_PIECE_BYTES);
        else if (byte_level_decode(key, n, bytes, &n_bytes))
            st = bpe_set_piece(b, id, bytes, n_bytes, PIECE_NORMAL, true, s->e);
        else
            st = bpe_set_piece(b, id, key, n, PIECE_NORMAL, false, s->e); /* bytes cannot lead there */
        if (st != ST_OK) break;
    }
    size_t i;
    json_array_foreach(added, i, value) {
        struct added_entry entry;
        if (st == ST_OK) st = read_added(s, value, &entry);
        if (st != ST_OK) break;
        /* In the vocabulary under the same bytes: the merges may produce it, too, unless it is a control token. */
        const struct piece *piece = &b->pieces[entry.token.id];
        bool in_model =
            !entry.special && piece->in_model && piece->bytes == entry.bytes && memcmp(b->blob + piece->offset, entry.text, entry.bytes) == 0;
        st = bpe_set_piece(b, entry.token.id, entry.text, entry.bytes, entry.special ? PIECE_CONTROL : PIECE_ADDED, in_model, s->e);
    }
    free(bytes);
    return st;
}

static enum st insert_added(const struct source *s, const json_t *added) {
    struct tokenizer *t = s->t;
    size_t i;
    json_t *value;
    json_array_foreach(added, i, value) {
        struct added_entry entry;
        enum st st = read_added(s, value, &entry);
        if (st != ST_OK) return st;
        entry.token.control = t->bpe.pieces[entry.token.id].kind == PIECE_CONTROL;
        if (entry.token.single_word && t->words == NULL) st = word_class_create(&t->words, s->e);
        if (st == ST_OK && entry.normalised && t->normal_form == NORMAL_NFC && !normalise_is_nfc(entry.text, entry.bytes)) {
            char *copy = NULL;
            size_t n = 0;
            st = normalise_nfc(entry.text, entry.bytes, &copy, &n, s->e);
            if (st == ST_OK) st = added_insert(&t->normalised, copy, n, &entry.token, s->e);
            free(copy);
        } else if (st == ST_OK) {
            st = added_insert(entry.normalised ? &t->normalised : &t->verbatim, entry.text, entry.bytes, &entry.token, s->e);
        }
        if (st != ST_OK) return st;
    }
    return ST_OK;
}

/* ---- model ---- */

/* One side of a merge, as text of the byte-level alphabet. −2: no memory for it; −1: not in the vocabulary. */
static int32_t find_side(const struct bpe *b, const char *text, size_t n, unsigned char *bytes) {
    size_t n_bytes = 0;
    if (n > TOK_MAX_PIECE_BYTES || !byte_level_decode(text, n, bytes, &n_bytes)) return -1;
    return bpe_find(b, bytes, n_bytes);
}

static enum st read_merges(const struct source *s, const json_t *merges) {
    struct bpe *b = &s->t->bpe;
    if (!json_is_array(merges)) return malformed(s, "model.merges is not a list");
    size_t n = json_array_size(merges), n_skipped = 0, i;
    struct merge_row *rows = malloc((n + 1) * sizeof *rows);
    unsigned char *bytes = malloc(3 * (size_t)TOK_MAX_PIECE_BYTES);
    enum st st = rows == NULL || bytes == NULL || n >= UINT32_MAX ? err_set(s->e, ST_NO_MEMORY, "no memory for %zu merges", n) : ST_OK;
    json_t *value;
    json_array_foreach(merges, i, value) {
        if (st != ST_OK) break;
        const char *left = NULL, *right = NULL;
        size_t n_left = 0, n_right = 0;
        if (json_is_string(value)) {
            left = json_string_value(value);
            const char *blank = memchr(left, ' ', json_string_length(value));
            if (blank != NULL) {
                n_left = (size_t)(blank - left);
                right = blank + 1;
                n_right = json_string_length(value) - n_left - 1;
            }
        } else if (json_is_array(value) && json_array_size(value) == 2 && json_is_string(json_array_get(value, 0)) &&
                   json_is_string(json_array_get(value, 1))) {
            left = json_string_value(json_array_get(value, 0));
            n_left = json_string_length(json_array_get(value, 0));
            right = json_string_value(json_array_get(value, 1));
            n_right = json_string_length(json_array_get(value, 1));
        }
        if (n_left == 0 || n_right == 0) {
            st = err_set(s->e, ST_INVALID, "%s: merge %zu is not a pair of tokens", s->files->where, i);
            break;
        }
        rows[i] = (struct merge_row){find_side(b, left, n_left, bytes), find_side(b, right, n_right, bytes), -1};
        if (rows[i].left >= 0 && rows[i].right >= 0) {
            const struct piece *l = &b->pieces[rows[i].left], *r = &b->pieces[rows[i].right];
            memcpy(bytes, b->blob + l->offset, l->bytes);
            memcpy(bytes + l->bytes, b->blob + r->offset, r->bytes);
            rows[i].result = bpe_find(b, bytes, (size_t)l->bytes + r->bytes);
        }
        if (rows[i].result < 0) { /* of control tokens, or of tokens that do not exist */
            rows[i].left = -1;
            n_skipped++;
        }
    }
    free(bytes);
    if (st != ST_OK) {
        free(rows);
        return st;
    }
    if (n_skipped == n && n != 0) {
        free(rows);
        return malformed(s, "no merge is made of tokens of the vocabulary");
    }
    if (n_skipped != 0)
        LOG_WARNING("text", "%s: %zu of %zu merges name tokens that are not in the vocabulary and do not count", s->files->where, n_skipped, n);
    return bpe_set_merges(b, rows, (uint32_t)n, true, s->e);
}

static enum st empty_or_refuse(const struct source *s, const json_t *model, const char *key) {
    const json_t *value = member(model, key);
    return value == NULL || (json_is_string(value) && json_string_length(value) == 0) ? ST_OK : refuse(s, "model setting", key);
}

static enum st read_model(const struct source *s, const json_t *model) {
    struct bpe *b = &s->t->bpe;
    bool byte_fallback = false;
    const json_t *dropout = member(model, "dropout"), *unknown = member(model, "unk_token");
    enum st st = dropout == NULL || json_number_value(dropout) == 0 ? ST_OK : refuse(s, "model setting", "dropout");
    if (st == ST_OK) st = empty_or_refuse(s, model, "continuing_subword_prefix");
    if (st == ST_OK) st = empty_or_refuse(s, model, "end_of_word_suffix");
    if (st == ST_OK) st = flag(s, model, "ignore_merges", &b->ignore_merges);
    if (st == ST_OK) st = flag(s, model, "fuse_unk", &b->fuse_unknown);
    if (st == ST_OK) st = flag(s, model, "byte_fallback", &byte_fallback);
    if (st != ST_OK) return st;
    if (byte_fallback) { /* without effect where every byte is a token */
        for (int i = 0; i < 256; i++) {
            if (b->byte_ids[i] < 0) return refuse(s, "model setting", "byte_fallback");
        }
    }
    if (json_is_string(unknown)) {
        const json_t *id = json_object_get(member(model, "vocab"), json_string_value(unknown));
        if (json_is_integer(id)) b->unknown = (int32_t)json_integer_value(id);
        /* A user's text must not end itself: where the token for unknown bytes ends or opens texts, they are left out. */
        if (b->unknown >= 0 && (tok_is_end(s->t, b->unknown) || b->unknown == s->t->opening)) b->unknown = -1;
    }
    return read_merges(s, member(model, "merges"));
}

/* ---- normaliser and pre-tokeniser ---- */

static enum st read_normaliser(const struct source *s, const json_t *normaliser, int depth) {
    if (normaliser == NULL) return ST_OK;
    const char *type = type_of(normaliser);
    if (strcmp(type, "NFC") == 0) {
        s->t->normal_form = NORMAL_NFC;
        return ST_OK;
    }
    const json_t *list = member(normaliser, "normalizers");
    if (strcmp(type, "Sequence") == 0 && json_is_array(list) && depth < 4) {
        size_t i;
        json_t *value;
        json_array_foreach(list, i, value) {
            enum st st = read_normaliser(s, value, depth + 1);
            if (st != ST_OK) return st;
        }
        return ST_OK;
    }
    return refuse(s, "normalizer", type);
}

struct step_list {
    struct pre_step steps[PRE_MAX_STEPS];
    char *owned[PRE_MAX_STEPS]; /* patterns made here */
    int n;
    bool byte_level; /* nothing may follow */
};

/* A literal as a pattern. */
static char *quote(const char *text) {
    char *pattern = malloc(2 * strlen(text) + 1), *p = pattern;
    if (pattern == NULL) return NULL;
    for (; *text != 0; text++) {
        bool plain = (unsigned char)*text >= 0x80 || (*text >= '0' && *text <= '9') || (*text >= 'a' && *text <= 'z') ||
                     (*text >= 'A' && *text <= 'Z') || (unsigned char)*text < 0x20;
        if (!plain) *p++ = '\\';
        *p++ = *text;
    }
    *p = 0;
    return pattern;
}

static enum st read_behaviour(const struct source *s, const json_t *object, enum pre_behaviour *behaviour) {
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name = json_string_value(member(object, "behavior"));
    for (int i = 0; name != NULL && i < 5; i++) {
        if (strcmp(name, names[i]) == 0) {
            *behaviour = (enum pre_behaviour)i;
            return ST_OK;
        }
    }
    return refuse(s, "pre_tokenizer behavior", name != NULL ? name : "(none)");
}

static enum st read_split(const struct source *s, const json_t *split, struct step_list *list) {
    struct pre_step *step = &list->steps[list->n];
    const json_t *pattern = member(split, "pattern");
    const char *regex = json_string_value(member(pattern, "Regex")), *literal = json_string_value(member(pattern, "String"));
    if ((regex == NULL) == (literal == NULL)) return malformed(s, "a Split pre_tokenizer without pattern");
    enum st st = flag(s, split, "invert", &step->invert);
    if (st == ST_OK) st = read_behaviour(s, split, &step->behaviour);
    if (st != ST_OK) return st;
    if (literal != NULL) {
        list->owned[list->n] = quote(literal);
        if (list->owned[list->n] == NULL) return err_set(s->e, ST_NO_MEMORY, "no memory for a pattern");
        regex = list->owned[list->n];
    }
    step->pattern = regex;
    list->n++;
    return ST_OK;
}

static enum st read_pre_tokeniser(const struct source *s, const json_t *pre, struct step_list *list, int depth) {
    const char *type = type_of(pre);
    if (strcmp(type, "Sequence") == 0 && depth < 4) {
        const json_t *sequence = member(pre, "pretokenizers");
        size_t i;
        json_t *value;
        if (!json_is_array(sequence)) return malformed(s, "a Sequence pre_tokenizer without list");
        json_array_foreach(sequence, i, value) {
            enum st st = read_pre_tokeniser(s, value, list, depth + 1);
            if (st != ST_OK) return st;
        }
        return ST_OK;
    }
    if (list->n == PRE_MAX_STEPS) return err_set(s->e, ST_UNSUPPORTED, "%s: a pre_tokenizer of more than %d steps", s->files->where, PRE_MAX_STEPS);
    if (list->byte_level) return refuse(s, "after ByteLevel, pre_tokenizer", type);
    struct pre_step *step = &list->steps[list->n];
    *step = (struct pre_step){.behaviour = PRE_ISOLATED};
    if (strcmp(type, "ByteLevel") == 0) {
        bool use_regex = true;
        step->prefix_space = true; /* where the file does not say */
        enum st st = flag(s, pre, "add_prefix_space", &step->prefix_space);
        if (st == ST_OK) st = flag(s, pre, "use_regex", &use_regex);
        step->pattern = use_regex ? pre_pattern_gpt2 : NULL;
        list->byte_level = true;
        list->n += use_regex || step->prefix_space;
        return st;
    }
    if (strcmp(type, "Split") == 0) return read_split(s, pre, list);
    if (strcmp(type, "Digits") == 0) {
        bool individual = false;
        enum st st = flag(s, pre, "individual_digits", &individual);
        step->pattern = individual ? "\\p{N}" : "\\p{N}+";
        list->n++;
        return st;
    }
    if (strcmp(type, "Punctuation") == 0) {
        step->pattern = "[\\p{P}$+<=>^`|~]";
        list->n++;
        return member(pre, "behavior") == NULL ? ST_OK : read_behaviour(s, pre, &step->behaviour);
    }
    if (strcmp(type, "WhitespaceSplit") == 0) {
        step->pattern = "\\s";
        step->behaviour = PRE_REMOVED;
        list->n++;
        return ST_OK;
    }
    return refuse(s, "pre_tokenizer", type);
}

static enum st make_pretok(const struct source *s, const json_t *pre) {
    struct step_list list = {.n = 0};
    if (pre == NULL) return refuse(s, "a model without", "pre_tokenizer");
    enum st st = read_pre_tokeniser(s, pre, &list, 0);
    if (st == ST_OK && !list.byte_level) st = refuse(s, "a BPE whose pre_tokenizer is not byte-level:", type_of(pre));
    if (st == ST_OK) st = pretok_create(list.steps, list.n, s->files->where, &s->t->pre, s->e);
    if (st == ST_OK) s->t->pre_row = pre_row_match(list.steps, list.n, s->t->bpe.ignore_merges);
    for (int i = 0; i < PRE_MAX_STEPS; i++) free(list.owned[i]);
    return st;
}

/* Ids become the bytes that their pieces stand for: what ByteLevel says, and a file without decoder cannot mean otherwise. Fuse joins what is joined already. */
static enum st check_decoder(const struct source *s, const json_t *decoder, int depth) {
    if (decoder == NULL) return ST_OK;
    const char *type = type_of(decoder);
    if (strcmp(type, "ByteLevel") == 0 || strcmp(type, "Fuse") == 0) return ST_OK;
    const json_t *list = member(decoder, "decoders");
    if (strcmp(type, "Sequence") != 0 || !json_is_array(list) || depth >= 4) return refuse(s, "decoder", type);
    size_t i;
    json_t *value;
    json_array_foreach(list, i, value) {
        enum st st = check_decoder(s, value, depth + 1);
        if (st != ST_OK) return st;
    }
    return ST_OK;
}

/* ---- opening and ends ---- */

static int32_t find_name(const struct source *s, const json_t *name) {
    if (json_is_object(name)) name = member(name, "content");
    if (!json_is_string(name)) return -1;
    const char *text = json_string_value(name);
    const json_t *id = json_object_get(member(member(s->files->tokenizer, "model"), "vocab"), text), *value;
    if (json_is_integer(id)) return (int32_t)json_integer_value(id);
    size_t i;
    json_array_foreach(member(s->files->tokenizer, "added_tokens"), i, value) {
        const char *content = json_string_value(member(value, "content"));
        if (content != NULL && strcmp(content, text) == 0) return (int32_t)json_integer_value(member(value, "id"));
    }
    return -1;
}

/* One id or a list of ids. */
static void add_ends(const struct source *s, const json_t *ids) {
    if (json_is_integer(ids)) tok_add_end(s->t, json_integer_value(ids));
    size_t i;
    json_t *value;
    json_array_foreach(ids, i, value) {
        if (json_is_integer(value)) tok_add_end(s->t, json_integer_value(value));
    }
}

static void find_ends(const struct source *s) {
    const struct tok_json *f = s->files;
    const json_t *text_config = member(f->config, "text_config");
    static const char *const names[] = {"eos_token", "eot_token", "eom_token"};
    add_ends(s, member(f->generation_config, "eos_token_id"));
    add_ends(s, member(f->config, "eos_token_id"));
    add_ends(s, member(text_config, "eos_token_id"));
    for (int i = 0; i < 3; i++) tok_add_end(s->t, find_name(s, member(f->tokenizer_config, names[i])));
}

/* The token that a TemplateProcessing puts first. */
static enum st read_post_processor(const struct source *s, const json_t *post, int32_t *first, int depth) {
    if (post == NULL) return ST_OK;
    const char *type = type_of(post);
    if (strcmp(type, "ByteLevel") == 0) return ST_OK; /* offsets only */
    size_t i;
    json_t *value;
    if (strcmp(type, "Sequence") == 0 && depth < 4) {
        json_array_foreach(member(post, "processors"), i, value) {
            enum st st = read_post_processor(s, value, first, depth + 1);
            if (st != ST_OK) return st;
        }
        return ST_OK;
    }
    if (strcmp(type, "TemplateProcessing") != 0) return refuse(s, "post_processor", type);
    bool text_seen = false;
    json_array_foreach(member(post, "single"), i, value) {
        const json_t *special = member(value, "SpecialToken");
        const char *name = json_string_value(member(special, "id"));
        if (special == NULL) {
            text_seen = true;
            continue;
        }
        if (name == NULL) return malformed(s, "a TemplateProcessing with a token without name");
        if (text_seen) { /* a closing token is for classifiers; a prompt must go on */
            LOG_WARNING("text", "%s: the post_processor puts \"%s\" behind every text; a prompt does without", s->files->where, name);
            continue;
        }
        const json_t *ids = member(member(member(post, "special_tokens"), name), "ids");
        const json_t *id = json_array_get(ids, 0);
        if (*first >= 0 || json_array_size(ids) != 1 || !json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= s->t->bpe.n_vocab) {
            return refuse(s, "a post_processor with several opening tokens, or an unknown one:", name);
        }
        *first = (int32_t)json_integer_value(id);
    }
    return ST_OK;
}

static enum st find_opening(const struct source *s) {
    struct tokenizer *t = s->t;
    const struct tok_json *f = s->files;
    int32_t first = -1;
    enum st st = read_post_processor(s, member(f->tokenizer, "post_processor"), &first, 0);
    if (st != ST_OK) return st;
    int32_t named = find_name(s, member(f->tokenizer_config, "bos_token"));
    const json_t *sources[] = {member(f->config, "bos_token_id"), member(f->generation_config, "bos_token_id")};
    for (int i = 0; i < 2 && named < 0; i++) {
        if (json_is_integer(sources[i]) && json_integer_value(sources[i]) >= 0 && json_integer_value(sources[i]) < t->bpe.n_vocab)
            named = (int32_t)json_integer_value(sources[i]);
    }
    t->opening = first >= 0 ? first : named;
    t->adds_opening = first >= 0;
    /* An explicit setting wins, as it does when the reference builds its post-processor. */
    const json_t *add = member(f->tokenizer_config, "add_bos_token");
    if (json_is_boolean(add) && json_is_true(add) != t->adds_opening) {
        LOG_DBG("text", "tokenizer_config.json says add_bos_token %s, the post_processor otherwise: the former counts",
                json_is_true(add) ? "true" : "false");
        t->adds_opening = json_is_true(add) && t->opening >= 0;
    }
    return ST_OK;
}

static enum st read_template(const struct source *s) {
    const char *text = s->files->chat_template;
    const json_t *value = member(s->files->tokenizer_config, "chat_template");
    if (text == NULL && json_is_string(value)) text = json_string_value(value);
    if (text == NULL && json_is_array(value)) { /* several, by name */
        size_t i;
        json_t *entry;
        json_array_foreach(value, i, entry) {
            const char *name = json_string_value(member(entry, "name"));
            if (name != NULL && strcmp(name, "default") == 0) text = json_string_value(member(entry, "template"));
        }
    }
    if (text == NULL) return ST_OK;
    s->t->chat_template = strdup(text);
    return s->t->chat_template != NULL ? ST_OK : err_set(s->e, ST_NO_MEMORY, "no memory for the chat template");
}

enum st tok_from_json(const struct tok_json *files, struct tokenizer **out, struct err *e) {
    struct source s = {.files = files, .e = e};
    const json_t *model = member(files->tokenizer, "model");
    if (!json_is_object(model)) return malformed(&s, "there is no model");
    const char *type = json_string_value(member(model, "type"));
    const json_t *vocab = member(model, "vocab"), *added = member(files->tokenizer, "added_tokens");
    if (type != NULL && strcmp(type, "BPE") != 0) return refuse(&s, "tokenizer model", type);
    if (type == NULL && member(model, "merges") == NULL) return refuse(&s, "tokenizer model", "(none)");
    if (!json_is_object(vocab)) return malformed(&s, "model.vocab is not an object");
    if (added != NULL && !json_is_array(added)) return malformed(&s, "added_tokens is not a list");

    int32_t n_vocab = 0;
    enum st st = find_vocab_size(&s, vocab, added, &n_vocab);
    if (st == ST_OK) st = tok_create(n_vocab, &s.t, e);
    if (st != ST_OK) return st;
    st = read_normaliser(&s, member(files->tokenizer, "normalizer"), 0);
    if (st == ST_OK) st = set_pieces(&s, vocab, added);
    if (st == ST_OK) st = find_opening(&s);
    if (st == ST_OK) st = read_template(&s);
    if (st == ST_OK) {
        find_ends(&s);
        tok_settle_control(s.t);
        st = bpe_index_pieces(&s.t->bpe, e);
    }
    if (st == ST_OK) st = insert_added(&s, added);
    if (st == ST_OK) st = read_model(&s, model);
    if (st == ST_OK) st = make_pretok(&s, member(files->tokenizer, "pre_tokenizer"));
    if (st == ST_OK) st = check_decoder(&s, member(files->tokenizer, "decoder"), 0);
    if (st != ST_OK) {
        tok_close(s.t);
        return st;
    }
    *out = s.t;
    return ST_OK;
}
