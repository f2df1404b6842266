/* The forward pass: one batch of tokens through all layers, on all threads of a pool at once.
 *
 * All threads run forward_thread and meet at barriers. Work between barriers is of two kinds. Row work (norms, quantisation) is
 * split by rows; when the batch has few rows every thread does all of them on private copies instead, which saves the barrier and
 * cannot change a bit. Matrix and attention work is taken in chunks by whoever is free: each output element is computed whole by
 * one thread, so results do not depend on who took what. */
#include <math.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/error.h"
#include "model/model.h"

/* Up to so many rows each thread repeats the row work. */
enum { REPLICATED_ROWS = 4 };

/* Counters that hand out work, one for each phase of each layer. */
enum { PHASE_QKV, PHASE_ATTENTION, PHASE_OUT, PHASE_GATE_UP, PHASE_DOWN, N_PHASES };

/* Row buffers: the residual stream, its norm, and quantised rows for the three widths that feed matrices. */
typedef struct row_buffers {
    float *x, *normed;               /* [n_rows][d_model_pad] */
    kern_rows model, heads, hidden;  /* inputs of width d_model, n_head d_value, d_ff */
} row_buffers;

/* What one thread needs for itself. */
typedef struct thread_scratch {
    row_buffers rows;                /* REPLICATED_ROWS rows */
    void *matmul;
    float *query;                    /* [KERN_ATTENTION_ROWS][d_head_pad] */
    float *key;                      /* [d_head_pad] */
    kern_softmax total, part;
} thread_scratch;

struct forward {
    const weir_model *m;
    pool *threads;
    int n_threads;
    int32_t n_rows_max, n_outputs_max, n_ctx, n_segments_max;
    int32_t d_model_pad, n_q_pad, n_k_pad, n_v_pad, n_att_pad, d_ff_pad;

    row_buffers shared;              /* n_rows_max rows */
    row_buffers outputs;             /* n_outputs_max rows; only x, normed, model */
    float *q, *k, *v;                /* [n_rows][..._pad] projections */
    float *attention;                /* [n_rows][n_att_pad] */
    float *gate, *up;                /* [n_rows][d_ff_pad] */
    float *projected;                /* [n_rows][d_model_pad] what a block adds */
    float *cos[2], *sin[2];          /* [n_rows][n_rot / 2] */
    thread_scratch *scratch;         /* [n_threads] */
    unsigned char *memory;
    size_t memory_bytes;

    /* Split decoding: partial softmax states and who is still to come. */
    kern_softmax *parts;             /* [2 n_threads][n_segments_max] */
    atomic_int *parts_left;          /* [2 n_threads] */

    atomic_int_fast64_t *counters;   /* [(n_layer + 1) * N_PHASES], 64 bytes apart */
    atomic_bool aborted;
    const forward_batch *batch;
    int32_t *row_pos;                /* [n_rows] position of each row */
    int32_t *row_group;              /* [n_rows] */
};

enum { COUNTER_STRIDE = 8 };

static atomic_int_fast64_t *counter(forward *f, int32_t layer, int phase) {
    return &f->counters[(layer * N_PHASES + phase) * COUNTER_STRIDE];
}

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

/* Lays out the one memory block: called with base NULL to measure, then again to set the pointers. */
typedef struct layout_cursor {
    unsigned char *base;
    size_t used;
    bool overflow;
} layout_cursor;

static void *take(layout_cursor *c, size_t count, size_t size) {
    size_t n_bytes, end;
    if (!checked_mul(count, size, &n_bytes) || !checked_round_up(n_bytes, KERN_ALIGN, &n_bytes) || !checked_add(c->used, n_bytes, &end)) {
        c->overflow = true;
        return NULL;
    }
    void *result = c->base ? c->base + c->used : NULL;
    c->used = end;
    return result;
}

static void take_rows(layout_cursor *c, kern_rows *rows, int32_t n_rows, int32_t n_cols) {
    void *memory = take(c, 1, kern_rows_bytes(n_rows, n_cols));
    if (memory) kern_rows_bind(rows, memory, n_rows, n_cols);
}

static void take_row_buffers(layout_cursor *c, const forward *f, row_buffers *r, int32_t n_rows, bool all) {
    const model_config *config = &f->m->config;
    r->x = take(c, (size_t)n_rows * (size_t)f->d_model_pad, sizeof(float));
    r->normed = take(c, (size_t)n_rows * (size_t)f->d_model_pad, sizeof(float));
    take_rows(c, &r->model, n_rows, config->d_model);
    if (!all) return;
    take_rows(c, &r->heads, n_rows, config->n_head * config->d_value);
    take_rows(c, &r->hidden, n_rows, config->d_ff);
}

static void take_softmax(layout_cursor *c, const model_config *config, kern_softmax *s) {
    s->values = take(c, (size_t)KERN_ATTENTION_ROWS * (size_t)kern_pad16(config->d_value), sizeof(float));
}

