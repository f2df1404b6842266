/* What grammar_state.c and grammar_mask.c share of a state. */
#ifndef WEIR_GRAMMAR_STATE_H
#define WEIR_GRAMMAR_STATE_H

#include "grammar/grammar_match.h"

struct grammar_state {
    grammar_matcher m;
    grammar_items now;         /* after the text so far; never empty */
    grammar_items next, saved; /* scratch */
};

/* As grammar_next_bytes, of any items. */
void grammar_items_bytes(const grammar *g, const grammar_item *items, size_t n, uint32_t bits[8]);

#endif
