/* The kernel harness: every layout and operation on every instruction-set level that this CPU has.
 *
 * - levels agree with the reference to the bit (kern.h promises it);
 * - the reference agrees with a plain double-precision computation from dequantised weights within a bound derived from the
 *   reduction length;
 * - row i of a product of many rows equals the product of row i alone, whatever panel range it was computed in;
 * - nothing is read or written outside the arrays: they end at guard pages;
 * - attention gives the same bits however rows are grouped.
 * With --bench [TYPE] it prints the speed of each kernel instead. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "kern/kern.h"

static const char *const level_names[] = {"avx512", "avx2"};

#ifdef HAVE_EMULATED_AVX512
extern const kern_ops kern_ops_avx512_emulated;
#endif

/* A level by name; AVX-512 emulated where the CPU lacks it. NULL: cannot be tested here. */
static const kern_ops *level(const char *name) {
    const kern_ops *ops = kern_level(name);
#ifdef HAVE_EMULATED_AVX512
    if (ops == NULL && strcmp(name, "avx512") == 0 && kern_level("avx2")) ops = &kern_ops_avx512_emulated;
#endif
    return ops;
}
static const quant_type types[] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0,
                                   QUANT_Q5_1, QUANT_Q8_0, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K, QUANT_Q2_K, QUANT_Q3_K,
                                   QUANT_IQ4_NL, QUANT_IQ4_XS, QUANT_MXFP4, QUANT_IQ1_S, QUANT_IQ1_M, QUANT_IQ2_XXS, QUANT_IQ2_XS,
                                   QUANT_IQ2_S, QUANT_IQ3_XXS, QUANT_IQ3_S, QUANT_TQ1_0, QUANT_TQ2_0, QUANT_NVFP4, QUANT_Q1_0, QUANT_Q2_0};
#define N_TYPES (sizeof types / sizeof types[0])

/* ---- inputs ----------------------------------------------------------------------------------------------------------- */

static uint64_t random_state = 1;

static uint32_t random_u32(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(random_state >> 32);
}
static float random_float(float limit) { return ((float)random_u32() / 2147483648.0f - 1.0f) * limit; }

/* n bytes that end right before an inaccessible page. */
typedef struct guarded {
    unsigned char *map, *data;
    size_t map_bytes;
} guarded;

static guarded guard(size_t n_bytes, size_t align) {
    const size_t page = 4096, whole = (n_bytes + align + page - 1) / page * page;
    guarded g = {.map_bytes = whole + page};
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.map != MAP_FAILED);
    assert_int_equal(mprotect(g.map + whole, page, PROT_NONE), 0);
    g.data = g.map + (whole - n_bytes) / align * align;
    return g;
}
static void unguard(guarded *g) { munmap(g->map, g->map_bytes); }

typedef enum fill { FILL_RANDOM, FILL_LOW, FILL_HIGH, FILL_ZERO, N_FILLS } fill;

/* Blocks of a type with finite, moderate scales; quantised values random or at their extremes. */
static void fill_weights(const quant_format *f, unsigned char *rows, size_t n_bytes, fill how) {
    static const struct {
        quant_type type;
        int at[2]; /* offsets of F16 scales in a block, -1 = none */
    } scales[] = {{QUANT_Q4_0, {0, -1}}, {QUANT_Q4_1, {0, 2}}, {QUANT_Q5_0, {0, -1}}, {QUANT_Q5_1, {0, 2}},
                  {QUANT_Q8_0, {0, -1}}, {QUANT_Q4_K, {0, 2}}, {QUANT_Q5_K, {0, 2}},  {QUANT_Q6_K, {208, -1}},
                  {QUANT_Q2_K, {80, 82}}, {QUANT_Q3_K, {108, -1}}, {QUANT_IQ4_NL, {0, -1}}, {QUANT_IQ4_XS, {0, -1}},
                  {QUANT_IQ1_S, {0, -1}}, {QUANT_IQ2_XXS, {0, -1}}, {QUANT_IQ2_XS, {0, -1}}, {QUANT_IQ2_S, {0, -1}},
                  {QUANT_IQ3_XXS, {0, -1}}, {QUANT_IQ3_S, {0, -1}}, {QUANT_TQ1_0, {52, -1}}, {QUANT_TQ2_0, {64, -1}},
                  {QUANT_Q1_0, {0, -1}}, {QUANT_Q2_0, {0, -1}}};
    for (size_t i = 0; i < n_bytes; i++)
        rows[i] = how == FILL_LOW || how == FILL_ZERO ? 0 : how == FILL_HIGH ? 255 : (unsigned char)random_u32();
    if (f->type == QUANT_Q8_0 && how == FILL_LOW) memset(rows, 0x80, n_bytes);
    for (size_t b = 0; b < n_bytes / (size_t)f->block_bytes; b++) {
        unsigned char *block = rows + b * (size_t)f->block_bytes;
        float value = how == FILL_ZERO ? 0.0f : random_float(1.0f);
        uint16_t half = quant_f32_to_f16(value), brain = quant_f32_to_bf16(value);
        if (f->type == QUANT_MXFP4) block[0] = how == FILL_ZERO ? 0 : (unsigned char)(118 + random_u32() % 6);
        if (f->type == QUANT_IQ1_M) /* the scale's four nibbles are the top ones of four words: about 0.02 */
            for (int k = 0; k < 4; k++) block[49 + 2 * k] = (unsigned char)((block[49 + 2 * k] & 15) | (0x2400 >> 4 * k & 15) << 4);
        if (f->type == QUANT_F32) memcpy(block, &value, 4);
        if (f->type == QUANT_F16) memcpy(block, &half, 2);
        if (f->type == QUANT_BF16) memcpy(block, &brain, 2);
        for (size_t s = 0; s < sizeof scales / sizeof scales[0]; s++)
            for (int k = 0; k < 2 && scales[s].type == f->type; k++)
                if (scales[s].at[k] >= 0) {
                    half = quant_f32_to_f16(random_float(0.05f));
                    memcpy(block + scales[s].at[k], &half, 2);
                }
    }
}

