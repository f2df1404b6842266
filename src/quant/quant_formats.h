/* Inside src/quant only: the dequantisers and quantisers that the table in quant.c names, and loads of little-endian fields.
 * Blocks are described by structs of bytes, so that they have no alignment and no padding on any machine. */
#ifndef WEIR_QUANT_FORMATS_H
#define WEIR_QUANT_FORMATS_H

#include <stddef.h>
#include <stdint.h>

#include "quant/quant.h"

enum { QUANT_SUPER_BLOCK = 256 }; /* values in a block of the K, IQ and TQ formats */

static inline uint32_t load_u16(const uint8_t *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8;
}
static inline uint32_t load_u32(const uint8_t *bytes) {
    return load_u16(bytes) | load_u16(bytes + 2) << 16;
}
static inline float load_f16(const uint8_t *bytes) {
    return quant_f16_to_f32((uint16_t)load_u16(bytes));
}

void quant_dequantise_f32(const void *blocks, float *out, size_t n_blocks); /* quant_basic.c */
void quant_dequantise_f16(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_bf16(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q4_0(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q4_1(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q5_0(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q5_1(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q8_0(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q2_k(const void *blocks, float *out, size_t n_blocks); /* quant_k.c */
void quant_dequantise_q3_k(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q4_k(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q5_k(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q6_k(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_iq1_s(const void *blocks, float *out, size_t n_blocks); /* quant_iq.c */
void quant_dequantise_iq1_m(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_iq2_xxs(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_iq2_xs(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_iq2_s(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_iq3_xxs(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_iq3_s(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_iq4_nl(const void *blocks, float *out, size_t n_blocks); /* quant_fp4.c */
void quant_dequantise_iq4_xs(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_mxfp4(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_nvfp4(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_tq1_0(const void *blocks, float *out, size_t n_blocks); /* quant_low.c */
void quant_dequantise_tq2_0(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q1_0(const void *blocks, float *out, size_t n_blocks);
void quant_dequantise_q2_0(const void *blocks, float *out, size_t n_blocks);

/* The quantisers (quantise_basic.c, quantise_k.c, quantise_iq.c), and the same compiled for AVX2, which give the same bytes. */
#define QUANT_QUANTISERS(X)                                                                                                    \
    X(f32)                                                                                                                     \
    X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(iq4_nl) X(mxfp4) X(nvfp4) X(tq1_0) X(tq2_0) X(q1_0) X(q2_0)       \
        X(q2_k) X(q3_k) X(q4_k) X(q5_k) X(q6_k) X(iq4_xs) X(iq2_xxs) X(iq2_xs) X(iq2_s) X(iq3_xxs) X(iq3_s)
#define QUANT_DECLARE(name)                                                                                                    \
    void quant_quantise_##name(const float *x, const float *importance, void *blocks, size_t n_blocks);                        \
    void quant_quantise_##name##_avx2(const float *x, const float *importance, void *blocks, size_t n_blocks);
QUANT_QUANTISERS(QUANT_DECLARE)
#undef QUANT_DECLARE

#endif
