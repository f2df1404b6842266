/* See grammar_match.h. One step of the matcher: bytes, then returns, then calls.
 *
 * After a byte, finished rules return to the places in their frames (which are complete: they were made at earlier bytes); only
 * then calls are made, those of one rule from all places together, in an order in which every caller comes before what it calls
 * (there is no left recursion). A nullable rule is stepped over where it is called, so that nothing made at this byte has to
 * return at this byte. A call at whose end the caller's rule ends too goes straight to the caller's frame: right recursion does
 * not grow the stack. */
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_match.h"

enum { MAX_ITEMS = 1 << 14, MAX_FRAMES = 1 << 20, MAX_ENTRIES = 1 << 22, LINEAR_ITEMS = 12 };

bool grammar_grow(void **data, size_t n, size_t *capacity, size_t size) {
    if (n < *capacity) return true;
    const size_t grown = *capacity ? 2 * *capacity : 16;
    void *p = realloc(*data, grown * size);
    if (p == NULL) return false;
    *data = p;
    *capacity = grown;
    return true;
}

bool grammar_items_add(grammar_items *list, grammar_item item) {
    if (!grammar_grow((void **)&list->items, list->n, &list->capacity, sizeof *list->items)) return false;
    list->items[list->n++] = item;
    return true;
}

/* ---- frames ------------------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h) {
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    h = (h ^ h >> 29) * 0xFF51AFD7ED558CCDu;
    return h ^ h >> 32;
}

static uint64_t entry_hash(const grammar_matcher *m, grammar_item e, int lane) {
    const uint64_t inner = e.state < FIRST_STATE ? e.state : m->frames[e.frame].hash[lane] + e.state;
    return mix(inner * 2 + 1 + (uint64_t)lane * 0x9E3779B97F4A7C15u);
}

static bool rehash(grammar_matcher *m) {
    const size_t n_buckets = m->n_buckets ? 4 * m->n_buckets : 64;
    uint32_t *buckets = calloc(n_buckets, sizeof *buckets);
    if (buckets == NULL) return false;
    for (size_t i = 0; i < m->n_frames; i++) { /* ascending: the newest ends up in front */
        uint32_t *bucket = &buckets[m->frames[i].hash[0] & (n_buckets - 1)];
        m->frames[i].next = *bucket;
        *bucket = (uint32_t)i + 1;
    }
    free(m->buckets);
    m->buckets = buckets;
    m->n_buckets = n_buckets;
    return true;
}

static int compare_items(const void *a, const void *b) {
    const grammar_item *x = a, *y = b;
    if (x->state != y->state) return x->state < y->state ? -1 : 1;
    return x->frame < y->frame ? -1 : x->frame > y->frame;
}

/* The frame with the entries collected in new_entries, or NO_FRAME with m->code set. */
static int64_t intern_frame(grammar_matcher *m) {
    if (m->n_new > 1) {
        qsort(m->new_entries, m->n_new, sizeof *m->new_entries, compare_items);
        size_t kept = 1;
        for (size_t i = 1; i < m->n_new; i++)
            if (compare_items(&m->new_entries[i], &m->new_entries[kept - 1])) m->new_entries[kept++] = m->new_entries[i];
        m->n_new = kept;
    }
    uint64_t hash[2] = {m->n_new, m->n_new};
    for (size_t i = 0; i < m->n_new; i++)
        for (int lane = 0; lane < 2; lane++) hash[lane] += entry_hash(m, m->new_entries[i], lane);
    hash[0] = mix(hash[0]), hash[1] = mix(hash[1]);
    for (uint32_t i = m->n_buckets ? m->buckets[hash[0] & (m->n_buckets - 1)] : 0; i; i = m->frames[i - 1].next) {
        const grammar_frame *f = &m->frames[i - 1];
        if (f->n == m->n_new && memcmp(m->entries + f->first, m->new_entries, f->n * sizeof *m->entries) == 0) return i - 1;
    }
    if (m->n_frames >= MAX_FRAMES || m->n_entries + m->n_new > MAX_ENTRIES) {
        m->code = WEIR_E_LIMIT;
        return NO_FRAME;
    }
    bool ok = m->n_frames < m->n_buckets || rehash(m);
    ok = ok && grammar_grow((void **)&m->frames, m->n_frames, &m->frames_capacity, sizeof *m->frames);
    for (size_t i = 0; i < m->n_new && ok; i++) {
        ok = grammar_grow((void **)&m->entries, m->n_entries + i, &m->entries_capacity, sizeof *m->entries);
        if (ok) m->entries[m->n_entries + i] = m->new_entries[i];
    }
    if (!ok) {
        m->code = WEIR_E_NOMEM;
        return NO_FRAME;
    }
    uint32_t *bucket = &m->buckets[hash[0] & (m->n_buckets - 1)];
    m->frames[m->n_frames] = (grammar_frame){(uint32_t)m->n_entries, (uint32_t)m->n_new, *bucket, {hash[0], hash[1]}};
    m->n_entries += m->n_new;
    *bucket = (uint32_t)++m->n_frames;
    return (int64_t)m->n_frames - 1;
}

