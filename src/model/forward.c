/* The forward pass: one batch of tokens through all layers, on all threads of a pool at once.
 *
 * All threads run forward_thread and meet at barriers. Work between barriers is of two kinds. Row work (norms, quantisation) is
 * split by rows; when the batch has few rows every thread does all of them on private copies instead, which saves the barrier and
 * cannot change a bit. Matrix and attention work is taken in chunks by whoever is free: each output element is computed whole by
 * one thread, so results do not depend on who took what. */
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/error.h"
#include "model/forward_internal.h"

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
    take_rows(c, &r->heads, n_rows, config->n_head * (config->d_latent ? config->d_value_head : config->d_value));
    take_rows(c, &r->hidden, n_rows, f->d_ff_pad);
}

static void take_softmax(layout_cursor *c, const model_config *config, kern_softmax *s) {
    s->values = take(c, (size_t)KERN_ATTENTION_ROWS * (size_t)kern_pad16(config->d_value), sizeof(float));
}

static void take_experts(layout_cursor *c, forward *f) {
    const model_config *config = &f->m->config;
    expert_buffers *e = &f->experts;
    const size_t n = (size_t)f->n_rows_max, n_used = (size_t)config->n_expert_used, n_assigned = n * n_used;
    e->router = take(c, n * (size_t)kern_pad16(config->n_expert), sizeof(float));
    e->shared_gate = take(c, n * KERN_PANEL, sizeof(float));
    e->chosen = take(c, n_assigned, sizeof(int32_t));
    e->weight = take(c, n_assigned, sizeof(float));
    e->position = take(c, n_assigned, sizeof(int32_t));
    e->row = take(c, n_assigned, sizeof(int32_t));
    e->first = take(c, (size_t)config->n_expert + 1, sizeof(int32_t));
    e->input = take(c, n_assigned * (size_t)f->d_model_pad, sizeof(float));
    take_rows(c, &e->model, (int32_t)n_assigned, config->d_model);
    take_rows(c, &e->hidden, (int32_t)n_assigned, config->d_ff_expert);
    e->gate = take(c, n_assigned * (size_t)f->d_ff_expert_pad, sizeof(float));
    e->up = take(c, n_assigned * (size_t)f->d_ff_expert_pad, sizeof(float));
    e->out = take(c, n_assigned * (size_t)f->d_model_pad, sizeof(float));
}

static void take_latent(layout_cursor *c, forward *f) {
    const model_config *config = &f->m->config;
    latent_buffers *l = &f->latent;
    const size_t n = (size_t)f->n_rows_max, n_head = (size_t)config->n_head;
    const int32_t n_heads_rows = f->n_rows_max * config->n_head;
    l->kv_stride = (size_t)kern_pad16(config->d_head);
    l->query_apart = (size_t)kern_pad16(config->d_latent);
    l->value_apart = (size_t)kern_pad16(config->d_value_head);
    l->value_stride = n_head * l->value_apart;
    l->q_low = take(c, n * (size_t)kern_pad16(config->d_latent_query), sizeof(float));
    l->kv = take(c, n * l->kv_stride, sizeof(float));
    l->query = take(c, n * n_head * l->query_apart, sizeof(float));
    l->value = take(c, n * l->value_stride, sizeof(float));
    take_rows(c, &l->q_rows, f->n_rows_max, config->d_latent_query);
    take_rows(c, &l->nope_rows, n_heads_rows, config->d_nope);
    take_rows(c, &l->latent_rows, n_heads_rows, config->d_latent);
    l->q_rows.f32 = l->q_low;
    l->q_rows.stride = (size_t)kern_pad16(config->d_latent_query);
}

static void take_recurrent(layout_cursor *c, forward *f) {
    const model_recurrence *r = &f->m->config.recurrence;
    recurrent_buffers *b = &f->recurrent;
    const size_t n = (size_t)f->n_rows_max;
    b->in_stride = (size_t)kern_pad16(r->n_in) + 16;
    b->conv_stride = (size_t)kern_pad16(r->n_conv) + 16;
    b->select_stride = (size_t)kern_pad16(r->dt_rank + 2 * r->d_state) + 16;
    b->inner_stride = (size_t)kern_pad16(r->d_inner) + 16;
    b->in = take(c, n * b->in_stride, sizeof(float));
    b->conv = take(c, n * b->conv_stride, sizeof(float));
    b->select = take(c, n * b->select_stride, sizeof(float));
    b->dt = take(c, n * b->inner_stride, sizeof(float));
    b->y = take(c, n * b->inner_stride, sizeof(float));
    take_rows(c, &b->inner_rows, f->n_rows_max, r->d_inner);
    take_rows(c, &b->rank_rows, f->n_rows_max, r->dt_rank);
}

