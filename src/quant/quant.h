/* Block formats of GGUF tensors: one table row each, in plain C. This is the specification of each format; fast kernels are
 * proven against it. Owns: layouts, dequantisation, quantisation, 16-bit floats. Knows nothing of files, models or instruction sets.
 * Format definitions: ggml's documentation of its block types (ggml-common.h). Pure functions; any thread. */
#ifndef WEIR_QUANT_H
#define WEIR_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The numbers are the tensor types of GGUF files. */
typedef enum quant_type {
    QUANT_F32 = 0, QUANT_F16 = 1, QUANT_Q4_0 = 2, QUANT_Q4_1 = 3, QUANT_Q5_0 = 6, QUANT_Q5_1 = 7, QUANT_Q8_0 = 8,
    QUANT_Q8_1 = 9, QUANT_Q2_K = 10, QUANT_Q3_K = 11, QUANT_Q4_K = 12, QUANT_Q5_K = 13, QUANT_Q6_K = 14, QUANT_Q8_K = 15,
    QUANT_IQ2_XXS = 16, QUANT_IQ2_XS = 17, QUANT_IQ3_XXS = 18, QUANT_IQ1_S = 19, QUANT_IQ4_NL = 20, QUANT_IQ3_S = 21,
    QUANT_IQ2_S = 22, QUANT_IQ4_XS = 23, QUANT_I8 = 24, QUANT_I16 = 25, QUANT_I32 = 26, QUANT_I64 = 27, QUANT_F64 = 28,
    QUANT_IQ1_M = 29, QUANT_BF16 = 30, QUANT_TQ1_0 = 34, QUANT_TQ2_0 = 35, QUANT_MXFP4 = 39, QUANT_NVFP4 = 40, QUANT_Q1_0 = 41,
    QUANT_Q2_0 = 42,
} quant_type;

typedef struct quant_format {
    quant_type type;
    const char *name;   /* as ggml names it: "Q4_K" */
    int32_t block_size; /* values in a block */
    int32_t block_bytes; /* 0: a type that the table lacks (gguf.h) */
    /* Dequantises `n_blocks` blocks to out[n_blocks * block_size]. NULL: the type is known (its size is), but not supported. */
    void (*dequantise)(const void *blocks, float *out, size_t n_blocks);
    /* Quantises x[n_blocks * block_size], all finite, to n_blocks blocks, so that the squared error is small when each value's is
     * weighted with its importance (positive; NULL: a default weighting by size). What a block holds depends on its own values
     * only. NULL: not a target. */
    void (*quantise)(const float *x, const float *importance, void *blocks, size_t n_blocks);
    /* The same compiled for AVX2: the same bytes, sooner. NULL where there is none. */
    void (*quantise_avx2)(const float *x, const float *importance, void *blocks, size_t n_blocks);
} quant_format;

/* The row of `type`; NULL for a number that no row has. */
const quant_format *quant_format_of(uint32_t type);
/* By name, without regard to case; NULL if unknown. */
const quant_format *quant_format_named(const char *name);
/* All rows, in table order. */
const quant_format *quant_format_table(size_t *n_rows);

/* Whether the table has the type; if not, the row stands for a number that a file has (gguf.h). */
static inline bool quant_is_known(const quant_format *format) { return format->block_bytes != 0; }
/* For a type number that no row has: its name where it is known (formats that ggml gave up, formats of its forks), else NULL. */
const char *quant_unknown_name(uint32_t type);
/* Says in text[capacity] what such a type is and what is supported: the nearest format, or all when none is near. */
void quant_explain_unknown(uint32_t type, char *text, size_t capacity);

/* Bytes of a row of n_values; 0 if n_values is not a multiple of the block size. */
size_t quant_row_bytes(const quant_format *format, size_t n_values);

/* IEEE 754 binary16 and bfloat16 conversions. From float: round to nearest, ties to even. */
float quant_f16_to_f32(uint16_t h);
uint16_t quant_f32_to_f16(float f);
float quant_bf16_to_f32(uint16_t h);
uint16_t quant_f32_to_bf16(float f);

#endif
