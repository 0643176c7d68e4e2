#include "runtime/out_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum st open_file(struct rt_out_files *w, int dir, size_t i, bool sparse, struct err *e)
{
    const struct out_file *f = &w->files[i];
    w->fds[i] = openat(dir, f->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (w->fds[i] < 0)
        return err_set(e, ST_IO, "cannot make %s: %s", f->name, strerror(errno));
    /* Some file systems cannot reserve; then the writes tell. */
    const bool reserved = sparse || !f->bytes || fallocate(w->fds[i], 0, 0, (off_t)f->bytes) == 0 || errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL || errno == EINTR;
    if (!reserved || ftruncate(w->fds[i], (off_t)f->bytes) != 0)
        return err_set(e, ST_IO, "no room for %s (%.1f MB): %s", f->name, (double)f->bytes / 1e6, strerror(errno));
    const struct out_tensor head = {.file = (uint32_t)i};
    return rt_out_files_write(w, &head, 0, f->head, f->head_bytes, e);
}

enum st rt_out_files_open(struct rt_out_files *w, int dir, const struct out_file *files, size_t n, bool sparse, struct err *e)
{
    *w = (struct rt_out_files){.files = files, .n = n, .fds = malloc((n ? n : 1) * sizeof *w->fds)};
    if (!w->fds)
        return err_set(e, ST_NO_MEMORY, "no memory for %zu files", n);
    for (size_t i = 0; i < n; i++)
        w->fds[i] = -1;
    enum st st = ST_OK;
    for (size_t i = 0; !st && i < n; i++)
        st = open_file(w, dir, i, sparse, e);
    return st ? rt_out_files_close(w, st, e) : ST_OK;
}

enum st rt_out_files_write(const struct rt_out_files *w, const struct out_tensor *t, uint64_t at, const void *data, size_t bytes, struct err *e)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = pwrite(w->fds[t->file], (const char *)data + done, bytes - done, (off_t)(t->offset + at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(e, ST_IO, "cannot write %s: %s", w->files[t->file].name, strerror(errno));
        done += (size_t)n;
    }
    return ST_OK;
}

enum st rt_out_files_close(struct rt_out_files *w, enum st st, struct err *e)
{
    for (size_t i = 0; i < w->n; i++) {
        if (w->fds[i] < 0)
            continue;
        if (!st && fsync(w->fds[i]) != 0)
            st = err_set(e, ST_IO, "cannot write %s: %s", w->files[i].name, strerror(errno));
        if (close(w->fds[i]) != 0 && !st)
            st = err_set(e, ST_IO, "cannot write %s: %s", w->files[i].name, strerror(errno));
    }
    free(w->fds);
    *w = (struct rt_out_files){NULL, 0, NULL};
    return st;
}
