/* The sampler against exact probabilities: which tokens may be drawn at all, and how often. Seeds are fixed, so a test that
 * passes once passes always; the bounds are those that a correct sampler fails once in a million seeds. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sampler.h"

enum { MAX_VOCAB = 4096 };

static uint64_t random_state = 42;
static uint32_t random_below(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static const weir_sampling plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .penalty_last_n = 64};

static sampler *open_sampler(const weir_sampling *p, int32_t n_vocab) {
    sampler *s = NULL;
    weir_error err = {0};
    const sampler_vocab vocab = {.n_tokens = n_vocab};
    assert_int_equal(sampler_open(&s, p, &vocab, &err), 0);
    return s;
}

static int32_t draw_once(const weir_sampling *p, const float *logits, int32_t n_vocab) {
    sampler *s = open_sampler(p, n_vocab);
    int32_t token = sampler_draw(s, logits, NULL);
    sampler_close(&s);
    assert_null(s);
    return token;
}

/* ---- exact probabilities, the slow and obvious way: sort everything, in double precision ---- */

typedef struct entry {
    double logit;
    int32_t id;
} entry;

static int by_logit(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static void exact(const weir_sampling *p, const double *logits, int32_t n_vocab, double *probability) {
    static entry e[MAX_VOCAB];
    int32_t n = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        probability[i] = 0;
        if (logits[i] > -INFINITY) e[n++] = (entry){logits[i], i};
    }
    qsort(e, (size_t)n, sizeof e[0], by_logit);
    if (p->top_k > 0 && p->top_k < n) n = p->top_k;
    double total = 0, reached = 0;
    for (int32_t i = 0; i < n; i++) total += exp(e[i].logit - e[0].logit);
    for (int32_t i = 0; i < n && p->top_p < 1; i++) {
        reached += exp(e[i].logit - e[0].logit);
        if (reached >= p->top_p * total) n = i + 1;
    }
    while (n > 1 && exp(e[n - 1].logit - e[0].logit) < p->min_p) n--;
    total = 0;
    for (int32_t i = 0; i < n; i++) total += exp((e[i].logit - e[0].logit) / p->temperature);
    for (int32_t i = 0; i < n; i++) probability[e[i].id] = exp((e[i].logit - e[0].logit) / p->temperature) / total;
}

/* Pearson's chi-square over the classes that expect at least 5 draws, the rest as one more class. The bound is Wilson and
 * Hilferty's approximation of the quantile 1 - 1e-6 (4.75 standard deviations of a normal variable). */
static void check_distribution(const weir_sampling *p, const float *logits, const double *probability, int32_t n_vocab,
                               int32_t n_draws) {
    static int32_t counts[MAX_VOCAB];
    memset(counts, 0, sizeof counts);
    sampler *s = open_sampler(p, n_vocab);
    for (int32_t i = 0; i < n_draws; i++) {
        int32_t token = sampler_draw(s, logits, NULL);
        assert_in_range(token, 0, n_vocab - 1);
        counts[token]++;
    }
    sampler_close(&s);
    double chi2 = 0, rest = 0, rest_count = 0;
    int32_t n_classes = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        double expected = probability[i] * n_draws;
        if (probability[i] == 0) assert_int_equal(counts[i], 0);
        if (expected >= 5) {
            chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
            n_classes++;
        } else {
            rest += expected;
            rest_count += counts[i];
        }
    }
    if (rest >= 5) {
        chi2 += (rest_count - rest) * (rest_count - rest) / rest;
        n_classes++;
    }
    double k = n_classes - 1;
    if (k < 1) return;
    double h = 2 / (9 * k), bound = k * pow(1 - h + 4.75 * sqrt(h), 3);
    if (chi2 > bound) fail_msg("chi-square %.1f over %.1f with %.0f degrees of freedom", chi2, bound, k);
}

static void fill_logits(float *logits, double *as_double, int32_t n, float spread, bool with_ties) {
    for (int32_t i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < 6; j++) sum += random_below(10001) / 10000.0 - 0.5;
        logits[i] = (float)(sum * spread);
        if (with_ties) logits[i] = roundf(logits[i]);
        if (i % 17 == 3) logits[i] = -INFINITY;
        if (i % 29 == 5) logits[i] = NAN;
        as_double[i] = isnan(logits[i]) ? -INFINITY : logits[i];
    }
}

