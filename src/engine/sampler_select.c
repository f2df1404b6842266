/* Passes over the logits of a vocabulary, and the choice of the few that can matter; see sampler_internal.h. The vocabulary is
 * never sorted: top-k keeps a heap of k behind a threshold, top-p first finds by a histogram of probability mass which logits
 * can matter. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler_internal.h"

enum {
    RUN = 64,        /* logits that a search passes over at once when none is above its threshold */
    N_BUCKETS = 128, /* of the nucleus histogram */
    BUCKETS_PER_NAT = 4,
};

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

/* The greater of each pair; `b` where `a` is NaN. */
static lanes greater(lanes a, lanes b) {
#ifdef __SSE__
    return __builtin_ia32_maxps(a, b);
#else
    return choose(a > b, a, b);
#endif
}

static float greatest_lane(lanes x) {
    float low = x[0] > x[1] ? x[0] : x[1], high = x[2] > x[3] ? x[2] : x[3];
    return low > high ? low : high;
}

static lanes at(const float *x) {
    lanes loaded;
    memcpy(&loaded, x, sizeof loaded);
    return loaded;
}

/* The greatest of logits[first .. end) in each lane, -infinity where there is none but NaN. */
static lanes greatest_lanes(const float *logits, int32_t first, int32_t end) {
    lanes a = all(-INFINITY), b = a, c = a, d = a;
    const float *x = logits + first, *stop = logits + end;
    for (; stop - x >= 4 * N_LANES; x += 4 * N_LANES) {
        a = greater(at(x), a);
        b = greater(at(x + N_LANES), b);
        c = greater(at(x + 2 * N_LANES), c);
        d = greater(at(x + 3 * N_LANES), d);
    }
    for (; x < stop; x += N_LANES) a = greater(load(x, 0, (int32_t)(stop - x)), a);
    return greater(greater(a, b), greater(c, d));
}

static float greatest_value(const float *logits, int32_t first, int32_t end) {
    return greatest_lane(greatest_lanes(logits, first, end));
}

