/* See engine.h. */
#include "engine/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/memory.h"
#include "engine/engine_internal.h"

/* Rows of logits for drafts, in one step over all sequences. */
enum { DEFAULT_PARALLEL = 64, DEFAULT_BATCH = 512, DRAFT_ROWS = 32 };

static void *map_zeroed(size_t n_bytes) {
    void *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    (void)madvise(memory, n_bytes, MADV_HUGEPAGE); /* heads are read from places far apart */
    return memory;
}

/* Room for the states of n_parallel sequences, which are made fewer where memory asks for it. */
static int choose_states(engine *e, uint64_t available, weir_error *err) {
    e->state_bytes = model_state_bytes(&e->model->config);
    if (e->state_bytes == 0) return 0;
    FAIL_IF(!checked_round_up(e->state_bytes, KERN_ALIGN, &e->state_stride), err, WEIR_E_NOMEM, "recurrent state", "the size overflows");
    const uint64_t pairs = available / 4 / e->state_stride / 2;
    if ((uint64_t)e->n_parallel > pairs) e->n_parallel = pairs ? (int32_t)pairs : 1;
    FAIL_IF(!checked_mul((size_t)e->n_parallel * 2 + 1, e->state_stride, &e->states_bytes) || e->states_bytes > available, err, WEIR_E_NOMEM,
            "recurrent state", "%.1f MB for one sequence and its next state; %.1f MB of memory are available",
            (double)e->state_stride * 3 / 1e6, (double)available / 1e6);
    return 0;
}

/* A side of the KV cache; `n` values a head. */
static int check_kv_type(const engine *e, weir_kv_type type, int32_t n, const char *side, weir_error *err) {
    const char *name = type < WEIR_N_KV_TYPES ? kern_kv_type_name((kern_kv_type)type) : NULL;
    FAIL_IF(name == NULL, err, WEIR_E_INVALID, side, "there is no KV cache type %d", (int)type);
    FAIL_IF(e->model->config.kv_f32 && type != WEIR_KV_F16 && type != WEIR_KV_F32, err, WEIR_E_UNSUPPORTED, side,
            "%s is not possible: a model of architecture %s keeps them in f32", name, e->model->info.architecture);
    FAIL_IF(!kern_kv_type_fits((kern_kv_type)type, n), err, WEIR_E_UNSUPPORTED, side,
            "%s is not possible: the model's heads have %d values, which are no whole blocks of %d; f16, bf16 and f32 are possible", name, n,
            KERN_BLOCK);
    return 0;
}

_Static_assert((int)WEIR_KV_F16 == KERN_KV_F16 && (int)WEIR_KV_BF16 == KERN_KV_BF16 && (int)WEIR_KV_Q8_0 == KERN_KV_Q8_0 &&
                   (int)WEIR_KV_Q4_0 == KERN_KV_Q4_0 && (int)WEIR_KV_F32 == KERN_KV_F32 && (int)WEIR_N_KV_TYPES == KERN_N_KV_TYPES,
               "cache types are numbered alike");

static int choose_kv(engine *e, const weir_engine_options *o, weir_error *err) {
    const model_config *c = &e->model->config;
    TRY(check_kv_type(e, o->cache_type_k, c->d_head, "keys of the KV cache", err));
    TRY(check_kv_type(e, o->cache_type_v, c->d_value, "values of the KV cache", err));
    e->kv = model_kv(c, (kern_kv_type)o->cache_type_k, (kern_kv_type)o->cache_type_v);
    return 0;
}

