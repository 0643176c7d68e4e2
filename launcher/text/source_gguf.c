/* A tokenizer from GGUF metadata: tokenizer.ggml.* and tokenizer.chat_template. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "launcher/text/tokenizer_priv.h"
#include "partition/checkpoint.h"

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5 };

static bool get_string(const struct checkpoint *ck, const char *key, struct gguf_string *string) {
    struct gguf_value value;
    if (!ck_gguf_get(ck, key, &value) || value.kind != GGUF_STRING) return false;
    *string = value.string;
    return true;
}

/* A token id; −1 where the key is missing or the number is no token. */
static int32_t get_id(const struct checkpoint *ck, const char *key, int32_t n_vocab) {
    struct gguf_value value;
    if (!ck_gguf_get(ck, key, &value)) return -1;
    if (value.kind == GGUF_UINT && value.u < (uint64_t)n_vocab) return (int32_t)value.u;
    if (value.kind == GGUF_INT && value.i >= 0 && value.i < n_vocab) return (int32_t)value.i;
    return -1;
}

static enum st set_pieces(const struct checkpoint *ck, struct tokenizer *t, const struct gguf_value *tokens, struct err *e) {
    struct gguf_value types;
    bool typed = ck_gguf_get(ck, "tokenizer.ggml.token_type", &types) && types.kind == GGUF_ARRAY &&
                 (types.array.element == GGUF_INT || types.array.element == GGUF_UINT) && types.array.n == tokens->array.n;
    unsigned char *bytes = malloc(TOK_MAX_PIECE_BYTES);
    if (bytes == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the vocabulary");
    enum st st = ST_OK;
    for (int32_t id = 0; id < t->bpe.n_vocab && st == ST_OK; id++) {
        struct gguf_string text = ck_gguf_array_string(ck, tokens, (uint64_t)id);
        int64_t type = typed ? ck_gguf_array_int(ck, &types, (uint64_t)id) : TYPE_NORMAL;
        size_t n = 0;
        if (text.bytes > TOK_MAX_PIECE_BYTES)
            st = err_set(e, ST_INVALID, "%s: token %d is too long", ck_path(ck), id);
        else if (type == TYPE_CONTROL || type == TYPE_UNKNOWN)
            st = bpe_set_piece(&t->bpe, id, text.data, text.bytes, PIECE_CONTROL, false, e);
        else if (type == TYPE_USER_DEFINED)
            st = bpe_set_piece(&t->bpe, id, text.data, text.bytes, PIECE_ADDED, false, e);
        else if (type != TYPE_UNUSED && byte_level_decode(text.data, text.bytes, bytes, &n))
            st = bpe_set_piece(&t->bpe, id, bytes, n, PIECE_NORMAL, true, e);
        else
            st = bpe_set_piece(&t->bpe, id, text.data, text.bytes, PIECE_NORMAL, false, e);
    }
    free(bytes);
    return st;
}

static enum st insert_added(struct tokenizer *t, struct err *e) {
    for (int32_t id = 0; id < t->bpe.n_vocab; id++) {
        const struct piece *piece = &t->bpe.pieces[id];
        if (piece->kind != PIECE_ADDED && piece->kind != PIECE_CONTROL) continue;
        struct added_token token = {.id = id, .control = piece->kind == PIECE_CONTROL};
        enum st st = added_insert(&t->verbatim, (const char *)t->bpe.blob + piece->offset, piece->bytes, &token, e);
        if (st != ST_OK) return st;
    }
    return ST_OK;
}

static enum st read_merges(const struct checkpoint *ck, struct tokenizer *t, struct err *e) {
    struct bpe *b = &t->bpe;
    struct gguf_value merges;
    if (!ck_gguf_get(ck, "tokenizer.ggml.merges", &merges) || merges.kind != GGUF_ARRAY || merges.array.element != GGUF_STRING ||
        merges.array.n >= UINT32_MAX) {
        return err_set(e, ST_INVALID, "%s: tokenizer.ggml.merges is not a list of strings", ck_path(ck));
    }
    size_t n = (size_t)merges.array.n, n_skipped = 0;
    struct merge_row *rows = malloc((n + 1) * sizeof *rows);
    unsigned char *bytes = malloc(2 * (size_t)TOK_MAX_PIECE_BYTES);
    if (rows == NULL || bytes == NULL) {
        free(rows);
        free(bytes);
        return err_set(e, ST_NO_MEMORY, "no memory for %zu merges", n);
    }
    for (size_t i = 0; i < n; i++) {
        rows[i] = (struct merge_row){-1, -1, -1};
        struct gguf_string line = ck_gguf_array_string(ck, &merges, i);
        /* the first blank behind the first character, as the reference has it */
        const char *blank = line.bytes < 3 || line.bytes > 2 * (size_t)TOK_MAX_PIECE_BYTES ? NULL : memchr(line.data + 1, ' ', line.bytes - 1);
        if (blank != NULL) {
            size_t n_left = (size_t)(blank - line.data), n_right = line.bytes - n_left - 1, k_left = 0, k_right = 0;
            if (n_left <= TOK_MAX_PIECE_BYTES && n_right <= TOK_MAX_PIECE_BYTES && byte_level_decode(line.data, n_left, bytes, &k_left) &&
                byte_level_decode(blank + 1, n_right, bytes + k_left, &k_right)) {
                struct merge_row row = {bpe_find(b, bytes, k_left), bpe_find(b, bytes + k_left, k_right), bpe_find(b, bytes, k_left + k_right)};
                if (row.left >= 0 && row.right >= 0 && row.result >= 0) rows[i] = row;
            }
        }
        n_skipped += rows[i].left < 0;
    }
    free(bytes);
    if (n_skipped != 0)
        LOG_WARNING("text", "%s: %zu of %zu merges name tokens that are not in the vocabulary and do not count", ck_path(ck), n_skipped, n);
    return bpe_set_merges(b, rows, (uint32_t)n, false, e);
}

static enum st find_pre_row(const struct checkpoint *ck, const struct pre_row **row, struct err *e) {
    struct gguf_string name = {"default", 7};
    if (!get_string(ck, "tokenizer.ggml.pre", &name))
        LOG_WARNING("text", "%s: tokenizer.ggml.pre is missing: \"default\" is taken, ids may be wrong", ck_path(ck));
    *row = pre_row_find(name.data, name.bytes);
    if (*row != NULL) return ST_OK;
    return err_set(e, ST_UNSUPPORTED, "%s: pre-tokeniser \"%.*s\" (tokenizer.ggml.pre) is not supported", ck_path(ck),
                   (int)(name.bytes < 100 ? name.bytes : 100), name.data);
}

static enum st read_settings(const struct checkpoint *ck, struct tokenizer *t, const struct pre_row *row, struct err *e) {
    t->opening = get_id(ck, "tokenizer.ggml.bos_token_id", t->bpe.n_vocab);
    t->adds_opening = row->adds_opening;
    t->bpe.ignore_merges = row->ignore_merges;
    struct gguf_value add;
    if (ck_gguf_get(ck, "tokenizer.ggml.add_bos_token", &add) && add.kind == GGUF_BOOL) t->adds_opening = add.b;

