/* tandem eval: logits and continuations of token ids, or the perplexity of a text.
 *
 * --text scores windows as llama-perplexity does: the text is encoded once, cut into windows of --ctx tokens (the rest is dropped), the first token of each window is replaced by the
 * opening token where the tokenizer adds one, and the predictions at positions ctx/2 … ctx−2 are scored. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "launcher/commands.h"
#include "launcher/foreign.h"
#include "launcher/job.h"
#include "launcher/text/tokenizer.h"

#define DEFAULT_WINDOW 512
#define MAX_AT_ONCE 64
#define WINDOWS_AT_ONCE 2
#define MAX_FILE_BYTES (1u << 30)

struct eval_values {
    const char *text, *logits, *ledger, *expert_stats;
    struct option_list ids;
    int64_t greedy;
};

static const struct option eval_options[] = {
    {"--text", NULL, OPT_STR, offsetof(struct eval_values, text), "FILE", "perplexity of a text, in windows of --ctx tokens (512), the second half of each scored", 0, 0, NULL},
    {"--ids", NULL, OPT_LIST, offsetof(struct eval_values, ids), "FILE", "token ids in decimals; may be repeated: the sequences run in mixed steps", 0, 0, NULL},
    {"--logits", NULL, OPT_STR, offsetof(struct eval_values, logits), "OUT", "with --ids: little-endian F32 [rows, vocabulary], a row for each token", 0, 0, NULL},
    {"--greedy", NULL, OPT_INT, offsetof(struct eval_values, greedy), "N", "with --ids: continue each by its N most likely tokens, end tokens included", 0, 16777216, NULL},
    {"--expert-stats", NULL, OPT_STR, offsetof(struct eval_values, expert_stats), "OUT", "of models with experts: how often each was chosen, and the --expert-map that follows (JSON)", 0, 0, NULL},
    LAUNCH_LEDGER_OPTION(offsetof(struct eval_values, ledger)),
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

struct sequence {
    int32_t *ids;
    size_t n;
    uint32_t score_from;
    size_t first_row; /* of OUT */
    int32_t *new_ids; /* [greedy] */
    uint32_t n_new;
    double nll;
    uint64_t n_scored;
};

struct eval {
    const struct eval_values *v;
    struct launch_setup *setup;
    struct launch_job *job;
    struct sequence *sequences;
    size_t n_sequences, n_done;
    int out_fd;
};

/* ---- input ------------------------------------------------------------------------------------------------------------------------------------------- */

/* Once, before the model is known: a pipe gives its ids only once, and the default context depends on them. */
static enum st parse_ids(const char *path, struct sequence *s, struct err *e)
{
    char *text;
    size_t bytes;
    enum st st = launch_read_all(path, MAX_FILE_BYTES, &text, &bytes, e);
    if (st)
        return st;
    s->ids = malloc((bytes / 2 + 1) * sizeof *s->ids); /* at least a digit and a blank each */
    if (!s->ids) {
        free(text);
        return err_set(e, ST_NO_MEMORY, "%s: no memory for its ids", path);
    }
    const char *at = text;
    for (;;) {
        at += strspn(at, " \t\r\n\v\f");
        if (at == text + bytes)
            break;
        const size_t digits = strspn(at, "0123456789"), word = strcspn(at, " \t\r\n\v\f");
        const long long id = digits && digits < 12 ? strtoll(at, NULL, 10) : -1;
        if (id < 0 || id > INT32_MAX || digits != word || (at[word] == 0 && at + word != text + bytes)) {
            size_t n = 0; /* as much of it as can be shown */
            while (n < word && n < 32 && at[n] > ' ' && at[n] <= '~')
                n++;
            st = err_set(e, ST_INVALID, "%s: at byte %zu stands \"%.*s%s\", which is no token id", path, (size_t)(at - text), (int)n, at, n < word ? "..." : "");
            break;
        }
        s->ids[s->n++] = (int32_t)id;
        at += digits;
    }
    free(text);
    if (!st && s->n == 0)
        st = err_set(e, ST_INVALID, "%s: holds no token ids", path);
    return st;
}

