/* The steps of the sampler chain, and the draw at its end; see sampler_internal.h. Each step works on the whole vocabulary or on
 * the candidates that an earlier one left, whatever the order.
 *
 * Sources. top-p: Holtzman et al. 2020 (arXiv:1904.09751). min-p: Nguyen et al. 2024 (arXiv:2407.01082). Locally typical:
 * Meister et al. 2022 (arXiv:2202.00666). top-n-sigma: Tang et al. 2024 (arXiv:2411.07641). XTC: its author's description in
 * text-generation-webui pull request 6335. Dynamic temperature: its author's description in llama.cpp pull request 4972.
 * Mirostat: Basu et al. 2021 (arXiv:2007.14966). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler_internal.h"

enum { BLOCK = 256 }; /* logits whose mass is kept as one sum, so that finding a token recomputes one block only */

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

static float *adjusted_of(drawing *d) {
    sampler *s = d->s;
    if (s->adjusted == NULL) s->adjusted = malloc((size_t)s->n_vocab * sizeof *s->adjusted);
    if (s->adjusted == NULL) d->failed = true;
    return s->adjusted;
}

float *sampler_writable(drawing *d) {
    float *adjusted = adjusted_of(d);
    if (adjusted == NULL) return NULL;
    if (d->logits != adjusted) memcpy(adjusted, d->logits, (size_t)d->s->n_vocab * sizeof *adjusted);
    d->logits = adjusted;
    return adjusted;
}

void sampler_ban(drawing *d, const uint32_t *mask) {
    float *adjusted = adjusted_of(d);
    if (adjusted == NULL) return;
    sampler_copy_masked(d->logits, d->s->n_vocab, mask, adjusted);
    d->logits = adjusted;
}

bool sampler_room(drawing *d, int32_t n) {
    sampler *s = d->s;
    if (s->n_candidates < n || s->candidates == NULL) {
        free(s->candidates);
        s->candidates = malloc((size_t)(n ? n : 1) * sizeof *s->candidates);
        s->n_candidates = s->candidates ? n : 0;
    }
    d->c = s->candidates;
    if (d->c == NULL) d->failed = true;
    return d->c != NULL;
}

static void sort(drawing *d) {
    if (!d->sorted) sampler_sort(d->c, d->n);
    d->sorted = true;
}

static double mass_of(const drawing *d, float best) {
    double total = 0;
    for (int32_t i = 0; i < d->n; i++) total += exp((double)d->c[i].logit - best);
    return total;
}

static float best_of(const drawing *d) {
    float best = -INFINITY;
    for (int32_t i = 0; i < d->n; i++) best = d->c[i].logit > best ? d->c[i].logit : best;
    return best;
}

/* Of the candidates' distribution, in nats; `total` is mass_of(d, best). */
static double entropy_of(const drawing *d, float best, double total) {
    double entropy = 0;
    for (int32_t i = 0; i < d->n; i++) {
        double below = (double)d->c[i].logit - best, share = exp(below) / total;
        if (share > 0) entropy -= share * (below - log(total));
    }
    return entropy;
}

/* Keeps the candidates of at least `least`, in their order. */
static void keep_above(drawing *d, double least) {
    int32_t n = 0;
    for (int32_t i = 0; i < d->n; i++)
        if (d->c[i].logit >= least) d->c[n++] = d->c[i];
    d->n = n;
    d->total = 0;
}

/* What is left of the vocabulary from `least` on becomes the candidates. */
static void cut_above(drawing *d, double least) {
    if (d->n >= 0) {
        keep_above(d, least);
        return;
    }
    float bound = (float)least;
    if (bound > least) bound = nextafterf(bound, -INFINITY);
    if (!sampler_room(d, d->s->n_vocab)) return;
    d->n = sampler_select_above(d->logits, d->s->n_vocab, bound, d->c);
    d->sorted = false;
    keep_above(d, least);
}

/* ---- penalties -------------------------------------------------------------------------------------------------------- */

