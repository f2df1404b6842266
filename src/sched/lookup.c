/* See lookup.h. */
#include "sched/lookup.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/error.h"

enum {
    MAX_CANDIDATES = 8, /* places of an n-gram that are compared */
    MAX_COMPARED = 64,  /* tokens that are compared at each */
    LONG_ENOUGH = 32,   /* a match that is followed without looking for a better one */
    MAX_BITS = 20,
};

static const int32_t orders[LOOKUP_N_ORDERS] = {LOOKUP_LONG, LOOKUP_SHORT};

int lookup_open(lookup *l, int32_t capacity) {
    *l = (lookup){.capacity = capacity, .n_bits = 6};
    while (l->n_bits < MAX_BITS && (1 << l->n_bits) < capacity) l->n_bits++;
    bool failed = false;
    l->tokens = calloc((size_t)capacity + 1, sizeof *l->tokens);
    failed = l->tokens == NULL;
    for (int i = 0; i < LOOKUP_N_ORDERS; i++) {
        l->head[i] = calloc((size_t)1 << l->n_bits, sizeof *l->head[i]);
        l->previous[i] = calloc((size_t)capacity + 1, sizeof *l->previous[i]);
        failed |= l->head[i] == NULL || l->previous[i] == NULL;
    }
    if (failed) lookup_close(l);
    return failed ? WEIR_E_NOMEM : 0;
}

void lookup_close(lookup *l) {
    free(l->tokens);
    for (int i = 0; i < LOOKUP_N_ORDERS; i++) {
        free(l->head[i]);
        free(l->previous[i]);
    }
    *l = (lookup){0};
}

/* Of the n-gram that ends before position `end`. */
static uint32_t hash_of(const lookup *l, int32_t end, int32_t order) {
    uint64_t hash = 0;
    for (int32_t i = end - order; i < end; i++) hash = (hash ^ (uint32_t)l->tokens[i]) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(hash >> (64 - l->n_bits));
}

void lookup_append(lookup *l, int32_t token) {
    bool follows = l->length > 0 && l->tokens[l->at] == token;
    l->tokens[l->n++] = token;
    l->at += follows;
    l->length = follows ? l->length + 1 : 0;
    for (int i = 0; i < LOOKUP_N_ORDERS; i++) {
        if (l->n < orders[i]) continue;
        int32_t *head = &l->head[i][hash_of(l, l->n, orders[i])];
        l->previous[i][l->n] = *head;
        *head = l->n;
    }
}

/* How many tokens before `at` are the last ones of the sequence, too. */
static int32_t match_length(const lookup *l, int32_t at) {
    int32_t n = 0;
    while (n < at && n < MAX_COMPARED && l->tokens[at - 1 - n] == l->tokens[l->n - 1 - n]) n++;
    return n;
}

void lookup_search(lookup *l) {
    int32_t best = 0, best_at = 0;
    if (l->length >= LONG_ENOUGH) return;
    for (int i = 0; i < LOOKUP_N_ORDERS && best < orders[i]; i++) {
        if (l->n < orders[i]) continue;
        int32_t at = l->previous[i][l->n];
        for (int n = 0; n < MAX_CANDIDATES && at > 0; n++, at = l->previous[i][at]) {
            int32_t length = match_length(l, at);
            if (length < orders[i] || length <= best) continue; /* shorter than the n-gram: another one with its hash */
            best = length;
            best_at = at;
        }
    }
    if (best <= l->length) return; /* what is followed already may have occurred too long ago to be found */
    l->length = best;
    l->at = best_at;
}

int32_t lookup_guess(const lookup *l, int32_t *out, int32_t n) {
    if (l->length == 0) return 0;
    for (int32_t i = 0; i < n; i++) out[i] = l->at + i < l->n ? l->tokens[l->at + i] : out[l->at + i - l->n];
    return n;
}
