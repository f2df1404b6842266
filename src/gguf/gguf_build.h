/* Making a model file's directory from something that is not GGUF: metadata and tensors are added one by one, the result is a
 * gguf object like any other. Data stays where it is: in files that the object maps, or in memory that it owns. Knows nothing
 * of where they come from. A builder is owned by one thread.
 *
 * Additions fail silently (no memory, a name twice); gguf_builder_finish tells. Names and values are copied. */
#ifndef WEIR_GGUF_BUILD_H
#define WEIR_GGUF_BUILD_H

#include "gguf/gguf.h"

typedef struct gguf_builder gguf_builder;

/* `path` names the whole thing in messages and in gguf_path; `container` ("safetensors") in gguf_container, static storage. */
int gguf_builder_open(gguf_builder **out, const char *path, const char *container, weir_error *err);
void gguf_builder_close(gguf_builder **b); /* NULL allowed; unmaps what was mapped */

/* Maps a file, which becomes the next part; the bytes live as long as the object. Errors as gguf_open: WEIR_E_IO, WEIR_E_NOMEM.
 */
int gguf_builder_map(gguf_builder *b, const char *path, const unsigned char **bytes, size_t *n_bytes, weir_error *err);
/* Zeroed memory that lives as long as the object; NULL = out of memory. */
void *gguf_builder_memory(gguf_builder *b, size_t n_bytes);

void gguf_builder_u32(gguf_builder *b, const char *key, uint32_t value);
void gguf_builder_f32(gguf_builder *b, const char *key, float value);
void gguf_builder_bool(gguf_builder *b, const char *key, bool value);
void gguf_builder_string(gguf_builder *b, const char *key, const char *text, size_t n_bytes);
void gguf_builder_i32s(gguf_builder *b, const char *key, const int32_t *values, size_t n);
void gguf_builder_f32s(gguf_builder *b, const char *key, const float *values, size_t n);
void gguf_builder_strings(gguf_builder *b, const char *key, const gguf_string *values, size_t n);
/* A tensor; of `t` name, n_dims, dims, format, data, file_offset, part and rope_head are read; the rest is computed. */
void gguf_builder_tensor(gguf_builder *b, const gguf_tensor *t);

/* The object, which the caller closes; the builder is used up, whatever the result. WEIR_E_NOMEM, WEIR_E_FORMAT (a key or
 * tensor twice). On failure *out is NULL. */
int gguf_builder_finish(gguf_builder **b, gguf **out, weir_error *err);

#endif
