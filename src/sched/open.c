/* weir_engine_open: the scheduler over the real engine. The only file here that knows engine.h. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "engine/engine.h"
#include "kern/kern.h"
#include "sched/sched.h"

typedef struct real_backend {
    weir_model *model;
    engine *e;
    engine_item *items; /* [engine_n_parallel] */
    char *prefix_file;  /* where the prefix tree is kept between runs; NULL = nowhere */
} real_backend;

static int seq_open(void *context, uint64_t salt, void **seq, weir_error *err) {
    real_backend *b = context;
    engine_seq *s = NULL;
    int rc = engine_seq_begin(b->e, salt, &s, err);
    *seq = s;
    return rc;
}

static int seq_reserve(void *context, void *seq, int32_t n_tokens, weir_error *err) {
    (void)context;
    return engine_seq_reserve(seq, n_tokens, err);
}

static int32_t seq_adopt(void *context, void *seq, const int32_t *tokens, int32_t n_tok) {
    (void)context;
    return engine_seq_adopt(seq, tokens, n_tok);
}

static void seq_keep(void *context, void *seq, const int32_t *tokens, int32_t n_tok, bool last) {
    (void)context;
    engine_seq_keep(seq, tokens, n_tok, last);
}

static void seq_close(void *context, void *seq) {
    real_backend *b = context;
    engine_seq *s = seq;
    engine_seq_close(b->e, &s);
}

static int step(void *context, const sched_item *items, int32_t n_items, sched_abort_fn abort, void *user, weir_error *err) {
    real_backend *b = context;
    FAIL_IF(n_items > engine_n_parallel(b->e), err, WEIR_E_INVALID, NULL, "%d items in a step of at most %d", n_items,
            engine_n_parallel(b->e));
    for (int32_t i = 0; i < n_items; i++)
        b->items[i] = (engine_item){.seq = items[i].seq, .tokens = items[i].tokens, .n_tok = items[i].n_tok,
                                    .n_logits = items[i].n_logits};
    return engine_step(b->e, b->items, n_items, abort, user, err);
}

static const float *logits(void *context, int32_t i, int32_t row) { return engine_logits(((real_backend *)context)->e, i, row); }

static bool seq_can_truncate(void *context, void *seq, int32_t n_tokens) {
    (void)context;
    return engine_seq_can_truncate(seq, n_tokens);
}

static void seq_truncate(void *context, void *seq, int32_t n_tokens) {
    (void)context;
    engine_seq_truncate(seq, n_tokens);
}

static int64_t kv_tokens_used(void *context) { return engine_kv_tokens_used(((real_backend *)context)->e); }

static int64_t kv_tokens_kept(void *context) { return engine_kv_tokens_kept(((real_backend *)context)->e); }

static const char *piece(void *context, int32_t token, bool special, size_t *n_bytes) {
    return weir_token_bytes(((real_backend *)context)->model, token, special, n_bytes);
}

static bool is_eog(void *context, int32_t token) { return weir_token_is_eog(((real_backend *)context)->model, token); }

static int64_t now_us(void *context) {
    (void)context;
    return clock_now_us();
}

static void save_prefixes(const real_backend *b) {
    weir_error err = {0};
    const int64_t start_us = clock_now_us();
    if (engine_prefix_save(b->e, b->prefix_file, &err) < 0) {
        log_write(LOG_WARN, "the prefix cache is not kept: %s: %s", err.place, err.message);
        return;
    }
    const log_field fields[] = {LOG_TEXT("path", b->prefix_file), LOG_NUMBER("n_tokens", (double)engine_kv_tokens_kept(b->e)),
                                LOG_NUMBER("ms", (double)(clock_now_us() - start_us) / 1e3)};
    log_event(LOG_INFO, "prefix cache written", fields, 3);
}

/* A file that is not to be used is no reason not to start. */
static void load_prefixes(const real_backend *b) {
    weir_error err = {0};
    const int64_t start_us = clock_now_us();
    const int rc = engine_prefix_load(b->e, b->prefix_file, &err);
    if (rc < 0) log_write(LOG_WARN, "the prefix cache is not used: %s: %s", err.place, err.message);
    if (rc <= 0) return;
    const log_field fields[] = {LOG_TEXT("path", b->prefix_file), LOG_NUMBER("n_tokens", (double)engine_kv_tokens_kept(b->e)),
                                LOG_NUMBER("ms", (double)(clock_now_us() - start_us) / 1e3)};
    log_event(LOG_INFO, "prefix cache read", fields, 3);
}

static void backend_close(void *context) {
    real_backend *b = context;
    if (b->prefix_file) save_prefixes(b);
    free(b->prefix_file);
    engine_close(&b->e);
    free(b->items);
    free(b);
}

int weir_engine_open(weir_engine **out, weir_model *model, const weir_engine_options *options, weir_error *err) {
    *out = NULL;
    real_backend *b = calloc(1, sizeof *b);
    FAIL_IF(b == NULL, err, WEIR_E_NOMEM, NULL, "no memory for the engine");
    b->model = model;
    int rc = engine_open(&b->e, model, options, err);
    if (rc == 0 && !engine_can_generate(b->e))
        rc = error_set(err, WEIR_E_UNSUPPORTED, weir_model_get_info(model)->path,
                       "the model computes embeddings (architecture %s); it cannot generate text", weir_model_get_info(model)->architecture);
    if (rc == 0) {
        b->items = calloc((size_t)engine_n_parallel(b->e), sizeof *b->items);
        if (b->items == NULL) rc = error_set(err, WEIR_E_NOMEM, NULL, "no memory for the engine");
    }
    if (rc == 0 && options && options->prefix_cache_file && !options->no_prefix_cache) {
        load_prefixes(&(real_backend){.e = b->e, .prefix_file = (char *)options->prefix_cache_file});
        b->prefix_file = strdup(options->prefix_cache_file);
        if (b->prefix_file == NULL) rc = error_set(err, WEIR_E_NOMEM, NULL, "no memory for the engine");
    }
    if (rc != 0) {
        backend_close(b);
        return rc;
    }
    weir_engine_options sizes = options ? *options : (weir_engine_options){0};
    sizes.n_parallel = engine_n_parallel(b->e);
    sizes.n_batch = engine_n_batch(b->e);
    const sched_backend backend = {
        .context = b,
        .n_vocab = weir_model_get_info(model)->n_vocab,
        .n_ctx = engine_n_ctx(b->e),
        .n_logits = engine_n_logits(b->e),
        .kv_tokens_total = engine_kv_tokens_total(b->e),
        .page_tokens = KERN_PAGE,
        .adopts_at_ends = engine_state_bytes(b->e) > 0,
        .cache_type_k = kern_kv_type_name(engine_kv(b->e)->k),
        .cache_type_v = kern_kv_type_name(engine_kv(b->e)->v),
        .seq_open = seq_open,
        .seq_reserve = seq_reserve,
        .seq_adopt = seq_adopt,
        .seq_keep = seq_keep,
        .seq_close = seq_close,
        .step = step,
        .logits = logits,
        .seq_can_truncate = seq_can_truncate,
        .seq_truncate = seq_truncate,
        .kv_tokens_used = kv_tokens_used,
        .kv_tokens_kept = kv_tokens_kept,
        .piece = piece,
        .is_eog = is_eog,
        .now_us = now_us,
        .close = backend_close,
    };
    return sched_open(out, &backend, &sizes, err);
}
