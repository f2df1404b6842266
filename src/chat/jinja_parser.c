/* The parser: tokens to the syntax tree, by recursive descent with Jinja's own precedences (unary minus binds tighter than
 * filters' operands, ** is left associative, tests and filters bind tightest). Knows nothing of values at run time. */
#include <stdio.h>
#include <string.h>

#include "chat/jinja_ast.h"
#include "chat/jinja_text.h"

enum {
    PARSE_MAX_DEPTH = 200,  /* nested statements, brackets and unary operators */
    NODE_MAX_HEIGHT = 1000, /* of a tree, which evaluation descends */
    MAX_OPEN_TAGS = PARSE_MAX_DEPTH + 1,
};

typedef struct parser {
    jinja_template *t;
    weir_error *err;
    const token *tokens;
    size_t at;
    int depth;
    int loop_depth;     /* loops that break and continue may leave */
    uint8_t macro_uses; /* NODE_USES_* seen in the macro being parsed */
    struct {
        value tag;
        const char *ends; /* names that close it, divided by blanks */
    } open[MAX_OPEN_TAGS];
    size_t n_open;
} parser;

static int parse_expression(parser *p, node **out);
static int parse_or(parser *p, node **out);
static int parse_unary(parser *p, bool with_filter, node **out);
static int parse_statement(parser *p, node **out);
static int parse_body(parser *p, const char *ends, node_list *out);

/* ---- tokens ---- */

static const token *current(const parser *p) {
    return &p->tokens[p->at];
}
static const token *look(const parser *p) {
    return &p->tokens[p->tokens[p->at].type == T_EOF ? p->at : p->at + 1];
}
static bool at(const parser *p, token_type type) {
    return current(p)->type == type;
}
static bool token_is(const token *t, const char *name) {
    return t->type == T_NAME && t->n_bytes == strlen(name) && memcmp(t->text, name, t->n_bytes) == 0;
}
static bool at_name(const parser *p, const char *name) {
    return token_is(current(p), name);
}

static const token *next(parser *p) {
    const token *t = current(p);
    if (t->type != T_EOF) p->at++;
    return t;
}

static bool skip(parser *p, token_type type) {
    return at(p, type) ? (next(p), true) : false;
}
static bool skip_name(parser *p, const char *name) {
    return at_name(p, name) ? (next(p), true) : false;
}

static const char *const token_names[] = {
    [T_EOF] = "end of template",
    [T_DATA] = "template data / text",
    [T_VARIABLE_BEGIN] = "begin of print statement",
    [T_VARIABLE_END] = "end of print statement",
    [T_BLOCK_BEGIN] = "begin of statement block",
    [T_BLOCK_END] = "end of statement block",
    [T_NAME] = "name",
    [T_STRING] = "string",
    [T_INTEGER] = "integer",
    [T_FLOAT] = "float",
    [T_ADD] = "+",
    [T_SUB] = "-",
    [T_MUL] = "*",
    [T_DIV] = "/",
    [T_FLOORDIV] = "//",
    [T_MOD] = "%",
    [T_POW] = "**",
    [T_TILDE] = "~",
    [T_LPAREN] = "(",
    [T_RPAREN] = ")",
    [T_LBRACKET] = "[",
    [T_RBRACKET] = "]",
    [T_LBRACE] = "{",
    [T_RBRACE] = "}",
    [T_EQ] = "==",
    [T_NE] = "!=",
    [T_GT] = ">",
    [T_GE] = ">=",
    [T_LT] = "<",
    [T_LE] = "<=",
    [T_ASSIGN] = "=",
    [T_DOT] = ".",
    [T_COLON] = ":",
    [T_PIPE] = "|",
    [T_COMMA] = ",",
    [T_SEMICOLON] = ";",
};

/* What to call a token in a message. */
static value describe(const token *t) {
    return t->type == T_NAME ? value_text(t->text, t->n_bytes < 60 ? t->n_bytes : 60) : value_literal(token_names[t->type]);
}

#define SYNTAX(p, token, ...) return syntax_error((p)->t, (p)->err, (token)->offset, __VA_ARGS__)

static int expect(parser *p, token_type type) {
    if (skip(p, type)) return 0;
    value got = describe(current(p));
    if (at(p, T_EOF)) SYNTAX(p, current(p), "unexpected end of template, expected '%s'", token_names[type]);
    SYNTAX(p, current(p), "expected token '%s', got '%.*s'", token_names[type], (int)got.n_bytes, got.text);
}

static int expect_name(parser *p, const char *name) {
    if (skip_name(p, name)) return 0;
    value got = describe(current(p));
    SYNTAX(p, current(p), "expected token '%s', got '%.*s'", name, (int)got.n_bytes, got.text);
}

static int no_memory(parser *p) {
    bool limit = p->t->memory.limit_bytes && p->t->memory.total_bytes >= p->t->memory.limit_bytes / 2;
    return error_set(p->err, limit ? WEIR_E_LIMIT : WEIR_E_NOMEM, "template", "%s",
                     limit ? "the template is too large to compile" : "out of memory while compiling the template");
}

/* Bounds recursion; pair with p->depth-- on success. */
static int enter(parser *p) {
    if (p->depth >= PARSE_MAX_DEPTH) {
        uint32_t line, column;
        char place[64];
        source_position(p->t, current(p)->offset, &line, &column);
        snprintf(place, sizeof place, "template line %u, column %u", line, column);
        return error_set(p->err, WEIR_E_LIMIT, place, "nested more than %d levels deep", PARSE_MAX_DEPTH);
    }
    p->depth++;
    return 0;
}

/* ---- nodes ---- */

