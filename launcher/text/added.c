/* Added tokens: a trie over bytes, searched for the longest token at a position. A node's children are a list of siblings; the root's are indexed by byte, because nearly
 * every search ends there. The work per byte of text is bounded by TOK_MAX_ADDED_BYTES. */
#include <stdlib.h>
#include <string.h>

#include "launcher/text/tokenizer_priv.h"

struct added_node {
    uint32_t first_child, next_sibling; /* 0: none */
    uint32_t token;                     /* index + 1; 0: no token ends here */
    unsigned char byte;
};

#define N_ROOTS 256 /* nodes 0 … 255 are the root's children; node 0 is never anybody else's child, so 0 can mean none */

void added_release(struct added_set *set) {
    free(set->nodes);
    free(set->tokens);
    memset(set, 0, sizeof *set);
}

static enum st grow(struct added_set *set, size_t n_more, struct err *e) {
    size_t want = (set->n_nodes == 0 ? N_ROOTS : set->n_nodes) + n_more;
    if (want > set->capacity_nodes) {
        size_t capacity = want + want / 2;
        struct added_node *nodes = capacity > UINT32_MAX ? NULL : realloc(set->nodes, capacity * sizeof *nodes);
        if (nodes == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the added tokens");
        set->nodes = nodes;
        set->capacity_nodes = (uint32_t)capacity;
    }
    if (set->n_nodes == 0) {
        memset(set->nodes, 0, N_ROOTS * sizeof *set->nodes);
        for (unsigned i = 0; i < N_ROOTS; i++) set->nodes[i].byte = (unsigned char)i;
        set->n_nodes = N_ROOTS;
    }
    if (set->n_tokens == set->capacity_tokens) {
        uint32_t capacity = set->capacity_tokens * 2 + 32;
        struct added_token *tokens = realloc(set->tokens, capacity * sizeof *tokens);
        if (tokens == NULL) return err_set(e, ST_NO_MEMORY, "no memory for the added tokens");
        set->tokens = tokens;
        set->capacity_tokens = capacity;
    }
    return ST_OK;
}

static uint32_t find_child(const struct added_set *set, uint32_t node, unsigned char byte) {
    uint32_t child = set->nodes[node].first_child;
    while (child != 0 && set->nodes[child].byte != byte) child = set->nodes[child].next_sibling;
    return child;
}

enum st added_insert(struct added_set *set, const char *text, size_t bytes, const struct added_token *token, struct err *e) {
    if (bytes == 0) return ST_OK;
    if (bytes > TOK_MAX_ADDED_BYTES)
        return err_set(e, ST_UNSUPPORTED, "added token %d is %zu bytes long (at most %d)", token->id, bytes, TOK_MAX_ADDED_BYTES);
    enum st st = grow(set, bytes, e);
    if (st != ST_OK) return st;
    uint32_t node = (unsigned char)text[0];
    for (size_t i = 1; i < bytes; i++) {
        uint32_t child = find_child(set, node, (unsigned char)text[i]);
        if (child == 0) {
            child = set->n_nodes++;
            set->nodes[child] = (struct added_node){.byte = (unsigned char)text[i], .next_sibling = set->nodes[node].first_child};
            set->nodes[node].first_child = child;
        }
        node = child;
    }
    if (set->nodes[node].token == 0) set->nodes[node].token = ++set->n_tokens;
    set->tokens[set->nodes[node].token - 1] = *token;
    return ST_OK;
}

const struct added_token *added_match(const struct added_set *set, const char *text, size_t bytes, size_t *match_bytes) {
    if (set->n_nodes == 0 || bytes == 0) return NULL;
    const struct added_token *best = NULL;
    uint32_t node = (unsigned char)text[0];
    for (size_t i = 0;;) {
        i++;
        if (set->nodes[node].token != 0) {
            best = &set->tokens[set->nodes[node].token - 1];
            *match_bytes = i;
        }
        if (i == bytes || (node = find_child(set, node, (unsigned char)text[i])) == 0) return best;
    }
}
