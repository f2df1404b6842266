/* Expressions, sets of code points, and the builder that owns them. See grammar_internal.h. */
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_internal.h"

void grammar_builder_init(grammar_builder *b, weir_error *err) {
    *b = (grammar_builder){.err = err};
    b->memory.limit_bytes = MAX_COMPILE_BYTES;
}

void grammar_builder_free(grammar_builder *b) {
    arena_free(&b->memory);
}

int grammar_fail(grammar_builder *b, int code, const char *place, const char *format, ...) {
    if (b->code) return b->code;
    va_list args;
    va_start(args, format);
    b->code = error_setv(b->err, code, place, format, args);
    va_end(args);
    return b->code;
}

bool grammar_work(grammar_builder *b, size_t n) {
    b->work += n;
    if (b->work > MAX_WORK)
        grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: compiling it takes more than the %d steps allowed", MAX_WORK);
    return b->code == 0;
}

void *grammar_alloc(grammar_builder *b, size_t count, size_t size) {
    if (b->code) return NULL;
    void *p = arena_array(&b->memory, count, size);
    if (p) return p;
    if (count > MAX_COMPILE_BYTES / (size ? size : 1) || b->memory.total_bytes > MAX_COMPILE_BYTES / 2)
        grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: compiling it takes more than %d MiB of memory",
                     MAX_COMPILE_BYTES >> 20);
    else
        grammar_fail(b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
    return NULL;
}

/* ---- rules -------------------------------------------------------------------------------------------------------------- */

uint32_t grammar_rule_new(grammar_builder *b, const char *name) {
    if (b->n_rules >= MAX_RULES) grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: more than %d rules", MAX_RULES);
    if (b->n_rules == b->rules_capacity) {
        const size_t capacity = b->rules_capacity ? 2 * b->rules_capacity : 32;
        rule *grown = grammar_alloc(b, capacity, sizeof *grown);
        if (grown == NULL) return 0;
        if (b->n_rules) memcpy(grown, b->rules, b->n_rules * sizeof *grown);
        b->rules = grown;
        b->rules_capacity = capacity;
    }
    b->rules[b->n_rules] = (rule){.name = name};
    return (uint32_t)b->n_rules++;
}

void grammar_rule_define(grammar_builder *b, uint32_t r, const expr *body) {
    if (b->code == 0) b->rules[r].body = body;
}

/* ---- expressions -------------------------------------------------------------------------------------------------------- */

static size_t saturating_add(size_t a, size_t b) {
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}
static size_t saturating_mul(size_t a, size_t b) {
    return b && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}

const expr *grammar_nothing(void) {
    static const expr nothing = {.kind = EXPR_NOTHING, .n_states = 1};
    return &nothing;
}

const expr *grammar_empty(void) {
    static const expr empty = {.kind = EXPR_LITERAL, .n_states = 1, .literal = {"", 0}};
    return &empty;
}

static expr *expr_new(grammar_builder *b, expr_kind kind, size_t n_states) {
    expr *e = grammar_alloc(b, 1, sizeof *e);
    if (e == NULL) return NULL;
    e->kind = kind;
    e->n_states = n_states;
    return e;
}

/* Notes the nesting of `child` under `e`. */
static void expr_nest(grammar_builder *b, expr *e, const expr *child) {
    if (child->depth + 1 > e->depth) e->depth = child->depth + 1;
    if (e->depth > MAX_EXPR_DEPTH) grammar_fail(b, WEIR_E_LIMIT, NULL, "nested deeper than %d", MAX_EXPR_DEPTH);
}

const expr *grammar_literal(grammar_builder *b, const char *text, size_t n_bytes) {
    expr *e = expr_new(b, EXPR_LITERAL, n_bytes + 1);
    char *copy = arena_strndup(&b->memory, text, n_bytes);
    if (e == NULL || copy == NULL) {
        grammar_fail(b, WEIR_E_NOMEM, NULL, "out of memory while compiling");
        return grammar_empty();
    }
    e->literal.text = copy;
    e->literal.n_bytes = n_bytes;
    return e;
}

const expr *grammar_text(grammar_builder *b, const char *text) {
    return grammar_literal(b, text, strlen(text));
}

const expr *grammar_bytes(grammar_builder *b, uint8_t lo, uint8_t hi) {
    expr *e = expr_new(b, EXPR_BYTES, 2);
    if (e == NULL) return grammar_empty();
    e->bytes.lo = lo;
    e->bytes.hi = hi;
    return e;
}