static int new_node(parser *p, node_kind kind, const token *at_token, node **out) {
    node *n = arena_alloc(&p->t->memory, sizeof *n);
    if (n == NULL) return no_memory(p);
    n->kind = (uint8_t)kind;
    n->line = at_token->line;
    n->offset = at_token->offset;
    n->height = 1;
    *out = n;
    return 0;
}

/* Makes `child` known to its parent, whose height it may raise. */
static int adopt(parser *p, node *parent, const node *child) {
    if (child == NULL || child->height < parent->height) return 0;
    if (child->height >= NODE_MAX_HEIGHT) {
        char place[64];
        snprintf(place, sizeof place, "template line %u", parent->line);
        return error_set(p->err, WEIR_E_LIMIT, place, "an expression of more than %d chained operations", NODE_MAX_HEIGHT);
    }
    parent->height = (uint16_t)(child->height + 1);
    return 0;
}

static int set_children(parser *p, node *parent, node *a, node *b, node *c) {
    parent->a = a;
    parent->b = b;
    parent->c = c;
    TRY(adopt(p, parent, a));
    TRY(adopt(p, parent, b));
    return adopt(p, parent, c);
}

static int append(parser *p, node_list *l, node *n) {
    if (l->n == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 4;
        node **items = arena_array(&p->t->memory, capacity, sizeof *items);
        if (items == NULL) return no_memory(p);
        if (l->n) memcpy(items, l->items, l->n * sizeof *items);
        l->items = items;
        l->capacity = capacity;
    }
    l->items[l->n++] = n;
    return 0;
}

static int append_child(parser *p, node *parent, node *n) {
    TRY(append(p, &parent->list, n));
    return adopt(p, parent, n);
}

static int binary(parser *p, node_kind kind, const token *t, node *a, node *b, node **out) {
    TRY(new_node(p, kind, t, out));
    return set_children(p, *out, a, b, NULL);
}

static int intern(parser *p, const char *text, size_t n, atom **out) {
    uint64_t hash = text_hash(text, n);
    atom **slot = &p->t->atoms[hash % p->t->n_atom_slots];
    for (atom *a = *slot; a; a = a->next) {
        if (a->hash != hash || a->name.n_bytes != n || memcmp(a->name.text, text, n) != 0) continue;
        *out = a;
        return 0;
    }
    atom *a = arena_alloc(&p->t->memory, sizeof *a);
    if (a == NULL) return no_memory(p);
    *a = (atom){.name = value_text(text, n), .hash = hash, .next = *slot};
    *slot = *out = a;
    return 0;
}

static int name_node(parser *p, const token *t, node **out) {
    TRY(new_node(p, N_NAME, t, out));
    TRY(intern(p, t->text, t->n_bytes, &(*out)->atom));
    if (token_is(t, "caller")) p->macro_uses |= NODE_USES_CALLER;
    if (token_is(t, "kwargs")) p->macro_uses |= NODE_USES_KWARGS;
    if (token_is(t, "varargs")) p->macro_uses |= NODE_USES_VARARGS;
    return 0;
}

static int constant_node(parser *p, const token *t, value v, node **out) {
    TRY(new_node(p, N_CONST, t, out));
    (*out)->constant = v;
    return 0;
}

/* ---- expressions ---- */

static int parse_string(parser *p, node **out) {
    const token *t = next(p);
    value v = value_text(t->text, t->n_bytes);
    while (at(p, T_STRING)) { /* neighbours are one string */
        const token *more = next(p);
        char *joined = arena_alloc(&p->t->memory, v.n_bytes + more->n_bytes + 1);
        if (joined == NULL) return no_memory(p);
        memcpy(joined, v.text, v.n_bytes);
        memcpy(joined + v.n_bytes, more->text, more->n_bytes);
        v = value_text(joined, v.n_bytes + more->n_bytes);
    }
    return constant_node(p, t, v, out);
}

static bool at_tuple_end(const parser *p, const char *extra_end) {
    return at(p, T_VARIABLE_END) || at(p, T_BLOCK_END) || at(p, T_RPAREN) || (extra_end && at_name(p, extra_end));
}

static int parse_primary(parser *p, bool namespace_target, node **out);

typedef struct tuple_style {
    bool simplified;       /* names and literals only: an assignment target */
    bool namespace_target; /* and name.attribute */
    bool no_conditional;
    bool parenthesised;
    const char *extra_end;
} tuple_style;

/* One expression, or a tuple when there are commas. */
static int parse_tuple(parser *p, tuple_style style, node **out) {
    const token *start = current(p);
    node_list items = {0};
    bool is_tuple = false;
    TRY(enter(p));
    for (;;) {
        if (items.n) TRY(expect(p, T_COMMA));
        if (at_tuple_end(p, style.extra_end)) break;
        node *item = NULL;
        TRY(style.simplified       ? parse_primary(p, style.namespace_target, &item)
            : style.no_conditional ? parse_or(p, &item)
                                   : parse_expression(p, &item));
        TRY(append(p, &items, item));
        if (!at(p, T_COMMA)) break;
        is_tuple = true;
    }
    p->depth--;
    if (!is_tuple) {
        if (items.n) {
            *out = items.items[0];
            return 0;
        }
        value got = describe(current(p));
        if (!style.parenthesised) SYNTAX(p, current(p), "Expected an expression, got '%.*s'", (int)got.n_bytes, got.text);
    }
    TRY(new_node(p, N_TUPLE, start, out));
    for (size_t i = 0; i < items.n; i++) TRY(append_child(p, *out, items.items[i]));
    return 0;
}

