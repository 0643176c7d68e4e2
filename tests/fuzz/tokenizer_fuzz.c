/* The tokenizer, three ways by the first byte: a hostile tokenizer.json; a hostile pattern; any bytes through a byte-level BPE and back, in which they must be the same.
 * What a file describes is then used on a short text, so that what load let through is seen by the encoder, too. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "launcher/text/chat.h"
#include "launcher/text/tokenizer_priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void use(const struct tokenizer *t, const char *text, size_t bytes) {
    for (int mode = 0; mode < 4; mode++) {
        struct tok_ids ids = {0};
        struct err e = {{0}};
        (void)tok_encode(t, text, bytes, &(struct tok_encode_options){.parse_special = mode & 1, .add_opening = mode & 2}, &ids, &e);
        for (size_t i = 0; i < ids.n; i++) {
            const char *piece = NULL;
            size_t n = 0;
            BASE_ASSERT(tok_piece(t, ids.ids[i], true, &piece, &n, &e) == ST_OK);
            BASE_ASSERT((mode & 1) || ((mode & 2) && i == 0) || t->bpe.pieces[ids.ids[i]].kind != PIECE_CONTROL || ids.ids[i] == t->bpe.unknown);
        }
        free(ids.ids);
    }
    const struct chat_form *form = NULL;
    struct err e = {{0}};
    if (chat_form_find(t, &form, &e) != ST_OK) return;
    struct tok_ids ids = {0};
    const struct chat_message messages[] = {{CHAT_SYSTEM, text, bytes / 2}, {CHAT_USER, text, bytes}, {CHAT_ASSISTANT, text + bytes / 3, bytes - bytes / 3}};
    (void)chat_encode(form, t, messages, 3, "2026-01-31", &ids, &e);
    free(ids.ids);
}

static void hostile_file(const char *text, size_t bytes) {
    json_t *root = NULL;
    struct err e = {{0}};
    if (base_json_parse("fuzz", text, bytes, &root, &e) != ST_OK) return;
    struct tokenizer *t = NULL;
    /* the same file plays all parts */
    struct tok_json files = {.where = "fuzz", .tokenizer = root, .tokenizer_config = root, .generation_config = root, .config = root};
    if (tok_from_json(&files, &t, &e) == ST_OK) {
        static const char sample[] = "Hi  there <t> it's 1234 \r\n\xe6\xbc\xa2\xff<|im_end|> e\xcc\x81</think><|channel|>final<|message|>\n";
        use(t, sample, sizeof sample - 1);
        tok_close(t);
    }
    json_decref(root);
}

static enum st count(void *arg, const char *text, size_t bytes, struct err *e) {
    (void)text;
    (void)e;
    *(size_t *)arg += bytes;
    return ST_OK;
}

static void hostile_pattern(const char *text, size_t bytes) {
    char pattern[256];
    if (bytes >= sizeof pattern) bytes = sizeof pattern - 1;
    memcpy(pattern, text, bytes);
    pattern[bytes] = 0;
    struct pretok *p = NULL;
    struct pre_scratch *s = NULL;
    struct err e = {{0}};
    if (pretok_create(&(struct pre_step){.pattern = pattern}, 1, "fuzz", &p, &e) != ST_OK) return;
    static const char sample[] = "aab  12 it's \xff\n";
    size_t n = 0;
    if (pretok_scratch_create(p, &s, &e) == ST_OK && pretok_run(p, s, sample, sizeof sample - 1, count, &n, &e) == ST_OK)
        BASE_ASSERT(n == sizeof sample - 1);
    pretok_scratch_destroy(s);
    pretok_destroy(p);
}

