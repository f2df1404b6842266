/* Quantising to floats and to formats with one scale (and offset) for all values that it covers. */
#include "quant/quant_search.h"

/* ---- floats ----------------------------------------------------------------------------------------------------------- */

static void put_u16(uint8_t *bytes, uint16_t value) {
    bytes[0] = (uint8_t)value;
    bytes[1] = (uint8_t)(value >> 8);
}

QUANTISER(f32) {
    (void)importance;
    if (n_blocks) memcpy(blocks, x, n_blocks * sizeof *x);
}

QUANTISER(f16) {
    (void)importance;
    uint8_t *out = blocks;
    for (size_t i = 0; i < n_blocks; i++) put_u16(out + 2 * i, quant_f32_to_f16(x[i]));
}

QUANTISER(bf16) {
    (void)importance;
    uint8_t *out = blocks;
    for (size_t i = 0; i < n_blocks; i++) put_u16(out + 2 * i, quant_f32_to_bf16(x[i]));
}

/* ---- one scale -------------------------------------------------------------------------------------------------------- */

/* Finds the scale of a block of n values, stores it and gives the codes; zeros when all values are, with the code of level 0. */
INLINE void quantise_scale(const float *x, const float *importance, int n, const levels *l, trials t, uint8_t scale[2],
                           uint8_t *codes) {
    values v;
    if (!values_load(&v, x, importance, n)) {
        memset(&v, 0, sizeof v);
        memset(scale, 0, 2);
        put_codes(v.x, n / LANES, 0, 0, l, codes);
        return;
    }
    if (t.alike && importance == NULL) values_weigh_alike(&v, n);
    float stored = stored_scale(&v, fit_scale(v.x, v.w, n / LANES, l, t), scale);
    put_codes(v.x, n / LANES, stored, 0, l, codes);
}

static void put_nibbles(uint8_t *bytes, const uint8_t *codes) {
    for (int i = 0; i < HALF; i++) bytes[i] = (uint8_t)((codes[i] & 15) | (codes[HALF + i] & 15) << 4);
}

static void put_fifths(uint8_t bytes[4], const uint8_t *codes) {
    memset(bytes, 0, 4);
    for (int i = 0; i < BLOCK; i++) bytes[i / 8] |= (uint8_t)(codes[i] >> 4 << (i % 8));
}

#define IMPORTANCE_AT(n) (importance ? importance + (n) : NULL)

QUANTISER(q4_0) {
    static const levels l = {-8, 7, NULL, 0};
    block_q4_0 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[BLOCK];
        quantise_scale(x + k * BLOCK, IMPORTANCE_AT(k * BLOCK), BLOCK, &l, (trials){5.5f, 0.25f, 16}, b->scale, codes);
        put_nibbles(b->nibbles, codes);
    }
}

QUANTISER(q5_0) {
    static const levels l = {-16, 15, NULL, 0};
    block_q5_0 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[BLOCK];
        /* Alike: measured, docs/quantize.md. */
        quantise_scale(x + k * BLOCK, IMPORTANCE_AT(k * BLOCK), BLOCK, &l, (trials){12.5f, 0.25f, 18, true}, b->scale, codes);
        put_nibbles(b->nibbles, codes);
        put_fifths(b->fifth, codes);
    }
}

QUANTISER(q8_0) {
    static const levels l = {-127, 127, NULL, 0};
    block_q8_0 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[BLOCK];
        quantise_scale(x + k * BLOCK, IMPORTANCE_AT(k * BLOCK), BLOCK, &l, (trials){125.5f, 0.5f, 5}, b->scale, codes);
        for (int i = 0; i < BLOCK; i++) b->values[i] = (int8_t)(codes[i] - 127);
    }
}

