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

typedef enum model_rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_YARN, ROPE_SCALING_LONG } model_rope_scaling;

/* Rotary position embedding (Su et al. 2021); YaRN: Peng et al. 2023; long factors: LongRoPE, Ding et al. 2024. */
typedef struct model_rope {
    float base;
    float frequency_scale;      /* 1 / factor: positions are multiplied by it (linear), or interpolated towards (YaRN) */
    model_rope_scaling scaling;
    float attention_factor;     /* multiplies cos and sin */
    float beta_fast, beta_slow;
    float log_multiplier;       /* YaRN: divides the magnitude by 1 + 0.1 m ln(factor); 0 = no division */
    int32_t n_ctx_original;
    const float *factors;       /* [n_rot / 2] divisors of the frequencies, or NULL */
    const float *long_factors;  /* the same for contexts beyond n_ctx_original, or NULL */
} model_rope;

typedef enum model_norm { NORM_RMS, NORM_LAYER } model_norm;
typedef enum model_rope_kind { ROPE_PAIRS, ROPE_HALVES, ROPE_NONE } model_rope_kind; /* (2i, 2i+1), (i, i + n_rot/2) */
typedef enum model_qk_norm { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_ROW } model_qk_norm; /* of each head, of the whole projection */
typedef enum model_positions { POSITIONS_ROPE, POSITIONS_LEARNED, POSITIONS_ALIBI, POSITIONS_NONE } model_positions;

/* How the states of a text's tokens become one embedding; as the files number them. */
typedef enum model_pooling { POOLING_NONE, POOLING_MEAN, POOLING_FIRST, POOLING_LAST, POOLING_RANK } model_pooling;

typedef enum model_gating { GATING_SOFTMAX = 1, GATING_SIGMOID = 2, GATING_SOFTMAX_CHOSEN = 3 } model_gating; /* as the files number them */

enum { MODEL_MAX_LAYERS = 1024 };

/* What may differ from layer to layer. */
typedef struct model_layer_shape {
    int32_t n_head, n_head_kv;  /* n_head_kv 0 = no attention */
    int32_t d_ff;               /* width of a dense feed-forward; 0 = none */
    bool recurrent;             /* has a recurrent block, instead of attention or beside it */
} model_layer_shape;

typedef enum model_recurrent {
    RECURRENT_NONE,
    RECURRENT_SHORT_CONV, /* gated short convolution (LFM2) */
    RECURRENT_MAMBA,      /* selective scan, a decay for each channel and state (Gu, Dao 2023) */
    RECURRENT_MAMBA2,     /* one decay a head; inputs and outputs of the state in groups (Dao, Gu 2024) */
} model_recurrent;

enum { MODEL_MAX_CONV = 64 };

/* Sizes of recurrent blocks, the same in all layers. */
typedef struct model_recurrence {
    int32_t d_conv;             /* tokens that a convolution spans, the newest included */
    int32_t d_inner;            /* channels */
    int32_t d_state;            /* values of state a channel; 0 = no scan */
    int32_t dt_rank;            /* Mamba: rank of the step sizes; Mamba 2: heads */
    int32_t n_group;            /* Mamba 2: groups of heads that share inputs and outputs of the state */
    int32_t n_conv;             /* convolved channels */
    int32_t n_in;               /* width of the input projection, in which ... */
    int32_t conv_first, gate_first; /* ... these are the first convolved and the first gate channel */
    bool norm_parameters;       /* Mamba: step sizes, inputs and outputs of the state are normed without weights */
} model_recurrence;