static void draws_follow_the_exact_probabilities(void **state) {
    (void)state;
    static float logits[MAX_VOCAB];
    static double as_double[MAX_VOCAB], probability[MAX_VOCAB];
    static const int32_t vocabs[] = {2, 31, 256, 1000, MAX_VOCAB};
    static const int32_t top_ks[] = {0, 1, 3, 40, 1000, 5000};
    static const float top_ps[] = {1, 0.95f, 0.5f, 0.01f, 0}, min_ps[] = {0, 0.05f, 0.6f, 1}, temperatures[] = {1, 0.3f, 2.5f};
    for (int round = 0; round < 120; round++) {
        int32_t n_vocab = vocabs[random_below(5)];
        weir_sampling p = plain;
        p.top_k = top_ks[random_below(6)];
        p.top_p = top_ps[random_below(5)];
        p.min_p = min_ps[random_below(4)];
        p.temperature = temperatures[random_below(3)];
        p.seed = (uint64_t)round;
        fill_logits(logits, as_double, n_vocab, random_below(2) ? 6 : 1.5f, random_below(3) == 0);
        exact(&p, as_double, n_vocab, probability);
        /* So many that each round looks at about as many logits. */
        check_distribution(&p, logits, probability, n_vocab, n_vocab < 100 ? 20000 : 2000000 / n_vocab);
    }
}

static void truncation_off_reaches_every_token(void **state) {
    (void)state;
    /* 600 equal logits over several blocks of sums: all are drawn, evenly. */
    float logits[600];
    double probability[600];
    for (int i = 0; i < 600; i++) logits[i] = 3, probability[i] = 1.0 / 600;
    check_distribution(&plain, logits, probability, 600, 30000);
}

/* ---- greedy and ties ---- */

static void greedy_takes_the_lowest_of_the_best(void **state) {
    (void)state;
    weir_sampling p = plain;
    float logits[] = {1, NAN, 5, 5, -INFINITY, 4};
    for (p.temperature = 0; p.temperature >= -1; p.temperature -= 1) assert_int_equal(draw_once(&p, logits, 6), 2);
    p.temperature = 1;
    p.top_k = 1;
    for (p.seed = 0; p.seed < 50; p.seed++) assert_int_equal(draw_once(&p, logits, 6), 2);
    /* Two of the three best: the lower ids. */
    float tied[] = {0, 7, 7, 7, 0};
    p.top_k = 2;
    for (p.seed = 0; p.seed < 200; p.seed++) assert_in_range(draw_once(&p, tied, 5), 1, 2);
    p.top_k = 0;
    p.top_p = 0.5f;
    for (p.seed = 0; p.seed < 200; p.seed++) assert_in_range(draw_once(&p, tied, 5), 1, 2);
    /* The least temperature there is divides without harm. */
    p = plain;
    p.temperature = FLT_TRUE_MIN;
    for (p.seed = 0; p.seed < 20; p.seed++) assert_in_range(draw_once(&p, tied, 5), 1, 3);
}

static void values_that_are_no_numbers(void **state) {
    (void)state;
    static const weir_sampling ways[] = {
        {.temperature = 0, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .min_p = 0.1f},
        {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1},
        {.temperature = 1, .top_p = 1, .top_k = 2, .repetition_penalty = 1},
        {.temperature = 0.5f, .top_p = 0.9f, .top_k = 3, .min_p = 0.1f, .repetition_penalty = 1},
    };
    const float nothing[] = {NAN, -INFINITY, NAN, -INFINITY}, infinite[] = {1, INFINITY, NAN, 2},
                huge[] = {-FLT_MAX, FLT_MAX, 0, -1}, one[] = {NAN, NAN, -5, NAN}, two[] = {INFINITY, -INFINITY, NAN, INFINITY};
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        for (uint64_t seed = 0; seed < 30; seed++) {
            weir_sampling p = ways[w];
            p.seed = seed;
            assert_int_equal(draw_once(&p, nothing, 4), -1);
            assert_int_equal(draw_once(&p, infinite, 4), 1);
            assert_int_equal(draw_once(&p, huge, 4), 1);
            assert_int_equal(draw_once(&p, one, 4), 2);
            int32_t either = draw_once(&p, two, 4);
            assert_true(either == 0 || either == 3);
        }
    }
}

