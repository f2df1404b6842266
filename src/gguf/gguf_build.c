/* See gguf_build.h. */
#include "gguf/gguf_build.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/gguf_internal.h"

struct gguf_build {
    gguf *g;
    size_t keys_capacity, tensors_capacity, parts_capacity;
    bool failed; /* out of memory */
};

static int no_memory(weir_error *err, const char *path) {
    return error_set(err, WEIR_E_NOMEM, path, "no memory for a directory");
}

int gguf_build_open(gguf_build **out, const char *path, const char *container, weir_error *err) {
    *out = NULL;
    gguf_build *b = calloc(1, sizeof *b);
    if (b == NULL) return no_memory(err, path);
    b->g = calloc(1, sizeof *b->g);
    if (b->g) b->g->path = arena_strndup(&b->g->memory, path, strlen(path));
    if (b->g == NULL || b->g->path == NULL) {
        gguf_build_close(&b);
        return no_memory(err, path);
    }
    b->g->container = container;
    b->g->n_parts = 1;
    *out = b;
    return 0;
}

void gguf_build_close(gguf_build **b) {
    if (*b == NULL) return;
    gguf_close(&(*b)->g);
    free(*b);
    *b = NULL;
}

void *gguf_build_memory(gguf_build *b, size_t n_bytes) {
    void *memory = arena_alloc(&b->g->memory, n_bytes);
    b->failed |= memory == NULL;
    return memory;
}

/* A larger copy of an array in the arena, whose blocks live together anyway; NULL = out of memory. */
static void *grow(gguf_build *b, void *array, size_t n, size_t *capacity, size_t size) {
    if (n < *capacity) return array;
    const size_t grown = *capacity ? *capacity * 2 : 32;
    void *memory = arena_array(&b->g->memory, grown, size);
    b->failed |= memory == NULL;
    if (memory == NULL) return NULL;
    if (n) memcpy(memory, array, n * size);
    *capacity = grown;
    return memory;
}

int gguf_build_map(gguf_build *b, const char *path, const unsigned char **bytes, size_t *n_bytes, weir_error *err) {
    gguf *g = b->g;
    void *mapping;
    int64_t modified_ns = 0;
    TRY(gguf_map_file(path, &mapping, n_bytes, &modified_ns, err));
    *bytes = mapping;
    if (g->parts == NULL) { /* the first part is the object itself */
        g->parts = grow(b, NULL, 0, &b->parts_capacity, sizeof *g->parts);
        g->bytes = g->mapping = mapping;
        g->n_bytes = *n_bytes;
        g->modified_ns = modified_ns;
        if (g->parts == NULL) return no_memory(err, path);
        g->parts[0] = g;
        return 0;
    }
    gguf *part = calloc(1, sizeof *part);
    gguf **parts = grow(b, g->parts, g->n_parts, &b->parts_capacity, sizeof *g->parts);
    if (part) {
        part->bytes = part->mapping = mapping;
        part->n_bytes = *n_bytes;
        part->modified_ns = modified_ns;
        part->n_parts = 1;
        part->path = arena_strndup(&part->memory, path, strlen(path));
    }
    if (part == NULL || parts == NULL || part->path == NULL) {
        if (part == NULL) gguf_unmap_file(mapping, *n_bytes);
        gguf_close(&part);
        return no_memory(err, path);
    }
    g->parts = parts;
    g->parts[g->n_parts++] = part;
    return 0;
}

/* A new key whose value has n items of item_bytes each, which the caller writes to *data; NULL = failed. */
static gguf_key_value *add_key(gguf_build *b, const char *key, gguf_value_type type, gguf_value_type item_type, size_t n,
                               const void *items, size_t item_bytes) {
    gguf *g = b->g;
    gguf_key_value *key_values = grow(b, g->key_values, g->n_key_values, &b->keys_capacity, sizeof *g->key_values);
    const size_t key_bytes = strlen(key);
    const char *name = arena_strndup(&g->memory, key, key_bytes);
    unsigned char *data = arena_array(&g->memory, n ? n : 1, item_bytes);
    b->failed |= key_values == NULL || name == NULL || data == NULL;
    if (b->failed) return NULL;
    if (n) memcpy(data, items, n * item_bytes); /* little-endian, as this machine is */
    g->key_values = key_values;
    gguf_key_value *kv = &g->key_values[g->n_key_values++];
    *kv = (gguf_key_value){.key = {name, key_bytes}, .type = type, .item_type = item_type, .n_items = n, .data = data};
    return kv;
}

