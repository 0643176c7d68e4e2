/* A tokenizer in the other spelling: tokenizer.json as GGUF keys, GGUF keys as tokenizer.json. Only what `tok_open` reads is written, and what cannot be said there is refused by name. */
#ifndef LAUNCHER_TEXT_EXPORT_H
#define LAUNCHER_TEXT_EXPORT_H

#include "base/status.h"
#include "partition/write.h"

/* Appends tokenizer.ggml.* and tokenizer.chat_template. n_vocab: rows of the embedding; ids without a token become unused ones. ST_NOT_FOUND: no tokenizer.json. */
enum st tok_export_gguf(const struct checkpoint *ck, int64_t n_vocab, struct gguf_head *head, struct err *e);
/* The texts of tokenizer.json and tokenizer_config.json, malloc'ed. */
enum st tok_export_json(const struct checkpoint *ck, char **tokenizer, char **config, struct err *e);

#endif