QUANTISER(iq4_nl) {
    static const levels l = {-127, 113, quant_levels_iq4, 16};
    block_iq4_nl *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[BLOCK];
        quantise_scale(x + k * BLOCK, IMPORTANCE_AT(k * BLOCK), BLOCK, &l, (trials){90.0f, 3.0f, 20}, b->scale, codes);
        put_nibbles(b->codes, codes);
    }
}

QUANTISER(q2_0) {
    static const levels l = {-1, 2, NULL, 0};
    enum { N = 64 };
    block_q2_0 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[N];
        quantise_scale(x + k * N, IMPORTANCE_AT(k * N), N, &l, (trials){0.75f, 0.125f, 26}, b->scale, codes);
        memset(b->twos, 0, sizeof b->twos);
        for (int i = 0; i < N; i++) b->twos[i / 4] |= (uint8_t)(codes[i] << (i % 4 * 2));
    }
}

static const levels ternary = {-1, 1, NULL, 0};
static const trials ternary_trials = {0.625f, 0.125f, 40};

QUANTISER(tq2_0) {
    block_tq2_0 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[SUPER];
        quantise_scale(x + k * SUPER, IMPORTANCE_AT(k * SUPER), SUPER, &ternary, ternary_trials, b->scale, codes);
        memset(b->twos, 0, sizeof b->twos);
        for (unsigned i = 0; i < SUPER; i++) put_two_bits(b->twos, i, codes[i]);
    }
}

/* The byte whose value, as a fraction of 256, is just above that of the digits: digits[0] is worth a third. */
static uint8_t ternary_byte(const uint8_t *digits, int stride, int n) {
    static const unsigned powers[5] = {81, 27, 9, 3, 1};
    unsigned value = 0;
    for (int i = 0; i < n; i++) value += digits[i * stride] * powers[i];
    return (uint8_t)((value * 256 + 242) / 243);
}

QUANTISER(tq1_0) {
    block_tq1_0 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[SUPER];
        quantise_scale(x + k * SUPER, IMPORTANCE_AT(k * SUPER), SUPER, &ternary, ternary_trials, b->scale, codes);
        for (int i = 0; i < 32; i++) b->fives[i] = ternary_byte(codes + i, 32, 5);
        for (int i = 0; i < 16; i++) b->fives[32 + i] = ternary_byte(codes + 160 + i, 16, 5);
        for (int i = 0; i < 4; i++) b->fours[i] = ternary_byte(codes + 240 + i, 4, 4);
    }
}

QUANTISER(q1_0) {
    enum { N = 128 };
    block_q1_0 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * N, IMPORTANCE_AT(k * N), N)) continue;
        vf weights = vf_set(0), sum = vf_set(0);
        for (int i = 0; i < N / LANES; i++) {
            weights += v.w[i];
            sum += v.w[i] * vf_abs(v.x[i]);
        }
        stored_scale(&v, vf_sum(sum) / vf_sum(weights), b->scale);
        for (int i = 0; i < N; i++) b->bits[i / 8] |= (uint8_t)((x[k * N + (size_t)i] >= 0) << (i % 8));
    }
}

/* ---- a scale and an offset -------------------------------------------------------------------------------------------- */

INLINE void quantise_affine(const float *x, const float *importance, const levels *l, trials t, uint8_t scale[2],
                            uint8_t offset[2], uint8_t codes[BLOCK]) {
    values v;
    if (!values_load(&v, x, importance, BLOCK)) {
        memset(scale, 0, 2);
        memset(offset, 0, 2);
        memset(codes, 0, BLOCK);
        return;
    }
    affine a = fit_affine(v.x, v.w, BLOCK / LANES, l, false, t);
    a = (affine){stored_scale(&v, a.scale, scale), stored_scale(&v, a.offset, offset)};
    put_codes(v.x, BLOCK / LANES, a.scale, a.offset, l, codes);
}