static int parse_list(parser *p, node **out) {
    TRY(new_node(p, N_LIST, next(p), out));
    while (!at(p, T_RBRACKET)) {
        node *item;
        if ((*out)->list.n) TRY(expect(p, T_COMMA));
        if (at(p, T_RBRACKET)) break;
        TRY(parse_expression(p, &item));
        TRY(append_child(p, *out, item));
    }
    return expect(p, T_RBRACKET);
}

static int parse_dict(parser *p, node **out) {
    TRY(new_node(p, N_DICT, next(p), out));
    while (!at(p, T_RBRACE)) {
        node *key, *item;
        if ((*out)->list.n) TRY(expect(p, T_COMMA));
        if (at(p, T_RBRACE)) break;
        TRY(parse_expression(p, &key));
        TRY(expect(p, T_COLON));
        TRY(parse_expression(p, &item));
        TRY(append_child(p, *out, key));
        TRY(append_child(p, *out, item));
    }
    return expect(p, T_RBRACE);
}

static int parse_name(parser *p, bool namespace_target, node **out) {
    const token *t = next(p);
    if (token_is(t, "true") || token_is(t, "True")) return constant_node(p, t, value_bool(true), out);
    if (token_is(t, "false") || token_is(t, "False")) return constant_node(p, t, value_bool(false), out);
    if (token_is(t, "none") || token_is(t, "None")) return constant_node(p, t, value_none(), out);
    if (!namespace_target || !at(p, T_DOT)) return name_node(p, t, out);
    next(p);
    const token *attribute = current(p);
    TRY(expect(p, T_NAME));
    TRY(new_node(p, N_NAMESPACE_TARGET, t, out));
    (*out)->constant = value_text(attribute->text, attribute->n_bytes);
    return intern(p, t->text, t->n_bytes, &(*out)->atom);
}

static int parse_primary(parser *p, bool namespace_target, node **out) {
    const token *t = current(p);
    switch (t->type) {
    case T_NAME:
        return parse_name(p, namespace_target, out);
    case T_STRING:
        return parse_string(p, out);
    case T_INTEGER:
    case T_FLOAT:
        return constant_node(p, next(p), t->number, out);
    case T_LPAREN:
        next(p);
        TRY(parse_tuple(p, (tuple_style){.parenthesised = true}, out));
        return expect(p, T_RPAREN);
    case T_LBRACKET:
        return parse_list(p, out);
    case T_LBRACE:
        return parse_dict(p, out);
    default: {
        value got = describe(t);
        SYNTAX(p, t, "unexpected '%.*s'", (int)got.n_bytes, got.text);
    }
    }
}

/* What stands between [ and ] or a comma: an expression or a slice. */
static int parse_subscribed(parser *p, node **out) {
    const token *start = current(p);
    node *part[3] = {NULL, NULL, NULL};
    if (!at(p, T_COLON)) {
        TRY(parse_expression(p, &part[0]));
        if (!at(p, T_COLON)) {
            *out = part[0];
            return 0;
        }
    }
    next(p);
    if (!at(p, T_COLON) && !at(p, T_RBRACKET) && !at(p, T_COMMA)) TRY(parse_expression(p, &part[1]));
    if (skip(p, T_COLON) && !at(p, T_RBRACKET) && !at(p, T_COMMA)) TRY(parse_expression(p, &part[2]));
    TRY(new_node(p, N_SLICE, start, out));
    return set_children(p, *out, part[0], part[1], part[2]);
}

static int parse_subscript(parser *p, node *object, node **out) {
    const token *t = next(p);
    node *key = NULL;
    if (t->type == T_DOT) {
        const token *name = next(p);
        if (name->type == T_NAME) {
            TRY(binary(p, N_ATTRIBUTE, t, object, NULL, out));
            return intern(p, name->text, name->n_bytes, &(*out)->atom);
        }
        if (name->type != T_INTEGER) SYNTAX(p, name, "expected name or number");
        TRY(constant_node(p, name, name->number, &key));
        return binary(p, N_ITEM, t, object, key, out);
    }
    node *tuple;
    TRY(new_node(p, N_TUPLE, t, &tuple));
    while (!at(p, T_RBRACKET)) {
        if (tuple->list.n) TRY(expect(p, T_COMMA));
        TRY(parse_subscribed(p, &key));
        TRY(append_child(p, tuple, key));
    }
    TRY(expect(p, T_RBRACKET));
    return binary(p, N_ITEM, t, object, tuple->list.n == 1 ? key : tuple, out);
}

static int add_argument(parser *p, node *call, argument_kind kind, value name, size_t *capacity) {
    if (call->n_args == *capacity) {
        size_t grown = *capacity ? *capacity * 2 : 4;
        node_argument *args = arena_array(&p->t->memory, grown, sizeof *args);
        if (args == NULL) return no_memory(p);
        if (call->n_args) memcpy(args, call->args, call->n_args * sizeof *args);
        call->args = args;
        *capacity = grown;
    }
    node *item;
    TRY(parse_expression(p, &item));
    call->args[call->n_args++] = (node_argument){kind, name, item};
    return adopt(p, call, item);
}

