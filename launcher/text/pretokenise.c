/* Cutting a text into words with PCRE2.
 *
 * Each step keeps a list of pieces of the word it works on; steps nest, at most PRE_MAX_STEPS deep. Everything that a pattern sees is well-formed UTF-8: where the text
 * is not, a copy is made in which each stray byte is U+FFFD, and the positions of these are kept so that the sink gets the bytes themselves. Hence no UTF check is ever
 * asked of PCRE2 (it would make each match linear in the whole text).
 * Source of the semantics: tokenizers' NormalizedString::split and Pattern::find_matches. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "launcher/text/pretokenise.h"

#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define JIT_STACK_START (32 * 1024)
#define JIT_STACK_MAX (1024 * 1024)
#define HEAP_LIMIT_KIB (128 * 1024) /* of the interpreter, where JIT's stack was too small */
#define MATCH_LIMIT 50000000u

const char pre_pattern_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- from Oniguruma to PCRE2 ---- */

/* PCRE2's \s holds U+180E, which Unicode no longer calls white space; \w leaves out marks and joiners. So they are spelled out. */
#define SPACES "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACES                                                                                                                                   \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}"            \
    "\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORDS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

struct text_buffer {
    char *data;
    size_t n, capacity;
    bool failed;
};

static void put(struct text_buffer *b, const char *text, size_t n) {
    if (b->failed) return;
    if (b->capacity - b->n < n) {
        size_t capacity = b->capacity * 2 + n + 64;
        char *data = realloc(b->data, capacity);
        if (data == NULL) {
            b->failed = true;
            return;
        }
        b->data = data;
        b->capacity = capacity;
    }
    memcpy(b->data + b->n, text, n);
    b->n += n;
}
static void put_text(struct text_buffer *b, const char *text) { put(b, text, strlen(text)); }

/* The part behind a backslash. Returns what is wrong, or NULL. */
static const char *translate_escape(struct text_buffer *b, const char **at, bool in_class) {
    const char *p = *at;
    char c = *p;
    switch (c) {
    case 's':
    case 'S':
        if (in_class)
            put_text(b, c == 's' ? SPACES : NOT_SPACES);
        else
            put_text(b, c == 's' ? "[" SPACES "]" : "[^" SPACES "]");
        *at = p + 1;
        return NULL;
    case 'w':
    case 'W':
        if (in_class && c == 'W') return "\\W inside a class";
        if (in_class)
            put_text(b, WORDS);
        else
            put_text(b, c == 'w' ? "[" WORDS "]" : "[^" WORDS "]");
        *at = p + 1;
        return NULL;
    case 'v': /* a class of its own in PCRE2 */
        put_text(b, "\\x{b}");
        *at = p + 1;
        return NULL;
    case 'u':
        for (int i = 1; i <= 4; i++) {
            if (memchr("0123456789abcdefABCDEF", p[i], 22) == NULL || p[i] == 0) return "\\u without four digits";
        }
        put_text(b, "\\x{");
        put(b, p + 1, 4);
        put_text(b, "}");
        *at = p + 5;
        return NULL;
    default: break;
    }
    bool alphanumeric = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (c == 0) return "a lone backslash";
    if (alphanumeric && strchr("dDpPrntfxAz", c) == NULL) return "an escape that this build does not translate";
    size_t n = 1;
    if ((c == 'p' || c == 'P' || c == 'x') && p[1] == '{') { /* as a whole: its braces are no repeat */
        const char *end = strchr(p, '}');
        if (end == NULL) return "a brace without end";
        n = (size_t)(end - p) + 1;
    }
    put_text(b, "\\");
    put(b, p, n);
    *at = p + n;
    return NULL;
}

/* What may follow "(?". */
static bool known_group(const char *p) {
    static const char *const kinds[] = {":", "=", "!", "<=", "<!", ">", "i:", "-i:"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strncmp(p, kinds[i], strlen(kinds[i])) == 0) return true;
    }
    return false;
}

