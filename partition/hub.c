/* A hub name → the snapshot that Hugging Face's own tools have put into their cache. Nothing is downloaded.
 *
 * Layout (huggingface_hub, "Manage your cache"): ROOT/models--ORG--NAME/refs/main holds a commit; snapshots/COMMIT/ holds links to blobs. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "partition/checkpoint_priv.h"

/* ORG/NAME of letters, digits, '.', '_', '-'; no part begins with a dot, so that no name can leave the cache. */
bool ck_hub_is_name(const char *name) {
    const char *slash = strchr(name, '/');
    if (!slash || strlen(name) > 200) return false;
    for (const char *p = name; *p; p++) {
        if (p == slash) continue;
        if (!isalnum((unsigned char)*p) && !strchr("._-", *p)) return false;
    }
    return isalnum((unsigned char)name[0]) && isalnum((unsigned char)slash[1]);
}

static bool is_dir(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static const char *cache_root(struct arena *arena) {
    static const struct {
        const char *variable, *below;
    } places[] = {{"HF_HUB_CACHE", ""},
                  {"HUGGINGFACE_HUB_CACHE", ""}, /* its older name */
                  {"HF_HOME", "/hub"},
                  {"XDG_CACHE_HOME", "/huggingface/hub"},
                  {"HOME", "/.cache/huggingface/hub"}};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        const char *value = getenv(places[i].variable);
        if (value && *value) return base_arena_printf(arena, "%s%s", value, places[i].below);
    }
    return NULL;
}

enum st ck_hub_find(struct checkpoint *ck, const char *name, const char **dir, struct err *e) {
    const char *root = cache_root(&ck->arena);
    if (!root) return err_set(e, ST_NOT_FOUND, "%s: no such file or directory, and no HOME to look for a Hugging Face cache in", name);
    const char *slash = strchr(name, '/');
    const char *repo = base_arena_printf(&ck->arena, "%s/models--%.*s--%s", root, (int)(slash - name), name, slash + 1);
    if (!is_dir(repo))
        return err_set(e, ST_NOT_FOUND, "%s: no such file or directory, and not in the Hugging Face cache %s; 'hf download %s' fetches it", name,
                       root, name);

    const char *ref = base_arena_printf(&ck->arena, "%s/refs/main", repo);
    FILE *f = fopen(ref, "re");
    if (f) {
        char commit[128] = "";
        size_t n = fread(commit, 1, sizeof commit - 1, f);
        fclose(f);
        while (n && isspace((unsigned char)commit[n - 1])) commit[--n] = 0;
        bool good = n > 0;
        for (size_t i = 0; i < n; i++) good = good && isalnum((unsigned char)commit[i]);
        if (!good) return err_set(e, ST_INVALID, "%s: holds no commit", ref);
        const char *found = base_arena_printf(&ck->arena, "%s/snapshots/%s", repo, commit);
        if (!is_dir(found))
            return err_set(e, ST_NOT_FOUND, "%s: the cache names commit %s, but %s is not there; 'hf download %s' completes it", name, commit, found,
                           name);
        *dir = found;
        return ST_OK;
    }

    /* Downloaded by commit: no ref. One snapshot leaves no question. */
    const char *snapshots = base_arena_printf(&ck->arena, "%s/snapshots", repo);
    const char **names;
    size_t n_names;
    enum st st = ck_list(ck, snapshots, "", &names, &n_names, e);
    if (st != ST_OK) return st;
    if (n_names != 1)
        return err_set(e, ST_NOT_FOUND, "%s: %s has %zu snapshots and no refs/main; name the snapshot's directory instead", name, repo, n_names);
    *dir = base_arena_printf(&ck->arena, "%s/%s", snapshots, names[0]);
    return ST_OK;
}
