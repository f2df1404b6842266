/* Routed experts (mixture of experts; Shazeer et al. 2017, Fedus et al. 2022): which experts each row goes to, and their work in
 * groups of rows, so that an expert's weights are read once for all its rows.
 *
 * A row's result is the sum of its experts' outputs in the order in which they were chosen, whatever else is in the batch. */
#include <math.h>

#include "model/forward_internal.h"

/* ---- choosing --------------------------------------------------------------------------------------------------------- */

/* Scores of all experts for one row, from router logits in place. */
static void gate_scores(const model_config *c, float *x) {
    if (c->expert_gating == GATING_SIGMOID) {
        for (int32_t i = 0; i < c->n_expert; i++) x[i] = 1.0f / (1.0f + expf(-x[i]));
    } else if (c->expert_gating == GATING_SOFTMAX) {
        float largest = x[0], sum = 0.0f;
        for (int32_t i = 1; i < c->n_expert; i++) largest = x[i] > largest ? x[i] : largest;
        for (int32_t i = 0; i < c->n_expert; i++) sum += x[i] = expf(x[i] - largest);
        for (int32_t i = 0; i < c->n_expert; i++) x[i] /= sum;
    }
}

/* The best of n candidates that are not below -inf; the first on ties. */
static int32_t take_best(float *x, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Leaves only the best groups in the running: a group counts by the sum of its two best (DeepSeek-V3, section 2.1.2). */
static void mask_groups(const model_config *c, float *selection) {
    float scores[1024];
    const int32_t size = c->n_expert / c->n_expert_groups;
    bool kept[1024] = {false};
    for (int32_t g = 0; g < c->n_expert_groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int32_t i = g * size; i < (g + 1) * size; i++) {
            const float x = selection[i];
            if (x > first) {
                second = first;
                first = x;
            } else if (x > second) {
                second = x;
            }
        }
        scores[g] = size > 1 ? first + second : first;
    }
    for (int32_t k = 0; k < c->n_expert_groups_used; k++) {
        int32_t best = take_best(scores, c->n_expert_groups);
        kept[best] = true;
        scores[best] = -INFINITY;
    }
    for (int32_t i = 0; i < c->n_expert; i++)
        if (!kept[i / size]) selection[i] = -INFINITY;
}

/* Chooses one row's experts and their weights, best first. */
static void choose(const forward *f, const model_layer *layer, int32_t row) {
    const model_config *c = &f->m->config;
    const expert_buffers *e = &f->experts;
    float *scores = e->router + (size_t)row * (size_t)kern_pad16(c->n_expert), selection[1024];
    int32_t *chosen = e->chosen + (size_t)row * (size_t)c->n_expert_used;
    float *weight = e->weight + (size_t)row * (size_t)c->n_expert_used, sum = 0.0f;
    gate_scores(c, scores);
    for (int32_t i = 0; i < c->n_expert; i++) selection[i] = scores[i] + (layer->selection_bias ? layer->selection_bias[i] : 0.0f);
    if (c->n_expert_groups > 1) mask_groups(c, selection);
    for (int32_t k = 0; k < c->n_expert_used; k++) {
        chosen[k] = take_best(selection, c->n_expert);
        weight[k] = scores[chosen[k]];
        selection[chosen[k]] = -INFINITY;
    }
    if (c->expert_gating == GATING_SOFTMAX_CHOSEN) {
        const float largest = weight[0];
        for (int32_t k = 0; k < c->n_expert_used; k++) sum += weight[k] = expf(weight[k] - largest);
        for (int32_t k = 0; k < c->n_expert_used; k++) weight[k] /= sum;
    } else if (c->expert_weights_norm) {
        for (int32_t k = 0; k < c->n_expert_used; k++) sum += weight[k];
        if (sum < 6.103515625e-5f) sum = 6.103515625e-5f; /* the smallest normal F16, as the reference implementations bound it */
        for (int32_t k = 0; k < c->n_expert_used; k++) weight[k] /= sum;
    }
    for (int32_t k = 0; k < c->n_expert_used; k++) weight[k] *= c->expert_weights_scale;
}

/* Sorts all assignments by expert (counting sort, stable by row). */
static void sort_assignments(forward *f) {
    const model_config *c = &f->m->config;
    expert_buffers *e = &f->experts;
    const int32_t n = f->batch->n_rows * c->n_expert_used;
    memset(e->first, 0, ((size_t)c->n_expert + 1) * sizeof *e->first);
    for (int32_t i = 0; i < n; i++) e->first[e->chosen[i] + 1]++;
    for (int32_t x = 0; x < c->n_expert; x++) e->first[x + 1] += e->first[x];
    for (int32_t i = 0; i < n; i++) {
        /* first[x] moves up as x's assignments are placed; the pass below moves it back. */
        const int32_t at = e->first[e->chosen[i]]++;
        e->position[i] = at;
        e->row[at] = i / c->n_expert_used;
    }
    memmove(e->first + 1, e->first, (size_t)c->n_expert * sizeof *e->first);
    e->first[0] = 0;
}

