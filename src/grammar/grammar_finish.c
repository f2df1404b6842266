/* From the builder's rules to the grammar that the matcher walks: small rules are inlined, each rule becomes an automaton, what
 * can never be completed is dropped (so that a text which the matcher accepts so far can always be finished), rules are ranked
 * by who begins with whom, and the byte steps are laid out as a table. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_internal.h"

/* ---- inlining ----------------------------------------------------------------------------------------------------------- */

enum { INLINE_STATES = 128, INLINED_BODY_STATES = 20000, INLINE_DEPTH = 200 };

typedef struct inliner {
    grammar_builder *b;
    uint8_t *visited; /* [n_rules] */
    uint8_t *small;   /* [n_rules]: calls nothing and is small */
} inliner;

static void inline_rule(inliner *in, uint32_t r, int depth);

/* `e` with calls of small rules replaced; *calls is set if some calls are left. */
static const expr *inline_expr(inliner *in, const expr *e, bool *calls, int depth) {
    grammar_builder *b = in->b;
    if (!grammar_work(b, 4)) return e;
    if (e->kind == EXPR_CALL) {
        if (!in->visited[e->rule] && depth < INLINE_DEPTH) inline_rule(in, e->rule, depth + 1);
        if (in->small[e->rule]) return b->rules[e->rule].body;
        *calls = true;
        return e;
    }
    if (e->kind == EXPR_REPEAT) {
        const expr *item = inline_expr(in, e->repeat.item, calls, depth);
        return item == e->repeat.item ? e : grammar_repeat(b, item, e->repeat.min, e->repeat.max);
    }
    if (e->kind != EXPR_SEQ && e->kind != EXPR_ALT) return e;
    expr_list list = {0};
    for (size_t i = 0; i < e->list.n; i++) grammar_list_add(b, &list, inline_expr(in, e->list.items[i], calls, depth));
    return e->kind == EXPR_SEQ ? grammar_seq(b, &list) : grammar_alt(b, &list);
}

static void inline_rule(inliner *in, uint32_t r, int depth) {
    in->visited[r] = 1;
    bool calls = false;
    const expr *body = inline_expr(in, in->b->rules[r].body, &calls, depth);
    if (body->n_states > INLINED_BODY_STATES) return;
    in->b->rules[r].body = body;
    in->small[r] = !calls && body->n_states <= INLINE_STATES;
}

static void inline_rules(grammar_builder *b) {
    const size_t n_rules = b->n_rules;
    inliner in = {b, grammar_alloc(b, n_rules, 1), grammar_alloc(b, n_rules, 1)};
    /* Repetition in blocks adds rules on the way, beyond these tables; they are in new bodies only, which are not visited
     * again. */
    for (uint32_t r = 0; r < n_rules && b->code == 0; r++)
        if (!in.visited[r]) inline_rule(&in, r, 0);
}

/* ---- what is alive ------------------------------------------------------------------------------------------------------ */

typedef struct finisher {
    grammar_builder *b;
    const fa **automata; /* [n_rules]; NULL: never called */
    uint8_t *productive; /* [n_rules]: some text matches */
    uint8_t *nullable;   /* [n_rules]: the empty text matches */
    uint8_t **keep;      /* [n_rules][n_states]: the state can be reached and the end reached from it */
    uint32_t **number;   /* [n_rules][n_states]: in the grammar */
} finisher;

static bool edge_works(const finisher *f, const fa_edge *e) {
    return e->lo < LABEL_CALL || f->productive[e->lo - LABEL_CALL];
}

