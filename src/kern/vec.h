/* Vectors of 16 lanes for the three instruction-set levels, so that a kernel is written once and compiled once per level with
 * the same IEEE operations in the same order. Included only by kernels.inc. Names: vf = 16 floats, vi = 16 int32, vb = 64 bytes
 * (16 rows of 4 values each). Knows nothing of layouts. */
#ifndef WEIR_KERN_VEC_H
#define WEIR_KERN_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kern/kern.h"

/* What codes of 4 bits stand for (kern_codes); see quant_fp4.c. */
#define VEC_LEVELS_IQ4 1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241
#define VEC_LEVELS_E2M1 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0

/* The vector levels need everything in registers; the plain C level would only grow (its compile time with sanitizers, too). */
#if defined(KERN_AVX512) || defined(KERN_AVX2)
#ifndef KERN_EMULATED
#include <immintrin.h>
#endif
#define VEC_INLINE static inline __attribute__((always_inline))

/* Four bits from `shift` (0 or 4, a constant) on of 16 bytes. */
VEC_INLINE __m128i load_nibbles(const uint8_t *p, int shift) {
    const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return _mm_and_si128(shift ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15));
}
/* The same minus 8. */
VEC_INLINE __m128i load_signed_nibbles(const uint8_t *p, int shift) { return _mm_sub_epi8(load_nibbles(p, shift), _mm_set1_epi8(8)); }
#else
#define VEC_INLINE static inline
#endif

#if defined(KERN_AVX512)

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;
typedef __mmask16 vmask;

VEC_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
VEC_INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
VEC_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
VEC_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
VEC_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
VEC_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
VEC_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
VEC_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
VEC_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
VEC_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
VEC_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
VEC_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
VEC_INLINE vi vf_to_vi(vf a) { return _mm512_cvtps_epi32(a); }
VEC_INLINE vf vi_to_vf(vi a) { return _mm512_cvtepi32_ps(a); }
VEC_INLINE vf vf_from_bits(vi a) { return _mm512_castsi512_ps(a); }
VEC_INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
VEC_INLINE void vf_store_f16(uint16_t *p, vf a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC_INLINE vf vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
VEC_INLINE vf vf_load_u8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))); }
VEC_INLINE vf vf_load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
/* Nibbles as above. */
VEC_INLINE vf vf_load_u4(const uint8_t *p, int shift) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_nibbles(p, shift))); }
VEC_INLINE vf vf_load_i4(const uint8_t *p, int shift) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_signed_nibbles(p, shift))); }
/* Lanes of index begin <= i < end come from a, the others from b. */
VEC_INLINE vf vf_select_range(int begin, int end, vf a, vf b) {
    unsigned low = begin <= 0 ? 0xFFFFu : begin >= 16 ? 0 : 0xFFFFu << begin;
    unsigned high = end <= 0 ? 0 : end >= 16 ? 0xFFFFu : (1u << end) - 1;
    return _mm512_mask_blend_ps((vmask)(low & high), b, a);
}
/* a < b ? x : y */
VEC_INLINE vf vf_select_less(vf a, vf b, vf x, vf y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
/* Sums and maxima by halves: lanes i and i + 8, then + 4, + 2, + 1. */
VEC_INLINE float vf_sum(vf a) {
    __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
VEC_INLINE float vf_hmax(vf a) {
    __m256 x = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
/* 2^(e - 127) for the biased exponents e of 16 bytes; 0 for 0. */
VEC_INLINE vf vf_load_power(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), 23));
}
VEC_INLINE vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
VEC_INLINE vi vi_shl(vi a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
VEC_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
VEC_INLINE int32_t vi_sum(vi a) { return _mm512_reduce_add_epi32(a); }
/* 16 int32 in [-128, 127] to bytes. */
VEC_INLINE void vi_store_i8(int8_t *p, vi a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(a)); }

VEC_INLINE vb vb_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
VEC_INLINE void vb_store(uint8_t *p, vb a) { _mm512_storeu_si512(p, a); }

