/* The bytes of a conversion (partition/convert.h): reads each tensor once or twice, encodes it on all threads, writes it where the plan says.
 *
 * Streams by slabs of rows: what is held is a few times RT_ENCODE_SLAB bytes, or of one row where that is longer. The same bytes for any number of threads. One thread calls; its pool works. */
#ifndef RUNTIME_ENCODE_H
#define RUNTIME_ENCODE_H

#include "base/pool.h"
#include "partition/convert.h"

#define RT_ENCODE_SLAB ((size_t)16 << 20) /* of F32 numbers */

struct rt_encode_options {
    struct base_pool *pool;
    int dir; /* descriptor of the directory in which the plan's files are made; none of them may be there */
    /* After each slab; source bytes so far. false: stop, with ST_CANCELLED. May be NULL. */
    bool (*go_on)(void *arg, const char *tensor, uint64_t done_bytes);
    void *arg;
};

/* Space for all files is reserved first, so that a full disk is known before the work; they are on the disk when this returns ST_OK. What an error leaves is the caller's to remove.
 * ST_INVALID: a weight that is NaN or infinite, or too large for the format, with its tensor and row. */
enum st rt_encode(const struct checkpoint *ck, const struct convert_plan *plan, const struct rt_encode_options *options, struct err *e);

#endif
