/* The engine: KV pages, recurrent states, sequences, and steps of several sequences at once over one model.
 *
 * Owns: the KV slab and the slab of states, which sequence holds which page, the compute pool, the logits of the last step. Knows nothing of requests,
 * sampling policy, queues or text. One owner thread makes all calls, except engine_kv_tokens_used. */
#ifndef WEIR_ENGINE_H
#define WEIR_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/model.h"
#include "weir/weir.h"

typedef struct engine engine;
typedef struct engine_seq engine_seq;

/* One sequence's share of a step: `tokens[n_tok]` follow what the sequence holds already. */
typedef struct engine_item {
    engine_seq *seq;
    const int32_t *tokens;
    int32_t n_tok;
    int32_t n_logits; /* rows of logits wanted: of the last n_logits tokens, 0 = none */
} engine_item;

/* How the states of a text's tokens become one embedding: numbered as GGUF files do. */
typedef enum engine_pooling {
    ENGINE_POOLING_OF_MODEL = -1,
    ENGINE_POOLING_NONE,   /* only the tokens' states */
    ENGINE_POOLING_MEAN,   /* their mean */
    ENGINE_POOLING_FIRST,  /* that of the first token (CLS) */
    ENGINE_POOLING_LAST,
    ENGINE_POOLING_RANK,   /* the scores of the model's classifier */
} engine_pooling;

/* Uses n_threads, n_ctx, n_parallel, n_batch, n_draft, kv_cache_bytes and cache types of `options` (may be NULL), with weir.h's defaults;
 * n_parallel also bounds the items of a step. The model must outlive the engine. WEIR_E_NOMEM, WEIR_E_INVALID, WEIR_E_INTERNAL,
 * WEIR_E_UNSUPPORTED (a cache type that the model's heads do not fit). */
int engine_open(engine **out, const weir_model *model, const weir_engine_options *options, weir_error *err);
void engine_close(engine **e); /* all sequences must be closed */

int32_t engine_n_ctx(const engine *e);     /* longest sequence */
int32_t engine_n_batch(const engine *e);   /* most tokens in a step */
bool engine_can_generate(const engine *e); /* false: the model computes embeddings only */
int32_t engine_n_parallel(const engine *e); /* most items in a step */
int32_t engine_n_logits(const engine *e);   /* most rows of logits in a step: one for each item, and some for drafts */
int32_t engine_n_threads(const engine *e);
const kern_kv *engine_kv(const engine *e);  /* what a page holds of a KV head */
int64_t engine_kv_tokens_total(const engine *e);
int64_t engine_kv_tokens_used(const engine *e); /* in pages that sequences hold; any thread */
int64_t engine_kv_tokens_kept(const engine *e); /* in pages that only the prefix tree holds; any thread */

/* Bytes of one sequence's recurrent state; 0 = the model has none, and a sequence is nothing but its pages. */
size_t engine_state_bytes(const engine *e);

/* A sequence without pages. Texts of sequences with different `salt` share nothing. WEIR_E_LIMIT: no state is free now. */
int engine_seq_begin(engine *e, uint64_t salt, engine_seq **out, weir_error *err);
/* Gives the sequence the pages that n_tokens tokens need in all, at the cost of kept ones where none are free. WEIR_E_LIMIT: there
 * are not so many now, and it got none. WEIR_E_CONTEXT: they can never fit. */
int engine_seq_reserve(engine_seq *seq, int32_t n_tokens, weir_error *err);
/* Both: a sequence that may grow to n_tokens. */
int engine_seq_open(engine *e, int32_t n_tokens, engine_seq **out, weir_error *err);
void engine_seq_close(engine *e, engine_seq **seq);
int32_t engine_seq_length(const engine_seq *seq);
/* Whether the sequence can go back to its first `length` tokens: 0 <= length <= its length, and nothing that it keeps has mixed
 * later tokens into what came before. With recurrent state that leaves 0 and the length that it has; for others there are
 * checkpoints. */
bool engine_seq_can_truncate(const engine_seq *seq, int32_t length);
/* Forgets all tokens from `length` on; does nothing where engine_seq_can_truncate says no. */
void engine_seq_truncate(engine_seq *seq, int32_t length);

