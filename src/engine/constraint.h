/* Grammars behind weir_grammars and weir_grammar (weir.h), and one job's place in one. Owns: the vocabulary prepared for masks, the
 * cache of compiled grammars, a job's matcher. Knows nothing of jobs, logits or sampling.
 *
 * Threads: a weir_grammar may be used by any number of constraints on any threads (its cache of masks is behind a lock); a
 * constraint belongs to one thread. */
#ifndef WEIR_ENGINE_CONSTRAINT_H
#define WEIR_ENGINE_CONSTRAINT_H

#include <stdbool.h>
#include <stdint.h>

#include "grammar/grammar.h"
#include "weir/weir.h"

typedef struct constraint constraint;

/* weir_grammars_open for a vocabulary of bytes: tokens[n_tokens], those without bytes are never in a mask. WEIR_E_NOMEM. */
int weir_grammars_open_tokens(weir_grammars **out, const grammar_token *tokens, size_t n_tokens, weir_error *err);
/* Tokens of the vocabulary that the grammar was compiled for. */
size_t weir_grammar_n_tokens(const weir_grammar *g);
/* Another reference to the grammar; weir_grammar_close drops it. */
weir_grammar *weir_grammar_ref(weir_grammar *g);

/* A place at the beginning of the grammar, which takes effect once the text has had `after` (NULL or "": at once). Holds
 * references. eog[n_eog] are the tokens that may end a text, kept by the caller. WEIR_E_NOMEM. */
int constraint_open(constraint **out, weir_grammar *g, const char *after, const int32_t *eog, size_t n_eog, weir_error *err);
void constraint_close(constraint **c);

typedef enum constraint_state {
    CONSTRAINT_NONE,     /* every token may come: no constraint (c NULL), or not yet in effect */
    CONSTRAINT_MASK,     /* those of *mask, EOG tokens among them where the text may end */
    CONSTRAINT_COMPLETE, /* none but the end may come */
} constraint_state;
/* *mask[(n_tokens + 31) / 32] is valid until the next call. Negative: WEIR_E_LIMIT (too ambiguous), WEIR_E_NOMEM. */
int constraint_mask(constraint *c, const uint32_t **mask, weir_error *err);
/* A token (not an EOG one) was taken; bytes[n_bytes] is its text. WEIR_E_LIMIT, WEIR_E_NOMEM, WEIR_E_INVALID (it was not in the mask). */
int constraint_accept(constraint *c, const char *bytes, size_t n_bytes, weir_error *err);

#endif
