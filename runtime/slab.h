/* Buffers of slabs: as large as the largest so far, and nothing in them outlives a slab. */
#ifndef RUNTIME_SLAB_H
#define RUNTIME_SLAB_H

#include <stdbool.h>
#include <stdlib.h>

/* At least so many bytes at *buffer, which the caller frees; what was there is lost where it grows. False: no memory, and nothing is held. */
static inline bool rt_slab_grow(unsigned char **buffer, size_t *capacity, size_t bytes)
{
    if (bytes <= *capacity)
        return true;
    free(*buffer);
    *buffer = malloc(bytes);
    *capacity = *buffer ? bytes : 0;
    return *buffer;
}

#endif