/* (a, b, *rest, key=value, **more) */
static int parse_arguments(parser *p, node *call) {
    const token *open = current(p);
    size_t capacity = 0;
    argument_kind last = ARG_POSITIONAL; /* kinds come in this order, but keywords may follow *rest */
    bool star = false;
    TRY(expect(p, T_LPAREN));
    while (!at(p, T_RPAREN)) {
        if (call->n_args) {
            TRY(expect(p, T_COMMA));
            if (at(p, T_RPAREN)) break;
        }
        argument_kind kind = at(p, T_MUL) ? ARG_STAR : at(p, T_POW) ? ARG_STAR_STAR : ARG_POSITIONAL;
        value name = {0};
        if (kind == ARG_POSITIONAL && at(p, T_NAME) && look(p)->type == T_ASSIGN) {
            kind = ARG_KEYWORD;
            name = value_text(current(p)->text, current(p)->n_bytes);
            next(p);
        }
        bool fits = last != ARG_STAR_STAR && !(kind == ARG_STAR && star) &&
                    !(kind == ARG_POSITIONAL && (star || last != ARG_POSITIONAL));
        if (!fits) SYNTAX(p, open, "invalid syntax for function call expression");
        for (size_t i = 0; kind == ARG_KEYWORD && i < call->n_args; i++)
            if (call->args[i].kind == ARG_KEYWORD && call->args[i].name.n_bytes == name.n_bytes &&
                memcmp(call->args[i].name.text, name.text, name.n_bytes) == 0)
                SYNTAX(p, current(p), "keyword argument repeated: %.*s", (int)name.n_bytes, name.text);
        if (kind != ARG_POSITIONAL) next(p); /* the *, ** or = */
        star = star || kind == ARG_STAR;
        last = kind;
        TRY(add_argument(p, call, kind, name, &capacity));
    }
    return expect(p, T_RPAREN);
}

static int parse_call(parser *p, node *callee, node **out) {
    TRY(binary(p, N_CALL, current(p), callee, NULL, out));
    return parse_arguments(p, *out);
}

static int parse_postfix(parser *p, node **n) {
    for (;;) {
        if (at(p, T_DOT) || at(p, T_LBRACKET))
            TRY(parse_subscript(p, *n, n));
        else if (at(p, T_LPAREN))
            TRY(parse_call(p, *n, n));
        else
            return 0;
    }
}

/* The dotted name of a filter or test. */
static int parse_dotted_name(parser *p, value *out) {
    const token *first = current(p), *last = first;
    TRY(expect(p, T_NAME));
    while (skip(p, T_DOT)) {
        last = current(p);
        TRY(expect(p, T_NAME));
    }
    *out = value_text(first->text, first->n_bytes);
    if (last == first) return 0;
    size_t n = (size_t)(last->text + last->n_bytes - first->text);
    *out = value_text(first->text, n);
    return 0;
}

/* name or name(arguments); `operand` is NULL for the text of a block. */
static int parse_one_filter(parser *p, node *operand, node **out) {
    const token *t = current(p);
    node *filter = NULL;
    TRY(new_node(p, N_FILTER, t, &filter));
    TRY(parse_dotted_name(p, &filter->constant));
    filter->builtin = filter_find(filter->constant.text, filter->constant.n_bytes);
    if (at(p, T_LPAREN)) TRY(parse_arguments(p, filter));
    filter->a = operand;
    *out = filter;
    return adopt(p, filter, operand);
}

static bool begins_test_operand(const parser *p) {
    switch (current(p)->type) {
    case T_NAME:
        return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and");
    case T_STRING:
    case T_INTEGER:
    case T_FLOAT:
    case T_LBRACKET:
    case T_LBRACE:
        return true;
    default:
        return false;
    }
}

static int parse_test(parser *p, node *operand, node **out) {
    const token *t = next(p);
    bool negated = skip_name(p, "not");
    node *test;
    TRY(binary(p, N_TEST, t, operand, NULL, &test));
    TRY(parse_dotted_name(p, &test->constant));
    test->builtin = test_find(test->constant.text, test->constant.n_bytes);
    if (at(p, T_LPAREN)) {
        TRY(parse_arguments(p, test));
    } else if (begins_test_operand(p)) {
        if (at_name(p, "is")) SYNTAX(p, current(p), "You cannot chain multiple tests with is");
        node *argument;
        TRY(enter(p));
        TRY(parse_primary(p, false, &argument));
        TRY(parse_postfix(p, &argument));
        p->depth--;
        test->args = arena_alloc(&p->t->memory, sizeof *test->args);
        if (test->args == NULL) return no_memory(p);
        test->args[0] = (node_argument){.kind = ARG_POSITIONAL, .item = argument};
        test->n_args = 1;
        TRY(adopt(p, test, argument));
    }
    *out = test;
    return negated ? binary(p, N_NOT, t, test, NULL, out) : 0;
}

static int parse_filters(parser *p, node **n) {
    for (;;) {
        if (skip(p, T_PIPE))
            TRY(parse_one_filter(p, *n, n));
        else if (at_name(p, "is"))
            TRY(parse_test(p, *n, n));
        else if (at(p, T_LPAREN))
            TRY(parse_call(p, *n, n));
        else
            return 0;
    }
}

static int parse_unary(parser *p, bool with_filter, node **out) {
    const token *t = current(p);
    TRY(enter(p));
    if (t->type == T_SUB || t->type == T_ADD) {
        node *operand;
        next(p);
        TRY(parse_unary(p, false, &operand));
        TRY(binary(p, t->type == T_SUB ? N_NEGATE : N_POSITIVE, t, operand, NULL, out));
    } else {
        TRY(parse_primary(p, false, out));
    }
    TRY(parse_postfix(p, out));
    if (with_filter) TRY(parse_filters(p, out));
    p->depth--;
    return 0;
}

static int parse_power(parser *p, node **out) {
    TRY(parse_unary(p, true, out));
    while (at(p, T_POW)) {
        const token *t = next(p);
        node *right;
        TRY(parse_unary(p, true, &right));
        TRY(binary(p, N_BINARY, t, *out, right, out));
        (*out)->op = OP_POW;
    }
    return 0;
}

