/* The scheduler behind weir_engine and weir_job (include/weir/weir.h): bounded queue, engine thread, continuous batching,
 * cancellation, one bounded channel per job. It drives a backend through the table below and knows nothing of kernels, files
 * or HTTP; tests give it a fake backend and a fake clock.
 *
 * Threads: everything in sched_backend is called on the engine thread only, except now_us and, in sched_open, is_eog and close. */
#ifndef WEIR_SCHED_H
#define WEIR_SCHED_H

#include "weir/weir.h"

/* One sequence's share of a step: `tokens[n_tok]` are appended after what the sequence already holds. */
typedef struct sched_item {
    void *seq;
    const int32_t *tokens;
    int32_t n_tok;
    int32_t n_logits; /* rows of logits wanted: of the item's last n_logits tokens */
} sched_item;

/* Asked between layers; true = abandon the step (it then returns WEIR_E_CANCELLED and no sequence has advanced). */
typedef bool (*sched_abort_fn)(void *user);

typedef struct sched_backend {
    void *context;
    int32_t n_vocab;
    int32_t n_ctx;           /* longest sequence */
    int32_t n_logits;        /* most rows of logits in a step; 0 = one for each item */
    int64_t kv_tokens_total; /* room for all sequences together */
    int32_t page_tokens;     /* room is given out in pages of so many tokens; 0 = 1, and the scheduler's own copy says so */
    const char *cache_type_k, *cache_type_v; /* static; or NULL */
    bool adopts_at_ends;     /* seq_adopt finds only lengths at which seq_keep was called: chunks of a prompt end where that is wanted */
    /* An empty sequence without room. Texts of different `salt` share nothing. WEIR_E_LIMIT = none now, try when another was closed. */
    int (*seq_open)(void *context, uint64_t salt, void **seq, weir_error *err);
    void (*seq_close)(void *context, void *seq);
    /* Room for n_tokens in all. WEIR_E_LIMIT = not now, and the sequence has what it had. */
    int (*seq_reserve)(void *context, void *seq, int32_t n_tokens, weir_error *err);
    /* The prefix tree (engine.h). May both be NULL: then nothing is kept. */
    int32_t (*seq_adopt)(void *context, void *seq, const int32_t *tokens, int32_t n_tok);
    void (*seq_keep)(void *context, void *seq, const int32_t *tokens, int32_t n_tok, bool last);
    /* Runs all items as one batch; on failure no sequence has advanced. `abort` may be NULL. */
    int (*step)(void *context, const sched_item *items, int32_t n_items, sched_abort_fn abort, void *user, weir_error *err);
    /* Row `row` of the n_logits rows of items[i] of the last step, [n_vocab]; valid until the next step. */
    const float *(*logits)(void *context, int32_t i, int32_t row);
    /* Whether the sequence could go back to its first n_tokens tokens, and going back. May both be NULL: then no step is given
     * tokens that are only guessed. */
    bool (*seq_can_truncate)(void *context, void *seq, int32_t n_tokens);
    void (*seq_truncate)(void *context, void *seq, int32_t n_tokens);
    int64_t (*kv_tokens_used)(void *context); /* of kv_tokens_total, those that sequences hold; the others could be had */
    int64_t (*kv_tokens_kept)(void *context); /* of the others, those that the prefix tree holds; may be NULL: none */
    /* Bytes of a token; see weir_token_bytes. */
    const char *(*piece)(void *context, int32_t token, bool special, size_t *n_bytes);
    bool (*is_eog)(void *context, int32_t token);
    int64_t (*now_us)(void *context);  /* the clock; any thread */
    void (*close)(void *context);      /* after the engine thread ended; the tree may be saved here */
} sched_backend;

/* Starts the engine thread over `backend` (copied; owned from here on, also after a failure: its close is called).
 * weir_engine_open is this with the real backend. */
int sched_open(weir_engine **out, const sched_backend *backend, const weir_engine_options *options, weir_error *err);

/* The same without a thread, for tests: the engine does something only in sched_turn, on the caller's thread. */
int sched_open_unthreaded(weir_engine **out, const sched_backend *backend, const weir_engine_options *options, weir_error *err);
/* What the engine thread does between two sleeps: looks at cancellations and deadlines, admits, runs at most one step. False = there
 * was nothing to compute. */
bool sched_turn(weir_engine *e);

#endif
