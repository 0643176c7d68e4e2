/* Unicode normalisation before tokenisation, for tokenizer.json files that ask for it (Qwen: NFC). */
#ifndef LAUNCHER_TEXT_NORMALISE_H
#define LAUNCHER_TEXT_NORMALISE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum normal_form { NORMAL_NONE, NORMAL_NFC };

/* Whether the text is certainly in NFC already (nearly always: then nothing needs to be copied). */
bool normalise_is_nfc(const char *text, size_t bytes);
/* The text in NFC, malloc'ed; bytes that are not UTF-8 stay where they are. Linear but for runs of combining marks (n log n). */
enum st normalise_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes, struct err *e);

#endif
