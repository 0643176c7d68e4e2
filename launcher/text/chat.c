/* The table of known chat forms. A row states which fragments of the Jinja source make it known, and what the template writes then. Rows are here only if the template was
 * rendered with jinja2 and the result compared (tests/golden/make_tokenizer.py, chat).
 * Before comparison "\n" spelled as two characters becomes a newline and double quotes single ones: files differ in that without meaning anything by it. */
#include "launcher/text/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/text/tokenizer_priv.h"

#define MAX_FRAGMENTS 8

struct chat_form {
    const char *name;
    const char *must[MAX_FRAGMENTS], *must_not[MAX_FRAGMENTS];
    bool whole;          /* must[0] is the whole template, other white space aside */
    bool writes_opening; /* the opening token comes first */
    const char *before_role, *after_role, *after_text;
    const char *default_system; /* where the conversation has none; NULL: no system turn then */
    const char *system_prefix;  /* before the words of the system turn, in which {date} stands for today as "31 Jan 2026" */
    bool trims;                 /* blanks around each text */
    bool thinks;                /* Qwen 3: <think> of earlier turns is left out */
    bool harmony;               /* GPT-OSS: add_harmony writes it */
};

#define CHATML .before_role = "<|im_start|>", .after_role = "\n", .after_text = "<|im_end|>\n"
#define LLAMA3                                                                                                                                       \
    .before_role = "<|start_header_id|>", .after_role = "<|end_header_id|>\n\n", .after_text = "<|eot_id|>", .trims = true, .writes_opening = true
#define LLAMA31_TURNS                                                                                                                                \
    "{{- 'Cutting Knowledge Date: December 2023\n' }}\n{{- 'Today Date: ' + date_string + '\n\n' }}",                                                \
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}",                        \
        "{{- system_message }}\n{{- '<|eot_id|>' }}", "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"

static const struct chat_form forms[] = {
    {.name = "chatml-smollm2",
     .must = {"{%formessageinmessages%}{%ifloop.firstandmessages[0]['role']!='system'%}{{'<|im_start|>system\nYou are a helpful AI assistant named "
              "SmolLM, trained by Hugging Face"
              "<|im_end|>\n'}}{%endif%}{{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'}}{%endfor%}{%ifadd_generation_"
              "prompt%}{{"
              "'<|im_start|>assistant\n'}}{%endif%}"},
     .whole = true,
     .default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
     CHATML},
    {.name = "chatml",
     .must = {"{%formessageinmessages%}{{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'}}{%endfor%}{%ifadd_generation_"
              "prompt%}{{"
              "'<|im_start|>assistant\n'}}{%endif%}"},
     .whole = true,
     CHATML},
    {.name = "chatml-qwen2.5",
     .must = {"'<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n'",
              "(message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls)",
              "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}",
              "{{- '<|im_start|>assistant\n' }}\n{%- endif %}"},
     .must_not = {"think", "| trim"},
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
     CHATML},
    {.name = "chatml-qwen3",
     .must = {"{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}",
              "{%- if loop.last or (not loop.last and reasoning_content) %}",
              "'\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n')",
              "{%- if loop.index0 > ns.last_query_index %}",
              "{{- '<|im_start|>assistant\n' }}\n    {%- if enable_thinking is defined and enable_thinking is false %}"},
     .must_not = {"| trim", "created by"},
     .thinks = true,
     CHATML},
    {.name = "llama-3.1", /* and 3.3; the date is the template's own where nobody gives one */
     .must = {LLAMA31_TURNS, "{%- set date_string = '26 Jul 2024' %}"},
     .must_not = {"strftime_now"},
     .default_system = "",
     .system_prefix = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
     LLAMA3},
    {.name = "llama-3.2",
     .must = {LLAMA31_TURNS, "{%- if strftime_now is defined %}\n        {%- set date_string = strftime_now('%d %b %Y') %}"},
     .default_system = "",
     .system_prefix = "Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n",
     LLAMA3},
    {.name = "llama-3",
     .must = {"{%setloop_messages=messages%}{%formessageinloop_messages%}{%setcontent='<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+"
              "message['content']|trim+"
              "'<|eot_id|>'%}{%ifloop.index0==0%}{%setcontent=bos_token+content%}{%endif%}{{content}}{%endfor%}{%ifadd_generation_prompt%}{{"
              "'<|start_header_id|>assistant<|end_header_id|>\n\n'}}{%endif%}"},
     .whole = true,
     LLAMA3},
    {.name = "harmony",
     .must =
         {"{%- set model_identity = 'You are ChatGPT, a large language model trained by OpenAI.' %}",
          "{{- model_identity + '\n' }}\n    {{- 'Knowledge cutoff: 2024-06\n' }}\n    {{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\n\n' }}",
          "{%- set reasoning_effort = 'medium' %}", "{{- 'Reasoning: ' + reasoning_effort + '\n\n' }}",
          "{{- '<|start|>system<|message|>' }}\n{{- build_system_message() }}\n{{- '<|end|>' }}",
          "{{- '<|start|>developer<|message|>' }}\n    {%- if developer_message %}\n        {{- '# Instructions\n\n' }}\n        {{- "
          "developer_message "
          "}}\n        {{- '\n\n' }}",
          "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}",
          "{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}"},
     .harmony = true},
};

