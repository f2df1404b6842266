/* Constrained decoding: JSON Schema, regular expressions and GBNF grammars, compiled to an automaton over bytes; a matcher that
 * follows a text through it; and masks of the tokens of a vocabulary that may come next.
 * Owns: the notations, the automata, the matcher's stacks, token tries and masks. Knows nothing of tokenisers, models or
 * requests: a vocabulary is bytes.
 *
 * A compiled grammar is a set of rules, each an automaton whose steps are bytes or calls of rules. The matcher keeps the set of
 * places where the text may stand, each with a stack of calls; equal stacks are one, and calls of one rule from several places
 * share their frame, so that ambiguity costs no more than quadratic memory, and a limit ends what takes more.
 *
 * Threads: grammar and grammar_vocab are immutable once made: any thread. grammar_state and grammar_masks belong to one thread.
 */
#ifndef WEIR_GRAMMAR_H
#define WEIR_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "weir/weir_error.h"

typedef struct grammar grammar;
typedef struct grammar_vocab grammar_vocab;
typedef struct grammar_masks grammar_masks;
typedef struct grammar_state grammar_state;

/* ---- compiling ---------------------------------------------------------------------------------------------------------- */

/* Every compiler bounds its time (well under a second) and memory. On failure *out is NULL; the place is a byte offset or, for
 * schemas, a JSON pointer. Errors of all: WEIR_E_FORMAT (not well-formed), WEIR_E_UNSUPPORTED (named in the message),
 * WEIR_E_INVALID (no text at all can match), WEIR_E_LIMIT (too complex), WEIR_E_NOMEM. The caller owns *out. Any thread. */

/* GBNF as llama.cpp writes it; the text must match the rule `root`. Left recursion and the <token> notation are not supported.
 */
int grammar_compile_gbnf(grammar **out, const char *text, size_t n_bytes, weir_error *err);
/* The pattern must match the whole text, as re.fullmatch on a Python str does. Look-around, back-references, conditionals,
 * inline flags, \b and \B are not regular or not about bytes and are not supported. */
int grammar_compile_regex(grammar **out, const char *pattern, size_t n_bytes, weir_error *err);

/* JSON texts that are valid under the schema (draft 2020-12; draft-07's definitions and tuples too), written compactly or with
 * one space after commas and colons, keys in the order in which the schema declares them. Objects that declare properties
 * are closed unless additionalProperties, patternProperties or unevaluatedProperties says otherwise; others are open. Numbers
 * have at most 18 digits before the point. A keyword that constrains and is not understood is WEIR_E_UNSUPPORTED; annotations
 * and unknown words are ignored, as the standard wants. */
int grammar_compile_json_schema(grammar **out, const char *text, size_t n_bytes, weir_error *err);
/* Values of the schema in tags, of which the first has been opened already: VALUE close (open VALUE close)*, with up to two line ends
 * or spaces beside each value and tag; without `open` (NULL) one value only. */
typedef struct grammar_frame_tags {
    const char *open, *close;
    size_t n_open, n_close;
} grammar_frame_tags;
int grammar_compile_tagged(grammar **out, const char *text, size_t n_bytes, const grammar_frame_tags *tags, weir_error *err);
/* Any JSON object (response_format json_object). */
int grammar_compile_json_object(grammar **out, weir_error *err);
void grammar_close(grammar **g);

/* ---- matching ----------------------------------------------------------------------------------------------------------- */

/* The state before the first byte. The grammar must outlive it. WEIR_E_NOMEM. */
int grammar_state_open(grammar_state **out, const grammar *g, weir_error *err);
/* An independent copy, for speculation and branches. WEIR_E_NOMEM. */
int grammar_state_copy(grammar_state **out, const grammar_state *s, weir_error *err);
void grammar_state_close(grammar_state **s);

/* 1 = the text so far followed by bytes[n] begins some text of the grammar, and the state has moved; 0 = it does not, and the
 * state is as before. WEIR_E_LIMIT (the stacks grew beyond the limit; state as before), WEIR_E_NOMEM. */
int grammar_advance(grammar_state *s, const char *bytes, size_t n_bytes, weir_error *err);
/* Whether the text so far is one of the grammar's. */
bool grammar_can_end(const grammar_state *s);
/* Sets bit (byte % 32) of bits[byte / 32] for each byte that may come next. */
void grammar_next_bytes(const grammar_state *s, uint32_t bits[8]);
/* Appends the bytes that every continuation begins with, at most `limit`; stops where the text may end or has a choice. 0 or a
 * negative code: WEIR_E_LIMIT, WEIR_E_NOMEM. The state does not move. */
int grammar_forced_bytes(const grammar_state *s, size_t limit, buf *out, weir_error *err);

/* ---- token masks -------------------------------------------------------------------------------------------------------- */

typedef struct grammar_token {
    const char *bytes; /* what the token adds to the text; not NUL-terminated */
    size_t n_bytes;    /* 0: a token without text (control tokens); never in a mask */
} grammar_token;

/* Tokens by bytes, with the id of a token its index. Copies what it needs. WEIR_E_LIMIT (more than 2^24 tokens or 1 GiB of
 * bytes), WEIR_E_NOMEM. */
int grammar_vocab_open(grammar_vocab **out, const grammar_token *tokens, size_t n_tokens, weir_error *err);
void grammar_vocab_close(grammar_vocab **v);
/* 32-bit words of a mask. */
size_t grammar_vocab_mask_words(const grammar_vocab *v);

/* The cache of masks of one grammar over one vocabulary, both of which must outlive it; serves any number of states of that
 * grammar. It holds at most about 64 MiB. WEIR_E_NOMEM. */
int grammar_masks_open(grammar_masks **out, const grammar *g, const grammar_vocab *v, weir_error *err);
void grammar_masks_close(grammar_masks **m);

/* bits[grammar_vocab_mask_words]: sets bit (id % 32) of bits[id / 32] for each token after which some text of the grammar can
 * still be completed, clears the others. Whether the text may end here (EOS) is grammar_can_end. `s` is unchanged, but used as
 * scratch memory. Returns 0, WEIR_E_LIMIT, WEIR_E_NOMEM, WEIR_E_INVALID (a state of another grammar). */
int grammar_mask(grammar_masks *m, grammar_state *s, uint32_t *bits, weir_error *err);
/* grammar_advance by the bytes of a token; 0 also for tokens without text and ids out of range. */
int grammar_accept_token(grammar_state *s, const grammar_vocab *v, int32_t token, weir_error *err);

#endif