static const char *translate(const char *pattern, struct text_buffer *b) {
    const char *p = pattern;
    if (strncmp(p, "(?i)", 4) == 0) { /* elsewhere its reach differs */
        put_text(b, "(?i)");
        p += 4;
    }
    bool in_class = false;
    while (*p != 0) {
        char c = *p;
        if (c == '\\') {
            p++;
            const char *wrong = translate_escape(b, &p, in_class);
            if (wrong != NULL) return wrong;
            continue;
        }
        if (in_class) {
            if (c == '[') return "a class inside a class";
            if (c == '&' && p[1] == '&') return "an intersection of classes";
            if (c == ']') in_class = false;
        } else if (c == '[') {
            in_class = true;
            if (p[1] == ']' || (p[1] == '^' && p[2] == ']')) return "a class that begins with its end";
            if (p[1] == '^') {
                put(b, p++, 1);
            }
            c = *p;
        } else if (c == '(' && p[1] == '?' && !known_group(p + 2)) {
            return "a group that this build does not translate";
        } else if (c == '(' && p[1] == '*') {
            return "a verb";
        } else if (c == '}' && p[1] == '+') { /* possessive there, a second repeat here */
            return "a repeated repeat";
        }
        put(b, p, 1);
        p++;
    }
    return in_class ? "a class without end" : NULL;
}

/* ---- compiled steps ---- */

struct compiled_step {
    pcre2_code *code; /* NULL: no cutting */
    bool jit;
    enum pre_behaviour behaviour;
    bool invert, prefix_space;
};

struct pretok {
    struct compiled_step steps[PRE_MAX_STEPS];
    int n_steps;
};

static enum st compile_step(const struct pre_step *step, const char *where, struct compiled_step *out, struct err *e) {
    *out = (struct compiled_step){.behaviour = step->behaviour, .invert = step->invert, .prefix_space = step->prefix_space};
    if (step->pattern == NULL) return ST_OK;
    struct text_buffer b = {0};
    const char *wrong = translate(step->pattern, &b);
    enum st st = ST_OK;
    if (b.failed)
        st = err_set(e, ST_NO_MEMORY, "%s: no memory for a pattern", where);
    else if (wrong != NULL)
        st = err_set(e, ST_UNSUPPORTED, "%s: the pre-tokeniser's pattern \"%.200s\" has %s", where, step->pattern, wrong);
    if (st == ST_OK) {
        pcre2_compile_context *context = pcre2_compile_context_create(NULL);
        int code = 0;
        PCRE2_SIZE offset = 0;
        if (context != NULL) {
            pcre2_set_newline(context, PCRE2_NEWLINE_LF);
            out->code =
                pcre2_compile((PCRE2_SPTR)b.data, b.n, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, context);
        }
        if (out->code == NULL) {
            char reason[128] = "no memory";
            if (code != 0) pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
            st = err_set(e, context == NULL ? ST_NO_MEMORY : ST_UNSUPPORTED, "%s: the pre-tokeniser's pattern \"%.200s\": %s", where, step->pattern,
                         reason);
        } else {
            out->jit = pcre2_jit_compile(out->code, PCRE2_JIT_COMPLETE) == 0; /* else (no JIT, no executable memory) the interpreter does it */
        }
        pcre2_compile_context_free(context);
    }
    free(b.data);
    return st;
}

enum st pretok_create(const struct pre_step *steps, int n_steps, const char *where, struct pretok **out, struct err *e) {
    if (n_steps > PRE_MAX_STEPS) return err_set(e, ST_UNSUPPORTED, "%s: a pre-tokeniser of %d steps (at most %d)", where, n_steps, PRE_MAX_STEPS);
    struct pretok *p = calloc(1, sizeof *p);
    if (p == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the pre-tokeniser");
    for (int i = 0; i < n_steps; i++) {
        enum st st = compile_step(&steps[i], where, &p->steps[i], e);
        p->n_steps = i + 1;
        if (st != ST_OK) {
            pretok_destroy(p);
            return st;
        }
    }
    *out = p;
    return ST_OK;
}

void pretok_destroy(struct pretok *p) {
    if (p == NULL) return;
    for (int i = 0; i < p->n_steps; i++) pcre2_code_free(p->steps[i].code);
    free(p);
}

/* ---- running ---- */

struct cut {
    size_t begin, end;
    bool matched;
};

struct cut_list {
    struct cut *cuts;
    size_t n, capacity;
};

struct pre_scratch {
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack;
    pcre2_match_data *match;
    struct cut_list lists[PRE_MAX_STEPS];
    char *prefixed[PRE_MAX_STEPS]; /* a word with its blank before it */
    size_t prefixed_capacity[PRE_MAX_STEPS];

    /* the copy of a text with stray bytes, and where they are: offsets in the copy, ascending */
    char *clean;
    size_t *strays;
    size_t n_strays, i_stray;
    char *word;              /* a word with its stray bytes put back */
    const char *dirty_bytes; /* the stray bytes in order */