static void lay_out(forward *f, layout_cursor *c) {
    const model_config *config = &f->m->config;
    const size_t n = (size_t)f->n_rows_max;
    int32_t widest = config->d_ff > f->d_model_pad ? config->d_ff : f->d_model_pad;
    if (f->n_att_pad > widest) widest = f->n_att_pad;
    take_row_buffers(c, f, &f->shared, f->n_rows_max, true);
    take_row_buffers(c, f, &f->outputs, f->n_outputs_max, false);
    f->q = take(c, n * (size_t)f->n_q_pad, sizeof(float));
    f->k = take(c, n * (size_t)f->n_k_pad, sizeof(float));
    f->v = take(c, n * (size_t)f->n_v_pad, sizeof(float));
    f->attention = take(c, n * (size_t)f->n_att_pad, sizeof(float));
    f->gate = take(c, n * (size_t)f->d_ff_pad, sizeof(float));
    f->up = take(c, n * (size_t)f->d_ff_pad, sizeof(float));
    f->projected = take(c, n * (size_t)f->d_model_pad, sizeof(float));
    for (int i = 0; i < 2; i++) {
        f->cos[i] = take(c, n * (size_t)(config->n_rot / 2 + 1), sizeof(float));
        f->sin[i] = take(c, n * (size_t)(config->n_rot / 2 + 1), sizeof(float));
    }
    f->row_pos = take(c, n, sizeof(int32_t));
    f->row_group = take(c, n, sizeof(int32_t));
    f->counters = take(c, (size_t)(config->n_layer + 1) * N_PHASES * COUNTER_STRIDE, sizeof *f->counters);
    f->scratch = take(c, (size_t)f->n_threads, sizeof *f->scratch);
    const size_t n_items = 2 * (size_t)f->n_threads, n_parts = n_items * (size_t)f->n_segments_max;
    f->parts = take(c, n_parts, sizeof *f->parts);
    f->parts_left = take(c, n_items, sizeof *f->parts_left);
    for (size_t i = 0; i < n_parts; i++) {
        kern_softmax unused;
        take_softmax(c, config, f->parts && !c->overflow ? &f->parts[i] : &unused);
    }
    for (int t = 0; t < f->n_threads; t++) {
        thread_scratch unused, *s = f->scratch && !c->overflow ? &f->scratch[t] : &unused;
        take_row_buffers(c, f, &s->rows, REPLICATED_ROWS, true);
        s->matmul = take(c, 1, kern_scratch_bytes(widest));
        s->query = take(c, (size_t)KERN_ATTENTION_ROWS * (size_t)kern_pad16(config->d_head), sizeof(float));
        s->key = take(c, (size_t)kern_pad16(config->d_head), sizeof(float));
        take_softmax(c, config, &s->total);
        take_softmax(c, config, &s->part);
    }
}

/* Where floating point weights find their inputs: a thread's own norms, the shared results of attention and activation. */
static void set_inputs(const forward *f, row_buffers *r) {
    r->model.f32 = r->normed;
    r->model.stride = (size_t)f->d_model_pad;
    r->heads.f32 = f->attention;
    r->heads.stride = (size_t)f->n_att_pad;
    r->hidden.f32 = f->gate;
    r->hidden.stride = (size_t)f->d_ff_pad;
}