/* ---- products --------------------------------------------------------------------------------------------------------- */

typedef struct problem {
    const quant_format *format;
    int n, k, m;               /* outputs, reduction length, activation rows */
    unsigned char *weights;    /* [n][row_bytes] */
    size_t row_bytes;
    kern_matrix packed;
    guarded packed_memory, f32, rows_memory, scratch;
    kern_rows x;
} problem;

static void problem_open(problem *p, quant_type type, int n, int k, int m, fill how, const kern_ops *ops) {
    p->format = quant_format_of(type);
    p->n = n;
    p->k = k;
    p->m = m;
    p->row_bytes = quant_row_bytes(p->format, (size_t)k);
    p->weights = malloc(p->row_bytes * (size_t)n);
    fill_weights(p->format, p->weights, p->row_bytes * (size_t)n, how);
    assert_int_equal(kern_matrix_init(&p->packed, type, n, k, NULL), 0);
    p->packed_memory = guard(kern_matrix_bytes(&p->packed), KERN_ALIGN);
    p->packed.data = p->packed_memory.data;
    float *scratch = malloc(sizeof(float) * (size_t)k * KERN_PANEL);
    kern_pack(&p->packed, type, p->weights, 0, p->packed.n_panels, scratch);
    free(scratch);
    p->f32 = guard(sizeof(float) * (size_t)m * (size_t)k, 4);
    p->rows_memory = guard(kern_rows_bytes(m, k), KERN_ALIGN);
    kern_rows_bind(&p->x, p->rows_memory.data, m, k);
    p->x.f32 = (const float *)p->f32.data;
    p->x.stride = (size_t)k;
    float *values = (float *)p->f32.data;
    for (int i = 0; i < m * k; i++) values[i] = how == FILL_HIGH ? 3.0f : how == FILL_LOW ? -3.0f : random_float(3.0f);
    for (int i = 0; i < m; i++) ops->quantise(&p->x, i, values + (size_t)i * (size_t)k, k);
    p->scratch = guard(KERN_SCRATCH_BYTES, KERN_ALIGN);
}

static void problem_close(problem *p) {
    free(p->weights);
    unguard(&p->packed_memory);
    unguard(&p->f32);
    unguard(&p->rows_memory);
    unguard(&p->scratch);
}

/* The whole product by one level, in panel ranges of `chunk`. */
static float *product(problem *p, const kern_ops *ops, int m, int chunk, guarded *memory) {
    const size_t stride = (size_t)p->packed.n_panels * KERN_PANEL;
    *memory = guard(sizeof(float) * stride * (size_t)m, 64);
    float *out = (float *)memory->data;
    for (int begin = 0; begin < p->packed.n_panels; begin += chunk) {
        int end = begin + chunk < p->packed.n_panels ? begin + chunk : p->packed.n_panels;
        ops->matmul(&p->packed, begin, end, &p->x, m, out, stride, false, p->scratch.data);
    }
    return out;
}

/* The product in double precision from dequantised weights and the same activations that the kernels see. The kernels round
 * each step to float: with B steps (blocks, or values for floating point formats) the error is at most about (B + 2) * 2^-24
 * of the sum of absolute terms, each block contributing |dot| and |minimum| separately. */
static void check_against_double(problem *p, const float *out) {
    const size_t stride = (size_t)p->packed.n_panels * KERN_PANEL;
    float *row = malloc(sizeof(float) * (size_t)p->k);
    for (int n = 0; n < p->n; n++) {
        p->format->dequantise(p->weights + (size_t)n * p->row_bytes, row, (size_t)(p->k / p->format->block_size));
        for (int m = 0; m < p->m; m++) {
            double sum = 0, magnitude = 0;
            for (int k = 0; k < p->k; k++) {
                double a = p->packed.layout->bits ? (double)p->x.q[m * p->k + k] * (double)p->x.d[(m * p->k + k) / 32]
                                                  : (double)p->x.f32[m * p->k + k];
                sum += (double)row[k] * a;
                /* A value is scale times quant plus minimum: their magnitudes may cancel in row[k], so bound by the parts. */
                magnitude += (fabs((double)row[k]) + (p->packed.layout->bits ? 4.0 : 0.0)) * fabs(a);
            }
            double steps = p->packed.layout->bits ? 3.0 * p->k / 16.0 : (double)p->k;
            double limit = (steps + 4) * 6e-8 * magnitude;
            if (fabs((double)out[(size_t)m * stride + (size_t)n] - sum) > limit)
                fail_msg("%s n=%d k=%d row %d output %d: %g, expected %g within %g", p->format->name, p->n, p->k, m, n,
                         (double)out[(size_t)m * stride + (size_t)n], sum, limit);
        }
    }
    free(row);
}

static void check_same(const char *what, const problem *p, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0)
            fail_msg("%s, %s n=%d k=%d m=%d: element %zu is %.9g, expected %.9g", what, p->format->name, p->n, p->k, p->m, i,
                     (double)a[i], (double)b[i]);
}