/* ---- bias and penalties ---- */

static void biases_shift_and_ban(void **state) {
    (void)state;
    const float logits[] = {0, 1, INFINITY, 0.5f, 0};
    const weir_logit_bias bias[] = {{2, -INFINITY}, {1, -INFINITY}, {3, 0.25f}, {0, 0.7f}, {0, 0.4f}, {99, 1}, {-1, 1}};
    const double adjusted[] = {1.1f, -INFINITY, -INFINITY, 0.75, 0};
    double probability[5];
    weir_sampling p = plain;
    p.logit_bias = bias;
    p.n_logit_bias = 7;
    exact(&p, adjusted, 5, probability);
    check_distribution(&p, logits, probability, 5, 50000);
    p.temperature = 0;
    assert_int_equal(draw_once(&p, logits, 5), 0);
    /* All banned. */
    const weir_logit_bias all[] = {{0, -INFINITY}, {1, -INFINITY}, {2, -INFINITY}, {3, -INFINITY}, {4, -INFINITY}};
    p.logit_bias = all;
    p.n_logit_bias = 5;
    for (p.temperature = 0; p.temperature < 3; p.temperature++) assert_int_equal(draw_once(&p, logits, 5), -1);
}

static void penalise(const weir_sampling *p, const int32_t *seen, int32_t n, double *logits, int32_t n_vocab) {
    int32_t first = p->penalty_last_n < 0 || n < p->penalty_last_n ? 0 : n - p->penalty_last_n;
    for (int32_t id = 0; id < n_vocab; id++) {
        int32_t count = 0;
        for (int32_t i = first; i < n; i++) count += seen[i] == id;
        if (count == 0) continue;
        logits[id] = logits[id] > 0 ? logits[id] / p->repetition_penalty : logits[id] * p->repetition_penalty;
        logits[id] -= count * (double)p->frequency_penalty + p->presence_penalty;
    }
}

static void penalties_count_the_window(void **state) {
    (void)state;
    enum { N_VOCAB = 24, N_SEEN = 60 };
    static const int32_t windows[] = {0, 1, 5, 59, 60, 61, 1000, -1};
    for (int round = 0; round < 80; round++) {
        float logits[N_VOCAB], before[N_VOCAB];
        double adjusted[N_VOCAB], probability[N_VOCAB];
        int32_t seen[N_SEEN], n_seen = (int32_t)random_below(N_SEEN + 1);
        weir_sampling p = plain;
        p.penalty_last_n = windows[round % 8];
        p.repetition_penalty = (const float[]){1, 1.3f, 0.8f}[random_below(3)];
        p.frequency_penalty = (const float[]){0, 0.2f, -0.1f}[random_below(3)];
        p.presence_penalty = (const float[]){0, 0.5f, -0.4f}[random_below(3)];
        p.seed = (uint64_t)round;
        for (int32_t i = 0; i < N_VOCAB; i++) adjusted[i] = logits[i] = (float)random_below(4001) / 1000 - 2;
        sampler *s = open_sampler(&p, N_VOCAB);
        for (int32_t i = 0; i < n_seen; i++) sampler_accept(s, seen[i] = (int32_t)random_below(N_VOCAB / 2));
        penalise(&p, seen, n_seen, adjusted, N_VOCAB);
        exact(&p, adjusted, N_VOCAB, probability);
        memcpy(before, logits, sizeof logits);
        int32_t counts[N_VOCAB] = {0};
        for (int i = 0; i < 4000; i++) counts[sampler_draw(s, logits, NULL)]++; /* drawing accepts nothing */
        assert_memory_equal(before, logits, sizeof logits);
        for (int32_t i = 0; i < N_VOCAB; i++) {
            double expected = probability[i] * 4000, deviation = sqrt(expected * (1 - probability[i]));
            assert_true(fabs(counts[i] - expected) <= 5.5 * deviation + 3);
        }
        sampler_accept(s, -1);
        sampler_accept(s, N_VOCAB);
        sampler_close(&s);
    }
}

