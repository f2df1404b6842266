/* Making a model file's directory from something that is not GGUF: metadata and tensors are added one by one, the result is a
 * gguf object like any other. Data stays where it is: in files that the object maps, or in memory that it owns. Knows nothing
 * of where they come from. A builder is owned by one thread.
 *
 * Additions fail silently (no memory, a name twice); gguf_build_finish tells. Names and values are copied. */
#ifndef WEIR_GGUF_BUILD_H
#define WEIR_GGUF_BUILD_H

#include "gguf/gguf.h"

typedef struct gguf_build gguf_build;

/* `path` names the whole thing in messages and in gguf_path; `container` ("safetensors") in gguf_container, static storage. */
int gguf_build_open(gguf_build **out, const char *path, const char *container, weir_error *err);
void gguf_build_close(gguf_build **b); /* NULL allowed; unmaps what was mapped */

/* Maps a file, which becomes the next part; the bytes live as long as the object. Errors as gguf_open: WEIR_E_IO, WEIR_E_NOMEM.
 */
int gguf_build_map(gguf_build *b, const char *path, const unsigned char **bytes, size_t *n_bytes, weir_error *err);
/* Zeroed memory that lives as long as the object; NULL = out of memory. */
void *gguf_build_memory(gguf_build *b, size_t n_bytes);

void gguf_build_u32(gguf_build *b, const char *key, uint32_t value);
void gguf_build_f32(gguf_build *b, const char *key, float value);
void gguf_build_bool(gguf_build *b, const char *key, bool value);
void gguf_build_string(gguf_build *b, const char *key, const char *text, size_t n_bytes);
void gguf_build_i32s(gguf_build *b, const char *key, const int32_t *values, size_t n);
void gguf_build_f32s(gguf_build *b, const char *key, const float *values, size_t n);
void gguf_build_strings(gguf_build *b, const char *key, const gguf_string *values, size_t n);
/* A tensor; of `t` name, n_dims, dims, format, data, file_offset, part and rope_head are read; the rest is computed. */
void gguf_build_tensor(gguf_build *b, const gguf_tensor *t);

/* The object, which the caller closes; the builder is used up, whatever the result. WEIR_E_NOMEM, WEIR_E_FORMAT (a key or
 * tensor twice). On failure *out is NULL. */
int gguf_build_finish(gguf_build **b, gguf **out, weir_error *err);

#endif
