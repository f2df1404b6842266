/* Inside src/quant only: how the blocks of each format are laid out. Structs of bytes, so that they have no alignment and no
 * padding on any machine; the places of single values inside them; the levels that codes of some formats look up. */
#ifndef WEIR_QUANT_BLOCKS_H
#define WEIR_QUANT_BLOCKS_H

#include "quant/quant_formats.h"

enum { SUPER = QUANT_SUPER_BLOCK, BLOCK = 32, HALF = 16 };

/* ---- quant_basic.c: the low nibbles hold the first 16 values, the high nibbles the others -----------------------------------
 */

typedef struct block_q4_0 {
    uint8_t scale[2], nibbles[HALF];
} block_q4_0;
typedef struct block_q4_1 {
    uint8_t scale[2], offset[2], nibbles[HALF];
} block_q4_1;
typedef struct block_q5_0 {
    uint8_t scale[2], fifth[4], nibbles[HALF];
} block_q5_0;
typedef struct block_q5_1 {
    uint8_t scale[2], offset[2], fifth[4], nibbles[HALF];
} block_q5_1;
typedef struct block_q8_0 {
    uint8_t scale[2];
    int8_t values[BLOCK];
} block_q8_0;

/* ---- quant_k.c -------------------------------------------------------------------------------------------------------- */

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

/* ---- quant_fp4.c ------------------------------------------------------------------------------------------------------ */

typedef struct block_iq4_nl {
    uint8_t scale[2], codes[16];
} block_iq4_nl;
typedef struct block_iq4_xs {
    uint8_t scale[2], scales_high[2], scales_low[4], codes[8][16];
} block_iq4_xs;
typedef struct block_mxfp4 {
    uint8_t exponent, codes[16];
} block_mxfp4;
typedef struct block_nvfp4 {
    uint8_t scales[4], codes[4][8];
} block_nvfp4;

/* ---- quant_low.c ------------------------------------------------------------------------------------------------------ */

typedef struct block_tq1_0 {
    uint8_t fives[48], fours[4], scale[2];
} block_tq1_0;
typedef struct block_tq2_0 {
    uint8_t twos[SUPER / 4], scale[2];
} block_tq2_0;
typedef struct block_q1_0 {
    uint8_t scale[2], bits[16];
} block_q1_0;
typedef struct block_q2_0 {
    uint8_t scale[2], twos[16];
} block_q2_0;

/* ---- quant_iq.c ------------------------------------------------------------------------------------------------------- */

typedef struct block_iq2_xxs {
    uint8_t scale[2], groups[SUPER / 32][8]; /* 4 grid indices, then 4 x 7 bits of signs and 4 of scale */
} block_iq2_xxs;
typedef struct block_iq2_xs {
    uint8_t scale[2], codes[SUPER / 8][2], scales[SUPER / 32]; /* code: 9 bits of index, 7 of signs */
} block_iq2_xs;
typedef struct block_iq2_s {
    uint8_t scale[2], indices[SUPER / 8], signs[SUPER / 8], high[SUPER / 32], scales[SUPER / 32];
} block_iq2_s;
typedef struct block_iq3_xxs {
    uint8_t scale[2], indices[SUPER / 4], signs[SUPER / 32][4]; /* 4 x 7 bits of signs and 4 of scale */
} block_iq3_xxs;
typedef struct block_iq3_s {
    uint8_t scale[2], indices[SUPER / 4], high[SUPER / 32], signs[SUPER / 8], scales[SUPER / 64];
} block_iq3_s;
typedef struct block_iq1_s {
    uint8_t scale[2], indices[SUPER / 8], high[SUPER / 32][2]; /* 4 x 3 bits of index, 3 of scale, 1 of shift */
} block_iq1_s;
typedef struct block_iq1_m {
    uint8_t indices[SUPER / 8], high[SUPER / 16], scales[SUPER / 64][2]; /* 4 x 3 bits of scale, 4 of the block's own */
} block_iq1_m;

/* ---- places of values in the K formats ------------------------------------------------------------------------------------
 */

/* Two bits of value i, where each 32 bytes hold 128 values: the bits of values 0..31 lowest, then those of 32..63, and so on.
 */