QUANTISER(q4_1) {
    static const levels l = {0, 15, NULL, 0};
    block_q4_1 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[BLOCK];
        quantise_affine(x + k * BLOCK, IMPORTANCE_AT(k * BLOCK), &l, (trials){13, 0.25f, 17}, b->scale, b->offset, codes);
        put_nibbles(b->nibbles, codes);
    }
}

QUANTISER(q5_1) {
    static const levels l = {0, 31, NULL, 0};
    block_q5_1 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        uint8_t codes[BLOCK];
        quantise_affine(x + k * BLOCK, IMPORTANCE_AT(k * BLOCK), &l, (trials){28, 0.5f, 15}, b->scale, b->offset, codes);
        put_nibbles(b->nibbles, codes);
        put_fifths(b->fifth, codes);
    }
}

/* ---- FP4: a scale that is a small float ------------------------------------------------------------------------------- */

static const float levels_e2m1[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
static const uint8_t codes_e2m1[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};

/* The error of a scale, up to sum w x^2. */
INLINE float error_of_scale(const vf *x, const vf *w, int n_vec, float scale, const levels *l) {
    scale_sums s = sums_of_scale(x, w, n_vec, inverse_of(scale), l);
    return scale * (scale * s.qq - 2 * s.xq);
}

QUANTISER(mxfp4) {
    static const levels l = {-12, 12, levels_e2m1, 15};
    block_mxfp4 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * BLOCK, IMPORTANCE_AT(k * BLOCK), BLOCK)) continue;
        /* The largest magnitude is 0.5 to 1 units: for it to become 6 to 12 the scale must be a twelfth to a sixth of one, that
         * is about an eighth. */
        int exponent, first;
        frexpf(v.unit, &exponent);
        first = exponent - 1 + 128 - 5;
        float best = INFINITY;
        for (int e = first < 0 ? 0 : first; e <= first + 2 && e <= 254; e++) {
            float error = error_of_scale(v.x, v.w, BLOCK / LANES, quant_half_of_e8m0((uint8_t)e) / v.unit, &l);
            if (error >= best) continue;
            best = error;
            b->exponent = (uint8_t)e;
        }
        uint8_t codes[BLOCK];
        put_codes(v.x, BLOCK / LANES, quant_half_of_e8m0(b->exponent) / v.unit, 0, &l, codes);
        for (int i = 0; i < BLOCK; i++) codes[i] = codes_e2m1[codes[i]];
        put_nibbles(b->codes, codes);
    }
}

QUANTISER(nvfp4) {
    static const levels l = {-12, 12, levels_e2m1, 15};
    enum { N = 64, SUBS = 4, N_VEC = N / SUBS / LANES, HIGHEST = 0x7e };
    block_nvfp4 *b = blocks;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        values v;
        memset(b, 0, sizeof *b);
        if (!values_load(&v, x + k * N, IMPORTANCE_AT(k * N), N)) continue;
        for (int s = 0; s < SUBS; s++) {
            const vf *sub = v.x + s * N_VEC, *w = v.w + s * N_VEC;
            float wanted = fabsf(fit_scale(sub, w, N_VEC, &l, (trials){8, 0.5f, 13})) * v.unit, best = INFINITY;
            int near = 0;
            while (near < HIGHEST && quant_half_of_ue4m3((uint8_t)near) < wanted) near++;
            for (int c = near > 2 ? near - 2 : 0; c <= near + 1 && c <= HIGHEST; c++) {
                float error = error_of_scale(sub, w, N_VEC, quant_half_of_ue4m3((uint8_t)c) / v.unit, &l);
                if (error >= best) continue;
                best = error;
                b->scales[s] = (uint8_t)c;
            }
            uint8_t codes[N / SUBS];
            put_codes(sub, N_VEC, quant_half_of_ue4m3(b->scales[s]) / v.unit, 0, &l, codes);
            for (int i = 0; i < 8; i++) b->codes[s][i] = (uint8_t)(codes_e2m1[codes[i]] | codes_e2m1[codes[8 + i]] << 4);
        }
    }
}
