/* Compute kernels: packed weight matrices, quantised activations, and one table of operations per instruction-set level.
 *
 * Owns: packed layouts, matrix products, norms, activations, attention over KV pages. Knows nothing of models, sequences or
 * threads: each operation works on the share that its arguments name and is called by any thread, with its own scratch.
 *
 * Bit-identity. Every output element is computed by one fixed sequence of IEEE operations that depends only on its own inputs:
 * never on how many rows, panels, threads or keys are computed beside it. Integer dot products are exact; everything else uses
 * explicit fused multiply-adds in a fixed order. So the levels agree with each other to the bit as well, and the tests ask for it.
 *
 * The product of a weight row w and an activation row x, both in blocks of 32 values:
 *     acc = 0
 *     for each block b (for formats with a scale per 16 values: each half block) in order:
 *         dot = sum over the block of (q_w - offset) * q_x                     exact, int32
 *         acc = fma((float)dot * d_x[b], d_w[b], acc)
 *         if the format has minimums: acc = fma(m_w[b], d_x[b] * (float)sum(q_x), acc)
 * with q_x = round(x / d_x), d_x = max|x| / 127 per block, and d_w, m_w the float scale and minimum of the weight block.
 * Floating point formats: acc = fma(w[k], x[k], acc) for k in order. */
#ifndef WEIR_KERN_H
#define WEIR_KERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant/quant.h"
#include "weir/weir_error.h"

enum {
    KERN_PANEL = 16,       /* output rows that a packed panel interleaves */
    KERN_BLOCK = 32,       /* values that share an activation scale */
    KERN_PAGE = 32,        /* tokens in a KV page */
    KERN_SEGMENT = 512,    /* keys reduced before a merge: attention's fixed chunk */
    KERN_ATTENTION_ROWS = 24, /* most query rows in one attention call */
    KERN_ALIGN = 64,
    KERN_LAYOUT_VERSION = 1, /* of the bytes that kern_pack writes; a change of any layout raises it: packed weights are kept in files */
    KERN_SCRATCH_BYTES = 1 << 16, /* what one matmul call needs */
};

/* ---- packed weights --------------------------------------------------------------------------------------------------- */

typedef enum kern_layout_id {
    KERN_F32, KERN_F16, KERN_BF16,          /* [K][16] values */
    KERN_Q4_S, KERN_Q5_S, KERN_Q8_S,        /* 4, 5, 8 bits; one scale per 32: Q4_0, Q5_0, Q8_0 */
    KERN_Q4_SM, KERN_Q5_SM,                 /* scale and minimum per 32: Q4_1, Q5_1 */
    KERN_Q4_K, KERN_Q5_K,                   /* scale and minimum per 32 in 6 bits, two scales per 256 */
    KERN_Q6_K,                              /* scale per 16 in 8 bits, one scale per 256 */
    KERN_Q2_K, KERN_Q3_K,                   /* scale per 16; Q2_K with a minimum per 16, both in 4 bits */
    KERN_IQ4_NL, KERN_IQ4_XS, KERN_MXFP4,   /* codes of 4 bits that stand for uneven levels */
    KERN_I8_G,                              /* 8 bits, scale per 16 in F32: any format whose groups of 16 are a scale times integers */
    KERN_N_LAYOUTS,
} kern_layout_id;

/* Where the scales of a layout are: for each block of 32, or (16) for each half of it. */
typedef enum kern_scales {
    KERN_SCALE_NONE,
    KERN_SCALE,         /* F16 */
    KERN_SCALE_MIN,     /* F16, and a minimum in F16 */
    KERN_SCALE_K,       /* 6-bit multiples of the unit's F16 scale, and likewise minimums */
    KERN_SCALE_K16,     /* signed multiples of the unit's F16 scale */
    KERN_SCALE_MIN_K16, /* 4-bit multiples of the unit's F16 scale, and likewise minimums */
    KERN_SCALE_K32,     /* signed multiples of the unit's F16 scale */
    KERN_SCALE_POWER,   /* the biased exponent of a power of two; 0 stands for 0 */
    KERN_SCALE_F32X16,  /* F32 */
} kern_scales;

/* What the packed values stand for. */
typedef enum kern_codes {
    KERN_CODES_PLAIN, /* themselves */
    KERN_CODES_IQ4,   /* the 16 levels of IQ4, -127 to 113, plus 128 */
    KERN_CODES_E2M1,  /* twice the values of E2M1, -12 to 12, plus 12 (OCP Microscaling Formats 1.0, section 5.3.3) */
} kern_codes;