static void lay_out(forward *f, layout_cursor *c) {
    const model_config *config = &f->m->config;
    const size_t n = (size_t)f->n_rows_max;
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
    if (config->n_expert) take_experts(c, f);
    if (config->d_latent) take_latent(c, f);
    if (config->recurrence.d_inner) take_recurrent(c, f);
    f->row_pos = take(c, n, sizeof(int32_t));
    f->row_group = take(c, n, sizeof(int32_t));
    f->counters = take(c, (size_t)(config->n_layer + 1) * N_PHASES * COUNTER_STRIDE, sizeof *f->counters);
    f->scratch = take(c, (size_t)f->n_threads, sizeof *f->scratch);
    /* Latent attention has enough tiles without splitting by segment. */
    const size_t n_items = config->d_latent ? 0 : 2 * (size_t)f->n_threads, n_parts = n_items * (size_t)f->n_segments_max;
    f->parts = take(c, n_parts, sizeof *f->parts);
    f->parts_left = take(c, n_items, sizeof *f->parts_left);
    for (size_t i = 0; i < n_parts; i++) {
        kern_softmax unused;
        take_softmax(c, config, f->parts && !c->overflow ? &f->parts[i] : &unused);
    }
    for (int t = 0; t < f->n_threads; t++) {
        thread_scratch unused, *s = f->scratch && !c->overflow ? &f->scratch[t] : &unused;
        take_row_buffers(c, f, &s->rows, REPLICATED_ROWS, true);
        s->matmul = take(c, 1, KERN_SCRATCH_BYTES);
        s->query = take(c, (size_t)KERN_ATTENTION_ROWS * (size_t)kern_pad16(config->d_head), sizeof(float));
        s->key = take(c, (size_t)kern_pad16(config->d_head), sizeof(float));
        s->page = take(c, KERN_PAGE * (size_t)(config->d_head + kern_pad16(config->d_value)), sizeof(float));
        take_softmax(c, config, &s->total);
        take_softmax(c, config, &s->part);
    }
}

/* Where floating point weights find their inputs: a thread's own norms, the shared results of attention and activation. */
static void set_inputs(const forward *f, row_buffers *r) {
    r->model.f32 = r->normed;
    r->model.stride = (size_t)f->d_model_pad;
    r->heads.f32 = f->latent.value ? f->latent.value : f->attention;
    r->heads.stride = f->latent.value ? f->latent.value_stride : (size_t)f->n_att_pad;
    r->hidden.f32 = f->gate;
    r->hidden.stride = (size_t)f->d_ff_pad;
}

