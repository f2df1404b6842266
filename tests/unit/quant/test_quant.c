/* Block formats: blocks that another implementation has dequantised, the conversions of 16-bit floats, sizes and look-ups. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/quant.h"

static const struct {
    quant_type type;
    uint64_t digest; /* FNV-1a of the floats' bytes */
    const char *hex; /* two blocks */
} vectors[] = {
#include "quant_vectors.inc"
};

enum { N_VECTORS = sizeof vectors / sizeof vectors[0], MAX_BLOCKS_BYTES = 1024, MAX_VALUES = 2 * 256 };

static size_t from_hex(const char *hex, unsigned char *out) {
    size_t n = strlen(hex) / 2;
    assert_true(n <= MAX_BLOCKS_BYTES);
    for (size_t i = 0; i < n; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
        out[i] = (unsigned char)strtoul(pair, NULL, 16);
    }
    return n;
}

static uint64_t digest(const float *values, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    const unsigned char *bytes = (const unsigned char *)values;
    for (size_t i = 0; i < n * sizeof *values; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

static void test_vectors(void **state) {
    (void)state;
    for (size_t i = 0; i < N_VECTORS; i++) {
        const quant_format *format = quant_format_of(vectors[i].type);
        assert_non_null(format);
        unsigned char blocks[1 + MAX_BLOCKS_BYTES];
        size_t n_bytes = from_hex(vectors[i].hex, blocks), n_values = 2 * (size_t)format->block_size;
        assert_int_equal(n_bytes, 2 * (size_t)format->block_bytes);
        float values[MAX_VALUES + 1];
        values[n_values] = 12345.0f;
        format->dequantise(blocks, values, 2);
        if (digest(values, n_values) != vectors[i].digest) fail_msg("%s differs", format->name);
        assert_true(values[n_values] == 12345.0f); /* nothing behind the last value */
        float first[MAX_VALUES];
        memmove(blocks + 1, blocks, n_bytes); /* blocks need no alignment, and each stands for itself */
        format->dequantise(blocks + 1, first, 1);
        assert_memory_equal(first, values, (size_t)format->block_size * sizeof *first);
        format->dequantise(blocks, first, 0);
        assert_memory_equal(first, values, (size_t)format->block_size * sizeof *first);
    }
}

static void test_table(void **state) {
    (void)state;
    size_t n_rows = 0, n_dequantised = 0;
    const quant_format *rows = quant_format_table(&n_rows);
    for (size_t i = 0; i < n_rows; i++) {
        assert_ptr_equal(quant_format_of(rows[i].type), &rows[i]);
        assert_ptr_equal(quant_format_named(rows[i].name), &rows[i]);
        assert_true(rows[i].block_size > 0 && rows[i].block_bytes > 0);
        n_dequantised += rows[i].dequantise != NULL;
    }
    assert_int_equal(n_dequantised, N_VECTORS); /* no format without a vector */
    assert_int_equal(quant_format_named("q4_k")->type, QUANT_Q4_K);
    assert_int_equal(quant_format_named("bF16")->type, QUANT_BF16);
    assert_null(quant_format_named("Q4_2"));
    assert_null(quant_format_named(""));
    static const uint32_t unknown[] = {4, 5, 31, 32, 33, 36, 37, 38, 43, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) assert_null(quant_format_of(unknown[i]));
}

static void test_row_bytes(void **state) {
    (void)state;
    assert_int_equal(quant_row_bytes(quant_format_of(QUANT_F32), 3), 12);
    assert_int_equal(quant_row_bytes(quant_format_of(QUANT_Q4_0), 64), 36);
    assert_int_equal(quant_row_bytes(quant_format_of(QUANT_Q6_K), 512), 420);
    assert_int_equal(quant_row_bytes(quant_format_of(QUANT_Q6_K), 0), 0);
    assert_int_equal(quant_row_bytes(quant_format_of(QUANT_Q6_K), 300), 0);
    assert_int_equal(quant_row_bytes(quant_format_of(QUANT_Q8_0), 31), 0);
    assert_int_equal(quant_row_bytes(quant_format_of(QUANT_F64), SIZE_MAX / 4), 0); /* does not fit */
}

static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void test_f16_every_value(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = quant_f16_to_f32((uint16_t)h);
        uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
        if (exponent == 31 && mantissa) {
            assert_true(isnan(f));
            assert_true(isnan(quant_f16_to_f32(quant_f32_to_f16(f))));
            continue;
        }
        double magnitude = exponent == 31  ? (double)INFINITY
                           : exponent == 0 ? ldexp(mantissa, -24)
                                           : ldexp(1024 + mantissa, (int)exponent - 25);
        assert_true((double)f == (h & 0x8000 ? -magnitude : magnitude));
        assert_int_equal(bits_of(f) >> 31, h >> 15);
        assert_int_equal(quant_f32_to_f16(f), h);
    }
}

/* Between any two neighbours: below the middle goes down, above it up, the middle itself to the even one. */
static void test_f16_rounding(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float low = quant_f16_to_f32((uint16_t)h), high = quant_f16_to_f32((uint16_t)(h + 1));
        float middle = (float)(((double)low + (double)high) / 2);
        uint32_t even = h & 1 ? h + 1 : h;
        assert_int_equal(quant_f32_to_f16(middle), even);
        assert_int_equal(quant_f32_to_f16(nextafterf(middle, 0.0f)), h);
        assert_int_equal(quant_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(quant_f32_to_f16(-middle), 0x8000 | even);
    }
    assert_int_equal(quant_f32_to_f16(nextafterf(65520.0f, 0.0f)), 0x7bff);
    assert_int_equal(quant_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(quant_f32_to_f16(-3e38f), 0xfc00);
    assert_int_equal(quant_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(quant_f32_to_f16(0x1p-149f), 0);
    assert_int_equal(quant_f32_to_f16(-0x1p-30f), 0x8000);
}

static void test_bf16(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = quant_bf16_to_f32((uint16_t)h);
        assert_int_equal(bits_of(f), h << 16);
        if (isnan(f)) {
            assert_true(isnan(quant_bf16_to_f32(quant_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(quant_f32_to_bf16(f), h);
        if ((h & 0x7fff) >= 0x7f7f) continue; /* the largest finite one and infinity have no finite neighbour above */
        uint32_t middle_bits = h << 16 | 0x8000u;
        float middle;
        memcpy(&middle, &middle_bits, sizeof middle);
        assert_int_equal(quant_f32_to_bf16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(quant_f32_to_bf16(nextafterf(middle, 0.0f)), h);
        assert_int_equal(quant_f32_to_bf16(nextafterf(middle, middle > 0 ? INFINITY : -INFINITY)), h + 1);
    }
    assert_int_equal(quant_f32_to_bf16(3.4e38f), 0x7f80);
    static const uint32_t payload = 0x7f800001; /* a NaN whose set bits are all in the half that is cut off */
    float quiet;
    memcpy(&quiet, &payload, sizeof quiet);
    assert_true(isnan(quant_bf16_to_f32(quant_f32_to_bf16(quiet))));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),         cmocka_unit_test(test_table),        cmocka_unit_test(test_row_bytes),
        cmocka_unit_test(test_f16_every_value), cmocka_unit_test(test_f16_rounding), cmocka_unit_test(test_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