static float penalised(const weir_sampling *p, float x, int32_t count) {
    x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    return x - (float)count * p->frequency_penalty - p->presence_penalty;
}

static void penalties(drawing *d) {
    sampler *s = d->s;
    if (s->counts == NULL) return;
    for (int32_t i = 0; i < d->n; i++)
        if (s->counts[d->c[i].id]) d->c[i].logit = penalised(&s->params, d->c[i].logit, s->counts[d->c[i].id]);
    if (d->n >= 0) {
        d->sorted = false;
        d->total = 0;
        return;
    }
    float *logits = s->n_window > 0 ? sampler_writable(d) : NULL;
    if (logits == NULL) return;
    /* A token may be in the window more than once; its count is negative once it was done. */
    for (int32_t i = 0; i < s->n_window; i++) {
        int32_t id = s->window[i], count = s->counts[id];
        if (count < 0) continue;
        s->counts[id] = -count;
        logits[id] = penalised(&s->params, logits[id], count);
    }
    for (int32_t i = 0; i < s->n_window; i++) {
        int32_t id = s->window[i];
        if (s->counts[id] < 0) s->counts[id] = -s->counts[id];
    }
}

/* ---- truncations ------------------------------------------------------------------------------------------------------ */

static void top_k(drawing *d) {
    int32_t k = d->s->params.top_k, n_vocab = d->s->n_vocab;
    if (k <= 0 || k >= n_vocab) return;
    if (d->n >= 0) {
        sort(d); /* also when all stay: a mask then draws as a ban would */
        if (d->n > k) d->n = k;
    } else if (sampler_room(d, k)) {
        d->n = sampler_select_top(d->logits, n_vocab, d->c, k);
        d->sorted = true;
    }
    d->total = 0;
}

static void top_p(drawing *d) {
    float p = d->s->params.top_p;
    if (!(p < 1)) return;
    if (d->n < 0) {
        if (!sampler_room(d, d->s->n_vocab)) return;
        d->n = sampler_select_nucleus(d->logits, d->s->n_vocab, p, d->c, &d->total);
        d->sorted = true;
    }
    if (d->n == 0) return;
    sort(d);
    if (d->total == 0) d->total = mass_of(d, d->c[0].logit);
    double reached = 0, wanted = (double)p * d->total;
    for (int32_t i = 0; i < d->n; i++) {
        reached += exp((double)d->c[i].logit - d->c[0].logit);
        if (reached >= wanted) d->n = i + 1;
    }
    d->total = 0;
}

static void min_p(drawing *d) {
    double p = d->s->params.min_p;
    if (!(p > 0)) return;
    if (p > 1) p = 1; /* the best always stays */
    int32_t best = d->n < 0 ? sampler_greatest(d->logits, d->s->n_vocab) : 0;
    if (best < 0 || d->n == 0) {
        d->n = 0;
        return;
    }
    float max = d->n < 0 ? sampler_bounded(d->logits[best]) : best_of(d);
    cut_above(d, max + log(p));
}

static void top_n_sigma(drawing *d) {
    double n_sigma = d->s->params.top_n_sigma;
    if (!(n_sigma > 0) || d->n == 0) return;
    double mean = 0, squares = 0;
    float max;
    if (d->n < 0) {
        sampler_moments m;
        if (!sampler_measure(d->logits, d->s->n_vocab, &m)) {
            d->n = 0;
            return;
        }
        cut_above(d, sampler_bounded(d->logits[m.best]) - n_sigma * m.deviation);
        return;
    }
    max = best_of(d);
    for (int32_t i = 0; i < d->n; i++) mean += ((double)d->c[i].logit - max) / d->n;
    for (int32_t i = 0; i < d->n; i++) squares += ((double)d->c[i].logit - max - mean) * ((double)d->c[i].logit - max - mean);
    cut_above(d, max - n_sigma * sqrt(squares / d->n));
}

typedef struct typical_entry {
    double distance;
    candidate c;
} typical_entry;

static int by_distance(const void *a, const void *b) {
    const typical_entry *x = a, *y = b;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    return x->c.id < y->c.id ? -1 : 1;
}