const expr *grammar_call(grammar_builder *b, uint32_t r) {
    expr *e = expr_new(b, EXPR_CALL, 2);
    if (e == NULL) return grammar_empty();
    e->rule = r;
    return e;
}

const expr *grammar_automaton(grammar_builder *b, const fa *automaton) {
    if (automaton == NULL) return grammar_nothing();
    expr *e = expr_new(b, EXPR_FA, (size_t)automaton->n_states + 1);
    if (e == NULL) return grammar_empty();
    e->automaton = automaton;
    return e;
}

static const expr *repeat_plain(grammar_builder *b, const expr *item, uint32_t min, uint32_t max) {
    expr *e = expr_new(b, EXPR_REPEAT, 2);
    if (e == NULL) return grammar_empty();
    const size_t copies = max == NO_BOUND ? (size_t)min + 1 : max;
    e->n_states = saturating_add(saturating_mul(item->n_states, copies), 2);
    e->repeat.item = item;
    e->repeat.min = min;
    e->repeat.max = max;
    expr_nest(b, e, item);
    return e;
}

/* Long counted repetitions are cut into blocks of BLOCK items that are rules of their own, so that x{0,100000} takes a few
 * hundred states and not a hundred thousand copies of x: x{n}   = B{n / BLOCK} x{n % BLOCK}                 with B = x{BLOCK}
 *   x{0,n} = B{0,a-1} x{0,BLOCK-1} | B{a} x{0,r}       with n = a BLOCK + r: each count is written in one way only */
enum { BLOCK = 64, MAX_COPIED_STATES = 3000 };

static const expr *repeat_blocks(grammar_builder *b, const expr *item, uint32_t min, uint32_t max) {
    const uint32_t block = grammar_rule_new(b, NULL), partial = grammar_rule_new(b, NULL);
    grammar_rule_define(b, block, repeat_plain(b, item, BLOCK, BLOCK));
    grammar_rule_define(b, partial, repeat_plain(b, item, 0, BLOCK - 1));
    if (b->code) return grammar_empty();
    const expr *const call = grammar_call(b, block);
    const expr *fixed = grammar_seq4(b, grammar_repeat(b, call, min / BLOCK, min / BLOCK),
                                     grammar_repeat(b, item, min % BLOCK, min % BLOCK), NULL, NULL);
    if (max == NO_BOUND) return grammar_seq4(b, fixed, repeat_plain(b, item, 0, NO_BOUND), NULL, NULL);
    const uint32_t n = max - min, a = n / BLOCK, r = n % BLOCK;
    if (a == 0) return grammar_seq4(b, fixed, grammar_repeat(b, item, 0, r), NULL, NULL);
    const expr *shorter = grammar_seq4(b, grammar_repeat(b, call, 0, a - 1), grammar_call(b, partial), NULL, NULL);
    const expr *longer = grammar_seq4(b, grammar_repeat(b, call, a, a), grammar_repeat(b, item, 0, r), NULL, NULL);
    return grammar_seq4(b, fixed, grammar_alt2(b, shorter, longer), NULL, NULL);
}

const expr *grammar_repeat(grammar_builder *b, const expr *item, uint32_t min, uint32_t max) {
    if (max == 0) return grammar_empty();
    if (min == 1 && max == 1) return item;
    const size_t copies = max == NO_BOUND ? (size_t)min + 1 : max;
    const size_t n_states = saturating_mul(item->n_states, copies);
    if (!b->regular && copies > 2 * BLOCK && n_states > MAX_COPIED_STATES && b->code == 0)
        return repeat_blocks(b, item, min, max);
    return repeat_plain(b, item, min, max);
}

const expr *grammar_optional(grammar_builder *b, const expr *item) {
    return grammar_repeat(b, item, 0, 1);
}

void grammar_list_add(grammar_builder *b, expr_list *list, const expr *item) {
    if (list->n == list->capacity) {
        const size_t capacity = list->capacity ? 2 * list->capacity : 8;
        const expr **grown = grammar_alloc(b, capacity, sizeof *grown);
        if (grown == NULL) return;
        if (list->n) memcpy(grown, list->items, list->n * sizeof *grown);
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->n++] = item;
}

static const expr *list_expr(grammar_builder *b, const expr_list *list, expr_kind kind) {
    expr *e = expr_new(b, kind, 2);
    if (e == NULL) return grammar_empty();
    e->list.items = list->items;
    e->list.n = list->n;
    for (size_t i = 0; i < list->n; i++) {
        e->n_states = saturating_add(e->n_states, list->items[i]->n_states);
        expr_nest(b, e, list->items[i]);
    }
    return e;
}

