/* From logits to a token: penalties, logit bias, top-k, top-p, min-p, temperature, a seeded random number.
 * Order (llama.cpp's default chain): logit bias, penalties, top-k, top-p, min-p, temperature, draw.
 * Knows nothing of models, text or requests beyond weir_sampling. One sampler per sequence; owned by the engine thread. */
#ifndef WEIR_ENGINE_SAMPLER_H
#define WEIR_ENGINE_SAMPLER_H

#include "weir/weir.h"

typedef struct sampler sampler;

/* Copies `params` (logit bias too). WEIR_E_NOMEM. */
int sampler_open(sampler **out, const weir_sampling *params, int32_t n_vocab, weir_error *err);
void sampler_close(sampler **s);
/* Tells the penalties about a token of the prompt or output. */
void sampler_accept(sampler *s, int32_t token);
/* Draws the next token from logits[n_vocab], which is left unchanged. Does not accept it. Deterministic in (params, seed,
 * accepted tokens, number of draws so far, logits). NaN logits never win; -1 when no token is left (all NaN or banned). */
int32_t sampler_draw(sampler *s, const float *logits);
/* The log probability of `token` under softmax(logits), before any truncation, and the n best (n <= 20), best first, ties to the
 * lower id; entries that the vocabulary cannot fill get token -1. `best` may be NULL when n is 0. */
void sampler_logprobs(const float *logits, int32_t n_vocab, int32_t token, float *logprob, weir_top_logprob *best, int32_t n);

#endif