static bool new_entry(grammar_matcher *m, grammar_item e) {
    if (!grammar_grow((void **)&m->new_entries, m->n_new, &m->new_capacity, sizeof *m->new_entries)) return false;
    m->new_entries[m->n_new++] = e;
    return true;
}

int grammar_matcher_init(grammar_matcher *m, const grammar *g) {
    *m = (grammar_matcher){.g = g};
    static const uint32_t ends[] = {[FRAME_BOTTOM] = STATE_ACCEPT, [FRAME_LOCAL] = STATE_ESCAPE};
    for (size_t i = 0; i < 2; i++) {
        m->n_new = 0;
        if (!new_entry(m, (grammar_item){ends[i], 0}) || intern_frame(m) < 0) return WEIR_E_NOMEM;
    }
    return 0;
}

void grammar_matcher_free(grammar_matcher *m) {
    free(m->frames);
    free(m->entries);
    free(m->buckets);
    free(m->raw);
    free(m->new_entries);
    free(m->seen);
    free(m->calls);
    *m = (grammar_matcher){0};
}

static void *duplicate(const void *data, size_t n, size_t size) {
    void *copy = malloc(n * size + 1);
    if (copy && n) memcpy(copy, data, n * size);
    return copy;
}

int grammar_matcher_copy(grammar_matcher *to, const grammar_matcher *from) {
    *to = (grammar_matcher){.g = from->g,
                            .n_frames = from->n_frames,
                            .n_entries = from->n_entries,
                            .n_buckets = from->n_buckets,
                            .collect_at = from->collect_at};
    to->frames = duplicate(from->frames, from->n_frames, sizeof *to->frames);
    to->entries = duplicate(from->entries, from->n_entries, sizeof *to->entries);
    to->buckets = duplicate(from->buckets, from->n_buckets, sizeof *to->buckets);
    to->frames_capacity = from->n_frames;
    to->entries_capacity = from->n_entries;
    return to->frames && to->entries && to->buckets ? 0 : WEIR_E_NOMEM;
}

void grammar_matcher_drop(grammar_matcher *m, size_t n_frames) {
    while (m->n_frames > n_frames) {
        const grammar_frame *f = &m->frames[--m->n_frames];
        m->buckets[f->hash[0] & (m->n_buckets - 1)] = f->next;
        m->n_entries = f->first;
    }
}

