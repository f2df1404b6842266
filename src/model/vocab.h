/* The tokeniser of a model file: reads tokenizer.ggml.* and opens a tok on it. Knows nothing of weights. */
#ifndef WEIR_MODEL_VOCAB_H
#define WEIR_MODEL_VOCAB_H

#include "gguf/gguf.h"
#include "tok/tok.h"

/* The caller owns *out (tok_close), which keeps nothing of `g`. Errors, with the key as place: WEIR_E_FORMAT (a key is missing,
 * of the wrong type or length, or names a token that is not there), WEIR_E_UNSUPPORTED, WEIR_E_NOMEM. On failure *out is NULL.
 * Any thread. */
int model_vocab_open(tok **out, const gguf *g, weir_error *err);

#endif
