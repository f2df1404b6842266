/* Finite automata over labels: Thompson's construction, subsets, products, minimisation. See grammar_internal.h.
 * Recursion follows expressions, whose depth is bounded. */
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_internal.h"

#define LABEL_EMPTY UINT32_MAX

typedef struct nfa_edge {
    uint32_t lo, hi, to; /* lo == LABEL_EMPTY: an empty step */
    uint32_t next;       /* of the same state; NO_STATE ends the list */
} nfa_edge;

typedef struct nfa {
    uint32_t *first; /* [n_states] */
    size_t n_states, states_capacity;
    nfa_edge *edges;
    size_t n_edges, edges_capacity;
} nfa;

/* ---- Thompson's construction -------------------------------------------------------------------------------------------- */

static void *grow(grammar_builder *b, void *data, size_t n, size_t *capacity, size_t size) {
    if (n < *capacity) return data;
    const size_t grown_capacity = *capacity ? 2 * *capacity : 64;
    void *grown = grammar_alloc(b, grown_capacity, size);
    if (grown == NULL) return NULL;
    if (n) memcpy(grown, data, n * size);
    *capacity = grown_capacity;
    return grown;
}

static uint32_t add_state(grammar_builder *b, nfa *a) {
    if (a->n_states >= MAX_RULE_STATES)
        grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: one rule takes more than %d states", MAX_RULE_STATES);
    uint32_t *first = grow(b, a->first, a->n_states, &a->states_capacity, sizeof *first);
    if (first == NULL || !grammar_work(b, 1)) return 0;
    a->first = first;
    a->first[a->n_states] = NO_STATE;
    return (uint32_t)a->n_states++;
}

static void add_edge(grammar_builder *b, nfa *a, uint32_t from, uint32_t lo, uint32_t hi, uint32_t to) {
    nfa_edge *edges = grow(b, a->edges, a->n_edges, &a->edges_capacity, sizeof *edges);
    if (edges == NULL || !grammar_work(b, 1)) return;
    a->edges = edges;
    a->edges[a->n_edges] = (nfa_edge){lo, hi, to, a->first[from]};
    a->first[from] = (uint32_t)a->n_edges++;
}

static void add_empty(grammar_builder *b, nfa *a, uint32_t from, uint32_t to) {
    add_edge(b, a, from, LABEL_EMPTY, LABEL_EMPTY, to);
}

static void add_expr(grammar_builder *b, nfa *a, const expr *e, uint32_t from, uint32_t to);

static void add_literal(grammar_builder *b, nfa *a, const expr *e, uint32_t from, uint32_t to) {
    if (e->literal.n_bytes == 0) add_empty(b, a, from, to);
    for (size_t i = 0; i < e->literal.n_bytes && b->code == 0; i++) {
        const uint32_t next = i + 1 == e->literal.n_bytes ? to : add_state(b, a);
        const uint8_t byte = (uint8_t)e->literal.text[i];
        add_edge(b, a, from, byte, byte, next);
        from = next;
    }
}

static void add_repeat(grammar_builder *b, nfa *a, const expr *e, uint32_t from, uint32_t to) {
    for (uint32_t i = 0; i < e->repeat.min && b->code == 0; i++) {
        const uint32_t next = add_state(b, a);
        add_expr(b, a, e->repeat.item, from, next);
        from = next;
    }
    if (e->repeat.max == NO_BOUND) {
        const uint32_t loop = add_state(b, a);
        add_empty(b, a, from, loop);
        add_expr(b, a, e->repeat.item, loop, loop);
        add_empty(b, a, loop, to);
        return;
    }
    for (uint32_t i = e->repeat.min; i < e->repeat.max && b->code == 0; i++) {
        const uint32_t next = add_state(b, a);
        add_empty(b, a, from, to);
        add_expr(b, a, e->repeat.item, from, next);
        from = next;
    }
    add_empty(b, a, from, to);
}

