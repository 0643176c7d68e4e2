/* Pre-tokenisation: a text is cut into words, which the merges never cross.
 *
 * create → run (any thread, each with its own scratch) → destroy. A pre-tokeniser is a short list of steps, each a pattern that cuts every word of the step before.
 * Patterns are written for Oniguruma (tokenizer.json) and translated to PCRE2 where the two differ; what has no translation is ST_UNSUPPORTED, quoted.
 * Matching is linear in practice and bounded by law: JIT with a stack of its own, and where that is too small the interpreter with a bounded heap. */
#ifndef LAUNCHER_TEXT_PRETOKENISE_H
#define LAUNCHER_TEXT_PRETOKENISE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

/* What becomes of a match (and of what lies between matches): the names are those of tokenizer.json. */
enum pre_behaviour { PRE_ISOLATED, PRE_REMOVED, PRE_MERGED_WITH_PREVIOUS, PRE_MERGED_WITH_NEXT, PRE_CONTIGUOUS };

struct pre_step {
    const char *pattern; /* NULL: no cutting */
    enum pre_behaviour behaviour;
    bool invert;       /* matches and gaps change places */
    bool prefix_space; /* first, a blank before each word that has none */
};
#define PRE_MAX_STEPS 16

struct pretok;
enum st pretok_create(const struct pre_step *steps, int n_steps, const char *where, struct pretok **p, struct err *e);
void pretok_destroy(struct pretok *p);

struct pre_scratch; /* one per thread and call */
enum st pretok_scratch_create(const struct pretok *p, struct pre_scratch **s, struct err *e);
void pretok_scratch_destroy(struct pre_scratch *s);

/* Called with each word in order; any other status than ST_OK ends the run and is returned. The text is borrowed for the call. */
typedef enum st (*pre_sink)(void *arg, const char *text, size_t bytes, struct err *e);
/* Bytes that are not UTF-8 count as U+FFFD for the patterns and reach the sink as they are. */
enum st pretok_run(const struct pretok *p, struct pre_scratch *s, const char *text, size_t bytes, pre_sink sink, void *arg, struct err *e);

/* Length of the well-formed UTF-8 character at text (1…4), 0 where there is none. */
int utf8_length(const char *text, size_t bytes);

/* Length in bytes of the white space (Unicode's White_Space) at the text's begin, and at its end. */
size_t utf8_leading_spaces(const char *text, size_t bytes);
size_t utf8_trailing_spaces(const char *text, size_t bytes);

/* Word characters, as added tokens with single_word see them. */
struct word_class;
enum st word_class_create(struct word_class **w, struct err *e);
void word_class_destroy(struct word_class *w);
bool word_class_at_begin(const struct word_class *w, const char *text, size_t bytes);
bool word_class_at_end(const struct word_class *w, const char *text, size_t bytes);

/* GPT-2's pattern: what "ByteLevel" with use_regex means. */
extern const char pre_pattern_gpt2[];

/* ---- pre_rows.c: the patterns behind the names in tokenizer.ggml.pre ---- */
struct pre_row {
    const char *names; /* separated by blanks */
    const char *patterns[6];
    bool ignore_merges, adds_opening;
};
const struct pre_row *pre_row_find(const char *name, size_t bytes);
/* The row that cuts as these steps do; NULL: none. */
const struct pre_row *pre_row_match(const struct pre_step *steps, int n_steps, bool ignore_merges);

#endif
