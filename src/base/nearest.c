/* See nearest.h. */
#include "base/nearest.h"

#include <string.h>

enum { MAX_WORD = 64 };

/* Levenshtein distance, by rows. */
static size_t distance(const char *a, size_t n_a, const char *b, size_t n_b) {
    size_t row[MAX_WORD + 1];
    if (n_a > MAX_WORD || n_b > MAX_WORD) return MAX_WORD;
    for (size_t j = 0; j <= n_b; j++) row[j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            const size_t replace = diagonal + (a[i - 1] != b[j - 1]);
            const size_t other = 1 + (row[j] < row[j - 1] ? row[j] : row[j - 1]);
            diagonal = row[j];
            row[j] = replace < other ? replace : other;
        }
    }
    return row[n_b];
}

void nearest_begin(nearest *n, const char *word, size_t n_bytes) {
    *n = (nearest){.word = word, .n_bytes = n_bytes, .least = n_bytes / 3 + 1};
}

void nearest_try(nearest *n, const char *name) {
    const size_t length = strlen(name), d = distance(n->word, n->n_bytes, name, length);
    if (d > n->least || d >= length || (d == n->least && n->best)) return;
    n->best = name;
    n->least = d;
}
