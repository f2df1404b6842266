/* See sampler.h: opening, the history, bias and mask, and the order of the chain. Its steps are in sampler_chain.c. Buffers of the
 * vocabulary's size are made when a step first needs them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "engine/sampler_internal.h"

enum { MAX_BEST = 20 };

static const uint8_t default_chain[] = {
    WEIR_SAMPLER_PENALTIES, WEIR_SAMPLER_DRY,   WEIR_SAMPLER_TOP_N_SIGMA, WEIR_SAMPLER_TOP_K,       WEIR_SAMPLER_TYPICAL,
    WEIR_SAMPLER_TOP_P,     WEIR_SAMPLER_MIN_P, WEIR_SAMPLER_XTC,         WEIR_SAMPLER_TEMPERATURE,
};
/* Mirostat truncates by itself. */
static const uint8_t mirostat_chain[] = {WEIR_SAMPLER_PENALTIES, WEIR_SAMPLER_DRY, WEIR_SAMPLER_TEMPERATURE};

/* Names as llama.cpp has them; "-" may stand for "_". */
static const struct {
    const char *name;
    weir_sampler sampler;
} names[] = {
    {"penalties", WEIR_SAMPLER_PENALTIES}, {"e", WEIR_SAMPLER_PENALTIES},
    {"dry", WEIR_SAMPLER_DRY}, {"d", WEIR_SAMPLER_DRY},
    {"top_n_sigma", WEIR_SAMPLER_TOP_N_SIGMA}, {"s", WEIR_SAMPLER_TOP_N_SIGMA},
    {"top_k", WEIR_SAMPLER_TOP_K}, {"k", WEIR_SAMPLER_TOP_K},
    {"typ_p", WEIR_SAMPLER_TYPICAL}, {"typical_p", WEIR_SAMPLER_TYPICAL}, {"typical", WEIR_SAMPLER_TYPICAL},
    {"typ", WEIR_SAMPLER_TYPICAL}, {"y", WEIR_SAMPLER_TYPICAL},
    {"top_p", WEIR_SAMPLER_TOP_P}, {"nucleus", WEIR_SAMPLER_TOP_P}, {"p", WEIR_SAMPLER_TOP_P},
    {"min_p", WEIR_SAMPLER_MIN_P}, {"m", WEIR_SAMPLER_MIN_P},
    {"xtc", WEIR_SAMPLER_XTC}, {"x", WEIR_SAMPLER_XTC},
    {"temperature", WEIR_SAMPLER_TEMPERATURE}, {"temp", WEIR_SAMPLER_TEMPERATURE}, {"t", WEIR_SAMPLER_TEMPERATURE},
};

static bool same_name(const char *a, const char *b) {
    for (; *a && (*a == *b || (*a == '_' && *b == '-')); a++) b++;
    return *a == *b;
}

int weir_sampler_named(const char *name) {
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (same_name(names[i].name, name)) return (int)names[i].sampler;
    return -1;
}

