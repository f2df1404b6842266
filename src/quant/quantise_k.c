/* Quantising to formats whose sub-blocks have small integer scales (and minima): the K formats and IQ4_XS. The sub-blocks are
 * fitted alone first; then their integers are searched near what the fit says, in turn with the common scale, which is the
 * least squares solution for the integers and codes so far. */
#include "quant/quant_search.h"

enum { MAX_SUBS = 16, ROUNDS = 3 };

/* ---- one scale a sub-block -------------------------------------------------------------------------------------------- */

typedef struct scale_super {
    uint8_t scale[2];
    int8_t scales[MAX_SUBS];
    uint8_t codes[SUPER];
} scale_super;

/* The form of a format: sub-blocks of n_vec vectors, scales low..high, levels, and the trials of the first fit. */
typedef struct scale_form {
    int n_vec, low, high;
    levels levels;
    trials trials;
} scale_form;

/* The integer scale near `centre` with the smallest error; `*error` grows by that error, and the sums of the common scale grow.
 */
INLINE int choose_scale(const vf *x, const vf *w, const scale_form *f, float unit, int centre, scale_sums *sums, float *error) {
    scale_sums best_sums = {0, 0};
    float best = INFINITY;
    int chosen = 0;
    for (int s = centre - 1; s <= centre + 1; s++) {
        if (s < f->low || s > f->high) continue;
        float scale = unit * (float)s;
        scale_sums here = sums_of_scale(x, w, f->n_vec, inverse_of(scale), &f->levels);
        float e = scale * (scale * here.qq - 2 * here.xq);
        if (e >= best) continue;
        best = e;
        chosen = s;
        best_sums = here;
    }
    *error += best;
    sums->xq += (float)chosen * best_sums.xq;
    sums->qq += (float)chosen * (float)chosen * best_sums.qq;
    return chosen;
}

INLINE void fit_scales(const values *v, const scale_form *f, scale_super *out) {
    float fitted[MAX_SUBS], best_error = INFINITY, extreme = 0;
    int n_subs = SUPER / LANES / f->n_vec, chosen[MAX_SUBS];
    for (int s = 0; s < n_subs; s++) {
        fitted[s] = fit_scale(v->x + s * f->n_vec, v->w + s * f->n_vec, f->n_vec, &f->levels, f->trials);
        if (fabsf(fitted[s]) > fabsf(extreme)) extreme = fitted[s];
    }
    float common = extreme / (float)f->low, best_common = 0;
    for (int s = 0; s < n_subs; s++) {
        float exact = fitted[s] * inverse_of(common);
        chosen[s] = (int)(exact < (float)f->low ? (float)f->low : exact > (float)f->high ? (float)f->high : rintf(exact));
    }
    for (int round = 0; round < ROUNDS; round++) {
        uint8_t stored[2];
        float unit = stored_scale(v, common, stored), error = 0;
        scale_sums sums = {0, 0};
        for (int s = 0; s < n_subs; s++) {
            chosen[s] = choose_scale(v->x + s * f->n_vec, v->w + s * f->n_vec, f, unit, chosen[s], &sums, &error);
        }
        if (error >= best_error) break;
        best_error = error;
        best_common = unit;
        memcpy(out->scale, stored, sizeof stored);
        for (int s = 0; s < n_subs; s++) out->scales[s] = (int8_t)chosen[s];
        if (!(sums.qq > 0)) break;
        common = sums.xq / sums.qq;
    }
    for (int s = 0; s < n_subs; s++) {
        put_codes(v->x + s * f->n_vec, f->n_vec, best_common * (float)out->scales[s], 0, &f->levels,
                  out->codes + s * f->n_vec * LANES);
    }
}

/* ---- a scale and a minimum a sub-block -------------------------------------------------------------------------------- */

typedef struct affine_super {
    uint8_t scale[2], minimum[2], scales[MAX_SUBS], minima[MAX_SUBS], codes[SUPER];
} affine_super;

/* Scales and minima are 0..highest; values are scale * code - minimum. */
typedef struct affine_form {
    int n_vec, highest;
    levels levels;
    trials trials;
} affine_form;

/* Sums of the least squares problem of the two common scales a and b: x ~ a u - b v, u = scale * code, v = minimum. */
typedef struct affine_sums {
    float xu, xv, uu, uv, vv;
} affine_sums;