/* ---- recognition ---- */

/* The template as the fragments spell it; squeezed: without the blanks that mean nothing, those inside tags and outside literals. NULL: no memory. */
static char *canonical(const char *source, bool squeezed) {
    char *copy = malloc(strlen(source) + 1), *p = copy;
    if (copy == NULL) return NULL;
    bool in_tag = false;
    char quote = 0; /* of the literal that we are in */
    for (; *source != 0; source++) {
        char c = *source;
        if (!in_tag && c == '{' && (source[1] == '{' || source[1] == '%'))
            in_tag = true;
        else if (in_tag && quote == 0 && (c == '}' || c == '%') && source[1] == '}')
            in_tag = false;
        else if (in_tag && quote == 0 && (c == '\'' || c == '"'))
            quote = c;
        else if (quote == c)
            quote = 0;
        else if (squeezed && c == ' ' && in_tag && quote == 0)
            continue;
        if (c == '\\' && source[1] == 'n') {
            c = '\n';
            source++;
        }
        *p++ = c == '"' ? '\'' : c;
    }
    *p = 0;
    return copy;
}

static bool matches(const struct chat_form *form, const char *text, const char *squeezed) {
    if (form->whole) return strcmp(form->must[0], squeezed) == 0;
    for (int i = 0; i < MAX_FRAGMENTS; i++) {
        if (form->must[i] != NULL && strstr(text, form->must[i]) == NULL) return false;
        if (form->must_not[i] != NULL && strstr(text, form->must_not[i]) != NULL) return false;
    }
    return true;
}

enum st chat_form_find(const struct tokenizer *t, const struct chat_form **form, struct err *e) {
    const char *source = tok_chat_template(t);
    if (source == NULL) return err_set(e, ST_UNSUPPORTED, "the model has no chat template; try --raw");
    char *text = canonical(source, false), *squeezed = canonical(source, true);
    const struct chat_form *found = NULL;
    for (size_t i = 0; text != NULL && squeezed != NULL && i < sizeof forms / sizeof *forms && found == NULL; i++) {
        if (matches(&forms[i], text, squeezed)) found = &forms[i];
    }
    enum st st = ST_OK;
    if (text == NULL || squeezed == NULL)
        st = err_set(e, ST_NO_MEMORY, "no memory for the chat template");
    else if (found == NULL)
        st =
            err_set(e, ST_UNSUPPORTED, "the model's chat template (%zu bytes) is of a form that this build does not know; try --raw", strlen(source));
    free(text);
    free(squeezed);
    if (st == ST_OK) *form = found;
    return st;
}

const char *chat_form_name(const struct chat_form *form) { return form->name; }
bool chat_form_shows_control(const struct chat_form *form) { return form->harmony; }

/* ---- writing a conversation ---- */

struct words {
    const char *text;
    size_t bytes;
};