typedef struct model_config {
    int32_t n_vocab, n_ctx_train, d_model, n_layer, d_head, d_value, n_rot;
    int32_t n_head, n_head_kv, d_ff; /* the largest of all layers */
    model_layer_shape shapes[MODEL_MAX_LAYERS]; /* [n_layer] */
    bool kv_f32;                /* keys and values are always kept in F32 */
    /* Multi-head latent attention: d_latent 0 = none. Else d_head is d_latent + n_rot, d_value is d_latent, and one KV head serves
     * all; the heads themselves have d_nope + n_rot values in queries and keys, and d_value_head in values. */
    int32_t d_latent, d_latent_query, d_nope, d_value_head; /* d_latent_query 0 = queries are not compressed */
    bool causal;                /* a token sees only those before it; else the whole text, which must then be one batch */
    model_pooling pooling;
    model_recurrence recurrence;
    float norm_eps;
    bool parallel;              /* attention and feed-forward read the same residual stream and are added together */
    float embedding_scale;      /* 1 = none */
    float attention_scale;      /* multiplies q; usually 1/sqrt(d_head) */
    float residual_scale;       /* multiplies what a block adds; 1 = none */
    float logit_scale;          /* multiplies the logits; 1 = none */
    float attention_softcap, output_softcap; /* 0 = none */
    float clamp_qkv;            /* 0 = none */
    float alibi_max_bias;       /* 0 = none */
    float temperature_scale;    /* q at position p is multiplied by 1 + scale ln(1 + floor(p / temperature_length)); 0 = none */
    int32_t temperature_length;
    int32_t n_expert, n_expert_used; /* 0 = no routed experts */
    int32_t d_ff_expert, d_ff_shared; /* d_ff_shared 0 = no shared expert */
    int32_t n_layer_dense;      /* leading layers without experts */
    int32_t expert_step;        /* of the rest, layer i has experts when (i + 1) is a multiple */
    int32_t n_expert_groups, n_expert_groups_used; /* experts are chosen within the best groups; 0 or 1 = no groups */
    model_gating expert_gating;
    bool expert_weights_norm;   /* the chosen experts' weights are divided by their sum */
    float expert_weights_scale; /* 1 = none */
    int32_t window;             /* sliding window of windowed layers; 0 = none */
    int32_t window_pattern;     /* layer i is full when (i + 1) is a multiple, else windowed; 0 = no windows */
    int32_t no_rope_pattern;    /* layer i has no RoPE when (i + 1) is a multiple; 0 = all have it */
    model_rope rope[2];         /* [0] for full layers, [1] for windowed ones */
} model_config;

/* One row of the architecture table: everything that differs between families and is not in their metadata. */
typedef struct model_arch {
    const char *name;           /* general.architecture */
    model_norm norm;
    model_rope_kind rope;
    model_positions positions;
    model_qk_norm qk_norm;
    bool optional_qk_norm;      /* not every model of the family has it */
    bool latent;                /* multi-head latent attention */
    model_recurrent recurrent;  /* of layers without attention, */
    bool recurrent_beside_attention; /* or of all layers */
    bool single_blocks;         /* a layer is attention, or recurrent, or a feed-forward, after one norm */
    bool experts_where_routed;  /* layers with a router have experts, the others are dense */
    const char *output_norm;    /* the norm before the head, if it is not called output_norm */
    bool plain_ffn;             /* no gate: down(activation(up(x))) */
    bool optional_gate;         /* not every model of the family has one */
    bool encoder;               /* sees the whole text unless the file says otherwise, and has no head: embeddings only */
    bool sum_norms;             /* norms of the residual stream itself, after attention and after the feed-forward */
    kern_activation activation;
    bool has_experts;           /* routed experts are possible */
    model_gating expert_gating; /* when the file does not say; 0 = softmax */
    bool expert_weights_norm;   /* when the file does not say */
    bool parallel;
    bool no_pre_norms;          /* attention and feed-forward read the residual stream itself */
    bool post_norms;            /* norms of what attention and feed-forward add */
    bool ffn_norm_after_attention; /* the feed-forward's norm is stored as post_attention_norm */
    bool second_attn_norm;      /* attention may have a norm of its own beside the feed-forward's (attn_norm_2) */
    bool unweighted_norms;      /* norms have no weights */
    bool embedding_norm;
    bool embedding_sqrt;        /* embeddings are multiplied by sqrt(d_model) */
    bool divides_logits;        /* logit_scale is a divisor */
    int32_t window, window_pattern; /* when the file does not say; pattern 0 = no windows */
    float window_rope_base;     /* RoPE base of windowed layers when the file does not say; 0 = as the full layers */
    bool window_rope_unscaled;  /* RoPE scaling is for full layers only */
    bool rope_in_windows_only;
    int32_t no_rope_pattern;
    float alibi_max_bias;
    /* Adjusts the configuration beyond the flags; may be NULL. */
    int (*configure)(model_config *c, const gguf *g, weir_error *err);
} model_arch;