/* ---- every step, in every order, against NumPy ---- */

static const char *breaker_piece(void *context, int32_t token, bool special, size_t *n_bytes) {
    (void)context;
    (void)special;
    const char *piece = token == 7 ? "x\n" : "word";
    *n_bytes = strlen(piece);
    return piece;
}

static sampler *open_with_text(const weir_sampling *p, int32_t n_vocab) {
    sampler *s = NULL;
    weir_error err = {0};
    const sampler_vocab vocab = {.n_tokens = n_vocab, .n_history = 4096, .piece = breaker_piece};
    assert_int_equal(sampler_open(&s, p, &vocab, &err), 0);
    return s;
}

static double bound_of(double k) { /* see check_distribution */
    double h = 2 / (9 * k);
    return k * pow(1 - h + 4.75 * sqrt(h), 3);
}

/* tests/unit/engine/sampler_cases.inc is from scripts/gen_sampler_cases.py. */
static void chains_follow_the_numpy_reference(void **state) {
    (void)state;
    enum { N_VOCAB = 48, N_DRAWS = 20000 };
    static const struct {
        weir_sampling p;
        int32_t history[96], n_history;
        float logits[N_VOCAB];
        double probability[N_VOCAB];
    } cases[] = {
#include "sampler_cases.inc"
    };
    static const char *const breakers[] = {"\n"};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int32_t counts[N_VOCAB] = {0};
        weir_sampling p = cases[c].p;
        p.seed = 1000 + c;
        p.dry_breakers = breakers;
        p.n_dry_breakers = 1;
        sampler *s = NULL;
        for (int i = 0; i < N_DRAWS; i++) {
            if (s == NULL || p.mirostat) { /* mirostat goes on from its own past: each draw is a first one */
                sampler_close(&s);
                s = open_with_text(&p, N_VOCAB);
                for (int32_t k = 0; k < cases[c].n_history; k++) sampler_accept(s, cases[c].history[k]);
                p.seed++;
            }
            int32_t token = sampler_draw(s, cases[c].logits, NULL);
            assert_in_range(token, 0, N_VOCAB - 1);
            counts[token]++;
        }
        sampler_close(&s);
        double chi2 = 0, rest = 0, rest_count = 0, k = -1;
        for (int32_t i = 0; i < N_VOCAB; i++) {
            double expected = cases[c].probability[i] * N_DRAWS;
            if (expected == 0 && counts[i]) fail_msg("case %zu: token %d was drawn %d times, but cannot be", c, i, counts[i]);
            if (expected >= 5)
                chi2 += (counts[i] - expected) * (counts[i] - expected) / expected, k++;
            else
                rest += expected, rest_count += counts[i];
        }
        if (rest >= 5) chi2 += (rest_count - rest) * (rest_count - rest) / rest, k++;
        if (k >= 1 && chi2 > bound_of(k)) fail_msg("case %zu: chi-square %.1f over %.1f", c, chi2, bound_of(k));
    }
}

