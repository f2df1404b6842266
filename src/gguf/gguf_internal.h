/* Inside src/gguf only: the directory that the parser fills and that the mapping, the look-ups and the merging of parts share.
 */
#ifndef WEIR_GGUF_INTERNAL_H
#define WEIR_GGUF_INTERNAL_H

#include "base/arena.h"
#include "gguf/gguf.h"

/* Names in order, for look-ups in logarithmic time whatever the file holds (a hash table could be flooded). Each pointer is to
 * the first member of a gguf_key_value or a gguf_tensor. */
typedef struct name_index {
    const gguf_string **sorted;
    size_t n;
} name_index;

struct gguf {
    arena memory; /* everything below but the parts */
    const char *path;
    const char *container; /* what it was built from; NULL: GGUF */
    const unsigned char *bytes;
    size_t n_bytes;
    size_t head_bytes;   /* before the tensors' data */
    int64_t modified_ns; /* of a file */
    void *mapping; /* = bytes when this object mapped the file and has to unmap it; else NULL */
    uint32_t version;
    gguf_key_value *key_values;
    gguf_tensor *tensors; /* of all parts */
    size_t n_key_values, n_tensors;
    name_index keys, names;
    gguf **parts; /* [n_parts]; parts[0] is this object itself; NULL unless split */
    uint32_t n_parts;
};

/* Sorts the names of `n` objects of `stride` bytes that begin with their name. Returns 0, 1 when two are equal (*duplicate is
 * then the later one), or WEIR_E_NOMEM. */
int gguf_index_names(arena *memory, name_index *index, const void *first, size_t n, size_t stride,
                     const gguf_string **duplicate);

/* gguf_file.c: maps a whole regular file for reading; *mapping is NULL when it is empty. Errors as gguf_open. */
int gguf_map_file(const char *path, void **mapping, size_t *n_bytes, int64_t *modified_ns, weir_error *err);
void gguf_unmap_file(void *mapping, size_t n_bytes);

/* Writes "FILE: SUBJECT 'NAME', byte N" to place[capacity]; a long path loses its beginning, a long name its end. `subject` may
 * be NULL (then `name` is not read). `offset` = -1 leaves the byte out. */
void gguf_place(char *place, size_t capacity, const char *path, const char *subject, gguf_string name, int64_t offset);
enum { GGUF_PLACE_BYTES = 192 };

#endif