/* The integers near scale[0] and minimum[0] with the smallest error, put in their place; that error. */
INLINE float choose_affine(const vf *x, const vf *w, const affine_form *f, affine unit, int *scale, int *minimum,
                           affine_sums *sums) {
    code_sums best_codes = {0};
    float best = INFINITY;
    int first_scale = *scale, first_minimum = *minimum;
    for (int s = first_scale - 1; s <= first_scale + 1; s++) {
        for (int m = first_minimum - 1; m <= first_minimum + 1; m++) {
            if (s < 0 || s > f->highest || m < 0 || m > f->highest) continue;
            affine a = {unit.scale * (float)s, -unit.offset * (float)m};
            code_sums here = sums_of_codes(x, w, f->n_vec, a, &f->levels);
            float e = error_of(here, a);
            if (e >= best) continue;
            best = e;
            *scale = s;
            *minimum = m;
            best_codes = here;
        }
    }
    float s = (float)*scale, m = (float)*minimum;
    sums->xu += s * best_codes.xq;
    sums->xv += m * best_codes.x;
    sums->uu += s * s * best_codes.qq;
    sums->uv += s * m * best_codes.q;
    sums->vv += m * m * best_codes.w;
    return best;
}

/* The common scales that are best for the integers and codes behind the sums; keeps `before` where they say nothing. */
INLINE affine solve_affine(affine_sums s, affine before) {
    float determinant = s.uu * s.vv - s.uv * s.uv;
    if (determinant > 1e-6f * s.uu * s.vv) {
        affine a = {(s.xu * s.vv - s.xv * s.uv) / determinant, (s.xu * s.uv - s.xv * s.uu) / determinant};
        if (a.scale > 0 && a.offset > 0) return a;
    }
    if (s.uu > 0 && s.vv == 0 && s.xu > 0) return (affine){s.xu / s.uu, before.offset};
    return before;
}

static int clamped(float exact, int highest) {
    return exact < 0 ? 0 : exact > (float)highest ? highest : (int)rintf(exact);
}

INLINE void fit_affines(const values *v, const affine_form *f, affine_super *out) {
    affine fitted[MAX_SUBS], common = {0, 0}, best_unit = {0, 0}; /* offset: here the unit of the minima */
    int n_subs = SUPER / LANES / f->n_vec, scales[MAX_SUBS], minima[MAX_SUBS];
    float best_error = INFINITY;
    for (int s = 0; s < n_subs; s++) {
        fitted[s] = fit_affine(v->x + s * f->n_vec, v->w + s * f->n_vec, f->n_vec, &f->levels, true, f->trials);
        common.scale = fmaxf(common.scale, fitted[s].scale / (float)f->highest);
        common.offset = fmaxf(common.offset, -fitted[s].offset / (float)f->highest);
    }
    for (int s = 0; s < n_subs; s++) {
        scales[s] = clamped(fitted[s].scale * inverse_of(common.scale), f->highest);
        minima[s] = clamped(-fitted[s].offset * inverse_of(common.offset), f->highest);
    }
    for (int round = 0; round < ROUNDS; round++) {
        uint8_t stored_unit[2], stored_minimum[2];
        affine unit = {stored_scale(v, common.scale, stored_unit), stored_scale(v, common.offset, stored_minimum)};
        affine_sums sums = {0};
        float error = 0;
        for (int s = 0; s < n_subs; s++) {
            error += choose_affine(v->x + s * f->n_vec, v->w + s * f->n_vec, f, unit, &scales[s], &minima[s], &sums);
        }
        if (error >= best_error) break;
        best_error = error;
        best_unit = unit;
        memcpy(out->scale, stored_unit, sizeof stored_unit);
        memcpy(out->minimum, stored_minimum, sizeof stored_minimum);
        for (int s = 0; s < n_subs; s++) {
            out->scales[s] = (uint8_t)scales[s];
            out->minima[s] = (uint8_t)minima[s];
        }
        common = solve_affine(sums, common);
    }
    for (int s = 0; s < n_subs; s++) {
        put_codes(v->x + s * f->n_vec, f->n_vec, best_unit.scale * (float)out->scales[s],
                  -best_unit.offset * (float)out->minima[s], &f->levels, out->codes + s * f->n_vec * LANES);
    }
}

/* ---- the formats ------------------------------------------------------------------------------------------------------ */

