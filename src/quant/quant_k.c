/* The K formats: super-blocks of 256 values in sub-blocks of 16 or 32, whose small integer scales (and minima) are themselves
 * scaled by 16-bit floats. */
#include "quant/quant_formats.h"

enum { SUPER = QUANT_SUPER_BLOCK };

typedef struct block_q2_k {
    uint8_t scale_min[SUPER / 16], twos[SUPER / 4], scale[2], minimum[2];
} block_q2_k;
typedef struct block_q3_k {
    uint8_t thirds[SUPER / 8], twos[SUPER / 4], scales[12], scale[2];
} block_q3_k;
typedef struct block_q4_k {
    uint8_t scale[2], minimum[2], scales[12], nibbles[SUPER / 2];
} block_q4_k;
typedef struct block_q5_k {
    uint8_t scale[2], minimum[2], scales[12], fifths[SUPER / 8], nibbles[SUPER / 2];
} block_q5_k;
typedef struct block_q6_k {
    uint8_t nibbles[SUPER / 2], high_twos[SUPER / 4];
    int8_t scales[SUPER / 16];
    uint8_t scale[2];
} block_q6_k;

/* Two bits of value i, where each 32 bytes hold 128 values: the bits of values 0..31 lowest, then those of 32..63, and so on.
 */
static int two_bits(const uint8_t *bytes, unsigned i) {
    return bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

/* One bit of value i, where 32 bytes hold all 256: bit 0 of each for values 0..31, bit 1 for 32..63, and so on. */
static int one_bit(const uint8_t bytes[32], unsigned i) {
    return bytes[i % 32] >> (i / 32) & 1;
}

/* The nibble of value i of Q4_K and Q5_K: each 32 bytes hold 32 values low, then the next 32 high. */
static int nibble_of_64(const uint8_t *bytes, unsigned i) {
    return bytes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

/* The nibble of value i of Q6_K: each 64 bytes hold 64 values low, then the next 64 high. */
static int nibble_of_128(const uint8_t *bytes, unsigned i) {
    return bytes[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
}

/* The 6-bit scale (or, with `which` = 4, minimum) of sub-block s of Q4_K and Q5_K. Bytes 0..3 hold scales 0..3 and bytes 4..7
 * minima 0..3 in their low six bits; the upper two bits complete the numbers 4..7, whose low nibbles are in bytes 8..11 (scale
 * low, minimum high). */
static int six_bits(const uint8_t scales[12], int which, unsigned s) {
    if (s < 4) return scales[which + s] & 63;
    return (scales[4 + s] >> which & 15) | scales[which + s - 4] >> 6 << 4;
}

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

/* Scale s of Q3_K, 0..63: low nibbles of scales 0..7 in the low halves of bytes 0..7, of 8..15 in the high halves; their upper
 * two bits in bytes 8..11, four scales apart. */
static int q3_k_scale(const uint8_t scales[12], unsigned s) {
    return (scales[s % 8] >> (s / 8 * 4) & 15) | (scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
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
