/* Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): the keys and values of all heads are linear maps of one compressed
 * vector a token, and only that and one rotated key part, shared by all heads, are kept.
 *
 * The maps are absorbed into the query and the output (section 2.1.2), so that attention runs over one KV head whose key is the
 * compressed vector followed by the rotated part, and whose value is the compressed vector again. */
#include "model/forward_internal.h"

/* One row for each head of each row of the batch, to be multiplied by a matrix of the head's own. */
typedef struct head_rows {
    kern_rows *quantised;   /* [n_head][n_rows] */
    const float *f32;       /* [n_rows][stride], head h at h * apart */
    size_t stride, apart;
    int32_t n_cols;
} head_rows;

/* The rows of one head as matrix input. */
static kern_rows rows_of_head(const forward *f, const head_rows *x, int32_t head) {
    kern_rows in = rows_from(x->quantised, x->f32 + (size_t)head * x->apart, 0, head * f->batch->n_rows);
    in.stride = x->stride;
    return in;
}

/* Quantises all heads of this thread's share of the rows where the matrices ask for it. */
static void quantise_heads(worker *w, const kern_matrix *user, const head_rows *x, int32_t n_head) {
    forward *f = w->f;
    const int32_t n_rows = f->batch->n_rows;
    int32_t begin, end;
    if (!wants_int8(user)) return;
    split_rows(f, w->thread, n_rows, &begin, &end);
    for (int32_t r = begin; r < end; r++)
        for (int32_t h = 0; h < n_head; h++)
            f->m->ops->quantise(x->quantised, h * n_rows + r, x->f32 + (size_t)r * x->stride + (size_t)h * x->apart, x->n_cols);
    step_barrier(w, MODEL_OP_ATTENTION);
}

/* out[row][head] = matrices[head] x[row][head], in chunks of panels taken by all threads; ends with a barrier. */
static void multiply_heads(worker *w, const kern_matrix *matrices, int32_t n_head, const head_rows *x, float *out, size_t stride,
                           size_t apart, int32_t index, int phase) {
    forward *f = w->f;
    const int32_t n_panels = matrices[0].n_panels, chunk = n_panels < 8 ? n_panels : 8, n_chunks = (n_panels + chunk - 1) / chunk;
    const int64_t n_items = (int64_t)n_head * n_chunks;
    for (int64_t item; (item = pool_take(counter(f, index, phase), 1, n_items)) < n_items;) {
        const int32_t head = (int32_t)(item / n_chunks), begin = (int32_t)(item % n_chunks) * chunk;
        const kern_rows in = rows_of_head(f, x, head);
        f->m->ops->matmul(&matrices[head], begin, begin + chunk < n_panels ? begin + chunk : n_panels, &in, f->batch->n_rows,
                          out + (size_t)head * apart, stride, false, w->scratch->matmul);
    }
    step_barrier(w, MODEL_OP_ATTENTION);
}

/* Norms the compressed vector, rotates the shared key part, and stores both. */
static void store_row(worker *w, const model_layer *layer, int32_t row) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    float *from = f->latent.kv + (size_t)row * f->latent.kv_stride, *key = w->scratch->key;
    forward_norm(f, &layer->kv_down_norm, from, c->d_latent, key);
    memcpy(key + c->d_latent, from + c->d_latent, (size_t)c->n_rot * sizeof(float));
    forward_rotate(f, layer, row, key + c->d_latent);
    forward_store(f, layer, row, 0, key, key);
}

/* Queries from their own compressed vector, where the model has one. */
static void expand_queries(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const product queries = {&layer->q, f->q, (size_t)f->n_q_pad, NULL, false};
    forward_products_take(w, &queries, 1, &f->latent.q_rows, f->batch->n_rows, index, PHASE_LATENT_QUERY);
    step_barrier(w, MODEL_OP_ATTENTION);
}

void forward_latent_query(const forward *f, const model_layer *layer, int32_t row, int32_t head, float scale, float *out) {
    const model_config *c = &f->m->config;
    const latent_buffers *l = &f->latent;
    memcpy(out, l->query + ((size_t)row * (size_t)layer->n_head + (size_t)head) * l->query_apart, (size_t)c->d_latent * sizeof(float));
    memcpy(out + c->d_latent, f->q + (size_t)row * (size_t)f->n_q_pad + (size_t)head * (size_t)(c->d_nope + c->n_rot) + c->d_nope,
           (size_t)c->n_rot * sizeof(float));
    forward_rotate(f, layer, row, out + c->d_latent);
    f->m->ops->scale(out, scale, c->d_head);
}

/* Closes the gaps between heads that are no whole number of panels wide. */
static void pack_heads(worker *w, const model_layer *layer) {
    forward *f = w->f;
    const latent_buffers *l = &f->latent;
    const size_t d = (size_t)f->m->config.d_value_head;
    int32_t begin, end;
    if (l->value_apart == d) return;
    split_rows(f, w->thread, f->batch->n_rows, &begin, &end);
    for (int32_t r = begin; r < end; r++) {
        float *row = l->value + (size_t)r * l->value_stride;
        for (int32_t h = 1; h < layer->n_head; h++) memmove(row + (size_t)h * d, row + (size_t)h * l->value_apart, d * sizeof(float));
    }
    step_barrier(w, MODEL_OP_ATTENTION);
}

void forward_latent(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    latent_buffers *l = &f->latent;
    const head_rows nope = {&l->nope_rows, f->q, (size_t)f->n_q_pad, (size_t)(c->d_nope + c->n_rot), c->d_nope};
    const head_rows latent = {&l->latent_rows, f->attention, (size_t)f->n_att_pad, (size_t)c->d_latent, c->d_latent};
    int32_t begin, end;
    split_rows(f, w->thread, f->batch->n_rows, &begin, &end);
    for (int32_t r = begin; r < end; r++) {
        store_row(w, layer, r);
        if (!layer->q_down.layout) continue;
        float *q = l->q_low + (size_t)r * l->q_rows.stride;
        forward_norm(f, &layer->q_down_norm, q, c->d_latent_query, q);
        if (wants_int8(&layer->q)) f->m->ops->quantise(&l->q_rows, r, q, c->d_latent_query);
    }
    step_barrier(w, MODEL_OP_ATTENTION);
    if (layer->q_down.layout) expand_queries(w, layer, index);
    quantise_heads(w, &layer->k_up[0], &nope, layer->n_head);
    multiply_heads(w, layer->k_up, layer->n_head, &nope, l->query, (size_t)layer->n_head * l->query_apart, l->query_apart, index,
                   PHASE_LATENT_KEY);
    forward_attend(w, layer, index);
    step_barrier(w, MODEL_OP_ATTENTION);
    quantise_heads(w, &layer->v_up[0], &latent, layer->n_head);
    multiply_heads(w, layer->v_up, layer->n_head, &latent, l->value, l->value_stride, l->value_apart, index, PHASE_LATENT_VALUE);
    pack_heads(w, layer);
}
