/* The formats of two bits and fewer with one scale for the block: ternary TQ1_0 and TQ2_0, Q1_0 (a sign each) and Q2_0. */
#include "quant/quant_blocks.h"

/* Ternary digit `place` (0 = most significant) of a byte that holds the fraction 0.d0 d1 d2 d3 d4 in base 3, scaled to 256:
 * three to the power of the place shifts the digits before it out of the byte, and the next one is what a further factor 3
 * carries. */
static int ternary_digit(uint8_t byte, int place) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return (uint8_t)(byte * powers[place]) * 3 >> 8;
}

void quant_dequantise_tq1_0(const void *blocks, float *out, size_t n_blocks) {
    static const struct {
        int first, n_bytes, n_digits;
    } runs[3] = {{0, 32, 5}, {32, 16, 5}, {48, 4, 4}}; /* of bytes; within each the first digits of all come first */
    const block_tq1_0 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++) {
        float scale = load_f16(b->scale);
        for (int r = 0; r < 3; r++) {
            for (int place = 0; place < runs[r].n_digits; place++) {
                for (int i = 0; i < runs[r].n_bytes; i++) {
                    uint8_t byte = r < 2 ? b->fives[runs[r].first + i] : b->fours[i];
                    *out++ = scale * (float)(ternary_digit(byte, place) - 1);
                }
            }
        }
    }
}

void quant_dequantise_tq2_0(const void *blocks, float *out, size_t n_blocks) {
    const block_tq2_0 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += SUPER) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < SUPER; i++) {
            out[i] = scale * (float)((b->twos[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) - 1);
        }
    }
}

void quant_dequantise_q1_0(const void *blocks, float *out, size_t n_blocks) {
    const block_q1_0 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += 128) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < 128; i++) out[i] = b->bits[i / 8] >> (i % 8) & 1 ? scale : -scale;
    }
}

void quant_dequantise_q2_0(const void *blocks, float *out, size_t n_blocks) {
    const block_q2_0 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += 64) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < 64; i++) out[i] = scale * (float)((b->twos[i / 4] >> (i % 4 * 2) & 3) - 1);
    }
}
