/* Rows of an embedding that stay in their file and are read when they are wanted, past the page cache: a vocabulary of 128,000 rows takes gigabytes, and a step wants a few of them.
 *
 * open (while loading) → read (on the step path: no allocation, one system call a row) → close. Each thread reads into a bounce buffer of its own, which the plan has counted. Where the file
 * system has no direct I/O the page cache is used, which a line says. */
#ifndef RUNTIME_DISK_ROWS_H
#define RUNTIME_DISK_ROWS_H

#include "partition/program.h"

struct rt_disk_rows {
    int fd; /* −1: closed */
    const char *name, *path;
    enum format format;
    uint64_t offset, stride_bytes, row_bytes, n_columns; /* of this rank's first row */
    unsigned char *bounce; /* [n_threads], each on a multiple of the alignment */
    size_t bounce_bytes;
};

/* Bytes that rt_disk_rows_open takes of memory for the threads' bounce buffers. */
uint64_t rt_disk_rows_bytes(const struct part_weight *w, int n_threads);

/* memory: so many bytes. Of a rank without rows nothing is opened. */
enum st rt_disk_rows_open(struct rt_disk_rows *d, const struct part_model *m, const struct part_weight *w, void *memory, struct err *e);
void rt_disk_rows_close(struct rt_disk_rows *d);

/* Local row → n_columns numbers. ST_IO names the tensor, the row and the file. */
enum st rt_disk_rows_read(const struct rt_disk_rows *d, int i_thread, uint64_t row, float *numbers, struct err *e);

#endif
