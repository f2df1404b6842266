/* What the files of the sampler share: its state, passes over logits, the steps of the chain. See sampler.h. */
#ifndef WEIR_ENGINE_SAMPLER_INTERNAL_H
#define WEIR_ENGINE_SAMPLER_INTERNAL_H

#include <float.h>

#include "engine/sampler.h"

typedef struct candidate {
    float logit; /* never NaN or -infinity; +infinity is stored as FLT_MAX */
    int32_t id;
} candidate;

/* DRY's memory (sampler_dry.c). */
typedef struct dry_state {
    int32_t *history; /* [capacity]: a ring of the last tokens */
    int32_t capacity, n, next;
    int32_t since_breaker; /* tokens after the last sequence breaker */
    int32_t *lengths;      /* [capacity]: scratch */
    int32_t *longest;      /* [n_vocab]: the longest repetition that a token would go on with; 0 between draws */
    int32_t *ids;          /* [capacity]: the tokens with such a length */
    int32_t n_ids;
    char *breakers;        /* copies of the strings, one after another, each with a NUL */
    char *tail;            /* the last bytes of the text: a breaker may begin in one token and end in another */
    size_t tail_bytes, longest_breaker;
} dry_state;

struct sampler {
    weir_sampling params; /* logit_bias points to a copy of our own; dry_breakers is not used */
    sampler_vocab vocab;
    int32_t n_vocab;
    uint64_t random[4]; /* xoshiro256++ (Blackman and Vigna 2018) */
    uint8_t chain[WEIR_MAX_CHAIN];
    int32_t n_chain;
    bool takes_best; /* whatever the chain does, it ends in the best token */
    /* Penalties. counts[id] is how often a token is in the window. `window` is a ring of the last penalty_last_n tokens, or
     * with penalty_last_n -1 the list of the distinct tokens seen. All NULL when no penalty is on. */
    int32_t *counts, *window;
    int32_t window_capacity, n_window, window_next;
    dry_state dry; /* history NULL when DRY is off */
    double mu;     /* mirostat: the most surprise, in bits, that a token may be */
    /* Buffers, made when they are first needed. */
    float *adjusted;       /* [n_vocab] logits after steps that change them */
    candidate *candidates; /* [n_candidates] */
    int32_t n_candidates;
    double *block_mass;    /* [n_vocab / BLOCK, rounded up] */
};

/* What the chain works on: all of the vocabulary, or the candidates that some step left. */
typedef struct drawing {
    sampler *s;
    const float *logits; /* [n_vocab]: while n < 0 */
    candidate *c;        /* [n]: ids ascending, or best first if `sorted` */
    int32_t n;           /* -1: the whole vocabulary */
    bool sorted;
    double total;        /* sum of exp(logit - best logit) over what the candidates were cut from; 0 = not known */
    double temperature;  /* still to be divided by */
    bool failed;         /* out of memory */
} drawing;

static inline float sampler_bounded(float logit) { return logit > FLT_MAX ? FLT_MAX : logit; }

/* ---- sampler_select.c: logits[n_vocab] may hold NaN (never taken), infinities ---- */
/* The lowest id of the greatest logit; -1 when all are NaN or -infinity. */
int32_t sampler_greatest(const float *logits, int32_t n);
/* The sum over [first, end) of exp((x - max) / temperature), +infinity counting as FLT_MAX, as `max`; 0 for NaN and x < floor. */
double sampler_mass(const float *logits, int32_t first, int32_t end, float max, float floor, float temperature);
/* One more token from logits[first .. end): the first at which the running sum *reached passes `wanted`; -1 = none. */
int32_t sampler_find(const float *logits, int32_t first, int32_t end, float max, float temperature, double wanted, double *reached);
void sampler_sort(candidate *c, int32_t n); /* best first, ties to the lower id */
/* The k best, best first, ties to the lower id. Returns how many there are. */
int32_t sampler_select_top(const float *logits, int32_t n_vocab, candidate *top, int32_t k);
/* Those of at least `least`, ids ascending. out[n_vocab]. */
int32_t sampler_select_above(const float *logits, int32_t n_vocab, float least, candidate *out);
/* The smallest set of best tokens whose probability reaches top_p, give or take one bucket of the histogram, best first. *total
 * gets the mass of the whole vocabulary relative to the best token. out[n_vocab]. */
int32_t sampler_select_nucleus(const float *logits, int32_t n_vocab, float top_p, candidate *out, double *total);
/* Locally typical sampling's set (see sampler_chain.c) of all of the vocabulary, give or take one bucket, ids ascending. */
int32_t sampler_select_typical(const float *logits, int32_t n_vocab, double typical_p, candidate *out);
typedef struct sampler_moments {
    int32_t best, n;     /* id of the best; how many are finite or +infinity */
    double log_sum;      /* ln of the sum of exp(x - best logit) */
    double entropy;      /* of softmax(logits), in nats */
    double deviation;    /* of the logits themselves (over n) */
} sampler_moments;
/* False when no logit is left. */
bool sampler_measure(const float *logits, int32_t n_vocab, sampler_moments *m);

/* out[n_vocab] = logits, -infinity where the mask has no bit. */
void sampler_copy_masked(const float *logits, int32_t n_vocab, const uint32_t *mask, float *out);

/* ---- sampler_chain.c ---- */
/* Runs one step. */
void sampler_step(drawing *d, weir_sampler step);
/* Draws from what is left; -1 = nothing is left, or out of memory. */
int32_t sampler_finish(drawing *d);
/* Mirostat 1 or 2 instead of the chain's truncations. */
int32_t sampler_mirostat(drawing *d);
double sampler_uniform(sampler *s); /* in [0, 1), a multiple of 2^-53 */
/* The logits as ours to change; NULL = out of memory (d->failed). */
float *sampler_writable(drawing *d);
/* Bans what the mask has not. */
void sampler_ban(drawing *d, const uint32_t *mask);
/* Room for n candidates: d->c and s->candidates; false = out of memory (d->failed). */
bool sampler_room(drawing *d, int32_t n);

/* ---- sampler_dry.c ---- */
int dry_open(sampler *s, weir_error *err);
void dry_close(dry_state *dry);
void dry_accept(sampler *s, int32_t token);
void dry_apply(drawing *d);

#endif
