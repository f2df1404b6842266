/* Quantising to the grid formats IQ2 and IQ3: groups of 8 or 4 magnitudes become the nearest point of a grid, with signs beside
 * it. Every point is compared, for a range of scales of each sub-block; then the small integer scales are searched in turn with
 * the common one, as in quantise_k.c. */
#include <pthread.h>

#include "quant/quant_search.h"
#include "quant/quant_grids.inc"

enum { OCTETS = SUPER / 8, MAX_POINTS = 1024, MAX_SUBS = 16, ROUNDS = 2, N_TRIALS = 6 };

/* ---- grids ------------------------------------------------------------------------------------------------------------ */

/* The levels of coordinate d of all points, and their squares, so that eight points are compared at once. */
typedef struct grid {
    float level[8][MAX_POINTS], square[8][MAX_POINTS];
    int n_dims, n_points;
    float highest;
} grid;

static grid iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s;

static void make_grid(grid *g, const uint16_t *points, int n_points, int n_dims, int bits, const float *of_code) {
    g->n_dims = n_dims;
    g->n_points = n_points;
    for (int p = 0; p < n_points; p++) {
        for (int d = 0; d < n_dims; d++) {
            float level = of_code[points[p] >> (bits * d) & ((1 << bits) - 1)];
            g->level[d][p] = level;
            g->square[d][p] = level * level;
            g->highest = level > g->highest ? level : g->highest;
        }
    }
}

#define LENGTH(array) ((int)(sizeof(array) / sizeof(array)[0]))

static void make_grids(void) {
    make_grid(&iq2_xxs, grid_iq2_xxs, LENGTH(grid_iq2_xxs), 8, 2, quant_levels_iq2);
    make_grid(&iq2_xs, grid_iq2_xs, LENGTH(grid_iq2_xs), 8, 2, quant_levels_iq2);
    make_grid(&iq2_s, grid_iq2_s, LENGTH(grid_iq2_s), 8, 2, quant_levels_iq2);
    make_grid(&iq3_xxs, grid_iq3_xxs, LENGTH(grid_iq3_xxs), 4, 3, quant_levels_iq3_xxs);
    make_grid(&iq3_s, grid_iq3_s, LENGTH(grid_iq3_s), 4, 3, quant_levels_iq3_s);
}

static pthread_once_t grids_made = PTHREAD_ONCE_INIT;

/* ---- a block ---------------------------------------------------------------------------------------------------------- */

/* Magnitudes times weights, weights, and signs (1 = minus). With even signs, the value of an odd octet whose sign costs least
 * is taken as the negative of its magnitude. */
typedef struct octet {
    float wx[8], w[8];
    uint8_t signs;
} octet;

static void make_octets(const values *v, bool even, octet octets[OCTETS]) {
    for (int o = 0; o < OCTETS; o++) {
        octet *t = &octets[o];
        int cheapest = 0;
        float least = INFINITY;
        t->signs = 0;
        for (int i = 0; i < 8; i++) {
            float x = v->x[o][i], w = v->w[o][i];
            t->w[i] = w;
            t->wx[i] = w * fabsf(x);
            t->signs |= (uint8_t)((x < 0) << i);
            if (t->wx[i] * fabsf(x) >= least) continue;
            least = t->wx[i] * fabsf(x);
            cheapest = i;
        }
        if (!even || __builtin_popcount(t->signs) % 2 == 0) continue;
        t->signs ^= (uint8_t)(1 << cheapest);
        t->wx[cheapest] = -t->wx[cheapest];
    }
}

/* The point with the least sum of w (x - scale level)^2 over the coordinates; the first of equals. */
INLINE int nearest_point(const grid *g, int n_dims, const float *wx, const float *w, float scale) {
    vf best = vf_set(INFINITY);
    vi best_at = {0}, at = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int p = 0; p < g->n_points; p += LANES, at += LANES) {
        vf cost = vf_set(0), level, square;
        for (int d = 0; d < n_dims; d++) {
            memcpy(&level, &g->level[d][p], sizeof level);
            memcpy(&square, &g->square[d][p], sizeof square);
            cost += vf_set(-2 * scale * wx[d]) * level + vf_set(scale * scale * w[d]) * square;
        }
        vi lower = cost < best;
        best = vf_select(lower, cost, best);
        best_at = (at & lower) | (best_at & ~lower);
    }
    int chosen = 0;
    for (int l = 1; l < LANES; l++) {
        if (best[l] < best[chosen] || (best[l] == best[chosen] && best_at[l] < best_at[chosen])) chosen = l;
    }
    return best_at[chosen];
}

