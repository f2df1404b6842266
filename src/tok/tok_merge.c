/* The merging loop that BPE and SPM share: of all neighbours that may be merged, always the pair that comes first, the leftmost
 * of equals. Short words look for it by a scan; long ones keep the pairs in a radix heap (Ahuja, Mehlhorn, Orlin and Tarjan
 * 1990, "Faster algorithms for the shortest path problem"), so that n symbols take a number of steps in proportion to n.
 *
 * A radix heap wants orders that never go back behind the one taken last. A merge may make a pair that comes before its own (in
 * a file that lists merges out of order, or where two tokens have one score): such a pair comes before all that wait and is
 * merged at once, without entering the heap. What enters it is then of a later order for certain, so that all pairs of one
 * order are known when their turn comes; they are sorted by position. */
#include "tok/tok_internal.h"

#include <string.h>

enum { SCAN_SYMBOLS = 32, SMALL_GROUP = 32 };
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

/* Pairs that wait. List b holds, in the order of their coming, the pairs whose order differs from `last` in bit b - 1 and in
 * none above it; list 0 those of the order `last`. An entry moves to a lower list only, so at most 32 times. */
typedef struct pair_queue {
    tok_work *w; /* w->pairs[n_pairs]: the entries, chained by `next` */
    uint32_t last, used, unused;
    uint32_t first[33], end[33]; /* of the lists; `used` has bit b - 1 for each that is not empty, from list 1 */
} pair_queue;

static void append(pair_queue *q, unsigned list, uint32_t entry) {
    tok_pair *pairs = q->w->pairs;
    pairs[entry].next = NONE;
    if (q->first[list] == NONE)
        q->first[list] = entry;
    else
        pairs[q->end[list]].next = entry;
    q->end[list] = entry;
    if (list) q->used |= 1u << (list - 1);
    q->w->n_steps++;
}

static unsigned list_of(const pair_queue *q, uint32_t order) {
    const uint32_t difference = order ^ q->last;
    return difference ? 32 - (unsigned)__builtin_clz(difference) : 0;
}

static void push(pair_queue *q, tok_pair item) {
    tok_work *w = q->w;
    uint32_t entry = q->unused;
    if (entry != NONE) {
        q->unused = w->pairs[entry].next;
    } else {
        if (!tok_work_grow(w, (void **)&w->pairs, &w->pairs_capacity, w->n_pairs + 1, sizeof *w->pairs)) return;
        entry = (uint32_t)w->n_pairs++;
    }
    w->pairs[entry] = item;
    append(q, list_of(q, item.order), entry);
}

/* Makes list 0 the pairs of the lowest order that there is; false if none wait. */
static bool next_order(pair_queue *q) {
    if (q->first[0] != NONE) return true;
    if (q->used == 0) return false;
    const unsigned list = (unsigned)__builtin_ctz(q->used) + 1;
    const tok_pair *pairs = q->w->pairs;
    uint32_t entry = q->first[list], lowest = NO_ORDER;
    for (uint32_t i = entry; i != NONE; i = pairs[i].next)
        if (pairs[i].order < lowest) lowest = pairs[i].order;
    q->first[list] = NONE;
    q->used &= q->used - 1;
    q->last = lowest;
    while (entry != NONE) {
        const uint32_t next = pairs[entry].next;
        append(q, list_of(q, pairs[entry].order), entry);
        entry = next;
    }
    return true;
}

/* Sorts entries by the position of their left symbols: a radix sort, byte by byte. `other` is room for as many. */
static void sort_by_position(tok_work *w, uint32_t *entries, uint32_t *other, size_t n) {
    const tok_pair *pairs = w->pairs;
    for (unsigned shift = 0; shift < 32 && w->n_symbols >> shift; shift += 8) {
        size_t place[257] = {0};
        for (size_t i = 0; i < n; i++) place[(pairs[entries[i]].left >> shift & 255) + 1]++;
        for (size_t i = 1; i < 257; i++) place[i] += place[i - 1];
        for (size_t i = 0; i < n; i++) other[place[pairs[entries[i]].left >> shift & 255]++] = entries[i];
        memcpy(entries, other, n * sizeof *entries);
        w->n_steps += n;
    }
}