    pre_sink sink;
    void *sink_arg;
};

enum st pretok_scratch_create(const struct pretok *p, struct pre_scratch **out, struct err *e) {
    (void)p;
    struct pre_scratch *s = calloc(1, sizeof *s);
    if (s != NULL) {
        s->context = pcre2_match_context_create(NULL);
        s->match = pcre2_match_data_create(1, NULL);
    }
    if (s == NULL || s->context == NULL || s->match == NULL) {
        pretok_scratch_destroy(s);
        return err_set(e, ST_NO_MEMORY, "no memory for the pre-tokeniser");
    }
    s->jit_stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL); /* NULL: 32 KiB of the machine's stack serve */
    if (s->jit_stack != NULL) pcre2_jit_stack_assign(s->context, NULL, s->jit_stack);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
    pcre2_set_match_limit(s->context, MATCH_LIMIT);
    *out = s;
    return ST_OK;
}

static void forget_copy(struct pre_scratch *s) {
    free(s->clean);
    free(s->strays);
    free(s->word);
    s->clean = s->word = NULL;
    s->strays = NULL;
    s->n_strays = 0;
}

void pretok_scratch_destroy(struct pre_scratch *s) {
    if (s == NULL) return;
    forget_copy(s);
    for (int i = 0; i < PRE_MAX_STEPS; i++) {
        free(s->lists[i].cuts);
        free(s->prefixed[i]);
    }
    pcre2_match_data_free(s->match);
    pcre2_jit_stack_free(s->jit_stack);
    pcre2_match_context_free(s->context);
    free(s);
}

int utf8_length(const char *text, size_t bytes) {
    if (bytes == 0) return 0;
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) return 1;
    int n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || (size_t)n > bytes) return 0;
    for (int i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
    }
    /* no overlong forms, no surrogates, nothing beyond U+10FFFF */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
    return n;
}

