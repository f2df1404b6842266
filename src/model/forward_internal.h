/* What the files of the forward pass share: its state, a thread's view of a step, the division of work.
 *
 * Included by forward.c, attention.c and experts.c only. */
#ifndef WEIR_MODEL_FORWARD_INTERNAL_H
#define WEIR_MODEL_FORWARD_INTERNAL_H

#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "model/model.h"

/* Up to so many rows each thread repeats the row work. */
enum { REPLICATED_ROWS = 4 };

/* Counters that hand out work, one for each phase of each layer. */
enum { PHASE_IN, PHASE_ATTENTION, PHASE_OUT, PHASE_GATE_UP, PHASE_DOWN, PHASE_ROUTER, PHASE_EXPERTS_UP, PHASE_EXPERTS_DOWN,
       PHASE_LATENT_QUERY, PHASE_LATENT_KEY, PHASE_LATENT_VALUE, PHASE_SELECT, PHASE_STEPS, PHASE_SCAN, PHASE_RECURRENT_OUT, N_PHASES };

/* Row buffers: the residual stream, its norm, and quantised rows for the three widths that feed matrices. */
typedef struct row_buffers {
    float *x, *normed;               /* [n_rows][d_model_pad] */
    kern_rows model, heads, hidden;  /* inputs of width d_model, n_head d_value (d_value_head in latent attention), d_ff */
} row_buffers;

/* What one thread needs for itself. */
typedef struct thread_scratch {
    row_buffers rows;                /* REPLICATED_ROWS rows */
    void *matmul;
    float *query;                    /* [KERN_ATTENTION_ROWS][d_head_pad] */
    float *key;                      /* [d_head_pad] */
    float *page;                     /* [KERN_PAGE][d_head + d_value_pad] a page of keys and values as F32 */
    kern_softmax total, part;
} thread_scratch;

/* Routed experts: every (row, chosen expert) pair is an assignment; they are sorted by expert, so that each expert's matrices
 * are read once for all its rows. A = n_rows_max * n_expert_used. */
typedef struct expert_buffers {
    float *router;            /* [n_rows][n_expert_pad] logits */
    float *shared_gate;       /* [n_rows][16] */
    int32_t *chosen;          /* [n_rows][n_expert_used] experts */
    float *weight;            /* [n_rows][n_expert_used] */
    int32_t *position;        /* [n_rows][n_expert_used] where the assignment is in sorted order */
    int32_t *row;             /* [A] row of each sorted assignment */
    int32_t *first;           /* [n_expert + 1] first sorted assignment of each expert */
    float *input;             /* [A][d_model_pad] gathered rows */
    kern_rows model, hidden;  /* [A] rows of width d_model, d_ff_expert */
    float *gate, *up;         /* [A][d_ff_expert_pad] */
    float *out;               /* [A][d_model_pad] */
} expert_buffers;

/* Latent attention. */
typedef struct latent_buffers {
    float *q_low;             /* [n_rows][q_rows.stride] compressed queries */
    float *kv;                /* [n_rows][kv_stride] compressed keys and values, and the rotated key part */
    float *query;             /* [n_rows][n_head][query_apart] queries against compressed keys, without the rotated part */
    float *value;             /* [n_rows][value_stride] values of all heads, value_apart from head to head while they are made */
    size_t kv_stride, query_apart, value_stride, value_apart;
    kern_rows q_rows;         /* [n_rows] compressed queries */
    kern_rows nope_rows, latent_rows; /* [n_head][n_rows] heads' queries, and attention's outputs, of width d_nope and d_latent */
} latent_buffers;

/* Recurrent blocks. Rows have room for 16 values more than they hold. */
typedef struct recurrent_buffers {
    float *in;                /* [n_rows][in_stride] the projected row: what is convolved, gates, step sizes of Mamba 2 */
    float *conv;              /* [n_rows][conv_stride] after the convolution */
    float *select;            /* [n_rows][select_stride] Mamba: step sizes of low rank, inputs and outputs of the state */
    float *dt, *y;            /* [n_rows][inner_stride] step sizes, outputs of the scan */
    size_t in_stride, conv_stride, select_stride, inner_stride;
    kern_rows inner_rows, rank_rows; /* [n_rows] of width d_inner, dt_rank */
} recurrent_buffers;

