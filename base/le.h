/* Whole numbers as bytes on the wire: the least significant first, whatever the machine. bytes: 1 … 8. */
#ifndef BASE_LE_H
#define BASE_LE_H

#include <stdint.h>

/* Returns what is behind. */
static inline uint8_t *base_put_le(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
    return at + bytes;
}

static inline uint64_t base_get_le(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

#endif
