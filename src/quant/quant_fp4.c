/* The formats whose 4-bit codes look up one of 16 levels: IQ4 (levels fitted to a normal distribution) and the two FP4 formats
 * (the values of E2M1, here doubled to be whole, with the half moved into the scale). */
#include "quant/quant_blocks.h"

#include <string.h>

static const float levels_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* `n_bytes` bytes of codes: the low halves are the first values, the high halves the others. */
static void put_levels(float *out, const uint8_t *codes, int n_bytes, const float levels[16], float scale) {
    for (int i = 0; i < n_bytes; i++) {
        out[i] = scale * levels[codes[i] & 15];
        out[n_bytes + i] = scale * levels[codes[i] >> 4];
    }
}

void quant_dequantise_iq4_nl(const void *blocks, float *out, size_t n_blocks) {
    const block_iq4_nl *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += 32) put_levels(out, b->codes, 16, quant_levels_iq4, load_f16(b->scale));
}

void quant_dequantise_iq4_xs(const void *blocks, float *out, size_t n_blocks) {
    const block_iq4_xs *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += QUANT_SUPER_BLOCK) {
        float scale = load_f16(b->scale);
        uint32_t high = load_u16(b->scales_high);
        for (int s = 0; s < 8; s++) {
            int sub = (b->scales_low[s / 2] >> (s % 2 * 4) & 15) | (int)(high >> (2 * s) & 3) << 4;
            put_levels(out + 32 * s, b->codes[s], 16, quant_levels_iq4, scale * (float)(sub - 32));
        }
    }
}

/* 2^(exponent - 128), half of what E8M0 means. The two smallest are subnormal floats. */
float quant_half_of_e8m0(uint8_t exponent) {
    uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (uint32_t)(exponent - 1) << 23;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

void quant_dequantise_mxfp4(const void *blocks, float *out, size_t n_blocks) {
    const block_mxfp4 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += 32)
        put_levels(out, b->codes, 16, levels_e2m1, quant_half_of_e8m0(b->exponent));
}

/* Half of what unsigned E4M3 (bias 7) means; the top bit does not count, and 0x7f, which would be NaN, is 0. */
float quant_half_of_ue4m3(uint8_t code) {
    int exponent = code >> 3 & 15, mantissa = code & 7;
    if (code == 0x7f) return 0;
    if (exponent == 0) return (float)mantissa * 0x1p-10f;
    uint32_t power_bits = (uint32_t)(exponent - 7 - 1 + 127) << 23;
    float power;
    memcpy(&power, &power_bits, sizeof power);
    return (1.0f + (float)mantissa / 8.0f) * power;
}

void quant_dequantise_nvfp4(const void *blocks, float *out, size_t n_blocks) {
    const block_nvfp4 *b = blocks;
    for (; n_blocks > 0; n_blocks--, b++, out += 64) {
        for (int s = 0; s < 4; s++) put_levels(out + 16 * s, b->codes[s], 8, levels_e2m1, quant_half_of_ue4m3(b->scales[s]));
    }
}