/* Automata of all rules that can be called from the root. */
static void make_automata(finisher *f, uint32_t root) {
    grammar_builder *b = f->b;
    uint32_t *queue = grammar_alloc(b, b->n_rules, sizeof *queue);
    uint8_t *queued = grammar_alloc(b, b->n_rules, 1);
    if (b->code) return;
    size_t n = 0;
    queue[n++] = root;
    queued[root] = 1;
    for (size_t i = 0; i < n; i++) {
        const fa *a = grammar_rule_automaton(b, b->rules[queue[i]].body);
        if (a == NULL) return;
        f->automata[queue[i]] = a;
        for (uint32_t e = 0; e < a->first[a->n_states]; e++) {
            if (a->edges[e].lo < LABEL_CALL) continue;
            const uint32_t r = a->edges[e].lo - LABEL_CALL;
            if (!queued[r]) queued[r] = 1, queue[n++] = r;
        }
    }
}

/* Marks in keep[r] the states of rule r from which its end can be reached over edges that work: a fixpoint over the edges. */
static bool mark_live(finisher *f, uint32_t r) {
    const fa *a = f->automata[r];
    uint8_t *keep = f->keep[r];
    for (uint32_t s = 0; s < a->n_states; s++) keep[s] = a->final[s];
    for (bool changed = true; changed;) {
        changed = false;
        /* From the back: later states are mostly nearer to the end. */
        for (uint32_t s = a->n_states; s-- > 0;) {
            if (!grammar_work(f->b, 1)) return false;
            for (uint32_t e = a->first[s]; e < a->first[s + 1] && !keep[s]; e++)
                if (keep[a->edges[e].to] && edge_works(f, &a->edges[e])) keep[s] = 1, changed = true;
        }
    }
    return keep[0];
}

static void find_productive(finisher *f) {
    const size_t n_rules = f->b->n_rules;
    for (size_t r = 0; r < n_rules; r++)
        if (f->automata[r]) f->keep[r] = grammar_alloc(f->b, f->automata[r]->n_states, 1);
    for (bool changed = true; changed && f->b->code == 0;) {
        changed = false;
        for (size_t r = n_rules; r-- > 0 && f->b->code == 0;)
            if (f->automata[r] && !f->productive[r] && mark_live(f, (uint32_t)r)) f->productive[r] = 1, changed = true;
    }
    /* Once more with all known: states of productive rules whose way leads through rules found later. */
    for (size_t r = 0; r < n_rules && f->b->code == 0; r++)
        if (f->productive[r]) mark_live(f, (uint32_t)r);
}

/* Puts the kept states that rule r reaches from its start into queue (and marks them in seen): over all edges, or over calls of
 * nullable rules only. Returns how many. */
static size_t reach(finisher *f, uint32_t r, bool only_nullable, uint32_t *queue, uint8_t *seen) {
    const fa *a = f->automata[r];
    size_t n = 0;
    memset(seen, 0, a->n_states);
    queue[n++] = 0;
    seen[0] = 1;
    for (size_t i = 0; i < n && grammar_work(f->b, 1); i++)
        for (uint32_t e = a->first[queue[i]]; e < a->first[queue[i] + 1]; e++) {
            const fa_edge *edge = &a->edges[e];
            if (!edge_works(f, edge) || !f->keep[r][edge->to] || seen[edge->to]) continue;
            if (only_nullable && (edge->lo < LABEL_CALL || !f->nullable[edge->lo - LABEL_CALL])) continue;
            seen[edge->to] = 1;
            queue[n++] = edge->to;
        }
    return n;
}

static void find_nullable(finisher *f, uint32_t *queue, uint8_t *seen) {
    for (bool changed = true; changed && f->b->code == 0;) {
        changed = false;
        for (size_t r = f->b->n_rules; r-- > 0;) {
            if (!f->productive[r] || f->nullable[r]) continue;
            const size_t n = reach(f, (uint32_t)r, true, queue, seen);
            for (size_t i = 0; i < n && !f->nullable[r]; i++)
                if (f->automata[r]->final[queue[i]]) f->nullable[r] = 1, changed = true;
        }
    }
}

static size_t largest(const finisher *f) {
    size_t n = 1;
    for (size_t r = 0; r < f->b->n_rules; r++)
        if (f->automata[r] && f->automata[r]->n_states > n) n = f->automata[r]->n_states;
    return n;
}

/* ---- ranks -------------------------------------------------------------------------------------------------------------- */