/* ---- random numbers --------------------------------------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea, Flood 2014) spreads any seed, 0 too, over the generator's 256 bits. */
static uint64_t splitmix(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static uint64_t rotate_left(uint64_t x, int n) {
    return x << n | x >> (64 - n);
}

/* Uniform in [0, 1), a multiple of 2^-53. */
double sampler_uniform(sampler *s) {
    uint64_t *r = s->random;
    uint64_t result = rotate_left(r[0] + r[3], 23) + r[0], shifted = r[1] << 17;
    r[2] ^= r[0];
    r[3] ^= r[1];
    r[1] ^= r[2];
    r[0] ^= r[3];
    r[2] ^= shifted;
    r[3] = rotate_left(r[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

/* ---- opening and history ---------------------------------------------------------------------------------------------- */

static bool penalises(const weir_sampling *p) {
    return p->penalty_last_n != 0 && (p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0);
}

static void *array_of(size_t count, size_t size, bool *failed) {
    size_t n_bytes;
    void *memory = checked_mul(count, size, &n_bytes) ? calloc(1, n_bytes ? n_bytes : 1) : NULL;
    if (memory == NULL) *failed = true;
    return memory;
}

static void set_chain(sampler *s) {
    const weir_sampling *p = &s->params;
    const uint8_t *chain = p->mirostat ? mirostat_chain : p->n_chain > 0 ? p->chain : default_chain;
    s->n_chain = p->mirostat ? (int32_t)sizeof mirostat_chain : p->n_chain > 0 ? p->n_chain : (int32_t)sizeof default_chain;
    if (s->n_chain > WEIR_MAX_CHAIN) s->n_chain = WEIR_MAX_CHAIN;
    memcpy(s->chain, chain, (size_t)s->n_chain);
    bool removes_best = p->xtc_probability > 0 || (p->typical_p > 0 && p->typical_p < 1);
    s->takes_best = !(p->temperature > 0) && (p->mirostat || p->n_chain <= 0) && !removes_best;
}

int sampler_open(sampler **out, const weir_sampling *params, const sampler_vocab *vocab, weir_error *err) {
    *out = NULL;
    bool failed = false;
    const int32_t n_vocab = vocab->n_tokens;
    sampler *s = calloc(1, sizeof *s);
    FAIL_IF(s == NULL, err, WEIR_E_NOMEM, "sampler", "no memory for a sampler");
    s->params = *params;
    s->params.logit_bias = NULL;
    s->vocab = *vocab;
    s->n_vocab = n_vocab;
    s->mu = 2 * (double)params->mirostat_tau;
    uint64_t state = params->seed;
    for (int i = 0; i < 4; i++) s->random[i] = splitmix(&state);
    set_chain(s);
    if (params->n_logit_bias > 0) {
        weir_logit_bias *bias = array_of(params->n_logit_bias, sizeof *bias, &failed);
        if (bias != NULL) memcpy(bias, params->logit_bias, params->n_logit_bias * sizeof *bias);
        s->params.logit_bias = bias;
    }
    if (penalises(params)) {
        s->window_capacity = params->penalty_last_n < 0 ? n_vocab : params->penalty_last_n;
        s->counts = array_of((size_t)n_vocab, sizeof *s->counts, &failed);
        s->window = array_of((size_t)s->window_capacity, sizeof *s->window, &failed);
    }
    if (failed || dry_open(s, err) < 0) {
        sampler_close(&s);
        FAIL(err, WEIR_E_NOMEM, "sampler", "no memory for the sampling state of a vocabulary of %d tokens", n_vocab);
    }
    s->params.dry_breakers = NULL; /* copied */
    *out = s;
    return 0;
}

void sampler_close(sampler **sp) {
    sampler *s = *sp;
    if (s == NULL) return;
    dry_close(&s->dry);
    free((void *)s->params.logit_bias);
    free(s->counts);
    free(s->window);
    free(s->adjusted);
    free(s->candidates);
    free(s->block_mass);
    free(s);
    *sp = NULL;
}

void sampler_accept(sampler *s, int32_t token) {
    dry_accept(s, token);
    if (s->counts == NULL || token < 0 || token >= s->n_vocab) return;
    if (s->params.penalty_last_n < 0) {
        if (s->counts[token] == 0) s->window[s->n_window++] = token;
    } else if (s->n_window < s->window_capacity) {
        s->window[s->n_window++] = token;
    } else {
        s->counts[s->window[s->window_next]]--;
        s->window[s->window_next] = token;
        s->window_next = s->window_next + 1 == s->window_capacity ? 0 : s->window_next + 1;
    }
    s->counts[token]++;
}

/* ---- mask and bias ---------------------------------------------------------------------------------------------------- */

static bool allows(const uint32_t *mask, int32_t id) { return mask == NULL || (mask[id / 32] >> id % 32 & 1); }

/* All but a few tokens are banned: those few become the candidates, and the rest of the vocabulary is not looked at again. */
static void gather(drawing *d, const uint32_t *mask, int32_t n_words, int32_t n_allowed) {
    if (!sampler_room(d, n_allowed)) return;
    d->n = 0;
    for (int32_t i = 0; i < n_words; i++)
        for (uint32_t word = mask[i]; word; word &= word - 1) {
            int32_t id = 32 * i + __builtin_ctz(word);
            if (id < d->s->n_vocab && d->logits[id] > -INFINITY)
                d->c[d->n++] = (candidate){sampler_bounded(d->logits[id]), id};
        }
}

static void apply_mask(drawing *d, const uint32_t *mask) {
    int32_t n_words = (d->s->n_vocab + 31) / 32, n_allowed = 0;
    for (int32_t i = 0; i < n_words; i++) n_allowed += __builtin_popcount(mask[i]);
    if (n_allowed <= d->s->n_vocab / 16) {
        gather(d, mask, n_words, n_allowed);
        return;
    }
    sampler_ban(d, mask);
}

/* A ban holds for a logit of +infinity too. */
static float biased(float logit, float bias) { return bias == -INFINITY ? -INFINITY : logit + bias; }

static void apply_bias(drawing *d, const uint32_t *mask) {
    const weir_sampling *p = &d->s->params;
    float *logits = d->n < 0 && p->n_logit_bias ? sampler_writable(d) : NULL;
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        const weir_logit_bias *b = &p->logit_bias[i];
        if (b->token < 0 || b->token >= d->s->n_vocab || !allows(mask, b->token)) continue;
        if (logits) logits[b->token] = biased(logits[b->token], b->bias);
        for (int32_t low = 0, high = d->n; low < high;) { /* ids ascend */
            int32_t middle = (low + high) / 2;
            if (d->c[middle].id == b->token) {
                d->c[middle].logit = biased(d->c[middle].logit, b->bias);
                break;
            }
            if (d->c[middle].id < b->token)
                low = middle + 1;
            else
                high = middle;
        }
    }
    int32_t n = 0;
    for (int32_t i = 0; i < d->n; i++)
        if (d->c[i].logit > -INFINITY) d->c[n++] = (candidate){sampler_bounded(d->c[i].logit), d->c[i].id};
    if (d->n >= 0) d->n = n;
}

/* ---- drawing ---------------------------------------------------------------------------------------------------------- */

static int32_t best_left(const drawing *d) {
    if (d->failed) return SAMPLER_NO_MEMORY;
    if (d->n < 0) return sampler_greatest(d->logits, d->s->n_vocab);
    int32_t best = -1;
    for (int32_t i = 0; i < d->n; i++) {
        bool better = best < 0 || d->c[i].logit > d->c[best].logit ||
                      (d->c[i].logit == d->c[best].logit && d->c[i].id < d->c[best].id);
        if (better) best = i;
    }
    return best < 0 ? SAMPLER_NO_TOKEN : d->c[best].id;
}

int32_t sampler_draw(sampler *s, const float *logits, const uint32_t *mask) {
    drawing d = {.s = s, .logits = logits, .n = -1, .temperature = 1};
    if (mask) apply_mask(&d, mask);
    if (!d.failed) apply_bias(&d, mask);
    for (int32_t i = 0; i < s->n_chain; i++)
        if (!(s->takes_best && s->chain[i] > WEIR_SAMPLER_DRY)) sampler_step(&d, (weir_sampler)s->chain[i]);
    if (s->takes_best) return best_left(&d);
    return s->params.mirostat && s->params.temperature > 0 ? sampler_mirostat(&d) : sampler_finish(&d);
}

static float greatest_of(const float *logits, int32_t n_vocab) {
    int32_t best = sampler_greatest(logits, n_vocab);
    return best < 0 ? -INFINITY : sampler_bounded(logits[best]);
}

void sampler_logprobs(const float *logits, int32_t n_vocab, int32_t token, float *logprob, weir_top_logprob *best, int32_t n) {
    candidate top[MAX_BEST];
    if (n > MAX_BEST) n = MAX_BEST;
    float max = greatest_of(logits, n_vocab);
    double log_sum = max + log(sampler_mass(logits, 0, n_vocab, max, -INFINITY, 1));
    bool known = token >= 0 && token < n_vocab && logits[token] > -INFINITY;
    *logprob = known ? (float)(sampler_bounded(logits[token]) - log_sum) : -INFINITY;
    int32_t n_top = n > 0 ? sampler_select_top(logits, n_vocab, top, n) : 0;
    for (int32_t i = 0; i < n; i++) {
        bool there = i < n_top;
        best[i] = (weir_top_logprob){there ? top[i].id : -1, there ? (float)(top[i].logit - log_sum) : -INFINITY};
    }
}
