/* What the files of src/grammar share: the expressions that every notation is read into, finite automata over labels, and the
 * compiled grammar that the matcher walks.
 *
 *   text --(gbnf, regex, schema)--> expr for each rule --(Thompson)--> nfa --(subsets)--> fa --(grammar_finish)--> grammar
 *
 * A label is a byte (0..255) or LABEL_CALL + a rule: an automaton step is then either a byte of the text or the whole text of
 * another rule, and everything that works on intervals of labels works on both. A builder is owned by one thread. */
#ifndef WEIR_GRAMMAR_INTERNAL_H
#define WEIR_GRAMMAR_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"
#include "grammar/grammar.h"

#define LABEL_CALL 256u
#define NO_BOUND UINT32_MAX /* a repetition without an upper bound */
#define NO_STATE UINT32_MAX
#define MAX_CODE_POINT 0x10FFFFu

enum {
    MAX_EXPR_DEPTH = 1200, /* nesting of expressions, which bounds recursion */
    MAX_RULES = 1 << 16,
    MAX_RULE_STATES = 1 << 18,   /* of one rule's non-deterministic automaton */
    MAX_STATES = 1 << 18,        /* of a finished grammar */
    MAX_WORK = 24 * 1000 * 1000, /* elementary steps of one compilation: a few tenths of a second */
    MAX_COMPILE_BYTES = 256 << 20,
    MAX_FREEDOM = 16, /* see grammar.freedom */
};

/* ---- finite automata ---------------------------------------------------------------------------------------------------- */

typedef struct fa_edge {
    uint32_t lo, hi; /* labels, both included; a call has lo == hi */
    uint32_t to;
} fa_edge;

/* No empty steps; state 0 is the start. */
typedef struct fa {
    uint32_t n_states;
    bool deterministic;    /* no two edges of a state share a label */
    const uint32_t *first; /* [n_states + 1] into edges */
    const fa_edge *edges;  /* of a state: ascending by lo */
    const uint8_t *final;  /* [n_states] */
} fa;

/* ---- expressions -------------------------------------------------------------------------------------------------------- */

typedef enum expr_kind {
    EXPR_NOTHING,
    EXPR_LITERAL,
    EXPR_BYTES,
    EXPR_SEQ,
    EXPR_ALT,
    EXPR_REPEAT,
    EXPR_CALL,
    EXPR_FA,
    EXPR_GRAPH
} expr_kind;

/* A graph whose edges are expressions; node 0 is the start, node 1 the end. */
typedef struct expr_edge {
    uint32_t from, to;
    const struct expr *label;
} expr_edge;
typedef struct expr_graph {
    uint32_t n_nodes;
    expr_edge *edges;
    size_t n_edges, capacity;
} expr_graph;
enum { GRAPH_START = 0, GRAPH_END = 1, GRAPH_FIRST = 2 };

typedef struct expr {
    expr_kind kind;
    uint32_t depth;
    size_t n_states; /* about how many states Thompson's construction makes of it; saturates */
    union {
        struct {
            const char *text;
            size_t n_bytes; /* 0: the empty text */
        } literal;
        struct {
            uint8_t lo, hi;
        } bytes;
        struct {
            const struct expr **items;
            size_t n;
        } list;
        struct {
            const struct expr *item;
            uint32_t min, max;
        } repeat;
        uint32_t rule;
        const fa *automaton;
        const expr_graph *graph;
    };
} expr;

/* A list of expressions being collected; in the builder's memory. */
typedef struct expr_list {
    const expr **items;
    size_t n, capacity;
} expr_list;

/* A set of code points as ranges, in any order until grammar_set_normalise. */
typedef struct code_range {
    uint32_t lo, hi;
} code_range;
typedef struct code_set {
    code_range *ranges;
    size_t n, capacity;
} code_set;

typedef struct rule {
    const expr *body; /* NULL until defined */
    const char *name; /* for messages; may be NULL */
} rule;

/* Failure is sticky: the first one is kept, later constructors return some valid expression, and the caller looks once. */
typedef struct grammar_builder {
    arena memory;
    weir_error *err;
    int code; /* 0 or the first failure */
    uint64_t work;
    rule *rules;
    size_t n_rules, rules_capacity;
    bool regular; /* expressions made now must not contain calls (they go into products of automata) */
} grammar_builder;