int forward_open(forward **out, const weir_model *m, pool *p, int32_t n_rows_max, int32_t n_outputs_max, int32_t n_ctx,
                 weir_error *err) {
    *out = NULL;
    const model_config *config = &m->config;
    forward *f = calloc(1, sizeof *f);
    FAIL_IF(f == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the forward pass");
    f->m = m;
    f->threads = p;
    f->n_threads = pool_n_threads(p);
    f->n_rows_max = n_rows_max;
    f->n_outputs_max = n_outputs_max;
    f->n_ctx = n_ctx;
    f->n_segments_max = (n_ctx + KERN_SEGMENT - 1) / KERN_SEGMENT;
    f->d_model_pad = kern_pad16(config->d_model);
    f->n_q_pad = kern_pad16(config->n_head * config->d_head);
    f->n_k_pad = kern_pad16(config->n_head_kv * config->d_head);
    f->n_v_pad = kern_pad16(config->n_head_kv * config->d_value);
    f->n_att_pad = kern_pad16(config->n_head * config->d_value);
    f->d_ff_pad = kern_pad16(config->d_ff);
    layout_cursor measure = {0};
    lay_out(f, &measure);
    void *memory = measure.overflow ? MAP_FAILED
                                    : mmap(NULL, measure.used, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        free(f);
        FAIL(err, WEIR_E_NOMEM, NULL, "no memory for the activations of %d tokens (%.1f MB)", n_rows_max, (double)measure.used / 1e6);
    }
    f->memory = memory;
    f->memory_bytes = measure.used;
    layout_cursor cursor = {.base = memory};
    lay_out(f, &cursor);
    set_inputs(f, &f->shared);
    set_inputs(f, &f->outputs);
    for (int t = 0; t < f->n_threads; t++) set_inputs(f, &f->scratch[t].rows);
    *out = f;
    return 0;
}

void forward_close(forward **ff) {
    forward *f = *ff;
    if (f == NULL) return;
    munmap(f->memory, f->memory_bytes);
    free(f);
    *ff = NULL;
}

size_t forward_bytes(const forward *f) { return f->memory_bytes; }

/* K and V of one head in a page. */
static size_t head_k_bytes(const model_config *c) { return (size_t)c->d_head * KERN_PAGE * sizeof(uint16_t); }
static size_t head_v_bytes(const model_config *c) { return (size_t)kern_pad16(c->d_value) * KERN_PAGE * sizeof(uint16_t); }

size_t model_page_bytes(const weir_model *m) {
    const model_config *c = &m->config;
    return (size_t)c->n_layer * (size_t)c->n_head_kv * (head_k_bytes(c) + head_v_bytes(c));
}

static size_t k_offset(const model_config *c, int32_t layer, int32_t head_kv) {
    return ((size_t)layer * (size_t)c->n_head_kv + (size_t)head_kv) * (head_k_bytes(c) + head_v_bytes(c));
}

/* ---- row work --------------------------------------------------------------------------------------------------------- */

/* What a thread sees of a step. */
typedef struct worker {
    forward *f;
    int thread;
    bool replicated;
    row_buffers *rows;       /* shared, or this thread's own */
    int32_t begin, end;      /* rows of row work */
    thread_scratch *scratch;
} worker;

static void split_rows(const forward *f, int thread, int32_t n, int32_t *begin, int32_t *end) {
    *begin = (int32_t)((int64_t)n * thread / f->n_threads);
    *end = (int32_t)((int64_t)n * (thread + 1) / f->n_threads);
}

static void row_barrier(worker *w) {
    if (!w->replicated) pool_barrier(w->f->threads);
}

/* Whether a matrix reads its input in int8 blocks; floating point weights read the floats. */
static bool wants_int8(const kern_matrix *w) { return w->layout->bits != 0; }

static void apply_norm(const forward *f, const model_norm_weights *norm, const float *x, int32_t n, float *out) {
    const kern_ops *ops = f->m->ops;
    if (!norm->present) memmove(out, x, (size_t)n * sizeof(float));
    else if (f->m->arch->norm == NORM_RMS) ops->rms_norm(x, norm->weight, n, f->m->config.norm_eps, out);
    else ops->layer_norm(x, norm->weight, norm->bias, n, f->m->config.norm_eps, out);
}

static void embed(worker *w) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const gguf_tensor *t = f->m->embedding;
    const size_t row_bytes = quant_row_bytes(t->format, (size_t)c->d_model);
    const gguf_tensor *p = f->m->positions;
    for (int32_t r = w->begin; r < w->end; r++) {
        float *x = w->rows->x + (size_t)r * (size_t)f->d_model_pad, *other = w->rows->normed + (size_t)r * (size_t)f->d_model_pad;
        t->format->dequantise(t->data + (size_t)f->batch->tokens[r] * row_bytes, x, (size_t)(c->d_model / t->format->block_size));
        if (c->embedding_scale != 1.0f) f->m->ops->scale(x, c->embedding_scale, c->d_model);
        if (p) {
            p->format->dequantise(p->data + (size_t)f->row_pos[r] * quant_row_bytes(p->format, (size_t)c->d_model), other,
                                  (size_t)(c->d_model / p->format->block_size));
            f->m->ops->add(x, other, c->d_model);
        }
        if (f->m->arch->embedding_norm) apply_norm(f, &f->m->embedding_norm, x, c->d_model, x);
    }
}

/* x[r] += (post-norm(projected[r] + biases)) * residual_scale */
static void absorb(worker *w, int32_t r, const float *bias, const float *second_bias, const model_norm_weights *post_norm) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const kern_ops *ops = f->m->ops;
    const float *projected = f->projected + (size_t)r * (size_t)f->d_model_pad;
    float *x = w->rows->x + (size_t)r * (size_t)f->d_model_pad;
    float *changed = w->rows->normed + (size_t)r * (size_t)f->d_model_pad; /* free at this point */
    if (bias || second_bias || post_norm->present || c->residual_scale != 1.0f) {
        memcpy(changed, projected, (size_t)c->d_model * sizeof(float));
        if (bias) ops->add(changed, bias, c->d_model);
        if (second_bias) ops->add(changed, second_bias, c->d_model);
        if (post_norm->present) apply_norm(f, post_norm, changed, c->d_model, changed);
        if (c->residual_scale != 1.0f) ops->scale(changed, c->residual_scale, c->d_model);
        projected = changed;
    }
    ops->add(x, projected, c->d_model);
}

/* What a whole layer has left to add when the next one begins. */
static void absorb_layer(worker *w, const model_layer *layer) {
    const bool parallel = w->f->m->config.parallel;
    for (int32_t r = w->begin; r < w->end; r++) absorb(w, r, layer->down_bias, parallel ? layer->o_bias : NULL, &layer->ffn_post_norm);
}

