/* The safetensors format: a byte range becomes a checked list of tensors. Nothing in the range is believed before it is
 * checked: the header's size, names, types, shapes, that each tensor's bytes are those of its shape, that all together cover
 * the data without holes or overlaps. Knows nothing of files, models or names. Any thread. Format: the README of the
 * safetensors project; 8 bytes little-endian length, JSON header, data. */
#ifndef WEIR_HF_SAFETENSORS_H
#define WEIR_HF_SAFETENSORS_H

#include "base/arena.h"
#include "quant/quant.h"
#include "weir/weir_error.h"

enum { SAFETENSORS_MAX_DIMS = 8, SAFETENSORS_MAX_HEADER = 100 * 1000 * 1000 };

typedef struct safetensor {
    const char *name;           /* NUL-terminated, without NUL inside; in the list's memory */
    const char *dtype;          /* "BF16"; static storage */
    const quant_format *format; /* what weir reads it as; NULL: a type that it does not compute with */
    uint32_t n_dims;
    uint64_t dims[SAFETENSORS_MAX_DIMS]; /* as the file has them: the last one is the fastest */
    uint64_t n_values, n_bytes, offset;  /* offset from the start of the range */
} safetensor;

typedef struct safetensors {
    arena memory;
    safetensor *tensors; /* [n], in the order of their data */
    size_t n;
} safetensors;

/* `path` is named in messages. Errors: WEIR_E_FORMAT (place = path and tensor or byte), WEIR_E_UNSUPPORTED (a type that the
 * format does not have), WEIR_E_NOMEM; *out is then empty. */
int safetensors_parse(safetensors *out, const unsigned char *bytes, size_t n_bytes, const char *path, weir_error *err);
void safetensors_free(safetensors *s);

#endif
