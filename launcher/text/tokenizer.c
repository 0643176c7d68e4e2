/* The tokenizer as its callers see it: added tokens are cut out of the text, the rest is normalised, cut into words, and merged.
 *
 * The order of these steps is that of Hugging Face's tokenizers (AddedVocabulary::extract_and_normalize): first the tokens that stand for the text as it came, then those
 * that stand for the normalised text. Each stretch between two tokens is tokenised as a text of its own. */
#include "launcher/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "launcher/text/tokenizer_priv.h"
#include "partition/checkpoint.h"

/* ---- life ---- */

enum st tok_create(int32_t n_vocab, struct tokenizer **out, struct err *e) {
    struct tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the tokenizer");
    t->opening = -1;
    enum st st = bpe_init(&t->bpe, n_vocab, e);
    if (st != ST_OK) {
        free(t);
        return st;
    }
    *out = t;
    return ST_OK;
}

void tok_close(struct tokenizer *t) {
    if (t == NULL) return;
    bpe_release(&t->bpe);
    added_release(&t->verbatim);
    added_release(&t->normalised);
    pretok_destroy(t->pre);
    word_class_destroy(t->words);
    free(t->chat_template);
    free(t);
}

void tok_add_end(struct tokenizer *t, int64_t id) {
    if (id < 0 || id >= t->bpe.n_vocab || t->n_ends == TOK_MAX_ENDS) return;
    for (int i = 0; i < t->n_ends; i++) {
        if (t->ends[i] == id) return;
    }
    t->ends[t->n_ends++] = (int32_t)id;
}

int32_t tok_find_verbatim(const struct tokenizer *t, const char *text, size_t bytes) {
    const struct added_set *const sets[] = {&t->verbatim, &t->normalised};
    for (int i = 0; i < 2; i++) {
        size_t n = 0;
        const struct added_token *token = added_match(sets[i], text, bytes, &n);
        if (token != NULL && n == bytes) return token->id;
    }
    return -1;
}

/* Tokens that end a turn or a text, by their names in the wild. They count only where the chat template writes them. */
static const char *const known_ends[] = {
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<EOT>",
    "[EOT]",
    "<|eot|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "<|END_OF_TURN_TOKEN|>",
    "[e~[",
};

static bool looks_like_control(const unsigned char *text, size_t bytes) {
    return bytes > 2 && ((text[0] == '<' && text[bytes - 1] == '>') || (text[0] == '[' && text[bytes - 1] == ']'));
}

void tok_settle_control(struct tokenizer *t) {
    struct bpe *b = &t->bpe;
    int32_t harmony_end = -1;
    bool harmony = false;
    for (int32_t id = 0; id < b->n_vocab; id++) {
        const struct piece *piece = &b->pieces[id];
        const unsigned char *text = b->blob + piece->offset;
        if (piece->kind == PIECE_NONE || !(piece->kind != PIECE_NORMAL || looks_like_control(text, piece->bytes))) continue;
        for (size_t i = 0; i < sizeof known_ends / sizeof *known_ends; i++) {
            if (strlen(known_ends[i]) != piece->bytes || memcmp(known_ends[i], text, piece->bytes) != 0) continue;
            if (strcmp(known_ends[i], "<|return|>") == 0) harmony = true;
            if (t->chat_template == NULL || strstr(t->chat_template, known_ends[i]) == NULL) continue;
            if (strcmp(known_ends[i], "<|end|>") == 0)
                harmony_end = id; /* decided below */
            else
                tok_add_end(t, id);
        }
    }
    /* In the harmony form (gpt-oss) <|end|> closes one message of several of the same turn. */
    if (!harmony) tok_add_end(t, harmony_end);

    for (int i = -1; i < t->n_ends; i++) {
        int32_t id = i < 0 ? t->opening : t->ends[i];
        if (id < 0) continue;
        struct piece *piece = &b->pieces[id];
        if (piece->kind != PIECE_ADDED && !(piece->kind == PIECE_NORMAL && looks_like_control(b->blob + piece->offset, piece->bytes))) continue;
        LOG_DBG("text", "token %d \"%.*s\" ends or opens a text but is not marked as a control token: taken for one", id, (int)piece->bytes,
                (const char *)(b->blob + piece->offset));
        piece->kind = PIECE_CONTROL;
        piece->in_model = false;
    }
}

/* ---- encoding ---- */

struct region {
    size_t end;
    bool trusted;
};

struct encoder {
    const struct tokenizer *t;
    struct pre_scratch *pre;
    struct bpe_scratch bpe;
    struct tok_ids *out;
    const struct region *regions; /* of the whole text, in order */
    int n_regions;
    struct err *e;
};