/* ---- computing -------------------------------------------------------------------------------------------------------- */

/* Copies the input rows of a share of the assignments. */
static void gather(worker *w, bool int8) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    expert_buffers *e = &f->experts;
    const kern_rows *from = &w->rows->model;
    const size_t n_cols = (size_t)from->n_cols;
    int32_t begin, end;
    split_rows(f, w->thread, f->batch->n_rows * c->n_expert_used, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        const size_t at = (size_t)i, row = (size_t)e->row[i];
        memcpy(e->input + at * (size_t)f->d_model_pad, from->f32 + row * from->stride, (size_t)c->d_model * sizeof(float));
        if (!int8) continue;
        memcpy(e->model.q + at * n_cols, from->q + row * n_cols, n_cols);
        memcpy(e->model.d + at * (n_cols / 32), from->d + row * (n_cols / 32), n_cols / 32 * sizeof(float));
        memcpy(e->model.sum + at * (n_cols / 32), from->sum + row * (n_cols / 32), n_cols / 32 * sizeof(float));
        memcpy(e->model.neg_sum + at * (n_cols / 16), from->neg_sum + row * (n_cols / 16), n_cols / 16 * sizeof(int32_t));
    }
}

typedef void (*expert_fn)(worker *w, const model_layer *layer, int32_t expert, int32_t first, int32_t n_rows, int32_t begin, int32_t end);

/* Runs `fn` over chunks of panels of all experts that have rows. */
static void experts_take(worker *w, const model_layer *layer, int32_t index, int phase, int32_t n_panels, expert_fn fn) {
    forward *f = w->f;
    const expert_buffers *e = &f->experts;
    const int32_t n_expert = f->m->config.n_expert, chunk = n_panels < 8 ? n_panels : 8, n_chunks = (n_panels + chunk - 1) / chunk;
    int32_t n_used = 0, expert = 0, expert_number = -1;
    for (int32_t x = 0; x < n_expert; x++) n_used += e->first[x + 1] > e->first[x];
    const int64_t n_items = (int64_t)n_used * n_chunks;
    for (int64_t item; (item = pool_take(counter(f, index, phase), 1, n_items)) < n_items;) {
        /* Items only grow, so the search for the expert goes on from where it was. */
        while (expert_number < (int32_t)(item / n_chunks)) {
            if (expert_number >= 0) expert++;
            while (e->first[expert + 1] == e->first[expert]) expert++;
            expert_number++;
        }
        const int32_t begin = (int32_t)(item % n_chunks) * chunk, end = begin + chunk < n_panels ? begin + chunk : n_panels;
        fn(w, layer, expert, e->first[expert], e->first[expert + 1] - e->first[expert], begin, end);
    }
}

static void add_bias(const worker *w, float *out, size_t stride, int32_t n_rows, const float *bias, int32_t n, int32_t begin, int32_t end) {
    const int32_t column = begin * KERN_PANEL, last = end * KERN_PANEL < n ? end * KERN_PANEL : n;
    for (int32_t r = 0; bias && r < n_rows; r++) w->f->m->ops->add(out + (size_t)r * stride + column, bias + column, last - column);
}

static void expert_up(worker *w, const model_layer *layer, int32_t expert, int32_t first, int32_t n_rows, int32_t begin, int32_t end) {
    forward *f = w->f;
    const kern_ops *ops = f->m->ops;
    expert_buffers *e = &f->experts;
    const int32_t n = f->m->config.d_ff_expert;
    const size_t stride = (size_t)f->d_ff_expert_pad, bias_at = (size_t)expert * (size_t)n;
    const bool gated = layer->gate_experts != NULL;
    const kern_rows in = rows_from(&e->model, e->input, (size_t)f->d_model_pad, first);
    float *gate = e->gate + (size_t)first * stride, *up = gated ? e->up + (size_t)first * stride : gate;
    if (gated) {
        ops->matmul(&layer->gate_experts[expert], begin, end, &in, n_rows, gate, stride, false, w->scratch->matmul);
        add_bias(w, gate, stride, n_rows, layer->gate_experts_bias ? layer->gate_experts_bias + bias_at : NULL, n, begin, end);
    }
    ops->matmul(&layer->up_experts[expert], begin, end, &in, n_rows, up, stride, false, w->scratch->matmul);
    add_bias(w, up, stride, n_rows, layer->up_experts_bias ? layer->up_experts_bias + bias_at : NULL, n, begin, end);
    for (int32_t r = 0; r < n_rows; r++) {
        const size_t at = (size_t)r * stride + (size_t)begin * KERN_PANEL;
        ops->activate(f->m->arch->activation, gate + at, gated ? up + at : NULL, (end - begin) * KERN_PANEL);
    }
}

