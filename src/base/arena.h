/* A bump allocator for things that die together: everything is freed by arena_free. Owned by one thread. */
#ifndef WEIR_BASE_ARENA_H
#define WEIR_BASE_ARENA_H

#include <stddef.h>

typedef struct arena_block arena_block;
typedef struct arena {
    arena_block *head;
    size_t total_bytes; /* taken from the heap so far */
    size_t limit_bytes; /* 0 = none; beyond it allocations return NULL */
} arena;

#define ARENA_INIT ((arena){0})

/* `n_bytes` zeroed bytes, aligned to 16; NULL when out of memory or over the limit. n_bytes 0 gives a unique pointer. */
void *arena_alloc(arena *a, size_t n_bytes);
/* As arena_alloc for `count` items of `size` bytes; NULL on overflow too. */
void *arena_array(arena *a, size_t count, size_t size);
/* A NUL-terminated copy of text[n_bytes]. */
char *arena_strndup(arena *a, const char *text, size_t n_bytes);
void arena_free(arena *a); /* back to ARENA_INIT; keeps the limit */

#endif
