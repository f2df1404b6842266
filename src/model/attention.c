/* Attention of the forward pass: keys and values into pages, tiles of queries over them.
 *
 * Whatever the batch looks like, a query row goes through the same operations: fixed segments of keys by position, merged in
 * order. Only who does what, and when, differs. */
#include <math.h>

#include "model/forward_internal.h"

kern_kv model_kv(const model_config *c, kern_kv_type k, kern_kv_type v) {
    return (kern_kv){.d_head = c->d_head, .d_value = c->d_value, .k = c->kv_f32 ? KERN_KV_F32 : k, .v = c->kv_f32 ? KERN_KV_F32 : v};
}

static size_t head_bytes(const kern_kv *kv) { return kern_keys_bytes(kv) + kern_values_bytes(kv); }

size_t model_page_bytes(const model_config *c, const kern_kv *kv) {
    size_t n_heads = 0;
    for (int32_t i = 0; i < c->n_layer; i++) n_heads += (size_t)c->shapes[i].n_head_kv;
    return n_heads * head_bytes(kv);
}

/* Where a head's keys and values are in a page. */
static size_t head_offset(const forward *f, const model_layer *layer, int32_t head_kv) {
    return (size_t)(layer->first_head_kv + head_kv) * head_bytes(&f->kv);
}

void forward_rotate(const forward *f, const model_layer *layer, int32_t row, float *x) {
    const int32_t n_rot = f->m->config.n_rot;
    const size_t angles = (size_t)row * (size_t)(n_rot / 2);
    if (layer->has_rope)
        f->m->ops->rope(x, f->cos[layer->windowed] + angles, f->sin[layer->windowed] + angles, n_rot, f->m->arch->rope == ROPE_HALVES);
}

void forward_store(const forward *f, const model_layer *layer, int32_t row, int32_t head_kv, const float *key, const float *value) {
    const int32_t pos = f->row_pos[row];
    unsigned char *page = f->batch->groups[f->row_group[row]].pages[pos / KERN_PAGE];
    f->m->ops->kv_store(&f->kv, page + head_offset(f, layer, head_kv), pos % KERN_PAGE, key, value);
}

/* Norm, rotation and scale of one head's query or key, from a projection into `out`. */
static void prepare_head(const forward *f, const model_layer *layer, int32_t row, int32_t head, const float *from,
                         const model_norm_weights *norm, float scale, float *out) {
    const model_config *c = &f->m->config;
    const kern_ops *ops = f->m->ops;
    model_norm_weights own = *norm;
    if (layer->per_head_norms && own.weight) own.weight += (size_t)head * (size_t)c->d_head;
    if (own.present && f->m->arch->qk_norm != QK_NORM_ROW) forward_norm(f, &own, from, c->d_head, out);
    else memcpy(out, from, (size_t)c->d_head * sizeof(float));
    if (c->clamp_qkv > 0.0f) ops->clamp(out, c->clamp_qkv, c->d_head);
    forward_rotate(f, layer, row, out);
    if (kern_kv_type_is_spread(f->kv.k)) ops->hadamard(out, c->d_head);
    if (scale != 1.0f) ops->scale(out, scale, c->d_head);
}

/* What the transform of both sides of a product, or of values and their sum, leaves to be divided by. */
static float spread_factor(kern_kv_type type, int32_t n) { return kern_kv_type_is_spread(type) ? 1.0f / (float)(n & -n) : 1.0f; }

/* The factor on queries at a position: the usual scale, and a temperature that grows with the position. */
static float query_scale(const model_config *c, int32_t pos) {
    if (c->temperature_scale == 0.0f) return c->attention_scale;
    const float periods = floorf((float)pos / (float)c->temperature_length);
    return c->attention_scale * (1.0f + c->temperature_scale * logf(1.0f + periods));
}

static void store_kv(worker *w, const model_layer *layer, int32_t row, int32_t head_kv) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    float *v = f->v + (size_t)row * (size_t)f->n_v_pad + (size_t)head_kv * (size_t)c->d_value;
    prepare_head(f, layer, row, head_kv, f->k + (size_t)row * (size_t)f->n_k_pad + (size_t)head_kv * (size_t)c->d_head, &layer->k_norm,
                 1.0f, w->scratch->key);
    if (c->clamp_qkv > 0.0f) f->m->ops->clamp(v, c->clamp_qkv, c->d_value);
    if (kern_kv_type_is_spread(f->kv.v)) f->m->ops->hadamard(v, c->d_value);
    forward_store(f, layer, row, head_kv, w->scratch->key, v);
}

