/* Guesses the next tokens of a sequence from its own past: where did what it ends in occur before, and what followed there?
 * (Prompt lookup.) Owns a copy of the tokens and an index of their n-grams, all sized when it is opened. Knows tokens only: no
 * models, no text, no policy. Owned by one thread. */
#ifndef WEIR_SCHED_LOOKUP_H
#define WEIR_SCHED_LOOKUP_H

#include <stdint.h>

/* The n-grams that are indexed; a match that begins is at least as long as the shorter one. */
enum { LOOKUP_LONG = 4, LOOKUP_SHORT = 2, LOOKUP_N_ORDERS = 2 };

typedef struct lookup {
    int32_t *tokens; /* [capacity] */
    int32_t n, capacity;
    /* Hash chains as in LZ77 matching. An n-gram is named by the position after its last token; 0 = none. */
    int32_t *head[LOOKUP_N_ORDERS];     /* [1 << n_bits] the latest n-gram of a hash */
    int32_t *previous[LOOKUP_N_ORDERS]; /* [capacity + 1] the one before it */
    int32_t n_bits;
    /* The match: tokens[at - length .. at) are also the last `length` tokens, and tokens[at] is the guess; length 0 = none. */
    int32_t at, length;
} lookup;

/* Room for `capacity` tokens, which take up to 40 bytes each (memory is only touched as tokens come). WEIR_E_NOMEM. */
int lookup_open(lookup *l, int32_t capacity);
void lookup_close(lookup *l);
/* Appends a token (no more than the capacity). Follows the match if the token goes on with it, else there is none. O(1). */
void lookup_append(lookup *l, int32_t token);
/* Looks for the longest match, the latest of equally long ones, among what was indexed last. Bounded work, whatever the length
 * of the sequence. */
void lookup_search(lookup *l);
/* The next `n` tokens if the match goes on, into out[n]; returns how many: 0 without a match. A match that reaches the end of
 * the sequence is continued with its own guesses, as a period. */
int32_t lookup_guess(const lookup *l, int32_t *out, int32_t n);

#endif