static int parse_product(parser *p, node **out) {
    TRY(parse_power(p, out));
    while (at(p, T_MUL) || at(p, T_DIV) || at(p, T_FLOORDIV) || at(p, T_MOD)) {
        const token *t = next(p);
        node *right;
        TRY(parse_power(p, &right));
        TRY(binary(p, N_BINARY, t, *out, right, out));
        (*out)->op = t->type == T_MUL ? OP_MUL : t->type == T_DIV ? OP_DIV : t->type == T_FLOORDIV ? OP_FLOORDIV : OP_MOD;
    }
    return 0;
}

static int parse_concat(parser *p, node **out) {
    node *first, *more;
    TRY(parse_product(p, &first));
    *out = first;
    if (!at(p, T_TILDE)) return 0;
    TRY(new_node(p, N_CONCAT, current(p), out));
    TRY(append_child(p, *out, first));
    while (skip(p, T_TILDE)) {
        TRY(parse_product(p, &more));
        TRY(append_child(p, *out, more));
    }
    return 0;
}

static int parse_sum(parser *p, node **out) {
    TRY(parse_concat(p, out));
    while (at(p, T_ADD) || at(p, T_SUB)) {
        const token *t = next(p);
        node *right;
        TRY(parse_concat(p, &right));
        TRY(binary(p, N_BINARY, t, *out, right, out));
        (*out)->op = t->type == T_ADD ? OP_ADD : OP_SUB;
    }
    return 0;
}

/* The comparison operator at the cursor, which is moved past it; -1 when there is none. */
static int take_comparison(parser *p) {
    if (current(p)->type >= T_EQ && current(p)->type <= T_LE) return CMP_EQ + (next(p)->type - T_EQ);
    if (skip_name(p, "in")) return CMP_IN;
    if (!at_name(p, "not") || !token_is(look(p), "in")) return -1;
    next(p);
    next(p);
    return CMP_NOT_IN;
}

static int parse_comparison(parser *p, node **out) {
    const token *t = current(p);
    node *first, *operand, *compare = NULL;
    uint8_t ops[256];
    TRY(parse_sum(p, &first));
    *out = first;
    for (int op; (op = take_comparison(p)) >= 0;) {
        if (compare == NULL) TRY(binary(p, N_COMPARE, t, first, NULL, &compare));
        if (compare->list.n == sizeof ops) SYNTAX(p, current(p), "more than %zu comparisons in one chain", sizeof ops);
        ops[compare->list.n] = (uint8_t)op;
        TRY(parse_sum(p, &operand));
        TRY(append_child(p, compare, operand));
    }
    if (compare == NULL) return 0;
    compare->ops = arena_alloc(&p->t->memory, compare->list.n);
    if (compare->ops == NULL) return no_memory(p);
    memcpy(compare->ops, ops, compare->list.n);
    *out = compare;
    return 0;
}

static int parse_not(parser *p, node **out) {
    const token *t = current(p);
    if (!skip_name(p, "not")) return parse_comparison(p, out);
    node *operand;
    TRY(enter(p));
    TRY(parse_not(p, &operand));
    p->depth--;
    return binary(p, N_NOT, t, operand, NULL, out);
}

static int parse_and(parser *p, node **out) {
    TRY(parse_not(p, out));
    while (at_name(p, "and")) {
        const token *t = next(p);
        node *right;
        TRY(parse_not(p, &right));
        TRY(binary(p, N_AND, t, *out, right, out));
    }
    return 0;
}

static int parse_or(parser *p, node **out) {
    TRY(parse_and(p, out));
    while (at_name(p, "or")) {
        const token *t = next(p);
        node *right;
        TRY(parse_and(p, &right));
        TRY(binary(p, N_OR, t, *out, right, out));
    }
    return 0;
}

/* a if b else c */
static int parse_expression(parser *p, node **out) {
    TRY(enter(p));
    TRY(parse_or(p, out));
    while (at_name(p, "if")) {
        const token *t = next(p);
        node *condition = NULL, *otherwise = NULL, *whole = NULL;
        TRY(parse_or(p, &condition));
        if (skip_name(p, "else")) TRY(parse_expression(p, &otherwise));
        TRY(new_node(p, N_CONDITIONAL, t, &whole));
        TRY(set_children(p, whole, *out, condition, otherwise));
        *out = whole;
    }
    p->depth--;
    return 0;
}

/* ---- statements ---- */

static const char *target_kind(const node *n) {
    switch (n->kind) {
    case N_CONST:
        return "const";
    case N_LIST:
        return "list";
    case N_DICT:
        return "dict";
    default:
        return "expression";
    }
}

static int check_target(parser *p, const node *n) {
    if (n->kind == N_TUPLE) {
        for (size_t i = 0; i < n->list.n; i++) TRY(check_target(p, n->list.items[i]));
        return 0;
    }
    if (n->kind == N_NAME || n->kind == N_NAMESPACE_TARGET) return 0;
    return syntax_error(p->t, p->err, n->offset, "can't assign to '%s'", target_kind(n));
}

static int parse_target(parser *p, bool namespace_target, const char *extra_end, node **out) {
    TRY(parse_tuple(p, (tuple_style){.simplified = true, .namespace_target = namespace_target, .extra_end = extra_end}, out));
    return check_target(p, *out);
}

static int parse_target_name(parser *p, node **out) {
    const token *t = current(p);
    TRY(expect(p, T_NAME));
    return name_node(p, t, out);
}

