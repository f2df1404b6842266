/* The hash tables of tok_internal.h. Owns their memory and nothing else; knows nothing of tokens. Reading is for any thread. */
#include "tok/tok_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/checked.h"

/* One seed for the process, so that colliding keys cannot be prepared. It changes the order inside the tables, never a result.
 */
static uint64_t hash_seed(void) {
    static uint64_t seed; /* atomic below */
    uint64_t value = __atomic_load_n(&seed, __ATOMIC_RELAXED);
    if (value) return value;
    if (getrandom(&value, sizeof value, GRND_NONBLOCK) != (ssize_t)sizeof value) value = (uint64_t)(uintptr_t)&seed;
    value |= 1;
    uint64_t expected = 0;
    return __atomic_compare_exchange_n(&seed, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ? value : expected;
}

static inline uint64_t mix(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash_bytes(const char *text, size_t n_bytes, uint64_t seed) {
    uint64_t h = seed ^ (n_bytes * 0x9E3779B97F4A7C15u), word;
    for (; n_bytes > 8; text += 8, n_bytes -= 8) {
        memcpy(&word, text, 8);
        h = mix(h ^ word, 0xD6E8FEB86659FD93u ^ seed);
    }
    word = 0;
    memcpy(&word, text, n_bytes);
    return mix(h ^ word, 0xA0761D6478BD642Fu ^ seed);
}

/* Capacity for `n` entries at a load of at most one half; 0 on overflow. */
static size_t table_capacity(size_t n) {
    size_t capacity = 16;
    while (capacity / 2 < n) {
        if (capacity > SIZE_MAX / 4) return 0;
        capacity *= 2;
    }
    return capacity;
}

/* ---- strings ------------------------------------------------------------------------------------------------------------ */

static void strings_insert(tok_string_table *table, uint64_t hash, int32_t index) {
    size_t at = hash & table->mask;
    while (table->slots[at].index >= 0) at = (at + 1) & table->mask;
    table->slots[at].tag = (uint32_t)(hash >> 32);
    table->slots[at].index = index;
}

bool tok_strings_reserve(tok_string_table *table, const tok_string *strings, size_t n) {
    const size_t capacity = table_capacity(n);
    if (capacity == 0) return false;
    if (table->slots && capacity <= table->mask + 1) return true;
    tok_string_table grown = {.slots = calloc(capacity, sizeof *grown.slots), .mask = capacity - 1, .n = table->n};
    if (grown.slots == NULL) return false;
    for (size_t i = 0; i < capacity; i++) grown.slots[i].index = -1;
    for (size_t i = 0; table->slots && i <= table->mask; i++) {
        const int32_t index = table->slots[i].index;
        if (index >= 0) strings_insert(&grown, hash_bytes(strings[index].text, strings[index].n_bytes, hash_seed()), index);
    }
    free(table->slots);
    *table = grown;
    return true;
}

void tok_strings_free(tok_string_table *table) {
    free(table->slots);
    *table = (tok_string_table){0};
}

static int32_t strings_find(const tok_string_table *table, const tok_string *strings, const char *text, size_t n_bytes,
                            uint64_t hash) {
    const uint32_t tag = (uint32_t)(hash >> 32);
    for (size_t at = hash & table->mask;; at = (at + 1) & table->mask) {
        const int32_t index = table->slots[at].index;
        if (index < 0) return -1;
        if (table->slots[at].tag == tag && strings[index].n_bytes == n_bytes && memcmp(strings[index].text, text, n_bytes) == 0)
            return index;
    }
}

int32_t tok_strings_find(const tok_string_table *table, const tok_string *strings, const char *text, size_t n_bytes) {
    if (table->slots == NULL || n_bytes == 0) return -1;
    return strings_find(table, strings, text, n_bytes, hash_bytes(text, n_bytes, hash_seed()));
}

int32_t tok_strings_add(tok_string_table *table, const tok_string *strings, int32_t index) {
    const tok_string s = strings[index];
    if (s.n_bytes == 0) return -1;
    const uint64_t hash = hash_bytes(s.text, s.n_bytes, hash_seed());
    const int32_t found = strings_find(table, strings, s.text, s.n_bytes, hash);
    if (found >= 0) return found;
    strings_insert(table, hash, index);
    table->n++;
    return index;
}

/* ---- pairs -------------------------------------------------------------------------------------------------------------- */

static inline size_t pair_hash(int32_t left, int32_t right) {
    const uint64_t seed = hash_seed();
    return (size_t)mix(((uint64_t)(uint32_t)left << 32 | (uint32_t)right) ^ seed, 0x9E3779B97F4A7C15u ^ seed << 1);
}

bool tok_pairs_reserve(tok_pair_table *table, size_t n) {
    const size_t capacity = table_capacity(n);
    table->slots = capacity ? calloc(capacity, sizeof *table->slots) : NULL;
    if (table->slots == NULL) return false;
    table->mask = capacity - 1;
    for (size_t i = 0; i < capacity; i++) table->slots[i].left = -1;
    return true;
}

void tok_pairs_free(tok_pair_table *table) {
    free(table->slots);
    *table = (tok_pair_table){0};
}

const struct tok_pair_slot *tok_pairs_find(const tok_pair_table *table, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return NULL;
    for (size_t at = pair_hash(left, right) & table->mask;; at = (at + 1) & table->mask) {
        const struct tok_pair_slot *slot = &table->slots[at];
        if (slot->left == left && slot->right == right) return slot;
        if (slot->left < 0) return NULL;
    }
}

void tok_pairs_add(tok_pair_table *table, int32_t left, int32_t right, uint32_t rank, int32_t merged) {
    if (tok_pairs_find(table, left, right)) return;
    size_t at = pair_hash(left, right) & table->mask;
    while (table->slots[at].left >= 0) at = (at + 1) & table->mask;
    table->slots[at] = (struct tok_pair_slot){.left = left, .right = right, .rank = rank, .merged = merged};
}