/* A block of 32 x 16 packed values to 8 vectors, one per 4 values of K. */
VEC_INLINE void vb_unpack(const uint8_t *p, int bits, kern_codes codes, vb w[8]) {
    const vb nibble = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(3);
    if (bits == 8) {
        for (int g = 0; g < 8; g++) w[g] = vb_load(p + 64 * g);
        return;
    }
    if (bits <= 3) {
        for (int h = 0; h < 2; h++) {
            const vb v = vb_load(p + 64 * h);
            w[4 * h] = _mm512_and_si512(v, pair);
            w[4 * h + 1] = _mm512_and_si512(_mm512_srli_epi16(v, 2), pair);
            w[4 * h + 2] = _mm512_and_si512(_mm512_srli_epi16(v, 4), pair);
            w[4 * h + 3] = _mm512_and_si512(_mm512_srli_epi16(v, 6), pair);
        }
    }
    for (int z = 0; z < 4 && bits >= 4; z++) {
        vb v = vb_load(p + 64 * z);
        w[z] = _mm512_and_si512(v, nibble);
        w[z + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    }
    if (bits == 3 || bits == 5) {
        uint64_t high[8];
        memcpy(high, p + 64 * (bits - 1), sizeof high);
        for (int g = 0; g < 8; g++) w[g] = _mm512_mask_add_epi8(w[g], high[g], w[g], _mm512_set1_epi8(1 << (bits - 1)));
    }
    if (bits == 6) {
        const vb mask = _mm512_set1_epi8(0x30);
        for (int h = 0; h < 2; h++) {
            vb v = vb_load(p + 256 + 64 * h);
            /* a | (b & c) */
            w[4 * h] = _mm512_ternarylogic_epi32(w[4 * h], _mm512_slli_epi16(v, 4), mask, 0xF8);
            w[4 * h + 1] = _mm512_ternarylogic_epi32(w[4 * h + 1], _mm512_slli_epi16(v, 2), mask, 0xF8);
            w[4 * h + 2] = _mm512_ternarylogic_epi32(w[4 * h + 2], v, mask, 0xF8);
            w[4 * h + 3] = _mm512_ternarylogic_epi32(w[4 * h + 3], _mm512_srli_epi16(v, 2), mask, 0xF8);
        }
    }
    if (codes != KERN_CODES_PLAIN) {
        static const uint8_t levels[2][16] = {{VEC_LEVELS_IQ4}, {VEC_LEVELS_E2M1}};
        const vb table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)levels[codes == KERN_CODES_E2M1]));
        for (int g = 0; g < 8; g++) w[g] = _mm512_shuffle_epi8(table, w[g]);
    }
}
VEC_INLINE void vec_prefetch(const uint8_t *p, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

enum {
    VEC_TILE_ROWS = 6, VEC_TILE_PANELS = 2, VEC_FEW_ROWS = 4, VEC_HOLDS_SUMS = 1, VEC_READ_PACKED = 8, VEC_READ_BYTES_PACKED = 0,
    VEC_FLOAT_ROWS = 6, VEC_FLOAT_PANELS = 4, VEC_FLOAT_TILE = 4,
    VEC_SCORE_ROWS = 8, VEC_SCORE_VECTORS = 2, VEC_VALUE_ROWS = 6, VEC_VALUE_TILE = 4, VEC_WIDE_ROWS = 8,
};
#define VEC_UNPACKED_BYTES(bits, codes) ((size_t)512)

/* dot[i][j] = sum over groups [g0, g0 + n) of 4 values: block j's weights (unsigned) times activation row i. A block is packed as
 * pack.c says, or what vb_unpack_store made of it. n_panels <= VEC_TILE_PANELS, m <= VEC_TILE_ROWS. */
VEC_INLINE void vb_dots(int m, int n_panels, const uint8_t *const blocks[], int bits, kern_codes codes, bool packed, const int8_t *a,
                        size_t a_stride, int g0, int n, vi dot[][VEC_TILE_PANELS]) {
    vb w[VEC_TILE_PANELS][8];
    for (int j = 0; packed && j < n_panels; j++) vb_unpack(blocks[j], bits, codes, w[j]);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n_panels; j++) dot[i][j] = vi_set1(0);
    for (int g = g0; g < g0 + n; g++) {
        vb values[VEC_TILE_PANELS];
        for (int j = 0; j < n_panels; j++) values[j] = packed ? w[j][g] : vb_load(blocks[j] + 64 * g);
        for (int i = 0; i < m; i++) {
            int32_t four;
            memcpy(&four, a + (size_t)i * a_stride + 4 * g, 4);
            const __m512i all = _mm512_set1_epi32(four);
            for (int j = 0; j < n_panels; j++) dot[i][j] = _mm512_dpbusd_epi32(dot[i][j], values[j], all);
        }
    }
}