static struct words trim(struct words w, const char *only) {
    for (;;) { /* Python's strip() takes the four information separators for blanks, too */
        size_t n = only != NULL ? (w.bytes > 0 && *w.text == *only) : utf8_leading_spaces(w.text, w.bytes);
        if (n == 0 && only == NULL && w.bytes > 0 && *w.text >= 0x1c && *w.text <= 0x1f) n = 1;
        if (n == 0) break;
        w.text += n;
        w.bytes -= n;
    }
    for (;;) {
        char last = w.bytes > 0 ? w.text[w.bytes - 1] : 'x';
        size_t n = only != NULL ? (w.bytes > 0 && last == *only) : utf8_trailing_spaces(w.text, w.bytes);
        if (n == 0 && only == NULL && last >= 0x1c && last <= 0x1f) n = 1;
        if (n == 0) return w;
        w.bytes -= n;
    }
}

/* The first (or last) place of needle; NULL: none. */
static const char *find(struct words in, const char *needle, bool last) {
    size_t n = strlen(needle);
    const char *found = NULL;
    for (const char *at = in.text; (at = memmem(at, in.bytes - (size_t)(at - in.text), needle, n)) != NULL; at++) {
        found = at;
        if (!last) break;
    }
    return found;
}

static struct words drop_leading_newlines(struct words w) {
    while (w.bytes > 0 && *w.text == '\n') w = (struct words){w.text + 1, w.bytes - 1};
    return w;
}

/* An assistant's words, split at </think>. */
static void split_thought(struct words all, struct words *thought, struct words *rest) {
    *thought = (struct words){"", 0};
    *rest = all;
    const char *first = find(all, "</think>", false);
    if (first == NULL) return;
    const char *behind = find(all, "</think>", true) + strlen("</think>");
    *rest = drop_leading_newlines((struct words){behind, (size_t)(all.text + all.bytes - behind)});
    *thought = (struct words){all.text, (size_t)(first - all.text)};
    const char *begin = find(*thought, "<think>", true);
    if (begin != NULL) {
        begin += strlen("<think>");
        *thought = (struct words){begin, (size_t)(first - begin)};
    }
    *thought = trim(*thought, "\n");
}

struct part_list {
    struct tok_part *parts;
    int n;
    char date[12]; /* "31 Jan 2026" */
};

#define PARTS_PER_MESSAGE 10

static void add(struct part_list *l, const char *text, size_t bytes, bool trusted) {
    if (bytes != 0) l->parts[l->n++] = (struct tok_part){text, bytes, trusted};
}
static void add_text(struct part_list *l, const char *text) { add(l, text, strlen(text), true); }

static void add_head(struct part_list *l, const struct chat_form *form, enum chat_role role) {
    static const char *const names[] = {[CHAT_SYSTEM] = "system", [CHAT_USER] = "user", [CHAT_ASSISTANT] = "assistant"};
    add_text(l, form->before_role);
    add_text(l, names[role]);
    add_text(l, form->after_role);
}

static bool is_query(const struct chat_message *m) {
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    size_t n_open = sizeof open - 1, n_close = sizeof close - 1;
    bool response =
        m->bytes >= n_open && m->bytes >= n_close && memcmp(m->text, open, n_open) == 0 && memcmp(m->text + m->bytes - n_close, close, n_close) == 0;
    return m->role == CHAT_USER && !response;
}

/* "2026-01-31" → "31 Jan 2026", as strftime writes it in English. Any other text yields nothing. */
static void write_date(struct part_list *l, const char *today) {
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    unsigned year = 0, month = 0, day = 0;
    if (sscanf(today, "%4u-%2u-%2u", &year, &month, &day) != 3 || month < 1 || month > 12) return;
    snprintf(l->date, sizeof l->date, "%02u %s %u", day, months[month - 1], year);
}

static void add_system_prefix(struct part_list *l, const struct chat_form *form) {
    static const char date[] = "{date}";
    const char *prefix = form->system_prefix, *at = prefix != NULL ? strstr(prefix, date) : NULL;
    if (at != NULL) {
        add(l, prefix, (size_t)(at - prefix), true);
        add_text(l, l->date);
        prefix = at + sizeof date - 1;
    }
    if (prefix != NULL) add_text(l, prefix);
}