static void one_problem(quant_type type, int n, int k, int m, fill how) {
    problem p;
    guarded reference_memory;
    problem_open(&p, type, n, k, m, how, &kern_ops_reference);
    const size_t stride = (size_t)p.packed.n_panels * KERN_PANEL;
    float *reference = product(&p, &kern_ops_reference, m, p.packed.n_panels, &reference_memory);
    check_against_double(&p, reference);
    for (size_t l = 0; l < sizeof level_names / sizeof level_names[0]; l++) {
        const kern_ops *ops = level(level_names[l]);
        if (ops == NULL) continue;
        guarded memory, single_memory;
        float *out = product(&p, ops, m, 3, &memory);
        check_same(ops->name, &p, out, reference, stride * (size_t)m);
        /* Row by row: the first row of a shifted view is row i. */
        kern_rows whole = p.x;
        for (int i = 0; i < m; i++) {
            const size_t at = (size_t)i * (size_t)whole.n_cols;
            p.x.q = whole.q + at;
            p.x.d = whole.d + at / 32;
            p.x.sum = whole.sum + at / 32;
            p.x.neg_sum = whole.neg_sum + at / 16;
            p.x.f32 = whole.f32 + (size_t)i * whole.stride;
            float *single = product(&p, ops, 1, p.packed.n_panels, &single_memory);
            check_same("a row alone", &p, single, reference + (size_t)i * stride, stride);
            unguard(&single_memory);
        }
        p.x = whole;
        unguard(&memory);
    }
    unguard(&reference_memory);
    problem_close(&p);
}

static void test_products(void **state) {
    (void)state;
    static const int rows[] = {1, 2, 3, 5, 8, 9, 13, 23, 38, 101};
    for (size_t t = 0; t < N_TYPES; t++) {
        const int unit = quant_format_of(types[t])->block_size == 1 ? 32 : quant_format_of(types[t])->block_size;
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) one_problem(types[t], 16 * 5 - 3, unit * 3, rows[r], FILL_RANDOM);
        one_problem(types[t], 1, unit, 1, FILL_RANDOM);
        for (int m = 14; m <= 42; m += 28) {
            one_problem(types[t], 33, unit * 2, m, FILL_HIGH);
            one_problem(types[t], 33, unit * 2, m, FILL_LOW);
        }
        one_problem(types[t], 33, unit * 2, 7, FILL_ZERO);
    }
    one_problem(QUANT_F32, 20, 7, 3, FILL_RANDOM); /* rows that are no multiple of anything */
    one_problem(QUANT_F16, 20, 41, 9, FILL_RANDOM);
}

static void test_add(void **state) {
    (void)state;
    problem p;
    guarded memory;
    problem_open(&p, QUANT_Q4_K, 40, 512, 10, FILL_RANDOM, &kern_ops_reference);
    const size_t stride = (size_t)p.packed.n_panels * KERN_PANEL;
    const kern_ops *ops = kern_select();
    float *once = product(&p, ops, 10, 2, &memory), *twice = malloc(sizeof(float) * stride * 10);
    for (size_t i = 0; i < stride * 10; i++) twice[i] = 1.5f;
    ops->matmul(&p.packed, 0, p.packed.n_panels, &p.x, 10, twice, stride, true, p.scratch.data);
    for (size_t i = 0; i < stride * 10; i++) assert_true(twice[i] == 1.5f + once[i]);
    free(twice);
    unguard(&memory);
    problem_close(&p);
}

/* ---- row operations --------------------------------------------------------------------------------------------------- */

/* Runs every row operation of a level on x (a copy of `from`), one after the other, and keeps all results. */
static void row_operations(const kern_ops *ops, const float *from, const float *other, int n, float *results) {
    guarded g = guard(sizeof(float) * (size_t)n, 4);
    float *x = (float *)g.data;
    float *to = results;
#define RUN(call)                                                                                                                \
    memcpy(x, from, sizeof(float) * (size_t)n);                                                                                  \
    call;                                                                                                                        \
    memcpy(to, x, sizeof(float) * (size_t)n);                                                                                    \
    to += n
    RUN(ops->rms_norm(x, other, n, 1e-5f, x));
    RUN(ops->rms_norm(x, NULL, n, 1e-5f, x));
    RUN(ops->layer_norm(x, other, other, n, 1e-5f, x));
    RUN(ops->add(x, other, n));
    RUN(ops->scale(x, 1.7f, n));
    RUN(ops->activate(KERN_SILU, x, other, n));
    RUN(ops->activate(KERN_GELU, x, other, n));
    RUN(ops->activate(KERN_RELU_SQUARED, x, NULL, n));
    RUN(ops->clamp(x, 1.25f, n));
    RUN(ops->activate(KERN_SWIGLU_CLAMPED, x, other, n));
    RUN(ops->softcap(x, 30.0f, n));
    RUN(ops->hadamard(x, n));
    RUN(ops->rope(x, other, other, n & ~1, true));
    RUN(ops->rope(x, other, other, n & ~1, false));
#undef RUN
    unguard(&g);
}
enum { N_ROW_OPERATIONS = 14 };

static void row_operations_exact(const float *from, const float *other, int n, double *results) {
    double squares = 0, mean = 0, variance = 0;
    for (int i = 0; i < n; i++) {
        squares += (double)from[i] * (double)from[i] / n;
        mean += (double)from[i] / n;
    }
    for (int i = 0; i < n; i++) variance += ((double)from[i] - mean) * ((double)from[i] - mean) / n;
    for (int i = 0; i < n; i++) {
        const double x = (double)from[i], y = (double)other[i], u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
        const int half = n / 2, pair = i / 2 * 2;
        double row[] = {x / sqrt(squares + 1e-5) * y, x / sqrt(squares + 1e-5), (x - mean) / sqrt(variance + 1e-5) * y + y, x + y,
                        x * (double)1.7f, x / (1 + exp(-x)) * y, 0.5 * x * (1 + tanh(u)) * y, x > 0 ? x * x : 0, fmin(fmax(x, -1.25), 1.25),
                        fmin(x, 7) / (1 + exp(-1.702 * fmin(x, 7))) * (fmin(fmax(y, -7), 7) + 1),
                        30 * tanh(x / 30), 0, x, x};
        if (i < half * 2) {
            const double c = (double)other[i % half], a = (double)from[i % half], b = (double)from[i % half + half];
            row[12] = i < half ? a * c - b * c : a * c + b * c;
            const double d = (double)other[i / 2], e = (double)from[pair], f = (double)from[pair + 1];
            row[13] = i % 2 == 0 ? e * d - f * d : e * d + f * d;
        }
        for (int size = n & -n, k = 0, base = i / size * size; k < size; k++)
            row[11] += (__builtin_popcount((unsigned)(k & (i - base))) % 2 ? -1 : 1) * (double)from[base + k];
        for (int r = 0; r < N_ROW_OPERATIONS; r++) results[r * n + i] = row[r];
    }
}