/* The rules that rule r may begin with, in the builder's memory. */
static uint32_t *left_calls(finisher *f, uint32_t r, uint32_t *queue, uint8_t *seen, uint32_t *n_calls) {
    const fa *a = f->automata[r];
    const size_t n = reach(f, r, true, queue, seen);
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += a->first[queue[i] + 1] - a->first[queue[i]];
    uint32_t *calls = grammar_alloc(f->b, count, sizeof *calls);
    *n_calls = 0;
    for (size_t i = 0; i < n && calls; i++)
        for (uint32_t e = a->first[queue[i]]; e < a->first[queue[i] + 1]; e++)
            if (a->edges[e].lo >= LABEL_CALL && edge_works(f, &a->edges[e])) calls[(*n_calls)++] = a->edges[e].lo - LABEL_CALL;
    return calls;
}

/* A topological order over left_calls (depth first, on a stack of our own); a cycle is left recursion. */
static int rank_rules(finisher *f, grammar *g, uint32_t *queue, uint8_t *seen) {
    grammar_builder *b = f->b;
    typedef struct visit {
        uint32_t rule, n_calls, next, *calls;
    } visit;
    enum { NEW, OPEN, DONE };
    visit *stack = grammar_alloc(b, b->n_rules, sizeof *stack);
    uint8_t *colour = grammar_alloc(b, b->n_rules, 1);
    uint32_t rank = (uint32_t)b->n_rules;
    for (uint32_t r = 0; r < b->n_rules && b->code == 0; r++) {
        if (!f->productive[r] || colour[r] != NEW) continue;
        size_t depth = 0;
        stack[depth++] = (visit){.rule = r};
        colour[r] = OPEN;
        stack[0].calls = left_calls(f, r, queue, seen, &stack[0].n_calls);
        while (depth && b->code == 0) {
            visit *top = &stack[depth - 1];
            if (top->next == top->n_calls) {
                colour[top->rule] = DONE;
                g->rules[top->rule].rank = rank--;
                depth--;
                continue;
            }
            const uint32_t c = top->calls[top->next++];
            if (colour[c] == OPEN)
                return grammar_fail(b, WEIR_E_UNSUPPORTED, b->rules[c].name,
                                    "left recursion: the rule may begin with itself; write it as a repetition");
            if (colour[c] == DONE) continue;
            colour[c] = OPEN;
            stack[depth] = (visit){.rule = c};
            stack[depth].calls = left_calls(f, c, queue, seen, &stack[depth].n_calls);
            depth++;
        }
    }
    return b->code;
}

/* ---- layout ------------------------------------------------------------------------------------------------------------- */

/* Numbers the states that are kept and counts their edges and calls. */
static void number_states(finisher *f, grammar *g, uint32_t *queue, uint8_t *seen, size_t *n_edges, size_t *n_calls) {
    size_t n_states = FIRST_STATE;
    *n_edges = *n_calls = 0;
    for (uint32_t r = 0; r < f->b->n_rules; r++) {
        if (!f->productive[r]) continue;
        const fa *a = f->automata[r];
        f->number[r] = grammar_alloc(f->b, a->n_states, sizeof **f->number);
        if (f->b->code) return;
        const size_t n = reach(f, r, false, queue, seen);
        memcpy(f->keep[r], seen, a->n_states);
        for (uint32_t s = 0; s < a->n_states; s++) f->number[r][s] = seen[s] ? (uint32_t)n_states++ : NO_STATE;
        for (size_t i = 0; i < n; i++)
            for (uint32_t e = a->first[queue[i]]; e < a->first[queue[i] + 1]; e++)
                *(a->edges[e].lo < LABEL_CALL ? n_edges : n_calls) += 1;
        if (n_states > MAX_STATES) grammar_fail(f->b, WEIR_E_LIMIT, NULL, "too complex: more than %d states", MAX_STATES);
    }
    g->n_states = (uint32_t)n_states;
}