/* The tokens whose surprise is nearest to the entropy, until their probability exceeds typical_p. */
static void typical(drawing *d) {
    double p = d->s->params.typical_p, entropy, reached = 0, total;
    float best;
    if (!(p > 0 && p < 1) || d->n == 0) return;
    if (d->n < 0) {
        sampler_moments m;
        bool any = sampler_measure(d->logits, d->s->n_vocab, &m);
        if (!sampler_room(d, d->s->n_vocab)) return;
        d->n = any ? sampler_select_typical(d->logits, d->s->n_vocab, p, d->c) : 0;
        if (d->n == 0) return;
        best = sampler_bounded(d->logits[m.best]);
        total = exp(m.log_sum);
        entropy = m.entropy;
    } else {
        best = best_of(d);
        total = mass_of(d, best);
        entropy = entropy_of(d, best, total);
    }
    typical_entry *e = malloc((size_t)d->n * sizeof *e);
    if (e == NULL) {
        d->failed = true;
        return;
    }
    for (int32_t i = 0; i < d->n; i++) {
        double surprise = log(total) - ((double)d->c[i].logit - best);
        e[i] = (typical_entry){fabs(surprise - entropy), d->c[i]};
    }
    qsort(e, (size_t)d->n, sizeof *e, by_distance);
    int32_t n = 0;
    while (n < d->n && reached <= p) {
        reached += exp((double)e[n].c.logit - best) / total;
        d->c[n] = e[n].c;
        n++;
    }
    free(e);
    d->n = n;
    d->total = 0;
    d->sorted = false;
    sort(d);
}

/* With xtc_probability, all tokens of at least xtc_threshold but the least likely of them go, if they are two or more. */
static void xtc(drawing *d) {
    const weir_sampling *p = &d->s->params;
    if (!(p->xtc_probability > 0) || p->xtc_threshold > 0.5f) return;
    /* One number for each draw, used or not: what a draw gets does not depend on the logits before it. */
    if (sampler_uniform(d->s) >= (double)p->xtc_probability || d->n == 0) return;
    int32_t n_vocab = d->s->n_vocab, n_above = 0;
    double least;
    if (d->n < 0) {
        sampler_moments m;
        if (!sampler_measure(d->logits, n_vocab, &m) || !sampler_room(d, n_vocab)) return;
        least = sampler_bounded(d->logits[m.best]) + m.log_sum + log((double)p->xtc_threshold);
        n_above = sampler_select_above(d->logits, n_vocab, (float)least, d->c);
        if (n_above < 2) return;
        float *logits = sampler_writable(d);
        if (logits == NULL) return;
        sampler_sort(d->c, n_above);
        for (int32_t i = 0; i < n_above - 1; i++) logits[d->c[i].id] = -INFINITY;
        return;
    }
    sort(d);
    least = d->c[0].logit + log(mass_of(d, d->c[0].logit)) + log((double)p->xtc_threshold);
    while (n_above < d->n && d->c[n_above].logit >= least) n_above++;
    if (n_above < 2) return;
    d->n -= n_above - 1;
    memmove(d->c, d->c + n_above - 1, (size_t)d->n * sizeof *d->c);
    d->total = 0;
}

/* ---- temperature ------------------------------------------------------------------------------------------------------ */

static void keep_best(drawing *d) {
    if (d->n < 0) {
        int32_t best = sampler_greatest(d->logits, d->s->n_vocab);
        if (!sampler_room(d, 1)) return;
        d->n = best >= 0;
        if (best >= 0) d->c[0] = (candidate){sampler_bounded(d->logits[best]), best};
    } else if (d->n > 1) {
        sort(d);
        d->n = 1;
    }
    d->sorted = true;
}

