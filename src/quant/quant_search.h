/* Inside src/quant only: the search for scales that quantisers share. A block is quantised so that the weighted squared error
 * sum_i w[i] (x[i] - y[i])^2 becomes small, y being what the dequantiser will make. For given codes q the best scale (and
 * offset) is the solution of a linear least squares problem; for a given scale the best codes are the nearest levels. So: try a
 * range of scales, keep the one whose least squares solution has the smallest error, then alternate the two steps while the
 * error falls. All sums have a fixed order: results depend neither on threads nor on the instruction set. */
#ifndef WEIR_QUANT_SEARCH_H
#define WEIR_QUANT_SEARCH_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "quant/quant_blocks.h"

/* The head of a quantiser. These files are compiled once more for AVX2, with names that say so: the arithmetic is the same, in
 * the same order, without fused operations. */
#ifndef QUANT_SUFFIX
#define QUANT_SUFFIX
#endif
#define QUANT_PASTE(a, b) a##b
#define QUANT_NAME(a, b) QUANT_PASTE(a, b)
#define QUANTISER(name)                                                                                                        \
    void QUANT_NAME(quant_quantise_##name, QUANT_SUFFIX)(const float *x, const float *importance, void *blocks, size_t n_blocks)

/* ---- vectors of eight ------------------------------------------------------------------------------------------------- */

enum { LANES = 8 };
typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));