#elif defined(KERN_AVX2)

typedef struct vf { __m256 a, b; } vf;
typedef struct vi { __m256i a, b; } vi;
typedef struct vb { __m256i a, b; } vb;

#define VF2(op) ((vf){op(x.a, y.a), op(x.b, y.b)})
VEC_INLINE vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
VEC_INLINE void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
VEC_INLINE vf vf_set1(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
VEC_INLINE vf vf_add(vf x, vf y) { return VF2(_mm256_add_ps); }
VEC_INLINE vf vf_sub(vf x, vf y) { return VF2(_mm256_sub_ps); }
VEC_INLINE vf vf_mul(vf x, vf y) { return VF2(_mm256_mul_ps); }
VEC_INLINE vf vf_div(vf x, vf y) { return VF2(_mm256_div_ps); }
VEC_INLINE vf vf_max(vf x, vf y) { return VF2(_mm256_max_ps); }
VEC_INLINE vf vf_min(vf x, vf y) { return VF2(_mm256_min_ps); }
VEC_INLINE vf vf_fma(vf x, vf y, vf z) { return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
VEC_INLINE vf vf_abs(vf x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (vf){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
VEC_INLINE vf vf_round(vf x) {
    return (vf){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
VEC_INLINE vi vf_to_vi(vf x) { return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
VEC_INLINE vf vi_to_vf(vi x) { return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
VEC_INLINE vf vf_from_bits(vi x) { return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
VEC_INLINE vf vf_load_f16(const uint16_t *p) {
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC_INLINE __m256 half_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
VEC_INLINE vf vf_load_bf16(const uint16_t *p) { return (vf){half_bf16(p), half_bf16(p + 8)}; }
VEC_INLINE vf vf_load_u8(const uint8_t *p) {
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
VEC_INLINE vf vf_load_i8(const int8_t *p) {
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
VEC_INLINE vf vf_load_u4(const uint8_t *p, int shift) {
    const __m128i x = load_nibbles(p, shift);
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(x, x)))};
}
VEC_INLINE vf vf_load_i4(const uint8_t *p, int shift) {
    const __m128i x = load_signed_nibbles(p, shift);
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)))};
}
VEC_INLINE vf vf_select_range(int begin, int end, vf x, vf y) {
    __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), j = _mm256_add_epi32(i, _mm256_set1_epi32(8));
    __m256i low = _mm256_set1_epi32(begin - 1), high = _mm256_set1_epi32(end);
    __m256i in_a = _mm256_and_si256(_mm256_cmpgt_epi32(i, low), _mm256_cmpgt_epi32(high, i));
    __m256i in_b = _mm256_and_si256(_mm256_cmpgt_epi32(j, low), _mm256_cmpgt_epi32(high, j));
    return (vf){_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(in_a)), _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(in_b))};
}
VEC_INLINE vf vf_select_less(vf p, vf q, vf x, vf y) {
    return (vf){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(p.a, q.a, _CMP_LT_OQ)),
                _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(p.b, q.b, _CMP_LT_OQ))};
}
VEC_INLINE float vf_sum(vf x) {
    __m256 h = _mm256_add_ps(x.a, x.b);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
VEC_INLINE float vf_hmax(vf x) {
    __m256 h = _mm256_max_ps(x.a, x.b);
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
VEC_INLINE vf vf_load_power(const uint8_t *p) {
    return (vf){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)), 23)),
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))), 23))};
}
VEC_INLINE vi vi_set1(int32_t x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
VEC_INLINE vi vi_shl(vi x, int n) { return (vi){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
VEC_INLINE vi vi_add(vi x, vi y) { return (vi){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
VEC_INLINE int32_t vi_sum(vi x) {
    __m256i h = _mm256_add_epi32(x.a, x.b);
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}
VEC_INLINE void vi_store_i8(int8_t *p, vi x) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
VEC_INLINE vb vb_load(const uint8_t *p) {
    return (vb){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
VEC_INLINE void vb_store(uint8_t *p, vb x) {
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)(p + 32), x.b);
}
/* Bit i of a 32-bit word to byte i, as `value` or 0. */
VEC_INLINE __m256i spread_bits(uint32_t bits, char value) {
    const __m256i byte_of = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit_of = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32((int32_t)bits), byte_of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(x, bit_of), bit_of), _mm256_set1_epi8(value));
}
enum {
    VEC_TILE_ROWS = 4, VEC_TILE_PANELS = 1, VEC_FEW_ROWS = 4, VEC_HOLDS_SUMS = 0, VEC_READ_PACKED = 32, VEC_READ_BYTES_PACKED = 1,
    VEC_FLOAT_ROWS = 6, VEC_FLOAT_PANELS = 4, VEC_FLOAT_TILE = 1,
    VEC_SCORE_ROWS = 6, VEC_SCORE_VECTORS = 2, VEC_VALUE_ROWS = 6, VEC_VALUE_TILE = 2, VEC_WIDE_ROWS = 2,
};
/* vpmaddubsw adds pairs of products of unsigned weights and signed activations in 16 bits. |activation| <= 127, so of a weight of b
 * bits (2^b - 1) * 127 * 2 is the most it gives, and so many results can be added before they must be widened to 32 bits. 8-bit
 * weights go as two planes of 4 bits, the high nibbles (which count 16 times) before the low ones. */
#define VEC_UNPACKED_BYTES(bits, codes) ((size_t)((bits) == 8 || (codes) == KERN_CODES_IQ4 ? 1024 : 512))
typedef enum vb_form { VB_BYTES, VB_PACKED, VB_HIGH_NIBBLES, VB_LOW_NIBBLES } vb_form;

/* Bits of what a packed value stands for. */
VEC_INLINE int value_bits(int bits, kern_codes codes) { return codes == KERN_CODES_IQ4 ? 8 : codes == KERN_CODES_E2M1 ? 5 : bits; }

VEC_INLINE vb vb_shift_right(vb v, int n) { return n ? (vb){_mm256_srli_epi16(v.a, n), _mm256_srli_epi16(v.b, n)} : v; }
VEC_INLINE vb vb_and(vb v, __m256i mask) { return (vb){_mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask)}; }
VEC_INLINE vb vb_or(vb v, vb w) { return (vb){_mm256_or_si256(v.a, w.a), _mm256_or_si256(v.b, w.b)}; }

/* Levels of 4-bit codes; of 8-bit levels one nibble. */
VEC_INLINE vb vb_levels(vb code, kern_codes codes, vb_form form) {
    static const uint8_t iq4[16] = {VEC_LEVELS_IQ4}, e2m1[16] = {VEC_LEVELS_E2M1};
    const __m128i levels = _mm_loadu_si128((const __m128i *)(codes == KERN_CODES_IQ4 ? iq4 : e2m1));
    __m256i table = _mm256_broadcastsi128_si256(levels);
    if (form == VB_HIGH_NIBBLES) table = _mm256_srli_epi16(table, 4);
    if (form != VB_PACKED) table = _mm256_and_si256(table, _mm256_set1_epi8(15));
    return (vb){_mm256_shuffle_epi8(table, code.a), _mm256_shuffle_epi8(table, code.b)};
}

/* Group g of a block: 16 rows x 4 values as unsigned bytes. */
VEC_INLINE vb vb_group(const uint8_t *p, int bits, kern_codes codes, vb_form form, int g) {
    const __m256i nibble = _mm256_set1_epi8(15);
    if (form == VB_BYTES) return vb_load(p + 64 * g);
    if (bits == 8) return vb_and(vb_shift_right(vb_load(p + 64 * g), form == VB_HIGH_NIBBLES ? 4 : 0), nibble);
    vb v;
    if (bits <= 3) v = vb_and(vb_shift_right(vb_load(p + 64 * (g / 4)), 2 * (g % 4)), _mm256_set1_epi8(3));
    else v = vb_and(vb_shift_right(vb_load(p + 64 * (g % 4)), g >= 4 ? 4 : 0), nibble);
    if (codes != KERN_CODES_PLAIN) return vb_levels(v, codes, form);
    if (bits == 3 || bits == 5) {
        uint32_t high[2];
        memcpy(high, p + 64 * (bits - 1) + 8 * g, sizeof high);
        v = vb_or(v, (vb){spread_bits(high[0], (char)(1 << (bits - 1))), spread_bits(high[1], (char)(1 << (bits - 1)))});
    }
    if (bits == 6) {
        const vb h = vb_load(p + 256 + 64 * (g / 4));
        const int shift = 4 - 2 * (g % 4);
        const vb high = shift >= 0 ? (vb){_mm256_slli_epi16(h.a, shift), _mm256_slli_epi16(h.b, shift)} : vb_shift_right(h, 2);
        v = vb_or(v, vb_and(high, _mm256_set1_epi8(0x30)));
    }
    return v;
}

VEC_INLINE void vb_unpack_store(const uint8_t *p, int bits, kern_codes codes, uint8_t *to) {
    const bool planes = value_bits(bits, codes) == 8;
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        vb_store(to + 64 * g, vb_group(p, bits, codes, planes ? VB_HIGH_NIBBLES : VB_PACKED, g));
        if (planes) vb_store(to + 512 + 64 * g, vb_group(p, bits, codes, VB_LOW_NIBBLES, g));
    }
}

/* sum[i] += the products of group g, in 16 bits. */
VEC_INLINE void vb_add_products(int m, vb w, const int8_t *a, size_t a_stride, __m256i sum[][2]) {
    for (int i = 0; i < m; i++) {
        int32_t four;
        memcpy(&four, a + (size_t)i * a_stride, 4);
        const __m256i x = _mm256_set1_epi32(four);
        sum[i][0] = _mm256_add_epi16(sum[i][0], _mm256_maddubs_epi16(w.a, x));
        sum[i][1] = _mm256_add_epi16(sum[i][1], _mm256_maddubs_epi16(w.b, x));
    }
}

/* dot[i] += factor * the products of groups [g0, g0 + n), of which `run` fit into 16 bits. */
VEC_INLINE void vb_dots_of(int m, const uint8_t *p, int bits, kern_codes codes, vb_form form, int run, int16_t factor, const int8_t *a, size_t a_stride, int g0,
                           int n, vi dot[][VEC_TILE_PANELS]) {
    const __m256i factors = _mm256_set1_epi16(factor);
#pragma GCC unroll 8
    for (int r = g0; r < g0 + n; r += run) {
        __m256i sum[VEC_TILE_ROWS][2];
        for (int i = 0; i < m; i++) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int g = r; g < r + run; g++) vb_add_products(m, vb_group(p, bits, codes, form, g), a + 4 * g, a_stride, sum);
        for (int i = 0; i < m; i++) {
            dot[i][0].a = _mm256_add_epi32(dot[i][0].a, _mm256_madd_epi16(sum[i][0], factors));
            dot[i][0].b = _mm256_add_epi32(dot[i][0].b, _mm256_madd_epi16(sum[i][1], factors));
        }
    }
}

