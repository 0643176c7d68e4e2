/* Prompts: a conversation in the model's own chat form, as token ids.
 *
 * No Jinja: the form is recognised from the template's text by a table of known forms (ChatML, Llama 3, harmony); an unknown one is ST_UNSUPPORTED with the advice to use --raw.
 * The words of user, system and assistant are encoded as plain text: control tokens inside them stay text. */
#ifndef LAUNCHER_TEXT_CHAT_H
#define LAUNCHER_TEXT_CHAT_H

#include "launcher/text/tokenizer.h"

struct chat_form; /* a row of the table */

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };
struct chat_message {
    enum chat_role role;
    const char *text;
    size_t bytes;
};

enum st chat_form_find(const struct tokenizer *t, const struct chat_form **form, struct err *e);
const char *chat_form_name(const struct chat_form *form);
/* Whether control tokens structure an answer (harmony's channels): show them, and hand them back in the assistant's text, of which chat_encode then keeps the final channel. */
bool chat_form_shows_control(const struct chat_form *form);

/* Appends the whole conversation and the opening of the assistant's turn. Where no system message is given and the template has one of its own, that one is used.
 * today: "2026-01-31", for forms that write the date. */
enum st chat_encode(const struct chat_form *form, const struct tokenizer *t, const struct chat_message *messages, int n_messages, const char *today,
                    struct tok_ids *out, struct err *e);

#endif