/* The norm before a block, and its result as matrix input. */
static void norm_rows(worker *w, const model_norm_weights *norm, bool int8) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    for (int32_t r = w->begin; r < w->end; r++) {
        float *normed = w->rows->normed + (size_t)r * (size_t)f->d_model_pad;
        apply_norm(f, norm, w->rows->x + (size_t)r * (size_t)f->d_model_pad, c->d_model, normed);
        if (int8) f->m->ops->quantise(&w->rows->model, r, normed, c->d_model);
    }
}

/* Rows of a shared buffer (in->f32) as input of the next matrix. */
static void input_rows(worker *w, int32_t n_cols, const kern_matrix *user, kern_rows *in) {
    if (!wants_int8(user)) return;
    for (int32_t r = w->begin; r < w->end; r++) w->f->m->ops->quantise(in, r, in->f32 + (size_t)r * in->stride, n_cols);
}

/* ---- matrix work ------------------------------------------------------------------------------------------------------ */

/* Panels that a thread takes at once: enough chunks that a slowed-down thread does not hold up the others. */
static int32_t panel_chunk(const forward *f, int32_t n_panels) {
    int32_t chunk = n_panels / (f->n_threads * 8);
    if (chunk > 32) chunk = 32;
    return chunk < 2 ? (f->n_threads == 1 ? n_panels : 2) : chunk & ~1;
}

typedef struct product {
    const kern_matrix *w;
    float *out;
    size_t stride;
    const float *bias;
    bool add;                /* to what is in out */
} product;

/* Panels [begin, end) of the concatenation of several products of the same input. */
static void products_range(worker *w, const product *products, int n_products, const kern_rows *in, int32_t n_rows, int32_t begin,
                           int32_t end) {
    const kern_ops *ops = w->f->m->ops;
    for (int i = 0, first = 0; i < n_products; first += products[i].w->n_panels, i++) {
        const product *p = &products[i];
        int low = begin > first ? begin - first : 0, high = end - first < p->w->n_panels ? end - first : p->w->n_panels;
        if (low >= high) continue;
        ops->matmul(p->w, low, high, in, n_rows, p->out, p->stride, p->add, w->scratch->matmul);
        if (p->bias == NULL) continue;
        int column = low * KERN_PANEL, n = (high < p->w->n_panels ? high * KERN_PANEL : p->w->n_rows) - column;
        for (int32_t r = 0; r < n_rows; r++) ops->add(p->out + (size_t)r * p->stride + column, p->bias + column, n);
    }
}

static void products_take(worker *w, const product *products, int n_products, const kern_rows *in, int32_t n_rows, int32_t layer,
                          int phase) {
    int32_t n_panels = 0;
    for (int i = 0; i < n_products; i++) n_panels += products[i].w->n_panels;
    const int32_t chunk = panel_chunk(w->f, n_panels);
    for (int64_t p; (p = pool_take(counter(w->f, layer, phase), chunk, n_panels)) < n_panels;)
        products_range(w, products, n_products, in, n_rows, (int32_t)p, (int32_t)(p + chunk < n_panels ? p + chunk : n_panels));
}

