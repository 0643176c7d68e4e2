/* The files of a checkpoint that is written: made with their headers, filled anywhere, on the disk at the end.
 *
 * open → write … → close. One thread opens and closes; write from any. */
#ifndef RUNTIME_OUT_FILES_H
#define RUNTIME_OUT_FILES_H

#include <stdbool.h>

#include "partition/write.h"

struct rt_out_files {
    const struct out_file *files; /* borrowed */
    size_t n;
    int *fds;
};

/* dir: descriptor of a directory in which none of them is yet. Space for all is reserved first, so that a full disk is known before the work; sparse: it is not, and what nobody writes
 * takes none. */
enum st rt_out_files_open(struct rt_out_files *w, int dir, const struct out_file *files, size_t n, bool sparse, struct err *e);
/* From byte `at` of a tensor. */
enum st rt_out_files_write(const struct rt_out_files *w, const struct out_tensor *t, uint64_t at, const void *data, size_t bytes, struct err *e);
/* ST_OK in: all of it is on the disk when this returns ST_OK. */
enum st rt_out_files_close(struct rt_out_files *w, enum st st, struct err *e);

#endif
