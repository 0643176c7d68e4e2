/* Rows of a weight out of its files: what a rank holds of each of its tensors, read into a bounce buffer and put together to rows of blocks (assemble.h).
 *
 * Used by the loader, and by the converter, which reads quantised checkpoints. Any thread, with a bounce buffer of its own; whole strides are read where most of a row is wanted, else only the
 * runs. */
#ifndef RUNTIME_ROWS_H
#define RUNTIME_ROWS_H

#include "kernels/kernels.h"
#include "partition/program.h"
#include "runtime/assemble.h"

struct rt_rows {
    const struct part_weight *weight;    /* a matrix with slices */
    const struct kern_columns *columns;  /* rt_columns_init's */
    const int *fds;                      /* open, by the checkpoint's number of the file */
};

/* Row i of what was read: at data + i · stride_bytes, whole blocks of the scheme's format from first_column on (of the columns' order, where they have one). */
struct rt_rows_read {
    const unsigned char *data;
    size_t stride_bytes;
    uint64_t first_column;
};

/* Bytes that n rows take in the bounce buffer, at most: those of every tensor, and what they are put together to. */
uint64_t rt_rows_bytes(const struct rt_rows *r, uint64_t n);

/* Local rows [row, row + n). deviation: of schemes that round, else unused. ST_IO or ST_INVALID names the tensor. */
enum st rt_rows_read(const struct rt_rows *r, uint64_t row, uint64_t n, unsigned char *bounce, struct rt_rows_read *out, struct rt_deviation *deviation, struct rt_odd_scales *odd, struct err *e);

/* The factor of the whole tensor; *scale is left alone where there is none. */
enum st rt_rows_tensor_scale(const struct rt_rows *r, float *scale, struct err *e);

/* All of them, or ST_IO with the tensor's name. */
enum st rt_read_exactly(int fd, void *to, uint64_t bytes, uint64_t offset, const char *name, struct err *e);

#endif
