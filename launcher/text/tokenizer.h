/* Text to token ids and back: byte-level BPE from a tokenizer.json or from GGUF metadata.
 *
 * open → encode / decode (any thread, read only; each call brings its own scratch) → close. Exact in both directions against the files' own reference implementations.
 * A user's text never yields control tokens unless encode is asked to parse them (trusted text: a chat template around the user's words). Linear time and
 * bounded stack on any input, 128 KB of one character included. Invalid UTF-8 is tokenised byte by byte, never refused. */
#ifndef LAUNCHER_TEXT_TOKENIZER_H
#define LAUNCHER_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct tokenizer;
struct checkpoint; /* partition/checkpoint.h */

/* From the checkpoint's own tokenizer: GGUF metadata (tokenizer.ggml.*), or tokenizer.json (+ tokenizer_config.json, generation_config.json) beside config.json.
 * An unknown model or pre-tokeniser pattern is ST_UNSUPPORTED, named. */
enum st tok_open(const struct checkpoint *ck, struct tokenizer **t, struct err *e);
void tok_close(struct tokenizer *t);

struct tok_ids {
    int32_t *ids; /* malloc'ed, grown by encode; free() by the caller */
    size_t n, capacity;
};

struct tok_encode_options {
    bool add_opening;   /* put the opening (bos) token first where the tokenizer adds one */
    bool parse_special; /* control tokens in the text become their ids; false: they are plain text */
};
/* Appends to *out. */
enum st tok_encode(const struct tokenizer *t, const char *text, size_t bytes, const struct tok_encode_options *options, struct tok_ids *out, struct err *e);

/* The bytes of one token (not necessarily whole characters). Control tokens yield their text when with_special, else nothing. Borrowed; *bytes may be 0. An id out of range: ST_INVALID. */
enum st tok_piece(const struct tokenizer *t, int32_t id, bool with_special, const char **text, size_t *bytes, struct err *e);

int32_t tok_vocab_size(const struct tokenizer *t);
int32_t tok_opening(const struct tokenizer *t);     /* bos id or −1 */
bool tok_adds_opening(const struct tokenizer *t);   /* whether encode would add it */
bool tok_is_end(const struct tokenizer *t, int32_t id); /* the union of what generation_config, config, tokenizer and template name */
const int32_t *tok_ends(const struct tokenizer *t, int *n);
const char *tok_chat_template(const struct tokenizer *t); /* Jinja source or NULL */

#endif
