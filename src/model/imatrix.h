/* Importance matrix files: for each weight matrix the mean squared activation of each of its input columns, measured over some
 * text (sum of squares, and how many rows went into it). Reads both forms of llama.cpp's llama-imatrix: the older binary one
 * (.dat), and GGUF with tensors NAME.in_sum2 and NAME.counts. Owns: the table of means. Knows nothing of quantisation.
 * Immutable after opening; any thread. */
#ifndef WEIR_IMATRIX_H
#define WEIR_IMATRIX_H

#include <stddef.h>
#include <stdint.h>

#include "weir/weir_error.h"

typedef struct imatrix imatrix;

typedef struct imatrix_entry {
    const char *name; /* of the weight: "blk.0.ffn_down.weight" */
    size_t n_values;  /* columns; of a stack of experts, columns times experts */
    float *means;     /* [n_values], finite and not negative */
} imatrix_entry;

/* Errors: WEIR_E_IO, WEIR_E_FORMAT (place = file with byte offset, or tensor), WEIR_E_NOMEM. On failure *out is NULL. */
int imatrix_open(imatrix **out, const char *path, weir_error *err);
/* From a byte range; the caller may free it afterwards. `path` is used in messages. */
int imatrix_parse(imatrix **out, const void *bytes, size_t n_bytes, const char *path, weir_error *err);
void imatrix_close(imatrix **im);

size_t imatrix_n_entries(const imatrix *im);
const imatrix_entry *imatrix_at(const imatrix *im, size_t i); /* in the order of the names */
/* NULL if there is none. */
const imatrix_entry *imatrix_find(const imatrix *im, const char *name);
uint32_t imatrix_n_chunks(const imatrix *im);   /* of text; 0 = the file does not say */
const char *imatrix_dataset(const imatrix *im); /* what the text was; "" if the file does not say */

#endif