static inline int two_bits(const uint8_t *bytes, unsigned i) {
    return bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

/* One bit of value i, where 32 bytes hold all 256: bit 0 of each for values 0..31, bit 1 for 32..63, and so on. */
static inline int one_bit(const uint8_t bytes[32], unsigned i) {
    return bytes[i % 32] >> (i / 32) & 1;
}

/* The nibble of value i of Q4_K and Q5_K: each 32 bytes hold 32 values low, then the next 32 high. */
static inline int nibble_of_64(const uint8_t *bytes, unsigned i) {
    return bytes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

/* The nibble of value i of Q6_K: each 64 bytes hold 64 values low, then the next 64 high. */
static inline int nibble_of_128(const uint8_t *bytes, unsigned i) {
    return bytes[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
}

/* The 6-bit scale (or, with `which` = 4, minimum) of sub-block s of Q4_K and Q5_K. Bytes 0..3 hold scales 0..3 and bytes 4..7
 * minima 0..3 in their low six bits; the upper two bits complete the numbers 4..7, whose low nibbles are in bytes 8..11 (scale
 * low, minimum high). */
static inline int six_bits(const uint8_t scales[12], int which, unsigned s) {
    if (s < 4) return scales[which + s] & 63;
    return (scales[4 + s] >> which & 15) | scales[which + s - 4] >> 6 << 4;
}

/* Scale s of Q3_K, 0..63: low nibbles of scales 0..7 in the low halves of bytes 0..7, of 8..15 in the high halves; their upper
 * two bits in bytes 8..11, four scales apart. */
static inline int q3_k_scale(const uint8_t scales[12], unsigned s) {
    return (scales[s % 8] >> (s / 8 * 4) & 15) | (scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
}

/* The same places, written; the bytes must be zero before. */
static inline void put_two_bits(uint8_t *bytes, unsigned i, unsigned code) {
    bytes[i / 128 * 32 + i % 32] |= (uint8_t)(code << (i / 32 % 4 * 2));
}
static inline void put_one_bit(uint8_t bytes[32], unsigned i, unsigned code) {
    bytes[i % 32] |= (uint8_t)(code << (i / 32));
}
static inline void put_nibble_of_64(uint8_t *bytes, unsigned i, unsigned code) {
    bytes[i / 64 * 32 + i % 32] |= (uint8_t)(code << (i / 32 % 2 * 4));
}
static inline void put_nibble_of_128(uint8_t *bytes, unsigned i, unsigned code) {
    bytes[i / 128 * 64 + i % 64] |= (uint8_t)(code << (i / 64 % 2 * 4));
}
static inline void put_six_bits(uint8_t scales[12], int which, unsigned s, unsigned code) {
    if (s < 4) {
        scales[(unsigned)which + s] |= (uint8_t)code;
        return;
    }
    scales[4 + s] |= (uint8_t)((code & 15) << which);
    scales[(unsigned)which + s - 4] |= (uint8_t)(code >> 4 << 6);
}
static inline void put_q3_k_scale(uint8_t scales[12], unsigned s, unsigned code) {
    scales[s % 8] |= (uint8_t)((code & 15) << (s / 8 * 4));
    scales[8 + s % 4] |= (uint8_t)(code >> 4 << (s / 4 * 2));
}

/* ---- levels (quant_fp4.c) --------------------------------------------------------------------------------------------- */

/* Ascending; fitted to a normal distribution. Here, so that the search sees the numbers. */
static const float quant_levels_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
/* Of the magnitudes in the grid formats. */
static const float quant_levels_iq2[4] = {8, 25, 43, 0};
static const float quant_levels_iq3_xxs[8] = {4, 12, 20, 28, 36, 44, 52, 62};
static const float quant_levels_iq3_s[8] = {1, 3, 5, 7, 9, 11, 13, 15};
/* 2^(exponent - 128), half of what E8M0 means. */
float quant_half_of_e8m0(uint8_t exponent);
/* Half of what unsigned E4M3 (bias 7) means; the top bit does not count, and 0x7f, which would be NaN, is 0. */
float quant_half_of_ue4m3(uint8_t code);

#endif
