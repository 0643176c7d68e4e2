/* tandem quantize: a checkpoint's matrices in another format. OUT is there whole or not at all (out_dir.h). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "launcher/commands.h"
#include "launcher/interrupt.h"
#include "launcher/out_dir.h"
#include "launcher/text/export.h"
#include "partition/convert.h"
#include "runtime/encode.h"

/* What others shard by; also FAT's and some object stores' limit. */
#define MAX_FILE_BYTES 5000000000u
#define PROGRESS_NS (5 * BASE_NS_PER_S)

struct quantize_values {
    int format; /* −1: not given */
    struct option_list ignore;
    int64_t n_threads, max_file_mb;
};

static const struct option options[] = {
    {"--format", NULL, OPT_ENUM, offsetof(struct quantize_values, format), "F", "what becomes of the matrices: nvfp4, mxfp4, fp8 (safetensors), q8_0 (GGUF)", 0, 0, convert_format_names},
    {"--ignore", NULL, OPT_LIST, offsetof(struct quantize_values, ignore), "PATTERN", "leave these modules as they are: a name, wildcards, or re:REGEX; may repeat", 0, 0, NULL},
    {"--threads", NULL, OPT_INT, offsetof(struct quantize_values, n_threads), "T", "threads (default: allowed CPUs); the bytes do not depend on it", 1, 1024, NULL},
    {"--shard-size", NULL, OPT_INT, offsetof(struct quantize_values, max_file_mb), "MB", "safetensors files of at most so many MB (default: 5000)", 1, 1000000000, NULL},
    {0},
};

struct quantise {
    const char *in, *out;
    const struct quantize_values *v;
    struct checkpoint *ck;
    struct convert_plan *plan;
    struct launch_out_dir dir;
    uint64_t began_ns, told_ns;
};

/* ---- what lies beside the weights ---- */