void grammar_builder_init(grammar_builder *b, weir_error *err);
void grammar_builder_free(grammar_builder *b);
/* Notes the first failure and returns its code. */
int grammar_fail(grammar_builder *b, int code, const char *place, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Counts elementary steps; false once the compilation has failed or takes too long (WEIR_E_LIMIT is noted). */
bool grammar_work(grammar_builder *b, size_t n);
/* Zeroed memory that lives as long as the builder; NULL after noting WEIR_E_LIMIT or WEIR_E_NOMEM. */
void *grammar_alloc(grammar_builder *b, size_t count, size_t size);

uint32_t grammar_rule_new(grammar_builder *b, const char *name);
void grammar_rule_define(grammar_builder *b, uint32_t r, const expr *body);

const expr *grammar_nothing(void); /* matches no text at all */
const expr *grammar_empty(void);   /* matches the empty text */
const expr *grammar_literal(grammar_builder *b, const char *text, size_t n_bytes);
const expr *grammar_text(grammar_builder *b, const char *text); /* NUL-terminated */
const expr *grammar_bytes(grammar_builder *b, uint8_t lo, uint8_t hi);
const expr *grammar_call(grammar_builder *b, uint32_t r);
const expr *grammar_automaton(grammar_builder *b, const fa *automaton);
const expr *grammar_repeat(grammar_builder *b, const expr *item, uint32_t min, uint32_t max);
const expr *grammar_optional(grammar_builder *b, const expr *item);
void grammar_list_add(grammar_builder *b, expr_list *list, const expr *item);
const expr *grammar_seq(grammar_builder *b, const expr_list *list);
const expr *grammar_alt(grammar_builder *b, const expr_list *list); /* of none: grammar_nothing */
/* The sequence of up to four; NULL ends it. */
const expr *grammar_seq4(grammar_builder *b, const expr *p, const expr *q, const expr *r, const expr *s);
const expr *grammar_alt2(grammar_builder *b, const expr *p, const expr *q);

void grammar_graph_edge(grammar_builder *b, expr_graph *graph, uint32_t from, uint32_t to, const expr *label);
const expr *grammar_graph(grammar_builder *b, const expr_graph *graph); /* keeps the edges; n_nodes must be set */

void grammar_set_add(grammar_builder *b, code_set *set, uint32_t lo, uint32_t hi);
void grammar_set_normalise(code_set *set); /* sorts and joins */
code_set grammar_set_invert(grammar_builder *b, const code_set *normalised);
code_set grammar_set_subtract(grammar_builder *b, const code_set *from, const code_set *what); /* both normalised */
/* One code point of the set, as UTF-8 (surrogates are left out), or as it stands in a JSON string: quotes, backslashes and
 * control characters as their shortest escapes. The set must be normalised. */
const expr *grammar_code_points(grammar_builder *b, const code_set *set, bool in_json_string);

/* The automaton of an expression without calls, deterministic and minimal; NULL after a failure (WEIR_E_LIMIT when too big). */
const fa *grammar_regular(grammar_builder *b, const expr *e);
/* The automaton of any expression: deterministic if that is affordable, else without empty steps at least. */
const fa *grammar_rule_automaton(grammar_builder *b, const expr *e);
/* Texts of both; texts of `left` that are none of `right`. Both deterministic and without calls. */
const fa *grammar_intersect(grammar_builder *b, const fa *left, const fa *right);
const fa *grammar_subtract(grammar_builder *b, const fa *left, const fa *right);
/* `a` with the steps over the bytes lo..hi made empty. */
const fa *grammar_erase(grammar_builder *b, const fa *a, uint8_t lo, uint8_t hi);
bool grammar_fa_is_empty(const fa *a); /* of an automaton from the functions above, which keep live states only */

/* ---- notations ---------------------------------------------------------------------------------------------------------- */

typedef enum regex_dialect {
    REGEX_PYTHON, /* re.fullmatch on str */
    REGEX_SCHEMA, /* ECMA-262 with the u flag: a search; ^ and $ anchor */
} regex_dialect;

/* Parses a pattern. With in_json_string every character stands as in a JSON string. Errors name the byte offset. */
const expr *grammar_regex_parse(grammar_builder *b, const char *pattern, size_t n_bytes, regex_dialect dialect,
                                bool in_json_string, const char *place);

/* ---- the finished grammar ----------------------------------------------------------------------------------------------- */

/* Pseudo states: the whole text may end here; the frame that a local walk began in was left. */
enum { STATE_ACCEPT = 0, STATE_ESCAPE = 1, FIRST_STATE = 2 };

typedef struct grammar_call_edge {
    uint32_t rule, to;
} grammar_call_edge;

typedef struct grammar_state_row {
    uint32_t first_edge, n_edges; /* bytes only */
    uint32_t first_call, n_calls;
    bool final;      /* the rule may end here */
    bool is_leaf;    /* final and nothing else: a call that returns here is a tail call */
    bool exact;      /* a text of more plain code points than `freedom` (below MAX_FREEDOM) does not go on at all */
    uint8_t freedom; /* 0..MAX_FREEDOM: any text of so many plain code points (see grammar_vocab.c) goes on inside the rule */
} grammar_state_row;

typedef struct grammar_rule_row {
    uint32_t start;
    uint32_t rank; /* a rule that another may begin with has a higher rank than that other */
    bool nullable;
} grammar_rule_row;

enum { STEP_DEAD = -1, STEP_SEVERAL = -2 };

struct grammar {
    uint32_t n_states, n_rules, root;
    grammar_state_row *states;
    fa_edge *edges;
    grammar_call_edge *calls;
    grammar_rule_row *rules;
    uint32_t n_classes;
    uint8_t class_of[256];
    int32_t *steps;    /* [n_states][n_classes]: the state that a byte leads to, or STEP_ */
    uint64_t identity; /* differs between any two grammars of the process */
};

static inline int32_t grammar_step(const grammar *g, uint32_t state, uint8_t byte) {
    return g->steps[(size_t)state * g->n_classes + g->class_of[byte]];
}

/* Makes the grammar of the builder's rules. With inline_rules small rules that call none are copied to where they are called.
 */
int grammar_finish(grammar_builder *b, uint32_t root, bool inline_rules, grammar **out);

#endif