const expr *grammar_seq(grammar_builder *b, const expr_list *list) {
    return list->n == 0 ? grammar_empty() : list->n == 1 ? list->items[0] : list_expr(b, list, EXPR_SEQ);
}

const expr *grammar_alt(grammar_builder *b, const expr_list *list) {
    return list->n == 0 ? grammar_nothing() : list->n == 1 ? list->items[0] : list_expr(b, list, EXPR_ALT);
}

const expr *grammar_seq4(grammar_builder *b, const expr *p, const expr *q, const expr *r, const expr *s) {
    expr_list list = {0};
    const expr *const items[] = {p, q, r, s};
    for (size_t i = 0; i < 4 && items[i]; i++) grammar_list_add(b, &list, items[i]);
    return grammar_seq(b, &list);
}

const expr *grammar_alt2(grammar_builder *b, const expr *p, const expr *q) {
    expr_list list = {0};
    grammar_list_add(b, &list, p);
    grammar_list_add(b, &list, q);
    return grammar_alt(b, &list);
}

void grammar_graph_edge(grammar_builder *b, expr_graph *graph, uint32_t from, uint32_t to, const expr *label) {
    if (graph->n_edges == graph->capacity) {
        const size_t capacity = graph->capacity ? 2 * graph->capacity : 16;
        expr_edge *grown = grammar_alloc(b, capacity, sizeof *grown);
        if (grown == NULL) return;
        if (graph->n_edges) memcpy(grown, graph->edges, graph->n_edges * sizeof *grown);
        graph->edges = grown;
        graph->capacity = capacity;
    }
    if (grammar_work(b, 1)) graph->edges[graph->n_edges++] = (expr_edge){from, to, label};
}

const expr *grammar_graph(grammar_builder *b, const expr_graph *graph) {
    expr *e = expr_new(b, EXPR_GRAPH, graph->n_nodes);
    expr_graph *copy = grammar_alloc(b, 1, sizeof *copy);
    if (e == NULL || copy == NULL) return grammar_empty();
    *copy = *graph;
    e->graph = copy;
    for (size_t i = 0; i < graph->n_edges; i++) {
        e->n_states = saturating_add(e->n_states, graph->edges[i].label->n_states);
        expr_nest(b, e, graph->edges[i].label);
    }
    return e;
}

/* ---- sets of code points ------------------------------------------------------------------------------------------------ */

void grammar_set_add(grammar_builder *b, code_set *set, uint32_t lo, uint32_t hi) {
    if (set->n == set->capacity) {
        const size_t capacity = set->capacity ? 2 * set->capacity : 16;
        code_range *grown = grammar_alloc(b, capacity, sizeof *grown);
        if (grown == NULL) return;
        if (set->n) memcpy(grown, set->ranges, set->n * sizeof *grown);
        set->ranges = grown;
        set->capacity = capacity;
    }
    set->ranges[set->n++] = (code_range){lo, hi};
}