static enum st copy_file(const struct quantise *q, int from_dir, const char *name, struct err *e)
{
    const int in = openat(from_dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat info;
    if (in < 0 || fstat(in, &info) != 0) {
        const enum st st = err_set(e, ST_IO, "%s/%s: %s", ck_path(q->ck), name, strerror(errno));
        if (in >= 0)
            close(in);
        return st;
    }
    if (!S_ISREG(info.st_mode)) { /* directories: other frameworks' weights, caches */
        close(in);
        return ST_OK;
    }
    const int out = openat(q->dir.fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    enum st st = out < 0 ? err_set(e, ST_IO, "cannot make %s: %s", name, strerror(errno)) : ST_OK;
    char buffer[65536];
    for (ssize_t n = 1; !st && n > 0;) {
        n = read(in, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) {
            n = 1;
            continue;
        }
        if (n < 0)
            st = err_set(e, ST_IO, "%s/%s: %s", ck_path(q->ck), name, strerror(errno));
        else
            st = launch_write_bytes(out, name, buffer, (size_t)n, e);
    }
    if (!st && fsync(out) != 0)
        st = err_set(e, ST_IO, "cannot write %s: %s", name, strerror(errno));
    if (out >= 0)
        close(out);
    close(in);
    return st;
}

/* Weights in any spelling, and what describes them, is not copied. */
static bool is_beside(const char *name)
{
    static const char *const weights[] = {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt"};
    if (name[0] == '.' || strcmp(name, "config.json") == 0 || strcmp(name, "hf_quant_config.json") == 0)
        return false;
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        if (ck_has_suffix(name, weights[i]))
            return false;
    return true;
}

static enum st copy_beside(const struct quantise *q, struct err *e)
{
    DIR *d = opendir(ck_path(q->ck));
    if (!d)
        return err_set(e, ST_IO, "%s: %s", ck_path(q->ck), strerror(errno));
    enum st st = ST_OK;
    for (struct dirent *entry; !st && (entry = readdir(d));)
        if (is_beside(entry->d_name))
            st = copy_file(q, dirfd(d), entry->d_name, e);
    closedir(d);
    return st;
}

static enum st write_tokenizer(const struct quantise *q, struct err *e)
{
    char *tokenizer = NULL, *config = NULL;
    struct err why = {""};
    if (tok_export_json(q->ck, &tokenizer, &config, &why)) {
        fprintf(stderr, "tandem quantize: no tokenizer.json is written: %s\n", why.text);
        return ST_OK;
    }
    enum st st = launch_out_dir_write(&q->dir, "tokenizer.json", tokenizer, strlen(tokenizer), e);
    if (!st)
        st = launch_out_dir_write(&q->dir, "tokenizer_config.json", config, strlen(config), e);
    free(tokenizer);
    free(config);
    return st;
}

static enum st write_beside(const struct quantise *q, struct err *e)
{
    const struct convert_plan *p = q->plan;
    if (p->gguf)
        return ST_OK;
    enum st st = ck_kind_of(q->ck) == CK_GGUF ? write_tokenizer(q, e) : copy_beside(q, e);
    if (!st)
        st = launch_out_dir_write(&q->dir, "config.json", p->config, strlen(p->config), e);
    if (!st && p->index)
        st = launch_out_dir_write(&q->dir, "model.safetensors.index.json", p->index, strlen(p->index), e);
    return st;
}

/* ---- the work ---- */

static bool go_on(void *arg, const char *tensor, uint64_t done_bytes)
{
    struct quantise *q = arg;
    const uint64_t now = base_now_ns(base_clock_real());
    if (now - q->told_ns >= PROGRESS_NS) {
        q->told_ns = now;
        fprintf(stderr, "tandem quantize: %.1f of %.1f MB, %.0f MB/s, at %s\n", (double)done_bytes / 1e6, (double)q->plan->source_bytes / 1e6,
                (double)done_bytes / 1e6 / ((double)(now - q->began_ns) / 1e9), tensor);
    }
    return !launch_interrupted();
}

static enum st write_all(struct quantise *q, struct err *e)
{
    struct base_pool *pool;
    const struct base_pool_options po = {.n_threads = q->v->n_threads ? (int)q->v->n_threads : launch_allowed_cpus(), .spin_us = 0};
    enum st st = base_pool_create(&po, &pool, e);
    if (st)
        return st;
    const struct rt_encode_options ro = {.pool = pool, .dir = q->dir.fd, .go_on = go_on, .arg = q};
    st = rt_encode(q->ck, q->plan, &ro, e);
    base_pool_destroy(pool);
    if (!st)
        st = write_beside(q, e);
    if (!st)
        st = launch_out_dir_keep(&q->dir, q->plan->gguf ? q->plan->files[0].name : NULL, e);
    return st;
}

static enum st make_plan(struct quantise *q, struct err *e)
{
    const struct convert_options co = {.format = (enum convert_format)q->v->format, .ignore = q->v->ignore.items, .n_ignore = q->v->ignore.n};
    enum st st = ck_open(q->in, &q->ck, e);
    if (!st)
        st = convert_plan_create(q->ck, &co, &q->plan, e);
    if (!st && q->plan->gguf && ck_kind_of(q->ck) == CK_SAFETENSORS)
        st = tok_export_gguf(q->ck, q->plan->model.vocab, &q->plan->head, e);
    if (!st)
        st = convert_plan_layout(q->plan, q->v->max_file_mb ? (uint64_t)q->v->max_file_mb * 1000000 : MAX_FILE_BYTES, e);
    return st;
}

static enum st quantise(struct quantise *q, struct err *e)
{
    struct stat in, out;
    if (stat(q->in, &in) == 0 && stat(q->out, &out) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return err_set(e, ST_INVALID, "%s is the checkpoint itself; name another OUT", q->out);
    enum st st = launch_out_dir_open(&q->dir, q->out, e);
    if (!st)
        st = make_plan(q, e);
    if (!st)
        st = write_all(q, e);
    return st;
}

static enum st report(const struct quantise *q, struct err *e)
{
    const struct convert_plan *p = q->plan;
    printf("%s: %zu matrices in %s, %.1f MB from %.1f MB, %.1f s\n", q->out, p->n_encoded, convert_format_names[p->format], (double)p->target_bytes / 1e6, (double)p->source_bytes / 1e6,
           (double)(base_now_ns(base_clock_real()) - q->began_ns) / 1e9);
    if (p->n_dequantised)
        printf("%zu matrices were quantised already (%s) and were dequantised first: the original weights would give a better result\n", p->n_dequantised, p->stored_as);
    if (p->n_left > p->n_odd)
        printf("%zu matrices were left as they are by --ignore\n", p->n_left - p->n_odd);
    if (p->n_odd)
        printf("%zu matrices were left as they are because their rows are no whole number of groups, the first %s\n", p->n_odd, p->odd);
    return launch_flush_stdout(e);
}

static enum st parse(int argc, char **argv, struct quantize_values *v, const char *paths[2], struct err *e)
{
    const struct option_group group = {"Options", options, v};
    int n = 0;
    const enum st st = base_options_parse("quantize", &group, 1, argc, argv, paths, 2, &n, e);
    if (st)
        return st;
    if (n < 2 || !*paths[0] || !*paths[1])
        return err_set(e, ST_INVALID, "%s try 'tandem help quantize'", n < 1 ? "which MODEL, and where to (IN OUT)?" : "where to (OUT)?");
    if (v->format < 0)
        return err_set(e, ST_INVALID, "which --format? nvfp4, mxfp4, fp8 or q8_0");
    return ST_OK;
}

int cmd_quantize(int argc, char **argv)
{
    struct quantize_values v = {.format = -1};
    struct err e = {""};
    const struct option_group group = {"Options", options, &v};
    int status;
    if (launch_wants_help("quantize", "tandem quantize IN OUT --format nvfp4|mxfp4|fp8|q8_0 [OPTIONS]",
                          "Stores the matrices of linear layers in another format. IN is a MODEL; OUT is a safetensors directory in compressed-tensors' layout, or for q8_0 a GGUF\n"
                          "file. Embeddings, the head, norms, biases and routers stay as they are.",
                          &group, 1, argc, argv, &status))
        return status;
    const char *paths[2] = {NULL, NULL};
    if (parse(argc, argv, &v, paths, &e))
        return launch_misuse("quantize", &e);

    struct quantise q = {.in = paths[0], .out = paths[1], .v = &v, .dir = {.fd = -1}, .began_ns = base_now_ns(base_clock_real())};
    q.told_ns = q.began_ns;
    signal(SIGXFSZ, SIG_IGN); /* a limit on files is an error like a full disk */
    launch_interrupt_heed();
    enum st st = quantise(&q, &e);
    launch_out_dir_close(&q.dir);
    if (!st)
        st = report(&q, &e);
    convert_plan_destroy(q.plan);
    ck_close(q.ck);
    return st ? launch_fail("quantize", &e) : 0;
}