/* A thread's time by operation, in cache lines of its own. */
typedef struct op_clock {
    _Alignas(64) int64_t last_ns;    /* when the operation that runs now began */
    int64_t ns[MODEL_N_OPS];
} op_clock;

struct forward {
    const weir_model *m;
    pool *threads;
    int n_threads;
    kern_kv kv;                      /* what pages hold of a KV head */
    int32_t n_rows_max, n_outputs_max, n_ctx, n_segments_max;
    int32_t d_model_pad, n_q_pad, n_k_pad, n_v_pad, n_att_pad, d_ff_pad, d_ff_expert_pad;

    row_buffers shared;              /* n_rows_max rows */
    row_buffers outputs;             /* n_outputs_max rows; only x, normed, model */
    float *q, *k, *v;                /* [n_rows][..._pad] projections */
    float *attention;                /* [n_rows][n_att_pad] */
    float *gate, *up;                /* [n_rows][d_ff_pad] */
    float *projected;                /* [n_rows][d_model_pad] what a block adds */
    float *cos[2], *sin[2];          /* [n_rows][n_rot / 2] */
    thread_scratch *scratch;         /* [n_threads] */
    expert_buffers experts;
    latent_buffers latent;
    recurrent_buffers recurrent;
    unsigned char *memory;
    size_t memory_bytes;

    /* Split decoding: partial softmax states and who is still to come. */
    kern_softmax *parts;             /* [2 n_threads][n_segments_max] */
    atomic_int *parts_left;          /* [2 n_threads] */

    op_clock *clocks;                /* [n_threads], or NULL: time is not measured */
    atomic_int_fast64_t *counters;   /* [(n_layer + 1) * N_PHASES], 64 bytes apart */
    atomic_bool aborted;
    const forward_batch *batch;
    int32_t *row_pos;                /* [n_rows] position of each row */
    int32_t *row_group;              /* [n_rows] */
};

enum { COUNTER_STRIDE = 8 };

static inline atomic_int_fast64_t *counter(forward *f, int32_t layer, int phase) {
    return &f->counters[(layer * N_PHASES + phase) * COUNTER_STRIDE];
}

/* What a thread sees of a step. */
typedef struct worker {
    forward *f;
    int thread;
    bool replicated;
    row_buffers *rows;       /* shared, or this thread's own */
    int32_t begin, end;      /* rows of row work */
    thread_scratch *scratch;
    op_clock *clock;         /* NULL: time is not measured */
    const model_layer *pending; /* f->projected holds what this layer's ... */
    bool pending_ffn;           /* ... feed-forward (or else its mixer) adds to the residual stream; NULL = nothing */
} worker;

/* What the thread did since the last mark was `op`. */
static inline void mark(worker *w, model_op op) {
    if (__builtin_expect(w->clock != NULL, 0)) {
        const int64_t now = clock_now_ns();
        w->clock->ns[op] += now - w->clock->last_ns;
        w->clock->last_ns = now;
    }
}

/* All threads meet; `op` ends here. */
static inline void step_barrier(worker *w, model_op op) {
    mark(w, op);
    pool_barrier(w->f->threads);
    mark(w, MODEL_OP_WAIT);
}

static inline void split_rows(const forward *f, int thread, int32_t n, int32_t *begin, int32_t *end) {
    *begin = (int32_t)((int64_t)n * thread / f->n_threads);
    *end = (int32_t)((int64_t)n * (thread + 1) / f->n_threads);
}

/* After row work: without a barrier when each thread did all of it. */
static inline void row_barrier(worker *w) {
    if (w->replicated) mark(w, MODEL_OP_ROWS);
    else step_barrier(w, MODEL_OP_ROWS);
}

