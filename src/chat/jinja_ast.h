/* Tokens and the syntax tree of a template. A tree is immutable once compiled and lives in its template's arena. */
#ifndef WEIR_CHAT_JINJA_AST_H
#define WEIR_CHAT_JINJA_AST_H

#include "chat/jinja_value.h"

typedef enum token_type {
    T_EOF, T_DATA, T_VARIABLE_BEGIN, T_VARIABLE_END, T_BLOCK_BEGIN, T_BLOCK_END, T_NAME, T_STRING, T_INTEGER, T_FLOAT,
    T_ADD, T_SUB, T_MUL, T_DIV, T_FLOORDIV, T_MOD, T_POW, T_TILDE, T_LPAREN, T_RPAREN, T_LBRACKET, T_RBRACKET, T_LBRACE, T_RBRACE,
    T_EQ, T_NE, T_GT, T_GE, T_LT, T_LE, T_ASSIGN, T_DOT, T_COLON, T_PIPE, T_COMMA, T_SEMICOLON,
} token_type;

typedef struct token {
    uint8_t type;
    uint32_t line;
    size_t offset;    /* of its first byte in the source */
    const char *text; /* data, name, or the string with its escapes resolved */
    size_t n_bytes;
    value number;     /* T_INTEGER, T_FLOAT */
} token;

typedef struct token_list {
    token *items;
    size_t n, capacity;
} token_list;

/* A name of the template; equal names share one atom, so that scopes compare pointers. */
typedef struct atom {
    value name;
    uint64_t hash;
    struct atom *next;
} atom;

typedef enum node_kind {
    /* expressions */
    N_CONST, N_NAME, N_TUPLE, N_LIST, N_DICT, N_CONDITIONAL, N_OR, N_AND, N_NOT, N_COMPARE, N_BINARY, N_CONCAT, N_NEGATE,
    N_POSITIVE, N_ATTRIBUTE, N_ITEM, N_SLICE, N_CALL, N_FILTER, N_TEST, N_NAMESPACE_TARGET,
    /* statements */
    N_DATA, N_PRINT, N_IF, N_FOR, N_SET, N_SET_BLOCK, N_MACRO, N_CALL_BLOCK, N_FILTER_BLOCK, N_WITH, N_AUTOESCAPE, N_BLOCK,
    N_GENERATION, N_BREAK, N_CONTINUE, N_LOADER,
} node_kind;

typedef enum compare_op { CMP_EQ, CMP_NE, CMP_GT, CMP_GE, CMP_LT, CMP_LE, CMP_IN, CMP_NOT_IN } compare_op;

typedef enum argument_kind { ARG_POSITIONAL, ARG_KEYWORD, ARG_STAR, ARG_STAR_STAR } argument_kind;

typedef struct node node;

typedef struct node_argument {
    argument_kind kind;
    value name; /* keyword */
    node *item;
} node_argument;

typedef struct node_list {
    node **items;
    size_t n, capacity;
} node_list;

enum { NODE_SCOPED = 1, NODE_RECURSIVE = 2, NODE_USES_CALLER = 4, NODE_USES_KWARGS = 8, NODE_USES_VARARGS = 16, NODE_REQUIRED = 32 };

/* Which fields a kind uses:
 *   CONST constant · NAME atom · TUPLE/LIST/CONCAT list · DICT list (key, item, key, item, ...) · CONDITIONAL a if b else c
 *   OR/AND a, b · NOT/NEGATE/POSITIVE a · COMPARE a, list (operands), ops · BINARY op, a, b · ATTRIBUTE a, atom · ITEM a, b
 *   SLICE a, b, c (NULL = not given) · CALL a, args · FILTER/TEST a (NULL: the block's text), constant (name), builtin, args
 *   NAMESPACE_TARGET atom, constant (attribute)
 *   DATA constant · PRINT a · IF list (condition, condition, ..., one for each of bodies), bodies, else_body
 *   FOR a (target), b (iterable), c (condition), body, else_body · SET a, b · SET_BLOCK a, b (filter chain or NULL), body
 *   MACRO atom, list (parameters), defaults (last ones), body · CALL_BLOCK a (call), list, defaults, body · FILTER_BLOCK a, body
 *   WITH list (target, item, ...), body · AUTOESCAPE a, body · BLOCK atom, body · GENERATION body · LOADER constant (tag) */
struct node {
    uint8_t kind, op, flags;
    uint16_t height;
    uint32_t line;
    size_t offset;
    node *a, *b, *c;
    atom *atom;
    value constant;
    const jinja_builtin *builtin;
    node_list list, body, else_body, defaults;
    node_list *bodies;
    uint8_t *ops;
    node_argument *args;
    size_t n_args;
};

struct jinja_block {
    const atom *name;
    const node *node;
    struct jinja_block *next;
};

struct jinja_template {
    arena memory;
    const char *source;
    size_t n_bytes;
    node_list body;
    atom **atoms;
    size_t n_atom_slots, n_atoms;
    jinja_block *blocks;
    const atom *loop_atom, *caller_atom, *kwargs_atom, *varargs_atom, *self_atom;
};

uint64_t text_hash(const char *text, size_t n_bytes);
/* Line and column (in code points, from 1) of a byte of the source. */
void source_position(const jinja_template *t, size_t offset, uint32_t *line, uint32_t *column);
/* WEIR_E_FORMAT at a byte of the source. */
int syntax_error(const jinja_template *t, weir_error *err, size_t offset, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Cuts the template's source into tokens (in `memory`); the last is T_EOF. */
int jinja_tokenize(jinja_template *t, arena *memory, token_list *out, weir_error *err);
/* Fills t->body and t->blocks. */
int jinja_parse(jinja_template *t, const token_list *tokens, weir_error *err);

#endif
