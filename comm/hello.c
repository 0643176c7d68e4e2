/* The hello: ranks prove that they match before the first byte of a model moves.
 *
 * Every rank sends its identity in one all-gather and compares all of them in the same order: rank by rank against rank 0, field by field.
 * All see the same bytes, so all come to the same answer and the same sentence, and no second message is needed.
 * What a peer sent is foreign input: lengths are fixed, strings need not be terminated, nothing is printed unfiltered. */
#include <stdio.h>
#include <string.h>

#include "comm/comm_priv.h"

#define HELLO_MAGIC "tandem hello 1\n"
#define TEXT_BYTES 64

/* On the wire (bytes only, so no byte order):
 *   0 magic 16 · 16 build id 64 · 80 kernel variant 64 · 144 plan 16 · 160 model 16 · 176 settings 16 · 192 end */
struct hello {
    char magic[16];
    char build_id[TEXT_BYTES], kernel_variant[TEXT_BYTES]; /* padded with zeroes */
    unsigned char plan[16], model[16], settings[16];
};
_Static_assert(sizeof(struct hello) == 192 && sizeof(struct hello) <= COMM_MIN_BYTES, "wire format");

static const struct field {
    const char *name;
    size_t offset, bytes;
    bool is_text;
} fields[] = {
    {"hello format", offsetof(struct hello, magic), sizeof((struct hello *)0)->magic, true},
    {"source build", offsetof(struct hello, build_id), TEXT_BYTES, true},
    {"kernel variant", offsetof(struct hello, kernel_variant), TEXT_BYTES, true},
    {"plan", offsetof(struct hello, plan), 16, false},
    {"model", offsetof(struct hello, model), 16, false},
    {"settings", offsetof(struct hello, settings), 16, false},
};

static void print_value(const struct field *f, const unsigned char *bytes, char text[TEXT_BYTES + 1]) {
    size_t at = 0;
    if (f->is_text) {
        for (; at < f->bytes && bytes[at]; at++) text[at] = (char)(bytes[at] >= 0x20 && bytes[at] < 0x7f ? bytes[at] : '?');
        text[at] = 0;
        if (at == 0) strcpy(text, "nothing");
    } else {
        for (size_t i = 0; i < f->bytes; i++) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
}

static enum st put_text(const char *what, const char *text, char out[TEXT_BYTES], struct err *e) {
    size_t n = text ? strlen(text) : 0;
    if (n > TEXT_BYTES) return err_set(e, ST_INVALID, "hello: the %s \"%.100s\" is longer than %d bytes", what, text, TEXT_BYTES);
    for (size_t i = 0; i < n; i++) out[i] = text[i]; /* 64 characters leave no room for an end mark, and need none */
    return ST_OK;
}

enum st comm_hello(struct comm *c, const struct comm_identity *mine, uint64_t deadline_ns, struct err *e) {
    struct hello hello = {.magic = HELLO_MAGIC};
    enum st code = put_text("source build", mine->build_id, hello.build_id, e);
    if (code == ST_OK) code = put_text("kernel variant", mine->kernel_variant, hello.kernel_variant, e);
    if (code != ST_OK) return code;
    memcpy(hello.plan, mine->plan.bytes, sizeof hello.plan);
    memcpy(hello.model, mine->model.bytes, sizeof hello.model);
    memcpy(hello.settings, mine->settings.bytes, sizeof hello.settings);

    size_t recv_bytes[COMM_MAX_RANKS];
    for (int r = 0; r < c->n_ranks; r++) recv_bytes[r] = sizeof hello;
    const struct comm_header header = {0};
    const void *views[COMM_MAX_RANKS] = {NULL};
    code = comm_allgather(c, &hello, recv_bytes, &header, deadline_ns, views, NULL, e);
    if (code != ST_OK) return code;

    for (int r = 1; r < c->n_ranks; r++) {
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            const struct field *f = &fields[i];
            const unsigned char *first = (const unsigned char *)views[0] + f->offset, *other = (const unsigned char *)views[r] + f->offset;
            if (memcmp(first, other, f->bytes) == 0) continue;
            char first_text[TEXT_BYTES + 1], other_text[TEXT_BYTES + 1];
            print_value(f, first, first_text);
            print_value(f, other, other_text);
            return err_set(e, ST_MISMATCH, "ranks 0 and %d do not match: %s: rank 0 has %s, rank %d has %s", r, f->name, first_text, r, other_text);
        }
    }
    return ST_OK;
}