static int parse_set(parser *p, const token *t, node **out) {
    node *target, *source = NULL;
    TRY(parse_target(p, true, NULL, &target));
    if (skip(p, T_ASSIGN)) {
        TRY(parse_tuple(p, (tuple_style){0}, &source));
        return binary(p, N_SET, t, target, source, out);
    }
    while (skip(p, T_PIPE)) TRY(parse_one_filter(p, source, &source));
    TRY(binary(p, N_SET_BLOCK, t, target, source, out));
    TRY(parse_body(p, "endset", &(*out)->body));
    next(p);
    return 0;
}

static int parse_for(parser *p, const token *t, node **out) {
    node *target, *iterable, *condition = NULL;
    TRY(parse_target(p, false, "in", &target));
    TRY(expect_name(p, "in"));
    TRY(parse_tuple(p, (tuple_style){.no_conditional = true, .extra_end = "recursive"}, &iterable));
    if (skip_name(p, "if")) TRY(parse_expression(p, &condition));
    TRY(new_node(p, N_FOR, t, out));
    TRY(set_children(p, *out, target, iterable, condition));
    if (skip_name(p, "recursive")) (*out)->flags |= NODE_RECURSIVE;
    p->loop_depth++;
    TRY(parse_body(p, "endfor else", &(*out)->body));
    p->loop_depth--;
    if (token_is(next(p), "endfor")) return 0;
    TRY(parse_body(p, "endfor", &(*out)->else_body));
    next(p);
    return 0;
}

static int parse_if(parser *p, const token *t, node **out) {
    size_t capacity = 0;
    node *condition;
    TRY(new_node(p, N_IF, t, out));
    for (;;) {
        node *branch = *out;
        TRY(parse_tuple(p, (tuple_style){.no_conditional = true}, &condition));
        TRY(append_child(p, branch, condition));
        if (branch->list.n > capacity) {
            capacity = capacity ? capacity * 2 : 2;
            node_list *bodies = arena_array(&p->t->memory, capacity, sizeof *bodies);
            if (bodies == NULL) return no_memory(p);
            if (branch->bodies) memcpy(bodies, branch->bodies, (branch->list.n - 1) * sizeof *bodies);
            branch->bodies = bodies;
        }
        TRY(parse_body(p, "elif else endif", &branch->bodies[branch->list.n - 1]));
        const token *end = next(p);
        if (token_is(end, "elif")) continue;
        if (!token_is(end, "else")) return 0;
        TRY(parse_body(p, "endif", &branch->else_body));
        next(p);
        return 0;
    }
}

static int parse_with(parser *p, const token *t, node **out) {
    TRY(new_node(p, N_WITH, t, out));
    while (!at(p, T_BLOCK_END)) {
        node *target, *item;
        if ((*out)->list.n) TRY(expect(p, T_COMMA));
        TRY(parse_target(p, false, NULL, &target));
        TRY(expect(p, T_ASSIGN));
        TRY(parse_expression(p, &item));
        TRY(append_child(p, *out, target));
        TRY(append_child(p, *out, item));
    }
    TRY(parse_body(p, "endwith", &(*out)->body));
    next(p);
    return 0;
}

static int parse_signature(parser *p, node *macro) {
    TRY(expect(p, T_LPAREN));
    while (!at(p, T_RPAREN)) {
        node *parameter, *item;
        if (macro->list.n) TRY(expect(p, T_COMMA));
        TRY(parse_target_name(p, &parameter));
        for (size_t i = 0; i < macro->list.n; i++)
            if (macro->list.items[i]->atom == parameter->atom)
                return syntax_error(p->t, p->err, parameter->offset, "duplicate argument '%.*s'",
                                    (int)parameter->atom->name.n_bytes, parameter->atom->name.text);
        if (skip(p, T_ASSIGN)) {
            TRY(parse_expression(p, &item));
            TRY(append(p, &macro->defaults, item));
            TRY(adopt(p, macro, item));
        } else if (macro->defaults.n) {
            SYNTAX(p, current(p), "non-default argument follows default argument");
        }
        TRY(append(p, &macro->list, parameter));
    }
    return expect(p, T_RPAREN);
}

/* A body that runs as a function of its own: break and continue cannot leave it, and it notes which special names it reads. */
static int parse_function_body(parser *p, node *n, const char *end) {
    int loop_depth = p->loop_depth;
    uint8_t outer = p->macro_uses;
    p->loop_depth = 0;
    p->macro_uses = 0;
    TRY(parse_body(p, end, &n->body));
    n->flags |= p->macro_uses;
    p->macro_uses |= outer;
    p->loop_depth = loop_depth;
    next(p);
    return 0;
}

static int parse_macro(parser *p, const token *t, node **out) {
    node *name;
    TRY(parse_target_name(p, &name));
    TRY(new_node(p, N_MACRO, t, out));
    (*out)->atom = name->atom;
    TRY(parse_signature(p, *out));
    TRY(parse_function_body(p, *out, "endmacro"));
    for (size_t i = 0; i < (*out)->list.n; i++) {
        if ((*out)->list.items[i]->atom == p->t->kwargs_atom) (*out)->flags &= (uint8_t)~NODE_USES_KWARGS;
        if ((*out)->list.items[i]->atom == p->t->varargs_atom) (*out)->flags &= (uint8_t)~NODE_USES_VARARGS;
        bool has_default = i + (*out)->defaults.n >= (*out)->list.n;
        if ((*out)->list.items[i]->atom == p->t->caller_atom && ((*out)->flags & NODE_USES_CALLER) && !has_default)
            return syntax_error(p->t, p->err, t->offset,
                                "When defining macros or call blocks the special \"caller\" argument "
                                "must be omitted or be given a default.");
    }
    return 0;
}

