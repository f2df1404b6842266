/* From logits to a token: mask, logit bias, penalties, DRY, truncations, temperature, a seeded random number; the steps of the chain
 * in any order (weir_sampling). Knows nothing of models, requests or grammars beyond weir_sampling, the bytes of tokens and a bit
 * mask. One sampler per sequence; owned by the engine thread. */
#ifndef WEIR_ENGINE_SAMPLER_H
#define WEIR_ENGINE_SAMPLER_H

#include "weir/weir.h"

typedef struct sampler sampler;

typedef struct sampler_vocab {
    int32_t n_tokens;
    int32_t n_history; /* most tokens that will be accepted; 0 = 65,536 */
    /* Bytes of a token, for DRY's sequence breakers; NULL = none. */
    const char *(*piece)(void *context, int32_t token, bool special, size_t *n_bytes);
    void *context;
} sampler_vocab;

enum { SAMPLER_NO_TOKEN = -1, SAMPLER_NO_MEMORY = -2 };

/* Copies `params` (logit bias and breakers too). WEIR_E_NOMEM. */
int sampler_open(sampler **out, const weir_sampling *params, const sampler_vocab *vocab, weir_error *err);
void sampler_close(sampler **s);
/* Tells the penalties about a token of the prompt or output. */
void sampler_accept(sampler *s, int32_t token);
/* Draws the next token from logits[n_tokens], which is left unchanged. Only tokens whose bit is set in mask[(n_tokens + 31) / 32]
 * can be drawn (NULL = all); the mask comes before everything else. Does not accept the token. Deterministic in (params, seed,
 * accepted tokens, draws so far, logits, mask). NaN logits never win; SAMPLER_NO_TOKEN when none is left (all NaN or banned),
 * SAMPLER_NO_MEMORY. */
int32_t sampler_draw(sampler *s, const float *logits, const uint32_t *mask);
/* The log probability of `token` under softmax(logits), before any truncation, and the n best (n <= 20), best first, ties to the
 * lower id; entries that the vocabulary cannot fill get token -1. `best` may be NULL when n is 0. */
void sampler_logprobs(const float *logits, int32_t n_vocab, int32_t token, float *logprob, weir_top_logprob *best, int32_t n);

#endif
