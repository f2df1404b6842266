/* See arena.h. */
#include "base/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct arena_block {
    arena_block *next;
    size_t used, capacity;
    alignas(16) unsigned char bytes[];
};

enum { ARENA_FIRST = 4096, ARENA_LARGEST = 1 << 20 };

static arena_block *block_new(arena *a, size_t n_bytes) {
    size_t capacity = a->head ? a->head->capacity * 2 : ARENA_FIRST;
    if (capacity > ARENA_LARGEST) capacity = ARENA_LARGEST;
    if (capacity < n_bytes) capacity = n_bytes;
    size_t whole, total;
    if (!checked_add(sizeof(arena_block), capacity, &whole) || !checked_add(a->total_bytes, whole, &total)) return NULL;
    if (a->limit_bytes && total > a->limit_bytes) return NULL;
    arena_block *block = calloc(1, whole);
    if (block == NULL) return NULL;
    block->capacity = capacity;
    block->next = a->head;
    a->head = block;
    a->total_bytes = total;
    return block;
}

void *arena_alloc(arena *a, size_t n_bytes) {
    size_t size;
    if (!checked_round_up(n_bytes ? n_bytes : 1, 16, &size)) return NULL;
    arena_block *block = a->head;
    if (block == NULL || block->capacity - block->used < size) {
        block = block_new(a, size);
        if (block == NULL) return NULL;
    }
    void *result = block->bytes + block->used;
    block->used += size;
    return result;
}

void *arena_array(arena *a, size_t count, size_t size) {
    size_t n_bytes;
    return checked_mul(count, size, &n_bytes) ? arena_alloc(a, n_bytes) : NULL;
}

char *arena_strndup(arena *a, const char *text, size_t n_bytes) {
    size_t size;
    char *copy = checked_add(n_bytes, 1, &size) ? arena_alloc(a, size) : NULL;
    if (copy && n_bytes) memcpy(copy, text, n_bytes);
    return copy;
}

void arena_free(arena *a) {
    for (arena_block *block = a->head, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *a = (arena){.limit_bytes = a->limit_bytes};
}