/* What a mask bans is as if its logit were -infinity, whether few tokens are left or most; and a mask comes before top-k. */
static void masks_ban(void **state) {
    (void)state;
    static float logits[MAX_VOCAB], banned[MAX_VOCAB];
    static double unused[MAX_VOCAB];
    static uint32_t mask[MAX_VOCAB / 32];
    for (int round = 0; round < 200; round++) {
        int32_t n_vocab = round % 2 ? MAX_VOCAB : 1000 + (int32_t)random_below(100), n_left = 0;
        weir_sampling p = plain;
        const weir_logit_bias bias[] = {{(int32_t)random_below((uint32_t)n_vocab), 3}, {(int32_t)random_below((uint32_t)n_vocab), -INFINITY}};
        p.top_k = random_below(2) ? 40 : 0;
        p.top_p = random_below(2) ? 0.8f : 1;
        p.temperature = random_below(4) ? 1 : 0;
        p.repetition_penalty = random_below(2) ? 1.5f : 1;
        p.logit_bias = bias;
        p.n_logit_bias = random_below(2) * 2;
        p.seed = (uint64_t)round;
        fill_logits(logits, unused, n_vocab, 4, false);
        memset(mask, 0, sizeof mask);
        uint32_t share = (const uint32_t[]){0, 1, 20, 500, 1000}[random_below(5)];
        for (int32_t i = 0; i < n_vocab; i++) {
            bool allowed = random_below(1000) < share;
            if (allowed) mask[i / 32] |= 1u << i % 32;
            banned[i] = allowed ? logits[i] : -INFINITY;
            n_left += allowed && logits[i] > -INFINITY && !(p.n_logit_bias && i == bias[1].token);
        }
        sampler *with = open_sampler(&p, n_vocab), *without = open_sampler(&p, n_vocab);
        for (int i = 0; i < 20; i++) {
            int32_t token = sampler_draw(with, logits, mask), other = sampler_draw(without, banned, NULL);
            if (n_left == 0) assert_int_equal(token, SAMPLER_NO_TOKEN);
            if (token >= 0) assert_true(mask[token / 32] >> token % 32 & 1);
            /* The same token, too, where both go through sorted candidates or take the best. */
            if (p.top_k || p.temperature == 0 || n_left == 0) assert_int_equal(token, other);
            sampler_accept(with, token);
            sampler_accept(without, token);
        }
        sampler_close(&with);
        sampler_close(&without);
    }
}

/* Mirostat keeps the surprise near tau, whatever the logits are like. */
static void mirostat_keeps_the_surprise(void **state) {
    (void)state;
    enum { N_VOCAB = 3000, N_DRAWS = 4000 };
    static float logits[N_VOCAB];
    static double unused[N_VOCAB];
    for (int version = 1; version <= 2; version++) {
        weir_sampling p = plain;
        p.mirostat = version;
        p.mirostat_tau = 4;
        p.mirostat_eta = 0.1f;
        p.seed = 5;
        sampler *s = open_sampler(&p, N_VOCAB);
        double mean = 0;
        for (int i = 0; i < N_DRAWS; i++) {
            fill_logits(logits, unused, N_VOCAB, 3, false);
            float logprob;
            int32_t token = sampler_draw(s, logits, NULL);
            sampler_logprobs(logits, N_VOCAB, token, &logprob, NULL, 0);
            mean += -logprob / log(2) / N_DRAWS;
        }
        sampler_close(&s);
        /* Of the whole distribution; the algorithms look at the one that they have cut, so this is somewhat more. */
        if (mean < 3.5 || mean > 8) fail_msg("mirostat %d: surprise %.2f bits", version, mean);
    }
}

/* A greedy text that DRY forbids to go round in circles, with a breaker that begins in one token and ends in another. */
static void dry_sees_breakers_across_tokens(void **state) {
    (void)state;
    weir_sampling p = plain;
    static const char *const breakers[] = {"x\nwo"};
    float logits[8] = {0, 1, 0, 0.5f, 0, 0, 0, 0};
    p.temperature = 0;
    p.dry_multiplier = 10;
    p.dry_base = 2;
    p.dry_allowed_length = 2;
    p.dry_penalty_last_n = -1;
    for (int with = 0; with < 2; with++) {
        p.dry_breakers = breakers;
        p.n_dry_breakers = (size_t)with;
        sampler *s = open_with_text(&p, 8);
        const int32_t history[] = {7, 2, 4, 1, 5, 7, 2, 4}; /* 7 2 4 was followed by 1; the breaker ends in the 2 */
        for (size_t i = 0; i < 8; i++) sampler_accept(s, history[i]);
        assert_int_equal(sampler_draw(s, logits, NULL), with ? 1 : 3);
        sampler_close(&s);
    }
}

/* ---- determinism ---- */