static void add_automaton(grammar_builder *b, nfa *a, const fa *inner, uint32_t from, uint32_t to) {
    const uint32_t base = (uint32_t)a->n_states;
    for (uint32_t s = 0; s < inner->n_states && b->code == 0; s++) add_state(b, a);
    if (b->code) return;
    add_empty(b, a, from, base);
    for (uint32_t s = 0; s < inner->n_states && b->code == 0; s++) {
        if (inner->final[s]) add_empty(b, a, base + s, to);
        for (uint32_t i = inner->first[s]; i < inner->first[s + 1]; i++)
            add_edge(b, a, base + s, inner->edges[i].lo, inner->edges[i].hi, base + inner->edges[i].to);
    }
}

static void add_graph(grammar_builder *b, nfa *a, const expr_graph *graph, uint32_t from, uint32_t to) {
    uint32_t *states = grammar_alloc(b, graph->n_nodes, sizeof *states);
    if (states == NULL) return;
    for (uint32_t i = 0; i < graph->n_nodes; i++) states[i] = i == GRAPH_END ? to : add_state(b, a);
    add_empty(b, a, from, states[GRAPH_START]);
    for (size_t i = 0; i < graph->n_edges && b->code == 0; i++)
        add_expr(b, a, graph->edges[i].label, states[graph->edges[i].from], states[graph->edges[i].to]);
}

/* Connects from and to by the texts of `e`; adds nothing that enters `from` or leaves `to`, unless they are the same state. */
static void add_expr(grammar_builder *b, nfa *a, const expr *e, uint32_t from, uint32_t to) {
    if (b->code) return;
    switch (e->kind) {
    case EXPR_NOTHING:
        return;
    case EXPR_LITERAL:
        add_literal(b, a, e, from, to);
        return;
    case EXPR_BYTES:
        add_edge(b, a, from, e->bytes.lo, e->bytes.hi, to);
        return;
    case EXPR_CALL:
        add_edge(b, a, from, LABEL_CALL + e->rule, LABEL_CALL + e->rule, to);
        return;
    case EXPR_REPEAT:
        add_repeat(b, a, e, from, to);
        return;
    case EXPR_FA:
        add_automaton(b, a, e->automaton, from, to);
        return;
    case EXPR_GRAPH:
        add_graph(b, a, e->graph, from, to);
        return;
    case EXPR_ALT:
        for (size_t i = 0; i < e->list.n; i++) add_expr(b, a, e->list.items[i], from, to);
        return;
    case EXPR_SEQ:
        for (size_t i = 0; i < e->list.n && b->code == 0; i++) {
            const uint32_t next = i + 1 == e->list.n ? to : add_state(b, a);
            add_expr(b, a, e->list.items[i], from, next);
            from = next;
        }
        return;
    }
}

/* ---- an automaton being written ----------------------------------------------------------------------------------------- */

typedef struct fa_writer {
    uint32_t *first;
    uint8_t *final;
    size_t n_states, first_capacity, final_capacity; /* rows are written in order of the states */
    fa_edge *edges;
    size_t n_edges, edges_capacity;
} fa_writer;

static void writer_state(grammar_builder *b, fa_writer *w, bool final) {
    uint32_t *first = grow(b, w->first, w->n_states, &w->first_capacity, sizeof *first);
    uint8_t *finals = grow(b, w->final, w->n_states, &w->final_capacity, sizeof *finals);
    if (first == NULL || finals == NULL) return;
    w->first = first;
    w->final = finals;
    w->first[w->n_states] = (uint32_t)w->n_edges;
    w->final[w->n_states++] = final;
}

/* An edge of the state written last; joined to the one before if it continues it. */
static void writer_edge(grammar_builder *b, fa_writer *w, uint32_t lo, uint32_t hi, uint32_t to) {
    if (b->code) return;
    fa_edge *last = w->n_edges > w->first[w->n_states - 1] ? &w->edges[w->n_edges - 1] : NULL;
    if (last && last->to == to && last->hi + 1 == lo && lo < LABEL_CALL && hi < LABEL_CALL) {
        last->hi = hi;
        return;
    }
    fa_edge *edges = grow(b, w->edges, w->n_edges, &w->edges_capacity, sizeof *edges);
    if (edges == NULL) return;
    w->edges = edges;
    w->edges[w->n_edges++] = (fa_edge){lo, hi, to};
}