/* Context and slab size from the options, the model and the free memory. */
static int choose_sizes(engine *e, const weir_engine_options *o, weir_error *err) {
    const model_config *c = &e->model->config;
    TRY(choose_kv(e, o, err));
    e->page_bytes = model_page_bytes(c, &e->kv);
    if (e->page_bytes == 0) e->page_bytes = KERN_ALIGN; /* no attention: pages only count tokens */
    FAIL_IF(o->n_ctx < 0 || o->n_parallel < 0 || o->n_batch < 0 || o->kv_cache_bytes < 0, err, WEIR_E_INVALID, "options",
            "sizes must not be negative");
    e->n_parallel = o->n_parallel ? o->n_parallel : DEFAULT_PARALLEL;
    const uint64_t available = memory_available();
    TRY(choose_states(e, available, err));
    e->n_batch = o->n_batch ? o->n_batch : DEFAULT_BATCH;
    if (e->n_batch < e->n_parallel) e->n_batch = e->n_parallel;
    /* Memory of rows that no step ever uses is never touched. */
    e->n_logits = e->n_parallel + (o->n_draft < 0 ? 0 : DRAFT_ROWS);
    if (e->n_logits > e->n_batch) e->n_logits = e->n_batch;
    e->n_ctx = o->n_ctx ? o->n_ctx : c->n_ctx_train;
    if (e->model->positions && e->n_ctx > c->n_ctx_train) e->n_ctx = c->n_ctx_train; /* no more positions were learned */
    /* Tokens that see the whole text need all of it in one step. */
    if (!c->causal && !o->n_batch && e->n_batch < e->n_ctx) e->n_batch = e->n_ctx;
    if (!c->causal && e->n_ctx > e->n_batch) e->n_ctx = e->n_batch;
    uint64_t n_bytes = (uint64_t)o->kv_cache_bytes;
    if (n_bytes == 0) {
        /* Requests that name no length may each need a whole context; memory is only taken as pages are used. */
        uint64_t most = available / 4, one = (uint64_t)pages_for(e->n_ctx) * e->page_bytes;
        if (__builtin_mul_overflow(one, (uint64_t)e->n_parallel, &n_bytes)) n_bytes = UINT64_MAX;
        /* An explicit context asks for at least one sequence of that length. */
        if (n_bytes > most) n_bytes = o->n_ctx && most < one ? one : most;
    }
    FAIL_IF(n_bytes > available, err, WEIR_E_NOMEM, "KV cache", "%.1f MB are needed, %.1f MB of memory are available",
            (double)n_bytes / 1e6, (double)available / 1e6);
    uint64_t n_pages = n_bytes / e->page_bytes;
    if (n_pages > INT32_MAX / KERN_PAGE) n_pages = INT32_MAX / KERN_PAGE;
    FAIL_IF(n_pages < 1, err, WEIR_E_INVALID, "KV cache", "%llu bytes do not hold one page of %d tokens (%zu bytes)",
            (unsigned long long)n_bytes, KERN_PAGE, e->page_bytes);
    if (e->n_ctx > (int32_t)n_pages * KERN_PAGE) e->n_ctx = (int32_t)n_pages * KERN_PAGE;
    /* As much for the states of kept prefixes as for the states of all sequences, or an eighth of the memory. */
    e->most_snapshot_bytes = e->states_bytes > available / 8 ? e->states_bytes : available / 8;
    FAIL_IF(!checked_mul((size_t)n_pages, e->page_bytes, &e->slab_bytes), err, WEIR_E_NOMEM, "KV cache", "the size overflows");
    return pages_open(&e->pages, (int32_t)n_pages, KERN_PAGE, engine_drop_snapshot, e, err);
}

static int allocate_states(engine *e, weir_error *err) {
    const size_t n_slots = (size_t)e->n_parallel * 2;
    if (e->state_bytes == 0) return 0;
    e->states = map_zeroed(e->states_bytes);
    e->free_states = malloc(n_slots * sizeof *e->free_states);
    e->next_states = malloc((size_t)e->n_parallel * sizeof *e->next_states);
    FAIL_IF(!e->states || !e->free_states || !e->next_states, err, WEIR_E_NOMEM, "recurrent state", "%.1f MB are not to be had: %s",
            (double)e->states_bytes / 1e6, strerror(errno));
    for (size_t i = 0; i < n_slots; i++) e->free_states[e->n_free_states++] = e->states + (n_slots - i) * e->state_stride;
    return 0;
}

