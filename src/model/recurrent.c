/* Recurrent blocks: short convolutions and selective scans over a state of fixed size.
 *
 * A sequence's state is read from one place and written to another, so that a step that fails leaves it as it was. Tokens are taken
 * one after the other whatever the batch looks like; only channels and sequences are split over threads. */
#include "model/forward_internal.h"

/* ---- state ------------------------------------------------------------------------------------------------------------ */

/* Values of a layer's last inputs to the convolution, and of its scan. */
static size_t conv_values(const model_recurrence *r) { return (size_t)(r->d_conv - 1) * (size_t)kern_pad16(r->n_conv); }

static int32_t blocks_in_group(const model_recurrence *r) { return (r->d_inner / r->n_group + 15) / 16; }

int32_t model_scan_blocks(const model_recurrence *r) { return r->d_state ? r->n_group * blocks_in_group(r) : 0; }

size_t model_state_offset(const model_config *c, int32_t layer) {
    const model_recurrence *r = &c->recurrence;
    size_t n_layers = 0;
    for (int32_t i = 0; i < layer; i++) n_layers += c->shapes[i].recurrent;
    return n_layers * (conv_values(r) + (size_t)model_scan_blocks(r) * (size_t)r->d_state * 16) * sizeof(float);
}

size_t model_state_bytes(const model_config *c) { return model_state_offset(c, c->n_layer); }

static const float *state_in(const model_layer *layer, const forward_group *g) { return (const float *)(g->state_in + layer->state_offset); }
static float *state_out(const model_layer *layer, const forward_group *g) { return (float *)(g->state_out + layer->state_offset); }

/* ---- convolution ------------------------------------------------------------------------------------------------------ */

/* Input of the convolution for token `at` of a group, counted from the group's first; negative ones are in the state. */
static const float *conv_input(const forward *f, const model_layer *layer, const forward_group *g, int32_t at) {
    const model_recurrence *r = &f->m->config.recurrence;
    if (at >= 0) return f->recurrent.in + (size_t)(g->row_begin + at) * f->recurrent.in_stride + r->conv_first;
    return state_in(layer, g) + (size_t)(r->d_conv - 1 + at) * (size_t)kern_pad16(r->n_conv);
}

/* The convolution of a row, and after the last row of a sequence what the next step's first rows will need of it. */
static void convolve(worker *w, const model_layer *layer, int32_t row, float *out) {
    forward *f = w->f;
    const model_recurrence *r = &f->m->config.recurrence;
    const forward_group *g = &f->batch->groups[f->row_group[row]];
    const int32_t at = row - g->row_begin, n_past = r->d_conv - 1;
    const float *taps[MODEL_MAX_CONV];
    const kern_conv conv = {.d_conv = r->d_conv, .weight = layer->conv, .stride = (size_t)kern_pad16(r->n_conv), .bias = layer->conv_bias,
                            .silu = layer->recurrent != RECURRENT_SHORT_CONV};
    for (int32_t k = 0; k < r->d_conv; k++) taps[k] = conv_input(f, layer, g, at - n_past + k);
    f->m->ops->short_conv(&conv, taps, r->n_conv, out);
    for (int32_t k = 0; at == g->n_rows - 1 && k < n_past; k++)
        memcpy(state_out(layer, g) + (size_t)k * conv.stride, conv_input(f, layer, g, g->n_rows - n_past + k), (size_t)r->n_conv * sizeof(float));
}

/* ---- selective scan --------------------------------------------------------------------------------------------------- */

/* Step sizes of a row: one a head, spread over the head's channels. */
static void spread_steps(const forward *f, const model_layer *layer, int32_t row) {
    const model_recurrence *r = &f->m->config.recurrence;
    const float *from = f->recurrent.in + (size_t)row * f->recurrent.in_stride + r->conv_first + r->n_conv;
    float *to = f->recurrent.dt + (size_t)row * f->recurrent.inner_stride;
    const int32_t d_head = r->d_inner / r->dt_rank;
    for (int32_t h = 0; h < r->dt_rank; h++) {
        const float dt = from[h] + layer->dt_bias[h];
        for (int32_t i = 0; i < d_head; i++) *to++ = dt;
    }
}