/* Sums of the least squares problem of a sub-block's scale, with the points nearest for `scale`, which go to points[]. */
INLINE scale_sums sums_of_points(const grid *g, int n_dims, const octet *octets, int n_octets, float scale, uint16_t *points) {
    scale_sums s = {0, 0};
    for (int o = 0; o < n_octets; o++) {
        for (int first = 0; first < 8; first += n_dims) {
            const float *wx = octets[o].wx + first, *w = octets[o].w + first;
            int p = nearest_point(g, n_dims, wx, w, scale);
            points[(o * 8 + first) / n_dims] = (uint16_t)p;
            for (int d = 0; d < n_dims; d++) {
                s.xq += wx[d] * g->level[d][p];
                s.qq += w[d] * g->square[d][p];
            }
        }
    }
    return s;
}

/* The form of a format: octets in a sub-block; signs even or free; the stored float is the unit, of which a sub-block's scale
 * is 2 s + 1, times `factor`. */
typedef struct grid_form {
    const grid *grid;
    int n_octets;
    bool even;
    float factor;
} grid_form;

typedef struct grid_super {
    uint8_t scale[2], scales[MAX_SUBS], signs[OCTETS];
    uint16_t points[2 * OCTETS];
} grid_super;

INLINE float fit_sub(const grid *g, int n_dims, const octet *octets, int n_octets) {
    uint16_t points[8];
    float largest = 0, best = 0, best_gain = 0;
    for (int o = 0; o < n_octets; o++) {
        for (int i = 0; i < 8; i++) largest = fmaxf(largest, octets[o].w[i] > 0 ? fabsf(octets[o].wx[i]) / octets[o].w[i] : 0);
    }
    for (int k = 0; k < N_TRIALS && largest > 0x1p-60f; k++) {
        float scale = largest / (g->highest * (0.55f + 0.15f * (float)k));
        scale_sums s = sums_of_points(g, n_dims, octets, n_octets, scale, points);
        if (s.xq <= 0 || gain_of(s) <= best_gain) continue;
        best_gain = gain_of(s);
        best = s.xq / s.qq;
    }
    return best;
}

/* The integer scale near *chosen with the least error, which is returned; its points go to `out`. */
INLINE float choose_sub(const grid *g, int n_dims, const octet *octets, int n_octets, float unit, int *chosen, scale_sums *sums,
                        uint16_t *out) {
    uint16_t points[8];
    float best = INFINITY;
    scale_sums best_sums = {0, 0};
    int centre = *chosen;
    for (int s = centre > 0 ? centre - 1 : 0; s <= centre + 1 && s < 16; s++) {
        float scale = unit * (float)(2 * s + 1);
        scale_sums here = sums_of_points(g, n_dims, octets, n_octets, scale, points);
        float error = scale * (scale * here.qq - 2 * here.xq);
        if (error >= best) continue;
        best = error;
        best_sums = here;
        *chosen = s;
        memcpy(out, points, (size_t)(n_octets * 8 / n_dims) * sizeof *out);
    }
    float multiple = (float)(2 * *chosen + 1);
    sums->xq += multiple * best_sums.xq;
    sums->qq += multiple * multiple * best_sums.qq;
    return best;
}

INLINE void fit_grid(const values *v, const grid_form *f, int n_dims, grid_super *out) {
    octet octets[OCTETS];
    make_octets(v, f->even, octets);
    memset(out, 0, sizeof *out);
    int n_subs = OCTETS / f->n_octets, chosen[MAX_SUBS], n_points = f->n_octets * 8 / n_dims;
    float fitted[MAX_SUBS], highest = 0, best_error = INFINITY;
    for (int s = 0; s < n_subs; s++) {
        fitted[s] = fit_sub(f->grid, n_dims, octets + s * f->n_octets, f->n_octets);
        highest = fmaxf(highest, fitted[s]);
    }
    float unit = highest / 31;
    for (int s = 0; s < n_subs; s++) {
        float exact = (fitted[s] * inverse_of(unit) - 1) / 2;
        chosen[s] = exact < 0 ? 0 : exact > 15 ? 15 : (int)rintf(exact);
    }
    for (int round = 0; round < ROUNDS; round++) {
        grid_super here;
        float stored = stored_scale(v, unit / f->factor, here.scale) * f->factor, error = 0;
        scale_sums sums = {0, 0};
        for (int s = 0; s < n_subs; s++) {
            error += choose_sub(f->grid, n_dims, octets + s * f->n_octets, f->n_octets, stored, &chosen[s], &sums,
                                here.points + s * n_points);
            here.scales[s] = (uint8_t)chosen[s];
        }
        if (error >= best_error) break;
        best_error = error;
        *out = here;
        if (!(sums.qq > 0) || sums.xq <= 0) break;
        unit = sums.xq / sums.qq;
    }
    for (int o = 0; o < OCTETS; o++) out->signs[o] = octets[o].signs;
}

