/* The nearest of several names to a word that is none of them, for "did you mean". Pure functions; any thread. */
#ifndef WEIR_BASE_NEAREST_H
#define WEIR_BASE_NEAREST_H

#include <stddef.h>

typedef struct nearest {
    const char *word;
    size_t n_bytes;
    size_t least;     /* edits that `best` is away */
    const char *best; /* of the names tried; NULL = none is near: more than about one letter in three would be wrong */
} nearest;

/* `word` must live as long as names are tried. */
void nearest_begin(nearest *n, const char *word, size_t n_bytes);
/* A name, NUL-terminated; of equally near ones the first stays. Words and names over 64 bytes are near nothing. */
void nearest_try(nearest *n, const char *name);

#endif