const model_arch *model_arch_named(const char *name, size_t n_bytes);
const model_arch *model_arch_table(size_t *n_rows);
/* Fills *c from the metadata of g. WEIR_E_FORMAT (missing or absurd values; place = the key). */
int model_config_read(model_config *c, const model_arch *arch, const gguf *g, weir_error *err);

/* cos[n_rot / 2] and sin[n_rot / 2] of the rotation at position `pos` in a context of n_ctx tokens. */
void model_rope_angles(const model_rope *r, int32_t n_rot, int32_t pos, int32_t n_ctx, float *cos, float *sin);

/* ---- weights ---------------------------------------------------------------------------------------------------------- */

typedef struct model_norm_weights {
    const float *weight, *bias;  /* or NULL */
    bool present;                /* false: the norm is left out */
} model_norm_weights;

typedef struct model_layer {
    int32_t n_head, n_head_kv;                        /* n_head_kv 0 = no attention */
    int32_t first_head_kv;                            /* KV heads of the layers before */
    model_norm_weights attn_norm, ffn_norm;           /* before the block, [d_model] */
    model_norm_weights attn_post_norm, ffn_post_norm; /* after it, [d_model] */
    model_norm_weights attn_sum_norm, ffn_sum_norm;   /* of the residual stream after the block, [d_model] */
    model_norm_weights attn_again_norm;               /* of that plus what the stream was before, [d_model] */
    model_norm_weights q_norm, k_norm;                /* [d_head], or [n_head][d_head] when `per_head_norms`, or the row */
    bool per_head_norms;
    const float *q_bias, *k_bias, *v_bias, *o_bias;   /* or NULL */
    model_norm_weights q_down_norm, kv_down_norm;     /* latent attention: [d_latent_query], [d_latent] */
    kern_matrix q_down, kv_down;                      /* [d_latent_query][d_model] or absent, [d_latent + n_rot][d_model]; q is then
                                                         [n_head (d_nope + n_rot)][d_latent_query or d_model], k and v absent */
    kern_matrix *k_up, *v_up;                         /* [n_head] of [d_latent][d_nope], [d_value_head][d_latent] */
    const float *gate_bias, *up_bias, *down_bias;     /* or NULL */
    const float *sinks;                               /* [n_head] or NULL */
    kern_matrix q, k, v, o;                           /* [n_head d_head][d_model], ..., [d_model][n_head d_value] */
    kern_matrix gate, up, down;                       /* [d_ff][d_model] twice (gate may be absent), [d_model][d_ff]; of the shared
                                                         expert in layers with routed ones; absent if there is none */
    kern_matrix router, shared_gate;                  /* [n_expert][d_model], [1][d_model]; absent without experts */
    const float *router_bias, *selection_bias;        /* [n_expert] or NULL; the latter counts for choosing only */
    kern_matrix *gate_experts, *up_experts, *down_experts; /* [n_expert] each; gate may be NULL */
    const float *gate_experts_bias, *up_experts_bias; /* [n_expert][d_ff_expert] or NULL */
    const float *down_experts_bias;                   /* [n_expert][d_model] or NULL */
    bool windowed, has_rope;
    model_recurrent recurrent;
    size_t state_offset;                              /* of the layer in a sequence's recurrent state */
    kern_matrix recurrent_in, recurrent_out;          /* [n_in][d_model], [d_model][d_inner] */
    kern_matrix select, dt;                           /* Mamba: [dt_rank + 2 d_state][d_inner], [d_inner][dt_rank] */
    const float *conv, *conv_bias;                    /* [d_conv][n_conv rounded up to 16]; [n_conv] or NULL */
    const float *dt_bias;                             /* [d_inner], of Mamba 2 [dt_rank] */
    const float *decay, *skip;                        /* by blocks of 16 channels: [blocks][d_state][16], of Mamba 2 [blocks][16];
                                                         [blocks][16] */
    model_norm_weights dt_norm, b_norm, c_norm;       /* [dt_rank], [d_state], [d_state] */
    model_norm_weights scan_norm;                     /* [n_group][d_inner / n_group] */
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
    const gguf_tensor *positions; /* [n_ctx_train][d_model] learned position embeddings, or NULL */
    const float *token_type;     /* [d_model] added to all embeddings, or NULL */
    model_norm_weights embedding_norm, output_norm;
    const float *output_bias;     /* [n_vocab] or NULL */
    const float *alibi;           /* [n_head] slopes or NULL */
    kern_matrix output;           /* [n_vocab][d_model]; absent in encoders */
    kern_matrix classifier, classifier_out; /* of reranking models: [..][d_model] with tanh, then [..][..]; either may be absent */
    const float *classifier_bias, *classifier_out_bias; /* or NULL */
    model_layer *layers;          /* [n_layer] */
    unsigned char *weights;       /* one mapping with all packed matrices and vectors, read-only when it is the sidecar's */
    size_t weights_bytes;
    struct sidecar *sidecar;      /* the file that keeps them between starts; NULL = none */
};

