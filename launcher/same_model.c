#include "launcher/same_model.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hash.h"
#include "runtime/protocol.h"

enum st launch_model_tell(const void *path, size_t bytes, struct launch_outbox *out, struct err *e)
{
    struct checkpoint *ck = NULL;
    struct err why = {""};
    if (!bytes || ((const char *)path)[bytes - 1])
        return err_set(e, ST_INVALID, "a model's path without an end");
    struct digest digest = {{0}};
    const uint32_t code = (uint32_t)ck_open(path, &ck, &why);
    if (!code)
        digest = ck_digest(ck);
    ck_close(ck);
    return launch_outbox_frame(out, RT_MODEL, &code, sizeof code, code ? (const void *)why.text : digest.bytes, code ? strlen(why.text) : sizeof digest.bytes, e);
}

/* A word as a shell reads it. */
static void print_word(FILE *f, const char *word)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%_+=:,./-";
    if (word[strspn(word, plain)] == 0) {
        fprintf(f, " %s", word);
        return;
    }
    fputs(" '", f);
    for (const char *c = word; *c; c++)
        fputs(*c == '\'' ? "'\\''" : (const char[]){*c, 0}, f);
    fputc('\'', f);
}

/* Of a name in the hub's cache the model's whole folder: its snapshots are links within it. Elsewhere links are followed. A file alone only where nothing beside it belongs to the model. */
static void print_rsync(FILE *f, const struct launch_model_here *here, const struct launch_target *there)
{
    char path[PATH_MAX], word[PATH_MAX + sizeof there->typed + 4];
    const bool is_hub = here->path[0] != '/';
    struct stat info;
    snprintf(path, sizeof path, "%s", is_hub ? ck_path(here->ck) : here->path);
    bool is_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    char *end = is_hub ? strstr(path, "/snapshots/") : !is_folder && (ck_kind_of(here->ck) != CK_GGUF || ck_n_files(here->ck) > 1) ? strrchr(path, '/') : NULL;
    if (end) {
        *end = 0;
        is_folder = true;
    }
    fprintf(f, "rsync %s --mkpath", is_hub ? "-a" : "-aL");
    snprintf(word, sizeof word, "%s%s", path, is_folder ? "/" : "");
    print_word(f, word);
    const bool is_v6 = strchr(there->name, ':') != NULL;
    snprintf(word, sizeof word, "%s%s%s%s%s:%s", there->user, there->user[0] ? "@" : "", is_v6 ? "[" : "", there->name, is_v6 ? "]" : "", path);
    print_word(f, word);
}

enum st launch_model_compare(const struct launch_model_here *here, const struct launch_target *there, const void *answer, size_t bytes, struct err *e)
{
    const struct digest own = ck_digest(here->ck);
    uint32_t code;
    char why[300], line[400] = "";
    if (!rt_frame_told(answer, bytes, &code, why, sizeof why))
        return err_set(e, ST_INVALID, "host %s: tells nothing of its model", there->typed);
    if (code == ST_OK && bytes == sizeof code + sizeof own.bytes && memcmp((const char *)answer + sizeof code, own.bytes, sizeof own.bytes) == 0)
        return ST_OK;
    FILE *f = fmemopen(line, sizeof line, "w");
    if (f) {
        print_rsync(f, here, there);
        fclose(f);
    }
    const char *host = here->host ? here->host : "this host";
    if (code)
        return err_set(e, ST_NOT_FOUND, "host %s: %s; %s has it, and there this mends it: %s", there->typed, why, host, line);
    return err_set(e, ST_MISMATCH, "host %s: %s is not the model that %s has: headers or sizes differ; on %s this mends it: %s", there->typed, here->path, host, host, line);
}