static void add_thinking_turn(struct part_list *l, struct words text, bool behind_query, bool is_last) {
    struct words thought, rest;
    split_thought(text, &thought, &rest);
    if (behind_query && (is_last || thought.bytes != 0)) {
        add_text(l, "<think>\n");
        add(l, thought.text, thought.bytes, false);
        add_text(l, "\n</think>\n\n");
        rest = drop_leading_newlines(rest);
    }
    add(l, rest.text, rest.bytes, false);
}

/* What an answer says to the user: the words of its last final channel. An answer that was cut off before has none; one without channels is all words. */
static struct words final_channel(struct words all) {
    static const char channel[] = "<|channel|>", final[] = "<|channel|>final<|message|>";
    const char *begin = find(all, final, true);
    if (begin == NULL) return find(all, channel, false) == NULL ? all : (struct words){"", 0};
    begin += sizeof final - 1;
    return (struct words){begin, (size_t)(all.text + all.bytes - begin)};
}

/* The system turn is the template's own; a system message is the developer's turn, and only as the first message. */
static void add_harmony(struct part_list *l, const struct chat_message *messages, int n_messages, const char *today) {
    add_text(l, "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: ");
    add_text(l, today);
    add_text(l, "\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>");
    for (int i = 0; i < n_messages; i++) {
        struct words text = {messages[i].text, messages[i].bytes};
        const char *head = "<|start|>user<|message|>", *tail = "<|end|>";
        if (messages[i].role == CHAT_SYSTEM) {
            if (i > 0 || text.bytes == 0) continue;
            head = "<|start|>developer<|message|># Instructions\n\n";
            tail = "\n\n<|end|>";
        } else if (messages[i].role == CHAT_ASSISTANT) {
            head = "<|start|>assistant<|channel|>final<|message|>";
            text = final_channel(text);
        }
        add_text(l, head);
        add(l, text.text, text.bytes, false);
        add_text(l, tail);
    }
    add_text(l, "<|start|>assistant");
}

static void add_turns(struct part_list *list, const struct chat_form *form, const struct tokenizer *t, const struct chat_message *messages,
                      int n_messages) {
    struct err e = {""};
    const char *opening = "";
    size_t opening_bytes = 0;
    if (form->writes_opening && t->opening >= 0) (void)tok_piece(t, t->opening, true, &opening, &opening_bytes, &e);
    add(list, opening, opening_bytes, true);

    bool has_system = messages[0].role == CHAT_SYSTEM;
    if (!has_system && form->default_system != NULL) {
        add_head(list, form, CHAT_SYSTEM);
        add_system_prefix(list, form);
        add_text(list, form->default_system);
        add_text(list, form->after_text);
    }
    int last_query = n_messages - 1;
    for (int i = n_messages; i-- > 0;) {
        if (is_query(&messages[i])) {
            last_query = i;
            break;
        }
    }
    for (int i = 0; i < n_messages; i++) {
        struct words text = {messages[i].text, messages[i].bytes};
        if (form->trims) text = trim(text, NULL);
        add_head(list, form, messages[i].role);
        if (i == 0 && has_system) add_system_prefix(list, form);
        if (form->thinks && messages[i].role == CHAT_ASSISTANT)
            add_thinking_turn(list, text, i > last_query, i == n_messages - 1);
        else
            add(list, text.text, text.bytes, false);
        add_text(list, form->after_text);
    }
    add_head(list, form, CHAT_ASSISTANT);
}

enum st chat_encode(const struct chat_form *form, const struct tokenizer *t, const struct chat_message *messages, int n_messages, const char *today,
                    struct tok_ids *out, struct err *e) {
    if (n_messages < 1) return err_set(e, ST_INVALID, "a conversation without a message");
    struct part_list l = {calloc((size_t)n_messages + 3, PARTS_PER_MESSAGE * sizeof *l.parts), 0, ""};
    if (l.parts == NULL) return err_set(e, ST_NO_MEMORY, "no memory for a conversation of %d messages", n_messages);
    write_date(&l, today);
    if (form->harmony)
        add_harmony(&l, messages, n_messages, today);
    else
        add_turns(&l, form, t, messages, n_messages);
    enum st st = tok_encode_parts(t, l.parts, l.n, false, out, e);
    free(l.parts);
    return st;
}
