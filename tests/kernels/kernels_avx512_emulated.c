/* The AVX-512 level on any x86-64 CPU with AVX2: its source compiled over SIMDe, which spells each instruction out for older ones.
 * Slow, and for proof only: what CPUs with AVX-512 will compute is compared with the reference on those without. */
#include <stdint.h>
#include <string.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

/* What this version of SIMDe lacks, in two halves of 256 bits each. */
typedef struct halves_ps { __m256 half[2]; } halves_ps;
typedef struct halves_i { __m256i half[2]; } halves_i;

static inline __m512 join_ps(__m256 low, __m256 high) {
    const halves_ps h = {{low, high}};
    __m512 r;
    memcpy(&r, &h, sizeof r);
    return r;
}
static inline __m512i join_i(__m256i low, __m256i high) {
    const halves_i h = {{low, high}};
    __m512i r;
    memcpy(&r, &h, sizeof r);
    return r;
}
static inline halves_ps split_ps(__m512 x) {
    halves_ps h;
    memcpy(&h, &x, sizeof h);
    return h;
}
static inline halves_i split_i(__m512i x) {
    halves_i h;
    memcpy(&h, &x, sizeof h);
    return h;
}

static inline __m512i emulated_cvtps_epi32(__m512 x) {
    const halves_ps h = split_ps(x);
    return join_i(_mm256_cvtps_epi32(h.half[0]), _mm256_cvtps_epi32(h.half[1]));
}
static inline __m512 emulated_cvtepi32_ps(__m512i x) {
    const halves_i h = split_i(x);
    return join_ps(_mm256_cvtepi32_ps(h.half[0]), _mm256_cvtepi32_ps(h.half[1]));
}
static inline __m512i emulated_cvtepi8_epi32(__m128i x) {
    return join_i(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
static inline __m512i emulated_cvtepu8_epi32(__m128i x) {
    return join_i(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
static inline __m512i emulated_cvtepu16_epi32(__m256i x) {
    return join_i(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
static inline __m512 emulated_cvtph_ps(__m256i x) {
    return join_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
static inline __m256i emulated_cvtps_ph(__m512 x) {
    const halves_ps h = split_ps(x);
    return _mm256_set_m128i(_mm256_cvtps_ph(h.half[1], _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(h.half[0], _MM_FROUND_TO_NEAREST_INT));
}
static inline int32_t emulated_reduce_add_epi32(__m512i x) {
    uint32_t lanes[16], sum = 0;
    memcpy(lanes, &x, sizeof lanes);
    for (int i = 0; i < 16; i++) sum += lanes[i];
    return (int32_t)sum;
}
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph(x, rounding) emulated_cvtps_ph(x)
#define _mm512_extractf32x8_ps(x, which) (split_ps(x).half[which])
#define _mm512_reduce_add_epi32 emulated_reduce_add_epi32

#define KERN_AVX512 1
#define KERN_EMULATED 1
#define KERN_TABLE_NAME kern_ops_avx512_emulated
#define KERN_LEVEL_NAME "avx512, emulated"
extern const struct kern_ops kern_ops_avx512_emulated;
#include "kern/kernels.inc"