/* All bytes, and merges of every pair of some of them. */
static struct tokenizer *make(const char *row_name) {
    enum { N_MERGES = 200 };
    static const unsigned char often[] = "aeinot '\n1\xef\xbf\xbd\xe6";
    struct tokenizer *t = NULL;
    struct err e = {{0}};
    const struct pre_row *row = pre_row_find(row_name, strlen(row_name));
    BASE_ASSERT(row != NULL && tok_create(256 + N_MERGES + 1, &t, &e) == ST_OK);
    for (int i = 0; i < 256; i++) BASE_ASSERT(bpe_set_piece(&t->bpe, i, &(unsigned char){(unsigned char)i}, 1, PIECE_NORMAL, true, &e) == ST_OK);
    struct merge_row *rows = calloc(N_MERGES, sizeof *rows);
    BASE_ASSERT(rows != NULL);
    for (int i = 0; i < N_MERGES; i++) {
        int left = i < 169 ? often[i / 13] : 256 + i - 169, right = i < 169 ? often[i % 13] : 256 + (i * 7) % 169;
        unsigned char text[8];
        const struct piece *l = &t->bpe.pieces[left], *r = &t->bpe.pieces[right];
        memcpy(text, t->bpe.blob + l->offset, l->bytes);
        memcpy(text + l->bytes, t->bpe.blob + r->offset, r->bytes);
        rows[i] = (struct merge_row){left, right, 256 + i};
        BASE_ASSERT(bpe_set_piece(&t->bpe, 256 + i, text, l->bytes + r->bytes, PIECE_NORMAL, true, &e) == ST_OK);
    }
    BASE_ASSERT(bpe_set_piece(&t->bpe, 256 + N_MERGES, "<|x|>", 5, PIECE_CONTROL, false, &e) == ST_OK);
    BASE_ASSERT(added_insert(&t->verbatim, "<|x|>", 5, &(struct added_token){.id = 256 + N_MERGES, .control = true}, &e) == ST_OK);
    BASE_ASSERT(bpe_index_pieces(&t->bpe, &e) == ST_OK && bpe_set_merges(&t->bpe, rows, N_MERGES, true, &e) == ST_OK);
    struct pre_step steps[6] = {{.behaviour = PRE_ISOLATED}};
    int n = 0;
    for (; n < 6 && row->patterns[n] != NULL; n++) steps[n] = (struct pre_step){.pattern = row->patterns[n]};
    BASE_ASSERT(pretok_create(steps, n, row_name, &t->pre, &e) == ST_OK);
    return t;
}

static void any_bytes(unsigned which, const char *text, size_t bytes) {
    static const char *const names[] = {"smollm", "llama-bpe", "deepseek-v3", "gpt-4o", "deepseek-llm", "default"};
    enum { N = sizeof names / sizeof *names };
    static struct tokenizer *tokenizers[N];
    struct tokenizer **t = &tokenizers[which % N];
    if (*t == NULL) *t = make(names[which % N]);
    for (int special = 0; special < 2; special++) {
        struct tok_ids ids = {0};
        struct err e = {{0}};
        BASE_ASSERT(tok_encode(*t, text, bytes, &(struct tok_encode_options){.parse_special = special}, &ids, &e) == ST_OK);
        size_t at = 0;
        for (size_t i = 0; i < ids.n; i++) {
            const char *piece = NULL;
            size_t n = 0;
            BASE_ASSERT(tok_piece(*t, ids.ids[i], true, &piece, &n, &e) == ST_OK);
            BASE_ASSERT(special || ids.ids[i] < 456);
            BASE_ASSERT(at + n <= bytes && memcmp(text + at, piece, n) == 0);
            at += n;
        }
        BASE_ASSERT(at == bytes);
        free(ids.ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static bool quiet;
    if (!quiet) base_log_init("error"); /* files whose merges name unknown tokens are told, by the thousand */
    quiet = true;
    if (bytes == 0) return 0;
    const char *text = (const char *)data + 1;
    if (data[0] == '{')
        hostile_file((const char *)data, bytes);
    else if (data[0] == '/')
        hostile_pattern(text, bytes - 1);
    else
        any_bytes(data[0], text, bytes - 1);
    return 0;
}