static enum st add_cut(struct cut_list *list, size_t begin, size_t end, bool matched, struct err *e) {
    if (list->n == list->capacity) {
        size_t capacity = list->capacity * 2 + 64;
        struct cut *cuts = realloc(list->cuts, capacity * sizeof *cuts);
        if (cuts == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the words of a text");
        list->cuts = cuts;
        list->capacity = capacity;
    }
    list->cuts[list->n++] = (struct cut){begin, end, matched};
    return ST_OK;
}

/* All matches of the step's pattern and the gaps between them, in order; an empty match cuts, too. */
static enum st find_cuts(const struct compiled_step *step, struct pre_scratch *s, const char *text, size_t bytes, struct cut_list *list,
                         struct err *e) {
    list->n = 0;
    if (step->code == NULL) return add_cut(list, 0, bytes, false, e);
    size_t done = 0, at = 0;
    while (at < bytes) {
        int n = PCRE2_ERROR_JIT_STACKLIMIT;
        if (step->jit) n = pcre2_jit_match(step->code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, s->match, s->context);
        if (n == PCRE2_ERROR_JIT_STACKLIMIT || n == PCRE2_ERROR_MATCHLIMIT) {
            n = pcre2_match(step->code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->match, s->context);
        }
        if (n == PCRE2_ERROR_NOMATCH) break;
        if (n < 0) {
            char reason[128] = "";
            pcre2_get_error_message(n, (PCRE2_UCHAR *)reason, sizeof reason);
            return err_set(e, ST_NO_MEMORY, "the pre-tokeniser's pattern is too greedy for this text of %zu bytes: %s", bytes, reason);
        }
        const PCRE2_SIZE *ovector = pcre2_get_ovector_pointer(s->match);
        size_t begin = ovector[0], end = ovector[1];
        enum st st = ST_OK;
        if (begin > done) st = add_cut(list, done, begin, false, e);
        if (st == ST_OK && end > begin) st = add_cut(list, begin, end, true, e);
        if (st != ST_OK) return st;
        if (end > done) done = end;
        if (begin > done) done = begin;
        at = end > at ? end : at;
        if (end == begin) { /* the next character */
            int length = utf8_length(text + at, bytes - at);
            at += length > 0 ? (size_t)length : 1;
        }
    }
    return done < bytes ? add_cut(list, done, bytes, false, e) : ST_OK;
}

/* Joins and drops cuts in place. */
static void apply_behaviour(const struct compiled_step *step, struct cut_list *list) {
    struct cut *cuts = list->cuts;
    size_t n = list->n, k = 0;
    if (step->invert) {
        for (size_t i = 0; i < n; i++) cuts[i].matched = !cuts[i].matched;
    }
    switch (step->behaviour) {
    case PRE_ISOLATED: return;
    case PRE_REMOVED:
        for (size_t i = 0; i < n; i++) {
            if (!cuts[i].matched) cuts[k++] = cuts[i];
        }
        break;
    case PRE_CONTIGUOUS:
        for (size_t i = 0; i < n; i++) {
            if (k > 0 && cuts[k - 1].matched == cuts[i].matched)
                cuts[k - 1].end = cuts[i].end;
            else
                cuts[k++] = cuts[i];
        }
        break;
    case PRE_MERGED_WITH_PREVIOUS: {
        bool previous = false;
        for (size_t i = 0; i < n; i++) {
            bool matched = cuts[i].matched;
            if (matched && !previous && k > 0)
                cuts[k - 1].end = cuts[i].end;
            else
                cuts[k++] = cuts[i];
            previous = matched;
        }
        break;
    }
    case PRE_MERGED_WITH_NEXT: { /* the same from the end: written backwards, then moved to the front */
        bool previous = false;
        size_t first = n;
        for (size_t i = n; i-- > 0;) {
            bool matched = cuts[i].matched;
            if (matched && !previous && first < n)
                cuts[first].begin = cuts[i].begin;
            else
                cuts[--first] = cuts[i];
            previous = matched;
        }
        k = n - first;
        memmove(cuts, cuts + first, k * sizeof *cuts);
        break;
    }
    }
    list->n = k;
}

/* A finished word. origin: where its first byte lies in the copy with U+FFFD (−1 for a blank put before the very first byte). */
static enum st emit(struct pre_scratch *s, const char *text, size_t bytes, size_t origin, struct err *e) {
    if (bytes == 0) return ST_OK;
    if (s->n_strays == 0) return s->sink(s->sink_arg, text, bytes, e);
    size_t k = 0;
    for (size_t i = 0; i < bytes;) {
        while (s->i_stray < s->n_strays && origin + i < SIZE_MAX / 2 && s->strays[s->i_stray] < origin + i)
            s->i_stray++; /* those in words that were removed */
        if (s->i_stray < s->n_strays && s->strays[s->i_stray] == origin + i) {
            s->word[k++] = s->dirty_bytes[s->i_stray++];
            i += 3;
        } else {
            s->word[k++] = text[i++];
        }
    }
    return s->sink(s->sink_arg, s->word, k, e);
}

static enum st run_step(const struct pretok *p, int i_step, struct pre_scratch *s, const char *text, size_t bytes, size_t origin, struct err *e) {
    if (i_step == p->n_steps || bytes == 0) return emit(s, text, bytes, origin, e);
    const struct compiled_step *step = &p->steps[i_step];
    if (step->prefix_space && text[0] != ' ') {
        if (s->prefixed_capacity[i_step] < bytes + 1) {
            size_t capacity = bytes + bytes / 2 + 64;
            free(s->prefixed[i_step]);
            s->prefixed_capacity[i_step] = 0;
            s->prefixed[i_step] = malloc(capacity);
            if (s->prefixed[i_step] == NULL) return err_set(e, ST_NO_MEMORY, "no memory for a word of %zu bytes", bytes);
            s->prefixed_capacity[i_step] = capacity;
        }
        char *copy = s->prefixed[i_step];
        copy[0] = ' ';
        memcpy(copy + 1, text, bytes);
        text = copy;
        bytes++;
        origin--;
    }
    struct cut_list *list = &s->lists[i_step];
    enum st st = find_cuts(step, s, text, bytes, list, e);
    if (st != ST_OK) return st;
    apply_behaviour(step, list);
    for (size_t i = 0; i < list->n && st == ST_OK; i++) {
        struct cut cut = list->cuts[i];
        st = run_step(p, i_step + 1, s, text + cut.begin, cut.end - cut.begin, origin + cut.begin, e);
    }
    return st;
}

/* The copy in which each stray byte is U+FFFD. */
static enum st make_copy(struct pre_scratch *s, const char *text, size_t bytes, size_t n_strays, size_t *n_clean, struct err *e) {
    size_t clean_bytes = bytes + 2 * n_strays;
    s->clean = malloc(clean_bytes);
    s->strays = malloc(n_strays * sizeof *s->strays);
    s->word = malloc(clean_bytes + PRE_MAX_STEPS + n_strays);
    if (s->clean == NULL || s->strays == NULL || s->word == NULL) return err_set(e, ST_NO_MEMORY, "no memory for a text of %zu bytes", bytes);
    char *stray_bytes = s->word + clean_bytes + PRE_MAX_STEPS;
    size_t k = 0, n = 0;
    for (size_t i = 0; i < bytes;) {
        int length = utf8_length(text + i, bytes - i);
        if (length == 0) {
            s->strays[n] = k;
            stray_bytes[n++] = text[i++];
            memcpy(s->clean + k, "\xef\xbf\xbd", 3);
            k += 3;
        } else {
            memcpy(s->clean + k, text + i, (size_t)length);
            k += (size_t)length;
            i += (size_t)length;
        }
    }
    BASE_ASSERT(k == clean_bytes && n == n_strays);
    s->dirty_bytes = stray_bytes;
    s->n_strays = n_strays;
    s->i_stray = 0;
    *n_clean = clean_bytes;
    return ST_OK;
}

enum st pretok_run(const struct pretok *p, struct pre_scratch *s, const char *text, size_t bytes, pre_sink sink, void *arg, struct err *e) {
    if (bytes == 0) return ST_OK;
    s->sink = sink;
    s->sink_arg = arg;
    size_t n_strays = 0;
    for (size_t i = 0; i < bytes;) {
        int length = utf8_length(text + i, bytes - i);
        n_strays += length == 0;
        i += length == 0 ? 1 : (size_t)length;
    }
    if (n_strays == 0) return run_step(p, 0, s, text, bytes, 0, e);
    size_t clean_bytes = 0;
    enum st st = make_copy(s, text, bytes, n_strays, &clean_bytes, e);
    if (st == ST_OK) st = run_step(p, 0, s, s->clean, clean_bytes, 0, e);
    forget_copy(s);
    return st;
}

/* ---- single characters ---- */

static bool is_space(const char *text, int length) {
    const unsigned char *s = (const unsigned char *)text;
    unsigned c = length == 1   ? s[0]
                 : length == 2 ? (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu)
                 : length == 3 ? (s[0] & 0xfu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu)
                               : 0;
    return (c >= 0x9 && c <= 0xd) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Length of the well-formed character that ends the text; 0: none. */
static int last_length(const char *text, size_t bytes) {
    for (int n = 1; n <= 4 && (size_t)n <= bytes; n++) {
        if (utf8_length(text + bytes - n, (size_t)n) == n) return n;
    }
    return 0;
}

size_t utf8_leading_spaces(const char *text, size_t bytes) {
    size_t n = 0;
    for (int length; (length = utf8_length(text + n, bytes - n)) > 0 && is_space(text + n, length); n += (size_t)length) {
    }
    return n;
}

size_t utf8_trailing_spaces(const char *text, size_t bytes) {
    size_t n = 0;
    for (int length; (length = last_length(text, bytes - n)) > 0 && is_space(text + bytes - n - length, length); n += (size_t)length) {
    }
    return n;
}

struct word_class {
    pcre2_code *code;
};

enum st word_class_create(struct word_class **out, struct err *e) {
    struct word_class *w = calloc(1, sizeof *w);
    int code = 0;
    PCRE2_SIZE offset = 0;
    static const char pattern[] = "[" WORDS "\\x{200c}\\x{200d}]";
    if (w != NULL) w->code = pcre2_compile((PCRE2_SPTR)pattern, sizeof pattern - 1, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &offset, NULL);
    if (w == NULL || w->code == NULL) {
        word_class_destroy(w);
        return err_set(e, ST_NO_MEMORY, "no class of word characters (PCRE2 error %d)", code);
    }
    *out = w;
    return ST_OK;
}

void word_class_destroy(struct word_class *w) {
    if (w == NULL) return;
    pcre2_code_free(w->code);
    free(w);
}

static bool is_word(const struct word_class *w, const char *text, int length) {
    if (length == 0) return false;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    bool yes = match != NULL && pcre2_match(w->code, (PCRE2_SPTR)text, (PCRE2_SIZE)length, 0, PCRE2_NO_UTF_CHECK, match, NULL) > 0;
    pcre2_match_data_free(match);
    return yes;
}

bool word_class_at_begin(const struct word_class *w, const char *text, size_t bytes) { return is_word(w, text, utf8_length(text, bytes)); }

bool word_class_at_end(const struct word_class *w, const char *text, size_t bytes) {
    int length = last_length(text, bytes);
    return is_word(w, text + bytes - length, length);
}