    static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    for (int i = 0; i < 3; i++) tok_add_end(t, get_id(ck, end_keys[i], t->bpe.n_vocab));
    struct gguf_value list; /* newer files name all of them */
    if (ck_gguf_get(ck, "tokenizer.ggml.eos_token_ids", &list) && list.kind == GGUF_ARRAY &&
        (list.array.element == GGUF_UINT || list.array.element == GGUF_INT)) {
        for (uint64_t i = 0; i < list.array.n && i < TOK_MAX_ENDS; i++) tok_add_end(t, ck_gguf_array_int(ck, &list, i));
    }

    struct gguf_string chat_template;
    if (get_string(ck, "tokenizer.chat_template", &chat_template)) {
        t->chat_template = strndup(chat_template.data, (size_t)chat_template.bytes);
        if (t->chat_template == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the chat template");
    }
    return ST_OK;
}

enum st tok_from_gguf(const struct checkpoint *ck, struct tokenizer **out, struct err *e) {
    struct gguf_string model;
    if (!get_string(ck, "tokenizer.ggml.model", &model))
        return err_set(e, ST_NOT_FOUND, "%s: the file has no tokenizer (tokenizer.ggml.model)", ck_path(ck));
    if (model.bytes != 4 || memcmp(model.data, "gpt2", 4) != 0) {
        return err_set(e, ST_UNSUPPORTED, "%s: tokenizer model \"%.*s\" (tokenizer.ggml.model) is not supported, only gpt2 is", ck_path(ck),
                       (int)(model.bytes < 100 ? model.bytes : 100), model.data);
    }
    struct gguf_value tokens;
    if (!ck_gguf_get(ck, "tokenizer.ggml.tokens", &tokens) || tokens.kind != GGUF_ARRAY || tokens.array.element != GGUF_STRING ||
        tokens.array.n < 1 || tokens.array.n > TOK_MAX_VOCAB) {
        return err_set(e, ST_INVALID, "%s: tokenizer.ggml.tokens is not a list of 1 to %d strings", ck_path(ck), TOK_MAX_VOCAB);
    }
    const struct pre_row *row = NULL;
    struct tokenizer *t = NULL;
    enum st st = find_pre_row(ck, &row, e);
    if (st == ST_OK) st = tok_create((int32_t)tokens.array.n, &t, e);
    if (st != ST_OK) return st;
    st = set_pieces(ck, t, &tokens, e);
    if (st == ST_OK) st = read_settings(ck, t, row, e);
    if (st == ST_OK) {
        tok_settle_control(t);
        st = bpe_index_pieces(&t->bpe, e);
    }
    if (st == ST_OK) st = insert_added(t, e);
    if (st == ST_OK) st = read_merges(ck, t, e);
    if (st == ST_OK) {
        struct pre_step steps[sizeof row->patterns / sizeof *row->patterns] = {{.behaviour = PRE_ISOLATED}};
        int n_steps = 0;
        for (; n_steps < (int)(sizeof steps / sizeof *steps) && row->patterns[n_steps] != NULL; n_steps++) {
            steps[n_steps] = (struct pre_step){.pattern = row->patterns[n_steps], .behaviour = PRE_ISOLATED};
        }
        st = pretok_create(steps, n_steps, ck_path(ck), &t->pre, e);
        t->pre_row = row;
    }
    if (st != ST_OK) {
        tok_close(t);
        return st;
    }
    *out = t;
    return ST_OK;
}
