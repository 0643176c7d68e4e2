/* tandem tokenize: text on stdin to a line with a JSON array of ids, or back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/options.h"
#include "launcher/commands.h"
#include "launcher/text/tokenizer.h"
#include "partition/checkpoint.h"

#define MAX_INPUT_BYTES ((size_t)1 << 30)

struct tokenize_options {
    bool bos, special, decode;
};

static const struct option options[] = {
    {"--bos", NULL, OPT_FLAG, offsetof(struct tokenize_options, bos), NULL, "put the opening token first where the tokenizer adds one", 0, 0, NULL},
    {"--special", NULL, OPT_FLAG, offsetof(struct tokenize_options, special), NULL,
     "control tokens in the text become their ids, and ids of control tokens their text", 0, 0, NULL},
    {"--decode", NULL, OPT_FLAG, offsetof(struct tokenize_options, decode), NULL, "a JSON array of ids on stdin becomes bytes on stdout", 0, 0, NULL},
    {0},
};

static enum st encode(const struct tokenizer *t, const char *text, size_t bytes, const struct tokenize_options *o, struct err *e) {
    struct tok_ids ids = {0};
    enum st st = tok_encode(t, text, bytes, &(struct tok_encode_options){.add_opening = o->bos, .parse_special = o->special}, &ids, e);
    if (st == ST_OK) {
        putchar('[');
        for (size_t i = 0; i < ids.n; i++) printf("%s%d", i ? "," : "", ids.ids[i]);
        puts("]");
    }
    free(ids.ids);
    return st;
}

static enum st decode(const struct tokenizer *t, const char *text, size_t bytes, const struct tokenize_options *o, struct err *e) {
    json_t *root = NULL;
    enum st st = base_json_parse("stdin", text, bytes, &root, e);
    if (st == ST_OK && !json_is_array(root)) st = err_set(e, ST_INVALID, "stdin: not a JSON array of token ids");
    size_t n = st == ST_OK ? json_array_size(root) : 0;
    const char *piece = "";
    size_t piece_bytes = 0;
    for (int pass = 0; pass < 2 && st == ST_OK; pass++) { /* nothing is written where one id is wrong */
        for (size_t i = 0; i < n && st == ST_OK; i++) {
            const json_t *id = json_array_get(root, i);
            if (!json_is_integer(id))
                st = err_set(e, ST_INVALID, "stdin: element %zu of the array is no token id", i);
            else if (json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
                st = err_set(e, ST_INVALID, "there is no token %lld", (long long)json_integer_value(id));
            else
                st = tok_piece(t, (int32_t)json_integer_value(id), o->special, &piece, &piece_bytes, e);
            if (st == ST_OK && pass == 1) fwrite(piece, 1, piece_bytes, stdout);
        }
    }
    json_decref(root);
    return st;
}

int cmd_tokenize(int argc, char **argv) {
    struct tokenize_options o = {0};
    const struct option_group group = {"Options", options, &o};
    const char *model = NULL;
    int status = 0;
    if (launch_parse("tokenize", "tandem tokenize MODEL [options]",
                     "Turns the text on stdin, taken as it is, into a line with a JSON array of token ids; with --decode the other way round.",
                     &group, 1, argc, argv, &model, 0, &status))
        return status;
    struct err e = {{0}};
    if (o.decode && o.bos) {
        (void)err_set(&e, ST_INVALID, "--bos has no meaning with --decode; try 'tandem help tokenize'");
        return launch_misuse("tokenize", &e);
    }

    struct checkpoint *ck = NULL;
    struct tokenizer *t = NULL;
    char *text = NULL;
    size_t bytes = 0;
    enum st st = ck_open(model, &ck, &e);
    if (st == ST_OK) st = tok_open(ck, &t, &e);
    if (st == ST_OK) st = launch_read_all("-", MAX_INPUT_BYTES, &text, &bytes, &e);
    if (st == ST_OK) st = o.decode ? decode(t, text, bytes, &o, &e) : encode(t, text, bytes, &o, &e);
    if (st == ST_OK) st = launch_flush_stdout(&e);
    free(text);
    tok_close(t);
    ck_close(ck);
    return st == ST_OK ? 0 : launch_fail("tokenize", &e);
}