/* Step sizes, inputs and outputs of the state as functions of the convolved row (Mamba's selection). */
static void select_parameters(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_recurrence *r = &f->m->config.recurrence;
    recurrent_buffers *b = &f->recurrent;
    const int32_t n_rows = f->batch->n_rows;
    kern_rows in = b->inner_rows, low = b->rank_rows;
    int32_t begin, end;
    in.f32 = b->conv;
    in.stride = b->conv_stride;
    low.f32 = b->select;
    low.stride = b->select_stride;
    const product select = {&layer->select, b->select, b->select_stride, NULL, false};
    forward_products_take(w, &select, 1, &in, n_rows, index, PHASE_SELECT);
    step_barrier(w, MODEL_OP_RECURRENT);
    split_rows(f, w->thread, n_rows, &begin, &end);
    for (int32_t row = begin; row < end; row++) {
        float *x = b->select + (size_t)row * b->select_stride;
        if (layer->dt_norm.present) {
            forward_norm(f, &layer->dt_norm, x, r->dt_rank, x);
            forward_norm(f, &layer->b_norm, x + r->dt_rank, r->d_state, x + r->dt_rank);
            forward_norm(f, &layer->c_norm, x + r->dt_rank + r->d_state, r->d_state, x + r->dt_rank + r->d_state);
        }
        if (wants_int8(&layer->dt)) f->m->ops->quantise(&low, row, x, r->dt_rank);
    }
    step_barrier(w, MODEL_OP_RECURRENT);
    const product steps = {&layer->dt, b->dt, b->inner_stride, layer->dt_bias, false};
    forward_products_take(w, &steps, 1, &low, n_rows, index, PHASE_STEPS);
    step_barrier(w, MODEL_OP_RECURRENT);
}

/* All tokens of one sequence through one block of channels. */
static void scan_block(worker *w, const model_layer *layer, const forward_group *g, int32_t block) {
    forward *f = w->f;
    const model_recurrence *r = &f->m->config.recurrence;
    const recurrent_buffers *b = &f->recurrent;
    const int32_t width = r->d_inner / r->n_group, per_group = blocks_in_group(r), group = block / per_group, lane = block % per_group * 16;
    const bool by_head = layer->recurrent == RECURRENT_MAMBA2;
    const size_t row = (size_t)g->row_begin, channel = (size_t)(group * width + lane), n_state = (size_t)r->d_state;
    const size_t state_at = conv_values(r) + (size_t)block * n_state * 16;
    const float *bc = by_head ? b->conv + row * b->conv_stride + r->d_inner + (size_t)group * n_state
                              : b->select + row * b->select_stride + r->dt_rank;
    const kern_scan scan = {
        .n_tok = g->n_rows, .d_state = r->d_state, .n_lanes = width - lane < 16 ? width - lane : 16, .shared_decay = by_head,
        .decay = layer->decay + (size_t)block * 16 * (by_head ? 1 : n_state), .skip = layer->skip + (size_t)block * 16,
        .x = b->conv + row * b->conv_stride + channel, .x_stride = b->conv_stride,
        .dt = b->dt + row * b->inner_stride + channel, .dt_stride = b->inner_stride,
        .gate = b->in + row * b->in_stride + r->gate_first + channel, .gate_stride = b->in_stride,
        .b = bc, .c = bc + (size_t)r->n_group * n_state, .bc_stride = by_head ? b->conv_stride : b->select_stride,
        .state_in = state_in(layer, g) + state_at, .state_out = state_out(layer, g) + state_at,
        .y = b->y + row * b->inner_stride + channel, .y_stride = b->inner_stride};
    f->m->ops->scan(&scan);
}

