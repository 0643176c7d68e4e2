/* OUT.partial and its lock. */
#include "launcher/out_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

/* Only plain files are ever in it. */
static void empty_dir(int dir)
{
    const int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0)
            close(fd);
        return;
    }
    for (struct dirent *entry; (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dir, entry->d_name, 0);
    closedir(d);
}

static enum st make_dir(struct launch_out_dir *o, struct err *e)
{
    const bool made = mkdir(o->partial, 0777) == 0;
    if (!made && errno != EEXIST)
        return err_set(e, ST_IO, "cannot make %s: %s", o->partial, strerror(errno));
    o->fd = open(o->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (o->fd < 0)
        return err_set(e, ST_IO, "%s: %s", o->partial, strerror(errno));
    if (flock(o->fd, LOCK_EX | LOCK_NB) != 0) {
        close(o->fd);
        o->fd = -1;
        return err_set(e, ST_IO, "%s is being written by another process", o->partial);
    }
    if (!made) {
        LOG_INFORM("launch", "%s is what a killed run left; it is written anew", o->partial);
        empty_dir(o->fd);
    }
    return ST_OK;
}

enum st launch_out_dir_open(struct launch_out_dir *o, const char *out, struct err *e)
{
    size_t n = strlen(out); /* "a/b///" → "a/b" */
    while (n > 1 && out[n - 1] == '/')
        n--;
    *o = (struct launch_out_dir){.fd = -1};
    o->out = strndup(out, n);
    if (!o->out || asprintf(&o->partial, "%s.partial", o->out) < 0) {
        o->partial = NULL;
        launch_out_dir_close(o);
        return err_set(e, ST_NO_MEMORY, "no memory for a path");
    }
    struct stat info;
    const enum st st = lstat(o->out, &info) == 0 ? err_set(e, ST_INVALID, "%s exists already; remove it or name another OUT", o->out) : make_dir(o, e);
    if (st)
        launch_out_dir_close(o);
    return st;
}

void launch_out_dir_close(struct launch_out_dir *o)
{
    if (o->fd >= 0) {
        empty_dir(o->fd);
        (void)rmdir(o->partial);
        close(o->fd);
    }
    free(o->partial);
    free(o->out);
    *o = (struct launch_out_dir){.fd = -1};
}

enum st launch_out_dir_keep(struct launch_out_dir *o, const char *only, struct err *e)
{
    if (fsync(o->fd) != 0 && errno != EINVAL)
        return err_set(e, ST_IO, "cannot write %s: %s", o->partial, strerror(errno));
    char *from = o->partial, *file = NULL;
    if (only) {
        if (asprintf(&file, "%s/%s", o->partial, only) < 0)
            return err_set(e, ST_NO_MEMORY, "no memory for a path");
        from = file;
    }
    /* Where a file system has no rename that refuses, OUT was looked for at the beginning. */
    enum st st = ST_OK;
    if (renameat2(AT_FDCWD, from, AT_FDCWD, o->out, RENAME_NOREPLACE) != 0 && (errno != EINVAL || access(o->out, F_OK) == 0 || rename(from, o->out) != 0))
        st = err_set(e, ST_IO, "cannot rename %s to %s: %s", from, o->out, strerror(errno));
    free(file);
    if (!st && !only) {
        close(o->fd); /* it is OUT now */
        o->fd = -1;
    }
    return st;
}

void launch_out_dir_remove(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return;
    empty_dir(fd);
    close(fd);
    (void)rmdir(path);
}

enum st launch_write_bytes(int fd, const char *name, const char *from, size_t bytes, struct err *e)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = write(fd, from + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(e, ST_IO, "cannot write %s: %s", name, strerror(errno));
        done += (size_t)n;
    }
    return ST_OK;
}

enum st launch_out_dir_write(const struct launch_out_dir *o, const char *name, const char *text, size_t bytes, struct err *e)
{
    const int fd = openat(o->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set(e, ST_IO, "cannot make %s: %s", name, strerror(errno));
    enum st st = launch_write_bytes(fd, name, text, bytes, e);
    if (!st && fsync(fd) != 0)
        st = err_set(e, ST_IO, "cannot write %s: %s", name, strerror(errno));
    close(fd);
    return st;
}