/* Between temperature - range and temperature + range, by the entropy as a share of the greatest possible, to a power. */
static double dynamic(drawing *d) {
    const weir_sampling *p = &d->s->params;
    double entropy, n = d->n;
    if (d->n < 0) {
        sampler_moments m;
        if (!sampler_measure(d->logits, d->s->n_vocab, &m)) return p->temperature;
        entropy = m.entropy;
        n = m.n;
    } else {
        float best = best_of(d);
        entropy = entropy_of(d, best, mass_of(d, best));
    }
    double low = fmax(0, (double)p->temperature - p->dynatemp_range), high = (double)p->temperature + p->dynatemp_range;
    if (n < 2) return high;
    double share = fmin(fmax(entropy / log(n), 0), 1);
    return low + (high - low) * pow(share, p->dynatemp_exponent);
}

static void temperature(drawing *d) {
    const weir_sampling *p = &d->s->params;
    double t = p->temperature;
    if (t > 0 && p->dynatemp_range > 0) t = dynamic(d);
    if (t > 0)
        d->temperature *= t;
    else
        keep_best(d);
}

static float divided(float logit, double base, double t) {
    return (float)fmin(fmax(((double)logit - base) / t, -FLT_MAX), FLT_MAX);
}

/* Divides by the temperature that is pending, for a step that comes after it. Where the quotients would not fit in floats, it is
 * the distances from the best that are divided. */
static void settle(drawing *d) {
    const double t = d->temperature;
    const int32_t n_vocab = d->s->n_vocab;
    if (t == 1 || d->n == 0) return;
    int32_t best = d->n < 0 ? sampler_greatest(d->logits, n_vocab) : 0;
    if (best < 0) return;
    double max = d->n < 0 ? sampler_bounded(d->logits[best]) : best_of(d), base = fabs(max / t) < 1e30 ? 0 : max;
    for (int32_t i = 0; i < d->n; i++) d->c[i].logit = divided(d->c[i].logit, base, t);
    float *logits = d->n < 0 ? sampler_writable(d) : NULL;
    for (int32_t i = 0; logits && i < n_vocab; i++)
        if (logits[i] > -INFINITY) logits[i] = divided(sampler_bounded(logits[i]), base, t);
    d->temperature = 1;
    d->total = 0;
}

/* ---- drawing ---------------------------------------------------------------------------------------------------------- */

/* Sums only. */
static int32_t finish_all(drawing *d, double uniform) {
    sampler *s = d->s;
    int32_t best = sampler_greatest(d->logits, s->n_vocab), n_blocks = (s->n_vocab + BLOCK - 1) / BLOCK, b;
    if (best < 0) return SAMPLER_NO_TOKEN;
    if (s->block_mass == NULL) s->block_mass = malloc((size_t)n_blocks * sizeof *s->block_mass);
    if (s->block_mass == NULL) return SAMPLER_NO_MEMORY;
    float max = sampler_bounded(d->logits[best]), t = fmaxf((float)d->temperature, FLT_TRUE_MIN);
    double total = 0, reached = 0;
    for (b = 0; b < n_blocks; b++) {
        int32_t end = (b + 1) * BLOCK < s->n_vocab ? (b + 1) * BLOCK : s->n_vocab;
        total += s->block_mass[b] = sampler_mass(d->logits, b * BLOCK, end, max, -INFINITY, t);
    }
    double wanted = uniform * total;
    for (b = 0; b < n_blocks - 1 && wanted >= reached + s->block_mass[b]; b++) reached += s->block_mass[b];
    int32_t found = sampler_find(d->logits, b * BLOCK, s->n_vocab, max, t, wanted, &reached);
    return found < 0 ? best : found; /* only if rounding let `reached` end below `total` */
}

int32_t sampler_finish(drawing *d) {
    double uniform = sampler_uniform(d->s), total = 0, reached = 0;
    if (d->failed) return SAMPLER_NO_MEMORY;
    if (d->n < 0) return finish_all(d, uniform);
    if (d->n == 0) return SAMPLER_NO_TOKEN;
    double best = best_of(d), t = fmax(d->temperature, FLT_TRUE_MIN);
    for (int32_t i = 0; i < d->n; i++) total += exp((d->c[i].logit - best) / t);
    for (int32_t i = 0; i < d->n; i++) {
        reached += exp((d->c[i].logit - best) / t);
        if (uniform * total < reached) return d->c[i].id;
    }
    /* Only if rounding let `reached` end below `total`; the best is as good as any. */
    int32_t at = 0;
    while (d->c[at].logit < best) at++;
    return d->c[at].id;
}