int forward_open(forward **out, const weir_model *m, pool *p, const kern_kv *kv, int32_t n_rows_max, int32_t n_outputs_max, int32_t n_ctx,
                 weir_error *err) {
    *out = NULL;
    const model_config *config = &m->config;
    forward *f = calloc(1, sizeof *f);
    FAIL_IF(f == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the forward pass");
    f->m = m;
    f->threads = p;
    f->n_threads = pool_n_threads(p);
    f->kv = *kv;
    f->n_rows_max = n_rows_max;
    f->n_outputs_max = n_outputs_max;
    f->n_ctx = n_ctx;
    f->n_segments_max = (n_ctx + KERN_SEGMENT - 1) / KERN_SEGMENT;
    f->d_model_pad = kern_pad16(config->d_model);
    f->n_q_pad = kern_pad16(config->n_head * (config->d_latent ? config->d_nope + config->n_rot : config->d_head));
    f->n_k_pad = config->d_latent ? 0 : kern_pad16(config->n_head_kv * config->d_head);
    f->n_v_pad = config->d_latent ? 0 : kern_pad16(config->n_head_kv * config->d_value);
    f->n_att_pad = kern_pad16(config->n_head * config->d_value);
    f->d_ff_pad = kern_pad16(config->d_ff > config->d_ff_shared ? config->d_ff : config->d_ff_shared);
    f->d_ff_expert_pad = kern_pad16(config->d_ff_expert);
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
    free(f->clocks);
    free(f);
    *ff = NULL;
}

int forward_measure(forward *f, weir_error *err) {
    const size_t n_bytes = (size_t)f->n_threads * sizeof *f->clocks;
    if (f->clocks == NULL) f->clocks = aligned_alloc(_Alignof(op_clock), n_bytes);
    FAIL_IF(f->clocks == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the clocks of %d threads", f->n_threads);
    memset(f->clocks, 0, n_bytes);
    return 0;
}

void forward_measured(const forward *f, double ns[MODEL_N_OPS]) {
    for (int op = 0; op < MODEL_N_OPS; op++) {
        ns[op] = 0;
        for (int t = 0; f->clocks && t < f->n_threads; t++) ns[op] += (double)f->clocks[t].ns[op] / f->n_threads;
    }
}

/* ---- row work --------------------------------------------------------------------------------------------------------- */

void forward_norm(const forward *f, const model_norm_weights *norm, const float *x, int32_t n, float *out) {
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
        if (f->m->token_type) f->m->ops->add(x, f->m->token_type, c->d_model);
        if (p) {
            p->format->dequantise(p->data + (size_t)f->row_pos[r] * quant_row_bytes(p->format, (size_t)c->d_model), other,
                                  (size_t)(c->d_model / p->format->block_size));
            f->m->ops->add(x, other, c->d_model);
        }
        if (f->m->arch->embedding_norm) forward_norm(f, &f->m->embedding_norm, x, c->d_model, x);
    }
}

/* What a block adds to the residual stream, and the norms of the stream itself after it. */
typedef struct addition {
    const float *bias, *second_bias; /* or NULL */
    const model_norm_weights *post_norm, *sum_norm, *again_norm;
} addition;

/* x[r] += (post-norm(projected[r] + biases)) * residual_scale; then x[r] = sum-norm(x[r]), or again-norm of that plus the old x[r]. */
static void absorb(worker *w, int32_t r, const addition *a) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const kern_ops *ops = f->m->ops;
    const float *projected = f->projected + (size_t)r * (size_t)f->d_model_pad;
    float *x = w->rows->x + (size_t)r * (size_t)f->d_model_pad;
    float *changed = w->rows->normed + (size_t)r * (size_t)f->d_model_pad; /* free at this point */
    if (a->bias || a->second_bias || a->post_norm->present || c->residual_scale != 1.0f || a->again_norm->present) {
        memcpy(changed, projected, (size_t)c->d_model * sizeof(float));
        if (a->bias) ops->add(changed, a->bias, c->d_model);
        if (a->second_bias) ops->add(changed, a->second_bias, c->d_model);
        if (a->post_norm->present) forward_norm(f, a->post_norm, changed, c->d_model, changed);
        if (c->residual_scale != 1.0f) ops->scale(changed, c->residual_scale, c->d_model);
        projected = changed;
    }
    if (a->again_norm->present) {
        ops->add(changed, x, c->d_model);
        forward_norm(f, a->sum_norm, changed, c->d_model, changed);
        ops->add(x, changed, c->d_model);
        forward_norm(f, a->again_norm, x, c->d_model, x);
        return;
    }
    ops->add(x, projected, c->d_model);
    if (a->sum_norm->present) forward_norm(f, a->sum_norm, x, c->d_model, x);
}

/* What the block before has left to add. */
static void absorb_pending(worker *w) {
    static const model_norm_weights none;
    const model_layer *layer = w->pending;
    const bool parallel = w->f->m->config.parallel;
    w->pending = NULL;
    if (layer == NULL) return;
    const addition mixed = {layer->o_bias, NULL, &layer->attn_post_norm, &layer->attn_sum_norm, &layer->attn_again_norm};
    const addition fed = {layer->down_bias, parallel ? layer->o_bias : NULL, &layer->ffn_post_norm, &layer->ffn_sum_norm, &none};
    for (int32_t r = w->begin; r < w->end; r++) absorb(w, r, w->pending_ffn ? &fed : &mixed);
}

