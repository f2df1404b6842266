/* Layouts, and packing rows of GGUF blocks into panels of 16 interleaved rows.
 *
 * A panel is a sequence of units (32 or 256 values of K for all 16 rows), each: the unit's shared scales, then for every block
 * of 32: the block's scales, then its values. The values of a block are 8 groups of 4 values of K; group g is 64 bytes
 * B_g[4 row + j] = value(row, 4 g + j). Packed: 8 bits: B_0..B_7. 4 bits: B_z | B_(z+4) << 4 for z = 0..3. 2 bits: two vectors, byte i of
 * vector h holding B_(4h)[i], B_(4h+1)[i], B_(4h+2)[i], B_(4h+3)[i], lowest first. 3 and 5 bits: the low 2 or 4 bits like those, then
 * the top bit of all 64 values of each group, 8 bytes a group. 6 bits: the low 4 bits, then the upper 2 bits like 2 bits.
 * Shared and block scales, per layout: see the table and kernels_product.inc. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "kern/kern.h"

/* No type of its own: what packs into it is made integers from its floats. */
#define KERN_I8_SOURCE ((quant_type)-1)

static const kern_layout layouts[KERN_N_LAYOUTS] = {
    [KERN_F32] = {KERN_F32, "f32x16", 0, 0, KERN_SCALE_NONE, KERN_CODES_PLAIN, 1, 64, QUANT_F32},
    [KERN_F16] = {KERN_F16, "f16x16", 0, 0, KERN_SCALE_NONE, KERN_CODES_PLAIN, 1, 32, QUANT_F16},
    [KERN_BF16] = {KERN_BF16, "bf16x16", 0, 0, KERN_SCALE_NONE, KERN_CODES_PLAIN, 1, 32, QUANT_BF16},
    [KERN_Q4_S] = {KERN_Q4_S, "q4_s16", 4, 8, KERN_SCALE, KERN_CODES_PLAIN, 32, 32 + 256, QUANT_Q4_0},
    [KERN_Q5_S] = {KERN_Q5_S, "q5_s16", 5, 16, KERN_SCALE, KERN_CODES_PLAIN, 32, 32 + 320, QUANT_Q5_0},
    [KERN_Q8_S] = {KERN_Q8_S, "q8_s16", 8, 128, KERN_SCALE, KERN_CODES_PLAIN, 32, 32 + 512, QUANT_Q8_0},
    [KERN_Q4_SM] = {KERN_Q4_SM, "q4_sm16", 4, 0, KERN_SCALE_MIN, KERN_CODES_PLAIN, 32, 64 + 256, QUANT_Q4_1},
    [KERN_Q5_SM] = {KERN_Q5_SM, "q5_sm16", 5, 0, KERN_SCALE_MIN, KERN_CODES_PLAIN, 32, 64 + 320, QUANT_Q5_1},
    [KERN_Q4_K] = {KERN_Q4_K, "q4_k16", 4, 0, KERN_SCALE_K, KERN_CODES_PLAIN, 256, 64 + 8 * (32 + 256), QUANT_Q4_K},
    [KERN_Q5_K] = {KERN_Q5_K, "q5_k16", 5, 0, KERN_SCALE_K, KERN_CODES_PLAIN, 256, 64 + 8 * (32 + 320), QUANT_Q5_K},
    [KERN_Q6_K] = {KERN_Q6_K, "q6_k16", 6, 32, KERN_SCALE_K16, KERN_CODES_PLAIN, 256, 32 + 8 * (32 + 384), QUANT_Q6_K},
    [KERN_Q2_K] = {KERN_Q2_K, "q2_k16", 2, 0, KERN_SCALE_MIN_K16, KERN_CODES_PLAIN, 256, 64 + 8 * (32 + 128), QUANT_Q2_K},
    [KERN_Q3_K] = {KERN_Q3_K, "q3_k16", 3, 4, KERN_SCALE_K16, KERN_CODES_PLAIN, 256, 32 + 8 * (32 + 192), QUANT_Q3_K},
    [KERN_IQ4_NL] = {KERN_IQ4_NL, "iq4_nl16", 4, 128, KERN_SCALE, KERN_CODES_IQ4, 32, 32 + 256, QUANT_IQ4_NL},
    [KERN_IQ4_XS] = {KERN_IQ4_XS, "iq4_xs16", 4, 128, KERN_SCALE_K32, KERN_CODES_IQ4, 256, 32 + 8 * (16 + 256), QUANT_IQ4_XS},
    [KERN_MXFP4] = {KERN_MXFP4, "mxfp4_16", 4, 12, KERN_SCALE_POWER, KERN_CODES_E2M1, 32, 16 + 256, QUANT_MXFP4},
    [KERN_I8_G] = {KERN_I8_G, "i8_g16", 8, 128, KERN_SCALE_F32X16, KERN_CODES_PLAIN, 32, 128 + 512, KERN_I8_SOURCE},
};