/* ---- the formats ------------------------------------------------------------------------------------------------------ */

static void put_u32(uint8_t *bytes, uint32_t value) {
    for (int i = 0; i < 4; i++) bytes[i] = (uint8_t)(value >> (8 * i));
}

static void put_nibble(uint8_t *bytes, int i, unsigned value) {
    bytes[i / 2] |= (uint8_t)(value << (i % 2 * 4));
}

/* Loads block k and fits it; false when it is all zero. */
#define FIT(n_dims)                                                                                                            \
    values v;                                                                                                                  \
    grid_super s;                                                                                                              \
    memset(b, 0, sizeof *b);                                                                                                   \
    if (!values_load(&v, x + k * SUPER, importance ? importance + k * SUPER : NULL, SUPER)) continue;                          \
    fit_grid(&v, &form, n_dims, &s);                                                                                           \
    memcpy(b->scale, s.scale, sizeof b->scale)

QUANTISER(iq2_xxs) {
    static const grid_form form = {&iq2_xxs, 4, true, 0.125f};
    block_iq2_xxs *b = blocks;
    pthread_once(&grids_made, make_grids);
    for (size_t k = 0; k < n_blocks; k++, b++) {
        FIT(8);
        for (int g = 0; g < SUPER / 32; g++) {
            uint32_t signs = (uint32_t)s.scales[g] << 28;
            for (int i = 0; i < 4; i++) {
                b->groups[g][i] = (uint8_t)s.points[4 * g + i];
                signs |= (uint32_t)(s.signs[4 * g + i] & 127) << (7 * i);
            }
            put_u32(b->groups[g] + 4, signs);
        }
    }
}

QUANTISER(iq2_xs) {
    static const grid_form form = {&iq2_xs, 2, true, 0.125f};
    block_iq2_xs *b = blocks;
    pthread_once(&grids_made, make_grids);
    for (size_t k = 0; k < n_blocks; k++, b++) {
        FIT(8);
        for (int i = 0; i < OCTETS; i++) {
            unsigned code = s.points[i] | (unsigned)(s.signs[i] & 127) << 9;
            b->codes[i][0] = (uint8_t)code;
            b->codes[i][1] = (uint8_t)(code >> 8);
        }
        for (int i = 0; i < SUPER / 16; i++) put_nibble(b->scales, i, s.scales[i]);
    }
}

QUANTISER(iq2_s) {
    static const grid_form form = {&iq2_s, 2, false, 0.125f};
    block_iq2_s *b = blocks;
    pthread_once(&grids_made, make_grids);
    for (size_t k = 0; k < n_blocks; k++, b++) {
        FIT(8);
        memcpy(b->signs, s.signs, sizeof b->signs);
        for (int i = 0; i < OCTETS; i++) {
            b->indices[i] = (uint8_t)s.points[i];
            b->high[i / 4] |= (uint8_t)(s.points[i] >> 8 << (i % 4 * 2));
        }
        for (int i = 0; i < SUPER / 16; i++) put_nibble(b->scales, i, s.scales[i]);
    }
}

QUANTISER(iq3_xxs) {
    static const grid_form form = {&iq3_xxs, 4, true, 0.25f};
    block_iq3_xxs *b = blocks;
    pthread_once(&grids_made, make_grids);
    for (size_t k = 0; k < n_blocks; k++, b++) {
        FIT(4);
        for (int i = 0; i < SUPER / 4; i++) b->indices[i] = (uint8_t)s.points[i];
        for (int g = 0; g < SUPER / 32; g++) {
            uint32_t signs = (uint32_t)s.scales[g] << 28;
            for (int i = 0; i < 4; i++) signs |= (uint32_t)(s.signs[4 * g + i] & 127) << (7 * i);
            put_u32(b->signs[g], signs);
        }
    }
}

QUANTISER(iq3_s) {
    static const grid_form form = {&iq3_s, 4, false, 1};
    block_iq3_s *b = blocks;
    pthread_once(&grids_made, make_grids);
    for (size_t k = 0; k < n_blocks; k++, b++) {
        FIT(4);
        memcpy(b->signs, s.signs, sizeof b->signs);
        for (int i = 0; i < SUPER / 4; i++) {
            b->indices[i] = (uint8_t)s.points[i];
            b->high[i / 8] |= (uint8_t)(s.points[i] >> 8 << (i % 8));
        }
        for (int i = 0; i < SUPER / 32; i++) put_nibble(b->scales, i, s.scales[i]);
    }
}
