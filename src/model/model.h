/* Models: the architecture table, weights bound to packed matrices, and the forward pass over a batch of tokens.
 *
 * Owns: what differs between model families (as data), tensor names and shapes, the packed weights, the scratch of a step.
 * Must not know: sequences, sampling, requests. A model is immutable after opening; a forward object has one owner thread. */
#ifndef WEIR_MODEL_H
#define WEIR_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/pool.h"
#include "gguf/gguf.h"
#include "kern/kern.h"
#include "tok/tok.h"
#include "weir/weir.h"

/* ---- configuration ---------------------------------------------------------------------------------------------------- */

typedef enum model_rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_YARN } model_rope_scaling;

/* Rotary position embedding (Su et al. 2021); YaRN: Peng et al. 2023. */
typedef struct model_rope {
    float base;
    float frequency_scale;      /* 1 / factor: positions are multiplied by it (linear), or interpolated towards (YaRN) */
    model_rope_scaling scaling;
    float attention_factor, beta_fast, beta_slow;
    int32_t n_ctx_original;
    const float *factors;       /* [n_rot / 2] divisors of the frequencies, or NULL */
} model_rope;

typedef enum model_activation { ACTIVATION_SILU, ACTIVATION_GELU } model_activation;

typedef struct model_config {
    int32_t n_vocab, n_ctx_train, d_model, n_layer, n_head, n_head_kv, d_head, d_value, d_ff, n_rot;
    float norm_eps;
    bool rope_neox;             /* pairs are (i, i + n_rot/2) instead of (2i, 2i + 1) */
    model_activation activation;
    float embedding_scale;      /* 1 = none */
    float attention_scale;      /* multiplies q; usually 1/sqrt(d_head) */
    float residual_scale;       /* multiplies what a block adds; 1 = none */
    float logit_scale;          /* multiplies the logits; 1 = none */
    float attention_softcap, output_softcap; /* 0 = none */
    int32_t window;             /* sliding window of windowed layers; 0 = none */
    model_rope rope[2];         /* [0] for full layers, [1] for windowed ones */
} model_config;

/* One row of the architecture table. */
typedef struct model_arch {
    const char *name;           /* general.architecture */
    bool rope_neox;
    bool qk_norm;               /* RMSNorm of each head of q and k, before RoPE */
    bool post_norms;            /* RMSNorm of what attention and feed-forward add */
    bool embedding_sqrt;        /* embeddings are multiplied by sqrt(d_model) */
    model_activation activation;
    int32_t window_pattern;     /* every n-th layer is full, the others windowed; 0 = no windows */
    float window_rope_base;     /* RoPE base of windowed layers when the file does not say; 0 = as the full layers */
    /* Adjusts the configuration beyond the flags; may be NULL. */
    int (*configure)(model_config *c, const gguf *g, weir_error *err);
} model_arch;

const model_arch *model_arch_named(const char *name, size_t n_bytes);
const model_arch *model_arch_table(size_t *n_rows);
/* Fills *c from the metadata of g. WEIR_E_FORMAT (missing or absurd values; place = the key). */
int model_config_read(model_config *c, const model_arch *arch, const gguf *g, weir_error *err);

/* cos[n_rot / 2] and sin[n_rot / 2] of the rotation at position `pos`. */
void model_rope_angles(const model_rope *r, int32_t n_rot, int32_t pos, float *cos, float *sin);

/* ---- weights ---------------------------------------------------------------------------------------------------------- */

typedef struct model_layer {
    const float *attn_norm, *ffn_norm;           /* [d_model] */
    const float *attn_post_norm, *ffn_post_norm; /* [d_model] or NULL */
    const float *q_norm, *k_norm;                /* [d_head] or NULL */
    const float *q_bias, *k_bias, *v_bias, *o_bias;       /* or NULL */
    const float *gate_bias, *up_bias, *down_bias;         /* or NULL */
    kern_matrix q, k, v, o;                      /* [n_head d_head][d_model], ..., [d_model][n_head d_value] */
    kern_matrix gate, up, down;                  /* [d_ff][d_model] twice, [d_model][d_ff] */
    bool windowed;
} model_layer;

struct weir_model {
    gguf *file;
    tok *tokenizer;
    const model_arch *arch;
    model_config config;
    const kern_ops *ops;
    weir_model_info info;
    arena strings;               /* texts of info */
    bool vocab_only;

    const gguf_tensor *embedding; /* [n_vocab][d_model], read row by row from the file */
    const float *output_norm;
    kern_matrix output;           /* [n_vocab][d_model] */
    model_layer *layers;          /* [n_layer] */
    unsigned char *weights;       /* one mapping with all packed matrices and vectors */
    size_t weights_bytes;
};

/* Binds and packs all weights of m, whose file, tokeniser and configuration are set. Errors as weir_model_open. */
int model_load_weights(weir_model *m, const weir_model_options *options, weir_error *err);

/* ---- KV pages --------------------------------------------------------------------------------------------------------- */

/* A page holds KERN_PAGE tokens of all layers. */
size_t model_page_bytes(const weir_model *m);

/* ---- forward ---------------------------------------------------------------------------------------------------------- */

/* Consecutive rows of a batch that belong to one sequence, at consecutive positions. */
typedef struct forward_group {
    int32_t row_begin, n_rows;
    int32_t pos_begin;            /* position of the first row; keys 0..pos are in the pages or in this group */
    unsigned char *const *pages;  /* page i holds positions [32 i, 32 i + 32) */
} forward_group;

typedef struct forward_batch {
    const int32_t *tokens;        /* [n_rows] */
    int32_t n_rows;
    const forward_group *groups;  /* [n_groups], in row order, covering all rows */
    int32_t n_groups;
    const int32_t *output_rows;   /* [n_outputs] rows whose logits are wanted, ascending */
    int32_t n_outputs;
    float *logits;                /* [n_outputs][logits_stride] */
    size_t logits_stride;         /* >= n_vocab rounded up to 16 */
    bool (*abort)(void *user);    /* asked by one thread between layers; may be NULL */
    void *abort_user;
} forward_batch;

typedef struct forward forward;

/* Scratch for batches of up to n_rows_max rows, n_outputs_max outputs and n_ctx positions, on the pool's threads.
 * The pool and the model must outlive it. WEIR_E_NOMEM. */
int forward_open(forward **out, const weir_model *m, pool *p, int32_t n_rows_max, int32_t n_outputs_max, int32_t n_ctx,
                 weir_error *err);
void forward_close(forward **f);
size_t forward_bytes(const forward *f); /* memory it holds */
/* Writes the keys and values of all rows into their pages and the wanted logits. WEIR_E_CANCELLED when `abort` said so: pages of
 * the rows are then partly written, which does no harm as long as the sequences' lengths do not advance. */
int forward_run(forward *f, const forward_batch *batch, weir_error *err);

#endif
