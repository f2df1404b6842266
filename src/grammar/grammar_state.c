/* States: the items after the text so far. See grammar.h. */
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_state.h"

static int step_error(int code, weir_error *err) {
    if (code == WEIR_E_LIMIT)
        return error_set(err, code, NULL, "the grammar is too ambiguous: too many ways to read the text so far");
    return error_set(err, code, NULL, "out of memory while matching a grammar");
}

int grammar_state_open(grammar_state **out, const grammar *g, weir_error *err) {
    *out = NULL;
    grammar_state *s = calloc(1, sizeof *s);
    if (s == NULL) return step_error(WEIR_E_NOMEM, err);
    int code = grammar_matcher_init(&s->m, g);
    const uint32_t start = g->rules[g->root].start;
    const grammar_item place = {start, FRAME_BOTTOM};
    if (code == 0) code = grammar_matcher_close(&s->m, &place, 1, &s->now);
    if (code < 0) {
        grammar_state_close(&s);
        return step_error(code, err);
    }
    *out = s;
    return 0;
}

int grammar_state_copy(grammar_state **out, const grammar_state *s, weir_error *err) {
    *out = NULL;
    grammar_state *copy = calloc(1, sizeof *copy);
    if (copy == NULL) return step_error(WEIR_E_NOMEM, err);
    int code = grammar_matcher_copy(&copy->m, &s->m);
    for (size_t i = 0; i < s->now.n && code == 0; i++)
        if (!grammar_items_add(&copy->now, s->now.items[i])) code = WEIR_E_NOMEM;
    if (code < 0) {
        grammar_state_close(&copy);
        return step_error(code, err);
    }
    *out = copy;
    return 0;
}

void grammar_state_close(grammar_state **s) {
    if (s == NULL || *s == NULL) return;
    grammar_matcher_free(&(*s)->m);
    free((*s)->now.items);
    free((*s)->next.items);
    free((*s)->saved.items);
    free(*s);
    *s = NULL;
}

static void swap(grammar_items *a, grammar_items *b) {
    const grammar_items held = *a;
    *a = *b;
    *b = held;
}

int grammar_advance(grammar_state *s, const char *bytes, size_t n_bytes, weir_error *err) {
    const size_t n_frames = s->m.n_frames;
    int code = 0;
    s->saved.n = 0;
    for (size_t i = 0; i < s->now.n; i++)
        if (!grammar_items_add(&s->saved, s->now.items[i])) return step_error(WEIR_E_NOMEM, err);
    for (size_t i = 0; i < n_bytes && code == 0 && s->now.n; i++) {
        s->next.n = 0;
        code = grammar_matcher_step(&s->m, s->now.items, s->now.n, (uint8_t)bytes[i], &s->next);
        swap(&s->now, &s->next);
    }
    if (code < 0 || s->now.n == 0) {
        swap(&s->now, &s->saved);
        grammar_matcher_drop(&s->m, n_frames);
        return code < 0 ? step_error(code, err) : 0;
    }
    /* Out of memory here only leaves more frames than needed. */
    (void)grammar_matcher_collect(&s->m, &s->now);
    return 1;
}

bool grammar_can_end(const grammar_state *s) {
    for (size_t i = 0; i < s->now.n; i++)
        if (s->now.items[i].state == STATE_ACCEPT) return true;
    return false;
}

void grammar_items_bytes(const grammar *g, const grammar_item *items, size_t n, uint32_t bits[8]) {
    memset(bits, 0, 8 * sizeof *bits);
    for (size_t i = 0; i < n; i++) {
        const grammar_state_row *row = &g->states[items[i].state];
        for (uint32_t k = 0; k < row->n_edges; k++) {
            const fa_edge *e = &g->edges[row->first_edge + k];
            for (uint32_t byte = e->lo; byte <= e->hi; byte++) bits[byte / 32] |= 1u << byte % 32;
        }
    }
}

void grammar_next_bytes(const grammar_state *s, uint32_t bits[8]) {
    grammar_items_bytes(s->m.g, s->now.items, s->now.n, bits);
}

int grammar_forced_bytes(const grammar_state *s, size_t limit, buf *out, weir_error *err) {
    grammar_state *ahead = NULL;
    int code = 0;
    for (size_t n = 0; n < limit && code >= 0; n++) {
        const grammar_state *at = ahead ? ahead : s;
        uint32_t bits[8];
        int n_choices = 0, byte = 0;
        if (grammar_can_end(at)) break;
        grammar_next_bytes(at, bits);
        for (int i = 0; i < 8; i++) {
            n_choices += __builtin_popcount(bits[i]);
            if (bits[i]) byte = 32 * i + __builtin_ctz(bits[i]);
        }
        if (n_choices != 1) break;
        if (ahead == NULL) code = grammar_state_copy(&ahead, s, err);
        if (code == 0) code = grammar_advance(ahead, &(char){(char)byte}, 1, err);
        if (code > 0) code = 0, buf_putc(out, (char)byte);
    }
    grammar_state_close(&ahead);
    if (code == 0 && out->failed) return step_error(WEIR_E_NOMEM, err);
    return code;
}