typedef struct kern_layout {
    kern_layout_id id;
    const char *name;
    int bits;            /* of a packed quantised value: 2, 3, 4, 5, 6 or 8; 0 = floating point */
    int offset;          /* subtracted from what it stands for */
    kern_scales scales;
    kern_codes codes;
    int unit;            /* values of K in a unit: 1, 32 or 256 */
    int unit_bytes;      /* bytes of one unit of a panel (16 rows) */
    quant_type source;   /* the GGUF type it packs, without loss; KERN_I8_G and KERN_F32 also take others */
} kern_layout;

/* The layout of its own that `type` packs into; NULL = none. */
const kern_layout *kern_layout_for(quant_type type);

/* A packed matrix [n_rows][n_cols]: y[n_rows] = W x[n_cols]. Rows are padded with zeros to whole panels. */
typedef struct kern_matrix {
    const kern_layout *layout; /* NULL: absent */
    int32_t n_rows, n_cols;
    int32_t n_panels;
    size_t panel_bytes;
    unsigned char *data; /* [n_panels][panel_bytes], aligned to KERN_ALIGN; not owned */
} kern_matrix;

/* The layout that a matrix of `type` gets: its own, or KERN_I8_G where that loses nothing but the last bit of a float, or KERN_F32. */
const kern_layout *kern_layout_chosen(quant_type type);

/* Describes the packed form of a [n_rows][n_cols] matrix of `type`, without data.
 * WEIR_E_FORMAT (n_cols is not a multiple of the block), WEIR_E_UNSUPPORTED (no dequantisation), WEIR_E_LIMIT (too large). */
int kern_matrix_init(kern_matrix *w, quant_type type, int64_t n_rows, int64_t n_cols, weir_error *err);
size_t kern_matrix_bytes(const kern_matrix *w);
/* Packs panels [panel_begin, panel_end) from the rows of a GGUF tensor, rows[n_rows][row_bytes]. w->data must be set.
 * `scratch` holds KERN_PANEL * n_cols floats (only used for types without a layout of their own). Thread-safe on disjoint panels. */
void kern_pack(const kern_matrix *w, quant_type type, const unsigned char *rows, int panel_begin, int panel_end, float *scratch);

/* ---- activations ------------------------------------------------------------------------------------------------------ */

/* n rows of activations, as floats and, for quantised weights, in int8 blocks of 32. Strides in values of the array's type;
 * all arrays are the caller's. n_cols is padded to a multiple of 32 with zeros. */
typedef struct kern_rows {
    const float *f32;   /* [n][stride]; needed for floating point weights only */
    size_t stride;
    int8_t *q;          /* [n][n_cols] */
    float *d;           /* [n][n_cols / 32] scale */
    float *sum;         /* [n][n_cols / 32] d * sum of q */
    int32_t *neg_sum;   /* [n][n_cols / 16] minus the sum of q over each half block */
    int32_t n_cols;
} kern_rows;

/* Bytes of one memory block that holds the quantised arrays of n rows, and setting the pointers into it. */
size_t kern_rows_bytes(int64_t n_rows, int64_t n_cols);
void kern_rows_bind(kern_rows *x, void *memory, int64_t n_rows, int64_t n_cols);

/* ---- activation functions --------------------------------------------------------------------------------------------- */

typedef enum kern_activation {
    KERN_SILU,    /* x / (1 + exp(-x)) */
    KERN_GELU,    /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks, Gimpel 2016, section 2) */
    KERN_RELU_SQUARED, /* max(x, 0)^2 (So et al. 2021) */
    KERN_SWIGLU_CLAMPED, /* with up only: x = min(gate, 7); x / (1 + exp(-1.702 x)) * (clamp(up, -7, 7) + 1) (gpt-oss) */
} kern_activation;

/* ---- attention -------------------------------------------------------------------------------------------------------- */

/* d rounded up to whole vectors of 16. */
static inline int32_t kern_pad16(int32_t d) { return (d + 15) & ~15; }

/* How keys or values are kept. Q8_0 and Q4_0 as the block formats of these names: 32 values of one token and head share a scale in
 * F16, so that what is kept of a token depends on that token alone, whatever is beside it in the page and whenever it came. */
typedef enum kern_kv_type { KERN_KV_F16, KERN_KV_BF16, KERN_KV_Q8_0, KERN_KV_Q4_0, KERN_KV_F32, KERN_N_KV_TYPES } kern_kv_type;

/* What a page holds of one KV head: keys, and values behind them. d_value_pad = d_value rounded up to 16.
 *     F16, BF16, F32    keys [d_head][KERN_PAGE], values [KERN_PAGE][d_value_pad]
 *     Q8_0              keys as int8 [d_head][KERN_PAGE], then scales [d_head / 32][KERN_PAGE];
 *                       values as int8 [KERN_PAGE][d_value], then scales [d_value / 32][KERN_PAGE]
 *     Q4_0              the same with two values a byte (plus 8): keys 2i (low) and 2i + 1, [d_head / 2][KERN_PAGE]; of 32 values the
 *                       first and the second 16, [KERN_PAGE][d_value / 2]
 * No byte belongs to two tokens: threads may store neighbours at once. */
