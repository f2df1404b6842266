/* Plain floats, and the formats of 32 values with one scale (and one offset). Within a block of 32 the low nibbles hold the
 * first 16 values and the high nibbles the last 16; a fifth bit, if any, is bit i of `fifth` for value i. */
#include "quant/quant_blocks.h"

#include <string.h>

void quant_dequantise_f32(const void *blocks, float *out, size_t n_blocks) {
    if (n_blocks) memcpy(out, blocks, n_blocks * sizeof *out);
}

void quant_dequantise_f16(const void *blocks, float *out, size_t n_blocks) {
    const uint8_t *in = blocks;
    for (size_t i = 0; i < n_blocks; i++) out[i] = load_f16(in + 2 * i);
}

void quant_dequantise_bf16(const void *blocks, float *out, size_t n_blocks) {
    const uint8_t *in = blocks;
    for (size_t i = 0; i < n_blocks; i++) out[i] = quant_bf16_to_f32((uint16_t)load_u16(in + 2 * i));
}

/* The 4-bit number of value i of a block. */
static int nibble(const uint8_t nibbles[HALF], int i) {
    return i < HALF ? nibbles[i] & 15 : nibbles[i - HALF] >> 4;
}

void quant_dequantise_q4_0(const void *blocks, float *out, size_t n_blocks) {
    const block_q4_0 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += BLOCK) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < BLOCK; i++) out[i] = scale * (float)(nibble(b->nibbles, i) - 8);
    }
}

void quant_dequantise_q4_1(const void *blocks, float *out, size_t n_blocks) {
    const block_q4_1 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += BLOCK) {
        float scale = load_f16(b->scale), offset = load_f16(b->offset);
        for (int i = 0; i < BLOCK; i++) out[i] = scale * (float)nibble(b->nibbles, i) + offset;
    }
}

void quant_dequantise_q5_0(const void *blocks, float *out, size_t n_blocks) {
    const block_q5_0 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += BLOCK) {
        float scale = load_f16(b->scale);
        uint32_t fifth = load_u32(b->fifth);
        for (int i = 0; i < BLOCK; i++) {
            out[i] = scale * (float)((nibble(b->nibbles, i) | (int)(fifth >> i & 1) << 4) - 16);
        }
    }
}

void quant_dequantise_q5_1(const void *blocks, float *out, size_t n_blocks) {
    const block_q5_1 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += BLOCK) {
        float scale = load_f16(b->scale), offset = load_f16(b->offset);
        uint32_t fifth = load_u32(b->fifth);
        for (int i = 0; i < BLOCK; i++) {
            out[i] = scale * (float)(nibble(b->nibbles, i) | (int)(fifth >> i & 1) << 4) + offset;
        }
    }
}

void quant_dequantise_q8_0(const void *blocks, float *out, size_t n_blocks) {
    const block_q8_0 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += BLOCK) {
        float scale = load_f16(b->scale);
        for (int i = 0; i < BLOCK; i++) out[i] = scale * (float)b->values[i];
    }
}