/* What tells this model, with its weights as they are computed with, from any other: a checksum of the file's head, size and time and
 * of samples of the weights. WEIR_E_NOMEM. */
int model_identify(const weir_model *m, unsigned char out[16], weir_error *err);
/* Binds and packs all weights of m, whose file, tokeniser and configuration are set. Errors as weir_model_open. */
int model_load_weights(weir_model *m, const weir_model_options *options, weir_error *err);

/* What running the model of an open file takes. Nothing is loaded. Errors as weir_model_open, for what can be seen without the
 * tokeniser and the weights themselves. */
typedef struct model_memory {
    uint64_t weights_bytes, kv_token_bytes; /* packed; KV cache per token of context, of the default types */
    uint64_t state_bytes;                   /* recurrent state of a sequence */
    uint64_t matmul_params, head_params;    /* multiply-accumulates of a token in the layers' matrices, and for its logits */
    uint64_t decode_bytes;                  /* weights read to decode one token of one sequence */
    int32_t n_ctx_train;
} model_memory;
int model_memory_needed(gguf *g, model_memory *out, weir_error *err);
/* Fills what follows from the shapes of the weights of m, whose file and configuration are set; binds and unbinds them. */
int model_weights_needed(weir_model *m, model_memory *out, weir_error *err);

/* ---- KV pages --------------------------------------------------------------------------------------------------------- */

/* What a page holds of a KV head when keys and values of these types are asked for. */
kern_kv model_kv(const model_config *c, kern_kv_type k, kern_kv_type v);
/* A page holds KERN_PAGE tokens of all layers with attention, head after head; 0 bytes if none has. */
size_t model_page_bytes(const model_config *c, const kern_kv *kv);

/* ---- recurrent state -------------------------------------------------------------------------------------------------- */

/* Bytes of a sequence's recurrent state; 0 = the model has none. The state of a sequence without tokens is all zeros. */
size_t model_state_bytes(const model_config *c);
/* Where a layer's begins. */
size_t model_state_offset(const model_config *c, int32_t layer);
/* Blocks of up to 16 channels, none across groups, that scans work in. */
int32_t model_scan_blocks(const model_recurrence *r);

/* ---- forward ---------------------------------------------------------------------------------------------------------- */