/* Types of which each group of 16 values is one scale times integers of at most 127 (quant_iq.c, quant_low.c, quant_fp4.c). */
static const quant_type grouped_types[] = {QUANT_IQ1_S, QUANT_IQ1_M, QUANT_IQ2_XXS, QUANT_IQ2_XS, QUANT_IQ2_S, QUANT_IQ3_XXS, QUANT_IQ3_S,
                                           QUANT_TQ1_0, QUANT_TQ2_0, QUANT_NVFP4, QUANT_Q1_0, QUANT_Q2_0};

const kern_layout *kern_layout_for(quant_type type) {
    for (int i = 0; i < KERN_N_LAYOUTS; i++)
        if (layouts[i].source == type) return &layouts[i];
    return NULL;
}

const kern_layout *kern_layout_chosen(quant_type type) {
    const kern_layout *own = kern_layout_for(type);
    if (own) return own;
    for (size_t i = 0; i < sizeof grouped_types / sizeof grouped_types[0]; i++)
        if (grouped_types[i] == type) return &layouts[KERN_I8_G];
    return &layouts[KERN_F32];
}

int kern_matrix_init(kern_matrix *w, quant_type type, int64_t n_rows, int64_t n_cols, weir_error *err) {
    const quant_format *format = quant_format_of(type);
    *w = (kern_matrix){0};
    FAIL_IF(format == NULL || format->dequantise == NULL, err, WEIR_E_UNSUPPORTED, NULL, "tensor type %s cannot be computed with",
            format ? format->name : "unknown");
    FAIL_IF(n_rows < 1 || n_cols < 1 || n_rows > INT32_MAX - KERN_PANEL || n_cols > INT32_MAX / 16, err, WEIR_E_LIMIT, NULL,
            "a matrix of %lld x %lld is out of range", (long long)n_rows, (long long)n_cols);
    const kern_layout *layout = kern_layout_chosen(type);
    FAIL_IF(n_cols % format->block_size != 0, err, WEIR_E_FORMAT, NULL, "rows of %lld values are not whole blocks of %d (%s)",
            (long long)n_cols, (int)format->block_size, format->name);
    w->layout = layout;
    w->n_rows = (int32_t)n_rows;
    w->n_cols = (int32_t)n_cols;
    w->n_panels = (int32_t)((n_rows + KERN_PANEL - 1) / KERN_PANEL);
    w->panel_bytes = ((size_t)(n_cols / layout->unit) * (size_t)layout->unit_bytes + KERN_ALIGN - 1) & ~(size_t)(KERN_ALIGN - 1);
    return 0;
}

size_t kern_matrix_bytes(const kern_matrix *w) { return w->layout ? (size_t)w->n_panels * w->panel_bytes : 0; }

/* One block of 32 of one row, taken apart. */
typedef struct block {
    uint8_t q[32];
    uint16_t d, min;     /* F16 bits; of the unit where blocks share them */
    uint8_t scale[2];    /* K: scale and minimum; K16: of the two halves; K32, POWER: the first */
    float group_scale[2]; /* F32X16 */
} block;

