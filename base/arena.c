/* A chunk is one mapping with its header in the first 64 bytes. Fresh mappings are zero already; what a reset left behind
 * lies below dirty_bytes and is cleared when it is handed out again. */
#include "base/arena.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGN 64u
#define FIRST_CHUNK_BYTES (256u << 10)
#define LARGEST_CHUNK_BYTES (64u << 20)
#define HUGE_PAGE_BYTES (2u << 20)

struct arena_chunk {
    struct arena_chunk *older;
    void *map;
    size_t map_bytes;
    size_t bytes;       /* usable, after the header */
    size_t used_bytes;  /* multiple of ALIGN */
    size_t dirty_bytes; /* below this the memory may hold old data */
};
_Static_assert(sizeof(struct arena_chunk) <= ALIGN, "the header fits into the first line");

static unsigned char *chunk_data(struct arena_chunk *c) { return (unsigned char *)c + ALIGN; }

static size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

static struct arena_chunk *map_chunk(size_t bytes) {
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    if (bytes > SIZE_MAX / 2) return NULL;
    size_t chunk_bytes = round_up(bytes + ALIGN, page_bytes);
    /* Large chunks start on a huge page, else the first and last part could never become one. */
    size_t slack_bytes = chunk_bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 0;
    size_t map_bytes = chunk_bytes + slack_bytes;
    void *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return NULL;
    unsigned char *start = map;
    if (slack_bytes) {
        start += (HUGE_PAGE_BYTES - (uintptr_t)start % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
        madvise(start, chunk_bytes, MADV_HUGEPAGE); /* advice: a refusal changes nothing but speed */
    }
    struct arena_chunk *c = (struct arena_chunk *)start;
    c->map = map;
    c->map_bytes = map_bytes;
    c->bytes = chunk_bytes - ALIGN;
    return c;
}

static void unmap_chunks(struct arena_chunk *c) {
    while (c) {
        struct arena_chunk *older = c->older;
        munmap(c->map, c->map_bytes);
        c = older;
    }
}

enum st base_arena_init(struct arena *a, const char *name, size_t capacity_bytes, struct err *e) {
    struct arena_chunk *chunk = NULL;
    if (capacity_bytes) {
        chunk = map_chunk(capacity_bytes);
        if (!chunk) return err_set(e, ST_NO_MEMORY, "arena %s: cannot map %zu bytes: %s", name, capacity_bytes, strerror(errno));
    }
    *a = (struct arena){.chunks = chunk, .capacity_bytes = capacity_bytes, .name = name};
    return ST_OK;
}

void base_arena_release(struct arena *a) {
    unmap_chunks(a->chunks);
    *a = (struct arena){.name = a->name};
}

/* A new chunk that holds at least bytes; chunks double, so that their number stays small. */
static struct arena_chunk *grow(struct arena *a, size_t bytes) {
    size_t chunk_bytes = FIRST_CHUNK_BYTES;
    if (a->chunks) chunk_bytes = a->chunks->bytes < LARGEST_CHUNK_BYTES / 2 ? 2 * a->chunks->bytes : LARGEST_CHUNK_BYTES;
    struct arena_chunk *c = map_chunk(bytes > chunk_bytes ? bytes : chunk_bytes);
    if (!c) return NULL;
    c->older = a->chunks;
    a->chunks = c;
    return c;
}

void *base_arena_alloc(struct arena *a, size_t bytes) {
    BASE_ASSERT(!a->frozen);
    if (bytes > SIZE_MAX - ALIGN) return NULL;
    bytes = bytes ? round_up(bytes, ALIGN) : ALIGN;

    struct arena_chunk *c = a->chunks;
    if (a->capacity_bytes) {
        /* The mapping was rounded up to pages; the limit is what was asked for. */
        if (bytes > round_up(a->capacity_bytes, ALIGN) - c->used_bytes) return NULL;
    } else if (!c || bytes > c->bytes - c->used_bytes) {
        c = grow(a, bytes);
        if (!c) return NULL;
    }

    unsigned char *p = chunk_data(c) + c->used_bytes;
    if (c->used_bytes < c->dirty_bytes) {
        size_t dirty_bytes = c->dirty_bytes - c->used_bytes;
        memset(p, 0, dirty_bytes < bytes ? dirty_bytes : bytes);
    }
    c->used_bytes += bytes;
    a->used_bytes += bytes;
    return p;
}

void *base_arena_array(struct arena *a, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) return NULL;
    return base_arena_alloc(a, bytes);
}

char *base_arena_strndup(struct arena *a, const char *s, size_t n_bytes) {
    size_t n = strnlen(s, n_bytes);
    if (n == SIZE_MAX) return NULL;
    char *copy = base_arena_alloc(a, n + 1);
    if (copy) memcpy(copy, s, n);
    return copy;
}

char *base_arena_strdup(struct arena *a, const char *s) { return base_arena_strndup(a, s, strlen(s)); }

char *base_arena_printf(struct arena *a, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : base_arena_alloc(a, (size_t)n + 1);
    if (text) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

void base_arena_reset(struct arena *a) {
    a->used_bytes = 0;
    struct arena_chunk *c = a->chunks;
    if (!c) return;
    unmap_chunks(c->older);
    c->older = NULL;
    if (c->used_bytes > c->dirty_bytes) c->dirty_bytes = c->used_bytes;
    c->used_bytes = 0;
}

void base_arena_freeze(struct arena *a) { a->frozen = true; }
