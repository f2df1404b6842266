/* Quantising a model file: a plan (which tensor gets which format) is made and checked first, then carried out, tensor by
 * tensor, by all threads of a pool, and written as a new file. Knows nothing of programs and terminals. One thread; the pool
 * does the rest. */
#ifndef WEIR_QUANTISE_H
#define WEIR_QUANTISE_H

#include "base/pool.h"
#include "model/imatrix.h"
#include "model/quant_mix.h"

typedef struct quantise_plan {
    const gguf *in;
    const quant_mix *mix;
    quant_choice *choices;                  /* [gguf_n_tensors(in)] */
    const imatrix *im;                      /* or NULL */
    const char *im_path;                    /* named in the new file; NULL without one */
    uint64_t n_values, in_bytes, out_bytes; /* of all tensors */
    size_t n_fallbacks;
} quantise_plan;

/* Makes a plan; `in`, `im` and `im_path` must outlive it. Errors: those of quant_mix_choose; WEIR_E_INVALID (a quantised tensor
 * would be quantised again without `requantise`; an entry of the importance matrix does not fit its tensor); WEIR_E_UNSUPPORTED
 * (a format that cannot be read or written); WEIR_E_NOMEM. The caller ends with quantise_plan_free, after failure too. */
int quantise_plan_make(quantise_plan *plan, const gguf *in, const quant_mix *mix, const quant_mix_options *options,
                       bool requantise, const imatrix *im, const char *im_path, weir_error *err);
void quantise_plan_free(quantise_plan *plan);

/* Told before each tensor and, inside it, from time to time; `done` of `total` bytes of input are read. false = stop. */
typedef bool (*quantise_progress)(void *user, size_t tensor, uint64_t done, uint64_t total);

/* Writes the file `path` (see gguf_write.h: all or nothing). Errors: WEIR_E_IO, WEIR_E_NOMEM, WEIR_E_CANCELLED, and
 * WEIR_E_FORMAT (a value that is not finite, or that the format cannot hold; place = tensor). The bytes do not depend on the
 * number of threads. */
int quantise_run(const quantise_plan *plan, const char *path, pool *threads, quantise_progress progress, void *user,
                 weir_error *err);

/* Names of the formats that can be written, separated by ", ", for messages; in `out`. */
void quantise_targets(char *out, size_t capacity);

#endif