static enum st encode_word(void *arg, const char *text, size_t bytes, struct err *e) {
    struct encoder *c = arg;
    return bpe_encode(&c->t->bpe, (const unsigned char *)text, bytes, &c->bpe, c->out, e);
}

typedef enum st (*gap_fn)(struct encoder *c, const char *text, size_t bytes, size_t offset);

/* Cuts the added tokens of one set out of a stretch; offset: where it lies in the whole text, whose regions say which control tokens count. A match stays within a region. */
static enum st cut_added(struct encoder *c, const struct added_set *set, const char *text, size_t bytes, size_t offset, const struct region *regions,
                         int n_regions, gap_fn gap) {
    if (set->n_nodes == 0) return bytes == 0 ? ST_OK : gap(c, text, bytes, offset);
    enum st st = ST_OK;
    size_t done = 0;
    int i_region = 0;
    for (size_t at = 0; at < bytes && st == ST_OK;) {
        while (i_region + 1 < n_regions && regions[i_region].end <= offset + at) i_region++;
        size_t limit = regions[i_region].end - offset < bytes ? regions[i_region].end - offset : bytes;
        size_t length = 0;
        const struct added_token *token = added_match(set, text + at, limit - at, &length);
        if (token == NULL) {
            at++;
            continue;
        }
        size_t begin = at, end = at + length;
        at = end;
        if (token->control && !regions[i_region].trusted) continue;
        if (token->single_word && (word_class_at_end(c->t->words, text, begin) || word_class_at_begin(c->t->words, text + end, bytes - end)))
            continue;
        if (token->lstrip) begin -= utf8_trailing_spaces(text + done, begin > done ? begin - done : 0);
        if (token->rstrip) end += utf8_leading_spaces(text + end, bytes - end);
        if (begin > done) st = gap(c, text + done, begin - done, offset + done);
        if (st == ST_OK) st = tok_ids_push(c->out, token->id, c->e);
        done = end;
        if (at < done) at = done;
    }
    if (st == ST_OK && done < bytes) st = gap(c, text + done, bytes - done, offset + done);
    return st;
}

static enum st encode_plain(struct encoder *c, const char *text, size_t bytes, size_t offset) {
    (void)offset;
    return pretok_run(c->t->pre, c->pre, text, bytes, encode_word, c, c->e);
}

static enum st encode_normalised(struct encoder *c, const char *text, size_t bytes, size_t offset) {
    const struct tokenizer *t = c->t;
    if (t->normal_form == NORMAL_NONE || normalise_is_nfc(text, bytes))
        return cut_added(c, &t->normalised, text, bytes, offset, c->regions, c->n_regions, encode_plain);
    char *copy = NULL;
    size_t copy_bytes = 0;
    enum st st = normalise_nfc(text, bytes, &copy, &copy_bytes, c->e);
    if (st != ST_OK) return st;
    /* Where a region ends inside the normalised copy is not known: control tokens count only where the whole stretch is trusted. */
    bool trusted = true;
    for (int i = 0; i < c->n_regions; i++) {
        bool touches = c->regions[i].end > offset && (i == 0 || c->regions[i - 1].end < offset + bytes);
        if (touches && !c->regions[i].trusted) trusted = false;
    }
    struct region whole = {copy_bytes, trusted};
    st = cut_added(c, &t->normalised, copy, copy_bytes, 0, &whole, 1, encode_plain);
    free(copy);
    return st;
}

enum st tok_encode_parts(const struct tokenizer *t, const struct tok_part *parts, int n_parts, bool add_opening, struct tok_ids *out, struct err *e) {
    size_t bytes = 0;
    for (int i = 0; i < n_parts; i++) {
        if (parts[i].bytes > INT32_MAX - bytes) return err_set(e, ST_INVALID, "the text is longer than %d bytes", INT32_MAX);
        bytes += parts[i].bytes;
    }
    if (add_opening && t->adds_opening && t->opening >= 0) {
        enum st st = tok_ids_push(out, t->opening, e);
        if (st != ST_OK) return st;
    }
    if (bytes == 0) return ST_OK;

    struct encoder c = {.t = t, .out = out, .e = e};
    struct region *regions = malloc((size_t)n_parts * sizeof *regions);
    char *joined = n_parts > 1 ? malloc(bytes) : NULL;
    enum st st = ST_OK;
    if (regions == NULL || (n_parts > 1 && joined == NULL)) st = err_set(e, ST_NO_MEMORY, "no memory for a text of %zu bytes", bytes);
    if (st == ST_OK) st = pretok_scratch_create(t->pre, &c.pre, e);
    if (st == ST_OK) {
        size_t end = 0;
        for (int i = 0; i < n_parts; i++) {
            if (parts[i].bytes == 0) continue;
            if (joined != NULL) memcpy(joined + end, parts[i].text, parts[i].bytes);
            end += parts[i].bytes;
            if (c.n_regions == 0 || regions[c.n_regions - 1].trusted != parts[i].trusted) regions[c.n_regions++].trusted = parts[i].trusted;
            regions[c.n_regions - 1].end = end;
        }
        c.regions = regions;
        st = cut_added(&c, &t->verbatim, joined != NULL ? joined : parts[0].text, bytes, 0, regions, c.n_regions, encode_normalised);
        if (c.bpe.n_lost != 0) LOG_INFORM("text", "%zu bytes have no token in this vocabulary and were left out", c.bpe.n_lost);
    }
    pretok_scratch_destroy(c.pre);
    bpe_scratch_release(&c.bpe);
    free(joined);
    free(regions);
    return st;
}

