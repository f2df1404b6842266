/* See sampler.h. The vocabulary is never sorted: top-k keeps a heap of k behind a threshold, top-p first finds by a histogram
 * of probability mass which logits can matter, and without truncation only sums are kept. Buffers are made when the sampler is
 * opened, and only those that its parameters need. */
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"

enum {
    BLOCK = 256,     /* logits whose mass is kept as one sum, so that finding a token recomputes one block only */
    RUN = 64,        /* logits that a search passes over at once when none is above its threshold */
    N_BUCKETS = 128, /* of the nucleus histogram */
    BUCKETS_PER_NAT = 4,
    MAX_BEST = 20,
};

typedef struct candidate {
    float logit; /* never NaN or -infinity; +infinity is stored as FLT_MAX */
    int32_t id;
} candidate;

struct sampler {
    weir_sampling params; /* logit_bias points to a copy of our own */
    int32_t n_vocab;
    uint64_t random[4]; /* xoshiro256++ (Blackman and Vigna 2018) */
    /* Penalties. counts[id] is how often a token is in the window. `window` is a ring of the last penalty_last_n tokens, or
     * with penalty_last_n -1 the list of the distinct tokens seen. All NULL when no penalty is on. */
    int32_t *counts, *window;
    int32_t window_capacity, n_window, window_next;
    float *adjusted;       /* [n_vocab] logits with bias and penalties; NULL when there are none */
    candidate *candidates; /* [min(top_k, n_vocab)], or [n_vocab] for top-p alone, or NULL */
    double *block_mass;    /* [n_vocab / BLOCK, rounded up], or NULL */
};

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
static double next_uniform(uint64_t r[4]) {
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

int sampler_open(sampler **out, const weir_sampling *params, int32_t n_vocab, weir_error *err) {
    *out = NULL;
    bool failed = false;
    size_t n = (size_t)n_vocab;
    sampler *s = calloc(1, sizeof *s);
    FAIL_IF(s == NULL, err, WEIR_E_NOMEM, "sampler", "no memory for a sampler");
    s->params = *params;
    s->params.logit_bias = NULL;
    s->n_vocab = n_vocab;
    uint64_t state = params->seed;
    for (int i = 0; i < 4; i++) s->random[i] = splitmix(&state);
    if (params->n_logit_bias > 0) {
        weir_logit_bias *bias = array_of(params->n_logit_bias, sizeof *bias, &failed);
        if (bias != NULL) memcpy(bias, params->logit_bias, params->n_logit_bias * sizeof *bias);
        s->params.logit_bias = bias;
    }
    if (penalises(params)) {
        s->window_capacity = params->penalty_last_n < 0 ? n_vocab : params->penalty_last_n;
        s->counts = array_of(n, sizeof *s->counts, &failed);
        s->window = array_of((size_t)s->window_capacity, sizeof *s->window, &failed);
    }
    if (penalises(params) || params->n_logit_bias > 0) s->adjusted = array_of(n, sizeof *s->adjusted, &failed);
    if (params->temperature > 0) {
        bool top_k = params->top_k > 0 && params->top_k < n_vocab;
        if (top_k || params->top_p < 1)
            s->candidates = array_of(top_k ? (size_t)params->top_k : n, sizeof(candidate), &failed);
        else
            s->block_mass = array_of((n + BLOCK - 1) / BLOCK, sizeof *s->block_mass, &failed);
    }
    if (failed) {
        sampler_close(&s);
        FAIL(err, WEIR_E_NOMEM, "sampler", "no memory for the sampling state of a vocabulary of %d tokens", n_vocab);
    }
    *out = s;
    return 0;
}

void sampler_close(sampler **sp) {
    sampler *s = *sp;
    if (s == NULL) return;
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

/* ---- adjusting the logits --------------------------------------------------------------------------------------------- */

static void apply_penalties(sampler *s, float *logits) {
    const weir_sampling *p = &s->params;
    /* A token may be in the window more than once; its count is negative once it was done. */
    for (int32_t i = 0; i < s->n_window; i++) {
        int32_t id = s->window[i], count = s->counts[id];
        if (count < 0) continue;
        s->counts[id] = -count;
        float x = logits[id];
        x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
        logits[id] = x - (float)count * p->frequency_penalty - p->presence_penalty;
    }
    for (int32_t i = 0; i < s->n_window; i++) {
        int32_t id = s->window[i];
        if (s->counts[id] < 0) s->counts[id] = -s->counts[id];
    }
}

static const float *adjust(sampler *s, const float *logits) {
    if (s->adjusted == NULL) return logits;
    memcpy(s->adjusted, logits, (size_t)s->n_vocab * sizeof *logits);
    for (size_t i = 0; i < s->params.n_logit_bias; i++) {
        const weir_logit_bias *b = &s->params.logit_bias[i];
        if (b->token < 0 || b->token >= s->n_vocab) continue;
        /* A ban holds for a logit of +infinity too. */
        s->adjusted[b->token] = b->bias == -INFINITY ? -INFINITY : s->adjusted[b->token] + b->bias;
    }
    if (s->counts != NULL) apply_penalties(s, s->adjusted);
    return s->adjusted;
}

/* ---- four logits at a time -------------------------------------------------------------------------------------------- */

typedef float lanes __attribute__((vector_size(16))); /* what every x86-64 has in one register */
typedef int32_t int_lanes __attribute__((vector_size(16)));
typedef uint32_t bit_lanes __attribute__((vector_size(16)));
enum { N_LANES = 4 };

static lanes all(float x) {
    return (lanes){x, x, x, x};
}

/* logits[i .. i+4), -infinity beyond the end. */
static lanes load(const float *logits, int32_t i, int32_t n) {
    lanes x;
    if (n - i >= N_LANES) {
        memcpy(&x, logits + i, sizeof x);
        return x;
    }
    x = all(-INFINITY);
    for (int j = 0; j < n - i; j++) x[j] = logits[i + j];
    return x;
}

static lanes choose(int_lanes condition, lanes yes, lanes no) {
    return (lanes)((condition & (int_lanes)yes) | (~condition & (int_lanes)no));
}

/* The greatest of logits[first .. end), -infinity when there is none but NaN. */
static float greatest_value(const float *logits, int32_t first, int32_t end) {
    lanes max[2] = {all(-INFINITY), all(-INFINITY)};
    for (int32_t i = first; i < end; i += 2 * N_LANES) {
        lanes x = load(logits, i, end), y = i + N_LANES < end ? load(logits, i + N_LANES, end) : x;
        max[0] = choose(x > max[0], x, max[0]); /* false for NaN */
        max[1] = choose(y > max[1], y, max[1]);
    }
    float result = -INFINITY;
    for (int j = 0; j < 2 * N_LANES; j++)
        result = max[j / N_LANES][j % N_LANES] > result ? max[j / N_LANES][j % N_LANES] : result;
    return result;
}

/* exp(x) for x <= 0; 0 from -87 down and for NaN. Relative error under 2^-22: x = k ln 2 + r with |r| <= ln 2 / 2, e^r by its
 * Taylor polynomial of degree 7 (remainder 5e-9), 2^k by the exponent's bits. */
static lanes exp_lanes(lanes x) {
    const float rounder = 12582912; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    int_lanes counts = x > -87;
    x = choose(counts, x, all(-87));
    lanes shifted = x * 1.44269504f + rounder, k = shifted - rounder;
    lanes r = x - k * 0.693145752f - k * 1.42860677e-6f, e = r * (1 / 5040.f) + 1 / 720.f;
    e = e * r + 1 / 120.f;
    e = e * r + 1 / 24.f;
    e = e * r + 1 / 6.f;
    e = e * r + 0.5f;
    e = e * r + 1;
    e = e * r + 1;
    bit_lanes exponent = (bit_lanes)shifted << 23; /* the bits of `rounder` are shifted out */
    return choose(counts, (lanes)((bit_lanes)e + exponent), all(0));
}

/* exp((x - max) / temperature), 0 for NaN and for x < floor. +infinity counts as FLT_MAX; so does `max`. */
static lanes weights(lanes x, float max, float floor, float temperature) {
    lanes below = (choose(x > FLT_MAX, all(FLT_MAX), x) - max) / temperature;
    return choose((x >= floor) & (x > -INFINITY), exp_lanes(below), all(0));
}

/* The sum of the weights of logits[first .. end). */
static double mass_of(const float *logits, int32_t first, int32_t end, float max, float floor, float temperature) {
    double sum[N_LANES] = {0};
    for (int32_t i = first; i < end; i += N_LANES) {
        lanes w = weights(load(logits, i, end), max, floor, temperature);
        for (int j = 0; j < N_LANES; j++) sum[j] += w[j];
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* ---- selection -------------------------------------------------------------------------------------------------------- */

/* The lowest id of the greatest logit; -1 when all are NaN or -infinity. */
static int32_t greatest(const float *logits, int32_t n) {
    int32_t at = 0;
    float best = -INFINITY;
    for (int32_t run = 0; run < n; run += RUN) {
        float value = greatest_value(logits, run, run + RUN < n ? run + RUN : n);
        if (!(value > best)) continue;
        best = value;
        at = run;
    }
    if (best == -INFINITY) return -1;
    while (logits[at] != best) at++;
    return at;
}

static float bounded(float logit) {
    return logit > FLT_MAX ? FLT_MAX : logit;
}

static bool worse(candidate a, candidate b) {
    return a.logit < b.logit || (a.logit == b.logit && a.id > b.id);
}

/* Restores the heap (worst at the root) after heap[root] changed. */
static void sift_down(candidate *heap, int32_t n, int32_t root) {
    candidate moved = heap[root];
    for (int32_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        if (child + 1 < n && worse(heap[child + 1], heap[child])) child++;
        if (!worse(heap[child], moved)) break;
        heap[root] = heap[child];
        root = child;
    }
    heap[root] = moved;
}

/* Best first. */
static void sort_candidates(candidate *c, int32_t n) {
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift_down(c, n, i);
    for (int32_t last = n - 1; last > 0; last--) {
        candidate worst = c[0];
        c[0] = c[last];
        c[last] = worst;
        sift_down(c, last, 0);
    }
}

/* The k best, best first, ties to the lower id. Returns how many there are. */
static int32_t select_top(const float *logits, int32_t n_vocab, candidate *top, int32_t k) {
    int32_t n = 0, i = 0;
    for (; i < n_vocab && n < k; i++)
        if (logits[i] > -INFINITY) top[n++] = (candidate){bounded(logits[i]), i};
    if (n == k) {
        for (int32_t root = n / 2 - 1; root >= 0; root--) sift_down(top, n, root);
        for (int32_t end; i < n_vocab; i = end) {
            end = i + RUN < n_vocab ? i + RUN : n_vocab;
            if (!(greatest_value(logits, i, end) > top[0].logit)) continue;
            for (; i < end; i++) {
                if (!(logits[i] > top[0].logit)) continue;
                top[0] = (candidate){bounded(logits[i]), i};
                sift_down(top, n, 0);
            }
        }
    }
    sort_candidates(top, n);
    return n;
}

static int bucket_of(float below_max) {
    return below_max < (float)N_BUCKETS / BUCKETS_PER_NAT ? (int)(below_max * BUCKETS_PER_NAT) : N_BUCKETS - 1;
}

/* The smallest set of best tokens whose probability reaches top_p, give or take one bucket of the histogram, best first. *total
 * gets the mass of the whole vocabulary relative to the best token. */
static int32_t select_nucleus(const float *logits, int32_t n_vocab, float top_p, candidate *out, double *total) {
    double mass[N_BUCKETS] = {0}, reached = 0;
    int32_t best = greatest(logits, n_vocab), n = 0;
    if (best < 0) return 0;
    float max = bounded(logits[best]);
    for (int32_t i = 0; i < n_vocab; i += N_LANES) {
        lanes x = load(logits, i, n_vocab), w = weights(x, max, -INFINITY, 1);
        for (int j = 0; j < N_LANES; j++)
            if (w[j] > 0) mass[bucket_of(max - bounded(x[j]))] += w[j];
    }
    *total = 0;
    for (int b = 0; b < N_BUCKETS; b++) *total += mass[b];
    int last = 0;
    for (; last < N_BUCKETS - 1; last++) {
        reached += mass[last];
        if (reached >= (double)top_p * *total) break;
    }
    for (int32_t i = 0; i < n_vocab; i++)
        if (logits[i] > -INFINITY && bucket_of(max - bounded(logits[i])) <= last) out[n++] = (candidate){bounded(logits[i]), i};
    sort_candidates(out, n);
    return n;
}

/* ---- drawing ---------------------------------------------------------------------------------------------------------- */

/* How many of the sorted candidates are left by top-p, then min-p. `total` is the mass that top_p is a share of, relative to
 * the best; 0 = that of the candidates. */
static int32_t truncate_sorted(const weir_sampling *p, const candidate *c, int32_t n, double total) {
    if (p->top_p < 1) {
        if (total == 0)
            for (int32_t i = 0; i < n; i++) total += exp((double)c[i].logit - c[0].logit);
        double reached = 0, wanted = (double)p->top_p * total;
        for (int32_t i = 0; i < n; i++) {
            reached += exp((double)c[i].logit - c[0].logit);
            if (reached >= wanted) n = i + 1;
        }
    }
    if (p->min_p > 0) {
        double least = log((double)p->min_p);
        while (n > 1 && (double)c[n - 1].logit - c[0].logit < least) n--;
    }
    return n;
}

static int32_t draw_sorted(const candidate *c, int32_t n, double temperature, double uniform) {
    double total = 0, reached = 0;
    for (int32_t i = 0; i < n; i++) total += exp(((double)c[i].logit - c[0].logit) / temperature);
    for (int32_t i = 0; i < n; i++) {
        reached += exp(((double)c[i].logit - c[0].logit) / temperature);
        if (uniform * total < reached) return c[i].id;
    }
    return c[0].id; /* only if rounding let `reached` end below `total`; the best is as good as any */
}

/* Temperature and min-p without other truncation: sums only. */
static int32_t draw_from_all(sampler *s, const float *logits, double uniform) {
    int32_t best = greatest(logits, s->n_vocab), n_blocks = (s->n_vocab + BLOCK - 1) / BLOCK, b = 0;
    if (best < 0) return -1;
    float max = bounded(logits[best]), temperature = s->params.temperature;
    float floor = s->params.min_p > 0 ? max + fminf(logf(s->params.min_p), 0) : -INFINITY;
    double total = 0;
    for (b = 0; b < n_blocks; b++) {
        int32_t end = (b + 1) * BLOCK < s->n_vocab ? (b + 1) * BLOCK : s->n_vocab;
        total += s->block_mass[b] = mass_of(logits, b * BLOCK, end, max, floor, temperature);
    }
    double wanted = uniform * total, reached = 0;
    for (b = 0; b < n_blocks - 1 && wanted >= reached + s->block_mass[b]; b++) reached += s->block_mass[b];
    for (int32_t i = b * BLOCK; i < s->n_vocab; i += N_LANES) {
        lanes w = weights(load(logits, i, s->n_vocab), max, floor, temperature);
        for (int j = 0; j < N_LANES; j++) {
            reached += w[j];
            if (wanted < reached) return i + j;
        }
    }
    return best; /* only if rounding let `reached` end below `total` */
}

int32_t sampler_draw(sampler *s, const float *logits) {
    const weir_sampling *p = &s->params;
    logits = adjust(s, logits);
    if (!(p->temperature > 0)) return greatest(logits, s->n_vocab);
    double uniform = next_uniform(s->random), total = 0;
    int32_t n;
    if (s->candidates == NULL) return draw_from_all(s, logits, uniform);
    if (p->top_k > 0 && p->top_k < s->n_vocab)
        n = select_top(logits, s->n_vocab, s->candidates, p->top_k);
    else
        n = select_nucleus(logits, s->n_vocab, p->top_p, s->candidates, &total);
    if (n == 0) return -1;
    n = truncate_sorted(p, s->candidates, n, total);
    return draw_sorted(s->candidates, n, p->temperature, uniform);
}

void sampler_logprobs(const float *logits, int32_t n_vocab, int32_t token, float *logprob, weir_top_logprob *best, int32_t n) {
    candidate top[MAX_BEST];
    if (n > MAX_BEST) n = MAX_BEST;
    float max = bounded(greatest_value(logits, 0, n_vocab));
    double log_sum = max + log(mass_of(logits, 0, n_vocab, max, -INFINITY, 1));
    bool known = token >= 0 && token < n_vocab && logits[token] > -INFINITY;
    *logprob = known ? (float)(bounded(logits[token]) - log_sum) : -INFINITY;
    int32_t n_top = n > 0 ? select_top(logits, n_vocab, top, n) : 0;
    for (int32_t i = 0; i < n; i++) {
        bool there = i < n_top;
        best[i] = (weir_top_logprob){there ? top[i].id : -1, there ? (float)(top[i].logit - log_sum) : -INFINITY};
    }
}
