/* Whole vocabularies of real models: ids as llama.cpp recorded them (GGUF) and as Hugging Face's tokenizers give them (tokenizer.json). The folder is $TANDEM_VOCABULARIES, or what
 * tests/fetch_vocabularies.sh left in the cache; with LONG=1 it is fetched. Skipped where there is none.
 * test-deadline: 300 */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "launcher/text/tokenizer.h"
#include "partition/checkpoint.h"
#include "tests/t.h"

static const char *folder; /* NULL: none */

static enum st open_tokenizer(const char *path, struct tokenizer **t, struct err *e)
{
    struct checkpoint *ck = NULL;
    T_OK(ck_open(path, &ck, e), e);
    const enum st st = tok_open(ck, t, e);
    ck_close(ck);
    return st;
}

static void check(const char *name, const struct tokenizer *t, const char *text, size_t bytes, bool special, const int32_t *want, size_t n_want)
{
    struct tok_ids ids = {0};
    struct err e = {{0}};
    T_OK(tok_encode(t, text, bytes, &(struct tok_encode_options){.parse_special = special}, &ids, &e), &e);
    if (ids.n != n_want || (n_want && memcmp(ids.ids, want, n_want * sizeof *want)))
        fail_msg("%s: other ids (%zu, expected %zu) for \"%.*s\"", name, ids.n, n_want, (int)(bytes < 200 ? bytes : 200), text);
    free(ids.ids);
}

/* ---- llama.cpp's pairs of files -------------------------------------------------------------------------------------------------------------------------- */

/* One line of numbers. */
static size_t read_ids(char **at, int32_t *ids, size_t max)
{
    size_t n = 0;
    char *end = strchr(*at, '\n');
    if (end)
        *end = 0;
    for (char *p = *at, *next; n < max; p = next) {
        const long id = strtol(p, &next, 10);
        if (next == p)
            break;
        ids[n++] = (int32_t)id;
    }
    *at = end ? end + 1 : *at + strlen(*at);
    return n;
}

static int check_pair(const char *name, const struct tokenizer *t, char *texts, char *lines)
{
    static const char border[] = "\n__ggml_vocab_test__\n";
    static int32_t ids[65536];
    int n = 0;
    for (char *text = texts; *lines; n++) {
        char *end = strstr(text, border);
        const size_t n_ids = read_ids(&lines, ids, sizeof ids / sizeof *ids);
        check(name, t, text, end ? (size_t)(end - text) : strlen(text), false, ids, n_ids);
        text = end ? end + sizeof border - 1 : text + strlen(text);
    }
    return n;
}

/* Of the files with ids each is either right or of a kind that is refused by name; how many are right is known. */
static void recorded_ids(void **state)
{
    (void)state;
    if (!folder)
        skip();
    char path[4096];
    snprintf(path, sizeof path, "%s/llama.cpp", folder);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    int n_right = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        const size_t n = strlen(entry->d_name);
        if (n < 5 || strcmp(entry->d_name + n - 5, ".gguf") != 0)
            continue;
        char file[sizeof path + 264];
        snprintf(file, sizeof file, "%s/%s.inp", path, entry->d_name);
        if (access(file, R_OK) != 0)
            continue; /* no recorded ids */
        char *texts = t_read_file(file, NULL);
        snprintf(file, sizeof file, "%s/%s.out", path, entry->d_name);
        char *lines = t_read_file(file, NULL);
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        struct tokenizer *t = NULL;
        struct err e = {{0}};
        const enum st st = open_tokenizer(file, &t, &e);
        if (!st) {
            fprintf(stderr, "%s: %d texts\n", entry->d_name, check_pair(entry->d_name, t, texts, lines));
            n_right++;
        } else {
            assert_int_equal(st, ST_UNSUPPORTED);
            fprintf(stderr, "%s: %s\n", entry->d_name, e.text);
        }
        tok_close(t);
    }
    closedir(dir);
    assert_int_equal(n_right, 11);
}

/* ---- tokenizer.json -------------------------------------------------------------------------------------------------------------------------------------- */

static void check_list(const char *name, const struct tokenizer *t, const json_t *text, const json_t *ids, bool special)
{
    const size_t n = json_array_size(ids);
    int32_t *want = malloc((n + 1) * sizeof *want);
    assert_non_null(want);
    for (size_t i = 0; i < n; i++)
        want[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    check(name, t, json_string_value(text), json_string_length(text), special, want, n);
    free(want);
}

static void hub_files(void **state)
{
    (void)state;
    if (!folder)
        skip();
    static const char *const names[] = {"llama3", "qwen3", "qwen3.6", "gpt-oss", "deepseek"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s/cases.json", folder, names[k]);
        json_t *root = NULL;
        struct err e = {{0}};
        T_OK(base_json_load(path, 64 << 20, &root, &e), &e);
        snprintf(path, sizeof path, "%s/%s", folder, names[k]);
        struct tokenizer *t = NULL;
        T_OK(open_tokenizer(path, &t, &e), &e);
        const json_t *texts = json_object_get(root, "texts");
        assert_true(json_array_size(texts) > 100);
        for (size_t i = 0; i < json_array_size(texts); i++) {
            check_list(names[k], t, json_array_get(texts, i), json_array_get(json_object_get(root, "ids"), i), true);
            check_list(names[k], t, json_array_get(texts, i), json_array_get(json_object_get(root, "plain"), i), false);
        }
        tok_close(t);
        json_decref(root);
    }
}

/* ---- where they are -------------------------------------------------------------------------------------------------------------------------------------- */

static const char *find_folder(void)
{
    static char path[4096];
    const char *given = getenv("TANDEM_VOCABULARIES");
    if (given)
        return given;
    if (t_long()) {
        FILE *f = popen("tests/fetch_vocabularies.sh", "r");
        const bool told = f && fgets(path, sizeof path, f);
        if (f && pclose(f) == 0 && told) {
            path[strcspn(path, "\n")] = 0;
            return path;
        }
        return NULL;
    }
    const char *cache = getenv("TANDEM_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache)
        snprintf(path, sizeof path, "%s/vocabularies", cache);
    else if (xdg)
        snprintf(path, sizeof path, "%s/tandem/vocabularies", xdg);
    else
        snprintf(path, sizeof path, "%s/.cache/tandem/vocabularies", home ? home : "");
    return access(path, R_OK) == 0 ? path : NULL;
}

int main(void)
{
    base_log_init(NULL);
    t_declare_warnings(); /* files whose merges name unknown tokens are told */
    folder = find_folder();
    const struct CMUnitTest tests[] = {cmocka_unit_test(recorded_ids), cmocka_unit_test(hub_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