static enum st check_ids(struct eval *v, struct err *e)
{
    const int64_t vocab = v->setup->whole->config.vocab;
    size_t row = 0;
    for (size_t i = 0; i < v->n_sequences; i++) {
        struct sequence *s = &v->sequences[i];
        for (size_t k = 0; k < s->n; k++)
            if (s->ids[k] >= vocab)
                return err_set(e, ST_INVALID, "%s: id %zu is %d, which a vocabulary of %" PRId64 " does not have", v->v->ids.items[i], k, s->ids[k], vocab);
        s->new_ids = malloc(((size_t)v->v->greedy + 1) * sizeof *s->new_ids);
        if (!s->new_ids)
            return err_set(e, ST_NO_MEMORY, "no memory for %" PRId64 " new ids", v->v->greedy);
        s->first_row = row;
        row += s->n + (size_t)v->v->greedy;
        if ((int64_t)s->n + v->v->greedy > v->setup->settings.context)
            return err_set(e, ST_INVALID, "%s: %zu ids and %" PRId64 " new ones do not fit a context of %" PRId64, v->v->ids.items[i], s->n, v->v->greedy, v->setup->settings.context);
    }
    return ST_OK;
}

static enum st read_text(struct eval *v, struct err *e)
{
    char *text = NULL;
    size_t bytes;
    struct tokenizer *t = NULL;
    struct tok_ids ids = {0};
    const size_t window = (size_t)v->setup->settings.context;
    enum st st = launch_read_all(v->v->text, MAX_FILE_BYTES, &text, &bytes, e);
    if (!st)
        st = tok_open(v->setup->ck, &t, e);
    if (!st && bytes && text[bytes - 1] == '\n')
        bytes--; /* one newline at the end is the file's, not the text's */
    if (!st)
        st = tok_encode(t, text, bytes, &(struct tok_encode_options){.add_opening = true}, &ids, e);
    if (!st && ids.n < 2 * window)
        st = err_set(e, ST_INVALID, "%s: %zu tokens; at least two windows of %zu are needed", v->v->text, ids.n, window);
    if (!st) {
        v->n_sequences = ids.n / window;
        v->sequences = calloc(v->n_sequences, sizeof *v->sequences);
        st = v->sequences ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for %zu windows", v->n_sequences);
    }
    for (size_t i = 0; !st && i < v->n_sequences; i++) {
        struct sequence *s = &v->sequences[i];
        s->ids = malloc(window * sizeof *s->ids);
        if (!s->ids) {
            st = err_set(e, ST_NO_MEMORY, "no memory for %zu windows", v->n_sequences);
            break;
        }
        memcpy(s->ids, ids.ids + i * window, window * sizeof *s->ids);
        if (tok_adds_opening(t))
            s->ids[0] = tok_opening(t);
        s->n = window;
        s->score_from = (uint32_t)(window / 2);
    }
    free(ids.ids);
    free(text);
    tok_close(t);
    return st;
}

/* ---- the run ------------------------------------------------------------------------------------------------------------------------------------------ */

static enum st submit(struct eval *v, size_t i, struct err *e)
{
    const struct sequence *s = &v->sequences[i];
    const struct rt_request r = {
        .request = (uint32_t)i,
        .n_prompt = (uint32_t)s->n,
        .max_new = (uint32_t)v->v->greedy,
        .flags = RT_WANT_SCORES | (v->v->logits ? RT_WANT_LOGITS : 0) | (v->v->greedy ? RT_FEED_LAST : 0),
        .score_from = s->score_from,
    };
    return launch_job_submit(v->job, &r, s->ids, e);
}