static void test_row_operations(void **state) {
    (void)state;
    static const int lengths[] = {1, 2, 15, 16, 17, 64, 100, 576, 1023};
    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
        const int n = lengths[l];
        const size_t total = (size_t)n * N_ROW_OPERATIONS;
        float *from = malloc(sizeof(float) * (size_t)n), *other = malloc(sizeof(float) * (size_t)n);
        float *reference = malloc(sizeof(float) * total), *got = malloc(sizeof(float) * total);
        double *exact = malloc(sizeof(double) * total);
        for (int i = 0; i < n; i++) {
            from[i] = i % 17 == 3 ? random_float(90.0f) : random_float(4.0f);
            other[i] = random_float(2.0f);
        }
        row_operations(&kern_ops_reference, from, other, n, reference);
        row_operations_exact(from, other, n, exact);
        for (size_t i = 0; i < total; i++) {
            /* The transform: up to 10 roundings of partial sums of up to 64 values of 90 at most. Else sums of n terms, then a few operations of relative error 2^-24 to 2e-7 (exp), magnitudes up to about 100. */
            double limit = i / (size_t)n == 11 ? 10 * 6e-8 * 64 * 10 : 1e-6 * fabs(exact[i]) + 2e-5;
            if (fabs((double)reference[i] - exact[i]) > limit)
                fail_msg("operation %zu, n=%d, element %zu: %g, expected %g", i / (size_t)n, n, i % (size_t)n, (double)reference[i], exact[i]);
        }
        for (size_t k = 0; k < sizeof level_names / sizeof level_names[0]; k++) {
            const kern_ops *ops = level(level_names[k]);
            if (ops == NULL) continue;
            row_operations(ops, from, other, n, got);
            for (size_t i = 0; i < total; i++)
                if (memcmp(&got[i], &reference[i], sizeof(float)) != 0)
                    fail_msg("%s: operation %zu, n=%d, element %zu: %.9g, expected %.9g", ops->name, i / (size_t)n, n, i % (size_t)n,
                             (double)got[i], (double)reference[i]);
        }
        free(from);
        free(other);
        free(reference);
        free(got);
        free(exact);
    }
}

static void test_quantise(void **state) {
    (void)state;
    enum { N = 100, PADDED = 128 };
    float values[N];
    for (int i = 0; i < N; i++) values[i] = i >= 32 && i < 64 ? 0.0f : random_float(i < 32 ? 1e-3f : 50.0f);
    void *memory[3];
    kern_rows rows[3];
    const kern_ops *ops[3] = {&kern_ops_reference, level("avx2"), level("avx512")};
    for (int l = 0; l < 3; l++) {
        if (ops[l] == NULL) continue;
        memory[l] = aligned_alloc(KERN_ALIGN, kern_rows_bytes(1, N));
        memset(memory[l], 0x55, kern_rows_bytes(1, N));
        kern_rows_bind(&rows[l], memory[l], 1, N);
        assert_int_equal(rows[l].n_cols, PADDED);
        ops[l]->quantise(&rows[l], 0, values, N);
        for (int i = 0; i < PADDED; i++) {
            const float x = i < N ? values[i] : 0.0f, d = rows[l].d[i / 32];
            assert_true(fabsf((float)rows[l].q[i] * d - x) <= d * 0.5001f);
            assert_int_equal(rows[l].q[i], rows[0].q[i]);
        }
        for (int b = 0; b < PADDED / 32; b++) {
            int low = 0, high = 0;
            for (int i = 0; i < 16; i++) {
                low += rows[l].q[32 * b + i];
                high += rows[l].q[32 * b + 16 + i];
            }
            assert_int_equal(rows[l].neg_sum[2 * b], -low);
            assert_int_equal(rows[l].neg_sum[2 * b + 1], -high);
            assert_true(rows[l].sum[b] == rows[l].d[b] * (float)(low + high));
            assert_true(rows[l].d[b] == rows[0].d[b]);
        }
    }
    for (int l = 0; l < 3; l++)
        if (ops[l]) free(memory[l]);
}

/* ---- attention -------------------------------------------------------------------------------------------------------- */

enum { MAX_KEYS = 1100, MAX_D = 96 };

typedef struct attention_case {
    int n_rows, d_head, d_value;
    int32_t key_begin[KERN_ATTENTION_ROWS], key_end[KERN_ATTENTION_ROWS];
    float softcap, alibi, sink;
    int32_t position[KERN_ATTENTION_ROWS]; /* for ALiBi; 0 = key_end - 1 */
} attention_case;

static int32_t position_of(const attention_case *c, int row) { return c->position[row] ? c->position[row] : c->key_end[row] - 1; }

typedef struct attention_data {
    float q[KERN_ATTENTION_ROWS][MAX_D], k[MAX_KEYS][MAX_D], v[MAX_KEYS][MAX_D];
    double kept_k[MAX_KEYS][MAX_D], kept_v[MAX_KEYS][MAX_D]; /* what the pages' types make of them */
    kern_kv kv;
    guarded pages[MAX_KEYS / KERN_PAGE + 1];
    unsigned char *at[MAX_KEYS / KERN_PAGE + 1];
} attention_data;

