/* tandem run: one prompt, or a chat on a terminal. Text to stdout as it comes, timings to stderr. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "launcher/commands.h"
#include "launcher/foreign.h"
#include "launcher/job.h"
#include "launcher/text/chat.h"

#define MAX_PROMPT_BYTES (64u << 20)

struct run_values {
    const char *prompt, *file;
    int64_t max_tokens, seed;
    double temperature;
    const char *ledger;
    bool ignore_eos, raw, json, dry_run, verbose;
};

static const struct option run_options[] = {
    {"-p", "--prompt", OPT_STR, offsetof(struct run_values, prompt), "TEXT", "the prompt", 0, 0, NULL},
    {"-f", "--file", OPT_STR, offsetof(struct run_values, file), "FILE", "the prompt from a file (neither: from standard input; a chat where that is a terminal)", 0, 0, NULL},
    {"--max-tokens", NULL, OPT_INT, offsetof(struct run_values, max_tokens), "N", "stop after N new tokens (default: when the context is full)", 1, 16777216, NULL},
    {"--temp", NULL, OPT_DOUBLE, offsetof(struct run_values, temperature), "T", "temperature; 0 takes the most likely token (default 0)", 0, 1e6, NULL},
    {"--seed", NULL, OPT_INT, offsetof(struct run_values, seed), "S", "seed of the random numbers (default 0)", 0, 0, NULL},
    {"--ignore-eos", NULL, OPT_FLAG, offsetof(struct run_values, ignore_eos), NULL, "go on after an end token", 0, 0, NULL},
    {"--raw", NULL, OPT_FLAG, offsetof(struct run_values, raw), NULL, "the prompt as it is, without the model's chat form", 0, 0, NULL},
    LAUNCH_LEDGER_OPTION(offsetof(struct run_values, ledger)),
    {"--json", NULL, OPT_FLAG, offsetof(struct run_values, json), NULL, "one JSON object instead of text", 0, 0, NULL},
    {"--dry-run", NULL, OPT_FLAG, offsetof(struct run_values, dry_run), NULL, "print placement, cut and memory budget, and stop", 0, 0, NULL},
    {"-v", "--verbose", OPT_FLAG, offsetof(struct run_values, verbose), NULL, "print the plan before running", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

struct session {
    const struct run_values *v;
    const struct launch_setup *setup;
    struct tokenizer *tokenizer;
    const struct chat_form *form; /* NULL with --raw */
    char today[16];
    struct launch_job *job;
    uint32_t n_requests;
    /* the answer so far: bytes; those after printed are not yet written (an unfinished character) */
    char *text;
    size_t bytes, capacity, printed;
    int32_t *ids;
    uint32_t n_ids, ids_capacity;
};

/* ---- text as it comes --------------------------------------------------------------------------------------------------------------------------------- */

/* How many of the bytes are whole UTF-8 characters (or can never become one). */
static size_t whole_characters(const char *text, size_t bytes)
{
    for (size_t back = 1; back <= 3 && back <= bytes; back++) {
        const unsigned char c = (unsigned char)text[bytes - back];
        if (c < 0x80)
            break;
        if (c >= 0xC0) {
            const size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
            return back < length ? bytes - back : bytes;
        }
    }
    return bytes;
}

static enum st print_new(struct session *s, bool all, struct err *e)
{
    if (s->v->json)
        return ST_OK;
    const size_t to = all ? s->bytes : whole_characters(s->text, s->bytes);
    if (to <= s->printed)
        return ST_OK;
    fwrite(s->text + s->printed, 1, to - s->printed, stdout);
    s->printed = to;
    return launch_flush_stdout(e);
}

