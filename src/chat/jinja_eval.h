/* Running a syntax tree: scopes, expressions, statements, macros and loops. Internal to the interpreter.
 * Functions return 0 or a negative weir_code; one thread per rendering. */
#ifndef WEIR_CHAT_JINJA_EVAL_H
#define WEIR_CHAT_JINJA_EVAL_H

#include "chat/jinja_ast.h"

typedef struct binding {
    const atom *name;
    value item;
} binding;

/* Names bound in one block; lookups go on in `parent`, and from the root to the variables and functions. */
typedef struct scope {
    struct scope *parent;
    binding *items;
    size_t n, capacity;
    bool captured; /* a macro may outlive the block: do not reuse it for the next iteration */
} scope;

typedef enum flow { FLOW_NEXT = 0, FLOW_BREAK = 1, FLOW_CONTINUE = 2 } flow;

int scope_new(render *r, scope *parent, scope **out);
int scope_set(render *r, scope *s, const atom *name, const value *item);
int eval(render *r, const node *n, value *out);
/* Runs statements in the current scope; returns a flow or an error. */
int exec_list(render *r, const node_list *body);
/* Runs `body` in a new scope under `parent`, its output as a text. */
int exec_capture(render *r, const node_list *body, scope *parent, value *out);
/* Binds the names of an assignment target in the current scope. */
int assign(render *r, const node *target, const value *item);
/* The N_CALL `n`, with `caller` as a keyword argument when not NULL. */
int eval_call(render *r, const node *n, const value *caller, value *out);
int eval_filter(render *r, const node *n, const value *block_text, value *out);

const value *jinja_macro_name(const jinja_macro *m);
int jinja_macro_call(render *r, const jinja_macro *m, const call_arguments *arguments, value *out);
int jinja_macro_attribute(render *r, const jinja_macro *m, const value *name, value *out); /* V_MISSING: none such */
int jinja_loop_call(render *r, jinja_loop *l, const call_arguments *arguments, value *out);
int jinja_loop_attribute(render *r, jinja_loop *l, const value *name, value *out); /* V_MISSING: none such */
int jinja_loop_length(render *r, jinja_loop *l, int64_t *out);
int jinja_loop_print(text_sink *s, jinja_loop *l);
int jinja_loop_cycle(render *r, jinja_loop *l, const call_arguments *arguments, value *out);
int jinja_loop_changed(render *r, jinja_loop *l, const call_arguments *arguments, value *out);
int jinja_block_call(render *r, const jinja_block *b, value *out);

#endif
