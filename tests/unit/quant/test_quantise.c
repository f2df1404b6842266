/* Quantising: what comes back is near what went in, what a format can hold comes back exactly, importance is heeded, and blocks
 * do not know of each other. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/quant.h"

enum { N = 4096, MAX_BYTES = 4 * N + 64 };

static uint32_t seed;

static float uniform(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) * 0x1p-24f;
}

static float normal(void) {
    return sqrtf(-2 * logf(uniform() + 0x1p-25f)) * cosf(6.2831853f * uniform());
}

/* Rows of weights: normal ones, and (tail) ones with a few large values. */
static void make_weights(float x[N], bool tail) {
    seed = 7;
    for (int i = 0; i < N; i++) x[i] = 0.03f * normal() * (tail ? expf(0.7f * normal()) : 1);
}

static void there_and_back(const quant_format *f, const float *x, const float *importance, float *y, size_t n) {
    static unsigned char blocks[MAX_BYTES];
    memset(blocks, 0xa5, sizeof blocks);
    size_t n_blocks = n / (size_t)f->block_size, n_bytes = n_blocks * (size_t)f->block_bytes;
    f->quantise(x, importance, blocks + 1, n_blocks); /* no alignment is needed */
    assert_int_equal(blocks[0], 0xa5);
    assert_int_equal(blocks[1 + n_bytes], 0xa5);
    f->dequantise(blocks + 1, y, n_blocks);
}

static double relative_error(const float *x, const float *y, const float *weight, size_t n) {
    double error = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double w = weight ? weight[i] : 1, d = (double)x[i] - y[i];
        error += w * d * d;
        sum += w * x[i] * x[i];
    }
    return sum > 0 ? sqrt(error / sum) : sqrt(error);
}

/* Root mean square of the error against that of the values: what the search reaches, and a few percent. */
static const struct {
    quant_type type;
    double normal, tail;
} bounds[] = {
    {QUANT_F32, 0, 0},           {QUANT_F16, 2.5e-4, 2.5e-4},  {QUANT_BF16, 2e-3, 2e-3},     {QUANT_Q4_0, 0.088, 0.127},
    {QUANT_Q4_1, 0.076, 0.092},  {QUANT_Q5_0, 0.044, 0.065},   {QUANT_Q5_1, 0.038, 0.045},   {QUANT_Q8_0, 0.0056, 0.0079},
    {QUANT_Q2_K, 0.28, 0.32},    {QUANT_Q3_K, 0.16, 0.195},    {QUANT_Q4_K, 0.077, 0.095},   {QUANT_Q5_K, 0.038, 0.046},
    {QUANT_Q6_K, 0.019, 0.0245}, {QUANT_IQ4_NL, 0.080, 0.101}, {QUANT_IQ4_XS, 0.081, 0.102}, {QUANT_MXFP4, 0.125, 0.141},
    {QUANT_NVFP4, 0.098, 0.098}, {QUANT_TQ1_0, 0.52, 0.62},    {QUANT_TQ2_0, 0.52, 0.62},    {QUANT_Q1_0, 0.63, 0.86},
    {QUANT_Q2_0, 0.40, 0.47},    {QUANT_IQ2_XXS, 0.36, 0.45},  {QUANT_IQ2_XS, 0.32, 0.36},   {QUANT_IQ2_S, 0.30, 0.34},
    {QUANT_IQ3_XXS, 0.21, 0.24}, {QUANT_IQ3_S, 0.17, 0.20},
};
enum { N_BOUNDS = sizeof bounds / sizeof bounds[0] };

static void test_error_bounds(void **state) {
    (void)state;
    static float x[N], y[N];
    size_t n_rows, n_targets = 0, n_failed = 0;
    const quant_format *rows = quant_format_table(&n_rows);
    for (size_t i = 0; i < n_rows; i++) n_targets += rows[i].quantise != NULL;
    assert_int_equal(n_targets, N_BOUNDS); /* every format that can be written is here */
    for (size_t i = 0; i < 2 * N_BOUNDS; i++) {
        const quant_format *f = quant_format_of((uint32_t)bounds[i / 2].type);
        double bound = i % 2 ? bounds[i / 2].tail : bounds[i / 2].normal, error;
        make_weights(x, i % 2);
        there_and_back(f, x, NULL, y, N);
        error = relative_error(x, y, NULL, N);
        if (error <= bound && error >= 0.7 * bound) continue; /* far below the bound, the bound would say nothing */
        print_error("%s, %s values: error %.5f, bound %.5f\n", f->name, i % 2 ? "spread" : "normal", error, bound);
        n_failed++;
    }
    assert_int_equal(n_failed, 0);
}

/* Values that a format has written itself, whose groups of 16 hold one large value each. */
static void make_representable(const quant_format *f, float y[N]) {
    static unsigned char blocks[MAX_BYTES];
    static float x[N];
    seed = 11;
    for (int i = 0; i < N; i++) x[i] = (float)((int)(uniform() * 15) - 7) * (i % 16 ? 1 : 8);
    f->quantise(x, NULL, blocks, N / (size_t)f->block_size);
    f->dequantise(blocks, y, N / (size_t)f->block_size);
}

