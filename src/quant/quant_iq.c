/* The IQ1, IQ2 and IQ3 formats: groups of 4 or 8 values are one point of a grid (quant_grids.inc), with signs (or, for IQ1, a
 * common shift) beside it. Super-blocks of 256 values in sub-blocks of 8 to 32 with small scales. */
#include "quant/quant_blocks.h"

#include <stdbool.h>

/* A point of a grid is one number: for 8 coordinates of 3 levels 2 bits each, for 4 coordinates of 8 levels 3 bits each. */
#include "quant/quant_grids.inc"

static const float levels_iq1[4] = {-1, 0, 1, 0};

/* Seven stored bits are the signs of seven values; the eighth makes the number of minus signs even. */
static unsigned even_signs(unsigned seven) {
    return seven | (unsigned)__builtin_parity(seven) << 7;
}

/* out[i] = scale * level of coordinate i, negated where bit i of `signs` is set. */
static void put_ternary(float *out, uint16_t point, unsigned signs, float scale) {
    for (int i = 0; i < 8; i++) {
        float value = scale * quant_levels_iq2[point >> (2 * i) & 3];
        out[i] = signs >> i & 1 ? -value : value;
    }
}

static void put_octal(float *out, uint16_t point, const float levels[8], unsigned signs, float scale) {
    for (int i = 0; i < 4; i++) {
        float value = scale * levels[point >> (3 * i) & 7];
        out[i] = signs >> i & 1 ? -value : value;
    }
}

/* out[i] = scale * (-1, 0 or 1, plus or minus an eighth). */
static void put_shifted(float *out, uint16_t point, bool down, float scale) {
    float shift = down ? -0.125f : 0.125f;
    for (int i = 0; i < 8; i++) out[i] = scale * (levels_iq1[point >> (2 * i) & 3] + shift);
}

static unsigned nibble_of(const uint8_t *bytes, int i) {
    return bytes[i / 2] >> (i % 2 * 4) & 15u;
}

void quant_dequantise_iq2_xxs(const void *blocks, float *out, size_t n_blocks) {
    const block_iq2_xxs *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < SUPER / 8; i++) {
            const uint8_t *group = b->groups[i / 4];
            uint32_t signs_scale = load_u32(group + 4);
            float sub_scale = scale * (0.5f + (float)(signs_scale >> 28)) * 0.25f;
            put_ternary(out + 8 * i, grid_iq2_xxs[group[i % 4]], even_signs(signs_scale >> (i % 4 * 7) & 127), sub_scale);
        }
    }
}

void quant_dequantise_iq2_xs(const void *blocks, float *out, size_t n_blocks) {
    const block_iq2_xs *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < SUPER / 8; i++) {
            uint32_t code = load_u16(b->codes[i]);
            float sub_scale = scale * (0.5f + (float)nibble_of(b->scales, i / 2)) * 0.25f;
            put_ternary(out + 8 * i, grid_iq2_xs[code & 511], even_signs(code >> 9), sub_scale);
        }
    }
}

void quant_dequantise_iq2_s(const void *blocks, float *out, size_t n_blocks) {
    const block_iq2_s *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < SUPER / 8; i++) {
            unsigned index = b->indices[i] | (b->high[i / 4] >> (i % 4 * 2) & 3u) << 8;
            float sub_scale = scale * (0.5f + (float)nibble_of(b->scales, i / 2)) * 0.25f;
            put_ternary(out + 8 * i, grid_iq2_s[index], b->signs[i], sub_scale);
        }
    }
}

void quant_dequantise_iq3_xxs(const void *blocks, float *out, size_t n_blocks) {
    const block_iq3_xxs *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < SUPER / 4; i++) {
            uint32_t signs_scale = load_u32(b->signs[i / 8]);
            float sub_scale = scale * (0.5f + (float)(signs_scale >> 28)) * 0.5f;
            unsigned signs = even_signs(signs_scale >> (i / 2 % 4 * 7) & 127) >> (i % 2 * 4);
            put_octal(out + 4 * i, grid_iq3_xxs[b->indices[i]], quant_levels_iq3_xxs, signs, sub_scale);
        }
    }
}

void quant_dequantise_iq3_s(const void *blocks, float *out, size_t n_blocks) {
    const block_iq3_s *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < SUPER / 4; i++) {
            unsigned index = b->indices[i] | (b->high[i / 8] >> (i % 8) & 1u) << 8;
            float sub_scale = scale * (float)(1 + 2 * nibble_of(b->scales, i / 8));
            put_octal(out + 4 * i, grid_iq3_s[index], quant_levels_iq3_s, nibble_of(b->signs, i), sub_scale);
        }
    }
}

void quant_dequantise_iq1_s(const void *blocks, float *out, size_t n_blocks) {
    const block_iq1_s *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < SUPER / 8; i++) {
            uint32_t high = load_u16(b->high[i / 4]);
            unsigned index = b->indices[i] | (high >> (i % 4 * 3) & 7u) << 8;
            put_shifted(out + 8 * i, grid_iq1[index], high >> 15, scale * (float)(2 * (high >> 12 & 7) + 1));
        }
    }
}

void quant_dequantise_iq1_m(const void *blocks, float *out, size_t n_blocks) {
    const block_iq1_m *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        uint32_t half = 0; /* the block's scale lies in the top four bits of the four words of sub-block scales */
        for (int i = 0; i < SUPER / 64; i++) half |= load_u16(b->scales[i]) >> 12 << (4 * i);
        float scale = quant_f16_to_f32((uint16_t)half);
        for (int i = 0; i < SUPER / 8; i++) {
            unsigned high = nibble_of(b->high, i), sub = load_u16(b->scales[i / 8]) >> (i / 2 % 4 * 3) & 7;
            unsigned index = b->indices[i] | (high & 7) << 8;
            put_shifted(out + 8 * i, grid_iq1[index], high >> 3, scale * (float)(2 * sub + 1));
        }
    }
}