static fa *writer_finish(grammar_builder *b, fa_writer *w, bool deterministic) {
    writer_state(b, w, false); /* the sentinel row */
    fa *a = grammar_alloc(b, 1, sizeof *a);
    if (a == NULL) return NULL;
    *a = (fa){(uint32_t)(w->n_states - 1), deterministic, w->first, w->edges, w->final};
    return a;
}

/* ---- sets of numbers with identities ------------------------------------------------------------------------------------ */

typedef struct set_table {
    uint32_t *slots; /* identity + 1, 0 = free */
    size_t n_slots;
    size_t *offsets, offsets_capacity; /* [n]: where each set begins in members; the next begins where it ends */
    uint32_t *members;
    size_t n_members, members_capacity, n;
} set_table;

static uint64_t hash_words(const uint32_t *words, size_t n) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ n;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ words[i]) * 0xFF51AFD7ED558CCDu;
        h ^= h >> 32;
    }
    return h;
}

static size_t set_end(const set_table *t, size_t i) {
    return i + 1 < t->n ? t->offsets[i + 1] : t->n_members;
}

static bool set_rehash(grammar_builder *b, set_table *t) {
    const size_t n_slots = t->n_slots ? 2 * t->n_slots : 256;
    uint32_t *slots = grammar_alloc(b, n_slots, sizeof *slots);
    if (slots == NULL) return false;
    for (size_t i = 0; i < t->n; i++) {
        size_t at = hash_words(t->members + t->offsets[i], set_end(t, i) - t->offsets[i]) & (n_slots - 1);
        while (slots[at]) at = (at + 1) & (n_slots - 1);
        slots[at] = (uint32_t)i + 1;
    }
    t->slots = slots;
    t->n_slots = n_slots;
    return true;
}

/* The identity of a set, given as ascending numbers; a new one is the number of sets so far. NO_STATE after a failure. */
static uint32_t set_intern(grammar_builder *b, set_table *t, const uint32_t *words, size_t n) {
    if (2 * (t->n + 1) > t->n_slots && !set_rehash(b, t)) return NO_STATE;
    size_t at = hash_words(words, n) & (t->n_slots - 1);
    for (; t->slots[at]; at = (at + 1) & (t->n_slots - 1)) {
        const size_t i = t->slots[at] - 1, begin = t->offsets[i];
        if (set_end(t, i) - begin == n && (n == 0 || memcmp(t->members + begin, words, n * sizeof *words) == 0))
            return (uint32_t)i;
    }
    size_t *offsets = grow(b, t->offsets, t->n, &t->offsets_capacity, sizeof *offsets);
    if (offsets == NULL) return NO_STATE;
    t->offsets = offsets;
    while (t->n_members + n > t->members_capacity) {
        uint32_t *members = grow(b, t->members, t->members_capacity, &t->members_capacity, sizeof *members);
        if (members == NULL) return NO_STATE;
        t->members = members;
    }
    t->offsets[t->n] = t->n_members;
    if (n) memcpy(t->members + t->n_members, words, n * sizeof *words);
    t->n_members += n;
    t->slots[at] = (uint32_t)t->n + 1;
    return (uint32_t)t->n++;
}

/* ---- subsets ------------------------------------------------------------------------------------------------------------ */

typedef struct subsets {
    const nfa *a;
    uint32_t *mark, generation; /* mark[state] == generation: in the set being closed */
    uint32_t *set;              /* the set being closed */
    size_t n_set;
    fa_edge *edges; /* of the subset being expanded */
    size_t n_edges, edges_capacity;
    uint32_t *points;
    size_t points_capacity;
} subsets;

static bool subsets_init(grammar_builder *b, subsets *s, const nfa *a) {
    *s = (subsets){.a = a};
    s->mark = grammar_alloc(b, a->n_states, sizeof *s->mark);
    s->set = grammar_alloc(b, a->n_states, sizeof *s->set);
    return b->code == 0;
}