/* f->gate = activation(gate) * up, or activation(up) without a gate, panel by panel as they are made. */
static void gate_up(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const kern_ops *ops = f->m->ops;
    const bool gated = layer->gate.layout != NULL;
    const int32_t n_panels = layer->up.n_panels, chunk = panel_chunk(f, n_panels), n_rows = f->batch->n_rows;
    const size_t stride = (size_t)f->d_ff_pad;
    const product gate = {&layer->gate, f->gate, stride, layer->gate_bias, false};
    const product up = {&layer->up, gated ? f->up : f->gate, stride, layer->up_bias, false};
    for (int64_t p; (p = pool_take(counter(f, index, PHASE_GATE_UP), chunk, n_panels)) < n_panels;) {
        const int32_t end = (int32_t)(p + chunk < n_panels ? p + chunk : n_panels);
        if (gated) products_range(w, &gate, 1, &w->rows->model, n_rows, (int32_t)p, end);
        products_range(w, &up, 1, &w->rows->model, n_rows, (int32_t)p, end);
        const size_t column = (size_t)p * KERN_PANEL;
        const int n = (end - (int)p) * KERN_PANEL;
        for (int32_t r = 0; r < n_rows; r++) {
            const size_t at = (size_t)r * stride + column;
            ops->activate(f->m->arch->activation, f->gate + at, gated ? f->up + at : NULL, n);
        }
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------------- */

/* Norm, rotation and scale of one head's query or key, from a projection into `out`. */
static void prepare_head(const forward *f, const model_layer *layer, int32_t row, int32_t head, const float *from,
                         const model_norm_weights *norm, float scale, float *out) {
    const model_config *c = &f->m->config;
    const kern_ops *ops = f->m->ops;
    const size_t angles = (size_t)row * (size_t)(c->n_rot / 2);
    model_norm_weights own = *norm;
    if (layer->per_head_norms && own.weight) own.weight += (size_t)head * (size_t)c->d_head;
    if (own.present && f->m->arch->qk_norm != QK_NORM_ROW) apply_norm(f, &own, from, c->d_head, out);
    else memcpy(out, from, (size_t)c->d_head * sizeof(float));
    if (c->clamp_qkv > 0.0f) ops->clamp(out, c->clamp_qkv, c->d_head);
    if (layer->has_rope)
        ops->rope(out, f->cos[layer->windowed] + angles, f->sin[layer->windowed] + angles, c->n_rot, f->m->arch->rope == ROPE_HALVES);
    if (scale != 1.0f) ops->scale(out, scale, c->d_head);
}

/* The factor on queries at a position: the usual scale, and a temperature that grows with the position. */
static float query_scale(const model_config *c, int32_t pos) {
    if (c->temperature_scale == 0.0f) return c->attention_scale;
    const float periods = floorf((float)pos / (float)c->rope[0].n_ctx_original);
    return c->attention_scale * (1.0f + c->temperature_scale * logf(1.0f + periods));
}

static void store_kv(worker *w, const model_layer *layer, int32_t index, int32_t row, int32_t head_kv) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const int32_t pos = f->row_pos[row];
    const forward_group *g = &f->batch->groups[f->row_group[row]];
    float *v = f->v + (size_t)row * (size_t)f->n_v_pad + (size_t)head_kv * (size_t)c->d_value;
    const size_t at = k_offset(c, index, head_kv);
    prepare_head(f, layer, row, head_kv, f->k + (size_t)row * (size_t)f->n_k_pad + (size_t)head_kv * (size_t)c->d_head, &layer->k_norm,
                 1.0f, w->scratch->key);
    if (c->clamp_qkv > 0.0f) f->m->ops->clamp(v, c->clamp_qkv, c->d_value);
    f->m->ops->kv_store(g->pages[pos / KERN_PAGE], at, at + head_k_bytes(c), pos % KERN_PAGE, w->scratch->key, c->d_head, v, c->d_value);
}

/* A tile of query rows: some tokens x some heads that share a KV head. */
typedef struct tile {
    int32_t row[KERN_ATTENTION_ROWS], head[KERN_ATTENTION_ROWS];
    int32_t key_begin[KERN_ATTENTION_ROWS], key_end[KERN_ATTENTION_ROWS];
    const float *q[KERN_ATTENTION_ROWS];
    float slope[KERN_ATTENTION_ROWS];
    const float *sinks; /* [n_head] or NULL */
    int32_t first_key, last_key;
    kern_attention a;
} tile;

/* Tile `t` of a group: query rows numbered token-major, heads within, in runs of tile_rows. */
static void tile_make(worker *w, const model_layer *layer, int32_t index, const forward_group *g, int32_t head_kv, int32_t first,
                      int32_t n, tile *t) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const int32_t shared = c->n_head / c->n_head_kv;
    const size_t d_pad = (size_t)kern_pad16(c->d_head);
    t->first_key = INT32_MAX;
    t->last_key = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t row = g->row_begin + (first + i) / shared, head = head_kv * shared + (first + i) % shared;
        float *q = w->scratch->query + (size_t)i * d_pad;
        prepare_head(f, layer, row, head, f->q + (size_t)row * (size_t)f->n_q_pad + (size_t)head * (size_t)c->d_head, &layer->q_norm,
                     query_scale(c, f->row_pos[row]), q);
        if (f->m->alibi) t->slope[i] = f->m->alibi[head];
        t->row[i] = row;
        t->head[i] = head;
        t->q[i] = q;
        t->key_end[i] = f->row_pos[row] + 1;
        t->key_begin[i] = layer->windowed && t->key_end[i] > c->window ? t->key_end[i] - c->window : 0;
        if (t->key_begin[i] < t->first_key) t->first_key = t->key_begin[i];
        if (t->key_end[i] > t->last_key) t->last_key = t->key_end[i];
    }
    const size_t at = k_offset(c, index, head_kv);
    t->a = (kern_attention){.n_rows = n, .d_head = c->d_head, .d_value = c->d_value, .q = t->q, .key_begin = t->key_begin,
                            .key_end = t->key_end, .pages = g->pages, .k_offset = at, .v_offset = at + head_k_bytes(c),
                            .softcap = c->attention_softcap, .alibi_slope = f->m->alibi ? t->slope : NULL};
    t->sinks = layer->sinks;
}

static void softmax_reset(kern_softmax *s, int32_t n_rows) {
    for (int32_t i = 0; i < n_rows; i++) s->max[i] = -INFINITY;
}

static int32_t segment_end(const tile *t, int32_t segment) {
    int32_t end = (segment + 1) * KERN_SEGMENT;
    return end < t->last_key ? end : t->last_key;
}

static void tile_finish(worker *w, const tile *t, const kern_softmax *total) {
    forward *f = w->f;
    const int32_t d_value = f->m->config.d_value;
    for (int32_t i = 0; i < t->a.n_rows; i++)
        f->m->ops->attend_finish(total, i, d_value, t->sinks ? &t->sinks[t->head[i]] : NULL,
                                 f->attention + (size_t)t->row[i] * (size_t)f->n_att_pad + (size_t)t->head[i] * (size_t)d_value);
}

