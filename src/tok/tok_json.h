/* Tokenisers from the tokenizer.json of Hugging Face's `tokenizers`: the whole pipeline, as the file describes it.
 * Owns: reading and refusing. The opened object is a tok like any other (tok.h). Knows nothing of folders or models. */
#ifndef WEIR_TOK_JSON_H
#define WEIR_TOK_JSON_H

#include "tok/tok.h"

/* Opens a tokeniser on text[n_bytes], the content of a tokenizer.json. Of `extra` only bos, eos, eot, eom, ends and fim count:
 * which of the tokens play these parts (-1 = none; bos then is what the post-processor puts first). Truncation and padding of
 * the file are not applied. With add_special, tok_encode runs the post-processor; without parse_special, special added tokens
 * are text (`encode_special_tokens` of the original). tok_decode without `special` leaves special added tokens out. Text that
 * is not UTF-8 is read as U+FFFD. Errors, with the path in the file as place: WEIR_E_FORMAT, WEIR_E_UNSUPPORTED (names what),
 * WEIR_E_LIMIT, WEIR_E_NOMEM. On failure *out is NULL. Any thread. */
int tok_open_json(tok **out, const char *text, size_t n_bytes, const tok_vocab *extra, weir_error *err);

#endif