QUANTISER(q2_k) {
    static const affine_form form = {2, 15, {0, 3, NULL, 0}, {2.0f, 0.125f, 13}};
    block_q2_k *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        affine_super s;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * SUPER, importance ? importance + k * SUPER : NULL, SUPER)) continue;
        fit_affines(&v, &form, &s);
        memcpy(b->scale, s.scale, sizeof b->scale);
        memcpy(b->minimum, s.minimum, sizeof b->minimum);
        for (int i = 0; i < SUPER / 16; i++) b->scale_min[i] = (uint8_t)(s.scales[i] | s.minima[i] << 4);
        for (unsigned i = 0; i < SUPER; i++) put_two_bits(b->twos, i, s.codes[i]);
    }
}

QUANTISER(q3_k) {
    static const scale_form form = {2, -32, 31, {-4, 3, NULL, 0}, {2.5f, 0.125f, 21}};
    block_q3_k *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        scale_super s;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * SUPER, importance ? importance + k * SUPER : NULL, SUPER)) continue;
        fit_scales(&v, &form, &s);
        memcpy(b->scale, s.scale, sizeof b->scale);
        for (unsigned i = 0; i < SUPER / 16; i++) put_q3_k_scale(b->scales, i, (unsigned)(s.scales[i] + 32));
        for (unsigned i = 0; i < SUPER; i++) {
            put_two_bits(b->twos, i, s.codes[i] & 3);
            put_one_bit(b->thirds, i, s.codes[i] >> 2);
        }
    }
}

QUANTISER(q4_k) {
    static const affine_form form = {4, 63, {0, 15, NULL, 0}, {13.0f, 0.25f, 17}};
    block_q4_k *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        affine_super s;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * SUPER, importance ? importance + k * SUPER : NULL, SUPER)) continue;
        fit_affines(&v, &form, &s);
        memcpy(b->scale, s.scale, sizeof b->scale);
        memcpy(b->minimum, s.minimum, sizeof b->minimum);
        for (unsigned i = 0; i < SUPER / 32; i++) {
            put_six_bits(b->scales, 0, i, s.scales[i]);
            put_six_bits(b->scales, 4, i, s.minima[i]);
        }
        for (unsigned i = 0; i < SUPER; i++) put_nibble_of_64(b->nibbles, i, s.codes[i]);
    }
}

QUANTISER(q5_k) {
    static const affine_form form = {4, 63, {0, 31, NULL, 0}, {28.0f, 0.5f, 15}};
    block_q5_k *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        affine_super s;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * SUPER, importance ? importance + k * SUPER : NULL, SUPER)) continue;
        fit_affines(&v, &form, &s);
        memcpy(b->scale, s.scale, sizeof b->scale);
        memcpy(b->minimum, s.minimum, sizeof b->minimum);
        for (unsigned i = 0; i < SUPER / 32; i++) {
            put_six_bits(b->scales, 0, i, s.scales[i]);
            put_six_bits(b->scales, 4, i, s.minima[i]);
        }
        for (unsigned i = 0; i < SUPER; i++) {
            put_nibble_of_64(b->nibbles, i, s.codes[i] & 15);
            put_one_bit(b->fifths, i, s.codes[i] >> 4);
        }
    }
}

QUANTISER(q6_k) {
    static const scale_form form = {2, -128, 127, {-32, 31, NULL, 0}, {28.0f, 0.5f, 12}};
    block_q6_k *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        scale_super s;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * SUPER, importance ? importance + k * SUPER : NULL, SUPER)) continue;
        fit_scales(&v, &form, &s);
        memcpy(b->scale, s.scale, sizeof b->scale);
        memcpy(b->scales, s.scales, sizeof b->scales);
        for (unsigned i = 0; i < SUPER; i++) {
            put_nibble_of_128(b->nibbles, i, s.codes[i] & 15);
            put_two_bits(b->high_twos, i, s.codes[i] >> 4);
        }
    }
}

QUANTISER(iq4_xs) {
    static const scale_form form = {4, -32, 31, {-127, 113, quant_levels_iq4, 16}, {90.0f, 4.0f, 15}};
    block_iq4_xs *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        scale_super s;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * SUPER, importance ? importance + k * SUPER : NULL, SUPER)) continue;
        fit_scales(&v, &form, &s);
        memcpy(b->scale, s.scale, sizeof b->scale);
        for (int i = 0; i < SUPER / 32; i++) {
            unsigned sub = (unsigned)(s.scales[i] + 32);
            b->scales_low[i / 2] |= (uint8_t)((sub & 15) << (i % 2 * 4));
            b->scales_high[i / 4] |= (uint8_t)(sub >> 4 << (i % 4 * 2));
            for (int c = 0; c < 16; c++) b->codes[i][c] = (uint8_t)(s.codes[32 * i + c] | s.codes[32 * i + 16 + c] << 4);
        }
    }
}