VEC_INLINE void vb_dots(int m, int n_panels, const uint8_t *const blocks[], int bits, kern_codes codes, bool packed, const int8_t *a,
                        size_t a_stride, int g0, int n, vi dot[][VEC_TILE_PANELS]) {
    const uint8_t *p = blocks[0];
    (void)n_panels;
    for (int i = 0; i < m; i++) dot[i][0] = vi_set1(0);
    const int range = value_bits(bits, codes);
    if (range == 8) {
        vb_dots_of(m, p, bits, codes, packed ? VB_HIGH_NIBBLES : VB_BYTES, n, 16, a, a_stride, g0, n, dot);
        __asm__("" : "+r"(a)); /* else the compiler keeps all broadcasts, on the stack, from the first plane to the second */
        vb_dots_of(m, packed ? p : p + 512, bits, codes, packed ? VB_LOW_NIBBLES : VB_BYTES, n, 1, a, a_stride, g0, n, dot);
    } else {
        const int most = range <= 4 ? 8 : range == 5 ? 4 : 2;
        vb_dots_of(m, p, bits, codes, packed ? VB_PACKED : VB_BYTES, n < most ? n : most, 1, a, a_stride, g0, n, dot);
    }
}

#else /* reference: plain C */

typedef struct vf { float v[16]; } vf;
typedef struct vi { int32_t v[16]; } vi;
typedef struct vb { uint8_t v[64]; } vb;