static void set_add(subsets *s, uint32_t state) {
    if (s->mark[state] == s->generation) return;
    s->mark[state] = s->generation;
    s->set[s->n_set++] = state;
}

static int compare_words(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Follows empty steps, then keeps the states that matter (some other step, or the end) in order. */
static void close_set(grammar_builder *b, subsets *s, uint32_t end) {
    for (size_t i = 0; i < s->n_set; i++)
        for (uint32_t e = s->a->first[s->set[i]]; e != NO_STATE; e = s->a->edges[e].next) {
            grammar_work(b, 1);
            if (s->a->edges[e].lo == LABEL_EMPTY) set_add(s, s->a->edges[e].to);
        }
    size_t kept = 0;
    for (size_t i = 0; i < s->n_set; i++) {
        bool matters = s->set[i] == end;
        for (uint32_t e = s->a->first[s->set[i]]; e != NO_STATE && !matters; e = s->a->edges[e].next)
            matters = s->a->edges[e].lo != LABEL_EMPTY;
        if (matters) s->set[kept++] = s->set[i];
    }
    s->n_set = kept;
    qsort(s->set, kept, sizeof *s->set, compare_words);
}

static int compare_edges(const void *a, const void *b) {
    const fa_edge *x = a, *y = b;
    if (x->lo != y->lo) return x->lo < y->lo ? -1 : 1;
    if (x->hi != y->hi) return x->hi < y->hi ? -1 : 1;
    return x->to < y->to ? -1 : x->to > y->to;
}

/* Collects the steps of a set of states into s->edges, ascending, each once. */
static bool gather_edges(grammar_builder *b, subsets *s, const uint32_t *set, size_t n) {
    s->n_edges = 0;
    for (size_t i = 0; i < n; i++)
        for (uint32_t e = s->a->first[set[i]]; e != NO_STATE; e = s->a->edges[e].next) {
            const nfa_edge *edge = &s->a->edges[e];
            if (edge->lo == LABEL_EMPTY) continue;
            fa_edge *edges = grow(b, s->edges, s->n_edges, &s->edges_capacity, sizeof *edges);
            if (edges == NULL || !grammar_work(b, 1)) return false;
            s->edges = edges;
            s->edges[s->n_edges++] = (fa_edge){edge->lo, edge->hi, edge->to};
        }
    if (s->n_edges) qsort(s->edges, s->n_edges, sizeof *s->edges, compare_edges);
    return true;
}

/* The labels at which the set of covering edges can change, ascending: returns how many. */
static size_t change_points(grammar_builder *b, subsets *s) {
    while (2 * s->n_edges > s->points_capacity) {
        s->points = grow(b, s->points, s->points_capacity, &s->points_capacity, sizeof *s->points);
        if (s->points == NULL) return 0;
    }
    for (size_t i = 0; i < s->n_edges; i++) {
        s->points[2 * i] = s->edges[i].lo;
        s->points[2 * i + 1] = s->edges[i].hi + 1;
    }
    size_t n = 2 * s->n_edges, kept = 0;
    if (n) qsort(s->points, n, sizeof *s->points, compare_words);
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || s->points[kept - 1] != s->points[i]) s->points[kept++] = s->points[i];
    return kept;
}

/* Writes the edges of one subset; the subsets that they lead to are interned in `table`. */
static void expand_subset(grammar_builder *b, subsets *s, set_table *table, fa_writer *w, uint32_t end) {
    const size_t n_points = change_points(b, s);
    size_t begin = 0; /* edges before this one end before the current label */
    for (size_t p = 0; p + 1 < n_points && b->code == 0; p++) {
        const uint32_t lo = s->points[p], hi = s->points[p + 1] - 1;
        s->generation++;
        s->n_set = 0;
        while (begin < s->n_edges && s->edges[begin].hi < lo) begin++;
        size_t i = begin;
        for (; i < s->n_edges && s->edges[i].lo <= lo; i++)
            if (s->edges[i].hi >= lo) set_add(s, s->edges[i].to);
        if (!grammar_work(b, 4 + i - begin) || s->n_set == 0) continue;
        close_set(b, s, end);
        const uint32_t to = set_intern(b, table, s->set, s->n_set);
        if (to != NO_STATE) writer_edge(b, w, lo, hi, to);
    }
}