/* What a page gives back of n values. The block formats: a scale rounded to F16, integers that are rounded with that scale. */
static void keep(kern_kv_type type, const float *x, int n, double *out) {
    for (int i = 0; i < n; i++) {
        if (type == KERN_KV_F32) out[i] = (double)x[i];
        if (type == KERN_KV_F16) out[i] = (double)quant_f16_to_f32(quant_f32_to_f16(x[i]));
        if (type == KERN_KV_BF16) out[i] = (double)quant_bf16_to_f32(quant_f32_to_bf16(x[i]));
    }
    for (int b = 0; b < n && (type == KERN_KV_Q8_0 || type == KERN_KV_Q4_0); b += 32) {
        float extreme = 0;
        for (int i = b; i < b + 32; i++)
            if (fabsf(x[i]) > fabsf(extreme) || (x[i] == -extreme && x[i] > 0)) extreme = x[i];
        const float scale = quant_f16_to_f32(quant_f32_to_f16(type == KERN_KV_Q8_0 ? fabsf(extreme) / 127 : extreme / -8));
        for (int i = b; i < b + 32; i++) {
            const double low = type == KERN_KV_Q8_0 ? -127 : -8, high = type == KERN_KV_Q8_0 ? 127 : 7;
            const double q = scale == 0.0f ? 0 : fmin(fmax((double)rintf(x[i] * (1 / scale)), low), high);
            out[i] = q * (double)scale;
            /* Half a step, and what F16 takes from the scale; Q4_0 cuts off the end of its range that has no 8. */
            const double step = fabs((double)scale), cut = q == high && type == KERN_KV_Q4_0 ? 1 : 0.5;
            if (fabs(out[i] - (double)x[i]) > cut * step + 128 * fmax(step / 2048, 0x1p-25))
                fail_msg("%g is kept as %g", (double)x[i], out[i]);
        }
    }
}

/* A page of `ops`'s, its tokens stored forwards or backwards. */
static void fill_page(attention_data *data, const kern_ops *ops, int page, int n_keys, bool backwards, unsigned char *to) {
    const int first = page * KERN_PAGE, n = n_keys - first < KERN_PAGE ? n_keys - first : KERN_PAGE;
    memset(to, 0x7E, kern_keys_bytes(&data->kv) + kern_values_bytes(&data->kv)); /* NaN where nothing is stored: it must never count */
    for (int i = 0; i < n; i++) {
        const int t = first + (backwards ? n - 1 - i : i);
        ops->kv_store(&data->kv, to, t % KERN_PAGE, data->k[t], data->v[t]);
    }
}

/* All pages, by the reference; what the levels make of the first and the last one is the same. */
static void fill_pages(attention_data *data, const attention_case *c, kern_kv_type k, kern_kv_type v, int n_keys) {
    data->kv = (kern_kv){.d_head = c->d_head, .d_value = c->d_value, .k = k, .v = v};
    const size_t n_bytes = kern_keys_bytes(&data->kv) + kern_values_bytes(&data->kv);
    const int n_pages = (n_keys + KERN_PAGE - 1) / KERN_PAGE;
    guarded copy = guard(n_bytes, KERN_ALIGN);
    assert_int_equal(kern_keys_bytes(&data->kv) % KERN_ALIGN, 0);
    assert_int_equal(n_bytes % KERN_ALIGN, 0);
    for (int i = 0; i < n_pages; i++) {
        data->pages[i] = guard(n_bytes, KERN_ALIGN);
        data->at[i] = data->pages[i].data;
        fill_page(data, &kern_ops_reference, i, n_keys, false, data->at[i]);
        for (size_t l = 0; l < sizeof level_names / sizeof level_names[0] && (i == 0 || i == n_pages - 1); l++) {
            if (level(level_names[l]) == NULL) continue;
            fill_page(data, level(level_names[l]), i, n_keys, true, copy.data);
            if (memcmp(copy.data, data->at[i], n_bytes) != 0)
                fail_msg("%s: a page of %s keys and %s values is not the reference's", level_names[l], kern_kv_type_name(k), kern_kv_type_name(v));
        }
    }
    for (int t = 0; t < n_keys; t++) {
        keep(k, data->k[t], c->d_head, data->kept_k[t]);
        keep(v, data->v[t], c->d_value, data->kept_v[t]);
    }
    unguard(&copy);
}

static void free_pages(attention_data *data, int n_keys) {
    for (int i = 0; i < (n_keys + KERN_PAGE - 1) / KERN_PAGE; i++) unguard(&data->pages[i]);
}

static void run_attention(const kern_ops *ops, attention_data *data, const attention_case *c, int first, int n, float out[][MAX_D]) {
    const float *q[KERN_ATTENTION_ROWS];
    float slopes[KERN_ATTENTION_ROWS];
    int32_t positions[KERN_ATTENTION_ROWS];
    float total_values[KERN_ATTENTION_ROWS * MAX_D], part_values[KERN_ATTENTION_ROWS * MAX_D];
    static float widened[KERN_PAGE * 2 * MAX_D] __attribute__((aligned(KERN_ALIGN)));
    kern_softmax total = {.values = total_values}, part = {.values = part_values};
    int32_t last = 0, begin = MAX_KEYS;
    for (int i = 0; i < n; i++) {
        q[i] = data->q[first + i];
        total.max[i] = -INFINITY;
        slopes[i] = c->alibi * (float)(first + i + 1);
        positions[i] = position_of(c, first + i);
        if (c->key_end[first + i] > last) last = c->key_end[first + i];
        if (c->key_begin[first + i] < begin) begin = c->key_begin[first + i];
    }
    kern_attention a = {.n_rows = n, .kv = data->kv, .q = q, .key_begin = c->key_begin + first, .key_end = c->key_end + first,
                        .pages = data->at, .softcap = c->softcap, .alibi_slope = c->alibi != 0.0f ? slopes : NULL, .position = positions,
                        .widened = widened};
    for (int32_t s = begin / KERN_SEGMENT; s * KERN_SEGMENT < last; s++) {
        int32_t end = (s + 1) * KERN_SEGMENT < last ? (s + 1) * KERN_SEGMENT : last;
        ops->attend(&a, s * KERN_SEGMENT, end, &part);
        ops->attend_merge(n, c->d_value, &total, &part);
    }
    for (int i = 0; i < n; i++) ops->attend_finish(&total, i, c->d_value, c->sink != 0.0f ? &c->sink : NULL, out[first + i]);
}