/* Every function with a vector is inlined, so that how vectors are passed, which -Wpsabi speaks of, does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"
#define INLINE static inline __attribute__((always_inline))

INLINE vf vf_set(float f) {
    return (vf){f, f, f, f, f, f, f, f};
}
INLINE vf vf_select(vi mask, vf a, vf b) {
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}
INLINE vf vf_min(vf a, vf b) {
    return vf_select(a < b, a, b);
}
INLINE vf vf_max(vf a, vf b) {
    return vf_select(a > b, a, b);
}
INLINE vf vf_abs(vf a) {
    return (vf)((vi)a & 0x7fffffff);
}
/* To the nearest whole number, ties to even, for |v| < 2^22: the sum has no bits for a fraction. */
INLINE vf vf_round(vf v) {
    return (v + 0x1.8p23f) - 0x1.8p23f;
}
INLINE float vf_sum(vf v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
INLINE float vf_highest(vf v) {
    float highest = v[0];
    for (int i = 1; i < LANES; i++) highest = v[i] > highest ? v[i] : highest;
    return highest;
}

/* ---- a block ---------------------------------------------------------------------------------------------------------- */

/* Up to 256 values, scaled by a power of two so that the largest magnitude is in [0.5, 1) and no square can underflow, and the
 * weights of their errors. */
typedef struct values {
    vf x[SUPER / LANES], w[SUPER / LANES];
    float unit; /* what 1 stands for */
} values;

/* Fills `v` from n values; false when all are zero. The error of a value weighs its importance (NULL: 1) times the root of
 * x^2 + mean of x^2: large values must be right, which shows the more the fewer bits there are (docs/quantize.md). */
INLINE bool values_load(values *v, const float *x, const float *importance, int n) {
    vf highest = vf_set(0), sum = vf_set(0);
    memcpy(v->x, x, (size_t)n * sizeof *x);
    for (int i = 0; i < n / LANES; i++) highest = vf_max(highest, vf_abs(v->x[i]));
    int exponent;
    float largest = vf_highest(highest);
    if (!(largest > 0x1p-100f)) return false;
    frexpf(largest, &exponent);
    v->unit = ldexpf(1, exponent);
    for (int i = 0; i < n / LANES; i++) {
        v->x[i] *= ldexpf(1, -exponent);
        sum += v->x[i] * v->x[i];
    }
    float mean_square = vf_sum(sum) / (float)n;
    for (int i = 0; i < n / LANES; i++) {
        vf square = v->x[i] * v->x[i] + mean_square;
        for (int l = 0; l < LANES; l++) square[l] = sqrtf(square[l]);
        vf given = vf_set(1);
        if (importance) memcpy(&given, importance + i * LANES, sizeof given);
        v->w[i] = given * square;
    }
    return true;
}

/* The weights of n values without importance as formats with enough levels want them: all errors count alike. */
INLINE void values_weigh_alike(values *v, int n) {
    for (int i = 0; i < n / LANES; i++) v->w[i] = vf_set(1);
}

/* ---- levels ----------------------------------------------------------------------------------------------------------- */

/* What a code can stand for, before scaling: the whole numbers low..high, or the n ascending numbers of a table. */
typedef struct levels {
    float low, high;
    const float *table;
    int n;
} levels;

INLINE vf nearest(vf v, const levels *l) {
    if (l->table == NULL) return vf_round(vf_min(vf_max(v, vf_set(l->low)), vf_set(l->high)));
    vf level = vf_set(l->table[0]);
    for (int i = 1; i < l->n; i++) {
        vi above = v > vf_set((l->table[i - 1] + l->table[i]) * 0.5f);
        level += (vf)((vi)vf_set(l->table[i] - l->table[i - 1]) & above);
    }
    return level;
}

/* 1 / scale, and 0 for a scale of 0, whose codes do not matter but must exist. */
INLINE float inverse_of(float scale) {
    return scale == 0 ? 0 : 1 / scale;
}

/* codes[n]: each value's level as its index, 0 = the lowest. */
INLINE void put_codes(const vf *x, int n_vec, float scale, float offset, const levels *l, uint8_t *codes) {
    float inverse = inverse_of(scale);
    for (int i = 0; i < n_vec; i++) {
        vf level = nearest((x[i] - offset) * inverse, l);
        for (int k = 0; k < LANES; k++) {
            int code = l->table ? 0 : (int)(level[k] - l->low);
            while (l->table && code < l->n - 1 && l->table[code] < level[k]) code++;
            codes[i * LANES + k] = (uint8_t)code;
        }
    }
}

/* ---- one scale: x ~ scale * level ------------------------------------------------------------------------------------- */

/* The scales to try: the largest magnitude becomes the level `first`, `first + step`, ... */
typedef struct trials {
    float first, step;
    int n;
    bool alike; /* without importance all errors count alike */
} trials;

/* Sums of the least squares problem of one scale: the best one is xq / qq, and it takes xq^2 / qq off the error. */
typedef struct scale_sums {
    float xq, qq;
} scale_sums;

INLINE scale_sums sums_of_scale(const vf *x, const vf *w, int n_vec, float inverse, const levels *l) {
    vf xq = vf_set(0), qq = vf_set(0);
    for (int i = 0; i < n_vec; i++) {
        vf level = nearest(x[i] * inverse, l), weighted = w[i] * level;
        xq += weighted * x[i];
        qq += weighted * level;
    }
    return (scale_sums){vf_sum(xq), vf_sum(qq)};
}

INLINE float gain_of(scale_sums s) {
    return s.qq > 0 ? s.xq * s.xq / s.qq : 0;
}

/* The best scale found, of either sign; 0 when all x are 0. */
INLINE float fit_scale(const vf *x, const vf *w, int n_vec, const levels *l, trials t) {
    vf highest = vf_set(0);
    for (int i = 0; i < n_vec; i++) highest = vf_max(highest, vf_abs(x[i]));
    float largest = vf_highest(highest), best_gain = 0, best = 0;
    if (!(largest > 0x1p-60f)) return 0;
    for (int k = 0; k < 2 * t.n; k++) {
        float inverse = (t.first + t.step * (float)(k / 2)) / largest;
        scale_sums s = sums_of_scale(x, w, n_vec, k % 2 ? -inverse : inverse, l);
        if (gain_of(s) <= best_gain) continue;
        best_gain = gain_of(s);
        best = s.xq / s.qq;
    }
    for (int round = 0; round < 4 && best != 0; round++) {
        scale_sums s = sums_of_scale(x, w, n_vec, 1 / best, l);
        if (gain_of(s) <= best_gain) break;
        best_gain = gain_of(s);
        best = s.xq / s.qq;
    }
    return best;
}

/* ---- a scale and an offset: x ~ scale * code + offset, code 0..n_max -------------------------------------------------- */

typedef struct affine {
    float scale, offset;
} affine;

/* Sums of the least squares problem of a scale and an offset, for given codes q. */
typedef struct code_sums {
    float w, x, q, qq, xq;
} code_sums;

INLINE code_sums sums_of_codes(const vf *x, const vf *w, int n_vec, affine a, const levels *l) {
    vf vw = vf_set(0), vx = vf_set(0), vq = vf_set(0), vqq = vf_set(0), vxq = vf_set(0);
    float inverse = inverse_of(a.scale);
    for (int i = 0; i < n_vec; i++) {
        vf q = nearest((x[i] - a.offset) * inverse, l), wq = w[i] * q;
        vw += w[i];
        vx += w[i] * x[i];
        vq += wq;
        vqq += wq * q;
        vxq += wq * x[i];
    }
    return (code_sums){vf_sum(vw), vf_sum(vx), vf_sum(vq), vf_sum(vqq), vf_sum(vxq)};
}

/* The error of x ~ scale * q + offset, up to sum w x^2, which is the same for all. */
INLINE float error_of(code_sums s, affine a) {
    return a.scale * (a.scale * s.qq - 2 * s.xq) + a.offset * (a.offset * s.w - 2 * s.x) + 2 * a.scale * a.offset * s.q;
}

/* The least squares solution for the codes that `a` gives, and its error. With `negative` the offset must not be above 0. */
INLINE float refit_affine(const vf *x, const vf *w, int n_vec, const levels *l, bool negative, affine a, affine *best) {
    code_sums s = sums_of_codes(x, w, n_vec, a, l);
    float determinant = s.w * s.qq - s.q * s.q;
    if (determinant > 1e-6f * s.w * s.qq) {
        *best = (affine){(s.w * s.xq - s.x * s.q) / determinant, (s.qq * s.x - s.q * s.xq) / determinant};
    } else { /* all codes are the same */
        *best = (affine){0, s.x / s.w};
    }
    if (negative && best->offset > 0) *best = (affine){s.qq > 0 ? s.xq / s.qq : 0, 0};
    return error_of(s, *best);
}

INLINE affine fit_affine(const vf *x, const vf *w, int n_vec, const levels *l, bool negative, trials t) {
    vf high = x[0], low = x[0];
    for (int i = 1; i < n_vec; i++) {
        high = vf_max(high, x[i]);
        low = vf_min(low, x[i]);
    }
    float highest = vf_highest(high), lowest = -vf_highest(-low);
    if (negative && lowest > 0) lowest = 0;
    affine best = {0, negative && lowest > 0 ? 0 : lowest}, fitted;
    if (!(highest - lowest > 0x1p-60f)) return best;
    float best_error = INFINITY;
    for (int k = 0; k < t.n; k++) {
        affine a = {(highest - lowest) / (t.first + t.step * (float)k), lowest};
        float error = refit_affine(x, w, n_vec, l, negative, a, &fitted);
        if (error >= best_error) continue;
        best_error = error;
        best = fitted;
    }
    for (int round = 0; round < 4 && best.scale > 0; round++) {
        float error = refit_affine(x, w, n_vec, l, negative, best, &fitted);
        if (error >= best_error) break;
        best_error = error;
        best = fitted;
    }
    return best.scale < 0 ? (affine){0, best.offset} : best;
}

/* ---- scales that are themselves quantised ----------------------------------------------------------------------------- */

/* The value of a 16-bit float scale in the block's own unit, and its bits as they are stored. */
INLINE float stored_scale(const values *v, float scale, uint8_t bytes[2]) {
    uint16_t half = quant_f32_to_f16(scale * v->unit);
    bytes[0] = (uint8_t)half;
    bytes[1] = (uint8_t)(half >> 8);
    return quant_f16_to_f32(half) / v->unit;
}

#endif