int grammar_matcher_collect(grammar_matcher *m, grammar_items *items) {
    enum { COLLECT_FROM = 4096 };
    if (m->n_frames < COLLECT_FROM || m->n_frames < m->collect_at) return 0;
    uint32_t *number = calloc(m->n_frames, sizeof *number); /* first: needed or not */
    if (number == NULL) return WEIR_E_NOMEM;
    number[FRAME_BOTTOM] = number[FRAME_LOCAL] = 1;
    for (size_t i = 0; i < items->n; i++) number[items->items[i].frame] = 1;
    for (size_t f = m->n_frames; f-- > 0;)
        for (uint32_t k = 0; k < m->frames[f].n && number[f]; k++) number[m->entries[m->frames[f].first + k].frame] = 1;
    const size_t n_before = m->n_frames;
    size_t n = 0, n_entries = 0;
    for (size_t f = 0; f < n_before; f++) {
        if (!number[f]) continue;
        const grammar_frame old = m->frames[f];
        number[f] = (uint32_t)n;
        for (uint32_t k = 0; k < old.n; k++) {
            grammar_item e = m->entries[old.first + k];
            if (e.state >= FIRST_STATE) e.frame = number[e.frame];
            m->entries[n_entries + k] = e;
        }
        m->frames[n] = old;
        m->frames[n++].first = (uint32_t)n_entries;
        n_entries += old.n;
    }
    for (size_t i = 0; i < items->n; i++) items->items[i].frame = number[items->items[i].frame];
    free(number);
    m->n_frames = n;
    m->n_entries = n_entries;
    m->collect_at = 2 * n;
    memset(m->buckets, 0, m->n_buckets * sizeof *m->buckets);
    for (size_t i = 0; i < n; i++) {
        uint32_t *bucket = &m->buckets[m->frames[i].hash[0] & (m->n_buckets - 1)];
        m->frames[i].next = *bucket;
        *bucket = (uint32_t)i + 1;
    }
    return 0;
}

/* ---- one step ----------------------------------------------------------------------------------------------------------- */

static size_t seen_slot(const grammar_matcher *m, grammar_item item) {
    size_t at = (size_t)mix((uint64_t)item.state << 32 | item.frame) & (m->n_seen - 1);
    while (m->seen[at] && compare_items(&m->raw[m->seen[at] - 1], &item)) at = (at + 1) & (m->n_seen - 1);
    return at;
}

static bool seen_grow(grammar_matcher *m) {
    const size_t n_seen = m->n_seen < 4 * m->n_raw + 64 ? 8 * m->n_raw + 64 : m->n_seen;
    size_t rounded = 64;
    while (rounded < n_seen) rounded *= 2;
    uint32_t *seen = realloc(m->seen, rounded * sizeof *seen);
    if (seen == NULL) return false;
    memset(seen, 0, rounded * sizeof *seen);
    m->seen = seen;
    m->n_seen = rounded;
    for (size_t i = 0; i < m->n_raw; i++) seen[seen_slot(m, m->raw[i])] = (uint32_t)i + 1;
    return true;
}

/* Adds a place once. */
static void add_place(grammar_matcher *m, grammar_item item) {
    size_t slot = 0;
    if (m->code) return;
    if (m->n_raw < LINEAR_ITEMS) {
        for (size_t i = 0; i < m->n_raw; i++)
            if (compare_items(&m->raw[i], &item) == 0) return;
    } else {
        if ((m->n_raw == LINEAR_ITEMS || 2 * m->n_raw > m->n_seen) && !seen_grow(m)) m->code = WEIR_E_NOMEM;
        if (m->code) return;
        slot = seen_slot(m, item);
        if (m->seen[slot]) return;
    }
    if (m->n_raw >= MAX_ITEMS)
        m->code = WEIR_E_LIMIT;
    else if (!grammar_grow((void **)&m->raw, m->n_raw, &m->raw_capacity, sizeof *m->raw))
        m->code = WEIR_E_NOMEM;
    if (m->code) return;
    m->raw[m->n_raw++] = item;
    if (m->n_raw > LINEAR_ITEMS) m->seen[slot] = (uint32_t)m->n_raw;
}

static bool before(const grammar_pending_call *a, const grammar_pending_call *b) {
    return a->rank < b->rank;
}

static void push_call(grammar_matcher *m, grammar_pending_call call) {
    if (!grammar_grow((void **)&m->calls, m->n_calls, &m->calls_capacity, sizeof *m->calls)) {
        m->code = WEIR_E_NOMEM;
        return;
    }
    size_t i = m->n_calls++;
    for (; i && before(&call, &m->calls[(i - 1) / 2]); i = (i - 1) / 2) m->calls[i] = m->calls[(i - 1) / 2];
    m->calls[i] = call;
}