/* A tile of query rows: some tokens x some heads that share a KV head. */
typedef struct tile {
    int32_t row[KERN_ATTENTION_ROWS], head[KERN_ATTENTION_ROWS];
    int32_t key_begin[KERN_ATTENTION_ROWS], key_end[KERN_ATTENTION_ROWS], position[KERN_ATTENTION_ROWS];
    const float *q[KERN_ATTENTION_ROWS];
    float slope[KERN_ATTENTION_ROWS];
    const float *sinks; /* [n_head] or NULL */
    int32_t first_key, last_key;
    kern_attention a;
} tile;

/* Tile `t` of a group: query rows numbered token-major, heads within, in runs of tile_rows. */
static void tile_make(worker *w, const model_layer *layer, const forward_group *g, int32_t head_kv, int32_t first,
                      int32_t n, tile *t) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const int32_t shared = layer->n_head / layer->n_head_kv;
    const size_t d_pad = (size_t)kern_pad16(c->d_head);
    t->first_key = INT32_MAX;
    t->last_key = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t row = g->row_begin + (first + i) / shared, head = head_kv * shared + (first + i) % shared;
        float *q = w->scratch->query + (size_t)i * d_pad;
        const float scale = query_scale(c, f->row_pos[row]) * spread_factor(f->kv.k, c->d_head);
        if (c->d_latent) forward_latent_query(f, layer, row, head, scale, q);
        else
            prepare_head(f, layer, row, head, f->q + (size_t)row * (size_t)f->n_q_pad + (size_t)head * (size_t)c->d_head, &layer->q_norm,
                         scale, q);
        if (f->m->alibi) t->slope[i] = f->m->alibi[head];
        t->row[i] = row;
        t->head[i] = head;
        t->q[i] = q;
        t->position[i] = f->row_pos[row];
        t->key_end[i] = c->causal ? f->row_pos[row] + 1 : g->pos_begin + g->n_rows;
        t->key_begin[i] = layer->windowed && t->key_end[i] > c->window ? t->key_end[i] - c->window : 0;
        if (t->key_begin[i] < t->first_key) t->first_key = t->key_begin[i];
        if (t->key_end[i] > t->last_key) t->last_key = t->key_end[i];
    }
    t->a = (kern_attention){.n_rows = n, .kv = f->kv, .q = t->q, .key_begin = t->key_begin, .key_end = t->key_end, .pages = g->pages,
                            .offset = head_offset(f, layer, head_kv), .softcap = c->attention_softcap,
                            .alibi_slope = f->m->alibi ? t->slope : NULL, .position = t->position, .widened = w->scratch->page};
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
    const kern_ops *ops = f->m->ops;
    const int32_t d_value = f->m->config.d_value;
    for (int32_t i = 0; i < t->a.n_rows; i++) {
        float *out = f->attention + (size_t)t->row[i] * (size_t)f->n_att_pad + (size_t)t->head[i] * (size_t)d_value;
        ops->attend_finish(total, i, d_value, t->sinks ? &t->sinks[t->head[i]] : NULL, out);
        if (!kern_kv_type_is_spread(f->kv.v)) continue;
        ops->hadamard(out, d_value);
        ops->scale(out, spread_factor(f->kv.v, d_value), d_value);
    }
}

/* All segments of a tile, one after the other, merged in order. */
static void tile_attend(worker *w, const tile *t) {
    const kern_ops *ops = w->f->m->ops;
    kern_softmax *total = &w->scratch->total, *part = &w->scratch->part;
    softmax_reset(total, t->a.n_rows);
    for (int32_t s = t->first_key / KERN_SEGMENT; s * KERN_SEGMENT < t->last_key; s++) {
        ops->attend(&t->a, s * KERN_SEGMENT, segment_end(t, s), part);
        ops->attend_merge(t->a.n_rows, t->a.kv.d_value, total, part);
    }
    tile_finish(w, t, total);
}

static int32_t tiles_of(const model_layer *layer, int32_t n_tokens, int32_t *tile_rows) {
    const int32_t shared = layer->n_head / layer->n_head_kv;
    *tile_rows = shared >= KERN_ATTENTION_ROWS ? KERN_ATTENTION_ROWS : KERN_ATTENTION_ROWS / shared * shared;
    return (n_tokens * shared + *tile_rows - 1) / *tile_rows;
}

/* Keys and values of all rows; for batches with several rows of one sequence. */
static void store_rows(worker *w, const model_layer *layer) {
    int32_t begin, end;
    split_rows(w->f, w->thread, w->f->batch->n_rows, &begin, &end);
    for (int32_t row = begin; row < end; row++)
        for (int32_t h = 0; h < layer->n_head_kv; h++) store_kv(w, layer, row, h);
    step_barrier(w, MODEL_OP_ATTENTION);
}