/* What a file holds already is not changed by quantising it to the same format: dequantised blocks come back as they are. */
static void test_representable_is_exact(void **state) {
    (void)state;
    static const quant_type types[] = {QUANT_F32,  QUANT_F16,    QUANT_BF16,  QUANT_Q4_0,  QUANT_Q4_1,  QUANT_Q5_0, QUANT_Q5_1,
                                       QUANT_Q8_0, QUANT_IQ4_NL, QUANT_MXFP4, QUANT_TQ1_0, QUANT_TQ2_0, QUANT_Q1_0, QUANT_Q2_0};
    static float y[N], z[N];
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        const quant_format *f = quant_format_of((uint32_t)types[i]);
        make_representable(f, y);
        there_and_back(f, y, NULL, z, N);
        for (int k = 0; k < N; k++) {
            if (y[k] != z[k]) fail_msg("%s: value %d is %g, and %g after", f->name, k, (double)y[k], (double)z[k]);
        }
    }
}

/* Formats with two levels of scales may find another set of integers for the same values; the values move by next to nothing.
 */
static void test_representable_of_super_blocks(void **state) {
    (void)state;
    static const quant_type types[] = {QUANT_Q2_K, QUANT_Q3_K, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K, QUANT_IQ4_XS, QUANT_NVFP4};
    static float x[N], y[N], z[N];
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        const quant_format *f = quant_format_of((uint32_t)types[i]);
        make_weights(x, false);
        there_and_back(f, x, NULL, y, N);
        there_and_back(f, y, NULL, z, N);
        double first = relative_error(x, y, NULL, N), second = relative_error(y, z, NULL, N);
        if (second > 0.35 * first) fail_msg("%s: error %.5f, and %.5f more the second time", f->name, first, second);
    }
}

/* A tenth of the columns matters a hundred times as much: their error falls when the quantiser knows. */
static void test_importance(void **state) {
    (void)state;
    static float x[N], y[N], importance[N];
    make_weights(x, false);
    for (int i = 0; i < N; i++) importance[i] = i % 10 == 3 ? 9.0f : 0.09f;
    for (size_t i = 3; i < N_BOUNDS; i++) {
        const quant_format *f = quant_format_of((uint32_t)bounds[i].type);
        if (f->type == QUANT_Q1_0) continue; /* signs leave nothing to choose */
        there_and_back(f, x, NULL, y, N);
        double without = relative_error(x, y, importance, N);
        there_and_back(f, x, importance, y, N);
        double with = relative_error(x, y, importance, N);
        if (with >= without) fail_msg("%s: weighted error %.5f with importance, %.5f without", f->name, with, without);
    }
}

static void test_blocks_are_independent(void **state) {
    (void)state;
    static float x[N];
    static unsigned char all[MAX_BYTES], one[1024];
    make_weights(x, true);
    for (size_t i = 0; i < N_BOUNDS; i++) {
        const quant_format *f = quant_format_of((uint32_t)bounds[i].type);
        size_t size = (size_t)f->block_size, bytes = (size_t)f->block_bytes;
        f->quantise(x, NULL, all, N / size);
        for (size_t b = 0; b < N / size; b += 3) {
            f->quantise(x + b * size, NULL, one, 1);
            assert_memory_equal(one, all + b * bytes, bytes);
        }
        f->quantise(x, NULL, one, 0);
        if (f->quantise_avx2 == NULL || !__builtin_cpu_supports("avx2")) continue;
        static unsigned char again[MAX_BYTES];
        f->quantise_avx2(x, NULL, again, N / size);
        assert_memory_equal(again, all, N / size * bytes);
    }
}

/* Zeros, one value among zeros, equal values, very small and very large ones. */
static void test_special_blocks(void **state) {
    (void)state;
    static float x[256], y[256];
    for (size_t i = 0; i < N_BOUNDS; i++) {
        const quant_format *f = quant_format_of((uint32_t)bounds[i].type);
        size_t n = (size_t)f->block_size > 1 ? (size_t)f->block_size : 256;
        for (int kind = 0; kind < 7; kind++) {
            for (size_t k = 0; k < n; k++) {
                static const float scales[] = {0, 0, 1, -1, 1e-30f, 60000, 1e-7f};
                x[k] = kind == 1 ? (k == 17 ? -3.0f : 0) : scales[kind] * (kind < 4 ? 1 : (float)k / (float)n - 0.3f);
                if (f->type == QUANT_NVFP4 && kind == 5) x[k] *= 0.04f;
            }
            there_and_back(f, x, NULL, y, n);
            for (size_t k = 0; k < n; k++) {
                if (!isfinite(y[k])) fail_msg("%s, kind %d: value %zu is %g", f->name, kind, k, (double)y[k]);
                if (kind == 0 && y[k] != 0) fail_msg("%s: zero became %g", f->name, (double)y[k]);
            }
            /* Q1_0, IQ2 and IQ3 have no zero, and subnormal scales lose precision. */
            double bound = f->type == QUANT_Q1_0 ? 2.6 : bounds[i].tail * 1.3 + 0.01;
            if (kind == 4 || kind == 6) continue;
            if (kind == 1 && (f->type == QUANT_Q1_0 || strncmp(f->name, "IQ2", 3) == 0 || strncmp(f->name, "IQ3", 3) == 0))
                continue;
            double error = relative_error(x, y, NULL, n);
            if (error > bound) fail_msg("%s, kind %d: error %.4f, bound %.4f", f->name, kind, error, bound);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_bounds),
        cmocka_unit_test(test_representable_is_exact),
        cmocka_unit_test(test_representable_of_super_blocks),
        cmocka_unit_test(test_importance),
        cmocka_unit_test(test_blocks_are_independent),
        cmocka_unit_test(test_special_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