/* The norm before a block, and its result as matrix input. */
static void norm_rows(worker *w, const model_norm_weights *norm, bool int8) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    for (int32_t r = w->begin; r < w->end; r++) {
        float *normed = w->rows->normed + (size_t)r * (size_t)f->d_model_pad;
        forward_norm(f, norm, w->rows->x + (size_t)r * (size_t)f->d_model_pad, c->d_model, normed);
        if (int8) f->m->ops->quantise(&w->rows->model, r, normed, c->d_model);
    }
}

void forward_input_rows(worker *w, int32_t n_cols, const kern_matrix *user, kern_rows *in) {
    if (!wants_int8(user)) return;
    for (int32_t r = w->begin; r < w->end; r++) w->f->m->ops->quantise(in, r, in->f32 + (size_t)r * in->stride, n_cols);
}

/* ---- matrix work ------------------------------------------------------------------------------------------------------ */

/* Enough chunks that a slowed-down thread does not hold up the others. */
int32_t forward_panel_chunk(const forward *f, int32_t n_panels) {
    int32_t chunk = n_panels / (f->n_threads * 8);
    if (chunk > 32) chunk = 32;
    return chunk < 2 ? (f->n_threads == 1 ? n_panels : 2) : chunk & ~1;
}

/* Panels [begin, end) of the concatenation of several products of the same input. */
void forward_products_range(worker *w, const product *products, int n_products, const kern_rows *in, int32_t n_rows, int32_t begin,
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

void forward_products_take(worker *w, const product *products, int n_products, const kern_rows *in, int32_t n_rows, int32_t layer,
                          int phase) {
    int32_t n_panels = 0;
    for (int i = 0; i < n_products; i++) n_panels += products[i].w->n_panels;
    const int32_t chunk = forward_panel_chunk(w->f, n_panels);
    for (int64_t p; (p = pool_take(counter(w->f, layer, phase), chunk, n_panels)) < n_panels;)
        forward_products_range(w, products, n_products, in, n_rows, (int32_t)p, (int32_t)(p + chunk < n_panels ? p + chunk : n_panels));
}

/* f->gate = activation(gate) * up, or activation(up) without a gate, panel by panel as they are made. */
static void gate_up(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const kern_ops *ops = f->m->ops;
    const bool gated = layer->gate.layout != NULL;
    const int32_t n_panels = layer->up.n_panels, chunk = forward_panel_chunk(f, n_panels), n_rows = f->batch->n_rows;
    const size_t stride = (size_t)f->d_ff_pad;
    const product gate = {&layer->gate, f->gate, stride, layer->gate_bias, false};
    const product up = {&layer->up, gated ? f->up : f->gate, stride, layer->up_bias, false};
    for (int64_t p; (p = pool_take(counter(f, index, PHASE_GATE_UP), chunk, n_panels)) < n_panels;) {
        const int32_t end = (int32_t)(p + chunk < n_panels ? p + chunk : n_panels);
        if (gated) forward_products_range(w, &gate, 1, &w->rows->model, n_rows, (int32_t)p, end);
        forward_products_range(w, &up, 1, &w->rows->model, n_rows, (int32_t)p, end);
        const size_t column = (size_t)p * KERN_PANEL;
        const int n = (end - (int)p) * KERN_PANEL;
        for (int32_t r = 0; r < n_rows; r++) {
            const size_t at = (size_t)r * stride + column;
            ops->activate(f->m->arch->activation, f->gate + at, gated ? f->up + at : NULL, n);
        }
    }
}

/* ---- the pass --------------------------------------------------------------------------------------------------------- */

enum { MAX_INPUT_PRODUCTS = 4 };

/* Thread 0 asks and tells the others through the barrier that follows. */
static void ask_abort(worker *w) {
    const forward_batch *b = w->f->batch;
    if (w->thread == 0 && b->abort && b->abort(b->abort_user)) atomic_store(&w->f->aborted, true);
}

/* What a layer's mixer computes from the normed rows before anything else. Returns how many products. */
static int input_products(const forward *f, const model_layer *layer, product out[MAX_INPUT_PRODUCTS]) {
    int n = 0;
    if (layer->kv_down.layout) {
        if (layer->q_down.layout) out[n++] = (product){&layer->q_down, f->latent.q_low, f->latent.q_rows.stride, NULL, false};
        else out[n++] = (product){&layer->q, f->q, (size_t)f->n_q_pad, NULL, false};
        out[n++] = (product){&layer->kv_down, f->latent.kv, f->latent.kv_stride, NULL, false};
    } else if (layer->n_head_kv) {
        out[n++] = (product){&layer->q, f->q, (size_t)f->n_q_pad, layer->q_bias, false};
        out[n++] = (product){&layer->k, f->k, (size_t)f->n_k_pad, layer->k_bias, false};
        out[n++] = (product){&layer->v, f->v, (size_t)f->n_v_pad, layer->v_bias, false};
    }
    if (layer->recurrent) out[n++] = (product){&layer->recurrent_in, f->recurrent.in, f->recurrent.in_stride, NULL, false};
    return n;
}

/* The attention's output, projected. */
static void attention_output(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    forward_input_rows(w, layer->o.n_cols, &layer->o, &w->rows->heads);
    row_barrier(w);
    const product out = {&layer->o, f->projected, (size_t)f->d_model_pad, NULL, false};
    forward_products_take(w, &out, 1, &w->rows->heads, f->batch->n_rows, index, PHASE_OUT);
    step_barrier(w, MODEL_OP_OUT);
}

/* What mixes tokens: leaves in f->projected what it adds to the residual stream. False when the step was abandoned. */
static bool layer_mixer(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    product products[MAX_INPUT_PRODUCTS];
    const int n_products = input_products(f, layer, products);
    bool int8 = false;
    for (int i = 0; i < n_products; i++) int8 = int8 || wants_int8(products[i].w);
    ask_abort(w);
    if (w->thread == 0 && layer->n_head_kv) forward_attention_prepare(f, layer);
    absorb_pending(w);
    norm_rows(w, &layer->attn_norm, int8);
    row_barrier(w);
    forward_products_take(w, products, n_products, &w->rows->model, f->batch->n_rows, index, PHASE_IN);
    step_barrier(w, MODEL_OP_QKV);
    if (atomic_load(&f->aborted)) return false;
    if (layer->kv_down.layout) {
        forward_latent(w, layer, index);
    } else if (layer->n_head_kv) {
        forward_attention(w, layer, index);
        step_barrier(w, MODEL_OP_ATTENTION);
    }
    if (layer->n_head_kv) attention_output(w, layer, index);
    if (layer->recurrent) forward_recurrent(w, layer, index);
    w->pending = layer;
    w->pending_ffn = false;
    return true;
}

/* The dense feed-forward, or the shared expert, into f->projected (added to the attention's output in parallel blocks). */
static void dense_feed_forward(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    gate_up(w, layer, index);
    step_barrier(w, MODEL_OP_GATE_UP);
    forward_input_rows(w, layer->down.n_cols, &layer->down, &w->rows->hidden);
    row_barrier(w);
    const product down = {&layer->down, f->projected, (size_t)f->d_model_pad, NULL, f->m->config.parallel};
    forward_products_take(w, &down, 1, &w->rows->hidden, f->batch->n_rows, index, PHASE_DOWN);
    step_barrier(w, MODEL_OP_DOWN);
}

/* Whether a feed-forward reads its input in int8 blocks. */
static bool feed_forward_wants_int8(const model_layer *layer) {
    return (layer->up.layout && wants_int8(&layer->up)) || (layer->gate.layout && wants_int8(&layer->gate)) ||
           (layer->router.layout && (wants_int8(&layer->router) || wants_int8(&layer->up_experts[0]) ||
                                     (layer->gate_experts && wants_int8(&layer->gate_experts[0]))));
}

static void layer_feed_forward(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const bool shared_norm = !layer->ffn_norm.present && layer->attn_norm.present;
    if (!c->parallel) absorb_pending(w);
    /* A parallel block may feed the attention's input on: it is still there. */
    if (!(c->parallel && shared_norm) || feed_forward_wants_int8(layer))
        norm_rows(w, shared_norm ? &layer->attn_norm : &layer->ffn_norm, feed_forward_wants_int8(layer));
    row_barrier(w);
    if (layer->up.layout) dense_feed_forward(w, layer, index);
    if (layer->router.layout) forward_experts(w, layer, index);
    w->pending = layer;
    w->pending_ffn = true;
}

/* The last residual sum, norm and output head, for the rows whose logits are wanted. */
static void output_head(worker *w) {
    forward *f = w->f;
    const forward_batch *b = f->batch;
    const model_config *c = &f->m->config;
    const kern_ops *ops = f->m->ops;
    row_buffers *to = &f->outputs;
    if (b->n_outputs == 0) return;
    absorb_pending(w);
    row_barrier(w);
    int32_t begin, end;
    split_rows(f, w->thread, b->n_outputs, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        float *normed = to->normed + (size_t)i * (size_t)f->d_model_pad;
        forward_norm(f, &f->m->output_norm, w->rows->x + (size_t)b->output_rows[i] * (size_t)f->d_model_pad, c->d_model, normed);
        if (b->states) memcpy(b->states + (size_t)i * (size_t)c->d_model, normed, (size_t)c->d_model * sizeof(float));
        else if (wants_int8(&f->m->output)) ops->quantise(&to->model, i, normed, c->d_model);
    }
    if (b->states) return;
    step_barrier(w, MODEL_OP_ROWS);
    const product head = {&f->m->output, b->logits, b->logits_stride, f->m->output_bias, false};
    forward_products_take(w, &head, 1, &to->model, b->n_outputs, c->n_layer, PHASE_OUT);
    if (c->output_softcap == 0.0f && c->logit_scale == 1.0f) return;
    step_barrier(w, MODEL_OP_HEAD);
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
    if (f->clocks) {
        w.clock = &f->clocks[thread];
        w.clock->last_ns = clock_now_ns();
    }
    embed(&w);
    mark(&w, MODEL_OP_EMBED);
    for (int32_t i = 0; i < c->n_layer; i++) {
        const model_layer *layer = &f->m->layers[i];
        if ((layer->n_head_kv || layer->recurrent) && !layer_mixer(&w, layer, i)) return;
        if (layer->up.layout || layer->router.layout) layer_feed_forward(&w, layer, i);
    }
    output_head(&w);
    if (w.clock) step_barrier(&w, MODEL_OP_HEAD); /* the wait for the last thread belongs to the step, too */
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

bool model_generates(const weir_model *m) { return m->output.layout != NULL && m->config.causal; }

int32_t model_n_classes(const weir_model *m) {
    const kern_matrix *last = m->classifier_out.layout ? &m->classifier_out : &m->classifier;
    return last->layout ? last->n_rows : 0;
}

/* One small matrix times x[n_cols], on one thread. */
static void classify_by(forward *f, const kern_matrix *w, const float *bias, const float *x, float *out) {
    const kern_ops *ops = f->m->ops;
    kern_rows in = f->outputs.model;
    in.f32 = x;
    if (wants_int8(w)) ops->quantise(&in, 0, x, w->n_cols);
    ops->matmul(w, 0, w->n_panels, &in, 1, out, (size_t)f->d_model_pad, false, f->scratch[0].matmul);
    if (bias) ops->add(out, bias, w->n_rows);
}

void forward_classify(forward *f, const float *state, float *scores) {
    const weir_model *m = f->m;
    float *x = f->outputs.x, *y = f->outputs.normed;
    memcpy(x, state, (size_t)m->config.d_model * sizeof(float));
    if (m->classifier.layout) {
        classify_by(f, &m->classifier, m->classifier_bias, x, y);
        for (int32_t i = 0; i < m->classifier.n_rows; i++) y[i] = tanhf(y[i]);
        memcpy(x, y, (size_t)m->classifier.n_rows * sizeof(float));
    }
    if (m->classifier_out.layout) {
        classify_by(f, &m->classifier_out, m->classifier_out_bias, x, y);
        memcpy(x, y, (size_t)m->classifier_out.n_rows * sizeof(float));
    }
    memcpy(scores, x, (size_t)model_n_classes(m) * sizeof(float));
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