/* Consecutive rows of a batch that belong to one sequence, at consecutive positions. */
typedef struct forward_group {
    int32_t row_begin, n_rows;
    int32_t pos_begin;            /* position of the first row; keys 0..pos are in the pages or in this group */
    unsigned char *const *pages;  /* page i holds positions [32 i, 32 i + 32) */
    const unsigned char *state_in; /* recurrent state after pos_begin tokens, aligned to KERN_ALIGN; may be NULL if there is none */
    unsigned char *state_out;     /* gets the state after the group's last row; not state_in */
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
    float *states;                /* not NULL: instead of logits, the rows' final states, [n_outputs][d_model] */
    bool (*abort)(void *user);    /* asked by one thread between layers; may be NULL */
    void *abort_user;
} forward_batch;

typedef struct forward forward;

/* Scratch for batches of up to n_rows_max rows, n_outputs_max outputs and n_ctx positions, on the pool's threads, over pages of model_kv's.
 * The pool and the model must outlive it. WEIR_E_NOMEM. */
int forward_open(forward **out, const weir_model *m, pool *p, const kern_kv *kv, int32_t n_rows_max, int32_t n_outputs_max, int32_t n_ctx,
                 weir_error *err);
void forward_close(forward **f);
/* Writes the keys and values of all rows into their pages and the wanted logits. WEIR_E_CANCELLED when `abort` said so: pages of
 * the rows are then partly written, which does no harm as long as the sequences' lengths do not advance. */
int forward_run(forward *f, const forward_batch *batch, weir_error *err);

/* Whether the model can predict tokens; else it only computes embeddings. */
bool model_generates(const weir_model *m);
/* Values of what forward_classify gives; 0 = the model has no classifier. */
int32_t model_n_classes(const weir_model *m);
/* The classifier's scores of a pooled state[d_model], scores[model_n_classes]. Between steps, on the caller's thread. */
void forward_classify(forward *f, const float *state, float *scores);

/* ---- work and time ---------------------------------------------------------------------------------------------------- */

/* The operations of a step that work and time are told for. */
typedef enum model_op {
    MODEL_OP_EMBED,     /* embedding rows */
    MODEL_OP_ROWS,      /* norms, quantisation, residual sums */
    MODEL_OP_QKV,       /* the three projections */
    MODEL_OP_ATTENTION, /* RoPE, storing keys and values, scores, values */
    MODEL_OP_OUT,       /* attention's output projection */
    MODEL_OP_GATE_UP,   /* with the activation function */
    MODEL_OP_DOWN,
    MODEL_OP_RECURRENT, /* convolutions, scans and their projections, but for the first one */
    MODEL_OP_EXPERTS,   /* all of the routed experts, their router and their row work */
    MODEL_OP_HEAD,      /* logits */
    MODEL_OP_WAIT,      /* at barriers */
    MODEL_N_OPS,
} model_op;

const char *model_op_name(model_op op);

/* What an operation has to do: multiply-accumulates in int8 and in F32, and bytes that must come from memory at least once. */
typedef struct model_work {
    double int8_macs, f32_macs, bytes;
} model_work;

/* Adds to work[] what the weights cost in a step of n_rows rows and n_outputs logits: each matrix is read once. Of routed experts
 * as many are counted as the rows can choose at most. */
void model_add_weights_work(const weir_model *m, int32_t n_rows, int32_t n_outputs, model_work work[MODEL_N_OPS]);
/* Adds what attention costs in a step for one sequence that holds n_past tokens and gets n_tok more: keys and values are read
 * once. */
void model_add_attention_work(const weir_model *m, const kern_kv *kv, int32_t n_past, int32_t n_tok, model_work work[MODEL_N_OPS]);

/* Measures from now on where the time of steps goes, from zero. Before the first call a step reads no clock. WEIR_E_NOMEM. */
int forward_measure(forward *f, weir_error *err);
/* Time of each operation since then in ns, the mean over the threads: their sum is the time of the steps. */
void forward_measured(const forward *f, double ns[MODEL_N_OPS]);

#endif
