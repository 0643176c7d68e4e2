/* A directory that is written whole or not at all: everything goes into OUT.partial, held by a lock, and is renamed at the end.
 *
 * open → write files into dir → keep → close. What a killed run left behind is recognised by the free lock and removed by the next one. One thread. */
#ifndef LAUNCHER_OUT_DIR_H
#define LAUNCHER_OUT_DIR_H

#include <stddef.h>

#include "base/status.h"

struct launch_out_dir {
    char *out, *partial; /* OUT without slashes at its end; OUT.partial */
    int fd;              /* of OUT.partial, and the lock; −1: none */
};

/* OUT must not be there. */
enum st launch_out_dir_open(struct launch_out_dir *d, const char *out, struct err *e);
/* A new file in it, on the disk when this returns ST_OK. */
enum st launch_out_dir_write(const struct launch_out_dir *d, const char *name, const char *text, size_t bytes, struct err *e);
/* It becomes OUT; or, where `only` names a file in it, that file does. */
enum st launch_out_dir_keep(struct launch_out_dir *d, const char *only, struct err *e);
/* Removes what was not kept. */
void launch_out_dir_close(struct launch_out_dir *d);

/* A directory of plain files that was kept, for who only wanted it for a while. */
void launch_out_dir_remove(const char *path);

/* Writes all of it to a descriptor; name is for the error. */
enum st launch_write_bytes(int fd, const char *name, const char *from, size_t bytes, struct err *e);

#endif