static void lay_out_rule(const finisher *f, grammar *g, uint32_t r, uint32_t *next_edge, uint32_t *next_call) {
    const fa *a = f->automata[r];
    for (uint32_t s = 0; s < a->n_states; s++) {
        if (!f->keep[r][s]) continue;
        grammar_state_row *row = &g->states[f->number[r][s]];
        row->first_edge = *next_edge;
        row->first_call = *next_call;
        row->final = a->final[s];
        for (uint32_t i = a->first[s]; i < a->first[s + 1]; i++) {
            const fa_edge *e = &a->edges[i];
            if (!edge_works(f, e) || !f->keep[r][e->to]) continue;
            const uint32_t to = f->number[r][e->to];
            if (e->lo < LABEL_CALL)
                g->edges[(*next_edge)++] = (fa_edge){e->lo, e->hi, to};
            else
                g->calls[(*next_call)++] = (grammar_call_edge){e->lo - LABEL_CALL, to};
        }
        row->n_edges = *next_edge - row->first_edge;
        row->n_calls = *next_call - row->first_call;
        row->is_leaf = row->final && row->n_edges == 0 && row->n_calls == 0;
    }
    g->rules[r].start = f->number[r][0];
    g->rules[r].nullable = f->nullable[r];
}

/* Bytes that no edge tells apart are one class. */
static void find_classes(grammar *g, size_t n_edges) {
    bool begins[257] = {true};
    for (size_t i = 0; i < n_edges; i++) begins[g->edges[i].lo] = begins[g->edges[i].hi + 1] = true;
    uint32_t n = 0;
    for (int byte = 0; byte < 256; byte++) {
        n += begins[byte];
        g->class_of[byte] = (uint8_t)(n - 1);
    }
    g->n_classes = n;
}

static int fill_steps(grammar *g) {
    const size_t n = (size_t)g->n_states * g->n_classes;
    g->steps = malloc(n * sizeof *g->steps);
    if (g->steps == NULL) return WEIR_E_NOMEM;
    for (size_t i = 0; i < n; i++) g->steps[i] = STEP_DEAD;
    for (uint32_t s = FIRST_STATE; s < g->n_states; s++) {
        int32_t *row = g->steps + (size_t)s * g->n_classes;
        for (uint32_t i = 0; i < g->states[s].n_edges; i++) {
            const fa_edge *e = &g->edges[g->states[s].first_edge + i];
            for (uint32_t c = g->class_of[e->lo]; c <= g->class_of[e->hi]; c++)
                row[c] = row[c] == STEP_DEAD ? (int32_t)e->to : STEP_SEVERAL;
        }
    }
    return 0;
}

/* ---- freedom ------------------------------------------------------------------------------------------------------------ */

/* Adds the states that the bytes [lo, hi] lead to from each of `from`; false if one has no or no single step, or there are too
 * many to be worth it. */
enum { MAX_TARGETS = 24 };
typedef struct target_set {
    uint32_t states[MAX_TARGETS];
    size_t n;
} target_set;

static bool add_targets(const grammar *g, const target_set *from, int lo, int hi, target_set *out) {
    for (size_t i = 0; i < from->n; i++) {
        int last_class = -1;
        for (int byte = lo; byte <= hi; byte++) {
            if (g->class_of[byte] == last_class) continue;
            last_class = g->class_of[byte];
            const int32_t to = grammar_step(g, from->states[i], (uint8_t)byte);
            if (to < 0) return false;
            size_t k = 0;
            while (k < out->n && out->states[k] != (uint32_t)to) k++;
            if (k == out->n && out->n == MAX_TARGETS) return false;
            if (k == out->n) out->states[out->n++] = (uint32_t)to;
        }
    }
    return true;
}

