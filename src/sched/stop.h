/* Finds stop strings in a growing text, byte by byte, whatever the sizes of its pieces. The match that is complete first wins;
 * of several that are complete at the same byte, the longest. (So the result does not depend on how the text is cut into
 * tokens, and nothing is ever held back behind a match that is complete.) Knuth, Morris, Pratt 1977, one automaton for each
 * string. Owned by one thread. */
#ifndef WEIR_SCHED_STOP_H
#define WEIR_SCHED_STOP_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "weir/weir_error.h"

typedef struct stop_string {
    const char *text; /* NUL-terminated */
    size_t n_bytes;
    size_t matched;    /* the longest prefix that the text so far ends in */
    uint32_t *failure; /* [n_bytes] failure[i] = longest proper prefix of text[0..i] that is also its suffix */
} stop_string;

typedef struct stop_set {
    stop_string *strings;
    size_t n;
} stop_set;

/* Copies the strings into the arena. WEIR_E_INVALID (empty, too long, or not UTF-8), WEIR_E_NOMEM. */
int stop_init(stop_set *set, const char *const *strings, size_t n, arena *memory, weir_error *err);
/* Takes the next byte. Returns the index of the string that it completes, or -1. */
int64_t stop_feed(stop_set *set, char byte);
/* How many of the last bytes might begin a stop string. */
size_t stop_held(const stop_set *set);

#endif
