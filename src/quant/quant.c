/* The table of block formats, look-ups in it, and conversions of 16-bit floats. See quant.h. */
#include "quant/quant.h"

#include <string.h>
#include <strings.h>

#include "quant/quant_formats.h"

/* Rows whose values the library turns into floats and back, only into floats, and ones that it can only measure. */
/* clang-format off */
#if defined(__x86_64__)
#define AVX2(function) quant_quantise_##function##_avx2
#else
#define AVX2(function) NULL
#endif
#define FORMAT(id, text, values, bytes, function) \
    {QUANT_##id, text, values, bytes, quant_dequantise_##function, quant_quantise_##function, AVX2(function)}
#define READ_ONLY(id, text, values, bytes, function) {QUANT_##id, text, values, bytes, quant_dequantise_##function, NULL, NULL}
#define SIZE_ONLY(id, text, values, bytes) {QUANT_##id, text, values, bytes, NULL, NULL, NULL}
/* clang-format on */

/* In the order of the type numbers. */
static const quant_format formats[] = {
    FORMAT(F32, "F32", 1, 4, f32),
    FORMAT(F16, "F16", 1, 2, f16),
    FORMAT(Q4_0, "Q4_0", 32, 18, q4_0),
    FORMAT(Q4_1, "Q4_1", 32, 20, q4_1),
    FORMAT(Q5_0, "Q5_0", 32, 22, q5_0),
    FORMAT(Q5_1, "Q5_1", 32, 24, q5_1),
    FORMAT(Q8_0, "Q8_0", 32, 34, q8_0),
    SIZE_ONLY(Q8_1, "Q8_1", 32, 36),
    FORMAT(Q2_K, "Q2_K", 256, 84, q2_k),
    FORMAT(Q3_K, "Q3_K", 256, 110, q3_k),
    FORMAT(Q4_K, "Q4_K", 256, 144, q4_k),
    FORMAT(Q5_K, "Q5_K", 256, 176, q5_k),
    FORMAT(Q6_K, "Q6_K", 256, 210, q6_k),
    SIZE_ONLY(Q8_K, "Q8_K", 256, 292),
    FORMAT(IQ2_XXS, "IQ2_XXS", 256, 66, iq2_xxs),
    FORMAT(IQ2_XS, "IQ2_XS", 256, 74, iq2_xs),
    FORMAT(IQ3_XXS, "IQ3_XXS", 256, 98, iq3_xxs),
    READ_ONLY(IQ1_S, "IQ1_S", 256, 50, iq1_s),
    FORMAT(IQ4_NL, "IQ4_NL", 32, 18, iq4_nl),
    FORMAT(IQ3_S, "IQ3_S", 256, 110, iq3_s),
    FORMAT(IQ2_S, "IQ2_S", 256, 82, iq2_s),
    FORMAT(IQ4_XS, "IQ4_XS", 256, 136, iq4_xs),
    SIZE_ONLY(I8, "I8", 1, 1),
    SIZE_ONLY(I16, "I16", 1, 2),
    SIZE_ONLY(I32, "I32", 1, 4),
    SIZE_ONLY(I64, "I64", 1, 8),
    SIZE_ONLY(F64, "F64", 1, 8),
    READ_ONLY(IQ1_M, "IQ1_M", 256, 56, iq1_m),
    FORMAT(BF16, "BF16", 1, 2, bf16),
    FORMAT(TQ1_0, "TQ1_0", 256, 54, tq1_0),
    FORMAT(TQ2_0, "TQ2_0", 256, 66, tq2_0),
    FORMAT(MXFP4, "MXFP4", 32, 17, mxfp4),
    FORMAT(NVFP4, "NVFP4", 64, 36, nvfp4),
    FORMAT(Q1_0, "Q1_0", 128, 18, q1_0),
    FORMAT(Q2_0, "Q2_0", 64, 18, q2_0),
};

enum { N_FORMATS = sizeof formats / sizeof formats[0] };

const quant_format *quant_format_of(uint32_t type) {
    for (size_t i = 0; i < N_FORMATS; i++) {
        if ((uint32_t)formats[i].type == type) return &formats[i];
    }
    return NULL;
}

const quant_format *quant_format_named(const char *name) {
    for (size_t i = 0; i < N_FORMATS; i++) {
        if (strcasecmp(formats[i].name, name) == 0) return &formats[i];
    }
    return NULL;
}

const quant_format *quant_format_table(size_t *n_rows) {
    *n_rows = N_FORMATS;
    return formats;
}

size_t quant_row_bytes(const quant_format *format, size_t n_values) {
    size_t block_size = (size_t)format->block_size, n_bytes;
    if (n_values % block_size != 0) return 0;
    return __builtin_mul_overflow(n_values / block_size, (size_t)format->block_bytes, &n_bytes) ? 0 : n_bytes;
}

static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

float quant_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ffu;
    /* Subnormals go through an integer conversion: exact, and not at the mercy of a denormals-are-zero mode. */
    if (exponent == 0) return float_of(sign | bits_of((float)mantissa * 0x1p-24f));
    if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0));
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t quant_f32_to_f16(float f) {
    enum { HALF_OF_LARGEST_STEP = 0x477ff000, SMALLEST_NORMAL = 0x38800000 }; /* 65520 and 2^-14 */
    uint32_t bits = bits_of(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= HALF_OF_LARGEST_STEP) return (uint16_t)(sign | 0x7c00u);
    if (magnitude < SMALLEST_NORMAL) { /* at 0.5 the last place of a float is 2^-24, a step of the subnormals: the sum rounds */
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
}

float quant_bf16_to_f32(uint16_t h) {
    return float_of((uint32_t)h << 16);
}

uint16_t quant_f32_to_bf16(float f) {
    uint32_t bits = bits_of(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