static void scan_all(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const int32_t n_blocks = model_scan_blocks(&f->m->config.recurrence);
    const int64_t n_items = (int64_t)f->batch->n_groups * n_blocks;
    for (int64_t item; (item = pool_take(counter(f, index, PHASE_SCAN), 1, n_items)) < n_items;)
        scan_block(w, layer, &f->batch->groups[item / n_blocks], (int32_t)(item % n_blocks));
    step_barrier(w, MODEL_OP_RECURRENT);
}

/* ---- blocks ----------------------------------------------------------------------------------------------------------- */

/* What the output projection reads: norms in groups of channels where the layer has them, int8 blocks where it wants them. */
static void finish_row(const forward *f, const model_layer *layer, int32_t row) {
    const model_recurrence *r = &f->m->config.recurrence;
    float *y = f->recurrent.y + (size_t)row * f->recurrent.inner_stride;
    const int32_t width = r->d_inner / r->n_group;
    for (int32_t g = 0; layer->scan_norm.present && g < r->n_group; g++) {
        model_norm_weights norm = layer->scan_norm;
        norm.weight += (size_t)g * (size_t)width;
        forward_norm(f, &norm, y + (size_t)g * (size_t)width, width, y + (size_t)g * (size_t)width);
    }
    kern_rows rows = f->recurrent.inner_rows;
    if (wants_int8(&layer->recurrent_out)) f->m->ops->quantise(&rows, row, y, r->d_inner);
}

/* Gated short convolution (LFM2): c * conv(b * x), of the three parts b, c, x of the projected row. */
static void short_conv_rows(worker *w, const model_layer *layer, int32_t begin, int32_t end) {
    forward *f = w->f;
    const recurrent_buffers *b = &f->recurrent;
    const int32_t d = f->m->config.recurrence.d_inner;
    for (int32_t row = begin; row < end; row++) {
        float *in = b->in + (size_t)row * b->in_stride;
        f->m->ops->multiply(in + 2 * (size_t)d, in, d);
    }
    step_barrier(w, MODEL_OP_RECURRENT);
    for (int32_t row = begin; row < end; row++) {
        float *y = b->y + (size_t)row * b->inner_stride;
        convolve(w, layer, row, y);
        f->m->ops->multiply(y, b->in + (size_t)row * b->in_stride + d, d);
        finish_row(f, layer, row);
    }
}

static void scan_rows(worker *w, const model_layer *layer, int32_t index, int32_t begin, int32_t end) {
    forward *f = w->f;
    const recurrent_buffers *b = &f->recurrent;
    for (int32_t row = begin; row < end; row++) {
        float *conv = b->conv + (size_t)row * b->conv_stride;
        kern_rows rows = b->inner_rows;
        convolve(w, layer, row, conv);
        if (layer->recurrent == RECURRENT_MAMBA2) spread_steps(f, layer, row);
        else if (wants_int8(&layer->select)) f->m->ops->quantise(&rows, row, conv, f->m->config.recurrence.d_inner);
    }
    step_barrier(w, MODEL_OP_RECURRENT);
    if (layer->recurrent == RECURRENT_MAMBA) select_parameters(w, layer, index);
    scan_all(w, layer, index);
    for (int32_t row = begin; row < end; row++) finish_row(f, layer, row);
}

void forward_recurrent(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    int32_t begin, end;
    split_rows(f, w->thread, f->batch->n_rows, &begin, &end);
    if (layer->recurrent == RECURRENT_SHORT_CONV) short_conv_rows(w, layer, begin, end);
    else scan_rows(w, layer, index, begin, end);
    step_barrier(w, MODEL_OP_RECURRENT);
    kern_rows in = f->recurrent.inner_rows;
    in.f32 = f->recurrent.y;
    in.stride = f->recurrent.inner_stride;
    const product out = {&layer->recurrent_out, f->projected, (size_t)f->d_model_pad, NULL, layer->n_head_kv != 0};
    forward_products_take(w, &out, 1, &in, f->batch->n_rows, index, PHASE_RECURRENT_OUT);
    step_barrier(w, MODEL_OP_RECURRENT);
}