enum st tok_encode(const struct tokenizer *t, const char *text, size_t bytes, const struct tok_encode_options *options, struct tok_ids *out,
                   struct err *e) {
    struct tok_part part = {text, bytes, options != NULL && options->parse_special};
    return tok_encode_parts(t, &part, 1, options != NULL && options->add_opening, out, e);
}

/* ---- decoding and facts ---- */

enum st tok_piece(const struct tokenizer *t, int32_t id, bool with_special, const char **text, size_t *bytes, struct err *e) {
    if (id < 0 || id >= t->bpe.n_vocab) return err_set(e, ST_INVALID, "there is no token %d (the vocabulary has %d)", id, t->bpe.n_vocab);
    const struct piece *piece = &t->bpe.pieces[id];
    bool hidden = piece->bytes == 0 || (piece->kind == PIECE_CONTROL && !with_special);
    *text = hidden ? "" : (const char *)t->bpe.blob + piece->offset;
    *bytes = hidden ? 0 : piece->bytes;
    return ST_OK;
}

int32_t tok_vocab_size(const struct tokenizer *t) { return t->bpe.n_vocab; }
int32_t tok_opening(const struct tokenizer *t) { return t->opening; }
bool tok_adds_opening(const struct tokenizer *t) { return t->adds_opening && t->opening >= 0; }
const char *tok_chat_template(const struct tokenizer *t) { return t->chat_template; }

bool tok_is_end(const struct tokenizer *t, int32_t id) {
    for (int i = 0; i < t->n_ends; i++) {
        if (t->ends[i] == id) return true;
    }
    return false;
}

const int32_t *tok_ends(const struct tokenizer *t, int *n) {
    *n = t->n_ends;
    return t->ends;
}

/* ---- from a checkpoint ---- */

/* The whole file if it is there, NUL-terminated; *text stays NULL where it is not. */
static enum st read_template(const struct checkpoint *ck, char **text, struct err *e) {
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/chat_template.jinja", ck_path(ck));
    FILE *f = n < 0 || (size_t)n >= sizeof path ? NULL : fopen(path, "rb");
    if (f == NULL) return ST_OK;
    enum { MAX = 1 << 20 };
    char *data = malloc(MAX + 1);
    enum st st = ST_OK;
    size_t got = data == NULL ? 0 : fread(data, 1, MAX + 1, f);
    if (data == NULL)
        st = err_set(e, ST_NO_MEMORY, "no memory to read %s", path);
    else if (ferror(f))
        st = err_set(e, ST_IO, "%s: cannot be read", path);
    else if (got > MAX)
        st = err_set(e, ST_INVALID, "%s: a chat template of more than 1 MiB", path);
    else if (memchr(data, 0, got) != NULL)
        st = err_set(e, ST_INVALID, "%s: a NUL byte in a chat template", path);
    fclose(f);
    if (st != ST_OK) {
        free(data);
        return st;
    }
    data[got] = 0;
    *text = data;
    return ST_OK;
}

enum st tok_open(const struct checkpoint *ck, struct tokenizer **t, struct err *e) {
    if (ck_kind_of(ck) == CK_GGUF) return tok_from_gguf(ck, t, e);
    struct tok_json files = {.where = "tokenizer.json"};
    enum st st = ck_json(ck, "tokenizer.json", &files.tokenizer, e);
    if (st == ST_OK && files.tokenizer == NULL) st = err_set(e, ST_NOT_FOUND, "%s: there is no tokenizer.json", ck_path(ck));
    if (st == ST_OK) st = ck_json(ck, "tokenizer_config.json", &files.tokenizer_config, e);
    if (st == ST_OK) st = ck_json(ck, "generation_config.json", &files.generation_config, e);
    if (st == ST_OK) st = ck_json(ck, "config.json", &files.config, e);
    char *chat_template = NULL;
    if (st == ST_OK) st = read_template(ck, &chat_template, e);
    files.chat_template = chat_template;
    if (st == ST_OK) st = tok_from_json(&files, t, e);
    free(chat_template);
    return st;
}