/* The deterministic automaton, or NULL: failed (b->code), or more than max_states or max_members over all subsets. */
static const fa *determinise(grammar_builder *b, const nfa *a, uint32_t start, uint32_t end, size_t max_states,
                             size_t max_members) {
    subsets s;
    set_table table = {0};
    fa_writer w = {0};
    if (!subsets_init(b, &s, a)) return NULL;
    s.generation = 1;
    set_add(&s, start);
    close_set(b, &s, end);
    set_intern(b, &table, s.set, s.n_set);
    for (size_t i = 0; i < table.n && b->code == 0; i++) {
        if (table.n > max_states || table.n_members > max_members) return NULL;
        const uint32_t *set = table.members + table.offsets[i];
        const size_t n = set_end(&table, i) - table.offsets[i];
        bool final = false;
        for (size_t k = 0; k < n; k++) final = final || set[k] == end;
        writer_state(b, &w, final);
        if (gather_edges(b, &s, set, n)) expand_subset(b, &s, &table, &w, end);
    }
    return b->code ? NULL : writer_finish(b, &w, true);
}

/* The same automaton without empty steps: each state has the steps of its closure. */
static const fa *without_empty_steps(grammar_builder *b, const nfa *a, uint32_t end) {
    subsets s;
    fa_writer w = {0};
    if (!subsets_init(b, &s, a)) return NULL;
    for (uint32_t state = 0; state < a->n_states && b->code == 0; state++) {
        s.generation++;
        s.n_set = 0;
        set_add(&s, state);
        close_set(b, &s, end);
        bool final = false;
        for (size_t k = 0; k < s.n_set; k++) final = final || s.set[k] == end;
        writer_state(b, &w, final);
        if (!gather_edges(b, &s, s.set, s.n_set)) break;
        for (size_t k = 0; k < s.n_edges; k++) writer_edge(b, &w, s.edges[k].lo, s.edges[k].hi, s.edges[k].to);
    }
    return b->code ? NULL : writer_finish(b, &w, false);
}

/* ---- live states, fewest states ----------------------------------------------------------------------------------------- */

/* Marks the states from which a final one can be reached. */
static uint8_t *live_states(grammar_builder *b, const fa *a) {
    const uint32_t n_edges = a->first[a->n_states];
    uint8_t *live = grammar_alloc(b, a->n_states, 1);
    uint32_t *head = grammar_alloc(b, (size_t)a->n_states + 1, sizeof *head), *from = grammar_alloc(b, n_edges, sizeof *from);
    uint32_t *queue = grammar_alloc(b, a->n_states, sizeof *queue);
    if (b->code) return NULL;
    for (uint32_t i = 0; i < n_edges; i++) head[a->edges[i].to + 1]++;
    for (uint32_t s = 0; s < a->n_states; s++) head[s + 1] += head[s];
    for (uint32_t s = a->n_states; s-- > 0;)
        for (uint32_t i = a->first[s]; i < a->first[s + 1]; i++) from[--head[a->edges[i].to + 1]] = s;
    /* head[s + 1] is now where the predecessors of s begin, head[s + 2] where they end. */
    size_t n = 0;
    for (uint32_t s = 0; s < a->n_states; s++)
        if (a->final[s]) live[s] = 1, queue[n++] = s;
    for (size_t i = 0; i < n; i++) {
        const uint32_t s = queue[i], stop = s + 2 <= a->n_states ? head[s + 2] : n_edges;
        for (uint32_t k = head[s + 1]; k < stop; k++)
            if (!live[from[k]]) live[from[k]] = 1, queue[n++] = from[k];
    }
    return live;
}

/* Keeps one state of each class[] (NO_STATE drops a state); classes are numbered from 0 = the start's in order of their first
 * member. */
