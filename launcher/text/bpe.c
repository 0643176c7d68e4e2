/* Byte-pair encoding over bytes: pieces, merges, and the merging of one word.
 *
 * The word is a linked list of symbols; a heap holds the candidates (rank, position), lowest rank first, leftmost among equals, and a popped candidate counts only if
 * its pair still stands there. That is the order in which the reference implementations (Hugging Face tokenizers, llama.cpp) merge. O(n log n).
 * Hash tables are open addressing with linear probing, at most half full; built once, read only after. */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "launcher/text/tokenizer_priv.h"

/* ---- the byte-level alphabet ---- */

/* Bytes that stand for themselves: ! … ~, ¡ … ¬, ® … ÿ. The other 68 are U+0100 … U+0143 in order. */
static bool stands_for_itself(unsigned byte) { return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae; }

/* The byte behind a character of the alphabet; −1: none. */
static int alphabet_byte(unsigned c) {
    if (c < 0x100) return stands_for_itself(c) ? (int)c : -1;
    if (c >= 0x144) return -1;
    unsigned i = c - 0x100; /* the i-th byte that does not stand for itself: 0 … 0x20, 0x7f … 0xa0, 0xad */
    return i <= 0x20 ? (int)i : i <= 0x42 ? (int)(i - 0x21 + 0x7f) : 0xad;
}

bool byte_level_decode(const char *text, size_t n, unsigned char *out, size_t *n_out) {
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)text[i];
        unsigned code = c;
        if (c >= 0x80) { /* the alphabet ends at U+0143: two bytes at most */
            if ((c & 0xe0) != 0xc0 || i + 1 >= n || ((unsigned char)text[i + 1] & 0xc0) != 0x80) return false;
            code = (c & 0x1fu) << 6 | ((unsigned char)text[i + 1] & 0x3fu);
            if (code < 0x80) return false;
            i++;
        }
        i++;
        int byte = alphabet_byte(code);
        if (byte < 0) return false;
        out[k++] = (unsigned char)byte;
    }
    *n_out = k;
    return true;
}

/* ---- pieces ---- */

enum st bpe_init(struct bpe *b, int32_t n_vocab, struct err *e) {
    if (n_vocab < 1 || n_vocab > TOK_MAX_VOCAB)
        return err_set(e, ST_INVALID, "a vocabulary of %d tokens (1 to %d are possible)", n_vocab, TOK_MAX_VOCAB);
    memset(b, 0, sizeof *b);
    b->unknown = -1;
    b->pieces = calloc((size_t)n_vocab, sizeof *b->pieces);
    if (b->pieces == NULL) return err_set(e, ST_NO_MEMORY, "no memory for a vocabulary of %d tokens", n_vocab);
    b->n_vocab = n_vocab;
    memset(b->byte_ids, 0xff, sizeof b->byte_ids);
    return ST_OK;
}

void bpe_release(struct bpe *b) {
    free(b->pieces);
    free(b->blob);
    free(b->piece_slots);
    free(b->rows);
    free(b->merge_slots);
    memset(b, 0, sizeof *b);
}

