/* The merging loop that BPE and SPM share: of all neighbours that may be merged, always the pair that comes first, the leftmost
 * of equals. Short words look for it by a scan, long ones keep the pairs in a heap, so that n symbols take n log n steps. */
#include "tok/tok_internal.h"

#include <string.h>

enum { SCAN_SYMBOLS = 32 };
#define NONE UINT32_MAX
#define NO_ORDER UINT32_MAX

/* Scores in the order of merging: higher ones first. Any bit pattern has its place, so that NaN in a file does no harm. */
static uint32_t score_order(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 equals 0 */
    memcpy(&bits, &score, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return bits ? ~bits : NO_ORDER - 1;
}

/* When two neighbours may be merged: the order of the merge, with *merged set; else NO_ORDER. */
static inline uint32_t join(const tok *t, const char *text, const tok_symbol *left, const tok_symbol *right, int32_t *merged) {
    if (t->kind == TOK_BPE) {
        const struct tok_pair_slot *pair = tok_pairs_find(&t->pairs, left->id, right->id);
        if (pair == NULL) return NO_ORDER;
        *merged = pair->merged;
        return pair->rank;
    }
    const size_t n_bytes = (size_t)left->n_bytes + right->n_bytes;
    if (n_bytes > t->longest) return NO_ORDER;
    *merged = tok_strings_find(&t->by_text, t->texts, text + left->start, n_bytes);
    return *merged < 0 ? NO_ORDER : score_order(t->scores[*merged]);
}

static void merge_by_scan(const tok *t, tok_work *w, const char *text) {
    uint32_t order[SCAN_SYMBOLS];
    int32_t merged[SCAN_SYMBOLS];
    tok_symbol *s = w->symbols;
    size_t n = w->n_symbols;
    for (size_t i = 0; i + 1 < n; i++) order[i] = join(t, text, &s[i], &s[i + 1], &merged[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (order[i] < order[best]) best = i;
        if (order[best] == NO_ORDER) break;
        s[best].n_bytes += s[best + 1].n_bytes;
        s[best].id = merged[best];
        n--;
        memmove(&s[best + 1], &s[best + 2], (n - best - 1) * sizeof *s);
        if (best + 1 < n) {
            memmove(&order[best + 1], &order[best + 2], (n - best - 2) * sizeof *order);
            memmove(&merged[best + 1], &merged[best + 2], (n - best - 2) * sizeof *merged);
            order[best] = join(t, text, &s[best], &s[best + 1], &merged[best]);
        }
        if (best > 0) order[best - 1] = join(t, text, &s[best - 1], &s[best], &merged[best - 1]);
    }
    w->n_symbols = n;
}

/* ---- long words --------------------------------------------------------------------------------------------------------- */

static void heap_push(tok_work *w, tok_bigram item) {
    if (!tok_work_grow(w, (void **)&w->heap, &w->heap_capacity, w->n_heap + 1, sizeof *w->heap)) return;
    size_t at = w->n_heap++;
    while (at > 0 && item.priority < w->heap[(at - 1) / 2].priority) {
        w->heap[at] = w->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    w->heap[at] = item;
}

static tok_bigram heap_pop(tok_work *w) {
    const tok_bigram top = w->heap[0], last = w->heap[--w->n_heap];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < w->n_heap; at = child) {
        if (child + 1 < w->n_heap && w->heap[child + 1].priority < w->heap[child].priority) child++;
        if (last.priority <= w->heap[child].priority) break;
        w->heap[at] = w->heap[child];
    }
    w->heap[at] = last;
    return top;
}

static void push_pair(const tok *t, tok_work *w, const char *text, uint32_t left) {
    const uint32_t right = left == NONE ? NONE : w->symbols[left].next;
    tok_bigram item;
    if (right == NONE) return;
    const uint32_t order = join(t, text, &w->symbols[left], &w->symbols[right], &item.merged);
    if (order == NO_ORDER) return;
    item.priority = (uint64_t)order << 32 | left;
    item.n_bytes = w->symbols[left].n_bytes + w->symbols[right].n_bytes;
    heap_push(w, item);
}

static void merge_by_heap(const tok *t, tok_work *w, const char *text) {
    tok_symbol *s = w->symbols;
    w->n_heap = 0;
    for (uint32_t i = 0; i < w->n_symbols; i++) {
        s[i].prev = i == 0 ? NONE : i - 1;
        s[i].next = i + 1 < w->n_symbols ? i + 1 : NONE;
    }
    for (uint32_t i = 0; i + 1 < w->n_symbols; i++) push_pair(t, w, text, i);
    while (w->n_heap > 0 && !w->failed) {
        const tok_bigram item = heap_pop(w);
        const uint32_t left = (uint32_t)item.priority, right = s[left].next;
        /* Symbols only grow: both are as they were when the entry was made if and only if their sum is. */
        if (s[left].n_bytes == 0 || right == NONE || s[left].n_bytes + s[right].n_bytes != item.n_bytes) continue;
        s[left].n_bytes = item.n_bytes;
        s[left].id = item.merged;
        s[left].next = s[right].next;
        s[right].n_bytes = 0;
        if (s[left].next != NONE) s[s[left].next].prev = left;
        push_pair(t, w, text, s[left].prev);
        push_pair(t, w, text, left);
    }
    size_t n = 0;
    for (size_t i = 0; i < w->n_symbols; i++)
        if (s[i].n_bytes) s[n++] = s[i];
    w->n_symbols = n;
}

void tok_merge(const tok *t, tok_work *w, const char *text) {
    if (w->n_symbols <= SCAN_SYMBOLS) merge_by_scan(t, w, text);
    else merge_by_heap(t, w, text);
}