static int parse_call_block(parser *p, const token *t, node **out) {
    node *call;
    TRY(new_node(p, N_CALL_BLOCK, t, out));
    if (at(p, T_LPAREN)) TRY(parse_signature(p, *out));
    TRY(parse_expression(p, &call));
    if (call->kind != N_CALL) SYNTAX(p, t, "expected call");
    TRY(set_children(p, *out, call, NULL, NULL));
    return parse_function_body(p, *out, "endcall");
}

static int parse_filter_block(parser *p, const token *t, node **out) {
    node *filter = NULL;
    TRY(parse_one_filter(p, NULL, &filter));
    while (skip(p, T_PIPE)) TRY(parse_one_filter(p, filter, &filter));
    TRY(binary(p, N_FILTER_BLOCK, t, filter, NULL, out));
    TRY(parse_body(p, "endfilter", &(*out)->body));
    next(p);
    return 0;
}

static int parse_block(parser *p, const token *t, node **out) {
    const token *name = current(p);
    TRY(expect(p, T_NAME));
    TRY(new_node(p, N_BLOCK, t, out));
    TRY(intern(p, name->text, name->n_bytes, &(*out)->atom));
    if (skip_name(p, "scoped")) (*out)->flags |= NODE_SCOPED;
    bool required = skip_name(p, "required");
    if (at(p, T_SUB)) SYNTAX(p, current(p), "Block names may not contain hyphens, use an underscore instead.");
    for (const jinja_block *b = p->t->blocks; b; b = b->next)
        if (b->name == (*out)->atom) SYNTAX(p, t, "block '%.*s' defined twice", (int)name->n_bytes, name->text);
    jinja_block *block = arena_alloc(&p->t->memory, sizeof *block);
    if (block == NULL) return no_memory(p);
    *block = (jinja_block){(*out)->atom, *out, p->t->blocks};
    p->t->blocks = block;
    TRY(parse_function_body(p, *out, "endblock"));
    for (size_t i = 0; required && i < (*out)->body.n; i++) {
        const node *n = (*out)->body.items[i];
        if (n->kind != N_DATA || !text_is(n->constant.text, n->constant.n_bytes, CLASS_SPACE))
            SYNTAX(p, t, "Required blocks can only contain comments or whitespace");
    }
    if (required) (*out)->flags |= NODE_REQUIRED;
    if (at(p, T_NAME) && current(p)->n_bytes == name->n_bytes && memcmp(current(p)->text, name->text, name->n_bytes) == 0)
        next(p);
    return 0;
}

static int parse_autoescape(parser *p, const token *t, node **out) {
    node *condition;
    TRY(parse_expression(p, &condition));
    TRY(binary(p, N_AUTOESCAPE, t, condition, NULL, out));
    TRY(parse_body(p, "endautoescape", &(*out)->body));
    next(p);
    return 0;
}

static int parse_generation(parser *p, const token *t, node **out) {
    TRY(new_node(p, N_GENERATION, t, out));
    return parse_function_body(p, *out, "endgeneration");
}

/* print a, b: a tuple of prints. */
static int parse_print(parser *p, const token *t, node **out) {
    TRY(new_node(p, N_PRINT, t, out));
    while (!at(p, T_BLOCK_END)) {
        node *item;
        if ((*out)->list.n) TRY(expect(p, T_COMMA));
        TRY(parse_expression(p, &item));
        TRY(append_child(p, *out, item));
    }
    return 0;
}

static int parse_loop_control(parser *p, const token *t, node **out) {
    if (p->loop_depth == 0) SYNTAX(p, t, "'%.*s' outside loop", (int)t->n_bytes, t->text);
    return new_node(p, token_is(t, "break") ? N_BREAK : N_CONTINUE, t, out);
}

/* include, import, from, extends: there are no other templates, so reaching one is an error. */
static int parse_loader(parser *p, const token *t, node **out) {
    TRY(new_node(p, N_LOADER, t, out));
    (*out)->constant = value_text(t->text, t->n_bytes);
    node *source;
    TRY(parse_expression(p, &source));
    while (!at(p, T_BLOCK_END) && !at(p, T_EOF)) {
        if (!at(p, T_NAME) && !at(p, T_COMMA)) return expect(p, T_BLOCK_END);
        next(p);
    }
    return 0;
}

static const struct {
    const char *name;
    int (*parse)(parser *p, const token *t, node **out);
} statements[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call_block},
    {"filter", parse_filter_block},
    {"with", parse_with},
    {"block", parse_block},
    {"autoescape", parse_autoescape},
    {"generation", parse_generation},
    {"print", parse_print},
    {"break", parse_loop_control},
    {"continue", parse_loop_control},
    {"include", parse_loader},
    {"import", parse_loader},
    {"from", parse_loader},
    {"extends", parse_loader},
};

static bool in_words(const token *t, const char *words) {
    while (t->type == T_NAME && words && *words) {
        size_t n = strcspn(words, " ");
        if (n == t->n_bytes && memcmp(words, t->text, n) == 0) return true;
        words += n;
        words += *words == ' ';
    }
    return false;
}

/* 'a' or 'b' */
static const char *quoted_words(const char *words, char *out, size_t capacity) {
    size_t n = 0;
    out[0] = '\0';
    while (words && *words && n + 1 < capacity) {
        int k = (int)strcspn(words, " ");
        n += (size_t)snprintf(out + n, capacity - n, "%s'%.*s'", n ? " or " : "", k, words);
        words += k;
        words += *words == ' ';
    }
    return out;
}