/* All segments of a tile, one after the other, merged in order. */
static void tile_attend(worker *w, const tile *t) {
    const kern_ops *ops = w->f->m->ops;
    kern_softmax *total = &w->scratch->total, *part = &w->scratch->part;
    softmax_reset(total, t->a.n_rows);
    for (int32_t s = t->first_key / KERN_SEGMENT; s * KERN_SEGMENT < t->last_key; s++) {
        ops->attend(&t->a, s * KERN_SEGMENT, segment_end(t, s), part);
        ops->attend_merge(t->a.n_rows, t->a.d_value, total, part);
    }
    tile_finish(w, t, total);
}

static int32_t tiles_of(const model_config *c, int32_t n_tokens, int32_t *tile_rows) {
    const int32_t shared = c->n_head / c->n_head_kv;
    *tile_rows = shared >= KERN_ATTENTION_ROWS ? KERN_ATTENTION_ROWS : KERN_ATTENTION_ROWS / shared * shared;
    return (n_tokens * shared + *tile_rows - 1) / *tile_rows;
}

/* Keys and values of all rows first, then tiles of queries; for batches with several rows of one sequence. */
static void attention_prefill(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    int32_t begin, end, tile_rows;
    split_rows(f, w->thread, f->batch->n_rows, &begin, &end);
    for (int32_t row = begin; row < end; row++)
        for (int32_t h = 0; h < c->n_head_kv; h++) store_kv(w, layer, index, row, h);
    pool_barrier(f->threads);
    int64_t n_items = 0;
    for (int32_t i = 0; i < f->batch->n_groups; i++) n_items += (int64_t)tiles_of(c, f->batch->groups[i].n_rows, &tile_rows) * c->n_head_kv;
    int32_t group = 0;
    int64_t group_first = 0;
    for (int64_t item; (item = pool_take(counter(f, index, PHASE_ATTENTION), 1, n_items)) < n_items;) {
        int64_t group_items;
        const forward_group *g;
        for (;; group++) {
            g = &f->batch->groups[group];
            group_items = (int64_t)tiles_of(c, g->n_rows, &tile_rows) * c->n_head_kv;
            if (item < group_first + group_items) break;
            group_first += group_items;
        }
        const int32_t n_query = g->n_rows * (c->n_head / c->n_head_kv), n_tiles = (int32_t)(group_items / c->n_head_kv);
        /* Late positions cost most: hand them out first. */
        const int32_t at = (int32_t)(item - group_first), which = n_tiles - 1 - at / c->n_head_kv, first = which * tile_rows;
        tile t;
        tile_make(w, layer, index, g, at % c->n_head_kv, first, n_query - first < tile_rows ? n_query - first : tile_rows, &t);
        tile_attend(w, &t);
    }
}

/* One KV head of one sequence with one new token. */
static void decode_item(worker *w, const model_layer *layer, int32_t index, const forward_group *g, int32_t head_kv) {
    const model_config *c = &w->f->m->config;
    const int32_t shared = c->n_head / c->n_head_kv;
    int32_t tile_rows;
    tiles_of(c, 1, &tile_rows);
    store_kv(w, layer, index, g->row_begin, head_kv);
    for (int32_t first = 0; first < shared; first += tile_rows) {
        tile t;
        tile_make(w, layer, index, g, head_kv, first, shared - first < tile_rows ? shared - first : tile_rows, &t);
        tile_attend(w, &t);
    }
}

/* One segment of one item of a split decode; whoever finishes an item last merges its segments in order. */
static void decode_segment(worker *w, const model_layer *layer, int32_t index, int32_t item, int32_t segment, int32_t first_segment,
                           int32_t last_segment) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const forward_group *g = &f->batch->groups[item / c->n_head_kv];
    const int32_t shared = c->n_head / c->n_head_kv;
    kern_softmax *parts = f->parts + (size_t)item * (size_t)f->n_segments_max;
    tile t;
    if (segment == last_segment) store_kv(w, layer, index, g->row_begin, item % c->n_head_kv);
    tile_make(w, layer, index, g, item % c->n_head_kv, 0, shared, &t);
    f->m->ops->attend(&t.a, segment * KERN_SEGMENT, segment_end(&t, segment), &parts[segment]);
    if (atomic_fetch_sub(&f->parts_left[item], 1) > 1) return;
    kern_softmax *total = &w->scratch->total;
    softmax_reset(total, shared);
    for (int32_t s = first_segment; s <= last_segment; s++) f->m->ops->attend_merge(shared, c->d_value, total, &parts[s]);
    tile_finish(w, &t, total);
}

static void segments_of(const forward *f, const model_layer *layer, const forward_group *g, int32_t *first, int32_t *last) {
    const int32_t window = f->m->config.window, n_keys = g->pos_begin + 1;
    *first = layer->windowed && n_keys > window ? (n_keys - window) / KERN_SEGMENT : 0;
    *last = (n_keys - 1) / KERN_SEGMENT;
}