static const fa *quotient(grammar_builder *b, const fa *a, const uint32_t *class, uint32_t n_classes) {
    fa_writer w = {0};
    uint32_t next = 0;
    for (uint32_t s = 0; s < a->n_states && next < n_classes && b->code == 0; s++) {
        if (class[s] != next) continue;
        next++;
        writer_state(b, &w, a->final[s]);
        for (uint32_t i = a->first[s]; i < a->first[s + 1]; i++)
            if (class[a->edges[i].to] != NO_STATE) writer_edge(b, &w, a->edges[i].lo, a->edges[i].hi, class[a->edges[i].to]);
    }
    return b->code ? NULL : writer_finish(b, &w, a->deterministic);
}

/* Moore: classes are refined until two states of one class have the same edges to the same classes. */
static const fa *minimise(grammar_builder *b, const fa *a) {
    enum { MAX_ROUNDS = 40 };
    uint8_t *live = live_states(b, a);
    uint32_t *class = grammar_alloc(b, a->n_states, sizeof *class), *refined = grammar_alloc(b, a->n_states, sizeof *refined);
    uint32_t *row = NULL;
    size_t row_capacity = 0;
    set_table table = {0};
    if (b->code) return NULL;
    for (uint32_t s = 0; s < a->n_states; s++) class[s] = live[s] ? a->final[s] : NO_STATE;
    uint32_t n_classes = 0;
    for (int round = 0; round < MAX_ROUNDS; round++) {
        table.n = table.n_members = 0;
        if (table.n_slots) memset(table.slots, 0, table.n_slots * sizeof *table.slots);
        for (uint32_t s = 0; s < a->n_states; s++) {
            refined[s] = NO_STATE;
            if (!live[s] && s != 0) continue;
            while (3 * (size_t)(a->first[s + 1] - a->first[s]) + 1 > row_capacity)
                if ((row = grow(b, row, row_capacity, &row_capacity, sizeof *row)) == NULL) return NULL;
            size_t n = 0;
            row[n++] = class[s];
            for (uint32_t i = a->first[s]; i < a->first[s + 1]; i++) {
                const uint32_t to = class[a->edges[i].to];
                if (to == NO_STATE) continue;
                if (n > 1 && row[n - 1] == to && row[n - 2] + 1 == a->edges[i].lo && a->edges[i].lo < LABEL_CALL)
                    row[n - 2] = a->edges[i].hi;
                else
                    row[n++] = a->edges[i].lo, row[n++] = a->edges[i].hi, row[n++] = to;
            }
            if (!grammar_work(b, 2 + n)) return NULL;
            refined[s] = set_intern(b, &table, row, n);
            if (refined[s] == NO_STATE) return NULL;
        }
        memcpy(class, refined, a->n_states * sizeof *class);
        if (table.n == n_classes) return quotient(b, a, class, n_classes);
        n_classes = (uint32_t)table.n;
    }
    /* Refining takes as many rounds as the longest text that tells two states apart; give up on very long chains. */
    uint32_t n_live = 0;
    for (uint32_t s = 0; s < a->n_states; s++) class[s] = live[s] || s == 0 ? n_live++ : NO_STATE;
    return quotient(b, a, class, n_live);
}

static bool thompson(grammar_builder *b, nfa *a, const expr *e) {
    *a = (nfa){0};
    if (e->n_states > MAX_RULE_STATES)
        grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: one rule takes more than %d states", MAX_RULE_STATES);
    const uint32_t start = add_state(b, a), end = add_state(b, a);
    add_expr(b, a, e, start, end);
    return b->code == 0;
}

static const fa *minimal(grammar_builder *b, const nfa *a) {
    enum { MAX_REGULAR_STATES = 20000, MAX_REGULAR_MEMBERS = 2000000 };
    if (b->code) return NULL;
    const fa *d = determinise(b, a, 0, 1, MAX_REGULAR_STATES, MAX_REGULAR_MEMBERS);
    if (d == NULL) {
        grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: a pattern takes more than %d states", MAX_REGULAR_STATES);
        return NULL;
    }
    return minimise(b, d);
}