/* The end of the template, or a tag that nothing here expects (`name`). */
static int unexpected_tag(parser *p, const token *name) {
    char expected[128], message[400], innermost[100] = "";
    const char *ends = p->n_open ? p->open[p->n_open - 1].ends : NULL;
    bool known = false;
    for (size_t i = 0; name && i < p->n_open; i++) known = known || in_words(name, p->open[i].ends);
    quoted_words(ends, expected, sizeof expected);
    if (p->n_open)
        snprintf(innermost, sizeof innermost, " The innermost block that needs to be closed is '%.*s'.",
                 (int)p->open[p->n_open - 1].tag.n_bytes, p->open[p->n_open - 1].tag.text);
    if (!p->n_open)
        message[0] = '\0';
    else if (known)
        snprintf(message, sizeof message,
                 " You probably made a nesting mistake. Jinja is expecting this tag, but currently looking for %s.%s", expected,
                 innermost);
    else
        snprintf(message, sizeof message, " Jinja was looking for the following tags: %s.%s", expected, innermost);
    if (name == NULL) SYNTAX(p, current(p), "Unexpected end of template.%s", message);
    SYNTAX(p, name, "Encountered unknown tag '%.*s'.%s", (int)(name->n_bytes < 60 ? name->n_bytes : 60), name->text, message);
}

static int parse_statement(parser *p, node **out) {
    const token *t = current(p);
    if (t->type != T_NAME) SYNTAX(p, t, "tag name expected");
    for (size_t i = 0; i < sizeof statements / sizeof statements[0]; i++) {
        if (!token_is(t, statements[i].name)) continue;
        next(p);
        TRY(enter(p));
        p->open[p->n_open].tag = value_text(t->text, t->n_bytes);
        p->open[p->n_open++].ends = NULL;
        TRY(statements[i].parse(p, t, out));
        p->n_open--;
        p->depth--;
        return 0;
    }
    while (p->n_open && p->open[p->n_open - 1].ends == NULL) p->n_open--;
    return unexpected_tag(p, t);
}

/* Statements and text up to (and not including) one of the tags `ends`, or, when that is NULL, the end of the template. */
static int parse_nodes(parser *p, const char *ends, node_list *out) {
    node *n;
    for (;;) {
        const token *t = next(p);
        switch (t->type) {
        case T_EOF:
            return 0;
        case T_DATA:
            TRY(new_node(p, N_DATA, t, &n));
            n->constant = value_text(t->text, t->n_bytes);
            break;
        case T_VARIABLE_BEGIN: {
            node *e;
            TRY(parse_tuple(p, (tuple_style){0}, &e));
            TRY(expect(p, T_VARIABLE_END));
            TRY(new_node(p, N_PRINT, t, &n));
            TRY(append_child(p, n, e));
            break;
        }
        default: /* T_BLOCK_BEGIN */
            if (in_words(current(p), ends)) return 0;
            TRY(parse_statement(p, &n));
            TRY(expect(p, T_BLOCK_END));
        }
        TRY(append(p, out, n));
    }
}

/* The rest of the tag and the body up to one of `ends`, which becomes the current token. */
static int parse_body(parser *p, const char *ends, node_list *out) {
    skip(p, T_COLON);
    TRY(expect(p, T_BLOCK_END));
    if (p->n_open) p->open[p->n_open - 1].ends = ends;
    TRY(parse_nodes(p, ends, out));
    return at(p, T_EOF) ? unexpected_tag(p, NULL) : 0;
}

/* ---- filters and tests that do not exist: an error, except where only a condition may reach them ---- */

static int check(parser *p, const node *n, bool soft);

static int check_list(parser *p, const node_list *l, bool soft) {
    for (size_t i = 0; i < l->n; i++) TRY(check(p, l->items[i], soft));
    return 0;
}

static int check(parser *p, const node *n, bool soft) {
    if (n == NULL) return 0;
    if ((n->kind == N_FILTER || n->kind == N_TEST) && n->builtin == NULL && !soft)
        return syntax_error(p->t, p->err, n->offset, "No %s named '%.*s'.", n->kind == N_FILTER ? "filter" : "test",
                            (int)(n->constant.n_bytes < 80 ? n->constant.n_bytes : 80), n->constant.text);
    bool inner = soft || n->kind == N_IF || n->kind == N_CONDITIONAL;
    bool body = n->kind == N_IF; /* every other body is a scope of its own */
    TRY(check(p, n->a, inner && n->kind != N_FILTER_BLOCK));
    TRY(check(p, n->b, inner && n->kind != N_SET_BLOCK));
    TRY(check(p, n->c, inner));
    TRY(check_list(p, &n->list, inner));
    for (size_t i = 0; i < n->n_args; i++) TRY(check(p, n->args[i].item, inner));
    TRY(check_list(p, &n->defaults, false));
    for (size_t i = 0; n->bodies && i < n->list.n; i++) TRY(check_list(p, &n->bodies[i], true));
    TRY(check_list(p, &n->body, body));
    return check_list(p, &n->else_body, body);
}

int jinja_parse(jinja_template *t, const token_list *tokens, weir_error *err) {
    parser p = {.t = t, .err = err, .tokens = tokens->items};
    static const char *const special[] = {"loop", "caller", "kwargs", "varargs", "self"};
    const atom **atoms[] = {&t->loop_atom, &t->caller_atom, &t->kwargs_atom, &t->varargs_atom, &t->self_atom};
    for (int i = 0; i < 5; i++) {
        atom *a;
        TRY(intern(&p, special[i], strlen(special[i]), &a));
        *atoms[i] = a;
    }
    TRY(parse_nodes(&p, NULL, &t->body));
    return check_list(&p, &t->body, false);
}