static enum st add_token(struct session *s, int32_t id, struct err *e)
{
    const char *piece;
    size_t n;
    const bool with_control = s->form && chat_form_shows_control(s->form) && !tok_is_end(s->tokenizer, id);
    enum st st = tok_piece(s->tokenizer, id, with_control, &piece, &n, e);
    if (st)
        return st;
    if (s->bytes + n + 1 > s->capacity) {
        const size_t capacity = (s->bytes + n + 1) * 2;
        char *text = realloc(s->text, capacity);
        if (!text)
            return err_set(e, ST_NO_MEMORY, "no memory for the answer");
        s->text = text;
        s->capacity = capacity;
    }
    if (s->n_ids == s->ids_capacity) {
        const uint32_t capacity = s->ids_capacity ? s->ids_capacity * 2 : 256;
        int32_t *ids = realloc(s->ids, capacity * sizeof *ids);
        if (!ids)
            return err_set(e, ST_NO_MEMORY, "no memory for the answer");
        s->ids = ids;
        s->ids_capacity = capacity;
    }
    s->ids[s->n_ids++] = id;
    if (n)
        memcpy(s->text + s->bytes, piece, n);
    s->bytes += n;
    s->text[s->bytes] = 0;
    return print_new(s, false, e);
}

/* ---- one answer ---------------------------------------------------------------------------------------------------------------------------------------- */

static const char *reason_text(enum rt_reason reason)
{
    switch (reason) {
    case RT_ENDED:
        return "end token";
    case RT_LENGTH:
        return "--max-tokens reached";
    case RT_CONTEXT:
        return "the context is full (--ctx)";
    case RT_CANCELLED:
        return "cancelled";
    case RT_REFUSED:
        return "refused";
    }
    return "?";
}

static void print_timings(const struct rt_done *d)
{
    const double prefill_s = (double)d->prefill_ns / 1e9, decode_s = (double)d->decode_ns / 1e9;
    fprintf(stderr, "%u prompt tokens in %.3f s (%.1f tok/s), %u new tokens", d->n_prompt, prefill_s, prefill_s > 0 ? d->n_prompt / prefill_s : 0.0, d->n_new);
    if (d->n_new > 1 && decode_s > 0)
        fprintf(stderr, " (%.1f tok/s)", (d->n_new - 1) / decode_s);
    fprintf(stderr, "; stopped: %s\n", reason_text((enum rt_reason)d->reason));
}

static enum st print_json(const struct session *s, const struct rt_done *d, struct err *e)
{
    json_t *ids = json_array();
    for (uint32_t i = 0; i < s->n_ids; i++)
        json_array_append_new(ids, json_integer(s->ids[i]));
    json_t *text = json_stringn(s->text ? s->text : "", s->bytes); /* NULL where the bytes are no UTF-8 */
    json_t *o = json_pack("{s:o, s:o, s:I, s:I, s:s, s:f, s:f, s:f}", "text", text ? text : json_null(), "ids", ids, "prompt_tokens", (json_int_t)d->n_prompt, "new_tokens",
                          (json_int_t)d->n_new, "stopped", reason_text((enum rt_reason)d->reason), "load_s", (double)launch_job_ready(s->job)->load_ns / 1e9, "prefill_s",
                          (double)d->prefill_ns / 1e9, "decode_s", (double)d->decode_ns / 1e9);
    json_dumpf(o, stdout, JSON_COMPACT);
    json_decref(o);
    fputc('\n', stdout);
    return launch_flush_stdout(e);
}

static enum st answer(struct session *s, const struct tok_ids *prompt, struct err *e)
{
    const int64_t context = s->setup->settings.context;
    if ((int64_t)prompt->n > context)
        return err_set(e, ST_INVALID, "the prompt has %zu tokens, the context %" PRId64 ": a larger --ctx would take it", prompt->n, context);
    struct rt_request r = {
        .request = ++s->n_requests,
        .n_prompt = (uint32_t)prompt->n,
        .max_new = s->v->max_tokens ? (uint32_t)s->v->max_tokens : UINT32_MAX,
        .temperature = (float)s->v->temperature,
        .seed = (uint64_t)s->v->seed,
    };
    int n_ends;
    const int32_t *ends = tok_ends(s->tokenizer, &n_ends);
    for (int i = 0; i < n_ends && r.n_ends < RT_MAX_ENDS && !s->v->ignore_eos; i++)
        r.ends[r.n_ends++] = ends[i];
    s->bytes = s->printed = s->n_ids = 0;
    enum st st = launch_job_submit(s->job, &r, prompt->ids, e);
    while (!st) {
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        st = launch_job_next(s->job, -1, &kind, &payload, &bytes, e);
        if (st == ST_AGAIN) {
            st = ST_OK;
            continue;
        }
        if (st)
            break;
        if (kind == RT_TOKEN && bytes == sizeof(struct rt_token)) {
            struct rt_token t;
            memcpy(&t, payload, sizeof t);
            st = add_token(s, t.id, e);
        } else if (kind == RT_DONE && bytes == sizeof(struct rt_done)) {
            struct rt_done d;
            memcpy(&d, payload, sizeof d);
            st = print_new(s, true, e);
            if (!st && !s->v->json) {
                if (s->bytes == 0 || s->text[s->bytes - 1] != '\n')
                    fputc('\n', stdout);
                st = launch_flush_stdout(e);
            }
            if (!st && s->v->json)
                st = print_json(s, &d, e);
            if (!st && d.reason == RT_REFUSED)
                st = err_set(e, ST_INVALID, "the ranks refused the request");
            print_timings(&d);
            break;
        }
    }
    return st;
}