/* Every sequence has one new token: no barrier between storing it and attending. */
static void attention_decode(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const int32_t n_items = f->batch->n_groups * c->n_head_kv;
    /* Few items would leave threads idle over a long context: split them by segment. */
    const bool split = f->n_threads > 1 && n_items < 2 * f->n_threads && c->n_head / c->n_head_kv <= KERN_ATTENTION_ROWS;
    if (!split) {
        for (int64_t i; (i = pool_take(counter(f, index, PHASE_ATTENTION), 1, n_items)) < n_items;)
            decode_item(w, layer, index, &f->batch->groups[i / c->n_head_kv], (int32_t)(i % c->n_head_kv));
        return;
    }
    int64_t n_pieces = 0, first_piece = 0;
    int32_t first, last, item = 0;
    for (int32_t i = 0; i < n_items; i++) {
        segments_of(f, layer, &f->batch->groups[i / c->n_head_kv], &first, &last);
        n_pieces += last - first + 1;
    }
    for (int64_t piece; (piece = pool_take(counter(f, index, PHASE_ATTENTION), 1, n_pieces)) < n_pieces;) {
        for (;; item++) {
            segments_of(f, layer, &f->batch->groups[item / c->n_head_kv], &first, &last);
            if (piece < first_piece + last - first + 1) break;
            first_piece += last - first + 1;
        }
        decode_segment(w, layer, index, item, first + (int32_t)(piece - first_piece), first, last);
    }
}

/* ---- the pass --------------------------------------------------------------------------------------------------------- */

static bool one_token_each(const forward_batch *b) { return b->n_rows == b->n_groups; }

/* Thread 0 asks and tells the others through the barrier that follows. */
static void ask_abort(worker *w) {
    const forward_batch *b = w->f->batch;
    if (w->thread == 0 && b->abort && b->abort(b->abort_user)) atomic_store(&w->f->aborted, true);
}

static void reset_parts(forward *f, const model_layer *layer) {
    const model_config *c = &f->m->config;
    const int32_t n_items = f->batch->n_groups * c->n_head_kv;
    if (n_items >= 2 * f->n_threads) return;
    for (int32_t i = 0; i < n_items; i++) {
        int32_t first, last;
        segments_of(f, layer, &f->batch->groups[i / c->n_head_kv], &first, &last);
        /* Relaxed: the barrier after the projections publishes it. */
        atomic_store_explicit(&f->parts_left[i], last - first + 1, memory_order_relaxed);
    }
}

/* Norms over whole rows of q and k, where the architecture has them. */
static void norm_projections(worker *w, const model_layer *layer) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    int32_t begin, end;
    if (f->m->arch->qk_norm != QK_NORM_ROW) return;
    split_rows(f, w->thread, f->batch->n_rows, &begin, &end);
    for (int32_t r = begin; r < end; r++) {
        float *q = f->q + (size_t)r * (size_t)f->n_q_pad, *k = f->k + (size_t)r * (size_t)f->n_k_pad;
        apply_norm(f, &layer->q_norm, q, c->n_head * c->d_head, q);
        apply_norm(f, &layer->k_norm, k, c->n_head_kv * c->d_head, k);
    }
    pool_barrier(f->threads);
}

static bool layer_attention(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const int32_t n_rows = f->batch->n_rows;
    ask_abort(w);
    if (w->thread == 0 && one_token_each(f->batch)) reset_parts(f, layer);
    if (index > 0) absorb_layer(w, layer - 1);
    norm_rows(w, &layer->attn_norm, wants_int8(&layer->q) || wants_int8(&layer->k) || wants_int8(&layer->v));
    row_barrier(w);
    const product qkv[] = {{&layer->q, f->q, (size_t)f->n_q_pad, layer->q_bias, false},
                           {&layer->k, f->k, (size_t)f->n_k_pad, layer->k_bias, false},
                           {&layer->v, f->v, (size_t)f->n_v_pad, layer->v_bias, false}};
    products_take(w, qkv, 3, &w->rows->model, n_rows, index, PHASE_QKV);
    pool_barrier(f->threads);
    if (atomic_load(&f->aborted)) return false;
    norm_projections(w, layer);
    if (one_token_each(f->batch)) attention_decode(w, layer, index);
    else attention_prefill(w, layer, index);
    pool_barrier(f->threads);
    input_rows(w, c->n_head * c->d_value, &layer->o, &w->rows->heads);
    row_barrier(w);
    const product out = {&layer->o, f->projected, (size_t)f->d_model_pad, NULL, false};
    products_take(w, &out, 1, &w->rows->heads, n_rows, index, PHASE_OUT);
    pool_barrier(f->threads);
    return true;
}