static void exact_attention(const attention_data *data, const attention_case *c, int row, double *out) {
    double scores[MAX_KEYS], largest = -1e300, sum = 0;
    for (int t = c->key_begin[row]; t < c->key_end[row]; t++) {
        scores[t] = 0;
        for (int d = 0; d < c->d_head; d++)
            scores[t] += (double)data->q[row][d] * data->kept_k[t][d];
        if (c->softcap != 0.0f) scores[t] = (double)c->softcap * tanh(scores[t] / (double)c->softcap);
        scores[t] -= (double)c->alibi * (row + 1) * abs(position_of(c, row) - t);
        if (scores[t] > largest) largest = scores[t];
    }
    for (int d = 0; d < c->d_value; d++) out[d] = 0;
    for (int t = c->key_begin[row]; t < c->key_end[row]; t++) {
        double p = exp(scores[t] - largest);
        sum += p;
        for (int d = 0; d < c->d_value; d++) out[d] += p * data->kept_v[t][d];
    }
    if (c->sink != 0.0f) sum += exp((double)c->sink - largest);
    for (int d = 0; d < c->d_value; d++) out[d] /= sum;
}

static void one_attention(attention_data *data, const attention_case *c, kern_kv_type k, kern_kv_type v) {
    float reference[KERN_ATTENTION_ROWS][MAX_D], out[KERN_ATTENTION_ROWS][MAX_D];
    double exact[MAX_D];
    int n_keys = 0;
    for (int i = 0; i < c->n_rows; i++) n_keys = c->key_end[i] > n_keys ? c->key_end[i] : n_keys;
    fill_pages(data, c, k, v, n_keys);
    run_attention(&kern_ops_reference, data, c, 0, c->n_rows, reference);
    for (int i = 0; i < c->n_rows; i++) {
        exact_attention(data, c, i, exact);
        for (int d = 0; d < c->d_value; d++)
            if (fabs((double)reference[i][d] - exact[d]) > 2e-5)
                fail_msg("attention row %d value %d: %g, expected %g", i, d, (double)reference[i][d], exact[d]);
    }
    for (size_t l = 0; l < sizeof level_names / sizeof level_names[0]; l++) {
        const kern_ops *ops = level(level_names[l]);
        if (ops == NULL) continue;
        for (int tile = 1; tile <= c->n_rows; tile++) {
            memset(out, 0, sizeof out);
            for (int first = 0; first < c->n_rows; first += tile)
                run_attention(ops, data, c, first, c->n_rows - first < tile ? c->n_rows - first : tile, out);
            for (int i = 0; i < c->n_rows; i++)
                if (memcmp(out[i], reference[i], sizeof(float) * (size_t)c->d_value) != 0)
                    fail_msg("%s: attention row %d over %s keys and %s values differs from the reference in tiles of %d", ops->name, i,
                             kern_kv_type_name(k), kern_kv_type_name(v), tile);
        }
    }
    free_pages(data, n_keys);
}