static int allocate(engine *e, weir_error *err) {
    TRY(allocate_states(e, err));
    e->slab = map_zeroed(e->slab_bytes);
    FAIL_IF(e->slab == NULL, err, WEIR_E_NOMEM, "KV cache", "%.1f MB are not to be had: %s", (double)e->slab_bytes / 1e6, strerror(errno));
    e->logits_stride = (size_t)kern_pad16(e->model->config.n_vocab);
    e->logits_bytes = (size_t)e->n_logits * e->logits_stride * sizeof(float);
    e->logits = map_zeroed(e->logits_bytes);
    e->logits_of = calloc((size_t)e->n_parallel + 1, sizeof *e->logits_of);
    e->tokens = malloc((size_t)e->n_batch * sizeof *e->tokens);
    e->output_rows = malloc((size_t)e->n_batch * sizeof *e->output_rows);
    e->groups = malloc((size_t)e->n_parallel * sizeof *e->groups);
    FAIL_IF(!e->logits || !e->logits_of || !e->tokens || !e->output_rows || !e->groups, err, WEIR_E_NOMEM, NULL,
            "no memory for the batch");
    return 0;
}

int engine_open(engine **out, const weir_model *model, const weir_engine_options *options, weir_error *err) {
    static const weir_engine_options defaults;
    *out = NULL;
    FAIL_IF(model->vocab_only, err, WEIR_E_INVALID, model->info.path, "the model was opened without its weights");
    engine *e = calloc(1, sizeof *e);
    FAIL_IF(e == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the engine");
    e->model = model;
    if (options == NULL) options = &defaults;
    int rc = choose_sizes(e, options, err);
    if (rc == 0) rc = allocate(e, err);
    if (rc == 0) rc = pool_open(&e->threads, options->n_threads > 0 ? options->n_threads : cpu_count_available(), err);
    if (rc == 0) rc = forward_open(&e->pass, model, e->threads, &e->kv, e->n_batch, e->n_batch, e->n_ctx, err);
    if (rc != 0) {
        engine_close(&e);
        return rc;
    }
    *out = e;
    return 0;
}

void engine_close(engine **ee) {
    engine *e = *ee;
    if (e == NULL) return;
    forward_close(&e->pass);
    pool_close(&e->threads);
    if (e->slab) munmap(e->slab, e->slab_bytes);
    if (e->states) munmap(e->states, e->states_bytes);
    free(e->free_states);
    free(e->next_states);
    if (e->logits) munmap(e->logits, e->logits_bytes);
    pages_close(&e->pages);
    free(e->logits_of);
    free(e->tokens);
    free(e->output_rows);
    free(e->groups);
    free(e);
    *ee = NULL;
}

int32_t engine_n_ctx(const engine *e) { return e->n_ctx; }
int32_t engine_n_batch(const engine *e) { return e->n_batch; }
bool engine_can_generate(const engine *e) { return model_generates(e->model); }
int32_t engine_n_parallel(const engine *e) { return e->n_parallel; }
int32_t engine_n_logits(const engine *e) { return e->n_logits; }
int32_t engine_n_threads(const engine *e) { return pool_n_threads(e->threads); }
const kern_kv *engine_kv(const engine *e) { return &e->kv; }
int64_t engine_kv_tokens_total(const engine *e) { return (int64_t)(e->slab_bytes / e->page_bytes) * KERN_PAGE; }
int64_t engine_kv_tokens_used(const engine *e) { return (int64_t)pages_n_used(e->pages) * KERN_PAGE; }
int64_t engine_kv_tokens_kept(const engine *e) { return (int64_t)pages_n_kept(e->pages) * KERN_PAGE; }

size_t engine_state_bytes(const engine *e) { return e->state_bytes; }

static int check_items(engine *e, const engine_item *items, int32_t n_items, weir_error *err) {
    int64_t n_rows = 0, n_logits = 0;
    FAIL_IF(!model_generates(e->model), err, WEIR_E_UNSUPPORTED, e->model->info.path,
            "the model computes embeddings (architecture %s); it cannot generate text", e->model->info.architecture);
    FAIL_IF(n_items < 1 || n_items > e->n_parallel, err, WEIR_E_INVALID, NULL, "%d items in a step; 1 to %d are possible", n_items,
            e->n_parallel);
    for (int32_t i = 0; i < n_items; i++) {
        const engine_item *item = &items[i];
        n_rows += item->n_tok;
        n_logits += item->n_logits;
        FAIL_IF(item->n_tok < 1 || item->n_tok > e->n_batch || n_rows > e->n_batch, err, WEIR_E_INVALID, NULL,
                "a step holds 1 to %d tokens", e->n_batch);
        FAIL_IF(item->n_logits < 0 || item->n_logits > item->n_tok || n_logits > e->n_logits, err, WEIR_E_INVALID, NULL,
                "%d rows of logits of %d tokens; a step has at most %d", item->n_logits, item->n_tok, e->n_logits);
        FAIL_IF(item->n_tok > item->seq->n_pages * KERN_PAGE - item->seq->length, err, WEIR_E_INVALID, NULL,
                "%d tokens after %d exceed the sequence's room of %d", item->n_tok, item->seq->length, item->seq->n_pages * KERN_PAGE);
        TRY(engine_seq_own_pages(item->seq, item->n_tok, err));
        for (int32_t t = 0; t < item->n_tok; t++)
            FAIL_IF(item->tokens[t] < 0 || item->tokens[t] >= e->model->config.n_vocab, err, WEIR_E_INVALID, NULL,
                    "token %d is outside the vocabulary of %d", item->tokens[t], e->model->config.n_vocab);
    }
    return 0;
}

/* The group of an item, with a slot for its next state. */
static forward_group make_group(engine *e, const engine_item *item, int32_t i, int32_t row_begin) {
    forward_group g = {.row_begin = row_begin, .n_rows = item->n_tok, .pos_begin = item->seq->length, .pages = item->seq->pages};
    if (e->state_bytes == 0) return g;
    g.state_in = item->seq->state ? item->seq->state : e->states;
    g.state_out = e->next_states[i] = e->free_states[--e->n_free_states];
    return g;
}

/* Runs a batch made of the items; on success their sequences advance. */
static int run_batch(engine *e, const forward_batch *batch, const engine_item *items, int32_t n_items, weir_error *err) {
    const int rc = forward_run(e->pass, batch, err);
    for (int32_t i = 0; e->state_bytes && i < n_items; i++) {
        if (rc == 0) engine_set_state(items[i].seq, e->next_states[i]);
        else e->free_states[e->n_free_states++] = e->next_states[i];
    }
    for (int32_t i = 0; rc == 0 && i < n_items; i++) items[i].seq->length += items[i].n_tok;
    return rc;
}

int engine_step(engine *e, const engine_item *items, int32_t n_items, bool (*abort)(void *user), void *user, weir_error *err) {
    TRY(check_items(e, items, n_items, err));
    forward_batch batch = {.tokens = e->tokens, .groups = e->groups, .n_groups = n_items, .output_rows = e->output_rows,
                           .logits = e->logits, .logits_stride = e->logits_stride, .abort = abort, .abort_user = user};
    for (int32_t i = 0; i < n_items; i++) {
        const engine_item *item = &items[i];
        e->groups[i] = make_group(e, item, i, batch.n_rows);
        memcpy(e->tokens + batch.n_rows, item->tokens, (size_t)item->n_tok * sizeof *e->tokens);
        batch.n_rows += item->n_tok;
        e->logits_of[i] = batch.n_outputs;
        for (int32_t n = item->n_logits; n > 0; n--) e->output_rows[batch.n_outputs++] = batch.n_rows - n;
    }
    for (int32_t i = n_items; i <= e->n_parallel; i++) e->logits_of[i] = batch.n_outputs;
    return run_batch(e, &batch, items, n_items, err);
}

const float *engine_logits(const engine *e, int32_t i, int32_t row) {
    const int32_t at = e->logits_of[i] + row;
    return row < 0 || at >= e->logits_of[i + 1] ? NULL : e->logits + (size_t)at * e->logits_stride;
}

int engine_step_all(engine *e, const engine_item *item, float *out, weir_error *err) {
    TRY(check_items(e, item, 1, err));
    for (int32_t i = 0; i < item->n_tok; i++) e->output_rows[i] = i;
    e->groups[0] = make_group(e, item, 0, 0);
    forward_batch batch = {.tokens = item->tokens, .n_rows = item->n_tok, .groups = e->groups, .n_groups = 1,
                           .output_rows = e->output_rows, .n_outputs = item->n_tok, .logits = out, .logits_stride = e->logits_stride};
    return run_batch(e, &batch, item, 1, err);
}

int engine_measure(engine *e, weir_error *err) { return forward_measure(e->pass, err); }

void engine_measured(const engine *e, double ns[MODEL_N_OPS]) { forward_measured(e->pass, ns); }

/* ---- embeddings ------------------------------------------------------------------------------------------------------- */

int32_t engine_embedding_size(const engine *e, engine_pooling pooling) {
    const model_config *c = &e->model->config;
    if (pooling == ENGINE_POOLING_OF_MODEL) pooling = (engine_pooling)c->pooling;
    if (pooling == ENGINE_POOLING_NONE) return 0;
    return pooling == ENGINE_POOLING_RANK ? model_n_classes(e->model) : c->d_model;
}

/* States of all tokens, in steps of n_batch, which hold the whole text where its tokens see all of it. */
static int compute_states(engine *e, engine_seq *seq, const int32_t *tokens, int32_t n_tok, float *states, weir_error *err) {
    const size_t d = (size_t)e->model->config.d_model;
    for (int32_t at = 0; at < n_tok; at += e->n_batch) {
        const engine_item item = {.seq = seq, .tokens = tokens + at, .n_tok = n_tok - at < e->n_batch ? n_tok - at : e->n_batch};
        for (int32_t i = 0; i < item.n_tok; i++) e->output_rows[i] = i;
        e->groups[0] = make_group(e, &item, 0, 0);
        const forward_batch batch = {.tokens = item.tokens, .n_rows = item.n_tok, .groups = e->groups, .n_groups = 1,
                                     .output_rows = e->output_rows, .n_outputs = item.n_tok, .states = states + (size_t)at * d};
        TRY(run_batch(e, &batch, &item, 1, err));
    }
    return 0;
}

static void pool_states(engine *e, const float *states, int32_t n_tok, engine_pooling pooling, float *pooled) {
    const kern_ops *ops = e->model->ops;
    const int32_t d = e->model->config.d_model;
    const bool last = pooling == ENGINE_POOLING_LAST || (pooling == ENGINE_POOLING_RANK && e->model->config.causal);
    const float *one = states + (last ? (size_t)(n_tok - 1) * (size_t)d : 0);
    if (pooling == ENGINE_POOLING_RANK) {
        forward_classify(e->pass, one, pooled);
        return;
    }
    memcpy(pooled, one, (size_t)d * sizeof(float));
    if (pooling != ENGINE_POOLING_MEAN) return;
    for (int32_t i = 1; i < n_tok; i++) ops->add(pooled, states + (size_t)i * (size_t)d, d);
    ops->scale(pooled, 1.0f / (float)n_tok, d);
}

static int check_text(const engine *e, const int32_t *tokens, int32_t n_tok, engine_pooling pooling, weir_error *err) {
    FAIL_IF(pooling < ENGINE_POOLING_NONE || pooling > ENGINE_POOLING_RANK, err, WEIR_E_INVALID, NULL, "there is no pooling %d", (int)pooling);
    FAIL_IF(pooling != ENGINE_POOLING_NONE && engine_embedding_size(e, pooling) == 0, err, WEIR_E_INVALID, NULL,
            "the model has no classifier to rank by");
    FAIL_IF(n_tok < 1, err, WEIR_E_INVALID, NULL, "a text without tokens has no embedding");
    for (int32_t i = 0; i < n_tok; i++)
        FAIL_IF(tokens[i] < 0 || tokens[i] >= e->model->config.n_vocab, err, WEIR_E_INVALID, NULL, "token %d is outside the vocabulary of %d",
                tokens[i], e->model->config.n_vocab);
    return 0;
}

int engine_embed(engine *e, const int32_t *tokens, int32_t n_tok, engine_pooling pooling, float *states, float *pooled, weir_error *err) {
    engine_seq *seq = NULL;
    if (pooling == ENGINE_POOLING_OF_MODEL) pooling = (engine_pooling)e->model->config.pooling;
    TRY(check_text(e, tokens, n_tok, pooling, err));
    TRY(engine_seq_open(e, n_tok, &seq, err));
    float *own = states ? states : malloc((size_t)n_tok * (size_t)e->model->config.d_model * sizeof *own);
    int rc = own ? compute_states(e, seq, tokens, n_tok, own, err)
                 : error_set(err, WEIR_E_NOMEM, NULL, "no memory for the states of %d tokens", n_tok);
    if (rc == 0 && pooling != ENGINE_POOLING_NONE && pooled) pool_states(e, own, n_tok, pooling, pooled);
    if (own != states) free(own);
    engine_seq_close(e, &seq);
    return rc;
}
