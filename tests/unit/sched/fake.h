/* A backend without a model for tests of the scheduler. What a sequence says next depends on nothing but the tokens that it was
 * fed, so a crossed stream, a token fed twice or left out, or a lost chunk of a prompt changes the answer.
 *
 * Vocabulary: 0..255 are bytes. FAKE_EOG ends a generation, FAKE_CONTROL has a text only when special ones are asked for.
 * A sequence that was fed FAKE_SCRIPT + k says the pieces of script k, one token for each, then FAKE_EOG; without one it says
 * letters that are a hash of its whole history, and never ends by itself. FAKE_POISON makes a step fail.
 * Time: the real clock, or one that only fake_advance and the costs of steps move. */
#ifndef FAKE_H
#define FAKE_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/pages.h"
#include "sched/sched.h"

enum {
    FAKE_EOG = 256,
    FAKE_CONTROL,
    FAKE_POISON,
    FAKE_BANNED_ALL,
    FAKE_SCRIPT = 264,
    FAKE_N_SCRIPTS = 8,
    FAKE_PIECE = FAKE_SCRIPT + FAKE_N_SCRIPTS,
    FAKE_SCRIPT_PIECES = 32,
    FAKE_N_VOCAB = FAKE_PIECE + FAKE_N_SCRIPTS * FAKE_SCRIPT_PIECES,
    FAKE_MAX_STEPS = 100000,
    FAKE_MAX_ITEMS = 64,
    FAKE_MAX_LOGITS = FAKE_MAX_ITEMS + 32,
};

typedef struct fake_piece {
    const char *bytes;
    size_t n_bytes;
    int32_t token; /* instead of a text; 0 = none */
} fake_piece;

typedef struct fake_step {
    int32_t n_items, n_decode, n_prefill; /* items that follow the prompt; prompt tokens */
    int32_t n_guessed;                    /* tokens of decoding items beyond the first */
    int64_t start_us;
} fake_step;

typedef struct fake {
    int32_t n_ctx;
    int64_t kv_tokens_total; /* rounded down to pages */
    int32_t page_tokens;
    bool at_ends; /* prefixes are found only where seq_keep was called */
    bool real_clock;
    int32_t n_layers;                        /* how often a step asks whether to abort */
    int64_t decode_cost_us, prefill_cost_us; /* of a step with decoding items; of a prompt token */
    int64_t row_cost_us;                     /* of a decoding row beyond the first */
    int32_t period; /* a sequence without a script says its letters again after so many; 0 = never */
    int32_t surprise; /* ... but every so many tokens another one; 0 = never */
    bool keeps_all;   /* sequences cannot be truncated */
    fake_piece scripts[FAKE_N_SCRIPTS][FAKE_SCRIPT_PIECES];
    int32_t script_pieces[FAKE_N_SCRIPTS];
    /* Shared with the test. */
    atomic_int_fast64_t clock_us;
    atomic_int n_open, n_opened, most_open, n_closes;
    atomic_int_fast64_t kv_used;
    atomic_int fail_steps;   /* so many steps fail, whatever is in them */
    atomic_int fail_batches; /* so many steps with more than one item fail */
    atomic_int open_error;   /* seq_open fails with this code while it is not 0 */
    atomic_int n_aborted;
    atomic_bool at_gate; /* a step waits for a permit */
    atomic_bool wrong_thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    int64_t permits; /* steps that may still pass the gate; -1 = open */
    fake_step *steps;
    int32_t n_steps;
    /* Engine thread's. */
    pages *pages;
    int32_t *store; /* [n_pages][page_tokens] */
    float *logits; /* [FAKE_MAX_LOGITS][FAKE_N_VOCAB] */
    int32_t first_row[FAKE_MAX_ITEMS + 1];
    pthread_t thread;
    bool thread_known;
} fake;

void fake_init(fake *f);
void fake_free(fake *f);
sched_backend fake_backend(fake *f);
/* Adds pieces to a script: n strings. */
void fake_script(fake *f, int32_t script, const char *const *pieces, int32_t n);
/* Adds one piece with an explicit length (parts of code points). */
void fake_script_bytes(fake *f, int32_t script, const char *bytes, size_t n_bytes);
void fake_script_token(fake *f, int32_t script, int32_t token);
/* -1 opens the gate; n lets n more steps pass, 0 none. A step that waits at the gate goes on asking whether to abort. */
void fake_gate(fake *f, int64_t permits);
void fake_advance(fake *f, int64_t us);
/* Steps so far, and step i. */
int32_t fake_n_steps(fake *f);
fake_step fake_step_at(fake *f, int32_t i);
/* What the model without a script says after `tokens[n]`. */
int32_t fake_next(const int32_t *tokens, int32_t n);
/* The same with the period and surprise of f. */
int32_t fake_says(const fake *f, const int32_t *tokens, int32_t n);

#endif