static void test_attention(void **state) {
    (void)state;
    static attention_data data;
    for (int t = 0; t < MAX_KEYS; t++)
        for (int d = 0; d < MAX_D; d++) {
            data.k[t][d] = random_float(1.0f);
            data.v[t][d] = random_float(1.0f);
        }
    for (int i = 0; i < KERN_ATTENTION_ROWS; i++)
        for (int d = 0; d < MAX_D; d++) data.q[i][d] = random_float(0.7f);
    static const attention_case cases[] = {
        {.n_rows = 1, .d_head = 64, .d_value = 64, .key_begin = {0}, .key_end = {1}},
        {.n_rows = 3, .d_head = 64, .d_value = 64, .key_begin = {0}, .key_end = {5, 6, 7}},
        {.n_rows = 8, .d_head = 24, .d_value = 24, .key_begin = {0}, .key_end = {30, 31, 32, 33, 34, 35, 36, 37}},
        {.n_rows = 8, .d_head = 80, .d_value = 40, .key_begin = {0}, .key_end = {508, 509, 510, 511, 512, 513, 514, 515}},
        {.n_rows = 4, .d_head = 16, .d_value = 16, .key_begin = {400, 401, 402, 403}, .key_end = {600, 601, 602, 603}},
        {.n_rows = 5, .d_head = 32, .d_value = 32, .key_begin = {0, 500, 520, 0, 600}, .key_end = {40, 700, 640, 1100, 1030}},
        {.n_rows = 2, .d_head = 64, .d_value = 64, .key_begin = {0, 0}, .key_end = {700, 90}, .softcap = 2.0f},
        {.n_rows = 24, .d_head = 64, .d_value = 72, .key_begin = {0, 0, 3}, .key_end = {40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53,
         54, 55, 56, 57, 58, 59, 60, 61, 62, 530}},
        {.n_rows = 11, .d_head = 16, .d_value = 16, .key_begin = {0}, .key_end = {3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 31}},
        {.n_rows = 2, .d_head = 16, .d_value = 16, .key_begin = {0, 0}, .key_end = {700, 90}, .alibi = 0.25f},
        {.n_rows = 3, .d_head = 16, .d_value = 16, .key_begin = {0, 0, 2}, .key_end = {700, 9, 3}, .sink = 3.0f},
        {.n_rows = 3, .d_head = 80, .d_value = 72, .key_begin = {0, 0, 2}, .key_end = {700, 33, 40}},
        {.n_rows = 8, .d_head = 40, .d_value = 32, .key_begin = {0}, .key_end = {30, 31, 32, 33, 34, 35, 36, 37}},
        {.n_rows = 13, .d_head = 96, .d_value = 32, .key_begin = {0, 7}, .key_end = {64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 541}},
        {.n_rows = 2, .d_head = 32, .d_value = 96, .key_begin = {31, 0}, .key_end = {33, 600}, .softcap = 2.0f},
        /* Queries that see what follows them. */
        {.n_rows = 3, .d_head = 16, .d_value = 16, .key_end = {70, 70, 70}, .position = {1, 40, 69}, .alibi = 0.25f},
    };
    static const kern_kv_type kinds[][2] = {{KERN_KV_F16, KERN_KV_F16},   {KERN_KV_F32, KERN_KV_F32},   {KERN_KV_BF16, KERN_KV_BF16},
                                            {KERN_KV_Q8_0, KERN_KV_Q8_0}, {KERN_KV_Q4_0, KERN_KV_Q4_0}, {KERN_KV_Q8_0, KERN_KV_Q4_0},
                                            {KERN_KV_F16, KERN_KV_Q8_0},  {KERN_KV_Q4_0, KERN_KV_F16},  {KERN_KV_F32, KERN_KV_Q4_0},
                                            {KERN_KV_Q8_0, KERN_KV_F32}};
    for (int t = 0; t < MAX_KEYS; t++) /* blocks without a value, with a tie for the largest, and with one that F16 makes subnormal */
        for (int d = 0; d < MAX_D; d++) {
            if (t % 97 == 5 && d >= 32) data.k[t][d] = data.v[t][d] = 0.0f;
            if (t % 97 == 6 && d % 32 < 2) data.k[t][d] = data.v[t][d] = d % 2 ? -1.5f : 1.5f;
            if (t % 97 == 7) data.v[t][d] *= 1e-4f;
        }
    int n_run = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t n = 0; n < sizeof kinds / sizeof kinds[0]; n++) {
            if (!kern_kv_type_fits(kinds[n][0], cases[i].d_head) || !kern_kv_type_fits(kinds[n][1], cases[i].d_value)) continue;
            one_attention(&data, &cases[i], kinds[n][0], kinds[n][1]);
            n_run++;
        }
    assert_true(n_run > 90);
}

/* ---- speed ------------------------------------------------------------------------------------------------------------ */

/* Seconds of one call: the best of several windows, since neighbours only ever make it slower. */
static double best_seconds(const kern_ops *ops, problem *p, int n_rows, float *out) {
    double best = 1e9;
    for (int window = 0; window < 10; window++) {
        const int64_t begin = clock_now_us();
        int64_t now;
        int n = 0;
        do {
            ops->matmul(&p->packed, 0, p->packed.n_panels, &p->x, n_rows, out, (size_t)p->packed.n_panels * KERN_PANEL, false, p->scratch.data);
            n++;
        } while ((now = clock_now_us()) - begin < 10000);
        const double seconds = (double)(now - begin) * 1e-6 / n;
        if (seconds < best) best = seconds;
    }
    return best;
}

/* All types, or the one named. */
static void bench(const char *only) {
    static const struct {
        int n, k;
    } shapes[] = {{1536, 576}, {576, 1536}, {8192, 2048}};
    static const int rows[] = {1, 4, 8, 16, 32, 128};
    printf("%-8s %-6s %12s %5s %12s %10s\n", "level", "type", "n x k", "rows", "GMAC/s", "GB/s");
    for (size_t l = 0; l < 2; l++) {
        const kern_ops *ops = kern_level(level_names[l]);
        for (size_t t = 0; ops && t < N_TYPES; t++)
            for (size_t s = 0; s < 3; s++)
                for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
                    problem p;
                    const quant_format *format = quant_format_of(types[t]);
                    if (shapes[s].k % format->block_size || (only && strcmp(only, format->name))) continue;
                    problem_open(&p, types[t], shapes[s].n, shapes[s].k, rows[r], FILL_RANDOM, ops);
                    float *out = malloc(sizeof(float) * (size_t)p.packed.n_panels * KERN_PANEL * (size_t)rows[r]);
                    const double seconds = best_seconds(ops, &p, rows[r], out);
                    printf("%-8s %-6s %6d x %4d %5d %12.1f %10.2f\n", ops->name, p.format->name, shapes[s].n, shapes[s].k, rows[r],
                           (double)shapes[s].n * shapes[s].k * rows[r] / seconds * 1e-9,
                           (double)kern_matrix_bytes(&p.packed) / seconds * 1e-9);
                    free(out);
                    problem_close(&p);
                }
    }
}

/* ---- recurrent operations --------------------------------------------------------------------------------------------- */

static void test_short_conv(void **state) {
    (void)state;
    enum { N = 37, TAPS = 5 };
    float rows[TAPS][N], weight[TAPS * 48], bias[N], out[N], reference[N];
    const float *taps[TAPS];
    for (int k = 0; k < TAPS; k++) {
        taps[k] = rows[k];
        for (int i = 0; i < N; i++) rows[k][i] = random_float(2.0f);
        for (int i = 0; i < 48; i++) weight[k * 48 + i] = random_float(1.0f);
    }
    for (int i = 0; i < N; i++) bias[i] = random_float(1.0f);
    for (int variant = 0; variant < 4; variant++) {
        const kern_conv c = {.d_conv = 1 + variant, .weight = weight, .stride = 48, .bias = variant & 1 ? bias : NULL, .silu = variant & 2};
        kern_ops_reference.short_conv(&c, taps, N, reference);
        for (int i = 0; i < N; i++) {
            double sum = c.bias ? (double)bias[i] : 0;
            for (int k = 0; k < c.d_conv; k++) sum += (double)rows[k][i] * (double)weight[k * 48 + i];
            if (c.silu) sum /= 1 + exp(-sum);
            assert_true(fabs((double)reference[i] - sum) < 1e-5);
        }
        for (size_t l = 0; l < sizeof level_names / sizeof level_names[0]; l++) {
            const kern_ops *ops = kern_level(level_names[l]);
            if (ops == NULL) continue;
            ops->short_conv(&c, taps, N, out);
            assert_memory_equal(out, reference, sizeof out);
            memcpy(out, rows[0], sizeof out);
            ops->multiply(out, rows[1], N);
            for (int i = 0; i < N; i++) assert_true(out[i] == rows[0][i] * rows[1][i]);
        }
    }
}