void forward_attend(worker *w, const model_layer *layer, int32_t index) {
    forward *f = w->f;
    int32_t tile_rows;
    int64_t n_items = 0;
    for (int32_t i = 0; i < f->batch->n_groups; i++) n_items += (int64_t)tiles_of(layer, f->batch->groups[i].n_rows, &tile_rows) * layer->n_head_kv;
    int32_t group = 0;
    int64_t group_first = 0;
    for (int64_t item; (item = pool_take(counter(f, index, PHASE_ATTENTION), 1, n_items)) < n_items;) {
        int64_t group_items;
        const forward_group *g;
        for (;; group++) {
            g = &f->batch->groups[group];
            group_items = (int64_t)tiles_of(layer, g->n_rows, &tile_rows) * layer->n_head_kv;
            if (item < group_first + group_items) break;
            group_first += group_items;
        }
        const int32_t n_query = g->n_rows * (layer->n_head / layer->n_head_kv), n_tiles = (int32_t)(group_items / layer->n_head_kv);
        /* Late positions cost most: hand them out first. */
        const int32_t at = (int32_t)(item - group_first), which = n_tiles - 1 - at / layer->n_head_kv, first = which * tile_rows;
        tile t;
        tile_make(w, layer, g, at % layer->n_head_kv, first, n_query - first < tile_rows ? n_query - first : tile_rows, &t);
        tile_attend(w, &t);
    }
}

/* One KV head of one sequence with one new token. */
static void decode_item(worker *w, const model_layer *layer, const forward_group *g, int32_t head_kv) {
    const int32_t shared = layer->n_head / layer->n_head_kv;
    int32_t tile_rows;
    tiles_of(layer, 1, &tile_rows);
    store_kv(w, layer, g->row_begin, head_kv);
    for (int32_t first = 0; first < shared; first += tile_rows) {
        tile t;
        tile_make(w, layer, g, head_kv, first, shared - first < tile_rows ? shared - first : tile_rows, &t);
        tile_attend(w, &t);
    }
}

/* One segment of one item of a split decode; whoever finishes an item last merges its segments in order. */
static void decode_segment(worker *w, const model_layer *layer, int32_t item, int32_t segment, int32_t first_segment,
                           int32_t last_segment) {
    forward *f = w->f;
    const model_config *c = &f->m->config;
    const forward_group *g = &f->batch->groups[item / layer->n_head_kv];
    const int32_t shared = layer->n_head / layer->n_head_kv;
    kern_softmax *parts = f->parts + (size_t)item * (size_t)f->n_segments_max;
    tile t;
    if (segment == last_segment) store_kv(w, layer, g->row_begin, item % layer->n_head_kv);
    tile_make(w, layer, g, item % layer->n_head_kv, 0, shared, &t);
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
    const int32_t n_items = f->batch->n_groups * layer->n_head_kv;
    /* Few items would leave threads idle over a long context: split them by segment. */
    const bool split = f->n_threads > 1 && n_items < 2 * f->n_threads && layer->n_head / layer->n_head_kv <= KERN_ATTENTION_ROWS;
    if (!split) {
        for (int64_t i; (i = pool_take(counter(f, index, PHASE_ATTENTION), 1, n_items)) < n_items;)
            decode_item(w, layer, &f->batch->groups[i / layer->n_head_kv], (int32_t)(i % layer->n_head_kv));
        return;
    }
    int64_t n_pieces = 0, first_piece = 0;
    int32_t first, last, item = 0;
    for (int32_t i = 0; i < n_items; i++) {
        segments_of(f, layer, &f->batch->groups[i / layer->n_head_kv], &first, &last);
        n_pieces += last - first + 1;
    }
    for (int64_t piece; (piece = pool_take(counter(f, index, PHASE_ATTENTION), 1, n_pieces)) < n_pieces;) {
        for (;; item++) {
            segments_of(f, layer, &f->batch->groups[item / layer->n_head_kv], &first, &last);
            if (piece < first_piece + last - first + 1) break;
            first_piece += last - first + 1;
        }
        decode_segment(w, layer, item, first + (int32_t)(piece - first_piece), first, last);
    }
}

void forward_attention_prepare(forward *f, const model_layer *layer) {
    const int32_t n_items = f->batch->n_groups * layer->n_head_kv;
    if (layer->kv_down.layout || !one_token_each(f->batch) || n_items >= 2 * f->n_threads) return;
    for (int32_t i = 0; i < n_items; i++) {
        int32_t first, last;
        segments_of(f, layer, &f->batch->groups[i / layer->n_head_kv], &first, &last);
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
        forward_norm(f, &layer->q_norm, q, layer->n_head * c->d_head, q);
        forward_norm(f, &layer->k_norm, k, layer->n_head_kv * c->d_head, k);
    }
    step_barrier(w, MODEL_OP_ATTENTION);
}

void forward_attention(worker *w, const model_layer *layer, int32_t index) {
    norm_projections(w, layer);
    if (one_token_each(w->f->batch)) {
        attention_decode(w, layer, index);
        return;
    }
    store_rows(w, layer);
    forward_attend(w, layer, index);
}