void sampler_step(drawing *d, weir_sampler step) {
    if (d->failed) return;
    if (step != WEIR_SAMPLER_TEMPERATURE) settle(d);
    switch (step) {
    case WEIR_SAMPLER_PENALTIES: penalties(d); break;
    case WEIR_SAMPLER_DRY: dry_apply(d); break;
    case WEIR_SAMPLER_TOP_N_SIGMA: top_n_sigma(d); break;
    case WEIR_SAMPLER_TOP_K: top_k(d); break;
    case WEIR_SAMPLER_TYPICAL: typical(d); break;
    case WEIR_SAMPLER_TOP_P: top_p(d); break;
    case WEIR_SAMPLER_MIN_P: min_p(d); break;
    case WEIR_SAMPLER_XTC: xtc(d); break;
    case WEIR_SAMPLER_TEMPERATURE: temperature(d); break;
    case WEIR_N_SAMPLERS: break;
    }
}

/* ---- mirostat --------------------------------------------------------------------------------------------------------- */

/* Algorithm 1: the exponent of Zipf's law from the best tokens, then k for the surprise that is wanted. */
static double mirostat_k(const sampler *s, const drawing *d, int32_t n_left) {
    double products = 0, squares = 0;
    for (int32_t i = 0; i < 99 && i < d->n - 1; i++) {
        double t = log((i + 2.0) / (i + 1.0)), b = (double)d->c[i].logit - d->c[i + 1].logit;
        products += t * b;
        squares += t * t;
    }
    double exponent = squares > 0 ? products / squares : 0, epsilon = exponent - 1;
    double k = pow(epsilon * exp2(s->mu) / (1 - pow(n_left, -epsilon)), 1 / exponent);
    return isnan(k) ? 1 : fmin(fmax(round(k), 1), n_left);
}

int32_t sampler_mirostat(drawing *d) {
    enum { N_BEST = 100 };
    sampler *s = d->s;
    settle(d);
    sampler_moments m = {0};
    bool whole = d->n < 0, any = whole ? sampler_measure(d->logits, s->n_vocab, &m) : d->n > 0;
    if (d->failed) return SAMPLER_NO_MEMORY;
    if (!any) return SAMPLER_NO_TOKEN;
    if (s->params.mirostat == 1) {
        int32_t n_left = whole ? m.n : d->n;
        if (whole) {
            if (!sampler_room(d, N_BEST)) return SAMPLER_NO_MEMORY;
            d->n = sampler_select_top(d->logits, s->n_vocab, d->c, N_BEST < n_left ? N_BEST : n_left);
            d->sorted = true;
        }
        sort(d);
        int32_t k = (int32_t)mirostat_k(s, d, n_left);
        if (whole && k > d->n) {
            if (!sampler_room(d, k)) return SAMPLER_NO_MEMORY;
            d->n = sampler_select_top(d->logits, s->n_vocab, d->c, k);
        }
        if (d->n > k) d->n = k;
    } else { /* algorithm 2: no token of more surprise than mu, but the best stays */
        double best = whole ? sampler_bounded(d->logits[m.best]) : best_of(d);
        double log_sum = whole ? m.log_sum : log(mass_of(d, (float)best));
        cut_above(d, fmin(best, best + log_sum - s->mu * log(2)));
    }
    int32_t token = sampler_finish(d), at = 0;
    if (token < 0) return token;
    while (d->c[at].id != token) at++;
    double best = best_of(d), surprise = (log(mass_of(d, (float)best)) - ((double)d->c[at].logit - best)) / log(2);
    s->mu -= s->params.mirostat_eta * (surprise - s->params.mirostat_tau);
    return token;
}
