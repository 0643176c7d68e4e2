/* NFC: decompose, order the marks, compose (Unicode Standard Annex 15). Hangul by arithmetic, the rest by the generated tables.
 * Bytes that are not UTF-8 travel as codes beyond Unicode: class 0, composing with nothing. */
#include "launcher/text/normalise.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/text/normalise_table.h"
#include "launcher/text/pretokenise.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define STRAY 0x200000u /* + the byte */

enum {
    S_BASE = 0xac00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11a7,
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    S_COUNT = L_COUNT * V_COUNT * T_COUNT
};

struct character {
    uint32_t code;
    uint32_t combining;
    size_t order; /* where it stood, so that equal classes keep their order */
};

static uint32_t decode(const char *text, int length) {
    const unsigned char *s = (const unsigned char *)text;
    if (length == 1) return s[0];
    uint32_t code = s[0] & (0x7fu >> length);
    for (int i = 1; i < length; i++) code = code << 6 | (s[i] & 0x3fu);
    return code;
}

static size_t encode(uint32_t code, char *out) {
    unsigned char *s = (unsigned char *)out;
    if (code >= STRAY) return s[0] = (unsigned char)(code - STRAY), 1;
    if (code < 0x80) return s[0] = (unsigned char)code, 1;
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; code >>= 6) s[i] = (unsigned char)(0x80 | (code & 0x3f));
    s[0] = (unsigned char)(code | (n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0));
    return n;
}

static bool is_suspect(uint32_t code) {
    if (code < suspect_ranges[0].first) return false;
    size_t low = 0, high = LENGTH(suspect_ranges);
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (suspect_ranges[middle].first <= code)
            low = middle;
        else
            high = middle;
    }
    return code <= suspect_ranges[low].last;
}

bool normalise_is_nfc(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        int length = utf8_length(text + i, bytes - i);
        if (length > 1 && is_suspect(decode(text + i, length))) return false;
        i += length > 0 ? (size_t)length : 1;
    }
    return true;
}

static uint32_t combining_class(uint32_t code) {
    size_t low = 0, high = LENGTH(combining_ranges);
    if (code < combining_ranges[0].first) return 0;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (combining_ranges[middle].first <= code)
            low = middle;
        else
            high = middle;
    }
    return code <= combining_ranges[low].last ? combining_ranges[low].combining : 0;
}

/* At most MAX_PARTS characters; the longest canonical decomposition has four. */
enum { MAX_PARTS = 8 };
static int decompose(uint32_t code, uint32_t parts[MAX_PARTS]) {
    if (code >= S_BASE && code < S_BASE + S_COUNT) {
        uint32_t s = code - S_BASE, t = s % T_COUNT;
        parts[0] = L_BASE + s / (V_COUNT * T_COUNT);
        parts[1] = V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT;
        parts[2] = T_BASE + t;
        return t != 0 ? 3 : 2;
    }
    int n_tail = 0; /* seconds, from the end */
    uint32_t tail[MAX_PARTS];
    while (code >= decompositions[0].code && n_tail < MAX_PARTS - 1) {
        size_t low = 0, high = LENGTH(decompositions);
        while (high - low > 1) {
            size_t middle = (low + high) / 2;
            if (decompositions[middle].code <= code)
                low = middle;
            else
                high = middle;
        }
        if (decompositions[low].code != code) break;
        if (decompositions[low].second != 0) tail[n_tail++] = decompositions[low].second;
        code = decompositions[low].first;
    }
    int n = 0;
    parts[n++] = code;
    while (n_tail > 0) parts[n++] = tail[--n_tail]; /* no second decomposes further: the generator checked it */
    return n;
}

/* The character that a pair makes; 0: none. */
static uint32_t compose(uint32_t a, uint32_t b) {
    if (a >= L_BASE && a < L_BASE + L_COUNT && b >= V_BASE && b < V_BASE + V_COUNT) return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a >= S_BASE && a < S_BASE + S_COUNT && (a - S_BASE) % T_COUNT == 0 && b > T_BASE && b < T_BASE + T_COUNT) return a + (b - T_BASE);
    size_t low = 0, high = LENGTH(compositions);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (compositions[middle].first < a || (compositions[middle].first == a && compositions[middle].second < b))
            low = middle + 1;
        else
            high = middle;
    }
    return low < LENGTH(compositions) && compositions[low].first == a && compositions[low].second == b ? compositions[low].code : 0;
}

static int by_class(const void *left, const void *right) {
    const struct character *a = left, *b = right;
    if (a->combining != b->combining) return a->combining < b->combining ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

enum st normalise_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes, struct err *e) {
    /* A byte decomposes into at most one character and a bit: the longest is 4 characters for 2 bytes; composed again, a text never grows beyond three times its size. */
    size_t n = 0, capacity = 2 * bytes + MAX_PARTS;
    struct character *chars = bytes > SIZE_MAX / 64 ? NULL : malloc(capacity * sizeof *chars);
    if (chars == NULL) return err_set(e, ST_NO_MEMORY, "no memory to normalise %zu bytes", bytes);
    for (size_t i = 0; i < bytes;) {
        int length = utf8_length(text + i, bytes - i);
        uint32_t parts[MAX_PARTS] = {STRAY + (unsigned char)text[i]};
        int n_parts = length == 0 ? 1 : decompose(decode(text + i, length), parts);
        BASE_ASSERT(n + (size_t)n_parts <= capacity);
        for (int k = 0; k < n_parts; k++, n++) chars[n] = (struct character){parts[k], parts[k] < 0x80 ? 0 : combining_class(parts[k]), n};
        i += length > 0 ? (size_t)length : 1;
    }
    for (size_t i = 0; i < n;) { /* marks in the order of their classes */
        size_t end = i + 1;
        if (chars[i].combining != 0) {
            bool sorted = true;
            for (; end < n && chars[end].combining != 0; end++) sorted = sorted && chars[end].combining >= chars[end - 1].combining;
            if (!sorted) qsort(chars + i, end - i, sizeof *chars, by_class);
        }
        i = end;
    }
    size_t k = 0, starter = SIZE_MAX;
    uint32_t last = 0; /* class of the last character kept behind the starter */
    for (size_t i = 0; i < n; i++) {
        struct character c = chars[i];
        bool blocked = starter != SIZE_MAX && k > starter + 1 && last >= c.combining;
        uint32_t whole = starter == SIZE_MAX || blocked ? 0 : compose(chars[starter].code, c.code);
        if (whole != 0) {
            chars[starter].code = whole;
            continue;
        }
        if (c.combining == 0) starter = k;
        last = c.combining;
        chars[k++] = c;
    }
    char *result = malloc(4 * k + 1);
    if (result == NULL) {
        free(chars);
        return err_set(e, ST_NO_MEMORY, "no memory to normalise %zu bytes", bytes);
    }
    size_t n_result = 0;
    for (size_t i = 0; i < k; i++) n_result += encode(chars[i].code, result + n_result);
    free(chars);
    *out = result;
    *out_bytes = n_result;
    return ST_OK;
}