/* The states after one plain code point; see grammar_vocab.c. */
static bool plain_targets(const grammar *g, uint32_t state, target_set *out) {
    static const struct {
        int lead_lo, lead_hi, second_lo, second_hi, n_more;
    } forms[] = {{0xC2, 0xDF, 0x80, 0xBF, 0}, {0xE0, 0xE0, 0xA0, 0xBF, 1}, {0xE1, 0xEC, 0x80, 0xBF, 1},
                 {0xED, 0xED, 0x80, 0x9F, 1}, {0xEE, 0xEF, 0x80, 0xBF, 1}, {0xF0, 0xF0, 0x90, 0xBF, 2},
                 {0xF1, 0xF3, 0x80, 0xBF, 2}, {0xF4, 0xF4, 0x80, 0x8F, 2}};
    const target_set start = {{state}, 1};
    out->n = 0;
    if (!add_targets(g, &start, ' ', '!', out) || !add_targets(g, &start, '#', '[', out) ||
        !add_targets(g, &start, ']', '~', out))
        return false;
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        target_set at = {.n = 0}, next = {.n = 0};
        if (!add_targets(g, &start, forms[i].lead_lo, forms[i].lead_hi, &at)) return false;
        if (!add_targets(g, &at, forms[i].second_lo, forms[i].second_hi, forms[i].n_more ? &next : out)) return false;
        for (int k = forms[i].n_more; k > 0; k--) {
            at = next;
            next.n = 0;
            if (!add_targets(g, &at, 0x80, 0xBF, k == 1 ? out : &next)) return false;
        }
    }
    return true;
}

/* Whether no plain code point can follow, neither here nor in a rule that this one calls or returns to. */
static bool is_barred(const grammar *g, uint32_t state) {
    const grammar_state_row *row = &g->states[state];
    bool barred = !row->final && row->n_calls == 0;
    for (uint32_t i = 0; i < row->n_edges && barred; i++) {
        const fa_edge *e = &g->edges[row->first_edge + i];
        for (uint32_t byte = e->lo; byte <= e->hi && barred; byte++)
            barred = byte < ' ' || byte == '"' || byte == '\\' || byte == 0x7F;
    }
    return barred;
}

/* The states from which plain texts go on for `freedom` code points and then die, whatever they are: strings of bounded length near
 * their end. From such a state, every way of one more code point leads to one that has one less left. */
static void find_exact(grammar *g, const uint32_t *free_states, const target_set *targets, size_t n) {
    for (uint32_t s = FIRST_STATE; s < g->n_states; s++)
        if (g->states[s].freedom == 0) g->states[s].exact = g->states[s].n_edges > 0 && is_barred(g, s);
    bool changed = true;
    for (int round = 0; round < MAX_FREEDOM && changed; round++) {
        changed = false;
        for (size_t i = 0; i < n; i++) {
            grammar_state_row *row = &g->states[free_states[i]];
            if (row->exact || row->freedom == MAX_FREEDOM || row->freedom == 0 || row->final || row->n_calls) continue;
            bool exact = true;
            for (size_t k = 0; k < targets[i].n && exact; k++) {
                const grammar_state_row *to = &g->states[targets[i].states[k]];
                exact = to->exact && to->freedom == row->freedom - 1;
            }
            row->exact = exact;
            changed = changed || exact;
        }
    }
}

/* The greatest fixpoint of freedom(s) = 1 + the least freedom of its successors, cut at MAX_FREEDOM. */
static void find_freedom(grammar_builder *b, grammar *g) {
    uint32_t *free_states = grammar_alloc(b, g->n_states, sizeof *free_states);
    target_set *targets = NULL;
    size_t n = 0, capacity = 0;
    for (uint32_t s = FIRST_STATE; s < g->n_states && b->code == 0; s++) {
        target_set t;
        if (g->states[s].n_edges == 0 || !grammar_work(b, 4) || !plain_targets(g, s, &t)) continue;
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            target_set *grown = grammar_alloc(b, capacity, sizeof *grown);
            if (grown == NULL) return;
            if (n) memcpy(grown, targets, n * sizeof *grown);
            targets = grown;
        }
        targets[n] = t;
        free_states[n++] = s;
        g->states[s].freedom = MAX_FREEDOM;
    }
    bool changed = true;
    for (int round = 0; round <= MAX_FREEDOM && changed; round++) {
        changed = false;
        for (size_t i = 0; i < n; i++) {
            int least = MAX_FREEDOM;
            for (size_t k = 0; k < targets[i].n; k++) {
                const int freedom = 1 + g->states[targets[i].states[k]].freedom;
                if (freedom < least) least = freedom;
            }
            changed = changed || g->states[free_states[i]].freedom != least;
            g->states[free_states[i]].freedom = (uint8_t)least;
        }
    }
    find_exact(g, free_states, targets, n);
}

