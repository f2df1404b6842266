/* The matcher's working parts: stacks of calls as shared, interned frames, and one step of a set of items. Used by the states
 * (grammar_state.c) and by the walks over token tries (grammar_mask.c). Owned by one thread. */
#ifndef WEIR_GRAMMAR_MATCH_H
#define WEIR_GRAMMAR_MATCH_H

#include "grammar/grammar_internal.h"

/* A place in the grammar: a state, and the frame to go on in when its rule ends. As an entry of a frame: where to go on. */
typedef struct grammar_item {
    uint32_t state, frame;
} grammar_item;

/* A frame is the set of places where a call may return; frames with the same entries are one. Entries refer to earlier frames.
 */
typedef struct grammar_frame {
    uint32_t first, n; /* entries */
    uint32_t next;     /* in its bucket */
    uint64_t hash[2];  /* of the content down to the bottom: equal stacks of any two states of a grammar have equal hashes */
} grammar_frame;

/* Frame 0 is the bottom; in a matcher for local walks frame 1 is the unknown frame around. */
enum { FRAME_BOTTOM = 0, FRAME_LOCAL = 1, NO_FRAME = -1 };

typedef struct grammar_pending_call {
    uint32_t rank, rule, to, frame;
} grammar_pending_call;

typedef struct grammar_matcher {
    const grammar *g;
    grammar_frame *frames;
    size_t n_frames, frames_capacity;
    grammar_item *entries;
    size_t n_entries, entries_capacity;
    uint32_t *buckets; /* the newest frame of each bucket, + 1; the newest come first, so that the last made can be dropped */
    size_t n_buckets;
    size_t collect_at; /* frames at which the next collection is worth its time; 0 = the first */
    /* Scratch of one step. */
    grammar_item *raw, *new_entries;
    size_t n_raw, raw_capacity, n_new, new_capacity;
    uint32_t *seen; /* hash table over raw, index + 1; used beyond a few items */
    size_t n_seen;
    grammar_pending_call *calls; /* a heap by rank */
    size_t n_calls, calls_capacity;
    int code; /* WEIR_E_NOMEM or WEIR_E_LIMIT of this step, or 0 */
} grammar_matcher;

typedef struct grammar_items {
    grammar_item *items;
    size_t n, capacity;
} grammar_items;

int grammar_matcher_init(grammar_matcher *m, const grammar *g); /* 0 or WEIR_E_NOMEM */
void grammar_matcher_free(grammar_matcher *m);
int grammar_matcher_copy(grammar_matcher *to, const grammar_matcher *from);
/* Drops all frames made since there were n_frames. */
void grammar_matcher_drop(grammar_matcher *m, size_t n_frames);
/* Drops the frames that `items` do not need, once there are many, and renumbers the items'. 0 or WEIR_E_NOMEM. */
int grammar_matcher_collect(grammar_matcher *m, grammar_items *items);
/* The items that can take a byte, or end the text, from the places `places`; appended to *out. 0, WEIR_E_NOMEM, WEIR_E_LIMIT.
 */
int grammar_matcher_close(grammar_matcher *m, const grammar_item *places, size_t n, grammar_items *out);
/* The items after one byte, appended to *out, whose memory must not be that of `from`. */
int grammar_matcher_step(grammar_matcher *m, const grammar_item *from, size_t n, uint8_t byte, grammar_items *out);
bool grammar_items_add(grammar_items *list, grammar_item item);
bool grammar_grow(void **data, size_t n, size_t *capacity, size_t size);

#endif