static void expert_down(worker *w, const model_layer *layer, int32_t expert, int32_t first, int32_t n_rows, int32_t begin, int32_t end) {
    forward *f = w->f;
    expert_buffers *e = &f->experts;
    const int32_t n = f->m->config.d_model;
    const size_t stride = (size_t)f->d_model_pad;
    const kern_rows in = rows_from(&e->hidden, e->gate, (size_t)f->d_ff_expert_pad, first);
    float *out = e->out + (size_t)first * stride;
    f->m->ops->matmul(&layer->down_experts[expert], begin, end, &in, n_rows, out, stride, false, w->scratch->matmul);
    add_bias(w, out, stride, n_rows, layer->down_experts_bias ? layer->down_experts_bias + (size_t)expert * (size_t)n : NULL, n, begin, end);
}

static void quantise_hidden(worker *w, const model_layer *layer) {
    forward *f = w->f;
    expert_buffers *e = &f->experts;
    int32_t begin, end;
    if (!wants_int8(&layer->down_experts[0])) return;
    split_rows(f, w->thread, f->batch->n_rows * f->m->config.n_expert_used, &begin, &end);
    for (int32_t i = begin; i < end; i++)
        f->m->ops->quantise(&e->hidden, i, e->gate + (size_t)i * (size_t)f->d_ff_expert_pad, f->m->config.d_ff_expert);
}

/* projected[row] = shared part + the weighted sum of the row's experts. */
static void combine(worker *w, const model_layer *layer) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const kern_ops *ops = f->m->ops;
    expert_buffers *e = &f->experts;
    const size_t stride = (size_t)f->d_model_pad;
    int32_t begin, end;
    split_rows(f, w->thread, f->batch->n_rows, &begin, &end);
    for (int32_t r = begin; r < end; r++) {
        float *to = f->projected + (size_t)r * stride;
        if (layer->up.layout == NULL) memset(to, 0, (size_t)c->d_model * sizeof(float));
        if (layer->shared_gate.layout) ops->scale(to, 1.0f / (1.0f + expf(-e->shared_gate[(size_t)r * KERN_PANEL])), c->d_model);
        for (int32_t k = 0; k < c->n_expert_used; k++) {
            const size_t i = (size_t)r * (size_t)c->n_expert_used + (size_t)k;
            float *from = e->out + (size_t)e->position[i] * stride;
            ops->scale(from, e->weight[i], c->d_model);
            ops->add(to, from, c->d_model);
        }
    }
}

void forward_experts(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const int32_t n_rows = f->batch->n_rows;
    const bool int8 = wants_int8(&layer->up_experts[0]) || (layer->gate_experts && wants_int8(&layer->gate_experts[0]));
    const product routing[] = {{&layer->router, f->experts.router, (size_t)kern_pad16(c->n_expert), layer->router_bias, false},
                               {&layer->shared_gate, f->experts.shared_gate, KERN_PANEL, NULL, false}};
    forward_products_take(w, routing, layer->shared_gate.layout ? 2 : 1, &w->rows->model, n_rows, index, PHASE_ROUTER);
    step_barrier(w, MODEL_OP_EXPERTS);
    if (w->thread == 0) {
        for (int32_t r = 0; r < n_rows; r++) choose(f, layer, r);
        sort_assignments(f);
    }
    step_barrier(w, MODEL_OP_EXPERTS);
    gather(w, int8);
    step_barrier(w, MODEL_OP_EXPERTS);
    experts_take(w, layer, index, PHASE_EXPERTS_UP, layer->up_experts[0].n_panels, expert_up);
    step_barrier(w, MODEL_OP_EXPERTS);
    quantise_hidden(w, layer);
    step_barrier(w, MODEL_OP_EXPERTS);
    experts_take(w, layer, index, PHASE_EXPERTS_DOWN, layer->down_experts[0].n_panels, expert_down);
    step_barrier(w, MODEL_OP_EXPERTS);
    combine(w, layer);
    step_barrier(w, MODEL_OP_EXPERTS);
}
