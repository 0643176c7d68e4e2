/* Arenas: memory with one of three lifetimes (process, session, step), released as a whole.
 *
 * init → alloc … → (mark / reset) → freeze → release. Storage of struct arena is the caller's.
 * One thread at a time. A growing arena maps chunks as needed; a fixed one (capacity given) never grows: alloc beyond it
 * returns NULL. After base_arena_freeze() every alloc is our own bug and asserts. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks; /* newest first */
    size_t used_bytes;          /* handed out, padding included */
    size_t capacity_bytes;      /* 0: grows */
    const char *name;
    bool frozen;
};

/* capacity_bytes 0: grows by chunks. Otherwise the whole is mapped now (anonymous, zeroed, 64-byte aligned; transparent huge pages advised). */
enum st base_arena_init(struct arena *a, const char *name, size_t capacity_bytes, struct err *e);
void base_arena_release(struct arena *a);

/* Zeroed memory, aligned to 64 bytes; NULL when a fixed arena is full or the system refuses. */
void *base_arena_alloc(struct arena *a, size_t bytes);
/* n × size with the overflow checked. */
void *base_arena_array(struct arena *a, size_t n, size_t size);
char *base_arena_strdup(struct arena *a, const char *s);
char *base_arena_strndup(struct arena *a, const char *s, size_t n_bytes);
char *base_arena_printf(struct arena *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Forgets all allocations; keeps the newest chunk (zeroed again on demand: alloc always returns zeroes). */
void base_arena_reset(struct arena *a);
void base_arena_freeze(struct arena *a);

#endif