static void the_same_seed_gives_the_same_tokens(void **state) {
    (void)state;
    static float logits[1000];
    static double unused[1000];
    int32_t first[100], differences = 0;
    fill_logits(logits, unused, 1000, 2, false);
    for (int mode = 0; mode < 4; mode++) {
        weir_sampling p = plain;
        p.top_k = mode == 1 ? 50 : 0;
        p.top_p = mode == 2 ? 0.9f : 1;
        p.repetition_penalty = mode == 3 ? 1.2f : 1;
        for (int run = 0; run < 3; run++) {
            p.seed = run < 2 ? 7 : 8;
            sampler *s = open_sampler(&p, 1000);
            for (int i = 0; i < 100; i++) {
                int32_t token = sampler_draw(s, logits, NULL);
                sampler_accept(s, token);
                if (run == 0)
                    first[i] = token;
                else if (run == 1)
                    assert_int_equal(token, first[i]);
                else
                    differences += token != first[i];
            }
            sampler_close(&s);
        }
    }
    assert_true(differences > 200);
}

/* Seeds next to each other, 0 included, must not give draws next to each other. */
static void seeds_are_independent(void **state) {
    (void)state;
    float logits[10] = {0};
    int32_t counts[10] = {0};
    weir_sampling p = plain;
    for (p.seed = 0; p.seed < 20000; p.seed++) counts[draw_once(&p, logits, 10)]++;
    double chi2 = 0;
    for (int i = 0; i < 10; i++) chi2 += (counts[i] - 2000.0) * (counts[i] - 2000.0) / 2000.0;
    assert_true(chi2 < 46.0); /* 9 degrees of freedom, one in a million and a half */
}

/* ---- log probabilities ---- */

static void log_probabilities(void **state) {
    (void)state;
    static float logits[MAX_VOCAB];
    static double as_double[MAX_VOCAB];
    static entry e[MAX_VOCAB];
    for (int round = 0; round < 30; round++) {
        int32_t n_vocab = 1 + (int32_t)random_below(MAX_VOCAB), token = (int32_t)random_below((uint32_t)n_vocab), n = 0;
        float logprob;
        weir_top_logprob best[20];
        fill_logits(logits, as_double, n_vocab, 4, round % 2);
        double total = 0;
        for (int32_t i = 0; i < n_vocab; i++) {
            if (as_double[i] > -INFINITY) e[n++] = (entry){as_double[i], i};
            total += exp(as_double[i]);
        }
        qsort(e, (size_t)n, sizeof e[0], by_logit);
        sampler_logprobs(logits, n_vocab, token, &logprob, best, 20);
        if (as_double[token] == -INFINITY)
            assert_true(logprob == -INFINITY);
        else
            assert_float_equal(logprob, as_double[token] - log(total), 1e-4);
        for (int32_t i = 0; i < 20; i++) {
            assert_int_equal(best[i].token, i < n ? e[i].id : -1);
            if (i < n)
                assert_float_equal(best[i].logprob, e[i].logit - log(total), 1e-4);
            else
                assert_true(best[i].logprob == -INFINITY);
        }
        sampler_logprobs(logits, n_vocab, token, &logprob, NULL, 0);
    }
    const float far[] = {-1e30f, 1e30f, NAN};
    float logprob;
    sampler_logprobs(far, 3, 1, &logprob, NULL, 0);
    assert_float_equal(logprob, 0, 0);
    sampler_logprobs(far, 3, 2, &logprob, NULL, 0);
    assert_true(logprob == -INFINITY);
    sampler_logprobs(far, 3, -1, &logprob, NULL, 0);
    assert_true(logprob == -INFINITY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_exact_probabilities),
        cmocka_unit_test(truncation_off_reaches_every_token),
        cmocka_unit_test(greedy_takes_the_lowest_of_the_best),
        cmocka_unit_test(values_that_are_no_numbers),
        cmocka_unit_test(biases_shift_and_ban),
        cmocka_unit_test(penalties_count_the_window),
        cmocka_unit_test(chains_follow_the_numpy_reference),
        cmocka_unit_test(masks_ban),
        cmocka_unit_test(mirostat_keeps_the_surprise),
        cmocka_unit_test(dry_sees_breakers_across_tokens),
        cmocka_unit_test(the_same_seed_gives_the_same_tokens),
        cmocka_unit_test(seeds_are_independent),
        cmocka_unit_test(log_probabilities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
