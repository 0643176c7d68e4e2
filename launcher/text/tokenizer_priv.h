/* Inside the tokenizer: what the sources (GGUF, tokenizer.json) fill in and the encoder reads.
 *
 * tok_create → pieces, added tokens, merges, pre-tokeniser, ends (one of the sources) → tok_finish → read only.
 * Bytes everywhere: a piece is kept as the bytes it stands for, so the byte-level alphabet is crossed once, at load. */
#ifndef LAUNCHER_TEXT_TOKENIZER_PRIV_H
#define LAUNCHER_TEXT_TOKENIZER_PRIV_H

#include <jansson.h>

#include "launcher/text/normalise.h"
#include "launcher/text/pretokenise.h"
#include "launcher/text/tokenizer.h"

#define TOK_MAX_VOCAB (1 << 22)
#define TOK_MAX_PIECE_BYTES 65536 /* of one piece; longer ones are refused */
#define TOK_MAX_ADDED_BYTES 1024  /* of one added token: bounds the work per byte of text */
#define TOK_MAX_ENDS 32

/* ---- bpe.c: pieces, merges, and the merging itself ---- */

enum piece_kind {
    PIECE_NONE,    /* a hole in the numbering: no bytes */
    PIECE_NORMAL,  /* reached by merges */
    PIECE_ADDED,   /* found verbatim in any text */
    PIECE_CONTROL, /* found verbatim in trusted text only */
};

struct piece {
    uint64_t offset; /* into bpe.blob */
    uint32_t bytes;
    uint8_t kind;     /* enum piece_kind */
    uint8_t in_model; /* the merges may produce it */
};

struct merge_row {
    int32_t left, right, result; /* left −1: no such rank */
};

struct bpe {
    struct piece *pieces; /* by id */
    int32_t n_vocab;
    unsigned char *blob;
    size_t blob_bytes, blob_capacity;

    int32_t byte_ids[256]; /* −1: the vocabulary has no token for this byte */
    int32_t *piece_slots;  /* open addressing: id, −1 empty */
    uint32_t piece_mask;
    struct merge_row *rows; /* by rank */
    uint32_t n_rows;
    uint32_t *merge_slots; /* open addressing over (left, right): rank + 1, 0 empty */
    uint32_t merge_mask;

    int32_t unknown; /* emitted for bytes without a token; −1: they are left out, as the references do */
    bool fuse_unknown;
    bool ignore_merges; /* a whole word that is a piece is that piece */
};

/* Zeroed storage in, n_vocab holes. */
enum st bpe_init(struct bpe *b, int32_t n_vocab, struct err *e);
void bpe_release(struct bpe *b);
enum st bpe_set_piece(struct bpe *b, int32_t id, const void *bytes, size_t n_bytes, enum piece_kind kind, bool in_model, struct err *e);
/* After the last set_piece: the table from bytes to ids and byte_ids. */
enum st bpe_index_pieces(struct bpe *b, struct err *e);
int32_t bpe_find(const struct bpe *b, const void *bytes, size_t n_bytes); /* among in_model pieces; −1 */
/* n_rows ranks, filled in by the caller (rows[i].left −1: skipped). Takes rows (malloc'ed) whatever happens. Of two rows with one pair the first or the last counts. */
enum st bpe_set_merges(struct bpe *b, struct merge_row *rows, uint32_t n_rows, bool last_wins, struct err *e);

struct bpe_scratch {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    size_t capacity; /* in bytes of text */
    size_t n_lost;   /* bytes left out so far */
};
void bpe_scratch_release(struct bpe_scratch *s);
/* One word, as bytes. O(n log n), no recursion. */
enum st bpe_encode(const struct bpe *b, const unsigned char *text, size_t n, struct bpe_scratch *s, struct tok_ids *out, struct err *e);
enum st tok_ids_push(struct tok_ids *out, int32_t id, struct err *e);

/* The byte-level alphabet (GPT-2's bytes_to_unicode): each byte as a printable character. text → bytes in place of out (at least n bytes).
 * false: text holds a character outside the alphabet. */
bool byte_level_decode(const char *text, size_t n, unsigned char *out, size_t *n_out);

/* ---- added.c: tokens that are found in the text as they stand, before any splitting ---- */

struct added_token {
    int32_t id;
    bool lstrip, rstrip; /* takes the blanks before, after */
    bool single_word;    /* only where no word character touches it */
    bool control;
};

struct added_set {
    struct added_node *nodes; /* a trie over bytes */
    uint32_t n_nodes, capacity_nodes;
    struct added_token *tokens;
    uint32_t n_tokens, capacity_tokens;
};
void added_release(struct added_set *set);
/* A second one with the same text replaces the first. */
enum st added_insert(struct added_set *set, const char *text, size_t bytes, const struct added_token *token, struct err *e);
/* The longest token that starts at text[0]; NULL if none. */
const struct added_token *added_match(const struct added_set *set, const char *text, size_t bytes, size_t *match_bytes);

/* ---- tokenizer.c ---- */

struct tokenizer {
    struct bpe bpe;
    struct added_set verbatim;   /* looked for in the text as it came */
    struct added_set normalised; /* looked for after the normaliser */
    enum normal_form normal_form;
    struct pretok *pre;
    const struct pre_row *pre_row; /* what GGUF calls it; NULL: it has no name there */
    struct word_class *words; /* NULL where no added token asks for single_word */

    int32_t opening;
    bool adds_opening;
    int32_t ends[TOK_MAX_ENDS];
    int n_ends;
    char *chat_template;
};

enum st tok_create(int32_t n_vocab, struct tokenizer **t, struct err *e);
void tok_add_end(struct tokenizer *t, int64_t id);                                    /* out of range or present already: nothing */
int32_t tok_find_verbatim(const struct tokenizer *t, const char *text, size_t bytes); /* id of the added or control token of this text; −1 */
/* Known end tokens that the chat template writes join the ends; ends and the opening token become control tokens where they look like one. Call with all pieces set, before bpe_index_pieces. */
void tok_settle_control(struct tokenizer *t);

enum st tok_from_gguf(const struct checkpoint *ck, struct tokenizer **t, struct err *e);
struct tok_json {
    const char *where;                                           /* for errors */
    const json_t *tokenizer;                                     /* tokenizer.json */
    const json_t *tokenizer_config, *generation_config, *config; /* NULL where absent */
    const char *chat_template;                                   /* chat_template.jinja, NULL where absent */
};
enum st tok_from_json(const struct tok_json *files, struct tokenizer **t, struct err *e);

/* A text made of parts, tokenised as one: control tokens are recognised only where they lie inside trusted parts. */
struct tok_part {
    const char *text;
    size_t bytes;
    bool trusted;
};
enum st tok_encode_parts(const struct tokenizer *t, const struct tok_part *parts, int n_parts, bool add_opening, struct tok_ids *out, struct err *e);

#endif