/* ---- prompts -------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st encode(struct session *s, const struct chat_message *messages, int n_messages, struct tok_ids *ids, struct err *e)
{
    if (s->form)
        return chat_encode(s->form, s->tokenizer, messages, n_messages, s->today, ids, e);
    return tok_encode(s->tokenizer, messages[n_messages - 1].text, messages[n_messages - 1].bytes, &(struct tok_encode_options){.add_opening = true}, ids, e);
}

static enum st one_prompt(struct session *s, const char *text, size_t bytes, struct err *e)
{
    const struct chat_message message = {CHAT_USER, text, bytes};
    struct tok_ids ids = {0};
    enum st st = encode(s, &message, 1, &ids, e);
    if (!st && ids.n == 0)
        st = err_set(e, ST_INVALID, "the prompt is empty");
    if (!st)
        st = answer(s, &ids, e);
    free(ids.ids);
    return st;
}

#define MAX_MESSAGES 1024

static char *copy_of(const char *text, size_t bytes)
{
    char *copy = malloc(bytes + 1);
    if (copy && bytes)
        memcpy(copy, text, bytes);
    return copy;
}

/* Line by line, the whole conversation each time: the cache of earlier turns is not kept. The terminal hands out whole lines, so between two of them nothing waits in stdin's buffer
 * and its descriptor can be watched together with the job's. */
static enum st chat(struct session *s, struct err *e)
{
    struct chat_message messages[MAX_MESSAGES];
    char *kept[MAX_MESSAGES];
    int n = 0;
    char *line = NULL;
    size_t capacity = 0;
    enum st st = ST_OK;
    for (;;) {
        fputs("> ", stderr);
        st = launch_job_wait_input(s->job, 0, e);
        const ssize_t got = st ? -1 : getline(&line, &capacity, stdin);
        if (got <= 0) {
            fputc('\n', stderr);
            break;
        }
        const size_t bytes = (size_t)got - (line[got - 1] == '\n');
        if (bytes == 0)
            continue;
        if (n + 2 > MAX_MESSAGES) {
            st = err_set(e, ST_INVALID, "%d messages are as many as a conversation may have", n);
            break;
        }
        kept[n] = copy_of(line, bytes);
        if (!kept[n]) {
            st = err_set(e, ST_NO_MEMORY, "no memory for the conversation");
            break;
        }
        messages[n] = (struct chat_message){CHAT_USER, kept[n], bytes};
        n++;
        struct tok_ids ids = {0};
        st = encode(s, messages, n, &ids, e);
        if (!st)
            st = answer(s, &ids, e);
        free(ids.ids);
        if (st)
            break;
        kept[n] = copy_of(s->text, s->bytes);
        if (!kept[n]) {
            st = err_set(e, ST_NO_MEMORY, "no memory for the conversation");
            break;
        }
        messages[n] = (struct chat_message){CHAT_ASSISTANT, kept[n], s->bytes};
        n++;
    }
    while (n > 0)
        free(kept[--n]);
    free(line);
    return st;
}

