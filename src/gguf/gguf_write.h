/* Writing GGUF v3 files: metadata and tensor descriptions are collected, then the data is streamed in order. The file grows
 * under a temporary name beside its destination and takes its name when it is whole and on the disk; until then a file that is
 * there already stays as it is. Knows nothing of quantisation or of what keys mean (except `general.alignment` and `split.*`).
 * A writer is owned by one thread.
 *
 *     gguf_writer *w;
 *     TRY(gguf_writer_open(&w, "out.gguf", err));
 *     gguf_writer_string(w, "general.architecture", "llama");        (collecting fails silently; begin tells)
 *     gguf_writer_tensor(w, name, n_dims, dims, format);
 *     rc = gguf_writer_begin(w, err);
 *     ... rc = gguf_writer_data(w, bytes, n_bytes, err);             (all tensors, in the order in which they were added)
 *     if (rc == 0) rc = gguf_writer_finish(w, err);
 *     gguf_writer_close(&w);                                         (removes the temporary file unless finished) */
#ifndef WEIR_GGUF_WRITE_H
#define WEIR_GGUF_WRITE_H

#include "gguf/gguf.h"

typedef struct gguf_writer gguf_writer;

/* Creates the temporary file. WEIR_E_IO (place = path: not writable, a directory, a device), WEIR_E_NOMEM; *out is NULL then.
 */
int gguf_writer_open(gguf_writer **out, const char *path, weir_error *err);

/* Metadata: each replaces an earlier value of the key, in its place. Arguments are copied. The first failure (no memory, a key
 * that is empty or too long) is kept and reported by gguf_writer_begin. Not after gguf_writer_begin. */
void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_u64(gguf_writer *w, const char *key, uint64_t value);
void gguf_writer_i32(gguf_writer *w, const char *key, int32_t value);
void gguf_writer_f32(gguf_writer *w, const char *key, float value);
void gguf_writer_bool(gguf_writer *w, const char *key, bool value);
void gguf_writer_string(gguf_writer *w, const char *key, const char *value);
/* An array of n strings of any bytes. */
void gguf_writer_strings(gguf_writer *w, const char *key, const gguf_string *values, size_t n);
/* An array of n numbers of fixed size (not GGUF_STRING or GGUF_ARRAY), `items` being all of them in little-endian order. */
void gguf_writer_array(gguf_writer *w, const char *key, gguf_value_type item_type, const void *items, size_t n);
/* A key with its value, of any type, from an open file. */
void gguf_writer_copy(gguf_writer *w, const gguf_key_value *kv);
/* All keys of an open file but split.*, which speak of the parts that it was read from. */
void gguf_writer_copy_all(gguf_writer *w, const gguf *g);

/* Adds the description of the next tensor; dims[0] is the row length and must be a multiple of the format's block size. Copies
 * the name. Failures are kept for gguf_writer_begin, as above. */
void gguf_writer_tensor(gguf_writer *w, const char *name, size_t name_bytes, uint32_t n_dims, const uint64_t *dims,
                        const quant_format *format);

/* Lays the file out, reserves its bytes on the disk where the file system can, and writes all that precedes the data.
 * WEIR_E_INVALID (names, shapes, duplicate tensors, the alignment), WEIR_E_IO (the disk is full), WEIR_E_NOMEM. */
int gguf_writer_begin(gguf_writer *w, weir_error *err);
/* Bytes of the whole file; 0 before gguf_writer_begin. */
uint64_t gguf_writer_file_bytes(const gguf_writer *w);
/* The next n_bytes of tensor data, in pieces of any size that do not cross the end of a tensor; padding between tensors is
 * written here. WEIR_E_INVALID when the piece is larger than what the tensor still lacks, WEIR_E_IO. */
int gguf_writer_data(gguf_writer *w, const void *bytes, size_t n_bytes, weir_error *err);
/* When all data is written: syncs the file and gives it its name. WEIR_E_INVALID (data is missing), WEIR_E_IO. */
int gguf_writer_finish(gguf_writer *w, weir_error *err);
/* Frees the writer; the temporary file of one that is not finished is removed. NULL is allowed. */
void gguf_writer_close(gguf_writer **w);

#endif