typedef struct kern_kv {
    int32_t d_head, d_value; /* multiples of KERN_BLOCK where the type is Q8_0 or Q4_0 */
    kern_kv_type k, v;
} kern_kv;

const char *kern_kv_type_name(kern_kv_type type); /* as llama.cpp writes it: "f16", "q8_0" */
/* Whether n values of a head can be kept in that type. */
bool kern_kv_type_fits(kern_kv_type type, int32_t n);
/* Whether what is kept should be the Hadamard transform of keys and queries, or of values: 4 bits are too few for the few dimensions
 * that are much larger than the others, and the transform spreads them over all (Ashkboos et al. 2024, QuaRot). */
static inline bool kern_kv_type_is_spread(kern_kv_type type) { return type == KERN_KV_Q4_0; }
static inline size_t kern_kv_bytes(kern_kv_type type, int32_t n) {
    const size_t n_values = (size_t)n * KERN_PAGE, scales = n_values / KERN_BLOCK * sizeof(uint16_t);
    if (type == KERN_KV_Q4_0) return n_values / 2 + scales;
    return type == KERN_KV_Q8_0 ? n_values + scales : n_values * (type == KERN_KV_F32 ? sizeof(float) : sizeof(uint16_t));
}
/* Bytes of a page's keys and values; multiples of KERN_ALIGN. */
static inline size_t kern_keys_bytes(const kern_kv *kv) { return kern_kv_bytes(kv->k, kv->d_head); }
static inline size_t kern_values_bytes(const kern_kv *kv) { return kern_kv_bytes(kv->v, kern_pad16(kv->d_value)); }

/* Query rows of one KV head of one sequence, against keys by absolute position. */
typedef struct kern_attention {
    int32_t n_rows;              /* 1..KERN_ATTENTION_ROWS */
    kern_kv kv;
    const float *const *q;       /* [n_rows] -> [d_head], already scaled */
    const int32_t *key_begin;    /* [n_rows] first visible key */
    const int32_t *key_end;      /* [n_rows] one past the last visible key */
    unsigned char *const *pages; /* page of keys [32 i, 32 i + 32) at pages[i] */
    size_t offset;               /* of this layer and head in a page */
    float softcap;               /* 0 = none: s = softcap * tanh(s / softcap) */
    const float *alibi_slope;    /* [n_rows] or NULL: s -= slope * |position - key| (Press et al. 2022) */
    const int32_t *position;     /* [n_rows] of the query; only read with alibi_slope */
    float *widened;              /* [KERN_PAGE][d_head + d_value_pad] room for a page as F32, aligned to KERN_ALIGN; NULL = none */
} kern_attention;

/* Running softmax state of n_rows rows: maximum, sum of exponentials, weighted values [d_value_pad]. */
typedef struct kern_softmax {
    float max[KERN_ATTENTION_ROWS], sum[KERN_ATTENTION_ROWS];
    float *values; /* [n_rows][d_value_pad], the caller's, aligned to KERN_ALIGN */
} kern_softmax;

/* ---- recurrent layers ------------------------------------------------------------------------------------------------- */

/* A convolution over the last d_conv tokens, each channel by itself. */
typedef struct kern_conv {
    int d_conv;
    const float *weight; /* [d_conv][stride], the oldest token first */
    size_t stride;
    const float *bias;   /* [n] or NULL */
    bool silu;           /* out = silu(sum) */
} kern_conv;

/* A selective scan over n_tok tokens of up to 16 channels (Gu, Dao 2023, algorithm 2; with one decay a channel: Dao, Gu 2024):
 *     d = ln(1 + exp(dt[t]))
 *     state[n] = state[n] * exp(d * decay[n]) + b[t][n] * d * x[t]        for each n of d_state
 *     y[t] = (sum over n of state[n] * c[t][n] + skip * x[t]) * silu(gate[t])
 * Arrays over channels are read in vectors of 16 whatever n_lanes is; y has n_lanes written. state_in may be state_out. */
typedef struct kern_scan {
    int n_tok, d_state, n_lanes;
    bool shared_decay;              /* decay is [16], the same for all n; else [d_state][16] */
    const float *decay, *skip;      /* skip[16] */
    const float *x, *dt, *gate;     /* [n_tok][.._stride] */
    size_t x_stride, dt_stride, gate_stride;
    const float *b, *c;             /* [n_tok][bc_stride], of which d_state are read */
    size_t bc_stride;
    const float *state_in;          /* [d_state][16] */
    float *state_out;               /* [d_state][16] */
    float *y;                       /* [n_tok][y_stride] */
    size_t y_stride;
} kern_scan;