static enum st write_row(struct eval *v, const struct rt_logits_head *head, const unsigned char *row, size_t bytes, struct err *e)
{
    const size_t row_bytes = (size_t)v->setup->whole->config.vocab * sizeof(float);
    if (bytes != row_bytes)
        return err_set(e, ST_INVALID, "rank 0 sent a row of %zu bytes instead of %zu", bytes, row_bytes);
    off_t at = (off_t)((v->sequences[head->request].first_row + head->row) * row_bytes);
    while (bytes) {
        const ssize_t n = pwrite(v->out_fd, row, bytes, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(e, ST_IO, "%s: %s", v->v->logits, strerror(errno));
        row += n;
        at += n;
        bytes -= (size_t)n;
    }
    return ST_OK;
}

static enum st take_frame(struct eval *v, enum rt_frame_kind kind, const void *payload, size_t bytes, struct err *e)
{
    uint32_t request;
    if (bytes < sizeof request)
        return ST_OK;
    memcpy(&request, payload, sizeof request); /* first in every payload */
    if (request >= v->n_sequences)
        return err_set(e, ST_INVALID, "rank 0 speaks of request %u", request);
    struct sequence *s = &v->sequences[request];
    if (kind == RT_LOGITS && bytes >= sizeof(struct rt_logits_head)) {
        struct rt_logits_head head;
        memcpy(&head, payload, sizeof head);
        return write_row(v, &head, (const unsigned char *)payload + sizeof head, bytes - sizeof head, e);
    }
    if (kind == RT_SCORE && bytes == sizeof(struct rt_score)) {
        struct rt_score score;
        memcpy(&score, payload, sizeof score);
        s->nll += score.nll;
        s->n_scored++;
    }
    if (kind == RT_TOKEN && bytes == sizeof(struct rt_token) && (int64_t)s->n_new < v->v->greedy) {
        struct rt_token t;
        memcpy(&t, payload, sizeof t);
        s->new_ids[s->n_new++] = t.id;
    }
    if (kind == RT_DONE && bytes == sizeof(struct rt_done)) {
        struct rt_done d;
        memcpy(&d, payload, sizeof d);
        if (d.reason != RT_LENGTH)
            return err_set(e, ST_INVALID, "sequence %u ended early", request);
        v->n_done++;
    }
    return ST_OK;
}

static void print_progress(const struct eval *v, uint64_t *last_ns)
{
    const uint64_t now = base_now_ns(base_clock_real());
    const bool terminal = isatty(2);
    if (v->n_sequences < 4 || now - *last_ns < (terminal ? 1 : 10) * BASE_NS_PER_S)
        return;
    *last_ns = now;
    double nll = 0;
    uint64_t n = 0;
    for (size_t i = 0; i < v->n_sequences; i++) {
        nll += v->sequences[i].nll;
        n += v->sequences[i].n_scored;
    }
    fprintf(stderr, "%s%zu of %zu done, perplexity so far %.4f%s", terminal ? "\r" : "", v->n_done, v->n_sequences, n ? exp(nll / (double)n) : 0.0, terminal ? "   " : "\n");
}

static enum st run(struct eval *v, struct err *e)
{
    size_t n_submitted = 0;
    uint64_t last_ns = base_now_ns(base_clock_real());
    const size_t at_once = (size_t)v->setup->settings.max_sequences;
    while (v->n_done < v->n_sequences) {
        while (n_submitted < v->n_sequences && n_submitted < v->n_done + at_once) {
            const enum st st = submit(v, n_submitted++, e);
            if (st)
                return st;
        }
        enum rt_frame_kind kind;
        const void *payload;
        size_t bytes;
        enum st st = launch_job_next(v->job, 1000, &kind, &payload, &bytes, e);
        if (!st)
            st = take_frame(v, kind, payload, bytes, e);
        if (st && st != ST_AGAIN)
            return st;
        print_progress(v, &last_ns);
    }
    if (isatty(2) && v->n_sequences >= 4)
        fputc('\n', stderr);
    return ST_OK;
}

static enum st print_results(const struct eval *v, struct err *e)
{
    double nll = 0;
    uint64_t n_scored = 0, n_tokens = 0;
    for (size_t i = 0; i < v->n_sequences; i++) {
        nll += v->sequences[i].nll;
        n_scored += v->sequences[i].n_scored;
        n_tokens += v->sequences[i].n;
    }
    printf("tokens %" PRIu64 ", scored %" PRIu64 "\n", n_tokens, n_scored);
    if (n_scored)
        printf("mean negative log-likelihood %.6f\nperplexity %.6f\n", nll / (double)n_scored, exp(nll / (double)n_scored));
    else
        printf("mean negative log-likelihood nan\nperplexity nan\n");
    const char *comma = "";
    fputc('[', stdout);
    for (size_t i = 0; i < v->n_sequences; i++)
        for (uint32_t k = 0; k < v->sequences[i].n_new; k++, comma = ", ")
            printf("%s%d", comma, v->sequences[i].new_ids[k]);
    fputs("]\n", stdout);
    return launch_flush_stdout(e);
}

/* ---- the command -------------------------------------------------------------------------------------------------------------------------------------- */

/* Without --ctx the context is as long as the longest sequence with its continuation. */
static enum st read_ids(struct eval *v, int64_t *longest, struct err *e)
{
    v->n_sequences = (size_t)v->v->ids.n;
    v->sequences = calloc(v->n_sequences, sizeof *v->sequences);
    if (!v->sequences)
        return err_set(e, ST_NO_MEMORY, "no memory for %zu sequences", v->n_sequences);
    *longest = 0;
    for (size_t i = 0; i < v->n_sequences; i++) {
        const enum st st = parse_ids(v->v->ids.items[i], &v->sequences[i], e);
        if (st)
            return st;
        *longest = (int64_t)v->sequences[i].n > *longest ? (int64_t)v->sequences[i].n : *longest;
    }
    *longest += v->v->greedy;
    return ST_OK;
}

static enum st open_logits(struct eval *v, struct err *e)
{
    if (!v->v->logits)
        return ST_OK;
    v->out_fd = open(v->v->logits, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return v->out_fd < 0 ? err_set(e, ST_IO, "%s: %s", v->v->logits, strerror(errno)) : ST_OK;
}

static void release(struct eval *v)
{
    for (size_t i = 0; v->sequences && i < v->n_sequences; i++) {
        free(v->sequences[i].ids);
        free(v->sequences[i].new_ids);
    }
    free(v->sequences);
    if (v->out_fd >= 0)
        close(v->out_fd);
    launch_setup_destroy(v->setup);
}

int cmd_eval(int argc, char **argv)
{
    struct launch_options shared = LAUNCH_OPTIONS_DEFAULT;
    static struct eval_values values; /* option_list is large */
    values = (struct eval_values){0};
    const struct option_group groups[] = {{"What to evaluate", eval_options, &values}, launch_option_group(&shared)};
    const char *model;
    int status;
    if (launch_parse("eval", "tandem eval MODEL (--text FILE | --ids FILE...) [--logits OUT] [--greedy N] [OPTIONS]",
                     "Perplexity of a text; or logits and greedy continuations of token ids.\nThe last line of standard output is the JSON array of the generated ids (of all sequences, in order).",
                     groups, 2, argc, argv, &model, 0, &status))
        return status;
    struct err e = {""};
    if (launch_options_check(&shared, &e) || launch_ledger_check(values.ledger, &e))
        return launch_misuse("eval", &e);
    if (!values.text == !values.ids.n) {
        err_set(&e, ST_INVALID, "wants either --text or --ids");
        return launch_misuse("eval", &e);
    }
    if (values.text && (values.logits || values.greedy)) {
        err_set(&e, ST_INVALID, "--logits and --greedy go with --ids");
        return launch_misuse("eval", &e);
    }
    struct eval v = {.v = &values, .out_fd = -1};
    struct launch_needs needs = {.max_sequences = WINDOWS_AT_ONCE, .context = DEFAULT_WINDOW, .accurate_cache = true, .ledger = values.ledger != NULL, .expert_stats = values.expert_stats != NULL};
    struct launch_ledger *ledger = NULL;
    struct launch_expert_stats stats = {0};
    enum st st = ST_OK;
    if (values.ids.n) {
        needs.max_sequences = values.ids.n < MAX_AT_ONCE ? values.ids.n : MAX_AT_ONCE;
        st = read_ids(&v, &needs.context, &e);
    }
    if (!st)
        st = launch_setup_create(model, &shared, &needs, &v.setup, &e);
    if (!st)
        launch_foreign_serve(v.setup, false);
    if (!st && values.expert_stats && v.setup->whole->config.moe.n_experts == 0)
        st = err_set(&e, ST_INVALID, "--expert-stats: %s has no experts", model);
    if (!st && values.expert_stats)
        st = launch_expert_stats_check(values.expert_stats, &e);
    if (!st)
        st = values.text ? read_text(&v, &e) : check_ids(&v, &e);
    if (!st)
        st = open_logits(&v, &e);
    if (!st)
        st = launch_ledger_open(values.ledger, &ledger, &e);
    if (!st)
        st = launch_job_start(v.setup, &v.job, &e);
    if (!st) {
        launch_job_collect(v.job, ledger);
        launch_job_collect_experts(v.job, &stats);
        st = run(&v, &e);
    }
    if (v.job && !st)
        st = launch_job_stop(v.job, &e);
    else
        launch_job_kill(v.job);
    if (!st)
        st = print_results(&v, &e);
    if (!st)
        st = launch_ledger_write(ledger, v.setup, &e);
    if (!st && values.expert_stats)
        st = launch_expert_stats_write(&stats, v.setup, values.expert_stats, &e);
    launch_expert_stats_release(&stats);
    launch_ledger_close(ledger);
    release(&v);
    return st ? launch_fail("eval", &e) : 0;
}