static int compare_ranges(const void *a, const void *b) {
    const code_range *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

void grammar_set_normalise(code_set *set) {
    if (set->n == 0) return;
    qsort(set->ranges, set->n, sizeof *set->ranges, compare_ranges);
    size_t kept = 0;
    for (size_t i = 1; i < set->n; i++) {
        code_range *last = &set->ranges[kept];
        if (set->ranges[i].lo <= last->hi + 1) {
            if (set->ranges[i].hi > last->hi) last->hi = set->ranges[i].hi;
        } else {
            set->ranges[++kept] = set->ranges[i];
        }
    }
    set->n = kept + 1;
}

code_set grammar_set_invert(grammar_builder *b, const code_set *normalised) {
    code_set out = {0};
    uint32_t next = 0;
    for (size_t i = 0; i < normalised->n; i++) {
        if (normalised->ranges[i].lo > next) grammar_set_add(b, &out, next, normalised->ranges[i].lo - 1);
        next = normalised->ranges[i].hi + 1;
    }
    if (next <= MAX_CODE_POINT) grammar_set_add(b, &out, next, MAX_CODE_POINT);
    return out;
}

code_set grammar_set_subtract(grammar_builder *b, const code_set *from, const code_set *what) {
    code_set outside = grammar_set_invert(b, from);
    for (size_t i = 0; i < what->n; i++) grammar_set_add(b, &outside, what->ranges[i].lo, what->ranges[i].hi);
    grammar_set_normalise(&outside);
    return grammar_set_invert(b, &outside);
}

/* Adds the UTF-8 of [lo, hi], all of whose encodings take n_bytes, as sequences of byte ranges: a range is cut until its bounds
 * differ only in a tail that runs over all continuation bytes. */
static void add_utf8_range(grammar_builder *b, expr_list *out, uint32_t lo, uint32_t hi, int n_bytes) {
    static const uint8_t lead[] = {0, 0x00, 0xC0, 0xE0, 0xF0};
    for (int tail = 1; tail < n_bytes; tail++) {
        const uint32_t mask = (1u << (6 * tail)) - 1;
        if ((lo & ~mask) == (hi & ~mask)) continue;
        if (lo & mask) {
            add_utf8_range(b, out, lo, lo | mask, n_bytes);
            add_utf8_range(b, out, (lo | mask) + 1, hi, n_bytes);
            return;
        }
        if ((hi & mask) != mask) {
            add_utf8_range(b, out, lo, (hi & ~mask) - 1, n_bytes);
            add_utf8_range(b, out, hi & ~mask, hi, n_bytes);
            return;
        }
    }
    expr_list bytes = {0};
    for (int i = n_bytes - 1; i >= 0; i--) {
        const uint8_t mark = i == n_bytes - 1 ? lead[n_bytes] : 0x80;
        const uint32_t keep = i == n_bytes - 1 ? 0xFF : 0x3F;
        grammar_list_add(b, &bytes,
                         grammar_bytes(b, (uint8_t)(mark | (lo >> (6 * i) & keep)), (uint8_t)(mark | (hi >> (6 * i) & keep))));
    }
    grammar_list_add(b, out, grammar_seq(b, &bytes));
}

static void add_utf8(grammar_builder *b, expr_list *out, uint32_t lo, uint32_t hi) {
    static const struct {
        uint32_t lo, hi;
        int n_bytes;
    } parts[] = {{0, 0x7F, 1}, {0x80, 0x7FF, 2}, {0x800, 0xD7FF, 3}, {0xE000, 0xFFFF, 3}, {0x10000, MAX_CODE_POINT, 4}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const uint32_t from = lo > parts[i].lo ? lo : parts[i].lo, to = hi < parts[i].hi ? hi : parts[i].hi;
        if (from <= to) add_utf8_range(b, out, from, to, parts[i].n_bytes);
    }
}

static bool set_has(const code_set *set, uint32_t c) {
    for (size_t i = 0; i < set->n; i++)
        if (set->ranges[i].lo <= c && c <= set->ranges[i].hi) return true;
    return false;
}

/* The characters of the set that a JSON string must escape, as their shortest escapes. */
static void add_json_escapes(grammar_builder *b, expr_list *out, const code_set *set) {
    static const char names[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    for (uint32_t c = 0; c <= '\\'; c = c < 0x1F ? c + 1 : c == 0x1F ? '"' : c == '"' ? '\\' : '\\' + 1) {
        if (!set_has(set, c)) continue;
        const char *named = c ? strchr(names, (int)c) : NULL;
        char text[8] = {'\\', named ? letters[named - names] : 'u'};
        static const char digits[] = "0123456789abcdef";
        if (named == NULL) memcpy(text + 2, (char[]){'0', '0', digits[c >> 4], digits[c & 15]}, 4);
        grammar_list_add(b, out, grammar_text(b, text));
    }
}

const expr *grammar_code_points(grammar_builder *b, const code_set *set, bool in_json_string) {
    enum { MINIMISE_FROM = 24 };
    expr_list list = {0};
    code_set rest = *set;
    if (in_json_string) {
        code_set escaped = {0};
        grammar_set_add(b, &escaped, 0, 0x1F);
        grammar_set_add(b, &escaped, '"', '"');
        grammar_set_add(b, &escaped, '\\', '\\');
        if (b->code) return grammar_empty();
        grammar_set_normalise(&escaped);
        add_json_escapes(b, &list, set);
        rest = grammar_set_subtract(b, set, &escaped);
    }
    for (size_t i = 0; i < rest.n && grammar_work(b, 16); i++) add_utf8(b, &list, rest.ranges[i].lo, rest.ranges[i].hi);
    const expr *e = grammar_alt(b, &list);
    /* A class such as \w takes thousands of states before, some two hundred after; it may be repeated many times. */
    if (list.n > MINIMISE_FROM && b->code == 0) e = grammar_automaton(b, grammar_regular(b, e));
    return e;
}