/* Takes list 0 as w->group[0..n), by position, and makes its entries free for new pairs. */
static size_t take_group(pair_queue *q) {
    tok_work *w = q->w;
    size_t n = 0;
    bool sorted = true;
    for (uint32_t i = q->first[0]; i != NONE; i = w->pairs[i].next) n++;
    if (!tok_work_grow(w, (void **)&w->group, &w->group_capacity, 2 * n, sizeof *w->group)) return 0;
    uint32_t *entries = w->group, previous = 0;
    n = 0;
    for (uint32_t i = q->first[0]; i != NONE; i = w->pairs[i].next) {
        sorted = sorted && w->pairs[i].left >= previous;
        previous = w->pairs[i].left;
        entries[n++] = i;
    }
    if (!sorted && n > SMALL_GROUP) {
        sort_by_position(w, entries, entries + n, n);
    } else if (!sorted) {
        for (size_t i = 1; i < n; i++) {
            const uint32_t entry = entries[i];
            size_t at = i;
            for (; at > 0 && w->pairs[entries[at - 1]].left > w->pairs[entry].left; at--) entries[at] = entries[at - 1];
            entries[at] = entry;
            w->n_steps += i - at;
        }
    }
    q->first[0] = NONE;
    return n;
}

/* The symbol and its right neighbour; order NO_ORDER if they cannot be merged. */
static tok_pair pair_at(const tok *t, tok_work *w, const char *text, uint32_t left) {
    tok_pair pair = {.order = NO_ORDER, .left = left};
    const uint32_t right = left == NONE ? NONE : w->symbols[left].next;
    w->n_steps++;
    if (right == NONE) return pair;
    pair.order = join(t, text, &w->symbols[left], &w->symbols[right], &pair.merged);
    pair.n_bytes = w->symbols[left].n_bytes + w->symbols[right].n_bytes;
    return pair;
}

static bool comes_first(const tok_pair *a, const tok_pair *b) {
    return a->order < b->order || (a->order == b->order && a->left <= b->left);
}

static void merge_pair(tok_work *w, const tok_pair *pair) {
    tok_symbol *s = w->symbols, *left = &s[pair->left], *right = &s[left->next];
    left->n_bytes = pair->n_bytes;
    left->id = pair->merged;
    left->next = right->next;
    right->n_bytes = 0;
    if (left->next != NONE) s[left->next].prev = pair->left;
}

/* Merges the pair, and then whatever its result may be merged with that comes before all that wait. */
static void merge_and_follow(const tok *t, pair_queue *q, const char *text, tok_pair pair) {
    const tok_pair taken = pair;
    tok_work *w = q->w;
    for (;;) {
        merge_pair(w, &pair);
        const tok_pair before = pair_at(t, w, text, w->symbols[pair.left].prev), after = pair_at(t, w, text, pair.left);
        pair = comes_first(&before, &after) ? before : after;
        if (pair.order != NO_ORDER && comes_first(&pair, &taken)) continue;
        if (before.order != NO_ORDER) push(q, before);
        if (after.order != NO_ORDER) push(q, after);
        return;
    }
}

static void merge_by_order(const tok *t, tok_work *w, const char *text) {
    pair_queue q = {.w = w, .unused = NONE};
    tok_symbol *s = w->symbols;
    memset(q.first, 0xff, sizeof q.first);
    w->n_pairs = 0;
    for (uint32_t i = 0; i < w->n_symbols; i++) {
        s[i].prev = i == 0 ? NONE : i - 1;
        s[i].next = i + 1 < w->n_symbols ? i + 1 : NONE;
    }
    for (uint32_t i = 0; i + 1 < w->n_symbols; i++) {
        const tok_pair pair = pair_at(t, w, text, i);
        if (pair.order != NO_ORDER) push(&q, pair);
    }
    while (!w->failed && next_order(&q)) {
        const size_t n = take_group(&q);
        for (size_t i = 0; i < n && !w->failed; i++) {
            const tok_pair pair = w->pairs[w->group[i]];
            const tok_symbol *left = &s[pair.left];
            w->pairs[w->group[i]].next = q.unused;
            q.unused = w->group[i];
            /* Symbols only grow: both are as they were when the entry was made if and only if their sum is. */
            if (left->n_bytes == 0 || left->next == NONE || left->n_bytes + s[left->next].n_bytes != pair.n_bytes) continue;
            merge_and_follow(t, &q, text, pair);
        }
    }
    size_t n = 0;
    for (size_t i = 0; i < w->n_symbols; i++)
        if (s[i].n_bytes) s[n++] = s[i];
    w->n_symbols = n;
}

void tok_merge(const tok *t, tok_work *w, const char *text) {
    if (w->n_symbols <= SCAN_SYMBOLS)
        merge_by_scan(t, w, text);
    else
        merge_by_order(t, w, text);
}