void gguf_build_u32(gguf_build *b, const char *key, uint32_t value) {
    add_key(b, key, GGUF_UINT32, GGUF_UINT32, 1, &value, 4);
}
void gguf_build_f32(gguf_build *b, const char *key, float value) {
    add_key(b, key, GGUF_FLOAT32, GGUF_FLOAT32, 1, &value, 4);
}
void gguf_build_bool(gguf_build *b, const char *key, bool value) {
    const unsigned char byte = value;
    add_key(b, key, GGUF_BOOL, GGUF_BOOL, 1, &byte, 1);
}
void gguf_build_i32s(gguf_build *b, const char *key, const int32_t *values, size_t n) {
    add_key(b, key, GGUF_ARRAY, GGUF_INT32, n, values, 4);
}

/* Strings as a file has them, each after its length, so that whoever copies keys need not know. */
static void add_strings(gguf_build *b, const char *key, gguf_value_type type, const gguf_string *values, size_t n) {
    size_t total = 0;
    for (size_t i = 0; i < n; i++) b->failed |= !checked_add(total, values[i].n_bytes, &total) || !checked_add(total, 8, &total);
    gguf_string *strings = b->failed ? NULL : arena_array(&b->g->memory, n ? n : 1, sizeof *strings);
    unsigned char *data = strings ? arena_alloc(&b->g->memory, total) : NULL, *at = data;
    b->failed |= data == NULL;
    for (size_t i = 0; i < n && !b->failed; i++) {
        const uint64_t n_bytes = values[i].n_bytes;
        memcpy(at, &n_bytes, 8);
        if (n_bytes) memcpy(at + 8, values[i].text, values[i].n_bytes);
        strings[i] = (gguf_string){(const char *)at + 8, values[i].n_bytes};
        at += 8 + values[i].n_bytes;
    }
    gguf_key_value *kv = b->failed ? NULL : add_key(b, key, type, GGUF_STRING, 0, NULL, 1);
    if (kv == NULL) return;
    kv->n_items = n;
    kv->data = data;
    kv->strings = strings;
}

void gguf_build_string(gguf_build *b, const char *key, const char *text, size_t n_bytes) {
    add_strings(b, key, GGUF_STRING, &(gguf_string){text, n_bytes}, 1);
}

void gguf_build_strings(gguf_build *b, const char *key, const gguf_string *values, size_t n) {
    add_strings(b, key, GGUF_ARRAY, values, n);
}

void gguf_build_f32s(gguf_build *b, const char *key, const float *values, size_t n) {
    add_key(b, key, GGUF_ARRAY, GGUF_FLOAT32, n, values, 4);
}

void gguf_build_tensor(gguf_build *b, const gguf_tensor *t) {
    gguf *g = b->g;
    gguf_tensor *tensors = grow(b, g->tensors, g->n_tensors, &b->tensors_capacity, sizeof *g->tensors);
    const char *name = arena_strndup(&g->memory, t->name.text, t->name.n_bytes);
    b->failed |= tensors == NULL || name == NULL;
    if (b->failed) return;
    g->tensors = tensors;
    gguf_tensor *own = &g->tensors[g->n_tensors++];
    *own = *t;
    own->name.text = name;
    own->n_values = 1;
    for (uint32_t d = 0; d < GGUF_MAX_DIMS; d++) {
        if (d >= t->n_dims) own->dims[d] = 1;
        own->n_values *= own->dims[d];
    }
    own->n_bytes = own->n_values / (uint64_t)t->format->block_size * (uint64_t)t->format->block_bytes;
}

/* One index of names; a name twice is an error. */
static int index_names(gguf *g, name_index *index, const void *first, size_t n, size_t stride, const char *subject,
                       weir_error *err) {
    const gguf_string *duplicate = NULL;
    const int rc = gguf_index_names(&g->memory, index, first, n, stride, &duplicate);
    if (rc < 0) return no_memory(err, g->path);
    if (rc == 0) return 0;
    char place[GGUF_PLACE_BYTES];
    gguf_place(place, sizeof place, g->path, subject, *duplicate, -1);
    FAIL(err, WEIR_E_FORMAT, place, "the name occurs more than once");
}

int gguf_build_finish(gguf_build **b, gguf **out, weir_error *err) {
    gguf *g = (*b)->g;
    int rc = (*b)->failed ? no_memory(err, g->path) : 0;
    *out = NULL;
    if (rc == 0) rc = index_names(g, &g->keys, g->key_values, g->n_key_values, sizeof *g->key_values, "key", err);
    if (rc == 0) rc = index_names(g, &g->names, g->tensors, g->n_tensors, sizeof *g->tensors, "tensor", err);
    if (rc == 0) {
        (*b)->g = NULL;
        *out = g;
    }
    gguf_build_close(b);
    return rc;
}