static grammar_pending_call pop_call(grammar_matcher *m) {
    const grammar_pending_call top = m->calls[0], last = m->calls[--m->n_calls];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < m->n_calls; i = child) {
        if (child + 1 < m->n_calls && before(&m->calls[child + 1], &m->calls[child])) child++;
        if (!before(&m->calls[child], &last)) break;
        m->calls[i] = m->calls[child];
    }
    m->calls[i] = last;
    return top;
}

/* Follows the places from index `next` of raw: calls go to the heap, nullable calls are stepped over, items that take bytes go
 * to *out; with `returns` finished rules return. */
static void follow_places(grammar_matcher *m, size_t next, bool returns, grammar_items *out) {
    const grammar *g = m->g;
    for (; next < m->n_raw && m->code == 0; next++) {
        const grammar_item at = m->raw[next];
        const grammar_state_row *row = &g->states[at.state];
        if ((row->n_edges || at.state < FIRST_STATE) && !grammar_items_add(out, at)) m->code = WEIR_E_NOMEM;
        for (uint32_t i = 0; i < row->n_calls && m->code == 0; i++) {
            const grammar_call_edge call = g->calls[row->first_call + i];
            push_call(m, (grammar_pending_call){g->rules[call.rule].rank, call.rule, call.to, at.frame});
            if (g->rules[call.rule].nullable) add_place(m, (grammar_item){call.to, at.frame});
        }
        if (!row->final || !returns) continue;
        for (uint32_t i = 0; i < m->frames[at.frame].n; i++) add_place(m, m->entries[m->frames[at.frame].first + i]);
    }
}

static void make_calls(grammar_matcher *m, grammar_items *out) {
    const grammar *g = m->g;
    while (m->n_calls && m->code == 0) {
        const uint32_t r = m->calls[0].rule;
        m->n_new = 0;
        while (m->n_calls && m->calls[0].rule == r && m->code == 0) {
            const grammar_pending_call call = pop_call(m);
            const grammar_frame *outer = &m->frames[call.frame];
            bool ok = true;
            if (!g->states[call.to].is_leaf)
                ok = new_entry(m, (grammar_item){call.to, call.frame});
            else
                for (uint32_t i = 0; i < outer->n && ok; i++) ok = new_entry(m, m->entries[outer->first + i]);
            if (!ok) m->code = WEIR_E_NOMEM;
            if (m->n_new > MAX_ENTRIES / 4) m->code = WEIR_E_LIMIT;
        }
        const int64_t frame = m->code ? NO_FRAME : intern_frame(m);
        if (frame < 0) return;
        const size_t next = m->n_raw;
        add_place(m, (grammar_item){g->rules[r].start, (uint32_t)frame});
        follow_places(m, next, false, out);
    }
}

static int finish_step(grammar_matcher *m, grammar_items *out) {
    follow_places(m, 0, true, out);
    if (m->code == 0) make_calls(m, out);
    return m->code;
}

static void begin_step(grammar_matcher *m) {
    m->n_raw = m->n_calls = 0;
    m->code = 0;
}

int grammar_matcher_close(grammar_matcher *m, const grammar_item *places, size_t n, grammar_items *out) {
    begin_step(m);
    for (size_t i = 0; i < n; i++) add_place(m, places[i]);
    return finish_step(m, out);
}

int grammar_matcher_step(grammar_matcher *m, const grammar_item *from, size_t n, uint8_t byte, grammar_items *out) {
    const grammar *g = m->g;
    begin_step(m);
    for (size_t i = 0; i < n; i++) {
        const grammar_item at = from[i];
        const int32_t to = grammar_step(g, at.state, byte);
        if (to == STEP_DEAD) continue;
        if (to >= 0) {
            add_place(m, (grammar_item){(uint32_t)to, at.frame});
            continue;
        }
        const grammar_state_row *row = &g->states[at.state];
        for (uint32_t k = 0; k < row->n_edges; k++) {
            const fa_edge *e = &g->edges[row->first_edge + k];
            if (e->lo <= byte && byte <= e->hi) add_place(m, (grammar_item){e->to, at.frame});
        }
    }
    return finish_step(m, out);
}