#define LANES(type, expression)                                                                                                  \
    type r;                                                                                                                      \
    for (int i = 0; i < 16; i++) r.v[i] = (expression);                                                                          \
    return r
VEC_INLINE vf vf_load(const float *p) { LANES(vf, p[i]); }
VEC_INLINE void vf_store(float *p, vf a) { memcpy(p, a.v, sizeof a.v); }
VEC_INLINE vf vf_set1(float x) { LANES(vf, x); }
VEC_INLINE vf vf_add(vf a, vf b) { LANES(vf, a.v[i] + b.v[i]); }
VEC_INLINE vf vf_sub(vf a, vf b) { LANES(vf, a.v[i] - b.v[i]); }
VEC_INLINE vf vf_mul(vf a, vf b) { LANES(vf, a.v[i] * b.v[i]); }
VEC_INLINE vf vf_div(vf a, vf b) { LANES(vf, a.v[i] / b.v[i]); }
/* As the instructions do: the second operand when either is NaN. */
VEC_INLINE vf vf_max(vf a, vf b) { LANES(vf, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
VEC_INLINE vf vf_min(vf a, vf b) { LANES(vf, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
VEC_INLINE vf vf_fma(vf a, vf b, vf c) { LANES(vf, fmaf(a.v[i], b.v[i], c.v[i])); }
VEC_INLINE vf vf_abs(vf a) { LANES(vf, fabsf(a.v[i])); }
VEC_INLINE vf vf_round(vf a) { LANES(vf, nearbyintf(a.v[i])); }
/* What the instruction gives for NaN and for values out of range. */
VEC_INLINE vi vf_to_vi(vf a) { LANES(vi, fabsf(a.v[i]) < 2147483648.0f ? (int32_t)lrintf(a.v[i]) : INT32_MIN); }
VEC_INLINE vf vi_to_vf(vi a) { LANES(vf, (float)a.v[i]); }
VEC_INLINE vf vf_from_bits(vi a) {
    vf r;
    memcpy(r.v, a.v, sizeof r.v);
    return r;
}
VEC_INLINE vf vf_load_f16(const uint16_t *p) { LANES(vf, quant_f16_to_f32(p[i])); }
VEC_INLINE void vf_store_f16(uint16_t *p, vf a) {
    for (int i = 0; i < 16; i++) p[i] = quant_f32_to_f16(a.v[i]);
}
VEC_INLINE vf vf_load_bf16(const uint16_t *p) { LANES(vf, quant_bf16_to_f32(p[i])); }
VEC_INLINE vf vf_load_u8(const uint8_t *p) { LANES(vf, (float)p[i]); }
VEC_INLINE vf vf_load_i8(const int8_t *p) { LANES(vf, (float)p[i]); }
VEC_INLINE vf vf_load_u4(const uint8_t *p, int shift) { LANES(vf, (float)(p[i] >> shift & 15)); }
VEC_INLINE vf vf_load_i4(const uint8_t *p, int shift) { LANES(vf, (float)((p[i] >> shift & 15) - 8)); }
VEC_INLINE vf vf_select_range(int begin, int end, vf a, vf b) { LANES(vf, i >= begin && i < end ? a.v[i] : b.v[i]); }
VEC_INLINE vf vf_select_less(vf a, vf b, vf x, vf y) { LANES(vf, a.v[i] < b.v[i] ? x.v[i] : y.v[i]); }
VEC_INLINE float vf_sum(vf a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] + a.v[i + half];
    return a.v[0];
}
VEC_INLINE float vf_hmax(vf a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
VEC_INLINE vf vf_load_power(const uint8_t *p) {
    vi bits;
    for (int i = 0; i < 16; i++) bits.v[i] = (int32_t)p[i] << 23;
    return vf_from_bits(bits);
}
VEC_INLINE vi vi_set1(int32_t x) { LANES(vi, x); }
VEC_INLINE vi vi_shl(vi a, int n) { LANES(vi, (int32_t)((uint32_t)a.v[i] << n)); }
VEC_INLINE vi vi_add(vi a, vi b) { LANES(vi, a.v[i] + b.v[i]); }
VEC_INLINE int32_t vi_sum(vi a) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += a.v[i];
    return sum;
}
VEC_INLINE void vi_store_i8(int8_t *p, vi a) {
    for (int i = 0; i < 16; i++) p[i] = (int8_t)(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
}
VEC_INLINE vb vb_load(const uint8_t *p) {
    vb r;
    memcpy(r.v, p, 64);
    return r;
}
VEC_INLINE void vb_store(uint8_t *p, vb a) { memcpy(p, a.v, 64); }
VEC_INLINE void vb_unpack(const uint8_t *p, int bits, kern_codes codes, vb w[8]) {
    static const uint8_t iq4[16] = {VEC_LEVELS_IQ4}, e2m1[16] = {VEC_LEVELS_E2M1};
    for (int g = 0; g < 8; g++) {
        for (int i = 0; i < 64; i++) {
            unsigned value;
            if (bits == 8) value = p[64 * g + i];
            else if (bits <= 3) value = p[64 * (g / 4) + i] >> 2 * (g % 4) & 3u;
            else value = g < 4 ? p[64 * g + i] & 15u : p[64 * (g - 4) + i] >> 4;
            if (bits == 3 || bits == 5) value |= (p[64 * (bits - 1) + 8 * g + i / 8] >> i % 8 & 1u) << (bits - 1);
            if (bits == 6) value |= (p[256 + 64 * (g / 4) + i] >> 2 * (g % 4) & 3u) << 4;
            if (codes != KERN_CODES_PLAIN) value = codes == KERN_CODES_IQ4 ? iq4[value] : e2m1[value];
            w[g].v[i] = (uint8_t)value;
        }
    }
}
enum {
    VEC_TILE_ROWS = 2, VEC_TILE_PANELS = 1, VEC_FEW_ROWS = 2, VEC_HOLDS_SUMS = 1, VEC_READ_PACKED = 8, VEC_READ_BYTES_PACKED = 0,
    VEC_FLOAT_ROWS = 2, VEC_FLOAT_PANELS = 1, VEC_FLOAT_TILE = 1,
    VEC_SCORE_ROWS = 2, VEC_SCORE_VECTORS = 2, VEC_VALUE_ROWS = 2, VEC_VALUE_TILE = 1, VEC_WIDE_ROWS = 2,
};
#define VEC_UNPACKED_BYTES(bits, codes) ((size_t)512)
VEC_INLINE void vb_dots(int m, int n_panels, const uint8_t *const blocks[], int bits, kern_codes codes, bool packed, const int8_t *a,
                        size_t a_stride, int g0, int n, vi dot[][VEC_TILE_PANELS]) {
    (void)n_panels;
    vb w[8];
    vb_unpack(blocks[0], packed ? bits : 8, packed ? codes : KERN_CODES_PLAIN, w);
    for (int i = 0; i < m; i++) {
        vi sum = vi_set1(0);
        for (int g = g0; g < g0 + n; g++)
            for (int k = 0; k < 64; k++) sum.v[k / 4] += (int32_t)w[g].v[k] * a[(size_t)i * a_stride + (size_t)(4 * g + k % 4)];
        dot[i][0] = sum;
    }
}
#endif

#ifndef KERN_AVX2
/* A packed block as the bytes that vb_dots takes when it is not packed. */
VEC_INLINE void vb_unpack_store(const uint8_t *p, int bits, kern_codes codes, uint8_t *to) {
    vb w[8];
    vb_unpack(p, bits, codes, w);
    for (int g = 0; g < 8; g++) vb_store(to + 64 * g, w[g]);
}
#endif

#ifndef KERN_AVX512
/* Only AVX-512 gains by it. */
VEC_INLINE void vec_prefetch(const uint8_t *p, size_t n_bytes) {
    (void)p;
    (void)n_bytes;
}
#endif

/* BF16, rounded to the nearest, ties to even; NaN stays NaN. The compiler makes vectors of it. */
VEC_INLINE void vf_store_bf16(uint16_t *p, vf a) {
    uint32_t bits[16];
    float values[16];
    vf_store(values, a);
    memcpy(bits, values, sizeof bits);
    for (int i = 0; i < 16; i++) {
        const uint32_t rounded = (bits[i] + 0x7fffu + (bits[i] >> 16 & 1)) >> 16, nan = bits[i] >> 16 | 0x40u;
        p[i] = (uint16_t)((bits[i] & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
    }
}

/* exp(x) for any x: Cody-Waite reduction by ln 2 and a polynomial of degree 6 on [-ln2/2, ln2/2]; relative error below 2e-7.
 * 0 below -87.3 (so exp(-inf) = 0), the value at 88.3 above (coefficients: Cephes library, S. L. Moshier, expf). */
VEC_INLINE vf vf_exp(vf x0) {
    vf x = vf_min(vf_max(x0, vf_set1(-87.3f)), vf_set1(88.3f));
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1.0f));
    vi power = vi_shl(vi_add(vf_to_vi(n), vi_set1(127)), 23);
    return vf_select_less(x0, vf_set1(-87.3f), vf_set1(0.0f), vf_mul(p, vf_from_bits(power)));
}

#endif
