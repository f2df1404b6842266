/* What the files of the engine share. */
#ifndef WEIR_ENGINE_INTERNAL_H
#define WEIR_ENGINE_INTERNAL_H

#include "base/pool.h"
#include "engine/engine.h"
#include "engine/pages.h"

struct engine_seq {
    engine *owner;
    uint64_t salt;
    unsigned char *state; /* recurrent state after `length` tokens; NULL: there is none, or no tokens */
    int32_t length, n_pages, capacity;
    int32_t n_kept;        /* of the pages, the first so many are in the prefix tree */
    int32_t *numbers;      /* [capacity] of the pages */
    unsigned char **pages; /* [capacity] where they are */
};

struct engine {
    const weir_model *model;
    pool *threads;
    forward *pass;
    int32_t n_ctx, n_batch, n_parallel, n_logits;
    kern_kv kv;

    unsigned char *slab; /* [n_pages][page_bytes] */
    size_t slab_bytes, page_bytes;
    pages *pages;

    /* Recurrent states. A step writes each sequence's next state to a slot of its own and then frees the one before, so that a
     * failed step changes nothing: n_parallel slots for sequences and as many for a step. Slot 0 is all zeros, for sequences
     * without tokens, and never written. */
    unsigned char *states;
    size_t states_bytes, state_bytes, state_stride;
    unsigned char **free_states; /* stack */
    int32_t n_free_states, n_seqs;
    size_t snapshot_bytes, most_snapshot_bytes; /* of the states that the prefix tree keeps */
    unsigned char **next_states; /* [n_parallel] of the items of a step */

    float *logits;       /* [n_logits][logits_stride] */
    size_t logits_stride, logits_bytes;
    int32_t *logits_of;  /* [n_parallel + 1] an item's first row of logits; they end where the next item's begin */

    /* A step's batch. */
    int32_t *tokens, *output_rows;
    forward_group *groups;
};

static inline int32_t pages_for(int32_t n_tokens) { return (n_tokens + KERN_PAGE - 1) / KERN_PAGE; }

/* ---- seq.c ---- */
/* Frees a snapshot of the prefix tree of `e`, an engine. */
void engine_drop_snapshot(void *e, void *snapshot);
/* A checkpoint from its parts, state[n_bytes] copied; and its state. WEIR_E_NOMEM. */
int engine_checkpoint_make(int32_t length, const unsigned char *state, size_t n_bytes, engine_checkpoint **out, weir_error *err);
const unsigned char *engine_checkpoint_state(const engine_checkpoint *c);
/* Makes the pages that the next n_tok tokens go to, all there, the sequence's own. WEIR_E_LIMIT. */
int engine_seq_own_pages(engine_seq *s, int32_t n_tok, weir_error *err);
/* The sequence's state is `state` from now on; the slot of the one before is free. */
void engine_set_state(engine_seq *s, unsigned char *state);

#endif