static uint16_t read_u16(const unsigned char *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static void nibbles(const unsigned char *p, uint8_t q[32]) {
    for (int i = 0; i < 16; i++) {
        q[i] = p[i] & 15;
        q[i + 16] = p[i] >> 4;
    }
}

/* Bit i of `bits` into bit 4 of byte i: each byte keeps its own bit, which then carries into the byte's top. */
static void fifth_bits(const unsigned char *bits, uint8_t q[32]) {
    for (int k = 0; k < 4; k++) {
        uint64_t values;
        const uint64_t own = bits[k] * 0x0101010101010101u & 0x8040201008040201u;
        memcpy(&values, q + 8 * k, 8);
        values |= ((own + 0x7F7F7F7F7F7F7F7Fu) & 0x8080808080808080u) >> 3;
        memcpy(q + 8 * k, &values, 8);
    }
}

/* Bit `bit` of byte i of the eight at p into bit i: the factor moves bit 8 i to bit 56 + i. */
static unsigned char gather_bits(const unsigned char *p, int bit) {
    uint64_t values;
    memcpy(&values, p, 8);
    return (unsigned char)((values >> bit & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

/* The 6-bit scale and minimum of block j of a K unit, from its 12 packed bytes. */
static void k_scale_min(const unsigned char *s, int j, uint8_t out[2]) {
    if (j < 4) {
        out[0] = s[j] & 63;
        out[1] = s[j + 4] & 63;
    } else {
        out[0] = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        out[1] = (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6) << 4);
    }
}

/* Scale s of Q3_K plus 32, from its 12 packed bytes: low nibbles, then pairs of upper bits. */
static int q3_k_scale(const unsigned char *s, int i) { return (s[i % 8] >> (i / 8 * 4) & 15) | (s[8 + i % 4] >> (i / 4 * 2) & 3) << 4; }

/* Takes block `j` of the unit at `p` apart (j = 0 for units of 32). */
static void read_block(kern_layout_id id, const unsigned char *p, int j, block *b) {
    switch (id) {
    case KERN_Q4_S:
        b->d = read_u16(p);
        nibbles(p + 2, b->q);
        break;
    case KERN_Q5_S:
        b->d = read_u16(p);
        nibbles(p + 6, b->q);
        fifth_bits(p + 2, b->q);
        break;
    case KERN_Q8_S:
        b->d = read_u16(p);
        for (int i = 0; i < 32; i++) b->q[i] = (uint8_t)(p[2 + i] ^ 0x80);
        break;
    case KERN_Q4_SM:
        b->d = read_u16(p);
        b->min = read_u16(p + 2);
        nibbles(p + 4, b->q);
        break;
    case KERN_Q5_SM:
        b->d = read_u16(p);
        b->min = read_u16(p + 2);
        nibbles(p + 8, b->q);
        fifth_bits(p + 4, b->q);
        break;
    case KERN_Q4_K:
    case KERN_Q5_K: {
        const unsigned char *low = p + (id == KERN_Q4_K ? 16 : 48) + j / 2 * 32, *high = p + 16;
        b->d = read_u16(p);
        b->min = read_u16(p + 2);
        k_scale_min(p + 4, j, b->scale);
        for (int i = 0; i < 32; i++) {
            b->q[i] = j % 2 ? low[i] >> 4 : low[i] & 15;
            if (id == KERN_Q5_K) b->q[i] |= (uint8_t)((high[i] >> j & 1) << 4);
        }
        break;
    }
    case KERN_Q2_K:
    case KERN_Q3_K: { /* pairs of bits: block j in 32 bytes of its half of the unit */
        const unsigned char *low = p + (id == KERN_Q2_K ? 16 : 32) + j / 4 * 32;
        b->d = read_u16(p + (id == KERN_Q2_K ? 80 : 108));
        if (id == KERN_Q2_K) b->min = read_u16(p + 82);
        for (int h = 0; h < 2; h++) b->scale[h] = id == KERN_Q2_K ? p[2 * j + h] : (uint8_t)(q3_k_scale(p + 96, 2 * j + h) - 32);
        for (int i = 0; i < 32; i++) {
            b->q[i] = low[i] >> 2 * (j % 4) & 3;
            if (id == KERN_Q3_K) b->q[i] |= (uint8_t)((p[i] >> j & 1) << 2);
        }
        break;
    }
    case KERN_IQ4_NL:
        b->d = read_u16(p);
        nibbles(p + 2, b->q);
        break;
    case KERN_IQ4_XS:
        b->d = read_u16(p);
        b->scale[0] = (uint8_t)(((p[4 + j / 2] >> j % 2 * 4 & 15) | (read_u16(p + 2) >> 2 * j & 3) << 4) - 32);
        nibbles(p + 8 + 16 * j, b->q);
        break;
    case KERN_MXFP4: /* half of the exponent's power: the values are doubled. 2^-127 and less become 0. */
        b->scale[0] = (uint8_t)(p[0] ? p[0] - 1 : 0);
        nibbles(p + 1, b->q);
        break;
    default: { /* KERN_Q6_K: blocks 0..3 from the first half of the unit, 4..7 from the second */
        const unsigned char *low = p + j / 4 * 64 + j % 2 * 32, *high = p + 128 + j / 4 * 32;
        b->d = read_u16(p + 208);
        b->scale[0] = p[192 + 2 * j];
        b->scale[1] = p[192 + 2 * j + 1];
        for (int i = 0; i < 32; i++) {
            uint8_t nibble = j % 4 < 2 ? low[i] & 15 : low[i] >> 4;
            b->q[i] = (uint8_t)(nibble | (high[i] >> 2 * (j % 4) & 3) << 4);
        }
        break;
    }
    }
}

/* Two bits of the values of each 4 groups, from bit `shift` on. */
static unsigned char *write_pairs(unsigned char groups[8][64], int shift, unsigned char *out) {
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 64; i++) {
            unsigned byte = 0;
            for (int k = 0; k < 4; k++) byte |= (groups[4 * h + k][i] >> shift & 3u) << 2 * k;
            *out++ = (unsigned char)byte;
        }
    return out;
}

/* Interleaves one block of all 16 rows; returns the end of what it wrote. */
static unsigned char *write_values(int bits, block rows[KERN_PANEL], unsigned char *out) {
    unsigned char groups[8][64];
    for (int g = 0; g < 8; g++)
        for (int r = 0; r < KERN_PANEL; r++) memcpy(&groups[g][4 * r], &rows[r].q[4 * g], 4);
    if (bits == 8) {
        memcpy(out, groups, sizeof groups);
        return out + 512;
    }
    if (bits <= 3) out = write_pairs(groups, 0, out);
    for (int z = 0; z < 4 && bits >= 4; z++)
        for (int i = 0; i < 64; i++) *out++ = (unsigned char)((groups[z][i] & 15) | (groups[z + 4][i] & 15) << 4);
    if (bits == 3 || bits == 5) {
        for (int g = 0; g < 8; g++)
            for (int i = 0; i < 8; i++) *out++ = gather_bits(&groups[g][8 * i], bits - 1);
    }
    return bits == 6 ? write_pairs(groups, 4, out) : out;
}

static unsigned char *write_u16(unsigned char *out, const block rows[KERN_PANEL], size_t member) {
    for (int r = 0; r < KERN_PANEL; r++) memcpy(out + 2 * r, (const char *)&rows[r] + member, 2);
    return out + 2 * KERN_PANEL;
}

static unsigned char *write_scales(const kern_layout *layout, const block rows[KERN_PANEL], bool first_of_unit, unsigned char *out) {
    const kern_scales scales = layout->scales;
    if (scales == KERN_SCALE || scales == KERN_SCALE_MIN) {
        out = write_u16(out, rows, offsetof(block, d));
        return scales == KERN_SCALE_MIN ? write_u16(out, rows, offsetof(block, min)) : out;
    }
    if (scales == KERN_SCALE_F32X16) {
        for (int h = 0; h < 2; h++)
            for (int r = 0; r < KERN_PANEL; r++, out += sizeof(float)) memcpy(out, &rows[r].group_scale[h], sizeof(float));
        return out;
    }
    if (first_of_unit && scales != KERN_SCALE_POWER) {
        out = write_u16(out, rows, offsetof(block, d));
        if (scales == KERN_SCALE_K || scales == KERN_SCALE_MIN_K16) out = write_u16(out, rows, offsetof(block, min));
    }
    const int n_scales = scales == KERN_SCALE_K32 || scales == KERN_SCALE_POWER ? 1 : 2;
    for (int which = 0; which < n_scales; which++)
        for (int r = 0; r < KERN_PANEL; r++) *out++ = rows[r].scale[which];
    return out;
}

static void pack_quantised(const kern_matrix *w, const unsigned char *rows, size_t row_bytes, int first_row, unsigned char *out) {
    const kern_layout *layout = w->layout;
    const int n_units = w->n_cols / layout->unit, blocks = layout->unit / KERN_BLOCK;
    const size_t unit_bytes = row_bytes / (size_t)n_units;
    for (int u = 0; u < n_units; u++) {
        for (int j = 0; j < blocks; j++) {
            block b[KERN_PANEL];
            memset(b, 0, sizeof b);
            for (int r = 0; r < KERN_PANEL && first_row + r < w->n_rows; r++)
                read_block(layout->id, rows + (size_t)(first_row + r) * row_bytes + (size_t)u * unit_bytes, j, &b[r]);
            out = write_scales(layout, b, j == 0, out);
            out = write_values(layout->bits, b, out);
        }
    }
}

/* 16 values that are one scale times integers of at most 127: the least integer for the largest value that makes all others whole. What
 * is not whole is a fraction with a denominator of at most 127, so at least 1/127 away from it; the floats' rounding is far less. */
static float group_integers(const float v[16], uint8_t q[16]) {
    float largest = 0.0f;
    for (int i = 0; i < 16; i++) largest = fabsf(v[i]) > largest ? fabsf(v[i]) : largest;
    for (int k = 1; k <= 127 && largest > 0.0f; k++) {
        const float inverse = (float)k / largest;
        float worst = 0.0f;
        for (int i = 0; i < 16; i++) {
            const float x = v[i] * inverse, whole = rintf(x);
            if (!(fabsf(whole) <= 127.0f)) { /* not finite */
                worst = 1.0f;
                break;
            }
            q[i] = (uint8_t)((int)whole + 128);
            worst = fabsf(x - whole) > worst ? fabsf(x - whole) : worst;
        }
        if (worst < 1e-3f) return largest / (float)k;
    }
    memset(q, 128, 16);
    return 0.0f;
}

/* From rows of floats, values[n][n_cols]. */
static void pack_integers(const kern_matrix *w, const float *values, int n, unsigned char *out) {
    for (int k = 0; k < w->n_cols; k += KERN_BLOCK) {
        block b[KERN_PANEL];
        memset(b, 0, sizeof b);
        for (int r = 0; r < n; r++)
            for (int h = 0; h < 2; h++)
                b[r].group_scale[h] = group_integers(values + (size_t)r * (size_t)w->n_cols + k + 16 * h, b[r].q + 16 * h);
        out = write_scales(w->layout, b, false, out);
        out = write_values(w->layout->bits, b, out);
    }
}

/* Transposes items of n bytes, which the caller gives as a constant: [n_here][K] to [K][16]. */
static inline __attribute__((always_inline)) void transpose(const unsigned char *rows, size_t row_bytes, size_t n_items, int n_here, size_t n,
                                                            unsigned char *out) {
    for (size_t k = 0; k < n_items; k++)
        for (int r = 0; r < n_here; r++) memcpy(out + (k * KERN_PANEL + (size_t)r) * n, rows + (size_t)r * row_bytes + k * n, n);
}

/* [rows][K] items of 2 or 4 bytes to [K][16]. */
static void pack_items(const kern_matrix *w, const unsigned char *rows, size_t row_bytes, size_t item, int first_row, int n_rows,
                       unsigned char *out) {
    const unsigned char *first = rows + (size_t)first_row * row_bytes;
    const int n_here = n_rows - first_row < KERN_PANEL ? n_rows - first_row : KERN_PANEL;
    const size_t n_items = (size_t)w->n_cols;
    if (n_here < KERN_PANEL) memset(out, 0, n_items * KERN_PANEL * item);
    if (item == 2 && n_here == KERN_PANEL) transpose(first, row_bytes, n_items, KERN_PANEL, 2, out);
    else if (item == 2) transpose(first, row_bytes, n_items, n_here, 2, out);
    else if (n_here == KERN_PANEL) transpose(first, row_bytes, n_items, KERN_PANEL, 4, out);
    else transpose(first, row_bytes, n_items, n_here, 4, out);
}

void kern_pack(const kern_matrix *w, quant_type type, const unsigned char *rows, int panel_begin, int panel_end, float *scratch) {
    const quant_format *format = quant_format_of(type);
    const size_t row_bytes = quant_row_bytes(format, (size_t)w->n_cols);
    for (int panel = panel_begin; panel < panel_end; panel++) {
        unsigned char *out = w->data + (size_t)panel * w->panel_bytes;
        const int first = panel * KERN_PANEL;
        const size_t used = (size_t)(w->n_cols / w->layout->unit) * (size_t)w->layout->unit_bytes;
        memset(out + used, 0, w->panel_bytes - used); /* the same bytes wherever it is packed */
        if (w->layout->source != type) {
            int n = w->n_rows - first < KERN_PANEL ? w->n_rows - first : KERN_PANEL;
            for (int r = 0; r < n; r++)
                format->dequantise(rows + (size_t)(first + r) * row_bytes, scratch + (size_t)r * (size_t)w->n_cols,
                                   (size_t)(w->n_cols / format->block_size));
            if (w->layout->id == KERN_I8_G) pack_integers(w, scratch, n, out);
            else pack_items(w, (const unsigned char *)scratch, (size_t)w->n_cols * sizeof(float), sizeof(float), 0, n, out);
        } else if (w->layout->bits) {
            pack_quantised(w, rows, row_bytes, first, out);
        } else {
            pack_items(w, rows, row_bytes, (size_t)format->block_bytes, first, w->n_rows, out);
        }
    }
}

/* ---- activations ------------------------------------------------------------------------------------------------------ */

static size_t round64(size_t n) { return (n + 63) & ~(size_t)63; }

size_t kern_rows_bytes(int64_t n_rows, int64_t n_cols) {
    size_t n = (size_t)n_rows, k = (size_t)((n_cols + 31) & ~(int64_t)31);
    return round64(n * k) + 2 * round64(n * (k / 32) * sizeof(float)) + round64(n * (k / 16) * sizeof(int32_t));
}

void kern_rows_bind(kern_rows *x, void *memory, int64_t n_rows, int64_t n_cols) {
    size_t n = (size_t)n_rows, k = (size_t)((n_cols + 31) & ~(int64_t)31);
    unsigned char *p = memory;
    x->n_cols = (int32_t)k;
    x->q = (int8_t *)p;
    p += round64(n * k);
    x->d = (float *)p;
    p += round64(n * (k / 32) * sizeof(float));
    x->sum = (float *)p;
    p += round64(n * (k / 32) * sizeof(float));
    x->neg_sum = (int32_t *)p;
}