static void layer_feed_forward(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const bool shared_norm = !layer->ffn_norm.present && layer->attn_norm.present;
    if (!c->parallel)
        for (int32_t r = w->begin; r < w->end; r++) absorb(w, r, layer->o_bias, NULL, &layer->attn_post_norm);
    /* A parallel block may feed the attention's input on: it is still there. */
    if (!(c->parallel && shared_norm) || wants_int8(&layer->up))
        norm_rows(w, shared_norm ? &layer->attn_norm : &layer->ffn_norm, wants_int8(&layer->up) || (layer->gate.layout && wants_int8(&layer->gate)));
    row_barrier(w);
    gate_up(w, layer, index);
    pool_barrier(f->threads);
    input_rows(w, c->d_ff, &layer->down, &w->rows->hidden);
    row_barrier(w);
    const product down = {&layer->down, f->projected, (size_t)f->d_model_pad, NULL, c->parallel};
    products_take(w, &down, 1, &w->rows->hidden, f->batch->n_rows, index, PHASE_DOWN);
    pool_barrier(f->threads);
}

/* The last residual sum, norm and output head, for the rows whose logits are wanted. */
static void output_head(worker *w) {
    forward *f = w->f;
    const forward_batch *b = f->batch;
    const model_config *c = &f->m->config;
    const kern_ops *ops = f->m->ops;
    row_buffers *to = &f->outputs;
    if (b->n_outputs == 0) return;
    absorb_layer(w, &f->m->layers[c->n_layer - 1]);
    row_barrier(w);
    int32_t begin, end;
    split_rows(f, w->thread, b->n_outputs, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        float *normed = to->normed + (size_t)i * (size_t)f->d_model_pad;
        apply_norm(f, &f->m->output_norm, w->rows->x + (size_t)b->output_rows[i] * (size_t)f->d_model_pad, c->d_model, normed);
        if (wants_int8(&f->m->output)) ops->quantise(&to->model, i, normed, c->d_model);
    }
    pool_barrier(f->threads);
    const product head = {&f->m->output, b->logits, b->logits_stride, f->m->output_bias, false};
    products_take(w, &head, 1, &to->model, b->n_outputs, c->n_layer, PHASE_OUT);
    if (c->output_softcap == 0.0f && c->logit_scale == 1.0f) return;
    pool_barrier(f->threads);
    for (int32_t i = begin; i < end; i++) {
        float *logits = b->logits + (size_t)i * b->logits_stride;
        if (c->logit_scale != 1.0f) ops->scale(logits, c->logit_scale, c->n_vocab);
        if (c->output_softcap != 0.0f) ops->softcap(logits, c->output_softcap, c->n_vocab);
    }
}

static void forward_thread(void *arg, int thread) {
    forward *f = arg;
    const model_config *c = &f->m->config;
    worker w = {.f = f, .thread = thread, .replicated = f->batch->n_rows <= REPLICATED_ROWS, .scratch = &f->scratch[thread]};
    w.rows = w.replicated ? &w.scratch->rows : &f->shared;
    if (w.replicated) w.end = f->batch->n_rows;
    else split_rows(f, thread, f->batch->n_rows, &w.begin, &w.end);
    embed(&w);
    for (int32_t i = 0; i < c->n_layer; i++) {
        if (!layer_attention(&w, &f->m->layers[i], i)) return;
        layer_feed_forward(&w, &f->m->layers[i], i);
    }
    output_head(&w);
}

static void prepare_rows(forward *f) {
    const model_config *c = &f->m->config;
    const size_t n = (size_t)(c->n_rot / 2);
    for (int32_t g = 0; g < f->batch->n_groups; g++) {
        const forward_group *group = &f->batch->groups[g];
        for (int32_t i = 0; i < group->n_rows; i++) {
            const size_t row = (size_t)(group->row_begin + i);
            f->row_pos[row] = group->pos_begin + i;
            f->row_group[row] = g;
            for (int k = 0; k < (c->window_pattern ? 2 : 1) && c->n_rot && f->m->arch->rope != ROPE_NONE; k++)
                model_rope_angles(&c->rope[k], c->n_rot, group->pos_begin + i, f->n_ctx, f->cos[k] + row * n, f->sin[k] + row * n);
        }
    }
}

int forward_run(forward *f, const forward_batch *batch, weir_error *err) {
    const model_config *c = &f->m->config;
    FAIL_IF(batch->n_rows < 1 || batch->n_rows > f->n_rows_max || batch->n_outputs > f->n_outputs_max, err, WEIR_E_INVALID, NULL,
            "a batch of %d rows and %d outputs exceeds the %d and %d it was opened for", batch->n_rows, batch->n_outputs,
            f->n_rows_max, f->n_outputs_max);
    f->batch = batch;
    atomic_store(&f->aborted, false);
    for (int32_t i = 0; i < (c->n_layer + 1) * N_PHASES; i++)
        atomic_store_explicit(&f->counters[i * COUNTER_STRIDE], 0, memory_order_relaxed); /* pool_run publishes it */
    prepare_rows(f);
    pool_run(f->threads, forward_thread, f);
    FAIL_IF(atomic_load(&f->aborted), err, WEIR_E_CANCELLED, NULL, "the step was abandoned");
    return 0;
}