/* Whether a matrix reads its input in int8 blocks; floating point weights read the floats. */
static inline bool wants_int8(const kern_matrix *w) { return w->layout->bits != 0; }

static inline bool one_token_each(const forward_batch *b) { return b->n_rows == b->n_groups; }

/* Rows from `first` on, as rows of their own. */
static inline kern_rows rows_from(const kern_rows *x, const float *f32, size_t stride, int32_t first) {
    const size_t at = (size_t)first, n_cols = (size_t)x->n_cols;
    return (kern_rows){.f32 = f32 + at * stride, .stride = stride, .q = x->q + at * n_cols, .d = x->d + at * (n_cols / 32),
                       .sum = x->sum + at * (n_cols / 32), .neg_sum = x->neg_sum + at * (n_cols / 16), .n_cols = x->n_cols};
}

typedef struct product {
    const kern_matrix *w;
    float *out;
    size_t stride;
    const float *bias;
    bool add;                /* to what is in out */
} product;

/* ---- forward.c -------------------------------------------------------------------------------------------------------- */

/* out[n] = norm of x[n]; out may be x. A norm that is not present copies. */
void forward_norm(const forward *f, const model_norm_weights *norm, const float *x, int32_t n, float *out);
/* Rows of a shared buffer (in->f32) as input of `user`. */
void forward_input_rows(worker *w, int32_t n_cols, const kern_matrix *user, kern_rows *in);
/* Panels that a thread takes at once. */
int32_t forward_panel_chunk(const forward *f, int32_t n_panels);
/* Panels [begin, end) of the concatenation of several products of the same input. */
void forward_products_range(worker *w, const product *products, int n_products, const kern_rows *in, int32_t n_rows, int32_t begin,
                            int32_t end);
/* The same, taken in chunks by all threads until none are left. */
void forward_products_take(worker *w, const product *products, int n_products, const kern_rows *in, int32_t n_rows, int32_t layer,
                           int phase);

/* ---- attention.c ------------------------------------------------------------------------------------------------------ */

/* Prepares a layer's split decode; thread 0, before the barrier that precedes forward_attention. */
void forward_attention_prepare(forward *f, const model_layer *layer);
/* From f->q, f->k, f->v to f->attention, for all rows; ends without a barrier. */
void forward_attention(worker *w, const model_layer *layer, int32_t index);
/* The same once keys, values and queries are where they belong: all rows over their pages. */
void forward_attend(worker *w, const model_layer *layer, int32_t index);
/* Rotates x[n_rot] to the position of a row, where the layer has RoPE. */
void forward_rotate(const forward *f, const model_layer *layer, int32_t row, float *x);
/* Stores key[d_head] and value[d_value] of a row. */
void forward_store(const forward *f, const model_layer *layer, int32_t row, int32_t head_kv, const float *key, const float *value);

/* ---- latent.c --------------------------------------------------------------------------------------------------------- */

/* From f->q (or f->latent.q_low) and f->latent.kv to f->latent.value, for all rows; ends with it settled. */
void forward_latent(worker *w, const model_layer *layer, int32_t index);
/* The query of one head of one row against compressed keys, out[d_head], times `scale`. */
void forward_latent_query(const forward *f, const model_layer *layer, int32_t row, int32_t head, float scale, float *out);

/* ---- recurrent.c ------------------------------------------------------------------------------------------------------ */

/* From f->recurrent.in to f->projected (added to attention's output in layers with both), for all rows, and the groups' next
 * states; ends with them settled. */
void forward_recurrent(worker *w, const model_layer *layer, int32_t index);

/* ---- experts.c -------------------------------------------------------------------------------------------------------- */

/* Adds the routed experts' output for the normed rows (w->rows->model) to f->projected, after scaling what the shared expert left
 * there by its gate; without a shared expert f->projected is set. All threads; begins and ends with f->projected settled. */
void forward_experts(worker *w, const model_layer *layer, int32_t index);

#endif
