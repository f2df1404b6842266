/* See engine.h. */
#include "engine/engine.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/pool.h"

enum { DEFAULT_PARALLEL = 64, DEFAULT_BATCH = 512 };

struct engine_seq {
    int32_t length, n_pages;
    unsigned char *pages[]; /* [n_pages] */
};

struct engine {
    const weir_model *model;
    pool *threads;
    forward *pass;
    int32_t n_ctx, n_batch, n_parallel;

    unsigned char *slab; /* [n_pages][page_bytes] */
    size_t slab_bytes, page_bytes;
    int32_t n_pages;
    int32_t *free_pages; /* stack of page numbers */
    int32_t n_free;
    atomic_int n_used;   /* pages; read by other threads */

    float *logits;       /* [n_parallel][logits_stride] */
    size_t logits_stride, logits_bytes;
    int32_t *logits_of;  /* [n_parallel] row of logits of an item, or -1 */

    /* A step's batch. */
    int32_t *tokens, *output_rows;
    forward_group *groups;
};

static int32_t pages_for(int32_t n_tokens) { return (n_tokens + KERN_PAGE - 1) / KERN_PAGE; }

static void *map_zeroed(size_t n_bytes) {
    void *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* Context and slab size from the options, the model and the free memory. */
static int choose_sizes(engine *e, const weir_engine_options *o, weir_error *err) {
    const model_config *c = &e->model->config;
    e->page_bytes = model_page_bytes(c);
    FAIL_IF(o->n_ctx < 0 || o->n_parallel < 0 || o->n_batch < 0 || o->kv_cache_bytes < 0, err, WEIR_E_INVALID, "options",
            "sizes must not be negative");
    e->n_parallel = o->n_parallel ? o->n_parallel : DEFAULT_PARALLEL;
    e->n_batch = o->n_batch ? o->n_batch : DEFAULT_BATCH;
    if (e->n_batch < e->n_parallel) e->n_batch = e->n_parallel;
    e->n_ctx = o->n_ctx ? o->n_ctx : c->n_ctx_train;
    const uint64_t available = memory_available();
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
    e->n_pages = (int32_t)n_pages;
    if (e->n_ctx > e->n_pages * KERN_PAGE) e->n_ctx = e->n_pages * KERN_PAGE;
    return 0;
}

static int allocate(engine *e, weir_error *err) {
    FAIL_IF(!checked_mul((size_t)e->n_pages, e->page_bytes, &e->slab_bytes), err, WEIR_E_NOMEM, "KV cache", "the size overflows");
    e->slab = map_zeroed(e->slab_bytes);
    FAIL_IF(e->slab == NULL, err, WEIR_E_NOMEM, "KV cache", "%.1f MB are not to be had: %s", (double)e->slab_bytes / 1e6, strerror(errno));
    e->logits_stride = (size_t)kern_pad16(e->model->config.n_vocab);
    e->logits_bytes = (size_t)e->n_parallel * e->logits_stride * sizeof(float);
    e->logits = map_zeroed(e->logits_bytes);
    e->free_pages = malloc((size_t)e->n_pages * sizeof *e->free_pages);
    e->logits_of = malloc((size_t)e->n_parallel * sizeof *e->logits_of);
    e->tokens = malloc((size_t)e->n_batch * sizeof *e->tokens);
    e->output_rows = malloc((size_t)e->n_batch * sizeof *e->output_rows);
    e->groups = malloc((size_t)e->n_parallel * sizeof *e->groups);
    FAIL_IF(!e->logits || !e->free_pages || !e->logits_of || !e->tokens || !e->output_rows || !e->groups, err, WEIR_E_NOMEM, NULL,
            "no memory for the batch");
    e->n_free = e->n_pages;
    for (int32_t i = 0; i < e->n_pages; i++) e->free_pages[i] = e->n_pages - 1 - i;
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
    if (rc == 0) rc = forward_open(&e->pass, model, e->threads, e->n_batch, e->n_batch, e->n_ctx, err);
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
    if (e->logits) munmap(e->logits, e->logits_bytes);
    free(e->free_pages);
    free(e->logits_of);
    free(e->tokens);
    free(e->output_rows);
    free(e->groups);
    free(e);
    *ee = NULL;
}

int32_t engine_n_ctx(const engine *e) { return e->n_ctx; }
int32_t engine_n_batch(const engine *e) { return e->n_batch; }
int32_t engine_n_parallel(const engine *e) { return e->n_parallel; }
int32_t engine_n_threads(const engine *e) { return pool_n_threads(e->threads); }
int64_t engine_kv_tokens_total(const engine *e) { return (int64_t)e->n_pages * KERN_PAGE; }
int64_t engine_kv_tokens_used(const engine *e) { return (int64_t)atomic_load(&((engine *)e)->n_used) * KERN_PAGE; }

int engine_seq_open(engine *e, int32_t n_tokens, engine_seq **out, weir_error *err) {
    *out = NULL;
    FAIL_IF(n_tokens < 1 || n_tokens > e->n_ctx, err, WEIR_E_CONTEXT, NULL, "%d tokens do not fit the context of %d", n_tokens, e->n_ctx);
    const int32_t n_pages = pages_for(n_tokens);
    FAIL_IF(n_pages > e->n_free, err, WEIR_E_LIMIT, "KV cache", "%d pages are needed, %d are free", n_pages, e->n_free);
    engine_seq *s = malloc(sizeof *s + (size_t)n_pages * sizeof s->pages[0]);
    FAIL_IF(s == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a sequence");
    s->length = 0;
    s->n_pages = n_pages;
    for (int32_t i = 0; i < n_pages; i++) s->pages[i] = e->slab + (size_t)e->free_pages[--e->n_free] * e->page_bytes;
    atomic_store(&e->n_used, e->n_pages - e->n_free);
    *out = s;
    return 0;
}

void engine_seq_close(engine *e, engine_seq **ss) {
    engine_seq *s = *ss;
    if (s == NULL) return;
    for (int32_t i = s->n_pages; i-- > 0;) e->free_pages[e->n_free++] = (int32_t)((size_t)(s->pages[i] - e->slab) / e->page_bytes);
    atomic_store(&e->n_used, e->n_pages - e->n_free);
    free(s);
    *ss = NULL;
}

int32_t engine_seq_length(const engine_seq *s) { return s->length; }

bool engine_seq_can_truncate(const engine_seq *s, int32_t length) { return length >= 0 && length <= s->length; }

void engine_seq_truncate(engine_seq *s, int32_t length) {
    if (engine_seq_can_truncate(s, length)) s->length = length;
}

static int check_items(const engine *e, const engine_item *items, int32_t n_items, weir_error *err) {
    int64_t n_rows = 0;
    FAIL_IF(n_items < 1 || n_items > e->n_parallel, err, WEIR_E_INVALID, NULL, "%d items in a step; 1 to %d are possible", n_items,
            e->n_parallel);
    for (int32_t i = 0; i < n_items; i++) {
        const engine_item *item = &items[i];
        n_rows += item->n_tok;
        FAIL_IF(item->n_tok < 1 || item->n_tok > e->n_batch || n_rows > e->n_batch, err, WEIR_E_INVALID, NULL,
                "a step holds 1 to %d tokens", e->n_batch);
        FAIL_IF(item->n_tok > item->seq->n_pages * KERN_PAGE - item->seq->length, err, WEIR_E_INVALID, NULL,
                "%d tokens after %d exceed the sequence's room of %d", item->n_tok, item->seq->length, item->seq->n_pages * KERN_PAGE);
        for (int32_t t = 0; t < item->n_tok; t++)
            FAIL_IF(item->tokens[t] < 0 || item->tokens[t] >= e->model->config.n_vocab, err, WEIR_E_INVALID, NULL,
                    "token %d is outside the vocabulary of %d", item->tokens[t], e->model->config.n_vocab);
    }
    return 0;
}

int engine_step(engine *e, const engine_item *items, int32_t n_items, bool (*abort)(void *user), void *user, weir_error *err) {
    TRY(check_items(e, items, n_items, err));
    forward_batch batch = {.tokens = e->tokens, .groups = e->groups, .n_groups = n_items, .output_rows = e->output_rows,
                           .logits = e->logits, .logits_stride = e->logits_stride, .abort = abort, .abort_user = user};
    for (int32_t i = 0; i < n_items; i++) {
        const engine_item *item = &items[i];
        e->groups[i] = (forward_group){.row_begin = batch.n_rows, .n_rows = item->n_tok, .pos_begin = item->seq->length,
                                       .pages = item->seq->pages};
        memcpy(e->tokens + batch.n_rows, item->tokens, (size_t)item->n_tok * sizeof *e->tokens);
        batch.n_rows += item->n_tok;
        e->logits_of[i] = item->want_logits ? batch.n_outputs : -1;
        if (item->want_logits) e->output_rows[batch.n_outputs++] = batch.n_rows - 1;
    }
    TRY(forward_run(e->pass, &batch, err));
    for (int32_t i = 0; i < n_items; i++) items[i].seq->length += items[i].n_tok;
    return 0;
}

const float *engine_logits(const engine *e, int32_t i) {
    return e->logits_of[i] < 0 ? NULL : e->logits + (size_t)e->logits_of[i] * e->logits_stride;
}

int engine_step_all(engine *e, const engine_item *item, float *out, weir_error *err) {
    TRY(check_items(e, item, 1, err));
    for (int32_t i = 0; i < item->n_tok; i++) e->output_rows[i] = i;
    e->groups[0] = (forward_group){.n_rows = item->n_tok, .pos_begin = item->seq->length, .pages = item->seq->pages};
    forward_batch batch = {.tokens = item->tokens, .n_rows = item->n_tok, .groups = e->groups, .n_groups = 1,
                           .output_rows = e->output_rows, .n_outputs = item->n_tok, .logits = out, .logits_stride = e->logits_stride};
    TRY(forward_run(e->pass, &batch, err));
    item->seq->length += item->n_tok;
    return 0;
}

int engine_measure(engine *e, weir_error *err) { return forward_measure(e->pass, err); }

void engine_measured(const engine *e, double ns[MODEL_N_OPS]) { forward_measured(e->pass, ns); }