const fa *grammar_regular(grammar_builder *b, const expr *e) {
    nfa a;
    return thompson(b, &a, e) ? minimal(b, &a) : NULL;
}

const fa *grammar_erase(grammar_builder *b, const fa *inner, uint8_t lo, uint8_t hi) {
    nfa a = {0};
    const uint32_t start = add_state(b, &a), end = add_state(b, &a);
    add_automaton(b, &a, inner, start, end);
    for (size_t i = 0; i < a.n_edges && b->code == 0; i++)
        if (a.edges[i].lo >= lo && a.edges[i].hi <= hi) a.edges[i].lo = a.edges[i].hi = LABEL_EMPTY;
    return minimal(b, &a);
}

const fa *grammar_rule_automaton(grammar_builder *b, const expr *e) {
    enum { MINIMISE_UP_TO = 6000 };
    nfa a;
    if (e->kind == EXPR_FA && e->automaton->deterministic && e->automaton->n_states > MINIMISE_UP_TO / 8) return e->automaton;
    if (!thompson(b, &a, e)) return NULL;
    const fa *d = determinise(b, &a, 0, 1, 2 * a.n_states + 512, 64 * a.n_states + 4096);
    if (d && d->n_states <= MINIMISE_UP_TO) d = minimise(b, d);
    if (d == NULL && b->code == 0) d = without_empty_steps(b, &a, 1);
    return d;
}

/* ---- products ----------------------------------------------------------------------------------------------------------- */

/* Pairs of states; the right one may be NO_STATE in a difference (no text of `right` begins like this). */
static const fa *product(grammar_builder *b, const fa *left, const fa *right, bool subtract) {
    enum { MAX_PRODUCT_STATES = 40000 };
    set_table table = {0};
    fa_writer w = {0};
    if (left == NULL || right == NULL || b->code) return NULL;
    set_intern(b, &table, (uint32_t[]){0, 0}, 2);
    for (size_t i = 0; i < table.n && b->code == 0; i++) {
        const uint32_t l = table.members[2 * i], r = table.members[2 * i + 1];
        if (table.n > MAX_PRODUCT_STATES)
            grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: a combination of patterns takes more than %d states",
                         MAX_PRODUCT_STATES);
        const bool right_final = r != NO_STATE && right->final[r];
        writer_state(b, &w, left->final[l] && right_final != subtract);
        uint32_t k = r == NO_STATE ? 0 : right->first[r];
        const uint32_t k_end = r == NO_STATE ? 0 : right->first[r + 1];
        for (uint32_t e = left->first[l]; e < left->first[l + 1] && b->code == 0; e++) {
            const fa_edge *edge = &left->edges[e];
            for (uint32_t lo = edge->lo; lo <= edge->hi && grammar_work(b, 8);) {
                while (k < k_end && right->edges[k].hi < lo) k++;
                const bool covered = k < k_end && right->edges[k].lo <= lo;
                uint32_t hi = edge->hi;
                if (covered && right->edges[k].hi < hi) hi = right->edges[k].hi;
                if (!covered && k < k_end && right->edges[k].lo <= hi) hi = right->edges[k].lo - 1;
                if (covered || subtract) {
                    const uint32_t pair[2] = {edge->to, covered ? right->edges[k].to : NO_STATE};
                    writer_edge(b, &w, lo, hi, set_intern(b, &table, pair, 2));
                }
                lo = hi + 1;
            }
        }
    }
    if (b->code) return NULL;
    const fa *a = writer_finish(b, &w, true);
    return a ? minimise(b, a) : NULL;
}

const fa *grammar_intersect(grammar_builder *b, const fa *left, const fa *right) {
    return product(b, left, right, false);
}
const fa *grammar_subtract(grammar_builder *b, const fa *left, const fa *right) {
    return product(b, left, right, true);
}

bool grammar_fa_is_empty(const fa *a) {
    for (uint32_t s = 0; a && s < a->n_states; s++)
        if (a->final[s]) return false;
    return true;
}
