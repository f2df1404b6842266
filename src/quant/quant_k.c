/* The K formats: super-blocks of 256 values in sub-blocks of 16 or 32, whose small integer scales (and minima) are themselves
 * scaled by 16-bit floats. */
#include "quant/quant_blocks.h"

void quant_dequantise_q2_k(const void *blocks, float *out, size_t n_blocks) {
    const block_q2_k *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale), minimum = load_f16(b->minimum);
        for (unsigned s = 0; s < SUPER / 16; s++) {
            float sub_scale = scale * (float)(b->scale_min[s] & 15), sub_minimum = minimum * (float)(b->scale_min[s] >> 4);
            for (unsigned i = s * 16; i < s * 16 + 16; i++) out[i] = sub_scale * (float)two_bits(b->twos, i) - sub_minimum;
        }
    }
}

void quant_dequantise_q3_k(const void *blocks, float *out, size_t n_blocks) {
    const block_q3_k *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (unsigned s = 0; s < SUPER / 16; s++) {
            float sub_scale = scale * (float)(q3_k_scale(b->scales, s) - 32);
            for (unsigned i = s * 16; i < s * 16 + 16; i++) {
                out[i] = sub_scale * (float)((two_bits(b->twos, i) | one_bit(b->thirds, i) << 2) - 4);
            }
        }
    }
}

void quant_dequantise_q4_k(const void *blocks, float *out, size_t n_blocks) {
    const block_q4_k *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale), minimum = load_f16(b->minimum);
        for (unsigned s = 0; s < SUPER / 32; s++) {
            float sub_scale = scale * (float)six_bits(b->scales, 0, s),
                  sub_minimum = minimum * (float)six_bits(b->scales, 4, s);
            for (unsigned i = s * 32; i < s * 32 + 32; i++) {
                out[i] = sub_scale * (float)nibble_of_64(b->nibbles, i) - sub_minimum;
            }
        }
    }
}

void quant_dequantise_q5_k(const void *blocks, float *out, size_t n_blocks) {
    const block_q5_k *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale), minimum = load_f16(b->minimum);
        for (unsigned s = 0; s < SUPER / 32; s++) {
            float sub_scale = scale * (float)six_bits(b->scales, 0, s),
                  sub_minimum = minimum * (float)six_bits(b->scales, 4, s);
            for (unsigned i = s * 32; i < s * 32 + 32; i++) {
                out[i] = sub_scale * (float)(nibble_of_64(b->nibbles, i) | one_bit(b->fifths, i) << 4) - sub_minimum;
            }
        }
    }
}

void quant_dequantise_q6_k(const void *blocks, float *out, size_t n_blocks) {
    const block_q6_k *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (unsigned s = 0; s < SUPER / 16; s++) {
            float sub_scale = scale * (float)b->scales[s];
            for (unsigned i = s * 16; i < s * 16 + 16; i++) {
                out[i] = sub_scale * (float)((nibble_of_128(b->nibbles, i) | two_bits(b->high_twos, i) << 4) - 32);
            }
        }
    }
}