static bool any_above(lanes x, float bound) {
    int_lanes above = x > bound;
    int64_t halves[2];
    memcpy(halves, &above, sizeof halves);
    return (halves[0] | halves[1]) != 0;
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
double sampler_mass(const float *logits, int32_t first, int32_t end, float max, float floor, float temperature) {
    double total = 0;
    for (int32_t run = first; run < end; run += RUN) { /* few enough for sums of floats */
        int32_t stop = run + RUN < end ? run + RUN : end;
        lanes sum = all(0);
        for (int32_t i = run; i < stop; i += N_LANES) sum += weights(load(logits, i, stop), max, floor, temperature);
        total += ((double)sum[0] + sum[1]) + ((double)sum[2] + sum[3]);
    }
    return total;
}

int32_t sampler_find(const float *logits, int32_t first, int32_t end, float max, float temperature, double wanted, double *reached) {
    for (int32_t i = first; i < end; i += N_LANES) {
        lanes w = weights(load(logits, i, end), max, -INFINITY, temperature);
        for (int j = 0; j < N_LANES; j++) {
            *reached += w[j];
            if (wanted < *reached) return i + j;
        }
    }
    return -1;
}

/* ---- selection -------------------------------------------------------------------------------------------------------- */

/* The lowest id of the greatest logit; -1 when all are NaN or -infinity. */
int32_t sampler_greatest(const float *logits, int32_t n) {
    int32_t at = 0;
    float best = -INFINITY;
    for (int32_t run = 0; run < n; run += RUN) {
        lanes most = greatest_lanes(logits, run, run + RUN < n ? run + RUN : n);
        if (!any_above(most, best)) continue;
        best = greatest_lane(most);
        at = run;
    }
    if (best == -INFINITY) return -1;
    while (logits[at] != best) at++;
    return at;
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
void sampler_sort(candidate *c, int32_t n) {
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift_down(c, n, i);
    for (int32_t last = n - 1; last > 0; last--) {
        candidate worst = c[0];
        c[0] = c[last];
        c[last] = worst;
        sift_down(c, last, 0);
    }
}

/* The k best, best first, ties to the lower id. Returns how many there are. */
int32_t sampler_select_top(const float *logits, int32_t n_vocab, candidate *top, int32_t k) {
    int32_t n = 0, i = 0;
    for (; i < n_vocab && n < k; i++)
        if (logits[i] > -INFINITY) top[n++] = (candidate){sampler_bounded(logits[i]), i};
    if (n == k) {
        for (int32_t root = n / 2 - 1; root >= 0; root--) sift_down(top, n, root);
        for (int32_t end; i < n_vocab; i = end) {
            end = i + RUN < n_vocab ? i + RUN : n_vocab;
            if (!any_above(greatest_lanes(logits, i, end), top[0].logit)) continue;
            for (; i < end; i++) {
                if (!(logits[i] > top[0].logit)) continue;
                top[0] = (candidate){sampler_bounded(logits[i]), i};
                sift_down(top, n, 0);
            }
        }
    }
    sampler_sort(top, n);
    return n;
}

static int bucket_of(float below_max) {
    return below_max < (float)N_BUCKETS / BUCKETS_PER_NAT ? (int)(below_max * BUCKETS_PER_NAT) : N_BUCKETS - 1;
}

int32_t sampler_select_nucleus(const float *logits, int32_t n_vocab, float top_p, candidate *out, double *total) {
    double mass[N_BUCKETS] = {0}, reached = 0;
    int32_t best = sampler_greatest(logits, n_vocab), n = 0, kept = 0;
    if (best < 0) return 0;
    const float max = sampler_bounded(logits[best]);
    *total = sampler_mass(logits, 0, n_vocab, max, -INFINITY, 1);
    /* Nearly always the set is among the few that are not far below the best. */
    for (int reach = 6; reach <= 96; reach *= 4) {
        n = sampler_select_above(logits, n_vocab, reach > 32 ? -FLT_MAX : max - (float)reach, out);
        reached = 0;
        memset(mass, 0, sizeof mass);
        for (int32_t i = 0; i < n; i++) {
            double w = exp((double)out[i].logit - max);
            mass[bucket_of(max - out[i].logit)] += w;
            reached += w;
        }
        if (reached >= (double)top_p * *total) break;
    }
    int last = 0;
    for (reached = 0; last < N_BUCKETS - 1; last++) {
        reached += mass[last];
        if (reached >= (double)top_p * *total) break;
    }
    for (int32_t i = 0; i < n; i++)
        if (bucket_of(max - out[i].logit) <= last) out[kept++] = out[i];
    sampler_sort(out, kept);
    return kept;
}

int32_t sampler_select_above(const float *logits, int32_t n_vocab, float least, candidate *out) {
    int32_t n = 0;
    for (int32_t run = 0, end; run < n_vocab; run = end) {
        end = run + RUN < n_vocab ? run + RUN : n_vocab;
        if (!(greatest_value(logits, run, end) >= least)) continue;
        for (int32_t i = run; i < end; i++)
            if (logits[i] >= least && logits[i] > -INFINITY) out[n++] = (candidate){sampler_bounded(logits[i]), i};
    }
    return n;
}

/* ---- measures of all logits --------------------------------------------------------------------------------------------- */

bool sampler_measure(const float *logits, int32_t n_vocab, sampler_moments *m) {
    m->best = sampler_greatest(logits, n_vocab);
    m->n = 0;
    if (m->best < 0) return false;
    const float max = sampler_bounded(logits[m->best]);
    double total = 0, weighted = 0, sum = 0, squares = 0;
    for (int32_t run = 0; run < n_vocab; run += RUN) { /* few enough for sums of floats */
        int32_t end = run + RUN < n_vocab ? run + RUN : n_vocab;
        lanes sums[4] = {all(0), all(0), all(0), all(0)};
        int_lanes n_here = {0};
        for (int32_t i = run; i < end; i += N_LANES) {
            lanes x = load(logits, i, end), w = weights(x, max, -INFINITY, 1);
            int_lanes counts = x > -INFINITY; /* false for NaN, and beyond the end */
            lanes below = choose(counts, choose(x > FLT_MAX, all(FLT_MAX), x) - max, all(0));
            sums[0] += w;
            sums[1] += w * choose(below > -87, below, all(0)); /* never infinity times zero */
            sums[2] += below;
            sums[3] += below * below;
            n_here -= counts; /* true is -1 */
        }
        total += ((double)sums[0][0] + sums[0][1]) + ((double)sums[0][2] + sums[0][3]);
        weighted += ((double)sums[1][0] + sums[1][1]) + ((double)sums[1][2] + sums[1][3]);
        sum += ((double)sums[2][0] + sums[2][1]) + ((double)sums[2][2] + sums[2][3]);
        squares += ((double)sums[3][0] + sums[3][1]) + ((double)sums[3][2] + sums[3][3]);
        m->n += n_here[0] + n_here[1] + n_here[2] + n_here[3];
    }
    m->log_sum = log(total);
    m->entropy = m->log_sum - weighted / total;
    const double mean = sum / m->n, variance = squares / m->n - mean * mean;
    m->deviation = variance > 0 ? sqrt(variance) : 0;
    return true;
}

/* Not vectorised: a chain that begins with it is rare. */
int32_t sampler_select_typical(const float *logits, int32_t n_vocab, double typical_p, candidate *out) {
    double mass[N_BUCKETS] = {0}, reached = 0;
    sampler_moments m;
    int32_t n = 0;
    if (!sampler_measure(logits, n_vocab, &m)) return 0;
    const double max = sampler_bounded(logits[m.best]);
    for (int pass = 0, last = 0; pass < 2; pass++) {
        for (int32_t i = 0; i < n_vocab; i++) {
            if (!(logits[i] > -INFINITY)) continue;
            const double surprise = m.log_sum - (sampler_bounded(logits[i]) - max);
            const int bucket = bucket_of((float)fabs(surprise - m.entropy));
            if (pass == 0)
                mass[bucket] += exp(-surprise);
            else if (bucket <= last)
                out[n++] = (candidate){sampler_bounded(logits[i]), i};
        }
        /* The sums may end a little below 1. */
        for (; pass == 0 && last < N_BUCKETS - 1; last++) {
            reached += mass[last];
            if (reached > typical_p + 1e-9) break;
        }
    }
    return n;
}

void sampler_copy_masked(const float *logits, int32_t n_vocab, const uint32_t *mask, float *out) {
    /* The lanes of each four bits. */
    int_lanes taken[16];
    for (int bits = 0; bits < 16; bits++)
        for (int j = 0; j < N_LANES; j++) taken[bits][j] = bits >> j & 1 ? -1 : 0;
    const int32_t n_whole = n_vocab / 32;
    for (int32_t w = 0; w < n_whole; w++) {
        for (int32_t j = 0; j < 8; j++) {
            int32_t i = 32 * w + 4 * j;
            lanes x = choose(taken[mask[w] >> 4 * j & 15], load(logits, i, n_vocab), all(-INFINITY));
            memcpy(out + i, &x, sizeof x);
        }
    }
    for (int32_t i = 32 * n_whole; i < n_vocab; i++) out[i] = mask[i / 32] >> i % 32 & 1 ? logits[i] : -INFINITY;
}