/* ---- all together ------------------------------------------------------------------------------------------------------- */

static int finish(finisher *f, uint32_t root, grammar *g) {
    enum { MAX_STEP_CELLS = 1 << 24 };
    grammar_builder *b = f->b;
    f->automata = grammar_alloc(b, b->n_rules, sizeof *f->automata);
    f->productive = grammar_alloc(b, b->n_rules, 1);
    f->nullable = grammar_alloc(b, b->n_rules, 1);
    f->keep = grammar_alloc(b, b->n_rules, sizeof *f->keep);
    f->number = grammar_alloc(b, b->n_rules, sizeof *f->number);
    if (b->code) return b->code;
    make_automata(f, root);
    if (b->code) return b->code;
    find_productive(f);
    if (b->code) return b->code;
    if (!f->productive[root])
        return grammar_fail(b, WEIR_E_INVALID, NULL, "no text can match: every way through contradicts itself or never ends");
    uint32_t *queue = grammar_alloc(b, largest(f), sizeof *queue);
    uint8_t *seen = grammar_alloc(b, largest(f), 1);
    if (b->code) return b->code;
    find_nullable(f, queue, seen);
    g->n_rules = (uint32_t)b->n_rules;
    g->root = root;
    g->rules = calloc(g->n_rules, sizeof *g->rules);
    if (g->rules == NULL) return grammar_fail(b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
    if (rank_rules(f, g, queue, seen)) return b->code;
    size_t n_edges, n_calls;
    number_states(f, g, queue, seen, &n_edges, &n_calls);
    if (b->code) return b->code;
    g->states = calloc(g->n_states, sizeof *g->states);
    g->edges = malloc((n_edges + 1) * sizeof *g->edges);
    g->calls = malloc((n_calls + 1) * sizeof *g->calls);
    if (g->states == NULL || g->edges == NULL || g->calls == NULL)
        return grammar_fail(b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
    uint32_t next_edge = 0, next_call = 0;
    for (uint32_t r = 0; r < b->n_rules; r++)
        if (f->productive[r]) lay_out_rule(f, g, r, &next_edge, &next_call);
    find_classes(g, next_edge);
    if ((size_t)g->n_states * g->n_classes > MAX_STEP_CELLS || !grammar_work(b, (size_t)g->n_states * g->n_classes / 16))
        return grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: %u states over %u classes of bytes", g->n_states,
                            g->n_classes);
    if (fill_steps(g)) return grammar_fail(b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
    find_freedom(b, g);
    return b->code;
}

int grammar_finish(grammar_builder *b, uint32_t root, bool inlining, grammar **out) {
    static atomic_uint_fast64_t next_identity = 1;
    *out = NULL;
    if (b->code) return b->code;
    if (inlining) inline_rules(b);
    grammar *g = calloc(1, sizeof *g);
    if (g == NULL) return grammar_fail(b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
    finisher f = {.b = b};
    if (b->code || finish(&f, root, g) < 0) {
        grammar_close(&g);
        return b->code;
    }
    /* Relaxed: only has to be a different number each time. */
    g->identity = atomic_fetch_add_explicit(&next_identity, 1, memory_order_relaxed);
    *out = g;
    return 0;
}

void grammar_close(grammar **g) {
    if (g == NULL || *g == NULL) return;
    free((*g)->states);
    free((*g)->edges);
    free((*g)->calls);
    free((*g)->rules);
    free((*g)->steps);
    free(*g);
    *g = NULL;
}