enum st bpe_set_piece(struct bpe *b, int32_t id, const void *bytes, size_t n_bytes, enum piece_kind kind, bool in_model, struct err *e) {
    BASE_ASSERT(id >= 0 && id < b->n_vocab);
    if (n_bytes > TOK_MAX_PIECE_BYTES) return err_set(e, ST_INVALID, "token %d is %zu bytes long (at most %d)", id, n_bytes, TOK_MAX_PIECE_BYTES);
    if (b->blob_capacity - b->blob_bytes < n_bytes) {
        size_t capacity = b->blob_capacity * 2 + n_bytes + 4096;
        unsigned char *blob = realloc(b->blob, capacity);
        if (blob == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the vocabulary's text");
        b->blob = blob;
        b->blob_capacity = capacity;
    }
    if (n_bytes != 0) memcpy(b->blob + b->blob_bytes, bytes, n_bytes);
    b->pieces[id] = (struct piece){.offset = b->blob_bytes, .bytes = (uint32_t)n_bytes, .kind = (uint8_t)kind, .in_model = in_model && n_bytes != 0};
    b->blob_bytes += n_bytes;
    return ST_OK;
}

static const unsigned char *piece_bytes(const struct bpe *b, int32_t id) { return b->blob + b->pieces[id].offset; }

static uint32_t slot_count(size_t n) {
    uint32_t slots = 16;
    while (slots < 2 * n) slots *= 2;
    return slots;
}

int32_t bpe_find(const struct bpe *b, const void *bytes, size_t n_bytes) {
    for (uint32_t i = (uint32_t)base_hash64(bytes, n_bytes, 0) & b->piece_mask;; i = (i + 1) & b->piece_mask) {
        int32_t id = b->piece_slots[i];
        if (id < 0) return -1;
        if (b->pieces[id].bytes == n_bytes && memcmp(piece_bytes(b, id), bytes, n_bytes) == 0) return id;
    }
}

enum st bpe_index_pieces(struct bpe *b, struct err *e) {
    uint32_t n_slots = slot_count((size_t)b->n_vocab);
    free(b->piece_slots);
    b->piece_slots = malloc(n_slots * sizeof *b->piece_slots);
    if (b->piece_slots == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the table of %d tokens", b->n_vocab);
    memset(b->piece_slots, 0xff, n_slots * sizeof *b->piece_slots);
    b->piece_mask = n_slots - 1;
    for (int32_t id = 0; id < b->n_vocab; id++) {
        const struct piece *piece = &b->pieces[id];
        if (!piece->in_model) continue;
        uint32_t i = (uint32_t)base_hash64(piece_bytes(b, id), piece->bytes, 0) & b->piece_mask;
        for (; b->piece_slots[i] >= 0; i = (i + 1) & b->piece_mask) {
            const struct piece *other = &b->pieces[b->piece_slots[i]];
            if (other->bytes == piece->bytes && memcmp(piece_bytes(b, b->piece_slots[i]), piece_bytes(b, id), piece->bytes) == 0)
                break; /* the last one counts */
        }
        b->piece_slots[i] = id;
        if (piece->bytes == 1) b->byte_ids[*piece_bytes(b, id)] = id;
    }
    return ST_OK;
}

/* ---- merges ---- */

static uint32_t pair_hash(int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9e3779b97f4a7c15ull;
    return (uint32_t)(key >> 32) ^ (uint32_t)key >> 15;
}

/* Rank of a pair; −1: it does not merge. */
static int64_t find_merge(const struct bpe *b, int32_t left, int32_t right) {
    for (uint32_t i = pair_hash(left, right) & b->merge_mask;; i = (i + 1) & b->merge_mask) {
        uint32_t slot = b->merge_slots[i];
        if (slot == 0) return -1;
        const struct merge_row *row = &b->rows[slot - 1];
        if (row->left == left && row->right == right) return slot - 1;
    }
}

enum st bpe_set_merges(struct bpe *b, struct merge_row *rows, uint32_t n_rows, bool last_wins, struct err *e) {
    free(b->rows);
    b->rows = rows;
    b->n_rows = n_rows;
    uint32_t n_slots = slot_count(n_rows);
    free(b->merge_slots);
    b->merge_slots = calloc(n_slots, sizeof *b->merge_slots);
    if (b->merge_slots == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the table of %u merges", n_rows);
    b->merge_mask = n_slots - 1;
    for (uint32_t rank = 0; rank < n_rows; rank++) {
        const struct merge_row *row = &rows[rank];
        if (row->left < 0) continue;
        uint32_t i = pair_hash(row->left, row->right) & b->merge_mask;
        bool taken = false;
        for (; b->merge_slots[i] != 0; i = (i + 1) & b->merge_mask) {
            const struct merge_row *other = &rows[b->merge_slots[i] - 1];
            taken = other->left == row->left && other->right == row->right;
            if (taken) break;
        }
        if (!taken || last_wins) b->merge_slots[i] = rank + 1;
    }
    return ST_OK;
}

/* ---- encoding ---- */

struct bpe_symbol {
    int32_t id; /* −1: merged into its left neighbour */
    uint32_t previous, next;
};
#define NO_SYMBOL UINT32_MAX

struct bpe_candidate {
    uint32_t rank, at; /* at: the left symbol */
};

void bpe_scratch_release(struct bpe_scratch *s) {
    free(s->symbols);
    free(s->heap);
    memset(s, 0, sizeof *s);
}

static enum st scratch_reserve(struct bpe_scratch *s, size_t n, struct err *e) {
    if (s->capacity >= n) return ST_OK;
    size_t capacity = s->capacity * 2 > n ? s->capacity * 2 : n < 256 ? 256 : n;
    free(s->symbols);
    free(s->heap);
    s->capacity = 0;
    s->symbols = malloc(capacity * sizeof *s->symbols);
    /* n − 1 candidates at first, at most two more for each of at most n − 1 merges, each of which took one away. */
    s->heap = malloc(2 * capacity * sizeof *s->heap);
    if (s->symbols == NULL || s->heap == NULL) return err_set(e, ST_NO_MEMORY, "no memory to tokenise a word of %zu bytes", n);
    s->capacity = capacity;
    return ST_OK;
}

static bool before(struct bpe_candidate a, struct bpe_candidate b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }

static void heap_push(struct bpe_candidate *heap, size_t *n, struct bpe_candidate c) {
    size_t i = (*n)++;
    for (; i > 0 && before(c, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = c;
}

static struct bpe_candidate heap_pop(struct bpe_candidate *heap, size_t *n) {
    struct bpe_candidate top = heap[0], last = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

enum st tok_ids_push(struct tok_ids *out, int32_t id, struct err *e) {
    if (out->n == out->capacity) {
        size_t capacity = out->capacity < 64 ? 64 : out->capacity * 2;
        int32_t *ids = realloc(out->ids, capacity * sizeof *ids);
        if (ids == NULL) return err_set(e, ST_NO_MEMORY, "no memory for %zu token ids", capacity);
        out->ids = ids;
        out->capacity = capacity;
    }
    out->ids[out->n++] = id;
    return ST_OK;
}

enum st bpe_encode(const struct bpe *b, const unsigned char *text, size_t n, struct bpe_scratch *s, struct tok_ids *out, struct err *e) {
    if (n == 0) return ST_OK;
    if (n == 1 && b->byte_ids[text[0]] >= 0) return tok_ids_push(out, b->byte_ids[text[0]], e);
    if (b->ignore_merges) {
        int32_t whole = bpe_find(b, text, n);
        if (whole >= 0) return tok_ids_push(out, whole, e);
    }
    enum st st = scratch_reserve(s, n, e);
    if (st != ST_OK) return st;

    struct bpe_symbol *symbols = s->symbols;
    uint32_t n_symbols = 0;
    bool was_unknown = false;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_ids[text[i]];
        bool is_unknown = id < 0;
        if (is_unknown) {
            if (b->unknown < 0) s->n_lost++;
            if (b->unknown < 0 || (was_unknown && b->fuse_unknown)) continue;
            id = b->unknown;
        }
        was_unknown = is_unknown;
        symbols[n_symbols] = (struct bpe_symbol){.id = id, .previous = n_symbols - 1, .next = n_symbols + 1};
        n_symbols++;
    }
    if (n_symbols == 0) return ST_OK;
    symbols[0].previous = NO_SYMBOL;
    symbols[n_symbols - 1].next = NO_SYMBOL;

    struct bpe_candidate *heap = s->heap;
    size_t n_heap = 0;
    for (uint32_t i = 0; i + 1 < n_symbols; i++) {
        int64_t rank = find_merge(b, symbols[i].id, symbols[i + 1].id);
        if (rank >= 0) heap_push(heap, &n_heap, (struct bpe_candidate){(uint32_t)rank, i});
    }
    while (n_heap > 0) {
        struct bpe_candidate c = heap_pop(heap, &n_heap);
        struct bpe_symbol *left = &symbols[c.at];
        const struct merge_row *row = &b->rows[c.rank];
        if (left->id != row->left || left->next == NO_SYMBOL || symbols[left->next].id != row->right) continue;
        struct bpe_symbol *right = &symbols[left->next];
        left->id = row->result;
        right->id = -1;
        left->next = right->next;
        if (right->next != NO_SYMBOL) symbols[right->next].previous = c.at;

        int64_t rank = left->previous == NO_SYMBOL ? -1 : find_merge(b, symbols[left->previous].id, left->id);
        if (rank >= 0) heap_push(heap, &n_heap, (struct bpe_candidate){(uint32_t)rank, left->previous});
        rank = left->next == NO_SYMBOL ? -1 : find_merge(b, left->id, symbols[left->next].id);
        if (rank >= 0) heap_push(heap, &n_heap, (struct bpe_candidate){(uint32_t)rank, c.at});
    }
    for (uint32_t i = 0; i != NO_SYMBOL; i = symbols[i].next) {
        st = tok_ids_push(out, symbols[i].id, e);
        if (st != ST_OK) return st;
    }
    return ST_OK;
}
