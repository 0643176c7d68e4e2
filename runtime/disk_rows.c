/* Direct reads: offset, length and memory on multiples of 4096, which is what block devices of 512 and of 4096 bytes a sector both take. */
#include "runtime/disk_rows.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

#define ALIGNMENT 4096u

static uint64_t up(uint64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* A row may begin anywhere in its first sector. */
static uint64_t bounce_bytes(const struct part_weight *w) { return up(w->slices[0].run_bytes) + ALIGNMENT; }

uint64_t rt_disk_rows_bytes(const struct part_weight *w, int n_threads) { return bounce_bytes(w) * (uint64_t)n_threads + ALIGNMENT; }

/* Some file systems refuse direct I/O when the file is opened, others when it is read: a read tells. */
static int open_direct(const struct rt_disk_rows *d)
{
    const int fd = open(d->path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd >= 0 && pread(fd, d->bounce, ALIGNMENT, (off_t)(d->offset / ALIGNMENT * ALIGNMENT)) < 0 && errno == EINVAL) {
        close(fd);
        errno = EINVAL;
        return -1;
    }
    return fd;
}

enum st rt_disk_rows_open(struct rt_disk_rows *d, const struct part_model *m, const struct part_weight *w, void *memory, struct err *e)
{
    const struct part_slice *s = &w->slices[0];
    *d = (struct rt_disk_rows){
        .fd = -1,
        .name = w->name,
        .path = ck_file_path(m->ck, s->file),
        .format = w->tensor->format, /* as it is stored, whatever the scheme makes of it in memory */
        .offset = s->offset,
        .stride_bytes = s->stride[0],
        .row_bytes = s->run_bytes,
        .n_columns = w->columns.end - w->columns.begin,
        .bounce = (unsigned char *)memory + (up((uintptr_t)memory) - (uintptr_t)memory),
        .bounce_bytes = bounce_bytes(w),
    };
    if (w->slice_bytes == 0)
        return ST_OK;
    d->fd = open_direct(d);
    if (d->fd < 0 && errno == EINVAL) {
        LOG_WARNING("load", "%s: no direct I/O on this file system; rows of %s are read through the page cache", d->path, d->name);
        d->fd = open(d->path, O_RDONLY | O_CLOEXEC);
    }
    return d->fd < 0 ? err_set(e, ST_IO, "%s: %s", d->path, strerror(errno)) : ST_OK;
}

void rt_disk_rows_close(struct rt_disk_rows *d)
{
    if (d->fd >= 0)
        close(d->fd);
    d->fd = -1;
}

enum st rt_disk_rows_read(const struct rt_disk_rows *d, int i_thread, uint64_t row, float *numbers, struct err *e)
{
    const uint64_t at = d->offset + row * d->stride_bytes, begin = at / ALIGNMENT * ALIGNMENT, wanted = at - begin + d->row_bytes;
    unsigned char *to = d->bounce + (size_t)i_thread * d->bounce_bytes;
    for (uint64_t got = 0; got < wanted;) {
        const uint64_t from = got / ALIGNMENT * ALIGNMENT; /* less came than was asked for, at the file's end or because of a signal: again from an offset that direct I/O takes */
        const ssize_t n = pread(d->fd, to + from, up(wanted) - from, (off_t)(begin + from));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || from + (uint64_t)n <= got)
            return err_set(e, ST_IO, "%s: row %" PRIu64 " of %s cannot be read: %s", d->path, row, d->name, n < 0 ? strerror(errno) : "the file ends there");
        got = from + (uint64_t)n;
    }
    kern_format_dequantise(d->format, to + (at - begin), d->n_columns, numbers);
    return ST_OK;
}