/* The prompt's text, or NULL for a chat. *nothing: standard input had no text at all. */
static enum st read_prompt(const struct run_values *v, char **text, size_t *bytes, bool *nothing, struct err *e)
{
    *text = NULL;
    *nothing = false;
    if (v->prompt) {
        *text = strdup(v->prompt);
        *bytes = strlen(v->prompt);
        return ST_OK;
    }
    if (!v->file && isatty(0))
        return ST_OK;
    const enum st st = launch_read_all(v->file ? v->file : "-", MAX_PROMPT_BYTES, text, bytes, e);
    *nothing = !st && !v->file && *bytes == 0;
    return st;
}

static enum st open_session(struct session *s, struct err *e)
{
    const time_t now = time(NULL);
    struct tm local;
    if (localtime_r(&now, &local))
        strftime(s->today, sizeof s->today, "%Y-%m-%d", &local);
    enum st st = tok_open(s->setup->ck, &s->tokenizer, e);
    if (!st && !s->v->raw)
        st = chat_form_find(s->tokenizer, &s->form, e);
    if (!st)
        st = launch_job_start(s->setup, &s->job, e);
    return st;
}

int cmd_run(int argc, char **argv)
{
    struct launch_options shared = LAUNCH_OPTIONS_DEFAULT;
    struct run_values v = {0};
    const struct option_group groups[] = {{"Prompt and answer", run_options, &v}, launch_option_group(&shared)};
    const char *model;
    int status;
    if (launch_parse("run", "tandem run MODEL [-p TEXT | -f FILE] [OPTIONS]", "Answers a prompt; text to standard output, timings to standard error.", groups, 2, argc, argv, &model, 0,
                     &status))
        return status;
    struct err e = {""};
    if (launch_options_check(&shared, &e) || launch_ledger_check(v.ledger, &e))
        return launch_misuse("run", &e);
    if (v.prompt && v.file) {
        err_set(&e, ST_INVALID, "-p and -f exclude each other");
        return launch_misuse("run", &e);
    }
    char *text = NULL;
    size_t bytes = 0;
    bool nothing = false;
    struct launch_setup *setup = NULL;
    const struct launch_needs needs = {.max_sequences = 1, .ledger = v.ledger != NULL};
    enum st st = launch_setup_create(model, &shared, &needs, &setup, &e);
    if (!st)
        launch_foreign_serve(setup, v.dry_run);
    if (!st && (v.dry_run || v.verbose) && setup->hosts)
        st = launch_hosts_open(setup->hosts, &e);
    if (!st && v.dry_run && setup->hosts)
        st = launch_hosts_check_model(setup->hosts, setup, &e);
    if (!st && (v.dry_run || v.verbose))
        launch_print_plan(setup, v.dry_run ? stdout : stderr);
    if (!st && v.dry_run) {
        st = launch_check_budget(setup, &e);
        if (!st)
            st = launch_flush_stdout(&e);
        launch_setup_destroy(setup);
        return st ? launch_fail("run", &e) : 0;
    }
    struct session s = {.v = &v, .setup = setup};
    struct launch_ledger *ledger = NULL;
    if (!st)
        st = launch_ledger_open(v.ledger, &ledger, &e);
    if (!st)
        st = read_prompt(&v, &text, &bytes, &nothing, &e);
    if (!st && !nothing)
        st = open_session(&s, &e);
    if (s.job)
        launch_job_collect(s.job, ledger);
    if (!st && !nothing)
        st = text ? one_prompt(&s, text, bytes, &e) : chat(&s, &e);
    if (s.job && (!st || st == ST_CANCELLED))
        st = launch_job_stop(s.job, &e);
    else
        launch_job_kill(s.job);
    if (!st || st == ST_CANCELLED) { /* what an interrupted job has done is worth knowing, but is no news of its own */
        const enum st written = launch_ledger_write(ledger, setup, st ? NULL : &e);
        st = st ? st : written;
    }
    launch_ledger_close(ledger);
    tok_close(s.tokenizer);
    launch_setup_destroy(setup);
    free(s.text);
    free(s.ids);
    free(text);
    return st ? launch_fail("run", &e) : 0;
}