/* The prefix tree keeps what sequences held, for others that begin alike. Adopting and computing give the same bits.
 *
 * Gives the sequence what is kept of tokens[n_tok], a text that begins with the tokens that it holds; returns by how many tokens it
 * grew. Whole pages are shared, part of a page is copied. A recurrent state is found only where one was kept. */
int32_t engine_seq_adopt(engine_seq *seq, const int32_t *tokens, int32_t n_tok);
/* Keeps what the sequence holds of tokens[n_tok], its first tokens, which it will not be truncated below: full pages; with `last`
 * also the part of a page at the end, and then the sequence must be closed next. A recurrent state is kept if the
 * sequence holds just these tokens, and they end with a page or `last` is said. */
void engine_seq_keep(engine_seq *seq, const int32_t *tokens, int32_t n_tok, bool last);

/* The prefix tree in the file `path`, for the next engine over the same model. Saving replaces the file in one go; loading expects
 * that no sequence is open and nothing kept. load: 1 = read (what has no room is left out), 0 = there is no such file. WEIR_E_IO,
 * WEIR_E_FORMAT (damaged), WEIR_E_UNSUPPORTED (of another model, cache type or version), WEIR_E_NOMEM: nothing is kept then. */
int engine_prefix_save(const engine *e, const char *path, weir_error *err);
int engine_prefix_load(engine *e, const char *path, weir_error *err);

/* A copy of a sequence's recurrent state, for going back to the length that the sequence had; engine_state_bytes large. Only for
 * models that have such a state. Independent of the sequence and of the engine; freed with engine_checkpoint_free. WEIR_E_NOMEM. */
typedef struct engine_checkpoint engine_checkpoint;
int engine_checkpoint_save(const engine_seq *seq, engine_checkpoint **out, weir_error *err);
int32_t engine_checkpoint_length(const engine_checkpoint *c);
/* Takes the sequence back to the checkpoint. The caller vouches that the first tokens of the sequence are those that the checkpoint
 * was taken after; the sequence need not be the same one. False, and nothing happens, when the sequence is shorter. */
bool engine_checkpoint_restore(engine_seq *seq, const engine_checkpoint *c);
void engine_checkpoint_free(engine_checkpoint **c);

/* Appends the items' tokens to their sequences and computes the wanted logits. On failure no sequence has advanced.
 * `abort` (may be NULL) is asked between layers: true ends the step with WEIR_E_CANCELLED. WEIR_E_INVALID: too many tokens,
 * items or rows of logits, a token out of range, an item beyond its sequence's room.
 * WEIR_E_UNSUPPORTED: the model cannot generate. */
int engine_step(engine *e, const engine_item *items, int32_t n_items, bool (*abort)(void *user), void *user, weir_error *err);
/* Row `row` of the items[i].n_logits of the last step, [n_vocab]; NULL = there is none. Valid until the next step. */
const float *engine_logits(const engine *e, int32_t i, int32_t row);

/* All logits of one step, for evaluation: as engine_step with one item, then logits of every token, [n_tok][n_vocab rounded
 * up to 16], into out. */
int engine_step_all(engine *e, const engine_item *item, float *out, weir_error *err);

/* Values of a pooled embedding; 0 with ENGINE_POOLING_NONE, and with ENGINE_POOLING_RANK if the model has no classifier. */
int32_t engine_embedding_size(const engine *e, engine_pooling pooling);
/* The final states of a text's tokens, states[n_tok][d_model] (NULL: not wanted), and its embedding, pooled[engine_embedding_size]
 * (not normalised; NULL if that is 0). Any model will do; it takes pages for the text while it runs. WEIR_E_CONTEXT: n_tok exceeds
 * the context, or, where tokens see the whole text, a step. WEIR_E_LIMIT: no pages are free. WEIR_E_INVALID: no tokens, one out of
 * range, a pooling that the model lacks. */
int engine_embed(engine *e, const int32_t *tokens, int32_t n_tok, engine_pooling pooling, float *states, float *pooled, weir_error *err);

/* Measures from now on where the time of steps goes, from zero (model.h's operations). WEIR_E_NOMEM. */
int engine_measure(engine *e, weir_error *err);
/* Time of each operation since then in ns, the mean over the threads. */
void engine_measured(const engine *e, double ns[MODEL_N_OPS]);

#endif