/* ---- the table -------------------------------------------------------------------------------------------------------- */

typedef struct kern_ops {
    const char *name; /* "reference", "avx2", "avx512" */
    /* out[tok][16 p .. 16 p + 16) for panels p of [panel_begin, panel_end) and rows [0, n_rows) of x, += when `add`.
     * out has room for whole panels: stride >= 16 n_panels. `scratch`: KERN_SCRATCH_BYTES, aligned to KERN_ALIGN. */
    void (*matmul)(const kern_matrix *w, int panel_begin, int panel_end, const kern_rows *x, int n_rows, float *out, size_t stride,
                   bool add, void *scratch);
    /* Fills row `row` of x's quantised arrays from values[n] (n <= x->n_cols; the rest is zero). */
    void (*quantise)(kern_rows *x, int row, const float *values, int n);
    /* out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; weight may be NULL; out may be x (Zhang, Sennrich 2019). */
    void (*rms_norm)(const float *x, const float *weight, int n, float eps, float *out);
    /* out[i] = (x[i] - mean) / sqrt(var + eps) * weight[i] + bias[i]; weight, bias may be NULL; out may be x. */
    void (*layer_norm)(const float *x, const float *weight, const float *bias, int n, float eps, float *out);
    void (*add)(float *x, const float *y, int n);               /* x += y */
    void (*scale)(float *x, float factor, int n);               /* x *= factor */
    void (*clamp)(float *x, float limit, int n);                /* x = min(max(x, -limit), limit) */
    /* gate = activation(gate) * up; up may be NULL: gate = activation(gate). */
    void (*activate)(kern_activation kind, float *gate, const float *up, int n);
    void (*softcap)(float *x, float cap, int n);                /* x = cap * tanh(x / cap) */
    /* Rotates the first n_rot values of x by angles given as cos/sin[n_rot / 2]. Adjacent pairs, or halves when `neox`. */
    void (*rope)(float *x, const float *cos, const float *sin, int n_rot, bool neox);
    /* Stores one token's key[d_head] and value[d_value] at slot `token` of a head's keys and values in a page, aligned to KERN_ALIGN. */
    void (*kv_store)(const kern_kv *kv, unsigned char *head, int token, const float *key, const float *value);
    /* The Walsh-Hadamard transform, not normed, of x[n] in blocks of the largest power of two that divides n: applied twice it is that
     * power times x. */
    void (*hadamard)(float *x, int n);
    /* Attends keys [begin, end) (begin a multiple of KERN_SEGMENT, end - begin <= KERN_SEGMENT) into a fresh state. */
    void (*attend)(const kern_attention *a, int32_t begin, int32_t end, kern_softmax *state);
    /* total = total merged with part (keys of part after those of total); rows, d_value as in the attention. */
    void (*attend_merge)(int n_rows, int d_value, kern_softmax *total, const kern_softmax *part);
    /* out[d_value] = values / sum of row `row`; zeros when the row saw no key. A `sink` (may be NULL) is a score that takes part
     * in the sum and has no value (Xiao et al. 2024, learned form). */
    void (*attend_finish)(const kern_softmax *state, int row, int d_value, const float *sink, float *out);
    /* For measuring what a core can do at best, without memory: n_rounds (>= 1) of the level's multiply-accumulates in int8, as
     * for 4-bit weights, and in F32. Return how many that was. */
    double (*peak_int8)(int64_t n_rounds);
    double (*peak_f32)(int64_t n_rounds);
    /* Reads p[n_bytes] in order; p aligned to KERN_ALIGN, n_bytes a multiple of 256. */
    void (*peak_read)(const unsigned char *p, size_t n_bytes);
    void (*multiply)(float *x, const float *y, int n);          /* x *= y */
    /* out[n] = bias + sum over k of taps[k][n] * weight[k][n]. */
    void (*short_conv)(const kern_conv *c, const float *const *taps, int n, float *out);
    void (*scan)(const kern_scan *s);
} kern_ops;

/* The best level that this CPU has, lowered by the environment variable WEIR_CPU_LEVEL (reference, avx2, avx512). Any thread. */
const kern_ops *kern_select(void);
/* The level of that name if this CPU can run it, else NULL. */
const kern_ops *kern_level(const char *name);

/* One per translation unit with its own compiler flags; use kern_select. */
extern const kern_ops kern_ops_reference, kern_ops_avx2, kern_ops_avx512;

#endif