enum { SCAN_TOKENS = 9, MAX_STATE = 19 };

typedef struct scan_data {
    float x[SCAN_TOKENS][16], dt[SCAN_TOKENS][16], gate[SCAN_TOKENS][16], bc[SCAN_TOKENS][2 * MAX_STATE];
    float decay[MAX_STATE][16], skip[16], state[MAX_STATE][16];
} scan_data;

/* Tokens in runs of `chunk`, as a prompt may be cut. */
static void run_scan(const kern_ops *ops, const scan_data *d, int d_state, int n_lanes, bool shared, int chunk, float y[][16],
                     float state[][16]) {
    memcpy(state, d->state, sizeof d->state);
    for (int at = 0; at < SCAN_TOKENS; at += chunk) {
        const kern_scan s = {.n_tok = SCAN_TOKENS - at < chunk ? SCAN_TOKENS - at : chunk, .d_state = d_state, .n_lanes = n_lanes,
                             .shared_decay = shared, .decay = d->decay[0], .skip = d->skip, .x = d->x[at], .dt = d->dt[at],
                             .gate = d->gate[at], .x_stride = 16, .dt_stride = 16, .gate_stride = 16, .b = d->bc[at],
                             .c = d->bc[at] + d_state, .bc_stride = 2 * MAX_STATE, .state_in = state[0], .state_out = state[0], .y = y[at],
                             .y_stride = 16};
        ops->scan(&s);
    }
}

static void exact_scan(const scan_data *d, int d_state, int lane, bool shared, double *y) {
    double state[MAX_STATE];
    for (int n = 0; n < d_state; n++) state[n] = (double)d->state[n][lane];
    for (int t = 0; t < SCAN_TOKENS; t++) {
        const double dt = log1p(exp((double)d->dt[t][lane])), x = (double)d->x[t][lane], gate = (double)d->gate[t][lane];
        y[t] = (double)d->skip[lane] * x;
        for (int n = 0; n < d_state; n++) {
            state[n] = state[n] * exp(dt * (double)d->decay[shared ? 0 : n][lane]) + (double)d->bc[t][n] * dt * x;
            y[t] += state[n] * (double)d->bc[t][d_state + n];
        }
        y[t] *= gate / (1 + exp(-gate));
    }
}

static void one_scan(const scan_data *d, int d_state, int n_lanes, bool shared) {
    float reference[SCAN_TOKENS][16] = {{0}}, y[SCAN_TOKENS][16], state_reference[MAX_STATE][16], state_out[MAX_STATE][16];
    double exact[SCAN_TOKENS];
    run_scan(&kern_ops_reference, d, d_state, n_lanes, shared, SCAN_TOKENS, reference, state_reference);
    for (int lane = 0; lane < n_lanes; lane++) {
        exact_scan(d, d_state, lane, shared, exact);
        for (int t = 0; t < SCAN_TOKENS; t++)
            if (fabs((double)reference[t][lane] - exact[t]) > 2e-5 * (1 + fabs(exact[t])))
                fail_msg("scan token %d lane %d: %g, expected %g", t, lane, (double)reference[t][lane], exact[t]);
    }
    for (size_t l = 0; l < sizeof level_names / sizeof level_names[0]; l++) {
        const kern_ops *ops = kern_level(level_names[l]);
        for (int chunk = 1; ops && chunk <= SCAN_TOKENS; chunk += 2) {
            memset(y, 0, sizeof y); /* lanes beyond the last are not written */
            run_scan(ops, d, d_state, n_lanes, shared, chunk, y, state_out);
            assert_memory_equal(y, reference, sizeof y);
            assert_memory_equal(state_out, state_reference, sizeof(float) * 16 * (size_t)d_state);
        }
    }
}

static void test_scan(void **state) {
    (void)state;
    static const int states[] = {1, 3, 16, MAX_STATE};
    scan_data d;
    float *values = (float *)&d;
    for (size_t i = 0; i < sizeof d / sizeof(float); i++) values[i] = random_float(1.0f);
    for (int n = 0; n < MAX_STATE; n++)
        for (int i = 0; i < 16; i++) d.decay[n][i] = -0.1f - fabsf(d.decay[n][i]);
    for (int t = 0; t < SCAN_TOKENS; t++)
        for (int i = 0; i < 16; i++) d.dt[t][i] *= t == 3 ? 40.0f : 4.0f;
    for (int variant = 0; variant < 16; variant++) one_scan(&d, states[variant % 4], variant & 4 ? 16 : 5, variant & 8);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench(argc > 2 ? argv[2] : NULL);
        return 0;
    }
    for (size_t l = 0; l < sizeof level_names / sizeof level_names[0]; l++)
        if (level(level_names[l]) == NULL) printf("skipped: this CPU does not have %s\n", level_names[l]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),  cmocka_unit_test(test_add),       cmocka_unit_test(test_row_operations),
        cmocka_unit_test(test_quantise),  cmocka_unit_test(test_attention),
        cmocka_unit_test(test_short_conv),
        cmocka_unit_test(test_scan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
