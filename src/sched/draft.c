/* See draft.h. */
#include "sched/draft.h"

#include <math.h>

/* Of the time of a first row, until it was measured: what a row more costs. */
static const double first_slope = 0.2;
/* Steps are only ever slower than they should be: quick ones count for more. */
static const double weight_quicker = 0.3, weight_slower = 0.1;
/* The product of all speeds must grow by this for guesses to be made. */
static const double least_gain = 1.05;
/* Guesses are chosen because they look good, so they are taken for less likely by a part of what the estimate may err by. */
static const double caution = 0.5;
/* How many guesses the expectation without any experience stands for. */
static const double trust_in_first = 2, trust_in_others = 6;

/* ---- odds ------------------------------------------------------------------------------------------------------------- */

static int class_of(int32_t match_length) {
    static const int32_t last[DRAFT_CLASSES - 1] = {2, 3, 4, 6, 8, 12, 16, 24, 32};
    int class = 0;
    while (class < DRAFT_CLASSES - 1 && match_length > last[class]) class ++;
    return class;
}

void draft_odds_learn(draft_odds *o, int32_t match_length, bool held, float memory) {
    const int class = class_of(match_length);
    if (o->tried[class] >= memory) {
        const float fade = (memory - 1) / o->tried[class];
        o->tried[class] *= fade;
        o->held[class] *= fade;
    }
    o->tried[class] += 1;
    o->held[class] += held;
}

double draft_odds_of(const draft_odds *own, const draft_odds *all, int32_t match_length) {
    static const double first[DRAFT_CLASSES] = {0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.9, 0.9};
    const int class = class_of(match_length);
    const double others = (all->held[class] + trust_in_first * first[class]) / (all->tried[class] + trust_in_first);
    const double n = own->tried[class] + trust_in_others, odds = (own->held[class] + trust_in_others * others) / n;
    const double cautious = odds - caution * sqrt(fabs(odds * (1 - odds)) / n);
    return cautious > 0 ? cautious : 0;
}

/* ---- costs ------------------------------------------------------------------------------------------------------------ */

void draft_costs_learn(draft_costs *c, int32_t n_rows, int64_t us) {
    if (n_rows < 1 || n_rows > DRAFT_MAX_ROWS || us < 1) return;
    const double before = draft_costs_of(c, n_rows), sample = (double)us;
    if (before == 0) {
        c->us[n_rows] = sample;
        return;
    }
    double weight = sample < before ? weight_quicker : weight_slower;
    if (c->us[n_rows] == 0) weight = 0.5; /* the first measurement against what was to be expected */
    const double after = before + weight * (sample - before);
    /* What changed may be this number of rows, or the machine and the length of the contexts: half of it goes to each. */
    const double common = c->us[n_rows] == 0 ? 1 : sqrt(after / before);
    for (int32_t r = 1; r <= DRAFT_MAX_ROWS; r++) c->us[r] *= common;
    c->us[n_rows] = after;
}

double draft_costs_of(const draft_costs *c, int32_t n_rows) {
    int32_t below = n_rows, above = n_rows;
    while (below > 0 && c->us[below] == 0) below--;
    while (above <= DRAFT_MAX_ROWS && c->us[above] == 0) above++;
    const bool has_below = below > 0, has_above = above <= DRAFT_MAX_ROWS;
    if (!has_below && !has_above) return 0;
    if (below == n_rows) return c->us[n_rows];
    if (has_below && has_above) return c->us[below] + (c->us[above] - c->us[below]) * (n_rows - below) / (above - below);
    const int32_t known = has_below ? below : above;
    int32_t second = below - 1;
    while (second > 0 && c->us[second] == 0) second--;
    double slope = first_slope * c->us[known] / (1 + first_slope * (known - 1));
    if (has_below && second > 0) slope = (c->us[below] - c->us[second]) / (below - second);
    return c->us[known] + (slope > 0 ? slope : 0) * (n_rows - known);
}

/* ---- choice ----------------------------------------------------------------------------------------------------------- */

/* The share whose next guess adds most to the logarithm of its expected tokens, given how many each has; -1 = none. */
static int32_t best_share(const draft_share *shares, int32_t n_shares, const int32_t *taken, const double *expected, double *gain) {
    int32_t best = -1;
    *gain = 0;
    for (int32_t i = 0; i < n_shares; i++) {
        if (taken[i] >= shares[i].n_most) continue;
        const double relative = shares[i].reach[taken[i]] / expected[i];
        if (relative <= *gain) continue;
        *gain = relative;
        best = i;
    }
    *gain = log1p(*gain);
    return best;
}

/* Guesses were likely, but too dear by what is known of costs. Now and then two are made all the same. */
static void probe(draft_costs *c, draft_share *shares, int32_t n_shares, int32_t room) {
    int32_t likely = -1;
    for (int32_t i = 0; i < n_shares && likely < 0; i++)
        if (shares[i].n_most > 0 && shares[i].reach[0] >= 0.5) likely = i;
    if (likely < 0 || ++c->n_declined < DRAFT_PROBE_STEPS) return;
    c->n_declined = 0;
    shares[likely].n = shares[likely].n_most < 2 ? shares[likely].n_most : 2;
    if (shares[likely].n > room) shares[likely].n = room;
}

void draft_choose(draft_costs *c, draft_share *shares, int32_t n_shares, int32_t n_rows, int32_t room) {
    int32_t taken[DRAFT_MAX_SHARES] = {0};
    double expected[DRAFT_MAX_SHARES], base = draft_costs_of(c, n_rows), cost = base, sum = 0, best = log(least_gain);
    bool any = false;
    if (n_shares > DRAFT_MAX_SHARES) n_shares = DRAFT_MAX_SHARES;
    for (int32_t i = 0; i < n_shares; i++) {
        shares[i].n = 0;
        expected[i] = 1;
    }
    if (n_rows + room > DRAFT_MAX_ROWS) room = DRAFT_MAX_ROWS - n_rows;
    if (base == 0 || room < 1) return;
    for (int32_t rows = n_rows + 1; rows <= n_rows + room; rows++) {
        double gain;
        const int32_t i = best_share(shares, n_shares, taken, expected, &gain);
        if (i < 0) break;
        expected[i] += shares[i].reach[taken[i]++];
        sum += gain;
        const double next = draft_costs_of(c, rows);
        if (next > cost) cost = next; /* more rows never take less, whatever was measured */
        if (sum - n_rows * log(cost / base) <= best) continue;
        best = sum - n_rows * log(cost / base);
        any = true;
        for (int32_t j = 0; j < n_shares; j++) shares[j].n = taken[j];
    }
    if (any)
        c->n_declined = 0;
    else
        probe(c, shares, n_shares, room);
}
